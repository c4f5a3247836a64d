//! Text to stdout and stderr, without panicking when nobody reads it.

use std::borrow::Cow;
use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::text::for_screen;

/// Whether something could not be written for another reason than a reader that has gone.
static LOST: AtomicBool = AtomicBool::new(false);

/// Whether output was lost (a full disk, an error of the device), so that what was asked for was not done. A closed pipe
/// does not count: nobody wanted the rest.
pub fn lost() -> bool {
    LOST.load(Ordering::Relaxed)
}

fn note(result: &std::io::Result<()>) -> bool {
    if result.as_ref().is_err_and(|e| !matches!(e.kind(), ErrorKind::BrokenPipe) && e.raw_os_error() != Some(EBADF)) {
        LOST.store(true, Ordering::Relaxed);
    }
    result.is_ok()
}

/// The error of a stdout that was closed before we began: nobody wants to read.
const EBADF: i32 = 9;

/// Writes one line to stdout; a terminal gets nothing of it that could move its cursor or turn text round. See [`lost`] for
/// what cannot be written.
pub fn out(line: impl Display) {
    let mut stdout = std::io::stdout().lock();
    let line = shown(&line, stdout.is_terminal());
    note(&writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

fn shown(line: &impl Display, terminal: bool) -> String {
    let line = line.to_string();
    match for_screen(&line) {
        Cow::Owned(harmless) if terminal => harmless,
        _ => line,
    }
}

/// Writes bytes to stdout without a line feed: as they are, but to a terminal as [`out`] does. Returns whether they could be
/// written: whoever follows something ends when its reader has gone.
pub fn raw(bytes: &[u8]) -> bool {
    if !std::io::stdout().is_terminal() {
        return frame(bytes);
    }
    frame(for_screen(&String::from_utf8_lossy(bytes)).as_bytes())
}

/// Writes a picture that cpw has drawn to stdout, with what moves the cursor in it.
pub fn frame(bytes: &[u8]) -> bool {
    let mut stdout = std::io::stdout().lock();
    note(&stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Writes one line to stderr, as [`out`] does.
pub fn err(line: impl Display) {
    let mut stderr = std::io::stderr().lock();
    let line = shown(&line, stderr.is_terminal());
    drop(writeln!(stderr, "{line}"));
}
