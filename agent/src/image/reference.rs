//! Names of images, normalised as docker does: `web` is `docker.io/library/web:latest`.
//!
//! The grammar is that of the distribution project's `reference` package. Shown to people, the defaults are left out again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::error::Error;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// Longest repository with its registry.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A normalised reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and perhaps port, `docker.io` by default.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path within the registry, with `library/` where docker.io implies it.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The manifest's digest, if the reference pins it.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What to ask a registry for: the digest, else the tag.
    pub fn version(&self) -> &str {
        self.digest
            .as_ref()
            .map(Digest::as_str)
            .or(self.tag())
            .unwrap_or(DEFAULT_TAG)
    }

    /// The same repository, pinned to this digest and nothing else.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// As people write it, without defaults.
    pub fn short(&self) -> String {
        let name = match self.registry.as_str() {
            DEFAULT_REGISTRY => self
                .repository
                .strip_prefix(DEFAULT_NAMESPACE)
                .unwrap_or(&self.repository)
                .to_owned(),
            registry => format!("{registry}/{}", self.repository),
        };
        self.with_version(name)
    }

    fn with_version(&self, mut name: String) -> String {
        if let Some(tag) = &self.tag {
            name.push(':');
            name.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            name.push('@');
            name.push_str(digest.as_str());
        }
        name
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.with_version(format!("{}/{}", self.registry, self.repository)))
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fail = |reason| Error::Reference {
            text: text.to_owned(),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| fail("the digest is malformed"))?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[path_start..].rfind(':') {
            Some(colon) => (&rest[..path_start + colon], Some(&rest[path_start + colon + 1..])),
            None => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fail("the tag is malformed"));
        }
        let (registry, repository) = split_registry(name);
        if !is_registry(registry) {
            return Err(fail("the registry is no host name"));
        }
        let repository = match (registry, repository.contains('/')) {
            (DEFAULT_REGISTRY, false) => format!("{DEFAULT_NAMESPACE}{repository}"),
            _ => repository.to_owned(),
        };
        if !repository.split('/').all(is_component) {
            return Err(fail("the name must be of lower-case letters, digits and single . _ -"));
        }
        if registry.len() + repository.len() > NAME_MAX {
            return Err(fail("the name is longer than 255 characters"));
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }
}

/// The first component is a registry if it looks like a host: a dot, a port, or localhost.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_REGISTRY, rest),
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DEFAULT_REGISTRY, name),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((v6, port)) => {
            let valid = v6.parse::<std::net::Ipv6Addr>().is_ok();
            (if valid { "v6" } else { "" }, port.strip_prefix(':'))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        edge(label.bytes().next())
            && edge(label.bytes().last())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first && text.len() <= TAG_MAX && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

/// Lower-case letters and digits, separated by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let edges = text.as_bytes().first().is_some_and(alphanumeric) && text.as_bytes().last().is_some_and(alphanumeric);
    let separator = |run: &[u8]| matches!(run, b"" | b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-');
    edges && text.as_bytes().split(alphanumeric).all(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_shown_short() {
        let hex = "0".repeat(64);
        for (given, full, short) in [
            ("web", "docker.io/library/web:latest", "web:latest"),
            ("web:1.0", "docker.io/library/web:1.0", "web:1.0"),
            ("docker.io/library/web", "docker.io/library/web:latest", "web:latest"),
            (
                "index.docker.io/team/web",
                "docker.io/team/web:latest",
                "team/web:latest",
            ),
            ("team/web:v_1-2.3", "docker.io/team/web:v_1-2.3", "team/web:v_1-2.3"),
            ("localhost/web", "localhost/web:latest", "localhost/web:latest"),
            ("localhost:5000/a/b:x", "localhost:5000/a/b:x", "localhost:5000/a/b:x"),
            (
                "127.0.0.1:5000/web",
                "127.0.0.1:5000/web:latest",
                "127.0.0.1:5000/web:latest",
            ),
            ("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest"),
            ("quay.io/x/y__z", "quay.io/x/y__z:latest", "quay.io/x/y__z:latest"),
            (
                &format!("web@sha256:{hex}"),
                &format!("docker.io/library/web@sha256:{hex}"),
                &format!("web@sha256:{hex}"),
            ),
            (
                &format!("web:1@sha256:{hex}"),
                &format!("docker.io/library/web:1@sha256:{hex}"),
                &format!("web:1@sha256:{hex}"),
            ),
        ] {
            let reference: Reference = given.parse().unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(reference.short(), short);
            assert_eq!(
                full.parse::<Reference>().unwrap(),
                reference,
                "normalising twice changes nothing"
            );
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        for bad in [
            "",
            "Web",
            "web:",
            "web:-x",
            "a//b",
            "/web",
            "web/",
            "-web",
            "web..x",
            "web___x",
            "../web",
            "web:t/x",
            "host.io:0/x",
            "host.io:70000/x",
            "-h.io/x",
            "[::g]/x",
            "web@sha256:12",
            "web@",
            "we b",
            "wéb",
            &long,
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = Digest::of(b"x");
        let reference: Reference = format!("web:1@{digest}").parse().unwrap();
        assert_eq!(reference.version(), digest.as_str());
        assert_eq!("web:1".parse::<Reference>().unwrap().version(), "1");
    }
}
