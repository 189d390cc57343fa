//! The paths of a document: one item for each place a resource or subresource is served at.

use serde_json::{Map, Value, json};

use super::super::resource::{Resource, Subresource};
use super::super::types::type_for;
use super::component::reference;
use super::path_of;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
const ANSWERS: &[&str] = &["application/json", "application/yaml"];

/// Query parameters: name, type, what for.
const PRETTY: Parameter = ("pretty", "string", "If 'true', then the output is pretty printed.");
const DRY_RUN: Parameter = (
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. Valid values are: - All: all dry run stages will be processed",
);
const FIELD_MANAGER: Parameter = (
    "fieldManager",
    "string",
    "fieldManager is a name associated with the actor or entity that is making these changes.",
);
const FIELD_VALIDATION: Parameter = (
    "fieldValidation",
    "string",
    "fieldValidation instructs the server on how to handle objects in the request (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: Ignore, Warn, Strict.",
);
const FORCE: Parameter = ("force", "boolean", "Force is going to \"force\" Apply requests.");
const LIST_PARAMETERS: &[Parameter] = &[
    (
        "allowWatchBookmarks",
        "boolean",
        "allowWatchBookmarks requests watch events with type \"BOOKMARK\".",
    ),
    (
        "continue",
        "string",
        "The continue option should be set when retrieving more results from the server.",
    ),
    (
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields.",
    ),
    (
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels.",
    ),
    (
        "limit",
        "integer",
        "limit is a maximum number of responses to return for a list call.",
    ),
    (
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "resourceVersionMatch determines how resourceVersion is applied to list calls.",
    ),
    (
        "sendInitialEvents",
        "boolean",
        "`sendInitialEvents=true` may be set together with `watch=true`.",
    ),
    ("timeoutSeconds", "integer", "Timeout for the list/watch call."),
    ("watch", "boolean", "Watch for changes to the described resources."),
];
const DELETE_PARAMETERS: &[Parameter] = &[
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "The duration in seconds before the object should be deleted.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: please use the PropagationPolicy.",
    ),
    (
        "propagationPolicy",
        "string",
        "Whether and how garbage collection will be performed.",
    ),
];

type Parameter = (&'static str, &'static str, &'static str);

/// All path items of a row.
pub(super) fn paths(row: &'static Resource) -> Vec<(String, Value)> {
    let root = format!("/{}", path_of(row));
    let plural = row.plural;
    let collection = if row.namespaced {
        format!("{root}/namespaces/{{namespace}}/{plural}")
    } else {
        format!("{root}/{plural}")
    };
    let item = format!("{collection}/{{name}}");
    let mut paths = Vec::new();
    let on_collection = [("list", "get"), ("create", "post"), ("deletecollection", "delete")];
    paths.push((collection, path_item(row, &on_collection, row.namespaced, false)));
    if row.namespaced && row.has_verb("list") {
        paths.push((
            format!("{root}/{plural}"),
            path_item(row, &on_collection[..1], false, false),
        ));
    }
    let on_item = [
        ("get", "get"),
        ("update", "put"),
        ("patch", "patch"),
        ("delete", "delete"),
    ];
    if on_item.iter().any(|(verb, _)| row.has_verb(verb)) {
        paths.push((item.clone(), path_item(row, &on_item, row.namespaced, true)));
    }
    for sub in row.subresources {
        paths.push((format!("{item}/{}", sub.name), subresource_item(row, sub)));
    }
    paths
}

fn path_item(row: &Resource, verbs: &[(&str, &str)], in_namespace: bool, named: bool) -> Value {
    let mut fields = Map::new();
    for (verb, method) in verbs.iter().filter(|(verb, _)| row.has_verb(verb)) {
        fields.insert((*method).to_owned(), operation(row, verb, in_namespace));
    }
    fields.insert("parameters".into(), path_parameters(in_namespace, named));
    Value::Object(fields)
}

fn path_parameters(in_namespace: bool, named: bool) -> Value {
    let in_path = |name: &str, text: &str| {
        json!({"name": name, "in": "path", "description": text, "required": true,
            "schema": {"type": "string", "uniqueItems": true}})
    };
    let mut parameters = Vec::new();
    if named {
        parameters.push(in_path("name", "name of the object"));
    }
    if in_namespace {
        parameters.push(in_path(
            "namespace",
            "object name and auth scope, such as for teams and projects",
        ));
    }
    parameters.push(query(&PRETTY));
    Value::Array(parameters)
}

fn query((name, type_name, text): &Parameter) -> Value {
    json!({"name": name, "in": "query", "description": text, "schema": {"type": type_name, "uniqueItems": true}})
}

/// What a request of a verb has: parameters, and the type of its body.
fn request(verb: &str, type_name: &str) -> (Vec<Value>, Option<Value>) {
    let write = [DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION];
    let queries = |parameters: &[Parameter]| parameters.iter().map(query).collect::<Vec<_>>();
    let any = |name: &str| Some(json!({"content": {"*/*": {"schema": reference(name)}}, "required": true}));
    match verb {
        "create" | "update" => (queries(&write), any(type_name)),
        "patch" => {
            let schema = json!({"schema": reference(&format!("{META}.Patch"))});
            let content: Map<_, _> = PATCHES
                .iter()
                .map(|kind| ((*kind).to_owned(), schema.clone()))
                .collect();
            let parameters = queries(&[write[0], write[1], write[2], FORCE]);
            (parameters, Some(json!({"content": content, "required": true})))
        }
        "list" => (queries(LIST_PARAMETERS), None),
        "delete" | "deletecollection" => {
            let name = format!("{META}.DeleteOptions");
            let mut parameters = queries(DELETE_PARAMETERS);
            if verb == "deletecollection" {
                parameters.extend(queries(&LIST_PARAMETERS[1..8]));
            }
            (
                parameters,
                Some(json!({"content": {"*/*": {"schema": reference(&name)}}})),
            )
        }
        _ => (Vec::new(), None),
    }
}

fn operation(row: &Resource, verb: &str, in_namespace: bool) -> Value {
    let answer = match verb {
        "list" => type_for(row.group, row.version, &row.list_kind())
            .unwrap_or(row.type_name)
            .to_owned(),
        "delete" | "deletecollection" => format!("{META}.Status"),
        _ => row.type_name.to_owned(),
    };
    let kind = row.kind;
    let text = match verb {
        "list" => format!("list or watch objects of kind {kind}"),
        "create" => format!("create {} {kind}", article(kind)),
        "get" => format!("read the specified {kind}"),
        "update" => format!("replace the specified {kind}"),
        "patch" => format!("partially update the specified {kind}"),
        "delete" => format!("delete {} {kind}", article(kind)),
        _ => format!("delete collection of {kind}"),
    };
    let scope = if in_namespace { "Namespaced" } else { "" };
    let across = if row.namespaced && !in_namespace {
        "ForAllNamespaces"
    } else {
        ""
    };
    let id = format!("{}{}{scope}{kind}{across}", action_word(verb), tag(row, true));
    build(
        row,
        verb,
        &text,
        &id,
        request(verb, row.type_name),
        &answer,
        (row.group, row.version, kind),
    )
}

fn subresource_item(row: &Resource, sub: &Subresource) -> Value {
    let mut fields = Map::new();
    let type_name = sub.type_name();
    for verb in sub.verbs {
        let method = match *verb {
            "get" => "get",
            "update" => "put",
            "patch" => "patch",
            "delete" => "delete",
            _ => "post",
        };
        let text = format!("{verb} {} of the specified {}", sub.name, row.kind);
        let scope = if row.namespaced { "Namespaced" } else { "" };
        let mut name = sub.name.to_owned();
        name[..1].make_ascii_uppercase();
        let id = format!("{}{}{scope}{}{name}", action_word(verb), tag(row, true), row.kind);
        let streams = type_name.is_empty() || sub.name == "log";
        let (parameters, body) = if streams {
            (Vec::new(), None)
        } else {
            request(verb, type_name)
        };
        let answer = if streams { "" } else { type_name };
        let kind = (sub.group, sub.version, sub.kind);
        fields.insert(
            method.to_owned(),
            build(row, verb, &text, &id, (parameters, body), answer, kind),
        );
    }
    fields.insert("parameters".into(), path_parameters(row.namespaced, true));
    Value::Object(fields)
}

/// An operation; an empty answer is a stream of text.
fn build(
    row: &Resource,
    verb: &str,
    text: &str,
    id: &str,
    (parameters, body): (Vec<Value>, Option<Value>),
    answer: &str,
    (group, version, kind): (&str, &str, &str),
) -> Value {
    let content: Map<_, _> = if answer.is_empty() {
        Map::from_iter([("*/*".to_owned(), json!({"schema": {"type": "string"}}))])
    } else {
        ANSWERS
            .iter()
            .map(|media| ((*media).to_owned(), json!({"schema": reference(answer)})))
            .collect()
    };
    let mut responses =
        json!({"200": {"description": "OK", "content": content}, "401": {"description": "Unauthorized"}});
    if matches!(verb, "create" | "update" | "patch") && !answer.is_empty() {
        responses["201"] = json!({"description": "Created", "content": responses["200"]["content"]});
    }
    let action = match verb {
        "create" => "post",
        "update" => "put",
        verb => verb,
    };
    let mut operation = json!({
        "description": text,
        "operationId": id,
        "tags": [tag(row, false)],
        "responses": responses,
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
    });
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some(body) = body {
        operation["requestBody"] = body;
    }
    operation
}

fn article(kind: &str) -> &'static str {
    if kind.starts_with(['A', 'E', 'I', 'O', 'U']) {
        "an"
    } else {
        "a"
    }
}

fn action_word(verb: &str) -> &str {
    match verb {
        "get" => "read",
        "update" => "replace",
        "deletecollection" => "deleteCollection",
        verb => verb,
    }
}

/// `apps_v1`, or for operation ids `AppsV1`.
fn tag(row: &Resource, camel: bool) -> String {
    let group = row
        .group
        .split('.')
        .next()
        .filter(|group| !group.is_empty())
        .unwrap_or("core");
    if !camel {
        return format!("{group}_{}", row.version);
    }
    [group, row.version]
        .iter()
        .map(|word| word[..1].to_ascii_uppercase() + &word[1..])
        .collect()
}
