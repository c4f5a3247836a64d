//! `events.jsonl`: the one file that everything stands on. Appended to by one transaction that everybody uses, read
//! without a lock.
//!
//! A transaction is: lock, for a bounded time → check that the file is still the one by that name → cut off a torn tail →
//! fold what is new → decide, inside the lock → one write → unlock → sync if others will act on it. No append is atomic
//! against SIGKILL, however short (a write is torn at a page boundary), hence the repair before every append; and whoever
//! reads without the lock uses only bytes up to the last line feed.
//!
//! What the events mean is `logic`'s business; this module knows only that they are numbered lines.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::base::hex;
use crate::model::event::{BadLine, Body, Draft, Event, LogRepaired, MAX_LINE, SCHEMA};
use crate::sys::clock;
use crate::sys::dir::{Dir, FileId};
use crate::sys::lock;

/// The log's name in a run's folder.
pub const NAME: &str = "events.jsonl";

/// Bytes read at once.
const CHUNK: usize = 256 * 1024;

/// How long a reader that met an odd line waits for its second look: as long as a hook waits for a lock. Who is not in a
/// hurry looks again later.
const SECOND_LOOK: Duration = Duration::from_millis(250);

/// What events are folded into.
pub trait Fold {
    /// The sequence number of the last event applied.
    fn seq(&self) -> u64;
    /// The schema of the log; 0 before its first event.
    fn schema(&self) -> u32;
    /// Applies the next event.
    fn apply(&mut self, event: &Event);
}

impl Fold for crate::logic::view::View {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn schema(&self) -> u32 {
        self.schema
    }

    fn apply(&mut self, event: &Event) {
        Self::apply(self, event);
    }
}

impl Fold for crate::logic::state::State {
    fn seq(&self) -> u64 {
        self.view.seq
    }

    fn schema(&self) -> u32 {
        self.view.schema
    }

    fn apply(&mut self, event: &Event) {
        Self::apply(self, event);
    }
}

/// A fold that only counts, for whoever shows events and not what follows from them.
#[derive(Debug, Default)]
pub struct Count {
    seq: u64,
    schema: u32,
}

impl Fold for Count {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn schema(&self) -> u32 {
        self.schema
    }

    fn apply(&mut self, event: &Event) {
        self.seq = event.seq;
        if let Body::RunStarted(p) = &event.body {
            self.schema = p.v;
        }
    }
}

/// The events of a log as they come, each once.
#[derive(Debug)]
pub struct Tape {
    log: Log,
    count: Count,
}

impl Tape {
    /// From the first event on.
    pub fn open(dir: &Dir) -> Result<Tape, LogError> {
        Ok(Tape { log: Log::open_read(dir)?, count: Count::default() })
    }

    /// Those that came since the last call. On an error, what came before the damage was shown to `each`.
    pub fn read(&mut self, each: impl FnMut(&Event)) -> Result<(), LogError> {
        self.log.read_with(&mut self.count, each)
    }
}

/// Why the log could not be read or written.
#[derive(Debug)]
pub enum LogError {
    /// The operating system refused.
    Io {
        /// What was tried.
        doing: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// Somebody holds the lock for longer than this caller waits.
    Busy,
    /// The log is not what it must be; no new work may start from it.
    Damaged(String),
    /// Written by a newer cpw; this one reads what it knows and does not write.
    Newer(u32),
    /// An event is too long to be written.
    Line(BadLine),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Io { doing, source } => write!(f, "cannot {doing} events.jsonl: {source}"),
            LogError::Busy => f.write_str("events.jsonl is locked by another process"),
            LogError::Damaged(why) => write!(f, "run damaged: {why}"),
            LogError::Newer(v) => {
                write!(f, "events.jsonl has schema {v}, this cpw knows {SCHEMA}: it was written by a newer cpw")
            }
            LogError::Line(e) => write!(f, "event not written: {e}"),
        }
    }
}

// Its text names the cause already; a chain would say it twice.
impl std::error::Error for LogError {}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> LogError {
    move |source| LogError::Io { doing, source }
}

/// An open log and how far it has been folded.
#[derive(Debug)]
pub struct Log {
    file: File,
    id: FileId,
    offset: u64,
    buffer: Vec<u8>,
    ahead: bool,
}

/// One transaction: the state under the lock, and what is going to be written.
pub struct Tx<'a, F> {
    /// The state, every event of the log applied, and every one emitted in this transaction.
    pub fold: &'a mut F,
    lines: Vec<u8>,
    commit: bool,
    count: usize,
}

impl<F: Fold> Tx<'_, F> {
    /// Adds an event to what this transaction writes and applies it to the state. Returns its sequence number.
    pub fn emit(&mut self, draft: Draft) -> Result<u64, LogError> {
        let seq = self.fold.seq() + 1;
        let event = Event::new(draft, seq, clock::stamp());
        event.encode_into(&mut self.lines).map_err(LogError::Line)?;
        self.commit |= event.body.is_commit();
        self.count += 1;
        self.fold.apply(&event);
        Ok(seq)
    }

    /// Whether nothing was emitted yet.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Log {
    /// Makes an empty log. Fails if there is one.
    pub fn create(dir: &Dir) -> Result<Log, LogError> {
        dir.create_new(NAME, 0o600).map_err(io_error("create"))?;
        Log::open(dir)
    }

    /// Opens the log for reading and appending, nothing folded yet.
    pub fn open(dir: &Dir) -> Result<Log, LogError> {
        let file = dir.open_append_existing(NAME).map_err(io_error("open"))?;
        Log::with_file(file)
    }

    /// Opens the log for reading only, as on a read-only file system.
    pub fn open_read(dir: &Dir) -> Result<Log, LogError> {
        let file = dir.open_read(NAME).map_err(io_error("open"))?;
        Log::with_file(file)
    }

    fn with_file(file: File) -> Result<Log, LogError> {
        let id = FileId::of(&file).map_err(io_error("look at"))?;
        Ok(Log { file, id, offset: 0, buffer: Vec::new(), ahead: false })
    }

    /// Which file it is.
    pub fn id(&self) -> &FileId {
        &self.id
    }

    /// Whether the state that was folded from it holds what could not be written. Only folding anew helps.
    pub fn is_ahead(&self) -> bool {
        self.ahead
    }

    fn check_ahead(&self) -> Result<(), LogError> {
        if !self.ahead {
            return Ok(());
        }
        let source = io::Error::other("what was decided before could not be written");
        Err(LogError::Io { doing: "go on with", source })
    }

    /// Bytes folded so far; always the end of a line.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Its present length in bytes.
    pub fn len(&self) -> Result<u64, LogError> {
        self.file.metadata().map(|m| m.len()).map_err(io_error("look at"))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> Result<bool, LogError> {
        self.len().map(|n| n == 0)
    }

    /// Continues from a place that an index vouches for: the 64 bytes before it have the hash `tail`. `false` if this log
    /// does not look like that.
    pub fn resume_at(&mut self, offset: u64, tail: &str) -> bool {
        let fits = self.tail_hash(offset).is_ok_and(|hash| hash == tail);
        if fits {
            self.offset = offset;
        }
        fits
    }

    /// A hash of the (at most) 64 bytes before `offset`, by which an index recognises its log.
    pub fn tail_hash(&self, offset: u64) -> io::Result<String> {
        let start = offset.saturating_sub(64);
        let mut bytes = [0_u8; 64];
        let wanted = usize::try_from(offset - start).unwrap_or(64);
        self.file.read_exact_at(&mut bytes[..wanted], start)?;
        if wanted > 0 && bytes[wanted - 1] != b'\n' {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the end of a line"));
        }
        Ok(hex::sha256(&bytes[..wanted]))
    }

    /// Folds what is new, without the lock. A line that cannot be read is read again under a shared lock before the run is
    /// called damaged, because a writer may be about to cut it off.
    pub fn read<F: Fold>(&mut self, fold: &mut F) -> Result<(), LogError> {
        self.read_with(fold, |_| {})
    }

    /// As [`Log::read`], and shows each event to `each`.
    pub fn read_with<F: Fold>(&mut self, fold: &mut F, mut each: impl FnMut(&Event)) -> Result<(), LogError> {
        self.check_ahead()?;
        match self.fold_new(fold, &mut each) {
            Err(LogError::Damaged(_)) => {
                if !lock::lock_shared(&self.file, SECOND_LOOK).map_err(io_error("lock"))? {
                    return Err(LogError::Busy);
                }
                let again = self.fold_new(fold, &mut each);
                lock::unlock(&self.file).map_err(io_error("unlock"))?;
                again
            }
            other => other,
        }
    }

    fn fold_new<F: Fold>(&mut self, fold: &mut F, each: &mut impl FnMut(&Event)) -> Result<(), LogError> {
        let end = self.len()?;
        if end < self.offset {
            return Err(LogError::Damaged(format!(
                "events.jsonl became shorter than the {} bytes read before",
                self.offset
            )));
        }
        let mut chunk = CHUNK.min(MAX_LINE);
        loop {
            // No more than there is: most looks find nothing or a few lines, and a large buffer costs more than they do.
            let left = usize::try_from(end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
            if left == 0 {
                return Ok(());
            }
            self.buffer.resize(chunk.min(left), 0);
            let n = match self.file.read_at(&mut self.buffer, self.offset) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(LogError::Io { doing: "read", source }),
            };
            let Some(last) = self.buffer[..n].iter().rposition(|b| *b == b'\n') else {
                if n < chunk {
                    return Ok(());
                }
                if chunk > MAX_LINE {
                    return Err(LogError::Damaged(format!(
                        "line after {} is longer than {MAX_LINE} bytes",
                        fold.seq()
                    )));
                }
                chunk = CHUNK;
                continue;
            };
            let mut start = 0;
            for end in self.buffer[..=last].iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i) {
                let seq = fold.seq();
                let event = Event::decode(&self.buffer[start..end])
                    .map_err(|e| LogError::Damaged(format!("the line after seq {seq} is {e}")))?;
                if event.seq != seq + 1 {
                    return Err(LogError::Damaged(format!(
                        "seq {} is missing after {seq} (found {})",
                        seq + 1,
                        event.seq
                    )));
                }
                fold.apply(&event);
                each(&event);
                self.offset += (end + 1 - start) as u64;
                start = end + 1;
            }
            chunk = CHUNK;
        }
    }

    /// Runs one transaction. `decide` sees the state as it is under the lock and emits events; they are written in one
    /// write, or not at all. Returns what `decide` returned.
    ///
    /// When what was emitted could not be written, the state is ahead of the file and this log refuses to go on: the
    /// caller has to fold anew, from a log opened anew.
    pub fn transact<F: Fold, T>(
        &mut self,
        dir: &Dir,
        fold: &mut F,
        budget: Duration,
        sync: bool,
        decide: impl FnOnce(&mut Tx<'_, F>) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        self.check_ahead()?;
        if !lock::lock_exclusive(&self.file, budget).map_err(io_error("lock"))? {
            return Err(LogError::Busy);
        }
        let result = self.locked(dir, fold, decide);
        let unlocked = lock::unlock(&self.file).map_err(io_error("unlock"));
        let (value, commit) = result?;
        unlocked?;
        if sync && commit {
            // Never retried: after a failed sync the kernel may report success for data that it dropped.
            self.file.sync_data().map_err(io_error("sync"))?;
        }
        Ok(value)
    }

    fn locked<F: Fold, T>(
        &mut self,
        dir: &Dir,
        fold: &mut F,
        decide: impl FnOnce(&mut Tx<'_, F>) -> Result<T, LogError>,
    ) -> Result<(T, bool), LogError> {
        let named = dir.stat(NAME).map_err(io_error("look at"))?;
        if !named.is_some_and(|named| named.same_file(&self.id)) {
            return Err(LogError::Damaged("events.jsonl was deleted or replaced while the run was going on".into()));
        }
        let torn = self.repair()?;
        self.fold_new(fold, &mut |_| {})?;
        if fold.schema() > SCHEMA {
            return Err(LogError::Newer(fold.schema()));
        }
        let mut tx = Tx { fold, lines: Vec::new(), commit: false, count: 0 };
        if let Some(repaired) = torn {
            // The first line of a log is always `run_started`; what was torn before it was never acknowledged.
            if tx.fold.seq() > 0 {
                tx.emit(Draft::run(Body::LogRepaired(repaired)))?;
            }
        }
        let decided = decide(&mut tx);
        let (lines, commit) = (std::mem::take(&mut tx.lines), tx.commit);
        self.ahead = !lines.is_empty();
        let value = decided?;
        if self.ahead {
            self.append(&lines)?;
            self.ahead = false;
        }
        Ok((value, commit))
    }

    /// Cuts off what stands behind the last line feed. Only under the lock: without it, it is somebody's write going on.
    fn repair(&mut self) -> Result<Option<LogRepaired>, LogError> {
        let length = self.len()?;
        let mut last = [0_u8];
        if length == 0 || (self.file.read_exact_at(&mut last, length - 1).is_ok() && last[0] == b'\n') {
            return Ok(None);
        }
        let mut keep = length;
        let mut torn = Vec::new();
        while keep > 0 {
            let start = keep.saturating_sub(MAX_LINE as u64);
            let mut piece = vec![0_u8; usize::try_from(keep - start).unwrap_or(MAX_LINE)];
            self.file.read_exact_at(&mut piece, start).map_err(io_error("read"))?;
            let cut = piece.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
            torn.splice(0..0, piece[cut..].iter().copied());
            keep = start + cut as u64;
            if cut > 0 {
                break;
            }
        }
        self.file.set_len(keep).map_err(io_error("repair"))?;
        Ok(Some(LogRepaired { bytes: length - keep, sha256: hex::sha256(&torn) }))
    }

    /// One write. A short one (full disk, quota, a signal) leaves whole lines, which count as written, and a rest, which is
    /// cut off again.
    fn append(&mut self, lines: &[u8]) -> Result<(), LogError> {
        let before = self.len()?;
        let outcome = loop {
            match io::Write::write(&mut self.file, lines) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        match outcome {
            Ok(n) if n == lines.len() => {
                self.offset = before + n as u64;
                Ok(())
            }
            Ok(n) => {
                let whole = lines[..n].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
                self.file.set_len(before + whole as u64).map_err(io_error("cut back"))?;
                let source = io::Error::new(io::ErrorKind::StorageFull, "only a part could be written");
                Err(LogError::Io { doing: "write", source })
            }
            Err(source) => Err(LogError::Io { doing: "write", source }),
        }
    }

    /// Syncs the log to disk.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync_data().map_err(io_error("sync"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::base::ids::WorkerNo;
    use crate::logic::simulation::{plan, run_started, task};
    use crate::model::event::Reason;

    const LONG: Duration = Duration::from_secs(30);

    fn note(text: &str) -> Draft {
        Draft::worker(WorkerNo(1), Body::WorkerExited(Reason { reason: text.into() }))
    }

    fn write(log: &mut Log, dir: &Dir, count: &mut Count, text: &str) -> Result<u64, LogError> {
        log.transact(dir, count, LONG, false, |tx| tx.emit(note(text)))
    }

    /// A log with `run_started` and two more events.
    fn three() -> (tempfile::TempDir, Dir, Log, Count) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let (mut log, mut count) = (Log::create(&dir).unwrap(), Count::default());
        let first = Draft::run(run_started(&plan(vec![task("a")]), "boot"));
        log.transact(&dir, &mut count, LONG, true, |tx| tx.emit(first)).unwrap();
        write(&mut log, &dir, &mut count, "two").unwrap();
        write(&mut log, &dir, &mut count, "three").unwrap();
        (temp, dir, log, count)
    }

    fn bytes(temp: &Path) -> Vec<u8> {
        std::fs::read(temp.join(NAME)).unwrap()
    }

    fn events(temp: &Path) -> Vec<Event> {
        let bytes = bytes(temp);
        assert_eq!(bytes.last(), Some(&b'\n'));
        let events: Vec<Event> =
            bytes[..bytes.len() - 1].split(|b| *b == b'\n').map(|l| Event::decode(l).unwrap()).collect();
        assert!(events.iter().map(|e| e.seq).eq(1..=events.len() as u64), "seq has a gap");
        events
    }

    #[test]
    fn a_line_torn_anywhere_is_never_read_and_is_cut_off_before_the_next_write() {
        let (temp, dir, _, _) = three();
        let whole = bytes(temp.path());
        let start = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').unwrap() + 1;
        for end in start + 1..whole.len() {
            std::fs::write(temp.path().join(NAME), &whole[..end]).unwrap();
            let (mut log, mut count) = (Log::open_read(&dir).unwrap(), Count::default());
            log.read(&mut count).unwrap();
            assert_eq!((count.seq, log.offset()), (2, start as u64));
            assert_eq!(bytes(temp.path()).len(), end, "a reader wrote");
            let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
            write(&mut log, &dir, &mut count, "after").unwrap();
            let events = events(temp.path());
            assert_eq!(events.len(), 4);
            let torn = &whole[start..end];
            let repaired = LogRepaired { bytes: torn.len() as u64, sha256: hex::sha256(torn) };
            assert_eq!(events[2].body, Body::LogRepaired(repaired));
            assert!(matches!(&events[3].body, Body::WorkerExited(p) if p.reason == "after"));
        }
    }

    #[test]
    fn what_is_torn_can_be_long_or_the_very_first_line() {
        let (temp, dir, mut log, mut count) = three();
        let mut torn = bytes(temp.path());
        torn.extend(vec![b'x'; 3 * CHUNK + 5]);
        std::fs::write(temp.path().join(NAME), &torn).unwrap();
        write(&mut log, &dir, &mut count, "after").unwrap();
        let bytes = 3 * CHUNK as u64 + 5;
        assert!(matches!(&events(temp.path())[3].body, Body::LogRepaired(p) if p.bytes == bytes));

        std::fs::write(temp.path().join(NAME), b"{\"t\":\"run_sta").unwrap();
        let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
        let first = Draft::run(run_started(&plan(vec![task("a")]), "boot"));
        log.transact(&dir, &mut count, LONG, false, |tx| tx.emit(first)).unwrap();
        assert!(matches!(events(temp.path())[..], [Event { body: Body::RunStarted(_), .. }]));
    }

    #[test]
    fn a_log_that_is_not_what_it_must_be_is_called_damaged_and_left_alone() {
        let line = |seq: u64| format!("{{\"t\":\"worker_exited\",\"seq\":{seq},\"payload\":{{\"reason\":\"x\"}}}}\n");
        let endless = format!("{{\"t\":\"future\",\"seq\":4,\"payload\":\"{}\"}}\n", "x".repeat(MAX_LINE));
        for (what, added, says) in [
            ("a gap", line(5), "seq 4 is missing after 3"),
            ("a repeated number", line(3), "seq 4 is missing after 3"),
            ("no JSON", "hello\n".into(), "the line after seq 3"),
            ("an empty line", "\n".into(), "the line after seq 3"),
            ("zeros", "\0\0\0\n".into(), "the line after seq 3"),
            ("a line too long", endless, "the line after seq 3"),
        ] {
            let (folder, dir, mut log, mut count) = three();
            let mut spoiled = bytes(folder.path());
            spoiled.extend_from_slice(added.as_bytes());
            std::fs::write(folder.path().join(NAME), &spoiled).unwrap();
            let said = log.read(&mut count).unwrap_err().to_string();
            assert!(said.starts_with("run damaged: ") && said.contains(says), "{what}: {said}");
            assert_eq!(count.seq, 3, "{what}: what stands before it counts");
            let error = write(&mut log, &dir, &mut count, "more").unwrap_err();
            assert!(matches!(error, LogError::Damaged(_)), "{what}: {error}");
            assert_eq!(bytes(folder.path()), spoiled, "{what}");
        }
    }

    #[test]
    fn a_log_that_is_cut_deleted_or_exchanged_meanwhile_is_damaged() {
        let (temp, dir, mut log, mut count) = three();
        let path = temp.path().join(NAME);
        let whole = bytes(temp.path());
        std::fs::write(&path, &whole[..=whole.iter().position(|b| *b == b'\n').unwrap()]).unwrap();
        let said = write(&mut log, &dir, &mut count, "x").unwrap_err().to_string();
        assert!(said.contains("became shorter"), "{said}");
        assert!(log.read(&mut count).unwrap_err().to_string().contains("became shorter"));
        std::fs::remove_file(&path).unwrap();
        let said = write(&mut log, &dir, &mut count, "x").unwrap_err().to_string();
        assert!(said.contains("deleted or replaced"), "{said}");
        assert!(!path.exists());
        std::fs::write(&path, &whole).unwrap();
        let said = write(&mut log, &dir, &mut count, "x").unwrap_err().to_string();
        assert!(said.contains("deleted or replaced"), "{said}");
        assert_eq!(bytes(temp.path()), whole);
    }

    #[test]
    fn a_newer_log_is_read_and_not_written() {
        let (temp, dir, _, _) = three();
        let text = String::from_utf8(bytes(temp.path())).unwrap();
        let newer = text.replacen("\"v\":1", "\"v\":2", 1) + "{\"t\":\"sparkle\",\"seq\":4,\"payload\":{}}\n";
        std::fs::write(temp.path().join(NAME), &newer).unwrap();
        let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
        log.read(&mut count).unwrap();
        assert_eq!((count.seq, count.schema), (4, 2));
        let error = write(&mut log, &dir, &mut count, "x").unwrap_err();
        assert!(matches!(error, LogError::Newer(2)), "{error}");
        assert_eq!(bytes(temp.path()), newer.as_bytes());
    }

    #[test]
    fn a_decision_that_cannot_be_written_leaves_no_trace_and_stops_the_log() {
        let (temp, dir, mut log, mut count) = three();
        let before = bytes(temp.path());
        let error = write(&mut log, &dir, &mut count, &"x".repeat(MAX_LINE)).unwrap_err();
        assert!(matches!(error, LogError::Line(_)), "{error}");
        assert_eq!(write(&mut log, &dir, &mut count, "four").unwrap(), 4);
        let both = log.transact(&dir, &mut count, LONG, false, |tx| {
            tx.emit(note("five"))?;
            tx.emit(note(&"x".repeat(MAX_LINE)))
        });
        assert!(matches!(both, Err(LogError::Line(_))));
        assert_eq!(events(temp.path()).len(), 4);
        assert!(bytes(temp.path()).starts_with(&before));
        // The state holds an event that the file does not: going on would leave a gap.
        assert!(log.is_ahead());
        assert!(write(&mut log, &dir, &mut count, "x").is_err() && log.read(&mut count).is_err());
        let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
        assert_eq!(write(&mut log, &dir, &mut count, "five").unwrap(), 5);
        events(temp.path());
    }

    #[test]
    fn who_does_not_get_the_lock_in_time_writes_nothing() {
        let (temp, dir, mut log, mut count) = three();
        let other = Log::open(&dir).unwrap();
        assert!(lock::try_exclusive(&other.file).unwrap());
        let before = bytes(temp.path());
        let error =
            log.transact(&dir, &mut count, Duration::from_millis(20), false, |tx| tx.emit(note("x"))).unwrap_err();
        assert!(matches!(error, LogError::Busy), "{error}");
        assert_eq!(bytes(temp.path()), before);
        // A reader needs no lock.
        Log::open(&dir).unwrap().read(&mut Count::default()).unwrap();
        drop(other);
        write(&mut log, &dir, &mut count, "x").unwrap();
    }

    #[test]
    fn many_writers_leave_no_gap_and_lose_nothing() {
        const WRITERS: usize = 8;
        const EACH: usize = 40;
        let (temp, _, _, _) = three();
        std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let path = temp.path();
                scope.spawn(move || {
                    let dir = Dir::open(path).unwrap();
                    let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
                    for i in 0..EACH {
                        let text = format!("{writer}.{i}");
                        let seq = write(&mut log, &dir, &mut count, &text).unwrap();
                        assert_eq!(seq, count.seq);
                        // Two lines in one write stay together.
                        let pair = |tx: &mut Tx<'_, Count>| Ok((tx.emit(note("a"))?, tx.emit(note("b"))?));
                        let (a, b) = log.transact(&dir, &mut count, LONG, false, pair).unwrap();
                        assert_eq!(a + 1, b);
                        let mut late = Count::default();
                        Log::open_read(&dir).unwrap().read(&mut late).unwrap();
                        assert!(late.seq >= b, "a reader misses what was acknowledged");
                    }
                });
            }
        });
        let events = events(temp.path());
        assert_eq!(events.len(), 3 + 3 * WRITERS * EACH);
        for writer in 0..WRITERS {
            for i in 0..EACH {
                let is = |e: &&Event| matches!(&e.body, Body::WorkerExited(p) if p.reason == format!("{writer}.{i}"));
                assert_eq!(events.iter().filter(is).count(), 1);
            }
        }
    }

    const CHILD: &str = "CPW_TEST_SHORT_WRITE";

    /// In a process of its own, because the limit is the whole process's.
    #[test]
    fn a_write_that_the_disk_cuts_short_leaves_whole_lines() {
        use nix::sys::resource::{Resource, setrlimit};
        if let Some(path) = std::env::var_os(CHILD) {
            crate::sys::signals::ignore_write_signals().unwrap();
            let dir = Dir::open(&path).unwrap();
            let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
            log.read(&mut count).unwrap();
            let length = log.len().unwrap();
            // Room for one line and a half.
            let mut line = Vec::new();
            Event::new(note("long enough"), 4, clock::stamp()).encode_into(&mut line).unwrap();
            let room = length + line.len() as u64 * 3 / 2;
            setrlimit(Resource::RLIMIT_FSIZE, room, room).unwrap();
            let three = |tx: &mut Tx<'_, Count>| (0..3).try_for_each(|_| tx.emit(note("long enough")).map(drop));
            let error = log.transact(&dir, &mut count, LONG, false, three).unwrap_err();
            assert!(matches!(error, LogError::Io { .. }), "{error}");
            assert!(log.is_ahead());
            let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
            log.read(&mut count).unwrap();
            assert_eq!(count.seq, 4, "the line that is whole counts");
            assert!(write(&mut log, &dir, &mut count, "long enough").is_err());
            return;
        }
        let (temp, dir, _, _) = three();
        let name = "store::log::tests::a_write_that_the_disk_cuts_short_leaves_whole_lines";
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, temp.path());
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
        assert_eq!(events(temp.path()).len(), 4);
        let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
        assert_eq!(write(&mut log, &dir, &mut count, "goes on").unwrap(), 5);
        events(temp.path());
    }
}
