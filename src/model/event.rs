//! The lines of `events.jsonl`: one JSON object each, the kind first, so that a reader skips what it does not need by one
//! compare. An event is a fact that already happened; what follows from a series of them is `logic::state`'s business.
//!
//! Reading is tolerant: unknown kinds and unknown keys are ignored, so that an older cpw can read a newer log. Writing
//! goes through a JSON serialiser only, so that no text can forge a line.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::base::ids::{CheckpointName, RunId, TaskId, Topic, WorkerNo};
use crate::base::redact::redact;
use crate::model::resource::Resource;
use crate::model::scan;
use crate::model::signal::Addressee;
use crate::model::vote::Choice;

/// The version of the event schema; stands in `run_started` as `v`.
pub const SCHEMA: u32 = 1;

/// The longest line that is written, in bytes with its line feed. Longer texts go to files that events name.
pub const MAX_LINE: usize = 64 * 1024;

/// One line of the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Position in the log: 1, 2, 3 … without a gap.
    pub seq: u64,
    /// Wall-clock time, RFC 3339 in UTC with microseconds; for display only.
    pub ts: String,
    /// The worker it is about.
    pub worker: Option<WorkerNo>,
    /// The task it is about.
    pub task: Option<TaskId>,
    /// The attempt of that task, from 1.
    pub attempt: Option<u32>,
    /// Kind and payload.
    pub body: Body,
}

/// An event before it has a place in the log.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// The worker it is about.
    pub worker: Option<WorkerNo>,
    /// The task it is about.
    pub task: Option<TaskId>,
    /// The attempt of that task.
    pub attempt: Option<u32>,
    /// Kind and payload.
    pub body: Body,
}

impl Draft {
    /// An event about the run as a whole.
    pub fn run(body: Body) -> Self {
        Draft { worker: None, task: None, attempt: None, body }
    }

    /// An event about a worker.
    pub fn worker(worker: WorkerNo, body: Body) -> Self {
        Draft { worker: Some(worker), task: None, attempt: None, body }
    }

    /// An event about one attempt of a task.
    pub fn attempt(worker: Option<WorkerNo>, task: &TaskId, attempt: u32, body: Body) -> Self {
        Draft { worker, task: Some(task.clone()), attempt: Some(attempt), body }
    }

    /// An event about a task, whatever its attempt.
    pub fn task(task: &TaskId, body: Body) -> Self {
        Draft { worker: None, task: Some(task.clone()), attempt: None, body }
    }
}

macro_rules! bodies {
    ($( $(#[$doc:meta])* $variant:ident($payload:ty) = $name:literal, )*) => {
        /// The kind of an event with its payload.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Body {
            $( $(#[$doc])* $variant($payload), )*
            /// A kind that this version does not know; kept in the count, otherwise ignored.
            Unknown,
        }

        impl Body {
            /// The name in the log, `"t"`.
            pub fn name(&self) -> &'static str {
                match self {
                    $( Body::$variant(_) => $name, )*
                    Body::Unknown => "unknown",
                }
            }

            fn decode(name: &str, payload: &str) -> Result<Self, serde_json::Error> {
                match name {
                    $( $name => serde_json::from_str(payload).map(Body::$variant), )*
                    _ => Ok(Body::Unknown),
                }
            }

            fn payload_json(&self) -> Result<String, serde_json::Error> {
                match self {
                    $( Body::$variant(p) => serde_json::to_string(p), )*
                    Body::Unknown => Ok("{}".into()),
                }
            }

            /// Every kind that this version knows, by its name in the log.
            pub const NAMES: &'static [&'static str] = &[$($name),*];
        }
    };
}

bodies! {
    /// The run exists from here on; always the first line.
    RunStarted(RunStarted) = "run_started",
    /// A worker was started.
    WorkerStarted(Process) = "worker_started",
    /// A worker left in order.
    WorkerExited(Reason) = "worker_exited",
    /// A worker was found dead.
    WorkerLost(Reason) = "worker_lost",
    /// An attempt begins; written before any process of it exists.
    Started(Started) = "started",
    /// The process of the attempt exists.
    Spawned(Process) = "spawned",
    /// How far an attempt says it is.
    Progress(Progress) = "progress",
    /// An attempt has come to a point that others wait for.
    Checkpoint(Checkpoint) = "checkpoint",
    /// The attempt succeeded.
    Done(Done) = "done",
    /// The attempt failed.
    Failed(Ended) = "failed",
    /// The attempt was ended at its time limit.
    TimedOut(Ended) = "timed_out",
    /// The task, or its attempt, was cancelled.
    Cancelled(Ended) = "cancelled",
    /// The attempt's worker died.
    Lost(Ended) = "lost",
    /// The task will never start.
    Skipped(Skipped) = "skipped",
    /// An attempt says something to the session.
    Signal(Signal) = "signal",
    /// It takes that back.
    SignalReleased(SignalReleased) = "signal_released",
    /// A hook told the session something.
    Delivered(Delivered) = "delivered",
    /// A hook decided about a call of the session. A plain allow is not logged.
    Decision(Decision) = "decision",
    /// The session did something that concerns a claim or merge, or that somebody waits for.
    Observed(Observed) = "observed",
    /// Somebody waits for a call of the session, or no longer does.
    Awaited(Awaited) = "awaited",
    /// A task has voted, or has tried to.
    Vote(Vote) = "vote",
    /// A vote is decided.
    Verdict(Decided) = "verdict",
    /// Somebody wants a task (the envelope's) or the whole run cancelled.
    CancelRequested(CancelRequested) = "cancel_requested",
    /// A session goes on with the run in another client.
    Adopted(Adopted) = "adopted",
    /// A torn line was cut off.
    LogRepaired(LogRepaired) = "log_repaired",
    /// The run is over.
    RunEnded(RunEnded) = "run_ended",
    /// The project's log of leases exists from here on; always its first line.
    Opened(Opened) = "opened",
    /// Somebody waits for resources.
    Queued(Queued) = "queued",
    /// Somebody holds resources from now on.
    Acquire(Acquire) = "acquire",
    /// For longer.
    Renew(Renew) = "renew",
    /// It is given back, or no longer waited for.
    Release(Release) = "release",
    /// It was taken away: its time is over, or who held it has died.
    Expired(Release) = "expired",
}

impl Body {
    /// Whether others act on the fact that this event is durable: with durability `power` it is synced to disk first.
    pub fn is_commit(&self) -> bool {
        matches!(
            self,
            Body::RunStarted(_)
                | Body::Started(_)
                | Body::Done(_)
                | Body::Failed(_)
                | Body::TimedOut(_)
                | Body::Cancelled(_)
                | Body::Lost(_)
                | Body::Skipped(_)
                | Body::RunEnded(_)
        )
    }
}

impl Body {
    /// Redacts what it says in words. Names, patterns and what one task hands to another stay as they are: they mean
    /// something only so.
    fn redact(&mut self) {
        fn told(text: &mut String) {
            if let Cow::Owned(redacted) = redact(text) {
                *text = redacted;
            }
        }
        let some = |text: &mut Option<String>| text.as_mut().map_or((), told);
        match self {
            Body::WorkerExited(p) | Body::WorkerLost(p) => told(&mut p.reason),
            Body::Started(p) => some(&mut p.title),
            Body::Progress(p) => {
                some(&mut p.note);
                some(&mut p.summary);
            }
            Body::Done(p) => some(&mut p.summary),
            Body::Failed(p) | Body::TimedOut(p) | Body::Cancelled(p) | Body::Lost(p) => {
                told(&mut p.reason);
                some(&mut p.summary);
            }
            Body::Signal(p) => some(&mut p.message),
            Body::SignalReleased(p) => told(&mut p.reason),
            Body::Decision(p) => told(&mut p.reason),
            Body::Observed(p) => told(&mut p.target),
            Body::Vote(p) => {
                some(&mut p.reason);
                some(&mut p.refused);
            }
            Body::CancelRequested(p) => told(&mut p.by),
            Body::RunEnded(p) => told(&mut p.reason),
            Body::Queued(Queued { holder, .. }) | Body::Acquire(Acquire { holder, .. }) => some(&mut holder.label),
            Body::Release(p) | Body::Expired(p) => told(&mut p.reason),
            Body::RunStarted(_)
            | Body::WorkerStarted(_)
            | Body::Spawned(_)
            | Body::Checkpoint(_)
            | Body::Skipped(_)
            | Body::Delivered(_)
            | Body::Awaited(_)
            | Body::Verdict(_)
            | Body::Adopted(_)
            | Body::LogRepaired(_)
            | Body::Opened(_)
            | Body::Renew(_)
            | Body::Unknown => {}
        }
    }
}

/// Payload of `run_started`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStarted {
    /// Schema of this log, [`SCHEMA`].
    pub v: u32,
    /// Hash of the exact bytes of `plan.json`, in hex.
    pub plan_sha256: String,
    /// The session that owns the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The prompt that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    /// Hash of that prompt, in hex: what it said is not in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_sha256: Option<String>,
    /// Its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_bytes: Option<u64>,
    /// The rule that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// W3C trace id, 32 hex digits: that of what it was started in, where that has one.
    pub trace: String,
    /// The span of the run in it, 16 hex digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
    /// The span that it was started in: of a task, or of whatever else said so by its environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The run that it continues, as `TRACE-SPAN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Tasks at the same time, at most.
    pub max_workers: u32,
    /// The boot during which attempts may start.
    pub boot_id: String,
    /// `CLOCK_MONOTONIC` in milliseconds; the run's time limit counts from here.
    pub mono_ms: u64,
    /// Version of the cpw that started it.
    pub cpw: String,
    /// The client of the session, where the run is not to outlive it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Process>,
}

/// Payload of `worker_started` and `spawned`: a process, told from later ones with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot, as `/proc/PID/stat` has it; 0 where unknown.
    pub start_time: u64,
    /// The boot it belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
}

/// Payload of `worker_exited` and `worker_lost`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// Why, in a few words.
    pub reason: String,
}

/// Payload of `started`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Where the task runs.
    pub cwd: String,
    /// The span of this attempt in the run's trace, 16 hex digits: the one in its `TRACEPARENT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<String>,
    /// What people call the task, where it has another name than its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// `CLOCK_MONOTONIC` in milliseconds; the attempt's time limit counts from here.
    #[serde(default)]
    pub mono_ms: u64,
    /// What a `claude` task may spend in this attempt, in US dollars: so much of the run's budget is kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_usd: Option<f64>,
    /// What it was waiting for last, `build` or `build@compiled`: that has handed over to it. Of a first attempt only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// How long it usually takes, by earlier runs, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_ms: Option<u64>,
}

/// Payload of `progress`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Seconds left, as the task estimates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_s: Option<u64>,
    /// What it is at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What the session shall read about it in the end (`cpw summary`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
}

/// Payload of `checkpoint`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Which.
    pub name: CheckpointName,
    /// What the task hands over with it: any JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<serde_json::Value>,
    /// Whether the session is to be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inject: bool,
}

/// Payload of `done`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Exit code.
    pub exit: i32,
    /// From spawn to end.
    pub duration_ms: u64,
    /// Where the result is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultFile>,
    /// One line about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// What it cost, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The run in which it was done: this one continues that one and took it over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<RunId>,
    /// Bytes that were cut out of its output, which was too long.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A result of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultFile {
    /// Relative to the run's folder.
    pub path: String,
    /// Length.
    pub bytes: u64,
    /// Hash of the content, in hex.
    pub sha256: String,
}

/// What a `claude` task cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Model turns.
    #[serde(default)]
    pub turns: u64,
    /// Tokens in and out, cached ones included.
    #[serde(default)]
    pub tokens: u64,
    /// US dollars, as the client computes them.
    #[serde(default)]
    pub cost_usd: f64,
}

/// Payload of `failed`, `timed_out`, `cancelled` and `lost`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// Exit code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<i32>,
    /// Signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// Why, in a sentence without full stop.
    pub reason: String,
    /// From spawn to end, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Whether a further attempt comes.
    #[serde(default)]
    pub will_retry: bool,
    /// When it comes: `CLOCK_MONOTONIC` in milliseconds, on the run's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<u64>,
    /// When that was written, `CLOCK_MONOTONIC` in milliseconds on the run's boot; of attempts that had begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mono_ms: Option<u64>,
    /// What there is of a result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultFile>,
    /// One line about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// What it cost, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Bytes that were cut out of its output, which was too long.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut_bytes: u64,
    /// The provider refused for want of quota, which is not the task's failure: until then no `claude` task of the run
    /// starts. `CLOCK_MONOTONIC` in milliseconds, on the run's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_until: Option<u64>,
}

/// Payload of `skipped`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// The task, or the fact, that made it impossible.
    pub because: String,
}

/// Payload of `signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Its id: the sequence number of this event.
    pub id: u64,
    /// To which hook.
    pub hook: Addressee,
    /// 0 informs, 2 blocks, any other code is a warning for people.
    pub exit: i32,
    /// What it says, in one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// A file with more, relative to the run's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Which calls it means, as `model::matcher` reads it; all where absent.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matcher: Option<String>,
    /// Whether it means calls on the task's own claims only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
    /// Whether it holds on when its task has ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sticky: bool,
    /// When it ends by itself: `CLOCK_MONOTONIC` in milliseconds, on the run's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// How many the task has sent since its line before that were not written, because they said what that one said.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more: u64,
}

/// Payload of `signal_released`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalReleased {
    /// Which; all of the task where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Why, in a few words.
    pub reason: String,
}

/// Payload of `delivered`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// Sequence numbers of the news that were handed over.
    pub news: Vec<u64>,
    /// Ids of the signals that were handed over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signals: Vec<u64>,
    /// How long the text was, in characters.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub chars: u64,
    /// The hook event that carried them.
    pub hook: String,
    /// The session that read them.
    pub session: String,
    /// The prompt during whose turn it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
    /// Further lines belong to the same delivery: what one covers may be too much for one line.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// What a hook answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Refused.
    Block,
    /// The input was replaced.
    Rewrite,
    /// Held for a while, then let through.
    #[default]
    Held,
    /// Let through with a note.
    Inject,
    /// An idle session was woken.
    Wake,
}

/// Payload of `decision`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The hook event.
    pub hook: String,
    /// The tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The client's id of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<String>,
    /// Hash of the input as it should run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_sha256: Option<String>,
    /// What was answered.
    pub answer: Answer,
    /// Why, in a few words.
    pub reason: String,
    /// How long the call was held.
    #[serde(default)]
    pub held_ms: u64,
    /// Which entry of the plan's `merge` was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merge: Option<usize>,
    /// Which signal it was answered by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u64>,
    /// The resources on behalf of which it was answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The prompt during whose turn it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_id: Option<String>,
}

/// Payload of `observed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The hook event.
    pub hook: String,
    /// `before` or `after` the call.
    pub phase: String,
    /// The tool.
    pub tool: String,
    /// The file or command, shortened.
    pub target: String,
    /// The client's id of the call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<String>,
    /// Who waits for it: the ids of `awaited`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaited: Vec<u64>,
}

/// Payload of `awaited`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Awaited {
    /// Which: the number of the line with which it began.
    pub id: u64,
    /// Which calls are meant, as `model::matcher` reads it; absent where it is over.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matcher: Option<String>,
    /// What of its own run a task waits for instead: `build`, `build@compiled`, or `deploy?` for a verdict. Said again
    /// where it is over, so that a reader who wants to know of calls only can leave the line out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// Whether it is over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
}

/// Payload of `vote`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// About what.
    pub topic: Topic,
    /// For what; absent where it was for nothing that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Choice>,
    /// Why, in one line of the task's own words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why it does not count, where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Payload of `verdict`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Decided {
    /// About what.
    pub topic: Topic,
    /// What came out.
    pub result: Choice,
    /// Votes for `proceed`.
    pub proceed: u32,
    /// Votes for `abort`.
    pub abort: u32,
    /// Voters that have not voted.
    pub absent: u32,
    /// Whether too few have voted, so that the result is what the plan says for that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_quorum: bool,
    /// Whether the session must hear of it before it stops.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub escalates: bool,
}

/// Payload of `opened`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Schema of this log, [`SCHEMA`].
    pub v: u32,
    /// Version of the cpw that made it.
    pub cpw: String,
}

/// Who holds a lease, or waits for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The process with which it ends.
    pub process: Process,
    /// The run it works for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunId>,
    /// Its task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    /// The attempt of that task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// The worker that runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerNo>,
    /// The session, where it is one of its calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// The client's id of that call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_use_id: Option<String>,
    /// What it is, for people: a command, shortened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Payload of `queued`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// All that is wanted, together or not at all.
    pub resources: Vec<Resource>,
    /// By whom.
    pub holder: Holder,
    /// The tokens of what it holds while it waits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holding: Vec<u64>,
    /// Since when, `CLOCK_MONOTONIC` in milliseconds on the boot of the holder's process.
    pub mono_ms: u64,
    /// Until when, by the same clock: nobody waits behind it any longer, should it be stopped. As long as it lives where
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

/// Payload of `acquire`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acquire {
    /// The number of this line: it rises from holder to holder.
    pub token: u64,
    /// What is held.
    pub resources: Vec<Resource>,
    /// By whom.
    pub holder: Holder,
    /// The `queued` that is served by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<u64>,
    /// Since when, `CLOCK_MONOTONIC` in milliseconds on the boot of the holder's process.
    pub mono_ms: u64,
    /// Until when at most, by the same clock; as long as its holder lives where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
}

/// Payload of `renew`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Which.
    pub token: u64,
    /// Until when from now on, as in `acquire`.
    pub expires: u64,
}

/// Payload of `release` and `expired`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// Which: the number of its `acquire`, or of its `queued`; 0 where none was meant that there is.
    pub token: u64,
    /// Why, in a few words; where it was refused, who wanted what and why not.
    pub reason: String,
    /// Whether it was refused, be it a `renew` or a `release`: it changes nothing then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
}

/// Payload of `cancel_requested`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequested {
    /// Who: `user`, `ctrl-c`, a hook.
    pub by: String,
}

/// Payload of `adopted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adopted {
    /// The session that has it from now on.
    pub session: String,
    /// The session that had it.
    pub from: String,
    /// The client from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Process>,
}

/// Payload of `log_repaired`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRepaired {
    /// How many bytes were cut off.
    pub bytes: u64,
    /// Their hash, in hex.
    pub sha256: String,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every task is done, or failed where that is allowed.
    Ok,
    /// A task failed, or the run was ended by a limit.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

/// Payload of `run_ended`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunEnded {
    /// How.
    pub status: Verdict,
    /// Why, in a few words.
    pub reason: String,
    /// Tasks done.
    pub done: u32,
    /// Tasks failed, timed out or lost for good.
    pub failed: u32,
    /// Tasks skipped.
    pub skipped: u32,
    /// Tasks cancelled.
    pub cancelled: u32,
}

/// Why a line is not an event.
#[derive(Debug)]
pub enum BadLine {
    /// Not JSON, or not of an event's shape.
    Json(serde_json::Error),
    /// Longer than [`MAX_LINE`].
    TooLong(usize),
}

impl std::fmt::Display for BadLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BadLine::Json(e) => write!(f, "not an event: {e}"),
            BadLine::TooLong(n) => write!(f, "{n} bytes long, more than {MAX_LINE}"),
        }
    }
}

impl std::error::Error for BadLine {}

#[derive(Deserialize)]
struct RawLine<'a> {
    #[serde(borrow)]
    t: Cow<'a, str>,
    seq: u64,
    #[serde(default, borrow)]
    ts: Cow<'a, str>,
    worker: Option<WorkerNo>,
    task: Option<TaskId>,
    attempt: Option<u32>,
    #[serde(default, borrow)]
    payload: Option<&'a RawValue>,
}

/// The beginning of a line as [`Event::encode_into`] writes it, and what can be told from it without decoding the line. The
/// rest of the line is not looked at, except that it ends as an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head<'l> {
    /// The kind, `"t"`.
    pub kind: &'l [u8],
    /// Its number.
    pub seq: u64,
    rest: &'l [u8],
}

/// What a line of kind `progress` says, where that is no more than numbers and a note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Told<'l> {
    /// The task.
    pub task: &'l str,
    /// Its attempt.
    pub attempt: u32,
    /// See [`Progress`].
    pub percent: Option<u8>,
    /// See [`Progress`].
    pub eta_s: Option<u64>,
}

impl<'l> Head<'l> {
    /// Of a line without its line feed. `None` where it is written in another way, which says nothing about the line.
    pub fn of(line: &'l [u8]) -> Option<Head<'l>> {
        if line.len() >= MAX_LINE {
            return None;
        }
        let line = line.strip_suffix(b"}")?.strip_prefix(b"{\"t\":\"")?;
        let end = line.iter().take(32).position(|b| *b == b'"')?;
        let (seq, rest) = number(line[end..].strip_prefix(b"\",\"seq\":")?)?;
        rest.starts_with(b",\"ts\":\"").then_some(Head { kind: &line[..end], seq, rest })
    }

    /// Whether it is of kind `awaited`, and about something of the task's own run instead of a call of the session.
    pub fn is_awaited_inside(&self) -> bool {
        let at = |rest: &'l [u8]| rest.windows(11).position(|w| w == b",\"payload\":").map(|at| &rest[at + 11..]);
        let id = |payload: &'l [u8]| number(payload.strip_prefix(b"{\"id\":")?).map(|(_, rest)| rest);
        self.kind == b"awaited" && at(self.rest).and_then(id).is_some_and(|rest| rest.starts_with(b",\"on\":"))
    }

    /// What it tells, if it is of kind `progress` and says nothing beyond a [`Told`].
    pub fn told(&self) -> Option<Told<'l>> {
        if self.kind != b"progress" {
            return None;
        }
        let (_, rest) = text(self.rest.strip_prefix(b",\"ts\":")?)?;
        let rest = match rest.strip_prefix(b",\"worker\":") {
            Some(worker) => text(worker)?.1,
            None => rest,
        };
        let (task, rest) = text(rest.strip_prefix(b",\"task\":")?)?;
        let (attempt, rest) = number(rest.strip_prefix(b",\"attempt\":")?)?;
        // The last bracket is the line's own.
        let mut rest = rest.strip_prefix(b",\"payload\":{")?.strip_suffix(b"}")?;
        let mut told = Told {
            task: std::str::from_utf8(task).ok()?,
            attempt: attempt.try_into().ok()?,
            percent: None,
            eta_s: None,
        };
        if let Some(percent) = rest.strip_prefix(b"\"percent\":") {
            let (percent, more) = number(percent)?;
            told.percent = Some(percent.try_into().ok()?);
            rest = more.strip_prefix(b",").unwrap_or(more);
        }
        if let Some(eta) = rest.strip_prefix(b"\"eta_s\":") {
            let (eta, more) = number(eta)?;
            told.eta_s = Some(eta);
            rest = more.strip_prefix(b",").unwrap_or(more);
        }
        if let Some(note) = rest.strip_prefix(b"\"note\":") {
            let begin = note.strip_prefix(b"\"")?;
            rest = &begin[scan::string_end(begin, 0)? + 1..];
        }
        rest.is_empty().then_some(told)
    }
}

/// The number that `text` begins with, and what follows it.
fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let digits = text.iter().take_while(|b| b.is_ascii_digit()).count();
    // Written with a leading zero it is no number; with 19 digits it fits for certain.
    if digits == 0 || digits > 19 || (digits > 1 && text[0] == b'0') {
        return None;
    }
    let value = text[..digits].iter().fold(0, |value, b| value * 10 + u64::from(b - b'0'));
    Some((value, &text[digits..]))
}

/// The string without escapes that `line` begins with, and what follows it.
fn text(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_prefix(b"\"")?;
    let end = line.iter().position(|b| matches!(b, b'"' | b'\\'))?;
    Some((&line[..end], line[end..].strip_prefix(b"\"")?))
}

/// What a field holds that may stand at the beginning of `rest`, and what follows it.
fn field<'l, T>(
    rest: &'l [u8],
    name: &[u8],
    read: impl FnOnce(&'l [u8]) -> Option<(T, &'l [u8])>,
) -> Option<(Option<T>, &'l [u8])> {
    match rest.strip_prefix(name) {
        Some(value) => read(value).map(|(value, rest)| (Some(value), rest)),
        None => Some((None, rest)),
    }
}

/// Text that stands in JSON as it is.
fn plain(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|text| !text.contains(char::is_control))
}

impl Event {
    /// Reads one line, without its line feed.
    pub fn decode(line: &[u8]) -> Result<Event, BadLine> {
        Event::decode_with(line, Err)
    }

    /// As [`Event::decode`], of a log of a newer schema: what does not fit the payload of a kind is a kind of its own.
    pub fn decode_newer(line: &[u8]) -> Result<Event, BadLine> {
        Event::decode_with(line, |_| Ok(Body::Unknown))
    }

    fn decode_with(
        line: &[u8],
        misfit: impl FnOnce(serde_json::Error) -> Result<Body, serde_json::Error>,
    ) -> Result<Event, BadLine> {
        if line.len() >= MAX_LINE {
            return Err(BadLine::TooLong(line.len()));
        }
        if let Some(event) = Event::decode_usual(line) {
            return Ok(event);
        }
        Event::decode_any(line, misfit)
    }

    fn decode_any(
        line: &[u8],
        misfit: impl FnOnce(serde_json::Error) -> Result<Body, serde_json::Error>,
    ) -> Result<Event, BadLine> {
        let raw: RawLine<'_> = serde_json::from_slice(line).map_err(BadLine::Json)?;
        let payload = raw.payload.map_or("{}", RawValue::get);
        let body = Body::decode(&raw.t, payload).or_else(misfit).map_err(BadLine::Json)?;
        Ok(Event {
            seq: raw.seq,
            ts: raw.ts.into_owned(),
            worker: raw.worker,
            task: raw.task,
            attempt: raw.attempt,
            body,
        })
    }

    /// A line as [`Event::encode_into`] writes it, of a known kind, without what would have to be unescaped outside of its
    /// payload: three times as fast as any JSON object. `None` where it is another one, which says nothing about the line.
    fn decode_usual(line: &[u8]) -> Option<Event> {
        let Head { kind, seq, rest } = Head::of(line)?;
        let (ts, rest) = text(rest.strip_prefix(b",\"ts\":")?)?;
        let (worker, rest) = field(rest, b",\"worker\":", text)?;
        let (task, rest) = field(rest, b",\"task\":", text)?;
        let (attempt, rest) = field(rest, b",\"attempt\":", number)?;
        let payload = rest.strip_prefix(b",\"payload\":").filter(|payload| payload.starts_with(b"{"))?;
        let body = Body::decode(plain(kind)?, std::str::from_utf8(payload).ok()?).ok()?;
        if body == Body::Unknown {
            return None;
        }
        let worker = worker.map(|worker| plain(worker)?.parse().ok());
        let task = task.map(|task| TaskId::new(plain(task)?).ok());
        if worker == Some(None) || task == Some(None) {
            return None;
        }
        let attempt = attempt.map(u32::try_from).transpose().ok()?;
        Some(Event { seq, ts: plain(ts)?.into(), worker: worker.flatten(), task: task.flatten(), attempt, body })
    }

    /// Gives a draft its place and time. Secrets that can be told by their shape do not get into the log.
    pub fn new(mut draft: Draft, seq: u64, ts: String) -> Event {
        draft.body.redact();
        Event { seq, ts, worker: draft.worker, task: draft.task, attempt: draft.attempt, body: draft.body }
    }

    /// Appends the event as one line with its line feed.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), BadLine> {
        #[derive(Serialize)]
        struct Line<'a> {
            t: &'a str,
            seq: u64,
            ts: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            worker: Option<WorkerNo>,
            #[serde(skip_serializing_if = "Option::is_none")]
            task: Option<&'a TaskId>,
            #[serde(skip_serializing_if = "Option::is_none")]
            attempt: Option<u32>,
            payload: &'a RawValue,
        }
        let payload = RawValue::from_string(self.body.payload_json().map_err(BadLine::Json)?).map_err(BadLine::Json)?;
        let line = Line {
            t: self.body.name(),
            seq: self.seq,
            ts: &self.ts,
            worker: self.worker,
            task: self.task.as_ref(),
            attempt: self.attempt,
            payload: &payload,
        };
        let start = out.len();
        serde_json::to_writer(&mut *out, &line).map_err(BadLine::Json)?;
        out.push(b'\n');
        let length = out.len() - start;
        if length > MAX_LINE {
            out.truncate(start);
            return Err(BadLine::TooLong(length));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_begins_with_its_kind_and_comes_back() {
        let task = TaskId::new("a").unwrap();
        let body = Body::Failed(Ended { exit: Some(3), reason: "exit 3\n{\"t\":\"done\"".into(), ..Ended::default() });
        let event =
            Event::new(Draft::attempt(Some(WorkerNo(1)), &task, 1, body), 17, "2026-01-02T03:04:05.678901Z".into());
        let mut line = Vec::new();
        event.encode_into(&mut line).unwrap();
        assert!(line.starts_with(b"{\"t\":\"failed\",\"seq\":17,\"ts\":\"2026"));
        assert_eq!(line.split(|b| *b == b'\n').count() - 1, 1);
        assert_eq!(Event::decode(&line[..line.len() - 1]).unwrap(), event);
    }

    #[test]
    fn what_is_read_quickly_is_what_is_read_with_care() {
        let mut quick = 0;
        for line in include_str!("../../tests/logs/v1/events.jsonl").lines() {
            assert!(Event::decode_usual(line.as_bytes()).is_some(), "{line}");
            let mut bytes = line.as_bytes().to_vec();
            for at in 0..bytes.len() {
                let was = bytes[at];
                for other in *b"\"\\{}[],:0 9W\n\x1f\x7f\xff" {
                    bytes[at] = other;
                    if let Some(event) = Event::decode_usual(&bytes) {
                        quick += 1;
                        let careful = Event::decode_any(&bytes, Err);
                        assert!(careful.is_ok_and(|e| e == event), "{}", String::from_utf8_lossy(&bytes));
                    }
                }
                bytes[at] = was;
            }
            for end in 0..line.len() {
                assert_eq!(Event::decode_usual(&line.as_bytes()[..end]), None, "{line}");
            }
        }
        assert!(quick > 1000, "{quick}");
    }

    #[test]
    fn unknown_kinds_and_keys_are_ignored() {
        let e = Event::decode(br#"{"t":"sparkle","seq":1,"ts":"x","payload":{"a":[1]},"new":2}"#).unwrap();
        assert_eq!(e.body, Body::Unknown);
        let e = Event::decode(br#"{"t":"skipped","seq":1,"ts":"x","payload":{"because":"a","more":1}}"#).unwrap();
        assert_eq!(e.body, Body::Skipped(Skipped { because: "a".into() }));
    }

    #[test]
    fn the_beginning_of_a_line_tells_what_the_whole_line_tells() {
        let task = TaskId::new("a").unwrap();
        let texts = [None, Some("half \"way\" \\ {there}\n".to_owned()), Some(String::new())];
        let mut quick = 0;
        for (percent, eta_s) in [(None, None), (Some(0), None), (None, Some(7)), (Some(100), Some(u64::MAX / 4))] {
            for (note, summary) in texts.iter().flat_map(|n| texts.iter().map(move |s| (n.clone(), s.clone()))) {
                for worker in [None, Some(WorkerNo(3))] {
                    let body =
                        Body::Progress(Progress { percent, eta_s, note: note.clone(), summary: summary.clone() });
                    let mut line = Vec::new();
                    let draft = Draft::attempt(worker, &task, 12, body);
                    Event::new(draft, 345, "2026-01-02T03:04:05.678901Z".into()).encode_into(&mut line).unwrap();
                    let line = &line[..line.len() - 1];
                    let head = Head::of(line).unwrap();
                    assert_eq!((head.kind, head.seq), (&b"progress"[..], 345));
                    let told = Told { task: "a", attempt: 12, percent, eta_s };
                    assert_eq!(head.told(), summary.is_none().then_some(told), "{}", String::from_utf8_lossy(line));
                    quick += u32::from(head.told().is_some());
                    // Cut anywhere it says nothing.
                    for end in 0..line.len() {
                        assert_eq!(Head::of(&line[..end]).and_then(|h| h.told()), None);
                    }
                }
            }
        }
        assert_eq!(quick, 24);
    }

    #[test]
    fn a_line_in_other_words_has_no_head() {
        for odd in [
            r#"{"seq":1,"t":"progress","ts":"x"}"#,
            r#"{"t":"progress","seq":01,"ts":"x"}"#,
            r#"{"t":"progress","seq":-1,"ts":"x"}"#,
            r#"{"t":"progress","seq":1.5,"ts":"x"}"#,
            r#"{"t":"progress","seq":1e3,"ts":"x"}"#,
            r#"{"t":"progress","seq":99999999999999999999,"ts":"x"}"#,
            r#"{ "t":"progress","seq":1,"ts":"x"}"#,
            r#"{"t":"progress","seq":1,"ts":"x"} "#,
            r#"{"t":"progress","seq":1,"ts":"x"},"#,
            "",
            "}",
        ] {
            assert_eq!(Head::of(odd.as_bytes()), None, "{odd}");
        }
        let told = |payload: &str| {
            let line = format!(r#"{{"t":"progress","seq":1,"ts":"x","task":"a","attempt":1,"payload":{payload}}}"#);
            Head::of(line.as_bytes()).unwrap().told().is_some()
        };
        assert!(told("{}") && told(r#"{"percent":7}"#));
        for other in
            [r#"{"percent":256}"#, r#"{"percent":"7"}"#, r#"{"percent":7.5}"#, r#"{"new":1}"#, r#"{"note":null}"#]
        {
            assert!(!told(other), "{other}");
        }
    }

    #[test]
    fn s06_no_kind_of_event_writes_a_secret_in_its_words() {
        let secret = format!("ghp_{}", "A1b2C3d4E5".repeat(4));
        let mut said = 0;
        for line in include_str!("../../tests/logs/v1/events.jsonl")
            .lines()
            .chain(include_str!("../../tests/logs/v1/project.jsonl").lines())
        {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            let holder = value["payload"].get("holder").is_some();
            let place = if holder { &mut value["payload"]["holder"] } else { &mut value["payload"] };
            let words = ["reason", "title", "note", "summary", "message", "target", "by", "label", "refused"];
            for (key, field) in place.as_object_mut().unwrap() {
                if words.contains(&key.as_str()) && field.is_string() {
                    *field = format!("it is {secret}").into();
                    said += 1;
                }
            }
            let read = Event::decode(value.to_string().as_bytes()).unwrap();
            let draft = Draft { worker: read.worker, task: read.task, attempt: read.attempt, body: read.body };
            let mut out = Vec::new();
            Event::new(draft, read.seq, read.ts).encode_into(&mut out).unwrap();
            assert!(!String::from_utf8_lossy(&out).contains("A1b2C3"), "{}", String::from_utf8_lossy(&out));
        }
        assert!(said >= 15, "{said}");
    }

    #[test]
    fn what_is_too_long_is_not_written() {
        let body = Body::WorkerLost(Reason { reason: "x".repeat(MAX_LINE) });
        let mut out = b"before\n".to_vec();
        assert!(Event::new(Draft::run(body), 1, String::new()).encode_into(&mut out).is_err());
        assert_eq!(out, b"before\n");
    }
}
