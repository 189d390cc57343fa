//! Socket-level service balancing: the address a client asks for is rewritten before the kernel connects or sends.
//!
//! No packet is ever translated. The programs only look up what the agent decided (hull-ebpf-types describes the
//! maps); what a socket asked for is remembered in its socket storage, so that getpeername(2) and recvmsg(2) show it.
//! Attached to a cgroup with BPF_CGROUP_INET4_CONNECT and its siblings; bpf-helpers(7).
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod address;
mod balance;
mod bind;
mod choice;
mod find;
mod growing;
mod maps;
mod origin;
mod remember;

use core::mem::MaybeUninit;

use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};

use address::Family;
use balance::Verdict;
use hull_ebpf_types::{Endpoint, Frontend, Service, algorithm};

/// What a program returns: go on with the (possibly rewritten) address, or fail the call.
const PROCEED: i32 = 1;
const FAIL: i32 = 0;
const EADDRINUSE: i32 = 98;
const ECONNREFUSED: i32 = 111;

/// Zero where the kernel lacks bpf_set_retval for these programs (before 5.18): clients then see EPERM.
#[unsafe(no_mangle)]
static CAN_SET_ERROR: u32 = 1;

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V4)
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, Family::V6)
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&ctx, Family::V6)
}

#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_origin(&ctx, Family::V4, true)
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show_origin(&ctx, Family::V6, true)
}

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_origin(&ctx, Family::V4, false)
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_origin(&ctx, Family::V6, false)
}

#[cgroup_sock(post_bind4)]
fn post_bind4(ctx: SockContext) -> i32 {
    post_bind(&ctx, Family::V4)
}

#[cgroup_sock(post_bind6)]
fn post_bind6(ctx: SockContext) -> i32 {
    post_bind(&ctx, Family::V6)
}

/// A socket is closed by its last owner.
#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    remember::closed(&ctx);
    PROCEED
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, family: Family) -> i32 {
    let mut frontend = Frontend::default();
    if !address::frontend(ctx, family, &mut frontend) {
        return PROCEED;
    }
    let mut endpoint = MaybeUninit::uninit();
    let service = balance::at_once(&frontend, &mut endpoint);
    if service == 0 {
        return connect_by_policy(ctx, family, &frontend);
    }
    // SAFETY: written where a service was found.
    let endpoint = unsafe { endpoint.assume_init_ref() };
    remember::connected(ctx, &frontend, service, algorithm::RANDOM, endpoint);
    address::write(ctx, family, endpoint);
    PROCEED
}

#[inline(always)]
fn connect_by_policy(ctx: &SockAddrContext, family: Family, frontend: &Frontend) -> i32 {
    let mut service = Service::default();
    let mut endpoint = Endpoint::default();
    match balance::choose(ctx, frontend, &mut service, &mut endpoint) {
        Verdict::NotAService => {
            remember::forget_connected(ctx);
            PROCEED
        }
        Verdict::Refuse => fail(ECONNREFUSED),
        Verdict::Send => {
            remember::connected(ctx, frontend, service.id, service.algorithm, &endpoint);
            address::write(ctx, family, &endpoint);
            PROCEED
        }
    }
}

#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, family: Family) -> i32 {
    let mut frontend = Frontend::default();
    if !address::frontend(ctx, family, &mut frontend) {
        return PROCEED;
    }
    let mut endpoint = Endpoint::default();
    remember::earlier(ctx, &frontend, &mut endpoint);
    let mut service = Service::default();
    match balance::choose(ctx, &frontend, &mut service, &mut endpoint) {
        Verdict::NotAService => {
            remember::forget_unconnected(ctx, &frontend);
            PROCEED
        }
        Verdict::Refuse => fail(ECONNREFUSED),
        Verdict::Send => {
            remember::unconnected(ctx, &frontend, &endpoint);
            address::write(ctx, family, &endpoint);
            PROCEED
        }
    }
}

/// The address the kernel is about to show is a backend's: show what the client asked for instead.
#[inline(always)]
fn show_origin(ctx: &SockAddrContext, family: Family, datagram: bool) -> i32 {
    let shown = address::read(ctx, family);
    let mut origin = Endpoint::default();
    if remember::origin_of_connected(ctx, &shown, &mut origin)
        || (datagram && remember::origin_of_unconnected(ctx, &shown, &mut origin))
    {
        address::write(ctx, family, &origin);
    }
    PROCEED
}

#[inline(always)]
fn post_bind(ctx: &SockContext, family: Family) -> i32 {
    if bind::takes_node_port(ctx, family) {
        fail(EADDRINUSE)
    } else {
        PROCEED
    }
}

#[inline(always)]
fn fail(error: i32) -> i32 {
    // SAFETY: the agent sets this word before the kernel sees it and freezes it; volatile keeps it a word in memory.
    if unsafe { core::ptr::read_volatile(&raw const CAN_SET_ERROR) } != 0 {
        // SAFETY: a helper without preconditions.
        unsafe { bpf_set_retval(-error) };
    }
    FAIL
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
