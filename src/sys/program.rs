//! Running another program to its end, for the sake of what it says: bounded in time and in what is kept. At the limit it is
//! killed with all that is in its session. And becoming another program.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use super::poll;
use super::spawn::{self, Exit, TaskSpawn};
use super::tree::{self, Target};

/// The most that is kept of stdout, in bytes; a program that says more has failed.
const MAX_STDOUT: usize = 64 * 1024 * 1024;

/// What is kept of stderr, in bytes.
const MAX_STDERR: usize = 64 * 1024;

/// How long the killed may take to go.
const GONE: Duration = Duration::from_secs(2);

/// How often to look where the system cannot tell that a process has ended.
const BLIND: Duration = Duration::from_millis(10);

/// What to run.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its path.
    pub path: &'a Path,
    /// All arguments, the first (its own name) included.
    pub argv: &'a [OsString],
    /// The complete environment.
    pub env: &'a [(OsString, OsString)],
    /// Where it runs.
    pub cwd: &'a Path,
    /// What it can read on its stdin (see [`spoken`]); nothing where absent.
    pub stdin: Option<File>,
    /// Where its stdout goes instead of into memory.
    pub stdout: Option<File>,
    /// When it is killed.
    pub until: Instant,
    /// It is killed, too, as soon as this can be read.
    pub stop: Option<BorrowedFd<'a>>,
}

/// How it ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    /// How it ended.
    pub exit: Exit,
    /// Its stdout, unless that went to a file.
    pub stdout: Vec<u8>,
    /// The beginning of its stderr.
    pub stderr: String,
}

/// Becomes another program, found as a shell finds it: the process stays the same, with its descriptors and its folder.
/// Returns only where that failed. `env` is set beside what there is.
pub fn turn_into(argv: &[OsString], env: &[(&str, String)]) -> io::Error {
    use std::os::unix::process::CommandExt;
    let Some((name, rest)) = argv.split_first() else {
        return io::Error::new(io::ErrorKind::InvalidInput, "no command");
    };
    std::process::Command::new(name).args(rest).envs(env.iter().map(|(key, value)| (key, value))).exec()
}

/// A stdin on which these bytes can be read. They have to fit into a pipe, which holds 64 KiB on Linux.
pub fn spoken(bytes: &[u8]) -> io::Result<File> {
    use std::io::Write as _;
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(bytes)?;
    Ok(File::from(OwnedFd::from(reader)))
}

/// Runs it. The error says, for people, why there is no answer. What it leaves running in the background is not waited for.
pub fn run(program: Program<'_>) -> Result<Ran, String> {
    let Program { path, argv, env, cwd, stdin, stdout, until, stop } = program;
    let failed = |e: io::Error| format!("{}: not started: {e}", path.display());
    let (out, out_end) = io::pipe().map_err(failed)?;
    let (err, err_end) = io::pipe().map_err(failed)?;
    let stdout = stdout.unwrap_or_else(|| File::from(OwnedFd::from(out_end)));
    let stderr = File::from(OwnedFd::from(err_end));
    let spawned = TaskSpawn { program: path, argv, env, cwd, stdin, stdout, stderr };
    let mut task = spawn::spawn_task(spawned).map_err(|e| e.reason)?;
    let told = listen(&mut task, [out.into(), err.into()], until, stop);
    if told.is_err() {
        tree::kill_now(&Target::new(Some(task.process().clone()), &[]), GONE);
        let end = Instant::now() + GONE;
        while matches!(task.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(BLIND);
        }
    }
    let (exit, [stdout, stderr]) = told.map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Ran { exit, stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() })
}

fn listen(
    task: &mut spawn::Task,
    pipes: [OwnedFd; 2],
    until: Instant,
    stop: Option<BorrowedFd<'_>>,
) -> Result<(Exit, [Vec<u8>; 2]), String> {
    let mut open = pipes.map(Some);
    let mut said = [Vec::new(), Vec::new()];
    let mut room = vec![0_u8; 64 * 1024];
    let mut exit = None;
    loop {
        if exit.is_none() {
            exit = task.try_wait().map_err(|e| format!("its end was missed: {e}"))?;
        }
        let left = until.saturating_duration_since(Instant::now());
        if exit.is_none() && left.is_zero() {
            return Err("took too long and was killed".into());
        }
        let ready = {
            let mut fds: Vec<BorrowedFd<'_>> = open.iter().flatten().map(AsFd::as_fd).collect();
            fds.extend(stop);
            fds.extend(task.pidfd().filter(|_| exit.is_none()));
            let blind = exit.is_none() && task.pidfd().is_none();
            let pause = if exit.is_some() { Duration::ZERO } else { left };
            poll::wait(&fds, Some(if blind { pause.min(BLIND) } else { pause })).map_err(|e| e.to_string())?
        };
        let mut heard = false;
        let mut ready = ready.into_iter();
        for (i, pipe) in open.iter_mut().enumerate() {
            let Some(fd) = pipe else { continue };
            if !ready.next().unwrap_or(false) {
                continue;
            }
            let n = poll::read(fd.as_fd(), &mut room).map_err(|e| e.to_string())?;
            heard |= n > 0;
            if n == 0 {
                *pipe = None;
            }
            let most = if i == 0 { MAX_STDOUT } else { MAX_STDERR };
            let fits = n.min(most - said[i].len());
            said[i].extend_from_slice(&room[..fits]);
            if i == 0 && fits < n {
                return Err(format!("said more than {MAX_STDOUT} bytes"));
            }
        }
        if exit.is_none() && stop.is_some() && ready.next().unwrap_or(false) {
            return Err("was stopped".into());
        }
        // Who still holds a pipe when it has ended is somebody that it left in the background.
        if let Some(exit) = exit
            && !heard
        {
            return Ok((exit, said));
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    fn sh_with(
        script: &str,
        limit: Duration,
        stdin: Option<File>,
        stop: Option<BorrowedFd<'_>>,
    ) -> Result<Ran, String> {
        let argv: Vec<OsString> = ["sh", "-c", script].map(OsString::from).to_vec();
        let env = [(OsString::from("PATH"), std::env::var_os("PATH").unwrap_or_default())];
        let until = Instant::now() + limit;
        let cwd = Path::new("/");
        run(Program { path: Path::new("/bin/sh"), argv: &argv, env: &env, cwd, stdin, stdout: None, until, stop })
    }

    fn sh(script: &str, limit: Duration) -> Result<Ran, String> {
        sh_with(script, limit, None, None)
    }

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn what_it_says_and_how_it_ends_is_told() {
        let ran = sh("printf '%0200000d' 7; echo no >&2; exit 3", LONG).unwrap();
        assert_eq!((ran.exit, ran.stdout.len(), ran.stderr.as_str()), (Exit::Code(3), 200_000, "no\n"));
        let ran = sh("kill -9 $$", LONG).unwrap();
        assert_eq!(ran.exit, Exit::Signal(9));
        assert!(sh("yes", LONG).unwrap_err().contains("said more than"));
    }

    #[test]
    fn it_hears_what_is_said_and_then_the_end() {
        let ran = sh_with("cat", LONG, Some(spoken(b"hear hear").unwrap()), None).unwrap();
        assert_eq!((ran.exit, ran.stdout.as_slice()), (Exit::Code(0), &b"hear hear"[..]));
    }

    #[test]
    fn who_is_stopped_is_killed_at_once() {
        let (reader, mut writer) = io::pipe().unwrap();
        let begun = Instant::now();
        std::io::Write::write_all(&mut writer, b"!").unwrap();
        let said = sh_with("sleep 1000", LONG, None, Some(reader.as_fd()));
        assert!(said.unwrap_err().contains("was stopped") && begun.elapsed() < LONG);
    }

    #[test]
    fn who_does_not_end_is_killed_with_all_in_its_session() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        assert!(sh(&script, Duration::from_secs(5)).unwrap_err().contains("took too long"));
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let stat = super::super::process::Stat::of(pid);
        assert!(stat.is_none_or(|s| s.is_zombie()), "the child lives on");
    }

    #[test]
    fn a_background_child_that_holds_its_output_is_not_waited_for() {
        let ran = sh("sleep 300 & echo $!", LONG).unwrap();
        let pid: i32 = String::from_utf8(ran.stdout).unwrap().trim().parse().unwrap();
        let child = super::super::process::identity_of(pid).unwrap();
        super::super::process::signal(&child, super::super::process::Signal::SIGKILL).unwrap();
    }
}
