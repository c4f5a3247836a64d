//! `cpw status`: what runs here, how far it is, what went wrong. Whoever looks also helps: an open run whose workers are all
//! dead gets a new one. The object that `--json` prints is described in `docs/status.md`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::actor::crew::{self, Life, Tended};
use crate::actor::planner;
use crate::base::exit::Exit;
use crate::base::ids::{RunId, WorkerNo};
use crate::base::text::one_line;
use crate::cmd::find;
use crate::cmd::lease::Standing;
use crate::cmd::{top, watch};
use crate::logic::leases;
use crate::logic::state::State;
use crate::logic::view::View;
use crate::model::event::Process;
use crate::store::home;
use crate::store::hooklog;
use crate::store::registry;
use crate::store::run::{self, Run, RunDir, RunError};
use crate::sys::clock;
use crate::sys::process;
use crate::ui::overview::{self, Entry, Facts, Hand, Hands, Now, Picture};
use crate::ui::paint::Paint;
use crate::ui::print;
use crate::ui::report;
use crate::ui::when;

/// Runs that are listed without `--all`.
const LISTED: usize = 10;

/// Hook errors older than this are not mentioned, in milliseconds.
const RECENT_MS: u64 = 24 * 3600 * 1000;

/// Hook errors that are counted, at most.
const MAX_ERRORS: usize = 100;

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
    facts: Facts,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let project = find::project()?;
    if args.watch && top::fits() {
        return top::on_screen(&project, args.run.as_deref(), args.all);
    }
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
        let runs: Vec<Value> = shown.iter().map(|one| report::run(&entry(one))).collect();
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
    let tended = match crew::tend_run(&mut run) {
        Ok(Tended::Alive) => Hands::Alive,
        Ok(Tended::Hired(worker)) => Hands::Hired(worker),
        Ok(Tended::Nobody) => Hands::Nobody,
        Ok(Tended::Foreign) => Hands::Foreign(registry::FOREIGN),
        Err(e) => Hands::None(e.to_string()),
    };
    let facts = facts(&run, tended);
    Shown::Whole(Box::new(Whole { run, facts }))
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
    out.push_str(&overview::entry(&entry(shown), detail, paint));
}

/// A run as it is now.
fn entry(shown: &Shown) -> Entry<'_> {
    let now = Now { mono_ms: clock::mono_ms(), unix_ms: clock::unix_ms(), boot_id: clock::boot_id() };
    match shown {
        Shown::Damaged(id, word, why) => Entry::Damaged(id, word, why),
        Shown::Brief(id, view) => Entry::Brief(id, view, now),
        Shown::Whole(whole) => {
            let Whole { run: Run { plan, state, .. }, facts } = &**whole;
            Entry::Whole(Picture { plan, state, facts, now })
        }
    }
}

/// What is known of a run beside its log.
fn facts(run: &Run, tended: Hands) -> Facts {
    let workers = run.state.view.workers.iter();
    let hand = |(&n, p): (&u32, &Process)| {
        let alive = crew::life(&run.folder, WorkerNo(n), p) == Life::Alive;
        Hand { worker: WorkerNo(n), pid: p.pid, alive }
    };
    Facts {
        folder: run.folder.path().to_owned(),
        shown: run.folder.shown(),
        hands: workers.map(hand).collect(),
        tended,
        stopped: run.state.running.iter().copied().filter(|&i| is_stopped(&run.state, i)).collect(),
    }
}

/// Whether the process of a running task, or its worker, was stopped.
fn is_stopped(state: &State, i: usize) -> bool {
    let open = state.tasks[i].open.as_ref();
    let worker = open.and_then(|o| state.view.workers.get(&o.worker.0));
    let processes = open.and_then(|o| o.process.as_ref()).into_iter().chain(worker);
    processes.filter_map(process::exists).any(|stat| stat.is_stopped())
}
