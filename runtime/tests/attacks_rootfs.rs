//! Images and volumes that try to lead the runtime out of the root file system: links in every place where something is
//! mounted, made or masked (FAULTS 32 to 35; CVE-2019-16884, -2019-19921, -2024-45310, -2026-41579, -2026-47766).

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use support::Bundle;
use support::hostile::{self, Outside};

/// Where the image puts its link, and the configuration that makes the runtime come by.
type Place = (&'static str, fn(&mut Bundle, &Path));

const PLACES: [Place; 14] = [
    ("in", |bundle, volume| hostile::bind(bundle, volume, "/in")),
    ("in", |bundle, volume| hostile::bind(bundle, volume, "/in/made/deep")),
    ("in", |bundle, volume| {
        hostile::bind(bundle, &volume.join("file"), "/in")
    }),
    ("in", |bundle, volume| {
        hostile::bind(bundle, &volume.join("file"), "/in/made")
    }),
    ("in", |bundle, _| {
        hostile::mount(bundle, json!({"destination": "/in", "type": "tmpfs"}))
    }),
    ("in", |bundle, _| {
        let copied = json!({"destination": "/in", "type": "tmpfs", "options": ["tmpcopyup"]});
        hostile::mount(bundle, copied);
    }),
    ("in", |bundle, _| bundle.config["process"]["cwd"] = json!("/in/work")),
    ("in", |bundle, _| {
        bundle.config["linux"]["maskedPaths"] = json!(["/in", "/in/secret"])
    }),
    ("in", |bundle, _| {
        bundle.config["linux"]["readonlyPaths"] = json!(["/in", "/in/sub"])
    }),
    ("dev", |bundle, _| hostile::unmount(bundle, "/dev")),
    ("dev", |_, _| ()),
    ("dev/null", |bundle, _| hostile::unmount(bundle, "/dev")),
    ("dev/console", |bundle, _| own_dev_with_terminal(bundle)),
    ("in", |bundle, _| {
        let device = json!({"path": "/in/disk", "type": "b", "major": 7, "minor": 0, "uid": 5, "gid": 5});
        bundle.config["linux"]["devices"] = json!([device]);
    }),
];

/// A terminal, and nothing over the image's /dev but devpts.
fn own_dev_with_terminal(bundle: &mut Bundle) {
    hostile::unmount(bundle, "/dev");
    bundle.config["process"]["terminal"] = json!(true);
    hostile::mount(
        bundle,
        json!({"destination": "/dev/pts", "type": "devpts", "options": ["newinstance", "ptmxmode=0666"]}),
    );
}

fn user_namespace(bundle: &mut Bundle, host: u32) {
    let map = json!([{"containerID": 0, "hostID": host, "size": 65536}]);
    bundle.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
}

fn volume(bundle: &Bundle) -> std::path::PathBuf {
    let volume = bundle.path("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "volume").unwrap();
    volume
}

fn plant(bundle: &Bundle, place: &str, to: &str) {
    let link = bundle.rootfs().join(place);
    if link.is_dir() {
        fs::remove_dir_all(&link).unwrap();
    }
    symlink(to, link).unwrap();
    symlink("/", bundle.rootfs().join("chain")).unwrap();
}

#[test]
fn no_link_leads_out_of_the_root_from_any_place() {
    let outside = Outside::new();
    for (index, (place, configure)) in PLACES.iter().enumerate() {
        for to in hostile::links(outside.path()) {
            let mut bundle = Bundle::new("true");
            let volume = volume(&bundle);
            plant(&bundle, place, &to);
            configure(&mut bundle, &volume);
            let done = bundle.run();
            outside.unchanged(&format!("place {index} /{place} -> {to}: {done:?}"));
        }
    }
}

#[test]
fn no_link_leads_out_with_a_user_namespace_either() {
    let outside = Outside::new();
    for (place, configure) in &PLACES[9..] {
        for to in hostile::links(outside.path()) {
            let mut bundle = Bundle::new("true");
            let volume = volume(&bundle);
            plant(&bundle, place, &to);
            configure(&mut bundle, &volume);
            user_namespace(&mut bundle, 0);
            let done = bundle.run();
            outside.unchanged(&format!("/{place} -> {to}: {done:?}"));
        }
    }
}

/// The other half of the truth: links that stay inside are followed, as a container's own processes would.
#[test]
fn links_inside_the_root_are_followed() {
    for to in ["/etc/real", "../../../etc/real", "etc/real", "/chain/etc/real"] {
        let mut bundle = Bundle::new("cat /in/file; cat /etc/real/file");
        let volume = volume(&bundle);
        fs::create_dir(bundle.rootfs().join("etc/real")).unwrap();
        plant(&bundle, "in", to);
        hostile::bind(&mut bundle, &volume, "/in");
        assert_eq!(bundle.run().ok(), "volumevolume", "{to}");
    }
}

/// What is masked is what the path means inside; the rest of the file system is not.
#[test]
fn masks_follow_links_inside_and_only_there() {
    let outside = Outside::new();
    let mut bundle = Bundle::new("cat /etc/secret /etc/open; ls /etc/dir | wc -l; ls -d /etc/dir");
    symlink("busybox", bundle.rootfs().join("bin/wc")).unwrap();
    for (name, text) in [("secret", "secret\n"), ("open", "open\n")] {
        fs::write(bundle.rootfs().join("etc").join(name), text).unwrap();
    }
    fs::create_dir_all(bundle.rootfs().join("etc/dir/below")).unwrap();
    symlink("/etc/secret", bundle.rootfs().join("to-secret")).unwrap();
    symlink("../../etc/dir", bundle.rootfs().join("to-dir")).unwrap();
    symlink(outside.path(), bundle.rootfs().join("out")).unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/to-secret", "/to-dir", "/out/secret", "/nowhere"]);
    assert_eq!(bundle.run().ok(), "open\n0\n/etc/dir");
    outside.unchanged("mask");
}

/// CVE-2026-41579, CVE-2026-47766: nodes and links are made in /dev itself or not at all.
#[test]
fn a_dev_that_is_a_link_is_refused() {
    let outside = Outside::new();
    for to in [&*outside.path().to_string_lossy(), "etc", "/proc/self/fd"] {
        for mounted in [true, false] {
            let mut bundle = Bundle::new("true");
            if !mounted {
                hostile::unmount(&mut bundle, "/dev");
            }
            plant(&bundle, "dev", to);
            bundle.run().fails("/dev of the image is a symbolic link");
            assert_eq!(fs::read_dir(bundle.rootfs().join("etc")).unwrap().count(), 0);
        }
    }
    outside.unchanged("/dev");
}

/// CVE-2019-16884, CVE-2019-19921: what stands at /proc is a procfs, or there is no container.
#[test]
fn nothing_takes_the_place_of_proc_and_sys() {
    for destination in [
        "/proc",
        "/proc/self",
        "/proc/sys/kernel",
        "/proc/self/attr/exec",
        "//proc/../proc/1",
    ] {
        for kind in ["bind", "tmpfs"] {
            let mut bundle = Bundle::new("true");
            let volume = volume(&bundle);
            hostile::mount(
                &mut bundle,
                json!({"destination": destination, "type": kind, "source": volume}),
            );
            bundle.create().fails("proc");
        }
    }
    for (place, to) in [("proc", "/etc"), ("proc", "tmp"), ("sys", "/etc"), ("sys", "/proc")] {
        let bundle = Bundle::new("true");
        plant(&bundle, place, to);
        bundle
            .create()
            .fails(&format!("/{place} of the image is a symbolic link"));
    }
    // Through links of the image, to where the plan could not see it.
    for destination in ["/link/self", "/link/sys", "/chain/proc/sys", "/link/1/attr"] {
        let mut bundle = Bundle::new("true");
        let volume = volume(&bundle);
        plant(&bundle, "link", "/proc");
        hostile::bind(&mut bundle, &volume, destination);
        bundle.create().fails("inside a procfs");
    }
}

/// The host's /proc is used for writes that matter: a directory that only looks like one is not.
#[test]
fn a_false_proc_of_the_host_is_refused() {
    let bundle = Bundle::new("echo ran > /tmp/ran");
    bundle.write_config();
    let script = format!(
        "set -e; mount --make-rprivate /; d={dir}; mkdir $d/ro; cp {runtime} $d/ro/rt; mount --bind $d/ro $d/ro; \
         mount -o remount,bind,ro $d/ro; mount -t tmpfs none /proc; mkdir -p /proc/self; ln -s $d/ro/rt /proc/self/exe; \
         cd $d; exec $d/ro/rt --root $d/state run {id}",
        dir = bundle.path("").display(),
        runtime = support::RUNTIME,
        id = bundle.id,
    );
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .output()
        .unwrap();
    support::Done::from(output).fails("/proc is not a procfs");
    assert!(!bundle.rootfs().join("tmp/ran").exists());
}

#[test]
fn a_file_is_not_mounted_over_a_directory_nor_the_reverse() {
    let mut bundle = Bundle::new("true");
    let volume = volume(&bundle);
    hostile::bind(&mut bundle, &volume.join("file"), "/etc");
    bundle.create().fails("not a directory");
    let mut bundle = Bundle::new("true");
    fs::write(bundle.rootfs().join("etc/hosts"), "image").unwrap();
    hostile::bind(&mut bundle, &volume, "/etc/hosts");
    bundle.create().fails("not a directory");
    assert_eq!(fs::read_to_string(bundle.rootfs().join("etc/hosts")).unwrap(), "image");
    // A device node of the image under the name of another.
    let mut bundle = Bundle::new("true");
    hostile::unmount(&mut bundle, "/dev");
    let kernel_memory = libc::makedev(1, 1);
    let null = bundle.rootfs().join("dev/null");
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &null, kind, mode, kernel_memory).unwrap();
    bundle
        .create()
        .fails("make device /dev/null: something else is there already");
}

/// Row 38: files of the host's root are nobody's inside; processes and what they make are nobody of importance outside.
#[test]
fn host_root_is_never_the_owner_behind_a_user_namespace() {
    use std::os::unix::fs::MetadataExt;
    let script = "echo x > /plain/made; stat -c %u:%g /plain/file /mapped/file /plain/made; \
                  chmod 777 /plain/file 2>/dev/null || echo refused; exec sleep 1000";
    let mut bundle = Bundle::new(script);
    user_namespace(&mut bundle, 200000);
    let volumes = [bundle.path("plain"), bundle.path("mapped")];
    for volume in &volumes {
        fs::create_dir_all(bundle.rootfs().join(volume.file_name().unwrap())).unwrap();
        fs::create_dir(volume).unwrap();
        fs::write(volume.join("file"), "x").unwrap();
        fs::set_permissions(volume, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    }
    std::os::unix::fs::chown(bundle.path("rootfs"), Some(200000), Some(200000)).unwrap();
    hostile::bind(&mut bundle, &volumes[0], "/plain");
    hostile::mount(
        &mut bundle,
        json!({"destination": "/mapped", "type": "bind", "source": volumes[1], "options": ["rbind", "ridmap"]}),
    );
    bundle.create().ok();
    bundle.start().ok();
    let mut command = bundle.command(&["exec", "-d", &bundle.id, "sleep", "1000"]);
    assert!(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let processes = fs::read_to_string(bundle.cgroup().join("cgroup.procs")).unwrap();
    assert_eq!(processes.lines().count(), 2);
    for pid in processes.lines() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        for ids in ["Uid:", "Gid:"] {
            let line = status.lines().find(|line| line.starts_with(ids)).unwrap();
            assert_eq!(line, &format!("{ids}\t200000\t200000\t200000\t200000"));
        }
    }
    assert_eq!(fs::metadata(bundle.path("plain/made")).unwrap().uid(), 200000);
    // Unmapped: the host's root shows as nobody. Mapped: as the container's root, which it is meant to.
    assert_eq!(bundle.output(), "65534:65534\n0:0\n0:0\nrefused\n");
}
