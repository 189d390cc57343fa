//! What becomes of a client: it stays with its backend, gets one, is refused, or was not a service's client at all.

use core::hint::black_box;
use core::mem::MaybeUninit;
use core::ptr::read_volatile;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns,
};

use aya_ebpf::programs::SockAddrContext;
use hull_ebpf_types::{Affinity, Client, Counters, Endpoint, FIRST, Frontend, Member, Service, flag};

use crate::choice;
use crate::find::{Found, find};
use crate::growing::Growing as _;
use crate::maps::{AFFINITY, COUNTERS, MEMBERS, SERVICES};

pub enum Verdict {
    NotAService,
    Refuse,
    Send,
}

/// A reader may fall between the agent's writes and hold a set that is gone; the next look finds the new one.
const ATTEMPTS: u32 = 3;
const SECOND: u64 = 1_000_000_000;
const UDP: u8 = 17;

/// The short way, for what most clients ask for: any of a few backends of a cluster address. The number of the service,
/// or zero: then the long way finds what there is.
#[inline(always)]
pub fn at_once(frontend: &Frontend, endpoint: &mut MaybeUninit<Endpoint>) -> u32 {
    let Some(offer) = SERVICES.get_ptr(frontend) else {
        return 0;
    };
    // SAFETY: a valid element. What it belongs to is read last: it is written first when the element is reused.
    unsafe {
        let service = &raw const (*offer).service;
        let backends = read_volatile(&raw const (*service).count);
        let unusual = read_volatile(&raw const (*service).algorithm)
            | read_volatile(&raw const (*service).affinity)
            | read_volatile(&raw const (*service).flags) & (flag::BY_PACKET | flag::NODE_PORT);
        if unusual != 0 || backends == 0 || backends > FIRST as u32 {
            return 0;
        }
        let index = black_box((u64::from(bpf_get_prandom_u32()) * u64::from(backends)) >> 32) as usize;
        if index >= FIRST {
            return 0;
        }
        let chosen = (&raw const (*offer).first).cast::<Endpoint>().add(index);
        endpoint.write(Endpoint {
            address: [
                read_volatile(&raw const (*chosen).address[0]),
                read_volatile(&raw const (*chosen).address[1]),
                read_volatile(&raw const (*chosen).address[2]),
                read_volatile(&raw const (*chosen).address[3]),
            ],
            port: read_volatile(&raw const (*chosen).port),
            zero: 0,
        });
        let id = read_volatile(&raw const (*service).id);
        let belongs = &raw const (*service).frontend;
        let same = read_volatile(&raw const (*belongs).address[3]) == frontend.address[3]
            && read_volatile(&raw const (*belongs).port) == frontend.port
            && read_volatile(&raw const (*belongs).protocol) == frontend.protocol
            && read_volatile(&raw const (*belongs).address[2]) == frontend.address[2]
            && read_volatile(&raw const (*belongs).address[1]) == frontend.address[1]
            && read_volatile(&raw const (*belongs).address[0]) == frontend.address[0];
        if same {
            count(id, true);
            id
        } else {
            0
        }
    }
}

/// `endpoint` comes in as where an unconnected socket was sent before, or as zero, and goes out as the choice.
#[inline(always)]
pub fn choose(ctx: &SockAddrContext, frontend: &Frontend, service: &mut Service, endpoint: &mut Endpoint) -> Verdict {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        match find(ctx.as_ptr(), frontend, service) {
            Found::Nothing => return Verdict::NotAService,
            Found::Stale => continue,
            Found::Service if service.flags & flag::BY_PACKET != 0 => return Verdict::NotAService,
            Found::Service => {}
        }
        if service.count == 0 {
            count(service.id, false);
            return Verdict::Refuse;
        }
        let found = kept(ctx, service, endpoint)
            || if attempt == 1 {
                choice::pick(service, client_hash(ctx, frontend), endpoint)
            } else {
                choice::any(service, endpoint)
            };
        if found {
            if service.affinity != 0 {
                stay(ctx, service, endpoint);
            }
            count(service.id, true);
            return Verdict::Send;
        }
    }
    Verdict::Refuse
}

/// A client is a pod, whatever its address; for datagrams it is the socket.
#[inline(always)]
fn client_hash(ctx: &SockAddrContext, frontend: &Frontend) -> u32 {
    // SAFETY: the context is the one the kernel passed.
    let client = unsafe {
        match frontend.protocol {
            UDP => bpf_get_socket_cookie(ctx.as_ptr()),
            _ => bpf_get_netns_cookie(ctx.as_ptr()),
        }
    };
    choice::hash(client)
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
    MEMBERS.has(&member)
}

#[inline(always)]
fn affine(ctx: &SockAddrContext, service: &Service, endpoint: &mut Endpoint) -> bool {
    let affinity = match AFFINITY.get_ptr(&client(ctx, service)) {
        None => return false,
        // SAFETY: copied at once; a torn copy names no member of the service, or one of its backends.
        Some(affinity) => unsafe { *affinity },
    };
    // SAFETY: a helper without preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    *endpoint = affinity.endpoint;
    now.wrapping_sub(affinity.used) < u64::from(service.affinity) * SECOND
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
fn count(service: u32, translated: bool) {
    let one = Counters {
        translated: translated as u64,
        refused: !translated as u64,
    };
    match COUNTERS.get_ptr_mut(&service) {
        // SAFETY: a per-CPU element; a program is not interrupted by another of its kind on the same CPU long enough
        // for more than one lost count.
        Some(counters) => unsafe {
            (*counters).translated += one.translated;
            (*counters).refused += one.refused;
        },
        // The service's first client; a second one at the same moment is not counted.
        None => {
            let _ = COUNTERS.insert(&service, &one, u64::from(BPF_NOEXIST));
        }
    }
}
