//! Discovery: which groups, versions and resources are served, in the old form, aggregated, and as OpenAPI.
//!
//! All of it is derived from the resource table. Spec: <https://kubernetes.io/docs/concepts/overview/kubernetes-api/>.

use http::{HeaderMap, HeaderValue, Method, header};
use serde_json::{Map, Value, json};

use super::body::{self, Response};
use super::negotiate::accepted;
use super::query::Params;
use crate::registry::Status;
use crate::schema::openapi::v2::Format;
use crate::schema::{self, Resource, openapi};

/// Media type of OpenAPI v2 in protobuf, and what client-go asks for it by.
const SWAGGER_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const SWAGGER_PROTOBUF_OLD: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// Answers a path that is no resource.
///
/// # Errors
/// 404, 405.
pub fn answer(method: &Method, path: &str, headers: &HeaderMap, params: &Params) -> Result<Response, Status> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return Err(Status::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ));
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        [] => Ok(body::value(200, &root())),
        ["api"] => Ok(aggregated(headers, true).unwrap_or_else(|| body::value(200, &core_versions()))),
        ["apis"] => Ok(aggregated(headers, false).unwrap_or_else(|| body::value(200, &group_list()))),
        ["api", version] => resource_list("", version),
        ["apis", group] => find_group(group)
            .map(|group| body::value(200, &group))
            .ok_or_else(Status::no_route),
        ["apis", group, version] => resource_list(group, version),
        ["openapi", "v2"] => swagger(headers),
        ["openapi", "v3"] => Ok(body::json(200, openapi::index())),
        ["openapi", "v3", rest @ ..] => openapi_document(&rest.join("/"), headers, params),
        _ => Err(Status::no_route()),
    }
}

/// Every group-version with a row, in table order.
fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for row in schema::resources() {
        if !found.contains(&(row.group, row.version)) {
            found.push((row.group, row.version));
        }
    }
    found
}

fn groups() -> Vec<&'static str> {
    let mut groups: Vec<&str> = group_versions().into_iter().map(|(group, _)| group).collect();
    groups.dedup();
    groups.retain(|group| !group.is_empty());
    groups
}

fn rows(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    schema::resources()
        .iter()
        .filter(move |row| row.group == group && row.version == version)
}

fn root() -> Value {
    let mut paths = vec!["/api".to_owned(), "/api/v1".to_owned(), "/apis".to_owned()];
    for (group, version) in group_versions().into_iter().filter(|(group, _)| !group.is_empty()) {
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/readyz",
            "/version",
        ]
        .map(str::to_owned),
    );
    json!({"paths": paths})
}

fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn group_list() -> Value {
    let groups: Vec<Value> = groups().into_iter().filter_map(find_group).map(without_kind).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn without_kind(mut group: Value) -> Value {
    if let Some(fields) = group.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    group
}

fn find_group(name: &str) -> Option<Value> {
    let versions: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(group, _)| !group.is_empty() && *group == name)
        .map(|(group, version)| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": preferred,
    }))
}

fn resource_list(group: &str, version: &str) -> Result<Response, Status> {
    let resources: Vec<Value> = rows(group, version).flat_map(describe).collect();
    if resources.is_empty() {
        return Err(Status::no_route());
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    let list =
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources});
    Ok(body::value(200, &list))
}

/// A resource and its subresources as `APIResource`s.
fn describe(row: &'static Resource) -> Vec<Value> {
    let mut main = json!({
        "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
        "verbs": row.verbs,
    });
    add_names(row, &mut main);
    let subs = row.subresources.iter().map(|sub| {
        let mut one = json!({
            "name": format!("{}/{}", row.plural, sub.name), "singularName": "", "namespaced": row.namespaced,
            "kind": sub.kind, "verbs": sub.verbs,
        });
        if (sub.group, sub.version) != (row.group, row.version) {
            one["group"] = json!(sub.group);
            one["version"] = json!(sub.version);
        }
        one
    });
    std::iter::once(main).chain(subs).collect()
}

fn add_names(row: &Resource, value: &mut Value) {
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
}

/// `APIGroupDiscoveryList`, if the client asks for it.
fn aggregated(headers: &HeaderMap, core: bool) -> Option<Response> {
    let version = accepted(headers).iter().find_map(|entry| {
        let asks = entry.media_type == "application/json"
            && entry.parameter("g") == Some("apidiscovery.k8s.io")
            && entry.parameter("as") == Some("APIGroupDiscoveryList");
        match entry.parameter("v").filter(|_| asks) {
            Some("v2") => Some(Some("v2")),
            Some("v2beta1") => Some(Some("v2beta1")),
            _ if entry.parameter("as").is_none() && entry.takes_json() => Some(None),
            _ => None,
        }
    })??;
    let served = group_versions()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core);
    let mut items: Vec<(&str, Vec<Value>)> = Vec::new();
    for (group, version) in served {
        let resources: Vec<Value> = rows(group, version).map(describe_aggregated).collect();
        let entry = json!({"version": version, "resources": resources, "freshness": "Current"});
        match items.iter_mut().find(|(name, _)| *name == group) {
            Some((_, versions)) => versions.push(entry),
            None => items.push((group, vec![entry])),
        }
    }
    let items: Vec<Value> = items
        .into_iter()
        .map(|(group, versions)| named_group(group, &versions))
        .collect();
    let list = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    });
    let media_type = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
    Some(body::respond(200, &media_type, body::full(list.to_string())))
}

fn named_group(group: &str, versions: &[Value]) -> Value {
    let mut metadata = Map::new();
    if !group.is_empty() {
        metadata.insert("name".into(), json!(group));
    }
    json!({"metadata": metadata, "versions": versions})
}

fn describe_aggregated(row: &'static Resource) -> Value {
    let subs: Vec<Value> = row
        .subresources
        .iter()
        .map(|sub| {
            json!({
                "subresource": sub.name, "verbs": sub.verbs,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
            })
        })
        .collect();
    let mut value = json!({
        "resource": row.plural, "singularResource": row.singular, "verbs": row.verbs,
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "responseKind": {"group": row.group, "version": row.version, "kind": row.kind},
    });
    if !subs.is_empty() {
        value["subresources"] = json!(subs);
    }
    add_names(row, &mut value);
    value
}

/// The OpenAPI v2 document as JSON or, under its old name with `@` or the new one, as protobuf.
fn swagger(headers: &HeaderMap) -> Result<Response, Status> {
    let format = accepted(headers)
        .iter()
        .find_map(|entry| match entry.media_type {
            SWAGGER_PROTOBUF | SWAGGER_PROTOBUF_OLD => Some(Format::Protobuf),
            _ if entry.takes_json() => Some(Format::Json),
            _ => None,
        })
        .ok_or_else(|| Status::not_acceptable(&format!("{}, {SWAGGER_PROTOBUF}", body::JSON)))?;
    let media_type = match format {
        Format::Json => body::JSON,
        Format::Protobuf => SWAGGER_PROTOBUF,
    };
    let document = openapi::v2::document(format);
    let etag = format!("\"{}\"", openapi::digest(&document));
    let mut response = if headers.get(header::IF_NONE_MATCH).is_some_and(|value| *value == *etag) {
        body::respond(304, media_type, body::full(""))
    } else {
        body::respond(200, media_type, body::full(document))
    };
    set(&mut response, header::ETAG, &etag);
    set(&mut response, header::VARY, "Accept");
    Ok(response)
}

fn openapi_document(path: &str, headers: &HeaderMap, params: &Params) -> Result<Response, Status> {
    let hash = openapi::hash(path).ok_or_else(Status::no_route)?;
    let etag = format!("\"{hash}\"");
    let asked = params.text("hash");
    if !asked.is_empty() && asked != hash {
        let mut moved = body::text(301, "");
        set(&mut moved, header::LOCATION, &format!("/openapi/v3/{path}?hash={hash}"));
        return Ok(moved);
    }
    let mut response = if headers.get(header::IF_NONE_MATCH).is_some_and(|value| *value == *etag) {
        body::json(304, "")
    } else {
        body::json(200, openapi::document(path).ok_or_else(Status::no_route)?)
    };
    set(&mut response, header::ETAG, &etag);
    if !asked.is_empty() {
        set(&mut response, header::CACHE_CONTROL, "public, immutable");
    }
    Ok(response)
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
