//! seccomp: the default profile of container engines, and the compiler from an OCI profile to a BPF filter.
//! The emitter is our own: seccompiler has one action per filter and kills every other architecture, libseccomp is C.
//! config-linux.md, "Seccomp"; seccomp(2).

mod allowed;
pub(crate) mod cache;
mod emit;
mod filter;
#[cfg(any(test, fuzzing))]
mod interpreter;
mod profile;
mod table;

use emit::{Condition, Rule};
pub(crate) use filter::Filter;
#[cfg(any(test, fuzzing))]
pub(crate) use interpreter::run;
pub use profile::default_profile;

use crate::error::{Error, Result};
use crate::spec::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompFilterFlag as Flag, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

/// Actions a profile may name.
pub const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];
/// Comparisons of arguments.
pub const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];
/// Architectures whose system calls are known.
pub const ARCHITECTURES: [&str; 3] = ["SCMP_ARCH_X86", "SCMP_ARCH_X86_64", "SCMP_ARCH_X32"];
/// Flags of a filter.
pub const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

// linux/seccomp.h
const FLAG_TSYNC_ESRCH: u64 = 1 << 4;
const FLAG_WAIT_KILLABLE_RECV: u64 = 1 << 5;

const MAX_ARGUMENTS: usize = 6;
const MAX_ERRNO: u32 = 4095;

/// Compile a profile; `None` where it allows everything.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Option<Filter>> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let calls = profile.syscalls().as_deref().unwrap_or_default();
    let notifies = notifies(profile)?;
    let flags = flags(profile, notifies)?;
    if profile.default_action() == Action::ScmpActAllow && calls.is_empty() {
        return Ok(None);
    }
    let architectures = Architectures::new(profile.architectures().as_deref().unwrap_or_default())?;
    let mut rules = Vec::new();
    for call in calls {
        if call.names().is_empty() {
            return Err(Error::invalid("linux.seccomp: an entry of syscalls has no names"));
        }
        let action = action(call.action(), call.errno_ret())?;
        let alternatives = alternatives(call)?;
        for name in call.names() {
            // Names that this architecture or this table lacks are no error: profiles list those of all kernels.
            if let Ok(index) = table::CALLS.binary_search_by(|entry| entry.0.cmp(name)) {
                rules.push(Rule {
                    call: index,
                    action,
                    alternatives: alternatives.clone(),
                });
            }
        }
    }
    let program = emit::program(default, &architectures, &rules)?;
    Ok(Some(Filter { program, flags }))
}

/// Some action is SCMP_ACT_NOTIFY; if so, the rest of the profile fits.
fn notifies(profile: &LinuxSeccomp) -> Result<bool> {
    let path = profile
        .listener_path()
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty());
    if path.is_none()
        && profile
            .listener_metadata()
            .as_deref()
            .is_some_and(|data| !data.is_empty())
    {
        return Err(Error::invalid(
            "linux.seccomp: listenerMetadata is set without listenerPath",
        ));
    }
    let calls = profile.syscalls().as_deref().unwrap_or_default();
    let notify = Action::ScmpActNotify;
    if profile.default_action() != notify && calls.iter().all(|call| call.action() != notify) {
        return Ok(false);
    }
    if path.is_none() {
        return Err(Error::invalid(
            "linux.seccomp: SCMP_ACT_NOTIFY needs listenerPath, the agent's socket",
        ));
    }
    // The process hands out the descriptor itself, under the filter.
    let passes = |action| matches!(action, Action::ScmpActAllow | Action::ScmpActLog);
    let mut sending = calls
        .iter()
        .filter(|call| call.names().iter().any(|name| name == "sendmsg"))
        .peekable();
    let free = match sending.peek() {
        None => passes(profile.default_action()),
        Some(_) => sending.all(|call| passes(call.action()) && call.args().as_deref().unwrap_or_default().is_empty()),
    };
    match free {
        true => Ok(true),
        false => Err(Error::invalid(
            "linux.seccomp: with SCMP_ACT_NOTIFY the call sendmsg must be allowed: the runtime needs it, under the filter, \
             to hand its descriptor to the agent",
        )),
    }
}

fn flags(profile: &LinuxSeccomp, notifies: bool) -> Result<u64> {
    let listed = profile.flags().as_deref().unwrap_or_default();
    let mut flags = listed.iter().fold(0, |all, one| all | flag(one));
    if flags & FLAG_WAIT_KILLABLE_RECV != 0 && !notifies {
        return Err(Error::invalid(
            "linux.seccomp: SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is for profiles with SCMP_ACT_NOTIFY, which this one is not",
        ));
    }
    if notifies {
        flags |= libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        // The kernel takes both only if a failure is no thread id, which could not be told from a descriptor.
        if flags & libc::SECCOMP_FILTER_FLAG_TSYNC != 0 {
            flags |= FLAG_TSYNC_ESRCH;
        }
    }
    Ok(flags)
}

/// Which system-call tables the filter covers; all others are killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Architectures {
    pub x86_64: bool,
    pub i386: bool,
    pub x32: bool,
}

impl Architectures {
    /// The machine's own is always covered, as libseccomp has it.
    fn new(listed: &[Arch]) -> Result<Architectures> {
        if !cfg!(target_arch = "x86_64") {
            return Err(Error::invalid(
                "linux.seccomp: this build knows the system calls of x86-64 only",
            ));
        }
        let mut all = Architectures {
            x86_64: true,
            ..Architectures::default()
        };
        for arch in listed {
            match arch {
                Arch::ScmpArchX86 => all.i386 = true,
                Arch::ScmpArchX32 => all.x32 = true,
                // Profiles list the architectures of other machines too: no process of theirs can run here.
                _ => (),
            }
        }
        Ok(all)
    }
}

fn action(action: Action, errno: Option<u32>) -> Result<u32> {
    match (errno, action) {
        (None, _) | (Some(..=MAX_ERRNO), Action::ScmpActErrno | Action::ScmpActTrace) => Ok(action.as_u32(errno)),
        (Some(errno), Action::ScmpActErrno | Action::ScmpActTrace) => Err(Error::invalid(format!(
            "linux.seccomp: errnoRet {errno} is above {MAX_ERRNO}"
        ))),
        (Some(errno), _) => Err(Error::invalid(format!(
            "linux.seccomp: errnoRet {errno} is given for {action}, which returns no error"
        ))),
    }
}

fn flag(flag: &Flag) -> u64 {
    match flag {
        Flag::SeccompFilterFlagTsync => libc::SECCOMP_FILTER_FLAG_TSYNC,
        Flag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
        Flag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW,
        Flag::SeccompFilterFlagWaitKillableRecv => FLAG_WAIT_KILLABLE_RECV,
    }
}

/// Conditions on arguments: any of the alternatives, each all of its conditions. Conditions on one argument that
/// is named twice are alternatives, as runc reads them.
fn alternatives(call: &LinuxSyscall) -> Result<Vec<Vec<Condition>>> {
    let mut conditions = Vec::new();
    for argument in call.args().as_deref().unwrap_or_default() {
        if argument.index() >= MAX_ARGUMENTS {
            return Err(Error::invalid(format!(
                "linux.seccomp: {:?} has a condition on argument {}; there are 6",
                call.names(),
                argument.index()
            )));
        }
        let (mask, value) = match argument.op() {
            Operator::ScmpCmpMaskedEq => (argument.value(), argument.value_two().unwrap_or(0)),
            _ => (u64::MAX, argument.value()),
        };
        conditions.push(Condition {
            argument: argument.index() as u32,
            operator: argument.op(),
            mask,
            value,
        });
    }
    let twice = conditions
        .iter()
        .enumerate()
        .any(|(at, one)| conditions[..at].iter().any(|other| other.argument == one.argument));
    Ok(match twice {
        true => conditions.into_iter().map(|condition| vec![condition]).collect(),
        false => vec![conditions],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use emit::tests::{AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, run};

    pub(super) fn filter(json: serde_json::Value) -> Result<Filter> {
        compile(&serde_json::from_value(json).unwrap()).map(|filter| filter.expect("a filter"))
    }

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    const ENOSYS: u32 = 0x0005_0026;

    #[test]
    fn several_actions_in_one_filter() {
        let filter = filter(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["openat2"], "action": "SCMP_ACT_LOG"}
            ]
        }))
        .unwrap();
        let call = |nr| run(&filter.program, AUDIT_ARCH_X86_64, nr, [0; 6]);
        assert_eq!(call(0), ALLOW);
        assert_eq!(call(39), ENOSYS);
        assert_eq!(call(169), 0x8000_0000);
        assert_eq!(call(437), 0x7ffc_0000);
        assert_eq!(call(2), EPERM);
        assert_eq!(run(&filter.program, AUDIT_ARCH_I386, 3, [0; 6]), ALLOW);
        assert_eq!(run(&filter.program, AUDIT_ARCH_I386, 0, [0; 6]), EPERM);
        // Another architecture, and x32, which is not listed.
        assert_eq!(run(&filter.program, 0xc000_00b7, 0, [0; 6]), 0x8000_0000);
        assert_eq!(call(0x4000_0000), 0x8000_0000);
        // Calls younger than the profile do not exist, so that C libraries fall back.
        assert_eq!(call(460), ENOSYS);
    }

    #[test]
    fn arguments_are_compared_as_64_bits() {
        let test = |op: &str, value: u64, two: u64, argument: u64| {
            let filter = filter(serde_json::json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 1, "value": value, "valueTwo": two, "op": op}]}]
            }))
            .unwrap();
            run(&filter.program, AUDIT_ARCH_X86_64, 135, [0, argument, 0, 0, 0, 0]) == ALLOW
        };
        let values = [0, 1, 7, 8, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0007, u64::MAX];
        for value in values {
            for argument in values {
                assert_eq!(test("SCMP_CMP_EQ", value, 0, argument), argument == value);
                assert_eq!(test("SCMP_CMP_NE", value, 0, argument), argument != value);
                assert_eq!(test("SCMP_CMP_LT", value, 0, argument), argument < value);
                assert_eq!(test("SCMP_CMP_LE", value, 0, argument), argument <= value);
                assert_eq!(test("SCMP_CMP_GT", value, 0, argument), argument > value);
                assert_eq!(test("SCMP_CMP_GE", value, 0, argument), argument >= value);
                assert_eq!(test("SCMP_CMP_MASKED_EQ", value, 1, argument), argument & value == 1);
            }
        }
    }

    #[test]
    fn conditions_are_anded_and_entries_are_alternatives() {
        let filter = filter(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22,
                 "args": [{"index": 0, "value": 16, "op": "SCMP_CMP_EQ"}, {"index": 2, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 2, "value": 9, "op": "SCMP_CMP_NE"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]}
            ]
        }))
        .unwrap();
        let socket = |family, protocol| run(&filter.program, AUDIT_ARCH_X86_64, 41, [family, 0, protocol, 0, 0, 0]);
        assert_eq!(socket(16, 9), 0x0005_0016);
        assert_eq!(socket(16, 1), ALLOW);
        assert_eq!(socket(2, 9), EPERM);
        let personality = |persona| run(&filter.program, AUDIT_ARCH_X86_64, 135, [persona, 0, 0, 0, 0, 0]);
        assert_eq!((personality(0), personality(8), personality(4)), (ALLOW, ALLOW, EPERM));
    }

    #[test]
    fn the_filter_survives_the_state_directory() {
        let filter = compile(&default_profile()).unwrap().unwrap();
        let copy = Filter::from_bytes(&filter.to_bytes()).unwrap();
        assert_eq!(copy.program, filter.program);
        assert!(Filter::from_bytes(&[0; 13]).is_none());
    }

    #[test]
    fn a_profile_that_notifies_makes_a_listener() {
        let filter = filter(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/s",
            "flags": ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]
        }))
        .unwrap();
        assert!(filter.has_listener());
        assert_eq!(filter.flags, 1 | 1 << 3 | 1 << 4 | 1 << 5);
        assert_eq!(run(&filter.program, AUDIT_ARCH_X86_64, 83, [0; 6]), 0x7fc0_0000);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let refused = |json| filter(json).err().unwrap().to_string();
        assert!(refused(serde_json::json!({"defaultAction": "SCMP_ACT_NOTIFY"})).contains("listenerPath"));
        assert!(
            refused(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}))
                .contains("listenerMetadata")
        );
        assert!(
            refused(
                serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/s",
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]})
            )
            .contains("sendmsg")
        );
        assert!(
            refused(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW", "errnoRet": 1}]}))
            .contains("returns no error")
        );
        assert!(
            refused(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO",
                "flags": ["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]}))
            .contains("WAIT_KILLABLE_RECV")
        );
        assert!(
            refused(serde_json::json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 5000})).contains("5000")
        );
    }
}
