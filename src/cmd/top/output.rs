//! A window on what an attempt has written: its two files, read at the end, or where somebody has scrolled to. However long
//! they are, one piece is read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::base::ids::WorkerNo;
use crate::store::run::{self, RunDir};
use crate::sys::spool;
use crate::ui::top::picture::{Output, Stream};
use crate::ui::top::view::Scroll;
use crate::ui::top::window::{self, PIECE};

/// Whose output it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) task: crate::base::ids::TaskId,
    pub(super) worker: WorkerNo,
    pub(super) attempt: u32,
}

/// The window.
#[derive(Debug, Default)]
pub(super) struct Reader {
    of: Option<Of>,
    files: [Option<File>; 2],
    rows: usize,
    /// What it shows.
    pub(super) output: Output,
}

impl Reader {
    /// Looks at another attempt, or at none, which has its reason.
    pub(super) fn open(&mut self, of: Result<Of, String>) {
        match of {
            Ok(of) if self.of.as_ref() == Some(&of) => {}
            Ok(of) => *self = Reader { of: Some(of), rows: self.rows, ..Reader::default() },
            Err(why) => {
                *self = Reader { rows: self.rows, ..Reader::default() };
                self.output.absent = Some(why);
            }
        }
    }

    /// Takes in what is new, for a screen of so many rows. Returns whether there is something.
    pub(super) fn refresh(&mut self, folder: &RunDir, rows: usize) -> bool {
        let Some(of) = &self.of else { return false };
        let wider = rows > std::mem::replace(&mut self.rows, rows);
        let mut changed = false;
        for (n, name) in run::output_names(&of.task, of.attempt).into_iter().enumerate() {
            if self.files[n].is_none() {
                // Not there yet: an attempt is in the log before it has files.
                self.files[n] = folder.worker(of.worker).and_then(|w| w.sub("logs")?.open_read(name)).ok();
            }
            let Some(file) = &self.files[n] else { continue };
            let stream = &mut self.output.streams[n];
            let bytes = file.metadata().map_or(0, |m| m.len());
            if bytes == stream.bytes && !wider {
                continue;
            }
            // It was cut: the places in it are others now.
            stream.until = stream.until.filter(|until| bytes >= stream.bytes && *until <= bytes);
            stream.bytes = bytes;
            if stream.until.is_none() || wider {
                read(file, stream, rows);
            }
            changed = true;
        }
        changed
    }

    /// Moves the window on one of the two, stdout being the first. `rows` of it are seen.
    pub(super) fn scroll(&mut self, n: usize, scroll: Scroll, rows: usize) {
        let (Some(file), Some(stream)) = (&self.files[n], self.output.streams.get_mut(n)) else { return };
        stream.until = match scroll {
            Scroll::Up(by) => up(file, stream, by, rows),
            Scroll::Down(by) => stream.until.and_then(|from| forward(file, from, by)),
            Scroll::Home => forward(file, 0, rows),
            Scroll::End => None,
        }
        .filter(|until| *until < stream.bytes);
        read(file, stream, self.rows);
    }
}

/// Reads from `from` to `to`, and no more than a piece.
fn piece(file: &File, from: u64, to: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(to.saturating_sub(from).min(PIECE)).unwrap_or(0)];
    let mut read = 0;
    while read < bytes.len() {
        match file.read_at(&mut bytes[read..], from + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            // What cannot be read is not shown; the next look tries again.
            Err(_) => break,
        }
    }
    bytes.truncate(read);
    bytes
}

/// The piece that ends at `until`, and where it begins. What was given back to the disk is stepped over.
fn piece_before(file: &File, until: u64) -> (u64, Vec<u8>) {
    let from = until.saturating_sub(PIECE);
    let data = spool::next_data(file, from);
    let (from, until) = match data {
        _ if data < until => (data, until),
        // The window is in the hole: what stands before it.
        _ => (spool::HEAD.min(from).saturating_sub(PIECE), spool::HEAD.min(from)),
    };
    (from, piece(file, from, until))
}

fn read(file: &File, stream: &mut Stream, rows: usize) {
    let (from, bytes) = piece_before(file, stream.until.unwrap_or(stream.bytes));
    stream.lines = window::last_lines(&bytes, from, rows).into_iter().map(|(_, line)| window::shown(line)).collect();
}

/// Where the window ends that stands `by` lines further up; it stays full.
fn up(file: &File, stream: &Stream, by: usize, rows: usize) -> Option<u64> {
    let (from, bytes) = piece_before(file, stream.until.unwrap_or(stream.bytes));
    let lines = window::last_lines(&bytes, from, by + rows);
    let enough = lines.len() >= by + rows;
    match lines.len().checked_sub(by) {
        Some(at) if enough => lines.get(at).map(|(begin, _)| *begin),
        _ if from == 0 => forward(file, 0, rows),
        // What was given back stands before it, or it is a piece of a line that is longer than a piece.
        _ => lines.first().map(|(begin, _)| *begin),
    }
}

/// Where the window ends that stands `by` lines behind `from`; `None` at the end of the file.
fn forward(file: &File, from: u64, by: usize) -> Option<u64> {
    let from = spool::next_data(file, from);
    let bytes = piece(file, from, u64::MAX);
    let whole = bytes.len() as u64 == PIECE;
    // A line longer than a piece, or what was given back, which is passed in one step.
    window::end_of_line(&bytes, from, by).or_else(|| whole.then(|| spool::next_data(file, from + PIECE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn window(text: &[u8], rows: usize) -> (Reader, tempfile::NamedTempFile) {
        let mut temp = tempfile::NamedTempFile::new().unwrap();
        temp.write_all(text).unwrap();
        let mut reader = Reader { rows, ..Reader::default() };
        reader.files[0] = Some(File::open(temp.path()).unwrap());
        reader.output.streams[0].bytes = text.len() as u64;
        reader.scroll(0, Scroll::End, rows);
        (reader, temp)
    }

    fn lines(reader: &Reader) -> Vec<&str> {
        reader.output.streams[0].lines.iter().map(String::as_str).collect()
    }

    #[test]
    fn a_window_moves_through_a_file_and_back() {
        let text = (0..100).map(|n| n.to_string()).collect::<Vec<_>>().join("\n") + "\n";
        let (mut reader, _temp) = window(text.as_bytes(), 3);
        assert_eq!(lines(&reader), ["97", "98", "99"]);
        reader.scroll(0, Scroll::Up(2), 3);
        assert_eq!(lines(&reader), ["95", "96", "97"]);
        assert!(reader.output.streams[0].until.is_some());
        reader.scroll(0, Scroll::Down(1), 3);
        assert_eq!(lines(&reader), ["96", "97", "98"]);
        reader.scroll(0, Scroll::Down(5), 3);
        assert_eq!(
            (lines(&reader), reader.output.streams[0].until),
            (vec!["97", "98", "99"], None),
            "it follows again"
        );
        reader.scroll(0, Scroll::Home, 3);
        assert_eq!(lines(&reader), ["0", "1", "2"]);
        reader.scroll(0, Scroll::Up(9), 3);
        assert_eq!(lines(&reader), ["0", "1", "2"], "there is nothing above");
        reader.scroll(0, Scroll::Down(96), 3);
        reader.scroll(0, Scroll::Up(1000), 3);
        assert_eq!(lines(&reader), ["0", "1", "2"]);
    }

    #[test]
    fn a_short_file_stays_where_it_is() {
        let (mut reader, _temp) = window(b"one\ntwo", 5);
        for scroll in [Scroll::Up(1), Scroll::Home, Scroll::Down(1), Scroll::Up(100)] {
            reader.scroll(0, scroll, 5);
            assert_eq!((lines(&reader), reader.output.streams[0].until), (vec!["one", "two"], None), "{scroll:?}");
        }
    }

    #[test]
    fn lines_longer_than_a_piece_can_be_passed() {
        let long = vec![b'x'; usize::try_from(PIECE).unwrap() * 3];
        let (mut reader, _temp) = window(&[b"first\n", &long[..], b"\nlast\n"].concat(), 2);
        assert_eq!(lines(&reader).last(), Some(&"last"));
        for _ in 0..10 {
            reader.scroll(0, Scroll::Up(1), 2);
        }
        assert_eq!(lines(&reader)[0], "first");
        for _ in 0..10 {
            reader.scroll(0, Scroll::Down(1), 2);
        }
        assert_eq!(lines(&reader).last(), Some(&"last"));
    }

    #[test]
    fn what_was_given_back_to_the_disk_is_stepped_over() {
        let temp = tempfile::NamedTempFile::new().unwrap();
        let file = temp.as_file();
        let line = b"fifteen letters\n";
        file.write_all_at(&line.repeat(usize::try_from(spool::HEAD).unwrap() / line.len()), 0).unwrap();
        file.write_all_at(b"tail\nend\n", spool::HEAD * 8).unwrap();
        let mut reader = Reader { rows: 1, ..Reader::default() };
        reader.files[0] = Some(File::open(temp.path()).unwrap());
        reader.output.streams[0].bytes = file.metadata().unwrap().len();
        for (scroll, shown) in [
            (Scroll::End, "end"),
            (Scroll::Up(1), "tail"),
            (Scroll::Up(1), "fifteen letters"),
            (Scroll::Up(1), "fifteen letters"),
            (Scroll::Down(2), "fifteen letters"),
            (Scroll::Down(1), "tail"),
            (Scroll::Home, "fifteen letters"),
        ] {
            reader.scroll(0, scroll, 1);
            assert_eq!(lines(&reader), [shown], "{scroll:?}");
        }
        assert_eq!(reader.output.streams[0].until, Some(line.len() as u64));
    }
}
