//! Attackers that rename while containers start: one thread exchanges two names of a shared volume, or of a shared root
//! file system, as fast as the kernel does it (FAULTS 32 to 34; CVE-2021-30465, -2024-45310, -2025-31133, -2025-52565,
//! -2025-52881). A round may fail; none may touch what is outside, or come up without its masks.

mod support;

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;
use support::Bundle;
use support::hostile::{self, Outside, Swap};

const ROUNDS: usize = 60;

/// Runs the container [`ROUNDS`] times under attack; `check` sees each that came up.
fn rounds(bundle: &Bundle, outside: &Outside, swap: &Swap, check: impl Fn(&support::Done)) {
    for round in 1..=ROUNDS {
        swap.reach(round);
        let done = bundle.run();
        outside.unchanged(&format!("round {round}: {done:?}"));
        if done.code == Some(0) {
            check(&done);
        }
    }
}

/// CVE-2021-30465, CVE-2024-45310: the destination, and the directories that lead to it.
#[test]
fn a_mount_destination_that_is_swapped_for_a_link() {
    let outside = Outside::new();
    let mut bundle = Bundle::new(
        "cat /vol/a/sub/made/canary 2>/dev/null || cat /vol/b/sub/made/canary || true; cat /proc/self/mountinfo",
    );
    let (shared, volume) = (bundle.path("shared"), bundle.path("volume"));
    fs::create_dir_all(shared.join("a/sub")).unwrap();
    symlink(outside.path(), shared.join("b")).unwrap();
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("canary"), "sung\n").unwrap();
    hostile::bind(&mut bundle, &shared, "/vol");
    hostile::bind(&mut bundle, &volume, "/vol/a/sub/made");
    hostile::bind(&mut bundle, &volume, "/vol/a/sub/deep/er/and/deeper");
    hostile::mount(
        &mut bundle,
        json!({"destination": "/vol/a/sub", "type": "tmpfs", "options": ["ro"]}),
    );
    bundle.config["process"]["cwd"] = json!("/vol/a");
    let swap = Swap::new(&shared.join("a"), &shared.join("b"));
    rounds(&bundle, &outside, &swap, |done| {
        // A link that leads out is one to the same name inside: there, at most, may something have been made.
        let points = done.out.lines().filter_map(|line| line.split(' ').nth(4));
        for point in points.filter_map(|point| point.strip_prefix('/')) {
            let named_outside = std::path::Path::new("/").join(point).starts_with(outside.path());
            let inside = bundle.rootfs().join(point).exists();
            assert!(!named_outside || inside, "mounted outside: {done:?}");
        }
    });
    drop(swap);
    // Without the attacker it is an ordinary container.
    if shared.join("b").is_dir() && !shared.join("b").is_symlink() {
        fs::rename(shared.join("a"), shared.join("c")).unwrap();
        fs::rename(shared.join("b"), shared.join("a")).unwrap();
    }
    bundle.run().ok();
}

/// CVE-2025-52881: /proc itself is exchanged for a directory that only looks like it, while there is much to write.
#[test]
fn writes_that_somebody_redirects_from_proc() {
    let outside = Outside::new();
    // Whichever of the two names the procfs has got by now.
    let script = "for p in /proc /evil; do cd $p && [ -e version ] || continue; cat self/mountinfo keys; \
                  for f in sysrq-trigger sys/kernel/core_pattern; do (echo x > $f) 2>/dev/null && echo BAD; done; done; true";
    let mut bundle = Bundle::new(script);
    let evil = bundle.rootfs().join("evil");
    for dir in [
        "sys/net/ipv4",
        "sys/kernel",
        "self/attr",
        "thread-self/attr/apparmor",
        "1",
    ] {
        fs::create_dir_all(evil.join(dir)).unwrap();
    }
    for file in [
        "sys/net/ipv4/ip_forward",
        "sys/kernel/shmmni",
        "self/oom_score_adj",
        "self/attr/exec",
        "keys",
        "kcore",
    ] {
        symlink(outside.path().join("secret"), evil.join(file)).unwrap();
    }
    bundle.config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "77"});
    bundle.config["process"]["oomScoreAdj"] = json!(321);
    let host = |path: &str| fs::read_to_string(path).unwrap();
    let before = [
        host("/proc/sys/net/ipv4/ip_forward"),
        host("/proc/sys/kernel/core_pattern"),
    ];
    let swap = Swap::new(&bundle.rootfs().join("proc"), &evil);
    rounds(&bundle, &outside, &swap, |done| {
        assert!(!done.out.contains("BAD"), "{done:?}");
        let count = |what: &str| done.out.lines().filter(|line| line.contains(what)).count();
        assert!(
            count(" - proc proc ") == 0 || count("/keys ") > 0,
            "a procfs without its masks: {done:?}"
        );
    });
    drop(swap);
    assert_eq!(
        [
            host("/proc/sys/net/ipv4/ip_forward"),
            host("/proc/sys/kernel/core_pattern")
        ],
        before
    );
}

/// CVE-2025-31133, CVE-2025-52565: the null device that masks, and the console.
#[test]
fn masks_and_consoles_whose_device_is_swapped() {
    let outside = Outside::new();
    let mut bundle = Bundle::new("stat -c %t:%T /proc/keys /proc/timer_list; echo x > /dev/console");
    hostile::unmount(&mut bundle, "/dev");
    hostile::mount(
        &mut bundle,
        json!({"destination": "/dev/pts", "type": "devpts", "options": ["newinstance", "ptmxmode=0666"]}),
    );
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/keys", "/proc/timer_list"]);
    let dev = bundle.rootfs().join("dev");
    for name in ["null", "console"] {
        symlink(outside.path().join(name), dev.join(format!("{name}-link"))).unwrap();
    }
    fs::write(dev.join("console"), "").unwrap();
    let node = rustix::fs::Mode::from_raw_mode(0o666);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, dev.join("null"), kind, node, libc::makedev(1, 3)).unwrap();
    let null = Swap::new(&dev.join("null"), &dev.join("null-link"));
    let console = Swap::new(&dev.join("console"), &dev.join("console-link"));
    rounds(&bundle, &outside, &null, |done| {
        assert!(done.out.starts_with("1:3\n1:3"), "{done:?}");
    });
    drop(console);
}

/// CVE-2024-21626 through `exec --cwd`: the directory is exchanged for links to what the runtime has open.
#[test]
fn a_working_directory_of_exec_that_is_swapped() {
    let mut bundle = Bundle::new("exec sleep 1000");
    let shared = bundle.path("shared");
    fs::create_dir_all(shared.join("work")).unwrap();
    hostile::bind(&mut bundle, &shared, "/vol");
    bundle.create().ok();
    bundle.start().ok();
    let host = rustix::fs::stat("/").unwrap();
    let host = format!("{:x}:{}", host.st_dev, host.st_ino);
    for fd in 3..16 {
        let link = shared.join(format!("link-{fd}"));
        symlink(format!("/proc/self/fd/{fd}"), &link).unwrap();
        let swap = Swap::new(&shared.join("work"), &link);
        for cwd in [
            "/vol/work",
            "/vol/work/..",
            &format!("/proc/self/fd/{fd}"),
            &format!("/proc/thread-self/fd/{fd}/../.."),
        ] {
            let done = bundle.exec(&[
                "--cwd",
                cwd,
                &bundle.id,
                "sh",
                "-c",
                "readlink /proc/self/cwd; stat -c %D:%i . .. ../.. ../../..",
            ]);
            let inside = done.out.starts_with('/') && !done.out.contains("unreachable") && !done.out.contains(&host);
            assert!(done.code != Some(0) || inside, "{cwd}: {done:?}");
        }
        drop(swap);
        if !shared.join("work").is_symlink() {
            continue;
        }
        fs::rename(shared.join("work"), shared.join("gone")).unwrap();
        fs::rename(&link, shared.join("work")).unwrap();
    }
}
