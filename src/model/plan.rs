//! A plan: the tasks of one run, what they need, what they claim, and what is to be merged into the session's tool calls.
//!
//! These are the types of `plan.json` as cpw itself writes it, complete and checked; it is immutable from then on. What
//! people write (a plan file, a rule) is read by `model::check`, which reports every mistake at once; this module trusts
//! its input and is used to read back what cpw wrote.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::base::ids::{BadId, CheckpointName, RunId, SessionId, TaskId, Topic};
use crate::base::span::{Limit, Span};
use crate::model::signal::Right;
use crate::model::vote::{Choice, Vote};

/// The version of the plan format that this cpw writes.
pub const VERSION: u32 = 1;

/// The most tasks that one plan may have.
pub const MAX_TASKS: usize = 10_000;

/// One run's tasks and how the session is to be treated meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Format version, [`VERSION`].
    pub version: u32,
    /// The run that executes it.
    pub run: RunId,
    /// The session that owns the run; absent for a run of a terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionId>,
    /// The rule it was made from; absent for a plan that a person wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The run that it continues: what was done there is taken over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<RunId>,
    /// Bounds of the whole run.
    pub limits: Limits,
    /// How long after the client has gone the run is cancelled; absent: it goes on to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orphan_grace: Option<Span>,
    /// What its log survives.
    #[serde(default)]
    pub durability: Durability,
    /// How the session is informed and held.
    pub conductor: Conductor,
    /// What to run. Order is the order of starting where needs and priority leave a choice.
    pub tasks: Vec<Task>,
    /// What to put into the session's tool calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merge: Vec<Merge>,
    /// By resource, which of the session's tool calls use it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub resources: BTreeMap<String, Used>,
    /// What its tasks vote about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub votes: Vec<Vote>,
}

impl Plan {
    /// Whether commit events must survive a power cut.
    pub fn is_durable(&self) -> bool {
        self.durability == Durability::Power
    }
}

/// Which tool calls of the session use a resource.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// As `model::matcher` reads them.
    pub tools: Vec<String>,
}

/// What a log survives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// The death of any process.
    #[default]
    Process,
    /// A power cut as well: what others act on is synced to disk first.
    Power,
}

/// Bounds of a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Tasks that run at the same time, at most.
    pub max_workers: u32,
    /// How long the run may take.
    pub run_timeout: Limit,
    /// `claude` tasks that run at the same time, at most; as many as workers where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_claude: Option<u32>,
    /// What the run's `claude` tasks may spend together, in US dollars.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_budget_usd: Option<f64>,
}

/// What happens when the session touches a claimed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnClaimed {
    /// Hold the call for a while, then refuse it with who has the file and how far it is.
    Wait,
    /// Refuse at once.
    Block,
    /// Hand a Read the finished result instead of the file.
    Redirect,
    /// Let it pass, with a note.
    Note,
    /// Let it pass.
    Off,
}

/// What Stop does while the run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// Wait inside the hook, then hand over what is new.
    Hold,
    /// Answer at once with what still runs.
    Block,
    /// Let the session stop.
    Off,
}

/// How much of a worker's own words the model sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerText {
    /// One quoted line.
    Line,
    /// None of it, only paths.
    None,
}

/// What a plan means that does not say.
fn yes() -> bool {
    true
}

/// How the session is informed and held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conductor {
    /// What a claimed file means for the session's tools.
    pub on_claimed: OnClaimed,
    /// How long one tool call may be held.
    pub wait: Span,
    /// What Stop does.
    pub gate: Gate,
    /// How long Stop may hold.
    pub hold: Span,
    /// Whether an idle interactive session is woken by news.
    #[serde(default = "yes")]
    pub wake: bool,
    /// Characters of news per delivery.
    pub news_chars: u32,
    /// Tokens of news per run, estimated; what comes beyond is told in short.
    #[serde(default = "Conductor::default_news_tokens")]
    pub news_tokens: u32,
    /// How much of a worker's own words is shown.
    pub worker_text: WorkerText,
}

impl Conductor {
    /// The news of fifty deliveries of usual length.
    fn default_news_tokens() -> u32 {
        20_000
    }
}

impl Default for Conductor {
    fn default() -> Self {
        Conductor {
            on_claimed: OnClaimed::Wait,
            wait: Span::from_secs(20),
            gate: Gate::Hold,
            hold: Span::from_secs(600),
            wake: true,
            news_chars: 4000,
            news_tokens: Conductor::default_news_tokens(),
            worker_text: WorkerText::Line,
        }
    }
}

/// A unit of work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Unique in the plan, ignoring case.
    pub id: TaskId,
    /// What people read instead of the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it does.
    #[serde(flatten)]
    pub action: Action,
    /// What must have happened before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<Need>,
    /// Files or globs, relative to the project or absolute, that this task answers for towards the session.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<String>,
    /// What it holds, alone, while it runs: names and files, as `model::resource` reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
    /// How long one attempt may take.
    pub timeout: Limit,
    /// Further attempts after a failed one.
    #[serde(default)]
    pub retries: u32,
    /// Pause before a further attempt.
    #[serde(default)]
    pub backoff: Backoff,
    /// Whether tasks that need this one go on when it failed.
    #[serde(default)]
    pub allow_failure: bool,
    /// Whether the session is not to stop before it has heard that this task failed, or was skipped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub critical: bool,
    /// What it may say to the session; absent: as `model::signal::may_send` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signals: Option<Vec<Right>>,
    /// A regex over the output; group 1 of its last match is the line that the session reads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// Variables set for the task.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where it runs, relative to the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Whose files it works on.
    #[serde(default, skip_serializing_if = "Isolate::is_none")]
    pub isolate: Isolate,
    /// Higher goes first among tasks that are ready.
    #[serde(default)]
    pub priority: i32,
    /// The item of `for_each`, handed over as `$CPW_ITEM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<String>,
    /// The id in the rule, where the task is one of several that were made from it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draft: Option<String>,
    /// How long it usually takes, by earlier runs of its rule, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u64>,
}

impl Task {
    /// The headless client that it starts, if it does.
    pub fn claude(&self) -> Option<&ClaudeTask> {
        match &self.action {
            Action::Claude(claude) => Some(claude),
            Action::Run(_) | Action::Shell(_) => None,
        }
    }

    /// What people call it instead of its id: its title, or the item it was made from. At most 200 characters of it.
    pub fn label(&self) -> Option<String> {
        let label = self.title.as_ref().or(self.item.as_ref())?;
        Some(label.chars().take(200).collect())
    }
}

/// Whose files a task works on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolate {
    /// The user's own.
    #[default]
    None,
    /// Those of a git worktree of its own; what it changes there is left as a patch.
    Worktree,
}

impl Isolate {
    /// Whether it works on the user's own files.
    pub fn is_none(&self) -> bool {
        *self == Isolate::None
    }
}

/// What must have happened before a task starts. Written `build`, `build@compiled`, or `deploy?proceed`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Need {
    /// This task is done.
    End(TaskId),
    /// This task has come to this checkpoint.
    Checkpoint(TaskId, CheckpointName),
    /// This vote has come out so.
    Verdict(Topic, Choice),
}

impl Need {
    /// The task that is needed, where it is one.
    pub fn task(&self) -> Option<&TaskId> {
        match self {
            Need::End(task) | Need::Checkpoint(task, _) => Some(task),
            Need::Verdict(..) => None,
        }
    }

    /// The checkpoint that is needed, where it is one.
    pub fn checkpoint(&self) -> Option<&CheckpointName> {
        match self {
            Need::Checkpoint(_, name) => Some(name),
            Need::End(_) | Need::Verdict(..) => None,
        }
    }
}

impl From<TaskId> for Need {
    fn from(task: TaskId) -> Need {
        Need::End(task)
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Need::End(task) => write!(f, "{task}"),
            Need::Checkpoint(task, name) => write!(f, "{task}@{name}"),
            Need::Verdict(topic, choice) => write!(f, "{topic}?{choice}"),
        }
    }
}

impl From<Need> for String {
    fn from(need: Need) -> String {
        need.to_string()
    }
}

impl TryFrom<String> for Need {
    type Error = String;

    fn try_from(text: String) -> Result<Need, String> {
        let bad = |e: BadId| format!("\"{text}\" {e}");
        if let Some((topic, choice)) = text.split_once('?') {
            let choice = Choice::by_name(choice).ok_or_else(|| format!("\"{text}\" names no outcome of a vote"))?;
            return Ok(Need::Verdict(Topic::new(topic).map_err(bad)?, choice));
        }
        match text.split_once('@') {
            Some((task, name)) => {
                Ok(Need::Checkpoint(TaskId::new(task).map_err(bad)?, CheckpointName::new(name).map_err(bad)?))
            }
            None => Ok(Need::End(TaskId::new(&text).map_err(bad)?)),
        }
    }
}

/// What a task does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A program and its arguments; no shell.
    Run(Vec<String>),
    /// A script for `sh -c`; values reach it as environment variables only.
    Shell(String),
    /// A headless `claude -p`.
    Claude(ClaudeTask),
}

/// A headless Claude Code session as a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaudeTask {
    /// The prompt.
    pub prompt: String,
    /// The model; the client's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Tools it may use without asking, as `--allowedTools` takes them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tools: Vec<String>,
    /// What it may do beside that.
    #[serde(default, skip_serializing_if = "PermissionMode::is_default")]
    pub permission_mode: PermissionMode,
    /// Model turns, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
    /// US dollars, at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_budget_usd: Option<f64>,
    /// A JSON schema that its answer must fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<serde_json::Value>,
}

/// The client's permission modes that make sense where nobody can be asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PermissionMode {
    /// What would have to be asked is refused.
    #[default]
    Default,
    /// Files of the project may be changed as well.
    AcceptEdits,
    /// Nothing may be changed.
    Plan,
    /// Everything that is not allowed by name is refused.
    DontAsk,
}

impl PermissionMode {
    /// The modes by the client's names for them.
    pub const NAMES: &[(&str, PermissionMode)] = &[
        ("default", PermissionMode::Default),
        ("acceptEdits", PermissionMode::AcceptEdits),
        ("plan", PermissionMode::Plan),
        ("dontAsk", PermissionMode::DontAsk),
    ];

    /// The client's name for it.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, mode)| *mode == self).map_or("default", |(name, _)| name)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
    fn is_default(&self) -> bool {
        *self == PermissionMode::Default
    }
}

/// Pause before a further attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Before the second attempt.
    pub initial: Span,
    /// The longest.
    pub max: Span,
    /// What the pause is multiplied with from attempt to attempt; 1 keeps it fixed.
    pub factor: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { initial: Span::from_secs(1), max: Span::from_secs(60), factor: 2 }
    }
}

impl Backoff {
    /// The pause after attempt number `attempt` (from 1) failed. A growing pause is made longer by up to a quarter, by `salt`
    /// (any number that differs from task to task), so that tasks that failed together don't come back together.
    pub fn after(self, attempt: u32, salt: u64) -> Span {
        let mut ms = self.initial.as_ms();
        for _ in 1..attempt.min(64) {
            ms = ms.saturating_mul(u64::from(self.factor)).min(self.max.as_ms());
        }
        let jitter = if self.factor > 1 { (ms / 4).saturating_mul(salt % 1024) / 1024 } else { 0 };
        Span::from_ms(ms.saturating_add(jitter).min(self.max.as_ms()))
    }
}

/// Results to be put into a tool call of the session, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Merge {
    /// The tool's name.
    pub tool: String,
    /// Per input field, a glob that its text must match. All must.
    #[serde(default, rename = "match", skip_serializing_if = "BTreeMap::is_empty")]
    pub matches: BTreeMap<String, String>,
    /// Tasks whose outcome it waits for.
    pub needs: Vec<TaskId>,
    /// Per input field, the template of its new text. Empty: only a guard that waits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub set: BTreeMap<String, String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_grows_to_its_limit_and_is_made_longer_by_a_quarter_at_most() {
        let growing = Backoff { initial: Span::from_secs(8), max: Span::from_secs(60), factor: 2 };
        let ms = |attempt, salt| growing.after(attempt, salt).as_ms();
        assert_eq!([ms(1, 0), ms(2, 0), ms(3, 0), ms(4, 0), ms(u32::MAX, 0)], [8_000, 16_000, 32_000, 60_000, 60_000]);
        for salt in [1, 511, 1023, u64::MAX] {
            assert!((8_000..10_000).contains(&ms(1, salt)), "{salt}");
            assert_eq!(ms(9, salt), 60_000);
        }
        assert_ne!(ms(1, 511), ms(1, 1023));
        let fixed = Backoff { factor: 1, ..growing };
        assert_eq!(fixed.after(7, 1023), Span::from_secs(8), "who asks for a fixed pause gets it");
    }
}
