//! `cpw status` as people and programs get it: on terminals of three widths, in a pipe, and as JSON that keeps to its schema.
//! What it shows of a state is a pure function with tests of its own (`src/ui/overview.rs`).

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
#[path = "support/schema.rs"]
mod judge;

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read as _;
    use std::process::{Command, Output};
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    use nix::pty::{Winsize, openpty};
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use regex::Regex;
    use serde_json::{Value, json};

    use crate::judge::fits;
    use crate::support::world::{World, wait_for};

    const LIMIT: Duration = Duration::from_mins(1);
    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

    fn good(mut command: Command) -> String {
        let Output { status, stdout, stderr } = command.output().expect("cpw runs");
        assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).expect("text")
    }

    fn json_of(world: &World, args: &[&str]) -> Value {
        serde_json::from_str(&good(world.cpw(args))).expect("JSON")
    }

    fn start(world: &World, plan: &Value) -> String {
        world.write("plan.json", &plan.to_string());
        good(world.cpw(&["run", "plan.json", "--detach"])).trim().to_owned()
    }

    fn until(world: &World, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let look = || Some(json_of(world, &["status", "--json"])["runs"][0].clone()).filter(|run| is(run));
        wait_for(LIMIT, look).unwrap_or_else(|| panic!("never {what}: {:#}", json_of(world, &["status", "--json"])))
    }

    /// Of every kind of thing something: what failed, warns, writes, votes, waits for others and for a resource.
    fn busy(world: &World) -> String {
        let wait = "until [ -e go ]; do sleep 0.05; done";
        let plan = json!({"version": 1, "limits": {"max_workers": 4},
            "votes": [{"topic": "ship", "voters": ["talks", "waits"], "on_abort": "none"}],
            "tasks": [
                {"id": "bad", "shell": "echo 'three problems' >&2; exit 7"},
                {"id": "warns", "shell": format!("cpw signal --hook stop --exit 9 --message 'the disk is slow'; {wait}")},
                {"id": "talks", "shell": format!("cpw vote ship proceed; printf 'page 1\\rpage \\033[31m7\\033[0m of 9'; {wait}")},
                {"id": "holds", "title": "名前は長い文字列です", "resources": ["db"],
                 "shell": format!("cpw progress 40 --eta 30s --note '名前は長い文字列です とても長い'; {wait}")},
                {"id": "waits", "resources": ["db"], "shell": "true"},
                {"id": "behind", "needs": ["talks", "warns"], "shell": "true"}]});
        let id = start(world, &plan);
        until(world, "busy", |run| {
            let task = |i: usize| &run["tasks"][i];
            task(0)["state"] == "failed"
                && run["warnings"]["count"] == 1
                && task(2)["written"] == "page 7 of 9"
                && task(3)["percent"] == 40
                && run["votes"][0]["proceed"] == 1
        });
        id
    }

    fn finish(world: &World) {
        world.write("go", "");
        until(world, "over", |run| run["state"] != "active");
    }

    /// The schema with no place for keys that it does not list: programs are to know all that are there today.
    fn closed(schema: &mut Value) {
        if schema["properties"].is_object() && schema.get("additionalProperties").is_none() {
            schema["additionalProperties"] = json!(false);
        }
        match schema {
            Value::Object(fields) => fields.values_mut().for_each(closed),
            Value::Array(items) => items.iter_mut().for_each(closed),
            _ => {}
        }
    }

    #[test]
    fn what_programs_get_is_what_its_schema_says() {
        let world = World::new();
        let mut schema: Value = json_of(&world, &["schema", "status"]);
        closed(&mut schema);
        let check = |value: &Value| fits(&schema, &schema, value, "$");
        let fits = |value: &Value| check(value).unwrap_or_else(|e| panic!("{e}\n{value:#}"));
        fits(&json_of(&world, &["status", "--json"]));
        let id = busy(&world);
        let all = json_of(&world, &["status", "--json"]);
        fits(&all);
        let (tasks, warnings) = (&all["runs"][0]["tasks"], &all["runs"][0]["warnings"]["last"]);
        assert_eq!(
            warnings,
            &json!([{"seq": warnings[0]["seq"], "task": "warns", "worker": tasks[1]["worker"], "exit": 9,
            "message": "the disk is slow", "count": 1}])
        );
        assert!(
            tasks[4]["waits_for"].as_str().is_some_and(|w| w.starts_with("db, held by task holds (W")),
            "{tasks:#}"
        );
        fits(&json_of(&world, &["status", &id, "--json"]));
        let everywhere = json_of(&world, &["status", "--all", "--json"]);
        fits(&everywhere);
        assert_eq!(everywhere["projects"][0]["runs"][0]["run"], id);
        finish(&world);
        fits(&json_of(&world, &["status", "--json"]));
        fits(&json_of(&world, &["status", &id, "--json"]));
        let log = world.project().join(".claude/runs").join(&id).join("events.jsonl");
        fs::write(&log, "").expect("it is emptied");
        let damaged = json_of(&world, &["status", "--json"]);
        fits(&damaged);
        assert_eq!(damaged["runs"][0]["state"], "damaged");
        // The check itself can fail.
        let wrong = |change: fn(&mut Value)| {
            let mut value = all.clone();
            change(&mut value);
            check(&value).expect_err("it is wrong")
        };
        assert!(wrong(|v| v["runs"][0]["sparkle"] = json!(1)).contains("sparkle"));
        assert!(wrong(|v| v["runs"][0]["tasks"][0]["state"] = json!("odd")).contains("odd"));
        assert!(wrong(|v| drop(v.as_object_mut().map(|v| v.remove("runs")))).contains("anyOf"));
    }

    /// What a terminal of so many columns shows.
    fn on_terminal(world: &World, args: &[&str], columns: u16, env: &[(&str, &str)]) -> String {
        let size = Winsize { ws_row: 40, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).expect("a terminal");
        let (mut shows, programs) = (File::from(pty.master), File::from(pty.slave));
        for side in [&shows, &programs] {
            fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).expect("a flag");
        }
        let mut command = world.cpw(args);
        command.envs(env.iter().copied()).stdout(programs.try_clone().expect("a copy")).stderr(programs);
        let mut child = command.spawn().expect("cpw starts");
        drop(command);
        let (mut text, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = shows.read(&mut chunk) {
            text.extend_from_slice(&chunk[..n]);
        }
        assert!(child.wait().expect("our own child").success());
        String::from_utf8(text).expect("text").replace("\r\n", "\n")
    }

    fn columns(line: &str) -> usize {
        cpw::ui::fit::columns(line)
    }

    #[test]
    fn a_terminal_gets_lines_that_fit_and_a_pipe_gets_all_of_them() {
        let world = World::new();
        let id = busy(&world);
        let escapes = Regex::new(r"\x1b\[[0-9;]*m").expect("a pattern");
        let random = id.rsplit('-').next().expect("its last part");
        for width in [60, 80, 120] {
            for args in [&["status"][..], &["status", &random[..6]], &["status", "--all"]] {
                let shown = on_terminal(&world, args, width, &[]);
                let plain = escapes.replace_all(&shown, "");
                assert!(plain.lines().all(|l| columns(l) <= usize::from(width)), "{args:?} at {width}:\n{plain}");
                assert!(!plain.contains('\u{1b}') && shown != plain, "{shown:?}");
                for part in [&random[..6], "✗ failed", "▸ running", "· waiting", "○ ready", "40 %", "! W", "vote ship"]
                {
                    assert!(plain.contains(part), "{args:?} at {width}: no {part}\n{plain}");
                }
            }
        }
        for env in [("NO_COLOR", "1"), ("TERM", "dumb")] {
            let shown = on_terminal(&world, &["status"], 80, &[env]);
            assert!(!shown.contains('\u{1b}') && shown.lines().all(|l| columns(l) <= 80), "{env:?}: {shown}");
        }
        let piped = good(world.cpw(&["status"]));
        for part in [
            &*id,
            "needs talks, warns",
            "waits for db, held by task holds (W",
            "page 7 of 9",
            "名前は長い文字列です とても長い",
        ] {
            assert!(piped.contains(part), "no {part}\n{piped}");
        }
        assert!(
            piped.contains("warns: the disk is slow\n") && !piped.contains('…') && !piped.contains('\u{1b}'),
            "{piped}"
        );
        let mut forced = world.cpw(&["status"]);
        forced.env("CLICOLOR_FORCE", "1");
        assert!(good(forced).contains("\u{1b}[31m✗ failed"));
        finish(&world);
    }

    #[test]
    fn of_a_long_run_the_rest_is_counted_and_of_many_runs_the_newest_are_shown() {
        let world = World::new();
        let tasks: Vec<Value> =
            (0..120).map(|n| json!({"id": format!("t{n}"), "shell": "true", "needs": ["first"]})).collect();
        let tasks = [vec![json!({"id": "first", "shell": "until [ -e go ]; do sleep 0.05; done"})], tasks].concat();
        start(&world, &json!({"version": 1, "tasks": tasks}));
        until(&world, "running", |run| run["tasks"][0]["state"] == "running");
        let lines = |args: &[&str]| good(world.cpw(args)).lines().count();
        let id = json_of(&world, &["status", "--json"])["runs"][0]["run"].as_str().expect("an id").to_owned();
        assert!(good(world.cpw(&["status"])).contains("and 71 more: 71 waiting\n"));
        assert!((50..60).contains(&lines(&["status"])));
        assert!(lines(&["status", "--tasks"]) > 120 && lines(&["status", &id]) > 120);
        let shown = on_terminal(&world, &["status", &id], 80, &[]);
        assert!(shown.contains(" more: ") && shown.lines().count() <= 40, "{shown}");
        world.write("plan.json", &json!({"version": 1, "tasks": [{"id": "a", "shell": "true"}]}).to_string());
        good(world.cpw(&["run", "plan.json"]));
        let newest = good(world.cpw(&["status", "-n", "1"]));
        assert!(newest.contains("✓ ok") && newest.contains("1 older: cpw status --limit 0"), "{newest}");
        assert_eq!(json_of(&world, &["status", "--json", "--limit", "0"])["runs"].as_array().map(Vec::len), Some(2));
        world.write("go", "");
        good(world.cpw(&["wait", "--run", &id]));
    }

    #[test]
    fn runs_of_other_projects_are_seen_and_left_alone() {
        let world = World::new();
        let id = start(&world, &json!({"version": 1, "tasks": [{"id": "a", "shell": "sleep 300"}]}));
        let run = until(&world, "running", |run| run["tasks"][0]["state"] == "running");
        let worker = Pid::from_raw(i32::try_from(run["workers"][0]["pid"].as_i64().expect("a pid")).expect("a pid"));
        let other = world.path("other");
        fs::create_dir_all(other.join(".git")).expect("a folder");
        let elsewhere = |args: &[&str]| {
            let mut command = world.cpw(args);
            command.current_dir(&other);
            good(command)
        };
        assert!(elsewhere(&["status"]).contains("no run in"));
        kill(worker, Signal::SIGKILL).expect("it lives");
        let dead = || elsewhere(&["status", "--all"]).contains("no worker is alive").then_some(());
        wait_for(LIMIT, dead).expect("it dies");
        let all = elsewhere(&["status", "--all"]);
        assert!(all.starts_with(&format!("{}\n", world.project().display())) && all.contains(&id), "{all}");
        let events =
            fs::read_to_string(world.project().join(".claude/runs").join(&id).join("events.jsonl")).expect("a log");
        assert_eq!(events.matches("\"t\":\"worker_started\"").count(), 1, "who only looks starts nobody");
        assert!(good(world.cpw(&["status", "--all"])).contains("all its workers are dead; started W2"));
        until(&world, "over", |run| run["state"] == "failed");
    }

    #[test]
    fn the_last_hook_of_which_there_is_a_trace_is_named() {
        let world = World::new();
        let config = json!({"version": 1, "rules": [{"name": "go", "when": {"prompt": "deploy"},
            "tasks": [{"id": "a", "shell": "until [ -e go ]; do sleep 0.05; done"}]}]});
        world.write(".claude/cpw.json", &config.to_string());
        good(world.cpw(&["allow", "--yes"]));
        let hook = |name: &str, event: &str, more: &Value| {
            let mut payload =
                json!({"session_id": SESSION, "cwd": world.project(), "prompt_id": "p1", "hook_event_name": event});
            payload.as_object_mut().expect("an object").extend(more.as_object().cloned().expect("an object"));
            let stdin = world.path("payload");
            fs::write(&stdin, format!("{payload}\n")).expect("a file");
            let mut command = world.cpw(&[name]);
            command
                .env("CLAUDE_CODE_SESSION_ID", SESSION)
                .env("CLAUDE_PROJECT_DIR", world.project())
                .env("CPW_LOG", "debug");
            command.stdin(File::open(stdin).expect("a file"));
            good(command)
        };
        hook("user-prompt-submit", "UserPromptSubmit", &json!({"prompt": "deploy it"}));
        let shown = good(world.cpw(&["status"]));
        assert!(shown.contains(&format!("last hook seen: user-prompt-submit of session {SESSION}, ")), "{shown}");
        hook(
            "pre-tool-use",
            "PreToolUse",
            &json!({"tool_name": "Read", "tool_input": {"file_path": "/x"}, "tool_use_id": "t"}),
        );
        let seen = json_of(&world, &["status", "--json"])["last_hook"].clone();
        assert_eq!((&seen["hook"], &seen["session"]), (&json!("pre-tool-use"), &json!(SESSION)));
        fs::remove_file(world.state().join("hooks.jsonl")).expect("it was there");
        assert_eq!(json_of(&world, &["status", "--json"])["last_hook"]["hook"], "UserPromptSubmit", "by the log alone");
        world.write("go", "");
        until(&world, "over", |run| run["state"] == "ok");
    }
}
