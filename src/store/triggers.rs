//! Tool calls that a rule is to start after: a small file per session and rule, below the user's state directory. Hooks note
//! calls in it; one process at a time, the starter, waits until they are quiet and takes them out again once it has started
//! a run. What it does not take stays, also when it is killed, for the starter of the next call.
//!
//! The first line is of a fixed length: when the last call was, and how many there were. Behind it stand the files that the
//! calls named, one JSON string a line. Past a bound only the first line changes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::base::ids::SessionId;
use crate::store::home::State;
use crate::sys::dir::Dir;
use crate::sys::lock;

/// The folder, below the state directory.
const FOLDER: &str = "triggers";

/// The longest file to which another name is added, in bytes.
const ENOUGH: u64 = 64 * 1024;

/// The longest that is read.
const MAX_BYTES: u64 = 2 * ENOUGH;

/// The length of the first line.
const FIRST: usize = 42;

/// How long somebody may take who writes a line.
const PATIENCE: Duration = Duration::from_millis(200);

/// What one rule's calls are noted in, for one session.
#[derive(Debug)]
pub struct Trigger {
    dir: Dir,
    name: String,
}

/// Calls that were noted and not taken yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calls {
    /// When the last one was, `CLOCK_MONOTONIC` in milliseconds.
    pub last_ms: u64,
    /// How many there were.
    pub count: u64,
    /// The files they named, each once, in order.
    pub files: Vec<String>,
    length: usize,
}

impl Calls {
    fn of(bytes: &[u8]) -> Calls {
        let number = |at: std::ops::Range<usize>| {
            let digits = bytes.get(at).and_then(|d| std::str::from_utf8(d).ok());
            digits.and_then(|d| d.trim().parse().ok()).unwrap_or(0)
        };
        let mut files: Vec<String> = Vec::new();
        for line in bytes.get(FIRST..).unwrap_or_default().split(|b| *b == b'\n') {
            if let Ok(file) = serde_json::from_slice(line)
                && !files.contains(&file)
            {
                files.push(file);
            }
        }
        Calls { last_ms: number(0..20), count: number(21..41), files, length: bytes.len() }
    }

    fn first_line(&self) -> String {
        format!("{:>20} {:>20}\n", self.last_ms, self.count)
    }
}

impl Trigger {
    /// Of a rule of a session. Makes the folder.
    pub fn of(state: &State, session: &SessionId, rule: &str) -> io::Result<Trigger> {
        let dir = Dir::open(state.path())?.create_sub(FOLDER, 0o700)?;
        // A character that no id has, so that no other pair has the same name.
        Ok(Trigger { dir, name: format!("{session}+{rule}") })
    }

    /// Notes a call.
    pub fn add(&self, now_ms: u64, file: Option<&str>) -> io::Result<()> {
        let (held, bytes) = self.locked()?;
        let before = Calls::of(&bytes);
        let after = Calls { last_ms: now_ms, count: before.count + 1, ..before };
        // A name that is there already is written once more: the starter may be taking the first one out just now. Half of
        // the room is kept for other names.
        let room = |f: &str| if after.files.iter().any(|k| k == f) { ENOUGH / 2 } else { ENOUGH };
        let line = file.filter(|f| (bytes.len() + f.len()) as u64 <= room(f));
        if let Some(line) = line.map(serde_json::to_string).transpose()? {
            // Behind the first line, also where there is none yet.
            held.write_all_at(format!("{line}\n").as_bytes(), bytes.len().max(FIRST) as u64)?;
        }
        held.write_all_at(after.first_line().as_bytes(), 0)
    }

    /// What was noted and not taken yet, if anything.
    pub fn calls(&self) -> io::Result<Option<Calls>> {
        let (_held, bytes) = self.locked()?;
        Ok(Some(Calls::of(&bytes)).filter(|calls| calls.count > 0))
    }

    /// Says that no further call is to be waited for: the turn that made them ends. Whether there were any.
    pub fn hush(&self) -> io::Result<bool> {
        let (held, bytes) = self.locked()?;
        let calls = Calls::of(&bytes);
        if calls.count > 0 && calls.last_ms > 0 {
            held.write_all_at(Calls { last_ms: 0, ..calls.clone() }.first_line().as_bytes(), 0)?;
        }
        Ok(calls.count > 0)
    }

    /// Takes calls out; what was noted since they were read stays.
    pub fn take(&self, calls: &Calls) -> io::Result<()> {
        let (held, bytes) = self.locked()?;
        let now = Calls::of(&bytes);
        if now.count <= calls.count {
            return held.set_len(0);
        }
        let rest = bytes.get(calls.length..).unwrap_or_default();
        let first = Calls { count: now.count - calls.count, ..now }.first_line();
        let left = [first.as_bytes(), rest].concat();
        held.write_all_at(&left, 0)?;
        held.set_len(left.len() as u64)
    }

    /// Becomes the one who starts runs for it: the file is locked for as long as it lives. `None`: somebody else is.
    pub fn starter(&self) -> io::Result<Option<File>> {
        let file = self.dir.open_rw(format!("{}+starter", self.name))?;
        Ok(lock::try_exclusive(&file)?.then_some(file))
    }

    fn locked(&self) -> io::Result<(File, Vec<u8>)> {
        let file = self.dir.open_rw(&self.name)?;
        if !lock::lock_exclusive(&file, PATIENCE)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{} is locked by somebody else", self.name)));
        }
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len().min(MAX_BYTES)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        Ok((file, bytes))
    }
}

/// Removes what was noted of a session's calls, of every rule. Whoever still starts runs for one has the file open.
pub fn forget(home: &Dir, session: &SessionId) -> io::Result<()> {
    let dir = match home.sub(FOLDER) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let own = format!("{session}+");
    for name in dir.names()? {
        if name.to_string_lossy().starts_with(&own) {
            dir.remove(&name)?;
        }
    }
    Ok(())
}

/// How many runs a rule may start for one session within [`WITHIN_MS`].
const MAX_STARTS: usize = 6;

/// See [`MAX_STARTS`].
const WITHIN_MS: u64 = 60_000;

/// When the last runs were started, as the starter's own file says, which it has locked.
#[derive(Debug)]
pub struct Starts<'f> {
    file: &'f File,
    at: Vec<u64>,
}

impl<'f> Starts<'f> {
    /// Reads them.
    pub fn of(file: &'f File) -> io::Result<Starts<'f>> {
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len().min(4096)).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(Starts { at: text.lines().filter_map(|l| l.parse().ok()).collect(), file })
    }

    /// For how long no further one may be started, in milliseconds.
    pub fn pause_ms(&self, now_ms: u64) -> u64 {
        // What lies in the future was before the machine was booted.
        let recent = self.at.iter().filter(|at| **at <= now_ms && now_ms - **at < WITHIN_MS);
        let mut recent: Vec<u64> = recent.copied().collect();
        recent.sort_unstable_by(|a, b| b.cmp(a));
        recent.get(MAX_STARTS - 1).map_or(0, |at| at + WITHIN_MS - now_ms)
    }

    /// Writes down that one is started.
    pub fn add(&mut self, now_ms: u64) -> io::Result<()> {
        self.at.push(now_ms);
        let from = self.at.len().saturating_sub(MAX_STARTS);
        let last: Vec<String> = self.at[from..].iter().map(ToString::to_string).collect();
        let text = last.join("\n");
        self.file.set_len(0)?;
        self.file.write_all_at(text.as_bytes(), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger() -> (tempfile::TempDir, Trigger) {
        let tmp = tempfile::tempdir().unwrap();
        let state = State::open_at(&tmp.path().join("state")).unwrap();
        let trigger = Trigger::of(&state, &SessionId::new("s-1").unwrap(), "check.it").unwrap();
        (tmp, trigger)
    }

    #[test]
    fn calls_are_there_until_they_are_taken() {
        let (_tmp, trigger) = trigger();
        assert_eq!(trigger.calls().unwrap(), None);
        for (at, file) in [(5, Some("/p/a")), (7, None), (8, Some("/p/\"b\n")), (9, Some("/p/a"))] {
            trigger.add(at, file).unwrap();
        }
        let calls = trigger.calls().unwrap().unwrap();
        assert_eq!((calls.last_ms, calls.count), (9, 4));
        assert_eq!(calls.files, ["/p/a", "/p/\"b\n"]);
        // Whoever reads and is killed has taken nothing.
        assert_eq!(trigger.calls().unwrap().as_ref(), Some(&calls));
        trigger.take(&calls).unwrap();
        assert_eq!(trigger.calls().unwrap(), None);
        trigger.take(&calls).unwrap();
        trigger.add(11, None).unwrap();
        assert_eq!(trigger.calls().unwrap().map(|c| (c.last_ms, c.count, c.files)), Some((11, 1, Vec::new())));
    }

    #[test]
    fn what_comes_between_reading_and_taking_stays() {
        let (_tmp, trigger) = trigger();
        trigger.add(5, Some("/p/a")).unwrap();
        let calls = trigger.calls().unwrap().unwrap();
        trigger.add(5, None).unwrap();
        trigger.take(&calls).unwrap();
        let left = trigger.calls().unwrap().unwrap();
        assert_eq!((left.last_ms, left.count, left.files.len()), (5, 1, 0));
        trigger.add(6, Some("/p/b")).unwrap();
        trigger.take(&left).unwrap();
        let left = trigger.calls().unwrap().unwrap();
        assert_eq!((left.last_ms, left.count, left.files.as_slice()), (6, 1, &["/p/b".to_owned()][..]));
    }

    #[test]
    fn a_file_that_is_changed_again_while_its_run_is_made_is_checked_again() {
        let (_tmp, trigger) = trigger();
        trigger.add(5, Some("/p/a")).unwrap();
        let calls = trigger.calls().unwrap().unwrap();
        trigger.add(6, Some("/p/a")).unwrap();
        trigger.take(&calls).unwrap();
        let left = trigger.calls().unwrap().unwrap();
        assert_eq!((left.count, left.files.as_slice()), (1, &["/p/a".to_owned()][..]));
    }

    #[test]
    fn a_storm_of_calls_stays_small_and_its_end_is_known() {
        let (_tmp, trigger) = trigger();
        for n in 0..1000 {
            trigger.add(n, Some(&format!("/p/{n}/{}", "x".repeat(500)))).unwrap();
        }
        let calls = trigger.calls().unwrap().unwrap();
        assert_eq!((calls.last_ms, calls.count), (999, 1000));
        assert!((50..150).contains(&calls.files.len()), "{}", calls.files.len());
        trigger.take(&calls).unwrap();
        assert_eq!(trigger.calls().unwrap(), None);
    }

    #[test]
    fn one_at_a_time_starts_runs_and_not_too_often() {
        let (_tmp, trigger) = trigger();
        let held = trigger.starter().unwrap().unwrap();
        assert!(trigger.starter().unwrap().is_none());
        let mut starts = Starts::of(&held).unwrap();
        for at in [100, 200, 300, 400, 500] {
            starts.add(at).unwrap();
        }
        assert_eq!(starts.pause_ms(600), 0);
        starts.add(600).unwrap();
        assert_eq!(starts.pause_ms(600), 59_500);
        drop(held);
        // The next starter knows of them.
        let held = trigger.starter().unwrap().unwrap();
        let mut starts = Starts::of(&held).unwrap();
        assert_eq!((starts.pause_ms(600), starts.pause_ms(60_099), starts.pause_ms(60_100)), (59_500, 1, 0));
        starts.add(60_100).unwrap();
        assert_eq!(starts.pause_ms(60_100), 100);
        // After a reboot the clock begins anew.
        assert_eq!(starts.pause_ms(50), 0);
    }
}
