//! Signals to ourselves: the hook's own deadline, orderly termination, and signals that are not for us.

#![expect(unsafe_code, reason = "signal handlers are installed, and one of them ends the process")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{SigHandler, Signal, signal};

use super::timer::{Timer, Whom, install};

/// The deadline's signal: not SIGALRM, which interrupts waiting for locks. `ITIMER_REAL` knows no other.
const DEADLINE: Signal = if cfg!(target_os = "linux") { Signal::SIGVTALRM } else { Signal::SIGALRM };

/// A time after which the process ends by itself with exit code 0, whatever it is doing.
#[derive(Debug)]
#[must_use = "dropping it cancels the deadline"]
pub struct Deadline(Timer);

/// Ends this process with exit code 0 after `d`, without any clean-up: for hooks, whose refusal no longer counts after
/// the client's time limit and which must never hold the client.
pub fn hook_deadline(d: Duration) -> io::Result<Deadline> {
    extern "C" fn leave(_: i32) {
        // SAFETY: `_exit` is async-signal-safe and does not return.
        unsafe { libc::_exit(0) }
    }
    // SAFETY: the handler calls nothing but `_exit`.
    unsafe { install(DEADLINE, leave, true) }?;
    let timer = Timer::new(DEADLINE, Whom::Process)?;
    timer.arm(d, Duration::ZERO)?;
    Ok(Deadline(timer))
}

impl Deadline {
    /// Sets it anew: `d` from now.
    pub fn extend(&self, d: Duration) -> io::Result<()> {
        self.0.arm(d, Duration::ZERO)
    }

    /// Takes it away; so does dropping it.
    pub fn cancel(self) {
        drop(self);
    }
}

/// What the handlers need: they may touch nothing but these three.
static LAST: AtomicI32 = AtomicI32::new(0);
static WAKE: AtomicI32 = AtomicI32::new(-1);
/// Signals of [`catch_screen`], a bit for each: none of them may hide one that ends the process.
static SCREEN: AtomicU64 = AtomicU64::new(0);

/// Makes the descriptor of [`Termination`] readable. For handlers.
fn wake() {
    let saved = Errno::last_raw();
    let fd = WAKE.load(Ordering::SeqCst);
    // SAFETY: `write` is async-signal-safe; the descriptor is never closed once it is stored. A full pipe is fine:
    // it wakes as well as one byte more.
    unsafe { libc::write(fd, c"!".as_ptr().cast(), 1) };
    Errno::set_raw(saved);
}

/// Signals that ask this process to end, as a flag and a descriptor for the poll loop.
#[derive(Debug)]
pub struct Termination(&'static OwnedFd);

/// From now on `signals` do not end the process but are noted and wake the poll loop.
pub fn catch_signals(signals: &[Signal]) -> io::Result<Termination> {
    extern "C" fn note(number: i32) {
        LAST.store(number, Ordering::SeqCst);
        wake();
    }
    static PIPE: OnceLock<(OwnedFd, OwnedFd)> = OnceLock::new();
    if PIPE.get().is_none() {
        let (reader, writer) = std::io::pipe()?;
        let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
        for end in [&reader, &writer] {
            nix::fcntl::fcntl(end, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        }
        // If another call was faster, ours is closed again.
        drop(PIPE.set((reader, writer)));
    }
    let Some((reader, writer)) = PIPE.get() else { return Err(io::Error::other("no pipe for signals")) };
    WAKE.store(writer.as_raw_fd(), Ordering::SeqCst);
    for s in signals {
        // SAFETY: the handler stores a number and writes to a pipe, both allowed in handlers, and restores errno.
        unsafe { install(*s, note, true) }?;
    }
    Ok(Termination(reader))
}

/// As [`catch_signals`] for SIGTERM, SIGINT and SIGHUP.
pub fn catch_termination() -> io::Result<Termination> {
    catch_signals(&[Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

impl Termination {
    /// Readable from a signal until [`take`](Self::take).
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The number of the last signal since the last call.
    pub fn take(&self) -> Option<i32> {
        let mut buffer = [0u8; 64];
        loop {
            match nix::unistd::read(self.0, &mut buffer) {
                Ok(n) if n == buffer.len() => {}
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => break,
            }
        }
        // After the pipe is empty: a signal in between leaves a byte there and is seen next time at the latest.
        let number = LAST.swap(0, Ordering::SeqCst);
        (number != 0).then_some(number)
    }
}

/// What happened to the terminal of a program that fills its screen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Screen {
    /// Somebody asks the process to stop for a while (SIGTSTP).
    pub stop: bool,
    /// It goes on after it was stopped.
    pub continued: bool,
}

/// From now on a change of the terminal's size, and being stopped and continued, wake the poll loop of `termination` too.
pub fn catch_screen(_termination: &Termination) -> io::Result<()> {
    [Signal::SIGWINCH, Signal::SIGTSTP, Signal::SIGCONT].into_iter().try_for_each(catch_one_of_screen)
}

fn catch_one_of_screen(signal: Signal) -> io::Result<()> {
    extern "C" fn note(number: i32) {
        SCREEN.fetch_or(1 << (number & 63), Ordering::SeqCst);
        wake();
    }
    // SAFETY: the handler sets a bit and writes to a pipe, both allowed in handlers, and restores errno.
    unsafe { install(signal, note, true) }
}

impl Screen {
    /// What has happened since the last call. To be called behind [`Termination::take`].
    pub fn take() -> Screen {
        let seen = SCREEN.swap(0, Ordering::SeqCst);
        let has = |signal: Signal| seen & (1 << (signal as i32 & 63)) != 0;
        Screen { stop: has(Signal::SIGTSTP), continued: has(Signal::SIGCONT) }
    }
}

/// Stops this process and its group, as the terminal's key for it does, until somebody lets them go on. Does nothing where
/// nobody could: the kernel knows.
pub fn stop() -> io::Result<()> {
    // SAFETY: no handler is installed.
    let _old = unsafe { signal(Signal::SIGTSTP, SigHandler::SigDfl) }?;
    let stopped = nix::sys::signal::kill(nix::unistd::Pid::from_raw(0), Signal::SIGTSTP);
    catch_one_of_screen(Signal::SIGTSTP)?;
    Ok(stopped?)
}

/// Ignores `signals`. What is started by `sys::spawn` does not inherit that.
pub fn ignore(signals: &[Signal]) -> io::Result<()> {
    for s in signals {
        // SAFETY: no handler is installed.
        let _old = unsafe { signal(*s, SigHandler::SigIgn) }?;
    }
    Ok(())
}

/// Ignores what would kill a writer instead of giving it an error: SIGPIPE (the reader is gone) and SIGXFSZ (the file would
/// be longer than allowed).
pub fn ignore_write_signals() -> io::Result<()> {
    ignore(&[Signal::SIGPIPE, Signal::SIGXFSZ])
}

/// Gives SIGCHLD its default: where a parent left it ignored, exit codes of our children would be lost.
pub(super) fn keep_exit_codes() -> io::Result<()> {
    // SAFETY: no handler is installed.
    let _old = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    Ok(())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::sys::poll::wait;
    use crate::sys::testing::{Helper, LONG, again, role};
    use std::time::Instant;

    const SHORT: Duration = Duration::from_millis(50);

    fn run_again(test: &str, role: &str) -> (String, Option<i32>, Duration) {
        let start = Instant::now();
        let (output, status) = Helper::start(&mut again(test, role)).finish();
        (output, status.code(), start.elapsed())
    }

    #[test]
    fn a_change_of_the_screen_wakes_and_hides_no_wish_to_end() {
        const TEST: &str = "sys::signals::tests::a_change_of_the_screen_wakes_and_hides_no_wish_to_end";
        if role().is_some() {
            use nix::sys::signal::raise;
            let termination = catch_termination().unwrap();
            catch_screen(&termination).unwrap();
            raise(Signal::SIGWINCH).unwrap();
            assert_eq!(wait(&[termination.fd()], Some(LONG)).unwrap(), [true]);
            assert_eq!((termination.take(), Screen::take()), (None, Screen::default()));
            for signal in [Signal::SIGTERM, Signal::SIGTSTP, Signal::SIGCONT, Signal::SIGWINCH] {
                raise(signal).unwrap();
            }
            assert_eq!(termination.take(), Some(Signal::SIGTERM as i32));
            assert_eq!(Screen::take(), Screen { stop: true, continued: true });
            assert_eq!(wait(&[termination.fd()], Some(SHORT)).unwrap(), [false]);
            return;
        }
        let (output, code, _) = run_again(TEST, "catches");
        assert_eq!(code, Some(0), "{output}");
    }

    #[test]
    fn a_deadline_ends_the_process_with_success_whatever_it_does() {
        const TEST: &str = "sys::signals::tests::a_deadline_ends_the_process_with_success_whatever_it_does";
        match role().as_deref() {
            Some("busy") => {
                let _deadline = hook_deadline(SHORT).unwrap();
                println!("armed");
                let end = Instant::now() + LONG;
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                panic!("survived");
            }
            Some("blocked on a lock") => {
                let file = tempfile::tempfile().unwrap();
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                assert!(crate::sys::lock::try_exclusive(&file).unwrap());
                let again = std::fs::File::options().read(true).write(true).open(path).unwrap();
                let _deadline = hook_deadline(SHORT).unwrap();
                println!("armed");
                drop(crate::sys::lock::lock_exclusive(&again, LONG));
                panic!("survived");
            }
            Some("masked") => {
                nix::sys::signal::SigSet::all().thread_block().unwrap();
                let _deadline = hook_deadline(SHORT).unwrap();
                println!("armed");
                drop(wait(&[], Some(LONG)));
                panic!("survived");
            }
            Some("extended") => {
                let deadline = hook_deadline(SHORT).unwrap();
                deadline.extend(SHORT * 4).unwrap();
                println!("armed");
                drop(wait(&[], Some(LONG)));
                panic!("survived");
            }
            Some("cancelled") => {
                hook_deadline(SHORT).unwrap().cancel();
                drop(hook_deadline(SHORT).unwrap());
                println!("armed");
                assert!(wait(&[], Some(SHORT * 4)).unwrap().is_empty());
                println!("survived");
            }
            _ => {
                for role in ["busy", "blocked on a lock", "masked", "extended", "cancelled"] {
                    let (text, code, time) = run_again(TEST, role);
                    assert!(text.contains("armed") && code == Some(0), "{role}: {code:?} {text}");
                    assert_eq!(text.contains("survived"), role == "cancelled", "{role}: {text}");
                    let least = if role == "extended" { SHORT * 4 } else { SHORT };
                    assert!(time >= least && time < LONG, "{role}: {time:?}");
                }
            }
        }
    }

    #[test]
    fn termination_is_noted_and_wakes_the_poll_loop() {
        const TEST: &str = "sys::signals::tests::termination_is_noted_and_wakes_the_poll_loop";
        if role().is_some() {
            let termination = catch_termination().unwrap();
            assert_eq!(termination.take(), None);
            println!("ready");
            let deadline = Instant::now() + LONG;
            let mut seen = Vec::new();
            while seen.len() < 2 && Instant::now() < deadline {
                // The signal itself may end one wait early; the descriptor then ends the next.
                wait(&[termination.fd()], Some(LONG)).unwrap();
                if let Some(number) = termination.take() {
                    seen.push(number);
                    assert_eq!(wait(&[termination.fd()], Some(Duration::ZERO)).unwrap(), [false], "still ringing");
                    assert_eq!(termination.take(), None);
                    println!("took {number}");
                }
            }
            return;
        }
        let mut helper = Helper::start(&mut again(TEST, "catcher"));
        helper.line("ready");
        let process = helper.process();
        for (signal, number) in [(Signal::SIGTERM, "15"), (Signal::SIGHUP, "1")] {
            assert!(crate::sys::process::signal(&process, signal).unwrap());
            assert_eq!(helper.line("took "), number);
        }
        assert!(helper.finish().1.success());
    }

    #[test]
    fn writing_too_far_is_an_error_and_not_the_end() {
        const TEST: &str = "sys::signals::tests::writing_too_far_is_an_error_and_not_the_end";
        if role().is_some() {
            use nix::sys::resource::{Resource, setrlimit};
            use std::io::Write;
            ignore_write_signals().unwrap();
            setrlimit(Resource::RLIMIT_FSIZE, 10, 10).unwrap();
            let mut file = tempfile::tempfile().unwrap();
            assert_eq!(file.write(&[0; 100]).unwrap(), 10);
            assert_eq!(file.write(&[0; 100]).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            let (reader, mut writer) = io::pipe().unwrap();
            drop(reader);
            assert_eq!(writer.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
            return;
        }
        let (text, code, _) = run_again(TEST, "writer");
        assert_eq!(code, Some(0), "{text}");
    }
}
