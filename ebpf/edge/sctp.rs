//! The checksum of SCTP (CRC32c, RFC 9260 appendix A) after a port was changed, without reading the packet again.
//!
//! See [`hull_ebpf_types::edge::crc32c`] for the arithmetic.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_store_bytes;
use hull_ebpf_types::edge::crc32c;

use crate::packet::{NETWORK, load, load_u16};

const CHECKSUM: u32 = 8;
const V6_HEADER: u32 = 40;

#[inline(always)]
fn packet_length(skb: *mut __sk_buff, transport: u32) -> u32 {
    // SAFETY: the context is the kernel's.
    let v4 = unsafe { (*skb).protocol as u16 } == 0x0800_u16.to_be();
    let (field, before) = if v4 { (2, 0) } else { (4, V6_HEADER) };
    let length = u32::from(u16::from_be(load_u16(skb, NETWORK + field)));
    (length + before + NETWORK).wrapping_sub(transport)
}

/// `at` is the port's offset, 0 or 2.
#[inline(never)]
pub fn replace_port(skb: *mut __sk_buff, transport: u32, at: u32, old: u32, new: u32) {
    let (old, new) = (old as u16, new as u16);
    let mut checksum = 0_u32;
    load(skb, transport + CHECKSUM, (&raw mut checksum).cast(), 4);
    // Zero: the sender leaves it to the interface, which will compute it.
    if checksum != 0 {
        let change = u32::from(old ^ new) << (at * 8);
        checksum ^= crc32c::change(change, packet_length(skb, transport));
        // SAFETY: four bytes of our own; the helper checks the offset.
        unsafe { bpf_skb_store_bytes(skb, transport + CHECKSUM, (&raw const checksum).cast(), 4, 0) };
    }
    // SAFETY: two bytes of our own; the helper checks the offset.
    unsafe { bpf_skb_store_bytes(skb, transport + at, (&raw const new).cast(), 2, 0) };
}
