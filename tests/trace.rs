//! A run as others follow it: the ids by which one task is found again in every process that has worked on it, and the
//! pictures that `cpw trace` makes of it: trace events by the rules of their format, and a page in a real browser.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/chromium.rs"]
mod chromium;
#[cfg(test)]
#[path = "support/skip.rs"]
mod skip;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/world.rs"]
mod world;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fmt::Write as _;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::{Path, PathBuf};
    use std::process::Output;
    use std::time::Duration;

    use serde_json::{Value, json};

    use crate::chromium::{Chromium, Seen};
    use crate::world::{World, wait_for};

    /// For whatever another process does; a machine may be busy.
    const PATIENCE: Duration = Duration::from_mins(1);

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    /// Runs a plan from a terminal to its end, with these variables beside the world's.
    fn run(world: &World, plan: &Value, environment: &[(&str, &str)]) -> bool {
        let file = world.write("plan.json", &plan.to_string());
        let mut command = world.cpw(&["run", file.to_str().expect("a path")]);
        let out = command.envs(environment.iter().copied()).output().expect("cpw runs");
        assert!(matches!(out.status.code(), Some(0 | 1)), "{}", String::from_utf8_lossy(&out.stderr));
        out.status.success()
    }

    /// The folders of all runs, the oldest first.
    fn folders(world: &World) -> Vec<PathBuf> {
        let all = std::fs::read_dir(world.project().join(".claude/runs")).expect("runs").flatten();
        let mut all: Vec<PathBuf> = all.map(|e| e.path()).filter(|path| path.join("plan.json").exists()).collect();
        all.sort();
        all
    }

    fn events(folder: &std::path::Path) -> Vec<Value> {
        let log = std::fs::read_to_string(folder.join("events.jsonl")).expect("a log");
        log.lines().map(|line| serde_json::from_str(line).expect("an event")).collect()
    }

    fn find<'e>(events: &'e [Value], kind: &str, task: &str) -> Vec<&'e Value> {
        let of_task = |e: &&Value| task.is_empty() || e["task"] == task;
        events.iter().filter(|e| e["t"] == kind).filter(of_task).map(|e| &e["payload"]).collect()
    }

    fn is_hex(value: &Value, digits: usize) -> bool {
        value.as_str().is_some_and(|s| s.len() == digits && s.bytes().all(|b| b.is_ascii_hexdigit()))
    }

    #[test]
    fn one_task_is_followed_across_processes() {
        let world = World::new();
        // The first attempt of `flaky` fails; `outer` starts a run of its own.
        let inner = json!({"version": 1, "tasks": [{"id": "inner", "shell": "echo $TRACEPARENT"}]});
        world.write("inner.json", &inner.to_string());
        let plan = json!({"version": 1, "tasks": [
            {"id": "flaky", "retries": 1, "backoff": {"initial": "1ms", "max": "1ms"},
             "shell": "echo $TRACEPARENT; [ $CPW_ATTEMPT = 2 ]"},
            {"id": "outer", "shell": "echo $TRACEPARENT; cpw run inner.json >&2"},
        ]});
        let surroundings = format!("00-{TRACE}-{SPAN}-00");
        assert!(run(&world, &plan, &[("TRACEPARENT", &surroundings), ("TRACESTATE", "vendor=1")]));
        let [outer, inner] = &folders(&world)[..] else { panic!("two runs") };
        let (outer_log, inner_log) = (events(outer), events(inner));
        let begun = find(&outer_log, "run_started", "")[0];
        assert_eq!((&begun["trace"], &begun["parent"]), (&json!(TRACE), &json!(SPAN)), "what it was started in");
        assert!(is_hex(&begun["span"], 16), "{begun}");
        // What each attempt was told is what stands in the log, and nothing has it twice.
        let mut spans = vec![begun["span"].clone()];
        let told = |folder: &std::path::Path, name: &str| {
            let mut files = (1..9).map(|n| folder.join(format!("workers/W{n}/logs/{name}.out")));
            files.find_map(|file| std::fs::read_to_string(file).ok()).expect("what it was told")
        };
        for (folder, log, task) in
            [(outer, &outer_log, "flaky"), (outer, &outer_log, "outer"), (inner, &inner_log, "inner")]
        {
            for (i, started) in find(log, "started", task).into_iter().enumerate() {
                let span = started["span"].as_str().expect("a span");
                let header = told(folder, &format!("{task}.{}", i + 1));
                assert_eq!(header.trim(), format!("00-{TRACE}-{span}-01"), "{task}");
                assert!(!spans.contains(&json!(span)), "{span} is there twice");
                spans.push(json!(span));
            }
        }
        assert_eq!(spans.len(), 5, "the run, two attempts, one, and one below it: {spans:?}");
        let below = find(&inner_log, "run_started", "")[0];
        assert_eq!(below["trace"], TRACE);
        assert_eq!(below["parent"], find(&outer_log, "started", "outer")[0]["span"], "the task that started it");
    }

    #[test]
    fn a_run_that_continues_another_one_names_it_and_begins_a_trace_where_there_is_none() {
        let world = World::new();
        let plan =
            json!({"version": 1, "tasks": [{"id": "a", "shell": "true"}, {"id": "b", "shell": "[ -e mended ]"}]});
        // What is no trace context counts as absent.
        assert!(!run(&world, &plan, &[("TRACEPARENT", "00-nonsense-01")]));
        world.write("mended", "");
        let out = world.cpw(&["retry"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let [first, second] = &folders(&world)[..] else { panic!("two runs") };
        let (first, second) = (events(first), events(second));
        let (first, second) = (find(&first, "run_started", "")[0], find(&second, "run_started", "")[0]);
        assert!(is_hex(&first["trace"], 32) && first.get("parent").is_none() && first.get("link").is_none(), "{first}");
        let (trace, span) = (first["trace"].as_str().expect("a trace"), first["span"].as_str().expect("a span"));
        assert_eq!(second["link"], format!("{trace}-{span}"));
        assert_ne!(second["trace"], first["trace"], "a trace of its own");
    }

    fn text(out: &Output) -> String {
        String::from_utf8_lossy(&[&out.stdout[..], &out.stderr[..]].concat()).into_owned()
    }

    fn cpw(world: &World, args: &[&str]) -> Output {
        world.cpw(args).output().expect("cpw runs")
    }

    /// What `cpw trace` makes of a run.
    fn traced(world: &World, args: &[&str]) -> String {
        let out = cpw(world, &[&["trace"], args].concat());
        assert!(out.status.success(), "{}", text(&out));
        String::from_utf8(out.stdout).expect("UTF-8")
    }

    /// A run's folder from a plan and lines of a log, as cpw would have made it.
    fn by_hand(world: &World, plan: &str, log: &str) -> PathBuf {
        let id = serde_json::from_str::<Value>(plan).expect("a plan")["run"].as_str().expect("an id").to_owned();
        let run = world.project().join(".claude/runs").join(id);
        fs::create_dir_all(run.join("workers")).expect("a folder");
        for (name, content) in [("plan.json", plan), ("events.jsonl", log)] {
            fs::write(run.join(name), content).expect("a file of the run");
            fs::set_permissions(run.join(name), fs::Permissions::from_mode(0o600)).expect("rights");
        }
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).expect("rights");
        run
    }

    fn checked_in(name: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/logs/v1").join(name)).expect("a file")
    }

    /// A run of so many tasks on eight workers, each with a title and a summary, every third with needs; some fail first.
    fn many(world: &World, tasks: usize) {
        let mut plan: Value = serde_json::from_str(&checked_in("plan.json")).expect("a plan");
        let id = |i: usize| format!("task-{i:04}");
        let one = |i: usize| {
            let mut task = plan["tasks"][1].clone();
            task["id"] = json!(id(i));
            task["title"] = json!(format!("Analyze src/module_{}/file_{i}.rs, and say what could break", i % 37));
            if i > 20 && i.is_multiple_of(3) {
                task["needs"] = json!([id(i - 17), id(i - 11)]);
            }
            task
        };
        let all: Vec<Value> = (0..tasks).map(one).collect();
        plan["tasks"] = json!(all);
        plan["votes"] = json!([]);
        plan["limits"]["max_workers"] = json!(8);
        let mut lines = Vec::new();
        let mut say = |ms: u64, mut event: Value| {
            let (s, ms) = (ms / 1000, ms % 1000);
            event["ts"] = json!(format!("2026-01-02T{:02}:{:02}:{:02}.{ms:03}000Z", 3 + s / 3600, s / 60 % 60, s % 60));
            lines.push(event);
        };
        let begun = json!({"v": 1, "plan_sha256": "0", "trace": TRACE, "max_workers": 8, "boot_id": "b", "mono_ms": 1000, "cpw": "0.1.0"});
        say(0, json!({"t": "run_started", "payload": begun}));
        let mut last = 0;
        // Worker n has every eighth task, one a second.
        for i in 0..tasks {
            let (worker, at) = (format!("W{}", i % 8 + 1), 1000 * (i / 8) as u64 + 10 * (i % 8) as u64 + 100);
            let mut of_task = |at: u64, t: &str, attempt: u32, payload: Value| {
                say(at, json!({"t": t, "worker": worker, "task": id(i), "attempt": attempt, "payload": payload}));
            };
            let second = i.is_multiple_of(29);
            of_task(at, "started", 1, json!({"cwd": "/srv", "mono_ms": 1000 + at}));
            if second {
                of_task(
                    at + 300,
                    "failed",
                    1,
                    json!({"exit": 1, "reason": "exit code 1", "will_retry": true, "retry_at": 1350 + at}),
                );
                of_task(at + 360, "started", 2, json!({"cwd": "/srv", "mono_ms": 1360 + at}));
            }
            let summary = format!("{} findings in {} lines; the longest function has {} of them", i % 9, i * 3, i % 40);
            of_task(
                at + 950,
                "done",
                1 + u32::from(second),
                json!({"exit": 0, "duration_ms": 900, "summary": summary}),
            );
            last = last.max(at + 951);
        }
        let counts = json!({"status": "ok", "reason": "all tasks are done", "done": tasks, "failed": 0, "skipped": 0, "cancelled": 0});
        say(last, json!({"t": "run_ended", "payload": counts}));
        lines.sort_by_key(|line| line["ts"].as_str().map(str::to_owned));
        let mut log = String::new();
        for (i, line) in lines.iter().enumerate() {
            let mut whole = json!({"t": line["t"], "seq": i + 1});
            whole.as_object_mut().expect("an object").extend(line.as_object().expect("an object").clone());
            writeln!(log, "{whole}").expect("it fits");
        }
        by_hand(world, &plan.to_string(), &log);
    }

    /// A phase, its time, and the track.
    type FlowEnd = (String, u64, (u64, u64));

    /// What the format of trace events asks for.
    fn check_chrome(text: &str) -> Vec<Value> {
        let whole: Value = serde_json::from_str(text).expect("JSON");
        assert!(matches!(whole["displayTimeUnit"].as_str(), Some("ms" | "ns")));
        let events = whole["traceEvents"].as_array().expect("events").clone();
        let mut last = 0;
        let mut slices: BTreeMap<(u64, u64), Vec<(u64, u64)>> = BTreeMap::new();
        let (mut named, mut used) = (BTreeSet::new(), BTreeSet::new());
        let mut open: BTreeMap<(u64, u64, String), i32> = BTreeMap::new();
        let mut flows: BTreeMap<u64, Vec<FlowEnd>> = BTreeMap::new();
        for event in &events {
            let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("no {key}: {event}"));
            let name = event["name"].as_str().expect("a name").to_owned();
            assert!(!name.is_empty(), "{event}");
            let (track, ts) = ((number("pid"), number("tid")), number("ts"));
            let phase = event["ph"].as_str().expect("a phase");
            if phase == "M" {
                assert!(event["args"].as_object().is_some_and(|args| args.len() == 1), "{event}");
                if name == "thread_name" {
                    named.insert(track);
                }
                continue;
            }
            assert!(ts >= last, "not in order: {event}");
            last = ts;
            used.insert(track);
            match phase {
                "X" => slices.entry(track).or_default().push((ts, ts + number("dur"))),
                "i" => assert!(matches!(event["s"].as_str(), Some("t" | "p" | "g")), "{event}"),
                "C" => {
                    let values = event["args"].as_object().expect("values");
                    assert!(!values.is_empty() && values.values().all(Value::is_number), "{event}");
                }
                "b" | "e" => {
                    let count = open.entry((track.0, number("id"), name)).or_default();
                    *count += if phase == "b" { 1 } else { -1 };
                    assert!((0..=1).contains(count), "no match: {event}");
                }
                "s" | "f" => flows.entry(number("id")).or_default().push((phase.to_owned(), ts, track)),
                other => panic!("an unknown phase {other}: {event}"),
            }
        }
        assert!(used.is_subset(&named), "tracks without a name: {used:?} {named:?}");
        assert!(open.values().all(|count| *count == 0), "what begins ends: {open:?}");
        for (track, all) in &slices {
            let mut above: Vec<u64> = Vec::new();
            for (from, to) in all {
                above.retain(|end| end > from);
                assert!(above.last().is_none_or(|end| to <= end), "slices of {track:?} cross at {from}");
                above.push(*to);
            }
        }
        for (id, ends) in &flows {
            let [(s, from, _), (f, to, _)] = &ends[..] else { panic!("flow {id} has {ends:?}") };
            assert!(s == "s" && f == "f" && from <= to, "{ends:?}");
            for (_, ts, track) in ends {
                assert!(
                    slices[track].iter().any(|(a, b)| (a..=b).contains(&ts)),
                    "flow {id} hangs in the air: {ends:?}"
                );
            }
        }
        events
    }

    fn of_phase<'e>(events: &'e [Value], phase: &str) -> Vec<&'e Value> {
        events.iter().filter(|e| e["ph"] == phase).collect()
    }

    #[test]
    fn trace_events_follow_the_rules_of_their_format() {
        // A real run, with a need, a checkpoint, a further attempt and something held.
        let world = World::new();
        let plan = json!({"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "build", "shell": "cpw checkpoint compiled; cpw progress 50"},
            {"id": "lint", "shell": "[ $CPW_ATTEMPT = 2 ]", "retries": 1, "backoff": {"initial": "1ms", "max": "1ms"}},
            {"id": "test", "shell": "cpw lease db -- true", "needs": ["build@compiled", "lint"]},
            {"id": "ship", "shell": "true", "needs": ["test"], "resources": ["db"]},
        ]});
        assert!(run(&world, &plan, &[]));
        let events = check_chrome(&traced(&world, &["--format", "chrome"]));
        let attempts: Vec<&str> =
            of_phase(&events, "X").iter().filter(|e| e["pid"] == 2).filter_map(|e| e["name"].as_str()).collect();
        assert_eq!(attempts.iter().filter(|name| **name != "waiting for a lease").count(), 5, "{attempts:?}");
        // build and lint to test, lint to its second attempt, test to ship.
        assert_eq!(of_phase(&events, "s").len(), 4);
        assert!(of_phase(&events, "C").len() >= 2 && of_phase(&events, "b").len() == 2, "two leases were held");
        // Every kind of event there is.
        let world = World::new();
        by_hand(&world, &checked_in("plan.json"), &checked_in("events.jsonl"));
        let events = check_chrome(&traced(&world, &["--format", "chrome"]));
        assert!(of_phase(&events, "i").iter().any(|e| e["name"] == "checkpoint"));
        assert!(events.iter().any(|e| e["name"] == "cost (US dollars)" && e["args"]["cost"] == 0.25));
        assert!(of_phase(&events, "b").iter().any(|e| e["name"] == "PreToolUse held"));
    }

    #[test]
    fn a_file_is_made_by_its_name_and_never_replaced_unasked() {
        let world = World::new();
        by_hand(&world, &checked_in("plan.json"), &checked_in("events.jsonl"));
        let out = cpw(&world, &["trace", "-o", "run.html"]);
        assert!(out.status.success() && text(&out).contains("open it in a browser"), "{}", text(&out));
        assert!(world.read("run.html").expect("the page").starts_with("<!doctype html>"));
        let out = cpw(&world, &["trace", "-o", "run.json"]);
        assert!(out.status.success() && text(&out).contains("ui.perfetto.dev"), "{}", text(&out));
        check_chrome(&world.read("run.json").expect("the events"));
        let (before, out) = (world.read("run.json"), cpw(&world, &["trace", "--format", "html", "-o", "run.json"]));
        assert_eq!(out.status.code(), Some(3), "{}", text(&out));
        assert!(text(&out).contains("run.json is there already") && text(&out).contains("--force"), "{}", text(&out));
        assert_eq!(world.read("run.json"), before);
        assert!(cpw(&world, &["trace", "-o", "run.json", "--force"]).status.success());
        for (args, said) in [
            (&["trace", "-o", "picture"][..], "does not say what to make"),
            (&["trace", "-o", "nowhere/run.html"], "no such folder"),
            (&["trace", "2031"], "no run here begins with"),
        ] {
            let out = cpw(&world, args);
            assert!(out.status.code() == Some(3) && text(&out).contains(said), "{args:?}: {}", text(&out));
        }
        // Without a terminal it is the page, and in words where those are asked for.
        assert!(traced(&world, &[]).starts_with("<!doctype html>"));
        let words = traced(&world, &["--format", "text"]);
        assert!(words.contains("Bounded by: ") && words.contains("cpw trace -o run.html"), "{words}");
    }

    #[test]
    fn a_damaged_log_is_told_as_far_as_it_goes() {
        let world = World::new();
        let log: Vec<String> = checked_in("events.jsonl").lines().map(str::to_owned).collect();
        by_hand(
            &world,
            &checked_in("plan.json"),
            &format!("{}\nnonsense\n{}\n", log[..10].join("\n"), log[10..].join("\n")),
        );
        let out = cpw(&world, &["trace", "--format", "text"]);
        assert_eq!(out.status.code(), Some(1), "{}", text(&out));
        assert!(
            text(&out).contains("ends before that, with event 10") && text(&out).contains("So far: "),
            "{}",
            text(&out)
        );
        let out = cpw(&world, &["trace", "--format", "html"]);
        assert!(String::from_utf8_lossy(&out.stdout).contains("with event 10"), "{}", text(&out));
    }

    /// Opens a page that `cpw trace` makes of the newest run; nothing may be said on the console.
    fn opened(browser: &Chromium, world: &World, more: &[String]) -> Seen {
        let page = world.path("page.html");
        fs::write(&page, traced(world, &["--format", "html"])).expect("the page");
        let seen = browser.open(world, &page, more);
        assert_eq!(seen.console, Vec::<String>::new());
        seen
    }

    /// The arguments that ask for the page and for a picture of it, and where that will be.
    fn with_picture(world: &World, name: &str, more: &[&str]) -> (PathBuf, Vec<String>) {
        let path = world.path(name);
        let shot = format!("--screenshot={}", path.display());
        let all = ["--dump-dom", &shot, "--window-size=1200,1600"].into_iter().chain(more.iter().copied());
        (path.clone(), all.map(str::to_owned).collect())
    }

    fn bars(page: &str) -> usize {
        page.matches("<a class=\"b ").count()
    }

    #[test]
    fn a_browser_shows_the_page_as_it_was_meant() {
        let Some(browser) = Chromium::find_or_skip("a_browser_shows_the_page_as_it_was_meant") else { return };
        let world = World::new();
        // What it says on its console is heard here.
        let bad = world.path("bad.html");
        fs::write(&bad, "<script>console.error('heard')</script>").expect("a page");
        let seen = browser.open(&world, &bad, &["--dump-dom".to_owned()]);
        assert!(seen.console.iter().any(|line| line.contains("heard")), "{seen:?}");

        // Texts that would like to be more than texts.
        let evil = "</script></style><img src=x onerror=\"document.title='canary'\"><script>document.title='canary'</script>'\"><svg onload=alert(1)>";
        let plan = json!({"version": 1, "tasks": [
            {"id": "first", "title": evil, "shell": format!("cpw progress 10 --note \"$EVIL\"; cpw summary \"$EVIL\"; cpw checkpoint half"), "env": {"EVIL": evil}},
            {"id": "second", "title": evil, "shell": "cpw signal --hook post-tool-use --exit 0 --message \"$EVIL\"; exit 3", "needs": ["first@half"], "env": {"EVIL": evil}},
            {"id": "third", "shell": "true", "needs": ["second"]},
        ]});
        assert!(!run(&world, &plan, &[]));
        let (light, args) = with_picture(&world, "light.png", &[]);
        let seen = opened(&browser, &world, &args);
        assert!(seen.dom.contains("data-ready=\"2\""), "its script has run: {}", &seen.dom[..600]);
        assert!(seen.dom.contains("<title>cpw run ") && seen.dom.contains("&lt;/script&gt;"), "{}", seen.dom);
        assert!(!seen.dom.contains("<title>canary"), "a text has become a script");
        // Nor would any have been kept from it by the page's policy: that would have been said on the console.
        let page = fs::read_to_string(world.path("page.html")).expect("the page");
        for canary in ["<img", "<svg onload", "onerror=\""] {
            assert!(!page.contains(canary), "{canary}: {page}");
        }
        assert_eq!(bars(&seen.dom), 2);

        // The same in the dark looks otherwise; and on paper.
        let (dark, args) = with_picture(&world, "dark.png", &["--blink-settings=preferredColorScheme=0"]);
        opened(&browser, &world, &args);
        let [light, dark] = [light, dark].map(|path| fs::read(path).expect("a picture"));
        for picture in [&light, &dark] {
            assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
        }
        assert_ne!(light, dark, "good in the dark, too");
        let paper = world.path("page.pdf");
        opened(&browser, &world, &[format!("--print-to-pdf={}", paper.display())]);
        let paper = fs::read(paper).expect("a print");
        assert!(paper.starts_with(b"%PDF") && paper.len() > 10_000, "{} bytes", paper.len());
    }

    #[test]
    fn a_thousand_tasks_fit_into_a_page_of_a_megabyte() {
        let world = World::new();
        many(&world, 1000);
        let page = traced(&world, &["--format", "html"]);
        assert!(page.len() <= 1_000_000, "{} bytes", page.len());
        // The further attempts among them.
        assert_eq!(bars(&page), 1035);
        let events = check_chrome(&traced(&world, &["--format", "chrome"]));
        assert!(events.len() > 2000);
        let words = traced(&world, &["--format", "text"]);
        assert!(words.contains("waiting for a free worker"), "{words}");
        let Some(browser) = Chromium::find_or_skip("a_thousand_tasks_fit_into_a_page_of_a_megabyte") else { return };
        let seen = opened(&browser, &world, &["--dump-dom".to_owned()]);
        assert!(seen.dom.contains("data-ready=\"1035\""), "its script has run");
    }

    #[test]
    fn a_run_that_goes_on_is_shown_as_of_now() {
        let world = World::new();
        let plan = json!({"version": 1, "tasks": [
            {"id": "slow", "shell": "until [ -e go ]; do sleep 0.05; done"}, {"id": "behind", "shell": "true", "needs": ["slow"]},
        ]});
        let file = world.write("plan.json", &plan.to_string());
        let out = cpw(&world, &["run", "--detach", file.to_str().expect("a path")]);
        assert!(out.status.success(), "{}", text(&out));
        let begun = wait_for(PATIENCE, || (bars(&traced(&world, &[])) == 1).then_some(()));
        assert!(begun.is_some(), "{}", traced(&world, &["--format", "text"]));
        let page = traced(&world, &["--format", "html"]);
        assert!(page.contains("<a class=\"b r p\"") && page.contains("not over"), "{page}");
        assert!(traced(&world, &["--format", "text"]).contains("So far: "));
        check_chrome(&traced(&world, &["--format", "chrome"]));
        world.write("go", "");
        assert!(cpw(&world, &["wait", "--run", "--timeout", "60s"]).status.success());
        assert!(traced(&world, &["--format", "text"]).contains("Bounded by: "));
    }
}
