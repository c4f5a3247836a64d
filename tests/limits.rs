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

    use serde_json::json;

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
}
