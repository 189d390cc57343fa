//! A control plane on a free port with a directory of its own, driven by the real kubectl or by raw HTTPS.
#![allow(dead_code, reason = "each test program uses its part")]

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hull_control::pki::PkiConfig;
use hull_control::server::{ControlConfig, Server};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::runtime::Runtime;

pub struct Cluster {
    runtime: Runtime,
    server: Option<Server>,
    directory: tempfile::TempDir,
    port: u16,
    config: ControlConfig,
}

impl Cluster {
    pub fn start() -> Self {
        Self::start_with(|_| ())
    }

    /// With settings changed from the usual ones.
    pub fn start_with(change: impl FnOnce(&mut ControlConfig)) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let directory = tempfile::tempdir().unwrap();
        let mut pki = PkiConfig::new("n1", &format!("https://127.0.0.1:{port}"));
        pki.ips = vec![[127, 0, 0, 1].into()];
        let (listen, advertise) = (([127, 0, 0, 1], port).into(), [192, 0, 2, 1].into());
        let mut config = ControlConfig::new(directory.path(), pki, listen, advertise);
        change(&mut config);
        let runtime = runtime();
        let server = runtime.block_on(Server::start(config.clone())).unwrap();
        Self {
            runtime,
            server: Some(server),
            directory,
            port,
            config,
        }
    }

    /// Stops the control plane and starts it again on what it has stored.
    pub fn restart(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
        // With the runtime goes whatever still holds the store.
        std::mem::replace(&mut self.runtime, runtime()).shutdown_timeout(Duration::from_secs(10));
        self.server = Some(self.runtime.block_on(Server::start(self.config.clone())).unwrap());
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    /// A TLS connection as the administrator, speaking HTTP/1.1.
    pub async fn connect(&self) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
        let tcp = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        tokio_rustls::TlsConnector::from(self.tls())
            .connect(name, tcp)
            .await
            .unwrap()
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs kubectl; its standard input is `input`.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str, environment: &[(&str, &str)]) -> Output {
        let mut child = Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.path().join("pki/admin.kubeconfig"))
            .args(arguments)
            .env("HOME", self.path())
            .env_remove("KUBECONFIG")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl must be installed (on PATH): these tests drive the API with the real client");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// Runs kubectl, which must succeed, and returns what it printed.
    pub fn kubectl(&self, line: &str) -> String {
        self.kubectl_in(line, "")
    }

    pub fn kubectl_in(&self, line: &str, input: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.kubectl_with(&arguments, input, &[]);
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        assert!(output.status.success(), "kubectl {line}: {err}\n{out}");
        out.into_owned()
    }

    /// Runs kubectl, which must fail, and returns its complaint.
    pub fn refused(&self, line: &str, input: &str) -> String {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = self.kubectl_with(&arguments, input, &[]);
        assert!(
            !output.status.success(),
            "kubectl {line} should fail: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// One raw HTTPS request as the administrator.
    pub fn request(&self, method: &str, path: &str, media_type: &str, body: impl Into<Bytes>) -> (u16, Value) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("content-type", media_type)
            .body(Full::new(body.into()))
            .unwrap();
        self.runtime.block_on(async {
            let tls = self.connect().await;
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
            tokio::spawn(connection);
            let response = sender.send_request(request).await.unwrap();
            let code = response.status().as_u16();
            let bytes = response.into_body().collect().await.unwrap().to_bytes();
            (code, serde_json::from_slice(&bytes).unwrap_or_default())
        })
    }

    fn tls(&self) -> Arc<rustls::ClientConfig> {
        let pki = self.path().join("pki");
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(pki.join("ca.crt")).unwrap())
            .unwrap();
        let chain = vec![CertificateDer::from_pem_file(pki.join("admin.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(pki.join("admin.key")).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}

/// The object that a request, which must succeed, answers with.
pub fn ask(cluster: &Cluster, method: &str, path: &str, body: &Value) -> Value {
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let (code, object) = cluster.request(method, path, kind, body);
    assert!((200..300).contains(&code), "{method} {path}: {code} {object}");
    object
}

/// Waits until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The items of a list.
pub fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}
