//! Small files beside a session's record: whose turn it is, who holds it, who watches over it, and which session `/clear`
//! has ended. Their names begin with a dot, which no session's does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use crate::base::ids::SessionId;
use crate::model::event::Process;
use crate::store::session::SESSIONS;
use crate::sys::dir::Dir;
use crate::sys::lock;

/// How long a Stop waits for another one of the same turn, which is of a second installation.
const TWIN: Duration = Duration::from_millis(50);

/// The largest of these files that is read, in bytes.
const MAX_BYTES: u64 = 4096;

/// The longest that is kept of how often Stop has handed something over, in bytes.
const MAX_TOLD: usize = 256;

/// Whose turn it is: the first byte of the file. Behind it stands how often Stop has handed something over, and during which
/// prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    /// The model's: a prompt was submitted, or Stop has handed something over.
    Busy,
    /// Stop has begun. It stays so where Stop was ended from outside: the user has interrupted it, and speaks next.
    Stopping,
    /// Nobody's: Stop let the session stop.
    Idle,
}

impl Mark {
    fn byte(self) -> &'static [u8; 1] {
        match self {
            Mark::Busy => b"b",
            Mark::Stopping => b"s",
            Mark::Idle => b"i",
        }
    }
}

fn folder(state_home: &Path) -> io::Result<Dir> {
    Dir::open(state_home)?.create_sub(SESSIONS, 0o700)
}

fn turn_file(state_home: &Path, id: &SessionId) -> io::Result<File> {
    folder(state_home)?.open_rw(format!(".turn-{id}"))
}

/// A Stop that is on. The lock goes with it.
#[derive(Debug)]
pub struct Stop(File);

/// Begins a Stop. `None`: one is on already.
pub fn stop(state_home: &Path, id: &SessionId) -> io::Result<Option<Stop>> {
    let file = turn_file(state_home, id)?;
    if !lock::lock_exclusive(&file, TWIN)? {
        return Ok(None);
    }
    file.write_all_at(Mark::Stopping.byte(), 0)?;
    Ok(Some(Stop(file)))
}

impl Stop {
    /// How often Stop has handed something over during this prompt, of whatever run.
    pub fn told(&self, prompt: &str) -> io::Result<u32> {
        let mut bytes = [0; MAX_TOLD];
        let read = self.0.read_at(&mut bytes, 1)?;
        let told = std::str::from_utf8(&bytes[..read])
            .ok()
            .and_then(|text| text.trim_start().strip_suffix('\n')?.split_once(' '));
        Ok(told.filter(|(_, of)| *of == prompt).and_then(|(n, _)| n.parse().ok()).unwrap_or(0))
    }

    /// It hands something over, as it has done `before` times during this prompt.
    pub fn tell(&self, prompt: &str, before: u32) -> io::Result<()> {
        let line = format!("{:>10} {prompt}\n", before.saturating_add(1));
        if line.len() <= MAX_TOLD {
            self.0.set_len(1)?;
            self.0.write_all_at(line.as_bytes(), 1)?;
        }
        Ok(())
    }

    /// It has answered: `goes_on` if the model was handed something, and so goes on.
    pub fn end(self, goes_on: bool) -> io::Result<()> {
        let mark = if goes_on { Mark::Busy } else { Mark::Idle };
        self.0.write_all_at(mark.byte(), 0)
    }
}

/// A turn has begun.
pub fn begin(state_home: &Path, id: &SessionId) -> io::Result<()> {
    turn_file(state_home, id)?.write_all_at(Mark::Busy.byte(), 0)
}

/// Whether the session does nothing, and was not interrupted.
pub fn is_idle(state_home: &Path, id: &SessionId) -> io::Result<bool> {
    let mut byte = [0; 1];
    let read = turn_file(state_home, id)?.read_at(&mut byte, 0)?;
    Ok(read == 1 && byte == *Mark::Idle.byte())
}

/// Who watches over a session: one at a time, for as long as the file is open.
#[derive(Debug)]
pub struct Watch(#[expect(dead_code, reason = "its lock is what it is for")] File);

/// What came of the wish to watch over a session.
#[derive(Debug)]
pub enum Watching {
    /// It is ours.
    Ours(Watch),
    /// Another process does, for the same client.
    Taken,
    /// Another process does, for another client, or it has not said for which.
    Foreign,
}

/// Becomes the one who watches over a session for `client`, waiting at most `budget`.
pub fn watch(state_home: &Path, id: &SessionId, client: &Process, budget: Duration) -> io::Result<Watching> {
    let dir = folder(state_home)?;
    let name = format!(".watch-{id}");
    let file = dir.open_rw(&name)?;
    if lock::lock_exclusive(&file, budget)? {
        let line = serde_json::to_vec(client)?;
        file.set_len(0)?;
        file.write_all_at(&line, 0)?;
        return Ok(Watching::Ours(Watch(file)));
    }
    let by: Option<Process> = serde_json::from_slice(&dir.read_bounded(&name, MAX_BYTES)?).ok();
    Ok(if by.as_ref() == Some(client) { Watching::Taken } else { Watching::Foreign })
}

fn cleared_file(client: &Process) -> String {
    format!(".cleared-{}-{}", client.pid, client.start_time)
}

/// Leaves word for the next session of `client` that `/clear` has ended this one.
pub fn cleared(state_home: &Path, client: &Process, id: &SessionId) -> io::Result<()> {
    folder(state_home)?.write_atomic(cleared_file(client), id.as_str().as_bytes(), 0o600, false)
}

/// The session that `/clear` has ended in `client`. Told once.
pub fn take_cleared(state_home: &Path, client: &Process) -> io::Result<Option<SessionId>> {
    let (dir, name) = (folder(state_home)?, cleared_file(client));
    let bytes = match dir.read_bounded(&name, MAX_BYTES) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    // Of two that read it, one removes it.
    let ours = dir.remove(&name)?;
    Ok(std::str::from_utf8(&bytes).ok().and_then(|id| SessionId::new(id).ok()).filter(|_| ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> SessionId {
        SessionId::new("s-1").unwrap()
    }

    fn client(pid: i32) -> Process {
        Process { pid, start_time: 70, boot_id: "b".into() }
    }

    #[test]
    fn a_session_is_idle_only_after_a_stop_that_came_to_its_end() {
        let home = tempfile::tempdir().unwrap();
        let idle = || is_idle(home.path(), &id()).unwrap();
        assert!(!idle(), "nothing is known of it");
        let first = stop(home.path(), &id()).unwrap().unwrap();
        assert!(!idle());
        assert!(stop(home.path(), &id()).unwrap().is_none(), "the second of two installations");
        first.end(false).unwrap();
        assert!(idle());
        begin(home.path(), &id()).unwrap();
        assert!(!idle());
        stop(home.path(), &id()).unwrap().unwrap().end(true).unwrap();
        assert!(!idle(), "the model goes on");
        drop(stop(home.path(), &id()).unwrap().unwrap());
        assert!(!idle(), "it was interrupted");
    }

    #[test]
    fn what_stop_hands_over_is_counted_by_prompt() {
        let home = tempfile::tempdir().unwrap();
        for (prompt, before) in [("p1", 0), ("p1", 1), ("a longer one", 0), ("p2", 0), ("p2", 1), ("", 0), ("", 1)] {
            let stop = stop(home.path(), &id()).unwrap().unwrap();
            assert_eq!(stop.told(prompt).unwrap(), before, "{prompt}");
            stop.tell(prompt, before).unwrap();
            stop.end(true).unwrap();
            begin(home.path(), &id()).unwrap();
        }
        let stop = stop(home.path(), &id()).unwrap().unwrap();
        stop.tell(&"x".repeat(1000), 0).unwrap();
        assert_eq!(stop.told("p3").unwrap(), 0);
    }

    #[test]
    fn one_watches_and_the_others_learn_for_whom() {
        let home = tempfile::tempdir().unwrap();
        let watch = |pid| watch(home.path(), &id(), &client(pid), Duration::ZERO).unwrap();
        let Watching::Ours(first) = watch(7) else { panic!("nobody watches yet") };
        assert!(matches!(watch(7), Watching::Taken));
        assert!(matches!(watch(8), Watching::Foreign));
        drop(first);
        let Watching::Ours(_second) = watch(8) else { panic!("nobody watches any more") };
        assert!(matches!(watch(7), Watching::Foreign));
    }

    #[test]
    fn who_was_cleared_is_told_once_to_the_same_client() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(take_cleared(home.path(), &client(7)).unwrap(), None);
        cleared(home.path(), &client(7), &id()).unwrap();
        assert_eq!(take_cleared(home.path(), &client(8)).unwrap(), None);
        assert_eq!(take_cleared(home.path(), &client(7)).unwrap(), Some(id()));
        assert_eq!(take_cleared(home.path(), &client(7)).unwrap(), None);
    }
}
