//! A window on the output of a task: which lines of a piece of the file are shown, and as what. Pure: who reads the file
//! hands over bytes and where they begin. However long the file is, only the end of a piece is looked at.

use crate::base::text;

/// Bytes of a piece, at most: what is read for one picture.
pub const PIECE: u64 = 256 * 1024;

/// Bytes of a line that are looked at.
const LINE: usize = 4096;

/// Columns between two stops of a tab.
const TAB: usize = 8;

/// The last `rows` lines of a piece that begins at `start` of the file, oldest first: where each begins, and its bytes.
/// The first line of a piece from the middle of a file has no beginning and is left out, unless it is all there is.
pub fn last_lines(piece: &[u8], start: u64, rows: usize) -> Vec<(u64, &[u8])> {
    let mut lines = Vec::new();
    let mut end = piece.strip_suffix(b"\n").map_or(piece.len(), <[u8]>::len);
    if piece.is_empty() {
        return lines;
    }
    while lines.len() < rows {
        let begin = piece[..end].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        if begin > 0 || start == 0 || lines.is_empty() {
            lines.push((start + begin as u64, &piece[begin..end]));
        }
        if begin == 0 {
            break;
        }
        end = begin - 1;
    }
    lines.reverse();
    lines
}

/// Where the `rows`th line of a piece ends that begins at `start` of the file; `None` where there are not so many.
pub fn end_of_line(piece: &[u8], start: u64, rows: usize) -> Option<u64> {
    let ends = piece.iter().enumerate().filter(|(_, b)| **b == b'\n');
    ends.map(|(at, _)| start + at as u64 + 1).nth(rows.checked_sub(1)?)
}

/// A line as a terminal may show it: what stands behind the last carriage return, as a progress bar has it, without anything
/// that could move the cursor, with tabs as spaces.
pub fn shown(line: &[u8]) -> String {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let last = line.iter().rposition(|b| *b == b'\r').map_or(line, |at| &line[at + 1..]);
    let kept = &last[..last.len().min(LINE)];
    let mut out = String::new();
    let mut column = 0;
    for c in text::for_terminal(&String::from_utf8_lossy(kept)).chars() {
        if c == '\t' {
            let pad = TAB - column % TAB;
            out.extend(std::iter::repeat_n(' ', pad));
            column += pad;
        } else {
            out.push(c);
            column += 1;
        }
    }
    if last.len() > kept.len() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(piece: &[u8], start: u64, rows: usize) -> Vec<(u64, String)> {
        last_lines(piece, start, rows).into_iter().map(|(at, line)| (at, shown(line))).collect()
    }

    #[test]
    fn the_last_lines_of_a_piece_know_where_they_begin() {
        let own = |all: &[(u64, &str)]| all.iter().map(|(at, s)| (*at, (*s).to_owned())).collect::<Vec<_>>();
        assert_eq!(texts(b"a\nbb\n\nc\n", 0, 3), own(&[(2, "bb"), (5, ""), (6, "c")]));
        assert_eq!(texts(b"a\nbb", 0, 9), own(&[(0, "a"), (2, "bb")]), "the last may have no end yet");
        assert_eq!(texts(b"torn\nb\n", 100, 9), own(&[(105, "b")]), "the first has no beginning");
        assert_eq!(texts(b"torn", 100, 9), own(&[(100, "torn")]), "a line longer than a piece");
        assert_eq!(texts(b"", 0, 9), []);
        assert_eq!(texts(b"\n", 0, 9), own(&[(0, "")]));
        assert_eq!(texts(b"a\nb\n", 0, 0), []);
    }

    #[test]
    fn a_page_forward_ends_with_a_line() {
        assert_eq!(end_of_line(b"a\nbb\nc", 10, 2), Some(15));
        assert_eq!(end_of_line(b"a\nbb\nc", 10, 3), None);
        assert_eq!(end_of_line(b"a\n", 0, 0), None);
    }

    #[test]
    fn foreign_lines_are_harmless() {
        assert_eq!(shown(b"10%\r50%\r100%\r"), "100%");
        assert_eq!(shown(b"\x1b[2J\x1b]0;title\x07red\x1b[31m\ttab\x00\x08"), "red     tab");
        assert_eq!(shown(b"\xff\xfe bin"), "\u{fffd}\u{fffd} bin");
        let long = shown(&vec![b'x'; 5_000_000]);
        assert_eq!((long.len(), long.ends_with('…')), (LINE + 3, true));
    }
}
