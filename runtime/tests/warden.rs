//! The warden as a process, with real containers (needs root and busybox-static): life cycle, logs, execs, and FAULTS 2, 16,
//! 21, 22: it is killed and restarted under containers that run on.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use hull_runtime::spec::Process;
use hull_runtime::warden::{
    self, Client, ContainerState, CreateRequest, Created, Event, EventStream, ExecRequest, Exit, Held, LogConfig,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_hull-runtime");
const BUSYBOX: &str = "/bin/busybox";
/// Longest wait for something that is about to happen: only failing tests reach it.
const PATIENCE: Timespec = Timespec { tv_sec: 30, tv_nsec: 0 };
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A warden with its directory, and everything it started; gone when dropped.
struct Ward {
    dir: tempfile::TempDir,
    cgroup: String,
}

impl Ward {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        assert!(
            Path::new(BUSYBOX).exists(),
            "these tests need {BUSYBOX}: apt-get install busybox-static"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new().prefix("hull-warden-test-").tempdir().unwrap();
        let ward = Self {
            dir,
            cgroup: format!("/hull-test-warden-{}-{number}", std::process::id()),
        };
        ward.spawn();
        ward
    }

    fn warden_dir(&self) -> PathBuf {
        self.dir.path().join("warden")
    }

    fn spawn(&self) {
        warden::spawn(Path::new(BINARY), &self.warden_dir()).unwrap();
    }

    fn client(&self) -> Client {
        Client::connect(&self.warden_dir()).unwrap()
    }

    /// kill -9 of the warden; returns when it is gone.
    fn kill_warden(&self) {
        let pid = Pid::from_raw(self.client().warden_pid().unwrap()).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&pidfd, Signal::KILL).unwrap();
        await_readable(&pidfd);
    }

    fn log_path(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("logs/{id}.log"))
    }

    /// A bundle that runs this shell script.
    fn bundle(&self, id: &str, script: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
        let bundle = self.dir.path().join("bundles").join(id);
        let root = bundle.join("rootfs");
        for part in ["bin", "proc", "dev", "tmp"] {
            fs::create_dir_all(root.join(part)).unwrap();
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup),
                "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            },
        });
        change(&mut config);
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    fn request(&self, id: &str, bundle: PathBuf) -> CreateRequest {
        CreateRequest {
            id: id.into(),
            bundle,
            log: Some(LogConfig {
                path: self.log_path(id),
                max_bytes: 0,
                max_files: 5,
            }),
            stdin: false,
            terminal: false,
            labels: BTreeMap::from([("name".to_owned(), id.to_owned())]),
        }
    }

    /// Creates and starts a container that runs this script.
    fn run(&self, id: &str, script: &str) -> Created {
        let bundle = self.bundle(id, script, |_| {});
        let created = self.client().create(self.request(id, bundle)).unwrap();
        self.client().start(id).unwrap();
        created
    }

    fn state(&self, id: &str) -> ContainerState {
        self.client()
            .list()
            .unwrap()
            .into_iter()
            .find(|container| container.id == id)
            .unwrap()
            .state
    }

    fn exit(&self, id: &str) -> Exit {
        match self.state(id) {
            ContainerState::Exited(exit) => exit,
            state => panic!("{id} has not ended: {state:?}"),
        }
    }

    /// The texts of a container's log, rotated files first, as `F text`.
    fn texts(&self, id: &str) -> Vec<String> {
        let path = self.log_path(id);
        let mut files = warden::rotated_files(&path);
        files.push(path);
        let log: String = files
            .iter()
            .map(|file| fs::read_to_string(file).unwrap_or_default())
            .collect();
        log.lines()
            .map(|line| line.splitn(3, ' ').nth(2).unwrap().to_owned())
            .collect()
    }

    fn exec_request(&self, id: &str, exec_id: &str, script: &str) -> ExecRequest {
        let process =
            json!({"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        let process: Process = serde_json::from_value(process).unwrap();
        ExecRequest {
            id: id.into(),
            exec_id: exec_id.into(),
            process,
            terminal: false,
            stdin: false,
        }
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        let cleaned = warden::spawn(Path::new(BINARY), &self.warden_dir())
            .and_then(|()| Client::connect(&self.warden_dir()))
            .and_then(|client| client.shutdown(true));
        for root in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
            let _ = fs::remove_dir(format!("{root}{}", self.cgroup));
        }
        if let Err(error) = cleaned {
            eprintln!("cleaning up {}: {error}", self.dir.path().display());
        }
    }
}

fn await_readable(fd: &OwnedFd) {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&PATIENCE)), Ok(1), "nothing happened");
}

fn await_exit(held: &Held) {
    await_readable(held.pidfd.as_ref().unwrap());
}

/// The end of this container or exec, from the events.
fn await_event(events: &mut EventStream, id: &str, exec_id: Option<&str>) -> Exit {
    for event in events {
        let Event::Exited {
            id: of,
            exec_id: exec,
            exit,
        } = event.unwrap();
        if of == id && exec.as_deref() == exec_id {
            return exit;
        }
    }
    panic!("the events ended");
}

fn read_all(fd: OwnedFd) -> String {
    let mut text = String::new();
    fs::File::from(fd).read_to_string(&mut text).unwrap();
    text
}

/// Waits for a file to satisfy a condition, woken by inotify.
fn await_file(path: &Path, satisfied: impl Fn(&str) -> bool) {
    use rustix::fs::inotify;
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC).unwrap();
    let flags = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, path.parent().unwrap(), flags).unwrap();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    while !fs::read_to_string(path).is_ok_and(|text| satisfied(&text)) {
        await_readable(&watch);
        let mut reader = inotify::Reader::new(&watch, &mut buffer);
        reader.next().unwrap();
    }
}

#[test]
fn a_container_lives_logs_and_is_deleted() {
    let ward = Ward::new();
    let mut events = ward.client().subscribe().unwrap();
    let bundle = ward.bundle("web", "echo out; echo err >&2; printf rest; exit 42", |_| {});
    let created = ward.client().create(ward.request("web", bundle)).unwrap();
    assert_eq!(ward.state("web"), ContainerState::Created);
    assert_eq!(ward.texts("web"), [""; 0]);
    ward.client().start("web").unwrap();
    let exit = await_event(&mut events, "web", None);
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (Some(42), None, false));
    let mut texts = ward.texts("web");
    texts.sort();
    assert_eq!(texts, ["F err", "F out", "P rest"], "complete when the event comes");
    let info = ward.client().list().unwrap().remove(0);
    assert_eq!(
        (info.pid, info.start_time, info.state),
        (created.pid, created.start_time, ContainerState::Exited(exit))
    );
    assert_eq!(info.labels["name"], "web");
    ward.client().delete("web", false).unwrap();
    assert!(ward.client().list().unwrap().is_empty());
    assert!(!ward.warden_dir().join("c/web").exists());
    assert!(ward.client().delete("web", false).unwrap_err().is_not_found());
    ward.client().delete("web", true).unwrap();
}

#[test]
fn what_cannot_be_is_refused_with_a_reason() {
    let ward = Ward::new();
    ward.run("a", "exec sleep 1000");
    let bundle = ward.bundle("b", "true", |_| {});
    let mut request = ward.request("a", bundle.clone());
    assert!(ward.client().create(request.clone()).unwrap_err().is_already_exists());
    request.id = "../x".into();
    assert!(
        ward.client()
            .create(request.clone())
            .unwrap_err()
            .to_string()
            .contains("../x")
    );
    request.id = "missing".into();
    request.bundle = "/nowhere".into();
    let error = ward.client().create(request).unwrap_err().to_string();
    assert!(error.contains("/nowhere/config.json"), "{error}");
    assert!(!ward.warden_dir().join("c/missing").exists());
    assert!(ward.client().start("nobody").unwrap_err().is_not_found());
    assert!(ward.client().delete("a", false).is_err(), "it runs");
    assert!(ward.client().kill_exec("a", "nobody", 9).unwrap_err().is_not_found());
    ward.client().delete("a", true).unwrap();
}

#[test]
fn a_program_that_is_missing_fails_and_leaves_nothing() {
    let ward = Ward::new();
    let bundle = ward.bundle("bad", "", |config| config["process"]["args"] = json!(["/bin/nothing"]));
    let failed = ward
        .client()
        .create(ward.request("bad", bundle))
        .and_then(|_| ward.client().start("bad"));
    let error = failed.unwrap_err().to_string();
    assert!(error.contains("/bin/nothing"), "{error}");
    ward.client().delete("bad", true).unwrap();
    assert!(ward.client().list().unwrap().is_empty());
}

#[test]
fn an_exec_gets_pipes_and_reports_its_exit() {
    let ward = Ward::new();
    ward.run("a", "exec sleep 1000");
    let client = ward.client();
    let mut events = client.subscribe().unwrap();
    let mut request = ward.exec_request("a", "e1", "read line; echo got $line; echo bad >&2; exit 3");
    request.stdin = true;
    let started = client.exec(request).unwrap();
    assert_eq!(client.exec_exit("a", "e1").unwrap(), None);
    fs::File::from(started.stdin.unwrap()).write_all(b"input\n").unwrap();
    assert_eq!(read_all(started.stdout.unwrap()), "got input\n");
    assert_eq!(read_all(started.stderr.unwrap()), "bad\n");
    await_readable(&started.pidfd);
    let exit = client
        .exec_exit("a", "e1")
        .unwrap()
        .expect("certain once the pidfd is readable");
    assert_eq!(exit.code, Some(3));
    assert_eq!(await_event(&mut events, "a", Some("e1")), exit);
    let started = client.exec(ward.exec_request("a", "e2", "exec sleep 1000")).unwrap();
    client.kill_exec("a", "e2", 9).unwrap();
    await_readable(&started.pidfd);
    assert_eq!(client.exec_exit("a", "e2").unwrap().unwrap().status(), Some(137));
    assert!(ward.texts("a").is_empty(), "an exec's output is no log");
}

#[test]
fn a_container_with_a_running_exec_is_deleted_at_once() {
    let ward = Ward::new();
    let created = ward.run("a", "exec sleep 1000");
    let client = ward.client();
    let mut events = client.subscribe().unwrap();
    let exec = client.exec(ward.exec_request("a", "e", "exec sleep 1000")).unwrap();
    client.delete("a", true).unwrap();
    assert_eq!(await_event(&mut events, "a", Some("e")).signal, Some(9));
    assert_eq!(await_event(&mut events, "a", None).signal, Some(9));
    await_readable(&exec.pidfd);
    await_exit(&created.held);
}

#[test]
fn an_exec_may_have_a_terminal() {
    let ward = Ward::new();
    ward.run("a", "exec sleep 1000");
    let mut request = ward.exec_request("a", "t", "test -t 0 && echo terminal $TERM");
    request.terminal = true;
    let started = ward.client().exec(request).unwrap();
    let mut console = fs::File::from(started.console.unwrap());
    let mut text = Vec::new();
    // The terminal's other side going away is EIO.
    let _ = console.read_to_end(&mut text);
    assert_eq!(String::from_utf8(text).unwrap().trim(), "terminal");
    assert!(started.stdout.is_none());
}

#[test]
fn a_killed_warden_is_noticed_by_nobody_in_a_container() {
    let ward = Ward::new();
    let created = ward.run(
        "a",
        "i=0; while read line; do i=$((i+1)); echo line $i $line; done < /gate; exit 7",
    );
    ward.client().delete("a", true).unwrap();
    drop(created);

    // A gate lets the container go on when the test wants.
    let bundle = ward.bundle(
        "b",
        "exec 3<>/gate; echo before; read x <&3; echo $x; read x <&3; echo $x; exit 7",
        |_| {},
    );
    let gate = bundle.join("rootfs/gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let created = ward.client().create(ward.request("b", bundle)).unwrap();
    ward.client().start("b").unwrap();
    await_file(&ward.log_path("b"), |log| log.contains("before"));
    ward.kill_warden();
    assert!(Client::connect(&ward.warden_dir()).is_err());
    fs::write(&gate, "while dead\n").unwrap();
    ward.spawn();
    let client = ward.client();
    let mut events = client.subscribe().unwrap();
    let info = client.list().unwrap().remove(0);
    assert_eq!(
        (info.pid, info.start_time, info.state),
        (created.pid, created.start_time, ContainerState::Running)
    );
    assert!(info.started_at.is_some());
    await_file(&ward.log_path("b"), |log| log.contains("while dead"));
    let exec = client.exec(ward.exec_request("b", "e", "echo alive")).unwrap();
    assert_eq!(read_all(exec.stdout.unwrap()), "alive\n");
    fs::write(&gate, "after\n").unwrap();
    let exit = await_event(&mut events, "b", None);
    assert_eq!(
        (exit.code, exit.signal),
        (Some(7), None),
        "an adopted container's exit code is right"
    );
    assert_eq!(ward.texts("b"), ["F before", "F while dead", "F after"]);
    client.delete("b", false).unwrap();
}

/// Runs a container that ends while no warden lives, its descriptors held or not, and returns what a new warden knows.
fn end_without_warden(ward: &Ward, id: &str, hold: bool) -> (Created, PathBuf) {
    let bundle = ward.bundle(id, "read x < /gate; echo last words; exit 9", |_| {});
    let gate = bundle.join("rootfs/gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut created = ward.client().create(ward.request(id, bundle)).unwrap();
    ward.client().start(id).unwrap();
    let pidfd = pidfd_open(Pid::from_raw(created.pid).unwrap(), PidfdFlags::empty()).unwrap();
    if !hold {
        created.held = Held {
            pidfd: None,
            console: None,
            logs: Vec::new(),
        };
    }
    ward.kill_warden();
    fs::write(&gate, "go\n").unwrap();
    await_readable(&pidfd);
    // Gone for good, not only a zombie.
    let mut fds = [PollFd::new(&pidfd, PollFlags::empty())];
    poll(&mut fds, Some(&PATIENCE)).unwrap();
    assert!(
        fds[0].revents().contains(PollFlags::HUP),
        "nobody reaps orphans on this machine"
    );
    drop(pidfd);
    ward.spawn();
    (created, gate)
}

#[test]
fn an_exit_while_no_warden_lives_is_known_from_what_the_agent_holds() {
    let ward = Ward::new();
    let (created, _) = end_without_warden(&ward, "held", true);
    let client = ward.client();
    let mut events = client.subscribe().unwrap();
    assert_eq!(ward.exit("held").status(), None, "nobody told yet");
    client.adopt("held", &created.held).unwrap();
    assert_eq!(await_event(&mut events, "held", None).code, Some(9));
    assert_eq!(ward.exit("held").code, Some(9));
    assert_eq!(
        ward.texts("held"),
        ["F last words"],
        "the agent's descriptor kept the pipe"
    );
    ward.kill_warden();
    ward.spawn();
    assert_eq!(ward.exit("held").code, Some(9), "it is on disk");
}

#[test]
fn an_exit_that_nobody_saw_is_reported_as_unknown() {
    let ward = Ward::new();
    end_without_warden(&ward, "lost", false);
    let exit = ward.exit("lost");
    assert_eq!((exit.code, exit.signal), (None, None));
    ward.client().delete("lost", false).unwrap();
    assert!(ward.client().list().unwrap().is_empty());
}

#[test]
fn no_line_is_lost_or_repeated_when_the_warden_is_killed_under_a_flood() {
    const LINES: usize = 60_000;
    let ward = Ward::new();
    let script = format!("i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); done");
    let created = ward.run("flood", &script);
    let mut kills = 0;
    // Killed as often as it gets a few hundred lines further.
    for step in 1..=8 {
        let wanted = step * LINES / 10;
        await_file(&ward.log_path("flood"), |log| log.lines().count() >= wanted);
        ward.kill_warden();
        ward.spawn();
        kills += 1;
    }
    assert_eq!(kills, 8);
    await_exit(&created.held);
    let client = ward.client();
    client.adopt("flood", &created.held).unwrap();
    assert_eq!(ward.exit("flood").code, Some(0));
    let texts = ward.texts("flood");
    let expected: Vec<String> = (0..LINES).map(|i| format!("F line {i}")).collect();
    let first_wrong = texts.iter().zip(&expected).position(|(found, wanted)| found != wanted);
    assert_eq!((texts.len(), first_wrong), (LINES, None));
}

#[test]
fn a_runaway_log_is_rotated_and_memory_stays_small() {
    let ward = Ward::new();
    let bundle = ward.bundle("yes", "busybox yes | busybox head -c 40000000", |_| {});
    let mut request = ward.request("yes", bundle);
    request.log = Some(LogConfig {
        path: ward.log_path("yes"),
        max_bytes: 1 << 20,
        max_files: 3,
    });
    let mut events = ward.client().subscribe().unwrap();
    ward.client().create(request).unwrap();
    ward.client().start("yes").unwrap();
    assert_eq!(await_event(&mut events, "yes", None).code, Some(0));
    let mut files = warden::rotated_files(&ward.log_path("yes"));
    assert_eq!(files.len(), 2);
    files.push(ward.log_path("yes"));
    for file in files {
        let size = fs::metadata(&file).unwrap().len();
        assert!(size <= 1 << 20, "{} has {size} bytes", file.display());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", ward.client().warden_pid().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 8 << 10, "the warden used {peak} kB");
}

#[test]
fn a_line_without_end_is_split_and_another_container_is_not_held_up() {
    let ward = Ward::new();
    let long = 5_000_000;
    let flooder = ward.run(
        "flooder",
        &format!("busybox head -c {long} /dev/zero | busybox tr '\\0' x; echo"),
    );
    let mut events = ward.client().subscribe().unwrap();
    ward.run("small", "echo quick");
    await_event(&mut events, "small", None);
    assert_eq!(ward.texts("small"), ["F quick"]);
    await_exit(&flooder.held);
    // Any answer comes after the warden has seen the end.
    assert_eq!(ward.exit("flooder").code, Some(0));
    let texts = ward.texts("flooder");
    assert!(
        texts[..texts.len() - 1]
            .iter()
            .all(|text| text.starts_with("P ") && text.len() == 2 + (16 << 10))
    );
    assert!(texts.last().unwrap().starts_with("F "));
    assert_eq!(texts.iter().map(|text| text.len() - 2).sum::<usize>(), long);
}

#[test]
fn orphans_are_reaped() {
    let ward = Ward::new();
    let bundle = ward.bundle("zombies", "", |config| {
        // In the host's pid namespace orphans are the warden's.
        config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}]);
        let script = "i=0; while [ $i -lt 200 ]; do (busybox true & exec busybox true); i=$((i+1)); done; echo done; exec busybox sleep 1000";
        config["process"]["args"] = json!(["/bin/sh", "-c", script]);
    });
    ward.client().create(ward.request("zombies", bundle)).unwrap();
    ward.client().start("zombies").unwrap();
    await_file(&ward.log_path("zombies"), |log| log.contains("done"));
    let client = ward.client();
    let pid = client.warden_pid().unwrap();
    client.list().unwrap();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let zombies: Vec<&str> = children
        .split_whitespace()
        .filter(|child| fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| stat.contains(") Z ")))
        .collect();
    assert!(zombies.is_empty(), "{zombies:?}");
}

#[test]
fn one_warden_for_any_number_of_starters_and_no_descriptor_leaks() {
    let ward = Ward::new();
    let dir = ward.warden_dir();
    ward.kill_warden();
    let pids: HashSet<i32> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    warden::spawn(Path::new(BINARY), &dir).unwrap();
                    Client::connect(&dir).unwrap().warden_pid().unwrap()
                })
            })
            .collect();
        starters.into_iter().map(|starter| starter.join().unwrap()).collect()
    });
    assert_eq!(pids.len(), 1);
    let pid = pids.into_iter().next().unwrap();
    let count = || {
        // Whoever disconnected earlier is handled before the second answer; this connection counts itself.
        let client = ward.client();
        client.list().unwrap();
        client.list().unwrap();
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    };
    let mut events = ward.client().subscribe().unwrap();
    let before = count();
    for round in 0..5 {
        let id = format!("c{round}");
        ward.run(&id, "read x < /dev/null; exec sleep 1000");
        let exec = ward.client().exec(ward.exec_request(&id, "e", "true")).unwrap();
        await_readable(&exec.pidfd);
        ward.client().kill(&id, 9, false).unwrap();
        await_event(&mut events, &id, None);
        ward.client().delete(&id, false).unwrap();
    }
    assert_eq!(count(), before);
    // Only descriptors 0, 1 and 2 reach a container.
    ward.run("fds", "cd /proc/self/fd; echo *");
    await_event(&mut events, "fds", None);
    let texts = ward.texts("fds");
    let listed: Vec<&str> = texts[0].split_whitespace().skip(1).collect();
    assert_eq!(listed[..3], ["0", "1", "2"]);
    assert!(
        listed.len() <= 4,
        "the shell itself may have the directory open: {listed:?}"
    );
}

#[test]
fn an_unfinished_creation_is_cleaned_up_by_the_next_warden() {
    let ward = Ward::new();
    ward.kill_warden();
    let left = ward.warden_dir().join("c/half");
    fs::create_dir_all(&left).unwrap();
    fs::write(left.join("record.json"), "{").unwrap();
    ward.spawn();
    assert!(ward.client().list().unwrap().is_empty());
    assert!(!left.exists());
    ward.run("half", "exec sleep 1000");
}

#[test]
fn shutdown_without_kill_leaves_containers_to_the_next_warden() {
    let ward = Ward::new();
    let created = ward.run("a", "exec sleep 1000");
    ward.client().shutdown(false).unwrap();
    ward.spawn();
    let info = ward.client().list().unwrap().remove(0);
    assert_eq!((info.pid, info.state), (created.pid, ContainerState::Running));
    ward.client().shutdown(true).unwrap();
    await_exit(&created.held);
    let left = Command::new(BINARY)
        .args(["warden", "--dir"])
        .arg(ward.warden_dir())
        .status()
        .unwrap();
    assert!(left.success());
    assert!(ward.client().list().unwrap().is_empty());
}

#[test]
fn a_terminal_outlives_the_warden_while_the_agent_holds_it() {
    let ward = Ward::new();
    let bundle = ward.bundle(
        "tty",
        "test -t 1 && echo on a terminal; read x; echo got $x; exec sleep 1000",
        |config| {
            config["process"]["terminal"] = json!(true);
        },
    );
    let mut request = ward.request("tty", bundle);
    request.terminal = true;
    let created = ward.client().create(request).unwrap();
    ward.client().start("tty").unwrap();
    await_file(&ward.log_path("tty"), |log| log.contains("on a terminal"));
    ward.kill_warden();
    ward.spawn();
    ward.client().adopt("tty", &created.held).unwrap();
    let console = created.held.console.as_ref().unwrap();
    rustix::io::write(console.as_fd(), b"input\n").unwrap();
    await_file(&ward.log_path("tty"), |log| log.contains("got input"));
    assert_eq!(ward.state("tty"), ContainerState::Running);
}
