//! What `cpw statusline` says of runs that go on, in one line for Claude Code's status line:
//! `cpw ▸ 3/5 done · 1 failed · W2 60 % · 40 s`. Pure text of what their indexes know.

use crate::base::ids::WorkerNo;
use crate::logic::view::{Brief, View};
use crate::ui::fit::{self, Part};
use crate::ui::paint::{Paint, Tone};
use crate::ui::when;

/// A run as it was found.
#[derive(Debug, Clone, Copy)]
pub struct Found<'v> {
    /// What its index and the events behind it say.
    pub view: &'v View,
    /// Whether any of its workers lives.
    pub alive: bool,
}

/// The line; `None` where nothing goes on. `now_ms` is `CLOCK_MONOTONIC`, on the boot of the runs.
pub fn line(runs: &[Found<'_>], now_ms: u64, width: Option<usize>, paint: Paint) -> Option<String> {
    let open: Vec<&Found<'_>> = runs.iter().filter(|run| run.view.ended.is_none()).collect();
    if open.is_empty() {
        return None;
    }
    let sum = |of: fn(&View) -> u32| open.iter().map(|run| u64::from(of(run.view))).sum::<u64>();
    let (done, total, failed) = (sum(|v| v.counts.done), sum(|v| v.counts.total), sum(|v| v.counts.failed));
    let dead = open.iter().any(|run| !run.alive);
    let running: Vec<&Brief> = open.iter().flat_map(|run| run.view.running().map(|(_, brief)| brief)).collect();
    let eta = running.iter().filter_map(|brief| left_ms(brief, now_ms)).max().filter(|ms| *ms > 0);
    let several = if open.len() > 1 { format!("{} runs", open.len()) } else { String::new() };
    let failed = if failed > 0 { format!("{failed} failed") } else { String::new() };
    let cancelling = if open.iter().any(|run| run.view.cancelled) { "cancelling" } else { "" };
    let parts = vec![
        Part::new(if dead { Tone::Bad } else { Tone::Busy }, format!("cpw ▸ {done}/{total} done")),
        Part::new(Tone::Dim, several).rank(4),
        Part::new(Tone::Bad, failed).rank(1),
        Part::new(Tone::Bad, if dead { "no worker alive" } else { "" }).rank(1),
        Part::new(Tone::Warn, cancelling).rank(2),
        Part::new(Tone::Plain, if dead { String::new() } else { who(&running, now_ms) }).rank(3),
        // Rounded up: what takes half a second more is not over.
        Part::new(Tone::Dim, eta.map(|ms| when::short(ms.saturating_add(999))).unwrap_or_default()).rank(2),
    ];
    Some(fit::line(parts, " · ", width, paint))
}

/// Who works: the one that has told how far it is and will need longest, with the number of the others; else how many.
fn who(running: &[&Brief], now_ms: u64) -> String {
    let told = running.iter().filter_map(|brief| Some((brief, brief.percent?)));
    let last = told.max_by_key(|(brief, percent)| (left_ms(brief, now_ms), std::cmp::Reverse(*percent)));
    let others = running.len().saturating_sub(1);
    match last {
        Some((brief, percent)) => {
            let worker = brief.worker.unwrap_or(WorkerNo(0));
            let more = if others > 0 { format!(" +{others}") } else { String::new() };
            format!("{worker} {percent} %{more}")
        }
        None if running.is_empty() => String::new(),
        None => format!("{} running", running.len()),
    }
}

/// What a running task still needs: as it said last, as its percentage lets expect, or by earlier runs.
fn left_ms(brief: &Brief, now_ms: u64) -> Option<u64> {
    let elapsed = now_ms.saturating_sub(brief.since_ms);
    if let Some(said) = brief.eta_s {
        return Some(said.saturating_mul(1000));
    }
    if let Some(percent) = brief.percent.filter(|p| (5..=100).contains(p)).map(u64::from) {
        return Some(elapsed.saturating_mul(100 - percent) / percent);
    }
    brief.expected_ms?.checked_sub(elapsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TaskId;
    use crate::logic::simulation::{plan, task};
    use crate::model::event::{Body, Done, Draft, Ended, Event, Progress, RunEnded, Started, Verdict};

    fn tell(view: &mut View, worker: u32, task: &str, body: Body) {
        let id = TaskId::new(task).unwrap();
        let draft = match body {
            Body::RunEnded(_) | Body::CancelRequested(_) => Draft::run(body),
            body => Draft::attempt(Some(WorkerNo(worker)), &id, 1, body),
        };
        let seq = view.seq + 1;
        view.apply(&Event::new(draft, seq, String::new()));
    }

    fn start(view: &mut View, worker: u32, task: &str) {
        tell(view, worker, task, Body::Started(Started { mono_ms: 1000, ..Started::default() }));
    }

    fn far(percent: u8, eta_s: Option<u64>) -> Body {
        Body::Progress(Progress { percent: Some(percent), eta_s, ..Progress::default() })
    }

    fn view() -> View {
        View::new(&plan(["a", "b", "c", "d", "e"].map(task).into()))
    }

    fn shown(runs: &[(&View, bool)], width: Option<usize>) -> Option<String> {
        let runs: Vec<Found<'_>> = runs.iter().map(|&(view, alive)| Found { view, alive }).collect();
        line(&runs, 21_000, width, Paint::plain())
    }

    #[test]
    fn it_says_how_far_the_runs_are_and_is_silent_when_none_goes_on() {
        assert_eq!(shown(&[], None), None);
        let mut view = view();
        let at = |view: &View, width| shown(&[(view, true)], width).unwrap();
        assert_eq!(at(&view, None), "cpw ▸ 0/5 done");
        start(&mut view, 1, "a");
        assert_eq!(at(&view, None), "cpw ▸ 0/5 done · 1 running");
        tell(&mut view, 1, "a", Body::Done(Done::default()));
        start(&mut view, 1, "b");
        start(&mut view, 2, "c");
        assert_eq!(at(&view, None), "cpw ▸ 1/5 done · 2 running");
        tell(&mut view, 2, "c", far(60, Some(40)));
        assert_eq!(at(&view, None), "cpw ▸ 1/5 done · W2 60 % +1 · 40 s");
        // A quarter took 20 s.
        tell(&mut view, 1, "b", far(25, None));
        assert_eq!(at(&view, None), "cpw ▸ 1/5 done · W1 25 % +1 · 60 s");
        tell(&mut view, 1, "b", Body::Failed(Ended { reason: "x".into(), ..Ended::default() }));
        let whole = "cpw ▸ 1/5 done · 1 failed · W2 60 % · 40 s";
        assert_eq!((at(&view, None).as_str(), at(&view, Some(42)).as_str()), (whole, whole));
        assert_eq!(at(&view, Some(41)), "cpw ▸ 1/5 done · 1 failed · 40 s");
        assert_eq!(at(&view, Some(25)), "cpw ▸ 1/5 done · 1 failed");
        assert_eq!(at(&view, Some(8)), "cpw ▸ 1…");
        let other = self::view();
        assert_eq!(
            shown(&[(&view, true), (&other, true)], None).unwrap(),
            "cpw ▸ 1/10 done · 2 runs · 1 failed · W2 60 % · 40 s"
        );
        assert_eq!(shown(&[(&view, false)], None).unwrap(), "cpw ▸ 1/5 done · 1 failed · no worker alive · 40 s");
        let cancel = crate::model::event::CancelRequested { by: "user".into() };
        tell(&mut view, 1, "a", Body::CancelRequested(cancel));
        assert!(at(&view, None).contains(" · cancelling · "));
        let ended = RunEnded { status: Verdict::Ok, reason: "ok".into(), done: 5, failed: 0, skipped: 0, cancelled: 0 };
        tell(&mut view, 1, "a", Body::RunEnded(ended));
        assert_eq!(shown(&[(&view, true)], None), None);
    }

    #[test]
    fn colours_are_only_added() {
        let mut view = view();
        start(&mut view, 1, "a");
        let found = [Found { view: &view, alive: true }];
        let coloured = line(&found, 2000, None, Paint::colourful()).unwrap();
        assert_eq!(coloured, "\u{1b}[36mcpw ▸ 0/5 done\u{1b}[0m · 1 running");
    }
}
