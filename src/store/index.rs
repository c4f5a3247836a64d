//! `state.idx`: the view that hooks need, saved together with the place in the log up to which it holds. A cache: bound to
//! the log's inode, a place in it and a hash of what stands there, ignored where anything does not fit, deletable at any
//! time. Present, stale, absent or foreign, the answer is the same; only the time differs.

use std::io;

use serde::{Deserialize, Serialize};

use crate::base::hex;
use crate::logic::view::View;
use crate::store::log::Log;
use crate::sys::dir::Dir;

/// The index's name in a run's folder.
pub const NAME: &str = "state.idx";

/// The version of the index format. Another one is ignored.
const VERSION: u32 = 1;

/// The largest index that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Head {
    v: u32,
    cpw: String,
    dev: u64,
    ino: u64,
    offset: u64,
    tail: String,
    sum: String,
}

/// Reads the index, if it fits the log, and lets the log continue behind it.
pub fn load(dir: &Dir, log: &mut Log) -> Option<View> {
    let bytes = dir.read_bounded(NAME, MAX_BYTES).ok()?;
    let cut = bytes.iter().position(|b| *b == b'\n')?;
    let head: Head = serde_json::from_slice(&bytes[..cut]).ok()?;
    let body = &bytes[cut + 1..];
    let fits = head.v == VERSION
        && head.cpw == env!("CARGO_PKG_VERSION")
        && head.dev == log.id().dev
        && head.ino == log.id().ino
        && head.sum == hex::sha256(body);
    if !fits {
        return None;
    }
    let view = serde_json::from_slice(body).ok()?;
    log.resume_at(head.offset, &head.tail).then_some(view)
}

/// Replaces the index by the view as of the log's present place.
pub fn save(dir: &Dir, log: &Log, view: &View) -> io::Result<()> {
    let body = serde_json::to_vec(view)?;
    let head = Head {
        v: VERSION,
        cpw: env!("CARGO_PKG_VERSION").into(),
        dev: log.id().dev,
        ino: log.id().ino,
        offset: log.offset(),
        tail: log.tail_hash(log.offset())?,
        sum: hex::sha256(&body),
    };
    let mut bytes = serde_json::to_vec(&head)?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    dir.write_atomic(NAME, &bytes, 0o600, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::WorkerNo;
    use crate::logic::simulation::{done, plan, task};
    use crate::model::event::{Body, Draft, Process, Started};
    use crate::store::run::{Origin, Run, RunDir, new_id};

    fn run(project: &std::path::Path) -> Run {
        let mut tasks = vec![task("a"), task("b"), task("c")];
        tasks[1].claims = vec!["b.py".into()];
        let mut plan = plan(tasks);
        plan.run = new_id();
        let folder = RunDir::create(project, &plan, &Origin::default()).unwrap();
        folder
            .start(&crate::store::home::State::open_at(&project.join("state")).unwrap(), &plan, &Origin::default())
            .unwrap()
    }

    fn work(run: &mut Run, i: usize) {
        let id = run.plan.tasks[i].id.clone();
        let me = WorkerNo(u32::try_from(i).unwrap() + 1);
        run.transact(|tx, _| {
            let process = Process { pid: 1, start_time: 1, boot_id: "b".into() };
            tx.emit(Draft::worker(me, Body::WorkerStarted(process)))?;
            tx.emit(Draft::attempt(
                Some(me),
                &id,
                1,
                Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 1 }),
            ))?;
            tx.emit(Draft::attempt(Some(me), &id, 1, done("fine")))
        })
        .unwrap();
    }

    #[test]
    fn whatever_the_index_is_the_view_is_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let mut run = run(temp.path());
        let mut other = self::run(temp.path());
        let path = run.folder.path().join(NAME);
        work(&mut other, 0);
        work(&mut other, 1);
        other.save_index(true);
        let foreign = std::fs::read(other.folder.path().join(NAME)).unwrap();
        let short = std::fs::read(run.folder.path().join("events.jsonl")).unwrap();
        work(&mut run, 0);
        run.save_index(true);
        let stale = std::fs::read(&path).unwrap();
        work(&mut run, 1);
        run.save_index(true);
        let fresh = std::fs::read(&path).unwrap();
        assert_ne!(stale, fresh);
        let view = run.state.view.clone();
        let looked = |run: &Run| run.folder.again().unwrap().open_view().unwrap().view;
        let used = |run: &Run| {
            let mut log = Log::open(&run.folder.dir).unwrap();
            load(&run.folder.dir, &mut log).is_some()
        };
        for (what, index, fits) in
            [("fresh", &fresh, true), ("stale", &stale, true), ("another run's", &foreign, false)]
        {
            std::fs::write(&path, index).unwrap();
            assert_eq!(used(&run), fits, "{what}");
            assert_eq!(looked(&run), view, "{what}");
        }
        for at in (0..fresh.len()).step_by(7) {
            let mut spoiled = fresh.clone();
            spoiled[at] ^= 1;
            std::fs::write(&path, &spoiled).unwrap();
            assert_eq!(looked(&run), view, "byte {at}");
            std::fs::write(&path, &fresh[..at]).unwrap();
            assert_eq!(looked(&run), view, "cut at {at}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!used(&run));
        assert_eq!(looked(&run), view, "absent");
        // An index that knows more than its log.
        std::fs::write(&path, &fresh).unwrap();
        std::fs::write(run.folder.path().join("events.jsonl"), &short).unwrap();
        assert!(!used(&run));
        assert_eq!(looked(&run).seq, 1);
    }
}
