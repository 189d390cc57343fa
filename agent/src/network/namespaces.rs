//! A pod's namespaces, kept alive by bind mounts instead of a pause process; namespaces(7), unshare(2), setns(2).
//!
//! They are made in a thread of their own, which dies right after, so no thread of the agent ever runs in a pod's
//! namespaces for longer than one task. A pin is a bind mount of nsfs onto an empty file.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

use super::Error;
use super::netlink::{self, Netlink};

/// `f_type` of a pinned namespace: NSFS_MAGIC of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// A kind of namespace that the containers of a pod share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Interfaces, addresses, routes, ports: network_namespaces(7).
    Net,
    /// System V and POSIX message queues: ipc_namespaces(7).
    Ipc,
    /// Host name: uts_namespaces(7).
    Uts,
}

impl Kind {
    /// The name under /proc/<pid>/ns, which is also the name of the pin.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Net => "net",
            Kind::Ipc => "ipc",
            Kind::Uts => "uts",
        }
    }

    fn flag(self) -> UnshareFlags {
        match self {
            Kind::Net => UnshareFlags::NEWNET,
            Kind::Ipc => UnshareFlags::NEWIPC,
            Kind::Uts => UnshareFlags::NEWUTS,
        }
    }
}

/// The pinned namespaces of one pod: the files `net`, `ipc`, `uts` of a directory.
#[derive(Clone, Debug)]
pub struct Pinned {
    dir: PathBuf,
}

impl Pinned {
    /// Makes and pins namespaces of `kinds` in `dir`; keeps those of an earlier run when all are there.
    /// A network namespace has its `lo` up; a UTS namespace gets `hostname`.
    pub fn create(dir: &Path, kinds: &[Kind], hostname: Option<&str>) -> Result<Pinned, Error> {
        let pinned = Pinned::open(dir);
        if kinds.iter().all(|kind| is_pinned(&pinned.path(*kind))) {
            return Ok(pinned);
        }
        pinned.remove()?;
        fs::create_dir_all(dir).map_err(|source| Error::file("create directory", dir, source))?;
        let result = thread::scope(|scope| {
            let worker = || populate(&pinned, kinds, hostname);
            let handle = thread::Builder::new()
                .name("namespaces".to_owned())
                .spawn_scoped(scope, worker)
                .map_err(|source| failed("start a thread for new namespaces", source))?;
            handle
                .join()
                .unwrap_or_else(|_| Err(failed("make namespaces", io::Error::other("the thread panicked"))))
        });
        if result.is_err() {
            pinned.remove()?;
        }
        result.map(|()| pinned)
    }

    /// The pins in `dir`, whether they exist or not.
    pub fn open(dir: &Path) -> Pinned {
        Pinned { dir: dir.to_owned() }
    }

    /// Where the namespace of `kind` is pinned.
    pub fn path(&self, kind: Kind) -> PathBuf {
        self.dir.join(kind.name())
    }

    /// Unpins everything and removes the directory; the kernel frees a namespace with its last process.
    pub fn remove(&self) -> Result<(), Error> {
        for kind in [Kind::Net, Kind::Ipc, Kind::Uts] {
            let path = self.path(kind);
            while is_pinned(&path) {
                unmount(&path, UnmountFlags::DETACH).map_err(|error| Error::file("unmount", &path, error.into()))?;
            }
            absent_is_fine(fs::remove_file(&path)).map_err(|source| Error::file("remove", &path, source))?;
        }
        absent_is_fine(fs::remove_dir(&self.dir)).map_err(|source| Error::file("remove directory", &self.dir, source))
    }
}

fn populate(pinned: &Pinned, kinds: &[Kind], hostname: Option<&str>) -> Result<(), Error> {
    let flags = kinds
        .iter()
        .fold(UnshareFlags::empty(), |flags, kind| flags | kind.flag());
    // SAFETY: none of these flags separates the file descriptor table or the memory from the process.
    unsafe { unshare_unsafe(flags) }.map_err(|error| failed(&format!("unshare {kinds:?}"), error.into()))?;
    if kinds.contains(&Kind::Uts)
        && let Some(hostname) = hostname
    {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|error| failed(&format!("set the host name {hostname:?}"), error.into()))?;
    }
    if kinds.contains(&Kind::Net) {
        prepare_network()?;
    }
    for kind in kinds {
        let path = pinned.path(*kind);
        File::create(&path).map_err(|source| Error::file("create", &path, source))?;
        let namespace = format!("/proc/thread-self/ns/{}", kind.name());
        mount_bind(&namespace, &path).map_err(|error| Error::file("bind-mount a namespace on", &path, error.into()))?;
        // A copy in another mount namespace would keep the namespace alive after the pod.
        mount_change(&path, MountPropagationFlags::PRIVATE)
            .map_err(|error| Error::file("make private", &path, error.into()))?;
    }
    Ok(())
}

/// A pod may bind low ports and ping without capabilities, as under other container engines. IPv6 stays on `lo` alone until
/// an interface gets an IPv6 address of the cluster: link-local ones would only make noise.
fn prepare_network() -> Result<(), Error> {
    for (name, value) in [
        ("ipv4/ip_unprivileged_port_start", "0"),
        ("ipv4/ping_group_range", "0 2147483647"),
        ("ipv6/conf/default/disable_ipv6", "1"),
    ] {
        super::host::write_sysctl(name, value)?;
    }
    let mut netlink = Netlink::open()?;
    let lo = netlink.link("lo")?.index;
    netlink.run(vec![netlink::set_up(lo)]).map(drop)
}

/// Opens a pinned namespace.
pub fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|source| Error::file("open the network namespace", path, source))
}

/// Runs `task` in a thread that has entered the network namespace.
pub fn within<T: Send>(
    namespace: &(impl AsFd + Sync),
    task: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    thread::scope(|scope| {
        let worker = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|error| failed("enter the pod's network namespace", error.into()))?;
            task()
        };
        let handle = thread::Builder::new()
            .name("in-netns".to_owned())
            .spawn_scoped(scope, worker)
            .map_err(|source| failed("start a thread for a network namespace", source))?;
        handle
            .join()
            .unwrap_or_else(|_| Err(failed("work in a network namespace", io::Error::other("panicked"))))
    })
}

fn is_pinned(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type == NSFS_MAGIC)
}

fn failed(action: &str, source: io::Error) -> Error {
    Error::Namespace {
        action: action.to_owned(),
        source,
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
