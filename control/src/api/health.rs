//! `/healthz`, `/livez`, `/readyz` and `/version`: the paths anyone may ask for.

use http::Method;
use serde_json::json;

use super::Api;
use super::body::{self, Response};
use super::query::Params;

/// The version of the API that is served, and ours.
pub const GIT_VERSION: &str = concat!("v1.37.0+hull.", env!("CARGO_PKG_VERSION"));

/// The answer, if the path is one of these.
pub fn answer(api: &Api, method: &Method, path: &str, params: &Params) -> Option<Response> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let (endpoint, check) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or((path.trim_start_matches('/'), ""));
    match (endpoint, check) {
        ("version", "") => Some(version()),
        ("healthz" | "livez", "" | "ping") => Some(health(endpoint, true, params)),
        ("readyz", "" | "ping") => Some(health(endpoint, api.is_ready(), params)),
        ("healthz" | "livez" | "readyz", _) => Some(body::text(404, "404 page not found\n")),
        _ => None,
    }
}

fn health(endpoint: &str, well: bool, params: &Params) -> Response {
    let verbose = params.flag("verbose") == Some(true);
    match (well, verbose) {
        (true, false) => body::text(200, "ok"),
        (true, true) => body::text(200, format!("[+]ping ok\n[+]store ok\n{endpoint} check passed\n")),
        (false, _) => body::text(
            500,
            format!("[+]ping ok\n[-]startup failed: still starting\n{endpoint} check failed\n"),
        ),
    }
}

fn version() -> Response {
    body::value(
        200,
        &json!({
            "major": "1",
            "minor": "37",
            "gitVersion": GIT_VERSION,
            "gitCommit": "",
            "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "",
            "compiler": "rustc",
            "platform": "linux/amd64",
        }),
    )
}
