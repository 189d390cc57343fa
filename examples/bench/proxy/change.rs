//! One change of a service, end to end: from the API server's acknowledgement of the write to the kernel's map, in a
//! real cluster that has so many services.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{ArrayOfMaps, HashMap, Map, MapData};
use hull_agent::client::{Client, PatchKind};
use hull_ebpf_types::{Frontend, LAYOUT, Offer, scope};
use serde_json::{Value, json};

use super::ours::map_bytes;
use crate::cluster::{BPF_DIR, Cluster, DATA_DIR};
use crate::quantile;

const CHANGES: u32 = 200;
const ENDPOINTS: u32 = 10;
/// Requests under way at once while the cluster is filled.
const WORKERS: u32 = 16;
const NAMESPACE: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
const PATIENCE: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Clone, Debug, serde::Serialize)]
pub struct EndToEnd {
    pub services: u32,
    pub endpoints: u32,
    /// From the acknowledgement of the write to the new backends in the kernel, milliseconds.
    pub change_p50_ms: f64,
    pub change_p99_ms: f64,
    /// The same from before the request was sent.
    pub from_request_p50_ms: f64,
    /// Resident memory of each process when all of it is there, MiB.
    pub resident_mib: Vec<(String, f64)>,
    /// Memory that the kernel charges for the pinned maps, bytes.
    pub map_bytes: u64,
}

/// Starts a cluster, fills it, changes one service again and again.
pub fn run(binaries: &Path, services: u32) -> Result<EndToEnd> {
    let cluster = Cluster::new(binaries);
    cluster.hull(&["down", "--purge", "--grace", "0"])?;
    cluster.hull(&["up", "--detach"])?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start tokio")?;
    let client = Client::from_kubeconfig(&Path::new(DATA_DIR).join("pki/admin.kubeconfig"))?;
    runtime.block_on(fill(&client, services))?;
    let target = runtime.block_on(client.get(&format!("{NAMESPACE}/svc-{}", services - 1)))?;
    let address: Ipv4Addr = target["spec"]["clusterIP"].as_str().context("clusterIP")?.parse()?;
    let watcher = Watcher::start(address)?;
    watcher.next().context("the last service does not reach the kernel")?;
    let (mut changes, mut whole) = (Vec::new(), Vec::new());
    for number in 0..CHANGES {
        let count = if number % 2 == 0 { ENDPOINTS + 1 } else { ENDPOINTS };
        let patch = json!({"endpoints": endpoints(services - 1, count)});
        let path = format!("{SLICES}/svc-{}-x", services - 1);
        watcher.expect();
        let began = Instant::now();
        runtime.block_on(client.patch(&path, PatchKind::Merge, &patch))?;
        let acknowledged = Instant::now();
        let seen = watcher.next().context("a change does not reach the kernel")?;
        changes.push(seen.saturating_duration_since(acknowledged).as_secs_f64() * 1e3);
        whole.push((seen - began).as_secs_f64() * 1e3);
    }
    let status: Value = serde_json::from_str(&cluster.hull(&["status", "-o", "json"])?).context("hull status")?;
    let processes = status["processes"].as_array().into_iter().flatten();
    let agent = processes.clone().find(|process| process["role"] == "agent");
    let agent = agent.and_then(|agent| u32::try_from(agent["pid"].as_u64()?).ok());
    let resident = processes.map(|process| {
        let mib = process["residentKiB"].as_f64().unwrap_or_default() / 1024.0;
        (process["role"].as_str().unwrap_or("?").to_owned(), mib)
    });
    Ok(EndToEnd {
        services,
        endpoints: services * ENDPOINTS,
        change_p50_ms: quantile(&changes, 0.5),
        change_p99_ms: quantile(&changes, 0.99),
        from_request_p50_ms: quantile(&whole, 0.5),
        resident_mib: resident.collect(),
        map_bytes: map_bytes(
            agent.context("an agent in hull status")?,
            &[Path::new(BPF_DIR), &Path::new(BPF_DIR).join("observe")],
        )?,
    })
}

/// Services without selectors, each with a slice; the last one last.
async fn fill(client: &Client, services: u32) -> Result<()> {
    let client = Arc::new(client.clone());
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let client = Arc::clone(&client);
        workers.spawn(async move {
            for number in (worker..services - 1).step_by(WORKERS as usize) {
                add(&client, number).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = workers.join_next().await {
        done.context("a worker")??;
    }
    add(&client, services - 1).await
}

async fn add(client: &Client, number: u32) -> Result<()> {
    let name = format!("svc-{number}");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}]}});
    client.create(NAMESPACE, &service).await?;
    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints(number, ENDPOINTS)});
    client.create(SLICES, &slice).await?;
    Ok(())
}

fn endpoints(number: u32, count: u32) -> Vec<Value> {
    let address = |index| Ipv4Addr::from_bits(0x0b00_0000 + number * (ENDPOINTS + 1) + index);
    let endpoint = |index| json!({"addresses": [address(index)], "conditions": {"ready": true}});
    (0..count).map(endpoint).collect()
}

/// A thread that looks at one element of the kernel's map again and again while a change is expected.
struct Watcher {
    expecting: Arc<AtomicBool>,
    seen: mpsc::Receiver<Instant>,
    thread: std::thread::Thread,
}

impl Watcher {
    fn start(address: Ipv4Addr) -> Result<Watcher> {
        let pin = Path::new(BPF_DIR).join(format!("services_v{LAYOUT}"));
        let data = MapData::from_pin(&pin).with_context(|| format!("open {}", pin.display()))?;
        // The map itself is inside, and may be exchanged for a larger one.
        let outer: ArrayOfMaps<MapData> = ArrayOfMaps::try_from(Map::from_map_data(data)?)?;
        let look = move |frontend: &Frontend| -> Option<Offer> {
            let services: HashMap<_, Frontend, Offer> =
                Map::from_map_data(outer.get(&0, 0).ok()?).ok()?.try_into().ok()?;
            services.get(frontend, 0).ok()
        };
        let frontend = Frontend {
            address: [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(address.octets())],
            port: 80_u16.to_be(),
            protocol: 6,
            scope: scope::INSIDE,
        };
        let expecting = Arc::new(AtomicBool::new(true));
        let (tell, seen) = mpsc::channel();
        let expected = Arc::clone(&expecting);
        let handle = std::thread::spawn(move || {
            let mut last = None;
            loop {
                while !expected.load(Ordering::Acquire) {
                    std::thread::park();
                }
                let found = look(&frontend);
                let full = found.is_some_and(|offer| offer.service.count >= ENDPOINTS);
                if full && found.map(|offer| offer.service.generation) != last {
                    last = found.map(|offer| offer.service.generation);
                    expected.store(false, Ordering::Release);
                    if tell.send(Instant::now()).is_err() {
                        return;
                    }
                }
                std::thread::yield_now();
            }
        });
        Ok(Watcher {
            expecting,
            seen,
            thread: handle.thread().clone(),
        })
    }

    fn expect(&self) {
        self.expecting.store(true, Ordering::Release);
        self.thread.unpark();
    }

    fn next(&self) -> Result<Instant> {
        let seen = self.seen.recv_timeout(PATIENCE).context("nothing within two minutes")?;
        ensure!(!self.expecting.load(Ordering::Acquire), "one change at a time");
        Ok(seen)
    }
}
