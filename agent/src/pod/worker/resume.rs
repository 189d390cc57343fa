//! The worker after adoption: taking up what an earlier agent left running.

use super::*;

impl Worker {
    /// After adoption: listen to running containers, probe them, renew the volumes' sources.
    pub(super) fn resume(&mut self) {
        let running: Vec<(String, String, Timestamp)> = self
            .state
            .containers
            .iter()
            .filter_map(|(name, state)| match &state.phase {
                Phase::Running { started_at, .. } => Some((name.clone(), state.id.clone()?, *started_at)),
                _ => None,
            })
            .collect();
        for (name, id, started_at) in running {
            self.live.insert(name.clone(), Live::new(&id));
            self.host.warden.listen(&id, self.exit_sender.clone());
            if let Some(container) = find_container(&self.pod, &name).cloned() {
                self.assume_hooked(&container);
                self.probe(&container, &id, started_at);
            }
        }
        if matches!(self.state.sandbox, Sandbox::Ready { .. }) {
            self.refresh();
            self.recheck_exits();
        }
    }

    /// A postStart hook that the last agent did not see the end of is not run twice.
    pub(super) fn assume_hooked(&mut self, container: &Container) {
        if let Some(Phase::Running { started, .. }) = self
            .state
            .containers
            .get_mut(&container.name)
            .map(|state| &mut state.phase)
        {
            *started |= container.startup_probe.is_none();
        }
    }

    /// A container may have ended between the warden's list and the subscription.
    pub(super) fn recheck_exits(&self) {
        let (warden, exits) = (self.host.warden.clone(), self.exit_sender.clone());
        let ids: Vec<String> = self.live.values().map(|live| live.id.clone()).collect();
        tokio::spawn(async move {
            let Ok(list) = warden.list().await else { return };
            for id in ids {
                match list
                    .iter()
                    .find(|container| container.id == id)
                    .map(|container| container.state)
                {
                    Some(warden::ContainerState::Exited(exit)) => drop(exits.send((id, exit))),
                    Some(_) => {}
                    None => drop(exits.send((id, crate::pod::warden::unknown_exit()))),
                }
            }
        });
    }
}
