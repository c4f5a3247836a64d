//! Folders by open handle: whoever holds a [`Dir`] works in that folder, even if a path component is exchanged under it.
//! Names are single components; symbolic links are never followed; files are opened only if they are regular, ours, and
//! writable by nobody else.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, readlinkat, renameat};
use nix::libc;
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, fsync, geteuid, linkat, symlinkat, unlinkat};

use super::birth;

/// How the temporary files of [`Dir::write_atomic`] begin. A killed writer leaves one behind.
pub const TEMP_PREFIX: &str = ".tmp.";

/// How deep [`Dir::link_all`] goes: two folders are open for each level.
const MAX_NESTED: usize = 100;

/// An open folder.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// Which file it is, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    /// Device.
    pub dev: u64,
    /// Inode; unique on its device while the file exists.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Number of names; 0 for a file that was removed.
    pub nlink: u64,
    /// When it was made, in nanoseconds; 0 where that is not known, as of a file that is not open. An inode's number is given
    /// to another file as soon as it is free, and nobody can set this time.
    pub born: u64,
}

impl FileId {
    /// Of an open file.
    pub fn of(file: &File) -> io::Result<FileId> {
        let m = file.metadata()?;
        Ok(FileId { dev: m.dev(), ino: m.ino(), size: m.len(), nlink: m.nlink(), born: birth::of(file, &m) })
    }

    /// Whether both are the same file, whatever its length and names.
    pub fn same_file(&self, other: &FileId) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

const FOLDER: OFlag = OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);
// O_NONBLOCK: opening a FIFO that somebody put in the place of a file must not hang.
const FILE: OFlag = OFlag::O_NOFOLLOW.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

impl Dir {
    /// Opens a folder by path, following symbolic links.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Dir> {
        Self::open_path(path.as_ref(), FOLDER)
    }

    /// Opens a folder by path; its last component must not be a symbolic link.
    pub fn open_nofollow(path: impl AsRef<Path>) -> io::Result<Dir> {
        Self::open_path(path.as_ref(), FOLDER | OFlag::O_NOFOLLOW)
    }

    fn open_path(path: &Path, flags: OFlag) -> io::Result<Dir> {
        let fd = openat(AT_FDCWD, path, flags, Mode::empty()).map_err(|e| explain(path, e))?;
        Ok(Dir { fd, path: path.to_owned() })
    }

    /// The path it was opened by, for messages and for programs that need one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which folder it is.
    pub fn id(&self) -> io::Result<FileId> {
        fstat(&self.fd).map(|stat| id_of(&stat)).map_err(|e| explain(&self.path, e))
    }

    /// A second handle of the same folder.
    pub fn try_clone(&self) -> io::Result<Dir> {
        Ok(Dir { fd: self.fd.try_clone()?, path: self.path.clone() })
    }

    /// Who owns it, and its permissions.
    pub fn owner(&self) -> io::Result<(u32, u32)> {
        let meta = self.as_file()?.metadata()?;
        Ok((meta.uid(), meta.mode() & 0o7777))
    }

    /// The folder as a file, for locks.
    pub fn as_file(&self) -> io::Result<File> {
        // Opened anew: a lock on a duplicate would be held by this handle, too.
        openat(&self.fd, ".", FOLDER, Mode::empty()).map(File::from).map_err(|e| explain(&self.path, e))
    }

    /// Fails unless the folder is ours and nobody else can write into it.
    pub fn check_private(&self) -> io::Result<()> {
        let stat = fstat(&self.fd).map_err(|e| explain(&self.path, e))?;
        check_owner(&self.path, &stat)
    }

    /// Opens a folder in this one.
    pub fn sub(&self, name: impl AsRef<OsStr>) -> io::Result<Dir> {
        let name = component(name.as_ref())?;
        let path = self.path.join(name);
        let fd = openat(&self.fd, name, FOLDER | OFlag::O_NOFOLLOW, Mode::empty()).map_err(|e| explain(&path, e))?;
        Ok(Dir { fd, path })
    }

    /// Opens a folder in this one, making it with `mode` if it is not there.
    pub fn create_sub(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Dir> {
        match self.make_new_sub(name.as_ref(), mode) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.sub(name),
            other => other,
        }
    }

    /// Makes a folder in this one with exactly `mode`, whatever the umask. Fails with `AlreadyExists` if there is
    /// anything of that name, so that of several processes one gets it.
    pub fn make_new_sub(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<Dir> {
        let name = component(name.as_ref())?;
        let mode = mode_of(mode);
        mkdirat(&self.fd, name, mode).map_err(|e| explain(&self.path.join(name), e))?;
        let dir = match self.sub(name) {
            // A umask can take from the owner what is needed to open it.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                self.set_mode(name, mode)?;
                self.sub(name)?
            }
            other => other?,
        };
        fchmod(&dir.fd, mode).map_err(|e| explain(&dir.path, e))?;
        Ok(dir)
    }

    /// Gives what has this name, itself and not what it links to, exactly this mode.
    pub(super) fn set_mode(&self, name: &OsStr, mode: Mode) -> io::Result<()> {
        fchmodat(&self.fd, name, mode, FchmodatFlags::NoFollowSymlink).map_err(|e| explain(&self.path.join(name), e))
    }

    /// Opens an existing file for reading.
    pub fn open_read(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlag::O_RDONLY, 0)
    }

    /// Opens a file for reading anywhere and writing at its end, making it with 0600 if it is not there.
    pub fn open_append(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT, 0o600)
    }

    /// As [`open_append`](Self::open_append), but the file must be there.
    pub fn open_append_existing(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlag::O_RDWR | OFlag::O_APPEND, 0)
    }

    /// Opens a file for reading and writing, making it with 0600 if it is not there. What lock files need: network file
    /// systems lock only what is open for writing.
    pub fn open_rw(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlag::O_RDWR | OFlag::O_CREAT, 0o600)
    }

    /// Opens a file that must be there, for reading and writing.
    pub fn open_existing(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        self.open_file(name.as_ref(), OFlag::O_RDWR, 0)
    }

    /// Makes a new file with exactly `mode`, open for reading and writing. Fails with `AlreadyExists` if there is
    /// anything of that name.
    pub fn create_new(&self, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
        let file = self.open_file(name.as_ref(), OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL, mode)?;
        fchmod(&file, mode_of(mode)).map_err(|e| explain(&self.path.join(name.as_ref()), e))?;
        Ok(file)
    }

    /// Makes a new file, to be written to, with what the umask leaves of 0666: for files of a project that its user's other
    /// programs share.
    pub fn create_usual(&self, name: impl AsRef<OsStr>) -> io::Result<File> {
        let name = component(name.as_ref())?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | FILE;
        let fd = openat(&self.fd, name, flags, mode_of(0o666)).map_err(|e| explain(&self.path.join(name), e))?;
        Ok(File::from(fd))
    }

    fn open_file(&self, name: &OsStr, flags: OFlag, mode: u32) -> io::Result<File> {
        let name = component(name)?;
        let here = || self.path.join(name);
        let fd = openat(&self.fd, name, flags | FILE, mode_of(mode)).map_err(|e| explain(&here(), e))?;
        let stat = fstat(&fd).map_err(|e| explain(&here(), e))?;
        if kind_of(&stat) != SFlag::S_IFREG {
            return Err(not_regular(&here()));
        }
        check_owner(&here(), &stat)?;
        if flags.contains(OFlag::O_RDWR) && stat.st_nlink > 1 {
            // What is written here would be written there.
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{}: has a second name elsewhere (a hard link), and cpw writes to no such file",
                    here().display()
                ),
            ));
        }
        if flags.contains(OFlag::O_CREAT) && stat.st_mode & 0o600 != 0o600 {
            // A umask can take from the owner what the next one needs to open it.
            fchmod(&fd, mode_of(0o600)).map_err(|e| explain(&here(), e))?;
        }
        Ok(File::from(fd))
    }

    /// Puts a file with this content in place in one step: others see the old or the new one, never half of it. With
    /// `sync` the content is on the disk before, and the name after.
    pub fn write_atomic(&self, name: impl AsRef<OsStr>, bytes: &[u8], mode: u32, sync: bool) -> io::Result<()> {
        let name = component(name.as_ref())?;
        let (temp, mut file) = self.create_temp(mode)?;
        let written = file
            .write_all(bytes)
            .and_then(|()| if sync { file.sync_data() } else { Ok(()) })
            .map_err(|e| explain_io(&self.path.join(name), &e))
            .and_then(|()| {
                renameat(&self.fd, temp.as_os_str(), &self.fd, name).map_err(|e| explain(&self.path.join(name), e))
            });
        if written.is_err() {
            // The first error is the one to tell; a temporary file left behind is harmless.
            drop(self.remove(&temp));
        }
        written?;
        if sync { self.sync() } else { Ok(()) }
    }

    /// A new file under a name of its own. The pid alone would not do: two containers can share the folder.
    fn create_temp(&self, mode: u32) -> io::Result<(OsString, File)> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let mut tries = 0;
        loop {
            let n = COUNTER.fetch_add(1, Ordering::Relaxed);
            let temp = OsString::from(format!("{TEMP_PREFIX}{}.{n}", std::process::id()));
            match self.create_new(&temp, mode) {
                Ok(file) => return Ok((temp, file)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && tries < 1000 => tries += 1,
                Err(e) => return Err(e),
            }
        }
    }

    /// Removes hidden files that carry the pid of a process that is no more: what [`Dir::write_atomic`], or a bell that was
    /// not hung up yet, leaves behind when its writer is killed. A file of another container may go, too, whose writer then
    /// fails: only for folders where nobody else works any more.
    pub fn sweep(&self) {
        for name in self.names().unwrap_or_default() {
            let text = name.to_string_lossy();
            let Some(hidden) = text.strip_prefix(TEMP_PREFIX).or_else(|| text.strip_prefix('.')) else { continue };
            let Some(pid) = hidden.split('.').next().and_then(|n| n.parse::<i32>().ok()) else { continue };
            if pid > 0 && super::process::identity_of(pid).is_none() {
                // Left behind it is harmless.
                drop(self.remove(&name));
            }
        }
    }

    /// Renames a file of this folder into the folder `to`, replacing what has the new name there.
    pub fn rename_to(&self, from: impl AsRef<OsStr>, to: &Dir, name: impl AsRef<OsStr>) -> io::Result<()> {
        let (from, name) = (component(from.as_ref())?, component(name.as_ref())?);
        renameat(&self.fd, from, &to.fd, name).map_err(|e| explain(&self.path.join(from), e))
    }

    /// Renames within this folder, replacing what has the new name.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> io::Result<()> {
        let (from, to) = (component(from.as_ref())?, component(to.as_ref())?);
        renameat(&self.fd, from, &self.fd, to).map_err(|e| explain(&self.path.join(from), e))
    }

    /// Removes a file (not a folder). `false`: it was not there.
    pub fn remove(&self, name: impl AsRef<OsStr>) -> io::Result<bool> {
        let name = component(name.as_ref())?;
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) => Ok(true),
            Err(Errno::ENOENT) => Ok(false),
            Err(e) => Err(explain(&self.path.join(name), e)),
        }
    }

    /// Moves a file of this folder into the folder `to`, where nothing of that name may be; copied where a rename cannot reach.
    /// What is no regular file stays, and is an error.
    pub fn move_file(&self, name: impl AsRef<OsStr>, to: &Dir) -> io::Result<()> {
        let name = component(name.as_ref())?;
        let told = |e| explain(&self.path.join(name), e);
        let stat = fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(told)?;
        if kind_of(&stat) != SFlag::S_IFREG {
            return Err(not_regular(&self.path.join(name)));
        }
        match linkat(&self.fd, name, &to.fd, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP) => self.copy(to, name)?,
            Err(e) => return Err(told(e)),
        }
        self.remove(name).map(drop)
    }

    /// Puts everything that is in this folder, folders below it included, into the folder `to` as well: under a second name
    /// where that can be, else as a copy. Links are taken as links; what is neither file, folder nor link is left out.
    pub fn link_all(&self, to: &Dir) -> io::Result<()> {
        self.link_below(to, 0)
    }

    fn link_below(&self, to: &Dir, depth: usize) -> io::Result<()> {
        if depth > MAX_NESTED {
            let what = format!("{}: folders in folders, more than {MAX_NESTED} deep", self.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        for name in self.names()? {
            let told = |e| explain(&self.path.join(&name), e);
            let stat = fstatat(&self.fd, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map_err(told)?;
            match kind_of(&stat) {
                SFlag::S_IFDIR => self.sub(&name)?.link_below(&to.make_new_sub(&name, 0o700)?, depth + 1)?,
                SFlag::S_IFREG => {
                    match linkat(&self.fd, name.as_os_str(), &to.fd, name.as_os_str(), AtFlags::empty()) {
                        Ok(()) => {}
                        Err(Errno::EXDEV | Errno::EPERM | Errno::EMLINK | Errno::EOPNOTSUPP) => self.copy(to, &name)?,
                        Err(e) => return Err(told(e)),
                    }
                }
                SFlag::S_IFLNK => {
                    let target = readlinkat(&self.fd, name.as_os_str()).map_err(told)?;
                    symlinkat(target.as_os_str(), &to.fd, name.as_os_str()).map_err(told)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn copy(&self, to: &Dir, name: &OsStr) -> io::Result<()> {
        let told = |e| explain_io(&self.path.join(name), &e);
        let fd = openat(&self.fd, name, OFlag::O_RDONLY | FILE, Mode::empty()).map_err(|e| explain(&self.path, e))?;
        let mut from = File::from(fd);
        let meta = from.metadata().map_err(told)?;
        if !meta.is_file() {
            return Err(not_regular(&self.path.join(name)));
        }
        let mode = meta.mode() & 0o755;
        io::copy(&mut from, &mut to.create_new(name, mode)?).map_err(told).map(drop)
    }

    /// Removes everything in this folder, however deep, and follows no link. Returns how many bytes that were; what has
    /// another name elsewhere, and links, count nothing. Of two that do it at once, or after one that was killed, all is removed.
    pub fn empty(&self) -> io::Result<u64> {
        let (mut bytes, mut moved) = (0, 0_u64);
        loop {
            let names = self.names()?;
            if names.is_empty() {
                return Ok(bytes);
            }
            for name in names {
                let Some(dir) = self.remove_unless_folder(&name, &mut bytes)? else { continue };
                for child in dir.names()? {
                    if dir.remove_unless_folder(&child, &mut bytes)?.is_none() {
                        continue;
                    }
                    // Up here, for the next round: so no depth is too deep.
                    let mut up = format!("{TEMP_PREFIX}{moved}");
                    while self.stat(&up)?.is_some() {
                        moved += 1;
                        up = format!("{TEMP_PREFIX}{moved}");
                    }
                    gone(renameat(&dir.fd, child.as_os_str(), &self.fd, up.as_str()))
                        .map_err(|e| explain(&dir.path.join(&child), e))?;
                }
                self.remove_folder(&name)?;
            }
        }
    }

    /// Removes an empty folder in this one. One that has gone is no error.
    pub fn remove_folder(&self, name: impl AsRef<OsStr>) -> io::Result<()> {
        let name = component(name.as_ref())?;
        gone(unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)).map_err(|e| explain(&self.path.join(name), e))
    }

    /// Removes what has this name, a folder with all that is in it. Returns how many bytes that were, as [`Dir::empty`] does.
    pub fn remove_all(&self, name: impl AsRef<OsStr>) -> io::Result<u64> {
        let name = component(name.as_ref())?;
        let mut bytes = 0;
        if let Some(dir) = self.remove_unless_folder(name, &mut bytes)? {
            bytes += dir.empty()?;
            self.remove_folder(name)?;
        }
        Ok(bytes)
    }

    /// Removes what has this name, unless it is a folder: that is returned open, and can be written to.
    fn remove_unless_folder(&self, name: &OsStr, bytes: &mut u64) -> io::Result<Option<Dir>> {
        let told = |e| explain(&self.path.join(name), e);
        let stat = match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => return Ok(None),
            other => other.map_err(told)?,
        };
        if kind_of(&stat) == SFlag::S_IFDIR {
            if stat.st_mode & 0o700 != 0o700 {
                // It has to be readable to be opened.
                self.set_mode(name, mode_of(0o700))?;
            }
            return match self.sub(name) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                other => other.map(Some),
            };
        }
        let id = id_of(&stat);
        gone(unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir)).map_err(told)?;
        *bytes += if kind_of(&stat) == SFlag::S_IFREG && id.nlink == 1 { id.size } else { 0 };
        Ok(None)
    }

    /// The names in the folder, sorted, temporary files included.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        self.names_at_most(usize::MAX)
    }

    /// The same of the first `most` entries, in the order of the file system, however many there are.
    pub fn names_at_most(&self, most: usize) -> io::Result<Vec<OsString>> {
        let told = |e| explain(&self.path, e);
        let mut handle = nix::dir::Dir::openat(&self.fd, ".", FOLDER, Mode::empty()).map_err(told)?;
        let mut names = Vec::new();
        for entry in handle.iter() {
            if names.len() >= most {
                break;
            }
            let name = entry.map_err(told)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(OsString::from_vec(name));
            }
        }
        names.sort();
        Ok(names)
    }

    /// Which file has this name, itself and not what it links to; `None`: there is none.
    pub fn stat(&self, name: impl AsRef<OsStr>) -> io::Result<Option<FileId>> {
        let name = component(name.as_ref())?;
        match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(id_of(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(explain(&self.path.join(name), e)),
        }
    }

    /// Reads a whole file that has at most `cap` bytes; a longer one is an error of kind `FileTooLarge`.
    pub fn read_bounded(&self, name: impl AsRef<OsStr>, cap: u64) -> io::Result<Vec<u8>> {
        let name = name.as_ref();
        let file = self.open_read(name)?;
        let mut bytes = Vec::new();
        let read = file.take(cap.saturating_add(1)).read_to_end(&mut bytes);
        let len = read.map_err(|e| explain_io(&self.path.join(name), &e))?;
        if u64::try_from(len).is_ok_and(|len| len > cap) {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("{}: longer than {cap} bytes", self.path.join(name).display()),
            ));
        }
        Ok(bytes)
    }

    /// Brings the folder's names to the disk.
    pub fn sync(&self) -> io::Result<()> {
        fsync(&self.fd).map_err(|e| explain(&self.path, e))
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `name` if it is a single path component: not empty, no `/` or NUL, not `.` or `..`.
pub fn component(name: &OsStr) -> io::Result<&OsStr> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{}: not a single file name", name.display())));
    }
    Ok(name)
}

fn mode_of(mode: u32) -> Mode {
    // `mode_t` is narrower than u32 on macOS; permission bits fit in both.
    Mode::from_bits_truncate(libc::mode_t::try_from(mode & 0o7777).unwrap_or(0o600))
}

/// Opens whatever is at `path` for reading and never waits, as opening a FIFO would. Where `follow` is false a symbolic link
/// at the end of the path, or in the place of the folder that holds it, is an error.
pub fn open_path(path: &Path, follow: bool) -> io::Result<File> {
    if follow {
        let flags = FILE.difference(OFlag::O_NOFOLLOW) | OFlag::O_RDONLY;
        return Ok(openat(AT_FDCWD, path, flags, Mode::empty()).map(File::from)?);
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no name of a file"));
    };
    match openat(&Dir::open_nofollow(above)?.fd, name, FILE | OFlag::O_RDONLY, Mode::empty()) {
        Ok(fd) => Ok(File::from(fd)),
        Err(Errno::ELOOP) => Err(io::Error::other("it is a symbolic link")),
        Err(e) => Err(e.into()),
    }
}

/// What somebody else has removed already is removed.
fn gone(result: nix::Result<()>) -> nix::Result<()> {
    match result {
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

fn kind_of(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

fn not_regular(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{}: not a regular file; remove it", path.display()))
}

fn check_owner(path: &Path, stat: &FileStat) -> io::Result<()> {
    let refuse = |why: &str| Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{}: {why}", path.display())));
    if stat.st_uid != geteuid().as_raw() {
        return refuse(&format!("belongs to user {}, not to you; cpw uses only your own files", stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 {
        return refuse("others can write to it; run `chmod go-w` on it");
    }
    Ok(())
}

#[expect(clippy::allow_attributes, reason = "the types of the fields differ between systems")]
#[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "needed where st_dev is signed or narrower")]
fn id_of(stat: &FileStat) -> FileId {
    let (size, nlink) = (stat.st_size as u64, stat.st_nlink as u64);
    FileId { dev: stat.st_dev as u64, ino: stat.st_ino as u64, size, nlink, born: 0 }
}

fn explain(path: &Path, e: Errno) -> io::Error {
    let kind = io::Error::from(e).kind();
    // What O_NOFOLLOW says about a symbolic link, alone and with O_DIRECTORY.
    let link = e == Errno::ELOOP || (e == Errno::ENOTDIR && path.is_symlink());
    if link {
        return io::Error::new(kind, format!("{}: is a symbolic link, which cpw does not follow here", path.display()));
    }
    io::Error::new(kind, format!("{}: {}", path.display(), e.desc()))
}

fn explain_io(path: &Path, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::testing::{again, role};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn folder() -> (tempfile::TempDir, Dir) {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        (temp, dir)
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn what_dead_writers_left_is_swept_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let (dead, me) = (gone.id(), std::process::id());
        let stay =
            [format!(".tmp.{me}.0"), ".tmp.x".into(), ".gitignore".into(), format!("{dead}.0"), ".tmp.0.1".into()];
        for name in stay.iter().cloned().chain([format!(".tmp.{dead}.0"), format!(".{dead}.17.all")]) {
            std::fs::write(temp.path().join(name), "").unwrap();
        }
        dir.sweep();
        let mut left: Vec<String> = dir.names().unwrap().into_iter().map(|n| n.into_string().unwrap()).collect();
        left.sort();
        let mut expected = stay.to_vec();
        expected.sort();
        assert_eq!(left, expected);
    }

    #[test]
    fn symbolic_links_are_not_followed() {
        let (temp, dir) = folder();
        let (outside, there) = folder();
        there.write_atomic("file", b"secret", 0o600, false).unwrap();
        symlink(outside.path().join("file"), temp.path().join("file")).unwrap();
        symlink(outside.path(), temp.path().join("folder")).unwrap();
        symlink(outside.path().join("new"), temp.path().join("new")).unwrap();
        for error in [
            dir.open_read("file").unwrap_err(),
            dir.open_append("file").unwrap_err(),
            dir.open_append("new").unwrap_err(),
            dir.open_rw("new").unwrap_err(),
            dir.read_bounded("file", 100).unwrap_err(),
            dir.sub("folder").unwrap_err(),
            dir.create_sub("folder", 0o700).unwrap_err(),
            Dir::open_nofollow(temp.path().join("folder")).unwrap_err(),
        ] {
            assert!(error.to_string().contains("symbolic link"), "{error}");
        }
        assert!(dir.create_new("new", 0o600).is_err());
        assert_eq!(there.names().unwrap(), ["file"], "something was made behind a link");
        // Replacing the link itself is fine: what it points to stays.
        dir.write_atomic("file", b"mine", 0o600, false).unwrap();
        assert_eq!(there.read_bounded("file", 100).unwrap(), b"secret");
        assert_eq!(dir.read_bounded("file", 100).unwrap(), b"mine");
    }

    #[test]
    fn names_are_single_components() {
        let (_temp, dir) = folder();
        for bad in ["", ".", "..", "a/b", "/etc", "a\0b"] {
            assert_eq!(dir.open_rw(bad).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
            assert!(
                dir.create_sub(bad, 0o700).is_err() && dir.remove(bad).is_err() && dir.stat(bad).is_err(),
                "{bad:?}"
            );
            assert!(dir.write_atomic(bad, b"", 0o600, false).is_err() && dir.rename("a", bad).is_err(), "{bad:?}");
        }
        for good in ["...", ".hidden", "-", "ä ö"] {
            assert!(dir.open_rw(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn files_that_others_can_write_or_that_are_no_files_are_refused() {
        let (temp, dir) = folder();
        drop(dir.create_new("shared", 0o620).unwrap());
        let shared = dir.open_read("shared").unwrap_err();
        assert!(
            shared.kind() == io::ErrorKind::PermissionDenied && shared.to_string().contains("chmod go-w"),
            "{shared}"
        );
        nix::unistd::mkfifo(&temp.path().join("fifo"), Mode::S_IRWXU).unwrap();
        assert!(dir.open_read("fifo").unwrap_err().to_string().contains("not a regular file"));
        dir.create_sub("folder", 0o700).unwrap();
        assert!(dir.open_read("folder").unwrap_err().to_string().contains("not a regular file"));
        assert!(dir.check_private().is_ok());
        assert!(dir.create_sub("open", 0o777).unwrap().check_private().is_err());
    }

    #[test]
    fn nothing_is_written_through_a_second_name() {
        let (temp, dir) = folder();
        let (outside, there) = folder();
        there.write_atomic("file", b"theirs", 0o600, false).unwrap();
        std::fs::hard_link(outside.path().join("file"), temp.path().join("file")).unwrap();
        for error in [
            dir.open_append("file").unwrap_err(),
            dir.open_append_existing("file").unwrap_err(),
            dir.open_rw("file").unwrap_err(),
            dir.open_existing("file").unwrap_err(),
        ] {
            assert!(error.to_string().contains("hard link"), "{error}");
        }
        dir.write_atomic("file", b"mine", 0o600, false).unwrap();
        assert_eq!(there.read_bounded("file", 100).unwrap(), b"theirs");
        dir.open_rw("file").unwrap();
    }

    #[test]
    fn a_file_is_moved_as_itself_and_over_nothing() {
        let (temp, dir) = folder();
        let (from, to) = (dir.make_new_sub("from", 0o700).unwrap(), dir.make_new_sub("to", 0o700).unwrap());
        from.write_atomic("a", b"a", 0o600, false).unwrap();
        from.write_atomic("b", b"b", 0o600, false).unwrap();
        to.write_atomic("b", b"first", 0o600, false).unwrap();
        symlink("/etc/passwd", temp.path().join("from/link")).unwrap();
        nix::unistd::mkfifo(&temp.path().join("from/fifo"), Mode::S_IRWXU).unwrap();
        from.move_file("a", &to).unwrap();
        for name in ["b", "link", "fifo"] {
            assert!(from.move_file(name, &to).is_err(), "{name}");
        }
        assert_eq!((from.names().unwrap().len(), to.names().unwrap().len()), (3, 2));
        assert_eq!(to.read_bounded("b", 9).unwrap(), b"first");
        assert_eq!(to.stat("a").unwrap().unwrap().nlink, 1);
    }

    #[test]
    fn files_of_other_users_are_refused() {
        let (temp, mut dir) = folder();
        if geteuid().is_root() {
            drop(dir.create_new("passwd", 0o644).unwrap());
            std::os::unix::fs::chown(temp.path().join("passwd"), Some(65534), None).unwrap();
        } else {
            dir = Dir::open("/etc").unwrap();
        }
        let refused = dir.open_read("passwd").unwrap_err();
        assert!(refused.to_string().contains("not to you"), "{refused}");
    }

    #[test]
    fn modes_do_not_depend_on_the_umask() {
        const TEST: &str = "sys::dir::tests::modes_do_not_depend_on_the_umask";
        if role().is_none() {
            let (text, status) = crate::sys::testing::Helper::start(&mut again(TEST, "masked")).finish();
            assert!(status.success(), "{text}");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        if geteuid().is_root() {
            // Root may open everything, whatever its mode: only another user sees what a umask has taken away.
            std::os::unix::fs::chown(temp.path(), Some(65534), Some(65534)).unwrap();
            nix::unistd::seteuid(65534.into()).unwrap();
        }
        let dir = Dir::open(temp.path()).unwrap();
        for mask in [0, 0o077, 0o177, 0o277, 0o777] {
            let dir = dir.make_new_sub(format!("{mask:o}"), 0o700).unwrap();
            nix::sys::stat::umask(Mode::from_bits_truncate(mask));
            dir.create_sub("a", 0o700).unwrap();
            dir.make_new_sub("b", 0o755).unwrap();
            drop(dir.create_new("c", 0o644).unwrap());
            dir.write_atomic("d", b"", 0o400, false).unwrap();
            drop(dir.open_append("e").unwrap());
            drop(dir.open_rw("f").unwrap());
            let bell = crate::sys::bell::Bell::hang(&dir, "all", || unreachable!("it is a FIFO")).unwrap();
            let bell = mode(&dir.path().join(bell.name().unwrap()));
            let modes: Vec<u32> = ["a", "b", "c", "d", "e", "f"].iter().map(|n| mode(&dir.path().join(n))).collect();
            assert_eq!((modes, bell & 0o077), (vec![0o700, 0o755, 0o644, 0o400, 0o600, 0o600], 0), "{mask:o}");
            nix::sys::stat::umask(Mode::empty());
        }
        if geteuid().as_raw() == 65534 && nix::unistd::getuid().is_root() {
            nix::unistd::seteuid(0.into()).unwrap();
        }
    }

    #[test]
    fn of_many_who_make_a_folder_one_gets_it() {
        let (temp, _) = folder();
        let made = std::thread::scope(|scope| {
            let tries: Vec<_> =
                (0..8).map(|_| scope.spawn(|| Dir::open(temp.path()).unwrap().make_new_sub("W1", 0o700))).collect();
            tries
                .into_iter()
                .map(|t| t.join().unwrap())
                .filter(|made| match made {
                    Ok(_) => true,
                    Err(e) => {
                        assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
                        false
                    }
                })
                .count()
        });
        assert_eq!(made, 1);
    }

    #[test]
    fn atomic_writes_replace_whole_files_and_leave_nothing_else() {
        let (temp, dir) = folder();
        for (n, sync) in [(0u8, false), (1, true)] {
            dir.write_atomic("state", &vec![n; 100_000], 0o400, sync).unwrap();
            assert_eq!(dir.read_bounded("state", 100_000).unwrap(), vec![n; 100_000]);
        }
        assert_eq!(mode(&temp.path().join("state")), 0o400);
        dir.create_sub("taken", 0o700).unwrap();
        let error = dir.write_atomic("taken", b"x", 0o600, false).unwrap_err();
        assert!(error.to_string().contains("taken"), "{error}");
        assert_eq!(dir.names().unwrap(), ["state", "taken"]);
    }

    #[test]
    fn reading_is_bounded_and_appending_appends() {
        let (_temp, dir) = folder();
        assert_eq!(dir.open_append_existing("log").unwrap_err().kind(), io::ErrorKind::NotFound);
        dir.open_append("log").unwrap().write_all(b"one").unwrap();
        dir.open_append_existing("log").unwrap().write_all(b"two").unwrap();
        assert_eq!(dir.read_bounded("log", 6).unwrap(), b"onetwo");
        assert_eq!(dir.read_bounded("log", 5).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(dir.read_bounded("none", 5).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(dir.create_new("log", 0o600).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_file_is_known_by_its_inode_after_it_was_replaced() {
        let (_temp, dir) = folder();
        dir.write_atomic("log", b"12345", 0o600, false).unwrap();
        let file = dir.open_read("log").unwrap();
        let id = FileId::of(&file).unwrap();
        let named = FileId { born: 0, ..id };
        assert_eq!((dir.stat("log").unwrap(), id.size, id.nlink), (Some(named), 5, 1));
        dir.write_atomic("log", b"1", 0o600, false).unwrap();
        assert!(!dir.stat("log").unwrap().unwrap().same_file(&id));
        assert_eq!(FileId::of(&file).unwrap().nlink, 0);
        assert!(dir.remove("log").unwrap() && !dir.remove("log").unwrap());
        assert_eq!(dir.stat("log").unwrap(), None);
    }

    #[test]
    fn a_folder_is_emptied_however_deep_and_no_link_is_followed() {
        let (tmp, dir) = folder();
        let outside = tmp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("kept"), "kept").unwrap();
        let top = dir.make_new_sub("top", 0o700).unwrap();
        let mut deep = top.try_clone().unwrap();
        for level in 0..1500 {
            let below = deep.make_new_sub("d", 0o700).unwrap();
            if level % 7 == 3 {
                fchmod(&deep.fd, Mode::S_IXUSR).unwrap();
            }
            deep = below;
            if level % 100 == 0 {
                std::io::Write::write_all(&mut deep.create_new("file", 0o400).unwrap(), b"12345").unwrap();
            }
        }
        symlinkat(outside.as_os_str(), &deep.fd, "link").unwrap();
        symlinkat(outside.as_os_str(), &top.fd, "link").unwrap();
        nix::unistd::mkfifo(&top.path().join("fifo"), Mode::S_IRUSR).unwrap();
        std::fs::write(top.path().join(".tmp.0"), "in the way").unwrap();
        std::fs::hard_link(outside.join("kept"), top.path().join("second")).unwrap();
        assert_eq!(top.empty().unwrap(), 15 * 5 + 10);
        assert!(top.names().unwrap().is_empty());
        assert_eq!(top.empty().unwrap(), 0);
        dir.remove_folder("top").unwrap();
        dir.remove_folder("top").unwrap();
        assert_eq!(std::fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    }

    #[test]
    fn a_folder_is_linked_with_all_that_is_in_it() {
        let (tmp, dir) = folder();
        let (from, to) = (dir.make_new_sub("from", 0o700).unwrap(), dir.make_new_sub("to", 0o700).unwrap());
        std::fs::create_dir_all(tmp.path().join("from/a/b")).unwrap();
        std::fs::write(tmp.path().join("from/a/b/file"), "content").unwrap();
        std::fs::write(tmp.path().join("from/shared"), "others may write").unwrap();
        symlinkat("/nowhere", &from.fd, "link").unwrap();
        nix::unistd::mkfifo(&from.path().join("fifo"), Mode::S_IRUSR).unwrap();
        from.link_all(&to).unwrap();
        assert_eq!(std::fs::read_to_string(tmp.path().join("to/a/b/file")).unwrap(), "content");
        assert_eq!(std::fs::read_link(tmp.path().join("to/link")).unwrap(), Path::new("/nowhere"));
        assert_eq!(to.names().unwrap(), ["a", "link", "shared"]);
        // What cannot have a second name is copied.
        from.copy(&from, OsStr::new("shared")).unwrap_err();
        from.sub("a").unwrap().sub("b").unwrap().copy(&to, OsStr::new("file")).unwrap();
        assert_eq!(std::fs::read_to_string(tmp.path().join("to/file")).unwrap(), "content");
        from.empty().unwrap();
        assert_eq!(std::fs::read_to_string(tmp.path().join("to/a/b/file")).unwrap(), "content");
        let mut deep = from.try_clone().unwrap();
        for _ in 0..=MAX_NESTED {
            deep = deep.make_new_sub("d", 0o700).unwrap();
        }
        assert!(from.link_all(&dir.make_new_sub("deep", 0o700).unwrap()).is_err());
    }

    #[test]
    fn a_handle_stays_with_its_folder_when_the_path_is_exchanged() {
        let (temp, dir) = folder();
        let run = dir.create_sub("run", 0o700).unwrap();
        dir.rename("run", "moved").unwrap();
        dir.create_sub("run", 0o700).unwrap();
        run.write_atomic("file", b"", 0o600, true).unwrap();
        assert!(temp.path().join("moved/file").exists() && !temp.path().join("run/file").exists());
    }
}
