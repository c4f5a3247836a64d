//! An independent judge of a run's history. It knows nothing of cpw's code: it reads `events.jsonl` as lines of JSON,
//! `plan.json` as data, and `effects.jsonl`, which the *tasks themselves* have written, so that the log cannot lie about
//! what was done. All violations are listed at once, each with its line.
//!
//! Time is not measured by a clock. Every line of the effects says how many whole lines the log had when it was written
//! (`seen`), and the order of lines within the effects is the order of their appends. Both are exact: who saw `n` lines
//! acts after event `n`, and who saw fewer than `n` looked before it.
//!
//! A line of effects: `{"task", "attempt", "token", "phase": "begin" | "end" | "child", "seen"}`. Each is written with an
//! empty line before it, so that one that SIGKILL tore in the middle spoils only itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Every rule, with what it says.
pub(crate) const RULES: [(&str, &str); 24] = [
    ("I1", "whole lines of JSON objects, `t` first, at most 64 KiB, known kinds"),
    ("I2", "`seq` is 1, 2, 3 …; the first line, and no other, is `run_started`"),
    ("I6", "attempts of a task are 1, 2, 3 …, one open at a time"),
    ("I7", "every attempt that was started has one outcome"),
    ("I9", "only the open attempt of the worker that began it changes anything"),
    ("I10", "a task starts when what it needs is there, and is skipped only when that cannot come"),
    ("I11", "no more attempts than the plan allows, none after the last outcome, none before its pause is over"),
    ("I12", "no more attempts at a time than workers may be, one for each worker"),
    ("I13", "one `run_ended`, when every task has its outcome, with the right counts and status"),
    ("I14", "nothing follows `run_ended` but deliveries, decisions, repairs and farewells"),
    ("I15", "the plan is the one that `run_started` names"),
    ("I24", "each piece of news is recorded as delivered once, to the session that owns the run"),
    (
        "I26",
        "a voter of the plan has one vote, the first; each vote has one verdict, that of its votes, before the run ends",
    ),
    ("D15", "nothing starts after it was cancelled, nothing is cancelled that nobody wanted cancelled"),
    ("W", "a worker is met once, acts between its beginning and its end, and leaves without an attempt"),
    ("E8", "no effect without a `started` before it"),
    ("E11", "attempts of a task never overlap, and each begins once"),
    ("E7", "nothing is done for an attempt once its outcome is in the log"),
    ("E9", "what is done has begun and ended before"),
    ("E10", "a task begins when what it needs has ended"),
    ("E12", "no more tasks at a time than workers may be"),
    ("E1", "effects are lines of the known shape"),
    (
        "T",
        "what was taken over stands right behind `run_started`, begun and done by nobody, and nothing is done for it",
    ),
    ("Q", "no `claude` task starts before there is quota again"),
];

/// So many refusals of a task for want of quota are not its failures.
const REFUSALS: u64 = 10;

/// Why a task has no part in a run that continues another one.
const LEFT_OUT: &str = "not asked for in this run";

const TERMINAL: [&str; 5] = ["done", "failed", "timed_out", "cancelled", "lost"];
const AFTER_THE_END: [&str; 5] = ["delivered", "decision", "adopted", "log_repaired", "worker_exited"];
const OTHERS: [&str; 19] = [
    "run_started",
    "worker_started",
    "worker_exited",
    "worker_lost",
    "started",
    "spawned",
    "progress",
    "checkpoint",
    "skipped",
    "vote",
    "verdict",
    "delivered",
    "decision",
    "observed",
    "awaited",
    "adopted",
    "cancel_requested",
    "log_repaired",
    "run_ended",
];

/// Where a violation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    /// A line of the log, from 1.
    Log(usize),
    /// A line of the effects, from 1.
    Effects(usize),
    /// The end of the history.
    End,
}

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// A name of [`RULES`].
    pub(crate) rule: &'static str,
    /// Where.
    pub(crate) line: Line,
    /// What.
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Line::Log(n) => write!(f, "events.jsonl:{n}")?,
            Line::Effects(n) => write!(f, "effects.jsonl:{n}")?,
            Line::End => write!(f, "in the end")?,
        }
        write!(f, ": {}: {}", self.rule, self.what)
    }
}

/// One try of a task.
#[derive(Debug, Clone)]
struct Try {
    token: u64,
    worker: String,
    spawned: bool,
    refused: bool,
    /// Sequence number and kind of its outcome.
    end: Option<(u64, String)>,
}

/// A task as the history leaves it.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    /// Its id.
    pub(crate) id: String,
    /// `waiting`, `running`, `retrying`, or its outcome.
    pub(crate) state: String,
    /// Who ran its last attempt.
    pub(crate) worker: Option<String>,
    /// The payload of the last outcome.
    pub(crate) last: Value,
    needs: Vec<usize>,
    /// Topics, with what must come out.
    verdicts: Vec<(String, String)>,
    /// Checkpoints that it needs: whose, and which.
    points: Vec<(usize, String)>,
    /// Checkpoints that it has come to.
    came: BTreeSet<String>,
    retries: u64,
    tolerant: bool,
    claude: bool,
    cancelled: bool,
    tries: Vec<Try>,
    /// When attempts were lost, in milliseconds.
    crashes: Vec<u64>,
    /// Sequence number of what closed it for good.
    closed: Option<u64>,
    retry_at: u64,
}

impl Task {
    /// Attempts begun.
    pub(crate) fn attempts(&self) -> usize {
        self.tries.len()
    }

    /// Whether a further attempt may come: failures count against the retries, lost attempts don't, unless three of them came
    /// within a minute, nor do the first refusals for want of quota. Without retries nothing is tried again.
    fn may_come(&self) -> bool {
        let failed = |t: &&Try| t.end.as_ref().is_some_and(|(_, kind)| kind == "failed" || kind == "timed_out");
        let refusals = self.tries.iter().filter(|t| t.refused).count() as u64;
        let failures = self.tries.iter().filter(failed).count() as u64 - refusals.min(REFUSALS);
        let deadly = self.crashes.windows(3).any(|three| three[2].saturating_sub(three[0]) <= 60_000);
        self.tries.is_empty() || (self.retries > 0 && failures <= self.retries && !deadly)
    }

    /// Whether it was done in the run that this one continues.
    fn is_taken(&self) -> bool {
        self.tries.first().is_some_and(|t| t.worker.is_empty())
    }

    fn open(&self) -> Option<usize> {
        self.tries.last().filter(|t| t.end.is_none()).map(|_| self.tries.len())
    }

    /// Whether those that need it may start.
    fn satisfies(&self) -> bool {
        let failed = matches!(self.state.as_str(), "failed" | "timed_out" | "lost");
        self.state == "done" || (self.closed.is_some() && self.tolerant && failed)
    }

    /// Whether those that need it can never start.
    fn dooms(&self) -> bool {
        self.closed.is_some() && !self.satisfies()
    }
}

/// What the checker found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Everything that must not be.
    pub(crate) violations: Vec<Violation>,
    /// The tasks in the order of the plan.
    pub(crate) tasks: Vec<Task>,
    /// Number of events.
    pub(crate) events: u64,
    /// How often each kind occurs.
    pub(crate) kinds: BTreeMap<String, u64>,
    /// The payload of `run_ended`.
    pub(crate) ended: Option<Value>,
    /// `max_workers` of `run_started`.
    pub(crate) max_workers: u64,
    /// Sequence numbers of what a session must be told.
    pub(crate) news: BTreeSet<u64>,
    /// Of what it may be told beside: who has begun after another one, and checkpoints that are for it.
    pub(crate) beside: BTreeSet<u64>,
    /// Those of them that were delivered.
    pub(crate) delivered: BTreeSet<u64>,
    /// Lines of effects.
    pub(crate) effects: usize,
    /// Effects that SIGKILL tore.
    pub(crate) torn_effects: usize,
    /// Bytes behind the last line feed.
    pub(crate) torn_bytes: usize,
    workers: BTreeMap<String, bool>,
    session: Option<String>,
    cancelled: bool,
    /// When there is quota again.
    quota_until: u64,
    /// The run that this one continues.
    from: Option<String>,
    /// Something else than what was taken over has happened.
    under_way: bool,
    /// Begun by nobody: the next line says that it was done.
    taking: Option<usize>,
    /// Per topic what was voted, and what came out.
    polls: BTreeMap<String, Poll>,
}

/// A vote of the plan.
#[derive(Debug, Default)]
struct Poll {
    voters: Vec<usize>,
    quorum: u64,
    unanimous: bool,
    default: String,
    on_abort: String,
    votes: BTreeMap<usize, String>,
    verdict: Option<String>,
    escalates: bool,
}

impl Report {
    /// The violations as text, one a line.
    pub(crate) fn complaints(&self) -> String {
        self.violations.iter().map(Violation::to_string).collect::<Vec<_>>().join("\n")
    }

    /// How many tasks are in one of these states.
    pub(crate) fn count(&self, states: &[&str]) -> usize {
        self.tasks.iter().filter(|t| states.contains(&t.state.as_str())).count()
    }

    /// How often a kind occurs.
    pub(crate) fn kind(&self, kind: &str) -> u64 {
        self.kinds.get(kind).copied().unwrap_or(0)
    }

    fn wrong(&mut self, rule: &'static str, line: Line, what: impl Into<String>) {
        self.violations.push(Violation { rule, line, what: what.into() });
    }
}

/// One line of the log, as far as it was readable.
struct Event<'a> {
    n: usize,
    t: &'a str,
    seq: u64,
    worker: Option<&'a str>,
    task: Option<&'a str>,
    attempt: Option<usize>,
    payload: &'a Value,
}

/// Judges a history. `settled`: faults have stopped and the run was given its time, so that it must have ended and nothing
/// may be open or torn.
pub(crate) fn check(log: &[u8], plan: &[u8], effects: &[u8], settled: bool) -> Report {
    let mut report = Report::default();
    let data: Value = serde_json::from_slice(plan).unwrap_or_default();
    report.tasks = tasks(&data);
    report.from = data["from"].as_str().map(ToOwned::to_owned);
    report.polls = polls(&data, &report.tasks);
    if report.tasks.is_empty() {
        report.wrong("I15", Line::End, "plan.json names no tasks");
    }
    let whole = log.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    report.torn_bytes = log.len() - whole;
    if settled && report.torn_bytes > 0 {
        report.wrong("I1", Line::End, format!("{} bytes stand behind the last line feed", report.torn_bytes));
    }
    let index: BTreeMap<String, usize> = report.tasks.iter().enumerate().map(|(i, t)| (t.id.clone(), i)).collect();
    for (i, line) in log[..whole].split_inclusive(|b| *b == b'\n').enumerate() {
        judge_line(&mut report, &index, plan, &data, i + 1, &line[..line.len() - 1]);
    }
    if settled {
        settled_rules(&mut report);
    }
    effects_rules(&mut report, &index, effects);
    report
}

fn tasks(plan: &Value) -> Vec<Task> {
    let none = Vec::new();
    let all = plan["tasks"].as_array().unwrap_or(&none);
    let ids: Vec<&str> = all.iter().map(|t| t["id"].as_str().unwrap_or_default()).collect();
    all.iter()
        .map(|t| Task {
            id: t["id"].as_str().unwrap_or_default().to_owned(),
            state: "waiting".into(),
            worker: None,
            last: Value::Null,
            needs: t["needs"]
                .as_array()
                .unwrap_or(&none)
                .iter()
                .filter_map(|n| ids.iter().position(|id| n.as_str() == Some(id)))
                .collect(),
            verdicts: t["needs"]
                .as_array()
                .unwrap_or(&none)
                .iter()
                .filter_map(|n| n.as_str()?.split_once('?'))
                .map(|(topic, choice)| (topic.to_owned(), choice.to_owned()))
                .collect(),
            points: t["needs"]
                .as_array()
                .unwrap_or(&none)
                .iter()
                .filter_map(|n| n.as_str()?.split_once('@'))
                .filter_map(|(task, name)| Some((ids.iter().position(|id| task == *id)?, name.to_owned())))
                .collect(),
            came: BTreeSet::new(),
            retries: t["retries"].as_u64().unwrap_or(0),
            tolerant: t["allow_failure"].as_bool().unwrap_or(false),
            claude: !t["claude"].is_null(),
            cancelled: false,
            tries: Vec::new(),
            crashes: Vec::new(),
            closed: None,
            retry_at: 0,
        })
        .collect()
}

fn polls(plan: &Value, tasks: &[Task]) -> BTreeMap<String, Poll> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let place = |v: &Value| tasks.iter().position(|t| v.as_str() == Some(&t.id));
    let poll = |v: &Value| Poll {
        voters: v["voters"].as_array().into_iter().flatten().filter_map(place).collect(),
        quorum: v["quorum"].as_u64().unwrap_or(0),
        unanimous: v["rule"] == "unanimous",
        default: text(&v["default"]),
        on_abort: text(&v["on_abort"]),
        ..Poll::default()
    };
    plan["votes"].as_array().into_iter().flatten().map(|v| (text(&v["topic"]), poll(v))).collect()
}

fn judge_vote(report: &mut Report, event: &Event<'_>, i: usize) {
    let at = Line::Log(event.n);
    // Of what is taken over, nobody says what it had voted.
    if event.worker.is_some() && !is_current(report, event, i) {
        return;
    }
    let (id, topic) = (report.tasks[i].id.clone(), event.payload["topic"].as_str().unwrap_or_default());
    let decision = event.payload["decision"].as_str().unwrap_or_default().to_owned();
    let Some(poll) = report.polls.get_mut(topic) else {
        return report.wrong("I26", at, format!("{id} votes about {topic:?}, which is not in the plan"));
    };
    if event.payload["refused"].is_string() {
        return;
    }
    if !poll.voters.contains(&i) || poll.verdict.is_some() || !["proceed", "abort"].contains(&decision.as_str()) {
        return report.wrong("I26", at, format!("the vote {decision:?} of {id} about {topic} counts"));
    }
    if poll.votes.insert(i, decision).is_some() {
        report.wrong("I26", at, format!("{id} votes twice about {topic}"));
    }
}

fn judge_verdict(report: &mut Report, event: &Event<'_>) {
    let at = Line::Log(event.n);
    let p = event.payload;
    let topic = p["topic"].as_str().unwrap_or_default();
    let Some(poll) = report.polls.get_mut(topic) else {
        return report.wrong("I26", at, format!("a verdict about {topic:?}, which is not in the plan"));
    };
    let of = |choice: &str| poll.votes.values().filter(|v| *v == choice).count() as u64;
    let (proceed, abort) = (of("proceed"), of("abort"));
    let vetoed = poll.unanimous && abort > 0;
    let no_quorum = proceed + abort < poll.quorum && !vetoed;
    let result = match (no_quorum, poll.unanimous) {
        (true, _) => poll.default.as_str(),
        (false, true) if !vetoed => "proceed",
        (false, false) if proceed > abort => "proceed",
        (false, _) => "abort",
    };
    let absent = poll.voters.len() as u64 - proceed - abort;
    let right = p["result"] == result
        && p["no_quorum"].as_bool().unwrap_or(false) == no_quorum
        && (p["proceed"].as_u64(), p["abort"].as_u64(), p["absent"].as_u64())
            == (Some(proceed), Some(abort), Some(absent));
    let alarm = result == "abort" && poll.on_abort == "signal" && !report.cancelled;
    let again = poll.verdict.replace(p["result"].as_str().unwrap_or_default().to_owned()).is_some();
    poll.escalates = p["escalates"] == true;
    let escalates = poll.escalates;
    report.news.insert(event.seq);
    if again {
        report.wrong("I26", at, format!("a second verdict about {topic}"));
    }
    if !right || escalates != alarm {
        report.wrong("I26", at, format!("{p} is not what {proceed} for and {abort} against make it"));
    }
}

fn judge_line(report: &mut Report, index: &BTreeMap<String, usize>, plan: &[u8], data: &Value, n: usize, line: &[u8]) {
    let at = Line::Log(n);
    if line.len() >= 64 * 1024 {
        report.wrong("I1", at, format!("{} bytes long", line.len()));
    }
    if !line.starts_with(b"{\"t\":\"") {
        report.wrong("I1", at, "does not begin with its kind");
    }
    let value: Value = match std::str::from_utf8(line).map(serde_json::from_str) {
        Ok(Ok(value)) => value,
        Ok(Err(e)) => return report.wrong("I1", at, format!("is not JSON: {e}")),
        Err(e) => return report.wrong("I1", at, format!("is not UTF-8: {e}")),
    };
    let (Some(t), Some(seq), true, true) =
        (value["t"].as_str(), value["seq"].as_u64(), value["ts"].is_string(), value["payload"].is_object())
    else {
        return report.wrong("I1", at, "lacks `t`, `seq`, `ts` or `payload`");
    };
    report.events += 1;
    *report.kinds.entry(t.to_owned()).or_default() += 1;
    if !TERMINAL.contains(&t) && !OTHERS.contains(&t) {
        report.wrong("I1", at, format!("kind {t} is unknown"));
    }
    if seq != report.events {
        report.wrong("I2", at, format!("seq {seq} where {} must be", report.events));
    }
    if (t == "run_started") != (report.events == 1) {
        report.wrong("I2", at, format!("{t} is event number {}", report.events));
    }
    if report.ended.is_some() && !AFTER_THE_END.contains(&t) {
        let rule = if t == "run_ended" { "I13" } else { "I14" };
        report.wrong(rule, at, format!("{t} after run_ended"));
    }
    let event = Event {
        n,
        t,
        seq,
        worker: value["worker"].as_str(),
        task: value["task"].as_str(),
        attempt: value["attempt"].as_u64().and_then(|a| usize::try_from(a).ok()),
        payload: &value["payload"],
    };
    judge_taken(report, index, &event);
    match t {
        "run_started" => {
            let named = event.payload["plan_sha256"].as_str().unwrap_or_default();
            let hash = sha256(plan);
            if named != hash {
                report.wrong("I15", at, format!("plan.json has hash {hash}, the log names {named}"));
            }
            report.max_workers = event.payload["max_workers"].as_u64().unwrap_or(0);
            if data["limits"]["max_workers"].as_u64() != Some(report.max_workers) {
                report.wrong("I12", at, format!("max_workers {} is not the plan's", report.max_workers));
            }
            report.session = event.payload["session"].as_str().map(ToOwned::to_owned);
        }
        "worker_started" | "worker_exited" | "worker_lost" => judge_worker(report, &event),
        "cancel_requested" => match event.task {
            None => report.cancelled = true,
            Some(task) => match index.get(task) {
                Some(&i) => report.tasks[i].cancelled = true,
                None => report.wrong("I15", at, format!("task {task} is not in the plan")),
            },
        },
        "delivered" => judge_delivered(report, &event),
        "checkpoint" if event.payload["inject"] == true => {
            report.beside.insert(event.seq);
        }
        "adopted" => {
            let text = |key: &str| event.payload[key].as_str().map(ToOwned::to_owned);
            if text("from") != report.session {
                report.wrong("I24", at, format!("adopted from {}, which does not have it", event.payload["from"]));
            }
            report.session = text("session");
        }
        "run_ended" => judge_end(report, &event),
        "verdict" => judge_verdict(report, &event),
        _ => {
            let Some(task) = event.task else {
                if matches!(t, "started" | "spawned" | "progress" | "skipped") || TERMINAL.contains(&t) {
                    report.wrong("I9", at, format!("{t} names no task"));
                }
                return;
            };
            let Some(&i) = index.get(task) else {
                return report.wrong("I15", at, format!("task {task} is not in the plan"));
            };
            match t {
                "started" => judge_started(report, &event, i),
                "spawned" | "progress" | "checkpoint" => judge_word(report, &event, i),
                "skipped" => judge_skipped(report, &event, i),
                "vote" => judge_vote(report, &event, i),
                t if TERMINAL.contains(&t) => judge_outcome(report, &event, i),
                _ => {}
            }
        }
    }
}

/// The hash of a plan's bytes, as `run_started` names it.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or('?');
    Sha256::digest(bytes).iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// What was taken over: nobody's `started`, then nobody's `done`, which names the run that is continued.
fn judge_taken(report: &mut Report, index: &BTreeMap<String, usize>, event: &Event<'_>) {
    let at = Line::Log(event.n);
    let task = event.task.and_then(|task| index.get(task).copied());
    if event.t == "vote" && report.taking.is_some() && task == report.taking && event.worker.is_none() {
        return;
    }
    if let Some(i) = report.taking.take()
        && (event.t != "done" || task != Some(i) || event.worker.is_some())
    {
        report.wrong("T", at, format!("{} was taken over, and then comes {}", report.tasks[i].id, event.t));
    }
    let names = event.payload["from"].as_str().map(ToOwned::to_owned);
    match (event.t, event.worker) {
        ("run_started", _) => return,
        ("skipped", None) if event.payload["because"] == LEFT_OUT => {}
        ("started", None) => report.taking = task,
        ("done", None) if names.is_some() && names == report.from => {}
        ("done", who) if who.is_none() || names.is_some() => {
            report.wrong("T", at, format!("done by {who:?} in {names:?}, the run continues {:?}", report.from));
        }
        _ => {
            report.under_way = true;
            return;
        }
    }
    if report.under_way || report.from.is_none() {
        report.wrong("T", at, format!("{} of nobody, not right behind the beginning of a continued run", event.t));
    }
}

fn judge_worker(report: &mut Report, event: &Event<'_>) {
    let at = Line::Log(event.n);
    let Some(worker) = event.worker else { return report.wrong("W", at, format!("{} names no worker", event.t)) };
    let known = report.workers.get(worker).copied();
    match (event.t, known) {
        ("worker_started", None) => {
            report.workers.insert(worker.to_owned(), true);
        }
        ("worker_started", Some(_)) => report.wrong("W", at, format!("{worker} begins twice")),
        (t, Some(true)) => {
            report.workers.insert(worker.to_owned(), false);
            let holds: Vec<String> =
                report.tasks.iter().filter(|t| holder(t) == Some(worker)).map(|t| t.id.clone()).collect();
            if !holds.is_empty() {
                report.wrong("W", at, format!("{t}: {worker} still has {}", holds.join(", ")));
            }
        }
        (t, _) => report.wrong("W", at, format!("{t}: {worker} is not there")),
    }
}

fn holder(task: &Task) -> Option<&str> {
    task.tries.last().filter(|t| t.end.is_none()).map(|t| t.worker.as_str())
}

fn judge_started(report: &mut Report, event: &Event<'_>, i: usize) {
    let at = Line::Log(event.n);
    let task = report.tasks[i].clone();
    let id = &task.id;
    let number = event.attempt.unwrap_or(0);
    if !event.payload["after"].is_null() {
        report.beside.insert(event.seq);
    }
    if number != task.attempts() + 1 {
        report.wrong("I6", at, format!("attempt {number} of {id} follows attempt {}", task.attempts()));
    }
    if let Some(open) = task.open() {
        report.wrong("I6", at, format!("attempt {open} of {id} is still open"));
    }
    for &need in &task.needs {
        if !report.tasks[need].satisfies() {
            let what = format!("{id} starts while {} is {}", report.tasks[need].id, report.tasks[need].state);
            report.wrong("I10", at, what);
        }
    }
    for (topic, choice) in &task.verdicts {
        if report.polls.get(topic).and_then(|poll| poll.verdict.as_ref()) != Some(choice) {
            report.wrong("I10", at, format!("{id} starts without {topic}?{choice}"));
        }
    }
    for (need, name) in &task.points {
        let needed = &report.tasks[*need];
        if !needed.came.contains(name) && !needed.is_taken() {
            let what = format!("{id} starts, and {} has not come to {name}", needed.id);
            report.wrong("I10", at, what);
        }
    }
    if !task.may_come() {
        report.wrong("I11", at, format!("{id} may not be tried again, with {} retries", task.retries));
    }
    if task.closed.is_some() {
        report.wrong("I11", at, format!("{id} is {} already", task.state));
    }
    let mono = event.payload["mono_ms"].as_u64().unwrap_or(0);
    if mono < task.retry_at {
        report.wrong("I11", at, format!("{id} starts {} ms before its pause is over", task.retry_at - mono));
    }
    if report.cancelled || task.cancelled {
        report.wrong("D15", at, format!("{id} starts after it was cancelled"));
    }
    if task.claude && mono < report.quota_until {
        report.wrong("Q", at, format!("{id} starts {} ms before there is quota", report.quota_until - mono));
    }
    let worker = event.worker.unwrap_or_default();
    if report.taking != Some(i) && report.workers.get(worker) != Some(&true) {
        report.wrong("W", at, format!("{id} is started by {worker:?}, which is not there"));
    }
    let open = report.tasks.iter().filter(|t| t.open().is_some()).count() as u64;
    if open >= report.max_workers {
        report.wrong("I12", at, format!("{} attempts are open, {} may be", open + 1, report.max_workers));
    }
    if let Some(other) = report.tasks.iter().find(|t| holder(t) == Some(worker)).map(|t| t.id.clone()) {
        report.wrong("I12", at, format!("{worker} starts {id} while it has {other}"));
    }
    let task = &mut report.tasks[i];
    let worker = worker.to_owned();
    task.worker = event.worker.map(ToOwned::to_owned);
    task.tries.push(Try { token: event.seq, worker, spawned: false, refused: false, end: None });
    task.state = "running".into();
}

/// Whether an event speaks of the open attempt, in the name of the worker that began it.
fn is_current(report: &mut Report, event: &Event<'_>, i: usize) -> bool {
    let task = &report.tasks[i];
    let open = task.open();
    if open.is_none() || event.attempt != open {
        let what = format!("{} of attempt {:?} of {}, but {open:?} is open", event.t, event.attempt, task.id);
        report.wrong("I9", Line::Log(event.n), what);
        return false;
    }
    let holder = holder(task).unwrap_or_default();
    if event.worker.unwrap_or_default() != holder {
        let what = format!("{} of {} by {:?}, but {holder} has it", event.t, task.id, event.worker);
        report.wrong("I9", Line::Log(event.n), what);
    }
    true
}

fn judge_word(report: &mut Report, event: &Event<'_>, i: usize) {
    if !is_current(report, event, i) || event.t == "progress" {
        return;
    }
    if event.t == "checkpoint" {
        let name = event.payload["name"].as_str().unwrap_or_default();
        report.tasks[i].came.insert(name.to_owned());
        return;
    }
    let id = report.tasks[i].id.clone();
    if let Some(last) = report.tasks[i].tries.last_mut()
        && std::mem::replace(&mut last.spawned, true)
    {
        report.wrong("I9", Line::Log(event.n), format!("the attempt of {id} is spawned twice"));
    }
}

fn judge_skipped(report: &mut Report, event: &Event<'_>, i: usize) {
    let at = Line::Log(event.n);
    let task = &report.tasks[i];
    let id = task.id.clone();
    if task.open().is_some() || task.closed.is_some() {
        let what = format!("{id} is skipped, but it is {}", task.state);
        report.wrong("I9", at, what);
    }
    let because = event.payload["because"].as_str().unwrap_or_default();
    // Those that are skipped together stand in any order, so that only what is final counts as a cause.
    let doomed = report.tasks[i].needs.iter().any(|&n| report.tasks[n].dooms() && report.tasks[n].id == because);
    let outvoted = |need: &(String, String)| {
        let said = report.polls.get(&need.0).and_then(|poll| poll.verdict.as_deref());
        said.is_some_and(|said| said != need.1 && because == format!("the vote {} said {said}", need.0))
    };
    let doomed = doomed || report.tasks[i].verdicts.iter().any(outvoted);
    let in_vain = report.tasks[i].points.iter().any(|(n, name)| {
        let needed = &report.tasks[*n];
        let ended_without = needed.closed.is_some() && !needed.came.contains(name);
        ended_without && because.split(' ').next() == Some(needed.id.as_str())
    });
    if !doomed && !in_vain && !is_halt(because) && because != LEFT_OUT {
        report.wrong("I10", at, format!("{id} is skipped because of {because:?}, which does not make it impossible"));
    }
    close(report, event, i, "skipped");
}

/// Whether this is about the run and not about a task.
fn is_halt(because: &str) -> bool {
    let reasons = ["the run's budget is spent", "the quota is used up until after the run's time limit"];
    because.starts_with("interrupted: ") || reasons.contains(&because)
}

fn close(report: &mut Report, event: &Event<'_>, i: usize, state: &str) {
    let task = &mut report.tasks[i];
    state.clone_into(&mut task.state);
    task.closed = Some(event.seq);
    task.last = event.payload.clone();
    report.news.insert(event.seq);
}

fn judge_outcome(report: &mut Report, event: &Event<'_>, i: usize) {
    let at = Line::Log(event.n);
    let task = report.tasks[i].clone();
    let never_began = event.t == "cancelled" && event.attempt.is_none() && task.open().is_none();
    if never_began && task.closed.is_some() {
        return report.wrong("I9", at, format!("{} is cancelled, but it is {}", task.id, task.state));
    }
    if !never_began && !is_current(report, event, i) {
        return;
    }
    if event.t == "cancelled" && !report.cancelled && !task.cancelled {
        report.wrong("D15", at, format!("nobody wanted {} cancelled", task.id));
    }
    if let Some(last) = report.tasks[i].tries.last_mut().filter(|t| t.end.is_none()) {
        last.end = Some((event.seq, event.t.to_owned()));
        if let Some(until) = event.payload["quota_until"].as_u64() {
            last.refused = event.t == "failed";
            report.quota_until = report.quota_until.max(until);
        }
    }
    if event.t == "lost" {
        report.tasks[i].crashes.push(event.payload["mono_ms"].as_u64().unwrap_or(0));
    }
    if event.payload["will_retry"].as_bool() == Some(true) {
        if !report.tasks[i].may_come() || matches!(event.t, "done" | "cancelled") {
            report.wrong("I11", at, format!("{} of {} promises a further attempt", event.t, task.id));
        }
        let task = &mut report.tasks[i];
        task.state = "retrying".into();
        task.last = event.payload.clone();
        task.retry_at = event.payload["retry_at"].as_u64().unwrap_or(0);
        return;
    }
    close(report, event, i, event.t);
}

fn judge_delivered(report: &mut Report, event: &Event<'_>) {
    let at = Line::Log(event.n);
    if event.payload["session"].as_str().map(ToOwned::to_owned) != report.session {
        report.wrong("I24", at, format!("delivered to {}", event.payload["session"]));
    }
    for seq in event.payload["news"].as_array().into_iter().flatten() {
        let seq = seq.as_u64().unwrap_or(0);
        if !report.news.contains(&seq) && !report.beside.contains(&seq) {
            report.wrong("I24", at, format!("{seq} is no news"));
        }
        if !report.delivered.insert(seq) {
            report.wrong("I24", at, format!("{seq} is delivered twice"));
        }
    }
}

fn judge_end(report: &mut Report, event: &Event<'_>) {
    let at = Line::Log(event.n);
    if report.ended.is_none() {
        let open: Vec<String> =
            report.tasks.iter().filter(|t| t.closed.is_none()).map(|t| format!("{} {}", t.id, t.state)).collect();
        if !open.is_empty() {
            report.wrong("I13", at, format!("the run ends before its tasks: {}", open.join(", ")));
        }
        let failed = ["failed", "timed_out", "lost"];
        let counts = [
            ("done", report.count(&["done"])),
            ("failed", report.count(&failed)),
            ("skipped", report.count(&["skipped"])),
            ("cancelled", report.count(&["cancelled"])),
        ];
        for (word, n) in counts {
            if event.payload[word].as_u64() != Some(n as u64) {
                report.wrong("I13", at, format!("{n} tasks are {word}, the end says {}", event.payload[word]));
            }
        }
        let bad = report.tasks.iter().any(|t| failed.contains(&t.state.as_str()) && !t.tolerant);
        let cancelled = report.cancelled || (report.count(&["cancelled"]) > 0 && !bad);
        // Who was left out on purpose, and who needs it, spoils nothing.
        let open: Vec<&str> =
            report.polls.iter().filter(|(_, p)| p.verdict.is_none()).map(|(t, _)| t.as_str()).collect();
        let open = open.join(", ");
        if !open.is_empty() {
            report.wrong("I26", at, format!("the run ends before it is decided: {open}"));
        }
        let halted = |t: &Task| t.state == "skipped" && t.last["because"].as_str().is_some_and(is_halt);
        let voted_down = report.polls.values().any(|poll| poll.escalates);
        let missed = |(n, name): &(usize, String)| {
            let needed = &report.tasks[*n];
            needed.attempts() > 0 && !needed.is_taken() && !needed.came.contains(name)
        };
        let in_vain = |t: &Task| t.state == "skipped" && t.points.iter().any(missed);
        let spoilt = report.tasks.iter().any(|t| halted(t) || in_vain(t));
        let status = match (cancelled, bad || voted_down || spoilt) {
            (true, _) => "cancelled",
            (false, true) => "failed",
            (false, false) => "ok",
        };
        if event.payload["status"] != status {
            report.wrong("I13", at, format!("the run is {status}, the end says {}", event.payload["status"]));
        }
        report.ended = Some(event.payload.clone());
        report.news.insert(event.seq);
    }
}

fn settled_rules(report: &mut Report) {
    for i in 0..report.tasks.len() {
        if let Some(number) = report.tasks[i].open() {
            let what = format!("attempt {number} of {} has no outcome", report.tasks[i].id);
            report.wrong("I7", Line::End, what);
        }
    }
    if report.ended.is_none() {
        report.wrong("I13", Line::End, "the run has not ended");
    }
}

struct Effect {
    n: usize,
    task: usize,
    attempt: usize,
    phase: String,
    seen: u64,
}

fn effects_rules(report: &mut Report, index: &BTreeMap<String, usize>, bytes: &[u8]) {
    let mut effects = Vec::new();
    for (i, line) in bytes.split(|b| *b == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
        let at = Line::Effects(i + 1);
        report.effects += 1;
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            report.torn_effects += 1;
            if line.first() != Some(&b'{') || line.last() == Some(&b'}') {
                report.wrong("E1", at, format!("is not an effect: {}", String::from_utf8_lossy(line)));
            }
            continue;
        };
        let attempt = value["attempt"].as_u64().and_then(|a| usize::try_from(a).ok());
        let phase = value["phase"].as_str().filter(|p| ["begin", "end", "child"].contains(p));
        let task = value["task"].as_str().and_then(|t| index.get(t).copied());
        let (Some(task), Some(attempt), Some(phase), Some(token), Some(seen)) =
            (task, attempt, phase, value["token"].as_u64(), value["seen"].as_u64())
        else {
            report.wrong("E1", at, format!("is not an effect of this run: {value}"));
            continue;
        };
        let made =
            attempt.checked_sub(1).and_then(|a| report.tasks[task].tries.get(a)).map(|t| (t.token, t.end.clone()));
        let id = report.tasks[task].id.clone();
        if report.tasks[task].is_taken() {
            report.wrong("T", at, format!("{id} acts, though it was taken over"));
            continue;
        }
        match made {
            None => report.wrong("E8", at, format!("attempt {attempt} of {id} was never started")),
            Some((started, _)) if started != token || seen < started => {
                let what =
                    format!("attempt {attempt} of {id} has token {token} and saw {seen} lines, but began at {started}");
                report.wrong("E8", at, what);
            }
            Some((_, Some((ended, kind)))) if seen >= ended => {
                report.wrong("E7", at, format!("attempt {attempt} of {id} acts after {kind} at {ended}"));
            }
            Some(_) => effects.push(Effect { n: i + 1, task, attempt, phase: phase.to_owned(), seen }),
        }
    }
    one_after_the_other(report, &effects);
    begun_and_ended(report, &effects);
    in_order_and_within_the_limit(report, &effects);
}

fn one_after_the_other(report: &mut Report, effects: &[Effect]) {
    let mut latest = vec![0; report.tasks.len()];
    let mut begun = BTreeSet::new();
    for e in effects {
        let at = Line::Effects(e.n);
        let id = report.tasks[e.task].id.clone();
        if e.attempt < latest[e.task] {
            let what = format!("attempt {} of {id} acts while attempt {} does", e.attempt, latest[e.task]);
            report.wrong("E11", at, what);
        }
        latest[e.task] = latest[e.task].max(e.attempt);
        if e.phase == "begin" && !begun.insert((e.task, e.attempt)) {
            report.wrong("E11", at, format!("attempt {} of {id} begins twice", e.attempt));
        }
        let once = report.tasks[e.task].retries == 0;
        if once && e.phase == "begin" && e.attempt > 1 {
            report.wrong("E11", at, format!("{id} begins again, though it may be tried once"));
        }
    }
}

fn begun_and_ended(report: &mut Report, effects: &[Effect]) {
    let place = |phase: &str| -> BTreeMap<(usize, usize), usize> {
        effects.iter().filter(|e| e.phase == phase).map(|e| ((e.task, e.attempt), e.n)).collect()
    };
    let (begins, ends) = (place("begin"), place("end"));
    for i in (0..report.tasks.len()).filter(|&i| !report.tasks[i].is_taken()).collect::<Vec<_>>() {
        for (k, one) in report.tasks[i].tries.clone().iter().enumerate() {
            let Some((seq, _)) = one.end.as_ref().filter(|(_, kind)| kind == "done") else { continue };
            let id = &report.tasks[i].id;
            let (begin, end) = (begins.get(&(i, k + 1)), ends.get(&(i, k + 1)));
            let fine = begin.zip(end).is_some_and(|(b, e)| b < e);
            if !fine {
                let what = format!("{id} is done at {seq}, its begin is in line {begin:?}, its end in line {end:?}");
                report.wrong("E9", Line::End, what);
            }
        }
    }
}

fn in_order_and_within_the_limit(report: &mut Report, effects: &[Effect]) {
    let mut ended = BTreeSet::new();
    let whole: BTreeSet<(usize, usize)> =
        effects.iter().filter(|e| e.phase == "end").map(|e| (e.task, e.attempt)).collect();
    let mut running = BTreeSet::new();
    for e in effects {
        let at = Line::Effects(e.n);
        match e.phase.as_str() {
            "end" => {
                ended.insert(e.task);
                running.remove(&e.task);
            }
            "begin" => {
                for need in report.tasks[e.task].needs.clone() {
                    let (id, needed) = (report.tasks[e.task].id.clone(), &report.tasks[need]);
                    let there = needed.closed.is_some_and(|seq| seq <= e.seen);
                    if !there || (needed.state == "done" && !needed.is_taken() && !ended.contains(&need)) {
                        let what = format!("{id} begins before {} has ended ({})", needed.id, needed.state);
                        report.wrong("E10", at, what);
                    }
                }
                // An attempt that was killed says no end: only those count that were there for sure.
                if whole.contains(&(e.task, e.attempt)) {
                    running.insert(e.task);
                }
                if running.len() as u64 > report.max_workers {
                    let what = format!("{} tasks at a time, {} may be", running.len(), report.max_workers);
                    report.wrong("E12", at, what);
                }
            }
            _ => {}
        }
    }
}
