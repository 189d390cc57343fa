//! Hooks in their order and namespaces, and the terminal's way to an engine.

mod support;

use std::io::{IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::json;
use support::Bundle;

#[test]
fn hooks_run_in_order_with_the_state_on_their_input() {
    let mut bundle = Bundle::new("exec sleep 1000");
    let log = bundle.path("hooks.log");
    let shared = bundle.path("shared");
    std::fs::create_dir(&shared).unwrap();
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/shared", "type": "bind", "source": "shared"}));
    let host = |name: &str| {
        let script = format!(
            "status=$(grep -o '\"status\":\"[a-z]*\"'); echo {name} $status $(readlink /proc/self/ns/uts) >> {}",
            log.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 10}])
    };
    let inside = json!([{"path": "/bin/sh", "args": ["sh", "-c", "cat > /shared/startContainer; hostname >> /shared/startContainer"], "env": ["PATH=/bin"]}]);
    bundle.config["hooks"] = json!({
        "prestart": host("prestart"), "createRuntime": host("createRuntime"), "createContainer": host("createContainer"),
        "startContainer": inside, "poststart": host("poststart"), "poststop": host("poststop")
    });
    bundle.create().ok();
    let pid = bundle.state()["pid"].as_i64().unwrap();
    let uts = std::fs::read_link(format!("/proc/{pid}/ns/uts"))
        .unwrap()
        .display()
        .to_string();
    assert!(!shared.join("startContainer").exists());
    bundle.start().ok();
    bundle.call(&["delete", "--force", &bundle.id]).ok();
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<Vec<&str>> = log.lines().map(|line| line.split(' ').collect()).collect();
    let order: Vec<(&str, &str)> = lines.iter().map(|line| (line[0], line[1])).collect();
    assert_eq!(
        order,
        [
            ("prestart", "\"status\":\"created\""),
            ("createRuntime", "\"status\":\"created\""),
            ("createContainer", "\"status\":\"created\""),
            ("poststart", "\"status\":\"running\""),
            ("poststop", "\"status\":\"stopped\""),
        ]
    );
    assert_ne!(lines[1][2], uts, "createRuntime runs in the runtime's namespaces");
    assert_eq!(lines[2][2], uts, "createContainer runs in the container's");
    let inside = std::fs::read_to_string(shared.join("startContainer")).unwrap();
    assert!(
        inside.contains("\"status\":\"created\"") && inside.ends_with("tested\n"),
        "{inside}"
    );
    assert!(inside.contains(&format!("\"id\":\"{}\"", bundle.id)), "{inside}");
}

#[test]
fn a_failing_hook_undoes_the_container() {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::new("true");
        bundle.config["hooks"] =
            json!({stage: [{"path": "/bin/sh", "args": ["sh", "-c", "echo no luck >&2; exit 3"]}]});
        bundle.create().fails(&format!(
            "error running {stage} hook #0: /bin/sh: exit status 3, output: no luck"
        ));
        assert!(!bundle.state_dir().exists() && !bundle.cgroup().exists());
    }
    let mut bundle = Bundle::new("true");
    bundle.config["hooks"] = json!({"startContainer": [{"path": "/bin/false"}]});
    bundle.create().ok();
    bundle.start().fails("error running startContainer hook #0: /bin/false");
}

/// The master comes over the engine's socket; what the program writes to its terminal comes out of it.
#[test]
fn the_terminal_goes_to_the_console_socket() {
    let mut bundle = Bundle::new("tty; stat -c %t:%T /dev/console; read line; echo got $line");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.create().fails("without setting console socket");
    assert!(!bundle.state_dir().exists());
    let path = bundle.path("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.create_with(&["--console-socket", path.to_str().unwrap()]).ok();
    let (connection, _) = listener.accept().unwrap();
    let mut name = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &connection,
        &mut [IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let master = control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor");
    let mut master = std::fs::File::from(master);
    bundle.start().ok();
    master.write_all(b"typed\n").unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 256];
    // The end of a pty is an error: EIO.
    while let Ok(length @ 1..) = master.read(&mut buffer) {
        seen.extend(&buffer[..length]);
    }
    let seen = String::from_utf8_lossy(&seen);
    assert!(
        seen.contains("/dev/pts/0") && seen.contains("88:0") && seen.contains("got typed"),
        "{seen}"
    );
}

#[test]
fn exec_has_a_terminal_of_its_own() {
    let bundle = Bundle::new("exec sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    let done = bundle.exec(&["-t", &bundle.id, "sh", "-c", "tty; exit 5"]);
    assert_eq!(done.code, Some(5));
    assert!(done.out.starts_with("/dev/pts/"), "{done:?}");
}
