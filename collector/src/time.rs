//! Times as people write them.

#![forbid(unsafe_code)]

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use std::fmt;

/// A text that is no time, or no time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TimeError {
    /// No time.
    Time(String),
    /// No time zone.
    Zone(String),
}

impl fmt::Display for TimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TimeError::Time(text) => write!(
                f,
                "\"{text}\" is not a time: write 2026-11-24, 2026-11-24T10:00, 2026-11-24T10:00:00+09:00, \
                 @1795519800000 (milliseconds since 1970 UTC), now, or -24h"
            ),
            TimeError::Zone(text) => write!(f, "\"{text}\" is not a time zone: write UTC or a name such as Asia/Tokyo"),
        }
    }
}

impl std::error::Error for TimeError {}

/// The time that `text` means, in milliseconds since 1970 UTC: a date or a date and time in `zone`, RFC 3339 with its own
/// offset, `@` and milliseconds since 1970 UTC, `now`, or `-` and a span before `now_ms` (`-90m`, `-24h`, `-7d`; a day is
/// a day of `zone`).
///
/// # Errors
/// It means none of these.
pub fn parse_time(text: &str, zone: &TimeZone, now_ms: i64) -> Result<i64, TimeError> {
    let text = text.trim();
    let parsed = if text == "now" {
        Some(now_ms)
    } else if let Some(number) = text.strip_prefix('@') {
        number.parse().ok()
    } else if let Some(span) = text.strip_prefix('-') {
        before(span, zone, now_ms)
    } else if let Ok(time) = text.parse::<Timestamp>() {
        Some(time.as_millisecond())
    } else {
        let civil = text.parse::<DateTime>().and_then(|date| date.to_zoned_datetime(zone.clone()));
        civil.ok().map(|time| time.timestamp().as_millisecond())
    };
    parsed.ok_or_else(|| TimeError::Time(text.to_owned()))
}

fn before(span: &str, zone: &TimeZone, now_ms: i64) -> Option<i64> {
    // A span may carry a sign or a direction of its own ("-24h ago"): two of them mean nothing.
    let span: Span = span.parse().ok().filter(Span::is_positive)?;
    let now = Timestamp::from_millisecond(now_ms).ok()?.to_zoned_datetime(zone.clone());
    Some(now.checked_sub(span).ok()?.timestamp().as_millisecond())
}

/// The time zone of that name in the IANA database.
///
/// # Errors
/// There is none.
pub fn parse_zone(name: &str) -> Result<TimeZone, TimeError> {
    TimeZone::get(name.trim()).map_err(|_| TimeError::Zone(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW_MS: i64 = 1_795_519_800_000; // 2026-11-24T11:30:00Z

    #[test]
    fn times_are_understood() {
        let tokyo = parse_zone("Asia/Tokyo").expect("the zone exists");
        let new_york = parse_zone("America/New_York").expect("the zone exists");
        for (text, zone, expected) in [
            ("now", &tokyo, NOW_MS),
            ("@0", &tokyo, 0),
            ("@1795519800000", &tokyo, NOW_MS),
            ("2026-11-24T11:30:00Z", &tokyo, NOW_MS),
            ("2026-11-24T20:30:00.000+09:00", &new_york, NOW_MS),
            ("2026-11-24T20:30", &tokyo, NOW_MS),
            ("2026-11-24 20:30:00", &tokyo, NOW_MS),
            (" 2026-11-24 ", &tokyo, NOW_MS - (20 * 60 + 30) * 60_000),
            ("-24h", &tokyo, NOW_MS - 86_400_000),
            ("-90m", &tokyo, NOW_MS - 5_400_000),
            ("-1h 30m", &tokyo, NOW_MS - 5_400_000),
            ("-7d", &tokyo, NOW_MS - 7 * 86_400_000),
            // Across the end of summer time (2026-11-01) 30 days are an hour longer.
            ("-30d", &new_york, NOW_MS - 30 * 86_400_000 - 3_600_000),
            ("-30d", &tokyo, NOW_MS - 30 * 86_400_000),
        ] {
            assert_eq!(parse_time(text, zone, NOW_MS), Ok(expected), "{text}");
        }
    }

    #[test]
    fn refusals_show_the_right_form() {
        for text in ["", "-", "@", "@1.5", "24h", "--24h", "-24h ago", "2026-13-01", "2026-11-24T25:00", "yesterday"] {
            let error = parse_time(text, &TimeZone::UTC, NOW_MS).expect_err(text).to_string();
            assert!(error.contains("-24h") && error.starts_with(&format!("\"{text}\"")), "{error}");
        }
        let error = parse_zone("Tokio/Asia").expect_err("no such zone").to_string();
        assert!(error.contains("Asia/Tokyo"), "{error}");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in any::<String>(), now_ms in any::<i64>()) {
            let _ = parse_time(&text, &TimeZone::UTC, now_ms);
            let _ = parse_time(&format!("-{text}"), &TimeZone::UTC, now_ms);
        }
    }
}
