//! What happened in a run, and when: every attempt as a span of time with what it waited for before, the lives of workers,
//! what the session was told and held for, leases; and from that the path that bounded the run, the chain of work and waits
//! that leads from its beginning to its end without a gap. Everything is told from the log and the plan alone, and of a run
//! that is not over, or whose log is damaged, as far as it goes.
//!
//! Times are those of the wall clock in the log, in microseconds since 1970. A clock that is set back stands still here until
//! it has caught up, so that no span is negative.

mod path;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, HashMap};

use chrono::DateTime;

use crate::base::ids::{CheckpointName, TaskId, WorkerNo};
use crate::logic::view::Phase;
use crate::model::event::{Answer, Body, Ended, Event, Holder, RunEnded, Usage};
use crate::model::plan::{Need, Plan};
use crate::model::resource::Resource;
use crate::model::vote::Choice;

/// Microseconds since 1970.
pub type Micros = i64;

/// How many ends before the start of an attempt are looked at for the one that it waited for.
const LOOK_BACK: usize = 512;

/// A stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Its beginning.
    pub from: Micros,
    /// Its end, not before its beginning.
    pub to: Micros,
}

impl Stretch {
    fn new(from: Micros, to: Micros) -> Stretch {
        Stretch { from, to: to.max(from) }
    }

    /// How long it is, in microseconds.
    pub fn length(self) -> Micros {
        self.to - self.from
    }
}

/// Why something that could have begun did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// As many tasks ran as may at once, until this attempt ended.
    Slot(usize),
    /// What it holds was held, until this attempt of the same run ended.
    Resource(usize),
    /// A further attempt comes after a pause.
    Pause,
    /// The provider's quota was used up.
    Quota,
    /// A worker had to start, or to notice.
    Worker,
    /// It was not due by the plan: somebody began it by hand.
    ByHand,
}

/// One try at a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// The task, by its place in the plan.
    pub task: usize,
    /// From 1.
    pub number: u32,
    /// Who ran it; nobody, of a task that was taken over from another run.
    pub worker: Option<WorkerNo>,
    /// The sequence number of its `started`.
    pub token: u64,
    /// The sequence number of its outcome.
    pub closed: Option<u64>,
    /// Its span, where the log has it.
    pub span: Option<String>,
    /// When nothing was left to wait for but a worker and what it holds; not behind its beginning.
    pub ready: Micros,
    /// Why it did not begin then, if it did not.
    pub why: Why,
    /// What made it possible, of a first attempt whose task needs something: that happened when it became ready.
    pub cause: Option<Cause>,
    /// When it ran. Where it still does: until the end of the timeline.
    pub ran: Stretch,
    /// How it ended, or that it runs.
    pub outcome: Phase,
    /// Whether a further attempt was to come.
    pub again: bool,
    /// Whether the provider refused it for want of quota.
    pub refused: bool,
    /// Whether another run has done it.
    pub taken: bool,
    /// What it said at its end: its summary, or why it failed.
    pub line: Option<String>,
    /// What it cost.
    pub usage: Usage,
    /// When its own process waited for a lease, one after the other.
    pub leased: Vec<Stretch>,
    /// When it came to checkpoints, for the first time in the run.
    pub checkpoints: Vec<(Micros, CheckpointName)>,
}

/// What made it possible that a task begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The end of this attempt, or a checkpoint of it.
    Attempt(usize),
    /// What came out of this vote, by its place in the plan.
    Vote(usize),
}

/// A worker's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Which.
    pub worker: WorkerNo,
    /// From its start to its leaving. Where it is there: until the end of the timeline.
    pub lived: Stretch,
    /// Whether it was found dead.
    pub lost: bool,
    /// Whether it has left.
    pub left: bool,
}

/// What the session did, or was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// When; longer than a moment where the session was held.
    pub at: Stretch,
    /// The hook event.
    pub hook: String,
    /// What.
    pub what: Told,
    /// The task on whose behalf, where it is one.
    pub task: Option<usize>,
}

/// See [`Turn`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// It was answered so, for this reason, about a call of this tool.
    Answered {
        /// How.
        answer: Answer,
        /// Why.
        reason: String,
        /// Which tool.
        tool: Option<String>,
    },
    /// So much news and so many signals were handed over, in so many characters.
    News {
        /// Outcomes, checkpoints, the end.
        news: usize,
        /// Signals.
        signals: usize,
        /// How long the text was.
        chars: u64,
    },
}

/// Something that happened at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// When.
    pub at: Micros,
    /// Who.
    pub worker: Option<WorkerNo>,
    /// Which task.
    pub task: Option<usize>,
    /// What it is, as the log names it.
    pub kind: &'static str,
    /// More about it, in somebody's own words.
    pub text: String,
}

/// A lease that the run, or its session, had or wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// What.
    pub resources: Vec<String>,
    /// The task; the session where it is none.
    pub task: Option<usize>,
    /// Whether it was held, or only waited for.
    pub held: bool,
    /// When.
    pub at: Stretch,
}

/// A part of the path that bounded the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// When.
    pub at: Stretch,
    /// What the run was waiting for then.
    pub what: What,
}

/// See [`Segment`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An attempt that ran.
    Work(usize),
    /// An attempt whose process waited for a lease that somebody outside of the run's tasks had.
    Lease(usize),
    /// A task that did not begin.
    Wait(usize, Why),
    /// A vote that was not decided, by its place in the plan.
    Vote(usize),
    /// Nothing that the log tells of: nobody ran, or the run was about to end.
    Nothing,
}

/// A run as it went.
#[derive(Debug, Clone, PartialEq)]
pub struct Timeline {
    /// From the beginning of the run to its end, or to when it is told.
    pub run: Stretch,
    /// How it ended.
    pub ended: Option<RunEnded>,
    /// All attempts, in the order in which they began.
    pub attempts: Vec<Attempt>,
    /// The workers, by number.
    pub workers: Vec<Life>,
    /// What the session did and was told.
    pub turns: Vec<Turn>,
    /// Moments of tasks and of the run.
    pub moments: Vec<Moment>,
    /// Leases.
    pub leases: Vec<Lease>,
    /// Per vote of the plan who cast the last voice that counted, and when.
    pub votes: Vec<Option<(Micros, usize)>>,
    /// What bounded the run: from its beginning to its end without a gap.
    pub path: Vec<Segment>,
    /// How long it would have taken if nothing had waited for a worker, as far as the log tells. Of a run that has ended, and
    /// where something did.
    pub unlimited: Option<Micros>,
    /// Tasks at the same time, at most.
    pub max_workers: u32,
}

impl Timeline {
    /// How long all attempts ran together, in microseconds.
    pub fn work(&self) -> Micros {
        self.attempts.iter().filter(|a| !a.taken).map(|a| a.ran.length()).sum()
    }

    /// How long the session was held, in microseconds: its calls, and Stop.
    pub fn held(&self) -> (Micros, Micros) {
        let sum = |stop: bool| self.turns.iter().filter(|t| (t.hook == "Stop") == stop).map(|t| t.at.length()).sum();
        (sum(false), sum(true))
    }

    /// How many attempts ran at once, as steps: from this moment on so many.
    pub fn running(&self) -> Vec<(Micros, usize)> {
        let mut steps: Vec<(Micros, bool)> = Vec::new();
        for attempt in self.attempts.iter().filter(|a| !a.taken) {
            steps.push((attempt.ran.from, true));
            if attempt.closed.is_some() {
                steps.push((attempt.ran.to, false));
            }
        }
        // What ends makes room before the next begins.
        steps.sort_unstable();
        let mut out: Vec<(Micros, usize)> = vec![(self.run.from, 0)];
        let mut now = 0_usize;
        for (at, begins) in steps {
            now = if begins { now + 1 } else { now.saturating_sub(1) };
            match out.last_mut() {
                Some(last) if last.0 == at => last.1 = now,
                _ => out.push((at, now)),
            }
        }
        out
    }
}

/// A vote as far as it has come.
#[derive(Debug, Default, Clone, Copy)]
struct Poll {
    /// The vote that was cast last: when, and by which attempt.
    last: Option<(Micros, usize)>,
    decided: Option<Micros>,
}

/// A lease log's open entry.
#[derive(Debug)]
struct Claimed {
    at: Micros,
    resources: Vec<String>,
    task: Option<usize>,
    attempt: Option<usize>,
}

/// Listens to a log and makes a timeline of it.
#[derive(Debug)]
pub struct Recorder<'p> {
    plan: &'p Plan,
    index: HashMap<&'p TaskId, usize>,
    now: Micros,
    lease_now: Micros,
    begun: Option<(Micros, u64)>,
    session: Option<String>,
    max_workers: u32,
    ended: Option<(Micros, RunEnded)>,
    attempts: Vec<Attempt>,
    /// Per task: the needs that are not met, the attempts, and the one that is open.
    unmet: Vec<Vec<Need>>,
    /// Per task when the last of its needs was met: the time, the number of the event, and by what.
    ready: Vec<Option<(Micros, u64, Option<Cause>)>>,
    of_task: Vec<Vec<usize>>,
    /// Per task when its next attempt may begin, of one that was tried before.
    due: Vec<Micros>,
    open: Vec<Option<usize>>,
    dependents: HashMap<&'p TaskId, Vec<usize>>,
    running: usize,
    running_claude: usize,
    /// Attempts in the order of their ends, each with how many ran, and how many of them were clients, just before.
    ends: Vec<(usize, usize, usize)>,
    quota_until: Option<Micros>,
    polls: Vec<Poll>,
    workers: BTreeMap<WorkerNo, Life>,
    turns: Vec<Turn>,
    moments: Vec<Moment>,
    leases: Vec<Lease>,
    queued: HashMap<u64, Claimed>,
    held: HashMap<u64, Claimed>,
}

impl<'p> Recorder<'p> {
    /// Before the first event.
    pub fn new(plan: &'p Plan) -> Recorder<'p> {
        let index = plan.tasks.iter().enumerate().map(|(i, task)| (&task.id, i)).collect();
        let mut dependents: HashMap<&TaskId, Vec<usize>> = HashMap::new();
        for (i, task) in plan.tasks.iter().enumerate() {
            for need in task.needs.iter().filter_map(Need::task) {
                dependents.entry(need).or_default().push(i);
            }
        }
        let unmet = |task: &crate::model::plan::Task| {
            let mut needs = task.needs.clone();
            needs.sort();
            needs.dedup();
            needs
        };
        let tasks = plan.tasks.len();
        Recorder {
            plan,
            index,
            now: Micros::MIN,
            lease_now: Micros::MIN,
            begun: None,
            session: None,
            max_workers: plan.limits.max_workers,
            ended: None,
            attempts: Vec::new(),
            unmet: plan.tasks.iter().map(unmet).collect(),
            ready: vec![None; tasks],
            of_task: vec![Vec::new(); tasks],
            due: vec![Micros::MIN; tasks],
            open: vec![None; tasks],
            dependents,
            running: 0,
            running_claude: 0,
            ends: Vec::new(),
            quota_until: None,
            polls: plan.votes.iter().map(|_| Poll::default()).collect(),
            workers: BTreeMap::new(),
            turns: Vec::new(),
            moments: Vec::new(),
            leases: Vec::new(),
            queued: HashMap::new(),
            held: HashMap::new(),
        }
    }

    /// The next event of the run's log.
    pub fn apply(&mut self, event: &Event) {
        self.now = time(&event.ts, self.now);
        let task = event.task.as_ref().and_then(|id| self.index.get(id).copied());
        match &event.body {
            Body::RunStarted(p) => {
                self.begun = Some((self.now, p.mono_ms));
                self.session.clone_from(&p.session);
                self.max_workers = p.max_workers;
                for i in 0..self.unmet.len() {
                    if self.unmet[i].is_empty() {
                        self.ready[i] = Some((self.now, event.seq, None));
                    }
                }
            }
            Body::WorkerStarted(_) => {
                if let Some(worker) = event.worker {
                    let lived = Stretch::new(self.now, self.now);
                    self.workers.entry(worker).or_insert(Life { worker, lived, lost: false, left: false });
                }
            }
            Body::WorkerExited(_) | Body::WorkerLost(_) => self.leave(event),
            Body::RunEnded(p) => self.ended = self.ended.take().or_else(|| Some((self.now, p.clone()))),
            Body::Decision(p) => {
                let held = i64::try_from(p.held_ms.saturating_mul(1000)).unwrap_or(0);
                let from = self.now.saturating_sub(held).max(self.begun.map_or(self.now, |(at, _)| at));
                let what = Told::Answered { answer: p.answer, reason: p.reason.clone(), tool: p.tool.clone() };
                self.turns.push(Turn { at: Stretch::new(from, self.now), hook: p.hook.clone(), what, task });
            }
            Body::Delivered(p) => {
                let what = Told::News { news: p.news.len(), signals: p.signals.len(), chars: p.chars };
                let at = Stretch::new(self.now, self.now);
                self.turns.push(Turn { at, hook: p.hook.clone(), what, task });
            }
            Body::Verdict(p) => {
                self.moment(event, task, format!("{}: {}", p.topic, p.result));
                let vote = self.plan.votes.iter().position(|v| v.topic == p.topic);
                if let Some(vote) = vote.filter(|&v| self.polls[v].decided.is_none()) {
                    self.polls[vote].decided = Some(self.now);
                    self.decide(vote, p.result, event.seq);
                }
            }
            Body::CancelRequested(p) => self.moment(event, task, p.by.clone()),
            Body::Adopted(p) => self.moment(event, task, p.session.clone()),
            Body::LogRepaired(p) => self.moment(event, task, format!("{} bytes cut off", p.bytes)),
            _ => {
                if let Some(i) = task {
                    self.of_a_task(i, event);
                }
            }
        }
    }

    fn of_a_task(&mut self, i: usize, event: &Event) {
        match &event.body {
            Body::Started(p) => {
                let number = event.attempt.unwrap_or(1);
                self.begin(i, event, number, p.span.clone());
            }
            Body::Checkpoint(p) => {
                let Some(a) = self.is_open(i, event) else { return };
                self.moment(event, Some(i), p.name.to_string());
                let seen = self.of_task[i].iter().any(|&a| self.attempts[a].checkpoints.iter().any(|c| c.1 == p.name));
                if !seen {
                    self.attempts[a].checkpoints.push((self.now, p.name.clone()));
                    self.meet(i, event.seq, a, |need| need.checkpoint() == Some(&p.name));
                }
            }
            Body::Vote(p) => {
                let Some(a) = self.is_open(i, event) else { return };
                let said =
                    p.decision.map_or("nothing", |choice| if choice == Choice::Proceed { "proceed" } else { "abort" });
                self.moment(event, Some(i), format!("{}: {said}", p.topic));
                let vote = self.plan.votes.iter().position(|v| v.topic == p.topic);
                if let Some(vote) = vote.filter(|&v| p.refused.is_none() && self.polls[v].decided.is_none()) {
                    self.polls[vote].last = Some((self.now, a));
                }
            }
            Body::Signal(p) => {
                let said = p.message.clone().unwrap_or_default();
                self.moment(event, Some(i), format!("{}:{} {said}", p.hook.name(), p.exit));
            }
            Body::SignalReleased(p) => self.moment(event, Some(i), p.reason.clone()),
            Body::Done(p) => {
                let Some(a) = self.is_open(i, event) else { return };
                let taken = p.from.is_some();
                self.end(i, a, event, Phase::Done, p.usage);
                (self.attempts[a].taken, self.attempts[a].line) = (taken, p.summary.clone());
                self.meet(i, event.seq, a, |need| matches!(need, Need::End(_)) || taken);
            }
            Body::Failed(p) => self.fail(i, event, p, Phase::Failed),
            Body::TimedOut(p) => self.fail(i, event, p, Phase::TimedOut),
            Body::Lost(p) => self.fail(i, event, p, Phase::Lost),
            Body::Cancelled(p) => self.fail(i, event, p, Phase::Cancelled),
            Body::Skipped(p) => self.moment(event, Some(i), p.because.clone()),
            _ => {}
        }
    }

    /// The open attempt that an event speaks of: the word of one that was given up changes nothing.
    fn is_open(&self, i: usize, event: &Event) -> Option<usize> {
        self.open[i].filter(|&a| event.attempt == Some(self.attempts[a].number))
    }

    fn moment(&mut self, event: &Event, task: Option<usize>, text: String) {
        self.moments.push(Moment { at: self.now, worker: event.worker, task, kind: event.body.name(), text });
    }

    fn leave(&mut self, event: &Event) {
        if let Some(life) = event.worker.and_then(|worker| self.workers.get_mut(&worker)).filter(|life| !life.left) {
            life.lived.to = self.now.max(life.lived.from);
            (life.left, life.lost) = (true, matches!(event.body, Body::WorkerLost(_)));
        }
    }

    /// The wall-clock time of a moment of the run's monotonic clock.
    fn wall(&self, mono_ms: u64) -> Option<Micros> {
        let (at, began) = self.begun?;
        at.checked_add(i64::try_from(mono_ms.checked_sub(began)?.checked_mul(1000)?).ok()?)
    }

    fn begin(&mut self, i: usize, event: &Event, number: u32, span: Option<String>) {
        if self.open[i].is_some() {
            return;
        }
        let (ready, why, cause) = match (self.of_task[i].last(), self.ready[i]) {
            (Some(&before), _) => {
                let before = &self.attempts[before];
                let due = self.due[i].clamp(before.ran.to, self.now.max(before.ran.to));
                (due, self.why_not(i, due, before.closed.unwrap_or(before.token)), None)
            }
            (None, Some((at, seq, cause))) => (at, self.why_not(i, at, seq), cause),
            (None, None) => (self.now, Why::ByHand, None),
        };
        let lived = Stretch::new(self.now, self.now);
        if let Some(worker) = event.worker {
            self.workers.entry(worker).or_insert(Life { worker, lived, lost: false, left: false });
        }
        let a = self.attempts.len();
        self.attempts.push(Attempt {
            task: i,
            number,
            worker: event.worker,
            token: event.seq,
            closed: None,
            span,
            ready: ready.min(self.now),
            why,
            cause,
            ran: lived,
            outcome: Phase::Running,
            again: false,
            refused: false,
            taken: false,
            line: None,
            usage: Usage::default(),
            leased: Vec::new(),
            checkpoints: Vec::new(),
        });
        self.of_task[i].push(a);
        self.open[i] = Some(a);
        self.running += 1;
        self.running_claude += usize::from(self.plan.tasks[i].claude().is_some());
    }

    /// Why task `i`, which could begin at `ready` with event `seq`, begins only now.
    fn why_not(&self, i: usize, ready: Micros, seq: u64) -> Why {
        let task = &self.plan.tasks[i];
        let claude = task.claude().is_some();
        if claude && self.quota_until.is_some_and(|until| until > ready && until <= self.now) {
            return Why::Quota;
        }
        let (max, max_claude) = (self.max_workers as usize, self.plan.limits.max_claude.unwrap_or(u32::MAX) as usize);
        for &(a, ran, clients) in self.ends.iter().rev().take(LOOK_BACK) {
            let other = &self.attempts[a];
            if other.closed.is_none_or(|closed| closed <= seq) {
                break;
            }
            if clash(&task.resources, &self.plan.tasks[other.task].resources) {
                return Why::Resource(a);
            }
            let is_client = self.plan.tasks[other.task].claude().is_some();
            if ran >= max || (claude && is_client && clients >= max_claude) {
                return Why::Slot(a);
            }
        }
        Why::Worker
    }

    fn end(&mut self, i: usize, a: usize, event: &Event, outcome: Phase, usage: Option<Usage>) {
        self.open[i] = None;
        self.ends.push((a, self.running, self.running_claude));
        self.running -= 1;
        self.running_claude -= usize::from(self.plan.tasks[i].claude().is_some());
        let attempt = &mut self.attempts[a];
        attempt.ran.to = self.now;
        attempt.closed = Some(event.seq);
        attempt.outcome = outcome;
        attempt.usage = usage.unwrap_or_default();
    }

    fn fail(&mut self, i: usize, event: &Event, p: &Ended, outcome: Phase) {
        let Some(a) = self.is_open(i, event) else {
            if event.attempt.is_none() {
                self.moment(event, Some(i), p.reason.clone());
            }
            return;
        };
        self.end(i, a, event, outcome, p.usage);
        self.attempts[a].line = Some(p.reason.clone());
        (self.attempts[a].again, self.attempts[a].refused) = (p.will_retry, p.quota_until.is_some());
        if let Some(until) = p.quota_until.and_then(|until| self.wall(until)) {
            self.quota_until = self.quota_until.max(Some(until));
        }
        if p.will_retry {
            self.due[i] = p.retry_at.and_then(|at| self.wall(at)).map_or(self.now, |at| at.max(self.now));
        } else if self.plan.tasks[i].allow_failure && outcome != Phase::Cancelled {
            self.meet(i, event.seq, a, |need| matches!(need, Need::End(_)));
        }
    }

    /// What needs something of task `i` that has happened now has one need less.
    fn meet(&mut self, i: usize, seq: u64, by: usize, is_met: impl Fn(&Need) -> bool) {
        let id = &self.plan.tasks[i].id;
        let Some(dependents) = self.dependents.get(id) else { return };
        for &d in dependents {
            let before = self.unmet[d].len();
            self.unmet[d].retain(|need| need.task() != Some(id) || !is_met(need));
            if before > 0 && self.unmet[d].len() < before && self.unmet[d].is_empty() && self.ready[d].is_none() {
                self.ready[d] = Some((self.now, seq, Some(Cause::Attempt(by))));
            }
        }
    }

    fn decide(&mut self, vote: usize, result: Choice, seq: u64) {
        let topic = &self.plan.votes[vote].topic;
        for d in 0..self.unmet.len() {
            let before = self.unmet[d].len();
            self.unmet[d].retain(|need| !matches!(need, Need::Verdict(t, c) if t == topic && *c == result));
            if self.unmet[d].len() < before && self.unmet[d].is_empty() && self.ready[d].is_none() {
                self.ready[d] = Some((self.now, seq, Some(Cause::Vote(vote))));
            }
        }
    }

    /// The next event of the project's log of leases, once the run's own is read.
    pub fn lease(&mut self, event: &Event) {
        self.lease_now = time(&event.ts, self.lease_now);
        match &event.body {
            Body::Queued(p) => {
                if let Some(claimed) = self.claimed(&p.holder, &p.resources) {
                    self.queued.insert(event.seq, claimed);
                }
            }
            Body::Acquire(p) => {
                if let Some(wait) = p.request.and_then(|request| self.queued.remove(&request)) {
                    self.close_lease(wait, false);
                }
                if let Some(claimed) = self.claimed(&p.holder, &p.resources) {
                    self.held.insert(p.token, claimed);
                }
            }
            Body::Release(p) | Body::Expired(p) if !p.refused => {
                if let Some(wait) = self.queued.remove(&p.token) {
                    self.close_lease(wait, false);
                }
                if let Some(held) = self.held.remove(&p.token) {
                    self.close_lease(held, true);
                }
            }
            _ => {}
        }
    }

    /// What is wanted or held, if it is by a task of this run, or by its session meanwhile.
    fn claimed(&self, holder: &Holder, resources: &[Resource]) -> Option<Claimed> {
        let own = holder.run.as_ref() == Some(&self.plan.run);
        let (from, to) = (self.begun?.0, self.ended.as_ref().map_or(Micros::MAX, |(at, _)| *at));
        let here = holder.session.is_some() && holder.session == self.session && (from..=to).contains(&self.lease_now);
        if !own && !here {
            return None;
        }
        let task = holder.task.as_ref().filter(|_| own).and_then(|id| self.index.get(id).copied());
        let of = |a: &&usize| holder.attempt == Some(self.attempts[**a].number);
        let attempt = task.and_then(|i| self.of_task[i].iter().find(of).copied());
        let resources = resources.iter().map(ToString::to_string).collect();
        Some(Claimed { at: self.lease_now, resources, task, attempt })
    }

    fn close_lease(&mut self, claimed: Claimed, held: bool) {
        // A lease is over with its holder, and said to be only once somebody else looks.
        let ended = claimed.attempt.map(|a| &self.attempts[a]).filter(|a| a.closed.is_some());
        let to = ended.map_or(self.lease_now, |attempt| self.lease_now.min(attempt.ran.to));
        let at = Stretch::new(claimed.at, to);
        if let Some(attempt) = claimed.attempt.filter(|_| !held).map(|a| &mut self.attempts[a]) {
            let last = attempt.leased.last().map_or(Micros::MIN, |s| s.to);
            let end = if attempt.closed.is_some() { attempt.ran.to } else { Micros::MAX };
            let inside = Stretch::new(at.from.max(attempt.ran.from).max(last), at.to.min(end));
            if at.to > inside.from && inside.length() > 0 {
                attempt.leased.push(inside);
            }
        }
        self.leases.push(Lease { resources: claimed.resources, task: claimed.task, held, at });
    }

    /// The timeline, of a run that is not over as of `until`; not before its last event.
    pub fn finish(mut self, until: Option<Micros>) -> Timeline {
        let from = self.begun.map_or(if self.now == Micros::MIN { 0 } else { self.now }, |(at, _)| at);
        let end = match &self.ended {
            Some((at, _)) => *at,
            None => until.unwrap_or(self.now).max(self.now),
        };
        let run = Stretch::new(from, end);
        self.lease_now = self.lease_now.max(run.to);
        for (held, all) in [(false, std::mem::take(&mut self.queued)), (true, std::mem::take(&mut self.held))] {
            let mut all: Vec<(u64, Claimed)> = all.into_iter().collect();
            all.sort_unstable_by_key(|(seq, _)| *seq);
            for (_, claimed) in all {
                self.close_lease(claimed, held);
            }
        }
        for attempt in self.attempts.iter_mut().filter(|a| a.closed.is_none()) {
            attempt.ran.to = run.to.max(attempt.ran.from);
        }
        for attempt in &mut self.attempts {
            let ran = attempt.ran;
            attempt.leased.iter_mut().for_each(|s| *s = Stretch::new(s.from.min(ran.to), s.to.min(ran.to)));
        }
        self.leases.sort_by_key(|lease| lease.at.from);
        for life in self.workers.values_mut().filter(|life| !life.left) {
            life.lived.to = run.to.max(life.lived.from);
        }
        let mut timeline = Timeline {
            run,
            ended: self.ended.as_ref().map(|(_, ended)| ended.clone()),
            attempts: self.attempts,
            workers: self.workers.values().cloned().collect(),
            turns: self.turns,
            moments: self.moments,
            leases: self.leases,
            votes: self.polls.iter().map(|poll| poll.last).collect(),
            path: Vec::new(),
            unlimited: None,
            max_workers: self.max_workers,
        };
        let known = path::Known { plan: self.plan, of_task: &self.of_task, polls: &self.polls, timeline: &timeline };
        (timeline.path, timeline.unlimited) = (known.path(), known.unlimited());
        timeline
    }
}

/// The time of an event, not before the one of the event before it.
fn time(ts: &str, before: Micros) -> Micros {
    DateTime::parse_from_rfc3339(ts).map_or(before, |t| t.timestamp_micros()).max(before)
}

/// Whether two tasks that hold these cannot run at the same time.
fn clash(ours: &[String], theirs: &[String]) -> bool {
    let overlap = |a: &String, b: &String| a == b || Resource::of_normal(a).overlaps(&Resource::of_normal(b));
    ours.iter().any(|a| theirs.iter().any(|b| overlap(a, b)))
}
