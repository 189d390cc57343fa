//! What a developer of hull runs: `cargo xtask demo | cluster | test | vm | bench | ebpf | schema`.
//!
//! Nothing here is needed by a user at run time. It is a library too, so that the whole-system tests can use the VM harness.

pub mod bench;
pub mod cluster;
pub mod demo;
pub mod ebpf;
pub mod host;
pub mod layout;
pub mod schema;
pub mod test;
pub mod vm;
