//! The events of a run as rows, for `cpw events` and `cpw replay`: number, time, worker, kind, and what it says. On a terminal
//! a row is one line; a narrow one has shorter columns.

use std::fmt::Write;

use serde_json::Value;

use crate::base::text::one_line;
use crate::logic::retell::Change;
use crate::logic::state::State;
use crate::model::event::{Body, Event};
use crate::model::plan::Plan;
use crate::ui::fit;
use crate::ui::lines::{self, Mark};
use crate::ui::paint::Paint;
use crate::ui::when;

/// Fewer columns than these leave out fractions of seconds.
const MEDIUM: usize = 100;

/// Fewer columns than these leave out the worker, whom most texts name, and the room behind a kind.
const NARROW: usize = 72;

/// The longest text of an event of a kind that is not known here, in characters.
const MAX_UNKNOWN: usize = 300;

/// The most changes that are listed of one event.
const CHANGES: usize = 12;

/// How rows are written.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Colours.
    pub paint: Paint,
    /// Columns of the terminal; elsewhere rows are as long as they are.
    pub columns: Option<usize>,
    /// The time since the run began instead of the time of day.
    pub since_start: bool,
    /// When the run began, as the log has it.
    pub begun: String,
}

impl Ledger {
    /// The row of an event, with its line feed. `line` is as it stands in the log; `state` is only asked for names.
    pub fn row(&self, event: &Event, line: &[u8], plan: &Plan, state: &State) -> String {
        let about = About::of(event, line, plan, state);
        let kind = one_line(&about.kind, 40);
        let sign = about.mark.map_or_else(|| " ".to_owned(), |mark| mark.sign(self.paint));
        let begin = format!("{:>5}  {}", event.seq, self.time(event));
        let head = if self.is(NARROW) {
            format!("{begin}  {sign} {}  ", about.colour(self.paint, &kind))
        } else {
            let who = event.worker.map(|w| w.to_string()).unwrap_or_default();
            format!("{begin}  {who:<3}  {}  {sign} ", about.colour(self.paint, &format!("{kind:<15}")))
        };
        let text = match self.columns {
            None => about.text,
            Some(columns) => fit::cut(&about.text, columns.saturating_sub(visible(&head))),
        };
        format!("{head}{text}").trim_end().to_owned() + "\n"
    }

    /// What an event has changed, a line each.
    pub fn changes(&self, plan: &Plan, changes: &[Change]) -> String {
        let mut out = String::new();
        for Change { task, from, to } in changes.iter().take(CHANGES) {
            let id = plan.tasks[*task].id.as_str();
            let now = self.paint.phase(*to, to.word());
            let _ = writeln!(out, "       {id}: {} → {now}", self.paint.dim(from.word()));
        }
        if changes.len() > CHANGES {
            let _ = writeln!(out, "       and {} more", changes.len() - CHANGES);
        }
        out
    }

    fn is(&self, narrower: usize) -> bool {
        self.columns.is_some_and(|columns| columns < narrower)
    }

    fn time(&self, event: &Event) -> String {
        let mut text = if self.since_start {
            when::since(when::between(&self.begun, &event.ts).unwrap_or(0))
        } else {
            one_line(when::clock(&event.ts), 12)
        };
        if self.is(MEDIUM) && text.is_ascii() {
            text.truncate(text.len().saturating_sub(4));
        }
        text
    }
}

/// What there is to say about an event.
struct About {
    mark: Option<Mark>,
    kind: String,
    text: String,
}

impl About {
    fn of(event: &Event, line: &[u8], plan: &Plan, state: &State) -> About {
        if event.body == Body::Unknown {
            return About::unknown(line);
        }
        let mark = lines::of(event, plan, state).map(|line| line.mark);
        About { mark, kind: event.body.name().to_owned(), text: lines::any(event, plan, state) }
    }

    /// An event of a newer cpw: as it says itself.
    fn unknown(line: &[u8]) -> About {
        let line: Value = serde_json::from_slice(line).unwrap_or_default();
        let word = |key: &str| line.get(key).and_then(Value::as_str).unwrap_or_default();
        let payload = line.get("payload").map(ToString::to_string).unwrap_or_default();
        let task = if word("task").is_empty() { String::new() } else { format!("{} ", word("task")) };
        let text = one_line(&format!("{task}(not known to this cpw) {payload}"), MAX_UNKNOWN);
        About { mark: Some(Mark::Note), kind: word("t").to_owned(), text }
    }

    fn colour(&self, paint: Paint, text: &str) -> String {
        match self.mark {
            Some(Mark::Begin) => paint.busy(text),
            Some(Mark::Good) => paint.good(text),
            Some(Mark::Bad) => paint.bad(text),
            Some(Mark::Again | Mark::Note) => paint.warn(text),
            Some(Mark::Skip) | None => paint.dim(text),
        }
    }
}

/// The columns that a text takes, its colours aside.
fn visible(text: &str) -> usize {
    let mut taken = 0;
    let mut rest = text;
    while let Some(at) = rest.find('\x1b') {
        taken += fit::columns(&rest[..at]);
        rest = rest[at..].split_once('m').map_or("", |(_, rest)| rest);
    }
    taken + fit::columns(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::retell::Retelling;

    const PLAN: &[u8] = include_bytes!("../../tests/logs/v1/plan.json");
    const LOG: &str = include_str!("../../tests/logs/v1/events.jsonl");

    /// The log of a run with every kind of event, and one of a newer cpw.
    fn shown(columns: Option<usize>, since_start: bool, with_changes: bool) -> String {
        let plan: Plan = serde_json::from_slice(PLAN).unwrap();
        let mut told = Retelling::new(&plan);
        let mut ledger = Ledger { paint: Paint::plain(), columns, since_start, begun: String::new() };
        let newer = r#"{"t":"sparkle","seq":99,"ts":"2026-01-02T03:04:05.678901Z","task":"build","payload":{"glow":"日本語\u001b[2J"}}"#;
        let mut out = String::new();
        for line in LOG.lines().chain([newer]) {
            let event = Event::decode(line.as_bytes()).unwrap();
            if ledger.begun.is_empty() {
                ledger.begun.clone_from(&event.ts);
            }
            let changes = told.apply(&event);
            out.push_str(&ledger.row(&event, line.as_bytes(), &plan, &told.state));
            if with_changes {
                out.push_str(&ledger.changes(&plan, &changes));
            }
        }
        out
    }

    #[test]
    fn a_row_is_one_line_of_the_terminal() {
        for columns in [60, 80, 120] {
            let rows = shown(Some(columns), columns == 80, false);
            assert!(rows.lines().all(|row| visible(row) <= columns), "{rows}");
            assert_eq!(rows.lines().count(), LOG.lines().count() + 1);
            assert!(!rows.contains('\x1b'));
            insta::assert_snapshot!(format!("rows_{columns}"), rows);
        }
    }

    #[test]
    fn a_pipe_gets_whole_rows_and_what_has_changed() {
        insta::assert_snapshot!("rows_with_changes", shown(None, false, true));
    }

    #[test]
    fn kinds_have_colours_that_do_not_count() {
        let plan: Plan = serde_json::from_slice(PLAN).unwrap();
        let state = State::new(&plan);
        let ledger = Ledger { paint: Paint::always(), columns: Some(70), since_start: false, begun: String::new() };
        for line in LOG.lines() {
            let event = Event::decode(line.as_bytes()).unwrap();
            let row = ledger.row(&event, line.as_bytes(), &plan, &state);
            assert!(row.contains('\x1b') && visible(row.trim_end()) <= 70, "{row}");
        }
    }
}
