//! Images on a node: import, pull, unpack, and a root file system for each container.
//!
//! Everything about images comes from outside and is distrusted: digests and sizes are checked before content is named,
//! archives are unpacked within bounds that they cannot leave. Blocking, but for [`ImageStore::pull`].

pub mod build;
mod digest;
mod error;
mod import;
mod index;
mod layer;
mod lock;
mod manifest;
mod reference;
mod registry;
mod rootfs;
mod source;
mod store;

pub use digest::Digest;
pub use error::Error;
pub use reference::Reference;
pub use registry::{Credentials, Registries};
pub use rootfs::Rootfs;
pub use store::{Freed, Image, ImageStore};
