//! Which tasks of a run that has ended run again when it is continued, and which are taken over. A pure function of what
//! the run came to and of what is still there of it.

use crate::logic::state::State;
use crate::logic::view::Phase;
use crate::model::plan::{Need, Plan};

/// What becomes of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It was done, and what it made is intact: it is taken over.
    Taken,
    /// It runs again.
    Again,
    /// It was not done, and nobody asked for it.
    Left,
}

/// The fate of every task, in the order of the plan. What is not done, or whose artifact is not `intact`, runs again, or,
/// where tasks are `named`, only those of it: each with what it needs, as far as that is not done, and with everything that
/// needs it, because its input changes. A named task that is done and intact has no part in it.
pub fn fates(plan: &Plan, state: &State, intact: &[bool], named: Option<&[usize]>) -> Vec<Fate> {
    let kept = |i: usize| state.tasks[i].phase == Phase::Done && intact[i];
    let all = 0..plan.tasks.len();
    let mut fates: Vec<Fate> = all.map(|i| if kept(i) { Fate::Taken } else { Fate::Left }).collect();
    let mut todo: Vec<usize> = match named {
        None => (0..fates.len()).filter(|&i| fates[i] == Fate::Left).collect(),
        Some(named) => named.iter().copied().filter(|&i| fates[i] == Fate::Left).collect(),
    };
    while let Some(i) = todo.pop() {
        if fates[i] == Fate::Again {
            continue;
        }
        fates[i] = Fate::Again;
        let voters = |need: &Need| match need {
            Need::Verdict(topic, _) => plan.votes.iter().find(|vote| vote.topic == *topic).map(|vote| &vote.voters),
            Need::End(_) | Need::Checkpoint(..) => None,
        };
        let needs = &plan.tasks[i].needs;
        let needs = needs.iter().flat_map(|need| need.task().into_iter().chain(voters(need).into_iter().flatten()));
        let needs: Vec<usize> = needs.filter_map(|task| state.index_of(task)).collect();
        todo.extend(needs.into_iter().filter(|&need| fates[need] == Fate::Left));
        todo.extend(state.all_dependents_of(i).filter(|&d| fates[d] != Fate::Again));
    }
    fates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::TaskId;
    use crate::logic::simulation::{done, plan, task};
    use crate::model::event::{Body, Done, Draft, Ended, Event, Skipped, Started};

    /// a ─▶ b ─▶ c, d ─▶ c, e: a and e are done, d has failed, b and c were skipped or failed as `b` has it.
    fn run(b: &Body) -> (Plan, State) {
        let mut tasks: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|id| task(id)).collect();
        let id = |id: &str| TaskId::new(id).unwrap();
        tasks[1].needs = vec![id("a").into()];
        tasks[2].needs = vec![id("b").into(), id("d").into()];
        let plan = plan(tasks);
        let mut state = State::new(&plan);
        let failed = Body::Failed(Ended::default());
        let skipped = Body::Skipped(Skipped { because: "b".into() });
        let ends = [("a", done("x")), ("b", b.clone()), ("d", failed), ("e", done("x")), ("c", skipped)];
        for (name, body) in ends {
            let started = Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 1, ..Started::default() });
            let starts = if matches!(body, Body::Skipped(_)) { None } else { Some(started) };
            for body in starts.into_iter().chain([body]) {
                let seq = state.view.seq + 1;
                state.apply(&Event::new(Draft::attempt(None, &id(name), 1, body), seq, String::new()));
            }
        }
        (plan, state)
    }

    fn word(fates: &[Fate]) -> String {
        fates.iter().map(|f| format!("{f:?}").chars().next().unwrap()).collect()
    }

    #[test]
    fn what_is_done_and_intact_is_taken_over_and_nothing_else() {
        let (plan, state) = run(&done("x"));
        assert_eq!(word(&fates(&plan, &state, &[true; 5], None)), "TTAAT");
        // What an artifact was lost of runs again, and all behind it with it.
        assert_eq!(word(&fates(&plan, &state, &[false, true, true, true, true], None)), "AAAAT");
        assert_eq!(word(&fates(&plan, &state, &[true, true, true, true, false], None)), "TTAAA");
    }

    #[test]
    fn what_is_taken_over_is_done_and_no_news() {
        let plan = plan(vec![task("a"), task("b")]);
        let mut state = State::new(&plan);
        let Body::Done(done) = done("x") else { panic!() };
        let taken = Body::Done(Done { from: Some(plan.run.clone()), ..done.clone() });
        for (i, body) in [taken, Body::Done(done)].into_iter().enumerate() {
            let started = Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 1, ..Started::default() });
            for body in [started, body] {
                let seq = state.view.seq + 1;
                state.apply(&Event::new(Draft::attempt(None, &plan.tasks[i].id, 1, body), seq, String::new()));
            }
        }
        assert_eq!(state.view.counts.done, 2);
        let news: Vec<&str> = state.view.news.iter().map(|n| n.task.as_ref().unwrap().as_str()).collect();
        assert_eq!(news, ["b"]);
    }

    #[test]
    fn named_tasks_bring_what_they_need_and_what_needs_them() {
        let (plan, state) = run(&Body::Failed(Ended::default()));
        let named = |named: &[usize]| word(&fates(&plan, &state, &[true; 5], Some(named)));
        assert_eq!(named(&[1]), "TAAAT");
        assert_eq!(named(&[0]), "TLLLT");
        assert_eq!(named(&[]), "TLLLT");
        assert_eq!(word(&fates(&plan, &state, &[true, true, true, true, false], Some(&[3]))), "TAAAL");
    }
}
