//! `cpw retry` and `cpw resume`: a new run of the same plan, which takes over what is done. What runs is the plan that the
//! old run has recorded, if it is still the one that was started.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::actor::{again, crew, planner};
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::RunId;
use crate::cmd::{above, find, inside, run as run_cmd};
use crate::logic::again::{Fate, fates};
use crate::logic::sched;
use crate::logic::wake::Concern;
use crate::model::event::Verdict;
use crate::store::bells;
use crate::store::home::State;
use crate::store::registry;
use crate::store::run::{self, Run, RunDir};
use crate::sys::bell;
use crate::sys::clock;
use crate::sys::signals;
use crate::ui::print;

/// How long a run of an earlier boot may take to be ended, in milliseconds: nothing of it is alive.
const WAIT_MS: u64 = 20_000;

/// Between two looks, should a ring be lost.
const AGAIN: Duration = Duration::from_secs(1);

/// Run again what a run left undone; what is done is taken over
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw retry                        the newest run here: what failed, was cancelled, lost or skipped\n  \
    cpw retry 20261121-10            another run, by a unique beginning of its id\n  \
    cpw retry 20261121-10 lint       only `lint` of it, with what it needs and what needs it; the rest is left out\n  \
    cpw retry --detach               start it and return; look with `cpw status`\n\n\
    It is a new run of the plan that the old one has recorded. A task that is done, and whose result is still what it was, \
    is not run again: its result is taken over, so that the old run can be removed. Where a task runs again, everything \
    that needs it runs again as well, because its input changes. The new run belongs to this terminal and tells no \
    session.\n\n\
    Exit code: 0 every task is done · 1 the run failed, or everything was done already · 3 the run is active, not yours, or \
    being continued already · 130 cancelled by Ctrl-C")]
pub struct RetryArgs {
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    run: Option<String>,
    /// Tasks of it, each by its id or a unique beginning of it (all that are not done where absent)
    #[arg(value_name = "TASK")]
    tasks: Vec<String>,
    /// Start it and return at once
    #[arg(long)]
    detach: bool,
}

/// Go on with a run that was interrupted; what is done is taken over
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw resume 20261121-10           go on with a run that a restart of the machine or its time limit has ended\n  \
    cpw resume 20261121-10 --detach  start it and return; look with `cpw status`\n\n\
    It is a new run of the plan that the old one has recorded, with its own time limit. A task that is done, and whose \
    result is still what it was, is not run again; what was going on or had not begun is. Where a task runs again, \
    everything that needs it runs again as well. A run that came to its end with failed tasks is continued by \
    `cpw retry`.\n\n\
    Exit code: 0 every task is done · 1 the run failed, or everything was done already · 3 the run is active, was not \
    interrupted, is not yours, or is being continued already · 130 cancelled by Ctrl-C")]
pub struct ResumeArgs {
    /// The run: its id or a unique beginning of it
    run: String,
    /// Start it and return at once
    #[arg(long)]
    detach: bool,
}

/// Runs `cpw retry`.
pub fn retry(args: &RetryArgs) -> anyhow::Result<Exit> {
    go_on("retry", args.run.as_deref(), &args.tasks, args.detach)
}

/// Runs `cpw resume`.
pub fn resume(args: &ResumeArgs) -> anyhow::Result<Exit> {
    go_on("resume", Some(&args.run), &[], args.detach)
}

fn go_on(command: &str, given: Option<&str>, named: &[String], detach: bool) -> anyhow::Result<Exit> {
    let project = find::project_to_change()?;
    let ready = prepare(command, &project, &find::run(&project, given)?, named)?;
    if ready.count(Fate::Again) == 0 {
        let what = if named.is_empty() { "everything in it is done" } else { "what was named is done" };
        print::err(format_args!("cpw: run {}: {what}; nothing to run again", ready.old.plan.run));
        return Ok(Exit::Failed);
    }
    let termination = if detach { None } else { Some(signals::catch_termination()?) };
    let run = ready.start()?;
    print::err(format_args!("cpw: {}", ready.told(&run)));
    run_cmd::show(vec![run], termination.as_ref())
}

/// A run that has ended and that nobody else continues as long as this is held.
pub(super) struct Ready {
    project: PathBuf,
    old: Run,
    fates: Vec<Fate>,
    _reserved: File,
}

/// Looks what of a run is to be run again, for a person who has asked for it.
pub(super) fn prepare(command: &str, project: &Path, folder: &RunDir, named: &[String]) -> anyhow::Result<Ready> {
    above::refuse_below_client("a run is not continued", "decides that")?;
    inside::refuse_too_deep()?;
    find::refuse_foreign(folder)?;
    folder.check_locks()?;
    // Held until the new run is there: of two that come at once, the second finds it.
    let Some(reserved) = folder.reserve()? else {
        let what = "somebody else is continuing or removing this run just now";
        return Err(Wrong::with_hint(what, "`cpw status` shows what comes of it").into());
    };
    let mut old = folder.open_run()?;
    refuse_unended(&mut old)?;
    let id = old.plan.run.clone();
    if let Some(other) = active_continuation(project, &id)? {
        let what = format!("run {id} is being continued already, by run {other}");
        return Err(Wrong::with_hint(what, format!("look at it: cpw status {other}")).into());
    }
    let end = old.state.view.ended.as_ref();
    let came_to_its_end = end.is_some_and(|end| end.status == Verdict::Failed && !sched::was_cut_short(end));
    if command == "resume" && came_to_its_end {
        let what = format!("run {id} was not interrupted: tasks of it have failed");
        return Err(Wrong::with_hint(what, format!("`cpw retry {id}` runs them again")).into());
    }
    let intact = again::intact(&old);
    let named = named.iter().map(|given| find::task(&old.plan, given)).collect::<Result<Vec<_>, _>>()?;
    let fates = fates(&old.plan, &old.state, &intact, if named.is_empty() { None } else { Some(&named) });
    Ok(Ready { project: project.to_owned(), old, fates, _reserved: reserved })
}

impl Ready {
    /// Tasks with this fate.
    pub(super) fn count(&self, fate: Fate) -> usize {
        self.fates.iter().filter(|f| **f == fate).count()
    }

    /// Starts the run that goes on with it, and a worker.
    pub(super) fn start(&self) -> anyhow::Result<Run> {
        let state = State::open()?;
        let runs = planner::runs_folder(&self.project, Some(&state))?;
        let mut run = again::begin(&self.old, &self.fates, &runs, &state).context("cannot start the run")?;
        crew::hire(&mut run, None).context("cannot start a worker; `cpw status` tries again")?;
        Ok(run)
    }

    /// What `run`, which goes on with it, has to do.
    pub(super) fn told(&self, run: &Run) -> String {
        let (id, of) = (&run.plan.run, &self.old.plan.run);
        let (taken, todo, left) = (self.count(Fate::Taken), self.count(Fate::Again), self.count(Fate::Left));
        let left = if left > 0 { format!(", {left} left out") } else { String::new() };
        format!("run {id} continues {of}: {taken} taken over, {todo} to run{left}")
    }
}

/// Refuses a run that goes on. One of an earlier boot cannot: it is ended, by a worker that finds out.
fn refuse_unended(run: &mut Run) -> anyhow::Result<()> {
    if run.state.view.ended.is_some() {
        return Ok(());
    }
    let id = run.plan.run.clone();
    if run.state.view.boot_id == clock::boot_id() {
        let hint = format!("`cpw cancel --run {id}` ends it, `cpw status {id}` shows it");
        return Err(Wrong::with_hint(format!("run {id} is still active"), hint).into());
    }
    let bell = bells::hang(&run.folder, &Concern::End).context("cannot wait for the end of the run")?;
    crew::tend_run(run).context("no worker could be started to end the run")?;
    let deadline = clock::mono_ms() + WAIT_MS;
    while run.state.view.ended.is_none() {
        let now = clock::mono_ms();
        if now >= deadline {
            let hint = format!("`cpw status {id}` says more");
            return Err(Wrong::with_hint(format!("run {id} of before the restart has not ended"), hint).into());
        }
        bell::wait(&[&bell], &[], Duration::from_millis(deadline - now).min(AGAIN)).context("cannot wait")?;
        bell.drain();
        run.refresh().map_err(|e| run.folder.told(e))?;
    }
    Ok(())
}

/// The run that continues `id` now, if there is one.
fn active_continuation(project: &Path, id: &RunId) -> anyhow::Result<Option<RunId>> {
    let newer = run::list(project)?.into_iter().take_while(|other| other > id);
    let continues = |folder: &RunDir| folder.plan().is_ok_and(|(plan, _)| plan.from.as_ref() == Some(id));
    let goes_on = |folder: &RunDir| folder.open_view().is_ok_and(|hooked| hooked.view.ended.is_none());
    let is_active = |other: &RunId| {
        RunDir::open(project, other).is_ok_and(|f| continues(&f) && registry::is_ours(&f) && goes_on(&f))
    };
    Ok(newer.into_iter().find(is_active))
}
