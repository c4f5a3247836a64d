//! All that a log asks of the operating system, behind one trait: one file, appended to under a lock and read without it.
//!
//! There is one real implementation, [`LogFile`]. Tests have another, a disk that fails, tears and forgets at any call they
//! choose; that is why the trait is this small, and why nothing of the log goes past it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::dir::{Dir, FileId};
use super::lock;

/// Which lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// To write: nobody else holds one.
    Exclusive,
    /// To read with no writer in between.
    Shared,
}

/// A file that lines are appended to.
pub trait Medium {
    /// Which file it is, as of when it was opened.
    fn id(&self) -> &FileId;
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// One read at `offset`; returns how many bytes came, 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// One write at the end; returns how many bytes went out.
    fn append(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Cuts it to `length` bytes.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Brings its data and length to the disk.
    fn sync(&self) -> io::Result<()>;
    /// Takes the lock; `false` if it cannot be had within `budget`.
    fn lock(&self, hold: Hold, budget: Duration) -> io::Result<bool>;
    /// Gives the lock back.
    fn unlock(&self) -> io::Result<()>;
    /// Its length in bytes, if it is still the file that its folder has under its name.
    fn named_len(&self) -> io::Result<Option<u64>>;

    /// Whether nothing is in it.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|n| n == 0)
    }

    /// Fills `buffer` from `offset` on; an error if the file ends before.
    fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.read_at(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buffer = buffer.split_at_mut(n).1;
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// A file in a folder.
#[derive(Debug)]
pub struct LogFile {
    file: File,
    id: FileId,
    dir: Dir,
    name: &'static str,
}

impl LogFile {
    /// Makes an empty one, 0600. Fails if there is one of that name.
    pub fn create(dir: &Dir, name: &'static str) -> io::Result<LogFile> {
        dir.create_new(name, 0o600)?;
        LogFile::open(dir, name)
    }

    /// Opens an existing one to read and to append.
    pub fn open(dir: &Dir, name: &'static str) -> io::Result<LogFile> {
        LogFile::with_file(dir, name, dir.open_append_existing(name)?)
    }

    /// Opens an existing one to read only, as on a read-only file system.
    pub fn open_read(dir: &Dir, name: &'static str) -> io::Result<LogFile> {
        LogFile::with_file(dir, name, dir.open_read(name)?)
    }

    fn with_file(dir: &Dir, name: &'static str, file: File) -> io::Result<LogFile> {
        Ok(LogFile { id: FileId::of(&file)?, file, dir: dir.try_clone()?, name })
    }
}

impl Medium for LogFile {
    fn id(&self) -> &FileId {
        &self.id
    }

    fn len(&self) -> io::Result<u64> {
        self.file.metadata().map(|m| m.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.file, buffer, offset)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut self.file, bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn lock(&self, hold: Hold, budget: Duration) -> io::Result<bool> {
        match hold {
            Hold::Exclusive => lock::lock_exclusive(&self.file, budget),
            Hold::Shared => lock::lock_shared(&self.file, budget),
        }
    }

    fn unlock(&self) -> io::Result<()> {
        lock::unlock(&self.file)
    }

    fn named_len(&self) -> io::Result<Option<u64>> {
        Ok(self.dir.stat(self.name)?.filter(|named| named.same_file(&self.id)).map(|named| named.size))
    }
}
