//! What to do next: which events follow from the state, which task starts, how many workers are wanted. Pure functions of
//! the state and a few facts about the world; the caller holds the lock, so that what is decided is still true when it is
//! written.

use crate::base::ids::{TaskId, WorkerNo};
use crate::base::sum::sum;
use crate::logic::state::{Attempt, Cause, MAX_CRASHES, MAX_REFUSALS, State, TaskState};
use crate::logic::taken;
use crate::logic::view::{End, Phase};
use crate::logic::vote::Poll;
use crate::model::event::{Body, Draft, Ended, Reason, RunEnded, Skipped, Verdict};
use crate::model::plan::{Need, Plan};
use crate::model::vote::Choice;

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
    /// Somebody cancelled it.
    Cancelled,
}

impl Stopped {
    fn because(self) -> &'static str {
        match self {
            Stopped::Rebooted => "interrupted: the machine was restarted",
            Stopped::OutOfTime => "interrupted: the run's time limit is over",
            Stopped::Cancelled => "cancelled",
        }
    }
}

/// Whether a run ended before its tasks did: by a restart, its time, its budget, or because somebody cancelled it.
pub fn was_cut_short(end: &End) -> bool {
    let all = [Stopped::Rebooted, Stopped::OutOfTime, Stopped::Cancelled].map(Stopped::because);
    all.iter().chain(&[SPENT, DRY]).any(|why| **why == *end.reason)
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
    None
}

/// Pause between the starts of two `claude` tasks: a client needs half a second of a core before it does anything.
const STAGGER_MS: u64 = 250;

/// First and longest pause after a refusal for want of quota, where nobody says when there is some again.
const QUOTA_PAUSES_MS: (u64, u64) = (30_000, 900_000);

/// Why no `claude` task starts any more.
const SPENT: &str = "the run's budget is spent";

/// See [`SPENT`].
const DRY: &str = "the quota is used up until after the run's time limit";

/// With less than this, in US dollars, no `claude` task is worth starting.
const LEAST_USD: f64 = 0.001;

/// Why no `claude` task can start any more, in a run in which others can. Money and quota are theirs alone, so that the
/// other tasks go on.
pub fn claude_stopped(state: &State, plan: &Plan) -> Option<&'static str> {
    if plan.limits.max_budget_usd.is_some_and(|max| max - state.charged_usd < LEAST_USD) {
        return Some(SPENT);
    }
    if run_deadline(state, plan).is_some_and(|end| state.quota_until_ms >= end) {
        return Some(DRY);
    }
    None
}

/// What is left of the run's budget, less what is kept for the attempts that are open; `None`: it has no limit.
fn purse(state: &State, plan: &Plan) -> Option<f64> {
    let open = state.running.iter().filter_map(|&i| state.tasks[i].open.as_ref());
    let kept: f64 = open.filter_map(|open| open.budget_usd).sum();
    plan.limits.max_budget_usd.map(|max| max - state.charged_usd - kept)
}

/// `claude` tasks that may run at the same time.
fn claude_slots(state: &State, plan: &Plan) -> usize {
    plan.limits.max_claude.unwrap_or(u32::MAX).min(state.max_workers) as usize
}

/// What the next attempt of task `i` may spend: what its own budget has left, and at most an even share, among those
/// that could start beside it, of what the run has left. `None`: it is no `claude` task, or nothing limits it.
pub fn claude_budget(state: &State, plan: &Plan, i: usize) -> Option<f64> {
    let own = plan.tasks[i].claude()?.max_budget_usd.map(|max| max - state.tasks[i].charged_usd);
    let share = purse(state, plan).map(|left| {
        let could = |(k, t): &(usize, &TaskState)| state.is_claude(*k) && !t.phase.is_final() && t.open.is_none();
        let waiting = state.tasks.iter().enumerate().filter(could).count();
        let slots = claude_slots(state, plan).saturating_sub(state.running_claude());
        let parts = u32::try_from(waiting.min(slots)).unwrap_or(u32::MAX).max(1);
        (left / f64::from(parts)).max(LEAST_USD.min(left))
    });
    let budget = match (own, share) {
        (Some(own), Some(share)) => own.min(share),
        (own, share) => own.or(share)?,
    };
    Some(budget.max(LEAST_USD))
}

/// How many `claude` tasks could start, be it after the pause between two starts.
fn claude_room(state: &State, plan: &Plan, facts: Facts<'_>) -> usize {
    let shut = facts.now_ms < state.quota_until_ms
        || claude_stopped(state, plan).is_some()
        || purse(state, plan).is_some_and(|left| left < LEAST_USD);
    if shut { 0 } else { claude_slots(state, plan).saturating_sub(state.running_claude()) }
}

/// When the pause after the last start of a `claude` task is over.
fn staggered(state: &State) -> u64 {
    state.claude_since_ms.map_or(0, |since| since.saturating_add(STAGGER_MS))
}

/// Until when a refusal for want of quota, met by the open attempt of task `i`, keeps `claude` tasks from starting.
/// `told`: when there is quota again, as the client says; 0 where it does not.
pub fn quota_until(state: &State, i: usize, told: u64, facts: Facts<'_>) -> u64 {
    if told > facts.now_ms {
        return told;
    }
    let since = state.tasks[i].open.as_ref().map_or(0, |open| open.since_ms);
    if since < state.quota_until_ms {
        // It began before that was known.
        return state.quota_until_ms.max(facts.now_ms);
    }
    let (first, longest) = QUOTA_PAUSES_MS;
    facts.now_ms.saturating_add(first.saturating_mul(1 << state.quota_strikes.min(16)).min(longest))
}

/// When task `i`, whose open attempt was refused for want of quota until `until`, is tried again. That does not use up its
/// retries, unless it happens again and again.
pub fn retry_after_refusal(state: &State, plan: &Plan, i: usize, until: u64, facts: Facts<'_>) -> Option<u64> {
    if state.cancels.contains(&i)
        || stopped(state, plan, facts).is_some()
        || claude_stopped(state, plan).is_some()
        || run_deadline(state, plan).is_some_and(|end| until >= end)
    {
        return None;
    }
    if state.tasks[i].refusals < MAX_REFUSALS {
        return Some(until);
    }
    retry_at(state, plan, i, Fault::Failure, facts).map(|at| at.max(until))
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
        // Whoever can still vote does so before the run ends: then the last of them has come to its end.
        let now_ms = (state.view.boot_id == facts.boot_id).then_some(facts.now_ms);
        out.extend(state.view.due_verdicts(now_ms).map(|verdict| Draft::run(Body::Verdict(verdict))));
    }
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
                Stopped::Rebooted | Stopped::OutOfTime => skipped(id, why.because().into()),
            });
        }
        return out;
    }
    if let Some(why) = claude_stopped(state, plan) {
        let waits = |i: &usize| {
            let task = &state.tasks[*i];
            state.is_claude(*i) && !task.phase.is_final() && task.open.is_none() && !state.cancels.contains(i)
        };
        out.extend((0..state.tasks.len()).filter(waits).map(|i| skipped(&plan.tasks[i].id, why.into())));
    }
    out.extend(state.cancels.iter().filter(|&&i| state.tasks[i].open.is_none()).map(|&i| cancelled(&plan.tasks[i].id)));
    if !out.is_empty() || state.doomed.is_empty() {
        return out;
    }
    // Everything behind a task that failed goes in the same write, each task once and with the nearest cause.
    let mut seen = vec![false; state.tasks.len()];
    let mut queue: Vec<(usize, Cause)> = state.doomed.iter().map(|(&i, &cause)| (i, cause)).collect();
    let mut next = 0;
    while next < queue.len() {
        let (i, cause) = queue[next];
        next += 1;
        if std::mem::replace(&mut seen[i], true) || state.tasks[i].phase.is_final() || state.tasks[i].open.is_some() {
            continue;
        }
        let because = match cause {
            Cause::Task(cause) if state.tasks[cause].phase == Phase::Done => {
                format!("{} ended without the checkpoint that it needs", plan.tasks[cause].id)
            }
            Cause::Task(cause) => plan.tasks[cause].id.to_string(),
            Cause::Vote(vote) => {
                let poll = &state.view.polls[vote];
                let said = poll.verdict.as_ref().map_or(Choice::Abort, |verdict| verdict.result);
                format!("the vote {} said {said}", poll.topic)
            }
        };
        out.push(skipped(&plan.tasks[i].id, because));
        queue.extend(state.dependents_of(i).map(|d| (d, Cause::Task(i))));
    }
    out
}

/// The checkpoint for which task `i` was skipped, because the task that should have come to it ended without, well or not.
fn in_vain<'p>(state: &State, plan: &'p Plan, i: usize) -> Option<&'p Need> {
    let ran = |need: &&Need| need.task().and_then(|t| state.index_of(t)).is_some_and(|n| state.tasks[n].attempts > 0);
    let needs = (state.tasks[i].phase == Phase::Skipped).then(|| plan.tasks[i].needs.iter())?;
    needs.filter(|need| need.checkpoint().is_some() && !state.is_met(plan, need)).find(ran)
}

/// Whether task `i` needs another outcome of a vote than it had.
fn outvoted(state: &State, plan: &Plan, i: usize) -> bool {
    plan.tasks[i].needs.iter().any(|need| matches!(need, Need::Verdict(..)) && !state.is_met(plan, need))
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
    let cut_short = counts.skipped + counts.cancelled > 0;
    let halted = stopped(state, plan, facts).filter(|&why| cut_short || hit(why)).map(Stopped::because).or_else(|| {
        let out_of_reach = |t: &TaskState| t.phase == Phase::Skipped;
        let any = state.tasks.iter().enumerate().any(|(i, t)| state.is_claude(i) && out_of_reach(t));
        claude_stopped(state, plan).filter(|_| any && cut_short)
    });
    let (status, reason) = if state.view.cancelled || (counts.cancelled > 0 && failed.is_empty()) {
        (Verdict::Cancelled, "cancelled".to_owned())
    } else if let Some(why) = halted {
        (Verdict::Failed, why.to_owned())
    } else if let Some(first) = failed.first() {
        let more = failed.len() - 1;
        (Verdict::Failed, if more == 0 { format!("{first} failed") } else { format!("{first} and {more} more failed") })
    } else if let Some(need) = (0..state.tasks.len()).find_map(|i| in_vain(state, plan, i)) {
        (Verdict::Failed, format!("{need} was waited for in vain"))
    } else if let Some(poll) = state.view.polls.iter().find(|p| p.verdict.as_ref().is_some_and(|v| v.escalates)) {
        (Verdict::Failed, format!("the vote {} said {}", poll.topic, Choice::Abort))
    } else if state.tasks.iter().enumerate().any(|(i, t)| t.phase == Phase::Skipped && outvoted(state, plan, i)) {
        (Verdict::Ok, format!("all tasks that were to run are done, {} skipped after a vote", counts.skipped))
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
    let own = spec.claude().and_then(|c| c.max_budget_usd);
    let penniless = own.is_some_and(|max| max - task.charged_usd < LEAST_USD) || claude_stopped(state, plan).is_some();
    if state.is_claude(i) && penniless {
        return None;
    }
    if spec.retries == 0 || spent || state.cancels.contains(&i) || stopped(state, plan, facts).is_some() {
        return None;
    }
    let salt = format!("{}/{}/{}", plan.run, spec.id, task.attempts);
    Some(facts.now_ms.saturating_add(spec.backoff.after(task.tries(), sum(salt.as_bytes())).as_ms()))
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
    let claude = facts.now_ms >= staggered(state) && claude_room(state, plan, facts) > 0;
    let leased = taken::unbarred(state, facts.now_ms, claude, 1).first().copied();
    let mut due = state.retrying.iter().take_while(|(at, _)| *at <= facts.now_ms).map(|&(_, i)| i);
    let due = due.find(|&i| {
        let free = !state.resources.contains_key(&i) || leased == Some(i);
        free && (claude || !state.is_claude(i))
    });
    let leased = leased.and_then(|i| state.ready_leased.get(&(-i64::from(plan.tasks[i].priority), i)));
    let ready = [state.ready.first(), state.ready_claude.first().filter(|_| claude), leased];
    let i = due.or_else(|| ready.into_iter().flatten().min().map(|&(_, i)| i))?;
    Some((i, state.tasks[i].attempts.saturating_add(1)))
}

/// So many workers are started at once.
const AT_ONCE: usize = 8;

/// An attempt that has run for so long, in milliseconds, is none of those that are over before another worker has come up.
const SETTLED_MS: u64 = 25;

/// Workers to start, so that everything that is ready can run. The first few at once; then two for each attempt that turns out
/// to take a while, since many workers are of no use to tasks that are over in a moment.
pub fn workers_wanted(state: &State, plan: &Plan, facts: Facts<'_>) -> u32 {
    let settled = open_attempts(state).filter(|open| facts.now_ms >= open.since_ms.saturating_add(SETTLED_MS)).count();
    let target = workers_useful(state, plan, facts).min(AT_ONCE + 2 * settled);
    u32::try_from(target.saturating_sub(state.view.workers.len())).unwrap_or(u32::MAX)
}

fn open_attempts(state: &State) -> impl Iterator<Item = &Attempt> {
    state.running.iter().filter_map(|&i| state.tasks[i].open.as_ref())
}

/// How many workers would have something to do.
fn workers_useful(state: &State, plan: &Plan, facts: Facts<'_>) -> usize {
    if state.view.ended.is_some() || stopped(state, plan, facts).is_some() {
        return 0;
    }
    let room = claude_room(state, plan, facts);
    let due = state.retrying.iter().take_while(|(at, _)| *at <= facts.now_ms).map(|&(_, i)| i);
    let due = due.filter(|i| !state.resources.contains_key(i));
    let leased = taken::unbarred(state, facts.now_ms, room > 0, state.max_workers as usize);
    let (claude, due): (Vec<usize>, Vec<usize>) = due.chain(leased).partition(|&i| state.is_claude(i));
    let claude = (claude.len() + state.ready_claude.len()).min(room);
    let useful = state.running.len() + state.ready.len() + due.len() + claude;
    useful.min(state.max_workers as usize)
}

/// The next moment after `now_ms` at which something becomes possible by time alone, `CLOCK_MONOTONIC` in milliseconds. One
/// that has passed is not waited for: a task that is due and finds no room is taken by whoever makes room.
pub fn next_moment(state: &State, plan: &Plan, now_ms: u64) -> Option<u64> {
    if state.view.ended.is_some() {
        return None;
    }
    let retry = state.retrying.range((now_ms.saturating_add(1), 0)..).next().map(|(at, _)| *at);
    let due_claude = || {
        let mut due = state.retrying.iter().take_while(|(at, _)| *at <= now_ms);
        let mut leased = state.ready_leased.iter();
        !state.ready_claude.is_empty()
            || due.any(|&(_, i)| state.is_claude(i))
            || leased.any(|&(_, i)| state.is_claude(i))
    };
    let gate = Some(state.quota_until_ms.max(staggered(state))).filter(|at| *at > now_ms && due_claude());
    let end = run_deadline(state, plan).filter(|at| *at > now_ms);
    // More workers may be of use once it shows that the tasks take a while.
    let more = !(state.ready.is_empty() && state.ready_claude.is_empty() && state.ready_leased.is_empty())
        && (AT_ONCE..state.max_workers as usize).contains(&state.view.workers.len());
    let settled = open_attempts(state).map(|open| open.since_ms.saturating_add(SETTLED_MS)).filter(|at| *at > now_ms);
    let settled = settled.min().filter(|_| more);
    let polls = state.view.polls.iter().filter(|poll| poll.verdict.is_none());
    let poll = polls.filter_map(Poll::closes_at).filter(|at| *at > now_ms).min();
    [retry, gate, end, settled, poll].into_iter().flatten().min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{claude, plan, run_started, task};
    use crate::model::event::{Done, Event, Started, Usage};
    use crate::model::plan::{Action, Task};

    /// A run whose events the test writes itself.
    struct Course {
        plan: Plan,
        state: State,
        now_ms: u64,
    }

    impl Course {
        fn new(tasks: Vec<Task>, change: impl FnOnce(&mut Plan)) -> Course {
            let mut plan = plan(tasks);
            change(&mut plan);
            let mut out = Course { state: State::new(&plan), plan, now_ms: 1000 };
            out.emit(Draft::run(run_started(&out.plan, "boot")));
            out
        }

        fn emit(&mut self, draft: Draft) {
            let seq = self.state.view.seq + 1;
            self.state.apply(&Event::new(draft, seq, String::new()));
        }

        fn ask<T>(&self, question: impl FnOnce(&State, &Plan, Facts<'_>) -> T) -> T {
            question(&self.state, &self.plan, Facts { now_ms: self.now_ms, boot_id: "boot", dead: &[] })
        }

        /// Starts what is next; its place and what it may spend.
        fn start(&mut self) -> Option<(usize, Option<f64>)> {
            let (i, n) = self.ask(next_task)?;
            let budget_usd = claude_budget(&self.state, &self.plan, i);
            let started =
                Started { cwd: "/".into(), title: None, mono_ms: self.now_ms, budget_usd, ..Started::default() };
            let worker = WorkerNo(u32::try_from(i).unwrap() + 1);
            self.emit(Draft::attempt(Some(worker), &self.plan.tasks[i].id.clone(), n, Body::Started(started)));
            Some((i, budget_usd))
        }

        /// The same, after the pause between two starts.
        fn start_later(&mut self) -> Option<(usize, Option<f64>)> {
            self.now_ms += STAGGER_MS;
            self.start()
        }

        fn end(&mut self, i: usize, body: Body) {
            let n = self.state.tasks[i].attempts;
            let id = self.plan.tasks[i].id.clone();
            self.emit(Draft::attempt(None, &id, n, body));
            loop {
                let next = self.ask(consequences);
                if next.is_empty() {
                    return;
                }
                for draft in next {
                    self.emit(draft);
                }
            }
        }

        fn done(&mut self, i: usize, cost_usd: f64) {
            let usage = Some(Usage { turns: 1, tokens: 1, cost_usd });
            self.end(i, Body::Done(Done { exit: 0, duration_ms: 1, usage, ..Done::default() }));
        }

        /// Refuses an attempt as `step::record` writes it; returns until when.
        fn refuse(&mut self, i: usize, told: u64) -> u64 {
            let until = self.ask(|s, _, f| quota_until(s, i, told, f));
            let retry_at = self.ask(|s, p, f| retry_after_refusal(s, p, i, until, f));
            let ended = Ended {
                exit: Some(1),
                will_retry: retry_at.is_some(),
                retry_at,
                quota_until: Some(until),
                ..Ended::default()
            };
            self.end(i, Body::Failed(ended));
            until
        }

        fn phases(&self) -> Vec<Phase> {
            self.state.tasks.iter().map(|t| t.phase).collect()
        }
    }

    fn ask(id: &str) -> Task {
        Task { action: claude("p"), ..task(id) }
    }

    #[test]
    fn many_workers_come_once_it_shows_that_the_tasks_take_a_while() {
        let tasks = (0..100).map(|i| task(&format!("t{i}"))).collect();
        let mut run = Course::new(tasks, |p| p.limits.max_workers = 40);
        let process =
            || Body::WorkerStarted(crate::model::event::Process { pid: 1, start_time: 1, boot_id: "b".into() });
        let mut hired = 0;
        let mut waves = Vec::new();
        while hired < 40 {
            let wanted = run.ask(workers_wanted);
            waves.push(wanted);
            for _ in 0..wanted {
                hired += 1;
                run.emit(Draft::worker(WorkerNo(hired), process()));
                run.start().unwrap();
            }
            assert_eq!(run.ask(workers_wanted), 0, "all of them are new");
            if hired < 40 {
                run.now_ms = next_moment(&run.state, &run.plan, run.now_ms).unwrap();
            }
        }
        assert_eq!(waves, [8, 16, 16]);
        assert_eq!(next_moment(&run.state, &run.plan, run.now_ms), None, "nobody waits for more than there may be");
    }

    fn holds(id: &str, resources: &[&str]) -> Task {
        Task { resources: resources.iter().map(ToString::to_string).collect(), ..task(id) }
    }

    #[test]
    fn tasks_that_hold_the_same_do_not_run_at_the_same_time_and_keep_nobody_else_from_it() {
        let first = Task { retries: 1, ..holds("a", &["db", "gpu"]) };
        let tasks = vec![first, holds("b", &["db"]), holds("c", &["port:1"]), task("d")];
        let mut run = Course::new(tasks, |p| p.limits.max_workers = 4);
        assert_eq!(run.ask(workers_wanted), 3, "a or b, c and d");
        let started: Vec<usize> = std::iter::from_fn(|| run.start()).map(|(i, _)| i).collect();
        assert_eq!(started, [0, 2, 3]);
        assert_eq!(run.state.tasks[1].phase, Phase::Ready);
        run.now_ms += 1000;
        assert_eq!(run.ask(workers_useful), 3, "nobody is hired for what cannot start");
        // In the pause of the first the second begins, and the first waits for its turn.
        let ended = Ended { reason: "no".into(), will_retry: true, retry_at: Some(run.now_ms + 1), ..Ended::default() };
        run.end(0, Body::Failed(ended));
        assert_eq!(run.start().unwrap().0, 1);
        run.now_ms += 1;
        assert_eq!((run.start(), run.ask(workers_useful)), (None, 3));
        run.done(1, 0.0);
        assert_eq!(run.start().unwrap().0, 0);
    }

    #[test]
    fn a_task_that_needs_much_is_not_passed_by_for_ever() {
        let mut tasks = vec![holds("db-0", &["db"]), holds("much", &["db", "gpu", "file:a"])];
        tasks.extend((1..4).map(|i| holds(&format!("gpu-{i}"), &["gpu"])));
        tasks.push(holds("file", &["file:a/b.csv"]));
        tasks.push(Task { priority: 1, ..holds("first", &["gpu"]) });
        let mut run = Course::new(tasks, |p| p.limits.max_workers = 8);
        assert_eq!(
            [run.start().unwrap().0, run.start().unwrap().0],
            [6, 0],
            "by priority, then in the order of the plan"
        );
        assert_eq!(run.start(), None, "what comes behind the one that waits, waits for what it wants");
        run.done(6, 0.0);
        assert_eq!(run.start(), None);
        run.done(0, 0.0);
        assert_eq!(run.start().unwrap().0, 1);
        assert_eq!(run.start(), None);
        run.done(1, 0.0);
        assert_eq!([run.start().unwrap().0, run.start().unwrap().0], [2, 5]);
    }

    #[test]
    fn a_client_that_there_is_no_room_for_keeps_no_resource() {
        let tasks = vec![ask("a"), Task { resources: vec!["db".into()], ..ask("b") }, holds("c", &["db"])];
        let mut run = Course::new(tasks, |p| p.limits.max_claude = Some(1));
        assert_eq!([run.start().unwrap().0, run.start().unwrap().0], [0, 2]);
        run.done(2, 0.0);
        run.done(0, 0.0);
        assert_eq!(run.start_later().unwrap().0, 1);
    }

    #[test]
    fn clients_do_not_start_at_once_and_not_more_than_memory_carries() {
        let mut run = Course::new(vec![ask("a"), ask("b"), ask("c"), task("d")], |p| p.limits.max_claude = Some(2));
        assert_eq!(run.ask(workers_wanted), 3, "two clients and a program");
        assert_eq!(run.start().unwrap().0, 0);
        assert_eq!(run.start().unwrap().0, 3, "what is no client does not wait for one");
        assert_eq!(run.start(), None);
        assert_eq!(next_moment(&run.state, &run.plan, run.now_ms), Some(run.now_ms + STAGGER_MS));
        assert_eq!(run.start_later().unwrap().0, 1);
        assert_eq!(run.start_later(), None, "a third has no memory");
        run.done(0, 0.0);
        assert_eq!(run.start().unwrap().0, 2);
    }

    #[test]
    fn a_quota_that_is_used_up_stops_clients_and_nothing_else() {
        let mut run = Course::new(vec![ask("a"), ask("b"), ask("c"), task("d")], |_| ());
        assert_eq!((run.start().unwrap().0, run.start_later().unwrap().0), (0, 1));
        let until = run.refuse(0, 0);
        assert_eq!(until, run.now_ms + 30_000);
        assert_eq!(run.refuse(1, 0), until, "the other one met the same refusal");
        assert_eq!(run.state.quota_strikes, 1);
        assert_eq!(run.start().unwrap().0, 3);
        assert_eq!((run.start_later(), run.ask(workers_wanted)), (None, 1));
        assert_eq!(next_moment(&run.state, &run.plan, run.now_ms), Some(until));
        run.now_ms = until;
        // They have no retries, and need none for this.
        assert_eq!((run.start().unwrap().0, run.start_later().unwrap().0), (0, 1));
        let later = run.refuse(0, 0);
        assert_eq!(later, run.now_ms + 60_000, "twice as long");
        run.done(1, 0.0);
        run.now_ms = later;
        assert_eq!(run.start().unwrap().0, 0);
        let told = run.now_ms + 7_200_000;
        assert_eq!(run.refuse(0, told), told, "what the provider says goes before");
        run.now_ms = told;
        run.start();
        run.done(0, 0.0);
        assert_eq!((run.state.quota_strikes, run.state.tasks[0].attempts, run.state.tasks[0].tries()), (0, 4, 1));
    }

    #[test]
    fn a_refusal_that_does_not_end_becomes_a_failure() {
        let mut run = Course::new(vec![ask("a")], |_| ());
        let mut last = 0;
        for _ in 0..=MAX_REFUSALS {
            run.start().unwrap();
            last = run.refuse(0, 0) - run.now_ms;
            run.now_ms += last;
        }
        assert_eq!((run.phases(), last), (vec![Phase::Failed], 900_000));
    }

    #[test]
    fn a_quota_that_comes_back_behind_the_runs_time_limit_is_not_waited_for() {
        let mut run = Course::new(vec![ask("a"), ask("b"), task("c")], |p| {
            p.limits.run_timeout = crate::base::span::Limit(Some(crate::base::span::Span::from_secs(60)));
        });
        run.start();
        run.refuse(0, 3_600_000);
        assert_eq!(run.phases(), [Phase::Failed, Phase::Skipped, Phase::Ready]);
        assert!(run.state.tasks[1].line.as_ref().unwrap().contains("quota"), "{:?}", run.state.tasks[1].line);
        assert_eq!(run.start().unwrap().0, 2);
    }

    #[test]
    fn a_budget_is_shared_among_those_that_run_and_never_given_twice() {
        let mut run = Course::new((0..5).map(|i| ask(&format!("t{i}"))).chain([task("free")]).collect(), |p| {
            p.limits.max_workers = 3;
            p.limits.max_budget_usd = Some(3.0);
        });
        let given: f64 = (0..3).map(|_| run.start_later().unwrap().1.unwrap()).sum();
        assert!((given - 3.0).abs() < 1e-9, "{given}");
        run.done(0, 0.4);
        let (i, budget) = run.start_later().unwrap();
        assert!(i == 3 && (budget.unwrap() - 0.6).abs() < 1e-9, "{i} {budget:?}");
        // Who was killed may have spent all that it had.
        run.end(1, Body::TimedOut(Ended { signal: Some(9), ..Ended::default() }));
        assert!((run.state.charged_usd - 1.4).abs() < 1e-9 && (run.state.spent_usd - 0.4).abs() < 1e-9);
        run.done(2, 1.6);
        assert_eq!(claude_stopped(&run.state, &run.plan), Some("the run's budget is spent"));
        assert_eq!(run.phases()[4], Phase::Skipped);
        // What costs nothing goes on, and the end tells the truth.
        assert_eq!(run.start().unwrap().0, 5);
        run.done(5, 0.0);
        run.done(3, 0.0);
        let end = run.state.view.ended.clone().unwrap();
        assert_eq!((end.status, end.reason.as_str()), (Verdict::Failed, "the run's budget is spent"));
    }

    #[test]
    fn a_tasks_own_budget_holds_for_all_its_attempts() {
        let mut t = ask("a");
        t.retries = 5;
        let Action::Claude(c) = &mut t.action else { unreachable!() };
        c.max_budget_usd = Some(1.0);
        let mut run = Course::new(vec![t], |_| ());
        assert_eq!(run.start().unwrap().1, Some(1.0));
        let failed = |run: &mut Course, cost_usd: f64| {
            let usage = Some(Usage { turns: 1, tokens: 1, cost_usd });
            let retry_at = run.ask(|s, p, f| retry_at(s, p, 0, Fault::Failure, f));
            let ended = Ended { exit: Some(1), will_retry: retry_at.is_some(), retry_at, usage, ..Ended::default() };
            run.end(0, Body::Failed(ended));
            run.now_ms += 60_000;
        };
        failed(&mut run, 0.75);
        assert_eq!(run.start().unwrap().1, Some(0.25));
        failed(&mut run, 0.3);
        assert!(run.ask(|s, p, f| retry_at(s, p, 0, Fault::Failure, f)).is_none());
    }

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
            let started = Started { cwd: "/".into(), title: None, mono_ms: self.2, ..Started::default() };
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
