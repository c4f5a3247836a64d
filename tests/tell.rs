//! Looking back: `cpw logs`, `cpw events` and `cpw replay`, as they are typed, on real runs.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::{Path, PathBuf};
    use std::process::Stdio;
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::support::terminal::Terminal;
    use crate::support::world::{World, wait_for};

    const LIMIT: Duration = Duration::from_mins(1);

    fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
        wait_for(LIMIT, || happened().then_some(())).unwrap_or_else(|| panic!("did not happen: {what}"));
    }

    /// What a command has printed and how it has ended.
    struct Said {
        out: String,
        err: String,
        code: Option<i32>,
    }

    fn cpw(world: &World, args: &[&str]) -> Said {
        let output = world.cpw(args).output().expect("cpw runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { out: text(&output.stdout), err: text(&output.stderr), code: output.status.code() }
    }

    /// Starts a run in the background; its folder.
    fn detach(world: &World, plan: &str) -> PathBuf {
        world.write("plan.json", plan);
        let said = cpw(world, &["run", "plan.json", "--detach"]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        world.project().join(".claude/runs").join(said.out.trim())
    }

    fn finish(world: &World) {
        assert!(cpw(world, &["wait", "--run"]).code.is_some());
    }

    /// The one file of the workers' logs by that name.
    fn log_of(run: &Path, name: &str) -> Option<PathBuf> {
        let workers = fs::read_dir(run.join("workers")).ok()?;
        workers.flatten().map(|w| w.path().join("logs").join(name)).find(|path| path.exists())
    }

    /// Two tasks that write in turns.
    const TURNS: &str = r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
        {"id": "first", "shell": "echo a1; until [ -e go2 ]; do sleep 0.02; done; echo a2; echo e2 >&2; until [ -e go3 ]; do sleep 0.02; done"},
        {"id": "second", "shell": "until [ -e go1 ]; do sleep 0.02; done; echo b1; until [ -e go3 ]; do sleep 0.02; done"}]}"#;

    #[test]
    fn the_output_of_several_tasks_is_merged_as_it_was_written() {
        let world = World::new();
        let run = detach(&world, TURNS);
        let noted = |name: &str, bytes: &str| {
            wait_until(&format!("{name} {bytes}"), || {
                let times = log_of(&run, name).and_then(|path| fs::read_to_string(path).ok());
                times.is_some_and(|text| text.lines().any(|line| line.ends_with(bytes)))
            });
        };
        noted("first.1.times", " 3 0");
        world.write("go1", "");
        noted("second.1.times", " 3 0");
        world.write("go2", "");
        noted("first.1.times", " 6 3");
        world.write("go3", "");
        finish(&world);

        let texts = |args: &[&str]| {
            let said = cpw(&world, args);
            assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{args:?}");
            let text = |line: &str| line.rsplit(' ').next().unwrap_or_default().to_owned();
            said.out.lines().map(text).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(texts(&["logs"]), "a1 b1 a2 e2");
        assert_eq!(texts(&["logs", "-n", "2"]), "a2 e2");
        assert_eq!(texts(&["logs", "-n", "3", "--out"]), "a1 b1 a2");
        assert_eq!(texts(&["logs", "--err"]), "e2");
        assert_eq!(texts(&["logs", "sec", "first", "-n", "9", "-f"]), "a1 b1 a2 e2");
        assert_eq!(texts(&["logs", "--attempt", "2"]), "");
        assert_eq!(cpw(&world, &["logs", "first"]).out, "a1\na2\ne2\n", "one task, as it is");
        assert_eq!(texts(&["logs", "*s*", "--no-prefix", "-n", "1"]), "e2");

        let prefix = regex::Regex::new(r"(?m)^\+0:0\d:\d\d\.\d W[12] (first |second) [ !]│ [abe]\d$").expect("a regex");
        let timed = cpw(&world, &["logs", "--since-start"]).out;
        assert_eq!(prefix.find_iter(&timed).count(), 4, "{timed}");
        let of_day = regex::Regex::new(r"^\d\d:\d\d:\d\d\.\d a1\n").expect("a regex");
        let timed = cpw(&world, &["logs", "first", "-t"]).out;
        assert!(of_day.is_match(&timed), "{timed}");

        // Nobody has to have noted anything.
        for name in ["first.1.times", "second.1.times"] {
            fs::remove_file(log_of(&run, name).expect("its notes")).expect("removed");
        }
        let merged = texts(&["logs"]);
        assert!(["a1 a2 e2 b1", "b1 a1 a2 e2"].contains(&merged.as_str()), "{merged}");

        let wrong = cpw(&world, &["logs", "third*"]);
        assert_eq!(wrong.code, Some(3));
        assert!(wrong.err.contains("no task of this run matches 'third*'") && wrong.err.contains("first, second"));
    }

    /// A failure, a retry, what is skipped, and a worker each.
    const MIXED: &str = r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
        {"id": "build", "title": "the whole", "shell": "cpw progress 50 --note half; test $CPW_ATTEMPT -gt 1 && cpw summary 'all built'",
         "retries": 1, "backoff": {"initial": "1ms"}},
        {"id": "lint", "shell": "echo untidy >&2; exit 4"},
        {"id": "test", "needs": ["build"], "shell": "echo fine"},
        {"id": "ship", "needs": ["test", "lint"], "shell": "true"}]}"#;

    /// Every file of the world, with its bytes and when it was written.
    fn listing(world: &World) -> BTreeMap<PathBuf, (Vec<u8>, i64, i64)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![world.project(), world.state()];
        while let Some(folder) = folders.pop() {
            let stat = fs::metadata(&folder).expect("a folder");
            found.insert(folder.clone(), (Vec::new(), stat.mtime(), stat.mtime_nsec()));
            for entry in fs::read_dir(&folder).expect("a folder").flatten() {
                let (path, stat) = (entry.path(), entry.metadata().expect("its data"));
                if stat.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = if stat.is_file() { fs::read(&path).expect("its bytes") } else { Vec::new() };
                    found.insert(path, (bytes, stat.mtime(), stat.mtime_nsec()));
                }
            }
        }
        found
    }

    fn json(said: &Said) -> Value {
        serde_json::from_str(&said.out).unwrap_or_else(|e| panic!("{e}: {}{}", said.out, said.err))
    }

    #[test]
    fn events_that_are_followed_go_on_when_all_workers_are_killed() {
        let world = World::new();
        let plan = r#"{"version": 1, "limits": {"max_workers": 1}, "tasks": [
            {"id": "a", "shell": "until [ -e go ]; do sleep 0.02; done", "retries": 1}]}"#;
        let run = detach(&world, plan);
        let pid = |kind: &str| {
            let log = fs::read_to_string(run.join("events.jsonl")).ok()?;
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines
                .filter(|event| event["t"] == kind)
                .find_map(|event| i32::try_from(event["payload"]["pid"].as_i64()?).ok())
        };
        wait_until("the task to run", || pid("spawned").is_some());
        let worker = nix::unistd::Pid::from_raw(pid("worker_started").expect("a worker"));
        nix::sys::signal::kill(worker, nix::sys::signal::Signal::SIGKILL).expect("it is ours");
        world.write("go", "");
        let said = cpw(&world, &["events", "-f"]);
        assert_eq!(said.code, Some(0), "{}", said.err);
        assert!(said.out.contains("worker_lost") && said.out.contains("run ok: all tasks are done"), "{}", said.out);
    }

    fn name(run: &Path) -> &str {
        run.file_name().and_then(|n| n.to_str()).expect("a name")
    }

    fn events_of(run: &Path) -> usize {
        fs::read_to_string(run.join("events.jsonl")).expect("a log").lines().count()
    }

    #[test]
    fn a_run_looked_back_at_is_what_it_was_and_nothing_changes() {
        let world = World::new();
        let run = detach(&world, MIXED);
        finish(&world);
        wait_until("the workers to leave", || world.processes().is_empty());
        let status = json(&cpw(&world, &["status", name(&run), "--json"]));
        let last = events_of(&run);
        // Looking for the newest run must not make what is missing.
        drop(fs::remove_file(run.join("state.idx")));
        let before = listing(&world);

        let back = json(&cpw(&world, &["replay", "--to", &last.to_string(), "--json"]));
        assert_eq!(back["runs"], status["runs"], "the same fold");
        assert_eq!((&back["seq"], &back["last"]), (&json!(last), &json!(last)));
        let text = cpw(&world, &["status", name(&run)]).out;
        let told = cpw(&world, &["replay", name(&run), "--to", &last.to_string()]).out;
        let tasks = |text: &str| text.lines().filter(|l| l.starts_with("  ")).map(str::to_owned).collect::<Vec<_>>();
        assert!(tasks(&told).iter().any(|line| line.contains("all built")), "{told}");
        assert_eq!(tasks(&told), tasks(&text));
        assert!(told.starts_with(&format!("event {last} of {last}, ")), "{told}");

        let all = cpw(&world, &["replay"]);
        assert_eq!(all.code, Some(0), "{}", all.err);
        for change in [
            "build: ready → running",
            "build: running → retrying",
            "build: retrying → running",
            "build: running → done",
            "test: waiting → ready",
            "lint: running → failed",
            "ship: waiting → skipped",
        ] {
            assert!(all.out.contains(&format!("\n       {change}\n")), "{change} not in\n{}", all.out);
        }
        let fast = cpw(&world, &["replay", "--speed", "1000000"]);
        assert_eq!((fast.code, &fast.out), (Some(0), &all.out));

        // Between two events the tasks differ by what the second has changed.
        let lines = cpw(&world, &["replay", "--json"]).out;
        let mut phases: BTreeMap<String, Value> = BTreeMap::new();
        for (seq, line) in (1..).zip(lines.lines()) {
            let event: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(event["seq"], json!(seq));
            let at = json(&cpw(&world, &["replay", "--to", &seq.to_string(), "--json"]));
            let now: BTreeMap<String, Value> = at["runs"][0]["tasks"]
                .as_array()
                .expect("tasks")
                .iter()
                .map(|t| (t["task"].as_str().expect("an id").to_owned(), t["state"].clone()))
                .collect();
            for change in event["changes"].as_array().expect("changes") {
                let was = phases.insert(change["task"].as_str().expect("an id").to_owned(), change["to"].clone());
                assert!(was.is_none() || was.as_ref() == Some(&change["from"]), "{line}");
            }
            if seq == 1 {
                phases = now.clone();
            }
            assert_eq!(now, phases, "at event {seq}");
        }
        assert_eq!(lines.lines().count(), last);

        for wrong in [&["replay", "--to", "0"][..], &["replay", "--to", "9999"], &["replay", "--speed", "0"]] {
            assert_eq!(cpw(&world, wrong).code, Some(3), "{wrong:?}");
        }
        let named = cpw(&world, &["replay", "--to", "9999"]).err;
        assert!(named.contains("has no event 9999") && named.contains(&format!("1 to {last}")), "{named}");
        assert!(listing(&world) == before, "looking back has changed something");
    }

    #[test]
    fn steps_go_on_back_and_anywhere() {
        let world = World::new();
        let run = detach(&world, MIXED);
        finish(&world);
        let last = events_of(&run);
        let typed = format!("\n\nb\ns\ng {last}\n\n?\ng 0\nq\n");
        let mut command = world.cpw(&["replay", "--step"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cpw runs");
        child.stdin.take().expect("its stdin").write_all(typed.as_bytes()).expect("typed");
        let output = child.wait_with_output().expect("its end");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        let kinds: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().nth(2)).collect();
        assert!(text.starts_with(&format!("run {}, {last} events. Enter next event", name(&run))), "{text}");
        assert_eq!(kinds.iter().filter(|k| **k == "run_started").count(), 2, "there and back: {text}");
        assert!(text.contains("that was the last event") && text.contains("before the first event"), "{text}");
        assert!(text.contains("failed: lint failed  2 done"), "how it stands at the end: {text}");

        let mut terminal = Terminal::start(world.cpw(&["replay", name(&run)]));
        terminal.wait_for_text(&format!("[0/{last}]"), LIMIT);
        terminal.enter();
        terminal.wait_for_text("run_started", LIMIT);
        terminal.wait_for_text(&format!("[1/{last}]"), LIMIT);
        terminal.type_text("g 3\r");
        terminal.wait_for_text(&format!("[3/{last}]"), LIMIT);
        terminal.type_text("q\r");
        assert!(terminal.process().wait(LIMIT).is_some_and(|status| status.success()), "{}", terminal.screen());
    }

    /// The checked-in run of a version, in a folder that nobody has registered.
    fn foreign(version: &str) -> (World, PathBuf) {
        let world = World::new();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/logs").join(version);
        let plan = fs::read_to_string(from.join("plan.json")).expect("a plan");
        let id = serde_json::from_str::<Value>(&plan).expect("a plan")["run"].as_str().expect("an id").to_owned();
        let run = world.project().join(".claude/runs").join(id);
        fs::create_dir_all(run.join("bells")).expect("a folder");
        for file in ["plan.json", "events.jsonl"] {
            fs::copy(from.join(file), run.join(file)).expect("a copy");
            fs::set_permissions(run.join(file), fs::Permissions::from_mode(0o600)).expect("rights");
        }
        fs::create_dir_all(world.state()).expect("a folder");
        (world, run)
    }

    #[test]
    fn runs_of_others_and_of_other_versions_are_told_at_every_event() {
        for version in ["v1", "v2"] {
            let (world, run) = foreign(version);
            let before = listing(&world);
            let last = events_of(&run);
            for seq in 1..=last {
                let said = cpw(&world, &["replay", "--to", &seq.to_string(), "--json"]);
                assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{version} at {seq}");
            }
            let rows = cpw(&world, &["events"]).out;
            assert_eq!(rows.lines().count(), last);
            assert!(listing(&world) == before, "looking back has changed something");
        }
    }

    #[test]
    fn events_are_chosen_and_a_damaged_log_is_shown_up_to_the_damage() {
        let (world, run) = foreign("v1");
        let log = fs::read_to_string(run.join("events.jsonl")).expect("a log");
        let lines: Vec<&str> = log.lines().collect();
        let of = |test: &dyn Fn(&Value) -> bool| {
            let fits = |l: &&&str| test(&serde_json::from_str(l).expect("JSON"));
            lines.iter().filter(fits).fold(String::new(), |all, line| all + line + "\n")
        };
        assert_eq!(cpw(&world, &["events", "--json", "--task", "build"]).out, of(&|e| e["task"] == "build"));
        assert_eq!(
            cpw(&world, &["events", "--json", "--kind", "done,failed"]).out,
            of(&|e| e["t"] == "done" || e["t"] == "failed")
        );
        assert_eq!(cpw(&world, &["events", "--json", "--from", "9"]).out, of(&|e| e["seq"].as_u64() >= Some(9)));
        let wrong = cpw(&world, &["events", "--kind", "finished"]);
        assert!(wrong.code == Some(3) && wrong.err.contains("no kind of event 'finished'"), "{}", wrong.err);

        let bad = log.replacen("\"seq\":12,", "\"seq\":77,", 1);
        fs::write(run.join("events.jsonl"), bad).expect("a damaged log");
        let place = log.lines().take(11).map(|l| l.len() + 1).sum::<usize>();
        for args in [&["events"][..], &["events", "--json"], &["replay"], &["logs"]] {
            let said = cpw(&world, args);
            let shown = if args == ["logs"] { 0 } else { 11 };
            let rows = said.out.lines().filter(|l| !l.starts_with("       ")).count();
            assert_eq!((said.code, rows), (Some(1), shown), "{args:?}: {}{}", said.out, said.err);
            assert!(
                said.err.contains("seq 12 is missing") && said.err.contains(&format!("byte {place}")),
                "{}",
                said.err
            );
        }
        assert_eq!(cpw(&world, &["replay", "--to", "11", "--json"]).code, Some(0));
        let beyond = cpw(&world, &["replay", "--to", "12"]);
        assert!(beyond.code == Some(1) && beyond.err.contains("seq 12 is missing"), "{}", beyond.err);
    }
}
