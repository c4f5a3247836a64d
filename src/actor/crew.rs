//! Workers as processes: starting one, and telling a dead one from a living one by its lock, never by its pid. Used by
//! hooks and commands as well as by workers, so that a run whose workers are all dead goes on with whoever comes next.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;

use crate::actor::{environ, hung};
use crate::base::ids::WorkerNo;
use crate::logic::step;
use crate::logic::view::View;
use crate::model::event::{Body, Draft, Process, SCHEMA};
use crate::store::log::{Log, LogError};
use crate::store::registry;
use crate::store::run::{Hooked, LIVE_LOCK, Run, RunDir, WORKERS};
use crate::sys::clock;
use crate::sys::lock::{self, Probe};
use crate::sys::process;
use crate::sys::spawn::{self, EnvChange, Locks};

/// Whether a worker is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It holds its lock.
    Alive,
    /// Nobody holds its lock, so it is dead, also if its pid is in use again.
    Dead,
}

/// Looks whether a worker is alive. `process` decides only where its lock file is gone.
pub fn life(folder: &RunDir, worker: WorkerNo, process: &Process) -> Life {
    let probe = folder.worker(worker).and_then(|d| d.open_read(LIVE_LOCK)).and_then(|f| lock::try_shared_probe(&f));
    match probe {
        Ok(Probe::Held) => Life::Alive,
        Err(_) if process::alive(process) => Life::Alive,
        Ok(Probe::Free) | Err(_) => Life::Dead,
    }
}

/// Whether any worker of the run is alive.
pub fn anybody(folder: &RunDir, view: &View) -> bool {
    view.workers.iter().any(|(&n, p)| life(folder, WorkerNo(n), p) == Life::Alive)
}

/// Makes the folder of a new worker, with a number that was never used in this run, and locks its life.
pub fn enlist(folder: &RunDir, last: u32) -> io::Result<(WorkerNo, File)> {
    if !registry::is_ours(folder) {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, registry::FOREIGN));
    }
    folder.check_locks().map_err(io::Error::other)?;
    let workers = folder.dir.sub(WORKERS)?;
    let mut number = last;
    loop {
        number = number.checked_add(1).ok_or_else(|| io::Error::other("there is no number left for a worker"))?;
        let worker = WorkerNo(number);
        let dir = match workers.make_new_sub(worker.to_string(), 0o700) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        };
        dir.create_sub("logs", 0o700)?;
        dir.create_sub("out", 0o700)?;
        let live = dir.create_new(LIVE_LOCK, 0o600)?;
        if !lock::try_exclusive(&live)? {
            return Err(io::Error::other("the lock of a new worker is taken"));
        }
        return Ok((worker, live));
    }
}

/// Whether a worker may be started: from a damaged log nothing is, nor from one that this cpw does not know how to write.
pub fn check_log(folder: &RunDir, log: &Log, view: &View) -> Result<(), LogError> {
    if view.schema > SCHEMA {
        return Err(LogError::Newer(view.schema));
    }
    folder.check_log(log)
}

/// Starts cpw itself with `args`, detached, as nobody's session. Returns its pid.
pub fn detach(args: &[OsString], cwd: &Path, locks: impl Into<Locks>) -> io::Result<i32> {
    let remove = std::env::vars_os().map(|(name, _)| name).filter(|name| environ::is_sessions(name)).collect();
    let env = EnvChange { set: Vec::new(), remove };
    Ok(spawn::spawn_detached(&process::exe_path()?, args, env, cwd, locks)?)
}

/// Starts a detached worker of the run in `folder`. It is not in the log yet.
fn start(folder: &RunDir, last: u32, seat: Option<File>) -> io::Result<(WorkerNo, Process)> {
    let (worker, live) = enlist(folder, last)?;
    let run = folder.path().file_name().map(ToOwned::to_owned).unwrap_or_default();
    let args: Vec<OsString> = vec!["worker".into(), "--run".into(), run, "--slot".into(), worker.to_string().into()];
    let pid = detach(&args, &folder.project, Locks { live, seat })?;
    let process =
        process::identity_of(pid).unwrap_or(Process { pid, start_time: 0, boot_id: clock::boot_id().to_owned() });
    Ok((worker, process))
}

/// Starts a worker and writes it into the log, for a caller that has the whole state. The seat becomes the worker's.
pub fn hire(run: &mut Run, seat: Option<File>) -> Result<WorkerNo, LogError> {
    check_log(&run.folder, &run.log, &run.state.view)?;
    let last = run.state.view.last_worker;
    let (worker, process) =
        start(&run.folder, last, seat).map_err(|source| LogError::Io { doing: "start a worker for", source })?;
    run.transact(|tx, _| step::enlist(tx, worker, &process))?;
    Ok(worker)
}

/// Makes sure that somebody works on an open run: if all its workers are dead, one is started, which finishes what they
/// left. Returns whether a worker is alive now. For hooks and commands that only have the view.
///
/// Nobody is started for a damaged run.
pub fn tend(folder: &RunDir, hooked: &mut Hooked) -> Result<bool, LogError> {
    if hooked.view.ended.is_some() || !registry::is_ours(folder) {
        return Ok(false);
    }
    if anybody(folder, &hooked.view) {
        return Ok(true);
    }
    // A worker that has left in order may have ended the run since it was read.
    match hooked.refresh().and_then(|()| check_log(folder, &hooked.log, &hooked.view)) {
        Err(LogError::Damaged(_)) => return Ok(false),
        other => other?,
    }
    if hooked.view.ended.is_some() || is_hopeless(&hooked.view) {
        return Ok(false);
    }
    if anybody(folder, &hooked.view) {
        return Ok(true);
    }
    let last = hooked.view.last_worker;
    let (worker, process) =
        start(folder, last, None).map_err(|source| LogError::Io { doing: "start a worker for", source })?;
    hooked.transact(folder, |tx| {
        // As `step::enlist`, which needs the whole state.
        if tx.fold.ended.is_none() && !tx.fold.knows(worker) {
            tx.emit(Draft::worker(worker, Body::WorkerStarted(process)))?;
        }
        Ok(())
    })?;
    Ok(true)
}

/// Whether so many workers have died that another one would not help: workers that die at once again and again are not
/// started for ever.
fn is_hopeless(view: &View) -> bool {
    view.last_worker >= view.counts.total.saturating_mul(4).saturating_add(64)
}

/// What [`tend_run`] found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tended {
    /// A worker is alive.
    Alive,
    /// All were dead; this one was started.
    Hired(WorkerNo),
    /// The run has ended, or too many workers have died.
    Nobody,
    /// This user's cpw has not made the run: it is left alone.
    Foreign,
}

/// As [`tend`], for a caller that has the whole state.
pub fn tend_run(run: &mut Run) -> Result<Tended, LogError> {
    if !registry::is_ours(&run.folder) {
        return Ok(Tended::Foreign);
    }
    if run.state.view.ended.is_some() {
        return Ok(Tended::Nobody);
    }
    if anybody(&run.folder, &run.state.view) && !hung::end_overdue(run, None, None, clock::mono_ms()) {
        return Ok(Tended::Alive);
    }
    // A worker that has left in order may have ended the run since it was read.
    run.refresh()?;
    if run.state.view.ended.is_some() || is_hopeless(&run.state.view) {
        return Ok(Tended::Nobody);
    }
    if anybody(&run.folder, &run.state.view) {
        return Ok(Tended::Alive);
    }
    hire(run, None).map(Tended::Hired)
}
