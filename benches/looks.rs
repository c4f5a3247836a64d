//! What looking costs as whole processes, against a static `true` in C that is built on the spot: `cpw status` and `cpw
//! statusline` with nothing, with a run that goes on, and with one that has ended, of 1,000 and of 5,000 tasks.
//!
//! `cargo bench --bench looks`. All cases take turns, in an order that rotates by round; what counts is the ratio, and for
//! `cpw status` the time: at most 10 ms at 1,000 finished tasks, 25 ms at 5,000. `CPW_BENCH_OTHER` names one more binary, such as
//! the one before a change; what it does not know is left out.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot go on says so and ends")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cpw::base::ids::{RunId, SessionId, WorkerNo};
use cpw::model::check::{Defaults, Machine, plan_from_person};
use cpw::model::config::Settings;
use cpw::model::event::{
    Body, Delivered, Done, Draft, Event, Process, Progress, ResultFile, RunEnded, Started, Usage, Verdict,
};
use cpw::model::plan::Plan;
use cpw::store::home::State;
use cpw::store::index;
use cpw::store::log;
use cpw::store::run::{LIVE_LOCK, Origin, RunDir, WORKERS, new_id};
use cpw::store::session::Locked;
use cpw::sys::{clock, lock};

/// Rounds, each with one call of every case.
const ROUNDS: usize = 60;

/// The session of the runs, and one that has none.
const SESSION: &str = "5e55104e-0000-4000-8000-000000000001";
const OTHER: &str = "5e55104e-0000-4000-8000-000000000002";

/// Tasks that are not done in a run that goes on.
const LEFT: usize = 8;

fn main() {
    if !std::env::args().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench looks` runs it");
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
    println!("{:<8} {:<44} {:>8} {:>7}", "binary", "call", "ms", "ratio");
    let at = |name: &str, tasks, ended| Site::new(&folder.path().join(name), tasks, ended);
    let sites = [at("e1", 1000, true), at("o1", 1000, false), at("e5", 5000, true), at("o5", 5000, false)];
    for (name, program) in binaries {
        // What a linker has just written starts more slowly than the same bytes copied.
        let copy = folder.path().join(format!("cpw-{name}"));
        fs::copy(program, &copy).expect("a file in our folder");
        report(name, &copy, &sites, &base);
    }
}

/// A call of cpw.
struct Case<'s> {
    what: String,
    site: &'s Site,
    args: Vec<&'s str>,
    session: &'static str,
    /// The most it may cost, in milliseconds, or in calls of a static `true`.
    most_ms: Option<f64>,
    most: Option<f64>,
}

fn cases(sites: &[Site; 4]) -> Vec<Case<'_>> {
    let mut all = Vec::new();
    let case = |what: &str, site, args: &[&'static str]| Case {
        what: what.to_owned(),
        site,
        args: args.to_vec(),
        session: OTHER,
        most_ms: None,
        most: None,
    };
    all.push(case("--version, by clap", &sites[0], &["--version"]));
    all.push(Case { most: Some(2.0), ..case("statusline, nothing runs", &sites[0], &["statusline"]) });
    all.push(Case { session: SESSION, ..case("statusline, ended, the session not told", &sites[2], &["statusline"]) });
    for (site, done, most) in [(&sites[1], "1,000", 10.0), (&sites[3], "5,000", 25.0)] {
        let line = case(&format!("statusline, {done} done, {LEFT} to do"), site, &["statusline"]);
        all.push(Case { session: SESSION, most: Some(3.0), ..line });
        all.push(Case {
            most_ms: Some(most),
            ..case(&format!("status, {done} done, {LEFT} to do"), site, &["status"])
        });
        all.push(Case {
            most_ms: Some(most),
            ..case(&format!("status, {done} done, ended"), &sites[if most < 20.0 { 0 } else { 2 }], &["status"])
        });
    }
    for (site, done, most) in [(&sites[0], "1,000", 10.0), (&sites[2], "5,000", 25.0)] {
        let args = vec!["status", site.run.as_str()];
        all.push(Case { args, most_ms: Some(most), ..case(&format!("status RUN, {done} done, ended"), site, &[]) });
    }
    all
}

fn report(binary: &str, program: &Path, sites: &[Site; 4], base: &Path) {
    let cases: Vec<Case<'_>> =
        cases(sites).into_iter().filter(|case| case.call(program).status().expect("it starts").success()).collect();
    let mut took = vec![Vec::new(); cases.len() + 1];
    for round in 0..=ROUNDS {
        for turn in 0..took.len() {
            let at = (round + turn) % took.len();
            let mut command = match at.checked_sub(1) {
                None => quiet(Command::new(base)),
                Some(case) => cases[case].call(program),
            };
            let begun = Instant::now();
            let status = command.status().expect("it starts");
            let seconds = begun.elapsed().as_secs_f64();
            assert!(status.success(), "{command:?}: {status}");
            // The first start of a program reads it from the disk.
            if round > 0 {
                took[at].push(seconds);
            }
        }
    }
    let true_s = median(&took[0]);
    println!("{:<8} {:<44} {:>8.2} {:>7.2}", "C", "true (static glibc)", true_s * 1e3, 1.0);
    for (Case { what, most_ms, most, .. }, took) in cases.iter().zip(&took[1..]) {
        let (ms, ratio) = (median(took) * 1e3, median(took) / true_s);
        let verdict = |fits: bool| if fits { "ok" } else { "MISSED" };
        let bound = most.map(|most| format!("ratio <= {most} {}", verdict(ratio <= most)));
        let bound = bound.or_else(|| most_ms.map(|most| format!("ms <= {most} {}", verdict(ms <= most))));
        println!("{binary:<8} {what:<44} {ms:>8.2} {ratio:>7.2} {}", bound.unwrap_or_default());
    }
}

impl Case<'_> {
    fn call(&self, program: &Path) -> Command {
        let mut command = quiet(Command::new(program));
        command.args(&self.args).env_clear().current_dir(&self.site.project);
        command.env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent").env("CPW_STATE_DIR", &self.site.state);
        command.env("CLAUDE_CODE_SESSION_ID", self.session);
        command
    }
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// A project with one run, of five events a task.
struct Site {
    project: PathBuf,
    state: PathBuf,
    run: String,
    /// The life of the worker that the run seems to have, so that nobody starts another one.
    _life: File,
}

impl Site {
    fn new(root: &Path, tasks: usize, ended: bool) -> Site {
        let (project, state) = (root.join("project"), root.join("state"));
        for folder in [&project.join(".claude"), &state] {
            fs::create_dir_all(folder).expect("a folder of ours");
        }
        fs::set_permissions(&state, PermissionsExt::from_mode(0o700)).expect("a folder of ours");
        let home = State::open_at(&state).expect("our own folder");
        let plan = plan(tasks + if ended { 0 } else { LEFT });
        let folder = RunDir::create(&project, &plan, &Origin::default()).expect("a new run");
        let id = SessionId::new(SESSION).expect("an id");
        let mut record = Locked::open(&state, &id, Duration::from_secs(10)).expect("our own").expect("free");
        record.add_run(&folder.dir, "sources").expect("our own file");
        drop(record);
        let run = folder.start(&home, &plan, &Origin::default()).expect("a run").folder.path().to_owned();
        let worker = folder.dir.sub(WORKERS).and_then(|all| all.create_sub("W1", 0o700)).expect("a folder");
        let life = worker.create_new(LIVE_LOCK, 0o600).expect("a file");
        assert!(lock::try_exclusive(&life).expect("a lock"), "it is ours");
        fill(&run, &plan, tasks, ended);
        let folder = RunDir::open_path(&run).expect("our own run");
        fs::remove_file(run.join(index::NAME)).expect("our own file");
        let hooked = folder.open_if(|_| true).expect("our own run").expect("nothing else was asked for");
        index::save(&folder.dir, &hooked.log, &hooked.view).expect("our own folder");
        Site { project, state, run: plan.run.to_string(), _life: life }
    }
}

fn plan(tasks: usize) -> Plan {
    let task = |n: usize| {
        format!(
            r#"{{"id": "analyze-module-{n:05}", "run": ["./analyze.sh", "src/{n:05}.py"], "claims": ["src/{n:05}.py"]}}"#
        )
    };
    let tasks: Vec<String> = (0..tasks).map(task).collect();
    let text = format!(r#"{{"version": 1, "tasks": [{}]}}"#, tasks.join(", "));
    let settings = Settings::default();
    let defaults = Defaults { settings: &settings, machine: Machine { cores: 4, mem_mib: 8000 } };
    let run: RunId = new_id();
    let mut plan = plan_from_person(text.as_bytes(), run, &defaults).expect("a plan");
    plan.session = SessionId::new(SESSION).ok();
    plan
}

/// All lines behind `run_started`: each task begins, has a process, says twice how far it is, and is done.
fn fill(run: &Path, plan: &Plan, done: usize, ended: bool) {
    let file = OpenOptions::new().append(true).open(run.join(log::NAME)).expect("our own log");
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let (mut seq, mut line) = (1, Vec::new());
    let mut add = |draft: Draft| {
        seq += 1_u64;
        line.clear();
        Event::new(draft, seq, clock::stamp()).encode_into(&mut line).expect("a short line");
        file.write_all(&line).expect("our own file");
        seq
    };
    let me = WorkerNo(1);
    let nobody = || Process { pid: i32::MAX, start_time: 1, boot_id: clock::boot_id().to_owned() };
    add(Draft::worker(me, Body::WorkerStarted(nobody())));
    let mut news = Vec::new();
    for (n, task) in plan.tasks.iter().enumerate().take(done + usize::from(!ended)) {
        let mut about = |body| add(Draft::attempt(Some(me), &task.id, 1, body));
        about(Body::Started(Started {
            cwd: "/home/user/project".into(),
            mono_ms: clock::mono_ms(),
            ..Started::default()
        }));
        about(Body::Spawned(nobody()));
        for percent in [30, 60] {
            let note = Some(format!("looking at function {percent}: \"parse\""));
            about(Body::Progress(Progress { percent: Some(percent), eta_s: Some(40), note, summary: None }));
        }
        if n < done {
            let path = format!("workers/W1/out/{}.1/result.md", task.id);
            let result = Some(ResultFile { path, bytes: 2048, sha256: "0123456789abcdef".repeat(4) });
            let usage = Some(Usage { turns: 3, tokens: 12_000, cost_usd: 0.04 });
            let summary = Some(format!("{n} findings"));
            news.push(about(Body::Done(Done {
                exit: 0,
                duration_ms: 30_000,
                result,
                summary,
                usage,
                ..Done::default()
            })));
        }
        // The session is told now and then; the last few are still news.
        if news.len() == 10 {
            add(Draft::run(Body::Delivered(Delivered {
                news: std::mem::take(&mut news),
                signals: Vec::new(),
                chars: 0,
                hook: "PostToolBatch".into(),
                session: SESSION.into(),
                prompt_id: None,
                more: false,
            })));
        }
    }
    if ended {
        let done = u32::try_from(done).expect("few tasks");
        let end = RunEnded { status: Verdict::Ok, reason: "ok".into(), done, failed: 0, skipped: 0, cancelled: 0 };
        add(Draft::run(Body::RunEnded(end)));
    }
    file.flush().expect("our own file");
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
