//! A bundle with busybox in it, the real binary, and a guard that leaves nothing behind. Needs root.

#![allow(dead_code, reason = "each test file uses its own part")]

pub mod hostile;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

pub const RUNTIME: &str = env!("CARGO_BIN_EXE_hull-runtime");
const BUSYBOX: &str = "/bin/busybox";
const APPLETS: [&str; 23] = [
    "sh", "cat", "chmod", "chroot", "echo", "env", "false", "grep", "hostname", "id", "ls", "mkdir", "mknod", "mount",
    "ps", "readlink", "sleep", "stat", "touch", "true", "tty", "uniq", "unshare",
];

/// One container's bundle and state root.
pub struct Bundle {
    dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
}

impl Bundle {
    /// A container that runs `script` in a shell.
    pub fn new(script: &str) -> Bundle {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "the tests of the runtime need root"
        );
        let dir = tempfile::Builder::new().prefix("hull-runtime-test").tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
            fs::create_dir_all(rootfs.join(name)).unwrap();
        }
        fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("busybox is missing: apt-get install busybox-static");
        for applet in APPLETS {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        let id = format!(
            "hull-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let config = config(&id, script);
        Bundle { dir, id, config }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path("rootfs")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.path("state").join(&self.id)
    }

    /// The container's cgroup on the host.
    pub fn cgroup(&self) -> PathBuf {
        let hierarchy = hull_runtime::cgroup::Hierarchy::find().unwrap();
        hierarchy.mount().join("hull-test").join(&self.id)
    }

    pub fn write_config(&self) {
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
    }

    /// The runtime's command line for this bundle.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.write_config();
        let mut command = Command::new(RUNTIME);
        command.arg("--root").arg(self.path("state")).args(arguments);
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    pub fn call(&self, arguments: &[&str]) -> Done {
        Done::from(self.command(arguments).output().unwrap())
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Done {
        self.call(&["run", &self.id])
    }

    /// `create`, with streams that do not keep the test waiting.
    pub fn create(&self) -> Done {
        self.create_with(&[])
    }

    pub fn create_with(&self, flags: &[&str]) -> Done {
        let errors = self.path("create.err");
        let mut arguments = vec!["create"];
        arguments.extend(flags);
        arguments.push(&self.id);
        let status = self
            .command(&arguments)
            .stdout(fs::File::create(self.path("out")).unwrap())
            .stderr(fs::File::create(&errors).unwrap())
            .status()
            .unwrap();
        Done {
            code: status.code(),
            out: String::new(),
            err: fs::read_to_string(errors).unwrap(),
        }
    }

    pub fn start(&self) -> Done {
        self.call(&["start", &self.id])
    }

    pub fn exec(&self, arguments: &[&str]) -> Done {
        self.call(&[&["exec"], arguments].concat())
    }

    /// Standard output of a container made with `create`.
    pub fn output(&self) -> String {
        fs::read_to_string(self.path("out")).unwrap_or_default()
    }

    pub fn state(&self) -> Value {
        let done = self.call(&["state", &self.id]);
        done.ok();
        serde_json::from_str(&done.out).unwrap()
    }

    /// Wait for the init's end through its pidfd.
    pub fn wait(&self, pid: i64) {
        let Some(pid) = rustix::process::Pid::from_raw(pid as i32) else {
            return;
        };
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
            return;
        };
        let mut polled = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut polled, None).unwrap();
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.command(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = Command::new(RUNTIME)
            .arg("--root")
            .arg(self.path("state"))
            .args(["delete", "--force", &self.id])
            .stderr(Stdio::null())
            .status();
        let cgroup = hull_runtime::cgroup::Cgroup::at(self.cgroup());
        if cgroup.exists() {
            let _ = cgroup.kill();
            let _ = cgroup.remove();
        }
        // The last one out; while others are in it, this fails.
        let _ = self.cgroup().parent().map(fs::remove_dir);
    }
}

/// A finished command.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Done {
    fn from(output: Output) -> Done {
        Done {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Done {
    /// It succeeded; its output.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.out.trim()
    }

    /// It failed, and said so with this text.
    #[track_caller]
    pub fn fails(&self, text: &str) {
        assert_ne!(self.code, Some(0), "{self:?}");
        assert!(self.err.contains(text), "{text:?} is not in {self:?}");
    }
}

/// What an engine would write for an ordinary container.
pub fn config(id: &str, script: &str) -> Value {
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind}));
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": hull_runtime::caps::default_set(),
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs"},
        "hostname": "tested",
        "mounts": hull_runtime::defaults::mounts(),
        "linux": {
            "cgroupsPath": format!("/hull-test/{id}"),
            "namespaces": namespaces,
            "resources": {"devices": hull_runtime::defaults::device_rules()},
            "maskedPaths": hull_runtime::defaults::masked_paths(),
            "readonlyPaths": hull_runtime::defaults::readonly_paths()
        }
    })
}

pub fn is_mounted_below(path: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().any(|line| line.contains(&*path.to_string_lossy()))
}
