//! Create, update, patch, delete and deletecollection: decode the body, check its fields, call the registry.

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};

use super::body::{self, Response};
use super::negotiate;
use super::query::Params;
use super::{Api, Context, list_options, review, subresource};
use crate::registry::{
    DeleteOptions, Deleted, Patch, Propagation, Registry, Status, WriteOptions, scale_of, stamp_kind,
};
use crate::schema::{self, DecodeError, Encoding, Limits, Mode};

/// POST on a collection or a subresource.
///
/// # Errors
/// Those of decoding and of the registry.
pub async fn create(api: &Api, context: &Context, headers: &HeaderMap, bytes: &Bytes) -> Result<Response, Status> {
    let route = &context.route;
    let options = write_options(context)?;
    let object = decode(context, headers, bytes, &options)?;
    match route.sub() {
        Some(sub) => return subresource::create(api, context, sub, object, options).await,
        None if route.resource.key == "bindings" => {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            return subresource::bind(api, context, &name, &object, options).await;
        }
        None if !route.resource.storage => return review::answer(api, context, object).await,
        None => {}
    }
    let created = api
        .registry
        .create(&context.user, route.resource, &route.namespace, object, options)
        .await?;
    Ok(context.encoder(&api.registry)?.one(201, &created))
}

/// PUT.
///
/// # Errors
/// Those of decoding and of the registry.
pub async fn update(api: &Api, context: &Context, headers: &HeaderMap, bytes: &Bytes) -> Result<Response, Status> {
    let route = &context.route;
    let options = write_options(context)?;
    let object = decode(context, headers, bytes, &options)?;
    let registry = &api.registry;
    let missing = registry
        .cache()
        .get(route.resource.key, &route.namespace, &route.name)
        .is_none();
    let updated = registry
        .update(
            &context.user,
            route.resource,
            route.sub(),
            &route.namespace,
            &route.name,
            object,
            options,
        )
        .await?;
    written(registry, context, if missing { 201 } else { 200 }, &updated)
}

/// PATCH.
///
/// # Errors
/// 415 for a patch type that is not served; those of the registry.
pub async fn patch(api: &Api, context: &Context, headers: &HeaderMap, bytes: &Bytes) -> Result<Response, Status> {
    const SERVED: &str =
        "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
    let route = &context.route;
    let options = write_options(context)?;
    let kind: fn(Value) -> Patch = match negotiate::media_type(headers) {
        "application/json-patch+json" => Patch::Json,
        "application/merge-patch+json" => Patch::Merge,
        "application/strategic-merge-patch+json" => Patch::Strategic,
        "application/apply-patch+yaml" => {
            let message = format!("server-side apply is not served yet; send a patch of type {SERVED}");
            return Err(Status::new(415, "UnsupportedMediaType", message));
        }
        other => return Err(Status::unsupported_media_type(other, SERVED)),
    };
    let document = schema::decode(bytes, Encoding::Json, Limits::default()).map_err(|error| malformed(&error))?;
    let registry = &api.registry;
    let patched = registry
        .patch(
            &context.user,
            route.resource,
            route.sub(),
            &route.namespace,
            &route.name,
            kind(document.value),
            options,
        )
        .await?;
    written(registry, context, 200, &patched)
}

/// DELETE of one object.
///
/// # Errors
/// Those of decoding and of the registry.
pub async fn delete(api: &Api, context: &Context, headers: &HeaderMap, bytes: &Bytes) -> Result<Response, Status> {
    let route = &context.route;
    let options = delete_options(&context.params, headers, bytes)?;
    let deleted = api
        .registry
        .delete(&context.user, route.resource, &route.namespace, &route.name, options)
        .await?;
    match deleted {
        Deleted::Terminating(object) => Ok(context.encoder(&api.registry)?.one(200, &object)),
        Deleted::Gone(object) => {
            let details = json!({
                "name": &*object.name, "group": route.resource.group, "kind": route.resource.plural,
                "uid": &*object.index.uid,
            });
            Ok(body::value(200, &success(&details)))
        }
    }
}

/// DELETE of a collection.
///
/// # Errors
/// Those of decoding and of the registry.
pub async fn delete_collection(
    api: &Api,
    context: &Context,
    headers: &HeaderMap,
    bytes: &Bytes,
) -> Result<Response, Status> {
    let options = delete_options(&context.params, headers, bytes)?;
    let query = list_options::query(&context.route, &context.params)?;
    let registry = &api.registry;
    let items = registry
        .delete_collection(&context.user, context.route.resource, &query, options)
        .await?;
    let meta = super::encode::ListMeta {
        revision: registry.cache().revision(),
        ..Default::default()
    };
    Ok(context.encoder(registry)?.list(&meta, items))
}

/// The `Status` of a success.
pub fn success(details: &Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

fn written(
    registry: &Registry,
    context: &Context,
    code: u16,
    object: &crate::cache::Object,
) -> Result<Response, Status> {
    if context.route.sub() == Some("scale") {
        return Ok(body::value(code, &scale_of(&object.value())));
    }
    Ok(context.encoder(registry)?.one(code, object))
}

/// Decodes a body of the (sub)resource's type and checks its fields.
fn decode(context: &Context, headers: &HeaderMap, bytes: &Bytes, options: &WriteOptions) -> Result<Value, Status> {
    let encoding = negotiate::encoding(headers)?;
    let route = &context.route;
    let decoded = schema::decode(bytes, encoding, Limits::default()).map_err(|error| malformed(&error))?;
    let mut value = decoded.value;
    let (kind, version, type_name) = match route.subresource {
        Some(sub) => (sub.kind, sub.version, sub.type_name()),
        None => (route.resource.kind, route.resource.version, route.resource.type_name),
    };
    if route.subresource.is_none_or(|sub| sub.kind == route.resource.kind) {
        stamp_kind(route.resource, &mut value)?;
    } else if !value.is_object() {
        return Err(Status::bad_request("the object provided is not a JSON object"));
    }
    match schema::check_fields(type_name, &mut value, &decoded.duplicates, options.field_validation) {
        Ok(warnings) => warnings.into_iter().for_each(|warning| options.warnings.push(warning)),
        Err(error) => {
            return Err(Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
            )));
        }
    }
    Ok(value)
}

/// What a body that does not decode means to the client.
pub fn malformed(error: &DecodeError) -> Status {
    match error {
        DecodeError::TooLarge(limit) => Status::too_large(*limit),
        DecodeError::Malformed(what) => Status::bad_request(what.clone()),
    }
}

fn write_options(context: &Context) -> Result<WriteOptions, Status> {
    let params = &context.params;
    let field_validation = match params.text("fieldValidation") {
        "" | "Warn" => Mode::Warn,
        "Ignore" => Mode::Ignore,
        "Strict" => Mode::Strict,
        other => {
            return Err(unsupported(
                "fieldValidation",
                other,
                "\"\", \"Ignore\", \"Strict\", \"Warn\"",
            ));
        }
    };
    Ok(WriteOptions {
        dry_run: dry_run(params.all("dryRun"))?,
        field_validation,
        field_manager: params.text("fieldManager").to_owned(),
        warnings: context.warnings.clone(),
    })
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut dry = false;
    for value in values {
        match value {
            "All" => dry = true,
            "" => {}
            other => return Err(unsupported("dryRun", other, "\"All\"")),
        }
    }
    Ok(dry)
}

fn unsupported(parameter: &str, value: &str, supported: &str) -> Status {
    let message = format!(
        "CreateOptions.meta.k8s.io \"\" is invalid: {parameter}: Unsupported value: {value:?}: supported values: {supported}"
    );
    Status::new(422, "Invalid", message)
}

/// `DeleteOptions` from the body, else from the query string.
fn delete_options(params: &Params, headers: &HeaderMap, bytes: &Bytes) -> Result<DeleteOptions, Status> {
    let mut options = if bytes.is_empty() {
        json!({})
    } else {
        let encoding = negotiate::encoding(headers)?;
        let decoded = schema::decode(bytes, encoding, Limits::default()).map_err(|error| malformed(&error))?;
        check_delete_kind(&decoded.value)?;
        decoded.value
    };
    if options.get("gracePeriodSeconds").is_none()
        && let Some(seconds) = params.number("gracePeriodSeconds")?
    {
        options["gracePeriodSeconds"] = json!(seconds);
    }
    if options.get("propagationPolicy").is_none()
        && let Some(policy) = params.get("propagationPolicy")
    {
        options["propagationPolicy"] = json!(policy);
    }
    let dry = dry_run(params.all("dryRun"))? || dry_run(strings(&options["dryRun"]))?;
    parse_delete_options(&options, dry)
}

fn check_delete_kind(value: &Value) -> Result<(), Status> {
    if !value.is_object() {
        return Err(Status::bad_request("DeleteOptions is not a JSON object"));
    }
    match value["kind"].as_str() {
        None | Some("" | "DeleteOptions") => Ok(()),
        Some(other) => Err(Status::bad_request(format!("expected DeleteOptions, got {other:?}"))),
    }
}

/// `DeleteOptions` from its JSON form.
pub fn parse_delete_options(options: &Value, dry_run: bool) -> Result<DeleteOptions, Status> {
    let grace_period_seconds = match &options["gracePeriodSeconds"] {
        Value::Null => None,
        value => Some(
            value.as_i64().filter(|seconds| *seconds >= 0).ok_or_else(|| {
                Status::new(422, "Invalid", "DeleteOptions.meta.k8s.io \"\" is invalid: gracePeriodSeconds: Invalid value: must be a non-negative number")
            })?,
        ),
    };
    let propagation = match (
        options["propagationPolicy"].as_str(),
        options["orphanDependents"].as_bool(),
    ) {
        (None | Some(""), None) => None,
        (None | Some(""), Some(true)) | (Some("Orphan"), _) => Some(Propagation::Orphan),
        (None | Some(""), Some(false)) | (Some("Background"), _) => Some(Propagation::Background),
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (Some(other), _) => {
            return Err(unsupported(
                "propagationPolicy",
                other,
                "\"Background\", \"Foreground\", \"Orphan\"",
            ));
        }
    };
    let text = |pointer: &str| options.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    Ok(DeleteOptions {
        grace_period_seconds,
        propagation,
        uid: text("/preconditions/uid"),
        resource_version: text("/preconditions/resourceVersion"),
        dry_run,
    })
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}
