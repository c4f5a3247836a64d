//! A run's folder: the only place that knows what its files are called. Opening one checks that its plan is the one that
//! the log names; making one is crash-safe, because a folder without a `run_started` is not a run.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::base::hex;
use crate::base::ids::{RunId, TaskId, WorkerNo};
use crate::logic::state::State;
use crate::logic::view::View;
use crate::logic::wake::Wake;
use crate::model::event::{Body, Draft, RunStarted, SCHEMA};
use crate::model::plan::Plan;
use crate::store::bells;
use crate::store::home;
use crate::store::index;
use crate::store::log::{Damage, Log, LogError, Tx};
use crate::store::registry;
use crate::sys::bell::Bell;
use crate::sys::clock;
use crate::sys::dir::Dir;
use crate::sys::random;

/// The plan's name in a run's folder.
pub const PLAN: &str = "plan.json";
/// The prompt's name in a run's folder.
pub const PROMPT: &str = "prompt.txt";
/// The folder of the waiters' bells.
pub const BELLS: &str = "bells";
/// The folder of the workers' folders.
pub const WORKERS: &str = "workers";
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

/// A tail longer than this is worth a new index, in bytes.
const STALE_TAIL: u64 = 16 * 1024;

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
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RunError::Io { path, source } => write!(f, "{}: {source}", path.display()),
            RunError::Log(e) => e.fmt(f),
            RunError::Plan(why) => write!(f, "plan.json: {why}"),
            RunError::NoRun(path) => write!(f, "{} holds no run", path.display()),
        }
    }
}

// Its text names the cause already; a chain would say it twice.
impl std::error::Error for RunError {}

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
}

/// What a run is started with, beside its plan.
#[derive(Debug, Default)]
pub struct Origin<'a> {
    /// The client's id of the prompt.
    pub prompt_id: Option<&'a str>,
    /// The user's prompt, for the tasks that ask for it.
    pub prompt: Option<&'a str>,
}

/// The folder of a project's runs.
pub fn runs_path(project: &Path) -> PathBuf {
    project.join(RUNS[0]).join(RUNS[1])
}

fn runs_dir(project: &Path) -> io::Result<Dir> {
    Dir::open(project)?.sub(RUNS[0])?.sub(RUNS[1])
}

/// The runs of a project, newest first.
pub fn list(project: &Path) -> io::Result<Vec<RunId>> {
    let dir = match runs_dir(project) {
        Ok(dir) => dir,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut ids: Vec<RunId> =
        dir.names()?.iter().filter_map(|n| n.to_str()).filter_map(|n| RunId::new(n).ok()).collect();
    ids.retain(|id| id.as_str() != "project");
    ids.sort_unstable_by(|a, b| b.cmp(a));
    Ok(ids)
}

/// Whether a folder holds a run: something was written to its log.
pub fn is_begun(project: &Path, run: &RunId) -> bool {
    RunDir::open(project, run).is_ok_and(|f| matches!(f.dir.stat(crate::store::log::NAME), Ok(Some(s)) if s.size > 0))
}

impl RunDir {
    /// Opens the folder of an existing run.
    pub fn open(project: &Path, run: &RunId) -> Result<RunDir, RunError> {
        let path = runs_path(project).join(run.as_str());
        let dir = runs_dir(project).and_then(|d| d.sub(run.as_str())).map_err(at(path))?;
        Ok(RunDir { dir, project: project.to_owned() })
    }

    /// Opens a run's folder by its path, as a session's record has it.
    pub fn open_path(path: &Path) -> Result<RunDir, RunError> {
        let project = path.ancestors().nth(3).ok_or_else(|| RunError::NoRun(path.to_owned()))?.to_owned();
        let run = path.file_name().and_then(OsStr::to_str).and_then(|n| RunId::new(n).ok());
        let run = run.ok_or_else(|| RunError::NoRun(path.to_owned()))?;
        RunDir::open(&project, &run)
    }

    /// Makes the folder of a run, with its plan and without a log: not a run yet.
    pub fn create(project: &Path, plan: &Plan, origin: &Origin<'_>) -> Result<RunDir, RunError> {
        let path = runs_path(project);
        let make = || -> io::Result<Dir> {
            let runs = Dir::open(project)?.create_sub(RUNS[0], 0o755)?.create_sub(RUNS[1], 0o700)?;
            if runs.stat(".gitignore")?.is_none() {
                runs.write_atomic(".gitignore", b"*\n", 0o644, false)?;
            }
            let dir = runs.make_new_sub(plan.run.as_str(), 0o700)?;
            dir.create_sub(BELLS, 0o700)?;
            dir.create_sub(WORKERS, 0o700)?;
            dir.create_new(LEADER_LOCK, 0o600)?;
            dir.create_new(DELIVER_LOCK, 0o600)?;
            if let Some(prompt) = origin.prompt {
                dir.write_atomic(PROMPT, prompt.as_bytes(), 0o600, false)?;
            }
            // Otherwise the leader syncs it: a session waits for the hook that is here.
            dir.write_atomic(PLAN, &serde_json::to_vec_pretty(plan)?, 0o400, plan.is_durable())?;
            Ok(dir)
        };
        let dir = make().map_err(|e| {
            // A folder that is not a run must not be taken for the newest one.
            drop(std::fs::remove_dir_all(path.join(plan.run.as_str())));
            at(path)(e)
        })?;
        Ok(RunDir { dir, project: project.to_owned() })
    }

    /// Writes `run_started`: from here on it is a run, and whoever finds it finishes it.
    ///
    /// Before that it is registered as this user's own, in `state`; otherwise it would be nobody's.
    pub fn start(&self, state: &home::State, plan: &Plan, origin: &Origin<'_>) -> Result<Run, RunError> {
        registry::register(state, self, plan.is_durable()).map_err(at(state.path()))?;
        let plan_sha256 = hex::sha256(&self.plan_bytes()?);
        let started = RunStarted {
            v: SCHEMA,
            plan_sha256,
            session: plan.session.as_ref().map(ToString::to_string),
            prompt_id: origin.prompt_id.map(str::to_owned),
            rule: plan.rule.clone(),
            trace: uuid(),
            max_workers: plan.limits.max_workers,
            boot_id: clock::boot_id().to_owned(),
            mono_ms: clock::mono_ms(),
            cpw: env!("CARGO_PKG_VERSION").into(),
        };
        let mut log = Log::create(&self.dir)?;
        let mut state = State::new(plan);
        log.transact(&mut state, HOOK_LOCK, plan.is_durable(), |tx| tx.emit(Draft::run(Body::RunStarted(started))))?;
        // Only a cache: without it the first hook folds the log.
        drop(index::save(&self.dir, &log, &state.view));
        Ok(Run { folder: self.again()?, plan: plan.clone(), log, state, indexed: 0, own: Vec::new() })
    }

    /// A second handle on the same folder.
    pub fn again(&self) -> Result<RunDir, RunError> {
        RunDir::open_path(self.dir.path())
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
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(RunError::NoRun(self.path().to_owned())),
            Err(source) => Err(RunError::Io { path: self.path().join(PLAN), source }),
        }
    }

    /// The plan and the hash of its bytes.
    pub fn plan(&self) -> Result<(Plan, String), RunError> {
        let bytes = self.plan_bytes()?;
        let plan = serde_json::from_slice(&bytes).map_err(|e| RunError::Plan(format!("is not a plan: {e}")))?;
        Ok((plan, hex::sha256(&bytes)))
    }

    fn log(&self) -> Result<Log, RunError> {
        match Log::open(&self.dir) {
            Ok(log) => Ok(log),
            Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(RunError::NoRun(self.path().to_owned()))
            }
            // What cannot be written can still be looked at.
            Err(e) => Log::open_read(&self.dir).map_err(|_| RunError::Log(e)),
        }
    }

    /// Opens the run for a hook: the view from the index and the events behind it.
    pub fn open_view(&self) -> Result<Hooked, RunError> {
        let mut log = self.log()?;
        let (mut view, from) = match index::load(&self.dir, &mut log) {
            Some(view) => {
                let from = log.offset();
                (view, from)
            }
            None => (View::new(&self.plan()?.0), 0),
        };
        log.read(&mut view)?;
        if view.schema == 0 {
            return Err(RunError::NoRun(self.path().to_owned()));
        }
        if log.offset() - from > STALE_TAIL {
            drop(index::save(&self.dir, &log, &view));
        }
        Ok(Hooked { log, view })
    }

    /// Opens the run with its whole state.
    pub fn open_run(&self) -> Result<Run, RunError> {
        let (plan, sha256) = self.plan()?;
        let mut log = self.log()?;
        let mut state = State::new(&plan);
        log.read(&mut state)?;
        if state.view.schema == 0 {
            return Err(RunError::NoRun(self.path().to_owned()));
        }
        if state.view.plan_sha256 != sha256 {
            return Err(RunError::Plan("was changed after the run began; nothing is started from it".into()));
        }
        Ok(Run { folder: self.again()?, plan, log, state, indexed: 0, own: Vec::new() })
    }

    /// The folder of a worker.
    pub fn worker(&self, worker: WorkerNo) -> io::Result<Dir> {
        self.dir.sub(WORKERS)?.sub(worker.to_string())
    }
}

/// Where a task's attempt leaves its artifacts, relative to the run's folder.
pub fn out_path(worker: WorkerNo, task: &TaskId, attempt: u32) -> String {
    format!("{WORKERS}/{worker}/out/{task}.{attempt}")
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
}

impl Hooked {
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
        let mut wake = Wake::default();
        let result = self.log.transact(&mut self.view, HOOK_LOCK, false, |tx| {
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
    indexed: u64,
    own: Vec<OsString>,
}

impl Run {
    /// Folds what is new.
    pub fn refresh(&mut self) -> Result<(), LogError> {
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

    /// Rewrites the index when the log has grown enough since, or when `now` asks for it.
    pub fn save_index(&mut self, now: bool) {
        if now || self.log.offset() - self.indexed > STALE_TAIL {
            // Only a cache: without it a hook takes longer.
            if index::save(&self.folder.dir, &self.log, &self.state.view).is_ok() {
                self.indexed = self.log.offset();
            }
        }
    }
}
