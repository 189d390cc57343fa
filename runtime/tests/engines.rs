//! buildah and containerd drive the runtime, as they are in Debian; and systemd makes its cgroups. Needs root.

#[path = "support/engine.rs"]
mod engine;

use std::fs;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use engine::{Done, RUNTIME, Room, own_group};

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
    let group = own_group();
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
}
