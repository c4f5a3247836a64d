//! `state.idx`: the view that hooks need, saved together with the place in the log up to which it holds. A cache: bound to
//! the log's inode, a place in it and a hash of what stands there, ignored where anything does not fit, deletable at any
//! time. Present, stale, absent or foreign, the answer is the same; only the time differs.

use std::io;

use serde::{Deserialize, Serialize};

use crate::base::hex;
use crate::logic::view::View;
use crate::store::log::Log;
use crate::sys::clock;
use crate::sys::dir::Dir;

/// The index's name in a run's folder.
pub const NAME: &str = "state.idx";

/// The version of the index format. Another one is ignored.
const VERSION: u32 = 2;

/// The largest index that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
struct Head {
    v: u32,
    cpw: String,
    boot: String,
    dev: u64,
    ino: u64,
    offset: u64,
    tail: String,
    sum: String,
}

impl Head {
    /// A hash of the head and the body: what is believed of an index is believed because no byte of it has changed.
    fn sum_with(&self, body: &[u8]) -> String {
        let Head { v, cpw, boot, dev, ino, offset, tail, sum: _ } = self;
        let body = hex::sha256(body);
        hex::sha256(format!("{v} {cpw} {boot} {dev} {ino} {offset} {tail} {body}").as_bytes())
    }
}

/// Reads the index, if it fits the log, and lets the log continue behind it.
pub fn load(dir: &Dir, log: &mut Log) -> Option<View> {
    let (head, body) = read(dir, log)?;
    let view = serde_json::from_slice(&body).ok()?;
    log.resume_at(head.offset, &head.tail).then_some(view)
}

/// The index as it is, if it is whole and was made from this file.
fn read(dir: &Dir, log: &Log) -> Option<(Head, Vec<u8>)> {
    let mut bytes = dir.read_bounded(NAME, MAX_BYTES).ok()?;
    let cut = bytes.iter().position(|b| *b == b'\n')?;
    let head: Head = serde_json::from_slice(&bytes[..cut]).ok()?;
    bytes.drain(..=cut);
    let fits = head.v == VERSION
        && head.cpw == env!("CARGO_PKG_VERSION")
        && head.dev == log.id().dev
        && head.ino == log.id().ino
        && head.sum == head.sum_with(&bytes);
    fits.then_some((head, bytes))
}

/// What an index bears witness to that the log no longer has: that it was cut or rewritten since. Only on the boot on which
/// the index was made: a power cut may take the end of a log, and what is left is then all there is.
pub fn contradicts(dir: &Dir, log: &Log) -> Option<String> {
    let (head, _) = read(dir, log)?;
    if head.boot != clock::boot_id() {
        return None;
    }
    let (length, known) = (log.len().ok()?, head.offset);
    if length < known {
        return Some(format!("events.jsonl has {length} bytes, but {known} were there before: it was cut"));
    }
    match log.tail_hash(known) {
        Ok(tail) if tail == head.tail => None,
        // No line ends there any more.
        Err(e) if e.kind() != io::ErrorKind::InvalidData => None,
        Ok(_) | Err(_) => Some(format!("events.jsonl is not what it was before byte {known}: it was rewritten")),
    }
}

/// Replaces the index by the view as of the log's present place.
pub fn save(dir: &Dir, log: &Log, view: &View) -> io::Result<()> {
    let body = serde_json::to_vec(view)?;
    let mut head = Head {
        v: VERSION,
        cpw: env!("CARGO_PKG_VERSION").into(),
        boot: clock::boot_id().to_owned(),
        dev: log.id().dev,
        ino: log.id().ino,
        offset: log.offset(),
        tail: log.tail_hash(log.offset())?,
        sum: String::new(),
    };
    head.sum = head.sum_with(&body);
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
        let grown = std::fs::read(run.folder.path().join("events.jsonl")).unwrap();
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
        // An index that knows more than its log: after a power cut the log is all there is, before it somebody cut it.
        std::fs::write(run.folder.path().join("events.jsonl"), &short).unwrap();
        let boot = clock::boot_id();
        let cut = fresh.iter().position(|b| *b == b'\n').unwrap();
        let mut head: Head = serde_json::from_slice(&fresh[..cut]).unwrap();
        assert_eq!(head.boot, boot);
        head.boot = "another".into();
        head.sum = head.sum_with(&fresh[cut + 1..]);
        let other_boot = [&serde_json::to_vec(&head).unwrap(), &fresh[cut..]].concat();
        std::fs::write(&path, &other_boot).unwrap();
        assert!(!used(&run));
        assert_eq!(looked(&run).seq, 1);
        std::fs::write(&path, &fresh).unwrap();
        assert!(!used(&run));
        let said = run.folder.open_view().unwrap_err().to_string();
        assert!(said.contains("it was cut"), "{said}");
        assert_eq!(run.folder.open_run().unwrap_err().to_string(), said);
        let at = grown.windows(4).rposition(|part| part == b"fine").unwrap();
        let changed = [&grown[..at], b"dire", &grown[at + 4..]].concat();
        std::fs::write(run.folder.path().join("events.jsonl"), &changed).unwrap();
        let said = run.folder.open_view().unwrap_err().to_string();
        assert!(said.contains("it was rewritten"), "{said}");
    }
}
