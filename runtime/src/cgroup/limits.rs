//! `linux.resources` → the files of cgroup v2 and the values to write. Pure.
//! config-linux.md, "Control groups"; conversions from version 1 as runc and the kubelet do them.

use super::{devices, version1};
use crate::error::{Error, Result};
use crate::spec::{self, LinuxBlockIo, LinuxCpu, LinuxMemory};

/// cpu.weight of every group that nobody gave another.
const DEFAULT_WEIGHT: u64 = 100;
/// Files of a group that are no limits; the container would never come to run, or take in processes of others.
const ACTIONS: [&str; 4] = ["cgroup.freeze", "cgroup.kill", "cgroup.procs", "cgroup.threads"];

/// One value for one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// File in the group's directory.
    pub file: String,
    /// What to write.
    pub value: String,
    /// Its absence changes nothing: the value is what holds anyway.
    pub dispensable: bool,
    /// File and value that mean the same on kernels that lack `file`.
    pub otherwise: Option<(String, String)>,
}

impl Setting {
    fn new(file: impl Into<String>, value: impl ToString) -> Setting {
        let value = value.to_string();
        Setting {
            file: file.into(),
            dispensable: value == "max",
            value,
            otherwise: None,
        }
    }

    fn or(mut self, file: &str, value: String) -> Setting {
        self.otherwise = Some((file.into(), value));
        self
    }

    fn dispensable(mut self) -> Setting {
        self.dispensable = true;
        self
    }

    /// The controller the file belongs to.
    pub fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or(&self.file)
    }
}

/// All limits of one container.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    settings: Vec<Setting>,
    device_program: Option<Vec<devices::Instruction>>,
}

impl Limits {
    /// Check `linux.resources` and lay it out. Without any, devices are still restricted to the default ones.
    pub fn new(resources: Option<&spec::LinuxResources>) -> Result<Limits> {
        let rules = resources
            .and_then(|resources| resources.devices().as_deref())
            .unwrap_or_default();
        let mut limits = Limits {
            settings: Vec::new(),
            device_program: devices::program(rules)?,
        };
        if let Some(resources) = resources {
            limits.settings = settings(resources)?;
        }
        Ok(limits)
    }

    /// The values to write, in order.
    pub fn settings(&self) -> &[Setting] {
        &self.settings
    }

    pub(crate) fn device_program(&self) -> Option<&[devices::Instruction]> {
        self.device_program.as_deref()
    }
}

fn settings(resources: &spec::LinuxResources) -> Result<Vec<Setting>> {
    version1::refuse(resources)?;
    let mut all = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu_settings(cpu, &mut all);
    }
    if let Some(memory) = resources.memory() {
        memory_settings(memory, &mut all)?;
    }
    if let Some(limit) = resources.pids().map(|pids| pids.limit()).filter(|&limit| limit != 0) {
        all.push(Setting::new("pids.max", max(limit)));
    }
    if let Some(io) = resources.block_io() {
        io_settings(io, &mut all)?;
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        if !is_page_size(size) {
            return Err(Error::invalid(format!(
                "linux.resources.hugepageLimits: pageSize {size:?} is not of the form 64KB, 2MB or 1GB"
            )));
        }
        all.push(Setting::new(format!("hugetlb.{size}.max"), page.limit()));
        all.push(Setting::new(format!("hugetlb.{size}.rsvd.max"), page.limit()).dispensable());
    }
    let mut rdma: Vec<_> = resources.rdma().iter().flatten().collect();
    rdma.sort_by_key(|(device, _)| *device);
    for (device, rdma) in rdma {
        let part = |name: &str, value: Option<u32>| value.map(|value| format!(" {name}={value}")).unwrap_or_default();
        let value = serde_json::to_value(rdma).unwrap_or_default();
        let number = |name: &str| {
            value
                .get(name)
                .and_then(|number| number.as_u64())
                .map(|number| number as u32)
        };
        let handles = part("hca_handle", number("hcaHandles"));
        let objects = part("hca_object", number("hcaObjects"));
        all.push(Setting::new("rdma.max", format!("{device}{handles}{objects}")));
    }
    unified(resources, &mut all)?;
    Ok(all)
}

/// `<number><K|M|G>B`.
fn is_page_size(size: &str) -> bool {
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// -1 is "no limit".
fn max(limit: i64) -> String {
    match limit {
        ..0 => "max".into(),
        limit => limit.to_string(),
    }
}

fn cpu_settings(cpu: &LinuxCpu, all: &mut Vec<Setting>) {
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        all.push(Setting::new("cpuset.cpus", cpus));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        all.push(Setting::new("cpuset.mems", mems));
    }
    if let Some(idle) = cpu.idle() {
        all.push(Setting::new("cpu.idle", idle));
    }
    // An idle group has no weight to set.
    if let Some(weight) = cpu.shares().and_then(weight).filter(|_| cpu.idle() != Some(1)) {
        let mut setting = Setting::new("cpu.weight", weight);
        // containerd asks for it in every container.
        setting.dispensable = weight == DEFAULT_WEIGHT;
        all.push(setting);
    }
    // The burst may not exceed the quota: lower it before, raise it after.
    let burst = cpu.burst().map(|burst| Setting::new("cpu.max.burst", burst));
    if let Some(clear) = burst.as_ref().map(|_| Setting::new("cpu.max.burst", 0).dispensable()) {
        all.push(clear);
    }
    if cpu.quota().is_some() || cpu.period().is_some() {
        let quota = cpu
            .quota()
            .filter(|&quota| quota > 0)
            .map_or("max".into(), |quota| quota.to_string());
        let period = cpu.period().filter(|&period| period != 0).unwrap_or(100_000);
        let mut setting = Setting::new("cpu.max", format!("{quota} {period}"));
        setting.dispensable = quota == "max";
        all.push(setting);
    }
    all.extend(burst);
}

/// cpu.shares (2 to 262144, 1024 is one CPU's worth) to cpu.weight (1 to 10000, 100 is the default): the curve
/// through (2, 1), (1024, 100), (262144, 10000) that runc and crun use since 2025.
fn weight(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some(10f64.powf(exponent).ceil() as u64)
        }
    }
}

fn memory_settings(memory: &LinuxMemory, all: &mut Vec<Setting>) -> Result<()> {
    let limit = memory.limit().filter(|&limit| limit != 0);
    if let Some(reservation) = memory.reservation().filter(|&reservation| reservation != 0) {
        all.push(Setting::new("memory.low", max(reservation)));
    }
    // Version 1 counts memory and swap together, version 2 swap alone.
    match (memory.swap().filter(|&swap| swap != 0), limit) {
        // Version 1 had no limit of memory and swap either, then.
        (None, Some(-1)) => all.push(Setting::new("memory.swap.max", "max")),
        (None, _) => (),
        (Some(-1), _) => all.push(Setting::new("memory.swap.max", "max")),
        (Some(swap), Some(limit)) if limit > 0 && swap >= limit => {
            let mut setting = Setting::new("memory.swap.max", swap - limit);
            // A kernel without swap accounting has no such file, and no swap to give.
            setting.dispensable = swap == limit;
            all.push(setting);
        }
        (Some(swap), Some(limit)) if limit > 0 => {
            return Err(Error::invalid(format!(
                "linux.resources.memory: swap {swap} is below limit {limit}; it counts memory and swap together"
            )));
        }
        (Some(_), _) => {
            return Err(Error::invalid(
                "linux.resources.memory: swap is limited, but memory is not",
            ));
        }
    }
    if let Some(limit) = limit {
        all.push(Setting::new("memory.max", max(limit)));
    }
    Ok(())
}

/// Weights from 10 to 1000 are those of BFQ, whose scheduler takes them as they are; io.weight goes from 1 to 10000.
fn io_settings(io: &LinuxBlockIo, all: &mut Vec<Setting>) -> Result<()> {
    let weight = |target: &str, weight: u16| match weight {
        10..=1000 => {
            let converted = 1 + (u64::from(weight) - 10) * 9999 / 990;
            let setting = Setting::new("io.weight", format!("{target} {converted}"));
            Ok(setting.or("io.bfq.weight", format!("{target} {weight}")))
        }
        _ => Err(Error::invalid(format!(
            "linux.resources.blockIO: weight {weight} is not between 10 and 1000"
        ))),
    };
    if let Some(default) = io.weight().filter(|&weight| weight != 0) {
        all.push(weight("default", default)?);
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(own) = device.weight().filter(|&weight| weight != 0) {
            all.push(weight(&format!("{}:{}", device.major(), device.minor()), own)?);
        }
    }
    let throttles = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (name, devices) in throttles {
        for device in devices.iter().flatten() {
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let value = format!("{}:{} {name}={rate}", device.major(), device.minor());
            all.push(Setting::new("io.max", value));
        }
    }
    Ok(())
}

fn unified(resources: &spec::LinuxResources, all: &mut Vec<Setting>) -> Result<()> {
    let mut unified: Vec<(&String, &String)> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (file, value) in unified {
        if file.contains('/') || !file.contains('.') {
            return Err(Error::invalid(format!(
                "linux.resources.unified: the specified key has not the form CONTROLLER.VALUE `{file}`"
            )));
        }
        if ACTIONS.contains(&file.as_str()) {
            return Err(Error::invalid(format!(
                "linux.resources.unified: {file} is no limit, but acts on the processes of the container; leave it out"
            )));
        }
        // Files that hold a value for each of several things take one line in one write.
        all.extend(value.trim_end().split('\n').map(|line| Setting::new(file, line)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(json: serde_json::Value) -> Result<Vec<String>> {
        let limits = Limits::new(Some(&serde_json::from_value(json).unwrap()))?;
        Ok(limits
            .settings()
            .iter()
            .map(|setting| format!("{} {}", setting.file, setting.value))
            .collect())
    }

    #[test]
    fn the_limits_of_a_pod() {
        let lines = lines(serde_json::json!({
            "memory": {"limit": 67108864, "swap": 67108864}, "pids": {"limit": 100},
            "cpu": {"shares": 1024, "quota": 50000, "period": 100000}
        }))
        .unwrap();
        assert_eq!(
            lines,
            [
                "cpu.weight 100",
                "cpu.max 50000 100000",
                "memory.swap.max 0",
                "memory.max 67108864",
                "pids.max 100"
            ]
        );
    }

    #[test]
    fn the_weight_curve_has_its_three_fixed_points() {
        assert_eq!(weight(0), None);
        assert_eq!(weight(2), Some(1));
        assert_eq!(weight(1024), Some(100));
        assert_eq!(weight(262_144), Some(10_000));
        assert_eq!(weight(1_000_000), Some(10_000));
    }

    #[test]
    fn no_limit_needs_no_controller() {
        let limits = serde_json::json!({"memory": {"limit": -1, "swap": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1, "shares": 1024}});
        let limits = Limits::new(Some(&serde_json::from_value(limits).unwrap())).unwrap();
        assert!(
            limits.settings().iter().all(|setting| setting.dispensable),
            "{limits:?}"
        );
        assert!(
            lines(serde_json::json!({"pids": {"limit": 0}, "cpu": {"shares": 0}}))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn io_and_hugepages() {
        let lines = lines(serde_json::json!({
            "blockIO": {"weight": 1000, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}]},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]
        }))
        .unwrap();
        assert_eq!(
            lines,
            [
                "io.weight default 10000",
                "io.max 8:0 rbps=1048576",
                "hugetlb.2MB.max 4194304",
                "hugetlb.2MB.rsvd.max 4194304"
            ]
        );
    }

    #[test]
    fn a_weight_is_also_known_to_the_other_scheduler() {
        let resources = serde_json::json!({"blockIO": {"weight": 500}});
        let limits = Limits::new(Some(&serde_json::from_value(resources).unwrap())).unwrap();
        assert_eq!(limits.settings()[0].value, "default 4950");
        assert_eq!(
            limits.settings()[0].otherwise,
            Some(("io.bfq.weight".into(), "default 500".into()))
        );
        assert!(lines(serde_json::json!({"blockIO": {"weight": 5000}})).is_err());
    }

    #[test]
    fn unified_lines_are_written_one_by_one() {
        let lines = lines(serde_json::json!({"unified": {"io.max": "8:0 rbps=1\n8:16 wiops=2\n"}})).unwrap();
        assert_eq!(lines, ["io.max 8:0 rbps=1", "io.max 8:16 wiops=2"]);
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(lines(serde_json::json!({"memory": {"limit": 100, "swap": 50}})).is_err());
        assert!(lines(serde_json::json!({"memory": {"swap": 50}})).is_err());
        assert!(lines(serde_json::json!({"unified": {"../memory.max": "1"}})).is_err());
    }
}
