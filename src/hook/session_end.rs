//! `SessionEnd`: the session leaves word that it is over, so that who watches over it leaves. Its runs go on. Where `/clear` has
//! ended it, the session that comes next in the same client is told so.

use crate::base::ids::SessionId;
use crate::hook::Held;
use crate::hook::scene;
use crate::store::client;
use crate::store::run::HOOK_LOCK;
use crate::store::session::{Entry, Locked};
use crate::store::turn;

/// The longest reason that is kept, in characters.
const REASON: usize = 64;

pub(super) fn run() -> anyhow::Result<Held> {
    let Some(scene) = scene::look(|_| Ok(false), scene::always)? else { return Ok(0) };
    let reason: String = scene.payload.reason.as_deref().unwrap_or("other").chars().take(REASON).collect();
    over(&scene, &scene.id, reason)?;
    scene.ring_watcher();
    Ok(0)
}

fn over(scene: &scene::Scene, id: &SessionId, reason: String) -> anyhow::Result<()> {
    let state = scene.state.path();
    if reason == "clear"
        && let Some(client) = client::current()
    {
        turn::cleared(state, &client, id)?;
    }
    if let Some(mut locked) = Locked::open(state, id, HOOK_LOCK)? {
        locked.add(Entry::Over { reason })?;
    }
    Ok(())
}
