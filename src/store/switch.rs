//! `cpw off` and `cpw on`: whether hooks act at all in a project or a session. Off is a file, so that a hook learns it by
//! one `stat` each.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::base::hex;
use crate::base::ids::SessionId;
use crate::store::file::{Rights, replace};
use crate::store::home::State;

const FOLDER: &str = "off";

/// What is switched.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// A project, by its canonical path.
    Project(&'a Path),
    /// A session, wherever it works.
    Session(&'a SessionId),
}

impl Scope<'_> {
    fn file(self, state: &State) -> PathBuf {
        use std::os::unix::ffi::OsStrExt;
        let name = match self {
            Scope::Project(root) => hex::sha256(root.as_os_str().as_bytes()),
            Scope::Session(id) => format!("session-{id}"),
        };
        state.path().join(FOLDER).join(name)
    }
}

/// Whether anything is or was switched off by this user: what most hooks ask, and no more.
pub fn is_any_off(state: &State) -> bool {
    state.path().join(FOLDER).symlink_metadata().is_ok()
}

/// Whether hooks do nothing for this project (its canonical path) or session.
pub fn is_off(state: &State, project: &Path, session: Option<&SessionId>) -> bool {
    let there = |scope: Scope| scope.file(state).symlink_metadata().is_ok();
    there(Scope::Project(project)) || session.is_some_and(|id| there(Scope::Session(id)))
}

/// Switches off or on. Returns whether that changed anything.
pub fn set(state: &State, scope: Scope, off: bool) -> anyhow::Result<bool> {
    let file = scope.file(state);
    if file.symlink_metadata().is_ok() == off {
        return Ok(false);
    }
    if off {
        state.folder(FOLDER)?;
        // For people who look into the folder.
        let what = match scope {
            Scope::Project(root) => format!("project {}\n", root.display()),
            Scope::Session(id) => format!("session {id}\n"),
        };
        replace(&file, what.as_bytes(), Rights::Private).with_context(|| format!("cannot write {}", file.display()))?;
    } else {
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", file.display()));
            }
            _ => {}
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_and_a_session_are_switched_apart() {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::open_at(&tmp.path().join("s")).unwrap();
        let (a, b) = (Path::new("/p/a"), Path::new("/p/b"));
        let (s, t) = (SessionId::new("s-1").unwrap(), SessionId::new("t-2").unwrap());
        assert!(!is_off(&state, a, Some(&s)) && !is_any_off(&state));
        assert!(set(&state, Scope::Project(a), true).unwrap());
        assert!(!set(&state, Scope::Project(a), true).unwrap());
        assert!(is_any_off(&state));
        assert!(is_off(&state, a, None) && is_off(&state, a, Some(&s)) && !is_off(&state, b, Some(&s)));
        assert!(set(&state, Scope::Session(&s), true).unwrap());
        assert!(is_off(&state, b, Some(&s)) && !is_off(&state, b, Some(&t)) && !is_off(&state, b, None));
        assert!(set(&state, Scope::Project(a), false).unwrap());
        assert!(!set(&state, Scope::Project(a), false).unwrap());
        assert!(is_off(&state, a, Some(&s)) && !is_off(&state, a, Some(&t)));
    }
}
