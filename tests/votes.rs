//! Votes, V07 to V11, through the real binary: tasks are shell one-liners that call `cpw vote`, are killed, are tried again, or
//! decide at the same moment. What came of it is read from the log by code that shares nothing with the program.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/ledger.rs"]
mod ledger;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/scratch.rs"]
mod scratch;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::ledger::Ledger;
    use crate::scratch::{Done, Scratch};
    use crate::support::api::{Api, Request, Script, Turn};
    use crate::support::client::{Client, LIMIT};
    use crate::support::offline::on_each_client;
    use crate::support::world::{World, wait_for};

    /// How long anything may take on a busy machine.
    const LONG: Duration = Duration::from_mins(1);

    /// A task waits until a file is there.
    fn wait_for_file(name: &str) -> String {
        format!("until [ -e {name} ]; do sleep 0.02; done")
    }

    fn run(scratch: &Scratch, votes: &Value, tasks: &Value) -> Done {
        let plan = json!({"version": 1, "limits": {"max_workers": 4}, "votes": votes, "tasks": tasks});
        scratch.write("plan.json", &plan.to_string());
        let done = scratch.run(scratch.command(&[], &["run", "plan.json"]), LONG);
        assert!(!done.late, "{done:?}");
        scratch.wait_for_end().expect("the run ends");
        done
    }

    fn ledger(scratch: &Scratch) -> Ledger {
        let ledger = scratch.ledger().expect("a good log");
        check(&ledger);
        ledger
    }

    /// What holds for the votes of every log of a run that has ended: one verdict a topic, and it is that of the votes
    /// before it, of which no task has two.
    fn check(ledger: &Ledger) {
        let mut votes: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        let mut verdicts: BTreeMap<String, usize> = BTreeMap::new();
        for event in &ledger.events {
            let payload = &event["payload"];
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let topic = text(&payload["topic"]);
            if event["t"] == "vote" && payload.get("refused").is_none() {
                assert!(!verdicts.contains_key(&topic), "a vote counts behind its verdict: {event:?}");
                let by = votes.entry(topic.clone()).or_default();
                let first = by.insert(text(&event["task"]), text(&payload["decision"]));
                assert_eq!(first, None, "a second vote of a task counts: {event:?}");
            }
            if event["t"] == "verdict" {
                *verdicts.entry(topic.clone()).or_default() += 1;
                let of = |choice: &str| votes.get(&topic).map_or(0, |v| v.values().filter(|c| *c == choice).count());
                assert_eq!((&payload["proceed"], &payload["abort"]), (&json!(of("proceed")), &json!(of("abort"))));
            }
            if event["t"] == "run_ended" {
                assert!(votes.keys().all(|topic| verdicts.contains_key(topic)), "open at the end: {verdicts:?}");
            }
        }
        assert!(verdicts.values().all(|n| *n == 1), "{verdicts:?}");
    }

    fn verdict(ledger: &Ledger, topic: &str) -> Value {
        let found = ledger.events.iter().find(|e| e["t"] == "verdict" && e["payload"]["topic"] == topic);
        found.unwrap_or_else(|| panic!("no verdict about {topic}"))["payload"].clone()
    }

    fn end(ledger: &Ledger) -> (Value, Value) {
        let end = ledger.events.iter().find(|e| e["t"] == "run_ended").expect("the end");
        (end["payload"]["status"].clone(), end["payload"]["reason"].clone())
    }

    /// What a task printed: exit codes of its commands, a line each.
    fn codes(scratch: &Scratch, task: &str) -> Vec<String> {
        let said = scratch.cpw(&["logs", task]).out;
        said.lines().filter_map(|line| line.strip_prefix("code ")).map(ToOwned::to_owned).collect()
    }

    #[test]
    fn v07_one_vote_a_task_whatever_it_says_later_and_however_often_it_is_tried() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let twice = "cpw vote t proceed; echo code $?; cpw vote t abort; echo code $?; [ $CPW_ATTEMPT = 2 ]";
        let other = format!("{}; cpw vote t abort", wait_for_file("tried"));
        let done = run(
            &scratch,
            &json!([{"topic": "t", "voters": ["a", "b", "c"], "quorum": 3, "on_abort": "none"}]),
            &json!([
                {"id": "a", "shell": format!("{twice} && touch tried"), "retries": 1, "backoff": "1ms"},
                {"id": "b", "shell": other}, {"id": "c", "shell": other}]),
        );
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let ledger = ledger(&scratch);
        let tally = verdict(&ledger, "t");
        assert_eq!((&tally["result"], &tally["proceed"], &tally["abort"]), (&json!("abort"), &json!(1), &json!(2)));
        // The same vote of a further attempt is no failure; another one is, in any attempt.
        assert_eq!(codes(&scratch, "a"), ["0", "1", "0", "1"]);
        let refused: Vec<&Value> =
            ledger.events.iter().filter(|e| e["t"] == "vote").filter_map(|e| e["payload"].get("refused")).collect();
        assert_eq!(refused, [&json!("the task has voted proceed, in attempt 1")]);
    }

    #[test]
    fn v08_votes_of_strangers_for_nothing_too_late_or_outside_change_nothing() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let outside = scratch.cpw(&["vote", "t", "proceed"]);
        assert_eq!(outside.status.code(), Some(3));
        assert!(outside.err.contains("works inside a task only"), "{}", outside.err);
        let stranger = "for i in 1 2 3; do cpw vote t abort; echo code $?; done; touch tried";
        let mistaken = format!(
            "{}; cpw vote nope proceed; echo code $?; cpw vote t maybe; echo code $?; \
             cpw vote t proceed --reason 'it is <good>' --json; echo code $?",
            wait_for_file("tried")
        );
        let late = "cpw wait --verdict t >/dev/null; cpw vote t abort; echo code $?";
        let done = run(
            &scratch,
            &json!([{"topic": "t", "voters": ["a", "b"], "quorum": 1},
                {"topic": "u", "voters": ["late"], "quorum": 1, "default": "proceed"}]),
            &json!([
                {"id": "stranger", "shell": stranger},
                {"id": "a", "shell": mistaken},
                {"id": "b", "shell": "cpw vote t proceed; echo code $?"},
                {"id": "late", "shell": late}]),
        );
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let ledger = ledger(&scratch);
        let tally = verdict(&ledger, "t");
        assert_eq!((&tally["result"], &tally["proceed"], &tally["absent"]), (&json!("proceed"), &json!(2), &json!(0)));
        assert_eq!(codes(&scratch, "stranger"), ["1", "1", "1"]);
        assert_eq!(codes(&scratch, "a"), ["3", "3", "0"]);
        assert_eq!(codes(&scratch, "late"), ["1"], "it is no voter there");
        let by = |task: &str| {
            let votes = ledger.events.iter().filter(|e| e["t"] == "vote" && e.get("task").is_some_and(|t| t == task));
            votes.map(|e| e["payload"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(by("stranger").len(), 1, "it is written once: {:?}", by("stranger"));
        assert_eq!((by("a").len(), &by("a")[0]["refused"]), (2, &json!("a vote is for proceed or abort")));
        assert_eq!(by("a")[1]["reason"], "it is <good>");
        assert_eq!(verdict(&ledger, "u")["no_quorum"], true);
        let said = scratch.cpw(&["logs", "a"]).out;
        for words in
            ["nobody votes about 'nope'", "the votes of its plan are t, u", "'maybe' is no choice", "\"counted\":true"]
        {
            assert!(said.contains(words), "{words}: {said}");
        }
    }

    #[test]
    fn v08_a_vote_that_comes_when_it_is_decided_is_refused_and_does_not_make_its_task_fail() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let late = format!("set -e; {}; cpw vote t abort", wait_for_file("decided"));
        let done = run(
            &scratch,
            &json!([{"topic": "t", "voters": ["a", "b", "c", "d"], "quorum": 2}]),
            &json!([
                {"id": "a", "shell": "cpw vote t proceed"}, {"id": "b", "shell": "cpw vote t proceed"},
                {"id": "c", "shell": "cpw vote t proceed"}, {"id": "d", "shell": late},
                {"id": "then", "needs": ["a", "b", "c"], "shell": "touch decided"}]),
        );
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let ledger = ledger(&scratch);
        let refused = ledger.events.iter().find(|e| e["t"] == "vote" && e.get("task").is_some_and(|t| t == "d"));
        let why = &refused.expect("its vote")["payload"]["refused"];
        assert_eq!(why, "it is decided: proceed (3 for, 0 against)");
        assert!(scratch.cpw(&["logs", "d"]).out.contains("this vote about t does not count"));
    }

    #[test]
    fn v09_voters_that_are_killed_are_absent_and_the_default_holds() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        // One kills its own process, one its worker.
        let done = run(
            &scratch,
            &json!([{"topic": "t", "voters": ["a", "b", "c"], "default": "abort"},
                {"topic": "u", "voters": ["b", "c"], "quorum": 1, "default": "proceed", "on_abort": "none"}]),
            &json!([
                {"id": "a", "shell": "cpw vote t proceed"},
                {"id": "b", "shell": "kill -9 $$", "allow_failure": true},
                {"id": "c", "shell": "kill -9 $PPID; sleep 60", "allow_failure": true},
                {"id": "go", "needs": ["t?proceed"], "shell": "true"},
                {"id": "back", "needs": ["t?abort", "u?proceed"], "shell": "cat $CPW_NEEDS"}]),
        );
        assert_eq!(done.status.code(), Some(1), "an abort that the session would have to hear of: {done:?}");
        let ledger = ledger(&scratch);
        let tally = verdict(&ledger, "t");
        let fields = ["result", "proceed", "abort", "absent", "no_quorum", "escalates"].map(|k| tally[k].clone());
        assert_eq!(fields, [json!("abort"), json!(1), json!(0), json!(2), json!(true), json!(true)]);
        assert!(ledger.has_of("lost", "c") && ledger.has_of("failed", "b"), "{:?}", ledger.events);
        assert!(ledger.has("skipped", &[("because", "the vote t said abort")]));
        let told: Value = serde_json::from_str(&scratch.cpw(&["result", "back"]).out).expect("what it was told");
        assert_eq!(
            (&told["t?abort"]["verdict"]["absent"], &told["u?proceed"]["verdict"]["result"]),
            (&json!(2), &json!("proceed"))
        );
        assert_eq!(end(&ledger), (json!("failed"), json!("the vote t said abort")));
    }

    #[test]
    fn v09_a_deadline_closes_it_while_a_voter_goes_on_and_whoever_needs_the_outcome_starts() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let begun = std::time::Instant::now();
        let done = run(
            &scratch,
            &json!([{"topic": "t", "voters": ["slow", "never"], "deadline": "300ms", "on_abort": "none"}]),
            &json!([
                {"id": "first", "shell": "sleep 0.3"},
                {"id": "slow", "needs": ["first"], "shell": wait_for_file("over")},
                {"id": "never", "needs": ["slow"], "shell": "cpw vote t proceed"},
                {"id": "after", "needs": ["t?abort"], "shell": "touch over"}]),
        );
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        let ledger = ledger(&scratch);
        assert_eq!((&verdict(&ledger, "t")["no_quorum"], &verdict(&ledger, "t")["absent"]), (&json!(true), &json!(2)));
        let at = |kind: &str, task: &str| {
            let found = ledger.events.iter().position(|e| e["t"] == kind && e.get("task").is_none_or(|t| t == task));
            found.unwrap_or_else(|| panic!("no {kind} of {task}"))
        };
        assert!(at("verdict", "") < at("done", "slow"), "{:?}", ledger.events);
        // Somebody looked when its time was over, and not only once a minute.
        assert!(begun.elapsed() < LONG, "{:?}", begun.elapsed());
    }

    #[test]
    fn v10_of_two_votes_that_decide_at_once_one_does_a_hundred_times() {
        const ROUNDS: usize = 50;
        for _ in 0..2 {
            let temp = tempfile::tempdir().expect("a folder");
            let scratch = Scratch::new(temp.path());
            let votes: Vec<Value> =
                (1..=ROUNDS).map(|i| json!({"topic": format!("t{i}"), "voters": ["a", "b", "c"]})).collect();
            let all = format!("for i in $(seq {ROUNDS}); do cpw vote t$i proceed; done");
            // Each waits for the other before each vote.
            let racer = |own: &str, other: &str| {
                format!(
                    "for i in $(seq {ROUNDS}); do touch {own}$i; until [ -e {other}$i ]; do sleep 0.001; done; \
                     cpw vote t$i proceed || exit 1; done"
                )
            };
            let done = run(
                &scratch,
                &json!(votes),
                &json!([
                    {"id": "a", "shell": all},
                    {"id": "b", "needs": ["a"], "shell": racer("b", "c")},
                    {"id": "c", "needs": ["a"], "shell": racer("c", "b")}]),
            );
            assert_eq!(done.status.code(), Some(0), "{done:?}");
            let ledger = ledger(&scratch);
            assert_eq!(ledger.count("verdict"), ROUNDS);
            let refused = ledger.events.iter().filter(|e| e["t"] == "vote" && e["payload"].get("refused").is_some());
            assert_eq!(refused.count(), ROUNDS, "the other one of the two is too late");
        }
    }

    #[test]
    fn v11_what_cannot_be_held_is_refused_before_anything_runs() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let plan = json!({"version": 1,
            "votes": [{"topic": "t", "voters": [], "quorum": 0}, {"topic": "u", "voters": ["a", "b"], "quorum": 3},
                {"topic": "v", "voters": ["b"]}],
            "tasks": [{"id": "a", "shell": "true"}, {"id": "b", "shell": "true", "needs": ["v?proceed"]}]});
        scratch.write("plan.json", &plan.to_string());
        let done = scratch.cpw(&["run", "plan.json"]);
        assert_eq!(done.status.code(), Some(3));
        for words in [
            "$.votes[0].voters: is empty",
            "$.votes[0].quorum",
            "$.votes[1].quorum: is 3, but there are only 2 voters",
            "$.tasks[1].needs: tasks need each other in a circle: b -> v? -> b",
        ] {
            assert!(done.err.contains(words), "{words}: {}", done.err);
        }
        assert!(scratch.runs().is_empty());
    }

    #[test]
    fn who_waits_for_a_verdict_learns_it_by_its_exit_code_and_not_for_ever() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let own = "cpw wait --verdict t; echo code $?; cpw vote t proceed; cpw wait --verdict t --timeout 1ms; echo code $?; touch asked; ";
        let plan = json!({"version": 1, "limits": {"max_workers": 4},
            "votes": [{"topic": "t", "voters": ["a", "b"], "on_abort": "none"}, {"topic": "u", "voters": ["a"], "on_abort": "none"}],
            "tasks": [
                {"id": "a", "shell": format!("{own}cpw wait --verdict t; echo code $?; cpw vote u abort --reason no")},
                {"id": "b", "shell": format!("{}; cpw vote t proceed", wait_for_file("go"))}]});
        scratch.write("plan.json", &plan.to_string());
        assert!(scratch.cpw(&["run", "plan.json", "--detach"]).is_ok());
        let project = scratch.project();
        scratch.wait("a has asked", || project.join("asked").exists()).expect("it asks");
        let open = scratch.cpw(&["wait", "--verdict", "t", "--timeout", "50ms"]);
        assert_eq!(open.status.code(), Some(4), "{open:?}");
        assert!(open.err.contains("t: 1 for, 0 against, 1 to come"), "{}", open.err);
        assert!(scratch.cpw(&["status"]).out.contains("  vote t: 1 for, 0 against, 1 to come (b)\n"));
        let shown: Value = serde_json::from_str(&scratch.cpw(&["status", "--json"]).out).expect("JSON");
        assert_eq!(shown["runs"][0]["votes"][0]["voters"], json!({"a": "proceed", "b": "open"}));
        scratch.write("go", "");
        let came = scratch.run(scratch.command(&[], &["wait", "--verdict", "t"]), LONG);
        assert_eq!((came.status.code(), came.out.as_str()), (Some(0), "t: proceed (2 for, 0 against)\n"), "{came:?}");
        let came = scratch.run(scratch.command(&[], &["wait", "--verdict", "u"]), LONG);
        assert_eq!(came.status.code(), Some(1), "{came:?}");
        assert!(came.err.contains("u: abort (0 for, 1 against)"), "{}", came.err);
        let unknown = scratch.cpw(&["wait", "--verdict", "w"]);
        assert_eq!(unknown.status.code(), Some(3), "{unknown:?}");
        scratch.wait_for_end().expect("the run ends");
        assert_eq!(codes(&scratch, "a"), ["3", "4", "0"], "before its own vote it would wait for itself");
        assert!(scratch.cpw(&["logs", "a"]).out.contains("it has not voted about t itself; vote first"));
        check(&ledger(&scratch));
    }

    #[test]
    fn in_a_run_that_continues_another_the_votes_of_what_is_taken_over_count_again() {
        let temp = tempfile::tempdir().expect("a folder");
        let scratch = Scratch::new(temp.path());
        let done = run(
            &scratch,
            &json!([{"topic": "t", "voters": ["a", "b", "c"], "on_abort": "none"}]),
            &json!([
                {"id": "a", "shell": "cpw vote t proceed"},
                {"id": "b", "shell": "[ -e mended ] && cpw vote t proceed"},
                {"id": "c", "shell": "[ -e mended ]"},
                {"id": "go", "needs": ["t?proceed"], "shell": "true"}]),
        );
        assert_eq!(done.status.code(), Some(1), "{done:?}");
        assert_eq!(verdict(&ledger(&scratch), "t")["no_quorum"], true);
        scratch.write("mended", "");
        let done = scratch.run(scratch.command(&[], &["retry"]), LONG);
        assert_eq!(done.status.code(), Some(0), "{done:?}");
        scratch.wait_for_end().expect("the run ends");
        let ledger = ledger(&scratch);
        let tally = verdict(&ledger, "t");
        assert_eq!((&tally["result"], &tally["proceed"], &tally["absent"]), (&json!("proceed"), &json!(2), &json!(1)));
        let again =
            |task: &str| ledger.events.iter().any(|e| e["t"] == "spawned" && e.get("task").is_some_and(|t| t == task));
        assert!(!again("a") && again("b") && ledger.has_of("done", "go"));
    }

    /// What the model is shown: what came out, once; and before it stops, that something was voted down.
    #[test]
    fn the_session_hears_of_verdicts_and_does_not_stop_before_it_has_heard_of_an_abort() {
        on_each_client(|installed| {
            let world = World::new();
            let rule = json!({"name": "review", "when": {"prompt": "(?i)\\breview\\b"},
                "tasks": [
                    {"id": "r1", "shell": "cpw vote style proceed; cpw vote deploy abort"},
                    {"id": "r2", "needs": ["r1"], "shell": format!("{}; cpw vote deploy abort", wait_for_file("$HOME/go"))},
                    {"id": "ship", "needs": ["deploy?proceed"], "shell": "true"}],
                "votes": [{"topic": "style", "voters": ["r1"]}, {"topic": "deploy", "voters": ["r*"]}]});
            world.write(".claude/cpw.json", &json!({"version": 1, "rules": [rule]}).to_string());
            for command in [&["init"][..], &["allow", "--yes"]] {
                let out = world.cpw(command).output().expect("cpw runs");
                assert!(out.status.success(), "cpw {command:?}: {}", String::from_utf8_lossy(&out.stderr));
            }
            let file = world.write("notes.txt", "nothing\n");
            let (home, project) = (world.home(), world.project());
            let decided = move |topic: &'static str| {
                let runs = project.join(".claude/runs");
                let text =
                    |e: std::fs::DirEntry| std::fs::read_to_string(e.path().join("events.jsonl")).unwrap_or_default();
                let log: String = std::fs::read_dir(runs).into_iter().flatten().flatten().map(text).collect();
                log.lines()
                    .any(|l| l.starts_with("{\"t\":\"verdict\"") && l.contains(&format!("\"topic\":\"{topic}\"")))
            };
            let api = Api::start(
                Script::new()
                    .ask(move |_: &Request| {
                        wait_for(LIMIT, || decided("style").then_some(())).expect("a verdict");
                        Turn::tool("Read", json!({"file_path": file}))
                    })
                    .ask(move |request: &Request| {
                        let news = request.count("Consensus: proceed (style: 1 for, 0 against).");
                        assert_eq!(news, 1, "{:?}", request.news());
                        assert_eq!(request.count("CRITICAL"), 0, "{:?}", request.news());
                        std::fs::write(home.join("go"), "").expect("a file in the home");
                        Turn::text("That is all.")
                    })
                    .ask(|request: &Request| {
                        let alarm = request.count("CRITICAL: deploy was voted down (0 for, 2 against).");
                        assert_eq!(alarm, 1, "{:?}", request.news());
                        assert_eq!(request.count("Consensus: proceed (style"), 1, "told again: {:?}", request.news());
                        Turn::text("I have heard.")
                    })
                    // The end of the run comes with it, or behind it.
                    .then(Turn::text("I have heard all.")),
            );
            let printed = Client::new(installed, &world, &api).print("Review the change");
            assert!(printed.text().starts_with("I have heard"), "{}", printed.text());
            let requests = api.requests();
            let last = requests.last().expect("requests");
            assert_eq!(last.count("CRITICAL: deploy was voted down"), 1, "{:?}", last.news());
            assert_eq!(last.count("because of the vote deploy said abort"), 1, "{:?}", last.news());
        });
    }
}
