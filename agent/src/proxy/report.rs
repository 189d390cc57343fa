//! What the proxy tells of a change, of clients, and of its maps.

use super::destroy::Gone;
use super::maps::MAPS;
use super::{Frontend, Rejected, ServiceName};
use crate::bpf::Fill;

/// What a change of the tables did.
#[derive(Debug, Default)]
pub struct Report {
    /// Groups that were added, changed or removed.
    pub changed: usize,
    /// Frontends that are not in force; everything else is.
    pub rejected: Vec<Rejected>,
    /// UDP sockets that were connected to a backend that is gone.
    pub destroyed: usize,
    /// [`super::Proxy::source_ranges`] have changed.
    pub sources_changed: bool,
}

/// What has happened to a service's clients since it was added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connects and unconnected datagrams that were sent to a backend.
    pub translated: u64,
    /// Clients refused because there was no backend.
    pub refused: u64,
}

/// How much of the maps is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Frontends in force.
    pub frontends: usize,
    /// Backends in force, counted for each group.
    pub backends: usize,
    /// Services of which something does not fit, or is taken by another one.
    pub rejected: usize,
    /// The maps that grow.
    pub maps: [Fill; MAPS],
    /// Datagram sockets, ever, that found no place where they would be told that their backend is gone.
    pub untold: u64,
}

/// What has happened in one call.
#[derive(Default)]
pub(super) struct Round {
    pub report: Report,
    pub gone: Gone,
}

impl Round {
    pub fn reject(&mut self, service: &ServiceName, frontend: Frontend, reason: String) {
        self.report.rejected.push(Rejected {
            service: service.clone(),
            frontend,
            reason,
        });
    }
}
