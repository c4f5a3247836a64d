//! Reading a file that must be the user's own, and replacing a file as a whole or not at all.

use std::fs::{Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::sys::dir::{Dir, FileId, open_path};
use crate::sys::process;
use crate::sys::random;

/// The rights of a file that is written.
#[derive(Debug, Clone, Copy)]
pub enum Rights<'a> {
    /// 0600, whatever the umask.
    Private,
    /// What the umask leaves of 0666.
    Usual,
    /// Mode and owner of the file that is replaced.
    Of(&'a Metadata),
}

/// Replaces `path` by a file with these bytes, atomically: a temporary file in the same folder, synced, then renamed. On an
/// error the old file is as it was and nothing else is left behind. A symbolic link at `path` would itself be replaced:
/// see [`behind_links`]. Its folder is opened once: whatever is exchanged on the way to it, all of this happens in one folder.
pub fn replace(path: &Path, bytes: &[u8], rights: Rights) -> io::Result<()> {
    replace_with(path, rights, |_| Ok(bytes.to_vec()))
}

/// As [`replace`], by bytes that are made once it is known which file they are for.
pub fn replace_with(path: &Path, rights: Rights, make: impl FnOnce(&FileId) -> io::Result<Vec<u8>>) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("it is no name of a file"))?;
    let folder = match rights {
        // Our own affair: no link is in the place of the folder either.
        Rights::Private => Dir::open_nofollow(folder_of(path)),
        Rights::Usual | Rights::Of(_) => Dir::open(folder_of(path)),
    };
    let folder = folder.map_err(|e| bare(e, folder_of(path)))?;
    let temporary = format!(".cpw-{}", random::hex());
    let put = || {
        write_new(&folder, &temporary, rights, make)?;
        folder.rename(&temporary, name)
    };
    if let Err(e) = put() {
        drop(folder.remove(&temporary));
        return Err(bare(e, &folder.path().join(&temporary)));
    }
    // The rename is done; a folder that cannot be synced only makes it last less surely.
    drop(folder.sync());
    Ok(())
}

/// The reason alone: who calls names the file that was meant, and the temporary one is of no use to a reader.
fn bare(e: io::Error, path: &Path) -> io::Error {
    match e.to_string().strip_prefix(&format!("{}: ", path.display())) {
        Some(reason) => io::Error::new(e.kind(), reason.to_owned()),
        None => e,
    }
}

fn write_new(
    folder: &Dir,
    name: &str,
    rights: Rights,
    make: impl FnOnce(&FileId) -> io::Result<Vec<u8>>,
) -> io::Result<()> {
    let mut file = match rights {
        Rights::Usual => folder.create_usual(name)?,
        // Without the right to read for others until the final mode is set.
        Rights::Private | Rights::Of(_) => folder.create_new(name, 0o600)?,
    };
    if let Rights::Of(old) = rights {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            // It stays whose it was: only root can do that, where it changes a file of somebody else.
            let changed = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
            // A group that cannot be kept is no loss of control; an owner would be.
            if new.uid() != old.uid() {
                changed?;
            }
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o7777))?;
    }
    file.write_all(&make(&FileId::of(&file)?)?)?;
    file.sync_all()
}

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Where writing to `path` ends up: follows symbolic links, also to a file that does not exist yet.
pub fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As many as the kernel follows.
    for _ in 0..40 {
        match std::fs::read_link(&path) {
            Ok(target) => path = folder_of(&path).join(target),
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => return Ok(path),
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("too many symbolic links lead on from it"))
}

/// Reads a regular file of at most `max` bytes; `None` if there is none.
pub fn read(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    read_with(path, max, true, |_| Ok(()))
}

/// As [`read`], of a file that nobody else can have written: not through a link, owned by this user, not writable by
/// group or others.
///
/// With it comes which file it is.
pub fn read_own(path: &Path, max: u64) -> io::Result<Option<(Vec<u8>, FileId)>> {
    read_known(path, max, false, |meta| {
        if meta.uid() != process::user() {
            return Err(io::Error::other(format!("it belongs to user {}, not to you", meta.uid())));
        }
        if meta.mode() & 0o022 != 0 {
            return Err(io::Error::other(format!("others may write to it (mode {:o})", meta.mode() & 0o7777)));
        }
        Ok(())
    })
}

/// As [`read`], of a file that the user keeps, maybe behind a link, and that a stranger cannot have written: owned by this
/// user or root, and not writable by others, nor by a group that is not the user's own.
pub fn read_trusted(path: &Path, max: u64) -> io::Result<Option<Vec<u8>>> {
    read_with(path, max, true, |meta| {
        if meta.uid() != process::user() && meta.uid() != 0 {
            return Err(io::Error::other(format!("it belongs to user {}, not to you", meta.uid())));
        }
        let by_group = meta.mode() & 0o020 != 0 && meta.gid() != process::group();
        if by_group || meta.mode() & 0o002 != 0 {
            return Err(io::Error::other(format!("others may write to it (mode {:o})", meta.mode() & 0o7777)));
        }
        Ok(())
    })
}

fn read_with(
    path: &Path,
    max: u64,
    follow: bool,
    check: impl Fn(&Metadata) -> io::Result<()>,
) -> io::Result<Option<Vec<u8>>> {
    Ok(read_known(path, max, follow, check)?.map(|(bytes, _)| bytes))
}

fn read_known(
    path: &Path,
    max: u64,
    follow: bool,
    check: impl Fn(&Metadata) -> io::Result<()>,
) -> io::Result<Option<(Vec<u8>, FileId)>> {
    let file = match open_path(path, follow) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    check(&meta)?;
    let id = FileId::of(&file)?;
    let mut bytes = Vec::with_capacity(usize::try_from(meta.len().min(max)).unwrap_or(0) + 1);
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {max} bytes")));
    }
    Ok(Some((bytes, id)))
}
