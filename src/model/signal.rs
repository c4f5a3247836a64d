//! What a task may say to the session: to which hook, with which code, and which tasks may say what. The words are those of
//! Claude Code's hooks, because a task's signal is answered as if its worker were such a hook: 0 informs, 2 blocks, any other
//! code is a warning for people.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The hook that a signal is addressed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressee {
    /// The next matching tool call, before it runs.
    PreToolUse,
    /// The next step's news.
    PostToolUse,
    /// The moment when the session wants to stop.
    Stop,
    /// The user's next prompt.
    UserPromptSubmit,
}

impl Addressee {
    /// All of them by name.
    pub const NAMES: &[(&str, Addressee)] = &[
        ("pre-tool-use", Addressee::PreToolUse),
        ("post-tool-use", Addressee::PostToolUse),
        ("stop", Addressee::Stop),
        ("user-prompt-submit", Addressee::UserPromptSubmit),
    ];

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Addressee> {
        Addressee::NAMES.iter().find(|(n, _)| *n == name).map(|(_, hook)| *hook)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Addressee::NAMES.iter().find(|(_, hook)| *hook == self).map_or("", |(name, _)| name)
    }
}

/// The code that informs.
pub const INFORM: i32 = 0;
/// The code that blocks.
pub const BLOCK: i32 = 2;

/// One thing that a task may send, written `stop:2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Right {
    /// To whom.
    pub hook: Addressee,
    /// With which code, [`INFORM`] or [`BLOCK`].
    pub exit: i32,
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.hook.name(), self.exit)
    }
}

impl From<Right> for String {
    fn from(right: Right) -> String {
        right.to_string()
    }
}

impl TryFrom<String> for Right {
    type Error = String;

    fn try_from(text: String) -> Result<Right, String> {
        Right::parse(&text)
    }
}

impl Right {
    /// Every right that can be given, in words: blocking a prompt is not one of them, because it would erase the user's words.
    pub const ALL: &str = "pre-tool-use:0, pre-tool-use:2, post-tool-use:0, post-tool-use:2, stop:0, stop:2, \
                           user-prompt-submit:0";

    /// Reads `stop:2`; the error says what is possible.
    pub fn parse(text: &str) -> Result<Right, String> {
        let right = text.split_once(':').and_then(|(hook, exit)| {
            let exit = [INFORM, BLOCK].into_iter().find(|code| exit == code.to_string())?;
            Some(Right { hook: Addressee::by_name(hook)?, exit })
        });
        let possible = right.filter(|r| (r.hook, r.exit) != (Addressee::UserPromptSubmit, BLOCK));
        possible.ok_or_else(|| format!("must be one of {}", Right::ALL))
    }
}

/// Whether a task may send something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum May {
    /// Yes.
    Yes,
    /// Yes, but it concerns calls on the task's own claims only.
    OnOwnClaims,
    /// No.
    No,
}

/// Whether a task with these rights may send this: what its `signals` list, or, where it has no such list, to inform anybody,
/// to block calls on its own claims, and to keep the session from stopping if it is `critical`. Warnings may always be given.
pub fn may_send(rights: Option<&[Right]>, critical: bool, hook: Addressee, exit: i32) -> May {
    let yes = |may: bool| if may { May::Yes } else { May::No };
    match (rights, hook, exit) {
        (_, Addressee::UserPromptSubmit, BLOCK) | (None, Addressee::PostToolUse, BLOCK) => May::No,
        (Some(rights), hook, INFORM | BLOCK) => yes(rights.contains(&Right { hook, exit })),
        (None, Addressee::PreToolUse, BLOCK) => May::OnOwnClaims,
        (None, Addressee::Stop, BLOCK) => yes(critical),
        (_, _, _) => May::Yes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_written_as_it_is_read_and_anything_else_is_refused_with_the_list() {
        for text in Right::ALL.split(", ") {
            assert_eq!(Right::parse(text).unwrap().to_string(), text);
        }
        for bad in ["", "stop", "stop:", "stop:1", "stop:02", "Stop:2", "stop:2 ", "user-prompt-submit:2", "x:0"] {
            assert!(Right::parse(bad).unwrap_err().contains("stop:2"), "{bad}");
        }
    }

    #[test]
    fn without_a_list_a_task_informs_and_holds_back_only_what_is_its_own() {
        use Addressee::{PostToolUse, PreToolUse, Stop, UserPromptSubmit};
        for hook in [PreToolUse, PostToolUse, Stop, UserPromptSubmit] {
            assert_eq!(may_send(None, false, hook, INFORM), May::Yes);
            assert_eq!(may_send(Some(&[]), false, hook, 1), May::Yes, "a warning");
            assert_eq!(may_send(Some(&[]), true, hook, INFORM), May::No);
            assert_eq!(may_send(Some(&[]), true, hook, BLOCK), May::No);
        }
        assert_eq!(may_send(None, false, PreToolUse, BLOCK), May::OnOwnClaims);
        assert_eq!(may_send(None, false, PostToolUse, BLOCK), May::No);
        assert_eq!(may_send(None, false, Stop, BLOCK), May::No);
        assert_eq!(may_send(None, true, Stop, BLOCK), May::Yes);
        assert_eq!(may_send(None, true, UserPromptSubmit, BLOCK), May::No);
        let rights = [Right::parse("pre-tool-use:2").unwrap()];
        assert_eq!(may_send(Some(&rights), false, PreToolUse, BLOCK), May::Yes);
        assert_eq!(may_send(Some(&rights), true, Stop, BLOCK), May::No);
    }
}
