//! Text to stdout and stderr, without panicking when nobody reads it.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Writes one line to stdout. See [`lost`] for what cannot be written.
pub fn out(line: impl Display) {
    let mut stdout = std::io::stdout().lock();
    note(&writeln!(stdout, "{line}").and_then(|()| stdout.flush()));
}

/// Writes bytes to stdout as they are, without a line feed. Returns whether they could be written: whoever follows
/// something ends when its reader has gone.
pub fn raw(bytes: &[u8]) -> bool {
    let mut stdout = std::io::stdout().lock();
    note(&stdout.write_all(bytes).and_then(|()| stdout.flush()))
}

/// Writes one line to stderr.
pub fn err(line: impl Display) {
    let mut stderr = std::io::stderr().lock();
    drop(writeln!(stderr, "{line}"));
}
