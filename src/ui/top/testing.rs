//! A run as a test looks at it, in which something of everything happens.

use std::collections::BTreeSet;

use crate::base::ids::{RunId, TaskId, WorkerNo};
use crate::logic::simulation::{done, run_started};
use crate::logic::state::State;
use crate::model::check::{Defaults, Machine, plan_from_person};
use crate::model::config::Settings;
use crate::model::event::{Body, Done, Draft, Ended, Event, Progress, ResultFile, RunEnded, Skipped, Started, Verdict};
use crate::model::plan::Plan;
use crate::ui::top::past::Past;
use crate::ui::top::picture::{Opened, Output, Picture, Row, Stream};
use crate::ui::top::view::View;

const PLAN: &str = r#"{"version": 1, "tasks": [
    {"id": "lint", "shell": "true", "title": "look at the style of all files"},
    {"id": "build", "run": ["cargo", "build"], "claims": ["src/*.rs", "Cargo.lock"], "resources": ["target"]},
    {"id": "flaky", "shell": "exit 7", "retries": 2},
    {"id": "unit-tests-of-a-long-name", "needs": ["build", "lint"], "shell": "true"},
    {"id": "evil", "shell": "true", "title": "\u001b[2Jevil\u202e 漢字"},
    {"id": "deploy", "needs": ["evil"], "shell": "true"},
    {"id": "ready", "shell": "true"}]}"#;

/// Where the run began: wall-clock time in milliseconds since 1970.
const BEGAN: u64 = 1_767_323_045_000;

pub(super) struct Scene {
    pub(super) plan: Plan,
    pub(super) state: State,
    past: Past,
    pub(super) rows: Vec<Row>,
    pub(super) output: Output,
    pub(super) note: Option<String>,
    pub(super) colour: bool,
    stalled: BTreeSet<usize>,
}

impl Scene {
    pub(super) fn new() -> Scene {
        let settings = Settings::default();
        let defaults = Defaults { settings: &settings, machine: Machine { cores: 4, mem_mib: 8000 } };
        let id = |id: &str| RunId::new(id).unwrap();
        let run = id("20260102-030405000000-00000000000000000000");
        let plan = plan_from_person(PLAN.as_bytes(), run, &defaults).unwrap();
        let row = |id: RunId, word, said: Option<&str>| Row {
            id,
            word,
            counts: None,
            percent: None,
            rule: Some("analyze".into()),
            cancelling: false,
            said: said.map(str::to_owned),
        };
        let rows = vec![
            row(plan.run.clone(), "active", None),
            row(id("20260102-020405000000-00000000000000000000"), "failed", Some("x \u{1b}[2Jfailed")),
            row(id("20260101-030405000000-00000000000000000000"), "damaged", Some("line 7 is none")),
        ];
        let state = State::new(&plan);
        let output = Output {
            streams: [
                Stream {
                    lines: (1..=30).map(|n| format!("compiling crate {n}")).collect(),
                    bytes: 20_480,
                    until: None,
                },
                Stream { lines: vec!["warning: unused 漢字".into()], bytes: 24, until: None },
            ],
            absent: None,
        };
        let stalled = BTreeSet::new();
        let mut scene = Scene { plan, state, past: Past::default(), rows, output, note: None, colour: false, stalled };
        scene.play();
        scene
    }

    pub(super) fn tell(&mut self, at_s: u64, draft: Draft) {
        let ts = format!("2026-01-02T03:{:02}:{:02}.000000Z", 4 + (5 + at_s) / 60, (5 + at_s) % 60);
        let event = Event::new(draft, self.state.view.seq + 1, ts);
        self.state.apply(&event);
        self.past.apply(&event, &self.state);
        self.rows[0].counts = Some(self.state.view.counts);
    }

    fn attempt(&mut self, at_s: u64, worker: u32, task: &str, number: u32, body: Body) {
        self.tell(at_s, Draft::attempt(Some(WorkerNo(worker)), &TaskId::new(task).unwrap(), number, body));
    }

    fn play(&mut self) {
        let started =
            |at_s: u64| Body::Started(Started { cwd: "/".into(), mono_ms: at_s * 1000, ..Started::default() });
        let failed = |reason: &str, will_retry: bool| {
            let retry_at = will_retry.then_some(72_000);
            Body::Failed(Ended { exit: Some(7), reason: reason.into(), will_retry, retry_at, ..Ended::default() })
        };
        self.tell(0, Draft::run(run_started(&self.plan, "boot")));
        self.attempt(0, 1, "lint", 1, started(0));
        self.attempt(1, 2, "build", 1, started(1));
        self.attempt(2, 3, "flaky", 1, started(2));
        self.attempt(10, 3, "flaky", 1, failed("exit code 7", true));
        let result = ResultFile { path: "workers/W1/out/lint.1/result.txt".into(), bytes: 120, sha256: String::new() };
        let lint =
            Done { duration_ms: 20_000, result: Some(result), summary: Some("5 findings".into()), ..Done::default() };
        self.attempt(20, 1, "lint", 1, Body::Done(lint));
        self.attempt(21, 3, "flaky", 2, started(21));
        self.attempt(50, 3, "flaky", 2, failed("exit code 7", true));
        self.attempt(22, 1, "evil", 1, started(22));
        let evil = Ended { reason: "over its limit \u{1b}[31m".into(), duration_ms: Some(30_000), ..Ended::default() };
        self.attempt(52, 1, "evil", 1, Body::TimedOut(evil));
        let because = Skipped { because: "evil".into() };
        self.tell(52, Draft::task(&TaskId::new("deploy").unwrap(), Body::Skipped(because)));
        let half = Progress { percent: Some(60), note: Some("crate 30 of 50".into()), ..Progress::default() };
        self.attempt(55, 2, "build", 1, Body::Progress(half));
    }

    /// The run comes to its end.
    pub(super) fn end(&mut self) {
        self.attempt(58, 2, "build", 1, done("built"));
        self.tell(
            58,
            Draft::run(Body::RunEnded(RunEnded {
                status: Verdict::Failed,
                reason: "evil timed out".into(),
                done: 2,
                failed: 1,
                skipped: 1,
                cancelled: 0,
            })),
        );
        self.rows[0].word = "failed";
    }

    pub(super) fn stall(&mut self, task: usize) {
        self.stalled.insert(task);
    }

    pub(super) fn picture(&self) -> Picture<'_> {
        Picture {
            project: "project",
            runs: &self.rows,
            run: Some(Opened {
                plan: &self.plan,
                state: &self.state,
                past: &self.past,
                stalled: &self.stalled,
                same_boot: true,
            }),
            output: &self.output,
            note: self.note.as_deref(),
            now_ms: 60_000,
            now_unix_ms: BEGAN + 60_000,
            turn: 0,
            colour: self.colour,
        }
    }

    /// A view on it, as it is when it begins.
    pub(super) fn view(&self, size: (u16, u16)) -> View {
        let mut view = View { size, ..View::default() };
        view.settle(&self.picture());
        view
    }
}
