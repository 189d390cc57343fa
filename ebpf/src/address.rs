//! Reading and writing the address in the program's context (struct bpf_sock_addr), for both families alike.
//!
//! An IPv6 socket that talks to `::ffff:a.b.c.d` is an IPv4 client; everything is compared in that form.
//! Accesses are volatile: the verifier allows whole words of this struct only, so they must not be merged.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::programs::SockAddrContext;
use hull_ebpf_types::{Endpoint, Frontend, scope};

#[derive(Clone, Copy, PartialEq)]
pub enum Family {
    V4,
    V6,
}

const V4_PREFIX: u32 = 0xffff_u32.to_be();
const TCP: u32 = 6;
const UDP: u32 = 17;
const MPTCP: u32 = 262;

/// What the client asked for; false for protocols that services do not have.
#[inline(always)]
pub fn frontend(ctx: &SockAddrContext, family: Family, frontend: &mut Frontend) -> bool {
    // SAFETY: the kernel passes a valid context.
    let number = unsafe { read_volatile(&raw const (*ctx.sock_addr).protocol) };
    let Endpoint { address, port, .. } = read(ctx, family);
    *frontend = Frontend {
        address,
        port,
        protocol: 0,
        scope: scope::INSIDE,
    };
    protocol(number, &mut frontend.protocol)
}

/// A socket's protocol as services have it; false for those they do not have.
#[inline(always)]
pub fn protocol(number: u32, protocol: &mut u8) -> bool {
    *protocol = match number {
        TCP | MPTCP => TCP as u8,
        UDP => UDP as u8,
        _ => return false,
    };
    true
}

#[inline(always)]
pub fn read(ctx: &SockAddrContext, family: Family) -> Endpoint {
    let context = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context.
    unsafe {
        let port = read_volatile(&raw const (*context).user_port) as u16;
        let address = match family {
            Family::V4 => [0, 0, V4_PREFIX, read_volatile(&raw const (*context).user_ip4)],
            Family::V6 => [
                read_volatile(&raw const (*context).user_ip6[0]),
                read_volatile(&raw const (*context).user_ip6[1]),
                read_volatile(&raw const (*context).user_ip6[2]),
                read_volatile(&raw const (*context).user_ip6[3]),
            ],
        };
        Endpoint { address, port, zero: 0 }
    }
}

#[inline(always)]
pub fn write(ctx: &SockAddrContext, family: Family, endpoint: &Endpoint) {
    let context = ctx.sock_addr;
    // SAFETY: the kernel passes a valid context, of which these words may be written.
    unsafe {
        match family {
            Family::V4 => write_volatile(&raw mut (*context).user_ip4, endpoint.address[3]),
            Family::V6 => {
                write_volatile(&raw mut (*context).user_ip6[0], endpoint.address[0]);
                write_volatile(&raw mut (*context).user_ip6[1], endpoint.address[1]);
                write_volatile(&raw mut (*context).user_ip6[2], endpoint.address[2]);
                write_volatile(&raw mut (*context).user_ip6[3], endpoint.address[3]);
            }
        }
        write_volatile(&raw mut (*context).user_port, u32::from(endpoint.port));
    }
}
