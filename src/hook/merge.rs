//! A call that meets a merge: wait for the results, then put them into the tool's input, once. The whole input is returned,
//! because the client replaces all of it; whether the call is allowed stays the user's permission rules' business.

use std::fmt::Write as _;
use std::io::{self, Read};

use serde_json::{Map, Value};

use crate::base::hex;
use crate::base::ids::TaskId;
use crate::hook::answer::Answer;
use crate::hook::scene::{Open, Scene};
use crate::hook::{Held, claim};
use crate::logic::conductor::{self, MAX_REFUSALS, Needs};
use crate::logic::view::{GUARD_PASSED, MergeState, NEED_FAILED, merge_key};
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

/// Answers a call that meets merge `index` of run `i`.
pub(super) fn answer(scene: &mut Scene, deadline: &Deadline, i: usize, index: usize) -> anyhow::Result<Held> {
    let wait = scene.runs[i].hooked.view.conductor.wait.to_std();
    let begun = clock::mono_ms();
    claim::hold(&mut scene.runs[i], deadline, wait, &Concern::Outcomes, |run| {
        state(run, index).is_none_or(|m| conductor::needs_of(&run.hooked.view, m) != Needs::Open)
    })?;
    let held = clock::mono_ms().saturating_sub(begun);
    let run = &scene.runs[i];
    let Some(merge) = state(run, index).cloned() else { return Ok(held) };
    let view = &run.hooked.view;
    let mut decision = Decision {
        hook: scene.event.clone(),
        tool: scene.payload.tool_name.clone(),
        tool_use_id: scene.payload.tool_use_id.clone(),
        held_ms: held,
        merge: Some(index),
        prompt_id: scene.payload.prompt_id.clone(),
        ..Decision::default()
    };
    let refused = view.refusals.get(&merge_key(index)).copied().unwrap_or(0);
    let answer = match conductor::needs_of(view, &merge) {
        Needs::Open if refused >= MAX_REFUSALS => {
            decision.answer = event::Answer::Inject;
            decision.reason = "refused often enough".into();
            Answer::default().context(&conductor::merge_refusal(view, &merge))
        }
        Needs::Open => {
            decision.answer = event::Answer::Block;
            decision.reason = "results are not all there".into();
            Answer::default().deny(&conductor::merge_refusal(view, &merge))
        }
        Needs::Failed => {
            decision.answer = event::Answer::Block;
            decision.reason = NEED_FAILED.into();
            Answer::default().deny(&conductor::merge_failed(view, &merge, &run.shown()))
        }
        Needs::Done if merge.rule.set.is_empty() => {
            decision.answer = event::Answer::Held;
            decision.reason = GUARD_PASSED.into();
            Answer::default()
        }
        Needs::Done => {
            let input = rewritten(run, &merge.rule, &scene.payload.tool_input.fields()?)?;
            decision.answer = event::Answer::Rewrite;
            decision.reason = "results were put into the input".into();
            decision.input_sha256 = Some(fields_sha256(&merge.rule, &input));
            let fields: Vec<&str> = merge.rule.set.keys().map(String::as_str).collect();
            let note = format!(
                "The results of {} were put into this call's {}.",
                names(&merge.rule.needs),
                fields.join(" and ")
            );
            Answer::default().rewrite(input).context(&note)
        }
    };
    let run = &mut scene.runs[i];
    // Two calls of one step may meet the same merge; the one that is second in the log passes as it is.
    let first = run.hooked.transact(&run.folder, |tx| {
        let taken = tx.fold.merges.get(index).is_none_or(|m| m.used || m.waived);
        if !taken {
            tx.emit(Draft::run(Body::Decision(decision)))?;
        }
        Ok(!taken)
    })?;
    if first {
        answer.send(&scene.event);
        scene.close_finished()?;
    }
    Ok(held)
}

fn names(needs: &[TaskId]) -> String {
    let shown: Vec<&str> = needs.iter().take(12).map(TaskId::as_str).collect();
    match needs.len().checked_sub(shown.len()) {
        Some(more @ 1..) => format!("{} and {more} more", shown.join(", ")),
        _ => shown.join(", "),
    }
}

/// The call's input with the fields of the merge filled.
fn rewritten(run: &Open, rule: &Merge, input: &Map<String, Value>) -> anyhow::Result<Map<String, Value>> {
    let mut out = input.clone();
    for (field, template) in &rule.set {
        let filled = template::fill(template, |name| value(run, rule, input, name));
        out.insert(field.clone(), filled.into());
    }
    anyhow::ensure!(!out.is_empty(), "the call has no input");
    Ok(out)
}

fn value(run: &Open, rule: &Merge, input: &Map<String, Value>, name: &str) -> Option<String> {
    if name == "results" {
        let all: Vec<String> = rule.needs.iter().filter_map(|id| section(run, id)).collect();
        return Some(all.join("\n"));
    }
    let (kind, rest) = name.split_once('.')?;
    match kind {
        "input" => input.get(rest).map(|v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned)),
        "result" => TaskId::new(rest).ok().and_then(|id| content(run, &id)),
        "path" => {
            let id = TaskId::new(rest).ok()?;
            let path = run.hooked.view.tasks.get(&id)?.result.as_ref()?;
            Some(run.folder.path().join(path).to_string_lossy().into_owned())
        }
        _ => None,
    }
}

/// One result under its heading.
fn section(run: &Open, id: &TaskId) -> Option<String> {
    let brief = run.hooked.view.tasks.get(id)?;
    let text = content(run, id).unwrap_or_else(|| "(no output)\n".into());
    let end = if text.ends_with('\n') { "" } else { "\n" };
    Some(format!("{}\n\n{text}{end}", conductor::result_heading(id, brief)))
}

/// The text of a task's result, at most [`MAX_RESULT`] bytes of it; where it cannot be read, why and where it is. `None`:
/// there is none.
fn content(run: &Open, id: &TaskId) -> Option<String> {
    let path = run.hooked.view.tasks.get(id)?.result.as_ref()?;
    let text = read(run, path).unwrap_or_else(|e| format!("(could not be read: {e}; it is {}/{path})\n", run.shown()));
    Some(text)
}

fn read(run: &Open, path: &str) -> io::Result<String> {
    let mut dir = run.folder.dir.try_clone()?;
    let (folders, name) = path.rsplit_once('/').ok_or(io::ErrorKind::InvalidFilename)?;
    for folder in folders.split('/') {
        dir = dir.sub(folder)?;
    }
    let file = dir.open_read(name)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    file.take(MAX_RESULT).read_to_end(&mut bytes)?;
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if length > MAX_RESULT {
        let _ = write!(text, "\n… ({length} bytes in all, the whole is {}/{path})\n", run.shown());
    }
    Ok(text)
}
