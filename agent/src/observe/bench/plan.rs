//! What shall be measured: the request of `hull bench service` to an agent, and its limits.
//!
//! The agent resolves the service itself: nobody can point its load at an address that is not a service's. Invariant:
//! a [`Request`] that passed [`Request::check`] is within every limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Longest measurement.
pub const DURATION_MAX: Duration = Duration::from_secs(120);
/// Shortest one: less says nothing.
pub const DURATION_MIN: Duration = Duration::from_millis(200);
/// Most clients at once.
pub const CONNECTIONS_MAX: u32 = 64;
/// Most operations a second.
pub const RATE_MAX: u32 = 20_000;
/// Largest request sent.
pub const PAYLOAD_MAX: usize = 64 << 10;
/// Operations a second unless told otherwise: light enough for anything that serves.
pub const DEFAULT_RATE: u32 = 200;
/// Clients that share the schedule of a rate: enough that a slow answer delays no other.
pub const DEFAULT_CONNECTIONS: u32 = 8;

/// A way to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The addresses of its ready pods, in turn.
    Pod,
    /// The service's own address.
    ClusterIp,
    /// The node's address and the service's node port.
    NodePort,
}

impl Path {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Path::Pod => "pod",
            Path::ClusterIp => "clusterip",
            Path::NodePort => "nodeport",
        }
    }
}

impl std::str::FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Path::Pod, Path::ClusterIp, Path::NodePort];
        let found = all.into_iter().find(|path| path.name() == text);
        found.ok_or_else(|| format!("{text:?} is no path: there are pod, clusterip and nodeport"))
    }
}

/// What is said on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Talk {
    /// Only connect.
    Connect,
    /// HTTP/1.1 GET of a path.
    Http(String),
    /// Bytes that come back as they were sent.
    Echo(String),
    /// Bytes that are answered with at least one.
    Raw(String),
}

/// When operations begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Schedule {
    /// So many a second, whatever the answers do; latency counts from when an operation was due.
    Rate(u32),
    /// Each client begins the next when it has finished one.
    Closed,
}

/// The body of `POST /observe/bench`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Namespace of the service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// Port, by name or number; the first one if absent.
    pub port: Option<String>,
    /// The paths to measure, in turn.
    pub paths: Vec<Path>,
    /// In whose network namespace: `namespace/pod`; the node's own if absent.
    pub pod: Option<String>,
    /// When operations begin.
    pub schedule: Schedule,
    /// Clients.
    pub connections: u32,
    /// How long all of it takes, in milliseconds.
    pub milliseconds: u64,
    /// What is said; by the port's appProtocol or name if absent.
    pub talk: Option<Talk>,
}

impl Request {
    /// Whether everything is within the limits.
    ///
    /// # Errors
    /// What is not, and the limit.
    pub fn check(&self) -> Result<(), String> {
        let duration = self.duration();
        if !(DURATION_MIN..=DURATION_MAX).contains(&duration) {
            return Err(format!(
                "a measurement takes {DURATION_MIN:?} to {DURATION_MAX:?}, not {duration:?}"
            ));
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections) {
            return Err(format!(
                "there may be 1 to {CONNECTIONS_MAX} connections, not {}",
                self.connections
            ));
        }
        if let Schedule::Rate(rate) = self.schedule
            && !(1..=RATE_MAX).contains(&rate)
        {
            return Err(format!("the rate may be 1 to {RATE_MAX} a second, not {rate}"));
        }
        let mut paths = self.paths.clone();
        paths.sort_unstable();
        paths.dedup();
        if paths.is_empty() || paths.len() != self.paths.len() {
            return Err("paths must be named, and each but once".to_owned());
        }
        match &self.talk {
            Some(Talk::Http(path))
                if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 127) =>
            {
                Err(format!(
                    "{path:?} is no HTTP path: it begins with a slash and has no spaces"
                ))
            }
            Some(Talk::Echo(text) | Talk::Raw(text)) if text.is_empty() => Err("the request is empty".to_owned()),
            Some(Talk::Http(text) | Talk::Echo(text) | Talk::Raw(text)) if text.len() > PAYLOAD_MAX => {
                Err(format!("a request may have {PAYLOAD_MAX} bytes, not {}", text.len()))
            }
            _ => Ok(()),
        }
    }

    /// How long all of it takes.
    #[must_use]
    pub fn duration(&self) -> Duration {
        Duration::from_millis(self.milliseconds)
    }
}

/// What is said on a port that says what it speaks: by `appProtocol`, else by its name (`http`, `http-admin`, `echo`).
#[must_use]
pub fn talk_of(app_protocol: Option<&str>, name: Option<&str>) -> Talk {
    let name = app_protocol.or(name).unwrap_or_default().to_ascii_lowercase();
    let word = name.rsplit('/').next().unwrap_or_default();
    match word.split(['-', '.']).next() {
        Some("http" | "web" | "www") => Talk::Http("/".to_owned()),
        Some("echo") => Talk::Echo("hull bench echo.".to_owned()),
        _ => Talk::Connect,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            namespace: "default".to_owned(),
            service: "web".to_owned(),
            port: None,
            paths: vec![Path::Pod, Path::ClusterIp],
            pod: None,
            schedule: Schedule::Rate(DEFAULT_RATE),
            connections: DEFAULT_CONNECTIONS,
            milliseconds: 10_000,
            talk: None,
        }
    }

    #[test]
    fn what_is_beyond_a_limit_is_refused_with_it() {
        assert_eq!(request().check(), Ok(()));
        let wrong: [fn(&mut Request); 8] = [
            |request| request.milliseconds = 0,
            |request| request.milliseconds = 3_600_000,
            |request| request.connections = 65,
            |request| request.schedule = Schedule::Rate(20_001),
            |request| request.paths.clear(),
            |request| request.paths.push(Path::Pod),
            |request| request.talk = Some(Talk::Http("/ HTTP/1.1\r\nx:".to_owned())),
            |request| request.talk = Some(Talk::Raw("x".repeat(PAYLOAD_MAX + 1))),
        ];
        for change in wrong {
            let mut request = request();
            change(&mut request);
            assert!(request.check().is_err(), "{request:?}");
        }
    }

    #[test]
    fn a_port_says_what_it_speaks() {
        let talk = |app, name| talk_of(app, name);
        assert_eq!(talk(None, Some("http-admin")), Talk::Http("/".to_owned()));
        assert_eq!(talk(Some("kubernetes.io/h2c"), Some("http")), Talk::Connect);
        assert_eq!(talk(Some("HTTP"), None), Talk::Http("/".to_owned()));
        assert!(matches!(talk(None, Some("echo")), Talk::Echo(_)));
        assert_eq!(talk(None, None), Talk::Connect);
    }
}
