//! Histograms as the kernel counts them, added up over backends and nodes, and what can be read from them.
//!
//! Adding is exact; a quantile is known up to the width of its bucket, an eighth of the value at most.

use std::collections::BTreeMap;

use hull_ebpf_types::observe::{BUCKETS, Histogram, bucket, lower_bound};
use serde::{Deserialize, Serialize};

/// Counts by bucket, those that are not zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// How many fell into each bucket of [`hull_ebpf_types::observe`].
    #[serde(with = "pairs")]
    pub counts: BTreeMap<usize, u64>,
    /// Sum of all values, in microseconds.
    pub sum: u64,
}

impl From<&Histogram> for Latencies {
    fn from(histogram: &Histogram) -> Self {
        let counts = histogram.counts.iter().copied().enumerate();
        Latencies {
            counts: counts.filter(|(_, count)| *count > 0).collect(),
            sum: histogram.sum,
        }
    }
}

impl Latencies {
    /// Adds another one.
    pub fn add(&mut self, other: &Latencies) {
        for (bucket, count) in &other.counts {
            *self.counts.entry(*bucket).or_default() += count;
        }
        self.sum += other.sum;
    }

    /// What was counted since `earlier`; all of it if that counted more (it is of a predecessor).
    #[must_use]
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        let mut counts = BTreeMap::new();
        for (bucket, count) in &self.counts {
            let Some(more) = count.checked_sub(earlier.counts.get(bucket).copied().unwrap_or_default()) else {
                return self.clone();
            };
            if more > 0 {
                counts.insert(*bucket, more);
            }
        }
        Latencies {
            counts,
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The value at or below which a share of all (0 to 1) lies, in microseconds; `None` if there are none.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let rank = (share.clamp(0.0, 1.0) * count as f64).max(1.0);
        let mut seen = 0.0;
        for (bucket, count) in &self.counts {
            let count = *count as f64;
            if seen + count >= rank {
                let (low, high) = (lower_bound(*bucket) as f64, lower_bound(bucket + 1) as f64);
                // Evenly spread within a bucket, for all that is known.
                return Some(low + (high - low) * (rank - seen) / count);
            }
            seen += count;
        }
        None
    }

    /// How many took less than so many microseconds, a power of two.
    #[must_use]
    pub fn below(&self, microseconds: u32) -> u64 {
        let end = bucket(microseconds).min(BUCKETS);
        self.counts.range(..end).map(|(_, count)| count).sum()
    }
}

/// Numbers cannot be keys in JSON: buckets and counts go as a list of pairs.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(counts: &BTreeMap<usize, u64>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(counts)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<usize, u64>, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[u32]) -> Latencies {
        let mut all = Latencies::default();
        for value in values {
            *all.counts.entry(bucket(*value)).or_default() += 1;
            all.sum += u64::from(*value);
        }
        all
    }

    #[test]
    fn nothing_has_no_quantile() {
        assert_eq!(Latencies::default().quantile(0.5), None);
    }

    #[test]
    fn what_was_before_is_taken_away() {
        let (earlier, later) = (of(&[5, 100]), of(&[5, 100, 100, 900]));
        assert_eq!(later.since(&earlier), of(&[100, 900]));
        assert_eq!(earlier.since(&later), earlier, "the counter began anew");
    }

    #[test]
    fn powers_of_two_cut_between_buckets() {
        let all = of(&[15, 16, 17, 31, 32, 5_000_000]);
        assert_eq!([16, 32, 64].map(|bound| all.below(bound)), [1, 4, 5]);
    }

    proptest! {
        #[test]
        fn a_quantile_is_within_its_bucket(mut values in prop::collection::vec(0u32..1 << 23, 1..200), share in 0.0f64..=1.0) {
            let found = of(&values).quantile(share).unwrap();
            values.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).max(1);
            let exact = f64::from(values[rank - 1]);
            prop_assert!((found - exact).abs() <= exact / 8.0 + 1.0, "{} for {}", found, exact);
        }

        #[test]
        fn adding_is_counting_all_together(left in prop::collection::vec(any::<u32>(), 0..50), right in prop::collection::vec(any::<u32>(), 0..50)) {
            let mut sum = of(&left);
            sum.add(&of(&right));
            prop_assert_eq!(&sum, &of(&[left.clone(), right].concat()));
        }
    }
}
