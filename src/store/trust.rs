//! Which configs their user has approved. An approval is for a path and the exact bytes that were there when the user
//! looked; other bytes at the same path are not approved, and approved bytes elsewhere neither. It is kept in the user's
//! own directory and nowhere in the project, because a project must not decide whether it is trusted.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::base::env;
use crate::base::exit::Wrong;
use crate::base::hex;
use crate::store::file::{Rights, read_own, replace_with};
use crate::store::home::State;
use crate::store::project;
use crate::sys::dir::FileId;
use crate::sys::host;
use crate::sys::process;

const FOLDER: &str = "trust";
const VERSION: u32 = 1;
/// The largest record: a config, each of its bytes escaped, and a little around it.
const MAX_RECORD: u64 = 6 * project::MAX_CONFIG + 65_536;

/// What the user has said of a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// These bytes may start work.
    Approved,
    /// Nothing of this path may, whatever it holds.
    Denied,
    /// Other bytes were approved.
    Changed {
        /// When, as RFC 3339.
        approved_at: String,
    },
    /// The user was never asked.
    Unknown,
}

/// The bytes that were approved last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approved {
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
    /// When, as RFC 3339.
    pub at: String,
    /// The bytes themselves, to show what changed since.
    pub config: String,
}

#[derive(Serialize, Deserialize)]
struct Record {
    version: u32,
    path: String,
    denied: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    approved: Option<Approved>,
    /// Which file this record was written as. What somebody copied or brought along is another one, wherever it lies.
    file: Place,
}

/// Inode of a file, and when it was made in nanoseconds (0: not known). No device: that changes with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Place(u64, u64);

impl Place {
    fn of(id: &FileId) -> Place {
        Place(id.ino, id.born)
    }

    fn is(self, other: Place) -> bool {
        self.0 == other.0 && (self.1 == other.1 || self.1 == 0 || other.1 == 0)
    }
}

/// The path that a project's config is approved under: absolute, without links in the project's own path.
pub fn config_path(project: &Path) -> std::io::Result<PathBuf> {
    Ok(std::fs::canonicalize(project)?.join(project::CONFIG))
}

impl Trust {
    /// What holds for the config at `config` (from [`config_path`]) with bytes of this hash. One small read. An error (a
    /// record that is not the user's own, or broken) means: not approved.
    pub fn of(state: &State, config: &Path, sha256: &str) -> anyhow::Result<Trust> {
        Ok(match read(state, config)? {
            Some(Record { denied: true, .. }) => Trust::Denied,
            None | Some(Record { approved: None, .. }) => Trust::Unknown,
            Some(Record { approved: Some(a), .. }) if a.sha256 == sha256 => Trust::Approved,
            Some(Record { approved: Some(a), .. }) => Trust::Changed { approved_at: a.at },
        })
    }
}

/// Approves exactly these bytes at this path.
pub fn approve(state: &State, config: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(Wrong::new(format!("{} is not UTF-8", config.display())).into());
    };
    let at = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    write(state, config, false, Some(Approved { sha256: hex::sha256(bytes), at, config: text.to_owned() }))
}

/// Denies whatever this path holds, until it is approved.
pub fn deny(state: &State, config: &Path) -> anyhow::Result<()> {
    // What was approved last is kept for the diff of a later approval; a broken record has nothing worth keeping.
    write(state, config, true, last_approved(state, config).unwrap_or_default())
}

/// What was approved last at this path, if its copy is whole.
pub fn last_approved(state: &State, config: &Path) -> anyhow::Result<Option<Approved>> {
    let approved = read(state, config)?.and_then(|record| record.approved);
    Ok(approved.filter(|a| hex::sha256(a.config.as_bytes()) == a.sha256))
}

fn file(state: &State, config: &Path) -> PathBuf {
    state.path().join(FOLDER).join(format!("{}.json", hex::sha256(config.as_os_str().as_bytes())))
}

/// Fails where the state directory lies in the very project that the config belongs to: what a project brings along must not
/// say that it is trusted. Settings of a project can name a state directory, too. A user who works in their home has both,
/// and that is the account's home, whatever `HOME` says.
fn refuse_own_word(state: &State, config: &Path) -> anyhow::Result<()> {
    let Some(project) = config.parent().and_then(Path::parent) else { return Ok(()) };
    if !lies_in(state.path(), project) {
        return Ok(());
    }
    let what = format!("the state directory {} lies in the project that it decides about", state.path().display());
    Err(Wrong::with_hint(what, format!("set {} to a folder outside of it", env::STATE_DIR)).into())
}

/// Whether a file or folder that decides about a project lies in it, other than by the project being the user's home.
pub fn lies_in(path: &Path, project: &Path) -> bool {
    std::fs::canonicalize(path).is_ok_and(|path| is_own_word(&path, project, || host::home_of(process::user())))
}

fn is_own_word(state: &Path, project: &Path, home: impl FnOnce() -> Option<PathBuf>) -> bool {
    state.starts_with(project) && home().is_none_or(|home| !home.starts_with(project))
}

fn read(state: &State, config: &Path) -> anyhow::Result<Option<Record>> {
    refuse_own_word(state, config)?;
    let file = file(state, config);
    let name = || format!("the approval {} of {} does not count", file.display(), config.display());
    let Some((bytes, id)) = read_own(&file, MAX_RECORD).with_context(name)? else { return Ok(None) };
    let record: Record = serde_json::from_slice(&bytes).with_context(name)?;
    anyhow::ensure!(record.version == VERSION, "{}: it has version {}", name(), record.version);
    anyhow::ensure!(record.path == config.to_string_lossy(), "{}: it is for {}", name(), record.path);
    // As if nobody had ever been asked: who had their home restored is asked again.
    Ok(Some(record).filter(|record| record.file.is(Place::of(&id))))
}

fn write(state: &State, config: &Path, denied: bool, approved: Option<Approved>) -> anyhow::Result<()> {
    refuse_own_word(state, config)?;
    state.folder(FOLDER)?;
    let path = config.to_string_lossy().into_owned();
    let make = |id: &FileId| {
        let record = Record { version: VERSION, path, denied, approved, file: Place::of(id) };
        let mut bytes = serde_json::to_vec_pretty(&record)?;
        bytes.push(b'\n');
        Ok(bytes)
    };
    let file = file(state, config);
    replace_with(&file, Rights::Private, make).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn scratch() -> (tempfile::TempDir, State, PathBuf) {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::open_at(&tmp.path().join("state")).unwrap();
        (tmp, state, PathBuf::from("/project/.claude/cpw.json"))
    }

    fn trust(state: &State, config: &Path, bytes: &[u8]) -> Trust {
        Trust::of(state, config, &hex::sha256(bytes)).unwrap()
    }

    #[test]
    fn only_these_bytes_at_this_path_are_approved() {
        let (_tmp, state, config) = scratch();
        assert_eq!(trust(&state, &config, b"{}"), Trust::Unknown);
        approve(&state, &config, b"{}").unwrap();
        assert_eq!(trust(&state, &config, b"{}"), Trust::Approved);
        assert!(matches!(trust(&state, &config, b"{} "), Trust::Changed { .. }));
        assert_eq!(trust(&state, Path::new("/other/.claude/cpw.json"), b"{}"), Trust::Unknown);
        approve(&state, &config, b"{} ").unwrap();
        assert!(matches!(trust(&state, &config, b"{}"), Trust::Changed { .. }));
        assert_eq!(last_approved(&state, &config).unwrap().unwrap().config, "{} ");
    }

    #[test]
    fn a_denial_holds_for_any_bytes_until_the_next_approval() {
        let (_tmp, state, config) = scratch();
        approve(&state, &config, b"1").unwrap();
        deny(&state, &config).unwrap();
        assert_eq!(trust(&state, &config, b"1"), Trust::Denied);
        assert_eq!(trust(&state, &config, b"2"), Trust::Denied);
        assert_eq!(last_approved(&state, &config).unwrap().unwrap().config, "1");
        approve(&state, &config, b"2").unwrap();
        assert_eq!(trust(&state, &config, b"2"), Trust::Approved);
    }

    #[test]
    fn a_record_that_others_could_have_written_does_not_count() {
        let (tmp, state, config) = scratch();
        approve(&state, &config, b"{}").unwrap();
        let file = file(&state, &config);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let hash = hex::sha256(b"{}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert!(Trust::of(&state, &config, &hash).is_err());
        // A link to a good record is not one.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let elsewhere = tmp.path().join("elsewhere");
        std::fs::rename(&file, &elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
        assert!(Trust::of(&state, &config, &hash).is_err());
        // Approving again replaces the link, not what it points to.
        approve(&state, &config, b"{}").unwrap();
        assert_eq!(Trust::of(&state, &config, &hash).unwrap(), Trust::Approved);
        assert!(file.symlink_metadata().unwrap().is_file());
        // A record that was copied over from another path.
        let other = Path::new("/other/.claude/cpw.json");
        std::fs::copy(&file, super::file(&state, other)).unwrap();
        assert!(Trust::of(&state, other, &hash).is_err());
        std::fs::write(&file, "{").unwrap();
        assert!(Trust::of(&state, &config, &hash).is_err());
        approve(&state, &config, b"{}").unwrap();
        assert_eq!(std::fs::read_dir(state.path().join(FOLDER)).unwrap().count(), 2, "temporary files are left");
    }

    #[test]
    fn a_record_that_was_brought_along_is_none() {
        let (_tmp, state, config) = scratch();
        approve(&state, &config, b"{}").unwrap();
        let file = file(&state, &config);
        let bytes = std::fs::read(&file).unwrap();
        let aside = file.with_extension("aside");
        std::fs::rename(&file, &aside).unwrap();
        std::fs::write(&file, &bytes).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(trust(&state, &config, b"{}"), Trust::Unknown);
        // Moved with its folder it stays what it is.
        std::fs::rename(&aside, &file).unwrap();
        assert_eq!(trust(&state, &config, b"{}"), Trust::Approved);
        let text = String::from_utf8(bytes).unwrap();
        assert!(serde_json::from_str::<Record>(&text.replace("\"file\"", "\"other\"")).is_err());
    }

    #[test]
    fn a_project_does_not_say_that_it_is_trusted() {
        let tmp = tempfile::tempdir().unwrap();
        let project = std::fs::canonicalize(tmp.path()).unwrap();
        let state = State::open_at(&project.join("deep/state")).unwrap();
        let config = project.join(project::CONFIG);
        for refused in
            [approve(&state, &config, b"{}"), deny(&state, &config), Trust::of(&state, &config, "").map(drop)]
        {
            assert!(refused.unwrap_err().to_string().contains("lies in the project"));
        }
        // By whatever path the directory is named.
        let link = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&project, link.path().join("p")).unwrap();
        let state = State::open_at(&link.path().join("p/deep/state")).unwrap();
        assert!(approve(&state, &config, b"{}").is_err());
        let home =
            |home: &str| is_own_word(Path::new("/h/u/.local/state/cpw"), Path::new(home), || Some("/h/u".into()));
        assert!(!home("/h/u") && !home("/h") && !home("/elsewhere") && home("/h/u/.local"));
    }

    #[test]
    fn the_largest_config_fits_into_a_record() {
        let (_tmp, state, config) = scratch();
        let bytes = vec![1; usize::try_from(project::MAX_CONFIG).unwrap()];
        approve(&state, &config, &bytes).unwrap();
        assert_eq!(trust(&state, &config, &bytes), Trust::Approved);
    }
}
