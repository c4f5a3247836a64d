//! The commands that people type, as they are typed: the real binary in a scratch project, its output, its exit codes, and
//! what it leaves behind. For Linux, whose /proc tells which processes are left.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A project in a folder of its own, with a state directory of its own.
struct Project {
    tmp: tempfile::TempDir,
}

impl Project {
    fn new() -> Project {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(tmp.path().join("project/.claude")).unwrap();
        Project { tmp }
    }

    fn path(&self) -> PathBuf {
        self.tmp.path().join("project")
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path().join(name), text).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cpw"));
        command.args(args).current_dir(self.path()).env("CPW_STATE_DIR", self.tmp.path().join("state"));
        command.env("HOME", self.tmp.path()).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if (name.starts_with("CPW_") && name != "CPW_STATE_DIR") || name.starts_with("CLAUDE") {
                command.env_remove(name);
            }
        }
        command
    }

    fn run(&self, args: &[&str]) -> Done {
        Done::of(self.command(args).output().unwrap())
    }

    /// Starts a run in the background; its id.
    fn detach(&self, plan: &str) -> String {
        let done = self.run(&["run", plan, "--detach"]);
        assert_eq!(done.code, 0, "{done:?}");
        done.out.trim().to_owned()
    }

    fn status(&self, run: &str) -> Value {
        let done = self.run(&["status", run, "--json"]);
        assert_eq!(done.code, 0, "{done:?}");
        let all: Value = serde_json::from_str(&done.out).unwrap();
        all["runs"][0].clone()
    }

    /// The events of a run as they are in its log, without changing anything.
    fn events(&self, run: &str) -> Vec<Value> {
        let path = self.path().join(".claude/runs").join(run).join("events.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn has(&self, run: &str, kind: &str, task: &str, attempt: u64) -> bool {
        self.events(run).iter().any(|e| e["t"] == kind && e["task"] == task && e["attempt"] == attempt)
    }

    fn newest(&self) -> String {
        let mut names: Vec<String> = std::fs::read_dir(self.path().join(".claude/runs"))
            .unwrap()
            .filter_map(|e| e.unwrap().file_name().into_string().ok())
            .filter(|n| n.starts_with("20"))
            .collect();
        names.sort_unstable();
        names.pop().unwrap()
    }

    /// Processes that belong to runs of this project: workers by their folder, tasks by their environment.
    fn left(&self) -> Vec<String> {
        let mark = self.path().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
            let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            if cwd.starts_with(&mark) {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                found.push(format!("{pid}: {}", String::from_utf8_lossy(&line).replace('\0', " ")));
            }
        }
        found
    }

    fn nobody_is_left(&self) {
        wait_for("every process of the project to end", || self.left().is_empty());
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        // Whatever a failed test left running.
        for line in self.left() {
            if let Some(pid) = line.split(':').next().and_then(|p| p.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

#[derive(Debug)]
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    fn of(output: Output) -> Done {
        Done {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

fn wait_for(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !happened() {
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Times and run ids out, so that lines can be compared.
fn steady(text: &str) -> String {
    let id = regex::Regex::new(r"\d{8}-\d{12}-[0-9a-f]{20}").unwrap();
    let time = regex::Regex::new(r" *\d+(\.\d)? (ms|s|min)\b").unwrap();
    let steady = time.replace_all(&id.replace_all(text, "RUN"), " TIME").into_owned();
    // What aligns the column behind times of different length.
    regex::Regex::new("TIME {2,}").unwrap().replace_all(&steady, "TIME  ").into_owned()
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_run_in_a_pipe_prints_one_line_for_what_happens_and_a_table() {
    let p = Project::new();
    p.write(
        "plan.json",
        r#"{"version": 1, "limits": {"max_workers": 1}, "tasks": [
            {"id": "one", "shell": "echo first line; echo second"},
            {"id": "two", "needs": ["one"], "shell": "echo $CPW_TASK"}]}"#,
    );
    let done = p.run(&["run", "plan.json"]);
    assert_eq!(done.code, 0, "{done:?}");
    let expected = "\
[ TIME] run RUN: 2 tasks, at most 1 at a time
[ TIME] W1 started one
[ TIME] W1 done one in TIME: first line
[ TIME] W1 started two
[ TIME] W1 done two in TIME: two
[ TIME] run ok: all tasks are done

one  done TIME  workers/W1/out/one.1/result.txt
two  done TIME  workers/W1/out/two.1/result.txt

2 done in TIME
results below .claude/runs/RUN (`cpw result TASK` prints one)
";
    assert_eq!(steady(&done.out), expected);
    assert_eq!(done.err, "");
    assert_eq!(p.run(&["result", "one"]).out, "first line\nsecond\n");
    p.nobody_is_left();
}

#[test]
fn a_failing_task_ends_the_run_with_1_and_shows_its_last_words() {
    let p = Project::new();
    p.write(
        "plan.json",
        r#"{"version": 1, "tasks": [
            {"id": "bad", "shell": "echo $CPW_ATTEMPT >> tries; echo at first >&2; echo it broke >&2; exit 7", "retries": 1,
             "backoff": {"initial": "10ms"}},
            {"id": "behind", "needs": ["bad"], "shell": "touch ran"}]}"#,
    );
    let done = p.run(&["run", "plan.json"]);
    assert_eq!(done.code, 1, "{done:?}");
    for part in [
        "failed bad after TIME: exit 7: it broke (attempt 2 of 2 in TIME)",
        "started bad (attempt 2)",
        "skipped behind: it needs bad",
        "run failed: bad failed",
        "\nbad failed: exit 7: it broke\n    at first\n    it broke\n",
    ] {
        assert!(steady(&done.out).contains(part), "{part} not in {}", steady(&done.out));
    }
    assert_eq!(std::fs::read_to_string(p.path().join("tries")).unwrap(), "1\n2\n");
    assert!(!p.path().join("ran").exists());
    let status = p.status(&p.newest());
    assert_eq!(status["state"], "failed");
    assert_eq!(status["tasks"][0]["attempts"], 2);
    assert_eq!(status["tasks"][1]["state"], "skipped");
}

#[test]
fn a_wrong_plan_starts_nothing_and_all_its_mistakes_are_listed() {
    let p = Project::new();
    p.write("plan.json", r#"{"version": 1, "tasks": [{"id": "a b", "shell": "true"}, {"id": "c", "needs": ["d"]}]}"#);
    let done = p.run(&["run", "plan.json"]);
    assert_eq!(done.code, 3, "{done:?}");
    for part in ["$.tasks[0].id", "$.tasks[1]:", "$.tasks[1].needs[0]", "hint: nothing was started"] {
        assert!(done.err.contains(part), "{part} not in {}", done.err);
    }
    assert!(!p.path().join(".claude/runs").exists());
    let done = p.run(&["run", "missing.json"]);
    assert_eq!(done.code, 3);
    assert!(done.err.contains("missing.json"), "{done:?}");
    assert_eq!(p.run(&["run"]).code, 3);
    assert_eq!(p.run(&["run", "plan.json", "-j", "0"]).code, 3);
}

const SLEEPERS: &str = r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
    {"id": "a", "shell": "sleep 300"},
    {"id": "b", "shell": "sleep 300"},
    {"id": "c", "needs": ["a"], "shell": "touch ran"}]}"#;

fn start(p: &Project, args: &[&str]) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = p.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

fn read_until(out: &mut impl BufRead, part: &str) {
    let mut seen = String::new();
    while !seen.lines().any(|l| l.contains(part)) {
        assert_ne!(out.read_line(&mut seen).unwrap(), 0, "{part} did not come: {seen}");
    }
}

#[test]
fn ctrl_c_cancels_and_leaves_no_process() {
    let p = Project::new();
    p.write("plan.json", SLEEPERS);
    let (mut child, mut out) = start(&p, &["run", "plan.json"]);
    read_until(&mut out, "started b");
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest}");
    assert!(rest.contains("ctrl-c asked to cancel the run") && rest.contains("run cancelled"), "{rest}");
    p.nobody_is_left();
    assert_eq!(p.status(&p.newest())["counts"]["cancelled"], 3);
    assert!(!p.path().join("ran").exists());
}

#[test]
fn a_second_ctrl_c_does_not_wait() {
    let p = Project::new();
    // A task that does not hear SIGTERM lives until SIGKILL, some seconds later.
    p.write(
        "plan.json",
        r#"{"version": 1, "tasks": [{"id": "deaf", "shell": "trap '' TERM; echo ready; while :; do sleep 1; done"}]}"#,
    );
    let (mut child, mut out) = start(&p, &["run", "plan.json"]);
    read_until(&mut out, "started deaf");
    let run = p.newest();
    wait_for("the task to be deaf", || p.run(&["logs", "deaf"]).out.contains("ready"));
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    kill(pid, Signal::SIGINT).unwrap();
    read_until(&mut out, "ctrl-c asked");
    kill(pid, Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert!(err.contains("is being cancelled in the background"), "{err}");
    wait_for("the run to end", || p.status(&run)["state"] == "cancelled");
    p.nobody_is_left();
}

#[test]
fn a_detached_run_is_looked_at_and_cancelled_by_other_commands() {
    let p = Project::new();
    p.write(
        "plan.json",
        r#"{"version": 1, "limits": {"max_workers": 4}, "tasks": [
            {"id": "quick", "shell": "echo out; echo err >&2; printf 'raw\\033[2J' > $CPW_OUT/result.txt"},
            {"id": "long", "shell": "echo begun; sleep 300"},
            {"id": "behind", "needs": ["long"], "shell": "true"}]}"#,
    );
    let run = p.detach("plan.json");
    wait_for("both tasks", || p.has(&run, "done", "quick", 1) && p.has(&run, "spawned", "long", 1));
    let status = p.status(&run[..15]);
    assert_eq!(status["state"], "active");
    assert_eq!(status["tasks"][1]["state"], "running");
    assert_eq!(status["tasks"][2]["needs"][0], "long");
    assert!(status["workers"].as_array().unwrap().iter().any(|w| w["alive"] == true), "{status}");
    let text = p.run(&["status"]).out;
    assert!(text.contains("active") && text.contains("needs long") && !text.contains('\x1b'), "{text}");

    wait_for("the output", || p.run(&["logs"]).out.contains("begun"));
    let logs = p.run(&["logs"]).out;
    for line in [" quick  │ out\n", " quick !│ err\n", " long   │ begun\n"] {
        assert!(logs.contains(line), "{logs}");
    }
    assert_eq!(p.run(&["logs", "quick", "--run", &run]).out, "out\nerr\n");
    assert_eq!(p.run(&["result", "quick"]).out, "raw\x1b[2J", "to a pipe the bytes as they are");
    let path = p.run(&["result", "quick", "--path"]).out;
    assert!(Path::new(path.trim()).is_absolute() && Path::new(path.trim()).exists(), "{path}");
    let none = p.run(&["result", "long"]);
    assert_eq!((none.code, none.out.as_str()), (1, ""));
    assert!(none.err.contains("running"), "{none:?}");

    let events = p.run(&["events"]).out;
    assert!(events.lines().next().unwrap().contains("run_started"), "{events}");
    let raw = p.run(&["events", "--json"]).out;
    let first: Value = serde_json::from_str(raw.lines().next().unwrap()).unwrap();
    assert_eq!((&first["t"], &first["seq"]), (&"run_started".into(), &1.into()));

    // Whoever follows sees the end.
    let (mut follower, mut output) = start(&p, &["logs", "long", "-f"]);
    read_until(&mut output, "begun");
    let done = p.run(&["cancel", "behind"]);
    assert_eq!((done.code, done.out.as_str()), (0, "behind is cancelled\n"), "{done:?}");
    assert_eq!(p.status(&run)["state"], "active", "only the task was cancelled");
    let done = p.run(&["cancel"]);
    assert_eq!(done.code, 0);
    assert!(done.out.contains("is cancelled: 1 done, 2 cancelled"), "{done:?}");
    assert_eq!(follower.wait().unwrap().code(), Some(0));
    for again in [&["cancel"][..], &["cancel", "long"]] {
        let done = p.run(again);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.out.contains("nothing to cancel"), "{done:?}");
    }
    p.nobody_is_left();
}

fn worker_pids(p: &Project, run: &str) -> Vec<i32> {
    let events = p.events(run);
    let started = events.iter().filter(|e| e["t"] == "worker_started");
    started.map(|e| e["payload"]["pid"].as_i64().unwrap().try_into().unwrap()).collect()
}

fn kill_workers(p: &Project, run: &str) {
    for pid in worker_pids(p, run) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

#[test]
fn looking_at_a_run_whose_workers_were_killed_makes_it_finish() {
    let p = Project::new();
    p.write(
        "plan.json",
        r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "a", "shell": "echo x >> effects; test $CPW_ATTEMPT -gt 1 || sleep 300", "retries": 1,
             "backoff": {"initial": "10ms"}},
            {"id": "b", "shell": "sleep 300"},
            {"id": "c", "needs": ["a"], "shell": "echo after"}]}"#,
    );
    let run = p.detach("plan.json");
    wait_for("both tasks", || p.has(&run, "spawned", "a", 1) && p.has(&run, "spawned", "b", 1));
    kill_workers(&p, &run);
    wait_for("the workers to be dead", || {
        p.run(&["status", &run]).out.contains("all its workers are dead; started W")
            || p.status(&run)["state"] != "active"
            || p.has(&run, "lost", "a", 1)
    });
    wait_for("the run to end", || p.status(&run)["state"] == "failed");
    let status = p.status(&run);
    assert_eq!(status["tasks"][0]["state"], "done", "{status}");
    assert_eq!(status["tasks"][1]["state"], "lost", "no retries: at most once");
    assert_eq!(status["tasks"][2]["state"], "done");
    let lost = p.events(&run).iter().filter(|e| e["t"] == "lost").count();
    assert_eq!(lost, 2, "one outcome for each attempt");
    p.nobody_is_left();
}

#[test]
fn a_run_whose_workers_were_killed_can_be_cancelled() {
    let p = Project::new();
    p.write("plan.json", SLEEPERS);
    let run = p.detach("plan.json");
    wait_for("both tasks", || p.has(&run, "spawned", "a", 1) && p.has(&run, "spawned", "b", 1));
    kill_workers(&p, &run);
    let done = p.run(&["cancel"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.contains("is cancelled: "), "{done:?}");
    let ends = p.events(&run).iter().filter(|e| e["t"] == "lost" || e["t"] == "cancelled").count();
    assert_eq!(ends, 3, "one outcome for each task");
    p.nobody_is_left();
}

#[test]
fn a_run_whose_workers_die_while_they_are_asked_to_cancel_is_cancelled() {
    let p = Project::new();
    p.write("plan.json", SLEEPERS);
    let run = p.detach("plan.json");
    wait_for("both tasks", || p.has(&run, "spawned", "a", 1) && p.has(&run, "spawned", "b", 1));
    // Stopped where they wait, so that none holds the log, and alive when they are asked.
    let workers = worker_pids(&p, &run);
    let waits = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") S ");
    wait_for("the workers to wait", || workers.iter().all(waits));
    for &pid in &workers {
        kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    }
    let mut child = p.command(&["cancel"]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("the wish", || p.events(&run).iter().any(|e| e["t"] == "cancel_requested"));
    kill_workers(&p, &run);
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(said.contains("is cancelled: "), "{said}");
    p.nobody_is_left();
}

#[test]
fn the_command_that_follows_goes_on_when_all_workers_die_and_attempts_do_not_overlap() {
    let p = Project::new();
    // Each attempt writes a line at its beginning and every 20 ms; an overlap would mix them.
    p.write(
        "plan.json",
        r#"{"version": 1, "tasks": [{"id": "a", "retries": 1, "backoff": {"initial": "10ms"}, "shell":
            "i=0; while [ $i -lt 20 ] || [ $CPW_ATTEMPT -eq 1 ]; do echo $CPW_ATTEMPT >> effects; i=$((i+1)); sleep 0.02; done"}]}"#,
    );
    let (mut child, mut out) = start(&p, &["run", "plan.json"]);
    read_until(&mut out, "started a");
    let run = p.newest();
    wait_for("an effect", || std::fs::read_to_string(p.path().join("effects")).is_ok_and(|t| t.len() > 10));
    kill_workers(&p, &run);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{rest}");
    assert!(rest.contains("lost a") && rest.contains("started a (attempt 2)"), "{rest}");
    let effects = std::fs::read_to_string(p.path().join("effects")).unwrap();
    let second = effects.find('2').unwrap();
    assert!(!effects[second..].contains('1'), "attempt 1 went on beside attempt 2: {effects:?}");
    p.nobody_is_left();
}

#[test]
fn a_terminal_that_hangs_up_leaves_the_run_going_on() {
    let p = Project::new();
    p.write("plan.json", SHOWN);
    let (mut child, mut out) = start(&p, &["run", "plan.json"]);
    read_until(&mut out, "started b");
    let run = p.newest();
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGHUP).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(p.status(&run)["state"], "active");
    p.write("go", "");
    wait_for("the run to end", || p.status(&run)["state"] == "ok");
    p.nobody_is_left();
}

#[test]
fn output_and_events_are_followed_across_attempts_until_the_end() {
    let p = Project::new();
    p.write(
        "plan.json",
        r#"{"version": 1, "tasks": [{"id": "a", "retries": 1, "backoff": {"initial": "10ms"}, "shell":
            "echo try $CPW_ATTEMPT; until test -e go; do sleep 0.02; done; test $CPW_ATTEMPT -gt 1"}]}"#,
    );
    let run = p.detach("plan.json");
    let (mut logs, mut output) = start(&p, &["logs", "a", "-f"]);
    read_until(&mut output, "try 1");
    let (mut events, mut lines) = start(&p, &["events", "-f", "--json"]);
    read_until(&mut lines, "started");
    p.write("go", "");
    read_until(&mut output, "try 2");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("run_ended"), "{rest}");
    assert_eq!((logs.wait().unwrap().code(), events.wait().unwrap().code()), (Some(0), Some(0)));
    assert_eq!(p.run(&["logs", "a", "--run", &run]).out, "try 1\ntry 2\n");
    p.nobody_is_left();
}

#[test]
fn a_task_says_how_far_it_is_and_what_came_out() {
    let p = Project::new();
    p.write(
        "plan.json",
        r#"{"version": 1, "tasks": [
            {"id": "a", "shell": "cpw progress 40 --eta 30s --note half; cpw progress 41; until test -e go; do sleep 0.02; done; cpw progress 100; echo first; cpw summary 'five \u001b[31m findings'"},
            {"id": "b", "needs": ["a"], "shell": "cpw result a > got; env | grep ^CPW_ > env"}]}"#,
    );
    let run = p.detach("plan.json");
    wait_for("progress", || p.has(&run, "progress", "a", 1));
    let status = p.status(&run);
    assert_eq!(status["tasks"][0]["percent"], 40);
    assert_eq!(status["tasks"][0]["note"], "half");
    assert!(status["tasks"][0]["eta_s"].as_u64().unwrap() <= 30);
    p.write("go", "");
    wait_for("the run to end", || p.status(&run)["state"] == "ok");
    let events = p.events(&run);
    let said: Vec<_> = events.iter().filter(|e| e["t"] == "progress").map(|e| &e["payload"]["percent"]).collect();
    assert_eq!(said, [&Value::from(40), &Value::from(100), &Value::Null], "41 came less than a second after 40");
    assert_eq!(p.status(&run)["tasks"][0]["line"], "five findings");
    assert_eq!(std::fs::read_to_string(p.path().join("got")).unwrap(), "first\n");

    // A word of an attempt that is over changes nothing.
    let mut late = p.command(&["progress", "50"]);
    for line in std::fs::read_to_string(p.path().join("env")).unwrap().lines() {
        let (name, value) = line.split_once('=').unwrap();
        late.env(name, value);
    }
    let late = Done::of(late.output().unwrap());
    assert_eq!(late.code, 1, "{late:?}");
    assert!(late.err.contains("attempt 1 of b is over"), "{late:?}");
    assert_eq!(p.events(&run).len(), events.len());

    let outside = p.run(&["progress", "50"]);
    assert_eq!(outside.code, 3);
    assert!(outside.err.contains("CPW_RUN_DIR") && outside.err.contains("inside a task"), "{outside:?}");
    assert_eq!(p.run(&["summary", "x"]).code, 3);
    assert_eq!(p.run(&["progress", "101"]).code, 3);
}

#[test]
fn two_runs_at_once_do_not_mix() {
    let p = Project::new();
    p.write(
        "plan.json",
        r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "a", "shell": "echo $CPW_RUN"}, {"id": "b", "shell": "echo $CPW_RUN"},
            {"id": "c", "needs": ["a", "b"], "shell": "cpw result a; cpw result b"}]}"#,
    );
    let both = [start(&p, &["run", "plan.json"]), start(&p, &["run", "plan.json"])];
    for (mut child, mut out) in both {
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{text}");
        let id = text.split("] run ").nth(1).and_then(|t| t.split(':').next()).unwrap().to_owned();
        assert_eq!(p.run(&["result", "c", "--run", &id]).out, format!("{id}\n{id}\n"));
    }
    p.nobody_is_left();
}

#[test]
fn the_time_limit_of_a_task_does_not_reach_other_workers() {
    let p = Project::new();
    // W1 takes the first task and starts W2, which is then below it.
    p.write(
        "plan.json",
        r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "short", "shell": "sleep 300", "timeout": "300ms"},
            {"id": "other", "shell": "sleep 1; echo through"}]}"#,
    );
    let done = p.run(&["run", "plan.json"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.out.contains("done other"), "{}", done.out);
    assert!(!done.out.contains("lost"), "{}", done.out);
}

#[test]
fn a_damaged_run_is_shown_and_does_not_hide_the_others() {
    let p = Project::new();
    p.write("plan.json", r#"{"version": 1, "tasks": [{"id": "a", "shell": "true"}]}"#);
    assert_eq!(p.run(&["run", "plan.json"]).code, 0);
    let broken = p.newest();
    assert_eq!(p.run(&["run", "plan.json"]).code, 0);
    let folder = p.path().join(".claude/runs").join(&broken);
    let log = std::fs::read_to_string(folder.join("events.jsonl")).unwrap();
    std::fs::write(folder.join("events.jsonl"), log.replacen("\"seq\":3", "\"seq\":33", 1)).unwrap();
    std::fs::remove_file(folder.join("state.idx")).unwrap();
    let text = p.run(&["status"]).out;
    assert!(text.contains(&format!("{broken}  damaged: ")) && text.contains("✓ ok  1 done"), "{text}");
    let doctor = p.run(&["doctor"]);
    assert!(doctor.out.contains(&format!("damaged: {broken}")), "{doctor:?}");
    assert_eq!(p.run(&["status", &broken, "--json"]).code, 0);
}

#[test]
fn doctor_says_what_is_broken_with_1() {
    let p = Project::new();
    let fine = p.run(&["doctor"]);
    assert_eq!(fine.code, 0, "{fine:?}");
    p.write(".claude/cpw.json", r#"{"version": 1, "rules": [{"name": 5}]}"#);
    let broken = p.run(&["doctor"]);
    assert_eq!(broken.code, 1, "{broken:?}");
    assert!(broken.out.contains("$.rules[0].name") && broken.out.contains("cpw allow"), "{broken:?}");
}

#[test]
fn the_example_runs_on_the_files_of_this_repository() {
    let p = Project::new();
    let copied = Command::new("cp").arg("-R").arg(repository().join("src")).arg(p.path().join("src")).status().unwrap();
    assert!(copied.success());
    let plan = repository().join("examples/files.json");
    let done = p.run(&["run", plan.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{done:?}");
    let lines = std::fs::read_to_string(repository().join("src/main.rs")).unwrap().lines().count();
    let result = p.run(&["result", "lines"]).out;
    assert!(result.contains(&format!("{lines} ./src/main.rs")), "{result}");
    let report = p.run(&["result", "report"]).out;
    assert!(report.starts_with("# Files of this repository"), "{report}");
    assert!(done.out.contains("done report") && done.out.contains("lines of report on "), "{}", done.out);
    assert!(p.events(&p.newest()).iter().any(|e| e["t"] == "progress"), "progress is shown on the way");
}

/// A command on a terminal of 90 columns and 20 rows.
struct Terminal {
    child: Child,
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: std::thread::JoinHandle<()>,
}

impl Terminal {
    fn start(mut command: Command) -> Terminal {
        let size = Winsize { ws_row: 20, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let copy = || pty.slave.try_clone().unwrap();
        let child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
        // The reader's end comes when the last copy is closed.
        drop(command);
        drop(pty.slave);
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&bytes);
        let mut master = File::from(pty.master);
        let reader = std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = master.read(&mut chunk) {
                shared.lock().unwrap().extend_from_slice(&chunk[..n]);
            }
        });
        Terminal { child, bytes, reader }
    }

    fn shows(&self, text: &str) -> bool {
        screen_of(&self.bytes.lock().unwrap()).screen().contents().contains(text)
    }

    /// The exit code, what was written, and the last screen.
    fn end(mut self) -> (i32, String, vt100::Parser) {
        let code = self.child.wait().unwrap().code().unwrap_or(-1);
        self.reader.join().unwrap();
        let bytes = self.bytes.lock().unwrap();
        (code, String::from_utf8_lossy(&bytes).into_owned(), screen_of(&bytes))
    }
}

fn screen_of(bytes: &[u8]) -> vt100::Parser {
    let mut parser = vt100::Parser::new(20.try_into().unwrap(), 90.try_into().unwrap(), 200);
    parser.process(bytes);
    parser
}

const SHOWN: &str = r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
    {"id": "a", "shell": "cpw progress 40 --eta 60s --note halfway; until test -e go; do sleep 0.02; done; echo fine"},
    {"id": "b", "shell": "until test -e go; do sleep 0.02; done"},
    {"id": "c", "needs": ["a", "b"], "shell": "echo all"}]}"#;

#[test]
fn on_a_terminal_every_worker_has_a_line_and_what_is_done_scrolls_up() {
    let p = Project::new();
    p.write("plan.json", SHOWN);
    let mut command = p.command(&["run", "plan.json"]);
    command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
    let terminal = Terminal::start(command);
    for part in ["40 %  a ", "halfway", "  b ", "1 to come: c (needs a, b)", "0 of 3 done", "ETA 1 min", "ETA 58 s"] {
        wait_for(part, || terminal.shows(part));
    }
    p.write("go", "");
    let (code, written, parser) = terminal.end();
    let screen = parser.screen().contents();
    assert_eq!(code, 0, "{screen}");
    for part in ["✓ W", "done a in ", ": fine", "✓ run ok: all tasks are done", "3 done in "] {
        assert!(screen.contains(part), "{part} not in\n{screen}");
    }
    for gone in ["40 %", "to come", "of 3 done"] {
        assert!(!screen.contains(gone), "{gone} is still on\n{screen}");
    }
    assert!(!parser.screen().hide_cursor(), "the cursor is shown again");
    assert!(written.rfind("\x1b[?7h") > written.rfind("\x1b[?7l"), "long lines wrap again");
    assert!(written.contains("\x1b[32m"), "colours");
}

#[test]
fn ctrl_c_on_a_terminal_leaves_it_as_it_was() {
    let p = Project::new();
    p.write("plan.json", SHOWN);
    let mut command = p.command(&["run", "plan.json"]);
    command.env("TERM", "xterm").env("NO_COLOR", "1");
    let terminal = Terminal::start(command);
    wait_for("both tasks", || terminal.shows("40 %") && terminal.shows("  b "));
    kill(Pid::from_raw(terminal.child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    let (code, written, parser) = terminal.end();
    let screen = parser.screen().contents();
    assert_eq!(code, 130, "{screen}");
    assert!(screen.contains("! cancelling") && screen.contains("3 cancelled in "), "{screen}");
    assert!(!parser.screen().hide_cursor());
    let colours = regex::Regex::new("\x1b\\[[0-9;]*m").unwrap();
    assert!(!colours.is_match(&written), "NO_COLOR is heard");
    p.nobody_is_left();
}

#[test]
fn a_dumb_terminal_gets_plain_lines() {
    let p = Project::new();
    p.write("plan.json", SHOWN);
    p.write("go", "");
    let mut command = p.command(&["run", "plan.json"]);
    command.env("TERM", "dumb");
    let (code, written, _) = Terminal::start(command).end();
    assert_eq!(code, 0, "{written}");
    assert!(!written.contains('\x1b') && written.contains("] W1 started a"), "{written}");
}

#[test]
fn several_who_find_all_workers_dead_do_not_take_each_others_worker_for_dead() {
    for _ in 0..3 {
        let p = Project::new();
        p.write(
            "plan.json",
            r#"{"version": 1, "limits": {"max_workers": 2}, "tasks": [
                {"id": "a", "shell": "test $CPW_ATTEMPT = 1 && sleep 300; sleep 0.3; echo ok", "retries": 1,
                 "backoff": {"initial": "1ms"}},
                {"id": "b", "shell": "test $CPW_ATTEMPT = 1 && sleep 300; sleep 0.3; echo ok", "retries": 1,
                 "backoff": {"initial": "1ms"}}]}"#,
        );
        let run = p.detach("plan.json");
        wait_for("both tasks", || p.has(&run, "spawned", "a", 1) && p.has(&run, "spawned", "b", 1));
        kill_workers(&p, &run);
        let mut lookers: Vec<_> =
            (0..4).map(|_| p.command(&["status", &run]).stdout(Stdio::null()).spawn().unwrap()).collect();
        for looker in &mut lookers {
            assert!(looker.wait().unwrap().success());
        }
        // A look may come before the last worker was quite dead: the next one finds it.
        wait_for("the run to end", || p.status(&run)["state"] != "active");
        for task in ["a", "b"] {
            assert!(p.has(&run, "done", task, 2), "{task}: {:#?}", p.events(&run));
        }
        p.nobody_is_left();
    }
}

#[test]
fn a_run_folder_that_came_with_the_project_is_inert() {
    let p = Project::new();
    p.write("plan.json", r#"{"version": 1, "tasks": [{"id": "a", "shell": "echo x >> effects; sleep 300"}]}"#);
    let run = p.detach("plan.json");
    wait_for("the task", || p.has(&run, "spawned", "a", 1));
    // What a clone or an archive would bring: the same bytes at another place, its workers' locks free.
    let foreign = Project::new();
    let (from, to) = (p.path().join(".claude/runs"), foreign.path().join(".claude"));
    assert!(Command::new("cp").arg("-r").args([from, to]).status().unwrap().success());
    let before = foreign.events(&run);
    // The state directory is the same user's.
    let cpw = |args: &[&str]| {
        let mut command = foreign.command(args);
        Done::of(command.env("CPW_STATE_DIR", p.tmp.path().join("state")).output().unwrap())
    };
    let looked = cpw(&["status", &run]);
    assert!(looked.out.contains("was not made by your cpw"), "{looked:?}");
    assert_eq!(cpw(&["cancel", "--run", &run]).code, 3);
    assert_ne!(cpw(&["worker", "--run", &run]).code, 0);
    assert_ne!(cpw(&["worker", "--run", &run, "--task", "a", "--force"]).code, 0);
    assert_eq!(foreign.events(&run), before, "nothing is written to it");
    assert!(!foreign.path().join("effects").exists(), "nothing of it is run");
    assert!(!p.events(&run).iter().any(|e| e["t"] == "lost"), "and the original goes on");
    assert_eq!(p.run(&["cancel", "--run", &run]).code, 0);
    p.nobody_is_left();
}

#[test]
fn output_that_is_lost_is_a_failure() {
    let p = Project::new();
    p.write("plan.json", r#"{"version": 1, "tasks": [{"id": "a", "shell": "echo x"}]}"#);
    assert_eq!(p.run(&["run", "plan.json"]).code, 0);
    for args in [&["status", "--json"][..], &["result", "a"], &["schema"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        assert_eq!(p.command(args).stdout(full).stderr(Stdio::null()).status().unwrap().code(), Some(1), "{args:?}");
    }
}
