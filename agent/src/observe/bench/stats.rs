//! What one path costs more than another, and how sure that is.
//!
//! Paths are measured in alternating rounds, so that both see the same machine in the same minute. The unit is the
//! round: its two medians make one ratio, and the interval comes from drawing rounds anew (percentile bootstrap of
//! the geometric mean). Pooling all requests instead would pretend that they are independent.

use serde::{Deserialize, Serialize};

/// How often rounds are drawn anew.
const RESAMPLES: usize = 10_000;
/// Fewer rounds say nothing about how much they vary.
const ROUNDS_MIN: usize = 3;
/// Ends of the 95 % interval.
const TAILS: (f64, f64) = (0.025, 0.975);
/// Any odd number: the same rounds shall give the same interval.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The cost of a path relative to another one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Overhead {
    /// Geometric mean of the rounds' ratios of medians; 1 is no overhead.
    pub ratio: f64,
    /// Lower end of the 95 % confidence interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Rounds that both paths have a median in.
    pub rounds: usize,
}

/// Compares medians round by round; zeros are rounds without a result. `None` with too few rounds.
#[must_use]
pub fn overhead(path: &[u64], against: &[u64]) -> Option<Overhead> {
    let logs: Vec<f64> = path
        .iter()
        .zip(against)
        .filter(|(own, other)| **own > 0 && **other > 0)
        .map(|(own, other)| (*own as f64 / *other as f64).ln())
        .collect();
    if logs.len() < ROUNDS_MIN {
        return None;
    }
    let mut random = SEED;
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..logs.len()).map(|_| logs[below(&mut random, logs.len())]);
            drawn.sum::<f64>() / logs.len() as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((share * RESAMPLES as f64) as usize).min(RESAMPLES - 1)].exp();
    Some(Overhead {
        ratio: (logs.iter().sum::<f64>() / logs.len() as f64).exp(),
        low: at(TAILS.0),
        high: at(TAILS.1),
        rounds: logs.len(),
    })
}

/// A number below `limit` (xorshift64*).
fn below(state: &mut u64, limit: usize) -> usize {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    let high = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
    usize::try_from((high * limit as u64) >> 32).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_paths_have_no_overhead() {
        let found = overhead(&[100, 120, 90, 100], &[100, 120, 90, 100]).unwrap();
        assert_eq!((found.ratio, found.low, found.high, found.rounds), (1.0, 1.0, 1.0, 4));
    }

    #[test]
    fn a_drift_of_the_machine_cancels_within_the_rounds() {
        let direct: Vec<u64> = (0..20).map(|round| 1_000 + 500 * round).collect();
        let slower: Vec<u64> = direct.iter().map(|median| median * 11 / 10).collect();
        let found = overhead(&slower, &direct).unwrap();
        assert!(
            (found.ratio - 1.1).abs() < 1e-3 && found.high - found.low < 1e-3,
            "{found:?}"
        );
    }

    #[test]
    fn noise_widens_the_interval_around_the_ratio() {
        let direct = [100; 12];
        let noisy = [90, 115, 95, 110, 100, 105, 92, 113, 97, 108, 101, 104];
        let found = overhead(&noisy, &direct).unwrap();
        assert!(found.low < 1.0 && found.high > 1.02, "{found:?}");
        assert!(found.low < found.ratio && found.ratio < found.high, "{found:?}");
        assert_eq!(
            overhead(&noisy, &direct),
            Some(found),
            "the same rounds give the same interval"
        );
    }

    #[test]
    fn rounds_without_a_result_do_not_count() {
        assert_eq!(overhead(&[100, 0, 100, 100], &[100, 100, 100, 0]), None);
        assert_eq!(overhead(&[], &[]), None);
    }
}
