//! What the machine offers: cores, memory, terminals, and whether a file system keeps the promises that locks need.

#![expect(unsafe_code, reason = "the terminal's size is asked by ioctl")]

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::statfs::fstatfs;

use super::dir::Dir;
use super::lock;

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

/// The kind of file system if locks on it may not exclude other machines or containers (NFS, SMB, 9p, FUSE …); `None`: a
/// local one, or unknown.
pub fn is_network_fs(dir: &Dir) -> Option<&'static str> {
    network_fs_name(&fstatfs(dir).ok()?)
}

#[cfg(target_os = "linux")]
#[expect(clippy::allow_attributes, reason = "the type of the field differs between C libraries")]
#[allow(
    clippy::unnecessary_cast,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a magic has 32 bits"
)]
fn network_fs_name(stat: &nix::sys::statfs::Statfs) -> Option<&'static str> {
    network_magic(stat.filesystem_type().0 as u32)
}

/// Names of magics from statfs(2) and linux/magic.h.
#[cfg(target_os = "linux")]
fn network_magic(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "nfs",
        0x517b => "smb",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb2",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0x5346_414f | 0x6b41_4653 => "afs",
        0x00c3_6400 => "ceph",
        0x7375_7245 => "coda",
        0x564c => "ncp",
        0x786f_4256 => "vboxsf",
        0x0bd0_0bd0 => "lustre",
        0x4750_4653 => "gpfs",
        0x0116_1970 => "gfs2",
        0x7461_636f => "ocfs2",
        _ => return None,
    })
}

#[cfg(not(target_os = "linux"))]
fn network_fs_name(stat: &nix::sys::statfs::Statfs) -> Option<&'static str> {
    let kind = stat.filesystem_type_name();
    ["nfs", "smbfs", "afpfs", "webdav", "macfuse", "osxfuse", "fusefs"].into_iter().find(|known| *known == kind)
}

/// Whether an exclusive lock in this folder keeps another opener out, tried with a file of its own.
pub fn flock_works(dir: &Dir) -> io::Result<bool> {
    let name = format!("{}flock.{}", super::dir::TEMP_PREFIX, std::process::id());
    dir.remove(&name)?;
    let tried = (|| {
        let first = dir.create_new(&name, 0o600)?;
        let second = dir.open_rw(&name)?;
        let excludes = lock::try_exclusive(&first)? && !lock::try_exclusive(&second)?;
        lock::unlock(&first)?;
        Ok(excludes && lock::try_exclusive(&second)?)
    })();
    dir.remove(&name)?;
    match tried {
        // ENOLCK, EOPNOTSUPP, ENOSYS: the file system says so itself.
        Err(e) if unsupported(&e) => Ok(false),
        other => other,
    }
}

fn unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
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
    fn a_local_folder_locks_and_nothing_is_left_of_the_trial() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        assert!(flock_works(&dir).unwrap());
        assert!(dir.names().unwrap().is_empty());
        assert_eq!(is_network_fs(&Dir::open("/proc").unwrap()), None);
    }

    #[test]
    fn network_file_systems_are_known_by_their_magic() {
        use nix::sys::statfs as known;
        for (magic, name) in [
            (known::NFS_SUPER_MAGIC, Some("nfs")),
            (known::SMB_SUPER_MAGIC, Some("smb")),
            (known::FUSE_SUPER_MAGIC, Some("fuse")),
            (known::CODA_SUPER_MAGIC, Some("coda")),
            (known::AFS_SUPER_MAGIC, Some("afs")),
            (known::EXT4_SUPER_MAGIC, None),
            (known::TMPFS_MAGIC, None),
            (known::BTRFS_SUPER_MAGIC, None),
            (known::OVERLAYFS_SUPER_MAGIC, None),
        ] {
            assert_eq!(network_magic(u32::try_from(magic.0).unwrap()), name, "{magic:?}");
        }
    }

    #[test]
    fn a_file_is_no_terminal() {
        let null = File::open("/dev/null").unwrap();
        assert!(!is_terminal(&null));
        assert_eq!(terminal_size(&null), None);
    }
}
