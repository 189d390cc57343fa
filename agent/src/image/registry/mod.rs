//! Pull from registries: the OCI distribution API over HTTP/1.1, with the TLS and HTTP that the agent has anyway.
//!
//! http.rs one request; auth.rs challenges and tokens; pull.rs an image. Whatever arrives is checked against the digest and
//! size that were announced before it is used.

mod auth;
mod http;
mod pull;

use std::path::PathBuf;

pub use auth::Credentials;

/// Settings for registries.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    /// Registries (host, or host:port) to be spoken to without TLS. Loopback addresses always are.
    pub plain_http: Vec<String>,
    /// Further certificate authorities, PEM, beside those of the system.
    pub ca_files: Vec<PathBuf>,
}

impl Registries {
    /// Whether this registry is spoken to without TLS.
    fn is_plain(&self, registry: &str) -> bool {
        let host = host_of(registry);
        let loopback = host == "localhost"
            || host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| address.is_loopback());
        loopback || self.plain_http.iter().any(|plain| plain == registry || plain == host)
    }
}

/// Without port and brackets.
fn host_of(authority: &str) -> &str {
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, _)) => v6,
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    }
}

/// Where images of docker.io are.
fn endpoint(registry: &str) -> &str {
    if registry == "docker.io" {
        "registry-1.docker.io"
    } else {
        registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_configured_registries_are_plain() {
        let registries = Registries {
            plain_http: vec!["lab:5000".into(), "inner".into()],
            ca_files: Vec::new(),
        };
        for plain in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.8.0.1",
            "[::1]:5000",
            "lab:5000",
            "inner:80",
        ] {
            assert!(registries.is_plain(plain), "{plain}");
        }
        for tls in [
            "docker.io",
            "lab",
            "lab:5001",
            "10.0.0.1:5000",
            "localhost.example.org",
            "[::2]:5000",
        ] {
            assert!(!registries.is_plain(tls), "{tls}");
        }
    }
}
