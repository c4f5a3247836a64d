//! The user's own directories: where cpw keeps its state, and where the user keeps defaults. What is believed from the
//! state directory (approvals above all) is believed because nobody else can write there.

use std::ffi::OsString;
use std::fs::{DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::base::env;
use crate::base::exit::Wrong;
use crate::sys::dir::Dir;
use crate::sys::process;

/// The user's state directory, checked: it is the user's own and nobody else can write to it.
#[derive(Debug, Clone)]
pub struct State {
    dir: PathBuf,
}

impl State {
    /// The state directory of this environment; made if it is missing.
    pub fn open() -> anyhow::Result<Self> {
        Self::open_at(&state_dir(variable)?)
    }

    /// The state directory of this environment if it is there: one `stat`, for hooks. Where it is missing nothing was ever
    /// approved and no session has a run.
    pub fn existing() -> anyhow::Result<Option<Self>> {
        Self::existing_at(&state_dir(variable)?)
    }

    /// As [`State::open`], for the directory `dir`.
    pub fn open_at(dir: &Path) -> anyhow::Result<Self> {
        if let Some(state) = Self::existing_at(dir)? {
            return Ok(state);
        }
        make_private(dir).with_context(|| format!("cannot make the state directory {}", dir.display()))?;
        Self::existing_at(dir)?.with_context(|| format!("the state directory {} went away", dir.display()))
    }

    /// As [`State::existing`], for the directory `dir`.
    pub fn existing_at(dir: &Path) -> anyhow::Result<Option<Self>> {
        match std::fs::metadata(dir) {
            Ok(meta) => check(dir, &meta).map(|()| Some(State { dir: dir.to_owned() })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot use the state directory {}", dir.display())),
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The folder `name` in it, made if it is missing. A link is no such folder, nor is one that others can write to.
    pub fn folder(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.dir.join(name);
        let open = || {
            let dir = Dir::open(&self.dir)?.create_sub(name, 0o700)?;
            dir.check_private()
        };
        open().with_context(|| format!("cannot use {}", folder.display()))?;
        Ok(folder)
    }
}

/// The file with the user's own defaults, `$XDG_CONFIG_HOME/cpw/config.json`; it need not exist. None for a user without a
/// home, as services are: who has none has no defaults in it.
pub fn config_home() -> Option<PathBuf> {
    config_file(variable)
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn config_file(get: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    Some(base_dir(&get, "XDG_CONFIG_HOME", ".config")?.join("cpw/config.json"))
}

fn state_dir(get: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<PathBuf> {
    if let Some(dir) = get(env::STATE_DIR).filter(|d| !d.is_empty()) {
        let dir = PathBuf::from(dir);
        if dir.is_absolute() {
            return Ok(dir);
        }
        let what = format!("{} is {}, which is not an absolute path", env::STATE_DIR, dir.display());
        return Err(Wrong::with_hint(what, "give the whole path, or unset it").into());
    }
    let base = base_dir(&get, "XDG_STATE_HOME", ".local/state").ok_or_else(|| {
        let hint = format!("set HOME or {}", env::STATE_DIR);
        Wrong::with_hint("HOME is not set, so there is no place for cpw's state", hint)
    })?;
    Ok(base.join("cpw"))
}

/// A base directory as the XDG specification has it: a relative value counts as unset. None where there is no home either.
fn base_dir(get: &impl Fn(&str) -> Option<OsString>, name: &str, default: &str) -> Option<PathBuf> {
    let absolute = |name: &str| get(name).map(PathBuf::from).filter(|d| d.is_absolute());
    absolute(name).or_else(|| Some(absolute("HOME")?.join(default)))
}

/// Makes a directory and what is missing above it, all of it 0700: a umask can only take rights away from `mkdir`, also
/// the owner's own.
fn make_private(dir: &Path) -> io::Result<()> {
    if let Some(parent) = dir.parent().filter(|p| !p.exists()) {
        make_private(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => std::fs::set_permissions(dir, Permissions::from_mode(0o700)),
        // Another cpw made it just now.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        Err(e) => Err(e),
    }
}

fn check(dir: &Path, meta: &Metadata) -> anyhow::Result<()> {
    let name = dir.display();
    if !meta.is_dir() {
        let hint = format!("move it away, or set {} to another path", env::STATE_DIR);
        return Err(Wrong::with_hint(format!("{name} is not a directory"), hint).into());
    }
    let me = process::user();
    if meta.uid() != me {
        let what = format!("the state directory {name} belongs to user {}, not to you (user {me})", meta.uid());
        let hint = format!("run cpw as its owner, or set {} to a directory of your own", env::STATE_DIR);
        return Err(Wrong::with_hint(what, hint).into());
    }
    if meta.mode() & 0o022 != 0 {
        let what = format!("others may write to the state directory {name} (mode {:o})", meta.mode() & 0o7777);
        return Err(Wrong::with_hint(what, format!("check what is in it, then: chmod 700 '{name}'")).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env_of<'a>(pairs: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<OsString> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v))
    }

    #[test]
    fn the_directories_follow_the_environment() {
        for (pairs, expected) in [
            (&[("CPW_STATE_DIR", "/s"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")][..], Some("/s")),
            (&[("CPW_STATE_DIR", ""), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")], Some("/x/cpw")),
            (&[("XDG_STATE_HOME", "relative"), ("HOME", "/h")], Some("/h/.local/state/cpw")),
            (&[("HOME", "/h")], Some("/h/.local/state/cpw")),
            (&[("HOME", "h")], None),
            (&[], None),
            (&[("CPW_STATE_DIR", "s"), ("HOME", "/h")], None),
        ] {
            assert_eq!(state_dir(env_of(pairs)).ok(), expected.map(PathBuf::from), "{pairs:?}");
        }
        let config = config_file(env_of(&[("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")])).unwrap();
        assert_eq!(config, Path::new("/c/cpw/config.json"));
        assert_eq!(config_file(env_of(&[("HOME", "/h")])).unwrap(), Path::new("/h/.config/cpw/config.json"));
        assert_eq!(config_file(env_of(&[("CPW_STATE_DIR", "/s")])), None);
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("a/b");
        assert!(State::existing_at(&dir).unwrap().is_none());
        State::open_at(&dir).unwrap();
        for (mode, fine) in [(0o700, true), (0o755, true), (0o775, false), (0o702, false), (0o1777, false)] {
            std::fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
            assert_eq!(State::open_at(&dir).is_ok(), fine, "{mode:o}");
            assert_eq!(State::existing_at(&dir).is_ok(), fine, "{mode:o}");
        }
        std::fs::write(tmp.path().join("file"), "").unwrap();
        assert!(State::open_at(&tmp.path().join("file")).is_err());
    }

    #[test]
    fn a_directory_of_another_user_is_refused() {
        // `/` is root's; for root, whatever a test could find is its own, so the check itself is asked.
        let meta = std::fs::metadata("/").unwrap();
        if process::user() == 0 {
            let tmp = tempfile::tempdir().unwrap();
            if std::os::unix::fs::chown(tmp.path(), Some(65_534), None).is_ok() {
                assert!(State::existing_at(tmp.path()).is_err());
            }
        } else {
            assert!(check(Path::new("/"), &meta).is_err());
        }
    }
}
