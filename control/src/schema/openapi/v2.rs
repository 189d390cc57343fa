//! OpenAPI v2 (Swagger): one document of everything served, derived from the v3 schemas and paths.
//!
//! kubectl reads it where v3 does not help: client-side validation of a `kind: List` and
//! `explain --output=plaintext-openapiv2`. Like kube-apiserver's it has no defaults and no unions: what may be a number
//! or text is a string. Built when asked for and not kept.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::super::resource::resources;
use super::{COMMON, TYPES_VERSION, Texts, component, descriptions, gnostic, path, push_member};

/// An encoding of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Swagger as everybody knows it.
    Json,
    /// gnostic's `openapi_v2.Document`, which client-go asks for.
    Protobuf,
}

/// The document at `/openapi/v2`.
pub fn document(format: Format) -> Bytes {
    match format {
        Format::Json => in_json().into(),
        Format::Protobuf => in_protobuf().into(),
    }
}

fn in_json() -> String {
    let info = json!({"title": "Kubernetes", "version": TYPES_VERSION});
    let mut out = format!("{{\"swagger\":\"2.0\",\"info\":{info},\"paths\":{{");
    let mut separator = "";
    each_path(|name, item| push_member(&mut out, &mut separator, name, item));
    out.push_str("},\"definitions\":{");
    separator = "";
    each_definition(|name, schema| push_member(&mut out, &mut separator, name, schema));
    out.push_str("}}");
    out
}

fn in_protobuf() -> Vec<u8> {
    let mut document = gnostic::Document::new("Kubernetes", TYPES_VERSION);
    each_path(|name, item| document.add_path(name, item));
    each_definition(|name, schema| document.add_definition(name, schema));
    document.finish()
}

fn each_path(mut take: impl FnMut(&str, &Value)) {
    for row in resources() {
        for (name, item) in path::paths(row) {
            take(&name, &path_item(item));
        }
    }
}

fn each_definition(mut take: impl FnMut(&str, &Value)) {
    let roots: BTreeSet<String> = resources()
        .iter()
        .flat_map(component::roots)
        .chain(COMMON.iter().map(|name| (*name).to_owned()))
        .collect();
    let reached = component::reach(roots);
    let source = descriptions();
    let texts = Texts::of(&source, &reached);
    for name in &reached {
        take(name, &schema(component::schema(name, &texts, ("", "v1"))));
    }
}

/// A v3 schema as v2.
fn schema(mut value: Value) -> Value {
    let Some(fields) = value.as_object_mut() else {
        return value;
    };
    fields.remove("default");
    if fields.remove("oneOf").is_some() {
        fields.insert("type".into(), "string".into());
    }
    if let Some(mut all) = fields.remove("allOf")
        && let Some(reference) = all.pointer_mut("/0/$ref")
    {
        fields.insert("$ref".into(), reference.take());
    }
    if let Some(Value::String(reference)) = fields.get_mut("$ref") {
        *reference = reference.replace("#/components/schemas/", "#/definitions/");
    }
    for word in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(word) {
            *inner = schema(inner.take());
        }
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        for property in properties.values_mut() {
            *property = schema(property.take());
        }
    }
    value
}

/// A v3 path item as v2.
fn path_item(mut item: Value) -> Value {
    for (word, value) in item.as_object_mut().into_iter().flatten() {
        *value = if word == "parameters" {
            parameters(value.take())
        } else {
            operation(value.take())
        };
    }
    item
}

/// Types of parameters stand beside their names.
fn parameters(mut list: Value) -> Value {
    for parameter in list.as_array_mut().into_iter().flatten() {
        if let Some(fields) = parameter.as_object_mut()
            && let Some(Value::Object(inner)) = fields.remove("schema")
        {
            fields.extend(inner);
        }
    }
    list
}

/// Bodies become a parameter, media types lists.
fn operation(mut value: Value) -> Value {
    let Some(fields) = value.as_object_mut() else {
        return value;
    };
    let given = fields.remove("parameters").unwrap_or_else(|| json!([]));
    let mut parameters = parameters(given);
    if let Some(mut body) = fields.remove("requestBody") {
        let (media_types, of) = content(&mut body);
        fields.insert("consumes".into(), media_types);
        let parameter = json!({"name": "body", "in": "body", "required": body["required"] == true, "schema": of});
        if let Some(list) = parameters.as_array_mut() {
            list.push(parameter);
        }
    }
    fields.insert("parameters".into(), parameters);
    let mut produces = json!([]);
    if let Some(Value::Object(responses)) = fields.get_mut("responses") {
        for response in responses.values_mut().filter(|one| one["content"].is_object()) {
            let (media_types, of) = content(response);
            produces = media_types;
            response["schema"] = of;
        }
    }
    fields.insert("produces".into(), produces);
    value
}

/// Takes a v3 `content` away: its media types, and the schema that they share.
fn content(of: &mut Value) -> (Value, Value) {
    let taken = of.as_object_mut().and_then(|fields| fields.remove("content"));
    let Some(Value::Object(content)) = taken else {
        return (json!([]), Value::Object(Map::new()));
    };
    let media_types: Vec<&String> = content.keys().collect();
    let media_types = json!(media_types);
    let first = content.into_iter().next();
    let shared = first.map_or(Value::Null, |(_, mut media)| media["schema"].take());
    (media_types, schema(shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed() -> Value {
        serde_json::from_slice(&document(Format::Json)).unwrap()
    }

    fn words(value: &Value, check: &impl Fn(&str, &Value)) {
        match value {
            Value::Object(fields) => fields.iter().for_each(|(word, value)| {
                check(word, value);
                words(value, check);
            }),
            Value::Array(items) => items.iter().for_each(|item| words(item, check)),
            _ => {}
        }
    }

    #[test]
    fn references_resolve_and_nothing_of_v3_is_left() {
        let document = parsed();
        words(&document["paths"], &|word, _| {
            assert!(!["content", "requestBody", "oneOf", "allOf"].contains(&word), "{word}");
        });
        words(&document, &|word, value| {
            if let ("$ref", Some(reference)) = (word, value.as_str()) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
        });
    }

    #[test]
    fn definitions_keep_kinds_and_merge_keys() {
        let document = parsed();
        let types = &document["definitions"];
        let gvk = json!([{"group": "apps", "version": "v1", "kind": "Deployment"}]);
        assert_eq!(
            types["io.k8s.api.apps.v1.Deployment"]["x-kubernetes-group-version-kind"],
            gvk
        );
        let containers = &types["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(
            containers["items"],
            json!({"$ref": "#/definitions/io.k8s.api.core.v1.Container"})
        );
        let either = &types["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
        assert_eq!(
            (&either["type"], &either["format"]),
            (&json!("string"), &json!("int-or-string"))
        );
    }

    #[test]
    fn operations_have_body_parameters_and_media_types() {
        let document = parsed();
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["consumes"].as_array().unwrap().len(), 3);
        let parameters = patch["parameters"].as_array().unwrap();
        assert_eq!(
            (&parameters[0]["name"], &parameters[0]["type"]),
            (&json!("dryRun"), &json!("string"))
        );
        let body = parameters.last().unwrap();
        assert_eq!(
            (&body["in"], &body["required"], &body["schema"]["$ref"]),
            (
                &json!("body"),
                &json!(true),
                &json!("#/definitions/io.k8s.apimachinery.pkg.apis.meta.v1.Patch")
            )
        );
        assert_eq!(
            patch["responses"]["200"]["schema"]["$ref"],
            "#/definitions/io.k8s.api.apps.v1.Deployment"
        );
    }
}
