//! What can be wrong with a plan, or happen to its tasks among each other, each by the name under which it is known
//! (docs/proofs.md): the real program, its log judged by other code, and nobody left at the end.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "support/ledger.rs"]
mod ledger;
#[path = "support/scratch.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod scratch;
#[path = "support/site.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod site;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use scratch::Done;
use site::{Site, awaits, plan_of, shell, shell_with};

/// A refusal: exit code 3, its places in the message, and nothing was started or left behind.
fn refused(site: &Site, places: &[&str]) -> Done {
    let done = site.cpw(&["run", "plan.json"]);
    assert_eq!(done.status.code(), Some(3), "{done:?}");
    for place in places {
        assert!(done.err.contains(place), "{place} is not in {}", done.err);
    }
    assert!(!done.err.contains("panicked"), "{done:?}");
    assert!(site.scratch.runs().is_empty(), "a run was made: {done:?}");
    done
}

fn refuse(plan: &Value, places: &[&str]) -> Done {
    let site = Site::new();
    site.plan(plan);
    refused(&site, places)
}

fn needing(id: &str, needs: &[&str]) -> Value {
    json!({"id": id, "run": ["true"], "needs": needs})
}

#[test]
fn d01_a_circle_is_refused_and_named() {
    let two = refuse(&plan_of(2, &[needing("a", &["b"]), needing("b", &["a"])]), &["$.tasks[0].needs"]);
    assert!(two.err.contains("a -> b -> a"), "{}", two.err);
    let name = |i: usize| format!("t{i}");
    let ring: Vec<Value> = (0..10_000).map(|i| needing(&name(i), &[&name((i + 9_999) % 10_000)])).collect();
    let long = refuse(&plan_of(2, &ring), &["$.tasks[0].needs", "circle", "t0 -> "]);
    assert!(long.err.len() < 1000, "{}", long.err);
    // Beside what is sound, and more than one.
    let three = refuse(
        &plan_of(2, &[needing("ok", &[]), needing("x", &["ok", "y"]), needing("y", &["x"]), needing("z", &["z"])]),
        &["$.tasks[1].needs", "$.tasks[3].needs[0]"],
    );
    assert!(three.err.contains("x -> y -> x") && three.err.contains("\"z\" needs itself"), "{}", three.err);
}

#[test]
fn d02_a_need_that_is_missing_or_the_task_itself_is_refused_and_one_named_twice_counts_once() {
    let done = refuse(
        &plan_of(1, &[needing("build", &["biuld", "test"]), needing("test", &["nobody*"]), needing("me", &["me"])]),
        &["$.tasks[0].needs[0]", "$.tasks[1].needs[0]", "$.tasks[2].needs[0]"],
    );
    assert!(!done.err.contains("$.tasks[0].needs[1]"), "{}", done.err);
    let site = Site::new();
    site.plan(&plan_of(1, &[shell("a", "beat"), shell_with("b", json!({"needs": ["a", "a", "a*"]}), "beat")]));
    assert!(site.cpw(&["run", "plan.json"]).is_ok());
    site.end("ok");
    assert_eq!(site.said("effects"), "a 1\nb 1\n");
    assert_eq!(site.status()["tasks"][1]["needs"], json!(["a"]));
}

#[test]
fn d03_ids_that_are_the_same_or_look_the_same_are_refused() {
    let run = json!(["true"]);
    let task = |id: &str| json!({"id": id, "run": run});
    refuse(&plan_of(1, &[task("a"), task("b"), task("a")]), &["$.tasks[2].id", "$.tasks[0]"]);
    refuse(&plan_of(1, &[task("Build"), task("build")]), &["$.tasks[1].id", "$.tasks[0]"]);
    // Composed and decomposed: neither is an id.
    refuse(&plan_of(1, &[task("caf\u{e9}"), task("cafe\u{301}")]), &["$.tasks[0].id", "$.tasks[1].id"]);
    refuse(
        &plan_of(1, &[json!({"run": run}), task(""), task("a/b"), task("..")]),
        &["$.tasks[0]", "$.tasks[1].id", "$.tasks[2].id", "$.tasks[3].id"],
    );
}

#[test]
fn d04_what_needs_a_failed_task_is_skipped_with_the_same_stroke() {
    let site = Site::new();
    let tasks = [
        shell("bad", "beat; exit 3"),
        needing("one", &["bad"]),
        needing("two", &["one"]),
        needing("also", &["bad", "good"]),
        shell("good", "beat"),
        needing("after", &["good"]),
        needing("all", &["two", "after"]),
    ];
    site.detach(&plan_of(2, &tasks));
    let ledger = site.end("failed");
    let at = ledger.events.iter().position(|e| e["t"] == "failed").unwrap();
    let skipped: Vec<&str> = ledger.events[at + 1..]
        .iter()
        .take_while(|e| e["t"] == "skipped")
        .map(|e| e["task"].as_str().unwrap())
        .collect();
    // Everything behind it, in one go, nearest first.
    assert_eq!(skipped, ["one", "also", "two", "all"], "{:#?}", ledger.events);
    assert_eq!(ledger.count("skipped"), 4, "each once");
    let because = |task: &str| site.of("skipped", task)[0]["payload"]["because"].clone();
    assert_eq!([because("one"), because("two")], [json!("bad"), json!("one")]);
    assert!(ledger.has_of("done", "after"));
}

#[test]
fn d05_what_needs_a_task_waits_for_its_last_attempt() {
    let site = Site::new();
    let retried = json!({"retries": 2, "backoff": {"initial": "10ms"}});
    let tasks = [
        shell_with("a", retried.clone(), "beat; [ $CPW_ATTEMPT -gt 2 ]"),
        shell_with("b", json!({"needs": ["a"]}), "beat"),
        shell_with("never", retried, "beat; exit 1"),
        needing("c", &["never"]),
    ];
    site.detach(&plan_of(3, &tasks));
    let ledger = site.end("failed");
    assert!(ledger.has_of("done", "b") && !ledger.has_of("skipped", "b"), "{:#?}", ledger.events);
    let last = site.of("failed", "never").pop().unwrap();
    assert_eq!((&last["attempt"], &last["payload"]["will_retry"]), (&json!(3), &json!(false)));
    let skipped = site.of("skipped", "c");
    assert!(skipped.len() == 1 && skipped[0]["seq"].as_u64() > last["seq"].as_u64(), "{skipped:?}");
}

/// How long many tasks may take on a machine that has much else to do.
const LONG: std::time::Duration = std::time::Duration::from_mins(10);

/// How many tasks are run: 10,000 are meant, which `CPW_PLANS=all` tries; with the binary that ships it is enough to see
/// what grows with them.
fn many() -> usize {
    let named = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if named("CPW_PLANS") {
        10_000
    } else if named("CPW_TEST_BINARY") {
        1_000
    } else {
        400
    }
}

/// Runs a plan and checks each task's outcome, and that it came after those of what it needs.
fn run_all(tasks: &[Value]) {
    let site = Site::new();
    site.plan(&plan_of(4, tasks));
    let done = site.scratch.run(site.command(&["run", "plan.json", "--detach"]), site::PATIENCE);
    assert!(done.is_ok(), "{done:?}");
    // Its log is long: looking for the end must not cost more than what is looked for.
    let log = site.scratch.log();
    let ended = || {
        let text = fs::read(&log).unwrap_or_default();
        let end = &text[text.len().saturating_sub(1000)..];
        String::from_utf8_lossy(end).contains("\"t\":\"run_ended\"")
    };
    let begun = std::time::Instant::now();
    while !ended() {
        assert!(begun.elapsed() < LONG, "the run does not end");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let ledger = site.end("ok");
    let mut place = std::collections::HashMap::new();
    for event in &ledger.events {
        let kind = event["t"].as_str().unwrap();
        if kind == "started" || kind == "done" {
            place.insert((kind, event["task"].as_str().unwrap()), event["seq"].as_u64().unwrap());
        }
    }
    assert_eq!(place.len(), 2 * tasks.len());
    for task in tasks {
        let id = task["id"].as_str().unwrap();
        for need in task["needs"].as_array().into_iter().flatten() {
            assert!(place[&("done", need.as_str().unwrap())] < place[&("started", id)], "{id}");
        }
    }
}

#[test]
fn d06_many_tasks_in_a_chain() {
    let id = |i: usize| format!("t{i}");
    run_all(
        &(0..many())
            .map(|i| if i == 0 { needing(&id(0), &[]) } else { needing(&id(i), &[&id(i - 1)]) })
            .collect::<Vec<_>>(),
    );
}

#[test]
fn d06_many_tasks_that_one_needs() {
    let ids: Vec<String> = (1..many()).map(|i| format!("t{i}")).collect();
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    let mut tasks: Vec<Value> = ids.iter().map(|id| needing(id, &[])).collect();
    tasks.push(needing("last", &all));
    run_all(&tasks);
}

fn sha256(bytes: &[u8]) -> String {
    cpw::base::hex::sha256(bytes)
}

/// The plan that a run was begun with is the one in its folder.
fn is_as_begun(site: &Site) {
    let bytes = fs::read(site.scratch.log().with_file_name("plan.json")).unwrap();
    assert_eq!(site.events()[0]["payload"]["plan_sha256"], json!(sha256(&bytes)));
}

#[test]
fn d07_a_plan_that_is_edited_after_the_start_goes_on_as_it_was() {
    let site = Site::new();
    let tasks = [shell("a", &format!("beat; {}", awaits("go"))), shell_with("b", json!({"needs": ["a"]}), "beat")];
    site.detach(&plan_of(1, &tasks));
    site.until_spawned("a", 1);
    site.plan(&plan_of(
        1,
        &[shell("b", "echo wrong >>\"$HOME/effects\""), shell("new", "echo wrong >>\"$HOME/effects\"")],
    ));
    site.until("an effect", || site.said("effects") == "a 1\n");
    // Also for a worker that comes later.
    site.kill_worker_of("a");
    site.go("go");
    site.end_looked_at("failed");
    assert_eq!(site.said("effects"), "a 1\n", "a was lost, and b needs it");
    is_as_begun(&site);
}

/// The run's own copy is nobody's to edit. Who has read it goes on with what was approved; nobody else starts anything.
#[test]
fn d07_a_changed_copy_is_reported_and_nothing_of_it_runs() {
    let site = Site::new();
    let tasks = [
        shell("a", &format!("beat; {}", awaits("go"))),
        shell_with("b", json!({"needs": ["a"]}), "beat"),
        shell_with("c", json!({"needs": ["a"]}), "beat"),
    ];
    site.detach(&plan_of(2, &tasks));
    site.until_spawned("a", 1);
    let copy = site.scratch.log().with_file_name("plan.json");
    let approved = fs::read_to_string(&copy).unwrap();
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o400);
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&copy, approved.replace("beat\"", "echo wrong >>\\\"$HOME/effects\\\"\"")).unwrap();
    assert_ne!(fs::read_to_string(&copy).unwrap(), approved);
    let done = site.cpw(&["status"]);
    assert!(done.out.contains("changed"), "{done:?}");
    site.go("go");
    site.until("the end of the run", || site.scratch.ledger().is_ok_and(|ledger| ledger.is_ended()));
    fs::write(&copy, approved).unwrap();
    site.end("ok");
    assert!(!site.said("effects").contains("wrong"), "{}", site.said("effects"));
    let workers = site.events().iter().filter(|e| e["t"] == "worker_started").count();
    assert!(workers < 20, "{workers} workers were started that could do nothing");
}

#[test]
fn d08_a_plan_that_is_edited_while_it_is_read_is_one_of_both() {
    let site = Site::new();
    let versions = ["one", "two"].map(|word| {
        let tasks: Vec<Value> =
            (0..20).map(|i| json!({"id": format!("{word}{i}"), "run": ["true"], "title": "x".repeat(100)})).collect();
        plan_of(2, &tasks).to_string()
    });
    site.scratch.write("plan.json", &versions[0]);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Once in place, as some editors do, and once as a file of its own.
            for i in 0.. {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let text = &versions[i / 2 % 2];
                if i % 2 == 0 {
                    site.scratch.write("plan.json", text);
                } else {
                    site.scratch.write("next.json", text);
                    fs::rename(site.scratch.project().join("next.json"), site.scratch.project().join("plan.json"))
                        .unwrap();
                }
            }
        });
        let mut begun = 0;
        for _ in 0..60 {
            let done = site.cpw(&["run", "plan.json", "--detach"]);
            match done.status.code() {
                Some(0) => begun += 1,
                Some(3) => assert!(done.err.contains("is not a plan"), "{done:?}"),
                _ => panic!("{done:?}"),
            }
            if begun == 12 {
                break;
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(begun > 0, "no run has begun");
    });
    site.until("everybody to leave", || site.left().is_empty());
    for (run, ledger) in site.scratch.ledgers().unwrap() {
        let bytes = fs::read(run.join("plan.json")).unwrap();
        assert_eq!(ledger.events[0]["payload"]["plan_sha256"], json!(sha256(&bytes)));
        let plan: Value = serde_json::from_slice(&bytes).unwrap();
        let ids: Vec<&str> = plan["tasks"].as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap()).collect();
        assert!(
            ["one", "two"].iter().any(|word| ids.len() == 20 && ids.iter().all(|id| id.starts_with(word))),
            "{ids:?}"
        );
        assert_eq!(ledger.check_ended(&ids), Ok(()));
    }
}

#[test]
fn d09_bad_input_is_refused_with_its_place_before_anything_starts() {
    let site = Site::new();
    let with = |task: &str| format!(r#"{{"version": 1, "tasks": [{{"id": "a", "run": ["true"], {task}}}]}}"#);
    let limits = |limits: &str| {
        format!(r#"{{"version": 1, "limits": {{{limits}}}, "tasks": [{{"id": "a", "run": ["true"]}}]}}"#)
    };
    let nested = |open: &str, close: &str, n: usize| format!("{}{}", open.repeat(n), close.repeat(n));
    let mut cases: Vec<(String, &str)> = vec![
        (String::new(), "$"),
        (" \n\t".into(), "$"),
        ("{".into(), "line 1"),
        ("{\"version\": 1,\n \"tasks\": [}".into(), "line 2"),
        ("null".into(), "$"),
        ("[]".into(), "$"),
        ("7".into(), "$"),
        ("\"plan\"".into(), "$"),
        ("{}".into(), "$"),
        (r#"{"version": 1}"#.into(), "$"),
        (r#"{"version": 2, "tasks": [{"id": "a", "run": ["true"]}]}"#.into(), "$.version"),
        (r#"{"version": "1", "tasks": [{"id": "a", "run": ["true"]}]}"#.into(), "$.version"),
        (r#"{"version": 1, "tasks": {}}"#.into(), "$.tasks"),
        (r#"{"version": 1, "tasks": [7]}"#.into(), "$.tasks[0]"),
        (r#"{"version": 1, "tasks": [null]}"#.into(), "$.tasks[0]"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": ["true"]}],}"#.into(), "line 1"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": ["true"],}]}"#.into(), "line 1"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": ["true"]}]} x"#.into(), "line 1"),
        (r#"{"version": 1, "version": 1, "tasks": [{"id": "a", "run": ["true"]}]}"#.into(), "$.version"),
        (r#"{"version": 1, "tasks": [{"id": "a", "id": "b", "run": ["true"]}]}"#.into(), "$.tasks[0].id"),
        ("\u{feff}{\"version\": 1, \"tasks\": [{\"id\": \"a\", \"run\": [\"true\"]}]}".into(), "line 1"),
        (r#"{"version": 1, "tasks": [{"id": "a"}]}"#.into(), "$.tasks[0]"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": ["true"], "shell": "true"}]}"#.into(), "$.tasks[0]"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": []}]}"#.into(), "$.tasks[0].run"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": [""]}]}"#.into(), "$.tasks[0].run"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": "true"}]}"#.into(), "$.tasks[0].run"),
        (r#"{"version": 1, "tasks": [{"id": "a", "run": ["a\u0000b"]}]}"#.into(), "$.tasks[0].run"),
        (r#"{"version": 1, "tasks": [{"id": "a", "shell": ""}]}"#.into(), "$.tasks[0].shell"),
        (with("\"sparkle\": 1"), "$.tasks[0].sparkle"),
        (with("\"env\": {\"PATH\": \"/tmp\"}"), "$.tasks[0].env"),
        (with("\"env\": {\"LD_PRELOAD\": \"x\"}"), "$.tasks[0].env"),
        (with("\"env\": {\"CPW_RUN\": \"x\"}"), "$.tasks[0].env"),
        (with("\"env\": {\"A=B\": \"x\"}"), "$.tasks[0].env"),
        (with("\"env\": {\"A\": 7}"), "$.tasks[0].env"),
        (with("\"summary\": \"(\""), "$.tasks[0].summary"),
        (with("\"needs\": \"a\""), "$.tasks[0].needs"),
        (with("\"needs\": [7]"), "$.tasks[0].needs[0]"),
        (with("\"allow_failure\": \"yes\""), "$.tasks[0].allow_failure"),
        (with("\"title\": 5"), "$.tasks[0].title"),
        (with("\"priority\": 1e99"), "$.tasks[0].priority"),
        (format!(r#"{{"version": 1, "tasks": {}}}"#, nested("[", "]", 10_000)), "deep"),
        (nested("{\"a\":", "}", 10_000), "line 1"),
        (
            format!(r#"{{"version": 1, "tasks": [{}]}}"#, vec![r#"{"id": "a", "run": ["x"]}"#; 10_001].join(",")),
            "$.tasks",
        ),
    ];
    for number in [
        "-1",
        "1.5",
        "NaN",
        "Infinity",
        "1e999",
        "-1e999",
        "\"3\"",
        "null",
        "true",
        "[]",
        "{}",
        "99999999999999999999999",
    ] {
        let is_json = serde_json::from_str::<Value>(number).is_ok();
        for (text, place) in [
            (with(&format!("\"retries\": {number}")), "$.tasks[0].retries"),
            (limits(&format!("\"max_workers\": {number}")), "$.limits.max_workers"),
        ] {
            // `null` stands for a key that was left out, where it is allowed to.
            cases.push((text, if is_json { place } else { "line 1" }));
        }
    }
    let mut wrong = Vec::new();
    for (text, place) in &cases {
        site.scratch.write("plan.json", text);
        let done = site.cpw(&["run", "plan.json"]);
        if done.status.code() != Some(3) || !done.err.contains(place) || !site.scratch.runs().is_empty() {
            let shown = text.chars().take(200).collect::<String>();
            wrong.push(format!("{shown}: {place} expected: {done:?}"));
            fs::remove_dir_all(site.scratch.project().join(".claude/runs")).ok();
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases.len() >= 65, "{}", cases.len());
    // Bytes that are no text, 100 MB, needs without number, what is no file.
    fs::write(site.scratch.project().join("plan.json"), b"{\"version\": 1, \"x\": \"\xff\xfe\"}").unwrap();
    refused(&site, &["UTF-8"]);
    let large = fs::File::create(site.scratch.project().join("plan.json")).unwrap();
    large.set_len(100 << 20).unwrap();
    refused(&site, &["more than"]);
    let needs: Vec<String> = (0..100_000).map(|i| format!("t{i}")).collect();
    site.plan(&plan_of(1, &[json!({"id": "a", "run": ["true"], "needs": needs})]));
    refused(&site, &["$.tasks[0].needs[0]", "$.tasks[0].needs[99999]"]);
    fs::remove_file(site.scratch.project().join("plan.json")).unwrap();
    refused(&site, &["plan.json"]);
    fs::create_dir(site.scratch.project().join("plan.json")).unwrap();
    refused(&site, &["plan.json"]);
}

#[test]
fn d10_an_empty_plan_is_refused_since_it_would_do_nothing() {
    refuse(&json!({"version": 1, "tasks": []}), &["$.tasks", "empty"]);
}

#[test]
fn d11_an_absurd_number_of_workers_is_refused_and_a_large_one_starts_no_more_than_there_is_to_do() {
    for number in [json!(0), json!(-1), json!(257), json!(1_000_000_000), json!(1.5)] {
        let plan = json!({"version": 1, "limits": {"max_workers": number}, "tasks": [needing("a", &[])]});
        refuse(&plan, &["$.limits.max_workers", "256"]);
    }
    let site = Site::new();
    site.plan(&plan_of(1, &[needing("a", &[])]));
    for jobs in ["0", "-1", "257", "1000000000", "many"] {
        let done = site.cpw(&["run", "plan.json", "-j", jobs]);
        assert_eq!(done.status.code(), Some(3), "{jobs}: {done:?}");
        assert!(site.scratch.runs().is_empty());
    }
    let wait = awaits("go");
    site.detach(&plan_of(256, &[shell("a", &wait), shell("b", &wait)]));
    site.until("both", || site.has("spawned", "a", 1) && site.has("spawned", "b", 1));
    site.go("go");
    assert_eq!(site.end("ok").count("worker_started"), 2);
}

#[test]
fn d12_absurd_durations_are_refused() {
    let huge = "999999999999999999999999h";
    for value in
        [json!("0s"), json!("-5s"), json!(0), json!(-1), json!(1e18), json!(huge), json!("5"), json!("soon"), json!("")]
    {
        let tasks = json!([{"id": "a", "run": ["true"], "timeout": value, "backoff": {"initial": value}}]);
        let limits = json!({"task_timeout": value, "run_timeout": value});
        let done = refuse(
            &json!({"version": 1, "limits": limits, "tasks": tasks}),
            &["$.tasks[0].timeout", "$.limits.task_timeout", "$.limits.run_timeout"],
        );
        // No pause at all is a pause.
        assert!(value == "0s" || done.err.contains("$.tasks[0].backoff.initial"), "{value}: {}", done.err);
    }
    // The largest that there are do not overflow, alone or together.
    let site = Site::new();
    let long = json!({"timeout": "none", "retries": 3, "backoff": {"initial": "10ms", "max": "20ms"}});
    site.plan(&json!({"version": 1, "limits": {"run_timeout": "none"}, "tasks": [shell_with("a", long, "beat; [ $CPW_ATTEMPT -gt 2 ]")]}));
    assert!(site.cpw(&["run", "plan.json"]).is_ok());
    site.end("ok");
}

/// There is no event that adds a task: what a task wants to run beside is a run of its own.
#[test]
fn d13_a_task_cannot_add_tasks_to_its_run() {
    let site = Site::new();
    let edit = r#"
        beat
        mine="$CPW_RUN_DIR/plan.json"; chmod u+w "$mine"; cp "$mine" "$HOME/before"
        sed 's/"id":"b"/"id":"added"/' "$HOME/before" >"$mine"
        echo '{"version": 1, "tasks": [{"id": "own", "shell": "echo own 1 >>\"$HOME/effects\""}]}' >own.json
        cpw run own.json --detach >"$HOME/own"
        cp "$HOME/before" "$mine"; chmod u-w "$mine"
        echo '{"t":"started","seq":99,"ts":"x","task":"added","attempt":1,"payload":{}}' >"$HOME/line"
    "#;
    site.detach(&plan_of(1, &[shell("a", edit), shell_with("b", json!({"needs": ["a"]}), "beat")]));
    site.until("the end of both runs", || {
        site.scratch.ledgers().is_ok_and(|all| all.len() == 2 && all.iter().all(|(_, ledger)| ledger.is_ended()))
    });
    site.until("everybody to leave", || site.left().is_empty());
    let all = site.scratch.ledgers().unwrap();
    assert_eq!((all[0].1.check_ended(&["a", "b"]), all[1].1.check_ended(&["own"])), (Ok(()), Ok(())));
    assert!(all.iter().all(|(_, ledger)| ledger.has("run_ended", &[("status", "ok")])), "{:#?}", all[1].1.events);
    assert_eq!((all[0].1.count("started"), all[1].1.count("started")), (2, 1));
    let mut effects: Vec<String> = site.said("effects").lines().map(str::to_owned).collect();
    effects.sort();
    assert_eq!(effects, ["a 1", "b 1", "own 1"]);
    // After the end nothing begins, whoever asks for it.
    let run = all[0].0.file_name().unwrap().to_str().unwrap();
    let before = fs::read(all[0].0.join("events.jsonl")).unwrap();
    site.cpw(&["worker", "--run", run]);
    assert_eq!(fs::read(all[0].0.join("events.jsonl")).unwrap(), before);
}

#[test]
fn d14_what_is_done_stays_usable_when_others_fail() {
    let site = Site::new();
    let tasks = [
        shell("good", "echo findings >\"$CPW_OUT/result.md\"; echo data >\"$CPW_OUT/table.csv\""),
        shell("bad", "echo some of it; echo reason >&2; exit 9"),
        shell_with("may", json!({"allow_failure": true}), "exit 1"),
        shell_with("after-may", json!({"needs": ["may"]}), "echo went on"),
        needing("after-bad", &["bad"]),
    ];
    site.plan(&plan_of(2, &tasks));
    let done = site.cpw(&["run", "plan.json"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    let ledger = site.end("failed");
    let status = site.status();
    let words: Vec<&str> = status["tasks"].as_array().unwrap().iter().map(|t| t["state"].as_str().unwrap()).collect();
    assert_eq!(words, ["done", "failed", "failed", "done", "skipped"]);
    assert_eq!(site.cpw(&["result", "good"]).out, "findings\n");
    assert_eq!(site.cpw(&["result", "after-may"]).out, "went on\n");
    let end = ledger.events.iter().find(|e| e["t"] == "run_ended").unwrap();
    assert_eq!(
        (&end["payload"]["done"], &end["payload"]["failed"], &end["payload"]["skipped"]),
        (&json!(2), &json!(2), &json!(1))
    );
    // A task that may fail alone does not make the run fail.
    let site = Site::new();
    site.plan(&plan_of(2, &[shell_with("may", json!({"allow_failure": true}), "exit 1"), needing("b", &["may"])]));
    assert!(site.cpw(&["run", "plan.json"]).is_ok());
    site.end("ok");
}

/// The whole run is cancelled once its log has so many lines, for every number that there is.
#[test]
fn d15_a_cancel_at_any_moment_ends_everything_once() {
    let tasks = [
        shell_with("a", json!({"retries": 1, "backoff": {"initial": "10ms"}}), "beat; [ $CPW_ATTEMPT -gt 1 ]"),
        shell("b", "beat; sleep 0.05"),
        shell_with("c", json!({"needs": ["a", "b"]}), "beat; sleep 0.05; setsid sleep 0.5 & sleep 0.02"),
        needing("d", &["c"]),
    ];
    let mut cancelled = 0;
    for lines in 1..=24 {
        let site = Site::new();
        let run = site.detach(&plan_of(2, &tasks));
        let log = site.scratch.log();
        let count = || fs::read_to_string(&log).unwrap_or_default().matches('\n').count();
        site.until("so many lines", || {
            count() >= lines || fs::read_to_string(&log).is_ok_and(|text| text.contains("\"t\":\"run_ended\""))
        });
        let done = site.cpw(&["cancel", "--run", &run]);
        assert!([Some(0), Some(1)].contains(&done.status.code()), "{done:?}");
        site.until("the end of the run", || site.scratch.ledger().is_ok_and(|ledger| ledger.is_ended()));
        let events = site.events();
        let asked = events.iter().position(|e| e["t"] == "cancel_requested");
        let ledger = site.end(if asked.is_some() { "cancelled" } else { "ok" });
        assert!(ledger.count("cancel_requested") <= 1);
        if let Some(asked) = asked {
            cancelled += 1;
            let later = &ledger.events[asked..];
            assert!(!later.iter().any(|e| e["t"] == "started"), "begun after it was cancelled: {later:#?}");
        }
    }
    assert!(cancelled > 8, "{cancelled} of them came in time");
}
