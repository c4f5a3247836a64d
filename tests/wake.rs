//! Who wakes, and who does not: the real workers and waiters, and how often the kernel let them run. For Linux, whose /proc
//! counts that.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cpw::base::ids::{TaskId, WorkerNo};
use cpw::model::event::{Body, Draft, Progress};
use cpw::store::run::RunDir;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use support::skip::skip;
use support::world::{World, wait_for};

/// Longest wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a waiter that was rung may take, on a machine with other things to do. Much less than the minute after which it
/// would look for safety's sake.
const PROMPT: Duration = Duration::from_secs(5);

/// A run in the background.
struct Run<'w> {
    world: &'w World,
    id: String,
}

/// Waits until the file of that name is in the project.
fn until(name: &str) -> String {
    format!("while [ ! -e {name} ]; do sleep 0.05; done")
}

impl Run<'_> {
    fn start<'w>(world: &'w World, plan: &Value) -> Run<'w> {
        world.write("plan.json", &plan.to_string());
        let out = world.cpw(&["run", "plan.json", "--detach"]).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        Run { world, id: String::from_utf8(out.stdout).unwrap().trim().to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.world.project().join(".claude/runs").join(&self.id)
    }

    fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path().join("events.jsonl")).unwrap_or_default();
        text.split_inclusive('\n').filter(|l| l.ends_with('\n')).map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn wait_for(&self, kind: &str, task: Option<&str>) -> Value {
        let wanted = |e: &Value| e["t"] == kind && task.is_none_or(|task| e["task"] == task);
        wait_for(PATIENCE, || self.events().into_iter().find(wanted))
            .unwrap_or_else(|| panic!("no {kind} of {task:?}: {:#?}", self.events()))
    }

    /// The process of a worker.
    fn worker(&self, name: &str) -> i32 {
        let started = self.events().into_iter().find(|e| e["t"] == "worker_started" && e["worker"] == name);
        i32::try_from(started.unwrap()["payload"]["pid"].as_i64().unwrap()).unwrap()
    }

    fn worker_of(&self, task: &str) -> String {
        self.wait_for("started", Some(task))["worker"].as_str().unwrap().to_owned()
    }

    fn waiter(&self, args: &[&str]) -> Waiter {
        Waiter::start(self.world.cpw(args), args, &self.path())
    }
}

/// Something that waits. Ended with the test.
struct Waiter {
    what: String,
    child: Option<Child>,
}

impl Waiter {
    /// Starts it and waits until its bell hangs.
    fn start(mut command: Command, args: &[&str], run: &std::path::Path) -> Waiter {
        let bells = || fs::read_dir(run.join("bells")).unwrap().count();
        let before = bells();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let waiter = Waiter { what: args.join(" "), child: Some(child) };
        wait_for(PATIENCE, || (bells() > before).then_some(()))
            .unwrap_or_else(|| panic!("{} hangs no bell", waiter.what));
        waiter
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// What it said, once it has ended by itself.
    fn end(&mut self, limit: Duration) -> (i32, String, String) {
        let ended = wait_for(limit, || self.child.as_mut().unwrap().try_wait().unwrap());
        assert!(ended.is_some(), "{} still waits after {limit:?}", self.what);
        let Output { status, stdout, stderr } = self.child.take().unwrap().wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().unwrap_or(-1), text(stdout), text(stderr))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

/// How often a process gave the processor away to wait.
fn waits(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

/// Waits until a process sleeps for good: a fifth of a second without a turn.
fn asleep(pid: i32) -> u64 {
    let mut last = (waits(pid), Instant::now());
    wait_for(PATIENCE, || {
        let now = waits(pid);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_millis(200)).then_some(now)
    })
    .unwrap_or_else(|| panic!("process {pid} does not come to rest"))
}

#[test]
fn nobody_wakes_for_progress_and_one_of_the_idle_for_a_task() {
    let world = World::new();
    let run = Run::start(
        &world,
        &json!({"version": 1, "limits": {"max_workers": 4}, "tasks": [
            {"id": "a", "shell": until("go")},
            {"id": "x", "shell": "true"}, {"id": "y", "shell": "true"}, {"id": "z", "shell": "true"},
            {"id": "c1", "needs": ["a"], "shell": until("end")}, {"id": "c2", "needs": ["a"], "shell": until("end")},
            {"id": "d", "needs": ["c1", "c2"], "shell": "true"}]}),
    );
    for quick in ["x", "y", "z"] {
        run.wait_for("done", Some(quick));
    }
    run.wait_for("spawned", Some("a"));
    let follower = run.waiter(&["events", "-f"]);
    let waiter = run.waiter(&["wait", "--task", "d"]);
    let names: Vec<String> = run
        .events()
        .iter()
        .filter(|e| e["t"] == "worker_started")
        .map(|e| e["worker"].as_str().unwrap().into())
        .collect();
    let pids: Vec<i32> = names.iter().map(|name| run.worker(name)).chain([waiter.pid()]).collect();
    let before: Vec<u64> = pids.iter().map(|&pid| asleep(pid)).collect();
    let since = Instant::now();
    let before_progress = asleep(follower.pid());

    let folder = RunDir::open_path(&run.path()).unwrap();
    let mut hooked = folder.open_view().unwrap();
    let worker = run.worker_of("a").parse::<WorkerNo>().unwrap();
    for percent in 0..50 {
        let progress = Body::Progress(Progress { percent: Some(percent), ..Progress::default() });
        let draft = Draft::attempt(Some(worker), &TaskId::new("a").unwrap(), 1, progress);
        hooked.transact(&folder, |tx| tx.emit(draft)).unwrap();
    }
    wait_for(PATIENCE, || (waits(follower.pid()) > before_progress).then_some(()))
        .expect("who follows everything is rung");
    asleep(follower.pid());
    let after: Vec<u64> = pids.iter().map(|&pid| waits(pid)).collect();
    // Who leads looks now and then at how much the tasks have written; nobody else wakes at all.
    let looks = 2 * (since.elapsed().as_secs() + 1);
    assert_eq!(after[1..], before[1..], "progress has woken one of {names:?} or `cpw wait`");
    assert!(after[0] - before[0] <= looks, "progress has woken the leader: {before:?} {after:?}");

    // Its worker takes one of the two itself; the other one goes to one idle worker.
    let idle: Vec<&String> = names.iter().filter(|name| **name != run.worker_of("a")).collect();
    let before: Vec<u64> = idle.iter().map(|name| asleep(run.worker(name))).collect();
    world.write("go", "");
    run.wait_for("spawned", Some("c1"));
    run.wait_for("spawned", Some("c2"));
    let after: Vec<u64> = idle.iter().map(|name| asleep(run.worker(name))).collect();
    let woken: Vec<&&String> =
        idle.iter().zip(before.iter().zip(&after)).filter(|(_, (b, a))| a != b).map(|(name, _)| name).collect();
    assert!(idle.len() >= 2, "too few workers to tell: {names:?}");
    assert_eq!(woken.len(), 1, "woken of {idle:?}: {woken:?}");
    world.write("end", "");
    run.wait_for("run_ended", None);
}

#[test]
fn everybody_who_waits_wakes_when_it_happens() {
    let world = World::new();
    let run = Run::start(
        &world,
        &json!({"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "a", "shell": until("go") + "; echo said"}, {"id": "b", "needs": ["a"], "shell": until("end")}]}),
    );
    run.wait_for("spawned", Some("a"));
    let mut of_task = [run.waiter(&["wait", "--task", "a"]), run.waiter(&["logs", "a", "-f"])];
    let mut of_end = [
        run.waiter(&["wait", "--run"]),
        run.waiter(&["events", "-f"]),
        run.waiter(&["logs", "-f"]),
        run.waiter(&["status", &run.id, "--watch"]),
    ];
    let mut watch = run.waiter(&["status", "--watch"]);
    world.write("go", "");
    run.wait_for("done", Some("a"));
    let said: Vec<_> = of_task.iter_mut().map(|w| w.end(PROMPT)).collect();
    assert_eq!((said[0].0, said[0].1.as_str()), (0, "a is done: said\n"), "{said:?}");
    assert_eq!((said[1].0, said[1].1.as_str()), (0, "said\n"), "{said:?}");
    world.write("end", "");
    run.wait_for("run_ended", None);
    for waiter in &mut of_end {
        let (code, out, err) = waiter.end(PROMPT);
        assert_eq!(code, 0, "{}: {out}{err}", waiter.what);
    }
    // It goes on until Ctrl-C, a block for every change.
    let id = run.id.clone();
    std::thread::scope(|scope| {
        let pid = Pid::from_raw(watch.pid());
        let mut out = watch.child.as_mut().unwrap().stdout.take().unwrap();
        let reader = scope.spawn(move || {
            use std::io::{BufRead, BufReader, Read};
            let mut text = String::new();
            let mut lines = BufReader::new(&mut out);
            while !text.contains("✓ ok  2 done") && lines.read_line(&mut text).unwrap() > 0 {}
            kill(pid, Signal::SIGINT).unwrap();
            lines.read_to_string(&mut text).unwrap();
            text
        });
        let text = reader.join().unwrap();
        let blocks: Vec<&str> = text.split("\n\n").collect();
        assert!(blocks.len() >= 2 && blocks[0].contains("active") && blocks.iter().all(|b| b.contains(&id)), "{text}");
    });
    assert_eq!(watch.end(PROMPT).0, 130);
}

#[test]
fn waiting_says_what_came_of_it() {
    let world = World::new();
    assert_eq!(world.cpw(&["wait"]).output().unwrap().status.code(), Some(3), "for what?");
    assert_eq!(world.cpw(&["wait", "--run"]).output().unwrap().status.code(), Some(3), "there is no run");
    let run = Run::start(
        &world,
        &json!({"version": 1, "tasks": [
            {"id": "bad", "shell": until("go") + "; echo broken >&2; exit 7"},
            {"id": "weak", "shell": "exit 3", "allow_failure": true},
            {"id": "behind", "needs": ["bad"], "shell": "true"}]}),
    );
    let wait = |args: &[&str]| {
        let out = world.cpw(&[&["wait"], args].concat()).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
    };
    assert_eq!(wait(&["--task", "none"]).0, 3);
    assert_eq!(wait(&["--task", "bad", "--run"]).0, 3);
    assert_eq!(wait(&["--task", "bad", "--timeout", "soon"]).0, 3);
    let (code, _, err) = wait(&["--task", "bad", "--timeout", "50ms", &run.id[..17]]);
    assert_eq!((code, err.as_str()), (4, "cpw: bad is still running; not waited for any longer\n"));
    assert_eq!(wait(&["--task", "weak"]), (0, "weak is failed: exit 3\n".into(), String::new()));
    let (mut behind, mut run_end) = (run.waiter(&["wait", "--task", "behind"]), run.waiter(&["wait", "--run"]));
    let mut interrupted = run.waiter(&["wait", "--run"]);
    kill(Pid::from_raw(interrupted.pid()), Signal::SIGINT).unwrap();
    assert_eq!(interrupted.end(PROMPT).0, 130);
    world.write("go", "");
    let (code, out, err) = behind.end(PATIENCE);
    assert_eq!((code, out.as_str(), err.as_str()), (1, "", "cpw: behind is skipped: bad\n"));
    let (code, _, err) = run_end.end(PATIENCE);
    assert!(code == 1 && err.contains("is failed: bad failed, 2 failed, 1 skipped"), "{code} {err}");
    // What has happened already is not waited for.
    assert_eq!(wait(&["--task", "bad"]), (1, String::new(), "cpw: bad is failed: exit 7: broken\n".into()));
}

#[test]
fn inside_a_task_the_own_run_is_meant_and_a_circle_is_refused() {
    let world = World::new();
    let run = Run::start(
        &world,
        &json!({"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "first", "shell": until("go")},
            {"id": "waits", "shell": "cpw wait --run; echo $?; cpw wait --task behind; echo $?; touch go; \
                cpw wait --task first --timeout 30s; echo $?"},
            {"id": "behind", "needs": ["waits"], "shell": "true"}]}),
    );
    run.wait_for("run_ended", None);
    let out = world.cpw(&["logs", "waits"]).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(said.starts_with("3\n3\nfirst is done\n0\n"), "{said}");
    assert!(said.contains("waits would wait for ever: its run ends after it"), "{said}");
    assert!(said.contains("waits would wait for ever: waits waits for behind, which needs waits"), "{said}");
}

#[test]
fn waiting_for_a_run_whose_workers_are_all_dead_finishes_it() {
    let world = World::new();
    let run = Run::start(
        &world,
        &json!({"version": 1, "limits": {"max_workers": 1}, "tasks": [
            {"id": "a", "retries": 1, "backoff": {"initial": "10ms"}, "shell": "[ $CPW_ATTEMPT = 2 ] || sleep 300"}]}),
    );
    run.wait_for("spawned", Some("a"));
    let mut waiter = run.waiter(&["wait", "--run"]);
    asleep(waiter.pid());
    kill(Pid::from_raw(run.worker("W1")), Signal::SIGKILL).unwrap();
    let (code, out, err) = waiter.end(PATIENCE);
    assert!(code == 0 && out.contains("is ok"), "{code} {out}{err}");
    assert_eq!(run.events().iter().filter(|e| e["t"] == "worker_started").count(), 2);
}

#[test]
fn where_there_are_no_fifos_waiting_polls_and_doctor_says_so() {
    let strace = |args: &[&str]| {
        let inject =
            ["-f", "-qq", "-o", "/dev/null", "-e", "trace=mknod,mknodat", "-e", "inject=mknod,mknodat:error=EPERM"];
        Command::new("strace").args(inject).args(args).output()
    };
    if !strace(&["true"]).is_ok_and(|out| out.status.success()) {
        skip("waiting without FIFOs", "no strace that may trace", "CPW_REQUIRE_STRACE");
        return;
    }
    let world = World::new();
    let cpw = |args: &[&str]| {
        let mut command = world.command("/usr/bin/env");
        command.args(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=mknod,mknodat"]);
        command.args(["-e", "inject=mknod,mknodat:error=EPERM"]).arg(support::world::program()).args(args);
        command
    };
    let doctor = String::from_utf8(cpw(&["doctor"]).output().unwrap().stdout).unwrap();
    assert!(doctor.contains("bells: no FIFO can be made in"), "{doctor}");
    let doctor = String::from_utf8(world.cpw(&["doctor"]).output().unwrap().stdout).unwrap();
    assert!(doctor.contains("waiters are woken by bells"), "{doctor}");

    // The worker is one of those who cannot hang a bell.
    world.write(
        "plan.json",
        &json!({"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "a", "shell": until("go")}, {"id": "b", "needs": ["a"], "shell": "true"}]})
        .to_string(),
    );
    let mut child = cpw(&["run", "plan.json"]).stdout(Stdio::piped()).spawn().unwrap();
    let runs = world.project().join(".claude/runs");
    let id = wait_for(PATIENCE, || {
        let names = fs::read_dir(&runs).ok()?.filter_map(|e| e.ok()?.file_name().into_string().ok());
        names.into_iter().find(|name| name.starts_with("20"))
    });
    let run = Run { world: &world, id: id.unwrap() };
    run.wait_for("spawned", Some("a"));
    assert_eq!(fs::read_dir(run.path().join("bells")).unwrap().count(), 0, "there is a bell after all");
    world.write("go", "");
    let ended = wait_for(PATIENCE, || child.try_wait().unwrap());
    assert_eq!(ended.map(|status| status.code()), Some(Some(0)), "{:#?}", run.events());
}
