//! A run told again, event by event, by the same fold that everybody uses while it goes on; and what each event has changed.

use crate::logic::state::State;
use crate::logic::view::Phase;
use crate::model::event::Event;
use crate::model::plan::Plan;

/// A task that an event has brought from one state to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The task, by its place in the plan.
    pub task: usize,
    /// Where it stood before.
    pub from: Phase,
    /// Where it stands now.
    pub to: Phase,
}

/// A run up to some event.
#[derive(Debug)]
pub struct Retelling {
    /// How it stands there.
    pub state: State,
    phases: Vec<Phase>,
}

impl Retelling {
    /// Before the first event.
    pub fn new(plan: &Plan) -> Retelling {
        let state = State::new(plan);
        let phases = state.tasks.iter().map(|task| task.phase).collect();
        Retelling { state, phases }
    }

    /// Goes on by the next event, and tells what has changed by it, in the order of the plan.
    pub fn apply(&mut self, event: &Event) -> Vec<Change> {
        self.state.apply(event);
        let mut changes = Vec::new();
        for (task, (before, now)) in self.phases.iter_mut().zip(&self.state.tasks).enumerate() {
            if *before != now.phase {
                changes.push(Change { task, from: *before, to: now.phase });
                *before = now.phase;
            }
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::WorkerNo;
    use crate::logic::simulation::{plan, task};
    use crate::model::event::{Body, Done, Draft, Started};
    use crate::model::plan::Need;

    #[test]
    fn an_event_changes_its_task_and_those_that_waited_for_it() {
        let mut later = task("b");
        later.needs = vec![Need::End(task("a").id)];
        let plan = plan(vec![task("a"), later]);
        let mut told = Retelling::new(&plan);
        let done: Done = serde_json::from_str(r#"{"exit":0,"duration_ms":5}"#).unwrap();
        let mut seq = 0;
        let mut next = |body: Body| {
            seq += 1;
            let draft = Draft::attempt(Some(WorkerNo(1)), &plan.tasks[0].id, 1, body);
            told.apply(&Event::new(draft, seq, String::new()))
        };
        let begun = next(Body::Started(Started { cwd: "/".into(), ..Started::default() }));
        assert_eq!(begun, [Change { task: 0, from: Phase::Ready, to: Phase::Running }]);
        let through = [
            Change { task: 0, from: Phase::Running, to: Phase::Done },
            Change { task: 1, from: Phase::Waiting, to: Phase::Ready },
        ];
        assert_eq!(next(Body::Done(done.clone())), through);
        assert_eq!(next(Body::Done(done)), [], "a late word changes nothing");
    }
}
