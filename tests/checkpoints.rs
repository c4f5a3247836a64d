//! Checkpoints: a task starts while the one that it needs goes on. The real binary, with tasks that are shell one-liners.

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
    use serde_json::{Value, json};

    use crate::scratch::Scratch;

    /// Runs a plan of these tasks in two workers; what happened to tasks, as `kind task`.
    fn run(scratch: &Scratch, tasks: &Value, good: bool) -> Vec<String> {
        scratch.write("plan.json", &json!({"version": 1, "limits": {"max_workers": 2}, "tasks": tasks}).to_string());
        let done = scratch.cpw(&["run", "plan.json"]);
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
}
