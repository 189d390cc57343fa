//! create, start, exec, kill, delete through the real binary: states, exit codes, texts, and what is left behind.

mod support;

use serde_json::json;
use support::Bundle;

#[test]
fn the_states_follow_the_specification() {
    let mut bundle = Bundle::new("echo hello; exec sleep 1000");
    bundle.config["annotations"] = json!({"key": "value"});
    let pid_file = bundle.path("pid");
    bundle.create_with(&["--pid-file", pid_file.to_str().unwrap()]).ok();
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["annotations"]["key"], "value");
    assert_eq!(state["pid"].to_string(), std::fs::read_to_string(pid_file).unwrap());
    assert_eq!(bundle.output(), "");
    bundle.start().ok();
    assert_eq!(bundle.state()["status"], "running");
    bundle.start().fails("in the running state");
    bundle
        .call(&["delete", &bundle.id])
        .fails("that is not stopped: running");
    bundle.call(&["pause", &bundle.id]).ok();
    assert_eq!(bundle.state()["status"], "paused");
    bundle.exec(&[&bundle.id, "true"]).fails("paused container");
    bundle.call(&["resume", &bundle.id]).ok();
    bundle.call(&["kill", &bundle.id, "KILL"]).ok();
    bundle.wait(state["pid"].as_i64().unwrap());
    assert_eq!(bundle.state()["status"], "stopped");
    assert_eq!(bundle.state()["pid"], 0);
    assert_eq!(bundle.output(), "hello\n");
    bundle
        .call(&["kill", &bundle.id, "TERM"])
        .fails("container not running");
    bundle.call(&["delete", &bundle.id]).ok();
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
    bundle.call(&["state", &bundle.id]).fails("container does not exist");
    bundle.call(&["delete", &bundle.id]).fails("container does not exist");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
}

#[test]
fn run_returns_the_code_of_the_program() {
    assert_eq!(Bundle::new("exit 42").run().code, Some(42));
    let bundle = Bundle::new("sh -c 'kill -TERM $$'; exit $?");
    assert_eq!(bundle.run().code, Some(143));
    assert!(!bundle.state_dir().exists(), "run removes its container");
    assert!(!bundle.cgroup().exists());
}

#[test]
fn run_forwards_signals() {
    let bundle = Bundle::new("trap 'exit 9' TERM; echo ready; while :; do sleep 1; done");
    let mut child = bundle.spawn(&["run", &bundle.id]);
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
    assert_eq!(line, "ready\n");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_missing_program_fails_create_with_the_texts_engines_look_for() {
    let mut bundle = Bundle::new("");
    bundle.config["process"]["args"] = json!(["nosuch"]);
    bundle
        .create()
        .fails("exec: \"nosuch\": executable file not found in $PATH");
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
    bundle.config["process"]["args"] = json!(["/bin/nosuch"]);
    bundle
        .create()
        .fails("exec: \"/bin/nosuch\": stat /bin/nosuch: no such file or directory");
    bundle.config["process"]["args"] = json!(["/etc"]);
    bundle.create().fails("permission denied");
    bundle.config["process"]["args"] = json!(["true"]);
    bundle.config["process"]["cwd"] = json!("/bin/busybox");
    bundle.create().fails("chdir to cwd (/bin/busybox)");
}

#[test]
fn a_program_that_cannot_be_executed_fails_start() {
    let mut bundle = Bundle::new("");
    let text = bundle.rootfs().join("bin/text");
    std::fs::write(&text, "not a program").unwrap();
    std::fs::set_permissions(&text, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    bundle.config["process"]["args"] = json!(["text"]);
    bundle.create().ok();
    bundle.start().fails("exec /bin/text: exec format error");
}

#[test]
fn configuration_errors_leave_nothing_behind() {
    let mut bundle = Bundle::new("true");
    bundle.config["mounts"] = json!([{"destination": "/data", "type": "bind", "source": "/no/such/source"}]);
    bundle
        .create()
        .fails("bind mount /no/such/source on /data: no such file or directory");
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
    bundle.config["mounts"] = json!([{"destination": "/x", "type": "tmpfs", "options": ["nonsense=1"]}]);
    bundle.create().fails("nonsense");
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
    bundle.config["process"] = json!(null);
    bundle.create().fails("config.json has no process");
}

#[test]
fn ids_are_unique_and_clean() {
    let bundle = Bundle::new("true");
    bundle.create().ok();
    bundle.create().fails("container with given ID already exists");
    bundle.call(&["create", "../escape"]).fails("invalid container ID");
}

#[test]
fn exec_runs_beside_the_init() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let done = bundle.exec(&[
        "-e",
        "A=1",
        "--cwd",
        "/tmp",
        "-u",
        "5:6",
        &bundle.id,
        "sh",
        "-c",
        "echo $A $PWD $(id -u) $(id -g); exit 7",
    ]);
    assert_eq!((done.out.as_str(), done.code), ("1 /tmp 5 6\n", Some(7)));
    assert_eq!(bundle.exec(&[&bundle.id, "hostname"]).ok(), "tested");
    assert_eq!(bundle.exec(&[&bundle.id, "cat", "/proc/1/comm"]).ok(), "sleep");
    bundle
        .exec(&[&bundle.id, "nosuch"])
        .fails("executable file not found in $PATH");
    bundle.exec(&["-u", "root", &bundle.id, "id"]).fails("not a numeric id");
    bundle
        .exec(&["--cwd", "/nowhere", &bundle.id, "id"])
        .fails("chdir to cwd (/nowhere)");
    let group = bundle.exec(&[&bundle.id, "cat", "/proc/self/cgroup"]);
    assert!(group.ok().lines().any(|line| line == "0::/"), "{group:?}");
}

#[test]
fn exec_takes_a_process_from_a_file_and_detaches() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let process = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh", "-c", "echo $$ > /tmp/pid; exec sleep 1000"], "env": ["PATH=/bin"]});
    std::fs::write(bundle.path("process.json"), process.to_string()).unwrap();
    let (file, pid_file) = (bundle.path("process.json"), bundle.path("exec.pid"));
    let mut command = bundle.command(&[
        "exec",
        "-d",
        "-p",
        file.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        &bundle.id,
    ]);
    assert!(
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let pids = bundle.call(&["ps", "-f", "json", &bundle.id]);
    let pids: Vec<u32> = serde_json::from_str(pids.ok()).unwrap();
    assert_eq!(pids.len(), 2);
    assert!(pids.contains(&pid.parse().unwrap()));
    let capabilities = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        capabilities.contains("CapEff:\t00000000a80425fb"),
        "the container's capabilities are taken"
    );
}

/// FAULTS 3: whoever drives `create` may be killed at any time; what is left can be deleted, twice.
#[test]
fn killed_between_create_and_start() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create().ok();
    let pid = bundle.state()["pid"].as_i64().unwrap();
    assert_eq!(bundle.state()["status"], "created");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    bundle.wait(pid);
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
    assert!(!support::is_mounted_below(&bundle.rootfs()));
    bundle.call(&["delete", "--force", &bundle.id]).ok();
}

/// As above, with SIGKILL at rising moments of `create`.
#[test]
fn killed_in_the_middle_of_create() {
    let mut bundle = Bundle::new("exec sleep 1000");
    let hook = bundle.path("hook");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", hook.display());
    bundle.config["hooks"] = json!({"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    let mut child = bundle.spawn(&["create", &bundle.id]);
    let state = bundle.state_dir().join("state.json");
    while !state.exists()
        || !hook.exists()
        || hull_runtime::cgroup::Cgroup::at(bundle.cgroup())
            .processes()
            .unwrap_or_default()
            .is_empty()
    {
        assert!(child.try_wait().unwrap().is_none(), "create ended by itself");
        std::thread::yield_now();
    }
    assert_eq!(bundle.state()["status"], "creating");
    child.kill().unwrap();
    child.wait().unwrap();
    // The hook is a process of the host: it outlives the runtime, and would outlive the test.
    let hook = std::fs::read_to_string(hook).unwrap().trim().parse().unwrap();
    let hook = rustix::process::Pid::from_raw(hook).unwrap();
    rustix::process::kill_process(hook, rustix::process::Signal::KILL).unwrap();
    bundle.call(&["start", &bundle.id]).fails("cannot start");
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
    bundle.call(&["delete", "--force", &bundle.id]).ok();
}

#[test]
fn force_kills_what_is_paused() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    bundle.call(&["pause", &bundle.id]).ok();
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
}

#[test]
fn kill_all_reaches_every_process() {
    let mut bundle = Bundle::new("sleep 1000 & exec sleep 1000");
    bundle.config["linux"]["namespaces"] =
        json!(["network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({"type": kind})));
    bundle.create().ok();
    bundle.start().ok();
    let pids: Vec<i64> = serde_json::from_str(bundle.call(&["ps", "-f", "json", &bundle.id]).ok()).unwrap();
    bundle.call(&["kill", "--all", &bundle.id, "KILL"]).ok();
    for pid in pids {
        bundle.wait(pid);
    }
    bundle.call(&["delete", &bundle.id]).ok();
    assert!(!bundle.cgroup().exists());
}

#[test]
fn the_engines_log_gets_errors_as_json() {
    let bundle = Bundle::new("true");
    let log = bundle.path("log.json");
    let arguments = [
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "--debug",
        "start",
        "nosuch",
    ];
    bundle.call(&arguments).fails("container does not exist: nosuch");
    let text = std::fs::read_to_string(log).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container does not exist: nosuch");
    bundle
        .call(&["--systemd-cgroup", "create", "c1"])
        .fails("slice:prefix:name");
    bundle.call(&["frobnicate"]).fails("no such command: frobnicate");
}

#[test]
fn lists_and_documents() {
    let bundle = Bundle::new("true");
    bundle.create().ok();
    assert_eq!(bundle.call(&["list", "-q"]).ok(), bundle.id);
    let list: serde_json::Value = serde_json::from_str(bundle.call(&["list", "-f", "json"]).ok()).unwrap();
    assert_eq!(list[0]["status"], "created");
    let features: serde_json::Value = serde_json::from_str(bundle.call(&["features"]).ok()).unwrap();
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    assert!(bundle.call(&["--version"]).ok().contains("spec: 1."));
    let fresh = tempfile::tempdir().unwrap();
    bundle.call(&["spec", "-b", fresh.path().to_str().unwrap()]).ok();
    bundle
        .call(&["spec", "-b", fresh.path().to_str().unwrap()])
        .fails("exists");
}
