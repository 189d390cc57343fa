//! podman (as root and as a user), buildah and containerd drive the runtime, as they are in Debian; and systemd makes its
//! cgroups. Each in a private mount namespace with one cgroup2, as on a machine that has only that. Needs root.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const RUNTIME: &str = env!("CARGO_BIN_EXE_hull-runtime");
/// Raising a limit needs CAP_SYS_RESOURCE, and no network is wanted: what engines do by default beyond that is left on.
const PODMAN_RUN: [&str; 8] = [
    "--network",
    "none",
    "--pids-limit",
    "0",
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1024:1024",
];
const USER: &str = "4242";

/// A mount namespace, a directory, and a busybox image's root; gone with all processes in it when dropped.
struct Room {
    dir: tempfile::TempDir,
    holder: Child,
}

impl Room {
    fn new(needed: &[&str]) -> Room {
        assert!(rustix::process::geteuid().is_root(), "the tests of engines need root");
        for program in needed {
            let found = Command::new("sh")
                .args(["-c", &format!("command -v {program}")])
                .output()
                .unwrap();
            assert!(
                found.status.success(),
                "{program} is missing: apt-get install podman buildah containerd uidmap systemd busybox-static"
            );
        }
        let dir = tempfile::Builder::new().prefix("hull-engine").tempdir().unwrap();
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        // A pid namespace, so that everything the engines leave behind ends with it.
        let script = "mount -t proc proc /proc && umount -l /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup \
                      && mount -t tmpfs tmpfs /run && mkdir /run/lock && echo ready && exec cat >/dev/null";
        let mut holder = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                script,
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is missing: apt-get install util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let room = Room { dir, holder };
        room.make_image();
        room
    }

    fn make_image(&self) {
        let root = self.path("image");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc", "root", "mnt"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::set_permissions(root.join("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox is missing: apt-get install busybox-static");
        for applet in [
            "sh", "cat", "df", "echo", "env", "grep", "hostname", "id", "ls", "mkdir", "ps", "sleep", "touch", "tty",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n",
        )
        .unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1000:\n").unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A command inside.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let child = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.holder.id())).unwrap();
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--target", child.trim(), program]);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir(self.dir.path());
        command.env("TMPDIR", self.dir.path()).env("NOTIFY_SOCKET", "");
        command
    }

    fn call(&self, program: &str, arguments: &[&str]) -> Done {
        Done::new(arguments, self.command(program, arguments).output().unwrap())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        // Engines make their groups beside ours; whose are in use stay.
        let hierarchy = hull_runtime::cgroup::Hierarchy::find().map(|hierarchy| hierarchy.mount().to_path_buf());
        for name in ["libpod_parent", "default", "conmon"] {
            let _ = hierarchy.as_ref().map(|mount| remove_groups(&mount.join(name)));
        }
    }
}

fn remove_groups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// A finished command.
#[derive(Debug)]
#[allow(dead_code, reason = "shown when an assertion fails")]
struct Done {
    arguments: Vec<String>,
    code: Option<i32>,
    out: String,
    err: String,
}

impl Done {
    fn new(arguments: &[&str], output: Output) -> Done {
        Done {
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).trim().replace('\r', ""),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    fn gives(&self, code: i32, out: &str) {
        assert!(
            self.code == Some(code) && self.out == out,
            "wanted {code} {out:?}: {self:#?}"
        );
    }

    #[track_caller]
    fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:#?}");
        &self.out
    }

    #[track_caller]
    fn fails(&self, code: i32, text: &str) {
        assert!(
            self.code == Some(code) && self.err.contains(text),
            "wanted {code} {text:?}: {self:#?}"
        );
    }
}

/// podman in a room, with the image `bb`.
struct Podman {
    room: Room,
    /// Of an unprivileged user.
    rootless: bool,
}

impl Podman {
    fn new() -> Podman {
        let podman = Podman {
            room: Room::new(&["podman", "conmon"]),
            rootless: false,
        };
        podman.import();
        podman
    }

    /// In the room somebody has an account and ranges of ids, as adduser(8) makes them.
    fn rootless() -> Podman {
        let room = Room::new(&["podman", "conmon", "newuidmap", "setpriv"]);
        let file = |name: &str, text: String| {
            fs::write(room.path(name), text).unwrap();
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(format!("/etc/{name}"))
                .unwrap();
            let (from, to) = (room.text(name), format!("/etc/{name}"));
            room.call("mount", &["--bind", &from, &to]).ok();
        };
        let home = room.text("home");
        let with = |name: &str, line: String| fs::read_to_string(format!("/etc/{name}")).unwrap() + &line;
        file(
            "passwd",
            with("passwd", format!("hulltest:x:{USER}:{USER}::{home}:/bin/sh\n")),
        );
        file("group", with("group", format!("hulltest:x:{USER}:\n")));
        file("subuid", "hulltest:200000:65536\n".into());
        file("subgid", "hulltest:200000:65536\n".into());
        fs::create_dir(&home).unwrap();
        // Where a user may execute it, whatever the build directory's permissions.
        fs::copy(RUNTIME, room.path("hull-runtime")).unwrap();
        for directory in [home.as_str(), "/run/user/4242"] {
            room.call("mkdir", &["-p", directory]).ok();
            room.call("chown", &["4242:4242", directory]).ok();
            room.call("chmod", &["700", directory]).ok();
        }
        let podman = Podman { room, rootless: true };
        podman.import();
        podman
    }

    fn import(&self) {
        let tar = self.room.text("image.tar");
        self.room
            .call("tar", &["-C", &self.room.text("image"), "-cf", &tar, "."])
            .ok();
        self.call(&["import", &tar, "bb"]).ok();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut all: Vec<String> = Vec::new();
        let room = &self.room;
        if self.rootless {
            let user = [
                "--reuid",
                USER,
                "--regid",
                USER,
                "--clear-groups",
                "env",
                "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            ];
            all.extend(user.map(str::to_owned));
            all.push(format!("HOME={}", room.text("home")));
            all.push("XDG_RUNTIME_DIR=/run/user/4242".into());
            all.extend(["podman".into(), "--runtime".into(), room.text("hull-runtime")]);
        } else {
            for (flag, name) in [("--root", "store"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
                all.extend([flag.into(), room.text(name)]);
            }
            all.extend(["--runtime".into(), RUNTIME.into()]);
        }
        let drivers = "--cgroup-manager cgroupfs --events-backend file --storage-driver vfs";
        all.extend(drivers.split(' ').map(str::to_owned));
        all.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        room.command(if self.rootless { "setpriv" } else { "podman" }, &all)
    }

    fn call(&self, arguments: &[&str]) -> Done {
        Done::new(arguments, self.command(arguments).output().unwrap())
    }

    /// `podman run`, with `flags`, of a command line in the image.
    fn run(&self, flags: &[&str], command: &[&str]) -> Done {
        self.call(&[&["run"], &PODMAN_RUN[..], flags, &["bb"], command].concat())
    }

    /// The same, removed afterwards, of a shell script.
    fn shell(&self, flags: &[&str], script: &str) -> Done {
        self.run(&[&["--rm"], flags].concat(), &["sh", "-c", script])
    }
}

#[test]
fn podman_gets_exit_codes_and_reasons() {
    let podman = Podman::new();
    podman.shell(&[], "exit 7").gives(7, "");
    podman
        .run(&["--rm"], &["nosuch"])
        .fails(127, "executable file not found in $PATH");
    podman
        .run(&["--rm"], &["/nosuch"])
        .fails(127, "no such file or directory");
    podman.run(&["--rm"], &["/etc/passwd"]).fails(126, "permission denied");
    podman.run(&["--rm"], &["/etc"]).fails(126, "permission denied");
    let limited = podman.shell(&["--memory", "64m"], "cat /sys/fs/cgroup/memory.max");
    match fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").is_ok_and(|all| all.contains("memory")) {
        true => limited.gives(0, "67108864"),
        false => limited.fails(126, "the controller \"memory\" is not available"),
    }
}

#[test]
fn podman_sets_up_what_it_is_asked_for() {
    let podman = Podman::new();
    podman
        .shell(&["--user", "web", "--group-add", "5"], "id -u; id -G")
        .gives(0, "1000\n1000 5");
    podman
        .shell(
            &["--cap-drop", "ALL", "--cap-add", "NET_RAW"],
            "grep -E 'Cap(Eff|Bnd)' /proc/self/status",
        )
        .gives(0, "CapEff:\t0000000000002000\nCapBnd:\t0000000000002000");
    podman
        .shell(
            &["--read-only", "--tmpfs", "/mnt:size=1m,mode=1777"],
            "touch /x; touch /mnt/x && df /mnt | grep -c 1024",
        )
        .gives(0, "1");
    let flags = [
        "--sysctl",
        "net.ipv4.ip_forward=1",
        "--hostname",
        "hh",
        "--ulimit",
        "core=0:0",
        "--oom-score-adj",
        "100",
        "--umask",
        "077",
        "--device",
        "/dev/fuse:/dev/x",
        "--security-opt",
        "no-new-privileges",
        "--init=false",
        "--shm-size",
        "1m",
    ];
    let script = "cat /proc/sys/net/ipv4/ip_forward; hostname; ulimit -c; cat /proc/self/oom_score_adj; umask; \
                  test -c /dev/x && echo device; grep NoNewPrivs /proc/self/status; df /dev/shm | grep -c ' 1024 '";
    podman
        .shell(&flags, script)
        .gives(0, "1\nhh\n0\n100\n0077\ndevice\nNoNewPrivs:\t1\n1");
    let profile = podman.room.text("seccomp.json");
    fs::write(
        &profile,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":13}]}"#,
    )
    .unwrap();
    podman
        .shell(&["--security-opt", &format!("seccomp={profile}")], "mkdir /tmp/x")
        .fails(1, "Permission denied");
    podman
        .shell(
            &["--privileged", "--pid", "host", "--uts", "host", "--ipc", "host"],
            "echo privileged",
        )
        .gives(0, "privileged");
    podman
        .shell(
            &["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"],
            "id -u; cat /proc/self/uid_map",
        )
        .gives(0, "0\n         0     100000       1000");
}

#[test]
fn podman_leads_a_container_through_its_life() {
    let podman = Podman::new();
    podman
        .run(
            &["-d", "--name", "c1", "--health-cmd", "true"],
            &["sh", "-c", "echo out; echo err >&2; exec sleep 1000"],
        )
        .ok();
    let logs = podman.call(&["logs", "c1"]);
    assert_eq!((logs.ok(), logs.err.as_str()), ("out", "err\n"));
    podman.call(&["exec", "c1", "sh", "-c", "exit 9"]).gives(9, "");
    podman.call(&["exec", "-u", "1000", "c1", "id", "-u"]).gives(0, "1000");
    podman.call(&["exec", "-t", "c1", "tty"]).gives(0, "/dev/pts/0");
    podman
        .call(&["exec", "-e", "A=b", "-w", "/tmp", "c1", "sh", "-c", "echo $A; pwd"])
        .gives(0, "b\n/tmp");
    podman
        .call(&["exec", "c1", "nosuch"])
        .fails(127, "executable file not found in $PATH");
    podman
        .call(&["exec", "c1", "/etc/passwd"])
        .fails(126, "permission denied");
    podman.call(&["healthcheck", "run", "c1"]).ok();
    podman.call(&["pause", "c1"]).ok();
    podman
        .call(&["exec", "c1", "id"])
        .fails(255, "container state improper");
    podman.call(&["unpause", "c1"]).ok();
    assert!(podman.call(&["stats", "--no-stream", "c1"]).ok().contains("c1"));
    assert!(
        podman
            .call(&["top", "c1", "pid", "comm"])
            .ok()
            .ends_with("1           sleep")
    );
    podman.call(&["restart", "-t", "0", "c1"]).ok();
    podman.call(&["kill", "-s", "KILL", "c1"]).ok();
    podman.call(&["wait", "c1"]).gives(0, "137");
    let state = ["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "c1"];
    podman.call(&state).gives(0, "exited 137");
    podman.call(&["start", "c1"]).ok();
    podman.call(&["rm", "-f", "-t", "0", "c1"]).ok();
}

#[test]
fn podman_attaches_and_shares_namespaces() {
    let podman = Podman::new();
    let mut command = podman.command(&[&["run", "-i", "--rm"], &PODMAN_RUN[..], &["bb", "cat"]].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through\n").unwrap();
    Done::new(&["run -i"], child.wait_with_output().unwrap()).gives(0, "through");
    podman
        .run(
            &[
                "-d",
                "--name",
                "u1",
                "--uidmap",
                "0:100000:65536",
                "--gidmap",
                "0:100000:65536",
            ],
            &["sleep", "1000"],
        )
        .ok();
    let others = [
        "run",
        "--rm",
        "--pids-limit",
        "0",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=1024:1024",
    ];
    let shared = ["--userns", "container:u1", "--network", "container:u1"];
    podman
        .call(
            &[
                &others[..],
                &shared,
                &[
                    "--pid",
                    "container:u1",
                    "bb",
                    "sh",
                    "-c",
                    "id -u; grep -c sleep /proc/1/cmdline",
                ],
            ]
            .concat(),
        )
        .gives(0, "0\n1");
    podman
        .call(&[&others[..], &shared, &["bb", "sh", "-c", "echo $$"]].concat())
        .gives(0, "1");
    podman.call(&["rm", "-f", "-t", "0", "u1"]).ok();
    podman.call(&["pod", "create", "--name", "pod1", "--infra=false"]).ok();
    podman.shell(&["--pod", "pod1"], "echo in-pod").gives(0, "in-pod");
}

#[test]
fn podman_needs_no_root() {
    let podman = Podman::rootless();
    podman.shell(&[], "id -u; cat /proc/self/uid_map").gives(
        0,
        "0\n         0       4242          1\n         1     200000      65536",
    );
    podman
        .shell(
            &["--userns", "keep-id"],
            "id -u; touch /tmp/x && ls -n /tmp/x | grep -c ' 4242 '",
        )
        .gives(0, "4242\n1");
    podman.run(&["-d", "--name", "c1"], &["sleep", "1000"]).ok();
    podman.call(&["exec", "-u", "1000", "c1", "id", "-u"]).gives(0, "1000");
    podman.call(&["exec", "-t", "c1", "tty"]).gives(0, "/dev/pts/0");
    podman.call(&["rm", "-f", "-t", "0", "c1"]).ok();
    podman
        .shell(
            &["--pid", "host", "--device", "/dev/fuse"],
            "test -c /dev/fuse && echo device",
        )
        .gives(0, "device");
    podman
        .shell(&["--memory", "10m"], "true")
        .fails(126, "cgroup that is delegated to this user");
}

#[test]
fn buildah_builds_and_runs() {
    let room = Room::new(&["buildah"]);
    fs::create_dir(room.path("context")).unwrap();
    fs::copy("/bin/busybox", room.path("context/busybox")).unwrap();
    fs::write(
        room.path("context/Containerfile"),
        "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\",\"ln\",\"-s\",\"busybox\",\"/bin/sh\"]\n\
         RUN /bin/busybox id -u > /made\nUSER 1000\nRUN /bin/busybox id -u\n",
    )
    .unwrap();
    let buildah = |command: &[&str], arguments: &[&str]| {
        let (store, run) = (room.text("store"), room.text("run"));
        let global = ["--root", &store, "--runroot", &run, "--storage-driver", "vfs"];
        room.call("buildah", &[&global[..], command, arguments].concat())
    };
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
    let runtime = ["--runtime", RUNTIME, "--isolation", "oci", "--network", "none"];
    let context = room.text("context");
    let built = buildah(&["bud"], &[&runtime[..], &limits, &["-t", "made", &context]].concat());
    assert!(built.ok().contains("\n1000\n"), "{built:#?}");
    let container = buildah(&["from"], &[&limits[..], &["made"]].concat()).ok().to_owned();
    let run = |arguments: &[&str]| buildah(&["run"], &[&runtime[..], &["--", &container], arguments].concat());
    run(&["/bin/busybox", "cat", "/made"]).gives(0, "0");
    run(&["/bin/busybox", "sh", "-c", "exit 5"]).gives(5, "");
    run(&["/nosuch"]).fails(1, "no such file or directory");
}

#[test]
fn containerd_drives_it_through_its_shim() {
    let room = Room::new(&["containerd", "ctr"]);
    let socket = room.text("containerd.sock");
    let plugins = [
        "io.containerd.grpc.v1.cri",
        "io.containerd.snapshotter.v1.btrfs",
        "io.containerd.snapshotter.v1.zfs",
    ];
    fs::write(
        room.path("config.toml"),
        format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {plugins:?}\n[grpc]\naddress = {socket:?}\n",
            room.text("root"),
            room.text("state")
        ),
    )
    .unwrap();
    let config = room.text("config.toml");
    let mut daemon = room
        .command("containerd", &["-c", &config])
        .stderr(fs::File::create(room.path("log")).unwrap())
        .spawn()
        .unwrap();
    let ctr = |arguments: &[&str]| room.call("ctr", &[&["-a", &socket], arguments].concat());
    let deadline = Instant::now() + Duration::from_secs(20);
    // ctr waits for the socket itself, but gives up soon.
    while ctr(&["version"]).code != Some(0) {
        assert!(
            Instant::now() < deadline,
            "{}",
            fs::read_to_string(room.path("log")).unwrap()
        );
    }
    let (image, state) = (room.text("image"), room.text("runc"));
    let run = |flags: &[&str], command: &[&str]| {
        let runtime = ["run", "--runc-binary", RUNTIME, "--runc-root", &state];
        ctr(&[&runtime[..], flags, &["--rootfs", &image], command].concat())
    };
    run(&["--rm"], &["t1", "/bin/sh", "-c", "id -u; exit 4"]).gives(4, "0");
    run(&["--rm"], &["t2", "/nosuch"]).fails(1, "no such file or directory");
    run(
        &["--rm", "--seccomp", "--read-only"],
        &["t3", "/bin/sh", "-c", "grep Seccomp: /proc/self/status; touch /x"],
    )
    .fails(1, "Read-only file system");
    run(&["-d"], &["t4", "/bin/sleep", "1000"]).ok();
    ctr(&["tasks", "exec", "--exec-id", "e1", "t4", "/bin/sh", "-c", "exit 6"]).gives(6, "");
    ctr(&["tasks", "exec", "--exec-id", "e2", "t4", "/nosuch"]).fails(1, "no such file or directory");
    ctr(&["tasks", "pause", "t4"]).ok();
    assert!(ctr(&["tasks", "ls"]).ok().contains("PAUSED"));
    ctr(&["tasks", "resume", "t4"]).ok();
    assert!(ctr(&["tasks", "metrics", "t4"]).ok().contains("cpu.usage_usec"));
    ctr(&["tasks", "checkpoint", "t4"]).fails(1, "checkpoint is not supported");
    ctr(&["tasks", "kill", "-s", "SIGKILL", "t4"]).ok();
    assert_eq!(ctr(&["tasks", "rm", "-f", "t4"]).code, Some(0));
    ctr(&["containers", "rm", "t4"]).ok();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn systemd_makes_the_cgroup() {
    let room = Room::new(&["systemctl"]);
    // A user's manager in the place of the machine's: it is the same program and the same interface.
    let script = "mkdir -p /run/systemd/system /run/user && cd /sys/fs/cgroup && mkdir -p \"$1\" && echo $$ > \"$1/cgroup.procs\" \
                  && ln -s /run/user/systemd/private /run/systemd/private \
                  && XDG_RUNTIME_DIR=/run/user exec /lib/systemd/systemd --user --unit=basic.target";
    let group = format!("hull-systemd-{}", std::process::id());
    let mut manager = room
        .command("sh", &["-ec", script, "sh", &group])
        .stdout(Stdio::null())
        .stderr(fs::File::create(room.path("log")).unwrap())
        .spawn()
        .unwrap();
    let show = |unit: &str, property: &str| {
        let query = ["systemctl", "--user", "show", "--value", "-p", property, unit];
        room.call("env", &[&["XDG_RUNTIME_DIR=/run/user"], &query[..]].concat())
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while show("basic.target", "ActiveState").out != "active" {
        assert!(
            Instant::now() < deadline,
            "{}",
            fs::read_to_string(room.path("log")).unwrap()
        );
    }
    let namespaces = ["pid", "mount", "cgroup", "ipc", "uts"].map(|kind| serde_json::json!({"type": kind}));
    let config = serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "image"},
        "process": {"user": {}, "cwd": "/", "args": ["/bin/sleep", "1000"], "env": ["PATH=/bin"]},
        "mounts": hull_runtime::defaults::mounts(),
        "annotations": {"org.systemd.property.TimeoutStopSec": "uint64 7"},
        "linux": {
            "cgroupsPath": "hull-test.slice:hull:c1",
            "namespaces": namespaces
        }
    });
    fs::write(room.path("config.json"), config.to_string()).unwrap();
    // Into files: the container keeps the streams of `create`.
    let runtime = |arguments: &[&str]| {
        let (root, out, err) = (room.text("state"), room.path("out"), room.path("err"));
        let global = ["--root", &root, "--systemd-cgroup"];
        let mut command = room.command(RUNTIME, &[&global[..], arguments].concat());
        let streams = [&out, &err].map(|path| fs::File::create(path).unwrap());
        let [stdout, stderr] = streams;
        let status = command.stdout(stdout).stderr(stderr).status().unwrap();
        let read = |path| fs::read(path).unwrap();
        Done::new(
            arguments,
            Output {
                status,
                stdout: read(out),
                stderr: read(err),
            },
        )
    };
    let bundle = room.text("");
    let create = |id: &str| runtime(&["create", "--bundle", &bundle, id]);
    create("c1").ok();
    runtime(&["start", "c1"]).ok();
    let unit = "hull-c1.scope";
    show(unit, "ActiveState").gives(0, "active");
    show(unit, "Delegate").gives(0, "yes");
    show(unit, "TimeoutStopUSec").gives(0, "7s");
    let inner = format!("/{group}/hull.slice/hull-test.slice/{unit}");
    show(unit, "ControlGroup").gives(0, &inner);
    runtime(&["pause", "c1"]).ok();
    runtime(&["resume", "c1"]).ok();
    runtime(&["exec", "c1", "/bin/echo", "hello"]).gives(0, "hello");
    runtime(&["delete", "--force", "c1"]).ok();
    assert_ne!(show(unit, "ActiveState").out, "active");
    fs::write(
        room.path("config.json"),
        config.to_string().replace("hull-test.slice:hull:c1", "/plain/path"),
    )
    .unwrap();
    create("c2").fails(1, "slice:prefix:name");
    room.call("rm", &["/run/systemd/private"]).ok();
    fs::write(room.path("config.json"), config.to_string()).unwrap();
    create("c3").fails(1, "is systemd running here?");
    manager.kill().unwrap();
    manager.wait().unwrap();
    let hierarchy = hull_runtime::cgroup::Hierarchy::find().unwrap();
    drop(room);
    remove_groups(&hierarchy.mount().join(group));
}
