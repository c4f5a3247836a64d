//! `events.jsonl`: the one file that everything stands on. Appended to by one transaction that everybody uses, read
//! without a lock.
//!
//! A transaction is: lock, for a bounded time → check that the file is still the one by that name → cut off a torn tail →
//! fold what is new → decide, inside the lock → one write → unlock → sync if others will act on it. No append is atomic
//! against SIGKILL, however short (a write is torn at a page boundary), hence the repair before every append; and whoever
//! reads without the lock uses only bytes up to the last line feed.
//!
//! What the events mean is `logic`'s business; this module knows only that they are numbered lines. What it needs of the
//! operating system goes through one seam, [`Medium`], so that its tests can make any call fail.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::base::hex;
use crate::base::sum::sum;
use crate::logic::state::State;
use crate::logic::step::Ledger;
use crate::logic::view::View;
use crate::model::event::{BadLine, Body, Draft, Event, LogRepaired, MAX_LINE, SCHEMA};
use crate::model::scan;
use crate::sys::clock;
use crate::sys::dir::{Dir, FileId};
use crate::sys::medium::{Hold, LogFile, Medium};

/// The log's name in a run's folder.
pub const NAME: &str = "events.jsonl";

/// Who is shown each event that is read, with its line.
type Each<'e> = &'e mut dyn FnMut(&Event, &[u8]);

/// Bytes read at once where no line ends in as many as a line may have.
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
    /// Applies the next line, without its line feed, if that needs less than decoding it. `false`: nothing was applied.
    fn skim(&mut self, _line: &[u8]) -> bool {
        false
    }
}

impl Fold for View {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn schema(&self) -> u32 {
        self.schema
    }

    fn apply(&mut self, event: &Event) {
        Self::apply(self, event);
    }

    fn skim(&mut self, line: &[u8]) -> bool {
        Self::skim(self, line)
    }
}

impl Fold for State {
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

    /// As [`Tape::read`], with the line of each event as it stands in the log, without its line feed.
    pub fn lines(&mut self, mut each: impl FnMut(&Event, &[u8])) -> Result<(), LogError> {
        self.log.read_new(&mut self.count, u64::MAX, Some(&mut each))
    }
}

/// What makes a log one that no new work may start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// What is wrong, with its line where there is one, for a person.
    pub why: String,
    /// Where.
    pub at: Option<Place>,
}

/// A place in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Its line, from 1.
    pub line: u64,
    /// The first byte of that line, from 0.
    pub offset: u64,
}

impl Damage {
    /// Of the file as a whole.
    pub fn of_file(why: impl Into<String>) -> Damage {
        Damage { why: why.into(), at: None }
    }
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "{} (byte {})", self.why, at.offset),
            None => f.write_str(&self.why),
        }
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
    /// What was written may not survive a power cut: the disk could not be brought to keep it. It is in the log all the
    /// same. Never tried again: after a failed sync the kernel may report success for data that it dropped.
    Unsynced(io::Error),
    /// Somebody holds the lock for longer than this caller waits.
    Busy,
    /// The log is not what it must be; no new work may start from it.
    Damaged(Damage),
    /// Written by a newer cpw; this one reads what it knows and does not write.
    Newer(u32),
    /// An event is too long to be written.
    Line(BadLine),
}

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogError::Io { doing, source } => write!(f, "cannot {doing} events.jsonl: {source}"),
            LogError::Unsynced(source) => write!(f, "events.jsonl could not be synced to disk: {source}"),
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

fn damaged(why: impl Into<String>) -> LogError {
    LogError::Damaged(Damage::of_file(why))
}

/// An open log and how far it has been folded.
#[derive(Debug)]
pub struct Log<M = LogFile> {
    file: M,
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
    events: Vec<Event>,
}

impl<F: Fold> Tx<'_, F> {
    /// Adds an event to what this transaction writes and applies it to the state. Returns its sequence number.
    pub fn emit(&mut self, draft: Draft) -> Result<u64, LogError> {
        let seq = self.fold.seq() + 1;
        let event = Event::new(draft, seq, clock::stamp());
        event.encode_into(&mut self.lines).map_err(LogError::Line)?;
        self.commit |= event.body.is_commit();
        self.fold.apply(&event);
        self.events.push(event);
        Ok(seq)
    }

    /// Whether nothing was emitted yet.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// What was emitted so far.
    pub fn events(&self) -> &[Event] {
        &self.events
    }
}

impl Log {
    /// Makes an empty log. Fails if there is one.
    pub fn create(dir: &Dir) -> Result<Log, LogError> {
        LogFile::create(dir, NAME).map(Log::on).map_err(io_error("create"))
    }

    /// Opens the log for reading and appending, nothing folded yet.
    pub fn open(dir: &Dir) -> Result<Log, LogError> {
        LogFile::open(dir, NAME).map(Log::on).map_err(io_error("open"))
    }

    /// Opens the log for reading only, as on a read-only file system.
    pub fn open_read(dir: &Dir) -> Result<Log, LogError> {
        LogFile::open_read(dir, NAME).map(Log::on).map_err(io_error("open"))
    }
}

impl Ledger for Tx<'_, State> {
    type Error = LogError;

    fn state(&self) -> &State {
        self.fold
    }

    fn emit(&mut self, draft: Draft) -> Result<u64, LogError> {
        Tx::emit(self, draft)
    }
}

impl<M: Medium> Log<M> {
    /// The log in `file`, nothing folded yet.
    pub fn on(file: M) -> Log<M> {
        Log { file, offset: 0, buffer: Vec::new(), ahead: false }
    }

    /// Which file it is.
    pub fn id(&self) -> &FileId {
        self.file.id()
    }

    /// Whether the state that was folded from it may hold what the file does not, or whether its lock could not be given
    /// back. Only folding anew, from a log opened anew, helps.
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
        self.file.len().map_err(io_error("look at"))
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> Result<bool, LogError> {
        self.len().map(|n| n == 0)
    }

    /// Continues from a place that an index vouches for: the 64 bytes before it have the sum `tail`. `false` if this log
    /// does not look like that.
    pub fn resume_at(&mut self, offset: u64, tail: u64) -> bool {
        let fits = self.tail_sum(offset).is_ok_and(|sum| sum == tail);
        if fits {
            self.offset = offset;
        }
        fits
    }

    /// A check sum of the (at most) 64 bytes before `offset`, by which an index recognises its log.
    pub fn tail_sum(&self, offset: u64) -> io::Result<u64> {
        let start = offset.saturating_sub(64);
        let mut bytes = [0_u8; 64];
        let wanted = usize::try_from(offset - start).unwrap_or(64);
        self.file.read_exact_at(&mut bytes[..wanted], start)?;
        if wanted > 0 && bytes[wanted - 1] != b'\n' {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not the end of a line"));
        }
        Ok(sum(&bytes[..wanted]))
    }

    /// Folds what is new, without the lock. A line that cannot be read is read again under a shared lock before the run is
    /// called damaged, because a writer may be about to cut it off.
    pub fn read<F: Fold>(&mut self, fold: &mut F) -> Result<(), LogError> {
        self.read_new(fold, u64::MAX, None)
    }

    /// As [`Log::read`], about `bytes` of it. Returns whether it goes on.
    pub fn read_part<F: Fold>(&mut self, fold: &mut F, bytes: u64) -> Result<bool, LogError> {
        let end = self.offset.saturating_add(bytes.max(MAX_LINE as u64));
        self.read_new(fold, end, None)?;
        Ok(self.len()? > end)
    }

    /// Begins again before the first event.
    pub fn restart(&mut self) {
        self.offset = 0;
    }

    /// As [`Log::read`], and shows each event to `each`.
    pub fn read_with<F: Fold>(&mut self, fold: &mut F, mut each: impl FnMut(&Event)) -> Result<(), LogError> {
        self.read_new(fold, u64::MAX, Some(&mut |event, _| each(event)))
    }

    fn read_new<F: Fold>(&mut self, fold: &mut F, until: u64, mut each: Option<Each<'_>>) -> Result<(), LogError> {
        self.check_ahead()?;
        match self.fold_new(fold, until, &mut each) {
            Err(LogError::Damaged(_)) => {
                if !self.file.lock(Hold::Shared, SECOND_LOOK).map_err(io_error("lock"))? {
                    return Err(LogError::Busy);
                }
                let again = self.fold_new(fold, until, &mut each);
                self.unlock();
                again
            }
            other => other,
        }
    }

    fn fold_new<F: Fold>(&mut self, fold: &mut F, until: u64, each: &mut Option<Each<'_>>) -> Result<(), LogError> {
        let end = self.len()?;
        self.fold_to(end, fold, until, each)
    }

    /// Folds what is new in the first `end` bytes, up to their last line feed, or to the end of the line at `until`.
    fn fold_to<F: Fold>(
        &mut self,
        end: u64,
        fold: &mut F,
        until: u64,
        each: &mut Option<Each<'_>>,
    ) -> Result<(), LogError> {
        if end < self.offset {
            let known = self.offset;
            return Err(damaged(format!("events.jsonl was cut to {end} bytes after {known} had been read from it")));
        }
        let end = end.min(until);
        let mut chunk = MAX_LINE;
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
                    let line = fold.seq() + 1;
                    return Err(
                        self.bad_line(line, format!("line {line} of events.jsonl is longer than {MAX_LINE} bytes"))
                    );
                }
                chunk = CHUNK;
                continue;
            };
            let mut start = 0;
            while let Some(end) = scan::line_end(&self.buffer[..=last], start) {
                let text = &self.buffer[start..end];
                let length = (end + 1 - start) as u64;
                start = end + 1;
                // Who wants to see events gets them decoded.
                if each.is_none() && fold.skim(text) {
                    self.offset += length;
                    continue;
                }
                let line = fold.seq() + 1;
                // A newer cpw may have put something else into the payload of a kind that this one knows.
                let decoded = if fold.schema() > SCHEMA { Event::decode_newer(text) } else { Event::decode(text) };
                let event = decoded.map_err(|e| self.bad_line(line, format!("line {line} of events.jsonl is {e}")))?;
                if event.seq != line {
                    let (before, found) = (line - 1, event.seq);
                    let why = format!("seq {line} is missing after line {before} of events.jsonl (found {found})");
                    return Err(self.bad_line(line, why));
                }
                fold.apply(&event);
                if let Some(each) = each {
                    each(&event, text);
                }
                self.offset += length;
            }
            chunk = MAX_LINE;
        }
    }

    /// Damage in the line that begins at the place reached so far.
    fn bad_line(&self, line: u64, why: String) -> LogError {
        LogError::Damaged(Damage { why, at: Some(Place { line, offset: self.offset }) })
    }

    /// Gives the lock back. Where even that fails, closing the file does it: the caller is told to open it anew.
    fn unlock(&mut self) {
        if self.file.unlock().is_err() {
            self.ahead = true;
        }
    }

    /// Runs one transaction. `decide` sees the state as it is under the lock and emits events; they are written in one
    /// write, or not at all. Returns what `decide` returned.
    ///
    /// When what was emitted could not be written, the state is ahead of the file and this log refuses to go on: the
    /// caller has to fold anew, from a log opened anew.
    pub fn transact<F: Fold, T>(
        &mut self,
        fold: &mut F,
        budget: Duration,
        sync: bool,
        decide: impl FnOnce(&mut Tx<'_, F>) -> Result<T, LogError>,
    ) -> Result<T, LogError> {
        self.check_ahead()?;
        // What is new is folded before as well, because others wait while it is folded under the lock. What cannot be
        // read now is looked at again there.
        drop(self.fold_new(fold, u64::MAX, &mut None));
        if !self.file.lock(Hold::Exclusive, budget).map_err(io_error("lock"))? {
            return Err(LogError::Busy);
        }
        let result = self.locked(fold, decide);
        self.unlock();
        let (value, commit) = result?;
        if sync && commit {
            self.file.sync().map_err(LogError::Unsynced)?;
        }
        Ok(value)
    }

    fn locked<F: Fold, T>(
        &mut self,
        fold: &mut F,
        decide: impl FnOnce(&mut Tx<'_, F>) -> Result<T, LogError>,
    ) -> Result<(T, bool), LogError> {
        let Some(length) = self.file.named_len().map_err(io_error("look at"))? else {
            return Err(damaged("events.jsonl was deleted or replaced while the run was going on"));
        };
        let torn = self.torn(length)?;
        let end = length - torn.as_ref().map_or(0, |torn| torn.bytes);
        self.fold_to(end, fold, u64::MAX, &mut None)?;
        if self.offset != end {
            // Nobody else writes now: what was decided on a part would get a number that is taken.
            let source = io::ErrorKind::UnexpectedEof.into();
            return Err(LogError::Io { doing: "read", source });
        }
        if fold.schema() > SCHEMA {
            return Err(LogError::Newer(fold.schema()));
        }
        let cut = torn.as_ref().map(|torn| torn.bytes);
        let mut tx = Tx { fold, lines: Vec::new(), commit: false, events: Vec::new() };
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
        if let Some(bytes) = cut {
            // Not before now: whoever may not write to this log must not cut it either.
            self.file.truncate(length - bytes).map_err(io_error("repair"))?;
        }
        if self.ahead {
            self.append(&lines)?;
            self.ahead = false;
        }
        Ok((value, commit))
    }

    /// What stands behind the last line feed and has to be cut off. Only under the lock: without it, it is somebody's write
    /// going on.
    fn torn(&self, length: u64) -> Result<Option<LogRepaired>, LogError> {
        if length == 0 {
            return Ok(None);
        }
        let mut last = [0_u8];
        self.file.read_exact_at(&mut last, length - 1).map_err(io_error("read"))?;
        if last[0] == b'\n' {
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
        Ok(Some(LogRepaired { bytes: length - keep, sha256: hex::sha256(&torn) }))
    }

    /// One write, behind what was folded: under the lock that is all there is. A short one (full disk, quota, a signal)
    /// leaves whole lines, which count as written, and a rest, which is cut off again.
    fn append(&mut self, lines: &[u8]) -> Result<(), LogError> {
        let before = self.offset;
        let outcome = loop {
            match self.file.append(lines) {
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
                self.file.truncate(before + whole as u64).map_err(io_error("cut back"))?;
                let source =
                    io::Error::new(io::ErrorKind::StorageFull, "only a part could be written: is the disk full?");
                Err(LogError::Io { doing: "write", source })
            }
            Err(source) => Err(LogError::Io { doing: "write", source }),
        }
    }

    /// Syncs the log to disk.
    pub fn sync(&self) -> Result<(), LogError> {
        self.file.sync().map_err(LogError::Unsynced)
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
