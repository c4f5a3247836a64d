//! A vote as a state space explored whole: three tasks vote, twice where they are tried again, their processes and workers are
//! killed at every step, the deadline comes at any moment, and whoever looks writes what follows. What counts, what is refused
//! and what is decided are the functions that the program runs (`logic::vote`, over the fold of `logic::view`); the lock,
//! the tasks, the deaths and the clock are modelled.
//!
//! Four wrong protocols are planted, and each must be caught.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use cpw::base::ids::{TaskId, Topic, WorkerNo};
use cpw::base::span::Span;
use cpw::logic::view::View;
use cpw::logic::vote::Ballot;
use cpw::model::event::{
    Body, Decided, Done, Draft, Ended, Event, RunEnded, RunStarted, SCHEMA, Started, Verdict, Vote,
};
use cpw::model::plan::{Conductor, Plan, VERSION};
use cpw::model::vote::{self, Choice, OnAbort, Rule};
use serde_json::json;
use stateright::{Checker, HasDiscoveries, Model, Property};

/// What a build could get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The one that the program follows.
    Real,
    /// Who has died is no voter any more, and the quorum is counted among those who are left.
    ElectorateNotFixed,
    /// A further attempt has a vote of its own.
    RetryCountsTwice,
    /// It is decided by what was read before the lock was taken.
    DecidedOutsideTheLock,
    /// Nobody looks when its time is over, or its voters are.
    ClosesOnlyByVotes,
}

/// What a task does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Life {
    /// It has not begun, or is to be tried again.
    Waits,
    /// It runs, and has said so much.
    Runs { said: u8 },
    /// It calls `cpw vote` and has read the log, but has not got the lock. Only in the wrong protocol: what it has read.
    Votes { said: u8, choice: Choice, read: Option<Decided> },
    /// It is over.
    Over,
}

#[derive(Debug, Clone)]
struct World {
    /// What the log says: the program's own fold.
    view: Arc<View>,
    lives: [Life; 3],
    /// Votes that counted, as the log has them: by task.
    counted: BTreeMap<usize, Choice>,
    /// Verdicts in the log.
    verdicts: Vec<Decided>,
    /// The time is over.
    late: bool,
    broken: Option<&'static str>,
}

impl World {
    fn digest<H: Hasher>(&self, h: &mut H) {
        for poll in &self.view.polls {
            (&poll.voters, &poll.refused, &poll.verdict, poll.since_ms.is_some()).hash(h);
        }
        for brief in self.view.tasks.values() {
            (brief.attempt, brief.phase).hash(h);
        }
        (self.view.ended.is_some(), &self.lives, &self.counted, &self.verdicts, self.late, self.broken).hash(h);
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.digest(h);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        let sum = |w: &World| {
            let mut h = std::hash::DefaultHasher::new();
            w.digest(&mut h);
            h.finish()
        };
        sum(self) == sum(other)
    }
}

impl Eq for World {}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// A worker starts an attempt.
    Starts(usize),
    /// A task calls `cpw vote`.
    Asks(usize, Choice),
    /// That gets the lock.
    Votes(usize),
    /// Its process, and with it `cpw vote`, or its worker is killed; whether it is tried again.
    Dies(usize, bool),
    /// It ends.
    Ends(usize),
    /// The deadline has come.
    Late,
    /// Somebody looks and writes what follows.
    Looks,
}

#[derive(Debug, Clone)]
struct Space {
    protocol: Protocol,
    rule: Rule,
    quorum: u32,
    default: Choice,
    deadline: bool,
    /// Attempts of each task, at most.
    attempts: u32,
    /// How often one attempt calls `cpw vote`, at most.
    calls: u8,
}

const TASKS: [&str; 3] = ["a", "b", "c"];
const DEADLINE_MS: u64 = 1000;

fn id(i: usize) -> TaskId {
    TaskId::new(TASKS[i]).unwrap()
}

fn topic() -> Topic {
    Topic::new("t").unwrap()
}

impl World {
    fn write(&mut self, draft: Draft) {
        let mut view = (*self.view).clone();
        match &draft.body {
            Body::Vote(p) if p.refused.is_none() => {
                let i = TASKS.iter().position(|t| draft.task.as_ref().is_some_and(|id| id.as_str() == *t)).unwrap();
                if !self.verdicts.is_empty() {
                    self.broken = Some("a vote counts when it is decided");
                }
                if self.counted.insert(i, p.decision.unwrap()).is_some() {
                    self.broken = Some("a task has voted twice");
                }
            }
            Body::Verdict(p) => self.verdicts.push(p.clone()),
            _ => {}
        }
        view.apply(&Event::new(draft, view.seq + 1, String::new()));
        self.view = Arc::new(view);
    }

    fn now_ms(&self) -> u64 {
        if self.late { DEADLINE_MS } else { 0 }
    }

    fn attempt(&self, i: usize) -> u32 {
        self.view.tasks.get(&id(i)).map_or(0, |brief| brief.attempt)
    }

    fn of(&self, i: usize, body: Body) -> Draft {
        Draft::attempt(Some(WorkerNo(1)), &id(i), self.attempt(i).max(1), body)
    }
}

impl Space {
    fn plan(&self) -> Plan {
        // Critical, so that the view knows it from the beginning to the end.
        let task = |name: &str| {
            json!({"id": name, "run": ["true"], "timeout": "none", "retries": 1, "critical": true,
                "backoff": {"initial": "0ms", "max": "1s", "factor": 1}})
        };
        let deadline = self.deadline.then(|| Span::from_ms(DEADLINE_MS));
        let (rule, default, on_abort) = (self.rule, self.default, OnAbort::Signal);
        let vote = vote::Vote {
            topic: topic(),
            voters: (0..3).map(id).collect(),
            quorum: self.quorum,
            rule,
            deadline,
            default,
            on_abort,
        };
        let plan = json!({
            "version": VERSION, "run": "20260101-000000-model", "limits": {"max_workers": 3, "run_timeout": "none"},
            "conductor": Conductor::default(), "tasks": TASKS.map(task), "votes": [vote],
        });
        serde_json::from_value(plan).unwrap()
    }

    /// What follows from the log, as whoever looks writes it.
    fn settle(&self, w: &mut World) {
        if self.protocol != Protocol::ClosesOnlyByVotes {
            let due: Vec<Decided> = w.view.due_verdicts(Some(w.now_ms())).collect();
            for verdict in due {
                w.write(Draft::run(Body::Verdict(verdict)));
            }
        }
        if w.lives.iter().all(|life| *life == Life::Over) && w.view.ended.is_none() {
            let end =
                RunEnded { status: Verdict::Ok, reason: "x".into(), done: 3, failed: 0, skipped: 0, cancelled: 0 };
            w.write(Draft::run(Body::RunEnded(end)));
        }
    }

    /// The transaction of `cpw vote`.
    fn vote(&self, w: &mut World, i: usize, choice: Choice, read: Option<Decided>) {
        let mut poll = w.view.polls[0].clone();
        let attempt = w.attempt(i);
        if self.protocol == Protocol::RetryCountsTwice
            && matches!(poll.voters.get(&id(i)), Some(Ballot::Cast(_, before)) if *before != attempt)
        {
            poll.voters.insert(id(i), Ballot::Open);
        }
        if self.protocol == Protocol::ElectorateNotFixed {
            poll.voters.retain(|_, ballot| *ballot != Ballot::Absent);
            poll.quorum = poll.rule.quorum(u32::try_from(poll.voters.len()).unwrap());
        }
        let said = Vote { topic: topic(), decision: Some(choice), reason: None, refused: None };
        let mut cast = poll.cast(&id(i), attempt, said, Some(w.now_ms()), false);
        if self.protocol == Protocol::DecidedOutsideTheLock {
            cast.bodies.retain(|body| !matches!(body, Body::Verdict(_)));
            cast.bodies.extend(read.map(Body::Verdict));
        }
        for body in cast.bodies {
            let draft = if matches!(body, Body::Verdict(_)) { Draft::run(body) } else { w.of(i, body) };
            w.write(draft);
        }
    }

    fn dies(w: &mut World, i: usize, again: bool) {
        let ended =
            Ended { reason: "the worker died".into(), will_retry: again, retry_at: Some(0), ..Ended::default() };
        w.write(w.of(i, Body::Lost(ended)));
        w.lives[i] = if again { Life::Waits } else { Life::Over };
    }
}

impl Model for Space {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            view: Arc::new(View::new(&self.plan())),
            lives: [Life::Waits, Life::Waits, Life::Waits],
            counted: BTreeMap::new(),
            verdicts: Vec::new(),
            late: false,
            broken: None,
        };
        world.write(Draft::run(Body::RunStarted(run_started())));
        vec![world]
    }

    fn actions(&self, w: &World, actions: &mut Vec<Step>) {
        for (i, life) in w.lives.iter().enumerate() {
            match life {
                Life::Waits => actions.push(Step::Starts(i)),
                Life::Runs { said } => {
                    if *said < self.calls {
                        actions.extend([Choice::Proceed, Choice::Abort].map(|choice| Step::Asks(i, choice)));
                    }
                    actions.push(Step::Ends(i));
                }
                Life::Votes { .. } => actions.push(Step::Votes(i)),
                Life::Over => {}
            }
            if matches!(life, Life::Runs { .. } | Life::Votes { .. }) {
                actions.push(Step::Dies(i, w.attempt(i) < self.attempts));
            }
        }
        if self.deadline && !w.late && w.view.polls[0].since_ms.is_some() {
            actions.push(Step::Late);
        }
        let over = w.lives.iter().all(|life| *life == Life::Over) && w.view.ended.is_none();
        if over || w.view.due_verdicts(Some(w.now_ms())).next().is_some() {
            actions.push(Step::Looks);
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut w = before.clone();
        match step {
            Step::Starts(i) => {
                let n = w.attempt(i) + 1;
                let started = Started::default();
                w.write(Draft::attempt(Some(WorkerNo(1)), &id(i), n, Body::Started(started)));
                w.lives[i] = Life::Runs { said: 0 };
            }
            Step::Asks(i, choice) => {
                let Life::Runs { said } = w.lives[i] else { return None };
                let said_now = Vote { topic: topic(), decision: Some(choice), reason: None, refused: None };
                let cast = w.view.polls[0].cast(&id(i), w.attempt(i), said_now, Some(w.now_ms()), false);
                let read = cast
                    .poll
                    .verdict
                    .filter(|_| self.protocol == Protocol::DecidedOutsideTheLock && w.view.polls[0].verdict.is_none());
                w.lives[i] = Life::Votes { said: said + 1, choice, read };
            }
            Step::Votes(i) => {
                let Life::Votes { said, choice, read } = w.lives[i].clone() else { return None };
                self.vote(&mut w, i, choice, read);
                w.lives[i] = Life::Runs { said };
            }
            Step::Dies(i, again) => Space::dies(&mut w, i, again),
            Step::Ends(i) => {
                let done = Done { exit: 0, duration_ms: 0, ..Done::default() };
                w.write(w.of(i, Body::Done(done)));
                w.lives[i] = Life::Over;
            }
            Step::Late => w.late = true,
            Step::Looks => {}
        }
        // Who ends an attempt, or looks, writes what follows in the same transaction; `cpw vote` its own part of it.
        if matches!(step, Step::Dies(..) | Step::Ends(_) | Step::Looks) {
            self.settle(&mut w);
        }
        Some(w)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a task has one vote, and none when it is decided", |_, w: &World| w.broken.is_none()),
            Property::always("there is at most one verdict", |_, w: &World| w.verdicts.len() <= 1),
            Property::always(
                "the verdict is that of the votes, and of the whole electorate",
                |m: &Space, w: &World| {
                    let of = |choice| u32::try_from(w.counted.values().filter(|c| **c == choice).count()).unwrap();
                    let (p, a) = (of(Choice::Proceed), of(Choice::Abort));
                    w.verdicts.iter().all(|v| {
                        let tally = (v.proceed, v.abort, v.absent) == (p, a, 3 - p - a);
                        tally && m.may_end(w, p, a) == BTreeSet::from([(v.result, v.no_quorum)])
                    })
                },
            ),
            Property::always("it is decided before the run ends", |_, w: &World| {
                w.view.ended.is_none() || w.verdicts.len() == 1
            }),
            Property::always("something is always to come until the run has ended", |m: &Space, w: &World| {
                let mut actions = Vec::new();
                m.actions(w, &mut actions);
                w.view.ended.is_some() || !actions.is_empty()
            }),
            Property::sometimes("it proceeds", |_, w: &World| w.verdicts.iter().any(|v| v.result == Choice::Proceed)),
            Property::sometimes("it is aborted", |_, w: &World| w.verdicts.iter().any(|v| v.result == Choice::Abort)),
            Property::sometimes("too few vote", |_, w: &World| w.verdicts.iter().any(|v| v.no_quorum)),
            Property::sometimes("a vote comes too late", |_, w: &World| {
                w.view.polls[0].refused.iter().any(|task| w.view.polls[0].voters.get(task) == Some(&Ballot::Open))
            }),
        ]
    }
}

impl Space {
    /// What may come of so many votes for and against, whatever those do that could still have voted: said once more, and by
    /// counting only.
    fn may_end(&self, w: &World, p: u32, a: u32) -> BTreeSet<(Choice, bool)> {
        let gone = |i: &usize| w.lives[*i] == Life::Over || w.counted.contains_key(i);
        let to_come = if w.late { 0 } else { 3 - u32::try_from((0..3).filter(gone).count()).unwrap() };
        let unanimous = self.rule == Rule::Unanimous;
        if unanimous && a == 0 && p + to_come < self.quorum && self.default == Choice::Abort {
            // Without a quorum it is an abort in any case.
            return BTreeSet::from([(Choice::Abort, true)]);
        }
        let mut out = BTreeSet::new();
        for (x, y) in (0..=to_come).flat_map(|x| (0..=to_come - x).map(move |y| (x, y))) {
            let (p, a) = (p + x, a + y);
            let vetoed = unanimous && a > 0;
            let proceeds = p > a || unanimous;
            let counted = if proceeds && !vetoed { Choice::Proceed } else { Choice::Abort };
            out.insert(if p + a < self.quorum && !vetoed { (self.default, true) } else { (counted, false) });
        }
        out
    }
}

fn run_started() -> RunStarted {
    RunStarted {
        v: SCHEMA,
        plan_sha256: String::new(),
        session: None,
        prompt_id: None,
        rule: None,
        trace: String::new(),
        span: None,
        parent: None,
        link: None,
        max_workers: 3,
        boot_id: "boot".into(),
        mono_ms: 0,
        cpw: String::new(),
        prompt_sha256: None,
        prompt_bytes: None,
        client: None,
    }
}

fn space(rule: Rule, quorum: u32, default: Choice, deadline: bool, attempts: u32, calls: u8) -> Space {
    Space { protocol: Protocol::Real, rule, quorum, default, deadline, attempts, calls }
}

#[test]
fn every_order_of_votes_retries_deaths_and_the_deadline_keeps_the_rules() {
    for (name, space) in [
        ("majority, each tried twice", space(Rule::Majority, 2, Choice::Abort, false, 2, 1)),
        ("majority of all, two calls an attempt, a deadline", space(Rule::Majority, 3, Choice::Proceed, true, 1, 2)),
        ("unanimous, quorum of two, a deadline", space(Rule::Unanimous, 2, Choice::Abort, true, 1, 1)),
    ] {
        let begun = std::time::Instant::now();
        let checker = space.checker().threads(2).spawn_dfs().join();
        checker.assert_properties();
        println!("{name}: {} states in {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f32());
    }
}

#[test]
fn every_planted_wrong_protocol_is_caught() {
    for (protocol, rule) in [
        (Protocol::ElectorateNotFixed, "the verdict is"),
        (Protocol::RetryCountsTwice, "a task has one vote"),
        (Protocol::DecidedOutsideTheLock, "there is at most one"),
        (Protocol::DecidedOutsideTheLock, "the verdict is"),
        (Protocol::ClosesOnlyByVotes, "it is decided before"),
    ] {
        let space = Space { protocol, ..space(Rule::Majority, 2, Choice::Abort, false, 2, 1) };
        let rule = space.properties().into_iter().find(|p| p.name.starts_with(rule)).unwrap().name;
        let checker = space.checker().finish_when(HasDiscoveries::AnyOf([rule].into())).spawn_bfs().join();
        let path = checker.discovery(rule).unwrap_or_else(|| panic!("{protocol:?} was not caught by: {rule}"));
        println!("{protocol:?} breaks: {rule}, after {} steps", path.into_actions().len());
    }
}
