//! The part of a run's state that hooks need: live claims, open attempts, undelivered news, merges, live workers. It is a
//! fold of its own, so that a hook can take it from the index and apply only the events that came after; its size is
//! bounded by what is live, not by the length of the log. The whole state, with every task, is `logic::state`.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::base::ids::{CheckpointName, RunId, SessionId, TaskId, WorkerNo};
use crate::base::text;
use crate::logic::signals::{Now, Signal};
use crate::logic::vote::Poll;
use crate::model::event::{
    Answer, Awaited, Body, Checkpoint, Delivered, Ended, Event, Head, Process, RunEnded, Started, Told, Verdict,
};
use crate::model::plan::{Conductor, Merge, OnClaimed, Plan};
use crate::model::resource::Resource;
use crate::model::signal::{Addressee, Right};

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Something it needs is not there yet.
    Waiting,
    /// It can start.
    Ready,
    /// An attempt is open.
    Running,
    /// An attempt failed, a further one comes.
    Retrying,
    /// It succeeded.
    Done,
    /// It failed for good.
    Failed,
    /// Its last attempt was ended at its time limit.
    TimedOut,
    /// It was cancelled.
    Cancelled,
    /// The worker of its last attempt died.
    Lost,
    /// It will never start.
    Skipped,
}

impl Phase {
    /// Whether nothing can happen to the task any more.
    pub fn is_final(self) -> bool {
        match self {
            Phase::Waiting | Phase::Ready | Phase::Running | Phase::Retrying => false,
            Phase::Done | Phase::Failed | Phase::TimedOut | Phase::Cancelled | Phase::Lost | Phase::Skipped => true,
        }
    }

    /// The word for people and for JSON.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Waiting => "waiting",
            Phase::Ready => "ready",
            Phase::Running => "running",
            Phase::Retrying => "retrying",
            Phase::Done => "done",
            Phase::Failed => "failed",
            Phase::TimedOut => "timed_out",
            Phase::Cancelled => "cancelled",
            Phase::Lost => "lost",
            Phase::Skipped => "skipped",
        }
    }
}

/// What hooks know of one task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Brief {
    /// What people call it: its title or item, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Where it stands.
    pub phase: Phase,
    /// Who has it, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerNo>,
    /// The attempt that is open, or was last; 0 before the first.
    #[serde(default)]
    pub attempt: u32,
    /// `CLOCK_MONOTONIC` in milliseconds when that attempt began.
    #[serde(default)]
    pub since_ms: u64,
    /// How far it says it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Seconds left, as it estimated last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// How long it usually takes, by earlier runs, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<u64>,
    /// Its line for the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Its result, relative to the run's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// What it claims.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<String>,
    /// Whether it stays known after its end, because a merge needs it or a Read may be redirected to its result.
    #[serde(default)]
    pub keep: bool,
    /// Whether the session must hear that it failed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub critical: bool,
}

impl Brief {
    /// How far the task is, as it says now. With a new percentage an older estimate no longer counts.
    fn tell(&mut self, percent: Option<u8>, eta_s: Option<u64>) {
        self.eta_s = if percent.is_some() { eta_s } else { eta_s.or(self.eta_s) };
        self.percent = percent.or(self.percent);
    }
}

/// Something that the session has not been told yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct News {
    /// The event that made it.
    pub seq: u64,
    /// What happened.
    pub what: Happened,
    /// To which task; the run as a whole where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// What people call the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// By which worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerNo>,
    /// The task's own line, or why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// The result, relative to the run's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// The checkpoint that it has come to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointName>,
}

/// A task that has begun because another one was done or came to a checkpoint. That is told beside news, and is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOff {
    /// The event that made it.
    pub seq: u64,
    /// The task that has handed over.
    pub from: TaskId,
    /// The task that has begun.
    pub to: TaskId,
}

/// Kinds of news.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// A task failed, timed out, was lost.
    Failed,
    /// A vote is decided.
    Decided,
    /// A task succeeded.
    Done,
    /// A task has come to a checkpoint that the session is to know of.
    Reached,
    /// A task was skipped.
    Skipped,
    /// A task was cancelled.
    Cancelled,
    /// The run is over.
    Ended,
}

/// A merge of the plan and what became of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MergeState {
    /// The rule.
    pub rule: Merge,
    /// It was applied; it applies once.
    #[serde(default)]
    pub used: bool,
    /// It was refused once because a need failed; the same call passes now.
    #[serde(default)]
    pub waived: bool,
    /// Another hook's rewrite won over it.
    #[serde(default)]
    pub lost: bool,
}

/// A rewrite whose effect is to be compared with what ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// The client's id of the call.
    pub tool_use_id: String,
    /// Hash of the input as it should have run.
    pub input_sha256: String,
    /// The merge it came from.
    pub merge: usize,
}

/// How a call was answered before it ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The client's id of the call.
    pub tool_use_id: String,
    /// On whose behalf, as refusals are counted.
    pub key: String,
    /// How.
    pub answer: Answer,
}

/// Somebody who waits for a call of the session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaiting {
    /// Which.
    pub id: u64,
    /// Which calls, as `model::matcher` reads it.
    pub matcher: String,
    /// The attempt that waits, and ends the waiting with its own end; nobody's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<(TaskId, u32)>,
}

/// The most hand-offs that are kept until there is news; then the oldest go.
const MAX_HAND_OFFS: usize = 16;

/// The most checkpoints that are kept for the session; then the oldest go.
const MAX_REACHED: usize = 32;

/// The longest text of what a checkpoint hands over that is kept for the session, in characters.
const MAX_HANDED: usize = 300;

/// A resource that calls of the session use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guarded {
    /// Which.
    pub resource: Resource,
    /// The calls, as `model::matcher` reads them; those on a file are meant by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
}

/// What of a plan's resources calls of the session may use: what it names calls of, and the files that its tasks hold.
fn guarded(plan: &Plan) -> Vec<Guarded> {
    let named = plan.resources.iter().map(|(name, used)| (name, used.tools.clone()));
    let files = plan.tasks.iter().flat_map(|t| &t.resources).filter(|r| !plan.resources.contains_key(*r));
    let files: BTreeSet<&String> = files.collect();
    let all = named.chain(files.into_iter().map(|file| (file, Vec::new())));
    let all = all.map(|(name, tools)| Guarded { resource: Resource::of_normal(name), tools });
    all.filter(|g| !g.tools.is_empty() || g.resource.path().is_some()).collect()
}

/// The most that wait at once.
pub const MAX_AWAITING: usize = 64;

/// How the run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// How.
    pub status: Verdict,
    /// Why, in a few words.
    pub reason: String,
}

/// How many tasks are in which final state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All tasks of the plan.
    pub total: u32,
    /// Done.
    pub done: u32,
    /// Failed, timed out or lost for good.
    pub failed: u32,
    /// Skipped.
    pub skipped: u32,
    /// Cancelled.
    pub cancelled: u32,
}

impl Counts {
    /// Tasks that can still change.
    pub fn open(self) -> u32 {
        self.total.saturating_sub(self.done + self.failed + self.skipped + self.cancelled)
    }
}

/// What hooks know of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The run.
    pub run: RunId,
    /// The session that owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The rule it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How the session is informed and held.
    pub conductor: Conductor,
    /// Events applied.
    pub seq: u64,
    /// Schema of the log; 0 before `run_started`.
    pub schema: u32,
    /// Hash of the plan that the run executes.
    pub plan_sha256: String,
    /// The boot on which attempts may start.
    pub boot_id: String,
    /// The client without which the run is not to go on for long, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Process>,
    /// Tasks by outcome.
    pub counts: Counts,
    /// Tasks that are live, claimed, or needed by a merge.
    pub tasks: BTreeMap<TaskId, Brief>,
    /// Workers that were started and have not left, by number.
    pub workers: BTreeMap<u32, Process>,
    /// The highest worker number so far.
    pub last_worker: u32,
    /// Numbers below it that were never seen: their workers have been started by somebody, and say so later.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unseen: BTreeSet<u32>,
    /// What the session was not told yet, oldest first.
    pub news: Vec<News>,
    /// Tasks that have begun after others since the last news, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hand_offs: Vec<HandOff>,
    /// What tasks have said to the session, oldest first, as far as it was not told or still holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<Signal>,
    /// How many calls were refused because a task said so.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocks: BTreeMap<TaskId, u32>,
    /// What tasks may say that the plan lets say something else than usual.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rights: BTreeMap<TaskId, Vec<Right>>,
    /// How much the session was told of the run, in characters.
    #[serde(default)]
    pub told_chars: u64,
    /// The plan's merges.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merges: Vec<MergeState>,
    /// Resources that calls of the session use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Guarded>,
    /// Rewrites not compared yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewrites: Vec<Rewrite>,
    /// Who waits for calls of the session, in the order of the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaiting: Vec<Awaiting>,
    /// What its tasks vote about, in the order of the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub polls: Vec<Poll>,
    /// Refusals in a row per reason key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub refusals: BTreeMap<String, u32>,
    /// The prompt during whose turn calls on claimed files were refused, and how many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_refusals: Option<(String, u32)>,
    /// Per reason key the prompt during whose turn calls were held, and for how long in all, in milliseconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waits: BTreeMap<String, (String, u64)>,
    /// The calls that were answered last, oldest first: one that is asked about twice, by two installations, gets the same
    /// answer and counts once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answered: Vec<Answered>,
    /// The prompt during whose turn Stop handed something over, and how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stops: Option<(String, u32)>,
    /// The prompt during whose turn Stop held, and for how long, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<(String, u64)>,
    /// Somebody wants the whole run cancelled.
    #[serde(default)]
    pub cancelled: bool,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<End>,
}

/// The most numbers that are remembered as unseen at once.
const MAX_GAP: usize = 1024;

/// How many answered calls are remembered: more than a step has.
const MAX_ANSWERED: usize = 64;

impl View {
    /// The view before the first event.
    pub fn new(plan: &Plan) -> View {
        let redirect = plan.conductor.on_claimed == OnClaimed::Redirect;
        let mut tasks = BTreeMap::new();
        for task in &plan.tasks {
            let merged = plan.merge.iter().any(|m| m.needs.contains(&task.id));
            if task.claims.is_empty() && !merged && !task.critical {
                continue;
            }
            let brief = Brief {
                label: task.label(),
                phase: Phase::Waiting,
                worker: None,
                attempt: 0,
                since_ms: 0,
                percent: None,
                eta_s: None,
                expected_ms: task.expected,
                line: None,
                result: None,
                claims: task.claims.clone(),
                keep: merged || redirect,
                critical: task.critical,
            };
            tasks.insert(task.id.clone(), brief);
        }
        let merges = plan
            .merge
            .iter()
            .map(|m| MergeState { rule: m.clone(), used: false, waived: false, lost: false })
            .collect();
        View {
            run: plan.run.clone(),
            session: plan.session.clone(),
            rule: plan.rule.clone(),
            conductor: plan.conductor,
            seq: 0,
            schema: 0,
            plan_sha256: String::new(),
            boot_id: String::new(),
            client: None,
            counts: Counts { total: u32::try_from(plan.tasks.len()).unwrap_or(u32::MAX), ..Counts::default() },
            tasks,
            workers: BTreeMap::new(),
            last_worker: 0,
            unseen: BTreeSet::new(),
            news: Vec::new(),
            hand_offs: Vec::new(),
            signals: Vec::new(),
            blocks: BTreeMap::new(),
            rights: plan.tasks.iter().filter_map(|t| Some((t.id.clone(), t.signals.clone()?))).collect(),
            told_chars: 0,
            merges,
            resources: guarded(plan),
            rewrites: Vec::new(),
            awaiting: Vec::new(),
            polls: plan.votes.iter().map(Poll::new).collect(),
            refusals: BTreeMap::new(),
            claim_refusals: None,
            waits: BTreeMap::new(),
            answered: Vec::new(),
            stops: None,
            held: None,
            cancelled: false,
            ended: None,
        }
    }

    /// Whether the run owes its session nothing any more: it is over, told, and every merge was used, with what ran compared,
    /// or waived.
    pub fn is_closed(&self, now: Now<'_>) -> bool {
        let same_boot = self.boot_id == now.boot_id;
        self.ended.is_some()
            && self.news.is_empty()
            && self.signals.iter().all(|s| s.is_expired(now.ms, same_boot))
            && self.rewrites.is_empty()
            && self.merges.iter().all(|m| m.used || m.waived)
    }

    /// How this call was answered for this reason, where it was.
    pub fn answer_to(&self, tool_use_id: Option<&str>, key: &str) -> Option<Answer> {
        let same = |a: &&Answered| Some(a.tool_use_id.as_str()) == tool_use_id && a.key == key;
        self.answered.iter().rev().find(same).map(|a| a.answer)
    }

    /// Whether a worker is, or was, in the log.
    pub fn knows(&self, worker: WorkerNo) -> bool {
        worker.0 <= self.last_worker && !self.unseen.contains(&worker.0)
    }

    /// Attempts that are open now.
    pub fn running(&self) -> impl Iterator<Item = (&TaskId, &Brief)> {
        self.tasks.iter().filter(|(_, b)| b.phase == Phase::Running)
    }

    /// Applies the next line of the log, without its line feed, if a look at its beginning is enough: the kinds that change
    /// nothing here, and the many lines of progress. `false`: nothing was applied, it has to be decoded.
    pub fn skim(&mut self, line: &[u8]) -> bool {
        let Some(head) = Head::of(line).filter(|h| h.seq == self.seq + 1) else { return false };
        match head.kind {
            b"spawned" | b"observed" | b"log_repaired" => {}
            b"awaited" if head.is_awaited_inside() => {}
            b"progress" => {
                let Some(Told { task, attempt, percent, eta_s }) = head.told() else { return false };
                let brief = self.tasks.get_mut(task);
                if let Some(brief) = brief.filter(|b| b.phase == Phase::Running && b.attempt == attempt) {
                    brief.tell(percent, eta_s);
                }
            }
            _ => return false,
        }
        self.seq = head.seq;
        true
    }

    /// Applies the next event. Events must come in the order of the log, each once.
    pub fn apply(&mut self, event: &Event) {
        self.seq = event.seq;
        if !self.awaiting.is_empty() {
            self.end_awaiting(event);
        }
        match &event.body {
            Body::RunStarted(p) => {
                self.schema = p.v;
                self.plan_sha256.clone_from(&p.plan_sha256);
                self.boot_id.clone_from(&p.boot_id);
                self.client.clone_from(&p.client);
            }
            Body::Adopted(p) => {
                self.client.clone_from(&p.client);
                // A name that is none changes nothing.
                self.session = SessionId::new(&p.session).ok().or(self.session.take());
            }
            Body::WorkerStarted(process) => {
                if let Some(WorkerNo(n)) = event.worker {
                    self.workers.insert(n, process.clone());
                    // A gap is small: numbers are given one after the other.
                    self.unseen.extend((self.last_worker.saturating_add(1)..n).take(MAX_GAP));
                    self.unseen.remove(&n);
                    self.last_worker = self.last_worker.max(n);
                }
            }
            Body::WorkerExited(_) | Body::WorkerLost(_) => {
                if let Some(WorkerNo(n)) = event.worker {
                    self.workers.remove(&n);
                }
            }
            Body::Started(p) => self.attempt_started(event, p),
            Body::Progress(p) => {
                if let Some(brief) = self.open_attempt(event) {
                    brief.tell(p.percent, p.eta_s);
                    if p.summary.is_some() {
                        brief.line.clone_from(&p.summary);
                    }
                }
            }
            Body::Done(p) => {
                if self.open_attempt(event).is_none() {
                    return;
                }
                self.counts.done += 1;
                let line = p.summary.clone();
                self.finish(event, Phase::Done, Happened::Done, line, p.result.as_ref().map(|r| r.path.clone()));
                if p.from.is_some() {
                    // It was told when it was done, by the run that is continued.
                    self.news.pop();
                }
            }
            Body::Failed(p) => self.ended_badly(event, p, Phase::Failed),
            Body::TimedOut(p) => self.ended_badly(event, p, Phase::TimedOut),
            Body::Lost(p) => self.ended_badly(event, p, Phase::Lost),
            Body::Cancelled(p) => self.ended_badly(event, p, Phase::Cancelled),
            Body::Skipped(p) => {
                self.counts.skipped += 1;
                self.finish(event, Phase::Skipped, Happened::Skipped, Some(p.because.clone()), None);
            }
            Body::Signal(p) => self.add_signal(event, p),
            Body::SignalReleased(p) => {
                let meant = |s: &Signal| Some(&s.task) == event.task.as_ref() && p.id.is_none_or(|id| id == s.id);
                self.signals.retain(|s| s.critical.is_some() || s.topic.is_some() || !meant(s));
            }
            Body::Delivered(p) => self.delivered(p),
            Body::Decision(p) => self.decided(event, p),
            Body::Awaited(p) => self.awaited(event, p),
            Body::Vote(p) => {
                if self.open_attempt(event).is_some() {
                    self.voted(event, p);
                }
            }
            Body::Verdict(p) => self.settle_poll(event, p),
            Body::CancelRequested(_) => self.cancelled |= event.task.is_none(),
            Body::RunEnded(p) => self.run_ended(event, p),
            Body::Checkpoint(p) => self.reached(event, p),
            Body::Spawned(_)
            | Body::Observed(_)
            | Body::LogRepaired(_)
            | Body::Opened(_)
            | Body::Queued(_)
            | Body::Acquire(_)
            | Body::Renew(_)
            | Body::Release(_)
            | Body::Expired(_)
            | Body::Unknown => {}
        }
    }

    fn delivered(&mut self, p: &Delivered) {
        self.told_signals(&p.signals);
        self.told_chars = self.told_chars.saturating_add(p.chars);
        let covered: BTreeSet<u64> = p.news.iter().copied().collect();
        self.news.retain(|n| !covered.contains(&n.seq));
        self.hand_offs.retain(|h| !covered.contains(&h.seq));
        if p.more {
            return;
        }
        if p.hook == "Stop" {
            let prompt = p.prompt_id.clone().unwrap_or_default();
            self.stops = match self.stops.take() {
                Some((same, n)) if same == prompt => Some((prompt, n + 1)),
                _ => Some((prompt, 1)),
            };
        } else {
            self.stops = None;
        }
    }

    fn run_ended(&mut self, event: &Event, p: &RunEnded) {
        self.ended = Some(End { status: p.status, reason: p.reason.clone() });
        self.hand_offs.clear();
        self.news.push(News {
            seq: event.seq,
            what: Happened::Ended,
            task: None,
            label: None,
            worker: None,
            line: Some(p.reason.clone()),
            result: None,
            checkpoint: None,
        });
    }

    fn awaited(&mut self, event: &Event, p: &Awaited) {
        let Some(matcher) = p.matcher.clone().filter(|_| !p.done && self.awaiting.len() < MAX_AWAITING) else { return };
        let attempt = event.task.clone().zip(event.attempt);
        self.awaiting.push(Awaiting { id: p.id, matcher, attempt });
    }

    /// Who waits does so until it says otherwise, its attempt has ended, or the run has.
    fn end_awaiting(&mut self, event: &Event) {
        match &event.body {
            Body::Awaited(p) if p.done => self.awaiting.retain(|a| a.id != p.id),
            Body::Done(_) | Body::Failed(_) | Body::TimedOut(_) | Body::Lost(_) | Body::Cancelled(_) => {
                let ended = event.task.as_ref().zip(event.attempt);
                self.awaiting.retain(|a| a.attempt.is_none() || a.attempt.as_ref().map(|(t, n)| (t, *n)) != ended);
            }
            Body::RunEnded(_) => self.awaiting.clear(),
            _ => {}
        }
    }

    /// A checkpoint that the session is to know of; the same one again takes its place.
    fn reached(&mut self, event: &Event, p: &Checkpoint) {
        let Some(label) = self.open_attempt(event).filter(|_| p.inject).map(|brief| brief.label.clone()) else {
            return;
        };
        let is_reached = |n: &News| n.what == Happened::Reached;
        self.news.retain(|n| !is_reached(n) || n.task != event.task || n.checkpoint.as_ref() != Some(&p.name));
        if self.news.iter().filter(|n| is_reached(n)).count() >= MAX_REACHED
            && let Some(oldest) = self.news.iter().position(is_reached)
        {
            self.news.remove(oldest);
        }
        self.news.push(News {
            seq: event.seq,
            what: Happened::Reached,
            task: event.task.clone(),
            label,
            worker: event.worker,
            line: p.data.as_ref().map(|data| {
                let written = data.as_str().map_or_else(|| Cow::Owned(data.to_string()), Cow::Borrowed);
                text::one_line(&written, MAX_HANDED)
            }),
            result: None,
            checkpoint: Some(p.name.clone()),
        });
    }

    fn attempt_started(&mut self, event: &Event, p: &Started) {
        let Some(task) = &event.task else { return };
        // What is taken over from another run has no worker: it does not begin here.
        if event.worker.is_some() {
            self.voter_started(task, p.mono_ms);
        }
        let from = p.after.as_deref().and_then(|after| TaskId::new(after.split('@').next()?).ok());
        if let Some(from) = from.filter(|_| self.session.is_some()) {
            let excess = (self.hand_offs.len() + 1).saturating_sub(MAX_HAND_OFFS);
            self.hand_offs.drain(..excess);
            self.hand_offs.push(HandOff { seq: event.seq, from, to: task.clone() });
        }
        let brief = self.tasks.entry(task.clone()).or_insert_with(|| Brief {
            label: p.title.clone(),
            phase: Phase::Waiting,
            worker: None,
            attempt: 0,
            since_ms: 0,
            percent: None,
            eta_s: None,
            expected_ms: None,
            line: None,
            result: None,
            claims: Vec::new(),
            keep: false,
            critical: false,
        });
        brief.phase = Phase::Running;
        brief.worker = event.worker;
        brief.attempt = event.attempt.unwrap_or(1);
        brief.since_ms = p.mono_ms;
        brief.expected_ms = p.expected_ms.or(brief.expected_ms);
        brief.percent = None;
        brief.eta_s = None;
        brief.line = None;
    }

    /// The attempt an event speaks of, if it is the one that is open. A late word of an earlier attempt finds nothing.
    fn open_attempt(&mut self, event: &Event) -> Option<&mut Brief> {
        let brief = self.tasks.get_mut(event.task.as_ref()?)?;
        (brief.phase == Phase::Running && event.attempt == Some(brief.attempt)).then_some(brief)
    }

    fn ended_badly(&mut self, event: &Event, p: &Ended, phase: Phase) {
        let is_over = |task| self.tasks.get(task).is_some_and(|b: &Brief| b.phase.is_final());
        let over = event.task.as_ref().is_some_and(is_over);
        // A task that never began can be cancelled; everything else speaks of an open attempt.
        if self.open_attempt(event).is_none() && (phase != Phase::Cancelled || event.attempt.is_some() || over) {
            return;
        }
        if let Some(task) = &event.task {
            self.release_signals_of(task);
        }
        if p.will_retry {
            if let Some(brief) = self.open_attempt(event) {
                brief.phase = Phase::Retrying;
                brief.percent = None;
                brief.eta_s = None;
            }
            return;
        }
        let what = if phase == Phase::Cancelled {
            self.counts.cancelled += 1;
            Happened::Cancelled
        } else {
            self.counts.failed += 1;
            Happened::Failed
        };
        let result = p.result.as_ref().map(|r| r.path.clone());
        self.finish(event, phase, what, Some(p.reason.clone()), result);
    }

    fn finish(&mut self, event: &Event, phase: Phase, what: Happened, line: Option<String>, result: Option<String>) {
        let Some(task) = &event.task else { return };
        self.release_signals_of(task);
        self.voter_ended(task);
        let mut label = None;
        let mut critical = false;
        if let Some(brief) = self.tasks.get_mut(task) {
            critical = brief.critical;
            label.clone_from(&brief.label);
            brief.phase = phase;
            brief.line.clone_from(&line);
            brief.result.clone_from(&result);
            brief.worker = event.worker.or(brief.worker);
            brief.percent = None;
            brief.eta_s = None;
            if !brief.keep {
                self.tasks.remove(task);
            }
        }
        let key = claim_key(task);
        self.refusals.remove(&key);
        self.waits.remove(&key);
        if critical && matches!(what, Happened::Failed | Happened::Skipped) {
            self.keep_signal(Signal {
                id: event.seq,
                task: task.clone(),
                label: label.clone(),
                worker: event.worker,
                attempt: event.attempt.unwrap_or(0),
                hook: Addressee::Stop,
                blocks: true,
                message: line.clone(),
                data: None,
                matcher: None,
                own: false,
                sticky: false,
                expires: None,
                count: 1,
                once: false,
                critical: Some(phase),
                topic: None,
            });
        }
        self.news.push(News {
            seq: event.seq,
            what,
            task: Some(task.clone()),
            label,
            worker: event.worker,
            line,
            result,
            checkpoint: None,
        });
        self.hand_offs.retain(|h| h.to != *task);
    }

    fn decided(&mut self, event: &Event, p: &crate::model::event::Decision) {
        if p.hook == "Stop" && p.answer == Answer::Held {
            let prompt = p.prompt_id.clone().unwrap_or_default();
            let before = self.held.take().filter(|(same, _)| *same == prompt).map_or(0, |(_, ms)| ms);
            self.held = Some((prompt, before.saturating_add(p.held_ms)));
            return;
        }
        if let Some(id) = p.signal {
            match p.answer {
                Answer::Block => {
                    let key = signal_key(id);
                    *self.refusals.entry(key.clone()).or_insert(0) += 1;
                    self.refused_for(id);
                    self.remember(p.tool_use_id.as_deref(), key, p.answer);
                }
                Answer::Inject => self.told_signals(&[id]),
                Answer::Rewrite | Answer::Held | Answer::Wake => {}
            }
            return;
        }
        if p.hook.starts_with("PostTool") {
            return self.compared(p);
        }
        let of_resource = || p.resource.as_deref().map(lease_key);
        let Some(key) = event.task.as_ref().map(claim_key).or_else(|| p.merge.map(merge_key)).or_else(of_resource)
        else {
            return;
        };
        if self.answer_to(p.tool_use_id.as_deref(), &key).is_some() {
            return;
        }
        let prompt = p.prompt_id.clone().unwrap_or_default();
        if p.held_ms > 0 {
            let wait = self.waits.entry(key.clone()).or_default();
            let before = if wait.0 == prompt { wait.1 } else { 0 };
            *wait = (prompt.clone(), before.saturating_add(p.held_ms));
        }
        let merge = p.merge.and_then(|i| self.merges.get_mut(i).map(|m| (i, m)));
        match p.answer {
            Answer::Block => {
                *self.refusals.entry(key.clone()).or_insert(0) += 1;
                if event.task.is_some() {
                    let before = self.claim_refusals.take().filter(|(same, _)| *same == prompt).map_or(0, |(_, n)| n);
                    self.claim_refusals = Some((prompt, before + 1));
                }
                if let Some((_, merge)) = merge.filter(|_| WAIVING.contains(&p.reason.as_str())) {
                    merge.waived = true;
                }
            }
            Answer::Rewrite => {
                if let Some((index, merge)) = merge {
                    merge.used = true;
                    if let (Some(id), Some(sha)) = (&p.tool_use_id, &p.input_sha256) {
                        self.rewrites.push(Rewrite {
                            tool_use_id: id.clone(),
                            input_sha256: sha.clone(),
                            merge: index,
                        });
                    }
                }
            }
            Answer::Held | Answer::Inject => {
                self.refusals.remove(&key);
                if let Some((_, merge)) = merge.filter(|_| p.reason == GUARD_PASSED) {
                    merge.used = true;
                }
            }
            Answer::Wake => {}
        }
        self.remember(p.tool_use_id.as_deref(), key, p.answer);
    }

    /// Remembers how a call was answered, for whoever asks about it once more.
    fn remember(&mut self, tool_use_id: Option<&str>, key: String, answer: Answer) {
        if let Some(id) = tool_use_id {
            let excess = (self.answered.len() + 1).saturating_sub(MAX_ANSWERED);
            self.answered.drain(..excess);
            self.answered.push(Answered { tool_use_id: id.to_owned(), key, answer });
        }
    }

    /// What became of a rewritten call. Where the results are not in what ran, or nothing ran, the merge was not used.
    fn compared(&mut self, p: &crate::model::event::Decision) {
        let Some(at) = self.rewrites.iter().position(|r| Some(&r.tool_use_id) == p.tool_use_id.as_ref()) else {
            return;
        };
        let rewrite = self.rewrites.remove(at);
        if let Some(merge) = self.merges.get_mut(rewrite.merge) {
            merge.lost |= p.reason == REWRITE_LOST;
            merge.used &= p.reason != REWRITE_LOST && p.reason != DID_NOT_RUN;
        }
    }
}

/// The reason of a refusal because a task that a merge needs has failed; the same call passes afterwards.
pub const NEED_FAILED: &str = "a needed task failed";

/// The reason of a refusal because the call has no text that results could be put into, or a result cannot be read as one;
/// the same call passes afterwards.
pub const CANNOT_MERGE: &str = "results cannot be put into this call";

/// The reason of a refusal because another hook's rewrite won before; the same call passes afterwards.
pub const LOST_BEFORE: &str = "another hook's rewrite won before";

/// The reasons of refusals after which a merge no longer applies.
const WAIVING: [&str; 3] = [NEED_FAILED, CANNOT_MERGE, LOST_BEFORE];

/// The reason of letting a call through a merge without `set`, whose needs are all there.
pub const GUARD_PASSED: &str = "everything needed is there";

/// What was found after a rewritten call: the results are in what ran.
pub const RAN_AS_REWRITTEN: &str = "it ran as rewritten";

/// What was found after a rewritten call: something else ran.
pub const REWRITE_LOST: &str = "another hook's rewrite won";

/// What was found after the step of a rewritten call: it was denied, or it failed.
pub const DID_NOT_RUN: &str = "the rewritten call was denied or failed";

/// Under which key refusals on behalf of a task's claims are counted.
pub fn claim_key(task: &TaskId) -> String {
    format!("claim {task}")
}

/// Under which key refusals on behalf of a signal are counted.
pub fn signal_key(id: u64) -> String {
    format!("signal {id}")
}

/// Under which key refusals on behalf of resources are counted, by their names.
pub fn lease_key(names: &str) -> String {
    format!("lease {names}")
}

/// Under which key refusals on behalf of a merge are counted.
pub fn merge_key(index: usize) -> String {
    format!("merge {index}")
}
