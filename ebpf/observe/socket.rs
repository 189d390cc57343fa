//! What the kernel says about the socket: struct bpf_sock_ops, and the one field of struct sock that it lacks.
//!
//! Accesses are volatile: the verifier allows whole fields of the context only, so they must not be merged.

use core::ptr::read_volatile;

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_sk_storage_get, bpf_skc_to_tcp_sock};
use hull_ebpf_types::observe::Failure;
use hull_ebpf_types::{Endpoint, Origin};

use crate::maps::OVERFLOW;
use crate::origin;

/// Offset of `sk_err` in struct sock, from the kernel's BTF; zero if the agent could not find it.
#[unsafe(no_mangle)]
static SK_ERR: u32 = 0;

const AF_INET: u32 = 2;
const V4_PREFIX: u32 = 0xffff_u32.to_be();
const ECONNRESET: i32 = 104;
const EPIPE: i32 = 32;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;

/// A field of the context.
macro_rules! field {
    ($ops:expr, $field:ident) => {
        // SAFETY: the kernel passes a valid context.
        unsafe { core::ptr::read_volatile(&raw const (*$ops).$field) }
    };
}
pub(crate) use field;

/// What the socket asked for, if it was sent to a backend; else null.
#[inline(always)]
pub fn origin(ops: *mut bpf_sock_ops) -> *mut Origin {
    // SAFETY: helpers with the context that the kernel passed; the socket is checked before use, and the storage by the
    // caller.
    let origin: *mut Origin = unsafe {
        match origin::of(bpf_get_socket_cookie(ops.cast())) {
            Some(place) => place,
            None => {
                let sk = read_volatile(&raw const (*ops).__bindgen_anon_2.sk);
                if sk.is_null() {
                    return core::ptr::null_mut();
                }
                let map = (&raw const OVERFLOW).cast_mut().cast();
                bpf_sk_storage_get(map, sk.cast(), core::ptr::null_mut(), 0).cast()
            }
        }
    };
    // SAFETY: not null, so it is the socket's own value; a socket that was connected elsewhere since has a blank one.
    if origin.is_null() || unsafe { (*origin).service } == 0 {
        return core::ptr::null_mut();
    }
    origin
}

/// Where the client's end is.
#[inline(always)]
pub fn client(ops: *mut bpf_sock_ops) -> Endpoint {
    let port = (field!(ops, local_port) as u16).to_be();
    // All are read, whichever are needed: reads in two branches would be merged into one with a computed offset, which
    // the verifier refuses.
    let v4 = field!(ops, local_ip4);
    // SAFETY: the kernel passes a valid context.
    let v6 = unsafe {
        [
            read_volatile(&raw const (*ops).local_ip6[0]),
            read_volatile(&raw const (*ops).local_ip6[1]),
            read_volatile(&raw const (*ops).local_ip6[2]),
            read_volatile(&raw const (*ops).local_ip6[3]),
        ]
    };
    let address = if field!(ops, family) == AF_INET {
        [0, 0, V4_PREFIX, v4]
    } else {
        v6
    };
    Endpoint { address, port, zero: 0 }
}

/// The error that the socket's owner will see (SO_ERROR); -1 if it is not known.
#[inline(always)]
fn error(ops: *mut bpf_sock_ops) -> i32 {
    // SAFETY: the agent sets this word before the kernel sees it and freezes it; volatile keeps it a word in memory.
    let offset = unsafe { read_volatile(&raw const SK_ERR) };
    if offset == 0 {
        return -1;
    }
    // SAFETY: the kernel passes a valid context; the verifier checks that the offset is that of a field.
    unsafe {
        let sk = read_volatile(&raw const (*ops).__bindgen_anon_2.sk);
        if sk.is_null() {
            return -1;
        }
        let tcp = bpf_skc_to_tcp_sock(sk.cast());
        if tcp.is_null() {
            return -1;
        }
        read_volatile(tcp.cast::<u8>().add(offset as usize).cast::<i32>())
    }
}

/// Why a connection was not made.
#[inline(always)]
pub fn why_not_made(ops: *mut bpf_sock_ops) -> Failure {
    match error(ops) {
        ECONNREFUSED | ECONNRESET => Failure::Refused,
        ETIMEDOUT => Failure::TimedOut,
        0 => Failure::Abandoned,
        // What is not known is told from what was sent again.
        -1 if field!(ops, total_retrans) > 0 => Failure::TimedOut,
        -1 => Failure::Refused,
        _ => Failure::Unreachable,
    }
}

/// Why an open connection ended, unless its client closed it.
#[inline(always)]
pub fn why_broken(ops: *mut bpf_sock_ops, failure: &mut Failure) -> bool {
    *failure = match error(ops) {
        ECONNRESET | EPIPE | ECONNREFUSED => Failure::Reset,
        0 | -1 => return false,
        _ => Failure::Lost,
    };
    true
}
