//! What a container can see and do: descriptors, masks, read-only paths, capabilities, seccomp, devices, namespaces.
//! The attacks are those of FAULTS 30 to 37.

mod support;

use std::os::unix::fs::symlink;

use serde_json::json;
use support::Bundle;

const SEES_ITS_DESCRIPTORS: &str = "ls /proc/self/fd";

/// ls itself opens the directory as 3.
fn streams_only(listing: &str) -> bool {
    listing.split_whitespace().collect::<Vec<_>>() == ["0", "1", "2", "3"]
}

#[test]
fn a_container_sees_three_descriptors() {
    let bundle = Bundle::new(SEES_ITS_DESCRIPTORS);
    // Descriptors without close-on-exec, as a careless engine leaks them.
    let mut command = bundle.command(&["run", &bundle.id]);
    // SAFETY: dup2 is async-signal-safe.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            for leaked in 3..20 {
                libc::dup2(0, leaked);
            }
            Ok(())
        });
    }
    let done = support::Done::from(command.output().unwrap());
    assert!(streams_only(done.ok()), "{done:?}");
    let init = Bundle::new("exec sleep 1000");
    init.create().ok();
    init.start().ok();
    let done = init.exec(&[&init.id, "sh", "-c", "ls /proc/self/fd; ls /proc/1/fd"]);
    assert_eq!(
        done.ok().split_whitespace().collect::<Vec<_>>(),
        ["0", "1", "2", "3", "0", "1", "2"]
    );
}

/// CVE-2024-21626
#[test]
fn a_working_directory_outside_the_root_is_refused() {
    for fd in 3..24 {
        let mut bundle = Bundle::new("stat -c %d:%i . / | uniq");
        bundle.config["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        let done = bundle.run();
        // The one descriptor that is not refused is that of the container's own root.
        let own_root = done.code == Some(0) && done.out.lines().count() == 1;
        assert!(
            done.code != Some(0) || own_root,
            "cwd /proc/self/fd/{fd} was accepted: {done:?}"
        );
    }
}

/// CVE-2019-5736
#[test]
fn the_runtime_cannot_be_written_from_inside() {
    let before = std::fs::read(support::RUNTIME).unwrap();
    let mut bundle = Bundle::new("");
    // The program is the runtime itself, through the link that leads to it while it sets the container up.
    bundle.config["process"]["args"] = json!(["/proc/self/exe", "features"]);
    bundle.run();
    let attack = "exec sleep 1000";
    let victim = Bundle::new(attack);
    victim.create().ok();
    victim.start().ok();
    let script = victim.rootfs().join("bin/evil");
    std::fs::write(&script, "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    victim.exec(&[&victim.id, "/bin/evil"]);
    assert!(std::fs::read(support::RUNTIME).unwrap() == before);
    // A waiting init still is the runtime: look at it as root of the host would, by its own link.
    let waiting = Bundle::new("true");
    waiting.create().ok();
    let exe = format!("/proc/{}/exe", waiting.state()["pid"]);
    // Not merely busy (ETXTBSY), which passes: its mount is read-only for ever.
    let flags = rustix::fs::statvfs(exe).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY), "{flags:?}");
}

/// CVE-2025-31133, and the defaults of engines.
#[test]
fn masked_and_readonly_paths_hold() {
    let script = "cat /proc/kcore /proc/keys /proc/timer_list; for d in /sys/firmware /proc/acpi /proc/scsi; do ls $d 2>/dev/null; done; \
                  for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/irq/default_smp_affinity /sys/x; do \
                  (echo x > $f) 2>/dev/null && echo wrote $f; done; echo end";
    let bundle = Bundle::new(script);
    assert_eq!(bundle.run().ok(), "end");
    // The image's /dev/null is a lie; /dev is not even a tmpfs.
    let mut bundle = Bundle::new("cat /proc/keys; stat -c %t:%T /proc/keys");
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    symlink("/proc/sys/kernel/core_pattern", bundle.rootfs().join("dev/null")).unwrap();
    bundle
        .create()
        .fails("make device /dev/null: something else is there already");
    std::fs::remove_file(bundle.rootfs().join("dev/null")).unwrap();
    assert_eq!(bundle.run().ok(), "1:3");
}

/// CVE-2019-19921, CVE-2025-52881: no mount lands inside a procfs by way of the image's links.
#[test]
fn mounts_do_not_reach_proc_through_links() {
    let mut bundle = Bundle::new("true");
    symlink("/proc", bundle.rootfs().join("data")).unwrap();
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/data/sys", "type": "tmpfs"}));
    bundle.create().fails("inside a procfs");
}

/// CVE-2021-30465, CVE-2024-45310: links of the image lead to the image, and nothing is made on the host.
#[test]
fn mount_targets_stay_in_the_root() {
    let outside = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new("cat /in/canary");
    let volume = bundle.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("canary"), "sung").unwrap();
    symlink("/../../../../etc/real", bundle.rootfs().join("in")).unwrap();
    std::fs::create_dir(bundle.rootfs().join("etc/real")).unwrap();
    symlink(outside.path(), bundle.rootfs().join("out")).unwrap();
    let bind =
        |destination: &str| json!({"destination": destination, "type": "bind", "source": volume, "options": ["rbind"]});
    bundle.config["mounts"].as_array_mut().unwrap().push(bind("/in"));
    assert_eq!(bundle.run().ok(), "sung");
    bundle.config["mounts"].as_array_mut().unwrap().push(bind("/out/made"));
    // The link names a directory of the host; what it leads to is one of the image with the same name.
    assert_eq!(bundle.run().ok(), "sung");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    let inside = bundle.rootfs().join(outside.path().strip_prefix("/").unwrap());
    assert!(inside.join("made").is_dir());
}

/// The image's /dev is a link to somewhere on the host.
#[test]
fn dev_is_never_followed_out() {
    let outside = tempfile::tempdir().unwrap();
    let bundle = Bundle::new("true");
    std::fs::remove_dir(bundle.rootfs().join("dev")).unwrap();
    symlink(outside.path(), bundle.rootfs().join("dev")).unwrap();
    bundle.run();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn bind_mounts_keep_their_flags() {
    let mut bundle = Bundle::new("grep ' /data ' /proc/self/mountinfo; touch /data/x");
    let volume = bundle.path("volume");
    std::fs::create_dir(&volume).unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/data", "type": "bind", "source": "volume", "options": ["rbind", "ro", "nosuid", "noexec", "rprivate"]}),
    );
    let done = bundle.run();
    assert!(done.out.contains("ro,nosuid,noexec"), "{done:?}");
    assert!(done.err.contains("Read-only file system"), "{done:?}");
    assert_eq!(std::fs::read_dir(volume).unwrap().count(), 0);
}

#[test]
fn the_root_can_be_read_only() {
    let mut bundle = Bundle::new("touch /x 2>/dev/null || echo refused; touch /dev/shm/y && echo fine");
    bundle.config["root"]["readonly"] = json!(true);
    assert_eq!(bundle.run().ok(), "refused\nfine");
}

#[test]
fn nothing_of_the_host_is_mounted() {
    let done = Bundle::new("cat /proc/self/mountinfo").run();
    assert!(!done.ok().contains("/boot") && !done.out.contains("/run "), "{done:?}");
    let points: Vec<&str> = done.out.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    let ours = ["/", "/proc", "/dev", "/sys"];
    assert!(
        points.iter().all(|point| ours
            .iter()
            .any(|own| point == own || point.starts_with(&format!("{own}/")))),
        "{points:?}"
    );
}

#[test]
fn identity_and_capabilities() {
    let mut bundle =
        Bundle::new("id -u; id -g; id -G; grep -E 'Cap|NoNewPrivs|Umask' /proc/self/status; umask; echo $HOME");
    std::fs::write(
        bundle.rootfs().join("etc/passwd"),
        "web:x:1000:1000::/srv/web:/bin/sh\n",
    )
    .unwrap();
    bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 100, "additionalGids": [7], "umask": 0o27});
    let done = bundle.run();
    let lines: Vec<&str> = done.ok().lines().collect();
    assert_eq!(&lines[..3], ["1000", "100", "100 7"]);
    for expected in [
        "Umask:\t0027",
        "CapInh:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t00000000a80425fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "/srv/web",
    ] {
        assert!(lines.contains(&expected), "{expected:?} is not in {done:?}");
    }
    let root = Bundle::new("grep CapEff /proc/self/status").run();
    assert_eq!(root.ok(), "CapEff:\t00000000a80425fb");
    let mut ambient = Bundle::new("grep CapEff /proc/self/status");
    let set = json!(["CAP_NET_BIND_SERVICE"]);
    ambient.config["process"]["user"]["uid"] = json!(1000);
    ambient.config["process"]["capabilities"] =
        json!({"bounding": set, "effective": set, "permitted": set, "inheritable": set, "ambient": set});
    assert_eq!(ambient.run().ok(), "CapEff:\t0000000000000400");
}

#[test]
fn the_default_seccomp_profile_denies_and_exec_gets_it_too() {
    let mut bundle = Bundle::new("unshare -m true 2>&1; grep Seccomp: /proc/self/status; exec sleep 1000");
    bundle.config["linux"]["seccomp"] = json!(hull_runtime::seccomp::default_profile());
    let all = json!(hull_runtime::caps::ALL.to_vec());
    bundle.config["process"]["capabilities"] = json!({"bounding": all, "effective": all, "permitted": all});
    bundle.create().ok();
    bundle.start().ok();
    let done = bundle.exec(&[
        &bundle.id,
        "sh",
        "-c",
        "unshare -m true 2>&1; grep Seccomp: /proc/self/status",
    ]);
    assert!(done.out.contains("Operation not permitted"), "{done:?}");
    assert!(done.out.contains("Seccomp:\t2"), "{done:?}");
    // Without no_new_privs the filter is loaded while the process still may.
    let mut bundle = Bundle::new("unshare -m true 2>&1; grep -E 'Seccomp:|NoNew' /proc/self/status");
    bundle.config["linux"]["seccomp"] = json!(hull_runtime::seccomp::default_profile());
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    let done = bundle.run();
    assert!(done.ok().contains("Operation not permitted"), "{done:?}");
    assert!(done.out.contains("NoNewPrivs:\t0\nSeccomp:\t2"), "{done:?}");
}

#[test]
fn seccomp_actions_reach_the_program() {
    let mut bundle = Bundle::new("mkdir /tmp/x 2>&1; sh -c 'chroot / true'; echo $?");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28},
            {"names": ["chroot"], "action": "SCMP_ACT_KILL_PROCESS"}
        ]
    });
    let done = bundle.run();
    assert!(done.out.contains("No space left on device"), "{done:?}");
    assert!(
        done.out.trim_end().ends_with("159"),
        "128 + SIGSYS is expected: {done:?}"
    );
}

#[test]
fn devices_are_the_default_ones() {
    let script = "echo x > /dev/null && cat /dev/null; mknod /tmp/mem c 1 1 && (cat /tmp/mem 2>&1 | grep -o 'Operation not permitted'); \
                  ls /dev";
    let done = Bundle::new(script).run();
    assert!(done.ok().starts_with("Operation not permitted"), "{done:?}");
    let nodes: Vec<&str> = done.out.lines().skip(1).collect();
    assert_eq!(
        nodes,
        [
            "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
            "urandom", "zero"
        ]
    );
}

#[test]
fn a_user_namespace_keeps_host_ids_out() {
    let mut bundle = Bundle::new(
        "id -u; cat /proc/self/uid_map; echo x > /dev/null && echo null; cat /proc/self/status | grep CapEff",
    );
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    let map = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    let done = bundle.run();
    let lines: Vec<&str> = done.ok().lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(
        lines[1].split_whitespace().collect::<Vec<_>>(),
        ["0", "100000", "65536"]
    );
    assert_eq!(&lines[2..], ["null", "CapEff:\t00000000a80425fb"]);
}

#[test]
fn namespaces_are_joined_by_path() {
    let first = Bundle::new("exec sleep 1000");
    first.create().ok();
    first.start().ok();
    let pid = first.state()["pid"].as_i64().unwrap();
    let namespace = |name: &str| {
        std::fs::read_link(format!("/proc/{pid}/ns/{name}"))
            .unwrap()
            .display()
            .to_string()
    };
    let script =
        "for n in net ipc pid; do readlink /proc/self/ns/$n; done; cat /proc/1/comm; cat /proc/sys/kernel/hostname";
    let mut second = Bundle::new(script);
    let join = |kind: &str, name: &str| json!({"type": kind, "path": format!("/proc/{pid}/ns/{name}")});
    second.config["linux"]["namespaces"] = json!([
        {"type": "mount"}, {"type": "cgroup"}, join("network", "net"), join("ipc", "ipc"), join("pid", "pid"), join("uts", "uts")
    ]);
    let done = second.run();
    let lines: Vec<&str> = done.ok().lines().collect();
    assert_eq!(
        lines,
        [
            &namespace("net"),
            &namespace("ipc"),
            &namespace("pid"),
            "sleep",
            "tested"
        ]
    );
}

#[test]
fn sysctls_limits_and_clocks() {
    let mut bundle = Bundle::new(
        "cat /proc/sys/kernel/shmmni /proc/sys/net/ipv4/ip_forward; ulimit -n; cat /proc/self/oom_score_adj; cat /proc/self/timens_offsets",
    );
    bundle.config["linux"]["sysctl"] = json!({"kernel.shmmni": "77", "net.ipv4.ip_forward": "1"});
    bundle.config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 99}]);
    bundle.config["process"]["oomScoreAdj"] = json!(321);
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 4242}});
    let done = bundle.run();
    let lines: Vec<&str> = done.ok().lines().collect();
    assert_eq!(&lines[..4], ["77", "1", "99", "321"]);
    assert!(lines[5].contains("4242"), "{lines:?}");
}

#[test]
fn a_limit_without_its_controller_is_an_error_and_no_limit_is_none() {
    let available = hull_runtime::cgroup::Hierarchy::find().unwrap().controllers().unwrap();
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["resources"] =
        json!({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1, "period": 100000}});
    bundle.run().ok();
    bundle.config["linux"]["resources"] = json!({"unified": {"nosuch.max": "1"}});
    bundle
        .create()
        .fails("the requested cgroup controller `nosuch` is not available");
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 67108864}});
    let done = bundle.create();
    match available.iter().any(|name| name == "memory") {
        true => drop(done.ok()),
        false => done.fails("the requested cgroup controller `memory` is not available"),
    }
}

#[test]
fn a_tmpfs_can_begin_with_the_images_files() {
    let mut bundle = Bundle::new("cat /etc/kept; echo new > /etc/kept; cat /etc/kept");
    std::fs::write(bundle.rootfs().join("etc/kept"), "old\n").unwrap();
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/etc", "type": "tmpfs", "options": ["tmpcopyup"]}));
    assert_eq!(bundle.run().ok(), "old\nnew");
    assert_eq!(
        std::fs::read_to_string(bundle.rootfs().join("etc/kept")).unwrap(),
        "old\n"
    );
}
