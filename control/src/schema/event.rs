//! The two shapes of an event: `events.k8s.io/v1` and core `v1`. Both are views of one storage, kept in the core shape.

use serde_json::Value;

/// Field of `events.k8s.io/v1` and of core `v1`.
const RENAMED: &[(&str, &str)] = &[
    ("note", "message"),
    ("regarding", "involvedObject"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// `events.k8s.io/v1` → core `v1`.
pub(super) fn to_core(event: &mut Value) {
    rename(event, RENAMED.iter().copied(), "v1");
}

/// Core `v1` → `events.k8s.io/v1`.
pub(super) fn from_core(event: &mut Value) {
    rename(
        event,
        RENAMED.iter().map(|(new, core)| (*core, *new)),
        "events.k8s.io/v1",
    );
}

fn rename<'a>(event: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>, api_version: &str) {
    let Some(fields) = event.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = fields.remove(from) {
            fields.insert(to.to_owned(), value);
        }
    }
    fields.insert("apiVersion".to_owned(), api_version.into());
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn there_and_back() {
        let new = json!({"apiVersion": "events.k8s.io/v1", "kind": "Event", "note": "n", "regarding": {"kind": "Pod"},
            "reportingController": "c", "deprecatedCount": 2, "reason": "r"});
        let mut event = new.clone();
        to_core(&mut event);
        assert_eq!(
            event,
            json!({"apiVersion": "v1", "kind": "Event", "message": "n", "involvedObject": {"kind": "Pod"},
                "reportingComponent": "c", "count": 2, "reason": "r"})
        );
        from_core(&mut event);
        assert_eq!(event, new);
    }
}
