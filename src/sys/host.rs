//! What the machine offers: cores, memory and terminals.

#![expect(unsafe_code, reason = "the terminal's size is asked by ioctl")]

use std::io::IsTerminal;
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;

/// How many threads can run at the same time, after affinity and container limits; at least 1.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Memory that new processes can use without swapping, in MiB, after the container's limit; `None` where unknown (macOS).
pub fn available_memory_mib() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let host = meminfo_kib(&info, "MemAvailable:")? / 1024;
    Some(cgroup_left_mib().map_or(host, |left| left.min(host)))
}

fn meminfo_kib(info: &str, key: &str) -> Option<u64> {
    info.lines().find_map(|l| l.strip_prefix(key))?.split_ascii_whitespace().next()?.parse().ok()
}

/// What the tightest of our control groups (version 2) leaves; `None` where none has a limit.
fn cgroup_left_mib() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let below = own.lines().find_map(|l| l.strip_prefix("0::/"))?;
    let root = std::path::Path::new("/sys/fs/cgroup");
    let number = |path: std::path::PathBuf| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    root.join(below)
        .ancestors()
        .take_while(|dir| dir.starts_with(root))
        .filter_map(|dir| Some(number(dir.join("memory.max"))?.saturating_sub(number(dir.join("memory.current"))?)))
        .min()
        .map(|bytes| bytes / (1024 * 1024))
}

/// The home of a user as the system's list of accounts has it, whatever the environment says; `None` for an account that is not
/// in the file.
pub fn home_of(uid: u32) -> Option<std::path::PathBuf> {
    let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
    home_in(&accounts, uid).map(Into::into)
}

fn home_in(accounts: &str, uid: u32) -> Option<&str> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then(|| fields.nth(2))?
    })
}

/// Whether a descriptor is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    fd.as_fd().is_terminal()
}

/// Columns and rows of the terminal behind `fd`; `None`: it is none, or it does not know.
pub fn terminal_size(fd: impl AsFd) -> Option<(u16, u16)> {
    // SAFETY: all-zero bytes are a valid winsize.
    let mut size: libc::winsize = unsafe { std::mem::zeroed() };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer, which is a live local.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (rc == 0 && size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Whether this process may write to and read from the terminal behind `fd`: who is in the background is stopped by that. A
/// terminal that is not our session's asks nobody.
pub fn is_foreground(fd: impl AsFd) -> bool {
    // SAFETY: both calls take numbers and return one.
    let (owner, own) = unsafe { (libc::tcgetpgrp(fd.as_fd().as_raw_fd()), libc::getpgrp()) };
    owner < 0 || owner == own
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_machine_has_cores_and_memory() {
        assert!(cores() >= 1);
        assert!(available_memory_mib().is_some_and(|mib| mib > 0 && mib < 1 << 30));
        assert_eq!(meminfo_kib("MemFree:  1 kB\nMemAvailable:   2048 kB\n", "MemAvailable:"), Some(2048));
        assert_eq!(meminfo_kib("", "MemAvailable:"), None);
    }

    #[test]
    fn an_account_has_the_home_of_its_own_line() {
        let accounts = "root:x:0:0:root:/root:/bin/bash

odd
+::::::
u:x:1000:1000:,,,:/home/u:/bin/sh
v:x:10::
";
        let home = |uid| home_in(accounts, uid);
        assert_eq!((home(0), home(1000), home(100), home(10)), (Some("/root"), Some("/home/u"), None, None));
    }

    #[test]
    fn a_file_is_no_terminal() {
        let null = File::open("/dev/null").unwrap();
        assert!(!is_terminal(&null));
        assert_eq!(terminal_size(&null), None);
    }
}
