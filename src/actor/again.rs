//! Continuing a run that has ended: a new run of the same plan, into which what is done and intact is taken over as facts,
//! with its artifacts. The old run is only read, and can be removed afterwards without a loss.

use std::io;
use std::path::Path;

use crate::base::hex;
use crate::base::trace::{self, Context};
use crate::logic::again::Fate;
use crate::logic::view::Phase;
use crate::logic::vote::Ballot;
use crate::model::event::{Body, Done, Draft, ResultFile, Skipped, Started, Vote};
use crate::model::plan::{Plan, Task};
use crate::store::home::State;
use crate::store::run::{self, Origin, Run, RunDir, RunError};
use crate::sys::clock;
use crate::sys::dir::Dir;

/// What is said of a task that was not done and that nobody asked for.
const LEFT: &str = "not asked for in this run";

/// Per task of a run, in the order of its plan, whether what it made is still what it was: its result file is there, with
/// the size and hash that `done` names. A task without a result has nothing that could be lost.
pub fn intact(run: &Run) -> Vec<bool> {
    let tasks = run.state.tasks.iter();
    let done = tasks.map(|task| (task.phase == Phase::Done).then_some(task.result.as_ref()));
    done.map(|result| result.is_some_and(|r| r.is_none_or(|file| is_intact(&run.folder, file).unwrap_or(false))))
        .collect()
}

fn is_intact(folder: &RunDir, result: &ResultFile) -> io::Result<bool> {
    let path = Path::new(&result.path);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(false) };
    let mut file = below(&folder.dir, parent)?.open_read(name)?;
    if file.metadata()?.len() != result.bytes {
        return Ok(false);
    }
    // A very large one was never hashed; then its size has to do.
    Ok(result.sha256.is_empty() || hex::sha256_of(&mut file)? == result.sha256)
}

/// A folder below another one, by a relative path of plain names.
fn below(dir: &Dir, path: &Path) -> io::Result<Dir> {
    path.iter().try_fold(dir.try_clone()?, |dir, name| dir.sub(name))
}

/// Starts the run that continues `old`, as `fates` has it for every task. It belongs to no session, and nobody works on it
/// yet.
pub fn begin(old: &Run, fates: &[Fate], runs: &Path, state: &State) -> Result<Run, RunError> {
    let mut plan = old.plan.clone();
    plan.run = run::new_id();
    plan.session = None;
    // It is the terminal's, and no client's.
    plan.orphan_grace = None;
    plan.from = Some(old.plan.run.clone());
    let prompt = old.folder.prompt()?;
    if prompt.is_some() {
        let moved = |folder: &Path| folder.join(run::PROMPT).to_string_lossy().into_owned();
        let (before, now) = (moved(old.folder.path()), moved(&runs.join(plan.run.as_str())));
        plan.tasks = plan.tasks.iter().map(|task| renamed(task, &before, &now)).collect();
    }
    let span = trace::span_of_run(old.plan.run.as_str());
    let link = Some(Context { trace: old.state.trace.clone(), span });
    let origin = Origin { prompt: prompt.as_deref(), link, ..Origin::default() };
    let fill = |folder: &RunDir| take_over(old, &plan, fates, folder);
    RunDir::start_with(&old.folder.project, runs, state, &plan, &origin, fill)
}

/// A task in which the path of the prompt's file is that of the new run, wherever a template has put it.
fn renamed(task: &Task, before: &str, now: &str) -> Task {
    fn walk(value: &mut serde_json::Value, before: &str, now: &str) {
        match value {
            serde_json::Value::String(text) if text.contains(before) => *text = text.replace(before, now),
            serde_json::Value::Array(all) => all.iter_mut().for_each(|v| walk(v, before, now)),
            serde_json::Value::Object(all) => all.values_mut().for_each(|v| walk(v, before, now)),
            _ => {}
        }
    }
    let written = serde_json::to_value(task).and_then(|mut value| {
        walk(&mut value, before, now);
        serde_json::from_value(value)
    });
    written.unwrap_or_else(|_| task.clone())
}

/// Takes the artifacts over, and says so: what stands in the log behind the first line.
fn take_over(old: &Run, plan: &Plan, fates: &[Fate], folder: &RunDir) -> Result<Vec<Draft>, RunError> {
    let failed = |source| RunError::Io { path: folder.path().to_owned(), source };
    let mut facts = Vec::new();
    for (i, fate) in fates.iter().enumerate() {
        let id = &plan.tasks[i].id;
        match fate {
            Fate::Again => {}
            Fate::Left => facts.push(Draft::task(id, Body::Skipped(Skipped { because: LEFT.into() }))),
            Fate::Taken => {
                let task = &old.state.tasks[i];
                let result = artifacts(old, i, folder).map_err(failed)?;
                let cwd = folder.project.to_string_lossy().into_owned();
                let started =
                    Started { cwd, title: plan.tasks[i].label(), mono_ms: clock::mono_ms(), ..Started::default() };
                let done = Done {
                    exit: task.exit.unwrap_or(0),
                    duration_ms: task.duration_ms.unwrap_or(0),
                    result,
                    summary: task.line.clone(),
                    // It was paid for in the run that did it.
                    usage: None,
                    from: plan.from.clone(),
                    cut_bytes: 0,
                };
                facts.push(Draft::attempt(None, id, 1, Body::Started(started)));
                // What it has voted counts again: it will not be asked once more.
                for poll in &old.state.view.polls {
                    if let Some(&Ballot::Cast(choice, _)) = poll.voters.get(id) {
                        let topic = poll.topic.clone();
                        let vote = Vote { topic, decision: Some(choice), reason: None, refused: None };
                        facts.push(Draft::attempt(None, id, 1, Body::Vote(vote)));
                    }
                }
                facts.push(Draft::attempt(None, id, 1, Body::Done(done)));
            }
        }
    }
    Ok(facts)
}

/// Takes over what a task has made, and returns its result as it is in the new run.
fn artifacts(old: &Run, i: usize, folder: &RunDir) -> io::Result<Option<ResultFile>> {
    let (id, task) = (&old.plan.tasks[i].id, &old.state.tasks[i]);
    let result = task.result.as_ref();
    let out = match (result, task.worker) {
        (Some(result), _) => Path::new(&result.path).parent().map(|p| p.to_string_lossy().into_owned()),
        (None, Some(worker)) => Some(run::out_path(worker, id, task.attempts)),
        (None, None) => Some(run::taken_path(id)),
    };
    let Some(out) = out else { return Ok(None) };
    let from = match below(&old.folder.dir, Path::new(&out)) {
        // It had nothing to leave.
        Err(e) if e.kind() == io::ErrorKind::NotFound && result.is_none() => return Ok(None),
        other => other?,
    };
    from.link_all(&folder.dir.create_sub(run::TAKEN, 0o700)?.make_new_sub(id.as_str(), 0o700)?)?;
    Ok(result.map(|result| {
        let name = Path::new(&result.path).file_name().unwrap_or_default().to_string_lossy();
        ResultFile { path: format!("{}/{name}", run::taken_path(id)), ..result.clone() }
    }))
}
