//! The client, Claude Code's own process, that has called this one.

use std::ffi::OsString;
use std::path::Path;

use crate::base::env;
use crate::model::event::Process;
use crate::sys::process::{self, Ancestor};

/// The client above this process: as it says itself, else, where it is older than that, the nearest process above that is
/// one.
pub fn current() -> Option<Process> {
    let said = std::env::var(env::CLAUDE_PID).ok().and_then(|pid| pid.parse().ok());
    said.or_else(|| process::ancestors().iter().find(|a| is_client(a)).map(|a| a.pid)).and_then(process::identity_of)
}

fn is_client(above: &Ancestor) -> bool {
    let named = |arg: &OsString| Path::new(arg).file_name().is_some_and(|name| name == "claude");
    // The program, or the script that node runs.
    above.comm == "claude" || above.argv.iter().take(2).any(named)
}

/// Whether somebody sits before the client: only then can a hook outlive a turn and wake the session.
pub fn is_interactive() -> bool {
    std::env::var_os(env::CLAUDE_ENTRYPOINT).is_some_and(|entry| entry == "cli")
}
