//! POSTs to subresources: binding, eviction, token.

use serde_json::{Value, json};

use super::body::{self, Response};
use super::write::{parse_delete_options, success};
use super::{Api, Context};
use crate::registry::{Binding, Status, WriteOptions};

/// Creates a subresource.
///
/// # Errors
/// Those of the registry; 404 if there is no such subresource to create.
pub async fn create(
    api: &Api,
    context: &Context,
    subresource: &str,
    object: Value,
    options: WriteOptions,
) -> Result<Response, Status> {
    let route = &context.route;
    match subresource {
        "binding" => bind(api, context, &route.name, &object, options).await,
        "eviction" => evict(api, context, &object, options.dry_run).await,
        "token" => {
            let issued = api.registry.request_token(
                &context.user,
                route.resource,
                &route.namespace,
                &route.name,
                object,
                options.dry_run,
            )?;
            Ok(body::value(201, &issued))
        }
        _ => Err(Status::no_route()),
    }
}

/// Binds a pod to the node a `Binding` names.
///
/// # Errors
/// 400 for a target that is no node; those of the registry.
pub async fn bind(
    api: &Api,
    context: &Context,
    pod: &str,
    binding: &Value,
    options: WriteOptions,
) -> Result<Response, Status> {
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    if node.is_empty() || !matches!(target["kind"].as_str(), None | Some("" | "Node")) {
        return Err(Status::bad_request("Binding: target must be the name of a Node"));
    }
    let metadata = &binding["metadata"];
    let wanted = Binding {
        node,
        uid: metadata["uid"].as_str(),
        annotations: Some(&metadata["annotations"]),
    };
    api.registry
        .bind(&context.user, &context.route.namespace, pod, &wanted, options)
        .await?;
    Ok(body::value(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

async fn evict(api: &Api, context: &Context, eviction: &Value, dry_run: bool) -> Result<Response, Status> {
    let dry_run = dry_run || eviction["deleteOptions"]["dryRun"] == json!(["All"]);
    let options = parse_delete_options(&eviction["deleteOptions"], dry_run)?;
    let route = &context.route;
    api.registry
        .evict(&context.user, &route.namespace, &route.name, options)
        .await?;
    Ok(body::value(201, &success(&json!({"name": route.name, "kind": "pods"}))))
}
