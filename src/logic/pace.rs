//! How fast it goes: what a task still needs, by its own word or by earlier runs of its rule, which tasks are slow, and when
//! the whole run may be over. Estimates, said as such; nothing is decided by them.

use std::time::Duration;

use crate::base::span::human;
use crate::logic::state::State;
use crate::model::plan::Plan;

/// So long beyond twice what is usual a task is slow, in milliseconds.
const GRACE_MS: u64 = 10_000;

/// How long something still takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Left {
    /// In milliseconds.
    pub ms: u64,
    /// Whether earlier runs tell, and not the task.
    pub by_history: bool,
}

impl Left {
    /// `about 30 s`, and by whom.
    pub fn text(self) -> String {
        self.with("")
    }

    /// `about 30 s left`, and by whom.
    pub fn text_left(self) -> String {
        self.with(" left")
    }

    fn with(self, word: &str) -> String {
        let by = if self.by_history { ", by earlier runs" } else { "" };
        // Nobody believes the milliseconds of an estimate.
        format!("about {}{word}{by}", human(Duration::from_secs(self.ms.div_ceil(1000))))
    }
}

/// What is left of an attempt that usually takes `expected_ms`, while that is not over.
pub fn expected_left(elapsed_ms: u64, expected_ms: Option<u64>) -> Option<Left> {
    let ms = expected_ms?.checked_sub(elapsed_ms).filter(|ms| *ms > 0)?;
    Some(Left { ms, by_history: true })
}

/// `slow: 3 min, usually 40 s`, of an attempt that takes much longer than usual.
pub fn slow(elapsed_ms: u64, expected_ms: Option<u64>) -> Option<String> {
    let expected = expected_ms?;
    if elapsed_ms <= expected.saturating_mul(2).saturating_add(GRACE_MS) {
        return None;
    }
    let text = |ms: u64| human(Duration::from_secs(ms.div_ceil(1000)));
    Some(format!("slow: {}, usually {}", text(elapsed_ms), text(expected)))
}

/// How far a whole run is, in percent: every task counts the same, and of those that run what they say.
pub fn percent(state: &State) -> Option<u64> {
    let total = u64::try_from(state.tasks.len()).unwrap_or(u64::MAX);
    let over = total.saturating_sub(u64::from(state.view.counts.open()));
    let told: u64 = state.running.iter().filter_map(|&i| state.tasks[i].percent.map(u64::from)).sum();
    (over * 100 + told).checked_div(total)
}

/// When the whole run may be over. `None` where nobody knows of one of its tasks, and once it has ended. `left`: what a task
/// that runs still needs.
pub fn run_left(state: &State, plan: &Plan, left: impl Fn(usize) -> Option<Left>) -> Option<Left> {
    if state.view.ended.is_some() {
        return None;
    }
    let mut own = vec![0; state.tasks.len()];
    let mut by_history = false;
    for (i, task) in state.tasks.iter().enumerate().filter(|(_, t)| !t.phase.is_final()) {
        let one = match &task.open {
            Some(_) => left(i)?,
            None => Left { ms: plan.tasks[i].expected?, by_history: true },
        };
        own[i] = one.ms;
        by_history |= one.by_history;
    }
    // No shorter than the longest chain, and than all the work by all the workers.
    let chain = longest_chain(state, plan, &own);
    let work = own.iter().fold(0_u64, |sum, ms| sum.saturating_add(*ms)).div_ceil(u64::from(state.max_workers.max(1)));
    Some(Left { ms: chain.max(work), by_history })
}

/// The most that tasks one after the other take together. Needs have no circles; a chain may be as long as a plan.
fn longest_chain(state: &State, plan: &Plan, own: &[u64]) -> u64 {
    let mut until: Vec<Option<u64>> = vec![None; own.len()];
    let mut stack = Vec::new();
    let needs = |i: usize| {
        let unmet = plan.tasks[i].needs.iter().filter(|need| !state.is_met(plan, need));
        unmet.filter_map(|need| state.index_of(need.task()?)).collect::<Vec<_>>()
    };
    for start in 0..own.len() {
        stack.push(start);
        while let Some(&i) = stack.last() {
            if until[i].is_some() {
                stack.pop();
                continue;
            }
            let needed = if own[i] == 0 { Vec::new() } else { needs(i) };
            let open: Vec<usize> = needed.iter().copied().filter(|&n| until[n].is_none()).collect();
            if open.is_empty() {
                let before = needed.iter().filter_map(|&n| until[n]).max().unwrap_or(0);
                until[i] = Some(before.saturating_add(own[i]));
                stack.pop();
            } else {
                stack.extend(open);
            }
        }
    }
    until.into_iter().flatten().max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{TaskId, WorkerNo};
    use crate::logic::simulation::{done, plan, run_started, task};
    use crate::model::event::{Body, Draft, Event, Started};

    #[test]
    fn a_task_is_slow_beyond_twice_the_usual_and_ten_seconds() {
        assert_eq!(slow(90_000, Some(40_000)), None);
        assert_eq!(slow(180_000, Some(40_000)).unwrap(), "slow: 3 min, usually 40 s");
        assert_eq!(slow(10_000, Some(1)), None, "what is short may take its time");
        assert_eq!(slow(u64::MAX, None), None);
        assert_eq!(expected_left(10_000, Some(40_000)).unwrap().text(), "about 30 s, by earlier runs");
        assert_eq!(expected_left(50_000, Some(40_000)), None);
        assert_eq!(Left { ms: 29_100, by_history: false }.text(), "about 30 s");
    }

    #[test]
    fn a_run_lasts_as_long_as_its_longest_chain_and_as_its_work() {
        let mut tasks: Vec<_> = ["a", "b", "c", "d"].map(task).into();
        let id = |name: &str| TaskId::new(name).unwrap();
        tasks[1].needs = vec![id("a").into()];
        tasks[2].needs = vec![id("b").into()];
        for task in &mut tasks {
            task.expected = Some(10_000);
        }
        let mut plan = plan(tasks);
        let mut state = State::new(&plan);
        let tell = |state: &mut State, draft: Draft| {
            let seq = state.view.seq + 1;
            state.apply(&Event::new(draft, seq, String::new()));
        };
        tell(&mut state, Draft::run(run_started(&plan, "boot")));
        let left = |state: &State, plan: &Plan| run_left(state, plan, |_| Some(Left { ms: 4000, by_history: false }));
        assert_eq!(left(&state, &plan).unwrap(), Left { ms: 30_000, by_history: true });
        state.max_workers = 1;
        assert_eq!(left(&state, &plan).unwrap().ms, 40_000, "one after the other");
        assert_eq!(percent(&state), Some(0));
        let attempt = |task: &str, body| Draft::attempt(Some(WorkerNo(1)), &id(task), 1, body);
        for body in [Body::Started(Started::default()), done("x")] {
            tell(&mut state, attempt("a", body.clone()));
            tell(&mut state, attempt("b", body));
        }
        state.max_workers = 4;
        assert_eq!(left(&state, &plan).unwrap().ms, 10_000);
        assert_eq!(percent(&state), Some(50));
        plan.tasks[3].expected = None;
        assert_eq!(left(&state, &plan), None, "nobody knows of d");
        tell(&mut state, attempt("d", Body::Started(Started::default())));
        tell(&mut state, attempt("c", Body::Started(Started::default())));
        assert_eq!(left(&state, &plan).unwrap(), Left { ms: 4000, by_history: false });
    }
}
