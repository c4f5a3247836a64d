//! Which run folders this user's cpw has made, in `<state>/runs`. A folder that is not named here (it came with a clone, a
//! copy or an archive, or something else wrote it) is inert: it can be looked at, but no process is started or signalled
//! because of it, and nothing is written to it.
//!
//! A folder is recognised by its run's id, device and inode: a copy has another inode, a project that was moved keeps it.

use std::io;

use serde::{Deserialize, Serialize};

use crate::store::home::State;
use crate::store::run::RunDir;
use crate::sys::dir::Dir;

/// The folder of the records, below the state directory.
const FOLDER: &str = "runs";

/// The largest record that is read, in bytes.
const MAX_BYTES: u64 = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Record {
    /// For people who look into the folder.
    path: String,
    dev: u64,
    ino: u64,
}

fn name(folder: &RunDir) -> io::Result<&std::ffi::OsStr> {
    folder.path().file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a run's folder has a name"))
}

/// Records a folder as made by this user's cpw. `durable`: the record is on the disk before the run begins, because after
/// a power cut nobody would finish a run that nobody knows.
pub fn register(state: &State, folder: &RunDir, durable: bool) -> io::Result<()> {
    let id = folder.dir.id()?;
    let record = Record { path: folder.path().to_string_lossy().into_owned(), dev: id.dev, ino: id.ino };
    let runs = Dir::open(state.path())?.create_sub(FOLDER, 0o700)?;
    runs.write_atomic(name(folder)?, &serde_json::to_vec(&record)?, 0o600, durable)
}

/// Whether a folder is one that this user's cpw has made. Where that cannot be told, it is not.
pub fn is_ours(folder: &RunDir) -> bool {
    let state = State::existing().ok().flatten();
    state.is_some_and(|state| is_registered(&state, folder).unwrap_or(false))
}

fn is_registered(state: &State, folder: &RunDir) -> io::Result<bool> {
    let runs = Dir::open(state.path())?.sub(FOLDER)?;
    let record: Record = serde_json::from_slice(&runs.read_bounded(name(folder)?, MAX_BYTES)?)?;
    let id = folder.dir.id()?;
    Ok((record.dev, record.ino) == (id.dev, id.ino))
}

/// What is said of a folder that is not ours.
pub const FOREIGN: &str = "this folder was not made by your cpw: nothing of it is started, signalled or changed";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};
    use crate::store::run::Origin;

    #[test]
    fn a_copy_of_a_run_is_nobodys_and_a_moved_one_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::open_at(&tmp.path().join("state")).unwrap();
        let project = tmp.path().join("project");
        std::fs::create_dir(&project).unwrap();
        let folder = RunDir::create(&project, &plan(vec![task("a")]), &Origin::default()).unwrap();
        assert!(!is_registered(&state, &folder).unwrap_or(false));
        register(&state, &folder, false).unwrap();
        assert!(is_registered(&state, &folder).unwrap());

        let run = crate::base::ids::RunId::new(folder.path().file_name().unwrap().to_str().unwrap()).unwrap();
        let copy = tmp.path().join("copy");
        for dir in [".claude", ".claude/runs", &format!(".claude/runs/{run}")] {
            std::fs::create_dir_all(copy.join(dir)).unwrap();
        }
        assert!(!is_registered(&state, &RunDir::open(&copy, &run).unwrap()).unwrap());

        let moved = tmp.path().join("moved");
        std::fs::rename(&project, &moved).unwrap();
        assert!(is_registered(&state, &RunDir::open(&moved, &run).unwrap()).unwrap());
    }
}
