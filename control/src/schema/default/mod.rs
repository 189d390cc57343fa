//! placeholder
use serde_json::Value;
pub(super) fn nothing(_: &mut Value) {}
pub(super) fn namespace(_: &mut Value) {}
pub(super) fn namespace_create(_: &mut Value) {}
pub(super) fn namespace_update(_: &mut Value, _: &Value) {}
pub(super) fn node(_: &mut Value) {}
pub(super) fn secret(_: &mut Value) {}
macro_rules! m { ($m:ident: $($f:ident)*) => { pub(super) mod $m { use serde_json::Value; $(pub(in super::super) fn $f(_: &mut Value) {})* } } }
m!(pod: pod on_create pod_template);  m!(workload: deployment replica_set); m!(rbac: binding);
pub(super) mod service { use serde_json::Value; pub(in super::super) fn service(_: &mut Value) {} pub(in super::super) fn endpoints(_: &mut Value) {} pub(in super::super) fn endpoint_slice(_: &mut Value) {} pub(in super::super) fn on_update(_: &mut Value, _: &Value) {} }
