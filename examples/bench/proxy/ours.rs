//! hull's proxy with services as the API has them: how long a full sync, a restart and a change take, and what it needs.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hull_agent::observe::{self, ObserveConfig, Observer};
use hull_agent::proxy::{self, Group, NodeView, Proxy, ProxyConfig, ServiceName, Slice, compute};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;

const NODE: &str = "bench";
/// Changes of which the time is taken.
const CHANGES: u32 = 200;

/// The proxy, the observer of some of its clients, and what it was filled with. Everything goes with the value.
pub struct Ours {
    proxy: Option<Proxy>,
    observer: Option<Observer>,
    config: ProxyConfig,
    view: NodeView,
    last: (Service, EndpointSlice),
}

/// What was measured on the way.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Costs {
    /// From objects of the API to the kernel's maps, milliseconds.
    pub full_sync_ms: f64,
    /// From nothing to the first comparison with what is pinned, milliseconds.
    pub restart_ms: f64,
    /// From a changed object to the kernel's maps, median, microseconds.
    pub change_us: f64,
    /// The same, 99th percentile.
    pub change_p99_us: f64,
    /// Memory that the kernel charges for the pinned maps, bytes.
    pub map_bytes: u64,
    /// Resident memory of this process that the mirror of the maps takes, bytes.
    pub mirror_bytes: u64,
}

impl Ours {
    /// `services` services of `endpoints` endpoints each; the last one is the target, with these.
    pub fn fill(
        dir: &Path,
        cgroup: &Path,
        services: u32,
        endpoints: u32,
        target: (Ipv4Addr, &[SocketAddr]),
    ) -> Result<(Ours, Costs)> {
        let view = NodeView {
            name: NODE.to_owned(),
            service_cidrs: vec!["172.16.0.0/12".parse().context("service range")?],
            ..NodeView::default()
        };
        let config = ProxyConfig::new(&dir.join("bpf"), cgroup, &dir.join("netns"));
        let filler = |number: u32| {
            let backend =
                |index| SocketAddr::from((Ipv4Addr::from_bits(0x0b00_0000 + number * endpoints + index), 8080));
            let backends: Vec<SocketAddr> = (0..endpoints).map(backend).collect();
            objects(number, Ipv4Addr::from_bits(0xac1e_000a + number), &backends)
        };
        let mut objects_: Vec<(Service, EndpointSlice)> = (0..services - 1).map(filler).collect::<Result<_>>()?;
        objects_.push(objects(services - 1, target.0, target.1)?);
        let mut ours = Ours {
            proxy: Some(Proxy::load(config.clone())?),
            observer: None,
            last: objects_[objects_.len() - 1].clone(),
            config,
            view,
        };
        let mut costs = Costs::default();
        let before = resident()?;
        let began = Instant::now();
        let groups = ours.groups(&objects_)?;
        let report = ours.proxy()?.apply(&groups)?;
        costs.full_sync_ms = began.elapsed().as_secs_f64() * 1e3;
        costs.mirror_bytes = resident()?.saturating_sub(before);
        ensure!(
            report.rejected.is_empty(),
            "services do not fit: {:?}",
            report.rejected.first()
        );
        let began = Instant::now();
        ours.proxy = None;
        ours.proxy = Some(Proxy::load(ours.config.clone())?);
        let report = ours.proxy()?.apply(&groups)?;
        costs.restart_ms = began.elapsed().as_secs_f64() * 1e3;
        ensure!(report.changed == 0, "{} services changed by a restart", report.changed);
        costs.map_bytes = map_bytes(std::process::id(), &[&ours.config.bpf_dir])?;
        Ok((ours, costs))
    }

    /// Observes the clients in a cgroup.
    pub fn observe(&mut self, cgroup: &Path) -> Result<()> {
        self.observer = Some(Observer::load(&ObserveConfig::new(&self.config.bpf_dir, cgroup))?);
        Ok(())
    }

    /// Times changes of the last service: one endpoint more and one less.
    pub fn change(&mut self, costs: &mut Costs) -> Result<()> {
        let (service, mut slice) = self.last.clone();
        let name = name_of(&service);
        let mut times = Vec::new();
        for number in 0..CHANGES {
            let last = slice.endpoints.as_mut().context("endpoints")?;
            if number % 2 == 0 {
                let mut another = last[0].clone();
                another.addresses = vec!["10.99.0.1".to_owned()];
                last.push(another);
            } else {
                last.pop();
            }
            let began = Instant::now();
            let short = Slice::new(&slice, NODE).context("a slice of addresses")?;
            let groups = compute(&service, [short].iter(), &self.view);
            let report = self.proxy()?.update([(&name, groups.as_slice())])?;
            times.push(began.elapsed().as_secs_f64() * 1e6);
            ensure!(report.changed > 0, "nothing changed");
        }
        costs.change_us = crate::quantile(&times, 0.5);
        costs.change_p99_us = crate::quantile(&times, 0.99);
        Ok(())
    }

    fn proxy(&mut self) -> Result<&mut Proxy> {
        self.proxy.as_mut().context("the proxy is loaded")
    }

    fn groups(&self, objects: &[(Service, EndpointSlice)]) -> Result<BTreeMap<ServiceName, Vec<Group>>> {
        let groups = objects.iter().map(|(service, slice)| {
            let short = Slice::new(slice, NODE).context("a slice of addresses")?;
            Ok((name_of(service), compute(service, [short].iter(), &self.view)))
        });
        groups.collect()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.proxy = None;
        self.observer = None;
        let _ = observe::unload(&self.config.bpf_dir);
        let _ = proxy::unload(&self.config.bpf_dir);
    }
}

/// A service with a node port and one backend.
pub fn node_port(port: u16, backend: SocketAddr) -> Result<(Service, Slice)> {
    let address = Ipv4Addr::from_bits(0xac1e_ff00 + u32::from(port % 256));
    let (mut service, slice) = objects(u32::from(port), address, &[backend])?;
    let spec = service.spec.as_mut().context("spec")?;
    spec.type_ = Some("NodePort".to_owned());
    for offered in spec.ports.iter_mut().flatten() {
        offered.node_port = Some(i32::from(port));
    }
    let slice = Slice::new(&slice, NODE).context("a slice of addresses")?;
    Ok((service, slice))
}

fn objects(number: u32, address: Ipv4Addr, backends: &[SocketAddr]) -> Result<(Service, EndpointSlice)> {
    let (namespace, name) = (format!("ns{}", number % 50), format!("svc-{number}"));
    let service = json!({"metadata": {"namespace": namespace, "name": name},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
                 "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]}});
    let port = backends.first().map_or(8080, SocketAddr::port);
    let endpoints: Vec<_> = backends
        .iter()
        .map(|backend| {
            json!({"addresses": [backend.ip()], "nodeName": NODE,
            "conditions": {"ready": true, "serving": true, "terminating": false}})
        })
        .collect();
    let slice = json!({"metadata": {"namespace": namespace, "name": format!("{name}-x"),
            "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": port, "protocol": "TCP"}], "endpoints": endpoints});
    Ok((serde_json::from_value(service)?, serde_json::from_value(slice)?))
}

pub fn name_of(service: &Service) -> ServiceName {
    let meta = &service.metadata;
    ServiceName::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// The sum of what the kernel says (`memlock`) of the pinned maps and of those that a process holds: what is inside an outer map
/// has no pin of its own.
pub fn map_bytes(process: u32, dirs: &[&Path]) -> Result<u64> {
    let mut pinned = Vec::new();
    for dir in dirs {
        let maps = fs::read_dir(dir)?.filter_map(|entry| aya::maps::MapData::from_pin(entry.ok()?.path()).ok());
        pinned.extend(maps);
    }
    let mut maps = BTreeMap::new();
    let infos = |process: u32| fs::read_dir(format!("/proc/{process}/fdinfo"));
    for entry in infos(process)?.chain(infos(std::process::id())?) {
        // The descriptor of the directory itself is gone by now.
        let Ok(info) = fs::read_to_string(entry?.path()) else {
            continue;
        };
        let field = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    drop(pinned);
    Ok(maps.values().sum())
}

/// Resident memory of this process, bytes.
fn resident() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = kib.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
    Ok(kib.context("VmRSS in /proc/self/status")? * 1024)
}
