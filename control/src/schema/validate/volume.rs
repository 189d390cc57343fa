//! Validation of a pod's volumes.

use std::collections::HashSet;

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::is_label;
use super::container::{field_reference, relative_path};
use super::{Errors, has, invalid_if, list, one_of, require, text};

const MODE_RANGE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: &[&str] = &[
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
const DOWNWARD_FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Validates the volumes and gives their names.
pub(super) fn volumes<'a>(spec: &'a Value, path: &str, errors: &mut Errors) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        if require(volume, &path, "name", errors) {
            let name = text(volume, "name");
            invalid_if(is_label(name), format!("{path}.name"), name, errors);
            if !names.insert(name) {
                errors.push(FieldError::duplicate(format!("{path}.name"), name));
            }
        }
        source(volume, &path, errors);
    }
    names
}

/// Exactly one source, and that one valid.
fn source(volume: &Value, path: &str, errors: &mut Errors) {
    let sources: Vec<_> = volume
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, source)| *name != "name" && !source.is_null())
        .collect();
    if sources.is_empty() {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
    for (index, (name, source)) in sources.into_iter().enumerate() {
        let path = format!("{path}.{name}");
        if index > 0 {
            errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
            continue;
        }
        match name.as_str() {
            "emptyDir" => {
                let size = &source["sizeLimit"];
                if size.as_str().is_some_and(|size| size.starts_with('-')) {
                    errors.push(FieldError::forbidden(
                        format!("{path}.sizeLimit"),
                        "SizeLimit field must be a valid resource quantity",
                    ));
                }
            }
            "hostPath" => host_path(source, &path, errors),
            "secret" => {
                require(source, &path, "secretName", errors);
                keys_to_paths(source, &path, errors);
            }
            "configMap" => {
                require(source, &path, "name", errors);
                keys_to_paths(source, &path, errors);
            }
            "downwardAPI" => downward(source, &path, errors),
            "projected" => projected(source, &path, errors),
            "persistentVolumeClaim" => drop(require(source, &path, "claimName", errors)),
            "nfs" => {
                require(source, &path, "server", errors);
                if require(source, &path, "path", errors) && !text(source, "path").starts_with('/') {
                    errors.push(FieldError::invalid(
                        format!("{path}.path"),
                        text(source, "path"),
                        "must be an absolute path",
                    ));
                }
            }
            "csi" => drop(require(source, &path, "driver", errors)),
            "image" => one_of(
                source,
                &path,
                "pullPolicy",
                &["Always", "IfNotPresent", "Never"],
                errors,
            ),
            _ => {}
        }
    }
}

fn host_path(source: &Value, path: &str, errors: &mut Errors) {
    if require(source, path, "path", errors) && text(source, "path").split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(
            format!("{path}.path"),
            text(source, "path"),
            "must not contain '..'",
        ));
    }
    one_of(source, path, "type", HOST_PATH_TYPES, errors);
}

fn mode(object: &Value, path: &str, name: &str, errors: &mut Errors) {
    if let Some(mode) = object[name].as_i64().filter(|mode| !(0..=0o777).contains(mode)) {
        errors.push(FieldError::invalid(format!("{path}.{name}"), mode, MODE_RANGE));
    }
}

fn keys_to_paths(source: &Value, path: &str, errors: &mut Errors) {
    mode(source, path, "defaultMode", errors);
    for (index, item) in list(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        require(item, &path, "key", errors);
        item_path(item, &path, errors);
    }
}

/// Where an item is put, below the mount.
fn item_path(item: &Value, path: &str, errors: &mut Errors) {
    mode(item, path, "mode", errors);
    if require(item, path, "path", errors) {
        let field = format!("{path}.path");
        relative_path(text(item, "path"), &field, errors);
        if text(item, "path").starts_with("..") && !text(item, "path").starts_with("../") {
            errors.push(FieldError::invalid(
                field,
                text(item, "path"),
                "must not start with '..'",
            ));
        }
    }
}

fn downward(source: &Value, path: &str, errors: &mut Errors) {
    mode(source, path, "defaultMode", errors);
    for (index, item) in list(source, "items").iter().enumerate() {
        let path = format!("{path}.items[{index}]");
        item_path(item, &path, errors);
        match (has(item, "fieldRef"), has(item, "resourceFieldRef")) {
            (true, true) => errors.push(FieldError::invalid(
                path,
                "resource",
                "fieldRef and resourceFieldRef can not be specified simultaneously",
            )),
            (false, false) => errors.push(FieldError::required(
                path,
                "one of fieldRef and resourceFieldRef is required",
            )),
            (true, false) => field_reference(&item["fieldRef"], &format!("{path}.fieldRef"), DOWNWARD_FIELDS, errors),
            (false, true) => drop(require(
                &item["resourceFieldRef"],
                &format!("{path}.resourceFieldRef"),
                "resource",
                errors,
            )),
        }
    }
}

fn projected(source: &Value, path: &str, errors: &mut Errors) {
    mode(source, path, "defaultMode", errors);
    for (index, projection) in list(source, "sources").iter().enumerate() {
        let path = format!("{path}.sources[{index}]");
        let given = projection
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, source)| !source.is_null());
        for (count, (name, source)) in given.enumerate() {
            let path = format!("{path}.{name}");
            if count > 0 {
                errors.push(FieldError::forbidden(path, "may not specify more than 1 volume type"));
                continue;
            }
            match name.as_str() {
                "secret" | "configMap" => {
                    require(source, &path, "name", errors);
                    keys_to_paths(source, &path, errors);
                }
                "downwardAPI" => downward(source, &path, errors),
                "serviceAccountToken" => token(source, &path, errors),
                _ => {}
            }
        }
    }
}

fn token(source: &Value, path: &str, errors: &mut Errors) {
    if source["expirationSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds < 600)
    {
        let field = format!("{path}.expirationSeconds");
        errors.push(FieldError::invalid(
            field,
            source["expirationSeconds"].clone(),
            "may not specify a duration less than 10 minutes",
        ));
    }
    if require(source, path, "path", errors) {
        relative_path(text(source, "path"), &format!("{path}.path"), errors);
    }
}
