//! What callers of other runtimes count on besides the specification: flags, exit codes, annotations, and what is refused
//! before it could hang.

mod support;

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;
use support::{Bundle, Done};

#[test]
fn another_file_than_config_json_may_be_the_configuration() {
    let mut bundle = Bundle::new("echo this one");
    bundle.write_config();
    fs::create_dir(bundle.path("other")).unwrap();
    fs::rename(bundle.path("config.json"), bundle.path("other/spec.json")).unwrap();
    bundle.config["process"]["args"] = json!(["echo", "that one"]);
    let absolute = bundle.path("other/spec.json");
    for flags in [["--config", "other/spec.json"], ["-f", absolute.to_str().unwrap()]] {
        let done = bundle.call(&[&["run"], &flags[..], &[&bundle.id]].concat());
        assert_eq!(done.ok(), "this one");
    }
    bundle
        .call(&["run", "--config", "missing.json", &bundle.id])
        .fails("missing.json");
}

#[test]
fn containers_are_deleted_by_a_pattern() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    let others = bundle.call(&["delete", "--force", "--regex", "^nothing-like-it$"]);
    others.ok();
    assert_eq!(bundle.state()["status"], "created");
    let pattern = format!("^{}$", bundle.id.replace("hull", "h.l+"));
    bundle.call(&["delete", "--regex", "--force", &pattern]).ok();
    bundle.call(&["state", &bundle.id]).fails("does not exist");
    bundle.call(&["delete", "--regex", "*("]).fails("regular expression");
}

/// The process's own codes end at 254 by this; a failure of the runtime can be told from them.
#[test]
fn an_exec_that_fails_itself_gives_255() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    assert_eq!(bundle.exec(&[&bundle.id, "sh", "-c", "exit 7"]).code, Some(7));
    for arguments in [
        vec![bundle.id.as_str(), "no-such-program"],
        vec!["no-such-container", "true"],
        vec!["--pid-file", "/no/such/directory/pid", &bundle.id, "true"],
        vec!["--no-such-flag", &bundle.id, "true"],
    ] {
        assert_eq!(bundle.exec(&arguments).code, Some(255), "{arguments:?}");
    }
}

#[test]
fn help_is_given_for_what_exists() {
    let bundle = Bundle::new("true");
    assert!(bundle.call(&["delete", "--help"]).ok().contains("--regex"));
    bundle
        .call(&["frobnicate", "-h"])
        .fails("No help topic for 'frobnicate'");
    bundle
        .call(&["--log=invalid:/dev/null", "features"])
        .fails("\"invalid\"");
    let told = bundle.call(&["--debug", "features"]);
    told.ok();
    assert!(told.err.contains("level=debug"), "{told:?}");
    bundle.call(&["list"]).fails("no such file or directory");
    fs::create_dir(bundle.path("state")).unwrap();
    assert_eq!(bundle.call(&["list", "-q"]).ok(), "");
}

/// Socket activation through an engine that cannot know the runtime's pid.
#[test]
fn passed_sockets_do_not_need_a_pid() {
    let bundle = Bundle::new("echo $LISTEN_FDS $LISTEN_PID");
    let mut command = bundle.command(&["run", &bundle.id]);
    command.env("LISTEN_FDS", "1").env_remove("LISTEN_PID");
    assert_eq!(Done::from(command.output().unwrap()).ok(), "1 1");
    let mut command = bundle.command(&["run", &bundle.id]);
    command.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    assert_eq!(
        Done::from(command.output().unwrap()).ok(),
        "",
        "they are for another process"
    );
}

#[test]
fn ids_that_hide_or_lead_elsewhere_are_refused() {
    let bundle = Bundle::new("true");
    for id in [".", "..", ".hidden"] {
        bundle.call(&["create", id]).fails("it begins with a dot");
    }
    bundle.call(&["create", "a b"]).fails("invalid character ' '");
    bundle.call(&["state", "this/one"]).fails("invalid character '/'");
}

/// Without a pid namespace of its own nothing takes the others along with the init.
#[test]
fn kill_reaches_all_of_a_container_in_the_hosts_pid_namespace() {
    for init_is_gone in [false, true] {
        let mut bundle = Bundle::new("sleep 1000");
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        bundle.create().ok();
        bundle.start().ok();
        let mut other = bundle
            .command(&["exec", &bundle.id, "sh", "-c", "echo up; exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0; 3];
        other.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        let pid = bundle.state()["pid"].as_i64().unwrap();
        if init_is_gone {
            let init = rustix::process::Pid::from_raw(pid as i32).unwrap();
            rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
            bundle.wait(pid);
        }
        bundle.call(&["kill", &bundle.id, "KILL"]).ok();
        assert_eq!(
            other.wait().unwrap().code(),
            Some(137),
            "init gone before: {init_is_gone}"
        );
        bundle.wait(pid);
        assert_eq!(bundle.state()["status"], "stopped");
    }
}

#[test]
fn signal_0_only_asks() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.call(&["kill", &bundle.id, "0"]).ok();
    let pid = bundle.state()["pid"].as_i64().unwrap();
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait(pid);
    bundle.call(&["kill", &bundle.id, "0"]).fails("container not running");
    bundle.call(&["kill", "--all", &bundle.id, "0"]).ok();
}

/// Scripts look for the fields in this order.
#[test]
fn events_begin_with_their_type_and_id() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let stats = bundle.call(&["events", "--stats", &bundle.id]);
    let begin = format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", bundle.id);
    assert!(stats.ok().starts_with(&begin), "{stats:?}");
}

#[test]
fn a_created_container_can_be_paused_and_resumed() {
    let bundle = Bundle::new("echo ran");
    bundle.create().ok();
    bundle.call(&["pause", &bundle.id]).ok();
    assert_eq!(bundle.state()["status"], "paused");
    bundle.call(&["resume", &bundle.id]).ok();
    assert_eq!(bundle.state()["status"], "created");
    bundle.start().ok();
}

/// Nothing could ever run in such a group: create would wait for ever.
#[test]
fn a_frozen_group_is_refused() {
    let mut bundle = Bundle::new("true");
    fs::create_dir_all(bundle.cgroup()).unwrap();
    fs::write(bundle.cgroup().join("cgroup.freeze"), "1").unwrap();
    bundle.create().fails("container's cgroup unexpectedly frozen");
    fs::write(bundle.cgroup().join("cgroup.freeze"), "0").unwrap();
    for file in ["cgroup.freeze", "cgroup.kill", "cgroup.procs"] {
        bundle.config["linux"]["resources"]["unified"] = json!({file: "1"});
        bundle.run().fails(&format!("{file} is no limit"));
    }
}

/// An engine may remove the group above a container, empty for a moment, while another container is made in it.
#[test]
fn a_group_above_that_goes_away_is_made_again() {
    // Fewer than the attempts that the runtime makes.
    const REMOVALS: usize = 60;
    let mut bundle = Bundle::new("true");
    let above = bundle.cgroup().with_extension("pod");
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/hull-test/{}.pod/{0}", bundle.id));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut removed = 0;
            while removed < REMOVALS && !done.load(Ordering::Relaxed) {
                removed += usize::from(fs::remove_dir(&above).is_ok());
            }
        });
        let runs: Vec<Done> = (0..20).map(|_| bundle.run()).collect();
        done.store(true, Ordering::Relaxed);
        for run in &runs {
            run.ok();
        }
    });
    let _ = fs::remove_dir(&above);
}

#[test]
fn a_pidfd_goes_to_the_annotations_socket() {
    let mut bundle = Bundle::new("sleep 1000");
    let path = bundle.path("receiver");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.config["annotations"] = json!({"run.oci.pidfd_receiver": path});
    bundle.create().ok();
    let (connection, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut text = [0; 16];
    let mut parts = [IoSliceMut::new(&mut text)];
    rustix::net::recvmsg(&connection, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let pidfd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    rustix::process::pidfd_send_signal(pidfd.expect("a descriptor"), rustix::process::Signal::KILL).unwrap();
    bundle.wait(bundle.state()["pid"].as_i64().unwrap());
    assert_eq!(bundle.state()["status"], "stopped");
}

#[test]
fn hooks_write_where_annotations_say() {
    let mut bundle = Bundle::new("true");
    let hook = |stage: &str| {
        let script = format!("echo out {stage}; echo err {stage} >&2");
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    let stages = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    bundle.config["hooks"] = stages.iter().map(|stage| ((*stage).to_owned(), hook(stage))).collect();
    bundle.config["annotations"] = json!({
        "run.oci.hooks.stdout": bundle.path("hooks.out"), "run.oci.hooks.stderr": bundle.path("hooks.err")
    });
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    bundle.run().ok();
    for (file, stream) in [("hooks.out", "out"), ("hooks.err", "err")] {
        let wanted: String = stages.iter().map(|stage| format!("{stream} {stage}\n")).collect();
        assert_eq!(fs::read_to_string(bundle.path(file)).unwrap(), wanted);
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(bundle.path(file)).unwrap());
        assert_eq!(owner, 0, "the host's file is not given to a user of the container");
    }
    bundle.config["annotations"]["run.oci.hooks.stdout"] = json!("/no/such/directory/log");
    bundle.run().fails("run.oci.hooks.stdout: open /no/such/directory/log");
}

/// A startContainer hook is a program of the image: it gets the process's environment, and no more rights than that.
#[test]
fn a_hook_inside_has_what_the_process_has() {
    let mut bundle =
        Bundle::new("cat /tmp/hook; id -u; echo $GIVEN $HOME; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status");
    let script = "(id -u; echo $GIVEN $HOME; grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status) > /tmp/hook";
    bundle.config["hooks"] = json!({"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    bundle.config["process"]["env"] = json!(["PATH=/bin", "GIVEN=by the process"]);
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]
    });
    std::os::unix::fs::chown(bundle.rootfs().join("tmp"), Some(7), Some(7)).unwrap();
    let done = bundle.run();
    let lines: Vec<&str> = done.ok().lines().collect();
    assert_eq!(lines.len(), 10, "{lines:?}");
    assert_eq!(lines[..5], lines[5..]);
    assert_eq!((lines[0], lines[1]), ("7", "by the process /"));
}

/// As a shell passes it: `exec -p <(...)`.
#[test]
fn a_process_may_come_through_a_pipe() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let mut child = bundle
        .command(&["exec", "--process", "/dev/stdin", &bundle.id])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let process = json!({"args": ["/bin/echo", "from a pipe"], "cwd": "/"});
    serde_json::to_writer(child.stdin.take().unwrap(), &process).unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(
        (said.as_str(), child.wait().unwrap().code()),
        ("from a pipe\n", Some(0))
    );
}

/// It may wait for long, and who shares its pid namespace may look into it: nothing of the host is to be found there.
#[test]
fn a_created_container_holds_nothing_of_the_host() {
    let bundle = Bundle::new("echo $(ls /proc/self/fd)");
    let leak = fs::File::open("/etc/passwd").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    bundle.create().ok();
    let held = fs::read_dir(format!("/proc/{}/fd", bundle.state()["pid"])).unwrap();
    let number = |path: &std::path::Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    for path in held.map(|entry| entry.unwrap().path()) {
        let target = fs::read_link(&path).unwrap();
        let target = target.to_str().unwrap();
        let ours = target == "/" || target == "/proc" || target.starts_with("socket:");
        assert!(
            ours || number(&path).is_some_and(|number| number <= 2),
            "{path:?} is {target}"
        );
    }
    bundle.start().ok();
}

/// Programs that read a container's output from a pipe get lines as the program wrote them.
#[test]
fn a_terminal_that_is_only_carried_on_changes_no_line() {
    let mut bundle = Bundle::new("echo one; stat -c %g $(tty); echo two");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["user"] = json!({"uid": 7, "gid": 7});
    // The group is that of devpts (gid=5, tty), whoever the user is: grantpt(3).
    assert_eq!(bundle.run().out, "one\n5\ntwo\n");
}

#[test]
fn a_read_only_dev_has_its_devices_first() {
    let mut bundle = Bundle::new("echo > /dev/null && ls /dev/pts/ptmx && touch /dev/new 2>&1");
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let dev = mounts.iter_mut().find(|mount| mount["destination"] == "/dev").unwrap();
    dev["options"] = json!(["nosuid", "ro"]);
    let done = bundle.run();
    assert!(
        done.out.contains("/dev/pts/ptmx") && done.out.contains("Read-only file system"),
        "{done:?}"
    );
}

/// A procfs of one's own is one without masks; the kernel allows it only where it sees a whole one already.
#[test]
fn without_pivot_root_no_whole_procfs_is_in_reach() {
    let mut bundle = Bundle::new("unshare -Urmpf mount -t proc none /proc 2>&1; echo $?");
    bundle.config["linux"]["seccomp"] = json!(null);
    let done = bundle.call(&["run", "--no-pivot", &bundle.id]);
    assert!(!done.out.trim().ends_with("\n0") && done.out.trim() != "0", "{done:?}");
    assert!(done.out.to_lowercase().contains("permi"), "{done:?}");
}
