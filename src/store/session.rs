//! What cpw remembers of a Claude Code session: a small log below the user's state directory, under its own lock. It is
//! the first thing a hook looks up, and where it is absent the only one.
//!
//! Runs that are not named here are inert for hooks: a folder that came with a project is never delivered from.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::ids::{RunId, SessionId};
use crate::logic::session::MAX_WAKES;
use crate::model::config::OnTool;
use crate::model::event::Process;
use crate::model::scan;
use crate::store::registry::LogId;
use crate::sys::clock;
use crate::sys::dir::{Dir, FileId};
use crate::sys::lock;

/// The folder of the sessions' records, below the state directory.
pub const SESSIONS: &str = "sessions";

/// The largest record that is read. Nothing is added to one that would become longer.
const MAX_BYTES: u64 = 1024 * 1024;

/// A record that has grown to this is written anew, without what nobody asks for any more.
const GROWN: u64 = MAX_BYTES / 2;

/// How many prompts, runs that are closed, and things that were told outlive that: the newest.
const KEPT: usize = 500;

/// How often a record that was written anew meanwhile is opened again.
const TRIES: u32 = 16;

/// How many runs may be started for one session within [`STARTS_WITHIN_MS`].
pub const MAX_STARTS: usize = 20;

/// See [`MAX_STARTS`].
const STARTS_WITHIN_MS: u64 = 60_000;

/// One line of a session's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "t", rename_all = "snake_case")]
pub enum Entry {
    /// A prompt was looked at.
    Prompt {
        /// The client's id of it.
        id: String,
    },
    /// A run was made for this session.
    Run {
        /// Its folder.
        path: PathBuf,
        /// Device and inode of the folder, so that another one by that name is not taken for it.
        dev: u64,
        /// See `dev`.
        ino: u64,
        /// Which file its log is, so that another one by that name is not taken for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log: Option<LogId>,
        /// The rule that matched.
        rule: String,
        /// When it was made, `CLOCK_MONOTONIC` in milliseconds.
        #[serde(default)]
        mono_ms: u64,
    },
    /// A run owes this session nothing any more.
    Closed {
        /// Its id.
        run: RunId,
    },
    /// The user typed while Stop was holding: it lets go.
    LetGo {
        /// `CLOCK_MONOTONIC` in milliseconds.
        mono_ms: u64,
    },
    /// The user was told something that is told once.
    Told {
        /// What.
        what: String,
    },
    /// The client in which the session is, when it began to have runs or went on in another one.
    Client(Process),
    /// The session is over: the client has ended it, or `/clear` has put another one in its place.
    Over {
        /// What the client says of it.
        reason: String,
    },
    /// It goes on after all: it was resumed.
    Again,
    /// It was idle, and was woken.
    Woken {
        /// `CLOCK_MONOTONIC` in milliseconds.
        mono_ms: u64,
    },
    /// What the session's tool calls may start from here on; nothing where there are no rules.
    ToolRules(ToolRules),
    /// cpw was switched off for this session.
    Off,
    /// And on again.
    On,
    /// A kind that this version does not know.
    #[serde(other)]
    Unknown,
}

/// The approved rules on tool calls, as they were when a prompt was submitted last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolRules {
    /// The project whose config has them.
    pub project: PathBuf,
    /// In the order of the config.
    pub rules: Vec<ToolRule>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolRule {
    /// Its name.
    pub name: String,
    /// The calls that it means.
    #[serde(flatten)]
    pub on: OnTool,
}

/// A run of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnRun {
    /// Its folder.
    pub path: PathBuf,
    /// Device and inode of the folder.
    pub dev: u64,
    /// See `dev`.
    pub ino: u64,
    /// Which file its log is.
    pub log: Option<LogId>,
    /// The rule that matched.
    pub rule: String,
    /// When it was made, `CLOCK_MONOTONIC` in milliseconds.
    pub made_ms: u64,
    /// It owes the session nothing any more.
    pub closed: bool,
}

impl OwnRun {
    /// The run's id: the name of its folder.
    pub fn id(&self) -> Option<RunId> {
        self.path.file_name()?.to_str().and_then(|n| RunId::new(n).ok())
    }
}

/// What is known of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// Prompts that were looked at.
    pub prompts: Vec<String>,
    /// Its runs, oldest first.
    pub runs: Vec<OwnRun>,
    /// When the user last typed while Stop was holding, `CLOCK_MONOTONIC` in milliseconds.
    pub let_go_ms: u64,
    /// What the user was told once.
    pub told: Vec<String>,
    /// The client in which it is or was, where that is known.
    pub client: Option<Process>,
    /// Why it is over, if it is.
    pub over: Option<String>,
    /// When it was woken last, `CLOCK_MONOTONIC` in milliseconds: as often as matters.
    pub woken: Vec<u64>,
    /// What its tool calls may start.
    pub tool_rules: ToolRules,
    /// Whether cpw is switched off for it.
    pub off: bool,
}

impl Session {
    /// Runs that still owe it something.
    pub fn open_runs(&self) -> impl Iterator<Item = &OwnRun> {
        self.runs.iter().filter(|r| !r.closed)
    }

    /// For how long no further run may be started for it, in milliseconds: so many within so long a time are enough for
    /// anybody who types.
    pub fn pause_ms(&self, now_ms: u64) -> u64 {
        // What lies in the future was before the machine was booted.
        let recent = |made: u64| made <= now_ms && now_ms - made < STARTS_WITHIN_MS;
        let mut recent: Vec<u64> = self.runs.iter().map(|run| run.made_ms).filter(|made| recent(*made)).collect();
        recent.sort_unstable_by(|a, b| b.cmp(a));
        recent.get(MAX_STARTS - 1).map_or(0, |made| made + STARTS_WITHIN_MS - now_ms)
    }

    /// What a record that is written anew says: the same, as far as anybody asks.
    fn entries(&self) -> Vec<Entry> {
        let mut all: Vec<Entry> = newest(&self.prompts).map(|id| Entry::Prompt { id: id.clone() }).collect();
        all.extend(newest(&self.told).map(|what| Entry::Told { what: what.clone() }));
        let closed = self.runs.iter().filter(|run| run.closed).count();
        let mut spare = closed.saturating_sub(KEPT);
        for run in &self.runs {
            if run.closed && spare > 0 {
                spare -= 1;
                continue;
            }
            let OwnRun { path, dev, ino, log, rule, made_ms, closed } = run.clone();
            let ended = run.id().filter(|_| closed).map(|run| Entry::Closed { run });
            all.push(Entry::Run { path, dev, ino, log, rule, mono_ms: made_ms });
            all.extend(ended);
        }
        if self.let_go_ms > 0 {
            all.push(Entry::LetGo { mono_ms: self.let_go_ms });
        }
        all.extend(self.client.clone().map(Entry::Client));
        all.extend(self.over.clone().map(|reason| Entry::Over { reason }));
        all.extend(self.woken.iter().map(|at| Entry::Woken { mono_ms: *at }));
        if self.tool_rules != ToolRules::default() {
            all.push(Entry::ToolRules(self.tool_rules.clone()));
        }
        all.extend(self.off.then_some(Entry::Off));
        all
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Prompt { id } => self.prompts.push(id),
            Entry::Run { path, dev, ino, log, rule, mono_ms } => {
                self.runs.push(OwnRun { path, dev, ino, log, rule, made_ms: mono_ms, closed: false });
            }
            Entry::Closed { run } => {
                for own in self.runs.iter_mut().filter(|r| !r.closed && r.id().as_ref() == Some(&run)) {
                    own.closed = true;
                }
            }
            Entry::LetGo { mono_ms } => self.let_go_ms = mono_ms,
            Entry::Told { what } => self.told.push(what),
            Entry::Client(process) => self.client = Some(process),
            Entry::Over { reason } => self.over = Some(reason),
            Entry::Again => self.over = None,
            Entry::Woken { mono_ms } => {
                let spare = (self.woken.len() + 1).saturating_sub(MAX_WAKES);
                self.woken.drain(..spare);
                self.woken.push(mono_ms);
            }
            Entry::ToolRules(rules) => self.tool_rules = rules,
            Entry::Off => self.off = true,
            Entry::On => self.off = false,
            Entry::Unknown => {}
        }
    }

    fn fold(bytes: &[u8]) -> Session {
        let mut session = Session::default();
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        for line in bytes[..whole].split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
            // A line that cannot be read costs only itself: the record is a memory, not the truth of any run.
            if let Ok(entry) = serde_json::from_slice(line) {
                session.apply(entry);
            }
        }
        session
    }

    /// As [`Session::fold`], without prompts, what was told, and closed runs. In the lines as cpw writes them, those are
    /// passed over by their beginning: a session of a thousand prompts costs its hooks little more than a new one.
    fn fold_open(bytes: &[u8]) -> Session {
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let mut session = Session::default();
        // Lines of runs that are not closed so far, each with the name of its folder.
        let mut runs: Vec<(&[u8], &[u8])> = Vec::new();
        let mut at = 0;
        while let Some(end) = scan::line_end(&bytes[..whole], at) {
            let line = &bytes[at..end];
            at = end + 1;
            if line.starts_with(br#"{"t":"prompt","#) || line.starts_with(br#"{"t":"told","#) {
                continue;
            }
            if line.starts_with(br#"{"t":"run","#) {
                match folder_name(line) {
                    Some(name) => runs.push((name, line)),
                    None => return Session::fold(bytes).only_open(),
                }
            } else if let Ok(entry) = serde_json::from_slice(line) {
                if let Entry::Closed { run } = &entry {
                    runs.retain(|(name, _)| *name != run.as_str().as_bytes());
                }
                session.apply(entry);
            }
        }
        for entry in runs.iter().filter_map(|(_, line)| serde_json::from_slice(line).ok()) {
            session.apply(entry);
        }
        session.only_open()
    }

    fn only_open(mut self) -> Session {
        self.prompts.clear();
        self.told.clear();
        self.runs.retain(|r| !r.closed);
        self
    }
}

/// The last of them, at most [`KEPT`].
fn newest<T>(all: &[T]) -> impl Iterator<Item = &T> {
    all.iter().skip(all.len().saturating_sub(KEPT))
}

/// Entries as lines of a record.
fn lines(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut bytes, entry)?;
        bytes.push(b'\n');
    }
    Ok(bytes)
}

/// The name of the folder that a run's line is about, where it is written without escapes.
fn folder_name(line: &[u8]) -> Option<&[u8]> {
    let path = line.strip_prefix(br#"{"t":"run","path":""#)?;
    let path = &path[..scan::string_end(path, 0)?];
    let name = &path[path.iter().rposition(|b| *b == b'/')? + 1..];
    (!name.is_empty() && !path.contains(&b'\\')).then_some(name)
}

/// The record of a session, without its lock; `None` where there is none.
pub fn load(state_home: &Path, id: &SessionId) -> io::Result<Option<Session>> {
    load_with(state_home, id, Session::fold)
}

/// When the record of a session has changed last, in milliseconds since 1970: a prompt was looked at, or a run began or ended
/// for it.
pub fn changed_ms(state_home: &Path, id: &SessionId) -> Option<i64> {
    let changed = std::fs::symlink_metadata(state_home.join(SESSIONS).join(id.as_str())).ok()?.modified().ok()?;
    i64::try_from(changed.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok()
}

/// As [`load`], without what hooks of tools do not ask for: prompts, what the user was told, and runs that are closed.
pub fn load_open(state_home: &Path, id: &SessionId) -> io::Result<Option<Session>> {
    load_with(state_home, id, Session::fold_open)
}

fn load_with(state_home: &Path, id: &SessionId, fold: impl Fn(&[u8]) -> Session) -> io::Result<Option<Session>> {
    let read = || Dir::open_nofollow(state_home.join(SESSIONS))?.read_bounded(id.as_str(), MAX_BYTES);
    match read() {
        Ok(bytes) => Ok(Some(fold(&bytes))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// A session's record, locked.
#[derive(Debug)]
pub struct Locked {
    file: File,
    /// What it says.
    pub session: Session,
}

impl Locked {
    /// Locks the record of a session, making it if there is none. `None` if somebody holds it longer than `budget`.
    pub fn open(state_home: &Path, id: &SessionId, budget: Duration) -> io::Result<Option<Locked>> {
        let dir = Dir::open(state_home)?.create_sub(SESSIONS, 0o700)?;
        for _ in 0..TRIES {
            let file = dir.open_append(id.as_str())?;
            if !lock::lock_exclusive(&file, budget)? {
                return Ok(None);
            }
            // Written anew, or removed, while this waited for its lock: the other one is the record now.
            let own = FileId::of(&file)?;
            if !dir.stat(id.as_str())?.is_some_and(|named| named.same_file(&own)) {
                continue;
            }
            let locked = Locked::read(file, id)?;
            if own.size <= GROWN || locked.shorten(&dir, id)? {
                return Ok(Some(locked));
            }
        }
        Ok(None)
    }

    fn read(file: File, id: &SessionId) -> io::Result<Locked> {
        let length = file.metadata()?.len();
        if length > MAX_BYTES {
            let full = format!("the record of session {id} is larger than {MAX_BYTES} bytes");
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, full));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        file.read_exact_at(&mut bytes, 0)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        Ok(Locked { session: Session::fold(&bytes), file })
    }

    /// Puts a shorter record with the same memory in its place, in one step. Returns whether this one stays in force, because
    /// another would hardly be shorter.
    fn shorten(&self, dir: &Dir, id: &SessionId) -> io::Result<bool> {
        let bytes = lines(&self.session.entries())?;
        if bytes.len() as u64 > GROWN {
            return Ok(true);
        }
        dir.write_atomic(id.as_str(), &bytes, 0o600, false).map(|()| false)
    }

    /// Adds an entry.
    pub fn add(&mut self, entry: Entry) -> io::Result<()> {
        let line = lines(std::slice::from_ref(&entry))?;
        let before = self.file.metadata()?.len();
        if before + line.len() as u64 > MAX_BYTES {
            // Who cannot read it would do nothing for this session any more.
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the session's record has no room for that"));
        }
        if let Err(e) = self.file.write_all(&line) {
            // A half line would spoil the next one.
            self.file.set_len(before)?;
            return Err(e);
        }
        self.session.apply(entry);
        Ok(())
    }

    /// Adds a run.
    pub fn add_run(&mut self, folder: &Dir, rule: &str) -> io::Result<()> {
        let id = folder.id()?;
        let path = folder.path().to_owned();
        let log = LogId::in_folder(folder)?;
        let mono_ms = clock::mono_ms();
        self.add(Entry::Run { path, dev: id.dev, ino: id.ino, log, rule: rule.to_owned(), mono_ms })
    }
}

/// Whether a folder is the one that the session's record names. Who cannot tell must not take it for another one.
pub fn is_same(own: &OwnRun, folder: &Dir) -> io::Result<bool> {
    let FileId { dev, ino, .. } = folder.id()?;
    Ok((dev, ino) == (own.dev, own.ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::span::Span;

    const LONG: Duration = Duration::from_secs(30);

    fn id() -> SessionId {
        SessionId::new("s-1").unwrap()
    }

    fn open(home: &Path) -> Locked {
        Locked::open(home, &id(), LONG).unwrap().unwrap()
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(load(home.path(), &id()).unwrap(), None);
        let run = RunId::new("r1").unwrap();
        let folder = home.path().join("r1");
        std::fs::create_dir(&folder).unwrap();
        let mut locked = open(home.path());
        locked.add(Entry::Prompt { id: "p1".into() }).unwrap();
        locked.add_run(&Dir::open(&folder).unwrap(), "rule").unwrap();
        locked.add(Entry::LetGo { mono_ms: 7 }).unwrap();
        locked.add(Entry::Told { what: "x".into() }).unwrap();
        locked.add(Entry::Off).unwrap();
        let seen = load(home.path(), &id()).unwrap().unwrap();
        assert_eq!(seen, locked.session);
        assert_eq!((seen.prompts.as_slice(), seen.let_go_ms, seen.off), (&["p1".to_owned()][..], 7, true));
        let own = seen.open_runs().next().unwrap();
        assert_eq!((own.id(), own.rule.as_str()), (Some(run.clone()), "rule"));
        assert!(is_same(own, &Dir::open(&folder).unwrap()).unwrap());
        assert!(!is_same(own, &Dir::open(home.path()).unwrap()).unwrap());
        locked.add(Entry::Closed { run }).unwrap();
        locked.add(Entry::On).unwrap();
        drop(locked);
        let seen = open(home.path()).session;
        assert_eq!((seen.open_runs().count(), seen.runs.len(), seen.off), (0, 1, false));
        // Another session has a memory of its own.
        assert_eq!(load(home.path(), &SessionId::new("s-2").unwrap()).unwrap(), None);
    }

    #[test]
    fn a_line_torn_anywhere_costs_only_itself() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(SESSIONS).join("s-1");
        let mut locked = open(home.path());
        locked.add(Entry::Prompt { id: "p1".into() }).unwrap();
        let first = std::fs::read(&path).unwrap().len();
        locked.add(Entry::Prompt { id: "p2".into() }).unwrap();
        drop(locked);
        let whole = std::fs::read(&path).unwrap();
        for end in first..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(load(home.path(), &id()).unwrap().unwrap().prompts, ["p1"]);
            let mut locked = open(home.path());
            locked.add(Entry::Prompt { id: "p3".into() }).unwrap();
            drop(locked);
            assert_eq!(load(home.path(), &id()).unwrap().unwrap().prompts, ["p1", "p3"], "torn at {end}");
        }
        // Foreign lines and kinds of a later version are passed over.
        let odd = b"nonsense\n{\"t\":\"sparkle\",\"x\":1}\n\n\0\n{\"t\":\"prompt\",\"id\":\"p9\"}\n";
        std::fs::write(&path, odd).unwrap();
        assert_eq!(load(home.path(), &id()).unwrap().unwrap().prompts, ["p9"]);
    }

    #[test]
    fn what_is_open_is_told_from_the_beginnings_of_lines() {
        let run = |name: &str| Entry::Run {
            path: Path::new("/p/.claude/runs").join(name),
            dev: 1,
            ino: 2,
            log: None,
            rule: "r".into(),
            mono_ms: 5,
        };
        let closed = |name: &str| Entry::Closed { run: RunId::new(name).unwrap() };
        let (prompt, told) = (Entry::Prompt { id: "p".into() }, Entry::Told { what: "x".into() });
        let let_go = Entry::LetGo { mono_ms: 3 };
        let on = OnTool {
            tools: vec!["Edit".into()],
            matches: [("a".into(), "*".into())].into(),
            debounce: Span::from_secs(2),
        };
        let rules = ToolRules { project: "/p".into(), rules: vec![ToolRule { name: "r".into(), on }] };
        let odd = Entry::Run { path: "/p/\"\\/r4".into(), dev: 1, ino: 2, log: None, rule: "r".into(), mono_ms: 0 };
        // Every record of up to three of these lines.
        let all = [
            run("r1"),
            run("r2"),
            closed("r1"),
            closed("r2"),
            prompt,
            told,
            let_go,
            Entry::Off,
            Entry::On,
            Entry::Client(Process { pid: 7, start_time: 70, boot_id: "b".into() }),
            Entry::Over { reason: "clear".into() },
            Entry::Again,
            Entry::Woken { mono_ms: 9 },
            odd,
            closed("r4"),
            Entry::ToolRules(rules),
            Entry::ToolRules(ToolRules::default()),
        ];
        let lines: Vec<String> = all.iter().map(|e| serde_json::to_string(e).unwrap() + "\n").collect();
        let mut lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        lines.extend(["{\"t\": \"closed\", \"run\": \"r1\"}\n", "nonsense\n", "{\"t\":\"run\",\"path\":\"/x/r1\"}\n"]);
        let mut tried = 0;
        let mut stack = vec![(String::new(), 0)];
        while let Some((text, depth)) = stack.pop() {
            let whole = Session::fold(text.as_bytes()).only_open();
            assert_eq!(Session::fold_open(text.as_bytes()), whole, "{text}");
            assert_eq!(Session::fold_open(format!("{text}{{\"t\":\"off\"").as_bytes()), whole, "{text}");
            tried += 1;
            if depth < 3 {
                stack.extend(lines.iter().map(|line| (format!("{text}{line}"), depth + 1)));
            }
        }
        assert!(tried > 2_500, "{tried}");
    }

    #[test]
    fn a_session_that_is_over_may_go_on_elsewhere_and_remembers_only_its_last_wakes() {
        let home = tempfile::tempdir().unwrap();
        let mut locked = open(home.path());
        let client = |pid| Process { pid, start_time: 70, boot_id: "b".into() };
        locked.add(Entry::Client(client(7))).unwrap();
        locked.add(Entry::Over { reason: "clear".into() }).unwrap();
        let seen = load_open(home.path(), &id()).unwrap().unwrap();
        assert_eq!((seen.client, seen.over.as_deref()), (Some(client(7)), Some("clear")));
        locked.add(Entry::Again).unwrap();
        locked.add(Entry::Client(client(8))).unwrap();
        for mono_ms in 1..=20 {
            locked.add(Entry::Woken { mono_ms }).unwrap();
        }
        let seen = load_open(home.path(), &id()).unwrap().unwrap();
        assert_eq!((&seen.client, &seen.over), (&Some(client(8)), &None));
        assert_eq!(seen.woken, (15..=20).collect::<Vec<u64>>());
    }

    #[test]
    fn one_at_a_time_has_it_and_nothing_is_lost() {
        let home = tempfile::tempdir().unwrap();
        let locked = open(home.path());
        assert!(Locked::open(home.path(), &id(), Duration::from_millis(10)).unwrap().is_none());
        assert!(load(home.path(), &id()).unwrap().is_some(), "a reader needs no lock");
        drop(locked);
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let home = home.path();
                scope.spawn(move || {
                    for i in 0..20 {
                        let mut locked = open(home);
                        let before = locked.session.prompts.len();
                        locked.add(Entry::Prompt { id: format!("{writer}.{i}") }).unwrap();
                        assert_eq!(locked.session.prompts.len(), before + 1);
                    }
                });
            }
        });
        let mut seen = load(home.path(), &id()).unwrap().unwrap().prompts;
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 160);
    }

    #[test]
    fn a_record_that_grew_long_is_written_anew_and_means_the_same() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(SESSIONS).join("s-1");
        let folder = home.path().join("r1");
        std::fs::create_dir(&folder).unwrap();
        let mut locked = open(home.path());
        locked.add_run(&Dir::open(&folder).unwrap(), "rule").unwrap();
        locked.add(Entry::Client(Process { pid: 7, start_time: 70, boot_id: "b".into() })).unwrap();
        locked.add(Entry::Woken { mono_ms: 9 }).unwrap();
        drop(locked);
        // More than a record may have in all.
        let before = load_open(home.path(), &id()).unwrap();
        for batch in 0..80 {
            let mut locked = open(home.path());
            for i in 0..30 {
                let prompt = format!("{:0>500}", batch * 30 + i);
                assert!(!locked.session.prompts.contains(&prompt));
                locked.add(Entry::Prompt { id: prompt.clone() }).unwrap();
                locked.add(Entry::Closed { run: RunId::new("none").unwrap() }).unwrap();
            }
            drop(locked);
            assert!(std::fs::metadata(&path).unwrap().len() < GROWN + 20_000);
        }
        assert_eq!(load_open(home.path(), &id()).unwrap(), before, "what hooks of tools ask for");
        let now = open(home.path()).session;
        assert!(now.prompts.len() >= KEPT && now.prompts.ends_with(&[format!("{:0>500}", 2399)]));
        // Nothing but the record is left.
        assert_eq!(std::fs::read_dir(home.path().join(SESSIONS)).unwrap().count(), 1);
    }

    #[test]
    fn what_is_written_anew_means_the_same() {
        let run = |name: &str, mono_ms| Entry::Run {
            path: Path::new("/p/.claude/runs").join(name),
            dev: 1,
            ino: 2,
            log: Some(LogId(3, 4, 5)),
            rule: "r".into(),
            mono_ms,
        };
        let rules = ToolRules { project: "/p".into(), rules: Vec::new() };
        let mut session = Session::default();
        for entry in [
            run("r1", 1),
            run("r2", 2),
            Entry::Closed { run: RunId::new("r1").unwrap() },
            Entry::Prompt { id: "p".into() },
            Entry::Told { what: "t".into() },
            Entry::LetGo { mono_ms: 3 },
            Entry::Client(Process { pid: 7, start_time: 70, boot_id: "b".into() }),
            Entry::Over { reason: "clear".into() },
            Entry::Woken { mono_ms: 9 },
            Entry::Woken { mono_ms: 10 },
            Entry::ToolRules(rules),
            Entry::Off,
        ] {
            session.apply(entry);
            assert_eq!(Session::fold(&lines(&session.entries()).unwrap()), session);
        }
        for i in 0..KEPT + 20 {
            session.apply(run(&format!("old{i}"), 1));
            session.apply(Entry::Closed { run: RunId::new(&format!("old{i}")).unwrap() });
        }
        let short = Session::fold(&lines(&session.entries()).unwrap());
        assert_eq!((short.runs.len(), short.open_runs().count()), (KEPT + 1, 1));
        assert_eq!(short.runs.last(), session.runs.last());
    }

    #[test]
    fn many_that_come_while_it_is_written_anew_lose_nothing() {
        let home = tempfile::tempdir().unwrap();
        drop(open(home.path()));
        let path = home.path().join(SESSIONS).join("s-1");
        let filler = format!("{{\"t\":\"let_go\",\"mono_ms\":{}}}\n", u64::MAX);
        for _ in 0..3 {
            let room = usize::try_from(GROWN).unwrap() / filler.len();
            let own = load(home.path(), &id()).unwrap().unwrap();
            let whole = [filler.repeat(room).into_bytes(), lines(&own.entries()).unwrap()].concat();
            std::fs::write(&path, whole).unwrap();
            std::thread::scope(|scope| {
                for writer in 0..8 {
                    let (home, before) = (home.path(), own.prompts.len());
                    scope.spawn(move || {
                        let mut locked = open(home);
                        locked.add(Entry::Prompt { id: format!("{before}.{writer}") }).unwrap();
                    });
                }
            });
            let now = load(home.path(), &id()).unwrap().unwrap();
            assert_eq!(now.prompts.len(), own.prompts.len() + 8);
            assert!(std::fs::metadata(&path).unwrap().len() < GROWN);
        }
    }

    #[test]
    fn only_so_many_runs_are_started_within_a_minute() {
        let made =
            |made_ms| OwnRun { path: "/p".into(), dev: 1, ino: 2, log: None, rule: "r".into(), made_ms, closed: true };
        let mut session = Session::default();
        for i in 0..MAX_STARTS as u64 {
            assert_eq!(session.pause_ms(100_000), 0, "{i}");
            session.runs.push(made(50_000 + i * 1000));
        }
        assert_eq!((session.pause_ms(100_000), session.pause_ms(109_999), session.pause_ms(110_000)), (10_000, 1, 0));
        // After a reboot the clock begins anew.
        assert_eq!(session.pause_ms(40_000), 0);
    }

    #[test]
    fn what_has_no_room_is_not_written() {
        let home = tempfile::tempdir().unwrap();
        let mut locked = open(home.path());
        let long = usize::try_from(MAX_BYTES).unwrap();
        let e = locked.add(Entry::Prompt { id: "p".repeat(long) }).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::FileTooLarge);
        locked.add(Entry::Prompt { id: "p".into() }).unwrap();
        assert_eq!(load(home.path(), &id()).unwrap().unwrap().prompts, ["p"]);
    }

    #[test]
    fn a_record_without_end_is_refused() {
        let home = tempfile::tempdir().unwrap();
        drop(open(home.path()));
        let path = home.path().join(SESSIONS).join("s-1");
        std::fs::write(&path, vec![b'\n'; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        assert!(load(home.path(), &id()).is_err());
        assert!(Locked::open(home.path(), &id(), LONG).unwrap_err().to_string().contains("larger than"));
    }
}
