//! A histogram of durations for measurements: log-linear like HdrHistogram, 64 parts to each power of two.
//!
//! Values are nanoseconds; whatever is read back differs from what went in by at most one part in 64 (1.6 %).

/// Parts of each power of two.
const PARTS_BITS: u32 = 6;
const PARTS: usize = 1 << PARTS_BITS;
/// Values at and above 2^36 ns (69 s) share the last bucket.
const MAX_BITS: u32 = 36;
const BUCKETS: usize = PARTS * (MAX_BITS - PARTS_BITS + 1) as usize;

/// Counts of durations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hdr {
    counts: Box<[u64]>,
    count: u64,
    sum: u128,
    min: u64,
    max: u64,
}

impl Default for Hdr {
    fn default() -> Self {
        Hdr {
            counts: vec![0; BUCKETS].into(),
            count: 0,
            sum: 0,
            min: u64::MAX,
            max: 0,
        }
    }
}

fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.min((1 << MAX_BITS) - 1);
    let shift = (63 - (value | 1).leading_zeros()).saturating_sub(PARTS_BITS);
    let index = u64::from(shift) * PARTS as u64 + (value >> shift);
    usize::try_from(index).unwrap_or(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_bound(bucket: usize) -> u64 {
    if bucket < 2 * PARTS {
        return bucket as u64;
    }
    let shift = bucket / PARTS - 1;
    (((PARTS + bucket % PARTS) as u64 + 1) << shift) - 1
}

impl Hdr {
    /// Counts a duration.
    pub fn record(&mut self, nanoseconds: u64) {
        self.counts[bucket(nanoseconds)] += 1;
        self.count += 1;
        self.sum += u128::from(nanoseconds);
        self.min = self.min.min(nanoseconds);
        self.max = self.max.max(nanoseconds);
    }

    /// Adds all that another one counted.
    pub fn merge(&mut self, other: &Hdr) {
        for (own, more) in self.counts.iter_mut().zip(&other.counts) {
            *own += more;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Hdr::default();
    }

    /// How many were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest; zero if there is none.
    #[must_use]
    pub fn min(&self) -> u64 {
        if self.count == 0 { 0 } else { self.min }
    }

    /// The largest.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean; zero if there is none.
    #[must_use]
    pub fn mean(&self) -> u64 {
        let mean = self.sum.checked_div(u128::from(self.count)).unwrap_or_default();
        u64::try_from(mean).unwrap_or(u64::MAX)
    }

    /// The value below or at which a share of all (0 to 1) lies.
    #[must_use]
    pub fn quantile(&self, share: f64) -> u64 {
        let rank = ((share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper_bound(index).clamp(self.min, self.max);
            }
        }
        self.max
    }

    /// Upper bound and count of each bucket that has any.
    #[must_use]
    pub fn buckets(&self) -> Vec<(u64, u64)> {
        let filled = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        filled
            .map(|(index, count)| (upper_bound(index).clamp(self.min, self.max), *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_contiguous() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(upper_bound(index)), index);
            assert!(index == 0 || bucket(upper_bound(index - 1) + 1) == index, "{index}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn an_empty_one_says_nothing() {
        let hdr = Hdr::default();
        assert_eq!((hdr.count(), hdr.min(), hdr.max(), hdr.mean()), (0, 0, 0, 0));
        assert_eq!(hdr.quantile(0.5), 0);
        assert!(hdr.buckets().is_empty());
    }

    proptest! {
        #[test]
        fn quantiles_are_within_a_part_in_64_of_the_sorted_values(
            mut values in prop::collection::vec(0u64..10_000_000_000, 1..300),
            share in 0.0f64..=1.0,
        ) {
            let mut hdr = Hdr::default();
            values.iter().for_each(|value| hdr.record(*value));
            values.sort_unstable();
            let rank = ((share * values.len() as f64).ceil() as usize).max(1);
            let (exact, found) = (values[rank - 1], hdr.quantile(share));
            prop_assert!(found >= exact && found - exact <= exact / 64 + 1, "{} for {}", found, exact);
        }

        #[test]
        fn merging_is_recording_all_in_one(
            left in prop::collection::vec(any::<u64>(), 0..50),
            right in prop::collection::vec(any::<u64>(), 0..50),
        ) {
            let of = |values: &[u64]| {
                let mut hdr = Hdr::default();
                values.iter().for_each(|value| hdr.record(*value));
                hdr
            };
            let mut merged = of(&left);
            merged.merge(&of(&right));
            prop_assert_eq!(merged, of(&[left, right].concat()));
        }
    }
}
