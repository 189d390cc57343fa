//! Validation of addresses and ranges of services, and of network policies (`pkg/apis/networking/validation`). Ingresses:
//! `ingress`.

use std::net::IpAddr;

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::is_path_segment;
use super::super::resource::NameRule;
use super::{Errors, has, immutable, list, meta, one_of, port_or_name, require, text};

const BAD_RANGE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

/// Validates an IPAddress: its name is the address, in the only way of writing it; its parent does not change.
pub(in super::super) fn ip_address(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::PathSegment, false);
    let name = text(&object["metadata"], "name");
    match name.parse::<IpAddr>() {
        Ok(ip) if ip.to_string() == name => {}
        Ok(ip) => {
            let detail = format!("not a valid IP in canonical format (should be {ip})");
            errors.push(FieldError::invalid("metadata.name", name, detail));
        }
        Err(_) => errors.push(FieldError::invalid(
            "metadata.name",
            name,
            "not a valid IP in canonical format",
        )),
    }
    let parent = &object["spec"]["parentRef"];
    if !has(&object["spec"], "parentRef") {
        errors.push(FieldError::required("spec.parentRef", ""));
    } else {
        for name in ["resource", "name"] {
            let path = format!("spec.parentRef.{name}");
            if require(parent, "spec.parentRef", name, &mut errors)
                && let Err(detail) = is_path_segment(text(parent, name))
            {
                errors.push(FieldError::invalid(path, text(parent, name), detail));
            }
        }
    }
    if let Some(old) = old {
        let path = "spec.parentRef";
        immutable(parent, &old["spec"]["parentRef"], path, &mut errors);
    }
    errors
}

/// Validates a ServiceCIDR: one range, or one of each family, that never change.
pub(in super::super) fn service_cidr(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, false);
    let ranges = list(&object["spec"], "cidrs");
    if let Some(old) = old {
        immutable(
            &object["spec"]["cidrs"],
            &old["spec"]["cidrs"],
            "spec.cidrs",
            &mut errors,
        );
        return errors;
    }
    if ranges.is_empty() {
        errors.push(FieldError::required("spec.cidrs", "at least one CIDR required"));
    } else if ranges.len() > 2 {
        let detail = "may only hold up to 2 values";
        errors.push(FieldError::invalid(
            "spec.cidrs",
            object["spec"]["cidrs"].clone(),
            detail,
        ));
    }
    let mut families = Vec::new();
    for (index, range) in ranges.iter().enumerate() {
        let path = format!("spec.cidrs[{index}]");
        let range = range.as_str().unwrap_or_default();
        families.extend(cidr(range, &path, &mut errors).map(|(base, _)| base.is_ipv4()));
    }
    if let [first, second] = families[..]
        && first == second
    {
        let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.push(FieldError::invalid(
            "spec.cidrs",
            object["spec"]["cidrs"].clone(),
            detail,
        ));
    }
    errors
}

/// A network in its only way of writing: no bits below the prefix.
fn cidr(text: &str, path: &str, errors: &mut Errors) -> Option<(IpAddr, u8)> {
    let parsed = text.split_once('/').and_then(|(base, prefix)| {
        let (base, prefix) = (base.parse::<IpAddr>().ok()?, prefix.parse::<u8>().ok()?);
        (prefix <= if base.is_ipv4() { 32 } else { 128 }).then_some((base, prefix))
    });
    let Some((base, prefix)) = parsed else {
        errors.push(FieldError::invalid(path, text, BAD_RANGE));
        return None;
    };
    let clean = match base {
        IpAddr::V4(ip) => ip.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0,
        IpAddr::V6(ip) => ip.to_bits().checked_shl(prefix.into()).unwrap_or(0) == 0,
    };
    if !clean {
        let detail = "must not have bits set beyond the prefix length";
        errors.push(FieldError::invalid(path, text, detail));
    }
    Some((base, prefix))
}

/// Validates a NetworkPolicy.
pub(in super::super) fn network_policy(object: &Value, old: Option<&Value>) -> Errors {
    let mut errors = meta::object(object, old, NameRule::Subdomain, true);
    let spec = &object["spec"];
    meta::label_selector(&spec["podSelector"], "spec.podSelector", &mut errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(spec, direction).iter().enumerate() {
            let path = format!("spec.{direction}[{index}]");
            for (index, port) in list(rule, "ports").iter().enumerate() {
                policy_port(port, &format!("{path}.ports[{index}]"), &mut errors);
            }
            for (index, peer) in list(rule, peers).iter().enumerate() {
                policy_peer(peer, &format!("{path}.{peers}[{index}]"), &mut errors);
            }
        }
    }
    let types = list(spec, "policyTypes");
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(
            "spec.policyTypes",
            spec["policyTypes"].clone(),
            detail,
        ));
        return errors;
    }
    for (index, kind) in types.iter().enumerate() {
        let kind = kind.as_str().unwrap_or_default();
        if !matches!(kind, "Ingress" | "Egress") {
            let path = format!("spec.policyTypes[{index}]");
            errors.push(FieldError::not_supported(path, kind, &["Egress", "Ingress"]));
        }
    }
    errors
}

fn policy_port(port: &Value, path: &str, errors: &mut Errors) {
    one_of(port, path, "protocol", super::service::PROTOCOLS, errors);
    if !has(port, "port") {
        if has(port, "endPort") {
            let detail = "may not be specified when `port` is not specified";
            errors.push(FieldError::invalid(
                format!("{path}.endPort"),
                port["endPort"].clone(),
                detail,
            ));
        }
        return;
    }
    port_or_name(&port["port"], format!("{path}.port"), errors);
    let Some(end) = port["endPort"].as_i64() else { return };
    let problem = match port["port"].as_i64() {
        None => "may not be specified when `port` is non-numeric".to_owned(),
        Some(begin) if end < begin => "must be greater than or equal to `port`".to_owned(),
        Some(_) if !(1..=65535).contains(&end) => super::PORT_RANGE.to_owned(),
        Some(_) => return,
    };
    errors.push(FieldError::invalid(format!("{path}.endPort"), end, problem));
}

fn policy_peer(peer: &Value, path: &str, errors: &mut Errors) {
    let mut given = 0;
    for name in ["podSelector", "namespaceSelector"] {
        if has(peer, name) {
            given += 1;
            meta::label_selector(&peer[name], &format!("{path}.{name}"), errors);
        }
    }
    if has(peer, "ipBlock") {
        if given > 0 {
            let detail = "may not be specified when a namespace or pod selector is";
            errors.push(FieldError::forbidden(path, detail));
        }
        given += 1;
        ip_block(&peer["ipBlock"], &format!("{path}.ipBlock"), errors);
    }
    if given == 0 {
        errors.push(FieldError::required(path, "must specify a peer"));
    }
}

fn ip_block(block: &Value, path: &str, errors: &mut Errors) {
    if !require(block, path, "cidr", errors) {
        return;
    }
    let Some((base, prefix)) = cidr(text(block, "cidr"), &format!("{path}.cidr"), errors) else {
        return;
    };
    for (index, except) in list(block, "except").iter().enumerate() {
        let (path, except) = (format!("{path}.except[{index}]"), except.as_str().unwrap_or_default());
        let Some((inner, longer)) = cidr(except, &path, errors) else {
            continue;
        };
        if longer <= prefix || !within(inner, base, prefix) {
            let detail = "must be a strict subset of `cidr`";
            errors.push(FieldError::invalid(path, except, detail));
        }
    }
}

fn within(ip: IpAddr, base: IpAddr, prefix: u8) -> bool {
    let shift = |bits: u32| bits.saturating_sub(prefix.into());
    match (ip, base) {
        (IpAddr::V4(ip), IpAddr::V4(base)) => {
            let top = |bits: u32| bits.checked_shr(shift(32)).unwrap_or(0);
            top(ip.to_bits()) == top(base.to_bits())
        }
        (IpAddr::V6(ip), IpAddr::V6(base)) => {
            let top = |bits: u128| bits.checked_shr(shift(128)).unwrap_or(0);
            top(ip.to_bits()) == top(base.to_bits())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn texts(errors: &Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_has_one_name_and_one_parent() {
        let address = |name: &str| {
            let object =
                json!({"metadata": {"name": name}, "spec": {"parentRef": {"resource": "services", "name": "a"}}});
            texts(&ip_address(&object, None))
        };
        assert!(address("10.96.0.1").is_empty() && address("2001:db8::1").is_empty());
        assert!(address("2001:db8:0::1")[0].contains("should be 2001:db8::1"));
        assert!(address("a")[0].contains("canonical"));
        let bare = json!({"metadata": {"name": "10.96.0.1"}, "spec": {}});
        assert_eq!(texts(&ip_address(&bare, None)), ["spec.parentRef: Required value"]);
    }

    #[test]
    fn ranges_are_one_or_one_of_each_family_and_stay() {
        let object = |ranges: Value| json!({"metadata": {"name": "r"}, "spec": {"cidrs": ranges}});
        let check = |ranges: Value| texts(&service_cidr(&object(ranges), None));
        assert!(check(json!(["10.0.0.0/24", "2001:db8::/64"])).is_empty());
        assert!(check(json!(["10.0.0.1/24"]))[0].contains("beyond the prefix"));
        assert!(check(json!(["10.0.0.0/24", "10.1.0.0/24"]))[0].contains("each IP family"));
        assert!(check(json!([]))[0].contains("at least one"));
        let (old, new) = (object(json!(["10.0.0.0/24"])), object(json!(["10.0.1.0/24"])));
        assert!(texts(&service_cidr(&new, Some(&old)))[0].contains("immutable"));
    }

    #[test]
    fn policies() {
        let check = |spec: Value| {
            texts(&network_policy(
                &json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec}),
                None,
            ))
        };
        assert!(check(json!({"podSelector": {}, "ingress": [{}]})).is_empty());
        let peer = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}});
        let port = json!({"port": 80, "endPort": 90, "protocol": "TCP"});
        assert!(check(json!({"podSelector": {}, "egress": [{"to": [peer], "ports": [port]}]})).is_empty());
        let outside = json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}});
        assert!(check(json!({"podSelector": {}, "egress": [{"to": [outside]}]}))[0].contains("strict subset"));
        let backwards = json!({"port": 80, "endPort": 70});
        assert!(check(json!({"podSelector": {}, "ingress": [{"ports": [backwards]}]}))[0].contains("greater"));
        assert!(check(json!({"podSelector": {}, "ingress": [{"from": [{}]}]}))[0].contains("must specify a peer"));
    }
}
