//! How soon a waiter runs again after an event, and what waiting costs.
//!
//! `cargo bench --bench wake`. Waiters are processes: this program started again, which waits as every waiter of cpw does
//! and reports by a pipe; the idle ones are real `cpw wait`s. Events are written by the transaction that everybody uses,
//! which rings. For comparison a waiter beside them looks at the same log every 10 ms, and hears of the same events.

#![cfg(target_os = "linux")]
#![expect(clippy::expect_used, reason = "a benchmark that cannot go on says so and ends")]
#![expect(clippy::print_stdout, reason = "the table is what it is for")]

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use cpw::base::ids::{TaskId, WorkerNo};
use cpw::logic::wake::Concern;
use cpw::model::event::{Body, Done, Draft, Progress};
use cpw::store::bells;
use cpw::store::log::{LogError, Tape, Tx};
use cpw::store::run::{Hooked, RunDir};
use cpw::sys::bell;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

/// Events that one waiter hears of, by bell and by looking.
const EVENTS: usize = 300;

/// Waiters of the crowd, and events that wake all of them.
const CROWD: usize = 1000;
const CROWD_EVENTS: usize = 9;

/// Waiters of which one is meant, and events.
const MANY: usize = 256;
const MANY_EVENTS: usize = 50;

/// Waiters that are left alone, and for how long.
const IDLE: usize = 100;
const IDLE_FOR: Duration = Duration::from_secs(10);

/// How often the one looks that has no bell.
const LOOK: Duration = Duration::from_millis(10);

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, role, run, concern] = &args[..]
        && role == "--waiter"
    {
        return wait_and_tell(Path::new(run), concern);
    }
    if !args.iter().any(|a| a == "--bench") {
        println!("SKIPPED: a benchmark; `cargo bench --bench wake` runs it");
        return;
    }
    let place = Place::new();
    one_waiter(&place);
    crowd(&place);
    one_of_many(&place);
    idle(&place);
}

/// Nanoseconds of a clock that all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("a clock");
    u64::try_from(time.tv_sec()).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec()).unwrap_or(0)
}

/// A waiter: reports for every event how long ago it was written. `look` as concern: without a bell.
fn wait_and_tell(run: &Path, concern: &str) {
    let folder = RunDir::open_path(run).expect("the run");
    let bell = (concern != "look").then(|| bells::hang(&folder, &Concern::parse(concern)).expect("a bell"));
    let mut tape = Tape::open(&folder.dir).expect("the log");
    tape.read(|_| {}).expect("the log can be read");
    tell("ready");
    loop {
        match &bell {
            Some(bell) => {
                bell::wait(&[bell], &[], Duration::from_mins(1)).expect("waiting");
                bell.drain();
            }
            None => std::thread::sleep(LOOK),
        }
        let woken = now();
        let mut last = None;
        let read = tape.read(|event| {
            let note = match &event.body {
                Body::Progress(p) => p.note.as_deref(),
                Body::Done(p) => p.summary.as_deref(),
                _ => None,
            };
            last = note.and_then(|note| note.parse::<u64>().ok()).or(last);
        });
        read.expect("the log can be read");
        if let Some(written) = last {
            tell(&format!("{concern} {}", woken.saturating_sub(written)));
        }
    }
}

/// One line in one write, so that those of many do not mix.
fn tell(line: &str) {
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).expect("somebody listens");
}

/// A project with one run on which one worker works for as long as the benchmark takes.
struct Place {
    folder: tempfile::TempDir,
    run: RunDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let project = folder.path().join("project");
        std::fs::create_dir_all(project.join(".claude")).expect("a project");
        let project = project.canonicalize().expect("a project");
        let tasks: Vec<_> = (0..MANY)
            .map(|i| json!({"id": format!("t{i}"), "shell": "while [ -e hold ]; do sleep 0.2; done"}))
            .collect();
        let plan = json!({"version": 1, "limits": {"max_workers": 1}, "tasks": tasks}).to_string();
        std::fs::write(project.join("plan.json"), plan).expect("a plan");
        std::fs::write(project.join("hold"), "").expect("a file");
        Place { run: RunDir::open_path(&start(&project, folder.path())).expect("the run"), folder }
    }

    fn hooked(&self) -> Hooked {
        self.run.open_view().expect("the run")
    }

    fn cpw(&self, args: &[&str]) -> Command {
        cpw(&self.folder.path().join("project"), self.folder.path(), args)
    }

    /// Starts a waiter for each concern and waits until all are ready.
    fn waiters(&self, concerns: impl Iterator<Item = String>) -> Waiters {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut all = Waiters { children: Vec::new(), lines: BufReader::new(reader) };
        for concern in concerns {
            all.children.push(self.waiter(&concern, &writer));
        }
        drop(writer);
        (0..all.children.len()).for_each(|_| assert_eq!(all.line(), "ready"));
        all
    }

    fn waiter(&self, concern: &str, writer: &PipeWriter) -> Child {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("--waiter").arg(self.run.path()).arg(concern);
        command.stdin(Stdio::null()).stdout(writer.try_clone().expect("a descriptor"));
        command.spawn().expect("a waiter")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The worker ends what it does, and leaves.
        drop(self.cpw(&["cancel"]).stdout(Stdio::null()).status());
        drop(self.cpw(&["wait", "--run", "--timeout", "30s"]).stdout(Stdio::null()).stderr(Stdio::null()).status());
    }
}

fn cpw(project: &Path, folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cpw"));
    command.args(args).current_dir(project).stdin(Stdio::null());
    command.env("HOME", folder).env("CPW_STATE_DIR", folder.join("state"));
    command
}

fn start(project: &Path, folder: &Path) -> PathBuf {
    let out = cpw(project, folder, &["run", "plan.json", "--detach"]).output().expect("cpw");
    let id = String::from_utf8(out.stdout).expect("an id");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    project.join(".claude/runs").join(id.trim())
}

struct Waiters {
    children: Vec<Child>,
    lines: BufReader<PipeReader>,
}

impl Waiters {
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(self.lines.read_line(&mut line).expect("a line") > 0, "the waiters have gone");
        line.trim().to_owned()
    }

    /// The next report: by whom, and nanoseconds.
    fn report(&mut self) -> (String, u64) {
        let line = self.line();
        let (who, ns) = line.split_once(' ').expect("two words");
        (who.to_owned(), ns.parse().expect("a number"))
    }

    fn cpu(&self) -> u64 {
        self.children.iter().map(|child| on_cpu(child.id())).sum()
    }

    /// Ends them, by the processes that this program started.
    fn end(mut self) {
        for child in &mut self.children {
            child.kill().expect("a child of ours");
            child.wait().expect("its end");
        }
    }
}

/// Nanoseconds that a process has run.
fn on_cpu(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("/proc has it");
    text.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
}

/// An event that only concerns who follows everything; it says when it was written.
fn progress<F: cpw::store::log::Fold>(tx: &mut Tx<'_, F>) -> Result<(), LogError> {
    let body = Body::Progress(Progress { note: Some(now().to_string()), ..Progress::default() });
    tx.emit(Draft::attempt(Some(WorkerNo(1)), &task(0), 1, body)).map(drop)
}

/// The late word of an attempt that was never begun: it changes nothing, but is the outcome of a task to whoever waits.
fn outcome<F: cpw::store::log::Fold>(tx: &mut Tx<'_, F>, i: usize) -> Result<(), LogError> {
    let summary = Some(now().to_string());
    let body = Body::Done(Done { exit: 0, duration_ms: 0, summary, ..Done::default() });
    tx.emit(Draft::attempt(None, &task(i), 99, body)).map(drop)
}

fn task(i: usize) -> TaskId {
    TaskId::new(&format!("t{i}")).expect("an id")
}

fn percentile(values: &mut [u64], percent: usize) -> f64 {
    values.sort_unstable();
    let at = (values.len() * percent / 100).min(values.len() - 1);
    f64::from(u32::try_from(values[at] / 10).unwrap_or(u32::MAX)) / 100.0
}

fn verdict(good: bool) -> &'static str {
    if good { "ok" } else { "MISSED" }
}

fn one_waiter(place: &Place) {
    let mut waiters = place.waiters(["all", "look"].map(str::to_owned).into_iter());
    let mut hooked = place.hooked();
    let (mut bell, mut look) = (Vec::new(), Vec::new());
    for i in 0..EVENTS {
        // Not in step with who looks every 10 ms.
        std::thread::sleep(Duration::from_micros(300 + (i as u64 * 137) % 9000));
        hooked.transact(&place.run, progress).expect("an event");
        for _ in 0..2 {
            let (who, ns) = waiters.report();
            if who == "all" { bell.push(ns) } else { look.push(ns) }
        }
    }
    waiters.end();
    let (p50, p99) = (percentile(&mut bell, 50), percentile(&mut bell, 99));
    let (look50, look99) = (percentile(&mut look, 50), percentile(&mut look, 99));
    println!("event → waiter running again, {EVENTS} events, in µs");
    println!("  bell                p50 {p50:>9.1}   p99 {p99:>9.1}");
    println!("  looking every 10 ms p50 {look50:>9.1}   p99 {look99:>9.1}");
    println!("  p50 is 1/{:.0} (reach: 1/100)  {}", look50 / p50, verdict(look50 / p50 >= 100.0));
}

fn crowd(place: &Place) {
    let mut waiters = place.waiters((0..CROWD).map(|_| "all".to_owned()));
    let mut hooked = place.hooked();
    let mut last = Vec::new();
    for _ in 0..CROWD_EVENTS {
        hooked.transact(&place.run, progress).expect("an event");
        last.push((0..CROWD).map(|_| waiters.report().1).max().unwrap_or(0));
    }
    waiters.end();
    let median = percentile(&mut last, 50) / 1000.0;
    let reach = verdict(median <= 50.0);
    println!("one event wakes {CROWD} waiters: the last one after {median:.1} ms (reach: 50)  {reach}");
}

/// What an event costs all processors, and how soon the last of those it concerns runs.
fn per_event(waiters: &mut Waiters, heard: usize, mut write: impl FnMut(usize)) -> (f64, f64) {
    let cpu = |waiters: &Waiters| waiters.cpu() + on_cpu(std::process::id());
    let before = cpu(waiters);
    let mut last = Vec::new();
    for i in 0..MANY_EVENTS {
        write(i);
        last.push((0..heard).map(|_| waiters.report().1).max().unwrap_or(0));
    }
    let spent = u32::try_from((cpu(waiters) - before) / 1000).unwrap_or(u32::MAX);
    (f64::from(spent) / f64::from(u32::try_from(MANY_EVENTS).unwrap_or(1)), percentile(&mut last, 50))
}

fn one_of_many(place: &Place) {
    let mut hooked = place.hooked();
    let mut waiters = place.waiters((0..MANY).map(|i| format!("task-t{i}")));
    let (one_cpu, one_last) = per_event(&mut waiters, 1, |i| {
        hooked.transact(&place.run, |tx| outcome(tx, (i * 7 + 1) % MANY)).expect("an event");
    });
    waiters.end();
    let mut waiters = place.waiters((0..MANY).map(|_| "all".to_owned()));
    let (all_cpu, all_last) = per_event(&mut waiters, MANY, |_| {
        hooked.transact(&place.run, progress).expect("an event");
    });
    waiters.end();
    println!("of {MANY} waiters, per event");
    println!("  the one it concerns {one_cpu:>9.0} µs of processor time, running after {one_last:>8.1} µs");
    println!("  all of them         {all_cpu:>9.0} µs of processor time, running after {all_last:>8.1} µs");
    println!("  1/{:.0} of the time (reach: 1/10)  {}", all_cpu / one_cpu, verdict(all_cpu / one_cpu >= 10.0));
}

fn idle(place: &Place) {
    let bells = || std::fs::read_dir(place.run.path().join("bells")).expect("the bells").count();
    let before = bells();
    let mut children: Vec<Child> = (0..IDLE)
        .map(|_| place.cpw(&["wait", "--run"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cpw wait"))
        .collect();
    while bells() < before + IDLE {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Behind the bell comes one more look.
    std::thread::sleep(Duration::from_secs(1));
    let cpu = |children: &[Child]| -> u64 { children.iter().map(|child| on_cpu(child.id())).sum() };
    let begun = cpu(&children);
    std::thread::sleep(IDLE_FOR);
    let spent = u32::try_from((cpu(&children) - begun) / 1000).unwrap_or(u32::MAX);
    for child in &mut children {
        child.kill().expect("a child of ours");
        child.wait().expect("its end");
    }
    let percent = f64::from(spent) / 1e6 / IDLE_FOR.as_secs_f64() * 100.0;
    let reach = verdict(percent <= 0.2);
    println!("{IDLE} idle `cpw wait --run` for {IDLE_FOR:?}: {percent:.3} % of a core (reach: 0.2)  {reach}");
}
