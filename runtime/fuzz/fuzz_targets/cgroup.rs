//! cgroupsPath (up to the first newline, with the id behind a space) and resources.
#![no_main]

use hull_runtime::properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |&byte| byte == b'\n');
    let first = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    match parts.next() {
        Some(resources) => {
            let (path, id) = first.split_once(' ').unwrap_or((&first, "id"));
            properties::cgroup(path, id, resources);
        }
        None => drop(properties::cgroup("/pods/one", "id", data)),
    }
});
