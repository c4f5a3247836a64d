//! The log on a real disk, and on one that fails, tears and forgets.

use std::path::Path;

use super::testing::{Disk, Fault, Handle, every_kind};
use super::*;
use crate::base::ids::WorkerNo;
use crate::logic::simulation::{plan, run_started, task};
use crate::model::event::Reason;

const LONG: Duration = Duration::from_secs(30);

fn note(text: &str) -> Draft {
    Draft::worker(WorkerNo(1), Body::WorkerExited(Reason { reason: text.into() }))
}

fn write(log: &mut Log, count: &mut Count, text: &str) -> Result<u64, LogError> {
    log.transact(count, LONG, false, |tx| tx.emit(note(text)))
}

/// A log with `run_started` and two more events.
fn three() -> (tempfile::TempDir, Dir, Log, Count) {
    let temp = tempfile::tempdir().unwrap();
    let dir = Dir::open(temp.path()).unwrap();
    let (mut log, mut count) = (Log::create(&dir).unwrap(), Count::default());
    let first = Draft::run(run_started(&plan(vec![task("a")]), "boot"));
    log.transact(&mut count, LONG, true, |tx| tx.emit(first)).unwrap();
    write(&mut log, &mut count, "two").unwrap();
    write(&mut log, &mut count, "three").unwrap();
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

/// What a process that looks at the disk for the first time finds: every line good, numbered without a gap.
fn found(disk: &Disk) -> Vec<Event> {
    let (mut log, mut count, mut all) = (Log::on(disk.open(999)), Count::default(), Vec::new());
    log.read_with(&mut count, |e| all.push(e.clone())).unwrap();
    assert!(all.iter().map(|e| e.seq).eq(1..=all.len() as u64), "seq has a gap");
    all
}

/// A log of these events.
fn written(drafts: impl IntoIterator<Item = Draft>) -> Vec<u8> {
    let mut lines = Vec::new();
    for (i, draft) in drafts.into_iter().enumerate() {
        Event::new(draft, i as u64 + 1, clock::stamp()).encode_into(&mut lines).unwrap();
    }
    lines
}

#[test]
fn a_line_of_any_kind_torn_anywhere_is_never_read_and_is_cut_off_before_the_next_write() {
    let kinds = every_kind();
    let names: std::collections::BTreeSet<&str> = kinds.iter().map(|d| d.body.name()).collect();
    assert!(Body::NAMES.iter().all(|n| names.contains(n)), "a kind is missing: {names:?}");
    let mut cuts = 0;
    for n in 1..=kinds.len() {
        let whole = written(kinds[..n].iter().cloned());
        let start = whole[..whole.len() - 1].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        for end in start + 1..whole.len() {
            cuts += 1;
            let disk = Disk::holding(&whole[..end]);
            let (mut log, mut count) = (Log::on(disk.open(1)), Count::default());
            log.read(&mut count).unwrap();
            assert_eq!((count.seq, log.offset()), (n as u64 - 1, start as u64));
            assert_eq!(disk.bytes().len(), end, "a reader wrote");
            let first = if n == 1 { kinds[0].clone() } else { note("after") };
            let seq = log.transact(&mut count, LONG, false, |tx| tx.emit(first.clone())).unwrap();
            let events = found(&disk);
            assert_eq!(events.last().unwrap().body, first.body);
            assert_eq!((seq, events.len() as u64), (events.last().unwrap().seq, seq));
            let torn = &whole[start..end];
            // The first line of a log is always `run_started`; what was torn before it was never acknowledged.
            let repaired = LogRepaired { bytes: torn.len() as u64, sha256: hex::sha256(torn) };
            assert!(n == 1 || events[n - 1].body == Body::LogRepaired(repaired));
        }
    }
    assert!(cuts >= 1500, "{cuts}");
}

/// What a process was told: the texts of the events that it was told are written.
#[derive(Default)]
struct Told {
    sure: Vec<String>,
    /// It heard of an error: they may be there or not.
    open: Vec<String>,
}

/// A process that begins a log, writes to it, and does not give up at errors, as workers do. Every third write is of two
/// lines, and `power` syncs each.
fn scenario(disk: &Disk, power: bool) -> Told {
    let mut told = Told::default();
    let mut open: Option<(Log<Handle>, Count)> = None;
    for i in 0..6 {
        if disk.is_dead(1) {
            break;
        }
        if open.as_ref().is_none_or(|(log, _)| log.is_ahead()) {
            // The old one is closed first: that gives back a lock that could not be unlocked.
            drop(open.take());
            let (mut log, mut count) = (Log::on(disk.open(1)), Count::default());
            if log.read(&mut count).is_err() {
                continue;
            }
            open = Some((log, count));
        }
        let Some((log, count)) = &mut open else { continue };
        let texts: Vec<String> = (0..=i / 3 % 2).map(|k| format!("{i}.{k}")).collect();
        let wrote = log.transact(count, LONG, power, |tx| {
            if tx.fold.seq() == 0 {
                tx.emit(every_kind().remove(0))?;
            }
            texts.iter().try_for_each(|t| tx.emit(commit(t)).map(drop))
        });
        match wrote {
            Ok(()) => told.sure.extend(texts),
            Err(_) => told.open.extend(texts),
        }
    }
    told
}

/// An event that others act on.
fn commit(text: &str) -> Draft {
    let a = crate::base::ids::TaskId::new("a").unwrap();
    Draft::task(&a, Body::Skipped(crate::model::event::Skipped { because: text.into() }))
}

fn check(disk: &Disk, told: &Told, what: &str) {
    let texts: Vec<String> = found(disk)
        .iter()
        .filter_map(|e| if let Body::Skipped(p) = &e.body { Some(p.because.clone()) } else { None })
        .collect();
    for sure in &told.sure {
        let n = texts.iter().filter(|t| *t == sure).count();
        assert_eq!(n, 1, "{what}: {sure} was told to be written and is there {n} times");
    }
    for open in &told.open {
        assert!(texts.iter().filter(|t| *t == open).count() <= 1, "{what}: {open} is there twice");
    }
    // Whoever comes next can go on.
    let (mut log, mut count) = (Log::on(disk.open(2)), Count::default());
    let next = log.transact(&mut count, LONG, false, |tx| {
        if tx.fold.seq() == 0 {
            tx.emit(every_kind().remove(0))?;
        }
        tx.emit(note("next"))
    });
    let seq = next.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(found(disk).len() as u64, seq, "{what}");
}

/// Runs the scenario with `fault` at every call it makes, and gives each end to `look`. Returns how many there were.
fn at_every_call(fault: Fault, power: bool, mut look: impl FnMut(&Disk, &Told, &str)) -> usize {
    for n in 1.. {
        let disk = Disk::default();
        disk.arm(n, fault);
        let told = scenario(&disk, power);
        if !disk.disarm() {
            assert_eq!(told.sure.len(), 9, "the scenario without a fault");
            return n - 1;
        }
        look(&disk, &told, &format!("{fault:?} at call {n}"));
    }
    0
}

#[test]
fn nothing_that_was_told_to_be_written_is_lost_or_doubled_whatever_fails() {
    use nix::errno::Errno;
    let mut faults = vec![Fault::KillBefore, Fault::KillAfter];
    let errnos = [Errno::EIO, Errno::ENOSPC, Errno::EINTR, Errno::EDQUOT, Errno::EROFS, Errno::EBADF, Errno::ENOLCK];
    faults.extend(errnos.map(|e| Fault::Errno(e as i32)));
    for dies in [false, true] {
        faults.extend([0, 1, 60, 200, 330, 400].map(|bytes| Fault::Short { bytes, dies }));
    }
    let mut points = 0;
    for power in [false, true] {
        for &fault in &faults {
            points += at_every_call(fault, power, check);
        }
    }
    assert!(points >= 1500, "{points}");
}

#[test]
fn nothing_is_decided_on_a_part_of_the_log_where_a_read_comes_short() {
    let lines = written([note("one"), note("two")]);
    let (mut short, mut good) = (0, 0);
    for bytes in [1, 10, lines.len() / 2 + 5] {
        for n in 1..=8 {
            let disk = Disk::holding(&lines);
            let (mut log, mut count) = (Log::on(disk.open(1)), Count::default());
            // What others wrote between the look before the lock and the lock: here everything.
            assert!(log.file.lock(Hold::Exclusive, LONG).unwrap());
            disk.arm(n, Fault::Short { bytes, dies: false });
            let result = log.locked(&mut count, |tx| tx.emit(note("three")));
            disk.disarm();
            match result {
                Ok((seq, _)) => {
                    good += 1;
                    assert_eq!(seq, 3, "call {n}, {bytes} bytes");
                    assert_eq!(found(&disk).len(), 3);
                }
                Err(e) => {
                    short += 1;
                    assert!(matches!(e, LogError::Io { .. }), "{e}");
                    assert_eq!(found(&disk).len(), 2);
                }
            }
        }
    }
    assert!(short >= 3 && good >= 3, "{short} short, {good} good");
}

#[test]
fn with_durability_power_nothing_that_was_told_is_lost_in_a_power_cut() {
    let mut cuts = 0;
    for fault in [Fault::KillBefore, Fault::KillAfter, Fault::Short { bytes: 100, dies: true }] {
        at_every_call(fault, true, |disk, told, what| {
            for bytes in disk.after_a_power_cut() {
                cuts += 1;
                check(&Disk::holding(&bytes), told, what);
            }
        });
    }
    assert!(cuts >= 1500, "{cuts}");
}

#[test]
fn without_it_a_power_cut_costs_a_suffix() {
    at_every_call(Fault::KillBefore, false, |disk, told, what| {
        let all = found(disk);
        for bytes in disk.after_a_power_cut() {
            let cut = Disk::holding(&bytes);
            let left = found(&cut);
            assert!(all.starts_with(&left), "{what}");
            check(&cut, &Told { open: [&told.sure[..], &told.open].concat(), sure: Vec::new() }, what);
        }
    });
}

#[test]
fn a_sync_that_fails_is_told_and_not_tried_again() {
    let mut unsynced = 0;
    for n in 1.. {
        let disk = Disk::default();
        let (mut log, mut count) = (Log::on(disk.open(1)), Count::default());
        disk.arm(n, Fault::Errno(nix::libc::EIO));
        let wrote = log.transact(&mut count, LONG, true, |tx| tx.emit(every_kind().remove(0)));
        if !disk.disarm() {
            break;
        }
        if let Err(LogError::Unsynced(_)) = wrote {
            unsynced += 1;
            assert_eq!((count.seq, found(&disk).len()), (1, 1), "it is in the log all the same");
            assert!(disk.after_a_power_cut().contains(&Vec::new()), "it was synced after all");
        }
    }
    assert_eq!(unsynced, 1);
}

#[test]
fn what_is_torn_can_be_long_or_the_very_first_line() {
    let (temp, dir, mut log, mut count) = three();
    let mut torn = bytes(temp.path());
    torn.extend(vec![b'x'; 3 * CHUNK + 5]);
    std::fs::write(temp.path().join(NAME), &torn).unwrap();
    write(&mut log, &mut count, "after").unwrap();
    let bytes = 3 * CHUNK as u64 + 5;
    assert!(matches!(&events(temp.path())[3].body, Body::LogRepaired(p) if p.bytes == bytes));

    std::fs::write(temp.path().join(NAME), b"{\"t\":\"run_sta").unwrap();
    let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
    let first = Draft::run(run_started(&plan(vec![task("a")]), "boot"));
    log.transact(&mut count, LONG, false, |tx| tx.emit(first)).unwrap();
    assert!(matches!(events(temp.path())[..], [Event { body: Body::RunStarted(_), .. }]));
}

#[test]
fn a_log_that_is_not_what_it_must_be_is_called_damaged_and_left_alone() {
    let line = |seq: u64| format!("{{\"t\":\"worker_exited\",\"seq\":{seq},\"payload\":{{\"reason\":\"x\"}}}}\n");
    let endless = format!("{{\"t\":\"future\",\"seq\":4,\"payload\":\"{}\"}}\n", "x".repeat(MAX_LINE));
    for (what, added, says) in [
        ("a gap", line(5), "seq 4 is missing after line 3"),
        ("a repeated number", line(3), "seq 4 is missing after line 3"),
        ("no JSON", "hello\n".into(), "line 4 of events.jsonl is"),
        ("an empty line", "\n".into(), "line 4 of events.jsonl is"),
        ("zeros", "\0\0\0\n".into(), "line 4 of events.jsonl is"),
        ("a line too long", endless, "line 4 of events.jsonl is"),
    ] {
        let (folder, _, mut log, mut count) = three();
        let mut spoiled = bytes(folder.path());
        spoiled.extend_from_slice(added.as_bytes());
        std::fs::write(folder.path().join(NAME), &spoiled).unwrap();
        let said = log.read(&mut count).unwrap_err().to_string();
        assert!(said.starts_with("run damaged: ") && said.contains(says), "{what}: {said}");
        assert_eq!(count.seq, 3, "{what}: what stands before it counts");
        let error = write(&mut log, &mut count, "more").unwrap_err();
        assert!(matches!(error, LogError::Damaged(_)), "{what}: {error}");
        assert_eq!(bytes(folder.path()), spoiled, "{what}");
    }
}

#[test]
fn a_log_that_is_cut_deleted_or_exchanged_meanwhile_is_damaged() {
    let (temp, _, mut log, mut count) = three();
    let path = temp.path().join(NAME);
    let whole = bytes(temp.path());
    std::fs::write(&path, &whole[..=whole.iter().position(|b| *b == b'\n').unwrap()]).unwrap();
    let said = write(&mut log, &mut count, "x").unwrap_err().to_string();
    assert!(said.contains("was cut to"), "{said}");
    assert!(log.read(&mut count).unwrap_err().to_string().contains("was cut to"));
    std::fs::remove_file(&path).unwrap();
    let said = write(&mut log, &mut count, "x").unwrap_err().to_string();
    assert!(said.contains("deleted or replaced"), "{said}");
    assert!(!path.exists());
    std::fs::write(&path, &whole).unwrap();
    let said = write(&mut log, &mut count, "x").unwrap_err().to_string();
    assert!(said.contains("deleted or replaced"), "{said}");
    assert_eq!(bytes(temp.path()), whole);
}

#[test]
fn a_newer_log_is_read_and_not_written() {
    let (temp, dir, _, _) = three();
    let text = String::from_utf8(bytes(temp.path())).unwrap();
    // A kind that is new, and one that is known with something else in it.
    // And a line that is being written: it is not this cpw's to cut off.
    let newer = text.replacen("\"v\":1", "\"v\":2", 1)
        + "{\"t\":\"sparkle\",\"seq\":4,\"payload\":{}}\n{\"t\":\"skipped\",\"seq\":5,\"payload\":{\"because\":[1]}}\n"
        + "{\"t\":\"spar";
    std::fs::write(temp.path().join(NAME), &newer).unwrap();
    let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
    log.read(&mut count).unwrap();
    assert_eq!((count.seq, count.schema), (5, 2));
    let error = write(&mut log, &mut count, "x").unwrap_err();
    assert!(matches!(error, LogError::Newer(2)), "{error}");
    assert_eq!(bytes(temp.path()), newer.as_bytes());
}

#[test]
fn a_decision_that_cannot_be_written_leaves_no_trace_and_stops_the_log() {
    let (temp, dir, mut log, mut count) = three();
    let before = bytes(temp.path());
    let error = write(&mut log, &mut count, &"x".repeat(MAX_LINE)).unwrap_err();
    assert!(matches!(error, LogError::Line(_)), "{error}");
    assert_eq!(write(&mut log, &mut count, "four").unwrap(), 4);
    let both = log.transact(&mut count, LONG, false, |tx| {
        tx.emit(note("five"))?;
        tx.emit(note(&"x".repeat(MAX_LINE)))
    });
    assert!(matches!(both, Err(LogError::Line(_))));
    assert_eq!(events(temp.path()).len(), 4);
    assert!(bytes(temp.path()).starts_with(&before));
    // The state holds an event that the file does not: going on would leave a gap.
    assert!(log.is_ahead());
    assert!(write(&mut log, &mut count, "x").is_err() && log.read(&mut count).is_err());
    let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
    assert_eq!(write(&mut log, &mut count, "five").unwrap(), 5);
    events(temp.path());
}

#[test]
fn who_does_not_get_the_lock_in_time_writes_nothing() {
    let (temp, dir, mut log, mut count) = three();
    let other = Log::open(&dir).unwrap();
    assert!(other.file.lock(Hold::Exclusive, Duration::ZERO).unwrap());
    let before = bytes(temp.path());
    let error = log.transact(&mut count, Duration::from_millis(20), false, |tx| tx.emit(note("x"))).unwrap_err();
    assert!(matches!(error, LogError::Busy), "{error}");
    assert_eq!(bytes(temp.path()), before);
    // A reader needs no lock.
    Log::open(&dir).unwrap().read(&mut Count::default()).unwrap();
    drop(other);
    write(&mut log, &mut count, "x").unwrap();
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
                    let seq = write(&mut log, &mut count, &text).unwrap();
                    assert_eq!(seq, count.seq);
                    // Two lines in one write stay together.
                    let pair = |tx: &mut Tx<'_, Count>| Ok((tx.emit(note("a"))?, tx.emit(note("b"))?));
                    let (a, b) = log.transact(&mut count, LONG, false, pair).unwrap();
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
        let error = log.transact(&mut count, LONG, false, three).unwrap_err();
        assert!(matches!(error, LogError::Io { .. }), "{error}");
        assert!(log.is_ahead());
        let (mut log, mut count) = (Log::open(&dir).unwrap(), Count::default());
        log.read(&mut count).unwrap();
        assert_eq!(count.seq, 4, "the line that is whole counts");
        assert!(write(&mut log, &mut count, "long enough").is_err());
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
    assert_eq!(write(&mut log, &mut count, "goes on").unwrap(), 5);
    events(temp.path());
}
