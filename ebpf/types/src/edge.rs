//! The structs that the packet programs (`edge.bpf.o`) and the agent share through maps.
//!
//! A packet's way is cut in two: where it enters, its destination may be replaced; where it leaves, its source. Each
//! replacement is one [`Track`], found by the packet's [`Tuple`] as it is at that moment, and each has an opposite for
//! the packets that come back: `(s → d) ↦ (s → v)` on the way in has `(v → s) ↦ (d → s)` on the way out, and vice versa.
//! An ICMP error is treated as a packet of the direction in which it travels: its tuple is the reverse of the packet's
//! that it quotes.

/// Version of the layouts of this module; part of the name of every pinned map. Flows are carried over to another layout while
/// [`Tuple`], [`Track`] and [`Visitor`] keep their sizes: what means something else must have another size.
pub const LAYOUT: u32 = 1;

/// Where packets enter: their destination is looked up.
pub const ENTERS: u8 = 0;
/// Where packets leave: their source is looked up.
pub const LEAVES: u8 = 1;

/// Key of `edge_streams` (TCP) and `edge_datagrams` (everything else).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Address, four words in network byte order.
    pub source: [u32; 4],
    /// Address, four words in network byte order.
    pub destination: [u32; 4],
    /// Port in network byte order; the identifier of an ICMP echo request; else zero.
    pub source_port: u16,
    /// Port in network byte order; the identifier of an ICMP echo reply; else zero.
    pub destination_port: u16,
    /// IPPROTO_…
    pub protocol: u8,
    /// [`ENTERS`] or [`LEAVES`].
    pub hook: u8,
    /// Always zero.
    pub zero: u16,
}

impl Tuple {
    /// The packets that come back, at the other hook.
    #[inline(always)]
    pub fn reverse(&self) -> Tuple {
        Tuple {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            hook: self.hook ^ LEAVES,
            zero: 0,
        }
    }

    /// The key of the opposite of the track that replaces this tuple's destination (or source) by the given one.
    #[inline(always)]
    pub fn opposite(&self, address: &[u32; 4], port: u16) -> Tuple {
        let mut other = self.reverse();
        if self.hook == ENTERS {
            other.source = *address;
            other.source_port = port;
        } else {
            other.destination = *address;
            other.destination_port = port;
        }
        other
    }
}

/// Value of `edge_streams` and `edge_datagrams`: what to put in place of the destination or source.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Track {
    /// Time of the last packet, give or take [`Track::GRAIN`]; nanoseconds of CLOCK_MONOTONIC.
    pub seen: u64,
    /// The new address.
    pub address: [u32; 4],
    /// The new port (or identifier), network byte order.
    pub port: u16,
    /// [`track`] bits.
    pub flags: u16,
    /// [`crate::Service::id`]; zero for what belongs to no service.
    pub service: u32,
}

impl Track {
    /// How exact `seen` is, in nanoseconds: a write for every packet would be one too many.
    pub const GRAIN: u64 = 1_000_000_000;
}

/// Bits of [`Track::flags`].
pub mod track {
    /// TCP: this direction sent more than a SYN.
    pub const OPEN: u16 = 1;
    /// TCP: this direction sent a FIN.
    pub const FINISHED: u16 = 1 << 1;
    /// TCP: the opposite direction sent a FIN.
    pub const OPPOSITE_FINISHED: u16 = 1 << 2;
    /// Made for a service: this leads to a backend that was chosen, or back from it.
    pub const CHOSEN: u16 = 1 << 3;
    /// On the way back from a backend: the way to it needs an address of this node as its source, for the backend is
    /// elsewhere, or the client itself.
    pub const MASQUERADE: u16 = 1 << 4;
    /// The packet is passed on unchanged, to the node that has the backend (direct server return).
    pub const DIRECT_RETURN: u16 = 1 << 5;
    /// Nothing is replaced: the flow came from outside straight to a pod, and its replies keep the pod's address.
    pub const IDENTITY: u16 = 1 << 6;
    /// The source is replaced where packets enter, not the destination: the flow has the same tuple as a service's
    /// flow will have after its translation.
    pub const SOURCE: u16 = 1 << 7;
    /// The opposite of [`SOURCE`]: no source is replaced afterwards, whatever another track says.
    pub const FINAL: u16 = 1 << 8;
}

/// Key of `edge_local` is an address; this is the value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// The host's side of the pod's interface; zero for an address of the node itself.
    pub interface: u32,
    /// The pod's link-layer address.
    pub pod: [u8; 6],
    /// The host side's link-layer address.
    pub host: [u8; 6],
}

/// Key of `edge_uplinks` is an interface's index; this is the value: the addresses that flows leave with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uplink {
    /// IPv4 as `::ffff:a.b.c.d`; all zero is none.
    pub v4: [u32; 4],
    /// All zero is none.
    pub v6: [u32; 4],
    /// [`OVERLAY`] or zero.
    pub flags: u32,
}

/// Bit of [`Uplink::flags`]: a tunnel between nodes.
pub const OVERLAY: u32 = 1;

/// The one value of `edge_node`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The node's address that its pods see as their gateway: what a pod's flow to itself comes from.
    pub gateway4: [u32; 4],
    /// The same for IPv6.
    pub gateway6: [u32; 4],
    /// First port (host byte order) that flows may be given, and how many there are.
    pub first_port: u32,
    /// At least one.
    pub ports: u32,
    /// Not zero: every other node is on a link of this one, so that it can be handed packets as they are.
    pub neighbours: u32,
}

/// Data of a key of `edge_ranges` (destinations that see the pods' own addresses), after the prefix length.
pub type RangeAddress = [u32; 4];

/// Data of a key of `edge_sources` (who may use a service), after the prefix length, which counts the id's 32 bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceRange {
    /// [`crate::Service::sources`].
    pub set: u32,
    /// Address, four words in network byte order.
    pub address: [u32; 4],
}

/// Key of `edge_fragments`; the value is the first fragment's [`Ports`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Address, four words in network byte order.
    pub source: [u32; 4],
    /// Address, four words in network byte order.
    pub destination: [u32; 4],
    /// The datagram's identification.
    pub identification: u32,
    /// IPPROTO_…
    pub protocol: u32,
}

/// The ports of a datagram of which fragments may follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// As in [`Tuple`].
    pub source: u16,
    /// As in [`Tuple`].
    pub destination: u16,
}

/// Key of `edge_affinity`: a client by its address, and the service it stays with one backend of.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Visitor {
    /// Address, four words in network byte order.
    pub address: [u32; 4],
    /// [`crate::Service::id`].
    pub service: u32,
}

/// What the programs count; index into `edge_reasons`.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A flow was led to a backend.
    Translated,
    /// A flow was given an address of the node.
    Masqueraded,
    /// Dropped: a pod sent from an address that is not its own.
    SpoofedSource,
    /// Dropped: the client is in none of the service's source ranges.
    SourceRange,
    /// Dropped: the service keeps to local backends, and there is none.
    NoLocalBackend,
    /// Refused: the service has no backend.
    NoBackend,
    /// Refused: the packet belongs to a connection that is not known (any more).
    UnknownConnection,
    /// Dropped: the first fragment was not seen.
    UnknownFragment,
    /// Dropped: no port was free for a flow that needs an address of the node.
    PortsExhausted,
    /// Dropped: the interface has no address of the family to give to a flow.
    NoAddress,
    /// Dropped: a map could not be written.
    MapFull,
}

impl Reason {
    /// Names in the order of the indexes, as in metrics.
    pub const NAMES: [&'static str; 11] = [
        "translated",
        "masqueraded",
        "spoofed_source",
        "source_range",
        "no_local_backend",
        "no_backend",
        "unknown_connection",
        "unknown_fragment",
        "ports_exhausted",
        "no_address",
        "map_full",
    ];
}

/// CRC32c of a packet of which a few bytes changed.
///
/// A CRC is linear: its change is the product of the bytes' change and a power of x that counts the bits up to the
/// packet's end. Multiplying by x^(8 * n * 4^k) is a look-up for each four bits, so that a program need not loop over bits;
/// n is two bits of the packet's length and may be zero, so that it need not test them either.
pub mod crc32c {
    /// Reflected, as in SCTP and iSCSI.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    /// Packets are shorter than 2^16 bytes.
    const PAIRS: usize = 8;
    const NIBBLES: usize = 8;
    /// One more value than four bits have: with powers of two the compiler would join the indexes with OR, and verifiers
    /// before Linux 6.10 know no bounds of what that gives.
    const VALUES: usize = 17;
    /// Bit 31 is x^0.
    const ONE: u32 = 0x8000_0000;
    const X8: u32 = 0x0080_0000;

    static SHIFTED: [[[[u32; VALUES]; NIBBLES]; 4]; PAIRS] = shifted();

    const fn multiply(mut a: u32, mut b: u32) -> u32 {
        let mut product = 0;
        while a != 0 {
            if a & ONE != 0 {
                product ^= b;
            }
            a <<= 1;
            b = (b >> 1) ^ (POLYNOMIAL * (b & 1));
        }
        product
    }

    const fn shifted() -> [[[[u32; VALUES]; NIBBLES]; 4]; PAIRS] {
        let mut tables = [[[[0; VALUES]; NIBBLES]; 4]; PAIRS];
        let mut power = X8;
        let mut pair = 0;
        while pair < PAIRS {
            let mut factor = ONE;
            let mut n = 0;
            while n < 4 {
                let mut nibble = 0;
                while nibble < NIBBLES {
                    let mut value = 1;
                    while value < 16 {
                        tables[pair][n][nibble][value] = multiply(factor, (value as u32) << (4 * nibble));
                        value += 1;
                    }
                    nibble += 1;
                }
                factor = multiply(factor, power);
                n += 1;
            }
            power = factor;
            pair += 1;
        }
        tables
    }

    /// What the checksum of a packet of `length` bytes changes by when its first four bytes change by `change`: their
    /// exclusive or, the first byte in the lowest bits.
    #[inline(always)]
    #[must_use]
    pub fn change(change: u32, length: u32) -> u32 {
        let mut crc = change;
        let mut pair = 0;
        while pair < PAIRS {
            let tables = &SHIFTED[pair][(length >> (2 * pair) & 3) as usize];
            let mut product = 0;
            let mut nibble = 0;
            while nibble < NIBBLES {
                product ^= tables[nibble][(crc >> (4 * nibble) & 15) as usize];
                nibble += 1;
            }
            crc = product;
            pair += 1;
        }
        crc
    }
}

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($name:ident),*) => {$(
            // SAFETY: repr(C), Copy, made of integers without implicit padding: any bytes are a value.
            unsafe impl aya::Pod for $name {}
        )*};
    }

    pod!(Tuple, Track, Local, Uplink, Node, SourceRange, Fragment, Ports, Visitor);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<Tuple>(), 40);
        assert_eq!(size_of::<Track>(), 32);
        assert_eq!(size_of::<Local>(), 16);
        assert_eq!(size_of::<Uplink>(), 36);
        assert_eq!(size_of::<Node>(), 44);
        assert_eq!(size_of::<SourceRange>(), 20);
        assert_eq!(size_of::<Fragment>(), 40);
        assert_eq!(size_of::<Ports>(), 4);
        assert_eq!(size_of::<Visitor>(), 20);
    }

    #[test]
    fn an_opposite_leads_back() {
        let tuple = Tuple {
            source: [1; 4],
            destination: [2; 4],
            source_port: 10,
            destination_port: 20,
            protocol: 6,
            hook: ENTERS,
            zero: 0,
        };
        let back = tuple.opposite(&[3; 4], 30);
        assert_eq!((back.source, back.source_port), ([3; 4], 30));
        assert_eq!((back.destination, back.destination_port), ([1; 4], 10));
        assert_eq!(back.hook, LEAVES);
        // What leaves on the way back had the service's address as its source put in: that leads to the first again.
        assert_eq!(back.opposite(&[2; 4], 20), tuple);
    }

    #[test]
    fn a_changed_port_changes_the_checksum_as_if_computed_anew() {
        fn crc(bytes: &[u8]) -> u32 {
            let mut crc = u32::MAX;
            for byte in bytes {
                crc ^= u32::from(*byte);
                for _ in 0..8 {
                    crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
                }
            }
            !crc
        }
        assert_eq!(crc(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
        let mut packet = [0_u8; 1465];
        packet
            .iter_mut()
            .zip(0_u8..=250)
            .for_each(|(byte, value)| *byte = value);
        for length in [12, 13, 64, 1465] {
            let before = crc(&packet[..length]);
            let mut changed = packet;
            changed[..4].copy_from_slice(&[0x77, 0x35, 0x1f, 0x90]);
            let word = |packet: &[u8]| u32::from_le_bytes(packet[..4].try_into().unwrap());
            let difference = word(&packet) ^ word(&changed);
            let after = before ^ crc32c::change(difference, length as u32);
            assert_eq!(after, crc(&changed[..length]), "{length}");
        }
    }

    #[test]
    fn every_reason_has_a_name() {
        assert_eq!(Reason::MapFull as usize + 1, Reason::NAMES.len());
    }
}
