//! `hooks.jsonl` in the user's state directory: what hooks had to swallow, so that a person can find it. Best effort: a hook
//! that cannot write here stays silent all the same.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::text;
use crate::sys::clock;
use crate::sys::dir::Dir;

/// The file's name in the state directory.
pub const NAME: &str = "hooks.jsonl";

/// The file is started anew when it has grown to this, the old one kept beside it.
const MAX_BYTES: u64 = 1024 * 1024;

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
    let lines = bytes.split(|b| *b == b'\n').rev();
    lines.filter_map(|l| serde_json::from_slice::<Line>(l).ok()).filter(|l| l.error.is_some()).take(most).collect()
}
