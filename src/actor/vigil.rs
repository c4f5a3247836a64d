//! Waiting beside a run that somebody has to work on: one living worker is watched, and when it dies, another one, or a new
//! one that is started. A worker that lives and does nothing, being stopped, is ended when its time is over: there may be
//! nobody else who looks. Costs nothing while nobody dies.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::actor::crew::{self, Life, Tended};
use crate::actor::hung;
use crate::base::ids::WorkerNo;
use crate::store::log::LogError;
use crate::store::run::Run;
use crate::sys::clock;
use crate::sys::process;

/// The longest time without a look, should every wake-up be lost.
const SAFETY: Duration = Duration::from_mins(1);

/// The longest time without a look where the death of a worker cannot be waited for.
const BLIND: Duration = Duration::from_secs(2);

/// Whose death is waited for.
#[derive(Debug, Default)]
pub struct Vigil {
    watched: Option<(WorkerNo, OwnedFd)>,
    /// Since when somebody is seen to want what is going on cancelled, on the monotonic clock.
    asked_ms: Option<u64>,
    /// When a worker could be overdue next.
    overdue_ms: Option<u64>,
}

impl Vigil {
    /// Sees to it that somebody works on the run, unless it has ended. To be called before every wait.
    pub fn keep(&mut self, run: &mut Run) -> Result<Tended, LogError> {
        let now = clock::mono_ms();
        self.asked_ms = hung::is_asked(run).then(|| self.asked_ms.unwrap_or(now));
        // Its death is seen as any other.
        hung::end_overdue(run, None, self.asked_ms, now);
        self.overdue_ms = hung::next_overdue(run, None, self.asked_ms, now);
        if self.watched.as_ref().is_some_and(|(worker, _)| run.state.view.workers.contains_key(&worker.0)) {
            return Ok(Tended::Alive);
        }
        self.watched = None;
        let tended = crew::tend_run(run)?;
        let workers = run.state.view.workers.iter().map(|(&n, process)| (WorkerNo(n), process));
        for (worker, process) in workers.filter(|(w, p)| crew::life(&run.folder, *w, p) == Life::Alive) {
            // The order matters: the descriptor is bound to whoever has the pid now, then we check that it is the one.
            let Ok(fd) = process::pidfd(process.pid) else { continue };
            if process::alive(process) {
                self.watched = Some((worker, fd));
                break;
            }
        }
        Ok(tended)
    }

    /// Readable once the watched worker is dead.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.watched.as_ref().map(|(_, fd)| fd.as_fd())
    }

    /// The watched worker is dead: the next look finds another.
    pub fn died(&mut self) {
        self.watched = None;
    }

    /// The longest wait until the next look.
    pub fn longest(&self) -> Duration {
        let look = if self.watched.is_some() { SAFETY } else { BLIND };
        let overdue = self.overdue_ms.map(|at| Duration::from_millis(at.saturating_sub(clock::mono_ms())));
        overdue.map_or(look, |left| left.min(look))
    }
}
