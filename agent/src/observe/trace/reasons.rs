//! Why: the proxy's tables beside the endpoints as the API has them, in sentences.

use std::collections::BTreeSet;
use std::net::IpAddr;

use hull_ebpf_types as bpf;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

use super::Excluded;

/// What becomes of a client, in a sentence.
pub(super) fn verdict(found: Option<&bpf::Service>, slices: &[EndpointSlice]) -> String {
    let Some(service) = found else {
        return "not in the kernel's tables: connections go to the address itself, untranslated. The agent is behind, or \
                could not write them (see its log)"
            .to_owned();
    };
    match (service.count, service.flags) {
        (0, flags) if flags & bpf::flag::ELSEWHERE != 0 => {
            "refused: the policy is Local and no backend is on this node, though there are some elsewhere".to_owned()
        }
        (0, flags) if flags & bpf::flag::UNSERVED != 0 => "refused: nobody serves this port of the address".to_owned(),
        (0, _) if endpoints(slices).next().is_none() => {
            "refused (ECONNREFUSED): the service has no endpoints; does its selector match any pod?".to_owned()
        }
        (0, _) => "refused (ECONNREFUSED): none of the service's endpoints can be used".to_owned(),
        (_, flags) if flags & bpf::flag::BY_PACKET != 0 => {
            "left to the packet programs: its source ranges can only be checked on packets".to_owned()
        }
        (1, _) => "sent to the only backend".to_owned(),
        (count, _) => format!("sent to one of the backends in {count} slots"),
    }
}

pub(super) fn algorithm(number: u32) -> &'static str {
    match number {
        bpf::algorithm::RANDOM => "random, by weight",
        bpf::algorithm::MAGLEV => "Maglev: the same client to the same backend",
        bpf::algorithm::LEAST_CONNECTIONS => "fewest open connections for the weight",
        bpf::algorithm::POWER_OF_TWO => "the better of two at random, by time to connect and open connections",
        _ => "unknown to this version",
    }
}

pub(super) fn notes(found: Option<&bpf::Service>) -> Vec<String> {
    let Some(service) = found else {
        return Vec::new();
    };
    let known = [
        (bpf::flag::LOCAL, "only backends on this node (policy Local)"),
        (bpf::flag::NODE_PORT, "a node port"),
        (bpf::flag::EXTERNAL, "an external address"),
        (bpf::flag::DIRECT_RETURN, "backends answer clients directly"),
    ];
    let flags = known
        .iter()
        .filter(|(bit, _)| service.flags & bit != 0)
        .map(|(_, text)| (*text).to_owned());
    let sources = (service.sources != 0).then(|| "only clients within the service's source ranges".to_owned());
    flags.chain(sources).collect()
}

/// Endpoints that are not among the chosen, and why.
pub(super) fn excluded(slices: &[EndpointSlice], chosen: &BTreeSet<IpAddr>, flags: u32, node: &str) -> Vec<Excluded> {
    let mut all = Vec::new();
    let someone_is_ready = endpoints(slices).any(is_ready);
    for endpoint in endpoints(slices) {
        for address in &endpoint.addresses {
            if address.parse().is_ok_and(|ip: IpAddr| chosen.contains(&ip)) {
                continue;
            }
            all.push(Excluded {
                address: address.clone(),
                pod: pod_of(endpoint),
                reason: reason(endpoint, flags, node, someone_is_ready),
            });
        }
    }
    all.sort_by(|one, other| one.address.cmp(&other.address));
    all
}

fn endpoints(slices: &[EndpointSlice]) -> impl Iterator<Item = &Endpoint> {
    slices.iter().flat_map(|slice| slice.endpoints.iter().flatten())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}

fn reason(endpoint: &Endpoint, flags: u32, node: &str, someone_is_ready: bool) -> String {
    let conditions = endpoint.conditions.as_ref();
    let serving = conditions.and_then(|conditions| conditions.serving);
    let terminating = conditions
        .and_then(|conditions| conditions.terminating)
        .unwrap_or(false);
    let elsewhere = endpoint.node_name.as_deref().is_some_and(|own| own != node);
    if terminating && serving == Some(true) && someone_is_ready {
        return "terminating: it only gets clients while nobody is ready".to_owned();
    }
    if terminating {
        return "terminating, and no longer serving".to_owned();
    }
    if !is_ready(endpoint) {
        return "not ready: its readiness probe or a condition of the pod fails".to_owned();
    }
    if flags & (bpf::flag::LOCAL | bpf::flag::ELSEWHERE) != 0 && elsewhere {
        return format!(
            "on node {}, and the policy is Local",
            endpoint.node_name.as_deref().unwrap_or_default()
        );
    }
    let zones = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    if let Some(zones) = zones.filter(|zones| !zones.is_empty()) {
        let zones: Vec<&str> = zones.iter().map(|zone| zone.name.as_str()).collect();
        return format!("meant for clients in zone {} (topology hints)", zones.join(", "));
    }
    if endpoint.hints.as_ref().is_some_and(|hints| hints.for_nodes.is_some()) {
        return "meant for clients on other nodes (traffic distribution)".to_owned();
    }
    "of another family or port, or the agent has not written it yet".to_owned()
}

fn pod_of(endpoint: &Endpoint) -> Option<String> {
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"))?;
    Some(format!(
        "{}/{}",
        target.namespace.as_deref().unwrap_or_default(),
        target.name.as_deref()?
    ))
}

pub(super) fn pod_behind(slices: &[EndpointSlice], ip: IpAddr) -> Option<String> {
    let mut of_address =
        endpoints(slices).filter(|endpoint| endpoint.addresses.iter().any(|text| text.parse() == Ok(ip)));
    of_address.find_map(pod_of)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slices(endpoints: serde_json::Value) -> Vec<EndpointSlice> {
        vec![serde_json::from_value(json!({"addressType": "IPv4", "endpoints": endpoints})).unwrap()]
    }

    #[test]
    fn who_is_left_out_is_told_why() {
        let slices = slices(json!([
            {"addresses": ["10.0.0.1"], "nodeName": "n1"},
            {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "namespace": "d", "name": "p2"}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            {"addresses": ["10.0.0.5"], "nodeName": "n2"},
            {"addresses": ["10.0.0.6"], "hints": {"forZones": [{"name": "b"}]}},
        ]));
        let chosen = BTreeSet::from(["10.0.0.1".parse().unwrap()]);
        let found = excluded(&slices, &chosen, bpf::flag::LOCAL, "n1");
        let reasons: Vec<(&str, &str)> = found
            .iter()
            .map(|one| (one.address.as_str(), one.reason.as_str()))
            .collect();
        let expected = [
            ("10.0.0.2", "not ready"),
            ("10.0.0.3", "terminating: it only"),
            ("10.0.0.4", "terminating, and no longer"),
            ("10.0.0.5", "on node n2, and the policy is Local"),
            ("10.0.0.6", "meant for clients in zone b"),
        ];
        assert_eq!(reasons.len(), expected.len(), "{reasons:?}");
        for ((address, reason), (wanted, begin)) in reasons.iter().zip(expected) {
            assert!(*address == wanted && reason.starts_with(begin), "{address}: {reason}");
        }
        assert_eq!(found[0].pod.as_deref(), Some("d/p2"));
    }

    #[test]
    fn a_refusal_has_its_reason() {
        let service = |count, flags| bpf::Service {
            count,
            flags,
            ..bpf::Service::default()
        };
        let none = slices(json!([]));
        assert!(verdict(None, &none).contains("not in the kernel's tables"));
        assert!(verdict(Some(&service(0, 0)), &none).contains("does its selector match"));
        let unready = slices(json!([{"addresses": ["10.0.0.1"], "conditions": {"ready": false}}]));
        assert!(verdict(Some(&service(0, 0)), &unready).contains("none of the service's endpoints"));
        assert!(verdict(Some(&service(0, bpf::flag::ELSEWHERE)), &unready).contains("policy is Local"));
        assert!(verdict(Some(&service(2, 0)), &unready).contains("2 slots"));
    }
}
