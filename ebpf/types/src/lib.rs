//! The structs that the eBPF programs and the agent share through maps.
//!
//! Everything is plain: `repr(C)`, no padding the compiler chooses, addresses as four words in network byte order
//! (IPv4 as `::ffff:a.b.c.d`), ports in network byte order. A change of any layout here raises [`LAYOUT`], so that
//! an upgraded agent makes new maps beside the ones in use instead of misreading them.
#![no_std]

/// Version of all map layouts; part of every pinned map's name.
pub const LAYOUT: u32 = 1;

/// How many services an unconnected UDP socket may talk to at once and still see replies from the right address.
pub const UNCONNECTED_PEERS: usize = 4;

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
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address, four words in network byte order.
    pub address: [u32; 4],
    /// Port, network byte order.
    pub port: u16,
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub protocol: u8,
    /// Always zero.
    pub zero: u8,
}

/// Value of `services`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The key again: a reader that finds another one here has read an element in the moment of its reuse.
    pub frontend: Frontend,
    /// Names the service in the other maps; never reused while the maps live.
    pub id: u32,
    /// Number of backends: slots 0 to `count - 1` of `generation` exist. Zero refuses clients.
    pub count: u32,
    /// Which set of slots is in force.
    pub generation: u32,
    /// Session affinity by client, in seconds; zero is none.
    pub affinity: u32,
    /// Always zero.
    pub zero: u32,
}

/// Key of `slots`: one place in a service's set of backends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// [`Service::id`].
    pub service: u32,
    /// [`Service::generation`].
    pub generation: u32,
    /// 0 to [`Service::count`] - 1.
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
}

/// Key of `members`: a backend that an affinity entry of the service may still point to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// [`Service::id`].
    pub service: u32,
    /// The backend.
    pub endpoint: Endpoint,
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

/// Value of `origins`, in socket storage: what a connected socket asked for, and where it was sent. Also the value of
/// `flows`, which keeps it for connected UDP sockets by socket cookie, where the agent can read it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// What the socket asked for.
    pub frontend: Frontend,
    /// Where it was sent; the entry holds only while this is the socket's peer.
    pub endpoint: Endpoint,
}

/// Value of `peers`, in socket storage: the last few translations of an unconnected UDP socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    /// The newest translations, overwritten in a circle.
    pub entries: [Origin; UNCONNECTED_PEERS],
    /// Where the next one goes.
    pub next: u32,
}

/// Value of `counters`, per CPU, by [`Service::id`].
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
        Endpoint, Frontend, Service, Slot, Backend, Member, Client, Affinity, Origin, Peers, Counters
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<Endpoint>(), 20);
        assert_eq!(size_of::<Frontend>(), 20);
        assert_eq!(size_of::<Service>(), 40);
        assert_eq!(size_of::<Slot>(), 12);
        assert_eq!(size_of::<Backend>(), 32);
        assert_eq!(size_of::<Member>(), 24);
        assert_eq!(size_of::<Client>(), 16);
        assert_eq!(size_of::<Affinity>(), 32);
        assert_eq!(size_of::<Origin>(), 40);
        assert_eq!(size_of::<Peers>(), 164);
        assert_eq!(size_of::<Counters>(), 16);
    }
}
