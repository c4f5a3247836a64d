//! Checkpoints: a task starts while the one that it needs goes on, or waits for it while it runs. The real binary, with
//! tasks that are shell one-liners.

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
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::scratch::Scratch;

    /// A run may take so long on a busy machine.
    const LONG: Duration = Duration::from_mins(2);

    /// Runs a plan of these tasks in two workers; what happened to tasks, as `kind task`.
    fn run(scratch: &Scratch, tasks: &Value, good: bool) -> Vec<String> {
        run_in(scratch, 2, tasks, good)
    }

    /// The same in more or fewer.
    fn run_in(scratch: &Scratch, workers: u32, tasks: &Value, good: bool) -> Vec<String> {
        let limits = json!({"max_workers": workers});
        scratch.write("plan.json", &json!({"version": 1, "limits": limits, "tasks": tasks}).to_string());
        let done = scratch.run(scratch.command(&[], &["run", "plan.json"]), LONG);
        assert_eq!(done.status.code(), Some(i32::from(!good)), "{done:?}");
        scratch.wait_for_end().expect("the run ends");
        let ledger = scratch.ledger().expect("a good log");
        let about = |e: &serde_json::Map<String, Value>| {
            Some(format!("{} {}", e["t"].as_str()?, e.get("task").and_then(Value::as_str)?))
        };
        ledger.events.iter().filter_map(about).collect()
    }

    fn at(happened: &[String], what: &str) -> usize {
        happened.iter().position(|h| h == what).unwrap_or_else(|| panic!("no '{what}' in {happened:?}"))
    }

    #[test]
    fn what_needs_a_checkpoint_starts_while_its_source_goes_on_and_reads_what_it_handed_over() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let happened = run(
            &scratch,
            &json!([
                {"id": "build", "shell": "cpw checkpoint compiled --data '{\"binary\": \"app\"}'; until [ -e tested ]; do sleep 0.01; done"},
                {"id": "test", "needs": ["build@compiled"], "shell": "cat $CPW_NEEDS; touch tested"},
                {"id": "pack", "needs": ["build", "test"], "shell": "true"}]),
            true,
        );
        assert!(at(&happened, "checkpoint build") < at(&happened, "started test"));
        assert!(at(&happened, "spawned test") < at(&happened, "done build"), "it went on: {happened:?}");
        assert!(at(&happened, "done build") < at(&happened, "started pack"));
        let told = scratch.cpw(&["result", "test"]).out;
        let told: Value = serde_json::from_str(&told).expect("what it was told");
        let need = &told["build@compiled"];
        assert_eq!(
            (&need["state"], &need["checkpoint"]["data"]["binary"]),
            (&json!("running"), &json!("app")),
            "{told}"
        );
    }

    #[test]
    fn a_checkpoint_stays_when_its_attempt_fails_and_one_that_never_comes_skips_who_waits() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let happened = run(
            &scratch,
            &json!([
                {"id": "a", "shell": "cpw checkpoint half; cpw checkpoint half; exit 1", "allow_failure": true},
                {"id": "b", "shell": "true"},
                {"id": "of-a", "needs": ["a@half"], "shell": "true"},
                {"id": "of-b", "needs": ["b@half"], "shell": "true"},
                {"id": "behind", "needs": ["of-b", "a@half"], "shell": "true"}]),
            false,
        );
        at(&happened, "done of-a");
        at(&happened, "skipped behind");
        let ledger = scratch.ledger().expect("a good log");
        let skipped = ledger.events.iter().find(|e| e["t"] == "skipped").expect("one is skipped");
        assert_eq!(
            (&skipped["task"], &skipped["payload"]["because"]),
            (&json!("of-b"), &json!("b ended without the checkpoint that it needs"))
        );
        let end = ledger.events.iter().find(|e| e["t"] == "run_ended").expect("the end");
        assert_eq!(
            (&end["payload"]["status"], &end["payload"]["reason"]),
            (&json!("failed"), &json!("b@half was waited for in vain"))
        );
    }

    #[test]
    fn what_is_no_checkpoint_is_refused_with_its_reason() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let outside = scratch.cpw(&["checkpoint", "x"]);
        assert_eq!(outside.status.code(), Some(3));
        assert!(outside.err.contains("works inside a task only"), "{}", outside.err);
        let tries = "cpw checkpoint ../x; echo $?; cpw checkpoint x --data '{'; echo $?; \
            cpw checkpoint x --data \"\\\"$(head -c 20000 /dev/zero | tr '\\0' x)\\\"\"; echo $?; cpw checkpoint x; echo $?";
        run(&scratch, &json!([{"id": "t", "shell": format!("( {tries} ) 2>&1")}]), true);
        let said = scratch.cpw(&["result", "t"]).out;
        let codes: Vec<&str> = said.lines().filter(|l| l.len() == 1).collect();
        assert_eq!(codes, ["3", "3", "3", "0"], "{said}");
        for words in ["the name '../x'", "--data is not JSON", "longer than 16384 bytes", "$CPW_OUT"] {
            assert!(said.contains(words), "{words}: {said}");
        }
        let plan = json!({"version": 1, "tasks": [
            {"id": "a", "shell": "true", "needs": ["b@x"]}, {"id": "b", "shell": "true", "needs": ["a@y"]},
            {"id": "c", "shell": "true", "needs": ["nobody@x", "a@../x", "c@x"]}]});
        scratch.write("plan.json", &plan.to_string());
        let done = scratch.cpw(&["run", "plan.json"]);
        assert_eq!(done.status.code(), Some(3));
        for words in [
            "$.tasks[0].needs: tasks need each other in a circle: a -> b -> a",
            "$.tasks[2].needs[0]",
            "$.tasks[2].needs[1]",
            "$.tasks[2].needs[2]: \"c\" needs itself",
        ] {
            assert!(done.err.contains(words), "{words}: {}", done.err);
        }
    }

    /// What a task wrote to a file of the project.
    fn read(scratch: &Scratch, name: &str) -> String {
        std::fs::read_to_string(scratch.project().join(name)).unwrap_or_default()
    }

    #[test]
    fn a_barrier_waits_for_all_and_fails_as_soon_as_one_cannot_come() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let barrier = "--checkpoint b@half --checkpoint c@half --task d";
        run_in(
            &scratch,
            4,
            &json!([
                {"id": "a", "shell": format!("cpw wait {barrier} --json >said; echo $? >code; \
                    cpw wait --checkpoint c@never --checkpoint b@late 2>why; echo $? >>code; touch over")},
                {"id": "b", "shell": "cpw checkpoint half --data '{\"n\": 1}'; until [ -e over ]; do sleep 0.01; done"},
                {"id": "c", "shell": "cpw checkpoint half; until [ -e code ]; do sleep 0.01; done"},
                {"id": "d", "shell": "until [ -e ../state ]; do sleep 0.01; done"}]),
            true,
        );
        let said: Value = serde_json::from_str(&read(&scratch, "said")).expect("one line of JSON");
        assert_eq!((&said["outcome"], &said["on"]), (&json!("happened"), &json!(["d", "b@half", "c@half"])));
        assert_eq!(said["data"], json!({"b@half": {"n": 1}, "c@half": null}), "{said}");
        assert_eq!(read(&scratch, "code"), "0\n1\n", "{}", read(&scratch, "why"));
        assert!(read(&scratch, "why").contains("c is done and has not come to never"), "{}", read(&scratch, "why"));
        // Who waits is in the log, and that it is over.
        let ledger = scratch.ledger().expect("a good log");
        let on = |done: bool| {
            let lines =
                ledger.events.iter().filter(|e| e["t"] == "awaited" && e["payload"].get("done").is_some() == done);
            lines.filter_map(|e| e["payload"]["on"].as_str()).collect::<Vec<_>>()
        };
        assert!(on(false).contains(&"b@late") && on(true).contains(&"b@late"), "{:?} {:?}", on(false), on(true));
    }

    #[test]
    fn a_wait_inside_a_task_has_a_limit_and_a_time_out_has_its_own_code() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        run(
            &scratch,
            &json!([
                {"id": "a", "shell": "cpw wait --checkpoint b@x --timeout 50ms 2>why; echo $? >code; \
                    cpw wait --checkpoint b 2>>why; echo $? >>code; cpw wait --checkpoint b@../x 2>>why; echo $? >>code; touch over"},
                {"id": "b", "shell": "until [ -e over ]; do sleep 0.01; done"}]),
            true,
        );
        assert_eq!(read(&scratch, "code"), "4\n3\n3\n");
        let why = read(&scratch, "why");
        for part in
            ["and has not come to x; not waited for any longer", "names no checkpoint", "written build@compiled"]
        {
            assert!(why.contains(part), "{part}: {why}");
        }
    }

    #[test]
    fn the_checkpoint_of_a_further_attempt_replaces_that_of_the_dead_one() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        run(
            &scratch,
            &json!([
                {"id": "build", "retries": 1, "backoff": "10ms", "shell": "cpw checkpoint x --data $CPW_ATTEMPT; \
                    [ $CPW_ATTEMPT = 2 ] || { until [ -e seen1 ]; do sleep 0.01; done; exit 1; }; touch again; \
                    until [ -e seen2 ]; do sleep 0.01; done"},
                {"id": "wait", "shell": "cpw wait --checkpoint build@x --json >seen1.new; mv seen1.new seen1; \
                    until [ -e again ]; do sleep 0.01; done; cpw wait --checkpoint build@x --json >seen2.new; mv seen2.new seen2"},
                {"id": "late", "needs": ["build@x", "build"], "shell": "cat $CPW_NEEDS >needs; echo $CPW_NEED_BUILD_X >var"}]),
            true,
        );
        let json = |name: &str| serde_json::from_str::<Value>(&read(&scratch, name)).expect("JSON");
        assert_eq!((&json("seen1")["data"]["build@x"], &json("seen2")["data"]["build@x"]), (&json!(1), &json!(2)));
        assert_eq!(json("needs")["build@x"]["checkpoint"]["data"], json!(2));
        assert_eq!(read(&scratch, "var"), "2\n");
    }

    #[test]
    fn of_two_that_would_wait_for_each_other_exactly_one_is_refused_a_hundred_times() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        // Both begin a round together; who is refused hands over what the other one waits for.
        let script = |own: &str, other: &str| {
            format!(
                "i=1; while [ $i -le 100 ]; do : >{own}.$i; until [ -e {other}.$i ]; do sleep 0.002; done; \
                 cpw wait --checkpoint {other}@r$i 2>>{own}.why; echo $i $? >>codes; cpw checkpoint r$i; i=$((i + 1)); done"
            )
        };
        run(&scratch, &json!([{"id": "a", "shell": script("a", "b")}, {"id": "b", "shell": script("b", "a")}]), true);
        let codes = read(&scratch, "codes");
        for i in 1..=100 {
            let of = |code: &str| codes.lines().filter(|l| *l == format!("{i} {code}")).count();
            assert_eq!((of("0"), of("3")), (1, 1), "round {i}: {codes}");
        }
        let why = read(&scratch, "a.why") + &read(&scratch, "b.why");
        assert!(why.contains("a waits for b@r") || why.contains("b waits for a@r"), "{why}");
        assert!(why.contains(", which waits for "), "{why}");
    }

    #[test]
    fn where_nobody_is_left_to_run_what_is_waited_for_the_wait_is_refused() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let tasks = json!([
            {"id": "a", "shell": "cpw wait --task b 2>why; echo $? >code"}, {"id": "b", "shell": "true"}]);
        run_in(&scratch, 1, &tasks, true);
        assert_eq!(read(&scratch, "code"), "3\n");
        assert!(read(&scratch, "why").contains("nobody is left to run b"), "{}", read(&scratch, "why"));
    }
}
