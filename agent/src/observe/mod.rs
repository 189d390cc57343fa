//! Latency one can see: what the kernel measures on the sockets of services, and measurements on demand.
//!
//! A program on the node's cgroup counts ([`load`]), pinned like the proxy's, so that nothing is lost while no agent
//! runs. This half only reads: for metrics, for `hull top` ([`snapshot`]) and `hull trace`. [`bench`] measures actively.
//! Nothing here is needed for services to work.

pub mod bench;
pub(crate) mod btf;
mod error;
mod frontends;
mod latencies;
mod load;
mod maps;
pub mod names;
pub mod snapshot;
pub mod top;
pub mod trace;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hull_ebpf_types::observe::{Entry, Health, Observed};
use hull_ebpf_types::{Load, Member};
use parking_lot::Mutex;

pub use error::Error;
pub use frontends::Clients;
pub use latencies::Latencies;
pub use load::unload;

use crate::proxy;
use frontends::Frontends;
use maps::Maps;
use names::{Names, ServicePort};

/// A backend that is gone is forgotten so much later, or when its last connection is.
const SETTLE: Duration = Duration::from_secs(30);

/// What the observer of one node is made from.
#[derive(Clone, Debug)]
pub struct ObserveConfig {
    /// Where the proxy pins its maps; the observer has a directory below.
    pub bpf_dir: PathBuf,
    /// The cgroup whose sockets are observed, all below included.
    pub cgroup: PathBuf,
    /// Backends of services that can be observed at a time, counted once for each service port that has them. One takes
    /// 3 KB once it is used.
    pub backends: u32,
    /// Layout of the maps shared with the proxy.
    pub layout: u32,
}

impl ObserveConfig {
    /// The usual limits.
    #[must_use]
    pub fn new(bpf_dir: &Path, cgroup: &Path) -> ObserveConfig {
        ObserveConfig {
            bpf_dir: bpf_dir.to_owned(),
            cgroup: cgroup.to_owned(),
            backends: 16_384,
            layout: hull_ebpf_types::LAYOUT,
        }
    }

    /// Where a map of the proxy is pinned.
    fn shared_pin(&self, name: &str) -> PathBuf {
        self.bpf_dir.join(format!("{name}_v{}", self.layout))
    }
}

/// Reads what the kernel counted. Dropping it leaves everything in force. All calls block briefly.
pub struct Observer {
    maps: Mutex<Maps>,
    frontends: Frontends,
}

impl Observer {
    /// Loads and attaches the program, taking over what an earlier agent left. The proxy must have been loaded before.
    ///
    /// # Errors
    /// The kernel refuses the program or its attachment.
    pub fn load(config: &ObserveConfig) -> Result<Observer, Error> {
        let processors = aya::util::nr_cpus().map_err(|(path, source)| Error::file("read", path, source))?;
        let processors = u32::try_from(processors).unwrap_or(1);
        let mut ebpf = load::load(config, processors)?;
        let maps = Maps::take(&mut ebpf, processors)?;
        let frontends = Frontends::open(config)?;
        load::attach(config, &mut ebpf)?;
        give_memory_back();
        Ok(Observer {
            maps: Mutex::new(maps),
            frontends,
        })
    }

    /// All that was observed.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn observed(&self) -> Result<Vec<(Member, Observed)>, Error> {
        self.maps.lock().observed()
    }

    /// How busy a backend is.
    #[must_use]
    pub fn load_of(&self, member: &Member) -> Load {
        self.maps.lock().load(member)
    }

    /// The newest lines of the diary that `wanted` takes, at most `most`, the oldest of them first.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn diary(&self, most: usize, wanted: impl Fn(&Entry) -> bool) -> Result<Vec<Entry>, Error> {
        self.maps.lock().diary(most, wanted)
    }

    /// What the program could not do.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn health(&self) -> Result<Health, Error> {
        self.maps.lock().health()
    }

    /// What has happened to the clients of every port of a service that had any, of every protocol.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn clients(&self, names: &Names) -> Result<BTreeMap<Arc<ServicePort>, Clients>, Error> {
        self.frontends.all_clients(names)
    }

    /// Forgets the backends that are no service's any more. How many of them connections are still open to, so that
    /// they could not be forgotten yet.
    ///
    /// # Errors
    /// A map cannot be read or written.
    pub fn sweep(&self) -> Result<usize, Error> {
        let mut maps = self.maps.lock();
        let members = maps.members()?;
        let living = self
            .frontends
            .living(&members.iter().map(|member| member.service).collect())?;
        let mut in_use = 0;
        for member in members.iter().filter(|member| !living.contains(member)) {
            if maps.is_in_use(member) {
                in_use += 1;
            } else {
                maps.forget(member)?;
            }
        }
        Ok(in_use)
    }

    /// Forgets backends some time after they are gone, for ever. Many changes cost one look, no change costs none.
    pub async fn keep_tidy(self: Arc<Self>, changes: Arc<proxy::Status>) {
        loop {
            changes.changed().await;
            let mut in_use = 1;
            while in_use > 0 {
                tokio::time::sleep(SETTLE).await;
                let observer = Arc::clone(&self);
                in_use = match tokio::task::spawn_blocking(move || observer.sweep()).await {
                    Ok(Ok(in_use)) => in_use,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "what was observed of vanished backends is not forgotten yet");
                        0
                    }
                    Err(_) => return,
                };
            }
        }
    }
}

/// The loader reads all of the kernel's type information; what malloc keeps of it would stay with the agent for good.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: a function without preconditions; malloc(3) is safe to call from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
