//! Services, Endpoints, EndpointSlices, NetworkPolicies, ServiceCIDRs, IPAddresses.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, created, int, labels, list, name, or_none, text};
use crate::registry::selector_text;

/// Endpoints shown before `+ N more...`.
const SHOWN: usize = 3;

pub(super) const SERVICE: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Type"),
        Column::text("Cluster-IP"),
        Column::text("External-IP"),
        Column::text("Port(s)"),
        AGE,
        Column::text("Selector").wide(),
    ],
    cells: service,
};

pub(super) const ENDPOINTS: Printer = Printer {
    columns: &[NAME, Column::text("Endpoints"), AGE],
    cells: endpoints,
};

pub(super) const ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        NAME,
        Column::text("AddressType"),
        Column::text("Ports"),
        Column::text("Endpoints"),
        AGE,
    ],
    cells: endpoint_slice,
};

pub(super) const POLICY: Printer = Printer {
    columns: &[NAME, Column::text("Pod-Selector"), AGE],
    cells: policy,
};

pub(super) const SERVICE_CIDR: Printer = Printer {
    columns: &[NAME, Column::text("CIDRs"), AGE],
    cells: service_cidr,
};

pub(super) const IP_ADDRESS: Printer = Printer {
    columns: &[NAME, Column::text("ParentRef"), AGE],
    cells: ip_address,
};

fn policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        or_none(selector_text(&object["spec"]["podSelector"])),
        created(object, now),
    ]
}

fn service_cidr(object: &Value, now: Timestamp) -> Vec<Value> {
    let ranges: Vec<&str> = list(object, "/spec/cidrs").iter().filter_map(Value::as_str).collect();
    vec![name(object), json!(ranges.join(",")), created(object, now)]
}

/// `resource.group/namespace/name`, without what is empty.
fn ip_address(object: &Value, now: Timestamp) -> Vec<Value> {
    let part = |field: &str| text(object, &format!("/spec/parentRef/{field}"));
    let resource = match part("group") {
        "" => part("resource").to_owned(),
        group => format!("{}.{group}", part("resource")),
    };
    let parts = [resource.as_str(), part("namespace"), part("name")];
    let shown: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    vec![name(object), or_none(shown.join("/")), created(object, now)]
}

fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(object),
        json!(text(object, "/spec/type")),
        or_none(text(object, "/spec/clusterIP")),
        json!(external_address(object)),
        or_none(service_ports(object)),
        created(object, now),
        labels(&object["spec"]["selector"]),
    ]
}

fn external_address(object: &Value) -> String {
    let listed: Vec<&str> = list(object, "/spec/externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let listed = listed.join(",");
    let nothing = || {
        if listed.is_empty() {
            "<none>".to_owned()
        } else {
            listed.clone()
        }
    };
    match text(object, "/spec/type") {
        "ExternalName" => text(object, "/spec/externalName").to_owned(),
        "LoadBalancer" => {
            let ingress: BTreeSet<&str> = list(object, "/status/loadBalancer/ingress")
                .iter()
                .map(|one| match text(one, "/ip") {
                    "" => text(one, "/hostname"),
                    address => address,
                })
                .filter(|address| !address.is_empty())
                .collect();
            let shown = ingress.into_iter().collect::<Vec<_>>().join(",");
            match (shown.is_empty(), listed.is_empty()) {
                (true, true) => "<pending>".into(),
                (true, false) => listed,
                (false, true) => shown,
                (false, false) => format!("{shown},{listed}"),
            }
        }
        "ClusterIP" | "NodePort" => nothing(),
        _ => "<unknown>".into(),
    }
}

fn service_ports(object: &Value) -> String {
    let ports = list(object, "/spec/ports").iter().map(|port| {
        let (number, protocol) = (int(port, "/port"), text(port, "/protocol"));
        match int(port, "/nodePort") {
            0 => format!("{number}/{protocol}"),
            node_port => format!("{number}:{node_port}/{protocol}"),
        }
    });
    ports.collect::<Vec<_>>().join(",")
}

fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut shown = Vec::new();
    for subset in list(object, "/subsets") {
        let addresses = list(subset, "/addresses").iter().map(|address| text(address, "/ip"));
        let ports = list(subset, "/ports");
        for address in addresses {
            if ports.is_empty() {
                shown.push(address.to_owned());
            }
            shown.extend(ports.iter().map(|port| format!("{address}:{}", int(port, "/port"))));
        }
    }
    vec![name(object), or_none(shortened(&shown)), created(object, now)]
}

fn shortened(items: &[String]) -> String {
    if items.len() <= SHOWN {
        return items.join(",");
    }
    format!("{} + {} more...", items[..SHOWN].join(","), items.len() - SHOWN)
}

fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = list(object, "/ports")
        .iter()
        .map(|port| match int(port, "/port") {
            0 => "*".to_owned(),
            number => number.to_string(),
        })
        .collect();
    let addresses: Vec<String> = list(object, "/endpoints")
        .iter()
        .flat_map(|endpoint| list(endpoint, "/addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    let unset = |text: String| json!(if text.is_empty() { "<unset>".to_owned() } else { text });
    vec![
        name(object),
        json!(text(object, "/addressType")),
        unset(shortened(&ports)),
        unset(shortened(&addresses)),
        created(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_show_where_they_are_reached() {
        let ports = json!([{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        let node_port =
            json!({"metadata": {"name": "a"}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "ports": ports}});
        let cells = service(&node_port, Timestamp::UNIX_EPOCH);
        assert_eq!(
            json!(cells[1..5]),
            json!(["NodePort", "10.96.0.9", "<none>", "80:30080/TCP,53/UDP"])
        );
        let pending = json!({"metadata": {"name": "b"}, "spec": {"type": "LoadBalancer"}});
        assert_eq!(external_address(&pending), "<pending>");
        let balanced = json!({"spec": {"type": "LoadBalancer", "externalIPs": ["192.0.2.9"]},
            "status": {"loadBalancer": {"ingress": [{"hostname": "a-long-name.example.org"}, {"ip": "192.0.2.1"}]}}});
        assert_eq!(
            external_address(&balanced),
            "192.0.2.1,a-long-name.example.org,192.0.2.9"
        );
        let name = json!({"metadata": {"name": "c"}, "spec": {"type": "ExternalName", "externalName": "x.org"}});
        assert_eq!(
            json!(service(&name, Timestamp::UNIX_EPOCH)[2..5]),
            json!(["<none>", "x.org", "<none>"])
        );
    }

    #[test]
    fn long_lists_of_endpoints_are_cut() {
        let addresses: Vec<Value> = (1..=5).map(|n| json!({"addresses": [format!("10.0.0.{n}")]})).collect();
        let slice =
            json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": addresses});
        assert_eq!(
            json!(endpoint_slice(&slice, Timestamp::UNIX_EPOCH)[1..4]),
            json!(["IPv4", "80", "10.0.0.1,10.0.0.2,10.0.0.3 + 2 more..."])
        );
    }
}
