//! Who this agent is: its client certificate towards the API server, its serving certificate towards those who call it.
//!
//! Both come from the cluster by CertificateSigningRequest, are kept under the data directory, and are renewed long before
//! they expire, without a connection dropped. Kubernetes: "TLS bootstrapping", "Certificate Rotation".

mod pair;
mod request;
mod rotate;

pub use pair::{Pair, PairError};
pub(crate) use pair::{own_identifier, replace};
pub use request::{Request, RequestError, obtain};
pub use rotate::{Rotation, client, serving};
