//! A call on a file that a task answers for: wait for the task and name its result, hand over the result instead of the file,
//! refuse with who has it and how far it is, or let it pass with a note. After three refusals in a row it passes: a model
//! must not be locked in a loop.

use std::time::Duration;

use crate::actor::crew;
use crate::base::ids::TaskId;
use crate::hook::answer::Answer;
use crate::hook::scene::{Open, Scene};
use crate::hook::{Held, extend};
use crate::logic::conductor::{self, MAX_REFUSALS};
use crate::logic::view::{Brief, claim_key};
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

/// Answers a call on one of `paths`, the forms of the file that its input names in `field`. `None`: it meets no claim.
pub(super) fn answer(
    scene: &mut Scene,
    deadline: &Deadline,
    tool: &str,
    field: &str,
    paths: &[String],
) -> anyhow::Result<Option<Held>> {
    let found = scene.runs.iter().enumerate().find_map(|(i, run)| {
        let (view, project) = (&run.hooked.view, run.project());
        let on_claimed = view.conductor.on_claimed;
        let open = conductor::claimed(view, &project, paths).filter(|_| on_claimed != OnClaimed::Off);
        let kept = || {
            let redirects = on_claimed == OnClaimed::Redirect && tool == "Read";
            conductor::finished_claim(view, &project, paths).filter(|_| redirects)
        };
        open.or_else(kept).map(|(task, _)| (i, task.clone()))
    });
    let Some((i, task)) = found else { return Ok(None) };
    let on_claimed = scene.runs[i].hooked.view.conductor.on_claimed;
    let wait = match on_claimed {
        OnClaimed::Wait | OnClaimed::Redirect => scene.runs[i].hooked.view.conductor.wait.to_std(),
        OnClaimed::Block | OnClaimed::Note | OnClaimed::Off => Duration::ZERO,
    };
    // A task that is over leaves the view unless something keeps it; what was last seen of it says how it ended.
    let mut last = scene.runs[i].hooked.view.tasks.get(&task).cloned();
    let held = hold(&mut scene.runs[i], deadline, wait, &Concern::Task(task.clone()), |run| is_over(run, &task))?;
    let run = &mut scene.runs[i];
    if let Some(brief) = run.hooked.view.tasks.get(&task) {
        last = Some(brief.clone());
    }
    let Some(mut brief) = last else { return Ok(Some(held)) };
    let over = is_over(run, &task);
    if over {
        complete(&mut brief, run, &task);
    }
    let mut decision = Decision {
        hook: scene.event.clone(),
        tool: Some(tool.to_owned()),
        tool_use_id: scene.payload.tool_use_id.clone(),
        answer: event::Answer::Held,
        held_ms: held,
        prompt_id: scene.payload.prompt_id.clone(),
        ..Decision::default()
    };
    let shown = run.shown();
    let refused = run.hooked.view.refusals.get(&claim_key(&task)).copied().unwrap_or(0);
    let path = paths.first().map_or("", String::as_str);
    let answer = if over {
        decision.reason = format!("{task} is over");
        match brief.result.as_ref().filter(|_| on_claimed == OnClaimed::Redirect && tool == "Read") {
            Some(result) => {
                decision.answer = event::Answer::Rewrite;
                redirect(scene, i, field, result, &task)?
            }
            None => Answer::default().context(&conductor::claim_note(&task, &brief, &shown)),
        }
    } else if on_claimed == OnClaimed::Note || refused >= MAX_REFUSALS {
        decision.answer = event::Answer::Inject;
        decision.reason = if on_claimed == OnClaimed::Note { "noted".into() } else { "refused often enough".into() };
        Answer::default().context(&conductor::claim_passed(&task, &brief))
    } else {
        decision.answer = event::Answer::Block;
        decision.reason = format!("claimed by {task}");
        Answer::default().deny(&conductor::claim_refusal(&task, &brief, path, clock::mono_ms()))
    };
    let run = &mut scene.runs[i];
    run.hooked.transact(&run.folder, |tx| tx.emit(Draft::task(&task, Body::Decision(decision))))?;
    answer.send(&scene.event);
    Ok(Some(held))
}

fn is_over(run: &Open, task: &TaskId) -> bool {
    run.hooked.view.tasks.get(task).is_none_or(|b| b.phase.is_final())
}

/// Completes what was last seen of a task that has left the view, from the news about it.
fn complete(brief: &mut Brief, run: &Open, task: &TaskId) {
    if brief.phase.is_final() {
        return;
    }
    let news = run.hooked.view.news.iter().find(|n| n.task.as_ref() == Some(task));
    brief.result = news.and_then(|n| n.result.clone());
    brief.phase = match news.map(|n| n.what) {
        Some(crate::logic::view::Happened::Failed) => crate::logic::view::Phase::Failed,
        Some(crate::logic::view::Happened::Skipped) => crate::logic::view::Phase::Skipped,
        Some(crate::logic::view::Happened::Cancelled) => crate::logic::view::Phase::Cancelled,
        _ => crate::logic::view::Phase::Done,
    };
}

/// A Read of the finished result instead of the file: all of it, since `offset` and `limit` were meant for the file.
fn redirect(scene: &Scene, i: usize, field: &str, result: &str, task: &TaskId) -> anyhow::Result<Answer> {
    let run = &scene.runs[i];
    let mut input = scene.payload.tool_input.fields()?;
    let path = run.folder.path().join(result);
    input.insert(field.to_owned(), path.to_string_lossy().into_owned().into());
    input.shift_remove("offset");
    input.shift_remove("limit");
    let note = format!(
        "This is the result of task {task}, which worked on the file; the whole of it, without offset and limit."
    );
    Ok(Answer::default().rewrite(input).context(&note))
}
