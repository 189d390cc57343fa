//! The places in `origins`: how a socket finds its own, takes it, and gives it back. Shared with the program that observes.
//!
//! A place belongs to the socket whose cookie it bears. The target has no compare-and-swap before cpu v3; but of several
//! who add their numbers to a free place at once, none finds its own alone, and all give way.

use core::arch::asm;
use core::ptr::{read_volatile, write_volatile};

use hull_ebpf_types::{ORIGINS as PLACES, Origin, claim, state};

use crate::maps::ORIGINS;

/// The place that a socket has, or would have.
#[inline(always)]
pub fn place(cookie: u64) -> Option<*mut Origin> {
    ORIGINS.get_ptr_mut(cookie as u32 % PLACES)
}

/// The place that a socket has.
#[inline(always)]
pub fn of(cookie: u64) -> Option<*mut Origin> {
    // SAFETY: a valid element.
    place(cookie).filter(|place| unsafe { read_volatile(&raw const (**place).cookie) } == cookie)
}

/// Takes a place if it is free.
///
/// # Safety
/// It must be a valid element.
#[inline(always)]
#[allow(dead_code, reason = "not every program takes places")]
pub unsafe fn take(place: *mut Origin, cookie: u64) -> bool {
    // SAFETY: by the caller.
    unsafe {
        let word = &raw mut (*place).claim;
        if read_volatile(word) != 0 {
            return false;
        }
        add(word, claim(cookie));
        if read_volatile(word) == claim(cookie) {
            return true;
        }
        add(word, claim(cookie).wrapping_neg());
        false
    }
}

/// Adds `reason` to the state of an observed socket's origin, and gives its place back if that was the last one. Each
/// of the two reasons comes once; whoever adds last sees what the other has added.
///
/// # Safety
/// It must be the origin of the socket with this cookie, or one of `overflow`, which has none.
#[inline(always)]
pub unsafe fn leave(origin: *mut Origin, reason: u32) {
    // SAFETY: by the caller.
    unsafe {
        let word = &raw mut (*origin).state;
        if read_volatile(word) & state::OBSERVED != 0 {
            add(word, reason);
        } else if reason == state::ENDED {
            return;
        }
        let found = read_volatile(word);
        let both = state::CLOSED | state::ENDED;
        let cookie = read_volatile(&raw const (*origin).cookie);
        if cookie != 0 && (found & state::OBSERVED == 0 || found & both == both) {
            write_volatile(&raw mut (*origin).cookie, 0);
            add(&raw mut (*origin).claim, claim(cookie).wrapping_neg());
        }
    }
}

/// # Safety
/// The word must be in a map's element.
#[inline(always)]
unsafe fn add(word: *mut u32, more: u32) {
    // SAFETY: an aligned word, by the caller.
    unsafe { asm!("lock *(u32 *)({} + 0) += {}", in(reg) word, in(reg) u64::from(more)) };
}
