//! Whom an event concerns: a pure function of what a transaction wrote and the state behind it. Everybody who waits hangs
//! a bell that names its concern; whoever has written something rings those that are concerned, and nobody else wakes.
//!
//! A ring is a hint and never carries a fact: who is rung looks at the log. Still, nobody may sleep through what it waits
//! for, so each rule here answers one question: which transaction can make that true? Three of them are less than obvious.
//!
//! * One task, one idle worker. Every transaction that changes what is to be taken, or takes a worker away, offers all that
//!   is left, not only what is new, to as many idle workers: so two of them that ring the same worker do not leave a task
//!   behind. Taking one makes both numbers smaller by one, and offers nothing.
//! * A task that pauses before its next attempt is offered as well: an idle worker has to know the moment.
//! * When fewer heard it than there are tasks, the leader hears of it, because it alone starts workers.

use std::collections::BTreeSet;

use crate::base::ids::{TaskId, Topic, WorkerNo};
use crate::logic::state::State;
use crate::logic::taken;
use crate::model::event::{Body, Event};
use crate::model::signal::Addressee;

/// What somebody waits for. Its name is the last part of the name of a bell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Concern {
    /// Every event.
    All,
    /// What this worker has to act on: something to take while it is idle, the end of its attempt while it is busy.
    Worker(WorkerNo),
    /// What only the leader does: watch over new workers, and start some.
    Lead,
    /// The outcome of this task.
    Task(TaskId),
    /// What comes out of the vote about this.
    Vote(Topic),
    /// The outcome of any task.
    Outcomes,
    /// The end of the run.
    End,
    /// What a Stop that holds the session needs: the end of the run, or that the user has typed.
    Stop,
    /// What the session did that somebody waits for, and the end of the run.
    Observed,
    /// What the session is to be told: the outcome of any task, the end of the run.
    News,
}

impl Concern {
    /// Its name.
    pub fn name(&self) -> String {
        match self {
            Concern::All => "all".into(),
            Concern::Worker(worker) => format!("w{}", worker.0),
            Concern::Lead => "lead".into(),
            Concern::Task(task) => format!("task-{task}"),
            Concern::Vote(topic) => format!("vote-{topic}"),
            Concern::Outcomes => "outcomes".into(),
            Concern::End => "end".into(),
            Concern::Stop => "stop".into(),
            Concern::Observed => "observed".into(),
            Concern::News => "news".into(),
        }
    }

    /// The concern of that name. One that this version does not know is rung for everything: a look too many is cheap.
    pub fn parse(name: &str) -> Concern {
        let worker = || name.strip_prefix('w')?.parse().ok().map(|n| Concern::Worker(WorkerNo(n)));
        let task = || TaskId::new(name.strip_prefix("task-")?).ok().map(Concern::Task);
        let vote = || Topic::new(name.strip_prefix("vote-")?).ok().map(Concern::Vote);
        match name {
            "lead" => Concern::Lead,
            "outcomes" => Concern::Outcomes,
            "end" => Concern::End,
            "stop" => Concern::Stop,
            "observed" => Concern::Observed,
            "news" => Concern::News,
            _ => worker().or_else(task).or_else(vote).unwrap_or(Concern::All),
        }
    }
}

/// Tasks for whoever is free.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offer {
    /// Workers without an attempt.
    pub idle: BTreeSet<WorkerNo>,
    /// How many of them are wanted. If fewer can be had, the leader is to be rung.
    pub wanted: usize,
}

/// Who is to be woken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wake {
    everybody: bool,
    every_worker: bool,
    concerns: BTreeSet<Concern>,
    offer: Offer,
}

impl Wake {
    /// Whom the `events` of one transaction concern, `after` being the state behind them.
    pub fn of(events: &[Event], after: &State) -> Wake {
        let mut wake = Wake::default();
        for event in events {
            wake.add(event, Some(after));
        }
        if events.iter().any(changes_work) {
            wake.offer = offer(after);
        }
        if after.unstarted == 0 && events.iter().any(uses_up_work) {
            // Idle workers have nothing left to wait for.
            wake.concerns.extend(idle(after).into_iter().map(Concern::Worker));
        }
        wake
    }

    /// The same for a writer that does not have the state, such as a hook. It neither takes nor ends a task.
    pub fn without_state(events: &[Event]) -> Wake {
        let mut wake = Wake::default();
        for event in events {
            wake.add(event, None);
        }
        wake
    }

    /// The user has typed while Stop holds the session.
    pub fn let_go() -> Wake {
        Wake { concerns: BTreeSet::from([Concern::Stop]), ..Wake::default() }
    }

    /// Something else than an event is to be looked at by who watches over the session.
    pub fn watch() -> Wake {
        Wake { concerns: BTreeSet::from([Concern::News]), ..Wake::default() }
    }

    /// Whether nobody is concerned.
    pub fn is_empty(&self) -> bool {
        *self == Wake::default()
    }

    /// Whether a waiter with this concern is to be rung in any case.
    pub fn rings(&self, concern: &Concern) -> bool {
        let is_worker = matches!(concern, Concern::Worker(_));
        self.everybody || self.every_worker && is_worker || self.concerns.contains(concern)
    }

    /// The tasks that are to be taken, and who could take them: one bell each, no more.
    pub fn offered(&self) -> &Offer {
        &self.offer
    }

    fn add(&mut self, event: &Event, after: Option<&State>) {
        self.concerns.insert(Concern::All);
        match &event.body {
            Body::Done(_) => self.outcome(event, true),
            // Of a critical task that is something for a Stop that holds.
            Body::Skipped(_) => {
                self.outcome(event, true);
                self.concerns.insert(Concern::Stop);
            }
            Body::Failed(p) | Body::TimedOut(p) | Body::Lost(p) | Body::Cancelled(p) => {
                self.outcome(event, !p.will_retry);
                self.concerns.extend((!p.will_retry).then_some(Concern::Stop));
            }
            Body::Signal(p) => {
                self.concerns.insert(Concern::News);
                self.concerns.extend((p.hook == Addressee::Stop).then_some(Concern::Stop));
            }
            Body::CancelRequested(_) => {
                let i = after.zip(event.task.as_ref()).and_then(|(state, task)| state.index_of(task));
                match after.zip(i).map(|(state, i)| state.tasks[i].open.as_ref()) {
                    // Whoever works on it ends it; one that nobody works on, the leader writes off.
                    Some(open) => {
                        self.concerns.insert(open.map_or(Concern::Lead, |open| Concern::Worker(open.worker)));
                    }
                    None => self.every_worker = true,
                }
            }
            // It is to be watched from now on.
            Body::WorkerStarted(_) => {
                self.concerns.insert(Concern::Lead);
            }
            // The client is to be watched, and who watches over or holds the session that had the run lets go of it.
            Body::Adopted(_) => self.concerns.extend([Concern::Lead, Concern::News, Concern::Stop]),
            Body::Checkpoint(p) => {
                self.concerns.extend(event.task.clone().map(Concern::Task));
                self.concerns.insert(Concern::Lead);
                self.concerns.extend(p.inject.then_some(Concern::News));
                // What becomes ready by it can only be told by who has the state.
                self.every_worker |= after.is_none();
            }
            Body::Verdict(p) => {
                self.concerns.extend([Concern::Vote(p.topic.clone()), Concern::News]);
                self.concerns.extend(p.escalates.then_some(Concern::Stop));
                // What becomes ready by it, or never will, can only be told by who has the state.
                self.concerns.insert(Concern::Lead);
                self.every_worker |= after.is_none();
            }
            Body::Observed(_) => {
                self.concerns.insert(Concern::Observed);
            }
            Body::RunEnded(_) => self.everybody = true,
            // The clock of a poll may run from here on, and somebody has to look when it is over.
            Body::Started(_) => {
                let runs = |state: &State| {
                    let polls = state.view.polls.iter().filter(|p| p.verdict.is_none() && p.closes_at().is_some());
                    event.task.as_ref().is_some_and(|task| polls.into_iter().any(|p| p.voters.contains_key(task)))
                };
                self.concerns.extend(after.is_some_and(runs).then_some(Concern::Lead));
            }
            Body::RunStarted(_)
            | Body::WorkerExited(_)
            | Body::WorkerLost(_)
            | Body::Spawned(_)
            | Body::Progress(_)
            | Body::SignalReleased(_)
            | Body::Delivered(_)
            | Body::Decision(_)
            | Body::Awaited(_)
            | Body::LogRepaired(_)
            | Body::Vote(_)
            | Body::Opened(_)
            | Body::Queued(_)
            | Body::Acquire(_)
            | Body::Renew(_)
            | Body::Release(_)
            | Body::Expired(_)
            | Body::Unknown => {}
        }
    }

    fn outcome(&mut self, event: &Event, last: bool) {
        if let Some(task) = event.task.as_ref().filter(|_| last) {
            self.concerns.extend([Concern::Task(task.clone()), Concern::Outcomes, Concern::News]);
        }
        // If somebody else has given the attempt up, its worker must let go of it.
        self.concerns.extend(event.worker.map(Concern::Worker));
    }
}

fn offer(after: &State) -> Offer {
    if after.view.ended.is_some() || after.view.cancelled {
        return Offer::default();
    }
    let room = (after.max_workers as usize).saturating_sub(after.running.len());
    let leased = taken::unbarred(after, 0, true, room).len();
    let wanted = after.ready.len() + after.ready_claude.len() + leased + after.retrying.len();
    Offer { idle: idle(after), wanted: wanted.min(room) }
}

/// Workers without an attempt.
fn idle(state: &State) -> BTreeSet<WorkerNo> {
    let open = state.running.iter().filter_map(|&i| state.tasks[i].open.as_ref());
    let busy: BTreeSet<u32> = open.map(|open| open.worker.0).collect();
    state.view.workers.keys().filter(|n| !busy.contains(n)).map(|&n| WorkerNo(n)).collect()
}

/// Whether more may be left behind the event than was offered before, or fewer who heard the offer.
fn changes_work(event: &Event) -> bool {
    match event.body {
        Body::RunStarted(_)
        | Body::WorkerExited(_)
        | Body::WorkerLost(_)
        | Body::Checkpoint(_)
        | Body::Verdict(_)
        | Body::Done(_)
        | Body::Failed(_)
        | Body::TimedOut(_)
        | Body::Cancelled(_)
        | Body::Lost(_)
        | Body::Skipped(_) => true,
        Body::WorkerStarted(_)
        | Body::Started(_)
        | Body::CancelRequested(_)
        | Body::Spawned(_)
        | Body::Progress(_)
        | Body::Signal(_)
        | Body::SignalReleased(_)
        | Body::Delivered(_)
        | Body::Decision(_)
        | Body::Awaited(_)
        | Body::Observed(_)
        | Body::Adopted(_)
        | Body::LogRepaired(_)
        | Body::RunEnded(_)
        | Body::Vote(_)
        | Body::Opened(_)
        | Body::Queued(_)
        | Body::Acquire(_)
        | Body::Renew(_)
        | Body::Release(_)
        | Body::Expired(_)
        | Body::Unknown => false,
    }
}

/// Whether less is left to be taken behind it.
fn uses_up_work(event: &Event) -> bool {
    matches!(event.body, Body::Started(_) | Body::Skipped(_) | Body::Cancelled(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::span::Span;
    use crate::logic::simulation::{done, plan, run_started, task, vote};
    use crate::model::event::{
        CancelRequested, Decided, Draft, Ended, Process, Progress, Reason, RunEnded, Started, Verdict,
    };
    use crate::model::plan::Plan;
    use crate::model::vote::Choice;

    fn id(name: &str) -> TaskId {
        TaskId::new(name).unwrap()
    }

    /// A run with tasks `a` to `d`, of which `c` and `d` need `a`, and with as many workers; W1 has `a`, W2 has `b`.
    struct Scene {
        state: State,
        plan: Plan,
    }

    impl Scene {
        fn new(workers: u32) -> Scene {
            let mut tasks: Vec<_> = ["a", "b", "c", "d"].map(task).into();
            tasks[2].needs = vec![id("a").into()];
            tasks[3].needs = vec![id("a").into()];
            let plan = plan(tasks);
            let mut scene = Scene { state: State::new(&plan), plan };
            let started = run_started(&scene.plan, "boot");
            scene.wake([Draft::run(started)]);
            for n in 1..=workers {
                let process = Process { pid: 1, start_time: 1, boot_id: "boot".into() };
                scene.wake([Draft::worker(WorkerNo(n), Body::WorkerStarted(process))]);
            }
            scene.wake([started_by(1, "a")]);
            scene.wake([started_by(2, "b")]);
            scene
        }

        /// One transaction.
        fn wake<const N: usize>(&mut self, drafts: [Draft; N]) -> Wake {
            let events: Vec<Event> = drafts
                .into_iter()
                .map(|draft| {
                    let event = Event::new(draft, self.state.view.seq + 1, String::new());
                    self.state.apply(&event);
                    event
                })
                .collect();
            Wake::of(&events, &self.state)
        }
    }

    fn started_by(worker: u32, task: &str) -> Draft {
        let body = Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 0, ..Started::default() });
        Draft::attempt(Some(WorkerNo(worker)), &id(task), 1, body)
    }

    fn ended_by(worker: u32, task: &str, body: Body) -> Draft {
        Draft::attempt(Some(WorkerNo(worker)), &id(task), 1, body)
    }

    fn retried() -> Body {
        let ended = Ended { reason: "no".into(), will_retry: true, retry_at: Some(9000), ..Ended::default() };
        Body::Failed(ended)
    }

    fn cancel() -> Body {
        Body::CancelRequested(CancelRequested { by: "user".into() })
    }

    /// The names of all concerns that are rung, and how many of the idle.
    fn rung(wake: &Wake) -> String {
        let tasks = ["a", "b", "c", "d"].map(|t| Concern::Task(id(t)));
        let workers = (1..=4).map(|n| Concern::Worker(WorkerNo(n)));
        let others = [
            Concern::All,
            Concern::Lead,
            Concern::Outcomes,
            Concern::End,
            Concern::Stop,
            Concern::Observed,
            Concern::News,
        ];
        let all = others.into_iter().chain(workers).chain(tasks).filter(|c| wake.rings(c));
        let mut names: Vec<String> = all.map(|c| c.name()).collect();
        let Offer { idle, wanted } = wake.offered();
        if *wanted > 0 {
            let idle: Vec<String> = idle.iter().map(ToString::to_string).collect();
            names.push(format!("{wanted} of {}", idle.join("+")));
        }
        names.join(" ")
    }

    #[test]
    fn progress_concerns_only_who_follows() {
        let mut s = Scene::new(4);
        let progress = Body::Progress(Progress { percent: Some(5), ..Progress::default() });
        assert_eq!(rung(&s.wake([ended_by(1, "a", progress.clone())])), "all");
        let event = Event::new(ended_by(1, "a", progress), 99, String::new());
        assert_eq!(rung(&Wake::without_state(&[event])), "all");
    }

    #[test]
    fn a_task_that_becomes_ready_rings_one_idle_worker() {
        let mut s = Scene::new(4);
        // W1 takes one of the two itself.
        assert_eq!(
            rung(&s.wake([ended_by(1, "a", done("x")), started_by(1, "c")])),
            "all outcomes news w1 task-a 1 of W3+W4"
        );
        // What the last one takes leaves the others nothing to wait for.
        assert_eq!(rung(&s.wake([started_by(3, "d")])), "all w4");
    }

    #[test]
    fn more_tasks_than_idle_workers_are_offered_all_the_same() {
        let mut s = Scene::new(2);
        assert_eq!(
            rung(&s.wake([ended_by(1, "a", done("x")), started_by(1, "c")])),
            "all outcomes news w1 task-a 1 of "
        );
    }

    #[test]
    fn what_waits_for_a_resource_is_offered_to_nobody_until_that_is_free() {
        let mut tasks: Vec<_> = ["a", "b", "c", "d"].map(task).into();
        for task in &mut tasks {
            task.resources = vec!["db".into()];
        }
        let plan = plan(tasks);
        let mut s = Scene { state: State::new(&plan), plan };
        let started = run_started(&s.plan, "boot");
        s.wake([Draft::run(started)]);
        for n in 1..=3 {
            let process = Process { pid: 1, start_time: 1, boot_id: "boot".into() };
            s.wake([Draft::worker(WorkerNo(n), Body::WorkerStarted(process))]);
        }
        s.wake([started_by(1, "a")]);
        assert_eq!(rung(&s.wake([ended_by(1, "a", done("x"))])), "all outcomes news w1 task-a 1 of W1+W2+W3");
        assert_eq!(rung(&s.wake([started_by(2, "b")])), "all");
        let left = Draft::worker(WorkerNo(1), Body::WorkerExited(Reason { reason: "told to end".into() }));
        assert_eq!(rung(&s.wake([left])), "all");
    }

    #[test]
    fn what_is_beyond_the_limit_is_offered_to_nobody() {
        let mut s = Scene::new(4);
        s.state.max_workers = 2;
        assert_eq!(rung(&s.wake([ended_by(1, "a", done("x")), started_by(1, "c")])), "all outcomes news w1 task-a");
    }

    #[test]
    fn an_attempt_that_will_be_repeated_is_no_outcome_but_somebody_has_to_know_when() {
        let mut s = Scene::new(4);
        assert_eq!(rung(&s.wake([ended_by(1, "a", retried())])), "all w1 1 of W1+W3+W4");
    }

    #[test]
    fn a_wish_to_cancel_concerns_who_can_fulfil_it() {
        let mut s = Scene::new(4);
        assert_eq!(rung(&s.wake([Draft::task(&id("b"), cancel())])), "all w2");
        assert_eq!(rung(&s.wake([Draft::task(&id("c"), cancel())])), "all lead");
        assert_eq!(rung(&s.wake([Draft::run(cancel())])), "all w1 w2 w3 w4");
    }

    #[test]
    fn an_attempt_that_others_gave_up_concerns_its_worker() {
        let mut s = Scene::new(4);
        let lost = Body::Lost(Ended { reason: "died".into(), ..Ended::default() });
        let gone = Draft::worker(WorkerNo(2), Body::WorkerLost(Reason { reason: "died".into() }));
        assert_eq!(rung(&s.wake([ended_by(2, "b", lost), gone])), "all outcomes stop news w2 task-b");
    }

    #[test]
    fn what_was_offered_to_a_worker_that_has_died_is_offered_again() {
        let mut s = Scene::new(4);
        assert_eq!(rung(&s.wake([ended_by(1, "a", done("x"))])), "all outcomes news w1 task-a 2 of W1+W3+W4");
        let gone = Draft::worker(WorkerNo(3), Body::WorkerLost(Reason { reason: "died".into() }));
        assert_eq!(rung(&s.wake([gone])), "all 2 of W1+W4");
        let left = Draft::worker(WorkerNo(4), Body::WorkerExited(Reason { reason: "told to end".into() }));
        assert_eq!(rung(&s.wake([left])), "all 2 of W1");
    }

    #[test]
    fn the_end_concerns_everybody_and_letting_go_only_the_stop_that_holds() {
        let mut s = Scene::new(4);
        let ended = RunEnded { status: Verdict::Ok, reason: "x".into(), done: 0, failed: 0, skipped: 0, cancelled: 0 };
        let everybody = "all lead outcomes end stop observed news w1 w2 w3 w4 task-a task-b task-c task-d";
        assert_eq!(rung(&s.wake([Draft::run(Body::RunEnded(ended))])), everybody);
        assert_eq!(rung(&Wake::let_go()), "stop");
        assert!(Wake::default().is_empty() && !Wake::let_go().is_empty());
    }

    #[test]
    fn a_verdict_concerns_who_waits_for_it_and_frees_work() {
        let topic = || Topic::new("t").unwrap();
        let decided = |result, escalates| {
            let verdict =
                Decided { topic: topic(), result, proceed: 1, abort: 0, absent: 0, no_quorum: false, escalates };
            Draft::run(Body::Verdict(verdict))
        };
        let mut s = Scene::new(4);
        let wake = s.wake([decided(Choice::Proceed, false)]);
        assert!(wake.rings(&Concern::Vote(topic())) && !wake.rings(&Concern::Vote(Topic::new("u").unwrap())));
        assert_eq!(rung(&wake), "all lead news");
        assert_eq!(rung(&s.wake([decided(Choice::Abort, true)])), "all lead stop news");
        // Who has no state cannot tell what becomes ready by it.
        let event = Event::new(decided(Choice::Proceed, false), 99, String::new());
        assert_eq!(rung(&Wake::without_state(&[event])), "all lead news w1 w2 w3 w4");
    }

    #[test]
    fn who_starts_the_clock_of_a_poll_rings_the_leader() {
        let mut plan = plan(vec![task("a"), task("b")]);
        plan.votes.push(vote("t", &["a"], |v| v.deadline = Some(Span::from_secs(1))));
        let mut s = Scene { state: State::new(&plan), plan };
        let started = run_started(&s.plan, "boot");
        s.wake([Draft::run(started)]);
        assert_eq!(rung(&s.wake([started_by(2, "b")])), "all");
        assert_eq!(rung(&s.wake([started_by(1, "a")])), "all lead");
    }

    #[test]
    fn names_are_read_as_they_are_written_and_an_unknown_one_hears_everything() {
        let all = [
            Concern::All,
            Concern::Worker(WorkerNo(12)),
            Concern::Lead,
            Concern::Task(id("a.b-c_d")),
            Concern::Task(id("w1")),
            Concern::Vote(Topic::new("deploy").unwrap()),
            Concern::Outcomes,
            Concern::End,
            Concern::Stop,
            Concern::Observed,
            Concern::News,
        ];
        for concern in all {
            assert_eq!(Concern::parse(&concern.name()), concern);
        }
        for name in ["", "w", "wx", "task-", "task-..", "vote-", "verdict-of-tomorrow"] {
            assert_eq!(Concern::parse(name), Concern::All, "{name}");
        }
    }
}
