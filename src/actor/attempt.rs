//! One attempt of a task: its folders and files, its process, its end. An explicit state machine that a worker's loop drives
//! and that never blocks:
//!
//! ```text
//! running ──exit──────────────→ sweeping ──nobody left──→ over
//!    └──deadline, cancel, fence──→ ending ──nobody left──→ over
//! ```
//!
//! A client that is ended is interrupted first (`asking`): then it says what it has spent.
//!
//! It knows nothing of the log: the worker writes the events.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use crate::actor::claude::{self, Call, Stream, Trouble};
use crate::actor::isolate::Isolated;
use crate::actor::{environ, git, outcome};
use crate::base::env;
use crate::base::ids::{TaskId, WorkerNo};
use crate::base::text;
use crate::logic::state::State;
use crate::logic::step::{AttemptId, Ending};
use crate::model::event::{Body, Done, Ended, Process, Progress, ResultFile, Usage};
use crate::model::plan::{Action, ClaudeTask, Need, Plan, Task};
use crate::model::resource::Resource;
use crate::store::home;
use crate::store::run::{self, RunDir};
use crate::sys::clock;
use crate::sys::dir::Dir;
use crate::sys::process::{self, Signal};
use crate::sys::spawn::{self, Exit, TaskSpawn};
use crate::sys::spool;
use crate::sys::tree::{self, Ladder, Target};

/// What a task gets between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);

/// What processes that a task left behind get: it has ended, and nothing waits for them.
const GRACE_LEFT: Duration = Duration::from_millis(200);

/// How long of that a client has for saying what it has spent, before everything below it is ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The farthest that a provider's word about its quota is believed, in milliseconds: a week and a day.
const FARTHEST_MS: u64 = 8 * 24 * 3600 * 1000;

/// How often a client's stream is looked at, in milliseconds.
const STREAM_MS: u64 = 500;

/// The most of a client's stream that is read at once, in bytes.
const STREAM_CHUNK: usize = 1024 * 1024;

/// Why an attempt is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its time is over.
    Deadline,
    /// Somebody wants it cancelled.
    Cancelled,
    /// Somebody else has declared it lost; its end is nobody's business any more.
    Fenced,
}

#[derive(Debug)]
enum Stage {
    Running,
    Sweeping(Ladder, Exit),
    /// Interrupted; until then it may speak.
    Asking(u64, Why),
    Ending(Ladder, Why),
    Over,
}

/// An attempt whose process exists.
#[derive(Debug)]
pub struct Attempt {
    /// Which.
    pub id: AttemptId,
    task: spawn::Task,
    target: Target,
    stage: Stage,
    since_ms: u64,
    deadline_ms: Option<u64>,
    look_at_ms: Option<u64>,
    files: Files,
    summary: Option<String>,
    stream: Option<Follow>,
    /// Bytes of its output that are gone.
    cut_bytes: u64,
    isolated: Option<Isolated>,
}

/// Why an attempt has no process.
#[derive(Debug)]
pub struct NotStarted {
    /// For people.
    pub reason: String,
    /// Whether trying again could help.
    pub retryable: bool,
}

impl From<String> for NotStarted {
    fn from(reason: String) -> Self {
        NotStarted { reason, retryable: true }
    }
}

/// The files of an attempt.
#[derive(Debug)]
struct Files {
    out: Dir,
    out_shown: String,
    logs: Dir,
    task: TaskId,
    stdout: String,
    /// Where a `claude` task writes, to be moved to `out`.
    scratch: Option<PathBuf>,
}

/// A client's stream as it grows in its file.
#[derive(Debug)]
struct Follow {
    file: File,
    offset: u64,
    stream: Stream,
}

impl Follow {
    fn catch_up(&mut self) -> Option<Progress> {
        let mut said = None;
        let mut buffer = vec![0_u8; STREAM_CHUNK];
        while let Ok(n @ 1..) = self.file.read_at(&mut buffer, self.offset) {
            self.offset += n as u64;
            said = self.stream.feed(&buffer[..n]).or(said);
        }
        said
    }
}

/// What an attempt is made from.
#[derive(Debug, Clone, Copy)]
pub struct Making<'a> {
    /// The run's folder.
    pub folder: &'a RunDir,
    /// Its plan.
    pub plan: &'a Plan,
    /// Its state.
    pub state: &'a State,
    /// Who runs it.
    pub worker: WorkerNo,
    /// Processes below this one that are not the task's: the workers that it started.
    pub not_mine: &'a [i32],
}

/// Where a task runs.
pub fn cwd_of(folder: &RunDir, task: &Task) -> PathBuf {
    task.cwd.as_ref().map_or_else(|| folder.project.clone(), |cwd| folder.project.join(cwd))
}

/// What marks the processes of an attempt.
pub fn target(run: &str, task: &str, attempt: u32, leader: Option<Process>) -> Target {
    let attempt = attempt.to_string();
    Target::new(leader, &[(env::RUN, run), (env::TASK, task), (env::ATTEMPT, &attempt)])
}

/// What an attempt stands on: the folder where it runs, and the worktree that this is in, if it has one of its own.
#[derive(Debug)]
struct Ground {
    cwd: PathBuf,
    isolated: Option<Isolated>,
}

impl Ground {
    fn of(
        making: Making<'_>,
        task: &Task,
        number: u32,
        environment: &mut Vec<(OsString, OsString)>,
    ) -> Result<Ground, String> {
        if task.isolate.is_none() {
            return Ok(Ground { cwd: cwd_of(making.folder, task), isolated: None });
        }
        // Else its own calls of git could mean the user's files.
        environment.retain(|(name, _)| !git::is_place(name));
        let isolated = Isolated::begin(making.folder, &task.id, making.worker, number)?;
        match isolated.cwd(task.cwd.as_deref()) {
            Ok(cwd) => Ok(Ground { cwd, isolated: Some(isolated) }),
            Err(reason) => Err(isolated.undo(reason)),
        }
    }

    /// What stands for the project.
    fn project<'a>(&'a self, folder: &'a RunDir) -> &'a Path {
        self.isolated.as_ref().map_or(&folder.project, Isolated::project)
    }

    /// Gives it up because the task could not be started, for this reason.
    fn undo(self, reason: String) -> String {
        match self.isolated {
            Some(isolated) => isolated.undo(reason),
            None => reason,
        }
    }
}

impl Attempt {
    /// Makes the files and starts the process.
    pub fn start(making: Making<'_>, id: AttemptId, deadline_ms: Option<u64>) -> Result<Attempt, NotStarted> {
        let Making { folder, plan, worker, .. } = making;
        let task = &plan.tasks[id.index];
        let name = format!("{}.{}", task.id, id.number);
        let own = folder.worker(worker).map_err(|e| format!("cannot open the folder of {worker}: {e}"))?;
        let failed = |what: &'static str| move |e: std::io::Error| format!("cannot make {what}: {e}");
        let logs = own.sub("logs").map_err(failed("the log folder"))?;
        let out = own.create_sub("out", 0o700).and_then(|o| o.create_sub(&name, 0o700));
        let out = out.map_err(failed("the folder for artifacts"))?;
        let [stdout_name, stderr_name] = run::output_names(&task.id, id.number);
        let stdout = logs.create_new(&stdout_name, 0o600).map_err(failed("the file for stdout"))?;
        let stderr = logs.create_new(stderr_name, 0o600).map_err(failed("the file for stderr"))?;
        let needs = tell_needs(making, task, &logs, &name).map_err(failed("the file of needed results"))?;

        let (mut scratch, mut stream, mut stdin) = (None, None, None);
        if let Some(claude) = task.claude() {
            scratch = Some(scratch_folder(folder, &name).map_err(failed("the client's folder"))?);
            let file = logs.open_read(&stdout_name).map_err(failed("the file for stdout"))?;
            stream = Some(Follow { file, offset: 0, stream: Stream::of(claude) });
            stdin =
                Some(prompt_of(claude, &logs, &format!("{name}.prompt")).map_err(failed("the file with its prompt"))?);
        }
        let out_path = scratch.clone().unwrap_or_else(|| out.path().to_owned());
        let prompt_file = folder.path().join(run::PROMPT);
        let exe = process::exe_path().ok();
        let needs_path = logs.path().join(&needs);
        let worker_name = worker.to_string();
        let identity = environ::Identity {
            run: plan.run.as_str(),
            run_dir: folder.path(),
            worker: &worker_name,
            attempt: id.number,
            token: id.token,
            out: &out_path,
            prompt_file: prompt_file.exists().then_some(prompt_file.as_path()),
            needs: &needs_path,
            need_variables: &need_variables(making, task),
            trace: &making.state.trace,
            cpw_dir: exe.as_deref().and_then(Path::parent),
        };
        let mut environment = environ::build(std::env::vars_os(), task, &identity);
        let ground = Ground::of(making, task, id.number, &mut environment)?;
        let cwd = &ground.cwd;
        let argv = argv_of(making, &id, &ground, &out_path);
        let path = environment.iter().find(|(n, _)| n == "PATH").map(|(_, v)| v.clone()).unwrap_or_default();
        let name = argv.first().map_or(OsStr::new(""), OsString::as_os_str);
        let program = match spawn::resolve_program(name, &path, cwd, &folder.project) {
            Ok(program) => program,
            Err(e) => {
                let reason = ground.undo(e.reason);
                let retryable = stream.is_none();
                let reason = if retryable { reason } else { format!("Claude Code is not to be found: {reason}") };
                return Err(NotStarted { reason, retryable });
            }
        };
        let (program, argv) = match under_lease(task, &folder.project, exe.as_deref(), program, argv) {
            Ok(wrapped) => wrapped,
            Err(reason) => return Err(ground.undo(reason).into()),
        };
        let spawned = spawn::spawn_task(TaskSpawn {
            program: &program,
            argv: &argv,
            env: &environment,
            cwd,
            stdin,
            stdout,
            stderr,
        });
        let process = match spawned {
            Ok(process) => process,
            Err(e) => return Err(ground.undo(e.reason).into()),
        };
        let mark = target(plan.run.as_str(), task.id.as_str(), id.number, Some(process.process().clone()));
        let now = clock::mono_ms();
        Ok(Attempt {
            target: mark.with_descendants(making.not_mine),
            stage: Stage::Running,
            since_ms: now,
            deadline_ms,
            look_at_ms: stream.as_ref().map(|_| now + STREAM_MS),
            files: Files {
                out,
                out_shown: run::out_path(worker, &task.id, id.number),
                logs,
                task: task.id.clone(),
                stdout: stdout_name,
                scratch,
            },
            summary: task.summary.clone(),
            stream,
            cut_bytes: 0,
            isolated: ground.isolated,
            task: process,
            id,
        })
    }

    /// The first process of the task.
    pub fn process(&self) -> &Process {
        self.task.process()
    }

    /// Readable when that process ends.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.task.pidfd()
    }

    /// When to look again at the latest, `CLOCK_MONOTONIC` in milliseconds.
    pub fn next_look(&self) -> Option<u64> {
        let deadline = self.deadline_ms.filter(|_| matches!(self.stage, Stage::Running));
        let asking = if let Stage::Asking(until, _) = self.stage { Some(until) } else { None };
        // Without pidfds its end has to be looked for.
        let blind = self.fd().is_none().then(|| clock::mono_ms() + 50);
        [deadline, asking, self.look_at_ms, blind].into_iter().flatten().min()
    }

    /// Names the processes below this one that are not the task's: the workers there are by now, also those that were
    /// started after the attempt, or came here when the worker above them left.
    pub fn spare(&mut self, not_mine: &[i32]) {
        self.target.spare(not_mine);
        if let Stage::Sweeping(ladder, _) | Stage::Ending(ladder, _) = &mut self.stage {
            ladder.spare(not_mine);
        }
    }

    /// Begins to end it, if that has not begun.
    pub fn end(&mut self, why: Why) {
        let now = clock::mono_ms();
        let fenced = why == Why::Fenced;
        if matches!(self.stage, Stage::Running) && self.stream.is_some() && !fenced {
            // Gone already, or not ours to signal: the next look tells.
            drop(process::signal(self.task.process(), Signal::SIGINT));
            self.stage = Stage::Asking(now + millis(LAST_WORDS), why);
            self.look_at_ms = Some(0);
        } else if matches!(self.stage, Stage::Running) || fenced && matches!(self.stage, Stage::Asking(..)) {
            let grace = if fenced { Duration::ZERO } else { GRACE };
            self.stage = Stage::Ending(Ladder::start(self.target.clone(), grace, now), why);
            self.look_at_ms = Some(0);
        } else if why == Why::Fenced
            && let Stage::Ending(_, was) = &mut self.stage
        {
            *was = why;
        }
    }

    /// Looks at it. Returns what there is to say about progress, and its end once there is one. `said` is the line that the
    /// task gave itself.
    pub fn look(&mut self, said: Option<&str>) -> (Option<Progress>, Option<Ending>) {
        let now = clock::mono_ms();
        let mut progress = None;
        if self.look_at_ms.is_some_and(|at| now >= at) {
            progress = self.stream.as_mut().and_then(Follow::catch_up);
            self.look_at_ms = self.stream.as_ref().map(|_| now + STREAM_MS);
        }
        let exited = self.task.try_wait();
        if matches!(self.stage, Stage::Running) {
            match exited {
                Ok(Some(exit)) if self.target.is_surely_gone() => {
                    self.stage = Stage::Over;
                    let ending = self.exited(exit, said, now);
                    return (progress, Some(self.conclude(ending)));
                }
                Ok(Some(exit)) => self.stage = Stage::Sweeping(self.sweep(now), exit),
                Ok(None) if self.deadline_ms.is_some_and(|d| now >= d) => self.end(Why::Deadline),
                Ok(None) => {}
                // Somebody else reaped it: how it ended cannot be known any more.
                Err(_) => self.stage = Stage::Sweeping(self.sweep(now), Exit::Code(-1)),
            }
        }
        if let Stage::Asking(until, why) = self.stage {
            // Whatever it has left behind has had its time.
            let grace = if matches!(exited, Ok(None)) { GRACE.saturating_sub(LAST_WORDS) } else { GRACE_LEFT };
            if now >= until || !matches!(exited, Ok(None)) {
                self.stage = Stage::Ending(Ladder::start(self.target.clone(), grace, now), why);
            }
        }
        let (over, step) = match &mut self.stage {
            Stage::Running | Stage::Asking(..) | Stage::Over => (false, None),
            Stage::Sweeping(ladder, _) | Stage::Ending(ladder, _) => match ladder.step(now) {
                tree::Progress::Gone => (true, None),
                tree::Progress::Waiting(at) => (false, Some(at)),
            },
        };
        if let Some(at) = step {
            self.look_at_ms = Some(at);
        }
        if !over {
            return (progress, None);
        }
        let ending = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Sweeping(_, exit) => self.exited(exit, said, now),
            Stage::Ending(_, why) => self.ended(why, now),
            Stage::Running | Stage::Asking(..) | Stage::Over => return (progress, None),
        };
        (progress, Some(self.conclude(ending)))
    }

    /// Keeps what was changed in a worktree of its own.
    fn conclude(&mut self, ending: Ending) -> Ending {
        match self.isolated.take() {
            Some(isolated) => isolated.conclude(ending),
            None => ending,
        }
    }

    fn sweep(&self, now: u64) -> Ladder {
        Ladder::start(self.target.clone(), GRACE_LEFT, now)
    }

    fn duration(&self, now: u64) -> u64 {
        now.saturating_sub(self.since_ms)
    }

    /// Cuts output that is too long. Returns how many bytes are gone.
    fn cut(&self) -> u64 {
        let gone = |name: &String| {
            let cut = self.files.logs.open_existing(name).and_then(|file| spool::cut(&file));
            cut.unwrap_or_else(|error| {
                tracing::warn!(%error, name, "the output could not be cut");
                0
            })
        };
        run::output_names(&self.files.task, self.id.number).iter().map(gone).sum()
    }

    fn collect(&mut self) -> (Option<claude::Verdict>, Option<ResultFile>) {
        let verdict = self.stream.as_mut().and_then(|follow| {
            follow.catch_up();
            follow.stream.verdict()
        });
        self.cut_bytes = self.cut();
        if let Some(scratch) = self.files.scratch.take() {
            move_files(&scratch, &self.files.out);
        }
        if self.stream.is_some()
            && let Some(v) = &verdict
            && !self.has_result()
        {
            let written = match &v.structured {
                Some(value) => self.files.out.write_atomic("result.json", value.to_string().as_bytes(), 0o600, false),
                None if v.answer.is_empty() => Ok(()),
                None => self.files.out.write_atomic("result.md", v.answer.as_bytes(), 0o600, false),
            };
            if let Err(e) = written {
                tracing::warn!(error = %e, "the client's answer could not be kept");
            }
        }
        // A client's stdout is its protocol, not a result.
        let result = if self.stream.is_some() && !self.has_result() {
            Ok(None)
        } else {
            outcome::result(&self.files.out, &self.files.out_shown, &self.files.logs, &self.files.stdout)
        };
        let result = result.unwrap_or_else(|e| {
            tracing::warn!(error = %e, "the result could not be collected");
            None
        });
        (verdict, result)
    }

    fn has_result(&self) -> bool {
        matches!(outcome::written(&self.files.out, &self.files.out_shown), Ok(Some(_)))
    }

    fn exited(&mut self, exit: Exit, said: Option<&str>, now: u64) -> Ending {
        let (verdict, result) = self.collect();
        let duration_ms = self.duration(now);
        let usage = self.usage();
        let trouble = match (verdict, &self.stream) {
            // What it wrote itself is its answer.
            (Some(v), _) => v.trouble.filter(|t| !t.empty || result.as_ref().is_none_or(|r| r.bytes == 0)),
            (None, Some(follow)) => Some(self.silence(follow, exit)),
            (None, None) if exit == Exit::Code(0) => None,
            (None, None) => Some(plain(self.how(exit))),
        };
        let Some(Trouble { reason, retryable, quota, .. }) = trouble else {
            let Files { out, logs, stdout, .. } = &self.files;
            let summary = said.map(ToOwned::to_owned);
            let summary =
                summary.or_else(|| outcome::summary(self.summary.as_deref(), out, result.as_ref(), logs, stdout));
            let summary = outcome::with_remark(summary, outcome::passed_over(out));
            let exit = if let Exit::Code(c) = exit { c } else { 0 };
            let body =
                Body::Done(Done { exit, duration_ms, result, summary, usage, cut_bytes: self.cut_bytes, from: None });
            return Ending { body, retryable: false };
        };
        let quota_until = quota.map(|resets_at| quota_until(resets_at, now));
        let cut_bytes = self.cut_bytes;
        let body = Body::Failed(Ended { cut_bytes, quota_until, ..failure(exit, reason, duration_ms, result, usage) });
        Ending { body, retryable }
    }

    /// What it cost so far, where that is known.
    fn usage(&self) -> Option<Usage> {
        self.stream.as_ref().map(|follow| follow.stream.usage())
    }

    /// Why a client has ended that has not said how.
    fn silence(&self, follow: &Follow, exit: Exit) -> Trouble {
        let reason = match exit {
            Exit::Signal(s) => format!("the client was killed by signal {s}"),
            Exit::Code(0) if follow.offset == 0 => "the client ended without doing anything".to_owned(),
            Exit::Code(0) if !follow.stream.heard() => {
                "what the client printed is not what Claude Code prints; is `claude` on PATH another program?"
                    .to_owned()
            }
            Exit::Code(0) => "the client ended without a result".to_owned(),
            Exit::Code(_) => format!("the client failed: {}", self.how(exit)),
        };
        plain(reason)
    }

    fn how(&self, exit: Exit) -> String {
        match exit {
            Exit::Signal(s) => format!("killed by signal {s}"),
            Exit::Code(c) => match self.last_words() {
                Some(words) => format!("exit {c}: {words}"),
                None => format!("exit {c}"),
            },
        }
    }

    /// The last line of stderr: most programs say there why they failed.
    fn last_words(&self) -> Option<String> {
        let name = format!("{}.err", self.files.stdout.strip_suffix(".out")?);
        let file = self.files.logs.open_read(&name).ok()?;
        let length = file.metadata().ok()?.len();
        let start = length.saturating_sub(2000);
        let mut bytes = vec![0_u8; usize::try_from(length - start).ok()?];
        file.read_exact_at(&mut bytes, start).ok()?;
        complaint(&String::from_utf8_lossy(&bytes))
    }

    fn ended(&mut self, why: Why, now: u64) -> Ending {
        let (_, result) = self.collect();
        let exit = self.task.try_wait().ok().flatten().unwrap_or(Exit::Code(-1));
        let duration = self.duration(now);
        let usage = self.usage();
        let cut_bytes = self.cut_bytes;
        let ended =
            |reason: &str| Ended { cut_bytes, ..failure(exit, reason.to_owned(), duration, result.clone(), usage) };
        let (body, retryable) = match why {
            Why::Deadline => (Body::TimedOut(ended("its time limit was over")), true),
            Why::Cancelled => (Body::Cancelled(ended("cancelled")), false),
            Why::Fenced => (Body::Lost(ended("given up by its worker")), false),
        };
        Ending { body, retryable }
    }
}

/// The last line that says why. A hint behind it, as cpw and git write them, says what to do, and nothing without the line
/// before.
fn complaint(words: &str) -> Option<String> {
    let lines = || words.lines().rev().map(|l| text::one_line(l, 200)).filter(|l| !l.is_empty());
    lines().find(|l| !l.starts_with("hint: ")).or_else(|| lines().next())
}

/// A failure that may pass.
fn plain(reason: String) -> Trouble {
    Trouble { reason, retryable: true, empty: false, quota: None }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// When there is quota again, `CLOCK_MONOTONIC` in milliseconds, from seconds since 1970; 0: nobody knows.
fn quota_until(resets_at: Option<u64>, now: u64) -> u64 {
    let left = resets_at.and_then(|at| at.checked_mul(1000)?.checked_sub(clock::unix_ms()));
    left.filter(|left| (1..FARTHEST_MS).contains(left)).map_or(0, |left| now + left)
}

/// The file that is the client's stdin.
fn prompt_of(task: &ClaudeTask, logs: &Dir, name: &str) -> std::io::Result<File> {
    logs.create_new(name, 0o600)?.write_all(task.prompt.as_bytes())?;
    logs.open_read(name)
}

fn failure(exit: Exit, reason: String, duration: u64, result: Option<ResultFile>, usage: Option<Usage>) -> Ended {
    let (code, signal) = match exit {
        Exit::Code(c) => (Some(c), None),
        Exit::Signal(s) => (None, Some(s)),
    };
    Ended { exit: code, signal, reason, duration_ms: Some(duration), result, usage, ..Ended::default() }
}

/// The program and its arguments.
fn argv_of(making: Making<'_>, id: &AttemptId, ground: &Ground, out: &Path) -> Vec<OsString> {
    match &making.plan.tasks[id.index].action {
        Action::Run(argv) => argv.iter().map(OsString::from).collect(),
        Action::Shell(script) => vec!["sh".into(), "-c".into(), script.into()],
        Action::Claude(task) => {
            let budget_usd = making.state.tasks[id.index].open.as_ref().and_then(|open| open.budget_usd);
            let project = &making.folder.project;
            claude::argv(Call {
                task,
                out,
                project,
                ground: ground.project(making.folder),
                cwd: &ground.cwd,
                budget_usd,
            })
        }
    }
}

/// The same program, begun by `cpw lease`, where the task holds something: that waits until it has it, in the attempt's own
/// first process, and becomes the program. So whatever ends the attempt ends the waiting, and the lease.
fn under_lease(
    task: &Task,
    project: &Path,
    exe: Option<&Path>,
    program: PathBuf,
    argv: Vec<OsString>,
) -> Result<(PathBuf, Vec<OsString>), String> {
    if task.resources.is_empty() {
        return Ok((program, argv));
    }
    let exe = exe.ok_or("cpw's own program, which takes what the task holds, cannot be found")?.to_owned();
    let mut all: Vec<OsString> = vec![exe.clone().into(), "lease".into(), "--attempt".into()];
    // The task may run elsewhere than where its files are relative to.
    let absolute = |name: &String| match Resource::of_normal(name).path() {
        Some(path) => format!("file:{}", project.join(path).display()).into(),
        None => name.into(),
    };
    all.extend(task.resources.iter().map(absolute));
    all.push("--".into());
    // It was found where the project may not put one; what comes after it is as it would be.
    all.push(program.into());
    all.extend(argv.into_iter().skip(1));
    Ok((exe, all))
}

/// Writes what a task is told about the tasks it needs; the name of the file. To make one costs more than anything else
/// before a task begins: those that need nothing share one.
fn tell_needs(making: Making<'_>, task: &Task, logs: &Dir, name: &str) -> std::io::Result<String> {
    let shared = task.needs.is_empty();
    let file = if shared { "none.needs.json".to_owned() } else { format!("{name}.needs.json") };
    match logs.create_new(&file, 0o400) {
        // Nobody reads it before the task is there, and an attempt that is given up is never made again.
        Ok(made) => made.write_all_at(needs_of(making, task).to_string().as_bytes(), 0)?,
        Err(e) if shared && e.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    Ok(file)
}

/// What a task is told about what it needs: per need the state of a task, its line and the absolute path of its result, or what
/// came out of a vote.
fn needs_of(making: Making<'_>, task: &Task) -> serde_json::Value {
    let mut all = serde_json::Map::new();
    for need in &task.needs {
        if let Need::Verdict(topic, _) = need {
            let verdict = making.state.view.poll(topic).and_then(|poll| poll.verdict.as_ref());
            all.insert(need.to_string(), json!({ "verdict": verdict }));
            continue;
        }
        let index = need.task().and_then(|task| making.state.index_of(task));
        let Some(state) = index.map(|i| &making.state.tasks[i]) else { continue };
        let path = state.result.as_ref().map(|r| making.folder.path().join(&r.path));
        let mut entry = json!({ "state": state.phase.word(), "summary": state.line, "result": path });
        if let Some(name) = need.checkpoint() {
            entry["checkpoint"] = json!({ "name": name, "data": state.checkpoints.get(name) });
        }
        all.insert(need.to_string(), entry);
    }
    all.into()
}

/// The same in variables, as far as it is short.
fn need_variables(making: Making<'_>, task: &Task) -> Vec<(String, OsString)> {
    const NOTHING: &serde_json::Value = &serde_json::Value::Null;
    let told = task.needs.iter().filter_map(|need| {
        let state = &making.state.tasks[making.state.index_of(need.task()?)?];
        let path = state.result.as_ref().map(|r| making.folder.path().join(&r.path));
        let data = need.checkpoint().and_then(|name| state.checkpoints.get(name));
        Some((need, path, data.map(|data| data.as_ref().unwrap_or(NOTHING))))
    });
    environ::need_variables(told)
}

/// A private folder outside `.claude`, which the client's own tools refuse to write below.
fn scratch_folder(folder: &RunDir, name: &str) -> std::io::Result<PathBuf> {
    let run = folder.path().file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let scratch = home::State::open().and_then(|s| s.folder(run::SCRATCH)).map_err(std::io::Error::other)?;
    let dir = Dir::open(scratch)?.create_sub(format!("{run}.{name}"), 0o700)?;
    Ok(dir.path().to_owned())
}

/// Moves what a client wrote into the attempt's folder: regular files of the top level. What is there already stays as it is.
fn move_files(from: &Path, to: &Dir) {
    let Ok(folder) = Dir::open_nofollow(from) else { return };
    for name in folder.names().unwrap_or_default() {
        if let Err(error) = folder.move_file(&name, to) {
            tracing::warn!(%error, "an artifact could not be moved");
        }
    }
    drop(std::fs::remove_dir(from));
}

#[cfg(test)]
mod tests {
    use super::complaint;

    #[test]
    fn the_reason_is_what_went_wrong_and_not_the_hint_behind_it() {
        assert_eq!(complaint("one\n\ncpw: two\nhint: do three\n").as_deref(), Some("cpw: two"));
        assert_eq!(complaint("hint: alone\n\n").as_deref(), Some("hint: alone"));
        assert_eq!(complaint(" \n"), None);
    }
}
