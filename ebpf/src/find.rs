//! Which service an address belongs to: by itself, as a node port, or as a port that nobody serves.

use core::ffi::c_void;
use core::ptr::read_volatile;

use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use hull_ebpf_types::{Frontend, HOST_ONLY, RANGES, Service, flag};

use crate::growing::Growing as _;
use crate::maps::{ADDRESSES, SERVICES};

pub enum Found {
    Nothing,
    /// The element was reused while it was read: look again.
    Stale,
    Service,
}

/// Cookie of the host's network namespace, in which loopback addresses are the node's own.
#[unsafe(no_mangle)]
static HOST_NAMESPACE: u64 = 0;
/// The ranges of cluster addresses: for each the base and the mask, words in network byte order.
#[unsafe(no_mangle)]
static CLUSTER_RANGES: [[u32; 8]; RANGES] = [[u32::MAX; 8]; RANGES];

const V4_PREFIX: u32 = 0xffff_u32.to_be();
const ANY4: [u32; 4] = [0, 0, V4_PREFIX, 0];
const ANY6: [u32; 4] = [0; 4];
const LOOPBACK4: [u32; 4] = [0, 0, V4_PREFIX, 0x7f00_0001_u32.to_be()];
const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];
/// The first byte of 127.0.0.0/8.
const LOOPBACK_NET: u32 = 127;

/// A function of its own in the program, too: LLVM 22 crashes on the whole. Results go through references, never as
/// `Option`s of structs: the compiler may leave the payload of a `None` undefined, and the verifier refuses to see that
/// copied.
#[inline(never)]
pub fn find(ctx: *mut c_void, asked: &Frontend, service: &mut Service) -> Found {
    let any = any(&asked.address);
    match exactly(asked, service) {
        Found::Nothing => {}
        // A node port's own key, asked for by the unspecified address, or a pod's port on a loopback address of the host.
        Found::Service if service.flags & flag::NODE_PORT != 0 => return on_this_node(ctx, asked),
        found => return found,
    }
    let mut other = *asked;
    if is_cluster_address(&asked.address) {
        other.port = 0;
        other.protocol = 0;
        return exactly(&other, service);
    }
    other.address = any;
    match exactly(&other, service) {
        Found::Service if service.flags & flag::NODE_PORT != 0 => on_this_node(ctx, asked),
        Found::Stale => Found::Stale,
        _ => Found::Nothing,
    }
}

#[inline(always)]
fn exactly(frontend: &Frontend, service: &mut Service) -> Found {
    match SERVICES.get_ptr(frontend) {
        None => return Found::Nothing,
        // SAFETY: copied at once, and its own key tells whether it was reused meanwhile.
        Some(found) => *service = unsafe { (*found).service },
    }
    if service.frontend == *frontend {
        Found::Service
    } else {
        Found::Stale
    }
}

/// The unspecified address of the same family.
#[inline(always)]
pub fn any(address: &[u32; 4]) -> [u32; 4] {
    if is_v4(address) { ANY4 } else { ANY6 }
}

#[inline(always)]
fn is_v4(address: &[u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == V4_PREFIX
}

#[inline(always)]
fn on_this_node(ctx: *mut c_void, asked: &Frontend) -> Found {
    if serves_node_ports(ctx, &asked.address) {
        Found::Service
    } else {
        Found::Nothing
    }
}

/// Whether an address is the node's, as the client sees it, and node ports are served there.
#[inline(always)]
pub fn serves_node_ports(ctx: *mut c_void, address: &[u32; 4]) -> bool {
    let mut key = *address;
    if is_v4(address) && (address[3] == 0 || address[3].to_ne_bytes()[0] as u32 == LOOPBACK_NET) {
        key = LOOPBACK4;
    } else if *address == ANY6 {
        key = LOOPBACK6;
    }
    match ADDRESSES.get_ptr(&key) {
        None => false,
        // SAFETY: elements are written whole.
        Some(kind) => (unsafe { *kind }) != HOST_ONLY || is_host(ctx),
    }
}

/// Whether the client is in the host's network namespace.
#[inline(always)]
pub fn is_host(ctx: *mut c_void) -> bool {
    // SAFETY: the agent sets the word before the kernel sees it and freezes it; the context is the kernel's.
    unsafe { read_volatile(&raw const HOST_NAMESPACE) == bpf_get_netns_cookie(ctx) }
}

#[inline(always)]
fn is_cluster_address(address: &[u32; 4]) -> bool {
    let mut range = 0;
    while range < RANGES {
        let mut word = 0;
        let mut differs = 0;
        while word < 4 {
            // SAFETY: as above; both indices are below the lengths.
            let (base, mask) = unsafe {
                (
                    read_volatile(&raw const CLUSTER_RANGES[range][word]),
                    read_volatile(&raw const CLUSTER_RANGES[range][word + 4]),
                )
            };
            differs |= (address[word] & mask) ^ base;
            word += 1;
        }
        if differs == 0 {
            return true;
        }
        range += 1;
    }
    false
}
