//! What is said about a container that ended: reason, exit code, termination message.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use hull_runtime::warden;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;

use super::state::Exit;

/// Longest termination message, as the kubelet has it.
const MESSAGE_MAX: u64 = 4096;
/// How much of the log stands in for a missing message.
const LOG_TAIL_BYTES: usize = 2048;
const LOG_TAIL_LINES: usize = 80;
/// The exit code of a container whose end nobody saw.
const UNKNOWN_CODE: i32 = 137;
/// The exit code of a container whose program could not be started.
const START_ERROR_CODE: i32 = 128;

/// The end of the container `id`.
pub fn describe_exit(
    id: &str,
    exit: warden::Exit,
    started_at: Option<Timestamp>,
    container: Option<&Container>,
    message_file: &Path,
    log: &Path,
) -> Exit {
    let finished_at = Timestamp::from_nanosecond(exit.at.into()).unwrap_or_else(|_| Timestamp::now());
    let code = exit.status();
    let reason = match code {
        None => "ContainerStatusUnknown",
        Some(_) if exit.oom_killed => "OOMKilled",
        Some(0) => "Completed",
        Some(_) => "Error",
    };
    let code = if exit.oom_killed && code != Some(0) {
        137
    } else {
        code.unwrap_or(UNKNOWN_CODE)
    };
    let message = match exit.status() {
        None => Some("The container could not be located when it ended, so how it ended is not known".to_owned()),
        Some(_) => message(container, code, message_file, log),
    };
    Exit {
        id: id.to_owned(),
        code,
        signal: exit.signal,
        reason: reason.to_owned(),
        message,
        started_at,
        finished_at,
    }
}

/// The end of an attempt whose program never ran.
#[must_use]
pub fn start_error(id: &str, message: String, now: Timestamp) -> Exit {
    Exit {
        id: id.to_owned(),
        code: START_ERROR_CODE,
        signal: None,
        reason: "StartError".to_owned(),
        message: Some(message),
        started_at: None,
        finished_at: now,
    }
}

fn message(container: Option<&Container>, code: i32, message_file: &Path, log: &Path) -> Option<String> {
    let mut text = Vec::new();
    if let Ok(file) = File::open(message_file) {
        let _ = file.take(MESSAGE_MAX).read_to_end(&mut text);
    }
    if !text.is_empty() {
        return Some(String::from_utf8_lossy(&text).into_owned());
    }
    let policy = container.and_then(|container| container.termination_message_policy.as_deref());
    let fallback = policy == Some("FallbackToLogsOnError") && code != 0;
    fallback
        .then(|| log_tail(log))
        .flatten()
        .filter(|tail| !tail.is_empty())
}

/// The last lines of a CRI log without their headers.
fn log_tail(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    // Headers are short beside the text; twice the tail always holds it.
    file.seek(SeekFrom::Start(length.saturating_sub(4 * LOG_TAIL_BYTES as u64)))
        .ok()?;
    let mut raw = Vec::new();
    file.read_to_end(&mut raw).ok()?;
    let raw = String::from_utf8_lossy(&raw);
    let records: Vec<(&str, &str)> = raw.lines().filter_map(record).collect();
    let mut text = String::new();
    for (tag, line) in &records[records.len().saturating_sub(LOG_TAIL_LINES)..] {
        text.push_str(line);
        // A partial record (P) is a line's beginning, or what a program wrote last without ending the line.
        if *tag != "P" {
            text.push('\n');
        }
    }
    let mut cut = text.len().saturating_sub(LOG_TAIL_BYTES);
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    Some(text.split_off(cut))
}

/// Tag and text of a record: `<time> <stream> <tag> <text>`.
fn record(line: &str) -> Option<(&str, &str)> {
    let mut parts = line.splitn(4, ' ').skip(2);
    Some((parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json};

    fn exit(code: Option<i32>, signal: Option<i32>, oom_killed: bool) -> warden::Exit {
        warden::Exit {
            code,
            signal,
            oom_killed,
            at: 1_800_000_000_000_000_000,
        }
    }

    #[test]
    fn ends_have_reasons_and_codes() {
        let of = |exit| {
            let none = Path::new("/nonexistent");
            let end = describe_exit("c", exit, None, None, none, none);
            (end.reason, end.code)
        };
        assert_eq!(of(exit(Some(0), None, false)), ("Completed".into(), 0));
        assert_eq!(of(exit(Some(3), None, false)), ("Error".into(), 3));
        assert_eq!(of(exit(None, Some(15), false)), ("Error".into(), 143));
        assert_eq!(of(exit(None, Some(9), true)), ("OOMKilled".into(), 137));
        assert_eq!(of(exit(None, None, false)), ("ContainerStatusUnknown".into(), 137));
    }

    #[test]
    fn the_message_file_wins_and_the_log_stands_in() {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("m"), dir.path().join("l"));
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr F two words\n",
        )
        .unwrap();
        let container: Container =
            from_value(json!({"name": "c", "terminationMessagePolicy": "FallbackToLogsOnError"})).unwrap();
        let message =
            |code| describe_exit("c", exit(Some(code), None, false), None, Some(&container), &file, &log).message;
        assert_eq!(message(1).as_deref(), Some("one\ntwo words\n"));
        assert_eq!(message(0), None);
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z stdout P long\n2026-01-01T00:00:01Z stdout P er\n",
        )
        .unwrap();
        assert_eq!(
            message(1).as_deref(),
            Some("longer"),
            "a line that never ended has no end"
        );
        std::fs::write(&file, "last words").unwrap();
        assert_eq!(message(0).as_deref(), Some("last words"));
    }
}
