//! What every cluster has from its first second: namespaces, the `kubernetes` service, the default RBAC objects.
//!
//! Idempotent: on a restart nothing is written, except the endpoint of the service when the address has changed.

use std::net::SocketAddr;

use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::ServerError;
use crate::auth::{self, User};
use crate::registry::{CreateOptions, Registry, ServiceRanges, Status, WriteOptions};
use crate::schema::{self, Resource};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing.
pub(super) async fn run(
    registry: &Registry,
    service_ranges: ServiceRanges,
    advertise: SocketAddr,
    node_settings: Value,
) -> Result<(), ServerError> {
    let who = User {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into()],
        ..User::default()
    };
    let namespaces = NAMESPACES
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
    try_join_all(namespaces.map(|namespace| ensure(registry, &who, namespace, false))).await?;
    let mut objects: Vec<(Value, bool)> = vec![
        (service_cidr(service_ranges), false),
        (service(service_ranges), false),
        (endpoints(advertise), true),
        (endpoint_slice(advertise), true),
        (node_settings, true),
    ];
    objects.extend(auth::bootstrap().into_iter().map(|object| (object, false)));
    try_join_all(
        objects
            .into_iter()
            .map(|(object, update)| ensure(registry, &who, object, update)),
    )
    .await?;
    Ok(())
}

/// Creates the object; if it exists and `update` is set, makes it as given.
async fn ensure(registry: &Registry, who: &User, object: Value, update: bool) -> Result<(), ServerError> {
    let text = |pointer: &str| {
        object
            .pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (name, namespace) = (text("/metadata/name"), text("/metadata/namespace"));
    let failed = |status: Status| ServerError::Bootstrap {
        what: format!("{} {name}", text("/kind")),
        status,
    };
    let resource = row(&object).ok_or_else(|| failed(Status::no_route()))?;
    let exists = registry.cache().get(resource.key, &namespace, &name).is_some();
    let outcome = match (exists, update) {
        (true, false) => return Ok(()),
        (true, true) => {
            let options = WriteOptions::default();
            registry
                .update(who, resource, None, &namespace, &name, object.clone(), options)
                .await
        }
        (false, _) => {
            registry
                .create(who, resource, &namespace, object.clone(), CreateOptions::default())
                .await
        }
    };
    match outcome {
        Ok(_) => Ok(()),
        Err(status) if status.is_already_exists() => Ok(()),
        Err(status) => Err(failed(status)),
    }
}

fn row(object: &Value) -> Option<&'static Resource> {
    let version = object["apiVersion"].as_str()?;
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    schema::by_kind(group, version, object["kind"].as_str()?)
}

fn service(ranges: ServiceRanges) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": ranges.primary().nth(1).to_string(), "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
    })
}

fn service_cidr(ranges: ServiceRanges) -> Value {
    let ranges: Vec<String> = ranges.all().map(|range| range.to_string()).collect();
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ranges},
    })
}

fn endpoints(advertise: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
        },
        "subsets": [{
            "addresses": [{"ip": advertise.ip().to_string()}],
            "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
        }],
    })
}

fn endpoint_slice(advertise: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": if advertise.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": [{"addresses": [advertise.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": advertise.port(), "protocol": "TCP"}],
    })
}
