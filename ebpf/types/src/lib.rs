//! The structs that the eBPF programs and the agent share through maps.
//!
//! Everything is plain: `repr(C)`, no padding the compiler chooses, addresses as four words in network byte order
//! (IPv4 as `::ffff:a.b.c.d`), ports in network byte order. A change of any layout here raises [`LAYOUT`], so that
//! an upgraded agent makes new maps beside the ones in use instead of misreading them.
#![no_std]

pub mod edge;
pub mod observe;

/// Version of all map layouts; part of every pinned map's name.
pub const LAYOUT: u32 = 4;

/// Places of the outer map of `counters`: as often as its size can double, and once more.
pub const GENERATIONS: u32 = 32;

/// How many services an unconnected UDP socket may talk to at once and still see replies from the right address.
pub const UNCONNECTED_PEERS: usize = 4;

/// How many ranges of cluster addresses a node can have: one of each family.
pub const RANGES: usize = 2;

/// Value of `addresses` for a loopback address: the node's own only for processes in its own network namespace.
pub const HOST_ONLY: u32 = 1;

/// Places of a look-up table in one element of `tables`.
pub const CHUNK: usize = 128;

/// An address and port as the programs see them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address, four words in network byte order.
    pub address: [u32; 4],
    /// Port, network byte order.
    pub port: u16,
    /// Always zero.
    pub zero: u16,
}

/// Key of `services`: what a client connects to.
///
/// Two forms stand for many: the unspecified address of a family is every address of it in `addresses` (a node port),
/// and port and protocol zero are whatever of the address is not named (a cluster address's ports that nobody serves).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address, four words in network byte order.
    pub address: [u32; 4],
    /// Port, network byte order.
    pub port: u16,
    /// IPPROTO_TCP, IPPROTO_UDP or IPPROTO_SCTP.
    pub protocol: u8,
    /// [`scope`]: whose clients this is for.
    pub scope: u8,
}

/// Values of [`Frontend::scope`].
pub mod scope {
    /// Processes of this node, in pods and outside.
    pub const INSIDE: u8 = 0;
    /// What reaches this node from elsewhere. What is not offered there has no such element.
    pub const OUTSIDE: u8 = 1;
}

/// A service, as `services` has it at the beginning of each value.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The key again: a reader that finds another one here has read an element in the moment of its reuse.
    pub frontend: Frontend,
    /// Names the set of backends in the other maps; several frontends may share one. Never reused while the maps live.
    pub id: u32,
    /// Number of slots: 0 to `count - 1` of `generation` exist. Zero refuses clients.
    pub count: u32,
    /// Which slots are in force.
    pub generation: u32,
    /// Session affinity by client, in seconds; zero is none.
    pub affinity: u32,
    /// [`flag`] bits.
    pub flags: u32,
    /// Set of source ranges that clients must be in (key of `edge_sources`); zero is no restriction.
    pub sources: u32,
    /// [`algorithm`]: how a backend is chosen.
    pub algorithm: u32,
    /// Length of the look-up table for [`algorithm::MAGLEV`], a prime number; else zero.
    pub table: u32,
}

/// How many backends an element of `services` has in itself.
pub const FIRST: usize = 4;

/// Value of `services`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// What is offered.
    pub service: Service,
    /// The backends of its slots 0 to [`FIRST`] - 1, so that small sets need no second look; absent ones, and all of
    /// larger sets, are zero.
    pub first: [Endpoint; FIRST],
}

/// Bits of [`Service::flags`].
pub mod flag {
    /// The policy is Local: all backends are on this node, and see the client's own address.
    pub const LOCAL: u32 = 1;
    /// There are no backends on this node, as the policy Local demands, but elsewhere: packets from outside are
    /// dropped instead of refused.
    pub const ELSEWHERE: u32 = 1 << 1;
    /// A node port.
    pub const NODE_PORT: u32 = 1 << 2;
    /// An external address or that of a load balancer.
    pub const EXTERNAL: u32 = 1 << 3;
    /// Backends answer clients directly, without passing this node again.
    pub const DIRECT_RETURN: u32 = 1 << 4;
    /// Not for socket programs: its source ranges can be checked on packets only.
    pub const BY_PACKET: u32 = 1 << 5;
    /// Nothing is served here, but the address is the cluster's: clients are refused.
    pub const UNSERVED: u32 = 1 << 6;
}

/// Values of [`Service::algorithm`].
pub mod algorithm {
    /// Any, by weight: slots are repeated.
    pub const RANDOM: u32 = 0;
    /// By a hash of the client over a table that changes little when backends do.
    pub const MAGLEV: u32 = 1;
    /// The one with the fewest open connections for its weight.
    pub const LEAST_CONNECTIONS: u32 = 2;
    /// Of two, by weight, the one that connects sooner and has less to do.
    pub const POWER_OF_TWO: u32 = 3;
}

/// Key of `slots`: one place in a service's set of backends. Key of `tables`: one chunk of its look-up table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// [`Service::id`].
    pub service: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// 0 to [`Service::count`] - 1; in `tables`, place / [`CHUNK`].
    pub index: u32,
}

/// Value of `slots`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// The key again, as in [`Service::frontend`].
    pub slot: Slot,
    /// Where clients are sent.
    pub endpoint: Endpoint,
    /// Share of the clients, at least 1.
    pub weight: u32,
}

/// Value of `tables`: the slots that a run of places of the look-up table leads to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The key again, as in [`Service::frontend`].
    pub key: Slot,
    /// Index of a slot; beyond the table's length zero.
    pub slots: [u16; CHUNK],
}

/// Key of `members`: a backend that a client of the service may still be led to without a new choice.
/// Key of `load`: a backend as one service knows it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// [`Service::id`].
    pub service: u32,
    /// The backend.
    pub endpoint: Endpoint,
}

/// Value of `load`: how busy a backend is with this node's connections. Absent: nothing is known, and it is idle.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Connections open now, those being made included.
    pub open: u32,
    /// Smoothed time that a connect takes, in microseconds.
    pub latency: u32,
    /// When `latency` was last measured, nanoseconds of CLOCK_MONOTONIC.
    pub updated: u64,
}

/// Key of `affinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Cookie of the client's network namespace: the pod, whatever its address.
    pub namespace: u64,
    /// [`Service::id`].
    pub service: u32,
    /// Always zero.
    pub zero: u32,
}

/// Value of `affinity`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Affinity {
    /// Time of last use, nanoseconds of CLOCK_MONOTONIC.
    pub used: u64,
    /// The backend the client stays with.
    pub endpoint: Endpoint,
    /// Always zero.
    pub zero: u32,
}

/// What a socket asked for, and where it was sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Translation {
    /// What the socket asked for.
    pub frontend: Frontend,
    /// Where it was sent; it holds only while this is the socket's peer.
    pub endpoint: Endpoint,
}

/// Element of `origins`, and value of `overflow`, in socket storage: where a connected socket came from, and what it
/// has done since.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Cookie of the socket; zero if this is nobody's. Only then the rest means anything.
    pub cookie: u64,
    /// What the socket asked for, and where it was sent.
    pub to: Translation,
    /// [`Service::id`]; zero when the socket was connected elsewhere since.
    pub service: u32,
    /// [`state`] bits.
    pub state: u32,
    /// Sum of [`claim`]s on the place: zero if it is free, its owner's if it is not, something else for a moment while
    /// several want it.
    pub claim: u32,
    /// Always zero.
    pub zero: u32,
    /// When connect(2) began, nanoseconds of CLOCK_MONOTONIC.
    pub started: u64,
    /// For the program that observes the socket, which sets it to zero when the socket connects.
    pub flow: observe::Flow,
}

/// Sockets that have a place in `origins`: its length.
pub const ORIGINS: u32 = 16_384;

/// What stands for a socket in [`Origin::claim`]: never zero.
#[inline(always)]
pub const fn claim(cookie: u64) -> u32 {
    cookie as u32 | 1
}

/// Bits of [`Origin::state`]. The entry of an observed connection goes when it has ended and its socket is closed,
/// whichever comes last.
pub mod state {
    /// The connection is observed from its first segment to its end.
    pub const OBSERVED: u32 = 1;
    /// The socket is closed, though the connection may live on. Added once.
    pub const CLOSED: u32 = 1 << 1;
    /// The observed connection has ended. Added once.
    pub const ENDED: u32 = 1 << 2;
    /// The service's backends are chosen by how busy they are: the connection counts in `load`.
    pub const WEIGHED: u32 = 1 << 3;
}

/// Value of `peers`, in socket storage: the last few translations of an unconnected UDP socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// The newest translations, overwritten in a circle.
    pub entries: [Translation; UNCONNECTED_PEERS],
    /// Where the next one goes.
    pub next: u32,
}

/// Value of `counters`, per CPU, by [`Service::id`]; made when the first client comes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Clients sent to a backend: connects and unconnected datagrams.
    pub translated: u64,
    /// Clients refused because there was no backend.
    pub refused: u64,
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

    pod!(
        Endpoint,
        Frontend,
        Service,
        Offer,
        Slot,
        Backend,
        Chunk,
        Member,
        Load,
        Client,
        Affinity,
        Translation,
        Origin,
        Peers,
        Counters
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<Endpoint>(), 20);
        assert_eq!(size_of::<Frontend>(), 20);
        assert_eq!(size_of::<Service>(), 52);
        assert_eq!(size_of::<Offer>(), 52 + FIRST * 20);
        assert_eq!(size_of::<Slot>(), 12);
        assert_eq!(size_of::<Backend>(), 36);
        assert_eq!(size_of::<Chunk>(), 268);
        assert_eq!(size_of::<Member>(), 24);
        assert_eq!(size_of::<Load>(), 16);
        assert_eq!(size_of::<Client>(), 16);
        assert_eq!(size_of::<Affinity>(), 32);
        assert_eq!(size_of::<Translation>(), 40);
        assert_eq!(size_of::<Origin>(), 104);
        assert_eq!(size_of::<Peers>(), 164);
        assert_eq!(size_of::<Counters>(), 16);
    }
}
