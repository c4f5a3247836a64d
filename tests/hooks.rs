//! Hooks as Claude Code calls them, without the client: the real binary, payloads on stdin, answers on stdout. Whatever
//! they are given and wherever they are called: exit code 0, in time, and either silence or an answer that the client
//! understands.

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
    use std::io::{Read as _, Write as _};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use serde_json::{Map, Value, json};

    use crate::support::world::{World, program, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";
    const PROMPT: &str = "Analyze api.py and db.py and write report.md";
    /// A busy machine may take its time; what hangs does not end at all.
    const LIMIT: Duration = Duration::from_secs(30);
    /// No hook that does not hold lasts longer, by a timer of its own of one second; a busy machine may be late.
    const LIFETIME: Duration = Duration::from_secs(10);

    const HOOKS: [(&str, &str); 5] = [
        ("user-prompt-submit", "UserPromptSubmit"),
        ("pre-tool-use", "PreToolUse"),
        ("post-tool-use", "PostToolUse"),
        ("post-tool-batch", "PostToolBatch"),
        ("stop", "Stop"),
    ];

    /// Says what it is about, waits until it may end, and fails if it shall.
    const TASK: &str = r#"echo "Findings about $CPW_ITEM"; echo x >> "$HOME/ran-$CPW_RUN-$CPW_TASK-$CPW_ATTEMPT"
        until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done; [ ! -e "$HOME/fail-$CPW_TASK" ]"#;

    fn config(conductor: &Value) -> Value {
        json!({
            "version": 1,
            "conductor": conductor,
            "rules": [{
                "name": "analyze",
                "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
                "for_each": "files",
                "tasks": [{"id": "{{item.stem}}", "shell": TASK, "claims": ["{{item}}"]}],
                "merge": [{
                    "tool": "Write",
                    "match": {"file_path": "*report.md"},
                    "needs": ["*"],
                    "set": {"content": "{{input.content}}\n{{results}}"},
                }],
            }],
        })
    }

    /// A project with two files and approved rules.
    fn project(conductor: &Value) -> World {
        let world = World::new();
        for name in ["api.py", "db.py", "other.py"] {
            world.write(name, "# code\n");
        }
        world.write(".claude/cpw.json", &config(conductor).to_string());
        allow(&world);
        world
    }

    fn allow(world: &World) {
        let out = world.cpw(&["allow", "--yes"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// What comes on stdin.
    #[derive(Clone)]
    enum Stdin {
        Closed,
        Bytes(Vec<u8>),
        /// One byte at a time.
        Slow(Vec<u8>),
        /// Bytes, and then nothing, and no end either.
        Open(Vec<u8>),
        /// Without end.
        Endless,
    }

    #[derive(Debug)]
    struct Answer {
        out: Option<Value>,
        took: Duration,
    }

    impl Answer {
        fn specific(&self, name: &str) -> Option<&Value> {
            self.out.as_ref()?.get("hookSpecificOutput")?.get(name)
        }

        fn text(&self, name: &str) -> &str {
            self.specific(name).and_then(Value::as_str).unwrap_or_default()
        }

        fn context(&self) -> &str {
            self.text("additionalContext")
        }

        fn refusal(&self) -> &str {
            let decision = self.text("permissionDecision");
            assert!(decision.is_empty() || decision == "deny", "never {decision}");
            self.text("permissionDecisionReason")
        }

        fn for_user(&self) -> &str {
            self.out.as_ref().and_then(|o| o["systemMessage"].as_str()).unwrap_or_default()
        }

        fn is_silent(&self) -> bool {
            self.out.is_none()
        }
    }

    fn command(world: &World, hook: &str) -> Command {
        let mut command = world.cpw(&[hook]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command
    }

    fn start(mut command: Command, stdin: Stdin) -> Child {
        if matches!(stdin, Stdin::Closed) {
            let mut closing = Command::new("/bin/sh");
            closing.args(["-c", "exec \"$0\" \"$@\" <&-"]).arg(command.get_program()).args(command.get_args());
            closing.env_clear().current_dir(command.get_current_dir().expect("a directory"));
            closing.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command = closing;
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cpw starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        let reading = child.id();
        // It may leave without having read all, or anything.
        std::thread::spawn(move || match stdin {
            Stdin::Closed => {}
            Stdin::Bytes(bytes) => drop(pipe.write_all(&bytes)),
            Stdin::Slow(bytes) => bytes.chunks(1).for_each(|b| drop(pipe.write_all(b).and_then(|()| pipe.flush()))),
            Stdin::Open(bytes) => {
                drop(pipe.write_all(&bytes));
                let running = || Path::new(&format!("/proc/{reading}/fd/0")).exists();
                wait_for(LIMIT, || (!running()).then_some(()));
            }
            Stdin::Endless => while pipe.write_all(&[b' '; 4096]).is_ok() {},
        });
        child
    }

    /// Waits for a hook and checks what holds for every answer.
    fn answer(mut child: Child, event: &str, what: &str) -> Answer {
        let begun = Instant::now();
        // What it says is less than a pipe holds.
        let status = wait_for(LIMIT, || child.try_wait().expect("it is our child")).unwrap_or_else(|| {
            drop(child.kill().and_then(|()| child.wait().map(drop)));
            panic!("{event}, {what}: does not end");
        });
        let took = begun.elapsed();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        child.stdout.take().expect("a pipe").read_to_end(&mut out).expect("stdout is read");
        child.stderr.take().expect("a pipe").read_to_end(&mut err).expect("stderr is read");
        assert_eq!(status.code(), Some(0), "{event}, {what}: {status}, {}", String::from_utf8_lossy(&err));
        assert!(err.is_empty(), "{event}, {what}: {}", String::from_utf8_lossy(&err));
        let out = (!out.is_empty()).then(|| {
            let value: Value = serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{event}, {what}: {e}: {out:?}"));
            assert!(value.get("decision").is_none() && value.get("continue").is_none(), "{value}");
            if let Some(specific) = value.get("hookSpecificOutput") {
                assert_eq!(specific["hookEventName"], event, "{what}");
            }
            value
        });
        Answer { out, took }
    }

    fn payload(world: &World, event: &str, more: &Value) -> Value {
        let mut all = json!({
            "session_id": SESSION,
            "transcript_path": "/nowhere/t.jsonl",
            "cwd": world.project(),
            "prompt_id": "p1",
            "permission_mode": "acceptEdits",
            "hook_event_name": event,
        });
        let fields: Map<String, Value> = more.as_object().cloned().unwrap_or_default();
        all.as_object_mut().expect("an object").extend(fields);
        all
    }

    fn begin(world: &World, hook: &str, more: &Value) -> (Child, &'static str) {
        let (name, event) = HOOKS.into_iter().find(|(name, _)| *name == hook).expect("a hook");
        let bytes = format!("{}\n", payload(world, event, more)).into_bytes();
        (start(command(world, name), Stdin::Bytes(bytes)), event)
    }

    /// Calls a hook with a sound payload.
    fn call(world: &World, hook: &str, more: &Value) -> Answer {
        let (child, event) = begin(world, hook, more);
        answer(child, event, &more.to_string())
    }

    fn prompt(world: &World, id: &str) -> Answer {
        call(world, "user-prompt-submit", &json!({"prompt": PROMPT, "prompt_id": id}))
    }

    /// Starts the run that most tests are about.
    fn begin_run(world: &World) {
        let said = prompt(world, "p1");
        assert!(said.context().starts_with("cpw has started 2 tasks beside"), "{said:?}");
    }

    fn tool(world: &World, hook: &str, name: &str, input: &Value) -> Answer {
        call(world, hook, &json!({"tool_name": name, "tool_input": input, "tool_use_id": "toolu_1"}))
    }

    /// A call of its own, as the client's id says.
    fn new_call(world: &World, name: &str, input: &Value) -> Answer {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let id = format!("toolu_new_{}", CALLS.fetch_add(1, Ordering::Relaxed));
        call(world, "pre-tool-use", &json!({"tool_name": name, "tool_input": input, "tool_use_id": id}))
    }

    fn read_api(world: &World) -> Answer {
        new_call(world, "Read", &json!({"file_path": world.project().join("api.py"), "offset": 3}))
    }

    fn report(world: &World) -> Value {
        json!({"file_path": world.project().join("report.md"), "content": "# Report"})
    }

    fn write_report(world: &World) -> Answer {
        new_call(world, "Write", &report(world))
    }

    fn runs(world: &World) -> Vec<PathBuf> {
        let folder = world.project().join(".claude/runs");
        let mut runs: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        runs.retain(|r| r.is_dir());
        runs.sort();
        runs
    }

    fn events_of(run: &Path) -> Vec<Value> {
        let log = fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(|l| serde_json::from_str(l).expect("an event")).collect()
    }

    fn events(world: &World) -> Vec<Value> {
        runs(world).iter().flat_map(|r| events_of(r)).collect()
    }

    fn count(world: &World, kind: &str) -> usize {
        events(world).iter().filter(|e| e["t"] == kind).count()
    }

    fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
        wait_for(LIMIT, || happened().then_some(())).unwrap_or_else(|| panic!("did not happen: {what}"));
    }

    fn let_end(world: &World, task: &str) {
        fs::write(world.home().join(format!("go-{task}")), "").expect("a file in the home");
    }

    fn finish(world: &World, task: &str) {
        let_end(world, task);
        wait_until(task, || {
            events(world).iter().any(|e| e["task"] == task && (e["t"] == "done" || e["t"] == "failed"))
        });
    }

    /// Lets everything end.
    fn finish_all(world: &World) {
        for task in ["api", "db"] {
            let_end(world, task);
        }
        wait_until("the end of all runs", || {
            runs(world).iter().map(|r| events_of(r)).all(|e| e.is_empty() || e.iter().any(|e| e["t"] == "run_ended"))
        });
    }

    /// Waits until a hook holds: it hangs a bell beside those of the workers.
    fn wait_for_hold(world: &World) {
        wait_until("a hold", || crate::hold::is_held(&world.project()));
    }

    fn notes(world: &World, hook: &str) -> Vec<String> {
        let log = fs::read_to_string(world.state().join("hooks.jsonl")).unwrap_or_default();
        let lines = log.lines().map(|l| serde_json::from_str::<Value>(l).expect("a line of hooks.jsonl"));
        lines.filter(|l| l["hook"] == hook).map(|l| l["error"].to_string()).collect()
    }

    #[test]
    fn p17_no_input_makes_a_hook_fail() {
        let world = project(&json!({"gate": "off"}));
        begin_run(&world);
        let wrong = |value: Value| {
            let names =
                ["session_id", "cwd", "prompt_id", "prompt", "agent_id", "tool_name", "tool_use_id", "tool_input"];
            let fields: Map<String, Value> = names.iter().map(|n| ((*n).to_owned(), value.clone())).collect();
            Value::Object(fields)
        };
        std::thread::scope(|scope| {
            for (hook, event) in HOOKS {
                let world = &world;
                scope.spawn(move || {
                    let sound = |more: &Value| format!("{}\n", payload(world, event, more)).into_bytes();
                    let fill = [b"{\"prompt\":\"".to_vec(), vec![b'x'; 9 << 20], b"\"}\n".to_vec()].concat();
                    // A hook that cannot do its work says so.
                    let swallowed = [
                        ("empty", Stdin::Bytes(Vec::new())),
                        ("closed", Stdin::Closed),
                        ("an empty object", Stdin::Bytes(b"{}\n".to_vec())),
                        ("an array", Stdin::Bytes(b"[1,2]\n".to_vec())),
                        ("a string", Stdin::Bytes(b"\"x\"".to_vec())),
                        ("no JSON", Stdin::Bytes(b"Analyze api.py\n".to_vec())),
                        ("half an object", Stdin::Bytes(b"{\"session_id\": \"".to_vec())),
                        ("9 MiB", Stdin::Bytes(fill)),
                        (
                            "garbage",
                            Stdin::Bytes((0..100_000_u32).map(|i| u8::try_from(i * 7 % 256).unwrap()).collect()),
                        ),
                        ("deep", Stdin::Bytes([b"{\"tool_input\":".to_vec(), vec![b'['; 100_000]].concat())),
                        ("without end", Stdin::Endless),
                        ("left open", Stdin::Open(b"{\"prompt\": ".to_vec())),
                    ];
                    let cases = swallowed.len();
                    for (what, stdin) in swallowed {
                        let before = notes(world, hook).len();
                        let said = answer(start(command(world, hook), stdin), event, what);
                        assert!(said.took < LIFETIME, "{event}, {what}: {:?}", said.took);
                        assert!(said.is_silent(), "{event}, {what}: {said:?}");
                        assert_eq!(notes(world, hook).len(), before + 1, "{event}, {what}: {:?}", notes(world, hook));
                    }
                    let other = json!({"prompt": "hello", "tool_name": "Bash", "tool_input": {"command": "ls"}});
                    let odd = json!({"sparkle": {"a": [1, {"b": null}]}, "prompt": "hello", "tool_name": "Bash"});
                    for (what, stdin) in [
                        ("one byte at a time", Stdin::Slow(sound(&other))),
                        ("whole and left open", Stdin::Open(sound(&other))),
                        ("unknown fields", Stdin::Bytes(sound(&odd))),
                        ("numbers", Stdin::Bytes(sound(&wrong(json!(7))))),
                        ("null", Stdin::Bytes(sound(&wrong(Value::Null)))),
                        ("arrays", Stdin::Bytes(sound(&wrong(json!([["x"]]))))),
                        ("objects", Stdin::Bytes(sound(&wrong(json!({"x": {}}))))),
                        ("texts", Stdin::Bytes(sound(&wrong(json!("../../etc/passwd\u{0}\n"))))),
                    ] {
                        let mut command = command(world, hook);
                        command.args(["--later", "-x", "\u{1F600}", "--", "--batched=no"]);
                        let said = answer(start(command, stdin), event, what);
                        assert!(said.took < LIFETIME, "{event}, {what}: {:?}", said.took);
                        assert!(said.is_silent(), "{event}, {what}: {said:?}");
                    }
                    assert!(notes(world, hook).len() >= cases);
                });
            }
        });
        assert_eq!(count(&world, "run_started"), 1);
        finish_all(&world);
    }

    /// Calls every hook with a sound payload, in surroundings that `change` makes; nothing may be said to the model.
    fn all_hooks(world: &World, what: &str, change: impl Fn(&mut Command)) -> Vec<Answer> {
        let all = HOOKS.iter().map(|(hook, event)| {
            let file = world.project().join("api.py");
            let more =
                json!({"prompt": PROMPT, "prompt_id": what, "tool_name": "Read", "tool_input": {"file_path": file}});
            let mut command = command(world, hook);
            change(&mut command);
            let bytes = format!("{}\n", payload(world, event, &more)).into_bytes();
            let said = answer(start(command, Stdin::Bytes(bytes)), event, what);
            assert!(said.took < LIFETIME, "{event}, {what}: {:?}", said.took);
            said
        });
        all.collect()
    }

    #[test]
    fn p19_no_surroundings_make_a_hook_fail() {
        let world = project(&json!({"gate": "off"}));
        let silent = |what: &str, change: &dyn Fn(&mut Command)| {
            let said = all_hooks(&world, what, change);
            assert!(said.iter().all(Answer::is_silent), "{what}: {said:?}");
            assert_eq!(runs(&world).len(), 0, "{what}");
        };
        let file = world.path("file");
        fs::write(&file, "").expect("a file");
        silent("no home", &|c| {
            c.env_remove("HOME").env_remove("CPW_STATE_DIR").env_remove("XDG_STATE_HOME");
        });
        silent("a state directory that is a file", &|c| {
            c.env("CPW_STATE_DIR", &file);
        });
        silent("a relative state directory", &|c| {
            c.env("CPW_STATE_DIR", "state");
        });
        silent("a project that has gone", &|c| {
            c.env("CLAUDE_PROJECT_DIR", world.path("gone"));
        });
        assert!(notes(&world, "user-prompt-submit").iter().any(|n| n.contains("cannot be found")));
        silent("switched off", &|c| {
            c.env("CPW_DISABLE", "1");
        });
        silent("files that may not grow", &|c| {
            let mut limited = Command::new("/bin/sh");
            limited.args(["-c", "ulimit -f 0; exec \"$0\" \"$@\""]).arg(c.get_program()).args(c.get_args());
            limited.env_clear().current_dir(world.project());
            limited.envs(c.get_envs().filter_map(|(name, value)| Some((name, value?))));
            *c = limited;
        });
        // Without a state directory nothing was approved; the user may be told.
        let said = all_hooks(&world, "no state directory", |c| {
            c.env("CPW_STATE_DIR", world.path("none"));
        });
        assert!(said[0].for_user().contains("cpw allow") && said[1..].iter().all(Answer::is_silent), "{said:?}");
        let path = world.project().join(".claude/cpw.json");
        let sound = fs::read(&path).expect("the config");
        for (what, bytes) in [
            ("changed", [sound.clone(), b" ".to_vec()].concat()),
            ("broken", b"{\"version\": 1, \"rules\": [{".to_vec()),
            ("huge", [sound.clone(), vec![b' '; 64 << 20]].concat()),
            ("empty", Vec::new()),
        ] {
            fs::write(&path, bytes).expect("the config");
            let said = all_hooks(&world, what, |_| {});
            assert!(said.iter().all(|a| a.context().is_empty()), "{what}: {said:?}");
            assert_eq!(runs(&world).len(), 0, "{what}");
        }
        fs::remove_file(&path).expect("the config");
        silent("no config", &|_| {});
        fs::create_dir(&path).expect("a folder");
        silent("a folder as config", &|_| {});
    }

    #[test]
    fn a_session_that_is_not_what_it_was_makes_no_hook_fail() {
        for what in
            ["garbage", "a folder", "huge", "exchanged", "deleted", "log damaged", "log deleted", "plan deleted"]
        {
            let world = project(&json!({"gate": "off"}));
            begin_run(&world);
            finish_all(&world);
            // The last worker saves the index when the run has ended.
            wait_until("all have left", || world.processes().is_empty());
            let record = world.state().join("sessions").join(SESSION);
            let run = runs(&world).remove(0);
            let log = run.join("events.jsonl");
            match what {
                "garbage" => fs::write(&record, b"\0\xff{}\n{\"t\":\"run\"}\nnull\n").expect("written"),
                "a folder" => fs::remove_file(&record).and_then(|()| fs::create_dir(&record)).expect("made"),
                "huge" => fs::write(&record, vec![b'\n'; 2 << 20]).expect("written"),
                "exchanged" => {
                    let kept = world.path("kept");
                    fs::rename(&run, &kept).expect("renamed");
                    let copied = Command::new("cp").arg("-a").args([&kept, &run]).status().expect("cp runs");
                    assert!(copied.success());
                }
                "deleted" => fs::remove_dir_all(&run).expect("removed"),
                "log damaged" => {
                    let text = fs::read_to_string(&log).expect("the log");
                    fs::write(&log, text.replacen("\"seq\":2,", "\"seq\":9,", 1)).expect("written");
                    fs::remove_file(run.join("state.idx")).expect("removed");
                }
                "log deleted" => fs::remove_file(&log).expect("removed"),
                _ => {
                    fs::remove_file(run.join("plan.json")).expect("removed");
                    fs::remove_file(run.join("state.idx")).expect("removed");
                }
            }
            let before = fs::read(&log).ok();
            for (hook, event) in &HOOKS[1..] {
                let said = call(&world, hook, &json!({"tool_name": "Read", "tool_input": {"file_path": "api.py"}}));
                assert!(said.is_silent() && said.took < LIFETIME, "{event}, {what}: {said:?}");
            }
            assert_eq!(fs::read(&log).ok(), before, "{what}: written to");
            if ["a folder", "huge", "log damaged"].contains(&what) {
                let log = fs::read_to_string(world.state().join("hooks.jsonl")).unwrap_or_default();
                assert!(log.lines().count() >= 4, "{what}: {log}");
            }
            // A new prompt says what it starts, whatever became of the old run.
            let said = prompt(&world, "p2");
            if !["a folder", "huge"].contains(&what) {
                assert!(said.context().contains("cpw has started"), "{what}: {said:?}");
                wait_until("the end of the new run", || {
                    runs(&world)
                        .iter()
                        .filter(|r| **r != run)
                        .all(|r| events_of(r).iter().any(|e| e["t"] == "run_ended"))
                });
            }
        }
    }

    #[test]
    fn a_read_only_disk_is_silence() {
        let world = project(&json!({"gate": "off"}));
        let usable = Command::new("unshare").args(["-rm", "true"]).status().is_ok_and(|s| s.success());
        if !usable {
            eprintln!("SKIPPED: no mount namespace can be made here");
            return;
        }
        let inside = |hook: &str, place: &Path, more: &Value| {
            let mut command = command(&world, hook);
            let script = "mount --bind \"$0\" \"$0\" && mount -o remount,bind,ro \"$0\" && exec \"$@\"";
            let mut outer = Command::new("unshare");
            outer.args(["-rm", "/bin/sh", "-c", script]).arg(place).arg(program()).arg(hook);
            outer.env_clear().current_dir(world.project());
            outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            std::mem::swap(&mut command, &mut outer);
            let event = HOOKS.iter().find(|(n, _)| *n == hook).expect("a hook").1;
            let bytes = format!("{}\n", payload(&world, event, more)).into_bytes();
            answer(start(command, Stdin::Bytes(bytes)), event, "read-only")
        };
        let asked = json!({"prompt": PROMPT, "prompt_id": "p0"});
        let said = inside("user-prompt-submit", &world.project(), &asked);
        assert!(said.is_silent(), "{said:?}");
        assert_eq!(runs(&world).len(), 0);
        assert_eq!(notes(&world, "user-prompt-submit").len(), 1, "{:?}", notes(&world, "user-prompt-submit"));
        assert!(inside("user-prompt-submit", &world.state(), &asked).is_silent());
        assert_eq!(runs(&world).len(), 0);
        begin_run(&world);
        for place in [world.project(), world.state()] {
            for (hook, _) in &HOOKS[1..] {
                let said = inside(hook, &place, &json!({"tool_name": "Bash", "tool_input": {"command": "ls"}}));
                assert!(said.took < LIFETIME, "{hook}: {said:?}");
            }
        }
        finish_all(&world);
    }

    #[test]
    fn a_prompt_starts_one_run_however_often_the_hook_is_called() {
        let world = project(&json!({"gate": "off"}));
        let children: Vec<_> = (0..8)
            .map(|_| begin(&world, "user-prompt-submit", &json!({"prompt": PROMPT, "prompt_id": "p1"})))
            .collect();
        let said: Vec<Answer> = children.into_iter().map(|(child, event)| answer(child, event, "concurrent")).collect();
        assert_eq!(said.iter().filter(|a| a.context().starts_with("cpw has started")).count(), 1, "{said:?}");
        assert!(prompt(&world, "p1").is_silent(), "the same prompt once more");
        assert_eq!(count(&world, "run_started"), 1);
        // Another prompt that the same rule matches, while its run goes on.
        let again = prompt(&world, "p2");
        assert!(again.context().is_empty(), "{again:?}");
        assert!(again.for_user().contains("rule analyze is still running"), "{again:?}");
        assert_eq!(runs(&world).len(), 1);
        finish_all(&world);
        assert!(prompt(&world, "p3").context().contains("cpw has started 2 tasks"));
        finish_all(&world);
        assert_eq!(count(&world, "run_started"), 2);
    }

    #[test]
    fn stop_lets_go_when_the_user_types() {
        let world = project(&json!({}));
        begin_run(&world);
        let (child, event) = begin(&world, "stop", &json!({}));
        wait_for_hold(&world);
        let typed = call(&world, "user-prompt-submit", &json!({"prompt": "and now?", "prompt_id": "p2"}));
        assert!(typed.is_silent(), "{typed:?}");
        let said = answer(child, event, "let go");
        assert!(said.is_silent(), "{said:?}");
        assert_eq!(count(&world, "run_ended"), 0, "it still runs");
        // What the client says by itself is not the user's typing.
        let (child, event) = begin(&world, "stop", &json!({"prompt_id": "p2"}));
        wait_for_hold(&world);
        call(
            &world,
            "user-prompt-submit",
            &json!({"prompt": "<task-notification>x</task-notification>", "prompt_id": "p3"}),
        );
        finish_all(&world);
        let said = answer(child, event, "held");
        assert!(said.context().contains("All workers of rule analyze are finished: 2 done."), "{said:?}");
        assert!(call(&world, "stop", &json!({"prompt_id": "p2"})).is_silent(), "told twice");
    }

    #[test]
    fn stop_holds_no_longer_than_its_budget() {
        let world = project(&json!({"hold": "1s"}));
        begin_run(&world);
        let first = call(&world, "stop", &json!({}));
        assert!(first.took >= Duration::from_millis(900), "{first:?}");
        assert!(first.for_user().contains("Workers still processing") && first.context().is_empty(), "{first:?}");
        let held = |e: &Value| e["t"] == "decision" && e["payload"]["answer"] == "held";
        assert_eq!(events(&world).iter().filter(|e| held(e)).count(), 1);
        // The same turn has spent it; it is not held again.
        call(&world, "stop", &json!({}));
        assert_eq!(events(&world).iter().filter(|e| held(e)).count(), 1);
        // Another prompt has a budget of its own.
        let (child, event) = begin(&world, "stop", &json!({"prompt_id": "p2"}));
        wait_for_hold(&world);
        finish_all(&world);
        let said = answer(child, event, "another prompt");
        assert!(said.context().contains("2 done"), "{said:?}");
    }

    /// A run that is damaged while Stop waits.
    #[test]
    fn stop_hands_over_what_it_can_where_one_of_two_runs_is_gone() {
        let world = project(&json!({"hold": "10m"}));
        let mut config = config(&json!({"hold": "10m"}));
        let second = json!({"name": "second", "when": {"prompt": "(?i)\\banaly[sz]e\\b"}, "tasks": [
            // Not so quick that the prompt's own answer tells of it.
            {"id": "quick", "shell": "until [ -e \"$HOME/go-quick\" ]; do sleep 0.01; done; echo ready"}]});
        config["rules"].as_array_mut().expect("a list").push(second);
        world.write(".claude/cpw.json", &config.to_string());
        allow(&world);
        prompt(&world, "p1");
        let_end(&world, "quick");
        wait_until("the second run", || events(&world).iter().any(|e| e["t"] == "run_ended"));
        let (child, event) = begin(&world, "stop", &json!({}));
        wait_for_hold(&world);
        let gone = runs(&world).into_iter().find(|run| !events_of(run).iter().any(|e| e["t"] == "run_ended"));
        let gone = gone.expect("the first run");
        fs::rename(gone.join("events.jsonl"), gone.join("elsewhere")).expect("its log");
        let answer = answer(child, event, "a run is gone");
        assert!(answer.context().contains("All workers of rule second are finished"), "{answer:?}");
        for task in ["api", "db"] {
            let_end(&world, task);
        }
    }

    #[test]
    fn news_that_has_no_room_beside_other_news_comes_later() {
        let world = World::new();
        let tasks = |n: usize, of: &str, script: &str| -> Vec<Value> {
            (0..n).map(|i| json!({"id": format!("{of}-{i}"), "shell": script})).collect()
        };
        let rule =
            |name: &str, word: &str, tasks: &[Value]| json!({"name": name, "when": {"prompt": word}, "tasks": tasks});
        let mut large = tasks(8, "long", "printf '%0300d' 7");
        large.extend(tasks(12, "short", "echo 7"));
        let config = json!({"version": 1, "limits": {"max_workers": 8}, "rules": [
            rule("large", "Analyze", &large),
            rule("small", "Analyze", &tasks(2, "small", "exit 3")),
            rule("other", "Build", &tasks(12, &"a-long-name".repeat(4), "true")),
        ]});
        world.write(".claude/cpw.json", &config.to_string());
        allow(&world);
        call(&world, "user-prompt-submit", &json!({"prompt": "Analyze it", "prompt_id": "p1"}));
        wait_until("both runs", || events(&world).iter().filter(|e| e["t"] == "run_ended").count() == 2);
        let mut told = vec![call(&world, "user-prompt-submit", &json!({"prompt": "Build it", "prompt_id": "p2"}))];
        wait_until("the third run", || events(&world).iter().filter(|e| e["t"] == "run_ended").count() == 3);
        told.extend((0..4).map(|_| call(&world, "post-tool-batch", &json!({}))));
        let texts: Vec<&str> = told.iter().map(Answer::context).collect();
        assert!(texts[0].starts_with("cpw has started 12 tasks"), "{texts:?}");
        for want in ["All workers of rule large are finished: 20 done.", "All workers of rule small", "failed: small-0"]
        {
            assert_eq!(texts.iter().filter(|t| t.contains(want)).count(), 1, "{want}: {texts:?}");
        }
        assert!(texts.iter().all(|t| !t.ends_with('…')), "{texts:?}");
    }

    #[test]
    fn stop_of_gate_block_answers_at_once_and_only_with_something_new() {
        let world = project(&json!({"gate": "block"}));
        world.write("ui.py", "");
        world.write("web.py", "");
        let asked = "Analyze api.py, db.py, ui.py, web.py";
        let said = call(&world, "user-prompt-submit", &json!({"prompt": asked}));
        assert!(said.context().contains("4 tasks"), "{said:?}");
        wait_until("all run", || count(&world, "spawned") == 4);
        let first = call(&world, "stop", &json!({}));
        assert!(first.context().starts_with("Workers still processing: ") && first.took < LIFETIME, "{first:?}");
        assert!(call(&world, "stop", &json!({})).is_silent(), "nothing is new");
        for (task, heard) in [("api", true), ("db", true), ("ui", false)] {
            finish(&world, task);
            let said = call(&world, "stop", &json!({}));
            assert_eq!(said.context().contains(&format!("done: {task}.py")), heard, "{task}: {said:?}");
            assert_eq!(said.context().contains("Workers still processing"), heard, "{task}: {said:?}");
        }
        // Three times in a row is enough for one prompt; the next hears the rest.
        let next = call(&world, "stop", &json!({"prompt_id": "p2"}));
        assert!(next.context().contains("done: ui.py") && !next.context().contains("api.py"), "{next:?}");
        for task in ["ui", "web"] {
            finish(&world, task);
        }
        finish_all(&world);
        assert!(call(&world, "stop", &json!({"prompt_id": "p2"})).context().contains("All workers of rule analyze"));
        assert!(call(&world, "stop", &json!({"prompt_id": "p3"})).is_silent());
    }

    #[test]
    fn stop_of_gate_off_says_nothing() {
        let world = project(&json!({"gate": "off"}));
        begin_run(&world);
        finish(&world, "api");
        let said = call(&world, "stop", &json!({}));
        assert!(said.is_silent() && said.took < LIFETIME, "{said:?}");
        // The news is not lost, it comes with the next step.
        assert!(call(&world, "post-tool-batch", &json!({})).context().contains("done: api.py"));
        finish_all(&world);
    }

    #[test]
    fn a_claimed_file_is_refused_three_times_and_then_passes() {
        let world = project(&json!({"on_claimed": "block", "gate": "off"}));
        begin_run(&world);
        wait_until("both run", || count(&world, "spawned") == 2);
        for round in 0..2 {
            for _ in 0..3 {
                let said = read_api(&world);
                assert!(said.refusal().contains("api.py is being worked on by W"), "{round}: {said:?}");
            }
            let said = read_api(&world);
            assert!(said.refusal().is_empty() && said.context().contains("still works on this file"), "{said:?}");
        }
        // By other names, and in a subagent as well; other files and tools are free.
        let by = |tool_name: &str, path: &str, more: &Value| {
            let input = json!({"file_path": path, "command": format!("cat {path}")});
            let mut all =
                json!({"tool_name": tool_name, "tool_input": input, "tool_use_id": format!("{tool_name}-{path}")});
            all.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
            call(&world, "pre-tool-use", &all)
        };
        assert!(!by("Edit", "./x/../api.py", &json!({})).refusal().is_empty());
        assert!(!by("Write", "api.py", &json!({"agent_id": "a1", "agent_type": "Explore"})).refusal().is_empty());
        assert!(by("Read", "other.py", &json!({})).is_silent());
        assert!(by("Read", "api.py.bak", &json!({})).is_silent());
        assert!(by("Bash", "other.py", &json!({})).is_silent());
        assert!(by("Glob", "api.py", &json!({})).is_silent());
        finish(&world, "api");
        assert!(read_api(&world).is_silent(), "its task is over");
        finish_all(&world);
    }

    #[test]
    fn a_claimed_file_is_noted_or_left_alone() {
        for (on_claimed, says) in [("note", "still works on this file"), ("off", "")] {
            let world = project(&json!({"on_claimed": on_claimed, "gate": "off"}));
            begin_run(&world);
            wait_until("both run", || count(&world, "spawned") == 2);
            for _ in 0..5 {
                let said = read_api(&world);
                assert!(said.refusal().is_empty() && said.context().contains(says), "{said:?}");
                assert_eq!(said.is_silent(), says.is_empty());
            }
            finish_all(&world);
        }
    }

    #[test]
    fn a_claimed_file_is_waited_for() {
        let world = project(&json!({"wait": "20s", "gate": "off"}));
        begin_run(&world);
        let file = json!({"tool_name": "Read", "tool_input": {"file_path": "api.py"}, "tool_use_id": "t1"});
        let (child, event) = begin(&world, "pre-tool-use", &file);
        wait_for_hold(&world);
        let_end(&world, "api");
        let said = answer(child, event, "waiting");
        assert!(
            said.refusal().is_empty() && said.context().contains("Task api has worked on this file: done"),
            "{said:?}"
        );
        finish_all(&world);
    }

    #[test]
    fn a_read_of_a_claimed_file_becomes_one_of_the_result() {
        let world = project(&json!({"on_claimed": "redirect", "wait": "20s", "gate": "off"}));
        begin_run(&world);
        finish(&world, "api");
        let said = read_api(&world);
        let input = said.specific("updatedInput").expect("another input");
        let result = fs::read_to_string(input["file_path"].as_str().expect("a path")).expect("the result");
        assert!(result.contains("Findings about api.py"), "{result}");
        assert!(input.get("offset").is_none() && said.text("permissionDecision").is_empty(), "{said:?}");
        let edit = tool(&world, "pre-tool-use", "Edit", &json!({"file_path": "api.py", "old_string": "a"}));
        assert!(edit.specific("updatedInput").is_none(), "{edit:?}");
        finish_all(&world);
    }

    #[test]
    fn results_are_put_into_the_call_they_belong_to() {
        let world = project(&json!({"wait": "1s", "gate": "off"}));
        begin_run(&world);
        finish(&world, "api");
        let refused = write_report(&world);
        assert!(refused.refusal().contains("not all there yet") && refused.refusal().contains("db"), "{refused:?}");
        // A subagent's call is not the session's report.
        let input = json!({"file_path": "report.md", "content": "x"});
        let inner = json!({"tool_name": "Write", "tool_input": input, "tool_use_id": "t", "agent_id": "a1"});
        assert!(call(&world, "pre-tool-use", &inner).is_silent());
        finish(&world, "db");
        let said = tool(&world, "pre-tool-use", "Write", &report(&world));
        let content =
            said.specific("updatedInput").expect("another input")["content"].as_str().expect("text").to_owned();
        assert!(content.starts_with("# Report\n## api.py"), "{content}");
        assert!(content.contains("Findings about api.py") && content.contains("Findings about db.py"), "{content}");
        assert!(said.text("permissionDecision").is_empty());
        assert!(write_report(&world).is_silent(), "it applies once");
        // Another hook has written something else over it.
        let lost = tool(&world, "post-tool-use", "Write", &json!({"file_path": "report.md", "content": "# Report"}));
        assert!(lost.context().contains("another hook changed its input"), "{lost:?}");
        let again = tool(&world, "post-tool-use", "Write", &json!({"file_path": "report.md", "content": "# Report"}));
        assert!(!again.context().contains("another hook"), "{again:?}");
        finish_all(&world);
    }

    #[test]
    fn a_merge_that_cannot_be_complete_is_refused_once() {
        let world = project(&json!({"wait": "20s", "gate": "off"}));
        begin_run(&world);
        fs::write(world.home().join("fail-db"), "").expect("a file");
        let file = json!({"tool_name": "Write", "tool_input": {"file_path": "report.md", "content": "x"}, "tool_use_id": "t1"});
        let (child, event) = begin(&world, "pre-tool-use", &file);
        wait_for_hold(&world);
        finish_all(&world);
        let said = answer(child, event, "failed need");
        assert!(said.refusal().contains("Not every result") && said.refusal().contains("db.py failed"), "{said:?}");
        assert!(said.refusal().contains("workers/"), "what there is, is named: {said:?}");
        assert!(write_report(&world).is_silent(), "the same call passes");
    }

    #[test]
    fn a_subagent_hears_no_news_and_is_not_held() {
        let world = project(&json!({}));
        begin_run(&world);
        finish(&world, "api");
        let inner = json!({"agent_id": "a1", "agent_type": "Explore", "tool_name": "Bash", "tool_input": {}});
        for hook in ["post-tool-use", "post-tool-batch", "stop"] {
            let said = call(&world, hook, &inner);
            assert!(said.is_silent() && said.took < LIFETIME, "{hook}: {said:?}");
        }
        let said = call(&world, "post-tool-batch", &json!({}));
        assert_eq!(said.context().matches("done: api.py").count(), 1, "{said:?}");
        assert!(call(&world, "post-tool-batch", &json!({})).is_silent(), "told twice");
        finish_all(&world);
    }
}
