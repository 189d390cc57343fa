//! Taking over from a warden that died: live containers are watched through pidfds, ended ones get the truth if anybody has it.
//!
//! Who knows how a container ended meanwhile: its zombie, if nobody reaped it yet, or a duplicate of its pidfd that a client
//! hands back. Otherwise the exit is recorded as unknown, until a client does.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use super::container::{self, Container, Log, Output};
use super::error::Error;
use super::exit;
use super::poller::{Flags, Source};
use super::protocol::{Event, HeldKinds};
use super::record::{self, Process, Record};
use super::requests::nonblocking;
use super::server::{Owner, Warden, complain};
use super::{containers_dir, runtime_root};
use crate::container as runtime;

impl Warden {
    /// Takes over every container that a former warden recorded.
    pub(super) fn adopt_all(&mut self) -> Result<(), Error> {
        let left = record::load_all(&containers_dir(&self.dir))?;
        for id in left.unreadable {
            self.discard(&id);
        }
        for record in left.records {
            match record.process {
                Some(process) => self.adopt_recorded(record, process),
                None => self.discard(&record.id),
            }
        }
        Ok(())
    }

    /// Removes what an interrupted creation left.
    fn discard(&mut self, id: &str) {
        let removed = match runtime::delete(&runtime_root(&self.dir), id, true) {
            Err(error) if error.kind() != runtime::Kind::NotFound => Err(error.to_string()),
            _ => container::remove_dir(&containers_dir(&self.dir).join(id)).map_err(|error| error.to_string()),
        };
        if let Err(why) = removed {
            complain(&format!("removing the unfinished container {id}"), &why);
        }
    }

    fn adopt_recorded(&mut self, record: Record, process: Process) {
        let dir = containers_dir(&self.dir).join(&record.id);
        let id = record.id.clone();
        let mut container = Container::new(record, dir);
        match Log::open(&container.record, &container.dir) {
            Ok(log) => container.log = log,
            Err(error) => complain(&format!("continuing the log of {id}"), &error),
        }
        if let Some(Err(error)) = container.log.as_ref().map(|log| log.skip_logged(&mut self.scratch)) {
            complain(&format!("continuing the log of {id}"), &error);
        }
        container.pidfd = exit::open_pidfd(process.pid, process.start_time);
        let live = container.pidfd.as_ref().filter(|_| container.record.exit.is_none());
        let watched = match live {
            Some(pidfd) => self
                .poller
                .add(pidfd, Source::Stranger(id.as_str().into()), Flags::IN)
                .map(|_| true),
            None => Ok(false),
        };
        let ended = container.record.exit.is_none() && container.pidfd.is_none();
        self.containers.insert(id.clone(), container);
        if let Err(error) = watched.and_then(|_| self.watch_outputs(&id)) {
            complain(&format!("watching container {id}"), &error);
        }
        if ended {
            self.ended(&Owner { id, exec_id: None }, None);
        }
    }

    /// Takes descriptors back from a client that held them while no warden lived.
    pub(super) fn adopt(&mut self, id: &str, held: HeldKinds, mut fds: VecDeque<OwnedFd>) -> Result<(), Error> {
        let pidfd = if held.pidfd { fds.pop_front() } else { None };
        let console = if held.console { fds.pop_front() } else { None };
        let container = self.get(id)?;
        if let Some(console) = console.filter(|_| container.console.is_none() && container.record.exit.is_none()) {
            let console = nonblocking(console)?;
            if container.log.is_some() {
                let source = Source::Output(id.into(), Output::Console);
                self.poller.add(&console, source, Flags::IN | Flags::ET)?;
            }
            self.get(id)?.console = Some(console);
        }
        match pidfd {
            Some(pidfd) => self.learn_exit(id, &pidfd),
            None => Ok(()),
        }
    }

    /// Replaces an unknown exit by what the pidfd tells.
    fn learn_exit(&mut self, id: &str, pidfd: &OwnedFd) -> Result<(), Error> {
        let container = self.get(id)?;
        let Some(exit) = container.record.exit.filter(|exit| exit.status().is_none()) else {
            return Ok(());
        };
        let Some(process) = container.record.process else {
            return Ok(());
        };
        let Some(status) = exit::status_of_stranger(pidfd.as_fd(), process.pid, process.start_time) else {
            return Ok(());
        };
        let exit = exit::from_wait_status(status, exit.oom_killed, exit.at);
        container.record.exit = Some(exit);
        let dir = container.dir.clone();
        container.record.save(&dir)?;
        self.publish(&Event::Exited {
            id: id.to_owned(),
            exec_id: None,
            exit,
        });
        Ok(())
    }
}
