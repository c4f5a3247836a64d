//! Output that grows without end: whoever leads looks at the output files of all attempts that run and gives the middle of
//! those back that have grown too long, so that no worker has to wake up for its own. The worker whose attempt it is cuts
//! them for good when the attempt has ended.
//!
//! By the way it notes by when the output had grown to which length (`model::growth`), so that the output of several tasks
//! can be told in its order. Nothing depends on that, and what cannot be noted is not.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};

use crate::base::ids::TaskId;
use crate::logic::state::{Attempt, State};
use crate::model::growth::Noter;
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
    open: BTreeMap<u64, Output>,
    pause_ms: u64,
    look_at_ms: u64,
}

/// What one attempt writes.
#[derive(Debug)]
struct Output {
    spools: [Spool; 2],
    noter: Noter,
    notes: Notes,
}

/// Where the growth of an output is noted.
#[derive(Debug)]
enum Notes {
    /// Nothing has grown yet.
    None,
    Open(File),
    /// It could not be written: half a line may be the last one.
    Given,
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
        let mut fastest = 0;
        for &i in &state.running {
            let (task, Some(attempt)) = (&plan.tasks[i].id, &state.tasks[i].open) else { continue };
            let known = self.open.remove(&attempt.token);
            if known.is_none() {
                self.pause_ms = PAUSES.0;
            }
            // Not there yet: an attempt is in the log before it has files.
            let Some(mut output) = known.or_else(|| Output::open(folder, task, attempt).ok()) else { continue };
            fastest = fastest.max(output.look(folder, task, attempt, now_ms));
            running.insert(attempt.token, output);
        }
        self.open = running;
        self.pause_ms = if fastest >= FAST { PAUSES.0 } else { (self.pause_ms * 2).min(PAUSES.1) };
        self.look_at_ms = now_ms.saturating_add(self.pause_ms);
        Some(self.look_at_ms)
    }
}

impl Output {
    fn open(folder: &RunDir, task: &TaskId, attempt: &Attempt) -> io::Result<Output> {
        let logs = folder.worker(attempt.worker)?.sub("logs")?;
        let [out, err] = run::output_names(task, attempt.number).map(|name| logs.open_existing(name).map(Spool::new));
        Ok(Output { spools: [out?, err?], noter: Noter::new(attempt.since_ms), notes: Notes::None })
    }

    /// Keeps it within its bounds and notes its growth. Returns by how much its faster half has grown.
    fn look(&mut self, folder: &RunDir, task: &TaskId, attempt: &Attempt, now_ms: u64) -> u64 {
        let mut fastest = 0;
        for spool in &mut self.spools {
            match spool.trim() {
                Ok(grown) => fastest = fastest.max(grown),
                Err(error) => tracing::warn!(%error, "the output of a task could not be kept within its bounds"),
            }
        }
        if let Some(look) = self.noter.see(now_ms, self.spools.each_ref().map(Spool::length)) {
            self.notes.add(&look.line(), || {
                folder.worker(attempt.worker)?.sub("logs")?.open_append(run::times_name(task, attempt.number))
            });
        }
        fastest
    }
}

impl Notes {
    /// Nobody is told where this fails: the run goes on, and its output is told in a coarser order.
    fn add(&mut self, line: &str, open: impl FnOnce() -> io::Result<File>) {
        let written = match self {
            Notes::Given => return,
            Notes::Open(file) => file.write_all(line.as_bytes()).map(|()| None),
            // An earlier leader may have left half a line.
            Notes::None => open().and_then(|mut file| {
                let gap = if file.metadata()?.len() > 0 { "\n" } else { "" };
                file.write_all(format!("{gap}{line}").as_bytes()).map(|()| Some(file))
            }),
        };
        match written {
            Ok(None) => {}
            Ok(Some(file)) => *self = Notes::Open(file),
            Err(_) => *self = Notes::Given,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_that_cannot_be_written_end_there() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("times");
        let open = || File::options().append(true).create(true).open(&path);
        let mut notes = Notes::None;
        notes.add("1 2 0\n", open);
        notes.add("2 3 0\n", open);
        let mut next = Notes::None;
        next.add("3 4 0\n", open);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1 2 0\n2 3 0\n\n3 4 0\n");
        let mut full = Notes::None;
        full.add("1 2 0\n", || File::options().write(true).open("/dev/full"));
        assert!(matches!(full, Notes::Given));
        full.add("1 2 0\n", || unreachable!("not tried again"));
    }
}
