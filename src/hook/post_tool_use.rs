//! PostToolUse: compares what ran with what was rewritten, because of several hooks that rewrite, the one that finishes last
//! wins. News comes by PostToolBatch, which the wiring says with `--batched`; without it, here.

use std::ffi::OsString;

use crate::actor::crew;
use crate::hook::answer::Answer;
use crate::hook::input::Payload;
use crate::hook::scene::Scene;
use crate::hook::{Held, deliver, merge, scene};
use crate::logic::glance::Glance;
use crate::logic::signals::Occasion;
use crate::model::event::{self, Body, Decision, Draft};
use crate::store::run::RunDir;

pub(super) fn run(args: &[OsString]) -> anyhow::Result<Held> {
    let batched = args.iter().any(|a| a == "--batched");
    let concerns = |_: &Payload, _: &RunDir, glance: &Glance<'_>| !batched || glance.has_rewrites();
    scene::act(concerns, |scene| answer(scene, batched))
}

fn answer(scene: &mut Scene, batched: bool) -> anyhow::Result<Held> {
    let lost = compare(scene)?;
    if batched || !scene.payload.is_main() {
        Answer::default().context(&lost).send(&scene.event);
        return Ok(0);
    }
    for run in &mut scene.runs {
        crew::tend(&run.folder, &mut run.hooked)?;
    }
    let mut parcel = deliver::collect(scene, Occasion::Step)?;
    if !lost.is_empty() {
        parcel.text = format!("{lost}\n{}", parcel.text);
    }
    parcel.send(scene, Answer::default())?;
    Ok(0)
}

/// Notes whether the call ran as it was rewritten. Returns what the model is to know if it did not.
fn compare(scene: &mut Scene) -> anyhow::Result<String> {
    let Some(id) = scene.payload.tool_use_id.clone() else { return Ok(String::new()) };
    let mut lost = String::new();
    for run in &mut scene.runs {
        let Some(rewrite) = run.hooked.view.rewrites.iter().find(|r| r.tool_use_id == id).cloned() else { continue };
        let Some(rule) = run.hooked.view.merges.get(rewrite.merge).map(|m| m.rule.clone()) else { continue };
        let ran = merge::fields_sha256(&rule, &scene.payload.tool_input.fields()?);
        let same = ran == rewrite.input_sha256;
        let reason = if same { "it ran as rewritten" } else { "another hook's rewrite won" };
        if !same {
            lost = format!(
                "The workers' results are not in this call: another hook changed its input afterwards. They are under {}.",
                run.folder.shown()
            );
        }
        let decision = Decision {
            hook: scene.event.clone(),
            tool: scene.payload.tool_name.clone(),
            tool_use_id: Some(id.clone()),
            input_sha256: Some(ran),
            answer: event::Answer::Inject,
            reason: reason.into(),
            ..Decision::default()
        };
        run.hooked.transact(&run.folder, |tx| tx.emit(Draft::run(Body::Decision(decision))))?;
    }
    Ok(lost)
}
