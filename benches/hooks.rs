//! What a hook costs as a whole process: from the moment it is started to the moment it has left and closed its stdout,
//! against a static `true` in C that is built on the spot.
//!
//! `cargo bench --bench hooks`. All cases take turns, in an order that rotates by round, so that whatever else the machine
//! does hits all of them alike; what counts is the ratio. The payload comes through a socket pair, as the client sends it. With
//! the musl target built as well (`cargo build --release --target x86_64-unknown-linux-musl`), both binaries are measured;
//! `CPW_BENCH_OTHER` names one more, such as the one before a change.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot go on says so and ends")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

#[path = "../tests/support/long.rs"]
mod long;

use std::cell::RefCell;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use cpw::logic::view::View;
use cpw::model::event::Event;
use cpw::store::log;
use nix::libc;
use serde_json::{Value, json};

use crate::long::History;

/// Rounds, each with one call of every case; the slow cases stand in every round as well.
const ROUNDS: usize = 200;

/// The most a tool hook, and the prompt hook with three workers, may take, in milliseconds.
const TOOL_MS: f64 = 5.0;
const PROMPT_MS: f64 = 50.0;

/// Calls of a hook that has to make its index from a log of a million events.
const COLD: usize = 7;

/// How long a run may take to end.
const LIMIT: Duration = Duration::from_secs(30);

/// Calls whose ratios are asked for.
const TRUE: &str = "true (static glibc)";
const VERSION: &str = "--version, by clap";
const IDLE: &str = "pre-tool-use, no session record, 2 KB";
const HUNDRED: &str = "pre-tool-use, 100 events, 2 KB";
const MILLION: &str = "pre-tool-use, 1,000,000 events, 2 KB";
const TAIL: &str = "pre-tool-use, 1,000,000 events, 1,000 not indexed";
const LARGE: &str = "pre-tool-use, 1,000,000 events, 1 MB";

const PROMPT: &str = "Analyze api.py, db.py and ui.py";
const OTHER_PROMPT: &str = "What is the capital of Peru?";
/// A prompt that the rule matches and whose tasks wait for the end of the benchmark.
const HOLD_PROMPT: &str = "Please hold api.py, db.py and ui.py";

fn main() {
    if !std::env::args().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench hooks` runs it");
        return;
    }
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let Some(base) = static_true(folder.path()) else {
        println!("SKIPPED: `cc -O2 -static` builds nothing here, and without a base there are no ratios");
        return;
    };
    let mut binaries = vec![("default", PathBuf::from(env!("CARGO_BIN_EXE_cpw")))];
    match musl() {
        Some(path) => binaries.push(("musl", path)),
        None => println!("SKIPPED: no musl binary; `cargo build --release --target x86_64-unknown-linux-musl`"),
    }
    if let Some(path) = std::env::var_os("CPW_BENCH_OTHER") {
        binaries.push(("other", path.into()));
    }
    let stages: Vec<Stage> = binaries
        .iter()
        .map(|(name, program)| {
            // What a linker has just written starts more slowly than the same bytes copied.
            let copy = folder.path().join(format!("cpw-{name}"));
            fs::copy(program, &copy).expect("a file in our folder");
            Stage::new(&folder.path().join(name), name, &copy)
        })
        .collect();
    let mut cases = vec![Case::plain("C", TRUE, &base)];
    match empty_musl(folder.path()) {
        Some(path) => cases.push(Case::plain("Rust", "an empty program, musl", &path)),
        None => println!("SKIPPED: no empty program for musl; `rustup target add x86_64-unknown-linux-musl`"),
    }
    for stage in &stages {
        cases.extend(stage.cases());
    }

    // Once without counting: the first start of a program reads it from the disk.
    for case in &mut cases {
        case.once();
    }
    for round in 0..ROUNDS {
        for turn in 0..cases.len() {
            let n = cases.len();
            let case = &mut cases[(round + turn) % n];
            let took = case.once();
            case.took.push(took);
        }
    }
    report(&cases);
    for stage in &stages {
        report_ratios(stage.name, &cases);
    }
    for stage in &stages {
        stage.report_cold();
        stage.report_workers();
    }
}

/// What is asked of the hooks relative to other programs of the same rounds.
fn report_ratios(binary: &'static str, cases: &[Case]) {
    let took = |binary: &str, name: &str| {
        cases.iter().find(|c| c.binary == binary && c.name == name).map_or(f64::NAN, Case::median)
    };
    let (base, version) = (took("C", TRUE), took(binary, VERSION));
    // The same binary without glibc has less to start.
    let musl = binary == "musl";
    let million = took(binary, MILLION);
    println!();
    println!("{binary}: ratios");
    for (what, ratio, target) in [
        (IDLE, took(binary, IDLE) / base, if musl { 0.8 } else { 1.45 }),
        (MILLION, million / base, if musl { 0.9 } else { 1.6 }),
        ("the same to its own --version", million / version, 1.0),
        ("the same to 100 events", million / took(binary, HUNDRED), 1.1),
        (TAIL, took(binary, TAIL) / base, 2.7),
        (LARGE, took(binary, LARGE) / base, 4.5),
    ] {
        let verdict = if ratio <= target { "ok" } else { "MISSED" };
        println!("  {what:<52} {ratio:>7.2} <= {target} {verdict}");
    }
}

fn report(cases: &[Case]) {
    let base = cases[0].median();
    println!("whole processes, medians of {ROUNDS} rounds, variants take turns; ratio to a static `true` in C");
    println!("{:<8} {:<52} {:>8} {:>8} {:>7} {:>8}", "binary", "call", "ms", "p95 ms", "ratio", "target");
    for case in cases {
        let (ms, p95) = (case.median() * 1e3, case.quantile(0.95) * 1e3);
        let verdict = match case.target {
            Some(target) if ms <= target => format!("<= {target} ok"),
            Some(target) => format!("<= {target} MISSED"),
            None => String::new(),
        };
        let ratio = case.median() / base;
        println!("{:<8} {:<52} {ms:>8.2} {p95:>8.2} {ratio:>7.2} {verdict:>8}", case.binary, case.name);
    }
}

/// A `true` that is as small as C makes it: what starting a process costs here.
fn static_true(folder: &Path) -> Option<PathBuf> {
    let (source, program) = (folder.join("true.c"), folder.join("true"));
    fs::write(&source, "int main(void) { return 0; }\n").expect("a file in our folder");
    let built = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).output();
    built.is_ok_and(|out| out.status.success()).then(|| copied(&program))
}

/// A copy of a program: what a linker has just written starts more slowly than the same bytes copied.
fn copied(program: &Path) -> PathBuf {
    let copy = program.with_extension("copied");
    fs::copy(program, &copy).expect("a file in our folder");
    copy
}

/// The musl binary, where somebody has built it.
fn musl() -> Option<PathBuf> {
    let release = Path::new(env!("CARGO_BIN_EXE_cpw")).parent()?;
    let path = release.parent()?.parent()?.join("x86_64-unknown-linux-musl/release/cpw");
    path.is_file().then_some(path)
}

/// An empty program of Rust, linked with musl, where that target is installed.
fn empty_musl(folder: &Path) -> Option<PathBuf> {
    let (source, program) = (folder.join("empty.rs"), folder.join("empty"));
    fs::write(&source, "fn main() {}\n").expect("a file in our folder");
    let target = ["--target", "x86_64-unknown-linux-musl", "-O", "-C", "panic=abort", "-o"];
    let built = Command::new("rustc").args(target).arg(&program).arg(&source).output();
    built.is_ok_and(|out| out.status.success()).then(|| copied(&program))
}

type Step = Box<dyn FnMut(&mut Call)>;

/// One call, as the client makes it.
#[derive(Clone)]
struct Call {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(&'static str, OsString)>,
    cwd: PathBuf,
    stdin: Vec<u8>,
}

impl Call {
    /// Makes the call and returns what it wrote and how long it took.
    fn run(&self) -> (Vec<u8>, Duration) {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(self.env.iter().map(|(n, v)| (n, v))).current_dir(&self.cwd);
        let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(Stdio::null());
        let begun = Instant::now();
        let mut child = command.spawn().expect("it starts");
        // Our copy of its end goes with the command.
        drop(command);
        // Whoever does not read its payload has closed its end by now, which is no error.
        drop(ours.write_all(&self.stdin));
        drop(ours.shutdown(Shutdown::Write));
        let mut out = Vec::new();
        child.stdout.take().expect("a pipe").read_to_end(&mut out).expect("it writes");
        let status = child.wait().expect("our own child");
        let took = begun.elapsed();
        assert!(status.success(), "{} {:?}: {status}", self.program.display(), self.args);
        (out, took)
    }
}

/// Something to measure.
struct Case {
    binary: &'static str,
    name: String,
    call: Call,
    before: Step,
    after: Step,
    /// What its answer must contain; `None`: it must be empty.
    says: Option<&'static str>,
    target: Option<f64>,
    took: Vec<f64>,
}

impl Case {
    fn new(binary: &'static str, name: &str, call: Call) -> Self {
        Self {
            binary,
            name: name.to_owned(),
            call,
            before: Box::new(|_| {}),
            after: Box::new(|_| {}),
            says: None,
            target: None,
            took: Vec::new(),
        }
    }

    /// A program without arguments that does nothing.
    fn plain(binary: &'static str, name: &str, program: &Path) -> Self {
        let call =
            Call { program: program.to_owned(), args: Vec::new(), env: Vec::new(), cwd: "/".into(), stdin: Vec::new() };
        Self::new(binary, name, call)
    }

    fn target(mut self, ms: f64) -> Self {
        self.target = Some(ms);
        self
    }

    fn says(mut self, needle: &'static str) -> Self {
        self.says = Some(needle);
        self
    }

    fn before(mut self, step: impl FnMut(&mut Call) + 'static) -> Self {
        self.before = Box::new(step);
        self
    }

    fn after(mut self, step: impl FnMut(&mut Call) + 'static) -> Self {
        self.after = Box::new(step);
        self
    }

    /// One call, in seconds.
    fn once(&mut self) -> f64 {
        (self.before)(&mut self.call);
        let (out, took) = self.call.run();
        let out = String::from_utf8_lossy(&out);
        let as_expected = self.says.map_or(out.is_empty(), |needle| out.contains(needle));
        assert!(as_expected, "{} {}: {out:?}", self.binary, self.name);
        (self.after)(&mut self.call);
        took.as_secs_f64()
    }

    fn quantile(&self, part: f64) -> f64 {
        quantile(&self.took, part)
    }

    fn median(&self) -> f64 {
        self.quantile(0.5)
    }
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
    let at = ((sorted.len().saturating_sub(1)) as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// The places that one binary is measured in. Dropping it lets the tasks end that wait.
struct Stage {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
    /// Without a config.
    bare: Place,
    /// With rules, and an open run whose tasks wait.
    held: Place,
    /// With a finished run: what is delivered is undone before each call.
    finished: Place,
    /// With an open run of 100 events, of 1,000,000, and of as many of which 1,000 are not in the index.
    hundred: History,
    million: History,
    tail: History,
    /// With rules; each prompt gets a session and a project of its own below it.
    fresh: PathBuf,
}

/// A project with its user's state directory and a session.
#[derive(Clone)]
struct Place {
    project: PathBuf,
    state: PathBuf,
    session: String,
}

impl Place {
    fn new(root: &Path, with_config: bool) -> Self {
        let project = root.join("project");
        let state = root.join("state");
        for folder in [&project, &state, &project.join(".claude")] {
            fs::create_dir_all(folder).expect("a folder of ours");
        }
        fs::set_permissions(&state, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("a folder of ours");
        for file in ["api.py", "db.py", "ui.py", "other.py"] {
            fs::write(project.join(file), "# a module\n").expect("a file of ours");
        }
        if with_config {
            nix::unistd::mkfifo(&project.join("hold"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
            fs::write(project.join(".claude/cpw.json"), config().to_string()).expect("a file of ours");
        }
        Self { project, state, session: uuid::Uuid::new_v4().to_string() }
    }

    fn env(&self) -> Vec<(&'static str, OsString)> {
        vec![
            ("HOME", self.state.clone().into()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
            ("LANG", "C.UTF-8".into()),
            ("CPW_STATE_DIR", self.state.clone().into()),
            ("CLAUDE_PROJECT_DIR", self.project.clone().into()),
            ("CLAUDE_CODE_SESSION_ID", self.session.clone().into()),
            ("CLAUDE_CODE_ENTRYPOINT", "sdk-cli".into()),
        ]
    }

    fn call(&self, program: &Path, args: &[&str], payload: &Value) -> Call {
        Call {
            program: program.to_owned(),
            args: args.iter().map(OsString::from).collect(),
            env: self.env(),
            cwd: self.project.clone(),
            stdin: format!("{payload}\n").into_bytes(),
        }
    }

    fn payload(&self, event: &str, more: Value) -> Value {
        let mut payload = json!({
            "session_id": self.session,
            "transcript_path": self.state.join("transcript.jsonl"),
            "cwd": self.project,
            "prompt_id": uuid::Uuid::new_v4().to_string(),
            "permission_mode": "default",
            "hook_event_name": event,
        });
        if let (Value::Object(payload), Value::Object(more)) = (&mut payload, more) {
            payload.extend(more);
        }
        payload
    }

    fn prompt(&self, prompt: &str) -> Value {
        self.payload("UserPromptSubmit", json!({"prompt": prompt}))
    }

    /// A call of Edit on a file that nobody has claimed, of about `bytes` bytes, before or after it ran.
    fn tool(&self, event: &str, bytes: usize) -> Value {
        let filler = "let value = \"some text\\n\"; // ".repeat(bytes / 28 / 2);
        let input = json!({"file_path": self.project.join("other.py"), "old_string": filler, "new_string": filler});
        let more = json!({"tool_name": "Edit", "tool_use_id": "toolu_01", "tool_input": input});
        self.payload(event, more)
    }

    fn allow(&self, program: &Path) {
        let mut call = self.call(program, &["allow", "--yes"], &Value::Null);
        // Only a person approves: below a client it refuses.
        call.env.retain(|(name, _)| !name.starts_with("CLAUDE"));
        call.run();
    }

    /// The log of its only run.
    fn log(&self) -> Option<PathBuf> {
        let runs = fs::read_dir(self.project.join(".claude/runs")).ok()?;
        runs.flatten().map(|e| e.path().join("events.jsonl")).find(|p| p.is_file())
    }

    fn events(&self) -> Vec<Value> {
        let text = self.log().and_then(|p| fs::read_to_string(p).ok()).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    fn count(&self, kind: &str) -> usize {
        self.events().iter().filter(|e| e["t"] == kind).count()
    }

    /// Waits until the run has ended and all its workers have left.
    fn wait_until_over(&self) {
        wait_for("a run does not end", || {
            self.count("run_ended") == 1 && self.count("worker_started") == self.count("worker_exited")
        });
    }
}

fn wait_for(what: &str, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !ready() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn config() -> Value {
    let rule = |name: &str, word: &str, run: Value| {
        json!({
            "name": name,
            "when": {"prompt": format!("(?i)\\b{word}\\b"), "files": {"min": 2}},
            "for_each": "files",
            "tasks": [{"id": format!("{name}-{{{{item.stem}}}}"), "run": run, "claims": ["{{item}}"]}],
        })
    };
    // A FIFO that nobody writes to: the task waits at no cost until somebody opens it.
    let rules = [rule("analyze", "analyze", json!(["sleep", "0.02"])), rule("hold", "hold", json!(["cat", "hold"]))];
    json!({"version": 1, "rules": rules})
}

impl Stage {
    fn new(root: &Path, name: &'static str, program: &Path) -> Self {
        let indexed = |root: &Path, events| {
            let history = History::new(root, events);
            history.save_index();
            history
        };
        let mut stage = Self {
            name,
            program: program.to_owned(),
            root: root.to_owned(),
            bare: Place::new(&root.join("bare"), false),
            held: Place::new(&root.join("held"), true),
            finished: Place::new(&root.join("finished"), true),
            hundred: indexed(&root.join("hundred"), 100),
            million: indexed(&root.join("million"), 1_000_000),
            tail: indexed(&root.join("tail"), 999_000),
            fresh: root.join("fresh"),
        };
        stage.tail.grow(1000);
        let started = |place: &Place, prompt: &str| {
            place.allow(program);
            let (out, _) = place.call(program, &["user-prompt-submit"], &place.prompt(prompt)).run();
            assert!(String::from_utf8_lossy(&out).contains("3 tasks"), "{}", String::from_utf8_lossy(&out));
        };
        started(&stage.held, HOLD_PROMPT);
        wait_for("the waiting tasks do not start", || stage.held.count("spawned") == 3);
        started(&stage.finished, PROMPT);
        stage.finished.wait_until_over();
        stage
    }

    fn cases(&self) -> Vec<Case> {
        let (bare, held, program) = (&self.bare, &self.held, self.program.as_path());
        let case = |name: &str, call| Case::new(self.name, name, call);
        let tool =
            |place: &Place, hook: &[&str], event: &str, bytes| place.call(program, hook, &place.tool(event, bytes));
        let mut cases = vec![case(VERSION, bare.call(program, &["--version"], &Value::Null)).says("cpw ")];
        for (name, history, bytes) in [
            (HUNDRED, &self.hundred, 2_000),
            (MILLION, &self.million, 2_000),
            (TAIL, &self.tail, 2_000),
            (LARGE, &self.million, 1_000_000),
        ] {
            cases.push(case(name, self.in_history(history, bytes)).target(TOOL_MS));
        }
        for (bytes, size) in [(2_000, "2 KB"), (1_000_000, "1 MB")] {
            let pre = tool(bare, &["pre-tool-use"], "PreToolUse", bytes);
            cases.push(case(&format!("pre-tool-use, no session record, {size}"), pre).target(TOOL_MS));
            let pre = tool(held, &["pre-tool-use"], "PreToolUse", bytes);
            cases.push(case(&format!("pre-tool-use, open run, other file, {size}"), pre).target(TOOL_MS));
            let post = tool(held, &["post-tool-use", "--batched"], "PostToolUse", bytes);
            cases.push(case(&format!("post-tool-use --batched, open run, {size}"), post).target(TOOL_MS));
        }
        let batch = held.payload("PostToolBatch", json!({"tool_calls": []}));
        let batch = held.call(program, &["post-tool-batch"], &batch);
        cases.push(case("post-tool-batch, open run, no news", batch).target(TOOL_MS));
        cases.extend(self.stops());
        cases.extend(self.prompts());
        cases
    }

    fn in_history(&self, history: &History, bytes: usize) -> Call {
        Call {
            program: self.program.clone(),
            args: vec!["pre-tool-use".into()],
            env: history.env().into_iter().map(|(name, value)| (name, value.into())).collect(),
            cwd: history.project.clone(),
            stdin: history.call(bytes),
        }
    }

    /// A hook that finds no index behind a million events, and the next one, against all lines decoded in this process.
    fn report_cold(&self) {
        let call = self.in_history(&self.million, 2_000);
        let (mut whole, mut cold, mut next) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..COLD {
            whole.push(replay(&self.million));
            self.million.remove_index();
            cold.push(call.run().1.as_secs_f64());
            assert!(self.million.is_indexed(), "{}: the hook left no index", self.name);
            next.push(call.run().1.as_secs_f64());
        }
        let [whole, cold, next] = [whole, cold, next].map(|took| quantile(&took, 0.5));
        let verdict = if cold / whole <= 0.6 { "ok" } else { "MISSED" };
        println!();
        println!("{}: 1,000,000 events without an index, medians of {COLD}", self.name);
        println!("  all lines decoded and folded, in process {:>20.1} ms", whole * 1e3);
        println!(
            "  the hook, whole process, makes the index {:>20.1} ms, ratio {:.2} <= 0.6 {verdict}",
            cold * 1e3,
            cold / whole
        );
        println!("  the next hook {:>47.2} ms", next * 1e3);
    }

    /// Stop on a finished run: with everything to say, and with everything said.
    fn stops(&self) -> [Case; 2] {
        let place = &self.finished;
        let call = place.call(&self.program, &["stop"], &place.payload("Stop", json!({"stop_hook_active": false})));
        let log = place.log().expect("the run that has just ended");
        let record = place.state.join("sessions").join(&place.session);
        let snapshot = || (fs::read(&log).expect("the log"), fs::read(&record).expect("the session's record"));
        let undelivered = snapshot();
        call.run();
        let delivered = snapshot();
        let restore = |to: (Vec<u8>, Vec<u8>)| {
            let (log, record) = (log.clone(), record.clone());
            move |_: &mut Call| {
                fs::write(&log, &to.0).expect("our own file");
                fs::write(&record, &to.1).expect("our own file");
            }
        };
        let tells = Case::new(self.name, "stop, finished run, hands over its news", call.clone());
        let told = Case::new(self.name, "stop, finished run, delivered before", call);
        [
            tells.before(restore(undelivered)).says("3 done").target(TOOL_MS),
            told.before(restore(delivered)).target(TOOL_MS),
        ]
    }

    fn prompts(&self) -> [Case; 5] {
        let (bare, held, program) = (&self.bare, &self.held, self.program.as_path());
        let hook = ["user-prompt-submit"];
        let case = |name: &str, call| Case::new(self.name, name, call).target(PROMPT_MS);
        let long = "It is a long text about nothing in particular.\n".repeat(1_000_000 / 47);
        // Another session than the one with the open run.
        let idle = Place { session: uuid::Uuid::new_v4().to_string(), ..held.clone() };
        let (root, program_of_case) = (self.fresh.clone(), program.to_owned());
        let mut number = 0;
        let first = bare.call(program, &hook, &bare.prompt(PROMPT));
        let place = Rc::new(RefCell::new(bare.clone()));
        let current = Rc::clone(&place);
        [
            case("user-prompt-submit, no config", bare.call(program, &hook, &bare.prompt(PROMPT))),
            case("user-prompt-submit, no config, 1 MB", bare.call(program, &hook, &bare.prompt(&long))),
            case("user-prompt-submit, rules, no match", idle.call(program, &hook, &idle.prompt(OTHER_PROMPT))),
            case("user-prompt-submit, rules, no match, 1 MB", idle.call(program, &hook, &idle.prompt(&long))),
            case("user-prompt-submit, starts three workers", first)
                .says("3 tasks")
                .before(move |call| {
                    number += 1;
                    let new = Place::new(&root.join(number.to_string()), true);
                    new.allow(&program_of_case);
                    *call = new.call(&program_of_case, &hook, &new.prompt(PROMPT));
                    place.replace(new);
                })
                .after(move |_| current.borrow().wait_until_over()),
        ]
    }

    /// How fast the workers are, from the logs that the prompts left, and from a run of short tasks by one worker.
    fn report_workers(&self) {
        let runs = fs::read_dir(&self.fresh).expect("our own folder").flatten().map(|e| Place {
            project: e.path().join("project"),
            state: e.path().join("state"),
            session: String::new(),
        });
        let logs: Vec<Vec<Value>> = runs.map(|place| place.events()).filter(|events| !events.is_empty()).collect();
        println!();
        println!("{}: between the events of {} runs of three workers, median and p95 in ms", self.name, logs.len());
        for (from, to, nth) in
            [("run_started", "spawned", 0), ("run_started", "spawned", 1), ("run_started", "spawned", 2)]
        {
            let spans: Vec<f64> = logs.iter().filter_map(|log| span(log, from, to, nth)).collect();
            print_span(&format!("{from} -> {to} {}", nth + 1), &spans);
        }
        let over: Vec<f64> = logs.iter().map(|l| time(l.iter().rfind(|e| e["t"] == "run_ended"))).collect();
        let done: Vec<f64> = logs.iter().map(|l| time(l.iter().rfind(|e| e["t"] == "done"))).collect();
        print_span("last done -> run_ended", &over.iter().zip(&done).map(|(o, d)| o - d).collect::<Vec<_>>());
        let overhead: Vec<f64> =
            logs.iter().flat_map(|log| task_spans(log, "spawned", "done")).map(|s| s - 20.0).collect();
        print_span("spawned -> done, less the 20 ms of the task", &overhead);

        let place = Place::new(&self.root.join("chain"), false);
        let tasks: Vec<Value> = (0..50).map(|n| json!({"id": format!("t{n}"), "run": ["true"]})).collect();
        let plan = place.project.join("plan.json");
        fs::write(&plan, json!({"version": 1, "tasks": tasks}).to_string()).expect("our own file");
        let mut call = place.call(&self.program, &["run", "plan.json", "-j", "1"], &Value::Null);
        call.env.retain(|(name, _)| !name.starts_with("CLAUDE"));
        call.run();
        let log = place.events();
        println!("{}: 50 tasks `true`, one worker", self.name);
        print_span("done -> next started", &handed_over(&log));
        print_span("started -> spawned", &task_spans(&log, "started", "spawned"));
        print_span("spawned -> done", &task_spans(&log, "spawned", "done"));
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Opening the FIFO lets all who wait in it go on; nobody is there if the set-up has failed.
        let hold = |path: &Path| -> std::io::Result<File> {
            OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)
        };
        if hold(&self.held.project.join("hold")).is_ok() && !std::thread::panicking() {
            self.held.wait_until_over();
        }
    }
}

/// Reads a history as a program would that keeps no index: every line into its type, and all of them folded.
fn replay(history: &History) -> f64 {
    let begun = Instant::now();
    let mut view = View::new(&history.folder().plan().expect("our own plan").0);
    let mut lines = BufReader::with_capacity(256 * 1024, File::open(history.run.join(log::NAME)).expect("our own log"));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).expect("our own log") > 0 {
        view.apply(&Event::decode(&line[..line.len() - 1]).expect("an event"));
        line.clear();
    }
    assert_eq!(view.seq, 1_000_000);
    begun.elapsed().as_secs_f64()
}

/// When an event was written, in milliseconds of the day.
fn time(event: Option<&Value>) -> f64 {
    let ts = event.and_then(|e| e["ts"].as_str()).unwrap_or_default();
    let clock = ts.split_once('T').map_or("", |(_, clock)| clock).trim_end_matches('Z');
    clock.split(':').fold(0.0, |sum, part| sum * 60.0 + part.parse::<f64>().unwrap_or(f64::NAN)) * 1e3
}

/// From the first `from` to the `nth` (from 0) `to`.
fn span(log: &[Value], from: &str, to: &str, nth: usize) -> Option<f64> {
    let begin = log.iter().find(|e| e["t"] == from)?;
    let end = log.iter().filter(|e| e["t"] == to).nth(nth)?;
    Some(time(Some(end)) - time(Some(begin)))
}

/// From `from` to `to` of each task.
fn task_spans(log: &[Value], from: &str, to: &str) -> Vec<f64> {
    let ends = log.iter().filter(|e| e["t"] == to);
    ends.filter_map(|end| {
        let begin = log.iter().find(|e| e["t"] == from && e["task"] == end["task"])?;
        Some(time(Some(end)) - time(Some(begin)))
    })
    .collect()
}

/// From each `done` to the `started` that follows.
fn handed_over(log: &[Value]) -> Vec<f64> {
    let ends = log.iter().enumerate().filter(|(_, e)| e["t"] == "done");
    ends.filter_map(|(i, end)| {
        let next = log[i..].iter().find(|e| e["t"] == "started")?;
        Some(time(Some(next)) - time(Some(end)))
    })
    .collect()
}

fn print_span(what: &str, spans: &[f64]) {
    println!("  {what:<46} {:>8.2} {:>8.2}", quantile(spans, 0.5), quantile(spans, 0.95));
}
