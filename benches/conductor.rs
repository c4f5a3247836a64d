//! What it costs a session to be conducted, with the real client, offline: what cpw's hooks add to twenty tool calls, how soon
//! an idle session is woken by news, how soon a prompt is taken up that was typed while Stop holds, and how long a hook lasts
//! where it cannot do its work.
//!
//! `cargo bench --bench conductor [-- calls|wake|typed|adverse]`. The floor of the calls is the same wiring with a static
//! `true` in C in cpw's place, of the typed prompt the same prompt in a session without cpw; variants take turns.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot go on says so and ends")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is what it is for; the harness reports failures"
)]

#[path = "../tests/support/hold.rs"]
mod hold;
#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the harness serves several crates")]
mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::api::{Api, Script, Turn};
use support::client::{Client, Installed, LIMIT, installed};
use support::offline::{network_namespace, on_each_client};
use support::world::{World, wait_for};

/// Tool calls of a session whose hooks are measured, and how often each variant is.
const CALLS: usize = 20;
const ROUNDS: usize = 7;

/// Sessions that are woken, and how often each is: a session is woken at most six times a minute.
const SLEEPERS: usize = 4;
const WAKES: usize = 5;

/// Prompts that are typed while Stop holds, each in a session of its own.
const TYPED: usize = 8;

/// Waits until it may end.
const TASK: &str = r#"until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.005; done; echo "the result""#;

const PROMPT: &str = "Please hold a.txt and b.txt";

fn main() {
    if std::env::var_os("CPW_TEST_OUTSIDE").is_some() {
        return on_each_client(measure);
    }
    if !std::env::args().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench conductor` runs it");
        return;
    }
    if wanted("adverse") {
        adverse();
    }
    let client = match installed().into_iter().next() {
        Some(Ok(client)) => client,
        Some(Err(reason)) => return println!("SKIPPED: {reason}"),
        None => return println!("SKIPPED: no client"),
    };
    // The client must not reach outside: this program starts itself again in a network namespace of its own.
    let root = nix::unistd::geteuid().is_root();
    let how: &[&str] = if root { &["--net"] } else { &["--map-current-user", "--keep-caps", "--net"] };
    let mut inner = Command::new("unshare");
    inner
        .args(how)
        .arg("--")
        .arg(std::env::current_exe().expect("the path of this program"))
        .args(std::env::args().skip(1));
    inner.env("CPW_TEST_OUTSIDE", network_namespace()).env("CPW_TEST_CLIENT", &client.path);
    // As the floor: what a linker has just written starts more slowly than the same bytes copied.
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("cpw");
    fs::copy(support::world::program(), &copy).expect("a file in our folder");
    inner.env("CPW_TEST_BINARY", &copy);
    match inner.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the benchmark in the namespace ended with {status}"),
        Err(error) => println!("SKIPPED: unshare (util-linux): {error}"),
    }
}

/// Whether a part was asked for: all where none is named.
fn wanted(part: &str) -> bool {
    const PARTS: [&str; 4] = ["calls", "wake", "typed", "adverse"];
    let named: Vec<String> = std::env::args().filter(|a| PARTS.contains(&a.as_str())).collect();
    named.is_empty() || named.iter().any(|a| a == part)
}

fn measure(installed: &Installed) {
    println!("client {}", installed.version);
    if wanted("calls") {
        calls(installed);
    }
    if wanted("wake") {
        wake(installed);
    }
    if wanted("typed") {
        typed(installed);
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few values"
    )]
    let at = ((sorted.len() - 1) as f64 * part).ceil() as usize;
    sorted[at]
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// A project with two files and a rule that holds them, approved.
fn project(conductor: &Value, tasks: &Value) -> World {
    let world = World::new();
    for name in ["a.txt", "b.txt", "other.txt"] {
        world.write(name, "text\n");
    }
    let config = json!({"version": 1, "conductor": conductor, "rules": [{"name": "hold",
        "when": {"prompt": "(?i)\\bhold\\b", "files": {"min": 2}}, "tasks": tasks}]});
    world.write(".claude/cpw.json", &config.to_string());
    run(&world, &["allow", "--yes"]);
    world
}

fn run(world: &World, args: &[&str]) {
    let out = world.cpw(args).output().expect("cpw runs");
    assert!(out.status.success(), "cpw {args:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn events(world: &World) -> Vec<Value> {
    let runs = fs::read_dir(world.project().join(".claude/runs")).into_iter().flatten().flatten();
    let logs = runs.filter_map(|run| fs::read_to_string(run.path().join("events.jsonl")).ok());
    logs.flat_map(|log| log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<Value>>()).collect()
}

fn go(world: &World, task: &str) {
    fs::write(world.home().join(format!("go-{task}")), "").expect("a file");
}

/// How a session is wired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wiring {
    None,
    /// The same wiring, with a static `true` in cpw's place.
    True,
    Cpw,
    /// With a run of the session's going on.
    Run,
}

fn calls(installed: &Installed) {
    const ALL: [Wiring; 4] = [Wiring::None, Wiring::True, Wiring::Cpw, Wiring::Run];
    /// Hooks of a call: before it, behind it, behind its step.
    const HOOKS: f64 = 3.0;
    let folder = tempfile::tempdir().expect("a folder");
    let Some(floor) = static_true(folder.path()) else {
        return println!("SKIPPED: `cc -O2 -static` builds nothing here, and without a base there are no ratios");
    };
    let mut took: [Vec<f64>; 4] = Default::default();
    // The first start of a program reads it from the disk.
    for wiring in ALL {
        twenty(installed, wiring, &floor);
    }
    for round in 0..ROUNDS {
        for turn in 0..ALL.len() {
            let which = (round + turn) % ALL.len();
            took[which].push(twenty(installed, ALL[which], &floor).as_secs_f64() * 1000.0);
        }
    }
    let [none, base, cpw, open] = took.map(median);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let per_hook = |ms: f64| (ms - none) / (CALLS as f64 * HOOKS);
    println!("\n{CALLS} calls of Read in one `claude -p`, medians of {ROUNDS}, ms");
    for (name, ms) in [("no hooks", none), ("a static true", base), ("cpw, no run", cpw), ("cpw, a run goes on", open)]
    {
        println!("  {name:<20} {ms:>8.0}   {:>6.2} per hook", per_hook(ms));
    }
    let added = per_hook(open) - per_hook(base);
    println!("  a run against the static true: {added:.2} ms per hook (at most 1): {}", verdict(added <= 1.0));
}

fn twenty(installed: &Installed, wiring: Wiring, floor: &Path) -> Duration {
    let world =
        project(&json!({"gate": "off", "wake": false}), &json!([{"id": "t", "shell": TASK, "claims": ["a.txt"]}]));
    if wiring != Wiring::None {
        run(&world, &["init", "--local"]);
    }
    if wiring == Wiring::True {
        let path = world.project().join(".claude/settings.local.json");
        let text = fs::read_to_string(&path).expect("the settings");
        let program = support::world::program().to_str().expect("a path");
        assert!(text.contains(program), "{program}: {text}");
        fs::write(&path, text.replace(program, floor.to_str().expect("a path"))).expect("the settings");
    }
    let read = json!({"file_path": world.project().join("other.txt")});
    let script = (0..CALLS).fold(Script::new(), |script, _| script.then(Turn::tool("Read", read.clone())));
    let api = Api::start(script.then(Turn::text("Done.")));
    let prompt = if wiring == Wiring::Run { PROMPT } else { "Read it" };
    let printed = Client::new(installed, &world, &api).mode("bypassPermissions").print(prompt);
    assert_eq!(printed.text(), "Done.");
    let requests = api.requests();
    assert_eq!(requests.len(), CALLS + 1);
    if wiring == Wiring::Run {
        go(&world, "t");
        wait_for(LIMIT, || events(&world).iter().any(|e| e["t"] == "run_ended").then_some(())).expect("the run ends");
    }
    // From the first answer to the last request: what stands before and behind is the client's own.
    requests[CALLS].at - requests[0].at
}

fn static_true(folder: &Path) -> Option<PathBuf> {
    let (source, program) = (folder.join("true.c"), folder.join("true"));
    fs::write(&source, "int main(void) { return 0; }\n").expect("a file in our folder");
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).output();
    let built = built.is_ok_and(|out| out.status.success());
    // What a linker has just written starts more slowly than the same bytes copied.
    let copy = folder.join("copied");
    built.then(|| fs::copy(&program, &copy).map(|_| copy).expect("a file in our folder"))
}

/// From the outcome in the log to the request that brings it to the model.
fn wake(installed: &Installed) {
    let (mut took, mut own) = (Vec::new(), Vec::new());
    for _ in 0..SLEEPERS {
        let tasks: Vec<Value> = (0..=WAKES).map(|i| json!({"id": format!("t{i}"), "shell": TASK})).collect();
        let world = project(&json!({"gate": "off"}), &json!(tasks));
        run(&world, &["init", "--local"]);
        let script = (0..=WAKES + 2).fold(Script::new(), |script, i| script.then(Turn::text(format!("Answer {i}."))));
        let api = Api::start(script);
        let mut terminal = Client::new(installed, &world, &api).mode("bypassPermissions").open();
        terminal.submit(PROMPT, LIMIT);
        terminal.wait_for_text("Answer 0.", LIMIT);
        for i in 0..WAKES {
            watched(&world);
            let (instant, system) = (Instant::now(), chrono::Utc::now());
            go(&world, &format!("t{i}"));
            let requests = api.wait_for_requests(i + 2, LIMIT);
            let told = requests[i + 1].at;
            let events = events(&world);
            let done = events.iter().find(|e| e["t"] == "done" && e["task"] == format!("t{i}")).expect("done");
            let delivered = events.iter().rfind(|e| e["t"] == "delivered").expect("it was handed over");
            let at =
                |event: &Value| instant + time_of(event).signed_duration_since(system).to_std().unwrap_or_default();
            took.push(told.saturating_duration_since(at(done)).as_secs_f64() * 1000.0);
            own.push(at(delivered).saturating_duration_since(at(done)).as_secs_f64() * 1000.0);
            terminal.wait_for_text(&format!("Answer {}.", i + 1), LIMIT);
        }
        go(&world, &format!("t{WAKES}"));
        wait_for(LIMIT, || events(&world).iter().any(|e| e["t"] == "run_ended").then_some(())).expect("the run ends");
    }
    let (p50, p95) = (quantile(&took, 0.5), quantile(&took, 0.95));
    println!("\nnews to the model request of a woken session, {} wakes: p50 {p50:.0} ms, p95 {p95:.0} ms", took.len());
    println!("  until cpw has handed it over: p50 {:.0} ms, p95 {:.0} ms", quantile(&own, 0.5), quantile(&own, 0.95));
    println!("  at most 500 ms at p95: {}", verdict(p95 <= 500.0));
}

/// When an event was written.
fn time_of(event: &Value) -> chrono::DateTime<chrono::FixedOffset> {
    let text = event["ts"].as_str().expect("an event has a time");
    chrono::DateTime::parse_from_rfc3339(text).expect("a time")
}

/// Waits until the session is idle with a watcher: its bell hangs, and no Stop has one.
fn watched(world: &World) {
    let hangs = || {
        let runs = fs::read_dir(world.project().join(".claude/runs")).into_iter().flatten().flatten();
        let mut bells = runs.filter_map(|run| fs::read_dir(run.path().join("bells")).ok()).flatten().flatten();
        bells.any(|bell| {
            bell.file_name()
                .to_str()
                .is_some_and(|name| !name.starts_with('.') && name.rsplit('.').next() == Some("news"))
        })
    };
    wait_for(LIMIT, || hangs().then_some(())).expect("the session is watched over");
}

/// From Enter to the request with the prompt: while Stop holds, and in a session without cpw.
fn typed(installed: &Installed) {
    let mut took: [Vec<f64>; 2] = Default::default();
    // From Enter to Stop's last word.
    let mut own = Vec::new();
    for round in 0..TYPED * 2 {
        let holds = round % 2 == 0;
        let world = project(&json!({"wake": false}), &json!([{"id": "t", "shell": TASK}]));
        if holds {
            run(&world, &["init", "--local"]);
        }
        let api = Api::start(Script::new().then(Turn::text("First.")).then(Turn::text("Second.")));
        let mut terminal = Client::new(installed, &world, &api).mode("bypassPermissions").open();
        terminal.submit(PROMPT, LIMIT);
        terminal.wait_for_text("First.", LIMIT);
        if holds {
            wait_for(LIMIT, || hold::is_held(&world.project()).then_some(())).expect("Stop holds");
        }
        terminal.type_text("What time is it now?");
        terminal.wait_for_text("is it now?", LIMIT);
        // Together they would be taken for pasted text.
        let begun = Instant::now();
        terminal.enter();
        let system = chrono::Utc::now();
        let requests = api.wait_for_requests(2, LIMIT);
        if let Some(held) = events(&world).iter().find(|e| e["payload"]["answer"] == "held") {
            let let_go = time_of(held).signed_duration_since(system).to_std().unwrap_or_default();
            own.push(let_go.as_secs_f64() * 1000.0);
        }
        took[usize::from(!holds)].push((requests[1].at - begun).as_secs_f64() * 1000.0);
        terminal.wait_for_text("Second.", LIMIT);
        if holds {
            go(&world, "t");
            wait_for(LIMIT, || events(&world).iter().any(|e| e["t"] == "run_ended").then_some(())).expect("it ends");
        }
    }
    let [held, free] = took;
    let p95 = quantile(&held, 0.95);
    println!("\na prompt typed while Stop holds, from Enter to its request, {TYPED} each, ms");
    println!("  Stop holds     p50 {:>6.0}   p95 {p95:>6.0}", quantile(&held, 0.5));
    println!("    until it lets go, p50 {:.0}, p95 {:.0}", quantile(&own, 0.5), quantile(&own, 0.95));
    println!("  without cpw    p50 {:>6.0}   p95 {:>6.0}", quantile(&free, 0.5), quantile(&free, 0.95));
    println!("  at most 300 ms at p95: {}", verdict(p95 <= 300.0));
}

/// Hooks that cannot do their work: each ends, silently and with exit code 0, within a second.
fn adverse() {
    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";
    let world = Arc::new(project(
        &json!({"on_claimed": "block", "gate": "off"}),
        &json!([{"id": "t", "shell": TASK, "claims": ["a.txt"]}]),
    ));
    let payload = |event: &str, n: usize| {
        json!({"session_id": SESSION, "cwd": world.project(), "hook_event_name": event, "prompt": PROMPT, "prompt_id": "p",
            "tool_name": "Read", "tool_input": {"file_path": world.project().join("a.txt")}, "tool_use_id": format!("toolu_{n}")})
    };
    let start = |hook: &str, event: &str, n: usize| {
        let mut command = world.cpw(&[hook]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("cpw starts");
        // One with nothing to do does not read it.
        let mut pipe = child.stdin.take().expect("a pipe");
        drop(pipe.write_all(payload(event, n).to_string().as_bytes()));
        drop(pipe);
        (Instant::now(), child)
    };
    let end = |(begun, child): (Instant, Child)| {
        let out = child.wait_with_output().expect("it ends");
        assert!(out.status.success(), "{:?}", out.status);
        begun.elapsed().as_secs_f64() * 1000.0
    };
    end(start("user-prompt-submit", "UserPromptSubmit", 0));
    println!("\nhooks that cannot do their work, the slowest, ms (at most 1000)");
    let show = |what: &str, all: &[f64]| {
        println!("  {what:<44} {:>6.0}: {}", quantile(all, 1.0), verdict(all.iter().all(|ms| *ms <= 1000.0)));
    };
    let many: Vec<_> = (0..200).map(|n| start("pre-tool-use", "PreToolUse", n)).collect();
    show("200 at once", &many.into_iter().map(end).collect::<Vec<_>>());
    let run = fs::read_dir(world.project().join(".claude/runs")).expect("the runs").flatten().map(|e| e.path());
    let log = run.map(|p| p.join("events.jsonl")).find(|p| p.exists()).expect("a run");
    let held = File::open(&log).expect("the log");
    held.lock().expect("its lock");
    let each = |n: usize| {
        let hooks = [("pre-tool-use", "PreToolUse"), ("post-tool-batch", "PostToolBatch"), ("stop", "Stop")];
        let (hook, event) = hooks[n % hooks.len()];
        end(start(hook, event, 300 + n))
    };
    show("the log is held by one that does not go on", &(0..20).map(each).collect::<Vec<_>>());
    held.unlock().expect("ours");
    go(&world, "t");
    wait_for(LIMIT, || events(&world).iter().any(|e| e["t"] == "run_ended").then_some(())).expect("the run ends");
    fs::write(&log, "nonsense\n").expect("ours");
    show("the log is broken", &(0..20).map(each).collect::<Vec<_>>());
    fs::remove_dir_all(log.parent().expect("its folder")).expect("ours");
    show("the run is gone", &(0..20).map(each).collect::<Vec<_>>());
}
