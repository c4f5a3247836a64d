//! What the transaction of the log costs, alone and in a crowd, against an unlocked write of the same line.
//!
//! `cargo bench --bench log`. Writers are processes: this program started again, which append by the transaction that
//! everybody uses: lock, is it the same file, is its end whole, fold what is new, one write, unlock. The floor is one
//! `write` to a file opened with `O_APPEND`, of the same line, without any of that: in turns with the transactions where
//! there is one writer, in phases of a second where there are many. In the end the log is read back: every line is an
//! event, numbered without a gap, and every event of every writer is there once.
//!
//! The crowd is measured twice. Those who come for each line, as hooks do, go on from an index; those who stay read every
//! line of all others, which is a processor's work in itself. Beside them: a write under the lock and nothing else.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot go on says so and ends")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cpw::base::ids::WorkerNo;
use cpw::model::event::{Body, Draft, Event, Reason};
use cpw::store::log::{Count, Fold, Log, NAME};
use cpw::sys::clock;
use cpw::sys::dir::Dir;

/// The file that is written to without a lock.
const FLOOR: &str = "floor.jsonl";

/// What hangs does not end at all.
const LIMIT: Duration = Duration::from_mins(1);

/// Lengths of lines for the one writer, and how many of each; the first is the one with a target.
const ALONE: [(usize, u64); 3] = [(200, 30_000), (4096, 10_000), (60 * 1024, 1000)];

/// The crowd: writers, the time between two lines of one, phases, and their length.
const CROWD: u64 = 256;
const THINK: Duration = Duration::from_millis(50);
const PHASES: u32 = 12;
const PHASE: Duration = Duration::from_secs(1);

/// What those of the crowd are: they come for each line, as hooks do, or stay, as workers do.
const COMES: &str = "comes";
const STAYS: &str = "stays";

/// What one of the crowd measures.
const TRANSACTION: u64 = 0;
const LOCKED: u64 = 1;
const UNLOCKED: u64 = 2;

/// Lines of the crowd, with their line feed.
const SHORT: usize = 200;

/// Writers at full speed, and how many lines each writes.
const STORM: [(u64, u64); 4] = [(1, 4000), (8, 500), (64, 40), (256, 8)];

/// The lengths of their lines, in turn.
const LENGTHS: [usize; 8] = [200, 200, 600, 200, 2000, 200, 8000, 60 * 1024];

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, role, folder, i, what] = &args[..]
        && role == "--writer"
    {
        return be_writer(Path::new(folder), i.parse().expect("a number"), what);
    }
    if !args.iter().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench log` runs it");
        return;
    }
    println!("load average at the beginning: {}", load());
    alone();
    for what in [COMES, STAYS] {
        crowd(what);
    }
    for (writers, lines) in STORM {
        storm(writers, lines);
    }
    println!("load average in the end: {}", load());
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").expect("/proc has it");
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Event `k` of writer `i`; its line has about `length` bytes.
fn draft(i: u64, k: u64, length: usize) -> Draft {
    let mut reason = format!("{i}.{k} ");
    // What is around it in the line.
    let filled = length.saturating_sub(112);
    reason.extend(std::iter::repeat_n('x', filled.saturating_sub(reason.len())));
    Draft::worker(WorkerNo(1), Body::WorkerExited(Reason { reason }))
}

/// The line of that event as the log would have it.
fn line(i: u64, k: u64, length: usize) -> Vec<u8> {
    let mut line = Vec::new();
    Event::new(draft(i, k, length), k + 1, clock::stamp()).encode_into(&mut line).expect("a line");
    line
}

/// Both files of a folder, open.
struct Pair {
    dir: Dir,
    log: Log,
    count: Count,
    floor: File,
}

impl Pair {
    fn create(folder: &Path) -> Pair {
        let dir = Dir::open(folder).expect("the folder");
        drop((Log::create(&dir).expect("a log"), dir.open_append(FLOOR).expect("a file")));
        Pair::open(folder)
    }

    fn open(folder: &Path) -> Pair {
        let dir = Dir::open(folder).expect("the folder");
        let (log, floor) = (Log::open(&dir).expect("the log"), dir.open_append(FLOOR).expect("the file"));
        Pair { dir, log, count: Count::default(), floor }
    }

    /// One transaction; returns nanoseconds.
    fn transact(&mut self, draft: Draft) -> u64 {
        let begun = Instant::now();
        self.log.transact(&mut self.count, LIMIT, false, |tx| tx.emit(draft)).expect("an event");
        since(begun)
    }

    /// One transaction as that of a hook, which has just begun and knows what a fresh index told it: it opens the log, goes
    /// on behind that, and folds what came since. Returns nanoseconds.
    fn come_and_transact(&mut self, draft: Draft) -> u64 {
        let mut index = Index::fresh(&self.log, &self.dir.open_read(NAME).expect("the log"));
        let begun = Instant::now();
        let mut log = Log::open(&self.dir).expect("the log");
        assert!(log.resume_at(index.offset, index.tail), "the log has changed");
        log.transact(&mut index, LIMIT, false, |tx| tx.emit(draft)).expect("an event");
        since(begun)
    }

    /// One write under the lock and nothing else: what the lock alone costs. Returns nanoseconds.
    fn locked(&mut self, line: &[u8]) -> u64 {
        let begun = Instant::now();
        self.floor.lock().expect("the lock");
        let written = self.floor.write(line).expect("a write");
        self.floor.unlock().expect("the lock is given back");
        let ns = since(begun);
        assert_eq!(written, line.len(), "the disk is full");
        ns
    }

    /// One write without a lock; returns nanoseconds.
    fn unlocked(&mut self, line: &[u8]) -> u64 {
        let begun = Instant::now();
        let written = self.floor.write(line).expect("a write");
        let ns = since(begun);
        assert_eq!(written, line.len(), "the disk is full");
        ns
    }
}

/// What an index says of a log: as much of it as there is to say where events are only counted.
struct Index {
    seq: u64,
    offset: u64,
    tail: u64,
}

impl Index {
    /// Up to the last line that is whole now.
    fn fresh(log: &Log, file: &File) -> Index {
        let end = log.len().expect("its length");
        let start = end.saturating_sub(2 * SHORT as u64);
        let mut bytes = vec![0; usize::try_from(end - start).unwrap_or(0)];
        file.read_exact_at(&mut bytes, start).expect("its end");
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let last =
            bytes[..whole].split(|b| *b == b'\n').rev().nth(1).map(|line| Event::decode(line).expect("an event"));
        let offset = if last.is_some() { start + whole as u64 } else { 0 };
        Index { seq: last.map_or(0, |event| event.seq), offset, tail: log.tail_sum(offset).expect("its end") }
    }
}

impl Fold for Index {
    fn seq(&self) -> u64 {
        self.seq
    }

    fn schema(&self) -> u32 {
        0
    }

    fn apply(&mut self, event: &Event) {
        self.seq = event.seq;
    }
}

fn since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds, many times.
#[derive(Default)]
struct Times(Vec<u64>);

impl Times {
    fn sort(&mut self) {
        self.0.sort_unstable();
    }

    /// In µs; sorted before.
    fn percentile(&self, per_mille: usize) -> f64 {
        let at = (self.0.len() * per_mille / 1000).min(self.0.len() - 1);
        us(self.0[at])
    }

    fn row(&mut self, name: &str) {
        self.sort();
        let [p50, p99, max] = [500, 990, 1000].map(|p| self.percentile(p));
        println!("  {name:<22} p50 {p50:>9.2}   p99 {p99:>9.2}   max {max:>9.2}   of {}", self.0.len());
    }
}

fn us(ns: u64) -> f64 {
    f64::from(u32::try_from(ns / 10).unwrap_or(u32::MAX)) / 100.0
}

fn verdict(good: bool) -> &'static str {
    if good { "ok" } else { "MISSED" }
}

/// One process, nobody else: transactions and unlocked writes in turn.
fn alone() {
    for (n, (length, lines)) in ALONE.into_iter().enumerate() {
        let temp = tempfile::tempdir().expect("a folder for temporary files");
        let mut pair = Pair::create(temp.path());
        let (mut log, mut floor) = (Times::default(), Times::default());
        for k in 0..lines {
            let (draft, line) = (draft(0, k, length), line(0, k, length));
            log.0.push(pair.transact(draft));
            floor.0.push(pair.unlocked(&line));
        }
        println!("one process, lines of {length} bytes, in µs");
        floor.row("unlocked write");
        log.row("transaction");
        let ratio = log.percentile(500) / floor.percentile(500);
        let reach = if n == 0 { format!(" (reach: 10)  {}", verdict(ratio <= 10.0)) } else { String::new() };
        println!("  p50 is {ratio:.1} ×{reach}");
        read_back(temp.path(), &[lines], |_, _| length);
    }
}

/// Starts writers and lets them begin at the same time. Returns what each reports.
fn writers(folder: &Path, number: u64, what: &str) -> Vec<Vec<u64>> {
    let start = |i: u64| {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--writer").arg(folder).args([&i.to_string(), what]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a writer")
    };
    let mut all: Vec<Child> = (0..number).map(start).collect();
    for child in &mut all {
        let out = child.stdout.as_mut().expect("its pipe");
        out.read_exact(&mut [0]).expect("it is ready");
    }
    for child in &mut all {
        drop(child.stdin.take());
    }
    let report = |child: Child| {
        let out = child.wait_with_output().expect("our child");
        assert!(out.status.success(), "a writer failed");
        let text = String::from_utf8(out.stdout).expect("numbers");
        text.split_whitespace().map(|n| n.parse().expect("a number")).collect()
    };
    all.into_iter().map(report).collect()
}

/// A writer: says that it is ready, waits for the end of its stdin, writes, reports how long each took.
fn be_writer(folder: &Path, i: u64, what: &str) {
    let mut pair = Pair::open(folder);
    let mut out = std::io::stdout();
    out.write_all(b"\n").expect("somebody listens");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("the start");
    let report = match what.parse() {
        Ok(lines) => at_full_speed(&mut pair, i, lines),
        Err(_) => with_pauses(&mut pair, i, what),
    };
    out.write_all(report.as_bytes()).expect("somebody listens");
}

fn at_full_speed(pair: &mut Pair, i: u64, lines: u64) -> String {
    let times: Vec<_> = (0..lines).map(|k| pair.transact(draft(i, k, length_of(i, k))).to_string()).collect();
    times.join("\n")
}

fn length_of(i: u64, k: u64) -> usize {
    LENGTHS[usize::try_from(i + k).unwrap_or(0) % LENGTHS.len()]
}

/// Phases of transactions, of writes under the lock alone, and of writes without it. Reports pairs: which it was, and its time.
fn with_pauses(pair: &mut Pair, i: u64, what: &str) -> String {
    let write = if what == COMES { Pair::come_and_transact } else { Pair::transact };
    let begun = Instant::now();
    let (mut k, mut times) = (0, Vec::new());
    // Not all at once, and not in step: each pause is between half and one and a half of what it is on average.
    let mut pause = THINK * u32::try_from(i).unwrap_or(0) / u32::try_from(CROWD).unwrap_or(1);
    loop {
        std::thread::sleep(pause);
        let phase = begun.elapsed().as_millis() / PHASE.as_millis();
        if phase >= u128::from(PHASES) {
            break;
        }
        times.push(match phase % 3 {
            0 => {
                k += 1;
                (TRANSACTION, write(pair, draft(i, k - 1, SHORT)))
            }
            1 => (LOCKED, pair.locked(&line(i, k, SHORT))),
            _ => (UNLOCKED, pair.unlocked(&line(i, k, SHORT))),
        });
        let step = u32::try_from((i * 31 + times.len() as u64 * 17) % 101).unwrap_or(0);
        pause = THINK / 2 + THINK * step / 100;
    }
    let lines: Vec<_> = times.into_iter().map(|(which, ns)| format!("{which} {ns}")).collect();
    lines.join("\n")
}

/// Many writers that do something else most of the time.
fn crowd(what: &str) {
    let temp = tempfile::tempdir().expect("a folder for temporary files");
    drop(Pair::create(temp.path()));
    let (mut log, mut locked, mut floor) = (Times::default(), Times::default(), Times::default());
    let mut lines = Vec::new();
    for report in writers(temp.path(), CROWD, what) {
        let before = log.0.len();
        for pair in report.chunks(2) {
            let times = match pair[0] {
                TRANSACTION => &mut log,
                LOCKED => &mut locked,
                _ => &mut floor,
            };
            times.0.push(pair[1]);
        }
        lines.push((log.0.len() - before) as u64);
    }
    let reads = if what == COMES { "index at the end" } else { "each reads every line of all" };
    println!("{CROWD} processes, each a line of {SHORT} bytes every {THINK:?}, {reads}, in µs");
    floor.row("unlocked write");
    locked.row("flock, write, unlock");
    log.row("transaction");
    let (ratio, max) = (log.percentile(990) / floor.percentile(990), log.percentile(1000) / 1000.0);
    println!("  p99 is {ratio:.1} × (reach: 10)  {}", verdict(ratio <= 10.0));
    println!("  max is {max:.2} ms (reach: 10)  {}", verdict(max < 10.0));
    read_back(temp.path(), &lines, |_, _| SHORT);
}

/// Writers at full speed, lines of all lengths.
fn storm(number: u64, lines: u64) {
    let temp = tempfile::tempdir().expect("a folder for temporary files");
    drop(Pair::create(temp.path()));
    let begun = Instant::now();
    let mut all = Times::default();
    let reports = writers(temp.path(), number, &lines.to_string());
    let took = begun.elapsed().as_secs_f64();
    for times in reports {
        all.0.extend(times);
    }
    println!("{number} at full speed, lines of 200 bytes to 60 KiB, {took:.1} s with their start, in µs");
    all.row("transaction");
    read_back(temp.path(), &vec![lines; usize::try_from(number).unwrap_or(0)], length_of);
}

/// Reads the log back: `lines[i]` events of writer `i`, each there once.
fn read_back(folder: &Path, lines: &[u64], length: impl Fn(u64, u64) -> usize) {
    let bytes = std::fs::read(folder.join(NAME)).expect("the log");
    let mut seen: HashMap<String, u64> = HashMap::new();
    let mut damaged = 0;
    for (line, seq) in bytes.split_inclusive(|b| *b == b'\n').zip(1..) {
        match line.strip_suffix(b"\n").map(Event::decode) {
            Some(Ok(Event { seq: found, body: Body::WorkerExited(Reason { reason }), .. })) if found == seq => {
                *seen.entry(reason).or_default() += 1;
            }
            _ => damaged += 1,
        }
    }
    let events: u64 = seen.values().sum();
    let expected = (0..).zip(lines).flat_map(|(i, n)| (0..*n).map(move |k| (i, k)));
    let mut wrong = 0;
    for (i, k) in expected {
        let Body::WorkerExited(Reason { reason }) = draft(i, k, length(i, k)).body else { continue };
        wrong += u64::from(seen.remove(&reason) != Some(1));
    }
    let (strange, good) = (seen.len(), damaged == 0 && wrong == 0 && seen.is_empty());
    println!(
        "  read back: {events} events, {damaged} damaged lines or gaps, {wrong} not there once, {strange} of nobody  {}",
        verdict(good)
    );
}
