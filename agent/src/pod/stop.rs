//! Ending one container: preStop hook, the image's stop signal, and when its time is up, the whole cgroup at once.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::time::Instant;

use super::check::{Handler, Target};
use super::host::Host;
use super::images;
use crate::events::Kind;

/// What a container gets at least after its preStop hook, whatever the hook left of its grace period.
const AFTER_HOOK: Duration = Duration::from_secs(2);
/// How often SIGKILL is repeated to a container that does not go: its processes may hang in the kernel.
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// A container to end.
pub struct Stop {
    /// The node.
    pub host: Arc<Host>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container, for its hook.
    pub container: Arc<Container>,
    /// Where hooks run.
    pub target: Target,
    /// The image's name, for its stop signal.
    pub image: String,
    /// True once it ended.
    pub ended: watch::Receiver<bool>,
    /// When SIGKILL is due; may be moved while this waits.
    pub deadline: watch::Receiver<Instant>,
}

impl Stop {
    /// Returns when the container has ended.
    pub async fn carry_out(mut self) {
        let least = self.pre_stop().await;
        let signal = self.signal();
        if let Err(error) = self.host.warden.kill(&self.target.id, signal, false).await
            && !error.is_not_found()
        {
            tracing::warn!(container = self.target.id, signal, %error, "a container was not signalled");
        }
        self.wait(least).await;
        while !*self.ended.borrow() {
            if let Err(error) = self
                .host
                .warden
                .kill(&self.target.id, Signal::KILL.as_raw(), true)
                .await
            {
                tracing::warn!(container = self.target.id, %error, "a container was not killed");
            }
            let _ = tokio::time::timeout(KILL_AGAIN, self.ended.wait_for(|ended| *ended)).await;
        }
    }

    /// Waits for the end or for the deadline, whichever is first.
    async fn wait(&mut self, least: Option<Instant>) {
        loop {
            let deadline = *self.deadline.borrow_and_update();
            let deadline = least.map_or(deadline, |least| deadline.max(least));
            tokio::select! {
                _ = self.ended.wait_for(|ended| *ended) => return,
                () = tokio::time::sleep_until(deadline) => return,
                moved = self.deadline.changed() => if moved.is_err() { return },
            }
        }
    }

    /// Runs the hook, if there is one. Returns until when the container may live at least.
    async fn pre_stop(&mut self) -> Option<Instant> {
        let hook = self
            .container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        let handler = hook.and_then(Handler::of_hook)?;
        let left = self.deadline.borrow().saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        let mut ended = self.ended.clone();
        let result = tokio::select! {
            result = self.target.check(&handler, left) => result,
            _ = ended.wait_for(|ended| *ended) => return None,
        };
        if let Err(message) = result {
            let name = Some(self.container.name.as_str());
            self.host.events.pod(
                &self.pod,
                name,
                Kind::Warning,
                "FailedPreStopHook",
                format!("PreStopHook failed: {message}"),
            );
        }
        Some(Instant::now() + AFTER_HOOK)
    }

    fn signal(&self) -> i32 {
        let own = self
            .container
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.stop_signal.clone());
        let named = own.or_else(|| images::stop_signal(&self.host, &self.image));
        named
            .and_then(|name| parse_signal(&name))
            .unwrap_or(Signal::TERM.as_raw())
    }
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` as a number.
#[must_use]
pub fn parse_signal(name: &str) -> Option<i32> {
    let upper = name.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let offset: i32 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse().ok()?
        };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    let names = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ILL", 4),
        ("TRAP", 5),
        ("ABRT", 6),
        ("BUS", 7),
        ("FPE", 8),
        ("KILL", 9),
        ("USR1", 10),
        ("SEGV", 11),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("STKFLT", 16),
        ("CHLD", 17),
        ("CONT", 18),
        ("STOP", 19),
        ("TSTP", 20),
        ("TTIN", 21),
        ("TTOU", 22),
        ("URG", 23),
        ("XCPU", 24),
        ("XFSZ", 25),
        ("VTALRM", 26),
        ("PROF", 27),
        ("WINCH", 28),
        ("IO", 29),
        ("PWR", 30),
        ("SYS", 31),
    ];
    names
        .into_iter()
        .find(|(other, _)| *other == bare)
        .map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_many_spellings() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGNONE", None),
            ("0", None),
            ("65", None),
        ] {
            assert_eq!(parse_signal(name), number, "{name}");
        }
    }
}
