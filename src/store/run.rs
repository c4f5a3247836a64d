//! A run's folder: the only place that knows what its files are called. Opening one checks that its plan is the one that
//! the log names; making one is crash-safe, because a folder without a `run_started` is not a run.

use std::cell::OnceCell;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use crate::base::env;
use crate::base::exit::Wrong;
use crate::base::hex;
use crate::base::ids::{RunId, TaskId, WorkerNo};
use crate::base::trace::{self, Context};
use crate::logic::glance::Glance;
use crate::logic::state::State;
use crate::logic::view::View;
use crate::logic::wake::Wake;
use crate::model::event::{Body, Draft, Process, RunStarted, SCHEMA};
use crate::model::plan::Plan;
use crate::store::bells;
use crate::store::home;
use crate::store::index::{self, Index};
use crate::store::log::{self, Count, Damage, Fold, Log, LogError, Tape, Tx};
use crate::store::place;
use crate::store::registry::{self, LogId};
use crate::store::session::{self, OwnRun};
use crate::sys::bell::Bell;
use crate::sys::clock;
use crate::sys::dir::{Dir, FileId};
use crate::sys::fsinfo::{self, Locks, Refused};
use crate::sys::lock;
use crate::sys::random;

/// The plan's name in a run's folder.
pub const PLAN: &str = "plan.json";
/// The prompt's name in a run's folder.
pub const PROMPT: &str = "prompt.txt";
/// The folder of the waiters' bells.
pub const BELLS: &str = "bells";
/// The folder of the workers' folders.
pub const WORKERS: &str = "workers";
/// The folder of what was taken over from another run.
pub const TAKEN: &str = "taken";
/// The folder, in the state directory, of the private folders in which `claude` tasks write.
pub const SCRATCH: &str = "scratch";
/// How the name of a run's folder begins while the run is being made.
pub const MAKING: &str = ".new-";
/// Held by the worker that leads.
pub const LEADER_LOCK: &str = "leader.lock";
/// Held by the hook that delivers.
pub const DELIVER_LOCK: &str = "deliver.lock";
/// Held by a worker for its whole life, in its own folder.
pub const LIVE_LOCK: &str = "live.lock";
/// Where a project's runs are, below its root.
pub const RUNS: [&str; 2] = [".claude", "runs"];

/// How long a hook waits for a lock.
pub const HOOK_LOCK: Duration = Duration::from_millis(250);
/// How long a worker or a command waits for a lock.
pub const WORKER_LOCK: Duration = Duration::from_secs(10);

/// The largest plan that is read, in bytes.
const MAX_PLAN: u64 = 16 * 1024 * 1024;

/// A log longer than this is worth an index, in bytes.
const WORTH: u64 = 16 * 1024;

/// A tail longer than this, in events, is worth a new index to a hook; the leader keeps it much shorter.
const LONG_TAIL: u64 = 1024;

/// How often the leader rewrites the index at most, in milliseconds.
const INDEX_MS: u64 = 250;

/// After so many bytes of a log that is folded from its beginning, what was reached is saved: a hook that has to leave
/// before it is through has helped the next one.
const STAGE: u64 = 64 * 1024 * 1024;

/// Why a run cannot be opened or made.
#[derive(Debug)]
pub enum RunError {
    /// The operating system refused.
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
    /// The log.
    Log(LogError),
    /// The plan is not what `run_started` names, or not a plan.
    Plan(String),
    /// The folder holds no run: nothing was ever started in it.
    NoRun(PathBuf),
    /// The log is not what it was or must be. Nothing is started from it, and nothing in it is changed.
    Damaged {
        /// The run.
        run: String,
        /// What is wrong.
        why: String,
    },
    /// Others could put something else in the place of the runs, or root's files would be left in a user's project.
    Place(Wrong),
    /// This path is no text, and what is written down about a run is.
    Name(PathBuf),
    /// Locks in this folder would not keep everybody out.
    FileSystem {
        /// The folder.
        path: PathBuf,
        /// Why.
        refused: Refused,
    },
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Io { path, source } => match source.to_string() {
                // It names the very thing.
                named if named.starts_with('/') => f.write_str(&named),
                reason => write!(f, "{}: {reason}", path.display()),
            },
            RunError::Place(_) => f.write_str("no run can be made here"),
            RunError::Log(e) => e.fmt(f),
            RunError::Plan(why) => write!(f, "plan.json: {why}"),
            RunError::NoRun(path) => write!(f, "{} holds no run", path.display()),
            RunError::Damaged { run, why } => write!(
                f,
                "run {run} is damaged: {why}; nothing is started from it or changed in it, and `cpw doctor {run}` says \
                 what can be done"
            ),
            RunError::Name(path) => write!(
                f,
                "the path {} is not UTF-8, so that nothing could say where its runs are; rename the folder",
                path.display()
            ),
            RunError::FileSystem { path, refused } => write!(
                f,
                "{} is on {refused}, so nothing is started or written there; name a folder on a local file system as \
                 \"runs_dir\" in .claude/cpw.json (then `cpw allow`) or in your own config.json",
                path.display()
            ),
        }
    }
}

impl std::error::Error for RunError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RunError::Place(why) => Some(why),
            // Their text names the cause already; a chain would say it twice.
            _ => None,
        }
    }
}

impl From<LogError> for RunError {
    fn from(e: LogError) -> Self {
        RunError::Log(e)
    }
}

fn at(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> RunError {
    let path = path.into();
    move |source| RunError::Io { path, source }
}

/// A random UUID, without its dashes. Not `Uuid::new_v4`, which ends the program where the system refuses it a descriptor.
fn uuid() -> String {
    uuid::Builder::from_random_bytes(random::bytes()).into_uuid().simple().to_string()
}

/// The span that this process works in, if it has been told of one.
fn surroundings() -> Option<Context> {
    Context::parse(&std::env::var(env::TRACEPARENT).ok()?)
}

/// A run id for a run that starts now: sorts by time, to the microsecond, and cannot be guessed.
pub fn new_id() -> RunId {
    let stamp = clock::stamp();
    let digits = |range: std::ops::Range<usize>| stamp.get(range).unwrap_or("0").replace(['-', ':'], "");
    let random = uuid();
    let id = format!("{}-{}{}-{}", digits(0..10), digits(11..19), digits(20..26), &random[..20]);
    RunId::new(&id).unwrap_or_else(|_| unreachable!("digits and dashes fit the alphabet of ids"))
}

/// A run's folder, open.
#[derive(Debug)]
pub struct RunDir {
    /// The folder.
    pub dir: Dir,
    /// The project it belongs to.
    pub project: PathBuf,
    /// Which file its log is, where that is recorded; looked up once.
    log_id: OnceCell<Option<LogId>>,
}

/// What a run is started with, beside its plan.
#[derive(Debug, Default)]
pub struct Origin<'a> {
    /// The client's id of the prompt.
    pub prompt_id: Option<&'a str>,
    /// The user's prompt: kept for the tasks that ask for it, else only told by hash and length.
    pub prompt: Option<&'a str>,
    /// The client, where the run is not to outlive it.
    pub client: Option<Process>,
    /// The run that it continues.
    pub link: Option<Context>,
}

/// Whether a task of a plan asks for the file with the prompt, by its variable or its path. What nobody asks for is not
/// kept.
fn asks_for_prompt(plan: &Plan, bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    text.contains(env::PROMPT_FILE) || text.contains(&format!("{}/{PROMPT}", plan.run))
}

/// Where a project's runs are unless its config says otherwise.
pub fn runs_path(project: &Path) -> PathBuf {
    project.join(RUNS[0]).join(RUNS[1])
}

/// Where a project's runs are made, as `runs_dir` has it: below the project, or in a folder of the project's own below an
/// absolute path.
pub fn runs_path_by(project: &Path, runs_dir: Option<&str>) -> PathBuf {
    match runs_dir {
        None => runs_path(project),
        Some(dir) if Path::new(dir).is_absolute() => {
            let name = project.file_name().unwrap_or(OsStr::new("root")).to_string_lossy();
            let hash = hex::sha256(project.as_os_str().as_encoded_bytes());
            Path::new(dir).components().as_path().join(format!("{name}-{}", hash.get(..16).unwrap_or(&hash)))
        }
        Some(dir) => project.join(dir).components().as_path().to_owned(),
    }
}

fn default_runs(project: &Path) -> io::Result<Dir> {
    Dir::open(project)?.sub(RUNS[0])?.sub(RUNS[1])
}

/// The folder of a project's runs, by its path. Where it is `.claude/runs`, neither part of that may be a link.
pub fn open_runs(runs: &Path) -> io::Result<Dir> {
    match runs.ancestors().nth(2) {
        Some(project) if runs_path(project) == runs => default_runs(project),
        _ => Dir::open_nofollow(runs),
    }
}

/// Makes the folder of a project's runs, and what is missing on the way to it. Nothing below the project may be a link.
fn make_runs(project: &Path, runs: &Path) -> Result<Dir, RunError> {
    let dir = match runs.strip_prefix(project) {
        Ok(below) => make_runs_below(project, below)?,
        Err(_) => make_runs_elsewhere(runs).map_err(at(runs))?,
    };
    dir.check_private().map_err(at(runs))?;
    Ok(dir)
}

fn make_runs_below(project: &Path, below: &Path) -> Result<Dir, RunError> {
    let mut dir = Dir::open(project).map_err(at(project))?;
    let names: Vec<&OsStr> = below.components().filter_map(only_name).collect();
    for (i, name) in names.iter().enumerate() {
        place::check_way(&dir).map_err(RunError::Place)?;
        let mode = if i + 1 == names.len() { 0o700 } else { 0o755 };
        dir = dir.create_sub(name, mode).map_err(at(dir.path()))?;
    }
    Ok(dir)
}

fn make_runs_elsewhere(runs: &Path) -> io::Result<Dir> {
    let (Some(outer), Some(name)) = (runs.parent(), runs.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the folder of the runs has no name"));
    };
    let outer = match Dir::open(outer) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let (Some(above), Some(last)) = (outer.parent(), outer.file_name()) else { return Err(e) };
            Dir::open(above)?.create_sub(last, 0o700)?
        }
        other => other?,
    };
    outer.create_sub(name, 0o700)
}

/// The folder of a project's runs, made if it is missing, kept out of version control, and on a file system whose locks keep
/// everybody out.
pub fn make_runs_folder(project: &Path, runs: &Path) -> Result<Dir, RunError> {
    place::refuse_lent_root(project).map_err(RunError::Place)?;
    let all = make_runs(project, runs)?;
    check_locks(&all)?;
    let keep_out = || -> io::Result<()> {
        // A folder that has other things in it keeps its place in version control.
        let ours = runs == runs_path(project) || all.names_at_most(1)?.is_empty();
        if ours && all.stat(".gitignore")?.is_none() {
            all.write_atomic(".gitignore", b"*\n", 0o644, false)?;
        }
        Ok(())
    };
    keep_out().map_err(at(runs))?;
    Ok(all)
}

/// The project of a run's folder below its project's `.claude/runs`.
fn project_by_place(path: &Path) -> Option<&Path> {
    path.ancestors().nth(3).filter(|project| path.parent().is_some_and(|runs| runs == runs_path(project)))
}

fn only_name(part: Component<'_>) -> Option<&OsStr> {
    match part {
        Component::Normal(name) => Some(name),
        _ => None,
    }
}

/// The runs of a project, newest first.
pub fn list(project: &Path) -> io::Result<Vec<RunId>> {
    let mut ids = ids_in(default_runs(project))?;
    for place in registry::places(project) {
        // What cannot be listed elsewhere (a disk that is not there now) must not hide what is here.
        ids.extend(ids_in(Dir::open_nofollow(place)).unwrap_or_default());
    }
    ids.sort_unstable_by(|a, b| b.cmp(a));
    ids.dedup();
    Ok(ids)
}

/// How many entries the folders of a project's runs may have where a hook looks into them.
const MAX_ENTRIES: usize = 10_000;

/// The newest runs of a project that this user's cpw has made, at most `most`. For hooks: whatever else is in the folders
/// costs no more than to read its name. An error where there are too many of them to tell which is the newest.
pub fn newest_own(project: &Path, most: usize) -> io::Result<Vec<RunDir>> {
    let Some(state) = home::State::existing().ok().flatten() else { return Ok(Vec::new()) };
    let mut ids = Vec::new();
    let elsewhere = registry::places(project).into_iter().map(Dir::open_nofollow);
    for dir in std::iter::once(default_runs(project)).chain(elsewhere) {
        let Ok(dir) = dir else { continue };
        let names = dir.names_at_most(MAX_ENTRIES + 1)?;
        if names.len() > MAX_ENTRIES {
            let what = format!("{} has more than {MAX_ENTRIES} entries", dir.path().display());
            return Err(io::Error::other(format!(
                "{what}: remove what does not belong there; `cpw clean` removes runs"
            )));
        }
        ids.extend(ids_of(&names));
    }
    ids.sort_unstable_by(|a, b| b.cmp(a));
    ids.dedup();
    let own = ids.iter().filter(|id| registry::knows(&state, id)).filter_map(|id| RunDir::open(project, id).ok());
    Ok(own.filter(registry::is_ours).take(most).collect())
}

fn ids_in(dir: io::Result<Dir>) -> io::Result<Vec<RunId>> {
    let dir = match dir {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(ids_of(&dir.names()?))
}

fn ids_of(names: &[OsString]) -> Vec<RunId> {
    let ids = names.iter().filter_map(|n| n.to_str()).filter_map(|n| RunId::new(n).ok());
    ids.filter(|id| id.as_str() != "project").collect()
}

/// Whether a folder holds a run, be it a damaged one. Changes nothing.
pub fn is_begun(project: &Path, run: &RunId) -> bool {
    RunDir::open(project, run).is_ok_and(|folder| !matches!(folder.look_for_run(), Err(RunError::NoRun(_))))
}

impl RunDir {
    fn new(dir: Dir, project: &Path) -> RunDir {
        RunDir { dir, project: project.to_owned(), log_id: OnceCell::new() }
    }

    /// A folder that was there: believed only where nobody else could have changed what is in it.
    fn found(dir: Dir, project: &Path) -> Result<RunDir, RunError> {
        dir.check_private().map_err(at(dir.path()))?;
        Ok(RunDir::new(dir, project))
    }

    /// Opens the folder of an existing run, in `.claude/runs` or where else the project has runs.
    pub fn open(project: &Path, run: &RunId) -> Result<RunDir, RunError> {
        let path = runs_path(project).join(run.as_str());
        let missing = match default_runs(project).and_then(|d| d.sub(run.as_str())) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => e,
            other => return RunDir::found(other.map_err(at(path))?, project),
        };
        let elsewhere = registry::places(project);
        let mut found = elsewhere.iter().filter_map(|p| Dir::open_nofollow(p).and_then(|d| d.sub(run.as_str())).ok());
        RunDir::found(found.next().ok_or(missing).map_err(at(path))?, project)
    }

    /// Opens a run's folder by its path.
    pub fn open_path(path: &Path) -> Result<RunDir, RunError> {
        let no_run = || RunError::NoRun(path.to_owned());
        let run = path.file_name().and_then(OsStr::to_str).and_then(|n| RunId::new(n).ok()).ok_or_else(no_run)?;
        if let Some(project) = project_by_place(path) {
            let dir = default_runs(project).and_then(|d| d.sub(run.as_str())).map_err(at(path))?;
            return RunDir::found(dir, project);
        }
        let dir = Dir::open_nofollow(path).map_err(at(path))?;
        RunDir::found(dir, &registry::project_of(path).ok_or_else(no_run)?)
    }

    /// Opens the run's folder that a session's record names, with what it says of the log; `None` if there is none or it is
    /// another one. Its path is not walked: links on the way lead nowhere else, because the folder itself is recognised.
    pub fn open_own(own: &OwnRun) -> Result<Option<RunDir>, RunError> {
        let path = &own.path;
        let dir = match Dir::open_nofollow(path) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(at(path)(e)),
        };
        if !session::is_same(own, &dir).map_err(at(path))? {
            return Ok(None);
        }
        let elsewhere = || registry::project_of(path).ok_or_else(|| RunError::NoRun(path.clone()));
        let project = project_by_place(path).map_or_else(elsewhere, |p| Ok(p.to_owned()))?;
        let mut folder = RunDir::found(dir, &project)?;
        if own.log.is_some() {
            folder.log_id = OnceCell::from(own.log);
        }
        Ok(Some(folder))
    }

    /// Makes the folder of a run in `.claude/runs`, with its plan and an empty log: not a run yet.
    pub fn create(project: &Path, plan: &Plan, origin: &Origin<'_>) -> Result<RunDir, RunError> {
        RunDir::create_in(project, &runs_path(project), plan, origin)
    }

    /// As [`RunDir::create`], in the folder `runs`.
    pub fn create_in(project: &Path, runs: &Path, plan: &Plan, origin: &Origin<'_>) -> Result<RunDir, RunError> {
        RunDir::create_as(project, runs, plan.run.as_str(), plan, origin)
    }

    fn create_as(
        project: &Path,
        runs: &Path,
        name: &str,
        plan: &Plan,
        origin: &Origin<'_>,
    ) -> Result<RunDir, RunError> {
        if let Some(path) = [project, runs].into_iter().find(|path| path.to_str().is_none()) {
            return Err(RunError::Name(path.to_owned()));
        }
        let all = make_runs_folder(project, runs)?;
        let dir = all.make_new_sub(name, 0o700).map_err(at(runs))?;
        let fill = || -> io::Result<LogId> {
            dir.create_sub(BELLS, 0o700)?;
            dir.create_sub(WORKERS, 0o700)?;
            dir.create_new(LEADER_LOCK, 0o600)?;
            dir.create_new(DELIVER_LOCK, 0o600)?;
            let bytes = serde_json::to_vec_pretty(plan)?;
            if let Some(prompt) = origin.prompt.filter(|_| asks_for_prompt(plan, &bytes)) {
                dir.write_atomic(PROMPT, prompt.as_bytes(), 0o600, false)?;
            }
            // Otherwise the leader syncs it: a session waits for the hook that is here.
            dir.write_atomic(PLAN, &bytes, 0o400, plan.is_durable())?;
            // Before anybody records which file the log is.
            Ok(LogId::of(&FileId::of(&dir.create_new(log::NAME, 0o600)?)?))
        };
        match fill() {
            Ok(log) => Ok(RunDir { log_id: OnceCell::from(Some(log)), ..RunDir::new(dir, project) }),
            Err(e) => {
                // A folder that is not a run must not be taken for the newest one.
                drop(dir.empty().and_then(|_| all.remove_folder(name)));
                Err(at(runs)(e))
            }
        }
    }

    /// Writes `run_started`: from here on it is a run, and whoever finds it finishes it.
    ///
    /// Before that it is registered as this user's own, in `state`; otherwise it would be nobody's.
    pub fn start(&self, state: &home::State, plan: &Plan, origin: &Origin<'_>) -> Result<Run, RunError> {
        registry::register(state, self, plan.is_durable()).map_err(at(state.path()))?;
        let (log, state) = self.begin(plan, origin, Vec::new())?;
        // Only a cache: without it the first hook folds the log.
        drop(index::save(&self.dir, &log, &state.view));
        Ok(Run {
            folder: self.again()?,
            plan: plan.clone(),
            log,
            state,
            indexed: 0,
            indexed_ms: 0,
            index_bytes: 0,
            own: Vec::new(),
        })
    }

    /// Makes a whole run out of sight, in a folder that nobody takes for one, and shows it in one step when it is complete:
    /// `fill` puts files into the folder, and `facts`, what is taken over from another run, stand right behind the first
    /// line. Whoever dies before has started nothing, and nobody ever sees a part of the facts.
    pub fn start_with(
        project: &Path,
        runs: &Path,
        state: &home::State,
        plan: &Plan,
        origin: &Origin<'_>,
        fill: impl FnOnce(&RunDir) -> Result<Vec<Draft>, RunError>,
    ) -> Result<Run, RunError> {
        let hidden = RunDir::create_as(project, runs, &format!("{MAKING}{}", plan.run), plan, origin)?;
        let path = runs.join(plan.run.as_str());
        let all = open_runs(runs).map_err(at(runs))?;
        let name = hidden.path().file_name().unwrap_or_default();
        let make = || {
            // From here on `cpw clean` knows it as ours, should nobody come so far as to show it.
            registry::register_as(state, &hidden, &path, plan.is_durable()).map_err(at(state.path()))?;
            let facts = fill(&hidden)?;
            let (log, _) = hidden.begin(plan, origin, facts)?;
            if plan.is_durable() {
                log.sync().map_err(|e| hidden.told(e))?;
                hidden.dir.sync().map_err(at(hidden.path()))?;
            }
            all.rename(name, plan.run.as_str()).map_err(at(&path))?;
            if plan.is_durable() { all.sync().map_err(at(runs)) } else { Ok(()) }
        };
        if let Err(e) = make() {
            // The first error is the one to tell, and `cpw clean` finds what stays.
            if hidden.dir.empty().is_ok() && all.remove_folder(name).is_ok() {
                drop(registry::forget(state, &plan.run));
            }
            return Err(e);
        }
        RunDir::open_path(&path)?.open_run()
    }

    /// Writes the first line, and `facts` with it.
    fn begin(&self, plan: &Plan, origin: &Origin<'_>, facts: Vec<Draft>) -> Result<(Log, State), RunError> {
        let plan_sha256 = hex::sha256(&self.plan_bytes()?);
        let parent = surroundings();
        let started = RunStarted {
            v: SCHEMA,
            plan_sha256,
            session: plan.session.as_ref().map(ToString::to_string),
            prompt_id: origin.prompt_id.map(str::to_owned),
            prompt_sha256: origin.prompt.map(|prompt| hex::sha256(prompt.as_bytes())),
            prompt_bytes: origin.prompt.map(|prompt| prompt.len() as u64),
            rule: plan.rule.clone(),
            trace: parent.as_ref().map_or_else(uuid, |parent| parent.trace.clone()),
            span: Some(trace::span_of_run(plan.run.as_str())),
            parent: parent.map(|parent| parent.span),
            link: origin.link.as_ref().map(|run| format!("{}-{}", run.trace, run.span)),
            max_workers: plan.limits.max_workers,
            boot_id: clock::boot_id().to_owned(),
            mono_ms: clock::mono_ms(),
            cpw: env!("CARGO_PKG_VERSION").into(),
            client: origin.client.clone(),
        };
        let mut log = Log::open(&self.dir)?;
        let mut state = State::new(plan);
        let written = log.transact(&mut state, HOOK_LOCK, plan.is_durable(), |tx| {
            tx.emit(Draft::run(Body::RunStarted(started)))?;
            facts.into_iter().try_for_each(|fact| tx.emit(fact).map(drop))
        });
        match written {
            Ok(()) => Ok((log, state)),
            Err(e) => Err(self.not_started(e)),
        }
    }

    /// What is said where the first line could not be written. Where locks are refused, nothing of the run stays.
    fn not_started(&self, e: LogError) -> RunError {
        match e {
            LogError::Io { source, .. } if fsinfo::is_unsupported(&source) => {
                let path = self.path().parent().unwrap_or(self.path()).to_owned();
                let name = self.path().file_name().unwrap_or_default();
                drop(self.dir.empty().and_then(|_| open_runs(&path)?.remove_folder(name)));
                RunError::FileSystem { path, refused: fsinfo::refused_itself() }
            }
            e => self.told(e),
        }
    }

    /// A second handle on the same folder.
    pub fn again(&self) -> Result<RunDir, RunError> {
        let dir = self.dir.try_clone().map_err(at(self.path()))?;
        Ok(RunDir { dir, project: self.project.clone(), log_id: self.log_id.clone() })
    }

    /// Refuses a folder where locks would not keep everybody out. Not for hooks of tool calls: it costs a look at the file
    /// system.
    pub fn check_locks(&self) -> Result<(), RunError> {
        check_locks(&self.dir)
    }

    /// An error of the log, with the run that it is about.
    pub fn told(&self, e: LogError) -> RunError {
        match e {
            LogError::Damaged(damage) => self.damaged(damage.to_string()),
            e => RunError::Log(e),
        }
    }

    fn damaged(&self, why: impl Into<String>) -> RunError {
        let run = self.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        RunError::Damaged { run, why: why.into() }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The path below the project, as the session reads it: `.claude/runs/…`.
    pub fn shown(&self) -> String {
        let below = self.path().strip_prefix(&self.project).unwrap_or(self.path());
        below.to_string_lossy().into_owned()
    }

    fn plan_bytes(&self) -> Result<Vec<u8>, RunError> {
        match self.dir.read_bounded(PLAN, MAX_PLAN) {
            Ok(bytes) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.dir.stat(log::NAME) {
                Ok(Some(file)) if file.size > 0 && self.log_id().is_some() => {
                    Err(self.damaged("plan.json is missing: it was deleted or moved away"))
                }
                _ => Err(RunError::NoRun(self.path().to_owned())),
            },
            Err(source) => Err(RunError::Io { path: self.path().join(PLAN), source }),
        }
    }

    /// The plan and the hash of its bytes.
    pub fn plan(&self) -> Result<(Plan, String), RunError> {
        let bytes = self.plan_bytes()?;
        let plan = serde_json::from_slice(&bytes).map_err(|e| RunError::Plan(format!("is not a plan: {e}")))?;
        Ok((plan, hex::sha256(&bytes)))
    }

    /// Which file the log is, as recorded when the run began; `None` where that was not recorded for this folder.
    fn log_id(&self) -> Option<LogId> {
        *self.log_id.get_or_init(|| registry::record(self).and_then(|r| r.log))
    }

    /// Opens the log, if it is the file with which the run began.
    fn log(&self) -> Result<Log, RunError> {
        let known = self.log_id();
        let log = match Log::open(&self.dir) {
            Ok(log) => log,
            Err(e) => match (self.path().join(log::NAME).symlink_metadata(), known) {
                (Err(e), None) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(RunError::NoRun(self.path().to_owned()));
                }
                (Err(e), Some(_)) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(self.damaged("events.jsonl is missing: it was deleted or moved away"));
                }
                (Ok(other), _) if !other.is_file() => {
                    let what = what_kind(other.file_type());
                    return Err(self.damaged(format!("events.jsonl is {what}, not a regular file: it was exchanged")));
                }
                // What cannot be written can still be looked at.
                _ => Log::open_read(&self.dir).map_err(|_| RunError::Log(e))?,
            },
        };
        if known.is_some_and(|known| !known.is(&LogId::of(log.id()))) {
            return Err(self.damaged("events.jsonl is not the file with which the run began: it was replaced"));
        }
        Ok(log)
    }

    /// As [`RunDir::log`], if it has not lost what the index knows of it.
    fn sound_log(&self) -> Result<Log, RunError> {
        let mut log = self.log()?;
        self.check_index(&mut log)?;
        Ok(log)
    }

    fn check_index(&self, log: &mut Log) -> Result<(), RunError> {
        let Some(why) = index::contradicts(&self.dir, log) else { return Ok(()) };
        // A gap or a line that is none says more than the length does.
        log.read(&mut Count::default()).map_err(|e| self.told(e))?;
        Err(self.damaged(why))
    }

    /// Fails if the file by the log's name is no longer the one that `log` has open.
    pub fn check_log(&self, log: &Log) -> Result<(), LogError> {
        let named = self.dir.stat(log::NAME).map_err(|source| LogError::Io { doing: "look at", source })?;
        match named {
            Some(named) if named.same_file(log.id()) => Ok(()),
            Some(_) => Err(LogError::Damaged(Damage::of_file("events.jsonl was replaced while the run was going on"))),
            None => Err(LogError::Damaged(Damage::of_file("events.jsonl was deleted while the run was going on"))),
        }
    }

    /// Fails where the log holds no `run_started`: as damaged if there are signs that it once did.
    fn check_begun(&self, log: &Log, schema: u32) -> Result<(), RunError> {
        if schema > 0 {
            return Ok(());
        }
        if log.offset() > 0 {
            return Err(self.damaged("events.jsonl does not begin with run_started"));
        }
        let workers = self.dir.sub(WORKERS).and_then(|d| d.names());
        if workers.is_ok_and(|names| !names.is_empty()) {
            return Err(self.damaged("events.jsonl holds no event, although workers were started: it was emptied"));
        }
        Err(RunError::NoRun(self.path().to_owned()))
    }

    /// Fails with [`RunError::NoRun`] where the folder holds none. Only the beginning of its log is read.
    fn look_for_run(&self) -> Result<(), RunError> {
        if self.dir.stat(PLAN).is_ok_and(|plan| plan.is_none()) {
            self.plan_bytes()?;
        }
        let mut log = self.log()?;
        let mut first = Count::default();
        log.read_part(&mut first, 0).map_err(|e| self.told(e))?;
        self.check_begun(&log, first.schema())
    }

    /// The log as a tape, if it is the file with which the run began.
    pub fn tape(&self) -> Result<Tape, RunError> {
        self.check()?;
        Tape::open(&self.dir).map_err(|e| self.told(e))
    }

    /// The log as a tape, whatever is wrong with the run: what can be read is, and nothing in the folder changes.
    pub fn tape_as_it_is(&self) -> Result<Tape, RunError> {
        match Tape::open(&self.dir) {
            Ok(tape) => Ok(tape),
            // What the registry knows of the log says more.
            Err(e) => self.log().map_or_else(Err, |_| Err(self.told(e))),
        }
    }

    /// Fails if the log is not the one with which the run began, or has lost what the index knows of it, or all it had.
    /// Changes nothing.
    pub fn check(&self) -> Result<(), RunError> {
        let log = self.sound_log()?;
        if log.is_empty().map_err(|e| self.told(e))? { self.check_begun(&log, 0) } else { Ok(()) }
    }

    /// Opens the run with its view: from the index, and the events behind it.
    pub fn open_view(&self) -> Result<Hooked, RunError> {
        let mut hooked = self.whole_view(self.log()?, None)?;
        hooked.save_index(self);
        Ok(hooked)
    }

    /// Opens the run for a hook call. `None`: the call does not concern it, says the glance in its index, and nothing has
    /// happened since that would change that. The hook saves the index once its answer is out.
    pub fn open_if(&self, concerns: impl FnOnce(&Glance<'_>) -> bool) -> Result<Option<Hooked>, RunError> {
        let mut log = self.log()?;
        let index = Index::open(&self.dir, &mut log);
        if let Some(index) = &index {
            let concerned = index.glance().is_none_or(|g| concerns(&g));
            if !concerned && index.quiet_tail(&mut log).is_some_and(|tail| tail <= LONG_TAIL) {
                return Ok(None);
            }
        }
        self.whole_view(log, index).map(Some)
    }

    fn whole_view(&self, mut log: Log, index: Option<Index>) -> Result<Hooked, RunError> {
        let index = index.or_else(|| Index::open(&self.dir, &mut log));
        let found = index.and_then(|index| index.view().filter(|_| index.rewind(&mut log)).map(|view| (index, view)));
        let (index, mut view) = if let Some((index, view)) = found {
            (Some(index), view)
        } else {
            self.check_index(&mut log)?;
            let mut view = View::new(&self.plan()?.0);
            log.restart();
            while log.read_part(&mut view, STAGE).map_err(|e| self.told(e))? {
                if self.log_id().is_some() {
                    drop(index::save(&self.dir, &log, &view));
                }
            }
            (None, view)
        };
        let indexed = index.as_ref().map_or(0, |_| view.seq);
        log.read(&mut view).map_err(|e| self.told(e))?;
        self.check_begun(&log, view.schema)?;
        Ok(Hooked { log, view, index, indexed })
    }

    /// Opens the run with its whole state.
    pub fn open_run(&self) -> Result<Run, RunError> {
        let mut log = self.sound_log()?;
        let (plan, sha256) = self.plan()?;
        let mut state = State::new(&plan);
        log.read(&mut state).map_err(|e| self.told(e))?;
        self.check_begun(&log, state.view.schema)?;
        if state.view.plan_sha256 != sha256 {
            return Err(RunError::Plan("was changed after the run began; nothing is started from it".into()));
        }
        Ok(Run { folder: self.again()?, plan, log, state, indexed: 0, indexed_ms: 0, index_bytes: 0, own: Vec::new() })
    }

    /// Reserves a run that has ended for one who continues or removes it. `None`: somebody else does now. Held until the
    /// file is dropped.
    pub fn reserve(&self) -> Result<Option<File>, RunError> {
        let path = || self.path().join(PLAN);
        let file = self.dir.open_read(PLAN).map_err(at(path()))?;
        Ok(lock::try_exclusive(&file).map_err(at(path()))?.then_some(file))
    }

    /// The prompt that started the run, if there is one.
    pub fn prompt(&self) -> Result<Option<String>, RunError> {
        match self.dir.read_bounded(PROMPT, MAX_PLAN) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RunError::Io { path: self.path().join(PROMPT), source }),
        }
    }

    /// Removes what writers that are dead have left: files that were not renamed to their place, bells not hung up.
    pub fn sweep(&self) {
        self.dir.sweep();
        for name in [BELLS, WORKERS] {
            let Ok(dir) = self.dir.sub(name) else { continue };
            dir.sweep();
            for worker in dir.names().unwrap_or_default() {
                drop(dir.sub(worker).and_then(|d| d.sub("logs")).map(|logs| logs.sweep()));
            }
        }
    }

    /// The folder of a worker.
    pub fn worker(&self, worker: WorkerNo) -> io::Result<Dir> {
        self.dir.sub(WORKERS)?.sub(worker.to_string())
    }
}

fn check_locks(dir: &Dir) -> Result<(), RunError> {
    match fsinfo::locks(dir).map_err(at(dir.path()))? {
        Locks::Good | Locks::Tried(_) => Ok(()),
        Locks::Refused(refused) => Err(RunError::FileSystem { path: dir.path().to_owned(), refused }),
    }
}

fn what_kind(kind: std::fs::FileType) -> &'static str {
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Where a task's attempt leaves its artifacts, relative to the run's folder.
pub fn out_path(worker: WorkerNo, task: &TaskId, attempt: u32) -> String {
    format!("{WORKERS}/{worker}/out/{task}.{attempt}")
}

/// What the files are called that an attempt's stdout and stderr go to, in the worker's `logs`.
pub fn output_names(task: &TaskId, attempt: u32) -> [String; 2] {
    ["out", "err"].map(|ending| format!("{task}.{attempt}.{ending}"))
}

/// What the file is called, beside the output of an attempt, in which whoever leads notes how that grows.
pub fn times_name(task: &TaskId, attempt: u32) -> String {
    format!("{task}.{attempt}.times")
}

/// Where the artifacts of a task are that was done in another run and taken over, relative to the run's folder.
pub fn taken_path(task: &TaskId) -> String {
    format!("{TAKEN}/{task}")
}

/// Where an attempt's stdout goes, relative to the run's folder; its stderr ends with `.err` instead.
pub fn stdout_path(worker: WorkerNo, task: &TaskId, attempt: u32) -> String {
    format!("{WORKERS}/{worker}/logs/{task}.{attempt}.out")
}

/// A run as a hook has it open.
#[derive(Debug)]
pub struct Hooked {
    /// The log, folded to its end as of the last look.
    pub log: Log,
    /// What it says.
    pub view: View,
    /// The index that the view began with, and up to which event.
    index: Option<Index>,
    indexed: u64,
}

impl Hooked {
    /// Replaces the index if it is missing or far behind, unless somebody else is doing it or has done it.
    pub fn save_index(&mut self, folder: &RunDir) {
        let due = match &self.index {
            None => self.log.offset() > WORTH,
            Some(_) => self.view.seq - self.indexed > LONG_TAIL,
        };
        // What came from elsewhere is looked at and not changed.
        if !due || folder.log_id().is_none() || self.index.as_ref().is_some_and(|index| !index.claim(&folder.dir)) {
            return;
        }
        // Only a cache: without it a hook takes longer.
        if !self.log.is_ahead() && index::save(&folder.dir, &self.log, &self.view).is_ok() {
            (self.index, self.indexed) = (Index::open(&folder.dir, &mut self.log), self.view.seq);
        }
    }

    /// Folds what is new.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        self.log.read(&mut self.view)
    }

    /// One transaction of a hook. Whom it concerns is woken.
    pub fn transact<T>(
        &mut self,
        folder: &RunDir,
        decide: impl FnOnce(&mut Tx<'_, View>) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        self.transact_within(HOOK_LOCK, folder, decide)
    }

    /// The same of a command, which may wait longer: what a task has to say is not lost because others write.
    pub fn transact_within<T>(
        &mut self,
        patience: Duration,
        folder: &RunDir,
        decide: impl FnOnce(&mut Tx<'_, View>) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        let mut wake = Wake::default();
        let result = self.log.transact(&mut self.view, patience, false, |tx| {
            let decided = decide(tx)?;
            wake = Wake::without_state(tx.events());
            Ok(decided)
        });
        bells::ring(folder, &wake, &[]);
        result
    }
}

/// A run with its whole state.
#[derive(Debug)]
pub struct Run {
    /// Its folder.
    pub folder: RunDir,
    /// Its plan.
    pub plan: Plan,
    /// Its log, folded to its end as of the last look.
    pub log: Log,
    /// What it says.
    pub state: State,
    /// Up to where the index was saved, when, and how long it was.
    indexed: u64,
    indexed_ms: u64,
    index_bytes: u64,
    own: Vec<OsString>,
}

impl Run {
    /// Folds what is new, if the log is still the file by its name: nobody would hear of it otherwise.
    pub fn refresh(&mut self) -> Result<(), LogError> {
        self.folder.check_log(&self.log)?;
        if self.log.is_ahead() {
            return self.fold_anew();
        }
        self.log.read(&mut self.state)
    }

    fn fold_anew(&mut self) -> Result<(), LogError> {
        let mut fresh = Log::open(&self.folder.dir)?;
        if !fresh.id().same_file(self.log.id()) {
            let why = "events.jsonl was replaced while the run was going on";
            return Err(LogError::Damaged(Damage::of_file(why)));
        }
        let mut again = State::new(&self.plan);
        fresh.read(&mut again)?;
        (self.log, self.state) = (fresh, again);
        Ok(())
    }

    /// From now on this bell is not rung for what is written from here: its owner knows.
    pub fn spare(&mut self, bell: &Bell) {
        self.own.extend(bell.name().map(OsStr::to_owned));
    }

    /// One transaction of a worker or command. Whom it concerns is woken. When the write fails, the state is folded anew,
    /// so that it never holds what the file does not.
    pub fn transact<T>(
        &mut self,
        decide: impl FnOnce(&mut Tx<'_, State>, &Plan) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        if self.log.is_ahead() {
            self.fold_anew()?;
        }
        let Run { folder, plan, log, state, own, .. } = self;
        let mut wake = Wake::default();
        let result = log.transact(state, WORKER_LOCK, plan.is_durable(), |tx| {
            let decided = decide(tx, plan)?;
            wake = Wake::of(tx.events(), tx.fold);
            Ok(decided)
        });
        // Also when only the sync failed: what is written is seen by whoever looks.
        bells::ring(folder, &wake, own);
        if matches!(result, Err(LogError::Io { .. } | LogError::Line(_))) {
            // Should that fail too, the next call tries it again before it does anything else.
            drop(self.fold_anew());
        }
        result
    }

    /// Brings plan, log and folder to the disk, so that a power cut leaves a run that can be looked at.
    pub fn sync(&self) -> io::Result<()> {
        self.folder.dir.open_read(PLAN)?.sync_data()?;
        self.log.sync().map_err(io::Error::other)?;
        self.folder.dir.sync()
    }

    /// Rewrites the index: `now`, or when the last time is long enough ago or much has happened since. For the leader, which
    /// keeps it fresh for the hooks. Returns after how many milliseconds there will be something to rewrite.
    pub fn save_index(&mut self, now: bool) -> Option<u64> {
        let tail = self.log.offset() - self.indexed;
        if tail == 0 || self.log.is_ahead() {
            return None;
        }
        let since = clock::mono_ms().saturating_sub(self.indexed_ms);
        if !now && since < INDEX_MS && tail <= self.index_bytes.max(WORTH) {
            return Some(INDEX_MS - since);
        }
        // Only a cache: without it a hook takes longer.
        if let Ok(bytes) = index::save(&self.folder.dir, &self.log, &self.state.view) {
            (self.indexed, self.index_bytes) = (self.log.offset(), bytes);
        }
        self.indexed_ms = clock::mono_ms();
        None
    }
}
