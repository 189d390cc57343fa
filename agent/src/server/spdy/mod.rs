//! SPDY/3.1 as a stream multiplexer, the way the kubelet's streaming API uses it: a client opens named streams over one
//! upgraded connection, both sides send data on them. No requests, no priorities, no flow control.
//!
//! Older kubectl, client-go's default executor and Kubernetes' own API server speak nothing else. Invariant: what a client
//! sends is bounded (frame, header block, streams), and every frame but the client's first mistake is answered or ignored
//! as the draft says. See draft-mbelshe-httpbis-spdy-00 and `k8s.io/streaming/pkg/httpstream`.

mod connection;
mod frame;
mod header;

pub use connection::{Event, Reader, Writer, split};
