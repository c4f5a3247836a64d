//! Whether a task that waited for something of its own run would wait for ever: who waits for whom is in the log, who needs
//! whom is in the plan, and how many can run at a time is known. Asked under the log's lock, before the waiting is written
//! down, so that of two who would wait for each other the second is refused.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use crate::logic::leases::{self, Leases, Want};
use crate::logic::state::{On, State};
use crate::logic::vote::Poll;
use crate::model::event::Holder;
use crate::model::plan::{Need, Plan};
use crate::model::resource::Resource;

/// A task that cannot go on before another one is done, because of what that one holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Who cannot go on.
    from: usize,
    /// Who has to be done first.
    to: usize,
    /// What is said of it: `waits for db`.
    how: String,
}

impl Step {
    fn told(&self, plan: &Plan) -> String {
        format!("{} of {}", self.how, plan.tasks[self.to].id)
    }
}

/// What tasks of a run keep from each other: those that have not begun, from what they need; those that run, from what they
/// wait for in the project's log. Only what is held for a whole attempt counts: what a command in a task holds ends with that
/// command, whatever the task waits for.
pub fn held_up(state: &State, plan: &Plan, leases: &Leases) -> Vec<Step> {
    let mut steps = Vec::new();
    let held: Vec<(usize, &[Resource])> = leases
        .held
        .iter()
        .filter_map(|l| Some((whole_attempt(state, plan, &l.holder)?, l.resources.as_slice())))
        .collect();
    for request in &leases.queue {
        let Some(from) = of_run(state, plan, &request.holder) else { continue };
        steps.extend(kept_from(from, &request.resources, &held, "waits for"));
    }
    for (&from, resources) in &state.resources {
        if state.tasks[from].open.is_some() || state.tasks[from].phase.is_final() {
            continue;
        }
        let needed: Vec<Resource> = resources.iter().map(|r| Resource::of_normal(r)).collect();
        steps.extend(kept_from(from, &needed, &held, "needs"));
        for &to in state.running.iter().filter(|to| state.resources.contains_key(to)) {
            let theirs: Vec<Resource> = state.resources[&to].iter().map(|r| Resource::of_normal(r)).collect();
            steps.extend(kept_from(from, &needed, &[(to, &theirs)], "needs"));
        }
    }
    steps
}

/// The steps from one who needs `resources` to those who hold something of them.
fn kept_from<'s>(
    from: usize,
    resources: &'s [Resource],
    held: &'s [(usize, &'s [Resource])],
    verb: &'s str,
) -> impl Iterator<Item = Step> + 's {
    held.iter().filter(move |(to, _)| *to != from).filter_map(move |(to, theirs)| {
        let first = theirs.iter().find(|t| resources.iter().any(|r| r.overlaps(t)))?;
        let how = format!("{verb} {}", leases::list(std::slice::from_ref(first)));
        Some(Step { from, to: *to, how })
    })
}

/// The task of this run that a holder belongs to.
fn of_run(state: &State, plan: &Plan, holder: &Holder) -> Option<usize> {
    holder.run.as_ref().filter(|run| **run == plan.run)?;
    state.index_of(holder.task.as_ref()?)
}

/// The same, where it is held by the first process of the attempt, and so until the end of that.
fn whole_attempt(state: &State, plan: &Plan, holder: &Holder) -> Option<usize> {
    let task = of_run(state, plan, holder)?;
    let open = state.tasks[task].open.as_ref()?;
    open.process.as_ref().is_some_and(|p| *p == holder.process).then_some(task)
}

/// Why task `own`, whose attempt is open, must not wait for all of `on`, nor for what comes out of `votes`, each by its place in
/// the plan: the circle by name, as what follows "task a ". `None`: somebody else can bring it about.
pub fn refusal(state: &State, plan: &Plan, own: usize, on: &[On], votes: &[usize], held_up: &[Step]) -> Option<String> {
    let open: Vec<&On> = on.iter().filter(|on| is_open(state, on)).collect();
    let to_vote: Vec<(usize, usize)> =
        votes.iter().flat_map(|vote| voters(state, *vote).map(|voter| (voter, *vote))).collect();
    let first = open.first().map(|on| on.task).or(to_vote.first().map(|(voter, _)| *voter))?;
    if let Some(on) = open.iter().find(|on| on.task == own) {
        let what = if on.checkpoint.is_some() { "come to it" } else { "be done" };
        return Some(format!("would wait for ever: it cannot {what} while it waits"));
    }
    if let Some((_, vote)) = to_vote.iter().find(|(voter, _)| *voter == own) {
        let topic = &plan.votes[*vote].topic;
        return Some(format!("would wait for ever: it has not voted about {topic} itself; vote first"));
    }
    let tasks = open.iter().map(|on| (on.task, format!("waits for {}", on.name(plan))));
    let votes = to_vote.iter().map(|(voter, vote)| (*voter, for_vote(plan, *voter, *vote)));
    circle(state, plan, own, tasks.chain(votes).collect(), held_up)
        .map(|path| format!("would wait for ever: {path}"))
        .or_else(|| crowd(state, plan, own, first))
}

/// Tasks without whose votes a vote may stay open.
fn voters(state: &State, vote: usize) -> impl Iterator<Item = usize> + '_ {
    let poll = state.view.polls.get(vote);
    poll.into_iter().flat_map(Poll::awaited).filter_map(|task| state.index_of(task))
}

fn for_vote(plan: &Plan, voter: usize, vote: usize) -> String {
    format!("waits for the vote of {} about {}", plan.tasks[voter].id, plan.votes[vote].topic)
}

/// As [`refusal`], where it would wait for what other tasks hold.
pub fn lease_refusal(state: &State, plan: &Plan, own: usize, want: &Want, leases: &Leases) -> Option<String> {
    let in_the_way = leases.in_the_way(want);
    let held: Vec<(usize, &[Resource])> = in_the_way
        .leases
        .iter()
        .filter_map(|l| Some((whole_attempt(state, plan, &l.holder)?, l.resources.as_slice())))
        .collect();
    let steps = kept_from(own, &want.resources, &held, "waits for");
    let begin: Vec<(usize, String)> = steps.map(|step| (step.to, step.told(plan))).collect();
    if begin.is_empty() {
        return None;
    }
    circle(state, plan, own, begin, &held_up(state, plan, leases)).map(|path| format!("would wait for ever: {path}"))
}

/// Whether it has neither happened nor become impossible.
fn is_open(state: &State, on: &On) -> bool {
    let task = &state.tasks[on.task];
    !task.phase.is_final() && on.checkpoint.as_ref().is_none_or(|name| !task.checkpoints.contains_key(name))
}

/// `a waits for b, which needs c@x, which waits for a`, where one way leads back.
fn circle(state: &State, plan: &Plan, own: usize, begin: Vec<(usize, String)>, held_up: &[Step]) -> Option<String> {
    let mut waits: BTreeMap<usize, Vec<&On>> = BTreeMap::new();
    for wait in state.waits.values().filter(|w| is_open(state, &w.on)) {
        waits.entry(wait.task).or_default().push(&wait.on);
    }
    // Per task that was reached: from where, and what is said of that step.
    let mut from: BTreeMap<usize, (usize, String)> = BTreeMap::new();
    let mut next = VecDeque::new();
    for (task, how) in begin {
        next.push_back(task);
        from.entry(task).or_insert((own, how));
    }
    while let Some(i) = next.pop_front() {
        if i == own {
            break;
        }
        let waited = waits.get(&i).into_iter().flatten().map(|on| (on.task, format!("waits for {}", on.name(plan))));
        let unmet = |need: &&Need| state.tasks[i].attempts == 0 && !state.is_met(plan, need);
        let needed = plan.tasks[i].needs.iter().filter(unmet);
        let needed = needed.filter_map(|need| Some((state.index_of(need.task()?)?, format!("needs {need}"))));
        let on_votes = state.vote_waits.values().filter(|(task, _)| *task == i);
        let on_votes = on_votes.flat_map(|(_, vote)| voters(state, *vote).map(|v| (v, for_vote(plan, v, *vote))));
        let verdicts = plan.tasks[i].needs.iter().filter(unmet).filter_map(|need| {
            let Need::Verdict(topic, _) = need else { return None };
            Some((plan.votes.iter().position(|vote| vote.topic == *topic)?, need))
        });
        let verdicts = verdicts.flat_map(|(vote, need)| {
            voters(state, vote).map(move |v| (v, format!("needs {need}, about which {} votes", plan.tasks[v].id)))
        });
        let held = held_up.iter().filter(|step| step.from == i);
        let held = held.map(|step| (step.to, step.told(plan)));
        for (task, how) in waited.chain(needed).chain(on_votes).chain(verdicts).chain(held) {
            let is_over = state.tasks[task].phase.is_final();
            if !is_over && !from.contains_key(&task) {
                from.insert(task, (i, how));
                next.push_back(task);
            }
        }
    }
    let mut steps = Vec::new();
    let mut at = own;
    loop {
        let (before, how) = from.get(&at)?;
        steps.push(how.as_str());
        at = *before;
        if at == own {
            break;
        }
    }
    steps.reverse();
    Some(format!("{} {}", plan.tasks[own].id, steps.join(", which ")))
}

/// Nobody is left to run what is waited for, where all who run wait and no more may run.
fn crowd(state: &State, plan: &Plan, own: usize, on: usize) -> Option<String> {
    let for_task = |i: usize| state.waits.values().any(|w| w.task == i && is_open(state, &w.on));
    let for_vote =
        |i: usize| state.vote_waits.values().any(|(task, vote)| *task == i && voters(state, *vote).next().is_some());
    let waits = |i: usize| i == own || for_task(i) || for_vote(i);
    let is_full = state.running.len() >= state.max_workers as usize;
    if !is_full || !state.running.iter().all(|&i| waits(i)) {
        return None;
    }
    let n = state.max_workers;
    let mut out = format!("would wait for ever: nobody is left to run {}", plan.tasks[on].id);
    let others: Vec<&str> =
        state.running.iter().filter(|&&i| i != own).take(8).map(|&i| plan.tasks[i].id.as_str()).collect();
    let tasks = if n == 1 { "task" } else { "tasks" };
    let _ = write!(out, ", since only {n} {tasks} may run at a time");
    if !others.is_empty() {
        let _ = write!(out, " and {} {} too", others.join(", "), if others.len() == 1 { "waits" } else { "wait" });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{CheckpointName, TaskId, WorkerNo};
    use crate::logic::leases::{Lease, Request};
    use crate::logic::simulation::{done, plan, run_started, task, vote};
    use crate::model::event::{Awaited, Body, Checkpoint, Draft, Ended, Event, Process, Started, Vote};
    use crate::model::plan::Task;
    use crate::model::vote::Choice;

    fn id(name: &str) -> TaskId {
        TaskId::new(name).unwrap()
    }

    struct Scene {
        plan: Plan,
        state: State,
        leases: Leases,
    }

    impl Scene {
        /// A run of tasks `a` to `e` with these needs, of which at most `most` run at a time.
        fn new(needs: &[(&str, &str)], most: u32) -> Scene {
            let mut tasks: Vec<_> = ["a", "b", "c", "d", "e"].map(task).into();
            for (who, need) in needs {
                let task = tasks.iter_mut().find(|t| t.id.as_str() == *who).unwrap();
                task.needs.push(Need::try_from((*need).to_owned()).unwrap());
            }
            Scene::of(tasks, most)
        }

        fn of(tasks: Vec<Task>, most: u32) -> Scene {
            let mut plan = plan(tasks);
            plan.limits.max_workers = most;
            let mut scene = Scene { state: State::new(&plan), plan, leases: Leases::default() };
            let Body::RunStarted(mut started) = run_started(&scene.plan, "boot") else { unreachable!() };
            started.max_workers = most;
            scene.tell(Draft::run(Body::RunStarted(started)));
            scene
        }

        fn tell(&mut self, draft: Draft) {
            let seq = self.state.view.seq + 1;
            self.state.apply(&Event::new(draft, seq, String::new()));
        }

        fn of_task(&mut self, task: &str, attempt: u32, body: Body) {
            self.tell(Draft::attempt(Some(WorkerNo(1)), &id(task), attempt, body));
        }

        fn begin(&mut self, task: &str) {
            self.of_task(task, 1, Body::Started(Started::default()));
        }

        fn await_on(&mut self, task: &str, on: &str) -> u64 {
            let seq = self.state.view.seq + 1;
            self.of_task(task, 1, Body::Awaited(Awaited { id: seq, matcher: None, on: Some(on.into()), done: false }));
            seq
        }

        fn refused(&self, own: &str, on: &[&str]) -> Option<String> {
            let on: Vec<On> = on.iter().map(|on| On::parse(&self.state, on).unwrap()).collect();
            let held_up = held_up(&self.state, &self.plan, &self.leases);
            refusal(&self.state, &self.plan, self.state.index_of(&id(own)).unwrap(), &on, &[], &held_up)
        }

        /// The same for the verdict of the run's vote.
        fn refused_verdict(&self, own: &str) -> Option<String> {
            refusal(&self.state, &self.plan, self.state.index_of(&id(own)).unwrap(), &[], &[0], &[])
        }
    }

    /// A process of a task, which holds or wants `db`.
    fn holder(s: &Scene, task: &str, pid: i32) -> Holder {
        Holder {
            process: Process { pid, start_time: 1, boot_id: "boot".into() },
            run: Some(s.plan.run.clone()),
            task: Some(id(task)),
            attempt: Some(1),
            worker: None,
            session: None,
            tool_use_id: None,
            label: None,
        }
    }

    fn db() -> Vec<Resource> {
        vec![Resource::of_normal("db")]
    }

    #[test]
    fn a_task_must_not_wait_for_one_that_needs_what_it_holds_itself() {
        let holds = |name: &str, what: &str| Task { resources: vec![what.into()], ..task(name) };
        let mut s = Scene::of(vec![holds("a", "file:src"), holds("b", "file:src/x"), holds("c", "db"), task("d")], 8);
        s.begin("a");
        s.begin("d");
        assert_eq!(s.refused("a", &["b"]).unwrap(), format!("{EVER}a waits for b, which needs src of a"));
        assert_eq!(s.refused("a", &["c"]), None);
        // Over another one, which waits already.
        s.await_on("d", "b");
        assert_eq!(
            s.refused("a", &["d"]).unwrap(),
            format!("{EVER}a waits for d, which waits for b, which needs src of a")
        );
        // Once it runs it has what it needs.
        s.begin("b");
        assert_eq!(s.refused("a", &["b"]), None);
    }

    #[test]
    fn a_circle_of_waits_and_leases_is_seen_from_both_sides() {
        let mut s = Scene::new(&[], 8);
        for (task, pid) in [("a", 10), ("b", 20), ("c", 30)] {
            s.begin(task);
            s.of_task(task, 1, Body::Spawned(Process { pid, start_time: 1, boot_id: "boot".into() }));
        }
        let want = Want {
            resources: db(),
            holder: holder(&s, "b", 21),
            waiter: None,
            holding: Vec::new(),
            ttl_ms: None,
            until: None,
            request: None,
        };
        let refused = |s: &Scene| lease_refusal(&s.state, &s.plan, 1, &want, &s.leases);
        let lease = |s: &Scene, pid| {
            let holder = holder(s, "a", pid);
            Lease { token: 2, resources: db(), holder, since_ms: 0, expires: None }
        };
        s.leases.held = vec![lease(&s, 10)];
        assert_eq!(refused(&s), None);
        let waits = s.await_on("a", "c");
        assert_eq!(refused(&s), None);
        s.await_on("c", "b");
        let path = "b waits for db of a, which waits for c, which waits for b";
        assert_eq!(refused(&s).unwrap(), format!("{EVER}{path}"));
        // What a command in the task holds ends with the command.
        s.leases.held = vec![lease(&s, 11)];
        assert_eq!(refused(&s), None);
        // The other way round: it stands in line, and now the holder wants to wait for it.
        s.leases.held = vec![lease(&s, 10)];
        s.of_task("a", 1, Body::Awaited(Awaited { id: waits, matcher: None, on: Some("c".into()), done: true }));
        assert_eq!(s.refused("a", &["b"]), None);
        let holder = holder(&s, "b", 21);
        s.leases.queue = vec![Request { id: 3, resources: db(), holder, holding: vec![], since_ms: 0, until: None }];
        assert_eq!(s.refused("a", &["b"]).unwrap(), format!("{EVER}a waits for b, which waits for db of a"));
    }

    const EVER: &str = "would wait for ever: ";

    #[test]
    fn a_task_may_wait_for_what_does_not_wait_for_it() {
        let mut s = Scene::new(&[("b", "a"), ("c", "b"), ("d", "a@half"), ("e", "d")], 8);
        s.begin("a");
        assert_eq!(s.refused("a", &["c"]).unwrap(), format!("{EVER}a waits for c, which needs b, which needs a"));
        assert_eq!(s.refused("a", &["a"]).unwrap(), format!("{EVER}it cannot be done while it waits"));
        assert_eq!(s.refused("a", &["a@x"]).unwrap(), format!("{EVER}it cannot come to it while it waits"));
        assert_eq!(
            s.refused("a", &["e@x"]).unwrap(),
            format!("{EVER}a waits for e@x, which needs d, which needs a@half")
        );
        // What it has handed over already is not waited for.
        s.of_task(
            "a",
            1,
            Body::Checkpoint(Checkpoint { name: CheckpointName::new("half").unwrap(), data: None, inject: false }),
        );
        assert_eq!(s.refused("a", &["e@x"]), None);
        assert_eq!(s.refused("a", &["a@half"]), None);
    }

    #[test]
    fn the_second_of_two_that_would_wait_for_each_other_is_refused() {
        let mut s = Scene::new(&[], 8);
        for task in ["a", "b", "c"] {
            s.begin(task);
        }
        let first = s.await_on("b", "a@x");
        assert_eq!(s.refused("a", &["b"]).unwrap(), format!("{EVER}a waits for b, which waits for a@x"));
        s.await_on("c", "b");
        let path = "a waits for c, which waits for b, which waits for a@x";
        assert_eq!(s.refused("a", &["d", "c"]).unwrap(), format!("{EVER}{path}"));
        // Who no longer waits is in nobody's way; nor is who has ended.
        s.of_task("b", 1, Body::Awaited(Awaited { id: first, matcher: None, on: Some("a@x".into()), done: true }));
        assert_eq!(s.refused("a", &["b"]), None);
        s.await_on("b", "a");
        assert!(s.refused("a", &["b"]).is_some());
        let ended = Ended { will_retry: true, retry_at: Some(9), ..Ended::default() };
        s.of_task("b", 1, Body::Failed(ended));
        assert_eq!(s.refused("a", &["b"]), None, "a further attempt may do otherwise");
    }

    #[test]
    fn who_waits_for_a_verdict_waits_for_those_who_have_not_voted() {
        let mut s = Scene::new(&[("c", "b"), ("d", "t?proceed")], 8);
        s.plan.votes.push(vote("t", &["a", "c"], |_| ()));
        s.state = State::new(&s.plan);
        s.tell(Draft::run(run_started(&s.plan, "boot")));
        for task in ["a", "b", "e"] {
            s.begin(task);
        }
        assert_eq!(s.refused_verdict("e"), None);
        assert_eq!(s.refused_verdict("a").unwrap(), format!("{EVER}it has not voted about t itself; vote first"));
        let path = "b waits for the vote of c about t, which needs b";
        assert_eq!(s.refused_verdict("b").unwrap(), format!("{EVER}{path}"));
        assert_eq!(
            s.refused("a", &["d"]).unwrap(),
            format!("{EVER}a waits for d, which needs t?proceed, about which a votes")
        );
        // Who waits for it is waited for in vain by those it waits for.
        s.await_on("e", "t?");
        assert_eq!(
            s.refused("a", &["e"]).unwrap(),
            format!("{EVER}a waits for e, which waits for the vote of a about t")
        );
        let topic = s.plan.votes[0].topic.clone();
        s.of_task("a", 1, Body::Vote(Vote { topic, decision: Some(Choice::Proceed), reason: None, refused: None }));
        assert_eq!((s.refused_verdict("a"), s.refused("a", &["e"])), (None, None), "it has voted");
    }

    #[test]
    fn where_all_who_may_run_wait_the_last_of_them_is_refused() {
        let mut s = Scene::new(&[], 2);
        s.begin("a");
        s.begin("b");
        assert_eq!(s.refused("a", &["c"]), None, "the other one goes on");
        s.await_on("b", "c@x");
        let why = "nobody is left to run c, since only 2 tasks may run at a time and b waits too";
        assert_eq!(s.refused("a", &["c"]).unwrap(), format!("{EVER}{why}"));
        s.of_task("b", 1, done("x"));
        assert_eq!(s.refused("a", &["c"]), None, "its place is free");
        let mut s = Scene::new(&[], 1);
        s.begin("a");
        let why = "nobody is left to run c, since only 1 task may run at a time";
        assert_eq!(s.refused("a", &["c"]).unwrap(), format!("{EVER}{why}"));
    }
}
