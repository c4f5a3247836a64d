//! Tasks and merges as people write them, in a rule or in a plan file, before their needs are resolved: read with all
//! mistakes collected. A plan's drafts are literal; a rule's are templates, and which values may stand where is decided
//! here, once, so that no text of a prompt reaches a shell, a program name or an environment variable's name.

use std::collections::BTreeMap;

use crate::base::env;
use crate::base::ids::check_id;
use crate::base::span::{Limit, Span};
use crate::model::check::split_need;
use crate::model::code::{self, Hole};
use crate::model::glob::Glob;
use crate::model::json::{self, Node, Report, excerpt};
use crate::model::matcher::Matcher;
use crate::model::plan::{Action, Backoff, ClaudeTask, Isolate, PermissionMode, Used};
use crate::model::resource::{self, MAX_TOGETHER};
use crate::model::signal::Right;
use crate::model::template;
use crate::model::vote::{Choice, MAX_VOTES, OnAbort, Rule, Vote};

/// Keys of a task.
pub const TASK_KEYS: &[&str] = &[
    "id",
    "title",
    "run",
    "shell",
    "claude",
    "needs",
    "claims",
    "resources",
    "timeout",
    "retries",
    "backoff",
    "allow_failure",
    "critical",
    "signals",
    "summary",
    "env",
    "cwd",
    "isolate",
    "priority",
];

/// Keys of a task's `claude`.
pub const CLAUDE_KEYS: &[&str] =
    &["prompt", "model", "tools", "permission_mode", "max_turns", "max_budget_usd", "schema"];

/// Keys of a task's `backoff`.
pub const BACKOFF_KEYS: &[&str] = &["initial", "max", "factor"];

/// Keys of an entry of a plan's or config's `resources`.
pub const USED_KEYS: &[&str] = &["tools"];

/// The most resources that a plan or config may name the tools of.
const MAX_USED: usize = 64;

/// Keys of an entry of `merge`.
pub const MERGE_KEYS: &[&str] = &["tool", "match", "needs", "set"];

/// Keys of an entry of `votes`.
pub const VOTE_KEYS: &[&str] = &["topic", "voters", "quorum", "rule", "deadline", "default", "on_abort"];

/// What cpw writes into a plan's tasks of its own knowledge; in a plan that a person runs again it says nothing.
const TASK_OWN: [&str; 2] = ["draft", "expected"];

/// The values a task made from an item can use.
pub const ITEM_NAMES: &[&str] = &["item", "item.name", "item.stem", "item.dir", "item.ext", "index"];

/// The values every task of a rule can use.
pub const PROMPT_NAMES: &[&str] = &["prompt", "prompt_file"];

/// The longest argument or environment value, in bytes: the kernel's limit for one string is 128 KiB.
pub const MAX_STRING: usize = 128 * 1024 - 1;

/// Where a draft stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In a plan: everything is literal.
    Plan,
    /// In a rule: templates; `each` if the rule has `for_each`.
    Rule {
        /// Whether there are items.
        each: bool,
        /// Whether there is a prompt: a rule on tool calls has none.
        prompt: bool,
    },
}

/// How much is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything, compiling every regex.
    Full,
    /// All but what costs a regex compilation: for bytes that were checked fully when they were approved.
    Quick,
}

/// A task as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskDraft {
    /// The id or its template; empty if it is missing.
    pub id: String,
    /// For people.
    pub title: Option<String>,
    /// What it does; an empty `run` if that is missing.
    pub action: Action,
    /// Ids, templates of ids, or globs over ids.
    pub needs: Vec<String>,
    /// Files or globs.
    pub claims: Vec<String>,
    /// Names and files that it holds.
    pub resources: Vec<String>,
    /// Instead of the config's `limits.task_timeout`.
    pub timeout: Option<Limit>,
    /// Instead of the config's `limits.retries`.
    pub retries: Option<u32>,
    /// Pause before a further attempt.
    pub backoff: Option<Backoff>,
    /// Whether others go on when it failed.
    pub allow_failure: bool,
    /// Whether the session must hear that it failed.
    pub critical: bool,
    /// What it may say to the session.
    pub signals: Option<Vec<Right>>,
    /// A regex over the output.
    pub summary: Option<String>,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// Where it runs.
    pub cwd: Option<String>,
    /// Whose files it works on.
    pub isolate: Isolate,
    /// Higher goes first.
    pub priority: i32,
    /// Only in a plan that cpw wrote: the item it was made from.
    pub item: Option<String>,
}

impl TaskDraft {
    /// Whether the task is made once per item of `for_each`: a field uses an item template, or a script, argument or
    /// variable mentions `CPW_ITEM`. Other tasks of such a rule are made once, like a summary of all.
    pub fn is_per_item(&self) -> bool {
        let templated = |s: &String| uses_item(s);
        let all = |s: &String| uses_item(s) || s.contains(env::ITEM);
        templated(&self.id)
            || self.title.iter().any(templated)
            || self.needs.iter().any(templated)
            || self.claims.iter().chain(&self.resources).any(templated)
            || self.cwd.iter().any(templated)
            || self.env.values().any(all)
            || match &self.action {
                Action::Run(argv) => argv.iter().any(all),
                Action::Shell(script) => script.contains(env::ITEM),
                Action::Claude(c) => templated(&c.prompt),
            }
    }
}

/// A merge as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeDraft {
    /// The tool's name.
    pub tool: String,
    /// Per input field a glob.
    pub matches: BTreeMap<String, String>,
    /// Ids, templates of ids, or globs over ids.
    pub needs: Vec<String>,
    /// Per input field a template.
    pub set: BTreeMap<String, String>,
}

impl MergeDraft {
    /// Whether the merge is made once per item: what it matches or needs, or puts in, uses an item template.
    pub fn is_per_item(&self) -> bool {
        self.matches.values().chain(&self.needs).chain(self.set.values()).any(|s| uses_item(s))
    }
}

/// A vote as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoteDraft {
    /// The topic or its template; empty if it is missing.
    pub topic: String,
    /// Ids, templates of ids, or globs over ids.
    pub voters: Vec<String>,
    /// How many must have voted.
    pub quorum: Option<u32>,
    /// How many must be for it.
    pub rule: Rule,
    /// When it closes at the latest.
    pub deadline: Option<Span>,
    /// What holds where too few have voted.
    pub default: Choice,
    /// What an abort means for the session.
    pub on_abort: OnAbort,
}

impl VoteDraft {
    /// Whether the vote is held once per item: its topic uses an item template.
    pub fn is_per_item(&self) -> bool {
        uses_item(&self.topic)
    }
}

fn uses_item(s: &str) -> bool {
    template::names(s).any(|n| ITEM_NAMES.contains(&n))
}

/// Checks that a template uses only values that exist where it stands.
fn template_names(n: &Node<'_>, s: &str, r: &mut Report, scope: Scope, prompt: bool, more: &dyn Fn(&str) -> bool) {
    let Scope::Rule { each, prompt: has_prompt } = scope else {
        return;
    };
    let prompt = prompt && has_prompt;
    for name in template::names(s) {
        let item = ITEM_NAMES.contains(&name);
        if more(name) || (item && each) || (prompt && PROMPT_NAMES.contains(&name)) {
            continue;
        }
        let shown = excerpt(name);
        if item {
            n.wrong_hint(
                r,
                format!("uses {{{{{shown}}}}}, but the rule has no for_each"),
                "add \"for_each\": \"files\"",
            );
        } else if PROMPT_NAMES.contains(&name) && !has_prompt {
            let hint = "what started it is known as {{item}}, with \"for_each\": \"files\"";
            n.wrong_hint(r, format!("uses {{{{{shown}}}}}, but the rule starts after a tool call"), hint);
        } else if PROMPT_NAMES.contains(&name) {
            n.wrong_hint(
                r,
                format!("{{{{{shown}}}}} cannot be used here"),
                "text of a prompt belongs into run, claude.prompt or env",
            );
        } else {
            let known: Vec<&str> = ITEM_NAMES.iter().chain(PROMPT_NAMES).copied().collect();
            let hint = r.did_you_mean(name, known.iter().copied()).unwrap_or_else(|| {
                format!("known here: {}; a plain '{{' before a name is written {{{{{{}}}}", known.join(", "))
            });
            n.wrong_hint(r, format!("uses the unknown template {{{{{shown}}}}}"), hint);
        }
    }
}

const NOTHING_MORE: &dyn Fn(&str) -> bool = &|_| false;

/// Reads `tasks`.
pub fn tasks(n: &Node<'_>, r: &mut Report, scope: Scope, depth: Depth) -> Vec<TaskDraft> {
    n.array(r).map(|n| task(&n, r, scope, depth)).collect()
}

fn task(n: &Node<'_>, r: &mut Report, scope: Scope, depth: Depth) -> TaskDraft {
    let mut out = TaskDraft {
        id: String::new(),
        title: None,
        action: Action::Run(Vec::new()),
        needs: Vec::new(),
        claims: Vec::new(),
        resources: Vec::new(),
        timeout: None,
        retries: None,
        backoff: None,
        allow_failure: false,
        critical: false,
        signals: None,
        summary: None,
        env: BTreeMap::new(),
        cwd: None,
        isolate: Isolate::None,
        priority: 0,
        item: None,
    };
    if scope == Scope::Plan {
        out.item = n.field("item", r, |n, r| n.string(r).map(str::to_owned));
        let with_item: Vec<&str> = TASK_KEYS.iter().copied().chain(["item"]).chain(TASK_OWN).collect();
        if !n.keys(r, &with_item, &[]) {
            return out;
        }
    } else if !n.keys(r, TASK_KEYS, &[]) {
        return out;
    }
    match n.get("id") {
        Some(id) => out.id = task_id(&id, r, scope).unwrap_or_default(),
        None => n.wrong_hint(r, "has no id", "add \"id\": \"build\""),
    }
    out.title = n.field("title", r, |n, r| templated(n, r, scope, true));
    if let Some(action) = action(n, r, scope) {
        out.action = action;
    }
    out.needs = n.field("needs", r, |n, r| Some(needs(n, r, scope, Wanted::Anything))).unwrap_or_default();
    out.claims = n.field("claims", r, |n, r| Some(claims(n, r, scope))).unwrap_or_default();
    out.resources = n.field("resources", r, |n, r| Some(resources(n, r, scope))).unwrap_or_default();
    out.timeout = n.field("timeout", r, json::limit);
    out.retries = n.field("retries", r, |n, r| n.integer(r, 0..=100));
    out.backoff = n.field("backoff", r, backoff);
    out.allow_failure = n.field("allow_failure", r, json::boolean).unwrap_or(false);
    out.critical = n.field("critical", r, json::boolean).unwrap_or(false);
    out.signals = n.field("signals", r, |n, r| Some(rights(n, r)));
    out.summary = n.field("summary", r, |n, r| regex(n, r, depth));
    let is_client = matches!(out.action, Action::Claude(_));
    out.env = n.field("env", r, |n, r| Some(environment(n, r, scope, is_client))).unwrap_or_default();
    out.cwd = n.field("cwd", r, |n, r| {
        let s = n.text(r)?;
        template_names(n, s, r, scope, false, NOTHING_MORE);
        Some(s.to_owned())
    });
    out.isolate = n
        .field("isolate", r, |n, r| n.choice(r, &[("none", Isolate::None), ("worktree", Isolate::Worktree)]))
        .unwrap_or_default();
    out.priority = n.field("priority", r, |n, r| n.integer(r, -1000..=1000)).unwrap_or(0);
    out
}

/// Reads `signals`.
fn rights(n: &Node<'_>, r: &mut Report) -> Vec<Right> {
    let mut out = Vec::new();
    for n in n.array(r) {
        let Some(text) = n.text(r) else { continue };
        match Right::parse(text) {
            Ok(right) if out.contains(&right) => n.wrong(r, format!("\"{right}\" stands here twice")),
            Ok(right) => out.push(right),
            Err(e) => n.wrong(r, format!("\"{}\" {e}", excerpt(text))),
        }
    }
    out
}

/// A non-empty text that may hold templates.
fn templated(n: &Node<'_>, r: &mut Report, scope: Scope, prompt: bool) -> Option<String> {
    let s = n.text(r)?;
    template_names(n, s, r, scope, prompt, NOTHING_MORE);
    Some(s.to_owned())
}

fn task_id(n: &Node<'_>, r: &mut Report, scope: Scope) -> Option<String> {
    let s = n.text(r)?;
    let is_template = template::names(s).next().is_some();
    if is_template && scope == Scope::Plan {
        let what = format!("\"{}\" is a template", excerpt(s));
        n.wrong_hint(r, what, "templates are for the rules of .claude/cpw.json; a plan names each task");
        return None;
    }
    template_names(n, s, r, scope, false, NOTHING_MORE);
    // The text around the values has to fit the alphabet; values are folded into it.
    let probe = template::fill(s, |_| Some("x".into()));
    if let Err(e) = check_id(&probe) {
        n.wrong_hint(r, format!("\"{}\" {e}", excerpt(s)), "an id looks like build-api");
        return None;
    }
    Some(s.to_owned())
}

fn action(n: &Node<'_>, r: &mut Report, scope: Scope) -> Option<Action> {
    let run = n.get("run");
    let shell = n.get("shell");
    let claude = n.get("claude");
    let given = usize::from(run.is_some()) + usize::from(shell.is_some()) + usize::from(claude.is_some());
    if given != 1 {
        let what = if given == 0 {
            "does nothing: it has no run, shell or claude"
        } else {
            "has more than one of run, shell and claude"
        };
        n.wrong_hint(r, what, "give exactly one: \"run\": [\"make\", \"test\"]");
    }
    let run = run.and_then(|n| argv(&n, r, scope));
    let shell = shell.and_then(|n| script(&n, r, scope));
    let claude = claude.and_then(|n| claude_task(&n, r, scope));
    run.map(Action::Run).or(shell.map(Action::Shell)).or(claude.map(Action::Claude))
}

fn argv(n: &Node<'_>, r: &mut Report, scope: Scope) -> Option<Vec<String>> {
    if n.value().is_string() {
        let hint = "write [\"make\", \"test\"], or use \"shell\" for a script";
        n.wrong_hint(r, "is a string, must be an array: a program and its arguments", hint);
        return None;
    }
    let mut out = Vec::new();
    for (i, n) in n.array(r).enumerate() {
        let Some(s) = n.string(r) else {
            continue;
        };
        if i == 0 && s.trim().is_empty() {
            n.wrong(r, "is empty, must be the name of a program");
        }
        if i == 0 && scope != Scope::Plan && template::names(s).next().is_some() {
            n.wrong_hint(
                r,
                "the program must not come from a template",
                "name the program here, so that its user can approve it",
            );
        }
        if s.len() > MAX_STRING {
            n.wrong_hint(
                r,
                format!("is {} bytes long, more than a program can be given", s.len()),
                "put it into a file",
            );
        }
        template_names(&n, s, r, scope, true, NOTHING_MORE);
        if scope != Scope::Plan
            && let Some(hole) = code::hole(&out, s)
        {
            let (what, hint) = told(hole);
            n.wrong_hint(r, what, hint);
        }
        out.push(s.to_owned());
    }
    if out.is_empty() && n.value().as_array().is_some_and(Vec::is_empty) {
        n.wrong_hint(r, "is empty", "give a program and its arguments: [\"make\", \"test\"]");
        return None;
    }
    Some(out)
}

/// What is said about a template that would be more than data.
fn told(hole: Hole) -> (&'static str, &'static str) {
    match hole {
        Hole::Code => (
            "a template cannot be used in code: its text would be run as commands",
            "write [\"sh\", \"-c\", \"wc \\\"$1\\\"\", \"sh\", \"{{item}}\"], or use \"shell\" with \"$CPW_ITEM\"",
        ),
        Hole::Program => (
            "the program must not come from a template",
            "name the program here, so that its user can approve it; an item can be its argument",
        ),
        Hole::Variable => (
            "a template cannot set this variable: it decides what programs run",
            "write its value here, so that its user can approve it",
        ),
    }
}

fn script(n: &Node<'_>, r: &mut Report, scope: Scope) -> Option<String> {
    let s = n.text(r)?;
    if s.len() > MAX_STRING {
        n.wrong_hint(r, format!("is {} bytes long, more than a shell can be given", s.len()), "put it into a file");
    }
    if scope != Scope::Plan {
        for name in template::names(s).filter(|n| ITEM_NAMES.contains(n) || PROMPT_NAMES.contains(n)) {
            let hint = if name.starts_with("prompt") {
                "use \"$CPW_PROMPT_FILE\", with the double quotes"
            } else {
                "use \"$CPW_ITEM\", with the double quotes"
            };
            let what = format!("{{{{{name}}}}} cannot be used in a script: its text would be run as commands");
            n.wrong_hint(r, what, hint);
        }
    }
    Some(s.to_owned())
}

fn claude_task(n: &Node<'_>, r: &mut Report, scope: Scope) -> Option<ClaudeTask> {
    if !n.keys(r, CLAUDE_KEYS, &[]) {
        return None;
    }
    let prompt = if let Some(n) = n.get("prompt") {
        templated(&n, r, scope, true)
    } else {
        n.wrong(r, "has no prompt");
        None
    };
    let plain = |n: &Node<'_>, r: &mut Report| {
        let s = n.text(r)?;
        if s.starts_with('-') {
            n.wrong(r, "must not begin with '-'");
        }
        Some(s.to_owned())
    };
    let model = n.field("model", r, plain);
    let tools = n.field("tools", r, |n, r| Some(n.array(r).filter_map(|n| plain(&n, r)).collect::<Vec<_>>()));
    let permission_mode = n.field("permission_mode", r, permission_mode).unwrap_or_default();
    let max_turns = n.field("max_turns", r, |n, r| n.integer(r, 1..=10_000));
    let max_budget_usd = n.field("max_budget_usd", r, json::positive);
    let schema = n.field("schema", r, |n, r| {
        if n.value().to_string().len() > MAX_STRING {
            n.wrong(r, "is longer than a program can be given");
        }
        n.object(r).then(|| n.value().clone())
    });
    let tools = tools.unwrap_or_default();
    Some(ClaudeTask { prompt: prompt?, model, tools, permission_mode, max_turns, max_budget_usd, schema })
}

/// Bypassing all permissions is refused: the prompt may hold words that nobody has approved, and nobody watches.
fn permission_mode(n: &Node<'_>, r: &mut Report) -> Option<PermissionMode> {
    if n.value().as_str() == Some("bypassPermissions") {
        let what = "\"bypassPermissions\" would let the text of a prompt do anything as you, with nobody watching";
        n.wrong_hint(r, what, "name what it needs in \"tools\": [\"Edit\", \"Bash(make test)\"]");
        return None;
    }
    n.choice(r, PermissionMode::NAMES)
}

/// What tasks are named for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Another task needs them: their end, a checkpoint, or what a vote says.
    Anything,
    /// A merge needs their results.
    Merged,
    /// They vote.
    Votes,
}

impl Wanted {
    /// Why `what`, which is no whole task, cannot be named here.
    fn refuses(self, what: &str) -> Option<(String, &'static str)> {
        match self {
            Wanted::Anything => None,
            Wanted::Merged => {
                Some((format!("names {what}; a merge waits for the end of tasks"), "need the whole task"))
            }
            Wanted::Votes => Some((format!("names {what}; a voter is a task"), "write the id of the task")),
        }
    }
}

/// Reads `needs`; what they name is resolved later, when all ids are known.
fn needs(n: &Node<'_>, r: &mut Report, scope: Scope, wanted: Wanted) -> Vec<String> {
    let mut out = Vec::new();
    for n in n.array(r) {
        // Positions stay those of the file, so that later problems name the right element.
        let s = n.text(r).unwrap_or_default();
        let (task, checkpoint) = split_need(s);
        let plain = template::fill(task, |_| Some("x".into()));
        let asked = plain
            .find('?')
            .filter(|at| plain[..*at].bytes().all(is_id_byte))
            // `build-?` is a glob; `deploy?proceed` is a verdict.
            .filter(|at| plain[at + 1..].starts_with(|c: char| c.is_ascii_alphabetic()));
        let wrong = if s.is_empty() {
            // Already reported.
            None
        } else if let Some(name) = checkpoint {
            let bad = |e| (format!("the checkpoint \"{}\" {e}", excerpt(name)), "write build@compiled");
            wanted.refuses("a checkpoint").or_else(|| check_id(name).err().map(bad))
        } else if let Some(at) = asked {
            let choice = &plain[at + 1..];
            let bad =
                || (format!("\"{}\" is no outcome of a vote", excerpt(choice)), "write deploy?proceed or deploy?abort");
            wanted.refuses("a verdict").or_else(|| Choice::by_name(choice).is_none().then(bad))
        } else {
            None
        };
        if let Some((what, hint)) = wrong {
            n.wrong_hint(r, what, hint);
            out.push(String::new());
            continue;
        }
        if let Err(e) = Glob::text(&plain) {
            n.wrong(r, format!("\"{}\" {e}", excerpt(s)));
        }
        template_names(&n, task, r, scope, false, NOTHING_MORE);
        out.push(s.to_owned());
    }
    out
}

fn is_id_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')
}

fn claims(n: &Node<'_>, r: &mut Report, scope: Scope) -> Vec<String> {
    let mut out = Vec::new();
    for n in n.array(r) {
        let Some(s) = n.text(r) else {
            continue;
        };
        template_names(&n, s, r, scope, false, NOTHING_MORE);
        let s = s.strip_prefix("./").unwrap_or(s);
        let probe = if scope == Scope::Plan { s.to_owned() } else { template::fill(s, |_| Some("x".into())) };
        if let Err(e) = Glob::path(&probe) {
            n.wrong(r, format!("\"{}\" {e}", excerpt(s)));
        }
        out.push(s.to_owned());
    }
    out
}

/// Reads a task's `resources`.
fn resources(n: &Node<'_>, r: &mut Report, scope: Scope) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for n in n.array(r) {
        // Positions stay those of the file; what was reported here is empty.
        let s = n.text(r).unwrap_or_default();
        template_names(&n, s, r, scope, false, NOTHING_MORE);
        let probe = if scope == Scope::Plan { s.to_owned() } else { template::fill(s, |_| Some("x".into())) };
        let wrong = match resource::read(&probe) {
            _ if s.is_empty() => None,
            Err(e) => Some(e.to_string()),
            Ok(_) => out.iter().any(|other| other == s).then(|| "stands here twice".to_owned()),
        };
        if let Some(what) = &wrong {
            n.wrong(r, format!("\"{}\" {what}", excerpt(s)));
        }
        out.push(if wrong.is_none() { s.to_owned() } else { String::new() });
    }
    if out.len() > MAX_TOGETHER {
        n.wrong(r, format!("has more than {MAX_TOGETHER} resources"));
    }
    out
}

/// Reads `resources` of a plan or config: by resource, which tool calls of the session use it.
pub fn used(n: &Node<'_>, r: &mut Report) -> BTreeMap<String, Used> {
    let mut out = BTreeMap::new();
    if !n.object(r) {
        return out;
    }
    for (name, n) in n.entries() {
        if let Err(e) = resource::read(name) {
            n.wrong(r, format!("\"{}\" {e}", excerpt(name)));
        }
        if !n.keys(r, USED_KEYS, &[]) {
            continue;
        }
        let Some(tools) = n.get("tools") else {
            n.wrong_hint(r, "has no tools", "name the calls that use it: \"tools\": [\"Bash(psql*)\"]");
            continue;
        };
        let mut used = Used::default();
        for n in tools.array(r) {
            let Some(s) = n.text(r) else { continue };
            match Matcher::parse(s) {
                Ok(matcher) => used.tools.push(matcher.to_string()),
                Err(e) => n.wrong(r, format!("\"{}\" names no tool calls: {e}", excerpt(s))),
            }
        }
        out.insert(name.to_owned(), used);
    }
    if out.len() > MAX_USED {
        n.wrong(r, format!("has more than {MAX_USED} resources"));
    }
    out
}

fn backoff(n: &Node<'_>, r: &mut Report) -> Option<Backoff> {
    let default = Backoff::default();
    if n.value().is_string() {
        let initial = n.span(r, None)?;
        return Some(Backoff { initial, max: default.max.max(initial), factor: default.factor });
    }
    if !n.value().is_object() {
        n.wrong_hint(
            r,
            "must be a duration like \"5s\", or an object",
            "{\"initial\": \"1s\", \"max\": \"60s\", \"factor\": 2}",
        );
        return None;
    }
    n.keys(r, BACKOFF_KEYS, &[]);
    let initial = n.field("initial", r, |n, r| n.span(r, None)).unwrap_or(default.initial);
    let max = n.field("max", r, |n, r| n.span(r, None));
    if max.is_some_and(|max| max < initial) {
        n.wrong(r, "max is shorter than initial");
    }
    let factor = n.field("factor", r, |n, r| n.integer(r, 1..=100)).unwrap_or(default.factor);
    Some(Backoff { initial, max: max.unwrap_or(default.max.max(initial)), factor })
}

fn environment(n: &Node<'_>, r: &mut Report, scope: Scope, is_client: bool) -> BTreeMap<String, String> {
    if !n.object(r) {
        return BTreeMap::new();
    }
    let mut out = BTreeMap::new();
    for (name, n) in n.entries() {
        if !env::may_set(name) {
            let hint = "PATH, LD_*, DYLD_*, ANTHROPIC_*, CLAUDE* and CPW_* belong to the user, the client and cpw";
            n.wrong_hint(r, "may not be set by a project", hint);
        } else if is_client && !env::may_set_for_client(name) {
            let hint = "set it where Claude Code is started; a task that is a command may set it";
            n.wrong_hint(r, "may not be set for a claude task: it decides where the login goes", hint);
        }
        if let Some(s) = n.string(r) {
            template_names(&n, s, r, scope, true, NOTHING_MORE);
            if scope != Scope::Plan && env::decides(name) && template::names(s).next().is_some() {
                let (what, hint) = told(Hole::Variable);
                n.wrong_hint(r, what, hint);
            }
            if s.len() > MAX_STRING {
                n.wrong_hint(
                    r,
                    format!("is {} bytes long, more than a program can be given", s.len()),
                    "put it into a file",
                );
            }
            out.insert(name.to_owned(), s.to_owned());
        }
    }
    out
}

/// The largest size of a compiled regex, in bytes.
const REGEX_BYTES: usize = 2 << 20;

/// Compiles a regex with bounds on its size and nesting.
pub fn compile(pattern: &str) -> Result<regex::Regex, regex::Error> {
    regex::RegexBuilder::new(pattern).size_limit(REGEX_BYTES).dfa_size_limit(REGEX_BYTES).nest_limit(64).build()
}

/// A regex, checked by compiling it where that is asked for.
pub fn regex(n: &Node<'_>, r: &mut Report, depth: Depth) -> Option<String> {
    let s = n.string(r)?;
    if s.is_empty() {
        n.wrong(r, "is empty");
        return None;
    }
    if depth == Depth::Full
        && let Err(e) = compile(s)
    {
        let why = match e {
            regex::Error::CompiledTooBig(_) => "is too large when compiled".to_owned(),
            // The first lines of the message draw the pattern; the last one says why.
            e => format!(
                "is not a regex: {}",
                excerpt(e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: "))
            ),
        };
        n.wrong_hint(r, why, "look-around and back-references are not supported; '\\' is written \"\\\\\" in JSON");
    }
    Some(s.to_owned())
}

/// Reads `merge`.
pub fn merges(n: &Node<'_>, r: &mut Report, scope: Scope) -> Vec<MergeDraft> {
    n.array(r).map(|n| merge(&n, r, scope)).collect()
}

fn merge(n: &Node<'_>, r: &mut Report, scope: Scope) -> MergeDraft {
    let mut out = MergeDraft { tool: String::new(), matches: BTreeMap::new(), needs: Vec::new(), set: BTreeMap::new() };
    if !n.keys(r, MERGE_KEYS, &[]) {
        return out;
    }
    match n.get("tool") {
        None => n.wrong_hint(r, "has no tool", "add \"tool\": \"Write\""),
        Some(n) => {
            let tool = n.text(r).unwrap_or_default();
            if !tool.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')) {
                let what = format!("\"{}\" is not the name of one tool", excerpt(tool));
                n.wrong_hint(r, what, "write one entry per tool");
            }
            tool.clone_into(&mut out.tool);
        }
    }
    if let Some(n) = n.get("match")
        && n.object(r)
    {
        for (field, n) in n.entries() {
            if let Some(s) = n.text(r) {
                template_names(&n, s, r, scope, false, NOTHING_MORE);
                let probe = if scope == Scope::Plan { s.to_owned() } else { template::fill(s, |_| Some("x".into())) };
                if let Err(e) = Glob::text(&probe) {
                    n.wrong(r, format!("\"{}\" {e}", excerpt(s)));
                }
                out.matches.insert(field.to_owned(), s.to_owned());
            }
        }
    }
    match n.get("needs") {
        Some(n) => {
            out.needs = needs(&n, r, scope, Wanted::Merged);
            if n.value().as_array().is_some_and(Vec::is_empty) {
                n.wrong(r, "is empty: there is nothing to wait for");
            }
        }
        None => n.wrong_hint(r, "has no needs", "name the tasks whose results it waits for: \"needs\": [\"*\"]"),
    }
    if let Some(n) = n.get("set")
        && n.object(r)
    {
        for (field, n) in n.entries() {
            if let Some(s) = n.string(r) {
                set_names(&n, s, r, scope);
                out.set.insert(field.to_owned(), s.to_owned());
            }
        }
    }
    out
}

/// Reads `votes`.
pub fn votes(n: &Node<'_>, r: &mut Report, scope: Scope) -> Vec<VoteDraft> {
    if n.value().as_array().is_some_and(|a| a.len() > MAX_VOTES) {
        n.wrong(r, format!("has more than {MAX_VOTES} votes"));
        return Vec::new();
    }
    n.array(r).map(|n| vote(&n, r, scope)).collect()
}

fn vote(n: &Node<'_>, r: &mut Report, scope: Scope) -> VoteDraft {
    let mut out = VoteDraft {
        topic: String::new(),
        voters: Vec::new(),
        quorum: None,
        rule: Rule::default(),
        deadline: None,
        default: Vote::usual_default(),
        on_abort: OnAbort::default(),
    };
    if !n.keys(r, VOTE_KEYS, &[]) {
        return out;
    }
    match n.get("topic") {
        Some(n) => out.topic = topic(&n, r, scope).unwrap_or_default(),
        None => n.wrong_hint(r, "has no topic", "add \"topic\": \"deploy\""),
    }
    match n.get("voters") {
        Some(n) => {
            out.voters = needs(&n, r, scope, Wanted::Votes);
            if n.value().as_array().is_some_and(Vec::is_empty) {
                n.wrong(r, "is empty: nobody could vote");
            }
        }
        None => n.wrong_hint(r, "has no voters", "name the tasks that vote: \"voters\": [\"review-*\"]"),
    }
    // How many voters there are, and so whether they can be so many, is known when their ids are.
    out.quorum = n.field("quorum", r, |n, r| n.integer(r, 1..=i64::from(u32::MAX)));
    out.rule = n.field("rule", r, |n, r| n.choice(r, Rule::NAMES)).unwrap_or_default();
    out.deadline = n.field("deadline", r, |n, r| {
        let span = n.span(r, None)?;
        if span.as_ms() == 0 {
            n.wrong(r, "is 0: it would close before anybody can vote");
        }
        Some(span)
    });
    out.default = n.field("default", r, |n, r| n.choice(r, Choice::NAMES)).unwrap_or(out.default);
    out.on_abort = n.field("on_abort", r, |n, r| n.choice(r, OnAbort::NAMES)).unwrap_or_default();
    out
}

fn topic(n: &Node<'_>, r: &mut Report, scope: Scope) -> Option<String> {
    let s = n.text(r)?;
    template_names(n, s, r, scope, false, NOTHING_MORE);
    let probe = if scope == Scope::Plan { s.to_owned() } else { template::fill(s, |_| Some("x".into())) };
    if let Err(e) = check_id(&probe) {
        n.wrong_hint(r, format!("\"{}\" {e}", excerpt(s)), "a topic looks like deploy");
        return None;
    }
    Some(s.to_owned())
}

/// Reads globs by the input fields whose text they are about.
pub fn input_globs(n: &Node<'_>, r: &mut Report) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    if n.object(r) {
        for (field, n) in n.entries() {
            let Some(s) = n.text(r) else { continue };
            if let Err(e) = Glob::text(s) {
                n.wrong(r, format!("\"{}\" {e}", excerpt(s)));
            }
            out.insert(field.to_owned(), s.to_owned());
        }
    }
    out
}

/// Checks the names in a template of `set`; ids in them are checked when all are known.
fn set_names(n: &Node<'_>, s: &str, r: &mut Report, scope: Scope) {
    let late = |name: &str| {
        name == "results" || ["result.", "path.", "input."].iter().any(|p| name.len() > p.len() && name.starts_with(p))
    };
    if scope != Scope::Plan {
        template_names(n, s, r, scope, true, &late);
        return;
    }
    for name in template::names(s).filter(|name| !late(name)) {
        let what = format!("uses the unknown template {{{{{}}}}}", excerpt(name));
        n.wrong_hint(r, what, "known here: results, result.ID, path.ID, input.FIELD");
    }
}
