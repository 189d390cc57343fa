//! Node ports are the cluster's: a process of the node that binds one is told that it is in use.
//!
//! Sockets that were bound before the service existed are left alone.

use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::SockContext;
use hull_ebpf_types::{Frontend, flag, scope};

use crate::address::{Family, protocol};
use crate::find::{any, is_host, serves_node_ports};
use crate::growing::Growing as _;
use crate::maps::SERVICES;

const V4_PREFIX: u32 = 0xffff_u32.to_be();
const ANY4: [u32; 4] = [0, 0, V4_PREFIX, 0];
const ANY6: [u32; 4] = [0; 4];

#[inline(always)]
pub fn takes_node_port(ctx: &SockContext, family: Family) -> bool {
    let socket = ctx.sock;
    // SAFETY: the kernel passes a valid context.
    let (number, port) = unsafe {
        (
            read_volatile(&raw const (*socket).protocol),
            read_volatile(&raw const (*socket).src_port),
        )
    };
    let address = bound(ctx, family);
    let mut frontend = Frontend {
        address: any(&address),
        // The kernel shows it in host byte order here.
        port: (port as u16).to_be(),
        protocol: 0,
        scope: scope::INSIDE,
    };
    if !protocol(number, &mut frontend.protocol) {
        return false;
    }
    let mut taken = is_node_port(&frontend);
    if !taken && address == ANY6 {
        // Bound to everything, IPv4 too.
        frontend.address = ANY4;
        taken = is_node_port(&frontend);
    }
    let everywhere = address == ANY4 || address == ANY6;
    taken && is_host(ctx.as_ptr()) && (everywhere || serves_node_ports(ctx.as_ptr(), &address))
}

#[inline(always)]
fn is_node_port(frontend: &Frontend) -> bool {
    // SAFETY: a torn read costs one process an error that it gets a moment later anyway.
    SERVICES
        .get_ptr(frontend)
        .is_some_and(|offer| unsafe { (*offer).service.flags } & flag::NODE_PORT != 0)
}

#[inline(always)]
fn bound(ctx: &SockContext, family: Family) -> [u32; 4] {
    let socket = ctx.sock;
    // SAFETY: the kernel passes a valid context.
    unsafe {
        match family {
            Family::V4 => [0, 0, V4_PREFIX, read_volatile(&raw const (*socket).src_ip4)],
            Family::V6 => [
                read_volatile(&raw const (*socket).src_ip6[0]),
                read_volatile(&raw const (*socket).src_ip6[1]),
                read_volatile(&raw const (*socket).src_ip6[2]),
                read_volatile(&raw const (*socket).src_ip6[3]),
            ],
        }
    }
}
