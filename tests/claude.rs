//! Headless clients as tasks. The real client runs offline against the stand-in for the model: what it is given, what it
//! may do, and how each of its ends is told apart. What it never does by itself (hang, print something else, do nothing)
//! is done by a script of its name.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use support::api::{Api, Request, Script, Turn, tool_use_id};
use support::client::{Client, LIMIT};
use support::offline::on_each_client;
use support::world::{World, wait_for};

/// The model of all tasks: one whose price the client knows, 20 US dollars or more for a million tokens.
const MODEL: &str = "claude-opus-5-5";

#[cfg(test)]
fn write_plan(world: &World, limits: &Value, tasks: &Value) {
    let plan = json!({"version": 1, "limits": limits, "tasks": tasks});
    world.write("plan.json", &plan.to_string());
}

/// The events of the only run, as far as they are there.
#[cfg(test)]
fn events(world: &World) -> Vec<Value> {
    let runs = std::fs::read_dir(world.project().join(".claude/runs")).into_iter().flatten().flatten();
    let logs = runs.filter_map(|run| std::fs::read_to_string(run.path().join("events.jsonl")).ok());
    // The last line may be half written.
    logs.flat_map(|log| log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<Value>>()).collect()
}

#[cfg(test)]
fn is(event: &Value, kind: &str, task: &str) -> bool {
    event["t"] == kind && event["task"] == task
}

/// The last outcome of a task: kind and payload.
#[cfg(test)]
fn outcome(events: &[Value], task: &str) -> (String, Value) {
    const ENDS: [&str; 6] = ["done", "failed", "timed_out", "cancelled", "lost", "skipped"];
    let found = events.iter().rfind(|e| e["task"] == task && ENDS.iter().any(|t| e["t"] == *t));
    let found = found.unwrap_or_else(|| panic!("{task} has no outcome: {events:#?}"));
    (found["t"].as_str().unwrap_or_default().to_owned(), found["payload"].clone())
}

/// `cpw run plan.json` with the client on its `PATH`.
#[cfg(test)]
fn start(client: &Client<'_>, world: &World) -> Child {
    let mut command = world.cpw(&["run", "plan.json"]);
    client.surround(&mut command);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cpw starts")
}

#[cfg(test)]
fn run(client: &Client<'_>, world: &World) -> Vec<Value> {
    start(client, world).wait().expect("our own child");
    events(world)
}

#[cfg(test)]
fn result_of(world: &World, payload: &Value) -> String {
    let path = payload["result"]["path"].as_str().unwrap_or_else(|| panic!("no result in {payload}"));
    let runs = std::fs::read_dir(world.project().join(".claude/runs")).expect("a run").flatten();
    let texts: Vec<String> = runs.filter_map(|run| std::fs::read_to_string(run.path().join(path)).ok()).collect();
    texts.concat()
}

#[cfg(test)]
fn ask(id: &str, prompt: &str, more: &Value) -> Value {
    let mut claude = json!({"prompt": prompt, "model": MODEL});
    for (key, value) in more.as_object().into_iter().flatten() {
        claude[key] = value.clone();
    }
    json!({"id": id, "claude": claude})
}

/// A request with a text of this many characters in what it shows of the user's words.
#[cfg(test)]
fn shows(request: &Request, words: &str, length: usize) -> bool {
    request.texts_shown().iter().any(|text| text.contains(words) && text.len() >= length)
}

#[test]
fn p26_every_end_of_the_real_client_is_told_apart() {
    on_each_client(|installed| {
        let world = World::new();
        world.write("a.txt", "what is to be read\n");
        let api = Api::start(Script::new());
        let long = format!("LONG-PROMPT {}", "x".repeat(200 * 1024));
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        let tasks = json!([
            ask("dash", "--help DASH-PROMPT", &json!({})),
            ask("long", &long, &json!({})),
            ask("tool", "TOOL-PROMPT", &json!({"tools": ["Read"]})),
            ask("schema", "SCHEMA-PROMPT", &json!({"schema": schema})),
            ask("empty", "EMPTY-PROMPT", &json!({})),
            ask("command", "/help", &json!({})),
            ask("login", "LOGIN-PROMPT", &json!({})),
            ask("busy", "BUSY-PROMPT", &json!({})),
            ask("turns", "TURNS-PROMPT", &json!({"max_turns": 1})),
            ask("budget", "BUDGET-PROMPT", &json!({"max_budget_usd": 0.05})),
        ]);
        write_plan(&world, &json!({"max_workers": 2, "retries": 0}), &tasks);
        let read = json!({"file_path": world.project().join("a.txt")});
        let look = || Turn::tool("Read", read.clone());
        api.beside("DASH-PROMPT", Script::new().then(Turn::text("Dashed.")));
        let is_whole = |request: &Request| {
            assert!(shows(request, "LONG-PROMPT", 200 * 1024), "the prompt is cut");
            Turn::text("Long.")
        };
        api.beside("LONG-PROMPT", Script::new().ask(is_whole));
        let tool = Script::new().then(look()).ask(|request: &Request| {
            assert!(request.tool_result(&tool_use_id(0, 0)).is_some_and(|text| text.contains("what is to be read")));
            Turn::text("It was read.")
        });
        api.beside("TOOL-PROMPT", tool);
        let structured = Turn::tool("StructuredOutput", json!({"n": 7}));
        api.beside("SCHEMA-PROMPT", Script::new().then(structured).then(Turn::text("Seven.")));
        let nothing = || Turn::text(" ");
        api.beside("EMPTY-PROMPT", Script::new().then(nothing()).then(nothing()).then(nothing()));
        let refused = || Turn::refused("401 Unauthorized", "authentication_error");
        api.beside("LOGIN-PROMPT", (0..12).fold(Script::new(), |script, _| script.then(refused())));
        let overloaded = || Turn::refused("529 Overloaded", "overloaded_error");
        api.beside("BUSY-PROMPT", (0..12).fold(Script::new(), |script, _| script.then(overloaded())));
        api.beside("TURNS-PROMPT", Script::new().then(look()).then(look()));
        api.beside("BUDGET-PROMPT", Script::new().then(look().costing(100_000)).then(Turn::text("Rich.")));

        let events = run(&Client::new(installed, &world, &api), &world);
        let done = |task: &str, text: &str| {
            let (kind, payload) = outcome(&events, task);
            assert_eq!(kind, "done", "{task}: {payload}");
            assert_eq!(result_of(&world, &payload), text, "{task}");
            payload
        };
        done("dash", "Dashed.");
        done("long", "Long.");
        let tool = done("tool", "It was read.");
        assert_eq!(tool["usage"]["turns"], 2, "{tool}");
        let cost = tool["usage"]["cost_usd"].as_f64().unwrap_or(0.0);
        assert!(cost > 0.0 && tool["usage"]["tokens"].as_u64() >= Some(40), "{tool}");
        let schema = done("schema", r#"{"n":7}"#);
        assert!(schema["result"]["path"].as_str().is_some_and(|path| path.ends_with("result.json")), "{schema}");
        for (task, words) in [
            ("empty", "its answer is empty"),
            ("command", "it did nothing"),
            ("login", "not logged in, or the login was refused"),
            ("busy", "the provider is overloaded"),
            ("turns", "it has taken all its turns"),
            ("budget", "what it may spend is spent"),
        ] {
            let (kind, payload) = outcome(&events, task);
            let reason = payload["reason"].as_str().unwrap_or_default();
            assert!(kind == "failed" && reason.starts_with(words), "{task}: {kind} {payload}");
            assert!(payload.get("result").is_none(), "{task} has a result: {payload}");
            assert!(payload.get("quota_until").is_none(), "{task}: {payload}");
        }
        let spent = outcome(&events, "budget").1["usage"]["cost_usd"].as_f64().unwrap_or(0.0);
        assert!(spent > 2.0, "a failed attempt costs, too: {spent}");
        // Arguments are seen by everybody on the machine, and the transcript by whoever looks for sessions.
        let prompts = format!("{}/.claude/projects", world.home().display());
        let transcripts = std::fs::read_dir(prompts).into_iter().flatten().flatten();
        let files: usize = transcripts
            .map(|d| {
                std::fs::read_dir(d.path())
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter(|f| f.path().extension().is_some_and(|e| e == "jsonl"))
                    .count()
            })
            .sum();
        assert_eq!(files, 0, "the client has kept its sessions");
    });
}

#[cfg(test)]
fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is behind 1970").as_secs()
}

/// A refusal for want of quota.
#[cfg(test)]
fn dry() -> Turn {
    Turn::refused("429 Too Many Requests", "rate_limit_error")
}

#[test]
fn p26_without_quota_clients_wait_and_other_tasks_do_not() {
    on_each_client(|installed| {
        if installed.version == "2.1.197" {
            // What is asked here is asked of cpw, and the other client says the same.
            return;
        }
        let world = World::new();
        let api = Api::start(Script::new());
        let other = json!({"id": "other", "shell": "echo goes on", "needs": ["first"]});
        let mut first = ask("first", "FIRST-PROMPT", &json!({}));
        first["allow_failure"] = true.into();
        let tasks = json!([
            first,
            ask("second", "SECOND-PROMPT", &json!({})),
            {"id": "beside", "shell": format!("until [ -e {}/go ]; do sleep 0.05; done", world.home().display())},
            other,
        ]);
        write_plan(&world, &json!({"max_workers": 2, "max_claude": 1}), &tasks);
        api.beside("FIRST-PROMPT", (0..9).fold(Script::new(), |script, _| script.then(dry())));
        api.beside("SECOND-PROMPT", Script::new().then(Turn::text("Too early.")));
        let client = Client::new(installed, &world, &api);
        let mut running = start(&client, &world);
        let refused = wait_for(LIMIT, || events(&world).into_iter().find(|e| is(e, "failed", "first")));
        let refused = refused.expect("the first one is refused")["payload"].clone();
        assert_eq!(refused["will_retry"], true, "without any retries: {refused}");
        assert_eq!(refused["retry_at"], refused["quota_until"], "{refused}");
        assert!(refused["reason"].as_str().is_some_and(|r| r.starts_with("the quota is used up")), "{refused}");
        let status = world.cpw(&["status"]).output().expect("cpw runs");
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.contains("claude tasks wait for the quota until "), "{status}");
        std::fs::write(world.home().join("go"), "").expect("a file in the home");
        wait_for(LIMIT, || events(&world).iter().any(|e| is(e, "done", "beside")).then_some(())).expect("it goes on");
        assert!(!events(&world).iter().any(|e| is(e, "started", "second")), "{:#?}", events(&world));
        assert!(world.cpw(&["cancel"]).output().expect("cpw runs").status.success());
        running.wait().expect("our own child");
        assert!(api.requests_beside("SECOND-PROMPT").is_empty());
    });
}

#[test]
fn p26_a_quota_is_waited_for_as_long_as_the_provider_says() {
    on_each_client(|installed| {
        let world = World::new();
        let api = Api::start(Script::new());
        write_plan(&world, &json!({"max_workers": 1}), &json!([ask("a", "THE-PROMPT", &json!({}))]));
        let script = Script::new().ask(|_: &Request| {
            dry()
                .header("anthropic-ratelimit-unified-status", "rejected")
                .header("anthropic-ratelimit-unified-reset", (unix_s() + 4).to_string())
                .header("anthropic-ratelimit-unified-representative-claim", "five_hour")
        });
        api.beside("THE-PROMPT", script.then(Turn::text("In the end.")));
        // Only a subscription has limits that the client knows the end of.
        let client = Client::new(installed, &world, &api).env("ANTHROPIC_API_KEY", "");
        let client = client.env("CLAUDE_CODE_OAUTH_TOKEN", "sk-ant-oat01-made-up-for-an-offline-test");
        let events = run(&client, &world);
        let failed = events.iter().find(|e| is(e, "failed", "a")).unwrap_or_else(|| panic!("{events:#?}"));
        let began = events.iter().find(|e| is(e, "started", "a")).expect("it began")["payload"]["mono_ms"].as_u64();
        let pause = failed["payload"]["quota_until"].as_u64().zip(began).map(|(until, began)| until - began);
        // Without that word it would be 30 seconds after the refusal.
        assert!(pause.is_some_and(|ms| ms < 30_000), "{failed}");
        assert_eq!(outcome(&events, "a").0, "done", "{events:#?}");
    });
}

#[test]
fn the_budget_of_a_run_holds_for_clients_that_run_together() {
    on_each_client(|installed| {
        const BUDGET: f64 = 0.6;
        /// Tokens of an answer, and what they cost at most, 25 US dollars a million.
        const TOKENS: u64 = 2000;
        const ANSWER: f64 = 0.051;
        let world = World::new();
        world.write("a.txt", "x\n");
        let api = Api::start(Script::new());
        let spenders = (0..4).map(|i| ask(&format!("s{i}"), &format!("SPENDER-{i}"), &json!({"tools": ["Read"]})));
        let mut tasks: Vec<Value> = spenders.collect();
        tasks.push(json!({"id": "free", "shell": "echo free", "needs": ["s0"]}));
        tasks[0]["allow_failure"] = true.into();
        write_plan(&world, &json!({"max_workers": 3, "max_budget_usd": BUDGET}), &tasks.into());
        let read = json!({"file_path": world.project().join("a.txt")});
        for i in 0..4 {
            let spend = |script: Script, _| script.then(Turn::tool("Read", read.clone()).costing(TOKENS));
            api.beside(&format!("SPENDER-{i}"), (0..40).fold(Script::new(), spend));
        }
        let events = run(&Client::new(installed, &world, &api), &world);
        let given: Vec<f64> = events.iter().filter_map(|e| e["payload"]["budget_usd"].as_f64()).collect();
        assert!(given.len() >= 3 && (given[..3].iter().sum::<f64>() - BUDGET).abs() < 0.01, "{given:?}");
        let spent: f64 = events.iter().filter_map(|e| e["payload"]["usage"]["cost_usd"].as_f64()).sum();
        let started = f64::from(u32::try_from(given.len()).expect("a few"));
        assert!(spent > BUDGET / 2.0 && spent <= BUDGET + started * ANSWER, "{spent} by {started}: {events:#?}");
        println!("budget {BUDGET}, spent {spent:.3} by {started} clients of {}", installed.version);
        assert_eq!(outcome(&events, "free").0, "done");
        let end = events.iter().find(|e| e["t"] == "run_ended").expect("the run ends");
        assert_eq!(end["payload"]["status"], "failed", "{end}");
    });
}

/// The environment of the client that runs as a task of this world.
#[cfg(test)]
fn environment_of_client(world: &World) -> BTreeMap<String, String> {
    let worker = |(pid, line): (nix::unistd::Pid, String)| line.contains("--no-session-persistence").then_some(pid);
    let pid = wait_for(LIMIT, || world.processes().into_iter().find_map(worker)).expect("a client runs");
    let block = std::fs::read(format!("/proc/{pid}/environ")).expect("our own process");
    let text = String::from_utf8_lossy(&block).into_owned();
    text.split('\0').filter_map(|entry| entry.split_once('=')).map(|(n, v)| (n.into(), v.into())).collect()
}

#[test]
fn a_client_gets_neither_the_sessions_secrets_nor_what_the_project_allows_itself() {
    on_each_client(|installed| {
        let world = Arc::new(World::new());
        world.write("CLAUDE.md", "THE-PROJECTS-OWN-ADVICE\n");
        world.write(".env", "SECRET-OF-THE-PROJECT\n");
        let rule = json!({"name": "go", "when": {"prompt": "go"}, "tasks": [ask("a", "INNER-PROMPT", &json!({"tools": ["Read"]}))]});
        world.write(".claude/cpw.json", &json!({"version": 1, "rules": [rule]}).to_string());
        assert!(world.cpw(&["allow", "--yes"]).output().expect("cpw runs").status.success());
        let touch = format!("touch {}", world.home().join("server-ran").display());
        let server = json!({"mcpServers": {"x": {"command": "sh", "args": ["-c", touch]}}});
        world.write(".mcp.json", &server.to_string());
        // Nobody has approved these: only what they forbid counts.
        let hook = json!([{"hooks": [{"type": "command", "command": format!("touch {}", world.home().join("hook-ran").display())}]}]);
        world.settings(&json!({
            "enableAllProjectMcpServers": true,
            "permissions": {"allow": ["Write", "Bash(*)"], "deny": ["Read(./.env)"], "defaultMode": "bypassPermissions"},
            "hooks": {"SessionStart": hook, "PreToolUse": hook},
        }));
        let api = Api::start(Script::new());
        let (write, secret) = (world.project().join("written"), world.project().join(".env"));
        let there = Arc::clone(&world);
        let script = Script::new()
            .ask(move |request: &Request| {
                assert!(request.count("THE-PROJECTS-OWN-ADVICE") > 0, "CLAUDE.md was not read");
                let env = environment_of_client(&there);
                let secrets = [
                    "CLAUDE_CODE_SESSION_ID",
                    "CLAUDE_CODE_MESSAGING_TOKEN",
                    "CLAUDE_CODE_MESSAGING_SOCKET",
                    "CLAUDE_CODE_SESSION_ACCESS_TOKEN",
                    "CLAUDE_CODE_SSE_PORT",
                    "CLAUDE_PID",
                    "CLAUDECODE",
                    "AI_AGENT",
                ];
                for name in secrets {
                    assert!(!env.contains_key(name), "{name} reached the task");
                }
                assert!(env.values().all(|value| !value.contains("of-the-session")), "{env:?}");
                assert_eq!(env.get("CPW_TASK").map(String::as_str), Some("a"));
                assert!(env.contains_key("ANTHROPIC_API_KEY"), "it has lost its login");
                Turn::tool("Write", json!({"file_path": write, "content": "x"}))
            })
            .ask(move |request: &Request| {
                assert_eq!(request.tool_failed(&tool_use_id(0, 0)), Some(true), "{:?}", request.news());
                Turn::tool("Read", json!({"file_path": secret}))
            })
            .ask(|request: &Request| {
                assert_eq!(request.tool_failed(&tool_use_id(1, 0)), Some(true), "{:?}", request.news());
                assert_eq!(request.count("SECRET-OF-THE-PROJECT"), 0);
                Turn::text("Held.")
            });
        api.beside("INNER-PROMPT", script);
        let session = "0d7c21db-c86a-4ce8-8596-eab74720765d";
        let payload = json!({"session_id": session, "cwd": world.project(), "prompt_id": "p1",
            "hook_event_name": "UserPromptSubmit", "prompt": "go"});
        let file = world.write("payload.json", &payload.to_string());
        let mut hook = world.cpw(&["user-prompt-submit"]);
        Client::new(installed, &world, &api).surround(&mut hook);
        // The user's own servers are not started either: nobody has approved them for this.
        let own = world.home().join(".claude.json");
        let text = std::fs::read_to_string(&own).expect("the client's settings");
        let mut own_settings: Value = serde_json::from_str(&text).expect("they are JSON");
        own_settings["mcpServers"] = server["mcpServers"].clone();
        std::fs::write(&own, own_settings.to_string()).expect("they are written");
        hook.env("CLAUDECODE", "1").env("AI_AGENT", "claude-code").env("CLAUDE_CODE_SESSION_ID", session);
        for name in [
            "CLAUDE_CODE_MESSAGING_TOKEN",
            "CLAUDE_CODE_MESSAGING_SOCKET",
            "CLAUDE_CODE_SESSION_ACCESS_TOKEN",
            "CLAUDE_CODE_SSE_PORT",
            "CLAUDE_PID",
        ] {
            hook.env(name, format!("{name}-of-the-session"));
        }
        let out = hook.stdin(std::fs::File::open(&file).expect("the payload")).output().expect("cpw runs");
        assert!(String::from_utf8_lossy(&out.stdout).contains("started"), "{out:?}");
        let ended = |e: &Value| e["t"] == "run_ended";
        wait_for(LIMIT, || events(&world).iter().any(ended).then_some(())).expect("the run ends");
        let (kind, payload) = outcome(&events(&world), "a");
        assert_eq!((kind.as_str(), result_of(&world, &payload).as_str()), ("done", "Held."), "{payload}");
        for trace in ["server-ran", "hook-ran"] {
            assert!(!world.home().join(trace).exists(), "{trace}");
        }
        assert!(!world.project().join("written").exists());
    });
}

#[test]
fn an_isolated_client_works_in_its_worktree_and_not_on_the_users_files() {
    on_each_client(|installed| {
        let world = Arc::new(World::new());
        world.write("a.txt", "a\n");
        let git = |args: &[&str]| {
            let mut command = world.command("/usr/bin/env");
            command.arg("git").args(["-c", "user.name=t", "-c", "user.email=t@localhost"]).args(args);
            assert!(command.output().expect("git runs").status.success(), "git {args:?}");
        };
        git(&["init", "-q"]);
        git(&["add", "a.txt"]);
        git(&["commit", "-q", "-m", "one"]);
        let mut task = ask("a", "INNER-PROMPT", &json!({"permission_mode": "acceptEdits"}));
        task["isolate"] = "worktree".into();
        write_plan(&world, &json!({}), &json!([task]));
        let api = Api::start(Script::new());
        let there = Arc::clone(&world);
        let outside = world.project().join("outside.txt");
        let script = Script::new()
            .ask(move |_: &Request| {
                let trees = std::fs::read_dir(there.project().join(".claude/worktrees")).expect("worktrees").flatten();
                let tree = trees.map(|t| t.path()).find(|t| t.is_dir()).expect("its worktree");
                Turn::tool("Write", json!({"file_path": tree.join("made.txt"), "content": "made\n"}))
            })
            .ask(move |request: &Request| {
                assert_ne!(request.tool_failed(&tool_use_id(0, 0)), Some(true), "{:?}", request.news());
                Turn::tool("Write", json!({"file_path": outside, "content": "x"}))
            })
            .ask(|request: &Request| {
                assert_eq!(request.tool_failed(&tool_use_id(1, 0)), Some(true), "{:?}", request.news());
                Turn::text("Made.")
            });
        api.beside("INNER-PROMPT", script);
        let happened = run(&Client::new(installed, &world, &api), &world);
        let (kind, payload) = outcome(&happened, "a");
        assert_eq!(kind, "done", "{payload}");
        assert!(!world.project().join("outside.txt").exists() && !world.project().join("made.txt").exists());
        let applied = world.cpw(&["result", "a", "--apply"]).output().expect("cpw runs");
        assert!(applied.status.success(), "{applied:?}");
        assert_eq!(std::fs::read_to_string(world.project().join("made.txt")).expect("its change"), "made\n");
    });
}

#[test]
fn a_client_that_is_cancelled_says_what_it_has_spent() {
    on_each_client(|installed| {
        let world = World::new();
        world.write("a.txt", "x\n");
        let api = Api::start(Script::new());
        write_plan(&world, &json!({"max_workers": 1}), &json!([ask("a", "THE-PROMPT", &json!({"tools": ["Read"]}))]));
        let read = json!({"file_path": world.project().join("a.txt")});
        let slow = Turn::text("Never heard.").after(Duration::from_mins(5));
        api.beside("THE-PROMPT", Script::new().then(Turn::tool("Read", read).costing(1000)).then(slow));
        let mut running = start(&Client::new(installed, &world, &api), &world);
        wait_for(LIMIT, || (api.requests_beside("THE-PROMPT").len() == 2).then_some(())).expect("it asks twice");
        assert!(world.cpw(&["cancel"]).output().expect("cpw runs").status.success());
        running.wait().expect("our own child");
        let (kind, payload) = outcome(&events(&world), "a");
        assert_eq!(kind, "cancelled", "{payload}");
        // The older client leaves without a word; what its messages have shown is known all the same.
        let priced = payload["usage"]["cost_usd"].as_f64().is_some_and(|usd| usd > 0.01);
        assert!(priced || installed.version == "2.1.197", "{payload}");
        assert_eq!(payload["usage"]["turns"], 1, "{payload}");
    });
}

/// A run of tasks whose client is this script.
#[cfg(test)]
fn run_with_fake(world: &World, script: &str, path: &Path) -> Vec<Value> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(path).expect("a folder for the script");
    let file = path.join("claude");
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).expect("the script is written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("it becomes executable");
    let mut command: Command = world.cpw(&["run", "plan.json"]);
    let old = world.environment().into_iter().find(|(name, _)| *name == "PATH").expect("PATH is set").1;
    let mut longer = path.as_os_str().to_owned();
    longer.push(":");
    longer.push(old);
    command.env("PATH", longer).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().expect("cpw runs");
    events(world)
}

#[test]
fn p25_a_client_that_hangs_and_ignores_signals_is_ended_with_all_it_started() {
    let world = World::new();
    let mut task = ask("a", "p", &json!({}));
    task["timeout"] = "1s".into();
    write_plan(&world, &json!({}), &json!([task]));
    let script = "trap '' INT TERM\ncat >/dev/null\nsleep 600 & while :; do sleep 1; done";
    let events = run_with_fake(&world, script, &world.path("fake"));
    let (kind, payload) = outcome(&events, "a");
    assert_eq!((kind.as_str(), &payload["reason"]), ("timed_out", &json!("its time limit was over")));
    assert_eq!(payload["signal"], 9, "{payload}");
    // That nothing is left, the end of the world asks.
}

#[test]
fn p26_a_client_that_says_nothing_of_use_has_not_succeeded() {
    const ANSWER: &str = r#"{"type":"result","subtype":"success","is_error":false,"result":"%s","num_turns":1,"terminal_reason":"completed"}"#;
    let world = World::new();
    let names = ["nothing", "garbage", "half", "killed", "exits", "unasked", "files"];
    let tasks: Vec<Value> = names.iter().map(|name| ask(name, name, &json!({}))).collect();
    write_plan(&world, &json!({"max_workers": 1}), &tasks.into());
    let script = format!(
        r#"case $CPW_TASK in
        nothing) ;;
        garbage) echo 'Hello, I am another program'; head -c 100000 /dev/urandom ;;
        half) echo '{{"type":"system","subtype":"init"}}'; printf '{{"type":"result","is_err' ;;
        killed) kill -9 $$ ;;
        exits) echo 'unknown option --strict-mcp-config' >&2; exit 3 ;;
        unasked) printf '{ANSWER}' "$(cat)" ;;
        files) echo found >"$CPW_OUT/result.txt"; printf '{ANSWER}' '' ;;
        esac"#
    );
    let events = run_with_fake(&world, &script, &world.path("fake"));
    for (task, words) in [
        ("nothing", "the client ended without doing anything"),
        ("garbage", "what the client printed is not what Claude Code prints; is `claude` on PATH another program?"),
        ("half", "the client ended without a result"),
        ("killed", "the client was killed by signal 9"),
        ("exits", "the client failed: exit 3: unknown option --strict-mcp-config"),
    ] {
        let (kind, payload) = outcome(&events, task);
        assert_eq!((kind.as_str(), payload["reason"].as_str()), ("failed", Some(words)), "{task}: {payload}");
    }
    let (kind, payload) = outcome(&events, "unasked");
    assert_eq!((kind.as_str(), result_of(&world, &payload).as_str()), ("done", "unasked"), "the prompt is its stdin");
    let (kind, payload) = outcome(&events, "files");
    assert_eq!((kind.as_str(), result_of(&world, &payload).as_str()), ("done", "found\n"), "a file is an answer");
}

#[test]
fn p26_a_client_that_is_missing_is_said_to_be_and_not_looked_for_again() {
    let world = World::new();
    let mut task = ask("a", "p", &json!({}));
    task["retries"] = 3.into();
    write_plan(&world, &json!({}), &json!([task]));
    let mut command = world.cpw(&["run", "plan.json"]);
    let empty = world.path("empty");
    std::fs::create_dir(&empty).expect("an empty folder");
    command.env("PATH", &empty).stdout(Stdio::null()).stderr(Stdio::null()).status().expect("cpw runs");
    let events = events(&world);
    let (kind, payload) = outcome(&events, "a");
    let reason = payload["reason"].as_str().unwrap_or_default();
    assert!(kind == "failed" && reason.starts_with("Claude Code is not to be found: claude: "), "{payload}");
    assert_eq!(events.iter().filter(|e| is(e, "started", "a")).count(), 1);
}

#[test]
fn a_prompt_is_kept_from_others() {
    use std::os::unix::fs::MetadataExt as _;
    let world = World::new();
    write_plan(&world, &json!({}), &json!([ask("a", "a word of the user's", &json!({}))]));
    let script = r#"tr '\0' ' ' </proc/$$/cmdline >"$CPW_OUT/result.txt"
        printf '{"type":"result","is_error":false,"subtype":"success","result":"","num_turns":1,"terminal_reason":"completed"}'"#;
    let events = run_with_fake(&world, script, &world.path("fake"));
    let (kind, payload) = outcome(&events, "a");
    assert_eq!(kind, "done", "{payload}");
    assert!(!result_of(&world, &payload).contains("word of the user"));
    let runs = std::fs::read_dir(world.project().join(".claude/runs")).expect("a run").flatten();
    let files: Vec<u32> = runs
        .filter_map(|run| std::fs::metadata(run.path().join("workers/W1/logs/a.1.prompt")).ok())
        .map(|meta| meta.mode() & 0o777)
        .collect();
    assert_eq!(files, [0o600]);
}
