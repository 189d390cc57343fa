//! Which backend a client gets: the one it has by affinity, else a random one.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use hull_ebpf_types::{Affinity, Client, Endpoint, Frontend, Member, Service, Slot};

use crate::maps::{AFFINITY, COUNTERS, MEMBERS, SERVICES, SLOTS};

pub enum Verdict {
    NotAService,
    Refuse,
    Send,
}

/// A reader may fall between the agent's writes and hold a set that is gone; the next look finds the new one.
const ATTEMPTS: u32 = 3;
const NANOSECONDS: u64 = 1_000_000_000;

/// `endpoint` comes in as where an unconnected socket was sent before, or as zero, and goes out as the choice.
///
/// Results are written through references throughout, never returned as `Option`s of structs: the compiler may leave
/// the payload of a `None` undefined, and the verifier refuses to see that copied.
#[inline(always)]
pub fn choose(ctx: &SockAddrContext, frontend: &Frontend, endpoint: &mut Endpoint) -> Verdict {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        // SAFETY: the element is copied at once, and its own key tells whether it was reused meanwhile.
        let service = match unsafe { SERVICES.get(frontend) } {
            None => return Verdict::NotAService,
            Some(service) => *service,
        };
        if service.frontend != *frontend {
            continue;
        }
        if service.count == 0 {
            count(service.id, false);
            return Verdict::Refuse;
        }
        if kept(ctx, &service, endpoint) || random(&service, endpoint) {
            if service.affinity != 0 {
                stay(ctx, &service, endpoint);
            }
            count(service.id, true);
            return Verdict::Send;
        }
    }
    Verdict::Refuse
}

/// Whether the client may stay where it was.
#[inline(always)]
fn kept(ctx: &SockAddrContext, service: &Service, endpoint: &mut Endpoint) -> bool {
    if endpoint.port == 0 && (service.affinity == 0 || !affine(ctx, service, endpoint)) {
        return false;
    }
    let member = Member {
        service: service.id,
        endpoint: *endpoint,
    };
    // SAFETY: only whether the element exists is used.
    unsafe { MEMBERS.get(&member) }.is_some()
}

#[inline(always)]
fn affine(ctx: &SockAddrContext, service: &Service, endpoint: &mut Endpoint) -> bool {
    // SAFETY: copied at once; a torn copy names no member of the service, or one of its backends.
    let affinity = match unsafe { AFFINITY.get(&client(ctx, service)) } {
        None => return false,
        Some(affinity) => *affinity,
    };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    *endpoint = affinity.endpoint;
    now.wrapping_sub(affinity.used) < u64::from(service.affinity) * NANOSECONDS
}

#[inline(always)]
fn stay(ctx: &SockAddrContext, service: &Service, endpoint: &Endpoint) {
    // SAFETY: a helper without preconditions.
    let used = unsafe { bpf_ktime_get_ns() };
    let affinity = Affinity {
        used,
        endpoint: *endpoint,
        zero: 0,
    };
    // Without memory for it the client merely has no affinity.
    let _ = AFFINITY.insert(&client(ctx, service), &affinity, 0);
}

#[inline(always)]
fn client(ctx: &SockAddrContext, service: &Service) -> Client {
    // SAFETY: the context is the one the kernel passed.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    Client {
        namespace,
        service: service.id,
        zero: 0,
    }
}

#[inline(always)]
fn random(service: &Service, endpoint: &mut Endpoint) -> bool {
    // SAFETY: a helper without preconditions.
    let index = unsafe { bpf_get_prandom_u32() } % service.count;
    let slot = Slot {
        service: service.id,
        generation: service.generation,
        index,
    };
    // SAFETY: the element is copied at once, and its own key tells whether it was reused meanwhile.
    let backend = match unsafe { SLOTS.get(&slot) } {
        None => return false,
        Some(backend) => *backend,
    };
    *endpoint = backend.endpoint;
    backend.slot == slot
}

#[inline(always)]
fn count(service: u32, translated: bool) {
    if let Some(counters) = COUNTERS.get_ptr_mut(&service) {
        // SAFETY: a per-CPU element; a program is not interrupted by another of its kind on the same CPU long enough
        // for more than one lost count.
        unsafe {
            if translated {
                (*counters).translated += 1;
            } else {
                (*counters).refused += 1;
            }
        }
    }
}
