//! The command line as engines use it: flags, files, exit codes, and what is said on which stream. Needs root.

mod support;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::Stdio;

use serde_json::Value;
use support::Bundle;

#[test]
fn version_and_features_are_what_engines_parse() {
    let bundle = Bundle::new("true");
    let version = bundle.call(&["--version"]);
    let lines: Vec<&str> = version.ok().lines().collect();
    assert!(lines[0].starts_with("hull-runtime version "), "{lines:?}");
    assert!(lines.contains(&"spec: 1.3.0"), "{lines:?}");
    let features: Value = serde_json::from_str(bundle.call(&["features"]).ok()).unwrap();
    assert_eq!(features["ociVersionMax"], "1.3.0");
    let actions = features["linux"]["seccomp"]["actions"].as_array().unwrap();
    assert!(actions.contains(&"SCMP_ACT_NOTIFY".into()));
    assert_eq!(features["linux"]["netDevices"]["enabled"], true);
    assert_eq!(features["linux"]["cgroup"]["systemd"], true);
}

#[test]
fn every_command_explains_itself_and_mistakes_are_named() {
    let bundle = Bundle::new("true");
    for command in ["create", "run", "exec", "state", "events", "update"] {
        assert!(bundle.call(&[command, "--help"]).ok().contains("usage:"), "{command}");
    }
    bundle.call(&["checkpoint", &bundle.id]).fails("CRIU");
    bundle.call(&["restore", &bundle.id]).fails("CRIU");
    bundle
        .call(&["run", "--no-such-flag", "c1"])
        .fails("flag provided but not defined");
    bundle
        .call(&["--log-format", "xml", "list"])
        .fails("neither text nor json");
    bundle
        .call(&["--cgroup-manager", "other", "list"])
        .fails("neither cgroupfs nor systemd");
    bundle.call(&["state"]).fails("ID is missing");
    bundle.call(&["state", "nosuch"]).fails("container does not exist");
    bundle.call(&["delete", "nosuch"]).fails("container does not exist");
    bundle.call(&["delete", "--force", "nosuch"]).ok();
    bundle
        .call(&["kill", "nosuch", "KILL"])
        .fails("container does not exist");
}

#[test]
fn a_user_has_a_state_root_of_his_own() {
    let bundle = Bundle::new("true");
    let runtime_dir = bundle.path("xdg");
    let log = bundle.path("log");
    let mut command = std::process::Command::new(support::RUNTIME);
    command.args(["--rootless", "true", "--debug", "--log", log.to_str().unwrap(), "list"]);
    assert!(command.env("XDG_RUNTIME_DIR", &runtime_dir).status().unwrap().success());
    let text = fs::read_to_string(log).unwrap();
    let expected = format!("state root {}/hull-runtime", runtime_dir.display());
    assert!(text.contains("level=debug") && text.contains(&expected), "{text}");
}

#[test]
fn the_pidfd_goes_to_its_socket() {
    let bundle = Bundle::new("sleep 1000");
    let path = bundle.path("pidfd.sock");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.create_with(&["--pidfd-socket", path.to_str().unwrap()]).ok();
    let (connection, _) = listener.accept().unwrap();
    let mut bytes = [0; 16];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let flags = rustix::net::RecvFlags::CMSG_CLOEXEC;
    rustix::net::recvmsg(&connection, &mut parts, &mut control, flags).unwrap();
    let pidfd = control
        .drain()
        .find_map(|message| match message {
            rustix::net::RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor");
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).unwrap();
    let pid = bundle.state()["pid"].as_i64().unwrap();
    assert!(info.contains(&format!("Pid:\t{pid}\n")), "{info}");
}

#[test]
fn readiness_is_passed_on_with_the_pid() {
    // Nothing in busybox writes to such a socket: the test does, at its other name on the host.
    let bundle = Bundle::new("exec sleep 1000");
    let path = bundle.path("manager.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut create = bundle.command(&["create", &bundle.id]);
    let out = fs::File::create(bundle.path("out")).unwrap();
    let status = create
        .env("NOTIFY_SOCKET", &path)
        .stdout(out)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let mut start = bundle
        .command(&["start", &bundle.id])
        .env("NOTIFY_SOCKET", &path)
        .spawn()
        .unwrap();
    let socket = bundle.state_dir().join("notify/notify.sock");
    let container = UnixDatagram::unbound().unwrap();
    // `start` listens before it lets the program run, which is the first thing one can see.
    while container.send_to(b"STATUS=soon", &socket).is_err() {
        std::thread::yield_now();
    }
    container.send_to(b"READY=1\n", &socket).unwrap();
    let mut message = [0; 256];
    let length = manager.recv(&mut message).unwrap();
    let pid = bundle.state()["pid"].as_i64().unwrap();
    assert_eq!(
        std::str::from_utf8(&message[..length]).unwrap(),
        format!("READY=1\nMAINPID={pid}")
    );
    assert!(start.wait().unwrap().success());
    let seen = bundle.exec(&[&bundle.id, "sh", "-c", "echo $NOTIFY_SOCKET; ls /run/notify"]);
    assert_eq!(seen.ok(), "/run/notify/notify.sock\nnotify.sock");
}

#[test]
fn activated_sockets_are_passed_and_announced() {
    let bundle = Bundle::new("echo $LISTEN_FDS $LISTEN_PID; cat <&3");
    fs::write(bundle.path("passed"), "through 3").unwrap();
    bundle.write_config();
    // The shell is the process that becomes the runtime: LISTEN_PID is its own pid.
    let script = "exec 3< passed; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" --root state run \"$1\"";
    let output = std::process::Command::new("sh")
        .args(["-c", script, support::RUNTIME, &bundle.id])
        .current_dir(bundle.path(""))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1 1\nthrough 3", "{output:?}");
    let script = "exec 3< passed; LISTEN_FDS=1 LISTEN_PID=1 exec \"$0\" --root state run \"$1\"";
    let output = std::process::Command::new("sh")
        .args(["-c", script, support::RUNTIME, &bundle.id])
        .current_dir(bundle.path(""))
        .output()
        .unwrap();
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("through"),
        "meant for another: {output:?}"
    );
}

#[test]
fn events_tell_what_is_used_and_end_with_the_container() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let event: Value = serde_json::from_str(bundle.call(&["events", "--stats", &bundle.id]).ok()).unwrap();
    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], bundle.id.as_str());
    assert!(event["data"]["cpu"]["usage"]["total"].is_u64(), "{event}");
    let mut watching = bundle.spawn(&["events", "--interval", "10ms", &bundle.id]);
    let mut first = String::new();
    let mut output = std::io::BufReader::new(watching.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut first).unwrap();
    bundle.call(&["kill", &bundle.id, "SIGKILL"]).ok();
    assert!(watching.wait().unwrap().success());
    assert!(first.starts_with("{\"type\":\"stats\","), "{first}");
    bundle
        .call(&["events", "--stats", &bundle.id])
        .fails("container not running");
}

#[test]
fn lists_have_columns_and_a_running_container_has_processes() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    let table = bundle.call(&["list"]);
    let lines: Vec<&str> = table.ok().lines().collect();
    let header: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(header, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    assert!(
        lines[1].starts_with(&bundle.id) && lines[1].contains("created"),
        "{lines:?}"
    );
    assert_eq!(bundle.call(&["list", "-q"]).ok(), bundle.id);
    bundle.start().ok();
    let pid = bundle.state()["pid"].as_i64().unwrap();
    assert_eq!(
        bundle.call(&["ps", "--format", "json", &bundle.id]).ok(),
        format!("[{pid}]")
    );
    assert!(
        bundle
            .call(&["ps", &bundle.id, "-o", "pid,comm"])
            .ok()
            .contains("sleep")
    );
}

#[test]
fn an_exec_that_would_leave_the_cgroup_or_has_no_such_user_is_refused() {
    let bundle = Bundle::new("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    bundle
        .exec(&["--cgroup", "../other", &bundle.id, "true"])
        .fails("leads out");
    bundle
        .exec(&["--user", "root", &bundle.id, "true"])
        .fails("not a numeric id");
    // Nothing is granted by a name that this runtime does not know.
    let done = bundle.exec(&[
        "--cap",
        "CAP_EVERYTHING",
        &bundle.id,
        "grep",
        "CapEff",
        "/proc/self/status",
    ]);
    assert!(done.err.contains("unknown capability \"CAP_EVERYTHING\""), "{done:?}");
    assert_eq!(
        done.ok(),
        bundle.exec(&[&bundle.id, "grep", "CapEff", "/proc/self/status"]).ok()
    );
    bundle.exec(&["--apparmor", "unconfined", &bundle.id, "true"]).ok();
    let done = bundle.exec(&[
        "--user=7:8",
        "-g",
        "9",
        "-g",
        "10",
        "--env=A=b",
        "--cwd",
        "/tmp",
        &bundle.id,
        "sh",
        "-c",
        "id -u; id -g; id -G; echo $A; pwd",
    ]);
    assert_eq!(done.ok(), "7\n8\n8 9 10\nb\n/tmp");
}
