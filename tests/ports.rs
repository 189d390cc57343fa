//! Ports of the node that lead to pods (`hostPort`): pods share a number by address and protocol, and give it back. Needs root
//! and kubectl.

mod support;

use std::io::Read as _;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::Duration;

use rustix::thread::LinkNameSpaceType;
use serde_json::{Value, json};
use support::{IMAGE, TestCluster};

const PORT: u16 = 54_323;
const PATIENCE: Duration = Duration::from_secs(3);

/// A pod with one port, open on one address of the node; on a TCP port it answers with its name.
fn server(name: &str, protocol: &str, host: IpAddr) -> Value {
    let command = match protocol {
        "TCP" => json!([
            "/bin/busybox",
            "nc",
            "-ll",
            "-p",
            "8080",
            "-e",
            "/bin/busybox",
            "echo",
            name
        ]),
        // The busybox at hand has no server for datagrams: the test is one, in the pod's network.
        _ => json!(["/bin/busybox", "sleep", "1000"]),
    };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": IMAGE, "command": command, "ports": [
            {"containerPort": 8080, "hostPort": PORT, "hostIP": host, "protocol": protocol}]}]}})
}

/// Answers datagrams to a pod with its name, until the process ends.
fn serve_datagrams(cluster: &TestCluster, pod: &str) {
    let uid = cluster.get(&["pod", pod])["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    let network = std::fs::File::open(cluster.run_dir().join("netns").join(uid).join("net")).expect("its network");
    let name = pod.to_owned();
    let (bound, is_bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("enter it");
        let socket = UdpSocket::bind("0.0.0.0:8080").expect("a socket");
        bound.send(()).expect("tell");
        let mut question = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut question) {
            let _ = socket.send_to(name.as_bytes(), client);
        }
    });
    is_bound.recv().expect("it serves");
}

fn ask(address: IpAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&(address, PORT).into(), PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut said = String::new();
    stream.read_to_string(&mut said).ok()?;
    Some(said.trim().to_owned())
}

fn ask_by_datagram(address: IpAddr) -> Option<String> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut answer = [0; 64];
    socket.send_to(b"?", (address, PORT)).ok()?;
    let (length, from) = socket.recv_from(&mut answer).ok()?;
    assert_eq!(from, (address, PORT).into(), "it answers from where it was asked");
    Some(String::from_utf8_lossy(&answer[..length]).into_owned())
}

#[test]
fn pods_share_a_port_of_the_node_by_address_and_protocol() {
    let cluster = TestCluster::start("ports");
    let node = cluster.get(&["node", "node-1"]);
    let own: IpAddr = node["status"]["addresses"][0]["address"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("the node's address");
    let loopback = IpAddr::from([127, 0, 0, 1]);
    for pod in [
        server("a", "TCP", loopback),
        server("b", "TCP", own),
        server("c", "UDP", own),
    ] {
        cluster.apply(&pod.to_string());
    }
    ["a", "b", "c"].into_iter().for_each(|name| cluster.wait_ready(name));
    serve_datagrams(&cluster, "c");
    cluster.until("all three answer", || {
        let streams = ask(loopback).as_deref() == Some("a") && ask(own).as_deref() == Some("b");
        streams && ask_by_datagram(own).as_deref() == Some("c")
    });
    let from_pod = |address: &str| {
        let script = format!("/bin/busybox timeout 5 /bin/busybox nc {address} {PORT} < /dev/null");
        let out = cluster.try_kubectl(&["exec", "a", "--", "/bin/busybox", "sh", "-c", &script], "");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    assert_eq!(from_pod(&own.to_string()), "b");
    assert_eq!(from_pod("127.0.0.1"), "", "a pod's loopback is its own");
    // kill -9 of the agent: the ports stay open, and are known to the next one.
    cluster.kill(cluster.pid("agent"));
    assert_eq!(ask(own).as_deref(), Some("b"));
    cluster.kubectl(&["delete", "pod", "b", "--now"]);
    cluster.until("the port is closed", || ask(own).is_none());
    assert_eq!(ask(loopback).as_deref(), Some("a"), "the others stay");
    cluster.apply(&server("b", "TCP", own).to_string());
    cluster.until("the port is open again", || ask(own).as_deref() == Some("b"));
    a_range_that_was_added_is_served(&cluster);
}

/// A service with an address of a ServiceCIDR beside the cluster's own.
fn a_range_that_was_added_is_served(cluster: &TestCluster) {
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
        "spec": {"cidrs": ["198.18.77.0/24"]}});
    cluster.apply(&range.to_string());
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere"},
        "spec": {"clusterIP": "198.18.77.7", "selector": {"app": "a"}, "ports": [{"port": PORT, "targetPort": 8080}]}});
    cluster.apply(&service.to_string());
    let address = IpAddr::from([198, 18, 77, 7]);
    cluster.until("it answers", || ask(address).as_deref() == Some("a"));
}
