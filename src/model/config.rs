//! `.claude/cpw.json` and the user-wide `config.json`: limits, how the session is treated, and rules. [`check`] reads the
//! bytes with every mistake reported, regexes included; [`parse`] is the same without compiling regexes, for bytes that
//! were checked when their user approved them, because a prompt must not pay for rules that it does not match.
//!
//! What the format has but this version does not do (`signals` of a whole plan …) is refused by name.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::base::ids::check_id;
use crate::base::span::{Limit, Span};
use crate::model::draft::{self, Depth, MergeDraft, Scope, TaskDraft, VoteDraft};
use crate::model::expand;
use crate::model::glob::Glob;
use crate::model::json::{self, Node, Problem, Report, excerpt};
use crate::model::matcher;
use crate::model::plan::{Conductor, Durability, Gate, Limits, OnClaimed, Used, WorkerText};

/// The version of the config format.
pub const VERSION: u32 = 1;

/// Keys of a config.
pub const KEYS: &[&str] =
    &["$schema", "version", "limits", "conductor", "durability", "runs_dir", "orphans", "resources", "rules"];
/// Keys of the user-wide config.
pub const USER_KEYS: &[&str] = &["$schema", "version", "limits", "conductor", "durability", "runs_dir"];
/// Keys of `limits`.
pub const LIMIT_KEYS: &[&str] =
    &["max_workers", "max_claude", "max_runs", "task_timeout", "run_timeout", "retries", "max_budget_usd"];
/// Keys of the user-wide config's `limits`.
pub const USER_LIMIT_KEYS: &[&str] = &[
    "max_workers",
    "max_claude",
    "user_workers",
    "max_runs",
    "task_timeout",
    "run_timeout",
    "retries",
    "max_budget_usd",
];
/// Keys of `conductor`.
pub const CONDUCTOR_KEYS: &[&str] =
    &["on_claimed", "wait", "gate", "hold", "wake", "news_chars", "news_tokens", "worker_text"];
/// Keys of a rule.
pub const RULE_KEYS: &[&str] = &["name", "when", "for_each", "tasks", "merge", "votes"];
/// Keys of a rule that belong to the format, but not to this version.
pub const RULE_LATER: &[&str] = &["signals", "resources"];
/// Keys of `when`.
pub const WHEN_KEYS: &[&str] = &["prompt", "files", "glob", "not", "tool", "match", "debounce"];
/// Keys of `when` that ask about a prompt, so that they say nothing about a tool call.
const WHEN_PROMPT: [&str; 3] = ["prompt", "files", "not"];
/// Keys of `when.files`.
pub const FILES_KEYS: &[&str] = &["min", "glob"];
/// Keys of `for_each`, of which one is given.
pub const FOR_EACH_KEYS: &[&str] = &["glob", "list", "group"];

/// Where a project's runs are by default, below its root.
pub const DEFAULT_RUNS: &str = ".claude/runs";

/// The longest that a tool call may be held: the client ends a hook after 600 s by default.
pub const MAX_WAIT: Span = Span::from_secs(590);
/// How long calls must have been quiet before a rule on tool calls starts, where it does not say.
pub const DEBOUNCE: Span = Span::from_secs(2);
/// The longest that such a rule may ask for.
pub const MAX_DEBOUNCE: Span = Span::from_secs(600);
/// The most tools that one rule may name.
const MAX_TOOLS: usize = 32;
/// The longest that Stop may hold.
pub const MAX_HOLD: Span = Span::from_secs(12 * 3600);

/// What a config says beside its rules. Absent values are left to the user-wide config, then to the defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Settings {
    /// Tasks of a run at the same time, at most.
    pub max_workers: Option<u32>,
    /// Workers at the same time over all runs of the user, at most, beside the first of each run. The user's own config only.
    pub user_workers: Option<u32>,
    /// `claude` tasks of a run at the same time, at most.
    pub max_claude: Option<u32>,
    /// Active runs in a project, at most.
    pub max_runs: Option<u32>,
    /// How long one attempt may take where its task does not say.
    pub task_timeout: Option<Limit>,
    /// How long a run may take.
    pub run_timeout: Option<Limit>,
    /// Further attempts where a task does not say.
    pub retries: Option<u32>,
    /// US dollars a run may cost.
    pub max_budget_usd: Option<f64>,
    /// What a claimed file means for the session's tools.
    pub on_claimed: Option<OnClaimed>,
    /// How long one tool call may be held.
    pub wait: Option<Span>,
    /// What Stop does.
    pub gate: Option<Gate>,
    /// How long Stop may hold.
    pub hold: Option<Span>,
    /// Whether an idle interactive session is woken.
    pub wake: Option<bool>,
    /// Characters of news per delivery.
    pub news_chars: Option<u32>,
    /// Tokens of news per run.
    pub news_tokens: Option<u32>,
    /// How much of a worker's own words is shown.
    pub worker_text: Option<WorkerText>,
    /// When the log is on the disk.
    pub durability: Option<Durability>,
}

fn smaller<T: PartialOrd>(a: Option<T>, b: Option<T>) -> Option<T> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if b < a { b } else { a }),
        (a, b) => a.or(b),
    }
}

fn shorter(a: Option<Limit>, b: Option<Limit>) -> Option<Limit> {
    match (a, b) {
        (Some(Limit(a)), Some(Limit(b))) => Some(Limit(smaller(a, b))),
        (a, b) => a.or(b),
    }
}

impl Settings {
    /// These settings, completed by wider ones: where both have a value this one wins, of limits the smaller.
    #[must_use]
    pub fn over(self, wider: &Settings) -> Settings {
        Settings {
            max_workers: smaller(self.max_workers, wider.max_workers),
            user_workers: smaller(self.user_workers, wider.user_workers),
            max_claude: smaller(self.max_claude, wider.max_claude),
            max_runs: smaller(self.max_runs, wider.max_runs),
            task_timeout: shorter(self.task_timeout, wider.task_timeout),
            run_timeout: shorter(self.run_timeout, wider.run_timeout),
            retries: smaller(self.retries, wider.retries),
            max_budget_usd: smaller(self.max_budget_usd, wider.max_budget_usd),
            on_claimed: self.on_claimed.or(wider.on_claimed),
            wait: self.wait.or(wider.wait),
            gate: self.gate.or(wider.gate),
            hold: self.hold.or(wider.hold),
            wake: self.wake.or(wider.wake),
            news_chars: self.news_chars.or(wider.news_chars),
            news_tokens: self.news_tokens.or(wider.news_tokens),
            worker_text: self.worker_text.or(wider.worker_text),
            durability: self.durability.or(wider.durability),
        }
    }

    /// Bounds of a run; `default_workers` and `default_claude` as the functions of these names compute them, the latter
    /// only for a run that has `claude` tasks.
    pub fn run_limits(&self, default_workers: u32, default_claude: Option<u32>) -> Limits {
        Limits {
            max_workers: self.max_workers.unwrap_or(default_workers),
            max_claude: default_claude.map(|fit| self.max_claude.unwrap_or(fit)),
            run_timeout: self.run_timeout.unwrap_or(Limit(Some(Span::from_secs(4 * 3600)))),
            max_budget_usd: self.max_budget_usd,
        }
    }

    /// How the session is informed and held.
    pub fn conductor(&self) -> Conductor {
        let default = Conductor::default();
        Conductor {
            on_claimed: self.on_claimed.unwrap_or(default.on_claimed),
            wait: self.wait.unwrap_or(default.wait),
            gate: self.gate.unwrap_or(default.gate),
            hold: self.hold.unwrap_or(default.hold),
            wake: self.wake.unwrap_or(default.wake),
            news_chars: self.news_chars.unwrap_or(default.news_chars),
            news_tokens: self.news_tokens.unwrap_or(default.news_tokens),
            worker_text: self.worker_text.unwrap_or(default.worker_text),
        }
    }

    /// Active runs in the project, at most.
    pub fn max_runs(&self) -> u32 {
        self.max_runs.unwrap_or(4)
    }

    /// The time limit of a task that does not say.
    pub fn task_timeout(&self) -> Limit {
        self.task_timeout.unwrap_or(Limit(Some(Span::from_secs(30 * 60))))
    }

    /// The retries of a task that does not say.
    pub fn retries(&self) -> u32 {
        self.retries.unwrap_or(0)
    }

    /// When the log is on the disk.
    pub fn durability(&self) -> Durability {
        self.durability.unwrap_or_default()
    }
}

/// Tasks at the same time where no config says: two per core and as many as three quarters of the memory carry, 4 to 64.
/// A headless client needs about 315 MiB (measured), another task is taken for 64 MiB; `claude_tasks` may push the number
/// below 4.
pub fn default_workers(cores: usize, mem_mib: u64, claude_tasks: bool) -> u32 {
    let usable = mem_mib / 4 * 3;
    let by_cores = u32::try_from(cores.saturating_mul(2)).unwrap_or(64);
    let fit = |each: u64| u32::try_from(usable / each).unwrap_or(64);
    let workers = by_cores.min(fit(64)).clamp(4, 64);
    if claude_tasks { workers.min(fit(315)).max(1) } else { workers }
}

/// With `"orphans": "cancel"`, how long a run goes on without its client: whoever resumes the session within that time keeps
/// it.
pub const ORPHAN_GRACE: Span = Span::from_secs(60);
/// `claude` tasks at the same time where no config says: as many as the memory carries, each being taken for 400 MiB.
pub fn default_claude(mem_mib: u64) -> u32 {
    u32::try_from(mem_mib / 400).unwrap_or(256).clamp(1, 256)
}

/// The user-wide config: settings without rules.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UserConfig {
    /// What it says.
    pub settings: Settings,
    /// Where runs are instead of `.claude/runs`.
    pub runs_dir: Option<String>,
}

/// A project's config.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Config {
    /// Limits and how the session is treated.
    pub settings: Settings,
    /// Where its runs are instead of `.claude/runs`: below the project, or an absolute path.
    pub runs_dir: Option<String>,
    /// How long after the client has gone a run is cancelled; `None`: it goes on.
    pub orphan_grace: Option<Span>,
    /// By resource, which tool calls of the session use it.
    pub resources: BTreeMap<String, Used>,
    /// In the order of the file.
    pub rules: Vec<Rule>,
}

impl Config {
    /// The same, completed by the user-wide config.
    #[must_use]
    pub fn with_user_defaults(mut self, user: &UserConfig) -> Config {
        self.settings = self.settings.over(&user.settings);
        self.runs_dir = self.runs_dir.or_else(|| user.runs_dir.clone());
        self
    }
}

/// Which prompts start which tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its place in the config, from 0.
    pub index: usize,
    /// Unique in the config; fits the alphabet of ids.
    pub name: String,
    /// The conditions.
    pub when: When,
    /// What its tasks are made from.
    pub for_each: Option<ForEach>,
    /// Its tasks.
    pub tasks: Vec<TaskDraft>,
    /// What goes into the session's tool calls.
    pub merge: Vec<MergeDraft>,
    /// What its tasks vote about.
    pub votes: Vec<VoteDraft>,
}

/// The conditions of a rule; all that are given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct When {
    /// A regex over the user's own words.
    pub prompt: Option<String>,
    /// Existing files that the prompt names.
    pub files: Option<Files>,
    /// A path glob of which some file exists.
    pub glob: Option<String>,
    /// A regex that the user's own words must not match.
    pub not: Option<String>,
    /// Instead of a prompt, a tool call of the session.
    pub tool: Option<OnTool>,
}

/// Which tool calls start a rule, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnTool {
    /// The tools, by their exact names.
    pub tools: Vec<String>,
    /// Per input field a glob that its text must match.
    #[serde(default, rename = "match", skip_serializing_if = "BTreeMap::is_empty")]
    pub matches: BTreeMap<String, String>,
    /// How long calls must have been quiet before it starts.
    pub debounce: Span,
}

impl OnTool {
    /// Whether a call of `tool` is meant. `field` gives an input field as text.
    pub fn meets(&self, tool: &str, field: impl Fn(&str) -> Option<String>) -> bool {
        self.tools.iter().any(|t| t == tool)
            && self.matches.iter().all(|(name, pattern)| {
                field(name).is_some_and(|value| Glob::text(pattern).is_ok_and(|g| g.matches(&value)))
            })
    }
}

/// How many files, and which, a prompt must name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// At least so many.
    pub min: usize,
    /// Only files that match this path glob count.
    pub glob: Option<String>,
}

/// What a rule's tasks are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForEach {
    /// The files that the prompt names, or the calls that started it.
    Files,
    /// The files on disk that match a path glob.
    Glob(String),
    /// Fixed words.
    List(Vec<String>),
    /// A group of the prompt's regex, split at commas and "and".
    Group(usize),
}

/// Where a rule's regex matches the prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The whole match, in bytes.
    pub at: Range<usize>,
    /// The groups 1, 2, …; `None` for one that took no part.
    pub groups: Vec<Option<Range<usize>>>,
}

impl Hit {
    /// The text of each group, for [`expand::Match::groups`]; empty for one that took no part.
    pub fn group_texts<'t>(&self, text: &'t str) -> Vec<&'t str> {
        self.groups.iter().map(|g| g.clone().and_then(|g| text.get(g)).unwrap_or_default()).collect()
    }
}

/// The most matches of a regex that are looked at.
const MAX_HITS: usize = 64;

impl Rule {
    /// Where `when.prompt` matches; nothing if it does not, or the rule has none. Compiles the regex: ask cheaper
    /// conditions first.
    pub fn prompt_matches(&self, own_words: &str) -> Vec<Hit> {
        let Some(regex) = self.when.prompt.as_deref().and_then(|p| draft::compile(p).ok()) else {
            return Vec::new();
        };
        let groups = |c: &regex::Captures<'_>| c.iter().skip(1).map(|g| g.map(|g| g.range())).collect();
        let hit = |c: regex::Captures<'_>| c.get(0).map(|m| Hit { at: m.range(), groups: groups(&c) });
        regex.captures_iter(own_words).filter_map(hit).take(MAX_HITS).collect()
    }

    /// Whether `when.not` matches, so that the rule does not apply. A pattern that cannot be compiled excludes.
    pub fn is_excluded(&self, own_words: &str) -> bool {
        self.when.not.as_deref().is_some_and(|p| draft::compile(p).map_or(true, |r| r.is_match(own_words)))
    }

    /// Those of the existing files a prompt names, relative to the project, that count for this rule.
    pub fn files_that_count(&self, named: &[String]) -> Vec<String> {
        let glob = self.when.files.as_ref().and_then(|f| f.glob.as_deref()).map(Glob::path);
        let counts = |f: &str| match &glob {
            None => true,
            Some(Ok(glob)) => glob.matches(f.strip_prefix("./").unwrap_or(f)),
            Some(Err(_)) => false,
        };
        named.iter().filter(|f| counts(f)).cloned().collect()
    }

    /// How many files the prompt must name for the rule to apply.
    pub fn min_files(&self) -> usize {
        let by_items = usize::from(self.for_each == Some(ForEach::Files) && self.when.tool.is_none());
        self.when.files.as_ref().map_or(0, |f| f.min).max(by_items)
    }
}

/// Reads a config and reports every mistake, for approval and for people.
pub fn check(bytes: &[u8]) -> Result<Config, Vec<Problem>> {
    config(bytes, Depth::Full)
}

/// Reads a config that was checked before. The only mistakes it does not find are those inside regexes and in what the
/// rules would make.
pub fn parse(bytes: &[u8]) -> Result<Config, Vec<Problem>> {
    config(bytes, Depth::Quick)
}

fn config(bytes: &[u8], depth: Depth) -> Result<Config, Vec<Problem>> {
    let mut r = Report::default();
    let mut out = Config::default();
    if let Some(value) = json::read(bytes, &mut r) {
        let n = Node::root(&value);
        if n.keys(&mut r, KEYS, &[]) {
            header(&n, &mut r);
            out.settings = settings(&n, &mut r, LIMIT_KEYS, CONDUCTOR_KEYS);
            out.runs_dir = n.field("runs_dir", &mut r, runs_dir);
            let orphans =
                n.field("orphans", &mut r, |n, r| n.choice(r, &[("finish", None), ("cancel", Some(ORPHAN_GRACE))]));
            out.orphan_grace = orphans.flatten();
            out.resources = n.field("resources", &mut r, |n, r| Some(draft::used(n, r))).unwrap_or_default();
            out.rules = n.field("rules", &mut r, |n, r| Some(rules(n, r, depth, &out.settings))).unwrap_or_default();
        }
    }
    r.finish(out)
}

/// Reads the user-wide config.
pub fn user_config(bytes: &[u8]) -> Result<UserConfig, Vec<Problem>> {
    let mut r = Report::default();
    let mut out = UserConfig::default();
    if let Some(value) = json::read(bytes, &mut r) {
        let n = Node::root(&value);
        if n.get("rules").is_some() {
            r.add("$.rules", "rules belong to a project", Some("put them into its .claude/cpw.json".into()));
        }
        let known: Vec<&str> = USER_KEYS.iter().copied().chain(["rules"]).collect();
        if n.keys(&mut r, &known, &[]) {
            header(&n, &mut r);
            out.settings = settings(&n, &mut r, USER_LIMIT_KEYS, CONDUCTOR_KEYS);
            out.runs_dir = n.field("runs_dir", &mut r, runs_dir);
        }
    }
    r.finish(out)
}

/// A folder below the project, or an absolute path. What a run's folder is called tells its project only in the default
/// place, so that no other place may look like that one.
fn runs_dir(n: &Node<'_>, r: &mut Report) -> Option<String> {
    let given = n.text(r)?;
    let path = given.strip_prefix("./").unwrap_or(given).trim_end_matches('/');
    let mut parts = path.strip_prefix('/').unwrap_or(path).split('/');
    if given.starts_with('~') {
        n.wrong_hint(
            r,
            format!("\"{}\" begins with ~, which no shell replaces here", excerpt(given)),
            "write the whole path",
        );
    } else if parts.any(|part| matches!(part, "" | "." | "..")) || given.contains('\0') {
        n.wrong_hint(r, format!("\"{}\" is not a plain path", excerpt(given)), "no '..', no '.', no empty part");
    } else if !path.starts_with('/') && matches!(path, ".claude" | ".git") {
        n.wrong_hint(
            r,
            format!("\"{path}\" has other things in it"),
            "a folder of its own, such as \"build/cpw-runs\"",
        );
    } else if path != DEFAULT_RUNS && !path.starts_with('/') && path.ends_with(&format!("/{DEFAULT_RUNS}")) {
        n.wrong_hint(
            r,
            format!("\"{}\" ends like the default place of another project", excerpt(given)),
            "another name",
        );
    } else {
        return Some(path.to_owned()).filter(|p| p != DEFAULT_RUNS);
    }
    None
}

/// Checks `version` and `$schema`.
pub(super) fn header(n: &Node<'_>, r: &mut Report) {
    match n.get("version") {
        None => n.wrong_hint(r, "has no version", "add \"version\": 1"),
        Some(v) if v.value().as_u64() == Some(u64::from(VERSION)) => {}
        Some(v) => {
            v.wrong_hint(r, format!("is {}, must be 1", excerpt(&v.value().to_string())), "this cpw knows version 1");
        }
    }
    n.field("$schema", r, |n, r| n.string(r).map(|_| ()));
}

/// Reads `limits`, `conductor` and `durability`.
pub(super) fn settings(n: &Node<'_>, r: &mut Report, limit_keys: &[&str], conductor_keys: &[&str]) -> Settings {
    let mut out = Settings::default();
    if let Some(n) = n.get("limits")
        && n.keys(r, limit_keys, &[])
    {
        out.max_workers = n.field("max_workers", r, |n, r| n.integer(r, 1..=256));
        out.user_workers = n.field("user_workers", r, |n, r| n.integer(r, 1..=4096));
        out.max_claude = n.field("max_claude", r, |n, r| n.integer(r, 1..=256));
        out.max_runs = n.field("max_runs", r, |n, r| n.integer(r, 1..=64));
        out.task_timeout = n.field("task_timeout", r, json::limit);
        out.run_timeout = n.field("run_timeout", r, json::limit);
        out.retries = n.field("retries", r, |n, r| n.integer(r, 0..=100));
        out.max_budget_usd = n.field("max_budget_usd", r, json::positive);
    }
    if let Some(n) = n.get("conductor")
        && n.keys(r, conductor_keys, &[])
    {
        out.on_claimed = n.field("on_claimed", r, |n, r| {
            n.choice(
                r,
                &[
                    ("wait", OnClaimed::Wait),
                    ("block", OnClaimed::Block),
                    ("redirect", OnClaimed::Redirect),
                    ("note", OnClaimed::Note),
                    ("off", OnClaimed::Off),
                ],
            )
        });
        out.wait = n.field("wait", r, |n, r| n.span(r, Some(MAX_WAIT)));
        out.gate =
            n.field("gate", r, |n, r| n.choice(r, &[("hold", Gate::Hold), ("block", Gate::Block), ("off", Gate::Off)]));
        out.hold = n.field("hold", r, |n, r| n.span(r, Some(MAX_HOLD)));
        out.wake = n.field("wake", r, json::boolean);
        // The client replaces context of more than 10,000 characters by a file name; the rest is for cpw's own words.
        out.news_chars = n.field("news_chars", r, |n, r| n.integer(r, 200..=9000));
        out.news_tokens = n.field("news_tokens", r, |n, r| n.integer(r, 100..=10_000_000));
        out.worker_text =
            n.field("worker_text", r, |n, r| n.choice(r, &[("line", WorkerText::Line), ("none", WorkerText::None)]));
    }
    out.durability =
        n.field("durability", r, |n, r| n.choice(r, &[("process", Durability::Process), ("power", Durability::Power)]));
    out
}

fn rules(n: &Node<'_>, r: &mut Report, depth: Depth, settings: &Settings) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for (index, n) in n.array(r).enumerate() {
        let Some(rule) = rule(&n, r, index, depth) else {
            continue;
        };
        if !rule.name.is_empty() && out.iter().any(|other| other.name.eq_ignore_ascii_case(&rule.name)) {
            r.add(
                json::path_of("$", &[("rules", Some(index)), ("name", None)]),
                format!("\"{}\" is the name of another rule", rule.name),
                Some("names are unique, upper and lower case being equal".into()),
            );
        }
        // What a rule would make shows mistakes that no single field has: unknown needs, circles. Only a rule whose ids
        // and items could be read can tell.
        let items = n.get("for_each").is_none() || rule.for_each.is_some();
        if depth == Depth::Full && items && !rule.tasks.is_empty() && rule.tasks.iter().all(|t| !t.id.is_empty()) {
            expand::probe(&rule, settings, r);
        }
        out.push(rule);
    }
    out
}

fn rule(n: &Node<'_>, r: &mut Report, index: usize, depth: Depth) -> Option<Rule> {
    if !n.keys(r, RULE_KEYS, RULE_LATER) {
        return None;
    }
    let name = match n.get("name") {
        None => {
            n.wrong_hint(r, "has no name", "add \"name\": \"analyze\"");
            String::new()
        }
        Some(n) => {
            let name = n.text(r).unwrap_or_default();
            if !name.is_empty()
                && let Err(e) = check_id(name)
            {
                n.wrong(r, format!("\"{}\" {e}", excerpt(name)));
            }
            name.to_owned()
        }
    };
    let (when, groups) = if let Some(n) = n.get("when") {
        when(&n, r, depth)
    } else {
        n.wrong_hint(r, "has no when, so it would never start", "add \"when\": {\"prompt\": \"(?i)\\\\breview\\\\b\"}");
        (When::default(), None)
    };
    let for_each = n.field("for_each", r, |n, r| for_each(n, r, groups));
    // A for_each that could not be read must not make every template a mistake.
    let is_after_call = n.get("when").is_some_and(|when| when.get("tool").is_some());
    let scope = Scope::Rule { each: n.get("for_each").is_some(), prompt: !is_after_call };
    let tasks = if let Some(n) = n.get("tasks") {
        if n.value().as_array().is_some_and(Vec::is_empty) {
            n.wrong(r, "is empty: the rule would do nothing");
        }
        draft::tasks(&n, r, scope, depth)
    } else {
        n.wrong(r, "has no tasks");
        Vec::new()
    };
    let merge = n.field("merge", r, |n, r| Some(draft::merges(n, r, scope))).unwrap_or_default();
    let votes = n.field("votes", r, |n, r| Some(draft::votes(n, r, scope))).unwrap_or_default();
    Some(Rule { index, name, when, for_each, tasks, merge, votes })
}

/// Reads `when`; also how many groups its regex has, where that is known.
fn when(n: &Node<'_>, r: &mut Report, depth: Depth) -> (When, Option<usize>) {
    if !n.keys(r, WHEN_KEYS, &[]) {
        return (When::default(), None);
    }
    let out = When {
        prompt: n.field("prompt", r, |n, r| draft::regex(n, r, depth)),
        files: n.field("files", r, files),
        glob: n.field("glob", r, path_glob),
        not: n.field("not", r, |n, r| draft::regex(n, r, depth)),
        tool: on_tool(n, r),
    };
    let is_after_call = ["tool", "match", "debounce"].iter().any(|k| n.get(k).is_some());
    if n.get("prompt").is_none() && n.get("files").is_none() && !is_after_call {
        n.wrong_hint(
            r,
            "has none of prompt, files and tool, so every prompt would start it",
            "add \"prompt\": a regex over the user's words",
        );
    }
    if n.get("tool").is_some() {
        for n in WHEN_PROMPT.iter().filter_map(|k| n.get(k)) {
            let hint = "a rule starts after a prompt or after a tool call: make two rules of it";
            n.wrong_hint(r, "asks about a prompt, but the rule has a tool", hint);
        }
    }
    let groups = match (&out.prompt, depth) {
        (Some(p), Depth::Full) => draft::compile(p).ok().map(|r| r.captures_len() - 1),
        (Some(_), Depth::Quick) => None,
        (None, _) => n.get("prompt").is_none().then_some(0),
    };
    (out, groups)
}

/// Reads `tool`, `match` and `debounce`.
fn on_tool(n: &Node<'_>, r: &mut Report) -> Option<OnTool> {
    let debounce = n.field("debounce", r, |n, r| n.span(r, Some(MAX_DEBOUNCE)));
    let matches = n.field("match", r, |n, r| Some(draft::input_globs(n, r))).unwrap_or_default();
    let Some(tool) = n.get("tool") else {
        for n in ["match", "debounce"].iter().filter_map(|k| n.get(k)) {
            n.wrong_hint(r, "says more about a tool call, but the rule has no tool", "add \"tool\": \"Edit|Write\"");
        }
        return None;
    };
    let mut tools: Vec<String> = Vec::new();
    let named = tool.text(r)?;
    for name in named.split('|').map(str::trim) {
        if !matcher::is_tool_name(name) {
            let what = format!("\"{}\" is no tool's name", excerpt(name));
            tool.wrong_hint(r, what, "exact names, separated by '|': \"Edit|Write\", \"mcp__db__query\"");
        } else if !tools.iter().any(|t| t == name) {
            tools.push(name.to_owned());
        }
    }
    if tools.len() > MAX_TOOLS {
        tool.wrong(r, format!("names {} tools, more than {MAX_TOOLS}", tools.len()));
    }
    Some(OnTool { tools, matches, debounce: debounce.unwrap_or(DEBOUNCE) })
}

fn files(n: &Node<'_>, r: &mut Report) -> Option<Files> {
    if !n.keys(r, FILES_KEYS, &[]) {
        return None;
    }
    let min = n.field("min", r, |n, r| n.integer(r, 1..=1000)).unwrap_or(1);
    Some(Files { min, glob: n.field("glob", r, path_glob) })
}

fn path_glob(n: &Node<'_>, r: &mut Report) -> Option<String> {
    let s = n.text(r)?;
    let s = s.strip_prefix("./").unwrap_or(s);
    if let Err(e) = Glob::path(s) {
        n.wrong(r, format!("\"{}\" {e}", excerpt(s)));
    }
    if s.starts_with('/') || s.split('/').any(|part| part == "..") {
        n.wrong(r, "must stay inside the project: no leading '/', no '..'");
    }
    Some(s.to_owned())
}

fn for_each(n: &Node<'_>, r: &mut Report, groups: Option<usize>) -> Option<ForEach> {
    const FORMS: &str = "one of \"files\", {\"glob\": \"src/*.rs\"}, {\"list\": [\"a\", \"b\"]}, {\"group\": 1}";
    if let Some(s) = n.value().as_str() {
        if s != "files" {
            n.wrong_hint(r, format!("is \"{}\"", excerpt(s)), FORMS);
            return None;
        }
        return Some(ForEach::Files);
    }
    if !n.keys(r, FOR_EACH_KEYS, &[]) {
        return None;
    }
    if n.value().as_object().is_some_and(|o| o.len() != 1) {
        n.wrong_hint(r, "must have exactly one key", FORMS);
    }
    if let Some(n) = n.get("glob") {
        return path_glob(&n, r).map(ForEach::Glob);
    }
    if let Some(n) = n.get("list") {
        let list = n.texts(r);
        if n.value().as_array().is_some_and(Vec::is_empty) {
            n.wrong(r, "is empty");
        }
        return (!list.is_empty()).then_some(ForEach::List(list));
    }
    let n = n.get("group")?;
    let group: usize = n.integer(r, 1..=99)?;
    match groups {
        Some(0) => {
            n.wrong_hint(r, "when.prompt has no groups", "put parentheses around what is to be split: \"check (.+)\"");
        }
        Some(has) if group > has => n.wrong(r, format!("is {group}, but when.prompt has only {has} groups")),
        _ => {}
    }
    Some(ForEach::Group(group))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn paths(config: &Value) -> Vec<String> {
        check(config.to_string().as_bytes()).map_or_else(|p| p.into_iter().map(|p| p.path).collect(), |_| Vec::new())
    }

    fn rule(change: impl FnOnce(&mut Value)) -> Value {
        let mut rule = json!({"name": "r", "when": {"prompt": "go (.+)", "files": {"min": 1}}, "for_each": "files",
            "tasks": [{"id": "a-{{item.stem}}", "run": ["x", "{{item}}"]}, {"id": "sum", "shell": "true", "needs": ["a-*"]}],
            "merge": [{"tool": "Write", "needs": ["*"], "set": {"content": "{{results}}"}}]});
        change(&mut rule);
        json!({"version": 1, "rules": [rule]})
    }

    fn task(change: impl FnOnce(&mut Value)) -> Value {
        rule(|r| change(&mut r["tasks"][0]))
    }

    fn after(when: Value) -> Value {
        rule(|r| r["when"] = when)
    }

    /// What is wrong, and the paths that must be named, all of them and no others.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a table")]
    fn every_mistake_is_reported_at_its_place() {
        const T: &str = "$.rules[0].tasks[0]";
        let at = |rest: &str| vec![format!("$.rules[0]{rest}")];
        let t = |rest: &str| vec![format!("{T}{rest}")];
        let table: Vec<(Value, Vec<String>)> = vec![
            (rule(|_| ()), vec![]),
            (json!([]), vec!["$".into()]),
            (json!(null), vec!["$".into()]),
            (json!({}), vec!["$".into()]),
            (json!({"version": 2}), vec!["$.version".into()]),
            (json!({"version": "1"}), vec!["$.version".into()]),
            (json!({"version": 1, "rulez": []}), vec!["$.rulez".into()]),
            (json!({"version": 1, "rules": {}}), vec!["$.rules".into()]),
            (json!({"version": 1, "rules": [1, "x"]}), vec!["$.rules[0]".into(), "$.rules[1]".into()]),
            (json!({"version": 1, "$schema": 1}), vec!["$.$schema".into()]),
            (json!({"version": 1, "runs_dir": "build/runs/"}), vec![]),
            (json!({"version": 1, "runs_dir": "/var/tmp/runs"}), vec![]),
            (json!({"version": 1, "runs_dir": ".claude/runs"}), vec![]),
            (json!({"version": 1, "runs_dir": ""}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": 1}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": "~/runs"}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": "../runs"}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": "a//b"}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": "/"}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": "./"}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": ".claude"}), vec!["$.runs_dir".into()]),
            (json!({"version": 1, "runs_dir": "sub/.claude/runs"}), vec!["$.runs_dir".into()]),
            (
                json!({"version": 1, "resources": {"db": {"tools": ["Bash(psql*)", "mcp__db__query"]}, "./x.csv": {"tools": []}}}),
                vec![],
            ),
            (json!({"version": 1, "resources": []}), vec!["$.resources".into()]),
            (
                json!({"version": 1, "resources": {"db": {}, "-x": {"tools": ["psql"]}, "gpu": {"tool": "Bash", "tools": "Bash"}}}),
                [".db", "[\"-x\"]", "[\"-x\"].tools[0]", ".gpu.tool", ".gpu.tools"]
                    .map(|p| format!("$.resources{p}"))
                    .to_vec(),
            ),
            (json!({"version": 1, "orphans": "cancel"}), vec![]),
            (json!({"version": 1, "orphans": "kill"}), vec!["$.orphans".into()]),
            (json!({"version": 1, "orphans": "finish", "durability": "power"}), vec![]),
            (json!({"version": 1, "durability": "none"}), vec!["$.durability".into()]),
            (
                json!({"version": 1, "limits": {"max_workers": 0, "max_runs": 1.5, "task_timeout": "0s", "run_timeout": 5,
                    "retries": -1, "max_budget_usd": 0, "workers": 2}}),
                ["workers", "max_workers", "max_runs", "task_timeout", "run_timeout", "retries", "max_budget_usd"]
                    .map(|k| format!("$.limits.{k}"))
                    .to_vec(),
            ),
            (
                json!({"version": 1, "conductor": {"on_claimed": "waits", "wait": "591s", "gate": true, "hold": "13h",
                    "wake": "yes", "news_chars": 10001, "worker_text": "all"}}),
                ["on_claimed", "wait", "gate", "hold", "wake", "news_chars", "worker_text"]
                    .map(|k| format!("$.conductor.{k}"))
                    .to_vec(),
            ),
            (rule(|r| r["name"] = json!("a b")), at(".name")),
            (rule(|r| r["name"] = json!("")), at(".name")),
            (rule(|r| drop(r.as_object_mut().unwrap().remove("name"))), at("")),
            (rule(|r| drop(r.as_object_mut().unwrap().remove("when"))), at("")),
            (rule(|r| drop(r.as_object_mut().unwrap().remove("tasks"))), vec!["$.rules[0]".into()]),
            (rule(|r| r["tasks"] = json!([])), at(".tasks")),
            (rule(|r| r["signals"] = json!([])), at(".signals")),
            (rule(|r| r["when"] = json!({})), at(".when")),
            (rule(|r| r["when"] = json!({"glob": "*.rs"})), at(".when")),
            (rule(|r| r["when"]["tool"] = json!("Edit")), {
                [".when.prompt", ".when.files"].map(|p| format!("$.rules[0]{p}")).to_vec()
            }),
            (after(json!({"tool": "Edit|Write", "match": {"file_path": "*.rs"}, "debounce": "0s"})), vec![]),
            (after(json!({"tool": " Edit | mcp__db__query|Edit", "glob": "*.rs"})), vec![]),
            (after(json!({"tool": "Edit", "not": "a"})), at(".when.not")),
            (after(json!({"tool": "Edit|"})), at(".when.tool")),
            (after(json!({"tool": "*"})), at(".when.tool")),
            (after(json!({"tool": "edit|Ba sh"})), vec!["$.rules[0].when.tool".into(); 2]),
            (after(json!({"tool": 1})), at(".when.tool")),
            (after(json!({"tool": ""})), at(".when.tool")),
            (after(json!({"match": {"a": "b"}, "debounce": "1s"})), {
                [".when.match", ".when.debounce"].map(|p| format!("$.rules[0]{p}")).to_vec()
            }),
            (after(json!({"tool": "Edit", "match": {"file_path": "[a", "x": 1}, "debounce": "11m"})), {
                [".when.match.file_path", ".when.match.x", ".when.debounce"].map(|p| format!("$.rules[0]{p}")).to_vec()
            }),
            (after(json!({"tool": "Edit", "match": "*.rs", "debounce": 2})), {
                [".when.match", ".when.debounce"].map(|p| format!("$.rules[0]{p}")).to_vec()
            }),
            (
                rule(|r| {
                    r["when"] = json!({"tool": "Edit"});
                    r["for_each"] = json!({"group": 1});
                    r["tasks"][0]["run"] = json!(["x", "{{prompt}}", "{{item}}"]);
                    r["tasks"][0]["title"] = json!("{{prompt_file}}");
                    r["merge"][0]["set"] = json!({"content": "{{prompt}}"});
                }),
                [".for_each.group", ".tasks[0].run[1]", ".tasks[0].title", ".merge[0].set.content"]
                    .map(|p| format!("$.rules[0]{p}"))
                    .to_vec(),
            ),
            (rule(|r| r["when"]["prompt"] = json!("(a")), at(".when.prompt")),
            (rule(|r| r["when"]["prompt"] = json!("a(?=b)")), at(".when.prompt")),
            (rule(|r| r["when"]["prompt"] = json!("(\\w{500}){500}")), at(".when.prompt")),
            (rule(|r| r["when"]["not"] = json!("[z-a]")), at(".when.not")),
            (rule(|r| r["when"]["files"] = json!(2)), at(".when.files")),
            (rule(|r| r["when"]["files"]["min"] = json!(0)), at(".when.files.min")),
            (rule(|r| r["when"]["files"]["glob"] = json!("[a")), at(".when.files.glob")),
            (rule(|r| r["when"]["glob"] = json!("../x/*")), at(".when.glob")),
            (rule(|r| r["when"]["glob"] = json!("/etc/*")), at(".when.glob")),
            (rule(|r| r["for_each"] = json!("file")), at(".for_each")),
            (rule(|r| r["for_each"] = json!({"glob": "a", "list": ["b"]})), at(".for_each")),
            (rule(|r| r["for_each"] = json!({"list": []})), at(".for_each.list")),
            (rule(|r| r["for_each"] = json!({"group": 2})), at(".for_each.group")),
            (rule(|r| r["for_each"] = json!({"group": 1})), vec![]),
            (rule(|r| r["for_each"] = json!({"globs": "x"})), vec!["$.rules[0].for_each.globs".into()]),
            (rule(|r| drop(r.as_object_mut().unwrap().remove("for_each"))), {
                [".tasks[0].id", ".tasks[0].run[1]"].map(|p| format!("$.rules[0]{p}")).to_vec()
            }),
            (task(|t| t["id"] = json!("a b {{item}}")), t(".id")),
            (task(|t| t["id"] = json!("a-{{prompt}}")), t(".id")),
            (task(|t| t["id"] = json!("../{{item}}")), t(".id")),
            (
                task(|t| t["id"] = json!("SUM")),
                vec!["$.rules[0].tasks[1].id".into(), "$.rules[0].tasks[1].needs[0]".into()],
            ),
            (task(|t| drop(t.as_object_mut().unwrap().remove("id"))), t("")),
            (task(|t| drop(t.as_object_mut().unwrap().remove("run"))), t("")),
            (task(|t| t["shell"] = json!("echo")), t("")),
            (task(|t| t["run"] = json!("make test")), t(".run")),
            (task(|t| t["run"] = json!([])), t(".run")),
            (task(|t| t["run"] = json!(["", "x"])), t(".run[0]")),
            (task(|t| t["run"] = json!(["x", 1])), t(".run[1]")),
            (task(|t| t["run"] = json!(["x", "a\u{0}b"])), t(".run[1]")),
            (task(|t| t["run"] = json!(["{{item}}"])), t(".run[0]")),
            (task(|t| t["run"] = json!(["x", "{{itm}}"])), t(".run[1]")),
            (task(|t| t["run"] = json!(["x", "{{.State}} {{json .}} {{{}}{end}}"])), vec![]),
            (task(|t| t["run"] = json!(["sh", "-c", "cat {{item}}"])), t(".run[2]")),
            (task(|t| t["run"] = json!(["timeout", "5", "/bin/bash", "-euc", "cat {{prompt}}"])), t(".run[4]")),
            (task(|t| t["run"] = json!(["python3", "-c", "print({{index}})"])), t(".run[2]")),
            (task(|t| t["run"] = json!(["sh", "-c", "cat \"$1\"", "sh", "{{item}}"])), vec![]),
            (task(|t| t["run"] = json!(["bash", "-o", "pipefail", "-c", "cat {{item}}"])), t(".run[4]")),
            (task(|t| t["run"] = json!(["bash", "count.sh", "-c", "{{item}}"])), vec![]),
            (task(|t| t["run"] = json!(["grep", "-c", "{{item}}"])), vec![]),
            (task(|t| t["run"] = json!(["timeout", "5", "{{item}}"])), t(".run[2]")),
            (task(|t| t["run"] = json!(["env", "BASH_ENV={{item}}", "x"])), t(".run[1]")),
            (task(|t| t["env"] = json!({"BASH_ENV": "{{item}}", "PS4": "$ ", "N": "{{prompt}}"})), t(".env.BASH_ENV")),
            (
                task(|t| {
                    t.as_object_mut().unwrap().remove("run");
                    t["claude"] = json!({"prompt": "look at {{item}}"});
                    t["env"] = json!({"https_proxy": "http://x", "N": "1"});
                }),
                t(".env.https_proxy"),
            ),
            (task(|t| *t = json!({"id": "a-1", "shell": "cat {{item}}"})), t(".shell")),
            (task(|t| *t = json!({"id": "a-1", "shell": "cat {{ prompt_file }}"})), t(".shell")),
            (task(|t| *t = json!({"id": "a-1", "shell": "docker ps --format '{{.Names}}' {{end}}"})), vec![]),
            (task(|t| t["title"] = json!(" ")), t(".title")),
            (task(|t| t["needs"] = json!("sum")), t(".needs")),
            (task(|t| t["needs"] = json!(["b@compiled"])), t(".needs[0]")),
            (task(|t| t["needs"] = json!(["deploy?proceed"])), t(".needs[0]")),
            (task(|t| t["needs"] = json!(["nothing", "a-{{item.name}}"])), {
                ["[0]", "[1]"].map(|p| format!("{T}.needs{p}")).to_vec()
            }),
            (task(|t| t["needs"] = json!(["a-{{item.stem}}"])), t(".needs[0]")),
            (task(|t| t["needs"] = json!(["sum"])), t(".needs")),
            (
                task(|t| t["claims"] = json!(["[x", ""])),
                [".claims[1]", ".claims[0]"].map(|p| format!("{T}{p}")).to_vec(),
            ),
            (task(|t| t["timeout"] = json!("5 minutes")), t(".timeout")),
            (task(|t| t["timeout"] = json!("none")), vec![]),
            (task(|t| t["timeout"] = json!("0ms")), t(".timeout")),
            (task(|t| t["retries"] = json!(101)), t(".retries")),
            (task(|t| t["backoff"] = json!(5)), t(".backoff")),
            (task(|t| t["backoff"] = json!({"initial": "9s", "max": "1s"})), t(".backoff")),
            (task(|t| t["backoff"] = json!({"factor": 0, "jitter": 1})), {
                [".jitter", ".factor"].map(|p| format!("{T}.backoff{p}")).to_vec()
            }),
            (task(|t| t["allow_failure"] = json!("no")), t(".allow_failure")),
            (task(|t| t["summary"] = json!("(")), t(".summary")),
            (task(|t| t["env"] = json!({"PATH": "x", "LD_PRELOAD": "y", "OK": 1, "A B": "fine"})), {
                [".PATH", ".LD_PRELOAD", ".OK"].map(|p| format!("{T}.env{p}")).to_vec()
            }),
            (task(|t| t["cwd"] = json!("")), t(".cwd")),
            (task(|t| t["cwd"] = json!("{{prompt}}")), t(".cwd")),
            (task(|t| t["priority"] = json!(1001)), t(".priority")),
            (task(|t| t["resources"] = json!(["db", "port:5432", "./{{item}}", "{{item.stem}}", "a/b"])), vec![]),
            (task(|t| t["resources"] = json!("db")), t(".resources")),
            (
                task(|t| {
                    t["resources"] = json!(["db", "two words", "", "db", "./{{prompt}}", "x\ny/z", "a".repeat(1025)]);
                }),
                [1, 2, 3, 4, 5, 6].map(|i| format!("{T}.resources[{i}]")).to_vec(),
            ),
            (task(|t| t["critical"] = json!("yes")), t(".critical")),
            (
                task(|t| t["signals"] = json!(["stop:2", "stop:2", "stop:1"])),
                [t(".signals[1]"), t(".signals[2]")].concat(),
            ),
            (task(|t| t["isolate"] = json!("worktree")), vec![]),
            (task(|t| t["isolate"] = json!("container")), t(".isolate")),
            (task(|t| t["item"] = json!("x")), t(".item")),
            (task(|t| *t = json!({"id": "a-1", "claude": {}})), t(".claude")),
            (
                task(|t| {
                    *t = json!({"id": "a-1", "claude": {"prompt": "p {{itm}}", "model": "-x", "tools": ["", "--y"],
                "max_turns": 0, "max_budget_usd": -1, "schema": [], "mode": "x", "permission_mode": "bypassPermissions"}});
                }),
                {
                    let keys = [
                        ".mode",
                        ".prompt",
                        ".model",
                        ".tools[0]",
                        ".tools[1]",
                        ".permission_mode",
                        ".max_turns",
                        ".max_budget_usd",
                        ".schema",
                    ];
                    keys.map(|p| format!("{T}.claude{p}")).to_vec()
                },
            ),
            (rule(|r| r["merge"][0]["tool"] = json!("Write|Edit")), at(".merge[0].tool")),
            (rule(|r| drop(r["merge"][0].as_object_mut().unwrap().remove("tool"))), at(".merge[0]")),
            (rule(|r| drop(r["merge"][0].as_object_mut().unwrap().remove("needs"))), at(".merge[0]")),
            (rule(|r| r["merge"][0]["needs"] = json!([])), at(".merge[0].needs")),
            (rule(|r| r["merge"][0]["needs"] = json!(["z*"])), at(".merge[0].needs[0]")),
            (rule(|r| r["merge"][0]["match"] = json!({"file_path": "{a"})), at(".merge[0].match.file_path")),
            (rule(|r| r["merge"][0]["set"] = json!({"content": 1})), at(".merge[0].set.content")),
            (rule(|r| r["merge"][0]["set"] = json!({"content": "{{result}}"})), at(".merge[0].set.content")),
            (rule(|r| r["merge"][0]["set"] = json!({"content": "{{result.nope}}"})), at(".merge[0].set.content")),
            (
                rule(|r| r["merge"][0] = json!({"tool": "W", "needs": ["a-*"], "set": {"x": "{{path.sum}}"}})),
                at(".merge[0].set.x"),
            ),
        ];
        assert!(table.len() >= 60);
        for (config, mut want) in table {
            let mut got = paths(&config);
            got.sort();
            want.sort();
            assert_eq!(got, want, "{config:#}\n{:#?}", check(config.to_string().as_bytes()).err());
        }
    }

    #[test]
    fn two_rules_of_one_name_and_mistakes_in_several_rules() {
        let mut config = rule(|_| ());
        let again = config["rules"][0].clone();
        config["rules"].as_array_mut().unwrap().push(again);
        config["rules"][1]["tasks"][0]["timeout"] = json!(1);
        config["rules"][0]["tasks"][1]["needs"] = json!(["nothing"]);
        assert_eq!(paths(&config), ["$.rules[0].tasks[1].needs[0]", "$.rules[1].tasks[0].timeout", "$.rules[1].name"]);
    }

    #[test]
    fn reading_does_not_compile_regexes() {
        let bad = rule(|r| r["when"]["prompt"] = json!("(")).to_string();
        assert!(check(bad.as_bytes()).is_err());
        let read = parse(bad.as_bytes()).unwrap();
        assert!(read.rules[0].prompt_matches("(").is_empty());
        let good = rule(|_| ()).to_string();
        assert_eq!(parse(good.as_bytes()).unwrap(), check(good.as_bytes()).unwrap());
    }

    #[test]
    fn a_rule_on_tool_calls_has_defaults() {
        let read = |when: Value| check(after(when).to_string().as_bytes()).unwrap().rules.remove(0);
        let rule = read(json!({"tool": "Edit | Write|Edit", "match": {"file_path": "*.rs"}}));
        let on = rule.when.tool.as_ref().unwrap();
        assert_eq!((on.tools.join(","), on.debounce), ("Edit,Write".into(), DEBOUNCE));
        assert_eq!((on.matches["file_path"].as_str(), rule.min_files()), ("*.rs", 0));
        let field = |path: &'static str| move |name: &str| (name == "file_path").then(|| path.to_owned());
        assert!(on.meets("Write", field("/p/a.rs")) && !on.meets("Write", field("/p/a.rst")));
        assert!(!on.meets("Read", field("/p/a.rs")) && !on.meets("Edit", |_| None));
        let slow = read(json!({"tool": "Bash", "debounce": "10m"}));
        assert_eq!(slow.when.tool.unwrap().debounce, MAX_DEBOUNCE);
    }

    #[test]
    fn matches_come_with_places_and_groups() {
        let config = check(rule(|r| r["when"]["not"] = json!("(?i)later")).to_string().as_bytes()).unwrap();
        let rule = &config.rules[0];
        let text = "é go api, db";
        let hits = rule.prompt_matches(text);
        assert_eq!(hits.len(), 1);
        assert_eq!(&text[hits[0].at.clone()], "go api, db");
        assert_eq!(hits[0].group_texts(text), ["api, db"]);
        assert!(!rule.is_excluded(text) && rule.is_excluded("go Later"));
    }

    #[test]
    fn only_files_that_match_the_glob_count() {
        let named = ["a.py".to_owned(), "./src/b.py".to_owned(), "c.rs".to_owned()];
        let all = check(rule(|_| ()).to_string().as_bytes()).unwrap();
        assert_eq!(all.rules[0].files_that_count(&named), named);
        let python = rule(|r| r["when"]["files"]["glob"] = json!("**/*.py")).to_string();
        assert_eq!(check(python.as_bytes()).unwrap().rules[0].files_that_count(&named), named[..2]);
    }

    #[test]
    fn the_users_limits_bound_the_projects() {
        let project = r#"{"version": 1, "limits": {"max_workers": 8, "task_timeout": "none", "retries": 2},
            "conductor": {"gate": "block"}}"#;
        let user = r#"{"version": 1, "limits": {"max_workers": 3, "task_timeout": "1h", "retries": 5, "max_budget_usd": 2.5},
            "conductor": {"gate": "off", "wake": false}}"#;
        let user = user_config(user.as_bytes()).unwrap();
        let s = check(project.as_bytes()).unwrap().with_user_defaults(&user).settings;
        assert_eq!(
            (s.run_limits(64, None).max_workers, s.retries(), s.run_limits(64, None).max_budget_usd),
            (3, 2, Some(2.5))
        );
        assert_eq!(s.task_timeout(), Limit(Some(Span::from_secs(3600))));
        assert_eq!((s.conductor().gate, s.conductor().wake, s.max_runs()), (Gate::Block, false, 4));
        assert_eq!(user_config(br#"{"version": 1, "rules": []}"#).unwrap_err()[0].path, "$.rules");
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let s = check(br#"{"version": 1}"#).unwrap().settings;
        assert_eq!(s.conductor(), Conductor::default());
        assert_eq!(s.run_limits(7, None).max_workers, 7);
        assert_eq!(s.run_limits(7, None).run_timeout, Limit(Some(Span::from_secs(14_400))));
        assert_eq!(s.task_timeout(), Limit(Some(Span::from_secs(1800))));
        assert_eq!((s.max_runs(), s.retries(), s.conductor().wake, s.durability()), (4, 0, true, Durability::Process));
    }

    #[test]
    fn workers_follow_cores_and_memory() {
        for (cores, mem, claude, want) in [
            (1, 512, false, 4),
            (2, 8192, false, 4),
            (8, 16_384, false, 16),
            (128, 1 << 20, false, 64),
            (64, 2048, false, 24),
            (8, 2048, true, 4),
            (8, 1024, true, 2),
            (8, 128, true, 1),
            (usize::MAX, u64::MAX, true, 64),
        ] {
            assert_eq!(default_workers(cores, mem, claude), want, "{cores} cores, {mem} MiB, claude {claude}");
        }
    }

    #[test]
    fn clients_follow_memory() {
        for (mem, want) in [(128, 1), (1024, 2), (16_384, 40), (u64::MAX, 256)] {
            assert_eq!(default_claude(mem), want, "{mem} MiB");
        }
        let settings = Settings { max_claude: Some(3), ..Settings::default() };
        assert_eq!(settings.run_limits(4, Some(40)).max_claude, Some(3));
        assert_eq!(settings.run_limits(4, None).max_claude, None, "a plan without clients");
    }

    /// Any JSON near a config's shape.
    fn near_config() -> impl Strategy<Value = Value> {
        let word = prop_oneof![
            prop::sample::select(
                [KEYS, RULE_KEYS, WHEN_KEYS, draft::USED_KEYS, draft::TASK_KEYS, draft::MERGE_KEYS].concat()
            )
            .prop_map(str::to_owned),
            prop::sample::select(vec![
                "{{item}}", "{{prompt", "files", "*", "a?b", "30s", "none", "a\u{0}", "é", "", "("
            ])
            .prop_map(str::to_owned),
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            word.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(5, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(word.clone(), inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_value_makes_it_panic(rules in near_config(), when in near_config(), tasks in near_config(), root in near_config()) {
            for value in [
                root,
                json!({"version": 1, "limits": when.clone(), "conductor": tasks.clone(), "rules": rules}),
                json!({"version": 1, "rules": [{"name": "a", "when": when, "for_each": "files", "tasks": tasks.clone(),
                    "merge": tasks}]}),
            ] {
                let text = value.to_string();
                let checked = check(text.as_bytes());
                let read = parse(text.as_bytes());
                // What full checking accepts, quick reading reads the same.
                if let Ok(config) = checked {
                    prop_assert_eq!(read, Ok(config));
                }
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _outcomes: (bool, bool) = (check(&bytes).is_ok(), user_config(&bytes).is_ok());
        }
    }
}
