//! Resource quantities (`100m`, `1.5Gi`, `2e3`) as whole numbers.
//!
//! Kept as an integer count of nano-units, so nothing is lost in arithmetic; rounding is upwards, as in Kubernetes'
//! `Quantity.Value()` and `MilliValue()`.

/// A parsed quantity, in billionths of its unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amount(i128);

const NANO: i128 = 1_000_000_000;

impl Amount {
    /// Parses Kubernetes' quantity syntax; `None` when it is not a quantity.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, suffix) = split_suffix(text.trim());
        let scale = scale(suffix)?;
        let (sign, digits) = match number.as_bytes().first()? {
            b'-' => (-1, &number[1..]),
            b'+' => (1, &number[1..]),
            _ => (1, number),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let all: String = format!("{whole}{fraction}");
        if !all.bytes().all(|b| b.is_ascii_digit()) || all.len() > 24 {
            return None;
        }
        let mantissa: i128 = all.parse().ok()?;
        let divisor = 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let scaled = mantissa.checked_mul(scale)?;
        Some(Amount(sign * ceil_div(scaled, divisor)))
    }

    /// A whole number of units.
    #[must_use]
    pub const fn units(count: i128) -> Self {
        Amount(count * NANO)
    }

    /// Units, rounded up.
    #[must_use]
    pub fn value(self) -> i64 {
        clamp(ceil_div(self.0, NANO))
    }

    /// Thousandths of a unit, rounded up.
    #[must_use]
    pub fn milli(self) -> i64 {
        clamp(ceil_div(self.0, NANO / 1000))
    }

    /// How many times `divisor` fits, rounded up: what a `resourceFieldRef` yields.
    #[must_use]
    pub fn divided_by(self, divisor: Amount) -> i64 {
        if divisor.0 <= 0 {
            self.value()
        } else {
            clamp(ceil_div(self.0, divisor.0))
        }
    }

    /// Whether the quantity is zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl std::ops::Add for Amount {
    type Output = Amount;
    fn add(self, other: Amount) -> Amount {
        Amount(self.0.saturating_add(other.0))
    }
}

fn split_suffix(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    text.split_at(end)
}

/// Nano-units per unit of `suffix`.
fn scale(suffix: &str) -> Option<i128> {
    let decimal = |power: u32| 10i128.checked_pow(power);
    let binary = |power: u32| 1024i128.checked_pow(power).and_then(|n| n.checked_mul(NANO));
    match suffix {
        "n" => Some(1),
        "u" => decimal(3),
        "m" => decimal(6),
        "" => decimal(9),
        "k" => decimal(12),
        "M" => decimal(15),
        "G" => decimal(18),
        "T" => decimal(21),
        "P" => decimal(24),
        "E" => decimal(27),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        exponent => {
            let power: i32 = exponent
                .strip_prefix('e')
                .or_else(|| exponent.strip_prefix('E'))?
                .parse()
                .ok()?;
            decimal(u32::try_from(power.checked_add(9)?).ok()?)
        }
    }
}

fn ceil_div(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_parse_as_kubernetes_reads_them() {
        for (text, milli) in [
            ("100m", 100),
            ("1", 1000),
            ("0.5", 500),
            ("1.5Gi", 1_610_612_736_000),
            ("2e3", 2_000_000),
            ("1k", 1_000_000),
        ] {
            assert_eq!(Amount::parse(text).map(Amount::milli), Some(milli), "{text}");
        }
        assert_eq!(Amount::parse("1n").map(Amount::milli), Some(1), "rounds up");
        for bad in ["", "abc", "1.2.3", "1x", "--1", "."] {
            assert_eq!(Amount::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn divisors_round_up() {
        let mebibyte = Amount::parse("1Mi").unwrap();
        assert_eq!(Amount::parse("1500Ki").unwrap().divided_by(mebibyte), 2);
        assert_eq!(Amount::parse("250m").unwrap().divided_by(Amount::units(1)), 1);
    }
}
