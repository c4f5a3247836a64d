//! Starting processes: detached workers, and tasks that die with their worker.
//!
//! Both get a session of their own, no descriptor but the three standard ones, default signals and an empty mask. The
//! standard library's `Command` closes nothing and cannot start a process that is not its child, hence own code.
//! Between fork and exec only async-signal-safe calls are made, on memory that was prepared before.

#![expect(unsafe_code, reason = "fork, exec and what happens between them")]

use std::ffi::{CString, OsStr, OsString, c_char};
use std::fmt;
use std::fs::File;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};

use super::process::{Stat, pidfd};
use super::{lock, signals, stamp};
use crate::base::env;
use crate::model::event::Process;

/// What kind of mistake kept a program from starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpawnErrorKind {
    /// There is no such program.
    NotFound,
    /// It is there but may not be executed.
    NotExecutable,
    /// It is neither a binary of this machine nor a script with `#!`.
    BadFormat,
    /// Arguments and environment are longer than the system takes.
    TooBig,
    /// The folder to start it in cannot be entered.
    BadCwd,
    /// An argument, variable or path holds a NUL byte.
    BadText,
    /// The system refused for another reason, such as too many processes.
    System,
}

/// Why a program was not started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnError {
    /// Which kind of mistake.
    pub kind: SpawnErrorKind,
    /// Names the program, the reason and what to do.
    pub reason: String,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for SpawnError {}

impl From<SpawnError> for io::Error {
    fn from(e: SpawnError) -> Self {
        let kind = match e.kind {
            SpawnErrorKind::NotFound => io::ErrorKind::NotFound,
            SpawnErrorKind::NotExecutable => io::ErrorKind::PermissionDenied,
            SpawnErrorKind::TooBig => io::ErrorKind::ArgumentListTooLong,
            SpawnErrorKind::BadText | SpawnErrorKind::BadFormat => io::ErrorKind::InvalidInput,
            SpawnErrorKind::BadCwd => io::ErrorKind::NotADirectory,
            SpawnErrorKind::System => io::ErrorKind::Other,
        };
        io::Error::new(kind, e)
    }
}

/// How a detached process's environment differs from ours.
#[derive(Debug, Clone, Default)]
pub struct EnvChange {
    /// Variables to add or replace.
    pub set: Vec<(OsString, OsString)>,
    /// Variables to leave out.
    pub remove: Vec<OsString>,
}

impl EnvChange {
    /// The marks of an attempt never go on, else the worker would count as part of the task that happened to start it; and it
    /// has a mark of its own, since it may be below that task's worker.
    fn apply(self) -> Vec<(OsString, OsString)> {
        let marks = [env::RUN, env::TASK, env::ATTEMPT, env::SLOT];
        let gone = |name: &OsString| {
            marks.iter().any(|m| name == m) || self.remove.contains(name) || self.set.iter().any(|(set, _)| set == name)
        };
        let kept = std::env::vars_os().filter(|(name, _)| !gone(name));
        kept.chain(self.set.iter().cloned()).chain([(env::SLOT.into(), "1".into())]).collect()
    }
}

/// Lock files that a detached process holds from its first moment on.
#[derive(Debug)]
pub struct Locks {
    /// Its life.
    pub live: File,
    /// Its seat, where it needs one.
    pub seat: Option<File>,
}

impl From<File> for Locks {
    fn from(live: File) -> Locks {
        Locks { live, seat: None }
    }
}

/// Starts `exe` with `args` as a process that lives on when we and our parent end: own session, stdin is the life lock,
/// stdout the seat or `/dev/null`, stderr `/dev/null`. They are files that we hold the locks of; from here on the new process
/// holds them, without a moment in between (the child side is [`adopt_live_lock`] and [`adopt_seat`]). Returns its pid.
///
/// It is not our child (a second fork), so nobody has to wait for it; a subreaper above us, or we if we are one, gets it
/// when it ends.
pub fn spawn_detached(
    exe: &Path,
    args: &[OsString],
    env: EnvChange,
    cwd: &Path,
    locks: impl Into<Locks>,
) -> Result<i32, SpawnError> {
    let Locks { live, seat } = locks.into();
    let whole: Vec<OsString> = std::iter::once(exe.as_os_str().to_owned()).chain(args.iter().cloned()).collect();
    let null = dev_null(exe)?;
    let image = Image::new(exe, &whole, &env.apply(), cwd)?;
    let live = above_standard(live.into()).map_err(|e| system(exe, &e))?;
    let seat = seat.map(|seat| above_standard(seat.into())).transpose().map_err(|e| system(exe, &e))?;
    let stdout = seat.as_ref().map_or(null.as_fd(), AsFd::as_fd);
    let (first, report) = start(exe, &image, [live.as_fd(), stdout, null.as_fd()], Role::Detached, None)?;
    // The intermediate process has nothing left to do; ECHILD: somebody else waited for it.
    while waitpid(first, None) == Err(Errno::EINTR) {}
    if let Some((step, errno)) = report.failure {
        return Err(image.explain(exe, cwd, step, errno));
    }
    report.pid.ok_or_else(|| system(exe, &io::Error::other("it was killed while it started")))
}

/// In a process started by [`spawn_detached`]: takes the lock file off stdin, puts `/dev/null` there, and makes sure that
/// the lock is held. Fails if stdin is anything else, so that nobody starts a worker by hand without its lock.
pub fn adopt_live_lock() -> io::Result<File> {
    let stdin = io::stdin();
    let stat = nix::sys::stat::fstat(stdin.as_fd())?;
    let is_file = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    if !is_file || stat.st_uid != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "stdin is not the lock file of a worker"));
    }
    let file = File::from(stdin.as_fd().try_clone_to_owned()?);
    // No change if our description holds it already, which is the point; else it must be free.
    if !lock::try_exclusive(&file)? {
        return Err(io::Error::new(io::ErrorKind::WouldBlock, "another worker holds the lock file on stdin"));
    }
    nix::unistd::dup2_stdin(File::open("/dev/null")?)?;
    Ok(file)
}

/// In a process started by [`spawn_detached`]: takes the seat off stdout, if there is one, and puts `/dev/null` there.
pub fn adopt_seat() -> io::Result<Option<File>> {
    let stdout = io::stdout();
    if nix::sys::stat::fstat(stdout.as_fd())?.st_mode & libc::S_IFMT != libc::S_IFREG {
        return Ok(None);
    }
    let seat = File::from(stdout.as_fd().try_clone_to_owned()?);
    nix::unistd::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    Ok(Some(seat))
}

/// What to start as a task.
#[derive(Debug)]
pub struct TaskSpawn<'a> {
    /// The program's path, see [`resolve_program`].
    pub program: &'a Path,
    /// All arguments, the first (its own name) included.
    pub argv: &'a [OsString],
    /// The complete environment.
    pub env: &'a [(OsString, OsString)],
    /// Where it runs.
    pub cwd: &'a Path,
    /// Its stdin; `/dev/null` where absent.
    pub stdin: Option<File>,
    /// Its stdout.
    pub stdout: File,
    /// Its stderr.
    pub stderr: File,
}

/// A running task: a child of ours that leads its own session and process group.
#[derive(Debug)]
pub struct Task {
    process: Process,
    pidfd: Option<OwnedFd>,
    exit: Option<Exit>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// Starts a task: own session and group, killed by the kernel when the calling thread ends, and stamped with the marks in
/// its environment (Linux).
pub fn spawn_task(task: TaskSpawn<'_>) -> Result<Task, SpawnError> {
    let TaskSpawn { program, argv, env, cwd, stdin, stdout, stderr } = task;
    let image = Image::new(program, argv, env, cwd)?;
    let raised = |file: File| above_standard(file.into()).map_err(|e| system(program, &e));
    let stdin = stdin.map_or_else(|| dev_null(program), &raised)?;
    let (stdout, stderr) = (raised(stdout)?, raised(stderr)?);
    signals::keep_exit_codes().map_err(|e| system(program, &e))?;
    let standard = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let (pid, report) = start(program, &image, standard, Role::Task, stamp_of(env))?;
    if let Some((step, errno)) = report.failure {
        while waitpid(pid, None) == Err(Errno::EINTR) {}
        return Err(image.explain(program, cwd, step, errno));
    }
    let pid = pid.as_raw();
    // We have not waited for it, so the number is still its own, even if it has ended already.
    let process = Stat::of(pid)
        .map_or(Process { pid, start_time: 0, boot_id: super::clock::boot_id().to_owned() }, |s| s.process());
    Ok(Task { process, pidfd: pidfd(pid).ok(), exit: None })
}

/// The stamp for a task with this environment; none where it has not all marks of an attempt.
fn stamp_of(variables: &[(OsString, OsString)]) -> Option<u64> {
    let entry = |name: &str| {
        let (key, value) = variables.iter().find(|(key, _)| key == name)?;
        Some([key.as_bytes(), b"=", value.as_bytes()].concat())
    };
    let mark: Vec<Vec<u8>> = [env::RUN, env::TASK, env::ATTEMPT].into_iter().map(entry).collect::<Option<_>>()?;
    Some(stamp::of(mark.iter().map(Vec::as_slice)))
}

/// Whether this process belongs to another attempt than the one that its variables say: a stamp is inherited, and variables
/// can be set by anybody.
pub fn is_of_another(run: &str, task: &str, attempt: u32) -> bool {
    let said = [(env::RUN, run), (env::TASK, task), (env::ATTEMPT, &attempt.to_string())];
    let said = said.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    stamp::of_this().is_some_and(|own| stamp_of(&said) != Some(own))
}

impl Task {
    /// Process id; also the number of its group and session.
    pub fn pid(&self) -> i32 {
        self.process.pid
    }

    /// Its identity.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Readable when it has ended; `None` where the system has no pidfds: then look every now and then.
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// How it ended; `None`: it has not. Says the same again when asked again.
    pub fn try_wait(&mut self) -> io::Result<Option<Exit>> {
        if self.exit.is_none() {
            self.exit = match waitpid(Pid::from_raw(self.process.pid), Some(WaitPidFlag::WNOHANG)) {
                Ok(status) => exit_of(status),
                Err(Errno::EINTR) => None,
                Err(e) => return Err(e.into()),
            };
        }
        Ok(self.exit)
    }
}

fn exit_of(status: WaitStatus) -> Option<Exit> {
    match status {
        WaitStatus::Exited(_, code) => Some(Exit::Code(code)),
        WaitStatus::Signaled(_, signal, _) => Some(Exit::Signal(signal as i32)),
        _ => None,
    }
}

/// From now on orphans below this process become its children, so that none escapes by a double fork. Elsewhere than on
/// Linux nothing happens.
pub fn become_subreaper() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_child_subreaper(true)?;
    Ok(())
}

/// Waits for children that have ended, other than those in `except` (tasks, whose [`Task::try_wait`] wants the code).
/// Returns the pids of those it reaped. To be called in a subreaper's loop.
pub fn reap_adopted(except: &[i32]) -> Vec<i32> {
    if !any_child_ended() {
        return Vec::new();
    }
    children()
        .into_iter()
        .filter(|pid| !except.contains(pid))
        .filter(|pid| {
            waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| exit_of(status).is_some())
        })
        .collect()
}

/// Whether a process below this one, which is a subreaper, is left, other than the children in `except` and what is below
/// them. Whoever loses its parent comes to us, so that without children there is nobody. The kernel's list of children is
/// whole here: only we wait for them, so that none leaves it while it is read. `None` where there is no such list.
#[cfg(target_os = "linux")]
pub fn has_descendants(except: &[i32]) -> Option<bool> {
    reap_adopted(except);
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    if nix::sys::wait::waitid(nix::sys::wait::Id::All, flags) == Err(Errno::ECHILD) {
        return Some(false);
    }
    Some(listed_children()?.iter().any(|pid| !except.contains(pid)))
}

/// See above: nobody comes back to us here.
#[cfg(not(target_os = "linux"))]
pub fn has_descendants(_except: &[i32]) -> Option<bool> {
    None
}

/// One cheap call for the usual case that there is nothing to reap.
#[cfg(target_os = "linux")]
fn any_child_ended() -> bool {
    use nix::sys::wait::{Id, waitid};
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags).is_ok_and(|status| status != WaitStatus::StillAlive)
}

#[cfg(not(target_os = "linux"))]
fn any_child_ended() -> bool {
    true
}

/// The children of this process: from the kernel's list, or where that is not built in, by looking at everybody.
fn children() -> Vec<i32> {
    listed_children().unwrap_or_else(|| {
        let me = getpid().as_raw();
        super::process::all_pids().into_iter().filter(|pid| Stat::of(*pid).is_some_and(|s| s.ppid == me)).collect()
    })
}

/// The kernel's list, of all threads; `None` where it is not built in.
fn listed_children() -> Option<Vec<i32>> {
    let threads = std::fs::read_dir("/proc/self/task").ok()?;
    let list = |thread: io::Result<std::fs::DirEntry>| std::fs::read_to_string(thread?.path().join("children"));
    let lists = threads.map(list).collect::<io::Result<Vec<String>>>().ok()?;
    Some(lists.iter().flat_map(|l| l.split_ascii_whitespace()).filter_map(|pid| pid.parse().ok()).collect())
}

/// Finds the program that `name` means. With a slash: relative to `cwd`. Without: the first executable on `path_var`, where
/// entries that are empty, relative or below `forbid_below` (the project) do not count, so that a project cannot put
/// itself in the place of a program. An empty `forbid_below` forbids nothing.
pub fn resolve_program(name: &OsStr, path_var: &OsStr, cwd: &Path, forbid_below: &Path) -> Result<PathBuf, SpawnError> {
    let shown = name.display();
    if name.is_empty() || name.as_bytes().contains(&0) {
        let reason = format!("program name \"{shown}\" is empty or holds a NUL byte; name a program");
        return Err(SpawnError { kind: SpawnErrorKind::BadText, reason });
    }
    if name.as_bytes().contains(&b'/') {
        return Ok(cwd.join(name));
    }
    let project = forbid_below.canonicalize().unwrap_or_else(|_| forbid_below.to_owned());
    let forbids = !forbid_below.as_os_str().is_empty();
    let mut inside = None;
    let mut not_executable = None;
    for dir in std::env::split_paths(path_var).filter(|dir| dir.is_absolute()) {
        let candidate = dir.join(name);
        let Ok(meta) = candidate.metadata() else { continue };
        if !meta.is_file() {
            continue;
        }
        let real = dir.canonicalize().unwrap_or_else(|_| dir.clone());
        if forbids && (dir.starts_with(forbid_below) || real.starts_with(&project)) {
            inside.get_or_insert(candidate);
        } else if meta.permissions().mode() & 0o111 == 0 {
            not_executable.get_or_insert(candidate);
        } else {
            return Ok(candidate);
        }
    }
    Err(match (not_executable, inside) {
        (Some(path), _) => SpawnError {
            kind: SpawnErrorKind::NotExecutable,
            reason: format!("{shown}: {} is not executable; run `chmod +x` on it", path.display()),
        },
        (None, Some(path)) => SpawnError {
            kind: SpawnErrorKind::NotFound,
            reason: format!(
                "{shown}: on PATH only as {}, which is inside the project and does not count; write its path with a slash",
                path.display()
            ),
        },
        (None, None) => SpawnError {
            kind: SpawnErrorKind::NotFound,
            reason: format!("{shown}: no such program on PATH; install it, or write its path with a slash"),
        },
    })
}

// What follows is the machinery of both.

fn system(program: &Path, e: &io::Error) -> SpawnError {
    SpawnError { kind: SpawnErrorKind::System, reason: format!("{}: not started: {e}", program.display()) }
}

fn dev_null(program: &Path) -> Result<OwnedFd, SpawnError> {
    let open = || above_standard(File::options().read(true).write(true).open("/dev/null")?.into());
    open().map_err(|e| system(program, &e))
}

/// A descriptor above the standard ones, so that putting it in their place cannot overwrite another one of ours.
fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 3 {
        return Ok(fd);
    }
    let raised = fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(10))?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raised) })
}

/// All that exec needs, as the kernel wants it.
struct Image {
    path: CString,
    cwd: CString,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    // What the pointers point into.
    _texts: Vec<CString>,
}

impl Image {
    fn new(path: &Path, argv: &[OsString], env: &[(OsString, OsString)], cwd: &Path) -> Result<Image, SpawnError> {
        let text = |bytes: Vec<u8>, what: &dyn fmt::Display| {
            CString::new(bytes).map_err(|_| SpawnError {
                kind: SpawnErrorKind::BadText,
                reason: format!("{}: {what} holds a NUL byte; take it out", path.display()),
            })
        };
        let mut texts = Vec::with_capacity(argv.len() + env.len());
        for (n, arg) in argv.iter().enumerate() {
            texts.push(text(arg.as_bytes().to_vec(), &format_args!("argument {n}"))?);
        }
        for (key, value) in env {
            let entry = [key.as_bytes(), b"=", value.as_bytes()].concat();
            texts.push(text(entry, &format_args!("variable {}", key.display()))?);
        }
        // The texts do not move when the vector does: they live on the heap.
        let pointers = |texts: &[CString]| texts.iter().map(|t| t.as_ptr()).chain([std::ptr::null()]).collect();
        let (arguments, variables) = texts.split_at(argv.len());
        Ok(Image {
            path: text(path.as_os_str().as_bytes().to_vec(), &"its path")?,
            cwd: text(cwd.as_os_str().as_bytes().to_vec(), &"the folder to start it in")?,
            argv: pointers(arguments),
            envp: pointers(variables),
            _texts: texts,
        })
    }

    fn explain(&self, program: &Path, cwd: &Path, step: Step, errno: Errno) -> SpawnError {
        let shown = program.display();
        let what = errno.desc();
        let (kind, reason) = match (step, errno) {
            (Step::Chdir, _) => (
                SpawnErrorKind::BadCwd,
                format!("{shown}: cannot start in {}: {what}; make the folder or change `cwd`", cwd.display()),
            ),
            (Step::Exec, Errno::ENOENT) if cwd.join(program).exists() => (
                SpawnErrorKind::NotFound,
                format!("{shown}: the interpreter or loader that it names does not exist; check its first line (`#!`)"),
            ),
            (Step::Exec, Errno::ENOENT | Errno::ENOTDIR) => {
                (SpawnErrorKind::NotFound, format!("{shown}: no such program; check the path"))
            }
            (Step::Exec, Errno::EACCES | Errno::EPERM) if cwd.join(program).is_dir() => {
                (SpawnErrorKind::NotExecutable, format!("{shown}: is a folder, not a program; check the path"))
            }
            (Step::Exec, Errno::EACCES | Errno::EPERM) => (
                SpawnErrorKind::NotExecutable,
                format!(
                    "{shown}: may not be executed: {what}; run `chmod +x` on it, or check how its file system is mounted"
                ),
            ),
            (Step::Exec, Errno::ENOEXEC) => (
                SpawnErrorKind::BadFormat,
                format!(
                    "{shown}: neither a program for this machine nor a script with `#!` in its first line; add one, e.g. `#!/bin/sh`"
                ),
            ),
            (Step::Exec, Errno::E2BIG) => (
                SpawnErrorKind::TooBig,
                format!(
                    "{shown}: {} arguments and {} variables are longer than the system takes; pass long text by file",
                    self.argv.len() - 1,
                    self.envp.len() - 1
                ),
            ),
            (Step::Fork, _) => (SpawnErrorKind::System, format!("{shown}: no new process: {what}; see `ulimit -u`")),
            (Step::Prepare | Step::Exec, _) => (SpawnErrorKind::System, format!("{shown}: not started: {what}")),
        };
        SpawnError { kind, reason }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Detached,
    Task,
}

/// Where a start failed; its number goes through the pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Fork = 1,
    Prepare = 2,
    Chdir = 3,
    Exec = 4,
}

/// The number that announces a pid instead of a failure.
const PID: i32 = 0;

/// What the children told through the pipe until its end, which comes with exec.
#[derive(Debug, Default)]
struct Report {
    pid: Option<i32>,
    failure: Option<(Step, Errno)>,
}

impl Report {
    fn read(mut pipe: PipeReader) -> io::Result<Report> {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes)?;
        let mut report = Report::default();
        let numbers: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(|n| i32::from_ne_bytes(*n)).collect();
        let (messages, _) = numbers.as_chunks::<2>();
        for [tag, value] in messages.iter().copied() {
            let step = match tag {
                PID => {
                    report.pid = Some(value);
                    continue;
                }
                1 => Step::Fork,
                3 => Step::Chdir,
                4 => Step::Exec,
                _ => Step::Prepare,
            };
            report.failure = Some((step, Errno::from_raw(value)));
        }
        Ok(report)
    }
}

/// Forks; returns the child's pid and what was reported until the new program runs or could not be started.
fn start(
    program: &Path,
    image: &Image,
    stdio: [BorrowedFd<'_>; 3],
    role: Role,
    stamp: Option<u64>,
) -> Result<(Pid, Report), SpawnError> {
    let told = |e: io::Error| system(program, &e);
    let (reader, writer) = io::pipe().map_err(told)?;
    let writer = above_standard(writer.into()).map_err(told)?;
    let child = Child {
        image,
        stdio: stdio.map(|fd| fd.as_raw_fd()),
        report: writer.as_raw_fd(),
        parent: getpid().as_raw(),
        last_fd: last_fd(),
        role,
        limit: stamp::for_child(stamp),
    };
    // No handler of ours may run in the child: it would write to the pipe that we poll.
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(|e| told(e.into()))?;
    // SAFETY: the child makes only async-signal-safe calls, on memory prepared above, and never returns.
    let pid = unsafe {
        let pid = libc::fork();
        if pid == 0 {
            child.run()
        }
        pid
    };
    let failed = Errno::last();
    let restored = mask.thread_set_mask();
    if pid < 0 {
        return Err(image.explain(program, Path::new("."), Step::Fork, failed));
    }
    drop(writer);
    let report = Report::read(reader).map_err(told)?;
    restored.map_err(|e| told(e.into()))?;
    Ok((Pid::from_raw(pid), report))
}

/// The highest descriptor that can be open, for systems without `close_range`.
fn last_fd() -> RawFd {
    use nix::sys::resource::{Resource, getrlimit};
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    RawFd::try_from(limit).unwrap_or(65_536).min(65_536)
}

/// The child's side: plain numbers and pointers, no allocation, no lock.
struct Child<'a> {
    image: &'a Image,
    stdio: [RawFd; 3],
    report: RawFd,
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux ends a task with its parent"))]
    parent: i32,
    last_fd: RawFd,
    role: Role,
    /// What carries the stamp, soft and hard.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux has stamps"))]
    limit: Option<(u64, u64)>,
}

/// Where the report pipe is while everything above is closed.
const REPORT: RawFd = 3;

impl Child<'_> {
    /// # Safety
    /// Only in a process just forked.
    unsafe fn run(&self) -> ! {
        // SAFETY: all calls are async-signal-safe; pointers are to prepared, NUL-terminated memory that outlives exec.
        unsafe {
            if self.role == Role::Detached {
                let pid = libc::fork();
                if pid != 0 {
                    if pid < 0 {
                        Self::tell(self.report, Step::Fork as i32, Errno::last_raw());
                    } else {
                        Self::tell(self.report, PID, pid);
                    }
                    libc::_exit(0);
                }
            }
            if libc::setsid() < 0 {
                Self::fail(self.report, Step::Prepare);
            }
            #[cfg(target_os = "linux")]
            if self.role == Role::Task {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    Self::fail(self.report, Step::Prepare);
                }
                // The parent may have died before the call above; then nobody would kill us.
                if libc::getppid() != self.parent {
                    libc::_exit(127);
                }
            }
            #[cfg(target_os = "linux")]
            if let Some((rlim_cur, rlim_max)) = self.limit {
                let limit = libc::rlimit { rlim_cur, rlim_max };
                // Where this fails a task has its other marks.
                libc::setrlimit(libc::RLIMIT_RTTIME, &raw const limit);
            }
            Self::default_signals();
            for (to, from) in (0..).zip(self.stdio) {
                if libc::dup2(from, to) < 0 {
                    Self::fail(self.report, Step::Prepare);
                }
            }
            // Sources are above 3, so that this overwrites nothing that is still needed.
            if libc::dup2(self.report, REPORT) < 0 || libc::fcntl(REPORT, libc::F_SETFD, libc::FD_CLOEXEC) < 0 {
                Self::fail(self.report, Step::Prepare);
            }
            self.close_from(REPORT + 1);
            if libc::chdir(self.image.cwd.as_ptr()) != 0 {
                Self::fail(REPORT, Step::Chdir);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            libc::execve(self.image.path.as_ptr(), self.image.argv.as_ptr(), self.image.envp.as_ptr());
            Self::fail(REPORT, Step::Exec)
        }
    }

    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn tell(pipe: RawFd, tag: i32, value: i32) {
        let message = [tag, value];
        // SAFETY: eight readable bytes; a pipe takes them at once.
        unsafe { libc::write(pipe, message.as_ptr().cast(), size_of_val(&message)) };
    }

    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn fail(pipe: RawFd, step: Step) -> ! {
        let errno = Errno::last_raw();
        // SAFETY: as above.
        unsafe {
            Self::tell(pipe, step as i32, errno);
            libc::_exit(127)
        }
    }

    /// Every signal's default, also of those that a parent had ignored: a task shall end when its pipe does. Signals 32
    /// and 33 are the C library's own and stay as they are.
    ///
    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn default_signals() {
        // SAFETY: all-zero bytes are SIG_DFL with an empty mask; numbers that cannot be set are refused, which is fine.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            for number in 1..=64 {
                libc::sigaction(number, &raw const action, std::ptr::null_mut());
            }
        }
    }

    /// # Safety
    /// As [`run`](Self::run).
    unsafe fn close_from(&self, first: RawFd) {
        // SAFETY: closes descriptors that nobody in this process uses any more.
        unsafe {
            #[cfg(target_os = "linux")]
            if libc::syscall(libc::SYS_close_range, first.cast_unsigned(), libc::c_uint::MAX, 0) == 0 {
                return;
            }
            for fd in first..=self.last_fd {
                libc::close(fd);
            }
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::sys::dir::Dir;
    use crate::sys::lock::{Probe, try_exclusive, try_shared_probe};
    use crate::sys::process::{Signal, alive, environ_of, identity_of, signal};
    use crate::sys::testing::{Helper, LONG, Stray, again, again_args, role, role_var, until};

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        (temp, dir)
    }

    fn words(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    fn locked(dir: &Dir, name: &str) -> File {
        let file = dir.open_rw(name).unwrap();
        assert!(try_exclusive(&file).unwrap());
        file
    }

    /// What its descriptors are, as the kernel names them.
    fn descriptors(pid: i32) -> Vec<(i32, PathBuf)> {
        let mut all: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|e| e.unwrap().path())
            .filter_map(|p| Some((p.file_name()?.to_str()?.parse().ok()?, p.read_link().ok()?)))
            .collect();
        all.sort();
        all
    }

    /// A descriptor that any other program would hand down.
    fn inheritable(dir: &Dir) -> File {
        let file = dir.open_rw("inheritable").unwrap();
        fcntl(&file, FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        file
    }

    fn signal_mask(pid: i32, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
        let set = u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap();
        // Signals 32 and 33 belong to the C library, which lets nobody touch them; they come from whoever runs the tests.
        set & !(0b11 << 31)
    }

    #[test]
    fn a_detached_process_stands_alone_and_holds_its_lock_until_it_dies() {
        let (temp, dir) = folder();
        let live = locked(&dir, "live.lock");
        let _leak = inheritable(&dir);
        signals::ignore(&[Signal::SIGPIPE]).unwrap();
        let change = EnvChange {
            set: vec![("CPW_DEPTH".into(), "2".into()), ("HOME".into(), "/nowhere".into())],
            remove: words(&["PATH"]),
        };
        let args = words(&["-c", "exec /bin/sleep 600"]);
        let pid = spawn_detached(Path::new("/bin/sh"), &args, change, temp.path(), live).unwrap();
        let stray = Stray::new(pid);
        until("the program runs", || Stat::of(pid).unwrap().comm == "sleep" && !environ_of(pid).is_empty());
        let stat = Stat::of(pid).unwrap();
        assert_eq!((stat.session, stat.pgrp), (pid, pid));
        assert_ne!(stat.ppid, getpid().as_raw(), "it is our child: it would become a zombie of ours");
        let null = PathBuf::from("/dev/null");
        let lock_path = temp.path().canonicalize().unwrap().join("live.lock");
        // Its loader opens and closes libraries; what it inherited would stay.
        let expected = [(0, lock_path), (1, null.clone()), (2, null)];
        until("it has these three descriptors only", || descriptors(pid) == expected);
        assert_eq!((signal_mask(pid, "SigIgn"), signal_mask(pid, "SigBlk")), (0, 0));
        let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(cwd, temp.path().canonicalize().unwrap());
        let environment = environ_of(pid);
        assert!(environment.contains(&("CPW_DEPTH".into(), "2".into())), "{environment:?}");
        assert_eq!(environment.iter().filter(|(k, _)| k == "HOME").count(), 1, "{environment:?}");
        assert!(!environment.iter().any(|(k, _)| k == "PATH"), "{environment:?}");

        let probe = dir.open_read("live.lock").unwrap();
        assert_eq!(try_shared_probe(&probe).unwrap(), Probe::Held);
        drop(stray);
        until("the lock is free", || try_shared_probe(&probe).unwrap() == Probe::Free);
    }

    #[test]
    fn a_detached_process_is_not_marked_as_part_of_the_task_that_started_it() {
        const TEST: &str = "sys::spawn::tests::a_detached_process_is_not_marked_as_part_of_the_task_that_started_it";
        if role().is_some() {
            let (temp, dir) = folder();
            let args = words(&["-c", "exec sleep 600"]);
            let live = locked(&dir, "live");
            let pid = spawn_detached(Path::new("/bin/sh"), &args, EnvChange::default(), temp.path(), live).unwrap();
            let _stray = Stray::new(pid);
            // Before it is the other program, it shows the environment of this one.
            let exe = || std::fs::read_link(format!("/proc/{pid}/exe")).unwrap();
            until("it is the other program", || exe() != std::env::current_exe().unwrap());
            let environment = environ_of(pid);
            assert!(!environment.iter().any(|(k, _)| k == "CPW_RUN" || k == "CPW_TASK" || k == "CPW_ATTEMPT"));
            assert!(environment.iter().any(|(k, _)| k == "CPW_TEST_ROLE"));
            println!("checked");
            return;
        }
        let mut command = again(TEST, "in a task");
        let (text, status) =
            Helper::start(command.env("CPW_RUN", "r").env("CPW_TASK", "t").env("CPW_ATTEMPT", "1")).finish();
        assert!(status.success() && text.contains("checked"), "{text}");
    }

    #[test]
    fn a_detached_process_that_cannot_start_is_reported_and_its_lock_is_free() {
        let (temp, dir) = folder();
        let start = |exe: &str, cwd: &Path| {
            spawn_detached(Path::new(exe), &[], EnvChange::default(), cwd, locked(&dir, "live")).unwrap_err()
        };
        assert_eq!(start("/nowhere/cpw", temp.path()).kind, SpawnErrorKind::NotFound);
        until("the lock is free again", || try_exclusive(&dir.open_rw("live").unwrap()).unwrap());
        assert_eq!(start("/bin/sh", &temp.path().join("none")).kind, SpawnErrorKind::BadCwd);
    }

    #[test]
    fn a_worker_adopts_its_lock_and_hands_it_to_nobody() {
        const TEST: &str = "sys::spawn::tests::a_worker_adopts_its_lock_and_hands_it_to_nobody";
        if role().as_deref() == Some("worker") {
            let file = adopt_live_lock().unwrap();
            let listed = std::process::Command::new("/bin/sh").args(["-c", "ls -l /proc/$$/fd"]).output().unwrap();
            std::fs::write("child-fds", listed.stdout).unwrap();
            std::fs::rename("child-fds", "ready").unwrap();
            let (quiet, _writer) = io::pipe().unwrap();
            drop(crate::sys::poll::wait(&[quiet.as_fd()], Some(LONG)));
            drop(file);
            return;
        }
        let (temp, dir) = folder();
        let change = EnvChange { set: vec![role_var("worker")], remove: Vec::new() };
        let exe = std::env::current_exe().unwrap();
        let pid = spawn_detached(&exe, &again_args(TEST), change, temp.path(), locked(&dir, "live.lock")).unwrap();
        let stray = Stray::new(pid);
        until("the worker is ready", || dir.stat("ready").unwrap().is_some() || !alive(&stray.0));
        let children = String::from_utf8(dir.read_bounded("ready", 10_000).unwrap()).unwrap();
        assert!(!children.contains("live.lock"), "a child of the worker holds the lock too: {children}");
        let all = descriptors(pid);
        assert_eq!(all[0], (0, "/dev/null".into()));
        assert!(all.iter().any(|(fd, path)| *fd > 2 && path.ends_with("live.lock")), "{all:?}");
        let probe = dir.open_read("live.lock").unwrap();
        assert_eq!(try_shared_probe(&probe).unwrap(), Probe::Held);
        drop(stray);
        until("the lock is free", || try_shared_probe(&probe).unwrap() == Probe::Free);
    }

    #[test]
    fn adopting_needs_a_lock_file_that_nobody_else_holds() {
        const TEST: &str = "sys::spawn::tests::adopting_needs_a_lock_file_that_nobody_else_holds";
        if role().is_some() {
            println!("said: {:?}", adopt_live_lock().map_err(|e| e.kind()).err());
            return;
        }
        let (_temp, dir) = folder();
        let said = |stdin: OwnedFd| {
            let mut helper = Helper::start(again(TEST, "adopter").stdin(std::process::Stdio::from(stdin)));
            helper.line("said: ")
        };
        assert_eq!(said(File::open("/dev/null").unwrap().into()), "Some(InvalidInput)");
        assert_eq!(said(io::pipe().unwrap().0.into()), "Some(InvalidInput)");
        let _held = locked(&dir, "live");
        assert_eq!(said(dir.open_rw("live").unwrap().into()), "Some(WouldBlock)");
        assert_eq!(said(locked(&dir, "other").into()), "None");
    }

    struct Spawned {
        task: Task,
        dir: Dir,
        _temp: tempfile::TempDir,
    }

    impl Spawned {
        fn exit(&mut self) -> Exit {
            let fd = self.task.pidfd().unwrap();
            assert_eq!(crate::sys::poll::wait(&[fd], Some(LONG)).unwrap(), [true]);
            self.task.try_wait().unwrap().unwrap()
        }
    }

    impl Drop for Spawned {
        fn drop(&mut self) {
            crate::sys::tree::kill_now(&crate::sys::tree::Target::new(Some(self.task.process.clone()), &[]), LONG);
            until("the task is reaped", || self.task.try_wait().unwrap().is_some());
        }
    }

    fn spawn(program: &Path, argv: &[&str], env: &[(&str, &str)], cwd: Option<&Path>) -> Result<Spawned, SpawnError> {
        let (temp, dir) = folder();
        let env: Vec<(OsString, OsString)> = env.iter().map(|(k, v)| (k.into(), v.into())).collect();
        let task = spawn_task(TaskSpawn {
            program,
            argv: &words(argv),
            env: &env,
            cwd: cwd.unwrap_or(temp.path()),
            stdin: None,
            stdout: dir.open_append("out").unwrap(),
            stderr: dir.open_append("err").unwrap(),
        })?;
        Ok(Spawned { task, dir, _temp: temp })
    }

    fn sh(script: &str) -> Spawned {
        spawn(Path::new("/bin/sh"), &["sh", "-c", script], &[("PATH", "/usr/bin:/bin")], None).unwrap()
    }

    #[test]
    fn a_task_writes_to_its_files_and_tells_how_it_ended() {
        let env = [("A", "1"), ("B", "x y")];
        let script = "echo \"$0 $1 $A $B\"; echo problem >&2; cat; pwd -P; exit 7";
        let mut task = spawn(
            Path::new("/bin/sh"),
            &["sh", "-c", script, "zero", "one"],
            &[env[0], env[1], ("PATH", "/usr/bin:/bin")],
            None,
        )
        .unwrap();
        assert_eq!(task.exit(), Exit::Code(7));
        assert_eq!(task.task.try_wait().unwrap(), Some(Exit::Code(7)), "it says so again");
        let cwd = task.dir.path().canonicalize().unwrap();
        let out = String::from_utf8(task.dir.read_bounded("out", 1000).unwrap()).unwrap();
        assert_eq!(out, format!("zero one 1 x y\n{}\n", cwd.display()));
        assert_eq!(task.dir.read_bounded("err", 1000).unwrap(), b"problem\n");
        assert_eq!(sh("kill -TERM $$").exit(), Exit::Signal(15));
    }

    #[test]
    fn a_task_gets_a_session_three_descriptors_and_default_signals() {
        let (_temp, leaky) = folder();
        let _leak = inheritable(&leaky);
        signals::ignore(&[Signal::SIGPIPE]).unwrap();
        let mut task = sh("exec sleep 600");
        let pid = task.task.pid();
        assert_eq!(task.task.try_wait().unwrap(), None);
        assert_eq!(task.task.process(), &identity_of(pid).unwrap());
        let stat = Stat::of(pid).unwrap();
        assert_eq!((stat.session, stat.pgrp, stat.ppid), (pid, pid, getpid().as_raw()));
        // Its loader opens and closes libraries; what it inherited would stay.
        let mut all = Vec::new();
        until("it has three descriptors", || {
            all = descriptors(pid);
            all.len() == 3
        });
        assert!(
            all[0].1 == Path::new("/dev/null") && all[1].1.ends_with("out") && all[2].1.ends_with("err"),
            "{all:?}"
        );
        assert_eq!((signal_mask(pid, "SigIgn"), signal_mask(pid, "SigBlk")), (0, 0));
        assert_eq!(
            environ_of(pid)
                .iter()
                .filter(|(k, _)| k != "PWD" && k != "PATH" && k != "_" && k != "OLDPWD" && k != "SHLVL")
                .count(),
            0
        );
        assert!(signal(task.task.process(), Signal::SIGKILL).unwrap());
        assert_eq!(task.exit(), Exit::Signal(9));
    }

    type Case<'a> = (PathBuf, &'a [&'a str], Option<&'a Path>, SpawnErrorKind, &'a str);

    #[test]
    fn why_a_task_did_not_start_is_told_with_what_to_do() {
        let (temp, dir) = folder();
        let file = |name: &str, text: &str, mode| {
            dir.write_atomic(name, text.as_bytes(), mode, false).unwrap();
            temp.path().join(name)
        };
        let long = "x".repeat(100_000);
        let many: Vec<&str> = std::iter::repeat_n(long.as_str(), 100).collect();
        let none = temp.path().join("none");
        let cases: [Case<'_>; 8] = [
            (none.clone(), &["x"], None, SpawnErrorKind::NotFound, "no such program"),
            (file("plain", "x", 0o600), &["x"], None, SpawnErrorKind::NotExecutable, "chmod +x"),
            (temp.path().to_owned(), &["x"], None, SpawnErrorKind::NotExecutable, "is a folder"),
            (file("noshebang", "echo hi\n", 0o700), &["x"], None, SpawnErrorKind::BadFormat, "#!"),
            (file("interpreter", "#!/no/where\n", 0o700), &["x"], None, SpawnErrorKind::NotFound, "interpreter"),
            ("/bin/sh".into(), &many, None, SpawnErrorKind::TooBig, "100 arguments"),
            ("/bin/sh".into(), &["sh"], Some(&none), SpawnErrorKind::BadCwd, "make the folder"),
            ("/bin/sh".into(), &["sh", "a\0b"], None, SpawnErrorKind::BadText, "argument 1 holds a NUL"),
        ];
        for (program, argv, cwd, kind, words) in cases {
            let Err(error) = spawn(&program, argv, &[], cwd) else { panic!("{} started", program.display()) };
            assert_eq!(error.kind, kind, "{error}");
            assert!(error.reason.contains(words) && error.reason.contains(&program.display().to_string()), "{error}");
        }
    }

    #[test]
    fn a_task_dies_with_its_worker() {
        const TEST: &str = "sys::spawn::tests::a_task_dies_with_its_worker";
        if role().is_some() {
            let task = sh("exec sleep 600");
            println!("task {}", task.task.pid());
            let (quiet, _writer) = io::pipe().unwrap();
            drop(crate::sys::poll::wait(&[quiet.as_fd()], Some(LONG)));
            return;
        }
        // It is killed and cannot clean up.
        let temp = tempfile::tempdir().unwrap();
        let mut worker = Helper::start(again(TEST, "worker").env("TMPDIR", temp.path()));
        let task = Stray::new(worker.line("task ").parse().unwrap());
        assert!(alive(&task.0));
        assert!(signal(&worker.process(), Signal::SIGKILL).unwrap());
        until("the task is dead", || !alive(&task.0));
    }

    #[test]
    fn a_subreaper_gets_orphans_and_reaps_them_but_not_its_task() {
        const TEST: &str = "sys::spawn::tests::a_subreaper_gets_orphans_and_reaps_them_but_not_its_task";
        if role().is_some() {
            become_subreaper().unwrap();
            assert!(reap_adopted(&[]).is_empty());
            let (temp, dir) = folder();
            let args = words(&["-c", "exit 0"]);
            let live = locked(&dir, "live");
            let worker = spawn_detached(Path::new("/bin/sh"), &args, EnvChange::default(), temp.path(), live).unwrap();
            let mut task = sh("(sleep 600 & echo $! >orphan); exit 5");
            let pid = task.task.pid();
            until("the task is over", || Stat::of(pid).unwrap().is_zombie());
            let orphan: i32 =
                String::from_utf8(task.dir.read_bounded("orphan", 10).unwrap()).unwrap().trim().parse().unwrap();
            until("the orphan is ours", || Stat::of(orphan).unwrap().ppid == getpid().as_raw());
            assert!(signal(&identity_of(orphan).unwrap(), Signal::SIGKILL).unwrap());
            let mut reaped = Vec::new();
            until("both orphans are reaped", || {
                reaped.extend(reap_adopted(&[pid]));
                reaped.contains(&worker) && reaped.contains(&orphan)
            });
            assert!(!reaped.contains(&pid));
            assert_eq!(task.exit(), Exit::Code(5));
            println!("checked");
            return;
        }
        let (text, status) = Helper::start(&mut again(TEST, "subreaper")).finish();
        assert!(status.success() && text.contains("checked"), "{text}");
    }

    #[test]
    fn programs_are_found_outside_the_project_only() {
        let (temp, dir) = folder();
        let put = |folder: &str, name: &str, mode| {
            let sub = dir.create_sub(folder, 0o700).unwrap();
            sub.write_atomic(name, b"#!/bin/sh\n", mode, false).unwrap();
            sub.path().to_owned()
        };
        let (inside, outside, plain) =
            (put("project", "tool", 0o700), put("bin", "tool", 0o700), put("plain", "other", 0o600));
        std::os::unix::fs::symlink(&inside, temp.path().join("link")).unwrap();
        put("bin", "other.sh", 0o700);
        put("project", "only", 0o700);
        let link = temp.path().join("link");
        let path = std::env::join_paths([Path::new(""), Path::new("bin"), &inside, &link, &plain, &outside]).unwrap();
        let find = |name: &str| resolve_program(OsStr::new(name), &path, &inside, &inside);
        assert_eq!(find("tool").unwrap(), outside.join("tool"));
        assert_eq!(find("./tool").unwrap(), inside.join("./tool"));
        assert_eq!(find("/bin/sh").unwrap(), Path::new("/bin/sh"));
        let only = find("only").unwrap_err();
        assert!(only.kind == SpawnErrorKind::NotFound && only.reason.contains("inside the project"), "{only}");
        assert_eq!(find("other").unwrap_err().kind, SpawnErrorKind::NotExecutable);
        let none = find("nothing").unwrap_err();
        assert!(none.kind == SpawnErrorKind::NotFound && none.reason.contains("nothing"), "{none}");
        assert_eq!(find("").unwrap_err().kind, SpawnErrorKind::BadText);
        let relative = resolve_program(OsStr::new("tool"), OsStr::new(":.:bin"), temp.path(), Path::new(""));
        assert!(relative.is_err(), "relative entries of PATH count for nothing");
    }
}
