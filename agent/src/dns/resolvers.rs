//! The resolvers of the host's resolv.conf(5), and how they are doing.
//!
//! The file is watched with inotify(7), with the directory it is in and the one its link leads to: it may be written,
//! renamed over, or its link turned, as when a lease brings other resolvers. A resolver that does not answer is asked
//! last until its back-off is over, never given up.

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;

/// Resolvers used, as in the C libraries.
const MAX_RESOLVERS: usize = 3;
/// Silences in a row after which a resolver is asked last.
const TOLERATED: u32 = 2;
const MAX_BACK_OFF: Duration = Duration::from_secs(30);

/// One resolver.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) address: SocketAddr,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    silences: u32,
    down_until: Option<Instant>,
}

impl Resolver {
    fn new(address: SocketAddr) -> Resolver {
        Resolver {
            address,
            health: Mutex::default(),
        }
    }

    /// It answered.
    pub(super) fn answered(&self) {
        *self.health.lock() = Health::default();
    }

    /// It did not answer. `jitter` of 256 lengthens the back-off by up to a half.
    pub(super) fn silent(&self, now: Instant, jitter: u8) {
        let mut health = self.health.lock();
        health.silences = health.silences.saturating_add(1);
        if health.silences >= TOLERATED {
            let doubled = Duration::from_secs(1 << (health.silences - TOLERATED).min(5));
            let back_off = doubled.min(MAX_BACK_OFF);
            health.down_until = Some(now + back_off + back_off * u32::from(jitter) / 512);
        }
    }

    /// Whether it is likely to answer.
    pub(super) fn is_up(&self, now: Instant) -> bool {
        self.health.lock().down_until.is_none_or(|until| until <= now)
    }
}

/// The resolvers that are to be asked.
#[derive(Debug)]
pub(super) struct Resolvers {
    resolv_conf: PathBuf,
    exclude: Vec<IpAddr>,
    list: ArcSwap<Vec<Arc<Resolver>>>,
}

impl Resolvers {
    /// Those in the file at `resolv_conf`. `exclude` are the addresses that lead back here.
    pub(super) fn new(resolv_conf: PathBuf, exclude: Vec<IpAddr>) -> Resolvers {
        let resolvers = Resolvers {
            resolv_conf,
            exclude,
            list: ArcSwap::default(),
        };
        resolvers.reload();
        resolvers
    }

    /// In the order in which to ask: as in the file, those that are down last.
    pub(super) fn in_order(&self, now: Instant) -> Vec<Arc<Resolver>> {
        let mut order = self.list.load().to_vec();
        order.sort_by_key(|resolver| !resolver.is_up(now));
        order
    }

    /// What the file says now, if that is something else. A file that is gone is about to be written again.
    fn changed(&self) -> Option<Vec<SocketAddr>> {
        let text = fs::read_to_string(&self.resolv_conf).ok()?;
        let addresses = parse(&text, &self.exclude);
        let known = self.list.load();
        let same = known
            .iter()
            .map(|resolver| resolver.address)
            .eq(addresses.iter().copied());
        (!same).then_some(addresses)
    }

    /// Reads the file again; tells whether it names other resolvers now.
    fn reload(&self) -> bool {
        let Some(addresses) = self.changed() else { return false };
        tracing::info!(?addresses, file = %self.resolv_conf.display(), "DNS questions for other domains are sent on");
        let resolvers = addresses.into_iter().map(|address| Arc::new(Resolver::new(address)));
        self.list.store(Arc::new(resolvers.collect()));
        true
    }

    /// Watches the file for ever; `changed` is called after each change of the resolvers.
    pub(super) async fn watch(&self, changed: impl Fn()) {
        loop {
            match self.wait().await {
                Ok(()) => {
                    if self.reload() {
                        changed();
                    }
                }
                Err(error) => {
                    tracing::error!(file = %self.resolv_conf.display(), %error,
                        "the file cannot be watched: a change of resolvers takes a restart of the agent");
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Returns after something happened in a directory that concerns the file.
    async fn wait(&self) -> std::io::Result<()> {
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::CLOSE_WRITE
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE;
        for directory in directories(&self.resolv_conf) {
            inotify::add_watch(&watch, directory, events)?;
        }
        // It may have changed before it was watched.
        if self.changed().is_some() {
            return Ok(());
        }
        // SAFETY: an OwnedFd stays the same descriptor until it is dropped.
        let watch = unsafe { AsyncFd::register(watch) }?;
        let names = names(&self.resolv_conf);
        loop {
            let mut ready = watch.readable().await?;
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(&watch, &mut buffer);
            let mut concerned = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        let name = event.file_name().map(|name| name.to_bytes());
                        concerned |= name.is_none_or(|name| names.iter().any(|known| known.as_bytes() == name));
                    }
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            if concerned {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// Where the file is, and where its link leads to.
fn directories(file: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| path.parent().map(Path::to_owned);
    let target = fs::canonicalize(file).ok();
    let mut all: Vec<PathBuf> = [parent(file), target.as_deref().and_then(parent)]
        .into_iter()
        .flatten()
        .collect();
    all.dedup();
    all
}

/// What the file is called there.
fn names(file: &Path) -> Vec<String> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let target = fs::canonicalize(file).ok();
    [name(file), target.as_deref().and_then(name)]
        .into_iter()
        .flatten()
        .collect()
}

fn parse(text: &str, exclude: &[IpAddr]) -> Vec<SocketAddr> {
    let nameserver = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and_then(|_| words.next())?;
        let address = scoped(address)?;
        (!exclude.contains(&address.ip()) && !address.ip().is_unspecified()).then_some(address)
    };
    text.lines().filter_map(nameserver).take(MAX_RESOLVERS).collect()
}

/// An address, link-local ones with their interface: `fe80::1%eth0`.
fn scoped(text: &str) -> Option<SocketAddr> {
    let Some((address, interface)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, 53));
    };
    let index = || fs::read_to_string(Path::new("/sys/class/net").join(interface).join("ifindex")).ok();
    let scope = interface.parse().ok().or_else(|| index()?.trim().parse().ok())?;
    Some(SocketAddrV6::new(address.parse().ok()?, 53, 0, scope).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_no_resolvers() {
        let text = "nameserver 169.254.20.10\n nameserver 9.9.9.9 \nnameserver\t2001:db8::1 \n#nameserver 1.1.1.1\n\
            nameserver x\nnameserver fe80::1%7\nnameserver 8.8.8.8\nnameservers 1.1.1.1\n";
        let found = parse(text, &["169.254.20.10".parse().unwrap()]);
        let expected = ["9.9.9.9:53", "[2001:db8::1]:53", "[fe80::1%7]:53"].map(|address| address.parse().unwrap());
        assert_eq!(found, expected);
    }

    #[test]
    fn a_silent_resolver_is_asked_last_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        fs::write(&file, "nameserver 192.0.2.1\nnameserver 192.0.2.2\n").unwrap();
        let (resolvers, now) = (Resolvers::new(file, Vec::new()), Instant::now());
        let first = |now| resolvers.in_order(now)[0].address.ip().to_string();
        let order = resolvers.in_order(now);
        order[0].silent(now, 255);
        assert_eq!(first(now), "192.0.2.1", "one silence is tolerated");
        order[0].silent(now, 255);
        assert_eq!(first(now), "192.0.2.2");
        assert_eq!(first(now + Duration::from_secs(2)), "192.0.2.1", "tried again");
        order[0].silent(now, 255);
        assert_eq!(first(now + Duration::from_secs(2)), "192.0.2.2", "for longer");
        order[0].answered();
        assert_eq!(first(now), "192.0.2.1");
    }
}
