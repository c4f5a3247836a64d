//! Putting the change of an isolated task into the user's files: merged three-way with what they have changed since, all of
//! it or nothing. It is merged in an index of our own, and only what comes of it goes to the files; the user's index, and so
//! what they have staged, stays as it is.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::actor::git::{self, Git, Repo, Stat};
use crate::actor::isolate::{self, Spot, Stage};
use crate::base::hex;
use crate::base::ids::TaskId;
use crate::base::text;
use crate::store::registry;
use crate::store::run::RunDir;
use crate::sys::process;
use crate::sys::program::Ran;
use crate::sys::spawn::Exit;

/// How long applying may take.
const LIMIT: Duration = Duration::from_mins(5);

/// How many files one call names, so that their names fit.
const NAMES: usize = 200;

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// The files are changed, or would be.
    Changed(Stat),
    /// All of it is in the files already.
    Already,
    /// It does not fit; nothing was changed. Per misfit a line for people.
    Refused(Vec<String>),
}

/// The saved change of an attempt that has ended: where its patch is, and how much it changes.
pub fn of(folder: &RunDir, task: &TaskId, number: u32) -> Result<(Spot, Stat), String> {
    let none = || format!("{task} has left no change: its last attempt had no worktree of its own");
    let spot = isolate::spot(folder, task, number).ok_or_else(none)?;
    let record = spot.record()?.ok_or_else(none)?;
    if matches!(record.stage, Stage::Making | Stage::Ready) {
        return Err(format!("the change of {task} is not saved yet; it is in {}", spot.path().display()));
    }
    let Some(change) = record.change else { return Err(format!("{task} has changed nothing")) };
    let path = spot.patch();
    let hash = spot.open_patch().and_then(|mut file| hex::sha256_of(&mut file));
    if hash.map_err(|e| format!("cannot read the patch: {e}"))? != change.sha256 {
        return Err(format!("{} is not the patch that was saved: it was changed since", path.display()));
    }
    Ok((spot, change.stat))
}

/// Puts a saved change into the project's files; with `check` it only says what would come of it.
pub fn apply(folder: &RunDir, spot: &Spot, check: bool) -> Result<Applied, String> {
    if !registry::is_ours(folder) {
        return Err(registry::FOREIGN.into());
    }
    let project = fs::canonicalize(&folder.project).map_err(|e| format!("{}: {e}", folder.project.display()))?;
    let git = Git::find(&project, &[], LIMIT)?;
    let repo = Repo::of(&git, &project)?;
    // Two at a time would each merge with files that the other is changing.
    let _lock = repo.lock(&git)?;
    let scratch = Scratch::new(spot);
    let merging = Merging { git: &git, repo: &repo, patch: &spot.patch(), index: &scratch.index };
    let ours = merging.files()?;
    git::copy_index(&scratch.index, &scratch.before).map_err(|e| format!("cannot copy the index: {e}"))?;
    let ran = merging.try_apply(&["--3way"])?;
    if ran.exit != Exit::Code(0) {
        let misfits = merging.misfits(&ran, &ours)?;
        merging.reset(&ours)?;
        // A file that is to be renamed or removed and already is fits no more.
        let back = merging.try_apply(&["--reverse", "--check"])?;
        return Ok(if back.exit == Exit::Code(0) { Applied::Already } else { Applied::Refused(misfits) });
    }
    let merged = git.at(&repo.top).index(&scratch.index).args(["write-tree"]).line()?.to_string_lossy().into_owned();
    if merged == ours {
        return Ok(Applied::Already);
    }
    let failed = |e: io::Error| format!("cannot write {}: {e}", scratch.patch.display());
    let file = File::options().write(true).create_new(true).mode(0o600).open(&scratch.patch).map_err(failed)?;
    git::write_patch(&git, &repo.top, &ours, &merged, file)?;
    let stat = git::stat(&git, &repo.top, &ours, &merged)?;
    // git looks at every file before it writes the first: also at those that it ignores, which no tree has.
    let call = || git.at(&repo.top).args(["apply", "--whitespace=nowarn"]);
    let looked = call().args(["--check"]).args([&scratch.patch]).run()?;
    if looked.exit != Exit::Code(0) {
        return Ok(Applied::Refused(errors(&looked)));
    }
    if !check && let Err(e) = call().args([&scratch.patch]).ask() {
        // git removes what it replaces before it writes the first file: it must not stay half done.
        let back = Git::find(&project, &[], LIMIT).and_then(|git| {
            Undo { git: &git, top: &repo.top, index: &scratch.before, ours: &ours, merged: &merged }.run()
        });
        return Err(match back {
            Ok(()) => format!("{e}; nothing was changed"),
            Err(more) => format!(
                "{e}; not all files could be put back: {more}; `git restore --source={ours} -- FILE` brings back one as it was"
            ),
        });
    }
    Ok(Applied::Changed(stat))
}

/// Files of our own beside the attempt's logs, removed when this is dropped.
struct Scratch {
    index: PathBuf,
    /// The user's files as they were, as an index: written while nothing is changed yet, for a disk that becomes full then.
    before: PathBuf,
    patch: PathBuf,
}

impl Scratch {
    fn new(spot: &Spot) -> Scratch {
        let me = process::me().pid;
        let file = |what: &str| spot.file(&format!("apply-{me}.{what}"));
        Scratch { index: file("index"), before: file("before"), patch: file("patch") }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // git leaves the lock of an index where it was killed for taking too long.
        for file in [&self.index, &self.index.with_extension("index.lock"), &self.before, &self.patch] {
            drop(fs::remove_file(file));
        }
    }
}

/// Takes back what a call of git has changed that could not write all files. What somebody else has written meanwhile stays.
struct Undo<'a> {
    git: &'a Git,
    top: &'a Path,
    index: &'a Path,
    ours: &'a str,
    merged: &'a str,
}

impl Undo<'_> {
    fn run(&self) -> Result<(), String> {
        let between = ["diff-tree", "-r", "-z", "--name-status", "--no-renames", self.ours, self.merged];
        let listed = self.git.at(self.top).args(between).ask()?;
        let mut fields = listed.split(|b| *b == 0).filter(|f| !f.is_empty());
        let mut back = Vec::new();
        while let (Some(kind), Some(name)) = (fields.next(), fields.next()) {
            let name = Path::new(OsStr::from_bytes(name));
            let path = self.top.join(name);
            // Also what was written in part only is of that call.
            let written = || Ok::<_, String>(self.wanted(name)?.starts_with(&content(&path)?));
            match kind {
                b"A" if path.symlink_metadata().is_ok_and(|m| !m.is_dir()) && written()? => {
                    fs::remove_file(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                    let parents = path.ancestors().skip(1).take_while(|p| *p != self.top);
                    // The first that holds something else ends it.
                    parents.map(fs::remove_dir).take_while(Result::is_ok).for_each(drop);
                }
                b"A" => {}
                _ if path.symlink_metadata().is_err() || kind != b"D" && written()? => back.push(name),
                _ => {}
            }
        }
        let call = || self.git.at(self.top).index(self.index).args(["checkout-index", "--force", "--"]);
        back.chunks(NAMES).try_for_each(|names| call().args(names).ask().map(drop))
    }

    /// What git was to write there.
    fn wanted(&self, name: &Path) -> Result<Vec<u8>, String> {
        let mut object = OsString::from(format!("{}:", self.merged));
        object.push(name);
        self.git.at(self.top).args([OsStr::new("cat-file"), OsStr::new("--filters"), &object]).ask()
    }
}

/// What is in a file, or where a link leads.
fn content(path: &Path) -> Result<Vec<u8>, String> {
    let read = match path.symlink_metadata() {
        Ok(meta) if meta.is_symlink() => fs::read_link(path).map(|to| to.into_os_string().into_vec()),
        _ => fs::read(path),
    };
    read.map_err(|e| format!("{}: {e}", path.display()))
}

struct Merging<'a> {
    git: &'a Git,
    repo: &'a Repo,
    patch: &'a Path,
    index: &'a Path,
}

impl Merging<'_> {
    /// The user's files as they are now, as a tree; the index holds it.
    fn files(&self) -> Result<String, String> {
        git::copy_index(&self.repo.index, self.index).map_err(|e| format!("cannot copy the index: {e}"))?;
        Ok(git::tree_of(self.git, &self.repo.top, None, self.index)?.id)
    }

    fn reset(&self, tree: &str) -> Result<(), String> {
        self.git.at(&self.repo.top).index(self.index).args(["read-tree", tree]).ask().map(drop)
    }

    fn try_apply(&self, how: &[&str]) -> Result<Ran, String> {
        let call = self.git.at(&self.repo.top).index(self.index).args(["apply", "--cached", "--whitespace=nowarn"]);
        call.args(how).args([self.patch]).run()
    }

    /// What does not fit, after a merge that failed: files changed on both sides, with the place where it can be told, and
    /// whatever else git says is in the way.
    fn misfits(&self, ran: &Ran, ours: &str) -> Result<Vec<String>, String> {
        let unmerged = self.git.at(&self.repo.top).index(self.index).args(["ls-files", "--unmerged", "-z"]).ask()?;
        let names = unmerged.split(|b| *b == 0).filter_map(|e| e.splitn(2, |b| *b == b'\t').nth(1));
        let names: BTreeSet<String> = names.map(|n| String::from_utf8_lossy(n).into_owned()).collect();
        if names.is_empty() {
            return Ok(errors(ran));
        }
        self.reset(ours)?;
        let plain = self.try_apply(&["--check"])?;
        let places: Vec<(&str, &str)> =
            plain.stderr.lines().filter_map(|l| l.strip_prefix("error: patch failed: ")?.rsplit_once(':')).collect();
        let shown = names.iter().map(|name| {
            let place = places.iter().find(|(file, _)| file == name).map(|(_, line)| format!(", first at line {line}"));
            format!("{}: changed on both sides{}", text::one_line(name, 300), place.unwrap_or_default())
        });
        Ok(shown.collect())
    }
}

/// The errors of a call, each as one line.
fn errors(ran: &Ran) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in ran.stderr.lines().filter_map(|l| l.strip_prefix("error: ")) {
        // Its words for an index that the reader has never seen.
        let line = line
            .replace("does not exist in index", "is not there")
            .replace("already exists in index", "is there already");
        let line = text::one_line(&line, 300);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    if lines.is_empty() {
        lines.push(git::reason(ran));
    }
    lines
}
