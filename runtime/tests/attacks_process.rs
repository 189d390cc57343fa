//! What comes into a container with its processes: the runtime's program, descriptors, working directory, privileges and
//! hooks (FAULTS 30, 31; CVE-2019-5736, -2022-29162, -2024-21626, -2026-30892).

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::json;
use support::hostile::{self, Outside};
use support::{Bundle, Done};

/// Reaps a process whatever happens.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn started(script: &str) -> Bundle {
    let bundle = Bundle::new(script);
    bundle.create().ok();
    bundle.start().ok();
    bundle
}

/// Our own copy of the runtime: an attack that succeeds must not spoil the other tests'.
fn copied_runtime(bundle: &Bundle) -> PathBuf {
    let copy = bundle.path("runtime-copy");
    fs::copy(support::RUNTIME, &copy).unwrap();
    copy
}

fn call(runtime: &PathBuf, bundle: &Bundle, arguments: &[&str]) -> Command {
    let mut command = Command::new(runtime);
    command
        .arg("--root")
        .arg(bundle.path("state"))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// CVE-2019-5736: a process with every capability waits for an `exec` of /proc/self/exe, holds the program that comes in,
/// and writes to it as soon as it is no longer busy.
#[test]
fn the_runtime_that_execs_is_not_overwritten() {
    for program in ["/proc/self/exe", "/bin/script"] {
        let mut bundle = Bundle::new("exec sleep 1000");
        let all = json!(hull_runtime::caps::ALL.to_vec());
        bundle.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
        bundle.config["process"]["noNewPrivileges"] = json!(false);
        hostile::probe(&mut bundle);
        let script = bundle.rootfs().join("bin/script");
        fs::write(&script, "#!/proc/self/exe features\n").unwrap();
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let runtime = copied_runtime(&bundle);
        let before = fs::read(&runtime).unwrap();
        bundle.create().ok();
        bundle.start().ok();
        let mut attacker = Reaped(bundle.spawn(&["exec", &bundle.id, "probe", "overwrite"]));
        let mut lines = BufReader::new(attacker.0.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        let (sender, found) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(lines.next()));
        let mut rounds = 0;
        let held = loop {
            // The program that comes in is the runtime under the name of another.
            let _ = call(&runtime, &bundle, &["exec", &bundle.id, program, "features"])
                .output()
                .unwrap();
            if let Ok(line) = found.try_recv() {
                break line.unwrap().unwrap();
            }
            rounds += 1;
            assert!(rounds < 400, "the attacker never met the runtime");
        };
        assert!(held.contains("Read-only file system"), "{held}");
        assert!(fs::read(&runtime).unwrap() == before, "{held}");
    }
}

/// What execve keeps, the runtime must have dropped: for the first process and for each that `exec` adds.
#[test]
fn every_privilege_is_gone_before_the_image_runs() {
    let mut bundle = Bundle::new("probe identity; echo > /tmp/said; exec sleep 1000");
    let said = bundle.rootfs().join("tmp/said");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &said, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    hostile::probe(&mut bundle);
    let hostile_caller = |command: &mut Command| {
        let dirty = || {
            (leave_everything() == 0)
                .then_some(())
                .ok_or_else(std::io::Error::last_os_error)
        };
        // SAFETY: only system calls.
        unsafe { command.pre_exec(dirty) };
    };
    let out = fs::File::create(bundle.path("out")).unwrap();
    let mut create = bundle.command(&["create", &bundle.id]);
    hostile_caller(&mut create);
    assert!(create.stdout(out).stderr(Stdio::null()).status().unwrap().success());
    bundle.start().ok();
    let mut exec = bundle.command(&["exec", &bundle.id, "probe", "identity"]);
    hostile_caller(&mut exec);
    let expected = format!(
        "parent-death signal: 0\nkeep capabilities: 0\nsecure bits: 0\nsubreaper: 0\nsession leader: true\nkeyring: _ses.{}\n\
         signals: ignored 0 blocked 0\ndescriptors: 0 1 2\n",
        bundle.id
    );
    let second = Done::from(exec.output().unwrap());
    assert_eq!(second.out, expected, "{second:?}");
    // The shell of the first forked the probe: all but the session's leader is the same.
    fs::read(said).unwrap();
    assert_eq!(bundle.output(), expected.replace("leader: true", "leader: false"));
}

/// Everything a careless caller may hand on.
fn leave_everything() -> i32 {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: system calls with constant arguments.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0);
        let root = libc::open(c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY);
        for leaked in 5..200 {
            libc::dup2(root, leaked);
        }
        libc::close(root);
        libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, c"secrets-of-the-host".as_ptr()).min(0) as i32
    }
}

/// CVE-2024-21626 in `exec`: --cwd, and a process file.
#[test]
fn exec_does_not_start_outside() {
    let bundle = started("exec sleep 1000");
    for fd in 0..24 {
        for cwd in [
            format!("/proc/self/fd/{fd}"),
            format!("/proc/1/fd/{fd}/.."),
            format!("/proc/thread-self/fd/{fd}/../../.."),
        ] {
            let script = "readlink /proc/self/cwd; [ -e ../../../../proc/1/comm ] && cat ../../../../../proc/1/comm";
            let done = bundle.exec(&["--cwd", &cwd, &bundle.id, "sh", "-c", script]);
            let inside = done.out.starts_with('/') && done.out.ends_with("sleep\n");
            assert!(
                done.code == Some(255) && !done.err.is_empty() || inside,
                "{cwd}: {done:?}"
            );
        }
    }
    let process = json!({"args": ["true"], "cwd": "/proc/self/fd/9/..", "user": {"uid": 0, "gid": 0}});
    fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    let path = bundle.path("process.json");
    assert_ne!(bundle.exec(&["-p", path.to_str().unwrap(), &bundle.id]).code, Some(0));
}

/// A descriptor that is handed in on purpose may be a pipe or a file, but no way out.
#[test]
fn a_directory_is_not_handed_in() {
    let outside = Outside::new();
    let bundle = started("exec sleep 1000");
    for arguments in [
        &["run", "--preserve-fds", "1", &format!("{}x", bundle.id)][..],
        &["exec", "--preserve-fds", "1", &bundle.id, "true"],
    ] {
        for (target, refused) in [
            (outside.path().to_path_buf(), true),
            (outside.path().join("secret"), false),
        ] {
            let opened = fs::File::open(&target).unwrap();
            let mut command = bundle.command(arguments);
            let number = std::os::fd::AsRawFd::as_raw_fd(&opened);
            // SAFETY: dup2 and fcntl are async-signal-safe.
            unsafe {
                command.pre_exec(move || {
                    let same = number == 3 && libc::fcntl(3, libc::F_SETFD, 0) == 0;
                    match same || libc::dup2(number, 3) == 3 {
                        true => Ok(()),
                        false => Err(std::io::Error::last_os_error()),
                    }
                });
            }
            let mut config = bundle.config.clone();
            config["process"]["args"] = json!(["true"]);
            config["linux"]["cgroupsPath"] = json!(format!("/hull-test/{}x", bundle.id));
            fs::write(bundle.path("config.json"), config.to_string()).unwrap();
            let done = Done::from(command.output().unwrap());
            match refused {
                true => done.fails("descriptor 3 is a directory outside of the container"),
                false => drop(done.ok()),
            }
        }
    }
    let mut command = bundle.command(&["exec", &bundle.id, "true"]);
    command.stdin(fs::File::open(outside.path()).unwrap());
    Done::from(command.output().unwrap()).fails("descriptor 0 is a directory outside of the container");
}

/// CVE-2026-30892: what is not understood is an error, never user 0.
#[test]
fn a_user_that_does_not_parse_is_an_error() {
    let bundle = started("exec sleep 1000");
    for user in [
        "root",
        "",
        ":",
        "0x0",
        "-1",
        "+5",
        " 5",
        "5 ",
        "5:",
        ":5",
        "5:x",
        "5:6:7",
        "4294967296",
        "1e3",
        "0:-1",
        "५",
    ] {
        let done = bundle.exec(&["--user", user, &bundle.id, "id", "-u"]);
        assert!(done.code != Some(0) && done.out.is_empty(), "{user:?}: {done:?}");
    }
    assert_eq!(
        bundle.exec(&["--user", "4294967294:7", &bundle.id, "id", "-u"]).ok(),
        "4294967294"
    );
    for user in [
        json!({"uid": "5", "gid": 5}),
        json!({"uid": -1, "gid": 0}),
        json!({"uid": 4294967296u64, "gid": 0}),
        json!("5"),
    ] {
        let process = json!({"args": ["id"], "cwd": "/", "env": ["PATH=/bin"], "user": user});
        let path = bundle.path("process.json");
        fs::write(&path, process.to_string()).unwrap();
        let done = bundle.exec(&["-p", path.to_str().unwrap(), &bundle.id]);
        assert!(done.code != Some(0) && done.out.is_empty(), "{user}: {done:?}");
    }
}

/// CVE-2022-29162: an inheritable set would come alive with any program that has file capabilities.
#[test]
fn nothing_is_inheritable() {
    const SETS: &str = "grep -E 'CapInh|CapAmb' /proc/self/status";
    const NONE: &str = "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000";
    assert_eq!(Bundle::new(SETS).run().ok(), NONE);
    let bundle = started("exec sleep 1000");
    for flags in [
        &[][..],
        &["--cap", "CAP_NET_ADMIN"],
        &["--cap", "CAP_SYS_ADMIN", "--user", "1000"],
    ] {
        let done = bundle.exec(&[flags, &[&*bundle.id, "sh", "-c", SETS]].concat());
        assert_eq!(done.ok(), NONE, "{flags:?}");
    }
}

/// Hooks run with what the engine wrote, whatever lies in the image: program, environment, directory, descriptors, state.
#[test]
fn hooks_are_not_fed_by_the_container() {
    let mut bundle = Bundle::new("true");
    let seen = bundle.path("seen");
    let hook = bundle.path("hook.sh");
    let script = format!(
        "#!/bin/sh\n{{ echo stage $1; pwd; env; ls -l /proc/self/fd; cat; echo; }} >> {}\n",
        seen.display()
    );
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // The image has a program of the same name, and the configuration hostile variables for the process.
    let inside = bundle.rootfs().join(hook.strip_prefix("/").unwrap());
    fs::create_dir_all(inside.parent().unwrap()).unwrap();
    fs::write(&inside, "#!/bin/sh\nexit 3\n").unwrap();
    bundle.config["process"]["env"] = json!(["PATH=/evil", "LD_PRELOAD=/evil.so", "BASH_ENV=/evil"]);
    bundle.config["process"]["args"] = json!(["/bin/true"]);
    let stages = ["prestart", "createRuntime", "createContainer", "poststart", "poststop"];
    for stage in stages {
        bundle.config["hooks"][stage] = json!([{"path": hook, "args": ["hook.sh", stage]}]);
    }
    let id = bundle.id.clone();
    bundle.run().ok();
    let seen = fs::read_to_string(seen).unwrap();
    for stage in stages {
        assert!(seen.contains(&format!("stage {stage}\n")), "{stage}: {seen}");
    }
    assert_eq!(seen.matches(&format!("\"id\":\"{id}\"")).count(), stages.len());
    assert!(!seen.contains("evil"), "{seen}");
    // ls has its own directory as 3, and the shell's append as 1.
    let descriptors = seen
        .lines()
        .filter(|line| line.contains(" -> ") && !line.contains("/proc/"));
    assert!(
        descriptors
            .clone()
            .all(|line| line.contains("/memfd:") || line.contains("seen")),
        "{seen}"
    );
    assert!(
        !seen
            .lines()
            .any(|line| line == "/" || line.starts_with(&*bundle.rootfs().to_string_lossy())),
        "{seen}"
    );
}
