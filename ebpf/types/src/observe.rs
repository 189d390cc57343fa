//! What `observe.bpf.o` measures on the sockets of services, and how latencies are put into buckets.
//!
//! Histograms are log-linear, as HdrHistogram has them: every power of two is cut into [`SUB_BUCKETS`] equal parts, so
//! a bucket is never wider than an eighth of the values in it. Both sides of the maps share [`bucket`].

use crate::{Endpoint, Frontend, Member};

/// Version of this program's own maps; part of their pins' names.
pub const LAYOUT: u32 = 2;

/// Parts of each power of two; itself a power of two.
pub const SUB_BUCKETS: u32 = 8;
const SUB_BITS: u32 = SUB_BUCKETS.trailing_zeros();
/// Values are told apart below 2^24 microseconds (17 s); the last bucket takes all above.
const MAX_BITS: u32 = 24;
/// Buckets of a histogram.
pub const BUCKETS: usize = (SUB_BUCKETS * (MAX_BITS - SUB_BITS + 1)) as usize;
/// Connections that are written to the diary for a backend in a second; failures are always written.
pub const DIARY_RATE: u32 = 64;

/// The bucket of a value in microseconds.
#[inline(always)]
pub fn bucket(microseconds: u32) -> usize {
    if microseconds < SUB_BUCKETS {
        return microseconds as usize;
    }
    if microseconds >= 1 << MAX_BITS {
        return BUCKETS - 1;
    }
    let shift = 31 - microseconds.leading_zeros() - SUB_BITS;
    (shift * SUB_BUCKETS + (microseconds >> shift)) as usize
}

/// The smallest value of a bucket, in microseconds; that of the one behind the last is where the last one ends.
pub fn lower_bound(bucket: usize) -> u64 {
    let (bucket, parts) = (bucket as u64, u64::from(SUB_BUCKETS));
    if bucket < 2 * parts {
        return bucket;
    }
    let shift = bucket / parts - 1;
    (parts + bucket % parts) << shift
}

/// Counts of latencies.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// How many fell into each bucket.
    pub counts: [u64; BUCKETS],
    /// Sum of all values, in microseconds.
    pub sum: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram {
            counts: [0; BUCKETS],
            sum: 0,
        }
    }
}

/// Why a connection was not made, or ended other than by the two sides closing it: index of [`Observed::failures`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The backend refused it (RST).
    Refused = 0,
    /// The backend did not answer (ETIMEDOUT).
    TimedOut = 1,
    /// No way to the backend (EHOSTUNREACH and its like, from ICMP or the routes).
    Unreachable = 2,
    /// The client gave up before the backend answered.
    Abandoned = 3,
    /// An open connection was reset by the backend.
    Reset = 4,
    /// An open connection died unanswered.
    Lost = 5,
}

/// How many kinds of [`Failure`] there are.
pub const FAILURES: usize = 6;

/// What was seen of a backend of a service: value of `observed`, by [`Member`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Through which address of the service its first client came.
    pub frontend: Frontend,
    /// The second, in seconds of CLOCK_MONOTONIC, that `written` counts for.
    pub second: u32,
    /// Connections written to the diary in that second.
    pub written: u32,
    /// Smoothed time that a connect takes, in microseconds; failures count as a second.
    pub smoothed: u32,
    /// Connections established.
    pub opened: u64,
    /// Connections that were established and are no more.
    pub closed: u64,
    /// Bytes that the backends have acknowledged.
    pub sent: u64,
    /// Bytes received from them.
    pub received: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// By [`Failure`].
    pub failures: [u64; FAILURES],
    /// From connect(2) to the established connection.
    pub connect: Histogram,
    /// Smoothed round-trip time (RFC 6298), at most one sample a connection and tick of the kernel's clock.
    pub rtt: Histogram,
}

impl Default for Observed {
    fn default() -> Self {
        Observed {
            frontend: Frontend::default(),
            second: 0,
            written: 0,
            smoothed: 0,
            opened: 0,
            closed: 0,
            sent: 0,
            received: 0,
            retransmits: 0,
            failures: [0; FAILURES],
            connect: Histogram::default(),
            rtt: Histogram::default(),
        }
    }
}

/// What a socket carries for this program, in its [`crate::Origin`]: zero when it connects.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Coarse clock at the last sample, nanoseconds of CLOCK_MONOTONIC.
    pub sampled: u64,
    /// Bytes acknowledged that are counted already.
    pub sent: u64,
    /// Bytes received that are counted already.
    pub received: u64,
    /// Whether the diary has it: its end is written, too.
    pub in_diary: u32,
    /// Segments sent again that are counted already.
    pub retransmits: u32,
}

/// An event in the life of a connection.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Established.
    Opened = 1,
    /// Not established; [`Entry::failure`] says why.
    Failed = 2,
    /// Closed by both sides.
    Closed = 3,
    /// Ended otherwise; [`Entry::failure`] says why.
    Broken = 4,
}

/// A line of the diary: element of `diary`, a circle for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Nanoseconds of CLOCK_MONOTONIC; zero while it is being written.
    pub time: u64,
    /// When connect(2) began, nanoseconds of CLOCK_MONOTONIC.
    pub started: u64,
    /// Cookie of the socket.
    pub socket: u64,
    /// Bytes acknowledged until then.
    pub sent: u64,
    /// Bytes received until then.
    pub received: u64,
    /// What the client asked for.
    pub frontend: Frontend,
    /// Where it was sent.
    pub member: Member,
    /// Where it comes from.
    pub client: Endpoint,
    /// Segments sent again until then.
    pub retransmits: u32,
    /// Smoothed round-trip time, microseconds.
    pub rtt: u32,
    /// [`Event`].
    pub event: u32,
    /// [`Failure`], for those that are one.
    pub failure: u32,
    /// Always zero.
    pub zero: [u32; 2],
}

/// What the program itself could not do, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Connections of backends that did not fit into `observed`.
    pub unobserved: u64,
    /// Connections of backends that did not fit into `load`.
    pub unweighed: u64,
    /// Connections left out of the diary because their backend had its share of the second.
    pub unwritten: u64,
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

    pod!(Observed, Entry, Health);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_hold_their_values() {
        assert_eq!(BUCKETS, 176);
        for index in 0..BUCKETS {
            let (low, high) = (lower_bound(index), lower_bound(index + 1));
            assert!(low < high, "{index}");
            assert_eq!(bucket(u32::try_from(low).unwrap()), index);
            assert_eq!(bucket(u32::try_from(high - 1).unwrap()), index);
            assert!(low < 8 || (high - low) * 8 <= low, "{index} is too wide");
        }
        assert_eq!(lower_bound(BUCKETS), 1 << MAX_BITS);
        assert_eq!(bucket(u32::MAX), BUCKETS - 1);
    }

    #[test]
    fn layouts_have_no_implicit_padding() {
        assert_eq!(size_of::<Histogram>(), (BUCKETS + 1) * 8);
        assert_eq!(size_of::<Observed>(), 32 + 2 * (BUCKETS + 1) * 8 + 5 * 8 + FAILURES * 8);
        assert_eq!(size_of::<Flow>(), 32);
        assert_eq!(size_of::<Entry>(), 5 * 8 + 20 + 24 + 20 + 6 * 4);
        assert_eq!(size_of::<Health>(), 24);
    }
}
