//! placeholder
use serde_json::Value;
use super::error::FieldError;
pub(super) fn nothing(_: &Value, _: Option<&Value>) -> Vec<FieldError> { Vec::new() }
pub(super) fn metadata_only(_: &Value, _: Option<&Value>) -> Vec<FieldError> { Vec::new() }
macro_rules! m { ($m:ident: $($f:ident)*) => { pub(super) mod $m { use serde_json::Value; use super::super::error::FieldError; $(pub(in super::super) fn $f(_: &Value, _: Option<&Value>) -> Vec<FieldError> {Vec::new()})* } } }
m!(pod: pod binding); m!(service: service endpoints endpoint_slice); m!(workload: deployment replica_set pod_template); m!(rbac: cluster_role cluster_role_binding role role_binding);
m!(config: config_map secret); m!(node: event namespace node lease);
