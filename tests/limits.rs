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
}
