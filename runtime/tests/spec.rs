//! The specification's fields on a real kernel: what a configuration asks for is there, or it is refused by name.
//! Needs root.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::Command;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};
use support::Bundle;

fn add_namespace(bundle: &mut Bundle, namespace: Value) {
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|other| other["type"] != namespace["type"]);
    namespaces.push(namespace);
}

#[test]
fn versions_are_checked() {
    let mut bundle = Bundle::new("true");
    bundle.config["ociVersion"] = json!("1.0.2-dev");
    bundle.run().ok();
    bundle.config["ociVersion"] = json!("2.0.0");
    bundle.run().fails("this runtime understands version 1");
    bundle.config.as_object_mut().unwrap().remove("ociVersion");
    bundle.create().fails("no ociVersion");
    assert!(!bundle.state_dir().exists());
}

#[test]
fn unknown_capabilities_are_warned_about() {
    let mut bundle = Bundle::new("grep CapBnd /proc/self/status");
    let bounding = bundle.config["process"]["capabilities"]["bounding"]
        .as_array_mut()
        .unwrap();
    bounding.push(json!("CAP_TOMORROW"));
    let done = bundle.run();
    assert_eq!(done.ok(), "CapBnd:\t00000000a80425fb");
    assert!(done.err.contains("CAP_TOMORROW"), "{done:?}");
}

#[test]
fn a_seccomp_agent_answers_for_the_container() {
    let mut bundle = Bundle::new("mkdir /tmp/a; echo status $?");
    let path = bundle.path("agent.sock");
    bundle.config["annotations"] = json!({"k": "v"});
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path, "listenerMetadata": "for the agent",
        "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]
    });
    let listener = UnixListener::bind(&path).unwrap();
    let agent = std::thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        let mut bytes = vec![0; 16 * 1024];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let received = rustix::net::recvmsg(&connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let fd = control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .expect("the listener comes with the state");
        let mut text = bytes[..received.bytes].to_vec();
        (&connection).read_to_end(&mut text).unwrap();
        answer_with_permission_denied(&fd);
        serde_json::from_slice::<Value>(&text).unwrap()
    });
    let done = bundle.run();
    assert_eq!(done.ok(), "status 1", "{done:?}");
    assert!(done.err.contains("Permission denied"), "{done:?}");
    let state = agent.join().unwrap();
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "for the agent");
    assert_eq!(state["state"]["id"], bundle.id.as_str());
    assert_eq!(state["state"]["annotations"], json!({"k": "v"}));
    assert_eq!(state["pid"], state["state"]["pid"]);
}

/// Receive one notification and answer it with EACCES. seccomp_unotify(2).
fn answer_with_permission_denied(listener: &std::os::fd::OwnedFd) {
    use std::os::fd::AsRawFd;
    const SECCOMP_IOCTL_NOTIF_RECV: u64 = 0xc050_2100;
    const SECCOMP_IOCTL_NOTIF_SEND: u64 = 0xc018_2101;
    let mut request = [0u64; 10];
    // SAFETY: struct seccomp_notif has 80 bytes.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_RECV, request.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    let error = (-libc::EACCES) as u32;
    let mut response = [request[0], 0, u64::from(error)];
    // SAFETY: struct seccomp_notif_resp has 24 bytes.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), SECCOMP_IOCTL_NOTIF_SEND, response.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn without_its_agent_a_container_does_not_start() {
    let mut bundle = Bundle::new("echo ran");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": bundle.path("nobody.sock"),
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]
    });
    bundle.run().fails("send the seccomp listener to the agent");
}

#[test]
fn a_device_of_the_host_moves_in_with_its_address() {
    let mut bundle = Bundle::new("cat /sys/class/net/data0/operstate; cat /proc/net/fib_trie; ls /sys/class/net");
    let host = format!("hrt{}", std::process::id() % 100_000);
    let peer = format!("{host}p");
    let _guard = Link(host.clone());
    let ip = |arguments: &[&str]| {
        let done = Command::new("ip").args(arguments).output().unwrap();
        assert!(done.status.success(), "{arguments:?}: {done:?}");
    };
    ip(&["link", "add", &host, "type", "veth", "peer", "name", &peer]);
    ip(&["link", "set", &peer, "up"]);
    ip(&["addr", "add", "192.0.2.7/24", "dev", &host]);
    ip(&["link", "set", &host, "up"]);
    bundle.config["linux"]["netDevices"] = json!({&host: {"name": "data0"}});
    let done = bundle.run();
    let out = done.ok();
    assert!(out.starts_with("up"), "{out}");
    assert!(out.contains("192.0.2.7"), "{out}");
    assert!(out.contains("data0\nlo") && !out.contains(&host), "{out}");
    bundle.config["linux"]["netDevices"] = json!({"no-such-device0": {}});
    bundle.run().fails("no-such-device0");
}

struct Link(String);

impl Drop for Link {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).output();
    }
}

#[test]
fn memory_policy_is_set_or_refused() {
    let mut bundle = Bundle::new("cat /proc/self/numa_maps");
    bundle.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "0"});
    let done = bundle.run();
    match fs::exists("/proc/self/numa_maps").unwrap() {
        true => assert!(done.ok().contains("bind:0"), "{done:?}"),
        false => done.fails("linux.memoryPolicy"),
    }
    bundle.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND"});
    bundle.run().fails("MPOL_BIND needs nodes");
}

#[test]
fn what_this_machine_lacks_is_refused_by_name() {
    let refused = |field: &str, change: &dyn Fn(&mut Value), absent: bool| {
        let mut bundle = Bundle::new("true");
        change(&mut bundle.config);
        let done = bundle.run();
        match absent {
            true => done.fails(field),
            false => assert_ne!(done.err, "", "{field}"),
        }
    };
    let exists = |path: &str| fs::exists(path).unwrap();
    refused(
        "process.apparmorProfile",
        &|config| config["process"]["apparmorProfile"] = json!("no-such-profile"),
        !exists("/sys/module/apparmor"),
    );
    refused(
        "process.selinuxLabel",
        &|config| config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0"),
        !exists("/sys/fs/selinux/enforce"),
    );
    refused(
        "linux.mountLabel",
        &|config| config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0"),
        !exists("/sys/fs/selinux/enforce"),
    );
    refused(
        "linux.intelRdt",
        &|config| config["linux"]["intelRdt"] = json!({"closID": "web", "schemata": ["L3:0=1"]}),
        !exists("/sys/fs/resctrl/schemata"),
    );
}

#[test]
fn exec_begins_and_stays_on_its_cpus() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    bundle.create().ok();
    bundle.start().ok();
    let done = bundle.exec(&[&bundle.id, "grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(done.ok(), "Cpus_allowed_list:\t0");
}

#[test]
fn what_the_container_has_its_execs_have_too() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["personality"] = json!({"domain": "LINUX32"});
    bundle.create().ok();
    bundle.start().ok();
    let done = bundle.exec(&[&bundle.id, "busybox", "uname", "-m"]);
    assert_eq!(done.ok(), "i686");
}

#[test]
fn a_process_file_needs_no_more_than_args_and_cwd() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    fs::write(bundle.path("process.json"), r#"{"args":["/bin/id","-u"],"cwd":"/"}"#).unwrap();
    let file = bundle.path("process.json");
    let done = bundle.exec(&["--process", file.to_str().unwrap(), &bundle.id]);
    assert_eq!(done.ok(), "0");
}

#[test]
fn clocks_of_a_time_namespace_are_set() {
    let mut bundle = Bundle::new("cat /proc/uptime");
    add_namespace(&mut bundle, json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000_000}});
    let uptime: f64 = bundle.run().ok().split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 1e9, "{uptime}");
}

#[test]
fn a_joined_user_namespace_takes_new_ones_of_every_other_kind() {
    let mut first = Bundle::new("sleep 1000");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    add_namespace(&mut first, json!({"type": "user"}));
    first.config["linux"]["uidMappings"] = map.clone();
    first.config["linux"]["gidMappings"] = map;
    first.create().ok();
    let pid = first.state()["pid"].as_i64().unwrap();
    let mut second = Bundle::new("cat /proc/self/uid_map; echo pid $$; id -u; readlink /proc/self/ns/user");
    add_namespace(
        &mut second,
        json!({"type": "user", "path": format!("/proc/{pid}/ns/user")}),
    );
    let done = second.run();
    let lines: Vec<&str> = done.ok().lines().collect();
    assert_eq!(
        lines[0].split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "65536"]
    );
    assert_eq!(lines[1..3], ["pid 1", "0"]);
    let theirs = fs::read_link(format!("/proc/{pid}/ns/user")).unwrap();
    assert_eq!(lines[3], theirs.to_str().unwrap());
    second.create().ok();
    second.start().ok();
    second.call(&["delete", "--force", &second.id]).ok();
    // A network namespace of the host's is entered with the host's rights, before these are given up.
    let mut third = Bundle::new("readlink /proc/self/ns/net; cat /proc/self/uid_map");
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    add_namespace(
        &mut third,
        json!({"type": "user", "path": format!("/proc/{pid}/ns/user")}),
    );
    let namespaces = third.config["linux"]["namespaces"].as_array_mut().unwrap();
    let network = namespaces
        .iter_mut()
        .find(|namespace| namespace["type"] == "network")
        .unwrap();
    network["path"] = json!("/proc/self/ns/net");
    let mounts = third.config["mounts"].as_array_mut().unwrap();
    let sys = mounts.iter_mut().find(|mount| mount["destination"] == "/sys").unwrap();
    *sys = json!({"destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind"]});
    let done = third.run();
    assert!(
        done.ok().starts_with(host.to_str().unwrap()) && done.out.contains("100000"),
        "{done:?}"
    );
}

#[test]
fn a_container_with_its_own_cgroup_mount_may_divide_its_group() {
    let mut bundle = Bundle::new("mkdir /sys/fs/cgroup/below && echo divided");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    add_namespace(&mut bundle, json!({"type": "user"}));
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/sys/fs/cgroup" {
            mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
        }
    }
    assert_eq!(bundle.run().ok(), "divided");
}

#[test]
fn rules_for_devices_are_replaced_by_update() {
    let mut bundle = Bundle::new("sleep 1000");
    bundle.config["linux"]["devices"] = json!([{"path": "/dev/fuse2", "type": "c", "major": 10, "minor": 229}]);
    bundle.create().ok();
    bundle.start().ok();
    let open = || bundle.exec(&[&bundle.id, "sh", "-c", ": < /dev/fuse2"]).code;
    assert_ne!(open(), Some(0), "not allowed by the first rules");
    let rules = bundle.path("rules.json");
    fs::write(
        &rules,
        json!({"devices": [{"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "r"}]})
        .to_string(),
    )
    .unwrap();
    bundle.call(&["update", "-r", rules.to_str().unwrap(), &bundle.id]).ok();
    assert_eq!(open(), Some(0), "allowed by the second");
    fs::write(
        &rules,
        json!({"devices": [{"allow": false, "access": "rwm"}]}).to_string(),
    )
    .unwrap();
    bundle.call(&["update", "-r", rules.to_str().unwrap(), &bundle.id]).ok();
    assert_ne!(open(), Some(0), "and forbidden again by the third");
}

#[test]
fn every_mount_option_of_features_can_be_given() {
    let mut bundle = Bundle::new("grep -c ' /m/' /proc/self/mountinfo");
    let features: Value = serde_json::from_str(bundle.call(&["features"]).ok()).unwrap();
    let options = features["mountOptions"].as_array().unwrap();
    // A mandatory lock needs a kernel that still has them; an unbindable or id-mapped mount something to bind or map.
    let plain = |option: &&Value| !matches!(option.as_str(), Some("bind" | "rbind" | "idmap" | "ridmap" | "mand"));
    let plain: Vec<&Value> = options.iter().filter(plain).collect();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    for option in &plain {
        let target = format!("/m/{}", option.as_str().unwrap());
        mounts.push(json!({"destination": target, "type": "tmpfs", "source": "tmpfs", "options": [option]}));
    }
    assert_eq!(bundle.run().ok(), plain.len().to_string());
}

#[test]
fn a_procfs_may_take_the_place_of_proc_and_nothing_else() {
    let mut bundle = Bundle::new("test -e /proc/self/status && echo proc");
    bundle.config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts[0] = json!({"destination": "/proc", "type": "bind", "source": "/proc", "options": ["rbind", "nosuid"]});
    assert_eq!(bundle.run().ok(), "proc");
    fs::create_dir(bundle.path("volume")).unwrap();
    let volume = bundle.path("volume");
    bundle.config["mounts"][0]["source"] = json!(volume);
    bundle.run().fails("nothing but a procfs");
    bundle.config["mounts"][0]["source"] = json!("/proc/self");
    bundle.run().fails("nothing but a procfs");
}

/// The first poststart hook that fails is the container's end, in whatever version the configuration is written.
#[test]
fn a_failing_poststart_hook_removes_the_container_after_its_poststop_hooks() {
    for version in ["1.0.2", "1.3.0"] {
        let mut bundle = Bundle::new("sleep 1000");
        let trace = bundle.path("trace");
        let hook = |what: &str| {
            let script = format!("echo {what} >> {}; {what}", trace.display());
            json!({"path": "/bin/sh", "args": ["sh", "-c", script]})
        };
        bundle.config["ociVersion"] = json!(version);
        bundle.config["hooks"] = json!({
            "poststart": [hook("true"), hook("false"), hook("true")],
            "poststop": [hook("false"), hook("true")]
        });
        bundle.create().ok();
        bundle
            .start()
            .fails("error running poststart hook #1: /bin/sh: exit status 1");
        bundle.call(&["state", &bundle.id]).fails("does not exist");
        assert!(!bundle.cgroup().exists());
        assert_eq!(fs::read_to_string(&trace).unwrap(), "true\nfalse\nfalse\ntrue\n");
    }
}

#[test]
fn a_failed_create_runs_poststop_hooks_and_leaves_nothing() {
    let mut bundle = Bundle::new("true");
    let trace = bundle.path("trace");
    let hook = |script: String| json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}]);
    bundle.config["hooks"] = json!({
        "createRuntime": hook("exit 3".into()),
        "poststop": hook(format!("cat > {}", trace.display()))
    });
    bundle.create().fails("createRuntime hook #0:");
    let state: Value = serde_json::from_str(&fs::read_to_string(&trace).unwrap()).unwrap();
    assert_eq!(state["status"], "stopped");
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
}
