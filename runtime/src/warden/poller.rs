//! The epoll set and what each descriptor in it belongs to (epoll(7)).
//!
//! A descriptor is taken out before it is closed: clients may hold duplicates, and an epoll entry lives as long as any of them.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{Timespec, epoll};

use super::container::Output;
use super::error::{Context, Error};

pub(crate) use rustix::event::epoll::EventFlags as Flags;

/// What a descriptor in the epoll set belongs to.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Listener,
    Signals,
    Client,
    Output(Rc<str>, Output),
    Stranger(Rc<str>),
}

impl Source {
    fn container(&self) -> Option<&str> {
        match self {
            Self::Output(id, _) | Self::Stranger(id) => Some(id),
            _ => None,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Poller {
    poll: OwnedFd,
    sources: BTreeMap<u64, Source>,
    next_token: u64,
}

impl Poller {
    pub(crate) fn new() -> Result<Self, Error> {
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).context(|| "making an epoll set".into())?;
        Ok(Self {
            poll,
            sources: BTreeMap::new(),
            next_token: 0,
        })
    }

    pub(crate) fn wait(&self, timeout: Option<&Timespec>) -> Result<Vec<(u64, Flags)>, Error> {
        let none = epoll::Event {
            flags: Flags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [none; 64];
        match epoll::wait(&self.poll, &mut events[..], timeout) {
            Ok(count) => Ok(events[..count]
                .iter()
                .map(|event| (event.data.u64(), event.flags))
                .collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(errno) => Err(Error::io("waiting for events", errno)),
        }
    }

    pub(crate) fn source(&self, token: u64) -> Option<Source> {
        self.sources.get(&token).cloned()
    }

    pub(crate) fn add(&mut self, fd: impl AsFd, source: Source, flags: Flags) -> Result<u64, Error> {
        let token = self.next_token;
        self.next_token += 1;
        epoll::add(&self.poll, fd, epoll::EventData::new_u64(token), flags)
            .context(|| format!("watching {source:?}"))?;
        self.sources.insert(token, source);
        Ok(token)
    }

    pub(crate) fn modify(&self, token: u64, fd: impl AsFd, flags: Flags) {
        let _ = epoll::modify(&self.poll, fd, epoll::EventData::new_u64(token), flags);
    }

    pub(crate) fn remove(&mut self, token: u64, fd: impl AsFd) {
        let _ = epoll::delete(&self.poll, fd);
        self.sources.remove(&token);
    }

    /// Forgets what watches a container; its descriptors, open or not in the set, are `fds`.
    pub(crate) fn remove_container<Fd: AsFd>(&mut self, id: &str, fds: impl IntoIterator<Item = Fd>) {
        for fd in fds {
            let _ = epoll::delete(&self.poll, fd);
        }
        self.sources.retain(|_, source| source.container() != Some(id));
    }

    /// Stops waiting for the end of a container that has ended.
    pub(crate) fn remove_stranger(&mut self, id: &str, pidfd: impl AsFd) {
        let _ = epoll::delete(&self.poll, pidfd);
        self.sources
            .retain(|_, source| !matches!(source, Source::Stranger(of) if **of == *id));
    }
}
