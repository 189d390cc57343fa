//! Which backend a client gets: the one it has by affinity, else a random one.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use hull_ebpf_types::{Affinity, Client, Endpoint, Frontend, Member, Service, Slot};

use crate::maps::{AFFINITY, COUNTERS, MEMBERS, SERVICES, SLOTS};

pub enum Verdict {
    NotAService,
    Refuse,
    Send(Endpoint),
}

/// A reader may fall between the agent's writes and hold a set that is gone; the next look finds the new one.
const ATTEMPTS: u32 = 3;
const NANOSECONDS: u64 = 1_000_000_000;

/// `earlier` is where an unconnected socket was sent before: it stays there while the backend belongs to the service.
#[inline(always)]
pub fn choose(ctx: &SockAddrContext, frontend: &Frontend, earlier: Option<Endpoint>) -> Verdict {
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
        if let Some(endpoint) = kept(ctx, &service, earlier).or_else(|| random(&service)) {
            if service.affinity != 0 {
                stay(ctx, &service, &endpoint);
            }
            count(service.id, true);
            return Verdict::Send(endpoint);
        }
    }
    Verdict::Refuse
}

#[inline(always)]
fn kept(ctx: &SockAddrContext, service: &Service, earlier: Option<Endpoint>) -> Option<Endpoint> {
    let endpoint = match earlier {
        Some(endpoint) => endpoint,
        None if service.affinity != 0 => affine(ctx, service)?,
        None => return None,
    };
    let member = Member { service: service.id, endpoint };
    // SAFETY: only whether the element exists is used.
    unsafe { MEMBERS.get(&member) }.map(|_| endpoint)
}

#[inline(always)]
fn affine(ctx: &SockAddrContext, service: &Service) -> Option<Endpoint> {
    // SAFETY: copied at once; a torn copy names no member of the service, or one of its backends.
    let affinity = *unsafe { AFFINITY.get(&client(ctx, service)) }?;
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let fresh = now.wrapping_sub(affinity.used) < u64::from(service.affinity) * NANOSECONDS;
    fresh.then_some(affinity.endpoint)
}

#[inline(always)]
fn stay(ctx: &SockAddrContext, service: &Service, endpoint: &Endpoint) {
    // SAFETY: a helper without preconditions.
    let used = unsafe { bpf_ktime_get_ns() };
    let affinity = Affinity { used, endpoint: *endpoint, zero: 0 };
    // Without memory for it the client merely has no affinity.
    let _ = AFFINITY.insert(&client(ctx, service), &affinity, 0);
}

#[inline(always)]
fn client(ctx: &SockAddrContext, service: &Service) -> Client {
    // SAFETY: the context is the one the kernel passed.
    let namespace = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    Client { namespace, service: service.id, zero: 0 }
}

#[inline(always)]
fn random(service: &Service) -> Option<Endpoint> {
    // SAFETY: a helper without preconditions.
    let index = unsafe { bpf_get_prandom_u32() } % service.count;
    let slot = Slot { service: service.id, generation: service.generation, index };
    // SAFETY: the element is copied at once, and its own key tells whether it was reused meanwhile.
    let backend = *unsafe { SLOTS.get(&slot) }?;
    (backend.slot == slot).then_some(backend.endpoint)
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
