//! A call on a file that a task answers for: wait for the task and name its result, hand over the result instead of the file,
//! refuse with who has it and how far it is, or let it pass with a note. After three refusals in a row it passes: a model
//! must not be locked in a loop. A call that two installations ask about is one call and gets one answer.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::actor::crew;
use crate::base::ids::TaskId;
use crate::hook::answer::Answer;
use crate::hook::scene::{File, Open, Scene, is_same_file};
use crate::hook::{Held, extend, result};
use crate::logic::conductor;
use crate::logic::view::{Brief, View, claim_key};
use crate::logic::wake::Concern;
use crate::model::event::{self, Body, Decision, Draft};
use crate::model::plan::OnClaimed;
use crate::sys::bell;
use crate::sys::clock;
use crate::sys::signals::Deadline;

/// Holds a call until `done` says so, the time is over, or nobody is alive who could change anything. Returns for how long.
/// What makes `done` true is of this `concern`.
pub(super) fn hold(
    run: &mut Open,
    deadline: &Deadline,
    wait: Duration,
    concern: &Concern,
    done: impl Fn(&Open) -> bool,
) -> anyhow::Result<Held> {
    let begun = clock::mono_ms();
    let held = || clock::mono_ms().saturating_sub(begun);
    if done(run) {
        return Ok(0);
    }
    extend(deadline, wait)?;
    let bell = run.bell(concern)?;
    loop {
        bell.drain();
        run.refresh()?;
        if done(run) {
            return Ok(held());
        }
        let left = wait.saturating_sub(Duration::from_millis(held()));
        if left.is_zero() || !crew::tend(&run.folder, &mut run.hooked)? {
            return Ok(held());
        }
        // The bell is the wake-up; the bound is for a bell that was lost.
        bell::wait(&[&bell], &[], left.min(Duration::from_secs(2)))?;
    }
}

/// A task that answers for a file of the call, and which of the files that is.
type Claimant = (TaskId, usize);

/// Who answers for `files` in the first run in which somebody does.
fn claimants(scene: &Scene, tool: &str, files: &[File]) -> Option<(usize, Vec<Claimant>)> {
    scene.runs.iter().enumerate().find_map(|(i, run)| {
        let found = claimants_in(run, tool, files);
        (!found.is_empty()).then_some((i, found))
    })
}

fn claimants_in(run: &Open, tool: &str, files: &[File]) -> Vec<Claimant> {
    let (view, project) = (&run.hooked.view, run.project());
    let on_claimed = view.conductor.on_claimed;
    if on_claimed == OnClaimed::Off {
        return Vec::new();
    }
    let claims = |brief: &Brief, file: &File| conductor::is_claimed_by(brief, &project, file, &is_same_file);
    let open = view.tasks.iter().filter(|(_, brief)| !brief.phase.is_final());
    let mut found: Vec<Claimant> = open
        .filter_map(|(task, brief)| Some((task.clone(), files.iter().position(|file| claims(brief, file))?)))
        .collect();
    if found.is_empty() && on_claimed == OnClaimed::Redirect && tool == "Read" {
        let kept = files.first().and_then(|file| conductor::finished_claim(view, &project, file, &is_same_file));
        found.extend(kept.map(|(task, _)| (task.clone(), 0)));
    }
    found
}

/// Whether a call is to wait for a task that answers for one of `files`, or is refused for its sake.
pub(super) fn waits(scene: &Scene, tool: &str, files: &[File]) -> bool {
    claimants(scene, tool, files).is_some_and(|(i, found)| {
        let run = &scene.runs[i];
        let waits = run.hooked.view.conductor.on_claimed != OnClaimed::Note;
        waits && found.iter().any(|(task, _)| !is_over(run, task))
    })
}

/// Answers a call of `tool` that names `files`. `None`: it meets no claim.
pub(super) fn answer(
    scene: &mut Scene,
    deadline: &Deadline,
    tool: &str,
    files: &[File],
) -> anyhow::Result<Option<Held>> {
    let Some((i, claimants)) = claimants(scene, tool, files) else { return Ok(None) };
    let prompt = scene.payload.prompt_id.clone().unwrap_or_default();
    let view = &scene.runs[i].hooked.view;
    let on_claimed = view.conductor.on_claimed;
    let wait = match on_claimed {
        OnClaimed::Wait | OnClaimed::Redirect => {
            conductor::patience(view, &claim_key(&claimants[0].0), &prompt, view.conductor.wait.to_std())
        }
        OnClaimed::Block | OnClaimed::Note | OnClaimed::Off => Duration::ZERO,
    };
    // A task that is over leaves the view unless something keeps it; what was last seen of it says how it ended.
    let before: Vec<Option<Brief>> = claimants.iter().map(|(task, _)| view.tasks.get(task).cloned()).collect();
    let concern = match claimants.as_slice() {
        [(only, _)] => Concern::Task(only.clone()),
        _ => Concern::Outcomes,
    };
    let all_over = |run: &Open| claimants.iter().all(|(task, _)| is_over(run, task));
    let held = hold(&mut scene.runs[i], deadline, wait, &concern, all_over)?;
    let found: Vec<Found<'_>> = claimants
        .iter()
        .zip(before)
        .filter_map(|((task, at), before)| Found::now(&scene.runs[i], task, files.get(*at)?, before))
        .collect();
    let Some(first) = found.iter().find(|f| !f.over).or(found.first()) else { return Ok(Some(held)) };
    let (key, task) = (claim_key(first.task), first.task);
    let may_redirect = first.over && tool == "Read" && on_claimed == OnClaimed::Redirect;
    let redirected = if may_redirect { redirect(scene, &scene.runs[i], &first.brief)? } else { None };
    let wanted = |view: &View| {
        if first.over {
            let answer = if redirected.is_some() { event::Answer::Rewrite } else { event::Answer::Held };
            (answer, format!("{task} is over"))
        } else if on_claimed == OnClaimed::Note {
            (event::Answer::Inject, "noted".into())
        } else if conductor::may_refuse_claim(view, &key, &prompt) {
            (event::Answer::Block, format!("claimed by {task}"))
        } else {
            (event::Answer::Inject, "refused often enough".into())
        }
    };
    let decision = Decision {
        hook: scene.event.clone(),
        tool: Some(tool.to_owned()),
        tool_use_id: scene.payload.tool_use_id.clone(),
        held_ms: held,
        prompt_id: scene.payload.prompt_id.clone(),
        ..Decision::default()
    };
    let run = &mut scene.runs[i];
    // Who asks about the same call once more hears the same, but for notes: the model has them by the first.
    let given = run.hooked.transact(&run.folder, |tx| {
        if let Some(before) = tx.fold.answer_to(decision.tool_use_id.as_deref(), &key) {
            return Ok(Some(before).filter(|b| matches!(b, event::Answer::Block | event::Answer::Rewrite)));
        }
        let (answer, reason) = wanted(tx.fold);
        tx.emit(Draft::task(task, Body::Decision(Decision { answer, reason, ..decision })))?;
        Ok(Some(answer))
    })?;
    let Some(given) = given else { return Ok(Some(held)) };
    // Several files of one command are told apart.
    let told_apart = |f: &Found<'_>| (tool == "Bash").then(|| f.path.to_owned());
    let answer = match (given, redirected) {
        (event::Answer::Block, _) => {
            Answer::default().deny(&conductor::claim_refusal(task, &first.brief, first.path, clock::mono_ms()))
        }
        (event::Answer::Inject, _) => {
            let path = told_apart(first);
            Answer::default().context(&conductor::claim_passed(task, &first.brief, path.as_deref()))
        }
        (event::Answer::Rewrite, Some(input)) => {
            Answer::default().rewrite(input).context(&conductor::redirect_note(task))
        }
        (event::Answer::Rewrite | event::Answer::Held | event::Answer::Wake, _) => {
            let (shown, reads) = (run.shown(), tool == "Read");
            let note = |f: &Found<'_>| conductor::claim_note(f.task, &f.brief, &shown, told_apart(f).as_deref(), reads);
            let notes: Vec<String> = found.iter().map(note).collect();
            Answer::default().context(&notes.join("\n"))
        }
    };
    answer.send(&scene.event);
    Ok(Some(held))
}

/// A task that answers for a file of the call, as it stands when the call is answered.
struct Found<'a> {
    task: &'a TaskId,
    /// The file, as the call names it.
    path: &'a str,
    brief: Brief,
    over: bool,
}

impl<'a> Found<'a> {
    fn now(run: &Open, task: &'a TaskId, file: &'a File, before: Option<Brief>) -> Option<Found<'a>> {
        let mut brief = run.hooked.view.tasks.get(task).cloned().or(before)?;
        let over = is_over(run, task);
        if over {
            complete(&mut brief, run, task);
        }
        Some(Found { task, path: file.first()?, brief, over })
    }
}

fn is_over(run: &Open, task: &TaskId) -> bool {
    run.hooked.view.tasks.get(task).is_none_or(|b| b.phase.is_final())
}

/// Completes what was last seen of a task that has left the view, from the news about it.
fn complete(brief: &mut Brief, run: &Open, task: &TaskId) {
    if brief.phase.is_final() {
        return;
    }
    let is_end = |n: &&crate::logic::view::News| {
        n.task.as_ref() == Some(task) && n.what != crate::logic::view::Happened::Reached
    };
    let news = run.hooked.view.news.iter().find(is_end);
    brief.result = news.and_then(|n| n.result.clone());
    brief.phase = match news.map(|n| n.what) {
        Some(crate::logic::view::Happened::Failed) => crate::logic::view::Phase::Failed,
        Some(crate::logic::view::Happened::Skipped) => crate::logic::view::Phase::Skipped,
        Some(crate::logic::view::Happened::Cancelled) => crate::logic::view::Phase::Cancelled,
        _ => crate::logic::view::Phase::Done,
    };
}

/// A Read of the finished result instead of the file: all of it, since what else was asked for was meant for the file.
/// `None` where the client could not show it: there is none, it is no text or too long, or it is not in the project.
fn redirect(scene: &Scene, run: &Open, brief: &Brief) -> anyhow::Result<Option<Map<String, Value>>> {
    let Some(result) = &brief.result else { return Ok(None) };
    let path = run.folder.path().join(result);
    if !path.starts_with(&run.folder.project) || !result::can_be_shown(&run.folder, result) {
        return Ok(None);
    }
    let mut input = scene.payload.tool_input.fields()?;
    input.insert("file_path".to_owned(), path.to_string_lossy().into_owned().into());
    for of_the_file in ["offset", "limit", "pages"] {
        input.shift_remove(of_the_file);
    }
    Ok(Some(input))
}
