//! Tasks one after the other, with the real client: a deployment in which staging fails, so that production neither starts
//! nor is let through, and the model hears of it before it stops; and a pipeline whose hand-offs the model learns of beside
//! other news. What counts is what the model was shown.

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

    use crate::hold::is_held;
    use crate::support::api::{Api, Request, Script, Turn, tool_use_id};
    use crate::support::client::{Client, LIMIT};
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, wait_for};

    /// A task that waits for the file `go-ID` in the home and ends as that says.
    const TASK: &str = r#"until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done; exit "$(cat "$HOME/go-$CPW_TASK")""#;

    fn world(rule: &Value) -> Arc<World> {
        let world = World::new();
        world.write("app.py", "# the app\n");
        world.script("deploy", "#!/bin/sh\necho \"$1\" >>deployed\n");
        let config = json!({"version": 1, "rules": [rule]});
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
        let text: String = logs.collect();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    fn until(world: &World, kind: &str, task: &str) {
        let there = || events(world).iter().any(|e| e["t"] == kind && e["task"] == task).then_some(());
        wait_for(LIMIT, there).unwrap_or_else(|| panic!("no {kind} of {task}: {:#?}", events(world)));
    }

    fn go(world: &World, task: &str, exit: i32) {
        let (path, new) = (world.home().join(format!("go-{task}")), world.home().join(format!("new-{task}")));
        std::fs::write(&new, exit.to_string()).expect("a file in the home");
        std::fs::rename(new, path).expect("it is there at once");
    }

    /// Lets a task end once a hook holds.
    fn go_once_held(world: &Arc<World>, task: &'static str, exit: i32) {
        let world = Arc::clone(world);
        std::thread::spawn(move || {
            if wait_for(LIMIT, || is_held(&world.project()).then_some(())).is_some() {
                go(&world, task, exit);
            }
        });
    }

    /// Staging, testing, production, each after the one before; a deployment by hand comes after staging and testing.
    fn deploy() -> Value {
        json!({
            "name": "deploy",
            "when": {"prompt": "(?i)\\bdeploy\\b"},
            "tasks": [
                {"id": "staging", "shell": TASK},
                {"id": "testing", "shell": TASK, "needs": ["staging"]},
                {"id": "production", "title": "Production deployment", "shell": "./deploy by-cpw", "needs": ["testing"], "critical": true},
            ],
            "merge": [{"tool": "Bash", "match": {"command": "*deploy production*"}, "needs": ["staging", "testing"]}],
        })
    }

    #[test]
    fn where_staging_fails_production_is_skipped_and_refused_and_the_model_hears_so_once() {
        on_each_client(|installed| {
            let world = world(&deploy());
            let there = Arc::clone(&world);
            let call = json!({"command": "./deploy production", "description": "Deploy to production"});
            let api = Api::start(
                Script::new()
                    .ask(move |request: &Request| {
                        assert_eq!(request.count("cpw has started 3 tasks beside this conversation"), 1);
                        go_once_held(&there, "staging", 7);
                        Turn::tool("Bash", call)
                    })
                    .ask(|request: &Request| {
                        assert_eq!(request.tool_failed(&tool_use_id(0, 0)), Some(true), "{:?}", request.news());
                        let why = request.tool_result(&tool_use_id(0, 0)).expect("it was answered");
                        assert!(why.contains("were to be done before it, and not all of them are:"), "{why}");
                        assert!(why.contains("- staging failed") && why.contains("- testing skipped"), "{why}");
                        assert_eq!(request.count("CRITICAL"), 0, "that is for Stop: {:?}", request.news());
                        Turn::text("Staging failed.")
                    })
                    .ask(|request: &Request| {
                        let line = "CRITICAL: 'Production deployment' blocked: testing failed.";
                        let other = "CRITICAL: \"Production deployment\" blocked: testing failed.";
                        assert_eq!(request.count(line) + request.count(other), 1, "{:?}", request.news());
                        assert_eq!(request.count("CRITICAL"), 1, "{:?}", request.news());
                        Turn::text("Production was not deployed, because staging failed.")
                    }),
            );
            let printed = Client::new(installed, &world, &api).print("Please deploy the app");
            assert_eq!(printed.text(), "Production was not deployed, because staging failed.");
            assert_eq!(api.requests().len(), 3, "it may stop once it was told");
            assert_eq!(world.read("deployed"), None, "nothing was deployed");
            until(&world, "skipped", "production");
        });
    }

    #[test]
    fn a_pipeline_hands_over_and_the_model_hears_so_beside_other_news() {
        let wait = |file: &str| format!("until [ -e \"$HOME/go-{file}\" ]; do sleep 0.02; done");
        let build = format!(
            "cpw checkpoint compiled --data '{{\"app\": \"out/app\"}}'; {}; cpw checkpoint linked --inject --data '\"0 warnings\"'; {}",
            wait("link"),
            wait("build")
        );
        let rule = json!({
            "name": "pipeline",
            "when": {"prompt": "(?i)\\bbuild\\b"},
            "tasks": [
                {"id": "build", "shell": build},
                {"id": "test", "shell": format!("echo \"tested $CPW_NEED_BUILD_COMPILED\"; {}", wait("test")), "needs": ["build@compiled"]},
                {"id": "pack", "shell": "true", "needs": ["build", "test"]},
            ],
        });
        on_each_client(|installed| {
            let world = world(&rule);
            let read = json!({"file_path": world.project().join("app.py")});
            let (w1, w2, w3) = (Arc::clone(&world), Arc::clone(&world), Arc::clone(&world));
            let (r1, r2) = (read.clone(), read);
            let api = Api::start(
                Script::new()
                    .ask(move |_: &Request| {
                        until(&w1, "started", "test");
                        Turn::tool("Read", r1)
                    })
                    .ask(move |request: &Request| {
                        assert_eq!(request.count("→ test started"), 0, "not alone: {:?}", request.news());
                        go(&w2, "link", 0);
                        let linked = |e: &Value| e["t"] == "checkpoint" && e["payload"]["name"] == "linked";
                        wait_for(LIMIT, || events(&w2).iter().any(linked).then_some(())).expect("it is linked");
                        Turn::tool("Read", r2)
                    })
                    .ask(move |request: &Request| {
                        assert_eq!(
                            request.count("W1 at checkpoint linked of build: \"0 warnings\""),
                            1,
                            "{:?}",
                            request.news()
                        );
                        assert_eq!(request.count("build → test started"), 1, "{:?}", request.news());
                        assert_eq!(request.count("compiled"), 0, "that one is for tasks: {:?}", request.news());
                        go(&w3, "build", 0);
                        go_once_held(&w3, "test", 0);
                        Turn::text("It is being built.")
                    })
                    .ask(|request: &Request| {
                        assert_eq!(request.count("All workers of rule pipeline are finished: 3 done."), 1);
                        assert_eq!(
                            request.count("done: test: \"tested {'app':'out/app'}\""),
                            1,
                            "{:?}",
                            request.news()
                        );
                        let handed = request.count("→ test started") + request.count("pack started");
                        assert_eq!(handed, 1, "of what is over nobody need hear: {:?}", request.news());
                        Turn::text("It is packed.")
                    }),
            );
            let printed = Client::new(installed, &world, &api).print("Please build the app");
            assert_eq!(printed.text(), "It is packed.");
            assert_eq!(api.requests().len(), 4, "no request because of a hand-off");
        });
    }
}
