//! What of the pod network is kept on disk beside the allocations, so that all of it can be found again: the node's own
//! addresses, one a line, in `<run_dir>/network.node`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::netlink::{self, Netlink, Request};
use super::pods::interface_name;
use super::{Error, allocator, fabric, host};

fn node_file(run_dir: &Path) -> PathBuf {
    run_dir.join("network.node")
}

/// Where allocations are kept.
pub(super) fn allocations(run_dir: &Path) -> PathBuf {
    run_dir.join("network")
}

/// The node's own addresses of an earlier run; none when there was none.
pub(super) fn node_addresses(run_dir: &Path) -> Result<Vec<IpAddr>, Error> {
    let path = node_file(run_dir);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| line.parse().ok()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(Error::file("read", path, source)),
    }
}

/// Notes the node's own addresses, before they are used.
pub(super) fn note_node_addresses(run_dir: &Path, addresses: &[IpAddr]) -> Result<(), Error> {
    fs::create_dir_all(run_dir).map_err(|source| Error::file("create directory", run_dir, source))?;
    let (path, partial) = (node_file(run_dir), run_dir.join("network.node.partial"));
    let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
    fs::write(&partial, text).map_err(|source| Error::file("write", &partial, source))?;
    fs::rename(&partial, &path).map_err(|source| Error::file("rename to", path, source))
}

/// Takes the pod network off this machine: every pod's interface, all of them in the time of one, the node's own addresses,
/// the ways to other nodes. Works from the state in `run_dir` alone; what is not there is fine.
///
/// # Errors
/// The first thing that could not be removed; everything else is gone.
pub fn teardown(run_dir: &Path) -> Result<(), Error> {
    let dir = allocations(run_dir);
    let records = allocator::records(&dir)?;
    let addresses = node_addresses(run_dir)?;
    if records.is_empty() && addresses.is_empty() {
        return Ok(());
    }
    let mut netlink = Netlink::open()?;
    let pods: Vec<String> = records.iter().map(|(uid, _)| interface_name(uid)).collect();
    delete_together(&pods, &mut netlink)?;
    for (_, path) in &records {
        fs::remove_file(path).map_err(|source| Error::file("remove", path, source))?;
    }
    fabric::clear(&addresses, true, &mut netlink)?;
    host::remove_addresses(&mut netlink, &addresses)?;
    match fs::remove_file(node_file(run_dir)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", node_file(run_dir), source))
        }
        _ => Ok(()),
    }
}

/// Deletes interfaces as a group: the kernel waits for its readers (RCU) once, not once for each.
fn delete_together(names: &[String], netlink: &mut Netlink) -> Result<(), Error> {
    // Any number that nobody else uses at this moment; 0 is the group of all interfaces that are in no other.
    let group = 0x6875_0000 | (std::process::id() & 0xffff) | 1 << 30;
    let mut requests: Vec<Request> = names.iter().map(|name| netlink::set_group(name, group)).collect();
    if requests.is_empty() {
        return Ok(());
    }
    requests.push(netlink::delete_group(group));
    netlink.run(requests).map(drop)
}
