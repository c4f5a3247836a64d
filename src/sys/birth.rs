//! When an open file was made. The standard library knows where the C library does; with musl the kernel is asked.

#![cfg_attr(all(target_os = "linux", target_env = "musl"), expect(unsafe_code, reason = "statx has no safe wrapper"))]

use std::fs::{File, Metadata};

/// In nanoseconds since 1970; 0 where the file system does not say.
#[cfg(not(all(target_os = "linux", target_env = "musl")))]
pub(super) fn of(_file: &File, meta: &Metadata) -> u64 {
    let since = meta.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    since.and_then(|since| u64::try_from(since.as_nanos()).ok()).unwrap_or(0)
}

/// In nanoseconds since 1970; 0 where the file system does not say.
#[cfg(all(target_os = "linux", target_env = "musl"))]
pub(super) fn of(file: &File, _meta: &Metadata) -> u64 {
    use nix::libc;
    use std::os::fd::AsRawFd as _;
    /// `STATX_BTIME`, and the places in `struct statx` of what was answered and of the time, in words of 4 bytes.
    const BTIME: u32 = 0x800;
    const MASK: usize = 0;
    const SECONDS: usize = 20;
    const NANOSECONDS: usize = 22;
    let mut answer = [0_u32; 64];
    let (path, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the kernel writes a struct statx, which has 256 bytes, into an array of that size; the path is a C string.
    let rc = unsafe { libc::syscall(libc::SYS_statx, file.as_raw_fd(), path, flags, BTIME, answer.as_mut_ptr()) };
    if rc != 0 || answer[MASK] & BTIME == 0 {
        return 0;
    }
    let seconds = if cfg!(target_endian = "little") {
        u64::from(answer[SECONDS]) | u64::from(answer[SECONDS + 1]) << 32
    } else {
        u64::from(answer[SECONDS + 1]) | u64::from(answer[SECONDS]) << 32
    };
    seconds.saturating_mul(1_000_000_000).saturating_add(answer[NANOSECONDS].into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_took_the_place_of_another_was_made_later() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("file");
        let born = || {
            let file = File::create_new(&path).unwrap();
            let born = of(&file, &file.metadata().unwrap());
            std::fs::remove_file(&path).unwrap();
            born
        };
        let first = born();
        if first == 0 {
            eprintln!("skipped: this file system does not say when files were made");
            return;
        }
        // The kernel's clock for files moves in steps.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while born() <= first {
            assert!(std::time::Instant::now() < end, "time stands still");
        }
    }
}
