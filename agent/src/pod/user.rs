//! Which uid, gid and groups a container runs with: the pod's securityContext over the image's `USER`.
//!
//! Names are looked up in the image's own /etc/passwd and /etc/group, opened inside the root file system with
//! openat2(RESOLVE_IN_ROOT), so that a symlink in the image cannot lead to the host's files.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

/// Longest account file that is read.
const ACCOUNT_FILE_MAX: u64 = 1 << 20;

/// Who a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, sorted.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// What decides the user, from the pod.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// `runAsUser`.
    pub uid: Option<u32>,
    /// `runAsGroup`.
    pub gid: Option<u32>,
    /// `supplementalGroups` and `fsGroup`.
    pub groups: Vec<u32>,
    /// `runAsNonRoot`.
    pub non_root: bool,
    /// `supplementalGroupsPolicy: Strict`: groups of the image's /etc/group are not added.
    pub strict_groups: bool,
}

/// The account files of an image.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    /// /etc/passwd.
    pub passwd: String,
    /// /etc/group.
    pub group: String,
}

impl Accounts {
    /// Reads those of the root file system at `root`; files that are not there count as empty.
    #[must_use]
    pub fn read(root: &Path) -> Self {
        Accounts {
            passwd: read_inside(root, "etc/passwd"),
            group: read_inside(root, "etc/group"),
        }
    }

    fn user(&self, matches: impl Fn(&str, u32) -> bool) -> Option<Entry<'_>> {
        self.passwd
            .lines()
            .filter_map(Entry::parse)
            .find(|entry| matches(entry.name, entry.uid))
    }

    fn group(&self, name: &str) -> Option<u32> {
        self.groups().find(|(group, ..)| *group == name).map(|(_, gid, _)| gid)
    }

    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _, gid, members) = (
                fields.next()?,
                fields.next()?,
                fields.next()?,
                fields.next().unwrap_or(""),
            );
            Some((name, gid.parse().ok()?, members))
        })
    }
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Entry<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let fields: Vec<&str> = line.split(':').collect();
        let [name, _, uid, gid, _, home, ..] = fields[..] else {
            return None;
        };
        Some(Entry {
            name,
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home,
        })
    }
}

/// Decides the user. `image_user` is the image's `USER`: `name`, `uid`, `name:group`, …; empty for root.
pub fn resolve(wanted: &Wanted, image_user: &str, accounts: &Accounts) -> Result<User, String> {
    let (image_name, image_group) = image_user.split_once(':').unwrap_or((image_user, ""));
    if wanted.non_root {
        check_non_root(wanted.uid, image_name)?;
    }
    let entry = match wanted.uid {
        Some(uid) => accounts.user(|_, other| other == uid),
        None if image_name.is_empty() => accounts.user(|_, uid| uid == 0),
        None => match image_name.parse::<u32>() {
            Ok(uid) => accounts.user(|_, other| other == uid),
            Err(_) => Some(
                accounts
                    .user(|name, _| name == image_name)
                    .ok_or_else(|| format!("the image's user {image_name:?} is not in its /etc/passwd"))?,
            ),
        },
    };
    let numeric = if image_name.is_empty() {
        Some(0)
    } else {
        image_name.parse().ok()
    };
    let uid = wanted
        .uid
        .or(entry.as_ref().map(|entry| entry.uid))
        .or(numeric)
        .unwrap_or(0);
    let gid = match wanted.gid {
        Some(gid) => gid,
        None if wanted.uid.is_none() && !image_group.is_empty() => match image_group.parse() {
            Ok(gid) => gid,
            Err(_) => accounts
                .group(image_group)
                .ok_or_else(|| format!("the image's group {image_group:?} is not in its /etc/group"))?,
        },
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut groups = wanted.groups.clone();
    if let Some(entry) = entry.as_ref().filter(|_| !wanted.strict_groups) {
        let member = |members: &str| members.split(',').any(|member| member == entry.name);
        groups.extend(
            accounts
                .groups()
                .filter(|(.., members)| member(members))
                .map(|(_, gid, _)| gid),
        );
    }
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    let home = entry
        .map(|entry| entry.home)
        .filter(|home| !home.is_empty())
        .unwrap_or("/")
        .to_owned();
    Ok(User { uid, gid, groups, home })
}

fn check_non_root(uid: Option<u32>, image_name: &str) -> Result<(), String> {
    match uid {
        Some(0) => Err("container's runAsUser breaks non-root policy: it is 0".to_owned()),
        Some(_) => Ok(()),
        None if image_name.is_empty() || image_name == "root" => {
            Err("container has runAsNonRoot and image will run as root".to_owned())
        }
        None => match image_name.parse::<u32>() {
            Ok(0) => Err("container has runAsNonRoot and image will run as root".to_owned()),
            Ok(_) => Ok(()),
            Err(_) => Err(format!(
                "container has runAsNonRoot and image has non-numeric user ({image_name}), cannot verify user is non-root"
            )),
        },
    }
}

fn read_inside(root: &Path, path: &str) -> String {
    let mut text = String::new();
    let opened = openat(
        CWD,
        root,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .and_then(|dir| {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        openat2(
            &dir,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        )
    });
    if let Ok(fd) = opened {
        let _ = File::from(fd).take(ACCOUNT_FILE_MAX).read_to_string(&mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/home/web:/bin/sh\n".into(),
            group: "root:x:0:\nweb:x:1001:\nvideo:x:44:web,other\n".into(),
        }
    }

    #[test]
    fn the_pod_wins_over_the_image() {
        let wanted = Wanted {
            uid: Some(1000),
            groups: vec![2000],
            ..Wanted::default()
        };
        let user = resolve(&wanted, "root", &accounts()).unwrap();
        assert_eq!(
            user,
            User {
                uid: 1000,
                gid: 1001,
                groups: vec![44, 1001, 2000],
                home: "/home/web".into()
            }
        );
        let wanted = Wanted {
            uid: Some(5),
            gid: Some(6),
            ..Wanted::default()
        };
        assert_eq!(resolve(&wanted, "", &accounts()).unwrap().groups, [6]);
    }

    #[test]
    fn names_of_the_image_are_looked_up() {
        let user = resolve(&Wanted::default(), "web:video", &accounts()).unwrap();
        assert_eq!((user.uid, user.gid), (1000, 44));
        assert!(
            resolve(&Wanted::default(), "nobody", &accounts())
                .unwrap_err()
                .contains("nobody")
        );
        assert_eq!(resolve(&Wanted::default(), "7:8", &accounts()).unwrap().gid, 8);
        assert_eq!(resolve(&Wanted::default(), "", &accounts()).unwrap().home, "/root");
    }

    #[test]
    fn non_root_is_enforced() {
        let wanted = |uid| Wanted {
            uid,
            non_root: true,
            ..Wanted::default()
        };
        for (uid, image, allowed) in [
            (Some(0), "1000", false),
            (Some(1), "", true),
            (None, "", false),
            (None, "0", false),
            (None, "1000", true),
            (None, "web", false),
        ] {
            assert_eq!(
                resolve(&wanted(uid), image, &accounts()).is_ok(),
                allowed,
                "{uid:?} {image}"
            );
        }
    }

    #[test]
    fn account_files_are_read_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/real", root.path().join("etc/passwd")).unwrap();
        std::fs::write(root.path().join("etc/real"), "inside").unwrap();
        std::os::unix::fs::symlink("../../../../../../etc/group", root.path().join("etc/group")).unwrap();
        let accounts = Accounts::read(root.path());
        assert_eq!((accounts.passwd.as_str(), accounts.group.as_str()), ("inside", ""));
    }
}
