//! A run as it is to be drawn: its plan, its state and its timeline, with the questions that every picture of it asks.

use crate::logic::state::State;
use crate::logic::timeline::{Micros, Timeline};
use crate::model::plan::{Need, Plan};

/// What a picture is made from.
#[derive(Debug, Clone)]
pub struct Picture<'a> {
    /// Its plan.
    pub plan: &'a Plan,
    /// Its state.
    pub state: &'a State,
    /// When all of it was.
    pub timeline: &'a Timeline,
    /// The name of the project's folder.
    pub project: &'a str,
    /// Something that whoever looks must know: the log is damaged, the run is not over.
    pub note: Option<&'a str>,
    /// Per task its attempts, in their order.
    of_task: Vec<Vec<usize>>,
}

impl<'a> Picture<'a> {
    /// Of these.
    pub fn new(
        plan: &'a Plan,
        state: &'a State,
        timeline: &'a Timeline,
        project: &'a str,
        note: Option<&'a str>,
    ) -> Picture<'a> {
        let mut of_task = vec![Vec::new(); plan.tasks.len()];
        for (a, attempt) in timeline.attempts.iter().enumerate() {
            of_task[attempt.task].push(a);
        }
        Picture { plan, state, timeline, project, note, of_task }
    }

    /// The attempts of a task, in their order.
    pub fn attempts_of(&self, task: usize) -> &[usize] {
        &self.of_task[task]
    }

    /// The attempt of the same task before this one.
    pub fn before(&self, a: usize) -> Option<usize> {
        let all = &self.of_task[self.timeline.attempts[a].task];
        let place = all.iter().position(|&other| other == a)?;
        place.checked_sub(1).map(|before| all[before])
    }

    /// What met the needs of a task, as far as that has happened: which attempt, and when.
    pub fn sources(&self, task: usize) -> impl Iterator<Item = (usize, Micros)> + '_ {
        self.plan.tasks[task].needs.iter().filter_map(|need| self.source(need))
    }

    fn source(&self, need: &Need) -> Option<(usize, Micros)> {
        let attempts = &self.timeline.attempts;
        if let Need::Verdict(topic, _) = need {
            let vote = self.plan.votes.iter().position(|v| v.topic == *topic)?;
            return self.timeline.votes[vote].map(|(at, a)| (a, at));
        }
        let of_task = &self.of_task[self.state.index_of(need.task()?)?];
        let Some(name) = need.checkpoint() else {
            let last = *of_task.last()?;
            return attempts[last].closed.map(|_| (last, attempts[last].ran.to));
        };
        of_task.iter().find_map(|&a| Some((a, attempts[a].checkpoints.iter().find(|c| c.1 == *name)?.0)))
    }
}
