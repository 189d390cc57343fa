//! The last connections, line by line, for `hull trace`.
//!
//! Each CPU writes a circle of its own, so that nobody waits and nothing is lost when nobody reads. A backend gets so
//! many lines a second and no more, lest a busy one wipes out the others' past; what fails is always written.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_get_socket_cookie, bpf_ktime_get_ns};
use hull_ebpf_types::Origin;
use hull_ebpf_types::observe::{DIARY_RATE, Event, Observed};

use crate::maps::{DIARY, HEALTH, PAGES, put};
use crate::socket::{self, field};

/// Lines of a CPU's circle; the agent sets it.
#[unsafe(no_mangle)]
static LINES: u32 = 1;

const SECOND: u64 = 1_000_000_000;

/// Writes a line.
#[inline(never)]
pub fn write(ops: *mut bpf_sock_ops, origin: &Origin, event: Event, failure: u32) {
    // SAFETY: a helper without preconditions.
    let time = unsafe { bpf_ktime_get_ns() };
    let Some(page) = PAGES.get_ptr_mut(0) else { return };
    // SAFETY: the agent sets this word before the kernel sees it and freezes it; volatile keeps it a word in memory.
    let lines = unsafe { read_volatile(&raw const LINES) };
    // SAFETY: an element of this CPU.
    let number = unsafe { *page };
    let Some(line) = number.checked_rem(u64::from(lines)) else {
        return;
    };
    // SAFETY: as above, and a helper without preconditions.
    let index = unsafe {
        *page = number + 1;
        bpf_get_smp_processor_id() as u32 * lines + line as u32
    };
    let Some(entry) = DIARY.get_ptr_mut(index) else { return };
    let rtt = field!(ops, srtt_us) >> 3;
    let client = socket::client(ops);
    // SAFETY: a valid element, which only this CPU writes. The time goes first and comes last: a reader that finds none
    // knows that the rest is not complete.
    unsafe {
        write_volatile(&raw mut (*entry).time, 0);
        (*entry).started = origin.started;
        (*entry).socket = bpf_get_socket_cookie(ops.cast());
        (*entry).sent = origin.flow.sent.saturating_sub(1);
        (*entry).received = origin.flow.received;
        put(&raw mut (*entry).frontend, &origin.to.frontend);
        (*entry).member.service = origin.service;
        put(&raw mut (*entry).member.endpoint, &origin.to.endpoint);
        put(&raw mut (*entry).client, &client);
        (*entry).retransmits = origin.flow.retransmits;
        (*entry).rtt = rtt;
        (*entry).event = event as u32;
        (*entry).failure = failure;
        write_volatile(&raw mut (*entry).time, time);
    }
}

/// Whether the backend has not had its share of this second; then it has one less.
#[inline(always)]
pub fn has_room(observed: *mut Observed, now: u64) -> bool {
    let second = (now / SECOND) as u32;
    // SAFETY: a valid element, by the caller; a lost count is one line more.
    unsafe {
        if (*observed).second != second {
            (*observed).second = second;
            (*observed).written = 0;
        }
        if (*observed).written >= DIARY_RATE {
            if let Some(health) = HEALTH.get_ptr_mut(0) {
                (*health).unwritten += 1;
            }
            return false;
        }
        (*observed).written += 1;
    }
    true
}
