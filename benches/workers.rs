//! What it costs to have tasks run: many short ones, chains of them, waiting workers, and dead ones.
//!
//! `cargo bench --bench workers [-- slots|handoff|dag|prompt|waiting|killed]`. Everything is the real binary, as a whole
//! process; what it is compared with runs in turns with it. Neighbours (`nq`, `tsp`, `parallel`) are measured where installed.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot go on says so and ends")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Longest wait for anything.
const LIMIT: Duration = Duration::from_mins(5);

/// A program that says when it began and when it ended, on a clock that all processes share.
const STAMP: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
static long long now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000000000LL + t.tv_nsec; }
int main(int argc, char **argv) {
    long long begun = now();
    char line[64];
    int fd = open(argv[1], O_WRONLY | O_APPEND | O_CREAT, 0600);
    int n = snprintf(line, sizeof line, "%lld %lld\n", begun, now());
    return write(fd, line, n) != n;
}
"#;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if !args.iter().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench workers` runs it");
        return;
    }
    let parts: [(&str, fn()); 6] = [
        ("slots", slots),
        ("handoff", handoff),
        ("dag", dag),
        ("prompt", prompt),
        ("waiting", waiting),
        ("killed", killed),
    ];
    let named = |name: &str| args.iter().any(|a| a == name);
    let all = !parts.iter().any(|(name, _)| named(name));
    for (_, part) in parts.iter().filter(|(name, _)| all || named(name)) {
        part();
    }
}

/// A project with a home and a state directory of its own; what still works in it when it is dropped is ended.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        for name in ["project/.claude", "home"] {
            fs::create_dir_all(folder.path().join(name)).expect("a folder of ours");
        }
        Place { folder }
    }

    fn project(&self) -> PathBuf {
        self.folder.path().join("project")
    }

    fn plan(&self, slots: u32, tasks: &[Value]) {
        let plan = json!({"version": 1, "limits": {"max_workers": slots}, "tasks": tasks});
        fs::write(self.project().join("plan.json"), plan.to_string()).expect("a file of ours");
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", self.folder.path().join("home")).env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("CPW_STATE_DIR", self.folder.path().join("state")).current_dir(self.project());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn cpw(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_cpw"));
        command.args(args);
        command
    }

    /// Runs the plan to its end; returns how long that took, in seconds.
    fn run(&self) -> f64 {
        seconds(&mut self.cpw(&["run", "plan.json"]))
    }

    fn log(&self) -> PathBuf {
        let runs = fs::read_dir(self.project().join(".claude/runs")).expect("the folder of runs").flatten();
        let mut runs: Vec<PathBuf> = runs.map(|e| e.path()).filter(|p| p.is_dir()).collect();
        runs.sort();
        runs.pop().expect("a run").join("events.jsonl")
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn count(&self, kind: &str) -> usize {
        self.events().iter().filter(|e| e["t"] == kind).count()
    }

    /// Workers that were started and have not left, by number, with their pid.
    fn workers(&self) -> Vec<(String, i32)> {
        let mut workers = Vec::new();
        for event in self.events() {
            let name = event["worker"].as_str().unwrap_or_default().to_owned();
            match event["t"].as_str() {
                Some("worker_started") => {
                    workers.push((name, i32::try_from(event["payload"]["pid"].as_i64().unwrap_or(0)).unwrap_or(0)));
                }
                Some("worker_exited" | "worker_lost") => workers.retain(|(worker, _)| *worker != name),
                _ => {}
            }
        }
        workers
    }

    /// Cancels what runs and waits until nobody works here.
    fn end(&self) {
        self.cpw(&["cancel"]).status().expect("cpw starts");
        wait_for("the run does not end", || self.count("run_ended") > 0);
    }
}

fn seconds(command: &mut Command) -> f64 {
    let begun = Instant::now();
    let status = command.status().expect("the program starts");
    assert!(status.success(), "{command:?}: {status}");
    begun.elapsed().as_secs_f64()
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !ready() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
    let at = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// `asked` is the largest ratio that is good.
fn verdict(ratio: f64, asked: f64) -> &'static str {
    if ratio <= asked { "reached" } else { "MISSED" }
}

fn is_installed(program: &str) -> bool {
    ["/usr/bin", "/usr/local/bin", "/bin"].iter().any(|dir| Path::new(dir).join(program).exists())
}

/// 1,000 × `true`, beside what else runs commands side by side.
fn slots() {
    const TASKS: usize = 1000;
    const ROUNDS: usize = 5;
    println!("{TASKS} x true, whole command, seconds: median (least) of {ROUNDS} in turns; ratio to xargs");
    let place = Place::new();
    let tasks: Vec<Value> = (0..TASKS).map(|i| json!({"id": format!("t{i}"), "run": ["true"]})).collect();
    let script = |slots: u32, text: &str| {
        let mut command = place.command("sh");
        command.args(["-c", text]).env("N", TASKS.to_string()).env("J", slots.to_string());
        command.env("TMPDIR", place.folder.path()).env("TS_SOCKET", place.folder.path().join("tsp"));
        command.env("NQDIR", place.folder.path().join("nq"));
        command
    };
    let others = [
        ("xargs", "xargs", "seq $N | xargs -P$J -n1 true"),
        ("parallel", "parallel", "seq $N | parallel -j$J true"),
        (
            "task-spooler",
            "tsp",
            "tsp -S $J; for i in $(seq $N); do tsp -n true; done >/dev/null; \
            while tsp -l | grep -qE 'queued|running'; do :; done; tsp -K",
        ),
        (
            "nq",
            "nq",
            "for k in $(seq $J); do (d=$NQDIR.$$.$k; for i in $(seq $((N / J))); do NQDIR=$d nq -q true; done; \
            NQDIR=$d nq -w) & done; wait",
        ),
    ];
    for slots in [2, 8, 64] {
        place.plan(slots, &tasks);
        let mut times: Vec<(&str, Vec<f64>)> = vec![("cpw", Vec::new())];
        times.extend(
            others.iter().filter(|(_, program, _)| is_installed(program)).map(|(name, ..)| (*name, Vec::new())),
        );
        for _ in 0..ROUNDS {
            for (name, values) in &mut times {
                let other = others.iter().find(|(other, ..)| other == name);
                values.push(other.map_or_else(|| place.run(), |(.., text)| seconds(&mut script(slots, text))));
            }
        }
        let floor = times.iter().find(|(name, _)| *name == "xargs").map_or(f64::NAN, |(_, v)| median(v));
        for (name, values) in &times {
            let ratio = median(values) / floor;
            let said = if *name == "cpw" { format!("  (1.5: {})", verdict(ratio, 1.5)) } else { String::new() };
            let least = quantile(values, 0.0);
            println!("  {slots:>3} slots  {name:<13} {:>7.3} ({least:.3})  {ratio:>6.2} x{said}", median(values));
        }
    }
    for (name, program, _) in others.iter().filter(|(_, program, _)| !is_installed(program)) {
        println!("  SKIPPED: {name} ({program}) is not installed");
    }
}

/// Compiles the program that says when it ran.
fn stamp(folder: &Path) -> Option<PathBuf> {
    let (source, program) = (folder.join("stamp.c"), folder.join("stamp"));
    fs::write(&source, STAMP).ok()?;
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).args([&program, &source]).status();
    built.is_ok_and(|status| status.success()).then_some(program)
}

/// From the end of a task to the first instruction of the next, in milliseconds.
fn gaps(file: &Path) -> Vec<f64> {
    let text = fs::read_to_string(file).expect("what the tasks wrote");
    let line = |l: &str| l.split_once(' ').and_then(|(a, b)| Some((a.parse::<u64>().ok()?, b.parse::<u64>().ok()?)));
    let times: Vec<(u64, u64)> = text.lines().filter_map(line).collect();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let gap = |two: &[(u64, u64)]| two[1].0.saturating_sub(two[0].1) as f64 / 1e6;
    times.windows(2).map(gap).collect()
}

/// A chain: how long after a task the one that needs it begins.
fn handoff() {
    const LINKS: usize = 40;
    const ROUNDS: usize = 8;
    let place = Place::new();
    let Some(stamp) = stamp(place.folder.path()) else {
        println!("SKIPPED: hand-off (no C compiler)");
        return;
    };
    let task = |i: usize| {
        let needs: Vec<String> = i.checked_sub(1).map(|before| format!("t{before}")).into_iter().collect();
        json!({"id": format!("t{i}"), "run": [stamp, "stamps"], "needs": needs})
    };
    place.plan(2, &(0..LINKS).map(task).collect::<Vec<_>>());
    let stamps = place.project().join("stamps");
    let (mut ours, mut shell) = (Vec::new(), Vec::new());
    let script = vec![format!("{} stamps", stamp.display()); LINKS].join("; ");
    for _ in 0..ROUNDS {
        for (gaps_of, command) in [(&mut ours, None), (&mut shell, Some(&script))] {
            drop(fs::remove_file(&stamps));
            match command {
                None => place.run(),
                Some(script) => seconds(place.command("sh").args(["-c", script])),
            };
            gaps_of.extend(gaps(&stamps));
        }
    }
    let (p50, floor) = (median(&ours), median(&shell));
    println!("end of a task to the first instruction of its dependent, ms, {} gaps", ours.len());
    println!("  cpw          p50 {p50:.3}  p90 {:.3}  p99 {:.3}", quantile(&ours, 0.9), quantile(&ours, 0.99));
    println!("  sh -c 'a; b' p50 {floor:.3}  p90 {:.3}  p99 {:.3}", quantile(&shell, 0.9), quantile(&shell, 0.99));
    println!("  ratio {:.2} (2: {}), p50 at most 1 ms: {}", p50 / floor, verdict(p50 / floor, 2.0), verdict(p50, 1.0));
}

/// Time per task of a random plan of 10,000 tasks against one of 1,000.
fn dag() {
    const ROUNDS: usize = 3;
    let place = Place::new();
    let mut seed = 20_260_101_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap_or(0) % below
    };
    let mut plans = Vec::new();
    for count in [1000, 10_000] {
        let mut tasks = Vec::new();
        for i in 0..count {
            let mut needs: Vec<String> = (0..random(4).min(i)).map(|_| format!("t{}", random(i))).collect();
            needs.sort();
            needs.dedup();
            tasks.push(json!({"id": format!("t{i}"), "run": ["true"], "needs": needs}));
        }
        plans.push((count, tasks, Vec::new()));
    }
    for _ in 0..ROUNDS {
        for (count, tasks, times) in &mut plans {
            place.plan(8, tasks);
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            times.push(place.run() * 1e6 / *count as f64);
        }
    }
    println!("random plan, 8 slots of true, microseconds per task: median of {ROUNDS} in turns");
    for (count, _, times) in &plans {
        println!("  {count:>6} tasks  {:>7.0}", median(times));
    }
    let ratio = median(&plans[1].2) / median(&plans[0].2);
    println!("  ratio {ratio:.2} (1.3: {})", verdict(ratio, 1.3));
}

/// How long the prompt hook takes where 64 workers or 1 are wanted, for the same 64 tasks.
fn prompt() {
    const ROUNDS: usize = 30;
    let place = Place::new();
    let floor = place.folder.path().join("true");
    let source = place.folder.path().join("true.c");
    fs::write(&source, "int main(void) { return 0; }\n").expect("a file of ours");
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).args([&floor, &source]).status();
    if !built.is_ok_and(|status| status.success()) {
        println!("SKIPPED: prompt hook (no C compiler)");
        return;
    }
    let (mut empty, mut times) = (Vec::new(), [Vec::new(), Vec::new()]);
    for round in 0..ROUNDS {
        for (k, slots) in [1, 64].into_iter().enumerate() {
            let place = Place::new();
            let rule = json!({"name": "many", "when": {"prompt": "(?i)\\bmeasure\\b"},
                "for_each": {"list": (0..64).map(|i| format!("i{i}")).collect::<Vec<_>>()},
                "tasks": [{"id": "t-{{item}}", "run": ["sleep", "600"]}]});
            let config = json!({"version": 1, "limits": {"max_workers": slots}, "rules": [rule]});
            fs::write(place.project().join(".claude/cpw.json"), config.to_string()).expect("a file of ours");
            assert!(place.cpw(&["allow", "--yes"]).status().expect("cpw starts").success());
            let session = format!("00000000-0000-4000-8000-{round:010}{k:02}");
            let payload = json!({"session_id": session, "transcript_path": "t.jsonl", "cwd": place.project(), "prompt_id": "p",
                "permission_mode": "default", "hook_event_name": "UserPromptSubmit", "prompt": "please measure everything"});
            let input = place.folder.path().join("payload");
            fs::write(&input, payload.to_string()).expect("a file of ours");
            let mut hook = place.cpw(&["user-prompt-submit"]);
            hook.env("CLAUDE_CODE_SESSION_ID", &session).env("CLAUDE_PROJECT_DIR", place.project());
            hook.env("CLAUDE_CODE_ENTRYPOINT", "sdk-cli").stdin(fs::File::open(input).expect("the payload"));
            empty.push(seconds(&mut place.command(floor.to_str().expect("a path"))) * 1e3);
            times[k].push(seconds(&mut hook) * 1e3);
            wait_for("the workers do not start", || place.count("spawned") >= slots);
            place.end();
        }
    }
    let (one, many, floor) = (median(&times[0]), median(&times[1]), median(&empty));
    println!("prompt hook that starts a run of 64 tasks, whole process, ms: median of {ROUNDS} in turns");
    println!("  1 worker {one:.2}   64 workers {many:.2}   static true {floor:.2}");
    println!("  64 against 1: {:.2} (2: {})", many / one, verdict(many / one, 2.0));
    println!(
        "  more for 64 than for 1: {:.2} of a static true (1: {})",
        (many - one) / floor,
        verdict((many - one) / floor, 1.0)
    );
}

/// The number behind `key` in a file of `/proc`.
fn number(file: &str, key: &str) -> f64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    line.and_then(|l| l.split_ascii_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(f64::NAN)
}

/// What 64 workers cost that have nothing to do, and 64 whose tasks sleep.
fn waiting() {
    const FOR: Duration = Duration::from_mins(1);
    println!("64 workers, {} s", FOR.as_secs());
    let idle = {
        let mut tasks: Vec<Value> =
            (0..64).map(|i| json!({"id": format!("t{i}"), "shell": "until test -e go; do sleep 0.1; done"})).collect();
        tasks.push(json!({"id": "long", "run": ["sleep", "600"], "priority": 1}));
        tasks.push(json!({"id": "behind", "run": ["true"], "needs": ["long"]}));
        tasks
    };
    let busy: Vec<Value> = (0..64).map(|i| json!({"id": format!("t{i}"), "run": ["sleep", "600"]})).collect();
    for (name, tasks, done) in [("with nothing to do", idle, 64), ("whose task sleeps", busy, 0)] {
        let place = Place::new();
        place.plan(64, &tasks);
        assert!(place.cpw(&["run", "plan.json", "--detach"]).status().expect("cpw starts").success());
        wait_for("the workers do not start", || place.count("spawned") >= 64);
        fs::write(place.project().join("go"), "").expect("a file of ours");
        wait_for("the tasks do not end", || place.count("done") >= done);
        // What there is to do behind that is done.
        std::thread::sleep(Duration::from_secs(3));
        let workers = place.workers();
        let wakes = || -> Vec<f64> {
            let of = |pid: &i32| number(&format!("/proc/{pid}/status"), "voluntary_ctxt_switches:");
            workers.iter().map(|(_, pid)| of(pid)).collect()
        };
        let before = wakes();
        std::thread::sleep(FOR);
        let woken: Vec<f64> = wakes().iter().zip(&before).map(|(after, before)| after - before).collect();
        let pss: Vec<f64> =
            workers.iter().map(|(_, pid)| number(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).collect();
        let (p50, most) = (median(&woken), quantile(&woken, 1.0));
        println!(
            "  {} {name}: wake-ups a minute p50 {p50:.0}, most {most:.0} (1: {}); PSS p50 {:.0} KB, most {:.0} KB (150: {})",
            workers.len(),
            verdict(p50, 1.0),
            median(&pss),
            quantile(&pss, 1.0),
            verdict(quantile(&pss, 1.0), 150.0)
        );
        place.end();
    }
}

/// From SIGKILL of a worker to the outcome of its task in the log, with other workers alive.
fn killed() {
    const KILLS: usize = 100;
    let place = Place::new();
    let tasks: Vec<Value> = (0..KILLS + 8).map(|i| json!({"id": format!("t{i}"), "run": ["sleep", "600"]})).collect();
    place.plan(4, &tasks);
    assert!(place.cpw(&["run", "plan.json", "--detach"]).status().expect("cpw starts").success());
    let mut times = Vec::new();
    for round in 0..KILLS {
        wait_for("nobody works", || place.count("spawned") >= round + 4);
        let events = place.events();
        let running = |worker: &str| {
            let last = events.iter().rfind(|e| e["t"] == "spawned" && e["worker"] == worker)?;
            let task = last["task"].as_str()?.to_owned();
            (!events.iter().any(|e| e["t"] == "lost" && e["task"] == task.as_str())).then_some(task)
        };
        // The oldest one, which leads, and the youngest one in turns.
        let mut at_work: Vec<(i32, String)> =
            place.workers().into_iter().filter_map(|(name, pid)| Some((pid, running(&name)?))).collect();
        if round % 2 == 1 {
            at_work.reverse();
        }
        let (pid, task) = at_work.first().expect("a worker at work");
        let begun = Instant::now();
        kill(Pid::from_raw(*pid), Signal::SIGKILL).expect("it is there");
        wait_for("its task has no outcome", || {
            place.events().iter().any(|e| e["t"] == "lost" && e["task"] == task.as_str())
        });
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    place.end();
    println!("SIGKILL of a worker to the outcome of its task, others alive, ms, {KILLS} kills");
    let p99 = quantile(&times, 0.99);
    println!(
        "  p50 {:.1}  p99 {p99:.1}  most {:.1}  (2000: {})",
        median(&times),
        quantile(&times, 1.0),
        verdict(p99, 2000.0)
    );
}
