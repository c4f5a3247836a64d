//! Resources that tasks hold while they run, through the real binary: no two tasks that hold the same run at the same time,
//! in whatever runs, and the session's calls that use one wait for it, or are told who holds it.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::process::Stdio;
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::support::api::{Api, Request, Script, Turn, tool_use_id};
    use crate::support::client::Client;
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";
    const OTHER: &str = "11111111-c86a-4ce8-8596-eab74720765d";
    const LIMIT: Duration = Duration::from_mins(1);

    /// A task that goes on until the test says so.
    const TASK: &str = r#"until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.01; done"#;

    fn lines(path: &std::path::Path) -> Vec<Value> {
        let log = fs::read_to_string(path).unwrap_or_default();
        // The last line may be half written.
        log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// Kills a process of ours. Somebody else may have been faster: who sees its worker die ends a task.
    fn end(process: Pid) {
        let killed = kill(process, Signal::SIGKILL);
        assert!(matches!(killed, Ok(()) | Err(Errno::ESRCH)), "{killed:?}");
    }

    /// A project with a config, wired and approved.
    struct Site(World);

    impl Site {
        fn new(config: &Value) -> Site {
            let world = World::new();
            world.write(".claude/cpw.json", &config.to_string());
            world.write("data/x.csv", "1\n");
            world.write("data/y.csv", "2\n");
            for command in [&["init"][..], &["allow", "--yes"]] {
                let out = world.cpw(command).output().expect("cpw runs");
                assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            }
            Site(world)
        }

        /// What happened to leases in the project.
        fn leases(&self) -> Vec<Value> {
            lines(&self.0.project().join(".claude/runs/project/events.jsonl"))
        }

        /// What happened in its runs.
        fn events(&self) -> Vec<Value> {
            let runs = fs::read_dir(self.0.project().join(".claude/runs")).into_iter().flatten().flatten();
            let runs = runs.filter(|run| run.file_name() != "project");
            runs.flat_map(|run| lines(&run.path().join("events.jsonl"))).collect()
        }

        fn until(&self, mut holds: impl FnMut() -> bool) {
            wait_for(LIMIT, || holds().then_some(()))
                .unwrap_or_else(|| panic!("not within {LIMIT:?}: {:#?} {:#?}", self.events(), self.leases()));
        }

        /// Waits until a task has what it wants.
        fn until_held_by(&self, task: &str) {
            self.until(|| self.leases().iter().any(|e| e["t"] == "acquire" && e["payload"]["holder"]["task"] == task));
        }

        /// Waits until a call of the session stands in line.
        fn until_a_call_waits(&self) {
            self.until(|| {
                self.leases().iter().any(|e| e["t"] == "queued" && !e["payload"]["holder"]["session"].is_null())
            });
        }

        fn held_by_calls(&self) -> Vec<u64> {
            let leases = self.leases();
            let over = |token: &Value| leases.iter().any(|e| e["t"] == "release" && e["payload"]["token"] == *token);
            let of_call = |e: &&Value| e["t"] == "acquire" && !e["payload"]["holder"]["session"].is_null();
            let tokens = leases.iter().filter(of_call).map(|e| &e["payload"]["token"]).filter(|t| !over(t));
            tokens.filter_map(Value::as_u64).collect()
        }

        fn finish(&self, task: &str) {
            fs::write(self.0.home().join(format!("go-{task}")), "").expect("a file in the home");
        }

        fn until_ended(&self) {
            self.until(|| self.events().iter().any(|e| e["t"] == "run_ended"));
        }

        fn hook(&self, session: &str, name: &str, event: &str, more: &Value) -> Value {
            let mut payload =
                json!({"session_id": session, "cwd": self.0.project(), "hook_event_name": event, "prompt_id": "p1"});
            payload.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let mut command = self.0.cpw(&[name]);
            command.env("CLAUDE_CODE_SESSION_ID", session).env("CLAUDE_PROJECT_DIR", self.0.project());
            // The test is the client.
            command.env("CLAUDE_PID", std::process::id().to_string());
            let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cpw starts");
            drop(child.stdin.take().expect("a pipe").write_all(payload.to_string().as_bytes()));
            let out = child.wait_with_output().expect("it ends");
            assert_eq!(out.status.code(), Some(0), "{name}");
            if out.stdout.is_empty() { Value::Null } else { serde_json::from_slice(&out.stdout).expect("JSON") }
        }

        fn prompt(&self, text: &str) {
            self.hook(SESSION, "user-prompt-submit", "UserPromptSubmit", &json!({"prompt": text}));
        }

        /// Why a call was refused, and what the model is told with it.
        fn call(&self, id: &str, tool: &str, input: &Value, more: &Value) -> (String, String) {
            let mut call = json!({"tool_name": tool, "tool_input": input, "tool_use_id": id});
            call.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            let said = self.hook(SESSION, "pre-tool-use", "PreToolUse", &call);
            let text = |name: &str| said["hookSpecificOutput"][name].as_str().unwrap_or_default().to_owned();
            (text("permissionDecisionReason"), text("additionalContext"))
        }

        fn psql(&self, id: &str) -> (String, String) {
            self.call(id, "Bash", &json!({"command": "psql -c 'select 1'"}), &json!({}))
        }

        fn read(&self, id: &str, file: &str) -> String {
            self.call(id, "Read", &json!({"file_path": self.0.project().join(file)}), &json!({})).0
        }

        /// The end of a step with these calls.
        fn step(&self, ids: &[&str]) {
            let calls: Vec<Value> = ids.iter().map(|id| json!({"tool_name": "Bash", "tool_use_id": id})).collect();
            self.hook(SESSION, "post-tool-batch", "PostToolBatch", &json!({"tool_calls": calls}));
        }

        fn status(&self, args: &[&str]) -> String {
            let out = self.0.cpw(&[&["status"], args].concat()).output().expect("cpw runs");
            String::from_utf8_lossy(&out.stdout).into_owned()
        }

        /// The process of a task's lease, and of its worker.
        fn processes_of(&self, task: &str) -> (Pid, Pid) {
            let pid = |v: &Value| Pid::from_raw(i32::try_from(v.as_i64().expect("a pid")).expect("a pid"));
            let leases = self.leases();
            let lease = leases.iter().find(|e| e["t"] == "acquire" && e["payload"]["holder"]["task"] == task);
            let holder = &lease.expect("a lease")["payload"]["holder"];
            let events = self.events();
            let worker = events.iter().find(|e| e["t"] == "worker_started" && e["worker"] == holder["worker"]);
            (pid(&holder["process"]["pid"]), pid(&worker.expect("a worker")["payload"]["pid"]))
        }
    }

    impl Drop for Site {
        fn drop(&mut self) {
            // Also where a test fails, nothing goes on.
            for task in ["load", "first"] {
                self.finish(task);
            }
        }
    }

    /// A session whose prompt starts `load`, which holds the database and a file, once `first` has ended.
    fn config(wait: &str, needs: &Value) -> Value {
        json!({
            "version": 1,
            "conductor": {"gate": "off", "wait": wait},
            "resources": {"db": {"tools": ["Bash(psql*)"]}},
            "rules": [{"name": "load", "when": {"prompt": "(?i)\\bload\\b"}, "tasks": [
                {"id": "first", "shell": TASK},
                {"id": "load", "shell": TASK, "needs": needs.as_array().cloned().unwrap_or_default(),
                    "resources": ["db", "./data/../data/x.csv"]}]}]})
    }

    fn loading(wait: &str) -> Site {
        let site = Site::new(&config(wait, &Value::Null));
        site.prompt("Load it now");
        site.until_held_by("load");
        site
    }

    #[test]
    fn a_call_waits_for_what_it_uses_holds_it_while_it_runs_and_gives_it_back() {
        let site = loading("5m");
        std::thread::scope(|scope| {
            let held = scope.spawn(|| site.psql("toolu_1"));
            site.until_a_call_waits();
            // What uses nothing of it does not wait.
            assert_eq!(site.call("toolu_2", "Bash", &json!({"command": "ls"}), &json!({})).0, "");
            assert_eq!(site.read("toolu_3", "data/y.csv"), "");
            site.finish("load");
            assert_eq!(held.join().expect("an answer"), (String::new(), String::new()));
        });
        let decision =
            site.events().into_iter().find(|e| e["t"] == "decision").expect("that it was held is in the log");
        assert_eq!((&decision["payload"]["answer"], &decision["payload"]["resource"]), (&json!("held"), &json!("db")));
        assert_eq!(site.held_by_calls().len(), 1);
        assert_eq!(site.psql("toolu_4").0, "", "the calls of a session are one party");
        site.step(&["toolu_4"]);
        assert_eq!(site.held_by_calls().len(), 1, "another call's step is over");
        site.step(&["toolu_1", "toolu_4"]);
        assert_eq!(site.held_by_calls().len(), 0);
        assert_eq!(site.psql("toolu_5").0, "");
        site.hook(SESSION, "stop", "Stop", &json!({"stop_hook_active": false}));
        assert_eq!(site.held_by_calls().len(), 0, "the turn is over");
        assert_eq!(site.psql("toolu_5b").0, "");
        let prompt = json!({"prompt": "Something else", "prompt_id": "p-next"});
        site.hook(SESSION, "user-prompt-submit", "UserPromptSubmit", &prompt);
        assert_eq!(site.held_by_calls().len(), 0, "the turn was interrupted");
        assert_eq!(site.psql("toolu_6").0, "");
        site.finish("first");
        site.until_ended();
        assert_eq!(site.held_by_calls().len(), 1);
        // With the end of the run that names it, nobody comes any more who would give it back.
        site.step(&["toolu_7"]);
        assert_eq!(site.held_by_calls().len(), 0);
    }

    #[test]
    fn a_call_is_refused_with_who_holds_it_and_passes_after_three_times() {
        let site = loading("1ms");
        let said = site.psql("toolu_1").0;
        assert!(
            said.starts_with("db, data/x.csv is held by task load (W") && said.contains("until that ends"),
            "{said}"
        );
        assert!(said.ends_with("This call uses it, and can be made when it is free."), "{said}");
        // For how long it is held may be said otherwise.
        let holder = |said: &str| said.split(", for ").next().map(str::to_owned);
        assert_eq!(holder(&site.psql("toolu_1").0), holder(&said), "one call, asked about by two installations");
        let of_subagent = json!({"agent_id": "a1", "agent_type": "x"});
        assert!(!site.call("toolu_2", "Bash", &json!({"command": "psql"}), &of_subagent).0.is_empty());
        assert!(!site.psql("toolu_3").0.is_empty());
        let (why, note) = site.psql("toolu_4");
        assert_eq!(why, "");
        assert!(note.contains("held by task load") && note.ends_with("This call goes through all the same."), "{note}");
        assert!(!site.psql("toolu_5").0.is_empty(), "not for ever");
        // A file that is held is meant by itself.
        assert!(site.read("toolu_6", "data/x.csv").contains("is held by task load"));
        assert_eq!(site.read("toolu_7", "data/y.csv"), "");
        // It is none of another session's business.
        let call = json!({"tool_name": "Bash", "tool_input": {"command": "psql"}, "tool_use_id": "toolu_8"});
        assert_eq!(site.hook(OTHER, "pre-tool-use", "PreToolUse", &call), Value::Null);
        site.finish("load");
        site.finish("first");
        site.until_ended();
    }

    #[test]
    fn a_task_waits_for_what_a_call_holds_and_says_so() {
        let site = Site::new(&config("1ms", &json!(["first"])));
        site.prompt("Load it now");
        site.until(|| site.events().iter().any(|e| e["t"] == "spawned"));
        assert_eq!(site.psql("toolu_1").0, "");
        site.finish("first");
        site.until(|| site.status(&[]).contains("waits: db is held by a call of the session"));
        assert!(!site.leases().iter().any(|e| e["payload"]["holder"]["task"] == "load" && e["t"] == "acquire"));
        assert!(site.status(&[]).contains("\ndb: held by a call of the session, for "));
        let status: Value = serde_json::from_str(&site.status(&["--json"])).expect("JSON");
        let leases = &status["leases"];
        assert_eq!(
            (&leases["held"][0]["holder"]["session"], &leases["held"][0]["resources"]),
            (&json!(SESSION), &json!(["db"]))
        );
        assert_eq!(leases["waiting"][0]["holder"]["task"], "load");
        // It stands in line, and is served first.
        site.step(&["toolu_1"]);
        site.until_held_by("load");
        assert!(site.psql("toolu_2").0.contains("held by task load"));
        site.finish("load");
        site.finish("first");
        site.until_ended();
        let freed = site.psql("toolu_3").0;
        assert_eq!(freed, "", "its lease ends with its process, whoever writes that down");
    }

    #[test]
    fn who_waits_for_a_task_holds_nothing_that_the_task_wants() {
        let mut config = config("5m", &json!(["first"]));
        config["rules"][0]["tasks"][1]["claims"] = json!(["data/x.csv"]);
        config["rules"][0]["merge"] = json!([{"tool": "Bash", "match": {"command": "psql*"}, "needs": ["load"], "set": {"description": "{{path.load}}"}}]);
        let site = Site::new(&config);
        site.prompt("Load it now");
        site.until(|| site.events().iter().any(|e| e["t"] == "spawned"));
        std::thread::scope(|scope| {
            let of_file = scope.spawn(|| site.read("toolu_1", "data/x.csv"));
            let of_merge = scope.spawn(|| site.psql("toolu_2"));
            let hook_waits = |name: &str| name.contains(".task-load") || name.ends_with(".outcomes");
            let bells = || {
                let runs = fs::read_dir(site.0.project().join(".claude/runs")).into_iter().flatten().flatten();
                let bells = runs.filter_map(|run| fs::read_dir(run.path().join("bells")).ok()).flatten().flatten();
                bells
                    .filter(|bell| bell.file_name().to_str().is_some_and(|n| !n.starts_with('.') && hook_waits(n)))
                    .count()
            };
            site.until(|| bells() == 2);
            site.finish("first");
            site.until_held_by("load");
            site.finish("load");
            assert_eq!(of_file.join().expect("an answer"), "");
            assert_eq!(of_merge.join().expect("an answer").0, "");
        });
        site.until_ended();
    }

    #[test]
    fn what_a_killed_worker_and_its_task_held_is_free_at_once() {
        for with_task in [true, false] {
            let site = loading("5m");
            std::thread::scope(|scope| {
                let held = scope.spawn(|| site.psql("toolu_1"));
                site.until_a_call_waits();
                let (task, worker) = site.processes_of("load");
                end(worker);
                if with_task {
                    end(task);
                }
                // Without the task's death, whoever sees that of the worker ends the task.
                assert_eq!(held.join().expect("an answer"), (String::new(), String::new()), "{with_task}");
            });
            site.finish("first");
            site.until_ended();
        }
    }

    /// Notes when it begins and ends; that no other is between is for who reads it.
    const ALONE: &str = r#"echo "begin $CPW_TASK" >>"$HOME/order"; sleep 0.03; echo "end $CPW_TASK" >>"$HOME/order""#;

    #[test]
    fn tasks_that_hold_the_same_take_turns_in_one_run_and_between_runs() {
        let world = World::new();
        let fails_once = format!("{ALONE}; [ $CPW_ATTEMPT = 2 ]");
        let tasks = json!([
            {"id": "a", "shell": ALONE, "resources": ["db", "./src"]},
            {"id": "b", "shell": ALONE, "resources": ["file:src/deep/x.rs"]},
            {"id": "c", "shell": fails_once, "retries": 1, "backoff": "1ms", "resources": ["port:1", "./other/../src/y"], "cwd": "sub"},
            {"id": "d", "shell": ALONE, "resources": ["db", "port:1", "./src/deep"]},
            {"id": "free", "shell": "true"}]);
        fs::create_dir_all(world.project().join("sub")).expect("a folder");
        for name in ["one.json", "two.json"] {
            let plan = json!({"version": 1, "limits": {"max_workers": 4}, "tasks": tasks});
            world.write(name, &plan.to_string());
        }
        let runs = ["one.json", "two.json"].map(|plan| {
            world.cpw(&["run", plan]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("cpw starts")
        });
        for run in runs {
            let out = run.wait_with_output().expect("it ends");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        }
        let order = fs::read_to_string(world.home().join("order")).expect("they ran");
        let mut open: Vec<&str> = Vec::new();
        for line in order.lines() {
            match line.split_once(' ').expect("two words") {
                ("begin", task) => {
                    // Only b and c hold nothing that the other holds.
                    let apart = |other: &&str| matches!((task, *other), ("b", "c") | ("c", "b"));
                    assert!(open.iter().all(apart), "{task} began beside {open:?}:\n{order}");
                    open.push(task);
                }
                (_, task) => open.retain(|t| *t != task),
            }
        }
        assert_eq!(order.lines().count(), 2 * 2 * 5, "{order}");
        let leases = lines(&world.project().join(".claude/runs/project/events.jsonl"));
        let taken = leases.iter().filter(|e| e["t"] == "acquire");
        let taken: Vec<&Value> = taken.map(|e| &e["payload"]["resources"]).collect();
        assert_eq!(taken.len(), 10, "each attempt takes all at once: {taken:?}");
        assert!(taken.contains(&&json!(["file:src/y", "port:1"])), "relative to the project: {taken:?}");
    }

    #[test]
    fn a_task_that_waits_is_ended_by_its_limit_and_stands_in_line_no_longer() {
        let world = World::new();
        let plan =
            json!({"version": 1, "tasks": [{"id": "late", "shell": "true", "resources": ["db"], "timeout": "300ms"}]});
        world.write("plan.json", &plan.to_string());
        let mut holder = world.cpw(&["lease", "db", "--", "sh", "-c", "echo held; read x; true"]);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cpw starts");
        let mut said = [0; 5];
        std::io::Read::read_exact(holder.stdout.as_mut().expect("a pipe"), &mut said).expect("it holds");
        let out = world.cpw(&["run", "plan.json"]).output().expect("cpw runs");
        assert_eq!(out.status.code(), Some(1), "{out:?}");
        let events = world.cpw(&["events"]).output().expect("cpw runs");
        let events = String::from_utf8_lossy(&events.stdout).into_owned();
        assert!(events.contains("timed_out"), "{events}");
        let list = world.cpw(&["lease", "--list", "--json"]).output().expect("cpw runs");
        let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
        assert_eq!((list["held"].as_array().map(Vec::len), &list["waiting"]), (Some(1), &json!([])), "{list}");
        drop(holder.stdin.take());
        assert!(holder.wait().expect("it ends").success());
        let out = world.cpw(&["worker", "--plan", "plan.json", "--task", "late"]).output().expect("cpw runs");
        assert_eq!(out.status.code(), Some(0), "in the foreground: {out:?}");
    }

    /// Lets the task go on until a call of the session waits for what it holds.
    fn finish_once_waited_for(site: &std::sync::Arc<Site>) {
        let site = std::sync::Arc::clone(site);
        std::thread::spawn(move || {
            site.until_a_call_waits();
            site.finish("load");
        });
    }

    /// What the shell's `psql` prints.
    fn with_psql(site: &Site) {
        site.0.script("psql", "echo one row");
        let settings = site.0.read(".claude/settings.json").expect("settings");
        let mut settings: Value = serde_json::from_str(&settings).expect("JSON");
        settings["permissions"] = json!({"allow": ["Bash(./psql:*)"]});
        site.0.settings(&settings);
    }

    #[test]
    fn the_model_gets_the_answer_of_its_call_when_the_task_is_over() {
        on_each_client(|installed| {
            let mut config = config("5m", &Value::Null);
            config["resources"]["db"]["tools"] = json!(["Bash(*psql*)"]);
            let site = std::sync::Arc::new(Site::new(&config));
            with_psql(&site);
            let (one, two) = (std::sync::Arc::clone(&site), std::sync::Arc::clone(&site));
            let script = Script::new()
                .ask(move |_: &Request| {
                    one.until_held_by("load");
                    finish_once_waited_for(&one);
                    Turn::tool("Bash", json!({"command": "./psql -c x"}))
                })
                .ask(move |request: &Request| {
                    let said = request.tool_result(&tool_use_id(0, 0)).expect("the call came back");
                    assert!(said.contains("one row"), "{said}");
                    assert_eq!(two.held_by_calls().len(), 0, "given back after the step");
                    Turn::text("One row.")
                });
            let api = Api::start(script);
            let printed = Client::new(installed, &site.0, &api).print("Load it now");
            assert_eq!(printed.text(), "One row.");
            let waits = |e: &Value| e["t"] == "queued" && !e["payload"]["holder"]["session"].is_null();
            assert!(site.leases().iter().any(waits));
            site.finish("first");
            site.until_ended();
        });
    }

    #[test]
    fn the_model_is_told_who_holds_what_its_call_uses() {
        on_each_client(|installed| {
            let mut config = config("1ms", &Value::Null);
            config["resources"]["db"]["tools"] = json!(["Bash(*psql*)"]);
            let site = std::sync::Arc::new(Site::new(&config));
            with_psql(&site);
            let (one, two) = (std::sync::Arc::clone(&site), std::sync::Arc::clone(&site));
            let script = Script::new()
                .ask(move |_: &Request| {
                    one.until_held_by("load");
                    Turn::tool("Bash", json!({"command": "./psql -c x"}))
                })
                .ask(move |request: &Request| {
                    assert_eq!(request.tool_failed(&tool_use_id(0, 0)), Some(true));
                    assert_eq!(request.count("is held by task load (W"), 1);
                    // Both are killed; nobody has to come and say that it is free.
                    let (task, worker) = two.processes_of("load");
                    end(worker);
                    end(task);
                    Turn::tool("Bash", json!({"command": "./psql -c x"}))
                })
                .ask(|request: &Request| {
                    let said = request.tool_result(&tool_use_id(1, 0)).expect("the call came back");
                    assert!(said.contains("one row"), "{said}");
                    Turn::text("One row.")
                });
            let api = Api::start(script);
            let printed = Client::new(installed, &site.0, &api).print("Load it now");
            assert_eq!(printed.text(), "One row.");
            site.finish("first");
            site.until_ended();
        });
    }
}
