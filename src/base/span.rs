//! Durations as people write them in configs and plans: `"250ms"`, `"30s"`, `"10m"`, `"4h"`, `"1.5s"`, and limits that
//! may be `"none"`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A duration of at most 366 days, kept in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

/// The longest duration that is accepted.
const MAX_MS: u64 = 366 * 24 * 3600 * 1000;

impl Span {
    /// A duration of so many milliseconds.
    pub const fn from_ms(ms: u64) -> Self {
        Span(ms)
    }

    /// A duration of so many seconds.
    pub const fn from_secs(s: u64) -> Self {
        Span(s * 1000)
    }

    /// In milliseconds.
    pub const fn as_ms(self) -> u64 {
        self.0
    }

    /// As the standard library's type.
    pub const fn to_std(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// Reads `"30s"`, `"1.5m"`, `"250ms"`, `"4h"`, `"2d"`. `None` for anything else, for negative values and for more than
    /// 366 days.
    pub fn parse(s: &str) -> Option<Self> {
        let s = s.trim();
        let unit_at = s.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = s.split_at(unit_at);
        let number = number.trim_end();
        let factor: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit());
        if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') || fraction.len() > 6 {
            return None;
        }
        let mut ms = whole.parse::<u64>().ok()?.checked_mul(factor)?;
        if !fraction.is_empty() {
            let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
            ms = ms.checked_add(fraction.parse::<u64>().ok()?.checked_mul(factor)? / scale)?;
        }
        (ms <= MAX_MS).then_some(Span(ms))
    }
}

impl fmt::Display for Span {
    /// The shortest exact form, as it would be written in a config.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms if ms == 0 || ms % 1000 != 0 => write!(f, "{ms}ms"),
            ms if ms % 3_600_000 == 0 => write!(f, "{}h", ms / 3_600_000),
            ms if ms % 60_000 == 0 => write!(f, "{}m", ms / 60_000),
            ms => write!(f, "{}s", ms / 1000),
        }
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Span::parse(&s).ok_or_else(|| serde::de::Error::custom("a duration is written \"30s\", \"10m\", \"4h\""))
    }
}

/// A time limit: a duration, or `"none"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<Span>);

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(span) => s.collect_str(&span),
            None => s.serialize_str("none"),
        }
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let s = std::borrow::Cow::<'de, str>::deserialize(d)?;
        if s == "none" {
            return Ok(Limit(None));
        }
        let span = Span::parse(&s);
        span.map(|s| Limit(Some(s)))
            .ok_or_else(|| serde::de::Error::custom("a limit is written \"30s\", \"10m\", \"4h\" or \"none\""))
    }
}

/// A duration for people, rounded to what matters: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`.
pub fn human(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..10 => format!("{}.{} s", s, d.subsec_millis() / 100),
        10..60 => format!("{s} s"),
        60..3600 if s.is_multiple_of(60) => format!("{} min", s / 60),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ if (s / 60).is_multiple_of(60) => format!("{} h", s / 3600),
        _ => format!("{} h {} min", s / 3600, (s / 60) % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_back() {
        for (text, ms) in [("250ms", 250), ("30s", 30_000), ("10m", 600_000), ("4h", 14_400_000), ("0ms", 0)] {
            let span = Span::parse(text).unwrap();
            assert_eq!(span.as_ms(), ms);
            assert_eq!(span.to_string(), text);
        }
        assert_eq!(Span::parse("1.5s"), Some(Span::from_ms(1500)));
        assert_eq!(Span::parse("90 s"), Some(Span::from_ms(90_000)));
        for bad in ["", "s", "5", "-1s", "1.s", ".5s", "1e3s", "99999999999999h", "367d", "1 fortnight", "+1s"] {
            assert_eq!(Span::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn people_read_rounded_durations() {
        for (ms, text) in [(430, "0.4 s"), (12_900, "12 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min")] {
            assert_eq!(human(Duration::from_millis(ms)), text);
        }
    }
}
