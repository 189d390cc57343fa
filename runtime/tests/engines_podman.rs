//! podman drives the runtime, as root and as a user: exit codes, everything it can ask for, a container's whole life. Needs
//! root.

#[path = "support/engine.rs"]
mod engine;

use std::fs;
use std::process::Stdio;

use engine::{Done, PODMAN_RUN, Podman};

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
        false => limited.fails(126, "the requested cgroup controller `memory` is not available"),
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
    // Podman's own cleanup of the dead container, in another process, may still hold its /dev/shm.
    let removed = (0..5).any(|_| podman.call(&["rm", "-f", "-t", "0", "u1"]).code == Some(0));
    assert!(removed);
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
