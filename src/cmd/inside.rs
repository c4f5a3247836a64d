//! Who asks, for commands that only make sense inside a task: the run, task and attempt that the worker put into its
//! environment.
//!
//! An attempt is recognised by its number: a task never has the same number twice in a run, so that a late word of an
//! attempt that was given up finds another number open, or none.

use std::path::Path;

use anyhow::{Context, bail};

use crate::base::env::{self, MAX_DEPTH};
use crate::base::exit::Wrong;
use crate::base::ids::{TaskId, WorkerNo};
use crate::logic::view::{Phase, View};
use crate::model::event::{Body, Draft};
use crate::store::log::{LogError, Tx};
use crate::store::run::{RunDir, WORKER_LOCK};
use crate::sys::process;
use crate::sys::spawn;

/// The attempt that this process belongs to.
#[derive(Debug)]
pub struct Inside {
    /// Its run's folder.
    pub folder: RunDir,
    /// Its task.
    pub task: TaskId,
    /// Which try, from 1.
    pub attempt: u32,
    /// Who runs it.
    pub worker: WorkerNo,
}

impl Inside {
    /// Writes what the attempt says, while it is open; an error where it is over.
    pub fn say(&self, body: Body) -> anyhow::Result<()> {
        self.say_with(|_, _| Ok(body)).map(drop)
    }

    /// As [`Inside::say`], what is made from the run's view and the number that the event will have, under the log's lock.
    /// Returns that number.
    pub fn say_with(&self, make: impl FnOnce(&View, u64) -> anyhow::Result<Body>) -> anyhow::Result<u64> {
        self.within(|tx| match make(tx.fold, tx.fold.seq + 1) {
            Ok(body) => self.emit(tx, body).map(Ok),
            Err(e) => Ok(Err(e)),
        })
    }

    /// Adds what the attempt says to a transaction; returns its number.
    pub fn emit(&self, tx: &mut Tx<'_, View>, body: Body) -> Result<u64, LogError> {
        tx.emit(Draft::attempt(Some(self.worker), &self.task, self.attempt, body))
    }

    /// One transaction of the attempt, while it is open; an error where it is over.
    pub fn within<T>(
        &self,
        act: impl FnOnce(&mut Tx<'_, View>) -> Result<anyhow::Result<T>, LogError>,
    ) -> anyhow::Result<T> {
        let Inside { folder, task, attempt, .. } = self;
        let mut hooked = folder.open_view()?;
        let written = hooked.transact_within(WORKER_LOCK, folder, |tx| {
            let open = tx.fold.ended.is_none()
                && tx.fold.tasks.get(task).is_some_and(|t| t.phase == Phase::Running && t.attempt == *attempt);
            if !open {
                return Ok(None);
            }
            act(tx).map(Some)
        });
        match written.context("cannot write to the run's log")? {
            Some(said) => said,
            None => bail!("attempt {attempt} of {task} is over; nothing was written"),
        }
    }
}

/// The attempt that this process belongs to; an error that names what is missing where it belongs to none.
pub fn attempt(command: &str) -> anyhow::Result<Inside> {
    let missing: Vec<&str> = [env::RUN_DIR, env::TASK, env::ATTEMPT, env::TOKEN, env::WORKER]
        .into_iter()
        .filter(|name| std::env::var_os(name).is_none_or(|v| v.is_empty()))
        .collect();
    if !missing.is_empty() {
        let what = format!("`cpw {command}` works inside a task only; not set: {}", missing.join(", "));
        return Err(Wrong::with_hint(what, "call it from a task's command; its worker sets these variables").into());
    }
    let value = |name: &str| std::env::var(name).unwrap_or_default();
    let wrong = |name: &str| Wrong::new(format!("{name} is '{}', which no worker has set", value(name)));
    let task = TaskId::new(&value(env::TASK)).map_err(|_| wrong(env::TASK))?;
    let attempt = value(env::ATTEMPT).parse().map_err(|_| wrong(env::ATTEMPT))?;
    let worker = value(env::WORKER).parse().map_err(|()| wrong(env::WORKER))?;
    let path = value(env::RUN_DIR);
    let run = Path::new(&path).file_name().unwrap_or_default().to_string_lossy();
    if spawn::is_of_another(&run, task.as_str(), attempt) {
        let what = format!(
            "{}, {} and {} name another attempt than the one that this belongs to",
            env::RUN_DIR,
            env::TASK,
            env::ATTEMPT
        );
        return Err(Wrong::with_hint(what, "call it with the variables that the task was given").into());
    }
    let folder = RunDir::open_path(Path::new(&path)).with_context(|| format!("cannot open the run in {path}"))?;
    Ok(Inside { folder, task, attempt, worker })
}

/// The folder of the run that this process is a task of, if it is one.
pub fn own_run() -> anyhow::Result<Option<RunDir>> {
    let Some(path) = std::env::var_os(env::RUN_DIR).filter(|v| !v.is_empty()) else { return Ok(None) };
    let shown = path.to_string_lossy().into_owned();
    RunDir::open_path(Path::new(&path)).map(Some).with_context(|| format!("cannot open the run in {shown}"))
}

/// Fails where a task wants to start a run and is too deep in others already, or does not show how deep it is: a plan whose
/// task runs the plan again comes to an end.
pub fn refuse_too_deep() -> anyhow::Result<()> {
    let said = std::env::var_os(env::DEPTH);
    match depth_verdict(env::depth(said.as_deref()), || said.is_none() && process::is_below_worker()) {
        Ok(()) => Ok(()),
        Err(wrong) => Err(wrong.into()),
    }
}

fn depth_verdict(depth: u32, is_cleaned: impl FnOnce() -> bool) -> Result<(), Wrong> {
    if depth >= MAX_DEPTH {
        let what = format!("this task is part of {MAX_DEPTH} runs, one inside the other; it starts no further one");
        return Err(Wrong::with_hint(
            what,
            "does its plan run itself? Let the outer run have the tasks of the inner one",
        ));
    }
    if is_cleaned() {
        let what = format!("this is part of a task, but {} is not set; no run is started", env::DEPTH);
        return Err(Wrong::with_hint(what, "start it with the variables CPW_… that the task was given"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_inside_runs_come_to_an_end() {
        let refused = |depth, cleaned| depth_verdict(depth, || cleaned).err().map(|e| e.to_string());
        assert_eq!((refused(0, false), refused(1, false), refused(MAX_DEPTH - 1, false)), (None, None, None));
        for depth in [MAX_DEPTH, u32::MAX] {
            assert!(refused(depth, false).is_some_and(|why| why.contains("no further one")));
        }
        assert!(refused(0, true).is_some_and(|why| why.contains("CPW_DEPTH is not set")));
    }
}
