//! Points in time as events have them, for people: how long ago, how long between.

use std::time::Duration;

use chrono::{DateTime, NaiveDateTime};

use crate::base::ids::RunId;
use crate::base::span;

/// An event's time in milliseconds since 1970.
pub fn unix_ms(ts: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(ts).ok().map(|t| t.timestamp_millis())
}

/// When a run was made, in milliseconds since 1970: its id begins with it.
pub fn of_run(run: &RunId) -> Option<i64> {
    let stamp = run.as_str().get(..15)?;
    NaiveDateTime::parse_from_str(stamp, "%Y%m%d-%H%M%S").ok().map(|t| t.and_utc().timestamp_millis())
}

/// Milliseconds from one event to another; 0 where the clock was set back in between.
pub fn between(from: &str, to: &str) -> Option<u64> {
    let (from, to) = (unix_ms(from)?, unix_ms(to)?);
    Some(u64::try_from(to - from).unwrap_or(0))
}

/// So many milliseconds, for people.
pub fn ms(ms: u64) -> String {
    if ms < 1000 { format!("{ms} ms") } else { span::human(Duration::from_millis(ms)) }
}

/// The same where there is little room, rounded down: `96 s`, `42 min`, `30 h`.
pub fn short(ms: u64) -> String {
    match ms / 1000 {
        s @ 0..100 => format!("{s} s"),
        s @ 100..6000 => format!("{} min", s / 60),
        s @ 6000..360_000 => format!("{} h", s / 3600),
        s => format!("{} days", s / 86_400),
    }
}

/// How long before `now_ms` (since 1970) something was, for people.
pub fn ago(then_ms: i64, now_ms: u64) -> String {
    let passed = u64::try_from(i64::try_from(now_ms).unwrap_or(i64::MAX) - then_ms).unwrap_or(0);
    match passed / 1000 {
        s @ 0..60 => format!("{s} s ago"),
        s @ 60..3600 => format!("{} min ago", s / 60),
        s @ 3600..172_800 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}

/// The minute of the day of a point in time in milliseconds since 1970, with its date: `2026-01-02 14:05 UTC`.
pub fn minute(unix_ms: u64) -> String {
    let then = i64::try_from(unix_ms).ok().and_then(DateTime::from_timestamp_millis);
    then.map_or_else(|| "a day far away".to_owned(), |t| t.format("%Y-%m-%d %H:%M UTC").to_string())
}

/// The time of day of a point in time in milliseconds since 1970, as [`clock`] writes it.
pub fn time_of_day(unix_ms: i64) -> String {
    let then = DateTime::from_timestamp_millis(unix_ms);
    then.map_or_else(|| "??:??:??.???".to_owned(), |t| t.format("%H:%M:%S%.3f").to_string())
}

/// So many milliseconds after the beginning, in a form that has its columns: `+0:01:02.345`.
pub fn since(ms: u64) -> String {
    let s = ms / 1000;
    format!("+{}:{:02}:{:02}.{:03}", s / 3600, s / 60 % 60, s % 60, ms % 1000)
}

/// A point in time in milliseconds since 1970, as events have it.
pub fn stamp(unix_ms: i64) -> String {
    let then = DateTime::from_timestamp_millis(unix_ms).unwrap_or_default();
    then.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

/// The time of day of an event, `10:11:12.345`, in UTC as the log has it.
pub fn clock(ts: &str) -> &str {
    ts.get(11..23).unwrap_or(ts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_tells_when_it_was_made() {
        let run = RunId::new("20260102-030405-abc").unwrap();
        assert_eq!(of_run(&run), unix_ms("2026-01-02T03:04:05.000000Z"));
        assert_eq!(of_run(&RunId::new("nightly").unwrap()), None);
    }

    #[test]
    fn a_minute_has_its_date() {
        assert_eq!(minute(1_795_282_375_000), "2026-11-21 17:32 UTC");
        assert_eq!(minute(u64::MAX), "a day far away");
    }

    #[test]
    fn times_in_columns_are_equally_long() {
        let ts = "2026-01-02T03:04:05.070Z";
        assert_eq!(time_of_day(unix_ms(ts).unwrap()), clock(ts));
        assert_eq!(time_of_day(i64::MAX).len(), clock(ts).len());
        assert_eq!([0, 62_345, 36_000_000].map(since), ["+0:00:00.000", "+0:01:02.345", "+10:00:00.000"]);
    }

    #[test]
    fn a_clock_that_was_set_back_gives_no_negative_time() {
        assert_eq!(between("2026-01-02T03:04:06Z", "2026-01-02T03:04:05Z"), Some(0));
        assert_eq!(between("2026-01-02T03:04:05.5Z", "2026-01-02T03:04:06Z"), Some(500));
        assert_eq!(ago(10_000, 5_000), "0 s ago");
    }
}
