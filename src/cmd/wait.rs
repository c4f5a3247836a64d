//! `cpw wait`: waits until a task is done, a run has ended, or the session has made a call, and tells which by its exit code. Sleeps until a bell rings;
//! a run whose workers are all dead gets a new one, as with every command that looks.

use std::fmt::Display;
use std::time::Duration;

use anyhow::Context;

use crate::actor::crew::{self, Tended};
use crate::actor::vigil::Vigil;
use crate::base::env;
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::TaskId;
use crate::base::span::Span;
use crate::base::text::one_line;
use crate::cmd::{find, inside};
use crate::logic::conductor;
use crate::logic::state::State;
use crate::logic::view::{MAX_AWAITING, Phase, View};
use crate::logic::wake::Concern;
use crate::model::event::{Awaited, Body, Draft, Verdict};
use crate::model::matcher::Matcher;
use crate::model::plan::Plan;
use crate::store::bells;
use crate::store::log::{LogError, Tape};
use crate::store::registry;
use crate::store::run::{Run, RunDir};
use crate::sys::bell;
use crate::sys::clock;
use crate::sys::signals;
use crate::ui::lines;
use crate::ui::print;

/// Wait until a task is done, a run has ended, or the session has made a call
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw wait --run                    until the newest run here has ended\n  \
    cpw wait --task build             until its task `build` is done\n  \
    cpw wait --run 20261121-10        another run, by a unique beginning of its id\n  \
    cpw wait --task build --timeout 5m && ./deploy.sh\n  \
    cpw wait --conductor 'Read(data1.csv)' --timeout 30s   until the session reads it, or tries to\n  \
    cpw wait --conductor 'Bash(git commit*)'               until it commits\n\n\
    Inside a task it means the task's own run. Waiting costs nothing while nothing happens.\n\
    A call of the session counts also if it was made before, where a task claimed its file.\n\
    Exit code: 0 the task is done, the run is ok, the call was made · 1 that can no longer happen, and why · 4 not within --timeout · \
    130 Ctrl-C, which ends only the waiting")]
pub struct Args {
    /// The task to wait for: its id or a unique beginning of it
    #[arg(long, value_name = "TASK", required_unless_present_any = ["end", "conductor"],
        conflicts_with_all = ["end", "conductor"])]
    task: Option<String>,
    /// Wait until the session makes such a call, or tries to: a tool, and in parentheses a glob over its file or command
    #[arg(long, value_name = "CALL", conflicts_with = "end")]
    conductor: Option<String>,
    /// Wait for the end of the run
    #[arg(long = "run")]
    end: bool,
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// How long to wait at most, such as 30s or 5m (for ever where absent)
    #[arg(long, value_parser = span)]
    timeout: Option<Span>,
}

fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).ok_or_else(|| "a duration is written 30s, 5m or 1h".to_owned())
}

/// What is waited for.
#[derive(Debug, Clone, Copy)]
enum Aim {
    /// The outcome of this task, by its place in the plan.
    Task(usize),
    /// The end of the run.
    End,
    /// A call of the session.
    Call,
}

/// What became of it.
enum Came {
    /// It happened.
    Yes(String),
    /// It cannot happen any more.
    Never(String),
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (folder, own) = match args.run.as_deref() {
        None => match inside::own_run()? {
            Some(own) => (own, std::env::var(env::TASK).ok().and_then(|id| TaskId::new(&id).ok())),
            None => (find::run(&find::project()?, None)?, None),
        },
        given => (find::run(&find::project()?, given)?, None),
    };
    let begun = clock::mono_ms();
    let mut run = folder.open_run()?;
    let aim = match args.task.as_deref() {
        Some(given) => Aim::Task(find::task(&run.plan, given)?),
        None if args.conductor.is_some() => Aim::Call,
        None => Aim::End,
    };
    // Inside a task of the run, its own worker is alive; and a worker that a task starts would end with the task.
    let inside = own.is_some();
    if let Some(own) = own {
        refuse_a_circle(&run.plan, &own, aim)?;
    }
    let termination = signals::catch_termination()?;
    let concern = match aim {
        Aim::Task(i) => Concern::Task(run.plan.tasks[i].id.clone()),
        Aim::End => Concern::End,
        Aim::Call => Concern::Observed,
    };
    let bell = bells::hang(&folder, &concern).context("cannot wait for news of the run")?;
    let mut call = args.conductor.as_deref().map(|call| Call::await_in(&folder, call, inside)).transpose()?;
    let mut vigil = Vigil::default();
    loop {
        bell.drain();
        if termination.take().is_some() {
            return Ok(Exit::Interrupted);
        }
        run.refresh()?;
        let seen = call.as_mut().map(Call::look).transpose()?.flatten();
        let came = match seen.map(Came::Yes).or_else(|| came(&run, aim)) {
            None if !inside => tend(&mut vigil, &mut run, &folder)?,
            came => came,
        };
        match came {
            Some(Came::Yes(what)) => {
                print::out(what);
                return Ok(Exit::Ok);
            }
            Some(Came::Never(why)) => {
                print::err(format_args!("cpw: {why}"));
                return Ok(Exit::Failed);
            }
            None => {}
        }
        let passed = Duration::from_millis(clock::mono_ms().saturating_sub(begun));
        let left = args.timeout.map(|limit| limit.to_std().saturating_sub(passed));
        if left.is_some_and(|left| left.is_zero()) {
            print::err(format_args!("cpw: {}; not waited for any longer", stands(&run, aim)));
            return Ok(Exit::TimedOut);
        }
        let mut fds = vec![termination.fd()];
        fds.extend(vigil.fd());
        let longest = vigil.longest();
        let ready = bell::wait(&[&bell], &fds, left.map_or(longest, |left| left.min(longest)))?;
        if ready.get(1) == Some(&true) {
            vigil.died();
        }
    }
}

/// Sees to it that somebody works on the run; without anybody, it cannot happen.
fn tend(vigil: &mut Vigil, run: &mut Run, folder: &RunDir) -> anyhow::Result<Option<Came>> {
    let never = |why: &str| Some(Came::Never(format!("run {} does not go on: {why}", folder.shown())));
    match vigil.keep(run) {
        // Busy: the next look tries again. Ended meanwhile: the next look sees it.
        Ok(Tended::Alive | Tended::Hired(_)) | Err(LogError::Busy) => Ok(None),
        Ok(Tended::Nobody) if run.state.view.ended.is_some() => Ok(None),
        Ok(Tended::Nobody) => Ok(never("its workers die again and again; see workers/*/logs/worker.jsonl in it")),
        Ok(Tended::Foreign) if crew::anybody(folder, &run.state.view) => Ok(None),
        Ok(Tended::Foreign) => Ok(never(registry::FOREIGN)),
        Err(e) => Err(e).context("no worker is alive and none could be started"),
    }
}

/// A task that waits for itself, for what needs it, or for the end of its run, waits for ever.
fn refuse_a_circle(plan: &Plan, own: &TaskId, aim: Aim) -> Result<(), Wrong> {
    let refuse = |why: &dyn Display| Err(Wrong::new(format!("task {own} would wait for ever: {why}")));
    let aim = match aim {
        Aim::Task(aim) => aim,
        Aim::End => return refuse(&"its run ends after it"),
        Aim::Call => return Ok(()),
    };
    let wanted = &plan.tasks[aim].id;
    if wanted == own {
        return refuse(&"it cannot be done while it waits");
    }
    let mut behind = vec![wanted];
    let mut next = 0;
    while let Some(id) = behind.get(next).copied() {
        next += 1;
        let needs = plan.tasks.iter().filter(|t| t.id == *id).flat_map(|t| &t.needs);
        for need in needs {
            let Some(need) = need.task() else { continue };
            if need == own {
                return refuse(&format_args!("{wanted} needs it"));
            }
            if !behind.contains(&need) {
                behind.push(need);
            }
        }
    }
    Ok(())
}

fn came(run: &Run, aim: Aim) -> Option<Came> {
    let Run { plan, state, .. } = run;
    match aim {
        Aim::End => {
            let end = state.view.ended.as_ref()?;
            let said = format!(
                "run {} is {}: {}, {}",
                plan.run,
                lines::verdict(end.status),
                one_line(&end.reason, 200),
                lines::tally(state.view.counts)
            );
            Some(if end.status == Verdict::Ok { Came::Yes(said) } else { Came::Never(said) })
        }
        Aim::Call => {
            let never = |why: &str| Some(Came::Never(format!("run {} {why}", plan.run)));
            if state.view.ended.is_some() {
                return never("has ended: no call of the session is written down any more");
            }
            state.view.session.is_none().then(|| never("belongs to no session")).flatten()
        }
        Aim::Task(i) => {
            let (task, spec) = (&state.tasks[i], &plan.tasks[i]);
            if !task.phase.is_final() {
                return None;
            }
            let line = task.line.as_deref().map(|line| format!(": {}", one_line(line, 300))).unwrap_or_default();
            let said = format!("{} is {}{line}", spec.id, task.phase.word());
            // As for those that need it: where it may fail, its failure counts.
            let tolerated = spec.allow_failure && matches!(task.phase, Phase::Failed | Phase::TimedOut | Phase::Lost);
            Some(if task.phase == Phase::Done || tolerated { Came::Yes(said) } else { Came::Never(said) })
        }
    }
}

/// Waiting for a call of the session: hooks write such calls down for as long as the log says that somebody waits.
struct Call {
    folder: RunDir,
    tape: Tape,
    matcher: Matcher,
    id: u64,
}

impl Call {
    /// Says so in the log: for the attempt that this process belongs to, where it does, and else for nobody's.
    fn await_in(folder: &RunDir, call: &str, inside: bool) -> anyhow::Result<Call> {
        let matcher = Matcher::parse(call).map_err(|why| Wrong::new(format!("'{call}': {why}")))?;
        let awaited = |view: &View, id| {
            let room = view.awaiting.len() < MAX_AWAITING;
            anyhow::ensure!(room, "{MAX_AWAITING} wait for calls of the session already");
            Ok(Body::Awaited(Awaited { id, matcher: Some(matcher.to_string()), on: None, done: false }))
        };
        let id = if inside {
            inside::attempt("wait --conductor")?.say_with(awaited)?
        } else {
            let said = folder.open_view()?.transact(folder, |tx| {
                if tx.fold.ended.is_some() {
                    return Ok(Ok(0));
                }
                match awaited(tx.fold, tx.fold.seq + 1) {
                    Ok(body) => tx.emit(Draft::run(body)).map(Ok),
                    Err(e) => Ok(Err(e)),
                }
            });
            said.context("cannot write to the run's log")??
        };
        Ok(Call { folder: folder.again()?, tape: folder.tape()?, matcher, id })
    }

    /// The call, if it was made.
    fn look(&mut self) -> anyhow::Result<Option<String>> {
        let project = self.folder.project.to_string_lossy().into_owned();
        let mut seen = None;
        self.tape.read(|event| {
            let Body::Observed(p) = &event.body else { return };
            let paths: Vec<String> = conductor::path_field(&p.tool).map(|_| p.target.clone()).into_iter().collect();
            if p.awaited.contains(&self.id) || self.matcher.matches(&p.tool, &p.target, &paths, &project) {
                let phase = if p.phase == "before" { "is about to make" } else { "has made" };
                let target = one_line(&p.target, 200);
                seen.get_or_insert_with(|| format!("the session {phase} the call {}({target})", one_line(&p.tool, 60)));
            }
        })?;
        Ok(seen)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Where that cannot be said, it ends with the attempt or the run.
        let Ok(mut hooked) = self.folder.open_view() else { return };
        let over = Draft::run(Body::Awaited(Awaited { id: self.id, matcher: None, on: None, done: true }));
        drop(hooked.transact(&self.folder, |tx| {
            let waits = tx.fold.awaiting.iter().any(|a| a.id == self.id);
            if waits { tx.emit(over).map(drop) } else { Ok(()) }
        }));
    }
}

/// How it stands while it has not come.
fn stands(run: &Run, aim: Aim) -> String {
    let Run { plan, state, .. } = run;
    match aim {
        Aim::End => format!("run {} is still active ({})", plan.run, lines::tally(state.view.counts)),
        Aim::Call => format!("the session has made no such call (run {})", plan.run),
        Aim::Task(i) => format!("{} is still {}", plan.tasks[i].id, task_stands(state, i)),
    }
}

fn task_stands(state: &State, i: usize) -> String {
    let task = &state.tasks[i];
    task.percent.map_or_else(|| task.phase.word().to_owned(), |p| format!("{} ({p} %)", task.phase.word()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};

    #[test]
    fn a_task_may_wait_for_what_does_not_wait_for_it() {
        let id = |name: &str| TaskId::new(name).unwrap();
        let mut tasks: Vec<_> = ["a", "b", "c", "d"].map(task).into();
        tasks[1].needs = vec![id("a").into()];
        tasks[2].needs = vec![id("b").into()];
        let plan = plan(tasks);
        let refused = |own: &str, aim| refuse_a_circle(&plan, &id(own), aim).err().map(|e| e.what);
        assert_eq!(refused("b", Aim::Task(0)), None);
        assert_eq!(refused("a", Aim::Task(3)), None);
        assert_eq!(refused("a", Aim::Task(2)).unwrap(), "task a would wait for ever: c needs it");
        assert_eq!(refused("a", Aim::Task(0)).unwrap(), "task a would wait for ever: it cannot be done while it waits");
        assert_eq!(refused("d", Aim::End).unwrap(), "task d would wait for ever: its run ends after it");
    }
}
