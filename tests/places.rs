//! Where runs may be: `runs_dir`, and file systems on which nothing is started. The real binary; a network file system is
//! played by strace, which changes what the kernel answers.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::support::skip::skip;
    use crate::support::world::{World, program, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";
    const LIMIT: Duration = Duration::from_secs(30);
    const PLAN: &str = r#"{"version": 1, "tasks": [{"id": "a", "shell": "echo hello"}]}"#;

    fn config(runs_dir: Option<&str>) -> String {
        let mut config = json!({
            "version": 1,
            "rules": [{
                "name": "analyze",
                "when": {"prompt": "(?i)\\banaly[sz]e\\b"},
                "tasks": [{"id": "a", "shell": "cat \"$CPW_PROMPT_FILE\"; cpw progress 50 --note half"}],
            }],
        });
        if let Some(dir) = runs_dir {
            config["runs_dir"] = dir.into();
        }
        config.to_string()
    }

    fn world(runs_dir: Option<&str>) -> World {
        let world = World::new();
        world.write("plan.json", PLAN);
        world.write(".claude/cpw.json", &config(runs_dir));
        let out = world.cpw(&["allow", "--yes"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        world
    }

    fn text(out: &Output) -> String {
        String::from_utf8_lossy(&[&out.stdout[..], &out.stderr[..]].concat()).into_owned()
    }

    /// A run that nobody works on would be followed for ever.
    fn bounded(world: &World, args: &[&str]) -> Command {
        let mut command = world.command("/usr/bin/env");
        command.args(["timeout", "60"]).arg(program()).args(args);
        command
    }

    fn cpw(world: &World, args: &[&str]) -> Output {
        bounded(world, args).output().expect("cpw runs")
    }

    /// Calls a hook by this command.
    fn call(world: &World, mut command: Command, event: &str) -> Value {
        let payload = json!({
            "session_id": SESSION, "transcript_path": "/nowhere/t.jsonl", "cwd": world.project(), "prompt_id": "p1",
            "permission_mode": "acceptEdits", "hook_event_name": event, "prompt": "Analyze all of it",
        });
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cpw starts");
        child.stdin.take().expect("a pipe").write_all(payload.to_string().as_bytes()).expect("it reads");
        let out = child.wait_with_output().expect("it ends");
        assert_eq!(out.status.code(), Some(0), "{event}: {}", text(&out));
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    }

    fn prompt(world: &World) -> Value {
        call(world, world.cpw(&["user-prompt-submit"]), "UserPromptSubmit")
    }

    fn runs(folder: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|p| p.join("plan.json").exists()).collect()
    }

    fn mode(path: &Path) -> u32 {
        path.symlink_metadata().expect("it is there").permissions().mode() & 0o7777
    }

    /// The only run in a folder, once it has ended.
    fn ended(folder: &Path) -> PathBuf {
        let run = || match &runs(folder)[..] {
            [run] => fs::read_to_string(run.join("events.jsonl")).ok()?.contains("run_ended").then(|| run.clone()),
            _ => None,
        };
        wait_for(LIMIT, run).unwrap_or_else(|| panic!("no run has ended in {}", folder.display()))
    }

    /// Every command finds the run.
    fn found(world: &World, run: &Path) {
        let id = run.file_name().and_then(|n| n.to_str()).expect("a name");
        let all: Value = serde_json::from_slice(&cpw(world, &["status", "--json"]).stdout).expect("JSON");
        assert_eq!((&all["runs"][0]["run"], &all["runs"][0]["state"]), (&json!(id), &json!("ok")), "{all}");
        for args in [&["status", id][..], &["result", "a"], &["logs"], &["events"], &["doctor", id]] {
            let out = cpw(world, args);
            assert!(out.status.success(), "{args:?}: {}", text(&out));
        }
        let path = text(&cpw(world, &["result", "a", "--path"]));
        assert!(Path::new(path.trim()).starts_with(run), "{path}");
    }

    #[test]
    fn runs_are_where_the_approved_config_wants_them() {
        let world = world(Some("build/cpw-runs"));
        assert!(prompt(&world).to_string().contains("build/cpw-runs/"));
        let folder = world.project().join("build/cpw-runs");
        let run = ended(&folder);
        assert_eq!((mode(&folder), mode(&run)), (0o700, 0o700));
        assert_eq!(fs::read_to_string(folder.join(".gitignore")).expect("it is ignored"), "*\n");
        assert!(!world.project().join(".claude/runs").exists());
        // The task has read its prompt and spoken to its run.
        let log = fs::read_to_string(run.join("events.jsonl")).expect("the log");
        assert!(log.contains("Analyze all of it") && log.contains("\"note\":\"half\""), "{log}");
        found(&world, &run);
        let news = call(&world, world.cpw(&["post-tool-batch"]), "PostToolBatch").to_string();
        assert!(news.contains("build/cpw-runs/"), "{news}");
        // What nobody approved has no say about new runs, and takes nothing away from old ones.
        world.write(".claude/cpw.json", &config(Some("elsewhere")));
        found(&world, &run);
        assert!(cpw(&world, &["run", "plan.json"]).status.success());
        assert!(!world.project().join("elsewhere").exists());
        assert_eq!(runs(&world.project().join(".claude/runs")).len(), 1);
        let all: Value = serde_json::from_slice(&cpw(&world, &["status", "--json"]).stdout).expect("JSON");
        assert_eq!(all["runs"].as_array().map(Vec::len), Some(2), "{all}");
    }

    #[test]
    fn projects_do_not_share_a_folder_and_the_user_has_a_say_too() {
        let world = World::new();
        let far = world.path("far");
        let user = json!({"version": 1, "runs_dir": far});
        fs::create_dir_all(world.home().join(".config/cpw")).expect("a folder");
        fs::write(world.home().join(".config/cpw/config.json"), user.to_string()).expect("a config");
        world.write("one/.claude/x", "");
        world.write("two/one/.claude/x", "");
        for name in ["one", "two/one"] {
            let project = world.project().join(name);
            fs::write(project.join("plan.json"), PLAN).expect("a plan");
            let there = |args: &[&str]| bounded(&world, args).current_dir(&project).output().expect("cpw runs");
            let out = there(&["run", "plan.json"]);
            assert!(out.status.success(), "{}", text(&out));
            let all: Value = serde_json::from_slice(&there(&["status", "--json"]).stdout).expect("JSON");
            assert_eq!(all["runs"].as_array().map(Vec::len), Some(1), "{all}");
        }
        let mut names: Vec<String> = fs::read_dir(&far)
            .expect("the folder")
            .flatten()
            .map(|e| e.file_name().into_string().expect("text"))
            .collect();
        names.sort();
        assert_eq!(names.len(), 2, "{names:?}");
        for name in &names {
            assert!(name.starts_with("one-") && name.len() == 20, "{name}");
            assert_eq!(mode(&far.join(name)), 0o700);
            found_in(&world, &far.join(name));
        }
    }

    fn found_in(world: &World, folder: &Path) {
        let [run] = &runs(folder)[..] else { panic!("not one run in {}", folder.display()) };
        let record = world.state().join("runs").join(run.file_name().expect("a name"));
        let record: Value = serde_json::from_slice(&fs::read(record).expect("it is registered")).expect("JSON");
        assert_eq!(record["path"].as_str(), run.to_str());
    }

    #[test]
    fn a_folder_that_others_can_change_or_that_is_a_link_is_refused() {
        let world = world(Some("out/runs"));
        let aside = world.path("aside");
        fs::create_dir(&aside).expect("a folder");
        for (what, make) in [("a link", true), ("writable by others", false)] {
            fs::create_dir_all(world.project().join("out")).expect("a folder");
            let folder = world.project().join("out/runs");
            if make {
                symlink(&aside, &folder).expect("a link");
            } else {
                fs::create_dir(&folder).expect("a folder");
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("rights");
            }
            let out = cpw(&world, &["run", "plan.json"]);
            assert_eq!(out.status.code(), Some(1), "{what}: {}", text(&out));
            let says = if make { "symbolic link" } else { "chmod go-w" };
            assert!(text(&out).contains(says) && text(&out).contains("out/runs"), "{what}: {}", text(&out));
            assert_eq!(fs::read_dir(&aside).expect("the folder").count(), 0, "{what}");
            assert!(prompt(&world).is_null(), "{what}: the prompt's hook says nothing");
            fs::remove_dir_all(world.project().join("out")).expect("it goes");
        }
    }

    /// A folder with other things in it keeps its place in version control.
    #[test]
    fn a_folder_with_other_things_in_it_is_not_ignored() {
        let world = world(Some("notes"));
        world.write("notes/mine.md", "");
        assert!(cpw(&world, &["run", "plan.json"]).status.success());
        assert!(!world.project().join("notes/.gitignore").exists());
    }

    /// `cpw` below a strace that changes answers of the kernel; none where that cannot be done.
    fn below_strace(world: &World, inject: &str, args: &[&str]) -> Option<Command> {
        let mut trial = Command::new("strace");
        trial.args(["-o", "/dev/null", "-e", "inject=fstatfs:error=EIO", "true"]);
        if !trial.output().is_ok_and(|out| out.status.success()) {
            return None;
        }
        let mut command = world.command("/usr/bin/env");
        command.args(["strace", "-qq", "-o", "/dev/null", "-e", inject]).arg(program()).args(args);
        Some(command)
    }

    const NFS: &str = "inject=fstatfs:poke_exit=@arg2=6969000000000000";

    fn skipped(what: &str) {
        skip(what, "no strace that may trace", "CPW_REQUIRE_STRACE");
    }

    #[test]
    fn nothing_is_started_on_a_network_file_system_and_the_user_is_told() {
        let world = world(None);
        let Some(mut command) = below_strace(&world, NFS, &["run", "plan.json"]) else {
            return skipped("runs on NFS are refused");
        };
        let out = command.output().expect("strace runs");
        let said = text(&out);
        assert_eq!(out.status.code(), Some(1), "{said}");
        for part in ["NFS", "other machines", "\"runs_dir\"", "cpw allow"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let hook = below_strace(&world, NFS, &["user-prompt-submit"]).expect("as before");
        let answer = call(&world, hook, "UserPromptSubmit");
        let line = answer["systemMessage"].as_str().unwrap_or_default();
        assert!(line.starts_with("cpw: analyze was not started: ") && line.contains("NFS"), "{answer}");
        assert!(line.contains("\"runs_dir\"") && !line.contains('\n'), "{line}");
        assert!(answer.get("hookSpecificOutput").is_none(), "the model is told nothing: {answer}");
        assert_eq!(runs(&world.project().join(".claude/runs")).len(), 0);
        let out = below_strace(&world, NFS, &["doctor"]).expect("as before").output().expect("strace runs");
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(text(&out).contains("NFS") && text(&out).contains("runs_dir"), "{}", text(&out));
        // The same prompt elsewhere starts.
        assert!(cpw(&world, &["run", "plan.json"]).status.success());
        assert!(cpw(&world, &["doctor"]).status.success());
    }

    /// A run that is there already, as after a restore to such a place: it is shown and not written.
    #[test]
    fn a_run_on_a_network_file_system_gets_no_worker() {
        let world = world(None);
        world.write(
            "long.json",
            r#"{"version": 1, "tasks": [{"id": "a", "shell": "until [ -e go ]; do sleep 0.02; done"}]}"#,
        );
        if below_strace(&world, NFS, &[]).is_none() {
            return skipped("runs that are on NFS already get no worker");
        }
        assert!(cpw(&world, &["run", "long.json", "--detach"]).status.success());
        let folder = world.project().join(".claude/runs");
        let log = || fs::read_to_string(runs(&folder)[0].join("events.jsonl")).expect("the log");
        wait_for(LIMIT, || log().contains("\"spawned\"").then_some(())).expect("the task runs");
        for (pid, line) in world.processes() {
            if line.contains(" worker --run ") {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
            }
        }
        let working = || world.processes().iter().any(|(_, line)| line.contains(" worker --run "));
        wait_for(LIMIT, || (!working()).then_some(())).expect("the worker is dead");
        let before = log();
        for args in [&["status"][..], &["cancel"], &["worker"]] {
            let out = below_strace(&world, NFS, args).expect("as before").output().expect("strace runs");
            assert!(text(&out).contains("NFS") && text(&out).contains("runs_dir"), "{args:?}: {}", text(&out));
            assert_eq!(out.status.code(), Some(i32::from(args[0] != "status")), "{args:?}: {}", text(&out));
            assert!(!working() && log() == before, "{args:?}");
        }
        // Where it can be written, it is finished.
        world.write("go", "");
        assert!(cpw(&world, &["status"]).status.success());
        wait_for(LIMIT, || log().contains("run_ended").then_some(())).expect("it ends");
    }

    #[test]
    fn a_file_system_that_refuses_locks_itself_is_refused() {
        for error in ["ENOLCK", "EOPNOTSUPP"] {
            let world = world(None);
            let inject = format!("inject=flock:error={error}");
            let Some(mut command) = below_strace(&world, &inject, &["run", "plan.json"]) else {
                return skipped("runs where there are no locks are refused");
            };
            let out = command.output().expect("strace runs");
            assert_eq!(out.status.code(), Some(1), "{error}: {}", text(&out));
            assert!(
                text(&out).contains("a lock keeps nobody out") && text(&out).contains("runs_dir"),
                "{}",
                text(&out)
            );
            assert_eq!(runs(&world.project().join(".claude/runs")).len(), 0, "{error}");
            assert!(text(&cpw(&world, &["status"])).contains("no run in"), "{error}");
        }
    }
}
