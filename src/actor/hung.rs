//! Workers that live and do nothing: stopped by a signal, or stuck in the kernel or in a fault of their own. Their life lock is
//! held, so nobody may take their work; but an attempt has a time limit, and when that is over by far, its worker is ended by
//! whoever looks; so is one that does not do what `cpw cancel` asks for. From there on it is a dead worker like any other. A worker that was stopped while it held the log keeps
//! everybody from writing; it is ended sooner.
//!
//! Only processes that the log names are ended, and only if pid, start time and boot are those of the log.

use crate::base::ids::WorkerNo;
use crate::logic::sched;
use crate::store::log;
use crate::store::registry;
use crate::store::run::Run;
use crate::sys::lock;
use crate::sys::process::{self, Signal};

/// How long a stopped worker may be over the time limit of its attempt, in milliseconds: as long as a task gets to end.
const STOPPED_MS: u64 = 6_000;

/// How long one may be that is not stopped, in milliseconds: it may be busy keeping a result.
const STUCK_MS: u64 = 120_000;

/// How long a stopped worker may hold the log, in milliseconds.
pub const HOLDS_LOG_MS: u64 = 5_000;

/// Ends workers that are over the time limit of their attempt by too much, other than `me`, or that were to cancel it at
/// `asked_ms`. Returns whether one was ended: its lock is free in a moment.
pub fn end_overdue(run: &Run, me: Option<WorkerNo>, asked_ms: Option<u64>, now_ms: u64) -> bool {
    let mut ended = false;
    for (worker, deadline) in others(run, me, asked_ms) {
        let over = now_ms.saturating_sub(deadline);
        let Some(process) = run.state.view.workers.get(&worker.0).filter(|_| over >= STOPPED_MS) else { continue };
        let Some(stat) = process::exists(process) else { continue };
        let hung = (stat.is_stopped() || over >= STUCK_MS) && registry::is_ours(&run.folder);
        if hung && process::signal(process, Signal::SIGKILL).unwrap_or(false) {
            tracing::warn!(worker = worker.0, "a worker that did not end its attempt in time was killed");
            ended = true;
        }
    }
    ended
}

/// When the next worker other than `me` could be overdue, on the clock of `now_ms`.
pub fn next_overdue(run: &Run, me: Option<WorkerNo>, asked_ms: Option<u64>, now_ms: u64) -> Option<u64> {
    let moments = others(run, me, asked_ms)
        .flat_map(|(_, deadline)| [STOPPED_MS, STUCK_MS].map(|over| deadline.saturating_add(over)));
    moments.filter(|at| *at > now_ms).min()
}

/// Whether an attempt is going on that somebody wants cancelled.
pub fn is_asked(run: &Run) -> bool {
    run.state.running.iter().any(|i| is_unwanted(run, *i))
}

fn is_unwanted(run: &Run, i: usize) -> bool {
    run.state.view.cancelled || run.state.cancels.contains(&i)
}

/// Workers with the time at which their attempt must end.
fn others(run: &Run, me: Option<WorkerNo>, asked_ms: Option<u64>) -> impl Iterator<Item = (WorkerNo, u64)> + '_ {
    run.state.running.iter().filter_map(move |&i| {
        let open = run.state.tasks[i].open.as_ref().filter(|open| Some(open.worker) != me)?;
        let limit = sched::attempt_deadline(&run.state, &run.plan, i, open.since_ms);
        let asked = asked_ms.filter(|_| is_unwanted(run, i));
        Some((open.worker, limit.into_iter().chain(asked).min()?))
    })
}

/// Ends the worker that holds the log's lock, if it is stopped. Returns whether there was one.
pub fn end_stopped_holder(run: &Run) -> bool {
    let Ok(log) = run.folder.dir.open_read(log::NAME) else { return false };
    let holders = lock::holders(&log);
    let workers = run.state.view.workers.values().filter(|process| holders.contains(&process.pid));
    let mut stopped = workers.filter(|process| process::exists(process).is_some_and(|stat| stat.is_stopped()));
    stopped.any(|process| {
        tracing::warn!(pid = process.pid, "a worker that was stopped while it held the log was killed");
        process::signal(process, Signal::SIGKILL).unwrap_or(false)
    })
}
