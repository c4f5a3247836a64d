//! The three workflows that cpw is judged by, with the real clients, in print mode and in a terminal, request by request: what
//! counts is what the model was shown.
//!
//! * **Large files**: the model is kept from reading what a worker has, is told of results with numbers, and its report gets
//!   all of them.
//! * **Benchmarks**: the model sees how far they are, gets results as they come, and does not end before the last one.
//! * **Deploy**: staging fails, production is refused, and the model hears of it before it stops, once.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/hold.rs"]
mod hold;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use crate::support::api::{Api, Request, Script, Turn, tool_use_id};
    use crate::support::client::{Client, Installed, LIMIT};
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, wait_for};

    /// A project with cpw wired in and these rules approved.
    fn project(config: &Value, files: &[(&str, String)]) -> Arc<World> {
        let world = World::new();
        for (name, content) in files {
            world.write(name, content);
        }
        world.write(".claude/cpw.json", &config.to_string());
        for command in [&["init"][..], &["allow", "--yes"]] {
            let out = world.cpw(command).output().expect("cpw runs");
            assert!(out.status.success(), "cpw {command:?}: {}", String::from_utf8_lossy(&out.stderr));
        }
        Arc::new(world)
    }

    fn events(world: &World) -> Vec<Value> {
        let runs = std::fs::read_dir(world.project().join(".claude/runs")).into_iter().flatten().flatten();
        let logs = runs.filter_map(|run| std::fs::read_to_string(run.path().join("events.jsonl")).ok());
        logs.flat_map(|log| log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<Value>>()).collect()
    }

    /// Lets what waits for the file `go-NAME` go on, and waits until the log has what `came` looks for.
    fn go(world: &World, name: &str, came: impl Fn(&Value) -> bool) {
        std::fs::write(world.home().join(format!("go-{name}")), "").expect("a file");
        until(world, name, came);
    }

    fn until(world: &World, name: &str, came: impl Fn(&Value) -> bool) {
        wait_for(LIMIT, || events(world).iter().any(&came).then_some(()))
            .unwrap_or_else(|| panic!("{name}: {:#?}", events(world)));
    }

    fn is(kind: &'static str, task: &'static str) -> impl Fn(&Value) -> bool {
        move |e| e["t"] == kind && e["task"] == task
    }

    /// Lets a task go on once a hook holds the session.
    fn go_once_held(world: &Arc<World>, task: &'static str) {
        let world = Arc::clone(world);
        std::thread::spawn(move || {
            if wait_for(LIMIT, || crate::hold::is_held(&world.project()).then_some(())).is_some() {
                go(&world, task, is("done", task));
            }
        });
    }

    /// Plays a workflow with a client, in print mode and in a terminal, each in a new project: with this prompt, until the
    /// model has said `last`; then `check` looks at what is left.
    fn play(
        installed: &Installed,
        prompt: &str,
        last: &str,
        make: impl Fn() -> (Arc<World>, Script),
        check: impl Fn(&World, &[Request]),
    ) {
        let (world, script) = make();
        let api = Api::start(script);
        let printed = Client::new(installed, &world, &api).mode("bypassPermissions").print(prompt);
        assert_eq!(printed.text(), last);
        check(&world, &api.requests());

        let (world, script) = make();
        let api = Api::start(script);
        let mut terminal = Client::new(installed, &world, &api).mode("bypassPermissions").open();
        terminal.submit(prompt, LIMIT);
        terminal.wait_for_text(last, LIMIT);
        check(&world, &api.requests());
    }

    /// At most one Stop has kept the session going, and no news was told twice.
    fn is_gentle(world: &World) {
        let events = events(world);
        let delivered: Vec<&Value> = events.iter().filter(|e| e["t"] == "delivered").collect();
        let stops = delivered.iter().filter(|e| e["payload"]["hook"] == "Stop").count();
        assert!(stops <= 1, "{delivered:#?}");
        for kind in ["news", "signals"] {
            let all = delivered.iter().filter_map(|e| e["payload"][kind].as_array()).flatten();
            let mut told: Vec<u64> = all.filter_map(Value::as_u64).collect();
            let count = told.len();
            told.sort_unstable();
            told.dedup();
            assert_eq!(told.len(), count, "told twice: {delivered:#?}");
        }
        let swallowed = std::fs::read_to_string(world.state().join("hooks.jsonl")).unwrap_or_default();
        assert!(swallowed.lines().all(|l| l.contains("slow: ")), "{swallowed}");
    }

    /// Counts the rows of its file when it may.
    const COUNT: &str = r#"until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done
        rows=$(wc -l <"$CPW_ITEM"); echo "$CPW_ITEM has $rows rows" >"$CPW_OUT/result.txt"; cpw summary "$rows rows""#;

    #[test]
    fn large_files() {
        let make = || {
            let config = json!({"version": 1, "conductor": {"on_claimed": "redirect"}, "rules": [{
                "name": "files", "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}}, "for_each": "files",
                "tasks": [{"id": "{{item.stem}}", "shell": COUNT, "claims": ["{{item}}"]}],
                "merge": [{"tool": "Write", "match": {"file_path": "*report.md"}, "needs": ["*"],
                    "set": {"content": "{{input.content}}\n{{results}}"}}]}]});
            let rows = |n: usize| "1,2,3\n".repeat(n);
            let files = [("data1.csv", rows(3000)), ("data2.csv", rows(2000)), ("data3.csv", rows(1000))];
            let world = project(&config, &files);
            let path = |name: &str| world.project().join(name);
            let (read, write) = (json!({"file_path": path("data1.csv")}), path("report.md"));
            let (w1, w2, w3) = (Arc::clone(&world), Arc::clone(&world), Arc::clone(&world));
            let script = Script::new()
                .ask(move |request: &Request| {
                    assert_eq!(request.count("cpw has started 3 tasks beside this conversation"), 1);
                    go_once_held(&w1, "data1");
                    Turn::tool("Read", read)
                })
                .ask(move |request: &Request| {
                    // Not the file: what the worker made of it.
                    let read = request.tool_result(&tool_use_id(0, 0)).expect("the read came back");
                    assert!(read.contains("data1.csv has 3000 rows") && !read.contains("1,2,3"), "{read}");
                    assert_eq!(request.count("W1 done: data1.csv: \"3000 rows\""), 1, "{:?}", request.news());
                    go(&w2, "data2", is("done", "data2"));
                    Turn::tool("Bash", json!({"command": "echo thinking"}))
                })
                .ask(move |request: &Request| {
                    assert_eq!(request.count("done: data2.csv: \"2000 rows\""), 1, "{:?}", request.news());
                    go_once_held(&w3, "data3");
                    Turn::tool("Write", json!({"file_path": write, "content": "# Report"}))
                })
                .ask(move |request: &Request| {
                    assert_eq!(request.tool_failed(&tool_use_id(2, 0)), Some(false), "{:?}", request.news());
                    assert_eq!(request.count("done: data3.csv: \"1000 rows\""), 1, "{:?}", request.news());
                    Turn::text("The report is written.")
                });
            // The end of the run comes with the last step or with Stop, as it happens.
            (world, script.then(Turn::text("The report is written.")))
        };
        on_each_client(|installed| {
            play(
                installed,
                "Analyze data1.csv, data2.csv and data3.csv",
                "The report is written.",
                make,
                |world, requests| {
                    assert!(requests.len() <= 5, "{}", requests.len());
                    let report = world.read("report.md").expect("the report");
                    assert!(report.starts_with("# Report\n"), "{report}");
                    for (name, rows) in [("data1", 3000), ("data2", 2000), ("data3", 1000)] {
                        assert_eq!(report.matches(&format!("{name}.csv has {rows} rows")).count(), 1, "{report}");
                    }
                    is_gentle(world);
                },
            );
        });
    }

    /// Says how far it is, and is done when it may.
    const BENCH: &str = r#"until [ -e "$HOME/go-$CPW_TASK-half" ]; do sleep 0.02; done
        cpw progress 60 --eta 30s; cpw signal --hook post-tool-use --exit 0 --message "60 % complete, about 30 s"
        until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done; cpw summary "$CPW_TASK: 12 ms""#;

    #[test]
    fn benchmarks() {
        let make = || {
            let config = json!({"version": 1, "rules": [{"name": "bench", "when": {"prompt": "(?i)\\bbenchmark\\b"},
                "for_each": {"list": ["parser", "writer"]}, "tasks": [{"id": "{{item}}", "shell": BENCH}]}]});
            let world = project(&config, &[]);
            let (w1, w2, w3) = (Arc::clone(&world), Arc::clone(&world), Arc::clone(&world));
            let step = || Turn::tool("Bash", json!({"command": "echo a step"}));
            let script = Script::new()
                .ask(move |_: &Request| {
                    go(&w1, "parser-half", is("signal", "parser"));
                    step()
                })
                .ask(move |request: &Request| {
                    let pace = "(task parser) says: \"60 % complete, about 30 s\"";
                    assert_eq!(request.count(pace), 1, "{:?}", request.news());
                    let still =
                        "Workers still processing: W1 60 % (parser), W2 working on writer (30 % of all, about 30 s).";
                    assert_eq!(request.count(still), 1, "{:?}", request.news());
                    go(&w2, "parser", is("done", "parser"));
                    step()
                })
                .ask(move |request: &Request| {
                    assert_eq!(request.count("W1 done: parser: \"parser: 12 ms\""), 1, "{:?}", request.news());
                    step()
                })
                .ask(move |request: &Request| {
                    assert!(
                        request.news().iter().all(|t| !t.contains("cpw") && !t.contains("done")),
                        "{:?}",
                        request.news()
                    );
                    // It wants to stop now: too early.
                    std::fs::write(w3.home().join("go-writer-half"), "").expect("a file");
                    go_once_held(&w3, "writer");
                    Turn::text("I think that is all.")
                })
                .ask(|request: &Request| {
                    assert_eq!(request.count("W2 done: writer: \"writer: 12 ms\""), 1, "{:?}", request.news());
                    assert_eq!(request.count("All workers of rule bench are finished: 2 done."), 1);
                    Turn::text("Both are measured.")
                });
            (world, script)
        };
        on_each_client(|installed| {
            play(installed, "Please benchmark it", "Both are measured.", make, |world, requests| {
                assert_eq!(requests.len(), 5);
                is_gentle(world);
            });
        });
    }

    /// Keeps production from being deployed by hand while it is at work, and says what came of it.
    const STAGING: &str = r#"cpw signal --hook pre-tool-use --exit 2 --match 'Bash(*production*)' --message 'staging is being deployed'
        until [ -e "$HOME/go-staging" ]; do sleep 0.02; done
        cpw signal --hook stop --exit 2 --message 'CRITICAL: staging deployment failed: 3 of 12 checks'; exit 1"#;

    #[test]
    fn deploy() {
        let make = || {
            let config = json!({"version": 1, "rules": [{"name": "deploy", "when": {"prompt": "(?i)\\bdeploy\\b"}, "tasks": [
                {"id": "staging", "shell": STAGING, "signals": ["pre-tool-use:2", "stop:2"]},
                {"id": "production", "title": "Production deployment", "shell": "touch deployed", "needs": ["staging"], "critical": true},
            ]}]});
            let world = project(&config, &[]);
            let (w1, w2) = (Arc::clone(&world), Arc::clone(&world));
            let deploy = || Turn::tool("Bash", json!({"command": "touch production-by-hand"}));
            let script = Script::new()
                .ask(move |_: &Request| {
                    until(&w1, "the signal", is("signal", "staging"));
                    deploy()
                })
                .ask(move |request: &Request| {
                    assert_eq!(request.tool_failed(&tool_use_id(0, 0)), Some(true));
                    let why = request.tool_result(&tool_use_id(0, 0)).expect("a result");
                    assert!(
                        why.contains("(task staging) holds this call back: \"staging is being deployed\""),
                        "{why}"
                    );
                    go(&w2, "staging", |e| e["t"] == "run_ended");
                    Turn::text("I will stop here.")
                })
                .ask(|request: &Request| {
                    let news = request.news().join("\n");
                    for part in [
                        "(task staging) says: \"CRITICAL: staging deployment failed: 3 of 12 checks\"",
                        "CRITICAL: \"Production deployment\" blocked: staging failed.",
                        "W1 failed: staging (exit 1)",
                        "All workers of rule deploy are finished: 0 done, 1 failed, 1 skipped",
                    ] {
                        assert_eq!(news.matches(part).count(), 1, "{part}: {news}");
                    }
                    Turn::text("Staging failed, so production stays as it is.")
                });
            (world, script)
        };
        on_each_client(|installed| {
            play(installed, "Deploy it", "Staging failed, so production stays as it is.", make, |world, requests| {
                assert_eq!(requests.len(), 3);
                let there = |name: &str| world.project().join(name).exists();
                assert!(!there("deployed") && !there("production-by-hand"));
                is_gentle(world);
            });
        });
    }
}
