//! Renews a certificate when four fifths of its life are over, for as long as the agent runs.
//!
//! The new one is on disk before it is used, so that a crash in between costs nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Pair, Request, obtain};
use crate::client::Client;
use crate::server::Certificate;

/// Pauses between attempts.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Longest sleep: timers do not count the time that a machine is suspended.
const LONGEST: Duration = Duration::from_secs(3600);

/// Puts a new certificate to use.
type Install = Box<dyn Fn(&Pair) -> Result<(), String> + Send + Sync>;

/// One certificate that is kept fresh.
pub struct Rotation {
    client: Client,
    request: Request,
    path: PathBuf,
    current: Option<Pair>,
    install: Install,
}

/// Keeps the client certificate fresh; `current` is the one in use.
#[must_use]
pub fn client(client: Client, node: &str, path: PathBuf, current: Option<Pair>) -> Rotation {
    let (used, node) = (client.clone(), node.to_owned());
    Rotation {
        client,
        request: Request {
            node,
            names: Vec::new(),
        },
        path,
        current,
        install: Box::new(move |pair| used.set_identity(pair.pem()).map_err(|error| error.to_string())),
    }
}

/// Keeps the serving certificate fresh. One that is for other names is replaced at once.
#[must_use]
pub fn serving(
    client: Client,
    node: &str,
    mut names: Vec<String>,
    path: PathBuf,
    current: Option<Pair>,
    certificate: Arc<Certificate>,
) -> Rotation {
    names.sort();
    names.dedup();
    let fits = |pair: &Pair| names.iter().all(|name| pair.names.contains(name));
    Rotation {
        current: current.filter(fits),
        client,
        request: Request {
            node: node.to_owned(),
            names,
        },
        path,
        install: Box::new(move |pair| certificate.replace(pair.pem())),
    }
}

impl Rotation {
    /// Runs for ever.
    pub async fn run(mut self) {
        let mut delay = RETRY.0;
        loop {
            let left = self
                .current
                .as_ref()
                .map_or(Duration::ZERO, |pair| left(pair, Timestamp::now()));
            if !left.is_zero() {
                tokio::time::sleep(left.min(LONGEST)).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => delay = RETRY.0,
                Err(error) => {
                    let path = self.path.display();
                    tracing::warn!(%path, error, retry_in = ?delay, "a certificate was not renewed");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY.1);
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(), String> {
        let pair = obtain(&self.client, &self.request)
            .await
            .map_err(|error| error.to_string())?;
        pair.write(&self.path).map_err(|error| error.to_string())?;
        (self.install)(&pair)?;
        tracing::info!(path = %self.path.display(), seconds = pair.not_after - Timestamp::now().as_second(), "a new certificate is in use");
        self.current = Some(pair);
        Ok(())
    }
}

/// How long the certificate needs no renewal.
fn left(pair: &Pair, now: Timestamp) -> Duration {
    let life = pair.not_after.saturating_sub(pair.not_before).max(0);
    let due = pair.not_after.saturating_sub(life / 5);
    Duration::from_secs(u64::try_from(due - now.as_second()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn four_fifths_of_the_life_are_used() {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::default().self_signed(&key).unwrap();
        let mut pair = Pair::from_pem((certificate.pem() + &key.serialize_pem()).into_bytes()).unwrap();
        (pair.not_before, pair.not_after) = (1000, 2000);
        let at = |second| left(&pair, Timestamp::from_second(second).unwrap()).as_secs();
        assert_eq!([at(1000), at(1799), at(1800), at(3000)], [800, 1, 0, 0]);
    }
}
