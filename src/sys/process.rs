//! Processes of others: who they are, whether they live, how to signal the right one.
//!
//! A pid alone names nobody for long: it is used again. A process is its boot, its pid and its start time
//! ([`Process`]); signals go through a pidfd that was opened before the identity was checked.

#![expect(unsafe_code, reason = "pidfds and proc_pidinfo have no safe wrapper")]

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
pub use nix::sys::signal::Signal;

use super::clock::boot_id;
use super::stamp;
use crate::base::env;
use crate::model::event::Process;

/// What the kernel tells about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Process id.
    pub pid: i32,
    /// Short name of the program.
    pub comm: String,
    /// One letter: `R`, `S`, `D`, `T` stopped, `Z` zombie …
    pub state: char,
    /// Parent.
    pub ppid: i32,
    /// Process group.
    pub pgrp: i32,
    /// Session.
    pub session: i32,
    /// Threads that have not ended; 1 where that is not known.
    pub threads: u32,
    /// Clock ticks since boot; on macOS microseconds since 1970.
    pub start_time: u64,
}

impl Stat {
    /// Of a process; `None`: there is none of that number, or it is hidden from us.
    #[cfg(not(target_os = "macos"))]
    pub fn of(pid: i32) -> Option<Stat> {
        use std::io::Read as _;
        // One line of at most 52 numbers: it fits, and one read is one system call where `fs::read` makes six.
        let mut line = [0_u8; 2048];
        let length = std::fs::File::open(format!("/proc/{pid}/stat")).and_then(|mut f| f.read(&mut line)).ok()?;
        Self::parse(&String::from_utf8_lossy(&line[..length]))
    }

    /// The name may hold spaces and parentheses, so the fields are counted from its last `)` (`proc_pid_stat(5)`).
    #[cfg(not(target_os = "macos"))]
    fn parse(line: &str) -> Option<Stat> {
        let (head, tail) = line.rsplit_once(')')?;
        let (pid, comm) = head.split_once(" (")?;
        let mut fields = tail.split_ascii_whitespace();
        Some(Stat {
            pid: pid.parse().ok()?,
            comm: comm.to_owned(),
            state: fields.next()?.chars().next()?,
            ppid: fields.next()?.parse().ok()?,
            pgrp: fields.next()?.parse().ok()?,
            session: fields.next()?.parse().ok()?,
            // Fields 20 and 22 of the line; the four above were 3 to 6.
            threads: fields.nth(13)?.parse().ok()?,
            start_time: fields.nth(1)?.parse().ok()?,
        })
    }

    /// Of a process; `None`: there is none of that number, or it is hidden from us.
    #[cfg(target_os = "macos")]
    pub fn of(pid: i32) -> Option<Stat> {
        // SAFETY: all-zero bytes are a valid proc_bsdinfo.
        let mut info: libc::proc_bsdinfo = unsafe { std::mem::zeroed() };
        let size = i32::try_from(size_of::<libc::proc_bsdinfo>()).ok()?;
        // SAFETY: the buffer is a live local of the size given.
        let got = unsafe { libc::proc_pidinfo(pid, libc::PROC_PIDTBSDINFO, 0, (&raw mut info).cast(), size) };
        if got != size {
            return None;
        }
        let name: Vec<u8> = info.pbi_comm.iter().take_while(|c| **c != 0).map(|c| c.cast_unsigned()).collect();
        Some(Stat {
            pid,
            comm: String::from_utf8_lossy(&name).into_owned(),
            state: match info.pbi_status {
                libc::SZOMB => 'Z',
                libc::SSTOP => 'T',
                _ => 'S',
            },
            ppid: i32::try_from(info.pbi_ppid).ok()?,
            pgrp: i32::try_from(info.pbi_pgid).ok()?,
            session: nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).map_or(0, nix::unistd::Pid::as_raw),
            threads: 1,
            start_time: info.pbi_start_tvsec * 1_000_000 + info.pbi_start_tvusec,
        })
    }

    /// Whether a signal or a debugger has stopped it.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, 'T' | 't')
    }

    /// Whether it has ended and only waits to be reaped.
    ///
    /// One whose first thread has left while others go on looks like that, and has not ended.
    pub fn is_zombie(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x') && self.threads <= 1
    }

    /// Its identity.
    pub fn process(&self) -> Process {
        Process { pid: self.pid, start_time: self.start_time, boot_id: boot_id().to_owned() }
    }
}

/// The numbers of all processes that we can see.
#[cfg(not(target_os = "macos"))]
pub fn all_pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// The numbers of all processes that we can see.
#[cfg(target_os = "macos")]
pub fn all_pids() -> Vec<i32> {
    let mut pids = vec![0i32; 16 * 1024];
    let size = i32::try_from(pids.len() * size_of::<i32>()).unwrap_or(i32::MAX);
    // SAFETY: the buffer is a live local of the size given.
    let count = unsafe { libc::proc_listallpids(pids.as_mut_ptr().cast(), size) };
    pids.truncate(usize::try_from(count).unwrap_or(0));
    pids
}

/// This process.
pub fn me() -> Process {
    let pid = nix::unistd::getpid().as_raw();
    identity_of(pid).unwrap_or(Process { pid, start_time: 0, boot_id: boot_id().to_owned() })
}

/// The number of the user that this process acts as, whose files are its own.
pub fn user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The number of the group that this process acts as.
pub fn group() -> u32 {
    nix::unistd::getegid().as_raw()
}

/// For how long this process has been there at least, in milliseconds, also as another program before. 0 where that cannot
/// be told.
#[cfg(target_os = "linux")]
pub fn age_ms() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    // What the kernel counts in for everybody, whatever it ticks in.
    const TICK_MS: i64 = 10;
    let begun = i64::try_from(me().start_time).ok().filter(|ticks| *ticks > 0);
    let age = begun.zip(clock_gettime(ClockId::CLOCK_BOOTTIME).ok()).map(|(ticks, now)| {
        now.tv_sec().saturating_mul(1000) + now.tv_nsec() / 1_000_000 - ticks.saturating_add(1).saturating_mul(TICK_MS)
    });
    age.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}

/// For how long this process has been there at least, in milliseconds. 0 where that cannot be told.
#[cfg(not(target_os = "linux"))]
pub fn age_ms() -> u64 {
    0
}

/// Who has this pid now; also a zombie.
pub fn identity_of(pid: i32) -> Option<Process> {
    Stat::of(pid).map(|s| s.process())
}

/// Whether exactly this process is there and not a zombie. One whose start time or boot is unknown counts as gone, so that
/// nobody signals a stranger.
pub fn alive(process: &Process) -> bool {
    exists(process).is_some_and(|s| !s.is_zombie())
}

/// The state of exactly this process, zombie or not.
pub fn exists(process: &Process) -> Option<Stat> {
    if process.pid <= 0 || process.start_time == 0 || process.boot_id != boot_id() {
        return None;
    }
    Stat::of(process.pid).filter(|s| s.start_time == process.start_time)
}

/// A descriptor that becomes readable when the process has ended, and that no other process can slip under.
#[cfg(target_os = "linux")]
pub fn pidfd(pid: i32) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: a system call with two numbers; it returns a new descriptor (close-on-exec) or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = i32::try_from(Errno::result(fd)?).map_err(|_| io::Error::from(Errno::EBADF))?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// There are no pidfds outside Linux.
#[cfg(not(target_os = "linux"))]
pub fn pidfd(_pid: i32) -> io::Result<OwnedFd> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "pidfds exist on Linux only"))
}

/// Sends a signal to exactly this process. `false`: it is gone (or a zombie), and nobody was signalled.
#[cfg(target_os = "linux")]
pub fn signal(process: &Process, signal: Signal) -> io::Result<bool> {
    use std::os::fd::AsRawFd;
    // The order matters: the descriptor is bound to whoever has the pid now, then we check that it is the one.
    let fd = match pidfd(process.pid) {
        Ok(fd) => fd,
        Err(e) => {
            return match e.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ESRCH | Errno::EINVAL) => Ok(false),
                // Kernels before 5.3 and some sandboxes.
                Some(Errno::ENOSYS | Errno::EPERM) => signal_by_pid(process, signal),
                _ => Err(e),
            };
        }
    };
    if !alive(process) {
        return Ok(false);
    }
    let null = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a system call with our own open descriptor, a signal number and no siginfo.
    let rc = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal as i32, null, 0) };
    sent(Errno::result(rc).map(drop))
}

/// Sends a signal to this process. `false`: it is gone (or a zombie). Between check and signal the pid could change hands:
/// there are no pidfds here.
#[cfg(not(target_os = "linux"))]
pub fn signal(process: &Process, signal: Signal) -> io::Result<bool> {
    signal_by_pid(process, signal)
}

fn signal_by_pid(process: &Process, signal: Signal) -> io::Result<bool> {
    if !alive(process) {
        return Ok(false);
    }
    sent(nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), signal))
}

fn sent(result: nix::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// A process above this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ancestor {
    /// Process id.
    pub pid: i32,
    /// Its command line; empty where we may not read it (and on macOS).
    pub argv: Vec<OsString>,
    /// Short name of the program.
    pub comm: String,
}

/// How far up [`ancestors`] looks.
const MAX_DEPTH: usize = 64;

/// The processes above this one, the parent first, at most 64.
pub fn ancestors() -> Vec<Ancestor> {
    ancestor_stats()
        .into_iter()
        .map(|stat| Ancestor { pid: stat.pid, argv: argv_of(stat.pid), comm: stat.comm })
        .collect()
}

fn ancestor_stats() -> Vec<Stat> {
    let mut found = Vec::new();
    let mut pid = nix::unistd::getppid().as_raw();
    while pid > 0 && found.len() < MAX_DEPTH {
        let Some(stat) = Stat::of(pid) else { break };
        pid = stat.ppid;
        found.push(stat);
    }
    found
}

/// Whether a process above this one was started with the variable `name` in its environment. Those whose environment we
/// may not read count as without; on macOS all do.
pub fn ancestor_env_has(name: &str) -> bool {
    any_above_has(&[name])
}

fn any_above_has(names: &[&str]) -> bool {
    ancestor_stats().iter().any(|stat| environ_of(stat.pid).iter().any(|(key, _)| names.iter().any(|name| key == name)))
}

/// Whether this process belongs to a worker's task, as far as that can be seen without a look at others: by its environment,
/// or where that was cleaned, by the stamp, which outlives it as well as another session and another parent.
pub fn is_in_task() -> bool {
    std::env::var_os(env::DEPTH).is_some() || stamp::of_this().is_some()
}

/// The same, with a look at the processes above, for where there is no stamp. A worker is among them, too, which gets back
/// what its task has let go of.
pub fn is_below_worker() -> bool {
    is_in_task() || any_above_has(&[env::DEPTH, env::SLOT])
}

/// The most that is read of a command line or an environment; the kernel's own limit is 6 MiB for both together.
const MAX_BLOCK: usize = 8 * 1024 * 1024;

/// The environment a process was started with; empty where we may not read it (and on macOS).
pub fn environ_of(pid: i32) -> Vec<(OsString, OsString)> {
    environ_block(pid)
        .unwrap_or_default()
        .split(|b| *b == 0)
        .filter_map(|entry| {
            let at = entry.iter().position(|b| *b == b'=')?;
            Some((OsString::from_vec(entry[..at].to_vec()), OsString::from_vec(entry[at + 1..].to_vec())))
        })
        .collect()
}

/// Whether a process is there and was started with all of these variables.
pub fn is_marked(process: &Process, mark: &[(&str, &str)]) -> bool {
    let environment = environ_of(process.pid);
    exists(process).is_some()
        && mark.iter().all(|(name, value)| environment.iter().any(|(n, v)| n == name && v == value))
}

/// The environment as the kernel has it: `NAME=value` entries, each ended by a NUL.
pub(super) fn environ_block(pid: i32) -> io::Result<Vec<u8>> {
    read_block(Path::new(&format!("/proc/{pid}/environ")))
}

fn argv_of(pid: i32) -> Vec<OsString> {
    let block = read_block(Path::new(&format!("/proc/{pid}/cmdline"))).unwrap_or_default();
    let Some(block) = block.strip_suffix(b"\0") else { return Vec::new() };
    block.split(|b| *b == 0).map(|arg| OsStr::from_bytes(arg).to_owned()).collect()
}

/// In one call, since what the next call would read may be another program's: the process can `exec` in between.
fn read_block(path: &Path) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path)?;
    let mut size = 128 * 1024;
    loop {
        let mut block = vec![0; size];
        let len = file.read_at(&mut block, 0)?;
        if len < size || size >= MAX_BLOCK {
            block.truncate(len);
            return Ok(block);
        }
        size *= 8;
    }
}

/// Why an environment reads as empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Emptiness {
    /// The process has none: it has ended, or is the kernel's.
    None,
    /// It was started without any variable, as far as one look can tell.
    Bare,
    /// It is in the middle of `execve`: the kernel has not yet noted where the environment ends.
    Unsettled,
}

/// Tells them apart by `proc_pid_stat(5)`: fields 3 (state), 9 (flags), 50 and 51 (bounds of the environment).
pub(super) fn emptiness(pid: i32) -> Emptiness {
    const PF_KTHREAD: u32 = 0x0020_0000;
    let Ok(line) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return Emptiness::None };
    let fields: Vec<&str> = line.rsplit_once(')').map_or("", |(_, tail)| tail).split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or("0");
    let of_kernel = field(9).parse::<u32>().is_ok_and(|flags| flags & PF_KTHREAD != 0);
    match (field(3), field(50), field(51)) {
        ("Z" | "X" | "x" | "0", _, _) => Emptiness::None,
        _ if of_kernel => Emptiness::None,
        (_, from, to) if to != "0" && from == to => Emptiness::Bare,
        _ => Emptiness::Unsettled,
    }
}

/// The path of this program, for starting it again. After the file was replaced (an upgrade while a run is open) this is
/// a name for the old, still open one, so that a run stays with the version that started it.
pub fn exe_path() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    if path.as_os_str().as_bytes().ends_with(b" (deleted)") && !path.exists() {
        return Ok(PathBuf::from("/proc/self/exe"));
    }
    Ok(path)
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::sys::testing::{Helper, LONG, again, role, until};
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::time::Duration;

    #[test]
    fn a_process_whose_first_thread_has_left_has_not_ended() {
        let stat = |state, threads| {
            let line = format!("42 (a b) c) {state} 1 42 42 0 -1 4 1 2 3 4 5 6 7 8 20 0 {threads} 0 987654 1 2");
            Stat::parse(&line).unwrap()
        };
        assert_eq!((stat('S', 3).threads, stat('S', 3).start_time, stat('S', 3).session), (3, 987_654, 42));
        assert!(stat('Z', 1).is_zombie() && stat('Z', 0).is_zombie() && !stat('Z', 2).is_zombie());
    }

    fn sleeper() -> Helper {
        let mut helper = Helper::sh("echo ready; exec sleep 600", File::open("/dev/null").unwrap());
        helper.line("ready");
        helper
    }

    #[test]
    fn an_identity_is_boot_pid_and_start_time() {
        let helper = sleeper();
        let real = helper.process();
        assert!(alive(&real) && real.start_time > 0 && alive(&me()));
        let strangers = [
            Process { start_time: real.start_time + 1, ..real.clone() },
            Process { start_time: 0, ..real.clone() },
            Process { boot_id: "another boot".into(), ..real.clone() },
            Process { boot_id: String::new(), ..real.clone() },
            Process { pid: 0, ..real.clone() },
            Process { pid: -1, ..real.clone() },
        ];
        for stranger in strangers {
            assert!(!alive(&stranger), "{stranger:?}");
            assert!(!signal(&stranger, Signal::SIGKILL).unwrap(), "{stranger:?}");
        }
        assert!(alive(&real), "a signal reached a process that was not meant");
    }

    #[test]
    fn a_zombie_is_not_alive_and_not_signalled() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 3"]).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        until("the child is a zombie", || Stat::of(pid).unwrap().is_zombie());
        let process = identity_of(pid).unwrap();
        assert!(!alive(&process) && !signal(&process, Signal::SIGTERM).unwrap());
        assert!(exists(&process).is_some());
        assert_eq!(child.wait().unwrap().code(), Some(3));
        assert!(exists(&process).is_none() && identity_of(pid).is_none());
    }

    #[test]
    fn a_pidfd_tells_the_end() {
        let helper = sleeper();
        let fd = pidfd(helper.pid()).unwrap();
        assert_eq!(crate::sys::poll::wait(&[fd.as_fd()], Some(Duration::ZERO)).unwrap(), [false]);
        assert!(signal(&helper.process(), Signal::SIGKILL).unwrap());
        assert_eq!(crate::sys::poll::wait(&[fd.as_fd()], Some(LONG)).unwrap(), [true]);
    }

    #[test]
    fn a_program_cannot_confuse_us_by_its_name() {
        let line = "42 (a) R 1 (b c)) S 7 8 9 34816 9 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 11 12";
        let stat = Stat::parse(line).unwrap();
        assert_eq!(stat.comm, "a) R 1 (b c)");
        assert_eq!(
            (stat.pid, stat.state, stat.ppid, stat.pgrp, stat.session, stat.start_time),
            (42, 'S', 7, 8, 9, 987_654)
        );
        assert_eq!(Stat::parse("42 (cut"), None);
        assert_eq!(Stat::parse("42 (cut) S 1 2 3"), None);
    }

    #[test]
    fn an_environment_is_read_as_it_was_given() {
        let mut command = std::process::Command::new("/bin/sh");
        command.args(["-c", "echo ready; exec sleep 600"]).env_clear().env("A", "x=y z").env("EMPTY", "");
        let mut helper = Helper::start(&mut command);
        helper.line("ready");
        // In the middle of `exec` the environment reads as empty.
        until("the program runs", || Stat::of(helper.pid()).unwrap().comm == "sleep");
        until("it has an environment", || !environ_of(helper.pid()).is_empty());
        let environment = environ_of(helper.pid());
        for (key, value) in [("A", "x=y z"), ("EMPTY", "")] {
            assert!(environment.contains(&(key.into(), value.into())), "{environment:?}");
        }
        assert!(environ_of(i32::MAX).is_empty());
    }

    #[test]
    fn ancestors_are_told_with_command_line_and_environment() {
        const TEST: &str = "sys::process::tests::ancestors_are_told_with_command_line_and_environment";
        if role().is_some() {
            let above = ancestors();
            assert_eq!(above[0].comm, "sh");
            assert_eq!(above[0].argv[3], "marker argument");
            assert!(above.len() >= 2 && above.len() <= MAX_DEPTH);
            assert!(std::env::var_os("CPW_TEST_ABOVE").is_none(), "it stands in the parent's environment only");
            assert!(ancestor_env_has("CPW_TEST_ABOVE") && !ancestor_env_has("CPW_TEST_ABOV"));
            println!("checked");
            return;
        }
        let below = again(TEST, "below");
        let mut shell = std::process::Command::new("/bin/sh");
        let script = "unset CPW_TEST_ABOVE; shift; \"$@\"; exit $?";
        shell.args(["-c", script, "marker argument", "x"]).arg(below.get_program()).args(below.get_args());
        shell.envs(below.get_envs().filter_map(|(k, v)| Some((k, v?)))).env("CPW_TEST_ABOVE", "1");
        let (text, status) = Helper::start(&mut shell).finish();
        assert!(status.success() && text.contains("checked"), "{text}");
    }

    #[test]
    fn a_replaced_program_can_start_itself_again() {
        const TEST: &str = "sys::process::tests::a_replaced_program_can_start_itself_again";
        let own = std::env::current_exe().unwrap();
        if role().is_some() {
            assert_eq!(exe_path().unwrap(), own);
            std::fs::remove_file(&own).unwrap();
            let path = exe_path().unwrap();
            assert_eq!(path, Path::new("/proc/self/exe"));
            let listed = std::process::Command::new(path).arg("--list").output().unwrap();
            assert!(listed.status.success() && String::from_utf8_lossy(&listed.stdout).contains(TEST));
            println!("checked");
            return;
        }
        let copy = own.with_extension(format!("copy-{}", std::process::id()));
        std::fs::hard_link(&own, &copy).unwrap();
        let replaced = again(TEST, "replaced");
        let mut command = std::process::Command::new(&copy);
        command.args(replaced.get_args()).envs(replaced.get_envs().filter_map(|(k, v)| Some((k, v?))));
        let (text, status) = Helper::start(&mut command).finish();
        drop(std::fs::remove_file(&copy));
        assert!(status.success() && text.contains("checked"), "{text}");
    }
}
