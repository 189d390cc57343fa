//! Options of one mount, sorted into attributes, propagation and parameters of the file system.
//! config.md, "Linux mount options"; mount_setattr(2) and fsconfig(2) for what the kernel takes.

use std::path::Path;

/// Attributes to set and to clear, on the mount itself and on everything below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub set: u64,
    pub clear: u64,
    pub recursive_set: u64,
    pub recursive_clear: u64,
}

impl Attributes {
    /// What is for everything below becomes what is for the mount itself.
    pub fn flatten(&mut self) {
        self.set = self.set & !self.recursive_clear | self.recursive_set;
        self.clear = self.clear & !self.recursive_set | self.recursive_clear;
        (self.recursive_set, self.recursive_clear) = (0, 0);
    }
}

/// Propagation as mount(2) flags (MS_SHARED, MS_SLAVE, …) and whether it goes to submounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Propagation {
    pub flag: u64,
    pub recursive: bool,
}

/// `options` of one mount, sorted by what they are.
#[derive(Debug, Default)]
pub(super) struct Options {
    pub bind: bool,
    pub recursive_bind: bool,
    pub attributes: Attributes,
    pub propagation: Option<Propagation>,
    pub copy_up: bool,
    /// `idmap` (Some(false)) or `ridmap` (Some(true)).
    pub idmap: Option<bool>,
    pub parameters: Vec<(String, Option<String>)>,
}

impl Options {
    pub fn parse(options: &[String]) -> Options {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option);
        }
        parsed
    }

    /// Parameters are for file systems: a bind mount shows one that has its own.
    pub fn warn_of_parameters(&self, destination: &Path) {
        for (key, _) in &self.parameters {
            crate::error::warn(&format!(
                "mounts: option {key:?} has no effect on the bind mount at {:?}",
                destination.display()
            ));
        }
    }

    fn add(&mut self, option: &str) {
        if let Some((set, clear)) = attribute(option) {
            self.attributes.set = self.attributes.set & !clear | set;
            self.attributes.clear = self.attributes.clear & !set | clear;
            return;
        }
        if let Some((set, clear)) = option.strip_prefix('r').and_then(attribute) {
            self.attributes.recursive_set = self.attributes.recursive_set & !clear | set;
            self.attributes.recursive_clear = self.attributes.recursive_clear & !set | clear;
            return;
        }
        if let Some(propagation) = propagation(option) {
            self.propagation = Some(propagation);
            return;
        }
        match option {
            "bind" => self.bind = true,
            "rbind" => self.recursive_bind = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.idmap = Some(false),
            "ridmap" => self.idmap = Some(true),
            // What the kernel does anyway, or no longer knows.
            "" | "defaults" | "remount" | "async" | "loud" | "silent" | "noiversion" | "nomand" | "nolazytime" => {}
            _ => match option.split_once('=') {
                Some((key, value)) => self.parameters.push((key.into(), Some(value.into()))),
                None => self.parameters.push((option.into(), None)),
            },
        }
    }
}

/// Bits to set and to clear for a per-mount option.
fn attribute(option: &str) -> Option<(u64, u64)> {
    use libc::{
        MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
        MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY, MOUNT_ATTR_STRICTATIME,
    };
    // Access times are one value of several bits: it must be cleared as a whole, even where it is set. mount_setattr(2).
    let all_atime = libc::MOUNT_ATTR__ATIME;
    Some(match option {
        "ro" => (MOUNT_ATTR_RDONLY, 0),
        "rw" => (0, MOUNT_ATTR_RDONLY),
        "nosuid" => (MOUNT_ATTR_NOSUID, 0),
        "suid" => (0, MOUNT_ATTR_NOSUID),
        "nodev" => (MOUNT_ATTR_NODEV, 0),
        "dev" => (0, MOUNT_ATTR_NODEV),
        "noexec" => (MOUNT_ATTR_NOEXEC, 0),
        "exec" => (0, MOUNT_ATTR_NOEXEC),
        "nodiratime" => (MOUNT_ATTR_NODIRATIME, 0),
        "diratime" => (0, MOUNT_ATTR_NODIRATIME),
        "nosymfollow" => (MOUNT_ATTR_NOSYMFOLLOW, 0),
        "symfollow" => (0, MOUNT_ATTR_NOSYMFOLLOW),
        "noatime" => (MOUNT_ATTR_NOATIME, all_atime),
        "strictatime" => (MOUNT_ATTR_STRICTATIME, all_atime),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, all_atime),
        _ => return None,
    })
}

/// mount(2)'s flag for a propagation option or a value of rootfsPropagation.
pub(crate) fn propagation(option: &str) -> Option<Propagation> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(name) => (name, true),
        None => (option, false),
    };
    let flag = match name {
        "private" => libc::MS_PRIVATE,
        "shared" => libc::MS_SHARED,
        "slave" => libc::MS_SLAVE,
        "unbindable" => libc::MS_UNBINDABLE,
        _ => return None,
    };
    Some(Propagation { flag, recursive })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_features_lists_is_understood() {
        // Flags of the file system itself, which the kernel parses.
        const SUPERBLOCK: [&str; 4] = ["dirsync", "lazytime", "mand", "sync"];
        for option in crate::features::MOUNT_OPTIONS {
            let parsed = Options::parse(&[(*option).to_owned()]);
            assert_eq!(!parsed.parameters.is_empty(), SUPERBLOCK.contains(option), "{option}");
        }
    }
}
