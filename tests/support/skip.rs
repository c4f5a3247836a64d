//! Tests that cannot run here: said where the test runner does not hide it, counted, and a failure where they are asked for.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Says that `name` was not run, and why. With the variable `require` set to 1 that fails the test.
pub(crate) fn skip(name: &str, reason: &str, require: &str) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    assert!(std::env::var_os(require).is_none_or(|value| value != "1"), "{require}=1, but: {reason}");
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    // The real stderr, which the test runner does not capture.
    writeln!(std::io::stderr(), "SKIPPED: {name}: {reason} ({count} skipped so far)").ok();
}
