//! Clocks: monotonic for limits, wall time for display only, and the id of the boot that tells whether a monotonic time
//! of another process can be compared with ours.

#![cfg_attr(target_os = "macos", expect(unsafe_code, reason = "sysctl has no safe wrapper"))]

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

/// `CLOCK_MONOTONIC` in milliseconds. Comparable between processes of one boot, see [`boot_id`].
pub fn mono_ms() -> u64 {
    // The call fails only for a clock that does not exist; this one is required by POSIX.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1000 + u64::try_from(t.tv_nsec()).unwrap_or(0) / 1_000_000
    })
}

/// Wall-clock time in milliseconds since 1970. For display and file ages, never for limits: it jumps.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// Now as RFC 3339 in UTC with microseconds, `2026-01-02T03:04:05.678901Z`. Reads no time zone database.
pub fn stamp() -> String {
    chrono::DateTime::<chrono::Utc>::from(SystemTime::now()).to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
}

/// The id of the running boot; empty where the system does not tell. Read once per process.
pub fn boot_id() -> &'static str {
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(read_boot_id)
}

#[cfg(not(target_os = "macos"))]
fn read_boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

/// macOS names the boot in the sysctl `kern.bootsessionuuid`.
#[cfg(target_os = "macos")]
fn read_boot_id() -> String {
    let mut buffer = [0u8; 64];
    let mut len = buffer.len();
    // SAFETY: the name is NUL-terminated, `buffer` is writable for `len` bytes, and nothing is set.
    let rc = unsafe {
        nix::libc::sysctlbyname(
            c"kern.bootsessionuuid".as_ptr(),
            buffer.as_mut_ptr().cast(),
            &raw mut len,
            std::ptr::null_mut(),
            0,
        )
    };
    if rc != 0 {
        return String::new();
    }
    String::from_utf8_lossy(&buffer[..len.min(buffer.len())]).trim_end_matches('\0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_never_goes_back_and_counts_milliseconds() {
        let before = mono_ms();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let passed = mono_ms() - before;
        assert!((20..5_000).contains(&passed), "{passed}");
    }

    #[test]
    fn a_stamp_is_utc_with_microseconds() {
        let stamp = stamp();
        assert_eq!(stamp.len(), "2026-01-02T03:04:05.678901Z".len(), "{stamp}");
        assert!(stamp.ends_with('Z') && stamp.as_bytes()[10] == b'T' && stamp.as_bytes()[19] == b'.', "{stamp}");
        let parsed = chrono::DateTime::parse_from_rfc3339(&stamp).unwrap();
        assert!((parsed.timestamp_millis() - i64::try_from(unix_ms()).unwrap()).abs() < 60_000);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_boot_has_an_id() {
        assert_eq!(boot_id().len(), 36, "{}", boot_id());
    }
}
