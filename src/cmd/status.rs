//! `cpw status`: what runs here, how far it is, what went wrong. Whoever looks also helps: an open run whose workers are all
//! dead gets a new one. The object that `--json` prints is described in `docs/status.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::actor::crew::{self, Life, Tended};
use crate::actor::planner;
use crate::base::exit::Exit;
use crate::base::ids::{RunId, TaskId, WorkerNo};
use crate::base::text::one_line;
use crate::cmd::find;
use crate::cmd::lease::Standing;
use crate::cmd::watch;
use crate::logic::leases;
use crate::logic::pace::{self, Left};
use crate::logic::sched;
use crate::logic::signals::Signal;
use crate::logic::state::{Held, State};
use crate::logic::view::{Phase, View};
use crate::logic::vote::{Ballot, Poll, Tally};
use crate::model::plan::Plan;
use crate::store::home;
use crate::store::hooklog;
use crate::store::registry;
use crate::store::run::{self, Run, RunDir, RunError};
use crate::sys::clock;
use crate::sys::process;
use crate::ui::board;
use crate::ui::lines;
use crate::ui::paint::Paint;
use crate::ui::print;
use crate::ui::table;
use crate::ui::when;

/// Runs that are listed without `--all`.
const LISTED: usize = 10;

/// Voters that are named where they are still to come.
const VOTERS: usize = 8;

/// Hook errors older than this are not mentioned, in milliseconds.
const RECENT_MS: u64 = 24 * 3600 * 1000;

/// Hook errors that are counted, at most.
const MAX_ERRORS: usize = 100;

/// Signals that are shown of a run.
const SIGNALS: usize = 8;

/// Show the runs of this project, or one run in detail
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw status               the newest runs here, open ones with their tasks\n  \
    cpw status 20261121-10   one run in detail, by a unique beginning of its id\n  \
    cpw status --watch       all of it again with every change, until Ctrl-C\n  \
    cpw status 2026 --watch  one run, live, until it has ended\n  \
    cpw status --json        for programs; docs/status.md describes the object\n\n\
    With --watch a terminal shows it in place, and a pipe gets lines of a run, or a block for every change.\n\
    An open run whose workers are all dead gets a new one: looking finishes what was left.")]
pub struct Args {
    /// The run: its id or a unique beginning of it
    run: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Go on showing what changes: of a run until it has ended, else until Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
    /// All runs, not only the newest 10
    #[arg(long, conflicts_with = "run")]
    all: bool,
}

/// A run as it is shown.
pub(super) enum Shown {
    /// With all its tasks.
    Whole(Box<Whole>),
    /// Ended: only what its index knows.
    Brief(RunId, Box<View>),
    /// Not readable: its state in a word, and why.
    Damaged(RunId, &'static str, String),
}

pub(super) struct Whole {
    pub(super) run: Run,
    lives: Vec<(WorkerNo, i32, Life)>,
    tended: Result<Tended, String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let project = find::project()?;
    if args.watch {
        return match &args.run {
            Some(given) => watch::run(&find::run(&project, Some(given))?),
            None => watch::all(&project, args.all),
        };
    }
    let (shown, more) = match &args.run {
        Some(given) => {
            let folder = find::run(&project, Some(given))?;
            let id = folder.path().file_name().and_then(|n| RunId::new(n.to_str()?).ok());
            (id.into_iter().filter_map(|id| look(&folder, id, true)).collect(), 0)
        }
        None => list(&project, args.all, &mut BTreeMap::new())?,
    };
    let errors = hook_errors();
    if args.json {
        let runs: Vec<Value> = shown.iter().map(run_json).collect();
        let mut all =
            json!({ "version": 1, "project": project, "runs": runs, "hook_errors": errors_json(errors.as_ref()) });
        match leases(&project) {
            Ok(standing) => all["leases"] = standing.to_json(),
            Err(e) => all["leases"] = json!({ "error": format!("{e:#}") }),
        }
        print::out(all);
        return Ok(Exit::Ok);
    }
    let paint = Paint::for_stdout();
    let mut out = String::new();
    for one in &shown {
        text(&mut out, one, args.run.is_some(), paint);
    }
    out.push_str(&beside(&project, &shown, more, paint));
    if let Some(Errors { count, last, file }) = &errors {
        let n = if *count == 1 { "1 hook error".into() } else { format!("{count} hook errors") };
        let error = one_line(last.error.as_deref().unwrap_or_default(), 120);
        let line = format!("{n} in the last day, the last in {}: {error} (all in {file})\n", one_line(&last.hook, 40));
        out.push_str(&paint.warn(line));
    }
    print::raw(out.as_bytes());
    Ok(Exit::Ok)
}

/// What is to be said beside the runs.
pub(super) fn beside(project: &Path, shown: &[Shown], more: usize, paint: Paint) -> String {
    let mut out = if shown.is_empty() {
        format!("no run in {}\n", project.display())
    } else if more > 0 {
        paint.dim(format_args!("{more} older: cpw status --all\n"))
    } else {
        String::new()
    };
    match leases(project) {
        Ok(standing) => leases_text(&mut out, &standing),
        Err(e) => out.push_str(&paint.bad(format_args!("leases: {}\n", one_line(&format!("{e:#}"), 300)))),
    }
    out
}

fn leases(project: &Path) -> anyhow::Result<Standing> {
    Standing::of(&planner::runs_folder(project, home::State::existing()?.as_ref())?)
}

/// Who holds what, and who waits for it.
fn leases_text(out: &mut String, standing: &Standing) {
    const SHOWN: usize = 20;
    let held = standing.held.iter().map(|l| ("held by", &l.resources, &l.holder, l.since_ms));
    let queue = standing.queue.iter().map(|r| ("waited for by", &r.resources, &r.holder, r.since_ms));
    for (how, resources, holder, since_ms) in held.chain(queue).take(SHOWN) {
        let (what, who) = (leases::list(resources), leases::name(holder));
        let run = holder.run.as_ref().map_or_else(String::new, |run| format!(" of {run}"));
        let _ = writeln!(out, "{what}: {how} {who}{run}, for {}", standing.age(since_ms));
    }
    let more = (standing.held.len() + standing.queue.len()).saturating_sub(SHOWN);
    if more > 0 {
        let _ = writeln!(out, "{more} more: cpw lease --list");
    }
}

/// The newest runs, and how many there are beside. What is `known` from a look before is only brought up to date.
pub(super) fn list(
    project: &Path,
    all: bool,
    known: &mut BTreeMap<RunId, Shown>,
) -> anyhow::Result<(Vec<Shown>, usize)> {
    let ids = run::list(project)?;
    let mut shown = Vec::new();
    let mut ids = ids.into_iter();
    while shown.len() < LISTED || all {
        let Some(id) = ids.next() else { break };
        let again = known.remove(&id).and_then(look_again);
        shown.extend(again.or_else(|| RunDir::open(project, &id).ok().and_then(|folder| look(&folder, id, false))));
    }
    Ok((shown, ids.len()))
}

/// Looks at a run, and sees to it that somebody works on it. `None`: the folder holds no run.
fn look(folder: &RunDir, id: RunId, whole: bool) -> Option<Shown> {
    if !whole {
        match folder.open_view() {
            Ok(hooked) if hooked.view.ended.is_some() => return Some(Shown::Brief(id, Box::new(hooked.view))),
            Ok(_) => {}
            Err(RunError::NoRun(_)) => return None,
            Err(e) => return Some(damaged(id, e)),
        }
    }
    match folder.open_run() {
        Ok(run) => Some(tend(run)),
        Err(RunError::NoRun(_)) => None,
        Err(e) => Some(damaged(id, e)),
    }
}

/// A run that was looked at before; `None`: it has to be opened anew.
fn look_again(before: Shown) -> Option<Shown> {
    match before {
        Shown::Brief(..) => Some(before),
        Shown::Whole(whole) => {
            let mut run = whole.run;
            run.refresh().ok().filter(|()| run.state.view.ended.is_none()).map(|()| tend(run))
        }
        Shown::Damaged(..) => None,
    }
}

fn tend(mut run: Run) -> Shown {
    let tended = crew::tend_run(&mut run).map_err(|e| e.to_string());
    let lives = run.state.view.workers.iter();
    let lives = lives.map(|(&n, p)| (WorkerNo(n), p.pid, crew::life(&run.folder, WorkerNo(n), p))).collect();
    Shown::Whole(Box::new(Whole { run, lives, tended }))
}

fn damaged(id: RunId, e: RunError) -> Shown {
    const DAMAGED: &str = "damaged";
    match e {
        RunError::Damaged { why, .. } => Shown::Damaged(id, DAMAGED, why),
        e @ RunError::Plan(_) => Shown::Damaged(id, DAMAGED, e.to_string()),
        // Busy, or refused by the system: it says nothing about the run.
        e => Shown::Damaged(id, "unknown", e.to_string()),
    }
}

/// A run's state in a word.
fn word(view: &View) -> &'static str {
    view.ended.as_ref().map_or("active", |e| lines::verdict(e.status))
}

/// A task's state in a word; a running one whose process, or whose worker, was stopped is stalled.
fn task_word(state: &State, i: usize) -> &'static str {
    let task = &state.tasks[i];
    let worker = task.open.as_ref().and_then(|o| state.view.workers.get(&o.worker.0));
    let processes = task.open.as_ref().and_then(|o| o.process.as_ref()).into_iter().chain(worker);
    if processes.filter_map(process::exists).any(|stat| stat.is_stopped()) {
        return "stalled";
    }
    task.phase.word()
}

struct Errors {
    count: usize,
    last: hooklog::Line,
    file: String,
}

fn hook_errors() -> Option<Errors> {
    let home = home::State::existing().ok().flatten()?;
    let since = i64::try_from(clock::unix_ms().saturating_sub(RECENT_MS)).unwrap_or(0);
    let mut errors = hooklog::errors(home.path(), MAX_ERRORS);
    errors.retain(|line| when::unix_ms(&line.ts).is_some_and(|t| t >= since));
    let count = errors.len();
    let file = home.path().join(hooklog::NAME).display().to_string();
    errors.into_iter().next().map(|last| Errors { count, last, file })
}

fn errors_json(errors: Option<&Errors>) -> Value {
    errors.map_or(Value::Null, |e| json!({ "count": e.count, "last": e.last, "file": e.file }))
}

pub(super) fn text(out: &mut String, shown: &Shown, detail: bool, paint: Paint) {
    match shown {
        Shown::Damaged(id, word, why) => {
            let _ = writeln!(out, "{}  {}: {}", paint.bold(id), paint.bad(word), one_line(why, 300));
            let hint = format!("  nothing is started from it; `cpw doctor {id}` says what can be done\n");
            out.push_str(&paint.dim(hint));
        }
        Shown::Brief(id, view) => {
            out.push_str(&head(id, view, None, paint));
            out.push('\n');
            out.push_str(&resume_hint(id, view, paint));
            for signal in pending(view).take(SIGNALS) {
                out.push_str(&paint.warn(signal_line(signal)));
            }
        }
        Shown::Whole(whole) => whole_text(out, whole, detail, paint),
    }
}

/// How to go on with a run that was interrupted: that is a person's choice.
fn resume_hint(id: &RunId, view: &View, paint: Paint) -> String {
    let hint = || paint.dim(format_args!("  `cpw resume {id}` goes on with what is not done\n"));
    view.ended.as_ref().filter(|end| sched::was_interrupted(end)).map_or_else(String::new, |_| hint())
}

/// `20261121-101112-…  failed: x failed  3 done, 1 failed  5 min ago  rule analyze`
fn head(id: &RunId, view: &View, took_ms: Option<u64>, paint: Paint) -> String {
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
        line.push_str(&paint.dim(format_args!("  {}", when::ago(then, clock::unix_ms()))));
    }
    if let Some(rule) = &view.rule {
        line.push_str(&paint.dim(format_args!("  rule {}", one_line(rule, 64))));
    }
    if view.cancelled && view.ended.is_none() {
        line.push_str(&paint.warn("  cancelling"));
    }
    line
}

fn whole_text(out: &mut String, whole: &Whole, detail: bool, paint: Paint) {
    let Whole { run, lives, tended } = whole;
    let Run { plan, state, .. } = run;
    let ended = state.view.ended.is_some();
    let took = if ended { when::between(&state.first_ts, &state.last_ts) } else { None };
    out.push_str(&head(&plan.run, &state.view, took, paint));
    out.push('\n');
    if let Some(from) = &plan.from {
        let _ = writeln!(out, "  continues {from}");
    }
    out.push_str(&resume_hint(&plan.run, &state.view, paint));
    match tended {
        Ok(Tended::Hired(worker)) => {
            out.push_str(&paint.warn(format_args!("  all its workers are dead; started {worker} to finish it\n")));
        }
        Ok(Tended::Nobody) if !ended => {
            let text = "  no worker is alive: they die again and again; see workers/*/logs/worker.jsonl\n";
            out.push_str(&paint.bad(text));
        }
        Err(e) => {
            let why = one_line(e, 300);
            out.push_str(&paint.bad(format_args!("  no worker is alive and none could be started: {why}\n")));
        }
        Ok(Tended::Foreign) => out.push_str(&paint.warn(format_args!("  {}\n", registry::FOREIGN))),
        Ok(Tended::Alive | Tended::Nobody) => {}
    }
    if detail {
        if let Some(session) = &state.view.session {
            let _ = writeln!(out, "  session {session}");
        }
        let _ = writeln!(out, "  folder {}", run.folder.shown());
    }
    if !ended && !lives.is_empty() {
        let names: Vec<String> = lives
            .iter()
            .map(|(w, pid, life)| match life {
                Life::Alive => format!("{w} (process {pid})"),
                Life::Dead => paint.bad(format_args!("{w} dead")),
            })
            .collect();
        let _ = writeln!(out, "  workers {}", names.join(", "));
    }
    for signal in pending(&state.view).take(SIGNALS) {
        out.push_str(&paint.warn(signal_line(signal)));
    }
    if let Some(left) = quota_ms(state) {
        let at = when::minute(clock::unix_ms().saturating_add(left));
        let text = format!("  claude tasks wait for the quota until {at} ({} left)\n", when::ms(left));
        out.push_str(&paint.warn(text));
    }
    if let Some(left) = run_left(state, plan) {
        let far = pace::percent(state).map(|p| format!("{p} % done, ")).unwrap_or_default();
        let _ = writeln!(out, "  {far}{}", left.text_left());
    }
    let rows: Vec<Vec<String>> = (0..state.tasks.len()).map(|i| row(state, plan, i)).collect();
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
}

/// What tasks have said that the session was not told, or that holds.
fn pending(view: &View) -> impl Iterator<Item = &Signal> {
    let (now, same_boot) = (clock::mono_ms(), view.boot_id == clock::boot_id());
    // Of a run that no session owns nobody waits to hear.
    view.signals.iter().filter(move |s| view.session.is_some() && !s.is_expired(now, same_boot))
}

/// How long it still holds, in milliseconds.
fn signal_left(signal: &Signal) -> Option<u64> {
    signal.expires.map(|at| at.saturating_sub(clock::mono_ms()))
}

fn signal_line(signal: &Signal) -> String {
    let verb = if signal.is_barrier() { "holds calls back" } else { "is not told yet" };
    let said = signal.message.as_deref().map(|m| format!(": {}", one_line(m, 120))).unwrap_or_default();
    let left = signal_left(signal).map(|ms| format!(" ({} left)", when::ms(ms))).unwrap_or_default();
    format!("  a signal of {} to {} {verb}{left}{said}\n", signal.task, signal.hook.name())
}

fn signals_json(view: &View) -> Value {
    let one = |s: &Signal| {
        json!({
            "signal": s.id, "task": s.task, "hook": s.hook.name(), "blocks": s.blocks, "message": s.message,
            "count": s.count, "left_ms": signal_left(s),
        })
    };
    let all: Vec<Value> = pending(view).map(one).collect();
    if all.is_empty() { Value::Null } else { all.into() }
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

fn open_voters(poll: &Poll) -> impl Iterator<Item = &TaskId> {
    poll.voters.iter().filter(|(_, ballot)| **ballot == Ballot::Open).map(|(id, _)| id)
}

fn poll_json(poll: &Poll) -> Value {
    let Tally { proceed, abort, open, absent } = poll.tally();
    let voters: Map<String, Value> = poll
        .voters
        .iter()
        .map(|(id, ballot)| {
            let word = match ballot {
                Ballot::Open => json!("open"),
                Ballot::Cast(choice, _) => json!(choice),
                Ballot::Absent => json!("absent"),
            };
            (id.to_string(), word)
        })
        .collect();
    let verdict = poll.verdict.as_ref();
    json!({
        "topic": poll.topic, "verdict": verdict.map(|v| v.result), "no_quorum": verdict.map(|v| v.no_quorum),
        "quorum": poll.quorum, "rule": poll.rule, "proceed": proceed, "abort": abort, "open": open, "absent": absent,
        "voters": voters,
    })
}

/// For how long no `claude` task starts because the provider's quota is used up, in milliseconds.
fn quota_ms(state: &State) -> Option<u64> {
    let same_boot = state.view.boot_id == clock::boot_id() && state.view.ended.is_none();
    state.quota_until_ms.checked_sub(clock::mono_ms()).filter(|left| same_boot && *left > 0)
}

/// How long the open attempt has taken, or the last one took.
fn duration_ms(state: &State, i: usize) -> Option<u64> {
    let task = &state.tasks[i];
    match &task.open {
        Some(_) if state.view.boot_id != clock::boot_id() => None,
        Some(open) => Some(clock::mono_ms().saturating_sub(open.since_ms)),
        None => task.duration_ms,
    }
}

/// What a running task still needs.
fn left(state: &State, plan: &Plan, i: usize) -> Option<Left> {
    state.tasks[i].open.as_ref()?;
    board::left(state, plan, i, duration_ms(state, i)?, clock::unix_ms())
}

/// Whether a running task takes much longer than usual, in words.
fn slow(state: &State, plan: &Plan, i: usize) -> Option<String> {
    state.tasks[i].open.as_ref()?;
    pace::slow(duration_ms(state, i)?, plan.tasks[i].expected)
}

/// When the whole run may be over.
fn run_left(state: &State, plan: &Plan) -> Option<Left> {
    pace::run_left(state, plan, |i| left(state, plan, i))
}

/// Whether a task was done in the run that this one continues. Here nobody worked on it.
fn is_taken(state: &State, i: usize) -> bool {
    state.tasks[i].phase == Phase::Done && state.tasks[i].worker.is_none()
}

fn row(state: &State, plan: &Plan, i: usize) -> Vec<String> {
    let task = &state.tasks[i];
    let mut said = Vec::new();
    if let Some(percent) = task.percent {
        said.push(format!("{percent} %"));
    }
    if let Some(left) = left(state, plan, i) {
        let by = if left.by_history { " by earlier runs" } else { "" };
        said.push(format!("ETA {}{by}", when::ms(left.ms)));
    }
    said.extend(slow(state, plan, i));
    if task.attempts > 1 {
        said.push(lines::attempt(task.attempts, plan.tasks[i].retries.saturating_add(task.refusals)));
    }
    if is_taken(state, i) {
        said.push("taken over".into());
    }
    if task.held_ms > 0 {
        said.push(format!("held the session {}", when::ms(task.held_ms)));
    }
    if task.phase == Phase::Waiting {
        said.push(format!("needs {}", board::unmet(state, plan, i, 3)));
    }
    if task.phase == Phase::Retrying {
        said.push(format!("again in {}", when::ms(task.retry_at.saturating_sub(clock::mono_ms()))));
    }
    let line = if task.open.is_some() { task.note.as_ref().or(task.line.as_ref()) } else { task.line.as_ref() };
    said.extend(line.map(|l| one_line(l, 120)).filter(|l| !l.is_empty()));
    vec![
        " ".into(),
        plan.tasks[i].id.to_string(),
        task_word(state, i).into(),
        task.worker.map(|w| w.to_string()).unwrap_or_default(),
        duration_ms(state, i).map(when::ms).unwrap_or_default(),
        said.join(" · "),
    ]
}

fn counts_json(view: &View) -> Value {
    let c = view.counts;
    json!({
        "total": c.total, "done": c.done, "failed": c.failed, "skipped": c.skipped, "cancelled": c.cancelled,
        "open": c.open(),
    })
}

fn run_json(shown: &Shown) -> Value {
    let (id, view) = match shown {
        Shown::Damaged(id, word, why) => return json!({ "run": id, "state": word, "reason": why }),
        Shown::Brief(id, view) => (id, &**view),
        Shown::Whole(w) => (&w.run.plan.run, &w.run.state.view),
    };
    let mut o = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            o.insert(key.into(), value);
        }
    };
    put("run", json!(id));
    put("state", word(view).into());
    put("reason", json!(view.ended.as_ref().map(|e| &e.reason)));
    put("session", json!(view.session));
    put("rule", json!(view.rule));
    put("cancelling", (view.cancelled && view.ended.is_none()).into());
    put("counts", counts_json(view));
    put("signals", signals_json(view));
    let Shown::Whole(whole) = shown else { return o.into() };
    let Whole { run, lives, tended } = &**whole;
    let state = &run.state;
    put("folder", json!(run.folder.path()));
    put("continues", json!(run.plan.from));
    put("started", json!(state.first_ts));
    if view.ended.is_some() {
        put("ended", json!(state.last_ts));
        put("duration_ms", json!(when::between(&state.first_ts, &state.last_ts)));
    }
    if view.ended.is_none() {
        let left = run_left(state, &run.plan);
        put("percent", json!(pace::percent(state)));
        put("eta_s", json!(left.map(|left| left.ms.div_ceil(1000))));
        put("eta_by_history", left.filter(|left| left.by_history).map_or(Value::Null, |_| true.into()));
    }
    if state.held != Held::default() {
        put("held", json!(state.held));
    }
    put("max_workers", json!(state.max_workers));
    put("cost_usd", json!(state.spent_usd));
    put("quota_left_ms", json!(quota_ms(state)));
    let lives = lives.iter();
    let alive = |l: &Life| *l == Life::Alive;
    let workers: Vec<Value> =
        lives.map(|(w, pid, life)| json!({ "worker": w, "pid": pid, "alive": alive(life) })).collect();
    put("workers", workers.into());
    put(
        "hired",
        match tended {
            Ok(Tended::Hired(worker)) => json!(worker),
            Ok(Tended::Alive | Tended::Nobody | Tended::Foreign) | Err(_) => Value::Null,
        },
    );
    put("error", json!(tended.as_ref().err()));
    let tasks: Vec<Value> = (0..state.tasks.len()).map(|i| task_json(run, i)).collect();
    put("tasks", tasks.into());
    let votes: Vec<Value> = state.view.polls.iter().map(poll_json).collect();
    put("votes", if votes.is_empty() { Value::Null } else { votes.into() });
    o.into()
}

fn task_json(run: &Run, i: usize) -> Value {
    let (state, plan) = (&run.state, &run.plan);
    let task = &state.tasks[i];
    let mut o = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            o.insert(key.into(), value);
        }
    };
    put("task", json!(plan.tasks[i].id));
    put("title", json!(plan.tasks[i].title));
    put("state", task_word(state, i).into());
    put("worker", json!(task.worker));
    put("attempts", json!(task.attempts));
    put("needs", json!(plan.tasks[i].needs));
    if is_taken(state, i) {
        put("from", json!(plan.from));
    }
    put("percent", json!(task.percent));
    let left = left(state, plan, i);
    put("eta_s", json!(left.map(|left| left.ms.div_ceil(1000))));
    put("eta_by_history", left.filter(|left| left.by_history).map_or(Value::Null, |_| true.into()));
    put("expected_ms", json!(plan.tasks[i].expected));
    put("slow", slow(state, plan, i).map_or(Value::Null, |_| true.into()));
    put("note", json!(task.note));
    put("line", json!(task.line));
    put("exit", json!(task.exit));
    put("duration_ms", json!(duration_ms(state, i)));
    if task.held_ms > 0 {
        put("held_ms", json!(task.held_ms));
    }
    put("started", json!(task.started));
    put("ended", json!(task.ended));
    put("result", json!(task.result));
    if task.usage != crate::model::event::Usage::default() {
        put("usage", json!(task.usage));
    }
    o.into()
}
