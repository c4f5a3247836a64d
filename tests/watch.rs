//! The watcher, and who a session is: an idle session is woken by news, once, by one process that leaves with the client or
//! the session; `/clear` hands over what goes on; `cpw adopt` takes a run. The hooks as the client calls them, and then the
//! client itself in a terminal.

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
    use std::process::{Child, Output, Stdio};
    use std::sync::Arc;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::support::api::{Api, Request, Script, Turn, tool_use_id};
    use crate::support::client::{Client, LIMIT};
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, wait_for};

    const A: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";
    const B: &str = "5f3a8a52-9a1c-4c55-b7a4-1c6a3e0f9b21";
    const PROMPT: &str = "Analyze api.py and db.py";

    /// Says what it is about, and waits until it may end.
    const TASK: &str = r#"echo "Findings about $CPW_ITEM"; until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.05; done"#;

    fn project(conductor: &Value) -> World {
        let world = World::new();
        for name in ["api.py", "db.py"] {
            world.write(name, "# code\n");
        }
        let rule = |name: &str, verb: &str| {
            json!({
                "name": name,
                "when": {"prompt": format!("(?i)\\b{verb}\\b"), "files": {"min": 1}},
                "for_each": "files",
                "tasks": [{"id": format!("{name}-{{{{item.stem}}}}"), "shell": TASK}],
            })
        };
        let config = json!({
            "version": 1,
            "conductor": conductor,
            "rules": [rule("analyze", "analy[sz]e"), rule("lint", "lint")],
        });
        world.write(".claude/cpw.json", &config.to_string());
        for command in [&["init"][..], &["allow", "--yes"]] {
            let out = world.cpw(command).output().expect("cpw runs");
            assert!(out.status.success(), "cpw {command:?}: {}", String::from_utf8_lossy(&out.stderr));
        }
        world
    }

    /// A process in the place of the client. Killed with the test.
    struct Stand(Child);

    impl Stand {
        fn new(world: &World) -> Stand {
            Stand(world.command("sleep").arg("900").spawn().expect("sleep starts"))
        }

        fn kill(&mut self) {
            self.0.kill().and_then(|()| self.0.wait().map(drop)).expect("our own child");
        }
    }

    impl Drop for Stand {
        fn drop(&mut self) {
            self.kill();
        }
    }

    /// A session in a client.
    struct Session<'w> {
        world: &'w World,
        id: &'static str,
        client: u32,
        entry: &'static str,
    }

    impl<'w> Session<'w> {
        fn new(world: &'w World, id: &'static str, client: &Stand) -> Session<'w> {
            Session { world, id, client: client.0.id(), entry: "cli" }
        }

        fn start(&self, hook: &str, more: &Value) -> Child {
            let event = match hook {
                "user-prompt-submit" => "UserPromptSubmit",
                "post-tool-batch" => "PostToolBatch",
                "session-start" => "SessionStart",
                "session-end" => "SessionEnd",
                _ => "Stop",
            };
            let mut payload = json!({
                "session_id": self.id, "cwd": self.world.project(), "prompt_id": "p1", "hook_event_name": event,
            });
            payload.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            let mut command = self.world.cpw(&[hook]);
            command.env("CLAUDE_CODE_SESSION_ID", self.id).env("CLAUDE_PROJECT_DIR", self.world.project());
            command.env("CLAUDE_PID", self.client.to_string()).env("CLAUDE_CODE_ENTRYPOINT", self.entry);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("cpw starts");
            let mut stdin = child.stdin.take().expect("a pipe");
            // One that has nothing to do leaves without reading.
            drop(stdin.write_all(format!("{payload}\n").as_bytes()));
            child
        }

        fn call(&self, hook: &str, more: &Value) -> Value {
            let out = end(self.start(hook, more), hook);
            assert_eq!((out.status.code(), text(&out.stderr).as_str()), (Some(0), ""), "{hook}");
            serde_json::from_slice(&out.stdout).unwrap_or_default()
        }

        /// What the model is handed.
        fn context(&self, hook: &str, more: &Value) -> String {
            let said = self.call(hook, more);
            said["hookSpecificOutput"]["additionalContext"].as_str().unwrap_or_default().to_owned()
        }

        /// What the user is told.
        fn line(&self, hook: &str, more: &Value) -> String {
            self.call(hook, more)["systemMessage"].as_str().unwrap_or_default().to_owned()
        }

        fn prompt(&self, id: &str, prompt: &str) -> String {
            self.context("user-prompt-submit", &json!({"prompt": prompt, "prompt_id": id}))
        }

        fn begin(&self) {
            let said = self.prompt("p1", PROMPT);
            assert!(said.starts_with("cpw has started 2 tasks"), "{said}");
        }

        /// A watcher that has hung its bell.
        fn watch(&self) -> Watcher {
            let bells = || bells(self.world, ".news");
            let before = bells();
            let child = self.start("watch", &json!({}));
            wait_for(LIMIT, || (bells() > before).then_some(())).expect("the watcher hangs its bell");
            Watcher(Some(child))
        }

        fn adopt(&self, args: &[&str]) -> Output {
            let mut command = self.world.cpw(&["adopt"]);
            command.args(args).env("CLAUDE_CODE_SESSION_ID", self.id).env("CLAUDE_PID", self.client.to_string());
            command.output().expect("cpw runs")
        }
    }

    /// A watcher. Killed with the test.
    struct Watcher(Option<Child>);

    impl Watcher {
        fn runs(&mut self) -> bool {
            self.0.as_mut().expect("not ended").try_wait().expect("our own child").is_none()
        }

        /// Its exit code, and what it said, once it has ended by itself.
        fn end(mut self) -> (Option<i32>, String) {
            let out = end(self.0.take().expect("not ended"), "watch");
            assert_eq!(text(&out.stdout), "");
            (out.status.code(), text(&out.stderr))
        }
    }

    impl Drop for Watcher {
        fn drop(&mut self) {
            if let Some(mut child) = self.0.take() {
                child.kill().and_then(|()| child.wait().map(drop)).expect("our own child");
            }
        }
    }

    fn end(mut child: Child, what: &str) -> Output {
        if wait_for(LIMIT, || child.try_wait().expect("our own child")).is_none() {
            child.kill().and_then(|()| child.wait().map(drop)).expect("our own child");
            panic!("{what} does not end");
        }
        child.wait_with_output().expect("it has ended")
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    fn runs(world: &World) -> Vec<PathBuf> {
        let all = fs::read_dir(world.project().join(".claude/runs")).into_iter().flatten().flatten();
        let mut runs: Vec<PathBuf> = all.map(|e| e.path()).filter(|p| p.is_dir()).collect();
        runs.sort();
        runs
    }

    fn run_id(world: &World) -> String {
        let runs = runs(world);
        runs[0].file_name().and_then(|n| n.to_str()).expect("a name").to_owned()
    }

    /// How many bells of this concern hang.
    fn bells(world: &World, concern: &str) -> usize {
        let folders = runs(world).into_iter().filter_map(|run| fs::read_dir(run.join("bells")).ok());
        let names = folders.flatten().flatten().filter_map(|e| e.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.') && name.ends_with(concern)).count()
    }

    fn events(world: &World) -> Vec<Value> {
        let logs = runs(world).into_iter().map(|run| fs::read_to_string(run.join("events.jsonl")).unwrap_or_default());
        let whole = |log: String| log.rfind('\n').map_or(String::new(), |end| log[..end].to_owned());
        let lines = logs.flat_map(|log| whole(log).lines().map(str::to_owned).collect::<Vec<_>>());
        lines.map(|line| serde_json::from_str(&line).expect("an event")).collect()
    }

    fn count(world: &World, wanted: impl Fn(&Value) -> bool) -> usize {
        events(world).iter().filter(|e| wanted(e)).count()
    }

    fn wakes(world: &World) -> usize {
        count(world, |e| e["t"] == "decision" && e["payload"]["answer"] == "wake")
    }

    fn finish(world: &World, task: &str) {
        fs::write(world.home().join(format!("go-{task}")), "").expect("a file in the home");
        let done = |e: &Value| e["t"] == "done" && e["task"] == task;
        wait_for(LIMIT, || events(world).iter().any(done).then_some(()))
            .unwrap_or_else(|| panic!("{task} does not end"));
    }

    fn finish_all(world: &World) {
        for task in ["analyze-api", "analyze-db"] {
            finish(world, task);
        }
        let ended = |e: &Value| e["t"] == "run_ended";
        wait_for(LIMIT, || events(world).iter().any(ended).then_some(())).expect("the run ends");
    }

    /// Everything that was recorded as told, each event once.
    fn assert_told_once(world: &World) {
        for run in runs(world) {
            let log = fs::read_to_string(run.join("events.jsonl")).expect("a log");
            let events = log.lines().map(|l| serde_json::from_str::<Value>(l).expect("an event"));
            let told =
                events.filter(|e| e["t"] == "delivered").filter_map(|e| e["payload"]["news"].as_array().cloned());
            let mut told: Vec<u64> = told.flatten().filter_map(|n| n.as_u64()).collect();
            let all = told.len();
            told.sort_unstable();
            told.dedup();
            assert_eq!(told.len(), all, "told twice: {log}");
        }
    }

    #[test]
    fn news_wake_an_idle_session_once_each() {
        let world = project(&json!({"gate": "off"}));
        let client = Stand::new(&world);
        let session = Session::new(&world, A, &client);
        session.begin();
        let watcher = session.watch();
        assert_eq!(session.call("stop", &json!({})), Value::Null);
        finish(&world, "analyze-api");
        let (code, said) = watcher.end();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("done: api.py: \"Findings about api.py\"") && !said.contains("db.py: \""), "{said}");
        // The decision stands in the log before what was told.
        let events = events(&world);
        let at = |t: &str| events.iter().position(|e| e["t"] == t && e["payload"]["hook"] == "watch").expect(t);
        assert!(at("decision") < at("delivered"), "{events:?}");
        // The turn that follows is no reason for another one: its prompt starts nothing, and brings nothing.
        let notification =
            "<task-notification>\n<summary>cpw: analyze api.py and db.py</summary>\n</task-notification>\n";
        assert_eq!(session.prompt("p2", notification), "");
        let watcher = session.watch();
        assert_eq!(session.call("stop", &json!({})), Value::Null);
        finish_all(&world);
        let (code, said) = watcher.end();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("db.py") && !said.contains("api.py"), "{said}");
        assert!(said.contains("All workers of rule analyze are finished: 2 done."), "{said}");
        assert_eq!(count(&world, |e| e["t"] == "run_started"), 1);
        assert_told_once(&world);
        // Nothing is open any more.
        assert_eq!(Watcher(Some(session.start("watch", &json!({})))).end(), (Some(0), String::new()));
    }

    #[test]
    fn one_watches_and_leaves_with_the_client() {
        let world = project(&json!({"gate": "off"}));
        let mut client = Stand::new(&world);
        let session = Session::new(&world, A, &client);
        session.begin();
        assert_eq!(session.call("stop", &json!({})), Value::Null);
        let mut all: Vec<Watcher> = (0..20).map(|_| Watcher(Some(session.start("watch", &json!({}))))).collect();
        wait_for(LIMIT, || {
            all.retain_mut(Watcher::runs);
            (all.len() == 1 && bells(&world, ".news") == 1).then_some(())
        })
        .unwrap_or_else(|| panic!("{} watch", all.len()));
        client.kill();
        assert_eq!(all.remove(0).end(), (Some(0), String::new()));
        assert_eq!(bells(&world, ".news"), 0);
        finish_all(&world);
        assert_eq!(wakes(&world), 0);
    }

    #[test]
    fn who_is_resumed_elsewhere_gets_a_watcher_of_its_own() {
        let world = project(&json!({"gate": "off"}));
        let (before, after) = (Stand::new(&world), Stand::new(&world));
        let first = Session::new(&world, A, &before);
        first.begin();
        let old = first.watch();
        let second = Session::new(&world, A, &after);
        assert_eq!(second.call("session-start", &json!({"source": "resume"})), Value::Null);
        let new = Watcher(Some(second.start("watch", &json!({}))));
        assert_eq!(old.end(), (Some(0), String::new()));
        assert_eq!(second.call("stop", &json!({})), Value::Null);
        finish(&world, "analyze-api");
        assert_eq!(new.end().0, Some(2));
        finish_all(&world);
    }

    #[test]
    fn a_turn_that_goes_on_a_stop_that_holds_and_one_that_was_interrupted_are_left_alone() {
        let world = project(&json!({"gate": "hold"}));
        let client = Stand::new(&world);
        let session = Session::new(&world, A, &client);
        session.begin();
        let mut watcher = session.watch();
        // The turn goes on: the next step brings it.
        finish(&world, "analyze-api");
        assert!(session.context("post-tool-batch", &json!({})).contains("done: api.py"));
        // Esc while Stop holds.
        let mut stop = session.start("stop", &json!({}));
        wait_for(LIMIT, || crate::hold::is_held(&world.project()).then_some(())).expect("Stop holds");
        kill(Pid::from_raw(stop.id().cast_signed()), Signal::SIGTERM).expect("our own child");
        stop.wait().expect("our own child");
        finish_all(&world);
        assert!(watcher.runs());
        assert!(session.prompt("p2", "What now?").contains("done: db.py"), "the watcher took it");
        assert_eq!(watcher.end(), (Some(0), String::new()));
        assert_eq!(wakes(&world), 0);
        assert_told_once(&world);
    }

    #[test]
    fn a_stop_that_holds_hands_over_and_the_watcher_beside_it_stays_silent() {
        let world = project(&json!({"gate": "hold"}));
        let client = Stand::new(&world);
        let session = Session::new(&world, A, &client);
        session.begin();
        let watcher = session.watch();
        let stop = session.start("stop", &json!({}));
        wait_for(LIMIT, || crate::hold::is_held(&world.project()).then_some(())).expect("Stop holds");
        // That of a second installation: silence, at once.
        assert_eq!(session.call("stop", &json!({})), Value::Null);
        finish_all(&world);
        let said = text(&end(stop, "stop").stdout);
        assert!(said.contains("done: api.py") && said.contains("All workers"), "{said}");
        assert_eq!(watcher.end(), (Some(0), String::new()));
        assert_eq!(wakes(&world), 0);
        assert_told_once(&world);
    }

    #[test]
    fn a_spent_hold_leaves_the_rest_to_the_watcher() {
        let world = project(&json!({"gate": "hold", "hold": "1s"}));
        let client = Stand::new(&world);
        let session = Session::new(&world, A, &client);
        session.begin();
        let watcher = session.watch();
        assert!(session.line("stop", &json!({})).contains("still processing"));
        finish(&world, "analyze-api");
        let (code, said) = watcher.end();
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains("done: api.py"), "{said}");
        finish_all(&world);
    }

    #[test]
    fn print_mode_and_a_run_that_may_not_wake_have_no_watcher() {
        for (conductor, entry) in [(json!({"gate": "off"}), "sdk-cli"), (json!({"gate": "off", "wake": false}), "cli")]
        {
            let world = project(&conductor);
            let client = Stand::new(&world);
            let session = Session { entry, ..Session::new(&world, A, &client) };
            session.begin();
            assert_eq!(session.call("stop", &json!({})), Value::Null);
            let watcher = Watcher(Some(session.start("watch", &json!({}))));
            assert_eq!(watcher.end(), (Some(0), String::new()), "{conductor} {entry}");
            finish_all(&world);
        }
    }

    #[test]
    fn two_sessions_are_woken_by_their_own_runs() {
        let world = project(&json!({"gate": "off"}));
        let (one, other) = (Stand::new(&world), Stand::new(&world));
        let (a, b) = (Session::new(&world, A, &one), Session::new(&world, B, &other));
        a.begin();
        assert!(b.prompt("p1", "Lint api.py").starts_with("cpw has started 1 task"));
        let (watch_a, mut watch_b) = (a.watch(), b.watch());
        assert_eq!((a.call("stop", &json!({})), b.call("stop", &json!({}))), (Value::Null, Value::Null));
        finish_all(&world);
        assert!(watch_a.end().1.contains("Findings about"));
        assert!(watch_b.runs(), "woken by the other's run");
        finish(&world, "lint-api");
        let (code, said) = watch_b.end();
        assert_eq!(code, Some(2));
        assert!(!said.contains("db.py"), "{said}");
    }

    #[test]
    fn behind_clear_the_next_session_is_told_once_and_may_adopt() {
        let world = project(&json!({"gate": "off"}));
        let (client, other) = (Stand::new(&world), Stand::new(&world));
        let (before, after) = (Session::new(&world, A, &client), Session::new(&world, B, &client));
        before.begin();
        let watcher = before.watch();
        assert_eq!(before.call("session-end", &json!({"reason": "clear"})), Value::Null);
        assert_eq!(watcher.end(), (Some(0), String::new()));
        // Another client's session is none behind this one.
        let cleared = json!({"source": "clear"});
        assert_eq!(Session::new(&world, "elsewhere", &other).call("session-start", &cleared), Value::Null);
        let said = after.context("session-start", &cleared);
        assert!(said.contains("goes on although") && said.contains(".claude/runs/"), "{said}");
        assert_eq!(after.call("session-start", &cleared), Value::Null, "told twice");
        // Not held, and not told of what comes.
        finish(&world, "analyze-api");
        for hook in ["stop", "post-tool-batch"] {
            assert_eq!(after.call(hook, &json!({})), Value::Null, "{hook}");
        }
        let run = run_id(&world);
        let record = world.state().join("sessions").join(A);
        let before_it = fs::read(&record).expect("the old session's record");
        let out = after.adopt(&[&run]);
        assert!(out.status.success(), "{}", text(&out.stderr));
        // As if it had been killed before the old session let go: the log tells whose run it is.
        fs::write(&record, before_it).expect("the record is written");
        assert!(after.context("post-tool-batch", &json!({})).contains("done: api.py"));
        finish_all(&world);
        assert_eq!(before.call("post-tool-batch", &json!({})), Value::Null, "the old one hears of it");
        assert!(after.context("post-tool-batch", &json!({})).contains("done: db.py"));
        let adopted = events(&world).into_iter().find(|e| e["t"] == "adopted").expect("it is in the log");
        assert_eq!((&adopted["payload"]["session"], &adopted["payload"]["from"]), (&json!(B), &json!(A)));
        assert_told_once(&world);
    }

    #[test]
    fn a_run_whose_client_has_gone_is_named_once_to_a_person_and_can_be_taken() {
        let world = project(&json!({"gate": "off"}));
        let (mut client, other) = (Stand::new(&world), Stand::new(&world));
        let owner = Session::new(&world, A, &client);
        owner.begin();
        let heir = Session::new(&world, B, &other);
        let begun = json!({"source": "startup"});
        let run = run_id(&world);
        // While somebody sits there, it is theirs.
        assert_eq!(heir.call("session-start", &begun), Value::Null);
        let out = heir.adopt(&[&run]);
        assert_eq!(out.status.code(), Some(3), "{}", text(&out.stderr));
        assert!(
            text(&out.stderr).contains("still open") && text(&out.stderr).contains("--force"),
            "{}",
            text(&out.stderr)
        );
        client.kill();
        let printing = Session { entry: "sdk-cli", ..Session::new(&world, B, &other) };
        assert_eq!(printing.call("session-start", &begun), Value::Null, "nobody reads that");
        let line = heir.line("session-start", &begun);
        assert!(line.contains(&format!("`cpw adopt {run}`")) && !line.contains('\n'), "{line}");
        assert_eq!(heir.call("session-start", &begun), Value::Null, "told twice");
        // In a terminal the session has to be named.
        let terminal = world.cpw(&["adopt", &run]).output().expect("cpw runs");
        assert_eq!(terminal.status.code(), Some(3));
        assert!(text(&terminal.stderr).contains("--session"), "{}", text(&terminal.stderr));
        let named = world.cpw(&["adopt", &run, "--session", B]).output().expect("cpw runs");
        assert!(named.status.success(), "{}", text(&named.stderr));
        assert!(text(&heir.adopt(&[&run]).stdout).contains("already"));
        let watcher = heir.watch();
        assert_eq!(heir.call("stop", &json!({})), Value::Null);
        finish(&world, "analyze-api");
        assert_eq!(watcher.end().0, Some(2));
        finish_all(&world);
    }

    #[test]
    fn what_nobody_may_adopt_is_refused() {
        let world = project(&json!({"gate": "off"}));
        let (client, other) = (Stand::new(&world), Stand::new(&world));
        let (owner, heir) = (Session::new(&world, A, &client), Session::new(&world, B, &other));
        owner.begin();
        let run = run_id(&world);
        assert!(heir.adopt(&[&run, "--force"]).status.success());
        finish_all(&world);
        assert!(heir.context("post-tool-batch", &json!({})).contains("All workers"));
        let out = owner.adopt(&[&run]);
        assert_eq!(out.status.code(), Some(3));
        assert!(text(&out.stderr).contains("everything was told"), "{}", text(&out.stderr));
        // A copy of it is nobody's.
        let copy = runs(&world)[0].with_file_name(format!("{run}x"));
        assert!(world.command("cp").arg("-r").arg(&runs(&world)[0]).arg(&copy).status().expect("cp runs").success());
        let out = owner.adopt(&[&format!("{run}x")]);
        assert_eq!(out.status.code(), Some(3));
        assert!(text(&out.stderr).contains("not made by your cpw"), "{}", text(&out.stderr));
    }

    #[test]
    fn no_input_makes_them_fail() {
        let world = project(&json!({"gate": "off"}));
        let client = Stand::new(&world);
        let session = Session::new(&world, A, &client);
        session.begin();
        let odd =
            json!({"session_id": 1, "cwd": [], "hook_event_name": {}, "source": 7, "reason": null, "agent_id": 2});
        let inputs: Vec<Vec<u8>> = vec![
            Vec::new(),
            b"{}\n".to_vec(),
            b"[1]".to_vec(),
            b"{\"session_id\": \"".to_vec(),
            vec![b'['; 100_000],
            vec![0xff; 4096],
            odd.to_string().into_bytes(),
        ];
        for hook in ["watch", "session-start", "session-end"] {
            for (i, input) in inputs.iter().enumerate() {
                let mut command = world.cpw(&[hook, "--of-tomorrow"]);
                command.env("CLAUDE_CODE_SESSION_ID", A).env("CLAUDE_PROJECT_DIR", world.project());
                // Whoever gets so far as to watch leaves with its client.
                command.env("CLAUDE_PID", "1000000000").env("CLAUDE_CODE_ENTRYPOINT", "cli");
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                let mut child = command.spawn().expect("cpw starts");
                drop(child.stdin.take().expect("a pipe").write_all(input));
                let out = end(child, hook);
                let said = (out.status.code(), text(&out.stdout), text(&out.stderr));
                assert_eq!(said, (Some(0), String::new(), String::new()), "{hook} {i}");
            }
        }
        finish_all(&world);
    }

    /// The watchers that live, as processes.
    fn watchers(world: &World) -> usize {
        world.processes().iter().filter(|(_, line)| line.split_whitespace().nth(1) == Some("watch")).count()
    }

    /// Waits until Stop has let the session stop.
    fn wait_until_idle(world: &World) {
        let entries = || fs::read_dir(world.state().join("sessions")).into_iter().flatten().flatten();
        let says = |entry: &fs::DirEntry| {
            let is_turn = entry.file_name().to_str().is_some_and(|name| name.starts_with(".turn-"));
            is_turn && fs::read(entry.path()).is_ok_and(|mark| mark == b"i")
        };
        wait_for(LIMIT, || entries().any(|e| says(&e)).then_some(())).expect("the session stops");
    }

    #[test]
    fn the_client_takes_a_turn_when_news_come_to_an_idle_session() {
        on_each_client(|installed| {
            let world = project(&json!({"gate": "hold", "hold": "1s"}));
            let api = Api::start(
                Script::new()
                    .then(Turn::text("Under way."))
                    .ask(|request: &Request| {
                        assert_eq!(request.count("done: api.py"), 1, "{:?}", request.news());
                        Turn::text("The first one is in.")
                    })
                    .ask(|request: &Request| {
                        assert_eq!(request.count("done: api.py"), 1, "told again: {:?}", request.news());
                        assert_eq!(request.count("done: db.py"), 1, "{:?}", request.news());
                        Turn::text("Both are in.")
                    }),
            );
            let mut terminal = Client::new(installed, &world, &api).open();
            terminal.submit(PROMPT, LIMIT);
            terminal.wait_for_text("Under way.", LIMIT);
            // The hold is spent, and the session stops.
            wait_until_idle(&world);
            finish(&world, "analyze-api");
            terminal.wait_for_text("The first one is in.", LIMIT);
            wait_until_idle(&world);
            finish_all(&world);
            terminal.wait_for_text("Both are in.", LIMIT);
            assert_eq!(count(&world, |e| e["t"] == "run_started"), 1);
            assert_eq!((wakes(&world), api.requests().len()), (2, 3), "{:?}", events(&world));
            assert_told_once(&world);
            // Everything was told.
            wait_for(LIMIT, || (watchers(&world) == 0).then_some(())).expect("nobody watches any more");
        });
    }

    #[test]
    fn the_client_is_killed_or_cleared_and_nobody_watches_any_more() {
        on_each_client(|installed| {
            let world = Arc::new(project(&json!({"gate": "hold", "hold": "1s"})));
            let inner = Arc::clone(&world);
            let api = Api::start(Script::new().then(Turn::text("Under way.")));
            let mut terminal = Client::new(installed, &world, &api).mode("bypassPermissions").open();
            terminal.submit(PROMPT, LIMIT);
            terminal.wait_for_text("Under way.", LIMIT);
            wait_for(LIMIT, || (watchers(&world) == 1).then_some(())).expect("somebody watches");
            api.continue_with(
                Script::new()
                    .ask(move |request: &Request| {
                        assert_eq!(request.count("goes on although"), 1, "{:?}", request.news());
                        Turn::tool("Bash", json!({"command": format!("cpw adopt {}", run_id(&inner))}))
                    })
                    .ask(|request: &Request| {
                        let said = request.tool_result(&tool_use_id(1, 0)).expect("the command came back");
                        assert!(said.contains("from now on"), "{said}");
                        Turn::text("It is ours.")
                    }),
            );
            terminal.type_text("/clear");
            terminal.wait_until(LIMIT, |screen| screen.contains("/clear")).expect("it is shown");
            terminal.enter();
            wait_for(LIMIT, || (watchers(&world) == 0).then_some(())).expect("the old session's watcher leaves");
            terminal.submit("Is anything going on?", LIMIT);
            terminal.wait_for_text("It is ours.", LIMIT);
            wait_for(LIMIT, || (watchers(&world) == 1).then_some(())).expect("the new session has a watcher");
            terminal.process().signal(Signal::SIGKILL);
            wait_for(LIMIT, || (watchers(&world) == 0).then_some(())).expect("the watcher leaves with the client");
            finish_all(&world);
            assert_eq!(wakes(&world), 0);
        });
    }

    #[test]
    fn print_mode_ends_without_waiting_for_a_watcher() {
        on_each_client(|installed| {
            let world = project(&json!({"gate": "off"}));
            let api = Api::start(Script::new().then(Turn::text("Started.")));
            let printed = Client::new(installed, &world, &api).print(PROMPT);
            assert_eq!(printed.text(), "Started.");
            assert_eq!(api.requests().len(), 1);
            assert_eq!((watchers(&world), wakes(&world)), (0, 0));
            finish_all(&world);
        });
    }
}
