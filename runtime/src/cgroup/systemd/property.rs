//! Properties of a transient unit: those that mean what a cgroup file means, and those that annotations ask for.
//! systemd.resource-control(5), org.freedesktop.systemd1(5).

use super::wire::Body;
use crate::cgroup::Setting;
use crate::error::{Error, Result};

/// "No limit", as systemd writes it.
const INFINITY: u64 = u64::MAX;
const MICROSECONDS: u64 = 1_000_000;
/// systemd rounds quotas to 10 ms of a second.
const QUOTA_STEP: u64 = 10_000;

/// One property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Property {
    name: String,
    value: Value,
}

/// The types that occur.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(String),
    Flag(bool),
    Signed32(i32),
    Signed64(i64),
    Unsigned32(u32),
    Unsigned64(u64),
    Bytes(Vec<u8>),
    Numbers(Vec<u32>),
}

impl Property {
    pub fn text(name: &str, value: &str) -> Property {
        Property::new(name, Value::Text(value.to_owned()))
    }

    pub fn flag(name: &str, value: bool) -> Property {
        Property::new(name, Value::Flag(value))
    }

    pub fn pids(pid: u32) -> Property {
        Property::new("PIDs", Value::Numbers(vec![pid]))
    }

    fn number(name: &str, value: u64) -> Property {
        Property::new(name, Value::Unsigned64(value))
    }

    fn new(name: &str, value: Value) -> Property {
        Property {
            name: name.to_owned(),
            value,
        }
    }

    /// From an annotation: the value in GVariant's text format, as far as units need it. `…Sec` is given in seconds.
    pub fn parse(name: &str, text: &str) -> Result<Property> {
        let wrong = || {
            Error::invalid(format!(
                "annotation {}{name}: {text:?} is not a value such as true, 'text', 5 or uint64 5",
                super::ANNOTATION
            ))
        };
        let known = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic());
        let (kind, plain) = text.trim().split_once(' ').unwrap_or(("", text.trim()));
        let quoted = |quote: char| plain.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
        let value = match (kind, plain) {
            ("" | "boolean", "true") => Value::Flag(true),
            ("" | "boolean", "false") => Value::Flag(false),
            ("uint32", number) => Value::Unsigned32(number.parse().map_err(|_| wrong())?),
            ("uint64", number) => Value::Unsigned64(number.parse().map_err(|_| wrong())?),
            ("int64", number) => Value::Signed64(number.parse().map_err(|_| wrong())?),
            ("" | "int32", number) if number.parse::<i32>().is_ok() => {
                Value::Signed32(number.parse().map_err(|_| wrong())?)
            }
            _ => match quoted('\'').or_else(|| quoted('"')).filter(|_| kind.is_empty()) {
                Some(text) => Value::Text(text.to_owned()),
                None => return Err(wrong()),
            },
        };
        if !known {
            return Err(wrong());
        }
        // systemd's own names for times are in microseconds.
        match (name.strip_suffix("Sec").filter(|stem| !stem.ends_with('U')), &value) {
            (Some(stem), &Value::Signed32(seconds @ 0..)) => {
                Ok(Property::number(&format!("{stem}USec"), seconds as u64 * MICROSECONDS))
            }
            (Some(stem), &Value::Unsigned32(seconds)) => Ok(Property::number(
                &format!("{stem}USec"),
                u64::from(seconds) * MICROSECONDS,
            )),
            (Some(stem), &Value::Unsigned64(seconds)) => Ok(Property::number(
                &format!("{stem}USec"),
                seconds.saturating_mul(MICROSECONDS),
            )),
            _ => Ok(Property::new(name, value)),
        }
    }
}

/// What systemd has a property for; the other files are written by us alone, into the delegated group.
pub(super) fn of_limits(settings: &[Setting]) -> Vec<Property> {
    settings.iter().flat_map(of_setting).collect()
}

fn of_setting(setting: &Setting) -> Vec<Property> {
    let limit = |name: &str| match setting.value.as_str() {
        "max" => vec![Property::number(name, INFINITY)],
        value => value
            .parse()
            .map(|value| Property::number(name, value))
            .into_iter()
            .collect(),
    };
    match setting.file.as_str() {
        "memory.max" => limit("MemoryMax"),
        "memory.high" => limit("MemoryHigh"),
        "memory.low" => limit("MemoryLow"),
        "memory.min" => limit("MemoryMin"),
        "memory.swap.max" => limit("MemorySwapMax"),
        "pids.max" => limit("TasksMax"),
        "cpu.weight" => limit("CPUWeight"),
        "cpu.max" => quota(&setting.value),
        "cpuset.cpus" => bits(&setting.value)
            .map(|bits| Property::new("AllowedCPUs", Value::Bytes(bits)))
            .into_iter()
            .collect(),
        "cpuset.mems" => bits(&setting.value)
            .map(|bits| Property::new("AllowedMemoryNodes", Value::Bytes(bits)))
            .into_iter()
            .collect(),
        "io.weight" => match setting
            .value
            .strip_prefix("default ")
            .and_then(|weight| weight.parse().ok())
        {
            Some(weight) => vec![Property::number("IOWeight", weight)],
            None => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// "quota period" of cpu.max; the quota is rounded up, as systemd would round it down.
fn quota(value: &str) -> Vec<Property> {
    let Some((quota, period)) = value.split_once(' ') else {
        return Vec::new();
    };
    let Some(period) = period.parse::<u64>().ok().filter(|&period| period > 0) else {
        return Vec::new();
    };
    let per_second = match quota.parse::<u64>() {
        Ok(quota) => (quota.saturating_mul(MICROSECONDS) / period).next_multiple_of(QUOTA_STEP),
        Err(_) => INFINITY,
    };
    vec![
        Property::number("CPUQuotaPeriodUSec", period),
        Property::number("CPUQuotaPerSecUSec", per_second),
    ]
}

/// A list such as "0-3,7" as a bit mask, lowest byte first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        for number in first..=last.min(8191) {
            if number / 8 >= bits.len() {
                bits.resize(number / 8 + 1, 0);
            }
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    Some(bits)
}

/// `a(sv)`.
pub(super) fn write(properties: &[Property], body: &mut Body) {
    body.array(8, |array| {
        for property in properties {
            array.structure().string(&property.name);
            match &property.value {
                Value::Text(text) => array.signature("s").string(text),
                Value::Flag(flag) => array.signature("b").bool(*flag),
                Value::Signed32(number) => array.signature("i").u32(*number as u32),
                Value::Signed64(number) => array.signature("x").u64(*number as u64),
                Value::Unsigned32(number) => array.signature("u").u32(*number),
                Value::Unsigned64(number) => array.signature("t").u64(*number),
                Value::Bytes(bytes) => array.signature("ay").array(1, |array| {
                    for &byte in bytes {
                        array.byte(byte);
                    }
                }),
                Value::Numbers(numbers) => array.signature("au").array(4, |array| {
                    for &number in numbers {
                        array.u32(number);
                    }
                }),
            };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Limits;

    fn limits(json: serde_json::Value) -> Vec<Property> {
        let limits = Limits::new(Some(&serde_json::from_value(json).unwrap())).unwrap();
        of_limits(limits.settings())
    }

    #[test]
    fn limits_are_told_in_systemds_words() {
        let properties = limits(serde_json::json!({
            "memory": {"limit": 1000, "swap": -1}, "pids": {"limit": -1},
            "cpu": {"quota": 50000, "period": 100000, "shares": 1024, "cpus": "0-2,8"}
        }));
        let value = |name: &str| &properties.iter().find(|property| property.name == name).unwrap().value;
        assert_eq!(*value("MemoryMax"), Value::Unsigned64(1000));
        assert_eq!(*value("MemorySwapMax"), Value::Unsigned64(INFINITY));
        assert_eq!(*value("TasksMax"), Value::Unsigned64(INFINITY));
        assert_eq!(*value("CPUQuotaPerSecUSec"), Value::Unsigned64(500_000));
        assert_eq!(*value("CPUWeight"), Value::Unsigned64(100));
        assert_eq!(*value("AllowedCPUs"), Value::Bytes(vec![7, 1]));
    }

    #[test]
    fn annotations_are_values_of_gvariant() {
        let value =
            |name: &str, text: &str| Property::parse(name, text).map(|property| (property.name, property.value));
        assert_eq!(value("SendSIGKILL", "false").unwrap().1, Value::Flag(false));
        assert_eq!(
            value("CollectMode", "'inactive-or-failed'").unwrap().1,
            Value::Text("inactive-or-failed".into())
        );
        assert_eq!(
            value("TimeoutStopUSec", "uint64 5").unwrap(),
            ("TimeoutStopUSec".into(), Value::Unsigned64(5))
        );
        assert_eq!(
            value("TimeoutStopSec", "uint64 5").unwrap(),
            ("TimeoutStopUSec".into(), Value::Unsigned64(5_000_000))
        );
        for (name, text) in [
            ("", "true"),
            ("X", "yes"),
            ("X Y", "true"),
            ("X", "uint64 x"),
            ("X", "[1, 2]"),
        ] {
            assert!(Property::parse(name, text).is_err(), "{name} {text}");
        }
    }
}
