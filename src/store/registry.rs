//! Which run folders this user's cpw has made, in `<state>/runs`. A folder that is not named here (it came with a clone, a
//! copy or an archive, or something else wrote it) is inert: it can be looked at, but no process is started or signalled
//! because of it, and nothing is written to it.
//!
//! A folder is recognised by its run's id, device and inode: a copy has another inode, a project that was moved keeps it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::base::hex;
use crate::base::ids::RunId;
use crate::store::home::State;
use crate::store::log;
use crate::store::run::{self, RunDir};
use crate::sys::dir::{Dir, FileId};

/// The folder of the records, below the state directory.
const FOLDER: &str = "runs";

/// The folder that remembers, by project, where else than in `.claude/runs` its runs are.
const PLACES: &str = "places";

/// The largest record that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

/// The most records that are read to find projects; older runs have been cleaned long ago.
const MAX_RECORDS: usize = 4096;

/// Which file a log is: device, inode, and when it was made in nanoseconds (0: not known).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogId(pub u64, pub u64, #[serde(default)] pub u64);

impl LogId {
    /// Of a file.
    pub fn of(id: &FileId) -> LogId {
        LogId(id.dev, id.ino, id.born)
    }

    /// Of the log in the folder of a run.
    pub fn in_folder(dir: &Dir) -> io::Result<Option<LogId>> {
        match dir.open_read(log::NAME) {
            Ok(file) => FileId::of(&file).map(|id| Some(LogId::of(&id))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Whether both are the same file. A log that was deleted leaves its inode to another one, which was made later.
    pub fn is(&self, other: &LogId) -> bool {
        (self.0, self.1) == (other.0, other.1) && (self.2 == other.2 || self.2 == 0 || other.2 == 0)
    }
}

/// What is recorded of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Where the folder was when the run began.
    pub path: String,
    /// Device and inode of the folder.
    pub dev: u64,
    /// See `dev`.
    pub ino: u64,
    /// Which file its log is: another one by that name has another history.
    #[serde(default)]
    pub log: Option<LogId>,
    /// The project it belongs to.
    #[serde(default)]
    pub project: Option<PathBuf>,
}

fn name(folder: &Path) -> io::Result<&std::ffi::OsStr> {
    folder.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a run's folder has a name"))
}

/// Records a folder, and the log that is in it, as made by this user's cpw. `durable`: the record is on the disk before the
/// run begins, because after a power cut nobody would finish a run that nobody knows.
pub fn register(state: &State, folder: &RunDir, durable: bool) -> io::Result<()> {
    register_as(state, folder, folder.path(), durable)
}

/// As [`register`], for a folder that will be at `path` once it is complete.
pub fn register_as(state: &State, folder: &RunDir, path: &Path, durable: bool) -> io::Result<()> {
    let id = folder.dir.id()?;
    let record = Record {
        path: path.to_string_lossy().into_owned(),
        dev: id.dev,
        ino: id.ino,
        log: LogId::in_folder(&folder.dir)?,
        project: Some(folder.project.clone()),
    };
    let home = Dir::open(state.path())?;
    let runs = path.parent().unwrap_or(path);
    if runs != run::runs_path(&folder.project) {
        add_place(&home, &folder.project, runs)?;
    }
    let records = home.create_sub(FOLDER, 0o700)?;
    records.write_atomic(name(path)?, &serde_json::to_vec(&record)?, 0o600, durable)
}

/// What is recorded of a folder, if it is one that this user's cpw has made. Where that cannot be told, it is not.
pub fn record(folder: &RunDir) -> Option<Record> {
    recorded(&State::existing().ok().flatten()?, folder).ok().flatten()
}

/// Whether a folder is one that this user's cpw has made.
pub fn is_ours(folder: &RunDir) -> bool {
    record(folder).is_some()
}

fn recorded(state: &State, folder: &RunDir) -> io::Result<Option<Record>> {
    let id = folder.dir.id()?;
    read_of(state, name(folder.path())?, &id)
}

fn read_of(state: &State, run: &std::ffi::OsStr, id: &FileId) -> io::Result<Option<Record>> {
    Ok(Some(read(state, run)?).filter(|r| (r.dev, r.ino) == (id.dev, id.ino)))
}

/// Whether `dir`, whatever its name is now, is the folder that was recorded for `run`.
pub fn is_of(state: &State, run: &RunId, dir: &Dir) -> io::Result<bool> {
    match read_of(state, run.as_str().as_ref(), &dir.id()?) {
        Ok(record) => Ok(record.is_some()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether anything is recorded of a run.
pub fn knows(state: &State, run: &RunId) -> bool {
    read(state, run.as_str().as_ref()).is_ok()
}

/// Removes what is recorded of a run, whose folder has gone.
pub fn forget(state: &State, run: &RunId) -> io::Result<()> {
    Dir::open(state.path())?.sub(FOLDER)?.remove(run.as_str()).map(drop)
}

fn read(state: &State, run: &std::ffi::OsStr) -> io::Result<Record> {
    let records = Dir::open(state.path())?.sub(FOLDER)?;
    Ok(serde_json::from_slice(&records.read_bounded(run, MAX_BYTES)?)?)
}

/// All that is recorded of runs, by their ids.
pub fn all(state: &State) -> Vec<(RunId, Record)> {
    let names = Dir::open(state.path()).and_then(|home| home.sub(FOLDER)).and_then(|records| records.names());
    let ids = names.unwrap_or_default().into_iter().filter_map(|name| RunId::new(name.to_str()?).ok());
    ids.filter_map(|id| read(state, id.as_str().as_ref()).ok().map(|record| (id, record))).collect()
}

/// How long ago a run was recorded; no time at all where that cannot be told.
pub fn age(state: &State, run: &RunId) -> Duration {
    let recorded =
        std::fs::symlink_metadata(state.path().join(FOLDER).join(run.as_str())).and_then(|meta| meta.modified());
    recorded.ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default()
}

/// The projects of all recorded runs, that of the newest run first; a project stands there once for each of its runs.
pub fn projects(state: &State) -> Vec<PathBuf> {
    let Ok(records) = Dir::open(state.path()).and_then(|home| home.sub(FOLDER)) else { return Vec::new() };
    let mut runs = records.names().unwrap_or_default();
    runs.sort_unstable_by(|a, b| b.cmp(a));
    let project = |run: &std::ffi::OsString| {
        let record: Record = serde_json::from_slice(&records.read_bounded(run, MAX_BYTES).ok()?).ok()?;
        record.project
    };
    runs.iter().take(MAX_RECORDS).filter_map(project).collect()
}

/// The project of the run whose folder is at `path`, where that is not below its project's `.claude/runs`.
pub fn project_of(path: &Path) -> Option<PathBuf> {
    let record = read(&State::existing().ok().flatten()?, path.file_name()?).ok()?;
    record.project.filter(|_| Path::new(&record.path) == path)
}

/// The folders, beside `.claude/runs`, in which runs of a project were made.
pub fn places(project: &Path) -> Vec<PathBuf> {
    let read = || places_of(&Dir::open(State::existing().ok().flatten()?.path()).ok()?, project);
    read().unwrap_or_default()
}

fn place_name(project: &Path) -> String {
    hex::sha256(project.as_os_str().as_encoded_bytes())
}

fn places_of(home: &Dir, project: &Path) -> Option<Vec<PathBuf>> {
    let bytes = home.sub(PLACES).ok()?.read_bounded(place_name(project), MAX_BYTES).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Two that add a place at the same time may lose one of them; the next run there adds it again.
fn add_place(home: &Dir, project: &Path, runs: &Path) -> io::Result<()> {
    let mut places = places_of(home, project).unwrap_or_default();
    if places.iter().any(|p| p == runs) {
        return Ok(());
    }
    places.push(runs.to_owned());
    let folder = home.create_sub(PLACES, 0o700)?;
    folder.write_atomic(place_name(project), &serde_json::to_vec(&places)?, 0o600, false)
}

/// What is said of a folder that is not ours.
pub const FOREIGN: &str = "this folder was not made by your cpw: nothing of it is started, signalled or changed";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};
    use crate::store::run::Origin;

    #[test]
    fn a_file_that_got_the_inode_of_another_is_not_that_one() {
        let (old, new) = (LogId(1, 2, 30), LogId(1, 2, 40));
        assert!(old.is(&old) && !old.is(&new) && !old.is(&LogId(1, 3, 30)) && !old.is(&LogId(2, 2, 30)));
        // Where the time is not known, and in records of before, the inode alone tells.
        let before: LogId = serde_json::from_str("[1,2]").unwrap();
        assert!(before.is(&new) && new.is(&before) && !before.is(&LogId(1, 3, 40)));
    }

    #[test]
    fn a_copy_of_a_run_is_nobodys_and_a_moved_one_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::open_at(&tmp.path().join("state")).unwrap();
        let project = tmp.path().join("project");
        std::fs::create_dir(&project).unwrap();
        let folder = RunDir::create(&project, &plan(vec![task("a")]), &Origin::default()).unwrap();
        assert!(recorded(&state, &folder).ok().flatten().is_none());
        register(&state, &folder, false).unwrap();
        let record = recorded(&state, &folder).unwrap().unwrap();
        assert_eq!(record.project.as_deref(), Some(project.as_path()));
        assert_eq!(record.log, LogId::in_folder(&folder.dir).unwrap());

        let run = crate::base::ids::RunId::new(folder.path().file_name().unwrap().to_str().unwrap()).unwrap();
        let copy = tmp.path().join("copy");
        for dir in [".claude", ".claude/runs", &format!(".claude/runs/{run}")] {
            std::fs::create_dir_all(copy.join(dir)).unwrap();
        }
        assert!(recorded(&state, &RunDir::open(&copy, &run).unwrap()).unwrap().is_none());

        let moved = tmp.path().join("moved");
        std::fs::rename(&project, &moved).unwrap();
        assert!(recorded(&state, &RunDir::open(&moved, &run).unwrap()).unwrap().is_some());
    }
}
