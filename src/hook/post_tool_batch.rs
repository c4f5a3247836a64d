//! PostToolBatch: once a step, what is new.

use crate::actor::crew;
use crate::hook::answer::Answer;
use crate::hook::scene::Scene;
use crate::hook::{Held, deliver, merge, scene};
use crate::logic::signals::Occasion;

pub(super) fn run() -> anyhow::Result<Held> {
    scene::act(scene::always, answer)
}

fn answer(scene: &mut Scene) -> anyhow::Result<Held> {
    if !scene.payload.is_main() {
        return Ok(0);
    }
    for run in &mut scene.runs {
        crew::tend(&run.folder, &mut run.hooked)?;
    }
    merge::settle(scene)?;
    let parcel = deliver::collect(scene, Occasion::Step)?;
    if parcel.text.is_empty() {
        scene.close_finished()?;
        return Ok(0);
    }
    parcel.send(scene, Answer::default())?;
    Ok(0)
}
