//! Faults where they hurt, on the program as it ships: killed before every call to the system that an operation makes, and
//! every call refused, once and for good. After each: the log is good, the next command works, the run comes to its end,
//! what was acknowledged is there, and the exit code is one of the documented.
//!
//! `CPW_TEST_BINARY` names another program than the one just built, `CPW_FAULTS=all` tries every point instead of an even
//! sample, `CPW_FAULTS_ONLY` names one operation, and `CPW_REQUIRE_STRACE=1` makes a missing strace a failure. Which sample
//! it is follows from the program's bytes: the same program is always tried at the same points, another one at others, and
//! all of them have their turn. It is printed, and `CPW_FAULTS_SEED` sets it.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "helpers of tests fail and print as tests do"
)]

#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/operations.rs"]
mod operations;
#[path = "support/scratch.rs"]
mod scratch;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/strace.rs"]
mod strace;

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use operations::{OPERATIONS, Operation};
use scratch::{Done, Scratch};
use skip::skip;
use strace::{Call, Kind};

/// Fewer points than these are a suite that has shrunk.
const KILLS: usize = 1500;
const ERRORS: usize = 2800;

/// Points of one operation, at most, unless all are asked for.
const MOST_KILLS: usize = 66;
const MOST_ERRORS: usize = 118;

/// What is done again and again counts this often, and then every sixteenth time.
const AGAIN: usize = 3;

/// A worker waits for a log that cannot be used, for a minute. It is watched for this long.
const ENDURES: Duration = Duration::from_millis(400);

/// A hook that does not hold ends after a second; strace and a busy machine take their time.
const HOOK: Duration = Duration::from_secs(6);

/// Torn lines, by a limit and by a full disk.
const TORN: usize = 500;
const TORN_FULL: usize = 30;

/// Limits tried for one operation, at most.
const MOST_LIMITS: usize = 40;

/// Free pages on a full disk: from none to what every operation gets along with.
const MOST_PAGES: u64 = 12;

/// Runs a program with a limit on the size of files that is an error and no signal.
const LIMITED: &str = r#"trap '' XFSZ; exec prlimit --fsize="$0" -- "$@""#;

/// Kills a program that is about to cut off what it could write only in part.
const DIES: &str = "inject=ftruncate:signal=KILL:when=1";

/// Set in the process that has a disk of its own: the folder for it.
const INSIDE: &str = "CPW_FAULTS_INSIDE";

/// Points that one scratch project is used for.
const PART: usize = 60;

/// Failures after which nothing more is tried.
const ENOUGH: usize = 40;

/// Points that are tried at the same time. A part of them waits for what a worker does not do, so that they are more than
/// there are cores.
const AT_ONCE: usize = 4;

/// One suite at a time: each has threads of its own.
static TURN: Mutex<()> = Mutex::new(());

fn turn() -> std::sync::MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What happens to an operation.
#[derive(Debug, Clone)]
enum Fault {
    /// At a call, by strace.
    Call(strace::Fault),
    /// No file may grow beyond so many bytes more than the log had before.
    Limit(u64),
    /// The same, and it is killed before it can cut off what it has torn.
    Torn(u64),
    /// So many pages are left on the disk, which has nothing else.
    Pages(u64),
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Call(fault) => fault.fmt(f),
            Fault::Limit(bytes) => write!(f, "files end {bytes} bytes behind the log"),
            Fault::Torn(bytes) => write!(f, "files end {bytes} bytes behind the log, and SIGKILL"),
            Fault::Pages(pages) => write!(f, "{pages} free pages"),
        }
    }
}

impl Fault {
    /// Whether it stays, so that who waits for a better time waits in vain.
    fn lasts(&self) -> bool {
        match self {
            Fault::Call(fault) => matches!(fault.kind, Kind::FromHere(_)),
            Fault::Limit(_) | Fault::Torn(_) | Fault::Pages(_) => true,
        }
    }

    fn kills(&self) -> bool {
        match self {
            Fault::Call(fault) => fault.kind == Kind::Kill,
            Fault::Torn(_) => true,
            Fault::Limit(_) | Fault::Pages(_) => false,
        }
    }

    fn is_allocation(&self) -> bool {
        matches!(self, Fault::Call(fault) if fault.is_allocation())
    }
}

/// What is tried.
#[derive(Debug, Clone)]
struct Point {
    operation: &'static Operation,
    fault: Fault,
}

/// What came of a suite.
#[derive(Debug, Default)]
struct Tally {
    /// By operation: points tried, faults that happened, the longest time.
    rows: Vec<(&'static str, usize, usize, Duration)>,
    failures: Vec<String>,
}

impl Tally {
    fn add(&mut self, name: &'static str, hit: bool, took: Duration) {
        let at = self.rows.iter().position(|row| row.0 == name).unwrap_or(self.rows.len());
        if at == self.rows.len() {
            self.rows.push((name, 0, 0, Duration::ZERO));
        }
        let row = &mut self.rows[at];
        row.1 += 1;
        row.2 += usize::from(hit);
        row.3 = row.3.max(took);
    }

    fn hits(&self) -> usize {
        self.rows.iter().map(|row| row.2).sum()
    }
}

fn is_asked(variable: &str, value: &str) -> bool {
    std::env::var(variable).is_ok_and(|v| v == value)
}

/// Whether strace is there. Where it is not, the suite says so, or fails if it was asked for.
fn can_trace(suite: &str) -> bool {
    let Some(why) = strace::missing() else { return true };
    skip(suite, &why, "CPW_REQUIRE_STRACE");
    false
}

fn asked_operations() -> impl Iterator<Item = &'static Operation> {
    let only = std::env::var("CPW_FAULTS_ONLY").unwrap_or_default();
    OPERATIONS.iter().filter(move |o| only.is_empty() || o.name == only).filter(|o| !o.needs_git() || has_git(o.name))
}

fn has_git(operation: &str) -> bool {
    let there = Command::new("git").arg("--version").output().is_ok_and(|out| out.status.success());
    if !there {
        skip(operation, "git is not installed", "CPW_REQUIRE_GIT");
    }
    there
}

/// The calls that an operation makes when nothing goes wrong; and that it then does what it is for.
fn baseline(operation: &Operation, root: &Path) -> Vec<Call> {
    let scratch = operation.prepare(&root.join(format!("baseline-{}", operation.name)));
    let trace = scratch.path("io/trace");
    let outer = ["strace", "-qq", "-y", "-o", &trace.to_string_lossy()].map(str::to_owned);
    let done = scratch.run(operation.command(&scratch, &outer), scratch::PATIENCE);
    assert!(done.is_ok() || operation.watches(), "{}: {done:?}", operation.name);
    let judged = operation.judge(&scratch, &done, true).and_then(|()| operation.finish(&scratch, &done));
    assert_eq!(judged, Ok(()), "{}: {done:?}", operation.name);
    strace::calls(&std::fs::read_to_string(trace).unwrap())
}

/// Evenly `most` of the points, unless all are asked for; of those that take long, a quarter.
fn sample(points: Vec<Point>, most: usize) -> Vec<Point> {
    let takes_long = |o: &Operation| o.is_final() || o.needs_git();
    let most = if points.first().is_some_and(|p| takes_long(p.operation)) { most / 4 } else { most };
    if is_asked("CPW_FAULTS", "all") || points.len() <= most {
        return points;
    }
    let (all, shift) = (points.len(), seed() % points.len().div_ceil(most));
    let is_taken = |i: usize| ((i + shift) * most) / all != ((i + shift + 1) * most) / all;
    points.into_iter().enumerate().filter(|(i, _)| is_taken(*i)).map(|(_, point)| point).collect()
}

fn seed() -> usize {
    static SEED: LazyLock<usize> = LazyLock::new(|| {
        let given = std::env::var("CPW_FAULTS_SEED").ok().and_then(|s| s.parse().ok());
        // The same for every build: a change is to fail for what it changes.
        given.unwrap_or(465)
    });
    *SEED
}

/// Tries all points.
fn try_all(points: &[Point], root: &Path) -> Tally {
    let mut parts: Vec<&[Point]> =
        points.chunk_by(|a, b| std::ptr::eq(a.operation, b.operation)).flat_map(|same| same.chunks(PART)).collect();
    // What takes long first, so that all threads end together.
    parts.sort_by_key(|part| std::cmp::Reverse(part[0].operation.endures));
    let (next, tally) = (AtomicUsize::new(0), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    try_part(part, &|number| root.join(format!("s{number}")), root, &tally);
                }
            });
        }
    });
    tally.into_inner().unwrap()
}

/// Tries some points of one operation in projects at `place`; evidence is kept below `root`.
fn try_part(part: &[Point], place: &dyn Fn(usize) -> PathBuf, root: &Path, tally: &Mutex<Tally>) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let operation = part[0].operation;
    let mut scratch: Option<Scratch> = None;
    for point in part {
        if tally.lock().unwrap().failures.len() >= ENOUGH {
            return;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let here = scratch.get_or_insert_with(|| {
            let mut fresh = operation.prepare(&place(number));
            if matches!(point.fault, Fault::Pages(_)) && ["claim", "progress", "summary"].contains(&operation.name) {
                operation.fill_page(&mut fresh);
            }
            fresh
        });
        let (done, hit, judged) = try_point(point, here);
        let mut tally = tally.lock().unwrap();
        tally.add(operation.name, hit, done.took);
        match judged {
            Ok(()) => {
                drop(tally);
                if operation.is_final() {
                    scratch = None;
                } else {
                    here.restore();
                }
            }
            Err(why) => {
                let kept = root.join(format!("kept-{number}"));
                here.save(&kept);
                let Done { status, out, err, .. } = done;
                let (operation, fault) = (operation.name, &point.fault);
                let failure = format!(
                    "{operation}: {fault}: {why}\n    {status}; stdout {out:?}; stderr {err:?}; kept in {}",
                    kept.display()
                );
                println!("FAILED: {failure}");
                tally.failures.push(failure);
                // Whatever it is now, it is not where the next point may begin.
                scratch = None;
            }
        }
    }
}

/// Lets the fault happen, and judges what is there afterwards. Returns whether it has happened.
fn try_point(point: &Point, scratch: &Scratch) -> (Done, bool, Result<(), String>) {
    let Point { operation, fault } = point;
    let trace = scratch.path("io/trace");
    let mut filler = None;
    let outer = match fault {
        Fault::Call(fault) => {
            let strace = ["strace", "-qq", "-o", &trace.to_string_lossy()].map(str::to_owned);
            [strace.to_vec(), fault.arguments()].concat()
        }
        Fault::Limit(bytes) | Fault::Torn(bytes) => {
            let size = scratch.kept_length(&scratch.log()) + bytes;
            let limited = ["sh", "-c", LIMITED, &size.to_string()].map(str::to_owned).to_vec();
            let log = scratch.log().to_string_lossy().into_owned();
            let strace = ["strace", "-qq", "-o", "/dev/null", "-P", &log, "-e", "trace=ftruncate", "-e", DIES];
            let strace = strace.map(str::to_owned);
            if matches!(fault, Fault::Torn(_)) { [limited, strace.to_vec()].concat() } else { limited }
        }
        Fault::Pages(pages) => {
            filler = Some(fill(scratch, *pages));
            Vec::new()
        }
    };
    let watched = operation.endures && fault.lasts();
    let done = scratch.run(operation.command(scratch, &outer), if watched { ENDURES } else { scratch::PATIENCE });
    let torn = scratch.ledgers().is_ok_and(|all| all.iter().any(|(_, ledger)| ledger.torn > 0));
    let hit = match fault {
        Fault::Call(_) => strace::happened(&trace) || (fault.kills() && done.is_killed() && !done.late),
        // What did not fit is not there.
        Fault::Limit(bytes) => length(&scratch.log()) <= scratch.kept_length(&scratch.log()) + bytes,
        Fault::Torn(_) => torn,
        // Nothing is acknowledged, or a worker is still waiting.
        Fault::Pages(_) => operation.judge(scratch, &done, true).is_err(),
    };
    let judged = judge_end(operation, fault, &done, watched).and_then(|()| operation.judge(scratch, &done, false));
    if let Some(path) = filler {
        std::fs::remove_file(path).unwrap();
    }
    let judged =
        judged.and_then(|()| operation.finish(scratch, &done)).and_then(|()| judge_repair(operation, scratch, torn));
    (done, hit, judged)
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |meta| meta.len())
}

/// What was torn is cut off by the next writer, who says so; unless nothing whole was in the log yet, or a worker was about to
/// say that it leaves a run that has ended: nobody writes behind that.
fn judge_repair(operation: &Operation, scratch: &Scratch, torn: bool) -> Result<(), String> {
    if !torn {
        return Ok(());
    }
    let all = scratch.ledgers()?;
    let left = |l: &ledger::Ledger| l.torn > 0 && operation.endures && l.is_ended();
    let mended = |l: &ledger::Ledger| l.torn == 0 && l.count("log_repaired") > 0;
    let good = all.iter().all(|(_, l)| l.torn == 0 || left(l)) && all.iter().any(|(_, l)| mended(l) || left(l));
    if good { Ok(()) } else { Err("a torn line is still there, or its repair is not in the log".into()) }
}

/// The exit code, and what a hook says.
fn judge_end(operation: &Operation, fault: &Fault, done: &Done, watched: bool) -> Result<(), String> {
    if done.late {
        return if watched { Ok(()) } else { Err(format!("was not over after {:?}", done.took)) };
    }
    if operation.is_hook() && done.took > HOOK {
        return Err(format!("a hook took {:?}", done.took));
    }
    if operation.is_hook() && !done.err.is_empty() && !fault.is_allocation() && !operation.watches() {
        return Err("a hook wrote to stderr".into());
    }
    let signal = done.status.signal();
    let sound = match (done.status.code(), signal) {
        // A watcher says by it that the session wakes.
        (Some(2), _) if operation.watches() => true,
        (Some(code), _) if operation.is_hook() => code == 0,
        (Some(code), _) => [0, 1, 3, 4, 130].contains(&code),
        (None, Some(9)) => fault.kills(),
        // Out of memory: the runtime ends the program by a signal.
        (None, Some(_)) => fault.is_allocation(),
        (None, None) => false,
    };
    // The C library says 127 when there is no memory to begin with.
    let sound = sound || (fault.is_allocation() && [Some(127), Some(134)].contains(&done.status.code()));
    if sound { Ok(()) } else { Err("an exit code that is not documented".into()) }
}

/// Tries every point of a kind, prints what was tried, and fails if anything was wrong or too little was tried.
fn run_suite(suite: &str, least: usize, points_of: impl Fn(&'static Operation, &[Call]) -> Vec<Point>) {
    let _turn = turn();
    if !can_trace(suite) {
        return;
    }
    let begun = Instant::now();
    println!("{suite}: {} (seed {})", scratch::program().display(), seed());
    let folder = tempfile::Builder::new().prefix("cpw-faults-").tempdir().unwrap();
    let mut points = Vec::new();
    for operation in asked_operations() {
        let calls = baseline(operation, folder.path());
        let mine = points_of(operation, &calls);
        println!("{suite}: {}: {} calls, {} points", operation.name, calls.len(), mine.len());
        points.extend(mine);
    }
    let tally = try_all(&points, folder.path());
    report(suite, &tally, begun, folder, least);
}

fn report(suite: &str, tally: &Tally, begun: Instant, folder: tempfile::TempDir, least: usize) {
    let mut text = String::new();
    for (name, tried, hits, longest) in &tally.rows {
        let _ = writeln!(text, "{suite}: {name}: {hits} faults in {tried} points, the longest {longest:.1?}");
    }
    let _ = writeln!(
        text,
        "{suite}: {} faults in {} points, {} failures, {:.1?}",
        tally.hits(),
        tally.rows.iter().map(|row| row.1).sum::<usize>(),
        tally.failures.len(),
        begun.elapsed()
    );
    println!("{text}");
    if !tally.failures.is_empty() {
        let kept: PathBuf = folder.keep();
        panic!("{suite}: evidence in {}\n{}", kept.display(), tally.failures.join("\n"));
    }
    let least = if std::env::var_os("CPW_FAULTS_ONLY").is_some() { 0 } else { least };
    assert!(tally.hits() >= least, "{suite}: {} faults have happened, of at least {least}", tally.hits());
    let left = Scratch::new(folder.path()).processes();
    assert!(left.is_empty(), "{suite}: processes are left: {left:?}");
}

fn is_worth_it(call: &Call) -> bool {
    is_asked("CPW_FAULTS", "all") || call.again < AGAIN || call.again.is_multiple_of(16)
}

#[test]
fn p01_p15_d15_killed_before_any_call() {
    run_suite("kill", KILLS, |operation, calls| {
        let worth = calls.iter().filter(|call| is_worth_it(call));
        let fault = |call: &Call| Fault::Call(strace::Fault { name: call.name.clone(), k: call.k, kind: Kind::Kill });
        sample(worth.map(|call| Point { operation, fault: fault(call) }).collect(), MOST_KILLS)
    });
}

#[test]
fn p06_p07_p18_p20_refused_by_any_call() {
    run_suite("errno", ERRORS, |operation, calls| {
        let worth = calls.iter().filter(|call| is_worth_it(call));
        let kinds = |name: &str| {
            let (once, both) = strace::errors(name);
            let once = once.iter().chain(both).map(|errno| Kind::Once(errno));
            once.chain(both.iter().map(|errno| Kind::FromHere(errno))).collect::<Vec<_>>()
        };
        let points = worth.flat_map(|call| {
            let fault = move |kind| Fault::Call(strace::Fault { name: call.name.clone(), k: call.k, kind });
            kinds(&call.name).into_iter().map(move |kind| Point { operation, fault: fault(kind) })
        });
        sample(points.collect(), MOST_ERRORS)
    });
}

/// Operations that append to a log that is there, and start no worker: it would inherit the limit.
fn appending() -> impl Iterator<Item = &'static Operation> {
    let names = ["claim", "merge", "news", "stop", "progress", "summary", "slot", "recover", "task"];
    let names = [&names[..], &["signal", "refuse", "critical", "adopt"]].concat();
    asked_operations().filter(move |o| names.contains(&o.name))
}

/// How much longer the log is after an operation.
fn growth(operation: &Operation, root: &Path) -> u64 {
    let scratch = operation.prepare(&root.join(format!("growth-{}", operation.name)));
    let done = scratch.run(operation.command(&scratch, &[]), scratch::PATIENCE);
    assert!(done.is_ok(), "{}: {done:?}", operation.name);
    let log = scratch.log();
    length(&log) - scratch.kept_length(&log)
}

#[test]
fn torn_by_a_limit_on_the_size_of_files() {
    let _turn = turn();
    let begun = Instant::now();
    if !Command::new("prlimit").arg("--version").output().is_ok_and(|out| out.status.success()) {
        skip("torn by a limit", "there is no prlimit", "CPW_REQUIRE_STRACE");
        return;
    }
    let folder = tempfile::Builder::new().prefix("cpw-faults-").tempdir().unwrap();
    let mut kinds: Vec<fn(u64) -> Fault> = vec![Fault::Limit];
    if can_trace("torn and killed") {
        kinds.push(Fault::Torn);
    }
    let mut points = Vec::new();
    for operation in appending() {
        let growth = growth(operation, folder.path());
        for kind in &kinds {
            let most = if operation.endures { MOST_LIMITS / 4 } else { MOST_LIMITS };
            // Not one byte less: what is written the next time may be a digit shorter.
            let limits = (0..growth.saturating_sub(16)).map(|bytes| Point { operation, fault: kind(bytes) });
            points.extend(sample(limits.collect(), most));
        }
    }
    let tally = try_all(&points, folder.path());
    report("torn", &tally, begun, folder, TORN);
}

/// Fills the disk below a scratch project until so many pages are free.
fn fill(scratch: &Scratch, pages: u64) -> PathBuf {
    let path = scratch.path("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    while file.write(&[0; 4096]).is_ok_and(|n| n > 0) {}
    let length = file.metadata().unwrap().len();
    file.set_len(length.saturating_sub(pages * 4096)).unwrap();
    path
}

#[test]
fn torn_by_a_full_disk() {
    let name = "torn_by_a_full_disk";
    if let Some(outer) = std::env::var_os(INSIDE) {
        full_disk(Path::new(&outer));
        return;
    }
    let _turn = turn();
    let user = if nix::unistd::geteuid().is_root() { "-m" } else { "-rm" };
    let can = Command::new("unshare").args([user, "mount", "-t", "tmpfs", "none", "/tmp"]).output();
    if !can.is_ok_and(|out| out.status.success()) {
        skip("full disk", "no file system can be mounted in a namespace of its own here", "CPW_REQUIRE_POWER");
        return;
    }
    let mut inner = Command::new("unshare");
    inner.arg(user).arg(std::env::current_exe().unwrap()).args([name, "--exact", "--nocapture"]);
    // Removed out here: what is mounted in there cannot be.
    let folder = tempfile::Builder::new().prefix("cpw-faults-").tempdir().unwrap();
    inner.env(INSIDE, folder.path());
    let out = inner.output().unwrap();
    println!("{}", String::from_utf8_lossy(&out.stdout));
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn mount(options: &str, target: &Path) {
    let mut mount = Command::new("mount");
    let done = mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(target).status().unwrap();
    assert!(done.success(), "a file system at {}", target.display());
}

/// On a small disk that nobody else sees, filled up to a few pages.
fn full_disk(outer: &Path) {
    let begun = Instant::now();
    let folder = tempfile::Builder::new().prefix("disks-").tempdir_in(outer).unwrap();
    let tally = Mutex::new(Tally::default());
    let place = |number: usize| {
        let root = folder.path().join(format!("disk{number}"));
        std::fs::create_dir(&root).unwrap();
        mount("size=2m", &root);
        // What is said to it and what it says do not go to the disk that is full.
        std::fs::create_dir(root.join("io")).unwrap();
        mount("size=16m", &root.join("io"));
        root
    };
    // Those that need a page of their own: a log of few lines has its first page already.
    let spared = ["merge", "news", "stop", "cancel", "clean", "isolated", "status"];
    let spared = [&spared[..], &["signal", "refuse", "step", "critical", "watch", "cleared", "over"]].concat();
    for operation in asked_operations().filter(|o| !spared.contains(&o.name)) {
        let fault = |pages| Point { operation, fault: Fault::Pages(pages) };
        try_part(&(0..=MOST_PAGES).map(fault).collect::<Vec<_>>(), &place, folder.path(), &tally);
    }
    report("full disk", &tally.into_inner().unwrap(), begun, folder, TORN_FULL);
}
