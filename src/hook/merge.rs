//! A call that meets a merge: wait for the results, then put them into the tool's input, once. The whole input is returned,
//! because the client replaces all of it; whether the call is allowed stays the user's permission rules' business.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::base::hex;
use crate::base::ids::TaskId;
use crate::hook::answer::Answer;
use crate::hook::input::Input;
use crate::hook::scene::{self, Open, Scene};
use crate::hook::{Held, claim, result};
use crate::logic::conductor::{self, Needs, Unmerged};
use crate::logic::view::{DID_NOT_RUN, GUARD_PASSED, MergeState, Rewrite, View, merge_key};
use crate::logic::wake::Concern;
use crate::model::event::{self, Body, Decision, Draft};
use crate::model::plan::Merge;
use crate::model::template;
use crate::sys::clock;
use crate::sys::signals::Deadline;

/// How much of one result goes into a tool's input, in bytes. The rest is named by its path.
const MAX_RESULT: u64 = 256 * 1024;

/// The hash of the fields that a merge sets, as they are in `input`: what else the client adds or drops does not matter.
pub(super) fn fields_sha256(rule: &Merge, input: &Map<String, Value>) -> String {
    let fields: Vec<(&String, Option<&Value>)> = rule.set.keys().map(|k| (k, input.get(k))).collect();
    hex::sha256(serde_json::to_string(&fields).unwrap_or_default().as_bytes())
}

fn state(run: &Open, index: usize) -> Option<&MergeState> {
    run.hooked.view.merges.get(index)
}

/// What a call that meets a merge can get.
enum Offer {
    /// The results are not all there yet.
    Early,
    /// Everything is there, and nothing is to be put in.
    Pass,
    /// The input with the results in it.
    Rewrite(Map<String, Value>),
    /// The call is refused once; then the merge no longer applies.
    Never(Unmerged),
}

fn offer(run: &Open, merge: &MergeState, input: &Input) -> anyhow::Result<Offer> {
    Ok(match conductor::needs_of(&run.hooked.view, merge) {
        Needs::Open => Offer::Early,
        Needs::Failed => Offer::Never(Unmerged::NeedFailed),
        Needs::Done if merge.rule.set.is_empty() => Offer::Pass,
        Needs::Done if merge.lost => Offer::Never(Unmerged::Lost),
        Needs::Done => match rewritten(run, &merge.rule, &input.fields()?) {
            Ok(input) => Offer::Rewrite(input),
            Err(why) => Offer::Never(why),
        },
    })
}

/// Answers a call that meets merge `index` of run `i`.
pub(super) fn answer(scene: &mut Scene, deadline: &Deadline, i: usize, index: usize) -> anyhow::Result<Held> {
    let key = merge_key(index);
    let prompt = scene.payload.prompt_id.clone().unwrap_or_default();
    let view = &scene.runs[i].hooked.view;
    let wait = conductor::patience(view, &key, &prompt, view.conductor.wait.to_std());
    let begun = clock::mono_ms();
    claim::hold(&mut scene.runs[i], deadline, wait, &Concern::Outcomes, |run| {
        state(run, index).is_none_or(|m| conductor::needs_of(&run.hooked.view, m) != Needs::Open)
    })?;
    let held = clock::mono_ms().saturating_sub(begun);
    let run = &scene.runs[i];
    let Some(merge) = state(run, index).cloned() else { return Ok(held) };
    let offer = offer(run, &merge, &scene.payload.tool_input)?;
    let shown = run.shown();
    let decision = Decision {
        hook: scene.event.clone(),
        tool: scene.payload.tool_name.clone(),
        tool_use_id: scene.payload.tool_use_id.clone(),
        held_ms: held,
        merge: Some(index),
        prompt_id: scene.payload.prompt_id.clone(),
        ..Decision::default()
    };
    let decide = |view: &View| match &offer {
        Offer::Early if conductor::may_refuse(view, &key) => {
            Decision { answer: event::Answer::Block, reason: "results are not all there".into(), ..decision.clone() }
        }
        Offer::Early => {
            Decision { answer: event::Answer::Inject, reason: "refused often enough".into(), ..decision.clone() }
        }
        Offer::Never(why) => Decision { answer: event::Answer::Block, reason: why.reason().into(), ..decision.clone() },
        Offer::Pass => Decision { answer: event::Answer::Held, reason: GUARD_PASSED.into(), ..decision.clone() },
        Offer::Rewrite(input) => Decision {
            answer: event::Answer::Rewrite,
            reason: "results were put into the input".into(),
            input_sha256: Some(fields_sha256(&merge.rule, input)),
            ..decision.clone()
        },
    };
    let run = &mut scene.runs[i];
    // Two calls of one step may meet the same merge, and two installations the same call; who is second in the log lets
    // it pass as it is, or says the same.
    let given = run.hooked.transact(&run.folder, |tx| {
        if let Some(before) = tx.fold.answer_to(decision.tool_use_id.as_deref(), &key) {
            return Ok(Some(before).filter(|b| *b == event::Answer::Block));
        }
        if tx.fold.merges.get(index).is_none_or(|m| m.used || m.waived) {
            return Ok(None);
        }
        let decision = decide(tx.fold);
        let answer = decision.answer;
        tx.emit(Draft::run(Body::Decision(decision)))?;
        Ok(Some(answer))
    })?;
    let Some(given) = given else { return Ok(held) };
    let view = &run.hooked.view;
    let answer = match (given, offer) {
        (event::Answer::Rewrite, Offer::Rewrite(input)) => {
            let fields: Vec<&str> = merge.rule.set.keys().map(String::as_str).collect();
            let (names, fields) = (names(&merge.rule.needs), fields.join(" and "));
            let note = format!("The results of {names} were put into this call's {fields}.");
            Answer::default().rewrite(input).context(&note)
        }
        (event::Answer::Block, Offer::Never(why)) => {
            Answer::default().deny(&conductor::merge_failed(view, &merge, &shown, &why, scene::now()))
        }
        (event::Answer::Block, _) => {
            Answer::default().deny(&conductor::merge_refusal(view, &merge, &shown, scene::now()))
        }
        (event::Answer::Inject, _) => {
            Answer::default().context(&conductor::merge_refusal(view, &merge, &shown, scene::now()))
        }
        _ => Answer::default(),
    };
    answer.send(&scene.event);
    scene.close_finished()?;
    Ok(held)
}

/// Once a step is over: a call of it that was rewritten and of which nothing was heard has been denied or has failed, so
/// that its merge is still to be used.
pub(super) fn settle(scene: &mut Scene) -> anyhow::Result<()> {
    for run in scene.runs.iter_mut().filter(|run| !run.hooked.view.rewrites.is_empty()) {
        let hook = &scene.event;
        run.hooked.transact(&run.folder, |tx| {
            let silent: Vec<Decision> = tx.fold.rewrites.iter().map(|rewrite| did_not_run(hook, rewrite)).collect();
            silent.into_iter().try_for_each(|decision| tx.emit(Draft::run(Body::Decision(decision))).map(drop))
        })?;
    }
    Ok(())
}

fn did_not_run(hook: &str, rewrite: &Rewrite) -> Decision {
    Decision {
        hook: hook.to_owned(),
        tool_use_id: Some(rewrite.tool_use_id.clone()),
        answer: event::Answer::Inject,
        reason: DID_NOT_RUN.into(),
        merge: Some(rewrite.merge),
        ..Decision::default()
    }
}

fn names(needs: &[TaskId]) -> String {
    let shown: Vec<&str> = needs.iter().take(12).map(TaskId::as_str).collect();
    match needs.len().checked_sub(shown.len()) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// The call's input with the fields of the merge filled. A field that holds something else than text is no place for
/// results: the client would refuse the call.
fn rewritten(run: &Open, rule: &Merge, input: &Map<String, Value>) -> Result<Map<String, Value>, Unmerged> {
    let mut out = input.clone();
    for (field, template) in &rule.set {
        if input.get(field).is_some_and(|v| !v.is_string()) {
            return Err(Unmerged::NotText(field.clone()));
        }
        let mut unreadable = None;
        let filled = template::fill(template, |name| match value(run, rule, input, name) {
            Ok(value) => value,
            Err(task) => {
                unreadable.get_or_insert(task);
                None
            }
        });
        if let Some(task) = unreadable {
            return Err(Unmerged::Unreadable(task));
        }
        out.insert(field.clone(), filled.into());
    }
    Ok(out)
}

/// What a template's name stands for. An error is the task whose result cannot be read as text.
fn value(run: &Open, rule: &Merge, input: &Map<String, Value>, name: &str) -> Result<Option<String>, TaskId> {
    if name == "results" {
        let all: Vec<String> =
            rule.needs.iter().filter_map(|id| section(run, id).transpose()).collect::<Result<_, _>>()?;
        return Ok(Some(all.join("\n")));
    }
    let Some((kind, rest)) = name.split_once('.') else { return Ok(None) };
    let task = || TaskId::new(rest).ok();
    Ok(match kind {
        "input" => input.get(rest).map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned)),
        "result" => match task() {
            Some(id) => content(run, &id)?,
            None => None,
        },
        "path" => task().and_then(|id| {
            let path = run.hooked.view.tasks.get(&id)?.result.as_ref()?;
            Some(run.folder.path().join(path).to_string_lossy().into_owned())
        }),
        _ => None,
    })
}

/// One result under its heading.
fn section(run: &Open, id: &TaskId) -> Result<Option<String>, TaskId> {
    let Some(brief) = run.hooked.view.tasks.get(id) else { return Ok(None) };
    let text = content(run, id)?.unwrap_or_else(|| "(no output)\n".into());
    let end = if text.ends_with('\n') { "" } else { "\n" };
    Ok(Some(format!("{}\n\n{text}{end}", conductor::result_heading(id, brief))))
}

/// The text of a task's result, at most [`MAX_RESULT`] bytes of it. `None`: there is none.
fn content(run: &Open, id: &TaskId) -> Result<Option<String>, TaskId> {
    let path = run.hooked.view.tasks.get(id).and_then(|brief| brief.result.as_ref());
    let Some(path) = path else { return Ok(None) };
    let (bytes, length) = result::read(&run.folder, path, MAX_RESULT).map_err(|_| id.clone())?;
    if !result::is_text(&bytes) {
        return Err(id.clone());
    }
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if length > MAX_RESULT {
        let _ = write!(text, "\n… ({length} bytes in all, the whole is {}/{path})\n", run.shown());
    }
    Ok(Some(text))
}
