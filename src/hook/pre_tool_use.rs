//! PreToolUse: a call that meets a merge gets the results put into it; a call on a claimed file is answered by the plan's
//! `on_claimed`. Everything else passes in silence.

use crate::hook::{Held, claim, merge, scene};
use crate::logic::conductor;
use crate::sys::signals::Deadline;

pub(super) fn run(deadline: &Deadline) -> anyhow::Result<Held> {
    let Some(mut scene) = scene::look()? else { return Ok(0) };
    let Some(tool) = scene.payload.tool_name.clone() else { return Ok(0) };
    if scene.payload.is_main() {
        let met = scene.runs.iter().enumerate().find_map(|(i, run)| {
            conductor::merge_for(&run.hooked.view, &tool, |f| scene.payload.field(f)).map(|(m, _)| (i, m))
        });
        if let Some((run, merge)) = met {
            return merge::answer(&mut scene, deadline, run, merge);
        }
    }
    let Some(field) = conductor::path_field(&tool) else { return Ok(0) };
    let paths = scene.paths(field);
    claim::answer(&mut scene, deadline, &tool, field, &paths)
}
