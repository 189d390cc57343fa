//! A second look at a configuration that the strict types refuse, for what the specification allows all the same:
//! capabilities this runtime has never heard of (a warning, config.md, "Linux Process"), a process without a user, and
//! names that the types spell differently. Only read after a failure, so an ordinary configuration pays nothing.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Capability;
use crate::error::{Error, Result, warn};

/// Flags of the scheduler as the specification spells them, and as the types do.
const SCHEDULER_FLAGS: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

/// Parse `text`; `process` finds the process in the document. `name` is the file, for the message.
pub(super) fn parse<T: DeserializeOwned>(
    name: &str,
    text: &[u8],
    process: fn(&mut Value) -> Option<&mut Value>,
) -> Result<T> {
    let strict = match serde_json::from_slice(text) {
        Ok(parsed) => return Ok(parsed),
        Err(error) => error,
    };
    let refused = || Error::invalid(format!("{name}: {strict}"));
    let mut document: Value = serde_json::from_slice(text).map_err(|_| refused())?;
    let Some(process) = process(&mut document) else {
        return Err(refused());
    };
    let unknown = forgive(process);
    let parsed = serde_json::from_value(document).map_err(|e| Error::invalid(format!("{name}: {e}")))?;
    for capability in unknown {
        warn(&format!("process.capabilities: {capability} is unknown and ignored"));
    }
    Ok(parsed)
}

/// Change what can be forgiven; the unknown capabilities come back.
fn forgive(process: &mut Value) -> Vec<String> {
    let Some(fields) = process.as_object_mut() else {
        return Vec::new();
    };
    fields.entry("user").or_insert_with(|| serde_json::json!({}));
    let mut unknown: Vec<String> = Vec::new();
    for set in fields
        .get_mut("capabilities")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
    {
        let Some(names) = set.1.as_array_mut() else { continue };
        names.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                unknown.push(name.to_string());
            }
            known
        });
    }
    let flags = fields
        .get_mut("scheduler")
        .and_then(|scheduler| scheduler.get_mut("flags"));
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some((_, ours)) = SCHEDULER_FLAGS.iter().find(|(theirs, _)| flag == theirs) {
            *flag = Value::from(*ours);
        }
    }
    if let Some(affinity) = fields.get_mut("execCPUAffinity").and_then(Value::as_object_mut) {
        affinity.retain(|_, list| list != "");
    }
    unknown.sort();
    unknown.dedup();
    unknown
}

#[cfg(test)]
mod tests {
    use super::super::Process;
    use super::*;

    fn process(text: &str) -> Result<Process> {
        parse("process.json", text.as_bytes(), |document| Some(document))
    }

    #[test]
    fn an_unknown_capability_is_ignored() {
        let text = r#"{"cwd":"/","capabilities":{"bounding":["CAP_CHOWN","CAP_TOMORROW"],"ambient":null}}"#;
        let process = process(text).unwrap();
        let capabilities = process.capabilities().as_ref().unwrap();
        assert_eq!(capabilities.bounding().as_ref().unwrap().len(), 1);
        assert_eq!(process.user().uid(), 0);
    }

    #[test]
    fn flags_are_read_as_the_specification_spells_them() {
        let text = r#"{"cwd":"/","user":{},"scheduler":{"policy":"SCHED_DEADLINE",
            "flags":["SCHED_FLAG_RESET_ON_FORK","SCHED_FLAG_DL_OVERRUN","SCHED_FLAG_RECLAIM"]}}"#;
        assert_eq!(
            process(text)
                .unwrap()
                .scheduler()
                .as_ref()
                .unwrap()
                .flags()
                .as_ref()
                .unwrap()
                .len(),
            3
        );
    }

    #[test]
    fn real_mistakes_are_still_refused() {
        assert!(process(r#"{"user":{}}"#).unwrap_err().to_string().contains("cwd"));
        assert!(process("{").is_err());
        assert!(process(r#"{"cwd":"/","user":{"uid":-1}}"#).is_err());
    }
}
