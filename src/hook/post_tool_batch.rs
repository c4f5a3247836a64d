//! PostToolBatch: once a step, what is new; and what its calls held is given back.

use crate::hook::answer::Answer;
use crate::hook::scene::Scene;
use crate::hook::{Held, deliver, lease, merge, scene};
use crate::logic::signals::Occasion;

pub(super) fn run() -> anyhow::Result<Held> {
    scene::act(scene::always, answer)
}

fn answer(scene: &mut Scene) -> anyhow::Result<Held> {
    lease::give_back(scene, |scene, call| scene.payload.mentions(call));
    if !scene.payload.is_main() {
        return Ok(0);
    }
    let tended = scene.tend();
    merge::settle(scene)?;
    let parcel = deliver::collect(scene, Occasion::Step)?;
    if parcel.text.is_empty() {
        scene.close_finished()?;
    } else {
        parcel.send(scene, Answer::default())?;
    }
    tended?;
    Ok(0)
}
