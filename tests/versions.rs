//! Logs of other versions. What schema 1 has written is read for ever, every kind of event of it; what a later one writes
//! is read as far as it is known, and never written to.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};

    use cpw::model::event::Body;
    use serde_json::{Value, json};

    use crate::support::world::World;

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";
    /// What stands in the logs where the boot belongs.
    const BOOT: &str = "5b1e5f0c-7a34-4d2a-9a53-2f6d1c8b9e10";
    const RESULT: &str = "built\n3 warnings\n";

    fn checked_in(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/logs").join(name);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    fn private(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("rights");
    }

    /// A world with the checked-in run of a version, its folder as cpw would have made it.
    fn world_with(version: &str, change: impl Fn(String) -> String) -> (World, PathBuf) {
        let world = World::new();
        let plan = checked_in(&format!("{version}/plan.json"));
        let id = serde_json::from_str::<Value>(&plan).expect("a plan")["run"].as_str().expect("an id").to_owned();
        let run = world.project().join(".claude/runs").join(id);
        for folder in ["bells", "workers/W1/out/build.1", "workers/W1/logs", "workers/W2/out", "workers/W2/logs"] {
            fs::create_dir_all(run.join(folder)).expect("a folder");
        }
        for (name, text) in [
            ("plan.json", plan),
            ("events.jsonl", change(checked_in(&format!("{version}/events.jsonl")))),
            ("leader.lock", String::new()),
            ("deliver.lock", String::new()),
            ("workers/W1/live.lock", String::new()),
            ("workers/W2/live.lock", String::new()),
            ("workers/W1/logs/build.1.out", "building\n".into()),
            ("workers/W1/out/build.1/result.txt", RESULT.into()),
        ] {
            fs::write(run.join(name), text).expect("a file of the run");
            private(&run.join(name), 0o600);
        }
        private(&run, 0o700);
        (world, run)
    }

    fn cpw(world: &World, args: &[&str]) -> Output {
        world.cpw(args).output().expect("cpw runs")
    }

    fn text(out: &Output) -> String {
        String::from_utf8_lossy(&[&out.stdout[..], &out.stderr[..]].concat()).into_owned()
    }

    fn status(world: &World, run: &Path) -> Value {
        let id = run.file_name().and_then(|n| n.to_str()).expect("a name");
        let out = cpw(world, &["status", "--json", id]);
        let mut all: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let mut shown = all["runs"][0].take();
        // Where the test put it.
        assert_eq!(shown["folder"].as_str(), run.to_str());
        shown.as_object_mut().expect("an object").remove("folder");
        shown
    }

    /// The kinds of the project's log of leases. All others are a run's.
    const PROJECT: [&str; 6] = ["opened", "queued", "acquire", "renew", "release", "expired"];

    fn kinds(log: &str) -> BTreeSet<String> {
        log.lines()
            .map(|l| serde_json::from_str::<Value>(l).expect("JSON")["t"].as_str().expect("a kind").to_owned())
            .collect()
    }

    fn run_kinds() -> impl Iterator<Item = &'static str> {
        Body::NAMES.iter().copied().filter(|n| !PROJECT.contains(n))
    }

    #[test]
    fn the_logs_of_schema_1_have_every_kind_of_event() {
        let known: BTreeSet<String> = run_kinds().map(str::to_owned).collect();
        let missing = "a new kind of schema 1 belongs into tests/logs/v1, at the place where it is legal";
        assert_eq!(kinds(&checked_in("v1/events.jsonl")), known, "{missing}");
        assert_eq!(kinds(&checked_in("v1/project.jsonl")), PROJECT.map(str::to_owned).into(), "{missing}");
    }

    #[test]
    fn leases_of_schema_1_are_read_for_ever() {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's id");
        let world = World::new();
        let folder = world.project().join(".claude/runs/project");
        fs::create_dir_all(folder.join("bells")).expect("a folder");
        private(&folder, 0o700);
        // The process that holds, and waits, is this one.
        let stat = fs::read_to_string("/proc/self/stat").expect("what the kernel says");
        let begun = stat.rsplit_once(')').expect("a name").1.split_ascii_whitespace().nth(19).expect("a start time");
        let own = format!("{{\"pid\":{},\"start_time\":{begun},\"boot_id\":\"{}\"", std::process::id(), boot.trim());
        let log = checked_in("v1/project.jsonl");
        let dead = "{\"pid\":4200,\"start_time\":42000,\"boot_id\":\"5b1e5f0c-7a34-4d2a-9a53-2f6d1c8b9e10\"";
        fs::write(folder.join("events.jsonl"), log.replace(dead, &own)).expect("the log");
        private(&folder.join("events.jsonl"), 0o600);
        let listed: Value = serde_json::from_slice(&cpw(&world, &["lease", "--json"]).stdout).expect("JSON");
        let (held, waiting) = (&listed["held"], &listed["waiting"]);
        assert_eq!((&held[0]["token"], &held[0]["resources"]), (&json!(6), &json!(["db", "file:src/app"])), "{listed}");
        assert_eq!((&held[0]["holder"]["task"], &waiting[0]["request"]), (&json!("deploy"), &json!(9)), "{listed}");
        assert_eq!((held.as_array().map(Vec::len), waiting.as_array().map(Vec::len)), (Some(1), Some(1)), "{listed}");
        // The next one has the next number.
        let out = cpw(&world, &["lease", "other", "--", "sh", "-c", "echo $CPW_LEASE_TOKEN"]);
        assert_eq!(text(&out), "11\n");
    }

    #[test]
    fn a_log_of_schema_1_is_read_for_ever() {
        let (world, run) = world_with("v1", |log| log);
        let expected: Value = serde_json::from_str(&checked_in("v1/status.json")).expect("JSON");
        let shown = status(&world, &run);
        assert_eq!(shown, expected, "now it reads:\n{shown:#}");
        let out = cpw(&world, &["result", "build"]);
        assert_eq!((out.status.code(), text(&out).as_str()), (Some(0), RESULT));
        assert_eq!(text(&cpw(&world, &["logs", "build"])), "building\n");
        let out = cpw(&world, &["events", "--json"]);
        assert_eq!(text(&out), checked_in("v1/events.jsonl"));
        let events = text(&cpw(&world, &["events"]));
        for kind in run_kinds() {
            assert!(events.contains(kind), "{kind}: {events}");
        }
        let id = run.file_name().and_then(|n| n.to_str()).expect("a name");
        assert!(cpw(&world, &["doctor", id]).status.success());
    }

    /// A run of a newer cpw, open, with news for its session, and all its workers dead: whoever could, would write.
    fn newer() -> (World, PathBuf) {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("the boot's id");
        let (world, run) = world_with("v2", |log| log.replace(BOOT, boot.trim()));
        let id = |path: &Path| {
            let meta = fs::metadata(path).expect("it is there");
            (meta.dev(), meta.ino())
        };
        let ((dev, ino), log) = (id(&run), id(&run.join("events.jsonl")));
        let record = json!({"path": run, "dev": dev, "ino": ino, "log": log, "project": world.project()});
        fs::create_dir(world.state().join("runs")).expect("a folder");
        let name = run.file_name().expect("a name");
        fs::write(world.state().join("runs").join(name), record.to_string()).expect("a record");
        let entry = json!({"t": "run", "path": run, "dev": dev, "ino": ino, "log": log, "rule": "ship"});
        fs::create_dir(world.state().join("sessions")).expect("a folder");
        fs::write(world.state().join("sessions").join(SESSION), format!("{entry}\n")).expect("a record");
        for folder in ["", "runs", "sessions"] {
            private(&world.state().join(folder), 0o700);
        }
        private(&world.state().join("runs").join(name), 0o600);
        private(&world.state().join("sessions").join(SESSION), 0o600);
        (world, run)
    }

    /// Every file below a folder.
    fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path()) {
                if path.is_dir() {
                    folders.push(path.clone());
                }
                found.insert(path.clone(), fs::read(&path).unwrap_or_default());
            }
        }
        found
    }

    fn hook(world: &World, name: &str, event: &str) -> String {
        let payload = json!({
            "session_id": SESSION, "transcript_path": "/nowhere/t.jsonl", "cwd": world.project(), "prompt_id": "p2",
            "permission_mode": "acceptEdits", "hook_event_name": event, "prompt": "Go on", "tool_name": "Read",
            "tool_input": {"file_path": world.project().join("deploy.md")}, "tool_use_id": "toolu_9",
        });
        let mut command: Command = world.cpw(&[name]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cpw starts");
        child.stdin.take().expect("a pipe").write_all(payload.to_string().as_bytes()).expect("it reads");
        let out = child.wait_with_output().expect("it ends");
        assert_eq!(out.status.code(), Some(0), "{name}: {}", text(&out));
        text(&out)
    }

    #[test]
    fn a_newer_log_is_read_as_far_as_it_is_known() {
        let (world, run) = newer();
        let before = files(&run);
        let shown = status(&world, &run);
        assert_eq!((&shown["state"], &shown["session"]), (&json!("active"), &json!(SESSION)), "{shown}");
        assert!(shown["error"].as_str().is_some_and(|e| e.contains("schema 2") && e.contains("newer cpw")), "{shown}");
        let state = |i: usize| (shown["tasks"][i]["task"].clone(), shown["tasks"][i]["state"].clone());
        assert_eq!(state(0), (json!("build"), json!("done")), "{shown}");
        assert_eq!(state(1).0, json!("lint"), "{shown}");
        let said = text(&cpw(&world, &["status"]));
        assert!(said.contains("schema 2") && said.contains("newer cpw"), "{said}");
        assert_eq!(text(&cpw(&world, &["result", "build"])), RESULT);
        assert!(text(&cpw(&world, &["logs"])).contains("building"));
        let events = cpw(&world, &["events"]);
        assert!(events.status.success() && text(&events).contains("50 %"), "{}", text(&events));
        let doctor = cpw(&world, &["doctor", run.file_name().and_then(|n| n.to_str()).expect("a name")]);
        assert!(doctor.status.success() && text(&doctor).contains("schema 2"), "{}", text(&doctor));
        assert_eq!(files(&run), before, "something was written");
    }

    #[test]
    fn nobody_writes_to_a_newer_log() {
        let (world, run) = newer();
        let before = files(&run);
        for args in [&["cancel"][..], &["cancel", "lint"], &["worker"], &["worker", "--task", "ask"]] {
            let out = cpw(&world, args);
            assert_eq!(out.status.code(), Some(1), "{args:?}: {}", text(&out));
            assert!(text(&out).contains("schema 2") && text(&out).contains("newer cpw"), "{args:?}: {}", text(&out));
        }
        let mut inside = world.cpw(&["progress", "99"]);
        inside.env("CPW_RUN_DIR", &run).env("CPW_TASK", "lint").env("CPW_ATTEMPT", "1");
        let out = inside.env("CPW_TOKEN", "7").env("CPW_WORKER", "W2").output().expect("cpw runs");
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains("newer cpw"), "{}", text(&out));
        for (name, event) in [
            ("user-prompt-submit", "UserPromptSubmit"),
            ("pre-tool-use", "PreToolUse"),
            ("post-tool-use", "PostToolUse"),
            ("post-tool-batch", "PostToolBatch"),
            ("stop", "Stop"),
        ] {
            assert_eq!(hook(&world, name, event), "", "{name}");
        }
        let noted = fs::read_to_string(world.state().join("hooks.jsonl")).expect("hooks.jsonl");
        assert!(noted.contains("newer cpw"), "{noted}");
        let record = fs::read_to_string(world.state().join("sessions").join(SESSION)).expect("the record");
        assert!(!record.contains("closed"), "{record}");
        let after = files(&run);
        let told = run.join("workers/W2/logs/lint.1.told");
        let after: BTreeMap<_, _> = after.into_iter().filter(|(path, _)| *path != told).collect();
        assert_eq!(after, before, "something was written");
        assert!(world.processes().is_empty(), "{:?}", world.processes());
    }
}
