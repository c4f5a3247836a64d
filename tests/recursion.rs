//! Nothing starts itself again: hooks below a worker do nothing, however what is between them has hidden where it comes from,
//! and runs inside runs come to an end. With the hooks alone, and with the real client in a task.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/hostile.rs"]
mod hostile;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/ledger.rs"]
mod ledger;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/scratch.rs"]
mod scratch;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/site.rs"]
mod site;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::fs;
    use std::path::Path;

    use serde_json::{Value, json};

    use crate::hostile::tried;
    use crate::site::{Site, plan_of, shell};
    use crate::support::api::{Api, Request, Script, Turn};
    use crate::support::client::{Client, LIMIT};
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, program, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

    const HOOKS: [(&str, &str); 7] = [
        ("user-prompt-submit", "UserPromptSubmit"),
        ("pre-tool-use", "PreToolUse"),
        ("post-tool-use", "PostToolUse"),
        ("post-tool-batch", "PostToolBatch"),
        ("stop", "Stop"),
        ("session-start", "SessionStart"),
        ("session-end", "SessionEnd"),
    ];

    /// How a task can hide from what it starts that it is one: a script around `CALL`, which calls hooks and at last makes
    /// the file `$SAID`. Where something goes on in the background, it is the whole of it.
    const DISGUISES: [(&str, &str); 12] = [
        ("as it is", "CALL"),
        ("an empty environment", "env -i CLEAN sh -c 'CALL'"),
        ("the task itself, with an empty environment", "exec env -i CLEAN sh -c 'CALL'"),
        ("a session of its own", "env -i CLEAN setsid --wait sh -c 'CALL'"),
        ("the task itself, in a session of its own", "exec env -i CLEAN setsid --wait sh -c 'CALL'"),
        ("let go of", "env -i CLEAN sh -c '(CALL) &'; exec sleep 600"),
        ("let go of twice", "env -i CLEAN setsid sh -c '(setsid sh -c \"CALL\" &) &'; exec sleep 600"),
        ("let go of by the task itself", "(env -i CLEAN setsid sh -c 'CALL' &) ; exec env -i sleep 600"),
        ("only the depth is gone", "unset CPW_DEPTH; CALL"),
        ("as nohup does it", "env -i CLEAN nohup setsid sh -c 'CALL' >/dev/null & exec sleep 600"),
        ("from another place", "cd / && exec env -i CLEAN sh -c 'CALL'"),
        ("after all descriptors are closed", "env -i CLEAN setsid sh -c 'exec 3>&- 4>&- 5>&-; CALL'; true"),
    ];

    fn good(world: &World, args: &[&str]) {
        let out = world.cpw(args).output().expect("cpw runs");
        assert!(out.status.success(), "cpw {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }

    fn events(world: &World) -> Vec<Value> {
        let folder = world.project().join(".claude/runs");
        let runs = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let logs = runs.map(|run| fs::read_to_string(run.join("events.jsonl")).unwrap_or_default());
        logs.flat_map(|log| log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<Value>>()).collect()
    }

    fn count(world: &World, kind: &str) -> usize {
        events(world).iter().filter(|e| e["t"] == kind).count()
    }

    fn payload(world: &World, event: &str) -> String {
        json!({
            "session_id": SESSION, "cwd": world.project(), "hook_event_name": event, "prompt_id": "inner",
            "prompt": "go", "source": "startup", "reason": "other", "tool_name": "Read", "tool_use_id": "toolu_1",
            "tool_input": {"file_path": world.project().join("a.txt")}, "tool_response": {}, "stop_hook_active": false,
        })
        .to_string()
    }

    /// Ends both runs of a stage.
    fn end(world: &World) {
        for run in fs::read_dir(world.project().join(".claude/runs")).expect("runs").flatten() {
            // One of them is over by itself.
            let name = run.file_name().into_string().expect("a name");
            world.cpw(&["cancel", "--run", &name]).output().expect("cpw runs");
        }
        let over = || count(world, "run_ended") == count(world, "run_started");
        wait_for(LIMIT, || over().then_some(())).expect("all runs end");
    }

    /// Prompts until there is a run: on a busy machine the second that a hook has may be over before it has made one.
    fn start(world: &World) {
        let made = || events(world).iter().any(|e| e["t"] == "run_started" && e["payload"]["rule"] == "go");
        assert!((0..30).any(|i| !prompt(world, &format!("p{i}")).is_empty() || made()), "nothing was started");
    }

    /// A session prompts, in front of the hook of another program.
    fn prompt(world: &World, id: &str) -> String {
        let file = world.path("outer.json");
        let text = payload(world, "UserPromptSubmit").replace("\"inner\"", &format!("\"{id}\""));
        fs::write(&file, text).expect("a payload");
        let mut hook = world.cpw(&["user-prompt-submit"]);
        hook.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        let out = hook.stdin(fs::File::open(&file).expect("the payload")).output().expect("cpw runs");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// A world whose rule, for the prompt "go", starts a task that does what is in `task.sh`.
    fn stage(tasks: &Value) -> World {
        let world = World::new();
        world.write("a.txt", "a\n");
        let rules = json!([
            {"name": "go", "when": {"prompt": "(?i)\\bgo\\b"}, "tasks": tasks},
            {"name": "other", "when": {"prompt": "(?i)\\bgo\\b"}, "tasks": [{"id": "other", "run": ["true"]}]},
        ]);
        let config =
            json!({"version": 1, "limits": {"max_workers": 1}, "conductor": {"on_claimed": "block"}, "rules": rules});
        world.write(".claude/cpw.json", &config.to_string());
        good(&world, &["init"]);
        good(&world, &["allow", "--yes"]);
        world
    }

    /// What the hooks below a task of this disguise have said.
    fn hooks_below(disguise: &str) -> (World, String) {
        let claiming = json!([{"id": "t", "shell": "exec sh \"$HOME/task.sh\"", "claims": ["a.txt"]}]);
        let world = stage(&claiming);
        let said = world.home().join("said");
        let mut calls = String::from("{ ");
        for (hook, event) in HOOKS {
            let file = world.home().join(format!("{hook}.json"));
            fs::write(&file, payload(&world, event)).expect("a payload");
            write!(calls, "{} {hook} <{}; ", program().display(), file.display()).expect("a text");
        }
        write!(calls, "}} >{0}.part 2>&1; mv {0}.part {0}", said.display()).expect("a text");
        let environment =
            world.environment().into_iter().map(|(name, value)| format!("{name}={}", value.to_string_lossy()));
        let clean = environment.collect::<Vec<_>>().join(" ");
        let clean =
            format!("{clean} CLAUDE_CODE_SESSION_ID={SESSION} CLAUDE_PROJECT_DIR={}", world.project().display());
        let script = disguise.replace("CLEAN", &clean).replace("CALL", &calls);
        fs::write(world.home().join("task.sh"), script).expect("the task");
        start(&world);
        let text = wait_for(LIMIT, || fs::read_to_string(&said).ok()).expect("the task calls the hooks");
        (world, text)
    }

    #[test]
    fn c09_whatever_a_task_hides_hooks_below_it_do_nothing() {
        let check = |what: &str, disguise: &str| {
            let (world, said) = hooks_below(disguise);
            assert_eq!(said, "", "{what}");
            end(&world);
            let inner = |e: &Value| e["t"] == "run_started" && e["payload"]["prompt_id"] == "inner";
            assert!(!events(&world).iter().any(inner), "{what}: something was started");
            let record =
                fs::read_to_string(world.state().join("sessions").join(SESSION)).expect("the session's record");
            assert!(!record.contains("\"inner\"") && !record.contains("\"over\""), "{what}: {record}");
        };
        for some in DISGUISES.chunks(4) {
            std::thread::scope(|scope| {
                for (what, disguise) in some {
                    scope.spawn(|| check(what, disguise));
                }
            });
        }
        let tried_here = DISGUISES.len() * HOOKS.len();
        tried("hooks below a task that hides itself", tried_here, 84);
    }

    #[test]
    fn c09_the_same_hooks_beside_a_task_answer() {
        // What the test above relies on: outside of a task, these payloads make hooks speak.
        let claiming = json!([{"id": "t", "shell": "exec sleep 600", "claims": ["a.txt"]}]);
        let world = stage(&claiming);
        start(&world);
        let file = world.path("call.json");
        fs::write(&file, payload(&world, "PreToolUse")).expect("a payload");
        let call = || {
            let mut hook = world.cpw(&["pre-tool-use"]);
            hook.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
            let out = hook.stdin(fs::File::open(&file).expect("the payload")).output().expect("cpw runs");
            String::from_utf8_lossy(&out.stdout).contains("deny")
        };
        assert!((0..30).any(|_| call()), "it says nothing");
        end(&world);
    }

    /// Runs a plan whose only task does this, and waits until nobody is left. How many runs there were, and what was said.
    fn nested(script: &str) -> (usize, String) {
        let site = Site::new();
        site.plan(&plan_of(1, &[shell("again", script)]));
        let done = site.cpw(&["run", "plan.json"]);
        assert!(!done.late, "{done:?}");
        let ended = || site.scratch.ledgers().is_ok_and(|all| all.iter().all(|(_, log)| log.is_ended()));
        site.until("the end of all runs", ended);
        site.until("everybody to leave", || site.left().is_empty());
        (site.scratch.runs().len(), site.said("said"))
    }

    #[test]
    fn c09_a_plan_that_runs_itself_comes_to_an_end() {
        let cpw = crate::scratch::program();
        let cpw = cpw.display();
        let state = "CPW_STATE_DIR=\"$CPW_STATE_DIR\" HOME=\"$HOME\" PATH=\"$PATH\"";
        let too_deep = "this task is part of 3 runs";
        let hidden = "CPW_DEPTH is not set";
        for (script, runs, why) in [
            (format!("{cpw} run plan.json 2>>\"$HOME/said\""), 3, too_deep),
            (format!("{cpw} run plan.json --detach >/dev/null 2>>\"$HOME/said\""), 3, too_deep),
            (format!("setsid --wait {cpw} run plan.json 2>>\"$HOME/said\""), 3, too_deep),
            (format!("env -i {state} {cpw} run plan.json --detach 2>>\"$HOME/said\""), 1, hidden),
            (format!("exec env -i {state} {cpw} run plan.json --detach 2>>\"$HOME/said\""), 1, hidden),
            (
                format!(
                    "(env -i {state} setsid {cpw} run plan.json --detach 2>>\"$HOME/said\" &); until [ -s \"$HOME/said\" ]; do sleep 0.02; done"
                ),
                1,
                hidden,
            ),
            (format!("CPW_DEPTH=many {cpw} run plan.json 2>>\"$HOME/said\""), 1, too_deep),
        ] {
            let (made, said) = nested(&script);
            assert_eq!(made, runs, "{script}: {said}");
            assert!(said.contains(why), "{script}: {said}");
        }
    }

    #[test]
    fn c09_a_run_that_continues_others_comes_to_an_end() {
        let site = Site::new();
        let cpw = crate::scratch::program();
        // Fails, so that it can be continued, and then continues the run that it was made from.
        let script = format!(
            "[ -e \"$HOME/first\" ] || {{ touch \"$HOME/first\"; exit 1; }}; {} retry \"$(cat \"$HOME/id\")\" 2>>\"$HOME/said\"",
            cpw.display()
        );
        let id = site.detach(&plan_of(1, &[shell("again", &script)]));
        site.end("failed");
        fs::write(site.home("id"), &id).expect("a file");
        let done = site.cpw(&["retry", &id]);
        assert!(!done.late && !done.is_ok(), "{done:?}");
        site.until("everybody to leave", || site.left().is_empty());
        assert!(site.scratch.runs().len() <= 4, "{:?}", site.scratch.runs());
        assert!(site.scratch.ledgers().expect("logs").iter().all(|(_, log)| log.is_ended()));
    }

    /// A program of the project that says it was called as a hook, so that a test knows that the client has called them.
    fn witness(world: &World, installed: &Path) {
        let mut settings: Value =
            serde_json::from_str(&world.read(".claude/settings.json").expect("settings")).expect("JSON");
        for (_, event) in HOOKS {
            let entry = json!({"hooks": [{"type": "command", "command": format!("echo {event} >>\"$HOME/fired\""), "timeout": 30}]});
            if let Some(groups) = settings["hooks"][event].as_array_mut() {
                groups.push(entry);
            }
        }
        world.settings(&settings);
        assert!(installed.exists());
    }

    #[test]
    fn c09_a_task_that_calls_the_client_starts_nothing_again() {
        on_each_client(|installed| {
            let script = "n=0; for how in env 'setsid --wait env -i'; do : >\"$HOME/fired\"; \
                $how $(cat \"$HOME/surroundings\") \"$HOME/client\" -p --model claude-opus-5-5 --output-format json \
                'go INNER-PROMPT' </dev/null >>\"$HOME/out\" 2>&1; \
                n=$((n + $(grep -c UserPromptSubmit \"$HOME/fired\"))); done; echo $n >\"$HOME/times\"";
            let world = stage(&json!([{"id": "t", "shell": script, "claims": ["a.txt"]}]));
            witness(&world, &installed.path);
            std::os::unix::fs::symlink(&installed.path, world.home().join("client")).expect("the client");
            let api = Api::start(
                Script::new()
                    .ask(|request: &Request| {
                        assert_eq!(request.count("cpw has started"), 2, "{:?}", request.news());
                        Turn::text("Begun.")
                    })
                    .then(Turn::text("Over.")),
            );
            api.beside("INNER-PROMPT", Script::new());
            let client = Client::new(installed, &world, &api);
            // What the provider needs does not reach a task by itself.
            let mut probe = world.cpw(&["--version"]);
            client.surround(&mut probe);
            let mut surroundings: Vec<String> =
                world.environment().into_iter().map(|(n, v)| format!("{n}={}", v.to_string_lossy())).collect();
            surroundings
                .extend(probe.get_envs().filter_map(|(n, v)| Some(format!("{}={}", n.to_str()?, v?.to_str()?))));
            fs::write(world.home().join("surroundings"), surroundings.join(" ")).expect("a file");
            let printed = client.print("go");
            assert_eq!(printed.code, Some(0), "{printed:?}");
            let times = wait_for(LIMIT, || fs::read_to_string(world.home().join("times")).ok()).expect("the task ends");
            let out = fs::read_to_string(world.home().join("out")).unwrap_or_default();
            assert_eq!(times.trim(), "2", "the inner client's hooks were called: {out}");
            wait_for(LIMIT, || (count(&world, "run_ended") == 2).then_some(())).expect("both runs end");
            assert_eq!((count(&world, "run_started"), count(&world, "started")), (2, 2), "{:?}", events(&world));
            assert_eq!(api.requests_beside("INNER-PROMPT").len(), 2);
            for request in api.requests_beside("INNER-PROMPT") {
                assert_eq!(request.count("cpw has started"), 0, "{:?}", request.news());
            }
            let sessions = fs::read_dir(world.state().join("sessions")).expect("sessions").flatten();
            let records = sessions.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count();
            assert_eq!(records, 1, "a session of a task has a record");
        });
    }
}
