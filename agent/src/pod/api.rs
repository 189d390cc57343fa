//! The few calls of the Kubernetes API that the pod machinery makes, as a trait: real in production, in memory in
//! tests.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::{Client, ClientError, ListWatch, ListWatchEvent, PatchKind};

/// How many events of a followed collection wait for their reader.
const FOLLOW_QUEUE: usize = 64;

/// The result of a call.
pub type ApiResult = Result<Value, ClientError>;

/// What is needed of the API.
pub trait Api: Send + Sync + 'static {
    /// GET.
    fn get(&self, path: String) -> BoxFuture<'_, ApiResult>;
    /// POST.
    fn create(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult>;
    /// PUT.
    fn update(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult>;
    /// PATCH.
    fn patch(&self, path: String, kind: PatchKind, patch: Value) -> BoxFuture<'_, ApiResult>;
    /// DELETE with options.
    fn delete(&self, path: String, options: Value) -> BoxFuture<'_, ApiResult>;
    /// Follows a collection until the receiver is dropped.
    fn follow(&self, path: String, query: String) -> mpsc::Receiver<ListWatchEvent>;
}

impl Api for Client {
    fn get(&self, path: String) -> BoxFuture<'_, ApiResult> {
        async move { Client::get(self, &path).await }.boxed()
    }

    fn create(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult> {
        async move { Client::create(self, &path, &object).await }.boxed()
    }

    fn update(&self, path: String, object: Value) -> BoxFuture<'_, ApiResult> {
        async move { Client::update(self, &path, &object).await }.boxed()
    }

    fn patch(&self, path: String, kind: PatchKind, patch: Value) -> BoxFuture<'_, ApiResult> {
        async move { Client::patch(self, &path, kind, &patch).await }.boxed()
    }

    fn delete(&self, path: String, options: Value) -> BoxFuture<'_, ApiResult> {
        async move { Client::delete(self, &path, &options).await }.boxed()
    }

    fn follow(&self, path: String, query: String) -> mpsc::Receiver<ListWatchEvent> {
        let (sender, receiver) = mpsc::channel(FOLLOW_QUEUE);
        let mut list_watch = ListWatch::new(self.clone(), path, query);
        tokio::spawn(async move {
            loop {
                let event = tokio::select! {
                    event = list_watch.next() => event,
                    () = sender.closed() => return,
                };
                if sender.send(event).await.is_err() {
                    return;
                }
            }
        });
        receiver
    }
}

/// The path of a namespaced core object.
#[must_use]
pub fn path(namespace: &str, plural: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/{plural}/{name}")
}
