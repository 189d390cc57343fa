//! Registries for tests: docker's own on a loopback port, and a scripted one that misbehaves.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use hull_agent::image::Digest;
use serde_json::json;

/// docker-registry with an empty store; ends when dropped.
pub struct DockerRegistry {
    child: Child,
    pub address: String,
}

impl DockerRegistry {
    pub fn start(dir: &Path) -> Self {
        // Free now, and soon taken by the registry: nothing else here asks for ports by number.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.join("registry").display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is needed: apt-get install docker-registry");
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut lines = log.lines();
        let listening = lines
            .by_ref()
            .map_while(Result::ok)
            .any(|line| line.contains("listening on"));
        assert!(listening, "docker-registry did not start");
        // Its log must be read on, or it blocks.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// Copies an OCI archive into the registry.
    pub fn push(&self, archive: &Path, name: &str) {
        let output = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci-archive:{}", archive.display()))
            .arg(format!("docker://{}/{name}", self.address))
            .output()
            .expect("skopeo is needed: apt-get install skopeo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the scripted registry answers a path.
#[derive(Clone, Default)]
pub struct Answer {
    pub body: Vec<u8>,
    /// Close the connection after so many bytes of the body, for the first `times` requests.
    pub cut: Option<(usize, usize)>,
    /// Answer Range with the part.
    pub ranges: bool,
}

/// A registry of this process: paths and what they answer. Ends with the process.
pub struct Scripted {
    pub address: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// With `token`, everything needs that token, to be had from /token with name and password.
    pub fn start(token: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let registry = Self {
            address: address.clone(),
            answers: Arc::default(),
            requests: Arc::default(),
        };
        let (answers, requests) = (registry.answers.clone(), registry.requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answers, requests, address) = (answers.clone(), requests.clone(), address.clone());
                std::thread::spawn(move || serve(stream, &answers, &requests, token, &address));
            }
        });
        registry
    }

    pub fn set(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Serves an image `name:latest` of one layer; `change` may spoil what is served at its blob paths.
    pub fn serve_image(&self, name: &str, layer: &[u8], diff_id: &Digest) -> (String, String) {
        let config =
            json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
                .to_string();
        let descriptor = |bytes: &[u8]| json!({"digest": Digest::of(bytes), "size": bytes.len()});
        let manifest =
            json!({"schemaVersion": 2, "config": descriptor(config.as_bytes()), "layers": [descriptor(layer)]})
                .to_string();
        let blob = |bytes: &[u8]| format!("/v2/{name}/blobs/{}", Digest::of(bytes));
        let paths = (format!("/v2/{name}/manifests/latest"), blob(layer));
        self.set(
            &paths.0,
            Answer {
                body: manifest.into_bytes(),
                ..Answer::default()
            },
        );
        self.set(
            &blob(config.as_bytes()),
            Answer {
                body: config.clone().into_bytes(),
                ..Answer::default()
            },
        );
        self.set(
            &paths.1,
            Answer {
                body: layer.to_vec(),
                ranges: true,
                ..Answer::default()
            },
        );
        paths
    }

    /// The request lines seen, with Range and Authorization headers.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(
    mut stream: TcpStream,
    answers: &Mutex<HashMap<String, Answer>>,
    requests: &Mutex<Vec<String>>,
    token: Option<&str>,
    address: &str,
) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let found = headers
            .iter()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    };
    let path = first.split(' ').nth(1).unwrap_or("").to_owned();
    let (range, authorization) = (header("range"), header("authorization"));
    let seen = format!(
        "{path} {} {}",
        range.as_deref().unwrap_or("-"),
        authorization.as_deref().unwrap_or("-")
    );
    requests.lock().unwrap().push(seen);
    if let (Some(token), true) = (token, path.starts_with("/token")) {
        let granted = authorization.as_deref() == Some("Basic dXNlcjpwYXNz");
        let body = json!({"token": token}).to_string();
        let head = if granted { "200 OK" } else { "403 Forbidden" };
        let _ = write!(
            stream,
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        return;
    }
    if token.is_some_and(|token| authorization.as_deref() != Some(&format!("Bearer {token}"))) {
        let challenge = format!("Bearer realm=\"http://{address}/token\",service=\"test\",scope=\"repository:x:pull\"");
        let _ = write!(
            stream,
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        return;
    }
    let Some(mut answer) = answers.lock().unwrap().get(&path).cloned() else {
        let _ = write!(
            stream,
            "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnone"
        );
        return;
    };
    let from = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let from = from.filter(|_| answer.ranges);
    let body = &answer.body[from.unwrap_or(0)..];
    let length = body.len();
    let head = match from {
        Some(from) => format!(
            "206 Partial Content\r\nContent-Range: bytes {from}-{}/{}",
            answer.body.len() - 1,
            answer.body.len()
        ),
        None => "200 OK".to_owned(),
    };
    let sent = match &mut answer.cut {
        Some((bytes, times)) if *times > 0 => {
            *times -= 1;
            let sent = (*bytes).min(length);
            answers.lock().unwrap().get_mut(&path).unwrap().cut = answer.cut;
            sent
        }
        _ => length,
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    let _ = stream.write_all(&body[..sent]);
}
