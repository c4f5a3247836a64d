//! What bounded a run: from its end back to its beginning, always to what the attempt at hand had to wait for last. And how
//! long the same work would have taken if there had always been a free worker.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::base::ids::{CheckpointName, TaskId};
use crate::logic::timeline::{Cause, Micros, Poll, Segment, Stretch, Timeline, What, Why};
use crate::model::plan::{Need, Plan};
use crate::model::resource::Resource;

/// What is known of a run once its log is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) plan: &'a Plan,
    /// Per task its attempts, in their order.
    pub(super) of_task: &'a [Vec<usize>],
    pub(super) polls: &'a [Poll],
    pub(super) timeline: &'a Timeline,
}

/// The way back: every step goes to an earlier moment, and not beyond the beginning.
struct Back {
    from: Micros,
    at: Micros,
    steps: Vec<Segment>,
}

impl Back {
    fn to(&mut self, at: Micros, what: What) {
        let at = at.clamp(self.from, self.at);
        if at < self.at {
            self.steps.push(Segment { at: Stretch::new(at, self.at), what });
            self.at = at;
        }
    }
}

impl Known<'_> {
    /// The attempt whose end the run was waiting for last; of a run that goes on, the one that runs the longest.
    fn last(&self) -> Option<usize> {
        let attempts = &self.timeline.attempts;
        let all = || attempts.iter().enumerate();
        if self.timeline.ended.is_none()
            && let Some((open, _)) = all().find(|(_, a)| a.closed.is_none())
        {
            return Some(open);
        }
        all().max_by_key(|(_, a)| (!a.taken, a.closed)).map(|(i, _)| i)
    }

    /// The attempt of the same task before this one.
    fn before(&self, a: usize) -> Option<usize> {
        let of_task = &self.of_task[self.timeline.attempts[a].task];
        let place = of_task.iter().position(|&other| other == a)?;
        place.checked_sub(1).map(|before| of_task[before])
    }

    /// See [`Timeline::path`].
    pub(super) fn path(&self) -> Vec<Segment> {
        let Timeline { attempts, run, .. } = self.timeline;
        let mut back = Back { from: run.from, at: run.to, steps: Vec::new() };
        let pause = |a: usize| {
            let why = if attempts[a].refused { Why::Quota } else { Why::Pause };
            What::Wait(attempts[a].task, why)
        };
        let mut next = self.last();
        if let Some(a) = next {
            let going_on = self.timeline.ended.is_none() && attempts[a].again;
            back.to(attempts[a].ran.to, if going_on { pause(a) } else { What::Nothing });
        }
        // Every turn comes to an attempt that began earlier.
        while let Some(a) = next {
            let attempt = &attempts[a];
            for waited in attempt.leased.iter().rev() {
                back.to(waited.to, What::Work(a));
                back.to(waited.from, What::Lease(a));
            }
            back.to(attempt.ran.from, What::Work(a));
            back.to(attempt.ready, What::Wait(attempt.task, attempt.why));
            next = match (self.before(a), attempt.cause) {
                (Some(before), _) => {
                    back.to(attempts[before].ran.to, pause(before));
                    Some(before)
                }
                (None, Some(Cause::Attempt(by))) => Some(by),
                (None, Some(Cause::Vote(vote))) => {
                    let last = self.polls[vote].last;
                    back.to(last.map_or(run.from, |(at, _)| at), What::Vote(vote));
                    last.map(|(_, by)| by)
                }
                (None, None) => {
                    let by_hand = attempt.why == Why::ByHand;
                    back.to(run.from, if by_hand { What::Wait(attempt.task, Why::ByHand) } else { What::Nothing });
                    None
                }
            };
        }
        back.to(run.from, What::Nothing);
        back.steps.reverse();
        back.steps
    }

    /// See [`Timeline::unlimited`]: every task begins as soon as its needs are met and what it holds is free, and takes as
    /// long as it did.
    pub(super) fn unlimited(&self) -> Option<Micros> {
        let Timeline { attempts, run, ended, .. } = self.timeline;
        let waited = |a: &super::Attempt| matches!(a.why, Why::Slot(_)) && a.ready < a.ran.from;
        if ended.is_none() || !attempts.iter().any(waited) {
            return None;
        }
        let mut ideal = Ideal::new(self);
        ideal.run();
        let after = self.last().map_or(0, |a| run.to - attempts[a].ran.to.min(run.to));
        Some((ideal.end + after).min(run.length()))
    }
}

/// A run without a limit of workers, in microseconds from its beginning.
struct Ideal<'a> {
    known: &'a Known<'a>,
    index: HashMap<&'a TaskId, usize>,
    /// Per task how many of its needs are not met, and when the last of the others was.
    waiting: Vec<(usize, Micros)>,
    /// What can begin, the earliest first.
    ready: BinaryHeap<Reverse<(Micros, usize)>>,
    /// Per resource when it is free.
    free: HashMap<&'a str, Micros>,
    /// Per task who needs something of it.
    dependents: HashMap<&'a str, Vec<(usize, &'a Need)>>,
    end: Micros,
}

impl<'a> Ideal<'a> {
    fn new(known: &'a Known<'a>) -> Ideal<'a> {
        let Known { plan, of_task, timeline, .. } = known;
        let mut ideal = Ideal {
            known,
            index: plan.tasks.iter().enumerate().map(|(i, task)| (&task.id, i)).collect(),
            waiting: vec![(0, 0); plan.tasks.len()],
            ready: BinaryHeap::new(),
            free: HashMap::new(),
            dependents: HashMap::new(),
            end: 0,
        };
        for (i, task) in plan.tasks.iter().enumerate() {
            let Some(first) = of_task[i].first().map(|&a| &timeline.attempts[a]) else { continue };
            if first.why == Why::ByHand || first.taken {
                ideal.ready.push(Reverse((first.ran.from - timeline.run.from, i)));
                continue;
            }
            for need in &task.needs {
                let (source, fixed) = ideal.source(need);
                match source {
                    Some(source) => {
                        ideal.waiting[i].0 += 1;
                        ideal.dependents.entry(plan.tasks[source].id.as_str()).or_default().push((i, need));
                    }
                    None => ideal.waiting[i].1 = ideal.waiting[i].1.max(fixed),
                }
            }
            if ideal.waiting[i].0 == 0 {
                ideal.ready.push(Reverse((ideal.waiting[i].1, i)));
            }
        }
        ideal
    }

    /// The task that meets a need; without one, when it was met.
    fn source(&self, need: &Need) -> (Option<usize>, Micros) {
        let Known { plan, polls, timeline, .. } = self.known;
        match need {
            Need::End(task) | Need::Checkpoint(task, _) => (self.index.get(task).copied(), 0),
            Need::Verdict(topic, _) => {
                let poll = plan.votes.iter().position(|v| v.topic == *topic).map(|v| polls[v]).unwrap_or_default();
                let decided = poll.decided.map_or(0, |at| at - timeline.run.from);
                (poll.last.map(|(_, a)| timeline.attempts[a].task), decided)
            }
        }
    }

    fn run(&mut self) {
        let Known { plan, .. } = self.known;
        while let Some(Reverse((ready, i))) = self.ready.pop() {
            let begin = self.when_free(&plan.tasks[i].resources, ready + self.delay(i));
            let end = begin + self.offset(i, None);
            for resource in &plan.tasks[i].resources {
                self.free.insert(resource, end);
            }
            self.end = self.end.max(end);
            for (d, need) in self.dependents.remove(plan.tasks[i].id.as_str()).unwrap_or_default() {
                let met = begin + self.met(i, need);
                let (open, last) = &mut self.waiting[d];
                (*open, *last) = (*open - 1, (*last).max(met));
                if *open == 0 {
                    self.ready.push(Reverse((*last, d)));
                }
            }
        }
    }

    fn when_free(&self, resources: &[String], ready: Micros) -> Micros {
        let overlap = |a: &str, b: &str| a == b || Resource::of_normal(a).overlaps(&Resource::of_normal(b));
        let held = self.free.iter().filter(|(held, _)| resources.iter().any(|r| overlap(r, held)));
        held.map(|(_, &at)| at).fold(ready, Micros::max)
    }

    /// How long the first attempt of a task was not begun for another reason than those that are told here.
    fn delay(&self, i: usize) -> Micros {
        let first = self.known.of_task[i].first().map(|&a| &self.known.timeline.attempts[a]);
        let told = |a: &&super::Attempt| matches!(a.why, Why::Slot(_) | Why::Resource(_) | Why::ByHand) || a.taken;
        first.filter(|a| !told(a)).map_or(0, |a| a.ran.from - a.ready)
    }

    /// How long after the beginning of a task a moment of it was, or its end.
    fn offset(&self, i: usize, moment: Option<(usize, Micros)>) -> Micros {
        let attempts = &self.known.timeline.attempts;
        let mut sum = 0;
        for (k, &a) in self.known.of_task[i].iter().enumerate() {
            let attempt = &attempts[a];
            if k > 0 {
                let before = &attempts[self.known.of_task[i][k - 1]];
                let begun = if matches!(attempt.why, Why::Slot(_)) { attempt.ready } else { attempt.ran.from };
                sum += (begun - before.ran.to).max(0);
            }
            if let Some((_, at)) = moment.filter(|(of, _)| *of == a) {
                return sum + (at - attempt.ran.from).max(0);
            }
            sum += attempt.ran.length();
        }
        sum
    }

    /// How long after the beginning of task `i` it met a need.
    fn met(&self, i: usize, need: &Need) -> Micros {
        let Known { plan, of_task, polls, timeline } = self.known;
        let came = |name: &CheckpointName| {
            let points = of_task[i].iter().flat_map(|&a| timeline.attempts[a].checkpoints.iter().map(move |c| (a, c)));
            points.into_iter().find(|(_, c)| c.1 == *name).map(|(a, c)| (a, c.0))
        };
        match need {
            Need::End(_) => self.offset(i, None),
            Need::Checkpoint(_, name) => self.offset(i, came(name)),
            Need::Verdict(topic, _) => {
                let poll = plan.votes.iter().position(|v| v.topic == *topic).map(|v| polls[v]).unwrap_or_default();
                let last = poll.last.map(|(at, a)| (a, at));
                let decided = poll.decided.zip(poll.last).map_or(0, |(decided, (at, _))| decided - at);
                self.offset(i, last) + decided
            }
        }
    }
}
