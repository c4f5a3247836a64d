//! How long the tasks of a rule have taken in its earlier runs, as far as that is remembered: the last [`KEPT`] times of each
//! task, and of each task of the rule from which many are made. What it expects is said as such, and decides nothing.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::ids::{RunId, TaskId};
use crate::model::plan::Plan;

/// So many times are remembered of each.
pub const KEPT: usize = 20;

/// Of so many tasks, those of the last run before others.
const MAX_TASKS: usize = 500;

/// The version of the file.
const VERSION: u32 = 1;

/// What is remembered of one rule of a project.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    version: u32,
    /// The last runs, oldest first: each counts once, whoever writes it down.
    runs: Vec<RunId>,
    /// Times in milliseconds by task, oldest first.
    tasks: BTreeMap<String, Vec<u64>>,
    /// The same by a task of the rule from which one is made per item, one time a run.
    drafts: BTreeMap<String, Vec<u64>>,
}

impl History {
    /// Whether it can be read here.
    pub fn is_known(&self) -> bool {
        self.version == VERSION
    }

    /// The last runs that it remembers.
    pub fn runs(&self) -> &[RunId] {
        &self.runs
    }

    /// Adds a run by the times of its tasks that were done, of which each is its task's place in the plan. `false`: it was
    /// added before, or there is nothing to add.
    pub fn add(&mut self, plan: &Plan, took: &[(usize, u64)]) -> bool {
        if took.is_empty() || self.runs.contains(&plan.run) {
            return false;
        }
        self.version = VERSION;
        push(&mut self.runs, plan.run.clone());
        let mut drafts: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        let mut now: Vec<&TaskId> = Vec::new();
        for &(i, ms) in took {
            let task = &plan.tasks[i];
            if let Some(draft) = &task.draft {
                drafts.entry(draft).or_default().push(ms);
            }
            if now.len() < MAX_TASKS {
                now.push(&task.id);
                push(self.tasks.entry(task.id.to_string()).or_default(), ms);
            }
        }
        for (draft, times) in drafts {
            if let Some(usual) = median(&times) {
                push(self.drafts.entry(draft.to_owned()).or_default(), usual);
            }
        }
        // What the last run did not have goes first, where there is too much.
        now.sort_unstable();
        let mut excess = self.tasks.len().saturating_sub(MAX_TASKS);
        self.tasks.retain(|id, _| {
            let goes = excess > 0 && now.binary_search_by(|t| t.as_str().cmp(id)).is_err();
            excess -= usize::from(goes);
            !goes
        });
        let mut excess = self.drafts.len().saturating_sub(MAX_TASKS);
        self.drafts.retain(|_, _| {
            let goes = excess > 0;
            excess -= usize::from(goes);
            !goes
        });
        true
    }

    /// Tells each task of a plan how long it is expected to take: as it usually took itself, else as those of its kind did.
    pub fn expect(&self, plan: &mut Plan) {
        for task in &mut plan.tasks {
            let own = self.tasks.get(task.id.as_str());
            let kind = || task.draft.as_ref().and_then(|draft| self.drafts.get(draft));
            task.expected = own.or_else(kind).and_then(|times| median(times));
        }
    }
}

fn push<T>(times: &mut Vec<T>, last: T) {
    let excess = (times.len() + 1).saturating_sub(KEPT);
    times.drain(..excess);
    times.push(last);
}

/// The one in the middle; of two the later.
fn median(times: &[u64]) -> Option<u64> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};

    fn run(n: u32, ids: &[&str]) -> Plan {
        let mut plan = plan(ids.iter().map(|id| task(id)).collect());
        plan.run = RunId::new(&format!("run-{n}")).unwrap();
        for task in &mut plan.tasks {
            task.draft = task.id.as_str().starts_with("a-").then(|| "a-{{item}}".to_owned());
        }
        plan
    }

    #[test]
    fn what_usually_was_is_expected_and_each_run_counts_once() {
        let mut history = History::default();
        let mut first = run(1, &["a-x", "b", "c"]);
        assert!(!history.add(&first, &[]), "nothing was done");
        assert!(history.add(&first, &[(0, 100), (1, 7)]));
        assert!(!history.add(&first, &[(0, 9999)]), "another worker has written it down");
        history.expect(&mut first);
        let expected = |plan: &Plan| plan.tasks.iter().map(|t| t.expected).collect::<Vec<_>>();
        assert_eq!(expected(&first), [Some(100), Some(7), None]);
        // One that takes long now and then changes nothing, and a task of another item is like its kind.
        for (n, ms) in [(2, 110), (3, 90_000), (4, 105)] {
            assert!(history.add(&run(n, &["a-x"]), &[(0, ms)]));
        }
        let mut next = run(5, &["a-x", "a-new"]);
        history.expect(&mut next);
        assert_eq!(expected(&next), [Some(110), Some(110)]);
        for n in 10..60 {
            history.add(&run(n, &["b"]), &[(0, u64::from(n))]);
        }
        assert_eq!((history.tasks["b"].len(), history.runs.len()), (KEPT, KEPT));
    }

    #[test]
    fn however_many_tasks_there_are_it_stays_small() {
        let mut history = History::default();
        let ids: Vec<String> = (0..2000).map(|i| format!("a-{i}")).collect();
        let many = run(1, &ids.iter().map(String::as_str).collect::<Vec<_>>());
        let took: Vec<(usize, u64)> = (0..2000).map(|i| (i, 5)).collect();
        assert!(history.add(&many, &took));
        assert_eq!(history.tasks.len(), MAX_TASKS);
        assert!(history.add(&run(2, &["z"]), &[(0, 1)]));
        assert_eq!(history.tasks.len(), MAX_TASKS);
        assert_eq!(history.tasks["z"], [1], "of the last run");
        let mut next = run(3, &["a-1999"]);
        history.expect(&mut next);
        assert_eq!(next.tasks[0].expected, Some(5), "by its kind");
    }
}
