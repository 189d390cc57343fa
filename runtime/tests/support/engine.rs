//! A room for an engine: a private mount namespace with one cgroup2, as on a machine that has only that, a pid namespace
//! that ends everything in it, a busybox image, and podman as Debian has it, for root and for a user.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

pub const RUNTIME: &str = env!("CARGO_BIN_EXE_hull-runtime");
/// Raising a limit needs CAP_SYS_RESOURCE, and no network is wanted: what engines do by default beyond that is left on.
pub const PODMAN_RUN: [&str; 8] = [
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
pub struct Room {
    dir: tempfile::TempDir,
    holder: Child,
}

impl Room {
    pub fn new(needed: &[&str]) -> Room {
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

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Pid of the first process of the room's pid namespace.
    fn first_process(&self) -> String {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.holder.id()));
        children.unwrap_or_default().trim().to_owned()
    }

    /// A command inside.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let first = self.first_process();
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--target", &first, program]);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .current_dir(self.dir.path());
        command.env("TMPDIR", self.dir.path()).env("NOTIFY_SOCKET", "");
        command
    }

    pub fn call(&self, program: &str, arguments: &[&str]) -> Done {
        Done::new(arguments, self.command(program, arguments).output().unwrap())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // The first process of the pid namespace ends last: with it everything in the room is gone.
        let first = self
            .first_process()
            .parse()
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let first = first.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if let Some(first) = first {
            let mut polled = [rustix::event::PollFd::new(&first, rustix::event::PollFlags::IN)];
            let _ = rustix::event::poll(&mut polled, None);
        }
        // Engines make their groups beside ours; those in use by others stay.
        let hierarchy = hull_runtime::cgroup::Hierarchy::find().map(|hierarchy| hierarchy.mount().to_path_buf());
        for name in ["libpod_parent", "default", "conmon", &own_group()] {
            let _ = hierarchy.as_ref().map(|mount| remove_groups(&mount.join(name)));
        }
    }
}

/// Name of a group for what a test makes itself.
pub fn own_group() -> String {
    format!("hull-engine-{}", std::process::id())
}

/// A group and those below it, if nothing lives there.
pub fn remove_groups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_groups(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// A finished command.
#[derive(Debug)]
pub struct Done {
    arguments: Vec<String>,
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Done {
    pub fn new(arguments: &[&str], output: Output) -> Done {
        Done {
            arguments: arguments.iter().map(|&argument| argument.into()).collect(),
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).trim().replace('\r', ""),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn gives(&self, code: i32, out: &str) {
        assert!(
            self.code == Some(code) && self.out == out,
            "wanted {code} {out:?}: {self:#?}"
        );
    }

    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:#?}");
        &self.out
    }

    #[track_caller]
    pub fn fails(&self, code: i32, text: &str) {
        assert!(
            self.code == Some(code) && self.err.contains(text),
            "wanted {code} {text:?}: {self:#?}"
        );
    }
}

/// podman in a room, with the image `bb`.
pub struct Podman {
    pub room: Room,
    /// Of an unprivileged user.
    rootless: bool,
}

impl Podman {
    pub fn new() -> Podman {
        let podman = Podman {
            room: Room::new(&["podman", "conmon"]),
            rootless: false,
        };
        podman.import();
        podman
    }

    /// In the room somebody has an account and ranges of ids, as adduser(8) makes them.
    pub fn rootless() -> Podman {
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

    pub fn command(&self, arguments: &[&str]) -> Command {
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

    pub fn call(&self, arguments: &[&str]) -> Done {
        Done::new(arguments, self.command(arguments).output().unwrap())
    }

    /// `podman run`, with `flags`, of a command line in the image.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Done {
        self.call(&[&["run"], &PODMAN_RUN[..], flags, &["bb"], command].concat())
    }

    /// The same, removed afterwards, of a shell script.
    pub fn shell(&self, flags: &[&str], script: &str) -> Done {
        self.run(&[&["--rm"], flags].concat(), &["sh", "-c", script])
    }
}
