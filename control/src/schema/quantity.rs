//! Resource quantities: `100m`, `1.5Gi`, `2e3`, and their canonical form.
//!
//! Kubernetes stores a quantity in canonical form (`0.1` becomes `100m`, `1024Mi` becomes `1Gi`), so that equal amounts
//! compare equal as text. Amounts are exact to 10^-9, rounded away from zero, as in apimachinery's resource.Quantity.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;

/// An amount of a resource.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// How the amount was written, kept for the canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalExponent,
    DecimalSi,
    BinarySi,
}

/// The text is not a quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct ParseQuantityError;

impl Quantity {
    /// The amount in units of 10^-9.
    pub fn nanos(&self) -> i128 {
        self.nanos
    }

    /// The amount in thousandths, rounded up (CPU).
    pub fn millis(&self) -> i64 {
        clamp(divide_up(self.nanos, NANO / 1000))
    }

    /// The amount in whole units, rounded up (bytes, pods).
    pub fn units(&self) -> i64 {
        clamp(divide_up(self.nanos, NANO))
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Division rounding away from zero.
fn divide_up(amount: i128, by: i128) -> i128 {
    let quotient = amount / by;
    if amount % by == 0 {
        quotient
    } else {
        quotient + amount.signum()
    }
}

fn clamp(amount: i128) -> i64 {
    amount.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, ParseQuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let number = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, suffix) = rest.split_at(number);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(ParseQuantityError);
        }
        let (scale, format) = parse_suffix(suffix)?;
        let nanos = scaled(whole, fraction, scale).ok_or(ParseQuantityError)?;
        Ok(Quantity {
            nanos: if negative { -nanos } else { nanos },
            format,
        })
    }
}

/// A suffix's factor.
#[derive(Clone, Copy)]
enum Scale {
    Ten(i32),
    Two(u32),
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), ParseQuantityError> {
    let decimal = |power| Ok((Scale::Ten(power), Format::DecimalSi));
    let binary = |power| Ok((Scale::Two(power), Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(ParseQuantityError)?;
            let power: i32 = exponent.parse().map_err(|_| ParseQuantityError)?;
            if power.abs() > 60 {
                return Err(ParseQuantityError);
            }
            Ok((Scale::Ten(power), Format::DecimalExponent))
        }
    }
}

/// `whole.fraction` times the scale, in nanos; digits below a nano round away from zero. `None`: too large.
fn scaled(whole: &str, fraction: &str, scale: Scale) -> Option<i128> {
    let (mut power, factor) = match scale {
        Scale::Ten(power) => (power, 1),
        Scale::Two(power) => (0, 1i128 << power),
    };
    power += 9;
    let mut amount: i128 = 0;
    for digit in whole.bytes() {
        amount = amount.checked_mul(10)?.checked_add(i128::from(digit - b'0'))?;
    }
    let mut lost = false;
    for digit in fraction.bytes() {
        // Eighteen digits after the point are beyond what a nano can show, whatever the suffix.
        if amount < i128::MAX / 1_000_000_000_000_000_000_000 {
            amount = amount * 10 + i128::from(digit - b'0');
            power -= 1;
        } else {
            lost |= digit != b'0';
        }
    }
    amount = amount.checked_mul(factor)?;
    for _ in 0..power.max(0) {
        amount = amount.checked_mul(10)?;
    }
    for _ in power..0 {
        lost |= amount % 10 != 0;
        amount /= 10;
    }
    amount.checked_add(i128::from(lost))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.nanos.abs() >= 1024 * NANO {
            let mut units = divide_up(self.nanos, NANO);
            let mut power = 0;
            while units % 1024 == 0 && power < 6 {
                units /= 1024;
                power += 1;
            }
            return write!(f, "{units}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]);
        }
        let mut amount = self.nanos;
        let mut power = -9;
        while amount % 1000 == 0 && power < 18 {
            amount /= 1000;
            power += 3;
        }
        match (self.format, power) {
            (_, 0) => write!(f, "{amount}"),
            (Format::DecimalExponent, power) => write!(f, "{amount}e{power}"),
            (_, power) => write!(
                f,
                "{amount}{}",
                ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][(power + 9) as usize / 3]
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().unwrap().to_string()
    }

    #[test]
    fn canonical_forms_are_those_of_kubernetes() {
        for (text, expected) in [
            ("0", "0"),
            ("0.1", "100m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("2000", "2k"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("512Ki", "512Ki"),
            ("0.5Ki", "512"),
            ("1e3", "1e3"),
            ("12E6", "12e6"),
            ("-0.25", "-250m"),
            ("+3", "3"),
            ("100000000", "100M"),
            ("1.0000000001", "1000000001n"),
            (".5", "500m"),
            ("5.", "5"),
            ("1E", "1E"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in [
            "", "-", ".", "1.2.3", "1KB", "Gi", "1 Gi", "e3", "1e", "1e999", "ñ", "1mi", "0x10",
        ] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn amounts_round_up() {
        let parse = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(
            (parse("1n").millis(), parse("100m").units(), parse("250m").millis()),
            (1, 1, 250)
        );
        assert!(parse("1Gi") > parse("1G") && parse("1000m") == parse("1"));
    }

    proptest! {
        #[test]
        fn never_panics_and_is_stable(text in "[+-]?[0-9.]{0,40}(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e[+-]?[0-9]{1,3})?") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let written = quantity.to_string();
                prop_assert_eq!(written.parse::<Quantity>().unwrap().to_string(), written);
            }
        }
    }
}
