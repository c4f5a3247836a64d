//! A number that a task is started with and that all its descendants inherit, whatever they do to their session, their
//! environment and their parents: the soft limit on the time that a real-time process may run without a pause
//! (`RLIMIT_RTTIME`, in microseconds). Every stamp is more than a hundred thousand years, so that it limits nobody. It is not
//! meant to hold against who wants to escape: any process may set the limit back.
//!
//! Elsewhere than on Linux there is no such limit, and nobody is stamped.

use crate::base::sum;

/// The lowest stamp; the others are less than twice as much.
const FIRST: u64 = 1 << 62;

/// The stamp for all that is started with these variables. Different marks have different ones, as far as 61 bits tell.
pub(super) fn of<'a>(mark: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let mut text = Vec::new();
    for entry in mark {
        text.extend_from_slice(entry);
        text.push(0);
    }
    FIRST | (sum::sum(&text) >> 3)
}

/// The limit, soft and hard, that a child is to be started with: `stamp`, or where it gets none and this process has one,
/// none. `None`: it stays as it is, also where somebody has forbidden so high a limit.
#[cfg(target_os = "linux")]
pub(super) fn for_child(stamp: Option<u64>) -> Option<(u64, u64)> {
    use nix::sys::resource::{Resource, getrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_RTTIME).ok()?;
    let wanted = stamp.or_else(|| is_stamp(soft).then_some(hard))?;
    (wanted <= hard).then_some((wanted, hard))
}

#[cfg(target_os = "linux")]
fn is_stamp(soft: u64) -> bool {
    (FIRST..FIRST << 1).contains(&soft)
}

/// See above: nobody is stamped here.
#[cfg(not(target_os = "linux"))]
pub(super) fn for_child(_stamp: Option<u64>) -> Option<(u64, u64)> {
    None
}

/// Whether a process carries this stamp and may be signalled by us: who cannot be ended need not be waited for.
#[cfg(target_os = "linux")]
pub(super) fn is_on(pid: i32, stamp: u64) -> bool {
    of_process(pid) == Some(stamp) && nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None).is_ok()
}

/// See above: nobody is stamped here.
#[cfg(not(target_os = "linux"))]
pub(super) fn is_on(_pid: i32, _stamp: u64) -> bool {
    false
}

/// The stamp of this process, if it carries one: a task, or what a task has started, has become it.
#[cfg(target_os = "linux")]
pub(super) fn of_this() -> Option<u64> {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_RTTIME).ok().map(|(soft, _)| soft).filter(|soft| is_stamp(*soft))
}

/// See above: nobody is stamped here.
#[cfg(not(target_os = "linux"))]
pub(super) fn of_this() -> Option<u64> {
    None
}

#[cfg(target_os = "linux")]
fn of_process(pid: i32) -> Option<u64> {
    use std::io::Read as _;
    // Sixteen lines of 80 bytes and their head: it fits, and the kernel writes it at once.
    let mut text = [0_u8; 4096];
    let length = std::fs::File::open(format!("/proc/{pid}/limits")).and_then(|mut f| f.read(&mut text)).ok()?;
    let line = text[..length].split(|b| *b == b'\n').find_map(|line| line.strip_prefix(b"Max realtime timeout"))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_its_marks_and_never_a_limit() {
        let stamp = |mark: &[&str]| of(mark.iter().map(|entry| entry.as_bytes()));
        let all = [stamp(&["a=1", "b=2"]), stamp(&["a=1", "b=3"]), stamp(&["a=1b=2"]), stamp(&["a=1", "b=2", ""])];
        for (i, one) in all.iter().enumerate() {
            assert!((FIRST..FIRST << 1).contains(one) && !all[..i].contains(one), "{all:?}");
        }
        assert_eq!(stamp(&["a=1", "b=2"]), all[0]);
    }

    #[test]
    fn who_has_no_stamp_is_started_without() {
        assert_eq!(for_child(None), None);
        let (soft, hard) = for_child(Some(FIRST)).unwrap();
        assert_eq!((soft, hard >= soft), (FIRST, true));
        assert_eq!(of_process(i32::MAX), None);
        assert_eq!(of_this(), None);
        assert!(!is_on(nix::unistd::getpid().as_raw(), FIRST));
    }
}
