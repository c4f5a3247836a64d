//! The index: whatever stands in `state.idx`, the view is the one that the log gives.
//!
//! The first byte chooses what the rest is: a file as it is, or patches of an index that was right once for this log or
//! for another one, so that the fuzzer need not guess a hash before it gets anywhere.

use std::fs;
use std::path::{Path, PathBuf};

use cpw::base::ids::WorkerNo;
use cpw::logic::view::View;
use cpw::model::event::{Body, Done, Draft, Process, Progress, Started};
use cpw::model::plan::Plan;
use cpw::store::home;
use cpw::store::run::{Origin, Run, RunDir, new_id};

const INDEX: &str = "state.idx";

/// A run with a log that stays as it is, and indexes made on its way.
pub struct Bench {
    run: RunDir,
    path: PathBuf,
    view: View,
    indexes: Vec<Vec<u8>>,
}

impl Bench {
    /// Makes the run below the empty folder `folder`.
    pub fn new(folder: &Path) -> Bench {
        let (run, indexes) = worked(folder, 3);
        let (_, foreign) = worked(folder, 2);
        let path = run.folder.path().join(INDEX);
        let indexes = indexes.into_iter().chain(foreign.into_iter().next_back()).collect();
        Bench { run: run.folder, path, view: run.state.view, indexes }
    }

    /// Puts an index made from `bytes` beside the log and opens the run as a hook does.
    pub fn check(&self, bytes: &[u8]) {
        let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
        match usize::from(*first).checked_sub(1).and_then(|i| self.indexes.get(i)) {
            None => fs::write(&self.path, rest),
            Some(good) => fs::write(&self.path, patched(good, rest)),
        }
        .expect("the index is written");
        let hooked = self.run.again().and_then(|folder| folder.open_view()).unwrap_or_else(|e| panic!("{e}"));
        assert!(hooked.view == self.view, "another view: {:?}", hooked.view);
    }
}

/// Three bytes each: where, and what is turned over there. Nothing of it may change the answer. An odd rest cuts the end.
fn patched(good: &[u8], patches: &[u8]) -> Vec<u8> {
    let mut out = good.to_vec();
    let mut patches = patches.chunks_exact(3);
    for patch in &mut patches {
        let at = usize::from(u16::from_le_bytes([patch[0], patch[1]])) % good.len();
        out[at] ^= patch[2];
    }
    if let Some(cut) = patches.remainder().first() {
        out.truncate(good.len().saturating_sub(usize::from(*cut)));
    }
    out
}

/// A run with three tasks of which `count` are worked on, and its index after each step.
fn worked(project: &Path, count: u32) -> (Run, Vec<Vec<u8>>) {
    let mut plan: Plan = serde_json::from_str(include_str!("../../tests/logs/v1/plan.json")).expect("a plan");
    plan.run = new_id();
    let state = home::State::open_at(&project.join("state")).expect("a state directory");
    let folder = RunDir::create(project, &plan, &Origin::default()).expect("a folder");
    let mut run = folder.start(&state, &plan, &Origin::default()).expect("a run");
    let mut indexes = Vec::new();
    for n in 1..=count {
        let task = run.plan.tasks[n as usize - 1].id.clone();
        let worker = Some(WorkerNo(n));
        for body in [
            Body::WorkerStarted(Process { pid: 1, start_time: 1, boot_id: "b".into() }),
            Body::Started(Started { cwd: "/".into(), title: Some("a title".into()), mono_ms: 5, ..Started::default() }),
            Body::Progress(Progress { percent: Some(40), eta_s: Some(3), ..Progress::default() }),
            Body::Done(Done { exit: 0, duration_ms: 1, summary: Some("fine".into()), ..Done::default() }),
        ] {
            // The last attempt stays open.
            if n == count && matches!(body, Body::Done(_)) {
                continue;
            }
            run.transact(|tx, _| tx.emit(Draft { worker, task: Some(task.clone()), attempt: Some(1), body }))
                .expect("an event");
            run.save_index(true);
            indexes.push(fs::read(run.folder.path().join(INDEX)).expect("an index"));
        }
    }
    (run, indexes)
}
