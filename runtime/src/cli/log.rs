//! The engines' log: one line per error, as text or JSON, appended to the file of `--log`. Standard error gets it too.

use std::fs::OpenOptions;
use std::io::Write;

use hull_runtime::container::timestamp;

use super::args::Args;

/// Report a failure to whoever reads: standard error, and the log file if there is one.
pub(super) fn error(global: &Args, message: &str) {
    let json = global.value("log-format") == Some("json");
    if let Some(path) = global.value("log").filter(|path| !path.is_empty())
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(file, "{}", line(json, message, &timestamp()));
    }
    eprintln!("hull-runtime: {message}");
}

fn line(json: bool, message: &str, time: &str) -> String {
    match json {
        true => serde_json::json!({"level": "error", "msg": message, "time": time}).to_string(),
        false => format!("time={time:?} level=error msg={message:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_can_parse_the_line() {
        let line = line(true, "no \"rootfs\"", "2026-01-01T00:00:00Z");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "no \"rootfs\"");
    }
}
