//! Logs and exec reach the agent of the pod's node with our client certificate, and the bytes come back.

mod support;

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use support::Cluster;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An agent that answers logs with the request line, and echoes what comes after an upgrade.
async fn agent(listener: TcpListener, tls: TlsAcceptor) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else { return };
        let tls = tls.clone();
        tokio::spawn(async move {
            let Ok(mut stream) = tls.accept(tcp).await else { return };
            assert!(stream.get_ref().1.peer_certificates().is_some());
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let line = head.lines().next().unwrap_or_default().to_owned();
            if head.to_lowercase().contains("upgrade: websocket") {
                let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(line.as_bytes()).await.unwrap();
                let (mut from, mut to) = tokio::io::split(stream);
                _ = tokio::io::copy(&mut from, &mut to).await;
            } else {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{line}", line.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
    }
}

fn agent_tls(cluster: &Cluster) -> TlsAcceptor {
    let pki = cluster.path().join("pki");
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(pki.join("ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![CertificateDer::from_pem_file(pki.join("agent.crt")).unwrap()],
            PrivateKeyDer::from_pem_file(pki.join("agent.key")).unwrap(),
        )
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn with_agent() -> Cluster {
    let cluster = Cluster::start();
    let tls = agent_tls(&cluster);
    let listener = cluster.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    cluster.spawn(agent(listener, tls));
    let node = json!({
        "metadata": {"name": "n1"},
        "status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        },
    });
    assert_eq!(
        cluster
            .request("POST", "/api/v1/nodes", "application/json", node.to_string())
            .0,
        201
    );
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "a", "image": "x"}]}});
    let (code, answer) = cluster.request(
        "POST",
        "/api/v1/namespaces/default/pods",
        "application/json",
        pod.to_string(),
    );
    assert_eq!(code, 201, "{answer}");
    cluster
}

#[test]
fn logs_come_from_the_nodes_agent() {
    let cluster = with_agent();
    let shown = cluster.kubectl("logs p --tail=3 --timestamps");
    assert!(shown.starts_with("GET /containerLogs/default/p/a?"), "{shown}");
    assert!(
        shown.contains("tailLines=3") && shown.contains("timestamps=true"),
        "{shown}"
    );
    assert!(
        cluster
            .refused("logs p -c nobody", "")
            .contains("container nobody is not valid for pod p")
    );
}

#[test]
fn exec_is_tunnelled_as_it_is() {
    let cluster = with_agent();
    let request = "GET /api/v1/namespaces/default/pods/p/exec?command=sh&command=-c&command=a%26b&stdin=true&stdout=true HTTP/1.1\r\n\
                   Host: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n";
    let seen = cluster.block_on(async {
        let mut stream = cluster.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut seen = String::new();
        while !seen.ends_with("HTTP/1.1") || seen.matches("HTTP/1.1").count() < 2 {
            seen.push(char::from(stream.read_u8().await.unwrap()));
        }
        stream.write_all(b"ping").await.unwrap();
        let mut echoed = [0; 4];
        stream.read_exact(&mut echoed).await.unwrap();
        assert_eq!(&echoed, b"ping");
        seen
    });
    assert!(seen.starts_with("HTTP/1.1 101"), "{seen}");
    assert!(
        seen.to_lowercase()
            .contains("sec-websocket-protocol: v5.channel.k8s.io"),
        "{seen}"
    );
    assert!(
        seen.contains("GET /exec/default/p/a?command=sh&command=-c&command=a%26b&stdin=true&input=1"),
        "{seen}"
    );
}

#[test]
fn a_stream_needs_the_right_to_create_it() {
    let cluster = with_agent();
    cluster.kubectl("create clusterrole viewer --verb=get --resource=pods,pods/exec,pods/log");
    cluster.kubectl("create clusterrolebinding viewer --clusterrole=viewer --user=jane");
    assert!(cluster.kubectl("logs p --as=jane").contains("/containerLogs/"));
    assert!(
        cluster
            .refused("exec p --as=jane -- ls", "")
            .contains("cannot create resource \"pods/exec\"")
    );
}

#[test]
fn a_node_is_proxied_to_its_agent() {
    let cluster = with_agent();
    let raw = |path: &str| cluster.kubectl(&format!("get --raw {path}"));
    assert_eq!(
        raw("/api/v1/nodes/n1/proxy/metrics?a=b%2Fc"),
        "GET /metrics?a=b%2Fc HTTP/1.1"
    );
    assert_eq!(raw("/api/v1/nodes/n1/proxy"), "GET / HTTP/1.1");
    let sent = cluster.kubectl_in("create --raw /api/v1/nodes/n1/proxy/observe/bench -f -", "{}");
    assert_eq!(sent, "POST /observe/bench HTTP/1.1");
    let refused = |path: &str| cluster.refused(&format!("get --raw {path}"), "");
    assert!(refused("/api/v1/nodes/n2/proxy/metrics").contains("nodes \"n2\" not found"));
    assert!(refused("/api/v1/nodes/n1:1/proxy/metrics").contains("only the agent"));
}

#[test]
fn proxying_needs_the_right_to_the_verb_and_running_that_to_create() {
    let cluster = with_agent();
    cluster.kubectl("create clusterrole metrics --verb=get --resource=nodes/proxy");
    cluster.kubectl("create clusterrolebinding metrics --clusterrole=metrics --user=jane");
    let metrics = "get --raw /api/v1/nodes/n1/proxy/metrics";
    assert!(cluster.kubectl(&format!("{metrics} --as=jane")).contains("/metrics"));
    assert!(
        cluster
            .refused(&format!("{metrics} --as=joe"), "")
            .contains("cannot get resource \"nodes/proxy\"")
    );
    for running in [
        "exec/default/p/a?command=ls",
        "%65xec/default/p/a",
        "/attach/default/p/a",
    ] {
        let refusal = cluster.refused(&format!("get --raw /api/v1/nodes/n1/proxy/{running} --as=jane"), "");
        assert!(
            refusal.contains("cannot create resource \"nodes/proxy\""),
            "{running}: {refusal}"
        );
    }
}

#[test]
fn pods_and_services_are_proxied_to_an_address_of_the_pod() {
    let cluster = with_agent();
    let service = json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    let made = |path: &str, body: &serde_json::Value| {
        let (code, answer) = cluster.request("POST", path, "application/json", body.to_string());
        assert_eq!(code, 201, "{answer}");
    };
    made("/api/v1/namespaces/default/services", &service);
    let proxy = "/api/v1/namespaces/default/services/web:http/proxy";
    assert!(
        cluster
            .refused(&format!("get --raw {proxy}/x"), "")
            .contains("no endpoints available")
    );
    // The control plane's own loopback must not be reachable through a slice that anyone may write.
    let slice = json!({
        "metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.244.0.254"]}],
    });
    made("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice);
    let (code, _) = cluster.request("GET", proxy, "application/json", "");
    assert_eq!(code, 301, "links of a page need the slash");
    let (code, answer) = cluster.request(
        "GET",
        "/api/v1/namespaces/default/pods/p/proxy/x",
        "application/json",
        "",
    );
    assert_eq!(
        (code, answer["message"].as_str()),
        (503, Some("pod p has no address yet"))
    );
}
