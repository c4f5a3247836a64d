//! What is known of the selected task, a line each, the most wanted first. Text of others is made harmless here.

use std::fmt::Write;

use crate::base::text::one_line;
use crate::logic::view::Phase;
use crate::model::event::Usage;
use crate::model::plan::{Action, Need};
use crate::ui::board;
use crate::ui::lines;
use crate::ui::top::past::Try;
use crate::ui::top::picture::{Opened, Picture};
use crate::ui::top::view::{Page, View};
use crate::ui::when;

/// Characters of a fact that are kept.
const LONG: usize = 400;

/// Attempts, and names in a list, that are shown.
const MANY: usize = 8;

/// How many of `all` facts are shown in `height` rows: in the list of tasks the output is what matters.
pub fn rows(view: &View, all: usize, height: usize) -> usize {
    let most = match view.page {
        Page::Log | Page::Timeline => 0,
        Page::Detail => height.saturating_sub(3),
        Page::Tasks => height / 3,
    };
    all.min(most)
}

/// A word for what a line is about, and the line.
pub type Fact = (&'static str, String);

/// The facts about the selected task.
pub fn of(run: Opened<'_>, view: &View, picture: &Picture<'_>) -> Vec<Fact> {
    let i = view.task;
    let (Some(spec), Some(task)) = (run.plan.tasks.get(i), run.state.tasks.get(i)) else { return Vec::new() };
    let mut facts: Vec<Fact> = Vec::new();
    let mut put = |word, text: String| {
        if !text.is_empty() {
            facts.push((word, one_line(&text, LONG)));
        }
    };
    put("tries", tries(run, i, picture));
    put("waits", waits(run, i));
    let said = if task.open.is_some() { task.note.as_ref().or(task.line.as_ref()) } else { task.line.as_ref() };
    put("says", said.cloned().unwrap_or_default());
    put("needs", few(spec.needs.iter().map(|need| need_text(run, need))));
    put("result", task.result.as_ref().map(|r| format!("{} ({})", r.path, bytes(r.bytes))).unwrap_or_default());
    put("cost", cost(&task.usage));
    put("claims", few(spec.claims.iter().cloned()));
    put("holds", few(spec.resources.iter().cloned()));
    put("title", spec.title.clone().or_else(|| spec.item.clone()).unwrap_or_default());
    let action = match &spec.action {
        Action::Run(argv) => argv.join(" "),
        Action::Shell(script) => script.clone(),
        Action::Claude(claude) => format!("claude: {}", claude.prompt),
    };
    put("runs", action);
    facts
}

/// `1 failed after 3.0 s: exit code 7 · 2 running for 4.0 s`, the last ones.
fn tries(run: Opened<'_>, i: usize, picture: &Picture<'_>) -> String {
    let task = &run.state.tasks[i];
    if task.is_taken {
        let from = run.plan.from.as_ref().map(|from| format!(" from run {from}")).unwrap_or_default();
        return format!("taken over{from}");
    }
    let all = run.past.of(i);
    let hidden = all.len().saturating_sub(MANY);
    let mut parts: Vec<String> = Vec::new();
    if hidden > 0 {
        parts.push(format!("{hidden} earlier"));
    }
    parts.extend(all[hidden..].iter().map(|t| try_text(t, picture)));
    if let (Phase::Retrying, true) = (task.phase, run.same_boot) {
        parts.push(format!("again in {}", when::ms(task.retry_at.saturating_sub(picture.now_ms))));
    }
    parts.join(" · ")
}

fn try_text(t: &Try, picture: &Picture<'_>) -> String {
    let took = when::ms(t.took_ms(i64::try_from(picture.now_unix_ms).unwrap_or(i64::MAX)));
    let by = t.worker.map(|w| format!(" by {w}")).unwrap_or_default();
    let (word, how) = (word(t.phase), if t.ended.is_none() { "for" } else { "after" });
    let why = t.reason.as_deref().map(|why| format!(": {}", one_line(why, 80))).unwrap_or_default();
    format!("{} {word}{by} {how} {took}{why}", t.number)
}

/// What a running task waits for inside its run.
fn waits(run: Opened<'_>, i: usize) -> String {
    let tasks = run.state.waits.values().filter(|w| w.task == i).map(|w| w.on.name(run.plan));
    let votes = run.state.vote_waits.values().filter(|(task, _)| *task == i);
    let votes = votes.filter_map(|(_, vote)| run.plan.votes.get(*vote)).map(|vote| format!("{}?", vote.topic));
    let all = few(tasks.chain(votes));
    if all.is_empty() { all } else { format!("for {all}") }
}

/// `✓ build`, or the sign of what is still to come.
fn need_text(run: Opened<'_>, need: &Need) -> String {
    let sign = if run.state.is_met(run.plan, need) { "✓" } else { "·" };
    format!("{sign} {need}")
}

/// A list that stays readable when it is long.
fn few(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let mut text = names.iter().take(MANY).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > MANY {
        let _ = write!(text, " and {} more", names.len() - MANY);
    }
    text
}

fn cost(usage: &Usage) -> String {
    if *usage == Usage::default() {
        return String::new();
    }
    format!("${:.4}, {} turns, {} tokens", usage.cost_usd, usage.turns, usage.tokens)
}

/// A length for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..10_240 => format!("{n} bytes"),
        10_240..10_485_760 => format!("{} KiB", n / 1024),
        _ => format!("{} MiB", n / 1_048_576),
    }
}

/// A task's state for people.
pub fn word(phase: Phase) -> &'static str {
    match phase {
        Phase::TimedOut => "timed out",
        other => other.word(),
    }
}

/// What stands in the last column of a task in the list: what it waits for, else what it says.
pub fn last_words(run: Opened<'_>, i: usize, now_ms: u64) -> String {
    let (spec, task) = (&run.plan.tasks[i], &run.state.tasks[i]);
    match task.phase {
        Phase::Waiting => return format!("needs {}", board::unmet(run.state, run.plan, i, 3)),
        Phase::Retrying if run.same_boot => {
            return format!("again in {}", when::ms(task.retry_at.saturating_sub(now_ms)));
        }
        _ => {}
    }
    let own = spec.title.as_ref().or(spec.item.as_ref());
    let said = if task.open.is_some() { task.note.as_ref().or(task.line.as_ref()).or(own) } else { task.line.as_ref() };
    one_line(said.or(own).map_or("", String::as_str), LONG)
}

/// The last line that stays on the screen when the view is left: `run X: active, 3 done, 1 failed, 2 open`.
pub fn farewell(run: Opened<'_>) -> String {
    let view = &run.state.view;
    let word = view.ended.as_ref().map_or("active", |end| lines::verdict(end.status));
    format!("run {}: {word}, {}", run.plan.run, lines::tally(view.counts))
}
