//! What no file of cpw holds: values of the environment, the prompt unless a task asks for it, and tokens that a task or a
//! session happens to say. And what is left of a run, of whatever it was about, once `cpw clean` has removed it: nothing.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the lists serve several test crates")]
#[path = "support/hostile.rs"]
mod hostile;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/session.rs"]
mod session;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::{Path, PathBuf};
    use std::process::Output;
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::hostile;
    use crate::session::{Said, Session};
    use crate::support::world::{World, wait_for};

    const LIMIT: Duration = Duration::from_mins(1);

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

    /// Every file below a folder, with what is in it.
    fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = entry.file_type().expect("a kind");
            if kind.is_dir() {
                all.extend(files(&path));
            } else if kind.is_file() {
                all.push((path.clone(), fs::read(&path).unwrap_or_default()));
            }
        }
        all
    }

    /// The files that hold a text, in their names or in what is in them.
    fn holding(folders: &[PathBuf], text: &str) -> Vec<PathBuf> {
        let all = folders.iter().flat_map(|folder| files(folder));
        let holds = |bytes: &[u8]| bytes.windows(text.len()).any(|part| part == text.as_bytes());
        let found = all.filter(|(path, bytes)| holds(path.as_os_str().as_encoded_bytes()) || holds(bytes));
        found.map(|(path, _)| path).collect()
    }

    fn cpw(world: &World, args: &[&str]) -> Output {
        let out = world.cpw(args).output().expect("cpw runs");
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out
    }

    fn project(tasks: &Value) -> World {
        let world = World::new();
        world.write("MARKFILE.py", "x");
        let rule = json!({"name": "go", "when": {"prompt": "\\bgo\\b", "files": {"min": 1}}, "for_each": "files", "tasks": tasks});
        world.write(".claude/cpw.json", &json!({"version": 1, "rules": [rule]}).to_string());
        for command in [&["allow", "--yes"][..], &["init"]] {
            cpw(&world, command);
        }
        world
    }

    fn hook(world: &World, name: &str, event: &str, more: &Value) -> Said {
        Session::new(SESSION).hook(world, name, event, more).finish().expect("an answer")
    }

    /// Starts a run by a prompt that names the file, and waits for its end; its folder.
    fn run(world: &World, prompt: &str) -> PathBuf {
        let said = hook(world, "user-prompt-submit", "UserPromptSubmit", &json!({"prompt": prompt}));
        assert!(said.context().contains("started"), "{said:?}");
        let runs = world.project().join(".claude/runs");
        let newest = || {
            fs::read_dir(&runs).ok()?.flatten().map(|run| run.path()).filter(|run| run.join("plan.json").exists()).max()
        };
        let folder = newest().expect("a run");
        let ended = || fs::read_to_string(folder.join("events.jsonl")).ok().filter(|log| log.contains("\"run_ended\""));
        wait_for(LIMIT, ended).expect("the run ends");
        folder
    }

    /// The tokens of the test, put together here, so that nobody takes this file for a leak.
    fn tokens() -> Vec<String> {
        let random = "A1b2C3d4E5".repeat(4);
        let hex = "0a1b2c3d4e5f6071".repeat(3);
        let mut all: Vec<String> =
            ["ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "npm_", "hf_", "sk-ant-api03-", "sk-proj-"]
                .into_iter()
                .chain([
                    "xoxb-1-",
                    "xoxp-1-",
                    "ya29.",
                    "GOCSPX-",
                    "dckr_pat_",
                    "sk_live_",
                    "rk_live_",
                    "whsec_",
                    "hvs.",
                    "glsa_",
                ])
                .chain([
                    "Bearer ",
                    "password=",
                    "TOKEN=",
                    "--password ",
                    "api_key=",
                    "client_secret=",
                    "x-api-key: ",
                    "lin_api_",
                ])
                .map(|prefix| format!("{prefix}{random}"))
                .collect();
        all.extend(
            ["key-", "shpat_", "dapi", "dop_v1_"]
                .map(|prefix| format!("{prefix}{}", &hex[..if prefix.len() > 6 { 48 } else { 32 }])),
        );
        all.push(format!("AIza{}", &random[..35]));
        all.push(format!("AKIA{}", "A1B2C3D4E5F6G7H8"));
        all.push(format!("eyJ{0}.eyJ{0}.{0}", "A1b2C3d4E5"));
        all.push(format!("postgres://app:{random}@db/x"));
        all.push(format!("https://x:{random}@host/y"));
        all.push(format!("{{\"password\": \"{random}\"}}"));
        all.push(format!("-----BEGIN {} KEY----- {random} -----END {0} KEY-----", "PRIVATE"));
        all.push(format!("aws_secret_access_key = {random}"));
        all.push(format!("Authorization: Basic {}", "dXNlcjpBMWIyQzNk"));
        all
    }

    /// What of a token must be nowhere.
    const PARTS: [&str; 4] = ["b2C3d4", "1b2c3d4e5f", "A1B2C3D4E5", "jpBMWIyQzNk"];

    #[test]
    fn s06_what_tasks_and_sessions_say_is_written_and_shown_without_secrets() {
        let tokens = tokens();
        assert!(tokens.len() >= 40, "{}", tokens.len());
        // Each by one of the ways in which a task speaks; the last words of the task are why it failed.
        let script = r#"n=0; while IFS= read -r token; do n=$((n+1)); case $((n % 5)) in
                0) cpw progress --note "it uses $token" ;;
                1) cpw signal --hook post-tool-use --exit 0 --message "it uses $token" ;;
                2) cpw summary "it uses $token" ;;
                3) cpw signal --hook stop --exit 7 --message "it uses $token" ;;
                4) cpw signal --release 1 --message "$token" 2>/dev/null; cpw result "$token" 2>/dev/null ;;
            esac; done <"$HOME/tokens"; sed -n "${1}p" "$HOME/tokens" >&2; tail -n 1 "$HOME/tokens" >&2; exit 3"#;
        let world = project(&json!([
            {"id": "says-{{item.stem}}", "shell": script},
            {"id": "greps", "shell": "head -n 3 \"$HOME/tokens\" | tail -n 1"},
            {"id": "missing", "run": ["./no-such-program"], "env": {"MY_TOKEN": "x"}},
        ]));
        fs::write(world.home().join("tokens"), tokens.join("\n") + "\n").expect("a file");
        let folder = run(&world, &format!("Please go with MARKFILE.py and {}", tokens[0]));
        let said = hook(&world, "post-tool-batch", "PostToolBatch", &json!({"tool_calls": []}));
        assert!(said.context().contains("[redacted]"), "{said:?}");
        let stop = hook(&world, "stop", "Stop", &json!({"stop_hook_active": false}));
        let command = format!("curl -H 'Authorization: Bearer {}' x", "A1b2C3d4E5".repeat(4));
        let call = json!({"tool_name": "Bash", "tool_input": {"command": command}, "tool_use_id": "toolu_1"});
        hook(&world, "pre-tool-use", "PreToolUse", &call);
        let mut shown = vec![format!("{said:?}"), format!("{stop:?}")];
        for args in [
            &["status"][..],
            &["status", "--json"],
            &["status", "--tasks"],
            &["events"],
            &["events", "--json"],
            &["doctor"],
        ] {
            let out = world.cpw(args).output().expect("cpw runs");
            shown.push(String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned());
        }
        let log = fs::read_to_string(folder.join("events.jsonl")).expect("a log");
        assert!(log.matches("[redacted]").count() >= 10, "{log}");
        // The task's own output and results are what they are.
        let own = |path: &Path| {
            let name = path.to_string_lossy().into_owned();
            name.contains("/out/") || [".out", ".err"].iter().any(|end| name.ends_with(end))
        };
        for part in PARTS {
            let mut found = holding(&[world.state(), world.project().join(".claude")], part);
            found.retain(|path| !own(path));
            assert!(found.is_empty(), "{part}: {found:?}");
            for text in &shown {
                assert!(!text.contains(part), "{part}: {text}");
            }
        }
        hostile::tried("tokens in what tasks say", tokens.len(), 40);
    }

    #[test]
    fn s06_no_value_of_the_environment_is_in_a_file_of_cpw() {
        const VALUE: &str = "MARKVALUE-of-the-environment";
        let world = project(&json!([
            {"id": "a-{{item.stem}}", "shell": "cpw progress 10 --note half; cpw summary fine; test -n \"$MARK_SECRET\""},
            {"id": "b", "run": ["./no-such-program"]},
            {"id": "c", "shell": "cpw lease db -- true; exit 1", "needs": ["a-{{item.stem}}"]},
        ]));
        let with = |mut command: std::process::Command| {
            command.env("MARK_SECRET", VALUE).env("ANTHROPIC_API_KEY", VALUE).env("CPW_LOG", "debug");
            command
        };
        let session = Session::new(SESSION);
        let call = |name: &str, event: &str, more: &Value| {
            let mut command = with(world.cpw(&[name]));
            session.settle(&world, &mut command);
            let payload = format!("{}\n", session.payload(&world, event, more));
            crate::session::Hook::start(command, event, payload.as_bytes(), crate::session::Fate::Lives)
                .finish()
                .expect("an answer")
        };
        let said = call("user-prompt-submit", "UserPromptSubmit", &json!({"prompt": "Please go with MARKFILE.py"}));
        assert!(said.context().contains("started"), "{said:?}");
        // Beside the run's log there is that of leases.
        let ended = || {
            let logs = files(&world.project().join(".claude/runs"))
                .into_iter()
                .filter(|(path, _)| path.ends_with("events.jsonl"));
            let mut logs = logs.map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned());
            logs.find(|log| log.contains("\"run_ended\"") && log.contains("\"done\""))
        };
        wait_for(LIMIT, ended).expect("the run ends, and the task has seen the value");
        call("post-tool-batch", "PostToolBatch", &json!({"tool_calls": []}));
        call("stop", "Stop", &json!({"stop_hook_active": false}));
        for args in [&["status"][..], &["doctor"], &["trace", "--format", "html", "-o", "page.html"]] {
            with(world.cpw(args)).output().expect("cpw runs");
        }
        assert!(files(&world.state()).len() >= 4, "there is something to look into");
        let found = holding(&[world.state(), world.project()], VALUE);
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn s06_a_prompt_is_kept_only_for_tasks_that_name_it() {
        let prompt = "Please go with MARKFILE.py because MARKPROMPT says so";
        let world = project(
            &json!([{"id": "a-{{item.stem}}", "shell": "test -z \"${CPW_PROMPT+x}\"; env | grep -c PROMPT_F || true"}]),
        );
        // Its script says something like it, which is not it.
        let folder = run(&world, prompt);
        let log = fs::read_to_string(folder.join("events.jsonl")).expect("a log");
        let first: Value = serde_json::from_str(log.lines().next().expect("a line")).expect("JSON");
        assert_eq!(first["payload"]["prompt_bytes"], prompt.len(), "{first}");
        assert_eq!(first["payload"]["prompt_sha256"], cpw::base::hex::sha256(prompt.as_bytes()), "{first}");
        assert!(!folder.join("prompt.txt").exists());
        let found = holding(&[world.state(), world.project().join(".claude")], "MARKPROMPT");
        assert!(found.is_empty(), "{found:?}");
        for task in [
            json!({"id": "a-{{item.stem}}", "shell": "cat \"$CPW_PROMPT_FILE\""}),
            json!({"id": "a-{{item.stem}}", "run": ["cat", "{{prompt_file}}"]}),
            json!({"id": "a-{{item.stem}}", "shell": "cat \"$PROMPT\"", "env": {"PROMPT": "{{prompt_file}}"}}),
        ] {
            let world = project(&json!([task]));
            let folder = run(&world, prompt);
            let kept = fs::metadata(folder.join("prompt.txt")).expect("it is asked for");
            assert_eq!(kept.permissions().mode() & 0o777, 0o600);
            let said = files(&folder).into_iter().find(|(path, _)| path.to_string_lossy().ends_with(".1.out"));
            assert_eq!(said.map(|(_, bytes)| bytes), Some(prompt.as_bytes().to_vec()));
        }
    }

    #[test]
    fn s06_clean_leaves_nothing_of_what_a_run_was_about() {
        let world = project(&json!([
            {"id": "a-{{item.stem}}", "claims": ["{{item}}"],
             "shell": "cat \"$CPW_PROMPT_FILE\"; cpw progress 50 --note \"$(cat \"$HOME/note\")\"; cpw checkpoint half --data \"\\\"$(cat \"$HOME/data\")\\\"\" --inject"},
        ]));
        for (name, mark) in [("note", "MARKNOTE"), ("data", "MARKDATA")] {
            fs::write(world.home().join(name), mark).expect("a file");
        }
        let folder = run(&world, "Please go with MARKFILE.py because MARKPROMPT says so");
        let id = folder.file_name().expect("a name").to_string_lossy().into_owned();
        let read = json!({"tool_name": "Read", "tool_input": {"file_path": world.project().join("MARKFILE.py")}, "tool_use_id": "t1"});
        hook(&world, "pre-tool-use", "PreToolUse", &read);
        hook(&world, "post-tool-batch", "PostToolBatch", &json!({"tool_calls": []}));
        hook(&world, "stop", "Stop", &json!({"stop_hook_active": false}));
        let places = [world.state(), world.project().join(".claude")];
        let marks = ["MARKFILE", "MARKNOTE", "MARKDATA", "MARKPROMPT", id.as_str()];
        for mark in marks {
            assert!(!holding(&places, mark).is_empty(), "{mark} was somewhere");
        }
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("its worker leaves");
        cpw(&world, &["clean", &id]);
        // Its client lives, so that the session may go on: its own record stays, with the name of the run.
        let record = world.state().join("sessions").join(SESSION);
        for mark in marks {
            let mut found = holding(&places, mark);
            found.retain(|path| mark.starts_with("MARK") || *path != record);
            assert!(found.is_empty(), "{mark}: {found:?}");
        }
    }
}
