//! Mounts as other runtimes make them: access times of bind mounts, modes of tmpfs, links of the image that lead to what
//! is missing; and user namespaces that map little or nothing.

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::json;
use support::{Bundle, hostile};

fn shown(bundle: &Bundle) -> String {
    let done = bundle.run();
    let line = done
        .ok()
        .lines()
        .find(|line| line.contains(" /in "))
        .unwrap_or_default();
    line.split(' ').nth(5).unwrap_or_default().to_owned()
}

#[test]
fn access_times_of_a_bind_mount_can_be_chosen() {
    let volume = tempfile::tempdir().unwrap();
    for (options, has, has_not) in [
        (["noatime", "ro"], "noatime", "relatime"),
        (["strictatime", "ro"], "ro", "atime"),
        (["noatime", "relatime"], "relatime", "noatime"),
        (["rnoatime", "nodev"], "noatime", "relatime"),
        (["nodiratime", "ro"], "nodiratime", "noatime"),
    ] {
        let mut bundle = Bundle::new("cat /proc/self/mountinfo");
        let mount = json!({"destination": "/in", "type": "bind", "source": volume.path(),
            "options": ["rbind", options[0], options[1]]});
        hostile::mount(&mut bundle, mount);
        let shown = shown(&bundle);
        let flags: Vec<&str> = shown.split(',').collect();
        assert!(
            flags.contains(&has) && !flags.contains(&has_not),
            "{options:?}: {shown}"
        );
        assert!(options[0] != "strictatime" || !shown.contains("atime"), "{shown}");
    }
}

#[test]
fn a_tmpfs_without_a_mode_takes_that_of_the_images_directory() {
    for (mode, options, wanted) in [
        (Some(0o712), json!([]), "712"),
        (Some(0o7777), json!(["nosuid", "ro"]), "7777"),
        (Some(0o750), json!(["tmpcopyup"]), "750"),
        (Some(0o712), json!(["mode=0444"]), "444"),
        (None, json!([]), "1777"),
    ] {
        let mut bundle = Bundle::new("stat -c %a /in");
        if let Some(mode) = mode {
            let directory = bundle.rootfs().join("in");
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
        }
        hostile::mount(
            &mut bundle,
            json!({"destination": "/in", "type": "tmpfs", "options": options}),
        );
        assert_eq!(bundle.run().ok(), wanted, "{mode:?} {options}");
    }
}

/// What is missing is made where the link leads, in the image.
#[test]
fn a_link_to_nothing_is_followed_to_where_it_leads() {
    let volume = tempfile::tempdir().unwrap();
    fs::write(volume.path().join("file"), "volume").unwrap();
    for (link, to, destination, source) in [
        ("etc/link", "../not/yet/file", "/etc/link", "file"),
        ("etc/link", "/not/yet", "/etc/link/file", "file"),
        ("etc/link", "../../../not/yet", "/etc/link", ""),
        ("etc/link", "../not", "/etc/link/yet", ""),
    ] {
        let mut bundle = Bundle::new("cat /not/yet/file");
        symlink(to, bundle.rootfs().join(link)).unwrap();
        hostile::bind(&mut bundle, &volume.path().join(source), destination);
        assert_eq!(bundle.run().ok(), "volume", "{to} {destination}");
    }
    let mut bundle = Bundle::new("true");
    symlink("b", bundle.rootfs().join("a")).unwrap();
    symlink("a", bundle.rootfs().join("b")).unwrap();
    hostile::bind(&mut bundle, volume.path(), "/a");
    bundle.run().fails("/a");
}

fn in_user_namespace(script: &str) -> Bundle {
    let mut bundle = Bundle::new(script);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "user"}));
    for mount in bundle.config["mounts"].as_array_mut().unwrap() {
        if let Some(options) = mount["options"].as_array_mut() {
            options.retain(|option| option != "gid=5");
        }
    }
    bundle
}

/// The caller alone is there, as whoever the process is.
#[test]
fn a_user_namespace_without_mappings_maps_the_caller() {
    for (uid, script) in [
        (0, "id -u; cat /proc/self/uid_map"),
        (7, "id -u; cat /proc/self/uid_map"),
    ] {
        let mut bundle = in_user_namespace(script);
        bundle.config["process"]["user"] = json!({"uid": uid, "gid": uid});
        let done = bundle.run();
        let words: Vec<&str> = done.ok().split_whitespace().collect();
        let uid = uid.to_string();
        assert_eq!(words, [&uid, &uid, "0", "1"]);
    }
    let mut bundle = in_user_namespace("true");
    bundle.config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 1}]);
    bundle.run().fails("not one of them");
}

#[test]
fn a_user_namespace_may_have_no_root() {
    let map = json!([{"containerID": 1000, "hostID": 100_000, "size": 1}]);
    let without_root = |script: &str| {
        let mut bundle = in_user_namespace(script);
        bundle.config["linux"]["uidMappings"] = map.clone();
        bundle.config["linux"]["gidMappings"] = map.clone();
        bundle.config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
        for path in [bundle.rootfs(), bundle.rootfs().join("tmp")] {
            std::os::unix::fs::chown(path, Some(100_000), Some(100_000)).unwrap();
        }
        bundle
    };
    let done = without_root("id -u; id -g; touch /tmp/mine; stat -c %u /tmp/mine").run();
    assert_eq!(done.ok(), "1000\n1000\n1000");
    let bundle = without_root("sleep 1000");
    bundle.create().ok();
    bundle.start().ok();
    assert_eq!(
        bundle.exec(&[&bundle.id, "sh", "-c", "id -u; id -g"]).ok(),
        "1000\n1000"
    );
}

/// The file for it belongs to the host's root, whom nobody is inside.
#[test]
fn clocks_can_be_set_in_a_user_namespace() {
    let mut bundle = in_user_namespace("cat /proc/self/timens_offsets");
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 10}]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({"type": "time"}));
    bundle.config["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 7881, "nanosecs": 271_828}});
    let done = bundle.run();
    let words: Vec<&str> = done.ok().split_whitespace().collect();
    assert_eq!(words[..3], ["monotonic", "7881", "271828"]);
}
