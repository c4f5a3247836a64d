//! How much runs at the same time, over all runs of a user: the real binary in scratch projects that share a state directory.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/ledger.rs"]
mod ledger;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/scratch.rs"]
mod scratch;

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Map, Value, json};

    use crate::ledger::Ledger;
    use crate::scratch::Scratch;

    /// How many attempts were open at once, over all logs, by the wall clock of their events.
    fn most_at_once(logs: &[Ledger]) -> i32 {
        let mut moments: Vec<(String, i32)> = Vec::new();
        for event in logs.iter().flat_map(|log| &log.events) {
            let change = match event["t"].as_str() {
                Some("started") => 1,
                Some("done" | "failed" | "lost" | "timed_out" | "cancelled") => -1,
                _ => continue,
            };
            moments.push((event["ts"].as_str().expect("a time").to_owned(), change));
        }
        moments.sort();
        let mut open = 0;
        let counts = moments.iter().map(|(_, change)| {
            open += change;
            open
        });
        counts.max().unwrap_or(0)
    }

    #[test]
    fn runs_of_one_user_share_their_seats_and_each_goes_on_without_one() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        fs::create_dir_all(scratch.path("home/.config/cpw")).expect("a folder");
        let config = json!({"version": 1, "limits": {"user_workers": 1}});
        fs::write(scratch.path("home/.config/cpw/config.json"), config.to_string()).expect("a file");
        let task = |i: u32| json!({"id": format!("t{i}"), "shell": "while [ ! -e go ]; do sleep 0.02; done"});
        let tasks: Vec<_> = (0..4).map(task).collect();
        scratch.write("plan.json", &json!({"version": 1, "limits": {"max_workers": 4}, "tasks": tasks}).to_string());
        for _ in 0..2 {
            let done = scratch.cpw(&["run", "plan.json", "--detach"]);
            assert!(done.is_ok(), "{done:?}");
        }
        let logs = || -> Vec<Ledger> { scratch.ledgers().expect("good logs").into_iter().map(|(_, l)| l).collect() };
        let spawned = || logs().iter().flat_map(|l| &l.events).filter(|e| e["t"] == "spawned").count();
        scratch.wait("the first worker of each run, and one beside them", || spawned() == 3).expect("three tasks run");
        scratch.write("go", "");
        scratch.wait_for_end().expect("both runs end");
        let logs = logs();
        assert_eq!(most_at_once(&logs), 3, "the seats were not shared");
        for log in &logs {
            assert_eq!(log.events.iter().filter(|e| e["t"] == "done").count(), 4);
        }
    }

    #[test]
    fn p22_output_without_end_keeps_its_beginning_and_its_end_and_a_bounded_disk() {
        const MIB: u64 = 1024 * 1024;
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        // Beside a second worker, so that it is not always the leader's own.
        let loud = "echo first; yes | head -c 300000000; echo last; head -c 70000000 /dev/zero >&2";
        let plan = json!({"version": 1, "limits": {"max_workers": 2},
            "tasks": [{"id": "quiet", "shell": "echo quiet"}, {"id": "loud", "shell": loud}]});
        scratch.write("plan.json", &plan.to_string());
        let done = scratch.cpw(&["run", "plan.json"]);
        assert!(done.is_ok(), "{done:?}");
        scratch.wait_for_end().expect("the run ends");
        let ledger = scratch.ledger().expect("a good log");
        let end = ledger.events.iter().find(|e| e["t"] == "done" && e["task"] == "loud").expect("it is done");
        let worker = end["worker"].as_str().expect("a worker").to_owned();
        let logs = scratch.log().with_file_name("workers").join(worker).join("logs");
        let out = fs::read_to_string(logs.join("loud.1.out")).expect("its output");
        assert!(out.len() as u64 <= 64 * MIB, "{} bytes", out.len());
        assert!(out.starts_with("first\ny\n") && out.ends_with("y\nlast\n"), "the beginning and the end stay");
        let err = fs::metadata(logs.join("loud.1.err")).expect("its errors").len();
        assert!(err <= 64 * MIB, "{err} bytes");
        let gone = end["payload"]["cut_bytes"].as_u64().expect("it says so");
        assert!(out.contains("\n[cpw: ") && gone > 250_000_000, "{gone}");
        assert!(ledger.events.iter().filter(|e| e["t"] == "done").any(|e| e["payload"].get("cut_bytes").is_none()));
        let shown = scratch.cpw(&["logs", "loud"]);
        assert!(shown.is_ok() && shown.out.contains("bytes are cut out here"), "{}", shown.err);
    }

    /// Whether one of its workers is in a call that can be interrupted: in such a state it does not hold the log.
    fn waits(pid: i32) -> bool {
        stat(pid).contains(") S ")
    }

    fn stat(pid: i32) -> String {
        fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
    }

    fn state_of(scratch: &Scratch, task: &str) -> String {
        let shown = scratch.cpw(&["status", "--json"]);
        let status: Value = serde_json::from_str(&shown.out).unwrap_or_else(|e| panic!("{e}: {shown:?}"));
        let tasks = status["runs"][0]["tasks"].as_array().cloned().unwrap_or_default();
        tasks.iter().find(|t| t["task"] == task).map(|t| t["state"].to_string()).unwrap_or_default()
    }

    /// The worker that runs a task, and its pid.
    fn worker_of(scratch: &Scratch, task: &str) -> (String, i32) {
        let ledger = scratch.ledger().expect("a good log");
        let about = |e: &&Map<String, Value>, t: &str, key: &str, value: &str| {
            e["t"] == t && e.get(key).is_some_and(|v| v == value)
        };
        let started = ledger.events.iter().find(|e| about(e, "spawned", "task", task)).expect("it was spawned");
        let worker = started["worker"].as_str().expect("a worker").to_owned();
        let born =
            ledger.events.iter().find(|e| about(e, "worker_started", "worker", &worker)).expect("it was started");
        (worker, i32::try_from(born["payload"]["pid"].as_i64().expect("a pid")).expect("a pid"))
    }

    fn has(scratch: &Scratch, kind: &str, task: &str) -> bool {
        let ledger = scratch.ledger().expect("a good log");
        ledger.events.iter().any(|e| e["t"] == kind && e.get("task").is_some_and(|t| t == task))
    }

    /// Stops the worker of `stuck` while it waits for its task.
    fn stop_worker_of(scratch: &Scratch, task: &str) -> i32 {
        scratch.wait("the task runs", || has(scratch, "spawned", task)).expect("it runs");
        let (_, pid) = worker_of(scratch, task);
        scratch.wait("its worker waits", || waits(pid)).expect("it waits");
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it is told to stop");
        scratch.wait("it is stopped", || stat(pid).contains(") T ")).expect("it stops");
        pid
    }

    #[test]
    fn p11_a_stopped_worker_is_shown_and_ended_at_the_limit_by_another_one() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let plan = json!({"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "stuck", "shell": "echo x >> effects; while [ ! -e go ]; do sleep 0.02; done", "timeout": "4s"},
            {"id": "other", "shell": "while [ ! -e go ]; do sleep 0.02; done"}]});
        scratch.write("plan.json", &plan.to_string());
        assert!(scratch.cpw(&["run", "plan.json", "--detach"]).is_ok());
        scratch.wait("the other task", || has(&scratch, "spawned", "other")).expect("it runs");
        let pid = stop_worker_of(&scratch, "stuck");
        assert_eq!(state_of(&scratch, "stuck"), "\"stalled\"");
        scratch.wait("its end", || has(&scratch, "lost", "stuck")).expect("somebody ends it");
        assert!(!stat(pid).contains(") T "), "its worker is still there");
        scratch.write("go", "");
        scratch.wait_for_end().expect("the run ends");
        assert!(has(&scratch, "done", "other") && !has(&scratch, "done", "stuck"));
        assert_eq!(fs::read_to_string(scratch.project().join("effects")).expect("its effect"), "x\n", "once");
    }

    #[test]
    fn p11_where_every_worker_is_stopped_the_next_command_ends_them_at_the_limit() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let stuck = "test -e again || { touch again; sleep 600; }";
        let plan = json!({"version": 1, "limits": {"max_workers": 1}, "tasks": [
            {"id": "stuck", "shell": stuck, "timeout": "1s", "retries": 1, "backoff": "10ms"}]});
        scratch.write("plan.json", &plan.to_string());
        assert!(scratch.cpw(&["run", "plan.json", "--detach"]).is_ok());
        stop_worker_of(&scratch, "stuck");
        let done = || {
            assert!(scratch.cpw(&["status"]).status.code().is_some());
            has(&scratch, "done", "stuck")
        };
        scratch.wait("the second attempt", done).expect("the command goes on");
        scratch.wait_for_end().expect("the run ends");
        assert!(has(&scratch, "lost", "stuck"));
    }

    #[test]
    fn p27_a_task_that_kills_its_workers_is_given_up() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        // The first process of a task is a child of its worker. Not before its start is in the log: a worker that dies in
        // between is the same for the log, but not for this test.
        let murder = "until grep -q '\"spawned\".*\"task\":\"murder\",\"attempt\":'$CPW_ATTEMPT $CPW_RUN_DIR/events.jsonl; \
            do sleep 0.01; done; echo x >> effects; kill -9 $PPID; sleep 600";
        let plan = json!({"version": 1, "limits": {"max_workers": 1}, "tasks": [
            {"id": "murder", "shell": murder, "retries": 9, "backoff": "10ms"},
            {"id": "behind", "shell": "true", "needs": ["murder"]}, {"id": "beside", "shell": "true"}]});
        scratch.write("plan.json", &plan.to_string());
        assert!(scratch.cpw(&["run", "plan.json", "--detach"]).is_ok());
        let over = || {
            assert!(scratch.cpw(&["status"]).status.code().is_some());
            scratch.ledger().expect("a good log").is_ended()
        };
        scratch.wait("the end of the run", over).expect("it ends");
        scratch.wait_for_end().expect("nobody is left");
        let ledger = scratch.ledger().expect("a good log");
        let of = |task: &str| -> Vec<String> {
            let about = ledger.events.iter().filter(|e| e.get("task").is_some_and(|t| t == task));
            about.map(|e| e["t"].as_str().unwrap_or_default().to_owned()).collect()
        };
        let once = ["started", "spawned", "lost"];
        assert_eq!(of("murder"), [once, once, once].concat());
        assert_eq!((of("behind").last(), of("beside").last()), (Some(&"skipped".into()), Some(&"done".into())));
        assert_eq!(fs::read_to_string(scratch.project().join("effects")).expect("its effects"), "x\nx\nx\n");
        let last = ledger.events.iter().rfind(|e| e["t"] == "lost").expect("it was lost");
        assert_eq!(last["payload"]["reason"], "the worker died, 3 times within a minute");
    }
}
