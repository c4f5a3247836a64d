//! What `cpw status` shows of a run, as text: a pure function of its state and plan, of what was found out about its processes,
//! and of the moment. So a run that goes on, one that has ended, and one as it was at some event look the same. The same as
//! an object is in [`report`](super::report).

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::PathBuf;

use crate::base::ids::{RunId, TaskId, WorkerNo};
use crate::base::text::one_line;
use crate::logic::pace::{self, Left};
use crate::logic::sched;
use crate::logic::signals::Signal;
use crate::logic::state::{Held, State};
use crate::logic::view::{Phase, View};
use crate::logic::vote::{Ballot, Poll};
use crate::model::plan::Plan;
use crate::ui::board;
use crate::ui::lines;
use crate::ui::paint::Paint;
use crate::ui::table;
use crate::ui::when;

/// Voters that are named where they are still to come.
const VOTERS: usize = 8;

/// Signals that are shown of a run.
const SIGNALS: usize = 8;

/// The moment of a picture.
#[derive(Debug, Clone, Copy)]
pub struct Now<'a> {
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub mono_ms: u64,
    /// Wall-clock time in milliseconds since 1970.
    pub unix_ms: u64,
    /// The boot to which the first belongs.
    pub boot_id: &'a str,
}

/// Who works on an open run, as a look at it has found or made it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hands {
    /// A worker is alive, or nobody has looked.
    #[default]
    Alive,
    /// All were dead; this one was started.
    Hired(WorkerNo),
    /// Too many have died.
    Nobody,
    /// Nobody, on purpose: this user's cpw has not made the run, as these words say.
    Foreign(&'static str),
    /// All were dead, and none could be started, for this reason.
    None(String),
}

/// A worker that has not left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hand {
    /// Which.
    pub worker: WorkerNo,
    /// Its process.
    pub pid: i32,
    /// Whether it lives.
    pub alive: bool,
}

/// What a state does not tell, because it is about processes and files.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The run's folder.
    pub folder: PathBuf,
    /// The same below the project, as people read it.
    pub shown: String,
    /// Workers that have not left.
    pub hands: Vec<Hand>,
    /// Whether any of them works.
    pub tended: Hands,
    /// Running tasks whose process, or whose worker, was stopped, by their place in the plan.
    pub stopped: BTreeSet<usize>,
}

/// A run with all that is known of it.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// Its plan.
    pub plan: &'a Plan,
    /// Its state.
    pub state: &'a State,
    /// And the rest.
    pub facts: &'a Facts,
    /// When.
    pub now: Now<'a>,
}

/// A run among others.
#[derive(Debug, Clone, Copy)]
pub enum Entry<'a> {
    /// With all its tasks.
    Whole(Picture<'a>),
    /// Only what its index knows.
    Brief(&'a RunId, &'a View, Now<'a>),
    /// Not readable: its state in a word, and why.
    Damaged(&'a RunId, &'static str, &'a str),
}

/// A run's state in a word.
pub fn word(view: &View) -> &'static str {
    view.ended.as_ref().map_or("active", |e| lines::verdict(e.status))
}

/// What tasks have said that the session was not told, or that holds.
pub fn pending<'v>(view: &'v View, now: Now<'_>) -> impl Iterator<Item = &'v Signal> {
    let (ms, same_boot) = (now.mono_ms, view.boot_id == now.boot_id);
    // Of a run that no session owns nobody waits to hear.
    view.signals.iter().filter(move |s| view.session.is_some() && !s.is_expired(ms, same_boot))
}

/// How long a signal still holds, in milliseconds.
pub fn signal_left(signal: &Signal, now: Now<'_>) -> Option<u64> {
    signal.expires.map(|at| at.saturating_sub(now.mono_ms))
}

/// The voters that can still vote.
pub fn open_voters(poll: &Poll) -> impl Iterator<Item = &TaskId> {
    poll.voters.iter().filter(|(_, ballot)| **ballot == Ballot::Open).map(|(id, _)| id)
}

impl Picture<'_> {
    /// A task's state in a word; a running one whose process, or whose worker, was stopped is stalled.
    pub fn task_word(&self, i: usize) -> &'static str {
        if self.facts.stopped.contains(&i) { "stalled" } else { self.state.tasks[i].phase.word() }
    }

    /// For how long no `claude` task starts because the provider's quota is used up, in milliseconds.
    pub fn quota_ms(&self) -> Option<u64> {
        let same_boot = self.same_boot() && self.state.view.ended.is_none();
        self.state.quota_until_ms.checked_sub(self.now.mono_ms).filter(|left| same_boot && *left > 0)
    }

    fn same_boot(&self) -> bool {
        self.state.view.boot_id == self.now.boot_id
    }

    /// How long the open attempt has taken, or the last one took.
    pub fn duration_ms(&self, i: usize) -> Option<u64> {
        let task = &self.state.tasks[i];
        match &task.open {
            Some(_) if !self.same_boot() => None,
            Some(open) => Some(self.now.mono_ms.saturating_sub(open.since_ms)),
            None => task.duration_ms,
        }
    }

    /// What a running task still needs.
    pub fn left(&self, i: usize) -> Option<Left> {
        self.state.tasks[i].open.as_ref()?;
        board::left(self.state, self.plan, i, self.duration_ms(i)?, self.now.unix_ms)
    }

    /// Whether a running task takes much longer than usual, in words.
    pub fn slow(&self, i: usize) -> Option<String> {
        self.state.tasks[i].open.as_ref()?;
        pace::slow(self.duration_ms(i)?, self.plan.tasks[i].expected)
    }

    /// When the whole run may be over.
    pub fn run_left(&self) -> Option<Left> {
        pace::run_left(self.state, self.plan, |i| self.left(i))
    }

    /// Whether a task was done in the run that this one continues. Here nobody worked on it.
    pub fn is_taken(&self, i: usize) -> bool {
        self.state.tasks[i].phase == Phase::Done && self.state.tasks[i].worker.is_none()
    }
}

/// The lines about a run; `detail` where it is the one that was asked for.
pub fn entry(entry: &Entry<'_>, detail: bool, paint: Paint) -> String {
    match entry {
        Entry::Damaged(id, word, why) => damaged(id, word, why, paint),
        Entry::Brief(id, view, now) => brief(id, view, *now, paint),
        Entry::Whole(picture) => whole(picture, detail, paint),
    }
}

fn damaged(id: &RunId, word: &str, why: &str, paint: Paint) -> String {
    let mut out = format!("{}  {}: {}\n", paint.bold(id), paint.bad(word), one_line(why, 300));
    let hint = format!("  nothing is started from it; `cpw doctor {id}` says what can be done\n");
    out.push_str(&paint.dim(hint));
    out
}

fn brief(id: &RunId, view: &View, now: Now<'_>, paint: Paint) -> String {
    let mut out = head(id, view, None, now, paint);
    out.push('\n');
    out.push_str(&resume_hint(id, view, paint));
    for signal in pending(view, now).take(SIGNALS) {
        out.push_str(&paint.warn(signal_line(signal, now)));
    }
    out
}

/// How to go on with a run that was interrupted: that is a person's choice.
fn resume_hint(id: &RunId, view: &View, paint: Paint) -> String {
    let hint = || paint.dim(format_args!("  `cpw resume {id}` goes on with what is not done\n"));
    view.ended.as_ref().filter(|end| sched::was_interrupted(end)).map_or_else(String::new, |_| hint())
}

/// `20261121-101112-…  failed: x failed  3 done, 1 failed  5 min ago  rule analyze`
fn head(id: &RunId, view: &View, took_ms: Option<u64>, now: Now<'_>, paint: Paint) -> String {
    let word = word(view);
    let painted = match word {
        "ok" => paint.good(word),
        "failed" => paint.bad(word),
        "cancelled" => paint.warn(word),
        _ => paint.busy(word),
    };
    let mut line = format!("{}  {painted}", paint.bold(id));
    if let Some(end) = view.ended.as_ref().filter(|e| word != "ok" && e.reason != word) {
        let _ = write!(line, ": {}", one_line(&end.reason, 120));
    }
    let _ = write!(line, "  {}", lines::tally(view.counts));
    if let Some(ms) = took_ms {
        let _ = write!(line, " in {}", when::ms(ms));
    }
    if let Some(then) = when::of_run(id) {
        line.push_str(&paint.dim(format_args!("  {}", when::ago(then, now.unix_ms))));
    }
    if let Some(rule) = &view.rule {
        line.push_str(&paint.dim(format_args!("  rule {}", one_line(rule, 64))));
    }
    if view.cancelled && view.ended.is_none() {
        line.push_str(&paint.warn("  cancelling"));
    }
    line
}

fn whole(picture: &Picture<'_>, detail: bool, paint: Paint) -> String {
    let Picture { plan, state, facts, now } = picture;
    let ended = state.view.ended.is_some();
    let took = if ended { when::between(&state.first_ts, &state.last_ts) } else { None };
    let mut out = head(&plan.run, &state.view, took, *now, paint);
    out.push('\n');
    if let Some(from) = &plan.from {
        let _ = writeln!(out, "  continues {from}");
    }
    out.push_str(&resume_hint(&plan.run, &state.view, paint));
    out.push_str(&tended(&facts.tended, ended, paint));
    if detail {
        if let Some(session) = &state.view.session {
            let _ = writeln!(out, "  session {session}");
        }
        let _ = writeln!(out, "  folder {}", facts.shown);
    }
    out.push_str(&hands(&facts.hands, ended, paint));
    for signal in pending(&state.view, *now).take(SIGNALS) {
        out.push_str(&paint.warn(signal_line(signal, *now)));
    }
    if let Some(left) = picture.quota_ms() {
        let at = when::minute(now.unix_ms.saturating_add(left));
        let text = format!("  claude tasks wait for the quota until {at} ({} left)\n", when::ms(left));
        out.push_str(&paint.warn(text));
    }
    if let Some(left) = picture.run_left() {
        let far = pace::percent(state).map(|p| format!("{p} % done, ")).unwrap_or_default();
        let _ = writeln!(out, "  {far}{}", left.text_left());
    }
    let rows: Vec<Vec<String>> = (0..state.tasks.len()).map(|i| row(picture, i)).collect();
    out.push_str(&table::lay_out(&rows, |r, c, cell| {
        if c == 2 { paint.phase(state.tasks[r].phase, cell) } else { cell.to_owned() }
    }));
    if state.held != Held::default() {
        let Held { stop_ms, calls_ms } = state.held;
        let _ = writeln!(out, "  held the session {} at calls, {} at Stop", when::ms(calls_ms), when::ms(stop_ms));
    }
    for poll in &state.view.polls {
        let _ = writeln!(out, "  vote {}", poll_text(poll));
    }
    if state.spent_usd > 0.0 {
        let _ = writeln!(out, "  cost ${:.4}", state.spent_usd);
    }
    out
}

/// Whether anybody works on it.
fn tended(tended: &Hands, ended: bool, paint: Paint) -> String {
    match tended {
        Hands::Hired(worker) => paint.warn(format_args!("  all its workers are dead; started {worker} to finish it\n")),
        Hands::Nobody if !ended => {
            paint.bad("  no worker is alive: they die again and again; see workers/*/logs/worker.jsonl\n")
        }
        Hands::None(e) => {
            let why = one_line(e, 300);
            paint.bad(format_args!("  no worker is alive and none could be started: {why}\n"))
        }
        Hands::Foreign(words) => paint.warn(format_args!("  {words}\n")),
        Hands::Alive | Hands::Nobody => String::new(),
    }
}

fn hands(hands: &[Hand], ended: bool, paint: Paint) -> String {
    if ended || hands.is_empty() {
        return String::new();
    }
    let name = |hand: &Hand| match hand {
        Hand { worker, pid, alive: true } => format!("{worker} (process {pid})"),
        Hand { worker, .. } => paint.bad(format_args!("{worker} dead")),
    };
    format!("  workers {}\n", hands.iter().map(name).collect::<Vec<_>>().join(", "))
}

fn signal_line(signal: &Signal, now: Now<'_>) -> String {
    let verb = if signal.is_barrier() { "holds calls back" } else { "is not told yet" };
    let said = signal.message.as_deref().map(|m| format!(": {}", one_line(m, 120))).unwrap_or_default();
    let left = signal_left(signal, now).map(|ms| format!(" ({} left)", when::ms(ms))).unwrap_or_default();
    format!("  a signal of {} to {} {verb}{left}{said}\n", signal.task, signal.hook.name())
}

/// How a vote stands, and who is still to come: `deploy: 1 for, 0 against, 2 to come (b, c)`.
fn poll_text(poll: &Poll) -> String {
    let mut out = poll.stands();
    let open: Vec<&str> = open_voters(poll).map(TaskId::as_str).collect();
    if poll.verdict.is_none() && !open.is_empty() {
        let more = if open.len() > VOTERS { format!(" and {} more", open.len() - VOTERS) } else { String::new() };
        let names: Vec<&str> = open.into_iter().take(VOTERS).collect();
        let _ = write!(out, " ({}{more})", names.join(", "));
    }
    out
}

fn row(picture: &Picture<'_>, i: usize) -> Vec<String> {
    let Picture { plan, state, now, .. } = picture;
    let task = &state.tasks[i];
    let mut said = Vec::new();
    if let Some(percent) = task.percent {
        said.push(format!("{percent} %"));
    }
    if let Some(left) = picture.left(i) {
        let by = if left.by_history { " by earlier runs" } else { "" };
        said.push(format!("ETA {}{by}", when::ms(left.ms)));
    }
    said.extend(picture.slow(i));
    if task.attempts > 1 {
        said.push(lines::attempt(task.attempts, plan.tasks[i].retries.saturating_add(task.refusals)));
    }
    if picture.is_taken(i) {
        said.push("taken over".into());
    }
    if task.held_ms > 0 {
        said.push(format!("held the session {}", when::ms(task.held_ms)));
    }
    if task.phase == Phase::Waiting {
        said.push(format!("needs {}", board::unmet(state, plan, i, 3)));
    }
    if task.phase == Phase::Retrying {
        said.push(format!("again in {}", when::ms(task.retry_at.saturating_sub(now.mono_ms))));
    }
    let line = if task.open.is_some() { task.note.as_ref().or(task.line.as_ref()) } else { task.line.as_ref() };
    said.extend(line.map(|l| one_line(l, 120)).filter(|l| !l.is_empty()));
    vec![
        " ".into(),
        plan.tasks[i].id.to_string(),
        picture.task_word(i).into(),
        task.worker.map(|w| w.to_string()).unwrap_or_default(),
        picture.duration_ms(i).map(when::ms).unwrap_or_default(),
        said.join(" · "),
    ]
}
