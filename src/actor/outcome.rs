//! What an attempt leaves: finding its result and its one line for the session. A result is `$CPW_OUT/result.*` if the task
//! wrote one, else the end of its stdout.

use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;

use regex::Regex;

use crate::base::hex;
use crate::base::ids::check_id;
use crate::base::text;
use crate::model::event::ResultFile;
use crate::sys::dir::Dir;

/// How much of the end of stdout becomes the result, in bytes.
const MAX_TAIL: u64 = 64 * 1024;

/// How much of the end of stdout a summary is searched in, in bytes.
const MAX_SEARCHED: u64 = 1024 * 1024;

/// The largest result that is hashed, in bytes; a larger one is named without its hash.
const MAX_HASHED: u64 = 256 * 1024 * 1024;

/// The longest line for the session, in characters.
const MAX_LINE: usize = 300;

/// The last `max` bytes of a file, from the beginning of a line where the file is longer.
fn tail(dir: &Dir, name: &str, max: u64) -> io::Result<Vec<u8>> {
    let mut file = dir.open_read(name)?;
    let length = file.metadata()?.len();
    let start = length.saturating_sub(max);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    if start > 0
        && let Some(line) = bytes.iter().position(|b| *b == b'\n')
    {
        bytes.drain(..=line);
    }
    Ok(bytes)
}

fn describe(dir: &Dir, name: &str, shown: &str) -> io::Result<ResultFile> {
    let mut file = dir.open_read(name)?;
    let meta = file.metadata()?;
    if meta.nlink() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a second name of another file"));
    }
    let bytes = meta.len();
    let mut sha256 = String::new();
    if bytes <= MAX_HASHED {
        sha256 = hex::sha256_of(&mut file)?;
    }
    Ok(ResultFile { path: format!("{shown}/{name}"), bytes, sha256 })
}

/// The files `result.*` in `out`, in the order in which they are looked at. The session reads the name: only one that says
/// nothing but a name.
fn candidates(out: &Dir) -> io::Result<Vec<String>> {
    let mut names: Vec<String> = out.names()?.into_iter().filter_map(|n| n.into_string().ok()).collect();
    names.retain(|n| n.starts_with("result.") && n.len() > "result.".len() && check_id(n).is_ok());
    names.sort_unstable();
    Ok(names)
}

/// The result that a task has written itself. An empty file is none: nobody shall read that there is one.
pub fn written(out: &Dir, shown: &str) -> io::Result<Option<ResultFile>> {
    Ok(candidates(out)?.iter().find_map(|n| describe(out, n, shown).ok().filter(|r| r.bytes > 0)))
}

/// Says which file was meant as a result and is none, and why, for people and for the session: a link, a pipe, a folder, or a
/// second name of a file that is somewhere else could hand over what the task was never meant to.
pub fn passed_over(out: &Dir) -> Option<String> {
    let why = |name: &str| match out.open_read(name).and_then(|file| file.metadata()) {
        Ok(meta) if meta.nlink() > 1 => Some("it is a second name of another file"),
        Ok(_) => None,
        Err(_) => Some("it is not a regular file of its own"),
    };
    candidates(out).ok()?.iter().find_map(|name| Some(format!("{name} is not taken as its result: {}", why(name)?)))
}

/// The result of an attempt: the file `result.*` in `out`, else the end of its stdout, which is written there.
/// `shown` is the path of `out` relative to the run's folder. `None` if it left nothing.
pub fn result(out: &Dir, shown: &str, logs: &Dir, stdout: &str) -> io::Result<Option<ResultFile>> {
    if let Some(found) = written(out, shown)? {
        return Ok(Some(found));
    }
    let said = tail(logs, stdout, MAX_TAIL)?;
    if said.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    out.write_atomic("result.txt", &said, 0o600, false)?;
    describe(out, "result.txt", shown).map(Some)
}

/// The line about an attempt: what `pattern` finds last in its stdout (group 1, else the whole match), else the first line
/// of its result that is not empty. Foreign text, as one line.
pub fn summary(
    pattern: Option<&str>,
    out: &Dir,
    result: Option<&ResultFile>,
    logs: &Dir,
    stdout: &str,
) -> Option<String> {
    if let Some(regex) = pattern.and_then(|p| Regex::new(p).ok()) {
        let said = tail(logs, stdout, MAX_SEARCHED).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        let last = regex.captures_iter(&said).last();
        if let Some(found) = last.and_then(|c| c.get(1).or_else(|| c.get(0))) {
            return Some(text::one_line(found.as_str(), MAX_LINE)).filter(|l| !l.is_empty());
        }
    }
    let name = result?.path.rsplit('/').next()?;
    let mut head = Vec::new();
    out.open_read(name).ok()?.take(8192).read_to_end(&mut head).ok()?;
    let head = String::from_utf8_lossy(&head);
    let first =
        head.lines().map(|l| text::one_line(l.trim_start_matches(['#', ' ']), MAX_LINE)).find(|l| !l.is_empty())?;
    Some(first)
}

/// The line about an attempt, with what cpw itself has to say of it.
pub fn with_remark(line: Option<String>, remark: Option<String>) -> Option<String> {
    let Some(remark) = remark else { return line };
    Some(match line {
        Some(line) => {
            let room = MAX_LINE.saturating_sub(remark.chars().count() + 3);
            format!("{} ({remark})", text::one_line(&line, room))
        }
        None => remark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_a_file_with_a_plain_name_or_the_end_of_what_was_said() {
        let temp = tempfile::tempdir().unwrap();
        let dir = Dir::open(temp.path()).unwrap();
        std::fs::write(temp.path().join("log"), "said\n").unwrap();
        std::fs::write(temp.path().join("result.<x>\nIgnore all"), "odd").unwrap();
        std::fs::write(temp.path().join("result."), "odd").unwrap();
        std::fs::write(temp.path().join("result.md"), "").unwrap();
        let found = result(&dir, "out", &dir, "log").unwrap().unwrap();
        assert_eq!((found.path.as_str(), found.bytes), ("out/result.txt", 5));
        assert_eq!(summary(None, &dir, Some(&found), &dir, "log").unwrap(), "said");
        std::fs::write(temp.path().join("result.md"), "# Five findings\nmore").unwrap();
        let found = result(&dir, "out", &dir, "log").unwrap().unwrap();
        assert_eq!(found.path, "out/result.md");
        assert_eq!(summary(None, &dir, Some(&found), &dir, "log").unwrap(), "Five findings");
        assert_eq!(summary(Some("(sa.)"), &dir, Some(&found), &dir, "log").unwrap(), "sai");
    }
}
