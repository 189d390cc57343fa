//! Watches: one of them, and a collection followed for ever.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::Value;

use super::{ApiStatus, Client, ClientError, MAX_ANSWER_BYTES, take_items};

/// First and last delay between attempts of a [`ListWatch`].
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What happened to a watched object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum WatchKind {
    /// Created, or began to match.
    Added,
    /// Changed.
    Modified,
    /// Deleted, or ceased to match.
    Deleted,
    /// Only carries a resource version.
    Bookmark,
    /// Carries a `Status`; the watch ends.
    Error,
}

/// One event of a watch.
#[derive(Clone, Debug, Deserialize)]
pub struct WatchEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: WatchKind,
    /// The object (a `Status` for errors).
    pub object: Value,
}

/// A running watch.
pub struct Watch {
    body: Incoming,
    buffer: BytesMut,
    path: String,
}

impl Watch {
    pub(super) fn new(body: Incoming, path: &str) -> Self {
        Self {
            body,
            buffer: BytesMut::new(),
            path: path.to_owned(),
        }
    }

    /// The next event; `None` when the server ended the watch.
    ///
    /// # Errors
    /// The connection broke, an event was not JSON, or the server sent an `ERROR` event (410 Expired among them).
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, ClientError> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                if line.trim_ascii().is_empty() {
                    continue;
                }
                return self.decode(&line).map(Some);
            }
            if self.buffer.len() > MAX_ANSWER_BYTES {
                return Err(ClientError::transport(format!(
                    "watch {}: an event of more than {MAX_ANSWER_BYTES} bytes",
                    self.path
                )));
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => return Err(ClientError::transport(format!("watch {}: {error}", self.path))),
            }
        }
    }

    fn decode(&self, line: &[u8]) -> Result<WatchEvent, ClientError> {
        let event: WatchEvent = serde_json::from_slice(line)
            .map_err(|e| ClientError::transport(format!("watch {}: not a watch event: {e}", self.path)))?;
        if event.kind != WatchKind::Error {
            return Ok(event);
        }
        let status: ApiStatus = serde_json::from_value(event.object).unwrap_or_default();
        let what = format!(
            "watch {}: the API server ended it: {} {}: {}",
            self.path, status.code, status.reason, status.message
        );
        Err(ClientError {
            status: Some(status),
            what,
        })
    }
}

/// What a [`ListWatch`] yields.
#[derive(Clone, Debug)]
pub enum ListWatchEvent {
    /// The whole state: at the start, and again whenever history was lost. Objects not in it are gone.
    Listed(Vec<Value>),
    /// An object was created or changed.
    Applied(Value),
    /// An object is gone; its last state.
    Deleted(Value),
}

/// Follows a collection for ever: list, watch from there, resume after a broken connection, list again after 410.
pub struct ListWatch {
    client: Client,
    path: String,
    query: String,
    watch: Option<Watch>,
    version: Option<String>,
    delay: Duration,
    pending: VecDeque<ListWatchEvent>,
}

impl ListWatch {
    /// Follows `path` (`/api/v1/pods`) with `query` (`fieldSelector=…`, may be empty), percent-encoded by the caller.
    pub fn new(client: Client, path: impl Into<String>, query: impl Into<String>) -> Self {
        Self {
            client,
            path: path.into(),
            query: query.into(),
            watch: None,
            version: None,
            delay: BACKOFF.0,
            pending: VecDeque::new(),
        }
    }

    /// The next event. Waits through failures, with a growing delay and a log line for each; safe to cancel.
    pub async fn next(&mut self) -> ListWatchEvent {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return event;
            }
            match self.step().await {
                Ok(()) => self.delay = BACKOFF.0,
                Err(error) => {
                    self.watch = None;
                    if error.is_gone() {
                        self.version = None;
                        continue;
                    }
                    tracing::warn!(path = self.path, %error, retry_in = ?self.delay, "following the API server");
                    tokio::time::sleep(self.delay).await;
                    self.delay = (self.delay * 2).min(BACKOFF.1);
                }
            }
        }
    }

    async fn step(&mut self) -> Result<(), ClientError> {
        let Some(version) = self.version.clone() else {
            let mut list = self.client.get(&self.url("resourceVersion=0")).await?;
            self.version = Some(list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned());
            self.pending.push_back(ListWatchEvent::Listed(take_items(&mut list)));
            return Ok(());
        };
        if self.watch.is_none() {
            let url = self.url(&format!(
                "watch=true&allowWatchBookmarks=true&resourceVersion={version}"
            ));
            self.watch = Some(self.client.watch(&url).await?);
        }
        let Some(watch) = self.watch.as_mut() else {
            return Ok(());
        };
        let Some(event) = watch.next().await? else {
            self.watch = None;
            return Ok(());
        };
        if let Some(version) = event.object["metadata"]["resourceVersion"].as_str() {
            self.version = Some(version.to_owned());
        }
        match event.kind {
            WatchKind::Added | WatchKind::Modified => self.pending.push_back(ListWatchEvent::Applied(event.object)),
            WatchKind::Deleted => self.pending.push_back(ListWatchEvent::Deleted(event.object)),
            WatchKind::Bookmark | WatchKind::Error => {}
        }
        Ok(())
    }

    fn url(&self, extra: &str) -> String {
        let joint = if self.query.is_empty() { "" } else { "&" };
        format!("{}?{}{joint}{extra}", self.path, self.query)
    }
}
