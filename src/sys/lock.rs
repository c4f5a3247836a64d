//! Whole-file locks by `flock`, with a bound on the waiting. They belong to the open file description: the kernel frees
//! them when the last descriptor of it is closed, also by SIGKILL, so a lock never outlives its holder; a stopped holder
//! keeps it. No lock file, no pid in it.
//!
//! The waiting is a blocking call that a repeating timer interrupts once the budget is over: polling with a
//! non-blocking call starves under many contenders.

#![cfg_attr(target_os = "linux", expect(unsafe_code, reason = "a signal handler is installed"))]

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// Takes the exclusive lock of `file`'s description, waiting at most `budget`. `false`: somebody else still holds it.
/// On network file systems the file must be open for writing.
pub fn lock_exclusive(file: &File, budget: Duration) -> io::Result<bool> {
    lock(file, budget, fs2::FileExt::try_lock_exclusive, fs2::FileExt::lock_exclusive)
}

/// As [`lock_exclusive`], shared with other readers.
pub fn lock_shared(file: &File, budget: Duration) -> io::Result<bool> {
    lock(file, budget, fs2::FileExt::try_lock_shared, fs2::FileExt::lock_shared)
}

/// Takes the exclusive lock if it is free now.
pub fn try_exclusive(file: &File) -> io::Result<bool> {
    got(fs2::FileExt::try_lock_exclusive(file))
}

/// Gives the lock of `file`'s description back.
pub fn unlock(file: &File) -> io::Result<()> {
    fs2::FileExt::unlock(file)
}

/// An exclusive lock that is given back when this is dropped.
#[derive(Debug)]
#[must_use = "the lock is given back at once"]
pub struct Guard<'a>(&'a File);

impl<'a> Guard<'a> {
    /// As [`lock_exclusive`]; `None`: somebody else still holds it.
    pub fn exclusive(file: &'a File, budget: Duration) -> io::Result<Option<Guard<'a>>> {
        Ok(lock_exclusive(file, budget)?.then_some(Guard(file)))
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Cannot fail on a valid descriptor; and closing the file gives the lock back in any case.
        drop(unlock(self.0));
    }
}

/// What a probe saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Nobody holds the exclusive lock.
    Free,
    /// Somebody does.
    Held,
}

/// Whether somebody holds the exclusive lock of a file. `file` must have been opened by the caller for this: a probe on
/// the holder's own description would turn its lock into a shared one and give it back. Two probes do not disturb each
/// other; a concurrent [`try_exclusive`] may see a probe and fail.
pub fn try_shared_probe(file: &File) -> io::Result<Probe> {
    if got(fs2::FileExt::try_lock_shared(file))? {
        unlock(file)?;
        Ok(Probe::Free)
    } else {
        Ok(Probe::Held)
    }
}

/// Who holds a lock of a file with this inode number, by pid; none where the system does not tell (Linux does, in
/// `/proc/locks`). Another file system may have a file of the same number: what is done about a holder must not depend on
/// this alone.
pub fn holders(file: &File) -> Vec<i32> {
    let Ok(ino) = file.metadata().map(|m| std::os::unix::fs::MetadataExt::ino(&m)) else { return Vec::new() };
    // 1: FLOCK  ADVISORY  WRITE 4711 08:01:123 0 EOF; who only waits has an arrow behind the first word.
    let text = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let holder = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let is_flock = words.next() == Some("FLOCK");
        let pid = words.nth(2)?.parse().ok()?;
        let same = words.next()?.rsplit(':').next()?.parse() == Ok(ino);
        (is_flock && same).then_some(pid)
    };
    text.lines().filter_map(holder).collect()
}

type Take = fn(&File) -> io::Result<()>;

fn got(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

fn lock(file: &File, budget: Duration, attempt: Take, blocking: Take) -> io::Result<bool> {
    let deadline = Instant::now() + budget;
    if got(attempt(file))? {
        return Ok(true);
    }
    if budget.is_zero() {
        return Ok(false);
    }
    wait(file, deadline, attempt, blocking)
}

/// How often the timer repeats once the budget is over: a single shot could fire before the blocking call is entered.
#[cfg(target_os = "linux")]
const TICK: Duration = Duration::from_millis(5);

#[cfg(target_os = "linux")]
fn wait(file: &File, deadline: Instant, _attempt: Take, blocking: Take) -> io::Result<bool> {
    use super::timer::{Timer, Whom, install};
    use nix::sys::signal::Signal;

    extern "C" fn nothing(_: i32) {}
    // SAFETY: the handler does nothing. It stays installed: SIGALRM means nothing else in this program.
    unsafe { install(Signal::SIGALRM, nothing, false) }?;
    let timer = Timer::new(Signal::SIGALRM, Whom::Thread)?;
    timer.arm(deadline.saturating_duration_since(Instant::now()), TICK)?;
    loop {
        match blocking(file) {
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
            }
            Err(e) => return Err(e),
        }
    }
}

/// Elsewhere: tries with a growing pause, which may starve under many contenders.
#[cfg(not(target_os = "linux"))]
fn wait(file: &File, deadline: Instant, attempt: Take, _blocking: Take) -> io::Result<bool> {
    let mut pause = Duration::from_millis(1);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(20));
        if got(attempt(file))? {
            return Ok(true);
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::sys::dir::{Dir, FileId};
    use crate::sys::process::{Signal, signal};
    use crate::sys::testing::{Helper, LONG, until};

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        (temp, dir)
    }

    /// A process that holds the lock of `name` by its stdin and does nothing.
    fn holder(dir: &Dir, name: &str) -> Helper {
        let file = dir.open_rw(name).unwrap();
        assert!(try_exclusive(&file).unwrap());
        let mut helper = Helper::sh("echo ready; exec sleep 600", file);
        helper.line("ready");
        helper
    }

    /// Whether somebody is blocked on the lock of this file, as the kernel tells.
    fn somebody_waits(file: &File) -> bool {
        let inode = format!(":{} ", FileId::of(file).unwrap().ino);
        std::fs::read_to_string("/proc/locks").unwrap().lines().any(|l| l.contains("-> FLOCK") && l.contains(&inode))
    }

    #[test]
    fn the_holder_is_known_and_who_only_waits_is_not_one() {
        let (_temp, dir) = folder();
        let file = dir.open_rw("lock").unwrap();
        assert!(holders(&file).is_empty());
        assert!(try_exclusive(&file).unwrap());
        assert_eq!(holders(&dir.open_read("lock").unwrap()), [std::process::id().cast_signed()]);
        let other = dir.open_rw("lock").unwrap();
        let waiter = std::thread::spawn(move || lock_exclusive(&other, LONG).unwrap());
        until("it waits", || somebody_waits(&file));
        assert_eq!(holders(&file).len(), 1);
        unlock(&file).unwrap();
        assert!(waiter.join().unwrap());
    }

    #[test]
    fn waiting_for_a_stopped_holder_ends_with_the_budget() {
        let (_temp, dir) = folder();
        let held_by = holder(&dir, "lock");
        assert!(signal(&held_by.process(), Signal::SIGSTOP).unwrap());
        let file = dir.open_rw("lock").unwrap();
        for budget in [0, 1, 60].map(Duration::from_millis) {
            let start = Instant::now();
            assert!(!lock_exclusive(&file, budget).unwrap());
            assert!(!lock_shared(&file, Duration::ZERO).unwrap());
            assert!(start.elapsed() >= budget, "gave up early: {:?} of {budget:?}", start.elapsed());
            assert!(start.elapsed() < budget + Duration::from_secs(10), "{:?}", start.elapsed());
        }
        assert!(Guard::exclusive(&file, Duration::ZERO).unwrap().is_none());
    }

    #[test]
    fn a_waiter_gets_the_lock_when_the_holder_is_killed() {
        let (_temp, dir) = folder();
        let held_by = holder(&dir, "lock");
        let file = dir.open_rw("lock").unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                until("the other thread waits", || somebody_waits(&file));
                assert!(signal(&held_by.process(), Signal::SIGKILL).unwrap());
            });
            assert!(lock_exclusive(&file, LONG).unwrap());
        });
    }

    #[test]
    fn a_waiter_does_not_spin() {
        let (_temp, dir) = folder();
        let _held_by = holder(&dir, "lock");
        let file = dir.open_rw("lock").unwrap();
        let clock =
            || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap();
        let before = clock();
        assert!(!lock_exclusive(&file, Duration::from_millis(200)).unwrap());
        let used = clock().checked_sub(before).unwrap();
        assert!(used < Duration::from_millis(40), "{used:?} of CPU time for 200 ms of waiting");
    }

    #[test]
    fn a_probe_tells_held_from_free_and_takes_nothing() {
        let (_temp, dir) = folder();
        let held_by = holder(&dir, "lock");
        let file = dir.open_read("lock").unwrap();
        assert_eq!(try_shared_probe(&file).unwrap(), Probe::Held);
        drop(held_by);
        until("the lock is free", || try_shared_probe(&file).unwrap() == Probe::Free);
        assert!(try_exclusive(&dir.open_rw("lock").unwrap()).unwrap(), "the probe kept something");
    }

    #[test]
    fn a_guard_gives_back() {
        let (_temp, dir) = folder();
        let (mine, other) = (dir.open_rw("lock").unwrap(), dir.open_rw("lock").unwrap());
        let guard = Guard::exclusive(&mine, Duration::ZERO).unwrap();
        assert!(guard.is_some() && !try_exclusive(&other).unwrap());
        drop(guard);
        assert!(try_exclusive(&other).unwrap());
        assert!(unlock(&other).is_ok() && lock_shared(&mine, LONG).unwrap() && lock_shared(&other, LONG).unwrap());
    }
}
