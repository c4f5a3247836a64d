//! A run as others follow it: the ids by which one task is found again in every process that has worked on it.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::{Value, json};

    use crate::support::world::World;

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
            let files = (1..9).map(|n| folder.join(format!("workers/W{n}/logs/{name}.out")));
            files.filter_map(|file| std::fs::read_to_string(file).ok()).next().expect("what it was told")
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
}
