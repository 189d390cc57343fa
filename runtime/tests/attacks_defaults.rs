//! What a container with an engine's defaults can write, call and reach (FAULTS 36, 37; CVE-2022-0492): compared with
//! runc where it is installed, and with the seccomp profiles that engines ship.

mod support;

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::json;
use support::{Bundle, Done, hostile};

/// What podman's profile denies to a container with the default capabilities, by name or by not naming it, and docker's
/// too: x86-64.
const DENIED: [i64; 58] = [
    libc::SYS__sysctl,
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_afs_syscall,
    libc::SYS_bpf,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_get_mempolicy,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_move_pages,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_security,
    libc::SYS_set_mempolicy,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_sysfs,
    libc::SYS_syslog,
    libc::SYS_tuxcall,
    libc::SYS_umount2,
    libc::SYS_unshare,
    libc::SYS_uselib,
    libc::SYS_userfaultfd,
    libc::SYS_ustat,
    libc::SYS_vhangup,
    libc::SYS_vserver,
];

/// What programs of every kind need: a profile that denies everything would pass the other half of the test.
const NEEDED: [i64; 20] = [
    libc::SYS_read,
    libc::SYS_mmap,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_clone,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_futex,
    libc::SYS_epoll_pwait2,
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_accept4,
    libc::SYS_chroot,
    libc::SYS_mknod,
    libc::SYS_prctl,
    libc::SYS_seccomp,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_pidfd_open,
    libc::SYS_close_range,
    libc::SYS_statx,
];

fn probing(arguments: &str) -> Bundle {
    let mut bundle = Bundle::new(&format!("exec probe {arguments}"));
    hostile::probe(&mut bundle);
    bundle
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

/// Row 36. Root inside may open files that nobody may write (mode 0444) for writing: that writes nothing, and runc's
/// containers have it too.
#[test]
fn files_of_the_kernel_are_no_more_writable_than_under_runc() {
    const ROOTS: [&str; 8] = [
        "/sys/",
        "/proc/sys/",
        "/proc/bus/",
        "/proc/fs/",
        "/proc/irq/",
        "/proc/acpi/",
        "/proc/scsi/",
        "/proc/asound/",
    ];
    const FILES: [&str; 5] = [
        "/proc/sysrq-trigger",
        "/proc/kcore",
        "/proc/keys",
        "/proc/timer_list",
        "/proc/interrupts",
    ];
    let bundle = probing("writable /proc /sys");
    let ours = lines(bundle.run().ok());
    assert!(ours.contains("/proc/version"), "the probe saw nothing: {ours:?}");
    for path in &ours {
        // A mask is the null device, which takes what is written, and is no regular file for the probe.
        assert!(
            !ROOTS.iter().any(|root| path.starts_with(root)) && !FILES.contains(&&**path),
            "{path} is writable"
        );
    }
    if Command::new("runc").arg("--version").output().is_err() {
        return;
    }
    let script = format!(
        "mount --make-rprivate /; umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup /sys/fs/cgroup; cd {}; \
         exec runc --root {} run {}-runc",
        bundle.path("").display(),
        bundle.path("runc").display(),
        bundle.id
    );
    let done = Done::from(
        Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .output()
            .unwrap(),
    );
    let theirs = lines(done.ok());
    let more: Vec<_> = ours.difference(&theirs).collect();
    assert!(more.is_empty(), "writable here and not under runc: {more:?}");
}

/// Row 37: every number, asked for inside.
#[test]
fn system_calls_that_engines_deny_are_denied() {
    let mut bundle = probing("syscalls");
    bundle.config["linux"]["seccomp"] = json!(hull_runtime::seccomp::default_profile());
    let done = bundle.run();
    let denied: BTreeSet<i64> = done.ok().split(' ').map(|number| number.parse().unwrap()).collect();
    for number in DENIED {
        assert!(denied.contains(&number), "system call {number} is allowed");
    }
    for number in NEEDED {
        assert!(!denied.contains(&number), "system call {number} is denied");
    }
    let free = probing("syscalls").run();
    assert_eq!(
        free.ok(),
        "",
        "without a profile nothing is denied: the probe itself is at fault"
    );
}

/// CVE-2022-0492, and the container's view of its group: version 2, rooted at its own, for reading.
#[test]
fn groups_are_read_only_and_have_no_release_agent() {
    let script = "stat -f -c %t /sys/fs/cgroup; cat /proc/self/cgroup | grep 0::; \
                  for f in cgroup.procs cgroup.freeze cgroup.kill cgroup.subtree_control pids.max; do \
                  (echo 0 > /sys/fs/cgroup/$f) 2>/dev/null && echo wrote $f; done; \
                  mkdir /sys/fs/cgroup/below 2>/dev/null && echo made; \
                  mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo remounted; \
                  for t in memory rdma cpu; do \
                  unshare -Urm sh -c \"mount -t cgroup -o $t none /tmp && echo /evil > /tmp/release_agent && echo OWNED\" 2>/dev/null; \
                  done; echo end";
    assert_eq!(Bundle::new(script).run().ok(), "63677270\n0::/\nend");
}
