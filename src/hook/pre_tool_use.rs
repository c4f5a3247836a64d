//! PreToolUse: a call that a task holds back is refused; one that uses a resource waits until that is free; a call that meets a merge gets the results put into it; a call on a
//! claimed file, or a command that plainly names one, is answered by the plan's `on_claimed`; what tasks have to say about a
//! call goes with it. Everything else passes in silence.

use std::cell::OnceCell;

use crate::hook::input::Payload;
use crate::hook::lease::{self, Admitted};
use crate::hook::observe::{self, Phase};
use crate::hook::scene::Scene;
use crate::hook::signal::{self, About};
use crate::hook::{Held, claim, merge, scene};
use crate::logic::conductor::{self, Needs};
use crate::logic::glance::Glance;
use crate::store::run::RunDir;
use crate::sys::signals::Deadline;

pub(super) fn run(deadline: &Deadline) -> anyhow::Result<Held> {
    let files = OnceCell::new();
    let concerns = |payload: &Payload, folder: &RunDir, glance: &Glance<'_>| {
        let Some(tool) = payload.tool_name.as_deref() else { return false };
        let merged = payload.is_main() && glance.may_merge(tool);
        let files = || files.get_or_init(|| scene::files(payload, tool)).as_slice();
        let meant = glance.may_be_signalled(tool) || glance.may_be_awaited(tool);
        let project = folder.project.to_string_lossy();
        merged || meant || glance.may_use(&project, tool, files) || glance.may_be_claimed(&project, files)
    };
    scene::act(concerns, |scene| answer(scene, deadline, &files))
}

fn answer(scene: &mut Scene, deadline: &Deadline, files: &OnceCell<Vec<scene::File>>) -> anyhow::Result<Held> {
    let Some(tool) = scene.payload.tool_name.clone() else { return Ok(0) };
    let files = files.get_or_init(|| scene::files(&scene.payload, &tool));
    let about = About::of(&scene.payload, &tool, files);
    // Before anything holds the call: who waits for it may be the one that it would be held for.
    observe::observe(scene, &about, files, Phase::Before);
    if signal::refuse(scene, &about)? {
        return Ok(0);
    }
    let met = scene.runs.iter().enumerate().find_map(|(i, run)| {
        let merge = conductor::merge_for(&run.hooked.view, &tool, |f| scene.payload.field(f))?;
        Some((i, merge.0, conductor::needs_of(&run.hooked.view, merge.1)))
    });
    let met = met.filter(|_| scene.payload.is_main());
    let mut waited = 0;
    // Who waits for tasks holds nothing meanwhile: they may want the same.
    if met.is_none_or(|(.., needs)| needs != Needs::Open) && !claim::waits(scene, &tool, files) {
        match lease::admit(scene, deadline, &about) {
            Admitted::Yes(held) => waited = held,
            Admitted::Answered(held) => return Ok(held),
        }
    }
    if let Some((run, merge, _)) = met {
        return Ok(waited + merge::answer(scene, deadline, run, merge)?);
    }
    if let Some(held) = claim::answer(scene, deadline, &tool, files)? {
        return Ok(waited + held);
    }
    if scene.payload.is_main() { signal::accompany(scene, &about).map(|held| waited + held) } else { Ok(waited) }
}
