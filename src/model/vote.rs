//! What tasks can vote for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a vote is for, and what comes out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Go on.
    Proceed,
    /// Do not.
    Abort,
}

impl Choice {
    /// Both by name.
    pub const NAMES: &[(&str, Choice)] = &[("proceed", Choice::Proceed), ("abort", Choice::Abort)];

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Choice> {
        Choice::NAMES.iter().find(|(n, _)| *n == name).map(|(_, choice)| *choice)
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::Proceed => "proceed",
            Choice::Abort => "abort",
        })
    }
}
