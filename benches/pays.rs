//! Whether it pays: the story of three files as a whole `claude -p`, with cpw and without, for tasks of several durations.
//!
//! `cargo bench --bench pays`. The real client, offline, against the stand-in of the tests, whose model answers at once: what
//! differs is where the three commands run. Without cpw the model runs them by the Bash tool, in two ways: joined in one
//! call, which are the fewest requests and shells there can be, and one after the other, each in a call and a request of
//! its own. With cpw the prompt starts them and Stop waits. The variants take turns, and what is printed are medians.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, clippy::panic, reason = "a benchmark that cannot go on says so and ends")]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is what it is for; the harness reports failures"
)]

#[path = "../tests/support/mod.rs"]
#[expect(dead_code, reason = "the harness serves several crates")]
mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use support::api::{Api, Script, Turn};
use support::client::{Client, Installed, installed};
use support::offline::{network_namespace, on_each_client};
use support::world::World;

/// Durations of a task in seconds, and how often each is measured.
const STEPS: [(f64, usize); 4] = [(0.0, 7), (0.1, 7), (1.0, 5), (10.0, 2)];

/// What the story may cost at most, as a part of the same session without cpw.
const TARGETS: [(f64, f64); 2] = [(1.0, 1.0), (10.0, 0.45)];

const FILES: [&str; 3] = ["api.py", "db.py", "ui.py"];
const PROMPT: &str = "Analyze api.py, db.py and ui.py";
const ANSWER: &str = "Everything is analyzed.";

/// How a session gets its three commands run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Variant {
    /// cpw's workers run them.
    Cpw,
    /// One call with all of them.
    OneCall,
    /// One call each, one after the other.
    OneByOne,
}

const VARIANTS: [Variant; 3] = [Variant::Cpw, Variant::OneCall, Variant::OneByOne];

/// What a session took.
struct Session {
    wall: Duration,
    requests: usize,
    /// Requests between the model's first answer and the end of the last task.
    while_waiting: usize,
}

fn main() {
    if std::env::var_os("CPW_TEST_OUTSIDE").is_some() {
        return on_each_client(measure);
    }
    if !std::env::args().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench pays` runs it");
        return;
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
    inner.args(how).arg("--").arg(std::env::current_exe().expect("the path of this program"));
    inner.env("CPW_TEST_OUTSIDE", network_namespace()).env("CPW_TEST_CLIENT", &client.path);
    match inner.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("the benchmark in the namespace ended with {status}"),
        Err(error) => println!("SKIPPED: unshare (util-linux): {error}"),
    }
}

fn measure(installed: &Installed) {
    println!("client {}, wall time of a whole `claude -p` in seconds, medians; variants take turns", installed.version);
    println!("{:>6} {:>6}   {:>16}   {:>22}   {:>22}", "task", "rounds", "cpw", "one call", "one by one");
    println!(
        "{:>6} {:>6}   {:>7} {:>8}   {:>6} {:>8} {:>6}   {:>6} {:>8} {:>6}",
        "s", "", "s", "requests", "s", "requests", "ratio", "s", "requests", "ratio"
    );
    // The first start of a program reads it from the disk.
    for variant in VARIANTS {
        session(installed, variant, 0.01);
    }
    let mut gains = Vec::new();
    let mut ratios = Vec::new();
    for (seconds, rounds) in STEPS {
        let mut all: [Vec<Session>; 3] = Default::default();
        for round in 0..rounds {
            for turn in 0..VARIANTS.len() {
                let which = (round + turn) % VARIANTS.len();
                all[which].push(session(installed, VARIANTS[which], seconds));
            }
        }
        let wall = |i: usize| median(all[i].iter().map(|s| s.wall.as_secs_f64()).collect());
        let requests = |i: usize| all[i].first().map_or(0, |s| s.requests);
        let (with, one, by) = (wall(0), wall(1), wall(2));
        println!(
            "{seconds:>6} {rounds:>6}   {with:>7.2} {:>8}   {one:>6.2} {:>8} {:>6.2}   {by:>6.2} {:>8} {:>6.2}",
            requests(0),
            requests(1),
            with / one,
            requests(2),
            with / by
        );
        let spread = |i: usize| {
            let walls = || all[i].iter().map(|s| s.wall.as_secs_f64());
            format!("{:.2}-{:.2}", walls().fold(f64::MAX, f64::min), walls().fold(0.0, f64::max))
        };
        println!("{:>14} {:>18} {:>16} {:>25}", "range", spread(0), spread(1), spread(2));
        let extra: usize = all[0].iter().map(|s| s.while_waiting).sum();
        println!("{:>14} {extra} requests in {rounds} sessions", "while waiting");
        gains.push((seconds, one - with, by - with));
        ratios.push((seconds, with / one));
    }
    println!();
    println!("break-even against one call: {}", even(&gains.iter().map(|g| (g.0, g.1)).collect::<Vec<_>>()));
    println!("break-even against one by one: {}", even(&gains.iter().map(|g| (g.0, g.2)).collect::<Vec<_>>()));
    for (seconds, most) in TARGETS {
        let ratio = ratios.iter().find(|r| (r.0 - seconds).abs() < 1e-9).map_or(f64::NAN, |r| r.1);
        let verdict = if ratio <= most { "met" } else { "MISSED" };
        println!("target at {seconds} s: at most {most:.2}, measured {ratio:.2}: {verdict}");
    }
}

/// Where the gain becomes positive, on the line through the two measured durations around it, or the first two.
fn even(gains: &[(f64, f64)]) -> String {
    let around = gains.windows(2).find(|w| w[0].1 <= 0.0 && w[1].1 > 0.0).or_else(|| gains.windows(2).next());
    let Some([(d0, g0), (d1, g1)]) = around else { return "too few durations".into() };
    let at = d0 - g0 * (d1 - d0) / (g1 - g0);
    if at <= 0.0 { "it pays at every duration".into() } else { format!("tasks of {at:.2} s") }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n.is_multiple_of(2) { f64::midpoint(values[n / 2 - 1], values[n / 2]) } else { values[n / 2] }
}

fn session(installed: &Installed, variant: Variant, seconds: f64) -> Session {
    let world = World::new();
    for file in FILES {
        world.write(file, "# a module\n");
    }
    world.script("analyze.sh", &format!("sleep {seconds}\necho \"3 findings in $1\""));
    let command = |file: &str| format!("./analyze.sh {file}");
    let bash = |command: &str| Turn::tool("Bash", json!({"command": command, "description": "Analyze"}));
    let shows_all = |request: &support::api::Request| {
        for file in FILES {
            assert!(request.count(&format!("3 findings in {file}")) >= 1, "{file} is missing");
        }
        Turn::text(ANSWER)
    };
    let script = match variant {
        Variant::Cpw => {
            wire(&world);
            Script::new().then(Turn::text("The workers are on it."))
        }
        Variant::OneCall => {
            let all: Vec<String> = FILES.iter().map(|file| command(file)).collect();
            Script::new().then(bash(&all.join("; ")))
        }
        Variant::OneByOne => FILES.iter().fold(Script::new(), |script, file| script.then(bash(&command(file)))),
    };
    let api = Api::start(script.ask(shows_all));
    let begun = Instant::now();
    let printed = Client::new(installed, &world, &api).mode("bypassPermissions").print(PROMPT);
    assert_eq!(printed.text(), ANSWER, "after {:?}", begun.elapsed());
    let requests = api.requests();
    // The request that brings all results is the first after the last task has ended.
    let while_waiting = requests[1..].iter().take_while(|r| r.count("3 findings in") < FILES.len()).count();
    Session { wall: printed.took, requests: requests.len(), while_waiting }
}

/// Wires cpw in, as a person does, with one rule.
fn wire(world: &World) {
    let config = json!({
        "version": 1,
        "rules": [{
            "name": "analyze",
            "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
            "for_each": "files",
            "tasks": [{"id": "analyze-{{item.stem}}", "run": ["./analyze.sh", "{{item}}"], "claims": ["{{item}}"]}],
        }],
    });
    world.write(".claude/cpw.json", &config.to_string());
    for command in [&["init"][..], &["allow", "--yes"]] {
        let out = world.cpw(command).output().expect("cpw runs");
        assert!(out.status.success(), "cpw {command:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
