//! The numbers of DNS messages: record types, response codes, header bits (RFC 1035, 2782, 3596, 6891; IANA's registry).

/// Record types, and what questions may ask for besides.
pub(super) mod kind {
    pub(crate) const A: u16 = 1;
    pub(crate) const NS: u16 = 2;
    pub(crate) const CNAME: u16 = 5;
    pub(crate) const SOA: u16 = 6;
    pub(crate) const PTR: u16 = 12;
    pub(crate) const HINFO: u16 = 13;
    pub(crate) const MX: u16 = 15;
    pub(crate) const TXT: u16 = 16;
    pub(crate) const AAAA: u16 = 28;
    pub(crate) const SRV: u16 = 33;
    pub(crate) const DNAME: u16 = 39;
    pub(crate) const OPT: u16 = 41;
    pub(crate) const HTTPS: u16 = 65;
    pub(crate) const TKEY: u16 = 249;
    pub(crate) const TSIG: u16 = 250;
    pub(crate) const IXFR: u16 = 251;
    pub(crate) const AXFR: u16 = 252;
    pub(crate) const MAILB: u16 = 253;
    pub(crate) const MAILA: u16 = 254;
    pub(crate) const ANY: u16 = 255;
}

/// Response codes; those from 16 on need EDNS.
pub(super) mod code {
    pub(crate) const NOERROR: u16 = 0;
    pub(crate) const FORMERR: u16 = 1;
    pub(crate) const SERVFAIL: u16 = 2;
    pub(crate) const NXDOMAIN: u16 = 3;
    pub(crate) const NOTIMP: u16 = 4;
    pub(crate) const REFUSED: u16 = 5;
    pub(crate) const BADVERS: u16 = 16;
}

/// Bits of the header's second word.
pub(super) mod flag {
    pub(crate) const RESPONSE: u16 = 0x8000;
    pub(crate) const AUTHORITATIVE: u16 = 0x0400;
    pub(crate) const TRUNCATED: u16 = 0x0200;
    pub(crate) const RECURSION_DESIRED: u16 = 0x0100;
    pub(crate) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(crate) const AUTHENTIC: u16 = 0x0020;
    pub(crate) const CHECKING_DISABLED: u16 = 0x0010;
    pub(crate) const OPCODE: u16 = 0x7800;
    pub(crate) const CODE: u16 = 0x000f;
}

pub(super) const CLASS_IN: u16 = 1;
/// Bytes of the header.
pub(super) const HEADER: usize = 12;
/// Bytes of an OPT record without options.
pub(super) const OPT_LENGTH: usize = 11;
/// The largest datagram without EDNS (RFC 1035, 4.2.1), and the least that EDNS can mean (RFC 6891, 6.2.5).
pub(super) const PLAIN_SIZE: u16 = 512;
/// The largest datagram that needs no fragments on usual links (DNS flag day 2020): what is offered to others.
pub(super) const SAFE_SIZE: u16 = 1232;
/// In the flags of the OPT record: DNSSEC records are wanted.
pub(super) const DNSSEC_OK: u16 = 0x8000;

/// The big-endian number at `at`.
pub(super) fn number(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?))
}
