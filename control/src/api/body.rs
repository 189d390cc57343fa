//! Bodies of requests and responses, and the few ways a response is made.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};

use crate::registry::Status;

/// The client's body broke off.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct BodyError(String);

impl BodyError {
    /// From whatever the transport says.
    pub fn new(error: impl std::error::Error) -> Self {
        Self(error.to_string())
    }
}

/// A request whose body may be of any origin.
pub type Request = http::Request<UnsyncBoxBody<Bytes, BodyError>>;
/// The body of a response.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;
/// A response.
pub type Response = http::Response<Body>;

/// Media type of almost everything served.
pub const JSON: &str = "application/json";

/// Largest body of a request, as Kubernetes has it.
pub const MAX_BODY: usize = 3 << 20;
/// How much, and how long, of a body that is too large is read and thrown away before it is refused.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// A body known in full.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A body made while it is sent.
pub fn streamed(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    BodyExt::boxed_unsync(StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))))
}

/// A response with a media type.
pub fn respond(code: u16, media_type: &str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Ok(value) = HeaderValue::from_str(media_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// A JSON response.
pub fn json(code: u16, body: impl Into<Bytes>) -> Response {
    respond(code, JSON, full(body))
}

/// A response of a JSON value.
pub fn value(code: u16, value: &serde_json::Value) -> Response {
    json(code, value.to_string())
}

/// Plain text.
pub fn text(code: u16, text: impl Into<Bytes>) -> Response {
    respond(code, "text/plain; charset=utf-8", full(text))
}

/// A refusal.
pub fn refusal(status: &Status) -> Response {
    let mut response = value(status.code, &status.to_value());
    if let Some(seconds) = status.details.as_ref().and_then(|details| details.retry_after) {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The whole body of a request.
///
/// What is too large is still read for a while, and thrown away: a client that is writing would meet a closed connection
/// and never see why.
///
/// # Errors
/// 413 if it is larger than [`MAX_BODY`], 400 if the client breaks off.
pub async fn collect(mut body: UnsyncBoxBody<Bytes, BodyError>) -> Result<Bytes, Status> {
    let mut collected = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| Status::bad_request(format!("the body of the request could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if collected.len() + data.len() > MAX_BODY {
            drop(collected);
            _ = tokio::time::timeout(DISCARD_TIME, discard(&mut body)).await;
            return Err(Status::too_large(MAX_BODY));
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.into())
}

async fn discard(body: &mut UnsyncBoxBody<Bytes, BodyError>) {
    let mut left = DISCARD_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}
