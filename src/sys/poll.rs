//! Waiting for descriptors: bells, pidfds, pipes; and the one that is there from the beginning.

#![expect(unsafe_code, reason = "standard input is a descriptor that nobody in this program opens")]

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Standard input without the buffer of [`std::io::Stdin`], for whoever reads it in pieces of their own.
pub fn stdin() -> BorrowedFd<'static> {
    // SAFETY: the standard library makes sure at the start that descriptor 0 is open, and nothing here closes it.
    unsafe { BorrowedFd::borrow_raw(0) }
}

/// Reads what is there, into as much room as there is; 0 at the end.
pub fn read(fd: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
    Ok(nix::unistd::read(fd, room)?)
}

/// Waits until one of `fds` can be read (or is at its end or broken), at most `timeout`; `None` waits for ever. Returns
/// for each whether it is ready. A signal ends the wait early with nothing ready: the caller loops with its own deadline.
pub fn wait(fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut polled, timeout.map_or(PollTimeout::NONE, milliseconds)) {
        Ok(_) => Ok(polled.iter().map(|p| p.revents().is_none_or(|r| !r.is_empty())).collect()),
        Err(Errno::EINTR) => Ok(vec![false; fds.len()]),
        Err(e) => Err(e.into()),
    }
}

/// Rounded up: rounding down would turn the last fraction of a millisecond into a busy loop.
fn milliseconds(d: Duration) -> PollTimeout {
    PollTimeout::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::Instant;

    #[test]
    fn tells_which_descriptor_is_ready() {
        let (quiet, _keep) = std::io::pipe().unwrap();
        let (loud, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"x").unwrap();
        assert_eq!(wait(&[quiet.as_fd(), loud.as_fd()], None).unwrap(), [false, true]);
        drop(writer);
        let (ended, other_end) = std::io::pipe().unwrap();
        drop(other_end);
        assert_eq!(wait(&[ended.as_fd()], None).unwrap(), [true], "an end of file is news");
    }

    #[test]
    fn a_short_timeout_is_waited_for_in_full() {
        let (quiet, _keep) = std::io::pipe().unwrap();
        let start = Instant::now();
        assert_eq!(wait(&[quiet.as_fd()], Some(Duration::from_micros(1500))).unwrap(), [false]);
        assert!(start.elapsed() >= Duration::from_micros(1500));
    }

    #[test]
    fn a_timeout_beyond_what_poll_takes_is_cut() {
        assert_eq!(milliseconds(Duration::MAX), PollTimeout::MAX);
        assert_eq!(milliseconds(Duration::ZERO), PollTimeout::ZERO);
    }
}
