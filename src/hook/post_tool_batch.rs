//! PostToolBatch: once a step, what is new.

use crate::actor::crew;
use crate::hook::answer::Answer;
use crate::hook::{Held, deliver, scene};

pub(super) fn run() -> anyhow::Result<Held> {
    let Some(mut scene) = scene::look()? else { return Ok(0) };
    if !scene.payload.is_main() {
        return Ok(0);
    }
    for run in &mut scene.runs {
        crew::tend(&run.folder, &mut run.hooked)?;
    }
    let parcel = deliver::collect(&mut scene)?;
    if parcel.text.is_empty() {
        scene.close_finished()?;
        return Ok(0);
    }
    parcel.send(&mut scene, Answer::default())?;
    Ok(0)
}
