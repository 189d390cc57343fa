//! Words in memory, for the verifier's sake.
//!
//! Copies and zeroes of small structs are unrolled: the compiler would call a loop over bytes, which costs time for each
//! packet and the verifier a walk through every round of it.

use crate::packet::Packet;

/// Copies a struct of whole words.
///
/// # Safety
/// Both are valid and aligned; `T` is made of integers, and its size a multiple of four.
#[inline(always)]
pub unsafe fn copy<T: Copy>(from: *const T, to: *mut T) {
    let (from, to) = (from.cast::<u32>(), to.cast::<u32>());
    let mut word = 0;
    while word < size_of::<T>() / 4 {
        // SAFETY: within the structs.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
        word += 1;
    }
}

/// Fills a struct of whole words with zeroes.
///
/// # Safety
/// As of [`copy`].
#[inline(always)]
pub unsafe fn clear<T: Copy>(to: *mut T) {
    let to = to.cast::<u32>();
    let mut word = 0;
    while word < size_of::<T>() / 4 {
        // SAFETY: within the struct.
        unsafe { to.add(word).write_volatile(0) };
        word += 1;
    }
}

/// The same value, of which the verifier knows nothing any more: what follows is verified once, not once for each value.
#[inline(always)]
pub fn blur(packet: *mut Packet, value: u32) -> u32 {
    // SAFETY: callers pass the program's own packet.
    unsafe {
        let place = &raw mut (*packet).blurred;
        place.write_volatile(value);
        place.read_volatile()
    }
}

/// Reads a value again of which the verifier would know something: it was compared before.
#[inline(always)]
pub fn fresh(value: &u32) -> u32 {
    // SAFETY: a reference.
    unsafe { core::ptr::from_ref(value).read_volatile() }
}
