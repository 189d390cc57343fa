//! Gives each pod of this node a worker: those in the records at once, those of the API as they come.
//!
//! Adoption does not wait for the API server, so probes and restarts go on while it is away. Once it was heard, pods
//! that it does not have are ended, and what belongs to no pod at all is removed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use hull_runtime::warden::ContainerInfo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tokio::sync::mpsc;

use super::adopt;
use super::host::Host;
use super::record;
use super::sandbox;
use super::start::LABEL_POD;
use super::state::Sandbox;
use super::worker::{Message, Worker};
use crate::client::ListWatchEvent;
use crate::volume::directory;

/// The manager of all pods of this node.
pub struct Manager {
    host: Arc<Host>,
    workers: HashMap<String, mpsc::UnboundedSender<Message>>,
    done: mpsc::UnboundedReceiver<String>,
    done_sender: mpsc::UnboundedSender<String>,
}

impl Manager {
    /// Takes over what an earlier agent left, and removes what belongs to no pod.
    pub async fn adopt(host: Arc<Host>) -> Result<Self, String> {
        let root = host.config.records_dir();
        let list = host.warden.list().await.map_err(|error| error.to_string())?;
        let same_boot =
            record::of_this_boot(&root).map_err(|error| format!("preparing {}: {error}", root.display()))?;
        if !same_boot {
            forget_all(&host)?;
        }
        directory::ensure_memory(&host.config.memory_dir())
            .map_err(|error| format!("preparing {}: {error}", host.config.memory_dir().display()))?;
        let (done_sender, done) = mpsc::unbounded_channel();
        let mut manager = Manager {
            host,
            workers: HashMap::new(),
            done,
            done_sender,
        };
        let uids = record::uids(&root);
        manager.remove_strays(&uids, &list).await;
        let mut alive = BTreeSet::new();
        for uid in uids {
            match manager.host.records(&uid).read() {
                Some(remembered) => {
                    let state = adopt::adopt(&remembered, &list);
                    for id in adopt::strays(&uid, &state, &list) {
                        manager.remove_container(&uid, id).await;
                    }
                    alive.extend(
                        state
                            .containers
                            .values()
                            .filter(|c| c.is_running())
                            .filter_map(|c| c.id.clone()),
                    );
                    if matches!(state.sandbox, Sandbox::Ready { .. }) {
                        manager.host.host_ports.open(&remembered.pod, state.ips());
                    }
                    manager.spawn(remembered.pod, state);
                }
                None => manager.remove_pod(&uid).await,
            }
        }
        manager.remove_roots(alive).await;
        Ok(manager)
    }

    /// Follows the pods of this node for ever.
    pub async fn run(mut self, mut pods: mpsc::Receiver<ListWatchEvent>) {
        loop {
            tokio::select! {
                event = pods.recv() => match event {
                    Some(event) => self.receive(event),
                    None => return,
                },
                Some(uid) = self.done.recv() => drop(self.workers.remove(&uid)),
            }
        }
    }

    fn receive(&mut self, event: ListWatchEvent) {
        match event {
            ListWatchEvent::Listed(items) => {
                let present: BTreeSet<String> = items.into_iter().filter_map(|item| self.desire(item)).collect();
                let gone = self.workers.iter().filter(|(uid, _)| !present.contains(*uid));
                for (_, worker) in gone {
                    let _ = worker.send(Message::Vanished);
                }
            }
            ListWatchEvent::Applied(item) => drop(self.desire(item)),
            ListWatchEvent::Deleted(item) => {
                let uid = item["metadata"]["uid"].as_str().unwrap_or_default();
                if let Some(worker) = self.workers.get(uid) {
                    let _ = worker.send(Message::Vanished);
                }
            }
        }
    }

    /// Hands a pod to its worker. Returns its uid.
    fn desire(&mut self, item: Value) -> Option<String> {
        let pod: Pod = match serde_json::from_value(item) {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(%error, "a pod of the API server cannot be decoded and is ignored");
                return None;
            }
        };
        let uid = pod.metadata.uid.clone()?;
        match self.workers.get(&uid) {
            Some(worker) => drop(worker.send(Message::Desired(Box::new(pod)))),
            None => {
                let state = adopt::begin(&pod, Timestamp::now());
                self.spawn(pod, state);
            }
        }
        Some(uid)
    }

    fn spawn(&mut self, pod: Pod, state: super::state::PodState) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let (sender, mailbox) = mpsc::unbounded_channel();
        let worker = Worker::new(Arc::clone(&self.host), pod, state, sender.clone(), mailbox);
        let (done, name) = (self.done_sender.clone(), uid.clone());
        self.workers.insert(uid, sender);
        tokio::spawn(async move {
            worker.run().await;
            let _ = done.send(name);
        });
    }

    /// Containers and addresses that no record speaks of.
    async fn remove_strays(&self, uids: &[String], list: &[ContainerInfo]) {
        for container in list {
            let uid = container.labels.get(LABEL_POD).cloned().unwrap_or_default();
            if !uids.contains(&uid) {
                self.remove_container(&uid, &container.id).await;
            }
        }
        let unknown = self.host.network.pods().into_iter().filter(|uid| !uids.contains(uid));
        for uid in unknown {
            self.remove_pod(&uid).await;
        }
    }

    async fn remove_container(&self, uid: &str, id: &str) {
        tracing::info!(container = id, pod = uid, "removing a container that no pod needs");
        if let Err(error) = self.host.warden.delete(id).await {
            tracing::warn!(container = id, %error, "a container that no pod needs was not removed");
        }
        let (host, uid, id) = (Arc::clone(&self.host), uid.to_owned(), id.to_owned());
        let _ = tokio::task::spawn_blocking(move || {
            super::images::unmount(&host, &id);
            sandbox::clear_container(&host, &uid, &id);
        })
        .await;
    }

    /// Unmounts root file systems of containers that are no more.
    async fn remove_roots(&self, alive: BTreeSet<String>) {
        let host = Arc::clone(&self.host);
        let _ = tokio::task::spawn_blocking(move || {
            let mounted = host.images.containers().unwrap_or_default();
            for id in mounted.iter().filter(|id| !alive.contains(*id)) {
                super::images::unmount(&host, id);
            }
        })
        .await;
    }

    async fn remove_pod(&self, uid: &str) {
        let (host, uid) = (Arc::clone(&self.host), uid.to_owned());
        let _ = tokio::task::spawn_blocking(move || {
            if let Err(error) = sandbox::tear_down(&host, &uid) {
                tracing::warn!(pod = uid, error, "the remains of a pod were not removed");
            }
            if let Err(error) = host.records(&uid).remove() {
                tracing::warn!(pod = uid, %error, "the records of a pod were not removed");
            }
        })
        .await;
    }
}

/// After a reboot nothing of the records is true any more.
fn forget_all(host: &Host) -> Result<(), String> {
    for uid in record::uids(&host.config.records_dir()) {
        sandbox::tear_down(host, &uid)?;
        host.records(&uid)
            .remove()
            .map_err(|error| format!("removing the records of pod {uid}: {error}"))?;
    }
    Ok(())
}
