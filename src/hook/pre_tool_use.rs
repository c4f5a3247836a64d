//! PreToolUse: a call that meets a merge gets the results put into it; a call on a claimed file is answered by the plan's
//! `on_claimed`. Everything else passes in silence.

use std::cell::OnceCell;

use crate::hook::input::Payload;
use crate::hook::scene::Scene;
use crate::hook::{Held, claim, merge, scene};
use crate::logic::conductor;
use crate::logic::glance::Glance;
use crate::store::run::RunDir;
use crate::sys::signals::Deadline;

pub(super) fn run(deadline: &Deadline) -> anyhow::Result<Held> {
    let paths = OnceCell::new();
    let concerns = |payload: &Payload, folder: &RunDir, glance: &Glance<'_>| {
        let Some(tool) = payload.tool_name.as_deref() else { return false };
        let merged = payload.is_main() && glance.may_merge(tool);
        let claimed = |field| {
            let paths = || paths.get_or_init(|| scene::paths(payload, field)).as_slice();
            glance.may_be_claimed(&folder.project.to_string_lossy(), paths)
        };
        merged || conductor::path_field(tool).is_some_and(claimed)
    };
    scene::act(concerns, |scene| answer(scene, deadline))
}

fn answer(scene: &mut Scene, deadline: &Deadline) -> anyhow::Result<Held> {
    let Some(tool) = scene.payload.tool_name.clone() else { return Ok(0) };
    if scene.payload.is_main() {
        let met = scene.runs.iter().enumerate().find_map(|(i, run)| {
            conductor::merge_for(&run.hooked.view, &tool, |f| scene.payload.field(f)).map(|(m, _)| (i, m))
        });
        if let Some((run, merge)) = met {
            return merge::answer(scene, deadline, run, merge);
        }
    }
    let Some(field) = conductor::path_field(&tool) else { return Ok(0) };
    let paths = scene::paths(&scene.payload, field);
    claim::answer(scene, deadline, &tool, field, &paths)
}
