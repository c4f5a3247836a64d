//! Files that others write without end: the middle of one that has grown too long is given back to the disk while it grows,
//! so that its beginning and its end stay. Writers are not touched: they go on at their own offset, behind the hole.
//!
//! The file is cut for good only when nobody writes to it any more. Until then its length says more than it occupies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::lock::{self, Guard};

const MIB: u64 = 1024 * 1024;

/// A longer file is cut, in bytes.
pub const CAP: u64 = 64 * MIB;

/// What stays of its beginning, in bytes.
pub const HEAD: u64 = 16 * MIB;

/// What stays of its end, in bytes.
pub const TAIL: u64 = 32 * MIB;

/// Less than this is not given back at once, in bytes: each time costs a write of the file's map.
const STEP: u64 = 8 * MIB;

/// File systems give back whole blocks.
const BLOCK: u64 = 4096;

/// How much is copied at a time, in bytes.
const CHUNK: usize = 1024 * 1024;

/// How long somebody who trims may be waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// A file that somebody else writes.
#[derive(Debug)]
pub struct Spool {
    file: File,
    length: u64,
    given_back: u64,
}

impl Spool {
    /// `file` is open for reading and writing, and not the description that the writer has.
    pub fn new(file: File) -> Spool {
        Spool { file, length: 0, given_back: HEAD }
    }

    /// Its length at the last look, in bytes, with what was given back.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Gives the middle back if the file has become too long. Returns by how much it has grown since the last look.
    pub fn trim(&mut self) -> io::Result<u64> {
        let length = self.file.metadata()?.len();
        let grown = length.saturating_sub(self.length);
        self.length = length;
        if length <= CAP || (length - TAIL).saturating_sub(self.given_back) < STEP {
            return Ok(grown);
        }
        // Whoever cuts it for good holds the lock, and what we know of its length may be wrong by then.
        if !lock::try_exclusive(&self.file)? {
            return Ok(grown);
        }
        let length = self.file.metadata()?.len();
        let end = length.saturating_sub(TAIL) / BLOCK * BLOCK;
        let given = if length > CAP && end > self.given_back { self.give_back(end) } else { Ok(()) };
        lock::unlock(&self.file)?;
        given.map(|()| grown)
    }

    fn give_back(&mut self, end: u64) -> io::Result<()> {
        match punch(&self.file, self.given_back, end - self.given_back) {
            Ok(()) => self.given_back = end,
            // The writer's next line goes behind a hole all the same; what came last is lost with the middle.
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.file.set_len(HEAD)?,
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn punch(file: &File, from: u64, length: u64) -> nix::Result<()> {
    use nix::fcntl::{FallocateFlags, fallocate};
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (from, length) = (i64::try_from(from), i64::try_from(length));
    let (Ok(from), Ok(length)) = (from, length) else { return Err(Errno::EFBIG) };
    fallocate(file, flags, from, length)
}

#[cfg(not(target_os = "linux"))]
fn punch(_file: &File, _from: u64, _length: u64) -> nix::Result<()> {
    Err(Errno::ENOSYS)
}

/// Cuts the middle out of a file that nobody writes any more, and says so in its place. Returns how many bytes are gone.
pub fn cut(file: &File) -> io::Result<u64> {
    if file.metadata()?.len() <= CAP {
        return Ok(0);
    }
    let _guard = Guard::exclusive(file, PATIENCE)?.ok_or(Errno::EWOULDBLOCK)?;
    let length = file.metadata()?.len();
    if length <= CAP {
        // Who wrote it has emptied it meanwhile.
        return Ok(0);
    }
    let gone = length - HEAD - TAIL;
    let mark = mark(gone);
    file.write_all_at(mark.as_bytes(), HEAD)?;
    let mut to = HEAD + mark.len() as u64;
    let mut from = length - TAIL;
    let mut buffer = vec![0_u8; CHUNK];
    while from < length {
        let n = file.read_at(&mut buffer, from)?;
        if n == 0 {
            break;
        }
        file.write_all_at(&buffer[..n], to)?;
        from += n as u64;
        to += n as u64;
    }
    file.set_len(to)?;
    Ok(gone)
}

/// What stands where bytes were cut out.
pub fn mark(gone: u64) -> String {
    format!("\n[cpw: {gone} bytes are cut out here]\n")
}

/// What was cut out of a file, at [`HEAD`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes that are gone.
    pub gone: u64,
    /// Bytes of the mark in their place.
    pub mark: u64,
}

impl Cut {
    /// Of a file that was cut. `None`: it is as it was written.
    pub fn of(file: &File) -> Option<Cut> {
        let mut bytes = [0_u8; 64];
        let n = file.read_at(&mut bytes, HEAD).ok()?;
        let digits = bytes[..n].strip_prefix(b"\n[cpw: ")?;
        let end = digits.iter().position(|b| !b.is_ascii_digit())?;
        let gone = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        let text = mark(gone);
        bytes.starts_with(text.as_bytes()).then_some(Cut { gone, mark: text.len() as u64 })
    }

    /// Where the byte stood, before the cut, that stands at `offset` now.
    pub fn before(self, offset: u64) -> u64 {
        let behind = HEAD + self.mark;
        if offset <= HEAD { offset } else { (offset.max(behind) - behind).saturating_add(HEAD + self.gone) }
    }

    /// Where the byte stands now that stood at `offset` before the cut; the mark's place, if it is gone.
    pub fn after(self, offset: u64) -> u64 {
        let behind = HEAD.saturating_add(self.gone);
        if offset < behind { offset.min(HEAD) } else { offset - behind + HEAD + self.mark }
    }
}

/// Where the next bytes are that were written, at `offset` or behind it: a reader steps over what was given back. The end of
/// the file where there are none, `offset` itself where the file system does not tell.
pub fn next_data(file: &File, offset: u64) -> u64 {
    let Ok(from) = i64::try_from(offset) else { return offset };
    match lseek(file, from, Whence::SeekData) {
        Ok(at) => u64::try_from(at).unwrap_or(offset),
        Err(Errno::ENXIO) => file.metadata().map_or(offset, |m| m.len().max(offset)),
        Err(_) => offset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    fn open(path: &Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    /// So many MiB of lines of 16 bytes; the first has the number `i`.
    fn lines(i: u64, mib: u64) -> Vec<u8> {
        let mut all = b"and more of it.\n".repeat(usize::try_from(mib * MIB / 16).unwrap());
        all[..16].copy_from_slice(format!("{i:015}\n").as_bytes());
        all
    }

    #[test]
    fn a_file_that_grows_without_end_keeps_its_beginning_and_its_end() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("out");
        let mut writer = File::create(&path).unwrap();
        let mut spool = Spool::new(open(&path));
        let each = 24;
        let rounds = 8;
        for round in 0..rounds {
            writer.write_all(&lines(round, each)).unwrap();
            assert_eq!(spool.trim().unwrap(), each * MIB);
            let occupied = std::fs::metadata(&path).unwrap().blocks() * 512;
            assert!(occupied <= CAP + (each + 1) * MIB, "{occupied} bytes on the disk after round {round}");
        }
        assert_eq!(next_data(&spool.file, 100), 100);
        assert_eq!(next_data(&spool.file, HEAD + 5), rounds * each * MIB - TAIL, "a reader would see the hole");
        drop(writer);
        let gone = cut(&open(&path)).unwrap();
        assert_eq!(gone, rounds * each * MIB - HEAD - TAIL);
        assert_eq!(cut(&open(&path)).unwrap(), 0, "cut once");
        let mark = mark(gone).len() as u64;
        let made = Cut::of(&open(&path)).unwrap();
        assert_eq!(made, Cut { gone, mark });
        let end = HEAD + gone + TAIL;
        for (now, before) in [(7, 7), (HEAD, HEAD), (HEAD + mark, HEAD + gone), (HEAD + mark + TAIL, end)] {
            assert_eq!((made.before(now), made.after(before)), (before, now));
        }
        assert_eq!(made.after(HEAD + 5), HEAD, "where it is said");
        let text = std::fs::read_to_string(&path).unwrap();
        let mark = format!("\n[cpw: {gone} bytes are cut out here]\n");
        let (head, tail) = text.split_once(&mark).unwrap();
        assert_eq!((head.len() as u64, tail.len() as u64), (HEAD, TAIL));
        assert!(head.starts_with("000000000000000\nand") && !head.contains("1\n"));
        assert_eq!(
            tail.matches(&format!("{:015}\n", rounds - 1)).count(),
            1,
            "the last bytes are not those written last"
        );
        assert!(!text.contains('\0'));
        assert_eq!(spool.trim().unwrap(), 0, "the cut file is left alone");
        assert_eq!(std::fs::read_to_string(&path).unwrap().len(), text.len());
    }

    #[test]
    fn a_file_within_its_bounds_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("out");
        std::fs::write(&path, lines(0, 64)).unwrap();
        let mut spool = Spool::new(open(&path));
        assert_eq!(spool.trim().unwrap(), CAP);
        assert_eq!(cut(&open(&path)).unwrap(), 0);
        assert_eq!(Cut::of(&open(&path)), None);
        assert_eq!(std::fs::read(&path).unwrap(), lines(0, 64));
    }

    #[test]
    fn without_holes_the_beginning_stays_and_the_writer_goes_on_behind_it() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("out");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(&lines(0, 80)).unwrap();
        let spool = Spool::new(open(&path));
        spool.file.set_len(HEAD).unwrap();
        writer.write_all(b"last\n").unwrap();
        drop(writer);
        assert_eq!(next_data(&spool.file, HEAD), 80 * MIB);
        cut(&spool.file).unwrap();
        assert!(std::fs::read(&path).unwrap().ends_with(b"\0last\n"));
    }
}
