//! What tasks can vote for, and how a vote is held: about what, by whom, and what comes out of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::ids::{TaskId, Topic};
use crate::base::span::Span;

/// The most votes that a plan may hold.
pub const MAX_VOTES: usize = 64;

/// The most tasks that one vote may have as voters.
pub const MAX_VOTERS: usize = 256;

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

/// How many of those who vote must be for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// More than vote against it; a tie is `abort`.
    #[default]
    Majority,
    /// All voters.
    Unanimous,
}

impl Rule {
    /// Both by name.
    pub const NAMES: &[(&str, Rule)] = &[("majority", Rule::Majority), ("unanimous", Rule::Unanimous)];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            Rule::Majority => "majority",
            Rule::Unanimous => "unanimous",
        }
    }

    /// How many of `voters` must have voted, where a plan does not say.
    pub fn quorum(self, voters: u32) -> u32 {
        match self {
            Rule::Majority => voters / 2 + 1,
            Rule::Unanimous => voters,
        }
    }
}

/// What an abort means for the session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnAbort {
    /// It is news.
    None,
    /// It is to hear of it before it stops.
    #[default]
    Signal,
}

impl OnAbort {
    /// Both by name.
    pub const NAMES: &[(&str, OnAbort)] = &[("none", OnAbort::None), ("signal", OnAbort::Signal)];
}

/// A vote of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// About what; unique in the plan, ignoring case.
    pub topic: Topic,
    /// Who votes; each task has one vote, whatever its attempts.
    pub voters: Vec<TaskId>,
    /// How many must have voted.
    pub quorum: u32,
    /// How many must be for it.
    #[serde(default)]
    pub rule: Rule,
    /// When it closes at the latest, from the start of the first attempt of any of its voters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// What holds where too few have voted.
    #[serde(default = "Vote::usual_default")]
    pub default: Choice,
    /// What an abort means for the session.
    #[serde(default)]
    pub on_abort: OnAbort,
}

impl Vote {
    /// What holds where too few have voted and the plan does not say.
    pub fn usual_default() -> Choice {
        Choice::Abort
    }
}
