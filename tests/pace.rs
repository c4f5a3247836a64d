//! What tasks say of themselves while they run, and how often: progress, signals and checkpoints by the real binary, with
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

    use serde_json::{Map, Value, json};

    use crate::scratch::{Call, SESSION, Scratch};

    /// A run may take so long on a busy machine.
    const LONG: Duration = Duration::from_mins(2);

    fn scratch() -> (tempfile::TempDir, Scratch) {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        (temp, scratch)
    }

    /// Runs a plan of these tasks to its good end.
    fn run(scratch: &Scratch, tasks: &Value) {
        scratch.write("plan.json", &json!({"version": 1, "limits": {"max_workers": 2}, "tasks": tasks}).to_string());
        let done = scratch.run(scratch.command(&[], &["run", "plan.json"]), LONG);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        scratch.wait_for_end().expect("the run ends");
    }

    /// What a task wrote to a file of the project.
    fn read(scratch: &Scratch, name: &str) -> String {
        std::fs::read_to_string(scratch.project().join(name)).unwrap_or_default()
    }

    fn events(scratch: &Scratch, kind: &str) -> Vec<Map<String, Value>> {
        scratch.ledger().expect("a good log").events.into_iter().filter(|e| e["t"] == kind).collect()
    }

    /// From the first to the last of these, in whole seconds begun; by the wall clock.
    fn seconds(events: &[Map<String, Value>]) -> usize {
        let at = |e: &Map<String, Value>| {
            let time = e["ts"].as_str().expect("a time");
            let part = |range: std::ops::Range<usize>| time[range].parse::<usize>().expect("a number");
            part(11..13) * 3600 + part(14..16) * 60 + part(17..19)
        };
        let (first, last) = (at(&events[0]), at(&events[events.len() - 1]));
        (last + 86_400 - first) % 86_400 + 1
    }

    #[test]
    fn v12_a_checkpoint_that_is_too_long_or_of_a_dead_attempt_changes_nothing() {
        let (_temp, scratch) = scratch();
        // With 256 MiB of address space no gigabyte fits. Without its stamp a process is taken for what its variables say.
        let long = "yes | tr -d '\\n' | head -c 1000000000 | (ulimit -v 262144; cpw checkpoint big --data -)";
        run(
            &scratch,
            &json!([{"id": "a", "retries": 1, "backoff": "10ms", "shell": format!(
                "if [ $CPW_ATTEMPT = 1 ]; then cpw checkpoint x --data 1; exit 1; fi; exec 2>why; cpw checkpoint x --data 2; \
                 {long}; echo $? >codes; cpw checkpoint big --data \"\\\"$(head -c 100000 /dev/zero | tr '\\0' x)\\\"\"; echo $? >>codes; \
                 CPW_ATTEMPT=1 prlimit --rttime=unlimited cpw checkpoint x --data 3; echo $? >>codes; \
                 head -c 10 /dev/zero | cpw checkpoint nul --data -; echo $? >>codes; \
                 echo '[4]' | cpw checkpoint y --data - --json >said; echo $? >>codes")},
                {"id": "b", "needs": ["a@y", "a@x", "a"], "shell": "echo $CPW_NEED_A_X $CPW_NEED_A_Y >needs"}]),
        );
        assert_eq!(read(&scratch, "codes"), "3\n3\n1\n3\n0\n", "{}", read(&scratch, "why"));
        let why = read(&scratch, "why");
        assert_eq!(why.matches("--data is longer than 16384 bytes").count(), 2, "{why}");
        assert!(why.contains("attempt 1 of a is over; nothing was written"), "{why}");
        assert_eq!(read(&scratch, "needs"), "2 [4]\n");
        let said: Value = serde_json::from_str(&read(&scratch, "said")).expect("JSON");
        assert_eq!((&said["checkpoint"], &said["attempt"]), (&json!("y"), &json!(2)));
        assert_eq!(events(&scratch, "checkpoint").len(), 3, "x twice and y");
    }

    #[test]
    fn v13_what_is_no_percentage_is_refused_and_a_loop_does_not_fill_the_log() {
        let (_temp, scratch) = scratch();
        let bad = "for p in -5 101 100.5 NaN 1e2 '' 300 ٣; do cpw progress \"$p\" 2>>why; echo $? >>codes; done";
        let good = "for p in 60 40.9 40% ' 7 ' 100.0; do cpw progress \"$p\" --json >>said; done";
        let flood = "i=0; while [ $i -lt 200 ]; do cpw progress $((i % 50)); i=$((i + 1)); done";
        run(
            &scratch,
            &json!([{"id": "a", "shell": format!("{bad}; {good}")}, {"id": "b", "shell": format!("{flood}; echo over")}]),
        );
        assert_eq!(read(&scratch, "codes"), "3\n".repeat(8), "{}", read(&scratch, "why"));
        let why = read(&scratch, "why");
        for words in ["less than nothing", "more than all", "that is no number", "it is 0 to 100"] {
            assert!(why.contains(words), "{words}: {why}");
        }
        let said = read(&scratch, "said");
        let said: Vec<Value> = said.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
        let percents: Vec<u64> = said.iter().filter_map(|s| s["percent"].as_u64()).collect();
        assert_eq!(percents, [60, 40, 40, 7, 100]);
        let all = events(&scratch, "progress");
        let written = |task: &str| all.iter().filter(|e| e["task"] == task).cloned().collect::<Vec<_>>();
        let (a, b) = (written("a"), written("b"));
        assert_eq!((&a[0]["payload"]["percent"], &a[a.len() - 1]["payload"]["percent"]), (&json!(60), &json!(100)));
        assert!(b.len() <= seconds(&b) + 1, "{} lines in {} s", b.len(), seconds(&b));
    }

    #[test]
    fn signals_that_repeat_themselves_are_counted_and_what_is_new_is_never_left_out() {
        let (_temp, scratch) = scratch();
        let flood = "i=0; while [ $i -lt 150 ]; do cpw signal --hook post-tool-use --exit 0 --message again >>ids; i=$((i + 1)); done";
        let other =
            "i=0; while [ $i -lt 12 ]; do cpw signal --hook stop --exit 0 --message \"new $i\"; i=$((i + 1)); done";
        run(&scratch, &json!([{"id": "a", "shell": flood}, {"id": "b", "shell": other}]));
        let all = events(&scratch, "signal");
        let written = |task: &str| all.iter().filter(|e| e["task"] == task).cloned().collect::<Vec<_>>();
        let (a, b) = (written("a"), written("b"));
        // What a second has begun before the first line of it may reach into two of the clock's.
        assert!(a.len() <= 10 * (seconds(&a) + 1), "{} lines in {} s", a.len(), seconds(&a));
        let counted =
            |of: &[Map<String, Value>]| of.iter().map(|e| 1 + e["payload"]["more"].as_u64().unwrap_or(0)).sum::<u64>();
        assert!((10..=150).contains(&counted(&a)), "{}", counted(&a));
        assert_eq!(read(&scratch, "ids").lines().filter(|l| l.parse::<u64>().is_ok()).count(), 150, "each has its id");
        let said: Vec<&str> = b.iter().filter_map(|e| e["payload"]["message"].as_str()).collect();
        assert_eq!(said, (0..12).map(|i| format!("new {i}")).collect::<Vec<_>>(), "all, and in their order");
    }

    #[test]
    fn what_is_said_again_after_it_was_taken_back_is_written() {
        let (_temp, scratch) = scratch();
        let send = "cpw signal --hook post-tool-use --exit 0 --message x";
        let script = format!("i=0; while [ $i -lt 15 ]; do {send}; i=$((i + 1)); done; cpw signal --release; {send}");
        run(&scratch, &json!([{"id": "a", "shell": script}]));
        let ledger = scratch.ledger().expect("a good log");
        let kinds: Vec<&str> = ledger.events.iter().filter_map(|e| e["t"].as_str()).collect();
        let released = kinds.iter().position(|k| *k == "signal_released").expect("it is taken back");
        assert!(kinds[released..].contains(&"signal"), "{kinds:?}");
    }

    fn hook(scratch: &Scratch, hook: &'static str, event: &'static str, more: Value) -> String {
        let call = Call { hook, event, session: SESSION, client: false, more };
        let done = scratch.run(scratch.hook(&[], &call), LONG);
        assert!(done.is_ok(), "{done:?}");
        done.out
    }

    /// A run of the rule begins, and its task with it.
    fn analyze(scratch: &Scratch, prompt: &str) {
        hook(
            scratch,
            "user-prompt-submit",
            "UserPromptSubmit",
            json!({"prompt": "Analyze it now", "prompt_id": prompt}),
        );
        let started = || scratch.ledger().is_ok_and(|l| l.events.iter().any(|e| e["t"] == "spawned"));
        scratch.wait("the task begins", started).expect("it does");
    }

    fn status(scratch: &Scratch) -> (String, Value) {
        let json: Value = serde_json::from_str(&scratch.cpw(&["status", "--json"]).out).expect("JSON");
        (scratch.cpw(&["status"]).out, json["runs"][0].clone())
    }

    #[test]
    fn a_run_is_expected_to_take_what_earlier_ones_took_and_who_held_the_session_is_shown() {
        let (_temp, scratch) = scratch();
        let config = json!({"version": 1, "conductor": {"wait": "150ms"}, "rules": [{
            "name": "analyze", "when": {"prompt": "(?i)\\banalyze\\b"},
            "tasks": [{"id": "a", "claims": ["own.txt"], "shell": "until [ -e go ]; do sleep 0.01; done"}]}]});
        scratch.write(".claude/cpw.json", &config.to_string());
        assert!(scratch.cpw(&["allow", "--yes"]).is_ok());
        analyze(&scratch, "p1");
        let (text, first) = status(&scratch);
        assert!(first["tasks"][0]["expected_ms"].is_null() && !text.contains("earlier runs"), "{text}");
        scratch.write("go", "");
        scratch.wait_for_end().expect("the run ends");
        let folder = scratch.path("state/history");
        let files: Vec<_> = std::fs::read_dir(&folder).expect("the folder").flatten().map(|e| e.path()).collect();
        let [file] = &files[..] else { panic!("one file of one rule: {files:?}") };
        let mut history: Value = serde_json::from_slice(&std::fs::read(file).expect("it")).expect("JSON");
        assert_eq!(history["tasks"]["a"].as_array().map(Vec::len), Some(1), "{history}");
        history["tasks"]["a"] = json!([60_000]);
        std::fs::write(file, history.to_string()).expect("it is written");
        std::fs::remove_file(scratch.project().join("go")).expect("it was there");
        analyze(&scratch, "p2");
        let read = json!({"tool_name": "Read", "tool_input": {"file_path": scratch.project().join("own.txt")}, "tool_use_id": "t1"});
        let refused = hook(&scratch, "pre-tool-use", "PreToolUse", read);
        assert!(refused.contains("left by earlier runs"), "{refused}");
        let (text, run) = status(&scratch);
        let task = &run["tasks"][0];
        assert_eq!((&task["expected_ms"], &task["eta_by_history"]), (&json!(60_000), &json!(true)), "{run:#}");
        assert!(run["eta_s"].as_u64().is_some_and(|s| s <= 60) && run["eta_by_history"] == true, "{run:#}");
        assert!(text.contains(" left, by earlier runs") && text.contains(" by earlier runs · "), "{text}");
        // It is what the log says, for each call.
        let held = events(&scratch, "decision")[0]["payload"]["held_ms"].as_u64().expect("a time");
        assert!(held >= 150);
        assert_eq!((&task["held_ms"], &run["held"]["calls_ms"]), (&json!(held), &json!(held)), "{run:#}");
        assert!(text.contains("· held the session ") && text.contains(" at calls, "), "{text}");
        let events = scratch.cpw(&["events"]).out;
        assert!(events.contains("PreToolUse Read: block after "), "{events}");
        scratch.write("go", "");
        scratch.wait_for_end().expect("the run ends");
    }

    #[test]
    fn v14_a_signal_to_a_session_that_is_gone_is_shown_until_its_time_is_over() {
        let (_temp, scratch) = scratch();
        let send = "cpw signal --hook stop --exit 0";
        let script = format!("{send} --ttl 12h --message lasting; {send} --ttl 1ms --message short >/dev/null");
        let config = json!({"version": 1, "rules": [{"name": "go", "when": {"prompt": "(?i)\\bdeploy\\b"},
            "tasks": [{"id": "a", "shell": script}, {"id": "b", "shell": send.to_owned() + " --ttl 12h --message other"}]}]});
        scratch.write(".claude/cpw.json", &config.to_string());
        assert!(scratch.cpw(&["allow", "--yes"]).is_ok());
        let call = Call {
            hook: "user-prompt-submit",
            event: "UserPromptSubmit",
            session: SESSION,
            client: false,
            more: json!({"prompt": "Deploy it now"}),
        };
        let done = scratch.run(scratch.hook(&[], &call), LONG);
        assert!(done.is_ok(), "{done:?}");
        scratch.wait_for_end().expect("the run ends, though nobody listens");
        // The short one takes the place of the lasting one, since it says something else to the same; then it is over.
        let shown = scratch.cpw(&["status"]).out;
        assert!(shown.contains("a signal of b to stop is not told yet") && shown.contains("other"), "{shown}");
        assert!(!shown.contains("short") && !shown.contains("of a to stop"), "{shown}");
        let json: Value = serde_json::from_str(&scratch.cpw(&["status", "--json"]).out).expect("JSON");
        let signals = json["runs"][0]["signals"].as_array().expect("the signals");
        assert_eq!((signals.len(), &signals[0]["task"], &signals[0]["message"]), (1, &json!("b"), &json!("other")));
        assert!(signals[0]["left_ms"].as_u64().is_some_and(|ms| ms > 1000), "{signals:?}");
    }
}
