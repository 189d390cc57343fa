//! The profile container engines apply by default, as an OCI profile.

use super::allowed::ALLOWED;
use crate::spec::{
    Arch, LinuxSeccomp, LinuxSeccompAction as Action, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator as Operator, LinuxSyscall,
};

/// Namespace flags of clone(2): all but CLONE_NEWTIME, whose bit the exit signal shares.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
const AF_VSOCK: u64 = 40;
/// Personalities that weaken nothing: Linux, 32 bits, uname 2.6, both, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// An allow-list for x86-64, i386 and x32; everything else fails with EPERM.
pub fn default_profile() -> LinuxSeccomp {
    let mut calls = vec![call(&ALLOWED, Action::ScmpActAllow, None, None)];
    for persona in PERSONALITIES {
        let same = argument(0, Operator::ScmpCmpEq, persona, None);
        calls.push(call(&["personality"], Action::ScmpActAllow, None, Some(same)));
    }
    let other_family = argument(0, Operator::ScmpCmpNe, AF_VSOCK, None);
    calls.push(call(&["socket"], Action::ScmpActAllow, None, Some(other_family)));
    let no_namespace = argument(0, Operator::ScmpCmpMaskedEq, CLONE_NAMESPACES, Some(0));
    calls.push(call(&["clone"], Action::ScmpActAllow, None, Some(no_namespace)));
    // Its flags are in memory, where a filter cannot look: C libraries fall back to clone.
    calls.push(call(&["clone3"], Action::ScmpActErrno, Some(libc::ENOSYS as u32), None));
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(Action::ScmpActErrno)
        .set_default_errno_ret(Some(libc::EPERM as u32))
        .set_architectures(Some(vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]))
        .set_syscalls(Some(calls));
    profile
}

fn call(names: &[&str], action: Action, errno: Option<u32>, argument: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let mut call = LinuxSyscall::default();
    call.set_names(names.iter().map(|&name| name.into()).collect())
        .set_action(action)
        .set_errno_ret(errno)
        .set_args(argument.map(|argument| vec![argument]));
    call
}

fn argument(index: usize, op: Operator, value: u64, two: Option<u64>) -> LinuxSeccompArg {
    let builder = LinuxSeccompArgBuilder::default().index(index).op(op).value(value);
    match two {
        Some(two) => builder.value_two(two),
        None => builder,
    }
    .build()
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::emit::tests::{AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, run};
    use super::super::{compile, table};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;

    #[test]
    fn every_name_is_a_system_call() {
        for name in ALLOWED {
            assert!(table::CALLS.iter().any(|call| call.0 == name), "{name}");
        }
    }

    #[test]
    fn what_engines_forbid_is_forbidden() {
        let program = compile(&default_profile()).unwrap().unwrap().program;
        let forbidden = [
            "mount",
            "umount2",
            "pivot_root",
            "setns",
            "unshare",
            "bpf",
            "init_module",
            "kexec_load",
            "keyctl",
            "add_key",
            "io_uring_setup",
            "open_by_handle_at",
            "perf_event_open",
            "reboot",
            "swapon",
            "userfaultfd",
            "settimeofday",
            "mount_setattr",
            "open_tree",
            "move_mount",
            "fsopen",
            "quotactl",
            "acct",
            "iopl",
        ];
        for name in forbidden {
            let number = table::CALLS.iter().find(|call| call.0 == name).unwrap().1;
            assert_eq!(run(&program, AUDIT_ARCH_X86_64, number as u32, [0; 6]), EPERM, "{name}");
        }
    }

    #[test]
    fn ordinary_programs_run() {
        let program = compile(&default_profile()).unwrap().unwrap().program;
        let call = |name: &str, arguments| {
            let number = table::CALLS.iter().find(|call| call.0 == name).unwrap().1;
            run(&program, AUDIT_ARCH_X86_64, number as u32, arguments)
        };
        for name in [
            "read",
            "execve",
            "openat",
            "futex",
            "epoll_wait",
            "socket",
            "connect",
            "clone",
            "rseq",
            "chroot",
        ] {
            assert_eq!(call(name, [0; 6]), ALLOW, "{name}");
        }
        assert_eq!(call("clone", [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(call("clone3", [0; 6]), 0x0005_0026);
        assert_eq!(call("socket", [AF_VSOCK, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(call("personality", [4, 0, 0, 0, 0, 0]), EPERM);
        assert_eq!(run(&program, AUDIT_ARCH_I386, 11, [0; 6]), ALLOW); // execve
    }
}
