//! The eBPF programs, loaded beside everything else that starts: they need nothing of the API server, and the kernel checks them
//! for longer than all the rest takes.
//!
//! In the order of need: sockets, without which the node is not ready; what observes them; packets, for which pods wait but the
//! node does not. Two threads of their own, because these are kept from reading what aya would read ([`super::kernel_types`]).

use std::sync::{Arc, mpsc};
use std::thread;

use tokio::sync::oneshot;

use super::{AgentError, kernel_types};
use crate::observe::{self, ObserveConfig, Observer};
use crate::pod::host::Host;
use crate::proxy::edge::{Edge, EdgeConfig, EdgePod};
use crate::proxy::{self, Proxy, ProxyConfig};

/// What is being loaded.
pub(super) struct Programs {
    /// Sockets.
    pub(super) proxy: oneshot::Receiver<Result<Proxy, proxy::Error>>,
    /// What observes them; `None` or nothing at all if the node has to do without.
    pub(super) observer: oneshot::Receiver<Option<Observer>>,
    /// Packets; `None` or nothing at all if the node has to do without.
    pub(super) edge: oneshot::Receiver<Option<Edge>>,
}

/// Begins to load all programs.
///
/// # Errors
/// There is no BPF file system, or no thread can be started.
pub(super) fn load(settings: ProxyConfig) -> Result<Programs, AgentError> {
    // Nothing can be mounted by the threads below.
    proxy::prepare(&settings.bpf_dir)?;
    let (proxy_loaded, proxy) = oneshot::channel();
    let (observer_loaded, observer) = oneshot::channel();
    let (edge_loaded, edge) = oneshot::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let observed = ObserveConfig::new(&settings.bpf_dir, &settings.cgroup);
    let packets = EdgeConfig::new(&settings.bpf_dir);
    start("bpf-sockets", move || {
        hide_kernel_types();
        let loaded = Proxy::load(settings);
        if loaded.is_ok() {
            // Whoever waits is there as long as the agent starts.
            let _ = go_on.send(());
        }
        let _ = proxy_loaded.send(loaded);
    })?;
    start("bpf-packets", move || {
        observe::btf::sk_err();
        hide_kernel_types();
        // The other programs use the proxy's maps.
        if may_go_on.recv().is_err() {
            return;
        }
        // Services work without; what cannot be seen is missing from the metrics, which say so.
        let loaded = Observer::load(&observed)
            .inspect_err(|error| tracing::error!(%error, "latency of services is not observed on this node"));
        let _ = observer_loaded.send(loaded.ok());
        let loaded = Edge::load(packets).inspect_err(|error| {
            tracing::error!(%error, "clients outside are not served, and pods do not reach the world, on this node");
        });
        let _ = edge_loaded.send(loaded.ok());
    })?;
    Ok(Programs { proxy, observer, edge })
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), AgentError> {
    let started = thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(|_| ()).map_err(AgentError::Thread)
}

fn hide_kernel_types() {
    if let Err(error) = kernel_types::hide() {
        tracing::debug!(%error, "no Landlock: the kernel's types are read whenever programs are loaded");
    }
}

/// Waits for the programs for packets, and hands them the pods there are.
pub(super) async fn adopt(edge: oneshot::Receiver<Option<Edge>>, host: Arc<Host>) -> Option<Arc<Edge>> {
    let edge = edge.await.ok().flatten().map(Arc::new);
    let adopted = tokio::task::spawn_blocking(move || {
        let uids = host.network.pods().into_iter();
        let pods: Vec<EdgePod> = uids
            .filter_map(|uid| host.network.address(&uid))
            .map(|address| EdgePod::of(&address))
            .collect();
        let adopted = edge.as_ref().map_or(Ok(()), |edge| edge.adopt(&pods));
        let filled = adopted.and(host.edge.fill(edge.clone()));
        filled.unwrap_or_else(
            |error| tracing::error!(%error, "packets of pods on this node are not handled as they should"),
        );
        edge
    });
    adopted.await.ok().flatten()
}
