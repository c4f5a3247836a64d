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
use crate::store::log;
use crate::store::registry::LogId;
use crate::sys::dir::{Dir, FileId};
use crate::sys::lock;

/// The folder of the sessions' records, below the state directory.
pub const SESSIONS: &str = "sessions";

/// The largest record that is read. A session that reaches it starts nothing new.
const MAX_BYTES: u64 = 1024 * 1024;

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

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Prompt { id } => self.prompts.push(id),
            Entry::Run { path, dev, ino, log, rule } => {
                self.runs.push(OwnRun { path, dev, ino, log, rule, closed: false });
            }
            Entry::Closed { run } => {
                for own in self.runs.iter_mut().filter(|r| r.id().as_ref() == Some(&run)) {
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
        let file = dir.open_append(id.as_str())?;
        if !lock::lock_exclusive(&file, budget)? {
            return Ok(None);
        }
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
        Ok(Some(Locked { session: Session::fold(&bytes), file }))
    }

    /// Adds an entry.
    pub fn add(&mut self, entry: Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        let before = self.file.metadata()?.len();
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
        let log = folder.stat(log::NAME)?.as_ref().map(LogId::of);
        self.add(Entry::Run { path, dev: id.dev, ino: id.ino, log, rule: rule.to_owned() })
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
        let odd = Entry::Run { path: "/p/\"\\/r4".into(), dev: 1, ino: 2, log: None, rule: "r".into() };
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
    fn a_record_without_end_is_refused() {
        let home = tempfile::tempdir().unwrap();
        drop(open(home.path()));
        let path = home.path().join(SESSIONS).join("s-1");
        std::fs::write(&path, vec![b'\n'; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        assert!(load(home.path(), &id()).is_err());
        assert!(Locked::open(home.path(), &id(), LONG).unwrap_err().to_string().contains("larger than"));
    }
}
