//! `SessionStart`: who a session is. Behind `/clear` it is told once what goes on of the session before it; a session that was
//! resumed takes its runs with it; and the user is told, once, of runs whose client has gone. Nothing is started here, and
//! nothing held.

use std::path::Path;

use anyhow::Context;

use crate::base::ids::SessionId;
use crate::hook::Held;
use crate::hook::answer::Answer;
use crate::hook::input;
use crate::hook::scene::{self, Open};
use crate::logic::session as words;
use crate::store::client;
use crate::store::home::State;
use crate::store::hooklog;
use crate::store::run::{self, HOOK_LOCK};
use crate::store::session::{self, Entry, Locked, Session};
use crate::store::switch;
use crate::store::turn;
use crate::sys::process;

/// Runs of the project that are looked at, newest first: older ones ended long ago.
const NEWEST: usize = 32;

/// Runs that one session is told about, at most.
const MOST: usize = 4;

pub(super) fn run() -> anyhow::Result<Held> {
    let Some(state) = State::existing()? else { return Ok(0) };
    let payload = input::read()?;
    let event = payload.hook_event_name.clone().context("the client did not name the event")?;
    let id = payload.session_id.as_deref().and_then(|s| SessionId::new(s).ok());
    let id = id.context("the client named no session")?;
    // Compaction: the same session in the same client.
    if payload.source.as_deref() == Some("compact") {
        return Ok(0);
    }
    let project = scene::project(&payload)?;
    if switch::is_off(&state, &project, Some(&id)) || process::is_below_worker() {
        return Ok(0);
    }
    if let Some(session) = session::load_open(state.path(), &id)? {
        scene::keep_client(&state, &id, &session)?;
    }
    let mut answer = Answer::default();
    if payload.source.as_deref() == Some("clear") {
        answer = answer.context(&cleared(&state)?.join("\n"));
    }
    if client::is_interactive() {
        match orphans(&state, &project, &id) {
            Ok(lines) if lines.is_empty() => {}
            Ok(lines) => answer = answer.for_user(lines.join("\n")),
            Err(e) => hooklog::note(state.path(), &event, 0, Some(&format!("{e:#}")), Some(id.as_str())),
        }
    }
    answer.send(&event);
    Ok(0)
}

/// What goes on of the session that `/clear` has ended in this client.
fn cleared(state: &State) -> anyhow::Result<Vec<String>> {
    let Some(client) = client::current() else { return Ok(Vec::new()) };
    let Some(before) = turn::take_cleared(state.path(), &client)? else { return Ok(Vec::new()) };
    let Some(session) = session::load_open(state.path(), &before)? else { return Ok(Vec::new()) };
    let runs = scene::open_runs(state, &before, &session, |_, _| true)?;
    let told = runs.iter().filter(|run| owes(run)).take(MOST);
    Ok(told.map(|run| words::goes_on(&run.hooked.view, &run.shown())).collect())
}

/// Whether a run still has something to say. One that only waits for a call that it would be merged into has not.
fn owes(run: &Open) -> bool {
    run.hooked.view.ended.is_none() || !run.hooked.view.news.is_empty()
}

/// What the user is told of runs of this project whose client has gone: each once.
fn orphans(state: &State, project: &Path, id: &SessionId) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for folder in run::newest_own(project, NEWEST)? {
        // What cannot be read has its own place where that is said: `cpw status`, `cpw doctor`.
        let Ok(hooked) = folder.open_view() else { continue };
        let open = Open { folder, hooked };
        let Some(owner) = open.hooked.view.session.clone().filter(|owner| owner != id) else { continue };
        if !owes(&open) {
            continue;
        }
        let run = &open.hooked.view.run;
        let Some(session) = session::load(state.path(), &owner)? else { continue };
        let what = format!("orphaned {run}");
        if !is_left(&session, run) || session.told.contains(&what) {
            continue;
        }
        let Some(mut locked) = Locked::open(state.path(), &owner, HOOK_LOCK)? else { continue };
        if !locked.session.told.contains(&what) {
            locked.add(Entry::Told { what })?;
            lines.push(words::orphaned(&open.hooked.view));
        }
        if lines.len() == MOST {
            break;
        }
    }
    Ok(lines)
}

/// Whether a session has the run open, in a client that has gone. Where the client is not known, somebody may still be there.
fn is_left(session: &Session, run: &crate::base::ids::RunId) -> bool {
    let gone = session.client.as_ref().is_some_and(|client| !process::alive(client));
    gone && session.open_runs().any(|own| own.id().as_ref() == Some(run))
}
