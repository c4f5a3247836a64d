//! Whether locks in a folder keep everybody else out. Everything in a run stands on `flock`; where a file system passes it
//! on to nobody, or loses it, two writers would not notice each other. What decides, cheapest first: the magic that
//! `fstatfs` tells; of FUSE, what the list of mounts calls it; and, for those that say nothing, a trial.
//!
//! Refused are file systems that another machine, or the host of this one, can write to without asking for the same lock:
//!
//! * NFS: old servers and `nolock` or `local_lock` mounts lock on this machine only, and a mount does not say which; what is
//!   read may be seconds old, and appending is not one step.
//! * SMB, 9p, shared folders of virtual machines, AFS, Coda, NCP: locks stay on this machine or depend on the server.
//! * Lustre: without the mount option `flock` locks are local or missing.
//! * FUSE of a remote store (sshfs, s3fs, rclone, davfs …): the kernel keeps the lock on this machine.
//!
//! Allowed are local ones, and cluster file systems whose `flock` holds for the whole cluster (GFS2, OCFS2, Ceph, GPFS)
//! where a trial succeeds. Any other FUSE, virtiofs among them, is allowed where a trial succeeds: it is most often a local
//! folder in another dress.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::statfs::fstatfs;

use super::dir::{Dir, FileId, TEMP_PREFIX};
use super::lock;

/// What locks in a folder are worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Locks {
    /// They keep everybody out.
    Good,
    /// They keep others on this machine out, as a trial has shown; what other machines do cannot be told.
    Tried(String),
    /// They do not, and nothing may run there.
    Refused(Refused),
}

/// Why nothing may run in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What the file system is called.
    pub kind: String,
    /// What is wrong with it.
    pub why: &'static str,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, where {}", self.kind, self.why)
    }
}

/// What is said where other machines can write past a lock.
const ELSEWHERE: &str = "a lock does not keep other machines out";
/// What is said where a trial failed.
const NOWHERE: &str = "a lock keeps nobody out";

/// What a magic says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No reason to doubt.
    Local,
    /// Refused.
    Remote(&'static str),
    /// A trial decides.
    Cluster(&'static str),
    /// Its name among the mounts decides, then a trial.
    Fuse,
}

/// What locks in this folder are worth: one `fstatfs`, and a trial with a file of its own only where that leaves doubt.
pub fn locks(dir: &Dir) -> io::Result<Locks> {
    let kind = match fstatfs(dir) {
        Ok(stat) => kind_of(&stat),
        Err(nix::errno::Errno::ENOSYS) => Kind::Local,
        Err(e) => return Err(io::Error::from(e)),
    };
    let name = match kind {
        Kind::Local => return Ok(Locks::Good),
        Kind::Remote(kind) => return Ok(refuse(kind, ELSEWHERE)),
        Kind::Cluster(name) => name.to_owned(),
        Kind::Fuse => {
            let mount = mount_of(dir).unwrap_or_default();
            let name = mount.name();
            if mount.is_remote() {
                return Ok(refuse(&name, ELSEWHERE));
            }
            name
        }
    };
    Ok(if flock_works(dir)? { Locks::Tried(name) } else { refuse(&name, NOWHERE) })
}

fn refuse(kind: &str, why: &'static str) -> Locks {
    Locks::Refused(Refused { kind: kind.to_owned(), why })
}

#[cfg(target_os = "linux")]
#[expect(clippy::allow_attributes, reason = "the type of the field differs between C libraries")]
#[allow(
    clippy::unnecessary_cast,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a magic has 32 bits"
)]
fn kind_of(stat: &nix::sys::statfs::Statfs) -> Kind {
    of_magic(stat.filesystem_type().0 as u32)
}

/// Magics from statfs(2) and linux/magic.h.
#[cfg(target_os = "linux")]
fn of_magic(magic: u32) -> Kind {
    match magic {
        0x6969 => Kind::Remote("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Kind::Remote("SMB"),
        0x0102_1997 => Kind::Remote("9p"),
        0x5346_414f | 0x6b41_4653 => Kind::Remote("AFS"),
        0x7375_7245 => Kind::Remote("Coda"),
        0x564c => Kind::Remote("NCP"),
        0x786f_4256 => Kind::Remote("a shared folder of VirtualBox"),
        0x0bd0_0bd0 => Kind::Remote("Lustre"),
        0x00c3_6400 => Kind::Cluster("Ceph"),
        0x4750_4653 => Kind::Cluster("GPFS"),
        0x0116_1970 => Kind::Cluster("GFS2"),
        0x7461_636f => Kind::Cluster("OCFS2"),
        0x6573_5546 => Kind::Fuse,
        _ => Kind::Local,
    }
}

#[cfg(not(target_os = "linux"))]
fn kind_of(stat: &nix::sys::statfs::Statfs) -> Kind {
    match stat.filesystem_type_name() {
        "nfs" => Kind::Remote("NFS"),
        "smbfs" => Kind::Remote("SMB"),
        "afpfs" => Kind::Remote("AFP"),
        "webdav" => Kind::Remote("WebDAV"),
        "macfuse" | "osxfuse" | "fusefs" => Kind::Fuse,
        _ => Kind::Local,
    }
}

/// A line of the list of mounts, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Mount {
    /// `fuse.sshfs`, `fuseblk`, `virtiofs` …
    kind: String,
    /// `host:/folder`, a device, or what the program says.
    source: String,
}

/// FUSE programs whose files are on another machine or in a store. Their lock stays in this kernel.
const REMOTE_FUSE: [&str; 24] = [
    "blobfuse",
    "blobfuse2",
    "curlftpfs",
    "davfs",
    "davfs2",
    "fuse_dfs",
    "gcsfuse",
    "gdfs",
    "geesefs",
    "glusterfs",
    "google-drive-ocamlfuse",
    "goofys",
    "gvfsd-fuse",
    "httpfs",
    "mountpoint-s3",
    "onedriver",
    "rclone",
    "s3fs",
    "s3ql",
    "seaweedfs",
    "smbnetfs",
    "sshfs",
    "vmhgfs-fuse",
    "yas3fs",
];

impl Mount {
    fn name(&self) -> String {
        if self.kind.is_empty() { "fuse".into() } else { self.kind.clone() }
    }

    /// By its subtype, or where it has none by what it was mounted from.
    fn is_remote(&self) -> bool {
        let program = self.kind.strip_prefix("fuse.").unwrap_or_default();
        let source = self.source.as_str();
        let known = |name: &str| REMOTE_FUSE.iter().any(|r| name.eq_ignore_ascii_case(r));
        known(program)
            || (self.kind != "fuseblk" && known(source))
            || source.contains("://")
            || (!source.starts_with('/') && source.contains(":/"))
    }
}

/// The mount on which a folder is.
fn mount_of(dir: &Dir) -> Option<Mount> {
    let FileId { dev, .. } = dir.id().ok()?;
    let list = std::fs::read("/proc/self/mountinfo").ok()?;
    find_mount(&String::from_utf8_lossy(&list), dev)
}

/// `36 35 98:0 /root /mnt rw,noatime shared:1 - fuse.sshfs host:/folder rw`, see proc(5).
fn find_mount(list: &str, dev: u64) -> Option<Mount> {
    let number = format!("{}:{}", major(dev), minor(dev));
    list.lines().find_map(|line| {
        let (place, what) = line.split_once(" - ")?;
        let mut what = what.split(' ');
        (place.split(' ').nth(2)? == number).then(|| {
            Some(Mount { kind: what.next()?.to_owned(), source: what.next().unwrap_or_default().to_owned() })
        })?
    })
}

fn major(dev: u64) -> u64 {
    ((dev >> 32) & 0xffff_f000) | ((dev >> 8) & 0xfff)
}

fn minor(dev: u64) -> u64 {
    ((dev >> 12) & 0xffff_ff00) | (dev & 0xff)
}

/// Whether an exclusive lock in this folder keeps another opener out, tried with a file of its own.
pub fn flock_works(dir: &Dir) -> io::Result<bool> {
    let name = format!("{TEMP_PREFIX}flock.{}", std::process::id());
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
        Err(e) if is_unsupported(&e) => Ok(false),
        other => other,
    }
}

/// The processes that have taken a lock of this file, as the kernel lists them; those that inherited it are not named.
pub fn lock_holders(file: &FileId) -> Vec<i32> {
    let list = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    lock_holders_in(&list, file)
}

/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`, see proc(5). Device numbers there are those of the file system, which
/// are not always the file's; the inode is, and a lock of another file with that number is only one process too many.
fn lock_holders_in(list: &str, file: &FileId) -> Vec<i32> {
    let mut holders: Vec<i32> = list
        .lines()
        .filter(|line| !line.contains("->"))
        .filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(4);
            let (pid, place) = (words.next()?.parse().ok()?, words.next()?);
            (place.rsplit(':').next()? == file.ino.to_string()).then_some(pid)
        })
        .collect();
    holders.dedup();
    holders
}

/// Whether a lock failed because the file system has none: it says so itself.
pub fn is_unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

/// What is said of a file system that refused a lock itself.
pub fn refused_itself() -> Refused {
    Refused { kind: "a file system without locks".into(), why: NOWHERE }
}

/// A path with its links resolved. What does not exist yet still has a folder that may be reached through a link.
pub fn real_path(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok().or_else(|| {
        let (folder, name) = path.parent().zip(path.file_name())?;
        folder.canonicalize().ok().map(|folder| folder.join(name))
    })
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn a_local_folder_locks_and_nothing_is_left_of_the_trial() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        assert!(flock_works(&dir).unwrap());
        assert_eq!(locks(&dir).unwrap(), Locks::Good);
        assert!(dir.names().unwrap().is_empty());
    }

    #[test]
    fn file_systems_are_known_by_their_magic() {
        use nix::sys::statfs as known;
        for (magic, kind) in [
            (known::NFS_SUPER_MAGIC.0, Kind::Remote("NFS")),
            (known::SMB_SUPER_MAGIC.0, Kind::Remote("SMB")),
            (0xff53_4d42, Kind::Remote("SMB")),
            (0xfe53_4d42, Kind::Remote("SMB")),
            (0x0102_1997, Kind::Remote("9p")),
            (known::CODA_SUPER_MAGIC.0, Kind::Remote("Coda")),
            (known::AFS_SUPER_MAGIC.0, Kind::Remote("AFS")),
            (0x6b41_4653, Kind::Remote("AFS")),
            (known::NCP_SUPER_MAGIC.0, Kind::Remote("NCP")),
            (0x786f_4256, Kind::Remote("a shared folder of VirtualBox")),
            (0x0bd0_0bd0, Kind::Remote("Lustre")),
            (0x00c3_6400, Kind::Cluster("Ceph")),
            (0x4750_4653, Kind::Cluster("GPFS")),
            (0x0116_1970, Kind::Cluster("GFS2")),
            (known::OCFS2_SUPER_MAGIC.0, Kind::Cluster("OCFS2")),
            (known::FUSE_SUPER_MAGIC.0, Kind::Fuse),
            (known::EXT4_SUPER_MAGIC.0, Kind::Local),
            (known::XFS_SUPER_MAGIC.0, Kind::Local),
            (known::TMPFS_MAGIC.0, Kind::Local),
            (known::BTRFS_SUPER_MAGIC.0, Kind::Local),
            (known::OVERLAYFS_SUPER_MAGIC.0, Kind::Local),
            (0x2fc1_2fc1, Kind::Local),
            (0, Kind::Local),
        ] {
            assert_eq!(of_magic(u32::try_from(magic).unwrap()), kind, "{magic:x}");
        }
    }

    #[test]
    fn fuse_is_known_by_its_mount() {
        let list = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            40 22 0:52 / /mnt/ssh rw,nosuid shared:3 master:1 - fuse.sshfs me@host:/home rw,user_id=0\n\
            41 22 0:53 / /mnt/win rw - fuseblk /dev/sdb1 rw\n\
            42 22 0:54 / /mnt/share rw - virtiofs share rw\n\
            43 22 259:300 / /mnt/far\\040away rw - fuse https://dav.example.org/x rw\n";
        let of = |high: u64, low: u64| {
            let dev = ((high & 0xfff) << 8) | (low & 0xff) | ((low & 0xfff00) << 12);
            assert_eq!((major(dev), minor(dev)), (high, low));
            find_mount(list, dev)
        };
        assert_eq!(of(0, 52).unwrap(), Mount { kind: "fuse.sshfs".into(), source: "me@host:/home".into() });
        assert_eq!(of(0, 53).unwrap().name(), "fuseblk");
        assert_eq!(of(0, 54).unwrap().name(), "virtiofs");
        assert!(of(259, 300).unwrap().is_remote());
        assert_eq!(of(9, 9), None);
        for (kind, source, remote) in [
            ("fuse.sshfs", "host:", true),
            ("fuse.s3fs", "bucket", true),
            ("fuse.rclone", "drive:folder", true),
            ("fuse.davfs2", "x", true),
            ("fuse", "davfs", true),
            ("fuse", "mountpoint-s3", true),
            ("fuse", "nas:/export", true),
            ("fuse.glusterfs", "nas:/volume", true),
            ("fuse.something", "https://example.org", true),
            ("fuse.vmhgfs-fuse", "vmhgfs-fuse", true),
            ("fuse.gocryptfs", "/home/me/.crypt", false),
            ("fuse.bindfs", "/srv/a:/b", false),
            ("fuseblk", "/dev/sdb1", false),
            ("virtiofs", "share", false),
            ("fuse.unheard-of", "thing", false),
            ("", "", false),
        ] {
            let mount = Mount { kind: kind.into(), source: source.into() };
            assert_eq!(mount.is_remote(), remote, "{kind} {source}");
        }
    }

    #[test]
    fn who_holds_a_lock_is_told() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let file = dir.open_rw("lock").unwrap();
        let id = FileId::of(&file).unwrap();
        assert_eq!(lock_holders(&id), Vec::<i32>::new());
        assert!(lock::try_exclusive(&file).unwrap());
        assert_eq!(lock_holders(&id), [i32::try_from(std::process::id()).unwrap()]);
        let list = "1: FLOCK  ADVISORY  WRITE 12 08:01:77 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 13 08:01:77 0 EOF\n\
            2: POSIX  ADVISORY  READ 14 08:01:770 0 EOF\nodd\n";
        assert_eq!(lock_holders_in(list, &FileId { ino: 77, ..id }), [12]);
    }

    #[test]
    fn what_a_file_system_says_of_itself_is_believed() {
        for (number, says) in [(libc::ENOLCK, true), (libc::EOPNOTSUPP, true), (libc::EINTR, false), (libc::EIO, false)]
        {
            assert_eq!(is_unsupported(&io::Error::from_raw_os_error(number)), says, "{number}");
        }
    }
}
