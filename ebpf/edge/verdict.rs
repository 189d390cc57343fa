//! What becomes of a packet at one of its two hooks; plain numbers, for they cross function calls.

/// Nothing applies to it.
pub const KEPT: u32 = 0;
/// It was rewritten.
pub const REPLACED: u32 = 1;
/// Its source stays as it is, whatever a track says.
pub const FINAL: u32 = 2;
/// It goes unchanged to the node that has the backend.
pub const DIRECT_RETURN: u32 = 3;
/// It is not sent on.
pub const DROP: u32 = 4;
/// Its source is replaced, by an address and port that are still to be found: the flow would look like a service's.
pub const DISGUISE: u32 = 5;
/// The same, and what to put in its place is known.
pub const DISGUISED: u32 = 6;
