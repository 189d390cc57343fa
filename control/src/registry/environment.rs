//! Clock and randomness as arguments, so that a simulation can replay a control plane from a seed.

use std::sync::Arc;

use jiff::Timestamp;

/// Letters of generated names: no vowels, so no words; as `k8s.io/apimachinery/pkg/util/rand`.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Where the registry takes time and randomness from.
#[derive(Clone)]
pub struct Environment {
    now: Arc<Clock>,
    fill: Arc<Randomness>,
}

type Clock = dyn Fn() -> Timestamp + Send + Sync;
type Randomness = dyn Fn(&mut [u8]) + Send + Sync;

impl Environment {
    /// The system's clock and random numbers.
    pub fn system() -> Self {
        let random = rustls::crypto::ring::default_provider().secure_random;
        Self::new(Timestamp::now, move |bytes| {
            // getrandom(2) fails only where it does not exist; names must still be made, and stay unique by CAS.
            if random.fill(bytes).is_err() {
                fallback(bytes);
            }
        })
    }

    /// A given clock and source of random bytes.
    pub fn new(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        fill: impl Fn(&mut [u8]) + Send + Sync + 'static,
    ) -> Self {
        Self {
            now: Arc::new(now),
            fill: Arc::new(fill),
        }
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The current time as `metav1.Time`.
    pub fn now_text(&self) -> String {
        time_text(self.now())
    }

    /// A new object uid (RFC 4122 version 4).
    pub fn uid(&self) -> String {
        let mut bytes = [0u8; 16];
        (self.fill)(&mut bytes);
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
    }

    /// Five random letters, as the suffix of a generated name.
    pub fn suffix(&self) -> String {
        let mut bytes = [0u8; 5];
        (self.fill)(&mut bytes);
        bytes
            .iter()
            .map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()]))
            .collect()
    }

    /// That many random characters of `[a-z0-9]`, each equally likely.
    pub fn lower_alphanumeric(&self, length: usize) -> String {
        const CHARACTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut text = String::with_capacity(length);
        while text.len() < length {
            let mut byte = [0u8];
            (self.fill)(&mut byte);
            // 252 is the largest multiple of 36 in a byte; above it the first letters would come more often.
            if byte[0] < 252 {
                text.push(char::from(CHARACTERS[usize::from(byte[0]) % CHARACTERS.len()]));
            }
        }
        text
    }

    /// A random number below `bound` (0 if `bound` is 0).
    pub fn below(&self, bound: u32) -> u32 {
        let mut bytes = [0u8; 4];
        (self.fill)(&mut bytes);
        u32::from_le_bytes(bytes).checked_rem(bound).unwrap_or(0)
    }
}

fn fallback(bytes: &mut [u8]) {
    use std::hash::{BuildHasher, Hasher};
    for chunk in bytes.chunks_mut(8) {
        let word = std::collections::hash_map::RandomState::new()
            .build_hasher()
            .finish()
            .to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

/// `2026-11-24T06:30:00Z`: seconds in UTC, as `metav1.Time` is written.
pub fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_version_four_and_differ() {
        let environment = Environment::system();
        let (a, b) = (environment.uid(), environment.uid());
        assert_ne!(a, b);
        assert_eq!((a.len(), a.as_bytes()[14]), (36, b'4'));
        assert!(matches!(a.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }

    #[test]
    fn times_have_whole_seconds() {
        let time: Timestamp = "2026-11-24T06:30:01.75Z".parse().unwrap();
        assert_eq!(time_text(time), "2026-11-24T06:30:01Z");
    }
}
