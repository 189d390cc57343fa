//! What is asked of an API server, by the API's own verbs: each is one request; none is sent twice.

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::{Client, ClientError, PatchKind, REQUEST_TIMEOUT, Watch, answered, collect, take_items};
impl Client {
    /// GET of an object or a list.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.request(Method::GET, path, None, Bytes::new()).await
    }

    /// The items of a list.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn list(&self, path: &str) -> Result<Vec<Value>, ClientError> {
        Ok(take_items(&mut self.get(path).await?))
    }

    /// POST to a collection or a subresource.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value, ClientError> {
        self.request(Method::POST, path, Some("application/json"), encode(object))
            .await
    }

    /// PUT of an object.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn update(&self, path: &str, object: &Value) -> Result<Value, ClientError> {
        self.request(Method::PUT, path, Some("application/json"), encode(object))
            .await
    }

    /// PATCH of an object.
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn patch(&self, path: &str, kind: PatchKind, patch: &Value) -> Result<Value, ClientError> {
        self.request(Method::PATCH, path, Some(kind.content_type()), encode(patch))
            .await
    }

    /// DELETE with `DeleteOptions` (`Value::Null` for none).
    ///
    /// # Errors
    /// See [`Client::request`].
    pub async fn delete(&self, path: &str, options: &Value) -> Result<Value, ClientError> {
        if options.is_null() {
            return self.request(Method::DELETE, path, None, Bytes::new()).await;
        }
        self.request(Method::DELETE, path, Some("application/json"), encode(options))
            .await
    }

    /// Starts a watch: `path` with its query, `watch=true` included.
    ///
    /// # Errors
    /// No connection or an error status (410 when the resource version is too old).
    pub async fn watch(&self, path: &str) -> Result<Watch, ClientError> {
        let start = async {
            let response = self.send(Method::GET, path, None, Bytes::new()).await?;
            if response.status().is_success() {
                return Ok(Watch::new(response.into_body(), path));
            }
            let (status, bytes) = collect(response)
                .await
                .map_err(|e| ClientError::transport(format!("GET {path}: {e}")))?;
            Err(answered(&Method::GET, path, status, &bytes))
        };
        let late = || {
            ClientError::transport(format!(
                "watch {path} at {}: no answer within {REQUEST_TIMEOUT:?}",
                self.server()
            ))
        };
        tokio::time::timeout(REQUEST_TIMEOUT, start).await.map_err(|_| late())?
    }
}

fn encode(value: &Value) -> Bytes {
    Bytes::from(value.to_string())
}
