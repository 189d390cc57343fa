//! Carries a measurement out: threads with blocking sockets, paths in alternating rounds, a fixed schedule.
//!
//! Coordinated omission: with a rate, operation n of a round is due at `begin + n / rate`, whoever is free begins it,
//! and it is timed from when it was due if everybody was busy then. An operation that a client merely woke up late for
//! is timed from its real begin: that lateness is the machine's timer, not the service.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::exchange::{Exchange, Times};
use super::hdr::Hdr;
use super::plan::{Path, Schedule};

/// A path is measured for about this long before the next one's turn.
const ROUND: Duration = Duration::from_millis(200);
/// Rounds behind schedule are given up after this many times their length.
const PATIENCE: u32 = 3;
/// Operations before the first round that are not counted: they fill caches and neighbour tables.
const WARM_UP: usize = 3;
/// Threads only keep a few frames and buffers.
const STACK: usize = 256 << 10;

/// Everything needed to begin.
pub struct Job {
    /// Paths and the addresses behind each, used in turn.
    pub targets: Vec<Target>,
    /// When operations begin.
    pub schedule: Schedule,
    /// Clients.
    pub connections: u32,
    /// For all paths together.
    pub duration: Duration,
    /// The network namespace to be in; that of the process if absent.
    pub namespace: Option<OwnedFd>,
}

/// A path to measure.
pub struct Target {
    /// Which.
    pub path: Path,
    /// Where it leads; not empty.
    pub addresses: Vec<SocketAddr>,
    /// What is said.
    pub exchange: Exchange,
}

/// What was measured on a path.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Time to connect.
    pub connect: Hdr,
    /// Time to the first byte of the answer.
    pub first_byte: Hdr,
    /// Time of a request on an open connection.
    pub round_trip: Hdr,
    /// Medians of these three for each round, zero where there is none.
    pub rounds: Vec<[u64; 3]>,
    /// Operations that failed, by why.
    pub failures: BTreeMap<String, u64>,
    /// Operations that were due and never begun, because the ones before took too long.
    pub unstarted: u64,
    /// How long the path was measured for.
    pub time: Duration,
}

/// One path's turn.
struct Turn {
    begin: Mutex<Instant>,
    next: AtomicU64,
    sum: Mutex<Measured>,
}

/// Runs the job and returns what was measured, in the order of its targets. Blocks for the job's duration.
///
/// # Errors
/// The namespace cannot be entered, or threads cannot be made.
pub fn run(job: &Job) -> io::Result<Vec<Measured>> {
    let turns = u32::try_from(job.targets.len()).unwrap_or(u32::MAX).max(1);
    let rounds = (job.duration.as_millis() / (ROUND.as_millis() * u128::from(turns))).max(1);
    let rounds = u32::try_from(rounds).unwrap_or(u32::MAX);
    let length = job.duration / turns / rounds;
    let barrier = Barrier::new(job.connections as usize);
    let now = Instant::now();
    let turn = || Turn {
        begin: Mutex::new(now),
        next: AtomicU64::new(0),
        sum: Mutex::default(),
    };
    let slots: Vec<Vec<Turn>> = (0..rounds)
        .map(|_| job.targets.iter().map(|_| turn()).collect())
        .collect();
    let refused = Mutex::new(None);
    std::thread::scope(|scope| {
        for client in 0..job.connections {
            let (barrier, slots, refused) = (&barrier, &slots, &refused);
            let work = move || {
                let entered = enter(job, client == 0);
                if let Err(error) = entered {
                    *lock(refused) = Some(error);
                }
                // Everybody meets here, so that nobody measures when one cannot.
                barrier.wait();
                if lock(refused).is_none() {
                    client_turns(job, slots, length, barrier);
                }
            };
            std::thread::Builder::new()
                .name("bench".to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, work)
                .map(drop)?;
        }
        Ok::<_, io::Error>(())
    })?;
    match refused.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(gather(job, slots)),
    }
}

/// Enters the namespace; the first client also warms the paths up.
fn enter(job: &Job, first: bool) -> io::Result<()> {
    if let Some(namespace) = &job.namespace {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    if first {
        for target in &job.targets {
            for address in target.addresses.iter().cycle().take(WARM_UP) {
                // What fails now fails again when it counts.
                let _ = target.exchange.run(*address, Instant::now());
            }
        }
    }
    Ok(())
}

/// A client's part of every turn. The order of paths is another one in each round, so that none always comes first.
fn client_turns(job: &Job, slots: &[Vec<Turn>], length: Duration, barrier: &Barrier) {
    for (round, turns) in slots.iter().enumerate() {
        for step in 0..turns.len() {
            let which = (round + step) % turns.len();
            let (turn, target) = (&turns[which], &job.targets[which]);
            if barrier.wait().is_leader() {
                *lock(&turn.begin) = Instant::now();
            }
            barrier.wait();
            let begin = *lock(&turn.begin);
            let mut seen = match job.schedule {
                Schedule::Rate(rate) => scheduled(target, turn, begin, length, rate),
                Schedule::Closed => one_after_the_other(target, turn, begin, length),
            };
            seen.time = begin.elapsed();
            merge(&mut lock(&turn.sum), &seen);
        }
    }
}

fn scheduled(target: &Target, turn: &Turn, begin: Instant, length: Duration, rate: u32) -> Measured {
    let mut seen = Measured::default();
    let due_in_all = (length.as_secs_f64() * f64::from(rate)).ceil() as u64;
    loop {
        let number = turn.next.fetch_add(1, Ordering::Relaxed);
        if number >= due_in_all {
            return seen;
        }
        let due = begin + Duration::from_secs_f64(number as f64 / f64::from(rate));
        if begin.elapsed() > length * PATIENCE {
            seen.unstarted += 1;
            continue;
        }
        let early = due.saturating_duration_since(Instant::now());
        let from = if early.is_zero() {
            due
        } else {
            std::thread::sleep(early);
            Instant::now()
        };
        operate(target, number, from, &mut seen);
    }
}

fn one_after_the_other(target: &Target, turn: &Turn, begin: Instant, length: Duration) -> Measured {
    let mut seen = Measured::default();
    while begin.elapsed() < length {
        let number = turn.next.fetch_add(1, Ordering::Relaxed);
        operate(target, number, Instant::now(), &mut seen);
    }
    seen
}

fn operate(target: &Target, number: u64, from: Instant, seen: &mut Measured) {
    let index = usize::try_from(number).unwrap_or_default() % target.addresses.len();
    match target.exchange.run(target.addresses[index], from) {
        Ok(times) => seen.record(&times),
        Err(error) => *seen.failures.entry(reason(&error)).or_default() += 1,
    }
}

/// A short word where there is one.
fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset".to_owned(),
        io::ErrorKind::TimedOut => "timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "closed without an answer".to_owned(),
        _ => error.to_string(),
    }
}

impl Measured {
    fn record(&mut self, times: &Times) {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.connect.record(nanoseconds(times.connect));
        if let Some(time) = times.first_byte {
            self.first_byte.record(nanoseconds(time));
        }
        if let Some(time) = times.round_trip {
            self.round_trip.record(nanoseconds(time));
        }
    }

    fn medians(&self) -> [u64; 3] {
        [&self.connect, &self.first_byte, &self.round_trip]
            .map(|hdr| if hdr.count() == 0 { 0 } else { hdr.quantile(0.5) })
    }
}

/// Adds what another client saw in the same turn.
fn merge(sum: &mut Measured, more: &Measured) {
    sum.connect.merge(&more.connect);
    sum.first_byte.merge(&more.first_byte);
    sum.round_trip.merge(&more.round_trip);
    for (why, count) in &more.failures {
        *sum.failures.entry(why.clone()).or_default() += count;
    }
    sum.unstarted += more.unstarted;
    sum.time = sum.time.max(more.time);
}

/// Puts the rounds together.
fn gather(job: &Job, slots: Vec<Vec<Turn>>) -> Vec<Measured> {
    let mut all: Vec<Measured> = job.targets.iter().map(|_| Measured::default()).collect();
    for turns in slots {
        for (sum, turn) in all.iter_mut().zip(turns) {
            let one = turn.sum.into_inner().unwrap_or_else(PoisonError::into_inner);
            let time = sum.time + one.time;
            merge(sum, &one);
            sum.time = time;
            sum.rounds.push(one.medians());
        }
    }
    all
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
