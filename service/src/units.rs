//! Times and sizes as people write them: `15s`, `500ms`, `24h`, `7d`; `256M`, `10G` (binary multiples).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use x509_parser::time::ASN1Time;

/// A length of time with its unit: `500ms`, `15s`, `5m`, `24h`, `7d`. Whole milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A number of bytes: `4096`, `64K`, `256M`, `10G`, `1T`. K is 1024, M 1024 times that, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Why a text is neither a [`Span`] nor a [`Size`]; its message shows the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError(String);

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UnitError {}

/// A number with its thousands set apart: `1234567` as `1,234,567`.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Seconds since 1970 as people talk of them: `2026-11-24 02:57:57 UTC`.
pub fn date(seconds: i64) -> String {
    let Ok(asn1) = ASN1Time::from_timestamp(seconds) else { return format!("{seconds} s after 1970") };
    let at = asn1.to_datetime();
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    format!("{}-{:02}-{:02} {hour:02}:{minute:02}:{second:02} UTC", at.year(), u8::from(at.month()), at.day())
}

/// Units of time with their milliseconds, largest first.
const TIMES: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];
/// Units of size with their bytes, largest first.
const SIZES: [(&str, u64); 5] = [("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("", 1)];

impl Span {
    /// A span of whole seconds.
    pub const fn seconds(seconds: u64) -> Span {
        Span(Duration::from_secs(seconds))
    }

    /// In milliseconds; a span that was read from a text always fits.
    pub fn as_ms(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let refuse = || wrong(text, "a time with its unit, like 500ms, 15s, 5m, 24h or 7d");
        read(text, &TIMES).map(|ms| Span(Duration::from_millis(ms))).ok_or_else(refuse)
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        read(text, &SIZES)
            .map(Size)
            .ok_or_else(|| wrong(text, "a size, like 64K, 256M or 10G, or bytes without a unit"))
    }
}

fn wrong(text: &str, form: &str) -> UnitError {
    UnitError(format!("\"{}\" is not {form}", text.escape_debug()))
}

/// The number in the smallest unit; `None` where there is no number, no such unit, or it is too large.
fn read(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Writes a number in the largest unit that divides it.
fn show(f: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)], zero: &str) -> fmt::Result {
    match units.iter().find(|(_, factor)| number.is_multiple_of(*factor)) {
        Some((unit, factor)) if number > 0 => write!(f, "{}{unit}", number / factor),
        _ => f.write_str(zero),
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.as_ms(), &TIMES, "0s")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, &SIZES, "0")
    }
}

impl Serialize for Span {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Size {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn forms() {
        for (text, ms) in
            [("15s", 15_000), ("500ms", 500), ("24h", 86_400_000), ("7d", 604_800_000), ("5m", 300_000), ("0s", 0)]
        {
            assert_eq!(text.parse::<Span>().map(Span::as_ms), Ok(ms), "{text}");
        }
        for (text, bytes) in [("256M", 256 << 20), ("10G", 10 << 30), ("4096", 4096), ("64K", 65536), ("0", 0)] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "15", "s", "-1s", "1.5s", "15 s", "1w", "18446744073709551615d", "１s"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["", "M", "1.5G", "10g", "10GB", "18446744073709551615K"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!("90s".parse::<Span>().expect("valid").to_string(), "90s");
        assert_eq!("120s".parse::<Span>().expect("valid").to_string(), "2m");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(number: u64) {
            prop_assert_eq!(Size(number).to_string().parse::<Size>(), Ok(Size(number)));
            let span = Span(Duration::from_millis(number));
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(1_800_000_000), "2027-01-15 08:00:00 UTC");
        assert!(date(i64::MAX).contains("s after 1970"));
    }

    #[test]
    fn thousands_are_set_apart() {
        for (value, text) in [(0, "0"), (999, "999"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(value), text);
        }
    }
}
