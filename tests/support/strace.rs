//! Faults by `strace`: which calls a program makes, and a program that is killed before one of them or to which the system
//! refuses one. Only the program itself is traced; what it starts runs free.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use regex::Regex;

/// What happens at a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SIGKILL, before the call takes effect.
    Kill,
    /// The system refuses this one call.
    Once(&'static str),
    /// The system refuses this call and all later ones of the same name.
    FromHere(&'static str),
}

/// A fault: `kind` happens at the `k`-th call of `name`, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) name: String,
    pub(crate) k: usize,
    pub(crate) kind: Kind,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault { name, k, kind } = self;
        match kind {
            Kind::Kill => write!(f, "SIGKILL before {name} #{k}"),
            Kind::Once(errno) => write!(f, "{errno} at {name} #{k}"),
            Kind::FromHere(errno) => write!(f, "{errno} at {name} from #{k} on"),
        }
    }
}

impl Fault {
    /// The arguments for strace, up to the program.
    pub(crate) fn arguments(&self) -> Vec<String> {
        let Fault { name, k, kind } = self;
        let inject = match kind {
            Kind::Kill => format!("inject={name}:signal=KILL:when={k}"),
            Kind::Once(errno) => format!("inject={name}:error={errno}:when={k}"),
            Kind::FromHere(errno) => format!("inject={name}:error={errno}:when={k}+"),
        };
        vec!["-e".into(), format!("trace={name}"), "-e".into(), inject]
    }

    /// Whether an allocation is refused, which ends a program by a signal.
    pub(crate) fn is_allocation(&self) -> bool {
        self.kind != Kind::Kill && ["brk", "mmap", "mremap", "mprotect"].contains(&self.name.as_str())
    }
}

/// Whether the trace of a program with a fault says that it has happened.
pub(crate) fn happened(trace: &Path) -> bool {
    std::fs::read_to_string(trace).is_ok_and(|text| text.contains("(INJECTED)") || text.contains("killed by SIGKILL"))
}

/// Why strace cannot be used here, if it cannot.
pub(crate) fn missing() -> Option<String> {
    let mut strace = Command::new("strace");
    strace.args(["-o", "/dev/null", "-e", "inject=getpid:error=EIO:when=1", "true"]);
    match strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        Ok(status) => Some(format!("strace cannot trace here ({status})")),
        Err(e) => Some(format!("strace cannot be started: {e}")),
    }
}

/// A call of a program, as a trace shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// Which call of this name it is, from 1.
    pub(crate) k: usize,
    /// How many calls of this kind, on such a file, came before it: what is done again and again, as a look at every
    /// process there is, is less worth than what is done once.
    pub(crate) again: usize,
}

/// The calls in a trace that was made with `-y`, without the start of the program itself.
pub(crate) fn calls(trace: &str) -> Vec<Call> {
    let shape = Regex::new(r#"^(\w+)\((?:[^"<,]*(?:<([^>]*)>)?)?(?:[^"<]*"([^"]*)")?"#).expect("a regex");
    let digits = Regex::new(r"[0-9a-f]*[0-9][0-9a-f]*").expect("a regex");
    let (mut named, mut shaped) = (BTreeMap::new(), BTreeMap::new());
    let mut calls = Vec::new();
    for line in trace.lines() {
        let Some(found) = shape.captures(line) else { continue };
        let name = found[1].to_owned();
        let part = |i| found.get(i).map_or("", |m| m.as_str());
        // What is read or written is not what makes a call another one.
        let path =
            if name.contains("read") || name.contains("write") { part(2) } else { &[part(2), part(3)].join(" ") };
        let path = digits.replace_all(path, "N").into_owned();
        let count = |counts: &mut BTreeMap<_, usize>, key| {
            let n = counts.entry(key).or_default();
            *n += 1;
            *n
        };
        let k = count(&mut named, (name.clone(), String::new()));
        let again = count(&mut shaped, (name.clone(), path)) - 1;
        if name != "execve" {
            calls.push(Call { name, k, again });
        }
    }
    calls
}

/// What the system may answer to a call, as `once` alone and as `once` and `for good`. None for calls that cannot fail as
/// they are made, and for `close`: one that is refused by strace leaves the file open, which no system does.
pub(crate) fn errors(name: &str) -> (&'static [&'static str], &'static [&'static str]) {
    match name {
        "open" | "openat" => (&["EINTR"], &["ENOSPC", "EIO", "EACCES", "EROFS", "EMFILE", "EDQUOT"]),
        "mkdir" | "mkdirat" | "mknod" | "mknodat" | "rename" | "renameat" | "renameat2" | "link" | "linkat"
        | "symlinkat" => (&[], &["ENOSPC", "EIO", "EACCES", "EROFS", "EDQUOT"]),
        "unlink" | "unlinkat" | "rmdir" | "fchmod" | "fchmodat" | "chmod" => (&[], &["EIO", "EACCES", "EROFS"]),
        "write" | "pwrite64" | "writev" => (&["EINTR"], &["ENOSPC", "EIO", "EDQUOT"]),
        "ftruncate" => (&["EINTR"], &["EIO", "EDQUOT"]),
        "read" | "pread64" => (&["EINTR"], &["EIO"]),
        "stat" | "lstat" | "fstat" | "statx" | "newfstatat" | "access" | "faccessat" | "faccessat2" | "readlink"
        | "readlinkat" => (&[], &["EIO", "EACCES"]),
        "lseek" | "getdents64" | "ioctl" => (&[], &["EIO"]),
        "statfs" | "fstatfs" => (&[], &["EIO", "ENOSYS"]),
        "getcwd" => (&[], &["ENOENT", "EACCES"]),
        "fcntl" | "pipe" | "pipe2" | "dup" | "dup2" | "dup3" => (&[], &["EMFILE"]),
        "flock" => (&["EINTR"], &["ENOLCK", "EIO"]),
        "fsync" | "fdatasync" => (&["EINTR"], &["EIO", "ENOSPC", "EDQUOT"]),
        "clone" | "clone3" | "fork" | "vfork" => (&[], &["EAGAIN", "ENOMEM"]),
        "wait4" | "waitid" => (&["EINTR"], &["ECHILD"]),
        "poll" | "ppoll" => (&["EINTR", "ENOMEM"], &[]),
        "pidfd_open" => (&["ESRCH"], &["EMFILE", "ENOSYS"]),
        "kill" | "pidfd_send_signal" => (&["ESRCH"], &["EPERM"]),
        "prctl" => (&[], &["EINVAL"]),
        "timer_create" | "timer_settime" => (&["EAGAIN"], &[]),
        "getrandom" => (&["EINTR"], &["ENOSYS"]),
        "brk" | "mmap" | "mremap" | "mprotect" => (&[], &["ENOMEM"]),
        "prlimit64" | "sched_getaffinity" => (&[], &["EPERM"]),
        _ => (&[], &[]),
    }
}
