//! What any request may meet: no credentials, no right, a panic (FAULTS 74).

mod node;

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

use super::body::BodyError;
use super::*;
use crate::auth::tokens::Tokens;
use crate::cache::Cache;
use crate::registry::{CreateOptions, Environment};
use crate::schema;
use crate::store::Memory;

/// A body that panics when it is read.
struct Bomb;

impl HttpBody for Bomb {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("boom")
    }
}

fn peer(user: &str, group: &str) -> Arc<Peer> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, user);
    params.distinguished_name.push(rcgen::DnType::OrganizationName, group);
    Arc::new(Peer {
        certificate: Some(params.self_signed(&key).unwrap().der().to_vec()),
    })
}

async fn api() -> Arc<Api> {
    let cache = Cache::open(Arc::new(Memory::default()), Arc::new(schema::Fields))
        .await
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("sa.key");
    std::fs::write(&key, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let tokens = Arc::new(Tokens::load(&key).unwrap());
    let authorizer = Arc::new(Authorizer::new(cache.clone()));
    let authenticator = Arc::new(Authenticator::new(cache.clone(), tokens.clone()));
    let range = "10.96.0.0/16".parse().unwrap();
    let registry = Arc::new(Registry::new(
        cache,
        authorizer.clone(),
        tokens,
        range,
        Environment::system(),
    ));
    let who = User {
        name: "test".into(),
        groups: vec!["system:masters".into()],
        ..User::default()
    };
    let namespaces = schema::by_key("namespaces").unwrap();
    let namespace = json!({"metadata": {"name": "default"}});
    registry
        .create(&who, namespaces, "", namespace, CreateOptions::default())
        .await
        .unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let (_, shutdown) = Shutdown::channel();
    Arc::new(Api::new(
        registry,
        authenticator,
        authorizer,
        {
            let tls = Arc::new(tls);
            NodeDialer::new(Arc::new(move || tls.clone()))
        },
        shutdown,
    ))
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request {
    let body = Full::new(body.into()).map_err(BodyError::new).boxed_unsync();
    http::Request::builder().method(method).uri(path).body(body).unwrap()
}

async fn call(api: &Arc<Api>, request: Request, peer: &Arc<Peer>) -> (u16, Value) {
    let response = api.clone().handle(request, peer.clone()).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, serde_json::from_slice(&bytes).unwrap_or_default())
}

#[tokio::test]
async fn a_panic_is_a_500_and_the_server_goes_on() {
    let api = api().await;
    let admin = peer("admin", "system:masters");
    let bomb = http::Request::post("/api/v1/namespaces/default/configmaps")
        .body(Bomb.map_err(BodyError::new).boxed_unsync())
        .unwrap();
    let (code, status) = call(&api, bomb, &admin).await;
    assert_eq!(
        (code, status["kind"].as_str(), status["code"].as_u64()),
        (500, Some("Status"), Some(500))
    );
    let good = request(
        "POST",
        "/api/v1/namespaces/default/configmaps",
        r#"{"metadata":{"name":"a"}}"#,
    );
    let (code, created) = call(&api, good, &admin).await;
    assert_eq!((code, created["kind"].as_str()), (201, Some("ConfigMap")));
}

#[tokio::test]
async fn anonymous_gets_health_and_version_only() {
    let api = api().await;
    let nobody = Arc::new(Peer::default());
    for (path, expected) in [
        ("/healthz", 200),
        ("/livez", 200),
        ("/readyz", 500),
        ("/version", 200),
        ("/api", 401),
        ("/metrics", 401),
        ("/api/v1/namespaces", 401),
        ("/openapi/v3", 401),
    ] {
        assert_eq!(
            call(&api, request("GET", path, ""), &nobody).await.0,
            expected,
            "{path}"
        );
    }
    api.set_ready();
    assert_eq!(call(&api, request("GET", "/readyz", ""), &nobody).await.0, 200);
}

#[tokio::test]
async fn without_a_right_the_refusal_reads_like_kubernetes() {
    let api = api().await;
    let jane = peer("jane", "dev");
    let cases = [
        (
            "GET",
            "/api/v1/namespaces/default/pods",
            r#"pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default""#,
        ),
        (
            "GET",
            "/api/v1/nodes",
            r#"nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope"#,
        ),
        (
            "PATCH",
            "/apis/apps/v1/namespaces/default/deployments/web/scale",
            r#"deployments.apps "web" is forbidden: User "jane" cannot patch resource "deployments/scale" in API group "apps" in the namespace "default""#,
        ),
        (
            "GET",
            "/metrics",
            r#"forbidden: User "jane" cannot get path "/metrics""#,
        ),
    ];
    for (method, path, expected) in cases {
        let (code, status) = call(&api, request(method, path, ""), &jane).await;
        assert_eq!((code, status["message"].as_str()), (403, Some(expected)));
    }
}

#[tokio::test]
async fn lists_page_through_one_state() {
    let api = api().await;
    let admin = peer("admin", "system:masters");
    for number in 0..5 {
        let body = json!({"metadata": {"name": format!("c{number}")}}).to_string();
        call(
            &api,
            request("POST", "/api/v1/namespaces/default/configmaps", body),
            &admin,
        )
        .await;
    }
    let path = "/api/v1/namespaces/default/configmaps?limit=2";
    let (_, first) = call(&api, request("GET", path, ""), &admin).await;
    assert_eq!(
        (
            first["items"].as_array().unwrap().len(),
            &first["metadata"]["remainingItemCount"]
        ),
        (2, &json!(3))
    );
    call(
        &api,
        request("DELETE", "/api/v1/namespaces/default/configmaps/c4", ""),
        &admin,
    )
    .await;
    let mut names = Vec::new();
    let mut page = first;
    loop {
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["metadata"]["name"].clone()),
        );
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        let next = format!("{path}&continue={token}");
        page = call(&api, request("GET", &next, ""), &admin).await.1;
    }
    assert_eq!(json!(names), json!(["c0", "c1", "c2", "c3", "c4"]));
    for (query, code) in [
        ("continue=nonsense", 400),
        ("limit=many", 400),
        ("resourceVersion=999999", 504),
        ("resourceVersion=old", 400),
        ("labelSelector=%3D%3D", 400),
        ("fieldSelector=spec.nothing%3Dx", 400),
    ] {
        let path = format!("/api/v1/namespaces/default/configmaps?{query}");
        let (got, status) = call(&api, request("GET", &path, ""), &admin).await;
        assert_eq!((got, status["kind"].as_str()), (code, Some("Status")), "{query}");
    }
}

#[tokio::test]
async fn a_write_with_an_old_revision_loses() {
    let api = api().await;
    let admin = peer("admin", "system:masters");
    let collection = "/api/v1/namespaces/default/configmaps";
    let one = format!("{collection}/a");
    let (_, made) = call(
        &api,
        request("POST", collection, r#"{"metadata":{"name":"a"}}"#),
        &admin,
    )
    .await;
    let mut mine = made.clone();
    mine["data"] = json!({"k": "mine"});
    let mut theirs = made;
    theirs["data"] = json!({"k": "theirs"});
    assert_eq!(call(&api, request("PUT", &one, mine.to_string()), &admin).await.0, 200);
    let (code, status) = call(&api, request("PUT", &one, theirs.to_string()), &admin).await;
    assert_eq!((code, status["reason"].as_str()), (409, Some("Conflict")));
    assert_eq!(
        call(&api, request("GET", &one, ""), &admin).await.1["data"]["k"],
        "mine"
    );
}

/// The events of a watch that ends by its time-out of one second.
async fn watched(api: &Arc<Api>, query: &str, peer: &Arc<Peer>) -> Vec<Value> {
    let path = format!("/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1&{query}");
    let response = api.clone().handle(request("GET", &path, ""), peer.clone()).await;
    assert_eq!(response.status(), 200, "{query}");
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn kinds(events: &[Value]) -> Vec<String> {
    let name = |event: &Value| event["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
    events
        .iter()
        .map(|event| format!("{} {}", event["type"].as_str().unwrap(), name(event)))
        .collect()
}

#[tokio::test]
async fn a_watch_resumes_without_gap_or_repetition() {
    let api = api().await;
    let admin = peer("admin", "system:masters");
    let collection = "/api/v1/namespaces/default/configmaps";
    for name in ["a", "b"] {
        let body = json!({"metadata": {"name": name, "labels": {"n": name}}}).to_string();
        call(&api, request("POST", collection, body), &admin).await;
    }
    let (_, list) = call(&api, request("GET", collection, ""), &admin).await;
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut patch = request(
        "PATCH",
        &format!("{collection}/a"),
        r#"{"metadata":{"labels":{"n":"b"}}}"#,
    );
    patch.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/merge-patch+json"),
    );
    assert_eq!(call(&api, patch, &admin).await.0, 200);
    call(&api, request("DELETE", &format!("{collection}/b"), ""), &admin).await;

    let resumed = format!("resourceVersion={revision}");
    assert_eq!(
        kinds(&watched(&api, &resumed, &admin).await),
        ["MODIFIED a", "DELETED b"]
    );
    let selected = format!("{resumed}&labelSelector=n%3Db");
    assert_eq!(kinds(&watched(&api, &selected, &admin).await), ["ADDED a", "DELETED b"]);
    assert_eq!(kinds(&watched(&api, "resourceVersion=0", &admin).await), ["ADDED a"]);
    let streamed = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let events = watched(&api, streamed, &admin).await;
    assert_eq!(kinds(&events), ["ADDED a", "BOOKMARK -", "BOOKMARK -"]);
    assert_eq!(
        events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn tables_name_their_columns() {
    let api = api().await;
    let admin = peer("admin", "system:masters");
    let mut asked = request("GET", "/api/v1/namespaces", "");
    let accept = HeaderValue::from_static("application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
    asked.headers_mut().insert(header::ACCEPT, accept);
    let (_, table) = call(&api, asked, &admin).await;
    let columns: Vec<&str> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        (table["kind"].as_str(), columns),
        (Some("Table"), vec!["Name", "Status", "Age"])
    );
    assert_eq!(table["rows"][0]["cells"][1], "Active");
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
}
