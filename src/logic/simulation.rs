//! A run without processes: plans of any shape and histories of any course, driven through the scheduler as workers drive
//! it. What must hold for every run is asked here after every event.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::base::ids::{CheckpointName, RunId, TaskId, Topic, WorkerNo};
use crate::base::span::{Limit, Span};
use crate::logic::sched::{self, Facts, Fault};
use crate::logic::state::State;
use crate::logic::view::{Phase, View};
use crate::logic::wake::{Concern, Wake};
use crate::model::event::{
    Body, CancelRequested, Checkpoint, Done, Draft, Ended, Event, Process, Progress, Reason, RunStarted, SCHEMA,
    Started, Usage,
};
use crate::model::plan::{Action, Backoff, Conductor, Durability, Isolate, Limits, Merge, Need, Plan, Task, VERSION};
use crate::model::vote::{OnAbort, Rule, Vote};

/// A task that needs nothing and may run for ever.
pub(crate) fn task(id: &str) -> Task {
    Task {
        id: TaskId::new(id).unwrap(),
        title: None,
        action: Action::Run(vec!["true".into()]),
        needs: Vec::new(),
        claims: Vec::new(),
        resources: Vec::new(),
        timeout: Limit(None),
        retries: 0,
        backoff: Backoff::default(),
        allow_failure: false,
        critical: false,
        signals: None,
        summary: None,
        env: BTreeMap::new(),
        cwd: None,
        isolate: Isolate::None,
        priority: 0,
        item: None,
        draft: None,
        expected: None,
    }
}

/// What a task that asks a client does.
pub(crate) fn claude(prompt: &str) -> Action {
    serde_json::from_value(serde_json::json!({"claude": {"prompt": prompt}})).unwrap()
}

/// A plan of these tasks.
pub(crate) fn plan(tasks: Vec<Task>) -> Plan {
    Plan {
        version: VERSION,
        run: RunId::new("20260101-000000-simulated").unwrap(),
        session: None,
        rule: Some("rule".into()),
        from: None,
        orphan_grace: None,
        limits: Limits { max_workers: 4, max_claude: None, run_timeout: Limit(None), max_budget_usd: None },
        durability: Durability::Process,
        conductor: Conductor::default(),
        tasks,
        merge: Vec::new(),
        resources: BTreeMap::new(),
        votes: Vec::new(),
    }
}

/// A vote of these tasks as a plan has it that says no more, but for a change.
pub(crate) fn vote(topic: &str, voters: &[&str], change: impl FnOnce(&mut Vote)) -> Vote {
    let rule = Rule::default();
    let mut out = Vote {
        topic: Topic::new(topic).unwrap(),
        voters: voters.iter().map(|id| TaskId::new(id).unwrap()).collect(),
        quorum: rule.quorum(u32::try_from(voters.len()).unwrap()),
        rule,
        deadline: None,
        default: Vote::usual_default(),
        on_abort: OnAbort::default(),
    };
    change(&mut out);
    out
}

/// The first event of a run of `plan`.
pub(crate) fn run_started(plan: &Plan, boot_id: &str) -> Body {
    Body::RunStarted(RunStarted {
        v: SCHEMA,
        plan_sha256: "0".repeat(64),
        session: None,
        prompt_id: None,
        rule: plan.rule.clone(),
        trace: "0".repeat(32),
        span: None,
        parent: None,
        link: None,
        max_workers: plan.limits.max_workers,
        boot_id: boot_id.into(),
        mono_ms: 1000,
        cpw: "0".into(),
        prompt_sha256: None,
        prompt_bytes: None,
        client: None,
    })
}

pub(crate) fn done(summary: &str) -> Body {
    Body::Done(Done { exit: 0, duration_ms: 1, summary: Some(summary.into()), ..Done::default() })
}

fn process(pid: u32) -> Process {
    Process { pid: i32::try_from(pid).unwrap(), start_time: 1, boot_id: "boot".into() }
}

/// A run that is going on in memory.
struct Sim {
    plan: Plan,
    state: State,
    /// Folded alone.
    view: View,
    /// Saved and read again before every event.
    saved: View,
    /// Folded from the beginnings of lines wherever that is enough.
    skimmed: View,
    events: Vec<Event>,
    /// Places of events that came too late.
    late: BTreeSet<u64>,
    now_ms: u64,
    boot: String,
    boots: u32,
    alive: BTreeSet<u32>,
    /// Dead workers that somebody has noticed.
    noticed: Vec<WorkerNo>,
    given_up: Vec<(usize, u32, WorkerNo)>,
    stopped: bool,
    /// Tasks that have come to their checkpoint.
    came: BTreeSet<usize>,
}

impl Sim {
    fn new(plan: Plan) -> Sim {
        let mut sim = Sim {
            state: State::new(&plan),
            view: View::new(&plan),
            saved: View::new(&plan),
            skimmed: View::new(&plan),
            events: Vec::new(),
            late: BTreeSet::new(),
            now_ms: 1000,
            boot: "boot".into(),
            boots: 0,
            alive: BTreeSet::new(),
            noticed: Vec::new(),
            given_up: Vec::new(),
            stopped: false,
            came: BTreeSet::new(),
            plan,
        };
        sim.emit(Draft::run(run_started(&sim.plan, "boot")));
        sim
    }

    fn ended(&self) -> bool {
        self.state.view.ended.is_some()
    }

    /// Asks a question about the run as it is now.
    fn ask<T>(&self, question: impl FnOnce(&State, &Plan, Facts<'_>) -> T) -> T {
        let facts = Facts { now_ms: self.now_ms, boot_id: &self.boot, dead: &self.noticed };
        question(&self.state, &self.plan, facts)
    }

    fn emit(&mut self, draft: Draft) {
        let seq = self.state.view.seq + 1;
        let mut line = Vec::new();
        Event::new(draft, seq, format!("2026-01-01T00:00:00.{seq:06}Z")).encode_into(&mut line).unwrap();
        let event = Event::decode(&line[..line.len() - 1]).unwrap();
        if let Body::Started(_) = event.body {
            self.may_start(&event);
        }
        if let Body::Skipped(_) = event.body {
            self.may_skip(&event);
        }
        self.state.apply(&event);
        self.view.apply(&event);
        self.saved = serde_json::from_slice(&serde_json::to_vec(&self.saved).unwrap()).unwrap();
        self.saved.apply(&event);
        assert_eq!(self.view, self.state.view);
        assert_eq!(self.saved, self.view);
        if !self.skimmed.skim(&line[..line.len() - 1]) {
            self.skimmed.apply(&event);
        }
        assert_eq!(self.skimmed, self.view);
        assert!(self.state.running.len() <= self.plan.limits.max_workers as usize, "too many at once");
        self.events.push(event);
    }

    fn task_of(&self, event: &Event) -> usize {
        self.state.index_of(event.task.as_ref().unwrap()).unwrap()
    }

    fn may_start(&self, event: &Event) {
        let i = self.task_of(event);
        assert!(!self.ended(), "started after the end");
        assert!(self.ask(sched::stopped).is_none(), "started in a run that is stopped");
        let (task, retries) = (&self.state.tasks[i], self.plan.tasks[i].retries);
        let own = task.attempts > task.refusals;
        assert!(task.failures <= retries && (retries > 0 || !own), "more attempts than allowed");
        if self.state.is_claude(i) {
            assert!(self.now_ms >= self.state.quota_until_ms, "started without quota");
            assert_eq!(sched::claude_stopped(&self.state, &self.plan), None, "started in spite of it");
            assert!(self.state.running_claude() < 3, "too many clients at once");
        }
        for &other in &self.state.running {
            let (ours, theirs) = (&self.plan.tasks[i].resources, &self.plan.tasks[other].resources);
            let meet = |a: &str, b: &str| a == b || a.starts_with(&format!("{b}/")) || b.starts_with(&format!("{a}/"));
            let clash = ours.iter().any(|a| theirs.iter().any(|b| meet(a, b)));
            assert!(!clash, "{ours:?} and {theirs:?} run at the same time");
        }
        for need in &self.plan.tasks[i].needs {
            let n = self.state.index_of(need.task().unwrap()).unwrap();
            if need.checkpoint().is_some() {
                assert!(self.came.contains(&n), "{need} has not come");
                continue;
            }
            let phase = self.state.tasks[n].phase;
            let tolerated =
                self.plan.tasks[n].allow_failure && matches!(phase, Phase::Failed | Phase::TimedOut | Phase::Lost);
            assert!(phase == Phase::Done || tolerated, "{need} is {phase:?}");
        }
    }

    fn may_skip(&self, event: &Event) {
        let i = self.task_of(event);
        let hopeless = |n: usize| match self.state.tasks[n].phase {
            Phase::Cancelled | Phase::Skipped => true,
            Phase::Failed | Phase::TimedOut | Phase::Lost => !self.plan.tasks[n].allow_failure,
            _ => false,
        };
        // Several skips stand in one write, each after its cause.
        let any = self.plan.tasks[i].needs.iter().any(|need| {
            let n = self.state.index_of(need.task().unwrap()).unwrap();
            let ended = self.state.tasks[n].phase.is_final();
            if need.checkpoint().is_some() { ended && !self.came.contains(&n) } else { hopeless(n) }
        });
        let claude = self.state.is_claude(i) && sched::claude_stopped(&self.state, &self.plan).is_some();
        assert!(any || claude || self.ask(sched::stopped).is_some(), "skipped without a reason");
    }

    /// All that follows now, as every transaction writes it.
    fn settle(&mut self) {
        for round in 0.. {
            let next = self.ask(sched::consequences);
            if next.is_empty() {
                return;
            }
            assert!(round < 20, "consequences do not end: {next:?}");
            for draft in next {
                if let (Body::Lost(_), Some(task), Some(n)) = (&draft.body, &draft.task, draft.attempt) {
                    self.given_up.push((self.state.index_of(task).unwrap(), n, draft.worker.unwrap()));
                }
                self.emit(draft);
            }
        }
    }

    fn hire(&mut self) {
        let n = self.state.view.last_worker + 1;
        self.emit(Draft::worker(WorkerNo(n), Body::WorkerStarted(process(n))));
        self.alive.insert(n);
    }

    fn is_busy(&self, worker: u32) -> bool {
        self.state.running.iter().any(|&i| self.state.tasks[i].open.as_ref().is_some_and(|o| o.worker.0 == worker))
    }

    fn claim(&mut self, pick: usize) {
        let idle: Vec<u32> = self.alive.iter().copied().filter(|&w| !self.is_busy(w)).collect();
        if idle.is_empty() {
            return;
        }
        let me = WorkerNo(idle[pick % idle.len()]);
        self.settle();
        if let Some((i, n)) = self.ask(sched::next_task) {
            let budget_usd = sched::claude_budget(&self.state, &self.plan, i);
            let body = Body::Started(Started {
                cwd: "/".into(),
                title: None,
                mono_ms: self.now_ms,
                budget_usd,
                ..Started::default()
            });
            let id = self.plan.tasks[i].id.clone();
            self.emit(Draft::attempt(Some(me), &id, n, body));
        }
    }

    /// An open attempt of a living worker.
    fn open(&self, pick: usize) -> Option<(usize, u32, WorkerNo)> {
        let mine = |&i: &usize| {
            let open = self.state.tasks[i].open.as_ref()?;
            self.alive.contains(&open.worker.0).then_some((i, open.number, open.worker))
        };
        let open: Vec<_> = self.state.running.iter().filter_map(mine).collect();
        (!open.is_empty()).then(|| open[pick % open.len()])
    }

    fn word(&mut self, (i, n, worker): (usize, u32, WorkerNo), body: Body) {
        let id = self.plan.tasks[i].id.clone();
        self.emit(Draft::attempt(Some(worker), &id, n, body));
    }

    fn finish(&mut self, pick: usize, how: u8) {
        let Some(attempt) = self.open(pick) else { return };
        self.finish_attempt(attempt, how, pick);
        self.settle();
    }

    fn finish_attempt(&mut self, attempt: (usize, u32, WorkerNo), how: u8, pick: usize) {
        let usage = Some(Usage { turns: 1, tokens: 1, cost_usd: 0.5 }).filter(|_| pick.is_multiple_of(2));
        let retry_at = self.ask(|s, p, f| sched::retry_at(s, p, attempt.0, Fault::Failure, f));
        let ended = Ended { reason: "so".into(), will_retry: retry_at.is_some(), retry_at, usage, ..Ended::default() };
        let body = match how {
            0 => Body::Done(Done { exit: 0, duration_ms: 1, usage, ..Done::default() }),
            1 => Body::Failed(ended),
            2 => Body::TimedOut(ended),
            4 => {
                let until = self.ask(|s, _, f| sched::quota_until(s, attempt.0, 0, f));
                let retry_at = self.ask(|s, p, f| sched::retry_after_refusal(s, p, attempt.0, until, f));
                let quota_until = Some(until);
                Body::Failed(Ended { will_retry: retry_at.is_some(), retry_at, quota_until, ..ended })
            }
            _ => Body::Cancelled(Ended { will_retry: false, retry_at: None, ..ended }),
        };
        self.word(attempt, body);
    }

    fn late_word(&mut self, pick: usize) {
        if self.given_up.is_empty() {
            return;
        }
        let (i, n, worker) = self.given_up[pick % self.given_up.len()];
        if self.state.tasks[i].open.as_ref().is_some_and(|o| o.number == n) {
            return;
        }
        let before = self.state.clone();
        let body = match pick % 4 {
            0 => Body::Done(Done { exit: 0, duration_ms: 1, ..Done::default() }),
            1 => Body::Failed(Ended { reason: "late".into(), ..Ended::default() }),
            2 => Body::Progress(Progress { percent: Some(99), ..Progress::default() }),
            _ => Body::TimedOut(Ended { will_retry: true, retry_at: Some(0), ..Ended::default() }),
        };
        self.late.insert(self.state.view.seq + 1);
        self.word((i, n, worker), body);
        let after = &self.state;
        assert_eq!(after.tasks, before.tasks);
        assert_eq!(
            (&after.ready, &after.ready_claude, &after.ready_leased, &after.retrying, &after.doomed),
            (&before.ready, &before.ready_claude, &before.ready_leased, &before.retrying, &before.doomed)
        );
        assert_eq!(after.unstarted, before.unstarted);
        let mut view = after.view.clone();
        view.seq = before.view.seq;
        assert_eq!(view, before.view, "a late word changed the view");
    }

    fn step(&mut self, op: u8, pick: usize) {
        if self.ended() {
            // Only what may still come after the end.
            return self.late_word(pick);
        }
        match op {
            // More than are wanted, too: somebody may start a worker by hand.
            0..=2 if self.ask(sched::workers_wanted) > 0 || pick.is_multiple_of(3) => self.hire(),
            0..=7 => self.claim(pick),
            8 => {
                if let Some(attempt) = self.open(pick) {
                    let percent = u8::try_from(pick % 101).ok();
                    self.word(attempt, Body::Progress(Progress { percent, ..Progress::default() }));
                }
            }
            9..=12 => self.finish(pick, 0),
            13 | 14 => self.finish(pick, 1),
            15 => self.finish(pick, 2),
            16 | 17 => {
                if let Some(&w) = self.alive.iter().nth(pick % 4) {
                    self.alive.remove(&w);
                }
            }
            18 => self.notice(),
            19 if pick.is_multiple_of(4) => {
                self.emit(Draft::run(Body::CancelRequested(CancelRequested { by: "user".into() })));
            }
            20 => {
                let id = self.plan.tasks[pick % self.plan.tasks.len()].id.clone();
                self.emit(Draft::task(&id, Body::CancelRequested(CancelRequested { by: "user".into() })));
            }
            21 if pick.is_multiple_of(4) => {
                self.boots += 1;
                self.boot = format!("boot{}", self.boots);
                self.now_ms = 10;
                self.alive.clear();
            }
            22 | 23 => self.now_ms += u64::try_from(pick).unwrap() % 5000,
            24 => self.late_word(pick),
            25 => {
                if let Some(&w) = self.alive.iter().nth(pick % 4) {
                    self.alive.remove(&w);
                    self.emit(Draft::worker(WorkerNo(w), Body::WorkerExited(Reason { reason: "told".into() })));
                }
            }
            27 => {
                if let Some(attempt) = self.open(pick) {
                    let name = CheckpointName::new("half").unwrap();
                    self.word(attempt, Body::Checkpoint(Checkpoint { name, data: None, inject: false }));
                    self.came.insert(attempt.0);
                }
            }
            26 => {
                if let Some(attempt) = self.open(pick).filter(|(i, ..)| self.state.is_claude(*i)) {
                    self.finish_attempt(attempt, 4, 1);
                }
                self.settle();
            }
            _ => self.settle(),
        }
        self.stopped |= self.ask(sched::stopped).is_some();
    }

    fn notice(&mut self) {
        // Also those that are no longer in the list, as `find_dead` of a worker does.
        let holders = self.state.running.iter().filter_map(|&i| self.state.tasks[i].open.as_ref()).map(|o| o.worker.0);
        let known: BTreeSet<u32> = self.state.view.workers.keys().copied().chain(holders).collect();
        self.noticed = known.into_iter().filter(|w| !self.alive.contains(w)).map(WorkerNo).collect();
        self.settle();
    }

    /// From here on everything goes well.
    fn run_to_the_end(&mut self) {
        for round in 0.. {
            assert!(round < 2000, "the run does not end");
            self.notice();
            if self.ended() {
                return;
            }
            if self.alive.is_empty() || self.ask(sched::workers_wanted) > 0 {
                self.hire();
            }
            let before = self.events.len();
            self.claim(0);
            if let Some((i, ..)) = self.open(0) {
                let how = if self.state.cancels.contains(&i) || self.state.view.cancelled { 3 } else { 0 };
                self.finish(0, how);
            }
            if self.events.len() == before
                && let Some(at) = sched::next_moment(&self.state, &self.plan, self.now_ms)
            {
                self.now_ms = self.now_ms.max(at);
            }
        }
    }

    /// What holds for every run that is over.
    fn audit(&self) {
        let on_time = || self.events.iter().filter(|e| !self.late.contains(&e.seq));
        assert_eq!(on_time().filter(|e| matches!(e.body, Body::RunEnded(_))).count(), 1);
        let closes = |e: &&Event| match &e.body {
            Body::Done(_) | Body::Skipped(_) => true,
            Body::Failed(p) | Body::TimedOut(p) | Body::Lost(p) | Body::Cancelled(p) => !p.will_retry,
            _ => false,
        };
        let ends = |e: &&Event| {
            matches!(e.body, Body::Done(_) | Body::Failed(_) | Body::TimedOut(_) | Body::Lost(_) | Body::Cancelled(_))
        };
        for (i, task) in self.plan.tasks.iter().enumerate() {
            let of_task = || on_time().filter(|e| e.task.as_ref() == Some(&task.id));
            assert_eq!(of_task().filter(closes).count(), 1, "final states of {}", task.id);
            assert!(self.state.tasks[i].phase.is_final());
            let starts: Vec<u32> =
                of_task().filter(|e| matches!(e.body, Body::Started(_))).map(|e| e.attempt.unwrap()).collect();
            assert!(starts.iter().copied().eq(1..=u32::try_from(starts.len()).unwrap()), "{starts:?}");
            for n in starts {
                let outcomes = of_task().filter(|e| e.attempt == Some(n)).filter(ends).count();
                assert_eq!(outcomes, 1, "outcomes of attempt {n} of {}", task.id);
            }
        }
        let counts = self.state.view.counts;
        assert_eq!(counts.open(), 0);
        assert_eq!(counts.total as usize, self.plan.tasks.len());
        let is = |phase: Phase| self.state.tasks.iter().filter(|t| t.phase == phase).count();
        assert_eq!(counts.done as usize, is(Phase::Done));
        assert_eq!(counts.skipped as usize, is(Phase::Skipped));
        assert!(self.state.running.is_empty() && self.state.unstarted == 0);
        assert!(
            self.state.ready.is_empty()
                && self.state.ready_claude.is_empty()
                && self.state.ready_leased.is_empty()
                && self.state.retrying.is_empty()
                && self.state.doomed.is_empty()
        );
        let all_dead: Vec<WorkerNo> = self.state.view.workers.keys().map(|&w| WorkerNo(w)).collect();
        for boot in ["boot", "another"] {
            let facts = Facts { now_ms: u64::MAX, boot_id: boot, dead: &all_dead };
            assert_eq!(sched::consequences(&self.state, &self.plan, facts), Vec::new());
            assert_eq!(sched::next_task(&self.state, &self.plan, facts), None);
            assert_eq!(sched::workers_wanted(&self.state, &self.plan, facts), 0);
        }
        crate::logic::timeline::tests::sound(&self.plan, &self.events);
        // A reader who comes later sees the same.
        let mut again = State::new(&self.plan);
        self.events.iter().for_each(|e| again.apply(e));
        assert_eq!(again.view, self.state.view);
        assert_eq!(again.tasks, self.state.tasks);
        if !self.stopped && counts.done as usize == self.plan.tasks.len() {
            let end = self.state.view.ended.as_ref().unwrap();
            assert_eq!(end.status, crate::model::event::Verdict::Ok);
        }
    }
}

prop_compose! {
    fn any_task()(
        needs in any::<u16>(), retries in 0_u32..3, allow_failure in any::<bool>(), limit in 0_u64..4,
        priority in -1_i32..2, claims in any::<bool>(), asks in 0_u8..3, holds in 0_u8..12,
    ) -> (u16, Task) {
        let mut t = task("x");
        if asks == 0 {
            t.action = claude("p");
        }
        t.retries = retries;
        t.allow_failure = allow_failure;
        t.timeout = Limit((limit > 0).then(|| Span::from_secs(limit)));
        t.priority = priority;
        t.resources = match holds {
            0 | 1 => vec!["db".into()],
            2 => vec!["db".into(), "gpu".into()],
            3 => vec!["file:src".into()],
            4 => vec!["file:src/a.rs".into(), "gpu".into()],
            _ => Vec::new(),
        };
        if claims {
            t.claims = vec!["src/*.rs".into()];
        }
        (needs, t)
    }
}

prop_compose! {
    fn any_plan()(
        made in prop::collection::vec(any_task(), 1..12), backwards in any::<bool>(), max_workers in 1_u32..5,
        limit in 0_u64..4, budget in 0_u32..5, merge in any::<u16>(),
    ) -> Plan {
        let id = |i: usize| TaskId::new(&format!("t{i}")).unwrap();
        let mut tasks: Vec<Task> = Vec::new();
        for (i, (needs, mut t)) in made.into_iter().enumerate() {
            t.id = id(i);
            // About every fourth of those before it.
            let needed = (0..i).filter(|k| needs >> (k % 16) & 1 == 1 && (k + i) % 2 == 0);
            let half = |k: usize| (k + i).is_multiple_of(6).then(|| CheckpointName::new("half").unwrap());
            t.needs = needed
                .map(|k| match half(k) {
                    None => Need::End(id(k)),
                    Some(name) => Need::Checkpoint(id(k), name),
                })
                .collect();
            tasks.push(t);
        }
        if backwards {
            tasks.reverse();
        }
        let needs: Vec<TaskId> = (0..tasks.len()).filter(|k| merge >> (k % 16) & 1 == 1).map(id).collect();
        let mut out = plan(tasks);
        if !needs.is_empty() {
            out.merge.push(Merge { tool: "Write".into(), matches: BTreeMap::new(), needs, set: BTreeMap::new() });
        }
        out.limits.max_workers = max_workers;
        out.limits.run_timeout = Limit((limit > 0).then(|| Span::from_secs(limit * 10)));
        out.limits.max_budget_usd = (budget > 3).then_some(1.0);
        out.limits.max_claude = Some(3);
        out
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_run_ends_once_and_every_task_has_one_outcome(
        plan in any_plan(),
        course in prop::collection::vec((0_u8..29, any::<u16>()), 0..120),
    ) {
        let mut sim = Sim::new(plan);
        for (op, pick) in course {
            sim.step(op, usize::from(pick));
        }
        sim.run_to_the_end();
        for pick in 0..4 {
            sim.late_word(pick);
        }
        sim.audit();
    }
}

#[test]
fn a_task_that_is_due_and_finds_no_room_keeps_nobody_awake() {
    let mut two = plan(vec![task("a"), task("b")]);
    two.tasks[0].retries = 1;
    two.limits.max_workers = 1;
    two.limits.run_timeout = Limit(Some(Span::from_secs(60)));
    let mut sim = Sim::new(two);
    sim.hire();
    sim.claim(0);
    sim.finish(0, 1);
    let due = sim.state.retrying.first().unwrap().0;
    assert_eq!(sched::next_moment(&sim.state, &sim.plan, sim.now_ms), Some(due));
    // The only place is taken by the other one, and the moment passes.
    sim.claim(0);
    sim.now_ms = due;
    let end = sched::run_deadline(&sim.state, &sim.plan);
    assert_eq!(sched::next_moment(&sim.state, &sim.plan, due), end);
    assert_eq!(sched::next_moment(&sim.state, &sim.plan, end.unwrap()), None, "its time is over and stays so");
    sim.finish(0, 0);
    assert_eq!(sim.ask(sched::next_task), Some((0, 2)));
}

/// A run whose workers sleep until they are rung, hear of a death that they watch, or come to a moment that they knew when
/// they fell asleep. Nobody ever looks for safety's sake, so that a bell that is not rung is missed for ever.
struct Sleepers {
    sim: Sim,
    /// Who sleeps, and until when.
    asleep: BTreeMap<u32, Option<u64>>,
    lead: Option<u32>,
}

impl Sleepers {
    fn new(plan: Plan) -> Sleepers {
        let mut all = Sleepers { sim: Sim::new(plan), asleep: BTreeMap::new(), lead: None };
        all.hire();
        all
    }

    /// A transaction of `writer`, and then who is rung.
    fn transact(&mut self, writer: Option<u32>, write: impl FnOnce(&mut Sim)) {
        let (before, from) = (self.sim.state.clone(), self.sim.events.len());
        write(&mut self.sim);
        self.sim.stopped |= self.sim.ask(sched::stopped).is_some();
        let events = &self.sim.events[from..];
        if events.is_empty() {
            return;
        }
        let wake = Wake::of(events, &self.sim.state);
        self.everybody_who_waits_is_rung(&before, &wake, writer);
        let rung = |w: u32| wake.rings(&Concern::Worker(WorkerNo(w)));
        self.asleep.retain(|&w, _| !rung(w));
        // As unlucky as can be: those are rung first who are awake anyway.
        let offer = wake.offered();
        let mut idle: Vec<u32> = offer.idle.iter().map(|w| w.0).filter(|w| self.sim.alive.contains(w)).collect();
        idle.sort_by_key(|w| (Some(*w) != writer, self.asleep.contains_key(w)));
        idle.truncate(offer.wanted);
        self.asleep.retain(|w, _| !idle.contains(w));
        if wake.rings(&Concern::Lead) || idle.len() < offer.wanted {
            match self.lead.filter(|lead| self.sim.alive.contains(lead)) {
                Some(lead) => drop(self.asleep.remove(&lead)),
                None => self.asleep.clear(),
            }
        }
    }

    fn everybody_who_waits_is_rung(&self, before: &State, wake: &Wake, writer: Option<u32>) {
        let (after, plan) = (&self.sim.state, &self.sim.plan);
        assert!(wake.rings(&Concern::All));
        for (i, task) in plan.tasks.iter().enumerate() {
            if !before.tasks[i].phase.is_final() && after.tasks[i].phase.is_final() {
                assert!(wake.rings(&Concern::Task(task.id.clone())), "who waits for {} sleeps", task.id);
                assert!(wake.rings(&Concern::Outcomes), "a merge that needs {} sleeps", task.id);
            }
            let Some(open) = &before.tasks[i].open else { continue };
            let lost = after.tasks[i].open.as_ref().is_none_or(|now| now.token != open.token);
            let wished = |state: &State| state.view.cancelled || state.cancels.contains(&i);
            if (lost || !wished(before) && wished(after)) && writer != Some(open.worker.0) {
                assert!(wake.rings(&Concern::Worker(open.worker)), "{} sleeps on a lost cause", open.worker);
            }
        }
        if after.view.news.iter().any(|news| news.seq > before.view.seq) {
            assert!(wake.rings(&Concern::News), "who is to be told sleeps");
        }
        if before.view.ended.is_none() && after.view.ended.is_some() {
            let task = plan.tasks[0].id.clone();
            let worker = Concern::Worker(WorkerNo(77));
            for concern in [Concern::End, Concern::Stop, Concern::Lead, Concern::Task(task), worker] {
                assert!(wake.rings(&concern), "{concern:?} sleeps through the end");
            }
        }
    }

    fn hire(&mut self) {
        let lead = self.lead;
        self.transact(lead, Sim::hire);
        // A new worker looks before it sleeps.
        self.lead = self.lead.or(self.sim.alive.first().copied());
    }

    /// Those who would look now without being rung again.
    fn awake(&self) -> Vec<u32> {
        let due = |w: &u32| self.asleep.get(w).is_none_or(|at| at.is_some_and(|at| at <= self.sim.now_ms));
        self.sim.alive.iter().copied().filter(due).collect()
    }

    /// One turn of a worker, as `actor::worker` takes it.
    fn turn(&mut self, w: u32, how: Option<u8>) {
        let mut exits = false;
        let leads = self.lead == Some(w);
        self.transact(Some(w), |sim| {
            let state = &sim.state;
            let mine = |&i: &usize| state.tasks[i].open.as_ref().filter(|o| o.worker.0 == w).map(|o| (i, o.number));
            let attempt = state.running.iter().find_map(mine);
            if let (Some((i, number)), Some(how)) = (attempt, how) {
                let at = sim.events.len();
                sim.finish_attempt((i, number, WorkerNo(w)), how, at);
            }
            sim.notice();
            if sim.is_busy(w) {
                return;
            }
            if let Some((i, n)) = sim.ask(sched::next_task) {
                let id = sim.plan.tasks[i].id.clone();
                let budget_usd = sched::claude_budget(&sim.state, &sim.plan, i);
                let body = Body::Started(Started {
                    cwd: "/".into(),
                    title: None,
                    mono_ms: sim.now_ms,
                    budget_usd,
                    ..Started::default()
                });
                sim.emit(Draft::attempt(Some(WorkerNo(w)), &id, n, body));
            } else if sim.ended() || !leads && sim.state.unstarted == 0 {
                exits = true;
                sim.emit(Draft::worker(WorkerNo(w), Body::WorkerExited(Reason { reason: "nothing to do".into() })));
            }
        });
        let idle = !self.sim.is_busy(w);
        let moment = sched::next_moment(&self.sim.state, &self.sim.plan, self.sim.now_ms).filter(|_| idle || leads);
        self.asleep.insert(w, moment);
        if exits {
            self.die(w);
        }
        if leads {
            for _ in 0..self.sim.ask(sched::workers_wanted) {
                self.hire();
            }
        }
    }

    /// A worker goes, in order or not. The leader watches all others, and all watch the leader.
    fn die(&mut self, w: u32) {
        self.sim.alive.remove(&w);
        self.asleep.remove(&w);
        if self.lead == Some(w) {
            self.lead = self.sim.alive.first().copied();
        }
        if let Some(lead) = self.lead {
            self.asleep.remove(&lead);
        } else if !self.sim.ended() {
            // Whoever waits for the run finds nobody alive.
            self.hire();
        }
    }

    fn step(&mut self, op: u8, pick: usize) {
        let one_of = |all: &[u32]| (!all.is_empty()).then(|| all[pick % all.len()]);
        let busy: Vec<u32> = self.sim.alive.iter().copied().filter(|&w| self.sim.is_busy(w)).collect();
        match op {
            0..=5 => one_of(&self.awake()).into_iter().for_each(|w| self.turn(w, None)),
            6..=9 => one_of(&busy).into_iter().for_each(|w| self.turn(w, Some(0))),
            10 | 19 | 20 => one_of(&busy).into_iter().for_each(|w| self.turn(w, Some(1))),
            11 => one_of(&busy).into_iter().for_each(|w| self.turn(w, Some(3))),
            12 => self.transact(None, |sim| {
                if let Some(attempt) = sim.open(pick) {
                    sim.word(attempt, Body::Progress(Progress::default()));
                }
            }),
            13 | 14 => {
                let all: Vec<u32> = self.sim.alive.iter().copied().collect();
                if let Some(w) = one_of(&all) {
                    self.die(w);
                }
            }
            15 => self.transact(None, |sim| {
                let id = sim.plan.tasks[pick % sim.plan.tasks.len()].id.clone();
                sim.emit(Draft::task(&id, Body::CancelRequested(CancelRequested { by: "user".into() })));
            }),
            16 if pick.is_multiple_of(8) => self.transact(None, |sim| {
                sim.emit(Draft::run(Body::CancelRequested(CancelRequested { by: "user".into() })));
            }),
            17 => self.sim.now_ms += u64::try_from(pick).unwrap() % 3000,
            // Somebody lends a hand.
            18 if self.sim.alive.len() < 6 => self.hire(),
            _ => {}
        }
    }

    /// What is to be done, somebody who can do it is awake for.
    fn nobody_sleeps_who_is_needed(&self) {
        let sim = &self.sim;
        if sim.ended() {
            return;
        }
        let awake = self.awake();
        let unnoticed = || sim.state.view.workers.keys().any(|w| !sim.alive.contains(w));
        let mut idle = sim.alive.iter().filter(|&&w| !sim.is_busy(w)).peekable();
        if sim.ask(sched::next_task).is_some() && idle.peek().is_some() && !unnoticed() {
            assert!(idle.any(|w| awake.contains(w)), "a task is ready and all idle workers sleep");
        }
        if sim.ask(sched::workers_wanted) > 0 {
            assert!(self.lead.is_some_and(|lead| awake.contains(&lead)), "workers are wanted and the leader sleeps");
        }
        if !sim.ask(sched::consequences).is_empty() {
            assert!(!awake.is_empty(), "something follows and everybody sleeps");
        }
    }

    /// Everything that has begun ends well; nobody does anything unless woken.
    fn run_to_the_end(&mut self) {
        for round in 0.. {
            assert!(round < 5000, "the run does not end");
            if self.sim.ended() {
                return;
            }
            self.nobody_sleeps_who_is_needed();
            let sim = &self.sim;
            let busy = sim.alive.iter().copied().find(|&w| sim.is_busy(w));
            if let Some(&w) = self.awake().first() {
                self.turn(w, None);
            } else if let Some(w) = busy {
                self.turn(w, Some(0));
            } else {
                let next = self.asleep.values().filter_map(|at| *at).min();
                self.sim.now_ms = next.expect("everybody sleeps and nothing will wake them").max(self.sim.now_ms);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whoever_waits_is_rung_by_the_transaction_that_it_waits_for(
        mut plan in any_plan(),
        endless in any::<bool>(),
        course in prop::collection::vec((0_u8..21, any::<u16>()), 0..120),
    ) {
        // Most of what may be slept through happens between workers of a large crew, some tasks of which fail.
        plan.limits.max_workers += 2;
        if endless {
            plan.limits.run_timeout = Limit(None);
            plan.limits.max_budget_usd = None;
            plan.tasks.iter_mut().for_each(|t| t.retries += 1);
        }
        let mut all = Sleepers::new(plan);
        for (op, pick) in course {
            if all.sim.ended() {
                break;
            }
            all.step(op, usize::from(pick));
            all.nobody_sleeps_who_is_needed();
        }
        all.run_to_the_end();
        all.sim.audit();
    }
}

/// Folds a run of `plan` in which each task ends as `ends` says, without comparing at every step. Returns its state and the
/// number of events.
fn fold(plan: &Plan, ends: impl Fn(usize) -> Body) -> (State, u64) {
    let mut state = State::new(plan);
    let mut seq = 0;
    let mut emit = |state: &mut State, draft: Draft| {
        seq += 1;
        state.apply(&Event::new(draft, seq, String::new()));
    };
    emit(&mut state, Draft::run(run_started(plan, "boot")));
    emit(&mut state, Draft::worker(WorkerNo(1), Body::WorkerStarted(process(1))));
    let facts = Facts { now_ms: 2000, boot_id: "boot", dead: &[] };
    while state.view.ended.is_none() {
        loop {
            let next = sched::consequences(&state, plan, facts);
            if next.is_empty() {
                break;
            }
            for draft in next {
                emit(&mut state, draft);
            }
        }
        if let Some((i, n)) = sched::next_task(&state, plan, facts) {
            let started = Body::Started(Started { cwd: "/".into(), title: None, mono_ms: 1, ..Started::default() });
            emit(&mut state, Draft::attempt(Some(WorkerNo(1)), &plan.tasks[i].id, n, started));
            emit(&mut state, Draft::attempt(Some(WorkerNo(1)), &plan.tasks[i].id, n, ends(i)));
        }
    }
    (state, seq)
}

const MANY: usize = 10_000;

#[test]
fn ten_thousand_tasks_in_a_chain_take_no_longer_than_ten_thousand_tasks() {
    let mut tasks: Vec<Task> = (0..MANY).map(|i| task(&format!("t{i}"))).collect();
    for i in 1..MANY {
        tasks[i].needs = vec![tasks[i - 1].id.clone().into()];
    }
    // The hardest order: every task comes after what needs it.
    tasks.reverse();
    let chain = plan(tasks);
    let (state, events) = fold(&chain, |_| done("x"));
    assert_eq!(state.view.counts.done as usize, MANY);
    assert_eq!(events, 2 * MANY as u64 + 3);
    // The first fails: all others are skipped, in one step and without recursion.
    let fails = |_| Body::Failed(Ended { reason: "no".into(), ..Ended::default() });
    let (state, _) = fold(&chain, fails);
    assert_eq!((state.view.counts.failed, state.view.counts.skipped as usize), (1, MANY - 1));
}

#[test]
fn ten_thousand_tasks_that_one_needs_and_a_merge_waits_for() {
    let mut tasks: Vec<Task> = (0..MANY).map(|i| task(&format!("t{i}"))).collect();
    let ids: Vec<TaskId> = tasks.iter().map(|t| t.id.clone()).collect();
    tasks[MANY - 1].needs = ids[..MANY - 1].iter().cloned().map(Need::from).collect();
    let mut plan = plan(tasks);
    plan.merge.push(Merge { tool: "Write".into(), matches: BTreeMap::new(), needs: ids, set: BTreeMap::new() });
    let (mut state, seq) = fold(&plan, |_| done("x"));
    assert_eq!(state.view.counts.done as usize, MANY);
    // All of it is handed over at once.
    let news: Vec<u64> = state.view.news.iter().map(|n| n.seq).collect();
    assert_eq!(news.len(), MANY + 1);
    let delivered = crate::model::event::Delivered {
        news,
        hook: "Stop".into(),
        session: "s".into(),
        prompt_id: None,
        more: false,
        signals: Vec::new(),
        chars: 0,
    };
    state.apply(&Event::new(Draft::run(Body::Delivered(delivered)), seq + 1, String::new()));
    assert_eq!(state.view.news, Vec::new());
}

#[test]
fn a_task_that_may_fail_lets_others_go_on() {
    let mut tasks = vec![task("a"), task("b")];
    tasks[0].allow_failure = true;
    tasks[1].needs = vec![tasks[0].id.clone().into()];
    let fail_first = |i: usize| {
        if i == 0 { Body::Failed(Ended { reason: "no".into(), ..Ended::default() }) } else { done("x") }
    };
    let (state, _) = fold(&plan(tasks.clone()), fail_first);
    assert_eq!((state.tasks[0].phase, state.tasks[1].phase), (Phase::Failed, Phase::Done));
    assert_eq!(state.view.ended.unwrap().status, crate::model::event::Verdict::Ok);
    tasks[0].allow_failure = false;
    let (state, _) = fold(&plan(tasks), fail_first);
    assert_eq!((state.tasks[0].phase, state.tasks[1].phase), (Phase::Failed, Phase::Skipped));
    let end = state.view.ended.unwrap();
    assert_eq!((end.status, end.reason.as_str()), (crate::model::event::Verdict::Failed, "a failed"));
}

#[test]
fn after_a_restart_only_the_workers_of_before_are_lost() {
    let plan = plan(vec![task("a")]);
    let mut state = State::new(&plan);
    let after = Process { boot_id: "next".into(), ..process(2) };
    let events = [
        Draft::run(run_started(&plan, "boot")),
        Draft::worker(WorkerNo(1), Body::WorkerStarted(process(1))),
        Draft::worker(WorkerNo(2), Body::WorkerStarted(after)),
    ];
    for (draft, seq) in events.into_iter().zip(1..) {
        state.apply(&Event::new(draft, seq, String::new()));
    }
    let facts = Facts { now_ms: 2000, boot_id: "next", dead: &[] };
    let lost: Vec<Option<WorkerNo>> = sched::consequences(&state, &plan, facts).iter().map(|d| d.worker).collect();
    assert_eq!(lost, [Some(WorkerNo(1))]);
}
