//! What `cpw status` shows of a run, as text: a pure function of its state and plan, of what was found out about its processes,
//! of the moment, and of the screen. So a run that goes on, one that has ended, and one as it was at some event look the same.
//! The same as an object is in [`report`](super::report).
//!
//! A screen is wide, as a pipe is: then nothing is left out or cut. Or it has a width: then every line fits, and of a long run
//! what matters is shown, and the rest counted.

use std::collections::{BTreeMap, BTreeSet};
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
use crate::ui::fit::{self, Part, columns};
use crate::ui::lines;
use crate::ui::paint::{Paint, Tone};
use crate::ui::when;

/// Voters that are named where they are still to come.
const VOTERS: usize = 8;

/// Signals that are shown of a run.
const SIGNALS: usize = 8;

/// Warnings that are shown of a run.
const WARNINGS: usize = 4;

/// The longest text of others in a line, in characters.
const TEXT: usize = 300;

/// The longest last word of a task, in characters.
const SAID: usize = 120;

/// Columns of a run's bar.
const BAR: usize = 20;

/// Of an id that is short enough to type, the fewest characters.
const SHORT: usize = 6;

/// From this width on there is room for what is only nice to know.
const ROOMY: usize = 100;

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
    /// All are dead, and nobody was to be started by who looks.
    Dead,
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
    /// The last line that running tasks have written.
    pub written: BTreeMap<usize, String>,
    /// What tasks that could start wait for, and who has it.
    pub blocked: BTreeMap<usize, String>,
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

/// Where it is shown.
#[derive(Debug, Clone, Copy)]
pub struct Screen<'a> {
    /// Columns; as many as it takes where absent.
    pub width: Option<usize>,
    /// Tasks that are shown of a run, at most; all where absent.
    pub rows: Option<usize>,
    /// What runs are called, where that is not their whole id.
    pub names: &'a BTreeMap<RunId, String>,
    /// Colours.
    pub paint: Paint,
}

static NO_NAMES: BTreeMap<RunId, String> = BTreeMap::new();

impl Screen<'_> {
    /// One on which everything has room.
    pub fn wide(paint: Paint) -> Screen<'static> {
        Screen { width: None, rows: None, names: &NO_NAMES, paint }
    }

    /// What a run is called.
    pub fn name<'n>(&'n self, run: &'n RunId) -> &'n str {
        self.names.get(run).map_or(run.as_str(), String::as_str)
    }

    /// A line of parts, so far from the left.
    pub fn line(&self, indent: usize, gap: &str, parts: Vec<Part>) -> String {
        let width = self.width.map(|w| w.saturating_sub(indent));
        format!("{}{}\n", " ".repeat(indent), fit::line(parts, gap, width, self.paint))
    }

    /// A line of one text.
    pub fn text(&self, indent: usize, tone: Tone, text: impl Into<String>) -> String {
        self.line(indent, "", vec![Part::new(tone, text)])
    }

    fn is_narrow(&self) -> bool {
        self.width.is_some_and(|w| w < ROOMY)
    }

    fn is_roomy(&self) -> bool {
        self.width.is_some_and(|w| w >= ROOMY)
    }
}

/// For each run a beginning of the random part of its id that means no other of `all`: what a person types.
pub fn short_names<'r>(shown: impl Iterator<Item = &'r RunId>, all: &[RunId]) -> BTreeMap<RunId, String> {
    let random = |id: &RunId| id.as_str().rsplit('-').next().unwrap_or_default().to_owned();
    let others: Vec<(&RunId, String)> = all.iter().map(|id| (id, random(id))).collect();
    let short = |id: &RunId| {
        let own = random(id);
        let unique = |length: &usize| {
            let part = own.get(..*length).unwrap_or(&own);
            !others.iter().any(|(o, r)| *o != id && (o.as_str().starts_with(part) || r.starts_with(part)))
        };
        let length = (SHORT..own.len()).find(|n| own.len() >= 2 * SHORT && unique(n));
        length.and_then(|n| own.get(..n)).map_or_else(|| id.to_string(), str::to_owned)
    };
    shown.map(|id| (id.clone(), short(id))).collect()
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

/// The lines about a run, as a pipe gets them; `detail` where it is the one that was asked for.
pub fn entry(entry: &Entry<'_>, detail: bool, paint: Paint) -> String {
    show(entry, detail, &Screen::wide(paint))
}

/// The lines about a run; `detail` where it is the one that was asked for.
pub fn show(entry: &Entry<'_>, detail: bool, screen: &Screen<'_>) -> String {
    match entry {
        Entry::Damaged(id, word, why) => damaged(id, word, why, screen),
        Entry::Brief(id, view, now) => brief(id, view, *now, screen),
        Entry::Whole(picture) => whole(picture, detail, screen),
    }
}

fn damaged(id: &RunId, word: &str, why: &str, screen: &Screen<'_>) -> String {
    let name = screen.name(id);
    let state = Part::new(Tone::Bad, format!("{word}: {}", one_line(why, TEXT))).flexible();
    let mut out = screen.line(0, "  ", vec![Part::new(Tone::Bold, name), state]);
    let hint = format!("nothing is started from it; `cpw doctor {name}` says what can be done");
    out.push_str(&screen.text(2, Tone::Dim, hint));
    out
}

fn brief(id: &RunId, view: &View, now: Now<'_>, screen: &Screen<'_>) -> String {
    let mut out = head(id, view, None, now, screen);
    out.push_str(&resume_hint(id, view, screen));
    out.push_str(&signal_lines(view, now, screen));
    out
}

/// How to go on with a run that was interrupted: that is a person's choice.
fn resume_hint(id: &RunId, view: &View, screen: &Screen<'_>) -> String {
    if !view.ended.as_ref().is_some_and(sched::was_interrupted) {
        return String::new();
    }
    screen.text(2, Tone::Dim, format!("`cpw resume {}` goes on with what is not done", screen.name(id)))
}

/// `20261121-101112-…  ✗ failed: x failed  3 done, 1 failed  5 min ago  rule analyze`
fn head(id: &RunId, view: &View, took_ms: Option<u64>, now: Now<'_>, screen: &Screen<'_>) -> String {
    let word = word(view);
    let (sign, tone) = match word {
        "ok" => ("✓", Tone::Good),
        "failed" => ("✗", Tone::Bad),
        "cancelled" => ("–", Tone::Warn),
        _ => ("▸", Tone::Busy),
    };
    let reason = view.ended.as_ref().filter(|e| word != "ok" && e.reason != word);
    let reason = reason.map(|e| format!(": {}", one_line(&e.reason, SAID))).unwrap_or_default();
    let mut tally = lines::tally(view.counts);
    if let Some(ms) = took_ms {
        let _ = write!(tally, " in {}", when::ms(ms));
    }
    let ago = when::of_run(id).map(|then| when::ago(then, now.unix_ms)).unwrap_or_default();
    let rule = view.rule.as_ref().map(|rule| format!("rule {}", one_line(rule, 64))).unwrap_or_default();
    let parts = vec![
        Part::new(Tone::Bold, screen.name(id)),
        Part::new(tone, format!("{sign} {word}{reason}")).flexible(),
        Part::new(Tone::Plain, tally).rank(1),
        Part::new(Tone::Dim, ago).rank(3),
        Part::new(Tone::Dim, rule).rank(2).flexible(),
        Part::new(Tone::Dim, owner(view)).rank(4),
        Part::new(Tone::Warn, if view.cancelled && view.ended.is_none() { "cancelling" } else { "" }),
    ];
    screen.line(0, "  ", parts)
}

/// Who owns it: a session, by the beginning of its id, or nobody.
fn owner(view: &View) -> String {
    match &view.session {
        Some(session) => format!("session {}", session.as_str().get(..8).unwrap_or(session.as_str())),
        None => "of a terminal".into(),
    }
}

fn whole(picture: &Picture<'_>, detail: bool, screen: &Screen<'_>) -> String {
    let Picture { plan, state, facts, now } = picture;
    let ended = state.view.ended.is_some();
    let took = if ended { when::between(&state.first_ts, &state.last_ts) } else { None };
    let mut out = head(&plan.run, &state.view, took, *now, screen);
    if let Some(from) = &plan.from {
        out.push_str(&screen.text(2, Tone::Plain, format!("continues {}", screen.name(from))));
    }
    out.push_str(&resume_hint(&plan.run, &state.view, screen));
    out.push_str(&tended(&facts.tended, ended, screen));
    if detail {
        out.push_str(&details(picture, screen));
    }
    if !ended {
        out.push_str(&pace_line(picture, detail, screen));
    }
    out.push_str(&signal_lines(&state.view, *now, screen));
    if let Some(left) = picture.quota_ms() {
        let at = when::minute(now.unix_ms.saturating_add(left));
        let text = format!("claude tasks wait for the quota until {at} ({} left)", when::ms(left));
        out.push_str(&screen.text(2, Tone::Warn, text));
    }
    out.push_str(&table(picture, screen));
    out.push_str(&warning_lines(picture, screen));
    if state.held != Held::default() {
        let Held { stop_ms, calls_ms } = state.held;
        let text = format!("held the session {} at calls, {} at Stop", when::ms(calls_ms), when::ms(stop_ms));
        out.push_str(&screen.text(2, Tone::Plain, text));
    }
    for poll in &state.view.polls {
        out.push_str(&screen.text(2, Tone::Plain, format!("vote {}", poll_text(poll))));
    }
    if state.spent_usd > 0.0 {
        out.push_str(&screen.text(2, Tone::Plain, format!("cost ${:.4}", state.spent_usd)));
    }
    out
}

/// What only who asks for one run wants to know of it.
fn details(picture: &Picture<'_>, screen: &Screen<'_>) -> String {
    let Picture { plan, state, facts, .. } = picture;
    let mut out = String::new();
    if screen.name(&plan.run) != plan.run.as_str() {
        out.push_str(&screen.text(2, Tone::Plain, format!("run {}", plan.run)));
    }
    if let Some(session) = &state.view.session {
        out.push_str(&screen.text(2, Tone::Plain, format!("session {session}")));
    }
    out.push_str(&screen.text(2, Tone::Plain, format!("folder {}", facts.shown)));
    out
}

/// Whether anybody works on it.
fn tended(tended: &Hands, ended: bool, screen: &Screen<'_>) -> String {
    let (tone, text) = match tended {
        Hands::Hired(worker) => (Tone::Warn, format!("all its workers are dead; started {worker} to finish it")),
        Hands::Nobody if !ended => {
            (Tone::Bad, "no worker is alive: they die again and again; see workers/*/logs/worker.jsonl".into())
        }
        Hands::None(e) => (Tone::Bad, format!("no worker is alive and none could be started: {}", one_line(e, TEXT))),
        Hands::Dead => (Tone::Bad, "no worker is alive; `cpw status` in its project starts one".into()),
        Hands::Foreign(words) => (Tone::Warn, (*words).to_owned()),
        Hands::Alive | Hands::Nobody => return String::new(),
    };
    screen.text(2, tone, text)
}

/// `━━━━━━━━━━──────────  52 % done, about 40 s left  workers W1, W2`
fn pace_line(picture: &Picture<'_>, detail: bool, screen: &Screen<'_>) -> String {
    let percent = pace::percent(picture.state);
    let left = picture.run_left().map(Left::text_left);
    let far = [percent.map(|p| format!("{p} % done")), left].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let hands = &picture.facts.hands;
    // Who is dead is worth more than who works.
    let mut hands = hands.clone();
    hands.sort_by_key(|hand| hand.alive);
    let name = |hand: &Hand| match hand {
        Hand { worker, pid, alive: true } if detail => format!("{worker} (process {pid})"),
        Hand { worker, alive: true, .. } => worker.to_string(),
        Hand { worker, .. } => format!("{worker} dead"),
    };
    let named = if hands.is_empty() { "" } else { "workers " };
    let workers = format!("{named}{}", hands.iter().map(name).collect::<Vec<_>>().join(", "));
    let tone = if hands.iter().all(|hand| hand.alive) { Tone::Plain } else { Tone::Bad };
    let mut parts = Vec::new();
    if let Some(percent) = percent.filter(|_| screen.width.is_some()) {
        parts.push(Part::new(Tone::Busy, bar(percent, BAR)).rank(3));
    }
    parts.push(Part::new(Tone::Plain, far));
    parts.push(Part::new(tone, workers).rank(1).flexible());
    screen.line(2, "  ", parts)
}

/// So many percent of a line.
pub fn bar(percent: u64, width: usize) -> String {
    let full = usize::try_from(percent.min(100)).unwrap_or(0) * width / 100;
    format!("{}{}", "━".repeat(full), "─".repeat(width - full))
}

fn signal_lines(view: &View, now: Now<'_>, screen: &Screen<'_>) -> String {
    let all: Vec<&Signal> = pending(view, now).collect();
    let mut out = String::new();
    for signal in all.iter().take(SIGNALS) {
        out.push_str(&screen.text(2, Tone::Warn, signal_text(signal, now)));
    }
    if all.len() > SIGNALS {
        out.push_str(&screen.text(2, Tone::Warn, format!("and {} more signals", all.len() - SIGNALS)));
    }
    out
}

fn signal_text(signal: &Signal, now: Now<'_>) -> String {
    let verb = if signal.is_barrier() { "holds calls back" } else { "is not told yet" };
    let said = signal.message.as_deref().map(|m| format!(": {}", one_line(m, SAID))).unwrap_or_default();
    let left = signal_left(signal, now).map(|ms| format!(" ({} left)", when::ms(ms))).unwrap_or_default();
    format!("a signal of {} to {} {verb}{left}{said}", signal.task, signal.hook.name())
}

fn warning_lines(picture: &Picture<'_>, screen: &Screen<'_>) -> String {
    let state = picture.state;
    let mut out = String::new();
    let mut shown = 0;
    for warning in state.warnings.iter().rev().take(WARNINGS) {
        let by = warning.worker.map(|w| format!("{w} ")).unwrap_or_default();
        let said = warning.message.as_deref().map(|m| format!(": {}", one_line(m, SAID))).unwrap_or_default();
        let times = if warning.count > 1 { format!(" ({} times)", warning.count) } else { String::new() };
        let text = format!("! {by}{} warns{times}{said}", warning.task);
        out.push_str(&screen.text(2, Tone::Warn, text));
        shown += warning.count;
    }
    if state.warned > shown {
        let more = format!("and {} more warnings: cpw events {}", state.warned - shown, screen.name(&picture.plan.run));
        out.push_str(&screen.text(2, Tone::Warn, more));
    }
    out
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

/// The sign of a task's state, which says the same as its colour.
pub fn sign(phase: Phase) -> &'static str {
    match phase {
        Phase::Done => "✓",
        Phase::Failed | Phase::TimedOut | Phase::Lost => "✗",
        Phase::Running => "▸",
        Phase::Retrying => "↻",
        Phase::Ready => "○",
        Phase::Waiting => "·",
        Phase::Skipped | Phase::Cancelled => "–",
    }
}

/// Which tasks are shown where there is room for so many: all, or what matters, each kind with its share: what went wrong,
/// what runs, what comes next, what was done last.
pub fn chosen(state: &State, rows: Option<usize>) -> Vec<usize> {
    let all = state.tasks.len();
    let Some(rows) = rows.filter(|rows| *rows < all) else { return (0..all).collect() };
    let is = |wanted: &[Phase]| (0..all).filter(|&i| wanted.contains(&state.tasks[i].phase)).collect::<Vec<_>>();
    let mut next: Vec<usize> = state.retrying.iter().map(|(_, i)| *i).collect();
    let ready = state.ready.iter().chain(&state.ready_claude).chain(&state.ready_leased).map(|(_, i)| *i);
    next.extend(ready);
    next.extend(is(&[Phase::Waiting]));
    let mut over = is(&[Phase::Done, Phase::Cancelled, Phase::Skipped]);
    over.sort_by(|&a, &b| state.tasks[b].ended.cmp(&state.tasks[a].ended));
    let kinds =
        [is(&[Phase::Failed, Phase::TimedOut, Phase::Lost]), state.running.iter().copied().collect(), next, over];
    let mut shares = [0; 4];
    // A third of the room for each of the first three, then the rest for who has more, in that order.
    for (share, kind) in shares.iter_mut().zip(&kinds).take(3) {
        *share = kind.len().min(rows / 3);
    }
    for (i, kind) in kinds.iter().enumerate() {
        let free = rows - shares.iter().sum::<usize>();
        shares[i] = kind.len().min(shares[i] + free);
    }
    kinds.iter().zip(shares).flat_map(|(kind, share)| kind[..share].iter().copied()).collect()
}

/// The columns of a task's line.
struct Row {
    tone: Tone,
    state: String,
    id: String,
    worker: String,
    time: String,
    said: Vec<Part>,
}

fn table(picture: &Picture<'_>, screen: &Screen<'_>) -> String {
    let shown = chosen(picture.state, screen.rows);
    let rows: Vec<Row> = shown.iter().map(|&i| row(picture, i, screen)).collect();
    let widest = |cell: fn(&Row) -> &str| rows.iter().map(|r| columns(cell(r))).max().unwrap_or(0);
    let state = widest(|r| &r.state);
    let id = widest(|r| &r.id).min(screen.width.map_or(usize::MAX, |w| (w * 3 / 10).max(LEAST_ID)));
    let (worker, time) = (widest(|r| &r.worker), widest(|r| &r.time));
    let mut out = String::new();
    for row in rows {
        let cells = [
            (row.tone, fit::pad(&row.state, state)),
            (Tone::Plain, fit::pad(&fit::cut(&row.id, id), id)),
            (Tone::Dim, fit::pad(&row.worker, worker)),
            (Tone::Plain, format!("{}{}", " ".repeat(time - columns(&row.time)), row.time)),
        ];
        out.push_str(&table_line(&cells, row.said, screen));
    }
    out.push_str(&rest(picture.state, &shown, screen));
    out
}

/// The fewest columns of an id.
const LEAST_ID: usize = 12;

fn table_line(cells: &[(Tone, String)], said: Vec<Part>, screen: &Screen<'_>) -> String {
    let mut out = String::from(" ");
    let mut used = 1;
    let last =
        if said.iter().all(Part::is_empty) { cells.iter().rposition(|(_, c)| !c.trim().is_empty()) } else { None };
    for (i, (tone, cell)) in cells.iter().enumerate().filter(|(_, (_, cell))| !cell.is_empty()) {
        if last.is_some_and(|last| i > last) {
            break;
        }
        let cell = if last == Some(i) { cell.trim_end() } else { cell };
        let gap = if i == 0 { 1 } else { 2 };
        let room = screen.width.map_or(usize::MAX, |w| w.saturating_sub(used + gap));
        let cell = fit::cut(cell, room);
        used += gap + columns(&cell);
        let _ = write!(out, "{}{}", " ".repeat(gap), screen.paint.tone(*tone, cell));
    }
    let room = screen.width.map(|w| w.saturating_sub(used + 2));
    if last.is_none() && room != Some(0) {
        let _ = write!(out, "  {}", fit::line(said, " · ", room, screen.paint));
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// How many are not shown, by their states.
fn rest(state: &State, shown: &[usize], screen: &Screen<'_>) -> String {
    let hidden = state.tasks.len() - shown.len();
    if hidden == 0 {
        return String::new();
    }
    let shown: BTreeSet<usize> = shown.iter().copied().collect();
    let mut counts: BTreeMap<Phase, usize> = BTreeMap::new();
    for (_, task) in state.tasks.iter().enumerate().filter(|(i, _)| !shown.contains(i)) {
        *counts.entry(task.phase).or_insert(0) += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(phase, n)| format!("{n} {}", phase.word())).collect();
    screen.text(2, Tone::Dim, format!("and {hidden} more: {}", counts.join(", ")))
}

fn row(picture: &Picture<'_>, i: usize, screen: &Screen<'_>) -> Row {
    let Picture { plan, state, .. } = picture;
    let task = &state.tasks[i];
    let word = picture.task_word(i);
    let tone = if picture.facts.stopped.contains(&i) { Tone::Warn } else { Tone::of(task.phase) };
    Row {
        tone,
        state: format!("{} {word}", sign(task.phase)),
        id: plan.tasks[i].id.to_string(),
        worker: task.worker.map(|w| w.to_string()).unwrap_or_default(),
        time: picture.duration_ms(i).map(if screen.is_narrow() { when::short } else { when::ms }).unwrap_or_default(),
        said: said(picture, i, screen),
    }
}

/// What there is to say of a task, the most important first, and which of it goes where there is no room.
fn said(picture: &Picture<'_>, i: usize, screen: &Screen<'_>) -> Vec<Part> {
    let Picture { plan, state, facts, now } = picture;
    let task = &state.tasks[i];
    let mut parts = Vec::new();
    let mut say = |tone, rank, text: String| parts.push(Part::new(tone, text).rank(rank));
    if let Some(percent) = task.percent {
        let far = if screen.is_roomy() { format!("{} ", bar(u64::from(percent), BAR / 2)) } else { String::new() };
        say(Tone::Busy, 0, format!("{far}{percent} %"));
    }
    if let Some(left) = picture.left(i) {
        let by = if left.by_history { " by earlier runs" } else { "" };
        say(Tone::Plain, 1, format!("ETA {}{by}", when::ms(left.ms)));
    }
    if let Some(slow) = picture.slow(i) {
        say(Tone::Warn, 0, slow);
    }
    if task.attempts > 1 {
        let of = plan.tasks[i].retries.saturating_add(task.refusals);
        say(Tone::Warn, 4, lines::attempt(task.attempts, of));
    }
    if picture.is_taken(i) {
        say(Tone::Dim, 5, "taken over".into());
    }
    if task.held_ms > 0 {
        say(Tone::Plain, 6, format!("held the session {}", when::ms(task.held_ms)));
    }
    if task.phase == Phase::Waiting {
        say(Tone::Dim, 0, format!("needs {}", board::unmet(state, plan, i, 3)));
    }
    if task.phase == Phase::Retrying {
        say(Tone::Warn, 0, format!("again in {}", when::ms(task.retry_at.saturating_sub(now.mono_ms))));
    }
    if let Some(blocked) = facts.blocked.get(&i) {
        say(Tone::Warn, 0, format!("waits for {}", one_line(blocked, SAID)));
    }
    let written = facts.written.get(&i);
    let line =
        if task.open.is_some() { task.note.as_ref().or(task.line.as_ref()).or(written) } else { task.line.as_ref() };
    let line = line.map(|l| one_line(l, SAID)).unwrap_or_default();
    let label = plan.tasks[i].title.as_deref().filter(|_| screen.is_roomy());
    say(Tone::Dim, 7, label.map(|l| one_line(l, SAID)).unwrap_or_default());
    parts.push(Part::new(Tone::Plain, line).rank(2).flexible());
    parts
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;
    use crate::base::ids::SessionId;
    use crate::logic::simulation::{plan, run_started, task};
    use crate::model::event::{Body, Done, Draft, Ended, Event, Process, Progress, RunEnded, Started, Verdict};

    const BEGUN: i64 = 1_795_282_375_000;

    fn now() -> Now<'static> {
        Now { mono_ms: 100_000, unix_ms: 1_795_282_475_000, boot_id: "boot" }
    }

    struct Told {
        plan: Plan,
        state: State,
    }

    impl Told {
        fn new(tasks: Vec<crate::model::plan::Task>) -> Told {
            let mut plan = plan(tasks);
            plan.run = RunId::new("20261121-173255123456-3f9a2c11d0e4b5a6c7d8").unwrap();
            plan.rule = Some("analyze".into());
            plan.session = SessionId::new("0d7c21db-c86a-4ce8-8596-eab74720765d").ok();
            let mut told = Told { state: State::new(&plan), plan };
            let started = run_started(&told.plan, "boot");
            told.tell(Draft::run(started), 0);
            told
        }

        fn tell(&mut self, draft: Draft, second: i64) {
            let seq = self.state.view.seq + 1;
            self.state.apply(&Event::new(draft, seq, when::stamp(BEGUN + second * 1000)));
        }

        fn attempt(&mut self, worker: u32, id: &str, body: Body, second: i64) {
            let id = TaskId::new(id).unwrap();
            let number = self.state.tasks[self.state.index_of(&id).unwrap()].attempts.max(1);
            let number = if matches!(body, Body::Started(_)) { number } else { number.max(1) };
            self.tell(Draft::attempt(Some(WorkerNo(worker)), &id, number, body), second);
        }

        fn start(&mut self, worker: u32, id: &str, second: u64) {
            let started = Started { cwd: "/".into(), mono_ms: second * 1000, ..Started::default() };
            self.attempt(worker, id, Body::Started(started), i64::try_from(second).unwrap());
        }

        fn shows(&self, facts: &Facts, detail: bool, rows: Option<usize>) -> String {
            let picture = Picture { plan: &self.plan, state: &self.state, facts, now: now() };
            let names = short_names([&self.plan.run].into_iter(), std::slice::from_ref(&self.plan.run));
            let mut out = String::new();
            for width in [Some(60), Some(80), Some(120), None] {
                let screen = Screen { width, rows, names: &names, paint: Paint::plain() };
                let screen = if width.is_none() { Screen { rows, ..Screen::wide(Paint::plain()) } } else { screen };
                let text = show(&Entry::Whole(picture), detail, &screen);
                for line in text.lines().filter(|_| width.is_some()) {
                    assert!(columns(line) <= width.unwrap_or(0), "{line}");
                }
                let title = width.map_or_else(|| "a pipe".to_owned(), |w| format!("{w} columns"));
                write!(out, "-- {title}\n{text}").unwrap();
            }
            out
        }
    }

    fn done(summary: &str) -> Body {
        Body::Done(Done { exit: 0, duration_ms: 9500, summary: Some(summary.into()), ..Done::default() })
    }

    fn failed(reason: &str, retry: Option<u64>) -> Body {
        let (will_retry, retry_at) = (retry.is_some(), retry);
        let (exit, duration_ms) = (Some(1), Some(12_000));
        Body::Failed(Ended { reason: reason.into(), exit, duration_ms, will_retry, retry_at, ..Ended::default() })
    }

    fn story() -> (Told, Facts) {
        let mut tasks: Vec<_> =
            ["build", "lint", "test-the-whole-interface", "docs", "flaky", "ready-one", "deploy"].map(task).into();
        let id = |name: &str| TaskId::new(name).unwrap();
        tasks[6].needs = vec![id("test-the-whole-interface").into(), id("docs").into()];
        tasks[6].title = Some("everything to production".into());
        tasks[4].retries = 2;
        tasks[3].expected = Some(15_000);
        let mut told = Told::new(tasks);
        for n in 1..=4 {
            let process = Process { pid: 4000 + i32::try_from(n).unwrap(), start_time: 1, boot_id: "boot".into() };
            told.tell(Draft::worker(WorkerNo(n), Body::WorkerStarted(process)), 1);
        }
        told.start(1, "build", 2);
        told.start(2, "lint", 3);
        told.start(3, "test-the-whole-interface", 4);
        told.start(4, "docs", 5);
        told.attempt(
            1,
            "build",
            done("12 crates, \u{1b}[31mno\u{1b}[0m warnings, 名前は長い文字列です and so on and on"),
            12,
        );
        told.attempt(2, "lint", failed("exit 1: 3 problems in src/main.rs", None), 15);
        let half = Progress {
            percent: Some(60),
            eta_s: Some(40),
            note: Some("compiling 日本語.rs".into()),
            ..Progress::default()
        };
        told.attempt(3, "test-the-whole-interface", Body::Progress(half), 98);
        told.start(1, "flaky", 20);
        told.attempt(1, "flaky", failed("exit 7", Some(104_000)), 30);
        let facts = Facts {
            folder: "/p/.claude/runs/x".into(),
            shown: ".claude/runs/x".into(),
            hands: (1..=4)
                .map(|n| Hand { worker: WorkerNo(n), pid: 4000 + i32::try_from(n).unwrap(), alive: n != 4 })
                .collect(),
            tended: Hands::Alive,
            stopped: BTreeSet::from([3]),
            written: BTreeMap::from([(3, "page 7 of 9".to_owned())]),
            blocked: BTreeMap::from([(5, "db, held by task lint (W2)".to_owned())]),
        };
        (told, facts)
    }

    #[test]
    fn a_run_is_understood_at_three_widths_and_in_a_pipe() {
        let (told, facts) = story();
        insta::assert_snapshot!("a_run", told.shows(&facts, false, None));
    }

    #[test]
    fn the_run_that_was_asked_for_is_shown_in_detail_and_after_its_end() {
        let (mut told, facts) = story();
        insta::assert_snapshot!("one_run", told.shows(&facts, true, Some(4)));
        for name in ["test-the-whole-interface", "docs"] {
            told.attempt(3, name, done("fine"), 100);
        }
        let ended = RunEnded {
            status: Verdict::Failed,
            reason: "lint failed".into(),
            done: 3,
            failed: 1,
            skipped: 0,
            cancelled: 0,
        };
        told.tell(Draft::run(Body::RunEnded(ended)), 100);
        let facts = Facts { stopped: BTreeSet::new(), blocked: BTreeMap::new(), ..facts };
        insta::assert_snapshot!("an_ended_run", told.shows(&facts, true, None));
    }

    #[test]
    fn of_thousands_of_tasks_what_matters_is_shown_and_the_rest_counted() {
        let mut told = Told::new((0..3000).map(|n| task(&format!("t{n:04}"))).collect());
        for n in 0..1000 {
            let id = format!("t{n:04}");
            told.start(1, &id, 1);
            let body = match n % 100 {
                7 => failed("exit 1", None),
                8 if n > 900 => continue,
                _ => done("fine"),
            };
            told.attempt(1, &id, body, 2 + n / 100);
        }
        insta::assert_snapshot!("thousands", told.shows(&Facts::default(), false, Some(12)));
        let all = chosen(&told.state, None);
        assert_eq!(all, (0..3000).collect::<Vec<_>>());
        for rows in 0..40 {
            assert_eq!(chosen(&told.state, Some(rows)).len(), rows, "{rows}");
        }
    }

    #[test]
    fn an_id_is_as_short_as_it_can_be_without_meaning_another_run() {
        let all: Vec<RunId> =
            ["20261121-1-abcdef0123456789", "20261121-2-abcdef9123456789", "20261121-3-202611aaaaaaaaaa", "nightly"]
                .map(|id| RunId::new(id).unwrap())
                .into();
        let names = short_names(all.iter(), &all);
        let names: Vec<&str> = all.iter().map(|id| names[id].as_str()).collect();
        assert_eq!(names, ["abcdef0", "abcdef9", "202611a", "nightly"]);
    }
}
