//! `cpw cancel`: asks for a run, or one of its tasks, to be cancelled, and says what came of it.

use std::time::Duration;

use anyhow::Context;

use crate::actor::vigil::Vigil;
use crate::base::exit::Exit;
use crate::cmd::{find, follow, inside};
use crate::logic::wake::Concern;
use crate::model::event::{Body, CancelRequested, Draft};
use crate::store::bells;
use crate::store::log::LogError;
use crate::store::run::{Run, RunDir};
use crate::sys::bell;
use crate::sys::clock;
use crate::ui::lines;
use crate::ui::print;

/// How long the effect is waited for, in milliseconds: longer than a task gets between SIGTERM and SIGKILL, and than a
/// worker that was stopped gets.
const WAIT_MS: u64 = 12_000;

/// Between two looks, should a ring be lost.
const AGAIN: Duration = Duration::from_secs(1);

/// Cancel a run, or one of its tasks
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw cancel                    the newest run here, all of it\n  \
    cpw cancel build              only the task `build` of it, and what needs it\n  \
    cpw cancel --run 20261121-10  another run, by a unique beginning of its id\n\n\
    Inside a task it means the task's own run.\n\
    Exit code: 0 it is cancelled, or going to be · 1 there was nothing to cancel any more")]
pub struct Args {
    /// The task: its id or a unique beginning of it (the whole run where absent)
    task: Option<String>,
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    // A task that cancels means its own run: the newest one may be somebody else's.
    let own = if args.run.is_none() { inside::own_run()? } else { None };
    let folder = match own {
        Some(own) => own,
        None => find::run(&find::project()?, args.run.as_deref())?,
    };
    check(&folder)?;
    let mut run = folder.open_run()?;
    let index = args.task.as_deref().map(|given| find::task(&run.plan, given)).transpose()?;
    // Hung before asking: the answer may come at once.
    let concern = index.map_or(Concern::End, |i| Concern::Task(run.plan.tasks[i].id.clone()));
    let bell = bells::hang(&run.folder, &concern).context("cannot wait for the effect")?;
    let asked = request(&mut run, index)?;
    let id = run.plan.run.clone();
    if !asked {
        match (index, &run.state.view.ended) {
            (Some(i), _) if run.state.tasks[i].phase.is_final() => {
                let phase = run.state.tasks[i].phase.word();
                print::out(format_args!("{} is {phase} already; nothing to cancel", run.plan.tasks[i].id));
            }
            (_, Some(end)) => {
                let verdict = lines::verdict(end.status);
                print::out(format_args!("run {id} has ended already: {verdict}; nothing to cancel"));
            }
            _ => print::out("nothing to cancel"),
        }
        return Ok(Exit::Failed);
    }
    let over = |run: &Run| index.map_or(run.state.view.ended.is_some(), |i| run.state.tasks[i].phase.is_final());
    let deadline = clock::mono_ms() + WAIT_MS;
    // Somebody has to act on it, also if all workers are dead by now, or die before they have.
    let mut vigil = Vigil::default();
    loop {
        bell.drain();
        run.refresh().map_err(|e| run.folder.told(e))?;
        let now = clock::mono_ms();
        if over(&run) || now >= deadline {
            break;
        }
        match vigil.keep(&mut run) {
            Ok(_) | Err(LogError::Busy) => {}
            Err(e) => return Err(e).context("the wish is in the log, but no worker could be started to act on it"),
        }
        let left = Duration::from_millis(deadline - now).min(AGAIN);
        let ready = bell::wait(&[&bell], vigil.fd().as_slice(), left).context("cannot wait for the effect")?;
        if ready.first() == Some(&true) {
            vigil.died();
        }
    }
    let tally = lines::tally(run.state.view.counts);
    match index {
        Some(i) if over(&run) => {
            let task = &run.state.tasks[i];
            print::out(format_args!("{} is {}", run.plan.tasks[i].id, task.phase.word()));
        }
        None if over(&run) => {
            let verdict = run.state.view.ended.as_ref().map_or("ended", |e| lines::verdict(e.status));
            print::out(format_args!("run {id} is {verdict}: {tally}"));
        }
        _ => print::out(format_args!("asked run {id} to cancel; it is still ending its tasks (`cpw status {id}`)")),
    }
    Ok(Exit::Ok)
}

/// Refuses a run in which nothing may be changed from here.
pub(super) fn check(folder: &RunDir) -> anyhow::Result<()> {
    find::refuse_foreign(folder)?;
    Ok(folder.check_locks()?)
}

/// Asks for the whole run, or for one task of it; `false` if there is nothing to cancel.
pub(super) fn request(run: &mut Run, index: Option<usize>) -> anyhow::Result<bool> {
    match index {
        None => follow::request_cancel(run, "user"),
        Some(i) => request_task(run, i),
    }
}

/// Asks for one task; `false` if there is nothing to cancel.
fn request_task(run: &mut Run, i: usize) -> anyhow::Result<bool> {
    let asked = run.transact(|tx, plan| {
        if tx.fold.view.ended.is_some() || tx.fold.tasks[i].phase.is_final() {
            return Ok(false);
        }
        if !tx.fold.cancels.contains(&i) && !tx.fold.view.cancelled {
            let wish = Body::CancelRequested(CancelRequested { by: "user".into() });
            tx.emit(Draft::task(&plan.tasks[i].id, wish))?;
        }
        Ok(true)
    });
    asked.context("cannot ask for the task to be cancelled")
}
