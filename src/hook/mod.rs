//! The face towards Claude Code: what its hooks call. Each hook is stateless over the log: it looks up its session, folds what
//! is new, decides, answers, and leaves.
//!
//! Two rules stand above everything: whatever goes wrong inside, the answer is silence and exit code 0, and a person can
//! read in `hooks.jsonl` why; and a hook lasts at most a second unless it holds on purpose, which a kernel timer enforces.
//! Answers are JSON on stdout. Exit code 2 is the watcher's alone, by which it wakes an idle session, and comes from one
//! place: `answer::Woken`.

mod answer;
mod claim;
mod deliver;
pub mod input;
mod lease;
mod merge;
mod observe;
mod post_tool_batch;
mod post_tool_use;
mod pre_tool_use;
mod result;
mod scene;
mod session_end;
mod session_start;
mod signal;
mod stop;
mod user_prompt_submit;
mod watch;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::base::env;
use crate::store::home::State;
use crate::store::hooklog;
use crate::store::place;
use crate::sys::clock;
use crate::sys::process;
use crate::sys::signals::{self, Deadline};

/// How long a hook may last that does not hold on purpose.
const LIFETIME: Duration = Duration::from_secs(1);

/// A hook that took longer than this, without holding, is noted.
const SLOW_MS: u64 = 500;

/// The hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// A prompt was submitted.
    UserPromptSubmit,
    /// A tool is about to run.
    PreToolUse,
    /// A tool has run.
    PostToolUse,
    /// All tools of a step have run.
    PostToolBatch,
    /// The model wants to stop.
    Stop,
    /// The same, beside the session: to wake it later.
    Watch,
    /// A session begins or goes on.
    SessionStart,
    /// A session ends.
    SessionEnd,
}

impl Hook {
    /// All of them, with the subcommand that Claude Code calls.
    pub const ALL: [(&'static str, Hook); 8] = [
        ("user-prompt-submit", Hook::UserPromptSubmit),
        ("pre-tool-use", Hook::PreToolUse),
        ("post-tool-use", Hook::PostToolUse),
        ("post-tool-batch", Hook::PostToolBatch),
        ("stop", Hook::Stop),
        ("watch", Hook::Watch),
        ("session-start", Hook::SessionStart),
        ("session-end", Hook::SessionEnd),
    ];

    /// The hook that a first argument names.
    pub fn by_name(name: &OsStr) -> Option<Hook> {
        Hook::ALL.iter().find(|(n, _)| name == *n).map(|(_, hook)| *hook)
    }

    /// The subcommand.
    pub fn name(self) -> &'static str {
        Hook::ALL.iter().find(|(_, hook)| *hook == self).map_or("", |(name, _)| name)
    }
}

/// Runs a hook. Unknown arguments are ignored: an older cpw must not fail for a newer wiring.
pub fn main(hook: Hook, args: &[OsString]) -> ExitCode {
    if env::is_on(std::env::var_os(env::DISABLE).as_deref()) || process::is_in_task() {
        return ExitCode::SUCCESS;
    }
    if is_in_the_way() {
        return ExitCode::SUCCESS;
    }
    let begun = clock::mono_ms();
    let Ok(deadline) = signals::hook_deadline(LIFETIME) else {
        return ExitCode::SUCCESS;
    };
    if signals::ignore_write_signals().is_err() {
        return ExitCode::SUCCESS;
    }
    std::panic::set_hook(Box::new(move |info| {
        note(hook, begun, Some(&format!("internal error: {info}")));
        leave();
    }));
    let result = match hook {
        Hook::UserPromptSubmit => user_prompt_submit::run(),
        Hook::PreToolUse => pre_tool_use::run(&deadline),
        Hook::PostToolUse => post_tool_use::run(args),
        Hook::PostToolBatch => post_tool_batch::run(),
        Hook::Stop => stop::run(&deadline),
        Hook::Watch => match watch::run(&deadline) {
            Ok(Some(woken)) => return woken.exit(),
            // It is meant to last.
            Ok(None) => Ok(clock::mono_ms().saturating_sub(begun)),
            Err(e) => Err(e),
        },
        Hook::SessionStart => session_start::run(),
        Hook::SessionEnd => session_end::run(),
    };
    match result {
        Err(e) => note(hook, begun, Some(&format!("{e:#}"))),
        Ok(held_ms) => {
            let took = clock::mono_ms().saturating_sub(begun).saturating_sub(held_ms);
            if took > SLOW_MS {
                note(hook, begun, Some(&format!("slow: took {took} ms without holding")));
            } else if std::env::var_os(env::LOG).is_some_and(|v| v == "debug") {
                note(hook, begun, None);
            }
        }
    }
    ExitCode::SUCCESS
}

/// Whether this is root by sudo in the project of a user, in whose way its files would be.
fn is_in_the_way() -> bool {
    let project = std::env::var_os(env::CLAUDE_PROJECT_DIR).unwrap_or_else(|| ".".into());
    place::refuse_lent_root(Path::new(&project)).is_err()
}

fn note(hook: Hook, begun: u64, error: Option<&str>) {
    // Without a state directory there is nowhere to say it; where none was ever made, nothing is worth one.
    if let Ok(Some(state)) = State::existing() {
        let session = std::env::var(env::CLAUDE_SESSION_ID).ok();
        hooklog::note(state.path(), hook.name(), clock::mono_ms().saturating_sub(begun), error, session.as_deref());
    }
}

#[expect(clippy::exit, reason = "a panic must end a hook with 0, whatever is on the stack")]
fn leave() {
    std::process::exit(0);
}

/// Milliseconds for which a hook held on purpose.
type Held = u64;

/// Lets a hook last for `held` longer than usual.
fn extend(deadline: &Deadline, held: Duration) -> anyhow::Result<()> {
    Ok(deadline.extend(held.saturating_add(LIFETIME))?)
}
