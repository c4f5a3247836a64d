//! JSON Schemas (2020-12) of what people and programs read and write: the config, plans, and the lines of the log. They
//! serve editors and other tools; cpw itself checks more than a schema can say (`model::check`).

use serde_json::{Map, Value, json};

use crate::model::event::Body;
use crate::model::signal::Right;

pub(super) const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The schema of `.claude/cpw.json`.
pub fn config_schema() -> Value {
    let mut root = object(
        &[
            ("$schema", text("Where an editor finds this schema: `cpw schema config > .claude/cpw.schema.json`.")),
            ("version", json!({"const": 1, "description": "Version of this format."})),
            (
                "limits",
                object(&limits(true), &[], "Bounds. Where the user-wide config also has one, the smaller holds."),
            ),
            ("conductor", object(&conductor(), &[], "How the session is informed and held while a run goes on.")),
            (
                "durability",
                words(
                    &["process", "power"],
                    "What the log survives: the death of any process, or the loss of power too.",
                ),
            ),
            (
                "runs_dir",
                text(
                    "Where the runs are instead of .claude/runs: a folder below the project, or an absolute path, below \
                     which each project gets a folder of its own.",
                ),
            ),
            (
                "orphans",
                words(
                    &["finish", "cancel"],
                    "What becomes of a run when the client is gone: it goes on, or it is cancelled a minute later.",
                ),
            ),
            ("resources", used()),
            (
                "rules",
                list(
                    reference("rule"),
                    "Which prompts and tool calls start which tasks; every rule that matches starts a run of its own.",
                ),
            ),
        ],
        &["version"],
        "The config of cpw for a project, .claude/cpw.json.",
    );
    let rule = object(
        &[
            ("name", json!({"$ref": "#/$defs/id", "description": "Unique name."})),
            ("when", reference("when")),
            ("for_each", for_each()),
            (
                "tasks",
                list(
                    reference("task"),
                    "What to run. Fields are templates: {{item}}, {{item.name}}, {{item.stem}}, {{item.dir}}, {{item.ext}}, {{index}}, {{prompt}}, {{prompt_file}} (these two not after tool calls). A task that uses no item (nor $CPW_ITEM) is made once.",
                ),
            ),
            ("merge", list(reference("merge"), "Results that go into the session's tool calls.")),
            ("votes", list(reference("vote"), "What its tasks vote about; at most 64.")),
        ],
        &["name", "when", "tasks"],
        "Which prompts, or tool calls, start which tasks.",
    );
    let when = object(
        &[
            ("prompt", text("Regex over the user's own words, without quotes, code and pasted logs.")),
            (
                "files",
                object(
                    &[
                        ("min", integer(1, 1000, "At least so many. Default 1.")),
                        ("glob", text("Only files that match this glob count.")),
                    ],
                    &[],
                    "Existing files that the prompt names.",
                ),
            ),
            ("glob", text("Some file that matches this glob exists.")),
            ("not", text("Regex that the user's own words must not match.")),
            (
                "tool",
                text("Instead of prompt, files and not: after calls of these tools, by exact names, separated by |."),
            ),
            (
                "match",
                json!({"type": "object", "additionalProperties": {"type": "string"}, "description": "Per input field of such a call a glob that its text must match; * also crosses /."}),
            ),
            ("debounce", duration("How long such calls must have been quiet, at most 10m. Default 2s.")),
        ],
        &[],
        "The conditions; all that are given must hold. prompt, files or tool is needed.",
    );
    let mut defs = definitions(false);
    defs.insert("rule".into(), rule);
    defs.insert("when".into(), when);
    finish(&mut root, "cpw config", defs)
}

/// The schema of a plan for `cpw run PLAN`.
pub fn plan_schema() -> Value {
    let mut root = object(
        &[
            ("$schema", text("Where an editor finds this schema: `cpw schema plan > plan.schema.json`.")),
            ("version", json!({"const": 1, "description": "Version of this format."})),
            ("limits", object(&limits(false), &[], "Bounds of the run.")),
            ("conductor", object(&conductor(), &[], "How the session is informed and held while the run goes on.")),
            (
                "durability",
                words(
                    &["process", "power"],
                    "What the log survives: the death of any process, or the loss of power too.",
                ),
            ),
            ("resources", used()),
            ("tasks", list(reference("task"), "What to run; at most 10000.")),
            ("merge", list(reference("merge"), "Results that go into the session's tool calls.")),
            ("votes", list(reference("vote"), "What its tasks vote about; at most 64.")),
            ("run", text("The run; cpw gives it.")),
            ("session", text("The session that owns the run; cpw gives it.")),
            ("rule", text("The rule that the plan was made from; cpw gives it.")),
            ("from", text("The run that this one continues; cpw gives it.")),
            ("orphan_grace", text("How long after its client has gone the run is cancelled; cpw gives it.")),
        ],
        &["version", "tasks"],
        "A plan: the tasks of one run and what they need.",
    );
    finish(&mut root, "cpw plan", definitions(true))
}

/// The schema of one line of `events.jsonl`.
pub fn event_schema() -> Value {
    json!({
        "$schema": DRAFT,
        "title": "cpw event",
        "description": "One line of events.jsonl. Readers ignore kinds and payload keys that they do not know.",
        "type": "object",
        "properties": {
            "t": {"type": "string", "description": "The kind, the first key of every line.", "examples": Body::NAMES},
            "seq": {"type": "integer", "minimum": 1, "description": "Position in the log: 1, 2, 3 … without a gap."},
            "ts": {"type": "string", "format": "date-time", "description": "Wall-clock time in UTC, for display only."},
            "worker": {"type": "string", "pattern": "^W[1-9][0-9]*$", "description": "The worker it is about."},
            "task": {"$ref": "#/$defs/id", "description": "The task it is about."},
            "attempt": {"type": "integer", "minimum": 1, "description": "The attempt of that task."},
            "payload": {"type": "object", "description": "What the kind says; open for further keys."}
        },
        "required": ["t", "seq", "ts", "payload"],
        "$defs": {"id": id()}
    })
}

fn finish(root: &mut Value, title: &str, defs: Map<String, Value>) -> Value {
    let mut out = Map::new();
    out.insert("$schema".into(), DRAFT.into());
    out.insert("title".into(), title.into());
    if let Value::Object(rest) = root.take() {
        out.extend(rest);
    }
    out.insert("$defs".into(), Value::Object(defs));
    Value::Object(out)
}

fn definitions(plan: bool) -> Map<String, Value> {
    let mut defs = Map::new();
    defs.insert("id".into(), id());
    defs.insert("duration".into(), json!({"type": "string", "pattern": "^\\s*[0-9]+(\\.[0-9]{1,6})?\\s*(ms|s|m|h|d)\\s*$", "examples": ["30s", "10m", "4h"]}));
    defs.insert("limit".into(), json!({"anyOf": [{"const": "none"}, {"$ref": "#/$defs/duration"}]}));
    defs.insert("task".into(), task(plan));
    defs.insert("claude".into(), claude());
    defs.insert("merge".into(), merge());
    defs.insert("vote".into(), vote());
    defs
}

fn id() -> Value {
    json!({"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$", "not": {"pattern": "\\.\\."}})
}

fn limits(config: bool) -> Vec<(&'static str, Value)> {
    let mut out = vec![(
        "max_workers",
        integer(1, 256, "Tasks of a run at the same time. Default: from cores and memory, 4 to 64."),
    )];
    if config {
        out.push(("max_runs", integer(1, 64, "Active runs in the project. Default 4.")));
    }
    out.extend([
        ("task_timeout", limit("How long an attempt may take where its task does not say. Default 30m.")),
        ("run_timeout", limit("How long a run may take. Default 4h.")),
        ("retries", integer(0, 100, "Further attempts where a task does not say. Default 0.")),
        ("max_claude", integer(1, 256, "claude tasks of a run at the same time. Default: as many as memory carries.")),
        ("max_budget_usd", positive("US dollars that the claude tasks of a run may spend. Default: no limit.")),
    ]);
    out
}

fn conductor() -> Vec<(&'static str, Value)> {
    vec![
        (
            "on_claimed",
            words(
                &["wait", "block", "redirect", "note", "off"],
                "When the session touches a file that a task claims: hold the call and then refuse it, refuse at once, hand a Read the result, let it pass with a note, or without. Default wait.",
            ),
        ),
        ("wait", duration("How long one tool call may be held, at most 590s. Default 20s.")),
        (
            "gate",
            words(
                &["hold", "block", "off"],
                "What Stop does while the run goes on: wait in the hook, answer at once, nothing. Default hold.",
            ),
        ),
        ("hold", duration("How long Stop may hold, at most 12h. Default 10m.")),
        (
            "wake",
            json!({"type": "boolean", "description": "Whether news wakes an idle interactive session. Default true."}),
        ),
        ("news_chars", integer(200, 9000, "Characters of news per delivery. Default 4000.")),
        (
            "news_tokens",
            integer(
                100,
                10_000_000,
                "Tokens of news per run, estimated; what comes beyond is told in short. Default 20000.",
            ),
        ),
        (
            "worker_text",
            words(
                &["line", "none"],
                "What of a worker's own words the model sees: one quoted line, or nothing. Default line.",
            ),
        ),
    ]
}

fn task(plan: bool) -> Value {
    let mut keys = vec![
        (
            "id",
            if plan {
                reference("id")
            } else {
                text("The id or its template; filled it fits [A-Za-z0-9][A-Za-z0-9_.-]{0,63}.")
            },
        ),
        ("title", text("What people read instead of the id.")),
        (
            "run",
            json!({"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "A program and its arguments; no shell."}),
        ),
        (
            "shell",
            text("A script for sh -c. Values reach it as environment only: \"$CPW_ITEM\", \"$CPW_PROMPT_FILE\"."),
        ),
        ("claude", reference("claude")),
        (
            "needs",
            list(
                json!({"type": "string"}),
                "Ids of tasks, or globs over ids, that must be done before; with @NAME behind one, a checkpoint that it must have come to.",
            ),
        ),
        ("claims", list(json!({"type": "string"}), "Files or globs that the task answers for towards the session.")),
        (
            "resources",
            list(
                json!({"type": "string"}),
                "What the task holds, alone, while it runs: names (db, port:5432) and files (with a / in them), taken together before it starts.",
            ),
        ),
        ("timeout", limit("How long one attempt may take.")),
        ("retries", integer(0, 100, "Further attempts after a failed one.")),
        (
            "backoff",
            json!({"description": "Pause before a further attempt: a duration that doubles each time, or all three values.", "anyOf": [
                {"$ref": "#/$defs/duration"},
                object(&[
                    ("initial", duration("Before the second attempt. Default 1s.")),
                    ("max", duration("The longest. Default 60s.")),
                    ("factor", integer(1, 100, "From attempt to attempt. Default 2.")),
                ], &[], "")
            ]}),
        ),
        (
            "allow_failure",
            json!({"type": "boolean", "description": "Whether tasks that need this one go on when it failed. Default false."}),
        ),
        (
            "critical",
            json!({"type": "boolean", "description": "Whether the session must hear, before it stops, that this task failed or was skipped. Default false."}),
        ),
        (
            "signals",
            list(
                words(&Right::ALL.split(", ").collect::<Vec<_>>(), "A hook and a code."),
                "What it may say to the session by cpw signal. Default: inform anybody, block calls on its own claims, and keep the session from stopping if it is critical.",
            ),
        ),
        (
            "summary",
            text(
                "Regex over the output; group 1 of its last match is the line that the session reads. Default: the first line of the result.",
            ),
        ),
        (
            "env",
            json!({"type": "object", "additionalProperties": {"type": "string"}, "description": "Variables; not PATH, LD_*, DYLD_*, ANTHROPIC_*, CLAUDE*, CPW_*."}),
        ),
        ("cwd", text("Where it runs, relative to the project.")),
        (
            "isolate",
            words(
                &["none", "worktree"],
                "worktree: it works in a git worktree of its own, and its change is left as change.patch. Default none.",
            ),
        ),
        ("priority", integer(-1000, 1000, "Higher goes first among tasks that are ready. Default 0.")),
    ];
    if plan {
        keys.push(("item", text("The item that the task was made from; handed over as $CPW_ITEM.")));
    }
    let mut out = object(&keys, &["id"], "A unit of work: exactly one of run, shell and claude.");
    out["oneOf"] = json!([{"required": ["run"]}, {"required": ["shell"]}, {"required": ["claude"]}]);
    out
}

fn used() -> Value {
    let tools =
        ("tools", list(json!({"type": "string"}), "Tools, or calls of them: \"Bash(psql*)\", \"mcp__db__query\"."));
    json!({
        "type": "object",
        "additionalProperties": object(&[tools], &["tools"], "Which tool calls of the session use it."),
        "description": "By resource, the tool calls of the session that use it: they wait while a task holds it, or are told who does."
    })
}

fn claude() -> Value {
    object(
        &[
            ("prompt", text("The prompt.")),
            ("model", text("The model; the client's default where absent.")),
            ("tools", list(json!({"type": "string"}), "Tools it may use without asking.")),
            (
                "permission_mode",
                words(
                    &["default", "acceptEdits", "plan", "dontAsk"],
                    "What it may do beside the tools named: refuse what would have to be asked, change files of the project as well, change nothing, nothing that is not named. Default default.",
                ),
            ),
            ("max_turns", integer(1, 10_000, "Model turns.")),
            ("max_budget_usd", positive("US dollars, all attempts together.")),
            ("schema", json!({"type": "object", "description": "A JSON schema that its answer must fit."})),
        ],
        &["prompt"],
        "A headless claude -p with hooks off.",
    )
}

fn merge() -> Value {
    object(
        &[
            ("tool", text("The tool's name, like Write.")),
            (
                "match",
                json!({"type": "object", "additionalProperties": {"type": "string"}, "description": "Per input field a glob that its text must match; * also crosses /."}),
            ),
            ("needs", list(json!({"type": "string"}), "Ids of tasks, or globs over ids, whose outcome it waits for.")),
            (
                "set",
                json!({"type": "object", "additionalProperties": {"type": "string"}, "description": "Per input field its new text: {{results}}, {{result.ID}}, {{path.ID}}, {{input.FIELD}}. Absent: the call only waits."}),
            ),
        ],
        &["tool", "needs"],
        "Results that go into a tool call of the session, once.",
    )
}

fn vote() -> Value {
    object(
        &[
            (
                "topic",
                text("What is voted about: an id, in a rule maybe with an item template, for a vote per item. Unique."),
            ),
            ("voters", list(json!({"type": "string"}), "The tasks that vote, by ids or globs over ids; at most 256.")),
            (
                "quorum",
                integer(
                    1,
                    256,
                    "How many must have voted. Default: more than half; all of them where it is unanimous.",
                ),
            ),
            (
                "rule",
                words(&["majority", "unanimous"], "How many must be for it. Default majority; a tie is an abort."),
            ),
            (
                "deadline",
                duration(
                    "When it closes at the latest, from the start of the first voter. Default: when nobody can vote any more.",
                ),
            ),
            ("default", words(&["abort", "proceed"], "What holds where too few have voted. Default abort.")),
            (
                "on_abort",
                words(
                    &["signal", "none"],
                    "Whether the session must hear of an abort before it stops, and the run fails. Default signal.",
                ),
            ),
        ],
        &["topic", "voters"],
        "A vote of tasks.",
    )
}

fn for_each() -> Value {
    let one = |key: &'static str, value: Value| object(&[(key, value)], &[key], "");
    json!({
        "description": "What tasks are made from, one per item.",
        "anyOf": [
            {"const": "files"},
            one("glob", text("The files on disk that match.")),
            one("list", list(json!({"type": "string"}), "These words.")),
            one("group", integer(1, 99, "This group of when.prompt, split at commas and \"and\".")),
        ]
    })
}

fn object(properties: &[(&str, Value)], required: &[&str], description: &str) -> Value {
    let properties: Map<String, Value> = properties.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    let mut out = Map::new();
    if !description.is_empty() {
        out.insert("description".into(), description.into());
    }
    out.insert("type".into(), "object".into());
    out.insert("properties".into(), Value::Object(properties));
    if !required.is_empty() {
        out.insert("required".into(), json!(required));
    }
    out.insert("additionalProperties".into(), false.into());
    Value::Object(out)
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn integer(min: i64, max: i64, description: &str) -> Value {
    json!({"type": "integer", "minimum": min, "maximum": max, "description": description})
}

fn positive(description: &str) -> Value {
    json!({"type": "number", "exclusiveMinimum": 0, "description": description})
}

fn duration(description: &str) -> Value {
    json!({"$ref": "#/$defs/duration", "description": description})
}

fn limit(description: &str) -> Value {
    json!({"$ref": "#/$defs/limit", "description": description})
}

pub(super) fn words(of: &[&str], description: &str) -> Value {
    json!({"enum": of, "description": description})
}

pub(super) fn list(items: Value, description: &str) -> Value {
    let mut out = json!({"type": "array", "description": description});
    out["items"] = items;
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{check, config, draft, starter};

    fn keys(schema: &Value, pointer: &str) -> BTreeSet<String> {
        let node = schema.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
        node["properties"].as_object().unwrap().keys().cloned().collect()
    }

    fn set(lists: &[&[&str]]) -> BTreeSet<String> {
        lists.iter().flat_map(|l| l.iter()).map(|k| (*k).to_owned()).collect()
    }

    #[test]
    fn the_schemas_have_the_keys_that_are_accepted() {
        let (config, plan) = (config_schema(), plan_schema());
        for (schema, pointer, accepted) in [
            (&config, "", set(&[config::KEYS])),
            (&config, "/properties/limits", set(&[config::LIMIT_KEYS])),
            (&config, "/properties/conductor", set(&[config::CONDUCTOR_KEYS])),
            (&config, "/$defs/rule", set(&[config::RULE_KEYS])),
            (&config, "/$defs/when", set(&[config::WHEN_KEYS])),
            (&config, "/$defs/when/properties/files", set(&[config::FILES_KEYS])),
            (&config, "/$defs/task", set(&[draft::TASK_KEYS])),
            (&config, "/$defs/task/properties/backoff/anyOf/1", set(&[draft::BACKOFF_KEYS])),
            (&config, "/$defs/claude", set(&[draft::CLAUDE_KEYS])),
            (&config, "/$defs/merge", set(&[draft::MERGE_KEYS])),
            (&config, "/$defs/vote", set(&[draft::VOTE_KEYS])),
            (&plan, "", set(&[check::PLAN_KEYS, check::PLAN_OWN])),
            (&plan, "/properties/limits", set(&[check::PLAN_LIMIT_KEYS])),
            (&plan, "/properties/conductor", set(&[config::CONDUCTOR_KEYS])),
            (&plan, "/$defs/task", set(&[draft::TASK_KEYS, &["item"]])),
        ] {
            assert_eq!(keys(schema, pointer), accepted, "{pointer}");
        }
        let forms = config.pointer("/$defs/rule/properties/for_each/anyOf").unwrap().as_array().unwrap();
        let forms: BTreeSet<String> = forms.iter().skip(1).flat_map(|f| keys(f, "")).collect();
        assert_eq!(forms, set(&[config::FOR_EACH_KEYS]));
    }

    /// Every key of `value` stands in the schema, wherever the schema lists keys.
    fn covered(root: &Value, schema: &Value, value: &Value, at: &str) {
        let schema = match schema.get("$ref").and_then(Value::as_str) {
            Some(r) => root.pointer(r.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        if let (Some(object), Some(properties)) = (value.as_object(), schema.get("properties")) {
            for (key, child) in object {
                let sub = properties.get(key).unwrap_or_else(|| panic!("{at}.{key} is not in the schema"));
                covered(root, sub, child, &format!("{at}.{key}"));
            }
            for key in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
                assert!(object.contains_key(key.as_str().unwrap()), "{at} lacks {key}");
            }
        }
        if let (Some(list), Some(items)) = (value.as_array(), schema.get("items")) {
            for child in list {
                covered(root, items, child, at);
            }
        }
    }

    #[test]
    fn the_starter_fits_its_schema() {
        let starter: Value = serde_json::from_str(starter::STARTER).unwrap();
        let schema = config_schema();
        covered(&schema, &schema, &starter, "$");
    }

    #[test]
    fn a_line_of_the_log_fits_its_schema() {
        use crate::base::ids::{TaskId, WorkerNo};
        use crate::model::event::{Draft, Event, Process};
        let body = Body::Spawned(Process { pid: 1, start_time: 2, boot_id: String::new() });
        let draft = Draft::attempt(Some(WorkerNo(1)), &TaskId::new("a").unwrap(), 1, body);
        let mut line = Vec::new();
        Event::new(draft, 7, "2026-01-02T03:04:05.678901Z".into()).encode_into(&mut line).unwrap();
        let line: Value = serde_json::from_slice(&line).unwrap();
        let schema = event_schema();
        covered(&schema, &schema, &line, "$");
        assert_eq!(line.as_object().unwrap().len(), schema["properties"].as_object().unwrap().len());
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(root: &Value, v: &Value) {
            match v {
                Value::Object(o) => {
                    if let Some(r) = o.get("$ref").and_then(Value::as_str) {
                        assert!(root.pointer(r.trim_start_matches('#')).is_some(), "{r}");
                    }
                    o.values().for_each(|c| walk(root, c));
                }
                Value::Array(a) => a.iter().for_each(|c| walk(root, c)),
                _ => {}
            }
        }
        for schema in [config_schema(), plan_schema(), event_schema(), crate::model::status_schema::status_schema()] {
            walk(&schema, &schema);
        }
    }
}
