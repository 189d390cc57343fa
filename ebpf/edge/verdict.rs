//! What became of a packet at one of its two hooks; plain numbers, for they cross function calls.

/// Nothing applies to it.
pub const KEPT: u32 = 0;
/// It was rewritten.
pub const REPLACED: u32 = 1;
/// It was rewritten, and its source stays as it is.
pub const FINAL: u32 = 2;
/// It goes unchanged to the node that has the backend.
pub const DIRECT_RETURN: u32 = 3;
/// It is not sent on.
pub const DROP: u32 = 4;
