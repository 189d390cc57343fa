//! A pod's sandbox: namespaces pinned without a pause process, network, volumes, the node's files.
//!
//! Namespaces with network and volumes are made side by side. Both making and taking down are idempotent, so either
//! can be repeated after a failure or a restart of the agent.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use rustix::mount::{MountFlags, mount};
use serde_json::json;

use super::api;
use super::etc;
use super::host::Host;
use super::objects::Followed;
use super::references::References;
use super::spec::Namespaces;
use crate::dns;
use crate::network::namespaces::{Kind, Pinned};
use crate::proxy::edge::EdgePod;
use crate::volume::payload::{self, Sources, TokenKey};
use crate::volume::{directory, subpath};

/// Size of a pod's /dev/shm.
const SHM_OPTIONS: &std::ffi::CStr = c"mode=1777,size=65536k";
/// A token is renewed when this part of its life is over, in percent.
const TOKEN_RENEWAL: u32 = 80;

/// Why a sandbox could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The event's reason: `FailedMount` or `FailedCreatePodSandBox`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The volumes' sources, kept while the pod lives.
pub struct Fed {
    /// Followed ConfigMaps and Secrets.
    pub followed: Vec<Followed>,
    /// When the first token must be renewed.
    pub renew_at: Option<Timestamp>,
}

/// A sandbox that is ready.
pub struct Prepared {
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
    /// Its volumes' sources.
    pub fed: Fed,
}

/// Makes the sandbox of `pod`.
pub async fn prepare(host: &Arc<Host>, pod: &Arc<Pod>) -> Result<Prepared, Failure> {
    let network = {
        let (host, pod) = (Arc::clone(host), Arc::clone(pod));
        tokio::task::spawn_blocking(move || connect(&host, &pod))
    };
    let volumes = feed(host, pod, true);
    let (network, volumes) = tokio::join!(network, volumes);
    let sandbox = |message: String| Failure {
        reason: "FailedCreatePodSandBox",
        message,
    };
    let ips = network.map_err(|error| sandbox(error.to_string()))?.map_err(sandbox)?;
    let fed = volumes.map_err(|message| Failure {
        reason: "FailedMount",
        message,
    })?;
    Ok(Prepared { ips, fed })
}

/// Fetches what the volumes contain and writes it: all volumes at first, later the payloads that changed.
pub async fn feed(host: &Arc<Host>, pod: &Arc<Pod>, first: bool) -> Result<Fed, String> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let references = References::of_volumes(pod);
    let (held, tokens) = tokio::join!(host.objects.fetch(&namespace, &references), tokens(host, pod));
    let held = held.map_err(|error| error.to_string())?;
    let (tokens, renew_at) = tokens?;
    let (host, pod, objects) = (Arc::clone(host), Arc::clone(pod), held.objects);
    let written = tokio::task::spawn_blocking(move || {
        let sources = Sources {
            pod: &pod,
            node: &host.facts,
            objects: &objects,
            tokens: &tokens,
        };
        let dirs = host.volumes(pod.metadata.uid.as_deref().unwrap_or_default());
        let now = Timestamp::now();
        if first {
            dirs.set_up(&pod, &sources, now)
        } else {
            dirs.refresh(&pod, &sources, now).map(drop)
        }
    });
    written
        .await
        .map_err(|error| error.to_string())?
        .map_err(|error| error.to_string())?;
    Ok(Fed {
        followed: held.followed,
        renew_at,
    })
}

/// Asks for every token that the volumes need; and when to ask again.
async fn tokens(host: &Host, pod: &Pod) -> Result<(BTreeMap<TokenKey, String>, Option<Timestamp>), String> {
    let mut tokens = BTreeMap::new();
    let mut renew_at: Option<Timestamp> = None;
    for key in payload::tokens(pod) {
        if tokens.contains_key(&key) {
            continue;
        }
        let (token, expires) = request_token(host, pod, &key).await?;
        let now = Timestamp::now();
        let life = Duration::try_from(expires.duration_since(now)).unwrap_or_default();
        let renew = now + life * TOKEN_RENEWAL / 100;
        renew_at = Some(renew_at.map_or(renew, |other| other.min(renew)));
        tokens.insert(key, token);
    }
    Ok((tokens, renew_at))
}

async fn request_token(host: &Host, pod: &Pod, key: &TokenKey) -> Result<(String, Timestamp), String> {
    let meta = &pod.metadata;
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref())
        .unwrap_or("default");
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let audiences = if key.audience.is_empty() {
        json!([])
    } else {
        json!([key.audience])
    };
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": audiences,
            "expirationSeconds": key.seconds,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": meta.name, "uid": meta.uid},
        },
    });
    let path = format!("{}/token", api::path(namespace, "serviceaccounts", account));
    let answer = host.api.create(path, request).await;
    let answer = answer.map_err(|error| format!("failed to fetch token for service account {account}: {error}"))?;
    let status = &answer["status"];
    let token = status["token"]
        .as_str()
        .ok_or("the API server answered a TokenRequest without a token")?;
    let expires = status["expirationTimestamp"]
        .as_str()
        .and_then(|text| text.parse().ok());
    Ok((
        token.to_owned(),
        expires.unwrap_or_else(|| Timestamp::now() + Duration::from_secs(600)),
    ))
}

/// Namespaces, network, shared memory and the node's files. Blocks.
fn connect(host: &Host, pod: &Pod) -> Result<Vec<IpAddr>, String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let hostname = etc::hostname(pod, &host.config.node_name);
    let kinds = namespace_kinds(pod);
    let mut ips = host.ips.clone();
    if !kinds.is_empty() {
        let pinned =
            Pinned::create(&host.namespaces(uid), &kinds, Some(&hostname)).map_err(|error| error.to_string())?;
        if kinds.contains(&Kind::Net) {
            let address = host
                .network
                .setup(uid, &pinned.path(Kind::Net))
                .map_err(|error| error.to_string())?;
            if let Some(edge) = host.edge.wait() {
                edge.attach_pod(&EdgePod::of(&address))
                    .map_err(|error| error.to_string())?;
            }
            ips = address.ips;
        }
    }
    let records = host.records(uid);
    write_etc(host, pod, &records.etc(), &hostname, &ips)
        .map_err(|error| format!("writing the pod's /etc files: {error}"))?;
    if kinds.contains(&Kind::Ipc) {
        make_shm(&records.shm()).map_err(|error| format!("mounting the pod's /dev/shm: {error}"))?;
    }
    Ok(ips)
}

fn write_etc(host: &Host, pod: &Pod, dir: &Path, hostname: &str, ips: &[IpAddr]) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let own = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let domain = &host.config.cluster_domain;
    fs::write(dir.join("hostname"), format!("{hostname}\n"))?;
    fs::write(
        dir.join("hosts"),
        etc::hosts(pod, hostname, ips, &own("/etc/hosts"), domain),
    )?;
    let dns = host.config.cluster_dns_addresses();
    let of_host = dns::host_resolv_conf();
    fs::write(
        dir.join("resolv.conf"),
        etc::resolv_conf(pod, &dns, domain, &fs::read_to_string(of_host).unwrap_or_default()),
    )
}

fn make_shm(path: &Path) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    if directory::is_mounted(path) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("shm", path, "tmpfs", flags, SHM_OPTIONS).map_err(Into::into)
}

/// The namespaces that the pod has for itself.
fn namespace_kinds(pod: &Pod) -> Vec<Kind> {
    let spec = pod.spec.as_ref();
    let mut kinds = Vec::new();
    if !spec.is_some_and(etc::uses_host_network) {
        kinds.extend([Kind::Net, Kind::Uts]);
    }
    if spec.and_then(|spec| spec.host_ipc) != Some(true) {
        kinds.push(Kind::Ipc);
    }
    kinds
}

/// What containers of the pod join.
#[must_use]
pub fn namespaces(host: &Host, pod: &Pod) -> Namespaces {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let pinned = Pinned::open(&host.namespaces(uid));
    let kinds = namespace_kinds(pod);
    let path = |kind: Kind| {
        kinds
            .contains(&kind)
            .then(|| pinned.path(kind).to_string_lossy().into_owned())
    };
    Namespaces {
        network: path(Kind::Net),
        ipc: path(Kind::Ipc),
        uts: path(Kind::Uts),
        host_pid: pod.spec.as_ref().and_then(|spec| spec.host_pid) == Some(true),
    }
}

/// Takes everything of the pod's sandbox away; what is not there is fine. Blocks.
pub fn tear_down(host: &Host, uid: &str) -> Result<(), String> {
    if let (Some(edge), Some(address)) = (host.edge.get(), host.network.address(uid)) {
        edge.detach_pod(&address.host_interface)
            .map_err(|error| error.to_string())?;
    }
    host.network.teardown(uid).map_err(|error| error.to_string())?;
    Pinned::open(&host.namespaces(uid))
        .remove()
        .map_err(|error| error.to_string())?;
    let records = host.records(uid);
    directory::unmount_below(records.dir())
        .map_err(|error| format!("unmounting {}: {error}", records.dir().display()))?;
    host.volumes(uid)
        .tear_down()
        .map_err(|error| format!("removing the volumes of pod {uid}: {error}"))?;
    remove_pod_cgroup(host, uid);
    Ok(())
}

/// The pod's own cgroup, empty once its containers are gone.
fn remove_pod_cgroup(host: &Host, uid: &str) {
    if let Some(path) = pod_cgroup(host, uid)
        && let Err(error) = fs::remove_dir(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "the pod's cgroup was not removed");
    }
}

fn pod_cgroup(host: &Host, uid: &str) -> Option<std::path::PathBuf> {
    let mount = crate::node::cgroup_mount()?;
    Some(mount.join(host.config.pods_cgroup()).join(format!("pod{uid}")))
}

/// Removes what one container left behind: its subPath mounts, bundle and message file. Blocks.
pub fn clear_container(host: &Host, uid: &str, id: &str) {
    let records = host.records(uid);
    let subpaths = records.subpaths(id);
    for entry in fs::read_dir(&subpaths).into_iter().flatten().flatten() {
        subpath::remove(&entry.path());
    }
    for path in [subpaths, records.bundle(id)] {
        if let Err(error) = directory::remove_tree(&path) {
            tracing::warn!(path = %path.display(), %error, "a container's directory was not removed");
        }
    }
    let _ = fs::remove_file(records.termination_message(id));
}
