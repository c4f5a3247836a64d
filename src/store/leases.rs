//! The project's log of leases, `project/events.jsonl` beside the run folders: one for all runs and terminals of a project,
//! so that a resource has one holder in all of them. What is decided is `logic::leases`'s business.
//!
//! A lease ends with the process that holds it. Nobody has to write that down at that moment: whoever wants the resource
//! next sees it, takes the dead holder's lease away and its own in the same write. Who waits watches the processes that are
//! in its way, so that it goes on the moment one of them dies.
//!
//! Its lock is taken before a run's, never the other way round. Its index, `state.idx`, is a cache like a run's.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::sum::sum;
use crate::logic::leases::{Claimant, InTheWay, Leases, Now, Taken, Want, Which};
use crate::model::event::{Body, Draft, Event, Opened, Release, SCHEMA};
use crate::model::resource::{self, Resource, Written};
use crate::store::log::{self, Damage, Fold, Log, LogError, Tx};
use crate::store::run::{self, BELLS, RunError, WORKER_LOCK};
use crate::sys::bell::{self, Bell};
use crate::sys::clock;
use crate::sys::dir::Dir;
use crate::sys::process;

/// The name of the folder, beside the run folders. No run has it.
pub const FOLDER: &str = "project";

/// The index's name.
const INDEX: &str = "state.idx";

/// What an index of this format says first.
const FORMAT: &str = "cpw.leases.1";

/// A tail of the log longer than this is worth a new index, in bytes.
const WORTH: u64 = 16 * 1024;

/// The largest index that is read, in bytes.
const MAX_INDEX: u64 = 16 * 1024 * 1024;

/// The most processes that one waiter watches.
const MAX_WATCHED: usize = 128;

/// The longest time without a look, should every wake-up be lost.
const SAFETY: Duration = Duration::from_mins(1);

/// The longest time without a look where a death cannot be waited for.
const BLIND: Duration = Duration::from_millis(250);

/// How many links a path may lead over; the kernel's own limit.
const MAX_LINKS: usize = 40;

/// Why there is no lease to be had, whoever holds what.
#[derive(Debug)]
pub enum DeskError {
    /// The folder.
    Folder(RunError),
    /// The log in it.
    Log(PathBuf, LogError),
}

impl fmt::Display for DeskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeskError::Folder(e) => e.fmt(f),
            DeskError::Log(path, LogError::Damaged(why)) => write!(
                f,
                "the project's log of leases is damaged: {why}; nobody gets a lease until {} is moved away, which is safe \
                 once no task of this project runs",
                path.display()
            ),
            DeskError::Log(path, e) => write!(f, "{}: {e}", path.display()),
        }
    }
}

// Its text names the cause already; a chain would say it twice.
impl std::error::Error for DeskError {}

impl Fold for Leases {
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

/// The index: the fold, and the place in the log up to which it holds.
#[derive(Serialize, Deserialize)]
struct Index {
    format: String,
    cpw: String,
    boot: String,
    dev: u64,
    ino: u64,
    offset: u64,
    tail: u64,
    leases: Leases,
}

impl Index {
    fn read(dir: &Dir, log: &Log) -> Option<Index> {
        let bytes = dir.read_bounded(INDEX, MAX_INDEX).ok()?;
        let (own, body) = bytes.split_first_chunk::<8>()?;
        if u64::from_le_bytes(*own) != sum(body) {
            return None;
        }
        let index: Index = serde_json::from_slice(body).ok()?;
        let id = log.id();
        let fits = index.format == FORMAT
            && index.cpw == env!("CARGO_PKG_VERSION")
            && (index.dev, index.ino) == (id.dev, id.ino);
        fits.then_some(index)
    }

    fn save(dir: &Dir, log: &Log, leases: &Leases) -> io::Result<()> {
        let index = Index {
            format: FORMAT.into(),
            cpw: env!("CARGO_PKG_VERSION").into(),
            boot: clock::boot_id().into(),
            dev: log.id().dev,
            ino: log.id().ino,
            offset: log.offset(),
            tail: log.tail_sum(log.offset())?,
            leases: leases.clone(),
        };
        let body = serde_json::to_vec(&index)?;
        let mut bytes = sum(&body).to_le_bytes().to_vec();
        bytes.extend_from_slice(&body);
        dir.write_atomic(INDEX, &bytes, 0o600, false)
    }
}

/// What came of waiting for a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Came {
    /// It is held, by this token.
    Granted(u64),
    /// It was not to be had in time: who is in the way.
    TimedOut(String),
    /// One of the given descriptors was ready.
    Woken,
    /// It would be waited for for ever, and why.
    Circle(String),
    /// So many hold, or wait for, something that no more are let in.
    Full,
}

/// Says, under the lock, why somebody who would have to wait must not: the circle that only others can see.
pub type Veto = Box<dyn Fn(&Leases, &Want) -> Option<String>>;

/// Where leases are asked for and given back.
pub struct Desk {
    dir: Dir,
    log: Log,
    leases: Leases,
    /// Up to where the log was in the index that was read or written last.
    indexed: u64,
    /// How long a lock is waited for.
    patience: Duration,
    veto: Option<Veto>,
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("dir", &self.dir).field("leases", &self.leases).finish_non_exhaustive()
    }
}

impl Desk {
    /// Opens the log of a project whose runs are in `runs`, and makes it if there is none.
    pub fn open(project: &Path, runs: &Path) -> Result<Desk, DeskError> {
        if let Some(desk) = Desk::existing(runs)? {
            return Ok(desk);
        }
        let all = run::make_runs_folder(project, runs).map_err(DeskError::Folder)?;
        let make = || -> io::Result<Dir> {
            let dir = all.create_sub(FOLDER, 0o700)?;
            dir.create_sub(BELLS, 0o700)?;
            match dir.create_new(log::NAME, 0o600) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
                _ => Ok(dir),
            }
        };
        let path = runs.join(FOLDER);
        let dir = make().map_err(|source| DeskError::Folder(RunError::Io { path: path.clone(), source }))?;
        let gone = || RunError::Io { path, source: io::ErrorKind::NotFound.into() };
        Desk::of(dir)?.ok_or_else(|| DeskError::Folder(gone()))
    }

    /// Opens the log of a project whose runs are in `runs`, if anybody has ever had a lease there. Makes nothing.
    pub fn existing(runs: &Path) -> Result<Option<Desk>, DeskError> {
        match run::open_runs(runs).and_then(|runs| runs.sub(FOLDER)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => {
                Desk::of(opened.map_err(|source| DeskError::Folder(RunError::Io { path: runs.join(FOLDER), source }))?)
            }
        }
    }

    fn of(dir: Dir) -> Result<Option<Desk>, DeskError> {
        let at_folder = |source| DeskError::Folder(RunError::Io { path: dir.path().to_owned(), source });
        dir.check_private().map_err(at_folder)?;
        // What git checks out can be read by others; what cpw has made never was.
        if dir.owner().map_err(at_folder)?.1 & 0o077 != 0 {
            let what = "your cpw has not made it: it came with the project; move it away to have leases here";
            return Err(at_folder(io::Error::new(io::ErrorKind::PermissionDenied, what)));
        }
        let log = match Log::open(&dir) {
            Err(LogError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(|e| DeskError::Log(dir.path().to_owned(), e))?,
        };
        let mut desk = Desk { dir, log, leases: Leases::default(), indexed: 0, patience: WORKER_LOCK, veto: None };
        desk.begin()?;
        Ok(Some(desk))
    }

    /// As a hook has it: a lock is waited for no longer than `patience`.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Desk {
        self.patience = patience;
        self
    }

    /// From now on `veto` is asked before somebody waits in line.
    #[must_use]
    pub fn with_veto(mut self, veto: Veto) -> Desk {
        self.veto = Some(veto);
        self
    }

    /// Which log it is: a token says nothing in another one.
    pub fn id(&self) -> u64 {
        self.log.id().ino
    }

    /// What is held and waited for, as of the last look.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    fn told(&self, e: LogError) -> DeskError {
        DeskError::Log(self.dir.path().to_owned(), e)
    }

    fn begin(&mut self) -> Result<(), DeskError> {
        if let Some(index) = Index::read(&self.dir, &self.log) {
            if self.log.resume_at(index.offset, index.tail) {
                (self.leases, self.indexed) = (index.leases, index.offset);
            } else if index.boot == clock::boot_id() {
                // A power cut may take the end of a log; on the same boot somebody did, and tokens would begin again.
                let why =
                    format!("events.jsonl is not what it was before byte {}: it was cut or rewritten", index.offset);
                return Err(self.told(LogError::Damaged(Damage::of_file(why))));
            }
        }
        self.refresh()
    }

    /// Looks what is new.
    pub fn refresh(&mut self) -> Result<(), DeskError> {
        if self.log.is_ahead() {
            let log = Log::open(&self.dir).map_err(|e| self.told(e))?;
            (self.log, self.leases, self.indexed) = (log, Leases::default(), 0);
        }
        self.log.read(&mut self.leases).map_err(|e| DeskError::Log(self.dir.path().to_owned(), e))
    }

    /// One transaction, before which what is over by now is taken away. Who waits is woken where it has to look again.
    fn transact<T>(
        &mut self,
        decide: impl FnOnce(&mut Tx<'_, Leases>, Now<'_>) -> Result<T, LogError>,
    ) -> Result<T, DeskError> {
        if self.log.is_ahead() {
            self.refresh()?;
        }
        let mut rings = false;
        let result = self.log.transact(&mut self.leases, self.patience, false, |tx| {
            if tx.fold.schema == 0 {
                if tx.fold.seq > 0 {
                    return Err(LogError::Damaged(Damage::of_file("events.jsonl does not begin with opened")));
                }
                tx.emit(Draft::run(Body::Opened(Opened { v: SCHEMA, cpw: env!("CARGO_PKG_VERSION").into() })))?;
            }
            let now = Now { mono_ms: clock::mono_ms(), alive: &process::alive };
            for over in tx.fold.over(now) {
                tx.emit(Draft::run(Body::Expired(over)))?;
            }
            let decided = decide(tx, now)?;
            debug_assert_eq!(tx.fold.broken(), None);
            rings = tx.events().iter().any(|event| tx.fold.wakes(&event.body));
            Ok(decided)
        });
        if rings {
            self.ring();
        }
        if result.is_ok() && self.log.offset() - self.indexed > WORTH {
            // Only a cache: without it the next one takes longer.
            drop(Index::save(&self.dir, &self.log, &self.leases));
            self.indexed = self.log.offset();
        }
        result.map_err(|e| self.told(e))
    }

    fn ring(&self) {
        let Ok(bells) = self.dir.sub(BELLS) else { return };
        for name in bells.names_at_most(bell::MOST).unwrap_or_default() {
            if bell::parts(&name).is_some() {
                // Who cannot be rung looks by itself, later.
                drop(bell::ring(&bells, &name));
            }
        }
    }

    /// Takes what is wanted if it is to be had now; with `queue`, waits in line for it otherwise. Who waits calls it again,
    /// with its place as `want.request`, and in the end either holds it or calls [`Desk::withdraw`].
    pub fn try_take(&mut self, want: &Want, queue: bool) -> Result<Taken, DeskError> {
        let veto = self.veto.take();
        let taken = self.transact(|tx, now| {
            let (body, taken) = tx.fold.take(want, now, queue);
            if let (Some(Body::Queued(_)), Some(said)) = (&body, veto.as_ref().and_then(|veto| veto(tx.fold, want))) {
                return Ok(Taken::Circle(said));
            }
            body.map(|body| tx.emit(Draft::run(body))).transpose()?;
            Ok(taken)
        });
        self.veto = veto;
        taken
    }

    /// Does something while nothing is taken or given back. A run's lock may be taken meanwhile.
    pub fn under_lock<T>(&mut self, act: impl FnOnce(&Leases) -> T) -> Result<T, DeskError> {
        self.transact(|tx, _| Ok(act(tx.fold)))
    }

    /// No longer waits in line.
    pub fn withdraw(&mut self, request: u64, reason: &str) -> Result<(), DeskError> {
        self.transact(|tx, _| {
            if tx.fold.queue.iter().any(|r| r.id == request) {
                let release = Release { token: request, reason: reason.into(), refused: false };
                tx.emit(Draft::run(Body::Release(release)))?;
            }
            Ok(())
        })
    }

    /// Gives back what is held by these tokens, as far as it still is. By whoever took it.
    pub fn give_back(&mut self, tokens: &[u64], reason: &str) -> Result<(), DeskError> {
        self.transact(|tx, _| {
            for &token in tokens {
                if tx.fold.held.iter().any(|l| l.token == token) {
                    let release = Release { token, reason: reason.into(), refused: false };
                    tx.emit(Draft::run(Body::Release(release)))?;
                }
            }
            Ok(())
        })
    }

    /// Gives back on behalf of `claimant`. The inner error says why that was refused; it is in the log then.
    pub fn release(&mut self, which: &Which, claimant: &Claimant) -> Result<Result<u64, String>, DeskError> {
        self.transact(|tx, _| {
            let (body, said) = tx.fold.release(which, claimant);
            tx.emit(Draft::run(body))?;
            Ok(said)
        })
    }

    /// Holds it for `ttl_ms` from now. As [`Desk::release`].
    pub fn renew(&mut self, which: &Which, claimant: &Claimant, ttl_ms: u64) -> Result<Result<u64, String>, DeskError> {
        self.transact(|tx, now| {
            let (body, said) = tx.fold.renew(which, claimant, ttl_ms, now);
            tx.emit(Draft::run(body))?;
            Ok(said)
        })
    }

    /// A bell that rings when somebody gives something back.
    pub fn bell(&self) -> io::Result<Bell> {
        Bell::hang(&self.dir.sub(BELLS)?, "lease", || self.dir.open_read(log::NAME))
    }

    /// Whether trying again could change anything, as of the last look.
    pub fn is_worth_a_try(&self, want: &Want) -> bool {
        let in_the_way = self.leases.in_the_way(want);
        let now = clock::mono_ms();
        let is_late = Leases::next_end(&in_the_way).is_some_and(|end| end <= now);
        let mut processes = processes(&in_the_way).peekable();
        is_late || processes.peek().is_none() || processes.any(|p| !process::alive(p)) || !self.waits(want)
    }

    fn waits(&self, want: &Want) -> bool {
        self.leases.queue.iter().any(|r| Some(r.id) == want.request)
    }

    /// Waits until something has happened that may help `want`, as of the last look, or one of `fds` can be read, at most
    /// `limit`. Returns for each of `fds` whether it is ready.
    pub fn wait(&self, bell: &Bell, want: &Want, fds: &[BorrowedFd<'_>], limit: Duration) -> io::Result<Vec<bool>> {
        let in_the_way = self.leases.in_the_way(want);
        let mut limit = limit.min(SAFETY);
        if let Some(end) = Leases::next_end(&in_the_way) {
            limit = limit.min(Duration::from_millis(end.saturating_sub(clock::mono_ms())));
        }
        let mut watched: Vec<OwnedFd> = Vec::new();
        for (i, process) in processes(&in_the_way).enumerate() {
            if i >= MAX_WATCHED {
                limit = limit.min(BLIND);
                break;
            }
            // The order matters: the descriptor is bound to whoever has the pid now, then we check that it is the one.
            let fd = process::pidfd(process.pid);
            if !process::alive(process) {
                return Ok(vec![false; fds.len()]);
            }
            match fd {
                Ok(fd) => watched.push(fd),
                Err(_) => limit = limit.min(BLIND),
            }
        }
        let mut all = fds.to_vec();
        all.extend(watched.iter().map(AsFd::as_fd));
        let mut ready = bell::wait(&[bell], &all, limit)?;
        ready.truncate(fds.len());
        Ok(ready)
    }

    /// Takes what is wanted, waiting for it in line for at most `limit` (for ever where absent), or until one of `fds` can be
    /// read. `each` is told who is in the way, before every wait.
    pub fn take(
        &mut self,
        want: &mut Want,
        limit: Option<Duration>,
        fds: &[BorrowedFd<'_>],
        mut each: impl FnMut(&InTheWay<'_>),
    ) -> Result<Came, DeskError> {
        let begun = clock::mono_ms();
        let limit = limit.map(|limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        want.until = limit.map(|limit| begun.saturating_add(limit));
        let came = self.take_until(want, fds, &mut each);
        if let Some(request) = want.request.take()
            && !matches!(came, Ok(Came::Granted(_)))
        {
            // Should that fail, others see that nobody waits any longer: by its time, or by the end of this process.
            drop(self.withdraw(request, "no longer waited for"));
        }
        came
    }

    fn take_until(
        &mut self,
        want: &mut Want,
        fds: &[BorrowedFd<'_>],
        each: &mut impl FnMut(&InTheWay<'_>),
    ) -> Result<Came, DeskError> {
        let left = |want: &Want| want.until.map(|until| Duration::from_millis(until.saturating_sub(clock::mono_ms())));
        let mut bell = None;
        loop {
            match self.try_take(want, left(want).is_none_or(|left| !left.is_zero())) {
                Ok(Taken::Granted(token)) => return Ok(Came::Granted(token)),
                Ok(Taken::Held(by)) => return Ok(Came::TimedOut(by)),
                Ok(Taken::Circle(said)) => return Ok(Came::Circle(said)),
                Ok(Taken::Full) => return Ok(Came::Full),
                Ok(Taken::Queued(request)) => want.request = Some(request),
                // Somebody is slow: it is as if this one were still waiting.
                Err(DeskError::Log(_, LogError::Busy)) if left(want).is_none_or(|left| !left.is_zero()) => continue,
                Err(e) => return Err(e),
            }
            if bell.is_none() {
                let hung =
                    self.bell().map_err(|source| self.told(LogError::Io { doing: "hang a bell for", source }))?;
                bell = Some(hung);
            }
            let Some(bell) = &bell else { continue };
            loop {
                bell.drain();
                self.refresh()?;
                if self.is_worth_a_try(want) {
                    break;
                }
                let in_the_way = self.leases.in_the_way(want);
                let left = left(want);
                if left.is_some_and(|left| left.is_zero()) {
                    return Ok(Came::TimedOut(in_the_way.describe(clock::mono_ms())));
                }
                each(&in_the_way);
                let ready = self
                    .wait(bell, want, fds, left.unwrap_or(SAFETY))
                    .map_err(|source| self.told(LogError::Io { doing: "wait for", source }))?;
                if ready.contains(&true) {
                    return Ok(Came::Woken);
                }
            }
        }
    }
}

fn processes<'a>(in_the_way: &InTheWay<'a>) -> impl Iterator<Item = &'a crate::model::event::Process> {
    let leases = in_the_way.leases.clone().into_iter().map(|l| &l.holder.process);
    leases.chain(in_the_way.requests.clone().into_iter().map(|r| &r.holder.process))
}

/// The resource that is meant by `text`, as it is written in the folder `cwd` of a project. What cannot be one is an error
/// for people, which names it.
pub fn resolve(text: &str, cwd: &Path, project: &Path) -> Result<Resource, String> {
    let read = match resource::read(text) {
        Ok(Written::Name(name)) => return Ok(name),
        Ok(Written::File(path)) => real(&cwd.join(path)).and_then(|path| Ok((path, real(project)?))),
        Err(e) => return Err(format!("'{}' {e}", crate::base::text::one_line(text, 80))),
    };
    let (path, project) = read.map_err(|e| format!("'{}': {e}", crate::base::text::one_line(text, 80)))?;
    Resource::file(&path, &project).map_err(|e| format!("'{}' {e}", crate::base::text::one_line(text, 80)))
}

/// Where an absolute path leads, whether anything is there or not: links are followed as far as there are any, and `..` is
/// what is above the folder that was reached.
pub fn real(path: &Path) -> io::Result<PathBuf> {
    let parts = |path: &Path| path.components().rev().map(|c| c.as_os_str().to_owned()).collect::<Vec<_>>();
    let mut done = PathBuf::from("/");
    let mut rest = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => drop(done.pop()),
            Some(Component::Normal(name)) => {
                let next = done.join(name);
                // Where nothing is, or nothing may be looked at, there is no link either.
                let Ok(target) = std::fs::read_link(&next) else {
                    done = next;
                    continue;
                };
                links += 1;
                if links > MAX_LINKS {
                    return Err(io::Error::other("too many symbolic links lead on from it"));
                }
                if target.is_absolute() {
                    done = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
            _ => {}
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::Holder;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn desk(temp: &Path) -> Desk {
        Desk::open(temp, &run::runs_path(temp)).unwrap()
    }

    fn want(names: &[&str]) -> Want {
        let meant = |name: &&str| resolve(name, Path::new("/"), Path::new("/p")).unwrap();
        Want {
            resources: resource::together(names.iter().map(meant).collect()),
            holder: Holder {
                process: process::me(),
                run: None,
                task: None,
                attempt: None,
                worker: None,
                session: None,
                tool_use_id: None,
                label: Some("a test".into()),
            },
            waiter: None,
            holding: Vec::new(),
            ttl_ms: None,
            until: None,
            request: None,
        }
    }

    #[test]
    fn a_path_leads_where_its_links_lead_also_where_nothing_is_yet() {
        let temp = tempfile::tempdir().unwrap();
        let top = temp.path().canonicalize().unwrap();
        std::fs::create_dir_all(top.join("p/src/deep")).unwrap();
        std::fs::create_dir(top.join("other")).unwrap();
        for (to, link) in
            [("src/deep", "p/link"), ("src/new", "p/dangling"), ("loop", "p/loop"), ("../other", "p/out"), ("p", "q")]
        {
            symlink(to, top.join(link)).unwrap();
        }
        let of = |text: &str| resolve(text, &top.join("p"), &top.join("p")).map(|r| r.as_str().to_owned());
        for (text, normal) in [
            ("./x", "file:x"),
            ("file:x", "file:x"),
            ("a/../a/x", "file:a/x"),
            ("link/x", "file:src/deep/x"),
            // Above the folder that the link leads to, as the kernel has it.
            ("link/../y", "file:src/y"),
            ("./dangling", "file:src/new"),
            ("src/", "file:src"),
            ("./", "file:."),
        ] {
            assert_eq!(of(text).as_deref(), Ok(normal), "{text}");
        }
        // The same project by another path, and what is outside of it.
        let by_link = resolve("../q/src/x", &top.join("q"), &top.join("q"));
        assert_eq!(by_link.unwrap().as_str(), "file:src/x");
        assert_eq!(of("./out/x").unwrap(), format!("file:{}/other/x", top.display()));
        assert!(of("./loop").unwrap_err().contains("too many symbolic links"));
        assert!(of("../").unwrap_err().contains("the project itself is in"));
        assert!(of("a b").unwrap_err().starts_with("'a b' is no name"));
    }

    #[test]
    fn a_desk_is_made_on_first_use_and_private() {
        let temp = tempfile::tempdir().unwrap();
        let runs = run::runs_path(temp.path());
        assert!(Desk::existing(&runs).unwrap().is_none() && !runs.exists(), "looking makes nothing");
        let mut desk = desk(temp.path());
        assert_eq!(desk.leases(), &Leases::default());
        assert_eq!(desk.try_take(&want(&["db"]), false).unwrap(), Taken::Granted(2));
        let mode = |path: &str| runs.join(path).metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("project"), mode("project/bells"), mode("project/events.jsonl")), (0o700, 0o700, 0o600));
        assert_eq!(std::fs::read(runs.join(".gitignore")).unwrap(), b"*\n");
        assert!(run::list(temp.path()).unwrap().is_empty(), "it is no run");
        let first = std::fs::read_to_string(runs.join("project/events.jsonl")).unwrap();
        assert!(first.starts_with("{\"t\":\"opened\",\"seq\":1,"), "{first}");
        assert!(Desk::existing(&runs).unwrap().is_some_and(|d| d.leases().held.len() == 1));
    }

    #[test]
    fn the_index_changes_nothing_but_the_time() {
        let temp = tempfile::tempdir().unwrap();
        let path = run::runs_path(temp.path()).join(FOLDER);
        let mut one = desk(temp.path());
        while !path.join(INDEX).exists() {
            let Taken::Granted(token) = one.try_take(&want(&["db"]), false).unwrap() else { panic!("it is free") };
            one.give_back(&[token], "given back").unwrap();
        }
        one.try_take(&want(&["db", "gpu0"]), false).unwrap();
        let kept = one.leases().clone();
        let looked = || Desk::existing(&run::runs_path(temp.path())).map(|d| d.unwrap());
        assert_eq!(looked().unwrap().leases(), &kept);
        assert!(looked().unwrap().indexed > 0, "the index was not used");
        let index = std::fs::read(path.join(INDEX)).unwrap();
        for at in (0..index.len()).step_by(97) {
            let mut spoiled = index.clone();
            spoiled[at] ^= 1;
            std::fs::write(path.join(INDEX), &spoiled).unwrap();
            let desk = looked().unwrap();
            assert_eq!((desk.leases(), desk.indexed), (&kept, 0), "byte {at}");
        }
        // A log that was cut: its tokens would begin again.
        std::fs::write(path.join(INDEX), &index).unwrap();
        let log = std::fs::OpenOptions::new().write(true).open(path.join(log::NAME)).unwrap();
        log.set_len(0).unwrap();
        let said = looked().unwrap_err().to_string();
        assert!(said.contains("is damaged") && said.contains("cut or rewritten"), "{said}");
    }

    #[test]
    fn who_waits_is_woken_when_it_is_given_back_and_gives_up_in_time() {
        let temp = tempfile::tempdir().unwrap();
        let mut one = desk(temp.path());
        let Taken::Granted(token) = one.try_take(&want(&["db"]), false).unwrap() else { panic!("it is free") };
        let mut two = desk(temp.path());
        let came = two.take(&mut want(&["db"]), Some(Duration::ZERO), &[], |_| panic!("it does not wait")).unwrap();
        assert!(matches!(&came, Came::TimedOut(by) if by.starts_with("db is held by 'a test' ")), "{came:?}");
        let came = two.take(&mut want(&["db"]), Some(Duration::from_millis(30)), &[], |_| ()).unwrap();
        assert!(matches!(&came, Came::TimedOut(by) if by.starts_with("db is held by 'a test' ")), "{came:?}");
        assert_eq!(two.leases().queue, [], "it waits no longer");
        let (ended, other_end) = std::io::pipe().unwrap();
        drop(other_end);
        assert_eq!(two.take(&mut want(&["db"]), None, &[ended.as_fd()], |_| ()).unwrap(), Came::Woken);
        std::thread::scope(|scope| {
            let mut given = false;
            let (one, temp) = (&mut one, temp.path());
            let waiter = scope.spawn(move || desk(temp).take(&mut want(&["db"]), None, &[], |_| ()).unwrap());
            // It stands in line, and hears of it.
            while !waiter.is_finished() {
                one.refresh().unwrap();
                if !given && !one.leases().queue.is_empty() {
                    one.give_back(&[token], "given back").unwrap();
                    given = true;
                }
                std::thread::yield_now();
            }
            assert!(matches!(waiter.join().unwrap(), Came::Granted(next) if next > token));
        });
    }
}
