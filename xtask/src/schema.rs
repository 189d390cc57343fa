//! Generates the type table of control/src/schema from Kubernetes' published definitions.
//!
//! `cargo xtask schema --definitions FILE --pb DIR` reads the OpenAPI definitions as JSON schema (`_definitions.json` of
//! the PyPI package kubernetes-validate) and the prost structs of the crate k8s-pb (protobuf numbers), and writes
//! `types.txt` (the resident table; its grammar is in control/src/schema/types.rs) and `descriptions.gz`. The output is
//! deterministic and committed; building hull needs neither source. Another kind is served by naming it in [`ROOTS`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::Value;

/// The types hull must be able to read or describe; what they refer to, and their lists, follow by themselves.
const ROOTS: &[&str] = &[
    "io.k8s.api.apps.v1.Deployment",
    "io.k8s.api.apps.v1.ReplicaSet",
    "io.k8s.api.authentication.v1.SelfSubjectReview",
    "io.k8s.api.authentication.v1.TokenRequest",
    "io.k8s.api.authentication.v1.TokenReview",
    "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    "io.k8s.api.authorization.v1.SubjectAccessReview",
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.certificates.v1.CertificateSigningRequest",
    "io.k8s.api.coordination.v1.Lease",
    "io.k8s.api.core.v1.Binding",
    "io.k8s.api.core.v1.ConfigMap",
    "io.k8s.api.core.v1.Endpoints",
    "io.k8s.api.core.v1.Event",
    "io.k8s.api.core.v1.LimitRange",
    "io.k8s.api.core.v1.Namespace",
    "io.k8s.api.core.v1.Node",
    "io.k8s.api.core.v1.Pod",
    "io.k8s.api.core.v1.PodTemplate",
    "io.k8s.api.core.v1.ReplicationController",
    "io.k8s.api.core.v1.Secret",
    "io.k8s.api.core.v1.Service",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.discovery.v1.EndpointSlice",
    "io.k8s.api.events.v1.Event",
    "io.k8s.api.networking.v1.IPAddress",
    "io.k8s.api.networking.v1.Ingress",
    "io.k8s.api.networking.v1.IngressClass",
    "io.k8s.api.networking.v1.NetworkPolicy",
    "io.k8s.api.networking.v1.ServiceCIDR",
    "io.k8s.api.policy.v1.Eviction",
    "io.k8s.api.policy.v1.PodDisruptionBudget",
    "io.k8s.api.rbac.v1.ClusterRole",
    "io.k8s.api.rbac.v1.ClusterRoleBinding",
    "io.k8s.api.rbac.v1.Role",
    "io.k8s.api.rbac.v1.RoleBinding",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
    "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Condition",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Patch",
    "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
    "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent",
];

/// Types that are one value on the wire, with their short name in the table.
const PRIMITIVES: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "quantity"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.FieldsV1", "fields"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "microtime"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Patch", "raw"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "time"),
    ("io.k8s.apimachinery.pkg.runtime.RawExtension", "raw"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "intorstring"),
];

/// Optional scalars that are pointers in Go, so that an explicit zero means something. Neither source says so, and
/// protobuf sends zeros for the others too, so their zeros are dropped on decoding and these are kept.
const POINTERS: &[&str] = &[
    "activeDeadlineSeconds",
    "allocateLoadBalancerNodePorts",
    "allowPrivilegeEscalation",
    "allowed",
    "automountServiceAccountToken",
    "averageUtilization",
    "backoffLimit",
    "blockOwnerDeletion",
    "completions",
    "controller",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "enableServiceLinks",
    "expirationSeconds",
    "fsGroup",
    "gracePeriodSeconds",
    "hostUsers",
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "immutable",
    "leaseDurationSeconds",
    "leaseTransitions",
    "maxSkew",
    "minDomains",
    "minReplicas",
    "mode",
    "optional",
    "orphanDependents",
    "parallelism",
    "priority",
    "privileged",
    "progressDeadlineSeconds",
    "readOnlyRootFilesystem",
    "remainingItemCount",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "seconds",
    "serving",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "started",
    "suspend",
    "terminating",
    "terminationGracePeriodSeconds",
    "timeoutSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
];

/// Runs the generator with the arguments after `cargo xtask schema`.
pub fn run(arguments: &[String]) -> Result<()> {
    match arguments {
        [first, definitions, second, pb] if first == "--definitions" && second == "--pb" => {
            generate(Path::new(definitions), Path::new(pb))
        }
        _ => bail!("usage: cargo xtask schema --definitions FILE --pb DIR"),
    }
}

fn generate(definitions: &Path, pb: &Path) -> Result<()> {
    let out = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../control/src/schema"));
    let source = definitions.display();
    let text = fs::read_to_string(definitions).with_context(|| format!("reading the definitions {source}"))?;
    let document: Value = serde_json::from_str(&text).with_context(|| format!("{source} is not JSON"))?;
    let definitions = document["$defs"]
        .as_object()
        .context("the definitions have no object `$defs`")?;
    let messages = Messages::read(pb)?;
    let reached = reach(definitions)?;

    let mut types = String::new();
    let mut descriptions = String::new();
    for name in &reached {
        let definition = &definitions[*name];
        describe(name, definition, &mut descriptions)?;
        if primitive(name).is_none() {
            Table {
                definitions,
                messages: &messages,
            }
            .write_type(name, definition, &mut types)?;
        }
    }
    write(&out.join("types.txt"), types.as_bytes())?;
    let mut gzip = GzBuilder::new().write(Vec::new(), Compression::best());
    gzip.write_all(descriptions.as_bytes())?;
    write(&out.join("descriptions.gz"), &gzip.finish()?)?;
    println!("{} types written to {}", reached.len(), out.display());
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

type Definitions = serde_json::Map<String, Value>;

/// The roots, their lists and everything they refer to.
fn reach(definitions: &Definitions) -> Result<BTreeSet<&str>> {
    let mut queue: VecDeque<&str> = VecDeque::new();
    for root in ROOTS {
        let (root, _) = definitions
            .get_key_value(*root)
            .with_context(|| format!("no definition of {root}"))?;
        queue.push_back(root);
        queue.extend(
            definitions
                .get_key_value(&format!("{root}List"))
                .map(|(name, _)| name.as_str()),
        );
    }
    let mut reached = BTreeSet::new();
    while let Some(name) = queue.pop_front() {
        if reached.insert(name) {
            let definition = definitions
                .get(name)
                .with_context(|| format!("no definition of {name}"))?;
            references(definition, &mut queue);
        }
    }
    Ok(reached)
}

fn references<'a>(value: &'a Value, found: &mut VecDeque<&'a str>) {
    match value {
        Value::Object(fields) => {
            if let Some(target) = fields.get("$ref").and_then(Value::as_str) {
                found.push_back(referent(target));
            }
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn referent(target: &str) -> &str {
    target.rsplit('/').next().unwrap_or(target)
}

fn primitive(name: &str) -> Option<&'static str> {
    PRIMITIVES
        .iter()
        .find(|(full, _)| *full == name)
        .map(|(_, short)| *short)
}

/// Appends `type TAB field TAB "description"` lines; the type's own has an empty field.
fn describe(name: &str, definition: &Value, out: &mut String) -> Result<()> {
    if let Some(text) = definition.get("description") {
        writeln!(out, "{name}\t\t{text}")?;
    }
    for (field, property) in definition["properties"].as_object().into_iter().flatten() {
        if let Some(text) = property.get("description") {
            writeln!(out, "{name}\t{field}\t{text}")?;
        }
    }
    Ok(())
}

struct Table<'a> {
    definitions: &'a Definitions,
    messages: &'a Messages,
}

impl Table<'_> {
    fn write_type(&self, name: &str, definition: &Value, out: &mut String) -> Result<()> {
        write!(out, "{name}")?;
        if !name.starts_with("io.k8s.apimachinery.") {
            for gvk in definition["x-kubernetes-group-version-kind"]
                .as_array()
                .into_iter()
                .flatten()
            {
                let part = |key: &str| gvk[key].as_str().unwrap_or_default();
                write!(out, " {}/{}/{}", part("group"), part("version"), part("kind"))?;
            }
        }
        if definition["x-kubernetes-map-type"] == "atomic" {
            out.push_str(" atomic");
        }
        out.push('\n');
        let required: BTreeSet<_> = definition["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let properties = definition["properties"].as_object();
        let mut tags = self.messages.tags(
            name,
            properties.map(|map| map.keys().cloned().collect()).unwrap_or_default(),
        );
        for (field, property) in properties.into_iter().flatten() {
            let kind = self.kind(property).with_context(|| format!("{name}.{field}"))?;
            let tag = tags.remove(field).unwrap_or_else(|| "0".to_owned());
            write!(out, " {tag} {field} {kind}")?;
            if required.contains(field.as_str()) {
                out.push_str(" !");
            } else if POINTERS.contains(&field.as_str()) {
                out.push_str(" *");
            }
            write_rules(property, out)?;
            out.push('\n');
        }
        Ok(())
    }

    /// A property's type in the table's grammar.
    fn kind(&self, property: &Value) -> Result<String> {
        if let Some(target) = property["$ref"].as_str() {
            let name = referent(target);
            ensure!(self.definitions.contains_key(name), "refers to the unknown type {name}");
            return Ok(primitive(name).unwrap_or(name).to_owned());
        }
        if let Some(items) = property.get("items") {
            return Ok(format!("[]{}", self.kind(items)?));
        }
        if let Some(values) = property.get("additionalProperties") {
            return Ok(format!("{{}}{}", self.kind(values)?));
        }
        let format = property["format"].as_str();
        Ok(match (json_type(property), format) {
            (Some("string"), None) => "string",
            (Some("string"), Some("byte")) => "bytes",
            (Some("string"), Some("date-time")) => "time",
            (Some("integer"), Some("int32")) => "int32",
            (Some("integer"), _) => "int64",
            (Some("number"), _) => "double",
            (Some("boolean"), _) => "bool",
            (Some("object"), _) => "raw",
            other => bail!("has the type {other:?}, which the table has no word for"),
        }
        .to_owned())
    }
}

/// The JSON type, of a nullable union too.
fn json_type(property: &Value) -> Option<&str> {
    match &property["type"] {
        Value::String(name) => Some(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).find(|name| *name != "null"),
        _ => None,
    }
}

/// Appends how lists and maps are merged: ` patch=… key=… list=… keys=… atomic`.
fn write_rules(property: &Value, out: &mut String) -> Result<()> {
    for (extension, word) in [
        ("x-kubernetes-patch-strategy", "patch"),
        ("x-kubernetes-patch-merge-key", "key"),
        ("x-kubernetes-list-type", "list"),
    ] {
        if let Some(value) = property[extension].as_str() {
            write!(out, " {word}={value}")?;
        }
    }
    if let Some(keys) = property["x-kubernetes-list-map-keys"].as_array() {
        let keys: Vec<_> = keys.iter().filter_map(Value::as_str).collect();
        write!(out, " keys={}", keys.join(","))?;
    }
    if property["x-kubernetes-map-type"] == "atomic" {
        out.push_str(" atomic");
    }
    Ok(())
}

/// The prost structs: by `module path . name`, lower case, their fields.
struct Messages(HashMap<String, Vec<MessageField>>);

struct MessageField {
    /// Lower case, without underscores.
    name: String,
    tag: String,
    /// The message's struct in the same module, if the field is a single message.
    message: Option<String>,
}

impl Messages {
    fn read(dir: &Path) -> Result<Self> {
        let mut messages = HashMap::new();
        let mut pending = vec![dir.to_owned()];
        while let Some(path) = pending.pop() {
            for entry in fs::read_dir(&path).with_context(|| format!("listing {}", path.display()))? {
                let entry = entry?.path();
                if entry.is_dir() {
                    pending.push(entry);
                } else if entry.extension().is_some_and(|extension| extension == "rs") {
                    let module = entry
                        .parent()
                        .and_then(|parent| parent.strip_prefix(dir).ok())
                        .unwrap_or(Path::new(""));
                    let module = module.to_string_lossy().replace('/', ".");
                    parse_messages(&module, &fs::read_to_string(&entry)?, &mut messages);
                }
            }
        }
        ensure!(!messages.is_empty(), "no prost structs under {}", dir.display());
        Ok(Self(messages))
    }

    /// Protobuf numbers of the JSON fields: `3`, or `2.3` where Go inlines a message (field 2) in JSON.
    fn tags(&self, type_name: &str, fields: Vec<String>) -> BTreeMap<String, String> {
        let Some(message) = self.message(type_name) else {
            return BTreeMap::new();
        };
        let mut tags = BTreeMap::new();
        let module = type_name.rsplit_once('.').map(|(module, _)| module).unwrap_or_default();
        for field in fields {
            let wanted = field.replace(['-', '$'], "").to_lowercase();
            if let Some(found) = message.iter().find(|candidate| candidate.name == wanted) {
                tags.insert(field, found.tag.clone());
                continue;
            }
            let inlined = message.iter().find_map(|outer| {
                let inner = self.message(&format!("{module}.{}", outer.message.as_deref()?))?;
                let found = inner.iter().find(|candidate| candidate.name == wanted)?;
                Some(format!("{}.{}", outer.tag, found.tag))
            });
            match inlined {
                Some(tag) => drop(tags.insert(field, tag)),
                None if matches!(field.as_str(), "kind" | "apiVersion") => {}
                None => eprintln!("no protobuf number: {type_name}.{field}"),
            }
        }
        tags
    }

    fn message(&self, type_name: &str) -> Option<&Vec<MessageField>> {
        self.0.get(&type_name.strip_prefix("io.k8s.")?.to_lowercase())
    }
}

fn parse_messages(module: &str, source: &str, messages: &mut HashMap<String, Vec<MessageField>>) {
    let mut current: Option<String> = None;
    let mut attribute = String::new();
    for line in source.lines().map(str::trim) {
        if line.starts_with("///") {
            continue;
        }
        if let Some(name) = line
            .strip_prefix("pub struct ")
            .and_then(|rest| rest.split([' ', '{']).next())
        {
            let key = format!("{module}.{name}").to_lowercase();
            messages.insert(key.clone(), Vec::new());
            current = Some(key);
        } else if line.starts_with("#[prost(") || (!attribute.is_empty() && !attribute.contains(")]")) {
            attribute.push_str(line);
        } else if let (Some(key), Some(field)) = (&current, line.strip_prefix("pub "))
            && !attribute.is_empty()
        {
            let tag = attribute
                .split("tag = \"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .unwrap_or("0");
            let (name, rust_type) = field.split_once(':').unwrap_or((field, ""));
            let message = attribute
                .contains("(message, optional")
                .then(|| last_segment(rust_type));
            let name = name.trim_start_matches("r#").replace('_', "").to_lowercase();
            let fields = messages.entry(key.clone()).or_default();
            fields.push(MessageField {
                name,
                tag: tag.to_owned(),
                message,
            });
            attribute.clear();
        }
    }
}

/// `::core::option::Option<VolumeSource>,` → `VolumeSource`.
fn last_segment(rust_type: &str) -> String {
    let inner = rust_type.rsplit('<').next().unwrap_or(rust_type);
    let inner = inner.trim_end_matches([',', '>', ' ']);
    inner.rsplit("::").next().unwrap_or(inner).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_prost_structs() {
        let source = r#"
            /// pub struct Not {
            pub struct Volume {
                #[prost(string, optional, tag = "1")]
                pub r#name: ::core::option::Option<String>,
                #[prost(message, optional, tag = "2")]
                pub volume_source: ::core::option::Option<VolumeSource>,
            }
            pub struct VolumeSource {
                #[prost(message, optional, tag = "6")]
                pub secret: ::core::option::Option<SecretVolumeSource>,
            }"#;
        let mut messages = HashMap::new();
        parse_messages("api.core.v1", source, &mut messages);
        let tags = Messages(messages).tags("io.k8s.api.core.v1.Volume", vec!["name".into(), "secret".into()]);
        assert_eq!(tags["name"], "1");
        assert_eq!(tags["secret"], "2.6");
    }

    #[test]
    fn undoes_nullable_unions() {
        assert_eq!(
            json_type(&serde_json::json!({"type": ["integer", "null"]})),
            Some("integer")
        );
    }
}
