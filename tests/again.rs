//! Runs that are continued, cleaned away, or left alone by their client: `cpw retry`, `cpw resume`, `cpw clean`, and the
//! policy for orphans. The real binary, in a world of its own.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, SystemTime};

    use cpw::model::plan::{Conductor, Plan};
    use cpw::store::home::State;
    use cpw::store::run::{self, Origin, RunDir};
    use cpw::store::session::Locked;
    use cpw::sys::process::identity_of;
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::support::world::{World, wait_for};

    /// A busy machine may take its time; what hangs does not end at all.
    const LIMIT: Duration = Duration::from_mins(1);

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

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

    /// Makes a run as old as `days`.
    fn age(world: &World, run: &str, days: u64) {
        let then = SystemTime::now() - Duration::from_hours(24 * days);
        let log = fs::File::options().append(true).open(folder(world, run).join("events.jsonl")).expect("a log");
        log.set_modified(then).expect("it gets older");
    }

    /// A finished run of one task, whose workers have left.
    fn finished(world: &World, shell: &str) -> String {
        write_plan(world, &json!({"version": 1, "tasks": [{"id": "a", "shell": shell}]}));
        good(world, &["run", "plan.json"]);
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("its workers leave");
        runs(world)[0].clone()
    }

    fn is_recorded(world: &World, run: &str) -> bool {
        world.state().join("runs").join(run).exists()
    }

    #[test]
    fn clean_removes_what_has_ended_by_age_and_number_and_nothing_else() {
        let world = World::new();
        good(&world, &["clean"]);
        fs::create_dir(world.path("outside")).expect("a folder");
        fs::write(world.path("outside").join("kept"), "kept").expect("a file");
        let link = format!("ln -s {} $CPW_OUT/link; echo a", world.path("outside").display());
        let mut all: Vec<String> = (0..4).map(|_| finished(&world, &link)).collect();
        // One that goes on, one that nobody here has made, one that is damaged: all of them old.
        write_plan(
            &world,
            &json!({"version": 1, "tasks": [{"id": "a", "shell": "until [ -e go ]; do sleep 0.02; done"}]}),
        );
        let active = good(&world, &["run", "plan.json", "--detach"]).out.trim().to_owned();
        let spawned = || events(&world, &active).iter().any(|e| e["t"] == "spawned").then_some(());
        wait_for(LIMIT, spawned).expect("it says nothing more");
        let foreign = "20200101-000000000000-0123456789abcdef0123";
        fs::create_dir(folder(&world, foreign)).expect("a folder");
        for name in ["plan.json", "events.jsonl"] {
            fs::copy(folder(&world, &all[0]).join(name), folder(&world, foreign).join(name)).expect("a copy");
        }
        let damaged = all.remove(0);
        fs::write(folder(&world, &damaged).join("events.jsonl"), "{}\n").expect("it is damaged");
        for run in [&all[0], &all[1], &active, &damaged, &foreign.to_owned()] {
            age(&world, run, 20);
        }
        let before = runs(&world);
        let dry = good(&world, &["clean", "--dry-run"]);
        assert!(dry.out.contains(&format!("would remove {}", all[0])) && dry.out.contains("2 runs"), "{}", dry.out);
        assert_eq!(runs(&world), before);
        let cleaned = good(&world, &["clean", "--older", "10d", "--keep", "3"]);
        assert!(cleaned.out.contains(&format!("removed {}", all[0])), "{}", cleaned.out);
        assert!(cleaned.out.contains("removed 1 run, ") && cleaned.out.contains("bytes"), "{}", cleaned.out);
        assert_eq!([&all[0], &all[1], &all[2]].map(|run| is_recorded(&world, run)), [false, true, true]);
        let cleaned = good(&world, &["clean"]);
        assert!(cleaned.out.contains("removed 1 run, "), "{}", cleaned.out);
        for (run, why) in [(&active, "has not ended"), (&damaged, "is damaged"), (&foreign.into(), "has not made it")] {
            assert!(cleaned.err.contains(&format!("{run} stays: ")) && cleaned.err.contains(why), "{}", cleaned.err);
        }
        assert_eq!(runs(&world), [active.as_str(), &all[2], &damaged, foreign]);
        assert!(good(&world, &["clean"]).out.contains("nothing to remove"));
        // Named, a damaged one goes; what is active or foreign stays.
        refused(&world, &["clean", &active], 1, "has not ended");
        refused(&world, &["clean", "20200101"], 1, "has not made it");
        good(&world, &["clean", &damaged]);
        world.write("go", "");
        ended(&world, &active);
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("its workers leave");
        good(&world, &["clean", "--keep", "1"]);
        assert_eq!(runs(&world), [active.as_str(), foreign]);
        assert_eq!(fs::read_to_string(world.path("outside").join("kept")).expect("it is there"), "kept");
        let names: Vec<_> = fs::read_dir(world.state().join("runs")).expect("records").flatten().collect();
        assert_eq!(names.len(), 1, "{names:?}");
    }

    #[test]
    fn a_run_whose_worker_lives_is_not_cleaned_whatever_its_log_says() {
        let world = World::new();
        let run = finished(&world, "echo a");
        let lock = fs::File::open(folder(&world, &run).join("workers/W1/live.lock")).expect("the lock of its life");
        lock.lock().expect("it is free");
        refused(&world, &["clean", &run], 1, "a worker of it is alive");
        drop(lock);
        good(&world, &["clean", &run]);
        assert_eq!(runs(&world).len(), 0);
    }

    #[test]
    fn a_removal_that_was_killed_is_finished_by_the_next() {
        let world = World::new();
        let hidden = |world: &World| {
            let all = fs::read_dir(world.project().join(".claude/runs")).expect("runs").flatten();
            let names = all.filter_map(|e| e.file_name().into_string().ok());
            names.filter(|n| n.starts_with('.') && n != ".gitignore").collect::<Vec<_>>()
        };
        let many = "mkdir -p $CPW_OUT/d/e; i=0; while [ $i -lt 3000 ]; do : > $CPW_OUT/d/e/$i; i=$((i + 1)); done";
        let run = finished(&world, many);
        let mut clean = world.cpw(&["clean", "--older", "0s"]).spawn().expect("cpw runs");
        wait_for(LIMIT, || (!hidden(&world).is_empty() || runs(&world).is_empty()).then_some(())).expect("it begins");
        clean.kill().expect("it is killed");
        clean.wait().expect("it is over");
        // Half of a run is no run, neither a live nor a foreign one.
        assert!(good(&world, &["status"]).out.contains("no run in"));
        good(&world, &["clean"]);
        assert_eq!((runs(&world).len(), hidden(&world).len(), is_recorded(&world, &run)), (0, 0, false));
        // What only looks like it is not ours to remove.
        let foreign = world.project().join(".claude/runs/.gone-20200101-000000000000-0123456789abcdef0123");
        fs::create_dir(&foreign).expect("a folder");
        fs::write(foreign.join("theirs"), "").expect("a file");
        good(&world, &["clean", "--older", "0s"]);
        assert!(foreign.join("theirs").exists());
    }

    #[test]
    fn what_is_left_of_a_run_that_was_never_shown_is_removed_a_day_later() {
        let world = World::new();
        let run = finished(&world, "echo a");
        // As `cpw retry` makes one, and dies.
        let making = world.project().join(".claude/runs").join(format!(".new-{run}"));
        fs::rename(folder(&world, &run), &making).expect("it is hidden");
        assert!(good(&world, &["clean", "--older", "0s"]).out.contains("nothing to remove"));
        let then = SystemTime::now() - Duration::from_hours(25);
        fs::File::open(&making).and_then(|f| f.set_modified(then)).expect("it gets older");
        good(&world, &["clean"]);
        assert!(!making.exists() && !is_recorded(&world, &run));
    }

    /// Calls a hook as a client whose process is `client` does; what it said.
    fn hook(world: &World, client: i32, name: &str, event: &str, more: &Value) -> String {
        let mut payload = json!({"session_id": SESSION, "hook_event_name": event, "cwd": world.project(),
            "transcript_path": "/dev/null", "permission_mode": "default"});
        payload.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let mut command = world.cpw(&[name]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command.env("CLAUDE_PID", client.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("cpw runs");
        // A hook that has nothing to do ends without reading.
        child.stdin.take().expect("a pipe").write_all(payload.to_string().as_bytes()).ok();
        let out = child.wait_with_output().expect("cpw ends");
        assert!(out.status.success(), "{out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn prompt(world: &World, client: i32, id: &str) -> String {
        hook(world, client, "user-prompt-submit", "UserPromptSubmit", &json!({"prompt": "Go now", "prompt_id": id}))
    }

    fn with_rule(world: &World, shell: &str, more: &Value) {
        let mut config = json!({"version": 1, "rules": [{"name": "go", "when": {"prompt": "(?i)\\bgo\\b"},
            "tasks": [{"id": "a", "shell": shell}]}]});
        config.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        world.write(".claude/cpw.json", &config.to_string());
        good(world, &["allow", "--yes"]);
    }

    #[test]
    fn what_a_session_was_not_told_stays_until_it_is_old() {
        let world = World::new();
        with_rule(&world, "echo a", &json!({}));
        prompt(&world, 1, "p1");
        let run = runs(&world)[0].clone();
        ended(&world, &run);
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("its workers leave");
        let said = good(&world, &["clean", "--keep", "0"]);
        assert!(said.err.contains("its session has not been told everything yet"), "{}", said.err);
        assert_eq!(runs(&world).len(), 1);
        age(&world, &run, 15);
        good(&world, &["clean", "--keep", "0"]);
        assert_eq!(runs(&world).len(), 0);
        let session = fs::read_to_string(world.state().join("sessions").join(SESSION)).expect("the session's record");
        assert!(session.contains(&format!("{{\"t\":\"closed\",\"run\":\"{run}\"}}")), "{session}");
        // The session goes on as if nothing were there.
        assert_eq!(hook(&world, 1, "stop", "Stop", &json!({"stop_hook_active": false})), "");
    }

    /// A process that stands for a client; killed and reaped with this value.
    struct Client(Child);

    impl Client {
        fn new(world: &World) -> Client {
            Client(world.command("/bin/sleep").arg("1000").spawn().expect("sleep starts"))
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).expect("a pid")
        }
    }

    impl Drop for Client {
        fn drop(&mut self) {
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    /// A run of one task that belongs to the session, for whose client it waits only for a moment. Rules wait a minute.
    fn impatient(world: &World, client: &Client, shell: &str) -> String {
        let written = json!({"version": 1, "run": run::new_id(), "session": SESSION, "rule": "go",
            "limits": {"max_workers": 2, "run_timeout": "4h"}, "orphan_grace": "50ms",
            "conductor": serde_json::to_value(Conductor::default()).expect("JSON"),
            "tasks": [{"id": "a", "shell": shell, "timeout": "30m", "retries": 1}]});
        let plan: Plan = serde_json::from_value(written).expect("a plan");
        let state = State::open_at(&world.state()).expect("the state directory");
        let origin = Origin { client: identity_of(client.pid()), ..Origin::default() };
        let folder = RunDir::create(&world.project(), &plan, &origin).expect("its folder");
        let session = plan.session.clone().expect("a session");
        let mut record = Locked::open(state.path(), &session, LIMIT).expect("a record").expect("it is free");
        record.add_run(&folder.dir, "go").expect("it is named");
        drop(folder.start(&state, &plan, &origin).expect("it begins"));
        good(world, &["status"]);
        plan.run.to_string()
    }

    fn kinds(world: &World, run: &str) -> Vec<String> {
        events(world, run).iter().filter_map(|e| Some(e["t"].as_str()?.to_owned())).collect()
    }

    /// P28: the client is gone and nobody resumes: the run is cancelled, and nothing of it is left.
    #[test]
    fn p28_a_run_that_may_not_outlive_its_client_is_cancelled() {
        let world = World::new();
        let client = Client::new(&world);
        let run = impatient(&world, &client, "echo x >> ran-a; sleep 1000");
        wait_for(LIMIT, || (ran(&world, "a") == 1).then_some(())).expect("the task runs");
        assert!(!kinds(&world, &run).contains(&"cancel_requested".to_owned()));
        drop(client);
        let log = wait_for(LIMIT, || Some(kinds(&world, &run)).filter(|k| k.contains(&"run_ended".to_owned())));
        let log = log.expect("the run ends, and nobody had to look");
        assert!(log.contains(&"cancelled".to_owned()), "{log:?}");
        let asked = events(&world, &run).into_iter().find(|e| e["t"] == "cancel_requested").expect("somebody asked");
        assert_eq!(asked["payload"]["by"], "the client is gone");
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("nothing is left");
    }

    /// P28: a client that was gone before anybody watched it, for example while no worker was alive, is gone as well.
    #[test]
    fn p28_a_client_that_went_unwatched_is_noticed() {
        let world = World::new();
        let client = Client::new(&world);
        let run = impatient(&world, &client, "echo x >> ran-a; sleep 1000");
        wait_for(LIMIT, || (ran(&world, "a") == 1).then_some(())).expect("the task runs");
        for worker in workers(&world, &run) {
            kill(worker, Signal::SIGKILL).expect("a worker of this run");
            wait_for(LIMIT, || kill(worker, None).is_err().then_some(())).expect("it is dead");
        }
        drop(client);
        good(&world, &["status"]);
        assert_eq!(ended(&world, &run)["state"], "cancelled");
        wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("nothing is left");
    }

    /// P28: the session was resumed in another client, which keeps the run, until that one goes.
    #[test]
    fn p28_a_session_that_was_resumed_keeps_its_run() {
        let world = World::new();
        let (first, second) = (Client::new(&world), Client::new(&world));
        let run = impatient(&world, &first, "until [ -e go ]; do sleep 0.02; done; sleep 2; echo a");
        prompt(&world, second.pid(), "p1");
        prompt(&world, second.pid(), "p2");
        let adopted: Vec<Value> = events(&world, &run).into_iter().filter(|e| e["t"] == "adopted").collect();
        assert_eq!(adopted.len(), 1, "{adopted:?}");
        assert_eq!(adopted[0]["payload"]["client"]["pid"], second.pid());
        // Much longer than the grace.
        drop(first);
        world.write("go", "");
        assert_eq!(ended(&world, &run)["state"], "ok");
        let run = impatient(&world, &second, "sleep 1000");
        drop(second);
        assert_eq!(ended(&world, &run)["state"], "cancelled");
    }

    #[test]
    fn p28_rules_say_whether_a_run_outlives_its_client() {
        for orphans in ["finish", "cancel"] {
            let world = World::new();
            with_rule(&world, "until [ -e go ]; do sleep 0.02; done; echo a", &json!({"orphans": orphans}));
            let (first, second) = (Client::new(&world), Client::new(&world));
            prompt(&world, first.pid(), "p1");
            let run = runs(&world)[0].clone();
            let started = events(&world, &run)[0]["payload"].clone();
            let plan = fs::read_to_string(folder(&world, &run).join("plan.json")).expect("a plan");
            drop(first);
            prompt(&world, second.pid(), "p2");
            let adopted = kinds(&world, &run).contains(&"adopted".to_owned());
            if orphans == "cancel" {
                assert!(
                    started["client"]["pid"].is_i64() && plan.contains("\"orphan_grace\": \"1m\"") && adopted,
                    "{plan}"
                );
            } else {
                assert!(started.get("client").is_none() && !plan.contains("orphan_grace") && !adopted, "{plan}");
            }
            drop(second);
            world.write("go", "");
            assert_eq!(ended(&world, &run)["state"], "ok", "{orphans}");
        }
    }

    /// After all workers of a session's run were killed, its next hook goes on.
    #[test]
    fn after_a_crash_of_all_workers_the_next_hook_goes_on() {
        let world = World::new();
        with_rule(&world, "echo x >> ran-a; until [ -e go ]; do sleep 0.02; done; echo a", &json!({}));
        prompt(&world, 1, "p1");
        let run = runs(&world)[0].clone();
        wait_for(LIMIT, || (ran(&world, "a") == 1).then_some(())).expect("the task runs");
        for worker in workers(&world, &run) {
            kill(worker, Signal::SIGKILL).expect("a worker of this run");
            wait_for(LIMIT, || kill(worker, None).is_err().then_some(())).expect("it is dead");
        }
        hook(&world, 1, "post-tool-batch", "PostToolBatch", &json!({"tool_calls": []}));
        wait_for(LIMIT, || kinds(&world, &run).contains(&"run_ended".to_owned()).then_some(())).expect("the run ends");
        assert!(kinds(&world, &run).contains(&"lost".to_owned()));
    }

    /// The program, killed before its `n`th call to the system. `None`: there is no strace.
    fn killed_at(world: &World, n: usize, args: &[&str]) -> Option<Said> {
        let strace = ["/usr/bin/strace", "/usr/local/bin/strace"].into_iter().find(|path| Path::new(path).exists());
        let Some(strace) = strace else {
            crate::support::skip::skip("killed at a call", "there is no strace", "CPW_REQUIRE_STRACE");
            return None;
        };
        let mut command = world.command(strace);
        command.args(["-qq", "-o", "/dev/null", "-e", &format!("inject=all:signal=SIGKILL:when={n}")]);
        Some(said(command.arg(crate::support::world::program()).args(args)))
    }

    #[test]
    fn a_retry_that_is_killed_anywhere_has_made_a_whole_run_or_none() {
        let world = World::new();
        write_plan(&world, &json!({"version": 1, "tasks": [step("a", &[], "echo a"), step("b", &["a"], "echo b")]}));
        world.write("fail-b", "");
        assert_eq!(cpw(&world, &["run", "plan.json"]).code, 1);
        let old = runs(&world)[0].clone();
        fs::remove_file(world.project().join("fail-b")).expect("it is removed");
        let (mut made, mut not_made) = (0, 0);
        for n in (1..).step_by(11) {
            let Some(killed) = killed_at(&world, n, &["retry", &old, "--detach"]) else { return };
            let new = runs(&world)[0].clone();
            if new == old {
                not_made += 1;
                continue;
            }
            made += 1;
            // Whoever comes next brings it to its end.
            assert_eq!(ended(&world, &new)["state"], "ok", "killed at {n}");
            let log = events(&world, &new);
            assert_eq!(log[2]["payload"]["from"], old, "killed at {n}");
            assert_eq!(good(&world, &["result", "a", "--run", &new]).out, "a\n", "killed at {n}");
            assert_eq!((ran(&world, "a"), ran(&world, "b")), (1, 1 + made), "killed at {n}");
            wait_for(LIMIT, || world.processes().is_empty().then_some(())).expect("its workers leave");
            good(&world, &["clean", &new]);
            if killed.code == 0 {
                break;
            }
        }
        assert!(not_made > 5, "{made} made, {not_made} not made");
        good(&world, &["retry", &old]);
        assert_eq!(ran(&world, "a"), 1);
    }

    #[test]
    fn a_clean_that_is_killed_anywhere_is_finished_by_the_next() {
        let world = World::new();
        let all = || {
            let names = fs::read_dir(world.project().join(".claude/runs")).expect("runs").flatten();
            names.filter(|e| e.file_name() != ".gitignore").count()
        };
        let mut begun = 0;
        let mut run = finished(&world, "mkdir $CPW_OUT/d; echo a > $CPW_OUT/d/file; echo a");
        for n in (1..).step_by(9) {
            let Some(killed) = killed_at(&world, n, &["clean", "--older", "0s"]) else { return };
            assert!(good(&world, &["status", "--json"]).out.contains("\"version\":1"));
            if runs(&world).is_empty() {
                begun += 1;
                good(&world, &["clean", "--older", "0s"]);
                assert_eq!((all(), is_recorded(&world, &run)), (0, false), "killed at {n}");
                if killed.code == 0 {
                    break;
                }
                run = finished(&world, "mkdir $CPW_OUT/d; echo a > $CPW_OUT/d/file; echo a");
            } else {
                // Nothing of it is gone.
                assert_eq!(good(&world, &["result", "a"]).out, "a\n", "killed at {n}");
            }
        }
        assert!(begun > 3, "{begun}");
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
