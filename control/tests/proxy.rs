//! Services and pods behind the API server's proxy, with every method, over HTTP and HTTPS.

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::sync::Arc;

use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use support::{Cluster, ask, items, until};

const JSON: &str = "application/json";
const NAMESPACED: &str = "/api/v1/namespaces/default";

/// A server on this machine's own address: pods and services are never proxied to loopback.
struct Server {
    ip: IpAddr,
    port: u16,
}

impl Server {
    /// Answers each request with what it was, as JSON.
    fn start(tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let route = UdpSocket::bind("0.0.0.0:0").unwrap();
        route.connect("192.0.2.1:9").expect("this test needs a default route");
        let ip = route.local_addr().unwrap().ip();
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        // It ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let tls = tls.clone();
                std::thread::spawn(move || match tls {
                    None => answer(stream),
                    Some(config) => {
                        let connection = rustls::ServerConnection::new(config).unwrap();
                        answer(rustls::StreamOwned::new(connection, stream));
                    }
                });
            }
        });
        Self { ip, port }
    }
}

fn answer(stream: impl Read + Write) {
    let mut stream = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    stream.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    let words: Vec<&str> = first.split(' ').collect();
    let (kind, said) = match words[1] {
        "/page" => ("text/html", json!({"page": "<a href='/x'>"})),
        path => (
            JSON,
            json!({"method": words[0], "path": path, "body": String::from_utf8_lossy(&body)}),
        ),
    };
    let said = said.to_string();
    let shown = if words[0] == "HEAD" { "" } else { &said };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        said.len()
    );
    stream.get_mut().write_all(format!("{head}{shown}").as_bytes()).unwrap();
    stream.get_mut().flush().unwrap();
}

fn tls() -> Arc<rustls::ServerConfig> {
    let made = rcgen::generate_simple_self_signed(vec!["nobody".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Arc::new(
        config
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap(),
    )
}

#[test]
fn services_and_pods_are_proxied_with_every_method() {
    let cluster = Cluster::start();
    let (plain, secure) = (Server::start(None), Server::start(Some(tls())));
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"ports": [{"name": "web", "port": 80}, {"name": "tls", "port": 443}]}});
    ask(&cluster, "POST", &format!("{NAMESPACED}/services"), &service);
    let ports = json!([{"name": "web", "port": plain.port}, {"name": "tls", "port": secure.port}]);
    let endpoints = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": {"name": "s"},
        "subsets": [{"addresses": [{"ip": plain.ip}], "ports": ports}]});
    ask(&cluster, "POST", &format!("{NAMESPACED}/endpoints"), &endpoints);
    let slices =
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Ds";
    until("the endpoints are mirrored", || {
        !items(&ask(&cluster, "GET", slices, &Value::Null)).is_empty()
    });
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]}});
    ask(&cluster, "POST", &format!("{NAMESPACED}/pods"), &pod);
    let running = json!({"status": {"phase": "Running", "podIP": plain.ip, "podIPs": [{"ip": plain.ip}]}});
    ask(&cluster, "PATCH", &format!("{NAMESPACED}/pods/p/status"), &running);
    let pods = [
        format!("pods/p:{}", plain.port),
        format!("pods/https:p:{}", secure.port),
    ];
    let services = [
        "services/s:web",
        "services/s:80",
        "services/http:s:web",
        "services/https:s:tls",
        "services/https:s:443",
    ];
    for target in services.map(str::to_owned).iter().chain(&pods) {
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let path = format!("{NAMESPACED}/{target}/proxy/a/b?method={method}");
            let (code, said) = cluster.request(method, &path, JSON, "body");
            assert_eq!(code, 200, "{method} {target}: {said}");
            assert_eq!(
                said,
                json!({"method": method, "path": format!("/a/b?method={method}"), "body": "body"})
            );
        }
        let (code, _) = cluster.request("HEAD", &format!("{NAMESPACED}/{target}/proxy/"), JSON, "");
        assert_eq!(code, 200, "HEAD {target}");
        let (code, _) = cluster.request("GET", &format!("{NAMESPACED}/{target}/proxy"), JSON, "");
        assert_eq!(code, 301, "relative links only work below {target}");
        let proxy = format!("{NAMESPACED}/{target}/proxy");
        let (_, said) = cluster.request("GET", &format!("{proxy}/page"), JSON, "");
        assert_eq!(
            said,
            json!({"page": format!("<a href='{proxy}/x'>")}),
            "links stay in the proxy"
        );
    }
}
