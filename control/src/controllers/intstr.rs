//! `IntOrString`: a number, or a percentage of a total (apimachinery `util/intstr`).

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a fraction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To the next larger number: surge.
    Up,
    /// To the next smaller number: unavailability.
    Down,
}

/// The number meant, given the total. What is neither a number nor a percentage counts as zero (validation refuses it).
pub fn scaled(value: &IntOrString, total: i32, round: Round) -> i32 {
    let percent = match value {
        IntOrString::Int(number) => return *number,
        IntOrString::String(text) => text.strip_suffix('%').and_then(|p| p.parse::<i64>().ok()).unwrap_or(0),
    };
    let hundredths = percent.saturating_mul(total.into());
    let number = match round {
        Round::Up => hundredths.saturating_add(99).div_euclid(100),
        Round::Down => hundredths.div_euclid(100),
    };
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_told() {
        let quarter = IntOrString::String("25%".into());
        for (total, up, down) in [(0, 0, 0), (1, 1, 0), (3, 1, 0), (4, 1, 1), (5, 2, 1), (10, 3, 2)] {
            assert_eq!(scaled(&quarter, total, Round::Up), up, "{total} up");
            assert_eq!(scaled(&quarter, total, Round::Down), down, "{total} down");
        }
        assert_eq!(scaled(&IntOrString::Int(7), 3, Round::Up), 7);
        assert_eq!(scaled(&IntOrString::String("many".into()), 3, Round::Up), 0);
    }
}
