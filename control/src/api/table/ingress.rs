//! Ingresses and their classes.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{AGE, Column, NAME, Printer, created, list, name, or_none, text};

/// Hosts shown before `+ N more...`.
const SHOWN: usize = 3;

pub(super) const INGRESS: Printer = Printer {
    columns: &[
        NAME,
        Column::text("Class"),
        Column::text("Hosts"),
        Column::text("Address"),
        Column::text("Ports"),
        AGE,
    ],
    cells: ingress,
};

pub(super) const CLASS: Printer = Printer {
    columns: &[NAME, Column::text("Controller"), Column::text("Parameters"), AGE],
    cells: class,
};

fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let addresses: BTreeSet<&str> = list(object, "/status/loadBalancer/ingress")
        .iter()
        .map(|one| match text(one, "/ip") {
            "" => text(one, "/hostname"),
            address => address,
        })
        .collect();
    let addresses: Vec<&str> = addresses.into_iter().filter(|address| !address.is_empty()).collect();
    let ports = match list(object, "/spec/tls").is_empty() {
        true => "80",
        false => "80, 443",
    };
    vec![
        name(object),
        or_none(text(object, "/spec/ingressClassName")),
        json!(hosts(object)),
        json!(addresses.join(",")),
        json!(ports),
        created(object, now),
    ]
}

fn hosts(object: &Value) -> String {
    let named = list(object, "/spec/rules").iter().map(|rule| text(rule, "/host"));
    let named: Vec<&str> = named.filter(|host| !host.is_empty()).collect();
    match named.len() {
        0 => "*".to_owned(),
        count if count > SHOWN => format!("{} + {} more...", named[..SHOWN].join(","), count - SHOWN),
        _ => named.join(","),
    }
}

fn class(object: &Value, now: Timestamp) -> Vec<Value> {
    let part = |field: &str| text(object, &format!("/spec/parameters/{field}"));
    let parameters = match (part("apiGroup"), part("kind")) {
        (_, "") => String::new(),
        ("", kind) => format!("{kind}/{}", part("name")),
        (group, kind) => format!("{kind}.{group}/{}", part("name")),
    };
    vec![
        name(object),
        json!(text(object, "/spec/controller")),
        or_none(parameters),
        created(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ingress_shows_where_it_is_reached() {
        let object = json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "c", "tls": [{}],
            "rules": [{"host": "a"}, {"host": "b"}, {"host": "c"}, {"host": "d"}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}});
        let cells = ingress(&object, Timestamp::UNIX_EPOCH);
        assert_eq!(
            json!(cells[..5]),
            json!(["i", "c", "a,b,c + 1 more...", "192.0.2.1", "80, 443"])
        );
        let parameters = json!({"apiGroup": "e.com", "kind": "P", "name": "p"});
        let object = json!({"metadata": {"name": "c"}, "spec": {"controller": "e.com/c", "parameters": parameters}});
        assert_eq!(
            json!(class(&object, Timestamp::UNIX_EPOCH)[1..3]),
            json!(["e.com/c", "P.e.com/p"])
        );
    }
}
