//! Runs that are continued, cleaned away, or left alone by their client: `cpw retry`, `cpw resume`, `cpw clean`, and the
//! policy for orphans. The real binary, in a world of its own.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::support::world::{World, wait_for};

    /// A busy machine may take its time; what hangs does not end at all.
    const LIMIT: Duration = Duration::from_mins(1);

    struct Said {
        code: i32,
        out: String,
        err: String,
    }

    fn said(command: &mut Command) -> Said {
        let out = command.output().expect("cpw runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { code: out.status.code().unwrap_or(-1), out: text(&out.stdout), err: text(&out.stderr) }
    }

    fn cpw(world: &World, args: &[&str]) -> Said {
        said(&mut world.cpw(args))
    }

    /// As [`cpw`], which has to succeed.
    fn good(world: &World, args: &[&str]) -> Said {
        let said = cpw(world, args);
        assert_eq!(said.code, 0, "{args:?}: {}{}", said.out, said.err);
        said
    }

    /// As [`cpw`], which has to be refused with these words.
    fn refused(world: &World, args: &[&str], code: i32, words: &str) {
        let said = cpw(world, args);
        assert_eq!(said.code, code, "{args:?}: {}{}", said.out, said.err);
        assert!(said.err.contains(words) || said.out.contains(words), "{args:?}: {}{}", said.out, said.err);
    }

    fn write_plan(world: &World, plan: &Value) {
        world.write("plan.json", &plan.to_string());
    }

    /// The ids of the project's runs, newest first.
    fn runs(world: &World) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(world.project().join(".claude/runs"))
            .expect("a folder of runs")
            .filter_map(|e| e.ok()?.file_name().into_string().ok())
            .filter(|n| n.starts_with("20"))
            .collect();
        names.sort_unstable_by(|a, b| b.cmp(a));
        names
    }

    fn folder(world: &World, run: &str) -> PathBuf {
        world.project().join(".claude/runs").join(run)
    }

    fn status(world: &World, run: &str) -> Value {
        let all: Value = serde_json::from_str(&good(world, &["status", run, "--json"]).out).expect("JSON");
        all["runs"][0].clone()
    }

    fn task<'s>(status: &'s Value, id: &str) -> &'s Value {
        let tasks = status["tasks"].as_array().expect("tasks");
        tasks.iter().find(|t| t["task"] == id).expect("the task")
    }

    fn ended(world: &World, run: &str) -> Value {
        let end = wait_for(LIMIT, || Some(status(world, run)).filter(|s| s["state"] != "active"));
        end.unwrap_or_else(|| panic!("the run does not end: {}", status(world, run)))
    }

    fn events(world: &World, run: &str) -> Vec<Value> {
        let text = fs::read_to_string(folder(world, run).join("events.jsonl")).unwrap_or_default();
        text.split_inclusive('\n')
            .filter(|l| l.ends_with('\n'))
            .map(|l| serde_json::from_str(l).expect("JSON"))
            .collect()
    }

    /// How often a task ran: each attempt leaves a line.
    fn ran(world: &World, id: &str) -> usize {
        world.read(&format!("ran-{id}")).map_or(0, |text| text.lines().count())
    }

    /// A task that leaves a line when it runs and fails while the file `fail-ID` is there.
    fn step(id: &str, needs: &[&str], rest: &str) -> Value {
        let script = format!("echo x >> ran-{id}; [ ! -e fail-{id} ] || exit 1; {rest}");
        json!({"id": id, "needs": needs, "shell": script})
    }

    fn workers(world: &World, run: &str) -> Vec<Pid> {
        let pids = status(world, run)["workers"].clone();
        let pids = pids.as_array().expect("workers").iter().map(|w| w["pid"].as_i64().expect("a pid"));
        pids.map(|pid| Pid::from_raw(i32::try_from(pid).expect("a pid"))).collect()
    }

    #[test]
    fn a_retry_takes_over_what_is_done_and_runs_the_rest() {
        let world = World::new();
        write_plan(
            &world,
            &json!({"version": 1, "tasks": [
                step("a", &[], "mkdir $CPW_OUT/more; echo deep > $CPW_OUT/more/file; echo found 3 | tee $CPW_OUT/result.md"),
                step("quiet", &[], ""),
                step("b", &["a", "quiet"], "cat $(sed 's/.*\"result\":\"\\([^\"]*\\)\".*/\\1/' \"$CPW_NEEDS\")"),
                step("c", &["b"], "echo end"),
            ]}),
        );
        world.write("fail-b", "");
        assert_eq!(cpw(&world, &["run", "plan.json"]).code, 1);
        let old = runs(&world)[0].clone();
        // Its workers say that they leave after its end.
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("its workers leave");
        let log = fs::read(folder(&world, &old).join("events.jsonl")).expect("a log");
        fs::remove_file(world.project().join("fail-b")).expect("it is removed");
        let said = good(&world, &["retry"]);
        assert!(said.err.contains("2 taken over, 2 to run"), "{}", said.err);
        let new = runs(&world)[0].clone();
        assert_ne!(new, old);
        assert_eq!([ran(&world, "a"), ran(&world, "quiet"), ran(&world, "b"), ran(&world, "c")], [1, 1, 2, 1]);
        // The old run is as it was, and the new one stands without it.
        assert!(fs::read(folder(&world, &old).join("events.jsonl")).expect("a log") == log, "the old log was changed");
        fs::remove_dir_all(folder(&world, &old)).expect("the old run is removed");
        let status = status(&world, &new);
        assert_eq!((&status["state"], &status["continues"]), (&json!("ok"), &json!(old)));
        assert_eq!(task(&status, "a")["from"], old);
        assert!(task(&status, "b").get("from").is_none());
        assert_eq!(good(&world, &["result", "a"]).out, "found 3\n");
        assert_eq!(good(&world, &["result", "b"]).out, "found 3\n", "the results of needs are found");
        assert_eq!(world.read(&format!(".claude/runs/{new}/taken/a/more/file")).as_deref(), Some("deep\n"));
        let shown = good(&world, &["status", &new]).out;
        assert!(shown.contains(&format!("continues {old}")) && shown.contains("taken over"), "{shown}");
        let kinds: Vec<String> = events(&world, &new).iter().map(|e| e["t"].to_string()).collect();
        assert_eq!(kinds[..5], ["\"run_started\"", "\"started\"", "\"done\"", "\"started\"", "\"done\""], "{kinds:?}");
        refused(&world, &["retry"], 1, "everything in it is done");
    }

    #[test]
    fn what_lost_its_artifact_and_all_behind_it_runs_again() {
        let world = World::new();
        let tasks = json!([step("a", &[], "echo a"), step("b", &["a"], "echo b"), step("z", &[], "echo z")]);
        write_plan(&world, &json!({"version": 1, "tasks": tasks}));
        good(&world, &["run", "plan.json"]);
        for (i, spoil) in ["gone", "other bytes", "same size"].into_iter().enumerate() {
            let run = runs(&world)[0].clone();
            refused(&world, &["retry"], 1, "everything in it is done");
            let result = PathBuf::from(good(&world, &["result", "a", "--path", "--run", &run]).out.trim_end());
            match spoil {
                "gone" => fs::remove_file(&result),
                "other bytes" => fs::write(&result, "longer than before"),
                _ => fs::write(&result, "A\n"),
            }
            .expect("the result is spoilt");
            good(&world, &["retry"]);
            assert_eq!([ran(&world, "a"), ran(&world, "b"), ran(&world, "z")], [i + 2, i + 2, 1], "{spoil}");
            assert_eq!(good(&world, &["result", "a"]).out, "a\n", "{spoil}");
        }
    }

    #[test]
    fn named_tasks_bring_what_they_need_and_leave_the_rest() {
        let world = World::new();
        let tasks = json!([
            step("base", &[], "echo base"),
            step("lint", &["base"], "echo lint"),
            step("ship", &["lint"], "echo ship"),
            step("other", &[], "echo other"),
        ]);
        write_plan(&world, &json!({"version": 1, "tasks": tasks}));
        world.write("fail-lint", "");
        world.write("fail-other", "");
        assert_eq!(cpw(&world, &["run", "plan.json"]).code, 1);
        let old = runs(&world)[0].clone();
        refused(&world, &["retry", &old, "base"], 1, "what was named is done");
        refused(&world, &["retry", &old, "nothing"], 3, "no task 'nothing'");
        fs::remove_file(world.project().join("fail-lint")).expect("it is removed");
        let said = good(&world, &["retry", &old, "lint"]);
        assert!(said.err.contains("1 taken over, 2 to run, 1 left out"), "{}", said.err);
        assert_eq!(["base", "lint", "ship", "other"].map(|id| ran(&world, id)), [1, 2, 1, 1]);
        let new = runs(&world)[0].clone();
        assert_eq!(task(&status(&world, &new), "other")["state"], "skipped");
        // What was left out is still to be done, in a run that continues this one.
        fs::remove_file(world.project().join("fail-other")).expect("it is removed");
        good(&world, &["retry"]);
        assert_eq!(["base", "lint", "ship", "other"].map(|id| ran(&world, id)), [1, 2, 1, 2]);
        refused(&world, &["retry"], 1, "everything in it is done");
    }

    #[test]
    fn a_run_is_continued_only_when_it_is_over_and_sound_and_ours_and_by_one() {
        let world = World::new();
        let wait = "until [ -e go ]; do sleep 0.02; done";
        write_plan(&world, &json!({"version": 1, "tasks": [step("a", &[], wait), step("b", &["a"], "echo b")]}));
        let run = good(&world, &["run", "plan.json", "--detach"]).out.trim().to_owned();
        refused(&world, &["retry", &run], 3, "is still active");
        refused(&world, &["resume", &run], 3, "cpw cancel --run");
        good(&world, &["cancel"]);
        // Below a client a person decides.
        let below = said(world.cpw(&["retry", &run]).env("CLAUDECODE", "1"));
        assert!(below.code == 3 && below.err.contains("only a person decides that"), "{}", below.err);
        // A copy was made by nobody.
        let copy = folder(&world, "20200101-000000000000-0123456789abcdef0123");
        fs::create_dir(&copy).expect("a folder");
        for name in ["plan.json", "events.jsonl"] {
            fs::copy(folder(&world, &run).join(name), copy.join(name)).expect("a copy");
        }
        refused(&world, &["retry", "20200101"], 3, "not made by your cpw");
        // Of two at once, one.
        let one = good(&world, &["resume", &run, "--detach"]).out.trim().to_owned();
        refused(&world, &["retry", &run], 3, &format!("being continued already, by run {one}"));
        world.write("go", "");
        assert_eq!(ended(&world, &one)["state"], "ok");
        // Once that is over it may be done again: it is the person's choice.
        good(&world, &["retry", &run]);
        // A plan that is not the one that was started does not start.
        let plan = folder(&world, &run).join("plan.json");
        let text = fs::read_to_string(&plan).expect("a plan").replace("echo b", "echo evil");
        fs::remove_file(&plan).expect("it is removed");
        fs::write(&plan, text).expect("another plan");
        refused(&world, &["retry", &run], 1, "was changed after the run began");
        // A damaged log starts nothing.
        let log = folder(&world, &one).join("events.jsonl");
        fs::write(&log, "{}\n").expect("it is damaged");
        refused(&world, &["retry", &one], 1, "is damaged");
        assert_eq!(runs(&world).len(), 4, "{:?}", runs(&world));
    }

    #[test]
    fn of_many_who_continue_a_run_at_once_one_does() {
        let world = World::new();
        let wait = "[ -e second ] || exit 1; until [ -e go ]; do sleep 0.02; done";
        write_plan(&world, &json!({"version": 1, "tasks": [{"id": "a", "shell": wait}]}));
        assert_eq!(cpw(&world, &["run", "plan.json"]).code, 1);
        let run = runs(&world)[0].clone();
        world.write("second", "");
        let codes: Vec<i32> = std::thread::scope(|scope| {
            let tries: Vec<_> =
                (0..6).map(|_| scope.spawn(|| cpw(&world, &["retry", &run, "--detach"]).code)).collect();
            tries.into_iter().map(|t| t.join().expect("a try")).collect()
        });
        assert_eq!(codes.iter().filter(|c| **c == 0).count(), 1, "{codes:?}");
        assert_eq!(runs(&world).len(), 2);
        world.write("go", "");
        assert_eq!(ended(&world, &runs(&world)[0])["state"], "ok");
    }

    #[test]
    fn a_task_finds_its_prompt_in_the_new_run() {
        let world = World::new();
        let shell = "cat \"$CPW_PROMPT_FILE\" | head -c 7; [ ! -e fail ]";
        let rule = json!({"version": 1, "rules": [{"name": "go", "when": {"prompt": "(?i)\\banalyze\\b"}, "tasks": [
            {"id": "a", "shell": shell}, {"id": "b", "run": ["cat", "{{prompt_file}}"], "needs": ["a"]}]}]});
        world.write(".claude/cpw.json", &rule.to_string());
        good(&world, &["allow", "--yes"]);
        world.write("fail", "");
        assert_eq!(cpw(&world, &["run", "--prompt", "Analyze this"]).code, 1);
        fs::remove_file(world.project().join("fail")).expect("it is removed");
        let old = runs(&world)[0].clone();
        good(&world, &["retry"]);
        assert_eq!(good(&world, &["result", "a"]).out, "Analyze");
        assert_eq!(good(&world, &["result", "b"]).out, "Analyze this");
        let plan = fs::read_to_string(folder(&world, &runs(&world)[0]).join("plan.json")).expect("a plan");
        assert!(!plan.contains(&format!("{old}/prompt.txt")), "{plan}");
    }

    /// After all workers were killed on the same boot, whoever comes next goes on.
    #[test]
    fn after_a_crash_of_all_workers_whoever_comes_next_goes_on() {
        for (who, retries) in [("status", 1), ("wait", 1), ("cancel", 0)] {
            let world = World::new();
            let script = "echo x >> ran-a; until [ -e go ]; do sleep 0.02; done; echo a";
            let tasks = json!([{"id": "a", "shell": script, "retries": retries, "backoff": {"initial": "1ms"}}]);
            write_plan(&world, &json!({"version": 1, "tasks": tasks}));
            let run = good(&world, &["run", "plan.json", "--detach"]).out.trim().to_owned();
            wait_for(LIMIT, || (ran(&world, "a") == 1).then_some(())).expect("the task runs");
            for worker in workers(&world, &run) {
                kill(worker, Signal::SIGKILL).expect("a worker of this run");
                wait_for(LIMIT, || kill(worker, None).is_err().then_some(())).expect("it is dead");
            }
            world.write("go", "");
            match who {
                "status" => drop(good(&world, &["status"])),
                "wait" => drop(good(&world, &["wait", "--run", &run])),
                _ => drop(good(&world, &["cancel"])),
            }
            let end = ended(&world, &run);
            let kinds: Vec<Value> = events(&world, &run).iter().map(|e| e["t"].clone()).collect();
            assert!(kinds.contains(&json!("lost")) && kinds.contains(&json!("worker_lost")), "{who}: {kinds:?}");
            assert_eq!(kinds.iter().filter(|k| **k == "run_ended").count(), 1, "{who}");
            assert_eq!(end["state"], if who == "cancel" { "cancelled" } else { "ok" }, "{who}");
            assert_eq!(ran(&world, "a"), if who == "cancel" { 1 } else { 2 }, "{who}");
        }
    }

    /// P09: after a restart of the machine the run ends, whoever comes, and a person may resume it.
    #[test]
    fn p09_after_a_reboot_the_run_ends_interrupted_and_is_resumed_by_a_person() {
        let world = World::new();
        let wait = "until [ -e go ]; do sleep 0.02; done; echo b";
        let tasks = json!([step("a", &[], "echo a"), step("b", &["a"], wait), step("c", &["b"], "echo c")]);
        write_plan(&world, &json!({"version": 1, "tasks": tasks}));
        let run = good(&world, &["run", "plan.json", "--detach"]).out.trim().to_owned();
        wait_for(LIMIT, || (ran(&world, "b") == 1).then_some(())).expect("the second task runs");
        // A restart leaves no process. What is left of the task is not the new boot's to signal, so it is ended here.
        for (pid, _) in world.processes() {
            kill(pid, Signal::SIGKILL).ok();
        }
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("nobody is left");
        let Some(boot) = another_boot(&world) else { return };
        let there = |args: &[&str]| said(&mut boot(args));
        let status = wait_for(LIMIT, || {
            let status = there(&["status", &run]).out;
            status.contains("interrupted: the machine was restarted").then_some(status)
        });
        let status = status.expect("the run ends");
        assert!(status.contains(&format!("cpw resume {run}")), "{status}");
        let list = there(&["status"]).out;
        assert!(list.contains(&format!("cpw resume {run}")), "{list}");
        assert_eq!(there(&["status", "--json", &run]).code, 0);
        world.write("go", "");
        let resumed = there(&["resume", &run]);
        assert_eq!(resumed.code, 0, "{}{}", resumed.out, resumed.err);
        assert!(resumed.err.contains("1 taken over, 2 to run"), "{}", resumed.err);
        assert_eq!(["a", "b", "c"].map(|id| ran(&world, id)), [1, 2, 1]);
        let said = events(&world, &run);
        let open = said.iter().find(|e| e["t"] == "lost").expect("the open attempt is lost");
        assert_eq!(open["payload"]["reason"], "the machine was restarted");
    }

    /// Whoever resumes at once ends the old run first.
    #[test]
    fn p09_a_resume_after_a_reboot_ends_the_old_run_itself() {
        let world = World::new();
        let wait = "until [ -e go ]; do sleep 0.02; done; echo a";
        write_plan(&world, &json!({"version": 1, "tasks": [step("a", &[], wait)]}));
        let run = good(&world, &["run", "plan.json", "--detach"]).out.trim().to_owned();
        wait_for(LIMIT, || (ran(&world, "a") == 1).then_some(())).expect("the task runs");
        for (pid, _) in world.processes() {
            kill(pid, Signal::SIGKILL).ok();
        }
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("nobody is left");
        let Some(boot) = another_boot(&world) else { return };
        world.write("go", "");
        let resumed = said(&mut boot(&["resume", &run]));
        assert_eq!(resumed.code, 0, "{}{}", resumed.out, resumed.err);
        assert_eq!(ran(&world, "a"), 2);
        let end = events(&world, &run).into_iter().find(|e| e["t"] == "run_ended").expect("it has ended");
        assert_eq!(end["payload"]["status"], "failed");
    }

    /// The program as it runs after a restart: in a mount namespace with the id of another boot. `None`, said: this user may
    /// not make one.
    fn another_boot(world: &World) -> Option<impl Fn(&[&str]) -> Command> {
        const SCRIPT: &str = r#"mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@""#;
        let id = world.path("boot_id");
        fs::write(&id, "11111111-2222-3333-4444-555555555555\n").expect("the id of another boot");
        let environment = world.environment();
        let project = world.project();
        let command = move |program: &Path, args: &[&str]| {
            let mut command = Command::new("unshare");
            command.args(["-m", "--propagation", "private", "sh", "-c", SCRIPT]).arg(&id).arg(program).args(args);
            command.env_clear().envs(environment.iter().cloned()).current_dir(&project);
            command.stdin(std::process::Stdio::null());
            command
        };
        let works = command(Path::new("/bin/true"), &[]).output().is_ok_and(|out| out.status.success());
        if !works {
            crate::support::skip::skip("p09", "another boot id needs root (unshare -m, mount)", "CPW_REQUIRE_ROOT");
            return None;
        }
        Some(move |args: &[&str]| command(crate::support::world::program(), args))
    }
}
