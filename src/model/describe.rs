//! What a config could run and what a plan will run, as text for a person at a terminal, before they approve or start it.
//! Everything that others wrote is shown as one harmless line; programs of the project are marked.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::base::span::{Limit, Span};
use crate::base::text::one_line;
use crate::model::config::{Config, ForEach, Rule};
use crate::model::draft::TaskDraft;
use crate::model::plan::{Action, Isolate, PermissionMode, Plan, Used};
use crate::model::signal::Right;
use crate::model::template;
use crate::model::vote::{Choice, OnAbort, Rule as VoteRule};

/// What would be executed, and when, is shown whole before it is approved: what is cut could be what matters.
const ALL: usize = usize::MAX;
/// How much of a command is shown in a plan, whose rule was approved or whose file was written by who starts it.
const SOME: usize = 400;
/// How much of a name is shown.
const SHORT: usize = 100;

/// Keys of a task that have a line of their own; all others are shown as they are written.
const TOLD_OF_TASK: [&str; 12] =
    ["id", "title", "run", "shell", "claude", "env", "cwd", "isolate", "claims", "resources", "critical", "signals"];
/// The same of its `claude`.
const TOLD_OF_CLAUDE: [&str; 6] = ["prompt", "tools", "permission_mode", "model", "max_turns", "max_budget_usd"];
/// The same of a config.
const TOLD_OF_CONFIG: [&str; 4] = ["$schema", "version", "resources", "rules"];

/// What this machine has of what a config names.
pub struct Machine<'a> {
    /// Where the program is that a name without a slash means, or why there is none.
    pub program: &'a dyn Fn(&str) -> Result<String, String>,
    /// Whether a path, seen from the folder that a task runs in, is a file of the project.
    pub is_project_file: &'a dyn Fn(&str, &str) -> bool,
}

/// All that a config could run, rule by rule, for approval, and all that it sets. Nothing is left out: `written` is the
/// config as it stands in the file, so that a key which nobody has given a line here is shown as it is.
pub fn what_could_run(config: &Config, written: &Value, machine: &Machine<'_>) -> String {
    let mut out = String::new();
    if config.rules.is_empty() {
        out.push_str("No rules: nothing would run.\n");
    }
    for (i, rule) in config.rules.iter().enumerate() {
        rule_text(rule, &written["rules"][i], machine, &mut out);
    }
    used(&config.resources, &mut out);
    settings_text(written, &mut out);
    out
}

/// How its runs and the session are treated.
fn settings_text(written: &Value, out: &mut String) {
    let mut set = String::new();
    for (key, value) in written.as_object().into_iter().flatten().filter(|(k, _)| !TOLD_OF_CONFIG.contains(&k.as_str()))
    {
        match value.as_object() {
            Some(part) => {
                part.iter().for_each(|(inner, value)| written_line(&mut set, &format!("{key}.{inner}"), value));
            }
            None => written_line(&mut set, key, value),
        }
    }
    if !set.is_empty() {
        out.extend(["settings\n", &set]);
    }
}

/// The keys of an object that are not told otherwise.
fn rest(object: &Value, told: &[&str], prefix: &str, out: &mut String) {
    let none = Map::new();
    for (key, value) in object.as_object().unwrap_or(&none).iter().filter(|(key, _)| !told.contains(&key.as_str())) {
        written_line(out, &format!("{prefix}{key}"), value);
    }
}

/// A key that the format knows, and its value as it is written.
fn written_line(out: &mut String, key: &str, value: &Value) {
    let list = || value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
    let text = value.as_str().map(str::to_owned).or_else(|| list().map(|list| list.join(", ")));
    line(out, key, &text.unwrap_or_else(|| value.to_string()), ALL);
}

fn rule_text(rule: &Rule, written: &Value, machine: &Machine<'_>, out: &mut String) {
    out.extend(["rule ", &one_line(&rule.name, SHORT), "\n"]);
    let w = &rule.when;
    if let Some(on) = &w.tool {
        let fields: Vec<String> = on.matches.iter().map(|(field, glob)| format!("{field} is like {glob}")).collect();
        let fields = if fields.is_empty() { String::new() } else { format!(" whose {}", fields.join(" and ")) };
        line(out, "after calls of", &format!("{}{fields}", on.tools.join(", ")), ALL);
        line(out, "once they were quiet for", &on.debounce.to_string(), ALL);
    }
    if let Some(p) = &w.prompt {
        line(out, "when the prompt matches", p, ALL);
    }
    if let Some(p) = &w.not {
        line(out, "and does not match", p, ALL);
    }
    let min = rule.min_files();
    if min > 0 {
        let glob = w.files.as_ref().and_then(|f| f.glob.as_deref());
        let glob = glob.map(|g| format!(" that match {g}")).unwrap_or_default();
        line(out, "when it names at least", &format!("{min} existing {}{glob}", plural(min, "file")), ALL);
    }
    if let Some(g) = &w.glob {
        line(out, "when files exist that match", g, ALL);
    }
    let each = match &rule.for_each {
        None => None,
        Some(ForEach::Files) if w.tool.is_some() => Some("file that these calls name".to_owned()),
        Some(ForEach::Files) => Some("file that the prompt names".to_owned()),
        Some(ForEach::Glob(g)) => Some(format!("file that matches {g}")),
        Some(ForEach::List(list)) => Some(format!("of: {}", list.join(", "))),
        Some(ForEach::Group(n)) => Some(format!("part of group {n} of the prompt's match")),
    };
    if let Some(each) = &each {
        line(out, "for each", each, ALL);
    }
    for (i, task) in rule.tasks.iter().enumerate() {
        let times = if each.is_some() && task.is_per_item() { " (one per item)" } else { "" };
        out.extend(["  task ", &one_line(&task.id, SHORT), times, "\n"]);
        if let Some(title) = &task.title {
            line(out, "  called", title, ALL);
        }
        action_text(&task.action, ALL, out);
        if shows_prompt(&task.action) {
            line(
                out,
                "  note",
                "the prompt stands in its arguments, which every user of the machine can see (ps)",
                ALL,
            );
        }
        sources(task, machine, out);
        extras(&task.env, task.cwd.as_deref(), task.isolate, &task.claims, ALL, out);
        held(&task.resources, ALL, out);
        speech(task.critical, task.signals.as_deref(), out);
        let written = &written["tasks"][i];
        rest(&written["claude"], &TOLD_OF_CLAUDE, "  claude.", out);
        rest(written, &TOLD_OF_TASK, "  ", out);
    }
    for m in &rule.merge {
        merge_text(&m.tool, &m.matches, &m.set, &m.needs.join(", "), out);
    }
    for v in &rule.votes {
        let how =
            How { rule: v.rule, quorum: v.quorum, deadline: v.deadline, default: v.default, on_abort: v.on_abort };
        vote_text(&v.topic, &v.voters.join(", "), how, out);
    }
    out.push('\n');
}

/// The whole plan: its tasks in order with needs, commands, claims, and its merges.
pub fn plan_text(plan: &Plan) -> String {
    let tasks = plan.tasks.len();
    let rule = plan.rule.as_ref().map(|r| format!(" from rule {}", one_line(r, SHORT))).unwrap_or_default();
    let limit = match plan.limits.run_timeout {
        Limit(Some(span)) => format!("within {span}"),
        Limit(None) => "without a time limit".to_owned(),
    };
    let workers = plan.limits.max_workers;
    let budget = plan.limits.max_budget_usd.map(|usd| format!(", for up to {usd} USD")).unwrap_or_default();
    let mut out = format!("{tasks} {}{rule}, up to {workers} at a time, {limit}{budget}\n", plural(tasks, "task"));
    for task in &plan.tasks {
        out.extend(["  task ", task.id.as_str()]);
        if let Some(title) = &task.title {
            out.extend([": ", &one_line(title, SHORT)]);
        }
        out.push('\n');
        if !task.needs.is_empty() {
            let needs: Vec<String> = task.needs.iter().map(ToString::to_string).collect();
            let needs: Vec<&str> = needs.iter().map(String::as_str).collect();
            line(&mut out, "  after", &few(&needs), SOME);
        }
        action_text(&task.action, SOME, &mut out);
        extras(&task.env, task.cwd.as_deref(), task.isolate, &task.claims, SOME, &mut out);
        held(&task.resources, SOME, &mut out);
        speech(task.critical, task.signals.as_deref(), &mut out);
    }
    for m in &plan.merge {
        let needs: Vec<&str> = m.needs.iter().map(crate::base::ids::TaskId::as_str).collect();
        merge_text(&m.tool, &m.matches, &m.set, &few(&needs), &mut out);
    }
    used(&plan.resources, &mut out);
    for v in &plan.votes {
        let voters: Vec<&str> = v.voters.iter().map(crate::base::ids::TaskId::as_str).collect();
        let quorum = Some(v.quorum);
        let how = How { rule: v.rule, quorum, deadline: v.deadline, default: v.default, on_abort: v.on_abort };
        vote_text(v.topic.as_str(), &few(&voters), how, &mut out);
    }
    out
}

/// A list that stays readable when it is long.
fn few(names: &[&str]) -> String {
    const SHOWN: usize = 12;
    match names.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", names[..SHOWN].join(", ")),
        _ => names.join(", "),
    }
}

fn plural(n: usize, word: &str) -> String {
    if n == 1 { word.to_owned() } else { format!("{word}s") }
}

/// A line `label: text` below its rule or task; the label is ours. Characters that a terminal would not show, or obey,
/// are written out: who approves a command has to see all of it.
fn line(out: &mut String, label: &str, text: &str, max: usize) {
    let visible = visible(text);
    let text = if max == ALL { visible } else { one_line(&visible, max) };
    out.extend(["  ", label, ": ", &text, "\n"]);
}

fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' '..='~' => out.push(c),
            '\n' | '\r' | '\t' => out.extend(c.escape_default()),
            // Whatever the rules for foreign text would drop.
            c if c.is_whitespace() || one_line(c.encode_utf8(&mut [0; 4]), 1).is_empty() => {
                out.extend(c.escape_unicode());
            }
            c => out.push(c),
        }
    }
    out
}

fn shows_prompt(action: &Action) -> bool {
    matches!(action, Action::Run(argv) if argv.iter().any(|a| template::names(a).any(|name| name == "prompt")))
}

fn action_text(action: &Action, max: usize, out: &mut String) {
    match action {
        Action::Run(argv) => {
            let words: Vec<String> = argv.iter().map(|a| quoted(a)).collect();
            line(out, "  runs", &words.join(" "), max);
            if argv.first().is_some_and(|p| p.contains('/')) {
                let program = argv.first().map(String::as_str).unwrap_or_default();
                let whose = if program.starts_with('/') {
                    "a file on this machine, whatever it holds by then"
                } else {
                    "a file of this project, whatever it holds by then"
                };
                line(out, "  note", &format!("{} is {whose}", quoted(program)), max);
            }
        }
        Action::Shell(script) => {
            for (i, part) in script.lines().filter(|l| !l.trim().is_empty()).enumerate() {
                line(out, if i == 0 { "  runs in sh" } else { "            " }, part, max);
            }
        }
        Action::Claude(c) => {
            line(out, "  asks claude", &c.prompt, max);
            let tools =
                if c.tools.is_empty() { "none beyond what needs no permission".to_owned() } else { c.tools.join(", ") };
            line(out, "  with tools", &tools, max);
            if c.permission_mode != PermissionMode::Default {
                line(out, "  in mode", c.permission_mode.name(), max);
            }
            let mut bounds = Vec::new();
            bounds.extend(c.model.as_ref().map(|m| format!("model {m}")));
            bounds.extend(c.max_turns.map(|n| format!("at most {n} turns")));
            bounds.extend(c.max_budget_usd.map(|n| format!("at most {n} USD")));
            if !bounds.is_empty() {
                line(out, "  bounds", &bounds.join(", "), max);
            }
        }
    }
}

/// Where what a task runs comes from: its program on this machine, and files of the project that it names, which may hold
/// something else by then.
fn sources(task: &TaskDraft, machine: &Machine<'_>, out: &mut String) {
    let name = match &task.action {
        Action::Run(argv) => argv.first().map_or("", String::as_str),
        Action::Shell(_) => "sh",
        Action::Claude(_) => "claude",
    };
    if name.contains("{{") {
        line(out, "  program", &format!("which one {} is depends on the item", quoted(name)), ALL);
    } else if !name.contains('/') {
        match (machine.program)(name) {
            // The shell is the same everywhere.
            Ok(_) if matches!(task.action, Action::Shell(_)) => {}
            Ok(path) => line(out, "  program", &format!("{} is {path}, by the PATH of this shell", quoted(name)), ALL),
            Err(why) => line(out, "  program", &why, ALL),
        }
    }
    let border = |c: char| c.is_whitespace() || ";&|()<>\"'`=,".contains(c);
    let words: Vec<&str> = match &task.action {
        // A relative program has a note already.
        Action::Run(argv) => {
            let own = argv.iter().enumerate().filter(|(i, arg)| *i > 0 || arg.starts_with('/'));
            own.filter_map(|(_, arg)| arg.rsplit('=').next()).collect()
        }
        Action::Shell(script) => script.split(border).collect(),
        Action::Claude(_) => Vec::new(),
    };
    let cwd = task.cwd.as_deref().unwrap_or_default();
    let is_named = |word: &&str| {
        let here = word.starts_with("./") || word.starts_with("../");
        !word.is_empty() && !word.contains("{{") && (here || (machine.is_project_file)(word, cwd))
    };
    let files: BTreeSet<&str> = words.into_iter().filter(is_named).collect();
    if !files.is_empty() {
        let all: Vec<String> = files.into_iter().map(quoted).collect();
        line(out, "  note", &format!("of this project, whatever it holds by then: {}", all.join(", ")), ALL);
    }
}

/// An argument as a shell would want it, so that its borders are visible.
fn quoted(arg: &str) -> String {
    let plain = !arg.is_empty()
        && arg.chars().all(|c| {
            c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/' | '=' | ':' | ',' | '+' | '{' | '}' | '@' | '%')
        });
    if plain { arg.to_owned() } else { format!("'{}'", arg.replace('\'', "'\\''")) }
}

fn extras(
    env: &BTreeMap<String, String>,
    cwd: Option<&str>,
    isolate: Isolate,
    claims: &[String],
    max: usize,
    out: &mut String,
) {
    for (name, value) in env {
        line(out, "  with", &format!("{name}={}", quoted(value)), max);
    }
    if let Some(cwd) = cwd {
        line(out, "  in", cwd, max);
    }
    if isolate == Isolate::Worktree {
        line(out, "  on", "a git worktree of its own; its change is left as a patch", max);
    }
    if !claims.is_empty() {
        line(out, "  claims", &claims.join(", "), max);
    }
}

/// What it holds while it runs.
fn held(resources: &[String], max: usize, out: &mut String) {
    if !resources.is_empty() {
        line(out, "  holds", &resources.join(", "), max);
    }
}

/// Which calls of the session wait while a task holds something.
fn used(resources: &BTreeMap<String, Used>, out: &mut String) {
    for (name, used) in resources {
        line(out, "resource", &format!("{name} is used by {}", used.tools.join(", ")), ALL);
    }
}

/// What it may say to the session, where that is more or less than usual.
fn speech(critical: bool, signals: Option<&[Right]>, out: &mut String) {
    if critical {
        line(out, "  critical", "the session does not stop before it has heard that this failed or was skipped", ALL);
    }
    if let Some(signals) = signals {
        let all: Vec<String> = signals.iter().map(ToString::to_string).collect();
        line(out, "  may signal", &if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }, ALL);
    }
}

/// How a vote is held.
#[derive(Debug, Clone, Copy)]
struct How {
    rule: VoteRule,
    quorum: Option<u32>,
    deadline: Option<Span>,
    default: Choice,
    on_abort: OnAbort,
}

fn vote_text(topic: &str, voters: &str, how: How, out: &mut String) {
    out.extend(["  vote ", &one_line(topic, SHORT), "\n"]);
    line(out, "  by", voters, ALL);
    let needed = match how.rule {
        VoteRule::Majority => "it proceeds if more are for it than against it",
        VoteRule::Unanimous => "it proceeds if all are for it",
    };
    let quorum = match (how.quorum, how.rule) {
        (Some(n), _) => format!(", and at least {n} have voted"),
        (None, VoteRule::Majority) => ", and more than half have voted".to_owned(),
        (None, VoteRule::Unanimous) => String::new(),
    };
    line(out, "  rule", &format!("{needed}{quorum}"), ALL);
    let until = how.deadline.map_or_else(String::new, |span| format!(" {span} after the first of them began, or"));
    let until = format!("{until} when nobody can vote any more; with too few votes: {}", how.default);
    line(out, "  closes", until.trim_start(), ALL);
    if how.on_abort == OnAbort::Signal {
        line(out, "  on abort", "the session does not stop before it has heard of it", ALL);
    }
}

fn merge_text(
    tool: &str,
    matches: &BTreeMap<String, String>,
    set: &BTreeMap<String, String>,
    needs: &str,
    out: &mut String,
) {
    let conditions: Vec<String> = matches.iter().map(|(field, glob)| format!("{field} is like {glob}")).collect();
    let on = if conditions.is_empty() { String::new() } else { format!(" whose {}", conditions.join(" and ")) };
    line(out, "merge", &format!("a call of {tool}{on} waits for {needs}"), ALL);
    for (field, template) in set {
        line(out, "  then sets", &format!("{field} to {}", quoted(template)), ALL);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::base::ids::RunId;
    use crate::model::check::{Defaults, Machine, plan_from_person};
    use crate::model::config::{self, Settings};

    fn shown(text: &serde_json::Value) -> String {
        let program = |name: &str| match name {
            "gone" => Err("gone: no such program".into()),
            name => Ok(format!("/usr/bin/{name}")),
        };
        let is_project_file = |path: &str, cwd: &str| (path, cwd) == ("lint.py", "") || (path, cwd) == ("b.sh", "sub");
        let config = config::check(text.to_string().as_bytes()).unwrap_or_else(|p| panic!("{p:#?}"));
        what_could_run(&config, text, &super::Machine { program: &program, is_project_file: &is_project_file })
    }

    #[test]
    fn where_a_program_comes_from_is_shown() {
        let task = |id: &str, action: (&str, serde_json::Value)| json!({"id": id, action.0: action.1});
        let mut elsewhere = task("e", ("run", json!(["sh", "b.sh", "lint.py"])));
        elsewhere["cwd"] = "sub".into();
        let shown = shown(&json!({"version": 1, "rules": [{"name": "r", "when": {"prompt": "go"}, "tasks": [
            task("a", ("run", json!(["python3", "-u", "lint.py", "--config=lint.py"]))),
            task("b", ("run", json!(["gone"]))),
            task("c", ("shell", json!("make all; ./x.sh && python3 'lint.py' <../y"))),
            task("d", ("claude", json!({"prompt": "p"}))), elsewhere]}]}));
        for part in [
            "    program: python3 is /usr/bin/python3, by the PATH of this shell\n    note: of this project, whatever it holds by then: lint.py\n",
            "    program: gone: no such program\n",
            "    note: of this project, whatever it holds by then: ../y, ./x.sh, lint.py\n",
            "    program: claude is /usr/bin/claude, by the PATH of this shell\n",
            "    note: of this project, whatever it holds by then: b.sh\n",
        ] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
    }

    #[test]
    fn no_key_of_a_config_is_kept_from_who_approves() {
        let text = json!({"$schema": "./s.json", "version": 1,
            "limits": {"max_workers": 7, "max_claude": 3, "max_runs": 2, "task_timeout": "11m", "run_timeout": "none",
                "retries": 5, "max_budget_usd": 12.5},
            "conductor": {"on_claimed": "redirect", "wait": "17s", "gate": "block", "hold": "13m", "wake": false,
                "news_chars": 1234, "news_tokens": 4321, "worker_text": "none"},
            "durability": "power", "runs_dir": "/elsewhere/runs", "orphans": "cancel",
            "resources": {"db": {"tools": ["Bash(psql *)"]}},
            "rules": [{"name": "r", "when": {"prompt": "go"}, "tasks": [
                {"id": "first", "run": ["true"]},
                {"id": "ask", "claude": {"prompt": "p", "schema": {"type": "object"}}, "needs": ["first"],
                    "timeout": "19m", "retries": 4, "backoff": {"initial": "23s"}, "allow_failure": true, "critical": true,
                    "summary": "(\\d+) errors", "priority": 29, "resources": ["db"], "claims": ["*.rs"], "cwd": "sub",
                    "signals": ["stop:2"], "title": "Asks", "env": {"MODE": "fast"}, "isolate": "worktree"}]}]});
        let shown = shown(&text);
        for part in [
            "limits.max_workers: 7",
            "limits.max_claude: 3",
            "limits.max_runs: 2",
            "limits.task_timeout: 11m",
            "limits.run_timeout: none",
            "limits.retries: 5",
            "limits.max_budget_usd: 12.5",
            "conductor.on_claimed: redirect",
            "conductor.wait: 17s",
            "conductor.gate: block",
            "conductor.hold: 13m",
            "conductor.wake: false",
            "conductor.news_chars: 1234",
            "conductor.news_tokens: 4321",
            "conductor.worker_text: none",
            "durability: power",
            "runs_dir: /elsewhere/runs",
            "orphans: cancel",
            "db is used by Bash(psql *)",
            "claude.schema: {\"type\":\"object\"}",
            "needs: first",
            "timeout: 19m",
            "retries: 4",
            "backoff: {\"initial\":\"23s\"}",
            "allow_failure: true",
            "does not stop before it has heard",
            "summary: (\\d+) errors",
            "priority: 29",
            "holds: db",
            "claims: *.rs",
            "in: sub",
            "may signal: stop:2",
            "called: Asks",
            "MODE=fast",
            "git worktree of its own",
        ] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
    }

    #[test]
    fn everything_that_could_run_is_shown() {
        let long = format!("echo {} END-OF-SCRIPT", "x".repeat(5000));
        let text = json!({"version": 1, "rules": [{"name": "r", "when": {"prompt": "go", "not": "stay"},
            "for_each": {"list": ["a", "b"]},
            "tasks": [
                {"id": "own-{{item}}", "run": ["./tool.sh", "two words", "{{item}}"], "env": {"MODE": "x y"},
                    "isolate": "worktree"},
                {"id": "script", "shell": format!("{long}\necho second")},
                {"id": "ask", "claude": {"prompt": "look", "tools": ["Read", "Bash(ls *)"], "max_turns": 3}}],
            "merge": [{"tool": "Write", "match": {"file_path": "*.md"}, "needs": ["*"], "set": {"content": "{{results}}"}}]}]});
        let shown = shown(&text);
        for part in [
            "rule r",
            "./tool.sh 'two words' {{item}}",
            "./tool.sh is a file of this project",
            "MODE='x y'",
            "on: a git worktree of its own",
            "END-OF-SCRIPT",
            "echo second",
            "Read, Bash(ls *)",
            "at most 3 turns",
            "does not match: stay",
            "own-{{item}} (one per item)",
            "of: a, b",
            "file_path is like *.md",
        ] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
        assert!(!shown.contains("task script (one"));
        assert!(!shown.contains("(ps)"));
        let text = text.to_string().replace("two words", "{{prompt}}");
        assert!(self::shown(&serde_json::from_str(&text).unwrap()).contains("(ps)"));
    }

    #[test]
    fn nothing_hides_from_who_approves() {
        let text = json!({"version": 1, "rules": [{"name": "r", "when": {"prompt": "go"}, "tasks": [
            {"id": "a", "run": ["rm", "a\nb", "x\u{202e}y\u{200b}"]}, {"id": "b", "shell": "true \r curl\u{7}"}]}]});
        let shown = shown(&text);
        for part in ["rm 'a\\nb' 'x\\u{202e}y\\u{200b}'", "true \\r curl\\u{7}"] {
            assert!(shown.contains(part), "{part} is missing in\n{shown}");
        }
    }

    #[test]
    fn a_plan_cannot_paint_on_the_terminal() {
        let text = json!({"version": 1, "tasks": [{"id": "a", "title": "x\u{1b}[2Jy", "run": ["echo", "\u{202e}\r\nevil"]},
            {"id": "b", "shell": "echo \u{1b}]0;t\u{7}", "needs": ["a"], "claims": ["\u{9b}1m"]}]});
        let defaults = Defaults { settings: &Settings::default(), machine: Machine { cores: 2, mem_mib: 4096 } };
        let plan = plan_from_person(text.to_string().as_bytes(), RunId::new("r").unwrap(), &defaults).unwrap();
        let shown = plan_text(&plan);
        assert!(shown.chars().all(|c| c == '\n' || !c.is_control()), "{shown:?}");
        assert!(!shown.contains('\u{202e}'));
        assert!(shown.contains("after: a"), "{shown}");
        assert!(shown.starts_with("2 tasks, up to 4 at a time, within 4h\n"), "{shown}");
    }
}
