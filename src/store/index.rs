//! `state.idx`: the view that hooks need, saved together with the place in the log up to which it holds. A cache: bound to
//! the log's inode, a place in it and a check sum of what stands there, ignored where anything does not fit, deletable at
//! any time. Present, stale, absent or foreign, the answer is the same; only the time differs.
//!
//! It has three parts, each with a sum of its own: a head of numbers, the [`Glance`] by which most hooks see that a call
//! does not concern them, and the whole view. The first two are one small read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::base::sum::sum;
use crate::logic::glance::{self, Glance};
use crate::logic::view::View;
use crate::model::event::Event;
use crate::store::log::{Fold, Log};
use crate::sys::clock;
use crate::sys::dir::{Dir, FileId};
use crate::sys::lock;

/// The index's name in a run's folder.
pub const NAME: &str = "state.idx";

/// The first bytes of an index of this format. Another one is ignored.
const MAGIC: u64 = u64::from_le_bytes(*b"cpw.idx4");

/// The largest part that is read.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// Read at once: the head, and a glance of usual size.
const FIRST: usize = 1024;

/// The numbers of the head, in the order of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    magic: u64,
    /// Which cpw wrote it: the sum of its version.
    cpw: u64,
    /// On which boot: the sum of its id.
    boot: u64,
    dev: u64,
    ino: u64,
    /// Up to where the log is in it, in bytes and in events.
    offset: u64,
    seq: u64,
    /// The sum of what stands before that place in the log.
    tail: u64,
    /// Lengths and sums of the two parts behind the head.
    glance: u64,
    glance_sum: u64,
    view: u64,
    view_sum: u64,
}

const NUMBERS: usize = 12;

impl Head {
    /// Its length in the file: the numbers and their sum.
    const BYTES: usize = 8 * (NUMBERS + 1);

    fn numbers(&self) -> [u64; NUMBERS] {
        let Head { magic, cpw, boot, dev, ino, offset, seq, tail, glance, glance_sum, view, view_sum } = *self;
        [magic, cpw, boot, dev, ino, offset, seq, tail, glance, glance_sum, view, view_sum]
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.numbers().iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend_from_slice(&sum(&bytes).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Head> {
        let (numbers, own) = bytes.get(..Head::BYTES)?.split_at(8 * NUMBERS);
        if sum(numbers).to_le_bytes() != own {
            return None;
        }
        let mut each = numbers.chunks_exact(8).map(|n| n.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || each.next();
        Some(Head {
            magic: next()?,
            cpw: next()?,
            boot: next()?,
            dev: next()?,
            ino: next()?,
            offset: next()?,
            seq: next()?,
            tail: next()?,
            glance: next()?,
            glance_sum: next()?,
            view: next()?,
            view_sum: next()?,
        })
    }
}

fn this_cpw() -> u64 {
    sum(env!("CARGO_PKG_VERSION").as_bytes())
}

fn this_boot() -> u64 {
    sum(clock::boot_id().as_bytes())
}

/// The index's file with its first bytes, if it is one of this format that was made from this log by this cpw.
fn begin(dir: &Dir, log: &Log) -> Option<(File, Head, Vec<u8>)> {
    let file = dir.open_read(NAME).ok()?;
    let mut first = vec![0; FIRST];
    let mut used = 0;
    while used < FIRST {
        match file.read_at(&mut first[used..], used as u64) {
            Ok(0) => break,
            Ok(n) => used += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
    first.truncate(used);
    let head = Head::decode(&first)?;
    let (dev, ino) = (log.id().dev, log.id().ino);
    let fits = (head.magic, head.cpw, head.dev, head.ino) == (MAGIC, this_cpw(), dev, ino)
        && head.glance <= MAX_BYTES
        && head.view <= MAX_BYTES;
    fits.then_some((file, head, first))
}

/// What an index bears witness to that the log no longer has: that it was cut or rewritten since. Only on the boot on which
/// the index was made: a power cut may take the end of a log, and what is left is then all there is.
pub fn contradicts(dir: &Dir, log: &Log) -> Option<String> {
    let (_, head, _) = begin(dir, log)?;
    if head.boot != this_boot() {
        return None;
    }
    let (length, known) = (log.len().ok()?, head.offset);
    if length < known {
        return Some(format!("events.jsonl has {length} bytes, but {known} were there before: it was cut"));
    }
    match log.tail_sum(known) {
        Ok(tail) if tail == head.tail => None,
        // No line ends there any more.
        Err(e) if e.kind() != io::ErrorKind::InvalidData => None,
        Ok(_) | Err(_) => Some(format!("events.jsonl is not what it was before byte {known}: it was rewritten")),
    }
}

/// An index that fits its log.
#[derive(Debug)]
pub struct Index {
    file: File,
    head: Head,
    glance: Vec<u8>,
}

impl Index {
    /// Opens the index, if it fits the log, and lets the log continue behind it.
    pub fn open(dir: &Dir, log: &mut Log) -> Option<Index> {
        let (file, head, mut glance) = begin(dir, log)?;
        let used = glance.len();
        let end = Head::BYTES + usize::try_from(head.glance).ok()?;
        if used < end {
            glance.resize(end, 0);
            file.read_exact_at(&mut glance[used..], used as u64).ok()?;
        }
        glance.truncate(end);
        glance.drain(..Head::BYTES);
        let index = Index { file, head, glance };
        (sum(&index.glance) == head.glance_sum && index.rewind(log)).then_some(index)
    }

    /// What a call has to meet, as of the index.
    pub fn glance(&self) -> Option<Glance<'_>> {
        serde_json::from_slice(&self.glance).ok()
    }

    /// Lets the log continue behind the index, wherever it was.
    pub fn rewind(&self, log: &mut Log) -> bool {
        log.resume_at(self.head.offset, self.head.tail)
    }

    /// How many events came after it, if none of them changes its glance.
    pub fn quiet_tail(&self, log: &mut Log) -> Option<u64> {
        let mut quiet = Quiet { seq: self.head.seq, changed: false };
        let read = log.read(&mut quiet);
        (read.is_ok() && !quiet.changed).then(|| quiet.seq - self.head.seq)
    }

    /// The view as of the index.
    pub fn view(&self) -> Option<View> {
        let mut bytes = vec![0; usize::try_from(self.head.view).ok()?];
        self.file.read_exact_at(&mut bytes, Head::BYTES as u64 + self.head.glance).ok()?;
        let view: View = (sum(&bytes) == self.head.view_sum).then(|| serde_json::from_slice(&bytes).ok())??;
        (view.seq == self.head.seq).then_some(view)
    }

    /// Whether this process is the one to replace it: of those who have the same old index open, one, and none once it was
    /// replaced. Until it is dropped.
    pub fn claim(&self, dir: &Dir) -> bool {
        let is_in_place = || {
            let (own, named) = (FileId::of(&self.file).ok()?, dir.stat(NAME).ok()??);
            Some(own.same_file(&named))
        };
        lock::try_exclusive(&self.file).unwrap_or(false) && is_in_place().unwrap_or(false)
    }
}

/// Looks whether the events behind an index leave its glance as it is.
struct Quiet {
    seq: u64,
    changed: bool,
}

impl Fold for Quiet {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn schema(&self) -> u32 {
        0
    }

    fn apply(&mut self, event: &Event) {
        self.seq = event.seq;
        self.changed = true;
    }

    fn skim(&mut self, line: &[u8]) -> bool {
        // Once something has changed the rest does not matter, whatever it is: it will be read again.
        let skimmed = self.changed || glance::is_unchanged_by(line, self.seq + 1);
        self.seq += u64::from(skimmed);
        skimmed
    }
}

/// Replaces the index by the view as of the log's present place. Returns its length.
pub fn save(dir: &Dir, log: &Log, view: &View) -> io::Result<u64> {
    let glance = serde_json::to_vec(&Glance::of(view))?;
    let body = serde_json::to_vec(view)?;
    let head = Head {
        magic: MAGIC,
        cpw: this_cpw(),
        boot: this_boot(),
        dev: log.id().dev,
        ino: log.id().ino,
        offset: log.offset(),
        seq: view.seq,
        tail: log.tail_sum(log.offset())?,
        glance: glance.len() as u64,
        glance_sum: sum(&glance),
        view: body.len() as u64,
        view_sum: sum(&body),
    };
    let mut bytes = head.encode();
    bytes.extend_from_slice(&glance);
    bytes.extend_from_slice(&body);
    dir.write_atomic(NAME, &bytes, 0o600, false)?;
    Ok(bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::base::ids::{TaskId, WorkerNo};
    use crate::logic::simulation::{done, plan, task};
    use crate::model::event::{
        Answer, Awaited, Body, Decision, Draft, Observed, Process, Progress, Reason, Signal, SignalReleased, Started,
    };
    use crate::model::plan::{Merge, OnClaimed};
    use crate::model::signal::Addressee;
    use crate::store::home::State;
    use crate::store::log;
    use crate::store::run::{Origin, Run, RunDir, new_id};

    fn run(project: &Path) -> Run {
        let mut tasks = vec![task("a"), task("b"), task("c")];
        tasks[0].claims = vec!["a.py".into()];
        tasks[1].claims = vec!["b.py".into(), "lib/*.py".into()];
        tasks[2].claims = vec!["c.py".into()];
        let mut plan = plan(tasks);
        plan.run = new_id();
        plan.merge = vec![Merge {
            tool: "Write".into(),
            matches: [("file_path".to_owned(), "*report.md".to_owned())].into(),
            needs: vec![TaskId::new("a").unwrap()],
            set: [("content".to_owned(), "{{results}}".to_owned())].into(),
        }];
        let folder = RunDir::create(project, &plan, &Origin::default()).unwrap();
        folder.start(&State::open_at(&project.join("state")).unwrap(), &plan, &Origin::default()).unwrap()
    }

    fn started() -> Body {
        Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 1, ..Started::default() })
    }

    fn process() -> Process {
        Process { pid: 1, start_time: 1, boot_id: "b".into() }
    }

    fn work(run: &mut Run, i: usize) {
        let id = run.plan.tasks[i].id.clone();
        let me = WorkerNo(u32::try_from(i).unwrap() + 1);
        run.transact(|tx, _| {
            tx.emit(Draft::worker(me, Body::WorkerStarted(process())))?;
            tx.emit(Draft::attempt(Some(me), &id, 1, started()))?;
            tx.emit(Draft::attempt(Some(me), &id, 1, done("fine")))
        })
        .unwrap();
    }

    fn looked(run: &Run) -> View {
        run.folder.again().unwrap().open_view().unwrap().view
    }

    fn used(run: &Run) -> bool {
        let mut log = Log::open(&run.folder.dir).unwrap();
        Index::open(&run.folder.dir, &mut log).is_some_and(|i| i.view().is_some())
    }

    /// What a hook is told that calls `tool` on `path`: whether the run concerns it.
    fn concerns(run: &Run, tool: &str, path: &str) -> bool {
        let files = [vec![path.to_owned()]];
        let asks = |g: &Glance<'_>| g.may_merge(tool) || g.may_be_claimed("/p", || &files);
        run.folder.again().unwrap().open_if(asks).unwrap().is_some()
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
        let ask = |run: &Run| {
            [("Edit", "/p/a.py"), ("Edit", "/p/b.py"), ("Edit", "/p/c.py"), ("Edit", "/p/d.py"), ("Write", "/p/d.py")]
                .map(|(tool, path)| concerns(run, tool, path))
        };
        let answers = [false, false, true, false, true];
        for (what, index, fits) in
            [("fresh", &fresh, true), ("stale", &stale, true), ("another run's", &foreign, false)]
        {
            std::fs::write(&path, index).unwrap();
            assert_eq!(used(&run), fits, "{what}");
            assert_eq!(looked(&run), view, "{what}");
            let asked = ask(&run);
            // Where only the whole view can tell, the run is looked at.
            assert!(asked.iter().zip(answers).all(|(asked, must)| *asked || !must), "{what}: {asked:?}");
            assert!(what != "fresh" || asked == answers, "{asked:?}");
        }
        for at in 0..fresh.len() {
            let mut spoiled = fresh.clone();
            spoiled[at] ^= 1;
            std::fs::write(&path, &spoiled).unwrap();
            assert!(!used(&run), "byte {at}");
            if at % 7 == 0 {
                assert_eq!(looked(&run), view, "byte {at}");
            }
            assert!(concerns(&run, "Edit", "/p/c.py"), "byte {at}");
            std::fs::write(&path, &fresh[..at]).unwrap();
            assert!(!used(&run), "cut at {at}");
            if at % 7 == 0 {
                assert_eq!(looked(&run), view, "cut at {at}");
            }
            assert!(concerns(&run, "Edit", "/p/c.py"), "cut at {at}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!used(&run));
        assert_eq!(looked(&run), view, "absent");
        assert!(concerns(&run, "Edit", "/p/c.py") && !path.exists(), "a short log is not worth an index");
        // An index that knows more than its log: after a power cut the log is all there is, before it somebody cut it.
        let log_path = run.folder.path().join("events.jsonl");
        let grown = std::fs::read(&log_path).unwrap();
        std::fs::write(&log_path, &short).unwrap();
        let mut head = Head::decode(&fresh).unwrap();
        assert_eq!(head.boot, this_boot());
        head.boot += 1;
        std::fs::write(&path, [&head.encode(), &fresh[Head::BYTES..]].concat()).unwrap();
        assert!(!used(&run));
        assert_eq!(looked(&run).seq, 1);
        std::fs::write(&path, &fresh).unwrap();
        assert!(!used(&run));
        let said = run.folder.open_view().unwrap_err().to_string();
        assert!(said.contains("it was cut"), "{said}");
        assert_eq!(run.folder.open_run().unwrap_err().to_string(), said);
        let at = grown.windows(4).rposition(|part| part == b"fine").unwrap();
        let changed = [&grown[..at], b"dire", &grown[at + 4..]].concat();
        std::fs::write(&log_path, &changed).unwrap();
        let said = run.folder.open_view().unwrap_err().to_string();
        assert!(said.contains("it was rewritten"), "{said}");
    }

    #[test]
    fn a_hook_replaces_an_index_that_is_missing_or_far_behind_and_only_one_does() {
        let temp = tempfile::tempdir().unwrap();
        let mut run = run(temp.path());
        let path = run.folder.path().join(NAME);
        let me = WorkerNo(1);
        let id = run.plan.tasks[0].id.clone();
        let say = |run: &mut Run, n: u32, body: &Body| {
            let draft = Draft::attempt(Some(me), &id, 1, body.clone());
            run.transact(|tx, _| (0..n).try_for_each(|_| tx.emit(draft.clone()).map(drop))).unwrap();
        };
        say(&mut run, 1, &started());
        let progress = Body::Progress(Progress { percent: Some(1), ..Progress::default() });
        run.save_index(true);
        let before = std::fs::read(&path).unwrap();
        say(&mut run, 1000, &progress);
        let open = |run: &Run| run.folder.open_if(|_| true).unwrap().unwrap();
        // Long enough for the leader, not for a hook.
        open(&run).save_index(&run.folder);
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(!concerns(&run, "Edit", "/p/d.py"), "progress concerns no call");
        say(&mut run, 100, &progress);
        assert!(concerns(&run, "Edit", "/p/d.py"), "somebody has to replace the index");
        let (mut first, mut second, mut late) = (open(&run), open(&run), open(&run));
        let mut log = Log::open(&run.folder.dir).unwrap();
        let index = Index::open(&run.folder.dir, &mut log).unwrap();
        assert!(index.claim(&run.folder.dir));
        first.save_index(&run.folder);
        assert_eq!(std::fs::read(&path).unwrap(), before, "another one is doing it");
        drop(index);
        second.save_index(&run.folder);
        let fresh = std::fs::read(&path).unwrap();
        assert_ne!(fresh, before);
        std::fs::write(path.with_extension("kept"), &fresh).unwrap();
        say(&mut run, 1, &progress);
        late.refresh().unwrap();
        late.save_index(&run.folder);
        assert_eq!(std::fs::read(&path).unwrap(), fresh, "another one has done it");
        assert!(!concerns(&run, "Edit", "/p/d.py"));
        // Missing: whoever finds it so.
        std::fs::remove_file(&path).unwrap();
        open(&run).save_index(&run.folder);
        assert!(used(&run) && looked(&run) == run.state.view);
    }

    /// An event of any kind, of which many are legal at no time: what is read is folded all the same.
    fn event() -> impl Strategy<Value = Draft> {
        let task = prop::sample::select(vec!["a", "b", "c", "other"]).prop_map(|t| TaskId::new(t).unwrap());
        let note = prop_oneof![Just(None), "[a\"\\\\\n]{0,8}".prop_map(Some)];
        let progress = (prop::option::of(0..=100_u8), prop::option::of(0..99_u64), note.clone(), note)
            .prop_map(|(percent, eta_s, note, summary)| Body::Progress(Progress { percent, eta_s, note, summary }));
        let decision = prop::sample::select(vec![Answer::Block, Answer::Rewrite, Answer::Held]).prop_map(|answer| {
            let (id, sha) = (Some("toolu".to_owned()), Some("0".to_owned()));
            let merge = Some(0);
            Body::Decision(Decision { answer, tool_use_id: id, input_sha256: sha, merge, ..Decision::default() })
        });
        let observed = Observed {
            hook: "PreToolUse".into(),
            phase: "before".into(),
            tool: "Read".into(),
            target: "a".into(),
            tool_use_id: None,
            awaited: vec![4],
        };
        let others = prop::sample::select(vec![
            started(),
            started(),
            Body::Spawned(process()),
            Body::WorkerStarted(process()),
            Body::WorkerExited(Reason { reason: "x".into() }),
            Body::Observed(observed),
            Body::Awaited(Awaited { id: 4, matcher: Some("Read".into()), on: None, done: false }),
            Body::Awaited(Awaited { id: 4, matcher: None, on: None, done: true }),
            Body::Awaited(Awaited { id: 5, matcher: None, on: Some("a@x".into()), done: false }),
            Body::Awaited(Awaited { id: 5, matcher: None, on: Some("a@x".into()), done: true }),
            Body::SignalReleased(SignalReleased { id: None, reason: "x".into() }),
            done("fine"),
        ]);
        let hook = prop::sample::select(vec![Addressee::PreToolUse, Addressee::PostToolUse, Addressee::Stop]);
        let matcher = prop::sample::select(vec![None, Some("Bash(x*)"), Some("*(a.py)"), Some("Edit")]);
        let signal =
            (hook, 0..4_i32, matcher, any::<bool>(), any::<bool>()).prop_map(|(hook, exit, m, own, sticky)| {
                let (matcher, expires) = (m.map(str::to_owned), sticky.then_some(9));
                let message = Some("so".to_owned());
                Body::Signal(Signal { id: 0, hook, exit, message, data: None, matcher, own, sticky, expires, more: 0 })
            });
        let body = prop_oneof![3 => progress, 1 => decision, 2 => signal, 4 => others];
        (task, 1..3_u32, 1..3_u32, body).prop_map(|(task, attempt, worker, body)| match body {
            Body::WorkerStarted(_) | Body::WorkerExited(_) => Draft::worker(WorkerNo(worker), body),
            Body::Decision(_) => Draft::run(body),
            body => Draft::attempt(Some(WorkerNo(worker)), &task, attempt, body),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_index_of_any_prefix_and_the_rest_are_the_whole(
            drafts in prop::collection::vec(event(), 1..40), redirect in any::<bool>(),
        ) {
            let temp = tempfile::tempdir().unwrap();
            let mut run = run(temp.path());
            run.plan.conductor.on_claimed = if redirect { OnClaimed::Redirect } else { OnClaimed::Wait };
            let dir = &run.folder.dir;
            let fresh = || (Log::open(dir).unwrap(), View::new(&run.plan));
            let (mut log, mut view) = fresh();
            let budget = std::time::Duration::from_secs(30);
            log.transact(&mut view, budget, false, |tx| {
                drafts.iter().try_for_each(|d| tx.emit(d.clone()).map(drop))
            }).unwrap();
            let whole = std::fs::read(run.folder.path().join(log::NAME)).unwrap();
            let ends: Vec<usize> = (0..whole.len()).filter(|i| whole[*i] == b'\n').map(|i| i + 1).collect();
            for end in ends {
                // The index of a log that ends there.
                std::fs::write(run.folder.path().join(log::NAME), &whole[..end]).unwrap();
                let (mut part, mut before) = fresh();
                part.read(&mut before).unwrap();
                save(dir, &part, &before).unwrap();
                std::fs::write(run.folder.path().join(log::NAME), &whole).unwrap();
                let mut rest = Log::open(dir).unwrap();
                let index = Index::open(dir, &mut rest).unwrap();
                // A tail that is called quiet leaves the glance as it was.
                if index.quiet_tail(&mut rest).is_some() {
                    prop_assert_eq!(Glance::of(&before), Glance::of(&view));
                }
                prop_assert!(index.rewind(&mut rest));
                prop_assert_eq!(index.glance().unwrap(), Glance::of(&before));
                let mut after = index.view().unwrap();
                rest.read(&mut after).unwrap();
                prop_assert_eq!(&after, &view);
            }
        }
    }
}
