//! `cpw doctor RUN`: one run explained. What its log is and where exactly it is damaged, whether plan and index fit it, who
//! works on it, what is left over, and what can still be done. It only looks.

use std::collections::BTreeMap;
use std::path::Path;

use crate::actor::crew::{self, Life};
use crate::actor::isolate::{self, Stage};
use crate::base::ids::WorkerNo;
use crate::base::text::one_line;
use crate::cmd::doctor::{Check, Finding};
use crate::logic::state::State;
use crate::logic::view::View;
use crate::model::event::SCHEMA;
use crate::model::plan::Plan;
use crate::store::index::{self, Index};
use crate::store::log::{self, Log};
use crate::store::registry::{self, LogId};
use crate::store::run::{DELIVER_LOCK, LEADER_LOCK, PLAN, RunDir, RunError, WORKERS};
use crate::store::scan::{self, Scan};
use crate::sys::dir::TEMP_PREFIX;
use crate::sys::fsinfo;
use crate::sys::lock::{self, Probe};

/// Results that are listed, at most.
const MAX_RESULTS: usize = 50;

/// All checks of one run, in the order in which they are shown.
pub fn of(folder: &RunDir) -> Vec<Check> {
    let scan = folder.dir.open_read(log::NAME).and_then(|file| scan::scan(&file)).ok();
    let plan = folder.plan().ok();
    // What stands before a damage is still true.
    let state = plan.as_ref().and_then(|(plan, _)| {
        let mut state = State::new(plan);
        let mut log = Log::open_read(&folder.dir).ok()?;
        let began_with = registry::record(folder).and_then(|r| r.log);
        if began_with.is_some_and(|known| !known.is(&LogId::of(log.id()))) {
            return None;
        }
        let whole = log.read(&mut state).is_ok();
        Some((state, whole))
    });
    let opened = folder.open_run().map(drop);
    let mut out = vec![place(folder), log(folder, scan.as_ref(), opened.as_ref().err())];
    out.push(plan_file(folder, plan.as_ref().map(|(_, sha256)| sha256.as_str()), state.as_ref().map(|(s, _)| s)));
    if let (Some((plan, _)), Some((state, true))) = (&plan, &state) {
        out.push(view(folder, plan, state));
    }
    if let Some((state, _)) = &state {
        out.push(workers(folder, state));
        out.extend(lost_rewrites(std::iter::once(&state.view)));
    }
    out.push(locks(folder));
    out.extend(leftovers(folder));
    out.extend(worktrees(folder));
    if opened.is_err() {
        out.push(results(folder, state.as_ref().map(|(s, _)| s)));
        out.push(again(folder, plan.is_some()));
    }
    out
}

fn place(folder: &RunDir) -> Check {
    const NAME: &str = "run";
    let shown = folder.path().display();
    match registry::record(folder) {
        Some(_) => Check::new(NAME, Finding::Ok, format!("{shown}, made by your cpw")),
        None => Check::new(NAME, Finding::Note, format!("{shown}: {}", registry::FOREIGN)),
    }
}

fn plural(n: u64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

fn log(folder: &RunDir, scan: Option<&Scan>, opened: Option<&RunError>) -> Check {
    const NAME: &str = "log";
    let path = folder.path().join(log::NAME);
    let text = scan.map_or_else(String::new, |scan| {
        format!(
            "{}, {} good, schema {}",
            plural(scan.bytes, "byte", "bytes"),
            plural(scan.lines, "line", "lines"),
            scan.schema
        )
    });
    if let Some(fault) = scan.and_then(|s| s.fault.as_ref()) {
        let text = format!(
            "{}, line {}, byte {}: {}\nthe line begins: {}\nbefore it: {text}",
            path.display(),
            fault.line,
            fault.offset,
            one_line(&fault.why, 200),
            fault.excerpt,
        );
        return Check::new(NAME, Finding::Error, text)
            .remedy("nothing is started from this run; what is known of it stays");
    }
    if let Some(RunError::Damaged { why, .. }) = opened {
        let text = format!("{}: {why}{}{text}", path.display(), if text.is_empty() { "" } else { "\nthere is: " });
        return Check::new(NAME, Finding::Error, text)
            .remedy("nothing is started from this run. Should you have the same file, not a copy of it, move it back");
    }
    if let Some(e @ (RunError::Io { .. } | RunError::Log(_) | RunError::NoRun(_))) = opened {
        return Check::new(NAME, Finding::Error, one_line(&e.to_string(), 300));
    }
    let Some(scan) = scan else {
        return Check::new(NAME, Finding::Error, format!("{} cannot be read", path.display()));
    };
    if scan.torn > 0 {
        let torn = plural(scan.torn, "byte", "bytes");
        let text = format!("{text}; behind them {torn} of a line that is not whole");
        return Check::new(NAME, Finding::Note, text)
            .remedy("nothing to do: the next writer cuts them off and says so");
    }
    if scan.schema > SCHEMA {
        let text = format!("{text}: a newer cpw has written it; this one shows what it knows and writes nothing");
        return Check::new(NAME, Finding::Warn, text).remedy("use the newer cpw for this run");
    }
    Check::new(NAME, Finding::Ok, text)
}

fn plan_file(folder: &RunDir, sha256: Option<&str>, state: Option<&State>) -> Check {
    const NAME: &str = "plan";
    let Some(sha256) = sha256 else {
        let why = folder.plan().map_or_else(|e| e.to_string(), |_| "it was just made".into());
        return Check::new(NAME, Finding::Error, one_line(&why, 300));
    };
    match state.map(|s| s.view.plan_sha256.as_str()).filter(|s| !s.is_empty()) {
        None => Check::new(
            NAME,
            Finding::Note,
            format!("{PLAN} is a plan; the log no longer says whether it is this run's"),
        ),
        Some(known) if known == sha256 => {
            Check::new(NAME, Finding::Ok, format!("{PLAN} is the one that the log names"))
        }
        Some(_) => Check::new(NAME, Finding::Error, format!("{PLAN} was changed after the run began"))
            .remedy("nothing is started from it; put its old bytes back, or run it as a new plan"),
    }
}

/// Whether the index fits, and whether it says the same as the whole log.
fn view(folder: &RunDir, plan: &Plan, state: &State) -> Check {
    const NAME: &str = "index";
    if !matches!(folder.dir.stat(index::NAME), Ok(Some(_))) {
        return Check::new(NAME, Finding::Ok, "absent: hooks read the log until a worker writes it");
    }
    let Ok(mut log) = Log::open_read(&folder.dir) else {
        return Check::new(NAME, Finding::Note, "the log cannot be opened to compare");
    };
    let Some(mut known) = Index::open(&folder.dir, &mut log).and_then(|index| index.view()) else {
        return match index::contradicts(&folder.dir, &log) {
            Some(why) => Check::new(NAME, Finding::Error, why),
            None => Check::new(NAME, Finding::Note, "does not fit this log, or is broken: it is ignored and rewritten"),
        };
    };
    let at = log.offset();
    // Others may write meanwhile: both are folded to the same place.
    let mut all = State::new(plan);
    let read = log.read(&mut known).and_then(|()| Log::open_read(&folder.dir)?.read(&mut all));
    let behind = log.offset() - at;
    let age = if behind == 0 { "fresh".into() } else { format!("{} behind", plural(behind, "byte", "bytes")) };
    match read {
        Err(e) => Check::new(NAME, Finding::Note, one_line(&e.to_string(), 300)),
        Ok(()) if all.view.seq != known.seq || state.view.seq != known.seq => {
            Check::new(NAME, Finding::Ok, format!("{age}; the log grows, so that it was not compared"))
        }
        Ok(()) if all.view == known => {
            Check::new(NAME, Finding::Ok, format!("{age}; with the events behind it the same as the whole log"))
        }
        Ok(()) => Check::new(NAME, Finding::Error, "says something else than the whole log")
            .remedy(format!("remove {}: it is only a cache", folder.path().join(index::NAME).display())),
    }
}

fn workers(folder: &RunDir, state: &State) -> Check {
    const NAME: &str = "workers";
    let view = &state.view;
    let lives: Vec<(u32, i32, Life)> =
        view.workers.iter().map(|(&n, p)| (n, p.pid, crew::life(folder, WorkerNo(n), p))).collect();
    let shown: Vec<String> = lives
        .iter()
        .map(|(n, pid, life)| match life {
            Life::Alive => format!("{} alive (process {pid})", WorkerNo(*n)),
            Life::Dead => format!("{} dead", WorkerNo(*n)),
        })
        .collect();
    let alive = lives.iter().any(|(_, _, life)| *life == Life::Alive);
    if view.ended.is_some() {
        return Check::new(NAME, Finding::Ok, "the run has ended");
    }
    if lives.is_empty() {
        return Check::new(NAME, Finding::Note, format!("none; {} were started", view.last_worker));
    }
    let text = shown.join(", ");
    if alive { Check::new(NAME, Finding::Ok, text) } else { Check::new(NAME, Finding::Warn, text) }
}

/// Whether another hook's rewrite of a call has won over that of a merge in one of these runs.
pub fn lost_rewrites<'a>(views: impl Iterator<Item = &'a View>) -> Option<Check> {
    let mut lost: BTreeMap<String, u64> = BTreeMap::new();
    for merge in views.flat_map(|view| &view.merges).filter(|merge| merge.lost) {
        *lost.entry(one_line(&merge.rule.tool, 80)).or_default() += 1;
    }
    let lines: Vec<String> = lost
        .iter()
        .map(|(tool, n)| {
            let times = plural(*n, "time", "times");
            format!("another hook rewrites {tool}: it won {times}, so that the workers' results were not in the call")
        })
        .collect();
    let remedy = "of several hooks that rewrite a call, the one that ends last wins: look under PreToolUse in the settings files \
                  and plugins of Claude Code, and take the other one out or narrow its matcher";
    (!lines.is_empty()).then(|| Check::new("merges", Finding::Warn, lines.join("\n")).remedy(remedy))
}

fn locks(folder: &RunDir) -> Check {
    let held: Vec<String> = [log::NAME, LEADER_LOCK, DELIVER_LOCK]
        .iter()
        .filter_map(|name| {
            let file = folder.dir.open_read(name).ok()?;
            let Ok(Probe::Held) = lock::try_shared_probe(&file) else { return None };
            let id = folder.dir.stat(name).ok()??;
            let by: Vec<String> = fsinfo::lock_holders(&id).iter().map(ToString::to_string).collect();
            let by =
                if by.is_empty() { "a process that is not known".into() } else { format!("process {}", by.join(", ")) };
            Some(format!("{name} held by {by}"))
        })
        .collect();
    let text = if held.is_empty() { "none is held".into() } else { held.join("\n") };
    Check::new("locks", Finding::Ok, text)
}

fn leftovers(folder: &RunDir) -> Option<Check> {
    let names = folder.dir.names().ok()?;
    let left: Vec<String> = names
        .iter()
        .map(|n| n.to_string_lossy())
        .filter(|n| n.starts_with(TEMP_PREFIX))
        .map(|n| one_line(&n, 60))
        .collect();
    (!left.is_empty()).then(|| {
        Check::new("left over", Finding::Note, left.join(", "))
            .remedy("written by processes that were killed; they harm nobody and can be removed once no worker lives")
    })
}

/// What tasks left behind, as the folders show it, and which of it the log still vouches for.
fn results(folder: &RunDir, state: Option<&State>) -> Check {
    const NAME: &str = "results";
    let mut lines: Vec<String> = Vec::new();
    let Ok(workers) = folder.dir.sub(WORKERS) else { return Check::new(NAME, Finding::Note, "no worker has a folder") };
    for worker in workers.names().unwrap_or_default() {
        let Ok(out) = workers.sub(&worker).and_then(|w| w.sub("out")) else { continue };
        for attempt in out.names().unwrap_or_default() {
            let Ok(dir) = out.sub(&attempt) else { continue };
            for name in dir.names().unwrap_or_default() {
                let Ok(Some(file)) = dir.stat(&name) else { continue };
                if !name.to_string_lossy().starts_with("result.") {
                    continue;
                }
                let path = dir.path().join(&name);
                let known = path.strip_prefix(folder.path()).is_ok_and(|p| is_known(state, p, file.size));
                let worth = if known { "complete" } else { "the log says nothing of it any more" };
                lines.push(format!("{} ({} bytes): {worth}", one_line(&path.display().to_string(), 400), file.size));
            }
        }
    }
    if lines.is_empty() {
        return Check::new(NAME, Finding::Note, "no task has left any");
    }
    let more = lines.len().saturating_sub(MAX_RESULTS);
    lines.truncate(MAX_RESULTS);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    Check::new(NAME, Finding::Note, lines.join("\n")).remedy("they stay as the tasks wrote them: read or copy them")
}

/// Whether a task that ended, as far as the log goes, has left this file with this length.
fn is_known(state: Option<&State>, path: &Path, bytes: u64) -> bool {
    let results = state.into_iter().flat_map(|s| &s.tasks).filter_map(|t| t.result.as_ref());
    results.into_iter().any(|r| Path::new(&r.path) == path && r.bytes == bytes)
}

/// Worktrees of isolated tasks that are there: those of attempts that run, and those that could not be given up.
fn worktrees(folder: &RunDir) -> Option<Check> {
    let left = isolate::left(folder);
    if left.is_empty() {
        return None;
    }
    let lines: Vec<String> = left
        .iter()
        .map(|(spot, stage)| {
            let what = match stage {
                Stage::Making => "being made; its task has not begun",
                Stage::Ready => "its change is not saved yet",
                Stage::Saved => "its change is saved; it is being removed",
                Stage::Kept => "its change is saved, but for a repository of its own that it holds",
                Stage::Gone => "given up",
            };
            format!("{}: {what}", spot.path().display())
        })
        .collect();
    let remedy =
        "nothing to do while the task runs. After that: copy what you need, then `git worktree remove --force` it";
    Some(Check::new("worktrees", Finding::Note, lines.join("\n")).remedy(remedy))
}

fn again(folder: &RunDir, has_plan: bool) -> Check {
    const NAME: &str = "what now";
    if !has_plan {
        return Check::new(NAME, Finding::Note, "the plan cannot be read, so that it cannot be run again");
    }
    let plan = folder.path().join(PLAN);
    Check::new(NAME, Finding::Note, "this run goes on no more; all its files stay as they are")
        .remedy(format!("the same tasks from the beginning, as a new run: cpw run {}", plan.display()))
}
