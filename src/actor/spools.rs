//! Output that grows without end: whoever leads looks at the output files of all attempts that run and gives the middle of
//! those back that have grown too long, so that no worker has to wake up for its own. The worker whose attempt it is cuts
//! them for good when the attempt has ended.

use std::collections::BTreeMap;

use crate::logic::state::State;
use crate::model::plan::Plan;
use crate::store::run::{self, RunDir};
use crate::sys::spool::{self, Spool};

/// Shortest and longest pause between two looks, in milliseconds. A disk takes about a gigabyte a second.
const PAUSES: (u64, u64) = (50, 2000);

/// Growth between two looks, in bytes, after which the next one comes sooner.
const FAST: u64 = spool::CAP / 16;

/// The output of all attempts that run.
#[derive(Debug)]
pub struct Spools {
    /// By the token of the attempt.
    open: BTreeMap<u64, Vec<Spool>>,
    pause_ms: u64,
    look_at_ms: u64,
}

impl Default for Spools {
    fn default() -> Self {
        Spools { open: BTreeMap::new(), pause_ms: PAUSES.0, look_at_ms: 0 }
    }
}

impl Spools {
    /// Looks at what has grown, if it is time. Returns when to look again, on the same clock as `now_ms`; `None` while nothing
    /// runs.
    pub fn look(&mut self, folder: &RunDir, plan: &Plan, state: &State, now_ms: u64) -> Option<u64> {
        if state.running.is_empty() {
            self.open.clear();
            return None;
        }
        if now_ms < self.look_at_ms {
            return Some(self.look_at_ms);
        }
        let mut running = BTreeMap::new();
        for &i in &state.running {
            let Some(attempt) = &state.tasks[i].open else { continue };
            let mut files = self.open.remove(&attempt.token).unwrap_or_default();
            if files.is_empty() {
                self.pause_ms = PAUSES.0;
                let names = run::output_names(&plan.tasks[i].id, attempt.number);
                let logs = folder.worker(attempt.worker).and_then(|worker| worker.sub("logs"));
                // Not there yet: an attempt is in the log before it has files.
                files = logs.map_or_else(
                    |_| Vec::new(),
                    |logs| names.iter().filter_map(|n| logs.open_existing(n).ok()).map(Spool::new).collect(),
                );
            }
            running.insert(attempt.token, files);
        }
        self.open = running;
        let mut fastest = 0;
        for spool in self.open.values_mut().flatten() {
            match spool.trim() {
                Ok(grown) => fastest = fastest.max(grown),
                Err(error) => tracing::warn!(%error, "the output of a task could not be kept within its bounds"),
            }
        }
        self.pause_ms = if fastest >= FAST { PAUSES.0 } else { (self.pause_ms * 2).min(PAUSES.1) };
        self.look_at_ms = now_ms.saturating_add(self.pause_ms);
        Some(self.look_at_ms)
    }
}
