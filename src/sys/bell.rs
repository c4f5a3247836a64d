//! Bells: a FIFO for every waiter, rung to wake it. A bell carries no data; whoever wakes looks at the log. A lost ring
//! costs one safety look, a doubled one costs a look too many.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::unistd::{geteuid, linkat, read, write};

use super::clock::mono_ms;
use super::dir::{Dir, component};

/// The bell of this process, hung in a folder; taken down when dropped.
#[derive(Debug)]
pub struct Bell {
    fifo: OwnedFd,
    dir: Dir,
    name: OsString,
}

impl Bell {
    /// Hangs a bell `<pid>.<n>` in `dir`. From its first moment under that name it has a listener: it is made and opened
    /// under a hidden name first, because a ringer sweeps bells that nobody listens to.
    pub fn hang(dir: &Dir) -> io::Result<Bell> {
        let pid = std::process::id();
        // Starting from the clock makes a name that a sweeper is about to remove unlikely to come back.
        let first = mono_ms();
        for n in first..first.saturating_add(1000) {
            let name = OsString::from(format!("{pid}.{n}"));
            let hidden = OsString::from(format!(".{pid}.{n}"));
            match make(dir, &hidden) {
                Err(Errno::EEXIST) => continue,
                made => made.map_err(|e| failed(dir, &hidden, e))?,
            }
            let hung = open_and_link(dir, &hidden, &name);
            dir.remove(&hidden)?;
            match hung {
                Ok(fifo) => return Ok(Bell { fifo, dir: dir.try_clone()?, name }),
                Err(Errno::EEXIST) => {}
                Err(e) => return Err(failed(dir, &name, e)),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{}: no free name for a bell of process {pid}; remove old ones", dir.path().display()),
        ))
    }

    /// Readable while it was rung and not yet drained.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }

    /// Its name in the folder.
    pub fn name(&self) -> &OsStr {
        &self.name
    }

    /// Takes all rings off it. To be called before looking at the log, so that a ring during the look is not lost.
    pub fn drain(&self) {
        let mut buffer = [0u8; 4096];
        // Bounded, so that somebody who rings without pause cannot hold us here.
        for _ in 0..64 {
            match read(&self.fifo, &mut buffer) {
                Ok(n) if n == buffer.len() => {}
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return,
            }
        }
    }
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
    let fifo = openat(dir, hidden, flags, Mode::empty())?;
    linkat(dir, hidden, dir, name, AtFlags::empty())?;
    Ok(fifo)
}

fn failed(dir: &Dir, name: &OsStr, e: Errno) -> io::Error {
    io::Error::new(io::Error::from(e).kind(), format!("{}: {}", dir.path().join(name).display(), e.desc()))
}

impl Drop for Bell {
    fn drop(&mut self) {
        // If it cannot be taken down, the next ringer sweeps it.
        drop(self.dir.remove(&self.name));
    }
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

/// Rings every bell in the folder and sweeps those that nobody listens to. Returns how many were heard. One that cannot be
/// rung does not keep the others from ringing; its error is returned at the end.
pub fn ring_all(dir: &Dir) -> io::Result<usize> {
    let mut heard = 0;
    let mut first_error = None;
    for name in dir.names()? {
        // Hidden ones are being hung, and look at the log before they wait.
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        match ring(dir, &name) {
            Ok(true) => heard += 1,
            Ok(false) => {}
            Err(e) => first_error = first_error.or(Some(e)),
        }
    }
    first_error.map_or(Ok(heard), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::poll::wait;
    use crate::sys::testing::LONG;
    use std::time::Duration;

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        (temp, dir)
    }

    fn rings(bell: &Bell) -> bool {
        wait(&[bell.fd()], Some(Duration::ZERO)).unwrap()[0]
    }

    #[test]
    fn ringing_wakes_a_poll_until_it_is_drained() {
        let (temp, dir) = folder();
        let (one, two) = (Bell::hang(&dir).unwrap(), Bell::hang(&dir).unwrap());
        assert!(!rings(&one) && !rings(&two));
        let woken = std::thread::scope(|scope| {
            scope.spawn(|| assert_eq!(ring_all(&Dir::open(temp.path()).unwrap()).unwrap(), 2));
            wait(&[one.fd()], Some(LONG)).unwrap()
        });
        assert_eq!(woken, [true]);
        assert!(rings(&one) && rings(&two));
        one.drain();
        assert!(!rings(&one) && rings(&two));
        assert!(ring(&dir, one.name()).unwrap() && rings(&one));
    }

    #[test]
    fn a_bell_is_taken_down_with_its_owner() {
        let (_temp, dir) = folder();
        let bell = Bell::hang(&dir).unwrap();
        assert_eq!(dir.names().unwrap(), [bell.name()], "nothing but the bell");
        drop(bell);
        assert!(dir.names().unwrap().is_empty());
    }

    #[test]
    fn bells_without_a_listener_are_swept_and_the_others_ring() {
        let (temp, dir) = folder();
        nix::unistd::mkfifo(&temp.path().join("1.1"), Mode::S_IRWXU).unwrap();
        let bell = Bell::hang(&dir).unwrap();
        assert_eq!(ring_all(&dir).unwrap(), 1);
        assert!(rings(&bell));
        assert_eq!(dir.names().unwrap(), [bell.name()]);
        assert!(!ring(&dir, "1.1").unwrap(), "there is no such bell any more");
    }

    #[test]
    fn a_full_bell_counts_as_rung_and_drains_whole() {
        let (_temp, dir) = folder();
        let bell = Bell::hang(&dir).unwrap();
        for _ in 0..70_000 {
            assert!(ring(&dir, bell.name()).unwrap());
        }
        bell.drain();
        assert!(!rings(&bell));
    }

    #[test]
    fn what_is_no_bell_is_not_written_to() {
        let (temp, dir) = folder();
        std::fs::write(temp.path().join("1.file"), "text").unwrap();
        std::os::unix::fs::symlink("1.file", temp.path().join("2.link")).unwrap();
        let bell = Bell::hang(&dir).unwrap();
        assert!(ring_all(&dir).is_err());
        assert!(rings(&bell), "one bad entry kept a bell from ringing");
        assert_eq!(std::fs::read(temp.path().join("1.file")).unwrap(), b"text");
    }
}
