//! One container as the running warden holds it: its record, pidfd, output pipes, log file, terminal and execs.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use serde::Deserialize;

use super::cri::{self, Stream};
use super::error::{Context, Error};
use super::log_file::LogFile;
use super::output::{Marks, OutputPipe, Progress, Scratch};
use super::protocol::{Exit, HeldKinds};
use super::record::{Process, Record};
use crate::container::Stdio;
use crate::timestamp;

/// Ended execs remembered until somebody asks; more are forgotten, oldest first.
const ENDED_EXECS_MAX: usize = 256;
/// What a terminal's output is read in.
const TERMINAL_CHUNK: usize = 4096;

#[derive(Debug)]
pub(crate) struct Container {
    pub record: Record,
    pub dir: PathBuf,
    pub pidfd: Option<OwnedFd>,
    pub console: Option<OwnedFd>,
    pub log: Option<Log>,
    pub execs: BTreeMap<String, Exec>,
}

#[derive(Debug)]
pub(crate) struct Exec {
    pub process: Process,
    pub pidfd: OwnedFd,
    pub exit: Option<Exit>,
}

/// A log file and the pipes that feed it.
#[derive(Debug)]
pub(crate) struct Log {
    pub file: LogFile,
    pub marks: Marks,
    pub pipes: [Option<OutputPipe>; 2],
}

impl Log {
    /// Opens the log of a container whose pipes exist; `dir` is the container's directory.
    pub(crate) fn open(record: &Record, dir: &Path) -> Result<Option<Self>, Error> {
        let Some(config) = record.log.clone() else {
            return Ok(None);
        };
        let file = LogFile::open(config)?;
        let marks = Marks::open(&dir.join("consumed"))?;
        let pipes = if record.terminal {
            [None, None]
        } else {
            let open = |stream: Stream| OutputPipe::open(&dir.join(stream.name()), stream);
            [Some(open(Stream::Stdout)?), Some(open(Stream::Stderr)?)]
        };
        Ok(Some(Self { file, marks, pipes }))
    }

    /// Continues where a killed warden stopped.
    pub(crate) fn skip_logged(&self, scratch: &mut Scratch) -> Result<(), Error> {
        self.pipes
            .iter()
            .flatten()
            .try_for_each(|pipe| pipe.skip_logged(scratch, &self.file, &self.marks))
    }
}

/// Where a container's output comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Pipe(usize),
    Console,
}

impl Container {
    pub(crate) fn new(record: Record, dir: PathBuf) -> Self {
        Self {
            record,
            dir,
            pidfd: None,
            console: None,
            log: None,
            execs: BTreeMap::new(),
        }
    }

    /// Makes the container's pipes and opens its side of them.
    pub(crate) fn make_stdio(&self, stdin: bool) -> Result<Stdio, Error> {
        let input = if stdin {
            make_fifo(&self.dir.join("stdin"))?
        } else {
            open_null()?
        };
        let output = |stream: Stream| match self.record.log {
            Some(_) => make_fifo(&self.dir.join(stream.name())),
            None => open_null(),
        };
        Ok(Stdio {
            stdin: input,
            stdout: output(Stream::Stdout)?,
            stderr: output(Stream::Stderr)?,
        })
    }

    /// Logs at most one chunk from one of its outputs.
    pub(crate) fn pump(&mut self, output: Output, scratch: &mut Scratch) -> Result<Progress, Error> {
        let orphaned = self.record.exit.is_some();
        let Some(log) = &mut self.log else {
            return Ok(Progress::Ended);
        };
        match output {
            Output::Pipe(index) => match &log.pipes[index] {
                Some(pipe) => pipe.pump(scratch, &mut log.file, &log.marks, orphaned),
                None => Ok(Progress::Ended),
            },
            Output::Console => match &self.console {
                Some(console) => pump_terminal(console.as_fd(), &mut log.file, orphaned),
                None => Ok(Progress::Ended),
            },
        }
    }

    /// The outputs that are open, with their descriptors.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = (Output, BorrowedFd<'_>)> {
        let pipes = self.log.iter().flat_map(|log| log.pipes.iter().enumerate());
        let pipes = pipes.filter_map(|(index, pipe)| Some((Output::Pipe(index), pipe.as_ref()?.as_fd())));
        let logged = self.log.is_some();
        pipes.chain(
            self.console
                .iter()
                .filter(move |_| logged)
                .map(|console| (Output::Console, console.as_fd())),
        )
    }

    /// The descriptor of an output that is open.
    pub(crate) fn output(&self, output: Output) -> Option<BorrowedFd<'_>> {
        self.outputs().find(|(of, _)| *of == output).map(|(_, fd)| fd)
    }

    /// Closes an output that ended.
    pub(crate) fn close(&mut self, output: Output) {
        match (output, &mut self.log) {
            (Output::Pipe(index), Some(log)) => log.pipes[index] = None,
            (Output::Pipe(_), None) => {}
            (Output::Console, _) => self.console = None,
        }
    }

    /// Logs all that is left of an ended container. Bounded, because another process may still hold a pipe and write.
    pub(crate) fn drain(&mut self, scratch: &mut Scratch) -> Result<(), Error> {
        const STEPS_MAX: usize = 1024;
        for output in [Output::Pipe(0), Output::Pipe(1), Output::Console] {
            for _ in 0..STEPS_MAX {
                if self.pump(output, scratch)? != Progress::More {
                    break;
                }
            }
        }
        Ok(())
    }

    /// What a client may hold duplicates of.
    pub(crate) fn held(&self) -> (HeldKinds, Vec<BorrowedFd<'_>>) {
        let pipes = || self.log.iter().flat_map(|log| log.pipes.iter().flatten());
        let kinds = HeldKinds {
            pidfd: self.pidfd.is_some(),
            console: self.console.is_some(),
            logs: pipes().count(),
        };
        let own = self.pidfd.iter().chain(&self.console).map(AsFd::as_fd);
        (kinds, own.chain(pipes().map(AsFd::as_fd)).collect())
    }

    pub(crate) fn forget_oldest_execs(&mut self) {
        while self.execs.values().filter(|exec| exec.exit.is_some()).count() > ENDED_EXECS_MAX {
            let ended = self.execs.iter().filter_map(|(name, exec)| Some((exec.exit?.at, name)));
            let Some(oldest) = ended.min().map(|(_, name)| name.clone()) else {
                return;
            };
            self.execs.remove(&oldest);
        }
    }
}

/// Removes a container's directory, not its log, which is the agent's; one that is gone is no error.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("removing {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}

/// A terminal's output is logged as it comes: there is nobody to keep it for.
fn pump_terminal(console: BorrowedFd<'_>, log: &mut LogFile, orphaned: bool) -> Result<Progress, Error> {
    let mut raw = [0; TERMINAL_CHUNK];
    let count = match rustix::io::read(console, &mut raw) {
        Ok(0) => return Ok(Progress::Ended),
        Ok(count) => count,
        // EIO: no process has the terminal open, for now or for good.
        Err(rustix::io::Errno::IO) if orphaned => return Ok(Progress::Ended),
        Err(rustix::io::Errno::IO | rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(Progress::Idle),
        Err(errno) => {
            return Err(Error::io(
                format!("reading the terminal for {}", log.path().display()),
                errno,
            ));
        }
    };
    let stamp = timestamp::rfc3339(log.next_stamp());
    let mut records = Vec::new();
    cri::format(&raw[..count], true, &stamp, Stream::Stdout, usize::MAX, &mut records);
    log.append(&records)
        .context(|| format!("logging to {}", log.path().display()))?;
    Ok(Progress::More)
}

/// Makes a FIFO and opens it for both directions: whoever has it never sees it broken, and no writer is missing.
fn make_fifo(path: &Path) -> Result<OwnedFd, Error> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .context(|| format!("making the pipe {}", path.display()))?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fifo = open(path, flags, Mode::empty()).context(|| format!("opening the pipe {}", path.display()))?;
    rustix::fs::fcntl_setfl(&fifo, OFlags::RDWR).context(|| format!("opening the pipe {}", path.display()))?;
    Ok(fifo)
}

/// /dev/null, for a stream nobody wants.
pub(crate) fn open_null() -> Result<OwnedFd, Error> {
    open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).context(|| "opening /dev/null".into())
}

/// The oom_score_adj a bundle asks for; 0 without one, never the warden's own.
pub(crate) fn oom_score_adj(bundle: &Path) -> Result<i32, Error> {
    #[derive(Deserialize)]
    struct Config {
        process: Option<ProcessConfig>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct ProcessConfig {
        oom_score_adj: Option<i32>,
    }
    let path = bundle.join("config.json");
    let text = fs::read(&path).context(|| format!("reading {}", path.display()))?;
    let config: Config = serde_json::from_slice(&text)
        .map_err(|error| Error::io(format!("reading {}", path.display()), std::io::Error::from(error)))?;
    Ok(config.process.and_then(|process| process.oom_score_adj).unwrap_or(0))
}
