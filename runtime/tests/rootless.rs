//! The runtime as a plain user: one id mapped by himself, ranges through newuidmap and what /etc/subuid allows, with and
//! without a cgroup of his own; whatever he does, the host's root is never involved.

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Bundle, Done};

const USER: u32 = 61234;
const FIRST_SUB_ID: u32 = 300_000;

/// A bundle of the user's, his own copy of the runtime, and an /etc that knows him.
struct Rootless {
    bundle: Bundle,
    runtime: PathBuf,
    /// A group delegated to the user.
    group: Option<PathBuf>,
}

impl Rootless {
    fn new(script: &str) -> Rootless {
        let mut bundle = Bundle::new(script);
        let runtime = bundle.path("hull-runtime");
        fs::copy(support::RUNTIME, &runtime).unwrap();
        let etc = bundle.path("host-etc");
        fs::create_dir(&etc).unwrap();
        fs::write(etc.join("passwd"), format!("plain:x:{USER}:{USER}::/:/bin/sh\n")).unwrap();
        fs::write(etc.join("group"), format!("plain:x:{USER}:\n")).unwrap();
        for name in ["subuid", "subgid"] {
            fs::write(etc.join(name), format!("plain:{FIRST_SUB_ID}:1000\n")).unwrap();
        }
        let config = &mut bundle.config;
        config["linux"].as_object_mut().unwrap().remove("cgroupsPath");
        config["linux"].as_object_mut().unwrap().remove("resources");
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        // devpts would be given to group 5, which is not mapped.
        for mount in config["mounts"].as_array_mut().unwrap() {
            mount["options"]
                .as_array_mut()
                .unwrap()
                .retain(|option| option != "gid=5");
        }
        let rootless = Rootless {
            bundle,
            runtime,
            group: None,
        };
        rootless.give(&rootless.bundle.path(""));
        rootless
    }

    fn maps(mut self, maps: Value) -> Rootless {
        self.bundle.config["linux"]["uidMappings"] = maps.clone();
        self.bundle.config["linux"]["gidMappings"] = maps;
        self
    }

    fn one_id(self) -> Rootless {
        self.maps(json!([{"containerID": 0, "hostID": USER, "size": 1}]))
    }

    fn range(self) -> Rootless {
        self.maps(json!([
            {"containerID": 0, "hostID": USER, "size": 1},
            {"containerID": 1, "hostID": FIRST_SUB_ID, "size": 1000}
        ]))
    }

    /// A group of the user's own, as systemd would delegate it, in which he starts.
    fn delegated(mut self) -> Rootless {
        let hierarchy = hull_runtime::cgroup::Hierarchy::find().unwrap();
        let group = hierarchy.mount().join(format!("{}-user", self.bundle.id));
        fs::create_dir(&group).unwrap();
        fs::create_dir(group.join("session")).unwrap();
        self.give(&group);
        self.group = Some(group);
        self
    }

    fn give(&self, path: &Path) {
        chown(path, Some(USER), Some(USER)).unwrap();
        if path.is_dir() && !path.is_symlink() {
            for entry in fs::read_dir(path).unwrap().flatten() {
                let writable =
                    path.starts_with(self.bundle.path("")) || entry.file_name().to_str() != Some("cgroup.kill");
                if writable && !entry.path().is_symlink() {
                    self.give(&entry.path());
                }
            }
        }
    }

    /// The runtime's command line, run by the user with a new session and his own /etc.
    fn command(&self, arguments: &[&str]) -> Command {
        self.bundle.write_config();
        chown(self.bundle.path("config.json"), Some(USER), Some(USER)).unwrap();
        let enter = match &self.group {
            Some(group) => format!("echo $$ > {}/session/cgroup.procs;", group.display()),
            None => String::new(),
        };
        let script = format!(
            "set -e; {enter} mount --make-rprivate /; mount --bind {etc} /etc; cd {dir}; \
             exec setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps=-all {runtime} --root {dir}/state \"$@\"",
            etc = self.bundle.path("host-etc").display(),
            dir = self.bundle.path("").display(),
            runtime = self.runtime.display(),
        );
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", &script, "sh"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn call(&self, arguments: &[&str]) -> Done {
        Done::from(self.command(arguments).output().unwrap())
    }

    fn id(&self) -> &str {
        &self.bundle.id
    }

    /// create and start, with streams that do not keep the test waiting.
    fn up(&self) {
        let out = fs::File::create(self.bundle.path("out")).unwrap();
        let err = fs::File::create(self.bundle.path("err")).unwrap();
        let status = self
            .command(&["create", self.id()])
            .stdout(out)
            .stderr(err)
            .status()
            .unwrap();
        assert!(
            status.success(),
            "{}",
            fs::read_to_string(self.bundle.path("err")).unwrap()
        );
        self.call(&["start", self.id()]).ok();
    }

    fn state(&self) -> Value {
        serde_json::from_str(self.call(&["state", self.id()]).ok()).unwrap()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let _ = self.call(&["delete", "--force", self.id()]);
        if let Some(group) = &self.group {
            let group = hull_runtime::cgroup::Cgroup::at(group);
            let _ = group.kill();
            let _ = group.remove();
        }
    }
}

/// All four ids of a process, as the host sees them.
fn ids(pid: i64) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = status
        .lines()
        .filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:"));
    lines
        .flat_map(|line| line.split_whitespace().skip(1).map(str::to_owned))
        .collect()
}

#[test]
fn one_id_needs_no_helper() {
    let script = "id -u; cat /proc/self/uid_map /proc/self/setgroups; grep CapEff /proc/self/status; echo x > /tmp/made; \
                  echo x > /dev/null && ls /dev/pts; hostname; mount -t tmpfs none /tmp 2>/dev/null || echo refused";
    let rootless = Rootless::new(script).one_id();
    let done = rootless.call(&["run", rootless.id()]);
    let said: Vec<&str> = done.ok().split_whitespace().collect();
    let user = USER.to_string();
    assert_eq!(
        said,
        [
            "0",
            "0",
            &user,
            "1",
            "deny",
            "CapEff:",
            "00000000a80425fb",
            "ptmx",
            "tested",
            "refused"
        ]
    );
    let made = fs::metadata(rootless.bundle.rootfs().join("tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (USER, USER));
    assert!(!rootless.bundle.path("state").join(rootless.id()).exists());
}

#[test]
fn ranges_go_through_newuidmap() {
    let mut rootless = Rootless::new("exec sleep 1000").range();
    rootless.bundle.config["process"]["user"] = json!({"uid": 0, "gid": 0, "additionalGids": [7, 8]});
    let link = rootless.bundle.rootfs().join("bin/chown");
    std::os::unix::fs::symlink("busybox", link).unwrap();
    rootless.up();
    let script = "touch /tmp/root; chown 33:44 /tmp/root; stat -c %u:%g /tmp/root; id -u; id -G";
    let done = rootless.call(&["exec", rootless.id(), "sh", "-c", script]);
    assert_eq!(done.ok(), "33:44\n0\n0 7 8");
    let made = fs::metadata(rootless.bundle.rootfs().join("tmp/root")).unwrap();
    assert_eq!((made.uid(), made.gid()), (FIRST_SUB_ID + 32, FIRST_SUB_ID + 43));
    let pid = rootless.state()["pid"].as_i64().unwrap();
    assert!(ids(pid).iter().all(|id| *id == USER.to_string()), "{:?}", ids(pid));
    let done = rootless.call(&[
        "exec",
        "--user",
        "33:44",
        rootless.id(),
        "sh",
        "-c",
        "id -u; id -g; cat /proc/1/comm",
    ]);
    assert_eq!(done.ok(), "33\n44\nsleep");
    // What /etc/subuid does not allow is refused, by name.
    let greedy = Rootless::new("true").maps(json!([{"containerID": 0, "hostID": FIRST_SUB_ID - 1, "size": 3}]));
    greedy.call(&["run", greedy.id()]).fails("newuidmap");
    let root = Rootless::new("true").maps(json!([{"containerID": 0, "hostID": 0, "size": 1}]));
    root.call(&["run", root.id()]).fails("newuidmap");
}

#[test]
fn a_user_drives_the_whole_life() {
    let rootless = Rootless::new("trap 'exit 3' TERM; echo up; while :; do sleep 1; done")
        .one_id()
        .delegated();
    rootless.up();
    let state = rootless.state();
    assert_eq!(state["status"], "running");
    let pid = state["pid"].as_i64().unwrap();
    let group = rootless.group.clone().unwrap().join(rootless.id());
    assert!(group.is_dir(), "{} was not made", group.display());
    assert_eq!(
        fs::read_to_string(group.join("cgroup.procs")).unwrap().lines().next(),
        Some(&*pid.to_string())
    );
    rootless.call(&["exec", rootless.id(), "hostname"]).ok();
    rootless.call(&["pause", rootless.id()]).ok();
    assert_eq!(rootless.state()["status"], "paused");
    rootless.call(&["resume", rootless.id()]).ok();
    rootless.call(&["kill", rootless.id(), "TERM"]).ok();
    rootless.bundle.wait(pid);
    assert_eq!(rootless.state()["status"], "stopped");
    rootless.call(&["delete", rootless.id()]).ok();
    assert!(!group.exists());
}

#[test]
fn without_a_group_there_are_no_limits_but_there_is_a_container() {
    let mut rootless = Rootless::new("exec sleep 1000").one_id();
    rootless.up();
    let pid = rootless.state()["pid"].as_i64().unwrap();
    assert_eq!(
        rootless.call(&["exec", rootless.id(), "cat", "/proc/1/comm"]).ok(),
        "sleep"
    );
    rootless.call(&["kill", "--all", rootless.id(), "KILL"]).ok();
    rootless.bundle.wait(pid);
    rootless.call(&["delete", rootless.id()]).ok();
    // Limits that nobody could enforce are not promised.
    rootless.bundle.config["linux"]["resources"] = json!({"unified": {"cgroup.max.depth": "3"}});
    rootless.call(&["run", rootless.id()]).fails("delegated");
}

/// Without a user namespace there is nothing a plain user could do, and no trace of the attempt.
#[test]
fn without_a_user_namespace_it_needs_root() {
    let mut rootless = Rootless::new("true").one_id();
    rootless.bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .pop();
    for maps in ["uidMappings", "gidMappings"] {
        rootless.bundle.config["linux"].as_object_mut().unwrap().remove(maps);
    }
    rootless
        .call(&["run", rootless.id()])
        .fails("this needs root, or a user namespace");
    assert!(!rootless.bundle.path("state").join(rootless.id()).exists());
    let mode = fs::metadata(&rootless.runtime).unwrap().permissions().mode();
    assert_eq!(mode & 0o7000, 0, "the runtime has no setuid bit of its own");
}
