//! What every pod worker of this node shares: the node's facts and its connections.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::{Pod, Service};

use super::api::Api;
use super::fields::NodeFacts;
use super::objects::ObjectCache;
use super::record::Records;
use super::view::Views;
use super::warden::Warden;
use crate::config::AgentConfig;
use crate::events::Recorder;
use crate::image::ImageStore;
use crate::network::PodNetwork;
use crate::proxy::edge;
use crate::services::host_ports::HostPorts;
use crate::volume::VolumeDirs;

/// The services of the cluster, as last seen.
pub type Services = Arc<ArcSwap<Vec<Arc<Service>>>>;

/// Shared by all workers.
pub struct Host {
    /// The agent's configuration.
    pub config: AgentConfig,
    /// What pods may know of the node.
    pub facts: NodeFacts,
    /// The node's addresses: one, or one of each family.
    pub ips: Vec<IpAddr>,
    /// The Kubernetes API.
    pub api: Arc<dyn Api>,
    /// The warden.
    pub warden: Warden,
    /// Images.
    pub images: Arc<ImageStore>,
    /// The pod network.
    pub network: Arc<PodNetwork>,
    /// What handles packets at the pods' interfaces; without it they take the kernel's long way.
    pub edge: Arc<edge::Slot>,
    /// ConfigMaps and Secrets in use.
    pub objects: ObjectCache,
    /// Events.
    pub events: Recorder,
    /// For the environment of containers.
    pub services: Services,
    /// Ports of the node that lead to its pods.
    pub host_ports: HostPorts,
    /// What the kubelet API may see of pods.
    pub views: Views,
    /// Controllers that cgroups of pods can use.
    pub controllers: BTreeSet<String>,
}

impl Host {
    /// The node's first address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.ips.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }

    /// The records of a pod.
    #[must_use]
    pub fn records(&self, uid: &str) -> Records {
        Records::of(&self.config.records_dir(), uid)
    }

    /// The volumes of a pod.
    #[must_use]
    pub fn volumes(&self, uid: &str) -> VolumeDirs {
        VolumeDirs::of(&self.config.volumes_dir(), &self.config.memory_dir(), uid)
    }

    /// Where the namespaces of a pod are pinned.
    #[must_use]
    pub fn namespaces(&self, uid: &str) -> PathBuf {
        self.config.netns_dir().join(uid)
    }

    /// The log directory of a pod.
    #[must_use]
    pub fn logs(&self, pod: &Pod) -> PathBuf {
        self.config.log_dir().join(log_name(pod))
    }
}

/// `<namespace>_<name>_<uid>`, as the kubelet names a pod's log directory.
#[must_use]
pub fn log_name(pod: &Pod) -> String {
    let meta = &pod.metadata;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("{}_{}_{}", text(&meta.namespace), text(&meta.name), text(&meta.uid))
}
