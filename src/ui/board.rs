//! What a live view shows of a run: a line for every worker with a task, one for what waits, one for the whole. Pure text
//! of a state, a time and a size.

use crate::base::text::one_line;
use crate::logic::pace::{self, Left};
use crate::logic::state::{State, TaskState};
use crate::logic::view::Phase;
use crate::model::plan::Plan;
use crate::ui::lines;
use crate::ui::paint::Paint;
use crate::ui::when;
use std::fmt::Write;

/// Where the view is shown.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub now_ms: u64,
    /// Wall-clock time in milliseconds since 1970.
    pub now_unix_ms: u64,
    /// Which picture of the spinner it is.
    pub turn: usize,
    /// Colours.
    pub paint: Paint,
}

const SPINNER: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];

/// Seconds that a running task still needs, `elapsed_ms` after it began: as it said, else as its percentage lets expect,
/// less what has passed since it said so. `now_unix_ms` is wall-clock time.
pub fn eta_s(task: &TaskState, elapsed_ms: u64, now_unix_ms: u64) -> Option<u64> {
    let told = task.told.as_deref().and_then(when::unix_ms).and_then(|t| u64::try_from(t).ok())?;
    let since = now_unix_ms.saturating_sub(told).min(elapsed_ms);
    let left_then = if let Some(eta) = task.eta_s {
        eta.saturating_mul(1000)
    } else {
        let percent = u64::from(task.percent.filter(|p| (5..=100).contains(p))?);
        (elapsed_ms - since) * (100 - percent) / percent
    };
    Some(left_then.saturating_sub(since).div_ceil(1000))
}

/// What a running task still needs: by its own word, else by earlier runs of its rule.
pub fn left(state: &State, plan: &Plan, i: usize, elapsed_ms: u64, now_unix_ms: u64) -> Option<Left> {
    let said = eta_s(&state.tasks[i], elapsed_ms, now_unix_ms);
    match said {
        Some(s) => Some(Left { ms: s.saturating_mul(1000), by_history: false }),
        None => pace::expected_left(elapsed_ms, plan.tasks[i].expected),
    }
}

/// The lines of the view; none for a run that has ended.
pub fn lines(state: &State, plan: &Plan, f: Frame) -> Vec<String> {
    if state.view.ended.is_some() {
        return Vec::new();
    }
    let mut running: Vec<usize> = state.running.iter().copied().collect();
    running.sort_by_key(|&i| state.tasks[i].open.as_ref().map(|o| o.worker));
    let room = f.height.saturating_sub(4).max(1);
    let ids = running.iter().map(|&i| plan.tasks[i].id.as_str().chars().count()).max().unwrap_or(0);
    let id_width = ids.min((f.width / 3).max(8));
    let mut out: Vec<String> = running.iter().take(room).map(|&i| worker(state, plan, i, id_width, f)).collect();
    if running.len() > room {
        out.push(f.paint.dim(format!("   and {} more", running.len() - room)));
    }
    out.extend(waiting(state, plan, f));
    out.push(whole(state, plan, f));
    out
}

fn worker(state: &State, plan: &Plan, i: usize, id_width: usize, f: Frame) -> String {
    let task = &state.tasks[i];
    let Some(open) = &task.open else { return String::new() };
    let elapsed = f.now_ms.saturating_sub(open.since_ms);
    let width = (f.width / 4).clamp(6, 24);
    let bar = if let Some(p) = task.percent {
        let full = usize::from(p.min(100)) * width / 100;
        let bar = f.paint.busy("━".repeat(full)) + &f.paint.dim("─".repeat(width - full));
        format!("{bar} {p:>3} %")
    } else {
        let sign = SPINNER[f.turn % SPINNER.len()];
        format!("{}{}      ", f.paint.busy(sign), " ".repeat(width - 1))
    };
    let id = one_line(plan.tasks[i].id.as_str(), id_width);
    let mut rest = format!("{:>8}", when::ms(elapsed));
    if let Some(left) = left(state, plan, i, elapsed, f.now_unix_ms).filter(|left| left.ms > 0) {
        let _ = write!(rest, "  ETA {}", when::ms(left.ms));
    }
    if let Some(slow) = pace::slow(elapsed, plan.tasks[i].expected) {
        let _ = write!(rest, "  {}", f.paint.warn(slow));
    }
    if open.number > 1 {
        let _ = write!(rest, "  attempt {}", open.number);
    }
    let own = plan.tasks[i].title.as_deref().or(plan.tasks[i].item.as_deref());
    if let Some(text) = task.note.as_deref().or(own) {
        let used = 4 + width + 8 + id_width + rest.chars().count() + 4;
        let text = one_line(text, f.width.saturating_sub(used).max(1));
        let _ = write!(rest, "  {}", f.paint.dim(text));
    }
    let worker = format!("{:<3}", open.worker.to_string());
    format!("{} {bar}  {id:<id_width$}  {rest}", f.paint.bold(worker))
}

/// What has not begun: how many, and of the first few why.
fn waiting(state: &State, plan: &Plan, f: Frame) -> Option<String> {
    if state.unstarted == 0 {
        return None;
    }
    let mut text = format!("{} to come", state.unstarted);
    let mut shown = 0;
    for (i, task) in state.tasks.iter().enumerate() {
        let id = plan.tasks[i].id.as_str();
        let part = match task.phase {
            Phase::Retrying => format!("{id} again in {}", when::ms(task.retry_at.saturating_sub(f.now_ms))),
            Phase::Waiting => format!("{id} (needs {})", unmet(state, plan, i, 2)),
            _ => continue,
        };
        text.push_str(if shown == 0 { ": " } else { " · " });
        text.push_str(&part);
        shown += 1;
        if text.chars().count() >= f.width {
            break;
        }
    }
    Some(f.paint.dim(format!("    {}", one_line(&text, f.width.saturating_sub(5).max(1)))))
}

/// What task `i` still waits for, the first `most` by name.
pub fn unmet(state: &State, plan: &Plan, i: usize, most: usize) -> String {
    let open = plan.tasks[i].needs.iter().filter(|need| !state.is_met(plan, need));
    let names: Vec<String> = open.map(ToString::to_string).collect();
    let mut text = names.iter().take(most).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > most {
        let _ = write!(text, " and {} more", names.len() - most);
    }
    text
}

fn whole(state: &State, plan: &Plan, f: Frame) -> String {
    let counts = state.view.counts;
    let mut text = format!("    {} of {} done", counts.done, counts.total);
    if counts.failed > 0 {
        text.push_str(&f.paint.bad(format!(" · {} failed", counts.failed)));
    }
    if counts.skipped + counts.cancelled > 0 {
        let _ = write!(text, " · {} skipped or cancelled", counts.skipped + counts.cancelled);
    }
    let _ = write!(text, " · {}", when::ms(f.now_ms.saturating_sub(state.since_ms)));
    let elapsed = |i: usize| state.tasks[i].open.as_ref().map_or(0, |open| f.now_ms.saturating_sub(open.since_ms));
    if let Some(left) = pace::run_left(state, plan, |i| left(state, plan, i, elapsed(i), f.now_unix_ms)) {
        let _ = write!(text, " · {}", left.text_left());
    }
    if state.view.cancelled {
        text.push_str(&f.paint.warn(" · cancelling"));
    }
    text
}

/// The table at the end of a run: task, state, duration, result, cost. `rows` limits it: of a long plan, what went well
/// is only counted.
pub fn outcome(state: &State, plan: &Plan, rows: usize, paint: Paint) -> String {
    let all = state.tasks.len() <= rows;
    let chosen: Vec<usize> =
        (0..state.tasks.len()).filter(|&i| all || state.tasks[i].phase != Phase::Done).take(rows).collect();
    let cells: Vec<Vec<String>> = chosen
        .iter()
        .map(|&i| {
            let task = &state.tasks[i];
            let cost = task.usage.cost_usd;
            vec![
                plan.tasks[i].id.to_string(),
                task.phase.word().into(),
                task.duration_ms.map(when::ms).unwrap_or_default(),
                task.result.as_ref().map(|r| one_line(&r.path, 200)).unwrap_or_default(),
                if cost > 0.0 { format!("${cost:.4}") } else { String::new() },
            ]
        })
        .collect();
    let phase = |row: usize| chosen.get(row).map_or(Phase::Waiting, |&i| state.tasks[i].phase);
    let mut out =
        super::table::lay_out(
            &cells,
            |row, column, cell| {
                if column == 1 { paint.phase(phase(row), cell) } else { cell.to_owned() }
            },
        );
    if chosen.len() < state.tasks.len() {
        let _ = writeln!(out, "{} in all: {}", state.tasks.len(), lines::tally(state.view.counts));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{RunId, WorkerNo};
    use crate::model::check::{Defaults, Machine, plan_from_person};
    use crate::model::config::Settings;
    use crate::model::event::{Body, Draft, Event, Progress, Started};

    const PLAN: &str = r#"{"version": 1, "tasks": [
        {"id": "fast", "shell": "true"}, {"id": "slow", "shell": "true", "title": "the slow one"},
        {"id": "last", "shell": "true", "needs": ["fast", "slow"]}]}"#;

    fn at(plan: &Plan, events: &[(&str, Body)]) -> State {
        let mut state = State::new(plan);
        for (n, (task, body)) in events.iter().enumerate() {
            let task = crate::base::ids::TaskId::new(task).unwrap();
            let worker = WorkerNo(u32::from(task.as_str() == "slow") + 1);
            let draft = Draft::attempt(Some(worker), &task, 1, body.clone());
            state.apply(&Event::new(draft, n as u64 + 1, "2026-01-02T03:04:05.000000Z".into()));
        }
        state
    }

    fn plan() -> Plan {
        let settings = Settings::default();
        let defaults = Defaults { settings: &settings, machine: Machine { cores: 4, mem_mib: 8000 } };
        plan_from_person(PLAN.as_bytes(), RunId::new("r").unwrap(), &defaults).unwrap()
    }

    fn frame(width: usize, height: usize) -> Frame {
        let now_unix_ms = 1_767_323_045_000 + 2000;
        Frame { width, height, now_ms: 12_000, now_unix_ms, turn: 0, paint: Paint::plain() }
    }

    #[test]
    fn every_worker_has_a_line_that_fits_the_terminal() {
        let plan = plan();
        let begin = || Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 2000, ..Started::default() });
        let half = Body::Progress(Progress { percent: Some(50), note: Some("x".repeat(500)), ..Progress::default() });
        let state = at(&plan, &[("slow", begin()), ("fast", begin()), ("fast", half)]);
        let shown = lines(&state, &plan, frame(80, 24));
        assert_eq!(shown.len(), 4, "{shown:#?}");
        assert!(shown[0].starts_with("W1  ") && shown[0].contains(" 50 %  fast"), "{shown:#?}");
        // Half of it took 8 s, 2 s ago.
        assert!(shown[0].contains("10 s  ETA 6.0 s  xxx"), "{shown:#?}");
        assert!(shown[1].starts_with("W2  ⠋") && shown[1].ends_with("the slow one"), "{shown:#?}");
        assert_eq!(shown[2], "    1 to come: last (needs fast, slow)");
        assert!(shown.iter().all(|l| l.chars().count() <= 80), "{shown:#?}");
        assert_eq!(lines(&state, &plan, frame(80, 5)).len(), 4, "one worker, the number of the others, two more lines");
    }

    #[test]
    fn what_a_task_said_counts_down() {
        let plan = plan();
        let said = Body::Progress(Progress { eta_s: Some(30), ..Progress::default() });
        let state = at(
            &plan,
            &[
                ("fast", Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 2000, ..Started::default() })),
                ("fast", said),
            ],
        );
        assert_eq!(eta_s(&state.tasks[0], 10_000, 1_767_323_045_000 + 2000), Some(28));
        assert_eq!(eta_s(&state.tasks[0], 90_000, 1_767_323_045_000 + 60_000), Some(0));
        assert_eq!(eta_s(&state.tasks[1], 10_000, 1_767_323_045_000), None);
    }
}
