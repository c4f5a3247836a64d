//! What a worker writes in one transaction: the outcome of its attempt, what follows from the state, its next attempt, its
//! leaving. Pure: the caller holds the lock, has folded everything, and acts on what comes back only when it is written.
//!
//! The same functions run in the model check (`tests/protocol.rs`), where every interleaving of them is tried.

use crate::base::ids::WorkerNo;
use crate::base::trace;
use crate::logic::sched::{self, Facts, Fault};
use crate::logic::state::State;
use crate::model::event::{Body, Draft, Ended, Process, Progress, Reason, Started};
use crate::model::plan::Plan;

/// Where events are put: each is applied to the state at once, and all are written together or not at all.
pub trait Ledger {
    /// Why an event cannot be put there.
    type Error;
    /// The state, with every event of the log and every one put here.
    fn state(&self) -> &State;
    /// Adds an event; returns its sequence number.
    fn emit(&mut self, draft: Draft) -> Result<u64, Self::Error>;
}

/// Which attempt, and of what.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AttemptId {
    /// The task's place in the plan.
    pub index: usize,
    /// Which try, from 1.
    pub number: u32,
    /// The sequence number of its `started` event.
    pub token: u64,
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// The outcome as an event; whether a further attempt comes is still to be decided.
    pub body: Body,
    /// Whether trying again could help.
    pub retryable: bool,
}

/// What a worker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Whatever is ready.
    Slot,
    /// One attempt of this task (its place in the plan), whether it is ready or not, and nothing else.
    Only(usize),
}

/// A worker, as far as its next step depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a> {
    /// Its number.
    pub me: WorkerNo,
    /// Its process.
    pub process: &'a Process,
    /// What it is to do.
    pub duty: Duty,
    /// Whether it notices dead workers and starts new ones.
    pub leads: bool,
    /// Whether it was told to end.
    pub leaving: bool,
    /// The attempt whose process it has.
    pub attempt: Option<&'a AttemptId>,
    /// The attempt that has ended and whose outcome is not written yet.
    pub ending: Option<(&'a AttemptId, &'a Ending)>,
    /// What its attempt says of itself.
    pub progress: Option<&'a Progress>,
}

/// What a transaction asks the worker to do once the lock is free.
#[derive(Debug, Default, Clone, PartialEq, Eq, Hash)]
pub struct Todo {
    /// The attempt to begin: it is in the log, its process does not exist yet.
    pub begin: Option<AttemptId>,
    /// Workers to start.
    pub hire: u32,
    /// Nothing is left to do here.
    pub leave: bool,
    /// Whether anything was written.
    pub changed: bool,
}

/// Whether an attempt is the one that is open.
pub fn is_open(state: &State, id: &AttemptId) -> bool {
    state.tasks[id.index].open.as_ref().is_some_and(|open| open.token == id.token)
}

/// Whether a step could change anything: a spurious wake-up must not take the lock.
pub fn has_business(state: &State, plan: &Plan, facts: Facts<'_>, slot: Slot<'_>) -> bool {
    let idle = slot.attempt.is_none();
    slot.ending.is_some()
        || slot.progress.is_some()
        || slot.leaving
        || (idle && is_given_up(state, slot.me))
        || (idle && (state.view.ended.is_some() || slot.duty != Duty::Slot))
        || !state.view.knows(slot.me)
        || (idle && !slot.leads && state.unstarted == 0)
        || (idle && sched::next_task(state, plan, facts).is_some())
        || (slot.leads && sched::workers_wanted(state, plan, facts) > 0)
        || strays(state, slot).next().is_some()
        || !sched::consequences(state, plan, facts).is_empty()
}

/// Whether somebody has declared this worker dead, which lives: whatever it did would come too late, so it leaves.
fn is_given_up(state: &State, me: WorkerNo) -> bool {
    state.view.knows(me) && !state.view.workers.contains_key(&me.0)
}

/// One step. `cwd` tells where a task would run.
pub fn step<L: Ledger>(
    ledger: &mut L,
    plan: &Plan,
    facts: Facts<'_>,
    slot: Slot<'_>,
    cwd: impl Fn(usize) -> String,
) -> Result<Todo, L::Error> {
    let before = ledger.state().view.seq;
    let mut todo = Todo::default();
    enlist(ledger, slot.me, slot.process)?;
    if let Some((id, ending)) = slot.ending {
        record(ledger, plan, slot.me, id, ending, facts)?;
    } else if let (Some(id), Some(progress)) = (slot.attempt, slot.progress) {
        tell(ledger, plan, slot.me, id, Body::Progress(progress.clone()))?;
    }
    give_up_strays(ledger, plan, facts, slot)?;
    settle(ledger, plan, facts)?;
    let leaving = slot.leaving || is_given_up(ledger.state(), slot.me);
    let served = slot.ending.is_some() && slot.duty != Duty::Slot;
    if slot.attempt.is_none() && !leaving && !served {
        todo.begin = claim(ledger, plan, facts, slot, cwd)?;
    }
    let state = ledger.state();
    let idle = slot.attempt.is_none() && todo.begin.is_none();
    let over = state.view.ended.is_some();
    let useless = !slot.leads && state.unstarted == 0;
    if idle && (over || useless || leaving || slot.duty != Duty::Slot) {
        todo.leave = true;
        let reason = match (over, slot.leaving) {
            (true, _) => "the run is over",
            (false, true) => "told to end",
            (false, false) => "nothing to do",
        };
        if state.view.workers.contains_key(&slot.me.0) {
            ledger.emit(Draft::worker(slot.me, Body::WorkerExited(Reason { reason: reason.into() })))?;
        }
    } else if slot.duty == Duty::Slot && slot.leads {
        todo.hire = sched::workers_wanted(state, plan, facts);
    }
    todo.changed = ledger.state().view.seq > before;
    Ok(todo)
}

/// Writes that a worker was started, unless that is in the log: itself and whoever started it say so, and one is enough.
/// A worker that comes when the run is over leaves no trace: nothing starts behind the end.
pub fn enlist<L: Ledger>(ledger: &mut L, worker: WorkerNo, process: &Process) -> Result<(), L::Error> {
    let view = &ledger.state().view;
    if view.ended.is_none() && !view.knows(worker) {
        ledger.emit(Draft::worker(worker, Body::WorkerStarted(process.clone())))?;
    }
    Ok(())
}

/// Writes what an attempt says of itself, while it is open.
pub fn tell<L: Ledger>(ledger: &mut L, plan: &Plan, me: WorkerNo, id: &AttemptId, body: Body) -> Result<(), L::Error> {
    if is_open(ledger.state(), id) {
        ledger.emit(Draft::attempt(Some(me), &plan.tasks[id.index].id, id.number, body))?;
    }
    Ok(())
}

/// Writes the outcome of an attempt, if it is still this worker's to write.
fn record<L: Ledger>(
    ledger: &mut L,
    plan: &Plan,
    me: WorkerNo,
    id: &AttemptId,
    ending: &Ending,
    facts: Facts<'_>,
) -> Result<(), L::Error> {
    let state = ledger.state();
    let retry_at = sched::retry_at(state, plan, id.index, Fault::Failure, facts).filter(|_| ending.retryable);
    let again = |ended: &Ended| {
        let mono_ms = Some(facts.now_ms);
        Ended { will_retry: retry_at.is_some(), retry_at, mono_ms, ..ended.clone() }
    };
    let body = match &ending.body {
        Body::Failed(ended @ Ended { quota_until: Some(told), .. }) => {
            let until = sched::quota_until(ledger.state(), id.index, *told, facts);
            let retry_at = sched::retry_after_refusal(ledger.state(), plan, id.index, until, facts);
            let quota_until = Some(until);
            Body::Failed(Ended { will_retry: retry_at.is_some(), retry_at, quota_until, ..ended.clone() })
        }
        Body::Failed(ended) => Body::Failed(again(ended)),
        Body::TimedOut(ended) => Body::TimedOut(again(ended)),
        Body::Lost(ended) => {
            let Ended { reason, will_retry, retry_at, mono_ms, .. } =
                sched::lost(state, plan, id.index, &ended.reason, facts);
            Body::Lost(Ended { reason, will_retry, retry_at, mono_ms, ..ended.clone() })
        }
        other => other.clone(),
    };
    tell(ledger, plan, me, id, body)
}

/// Attempts that the log says this worker runs, and that it does not: what it was told of writing their start was an error,
/// and so it never began them.
fn strays<'a>(state: &'a State, slot: Slot<'a>) -> impl Iterator<Item = usize> + 'a {
    let known = move |token| {
        slot.attempt.is_some_and(|id| id.token == token) || slot.ending.is_some_and(|(id, _)| id.token == token)
    };
    let stray =
        move |i: usize| state.tasks[i].open.as_ref().is_some_and(|open| open.worker == slot.me && !known(open.token));
    state.running.iter().copied().filter(move |&i| stray(i))
}

/// Nobody else would ever end them: their worker lives.
fn give_up_strays<L: Ledger>(ledger: &mut L, plan: &Plan, facts: Facts<'_>, slot: Slot<'_>) -> Result<(), L::Error> {
    let strays: Vec<usize> = strays(ledger.state(), slot).collect();
    for i in strays {
        let state = ledger.state();
        let number = state.tasks[i].attempts;
        let why = "its start could not be written in full, so it never began";
        let lost = Body::Lost(sched::lost(state, plan, i, why, facts));
        ledger.emit(Draft::attempt(Some(slot.me), &plan.tasks[i].id, number, lost))?;
    }
    Ok(())
}

/// Writes everything that follows from the state.
fn settle<L: Ledger>(ledger: &mut L, plan: &Plan, facts: Facts<'_>) -> Result<(), L::Error> {
    loop {
        let next = sched::consequences(ledger.state(), plan, facts);
        if next.is_empty() {
            return Ok(());
        }
        for draft in next {
            ledger.emit(draft)?;
        }
    }
}

/// Writes that this worker begins an attempt, if there is one for it.
fn claim<L: Ledger>(
    ledger: &mut L,
    plan: &Plan,
    facts: Facts<'_>,
    slot: Slot<'_>,
    cwd: impl Fn(usize) -> String,
) -> Result<Option<AttemptId>, L::Error> {
    let state = ledger.state();
    let next = match slot.duty {
        Duty::Slot => sched::next_task(state, plan, facts),
        Duty::Only(i) => {
            let task = &state.tasks[i];
            let free = state.view.ended.is_none() && !task.phase.is_final() && task.open.is_none();
            free.then_some((i, task.attempts.saturating_add(1)))
        }
    };
    let Some((index, number)) = next else { return Ok(None) };
    let task = &plan.tasks[index];
    let budget_usd = sched::claude_budget(state, plan, index);
    let after = state.tasks[index].after.as_ref().filter(|_| number == 1).map(|on| on.name(plan));
    let (title, expected_ms) = (task.label(), task.expected);
    let span = Some(trace::span_of(plan.run.as_str(), task.id.as_str(), number));
    let started = Started { cwd: cwd(index), span, title, mono_ms: facts.now_ms, budget_usd, after, expected_ms };
    let token = ledger.emit(Draft::attempt(Some(slot.me), &task.id, number, Body::Started(started)))?;
    Ok(Some(AttemptId { index, number, token }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, run_started, task};
    use crate::model::event::Event;

    struct Page(State, Vec<Draft>);

    impl Ledger for Page {
        type Error = std::convert::Infallible;

        fn state(&self) -> &State {
            &self.0
        }

        fn emit(&mut self, draft: Draft) -> Result<u64, Self::Error> {
            let seq = self.0.view.seq + 1;
            self.0.apply(&Event::new(draft.clone(), seq, String::new()));
            self.1.push(draft);
            Ok(seq)
        }
    }

    #[test]
    fn a_start_that_is_in_the_log_and_never_began_is_given_up_by_its_worker() {
        let plan = plan(vec![task("a")]);
        let process = Process { pid: 1, start_time: 1, boot_id: "boot".into() };
        let me = WorkerNo(1);
        let mut page = Page(State::new(&plan), Vec::new());
        let Ok(_) = page.emit(Draft::run(run_started(&plan, "boot")));
        let Ok(()) = enlist(&mut page, me, &process);
        let started = Started { cwd: "/".into(), title: None, mono_ms: 1, ..Started::default() };
        let Ok(token) = page.emit(Draft::attempt(Some(me), &plan.tasks[0].id, 1, Body::Started(started)));
        let facts = Facts { now_ms: 2, boot_id: "boot", dead: &[] };
        let id = AttemptId { index: 0, number: 1, token };
        let idle = Slot {
            me,
            process: &process,
            duty: Duty::Slot,
            leads: true,
            leaving: false,
            attempt: None,
            ending: None,
            progress: None,
        };
        // Who has its process leaves it alone.
        assert!(!has_business(&page.0, &plan, facts, Slot { attempt: Some(&id), ..idle }));
        assert!(has_business(&page.0, &plan, facts, idle));
        let Ok(todo) = step(&mut page, &plan, facts, idle, |_| "/".into());
        let kinds: Vec<&str> = page.1[3..].iter().map(|d| d.body.name()).collect();
        assert_eq!(kinds, ["lost", "run_ended", "worker_exited"]);
        assert!(todo.leave);
    }
}
