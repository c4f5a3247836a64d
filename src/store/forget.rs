//! Forgetting what was noted of sessions whose runs have all gone: the record, which names folders and rules, whose turn it
//! was, who watched, and which files its tool calls named. Of a session that may go on nothing is forgotten: who holds one of
//! its files, or can still be asked for by its client, keeps all of them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::base::ids::SessionId;
use crate::store::home::State;
use crate::store::registry;
use crate::store::session::{Locked, SESSIONS, Session};
use crate::store::triggers;
use crate::sys::dir::Dir;
use crate::sys::lock;
use crate::sys::process;

/// How long somebody may take who adds to a record.
const PATIENCE: Duration = Duration::from_millis(50);

/// Small files beside a record, by the beginning of their names.
const BESIDE: [&str; 2] = [".turn-", ".watch-"];

/// Forgets all sessions that are over and have no run left. What cannot be removed stays for the next time.
pub fn sessions(state: &State) -> io::Result<()> {
    let home = Dir::open(state.path())?;
    let all = match home.sub(SESSIONS) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let names: Vec<String> = all.names()?.into_iter().filter_map(|name| name.into_string().ok()).collect();
    let ids: BTreeSet<SessionId> = names.iter().filter_map(|name| SessionId::new(name).ok()).collect();
    for id in ids {
        // Who is in the middle of it will be forgotten the next time.
        if let Some(locked) = Locked::open(state.path(), &id, PATIENCE).ok().flatten()
            && is_over(&locked.session)
            && locked.session.runs.iter().all(|run| run.id().is_none_or(|id| !registry::knows(state, &id)))
            && is_free(&all, &id)
        {
            forget(&home, &all, &id)?;
        }
    }
    Ok(())
}

/// Whether nobody will go on with it where it was: its client has ended it, or has gone.
fn is_over(session: &Session) -> bool {
    let gone = || session.client.as_ref().is_some_and(|client| !process::alive(client));
    !session.off && (session.over.is_some() || gone())
}

/// Whether nobody holds a file beside the record: no Stop that waits, and no watcher.
fn is_free(all: &Dir, id: &SessionId) -> bool {
    BESIDE.iter().all(|kind| match all.open_existing(format!("{kind}{id}")) {
        Ok(file) => lock::try_exclusive(&file).unwrap_or(false),
        Err(e) => e.kind() == io::ErrorKind::NotFound,
    })
}

/// The record goes last: as long as it is there, the next time finds the others.
fn forget(home: &Dir, all: &Dir, id: &SessionId) -> io::Result<()> {
    triggers::forget(home, id)?;
    for kind in BESIDE {
        all.remove(format!("{kind}{id}"))?;
    }
    all.remove(id.as_str()).map(drop)
}

/// Forgets runs whose folder has gone together with their project, such as one that was deleted, if that was recorded longer
/// than `after` ago. A disk that is not there for the moment comes back sooner.
pub fn lost_runs(state: &State, after: Duration) -> io::Result<()> {
    for (run, record) in registry::all(state) {
        let project = record.project.as_deref().unwrap_or(Path::new(&record.path));
        if !project.exists() && !Path::new(&record.path).exists() && registry::age(state, &run) > after {
            registry::forget(state, &run)?;
        }
    }
    Ok(())
}
