//! Every limit of the runtime, set, read back from outside and inside, and enforced, in a VM with a whole cgroup v2:
//! memory, swap, cpu, cpuset, pids, io, huge pages, devices, freezer, the end of a fork bomb (FAULTS 13, 15, 18, 38).
//! One boot for all: limits.sh prints "check NAME VALUE", and here stands what each value must be.

use std::collections::BTreeMap;
use std::time::Duration;

use xtask::vm::{self, Job, Kit};

/// Emulation is slow: a job that takes this long hangs.
const TIMEOUT: Duration = Duration::from_secs(280);

/// What the script found.
struct Checks(BTreeMap<String, String>);

impl Checks {
    fn run() -> Checks {
        let disk = tempfile::NamedTempFile::new().expect("temporary file");
        disk.as_file().set_len(128 << 20).expect("size the disk");
        let job = Job {
            name: "limits".to_owned(),
            files: vm::runtime_binaries().expect("the built binaries"),
            script: include_str!("limits.sh").to_owned(),
            disk: Some(disk.path().to_path_buf()),
            memory_mib: 1024,
            timeout: TIMEOUT,
        };
        let output = vm::check(&Kit::prepare().expect("VM kit"), &job).expect("the job");
        let lines = output.lines().filter_map(|line| line.strip_prefix("check "));
        let parts = lines.map(|line| line.split_once(' ').unwrap_or((line, "")));
        Checks(parts.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[track_caller]
    fn value(&self, name: &str) -> &str {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("{name} was not checked: {:#?}", self.0))
    }

    #[track_caller]
    fn is(&self, name: &str, expected: &str) {
        assert_eq!(self.value(name), expected, "{name}");
    }

    #[track_caller]
    fn contains(&self, name: &str, expected: &[&str]) {
        let value = self.value(name);
        for part in expected {
            assert!(value.contains(part), "{name}: {part:?} is not in {value:?}");
        }
    }

    /// A whole number within bounds, both inclusive.
    #[track_caller]
    fn within(&self, name: &str, least: i64, most: i64) {
        let value = self.value(name);
        let number: i64 = value
            .parse()
            .unwrap_or_else(|_| panic!("{name}: {value:?} is not a number"));
        assert!(
            (least..=most).contains(&number),
            "{name}: {number} is not in {least}..={most}"
        );
    }
}

/// File, value as created, value after the update.
const FILES: [(&str, &str, &str); 12] = [
    ("memory.max", "67108864", "134217728"),
    ("memory.low", "33554432", "16777216"),
    // Rounded down to whole pages.
    ("memory.high", "59998208", "max"),
    ("memory.swap.max", "67108864", "0"),
    ("memory.oom.group", "1", "0"),
    ("cpu.max", "50000 100000", "max 50000"),
    ("cpu.max.burst", "10000", "10000"),
    ("cpu.weight", "100", "1"),
    ("cpuset.cpus", "1", "0-1"),
    ("cpuset.mems", "0", "0"),
    ("pids.max", "64", "max"),
    ("hugetlb.2MB.max", "4194304", "2097152"),
];

#[test]
fn every_limit_holds() {
    let checks = Checks::run();
    set_and_updated(&checks);
    memory(&checks);
    cpu(&checks);
    processes(&checks);
    io_and_devices(&checks);
    for left in ["left.containers", "left.groups", "left.processes"] {
        checks.is(left, "0");
    }
}

fn set_and_updated(checks: &Checks) {
    for (file, created, updated) in FILES {
        checks.is(&format!("outside.{file}"), created);
        checks.is(&format!("inside.{file}"), created);
        checks.is(&format!("updated.{file}"), updated);
    }
    let io = checks.value("outside.io.max");
    assert!(io.ends_with("rbps=1048576 wbps=max riops=max wiops=77"), "{io}");
    checks.is("inside.io.max", io);
    checks.contains("updated.io.max", &["rbps=2097152"]);
    checks.contains("inside.write", &["Read-only file system"]);
    checks.is("update.exit", "0");
    checks.contains(
        "events.stats",
        &[
            "\"type\":\"stats\"",
            "\"id\":\"all\"",
            "\"pids\"",
            "\"limit\":134217728",
            "\"cpu\"",
        ],
    );
    checks.is("all.gone", "yes");
}

fn memory(checks: &Checks) {
    checks.contains("guilty.event", &["\"type\":\"oom\"", "\"id\":\"guilty\""]);
    checks.is("guilty.oom_kill", "1");
    checks.is("modest.oom_kill", "0");
    checks.is("modest.status", "running");
    checks.is("guilty.gone", "yes");
    checks.is("init-oom.exit", "137");
    checks.is("high.exit", "0");
    checks.within("high.events", 1, i64::MAX);
    checks.is("high.oom_kill", "0");
    checks.is("swapped.exit", "0");
    checks.is("swapped.max", "33554432");
    checks.within("swapped.peak", 1 << 20, 32 << 20);
    checks.within("unswapped.oom_kill", 1, i64::MAX);
    checks.is("unswapped.peak", "0");
}

fn cpu(checks: &Checks) {
    checks.within("tenth.percent", 1, 20);
    checks.within("tenth.throttled", 1, i64::MAX);
    checks.is("tenth.updated", "50000 100000");
    checks.is("frozen.status", "paused");
    checks.is("frozen.event", "1");
    checks.is("frozen.usage", "0");
    checks.contains("frozen.exec", &["paused container"]);
    checks.is("thawed.status", "running");
    checks.within("thawed.usage", 1, i64::MAX);
    checks.is("frozen.delete", "0");
    checks.is("tenth.gone", "yes");
    checks.within("weights.ratio", 5, i64::MAX);
    checks.is("cpuset.allowed", "Cpus_allowed_list:0");
    checks.is("cpuset.updated", "Cpus_allowed_list:1");
}

fn processes(checks: &Checks) {
    checks.within("bomb.refused", 1, i64::MAX);
    checks.within("bomb.peak", 2, 64);
    checks.is("bomb.status", "running");
    checks.is("bomb.delete", "0");
    checks.is("bomb.gone", "yes");
    checks.is("bomb.again", "0");
    checks.is("stubborn.status", "running");
    checks.is("stubborn.populated", "0");
    checks.is("stubborn.gone", "yes");
}

fn io_and_devices(checks: &Checks) {
    // 2.5 MiB at 1 MiB a second, in hundredths of a second: emulation only makes it slower.
    checks.within("io.slower", 100, i64::MAX);
    checks.is("slow.read", "rbytes=2621440");
    checks.is("huge.got", "huge pages: 2");
    checks.within("huge.events", 1, i64::MAX);
    checks.is(
        "devices.said",
        "disk-read sh: can't create /tmp/disk: Operation not permitted head: /tmp/kmsg: Operation not permitted null urandom",
    );
    checks.is("no-mknod.said", "mknod: /tmp/kmsg2: Operation not permitted made");
}
