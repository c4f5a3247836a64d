//! The whole state of a run as a fold of its events over its plan: every task with its attempts, what is ready, what is
//! doomed. Workers and commands use it; hooks use only its [`View`]. Nothing here decides: that is `logic::sched`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::base::ids::{CheckpointName, TaskId, WorkerNo};
use crate::logic::view::{Phase, View};
use crate::model::event::{
    self, Awaited, Body, Decided, Decision, Done, Ended, Event, Process, ResultFile, Started, Usage,
};
use crate::model::plan::{Need, Plan};
use crate::model::signal::{BLOCK, INFORM};
use crate::model::vote::Choice;

/// The most warnings that are kept; then the oldest go.
const MAX_WARNINGS: usize = 16;

/// So many lost attempts of a task within a minute end it: something about it kills workers.
pub const MAX_CRASHES: usize = 3;

/// How often a task is refused for want of quota before that counts as its failure.
pub const MAX_REFUSALS: u32 = 10;

/// An attempt that has begun and has no outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// The sequence number of its `started` event: what a late word must match.
    pub token: u64,
    /// Who runs it.
    pub worker: WorkerNo,
    /// `CLOCK_MONOTONIC` in milliseconds when it began.
    pub since_ms: u64,
    /// Its process, once it exists.
    pub process: Option<Process>,
    /// What is kept of the budget for it, in US dollars.
    pub budget_usd: Option<f64>,
}

/// One task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskState {
    /// Where it stands.
    pub phase: Phase,
    /// Attempts begun.
    pub attempts: u32,
    /// Attempts that ended because the task said so, or took too long.
    pub failures: u32,
    /// When its last attempts were lost, `CLOCK_MONOTONIC` in milliseconds: no more of them than [`MAX_CRASHES`].
    pub crashes: Vec<u64>,
    /// The one that is open.
    pub open: Option<Attempt>,
    /// Whether it was done in another run, which this one continues.
    pub is_taken: bool,
    /// Needs that are not met.
    pub unmet: u32,
    /// The need that was met last, when there was nothing left to wait for.
    pub after: Option<On>,
    /// When a further attempt may begin, `CLOCK_MONOTONIC` in milliseconds.
    pub retry_at: u64,
    /// Who ran the last attempt.
    pub worker: Option<WorkerNo>,
    /// How far it says it is.
    pub percent: Option<u8>,
    /// Seconds left, as it estimated last.
    pub eta_s: Option<u64>,
    /// When it said so: wall-clock time, for display.
    pub told: Option<String>,
    /// The last thing it said it was at.
    pub note: Option<String>,
    /// Its line for the session: its own summary, or why it failed.
    pub line: Option<String>,
    /// Its result.
    pub result: Option<ResultFile>,
    /// Exit code of the last attempt.
    pub exit: Option<i32>,
    /// Duration of the last attempt in milliseconds.
    pub duration_ms: Option<u64>,
    /// Wall-clock time of the first start and of the last outcome, for display.
    pub started: Option<String>,
    /// See `started`.
    pub ended: Option<String>,
    /// The checkpoints that it has come to, with what it handed over last.
    pub checkpoints: BTreeMap<CheckpointName, Option<serde_json::Value>>,
    /// For how long calls of the session were held on behalf of it, in milliseconds.
    pub held_ms: u64,
    /// What all attempts cost together.
    pub usage: Usage,
    /// The same in US dollars as the budget counts it: an attempt that was killed before it could say what it has spent is
    /// taken to have spent all that it was given.
    pub charged_usd: f64,
    /// Attempts that the provider refused for want of quota: they are not the task's failures.
    pub refusals: u32,
}

impl TaskState {
    /// Before its first attempt, with so many needs that are not met.
    fn new(unmet: usize) -> TaskState {
        TaskState {
            phase: if unmet == 0 { Phase::Ready } else { Phase::Waiting },
            attempts: 0,
            failures: 0,
            crashes: Vec::new(),
            open: None,
            is_taken: false,
            unmet: u32::try_from(unmet).unwrap_or(u32::MAX),
            after: None,
            retry_at: 0,
            worker: None,
            percent: None,
            eta_s: None,
            told: None,
            note: None,
            line: None,
            result: None,
            exit: None,
            duration_ms: None,
            started: None,
            ended: None,
            checkpoints: BTreeMap::new(),
            held_ms: 0,
            usage: Usage::default(),
            charged_usd: 0.0,
            refusals: 0,
        }
    }

    /// Attempts begun that count as the task's own.
    pub fn tries(&self) -> u32 {
        self.attempts.saturating_sub(self.refusals)
    }
}

/// What a task can wait for while it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct On {
    /// This task, by its place in the plan.
    pub task: usize,
    /// Only this checkpoint of it, not its end.
    pub checkpoint: Option<CheckpointName>,
}

impl On {
    /// As plans and the log write it.
    pub fn name(&self, plan: &Plan) -> String {
        let id = &plan.tasks[self.task].id;
        self.checkpoint.as_ref().map_or_else(|| id.to_string(), |name| format!("{id}@{name}"))
    }

    /// Reads `build` or `build@compiled`, as `awaited` has it. `None`: nothing of this run that is known here.
    pub fn parse(state: &State, text: &str) -> Option<On> {
        let (task, checkpoint) = match text.split_once('@') {
            Some((task, name)) => (task, Some(CheckpointName::new(name).ok()?)),
            None => (text, None),
        };
        Some(On { task: state.index_of(&TaskId::new(task).ok()?)?, checkpoint })
    }
}

/// An attempt that waits for something of its own run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waits {
    /// Its task.
    pub task: usize,
    /// For what.
    pub on: On,
}

/// The most of them that are known at once.
const MAX_WAITS: usize = 10_000;

/// For how long the session was held on behalf of a run, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Held {
    /// By Stop.
    pub stop_ms: u64,
    /// Its calls, before they ran.
    pub calls_ms: u64,
}

/// What a task has said to people only: a signal with another exit code than those that mean something to the session.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// The sequence number of the event.
    pub seq: u64,
    /// Who says it.
    pub task: TaskId,
    /// In which worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerNo>,
    /// The exit code.
    pub exit: i32,
    /// The task's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// How often it has said so.
    pub count: u64,
}

/// A hook of the session that had something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookSeen {
    /// Which, as the client calls it.
    pub hook: String,
    /// When: wall-clock time, for display.
    pub ts: String,
}

/// Who waits for a task.
#[derive(Debug, Clone)]
struct Dependent {
    task: usize,
    /// For this checkpoint only, not for the end.
    checkpoint: Option<CheckpointName>,
}

/// What has made a task impossible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A task, by its place in the plan, that it needs.
    Task(usize),
    /// What came out of a vote, by its place in the plan.
    Vote(usize),
}

/// A run.
#[derive(Debug, Clone)]
pub struct State {
    /// What hooks know.
    pub view: View,
    /// Tasks in the order of the plan.
    pub tasks: Vec<TaskState>,
    /// Tasks that can start, best first: by priority, then by their place in the plan.
    pub ready: BTreeSet<(i64, usize)>,
    /// The same for `claude` tasks, for which more must be free than a worker.
    pub ready_claude: BTreeSet<(i64, usize)>,
    /// The same for tasks with resources, which start only if those are free; `claude` tasks among them.
    pub ready_leased: BTreeSet<(i64, usize)>,
    /// Tasks that wait for their next attempt, soonest first.
    pub retrying: BTreeSet<(u64, usize)>,
    /// Tasks that can never start and are not skipped yet, with what made it so.
    pub doomed: BTreeMap<usize, Cause>,
    /// Tasks that somebody wants cancelled and that are not final.
    pub cancels: BTreeSet<usize>,
    /// Attempts that are open.
    pub running: BTreeSet<usize>,
    /// Which of them wait for something of the run, by the number with which that began.
    pub waits: BTreeMap<u64, Waits>,
    /// The same for what comes out of votes: the task, and the vote, each by its place in the plan.
    pub vote_waits: BTreeMap<u64, (usize, usize)>,
    /// Tasks that have not begun and are not final.
    pub unstarted: usize,
    /// `CLOCK_MONOTONIC` in milliseconds when the run began.
    pub since_ms: u64,
    /// For how long the session was held, in milliseconds.
    pub held: Held,
    /// What tasks have warned of, oldest first, the last of them; and how many there were in all.
    pub warnings: Vec<Warning>,
    /// See `warnings`.
    pub warned: u64,
    /// The last hook of its session that has left something in the log.
    pub hook: Option<HookSeen>,
    /// Wall-clock time of the first and of the last event, for display.
    pub first_ts: String,
    /// See `first_ts`.
    pub last_ts: String,
    /// W3C trace id.
    pub trace: String,
    /// Tasks at the same time, at most.
    pub max_workers: u32,
    /// US dollars spent.
    pub spent_usd: f64,
    /// The same as the budget counts it, see [`TaskState::charged_usd`].
    pub charged_usd: f64,
    /// When the last attempt of a `claude` task began, `CLOCK_MONOTONIC` in milliseconds.
    pub claude_since_ms: Option<u64>,
    /// No `claude` task starts before: the provider's quota is used up. `CLOCK_MONOTONIC` in milliseconds, 0 for never.
    pub quota_until_ms: u64,
    /// How often in a row it was found used up.
    pub quota_strikes: u32,
    /// What tasks hold while they run, in its normal form; those that hold nothing are not in it.
    pub resources: BTreeMap<usize, Vec<String>>,
    index: HashMap<TaskId, usize>,
    dependents: Vec<Vec<Dependent>>,
    /// Per vote the tasks that need it to come out so.
    vote_dependents: Vec<Vec<(usize, Choice)>>,
    /// Per task the votes in which it is a voter.
    votes_of: HashMap<usize, Vec<usize>>,
    priorities: Vec<i64>,
    tolerant: Vec<bool>,
    claude: Vec<bool>,
}

impl State {
    /// The state before the first event.
    pub fn new(plan: &Plan) -> State {
        let index: HashMap<TaskId, usize> = plan.tasks.iter().enumerate().map(|(i, t)| (t.id.clone(), i)).collect();
        let mut dependents = vec![Vec::new(); plan.tasks.len()];
        let mut vote_dependents = vec![Vec::new(); plan.votes.len()];
        let mut votes_of: HashMap<usize, Vec<usize>> = HashMap::new();
        for (vote, spec) in plan.votes.iter().enumerate() {
            for i in spec.voters.iter().filter_map(|voter| index.get(voter)) {
                votes_of.entry(*i).or_default().push(vote);
            }
        }
        let mut tasks = Vec::with_capacity(plan.tasks.len());
        let (mut ready, mut ready_claude, mut ready_leased) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut resources = BTreeMap::new();
        // Higher priority first, and the set's smallest element is taken first.
        let priorities: Vec<i64> = plan.tasks.iter().map(|t| -i64::from(t.priority)).collect();
        for (i, task) in plan.tasks.iter().enumerate() {
            let known = |need: &Need| Some((index.get(need.task()?).copied()?, need.checkpoint().cloned()));
            let needs: BTreeSet<(usize, Option<CheckpointName>)> = task.needs.iter().filter_map(known).collect();
            for (need, checkpoint) in &needs {
                dependents[*need].push(Dependent { task: i, checkpoint: checkpoint.clone() });
            }
            if !task.resources.is_empty() {
                resources.insert(i, task.resources.clone());
            }
            let verdict = |need: &Need| match need {
                Need::Verdict(topic, choice) => Some((plan.votes.iter().position(|v| v.topic == *topic)?, *choice)),
                Need::End(_) | Need::Checkpoint(..) => None,
            };
            let verdicts: BTreeSet<(usize, Choice)> = task.needs.iter().filter_map(verdict).collect();
            for (vote, choice) in &verdicts {
                vote_dependents[*vote].push((i, *choice));
            }
            let unmet = needs.len() + verdicts.len();
            if unmet == 0 {
                let queue = match task.claude() {
                    _ if !task.resources.is_empty() => &mut ready_leased,
                    Some(_) => &mut ready_claude,
                    None => &mut ready,
                };
                queue.insert((priorities[i], i));
            }
            tasks.push(TaskState::new(unmet));
        }
        State {
            view: View::new(plan),
            unstarted: tasks.len(),
            tasks,
            ready,
            ready_claude,
            ready_leased,
            retrying: BTreeSet::new(),
            doomed: BTreeMap::new(),
            cancels: BTreeSet::new(),
            running: BTreeSet::new(),
            waits: BTreeMap::new(),
            vote_waits: BTreeMap::new(),
            since_ms: 0,
            held: Held::default(),
            warnings: Vec::new(),
            warned: 0,
            hook: None,
            first_ts: String::new(),
            last_ts: String::new(),
            trace: String::new(),
            max_workers: plan.limits.max_workers,
            spent_usd: 0.0,
            charged_usd: 0.0,
            claude_since_ms: None,
            quota_until_ms: 0,
            quota_strikes: 0,
            resources,
            index,
            dependents,
            vote_dependents,
            votes_of,
            priorities,
            tolerant: plan.tasks.iter().map(|t| t.allow_failure).collect(),
            claude: plan.tasks.iter().map(|t| t.claude().is_some()).collect(),
        }
    }

    /// A task's place in the plan.
    pub fn index_of(&self, task: &TaskId) -> Option<usize> {
        self.index.get(task).copied()
    }

    /// The tasks that need task `i` directly, and have not got what they need of it by a checkpoint.
    pub fn dependents_of(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let met =
            move |d: &&Dependent| d.checkpoint.as_ref().is_some_and(|c| self.tasks[i].checkpoints.contains_key(c));
        self.dependents[i].iter().filter(move |d| !met(d)).map(|d| d.task)
    }

    /// The tasks that need task `i`, a checkpoint of it, or what comes out of a vote of it, directly.
    pub fn all_dependents_of(&self, i: usize) -> impl Iterator<Item = usize> + '_ {
        let votes = self.votes_of.get(&i).into_iter().flatten();
        let by_vote = votes.flat_map(|vote| self.vote_dependents[*vote].iter().map(|(d, _)| *d));
        self.dependents[i].iter().map(|d| d.task).chain(by_vote)
    }

    /// Whether what `need` names has happened.
    pub fn is_met(&self, plan: &Plan, need: &Need) -> bool {
        if let Need::Verdict(topic, choice) = need {
            let verdict = self.view.poll(topic).and_then(|poll| poll.verdict.as_ref());
            return verdict.is_some_and(|v| v.result == *choice);
        }
        let Some(i) = need.task().and_then(|task| self.index_of(task)) else { return false };
        let task = &self.tasks[i];
        if let Some(name) = need.checkpoint() {
            return task.checkpoints.contains_key(name) || task.is_taken;
        }
        let failed = matches!(task.phase, Phase::Failed | Phase::TimedOut | Phase::Lost);
        task.phase == Phase::Done || (failed && plan.tasks[i].allow_failure)
    }

    /// Whether task `i` starts a headless client.
    pub fn is_claude(&self, i: usize) -> bool {
        self.claude[i]
    }

    /// `claude` tasks that run.
    pub fn running_claude(&self) -> usize {
        self.running.iter().filter(|&&i| self.claude[i]).count()
    }

    /// Applies the next event. Events must come in the order of the log, each once.
    pub fn apply(&mut self, event: &Event) {
        let is_first = |p: &Decided| self.view.poll(&p.topic).is_some_and(|poll| poll.verdict.is_none());
        let decides = matches!(&event.body, Body::Verdict(p) if is_first(p));
        self.view.apply(event);
        self.last_ts.clone_from(&event.ts);
        self.see_hook(event);
        if let Body::RunStarted(p) = &event.body {
            self.first_ts.clone_from(&event.ts);
            self.since_ms = p.mono_ms;
            self.trace.clone_from(&p.trace);
            self.max_workers = p.max_workers;
            return;
        }
        if let Body::Decision(p) = &event.body {
            self.held(event, p);
            return;
        }
        if let Body::Verdict(p) = &event.body
            && decides
        {
            self.settle_vote(p);
            return;
        }
        let Some(i) = event.task.as_ref().and_then(|t| self.index_of(t)) else { return };
        match &event.body {
            Body::Started(p) => self.begin(i, event, p),
            Body::Spawned(process) => {
                if let Some(open) = self.open_attempt(i, event) {
                    open.process = Some(process.clone());
                }
            }
            Body::Progress(p) => {
                if self.open_attempt(i, event).is_some() {
                    let task = &mut self.tasks[i];
                    if p.percent.is_some() || p.eta_s.is_some() {
                        task.told = Some(event.ts.clone());
                    }
                    task.percent = p.percent.or(task.percent);
                    task.eta_s = if p.percent.is_some() { p.eta_s } else { p.eta_s.or(task.eta_s) };
                    if p.note.is_some() {
                        task.note.clone_from(&p.note);
                    }
                    if p.summary.is_some() {
                        task.line.clone_from(&p.summary);
                    }
                }
            }
            Body::Checkpoint(p) => {
                if self.open_attempt(i, event).is_some() {
                    let new = self.tasks[i].checkpoints.insert(p.name.clone(), p.data.clone()).is_none();
                    if new {
                        self.satisfy_dependents(i, |checkpoint| checkpoint == Some(&p.name));
                    }
                }
            }
            Body::Done(p) => self.succeed(i, event, p),
            Body::Failed(p) => self.end_attempt(i, event, p, Phase::Failed),
            Body::TimedOut(p) => self.end_attempt(i, event, p, Phase::TimedOut),
            Body::Lost(p) => self.end_attempt(i, event, p, Phase::Lost),
            Body::Cancelled(p) => self.end_attempt(i, event, p, Phase::Cancelled),
            Body::Skipped(p) => {
                self.tasks[i].line = Some(p.because.clone());
                self.close(i, event, Phase::Skipped);
                self.doom_dependents(i);
            }
            Body::CancelRequested(_) => {
                if !self.tasks[i].phase.is_final() {
                    self.cancels.insert(i);
                }
            }
            Body::Awaited(p) => self.awaited(i, event, p),
            Body::Signal(p) if !matches!(p.exit, INFORM | BLOCK) => self.warn(i, event, p),
            Body::RunStarted(_)
            | Body::WorkerStarted(_)
            | Body::WorkerExited(_)
            | Body::WorkerLost(_)
            | Body::Signal(_)
            | Body::SignalReleased(_)
            | Body::Delivered(_)
            | Body::Decision(_)
            | Body::Observed(_)
            | Body::Adopted(_)
            | Body::LogRepaired(_)
            | Body::RunEnded(_)
            | Body::Vote(_)
            | Body::Verdict(_)
            | Body::Opened(_)
            | Body::Queued(_)
            | Body::Acquire(_)
            | Body::Renew(_)
            | Body::Release(_)
            | Body::Expired(_)
            | Body::Unknown => {}
        }
    }

    /// A hook writes nothing where it has nothing to do, so that this is the last that had.
    fn see_hook(&mut self, event: &Event) {
        let hook = match &event.body {
            Body::RunStarted(p) if p.session.is_some() && p.prompt_id.is_some() => "UserPromptSubmit",
            Body::Delivered(p) => p.hook.as_str(),
            Body::Decision(p) => p.hook.as_str(),
            Body::Observed(p) => p.hook.as_str(),
            _ => return,
        };
        self.hook = Some(HookSeen { hook: hook.to_owned(), ts: event.ts.clone() });
    }

    /// What says the same as the last warning of that task only counts.
    fn warn(&mut self, i: usize, event: &Event, p: &event::Signal) {
        if self.open_attempt(i, event).is_none() {
            return;
        }
        let count = p.more.saturating_add(1);
        self.warned = self.warned.saturating_add(count);
        let Some(task) = event.task.clone() else { return };
        let says = |w: &&mut Warning| w.task == task && w.exit == p.exit && w.message == p.message;
        if let Some(same) = self.warnings.iter_mut().find(says) {
            (same.seq, same.count) = (event.seq, same.count.saturating_add(count));
            return;
        }
        if self.warnings.len() == MAX_WARNINGS {
            self.warnings.remove(0);
        }
        let (worker, message) = (event.worker, p.message.clone());
        self.warnings.push(Warning { seq: event.seq, task, worker, exit: p.exit, message, count });
    }

    /// Who waits does so until it says otherwise, or its attempt has ended.
    fn awaited(&mut self, i: usize, event: &Event, p: &Awaited) {
        if p.done {
            self.waits.remove(&p.id);
            self.vote_waits.remove(&p.id);
            return;
        }
        let topic = p.on.as_deref().and_then(|on| on.strip_suffix('?'));
        if let Some(vote) = topic.and_then(|topic| self.view.polls.iter().position(|p| p.topic.as_str() == topic)) {
            if self.open_attempt(i, event).is_some() && self.vote_waits.len() < MAX_WAITS {
                self.vote_waits.insert(p.id, (i, vote));
            }
            return;
        }
        let on = p.on.as_deref().and_then(|on| On::parse(self, on));
        if let Some(on) = on.filter(|_| self.open_attempt(i, event).is_some() && self.waits.len() < MAX_WAITS) {
            self.waits.insert(p.id, Waits { task: i, on });
        }
    }

    /// A call was held, or Stop. A task on whose behalf a call was held is named; a merge waits for several, and Stop for all.
    fn held(&mut self, event: &Event, p: &Decision) {
        let sum = if p.hook == "Stop" { &mut self.held.stop_ms } else { &mut self.held.calls_ms };
        *sum = sum.saturating_add(p.held_ms);
        if let Some(i) = event.task.as_ref().and_then(|t| self.index_of(t)) {
            let task = &mut self.tasks[i];
            task.held_ms = task.held_ms.saturating_add(p.held_ms);
        }
    }

    fn begin(&mut self, i: usize, event: &Event, p: &Started) {
        self.leave_queues(i);
        if self.claude[i] {
            self.claude_since_ms = Some(p.mono_ms);
        }
        let task = &mut self.tasks[i];
        let number = event.attempt.unwrap_or(task.attempts.saturating_add(1));
        task.phase = Phase::Running;
        task.attempts = number;
        task.worker = event.worker;
        task.percent = None;
        task.eta_s = None;
        task.told = None;
        task.note = None;
        task.line = None;
        if task.started.is_none() {
            task.started = Some(event.ts.clone());
        }
        task.open = Some(Attempt {
            number,
            token: event.seq,
            worker: event.worker.unwrap_or(WorkerNo(0)),
            since_ms: p.mono_ms,
            process: None,
            budget_usd: p.budget_usd,
        });
        self.running.insert(i);
    }

    fn succeed(&mut self, i: usize, event: &Event, p: &Done) {
        if self.open_attempt(i, event).is_none() {
            return;
        }
        if self.open_since(i).is_some_and(|since| self.claude[i] && since >= self.quota_until_ms) {
            self.quota_strikes = 0;
        }
        let task = &mut self.tasks[i];
        task.exit = Some(p.exit);
        task.duration_ms = Some(p.duration_ms);
        task.result.clone_from(&p.result);
        task.line.clone_from(&p.summary);
        self.charge(i, p.usage, true);
        self.close(i, event, Phase::Done);
        self.tasks[i].is_taken = p.from.is_some();
        self.release_dependents(i);
    }

    /// The attempt an event speaks of, if it is the one that is open: the word of an attempt that was given up changes
    /// nothing.
    fn open_attempt(&mut self, i: usize, event: &Event) -> Option<&mut Attempt> {
        self.tasks[i].open.as_mut().filter(|open| event.attempt == Some(open.number))
    }

    fn open_since(&self, i: usize) -> Option<u64> {
        self.tasks[i].open.as_ref().map(|open| open.since_ms)
    }

    /// Takes note that the quota is used up. Of several attempts that began before the first of them was refused, only
    /// that one counts.
    fn run_dry(&mut self, i: usize, until_ms: u64) {
        if self.open_since(i).is_some_and(|since| since >= self.quota_until_ms) {
            self.quota_strikes = self.quota_strikes.saturating_add(1);
        }
        self.quota_until_ms = self.quota_until_ms.max(until_ms);
        self.tasks[i].refusals = self.tasks[i].refusals.saturating_add(1);
    }

    fn end_attempt(&mut self, i: usize, event: &Event, p: &Ended, phase: Phase) {
        let was_open = self.open_attempt(i, event).is_some();
        // A task that never began can be cancelled; everything else speaks of an open attempt.
        if !was_open && (phase != Phase::Cancelled || event.attempt.is_some() || self.tasks[i].phase.is_final()) {
            return;
        }
        if let Some(until) = p.quota_until.filter(|_| was_open) {
            self.run_dry(i, until);
        }
        let task = &mut self.tasks[i];
        task.exit = p.exit;
        task.duration_ms = p.duration_ms;
        task.line = Some(p.reason.clone());
        task.result.clone_from(&p.result);
        match phase {
            Phase::Lost => {
                task.crashes.push(p.mono_ms.unwrap_or(0));
                if task.crashes.len() > MAX_CRASHES {
                    task.crashes.remove(0);
                }
            }
            // What the provider refuses is not the task's failure, unless that does not end.
            Phase::Failed if p.quota_until.is_some() && task.refusals <= MAX_REFUSALS => {}
            Phase::Failed | Phase::TimedOut => task.failures = task.failures.saturating_add(1),
            _ => {}
        }
        // One that never had a process has spent nothing.
        let never_ran = phase == Phase::Failed && p.exit.is_none() && p.signal.is_none();
        self.charge(i, p.usage, never_ran);
        if p.will_retry {
            self.leave_queues(i);
            let task = &mut self.tasks[i];
            task.phase = Phase::Retrying;
            task.open = None;
            task.retry_at = p.retry_at.unwrap_or(0);
            let at = task.retry_at;
            self.retrying.insert((at, i));
            self.unstarted += 1;
            return;
        }
        self.close(i, event, phase);
        if self.tolerant[i] && phase != Phase::Cancelled {
            self.release_dependents(i);
        } else {
            self.doom_dependents(i);
        }
    }

    /// Adds up what an attempt has cost. `told`: it had the time to say so.
    fn charge(&mut self, i: usize, usage: Option<Usage>, told: bool) {
        let task = &mut self.tasks[i];
        let said = usage.map_or(0.0, |u| u.cost_usd);
        let silent = !told && usage.is_none_or(|u| u.turns > 0 && u.cost_usd <= 0.0);
        let kept = task.open.as_ref().and_then(|open| open.budget_usd);
        let charged = kept.filter(|_| silent).unwrap_or(said);
        task.charged_usd += charged;
        self.charged_usd += charged;
        if let Some(u) = usage {
            let sum = &mut self.tasks[i].usage;
            sum.turns = sum.turns.saturating_add(u.turns);
            sum.tokens = sum.tokens.saturating_add(u.tokens);
            sum.cost_usd += u.cost_usd;
            self.spent_usd += u.cost_usd;
        }
    }

    fn close(&mut self, i: usize, event: &Event, phase: Phase) {
        self.leave_queues(i);
        self.doomed.remove(&i);
        self.cancels.remove(&i);
        let task = &mut self.tasks[i];
        task.phase = phase;
        task.open = None;
        task.percent = None;
        task.eta_s = None;
        task.ended = Some(event.ts.clone());
    }

    /// Where task `i` is found while it is ready.
    fn queue_of(&mut self, i: usize) -> &mut BTreeSet<(i64, usize)> {
        if self.resources.contains_key(&i) {
            &mut self.ready_leased
        } else if self.claude[i] {
            &mut self.ready_claude
        } else {
            &mut self.ready
        }
    }

    fn leave_queues(&mut self, i: usize) {
        let task = &self.tasks[i];
        match task.phase {
            Phase::Running => {
                self.running.remove(&i);
                self.waits.retain(|_, w| w.task != i);
                self.vote_waits.retain(|_, (task, _)| *task != i);
            }
            Phase::Ready => {
                let key = (self.priorities[i], i);
                self.queue_of(i).remove(&key);
                self.unstarted -= 1;
            }
            Phase::Retrying => {
                self.retrying.remove(&(task.retry_at, i));
                self.unstarted -= 1;
            }
            Phase::Waiting => self.unstarted -= 1,
            Phase::Done | Phase::Failed | Phase::TimedOut | Phase::Cancelled | Phase::Lost | Phase::Skipped => {}
        }
    }

    /// A task has come to its end as those hoped that wait for it. Whoever waits for a checkpoint that it did not come to waits
    /// in vain; of a task that another run has done, nobody can tell any more what it came to.
    fn release_dependents(&mut self, i: usize) {
        self.satisfy_dependents(i, |checkpoint| checkpoint.is_none());
        if self.tasks[i].is_taken {
            self.satisfy_dependents(i, |checkpoint| checkpoint.is_some());
            return;
        }
        let came = &self.tasks[i].checkpoints;
        let vain = self.dependents[i].iter().filter(|d| d.checkpoint.as_ref().is_some_and(|c| !came.contains_key(c)));
        for d in vain.map(|d| d.task) {
            if !self.tasks[d].phase.is_final() {
                self.doomed.entry(d).or_insert(Cause::Task(i));
            }
        }
    }

    /// A vote is decided: who needs this outcome has it, who needs the other one never will.
    fn settle_vote(&mut self, p: &Decided) {
        let Some(vote) = self.view.polls.iter().position(|poll| poll.topic == p.topic) else { return };
        for k in 0..self.vote_dependents.get(vote).map_or(0, Vec::len) {
            let (d, choice) = self.vote_dependents[vote][k];
            if choice == p.result {
                self.satisfy(d);
            } else if !self.tasks[d].phase.is_final() {
                self.doomed.entry(d).or_insert(Cause::Vote(vote));
            }
        }
    }

    fn satisfy_dependents(&mut self, i: usize, which: impl Fn(Option<&CheckpointName>) -> bool) {
        for k in 0..self.dependents[i].len() {
            if !which(self.dependents[i][k].checkpoint.as_ref()) {
                continue;
            }
            let Dependent { task: d, checkpoint } = self.dependents[i][k].clone();
            if self.satisfy(d) {
                self.tasks[d].after = Some(On { task: i, checkpoint });
            }
        }
    }

    /// Something that task `d` needs has happened. Returns whether it was the last.
    fn satisfy(&mut self, d: usize) -> bool {
        let task = &mut self.tasks[d];
        task.unmet = task.unmet.saturating_sub(1);
        let is_ready = task.unmet == 0 && task.phase == Phase::Waiting;
        if is_ready {
            task.phase = Phase::Ready;
            let key = (self.priorities[d], d);
            self.queue_of(d).insert(key);
        }
        is_ready
    }

    fn doom_dependents(&mut self, i: usize) {
        let doomed: Vec<usize> = self.dependents_of(i).filter(|&d| !self.tasks[d].phase.is_final()).collect();
        for d in doomed {
            self.doomed.entry(d).or_insert(Cause::Task(i));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::simulation::{plan, task};
    use crate::model::event::Draft;

    #[test]
    fn what_tasks_warn_of_is_kept_counted_and_bounded() {
        let plan = plan(vec![task("a")]);
        let id = &plan.tasks[0].id;
        let mut state = State::new(&plan);
        let tell = |state: &mut State, draft: Draft| {
            let seq = state.view.seq + 1;
            state.apply(&Event::new(draft, seq, "2026-01-02T03:04:05.000000Z".into()));
        };
        let warning = |exit, text: String| {
            let hook = crate::model::signal::Addressee::Stop;
            Body::Signal(event::Signal {
                id: 0,
                hook,
                exit,
                message: Some(text),
                data: None,
                matcher: None,
                own: false,
                sticky: false,
                expires: None,
                more: 1,
            })
        };
        let say = |state: &mut State, body| tell(state, Draft::attempt(Some(WorkerNo(1)), id, 1, body));
        say(&mut state, warning(7, "too early".into()));
        say(&mut state, Body::Started(Started::default()));
        say(&mut state, warning(INFORM, "no warning".into()));
        say(&mut state, warning(7, "slow disk".into()));
        say(&mut state, warning(7, "slow disk".into()));
        assert_eq!((state.warnings.len(), state.warnings[0].count, state.warned), (1, 4, 4), "{:?}", state.warnings);
        for n in 0..MAX_WARNINGS {
            say(&mut state, warning(7, format!("number {n}")));
        }
        assert_eq!((state.warnings.len(), state.warned), (MAX_WARNINGS, 4 + 2 * MAX_WARNINGS as u64));
        assert_eq!(state.warnings[0].message.as_deref(), Some("number 0"), "the oldest goes first");
    }

    #[test]
    fn the_largest_numbers_that_a_line_can_hold_are_no_fault() {
        let plan = plan(vec![task("a")]);
        let id = &plan.tasks[0].id;
        let process = || Process { pid: 1, start_time: 1, boot_id: String::new() };
        let started =
            || Body::Started(Started { cwd: "/".into(), title: None, mono_ms: u64::MAX, ..Started::default() });
        let usage = Usage { turns: u64::MAX, tokens: u64::MAX, cost_usd: 1.0 };
        let failed = || {
            Body::Failed(Ended { will_retry: true, retry_at: Some(u64::MAX), usage: Some(usage), ..Ended::default() })
        };
        let mut state = State::new(&plan);
        for draft in [
            Draft::worker(WorkerNo(u32::MAX), Body::WorkerStarted(process())),
            Draft::worker(WorkerNo(3), Body::WorkerStarted(process())),
            Draft::attempt(None, id, u32::MAX, started()),
            Draft::attempt(None, id, u32::MAX, failed()),
            Draft::task(id, started()),
            Draft::attempt(None, id, u32::MAX, failed()),
        ] {
            let seq = state.view.seq + 1;
            state.apply(&Event::new(draft, seq, String::new()));
        }
        let task = &state.tasks[0];
        assert_eq!((task.phase, task.attempts, task.usage.tokens), (Phase::Retrying, u32::MAX, u64::MAX));
        assert_eq!(state.view.last_worker, u32::MAX);
    }
}
