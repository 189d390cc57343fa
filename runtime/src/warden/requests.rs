//! What the warden does for each request: thin calls of the runtime's library, with the record kept ahead of the kernel.

use std::collections::VecDeque;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal};

use super::container::{self, Container, Exec, Log};
use super::error::{Context, Error, Refusal};
use super::oom;
use super::protocol::{CreateRequest, ExecRequest, HeldKinds, Reply, Request, StreamKinds};
use super::record::{Process, Record, check_id};
use super::server::{Owner, Warden, complain, with_signals_unblocked};
use super::{containers_dir, runtime_root};
use crate::container as runtime;

/// Longest wait for a process that was killed: one in an uninterruptible sleep must not hold up the others.
const KILLED_WAIT: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

type Answer = Result<(Reply, Vec<OwnedFd>), Error>;

impl Warden {
    /// Does what a client asks, and says what came of it.
    pub(super) fn answer(&mut self, request: Request, fds: VecDeque<OwnedFd>) -> (Reply, Vec<OwnedFd>) {
        let done = |()| (Reply::Done, Vec::new());
        let answer = match request {
            Request::Create(request) => self.create(request),
            Request::Start { id } => self.start(&id).map(done),
            Request::Kill { id, signal, all } => self.kill(&id, signal, all).map(done),
            Request::Delete { id, force } => self.delete(&id, force).map(done),
            Request::Exec(request) => self.exec(*request),
            Request::KillExec { id, exec_id, signal } => self.kill_exec(&id, &exec_id, signal).map(done),
            Request::ExecExit { id, exec_id } => self.exec_exit(&id, &exec_id),
            Request::List => Ok((
                Reply::Containers(self.containers.values().map(|c| c.record.info()).collect()),
                Vec::new(),
            )),
            Request::ReopenLog { id } => self.reopen_log(&id).map(done),
            Request::Hold { id } => self.hold(&id),
            Request::Adopt { id, held } => self.adopt(&id, held, fds).map(done),
            Request::Shutdown { kill } => self.shutdown(kill).map(done),
            Request::Subscribe => Ok((Reply::Done, Vec::new())),
        };
        // Forking drops SIGCHLDs, see with_signals_unblocked.
        self.reap();
        answer.unwrap_or_else(|error| {
            let kind = match &error {
                Error::Refused { kind, .. } => *kind,
                _ => Refusal::Failed,
            };
            (
                Reply::Refused {
                    kind,
                    message: error.to_string(),
                },
                Vec::new(),
            )
        })
    }

    pub(super) fn get(&mut self, id: &str) -> Result<&mut Container, Error> {
        let missing = || Error::refused(Refusal::NotFound, format!("the warden knows no container {id}"));
        self.containers.get_mut(id).ok_or_else(missing)
    }

    fn create(&mut self, request: CreateRequest) -> Answer {
        check_id(&request.id)?;
        if self.containers.contains_key(&request.id) {
            return Err(Error::refused(
                Refusal::AlreadyExists,
                format!("a container {} exists", request.id),
            ));
        }
        let id = request.id.clone();
        let dir = containers_dir(&self.dir).join(&id);
        let created = self.create_in(request, &dir);
        if created.is_err()
            && let Err(error) = container::remove_dir(&dir)
        {
            complain(&format!("cleaning up after container {id}"), &error);
        }
        created
    }

    fn create_in(&mut self, request: CreateRequest, dir: &std::path::Path) -> Answer {
        let (id, stdin) = (request.id.clone(), request.stdin);
        let oom_score_adj = container::oom_score_adj(&request.bundle)?;
        container::remove_dir(dir)?;
        fs::create_dir(dir).context(|| format!("making {}", dir.display()))?;
        let mut container = Container::new(
            Record::new(request, oom_score_adj, crate::timestamp::now()),
            dir.to_owned(),
        );
        container.record.save(dir)?;
        let stdio = if container.record.terminal {
            None
        } else {
            Some(container.make_stdio(stdin)?)
        };
        // Our ends are open before the container's, so that nothing it writes can be lost.
        container.log = Log::open(&container.record, dir)?;
        let root = runtime_root(&self.dir);
        let mut options = runtime::CreateOptions::new(&root, &id, &container.record.bundle);
        options.stdio = stdio;
        let created = with_signals_unblocked(|| runtime::create(options)).map_err(refusal)?;
        let runtime::Created {
            pid,
            pidfd,
            start_time,
            console,
            ..
        } = created;
        set_oom_score_adj(pid, oom_score_adj);
        container.record.process = Some(Process { pid, start_time });
        container.record.cgroup = oom::cgroup_of(pid);
        container.pidfd = Some(pidfd);
        container.console = console.map(nonblocking).transpose()?;
        self.children.insert(
            pid,
            Owner {
                id: id.clone(),
                exec_id: None,
            },
        );
        let saved = container.record.save(dir);
        self.containers.insert(id.clone(), container);
        if let Err(error) = saved.and_then(|()| self.watch_outputs(&id)) {
            let _ = runtime::delete(&root, &id, true);
            self.forget(&id);
            return Err(error);
        }
        let (held, fds) = self.held(&id)?;
        Ok((Reply::Created { pid, start_time, held }, fds))
    }

    fn held(&mut self, id: &str) -> Result<(HeldKinds, Vec<OwnedFd>), Error> {
        let (kinds, fds) = self.get(id)?.held();
        let fds: Result<Vec<OwnedFd>, _> = fds.into_iter().map(|fd| fd.try_clone_to_owned()).collect();
        Ok((kinds, fds.context(|| format!("duplicating the descriptors of {id}"))?))
    }

    fn hold(&mut self, id: &str) -> Answer {
        let (kinds, fds) = self.held(id)?;
        Ok((Reply::Held(kinds), fds))
    }

    fn start(&mut self, id: &str) -> Result<(), Error> {
        self.get(id)?;
        let root = runtime_root(&self.dir);
        with_signals_unblocked(|| runtime::start(&root, id)).map_err(refusal)?;
        let container = self.get(id)?;
        container.record.started_at = Some(crate::timestamp::now());
        let dir = container.dir.clone();
        container.record.save(&dir)
    }

    fn kill(&mut self, id: &str, signal: i32, all: bool) -> Result<(), Error> {
        self.get(id)?;
        runtime::kill(&runtime_root(&self.dir), id, signal, all).map_err(refusal)
    }

    /// What is left in the cgroup after a container's init ended is killed: with a pid namespace of its own nothing is.
    pub(super) fn kill_remaining(&self, id: &str) {
        let root = runtime_root(&self.dir);
        if runtime::processes(&root, id).is_ok_and(|left| !left.is_empty()) {
            let _ = runtime::kill(&root, id, libc::SIGKILL, true);
        }
    }

    pub(super) fn delete(&mut self, id: &str, force: bool) -> Result<(), Error> {
        check_id(id)?;
        let root = runtime_root(&self.dir);
        match self.get(id) {
            Ok(container) if container.record.exit.is_none() && !force => {
                let message = format!("container {id} has not ended; stop it first or force");
                return Err(Error::refused(Refusal::Conflict, message));
            }
            Err(error) if !force => return Err(error),
            _ => {}
        }
        if force {
            self.kill_and_reap(id);
        }
        match with_signals_unblocked(|| runtime::delete(&root, id, force)) {
            Err(error) if error.kind() != runtime::Kind::NotFound => return Err(refusal(error)),
            _ => {}
        }
        // Its end, if it came just now, is reported before it is forgotten.
        self.reap();
        self.forget(id);
        container::remove_dir(&containers_dir(&self.dir).join(id))
    }

    /// Kills a container and collects its processes that are our children. An exec's process lives in the container's pid
    /// namespace, whose init does not end before all others are reaped: who waits for the init must have done that.
    fn kill_and_reap(&mut self, id: &str) {
        let _ = runtime::kill(&runtime_root(&self.dir), id, libc::SIGKILL, true);
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let execs = container
            .execs
            .values()
            .filter(|exec| exec.exit.is_none())
            .map(|exec| &exec.pidfd);
        let init = container.pidfd.iter().filter(|_| container.record.exit.is_none());
        let pidfds: Vec<OwnedFd> = execs.chain(init).filter_map(|pidfd| pidfd.try_clone().ok()).collect();
        for pidfd in pidfds {
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            let _ = poll(&mut fds, Some(&KILLED_WAIT));
            self.reap();
        }
    }

    fn exec(&mut self, request: ExecRequest) -> Answer {
        let ExecRequest {
            id,
            exec_id,
            mut process,
            terminal,
            stdin,
        } = request;
        check_id(&exec_id)?;
        let container = self.get(&id)?;
        if container.execs.contains_key(&exec_id) {
            return Err(Error::refused(
                Refusal::AlreadyExists,
                format!("container {id} has an exec {exec_id}"),
            ));
        }
        if container.record.exit.is_some() {
            return Err(Error::refused(
                Refusal::Conflict,
                format!("container {id} has ended: nothing can run in it"),
            ));
        }
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(Some(container.record.oom_score_adj));
        }
        process.set_terminal(Some(terminal));
        let mut options = runtime::ExecOptions::new(process);
        let mut streams = Streams::default();
        if !terminal {
            options.stdio = Some(streams.make(stdin)?);
        }
        let root = runtime_root(&self.dir);
        let started = with_signals_unblocked(|| runtime::exec(&root, &id, options)).map_err(refusal)?;
        let runtime::Created {
            pid,
            pidfd,
            start_time,
            console,
            ..
        } = started;
        let duplicate = pidfd
            .try_clone()
            .context(|| format!("duplicating the pidfd of exec {exec_id}"))?;
        self.children.insert(
            pid,
            Owner {
                id: id.clone(),
                exec_id: Some(exec_id.clone()),
            },
        );
        let exec = Exec {
            process: Process { pid, start_time },
            pidfd,
            exit: None,
        };
        self.get(&id)?.execs.insert(exec_id, exec);
        let kinds = streams.kinds(console.is_some());
        let fds = [Some(duplicate), streams.stdin, streams.stdout, streams.stderr, console];
        Ok((
            Reply::ExecStarted {
                pid,
                start_time,
                streams: kinds,
            },
            fds.into_iter().flatten().collect(),
        ))
    }

    fn get_exec(&mut self, id: &str, exec_id: &str) -> Result<&mut Exec, Error> {
        let missing = || Error::refused(Refusal::NotFound, format!("container {id} has no exec {exec_id}"));
        self.get(id)?.execs.get_mut(exec_id).ok_or_else(missing)
    }

    fn kill_exec(&mut self, id: &str, exec_id: &str, signal: i32) -> Result<(), Error> {
        let exec = self.get_exec(id, exec_id)?;
        if exec.exit.is_some() {
            return Ok(());
        }
        let named = Signal::from_named_raw(signal)
            .ok_or_else(|| Error::refused(Refusal::Invalid, format!("{signal} is no signal's number")))?;
        let pid = exec.process.pid;
        pidfd_send_signal(&exec.pidfd, named).context(|| format!("sending signal {signal} to process {pid}"))
    }

    fn exec_exit(&mut self, id: &str, exec_id: &str) -> Answer {
        self.reap();
        let exit = self.get_exec(id, exec_id)?.exit;
        if exit.is_some() {
            self.get(id)?.execs.remove(exec_id);
        }
        Ok((Reply::ExecExit(exit), Vec::new()))
    }

    fn reopen_log(&mut self, id: &str) -> Result<(), Error> {
        match &mut self.get(id)?.log {
            Some(log) => log.file.reopen(),
            None => Ok(()),
        }
    }

    fn shutdown(&mut self, kill: bool) -> Result<(), Error> {
        let ids: Vec<String> = if kill {
            self.containers.keys().cloned().collect()
        } else {
            Vec::new()
        };
        for id in ids {
            self.delete(&id, true)?;
        }
        self.end();
        Ok(())
    }
}

/// The client's ends of an exec's pipes.
#[derive(Default)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    /// Makes the pipes; returns the process's ends.
    fn make(&mut self, stdin: bool) -> Result<runtime::Stdio, Error> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).context(|| "making an exec's pipes".into());
        let input = if stdin {
            let (read, write) = pipe()?;
            self.stdin = Some(write);
            read
        } else {
            container::open_null()?
        };
        let ((out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?);
        (self.stdout, self.stderr) = (Some(out_read), Some(err_read));
        Ok(runtime::Stdio {
            stdin: input,
            stdout: out_write,
            stderr: err_write,
        })
    }

    fn kinds(&self, console: bool) -> StreamKinds {
        StreamKinds {
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
            console,
        }
    }
}

pub(super) fn nonblocking(fd: OwnedFd) -> Result<OwnedFd, Error> {
    rustix::io::ioctl_fionbio(fd.as_fd(), true).context(|| "making a terminal non-blocking".into())?;
    Ok(fd)
}

/// Without a value in the spec the container would keep the warden's own.
fn set_oom_score_adj(pid: i32, value: i32) {
    let path = format!("/proc/{pid}/oom_score_adj");
    let current = fs::read_to_string(&path)
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok());
    if current.is_some_and(|current| current < value) {
        let _ = fs::write(path, value.to_string());
    }
}

fn refusal(error: runtime::Error) -> Error {
    let kind = match error.kind() {
        runtime::Kind::NotFound => Refusal::NotFound,
        runtime::Kind::AlreadyExists => Refusal::AlreadyExists,
        runtime::Kind::WrongState => Refusal::Conflict,
        runtime::Kind::Invalid => Refusal::Invalid,
        runtime::Kind::System => Refusal::Failed,
    };
    Error::refused(kind, error.to_string())
}
