//! Why a request did not succeed, and what a patch is made of.

use serde::Deserialize;

/// The part of a `metav1.Status` that a client acts on.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ApiStatus {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason, e.g. `NotFound`, `AlreadyExists`, `Conflict`, `Expired`.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// Why a request did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{what}")]
pub struct ClientError {
    /// What the server answered; `None` if there was no answer (transport, TLS, time-out, undecodable body).
    pub status: Option<ApiStatus>,
    /// What was tried, on what, and what came back.
    pub what: String,
}

impl ClientError {
    pub(super) fn transport(what: impl Into<String>) -> Self {
        Self {
            status: None,
            what: what.into(),
        }
    }

    /// The HTTP status code of the answer, 0 if there was none.
    pub fn code(&self) -> u16 {
        self.status.as_ref().map_or(0, |status| status.code)
    }

    /// 404.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// 409 because the object is there already.
    pub fn is_already_exists(&self) -> bool {
        self.status
            .as_ref()
            .is_some_and(|status| status.reason == "AlreadyExists")
    }

    /// 409 because another writer was faster.
    pub fn is_conflict(&self) -> bool {
        self.status
            .as_ref()
            .is_some_and(|status| status.code == 409 && status.reason != "AlreadyExists")
    }

    /// 410: the resource version asked for is compacted.
    pub fn is_gone(&self) -> bool {
        self.code() == 410
    }
}

/// The kinds of patch the API takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchKind {
    /// RFC 6902.
    Json,
    /// RFC 7396.
    Merge,
    /// Kubernetes' strategic merge patch.
    Strategic,
}

impl PatchKind {
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json-patch+json",
            Self::Merge => "application/merge-patch+json",
            Self::Strategic => "application/strategic-merge-patch+json",
        }
    }
}
