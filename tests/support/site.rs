//! A project in which plans run, for tests that do something to those who run them: workers and tasks are found by the log,
//! and everything that was ever started here by its environment and its directory. At the end the log is judged by code that
//! shares nothing with the program, and nobody may be left.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cpw::sys::process;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::ledger::Ledger;
use super::scratch::{Done, Scratch};

/// Longest wait for anything: what hangs does not end at all, and a busy machine may take its time.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Defines `beat` in a task's script: it writes down which attempt of what was at work.
pub(crate) const BEAT: &str = r#"beat() { echo "$CPW_TASK $CPW_ATTEMPT" >>"$HOME/effects"; }; "#;

/// Makes a worker that is started stay unborn: the run is then there, and nobody works on it.
const UNBORN: [&str; 6] = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=?fork,?vfork,clone,?clone3:error=EAGAIN"];

/// The project.
pub(crate) struct Site {
    pub(crate) scratch: Scratch,
    _folder: tempfile::TempDir,
}

impl Site {
    pub(crate) fn new() -> Site {
        let folder = tempfile::Builder::new().prefix("cpw-site-").tempdir().expect("a folder");
        let scratch = Scratch::new(&folder.path().join("s"));
        Site { scratch, _folder: folder }
    }

    /// Writes the plan that [`Site::detach`] starts.
    pub(crate) fn plan(&self, plan: &Value) {
        self.scratch.write("plan.json", &plan.to_string());
    }

    /// Writes a program of the project.
    pub(crate) fn program(&self, name: &str, text: &str) -> PathBuf {
        self.scratch.write(name, text);
        let path = self.scratch.project().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a file of ours");
        path
    }

    /// A file in the home, which every process here knows as `$HOME`.
    pub(crate) fn home(&self, name: &str) -> PathBuf {
        self.scratch.path("home").join(name)
    }

    /// What is in a file of the home; nothing where there is none.
    pub(crate) fn said(&self, name: &str) -> String {
        fs::read_to_string(self.home(name)).unwrap_or_default()
    }

    /// Makes the file that tasks wait for.
    pub(crate) fn go(&self, name: &str) {
        fs::write(self.home(name), "").expect("a file");
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.scratch.command(&[], args)
    }

    /// Runs cpw to its end.
    pub(crate) fn cpw(&self, args: &[&str]) -> Done {
        self.scratch.run(self.command(args), PATIENCE)
    }

    /// Starts a run in the background; its id.
    pub(crate) fn detach(&self, plan: &Value) -> String {
        self.plan(plan);
        let done = self.cpw(&["run", "plan.json", "--detach"]);
        assert!(done.is_ok(), "{done:?}");
        done.out.trim().to_owned()
    }

    /// A run that nobody works on yet. Needs strace.
    pub(crate) fn unborn(&self, plan: &Value) {
        self.plan(plan);
        let command = self.scratch.command(&UNBORN.map(str::to_owned), &["run", "plan.json", "--detach"]);
        let done = self.scratch.run(command, PATIENCE);
        assert_eq!(done.status.code(), Some(1), "nobody can be started: {done:?}");
    }

    /// Starts a worker as our own child.
    pub(crate) fn worker(&self, outer: &[String]) -> Child {
        let mut command = self.scratch.command(outer, &["worker"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a worker")
    }

    /// Waits until `what` holds.
    pub(crate) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            let log = || fs::read_to_string(self.scratch.log()).unwrap_or_default();
            assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}; left: {:?}; log:\n{}", self.left(), log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The events of the newest run, as they are in its log.
    pub(crate) fn events(&self) -> Vec<Map<String, Value>> {
        self.scratch.ledger().expect("a log").events
    }

    pub(crate) fn has(&self, kind: &str, task: &str, attempt: u64) -> bool {
        self.of(kind, task).iter().any(|e| e["attempt"] == attempt)
    }

    /// The events of a kind about a task.
    pub(crate) fn of(&self, kind: &str, task: &str) -> Vec<Map<String, Value>> {
        self.events().into_iter().filter(|e| e["t"] == kind && e.get("task").is_some_and(|t| t == task)).collect()
    }

    pub(crate) fn until_spawned(&self, task: &str, attempt: u64) {
        self.until(&format!("attempt {attempt} of {task}"), || self.has("spawned", task, attempt));
    }

    /// The process of the worker that has begun the newest attempt of a task.
    pub(crate) fn worker_of(&self, task: &str) -> i32 {
        let started = self.of("started", task).pop().expect("an attempt");
        let events = self.events();
        let enlisted = events.iter().find(|e| e["t"] == "worker_started" && e["worker"] == started["worker"]);
        pid(&enlisted.expect("a worker")["payload"])
    }

    /// The first process of the newest attempt of a task.
    pub(crate) fn process_of(&self, task: &str) -> i32 {
        pid(&self.of("spawned", task).pop().expect("a process")["payload"])
    }

    /// Kills the worker that runs a task, and waits until it is dead.
    pub(crate) fn kill_worker_of(&self, task: &str) -> i32 {
        let pid = self.worker_of(task);
        signal(pid, Signal::SIGKILL);
        self.until("the death of a worker", || !lives(pid));
        pid
    }

    /// What `cpw status` says of the newest run. It also does what is left to do.
    pub(crate) fn status(&self) -> Value {
        let run = self.scratch.runs().pop().expect("a run");
        let done = self.cpw(&["status", &run.file_name().expect("an id").to_string_lossy(), "--json"]);
        assert!(done.is_ok(), "{done:?}");
        let mut all: Value = serde_json::from_str(&done.out).expect("JSON");
        all["runs"][0].take()
    }

    /// Processes that were started here: by their directory, and by their environment, which an attempt can clear.
    pub(crate) fn left(&self) -> Vec<String> {
        let home = format!("HOME={}", self.scratch.path("home").display());
        let here = self.scratch.processes();
        let is_ours = |pid: i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            here.contains(&Pid::from_raw(pid)) || environment.split(|b| *b == 0).any(|entry| entry == home.as_bytes())
        };
        let line = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
        let ours = process::all_pids().into_iter().filter(|pid| lives(*pid) && is_ours(*pid));
        ours.map(|pid| format!("{pid}: {}", line(pid))).collect()
    }

    /// Waits until the newest run is over and nobody is left, without doing anything for it, and judges its log.
    pub(crate) fn end(&self, status: &str) -> Ledger {
        self.until("the end of the run", || self.scratch.ledger().is_ok_and(|ledger| ledger.is_ended()));
        self.judge(status)
    }

    /// The same, looking again and again as a person would.
    pub(crate) fn end_looked_at(&self, status: &str) -> Ledger {
        self.until("the end of the run", || self.status()["state"] != "active");
        self.judge(status)
    }

    fn judge(&self, status: &str) -> Ledger {
        self.until("everybody to leave", || self.left().is_empty());
        let ledger = self.scratch.ledger().expect("a log");
        let plan = fs::read(self.scratch.log().with_file_name("plan.json")).expect("a plan");
        let plan: Value = serde_json::from_slice(&plan).expect("JSON");
        let tasks = plan["tasks"].as_array().expect("tasks");
        let tasks: Vec<&str> = tasks.iter().map(|t| t["id"].as_str().expect("an id")).collect();
        assert_eq!(ledger.check_ended(&tasks), Ok(()), "{:#?}", ledger.events);
        let end = ledger.events.iter().find(|e| e["t"] == "run_ended").expect("an end");
        assert_eq!(end["payload"]["status"], status, "{:#?}", ledger.events);
        self.no_overlap();
        ledger
    }

    /// What tasks wrote down by `beat`: no attempt did anything once a later one of its task had begun.
    pub(crate) fn no_overlap(&self) {
        let effects = self.said("effects");
        let mut last: BTreeMap<&str, u64> = BTreeMap::new();
        for line in effects.lines() {
            let (task, attempt) = line.split_once(' ').expect("a task and its attempt");
            let attempt: u64 = attempt.parse().expect("a number");
            let newest = last.entry(task).or_default();
            assert!(attempt >= *newest, "attempt {attempt} of {task} went on beside {newest}:\n{effects}");
            *newest = attempt;
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Whatever a failed test left running, also outside the project's folder.
        for line in self.left() {
            if let Some(pid) = line.split(':').next().and_then(|pid| pid.parse().ok()) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
    }
}

/// The process that an event's payload names.
pub(crate) fn pid(payload: &Value) -> i32 {
    payload["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a pid")
}

/// Whether a process is there and no zombie.
pub(crate) fn lives(pid: i32) -> bool {
    process::identity_of(pid).is_some_and(|p| process::alive(&p))
}

/// The state of a process, as a letter: `T` is stopped, `Z` a zombie.
pub(crate) fn state(pid: i32) -> Option<char> {
    process::Stat::of(pid).map(|stat| stat.state)
}

pub(crate) fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

/// A task with a script.
pub(crate) fn shell(id: &str, script: &str) -> Value {
    json!({"id": id, "shell": format!("{BEAT}{script}")})
}

/// The same with further keys.
pub(crate) fn shell_with(id: &str, more: Value, script: &str) -> Value {
    let mut task = shell(id, script);
    let Value::Object(more) = more else { panic!("keys of a task") };
    task.as_object_mut().expect("an object").extend(more);
    task
}

/// A plan of these tasks for so many workers.
pub(crate) fn plan_of(workers: u32, tasks: &[Value]) -> Value {
    json!({"version": 1, "limits": {"max_workers": workers}, "tasks": tasks})
}

/// A script that waits until the test makes a file in the home.
pub(crate) fn awaits(name: &str) -> String {
    format!("until [ -e \"$HOME/{name}\" ]; do sleep 0.02; done")
}
