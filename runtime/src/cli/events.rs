//! `events`: what the container uses, as runc prints it, and when the kernel kills in it for lack of memory.

use std::path::Path;
use std::time::Duration;

use hull_runtime::cgroup::Cgroup;
use hull_runtime::container::{self, Status};
use hull_runtime::error::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use serde_json::{Value, json};

use super::args::Flags;

const EVENTS: Flags = Flags {
    switches: &["stats"],
    values: &["interval"],
    interspersed: true,
};
const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

pub(super) fn events(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = EVENTS.parse(arguments)?;
    let id = args.only_id()?;
    let interval = args.value("interval").map_or(Ok(DEFAULT_INTERVAL), duration)?;
    let state = container::state(root, id)?;
    if state.status == Status::Stopped {
        return Err(Error::new(Kind::WrongState, format!("container not running: {id}")));
    }
    let cgroup = container::cgroup(root, id)?;
    print("stats", id, Some(stats(&cgroup)));
    if args.is_set("stats") {
        return Ok(0);
    }
    let process = rustix::process::Pid::from_raw(state.pid)
        .ok_or_else(|| Error::system(format!("the container {id} has no process")))?;
    let pidfd = match rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(0),
        other => other.map_err(|e| Error::os("pidfd_open", e))?,
    };
    let mut kills = cgroup.oom_kills().unwrap_or(0);
    let timeout = Timespec {
        tv_sec: interval.as_secs() as i64,
        tv_nsec: interval.subsec_nanos().into(),
    };
    let memory = std::fs::File::open(cgroup.dir().join("memory.events")).ok();
    loop {
        let mut polled = vec![PollFd::new(&pidfd, PollFlags::IN)];
        polled.extend(memory.as_ref().map(|memory| PollFd::new(memory, PollFlags::PRI)));
        let ready = match rustix::event::poll(&mut polled, Some(&timeout)) {
            Err(Errno::INTR) => continue,
            other => other.map_err(|e| Error::os("poll", e))?,
        };
        let now = cgroup.oom_kills().unwrap_or(kills);
        if now > kills {
            print("oom", id, None);
            kills = now;
        }
        if !polled[0].revents().is_empty() {
            return Ok(0);
        }
        if ready == 0 {
            print("stats", id, Some(stats(&cgroup)));
        }
    }
}

/// One line of output; scripts look for the fields in this order.
#[derive(serde::Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

fn print(kind: &str, id: &str, data: Option<Value>) {
    let text = serde_json::to_string(&Event { kind, id, data });
    println!("{}", text.unwrap_or_default());
}

/// Go's durations with one unit: 500ms, 5s, 2m.
fn duration(text: &str) -> Result<Duration> {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let parse = |&(unit, milliseconds): &(&str, u64)| {
        let number: f64 = text.strip_suffix(unit)?.parse().ok()?;
        (number > 0.0 && number < 1e9).then(|| Duration::from_millis((number * milliseconds as f64) as u64))
    };
    units
        .iter()
        .find_map(parse)
        .filter(|interval| !interval.is_zero())
        .ok_or_else(|| Error::invalid(format!("--interval: {text:?} is not a duration such as 500ms or 5s")))
}

/// The group's files in the places where runc has them; what the kernel does not tell is left out.
fn stats(cgroup: &Cgroup) -> Value {
    let read = |file: &str| std::fs::read_to_string(cgroup.dir().join(file)).unwrap_or_default();
    let number = |file: &str| match read(file).trim() {
        "max" => Some(u64::MAX),
        text => text.parse::<u64>().ok(),
    };
    let (cpu, memory) = (pairs(&read("cpu.stat")), pairs(&read("memory.stat")));
    let nanoseconds = |name: &str| cpu.get(name).and_then(Value::as_u64).unwrap_or(0) * 1000;
    let plain = |name: &str| cpu.get(name).and_then(Value::as_u64).unwrap_or(0);
    let usage = |prefix: &str, failures: &str| {
        json!({
            "limit": number(&format!("{prefix}.max")),
            "usage": number(&format!("{prefix}.current")),
            "max": number(&format!("{prefix}.peak")),
            "failcnt": pairs(&read(&format!("{prefix}.events"))).get(failures).cloned().unwrap_or(json!(0)),
        })
    };
    json!({
        "cpu": {
            "usage": {
                "total": nanoseconds("usage_usec"),
                "kernel": nanoseconds("system_usec"),
                "user": nanoseconds("user_usec"),
            },
            "throttling": {
                "periods": plain("nr_periods"),
                "throttledPeriods": plain("nr_throttled"),
                "throttledTime": nanoseconds("throttled_usec"),
            },
            "psi": pressure(&read("cpu.pressure")),
        },
        "cpuset": {"cpus": numbers(&read("cpuset.cpus.effective")), "mems": numbers(&read("cpuset.mems.effective"))},
        "memory": {
            "cache": memory.get("file").cloned().unwrap_or(json!(0)),
            "usage": usage("memory", "max"),
            "swap": usage("memory.swap", "fail"),
            "kernel": {"usage": memory.get("kernel").cloned().unwrap_or(json!(0))},
            "raw": memory,
            "psi": pressure(&read("memory.pressure")),
        },
        "pids": {"current": number("pids.current"), "limit": number("pids.max").filter(|&limit| limit != u64::MAX).unwrap_or(0)},
        "blkio": {"ioServiceBytesRecursive": io(&read("io.stat")), "psi": pressure(&read("io.pressure"))},
        "hugetlb": hugetlb(cgroup),
        "intel_rdt": {},
        "network_interfaces": null,
    })
}

/// "name value" lines.
fn pairs(text: &str) -> serde_json::Map<String, Value> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse::<u64>().ok()?.into()))
    };
    text.lines().filter_map(pair).collect()
}

/// A list such as "0-3,7", number by number.
fn numbers(list: &str) -> Vec<u32> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?)
    };
    list.trim().split(',').filter_map(range).flatten().collect()
}

/// "some avg10=0.00 … total=0" lines of pressure files.
fn pressure(text: &str) -> Value {
    let line = |line: &str| {
        let (kind, values) = line.split_once(' ')?;
        let value = |pair: &str| {
            let (name, value) = pair.split_once('=')?;
            Some((name.to_owned(), json!(value.parse::<f64>().ok()?)))
        };
        let values: serde_json::Map<String, Value> = values.split(' ').filter_map(value).collect();
        Some((kind.to_owned(), Value::Object(values)))
    };
    match text.lines().filter_map(line).collect::<serde_json::Map<_, _>>() {
        map if map.is_empty() => Value::Null,
        map => Value::Object(map),
    }
}

/// "8:0 rbytes=1 wbytes=2 …" lines: one entry for each device and direction.
fn io(text: &str) -> Vec<Value> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse::<u64>(), minor.parse::<u64>()) else {
            continue;
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let operation = match name {
                "rbytes" => "Read",
                "wbytes" => "Write",
                _ => continue,
            };
            entries.push(json!({"major": major, "minor": minor, "op": operation, "value": value.parse::<u64>().ok()}));
        }
    }
    entries
}

fn hugetlb(cgroup: &Cgroup) -> Value {
    let names = std::fs::read_dir(cgroup.dir()).into_iter().flatten().flatten();
    let sizes = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
        (!size.contains('.')).then(|| size.to_owned())
    });
    let read = |size: &str, file: &str| {
        let text = std::fs::read_to_string(cgroup.dir().join(format!("hugetlb.{size}.{file}"))).ok()?;
        text.trim().trim_start_matches("max ").parse::<u64>().ok()
    };
    sizes
        .map(|size| {
            let entry = json!({"usage": read(&size, "current"), "failcnt": read(&size, "events")});
            (size, entry)
        })
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_gos() {
        assert_eq!(duration("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(duration("5s").unwrap(), Duration::from_secs(5));
        assert_eq!(duration("1.5m").unwrap(), Duration::from_secs(90));
        for text in ["5", "0s", "-1s", "s", "1d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_kernels_files_are_read() {
        assert_eq!(numbers("0-2,7\n"), [0, 1, 2, 7]);
        assert!(numbers("\n").is_empty());
        assert_eq!(pairs("usage_usec 12\nbroken\n")["usage_usec"], 12);
        assert_eq!(pressure("some avg10=1.50 total=9\n")["some"]["avg10"], 1.5);
        assert_eq!(io("8:0 rbytes=4096 wbytes=0 rios=1\n")[0]["value"], 4096);
    }
}
