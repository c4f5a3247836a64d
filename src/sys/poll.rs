//! Waiting for descriptors: bells, pidfds, pipes; and those that are there from the beginning.

#![expect(unsafe_code, reason = "standard input and output are descriptors that nobody in this program opens")]

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

/// Writes all of `bytes` to a terminal in pieces that a terminal takes at once, and gives up as soon as `stop` can be read or
/// `patience` is over without a piece: a terminal whose reader has stopped takes nothing, and would hold us for ever. Returns
/// whether all was written.
pub fn write_unless(
    fd: BorrowedFd<'_>,
    mut bytes: &[u8],
    stop: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> io::Result<bool> {
    /// Less than the buffer of a terminal that has nearly nothing in it.
    const PIECE: usize = 1024;
    let mut until = super::clock::mono_ms().saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
    while !bytes.is_empty() {
        let mut polled = vec![PollFd::new(fd, PollFlags::POLLOUT)];
        polled.extend(stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
        let left = until.saturating_sub(super::clock::mono_ms());
        match poll(&mut polled, milliseconds(Duration::from_millis(left))) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = |p: &PollFd<'_>| p.revents().is_some_and(|r| !r.is_empty());
        if polled.get(1).is_some_and(ready) {
            return Ok(false);
        }
        if !ready(&polled[0]) {
            if super::clock::mono_ms() >= until {
                return Ok(false);
            }
            continue;
        }
        match nix::unistd::write(fd, &bytes[..bytes.len().min(PIECE)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(e) => return Err(e.into()),
        }
        until = super::clock::mono_ms().saturating_add(u64::try_from(patience.as_millis()).unwrap_or(u64::MAX));
    }
    Ok(true)
}

/// Standard output without the buffer of [`std::io::Stdout`], for who writes a screen in one go.
pub fn stdout() -> BorrowedFd<'static> {
    // SAFETY: the standard library makes sure at the start that descriptor 1 is open, and nothing here closes it.
    unsafe { BorrowedFd::borrow_raw(1) }
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
    fn who_reads_nothing_holds_nobody_up() {
        let (reader, writer) = std::io::pipe().unwrap();
        let (asked, mut ask) = std::io::pipe().unwrap();
        let much = vec![b'x'; 1_000_000];
        let patience = Duration::from_millis(50);
        assert!(write_unless(writer.as_fd(), b"little", None, patience).unwrap());
        assert!(!write_unless(writer.as_fd(), &much, None, patience).unwrap(), "nobody reads");
        ask.write_all(b"!").unwrap();
        assert!(!write_unless(writer.as_fd(), &much, Some(asked.as_fd()), Duration::MAX).unwrap(), "asked to stop");
        drop(reader);
        assert!(write_unless(writer.as_fd(), b"more", None, patience).is_err());
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
