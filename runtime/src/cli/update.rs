//! `update`: new limits from a file of resources or from flags.

use std::path::Path;

use hull_runtime::container;
use hull_runtime::error::{Error, Result};
use hull_runtime::spec::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::args::{Args, Flags};

const UPDATE: Flags = Flags {
    switches: &[],
    values: &[
        "resources|r",
        "blkio-weight",
        "cpu-burst",
        "cpu-idle",
        "cpu-period",
        "cpu-quota",
        "cpu-rt-period",
        "cpu-rt-runtime",
        "cpu-share|cpu-shares",
        "cpuset-cpus",
        "cpuset-mems",
        "kernel-memory",
        "kernel-memory-tcp",
        "l3-cache-schema",
        "mem-bw-schema",
        "memory",
        "memory-reservation",
        "memory-swap",
        "pids-limit",
    ],
    interspersed: true,
};

pub(super) fn update(root: &Path, arguments: &[String]) -> Result<i32> {
    let args = UPDATE.parse(arguments)?;
    let resources = match args.value("resources") {
        Some(path) => read(path)?,
        None => from_flags(&args)?,
    };
    container::update(root, args.only_id()?, &resources)?;
    Ok(0)
}

fn read(path: &str) -> Result<LinuxResources> {
    let bytes = match path {
        "-" => {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::stdin(), &mut bytes).map(|_| bytes)
        }
        path => std::fs::read(path),
    };
    let bytes = bytes.map_err(|e| Error::os(format!("read {path}"), e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::invalid(format!("{path}: {e}")))
}

fn from_flags(args: &Args) -> Result<LinuxResources> {
    for schema in ["l3-cache-schema", "mem-bw-schema"] {
        if args.path(schema).is_some() {
            return Err(Error::invalid(format!(
                "--{schema}: the class of a running container is changed in resctrl itself"
            )));
        }
    }
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(bytes(args, "memory")?)
        .set_swap(bytes(args, "memory-swap")?)
        .set_reservation(bytes(args, "memory-reservation")?)
        .set_kernel(bytes(args, "kernel-memory")?)
        .set_kernel_tcp(bytes(args, "kernel-memory-tcp")?);
    let mut cpu = LinuxCpu::default();
    cpu.set_period(args.number("cpu-period")?)
        .set_quota(args.number("cpu-quota")?)
        .set_burst(args.number("cpu-burst")?)
        .set_shares(args.number("cpu-share")?)
        .set_idle(args.number("cpu-idle")?)
        .set_realtime_period(args.number("cpu-rt-period")?)
        .set_realtime_runtime(args.number("cpu-rt-runtime")?)
        .set_cpus(args.value("cpuset-cpus").map(str::to_owned))
        .set_mems(args.value("cpuset-mems").map(str::to_owned));
    let pids = args.number("pids-limit")?.map(|limit| {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        pids
    });
    let io = args.number("blkio-weight")?.map(|weight| {
        let mut io = LinuxBlockIo::default();
        io.set_weight(Some(weight));
        io
    });
    let mut resources = LinuxResources::default();
    resources
        .set_memory(Some(memory))
        .set_cpu(Some(cpu))
        .set_pids(pids)
        .set_block_io(io);
    Ok(resources)
}

/// A number of bytes, with a unit of base 1024 behind it if one likes: 64M, 1GiB; -1 is no limit.
fn bytes(args: &Args, name: &str) -> Result<Option<i64>> {
    args.value(name).map(|text| parse_bytes(name, text)).transpose()
}

fn parse_bytes(name: &str, text: &str) -> Result<i64> {
    const UNITS: &str = "kmgtp";
    let wrong = || Error::invalid(format!("--{name}: {text:?} is not a number of bytes such as 512M"));
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches('b').trim_end_matches('i');
    let (number, unit) = match number.chars().last().and_then(|unit| UNITS.find(unit)) {
        Some(unit) => (&number[..number.len() - 1], unit as u32 + 1),
        None => (number, 0),
    };
    let number: i64 = number.trim_end().parse().map_err(|_| wrong())?;
    number.checked_mul(1 << (10 * unit)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_may_have_a_unit() {
        for (text, expected) in [
            ("4096", 4096),
            ("64M", 64 << 20),
            ("1GiB", 1 << 30),
            ("2kb", 2048),
            ("-1", -1),
        ] {
            assert_eq!(parse_bytes("memory", text).unwrap(), expected, "{text}");
        }
        for text in ["", "M", "1X", "9999999999G", "one"] {
            assert!(parse_bytes("memory", text).is_err(), "{text}");
        }
    }
}
