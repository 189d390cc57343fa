//! The regex crate's interface, by regex-lite: oci-spec has one pattern for `execCPUAffinity`, and the full engine for it
//! would be a third of the runtime's code, in the memory of every container's start.

pub use regex_lite::*;
