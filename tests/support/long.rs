//! A run with a history of any length, as cpw would have written it: many tasks that are done, and progress told by each
//! of them. The folder, the plan, the session's record and `run_started` are made by cpw's own functions, so that cpw takes
//! the run for its own; the other lines are encoded by it and appended at once.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cpw::base::ids::{SessionId, TaskId, WorkerNo};
use cpw::base::span::Limit;
use cpw::model::event::{Body, Delivered, Done, Draft, Event, Observed, Process, Progress, ResultFile, Started, Usage};
use cpw::model::plan::{Action, Backoff, Conductor, Durability, Isolate, Limits, Merge, Plan, Task, VERSION};
use cpw::store::home::State;
use cpw::store::index::{self, Index};
use cpw::store::log;
use cpw::store::run::{Origin, RunDir, new_id};
use cpw::store::session::Locked;
use serde_json::{Value, json};

/// Workers of the run, each of which has an attempt open at the end.
const WORKERS: usize = 4;

/// Tasks that have not begun at the end.
const WAITING: usize = 8;

/// The most events about one task.
const EVENTS_PER_TASK: u64 = 110;

/// A project with a state directory and a session that has one open run.
pub(crate) struct History {
    /// The project's root.
    pub(crate) project: PathBuf,
    /// The state directory.
    pub(crate) state: PathBuf,
    /// The session.
    pub(crate) session: String,
    /// The run's folder.
    pub(crate) run: PathBuf,
    open: Vec<TaskId>,
    next: u64,
}

impl History {
    /// Makes a run of `events` events in a new project below `root`, without an index.
    pub(crate) fn new(root: &Path, events: u64) -> History {
        let (project, state) = (root.join("project"), root.join("state"));
        for folder in [&project, &project.join("src"), &state] {
            fs::create_dir_all(folder).expect("a folder of ours");
        }
        fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).expect("a folder of ours");
        let home = State::open_at(&state).expect("our own folder");
        let session = "5e55104e-0000-4000-8000-000000000001";
        // What is left for tasks that are done, after the lines about the run, its workers and the open attempts.
        let rest = events.saturating_sub(1 + WORKERS as u64 + 3 * WORKERS as u64);
        let finished = usize::try_from(rest.div_ceil(EVENTS_PER_TASK).max(rest.min(8))).expect("few tasks");
        let tasks: Vec<Task> = (0..finished + WORKERS + WAITING).map(task).collect();
        let plan = plan(tasks, session);
        let folder = RunDir::create(&project, &plan, &Origin::default()).expect("a new run");
        let id = SessionId::new(session).expect("an id");
        let mut record = Locked::open(&state, &id, Duration::from_secs(10)).expect("our own").expect("free");
        record.add_run(&folder.dir, "sources").expect("our own file");
        drop(record);
        let run = folder.start(&home, &plan, &Origin::default()).expect("a run").folder.path().to_owned();
        let open = plan.tasks.iter().skip(finished).take(WORKERS).map(|t| t.id.clone()).collect();
        let mut history = History { project, state, session: session.into(), run, open, next: 2 };
        history.fill(&plan, finished, rest);
        assert_eq!(history.next - 1, events, "the history has the length that was asked for");
        history.remove_index();
        history
    }

    /// All lines behind `run_started`.
    fn fill(&mut self, plan: &Plan, finished: usize, rest: u64) {
        let mut lines = self.lines();
        for n in 0..WORKERS {
            lines.add(Draft::worker(worker(n), Body::WorkerStarted(nobody())));
        }
        let mut news = Vec::new();
        for (i, task) in plan.tasks.iter().take(finished).enumerate() {
            let share = |i: usize| rest * i as u64 / finished as u64;
            let about = |body| Draft::attempt(Some(worker(i)), &task.id, 1, body);
            // Every tenth end is followed by a hand-over; the last few are still news.
            let deliver = news.len() == 9;
            let others = 4 + u64::from(deliver);
            lines.add(about(started(task)));
            lines.add(about(Body::Spawned(nobody())));
            let told: Vec<Line> = (0..4).map(|n| Line::of(about(progress(25 * n)))).collect();
            for n in 0..(share(i + 1) - share(i)).checked_sub(others).expect("room for the life of a task") {
                lines.write(&told[usize::try_from(n % 4).expect("below four")]);
            }
            lines.add(Draft::run(observed()));
            news.push(lines.add(about(done(i))));
            if deliver {
                lines.add(Draft::run(delivered(std::mem::take(&mut news), &self.session)));
            }
        }
        for (i, task) in plan.tasks.iter().enumerate().skip(finished).take(WORKERS) {
            for body in [started(task), progress(1), progress(2)] {
                lines.add(Draft::attempt(Some(worker(i - finished)), &task.id, 1, body));
            }
        }
        self.next = lines.end();
    }

    /// Adds `count` events of progress, which the index does not have.
    pub(crate) fn grow(&mut self, count: u64) {
        let about = |(i, id)| Line::of(Draft::attempt(Some(worker(i)), id, 1, progress(7)));
        let open: Vec<Line> = self.open.iter().enumerate().map(about).collect();
        let mut lines = self.lines();
        for n in 0..count {
            lines.write(&open[usize::try_from(n).expect("a short tail") % open.len()]);
        }
        self.next = lines.end();
    }

    fn lines(&self) -> Lines {
        let file = OpenOptions::new().append(true).open(self.run.join(log::NAME)).expect("our own log");
        Lines { file: BufWriter::with_capacity(1 << 20, file), next: self.next }
    }

    /// The run's folder, opened.
    pub(crate) fn folder(&self) -> RunDir {
        RunDir::open_path(&self.run).expect("our own run")
    }

    /// Makes the index, up to the end of the log.
    pub(crate) fn save_index(&self) {
        let folder = self.folder();
        let hooked = folder.open_if(|_| true).expect("our own run").expect("nothing else was asked for");
        index::save(&folder.dir, &hooked.log, &hooked.view).expect("our own folder");
    }

    /// Whether the index reaches to the end of the log.
    pub(crate) fn is_indexed(&self) -> bool {
        let folder = self.folder();
        let mut log = log::Log::open(&folder.dir).expect("our own log");
        let index = Index::open(&folder.dir, &mut log);
        index.is_some() && log.offset() == log.len().expect("our own log")
    }

    /// Removes the index.
    pub(crate) fn remove_index(&self) {
        fs::remove_file(self.run.join(index::NAME)).expect("our own file");
    }

    /// The environment that the client gives its hooks.
    pub(crate) fn env(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("HOME", self.state.clone()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
            ("LANG", "C.UTF-8".into()),
            ("CPW_STATE_DIR", self.state.clone()),
            ("CLAUDE_PROJECT_DIR", self.project.clone()),
            ("CLAUDE_CODE_SESSION_ID", PathBuf::from(&self.session)),
            ("CLAUDE_CODE_ENTRYPOINT", "sdk-cli".into()),
        ]
    }

    /// A call of Edit on a file that nobody has claimed, of about `bytes` bytes.
    pub(crate) fn call(&self, bytes: usize) -> Vec<u8> {
        let filler = "let value = \"some text\\n\"; // ".repeat(bytes / 28 / 2);
        let payload: Value = json!({
            "session_id": self.session,
            "transcript_path": self.state.join("transcript.jsonl"),
            "cwd": self.project,
            "prompt_id": "00000000-0000-4000-8000-000000000002",
            "permission_mode": "default",
            "hook_event_name": "PreToolUse",
            "tool_name": "Edit",
            "tool_use_id": "toolu_01",
            "tool_input": {
                "file_path": self.project.join("other.py"), "old_string": filler, "new_string": filler,
            },
        });
        format!("{payload}\n").into_bytes()
    }
}

/// A line of the log without its number and time.
struct Line {
    before: String,
    after: String,
}

impl Line {
    fn of(draft: Draft) -> Line {
        let mut line = Vec::new();
        Event::new(draft, 0, String::new()).encode_into(&mut line).expect("a short line");
        let line = String::from_utf8(line).expect("JSON");
        let (before, after) = line.split_once("\"seq\":0,\"ts\":\"\"").expect("an event has a number and a time");
        Line { before: before.to_owned(), after: after.to_owned() }
    }
}

/// The end of a log that is being written.
struct Lines {
    file: BufWriter<fs::File>,
    next: u64,
}

impl Lines {
    fn add(&mut self, draft: Draft) -> u64 {
        self.write(&Line::of(draft))
    }

    fn write(&mut self, line: &Line) -> u64 {
        let (seq, s) = (self.next, self.next / 1000);
        let (h, m, s, micros) = (s / 3600 % 24, s / 60 % 60, s % 60, seq % 1000 * 1000);
        let Line { before, after } = line;
        write!(self.file, "{before}\"seq\":{seq},\"ts\":\"2026-01-02T{h:02}:{m:02}:{s:02}.{micros:06}Z\"{after}")
            .expect("our own file");
        self.next += 1;
        seq
    }

    /// Brings all of it into the file. Returns the number of the next line.
    fn end(mut self) -> u64 {
        self.file.flush().expect("our own file");
        self.next
    }
}

/// A process that does not exist.
fn nobody() -> Process {
    Process { pid: i32::MAX, start_time: 1, boot_id: String::new() }
}

fn worker(n: usize) -> WorkerNo {
    WorkerNo(u32::try_from(n % WORKERS).expect("few workers") + 1)
}

fn file(i: usize) -> String {
    format!("src/module_{i:05}.py")
}

fn task(i: usize) -> Task {
    Task {
        id: TaskId::new(&format!("analyze-module_{i:05}")).expect("an id"),
        title: None,
        action: Action::Run(vec!["./analyze.sh".into(), file(i)]),
        needs: Vec::new(),
        claims: vec![file(i)],
        resources: Vec::new(),
        timeout: Limit(None),
        retries: 0,
        backoff: Backoff::default(),
        allow_failure: false,
        critical: false,
        signals: None,
        summary: None,
        env: BTreeMap::new(),
        cwd: None,
        isolate: Isolate::None,
        priority: 0,
        item: Some(file(i)),
        draft: None,
        expected: None,
    }
}

fn plan(tasks: Vec<Task>, session: &str) -> Plan {
    let needs = tasks.iter().rev().take(2).map(|t| t.id.clone()).collect();
    let text = |a: &str, b: &str| BTreeMap::from([(a.to_owned(), b.to_owned())]);
    let merge = Merge {
        tool: "Write".into(),
        matches: text("file_path", "*report.md"),
        needs,
        set: text("content", "{{input.content}}\n{{results}}"),
    };
    Plan {
        version: VERSION,
        run: new_id(),
        session: SessionId::new(session).ok(),
        rule: Some("sources".into()),
        from: None,
        orphan_grace: None,
        limits: Limits { max_workers: 4, max_claude: None, run_timeout: Limit(None), max_budget_usd: None },
        durability: Durability::Process,
        conductor: Conductor::default(),
        tasks,
        merge: vec![merge],
        resources: BTreeMap::new(),
        votes: Vec::new(),
    }
}

fn started(task: &Task) -> Body {
    Body::Started(Started {
        cwd: "/home/user/project".into(),
        title: task.label(),
        mono_ms: 1000,
        ..Started::default()
    })
}

fn progress(n: u64) -> Body {
    let note = Some(format!("looking at function {n}: \"parse\""));
    Body::Progress(Progress { percent: u8::try_from(n % 100).ok(), eta_s: Some(100 - n % 100), note, summary: None })
}

fn observed() -> Body {
    Body::Observed(Observed {
        hook: "PreToolUse".into(),
        phase: "before".into(),
        tool: "Read".into(),
        target: "src/other.py".into(),
        tool_use_id: Some("toolu_01".into()),
        awaited: vec![4],
    })
}

fn done(i: usize) -> Body {
    let path = format!("workers/{}/out/analyze-module_{i:05}.1/result.md", worker(i));
    let result = Some(ResultFile { path, bytes: 2048, sha256: "0123456789abcdef".repeat(4) });
    let usage = Some(Usage { turns: 3, tokens: 12_000, cost_usd: 0.04 });
    Body::Done(Done {
        exit: 0,
        duration_ms: 30_000,
        result,
        summary: Some(format!("{i} findings")),
        usage,
        ..Done::default()
    })
}

fn delivered(news: Vec<u64>, session: &str) -> Body {
    Body::Delivered(Delivered {
        news,
        hook: "PostToolBatch".into(),
        session: session.into(),
        prompt_id: None,
        more: false,
        signals: Vec::new(),
        chars: 0,
    })
}
