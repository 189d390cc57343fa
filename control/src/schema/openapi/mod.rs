//! OpenAPI v3, one document for each group-version, built from the resource table and the type table; and v2 from that.
//!
//! kubectl reads these for `explain`, for strategic merge keys in `apply`, and to learn whether the server validates
//! fields. A document is built when asked for and not kept: the index gives each a hash, under which clients cache it
//! for ever. Shapes follow what a Kubernetes API server publishes (kube-openapi's builder3).

mod component;
mod gnostic;
mod path;
pub mod v2;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::LazyLock;

use bytes::Bytes;
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::resource::{Resource, resources};

static DESCRIPTIONS: &[u8] = include_bytes!("../descriptions.gz");

/// Kubernetes' version whose types the table has.
const TYPES_VERSION: &str = "v1.37.0";

/// Types that every group-version's document has.
const COMMON: &[&str] = &[
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
];

/// Hash of every document, by path. Documents depend on nothing but the program, so this is computed once.
static HASHES: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let paths: BTreeSet<String> = resources().iter().map(path_of).collect();
    paths
        .into_iter()
        .filter_map(|path| Some((path.clone(), digest(&build(&path)?))))
        .collect()
});

/// The document at `/openapi/v3`: where each group-version's document is.
pub fn index() -> Bytes {
    let paths: serde_json::Map<String, Value> = HASHES
        .iter()
        .map(|(path, hash)| {
            (
                path.clone(),
                json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}),
            )
        })
        .collect();
    json!({ "paths": paths }).to_string().into()
}

/// The document at `/openapi/v3/<path>`, e.g. `api/v1`, `apis/apps/v1`; `None`: no such group-version.
pub fn document(path: &str) -> Option<Bytes> {
    build(path).map(Bytes::from)
}

/// The `hash` query parameter of that document, as in the index.
pub fn hash(path: &str) -> Option<String> {
    HASHES.get(path).cloned()
}

/// `api/v1` or `apis/apps/v1`.
fn path_of(resource: &Resource) -> String {
    match resource.group {
        "" => format!("api/{}", resource.version),
        group => format!("apis/{group}/{}", resource.version),
    }
}

/// What tells one document from another, in ETags and in the index.
pub fn digest(document: &[u8]) -> String {
    let digest = Sha256::digest(document);
    digest[..16].iter().map(|byte| format!("{byte:02X}")).collect()
}

/// Writes a document piece by piece, so that only one schema at a time is in memory as a tree.
fn build(path: &str) -> Option<Vec<u8>> {
    let rows: Vec<&'static Resource> = resources().iter().filter(|row| path_of(row) == path).collect();
    let first = rows.first()?;
    let mut out = String::from("{\"openapi\":\"3.0.0\",\"info\":{\"title\":\"Kubernetes\",\"version\":\"");
    out.push_str(TYPES_VERSION);
    out.push_str("\"},\"paths\":{");
    let mut roots: BTreeSet<String> = COMMON.iter().map(|name| (*name).to_owned()).collect();
    let mut separator = "";
    for row in &rows {
        roots.extend(component::roots(row));
        for (path, item) in path::paths(row) {
            push_member(&mut out, &mut separator, &path, &item);
        }
    }
    out.push_str("},\"components\":{\"schemas\":{");
    let reached = component::reach(roots);
    let texts = descriptions();
    let texts = Texts::of(&texts, &reached);
    separator = "";
    for name in &reached {
        let schema = component::schema(name, &texts, (first.group, first.version));
        push_member(&mut out, &mut separator, name, &schema);
    }
    out.push_str(
        "},\"securitySchemes\":{\"BearerToken\":{\"type\":\"apiKey\",\"name\":\"authorization\",\"in\":\"header\",",
    );
    out.push_str("\"description\":\"Bearer Token authentication\"}}}}");
    Some(out.into_bytes())
}

fn push_member(out: &mut String, separator: &mut &'static str, name: &str, value: &Value) {
    out.push_str(separator);
    out.push_str(&Value::from(name).to_string());
    out.push(':');
    out.push_str(&value.to_string());
    *separator = ",";
}

fn descriptions() -> String {
    let mut text = String::new();
    // It is compiled in, and a unit test reads it.
    let _ = GzDecoder::new(DESCRIPTIONS).read_to_string(&mut text);
    text
}

/// Descriptions by type and field; of the type itself under the empty field.
struct Texts<'a>(BTreeMap<(&'a str, &'a str), &'a str>);

impl<'a> Texts<'a> {
    /// Those of the given types, out of lines `type TAB field TAB "text"`.
    fn of(source: &'a str, types: &BTreeSet<String>) -> Self {
        let lines = source.lines().filter_map(|line| {
            let (name, rest) = line.split_once('\t')?;
            let (field, text) = rest.split_once('\t')?;
            types.contains(name).then_some(((name, field), text))
        });
        Texts(lines.collect())
    }

    fn get(&self, name: &str, field: &str) -> Option<Value> {
        serde_json::from_str(self.0.get(&(name, field))?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Value {
        serde_json::from_slice(&document(path).unwrap()).unwrap()
    }

    /// Every `$ref` in a document.
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_group_version_has_a_whole_document() {
        let index: Value = serde_json::from_slice(&index()).unwrap();
        for (path, place) in index["paths"].as_object().unwrap() {
            let bytes = document(path).unwrap();
            let url = format!("/openapi/v3/{path}?hash={}", digest(&bytes));
            assert_eq!(place["serverRelativeURL"], url.as_str());
            let document: Value = serde_json::from_slice(&bytes).unwrap();
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{path}: {reference}");
            }
        }
        assert!(document("apis/nonsense/v1").is_none());
    }

    #[test]
    fn kinds_are_found_by_group_version_kind_and_patches_say_what_they_take() {
        let document = parsed("apis/apps/v1");
        let schema = &document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"];
        let gvk = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        assert_eq!(schema["x-kubernetes-group-version-kind"], json!([gvk]));
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"], gvk);
        assert_eq!(patch["x-kubernetes-action"], "patch");
        let names: Vec<_> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
        assert!(document["paths"]["/apis/apps/v1/deployments"]["get"].is_object());
    }

    #[test]
    fn schemas_carry_merge_keys_descriptions_and_references() {
        let document = parsed("api/v1");
        let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
        let containers = &spec["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(
            containers["items"]["allOf"][0]["$ref"],
            "#/components/schemas/io.k8s.api.core.v1.Container"
        );
        assert!(
            containers["description"]
                .as_str()
                .unwrap()
                .starts_with("List of containers")
        );
        assert_eq!(spec["required"], json!(["containers"]));
        let port = &document["components"]["schemas"]["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"];
        assert_eq!((&port["default"], &port["type"]), (&json!("TCP"), &json!("string")));
        let eviction = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/eviction"]["post"];
        assert_eq!(eviction["x-kubernetes-group-version-kind"]["group"], "policy");
    }
}
