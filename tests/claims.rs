//! What becomes of calls on files that workers have, and of calls that workers' results belong into. First the hooks alone,
//! as the client calls them; then the real clients, with what the model was shown and what really ran.

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
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::process::Stdio;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::{Value, json};

    use crate::hold::is_held;
    use crate::support::api::{Api, FIRST_OF_SUBAGENTS, Request, Script, Turn, tool_use_id};
    use crate::support::client::{Client, LIMIT};
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

    /// Says what it is about and waits until it may end. `$HOME/make` is run for what else it is to leave.
    const TASK: &str = r#"echo "Findings about $CPW_ITEM"; until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done
        [ ! -x "$HOME/make" ] || "$HOME/make""#;

    fn config(conductor: &Value, merge: &Value) -> Value {
        json!({
            "version": 1,
            "conductor": conductor,
            "rules": [{
                "name": "analyze",
                "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 1}},
                "for_each": "files",
                "tasks": [{"id": "{{item.stem}}", "shell": TASK, "claims": ["{{item}}"]}],
                "merge": merge,
            }],
        })
    }

    fn report_merge() -> Value {
        json!([{
            "tool": "Write",
            "match": {"file_path": "*report.md"},
            "needs": ["*"],
            "set": {"content": "{{input.content}}\n{{results}}"},
        }])
    }

    fn run(world: &World, command: &[&str]) -> String {
        let out = world.cpw(command).output().expect("cpw runs");
        assert!(out.status.success(), "cpw {command:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// A project with these rules, approved.
    fn project(config: &Value) -> World {
        let world = World::new();
        for name in ["api.py", "db.py", "other.py", "lib/deep.py"] {
            world.write(name, "# code\n");
        }
        world.write(".claude/cpw.json", &config.to_string());
        run(&world, &["allow", "--yes"]);
        world
    }

    /// Calls a hook as the client does; its answer, or null for silence.
    fn call(world: &World, hook: &str, event: &str, more: &Value) -> Value {
        let mut payload = json!({
            "session_id": SESSION,
            "cwd": world.project(),
            "prompt_id": "p1",
            "hook_event_name": event,
        });
        payload.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        let mut command = world.cpw(&[hook]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cpw starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        drop(stdin.write_all(format!("{payload}\n").as_bytes()));
        drop(stdin);
        let out = child.wait_with_output().expect("it ends");
        assert!(out.status.success() && out.stderr.is_empty(), "{out:?}");
        let said: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        assert_ne!(said["hookSpecificOutput"]["permissionDecision"], "allow", "{said}");
        said
    }

    fn begin(world: &World, prompt: &str) {
        let said = call(world, "user-prompt-submit", "UserPromptSubmit", &json!({"prompt": prompt}));
        assert!(context(&said).contains("cpw has started"), "{said}");
    }

    /// A call of its own before it runs, as the client's id says.
    fn before(world: &World, tool: &str, input: &Value, more: &Value) -> Value {
        static CALLS: AtomicUsize = AtomicUsize::new(0);
        let id = format!("toolu_{}", CALLS.fetch_add(1, Ordering::Relaxed));
        let mut all = json!({"tool_name": tool, "tool_input": input, "tool_use_id": id});
        all.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        call(world, "pre-tool-use", "PreToolUse", &all)
    }

    fn read(world: &World, path: impl AsRef<Path>) -> Value {
        before(world, "Read", &json!({"file_path": world.project().join(path)}), &json!({}))
    }

    fn bash(world: &World, command: &str) -> Value {
        before(world, "Bash", &json!({"command": command}), &json!({}))
    }

    fn write_report(world: &World, content: &Value) -> Value {
        let input = json!({"file_path": world.project().join("report.md"), "content": content});
        before(world, "Write", &input, &json!({}))
    }

    fn context(said: &Value) -> &str {
        said["hookSpecificOutput"]["additionalContext"].as_str().unwrap_or_default()
    }

    fn refusal(said: &Value) -> &str {
        said["hookSpecificOutput"]["permissionDecisionReason"].as_str().unwrap_or_default()
    }

    fn rewritten(said: &Value) -> &Value {
        &said["hookSpecificOutput"]["updatedInput"]
    }

    fn run_folder(world: &World) -> PathBuf {
        let runs = fs::read_dir(world.project().join(".claude/runs")).expect("runs").flatten().map(|e| e.path());
        runs.filter(|path| path.is_dir()).min().expect("a run")
    }

    fn events(world: &World) -> Vec<Value> {
        let log = fs::read_to_string(run_folder(world).join("events.jsonl")).expect("a log");
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().map(|l| serde_json::from_str(l).expect("an event")).collect()
    }

    fn reasons(world: &World, reason: &str) -> usize {
        events(world).iter().filter(|e| e["payload"]["reason"] == reason).count()
    }

    fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
        wait_for(LIMIT, || happened().then_some(())).unwrap_or_else(|| panic!("did not happen: {what}"));
    }

    fn all_run(world: &World, count: usize) {
        wait_until("all run", || events(world).iter().filter(|e| e["t"] == "spawned").count() == count);
    }

    fn let_end(world: &World, task: &str) {
        fs::write(world.home().join(format!("go-{task}")), "").expect("a file in the home");
    }

    fn finish(world: &World, task: &str) {
        let_end(world, task);
        wait_until(task, || events(world).iter().any(|e| e["task"] == task && e["t"] == "done"));
    }

    fn finish_all(world: &World, tasks: &[&str]) {
        for task in tasks {
            finish(world, task);
        }
        wait_until("the end", || events(world).iter().any(|e| e["t"] == "run_ended"));
    }

    #[test]
    fn a_command_that_names_a_claimed_file_is_a_call_on_it() {
        let world = project(&config(&json!({"on_claimed": "block", "gate": "off"}), &json!([])));
        begin(&world, "Analyze api.py and lib/deep.py");
        all_run(&world, 2);
        for command in ["cat api.py", "cd lib && wc deep.py", "sort < './api.py' | head", "make IN=lib/deep.py; ls"] {
            let said = bash(&world, command);
            assert!(refusal(&said).contains(".py is being worked on by W"), "{command}: {said}");
        }
        for command in
            ["ls", "cat other.py", "cd lib && cat api.py", "cat $F", "cpw result api", "cpw status; ls", "cat *.py"]
        {
            assert!(bash(&world, command).is_null(), "{command}");
        }
        // The session's own directory counts, and a subagent's commands as well.
        let inner = json!({"cwd": world.project().join("lib"), "agent_id": "a1", "prompt_id": "inner"});
        let said = before(&world, "Bash", &json!({"command": "cat deep.py"}), &inner);
        assert!(refusal(&said).contains("lib/deep.py is being worked on"), "{said}");
        finish_all(&world, &["api", "deep"]);
        assert!(bash(&world, "cat api.py").is_null(), "its task is over");
    }

    #[test]
    fn a_command_waits_for_all_it_names_and_hears_of_each() {
        let world = project(&config(&json!({"on_claimed": "redirect", "wait": "60s", "gate": "off"}), &json!([])));
        begin(&world, "Analyze api.py and db.py");
        all_run(&world, 2);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| bash(&world, "cat api.py db.py"));
            wait_until("a hold", || is_held(&world.project()));
            finish(&world, "api");
            finish(&world, "db");
            let said = waiting.join().expect("an answer");
            for name in ["api", "db"] {
                let told =
                    format!("Task {name} has worked on {}: done", world.project().join(format!("{name}.py")).display());
                assert!(context(&said).contains(&told), "{said}");
            }
            assert!(rewritten(&said).is_null() && !context(&said).contains("This call shows"), "{said}");
        });
        // A Read of it is one of the result; what no Read can show as text is named instead.
        let said = before(
            &world,
            "Read",
            &json!({"file_path": "api.py", "offset": 3, "limit": 2, "pages": "1-2"}),
            &json!({}),
        );
        let input = rewritten(&said).as_object().expect("another input");
        assert_eq!(input.keys().collect::<Vec<_>>(), ["file_path"], "{said}");
        let shown = fs::read_to_string(input["file_path"].as_str().expect("a path")).expect("the result");
        assert_eq!(shown, "Findings about api.py\n");
        finish_all(&world, &[]);
    }

    #[test]
    fn a_result_that_no_read_can_show_is_named_instead() {
        for (make, name) in [
            ("printf 'a\\000b' > \"$CPW_OUT/result.bin\"", "result.bin"),
            ("echo x > \"$CPW_OUT/result.png\"", "result.png"),
            ("head -c 70000 /dev/zero | tr '\\0' x > \"$CPW_OUT/result.txt\"", "result.txt"),
        ] {
            let world = project(&config(&json!({"on_claimed": "redirect", "gate": "off"}), &report_merge()));
            let script = world.script("make", make);
            fs::rename(script, world.home().join("make")).expect("moved");
            begin(&world, "Analyze api.py");
            finish_all(&world, &["api"]);
            let said = read(&world, "api.py");
            assert!(rewritten(&said).is_null() && refusal(&said).is_empty(), "{name}: {said}");
            assert!(
                context(&said).contains(name) && context(&said).contains("shows the file itself"),
                "{name}: {said}"
            );
            // Nor can what is no text be put into a call.
            let said = write_report(&world, &json!("# Report"));
            if name == "result.bin" {
                assert!(refusal(&said).contains("that of api cannot be put in as text"), "{said}");
                assert!(refusal(&said).contains(name), "{said}");
                assert!(write_report(&world, &json!("# Report")).is_null(), "refused twice");
            } else {
                assert!(!rewritten(&said).is_null(), "{said}");
            }
        }
    }

    #[test]
    fn a_claim_is_the_file_whatever_it_is_called() {
        let mut rules = config(&json!({"on_claimed": "block", "gate": "off"}), &json!([]));
        rules["rules"][0]["tasks"][0]["claims"] =
            json!(["{{item}}", "db.py", "lib/", "gen", "there/*.py", "out", "named.py"]);
        let world = project(&rules);
        let inside = |name: &str| world.project().join(name);
        for folder in ["gen", "real", "app"] {
            fs::create_dir(inside(folder)).expect("a folder");
        }
        world.write("real/x.py", "");
        world.write("kept.py", "");
        symlink("real", inside("there")).expect("a link");
        symlink("kept.py", inside("named.py")).expect("a link");
        symlink(world.project(), world.path("way")).expect("a link");
        // As on a file system that folds case: two names of one file that differ in nothing else.
        fs::hard_link(inside("api.py"), inside("API.PY")).expect("a second name");
        world.write("DB.PY", "another file");
        fs::create_dir_all(inside(".claude/worktrees/w")).expect("a worktree");
        fs::write(inside(".claude/worktrees/w/api.py"), "a copy").expect("a copy");
        fs::hard_link(inside("api.py"), inside(".claude/worktrees/w/hard.py")).expect("a second name");
        begin(&world, "Analyze api.py");
        all_run(&world, 1);
        let mut prompts = 0;
        let mut is_met = |path: PathBuf, cwd: PathBuf| {
            prompts += 1;
            let more = json!({"cwd": cwd, "prompt_id": format!("p{prompts}")});
            let said = before(&world, "Edit", &json!({"file_path": path}), &more);
            let met = !said.is_null();
            assert!(!met || refusal(&said).contains("is being worked on") || context(&said).contains("still works on"));
            met
        };
        for (path, met) in [
            ("api.py", true),
            ("x/../api.py", true),
            (".//api.py", true),
            ("API.PY", true),
            ("Api.py", false),
            ("db.py", true),
            ("DB.PY", false),
            ("api.pyc", false),
            ("api", false),
            ("lib/deep.py", true),
            ("lib/new/deep.py", true),
            ("library.py", false),
            ("gen/x", true),
            ("generated.py", false),
            ("real/x.py", true),
            ("there/x.py", true),
            ("real/x.txt", false),
            ("named.py", true),
            ("kept.py", true),
            ("out", true),
            (".claude/worktrees/w/api.py", false),
        ] {
            assert_eq!(is_met(inside(path), world.project()), met, "{path}");
        }
        assert!(is_met(world.path("way/api.py"), world.project()), "by a link from outside");
        assert!(is_met("../api.py".into(), inside("app")), "from a folder below");
        assert!(!is_met("api.py".into(), inside("app")), "another folder");
        assert!(!is_met("api.py".into(), inside(".claude/worktrees/w")), "a worktree's copy");
        symlink(inside("api.py"), inside(".claude/worktrees/w/same.py")).expect("a link");
        assert!(is_met("same.py".into(), inside(".claude/worktrees/w")), "the same file");
        finish_all(&world, &["api"]);
    }

    #[test]
    fn a_call_that_two_installations_ask_about_is_one_call() {
        let world = project(&config(&json!({"on_claimed": "block", "gate": "off"}), &report_merge()));
        begin(&world, "Analyze api.py");
        all_run(&world, 1);
        let twice = |id: &str, tool: &str, input: &Value| {
            let asked = json!({"tool_name": tool, "tool_input": input, "tool_use_id": id});
            std::thread::scope(|scope| {
                let both = [(); 2].map(|()| scope.spawn(|| call(&world, "pre-tool-use", "PreToolUse", &asked)));
                both.map(|one| one.join().expect("an answer"))
            })
        };
        let file = json!({"file_path": "api.py"});
        for n in 0..8 {
            let said = twice(&format!("read {n}"), "Read", &file);
            let passes = n % 4 == 3;
            assert!(said.iter().all(|said| refusal(said).is_empty() == passes), "call {n}: {said:?}");
            let notes = said.iter().filter(|said| context(said).contains("still works on")).count();
            assert_eq!(notes, usize::from(passes), "call {n}: {said:?}");
        }
        assert_eq!(reasons(&world, "claimed by api"), 6);
        finish_all(&world, &["api"]);
        let said = twice("write", "Write", &json!({"file_path": "report.md", "content": "x"}));
        assert_eq!(said.iter().filter(|said| !rewritten(said).is_null()).count(), 1, "{said:?}");
        assert!(said.iter().any(Value::is_null), "{said:?}");
        let ran = json!({"tool_name": "Write", "tool_use_id": "write", "tool_input": {"content": "y"}});
        let after = |_| context(&call(&world, "post-tool-use", "PostToolUse", &ran)).matches("another hook").count();
        assert_eq!((0..2).map(after).sum::<usize>(), 1);
    }

    #[test]
    fn calls_on_claimed_files_are_held_three_times_and_refused_twelve_times_a_prompt() {
        let world = project(&config(&json!({"on_claimed": "wait", "wait": "200ms", "gate": "off"}), &json!([])));
        begin(&world, "Analyze api.py");
        all_run(&world, 1);
        let refused = (0..20).filter(|_| !refusal(&read(&world, "api.py")).is_empty()).count();
        assert_eq!(refused, 12, "three of four, twelve in all");
        let held = |e: &Value| e["payload"]["held_ms"].as_u64().filter(|ms| e["t"] == "decision" && *ms >= 150);
        assert!(events(&world).iter().filter_map(held).count() <= 3, "held too often: {:?}", events(&world));
        let more = json!({"prompt_id": "p2"});
        let said = before(&world, "Read", &json!({"file_path": "api.py"}), &more);
        assert!(!refusal(&said).is_empty(), "another prompt: {said}");
        finish_all(&world, &["api"]);
    }

    #[test]
    fn a_merge_that_cannot_be_made_is_refused_once_with_what_there_is() {
        let world = project(&config(&json!({"wait": "200ms", "gate": "off"}), &report_merge()));
        begin(&world, "Analyze api.py and db.py");
        finish(&world, "api");
        let said = write_report(&world, &json!("x"));
        assert!(refusal(&said).contains("not all there yet"), "{said}");
        let there = run_folder(&world).strip_prefix(world.project()).expect("below").display().to_string();
        assert!(refusal(&said).contains(&format!("Finished: api ({there}/workers/")), "{said}");
        finish_all(&world, &["api", "db"]);
        for odd in [json!(7), json!(["x"])] {
            let said = write_report(&world, &odd);
            let is_first = odd == json!(7);
            assert_eq!(refusal(&said).contains("this call's content, but it holds no text"), is_first, "{said}");
            assert_eq!(refusal(&said).matches("result: ").count(), if is_first { 2 } else { 0 }, "{said}");
            assert_eq!(said.is_null(), !is_first);
        }
        assert_eq!(reasons(&world, "results cannot be put into this call"), 1);
    }

    #[test]
    fn a_merge_is_used_by_a_call_that_ran_with_it() {
        let world = project(&config(&json!({"gate": "off"}), &report_merge()));
        begin(&world, "Analyze api.py");
        finish_all(&world, &["api"]);
        let step_over = || call(&world, "post-tool-batch", "PostToolBatch", &json!({}));
        assert!(context(&step_over()).contains("All workers of rule analyze are finished"));
        // Denied by the user or failed: nothing is heard of it, and the next one gets the results.
        assert!(!rewritten(&write_report(&world, &json!("x"))).is_null());
        step_over();
        assert_eq!(reasons(&world, "the rewritten call was denied or failed"), 1);
        // Another hook has won: said, then refused once with the results, and doctor knows.
        let input = json!({"file_path": "report.md", "content": "x"});
        let ran = |id: &str, input: &Value| {
            let all = json!({"tool_name": "Write", "tool_input": input, "tool_use_id": id});
            call(&world, "post-tool-use", "PostToolUse", &all)
        };
        let said = before(&world, "Write", &input, &json!({"tool_use_id": "lost"}));
        assert!(!rewritten(&said).is_null(), "{said}");
        assert!(context(&ran("lost", &input)).contains("another hook changed its input"));
        step_over();
        let said = write_report(&world, &json!("y"));
        assert!(refusal(&said).contains("another hook of this project changed the input"), "{said}");
        assert!(refusal(&said).contains("result: "), "{said}");
        assert!(write_report(&world, &json!("y")).is_null(), "refused twice");
        let run_id = run_folder(&world).file_name().expect("a name").to_string_lossy().into_owned();
        for doctor in [&["doctor"][..], &["doctor", &run_id]] {
            let out = world.cpw(doctor).output().expect("cpw runs");
            let told = String::from_utf8_lossy(&out.stdout).into_owned();
            assert!(told.contains("another hook rewrites Write: it won 1 time"), "{told}");
        }
    }

    /// A server of one tool that writes down with what it was called.
    const SERVER: &str = r#"while IFS= read -r line; do
        id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
        say() { [ -z "$id" ] || printf '{"jsonrpc":"2.0","id":%s,"result":%s}\n' "$id" "$1"; }
        case "$line" in
            *'"method":"initialize"'*) say '{"protocolVersion":"2024-11-05","capabilities":{"tools":{}},"serverInfo":{"name":"t","version":"1"}}' ;;
            *'"method":"tools/list"'*) say '{"tools":[{"name":"note","description":"Takes a note","inputSchema":{"type":"object","properties":{"text":{"type":"string"},"tag":{"type":"string"}}}}]}' ;;
            *'"method":"tools/call"'*) printf '%s\n' "$line" >> "$HOME/noted"; say '{"content":[{"type":"text","text":"noted"}]}' ;;
            *) say '{}' ;;
        esac
    done"#;

    /// A project in which the client finds cpw's hooks, with further settings.
    fn wired(config: &Value, more: impl FnOnce(&World, &mut Value)) -> Arc<World> {
        let world = project(config);
        run(&world, &["init"]);
        let text = world.read(".claude/settings.json").expect("the wiring");
        let mut settings = serde_json::from_str(&text).expect("JSON");
        more(&world, &mut settings);
        world.settings(&settings);
        Arc::new(world)
    }

    fn hook(settings: &mut Value, event: &str, script: &Path) {
        let entry = json!({"matcher": "*", "hooks": [{"type": "command", "command": script, "timeout": 60}]});
        settings["hooks"][event].as_array_mut().expect("cpw is wired there").push(entry);
    }

    /// Per tool one merge, and three whose calls others have a say in.
    fn merges() -> Value {
        let merge = |tool: &str, field: &str, pattern: &str, set: &Value| json!({"tool": tool, "match": {field: pattern}, "needs": ["api"], "set": set});
        json!([
            merge("Write", "file_path", "*report.md", &json!({"content": "{{input.content}}\n{{results}}"})),
            merge("Edit", "file_path", "*notes.md", &json!({"new_string": "{{input.new_string}} {{result.api}}"})),
            merge("Bash", "command", "echo merged*", &json!({"command": "{{input.command}} {{path.api}}"})),
            merge("Read", "file_path", "*old.txt", &json!({"file_path": "{{path.api}}"})),
            merge("Agent", "description", "sum*", &json!({"prompt": "{{input.prompt}}\n{{results}}"})),
            merge("mcp__t__note", "tag", "*", &json!({"text": "{{result.api}}"})),
            merge("Bash", "command", "echo harmless*", &json!({"command": "echo forbidden {{path.api}}"})),
            merge("Write", "file_path", "*denied.md", &json!({"content": "{{results}}"})),
            merge("Write", "file_path", "*raced.md", &json!({"content": "{{results}}"})),
        ])
    }

    /// Permission rules of the user, and another hook that denies one file and rewrites another.
    fn others_have_a_say(world: &World, settings: &mut Value) {
        settings["permissions"] = json!({
            "allow": ["Bash(echo:*)", "mcp__t__note", "Agent", "Task"],
            "deny": ["Bash(echo forbidden:*)"],
        });
        let no = json!({"hookSpecificOutput": {"hookEventName": "PreToolUse", "permissionDecision": "deny",
                        "permissionDecisionReason": "not this file"}});
        let raced = json!({"hookSpecificOutput": {"hookEventName": "PreToolUse",
                        "updatedInput": {"file_path": world.project().join("raced.md"), "content": "by another hook"}}});
        // It wins because it ends last: when the log says that cpw has rewritten the same call, and its hook has gone.
        let script = format!(
            r#"input=$(cat)
                    case "$input" in
                        *denied.md*) echo '{no}' ;;
                        *raced.md*)
                            [ ! -e "$HOME/raced" ] || exit 0
                            touch "$HOME/raced"
                            until grep -q '"answer":"rewrite".*"merge":8' .claude/runs/*/events.jsonl; do sleep 0.02; done
                            while grep -qsa 'pre-tool-us[e]' /proc/[0-9]*/cmdline; do sleep 0.02; done
                            sleep 0.5
                            echo '{raced}' ;;
                    esac"#
        );
        hook(settings, "PreToolUse", &world.script("other.sh", &script));
        hook(settings, "PostToolUse", &world.script("after.sh", "cat >> \"$HOME/after.jsonl\""));
    }

    #[test]
    fn results_get_into_every_tool_and_the_users_rules_still_hold() {
        on_each_client(|installed| {
            let mut rules = config(&json!({}), &merges());
            // Made once, so that merges can name it.
            rules["rules"][0].as_object_mut().expect("a rule").remove("for_each");
            let shell = TASK.replace("$CPW_ITEM", "api.py");
            rules["rules"][0]["tasks"] = json!([{"id": "api", "title": "api.py", "shell": shell}]);
            let world = wired(&rules, others_have_a_say);
            let (notes, old) = (world.write("notes.md", "begin\n"), world.write("old.txt", "old\n"));
            let server = world.script("server.sh", SERVER);
            let servers = world.write("mcp.json", &json!({"mcpServers": {"t": {"command": server}}}).to_string());
            let file = |name: &str| world.project().join(name);
            let write = |name: &str| json!({"file_path": file(name), "content": "# Mine"});
            let agent = json!({"description": "sum up", "prompt": "Help me", "subagent_type": "general-purpose",
                    "run_in_background": false});
            let all = Turn::tool("Write", write("report.md"))
                .and_tool("Edit", json!({"file_path": notes, "old_string": "begin", "new_string": "end"}))
                .and_tool("Bash", json!({"command": "echo merged", "description": "kept"}))
                .and_tool("Read", json!({"file_path": old}))
                .and_tool("mcp__t__note", json!({"text": "mine", "tag": "kept"}))
                .and_tool("Agent", agent);
            let others = Turn::tool("Bash", json!({"command": "echo harmless"}))
                .and_tool("Write", write("denied.md"))
                .and_tool("Write", write("raced.md"));
            let there = Arc::clone(&world);
            let script = Script::new()
                .ask(move |_: &Request| {
                    finish_all(&there, &["api"]);
                    Turn::tool("Read", json!({"file_path": notes}))
                })
                .then(all)
                .ask(move |request: &Request| {
                    let results: Vec<String> =
                        (0..6).map(|n| request.tool_result(&tool_use_id(1, n)).unwrap_or_default()).collect();
                    let failed = (0..6).filter(|n| request.tool_failed(&tool_use_id(1, *n)) != Some(false)).count();
                    assert_eq!(failed, 0, "{results:#?}");
                    assert!(results[2].starts_with("merged /") && results[2].contains("/workers/W1/"), "{results:#?}");
                    assert!(results[3].contains("Findings about api.py"), "{results:#?}");
                    others
                })
                .ask({
                    let again = Turn::tool("Write", write("raced.md"));
                    move |request: &Request| {
                        let result = |n| request.tool_result(&tool_use_id(2, n)).unwrap_or_default();
                        assert!(result(0).contains("has been denied"), "{}", result(0));
                        assert!(result(1).ends_with("not this file"), "{}", result(1));
                        assert_eq!(request.count("another hook changed its input afterwards"), 1);
                        again
                    }
                })
                .ask({
                    let again = Turn::tool("Write", write("raced.md"));
                    move |request: &Request| {
                        let result = request.tool_result(&tool_use_id(3, 0)).unwrap_or_default();
                        assert!(result.contains("another hook of this project changed the input"), "{result}");
                        assert!(result.contains("result: .claude/runs/"), "{result}");
                        again
                    }
                })
                .ask(|request: &Request| {
                    assert_eq!(request.tool_failed(&tool_use_id(4, 0)), Some(false), "{:?}", request.news());
                    Turn::text("Everything is written.")
                });
            let api = Api::start(script);
            let client = Client::new(installed, &world, &api).arg("--mcp-config").arg(&servers);
            let printed = client.print("Analyze api.py");
            assert_eq!(printed.text(), "Everything is written.");
            check_what_ran(&world, &api);
        });
    }

    fn check_what_ran(world: &World, api: &Api) {
        let text = |name: &str| world.read(name).unwrap_or_default();
        assert!(text("report.md").starts_with("# Mine\n## api.py"), "{}", text("report.md"));
        assert!(text("report.md").contains("Findings about api.py"), "{}", text("report.md"));
        assert_eq!(text("notes.md"), "end Findings about api.py\n\n");
        let heard = fs::read_to_string(world.home().join("noted")).unwrap_or_default();
        assert!(heard.contains("Findings about api.py") && heard.contains(r#""tag":"kept""#), "{heard}");
        let helped = api.others().iter().any(|r| r.count("Help me") > 0 && r.count("Findings about api.py") > 0);
        assert!(helped, "the subagent was not told");
        assert!(world.read("denied.md").is_none());
        assert_eq!(text("raced.md"), "# Mine");
        let after = fs::read_to_string(world.home().join("after.jsonl")).unwrap_or_default();
        let bash = after.lines().map(|l| serde_json::from_str::<Value>(l).expect("a payload"));
        let bash: Vec<Value> = bash.filter(|call| call["tool_name"] == "Bash").collect();
        assert_eq!(bash.len(), 1, "{bash:?}");
        assert_eq!(bash[0]["tool_input"]["description"], "kept");
        assert_eq!(reasons(world, "it ran as rewritten"), 6);
        assert_eq!(reasons(world, "the rewritten call was denied or failed"), 2);
        assert_eq!(reasons(world, "another hook's rewrite won"), 1);
        assert!(run_doctor(world).contains("another hook rewrites Write: it won 1 time"));
    }

    fn run_doctor(world: &World) -> String {
        let out = world.cpw(&["doctor"]).output().expect("cpw runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    #[test]
    fn two_installations_and_a_subagent_are_refused_as_one_session() {
        on_each_client(|installed| {
            // The client lets no subagent write reports.
            let mut merge = report_merge();
            merge[0]["match"]["file_path"] = "*data.txt".into();
            let world = wired(&config(&json!({"on_claimed": "block"}), &merge), |_, _| {});
            // Another command for the same hooks: the client calls both.
            run(&world, &["init", "--local"]);
            let api_py = json!({"file_path": world.project().join("api.py")});
            let report = json!({"file_path": world.project().join("data.txt"), "content": "by the subagent"});
            let agent = json!({"description": "look", "prompt": "Look into it", "subagent_type": "general-purpose",
                "run_in_background": false});
            let read = move || Turn::tool("Read", api_py.clone());
            let (first, second, third, there) = (read.clone(), read.clone(), read.clone(), Arc::clone(&world));
            let script = Script::new()
                .ask(|request: &Request| {
                    assert_eq!(request.count("cpw has started 1 task beside this conversation"), 1);
                    Turn::tool("Bash", json!({"command": "cat api.py"}))
                })
                .ask(move |request: &Request| {
                    let refused = request.tool_result(&tool_use_id(0, 0)).unwrap_or_default();
                    assert_eq!(request.tool_failed(&tool_use_id(0, 0)), Some(true), "{refused}");
                    assert!(refused.contains("api.py is being worked on by W1 (task api)"), "{refused}");
                    first()
                })
                .ask(move |request: &Request| {
                    assert_eq!(request.tool_failed(&tool_use_id(1, 0)), Some(true), "{:?}", request.news());
                    Turn::tool("Agent", agent)
                })
                .ask(move |request: &Request| {
                    assert_eq!(request.tool_failed(&tool_use_id(2, 0)), Some(false), "{:?}", request.news());
                    // The fourth after three refusals, of which the subagent had one.
                    second()
                })
                .ask(move |request: &Request| {
                    let passed = request.tool_result(&tool_use_id(3, 0)).unwrap_or_default();
                    assert!(passed.contains("# code"), "{passed}");
                    assert_eq!(request.count("still works on this file"), 1, "{:?}", request.news());
                    finish_all(&there, &["api"]);
                    third()
                })
                .ask(|request: &Request| {
                    assert_eq!(request.tool_failed(&tool_use_id(4, 0)), Some(false), "{:?}", request.news());
                    assert_eq!(request.count("done: api.py"), 1, "{:?}", request.news());
                    Turn::text("Read at last.")
                });
            let api = Api::start(script);
            api.subagents(Script::new().then(read()).ask(move |request: &Request| {
                let refused = request.tool_result(&tool_use_id(FIRST_OF_SUBAGENTS, 0)).unwrap_or_default();
                assert!(refused.contains("api.py is being worked on by W1"), "{refused}");
                Turn::tool("Write", report)
            }));
            let printed = Client::new(installed, &world, &api).print("Analyze api.py");
            assert_eq!(printed.text(), "Read at last.");
            assert_eq!(reasons(&world, "claimed by api"), 3);
            assert_eq!(reasons(&world, "refused often enough"), 1);
            // A merge is the main thread's.
            assert_eq!(world.read("data.txt").as_deref(), Some("by the subagent"));
            let started = events(&world).iter().filter(|e| e["t"] == "run_started").count();
            let runs = fs::read_dir(world.project().join(".claude/runs")).expect("runs").flatten();
            assert_eq!((started, runs.filter(|e| e.path().is_dir()).count()), (1, 1));
        });
    }
}
