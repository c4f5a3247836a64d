//! `cpw worker`: what the prompt hook starts, detached, as `--run R --slot W`; and, for debugging, one task in the foreground
//! with its output on the terminal.

use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::actor::starter::Starter;
use crate::actor::worker::Worker;
use crate::actor::{crew, planner, starter};
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::{SessionId, WorkerNo};
use crate::base::redact::redact;
use crate::base::text;
use crate::base::trace;
use crate::cmd::{above, find};
use crate::logic::step::Duty;
use crate::logic::view::Phase;
use crate::model::event::Verdict;
use crate::model::plan::Plan;
use crate::store::home::State;
use crate::store::registry;
use crate::store::run::{self, Origin, Run, RunDir};
use crate::sys::signals;
use crate::sys::spawn;
use crate::ui::print;

/// How often a foreground task's output is looked at.
const TAIL: Duration = Duration::from_millis(100);

/// Run one task in the foreground, or work on a run as one of its workers
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw worker --task analyze-api             one task of the newest run here, its output on the terminal\n  \
    cpw worker --task build --plan plan.json  the same, of a plan file, without what it needs\n  \
    cpw worker --run 20261121-10              help with a run until nothing is left to do\n\n\
    It refuses to work inside Claude Code, and on a run that your cpw has not made.")]
pub struct Args {
    /// The task to run once, in the foreground
    #[arg(long)]
    task: Option<String>,
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(long, conflicts_with = "plan")]
    run: Option<String>,
    /// A plan file: makes a new run of the one task
    #[arg(long, requires = "task")]
    plan: Option<std::path::PathBuf>,
    /// Also when what it needs is not done
    #[arg(long, requires = "task")]
    force: bool,
    /// Set by cpw for a worker that it starts itself; stdin is then the lock of its life
    #[arg(long, hide = true, requires = "run")]
    slot: Option<String>,
    /// Set by cpw for the process that starts a rule after tool calls; stdin is then the lock of its life
    #[arg(long, hide = true, requires = "session", conflicts_with_all = ["task", "run", "plan", "slot"])]
    after_tool: Option<String>,
    /// With it: the session whose calls they are
    #[arg(long, hide = true, requires = "after_tool")]
    session: Option<String>,
    /// With it: the session's client, as PID:START
    #[arg(long, hide = true, requires = "after_tool")]
    client: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if let Some(slot) = &args.slot {
        return slot_of(args, slot);
    }
    if let (Some(rule), Some(session)) = (&args.after_tool, &args.session) {
        let live = spawn::adopt_live_lock().context("cpw starts this itself")?;
        let session = SessionId::new(session).map_err(|e| Wrong::new(format!("'{session}' {e}")))?;
        let client = args.client.as_deref().and_then(starter::client_of);
        Starter::new(State::open()?, session, rule, client)?.run(&live);
        return Ok(Exit::Ok);
    }
    // Also of a run that goes on: which of its tasks run when is for its workers to say.
    above::refuse_below_client("no task is run by hand", "decides that")?;
    let project = find::project_to_change()?;
    let Some(task) = &args.task else {
        return help_with(own(&project, args)?);
    };
    let (mut run, index) = if let Some(file) = &args.plan {
        let plan = crate::cmd::plan::read(file, run::new_id())?;
        single(&project, &plan, task)?
    } else {
        let run = own(&project, args)?;
        if run.state.view.ended.is_some() {
            // After its end a run takes no further attempt: the task runs again in a run of its own.
            let mut plan = run.plan.clone();
            plan.run = run::new_id();
            plan.session = None;
            single(&project, &plan, task)?
        } else {
            let index = find::task(&run.plan, task)?;
            (run, index)
        }
    };
    check(&run, index, args.force)?;
    may_work(&run)?;
    let (me, live) = crew::enlist(&run.folder, run.state.view.last_worker)?;
    let id = run.plan.tasks[index].id.clone();
    print::err(format_args!("cpw: run {} · task {id} · {me}", run.plan.run));
    let termination = signals::catch_termination()?;
    let number = run.state.tasks[index].attempts.saturating_add(1);
    run.save_index(true);
    let mut tail = Tail::new(run.folder.again()?, me, &id, number);
    let run = Worker::new(run, me, live, Duty::Only(index))?.work(&termination, Some(TAIL), |_| tail.print())?;
    tail.print();
    let state = &run.state.tasks[index];
    if let Some(line) = &state.line {
        print::err(format_args!("cpw: {} {}: {}", id, state.phase.word(), text::one_line(line, 300)));
    }
    if let Some(result) = &state.result {
        print::err(format_args!("cpw: result in {}/{}", run.folder.shown(), result.path));
    }
    Ok(if state.phase == Phase::Done { Exit::Ok } else { Exit::Failed })
}

/// The run that is meant. What came from elsewhere is not worked on, nor is its plan.
fn own(project: &std::path::Path, args: &Args) -> anyhow::Result<Run> {
    let folder = find::run(project, args.run.as_deref())?;
    find::refuse_foreign(&folder)?;
    Ok(folder.open_run()?)
}

/// A new run of one task of `plan`, without what it needs.
fn single(project: &std::path::Path, plan: &Plan, task: &str) -> anyhow::Result<(Run, usize)> {
    let index = find::task(plan, task)?;
    let mut only = plan.clone();
    only.tasks = vec![plan.tasks[index].clone()];
    only.tasks[0].needs.clear();
    only.merge.clear();
    planner::settle_resources(project, &mut only).map_err(|problem| Wrong::new(problem.to_string()))?;
    let origin = Origin::default();
    let state = State::open()?;
    let runs = planner::runs_folder(project, Some(&state))?;
    let folder = RunDir::create_in(project, &runs, &only, &origin)?;
    Ok((folder.start(&state, &only, &origin)?, 0))
}

/// Before anything is made: a damaged log, or one of a newer cpw, gets no worker.
fn may_work(run: &Run) -> anyhow::Result<()> {
    let state = &run.state;
    Ok(crew::check_log(&run.folder, &run.log, &state.view).map_err(|e| run.folder.told(e))?)
}

fn check(run: &Run, index: usize, force: bool) -> anyhow::Result<()> {
    let id = &run.plan.tasks[index].id;
    let task = &run.state.tasks[index];
    let wrong = |what: String, hint: &str| Err(Wrong::with_hint(what, hint).into());
    match task.phase {
        Phase::Running => wrong(format!("an attempt of {id} is open"), "wait for it, or `cpw cancel` it first"),
        Phase::Waiting if !force => {
            wrong(format!("{id} needs tasks that are not done"), "--force runs it all the same")
        }
        phase if phase.is_final() => wrong(
            format!("{id} is {} already", phase.word()),
            "a task runs again in a new run, once this one has ended",
        ),
        _ => Ok(()),
    }
}

fn help_with(run: Run) -> anyhow::Result<Exit> {
    if run.state.view.ended.is_some() {
        print::err(format_args!("cpw: run {} has ended", run.plan.run));
        return Ok(Exit::Ok);
    }
    may_work(&run)?;
    let (me, live) = crew::enlist(&run.folder, run.state.view.last_worker)?;
    print::err(format_args!("cpw: working on run {} as {me}", run.plan.run));
    let termination = signals::catch_termination()?;
    let run = Worker::new(run, me, live, Duty::Slot)?.work(&termination, None, |_| {})?;
    let failed = run.state.view.ended.as_ref().is_some_and(|e| e.status != Verdict::Ok);
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

/// The detached worker: its log is a file, its life is the lock on stdin.
fn slot_of(args: &Args, slot: &str) -> anyhow::Result<Exit> {
    let me: WorkerNo = slot.parse().map_err(|()| Wrong::new(format!("'{slot}' is not a worker, such as W1")))?;
    let live = spawn::adopt_live_lock().context("a slot is started by cpw itself")?;
    // Held until the process ends.
    let _seat = spawn::adopt_seat()?;
    let project = std::env::current_dir()?;
    let folder = find::run(&project, args.run.as_deref())?;
    if !registry::is_ours(&folder) {
        return Err(Wrong::new(registry::FOREIGN).into());
    }
    let Ok(logs) = folder.worker(me).and_then(|w| w.sub("logs")) else { bail!("{me} has no folder") };
    log_to(logs.open_append("worker.jsonl")?);
    let termination = signals::catch_termination()?;
    signals::ignore_write_signals()?;
    let result = folder.open_run().map_err(anyhow::Error::from).and_then(|run| {
        let span = trace::span_of_run(run.plan.run.as_str());
        let _scope = tracing::error_span!("run", worker = %me, trace = run.state.trace, span).entered();
        Worker::new(run, me, live, Duty::Slot)?.work(&termination, None, |_| {}).map_err(anyhow::Error::from)
    });
    match result {
        Ok(_) => Ok(Exit::Ok),
        Err(e) => {
            tracing::error!(error = format!("{e:#}"), "the worker gives up");
            Ok(Exit::Failed)
        }
    }
}

/// From here on `tracing` writes to `file`, one JSON object a line.
fn log_to(file: File) {
    let file = std::sync::Mutex::new(Redacted(file));
    let subscriber = tracing_subscriber::fmt().json().with_writer(file).finish();
    // Only one worker runs in a process; a second subscriber would be a bug that costs only log lines.
    drop(tracing::subscriber::set_global_default(subscriber));
}

/// A log whose lines are written without secrets.
struct Redacted(File);

impl Write for Redacted {
    /// Takes a whole line, as the subscriber writes it.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        fn walk(value: &mut serde_json::Value) {
            match value {
                serde_json::Value::String(text) => *text = redact(text).into_owned(),
                serde_json::Value::Array(all) => all.iter_mut().for_each(walk),
                serde_json::Value::Object(all) => all.values_mut().for_each(walk),
                _ => {}
            }
        }
        let mut value: serde_json::Value = serde_json::from_slice(line)?;
        walk(&mut value);
        self.0.write_all(format!("{value}\n").as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// The output of an attempt as it grows, shown on the terminal.
struct Tail {
    folder: RunDir,
    names: [String; 2],
    me: WorkerNo,
    files: [Option<File>; 2],
}

impl Tail {
    fn new(folder: RunDir, me: WorkerNo, task: &crate::base::ids::TaskId, number: u32) -> Tail {
        Tail { folder, names: run::output_names(task, number), me, files: [None, None] }
    }

    fn print(&mut self) {
        for (file, name) in self.files.iter_mut().zip(&self.names) {
            if file.is_none() {
                *file = self.folder.worker(self.me).and_then(|w| w.sub("logs")?.open_read(name)).ok();
            }
            let Some(file) = file else { continue };
            let mut bytes = Vec::new();
            if file.read_to_end(&mut bytes).is_ok_and(|n| n > 0) {
                if std::io::stdout().is_terminal() {
                    // Without its escape sequences; colours in it are the task's own.
                    print::raw(text::for_terminal(&String::from_utf8_lossy(&bytes)).as_bytes());
                } else {
                    print::raw(&bytes);
                }
            }
        }
    }
}
