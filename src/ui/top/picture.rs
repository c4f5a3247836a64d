//! What the view shows, borrowed from who collects it. Nothing here is built per task: a run may have thousands, of which a
//! screen shows a few dozen.

use std::collections::BTreeSet;

use crate::base::ids::RunId;
use crate::logic::state::State;
use crate::logic::view::Counts;
use crate::model::plan::Plan;
use crate::ui::top::past::Past;

/// Everything on the screen.
#[derive(Debug, Clone, Copy)]
pub struct Picture<'a> {
    /// The project's name.
    pub project: &'a str,
    /// The runs, as listed.
    pub runs: &'a [Row],
    /// The one that is selected, if it can be read.
    pub run: Option<Opened<'a>>,
    /// What the selected task has written.
    pub output: &'a Output,
    /// Something to say, in place of the keys.
    pub note: Option<&'a str>,
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub now_ms: u64,
    /// Wall-clock time in milliseconds since 1970.
    pub now_unix_ms: u64,
    /// Which picture of the spinner it is.
    pub turn: usize,
    /// Whether there are colours.
    pub colour: bool,
}

/// A run in the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Which.
    pub id: RunId,
    /// Its state in a word.
    pub word: &'static str,
    /// Its tasks by outcome; absent where it cannot be read.
    pub counts: Option<Counts>,
    /// How far it is, while it is active.
    pub percent: Option<u64>,
    /// The rule it was made from.
    pub rule: Option<String>,
    /// Whether somebody asked to cancel it, and it goes on.
    pub cancelling: bool,
    /// What else there is to say: why it ended so, what is damaged, that nobody works on it.
    pub said: Option<String>,
}

impl Row {
    /// Whether it goes on.
    pub fn is_active(&self) -> bool {
        self.word == "active"
    }
}

/// A run whose tasks are shown.
#[derive(Debug, Clone, Copy)]
pub struct Opened<'a> {
    /// What it was to do.
    pub plan: &'a Plan,
    /// What has come of it.
    pub state: &'a State,
    /// Its attempts.
    pub past: &'a Past,
    /// Running tasks whose process, or whose worker, was stopped.
    pub stalled: &'a BTreeSet<usize>,
    /// Whether its monotonic times are of this boot.
    pub same_boot: bool,
}

/// The end, or another window, of what an attempt has written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Output {
    /// stdout and stderr.
    pub streams: [Stream; 2],
    /// Why there is none.
    pub absent: Option<String>,
}

/// One of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stream {
    /// The lines of the window, harmless, the last one at its end.
    pub lines: Vec<String>,
    /// How long the file is.
    pub bytes: u64,
    /// Up to where the window is, where it does not follow the end.
    pub until: Option<u64>,
}
