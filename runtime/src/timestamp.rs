//! Times as records and logs have them: RFC 3339, UTC, nanoseconds. Without a calendar library: this is all there is to it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Now, in nanoseconds since 1970.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC with nanoseconds, from nanoseconds since 1970.
pub fn rfc3339(nanos: i64) -> String {
    let (date, second) = (civil(nanos), nanos.div_euclid(1_000_000_000).rem_euclid(86_400));
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        date.0,
        date.1,
        date.2,
        second / 3600,
        second / 60 % 60,
        second % 60,
        nanos.rem_euclid(1_000_000_000)
    )
}

/// Year, month, day (Gregorian) of a time; from days since 1970, in 400-year eras that begin in March.
fn civil(nanos: i64) -> (i64, i64, i64) {
    let days = nanos.div_euclid(86_400 * 1_000_000_000) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400_000_000_007), "2000-02-29T00:00:00.000000007Z");
        assert_eq!(rfc3339(4_107_542_399_999_999_999), "2100-02-28T23:59:59.999999999Z");
        assert_eq!(rfc3339(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
    }
}
