//! What the session does to files that tasks answer for, with calls that get results put into them, and with calls that
//! somebody waits for, written into the run's log, so that a worker can follow it. A call that concerns none of these leaves
//! no trace.

use crate::hook::lease;
use crate::hook::scene::{File, Open, Scene, is_same_file};
use crate::hook::signal::About;
use crate::logic::conductor;
use crate::logic::view::Brief;
use crate::model::event::{Body, Draft, Observed};
use crate::model::matcher::Matcher;
use crate::model::plan::OnClaimed;
use crate::store::hooklog;

/// How much of a file's name or a command is kept, in bytes.
const MAX_TARGET: usize = 1000;

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is about to be made, and may be held or refused.
    Before,
    /// It was made.
    After,
}

/// Writes the call, which names `files`, down where it concerns a run. What cannot be written is no reason to answer the call otherwise.
pub(super) fn observe(scene: &mut Scene, about: &About, files: &[File], phase: Phase) {
    for i in 0..scene.runs.len() {
        let run = &scene.runs[i];
        let awaited = awaited(run, about);
        let concerned = !awaited.is_empty()
            || is_claimed(run, files)
            || meets_merge(scene, run, about)
            || lease::concerns(run, about);
        if !concerned || run.hooked.view.ended.is_some() {
            continue;
        }
        let target = about.paths.first().unwrap_or(&about.target);
        let observed = Observed {
            hook: scene.event.clone(),
            phase: if phase == Phase::Before { "before" } else { "after" }.into(),
            tool: about.tool.clone(),
            target: target[..target.floor_char_boundary(MAX_TARGET)].to_owned(),
            tool_use_id: scene.payload.tool_use_id.clone(),
            awaited,
        };
        let run = &mut scene.runs[i];
        let written = run.hooked.transact(&run.folder, |tx| {
            // After its end nothing is written that could be missed by who looks at it then.
            if tx.fold.ended.is_none() {
                tx.emit(Draft::run(Body::Observed(observed)))?;
            }
            Ok(())
        });
        if let Err(e) = written {
            let why = format!("run {}: the call was not written down: {e}", run.folder.path().display());
            hooklog::note(scene.state.path(), "observe", 0, Some(&why), Some(scene.id.as_str()));
        }
    }
}

/// Who waits for the call.
fn awaited(run: &Open, about: &About) -> Vec<u64> {
    let project = run.project();
    let means = |written: &str| {
        Matcher::parse(written).is_ok_and(|m| m.matches(&about.tool, &about.target, &about.paths, &project))
    };
    run.hooked.view.awaiting.iter().filter(|a| means(&a.matcher)).map(|a| a.id).collect()
}

fn is_claimed(run: &Open, files: &[File]) -> bool {
    let (view, project) = (&run.hooked.view, run.project());
    let claims = |brief: &Brief| files.iter().any(|f| conductor::is_claimed_by(brief, &project, f, &is_same_file));
    view.conductor.on_claimed != OnClaimed::Off && view.tasks.values().any(|b| !b.phase.is_final() && claims(b))
}

/// Whether a merge is to be applied to the call, or was.
fn meets_merge(scene: &Scene, run: &Open, about: &About) -> bool {
    let view = &run.hooked.view;
    let id = scene.payload.tool_use_id.as_ref();
    let coming = || conductor::merge_for(view, &about.tool, |field| scene.payload.field(field)).is_some();
    scene.payload.is_main() && (view.rewrites.iter().any(|r| Some(&r.tool_use_id) == id) || coming())
}
