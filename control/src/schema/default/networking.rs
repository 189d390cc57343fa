//! Defaults of the group networking.k8s.io.

use serde_json::{Value, json};

use super::{fill_text, items, member};

/// Defaults of a NetworkPolicy: ports are TCP, and without a type it is about what comes in, and about what goes out if it has
/// rules for that.
pub(in super::super) fn network_policy(object: &mut Value) {
    let Some(spec) = member(object, "spec") else { return };
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                fill_text(port, "protocol", "TCP");
            }
        }
    }
    let is_empty = |value: Option<&Value>| value.and_then(Value::as_array).is_none_or(Vec::is_empty);
    if is_empty(spec.get("policyTypes")) {
        let mut types = vec!["Ingress"];
        if !is_empty(spec.get("egress")) {
            types.push("Egress");
        }
        spec.insert("policyTypes".into(), json!(types));
    }
}

/// Defaults of an IngressClass: its parameters are the cluster's.
pub(in super::super) fn ingress_class(object: &mut Value) {
    let parameters = object.pointer_mut("/spec/parameters").and_then(Value::as_object_mut);
    if let Some(parameters) = parameters {
        fill_text(parameters, "scope", "Cluster");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_about_ingress_and_about_egress_if_it_says_so() {
        let types = |spec: Value| {
            let mut object = json!({"spec": spec});
            network_policy(&mut object);
            object["spec"]["policyTypes"].clone()
        };
        assert_eq!(types(json!({"podSelector": {}})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(types(json!({"policyTypes": ["Egress"]})), json!(["Egress"]));
        let mut object = json!({"spec": {"ingress": [{"ports": [{"port": 80}]}]}});
        network_policy(&mut object);
        assert_eq!(object["spec"]["ingress"][0]["ports"][0]["protocol"], "TCP");
    }
}
