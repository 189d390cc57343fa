//! What must hold for any input, however hostile: nothing panics, no path leaves its root, a plan is a function of its
//! input, a filter ends. The fuzzers (runtime/fuzz) look for counterexamples without end, the tests below for a second.

use std::ffi::CStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use crate::cgroup::{Hierarchy, Limits};
use crate::plan::Plan;
use crate::plan::process::ProcessPlan;
use crate::{seccomp, spec};

/// Where the bundle would be.
const BUNDLE: &str = "/bundle";
/// Architecture numbers that the kernel could hand to a filter: x86-64, i386, and one that no filter of ours knows.
const ARCHITECTURES: [u32; 3] = [0xc000_003e, 0x4000_0003, 0xc000_00b7];

/// config.json → plan. True if there is one.
///
/// # Panics
/// A property does not hold.
pub fn configuration(text: &[u8]) -> bool {
    let plan = || {
        let spec = spec::parse_texts(text).0.ok()?;
        Plan::new(&spec, Path::new(BUNDLE)).ok()
    };
    let Some(first) = plan() else { return false };
    let paths = first.mounts.iter().map(|mount| mount.target.as_c_str());
    let paths = paths.chain(first.devices.iter().map(|device| device.path.as_c_str()));
    for path in paths.chain(first.masked.iter().chain(&first.readonly).map(|path| path.as_c_str())) {
        stays_inside(path);
    }
    for (path, _) in &first.sysctls {
        stays_inside(path);
    }
    assert!(
        first.process.cwd.to_bytes().starts_with(b"/"),
        "cwd {:?}",
        first.process.cwd
    );
    let again = plan().map(|plan| print(&plan));
    assert_eq!(Some(print(&first)), again, "two plans of one configuration differ");
    true
}

/// process.json of `exec` → plan. True if there is one.
///
/// # Panics
/// A property does not hold.
pub fn exec_process(text: &[u8]) -> bool {
    let Ok(process) = spec::parse_texts(text).1 else {
        return false;
    };
    let Ok(plan) = ProcessPlan::new(&process, None) else {
        return false;
    };
    assert_eq!((plan.uid, plan.gid), (process.user().uid(), process.user().gid()));
    assert!(plan.cwd.to_bytes().starts_with(b"/"), "cwd {:?}", plan.cwd);
    assert!(plan.by_path || plan.candidates.len() == 1);
    true
}

/// cgroupsPath and resources. True if both are accepted.
///
/// # Panics
/// A property does not hold.
pub fn cgroup(path: &str, id: &str, resources: &[u8]) -> bool {
    let mount = Path::new("/sys/fs/cgroup");
    let path = Path::new("/").join(path);
    let group = Hierarchy::at(mount).container(Some(&path), id);
    if let Ok(group) = &group {
        let below = group.dir().strip_prefix(mount).expect("below the mount");
        assert!(!below.as_os_str().is_empty(), "{path:?} is the root of the hierarchy");
        assert!(
            below.components().all(|part| matches!(part, Component::Normal(_))),
            "{path:?} leads out"
        );
    }
    let limits = || {
        let resources = serde_json::from_slice(resources).ok()?;
        Limits::new(Some(&resources)).ok()
    };
    let Some(first) = limits() else { return false };
    for setting in first.settings() {
        assert!(
            !setting.file.contains('/'),
            "{setting:?} is not in the group's directory"
        );
        assert!(
            setting.file.contains('.') && setting.file != "..",
            "{setting:?} is no file of a controller"
        );
    }
    let again = limits().map(|limits| limits.settings().to_vec());
    assert_eq!(
        Some(first.settings().to_vec()),
        again,
        "two readings of one text differ"
    );
    group.is_ok()
}

/// A seccomp profile → a filter that the kernel would take, and that ends for every call. True if there is one.
///
/// # Panics
/// A property does not hold.
pub fn filter(profile: &[u8], number: u32, arguments: [u64; 6]) -> bool {
    let Ok(profile) = serde_json::from_slice::<spec::LinuxSeccomp>(profile) else {
        return false;
    };
    let Ok(Some(filter)) = seccomp::compile(&profile) else {
        return false;
    };
    assert!(filter.program.len() <= 4096, "{} instructions", filter.program.len());
    for architecture in ARCHITECTURES {
        // Panics for a jump out of the program or an instruction that is none.
        let action = seccomp::run(&filter.program, architecture, number, arguments);
        let same = seccomp::run(&filter.program, architecture, number, arguments);
        assert_eq!(action, same);
        let known = [
            0,
            0x3_0000,
            0x5_0000,
            0x7fc0_0000,
            0x7ff0_0000,
            0x7ffc_0000,
            0x7fff_0000,
            0x8000_0000,
        ];
        assert!(known.contains(&(action & 0xffff_0000)), "action {action:#x}");
    }
    let stored = seccomp::Filter::from_bytes(&filter.to_bytes()).expect("a filter that was stored");
    assert_eq!(stored.to_bytes(), filter.to_bytes());
    true
}

/// Relative, without a way up, and not empty.
fn stays_inside(path: &CStr) {
    let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
    let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    assert!(
        !path.as_os_str().is_empty() && path.components().all(inside),
        "{path:?} leads out of the root"
    );
}

/// Everything of a plan that can be seen.
fn print(plan: &Plan) -> String {
    let mut text = String::new();
    let process = &plan.process;
    let _ = write!(
        text,
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        plan.namespaces,
        plan.rootfs,
        plan.rootfs_propagation,
        plan.mounts,
        plan.devices,
        plan.masked,
        plan.readonly,
        plan.sysctls,
        plan.limits.settings(),
        plan.net_devices,
        plan.rdt,
    );
    let _ = write!(
        text,
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        process.argv.strings(),
        process.envp.strings(),
        process.candidates,
        process.cwd,
        (process.uid, process.gid, &process.groups, process.umask),
        process
            .rlimits
            .iter()
            .map(|(number, limit)| (number, limit.rlim_cur, limit.rlim_max))
            .collect::<Vec<_>>(),
        process.seccomp.as_ref().map(|filter| filter.to_bytes()),
    );
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::{Value, json};

    use super::*;

    /// Seeds of the fuzzers: one ordinary input each.
    const CONFIG: &[u8] = include_bytes!("../fuzz/seeds/plan/ordinary.json");
    const PROCESS: &[u8] = include_bytes!("../fuzz/seeds/process/ordinary.json");
    const RESOURCES: &[u8] = include_bytes!("../fuzz/seeds/cgroup/ordinary.json");
    const PROFILE: &[u8] = include_bytes!("../fuzz/seeds/seccomp/ordinary.json");

    /// Texts that are paths, names and numbers where another kind was expected, too.
    fn hostile_text() -> impl Strategy<Value = String> {
        const KNOWN: &[&str] = &[
            "",
            "/",
            "//",
            ".",
            "..",
            "/..",
            "/../../etc",
            "proc",
            "/proc",
            "/proc/self",
            "a/../../b",
            "/dev/./../x",
            "\0",
            "a\0b",
            "ü",
            "rbind",
            "ridmap",
            "ro",
            "nosuid=1",
            "=",
            "a=b",
            "net.ipv4.ip_forward",
            "kernel/../vm/overcommit",
            "net/../../x",
            "bind",
            "tmpfs",
            "proc",
            "cgroup",
            "-1",
            "18446744073709551616",
            "2MB",
            "../memory.max",
            "cgroup.procs",
        ];
        prop_oneof![select(KNOWN).prop_map(str::to_owned), "[a-z./]{0,40}", ".{0,12}"]
    }

    fn hostile_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            Just(json!(1e300)),
            hostile_text().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(hostile_text(), inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Put values in the place of some parts of a document, chosen by number.
    fn replace(document: &mut Value, changes: &[(usize, Value)]) {
        for (choice, value) in changes {
            let count = parts(document, &mut |_| ());
            let (mut at, wanted) = (0, choice % count);
            parts(document, &mut |part| {
                if at == wanted {
                    *part = value.clone();
                }
                at += 1;
            });
        }
    }

    /// Visit a value and everything below it, a replaced part no further; how many there were.
    fn parts(value: &mut Value, visit: &mut dyn FnMut(&mut Value)) -> usize {
        let below = match value {
            Value::Array(items) => items.iter_mut().map(|item| parts(item, visit)).sum(),
            Value::Object(fields) => fields.values_mut().map(|field| parts(field, visit)).sum(),
            _ => 0,
        };
        visit(value);
        below + 1
    }

    fn changed(seed: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((any::<usize>(), hostile_value()), 0..4).prop_map(move |changes| {
            let mut document: Value = serde_json::from_slice(seed).unwrap();
            replace(&mut document, &changes);
            document.to_string().into_bytes()
        })
    }

    /// Bytes of a seed with some of them overwritten.
    fn damaged(seed: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((0..seed.len(), any::<u8>()), 1..6).prop_map(move |changes| {
            let mut bytes = seed.to_vec();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            bytes
        })
    }

    #[test]
    fn the_seeds_are_accepted() {
        assert!(configuration(CONFIG));
        assert!(exec_process(PROCESS));
        assert!(cgroup("/pods/one", "id", RESOURCES));
        assert!(filter(PROFILE, 0, [0; 6]));
    }

    #[test]
    fn a_path_that_leads_out_is_seen() {
        for path in [c"", c"/etc", c"../etc", c"a/../../b"] {
            assert!(std::panic::catch_unwind(|| stays_inside(path)).is_err(), "{path:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn configurations(text in prop_oneof![changed(CONFIG), damaged(CONFIG)]) {
            configuration(&text);
        }

        #[test]
        fn processes(text in prop_oneof![changed(PROCESS), damaged(PROCESS)]) {
            exec_process(&text);
        }

        #[test]
        fn cgroups(path in hostile_text(), id in hostile_text(), text in prop_oneof![changed(RESOURCES), damaged(RESOURCES)]) {
            cgroup(&path, &id, &text);
        }

        #[test]
        fn filters(text in prop_oneof![changed(PROFILE), damaged(PROFILE)], number in prop_oneof![0..500u32, any::<u32>()], arguments in any::<[u64; 6]>()) {
            filter(&text, number, arguments);
        }
    }
}
