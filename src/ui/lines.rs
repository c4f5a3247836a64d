//! One line for an event, for whoever follows a run: what a live view scrolls up, what a pipe gets, what `cpw events` shows.
//! Text that a task wrote is made harmless here.

use crate::base::text::one_line;
use crate::logic::state::State;
use crate::model::event::{Body, Ended, Event, Verdict};
use crate::model::plan::Plan;
use crate::model::signal::{BLOCK, INFORM};
use crate::model::vote::Choice;
use crate::ui::paint::Paint;
use crate::ui::when;
use std::fmt::Write;

/// The longest text of a task in a line, in characters.
const MAX_TEXT: usize = 200;

/// What kind of line it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Something begins.
    Begin,
    /// It went well.
    Good,
    /// It went wrong.
    Bad,
    /// It is tried again.
    Again,
    /// It will not happen.
    Skip,
    /// Worth knowing.
    Note,
}

impl Mark {
    /// The sign in front of the line, painted.
    pub fn sign(self, paint: Paint) -> String {
        match self {
            Mark::Begin => paint.dim("▸"),
            Mark::Good => paint.good("✓"),
            Mark::Bad => paint.bad("✗"),
            Mark::Again => paint.warn("↻"),
            Mark::Skip => paint.dim("–"),
            Mark::Note => paint.warn("!"),
        }
    }
}

/// A line about an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What kind it is.
    pub mark: Mark,
    /// The text, without line feed.
    pub text: String,
}

/// The line about `event`, if people who follow a run want to see it. `state` has the event applied.
pub fn of(event: &Event, plan: &Plan, state: &State) -> Option<Line> {
    let task = event.task.as_ref().map_or("", |t| t.as_str());
    let by = event.worker.map(|w| format!("{w} ")).unwrap_or_default();
    let line = |mark, text: String| Some(Line { mark, text });
    match &event.body {
        Body::RunStarted(p) => {
            let n = plan.tasks.len();
            let tasks = if n == 1 { "1 task".into() } else { format!("{n} tasks") };
            line(Mark::Begin, format!("run {}: {tasks}, at most {} at a time", plan.run, p.max_workers))
        }
        // Only what is taken over from another run has no worker, and it was not started here.
        Body::Started(_) if event.worker.is_none() => None,
        Body::Started(_) => {
            let again = event.attempt.filter(|&n| n > 1).map(|n| format!(" (attempt {n})")).unwrap_or_default();
            let mark = if again.is_empty() { Mark::Begin } else { Mark::Again };
            line(mark, format!("{by}started {task}{again}"))
        }
        Body::Done(p) => {
            let said = p.summary.as_deref().map(|s| format!(": {}", one_line(s, MAX_TEXT))).unwrap_or_default();
            if let Some(from) = &p.from {
                return line(Mark::Good, format!("took over {task} from run {from}{said}"));
            }
            line(Mark::Good, format!("{by}done {task} in {}{said}", when::ms(p.duration_ms)))
        }
        Body::Failed(p) => Some(ended(&by, "failed", task, p, event, plan, state)),
        Body::TimedOut(p) => Some(ended(&by, "timed out", task, p, event, plan, state)),
        Body::Lost(p) => Some(ended(&by, "lost", task, p, event, plan, state)),
        Body::Cancelled(p) => {
            let after = p.duration_ms.map(|ms| format!(" after {}", when::ms(ms))).unwrap_or_default();
            line(Mark::Skip, format!("{by}cancelled {task}{after}"))
        }
        Body::Skipped(p) => {
            let because = one_line(&p.because, MAX_TEXT);
            let needed = plan.tasks.iter().any(|t| t.id.as_str() == because);
            line(Mark::Skip, format!("skipped {task}: {}{because}", if needed { "it needs " } else { "" }))
        }
        Body::Checkpoint(p) => line(Mark::Note, format!("{by}{task} has come to {}", p.name)),
        Body::Signal(p) => {
            let what = match p.exit {
                INFORM => "tells",
                BLOCK => "holds back",
                _ => "warns",
            };
            let message = p.message.as_deref().map(|m| format!(": {}", one_line(m, MAX_TEXT))).unwrap_or_default();
            let mark = if p.exit == INFORM { Mark::Note } else { Mark::Bad };
            line(mark, format!("{by}{task} {what} {}{message}", p.hook.name()))
        }
        Body::SignalReleased(p) => {
            line(Mark::Note, format!("{by}{task} takes it back: {}", one_line(&p.reason, MAX_TEXT)))
        }
        Body::Vote(p) => {
            let why = p.refused.as_deref().map(|why| format!(", which does not count: {}", one_line(why, MAX_TEXT)));
            let mark = if why.is_some() { Mark::Bad } else { Mark::Note };
            let choice = p.decision.map_or_else(|| "for nothing that there is".to_owned(), |choice| choice.to_string());
            line(mark, format!("{by}{task} votes {choice} on {}{}", p.topic, why.unwrap_or_default()))
        }
        Body::Verdict(p) => {
            let mark = if p.result == Choice::Proceed { Mark::Good } else { Mark::Bad };
            let quorum = if p.no_quorum { ", no quorum" } else { "" };
            let tally = format!("{} for, {} against, {} absent{quorum}", p.proceed, p.abort, p.absent);
            line(mark, format!("{} is decided: {} ({tally})", p.topic, p.result))
        }
        Body::CancelRequested(p) => {
            let what = if task.is_empty() { "the run" } else { task };
            line(Mark::Note, format!("{} asked to cancel {what}", one_line(&p.by, 40)))
        }
        Body::Adopted(p) if p.session == p.from => line(Mark::Note, "the session goes on in another client".into()),
        Body::Adopted(p) => line(Mark::Note, format!("session {} has it now", one_line(&p.session, 64))),
        Body::WorkerLost(p) => line(Mark::Note, format!("{by}is dead: {}", one_line(&p.reason, MAX_TEXT))),
        Body::LogRepaired(p) => line(Mark::Note, format!("a torn line of {} bytes was cut off the log", p.bytes)),
        Body::RunEnded(p) => {
            let mark = if p.status == Verdict::Ok { Mark::Good } else { Mark::Bad };
            line(mark, format!("run {}: {}", verdict(p.status), one_line(&p.reason, MAX_TEXT)))
        }
        Body::WorkerStarted(_)
        | Body::WorkerExited(_)
        | Body::Spawned(_)
        | Body::Progress(_)
        | Body::Delivered(_)
        | Body::Decision(_)
        | Body::Observed(_)
        | Body::Awaited(_)
        | Body::Opened(_)
        | Body::Queued(_)
        | Body::Acquire(_)
        | Body::Renew(_)
        | Body::Release(_)
        | Body::Expired(_)
        | Body::Unknown => None,
    }
}

fn ended(by: &str, word: &str, task: &str, p: &Ended, event: &Event, plan: &Plan, state: &State) -> Line {
    let after = p.duration_ms.map(|ms| format!(" after {}", when::ms(ms))).unwrap_or_default();
    let mut text = format!("{by}{word} {task}{after}: {}", one_line(&p.reason, MAX_TEXT));
    let index = event.task.as_ref().and_then(|t| state.index_of(t));
    if let (true, Some(task), Some(n)) = (p.will_retry, index.map(|i| &plan.tasks[i]), event.attempt) {
        let pause = p.retry_at.zip(p.mono_ms).map(|(at, now)| format!(" in {}", when::ms(at.saturating_sub(now))));
        let _ = write!(text, " ({}{})", attempt(n.saturating_add(1), task.retries), pause.unwrap_or_default());
    }
    Line { mark: if p.will_retry { Mark::Again } else { Mark::Bad }, text }
}

/// Which attempt it is, and of how many. Those that ended with their worker don't count, so that there can be more.
pub fn attempt(number: u32, retries: u32) -> String {
    let most = retries.saturating_add(1);
    if number <= most { format!("attempt {number} of {most}") } else { format!("attempt {number}") }
}

/// The text of any event, also of those that nobody follows a run for.
pub fn any(event: &Event, plan: &Plan, state: &State) -> String {
    if let Some(line) = of(event, plan, state) {
        return line.text;
    }
    let task = event.task.as_ref().map_or("", |t| t.as_str());
    let text = |s: &str| one_line(s, MAX_TEXT);
    let tool = |t: &Option<String>| t.as_deref().map(|t| format!(" {}", one_line(t, 60))).unwrap_or_default();
    match &event.body {
        Body::WorkerStarted(p) => format!("process {}", p.pid),
        Body::WorkerExited(p) => text(&p.reason),
        Body::Spawned(p) => format!("{task} is process {}", p.pid),
        Body::Progress(p) => {
            let parts = [
                p.percent.map(|n| format!("{n} %")),
                p.eta_s.map(|s| format!("ETA {}", when::ms(s.saturating_mul(1000)))),
                p.note.as_deref().map(text),
                p.summary.as_deref().map(|s| format!("summary: {}", text(s))),
            ];
            format!("{task} {}", parts.into_iter().flatten().collect::<Vec<_>>().join(" · "))
        }
        Body::Delivered(p) => format!("{} told the session {} news", text(&p.hook), p.news.len() + p.signals.len()),
        Body::Decision(p) => {
            let answer = format!("{:?}", p.answer).to_lowercase();
            let held = if p.held_ms > 0 { format!(" after {}", when::ms(p.held_ms)) } else { String::new() };
            let by = if task.is_empty() { String::new() } else { format!(" for {task}") };
            format!("{}{}: {answer}{held}{by}: {}", text(&p.hook), tool(&p.tool), text(&p.reason))
        }
        Body::Observed(p) => format!("{} {} {} {}", text(&p.hook), text(&p.phase), text(&p.tool), text(&p.target)),
        Body::Awaited(p) => match &p.matcher {
            Some(matcher) if !p.done => format!("{task} waits for the session's {}", text(matcher)),
            None if p.on.is_some() => {
                let verb = if p.done { "no longer waits" } else { "waits" };
                format!("{task} {verb} for {}", text(p.on.as_deref().unwrap_or_default()))
            }
            _ => format!("{task} no longer waits for a call of the session"),
        },
        _ => String::new(),
    }
}

/// A verdict in a word.
pub fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Failed => "failed",
        Verdict::Cancelled => "cancelled",
    }
}

/// How a run ended, in words: `3 done, 1 failed`.
pub fn tally(counts: crate::logic::view::Counts) -> String {
    let parts = [
        (counts.done, "done"),
        (counts.failed, "failed"),
        (counts.skipped, "skipped"),
        (counts.cancelled, "cancelled"),
        (counts.open(), "open"),
    ];
    let parts: Vec<String> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")).collect();
    parts.join(", ")
}
