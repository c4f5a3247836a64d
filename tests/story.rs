//! The story that cpw exists for, with the real client: a prompt becomes three workers and a fourth task, a read of a claimed
//! file is held until its worker is done, news comes after each step and once, the report gets the results put into it,
//! Stop waits at no cost, and the last answer is intact. What counts is what the model was shown.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/hold.rs"]
mod hold;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use support::api::{Api, Request, Script, Turn, tool_use_id};
use support::client::{Client, LIMIT};
use support::offline::on_each_client;
use support::world::{World, wait_for};

const PROMPT: &str = "Analyze api.py, db.py and ui.py and write report.md";

/// A task that says what it is about and waits for the file `go-ID` in the state of the test.
#[cfg(test)]
const TASK: &str = r#"echo "Findings about $CPW_ITEM"; until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done; echo "end of $CPW_TASK""#;

/// The same without an item, so that it is made once and not per file.
#[cfg(test)]
const WAIT: &str = r#"until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done; echo "the end""#;

#[cfg(test)]
fn config() -> Value {
    json!({
        "version": 1,
        "rules": [
            {
                "name": "analyze",
                "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
                "for_each": "files",
                "tasks": [
                    {"id": "analyze-{{item.stem}}", "shell": TASK, "claims": ["{{item}}"]},
                    {"id": "bench", "shell": WAIT},
                ],
                "merge": [{
                    "tool": "Write",
                    "match": {"file_path": "*report.md"},
                    "needs": ["analyze-*"],
                    "set": {"content": "{{input.content}}\n{{results}}"},
                }],
            },
            {
                "name": "lint",
                "when": {"prompt": "(?i)\\blint\\b", "files": {"min": 1}},
                "for_each": "files",
                "tasks": [{"id": "lint-{{item.stem}}", "shell": "until [ -e \"$HOME/go-$CPW_TASK\" ]; do sleep 0.02; done; echo lint-of-$CPW_ITEM"}],
            },
        ],
    })
}

/// The project of the story.
#[cfg(test)]
fn project() -> Arc<World> {
    Arc::new(project_with(&config()))
}

/// A project with three files, cpw wired in and the rules of `config` approved.
#[cfg(test)]
fn project_with(config: &Value) -> World {
    let world = World::new();
    for name in ["api", "db", "ui"] {
        world.write(&format!("{name}.py"), &format!("# the {name} module\n"));
    }
    world.write(".claude/cpw.json", &config.to_string());
    for command in [&["init"][..], &["allow", "--yes"]] {
        let out = world.cpw(command).output().expect("cpw runs");
        assert!(out.status.success(), "cpw {command:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    world
}

#[cfg(test)]
fn events(world: &World) -> Vec<Value> {
    let runs = world.project().join(".claude/runs");
    let mut all = Vec::new();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(runs).into_iter().flatten().flatten().map(|e| e.path()).collect();
    folders.sort();
    for folder in folders {
        let log = std::fs::read_to_string(folder.join("events.jsonl")).unwrap_or_default();
        all.extend(log.lines().map(|l| serde_json::from_str::<Value>(l).expect("an event")));
    }
    all
}

/// Lets a task end, and waits until the log says so.
#[cfg(test)]
fn finish(world: &World, task: &str) {
    let go = world.home().join(format!("go-{task}"));
    std::fs::write(go, "").expect("a file in the home");
    let is_done = |e: &Value| e["t"] == "done" && e["task"] == task;
    wait_for(LIMIT, || events(world).iter().any(is_done).then_some(()))
        .unwrap_or_else(|| panic!("{task} does not end"));
}

/// Lets a task end once a hook holds.
#[cfg(test)]
fn finish_once_held(world: &Arc<World>, task: &'static str) {
    let world = Arc::clone(world);
    std::thread::spawn(move || {
        if wait_for(LIMIT, || crate::hold::is_held(&world.project()).then_some(())).is_some() {
            finish(&world, task);
        }
    });
}

/// The story's turns; each looks at what the model was shown before it goes on.
#[cfg(test)]
fn story(world: &Arc<World>) -> Script {
    let read_api = json!({"file_path": world.project().join("api.py")});
    let read_db = json!({"file_path": world.project().join("db.py")});
    let write = json!({"file_path": world.project().join("report.md"), "content": "# Report\n"});
    let (w1, w2, w3, w4) = (Arc::clone(world), Arc::clone(world), Arc::clone(world), Arc::clone(world));
    Script::new()
        .ask(move |request: &Request| {
            assert_eq!(request.count("cpw has started 4 tasks beside this conversation"), 1);
            finish_once_held(&w1, "analyze-api");
            Turn::tool("Read", read_api.clone())
        })
        .ask(move |request: &Request| {
            let read = request.tool_result(&tool_use_id(0, 0)).expect("the read came back");
            assert!(read.contains("the api module"), "{read}");
            assert_eq!(request.count("Task analyze-api has worked on this file: done"), 1);
            assert_eq!(request.count("done: api.py: \"Findings about api.py\""), 1, "{:?}", request.news());
            finish(&w2, "analyze-db");
            Turn::tool("Read", read_db.clone())
        })
        .ask(move |request: &Request| {
            assert_eq!(request.count("done: db.py"), 1, "{:?}", request.news());
            assert_eq!(request.count("done: api.py"), 1, "told again: {:?}", request.news());
            finish_once_held(&w3, "analyze-ui");
            Turn::tool("Write", write.clone())
        })
        .ask(move |request: &Request| {
            assert_eq!(request.tool_failed(&tool_use_id(2, 0)), Some(false), "{:?}", request.news());
            assert_eq!(request.count("done: ui.py"), 1, "{:?}", request.news());
            finish_once_held(&w4, "bench");
            Turn::text("The report is written.")
        })
        .ask(move |request: &Request| {
            assert_eq!(request.count("done: bench"), 1, "{:?}", request.news());
            assert_eq!(request.count("All workers of rule analyze are finished: 4 done."), 1, "{:?}", request.news());
            assert_eq!(request.count("done: api.py"), 1);
            Turn::text("Everything is finished.")
        })
}

#[cfg(test)]
fn check_report_and_log(world: &World) {
    let report = world.read("report.md").expect("the report is there");
    assert!(report.starts_with("# Report\n"), "{report}");
    for name in ["api", "db", "ui"] {
        assert_eq!(report.matches(&format!("Findings about {name}.py")).count(), 1, "{report}");
        assert_eq!(report.matches(&format!("end of analyze-{name}")).count(), 1, "{report}");
    }
    let events = events(world);
    let told: Vec<u64> = events
        .iter()
        .filter(|e| e["t"] == "delivered")
        .flat_map(|e| e["payload"]["news"].as_array().cloned().unwrap_or_default())
        .filter_map(|n| n.as_u64())
        .collect();
    let mut once = told.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(told.len(), once.len(), "something was delivered twice: {told:?}");
    assert_eq!(told.len(), 5, "four tasks and the end of the run");
    let reason = |r: &str| events.iter().filter(|e| e["payload"]["reason"] == r).count();
    assert_eq!(reason("it ran as rewritten"), 1);
    assert_eq!(events.iter().filter(|e| e["t"] == "run_ended" && e["payload"]["status"] == "ok").count(), 1);
    // A loaded machine may make a hook slow, which is noted and no mistake.
    let swallowed = std::fs::read_to_string(world.state().join("hooks.jsonl")).unwrap_or_default();
    assert!(swallowed.lines().all(|l| l.contains("slow: ")), "{swallowed}");
}

#[test]
fn the_story_in_print_mode() {
    on_each_client(|installed| {
        let world = project();
        let api = Api::start(story(&world));
        let printed = Client::new(installed, &world, &api).print(PROMPT);
        assert_eq!(printed.text(), "Everything is finished.");
        assert_eq!(api.requests().len(), 5);
        check_report_and_log(&world);
    });
}

#[test]
fn the_story_in_a_terminal() {
    on_each_client(|installed| {
        let world = project();
        let api = Api::start(story(&world));
        let mut terminal = Client::new(installed, &world, &api).open();
        terminal.submit(PROMPT, LIMIT);
        terminal.wait_for_text("Everything is finished.", LIMIT);
        assert_eq!(api.requests().len(), 5);
        check_report_and_log(&world);
    });
}

#[test]
fn stop_costs_no_request_while_it_holds() {
    on_each_client(|installed| {
        let world = project();
        let api = Api::start(Script::new().then(Turn::text("Waiting for nothing.")).ask(|request: &Request| {
            assert_eq!(request.count("done: bench"), 1, "{:?}", request.news());
            assert_eq!(request.count("All workers of rule analyze are finished: 4 done."), 1);
            Turn::text("All in.")
        }));
        let running = Client::new(installed, &world, &api).start_print(PROMPT);
        api.wait_for_requests(1, LIMIT);
        // Held: a bell hangs, three tasks come in one after the other, and the model hears nothing.
        for task in ["analyze-api", "analyze-db", "analyze-ui"] {
            finish(&world, task);
        }
        assert_eq!(api.requests().len(), 1);
        finish(&world, "bench");
        let printed = running.wait(LIMIT);
        assert_eq!(printed.text(), "All in.");
        assert_eq!(api.requests().len(), 2);
    });
}

#[test]
fn a_prompt_that_matches_nothing_sees_nothing() {
    on_each_client(|installed| {
        let world = project();
        let file = world.project().join("api.py");
        let api = Api::start(
            Script::new().then(Turn::tool("Read", json!({"file_path": file}))).then(Turn::text("Just a file.")),
        );
        let printed = Client::new(installed, &world, &api).print("What does analyze do with api.py and db.py?");
        assert_eq!(printed.text(), "Just a file.");
        assert!(api.requests().iter().all(|r| r.count("hook additional context") == 0), "the model heard of cpw");
        assert!(!world.project().join(".claude/runs").exists());
        assert!(!world.state().join("sessions").exists());
    });
}

#[test]
fn a_second_prompt_starts_a_second_run() {
    on_each_client(|installed| {
        let world = project();
        let (first, second) = (Arc::clone(&world), Arc::clone(&world));
        let api = Api::start(
            Script::new()
                // Not before the prompt was answered, which would bring their news along.
                .ask(move |_: &Request| {
                    for task in ["analyze-api", "analyze-db", "analyze-ui", "bench"] {
                        finish(&first, task);
                    }
                    Turn::text("First.")
                })
                .then(Turn::text("First, with results."))
                .ask(move |request: &Request| {
                    assert_eq!(request.count("cpw has started 1 task beside this conversation: api.py"), 1);
                    finish(&second, "lint-api");
                    Turn::text("Second.")
                })
                .ask(|request: &Request| {
                    assert_eq!(request.count("lint-of-api.py"), 1, "{:?}", request.news());
                    Turn::text("Second, with results.")
                }),
        );
        let mut terminal = Client::new(installed, &world, &api).open();
        terminal.submit("Analyze api.py, db.py and ui.py", LIMIT);
        terminal.wait_for_text("First, with results.", LIMIT);
        terminal.submit("Please lint api.py now", LIMIT);
        terminal.wait_for_text("Second, with results.", LIMIT);
        assert_eq!(events(&world).iter().filter(|e| e["t"] == "run_started").count(), 2);
    });
}

#[test]
fn workers_finish_when_the_client_is_killed() {
    on_each_client(|installed| {
        let world = project();
        let api = Api::start(Script::new().then(Turn::text("Never mind.")));
        let mut running = Client::new(installed, &world, &api).start_print(PROMPT);
        api.wait_for_requests(1, LIMIT);
        running.process().signal(nix::sys::signal::Signal::SIGKILL);
        for task in ["analyze-api", "analyze-db", "analyze-ui", "bench"] {
            finish(&world, task);
        }
        let ended = |e: &Value| e["t"] == "run_ended" && e["payload"]["status"] == "ok";
        wait_for(LIMIT, || events(&world).iter().any(ended).then_some(())).expect("the run ends");
        let status = world.cpw(&["status"]).output().expect("cpw runs");
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.contains("analyze") && status.contains("4 done"), "{status}");
        drop(running.wait(Duration::from_secs(5)));
    });
}

#[test]
fn below_a_worker_hooks_do_nothing() {
    let world = project();
    let payload = json!({
        "session_id": "0d7c21db-c86a-4ce8-8596-eab74720765d",
        "cwd": world.project(),
        "hook_event_name": "UserPromptSubmit",
        "prompt": PROMPT,
    });
    let file = world.write("payload.json", &payload.to_string());
    for (name, value) in [("CPW_DEPTH", "1"), ("CPW_DISABLE", "1")] {
        let stdin = std::fs::File::open(&file).expect("the payload");
        let out = world.cpw(&["user-prompt-submit"]).env(name, value).stdin(stdin).output().expect("cpw runs");
        assert!(out.status.success() && out.stdout.is_empty(), "{name}: {out:?}");
    }
    assert!(!world.project().join(".claude/runs").exists());
}

#[test]
fn a_headless_client_is_a_worker_like_any_other() {
    on_each_client(|installed| {
        let world = project_with(&json!({
            "version": 1,
            "rules": [{
                "name": "explain",
                "when": {"prompt": "(?i)\\bexplain\\b", "files": {"min": 1}},
                "for_each": "files",
                "tasks": [{"id": "explain-{{item.stem}}", "claude": {"prompt": "Say what {{item}} is for", "tools": ["Read"]}}],
            }],
        }));
        let bin = world.path("bin");
        std::fs::create_dir(&bin).expect("a folder for the client");
        std::os::unix::fs::symlink(&installed.path, bin.join("claude")).expect("the client on PATH");
        let path = world.environment().into_iter().find(|(n, _)| *n == "PATH").expect("PATH is set").1;
        let mut longer = bin.into_os_string();
        longer.push(":");
        longer.push(path);

        let api = Api::start(Script::new().then(Turn::text("Started.")).ask(|request: &Request| {
            assert_eq!(request.count("W1 done: api.py: \"It holds the api.\""), 1, "{:?}", request.news());
            Turn::text("Explained.")
        }));
        let read = json!({"file_path": world.project().join("api.py")});
        // Slow enough for its stream to be looked at in between.
        let worker = Script::new().then(Turn::tool("Read", read)).ask(|request: &Request| {
            assert_eq!(request.count("hook additional context"), 0, "a worker's hooks are off: {:?}", request.news());
            Turn::text("It holds the api.").after(Duration::from_secs(2))
        });
        api.beside("Say what api.py is for", worker);
        let printed = Client::new(installed, &world, &api).env("PATH", longer).print("Please explain api.py");
        assert_eq!(printed.text(), "Explained.");
        let events = events(&world);
        let done = events.iter().find(|e| e["t"] == "done").expect("the task is done");
        assert_eq!(done["payload"]["usage"]["turns"], 2, "{done}");
        assert!(events.iter().any(|e| e["t"] == "progress" && e["payload"]["note"].as_str().is_some()), "{events:?}");
        assert_eq!(api.requests().len(), 2);
    });
}

#[test]
fn a_read_is_redirected_to_the_result() {
    on_each_client(|installed| {
        let mut config = config();
        config["conductor"] = json!({"on_claimed": "redirect"});
        let world = Arc::new(project_with(&config));
        let read = json!({"file_path": world.project().join("api.py"), "limit": 1});
        let there = Arc::clone(&world);
        let api = Api::start(
            Script::new()
                .ask(move |_: &Request| {
                    for task in ["analyze-api", "analyze-db", "bench"] {
                        finish(&there, task);
                    }
                    Turn::tool("Read", read)
                })
                .ask(move |request: &Request| {
                    let text = request.tool_result(&tool_use_id(0, 0)).expect("the read came back");
                    assert!(text.contains("Findings about api.py") && text.contains("end of analyze-api"), "{text}");
                    assert_eq!(request.count("This is the result of task analyze-api"), 1);
                    Turn::text("That was the result.")
                }),
        );
        let printed = Client::new(installed, &world, &api).print("Analyze api.py and db.py");
        assert_eq!(printed.text(), "That was the result.");
    });
}

#[test]
fn stop_lets_go_when_the_user_types() {
    on_each_client(|installed| {
        if installed.version == "2.1.197" {
            // That client runs the prompt's hook only after Stop has returned, so that nothing can tell it.
            return;
        }
        let world = project();
        let api = Api::start(Script::new().then(Turn::text("I could stop.")).then(Turn::text("It is noon.")));
        let mut terminal = Client::new(installed, &world, &api).open();
        terminal.submit(PROMPT, LIMIT);
        terminal.wait_for_text("I could stop.", LIMIT);
        wait_for(LIMIT, || crate::hold::is_held(&world.project()).then_some(())).expect("Stop holds");
        terminal.type_text("What time is it?");
        terminal.enter();
        terminal.wait_for_text("It is noon.", LIMIT);
        assert!(!events(&world).iter().any(|e| e["t"] == "run_ended"), "the workers go on");
        for task in ["analyze-api", "analyze-db", "analyze-ui", "bench"] {
            finish(&world, task);
        }
    });
}
