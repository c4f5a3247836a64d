//! The judge of histories, judged: a good history passes, and for every rule there are bad ones that it must refuse. Each
//! bad one is the good one with one thing changed.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/history.rs"]
mod history;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use crate::history::{Line, RULES, Report, check, sha256};

    /// A run of four tasks: `a` fails once and is tried again, `b` needs it and fails where that is allowed, `c` fails,
    /// `d` needs `c`.
    #[derive(Clone)]
    struct Story {
        plan: Value,
        log: Vec<Value>,
        effects: Vec<Value>,
        settled: bool,
        /// What stands behind the last line.
        tail: Vec<u8>,
        /// A line of the log, from 1, that is replaced by these bytes.
        raw: Option<(usize, Vec<u8>)>,
        raw_effect: Option<(usize, &'static str)>,
    }

    fn event(t: &str, who: (&str, &str, u64), payload: &Value) -> Value {
        let (worker, task, attempt) = who;
        let mut e = json!({"t": t, "seq": 0, "ts": "2026-01-02T03:04:05.678901Z"});
        let fields = e.as_object_mut().unwrap();
        for (key, value) in [("worker", worker), ("task", task)] {
            if !value.is_empty() {
                fields.insert(key.into(), value.into());
            }
        }
        if attempt > 0 {
            fields.insert("attempt".into(), attempt.into());
        }
        fields.insert("payload".into(), payload.clone());
        e
    }

    fn effect(task: &str, attempt: u64, token: u64, phase: &str, seen: u64) -> Value {
        json!({"task": task, "attempt": attempt, "token": token, "phase": phase, "seen": seen})
    }

    fn good() -> Story {
        let plan = json!({
            "version": 1, "run": "r", "limits": {"max_workers": 2},
            "tasks": [
                {"id": "a", "retries": 1},
                {"id": "b", "needs": ["a"], "allow_failure": true},
                {"id": "c"},
                {"id": "d", "needs": ["c"]},
            ],
        });
        let process = json!({"pid": 7, "start_time": 9, "boot_id": "x"});
        let started = |mono: u64| json!({"cwd": "/", "mono_ms": mono});
        let why = |reason: &str| json!({"reason": reason});
        let lost = json!({"reason": "the worker died", "will_retry": true, "retry_at": 200});
        let ended =
            json!({"status": "failed", "reason": "c failed", "done": 1, "failed": 2, "skipped": 1, "cancelled": 0});
        let log = vec![
            /*  1 */ event("run_started", ("", "", 0), &json!({"v": 1, "session": "s", "max_workers": 2})),
            /*  2 */ event("worker_started", ("W1", "", 0), &process),
            /*  3 */ event("started", ("W1", "a", 1), &started(100)),
            /*  4 */ event("spawned", ("W1", "a", 1), &process),
            /*  5 */ event("worker_started", ("W2", "", 0), &process),
            /*  6 */ event("started", ("W2", "c", 1), &started(110)),
            /*  7 */ event("spawned", ("W2", "c", 1), &process),
            /*  8 */ event("lost", ("W1", "a", 1), &lost),
            /*  9 */ event("worker_lost", ("W1", "", 0), &why("the worker died")),
            /* 10 */ event("failed", ("W2", "c", 1), &json!({"reason": "exit 1", "will_retry": false})),
            /* 11 */ event("skipped", ("", "d", 0), &json!({"because": "c"})),
            /* 12 */ event("delivered", ("", "", 0), &json!({"news": [10, 11], "hook": "Stop", "session": "s"})),
            /* 13 */ event("started", ("W2", "a", 2), &started(200)),
            /* 14 */ event("progress", ("W2", "a", 2), &json!({"percent": 50})),
            /* 15 */ event("done", ("W2", "a", 2), &json!({"exit": 0, "duration_ms": 4})),
            /* 16 */ event("started", ("W2", "b", 1), &started(210)),
            /* 17 */ event("failed", ("W2", "b", 1), &json!({"reason": "exit 1", "will_retry": false})),
            /* 18 */ event("run_ended", ("", "", 0), &ended),
            /* 19 */ event("worker_exited", ("W2", "", 0), &why("the run is over")),
            /* 20 */
            event("delivered", ("", "", 0), &json!({"news": [15, 17, 18], "hook": "Stop", "session": "s"})),
        ];
        let effects = vec![
            /* 0 */ effect("a", 1, 3, "begin", 3),
            /* 1 */ effect("c", 1, 6, "begin", 7),
            /* 2 */ effect("a", 1, 3, "child", 7),
            /* 3 */ effect("c", 1, 6, "end", 8),
            /* 4 */ effect("a", 2, 13, "begin", 13),
            /* 5 */ effect("a", 2, 13, "end", 14),
            /* 6 */ effect("b", 1, 16, "begin", 16),
        ];
        Story { plan, log, effects, settled: true, tail: Vec::new(), raw: None, raw_effect: None }
    }

    /// A run whose tasks vote: `a` and `b` for and against, which is an abort, so that `no` runs and `go` does not.
    fn voted() -> Story {
        let plan = json!({
            "version": 1, "run": "r", "limits": {"max_workers": 2},
            "tasks": [{"id": "a"}, {"id": "b"}, {"id": "go", "needs": ["t?proceed"]}, {"id": "no", "needs": ["t?abort"]}],
            "votes": [{"topic": "t", "voters": ["a", "b"], "quorum": 2, "rule": "majority", "default": "abort",
                "on_abort": "signal"}],
        });
        let process = json!({"pid": 7, "start_time": 9, "boot_id": "x"});
        let started = |mono: u64| json!({"cwd": "/", "mono_ms": mono});
        let done = json!({"exit": 0, "duration_ms": 4});
        let vote = |decision: &str| json!({"topic": "t", "decision": decision});
        let verdict =
            json!({"topic": "t", "result": "abort", "proceed": 1, "abort": 1, "absent": 0, "escalates": true});
        let ended = json!({"status": "failed", "reason": "", "done": 3, "failed": 0, "skipped": 1, "cancelled": 0});
        let log = vec![
            /*  1 */ event("run_started", ("", "", 0), &json!({"v": 1, "session": "s", "max_workers": 2})),
            /*  2 */ event("worker_started", ("W1", "", 0), &process),
            /*  3 */ event("worker_started", ("W2", "", 0), &process),
            /*  4 */ event("started", ("W1", "a", 1), &started(100)),
            /*  5 */ event("started", ("W2", "b", 1), &started(110)),
            /*  6 */ event("vote", ("W1", "a", 1), &vote("proceed")),
            /*  7 */
            event("vote", ("W1", "a", 1), &json!({"topic": "t", "decision": "abort", "refused": "it has voted"})),
            /*  8 */ event("vote", ("W2", "b", 1), &vote("abort")),
            /*  9 */ event("verdict", ("", "", 0), &verdict),
            /* 10 */ event("done", ("W1", "a", 1), &done),
            /* 11 */ event("done", ("W2", "b", 1), &done),
            /* 12 */ event("skipped", ("", "go", 0), &json!({"because": "the vote t said abort"})),
            /* 13 */ event("started", ("W1", "no", 1), &started(120)),
            /* 14 */ event("done", ("W1", "no", 1), &done),
            /* 15 */ event("run_ended", ("", "", 0), &ended),
            /* 16 */ event("delivered", ("", "", 0), &json!({"news": [9, 15], "hook": "Stop", "session": "s"})),
        ];
        let effects = vec![
            effect("a", 1, 4, "begin", 5),
            effect("b", 1, 5, "begin", 5),
            effect("a", 1, 4, "end", 9),
            effect("b", 1, 5, "end", 10),
            effect("no", 1, 13, "begin", 13),
            effect("no", 1, 13, "end", 13),
        ];
        Story { plan, log, effects, settled: true, tail: Vec::new(), raw: None, raw_effect: None }
    }

    /// As [`BAD`], of a run whose tasks vote.
    const BAD_VOTES: [(&str, &str, Plant); 11] = [
        ("I26", "two votes of a task", |s| drop(s.log[6]["payload"].as_object_mut().unwrap().remove("refused"))),
        ("I26", "a vote of a stranger", |s| s.plan["votes"][0]["voters"] = json!(["a"])),
        ("I26", "a vote about nothing", |s| s.log[5]["payload"]["topic"] = "u".into()),
        ("I26", "a vote behind the verdict", |s| s.log.swap(7, 8)),
        ("I26", "a second verdict", |s| s.insert(10, s.log[8].clone())),
        ("I26", "another result", |s| s.log[8]["payload"]["result"] = "proceed".into()),
        ("I26", "another count", |s| s.log[8]["payload"]["absent"] = 1.into()),
        ("I26", "no alarm", |s| s.log[8]["payload"]["escalates"] = false.into()),
        ("I26", "no verdict", |s| drop(s.log.remove(8))),
        ("I10", "begun with the other outcome", |s| s.plan["tasks"][3]["needs"] = json!(["t?proceed"])),
        ("I10", "skipped with the right outcome", |s| s.plan["tasks"][2]["needs"] = json!(["t?abort"])),
    ];

    /// A run that continues another one: `a` is taken over, `x` was not asked for, `b` needs `a` and is refused for want of
    /// quota, which does not count; meanwhile another client takes the run.
    fn continued() -> Story {
        let plan = json!({
            "version": 1, "run": "r2", "from": "r", "limits": {"max_workers": 2},
            "tasks": [
                {"id": "a"},
                {"id": "x"},
                {"id": "b", "needs": ["a"], "claude": {}, "retries": 1},
                {"id": "c", "needs": ["x"]},
            ],
        });
        let process = json!({"pid": 7, "start_time": 9, "boot_id": "x"});
        let started = |mono: u64| json!({"cwd": "/", "mono_ms": mono});
        let refused = json!({"reason": "no quota", "will_retry": true, "retry_at": 300, "quota_until": 300});
        let failed = json!({"reason": "exit 1", "will_retry": true, "retry_at": 310});
        let ended = json!({"status": "ok", "reason": "", "done": 2, "failed": 0, "skipped": 2, "cancelled": 0});
        let log = vec![
            /*  1 */ event("run_started", ("", "", 0), &json!({"v": 1, "session": "s", "max_workers": 2})),
            /*  2 */ event("started", ("", "a", 1), &started(90)),
            /*  3 */ event("done", ("", "a", 1), &json!({"exit": 0, "duration_ms": 4, "from": "r"})),
            /*  4 */ event("skipped", ("", "x", 0), &json!({"because": "not asked for in this run"})),
            /*  5 */ event("skipped", ("", "c", 0), &json!({"because": "x"})),
            /*  6 */ event("worker_started", ("W1", "", 0), &process),
            /*  7 */ event("started", ("W1", "b", 1), &started(100)),
            /*  8 */ event("failed", ("W1", "b", 1), &refused),
            /*  9 */ event("adopted", ("", "", 0), &json!({"session": "t", "from": "s"})),
            /* 10 */ event("started", ("W1", "b", 2), &started(300)),
            /* 11 */ event("failed", ("W1", "b", 2), &failed),
            /* 12 */ event("started", ("W1", "b", 3), &started(310)),
            /* 13 */ event("done", ("W1", "b", 3), &json!({"exit": 0, "duration_ms": 4})),
            /* 14 */ event("run_ended", ("", "", 0), &ended),
            /* 15 */
            event("delivered", ("", "", 0), &json!({"news": [3, 4, 5, 13, 14], "hook": "Stop", "session": "t"})),
        ];
        let effects = vec![
            /* 0 */ effect("b", 1, 7, "begin", 7),
            /* 1 */ effect("b", 2, 10, "begin", 10),
            /* 2 */ effect("b", 3, 12, "begin", 12),
            /* 3 */ effect("b", 3, 12, "end", 12),
        ];
        Story { plan, log, effects, settled: true, tail: Vec::new(), raw: None, raw_effect: None }
    }

    impl Story {
        /// Inserts an event behind event number `after`.
        fn insert(&mut self, after: usize, e: Value) {
            self.log.insert(after, e);
        }

        fn judge(&self) -> Report {
            let plan = serde_json::to_vec(&self.plan).unwrap();
            let mut log = Vec::new();
            for (i, e) in self.log.iter().enumerate() {
                let mut e = e.clone();
                if e["seq"] == 0 {
                    e["seq"] = (i + 1).into();
                }
                if e["t"] == "run_started" && e["payload"]["plan_sha256"].is_null() {
                    e["payload"]["plan_sha256"] = sha256(&plan).into();
                }
                match &self.raw {
                    Some((n, bytes)) if *n == i + 1 => log.extend(bytes),
                    _ => log.extend(serde_json::to_vec(&e).unwrap()),
                }
                log.push(b'\n');
            }
            log.extend(&self.tail);
            let mut effects = Vec::new();
            for (i, e) in self.effects.iter().enumerate() {
                let text = match self.raw_effect {
                    Some((n, text)) if n == i => text.to_owned(),
                    _ => e.to_string(),
                };
                effects.extend([String::new(), text]);
            }
            check(&log, &plan, effects.join("\n").as_bytes(), self.settled)
        }
    }

    #[test]
    fn a_good_history_of_votes_passes() {
        assert_eq!(voted().judge().complaints(), "");
    }

    #[test]
    fn a_good_history_of_a_continued_run_passes_and_so_does_every_beginning_of_it() {
        let report = continued().judge();
        assert_eq!(report.complaints(), "");
        let states: Vec<&str> = report.tasks.iter().map(|t| t.state.as_str()).collect();
        assert_eq!(states, ["done", "skipped", "done", "skipped"]);
        for n in 0..=15 {
            let mut story = continued();
            story.log.truncate(n);
            story.settled = false;
            story.effects.retain(|e| e["seen"].as_u64().unwrap() < n as u64);
            assert_eq!(story.judge().complaints(), "", "the first {n} events");
        }
    }

    #[test]
    fn a_good_history_passes_and_so_does_every_beginning_of_it() {
        let report = good().judge();
        assert_eq!(report.complaints(), "");
        let states: Vec<&str> = report.tasks.iter().map(|t| t.state.as_str()).collect();
        assert_eq!(states, ["done", "failed", "failed", "skipped"]);
        assert_eq!(report.tasks[0].attempts(), 2);
        assert_eq!((report.events, report.kind("started"), report.max_workers), (20, 4, 2));
        assert_eq!(report.delivered, report.news);
        for n in 0..=20 {
            let mut story = good();
            story.log.truncate(n);
            story.settled = false;
            story.tail = b"{\"t\":\"half".to_vec();
            story.effects.retain(|e| e["seen"].as_u64().unwrap() < n as u64);
            let report = story.judge();
            assert_eq!(report.complaints(), "", "the first {n} events");
            assert_eq!((report.torn_bytes, report.events), (10, n as u64));
        }
    }

    #[test]
    fn an_effect_that_was_torn_costs_only_itself() {
        let mut story = good();
        story.raw_effect = Some((6, "{\"task\":\"b\",\"att"));
        let report = story.judge();
        assert_eq!((report.complaints().as_str(), report.torn_effects), ("", 1));
    }

    type Plant = fn(&mut Story);

    /// The rule, what is wrong, and how the good history is spoiled.
    const BAD: [(&str, &str, Plant); 53] = [
        ("I1", "not JSON", |s| s.raw = Some((4, b"{\"t\":\"spawned\",".to_vec()))),
        ("I1", "not UTF-8", |s| s.raw = Some((4, b"{\"t\":\"\xff\"}".to_vec()))),
        ("I1", "an empty line", |s| s.raw = Some((4, Vec::new()))),
        ("I1", "the kind comes later", |s| s.raw = Some((4, br#"{"seq":4,"t":"x","ts":"","payload":{}}"#.to_vec()))),
        ("I1", "no payload", |s| s.log[3]["payload"] = Value::Null),
        ("I1", "too long", |s| s.log[3]["payload"]["x"] = "x".repeat(65536).into()),
        ("I1", "an unknown kind", |s| s.insert(3, event("sparkle", ("", "", 0), &json!({})))),
        ("I1", "torn in the end", |s| s.tail = b"{\"t\":".to_vec()),
        ("I2", "a gap", |s| s.log[4]["seq"] = 6.into()),
        ("I2", "a repeated number", |s| s.log[4]["seq"] = 4.into()),
        ("I2", "two beginnings", |s| s.insert(3, s.log[0].clone())),
        ("I2", "no beginning", |s| drop(s.log.remove(0))),
        ("I6", "the first attempt is the second", |s| s.log[2]["attempt"] = 2.into()),
        ("I6", "the same attempt again", |s| s.log[12]["attempt"] = 1.into()),
        ("I6", "two open attempts", |s| drop(s.log.remove(7))),
        ("I7", "an attempt without outcome", |s| drop(s.log.remove(16))),
        ("I9", "an outcome without attempt", |s| s.insert(10, s.log[9].clone())),
        ("I9", "the word of an attempt that was given up", |s| s.log[13]["attempt"] = 1.into()),
        ("I9", "the outcome of somebody else's attempt", |s| s.log[14]["worker"] = "W1".into()),
        ("I9", "spawned twice", |s| s.insert(4, s.log[3].clone())),
        ("I9", "an outcome of no task", |s| drop(s.log[14].as_object_mut().unwrap().remove("task"))),
        ("I9", "skipped while it runs", |s| s.insert(13, event("skipped", ("", "a", 0), &json!({"because": "c"})))),
        ("I10", "started before what it needs", |s| s.log.swap(12, 15)),
        ("I10", "skipped for nothing", |s| s.log[10]["payload"]["because"] = "a".into()),
        ("I10", "skipped because of what is allowed to fail", |s| {
            s.plan["tasks"][2]["allow_failure"] = true.into();
        }),
        ("I11", "more attempts than retries", |s| s.plan["tasks"][0]["retries"] = 0.into()),
        ("I11", "a further attempt after the last", |s| s.log[7]["payload"]["will_retry"] = false.into()),
        ("I11", "before the pause is over", |s| s.log[12]["payload"]["mono_ms"] = 199.into()),
        ("I11", "a promise that the plan forbids", |s| s.log[9]["payload"]["will_retry"] = true.into()),
        ("I12", "too many at a time", |s| {
            s.plan["limits"]["max_workers"] = 1.into();
            s.log[0]["payload"]["max_workers"] = 1.into();
        }),
        ("I12", "two of one worker", |s| s.log[5]["worker"] = "W1".into()),
        ("I12", "not the plan's limit", |s| s.log[0]["payload"]["max_workers"] = 3.into()),
        ("I13", "no end", |s| s.log.truncate(17)),
        ("I13", "two ends", |s| s.insert(19, s.log[17].clone())),
        ("I13", "an end with an open task", |s| s.log.swap(10, 17)),
        ("I13", "wrong counts", |s| s.log[17]["payload"]["done"] = 2.into()),
        ("I13", "wrong status", |s| s.log[17]["payload"]["status"] = "ok".into()),
        ("I14", "work after the end", |s| s.insert(18, event("worker_started", ("W3", "", 0), &json!({})))),
        ("I15", "another plan", |s| s.log[0]["payload"]["plan_sha256"] = "00".into()),
        ("I15", "a task of no plan", |s| s.log[3]["task"] = "z".into()),
        ("I24", "told twice", |s| s.insert(19, s.log[11].clone())),
        ("I24", "no news", |s| s.log[11]["payload"]["news"] = json!([8])),
        ("I24", "told to another session", |s| s.log[11]["payload"]["session"] = "t".into()),
        ("D15", "started after a cancel", |s| {
            s.insert(11, event("cancel_requested", ("", "", 0), &json!({"by": "x"})));
        }),
        ("D15", "cancelled by nobody", |s| s.log[9]["t"] = "cancelled".into()),
        ("W", "met twice", |s| s.insert(4, s.log[1].clone())),
        ("W", "a task for somebody who left", |s| s.log.swap(8, 2)),
        ("W", "left with an attempt", |s| s.log.swap(7, 8)),
        ("E8", "an effect of an attempt that never was", |s| s.effects.push(effect("d", 1, 19, "begin", 19))),
        ("E8", "an effect before its start", |s| s.effects[1]["seen"] = 5.into()),
        ("E11", "the first attempt acts when the second has begun", |s| s.effects.swap(2, 4)),
        ("E7", "somebody acts after the outcome", |s| s.effects[3]["seen"] = 10.into()),
        ("E9", "done without an end", |s| drop(s.effects.remove(5))),
    ];

    /// As [`BAD`], for effects: apart, since one table of that length is none.
    const BAD_EFFECTS: [(&str, &str, Plant); 7] = [
        ("E9", "it ends before it begins", |s| s.effects.swap(4, 5)),
        ("E10", "before what it needs is in the log", |s| {
            s.effects[6]["seen"] = 16.into();
            s.plan["tasks"][1]["needs"] = json!(["a", "c"]);
            s.log.swap(9, 16);
            s.log[9]["seq"] = 10.into();
        }),
        ("E10", "before the end of what it needs", |s| s.effects.swap(5, 6)),
        ("E11", "one attempt begins twice", |s| s.effects.insert(1, s.effects[0].clone())),
        ("E12", "three at a time", |s| {
            s.plan["limits"]["max_workers"] = 0.into();
            s.log[0]["payload"]["max_workers"] = 0.into();
        }),
        ("E1", "another file's line", |s| s.raw_effect = Some((1, "{\"a\":1}"))),
        ("E1", "no line of effects", |s| s.raw_effect = Some((1, "hello"))),
    ];

    /// As [`BAD`], of a run that continues another one.
    const BAD_CONTINUED: [(&str, &str, Plant); 16] = [
        ("T", "behind the first worker", |s| s.log.swap(2, 5)),
        ("T", "begun by nobody later on", |s| drop(s.log[9].as_object_mut().unwrap().remove("worker"))),
        ("T", "of a run that continues none", |s| drop(s.plan.as_object_mut().unwrap().remove("from"))),
        ("T", "from another run", |s| s.log[2]["payload"]["from"] = "q".into()),
        ("T", "from nowhere", |s| drop(s.log[2]["payload"].as_object_mut().unwrap().remove("from"))),
        ("T", "taken over in halves", |s| s.log.swap(2, 3)),
        ("T", "done by somebody, and before", |s| s.log[12]["payload"]["from"] = "r".into()),
        ("T", "left out when the run is under way", |s| s.log.swap(3, 5)),
        ("T", "it is done again", |s| s.effects.push(effect("a", 1, 2, "begin", 2))),
        ("Q", "before there is quota", |s| {
            s.log[7]["payload"]["retry_at"] = 200.into();
            s.log[9]["payload"]["mono_ms"] = 299.into();
        }),
        ("I11", "a refusal that counts, and a failure", |s| {
            drop(s.log[7]["payload"].as_object_mut().unwrap().remove("quota_until"));
        }),
        ("I11", "more refusals than are forgiven", |s| {
            for n in 1..=11 {
                let (begun, refused) = (s.log[6].clone(), s.log[7].clone());
                for (k, mut e) in [(0, begun), (1, refused)] {
                    e["attempt"] = (n + 1).into();
                    e["payload"]["mono_ms"] = 300.into();
                    s.insert(6 + 2 * n + k, e);
                }
            }
        }),
        ("I24", "adopted from another session", |s| s.log[8]["payload"]["from"] = "u".into()),
        ("I24", "told to the session that had it", |s| s.log[14]["payload"]["session"] = "s".into()),
        ("I13", "left out is no failure", |s| s.log[13]["payload"]["status"] = "failed".into()),
        ("I10", "skipped by no rule", |s| s.log[3]["payload"]["because"] = "nobody likes it".into()),
    ];

    #[test]
    fn every_planted_violation_is_found() {
        let plain = BAD.iter().chain(&BAD_EFFECTS).map(|bad| (good as fn() -> Story, bad));
        let votes = BAD_VOTES.iter().map(|bad| (voted as fn() -> Story, bad));
        let all: Vec<_> =
            plain.chain(votes).chain(BAD_CONTINUED.iter().map(|bad| (continued as fn() -> Story, bad))).collect();
        for (begin, (rule, what, spoil)) in &all {
            let mut story = begin();
            spoil(&mut story);
            let report = story.judge();
            let found: BTreeSet<&str> = report.violations.iter().map(|v| v.rule).collect();
            assert!(found.contains(rule), "{rule}: {what}: not found, but\n{}", report.complaints());
        }
        let covered: BTreeSet<&str> = all.iter().map(|(_, (rule, ..))| *rule).collect();
        assert_eq!(covered, RULES.iter().map(|(rule, _)| *rule).collect(), "a rule without a bad history");
    }

    #[test]
    fn all_violations_are_listed_with_their_lines() {
        let mut story = good();
        story.log[14]["worker"] = "W1".into();
        story.log[17]["payload"]["done"] = 2.into();
        story.effects[1]["seen"] = 5.into();
        let report = story.judge();
        let lines: Vec<(&str, Line)> = report.violations.iter().map(|v| (v.rule, v.line)).collect();
        assert_eq!(lines, [("I9", Line::Log(15)), ("I13", Line::Log(18)), ("E8", Line::Effects(4))]);
        assert!(report.complaints().starts_with("events.jsonl:15: I9: done of a by Some(\"W1\"), but W2 has it\n"));
    }
}
