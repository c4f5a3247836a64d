//! What a prompt asks for: which of its words are the user's own, which files it names, and whether the sentence around a
//! rule's match is a request or only talk about the words. Hand-written scanners, linear in the prompt; no regex and no
//! file is touched here: the caller matches its rules against [`Words::own`] and checks which mentions exist.
//!
//! Detection is quiet. Starting work that nobody asked for costs more than not starting it (the user can say it again), so
//! whatever is unclear is no request.

mod asks;
mod lexicon;
mod mentions;
mod own;

use std::ops::Range;

/// The first words of everything that cpw itself sends to a session, so that its own messages never start a run. The client
/// renders the tag as a message of a peer.
pub const MARK: &str = "<cross-session-message from-name=\"cpw/";

/// How many matches of one rule [`Words::asks_any`] looks at in a prompt.
const TRIES: usize = 256;

/// Who made a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The user, as far as the text tells.
    Typed,
    /// The client or another program: nothing is started for it.
    Machine,
}

/// Who made `prompt`. The client runs the prompt hook for its own notifications too, with nothing but the text to tell them
/// apart (measured with the client).
pub fn origin(prompt: &str) -> Origin {
    const HEADS: &[&str] = &[
        MARK,
        "<task-notification",
        "<cross-session-message",
        "<system-reminder",
        "<local-command-",
        "<bash-stdout",
        "<bash-stderr",
        "<command-name",
        "<command-message",
        "[SYSTEM NOTIFICATION",
        "[Request interrupted by user",
        "Another Claude session sent a message",
        "Stop hook feedback",
        "This session is being continued from a previous conversation",
    ];
    let text = prompt.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{FEFF}');
    if HEADS.iter().any(|h| text.starts_with(h)) && !reminder_then_words(text) {
        Origin::Machine
    } else {
        Origin::Typed
    }
}

/// The client may put a reminder before words that were typed: those are the user's. A reminder around a notification is not.
fn reminder_then_words(text: &str) -> bool {
    const CLOSE: &str = "</system-reminder>";
    text.starts_with("<system-reminder")
        && !text.contains("[SYSTEM NOTIFICATION")
        && !text.contains("<task-notification")
        && text.rfind(CLOSE).is_some_and(|n| !text[n + CLOSE.len()..].trim().is_empty())
}

/// Whether `prompt` begins with `!cpw off`: nothing is started for it.
pub fn says_off(prompt: &str) -> bool {
    let mut words = prompt.split_whitespace();
    let head = (words.next(), words.next());
    matches!(head, (Some("!cpw"), Some(off)) if off.trim_end_matches([',', '.', ':', ';', '!']) == "off")
}

/// A prompt as cpw reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    own: String,
    mentions: Vec<String>,
}

impl Words {
    /// Reads a prompt. Linear in its length, whatever it contains.
    pub fn read(prompt: &str) -> Self {
        let blanked = own::blank(prompt);
        let mentions = mentions::mentions(&blanked.own, blanked.quoted);
        Self { own: blanked.own, mentions }
    }

    /// The user's own words: the prompt with quoted text, code, pasted output, tags and addresses blanked byte for byte, so
    /// that lines and offsets are the prompt's. Rules are matched against this text only.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// Tokens that could name files, in order, each once: from the own words, and from quotation marks or inline code around
    /// nothing else. A token has a dot or a slash; whether such a file exists is the caller's to check.
    pub fn mentions(&self) -> &[String] {
        &self.mentions
    }

    /// Whether the sentence around a rule's match at `m` (bytes of [`Words::own`]) asks for the thing to be done: an
    /// imperative, a request in the form of a question, a wish. False for negations, questions about the words or about
    /// what happened, reports, hypotheses, and whatever is unclear. A range outside the text or inside a character is no
    /// request. The cost is bounded: only some hundred bytes around the match are read.
    pub fn asks(&self, m: Range<usize>) -> bool {
        asks::asks(&self.own, m)
    }

    /// Whether one of a rule's matches asks for it. Only the first 256 matches are looked at, which bounds the time for a
    /// hostile prompt.
    pub fn asks_any(&self, matches: impl IntoIterator<Item = Range<usize>>) -> bool {
        matches.into_iter().take(TRIES).any(|m| self.asks(m))
    }
}

#[cfg(test)]
mod tests;
