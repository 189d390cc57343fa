//! Which address families a Service has: `ipFamilyPolicy`, `ipFamilies` and `clusterIPs` made to agree with each other and
//! with the cluster (KEP-563, dual-stack services). Pure.
//!
//! A service never gains or loses a family by itself: only when its policy, families or addresses are changed.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::range::{ServiceRanges, family};
use crate::schema::FieldError;

type Fields = Map<String, Value>;

const SINGLE: &str = "SingleStack";
const REQUIRED: &str = "RequireDualStack";
const PREFERRED: &str = "PreferDualStack";

/// Completes the fields of `spec`; `old` is the spec that it replaces.
pub(super) fn complete(spec: &mut Fields, old: Option<&Fields>, ranges: ServiceRanges) -> Result<(), Vec<FieldError>> {
    if text(spec, "type") == "ExternalName" || keeps_preferred_families(spec, old) {
        return Ok(());
    }
    let policy = policy(spec, old);
    spec.insert("ipFamilyPolicy".into(), json!(policy));
    let mut errors = Vec::new();
    if let Some(old) = old {
        follow_reduction(spec, old, &policy, &mut errors);
    }
    if policy == SINGLE {
        for (name, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if texts(spec, name).len() == 2 {
                let detail =
                    format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy.as_str(), detail));
            }
        }
    }
    infer_from_addresses(spec, ranges, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut families = texts(spec, "ipFamilies");
    if is_headless(spec) && has_no_selector(spec) {
        // Its endpoints come from elsewhere, so families that the cluster lacks are fine.
        if families.is_empty() {
            families.push(ranges.primary().family().to_owned());
        }
        if policy != SINGLE {
            add_other(&mut families);
        }
    } else {
        check_cluster(&policy, &families, ranges)?;
        if families.is_empty() {
            families.push(ranges.primary().family().to_owned());
        }
        if policy != SINGLE && ranges.is_dual() {
            add_other(&mut families);
        }
    }
    spec.insert("ipFamilies".into(), json!(families));
    Ok(())
}

/// What is asked for; else what was; else one family, or both for a headless service without a selector.
fn policy(spec: &Fields, old: Option<&Fields>) -> String {
    let asked = text(spec, "ipFamilyPolicy");
    let before = old.map_or("", |old| text(old, "ipFamilyPolicy"));
    match (asked, before) {
        ("", "") if is_headless(spec) && has_no_selector(spec) => REQUIRED.to_owned(),
        ("", "") => SINGLE.to_owned(),
        ("", before) => before.to_owned(),
        (asked, _) => asked.to_owned(),
    }
}

/// A service that prefers two families stays as it is when the cluster has changed to or from them.
fn keeps_preferred_families(spec: &Fields, old: Option<&Fields>) -> bool {
    let Some(old) = old else { return false };
    let preferred = |spec: &Fields| text(spec, "ipFamilyPolicy") == PREFERRED;
    preferred(spec)
        && (preferred(old) || text(old, "ipFamilyPolicy").is_empty())
        && text(spec, "type") == text(old, "type")
        && ["clusterIPs", "ipFamilies"]
            .iter()
            .all(|name| texts(spec, name) == texts(old, name))
}

/// Only `SingleStack` gives up the second address and family; with it they may still be listed.
fn follow_reduction(spec: &mut Fields, old: &Fields, policy: &str, errors: &mut Vec<FieldError>) {
    for (name, what) in [("clusterIPs", "cluster IP"), ("ipFamilies", "IP family")] {
        let (mut now, before) = (texts(spec, name), texts(old, name));
        if policy == SINGLE {
            if now == before && now.len() > 1 {
                now.truncate(1);
                spec.insert(name.into(), json!(now));
            }
        } else if !now.is_empty() && now.len() < before.len() {
            let detail = format!("must be 'SingleStack' to release the secondary {what}");
            errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, detail));
        }
    }
}

/// Addresses say their families where these are not given.
fn infer_from_addresses(spec: &mut Fields, ranges: ServiceRanges, errors: &mut Vec<FieldError>) {
    let mut families = texts(spec, "ipFamilies");
    let addresses = texts(spec, "clusterIPs");
    for (index, address) in addresses.iter().enumerate().skip(families.len()) {
        let Ok(address) = address.parse::<IpAddr>() else { break };
        let family = family(address);
        if ranges.of(family).is_some() {
            families.push(family.to_owned());
        } else {
            let detail = format!("{family} is not configured on this cluster");
            errors.push(FieldError::invalid(
                format!("spec.clusterIPs[{index}]"),
                json!(addresses),
                detail,
            ));
        }
    }
    if !families.is_empty() {
        spec.insert("ipFamilies".into(), json!(families));
    }
}

fn check_cluster(policy: &str, families: &[String], ranges: ServiceRanges) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    if policy == REQUIRED && !ranges.is_dual() {
        let detail = "this cluster is not configured for dual-stack services";
        errors.push(FieldError::invalid("spec.ipFamilyPolicy", policy, detail));
    }
    for (index, family) in families.iter().enumerate() {
        if ranges.of(family).is_none() {
            let path = format!("spec.ipFamilies[{index}]");
            errors.push(FieldError::invalid(
                path,
                family.as_str(),
                "not configured on this cluster",
            ));
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn add_other(families: &mut Vec<String>) {
    if let [one] = families.as_slice() {
        let other = if one == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
}

fn is_headless(spec: &Fields) -> bool {
    text(spec, "clusterIP") == "None"
}

fn has_no_selector(spec: &Fields) -> bool {
    spec.get("selector")
        .and_then(Value::as_object)
        .is_none_or(Map::is_empty)
}

fn text<'a>(fields: &'a Fields, name: &str) -> &'a str {
    fields.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// The texts of a list.
pub(super) fn texts(fields: &Fields, name: &str) -> Vec<String> {
    let list = fields.get(name).and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUAL: &str = "10.96.0.0/16,fd00::/112";

    fn done(ranges: &str, spec: Value, old: Option<Value>) -> Result<Value, Vec<String>> {
        let mut spec = spec.as_object().unwrap().clone();
        let old = old.map(|old| old.as_object().unwrap().clone());
        complete(&mut spec, old.as_ref(), ranges.parse().unwrap())
            .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())?;
        Ok(json!([spec["ipFamilyPolicy"], spec["ipFamilies"]]))
    }

    #[test]
    fn a_create_without_wishes_has_the_default_family() {
        assert_eq!(
            done(DUAL, json!({"selector": {"a": "b"}}), None).unwrap(),
            json!([SINGLE, ["IPv4"]])
        );
        assert_eq!(
            done("fd00::/112", json!({"selector": {"a": "b"}}), None).unwrap(),
            json!([SINGLE, ["IPv6"]])
        );
        let headless = json!({"clusterIP": "None", "clusterIPs": ["None"]});
        assert_eq!(
            done("10.96.0.0/16", headless, None).unwrap(),
            json!([REQUIRED, ["IPv4", "IPv6"]]),
            "headless without selector"
        );
        let headless = json!({"clusterIP": "None", "clusterIPs": ["None"], "selector": {"a": "b"}});
        assert_eq!(done(DUAL, headless, None).unwrap(), json!([SINGLE, ["IPv4"]]));
    }

    #[test]
    fn wishes_are_followed_as_far_as_the_cluster_goes() {
        let prefer = json!({"ipFamilyPolicy": PREFERRED});
        assert_eq!(
            done(DUAL, prefer.clone(), None).unwrap(),
            json!([PREFERRED, ["IPv4", "IPv6"]])
        );
        assert_eq!(
            done("10.96.0.0/16", prefer, None).unwrap(),
            json!([PREFERRED, ["IPv4"]])
        );
        let require = json!({"ipFamilyPolicy": REQUIRED, "ipFamilies": ["IPv6"]});
        assert_eq!(
            done(DUAL, require.clone(), None).unwrap(),
            json!([REQUIRED, ["IPv6", "IPv4"]])
        );
        assert_eq!(
            done("10.96.0.0/16", require, None).unwrap_err(),
            [
                "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
                "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
            ]
        );
        let by_address = json!({"ipFamilyPolicy": REQUIRED, "clusterIP": "fd00::7", "clusterIPs": ["fd00::7"]});
        assert_eq!(
            done(DUAL, by_address, None).unwrap(),
            json!([REQUIRED, ["IPv6", "IPv4"]])
        );
        let both = json!({"ipFamilies": ["IPv4", "IPv6"]});
        assert_eq!(
            done(DUAL, both, None).unwrap_err(),
            [
                "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified"
            ]
        );
    }

    #[test]
    fn an_update_changes_families_only_when_asked() {
        let single = json!({"type": "ClusterIP", "ipFamilyPolicy": SINGLE, "ipFamilies": ["IPv4"], "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"]});
        let dual = json!({"type": "ClusterIP", "ipFamilyPolicy": PREFERRED, "ipFamilies": ["IPv4", "IPv6"],
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"]});
        let with = |base: &Value, policy: &str| {
            let mut spec = base.clone();
            spec["ipFamilyPolicy"] = json!(policy);
            spec
        };
        assert_eq!(
            done(DUAL, with(&single, REQUIRED), Some(single.clone())).unwrap(),
            json!([REQUIRED, ["IPv4", "IPv6"]])
        );
        assert_eq!(
            done(DUAL, with(&dual, SINGLE), Some(dual.clone())).unwrap(),
            json!([SINGLE, ["IPv4"]]),
            "the second may still be listed"
        );
        let mut less = dual.clone();
        less["clusterIPs"] = json!(["10.96.0.7"]);
        assert_eq!(
            done(DUAL, less, Some(dual)).unwrap_err(),
            [
                "spec.ipFamilyPolicy: Invalid value: \"PreferDualStack\": must be 'SingleStack' to release the secondary cluster IP"
            ]
        );
        let preferred = with(&single, PREFERRED);
        assert_eq!(
            done(DUAL, preferred.clone(), Some(preferred)).unwrap(),
            json!([PREFERRED, ["IPv4"]]),
            "the cluster got a second family since"
        );
    }
}
