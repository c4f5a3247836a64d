//! Tasks with `"isolate": "worktree"`: an attempt works in a git worktree of its own, and what it changes there is left as
//! `change.patch` among its artifacts.
//!
//! ```text
//! making ──add, check out──→ ready ──task ends──→ saved ──→ gone
//!    └──────────nothing of the task has run──────────────────↑
//! ```
//!
//! The stage stands in a record in the worker's folder, written before the step that it announces: whoever comes after a
//! death goes on from there. A worktree is removed only once its change is a patch that was seen to make the same files out
//! of what the attempt began with.
//!
//! That is the user's files as they were then: HEAD, what is not committed, and new files, without those that git ignores.
//! They become a commit that nothing refers to but the worktree. The user's index, refs, stash and HEAD are never written.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::actor::git::{self, Git, Repo, Stat};
use crate::actor::outcome;
use crate::base::env;
use crate::base::hex;
use crate::base::ids::{TaskId, WorkerNo};
use crate::base::text;
use crate::logic::step::Ending;
use crate::model::event::{Body, Ended, ResultFile};
use crate::store::place;
use crate::store::registry;
use crate::store::run::{self, LIVE_LOCK, RunDir, WORKERS};
use crate::sys::dir::Dir;
use crate::sys::lock::{self, Probe};
use crate::sys::process;

/// The patch among an attempt's artifacts.
pub const PATCH: &str = "change.patch";

/// How long making a worktree may take, and how long saving and removing it. The worker does nothing else meanwhile.
const LIMIT: Duration = Duration::from_mins(1);

/// Where worktrees are, below the project.
const WORKTREES: [&str; 2] = [".claude", "worktrees"];

/// Keeps our worktrees out of `git status`, and this file itself; what else is in the folder is none of our business.
const IGNORE: &str = "/cpw-*\n/.gitignore\n";

/// The end of a record's name; before it stand task and attempt.
const RECORD: &str = ".worktree.json";

/// The largest record that is read, in bytes.
const MAX_RECORD: u64 = 64 * 1024;

/// The longest line for the session, in characters.
const MAX_LINE: usize = 300;

/// How far the worktree of an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It is being made; the task has not begun.
    Making,
    /// It is there, and the task may have begun.
    Ready,
    /// Its change is saved; it is being removed.
    Saved,
    /// Its change is saved as far as a patch can hold it; the worktree stays, because it holds more.
    Kept,
    /// It is removed.
    Gone,
}

/// What is known of the worktree of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// How far it is.
    pub stage: Stage,
    /// The commit that it began with.
    pub base: String,
    /// The saved change, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub change: Option<Change>,
    /// What it holds that the patch does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<String>,
}

/// A change that was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Size of the patch.
    pub bytes: u64,
    /// Hash of the patch.
    pub sha256: String,
    /// How much it changes.
    pub stat: Stat,
}

/// The place of one attempt: its folders and names.
#[derive(Debug)]
pub struct Spot {
    project: PathBuf,
    run: String,
    task: TaskId,
    number: u32,
    worker: WorkerNo,
    logs: Dir,
    out: Dir,
}

impl Spot {
    /// The place of an attempt that has begun.
    pub fn of(folder: &RunDir, task: &TaskId, worker: WorkerNo, number: u32) -> io::Result<Spot> {
        let own = folder.worker(worker)?;
        Ok(Spot {
            // git names worktrees by their real path.
            project: fs::canonicalize(&folder.project)?,
            run: folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned(),
            task: task.clone(),
            number,
            worker,
            logs: own.sub("logs")?,
            out: own.sub("out")?.sub(format!("{task}.{number}"))?,
        })
    }

    /// Where the worktree is, or was.
    pub fn path(&self) -> PathBuf {
        path_of(&self.project, &self.run, &self.task)
    }

    /// Where its change is, if it is saved.
    pub fn patch(&self) -> PathBuf {
        self.out.path().join(PATCH)
    }

    /// The same, open: a file and nothing else.
    pub fn open_patch(&self) -> io::Result<File> {
        self.out.open_read(PATCH)
    }

    /// A file of our own beside the attempt's logs.
    pub fn file(&self, what: &str) -> PathBuf {
        self.logs.path().join(format!("{}.{}.{what}", self.task, self.number))
    }

    /// What is recorded; `None`: the attempt has no worktree.
    pub fn record(&self) -> Result<Option<Record>, String> {
        match self.logs.read_bounded(format!("{}.{}{RECORD}", self.task, self.number), MAX_RECORD) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| format!("the worktree's record: {e}")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("the worktree's record: {e}")),
        }
    }

    fn write(&self, record: &Record) -> Result<(), String> {
        let bytes = serde_json::to_vec(record).map_err(|e| e.to_string())?;
        let name = format!("{}.{}{RECORD}", self.task, self.number);
        self.logs.write_atomic(name, &bytes, 0o600, false).map_err(|e| format!("the worktree's record: {e}"))
    }

    /// Removes what was needed to save, also by those who were killed meanwhile.
    fn sweep(&self) {
        let prefix = format!("{}.{}.", self.task, self.number);
        for name in self.logs.names().unwrap_or_default() {
            let rest = name.to_str().and_then(|n| n.strip_prefix(&prefix)).unwrap_or_default();
            // Strictly, because the name of another task may begin like this attempt's.
            let by = rest.strip_prefix("save-").map(|r| r.trim_start_matches(|c: char| c.is_ascii_digit()));
            let scratch = matches!(rest, "index" | "index.lock");
            if scratch || matches!(by, Some(".index" | ".index.lock" | ".patch" | ".forced")) {
                drop(self.logs.remove(&name));
            }
        }
    }

    fn git(&self, mark: bool) -> Result<Git, String> {
        let number = self.number.to_string();
        let mark = if mark {
            vec![(env::RUN, self.run.as_str()), (env::TASK, self.task.as_str()), (env::ATTEMPT, number.as_str())]
        } else {
            Vec::new()
        };
        Git::find(&self.project, &mark, LIMIT)
    }

    /// Lets one process at a time end the worktree.
    fn lock(&self, git: &Git) -> Result<File, String> {
        let failed = |e: io::Error| format!("cannot lock the attempt's folder: {e}");
        let folder = self.out.as_file().map_err(failed)?;
        match lock::lock_exclusive(&folder, git.left()) {
            Ok(true) => Ok(folder),
            Ok(false) => Err("another cpw is still saving it".into()),
            Err(e) => Err(failed(e)),
        }
    }
}

/// Where the worktree of a task is. All its attempts have the same path; each begins with a clean one.
pub fn path_of(project: &Path, run: &str, task: &TaskId) -> PathBuf {
    project.join(WORKTREES[0]).join(WORKTREES[1]).join(format!("cpw-{run}-{task}"))
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// A worktree that an attempt works in.
#[derive(Debug)]
pub struct Isolated {
    spot: Spot,
    /// Where the project is in it.
    project: PathBuf,
}

impl Isolated {
    /// Makes the worktree of an attempt whose folders are there. The error is the reason of the attempt's failure, for
    /// people; then nothing is left of the worktree.
    pub fn begin(folder: &RunDir, task: &TaskId, worker: WorkerNo, number: u32) -> Result<Isolated, String> {
        let failed = |e: io::Error| format!("cannot make its worktree: {e}");
        let spot = Spot::of(folder, task, worker, number).map_err(failed)?;
        make(folder, spot).map_err(|e| format!("cannot make its worktree: {e}"))
    }

    /// The project in the worktree.
    pub fn project(&self) -> &Path {
        &self.project
    }

    /// Where the task runs, when its plan says `cwd`.
    pub fn cwd(&self, cwd: Option<&str>) -> Result<PathBuf, String> {
        let Some(cwd) = cwd else { return Ok(self.project.clone()) };
        let below = Path::new(cwd).strip_prefix(&self.spot.project).unwrap_or(Path::new(cwd));
        let path = self.project.join(below);
        let real = fs::canonicalize(&path)
            .map_err(|e| format!("cannot start in {cwd} of its worktree: {e}; files that git ignores are not there"))?;
        if real.starts_with(self.spot.path()) {
            Ok(path)
        } else {
            Err(format!("cannot start in {cwd}: that is outside of its worktree; name a folder below the project"))
        }
    }

    /// Gives it up before the task has begun, for this reason.
    pub fn undo(self, reason: String) -> String {
        let record = self.spot.record().ok().flatten();
        let unused = record.map_or(Ok(()), |r| self.spot.write(&Record { stage: Stage::Making, ..r }));
        match unused.and_then(|()| end(&self.spot, true)) {
            Ok(_) => reason,
            Err(e) => format!("{reason}; its worktree is still in {}: {e}", self.spot.path().display()),
        }
    }

    /// Saves what the attempt has changed, removes the worktree, and adds both to how it ended.
    #[must_use]
    pub fn conclude(self, ending: Ending) -> Ending {
        let saved = end(&self.spot, true);
        if let Err(error) = &saved {
            tracing::warn!(%error, "the change of an attempt could not be saved");
        }
        let shown = run::out_path(self.spot.worker, &self.spot.task, self.spot.number);
        told(ending, &saved, &shown, &self.spot.path())
    }
}

/// How an attempt ended, with what became of its worktree.
fn told(mut ending: Ending, saved: &Result<Option<Record>, String>, shown: &str, path: &Path) -> Ending {
    let change = saved.as_ref().ok().and_then(|r| r.as_ref()?.change.clone());
    let stays = match saved {
        Ok(record) => record.as_ref().and_then(|r| r.more.clone()),
        Err(e) => Some(format!("its change could not be saved: {e}")),
    };
    let stays = stays.map(|why| text::one_line(&format!("{why}; all of it is in {}", path.display()), MAX_LINE));
    let file = change.as_ref().map(|c| ResultFile {
        path: format!("{shown}/{PATCH}"),
        bytes: c.bytes,
        sha256: c.sha256.clone(),
    });
    match &mut ending.body {
        Body::Done(done) => {
            if let Err(e) = saved {
                // Its work is what it was for: without that it is not done. Another attempt would only do it again.
                let reason = stays.unwrap_or_else(|| e.clone());
                let body = Body::Failed(Ended {
                    exit: Some(done.exit),
                    reason,
                    duration_ms: Some(done.duration_ms),
                    result: done.result.take(),
                    usage: done.usage,
                    ..Ended::default()
                });
                return Ending { body, retryable: false };
            }
            let said: Vec<String> = change.map(|c| c.stat.to_string()).into_iter().chain(stays).collect();
            if !said.is_empty() {
                let said = said.join("; ");
                done.summary = outcome::with_remark(done.summary.take(), Some(said));
            }
            done.result = done.result.take().or(file);
        }
        Body::Failed(ended) | Body::TimedOut(ended) | Body::Cancelled(ended) | Body::Lost(ended) => {
            if let Some(stays) = stays {
                ended.reason = format!("{}; {stays}", ended.reason);
            }
            ended.result = ended.result.take().or(file);
        }
        _ => {}
    }
    ending
}

/// Saves and removes the worktree of an attempt whose worker is dead and whose processes are gone. What fails leaves it in
/// its place, for `cpw doctor` to name and [`remove_all`] to try again.
pub fn rescue(folder: &RunDir, task: &TaskId, worker: WorkerNo, number: u32) {
    let ended = Spot::of(folder, task, worker, number).map_err(|e| e.to_string()).and_then(|spot| end(&spot, false));
    if let Err(error) = ended {
        tracing::warn!(%error, task = %task, "the worktree of a lost attempt stays");
    }
}

fn make(folder: &RunDir, spot: Spot) -> Result<Isolated, String> {
    let git = spot.git(true)?;
    let repo = Repo::of(&git, &spot.project)?;
    let path = spot.path();
    if is_there(&path) {
        end_earlier(folder, &spot)?;
    }
    let index = spot.file("index");
    let base = base(&git, &repo, &spot, &index)?;
    let mut record = Record { stage: Stage::Making, base, change: None, more: None };
    spot.write(&record)?;
    let made = check_out(&git, &repo, &spot, &record.base, &index);
    let project = made.and_then(|()| {
        let below = spot.project.strip_prefix(fs::canonicalize(&repo.top).map_err(|e| e.to_string())?);
        let project = path.join(below.map_err(|e| e.to_string())?);
        // Empty folders, and those of ignored files, are not in git.
        fs::create_dir_all(&project).map_err(|e| e.to_string())?;
        record.stage = Stage::Ready;
        spot.write(&record)?;
        Ok(project)
    });
    match project {
        Ok(project) => Ok(Isolated { spot, project }),
        Err(e) => Err(match end(&spot, true) {
            Ok(_) => e,
            Err(more) => format!("{e}; what there is of it is in {}: {more}", path.display()),
        }),
    }
}

/// The user's files as they are now, as a commit; HEAD itself where nothing is uncommitted.
fn base(git: &Git, repo: &Repo, spot: &Spot, index: &Path) -> Result<String, String> {
    git::copy_index(&repo.index, index).map_err(|e| format!("cannot copy the index: {e}"))?;
    if let Some(submodule) = git::submodule(git, &repo.top, index)? {
        return Err(format!(
            "the repository has submodules ({}), which a worktree does not hold: leave \"isolate\" out for this task",
            text::one_line(&submodule.display().to_string(), 100)
        ));
    }
    let tree = git::tree_of(git, &repo.top, None, index)?;
    let head = git.at(&repo.top).args(["rev-parse", "--quiet", "--verify", "HEAD^{commit}"]).line().ok();
    if let Some(head) = &head {
        let mut of_head = head.clone();
        of_head.push("^{tree}");
        if git.at(&repo.top).args([OsStr::new("rev-parse"), &of_head]).line()? == *tree.id {
            return Ok(head.to_string_lossy().into_owned());
        }
    }
    let message = format!("The files as task {} of cpw's run {} found them", spot.task, spot.run);
    let mut call = git.at(&repo.top).args(["commit-tree", "-m", &message]);
    if let Some(head) = &head {
        call = call.args([OsStr::new("-p"), head]);
    }
    Ok(call.args([&tree.id]).line()?.to_string_lossy().into_owned())
}

/// Adds the worktree and fills it. `index` becomes a copy of its index, before anybody could change files there.
fn check_out(git: &Git, repo: &Repo, spot: &Spot, base: &str, index: &Path) -> Result<(), String> {
    let path = spot.path();
    {
        let _lock = repo.lock(git)?;
        worktrees(&spot.project).map_err(|e| format!("cannot make the folder of worktrees: {e}"))?;
        // The files come after the lock is free: other tasks need not wait for them.
        let add = ["worktree", "add", "--quiet", "--detach", "--no-checkout", "--"];
        git.at(&repo.top).args(add).args([path.as_os_str(), OsStr::new(base)]).ask()?;
    }
    git.at(&path).args(["reset", "--quiet", "--hard"]).ask()?;
    let own = path.join(git.at(&path).args(["rev-parse", "--git-path", "index"]).line()?);
    git::copy_index(&own, index).map_err(|e| format!("cannot copy its index: {e}"))
}

/// The folder of the worktrees, kept out of `git status`. Nothing on the way to it may be a link.
fn worktrees(project: &Path) -> io::Result<Dir> {
    let mut dir = Dir::open(project)?;
    for name in WORKTREES {
        dir = dir.create_sub(name, 0o755)?;
        place::check_way(&dir).map_err(|e| io::Error::other(e.what))?;
    }
    if dir.stat(".gitignore")?.is_none() {
        dir.write_atomic(".gitignore", IGNORE.as_bytes(), 0o644, false)?;
    }
    Ok(dir)
}

/// Ends what an earlier attempt of the task has left in the place of the worktree.
fn end_earlier(folder: &RunDir, spot: &Spot) -> Result<(), String> {
    let path = spot.path();
    let stays = |why: &str| {
        let shown = path.display();
        format!("{shown} is there already: {why}; copy from it what you need, then `git worktree remove --force` it")
    };
    let mut earlier = spots(folder, |task, number| *task == spot.task && number < spot.number);
    earlier.sort_by_key(|s| s.number);
    for spot in earlier {
        end(&spot, true).map_err(|e| stays(&e))?;
    }
    if is_there(&path) { Err(stays("it holds work that is not saved, or is not cpw's")) } else { Ok(()) }
}

/// The places of all attempts of a run that have, or had, a worktree.
fn spots(folder: &RunDir, wanted: impl Fn(&TaskId, u32) -> bool) -> Vec<Spot> {
    let mut found = Vec::new();
    let names = |dir: io::Result<Dir>| dir.and_then(|d| d.names()).unwrap_or_default();
    for worker in names(folder.dir.sub(WORKERS)) {
        let Some(worker) = worker.to_str().and_then(|w| w.parse::<WorkerNo>().ok()) else { continue };
        for name in names(folder.worker(worker).and_then(|w| w.sub("logs"))) {
            let attempt = name.to_str().and_then(|n| n.strip_suffix(RECORD)?.rsplit_once('.'));
            let Some((task, number)) = attempt else { continue };
            let (Ok(task), Ok(number)) = (TaskId::new(task), number.parse()) else { continue };
            if wanted(&task, number) {
                found.extend(Spot::of(folder, &task, worker, number).ok());
            }
        }
    }
    found
}

/// The place of one attempt, by its number; no other attempt of the task has it.
pub fn spot(folder: &RunDir, task: &TaskId, number: u32) -> Option<Spot> {
    spots(folder, |t, n| t == task && n == number).pop()
}

/// The worktrees of a run that are still there, each with the stage that it is at.
pub fn left(folder: &RunDir) -> Vec<(Spot, Stage)> {
    let all = spots(folder, |_, _| true).into_iter();
    let all = all.filter_map(|spot| Some((spot.record().ok()??.stage, spot)));
    all.filter(|(stage, spot)| *stage != Stage::Gone && is_there(&spot.path()))
        .map(|(stage, spot)| (spot, stage))
        .collect()
}

/// Removes the worktrees of a run that has ended, saving first what is not saved. The error names those that stay, and why:
/// they hold work, and whoever cleans the run leaves them alone.
pub fn remove_all(folder: &RunDir) -> Result<(), String> {
    remove_all_but(folder, None)
}

/// As [`remove_all`], called by the worker `me`, which needs not be dead.
pub fn remove_all_but(folder: &RunDir, me: Option<WorkerNo>) -> Result<(), String> {
    if !registry::is_ours(folder) {
        return Err(registry::FOREIGN.into());
    }
    let mut stay = Vec::new();
    for spot in spots(folder, |_, _| true) {
        let lives = || {
            let live = folder.worker(spot.worker).and_then(|w| w.open_read(LIVE_LOCK));
            me != Some(spot.worker) && live.and_then(|f| lock::try_shared_probe(&f)).is_ok_and(|p| p == Probe::Held)
        };
        let ended = match spot.record() {
            Ok(Some(record)) if record.stage != Stage::Gone && lives() => {
                Err(format!("{} is still alive", spot.worker))
            }
            Ok(_) => end(&spot, false).and_then(|record| match record.and_then(|r| r.more) {
                Some(more) if is_there(&spot.path()) => Err(more),
                _ => Ok(()),
            }),
            Err(e) => Err(e),
        };
        if let Err(e) = ended {
            stay.push(format!("{}: {e}", spot.path().display()));
        }
    }
    if stay.is_empty() { Ok(()) } else { Err(stay.join("; ")) }
}

/// Takes the worktree of an attempt from whatever stage it is at to its end. `own`: the caller answers for the attempt, and
/// whoever kills the attempt's processes may kill git as well.
fn end(spot: &Spot, own: bool) -> Result<Option<Record>, String> {
    match spot.record()? {
        Some(record) if record.stage != Stage::Gone => {}
        other => return Ok(other),
    }
    let git = spot.git(own)?;
    let _lock = spot.lock(&git)?;
    // Somebody else may have ended it before the lock was ours.
    let Some(mut record) = spot.record()? else { return Ok(None) };
    let path = spot.path();
    let repo = Repo::of(&git, &spot.project)?;
    match record.stage {
        Stage::Gone => return Ok(Some(record)),
        Stage::Making | Stage::Saved => {}
        // Who has moved or removed it has decided what becomes of it.
        Stage::Ready | Stage::Kept if !is_there(&path) => {}
        Stage::Ready | Stage::Kept => {
            save(&git, &repo, spot, &mut record)?;
            record.stage = if record.more.is_some() { Stage::Kept } else { Stage::Saved };
            spot.write(&record)?;
        }
    }
    if record.stage == Stage::Kept && is_there(&path) {
        return Ok(Some(record));
    }
    remove(&git, &repo, spot)?;
    record.stage = Stage::Gone;
    spot.write(&record)?;
    spot.sweep();
    Ok(Some(record))
}

/// Writes the change of a worktree as a patch, and makes sure that it makes the same files out of the base. The worktree's
/// own idea of its repository, index and HEAD is not asked: the task may have changed them.
fn save(git: &Git, repo: &Repo, spot: &Spot, record: &mut Record) -> Result<(), String> {
    let files = spot.path();
    // A name of this process's own: who was killed here has left its lock.
    let me = process::me().pid;
    let (index, patch) = (spot.file(&format!("save-{me}.index")), spot.file(&format!("save-{me}.patch")));
    let failed = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    git::copy_index(&spot.file("index"), &index).map_err(failed("cannot copy its index"))?;
    git::keep_forced(git, &files, &repo.common, &index, &spot.file(&format!("save-{me}.forced")))?;
    let tree = git::tree_of(git, &files, Some(&repo.common), &index)?;
    record.more = tree.strangers.first().map(|first| {
        let first = text::one_line(&first.display().to_string(), 100);
        format!("it holds a repository of its own ({first}), which is not in the patch")
    });
    let stat = git::stat(git, &repo.top, &record.base, &tree.id)?;
    if stat.files == 0 {
        record.change = None;
        return Ok(());
    }
    let name = patch.file_name().unwrap_or_default();
    // Of an earlier call of this process, or of another one that had its number.
    drop(spot.logs.remove(name));
    let file = spot.logs.create_new(name, 0o600).map_err(failed("cannot write the patch"))?;
    git::write_patch(git, &repo.top, &record.base, &tree.id, file)?;
    let call = || git.at(&repo.top).index(&index).repository(&repo.common, &files);
    call().args(["read-tree", &record.base]).ask()?;
    let apply = [OsStr::new("apply"), OsStr::new("--cached"), OsStr::new("--whitespace=nowarn"), patch.as_os_str()];
    call().args(apply).ask()?;
    if call().args(["write-tree"]).line()? != *tree.id {
        return Err("its patch does not make the files that are there".into());
    }
    let mut file = spot.logs.open_read(name).map_err(failed("cannot read the patch"))?;
    let bytes = file.metadata().map_err(failed("cannot read the patch"))?.len();
    let sha256 = hex::sha256_of(&mut file).map_err(failed("cannot read the patch"))?;
    spot.logs.rename_to(name, &spot.out, PATCH).map_err(failed("cannot move the patch"))?;
    record.change = Some(Change { bytes, sha256, stat });
    Ok(())
}

/// Removes a worktree, from the disk and from git's list, however much of it there is. Not by `git worktree remove`, which
/// refuses one that was only half made or half removed; and not by `prune`, which forgets other people's.
fn remove(git: &Git, repo: &Repo, spot: &Spot) -> Result<(), String> {
    let path = spot.path();
    remove_tree(&path).map_err(|e| format!("cannot remove it: {e}"))?;
    let _lock = repo.lock(git)?;
    let list = repo.common.join(WORKTREES[1]);
    let entries = match fs::read_dir(&list) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        other => Some(other.map_err(|e| format!("cannot read {}: {e}", list.display()))?),
    };
    let link = path.join(".git");
    for entry in entries.into_iter().flatten().flatten() {
        let ours = match fs::read(entry.path().join("gitdir")) {
            Ok(text) => text.trim_ascii_end() == link.as_os_str().as_encoded_bytes(),
            // Killed before that was written: only the name tells, which holds the run's own.
            Err(_) => folded(&entry.file_name()).starts_with(&folded(path.file_name().unwrap_or_default())),
        };
        if ours {
            remove_tree(&entry.path()).map_err(|e| format!("cannot take it off git's list: {e}"))?;
        }
    }
    // As git does it; these fail where anything is left in them.
    drop(fs::remove_dir(&list));
    drop(tidy(&spot.project));
    Ok(())
}

/// A name as git may have changed it for its list.
fn folded(name: &OsStr) -> Vec<u8> {
    name.as_encoded_bytes().iter().map(|b| if b.is_ascii_alphanumeric() { *b } else { b'-' }).collect()
}

/// Removes the folder of the worktrees if nothing is in it but what we have put there.
fn tidy(project: &Path) -> io::Result<()> {
    let claude = Dir::open(project)?.sub(WORKTREES[0])?;
    let dir = claude.sub(WORKTREES[1])?;
    let ours = dir.names()?.iter().all(|n| n == ".gitignore");
    if ours && dir.read_bounded(".gitignore", MAX_RECORD)? == IGNORE.as_bytes() {
        dir.remove(".gitignore")?;
        claude.remove_folder(WORKTREES[1])?;
    }
    Ok(())
}

/// Removes a folder with all that is in it, also where its owner may not write. Links are removed, not followed, also one
/// that somebody puts on the way while this goes on.
fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it has no name"));
    };
    match Dir::open_nofollow(above).and_then(|above| above.remove_all(name)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}
