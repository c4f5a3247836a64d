//! Removing runs. A run's folder first gets a name that no run has, in one step: from then on it is nobody's, and whatever
//! ends the removal, the next one finishes it. What is removed is known by device and inode, as recorded when it was made.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::base::ids::RunId;
use crate::store::home::State;
use crate::store::registry;
use crate::store::run::{self, MAKING, RunDir};
use crate::sys::dir::Dir;

/// How the name of a folder begins that is being removed.
const GONE: &str = ".gone-";

/// After this long nobody is still making a run.
const STALE: Duration = Duration::from_hours(24);

/// How long nothing has happened in a run, by its log or else by its folder.
pub fn age(folder: &RunDir) -> Duration {
    age_of(&folder.path().join(crate::store::log::NAME)).or_else(|_| age_of(folder.path())).unwrap_or_default()
}

fn age_of(path: &Path) -> io::Result<Duration> {
    let modified = path.symlink_metadata()?.modified()?;
    Ok(SystemTime::now().duration_since(modified).unwrap_or_default())
}

/// How many bytes are in a folder; no link is followed, and what cannot be looked at counts nothing.
pub fn size(folder: &Path) -> u64 {
    let mut folders = vec![folder.to_owned()];
    let mut bytes = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if std::os::unix::fs::MetadataExt::nlink(&meta) == 1 => bytes += meta.len(),
                Ok(_) | Err(_) => {}
            }
        }
    }
    bytes
}

/// Removes the folder of a run, and that it was ours. Returns how many bytes were freed.
pub fn remove(state: &State, folder: &RunDir, id: &RunId) -> io::Result<u64> {
    let runs = run::open_runs(folder.path().parent().unwrap_or(folder.path()))?;
    let named = runs.stat(id.as_str())?;
    if !named.is_some_and(|named| folder.dir.id().is_ok_and(|own| own.same_file(&named))) {
        return Err(io::Error::other("another folder has its name now"));
    }
    let name = OsString::from(format!("{GONE}{id}"));
    runs.rename(id.as_str(), &name)?;
    finish(state, &runs, &name, id, &folder.dir)
}

fn finish(state: &State, runs: &Dir, name: &OsStr, id: &RunId, dir: &Dir) -> io::Result<u64> {
    let bytes = dir.empty()?;
    // Before the folder itself: what is not recorded and not empty is never touched.
    registry::forget(state, id)?;
    runs.remove_folder(name)?;
    Ok(bytes)
}

/// What an earlier removal, or somebody who was making a run, has left in a project.
#[derive(Debug, Default)]
pub struct Rest {
    /// The folders that are, or with `dry` would be, removed.
    pub folders: Vec<PathBuf>,
    /// Bytes in them.
    pub bytes: u64,
    /// What could not be removed, and why.
    pub failed: Vec<io::Error>,
}

/// Finishes what was begun: folders that are half removed, and those of runs that nobody ever showed.
pub fn finish_rest(state: &State, project: &Path, dry: bool) -> Rest {
    let mut rest = Rest::default();
    let places = registry::places(project);
    for runs in std::iter::once(run::runs_path(project)).chain(places) {
        let Ok(runs) = run::open_runs(&runs) else { continue };
        for name in runs.names().unwrap_or_default() {
            let text = name.to_string_lossy();
            let forgotten = || age_of(&runs.path().join(&name)).is_ok_and(|age| age > STALE);
            let rest_of = text.strip_prefix(GONE).or_else(|| text.strip_prefix(MAKING).filter(|_| forgotten()));
            let Some(id) = rest_of.and_then(|id| RunId::new(id).ok()) else { continue };
            let Ok(dir) = runs.sub(&name) else { continue };
            let ours = match registry::is_of(state, &id, &dir) {
                Ok(ours) => ours || dir.names().is_ok_and(|names| names.is_empty()),
                Err(e) => {
                    rest.failed.push(e);
                    continue;
                }
            };
            if !ours {
                continue;
            }
            let removed = if dry { Ok(size(dir.path())) } else { finish(state, &runs, &name, &id, &dir) };
            match removed {
                Ok(bytes) => {
                    rest.bytes += bytes;
                    rest.folders.push(dir.path().to_owned());
                }
                Err(e) => rest.failed.push(e),
            }
        }
    }
    rest
}

/// Removes the folders in which `claude` tasks of a run worked, as far as they are left.
pub fn remove_scratch(state: &State, id: &RunId) -> io::Result<u64> {
    let all = match Dir::open(state.path())?.sub(run::SCRATCH) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut bytes = 0;
    for name in all.names()? {
        if name.to_string_lossy().strip_prefix(id.as_str()).is_some_and(|rest| rest.starts_with('.')) {
            bytes += all.sub(&name)?.empty()?;
            all.remove_folder(&name)?;
        }
    }
    Ok(bytes)
}
