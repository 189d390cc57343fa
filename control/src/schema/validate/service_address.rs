//! Validation of a service's addresses: cluster IPs, families, external IPs, those of its load balancer.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::Value;

use super::super::error::FieldError;
use super::super::name::is_subdomain;
use super::endpoint::endpoint_address;
use super::service::BAD_ADDRESS;
use super::{Errors, has, invalid_if, list, one_of, text};

const FAMILIES: &[&str] = &["IPv4", "IPv6"];
const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
const MODES: &[&str] = &["Proxy", "VIP"];
const FINAL: &str = "may not change once set";

/// Validates everything about the addresses of a Service.
pub(super) fn service(object: &Value, old: Option<&Value>, errors: &mut Errors) {
    let spec = &object["spec"];
    if text(spec, "type") != "ExternalName" {
        first_matches(spec, errors);
        families(spec, errors);
        cluster_ips(spec, errors);
        if let Some(old) = old
            .map(|old| &old["spec"])
            .filter(|old| text(old, "type") != "ExternalName")
        {
            unchanged(spec, old, errors);
        }
    }
    for (index, address) in list(spec, "externalIPs").iter().enumerate() {
        let address = address.as_str().unwrap_or_default();
        endpoint_address(address, &format!("spec.externalIPs[{index}]"), errors);
    }
    balancer_status(object, errors);
}

/// Whether clients see the pods' own addresses.
pub(super) fn is_headless(spec: &Value) -> bool {
    text(spec, "clusterIP") == "None"
}

fn first_matches(spec: &Value, errors: &mut Errors) {
    let (first, all) = (text(spec, "clusterIP"), list(spec, "clusterIPs"));
    let path = "spec.clusterIPs";
    match all.first().and_then(Value::as_str) {
        None if !first.is_empty() => errors.push(FieldError::required(path, "")),
        Some(_) if first.is_empty() => errors.push(FieldError::invalid(
            path,
            spec["clusterIPs"].clone(),
            "must be empty when `clusterIP` is not specified",
        )),
        Some(listed) if listed != first => errors.push(FieldError::invalid(
            path,
            spec["clusterIPs"].clone(),
            "first value must match `clusterIP`",
        )),
        _ => {}
    }
}

fn families(spec: &Value, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (index, family) in list(spec, "ipFamilies").iter().enumerate() {
        let (path, family) = (format!("spec.ipFamilies[{index}]"), family.as_str().unwrap_or_default());
        if !FAMILIES.contains(&family) {
            errors.push(FieldError::not_supported(path.as_str(), family, FAMILIES));
        }
        if !seen.insert(family) {
            errors.push(FieldError::duplicate(path, family));
        }
    }
    one_of(spec, "spec", "ipFamilyPolicy", POLICIES, errors);
}

fn cluster_ips(spec: &Value, errors: &mut Errors) {
    let path = "spec.clusterIPs";
    let all: Vec<&str> = list(spec, "clusterIPs").iter().filter_map(Value::as_str).collect();
    let invalid = |detail: &str| FieldError::invalid(path, spec["clusterIPs"].clone(), detail);
    let mut bad = false;
    for (index, address) in all.iter().enumerate() {
        if index == 0 && *address == "None" {
            if all.len() > 1 {
                bad = true;
                errors.push(invalid("'None' must be the first and only value"));
            }
        } else if address.parse::<IpAddr>().is_err() {
            bad = true;
            errors.push(FieldError::invalid(format!("{path}[{index}]"), *address, BAD_ADDRESS));
        }
    }
    if all.len() > 2 {
        errors.push(invalid("may only hold up to 2 values"));
    }
    if bad || is_headless(spec) {
        return;
    }
    let versions: Vec<bool> = all.iter().map(|address| !address.contains(':')).collect();
    if all.len() > 1 && versions.iter().collect::<HashSet<_>>().len() != all.len() {
        errors.push(invalid("may specify no more than one IP for each IP family"));
    }
    let listed = list(spec, "ipFamilies").iter().filter_map(Value::as_str);
    for (index, ((address, is_ipv4), family)) in all.iter().zip(versions).zip(listed).enumerate() {
        if FAMILIES.contains(&family) && is_ipv4 != (family == "IPv4") {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(format!("{path}[{index}]"), *address, detail));
        }
    }
}

/// What a service has been given stays. A second address or family may come, and go with the policy: see
/// `registry::service::families`.
fn unchanged(new: &Value, old: &Value, errors: &mut Errors) {
    let (was, is) = (is_headless(old), is_headless(new));
    if was && is {
        return;
    }
    let (before, now) = (list(old, "clusterIPs"), list(new, "clusterIPs"));
    let path = |index: usize| format!("spec.clusterIPs[{index}]");
    if now.is_empty() && !before.is_empty() {
        let detail = "primary clusterIP can not be unset";
        errors.push(FieldError::invalid(path(0), new["clusterIPs"].clone(), detail));
    }
    let compared = if before.len() == now.len() { now.len() } else { 1 };
    for (index, (now, before)) in now.iter().zip(before).take(compared).enumerate() {
        if now != before {
            errors.push(FieldError::invalid(path(index), new["clusterIPs"].clone(), FINAL));
        }
    }
    if was != is {
        return;
    }
    let (before, now) = (list(old, "ipFamilies"), list(new, "ipFamilies"));
    let compared = if before.len() == now.len() { now.len() } else { 1 };
    if now.iter().zip(before).take(compared).any(|(now, before)| now != before) {
        errors.push(FieldError::invalid(
            "spec.ipFamilies[0]",
            new["ipFamilies"].clone(),
            FINAL,
        ));
    }
}

fn balancer_status(object: &Value, errors: &mut Errors) {
    let ingress = list(&object["status"]["loadBalancer"], "ingress");
    let path = "status.loadBalancer.ingress";
    if !ingress.is_empty() && text(&object["spec"], "type") != "LoadBalancer" {
        let detail = "may only be used when `spec.type` is 'LoadBalancer'";
        errors.push(FieldError::forbidden(path, detail));
        return;
    }
    for (index, one) in ingress.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let (address, hostname) = (text(one, "ip"), text(one, "hostname"));
        if address.is_empty() {
            if has(one, "ipMode") {
                let detail = "may not be specified when `ip` is not set";
                errors.push(FieldError::forbidden(format!("{path}.ipMode"), detail));
            }
        } else {
            if address.parse::<IpAddr>().is_err() {
                errors.push(FieldError::invalid(format!("{path}.ip"), address, BAD_ADDRESS));
            }
            if !has(one, "ipMode") {
                let detail = "must be specified when `ip` is set";
                errors.push(FieldError::required(format!("{path}.ipMode"), detail));
            }
        }
        one_of(one, &path, "ipMode", MODES, errors);
        if !hostname.is_empty() {
            let path = format!("{path}.hostname");
            invalid_if(is_subdomain(hostname), path.as_str(), hostname, errors);
            if hostname.parse::<IpAddr>().is_ok() {
                errors.push(FieldError::invalid(
                    path,
                    hostname,
                    "must be a DNS name, not an IP address",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(object: Value, old: Option<Value>) -> Vec<String> {
        let mut errors = Vec::new();
        service(&object, old.as_ref(), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    fn spec(spec: Value) -> Value {
        json!({"spec": spec})
    }

    #[test]
    fn cluster_ips_and_families_agree() {
        assert_eq!(
            check(
                spec(
                    json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]})
                ),
                None
            ),
            [] as [&str; 0]
        );
        assert_eq!(
            check(
                spec(
                    json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "10.96.0.2"], "ipFamilies": ["IPv6", "IPv6"]})
                ),
                None
            ),
            [
                "spec.ipFamilies[1]: Duplicate value: \"IPv6\"",
                "spec.clusterIPs: Invalid value: [\"10.96.0.1\",\"10.96.0.2\"]: may specify no more than one IP for each IP family",
                "spec.clusterIPs[0]: Invalid value: \"10.96.0.1\": expected an IPv6 value as indicated by `ipFamilies[0]`",
                "spec.clusterIPs[1]: Invalid value: \"10.96.0.2\": expected an IPv6 value as indicated by `ipFamilies[1]`",
            ]
        );
        assert_eq!(
            check(
                spec(json!({"clusterIP": "None", "clusterIPs": ["None", "10.96.0.2"]})),
                None
            ),
            ["spec.clusterIPs: Invalid value: [\"None\",\"10.96.0.2\"]: 'None' must be the first and only value"]
        );
        assert_eq!(
            check(spec(json!({"clusterIPs": ["10.96.0.2"]})), None),
            ["spec.clusterIPs: Invalid value: [\"10.96.0.2\"]: must be empty when `clusterIP` is not specified"]
        );
    }

    #[test]
    fn what_was_given_stays() {
        let single =
            |address: &str| spec(json!({"clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"]}));
        let dual = spec(
            json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}),
        );
        assert_eq!(check(dual.clone(), Some(single("10.96.0.1"))), [] as [&str; 0]);
        assert_eq!(check(single("10.96.0.1"), Some(dual)), [] as [&str; 0]);
        for other in ["10.96.0.2", "None"] {
            assert_eq!(
                check(single(other), Some(single("10.96.0.1"))),
                [format!(
                    "spec.clusterIPs[0]: Invalid value: [\"{other}\"]: may not change once set"
                )]
            );
        }
        let external = spec(json!({"type": "ExternalName", "externalName": "a.b"}));
        assert_eq!(check(single("10.96.0.2"), Some(external)), [] as [&str; 0]);
    }

    #[test]
    fn addresses_outside() {
        assert_eq!(
            check(
                spec(json!({"externalIPs": ["192.0.2.1", "127.0.0.1", "x", "0.0.0.0"]})),
                None
            )
            .iter()
            .map(|error| error.split(": ").next().unwrap())
            .collect::<Vec<_>>(),
            ["spec.externalIPs[1]", "spec.externalIPs[2]", "spec.externalIPs[3]"]
        );
        let with = |kind: &str, ingress: Value| {
            check(
                json!({"spec": {"type": kind}, "status": {"loadBalancer": {"ingress": [ingress]}}}),
                None,
            )
        };
        assert_eq!(
            with("LoadBalancer", json!({"ip": "192.0.2.1", "ipMode": "VIP"})),
            [] as [&str; 0]
        );
        assert_eq!(
            with("ClusterIP", json!({"ip": "192.0.2.1", "ipMode": "VIP"})),
            ["status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"]
        );
        assert_eq!(
            with(
                "LoadBalancer",
                json!({"ip": "x", "ipMode": "Near", "hostname": "192.0.2.1"})
            ),
            [
                "status.loadBalancer.ingress[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "status.loadBalancer.ingress[0].ipMode: Unsupported value: \"Near\": supported values: \"Proxy\", \"VIP\"",
                "status.loadBalancer.ingress[0].hostname: Invalid value: \"192.0.2.1\": must be a DNS name, not an IP address",
            ]
        );
        assert_eq!(
            with("LoadBalancer", json!({"hostname": "a.b", "ipMode": "VIP"})),
            ["status.loadBalancer.ingress[0].ipMode: Forbidden: may not be specified when `ip` is not set"]
        );
    }
}
