//! Whole lines to stdout and stderr, without panicking when nobody reads them.

use std::fmt::Display;
use std::io::Write;

/// Writes one line to stdout. A reader that has gone is not an error; anything else that fails is not either, because
/// there is nobody left to tell.
pub fn out(line: impl Display) {
    let mut stdout = std::io::stdout().lock();
    drop(writeln!(stdout, "{line}"));
}

/// Writes text to stdout as it is, without a line feed.
pub fn raw(bytes: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    drop(stdout.write_all(bytes).and_then(|()| stdout.flush()));
}

/// Writes one line to stderr.
pub fn err(line: impl Display) {
    let mut stderr = std::io::stderr().lock();
    drop(writeln!(stderr, "{line}"));
}
