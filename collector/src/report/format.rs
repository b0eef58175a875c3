//! Numbers and times as people read them. Units are decimal, as providers count: 1 kB is 1000 octets.

#![forbid(unsafe_code)]

use std::borrow::Cow;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

/// Text that is safe inside HTML elements and double-quoted attributes.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(|c: char| matches!(c, '&' | '<' | '>' | '"' | '\'') || c.is_control()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// An address as HTML: it breaks nowhere but after a colon, so that a long IPv6 address fits a phone.
pub fn address(text: &str) -> String {
    escape(text).replace(':', ":<wbr>")
}

/// Octets with three significant digits: `1.23 GB`.
pub fn octets(value: u64) -> String {
    scaled(value as f64, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A rate with three significant digits: `93.2 Mbit/s`.
pub fn rate(bits_per_second: f64) -> String {
    scaled(bits_per_second, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s", "Ebit/s"])
}

fn scaled(value: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    // 999.5 would be written as 1000: it belongs to the next unit.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 && value.fract() == 0.0 => 0,
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    // A no-break space: a number is never parted from its unit.
    format!("{value:.decimals$}\u{a0}{}", units[unit])
}

/// A part of a whole: `12.3 %`. Small parts are not rounded to nothing.
pub fn share(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
    match percent {
        _ if part == 0 => "0\u{a0}%".to_owned(),
        percent if percent < 0.1 => "<\u{a0}0.1\u{a0}%".to_owned(),
        percent => format!("{percent:.1}\u{a0}%"),
    }
}

/// The change from `before` to `now`; `None` where there was nothing before.
pub fn change(now: u64, before: u64) -> Option<String> {
    if before == 0 {
        return None;
    }
    let ratio = now as f64 / before as f64;
    Some(match (ratio - 1.0) * 100.0 {
        _ if ratio >= 10.0 => format!("×\u{a0}{ratio:.0}"),
        percent if percent.abs() < 0.05 => "±\u{a0}0\u{a0}%".to_owned(),
        percent if percent < 0.0 => format!("−{:.1}\u{a0}%", -percent),
        percent => format!("+{percent:.1}\u{a0}%"),
    })
}

/// A point in time in the report's time zone. Times that a calendar cannot hold become its nearest end.
pub fn zoned(time_ms: i64, tz: &TimeZone) -> ZonedDateTime {
    let nearest = if time_ms < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_millisecond(time_ms).unwrap_or(nearest).to_zoned_datetime(tz.clone())
}

/// RFC 3339 with the time zone's offset, for CSV files.
pub fn rfc3339(time_ms: i64, tz: &TimeZone) -> String {
    zoned(time_ms, tz).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// `Asia/Tokyo (UTC+09:00)`.
pub fn zone(tz: &TimeZone, time_ms: i64) -> String {
    let at = zoned(time_ms, tz);
    match tz.iana_name() {
        Some("UTC" | "Etc/UTC") => "UTC".to_owned(),
        Some(name) => format!("{name} (UTC{})", at.strftime("%:z")),
        None => format!("UTC{}", at.strftime("%:z")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: String) -> String {
        text.replace('\u{a0}', " ")
    }

    #[test]
    fn numbers() {
        for (value, text) in [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_499, "999 kB")] {
            assert_eq!(plain(octets(value)), text);
        }
        assert_eq!(plain(octets(999_500)), "1.00 MB");
        assert_eq!(plain(octets(u64::MAX)), "18.4 EB");
        assert_eq!(plain(rate(93_240_000.0)), "93.2 Mbit/s");
        assert_eq!(plain(rate(0.25)), "0.25 bit/s");
        assert_eq!(plain(share(1, 3)), "33.3 %");
        assert_eq!(plain(share(1, 1_000_000)), "< 0.1 %");
        assert_eq!(plain(share(0, 0)), "0 %");
        assert_eq!(change(1, 0), None);
        assert_eq!(change(110, 100).map(plain).as_deref(), Some("+10.0 %"));
        assert_eq!(change(50, 100).map(plain).as_deref(), Some("−50.0 %"));
        assert_eq!(change(10_000, 100).map(plain).as_deref(), Some("× 100"));
    }

    #[test]
    fn hostile_text_is_inert() {
        assert_eq!(
            escape("<script>alert('x')</script>&\""),
            "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;"
        );
        assert_eq!(escape("a\u{0}b\u{1b}[31m"), "a\u{fffd}b\u{fffd}[31m");
        assert!(matches!(escape("株式会社例"), Cow::Borrowed(_)));
    }

    #[test]
    fn times() {
        let tokyo = TimeZone::get("Asia/Tokyo").expect("the time zone database (tzdata) is installed");
        assert_eq!(rfc3339(0, &tokyo), "1970-01-01T09:00:00+09:00");
        assert_eq!(zone(&tokyo, 0), "Asia/Tokyo (UTC+09:00)");
        assert_eq!(zone(&TimeZone::UTC, 0), "UTC");
        zoned(i64::MAX, &tokyo);
        zoned(i64::MIN, &tokyo);
    }
}
