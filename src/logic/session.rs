//! When an idle session is woken, and what one session is told about the runs of another, as pure functions. A wake has no
//! cap in the client: whatever bounds it stands here.

use std::fmt::Write as _;
use std::time::Duration;

use crate::base::text;
use crate::logic::view::View;

/// Wakes of a session within [`WINDOW_MS`], at most.
pub const MAX_WAKES: usize = 6;

/// The time in which they are counted, in milliseconds.
pub const WINDOW_MS: u64 = 60_000;

/// The longest wait without looking whether something was missed.
pub const LOOK: Duration = Duration::from_mins(1);

/// For how many milliseconds a session that was woken at these times (`CLOCK_MONOTONIC`, oldest first) is to be left alone.
pub fn pause(woken: &[u64], now_ms: u64) -> u64 {
    // A time that lies ahead is of another boot.
    let recent: Vec<u64> = woken.iter().copied().filter(|at| *at <= now_ms && now_ms - at < WINDOW_MS).collect();
    let oldest = recent.len().checked_sub(MAX_WAKES).map(|spare| recent[spare]);
    oldest.map_or(0, |at| at + WINDOW_MS - now_ms)
}

/// What who watches over a session sees of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Seen {
    /// The client that called the watcher lives.
    pub client_lives: bool,
    /// The session has ended, goes on in another client, or cpw is off in it.
    pub over: bool,
    /// It has a run that is open and may wake it.
    pub runs: bool,
    /// Some of them has news.
    pub news: bool,
    /// Its turn has ended, and the user was not the one who ended it.
    pub idle: bool,
    /// For how long it is to be left alone, in milliseconds.
    pub pause_ms: u64,
}

/// What the watcher does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It leaves.
    Leave,
    /// It looks again when it is rung, and after this long.
    Wait(Duration),
    /// It wakes the session.
    Wake,
}

/// What the watcher does next. A turn that goes on gets its news after each step, and when it stops; so the watcher waits
/// for its end.
pub fn next(seen: &Seen) -> Next {
    if !seen.client_lives || seen.over || !seen.runs {
        Next::Leave
    } else if !seen.news || !seen.idle {
        Next::Wait(LOOK)
    } else if seen.pause_ms > 0 {
        Next::Wait(Duration::from_millis(seen.pause_ms).min(LOOK))
    } else {
        Next::Wake
    }
}

/// A run in a few words: `run ID of rule analyze, 2 of 4 tasks done`.
fn run_in_words(view: &View) -> String {
    let mut out = format!("run {}", view.run);
    if let Some(rule) = &view.rule {
        let _ = write!(out, " of rule {}", text::name_for_model(rule, 60));
    }
    let counts = view.counts;
    let _ = write!(out, ", {} of {} tasks done", counts.done, counts.total);
    if counts.failed > 0 {
        let _ = write!(out, ", {} failed", counts.failed);
    }
    out
}

/// What the session behind a `/clear` is told of a run of the one before it.
pub fn goes_on(view: &View, shown: &str) -> String {
    let verb = if view.ended.is_some() { "has ended" } else { "goes on" };
    format!(
        "cpw: {} {verb} although this conversation was cleared. It is not reported here; its results are below \
         {shown}/workers, and `cpw status {}` shows it. `cpw adopt {}` makes it report here.",
        run_in_words(view),
        view.run,
        view.run
    )
}

/// What the user is told of a run whose client has gone.
pub fn orphaned(view: &View) -> String {
    let what = if view.ended.is_some() { "has ended, but nobody was told" } else { "goes on without its session" };
    format!("cpw: {} {what}; `cpw adopt {}` takes it over into this one", run_in_words(view), view.run)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};

    #[test]
    fn a_storm_wakes_six_times_a_minute_and_no_more() {
        // Somebody wants to wake it every 10 ms for five minutes.
        let mut all: Vec<u64> = Vec::new();
        let mut kept: Vec<u64> = Vec::new();
        for now in (100_000..400_000).step_by(10) {
            if pause(&kept, now) == 0 {
                all.push(now);
                kept.push(now);
                let spare = kept.len().saturating_sub(MAX_WAKES);
                kept.drain(..spare);
            }
        }
        assert_eq!(all.len(), 30, "{all:?}");
        for (i, at) in all.iter().enumerate() {
            let within = all[i..].iter().take_while(|t| *t - at < WINDOW_MS).count();
            assert!(within <= MAX_WAKES, "{within} within a minute of {at}");
        }
    }

    #[test]
    fn the_pause_ends_when_the_oldest_wake_is_a_minute_old() {
        let woken = [1000, 2000, 3000, 4000, 5000, 6000];
        assert_eq!(pause(&woken[..5], 6000), 0);
        assert_eq!(pause(&woken, 6000), 55_000);
        assert_eq!(pause(&woken, 60_999), 1);
        assert_eq!(pause(&woken, 61_000), 0);
        assert_eq!(pause(&woken, 500), 0, "times of an earlier boot do not count");
        assert_eq!(pause(&[0, 1000, 2000, 3000, 4000, 5000, 6000], 6000), 55_000);
        assert_eq!(pause(&[], 0), 0);
    }

    #[test]
    fn only_news_for_an_idle_session_wakes_it() {
        let wakes = Seen { client_lives: true, over: false, runs: true, news: true, idle: true, pause_ms: 0 };
        assert_eq!(next(&wakes), Next::Wake);
        for seen in [
            Seen { client_lives: false, ..wakes },
            Seen { over: true, ..wakes },
            Seen { runs: false, ..wakes },
            Seen { over: true, news: false, ..wakes },
        ] {
            assert_eq!(next(&seen), Next::Leave, "{seen:?}");
        }
        for seen in [Seen { news: false, ..wakes }, Seen { idle: false, ..wakes }, Seen { pause_ms: 90_000, ..wakes }] {
            assert_eq!(next(&seen), Next::Wait(LOOK), "{seen:?}");
        }
        assert_eq!(next(&Seen { pause_ms: 5, ..wakes }), Next::Wait(Duration::from_millis(5)));
    }

    #[test]
    fn what_is_said_of_others_runs_names_them_in_one_bounded_line() {
        let mut plan = plan(vec![task("a"), task("b")]);
        plan.rule = Some("x\n<b>".repeat(100));
        let view = View::new(&plan);
        for line in [goes_on(&view, ".claude/runs/r1"), orphaned(&view)] {
            assert!(line.starts_with("cpw: run ") && !line.contains('\n') && line.chars().count() < 600, "{line}");
            assert!(
                line.contains(&format!("`cpw adopt {}`", view.run)) && line.contains("0 of 2 tasks done"),
                "{line}"
            );
        }
    }
}
