//! What a run's attempts were: a fold of its events that keeps of each attempt who ran it, from when to when, and how it
//! ended. The state of a run knows the last one only.

use std::collections::BTreeMap;

use crate::base::ids::WorkerNo;
use crate::logic::state::State;
use crate::logic::view::Phase;
use crate::model::event::{Body, Ended, Event};
use crate::ui::when;

/// One attempt. Times are wall-clock, in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq)]
pub struct Try {
    /// Its number, from 1.
    pub number: u32,
    /// Who ran it; nobody, where the task was taken over.
    pub worker: Option<WorkerNo>,
    /// When it began.
    pub began: i64,
    /// When it ended; absent while it is open.
    pub ended: Option<i64>,
    /// How it ended; running while it is open.
    pub phase: Phase,
    /// Why it ended so, where it did not go well.
    pub reason: Option<String>,
}

impl Try {
    /// How long it took, until `now` while it is open.
    pub fn took_ms(&self, now: i64) -> u64 {
        u64::try_from(self.ended.unwrap_or(now) - self.began).unwrap_or(0)
    }
}

/// The attempts of a run.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// By the task's place in the plan.
    tries: BTreeMap<usize, Vec<Try>>,
    /// By worker: tasks with the place of the attempt among theirs, in the order in which they began.
    workers: BTreeMap<WorkerNo, Vec<(usize, usize)>>,
}

impl Past {
    /// Takes in the next event. `state` tells where tasks stand in the plan.
    pub fn apply(&mut self, event: &Event, state: &State) {
        let Some(i) = event.task.as_ref().and_then(|task| state.index_of(task)) else { return };
        match &event.body {
            Body::Started(_) => self.begin(i, event),
            Body::Done(_) => self.end(i, event, Phase::Done, None),
            Body::Failed(p) => self.end(i, event, Phase::Failed, Some(p)),
            Body::TimedOut(p) => self.end(i, event, Phase::TimedOut, Some(p)),
            Body::Lost(p) => self.end(i, event, Phase::Lost, Some(p)),
            Body::Cancelled(p) => self.end(i, event, Phase::Cancelled, Some(p)),
            _ => {}
        }
    }

    fn begin(&mut self, i: usize, event: &Event) {
        let Some(began) = when::unix_ms(&event.ts) else { return };
        let tries = self.tries.entry(i).or_default();
        if let Some(worker) = event.worker {
            self.workers.entry(worker).or_default().push((i, tries.len()));
        }
        let number = event.attempt.unwrap_or(1);
        tries.push(Try { number, worker: event.worker, began, ended: None, phase: Phase::Running, reason: None });
    }

    fn end(&mut self, i: usize, event: &Event, phase: Phase, why: Option<&Ended>) {
        let tries = self.tries.get_mut(&i);
        let open = tries.and_then(|tries| tries.iter_mut().rev().find(|t| Some(t.number) == event.attempt));
        // A task that never began can be cancelled.
        let Some(open) = open.filter(|t| t.ended.is_none()) else { return };
        open.ended = when::unix_ms(&event.ts);
        open.phase = phase;
        open.reason = why.map(|why| why.reason.clone());
    }

    /// The attempts of a task, oldest first.
    pub fn of(&self, i: usize) -> &[Try] {
        self.tries.get(&i).map_or(&[], Vec::as_slice)
    }

    /// The workers that have begun something, with their attempts: the task's place in the plan, and the attempt.
    pub fn workers(&self) -> impl Iterator<Item = (WorkerNo, impl Iterator<Item = (usize, &Try)>)> {
        self.workers
            .iter()
            .map(|(worker, all)| (*worker, all.iter().filter_map(|&(i, n)| Some((i, self.tries.get(&i)?.get(n)?)))))
    }

    /// How many workers that are.
    pub fn worker_count(&self) -> usize {
        self.workers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TaskId;
    use crate::logic::simulation::{done, plan, task};
    use crate::model::event::{Draft, Started};

    #[test]
    fn attempts_are_kept_by_task_and_by_worker() {
        let plan = plan(vec![task("a"), task("b")]);
        let state = State::new(&plan);
        let mut past = Past::default();
        let mut seq = 0;
        let mut tell = |worker, task: &str, attempt, body| {
            seq += 1;
            let draft = Draft::attempt(Some(WorkerNo(worker)), &TaskId::new(task).unwrap(), attempt, body);
            past.apply(&Event::new(draft, seq, format!("2026-01-02T03:04:{seq:02}.000000Z")), &state);
        };
        tell(1, "a", 1, Body::Started(Started::default()));
        tell(1, "a", 1, Body::Failed(Ended { reason: "exit code 7".into(), ..Ended::default() }));
        tell(2, "a", 2, Body::Started(Started::default()));
        tell(1, "b", 1, Body::Started(Started::default()));
        tell(1, "b", 1, done("fine"));
        tell(1, "b", 1, Body::Lost(Ended::default()));
        let a = past.of(0);
        assert_eq!((a.len(), a[0].phase, a[1].phase), (2, Phase::Failed, Phase::Running));
        assert_eq!((a[0].took_ms(0), a[0].reason.as_deref()), (1000, Some("exit code 7")));
        assert_eq!(a[1].took_ms(a[1].began + 5), 5);
        assert_eq!(past.of(1)[0].phase, Phase::Done, "the first outcome counts");
        let rows: Vec<(u32, Vec<usize>)> =
            past.workers().map(|(w, all)| (w.0, all.map(|(i, _)| i).collect())).collect();
        assert_eq!(rows, [(1, vec![0, 1]), (2, vec![0])]);
    }
}
