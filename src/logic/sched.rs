//! What to do next: which events follow from the state, which task starts, how many workers are wanted. Pure functions of
//! the state and a few facts about the world; the caller holds the lock, so that what is decided is still true when it is
//! written.

use crate::base::ids::{TaskId, WorkerNo};
use crate::base::sum::sum;
use crate::logic::state::{MAX_CRASHES, State};
use crate::logic::view::{End, Phase};
use crate::model::event::{Body, Draft, Ended, Reason, RunEnded, Skipped, Verdict};
use crate::model::plan::Plan;

/// Within this time, in milliseconds, [`MAX_CRASHES`] of one task are too many.
const CRASH_MS: u64 = 60_000;

/// What the caller knows of the world.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub now_ms: u64,
    /// The boot that the clock belongs to.
    pub boot_id: &'a str,
    /// Workers that are dead and whose tasks have no process left.
    pub dead: &'a [WorkerNo],
}

/// Why a run may start nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The machine was started anew since.
    Rebooted,
    /// Its time limit is over.
    OutOfTime,
    /// Its budget is spent.
    OutOfBudget,
    /// Somebody cancelled it.
    Cancelled,
}

impl Stopped {
    fn because(self) -> &'static str {
        match self {
            Stopped::Rebooted => "interrupted: the machine was restarted",
            Stopped::OutOfTime => "interrupted: the run's time limit is over",
            Stopped::OutOfBudget => "the run's budget is spent",
            Stopped::Cancelled => "cancelled",
        }
    }
}

/// Whether a run ended before its tasks did: by a restart, its time, its budget, or because somebody cancelled it.
pub fn was_cut_short(end: &End) -> bool {
    let all = [Stopped::Rebooted, Stopped::OutOfTime, Stopped::OutOfBudget, Stopped::Cancelled];
    all.iter().any(|why| why.because() == end.reason)
}

/// Whether a run ended because the machine was restarted, or its time was over.
pub fn was_interrupted(end: &End) -> bool {
    [Stopped::Rebooted, Stopped::OutOfTime].iter().any(|why| why.because() == end.reason)
}

/// Whether, and why, no attempt may begin any more.
pub fn stopped(state: &State, plan: &Plan, facts: Facts<'_>) -> Option<Stopped> {
    if state.view.cancelled {
        return Some(Stopped::Cancelled);
    }
    if state.view.boot_id != facts.boot_id {
        return Some(Stopped::Rebooted);
    }
    if run_deadline(state, plan).is_some_and(|d| facts.now_ms >= d) {
        return Some(Stopped::OutOfTime);
    }
    if plan.limits.max_budget_usd.is_some_and(|max| state.spent_usd >= max) {
        return Some(Stopped::OutOfBudget);
    }
    None
}

/// When the run's time is over, `CLOCK_MONOTONIC` in milliseconds on the run's boot.
pub fn run_deadline(state: &State, plan: &Plan) -> Option<u64> {
    plan.limits.run_timeout.0.map(|limit| state.since_ms.saturating_add(limit.as_ms()))
}

/// When attempt time is over for task `i` which began at `since_ms`: the nearer of its own limit and the run's.
pub fn attempt_deadline(state: &State, plan: &Plan, i: usize, since_ms: u64) -> Option<u64> {
    let own = plan.tasks[i].timeout.0.map(|limit| since_ms.saturating_add(limit.as_ms()));
    match (own, run_deadline(state, plan)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// The events that follow from the state as it is. The caller writes and applies them and asks again, until nothing
/// follows; each round makes the set of open tasks smaller, so that it ends.
pub fn consequences(state: &State, plan: &Plan, facts: Facts<'_>) -> Vec<Draft> {
    if state.view.ended.is_some() || state.view.schema == 0 {
        return Vec::new();
    }
    let mut out = lost_workers(state, plan, facts);
    if out.is_empty() {
        out = closed_tasks(state, plan, facts);
    }
    if out.is_empty() && state.view.counts.open() == 0 {
        out.push(Draft::run(Body::RunEnded(verdict(state, plan, facts))));
    }
    out
}

fn lost_workers(state: &State, plan: &Plan, facts: Facts<'_>) -> Vec<Draft> {
    let mut out = Vec::new();
    let rebooted = state.view.boot_id != facts.boot_id;
    let is_dead = |w: WorkerNo| rebooted || facts.dead.contains(&w);
    let why = if rebooted { "the machine was restarted" } else { "the worker died" };
    for &i in &state.running {
        let Some(open) = &state.tasks[i].open else { continue };
        if is_dead(open.worker) {
            let body = Body::Lost(lost(state, plan, i, why, facts));
            out.push(Draft::attempt(Some(open.worker), &plan.tasks[i].id, open.number, body));
        }
    }
    for (&n, process) in &state.view.workers {
        // Who was started since the restart to finish the run is alive.
        if (rebooted && process.boot_id != facts.boot_id) || facts.dead.contains(&WorkerNo(n)) {
            out.push(Draft::worker(WorkerNo(n), Body::WorkerLost(Reason { reason: why.into() })));
        }
    }
    out
}

fn closed_tasks(state: &State, plan: &Plan, facts: Facts<'_>) -> Vec<Draft> {
    let mut out = Vec::new();
    let cancelled =
        |id: &TaskId| Draft::task(id, Body::Cancelled(Ended { reason: "cancelled".into(), ..Ended::default() }));
    let skipped = |id: &TaskId, because: String| Draft::task(id, Body::Skipped(Skipped { because }));
    if let Some(why) = stopped(state, plan, facts) {
        for (i, task) in state.tasks.iter().enumerate() {
            if task.phase.is_final() || task.open.is_some() {
                continue;
            }
            let id = &plan.tasks[i].id;
            out.push(match why {
                Stopped::Cancelled => cancelled(id),
                Stopped::Rebooted | Stopped::OutOfTime | Stopped::OutOfBudget => skipped(id, why.because().into()),
            });
        }
        return out;
    }
    out.extend(state.cancels.iter().filter(|&&i| state.tasks[i].open.is_none()).map(|&i| cancelled(&plan.tasks[i].id)));
    if !out.is_empty() || state.doomed.is_empty() {
        return out;
    }
    // Everything behind a task that failed goes in the same write, each task once and with the nearest cause.
    let mut seen = vec![false; state.tasks.len()];
    let mut queue: Vec<(usize, usize)> = state.doomed.iter().map(|(&i, &cause)| (i, cause)).collect();
    let mut next = 0;
    while next < queue.len() {
        let (i, cause) = queue[next];
        next += 1;
        if std::mem::replace(&mut seen[i], true) || state.tasks[i].phase.is_final() || state.tasks[i].open.is_some() {
            continue;
        }
        out.push(skipped(&plan.tasks[i].id, plan.tasks[cause].id.to_string()));
        queue.extend(state.dependents_of(i).iter().map(|&d| (d, i)));
    }
    out
}

fn verdict(state: &State, plan: &Plan, facts: Facts<'_>) -> RunEnded {
    let counts = state.view.counts;
    let bad = |i: usize| matches!(state.tasks[i].phase, Phase::Failed | Phase::TimedOut | Phase::Lost);
    let failed: Vec<&str> = (0..state.tasks.len())
        .filter(|&i| bad(i) && !plan.tasks[i].allow_failure)
        .map(|i| plan.tasks[i].id.as_str())
        .collect();
    // What the restart or the end of time has hit was not the task's own failure.
    let hit = |why| {
        state.tasks.iter().any(|task| {
            matches!((why, task.phase), (Stopped::Rebooted, Phase::Lost) | (Stopped::OutOfTime, Phase::TimedOut))
        })
    };
    let halted = stopped(state, plan, facts).filter(|&why| counts.skipped + counts.cancelled > 0 || hit(why));
    let (status, reason) = if state.view.cancelled || (counts.cancelled > 0 && failed.is_empty()) {
        (Verdict::Cancelled, "cancelled".to_owned())
    } else if let Some(why) = halted {
        (Verdict::Failed, why.because().to_owned())
    } else if let Some(first) = failed.first() {
        let more = failed.len() - 1;
        (Verdict::Failed, if more == 0 { format!("{first} failed") } else { format!("{first} and {more} more failed") })
    } else if counts.skipped > 0 {
        // Nothing failed, so that they were left out on purpose, by whoever continued another run.
        (Verdict::Ok, format!("all tasks that were asked for are done, {} left out", counts.skipped))
    } else {
        (Verdict::Ok, "all tasks are done".to_owned())
    };
    RunEnded {
        status,
        reason,
        done: counts.done,
        failed: counts.failed,
        skipped: counts.skipped,
        cancelled: counts.cancelled,
    }
}

/// How an attempt came to its end, as far as trying again depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The task said so, or took too long: counted against its retries.
    Failure,
    /// Its worker died. That says little about the task, so it is counted apart: only a task whose workers die again and again
    /// within a short time is given up.
    Crash,
}

/// When task `i`, whose open attempt has just come to this end, may be tried again; `None` if that was its last attempt. A
/// task without retries is tried at most once, whatever happens.
pub fn retry_at(state: &State, plan: &Plan, i: usize, fault: Fault, facts: Facts<'_>) -> Option<u64> {
    let (task, spec) = (&state.tasks[i], &plan.tasks[i]);
    let spent = match fault {
        Fault::Failure => task.failures >= spec.retries,
        Fault::Crash => is_deadly(state, i, facts.now_ms),
    };
    if spec.retries == 0 || spent || state.cancels.contains(&i) || stopped(state, plan, facts).is_some() {
        return None;
    }
    let salt = format!("{}/{}/{}", plan.run, spec.id, task.attempts);
    Some(facts.now_ms.saturating_add(spec.backoff.after(task.attempts, sum(salt.as_bytes())).as_ms()))
}

/// Whether one more crash now makes it [`MAX_CRASHES`] of task `i` within [`CRASH_MS`].
fn is_deadly(state: &State, i: usize, now_ms: u64) -> bool {
    let since = now_ms.saturating_sub(CRASH_MS);
    let recent = state.tasks[i].crashes.iter().filter(|at| **at >= since).count();
    recent + 1 >= MAX_CRASHES
}

/// The payload of `lost` for the open attempt of task `i`.
pub fn lost(state: &State, plan: &Plan, i: usize, why: &str, facts: Facts<'_>) -> Ended {
    let retry_at = retry_at(state, plan, i, Fault::Crash, facts);
    let again_and_again = retry_at.is_none() && plan.tasks[i].retries > 0 && is_deadly(state, i, facts.now_ms);
    let reason = if again_and_again { format!("{why}, {MAX_CRASHES} times within a minute") } else { why.to_owned() };
    Ended { reason, will_retry: retry_at.is_some(), retry_at, mono_ms: Some(facts.now_ms), ..Ended::default() }
}

/// The task that a free worker takes next, with the number of the attempt.
pub fn next_task(state: &State, plan: &Plan, facts: Facts<'_>) -> Option<(usize, u32)> {
    if state.view.ended.is_some() || stopped(state, plan, facts).is_some() {
        return None;
    }
    if state.running.len() >= state.max_workers as usize {
        return None;
    }
    // A task whose pause is over goes before a new one: it is older.
    let due = state.retrying.first().filter(|(at, _)| *at <= facts.now_ms).map(|&(_, i)| i);
    let i = due.or_else(|| state.ready.first().map(|&(_, i)| i))?;
    Some((i, state.tasks[i].attempts.saturating_add(1)))
}

/// Workers to start, so that everything that is ready can run.
pub fn workers_wanted(state: &State, plan: &Plan, facts: Facts<'_>) -> u32 {
    if state.view.ended.is_some() || stopped(state, plan, facts).is_some() {
        return 0;
    }
    let due = state.retrying.iter().take_while(|(at, _)| *at <= facts.now_ms).count();
    let useful = state.running.len() + state.ready.len() + due;
    let target = u32::try_from(useful).unwrap_or(u32::MAX).min(state.max_workers);
    target.saturating_sub(u32::try_from(state.view.workers.len()).unwrap_or(u32::MAX))
}

/// The next moment after `now_ms` at which something becomes possible by time alone, `CLOCK_MONOTONIC` in milliseconds. One
/// that has passed is not waited for: a task that is due and finds no room is taken by whoever makes room.
pub fn next_moment(state: &State, plan: &Plan, now_ms: u64) -> Option<u64> {
    if state.view.ended.is_some() {
        return None;
    }
    let retry = state.retrying.range((now_ms.saturating_add(1), 0)..).next().map(|(at, _)| *at);
    match (retry, run_deadline(state, plan).filter(|at| *at > now_ms)) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, run_started, task};
    use crate::model::event::{Event, Started};

    /// A run of one task with so many retries, at a time of its own.
    struct One(State, Plan, u64);

    impl One {
        fn new(retries: u32) -> One {
            let mut plan = plan(vec![task("a")]);
            plan.tasks[0].retries = retries;
            let mut one = One(State::new(&plan), plan, 1000);
            one.add(Draft::run(run_started(&one.1, "boot")));
            one
        }

        fn add(&mut self, draft: Draft) {
            self.0.apply(&Event::new(draft, self.0.view.seq + 1, String::new()));
        }

        /// An attempt that begins now and ends so after `ms`: its payload.
        fn attempt(&mut self, ms: u64, fault: Fault) -> Ended {
            let (id, number) = (self.1.tasks[0].id.clone(), self.0.tasks[0].attempts + 1);
            let started = Started { cwd: "/".into(), title: None, mono_ms: self.2 };
            self.add(Draft::attempt(Some(WorkerNo(1)), &id, number, Body::Started(started)));
            self.2 += ms;
            let facts = Facts { now_ms: self.2, boot_id: "boot", dead: &[] };
            let body = match fault {
                Fault::Crash => Body::Lost(lost(&self.0, &self.1, 0, "the worker died", facts)),
                Fault::Failure => {
                    let retry_at = retry_at(&self.0, &self.1, 0, fault, facts);
                    Body::Failed(Ended { will_retry: retry_at.is_some(), retry_at, ..Ended::default() })
                }
            };
            self.add(Draft::attempt(Some(WorkerNo(1)), &id, number, body.clone()));
            let (Body::Lost(ended) | Body::Failed(ended)) = body else { unreachable!() };
            ended
        }
    }

    #[test]
    fn crashes_are_counted_apart_from_failures() {
        let mut one = One::new(1);
        assert!(one.attempt(40_000, Fault::Crash).will_retry);
        assert!(one.attempt(40_000, Fault::Crash).will_retry);
        assert!(one.attempt(1_000, Fault::Failure).will_retry, "crashes used up the retries");
        assert!(one.attempt(40_000, Fault::Crash).will_retry, "never three within a minute");
        let end = one.attempt(1_000, Fault::Failure);
        assert!(!end.will_retry, "the second failure is one too many");
        assert_eq!(one.0.tasks[0].attempts, 5);
    }

    #[test]
    fn a_task_whose_workers_die_again_and_again_is_given_up() {
        let mut one = One::new(9);
        assert!(one.attempt(61_000, Fault::Crash).will_retry);
        assert!(one.attempt(61_000, Fault::Crash).will_retry);
        assert!(one.attempt(10_000, Fault::Crash).will_retry);
        let end = one.attempt(10_000, Fault::Crash);
        assert!(!end.will_retry);
        assert_eq!(end.reason, "the worker died, 3 times within a minute");
    }

    #[test]
    fn a_task_without_retries_is_tried_at_most_once() {
        for fault in [Fault::Crash, Fault::Failure] {
            let end = One::new(0).attempt(1, fault);
            assert_eq!((end.will_retry, end.retry_at), (false, None), "{fault:?}");
        }
        assert_eq!(One::new(0).attempt(1, Fault::Crash).reason, "the worker died");
    }
}
