//! What a hook says: nothing, or one JSON object on stdout. The only place that writes there. A watcher that wakes the
//! session says so on stderr, and with exit code 2, which no other path leads to.

use std::io::Write;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::base::redact::redact;
use crate::base::text;

/// The longest text for the model in one answer, in characters: the client replaces more than 10,000 by a preview.
pub(super) const MAX_CONTEXT: usize = 4000;

/// An answer in the making.
#[derive(Debug, Default)]
pub(super) struct Answer {
    specific: Map<String, Value>,
    for_user: Option<String>,
}

impl Answer {
    /// Text for the model.
    pub(super) fn context(mut self, text: &str) -> Answer {
        if !text.is_empty() {
            self.specific.insert("additionalContext".into(), for_model(text).into());
        }
        self
    }

    /// One line for the user.
    pub(super) fn for_user(mut self, line: impl Into<String>) -> Answer {
        self.for_user = Some(text::for_terminal(&redact(&line.into())));
        self
    }

    /// Refuses the tool call.
    pub(super) fn deny(mut self, reason: &str) -> Answer {
        self.specific.insert("permissionDecision".into(), "deny".into());
        self.specific.insert("permissionDecisionReason".into(), for_model(reason).into());
        self
    }

    /// Replaces the tool's whole input. Never says `allow`: the user's permission rules still decide.
    pub(super) fn rewrite(mut self, input: Map<String, Value>) -> Answer {
        self.specific.insert("updatedInput".into(), input.into());
        self
    }

    /// Writes it, as an answer to `event`. Returns whether all of it was written; an empty answer is silence.
    pub(super) fn send(mut self, event: &str) -> bool {
        let mut out = Map::new();
        if let Some(line) = self.for_user {
            out.insert("systemMessage".into(), line.into());
        }
        if !self.specific.is_empty() {
            self.specific.insert("hookEventName".into(), event.into());
            out.insert("hookSpecificOutput".into(), self.specific.into());
        }
        if out.is_empty() {
            return true;
        }
        let text = format!("{}\n", json!(out));
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
    }
}

/// That the session is to be woken: the decision is in the log, what is new was written and recorded.
#[derive(Debug)]
#[must_use = "the session wakes by the exit code"]
pub(super) struct Woken(());

impl Woken {
    /// Writes what the woken session reads, and then has it recorded.
    pub(super) fn by(text: &str, record: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Woken> {
        let mut stderr = std::io::stderr().lock();
        stderr.write_all(format!("{}\n", for_model(text)).as_bytes())?;
        stderr.flush()?;
        record()?;
        Ok(Woken(()))
    }

    /// The exit code that wakes. The only 2 of cpw.
    pub(super) fn exit(self) -> ExitCode {
        let Woken(()) = self;
        ExitCode::from(2)
    }
}

/// Text within the bound; a cut is marked. Whatever its parts were made of, nothing in it hides or opens a tag.
fn for_model(text: &str) -> String {
    let text = text::for_model(text);
    if text.chars().count() <= MAX_CONTEXT {
        return text;
    }
    let mut out: String = text.chars().take(MAX_CONTEXT - 1).collect();
    out.push('…');
    out
}
