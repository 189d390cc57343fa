//! The engines' log: one line per error, as text or JSON, appended to the file of `--log`. Standard error gets it too.

use std::fs::OpenOptions;
use std::io::Write;

use hull_runtime::error::{Error, Result};
use hull_runtime::timestamp;

use super::args::Args;

const FORMATS: [&str; 2] = ["text", "json"];

/// The log is one that can be written.
pub(super) fn check(global: &Args) -> Result<()> {
    if let Some(format) = global.value("log-format").filter(|format| !FORMATS.contains(format)) {
        return Err(Error::invalid(format!(
            "--log-format: {format:?} is neither text nor json"
        )));
    }
    match global.value("log").and_then(|log| log.split_once(':')) {
        // A name before a colon is crun's way to say what sort of log it is; engines give absolute paths.
        Some((kind, _)) if kind != "file" && !kind.contains('/') => Err(Error::invalid(format!(
            "--log: a log of the kind {kind:?} is not supported, give the path of a file"
        ))),
        _ => Ok(()),
    }
}

/// Report a failure to whoever reads: standard error, and the log file if there is one.
pub(super) fn error(global: &Args, message: &str) {
    append(global, "error", message);
    eprintln!("hull-runtime: {message}");
}

/// With `--debug`, say what is being done: in the log, or without one on standard error.
pub(super) fn debug(global: &Args, message: &str) {
    if !global.is_set("debug") && global.value("log-level") != Some("debug") {
        return;
    }
    match global.path("log") {
        Some(_) => append(global, "debug", message),
        None => eprint!("{}", entry(global, "debug", message)),
    }
}

fn entry(global: &Args, level: &str, message: &str) -> String {
    let json = global.value("log-format") == Some("json");
    line(json, level, message, &timestamp::rfc3339(timestamp::now()))
}

fn append(global: &Args, level: &str, message: &str) {
    let Some(path) = global.value("log").map(|log| log.strip_prefix("file:").unwrap_or(log)) else {
        return;
    };
    if let Some(path) = Some(path).filter(|path| !path.is_empty())
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = file.write_all(entry(global, level, message).as_bytes());
    }
}

fn line(json: bool, level: &str, message: &str, time: &str) -> String {
    match json {
        true => serde_json::json!({"level": level, "msg": message, "time": time}).to_string() + "\n",
        false => format!("time={time:?} level={level} msg={message:?}\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_can_parse_the_line() {
        let line = line(true, "error", "no \"rootfs\"", "2026-01-01T00:00:00Z");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "no \"rootfs\"");
    }
}
