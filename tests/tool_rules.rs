//! Rules on tool calls: edits of a session start checks beside it, once a burst, one run at a time, whatever is killed; and
//! the model is shown what came out.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/hold.rs"]
mod hold;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::support::api::{Api, Request, Script, Turn};
    use crate::support::client::Client;
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, wait_for};

    /// A busy machine may take its time; what hangs does not end at all.
    const LIMIT: Duration = Duration::from_mins(1);

    /// Says what it is about, and waits until it may end.
    const TASK: &str = r#"echo "Checked $CPW_ITEM"; until [ -e "$HOME/go" ]; do sleep 0.02; done"#;

    fn config(debounce: &str) -> Value {
        json!({
            "version": 1,
            "rules": [{
                "name": "check",
                "when": {"tool": "Edit|Write", "match": {"file_path": "*.py"}, "debounce": debounce},
                "for_each": "files",
                "tasks": [{"id": "{{item.stem}}", "shell": TASK}],
            }],
        })
    }

    fn cpw(world: &World, args: &[&str]) {
        let out = world.cpw(args).output().expect("cpw runs");
        assert!(out.status.success(), "cpw {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// A project with three files and an approved rule.
    fn project(debounce: &str) -> World {
        let world = World::new();
        for name in ["api.py", "db.py", "ui.py", "notes.md"] {
            world.write(name, "# code\n");
        }
        world.write(".claude/cpw.json", &config(debounce).to_string());
        cpw(&world, &["allow", "--yes"]);
        world
    }

    /// A session of the project.
    struct Session<'w> {
        world: &'w World,
        id: &'static str,
        env: Vec<(&'static str, String)>,
    }

    impl<'w> Session<'w> {
        /// One that has submitted a prompt, which starts nothing.
        fn new(world: &'w World, id: &'static str) -> Session<'w> {
            let session = Session { world, id, env: Vec::new() };
            session.prompt("p1");
            session
        }

        fn start(&self, hook: &str, event: &str, more: &Value) -> Child {
            let mut payload = json!({
                "session_id": self.id,
                "cwd": self.world.project(),
                "prompt_id": "p1",
                "hook_event_name": event,
            });
            payload.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
            let mut command: Command = self.world.cpw(&[hook, "--batched"]);
            command.env("CLAUDE_CODE_SESSION_ID", self.id).env("CLAUDE_PROJECT_DIR", self.world.project());
            command.envs(self.env.iter().map(|(name, value)| (name, value)));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("cpw starts");
            let mut pipe = child.stdin.take().expect("a pipe");
            // It may leave without having read it.
            drop(writeln!(pipe, "{payload}"));
            child
        }

        fn prompt(&self, id: &str) {
            let more = json!({"prompt": "What is this about?", "prompt_id": id});
            // It may tell the user that rules await an approval.
            let out = self.start("user-prompt-submit", "UserPromptSubmit", &more).wait_with_output();
            assert!(out.is_ok_and(|out| out.status.success()));
        }

        fn begin_edit(&self, file: &str) -> Child {
            let input = json!({"file_path": self.world.project().join(file), "old_string": "a", "new_string": "b"});
            let more = json!({"tool_name": "Edit", "tool_input": input, "tool_use_id": "toolu_1"});
            self.start("post-tool-use", "PostToolUse", &more)
        }

        fn edit(&self, file: &str) {
            end(self.begin_edit(file));
        }
    }

    /// Such a hook says nothing.
    fn end(child: Child) {
        let out = child.wait_with_output().expect("it is our child");
        assert!(out.status.success() && out.stdout.is_empty() && out.stderr.is_empty(), "{out:?}");
    }

    fn events(world: &World) -> Vec<Vec<Value>> {
        let folder = world.project().join(".claude/runs");
        let mut runs: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        runs.retain(|r| r.is_dir());
        runs.sort();
        let log = |run: &PathBuf| fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        let whole = |log: String| log.rfind('\n').map_or(String::new(), |end| log[..end].to_owned());
        let read = |log: String| log.lines().map(|l| serde_json::from_str(l).expect("an event")).collect();
        runs.iter().map(|run| read(whole(log(run)))).filter(|events: &Vec<Value>| !events.is_empty()).collect()
    }

    /// The tasks of each run that have begun, in the order of the alphabet.
    fn tasks(world: &World) -> Vec<Vec<String>> {
        let of = |events: &Vec<Value>| {
            let begun = events.iter().filter(|e| e["t"] == "started").filter_map(|e| e["task"].as_str());
            let mut tasks: Vec<String> = begun.map(str::to_owned).collect();
            tasks.sort();
            tasks
        };
        events(world).iter().map(of).collect()
    }

    fn wait_until(world: &World, what: &str, mut happened: impl FnMut() -> bool) {
        let notes = || fs::read_to_string(world.state().join("hooks.jsonl")).unwrap_or_default();
        wait_for(LIMIT, || happened().then_some(())).unwrap_or_else(|| {
            panic!("did not happen: {what}\n{:?}\n{:?}\n{}", tasks(world), world.processes(), notes())
        });
    }

    /// Waits until a run has begun these tasks.
    fn wait_for_tasks(world: &World, run: usize, want: &[&str]) {
        wait_until(world, &format!("tasks {want:?}"), || tasks(world).get(run).is_some_and(|tasks| tasks == want));
    }

    fn starters(world: &World) -> Vec<Pid> {
        let all = world.processes().into_iter();
        all.filter(|(_, line)| line.contains("--after-tool")).map(|(pid, _)| pid).collect()
    }

    fn go(world: &World) {
        fs::write(world.home().join("go"), "").expect("a file in the home");
    }

    /// Lets everything end, and waits until nobody is left who could start something.
    fn settle(world: &World) {
        go(world);
        // Who is just being started is no process of this world for a moment; its run has not ended then.
        let over = |log: &Vec<Value>| log.iter().any(|e| e["t"] == "run_ended");
        wait_until(world, "the end of everything", || world.processes().is_empty() && events(world).iter().all(over));
    }

    #[test]
    fn a_burst_of_edits_is_one_run_of_all_their_files() {
        let world = project("5s");
        let session = Session::new(&world, "s-1");
        // Both of a doubled hook, a subagent's, one that is not meant, and one of a file that is not there.
        let files = ["api.py", "api.py", "db.py", "notes.md", "gone.py"];
        let children: Vec<Child> = files.iter().map(|file| session.begin_edit(file)).collect();
        let input = json!({"file_path": world.project().join("ui.py"), "content": ""});
        let more = json!({"tool_name": "Write", "tool_input": input, "tool_use_id": "toolu_2", "agent_id": "a1"});
        end(session.start("post-tool-use", "PostToolUse", &more));
        let input = json!({"file_path": world.project().join("notes.py")});
        let more = json!({"tool_name": "Read", "tool_input": input, "tool_use_id": "toolu_3"});
        end(session.start("post-tool-use", "PostToolUse", &more));
        children.into_iter().for_each(end);
        wait_for_tasks(&world, 0, &["api", "db", "ui"]);
        settle(&world);
        assert_eq!(tasks(&world), [["api", "db", "ui"]]);
        let log = &events(&world)[0];
        assert_eq!((&log[0]["payload"]["session"], &log[0]["payload"]["rule"]), (&json!("s-1"), &json!("check")));
    }

    #[test]
    fn edits_during_a_run_are_exactly_one_run_afterwards() {
        let world = project("0s");
        let session = Session::new(&world, "s-1");
        session.edit("api.py");
        wait_for_tasks(&world, 0, &["api"]);
        for file in ["db.py", "ui.py", "db.py"] {
            session.edit(file);
        }
        assert_eq!(tasks(&world), [["api"]]);
        // The first one may be on its way out.
        wait_until(&world, "one starter", || starters(&world).len() == 1);
        settle(&world);
        assert_eq!(tasks(&world), [vec!["api"], vec!["db", "ui"]]);
        let ends = events(&world).iter().flatten().filter(|e| e["t"] == "run_ended").count();
        assert_eq!(ends, 2);
    }

    #[test]
    fn what_a_killed_starter_has_left_is_started_after_the_next_call() {
        let world = project("10m");
        let session = Session::new(&world, "s-1");
        session.edit("api.py");
        wait_until(&world, "a starter", || starters(&world).len() == 1);
        kill(starters(&world)[0], Signal::SIGKILL).expect("it is ours");
        wait_until(&world, "its death", || starters(&world).is_empty());
        assert!(events(&world).is_empty());
        // What counts is that it is not lost, not that it takes ten minutes.
        world.write(".claude/cpw.json", &config("0s").to_string());
        cpw(&world, &["allow", "--yes"]);
        session.edit("db.py");
        wait_for_tasks(&world, 0, &["api", "db"]);
        settle(&world);
        assert_eq!(tasks(&world).len(), 1);
    }

    #[test]
    fn only_approved_bytes_start_and_a_rule_that_has_gone_is_forgotten() {
        let world = project("0s");
        let session = Session::new(&world, "s-1");
        world.write(".claude/cpw.json", &format!("{} ", config("0s")));
        session.edit("api.py");
        wait_until(&world, "the starter has looked", || starters(&world).is_empty());
        assert!(events(&world).is_empty());
        // From the next prompt on, nobody even looks.
        session.prompt("p2");
        let record = || fs::read_to_string(world.state().join("sessions/s-1")).expect("a record");
        assert_eq!(record().lines().filter(|l| l.contains("tool_rules")).count(), 2, "{}", record());
        session.prompt("p3");
        assert_eq!(record().lines().filter(|l| l.contains("tool_rules")).count(), 2, "{}", record());
        cpw(&world, &["allow", "--yes"]);
        session.edit("db.py");
        settle(&world);
        assert!(events(&world).is_empty());
        // And what was edited meanwhile starts nothing later.
        session.prompt("p4");
        session.edit("ui.py");
        wait_for_tasks(&world, 0, &["ui"]);
        settle(&world);
        assert_eq!(tasks(&world), [["ui"]]);
    }

    #[test]
    fn a_check_that_never_passes_keeps_the_session_from_stopping_three_times() {
        let world = project("1ms");
        go(&world);
        let session = Session::new(&world, "s-1");
        let mut told = Vec::new();
        for n in 1..=5 {
            session.edit("api.py");
            wait_until(&world, "a run after the edit", || {
                let runs = events(&world);
                runs.iter().filter(|run| run.iter().any(|e| e["t"] == "run_ended")).count() == n
            });
            let stop = session.start("stop", "Stop", &json!({"stop_hook_active": n > 1}));
            let out = stop.wait_with_output().expect("it is our child");
            assert!(out.status.success(), "{out:?}");
            told.push(String::from_utf8_lossy(&out.stdout).contains("All workers"));
        }
        assert_eq!(told, [true, true, true, false, false]);
        settle(&world);
    }

    #[test]
    fn sessions_have_runs_of_their_own() {
        let world = project("0s");
        let (one, two) = (Session::new(&world, "s-1"), Session::new(&world, "s-2"));
        one.edit("api.py");
        two.edit("db.py");
        wait_until(&world, "two runs", || tasks(&world).iter().flatten().count() == 2);
        settle(&world);
        let mut of: Vec<(String, String)> = events(&world)
            .iter()
            .map(|log| {
                (
                    log[0]["payload"]["session"].to_string(),
                    log.iter().find(|e| e["t"] == "started").expect("a task")["task"].to_string(),
                )
            })
            .collect();
        of.sort();
        let pair = |a: &str, b: &str| (format!("\"{a}\""), format!("\"{b}\""));
        assert_eq!(of, [pair("s-1", "api"), pair("s-2", "db")]);
    }

    #[test]
    fn nothing_starts_below_a_worker_nor_after_the_client_nor_where_it_is_off() {
        let world = project("0s");
        let mut below = Session::new(&world, "s-1");
        below.env.push(("CPW_DEPTH", "1".into()));
        below.edit("api.py");
        let mut orphan = Session::new(&world, "s-2");
        // As a client would be that has ended: the calls of a burst are quiet only later.
        world.write(".claude/cpw.json", &config("10m").to_string());
        cpw(&world, &["allow", "--yes"]);
        orphan.prompt("p2");
        let mut client = world.command("/bin/sleep").arg("600").spawn().expect("a process");
        orphan.env.push(("CLAUDE_PID", client.id().to_string()));
        orphan.edit("api.py");
        client.kill().and_then(|()| client.wait()).expect("it is our child");
        let off = Session::new(&world, "s-3");
        cpw(&world, &["off", "--session", "s-3"]);
        off.edit("api.py");
        settle(&world);
        assert!(events(&world).is_empty(), "{:?}", tasks(&world));
    }

    /// Waits for calls of the session, one after the other, and says how each wait has ended.
    const FOLLOW: &str = r#"
        for call in 'Read(data1.csv)' 'Edit(api.py)' 'Read(*/api.py)' 'bash(ls)'; do
            cpw wait --conductor "$call" --timeout 5m >>"$HOME/said" 2>&1; echo "$? $call" >>"$HOME/codes"
        done
        cpw wait --conductor 'Read(never)' --timeout 100ms 2>>"$HOME/said"; echo "$? never" >>"$HOME/codes"
        until [ -e "$HOME/go" ]; do sleep 0.02; done"#;

    #[test]
    fn a_task_follows_what_the_session_does() {
        let world = World::new();
        for name in ["api.py", "data1.csv", "notes.md"] {
            world.write(name, "text\n");
        }
        let config = json!({
            "version": 1,
            "conductor": {"on_claimed": "note", "wait": "10ms"},
            "rules": [{
                "name": "follow",
                "when": {"prompt": "(?i)\\bfollow\\b"},
                "tasks": [{"id": "follow", "shell": FOLLOW, "claims": ["api.py"]}],
                "merge": [{"tool": "Write", "match": {"file_path": "*report.md"}, "needs": ["follow"]}],
            }],
        });
        world.write(".claude/cpw.json", &config.to_string());
        cpw(&world, &["allow", "--yes"]);
        let session = Session { world: &world, id: "s-1", env: Vec::new() };
        let more = json!({"prompt": "Please follow what I do."});
        drop(session.start("user-prompt-submit", "UserPromptSubmit", &more).wait_with_output().expect("it ends"));
        let call = |hook: &str, tool: &str, file: &str, agent: &Value| {
            let event = if hook == "pre-tool-use" { "PreToolUse" } else { "PostToolUse" };
            let input = json!({"file_path": world.project().join(file), "content": "x"});
            let more = json!({"tool_name": tool, "tool_input": input, "tool_use_id": "toolu_1", "agent_id": agent});
            let out = session.start(hook, event, &more).wait_with_output().expect("it is our child");
            assert!(out.status.success(), "{out:?}");
        };
        let observed = || {
            let all = events(&world).into_iter().flatten().filter(|e| e["t"] == "observed");
            let short = |e: Value| {
                let (p, name) = (&e["payload"], world.project().to_string_lossy().into_owned() + "/");
                let awaited = p["awaited"].as_array().map_or(0, Vec::len);
                let text_of = |key: &str| p[key].as_str().expect("a text").replace(&name, "");
                format!("{} {} {} {awaited}", text_of("phase"), text_of("tool"), text_of("target"))
            };
            all.map(short).collect::<Vec<_>>()
        };
        let codes = || fs::read_to_string(world.home().join("codes")).unwrap_or_default();
        let awaits = |n: usize| events(&world).iter().flatten().filter(|e| e["t"] == "awaited").count() >= n;
        wait_until(&world, "the first wait", || awaits(1));
        // What nobody waits for, claims or merges leaves no trace.
        call("pre-tool-use", "Read", "notes.md", &Value::Null);
        call("post-tool-use", "Read", "notes.md", &Value::Null);
        call("pre-tool-use", "Edit", "data1.csv", &Value::Null);
        assert!(observed().is_empty() && codes().is_empty(), "{:?}", observed());
        call("pre-tool-use", "Read", "data1.csv", &Value::Null);
        wait_until(&world, "the end of the first wait", || codes() == "0 Read(data1.csv)\n");
        // A wait that is over is.
        wait_until(&world, "the second wait", || awaits(3));
        call("post-tool-use", "Read", "data1.csv", &Value::Null);
        call("pre-tool-use", "Read", "api.py", &json!("a1"));
        call("post-tool-use", "Read", "api.py", &json!("a1"));
        call("pre-tool-use", "Write", "report.md", &Value::Null);
        assert_eq!(codes(), "0 Read(data1.csv)\n");
        call("post-tool-use", "Edit", "api.py", &Value::Null);
        // What was done before counts, and what is no call is refused.
        let all = "0 Read(data1.csv)\n0 Edit(api.py)\n0 Read(*/api.py)\n3 bash(ls)\n4 never\n";
        wait_until(&world, "the end of all waits", || codes() == all);
        let want = [
            "before Read data1.csv 1",
            "before Read api.py 0",
            "after Read api.py 0",
            "before Write report.md 0",
            "after Edit api.py 1",
        ];
        assert_eq!(observed(), want);
        let said = fs::read_to_string(world.home().join("said")).expect("what the waits have said");
        assert!(said.starts_with("the session is about to make the call Read(") && said.contains("mcp__"), "{said}");
        // Who waits outside of a task learns that it cannot come any more.
        let mut outside = world.cpw(&["wait", "--conductor", "Bash(ls*)"]).spawn().expect("cpw starts");
        wait_until(&world, "a wait outside", || awaits(9));
        go(&world);
        let code = wait_for(LIMIT, || outside.try_wait().expect("it is our child")).and_then(|s| s.code());
        assert_eq!(code, Some(1));
        settle(&world);
    }

    #[test]
    fn the_model_is_shown_what_a_check_after_its_edit_has_found() {
        on_each_client(|installed| {
            // Longer than any turn: when the model wants to stop, its edits are over.
            let world = project("10m");
            cpw(&world, &["init"]);
            cpw(&world, &["allow", "--yes"]);
            let world = Arc::new(world);
            let write = json!({"file_path": world.project().join("new.py"), "content": "print(1)\n"});
            let second = Arc::clone(&world);
            let api = Api::start(
                Script::new()
                    .then(Turn::tool("Write", write))
                    .ask(move |request: &Request| {
                        assert_eq!(request.count("cpw has started"), 0, "{:?}", request.news());
                        // Stop holds before it ends.
                        let world = Arc::clone(&second);
                        std::thread::spawn(move || {
                            wait_until(&world, "a hold", || crate::hold::is_held(&world.project()));
                            go(&world);
                        });
                        Turn::text("It is written.")
                    })
                    .ask(|request: &Request| {
                        assert_eq!(request.count("done: new.py: \"Checked new.py\""), 1, "{:?}", request.news());
                        assert_eq!(request.count("All workers of rule check are finished: 1 done."), 1);
                        Turn::text("It is written and checked.")
                    }),
            );
            let printed = Client::new(installed, &world, &api).print("Write new.py, please.");
            assert_eq!(printed.text(), "It is written and checked.");
            assert_eq!(api.requests().len(), 3);
            assert_eq!(tasks(&world), [["new"]]);
        });
    }
}
