//! Bells: a FIFO for every waiter, rung to wake it. A bell carries no data; whoever wakes looks at the log. A lost ring
//! costs one safety look, a doubled one costs a look too many.
//!
//! Its name is `<pid>.<n>.<concern>`, so that a ringer sees from the list of the folder whom to wake and opens nobody
//! else's. What a concern means is the caller's business.
//!
//! Where a file system has no FIFOs (or is full, or read-only), a bell is mute: waiting then looks at the length of the file
//! that everybody writes to, first every 10 ms, then less and less often.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{geteuid, linkat, read, write};

use super::clock::mono_ms;
use super::dir::{Dir, component};
use super::poll;
use super::process::Stat;

/// Between two looks of a mute bell, at first and at most.
const FIRST_LOOK: Duration = Duration::from_millis(10);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// How many entries of a folder of bells are looked at: more is no folder of bells, and who is not rung looks by itself.
pub const MOST: usize = 4096;

/// The bell of this process, hung in a folder; taken down when dropped.
#[derive(Debug)]
pub struct Bell {
    means: Means,
}

#[derive(Debug)]
enum Means {
    Fifo { fifo: OwnedFd, dir: Dir, name: OsString },
    Look { file: File, seen: Cell<u64>, pause: Cell<Duration> },
}

impl Bell {
    /// Hangs a bell for `concern` in `dir`. From its first moment under its name it has a listener: it is made and opened
    /// under a hidden name first, because a ringer sweeps bells that nobody listens to.
    ///
    /// Where there can be no FIFO, `file` gives what to look at instead.
    pub fn hang(dir: &Dir, concern: &str, file: impl FnOnce() -> io::Result<File>) -> io::Result<Bell> {
        match hang(dir, concern) {
            Ok((fifo, name)) => Ok(Bell { means: Means::Fifo { fifo, dir: dir.try_clone()?, name } }),
            Err((_, errno)) if has_no_fifos(errno) => {
                let file = file()?;
                let seen = Cell::new(file.metadata()?.len());
                Ok(Bell { means: Means::Look { file, seen, pause: Cell::new(FIRST_LOOK) } })
            }
            Err((name, errno)) => Err(failed(dir, &name, errno)),
        }
    }

    /// Its name in the folder, if it has one.
    pub fn name(&self) -> Option<&OsStr> {
        match &self.means {
            Means::Fifo { name, .. } => Some(name),
            Means::Look { .. } => None,
        }
    }

    /// Takes all rings off it. To be called before looking at the log, so that a ring during the look is not lost.
    pub fn drain(&self) {
        match &self.means {
            Means::Fifo { fifo, .. } => drain(fifo),
            Means::Look { file, seen, pause } => {
                let length = length(file);
                if length != seen.replace(length) {
                    pause.set(FIRST_LOOK);
                }
            }
        }
    }

    fn fifo(&self) -> Option<BorrowedFd<'_>> {
        match &self.means {
            Means::Fifo { fifo, .. } => Some(fifo.as_fd()),
            Means::Look { .. } => None,
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        if let Means::Fifo { dir, name, .. } = &self.means {
            // If it cannot be taken down, the next ringer sweeps it.
            drop(dir.remove(name));
        }
    }
}

/// Waits until one of `bells` was rung or one of `fds` can be read, at most `timeout`. Returns for each of `fds` whether it
/// is ready. As with [`poll::wait`], a signal may end it early.
pub fn wait(bells: &[&Bell], fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<Vec<bool>> {
    let mut all: Vec<BorrowedFd<'_>> = bells.iter().filter_map(|bell| bell.fifo()).collect();
    let first = all.len();
    all.extend(fds);
    let end = mono_ms().saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    loop {
        let mut left = timeout.min(Duration::from_millis(end.saturating_sub(mono_ms())));
        let mut looks = false;
        for bell in bells {
            if let Means::Look { file, seen, pause } = &bell.means {
                if length(file) != seen.get() {
                    left = Duration::ZERO;
                }
                left = left.min(pause.get());
                pause.set(pause.get().saturating_mul(2).min(LAST_LOOK));
                looks = true;
            }
        }
        let ready = poll::wait(&all, Some(left))?;
        if !looks || left.is_zero() || ready.contains(&true) {
            return Ok(ready[first..].to_vec());
        }
    }
}

/// Whether waiters in this folder are woken. Otherwise they look again and again.
pub fn works(dir: &Dir) -> bool {
    match hang(dir, "probe") {
        Ok((_, name)) => dir.remove(name).is_ok(),
        Err(_) => false,
    }
}

/// What a file system says that has no FIFOs or no room for one, or cannot give one a second name.
fn has_no_fifos(errno: Errno) -> bool {
    use Errno::{EDQUOT, EMLINK, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EROFS};
    matches!(errno, EPERM | EOPNOTSUPP | ENOSYS | EROFS | ENOSPC | EDQUOT | EMLINK)
}

/// Zero for a file that cannot be looked at any more: whoever waits shall find out why.
fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |m| m.len())
}

fn drain(fifo: &OwnedFd) {
    let mut buffer = [0u8; 4096];
    // Bounded, so that somebody who rings without pause cannot hold us here.
    for _ in 0..64 {
        match read(fifo, &mut buffer) {
            Ok(n) if n == buffer.len() => {}
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

fn hang(dir: &Dir, concern: &str) -> Result<(OwnedFd, OsString), (OsString, Errno)> {
    let pid = std::process::id();
    // Starting from the clock makes a name that a sweeper is about to remove unlikely to come back.
    let first = mono_ms();
    for n in first..first.saturating_add(1000) {
        let name = OsString::from(format!("{pid}.{n}.{concern}"));
        let hidden = OsString::from(format!(".{pid}.{n}"));
        match make(dir, &hidden) {
            Err(Errno::EEXIST) => continue,
            made => made.map_err(|e| (hidden.clone(), e))?,
        }
        let hung = open_and_link(dir, &hidden, &name);
        // The hidden name is nobody's bell; should it stay, it is in nobody's way.
        drop(dir.remove(&hidden));
        match hung {
            Ok(fifo) => return Ok((fifo, name)),
            Err(Errno::EEXIST) => {}
            Err(e) => return Err((name, e)),
        }
    }
    Err((OsString::from(format!("{pid}")), Errno::EEXIST))
}

/// Who hung a bell and for what, from its name. `None`: it is no bell, or one that is only being hung; who hangs it looks at
/// the log before waiting.
pub fn parts(name: &OsStr) -> Option<(i32, &str)> {
    let mut parts = name.to_str()?.splitn(3, '.');
    let pid = parts.next()?.parse().ok()?;
    parts.next()?.parse::<u64>().ok()?;
    Some((pid, parts.next().unwrap_or_default()))
}

/// Whether the process that hung a bell is stopped: it is rung, but may not hear it for long.
pub fn is_stopped(pid: i32) -> bool {
    Stat::of(pid).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
}

#[cfg(not(target_os = "macos"))]
fn make(dir: &Dir, name: &OsStr) -> Result<(), Errno> {
    nix::unistd::mkfifoat(dir, name, Mode::S_IRUSR | Mode::S_IWUSR)
}

/// By path: older releases of macOS have no `mkfifoat`.
#[cfg(target_os = "macos")]
fn make(dir: &Dir, name: &OsStr) -> Result<(), Errno> {
    nix::unistd::mkfifo(&dir.path().join(name), Mode::S_IRUSR | Mode::S_IWUSR)
}

/// Both ends are opened, so that the FIFO never reports its end when a ringer leaves.
fn open_and_link(dir: &Dir, hidden: &OsStr, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let open = || openat(dir, hidden, flags, Mode::empty());
    let fifo = match open() {
        // A umask can take away even the owner's rights.
        Err(Errno::EACCES) => {
            dir.set_mode(hidden, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|_| Errno::EACCES)?;
            open()?
        }
        other => other?,
    };
    linkat(dir, hidden, dir, name, AtFlags::empty())?;
    Ok(fifo)
}

fn failed(dir: &Dir, name: &OsStr, e: Errno) -> io::Error {
    io::Error::new(io::Error::from(e).kind(), format!("{}: {}", dir.path().join(name).display(), e.desc()))
}

/// Rings one bell. `false`: nobody listens, and the bell was taken down, or there is none.
pub fn ring(dir: &Dir, name: impl AsRef<OsStr>) -> io::Result<bool> {
    let name = component(name.as_ref())?;
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    let fifo = match openat(dir, name, flags, Mode::empty()) {
        Ok(fifo) => fifo,
        // No reader has it open: whoever hung it is dead.
        Err(Errno::ENXIO) => {
            dir.remove(name)?;
            return Ok(false);
        }
        Err(Errno::ENOENT) => return Ok(false),
        Err(e) => return Err(failed(dir, name, e)),
    };
    let stat = fstat(&fifo).map_err(|e| failed(dir, name, e))?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFIFO || stat.st_uid != geteuid().as_raw() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{}: not a bell of yours; remove it", dir.path().join(name).display()),
        ));
    }
    match write(&fifo, b"!") {
        // Full: so many rings are pending that one more changes nothing.
        Ok(_) | Err(Errno::EAGAIN) => Ok(true),
        // The listener left between our open and our write.
        Err(Errno::EPIPE) => Ok(false),
        Err(e) => Err(failed(dir, name, e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::LONG;

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        (temp, dir)
    }

    fn hung(dir: &Dir, concern: &str) -> Bell {
        Bell::hang(dir, concern, || panic!("there are FIFOs here")).unwrap()
    }

    fn name(bell: &Bell) -> &OsStr {
        bell.name().unwrap()
    }

    fn rings(bell: &Bell) -> bool {
        poll::wait(&[bell.fifo().unwrap()], Some(Duration::ZERO)).unwrap()[0]
    }

    #[test]
    fn ringing_wakes_who_waits_until_it_is_drained_and_nobody_else() {
        let (temp, dir) = folder();
        let (one, two) = (hung(&dir, "x"), hung(&dir, "x"));
        assert!(!rings(&one) && !rings(&two));
        std::thread::scope(|scope| {
            let (path, name) = (temp.path(), name(&one));
            scope.spawn(move || assert!(ring(&Dir::open(path).unwrap(), name).unwrap()));
            wait(&[&one, &two], &[], LONG).unwrap();
        });
        assert!(rings(&one) && !rings(&two));
        one.drain();
        assert!(!rings(&one));
        assert!(ring(&dir, name(&two)).unwrap());
        assert!(rings(&two) && !rings(&one));
    }

    #[test]
    fn its_name_says_who_hung_it_and_for_what_and_goes_with_its_owner() {
        let (_temp, dir) = folder();
        let bell = hung(&dir, "task-a.b");
        assert_eq!(dir.names().unwrap(), [name(&bell)], "nothing but the bell");
        assert_eq!(parts(name(&bell)), Some((i32::try_from(std::process::id()).unwrap(), "task-a.b")));
        drop(bell);
        assert!(dir.names().unwrap().is_empty());
        // An older cpw names none: it wants to hear everything.
        assert_eq!(parts(OsStr::new("17.4")), Some((17, "")));
        for no_bell in [".17.4", "17", "x.4.all", "17.x.all", "README"] {
            assert_eq!(parts(OsStr::new(no_bell)), None, "{no_bell}");
        }
    }

    #[test]
    fn a_bell_without_a_listener_is_swept() {
        let (temp, dir) = folder();
        nix::unistd::mkfifo(&temp.path().join("1.1.all"), Mode::S_IRWXU).unwrap();
        assert!(!ring(&dir, "1.1.all").unwrap());
        assert!(dir.names().unwrap().is_empty());
        assert!(!ring(&dir, "1.1.all").unwrap(), "there is no such bell any more");
    }

    #[test]
    fn a_full_bell_counts_as_rung_and_drains_whole() {
        let (_temp, dir) = folder();
        let bell = hung(&dir, "x");
        for _ in 0..70_000 {
            assert!(ring(&dir, name(&bell)).unwrap());
        }
        bell.drain();
        assert!(!rings(&bell));
    }

    #[test]
    fn what_is_no_bell_is_not_written_to() {
        let (temp, dir) = folder();
        std::fs::write(temp.path().join("1.1.file"), "text").unwrap();
        std::os::unix::fs::symlink("1.1.file", temp.path().join("1.2.link")).unwrap();
        assert!(ring(&dir, "1.1.file").is_err() && ring(&dir, "1.2.link").is_err());
        assert_eq!(std::fs::read(temp.path().join("1.1.file")).unwrap(), b"text");
    }

    #[test]
    fn which_refusals_mean_that_there_can_be_no_bell() {
        for errno in [Errno::EPERM, Errno::EOPNOTSUPP, Errno::ENOSYS, Errno::EROFS, Errno::ENOSPC, Errno::EDQUOT] {
            assert!(has_no_fifos(errno), "{errno}");
        }
        // These are faults, and waiting in silence would hide them.
        for errno in [Errno::ENOENT, Errno::EACCES, Errno::EMFILE, Errno::ENOTDIR, Errno::EIO] {
            assert!(!has_no_fifos(errno), "{errno}");
        }
    }

    fn mute(path: &std::path::Path) -> Bell {
        let file = File::open(path).unwrap();
        let seen = Cell::new(length(&file));
        Bell { means: Means::Look { file, seen, pause: Cell::new(FIRST_LOOK) } }
    }

    #[test]
    fn a_mute_bell_notices_by_looking_and_looks_less_and_less_often() {
        let (temp, _dir) = folder();
        let path = temp.path().join("log");
        std::fs::write(&path, "one\n").unwrap();
        let bell = mute(&path);
        let pause = |bell: &Bell| match &bell.means {
            Means::Look { pause, .. } => pause.get(),
            Means::Fifo { .. } => unreachable!(),
        };
        let (begun, limit) = (mono_ms(), Duration::from_millis(100));
        wait(&[&bell], &[], limit).unwrap();
        assert!(mono_ms() - begun >= 100, "nothing has happened");
        assert!(pause(&bell) >= FIRST_LOOK * 8, "{:?}", pause(&bell));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
                std::io::Write::write_all(&mut file, b"two\n").unwrap();
            });
            let begun = mono_ms();
            wait(&[&bell], &[], LONG).unwrap();
            assert!(mono_ms() - begun < 20_000, "it was not noticed");
        });
        bell.drain();
        assert_eq!(pause(&bell), FIRST_LOOK, "something happens here, so that it is looked at often again");
        for _ in 0..20 {
            wait(&[&bell], &[], Duration::ZERO).unwrap();
        }
        assert_eq!(pause(&bell), LAST_LOOK);
    }

    #[test]
    fn a_mute_bell_lets_other_descriptors_through_and_needs_no_log_to_stay() {
        let (temp, _dir) = folder();
        let path = temp.path().join("log");
        std::fs::write(&path, "").unwrap();
        let bell = mute(&path);
        let (ended, other_end) = std::io::pipe().unwrap();
        drop(other_end);
        assert_eq!(wait(&[&bell], &[ended.as_fd()], LONG).unwrap(), [true]);
    }
}
