//! `linux.intelRdt`: the container's init joins a class of service in a mounted resctrl; its children follow.
//! config-linux.md, "IntelRdt"; Documentation/filesystems/resctrl.rst.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::plan::rdt::Rdt;

/// Put process `pid` of container `id` into its class; a directory that was made for it comes back.
pub(super) fn join(rdt: &Rdt, id: &str, pid: i32) -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| Error::os("read /proc/self/mountinfo", e))?;
    let mount = mounted_at(&mounts).ok_or_else(|| {
        Error::invalid(
            "linux.intelRdt is set, but no resctrl file system is mounted: \
             this machine lacks Intel RDT, or it needs mount -t resctrl resctrl /sys/fs/resctrl",
        )
    })?;
    join_at(&mount, rdt, id, pid)
}

fn mounted_at(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (fields, kind) = line.split_once(" - ")?;
        kind.starts_with("resctrl ")
            .then(|| fields.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn join_at(mount: &Path, rdt: &Rdt, id: &str, pid: i32) -> Result<Option<PathBuf>> {
    let name = rdt.class.as_deref().unwrap_or(id);
    let class = mount.join(name);
    let mut made = None;
    // A class that is named and has nothing to be written must have been made by the operator.
    if class.is_dir() {
        if rdt.class.is_some() {
            compare(&class, &rdt.schemata)?;
        }
    } else if rdt.class.is_some() && rdt.schemata.is_empty() {
        return Err(Error::invalid(format!(
            "linux.intelRdt.closID: {} does not exist, and no schema is given to make it with",
            class.display()
        )));
    } else {
        make(&class)?;
        made = Some(class.clone());
        for text in &rdt.schemata {
            write(&class.join("schemata"), &format!("{text}\n"))?;
        }
    }
    write(&class.join("tasks"), &pid.to_string())?;
    if rdt.monitor {
        let monitor = class.join("mon_groups").join(id);
        make(&monitor)?;
        write(&monitor.join("tasks"), &pid.to_string())?;
        made.get_or_insert(monitor);
    }
    Ok(made)
}

fn make(directory: &Path) -> Result<()> {
    match fs::create_dir(directory) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(Error::os(format!("linux.intelRdt: make {}", directory.display()), e))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| Error::os(format!("linux.intelRdt: write {text:?} to {}", path.display()), e))
}

/// Every line that is asked for must be what the class has.
fn compare(class: &Path, schemata: &[String]) -> Result<()> {
    if schemata.is_empty() {
        return Ok(());
    }
    let path = class.join("schemata");
    let has =
        fs::read_to_string(&path).map_err(|e| Error::os(format!("linux.intelRdt: read {}", path.display()), e))?;
    let plain = |line: &str| line.chars().filter(|byte| !byte.is_whitespace()).collect::<String>();
    let has: Vec<String> = has.lines().map(plain).collect();
    match schemata
        .iter()
        .flat_map(|text| text.lines())
        .find(|line| !has.contains(&plain(line)))
    {
        None => Ok(()),
        Some(line) => Err(Error::invalid(format!(
            "linux.intelRdt: the class {} exists with other schemata: {line:?} is not in it",
            class.display()
        ))),
    }
}

/// Remove what was made for the container. Best effort: the kernel forgets the tasks by itself.
pub(super) fn remove(made: Option<PathBuf>) {
    if let Some(directory) = made {
        let _ = fs::remove_dir(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rdt(class: Option<&str>, schemata: &[&str]) -> Rdt {
        Rdt {
            class: class.map(str::to_owned),
            schemata: schemata.iter().map(|&text| text.to_owned()).collect(),
            monitor: false,
        }
    }

    #[test]
    fn a_class_is_made_written_and_joined() {
        let mount = tempfile::tempdir().unwrap();
        let made = join_at(mount.path(), &rdt(Some("web"), &["L3:0=f", "MB:0=20"]), "c1", 42).unwrap();
        let class = mount.path().join("web");
        assert_eq!(made.as_deref(), Some(&*class));
        assert_eq!(fs::read_to_string(class.join("tasks")).unwrap(), "42");
        assert_eq!(
            fs::read_to_string(class.join("schemata")).unwrap(),
            "MB:0=20\n",
            "written last"
        );
    }

    #[test]
    fn an_existing_class_must_be_the_same() {
        let mount = tempfile::tempdir().unwrap();
        let class = mount.path().join("web");
        fs::create_dir(&class).unwrap();
        fs::write(class.join("schemata"), "    L3:0=f;1=f\n    MB:0= 20\n").unwrap();
        let made = join_at(mount.path(), &rdt(Some("web"), &["L3:0=f;1=f"]), "c1", 42).unwrap();
        assert_eq!(made, None);
        let error = join_at(mount.path(), &rdt(Some("web"), &["L3:0=1"]), "c1", 42).unwrap_err();
        assert!(error.to_string().contains("L3:0=1"), "{error}");
    }

    #[test]
    fn a_class_that_only_has_a_name_must_exist() {
        let mount = tempfile::tempdir().unwrap();
        assert!(join_at(mount.path(), &rdt(Some("web"), &[]), "c1", 42).is_err());
        assert!(join_at(mount.path(), &rdt(None, &[]), "c1", 42).unwrap().is_some());
        assert!(mount.path().join("c1").is_dir());
    }

    #[test]
    fn the_mount_is_found_by_its_type() {
        let mountinfo = "31 23 0:28 / /sys rw - sysfs sysfs rw\n32 23 0:29 / /sys/fs/resctrl rw - resctrl resctrl rw\n";
        assert_eq!(mounted_at(mountinfo), Some("/sys/fs/resctrl".into()));
        assert_eq!(mounted_at("31 23 0:28 / /sys rw - sysfs sysfs rw\n"), None);
    }
}
