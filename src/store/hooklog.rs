//! `hooks.jsonl` in the user's state directory: what hooks had to swallow, so that a person can find it. Best effort: a hook
//! that cannot write here stays silent all the same.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::text;
use crate::sys::clock;
use crate::sys::dir::Dir;

/// The file's name in the state directory.
pub const NAME: &str = "hooks.jsonl";

/// The file is started anew when it has grown to this, the old one kept beside it.
const MAX_BYTES: u64 = 1024 * 1024;

/// The longest line, in bytes: its parts are bounded in characters.
const MAX_LINE: u64 = 16 * 1024;

/// What a line has that tells of an error.
const ERROR: &[u8] = br#""error""#;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When, RFC 3339 in UTC.
    pub ts: String,
    /// Which hook.
    pub hook: String,
    /// How long it had taken by then, in milliseconds.
    pub ms: u64,
    /// What went wrong; absent for a line of `CPW_LOG=debug`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// Adds a line.
pub fn note(state_home: &Path, hook: &str, ms: u64, error: Option<&str>, session: Option<&str>) {
    let line = Line {
        ts: clock::stamp(),
        hook: text::one_line(hook, 40),
        ms,
        error: error.map(|e| text::one_line(e, 2000)),
        session: session.map(|s| text::one_line(s, 64)),
    };
    let write = || -> std::io::Result<()> {
        let dir = Dir::open(state_home)?;
        if dir.stat(NAME)?.is_some_and(|s| s.size > MAX_BYTES) {
            dir.rename(NAME, "hooks.old.jsonl")?;
        }
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        dir.open_append(NAME)?.write_all(&bytes)
    };
    drop(write());
}

/// The last errors, newest first, at most `most`.
pub fn errors(state_home: &Path, most: usize) -> Vec<Line> {
    let Ok(bytes) = Dir::open(state_home).and_then(|d| d.read_bounded(NAME, 4 * 1024 * 1024)) else {
        return Vec::new();
    };
    // With `CPW_LOG=debug` most lines are none.
    let lines = bytes.split(|b| *b == b'\n').rev().filter(|l| l.windows(ERROR.len()).any(|w| w == ERROR));
    lines.filter_map(|l| serde_json::from_slice::<Line>(l).ok()).filter(|l| l.error.is_some()).take(most).collect()
}

/// The last line, whatever it says.
pub fn last(state_home: &Path) -> Option<Line> {
    let file = Dir::open(state_home).and_then(|d| d.open_read(NAME)).ok()?;
    let length = file.metadata().ok()?.len();
    let mut end = vec![0; usize::try_from(length.min(MAX_LINE)).ok()?];
    let begin = length - end.len() as u64;
    file.read_exact_at(&mut end, begin).ok()?;
    end.split(|b| *b == b'\n').rev().find_map(|l| serde_json::from_slice(l).ok())
}
