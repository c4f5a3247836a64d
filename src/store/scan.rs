//! A log read for a person: line by line from its beginning, up to the first thing that is wrong, with its exact place.
//! Nothing is folded and nothing is believed; what the events mean is said elsewhere.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use crate::model::event::{Body, Event, MAX_LINE};

/// Bytes of a bad line that are shown.
const EXCERPT: usize = 80;

/// What a look at all lines found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Good lines before the first bad one, or the end.
    pub lines: u64,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// The schema that `run_started` names; 0 without one.
    pub schema: u32,
    /// Bytes behind the last line feed: a write that was cut off.
    pub torn: u64,
    /// The first thing that is wrong.
    pub fault: Option<Fault>,
}

/// Something that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Its line, from 1.
    pub line: u64,
    /// Where the line begins, in bytes from the beginning of the file.
    pub offset: u64,
    /// What is wrong.
    pub why: String,
    /// How the line begins, without anything that a terminal would obey.
    pub excerpt: String,
}

/// Reads a log from its beginning.
pub fn scan(file: &File) -> io::Result<Scan> {
    let mut out = Scan { bytes: file.metadata()?.len(), ..Scan::default() };
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    let mut offset = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        let n = (&mut reader).take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
        if n == 0 {
            return Ok(out);
        }
        let whole = line.last() == Some(&b'\n');
        if !whole && n <= MAX_LINE {
            out.torn = n as u64;
            return Ok(out);
        }
        let wrong = if whole {
            match Event::decode(&line[..n - 1]) {
                Err(e) => Some(e.to_string()),
                Ok(event) if event.seq != out.lines + 1 => {
                    Some(format!("seq {} is expected there, found {}", out.lines + 1, event.seq))
                }
                Ok(event) => {
                    if let Body::RunStarted(p) = &event.body {
                        out.schema = p.v;
                    }
                    None
                }
            }
        } else {
            Some(format!("longer than {MAX_LINE} bytes"))
        };
        if let Some(why) = wrong {
            let excerpt = line[..n.min(EXCERPT)].escape_ascii().to_string();
            out.fault = Some(Fault { line: out.lines + 1, offset, why, excerpt });
            return Ok(out);
        }
        out.lines += 1;
        offset += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn of(bytes: &[u8]) -> Scan {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        scan(&file).unwrap()
    }

    fn line(seq: u64) -> Vec<u8> {
        format!("{{\"t\":\"worker_exited\",\"seq\":{seq},\"payload\":{{\"reason\":\"x\"}}}}\n").into_bytes()
    }

    #[test]
    fn the_first_fault_is_told_with_its_place() {
        let good = [line(1), line(2)].concat();
        let long = good.len() as u64;
        assert_eq!(of(&good), Scan { lines: 2, bytes: long, ..Scan::default() });
        assert_eq!(of(b""), Scan::default());
        let torn = of(&[&good[..], b"{\"t\":\"do"].concat());
        assert_eq!((torn.lines, torn.torn, &torn.fault), (2, 8, &None));
        for (added, why, excerpt) in [
            (line(4), "seq 3 is expected there, found 4", "{\\\"t\\\":\\\"worker_exited\\\""),
            (line(2), "seq 3 is expected there, found 2", "{"),
            (b"\x1b[2Jhello\n".to_vec(), "", "\\x1b[2Jhello\\n"),
            (b"\xff\xfe\n".to_vec(), "", "\\xff\\xfe\\n"),
            (b"\n".to_vec(), "", "\\n"),
            (vec![b'x'; MAX_LINE + 10], "longer than", "xxxx"),
        ] {
            let found = of(&[&good[..], &added, &line(3)].concat());
            let fault = found.fault.unwrap();
            assert_eq!((found.lines, fault.line, fault.offset), (2, 3, long), "{excerpt}");
            assert!(fault.why.contains(why) && fault.excerpt.starts_with(excerpt), "{fault:?}");
            assert!(fault.excerpt.len() <= 4 * EXCERPT);
        }
    }
}
