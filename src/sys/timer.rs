//! A kernel timer that sends a signal. `nix` has one, but without delivery to a chosen thread under musl.

#![expect(unsafe_code, reason = "timer_create and setitimer have no safe wrapper that serves both glibc and musl")]

use std::io;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Who gets the signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whom {
    /// The calling thread: its blocking call is the one to interrupt.
    #[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux bounds flock by a timer"))]
    Thread,
    /// Any thread of the process.
    Process,
}

/// A timer; disarmed and gone when dropped.
#[derive(Debug)]
pub(super) struct Timer {
    #[cfg(target_os = "linux")]
    id: libc::timer_t,
}

#[cfg(target_os = "linux")]
impl Timer {
    /// A timer that is not armed yet and sends `signal`.
    pub(super) fn new(signal: Signal, whom: Whom) -> io::Result<Timer> {
        // SAFETY: all-zero bytes are a valid sigevent; the fields that matter are set below.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_signo = signal as i32;
        event.sigev_notify = libc::SIGEV_SIGNAL;
        if whom == Whom::Thread {
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        }
        let mut id: libc::timer_t = std::ptr::null_mut();
        // SAFETY: both pointers are to live locals.
        let mut rc = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) };
        if rc != 0 && whom == Whom::Thread && io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) {
            // Old C libraries know no thread delivery; in a program of one thread it is the same.
            event.sigev_notify = libc::SIGEV_SIGNAL;
            // SAFETY: as above.
            rc = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) };
        }
        if rc == 0 { Ok(Timer { id }) } else { Err(io::Error::last_os_error()) }
    }

    /// Arms it: first after `first`, then every `every` (zero: once). Replaces what was armed before.
    pub(super) fn arm(&self, first: Duration, every: Duration) -> io::Result<()> {
        // A zero value would disarm: the shortest wait is one nanosecond.
        let first = first.max(Duration::from_nanos(1));
        let spec = libc::itimerspec { it_interval: timespec(every), it_value: timespec(first) };
        // SAFETY: `id` is a timer of ours that lives until drop; the spec is a live local; no old value is asked for.
        let rc = unsafe { libc::timer_settime(self.id, 0, &raw const spec, std::ptr::null_mut()) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: `id` is a timer of ours and is not used after this.
        unsafe { libc::timer_delete(self.id) };
    }
}

#[cfg(target_os = "linux")]
fn timespec(d: Duration) -> libc::timespec {
    // SAFETY: all-zero bytes are a valid timespec (musl has private padding, so it cannot be written as a literal).
    let mut t: libc::timespec = unsafe { std::mem::zeroed() };
    // 68 years are enough, and `time_t` may have 32 bits.
    t.tv_sec = d.as_secs().try_into().unwrap_or(i32::MAX.into());
    t.tv_nsec = d.subsec_nanos().into();
    t
}

/// Elsewhere the one timer of the process, `ITIMER_REAL`, which always sends SIGALRM; it counts wall time.
#[cfg(not(target_os = "linux"))]
impl Timer {
    pub(super) fn new(signal: Signal, _whom: Whom) -> io::Result<Timer> {
        if signal == Signal::SIGALRM { Ok(Timer {}) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    #[expect(clippy::unused_self, reason = "the same shape as on Linux")]
    pub(super) fn arm(&self, first: Duration, every: Duration) -> io::Result<()> {
        let spec =
            libc::itimerval { it_interval: timeval(every), it_value: timeval(first.max(Duration::from_micros(1))) };
        // SAFETY: the spec is a live local; no old value is asked for.
        let rc = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const spec, std::ptr::null_mut()) };
        if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(not(target_os = "linux"))]
impl Drop for Timer {
    fn drop(&mut self) {
        let zero = timeval(Duration::ZERO);
        let spec = libc::itimerval { it_interval: zero, it_value: zero };
        // SAFETY: as in `arm`; a zero value disarms.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const spec, std::ptr::null_mut()) };
    }
}

#[cfg(not(target_os = "linux"))]
fn timeval(d: Duration) -> libc::timeval {
    libc::timeval {
        tv_sec: d.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_usec: d.subsec_micros().try_into().unwrap_or(0),
    }
}

/// Installs `handler` for `signal` and takes the signal out of the mask, which a parent may have handed down blocked.
/// With `restart`, calls that can be restarted are, instead of failing with EINTR.
///
/// # Safety
/// `handler` must do only what a signal handler may (see signal-safety(7)).
pub(super) unsafe fn install(signal: Signal, handler: extern "C" fn(i32), restart: bool) -> io::Result<()> {
    let flags = if restart { SaFlags::SA_RESTART } else { SaFlags::empty() };
    let action = SigAction::new(SigHandler::Handler(handler), flags, SigSet::empty());
    // SAFETY: the caller vouches for the handler.
    let _old = unsafe { sigaction(signal, &action) }?;
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_unblock()?;
    Ok(())
}
