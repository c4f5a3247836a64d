//! What the commands inside a task cost as whole processes, against a static `true` in C that is built on the spot, and what
//! a task that says the same again and again costs another one.
//!
//! `cargo bench --bench inside`. All cases take turns, in an order that rotates by round; what counts is the ratio.
//! `CPW_BENCH_OTHER` names one more binary, such as the one before a change.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot go on says so and ends")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Rounds, each with one call of every case. No more than there may be votes in a plan: each round has one of its own.
const ROUNDS: usize = 60;

/// Between rounds: more than ten signals a second would be counted instead of written.
const PAUSE: Duration = Duration::from_millis(110);

/// The most a command may cost, in calls of a static `true`.
const TARGET: f64 = 2.0;

/// How long a run may take to begin.
const LIMIT: Duration = Duration::from_secs(30);

fn main() {
    if !std::env::args().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench inside` runs it");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let Some(base) = static_true(folder.path()) else {
        println!("SKIPPED: `cc -O2 -static` builds nothing here, and without a base there are no ratios");
        return;
    };
    let mut binaries = vec![("default", PathBuf::from(env!("CARGO_BIN_EXE_cpw")))];
    binaries.extend(std::env::var_os("CPW_BENCH_OTHER").map(|path| ("other", path.into())));
    println!("whole processes, medians of {ROUNDS} rounds, variants take turns; ratio to a static `true` in C");
    println!("{:<8} {:<52} {:>8} {:>7}", "binary", "call", "ms", "ratio");
    for (name, program) in binaries {
        // What a linker has just written starts more slowly than the same bytes copied.
        let copy = folder.path().join(format!("cpw-{name}"));
        fs::copy(program, &copy).expect("a file in our folder");
        let task = Task::begin(&folder.path().join(name), &copy);
        report(name, &task, &base);
        flood(name, &task, &base);
    }
}

/// Stands for the topic of a round.
const TOPIC: &str = "TOPIC";

fn topic(round: usize) -> String {
    format!("t{round}")
}

fn report(binary: &str, task: &Task, base: &Path) {
    let cases: [(&str, &[&str]); 6] = [
        ("--version, by clap", &["--version"]),
        ("progress 100, written", &["progress", "100"]),
        ("progress 50, within a second of the last", &["progress", "50"]),
        ("checkpoint with data", &["checkpoint", "half", "--data", "{\"n\": 1}"]),
        ("signal, written", &["signal", "--hook", "post-tool-use", "--exit", "0", "--message", "half"]),
        ("vote, written", &["vote", TOPIC, "proceed"]),
    ];
    let mut took = vec![Vec::new(); cases.len() + 1];
    for round in 0..=ROUNDS {
        std::thread::sleep(PAUSE);
        for turn in 0..took.len() {
            let at = (round + turn) % took.len();
            let seconds = match at.checked_sub(1) {
                None => run(&mut Command::new(base)),
                Some(case) => {
                    let topic = topic(round);
                    let args = cases[case].1.iter().map(|arg| if *arg == TOPIC { &*topic } else { arg });
                    run(&mut task.command(&args.collect::<Vec<_>>()))
                }
            };
            // The first start of a program reads it from the disk.
            if round > 0 {
                took[at].push(seconds);
            }
        }
    }
    let true_s = median(&took[0]);
    println!("{:<8} {:<52} {:>8.2} {:>7.2}", "C", "true (static glibc)", true_s * 1e3, 1.0);
    for ((what, _), took) in cases.iter().zip(&took[1..]) {
        let ratio = median(took) / true_s;
        let verdict = if ratio <= TARGET { "ok" } else { "MISSED" };
        println!("{binary:<8} {what:<52} {:>8.2} {ratio:>7.2} <= {TARGET} {verdict}", median(took) * 1e3);
    }
}

/// What another task's progress costs while this one says the same all the time; beside it the same load that says nothing.
fn flood(binary: &str, task: &Task, base: &Path) {
    let signal = "while :; do \"$0\" signal --hook post-tool-use --exit 0 --message again >/dev/null; done";
    let beside = |script: &str, program: &Path| {
        let mut loop_of = task.settle(Command::new("sh"));
        let child = loop_of.args(["-c", script]).arg(program).stdin(Stdio::null()).spawn().expect("a shell");
        let _killed = Killed(child);
        let mut took: Vec<f64> = (0..ROUNDS).map(|_| run(&mut task.command(&["checkpoint", "other"]))).collect();
        took.drain(..ROUNDS / 10);
        median(&took)
    };
    let nothing = beside("while :; do \"$0\"; done", base);
    let other = beside(signal, &task.program);
    println!(
        "{binary:<8} {:<52} {:>8.2} {:>7.2}",
        "checkpoint beside a loop of signals, to one of `true`",
        other * 1e3,
        other / nothing
    );
}

/// A task that waits for the end of the benchmark.
struct Task {
    program: PathBuf,
    env: Vec<(String, String)>,
    project: PathBuf,
}

impl Task {
    fn begin(root: &Path, program: &Path) -> Task {
        let project = root.join("project");
        fs::create_dir_all(project.join(".claude")).expect("a folder");
        let wait = "env -0 >new; mv new env; until [ -e over ]; do sleep 0.1; done";
        // Each vote has another voter, so that none is decided by the first.
        let vote = |round| format!(r#"{{"topic": "{}", "voters": ["a", "b"], "on_abort": "none"}}"#, topic(round));
        let votes: Vec<String> = (0..=ROUNDS).map(vote).collect();
        let plan = format!(
            r#"{{"version": 1, "votes": [{}], "tasks": [{{"id": "a", "shell": "{wait}"}}, {{"id": "b", "shell": "true", "needs": ["a"]}}]}}"#,
            votes.join(", ")
        );
        fs::write(project.join("plan.json"), plan).expect("a file");
        let env: Vec<(String, String)> = [("PATH", "/usr/bin:/bin"), ("HOME", "/nonexistent")]
            .into_iter()
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .chain([("CPW_STATE_DIR".to_owned(), root.join("state").to_string_lossy().into_owned())])
            .collect();
        let mut task = Task { program: program.to_owned(), env, project };
        run(&mut task.command(&["run", "plan.json", "--detach"]));
        let begun = Instant::now();
        let told = loop {
            if let Ok(text) = fs::read_to_string(task.project.join("env")) {
                break text;
            }
            assert!(begun.elapsed() < LIMIT, "the task does not begin");
            std::thread::sleep(Duration::from_millis(10));
        };
        let pair = |line: &str| line.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned()));
        task.env = told.split('\0').filter_map(pair).collect();
        task
    }

    fn settle(&self, mut command: Command) -> Command {
        let env = self.env.iter().map(|(n, v)| (n, v));
        command.env_clear().envs(env).current_dir(&self.project);
        command
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.settle(Command::new(&self.program));
        command.args(args);
        command
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        drop(fs::write(self.project.join("over"), ""));
        // Its folder goes next.
        let log = || fs::read_dir(self.project.join(".claude/runs")).into_iter().flatten().flatten();
        let over = || {
            log().any(|run| {
                fs::read_to_string(run.path().join("events.jsonl")).is_ok_and(|log| log.contains("\"t\":\"run_ended\""))
            })
        };
        let begun = Instant::now();
        while !over() && begun.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A process of ours that ends with this.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs a command to its good end; how long that took, in seconds.
fn run(command: &mut Command) -> f64 {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let status = command.status().expect("it starts");
    let took = begun.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}");
    took
}

/// A `true` that is as small as C makes it: what starting a process costs here.
fn static_true(folder: &Path) -> Option<PathBuf> {
    let (source, program) = (folder.join("true.c"), folder.join("true"));
    fs::write(&source, "int main(void) { return 0; }\n").expect("a file in our folder");
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).output();
    built.is_ok_and(|out| out.status.success()).then(|| {
        let copy = program.with_extension("copied");
        fs::copy(&program, &copy).expect("a file in our folder");
        copy
    })
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
