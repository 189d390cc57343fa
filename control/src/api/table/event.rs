//! Events: when last seen, about what, and how often.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, Printer, age, int, name, text};

pub(super) const EVENT: Printer = Printer {
    columns: &[
        Column::text("Last Seen"),
        Column::text("Type"),
        Column::text("Reason"),
        Column::text("Object"),
        Column::text("Subobject").wide(),
        Column::text("Source").wide(),
        Column::text("Message"),
        Column::text("First Seen").wide(),
        Column::text("Count").wide(),
        Column {
            name: "Name",
            kind: "string",
            format: "name",
            priority: 1,
        },
    ],
    cells,
};

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let first = match text(object, "/firstTimestamp") {
        "" => text(object, "/eventTime"),
        given => given,
    };
    let series = text(object, "/series/lastObservedTime");
    let last = match (series, text(object, "/lastTimestamp")) {
        ("", "") => first,
        ("", last) => last,
        (series, _) => series,
    };
    let count = match (int(object, "/series/count"), int(object, "/count")) {
        (0, 0) => 1,
        (0, count) => count,
        (count, _) => count,
    };
    let involved = &object["involvedObject"];
    let target = match text(involved, "/name") {
        "" => text(involved, "/kind").to_lowercase(),
        name => format!("{}/{name}", text(involved, "/kind").to_lowercase()),
    };
    vec![
        json!(age::since(last, now)),
        json!(text(object, "/type")),
        json!(text(object, "/reason")),
        json!(target),
        json!(text(involved, "/fieldPath")),
        json!(source(object)),
        json!(text(object, "/message").trim()),
        json!(age::since(first, now)),
        json!(count.to_string()),
        name(object),
    ]
}

fn source(object: &Value) -> String {
    let component = match text(object, "/source/component") {
        "" => text(object, "/reportingComponent"),
        component => component,
    };
    match text(object, "/source/host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_tells_when_and_about_what() {
        let object = json!({
            "metadata": {"name": "web.1"}, "type": "Normal", "reason": "Started", "message": "Started it\n", "count": 4,
            "involvedObject": {"kind": "Pod", "name": "web", "fieldPath": "spec.containers{a}"},
            "source": {"component": "kubelet", "host": "n1"},
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:01:00Z",
        });
        let now = "2026-01-01T00:01:30Z".parse().unwrap();
        assert_eq!(
            json!(cells(&object, now)),
            json!([
                "30s",
                "Normal",
                "Started",
                "pod/web",
                "spec.containers{a}",
                "kubelet, n1",
                "Started it",
                "90s",
                "4",
                "web.1"
            ])
        );
    }
}
