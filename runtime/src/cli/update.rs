//! `update`: new limits from a file of resources or from flags.

use std::path::Path;

use hull_runtime::container;
use hull_runtime::error::{Error, Result};
use hull_runtime::spec::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources};

use super::args::{Args, Flags};

const UPDATE: Flags = Flags {
    switches: &[],
    values: &[
        "resources|r",
        "memory",
        "memory-swap",
        "memory-reservation",
        "cpu-period",
        "cpu-quota",
        "cpu-burst",
        "cpu-share",
        "cpu-idle",
        "cpuset-cpus",
        "cpuset-mems",
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
    let mut memory = LinuxMemory::default();
    memory
        .set_limit(args.number("memory")?)
        .set_swap(args.number("memory-swap")?)
        .set_reservation(args.number("memory-reservation")?);
    let mut cpu = LinuxCpu::default();
    cpu.set_period(args.number("cpu-period")?)
        .set_quota(args.number("cpu-quota")?)
        .set_burst(args.number("cpu-burst")?)
        .set_shares(args.number("cpu-share")?)
        .set_idle(args.number("cpu-idle")?)
        .set_cpus(args.value("cpuset-cpus").map(str::to_owned))
        .set_mems(args.value("cpuset-mems").map(str::to_owned));
    let pids = args.number("pids-limit")?.map(|limit| {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        pids
    });
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory)).set_cpu(Some(cpu)).set_pids(pids);
    Ok(resources)
}
