//! Certificates that change while the server runs: renewed before they expire, and read again when their files change.
//!
//! New connections use what was read last; established ones go on. What cannot be read or used is reported, and the last
//! good certificates stay in use (FAULTS 50). Nothing polls: inotify(7) tells of changes, a timer of what is due.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use parking_lot::RwLock;
use rustix::fs::inotify;
use rustls::{ClientConfig, ServerConfig};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::tls::Keys;
use crate::pki::{self, PkiConfig};

/// Files change in groups: certificate and key.
const SETTLE: Duration = Duration::from_millis(100);
/// Pause before another attempt to renew.
const RETRY: Duration = Duration::from_secs(10);
/// Longest sleep: timers do not count the time that a machine is suspended.
const LONGEST: Duration = Duration::from_secs(3600);

/// The configurations in use.
pub struct Live {
    server: RwLock<Arc<ServerConfig>>,
    client: RwLock<Arc<ClientConfig>>,
}

impl Live {
    pub(super) fn new(keys: &Keys) -> Arc<Self> {
        Arc::new(Self {
            server: RwLock::new(keys.server.clone()),
            client: RwLock::new(keys.client.clone()),
        })
    }

    /// What the API serves with.
    pub fn server(&self) -> Arc<ServerConfig> {
        self.server.read().clone()
    }

    /// What we are towards agents.
    pub fn client(&self) -> Arc<ClientConfig> {
        self.client.read().clone()
    }

    fn replace(&self, keys: Keys) {
        *self.server.write() = keys.server;
        *self.client.write() = keys.client;
    }
}

/// Renews and reloads for ever.
pub(super) async fn follow(live: Arc<Live>, dir: PathBuf, config: PkiConfig) {
    let events = watch(&dir)
        .inspect_err(|error| tracing::error!(%error, dir = %dir.display(), "changes of certificates are not noticed"))
        .ok();
    let mut retry = None;
    loop {
        let due = pki::renewal(&dir, config.life).map_or(LONGEST, until);
        tokio::select! {
            () = changed(events.as_ref()) => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(retry.unwrap_or(due).min(LONGEST)) => {}
        }
        if let Some(events) = &events {
            drain(events);
        }
        let is_due = pki::renewal(&dir, config.life).is_none_or(|due| due <= Timestamp::now());
        let (dir, config) = (dir.clone(), config.clone());
        let read = tokio::task::spawn_blocking(move || {
            if is_due {
                pki::ensure(&dir, &config).map_err(|error| error.to_string())?;
            }
            Keys::load(&dir).map_err(|error| error.to_string())
        });
        retry = match read.await {
            Ok(Ok(keys)) => {
                live.replace(keys);
                None
            }
            Ok(Err(error)) => {
                tracing::error!(error, "certificates were not renewed; the last good ones stay in use");
                Some(RETRY)
            }
            Err(error) => {
                tracing::error!(%error, "renewing certificates panicked");
                Some(RETRY)
            }
        };
    }
}

fn until(at: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO)
}

fn watch(dir: &Path) -> std::io::Result<AsyncFd<std::os::fd::OwnedFd>> {
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let what = inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::CLOSE_WRITE | inotify::WatchFlags::DELETE;
    inotify::add_watch(&fd, dir, what)?;
    // SAFETY: the descriptor is owned, stays the same, and is closed with the `AsyncFd`.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(|error| error.into_parts().1)
}

async fn changed(events: Option<&AsyncFd<std::os::fd::OwnedFd>>) {
    let Some(events) = events else {
        return std::future::pending().await;
    };
    match events.readable().await {
        Ok(mut ready) => ready.clear_ready(),
        Err(_) => std::future::pending().await,
    }
}

fn drain(events: &AsyncFd<std::os::fd::OwnedFd>) {
    let mut buffer = [0; 4096];
    while rustix::io::read(events.get_ref(), &mut buffer).is_ok_and(|read| read > 0) {}
}
