//! The warden's loop: one epoll set over the socket, its clients, signals, output pipes and pidfds of strangers.
//!
//! Output pipes are edge-triggered and pumped one chunk at a time in turn, so that a flooding container delays the others by
//! one chunk. A pipe whose log cannot be written rests and is tried again.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::Timespec;
use rustix::process::{WaitOptions, wait};

use super::connection::Connection;
use super::container::Container;
use super::error::{Context, Error};
use super::exit;
use super::oom;
use super::output::{Progress, Scratch};
use super::poller::{Flags, Poller, Source};
use super::protocol::{Event, Exit, Reply, Request};
use super::record::Process;
use super::socket_path;

/// Connections at a time; the agent needs a few.
const CLIENTS_MAX: usize = 512;
/// How long a log that cannot be written rests.
const RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Whose process a pid is.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub id: String,
    pub exec_id: Option<String>,
}

/// The warden of one directory.
pub(crate) struct Warden {
    pub(super) dir: PathBuf,
    pub(super) containers: BTreeMap<String, Container>,
    /// Our children, and no others: pids of strangers are never looked up.
    pub(super) children: BTreeMap<i32, Owner>,
    pub(super) scratch: Scratch,
    ending: bool,
    pub(super) poller: Poller,
    listener: UnixListener,
    signals: SignalFd,
    clients: BTreeMap<u64, Connection>,
    busy: VecDeque<u64>,
    resting: Vec<u64>,
}

impl Warden {
    /// Takes over the directory: adopts what a former warden left, then listens.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        for part in [super::containers_dir(dir), super::runtime_root(dir)] {
            fs::create_dir_all(&part).context(|| format!("making {}", part.display()))?;
        }
        let mut warden = Self {
            dir: dir.to_owned(),
            containers: BTreeMap::new(),
            children: BTreeMap::new(),
            scratch: Scratch::new()?,
            ending: false,
            poller: Poller::new()?,
            listener: listen(dir)?,
            signals: catch_signals()?,
            clients: BTreeMap::new(),
            busy: VecDeque::new(),
            resting: Vec::new(),
        };
        warden.adopt_all()?;
        warden.poller.add(&warden.listener, Source::Listener, Flags::IN)?;
        warden.poller.add(&warden.signals, Source::Signals, Flags::IN)?;
        Ok(warden)
    }

    /// Serves until a client or a signal ends it.
    pub(crate) fn run(&mut self) -> Result<(), Error> {
        while !self.ending {
            let wait = match (self.busy.is_empty(), self.resting.is_empty()) {
                (false, _) => Some(&NOW),
                (true, false) => Some(&RETRY),
                (true, true) => None,
            };
            let events = self.poller.wait(wait)?;
            if events.is_empty() && self.busy.is_empty() {
                self.busy.extend(self.resting.drain(..));
            }
            for (token, flags) in events {
                self.handle(token, flags);
            }
            self.pump_busy();
        }
        Ok(())
    }

    fn handle(&mut self, token: u64, flags: Flags) {
        match self.poller.source(token) {
            None => {}
            Some(Source::Listener) => self.accept(),
            Some(Source::Signals) => self.take_signals(),
            Some(Source::Client) => self.serve(token, flags),
            Some(Source::Output(..)) => {
                self.resting.retain(|&resting| resting != token);
                if !self.busy.contains(&token) {
                    self.busy.push_back(token);
                }
            }
            Some(Source::Stranger(id)) => self.stranger_ended(&id),
        }
    }

    fn accept(&mut self) {
        let accepted = match self.listener.accept() {
            Ok((stream, _)) if self.clients.len() < CLIENTS_MAX => Connection::new(stream),
            Ok(_) => return complain("a client was turned away", &format!("{CLIENTS_MAX} are connected")),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Err(error) => return complain("accepting a client", &error),
        };
        let registered = accepted.and_then(|client| {
            let token = self.poller.add(&client, Source::Client, Flags::IN)?;
            self.clients.insert(token, client);
            Ok(())
        });
        if let Err(error) = registered {
            complain("accepting a client", &error);
        }
    }

    fn take_signals(&mut self) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                self.end();
            }
        }
        self.reap();
    }

    /// Ends the loop after what is being done. The socket goes first, so that a starter does not take us for alive.
    pub(super) fn end(&mut self) {
        let _ = fs::remove_file(socket_path(&self.dir));
        self.ending = true;
    }

    fn serve(&mut self, token: u64, flags: Flags) {
        let Some(mut client) = self.clients.remove(&token) else {
            return;
        };
        let mut alive = !flags.intersects(Flags::IN | Flags::HUP) || client.fill();
        while alive {
            match client.next::<Request>() {
                Ok(None) => break,
                Ok(Some((Request::Subscribe, _))) => {
                    client.subscribed = true;
                    alive = client.push(&Reply::Done, Vec::new()).is_ok();
                }
                Ok(Some((request, fds))) => {
                    let (reply, fds) = self.answer(request, fds);
                    alive = client.push(&reply, fds).is_ok();
                }
                Err(error) => {
                    complain("a client was cut off", &error);
                    alive = false;
                }
            }
        }
        if alive {
            self.flush(token, client);
        } else {
            self.poller.remove(token, &client);
        }
    }

    /// Sends what a client's socket takes and keeps the client, unless it is gone.
    fn flush(&mut self, token: u64, mut client: Connection) {
        let flags = match client.flush() {
            Ok(true) => Flags::IN,
            Ok(false) => Flags::IN | Flags::OUT,
            Err(_) => return self.poller.remove(token, &client),
        };
        self.poller.modify(token, &client, flags);
        self.clients.insert(token, client);
    }

    pub(super) fn publish(&mut self, event: &Event) {
        let subscribed = |client: &Connection| client.subscribed;
        let tokens: Vec<u64> = self
            .clients
            .iter()
            .filter(|(_, c)| subscribed(c))
            .map(|(&token, _)| token)
            .collect();
        for token in tokens {
            let Some(mut client) = self.clients.remove(&token) else {
                continue;
            };
            match client.push(event, Vec::new()) {
                Ok(()) => self.flush(token, client),
                Err(_) => self.poller.remove(token, &client),
            }
        }
    }

    /// Collects every child that ended, the orphans of containers among them.
    pub(super) fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = pid.as_raw_nonzero().get();
            if let Some(owner) = self.children.remove(&pid) {
                self.ended(&owner, Some(status.as_raw()));
            }
        }
    }

    /// Records how a container or an exec ended and tells the subscribers. `status` None: nobody knows.
    pub(super) fn ended(&mut self, owner: &Owner, status: Option<i32>) {
        let at = crate::timestamp::now();
        let oom_killed = owner.exec_id.is_none() && self.was_oom_killed(&owner.id);
        let exit = match status {
            Some(status) => exit::from_wait_status(status, oom_killed, at),
            None => exit::unknown(oom_killed, at),
        };
        match &owner.exec_id {
            Some(exec_id) => self.exec_ended(&owner.id, exec_id, exit),
            None => self.container_ended(&owner.id, exit),
        }
        let Owner { id, exec_id } = owner.clone();
        self.publish(&Event::Exited { id, exec_id, exit });
    }

    fn was_oom_killed(&self, id: &str) -> bool {
        let cgroup = self
            .containers
            .get(id)
            .and_then(|container| container.record.cgroup.as_deref());
        cgroup.is_some_and(oom::was_killed)
    }

    fn exec_ended(&mut self, id: &str, exec_id: &str, exit: Exit) {
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        if let Some(exec) = container.execs.get_mut(exec_id) {
            exec.exit = Some(exit);
        }
        container.forget_oldest_execs();
    }

    fn container_ended(&mut self, id: &str, exit: Exit) {
        self.kill_remaining(id);
        let Some(container) = self.containers.get_mut(id) else {
            return;
        };
        container.record.exit = Some(exit);
        if let Err(error) = container.drain(&mut self.scratch) {
            complain(&format!("logging the last output of {id}"), &error);
        }
        if let Err(error) = container.record.save(&container.dir) {
            complain(&format!("recording the end of {id}"), &error);
        }
    }

    fn stranger_ended(&mut self, id: &str) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let (Some(pidfd), Some(Process { pid, start_time })) = (&container.pidfd, container.record.process) else {
            return;
        };
        let status = exit::status_of_stranger(pidfd.as_fd(), pid, start_time);
        self.poller.remove_stranger(id, pidfd);
        self.ended(
            &Owner {
                id: id.to_owned(),
                exec_id: None,
            },
            status,
        );
    }

    fn pump_busy(&mut self) {
        for _ in 0..self.busy.len() {
            let Some(token) = self.busy.pop_front() else { return };
            let Some(Source::Output(id, output)) = self.poller.source(token) else {
                continue;
            };
            let Some(container) = self.containers.get_mut(&*id) else {
                continue;
            };
            match container.pump(output, &mut self.scratch) {
                Ok(Progress::More) => self.busy.push_back(token),
                Ok(Progress::Idle) => {}
                Ok(Progress::Ended) => {
                    if let Some(fd) = container.output(output) {
                        self.poller.remove(token, fd);
                    }
                    container.close(output);
                }
                Err(error) => {
                    complain(&format!("container {id}"), &error);
                    self.resting.push(token);
                }
            }
        }
    }

    /// Watches a container's outputs from now on; what they hold already counts as an event.
    pub(super) fn watch_outputs(&mut self, id: &str) -> Result<(), Error> {
        let Some(container) = self.containers.get(id) else {
            return Ok(());
        };
        let name: Rc<str> = id.into();
        for (output, fd) in container.outputs() {
            self.poller
                .add(fd, Source::Output(name.clone(), output), Flags::IN | Flags::ET)?;
        }
        Ok(())
    }

    /// Drops a container and everything that watches it.
    pub(super) fn forget(&mut self, id: &str) {
        self.children.retain(|_, owner| owner.id != id);
        if let Some(container) = self.containers.remove(id) {
            let fds = container
                .outputs()
                .map(|(_, fd)| fd)
                .chain(container.pidfd.iter().map(AsFd::as_fd));
            self.poller.remove_container(id, fds);
        }
    }
}

/// Runs `call` with no signal blocked: what it forks must not inherit our mask. A SIGCHLD that comes meanwhile is dropped by
/// its default action, so reap afterwards.
pub(super) fn with_signals_unblocked<T>(call: impl FnOnce() -> T) -> T {
    let _ = caught().thread_unblock();
    let result = call();
    let _ = caught().thread_block();
    result
}

/// Writes to the warden's message file.
pub(super) fn complain(what: &str, why: &dyn std::fmt::Display) {
    eprintln!("warden: {what}: {why}");
}

fn caught() -> SigSet {
    SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT])
}

fn catch_signals() -> Result<SignalFd, Error> {
    use nix::sys::signal::{SigHandler, signal};
    // An inherited SIG_IGN would make the kernel reap our children unseen.
    // SAFETY: the default action involves no handler.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }.context(|| "resetting SIGCHLD".into())?;
    SigSet::all().thread_unblock().context(|| "unblocking signals".into())?;
    caught().thread_block().context(|| "blocking signals".into())?;
    SignalFd::with_flags(&caught(), SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context(|| "making a signalfd".into())
}

fn listen(dir: &Path) -> Result<UnixListener, Error> {
    let path = socket_path(dir);
    // We hold the directory's lock, so a socket that is there is a dead warden's.
    let _ = fs::remove_file(&path);
    let what = || format!("listening on {}", path.display());
    let listener = UnixListener::bind(&path).context(what)?;
    listener.set_nonblocking(true).context(what)?;
    Ok(listener)
}
