//! The JSON Schema of what `cpw status --json` prints. Objects are open: keys may be added, and none is taken away or means
//! something else while `version` is 1.

use serde_json::{Map, Value, json};

use crate::model::schema::{DRAFT, list, words};

/// The schema of the object of `cpw status --json`.
pub fn status_schema() -> Value {
    let mut root = open(
        vec![
            ("version", json!({"const": 1, "description": "Of this format."})),
            ("project", text("Absolute path of the project.")),
            ("runs", list(reference("run"), "The runs of the project, newest first.")),
            ("leases", reference("leases")),
            ("projects", list(reference("project"), "With --all, instead of `project`, `runs` and `leases`.")),
            ("hook_errors", json!({"anyOf": [{"type": "null"}, reference("hook_errors")]})),
            ("last_hook", reference("hook")),
        ],
        &["version", "hook_errors"],
        "What `cpw status --json` prints: one object on one line. Keys without a value are absent.",
    );
    root["$schema"] = DRAFT.into();
    root["title"] = "cpw status".into();
    root["anyOf"] = json!([{"required": ["project", "runs", "leases"]}, {"required": ["projects"]}]);
    let defs = [
        ("project", project()),
        ("run", run()),
        ("task", task()),
        ("vote", vote()),
        ("signal", signal()),
        ("leases", leases()),
        ("hook", hook()),
        ("hook_errors", hook_errors()),
    ];
    root["$defs"] = Value::Object(defs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
    root
}

fn project() -> Value {
    open(
        vec![
            ("project", text("Absolute path of the project.")),
            ("runs", list(reference("run"), "Its runs, newest first.")),
            ("leases", reference("leases")),
        ],
        &["project", "runs", "leases"],
        "A project in which this user's cpw has made runs.",
    )
}

fn run() -> Value {
    let mut of_all = vec![
        ("run", text("Its id.")),
        ("state", words(&["active", "ok", "failed", "cancelled", "damaged", "unknown"], "Where it stands.")),
        ("reason", text("Why it ended so, what is damaged, or what kept the log from being read.")),
        ("session", text("The session that owns it; absent for a run of a terminal.")),
        ("rule", text("The rule it was made from.")),
        ("cancelling", flag("Somebody asked to cancel it and it has not ended.")),
        ("counts", counts()),
        (
            "signals",
            list(reference("signal"), "What tasks have said that the session was not told yet, or that holds."),
        ),
    ];
    of_all.extend(vec![
        ("folder", text("Absolute path of its folder.")),
        ("continues", text("The run whose done tasks it took over.")),
        ("started", time("When it began.")),
        ("ended", time("When it ended.")),
        ("duration_ms", count("Between the two.")),
        ("percent", count("How far it is, every task counting the same.")),
        ("eta_s", count("Seconds until it may be over.")),
        ("eta_by_history", flag("Earlier runs of the rule tell so.")),
        ("held", held()),
        ("last_hook", reference("hook")),
        ("warnings", warnings()),
        ("max_workers", count("Tasks at the same time, at most.")),
        ("cost_usd", number("What its tasks cost together, as far as they told.")),
        ("quota_left_ms", count("For how long no `claude` task starts, because the quota is used up.")),
        ("workers", list(worker(), "Those that have not left.")),
        ("hired", text("The worker that this call started because all others were dead.")),
        ("error", text("Why none could be started.")),
        ("tasks", list(reference("task"), "In the order of the plan.")),
        ("votes", list(reference("vote"), "In the order of the plan.")),
    ]);
    open(
        of_all,
        &["run", "state"],
        "A run. What stands behind `signals` is there for open runs and for the one that was named.",
    )
}

fn counts() -> Value {
    let keys = ["total", "done", "failed", "skipped", "cancelled", "open"];
    let what = [
        "All of them.",
        "Done.",
        "Failed, timed out or lost.",
        "Skipped.",
        "Cancelled.",
        "Those that can still change.",
    ];
    open(keys.into_iter().zip(what.map(count)).collect(), &keys, "Tasks by outcome.")
}

fn held() -> Value {
    let keys = vec![("stop_ms", count("By Stop.")), ("calls_ms", count("Its calls, before they ran."))];
    open(keys, &["stop_ms", "calls_ms"], "For how long the session was held.")
}

fn warnings() -> Value {
    let warning = open(
        vec![
            ("seq", count("The event.")),
            ("task", text("Who says it.")),
            ("worker", text("In which worker.")),
            ("exit", json!({"type": "integer", "description": "The exit code of the signal."})),
            ("message", text("The task's words.")),
            ("count", count("How often it has said so.")),
        ],
        &["seq", "task", "exit", "count"],
        "A signal to people: neither 0 nor 2.",
    );
    let keys = vec![("count", count("In all.")), ("last", list(warning, "The last of them, oldest first."))];
    open(keys, &["count", "last"], "What tasks have warned of.")
}

fn worker() -> Value {
    let pid = json!({"type": "integer", "description": "Its process."});
    let keys = vec![("worker", text("W1, W2 …")), ("pid", pid), ("alive", flag("Whether it lives."))];
    open(keys, &["worker", "pid", "alive"], "A worker.")
}

fn task() -> Value {
    let states = [
        "waiting",
        "ready",
        "running",
        "stalled",
        "retrying",
        "done",
        "failed",
        "timed_out",
        "cancelled",
        "lost",
        "skipped",
    ];
    let result = open(
        vec![("path", text("Below the run's folder.")), ("bytes", count("Its length.")), ("sha256", text("Its hash."))],
        &["path"],
        "What it has left.",
    );
    let usage = open(
        vec![("turns", count("Turns.")), ("tokens", count("Tokens.")), ("cost_usd", number("US dollars."))],
        &[],
        "What all its attempts have cost together.",
    );
    open(
        vec![
            ("task", text("Its id.")),
            ("title", text("What people call it.")),
            ("state", words(&states, "Where it stands; stalled: running, but its process was stopped.")),
            ("worker", text("Who has it, or had it last.")),
            ("attempts", count("Tries that have begun.")),
            ("needs", list(json!({"type": "string"}), "What it waits for, met or not.")),
            ("waits_for", text("A resource that keeps it from starting, and who holds that.")),
            ("from", text("The run in which it was done, where this one took it over.")),
            ("percent", count("How far it says it is.")),
            ("eta_s", count("Seconds that it still needs.")),
            ("eta_by_history", flag("Earlier runs of the rule tell so.")),
            ("expected_ms", count("How long it usually takes.")),
            ("slow", flag("It takes much longer than usual.")),
            ("note", text("What it says it is at.")),
            ("line", text("Its one line: its summary, or why it failed or was skipped.")),
            ("written", text("The last line that it has written, where it runs and says nothing else.")),
            ("exit", json!({"type": "integer", "description": "Exit code of the last attempt."})),
            ("duration_ms", count("Of the open attempt so far, else of the last one.")),
            ("held_ms", count("For how long calls of the session were held on behalf of it.")),
            ("started", time("Its first start.")),
            ("ended", time("Its outcome.")),
            ("result", result),
            ("usage", usage),
        ],
        &["task", "state", "attempts", "needs"],
        "A task.",
    )
}

fn vote() -> Value {
    let choice = json!({"enum": ["proceed", "abort", null], "description": "What came out; null while it is open."});
    let ballots = words(&["proceed", "abort", "open", "absent"], "What a voter has done.");
    let quorum = json!({"type": ["boolean", "null"], "description": "It holds because too few have voted."});
    open(
        vec![
            ("topic", text("What it is about.")),
            ("verdict", choice),
            ("no_quorum", quorum),
            ("rule", words(&["majority", "unanimous"], "How many must be for it.")),
            ("quorum", count("How many must have voted.")),
            ("proceed", count("For it.")),
            ("abort", count("Against it.")),
            ("open", count("Can still vote.")),
            ("absent", count("Have come to their end without.")),
            ("voters", json!({"type": "object", "additionalProperties": ballots, "description": "By task."})),
        ],
        &["topic", "verdict", "rule", "quorum", "proceed", "abort", "open", "absent", "voters"],
        "A vote.",
    )
}

fn signal() -> Value {
    open(
        vec![
            ("signal", count("Its id.")),
            ("task", text("Who says it.")),
            ("hook", text("To which hook.")),
            ("blocks", flag("It blocks; else it informs.")),
            ("message", json!({"type": ["string", "null"], "description": "What it says."})),
            ("count", count("How many such it stands for.")),
            ("left_ms", json!({"type": ["integer", "null"], "description": "Until it is over by itself."})),
        ],
        &["signal", "task", "hook", "blocks", "count"],
        "Something that a task has said to the session.",
    )
}

fn leases() -> Value {
    let own = json!({"type": "array", "items": {"type": "object"}});
    let mut keys = vec![("held", own.clone()), ("waiting", own)];
    keys.push(("error", text("Why their log cannot be read; nothing else is there then.")));
    open(keys, &[], "Who holds what, and who waits for it, as `cpw lease --list --json` has it.")
}

fn hook() -> Value {
    let keys = vec![
        ("hook", json!({"type": ["string", "null"], "description": "Which, where that is known."})),
        ("ts", time("When.")),
        ("session", text("Of which session.")),
    ];
    open(keys, &["ts"], "The last hook of which there is a trace.")
}

fn hook_errors() -> Value {
    let last = json!({"type": "object", "description": "The last one: `ts`, `hook`, `ms`, `error`, `session`."});
    let keys =
        vec![("count", count("How many, at most 100.")), ("last", last), ("file", text("Where all of them are."))];
    open(keys, &["count", "last", "file"], "What hooks had to swallow in the last day.")
}

/// An object to which keys may be added.
fn open(properties: Vec<(&str, Value)>, required: &[&str], description: &str) -> Value {
    let properties: Map<String, Value> = properties.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    json!({"description": description, "type": "object", "properties": properties, "required": required})
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/$defs/{name}")})
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn time(description: &str) -> Value {
    json!({"type": "string", "format": "date-time", "description": description})
}

fn count(description: &str) -> Value {
    json!({"type": "integer", "minimum": 0, "description": description})
}

fn number(description: &str) -> Value {
    json!({"type": "number", "minimum": 0, "description": description})
}

fn flag(description: &str) -> Value {
    json!({"type": "boolean", "description": description})
}
