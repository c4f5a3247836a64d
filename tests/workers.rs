//! What can happen to workers, tasks and their processes, each by the name under which it is known (docs/proofs.md): the real
//! program, its log judged by other code, and nobody left at the end.
//!
//! `CPW_FAULTS=all` tries every point where a sample is tried. What a machine cannot provoke says `SKIPPED:`, and fails where
//! `CPW_REQUIRE_FAULTS` is 1.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "support/ledger.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod ledger;
#[path = "support/pty.rs"]
mod pty;
#[path = "support/scratch.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod scratch;
#[path = "support/site.rs"]
mod site;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/strace.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod strace;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use pty::terminal;
use scratch::{Call, SESSION};
use site::{PATIENCE, Site, awaits, lives, pid, plan_of, shell, shell_with, signal, state};
use skip::skip;

const REQUIRE: &str = "CPW_REQUIRE_FAULTS";

/// Further attempts come soon.
fn again(retries: u32) -> Value {
    json!({"retries": retries, "backoff": {"initial": "10ms"}})
}

fn reason(event: &serde_json::Map<String, Value>) -> &str {
    event["payload"]["reason"].as_str().unwrap_or_default()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).collect()
}

/// A child of the test, which is ended whatever a failed assertion leaves behind.
struct Reaped(Child);

impl Reaped {
    /// Waits for its end.
    fn end(&mut self, site: &Site) -> Option<i32> {
        let mut status = None;
        site.until("the end of a child", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.and_then(|status| status.code())
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

// P01

/// A worker is killed before every call that it makes, from its start over several tasks to its end, while another one lives:
/// nobody but that one is there to notice, and it is busy.
#[test]
fn p01_a_worker_killed_at_any_moment_is_replaced_by_one_that_lives() {
    const POINTS: usize = 150;
    if let Some(why) = strace::missing() {
        skip("p01", &why, "CPW_REQUIRE_STRACE");
        return;
    }
    // The first worker takes `hold`, which ends when the others have ended; all others are for the second.
    let quick = |id: &str, needs: &[&str]| {
        shell_with(id, json!({"needs": needs, "retries": 2, "backoff": {"initial": "1ms"}}), "beat; echo done")
    };
    let plan = plan_of(
        2,
        &[
            shell_with("hold", json!({"priority": 9}), &format!("beat; {}", awaits("over-c"))),
            quick("a", &[]),
            quick("b", &["a"]),
            shell_with(
                "c",
                json!({"needs": ["b"], "retries": 2, "backoff": {"initial": "1ms"}}),
                "beat; : >\"$HOME/over-c\"",
            ),
        ],
    );
    let prepare = || {
        let mut site = Site::new();
        site.unborn(&plan);
        site.until("quiet", || site.left().is_empty());
        site.scratch.keep();
        site
    };
    let run = |site: &Site, outer: &[String]| {
        let first = Reaped(site.worker(&[]));
        site.until_spawned("hold", 1);
        let mut second = Reaped(site.worker(outer));
        second.end(site);
        site.end("ok");
        drop(first);
    };
    let site = prepare();
    let trace = site.scratch.path("io/trace");
    let traced = words(&["strace", "-qq", "-y", "-o", &trace.to_string_lossy()]);
    run(&site, &traced);
    let mut calls = strace::calls(&fs::read_to_string(&trace).unwrap());
    if std::env::var("CPW_FAULTS").is_ok_and(|v| v == "all") {
        site.scratch.restore();
    } else {
        calls.retain(|call| call.again < 2);
        let all = calls.len();
        let taken = |i: usize| (i * POINTS) / all != ((i + 1) * POINTS) / all;
        calls = calls.into_iter().enumerate().filter(|(i, _)| taken(*i)).map(|(_, call)| call).collect();
        site.scratch.restore();
    }
    let next = std::sync::atomic::AtomicUsize::new(0);
    let hits = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for mut mine in [Some(site), None] {
            let (calls, next, hits) = (&calls, &next, &hits);
            scope.spawn(move || {
                let site = mine.take().unwrap_or_else(prepare);
                let trace = site.scratch.path("io/trace");
                while let Some(call) = calls.get(next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) {
                    let fault = strace::Fault { name: call.name.clone(), k: call.k, kind: strace::Kind::Kill };
                    let outer = [words(&["strace", "-qq", "-o", &trace.to_string_lossy()]), fault.arguments()].concat();
                    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&site, &outer)));
                    assert!(tried.is_ok(), "{fault}");
                    if strace::happened(&trace) {
                        hits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                    site.scratch.restore();
                }
            });
        }
    });
    let hits = hits.into_inner();
    // How often it waits is never twice the same, so that some points are not met again.
    assert!(hits * 5 > calls.len(), "{hits} of {} faults have happened", calls.len());
}

// P02

/// A group of processes with little memory; none where the machine does not let us make one.
struct Group(PathBuf);

impl Group {
    fn new(name: &str, bytes: u64) -> Result<Group, String> {
        let (parent, limit) = if Path::new("/sys/fs/cgroup/memory/cgroup.procs").exists() {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        } else {
            ("/sys/fs/cgroup", "memory.max")
        };
        let path = Path::new(parent).join(format!("cpw-{name}-{}", std::process::id()));
        fs::create_dir(&path).map_err(|e| format!("no memory cgroup can be made: {e}"))?;
        let group = Group(path);
        let limited = fs::write(group.0.join(limit), bytes.to_string());
        limited.map_err(|e| format!("a memory cgroup cannot be limited: {e}"))?;
        // Where there is no swap, there is no such file.
        fs::write(group.0.join("memory.memsw.limit_in_bytes"), bytes.to_string()).ok();
        fs::write(group.0.join("memory.swap.max"), "0").ok();
        Ok(group)
    }

    fn procs(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let end = std::time::Instant::now() + PATIENCE;
        while fs::remove_dir(&self.0).is_err() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// Takes more memory than the group has.
const HOG: &str = "exec dd if=/dev/zero of=/dev/null bs=300M count=1 2>/dev/null";

#[test]
fn p02_a_worker_killed_for_its_memory_is_replaced_and_a_task_says_so() {
    let group = match Group::new("p02", 64 << 20) {
        Ok(group) => group,
        Err(why) => return skip("p02", &why, REQUIRE),
    };
    let site = Site::new();
    let procs = group.procs().display().to_string();
    let hungry = format!("beat; [ $CPW_ATTEMPT -gt 1 ] || {{ echo $$ >{procs}; {HOG}; }}");
    // What it leaves behind outlives the task's first process.
    let long = format!("(trap '' HUP TERM; while :; do beat; sleep 0.02; done) & {}", awaits("go"));
    let hungry = shell_with("hungry", again(1), &hungry);
    site.detach(&plan_of(3, &[shell_with("long", again(1), &long), hungry, shell("other", &awaits("go"))]));
    site.until("the second attempt", || site.has("done", "hungry", 2) && site.has("spawned", "other", 1));
    let failed = &site.of("failed", "hungry")[0];
    assert_eq!((&failed["payload"]["signal"], &failed["payload"]["will_retry"]), (&json!(9), &json!(true)));
    assert_eq!(reason(failed), "killed by signal 9");

    site.until_spawned("long", 1);
    let worker = site.worker_of("long");
    fs::write(format!("/proc/{worker}/oom_score_adj"), "1000").unwrap();
    fs::write(group.procs(), worker.to_string()).unwrap();
    let hog = Command::new("sh").args(["-c", &format!("echo $$ >{procs}; {HOG}")]).spawn().unwrap();
    let mut hog = Reaped(hog);
    hog.end(&site);
    if lives(worker) {
        signal(worker, Signal::SIGKILL);
        site.go("go");
        site.end("ok");
        return skip("p02", "the kernel has found memory elsewhere", REQUIRE);
    }
    site.until_spawned("long", 2);
    site.go("go");
    let ledger = site.end("ok");
    assert_eq!(ledger.count("lost"), 1);
}

#[test]
fn p02_a_task_that_gets_no_memory_fails_with_what_it_said() {
    let site = Site::new();
    let hungry =
        "beat; [ $CPW_ATTEMPT -gt 1 ] || { ulimit -v 200000; exec dd if=/dev/zero of=/dev/null bs=900M count=1; }";
    site.detach(&plan_of(1, &[shell_with("hungry", again(1), hungry)]));
    site.end("ok");
    assert!(reason(&site.of("failed", "hungry")[0]).contains("memory"), "{:?}", site.events());
}

// P03, P04, P05

/// Goes on for ever, hears nothing, and writes down that it is there.
const STUBBORN: &str = "trap '' HUP INT TERM; while :; do beat; sleep 0.02; done";

#[test]
fn p03_a_task_that_outlives_its_worker_is_gone_before_the_next_attempt() {
    for alone in [false, true] {
        let site = Site::new();
        let script = format!("[ $CPW_ATTEMPT -gt 1 ] && {{ beat; exit 0; }}; ({STUBBORN}) & ({STUBBORN}) & {STUBBORN}");
        let mut tasks = vec![shell_with("a", again(1), &script)];
        if !alone {
            tasks.push(shell("other", &awaits("go")));
        }
        site.detach(&plan_of(if alone { 1 } else { 2 }, &tasks));
        site.until_spawned("a", 1);
        if !alone {
            site.until_spawned("other", 1);
        }
        site.until("an effect", || site.said("effects").lines().count() > 20);
        site.kill_worker_of("a");
        if alone {
            assert_eq!(site.status()["state"], "active");
        }
        site.until("the second attempt", || site.has("done", "a", 2));
        site.go("go");
        let ledger = site.end("ok");
        assert_eq!((ledger.count("lost"), ledger.count("worker_lost")), (1, 1));
        assert!(reason(&site.of("lost", "a")[0]).contains("worker died"));
    }
}

/// Starts a grandchild that has left the session, its parent gone.
fn escaping(by: &str) -> String {
    format!(
        "export -p >/dev/null; ({by} sh -c 'trap \"\" HUP TERM; echo $$ >>\"{{escaped}}\"; while :; do sleep 0.05; done' >/dev/null 2>&1 &)"
    )
}

fn escaped(site: &Site) -> Vec<i32> {
    site.said("escaped").lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn p04_what_has_left_the_session_goes_with_its_attempt_however_that_ends() {
    let site = Site::new();
    let escape = escaping("setsid").replace("{escaped}", &site.home("escaped").display().to_string());
    let wait = format!("{escape}; {}", awaits("never"));
    let known = |n: usize| {
        format!("until [ \"$(wc -l <\"$HOME/escaped\" 2>/dev/null || echo 0)\" -ge {n} ]; do sleep 0.02; done")
    };
    site.detach(&plan_of(
        5,
        &[
            shell("ends", &format!("{escape}; {}", known(5))),
            shell("fails", &format!("{escape}; {}; exit 3", known(5))),
            shell_with("late", json!({"timeout": "1s"}), &wait),
            shell("cancelled", &wait),
            shell_with("lost", again(0), &wait),
        ],
    ));
    site.until("all of them", || {
        escaped(&site).len() == 5 && site.has("spawned", "lost", 1) && site.has("spawned", "cancelled", 1)
    });
    site.kill_worker_of("lost");
    let done = site.cpw(&["cancel", "cancelled"]);
    assert!(done.is_ok(), "{done:?}");
    site.end("failed");
    for (kind, task) in
        [("done", "ends"), ("failed", "fails"), ("timed_out", "late"), ("cancelled", "cancelled"), ("lost", "lost")]
    {
        assert!(site.has(kind, task, 1), "{task}: {:?}", site.events());
    }
    assert!(escaped(&site).iter().all(|pid| !lives(*pid)));
}

#[test]
fn p05_without_its_mark_it_goes_as_well_while_its_worker_lives() {
    let site = Site::new();
    let escape = escaping("env -i setsid").replace("{escaped}", &site.home("escaped").display().to_string());
    site.detach(&plan_of(1, &[shell("a", &format!("{escape}; until [ -s \"$HOME/escaped\" ]; do sleep 0.02; done"))]));
    site.end("ok");
    let pids = escaped(&site);
    assert!(pids.len() == 1 && !lives(pids[0]), "{pids:?}");
}

/// The daemon is then a child of another worker that goes on with its own task, or of nobody here.
#[test]
fn p05_without_its_mark_it_is_gone_before_the_next_attempt_when_its_worker_dies() {
    for alone in [true, false] {
        let site = Site::new();
        let beats = format!(
            "echo $$ >>\"{}\"; while :; do echo a 1 >>\"{}\"; sleep 0.02; done",
            site.home("escaped").display(),
            site.home("effects").display()
        );
        let first =
            format!("(env -i setsid sh -c 'trap \"\" HUP TERM; {beats}' >/dev/null 2>&1 &); {}", awaits("never"));
        let script = format!("[ $CPW_ATTEMPT -gt 1 ] && {{ beat; {}; exit 0; }}; {first}", awaits("go"));
        // Who begins first starts the others, and gets what they leave behind.
        let older = if alone { Vec::new() } else { vec![shell("older", &awaits("go"))] };
        let needs = json!({"retries": 1, "priority": -1});
        let tasks = [older, vec![shell_with("a", needs, &script)]].concat();
        site.detach(&plan_of(if alone { 1 } else { 2 }, &tasks));
        site.until("the daemon", || site.said("effects").lines().count() > 5 && site.has("spawned", "a", 1));
        let daemon = escaped(&site)[0];
        site.kill_worker_of("a");
        site.until("the second attempt", || {
            site.status();
            site.said("effects").lines().last() == Some("a 2")
        });
        assert!(!lives(daemon), "it goes on beside the next attempt");
        site.go("go");
        site.end("ok");
    }
}

/// What sets its stamp back as well, nobody can find. It is not killed, and nothing waits for it or is said of it. Nor is a
/// stranger taken for it.
#[test]
fn p05_without_any_mark_and_its_worker_it_does_not_hold_up_the_run() {
    if !Command::new("prlimit").arg("--version").output().is_ok_and(|out| out.status.success()) {
        return skip("p05", "there is no prlimit", REQUIRE);
    }
    let site = Site::new();
    let escape = escaping("prlimit --rttime=unlimited env -i setsid")
        .replace("{escaped}", &site.home("escaped").display().to_string());
    site.detach(&plan_of(1, &[shell("a", &format!("{escape}; {}", awaits("never")))]));
    site.until("the daemon", || escaped(&site).len() == 1 && site.has("spawned", "a", 1));
    site.kill_worker_of("a");
    let daemon = escaped(&site)[0];
    site.until("the end of the run", || site.status()["state"] == "failed");
    if lives(daemon) {
        signal(daemon, Signal::SIGKILL);
    }
    site.end("failed");
}

// P06, P07

#[test]
fn p06_a_task_that_cannot_be_started_fails_with_the_reason() {
    let site = Site::new();
    site.scratch.write("plain.sh", "echo never\n");
    site.program("garbage", "\u{7f}ELF and nothing else");
    let busy = site.program("busy", "#!/bin/sh\necho never\n");
    // More than the system takes with any limit on the stack.
    let long: Vec<String> = std::iter::once("true".into()).chain((0..70).map(|_| "x".repeat(100_000))).collect();
    site.plan(&plan_of(
        1,
        &[
            json!({"id": "missing", "run": ["no-such-program-at-all"]}),
            json!({"id": "plain", "run": ["./plain.sh"]}),
            json!({"id": "garbage", "run": ["./garbage"]}),
            json!({"id": "long", "run": long}),
            json!({"id": "busy", "run": ["./busy"]}),
            json!({"id": "nowhere", "run": ["true"], "cwd": "gone"}),
            json!({"id": "fine", "run": ["true"]}),
        ],
    ));
    let open = OpenOptions::new().write(true).open(busy).unwrap();
    let done = site.cpw(&["run", "plan.json"]);
    drop(open);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    site.end("failed");
    let mut reasons = Vec::new();
    for task in ["missing", "plain", "garbage", "long", "busy", "nowhere"] {
        let failed = site.of("failed", task);
        assert_eq!((failed.len(), site.of("spawned", task).len()), (1, 0), "{task}: {:?}", site.events());
        assert!(!reason(&failed[0]).is_empty(), "{task}");
        reasons.push(reason(&failed[0]).to_owned());
    }
    for (said, part) in reasons.iter().zip(["no-such-program-at-all", "plain.sh", "garbage", "long", "busy", "gone"]) {
        assert!(said.contains(part), "{part}: {reasons:#?}");
    }
    assert!(site.has("done", "fine", 1));
}

#[test]
fn p06_a_task_for_which_no_process_can_be_made_is_tried_again() {
    if let Some(why) = strace::missing() {
        return skip("p06", &why, "CPW_REQUIRE_STRACE");
    }
    for errno in ["EAGAIN", "ENOMEM"] {
        let site = Site::new();
        site.unborn(&plan_of(1, &[shell_with("a", again(1), "beat")]));
        let inject = format!("inject=?fork,?vfork,clone,?clone3:error={errno}:when=1");
        let worker = site.worker(&words(&["strace", "-qq", "-o", "/dev/null", "-e", &inject]));
        assert_eq!(Reaped(worker).end(&site), Some(0));
        site.end("ok");
        assert_eq!(site.of("failed", "a").len(), 1, "{:?}", site.events());
        assert!(site.has("done", "a", 2) && site.said("effects") == "a 2\n");
    }
}

#[test]
fn p07_with_few_descriptors_a_run_ends_or_does_not_begin() {
    for limit in [3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24] {
        let site = Site::new();
        site.plan(&plan_of(2, &[shell("a", "beat; echo x"), shell("b", "beat; echo x")]));
        let limited = format!("--nofile={limit}:{limit}");
        let mut command = site.scratch.command(&words(&["prlimit", &limited, "--"]), &["run", "plan.json", "--detach"]);
        command.stdin(Stdio::null());
        let done = site.scratch.run(command, PATIENCE);
        // 127: the loader of the program, before it was one.
        assert!([0, 1, 3, 127].contains(&done.status.code().unwrap_or(-1)), "{limit}: {done:?}");
        assert!(!done.err.contains("panic"), "{limit}: {done:?}");
        if site.scratch.ledgers().unwrap().is_empty() {
            continue;
        }
        // Workers that cannot work wait for better times; who comes next need not wait for them.
        for event in site.events().iter().filter(|e| e["t"] == "worker_started") {
            kill(Pid::from_raw(pid(&event["payload"])), Signal::SIGKILL).ok();
        }
        site.until("the end of the run", || site.status()["state"] != "active");
        site.until("everybody to leave", || site.left().is_empty());
        let ledger = site.scratch.ledger().unwrap();
        assert_eq!(ledger.check_ended(&["a", "b"]), Ok(()), "{limit}");
    }
}

// P08, P09: in namespaces of their own, where the numbers of processes and the boot are ours to decide.

/// Set in the process that is in a namespace of its own.
const INSIDE: &str = "CPW_WORKERS_INSIDE";

/// Runs a test again in namespaces of its own; none where that is not allowed.
fn in_namespace(test: &str, flags: &str) -> Result<(), String> {
    let can = Command::new("unshare").args([flags, "true"]).stderr(Stdio::null()).status();
    if !can.is_ok_and(|status| status.success()) {
        return Err(format!("`unshare {flags}` is not allowed here"));
    }
    let exe = std::env::current_exe().unwrap();
    let mut inner = Command::new("unshare");
    inner.arg(flags);
    if flags.contains('p') {
        inner.args(["--mount-proc", "--kill-child"]);
    }
    let out = inner.arg(exe).args([test, "--exact", "--nocapture"]).env(INSIDE, "1").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&[out.stdout, out.stderr].concat()));
    Ok(())
}

/// A process of nobody with this number. The one that had it must be gone, also as a zombie.
fn stranger(number: i32) -> Option<Reaped> {
    for _ in 0..50 {
        fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string()).unwrap();
        let child = Command::new("sleep").arg("1000").current_dir("/").process_group(0).env_clear().spawn().unwrap();
        let child = Reaped(child);
        if child.0.id() == u32::try_from(number).ok()? {
            return Some(child);
        }
    }
    None
}

/// In this namespace we are the first process: what nobody waits for is ours to wait for. A number is taken as long as any
/// process of its group is there, be it as a zombie.
fn reap_all(site: &Site) {
    let us = i32::try_from(std::process::id()).unwrap();
    site.until("everybody to be gone", || {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
        cpw::sys::process::all_pids() == [us]
    });
}

#[test]
fn p08_a_stranger_with_the_number_of_a_dead_worker_or_task_is_left_alone() {
    const TEST: &str = "p08_a_stranger_with_the_number_of_a_dead_worker_or_task_is_left_alone";
    if std::env::var_os(INSIDE).is_none() {
        return in_namespace(TEST, "-Upfr").unwrap_or_else(|why| skip("p08", &why, REQUIRE));
    }
    let site = Site::new();
    let script = format!("beat; [ $CPW_ATTEMPT -gt 1 ] || {}", awaits("never"));
    site.detach(&plan_of(1, &[shell_with("a", again(1), &script)]));
    site.until_spawned("a", 1);
    let (worker, task) = (site.worker_of("a"), site.process_of("a"));
    site.kill_worker_of("a");
    site.until("the end of the task", || !lives(task));
    reap_all(&site);
    let mut strangers = [worker, task].map(|number| stranger(number).expect("a process of that number"));
    site.end_looked_at("ok");
    assert_eq!(site.of("lost", "a").len(), 1, "{:?}", site.events());
    for stranger in &mut strangers {
        assert!(stranger.0.try_wait().unwrap().is_none(), "a stranger was killed");
    }
}

#[test]
fn p09_after_a_restart_nothing_is_signalled_and_the_run_ends_interrupted() {
    const TEST: &str = "p09_after_a_restart_nothing_is_signalled_and_the_run_ends_interrupted";
    if std::env::var_os(INSIDE).is_none() {
        return in_namespace(TEST, "-Urm").unwrap_or_else(|why| skip("p09", &why, REQUIRE));
    }
    let site = Site::new();
    // Its second process stands for one that has the number, and by chance the mark, of what was there before.
    let script = "beat; (trap '' HUP TERM; echo $$ >\"$HOME/other\"; while :; do sleep 0.05; done) & until false; do sleep 0.05; done";
    let waits = json!({"id": "b", "needs": ["a"], "run": ["true"]});
    site.detach(&plan_of(1, &[shell_with("a", again(3), script), waits]));
    site.until_spawned("a", 1);
    site.until("its second process", || !site.said("other").is_empty());
    let task = site.process_of("a");
    site.kill_worker_of("a");
    site.until("the end of the first process", || !lives(task));
    let boot = site.scratch.path("boot");
    fs::write(&boot, "11111111-2222-3333-4444-555555555555\n").unwrap();
    let boot = boot.to_str().unwrap();
    let mount = ["--bind", boot, "/proc/sys/kernel/random/boot_id"];
    assert!(Command::new("mount").args(mount).status().unwrap().success());
    site.until("the end of the run", || site.status()["state"] == "failed");
    let left: Vec<String> = site.left();
    assert!(left.iter().any(|line| line.contains("trap")), "what is left is not ours to end: {left:?}");
    for line in left {
        kill(Pid::from_raw(line.split(':').next().unwrap().parse().unwrap()), Signal::SIGKILL).ok();
    }
    let ledger = site.end("failed");
    assert!(ledger.has_of("lost", "a") && ledger.has_of("skipped", "b"), "{:?}", ledger.events);
    assert_eq!(ledger.count("started"), 1, "no further attempt after a restart");
    let end = ledger.events.iter().find(|e| e["t"] == "run_ended").unwrap();
    assert!(reason(end).contains("interrupted"), "{end:?}");
}

// P10, P11, P12

#[test]
fn p10_a_worker_that_is_a_zombie_is_dead() {
    if let Some(why) = strace::missing() {
        return skip("p10", &why, "CPW_REQUIRE_STRACE");
    }
    for looked_at in [false, true] {
        let site = Site::new();
        let mut tasks =
            vec![shell_with("a", again(1), &format!("beat; [ $CPW_ATTEMPT -gt 1 ] || {}", awaits("never")))];
        if !looked_at {
            tasks.push(shell("other", &awaits("go")));
        }
        site.unborn(&plan_of(if looked_at { 1 } else { 2 }, &tasks));
        // Our own child, which we don't wait for.
        let worker = Reaped(site.worker(&[]));
        site.until_spawned("a", 1);
        if !looked_at {
            site.until_spawned("other", 1);
        }
        let pid = site.worker_of("a");
        assert_eq!(pid, i32::try_from(worker.0.id()).unwrap());
        signal(pid, Signal::SIGKILL);
        site.until("a zombie", || state(pid) == Some('Z'));
        if looked_at {
            site.until("the second attempt", || site.status()["tasks"][0]["attempts"] == 2);
        } else {
            site.until_spawned("a", 2);
        }
        site.go("go");
        site.end("ok");
        assert_eq!(state(pid), Some('Z'));
        drop(worker);
    }
}

#[test]
fn p11_a_stopped_task_is_shown_and_ends_at_its_limit() {
    let site = Site::new();
    site.detach(&plan_of(1, &[shell_with("a", json!({"timeout": "3s"}), "beat; until false; do sleep 0.05; done")]));
    site.until_spawned("a", 1);
    let task = site.process_of("a");
    signal(task, Signal::SIGSTOP);
    site.until("it is shown", || site.status()["tasks"][0]["state"] == "stalled" || site.has("timed_out", "a", 1));
    site.end("failed");
    assert!(site.has("timed_out", "a", 1));
}

/// Who waits may be the only one who looks.
#[test]
fn p11_a_stopped_worker_is_ended_at_the_limit_by_who_waits_for_the_run() {
    let site = Site::new();
    let mut plan = plan_of(1, &[shell("a", &format!("beat; {}", awaits("never")))]);
    plan["limits"]["run_timeout"] = json!("3s");
    site.detach(&plan);
    site.until_spawned("a", 1);
    signal(site.worker_of("a"), Signal::SIGSTOP);
    let done = site.cpw(&["wait", "--run", "--timeout", "1m"]);
    assert_eq!(done.status.code(), Some(1), "{done:?}");
    assert!(done.err.contains("is failed"), "{done:?}");
    site.end("failed");
}

#[test]
fn p11_a_stopped_worker_does_not_keep_its_run_from_being_cancelled() {
    let site = Site::new();
    site.detach(&plan_of(
        2,
        &[
            shell("a", &format!("beat; {}", awaits("never"))),
            shell("b", &format!("beat; {}", awaits("never"))),
            json!({"id": "c", "needs": ["a"], "run": ["true"]}),
        ],
    ));
    for task in ["a", "b"] {
        site.until_spawned(task, 1);
    }
    for pid in ["a", "b"].map(|task| site.worker_of(task)) {
        // Not while it writes: the log's lock is another matter.
        site.until("it has nothing to do", || state(pid) == Some('S'));
        signal(pid, Signal::SIGSTOP);
    }
    let done = site.cpw(&["cancel"]);
    assert!(done.is_ok(), "{done:?}");
    site.end("cancelled");
}

#[test]
fn p12_a_run_that_stood_still_as_a_whole_goes_on_as_if_nothing_had_been() {
    let site = Site::new();
    site.detach(&plan_of(
        2,
        &[
            shell("a", &format!("beat; {}", awaits("go"))),
            shell("b", &format!("beat; {}", awaits("go"))),
            json!({"id": "c", "needs": ["a", "b"], "run": ["true"]}),
        ],
    ));
    for task in ["a", "b"] {
        site.until_spawned(task, 1);
    }
    let workers = [site.worker_of("a"), site.worker_of("b")];
    let all = [workers[0], workers[1], site.process_of("a"), site.process_of("b")];
    for pid in all {
        signal(pid, Signal::SIGSTOP);
    }
    site.until("all of them are stopped", || all.iter().all(|pid| state(*pid) == Some('T')));
    site.go("go");
    let before = site.events().len();
    for _ in 0..3 {
        let status = site.status();
        assert_eq!((&status["state"], &status["tasks"][0]["state"]), (&json!("active"), &json!("stalled")), "{status}");
    }
    assert_eq!(site.events().len(), before, "nobody is given up who only stands still");
    for pid in all {
        signal(pid, Signal::SIGCONT);
    }
    let ledger = site.end("ok");
    assert_eq!((ledger.count("lost"), ledger.count("worker_lost"), ledger.count("started")), (0, 0, 3));
}

#[test]
fn a_task_that_cancels_means_its_own_run_and_not_the_newest() {
    let site = Site::new();
    let own = site.detach(&plan_of(1, &[shell("a", &format!("{}; cpw cancel", awaits("go")))]));
    let newest = site.detach(&plan_of(1, &[shell("b", &awaits("stop"))]));
    site.go("go");
    let done = site.cpw(&["wait", "--run", &own, "--timeout", "1m"]);
    assert!(done.status.code() == Some(1) && done.err.contains("cancelled"), "{done:?}");
    site.go("stop");
    let done = site.cpw(&["wait", "--run", &newest, "--timeout", "1m"]);
    assert!(done.is_ok(), "{done:?}");
}

// P13, P14

#[test]
fn p13_a_terminal_that_closes_leaves_the_run_going_on() {
    let site = Site::new();
    site.plan(&plan_of(
        2,
        &[shell("a", &format!("beat; {}", awaits("go"))), shell("b", &format!("beat; {}", awaits("go")))],
    ));
    let (master, slave) = terminal();
    // The leader of a session of its own, whose terminal this is: closing it hangs up on all of its foreground.
    let outer = words(&["setsid", "--ctty", "--wait"]);
    let mut command = site.scratch.command(&outer, &["run", "plan.json"]);
    let copy = || slave.try_clone().unwrap();
    let mut follower = Reaped(command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap());
    drop(command);
    drop(slave);
    site.until("the run", || {
        !site.scratch.runs().is_empty() && site.scratch.ledgers().is_ok_and(|all| !all.is_empty())
    });
    for task in ["a", "b"] {
        site.until_spawned(task, 1);
    }
    drop(master);
    follower.end(&site);
    assert!(lives(site.worker_of("a")) && lives(site.worker_of("b")));
    site.go("go");
    let ledger = site.end("ok");
    assert_eq!(ledger.count("lost") + ledger.count("cancel_requested"), 0);
}

fn rules(site: &Site) {
    let rule = json!({
        "name": "analyze", "when": {"prompt": "(?i)\\banaly[sz]e\\b"}, "for_each": {"list": ["a", "b"]},
        "tasks": [{"id": "{{item}}", "shell": format!("{}beat; echo \"Findings $CPW_ITEM\"; {}", site::BEAT, awaits("go"))}],
    });
    site.scratch
        .write(".claude/cpw.json", &json!({"version": 1, "limits": {"max_workers": 2}, "rules": [rule]}).to_string());
    let done = site.cpw(&["allow", "--yes"]);
    assert!(done.is_ok(), "{done:?}");
}

fn prompt(id: &str) -> Call {
    Call {
        hook: "user-prompt-submit",
        event: "UserPromptSubmit",
        session: SESSION,
        client: false,
        more: json!({"prompt": "Analyze it", "prompt_id": id}),
    }
}

#[test]
fn p14_a_client_that_kills_the_group_of_its_hook_does_not_reach_the_workers() {
    let site = Site::new();
    rules(&site);
    // As a client's shell around the hook, which is still there when the group is killed.
    let outer = words(&["sh", "-c", "\"$@\"; : >\"$HOME/answered\"; exec sleep 1000", "sh"]);
    let mut command = site.scratch.hook(&outer, &prompt("p1"));
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut shell = Reaped(command.spawn().unwrap());
    site.until("the answer", || site.home("answered").exists());
    killpg(Pid::from_raw(shell.0.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    shell.end(&site);
    for task in ["a", "b"] {
        site.until_spawned(task, 1);
    }
    site.go("go");
    let ledger = site.end("ok");
    assert_eq!((ledger.count("lost"), ledger.count("started")), (0, 2));
}

// P15 stands in tests/faults.rs, as P01, P06, P07, P18 and P20 for single operations; P17 in tests/hooks.rs.

/// A prompt whose hook is killed when it is about to answer.
fn kill_before_the_answer(site: &Site) {
    let answer = site.scratch.path("io/out").display().to_string();
    let inject = "inject=write,writev:signal=KILL:when=1";
    let outer = words(&["strace", "-qq", "-o", "/dev/null", "-P", &answer, "-e", "trace=write,writev", "-e", inject]);
    let killed = site.scratch.run(site.scratch.hook(&outer, &prompt("p1")), PATIENCE);
    assert!(killed.is_killed() && killed.out.is_empty(), "{killed:?}");
}

/// Killed when it is about to answer: the run is there, and the model does not know of it.
#[test]
fn p16_a_run_whose_announcement_was_lost_is_told_by_the_next_hook() {
    if let Some(why) = strace::missing() {
        return skip("p16", &why, "CPW_REQUIRE_STRACE");
    }
    let site = Site::new();
    rules(&site);
    kill_before_the_answer(&site);
    for task in ["a", "b"] {
        site.until_spawned(task, 1);
    }
    site.go("go");
    site.until("the end of the run", || site.scratch.ledger().is_ok_and(|ledger| ledger.is_ended()));
    let next =
        Call { hook: "post-tool-batch", event: "PostToolBatch", session: SESSION, client: false, more: json!({}) };
    let told = site.scratch.run(site.scratch.hook(&[], &next), PATIENCE);
    let said: Value = serde_json::from_str(&told.out).unwrap_or_else(|e| panic!("{e}: {told:?}"));
    let context = said["hookSpecificOutput"]["additionalContext"].as_str().unwrap_or_default();
    assert!(context.contains("analyze") && context.contains("Findings a") && context.contains("Findings b"), "{said}");
    // Not twice.
    let again = site.scratch.run(site.scratch.hook(&[], &next), PATIENCE);
    assert_eq!(again.out, "", "{again:?}");
    site.end("ok");
}

/// And with the same prompt again, as a client does that has heard nothing.
#[test]
fn p16_the_same_prompt_again_says_what_was_started_and_starts_nothing() {
    if let Some(why) = strace::missing() {
        return skip("p16", &why, "CPW_REQUIRE_STRACE");
    }
    let site = Site::new();
    rules(&site);
    kill_before_the_answer(&site);
    let again = site.scratch.run(site.scratch.hook(&[], &prompt("p1")), PATIENCE);
    assert!(again.is_ok(), "{again:?}");
    assert_eq!(site.scratch.ledgers().unwrap().len(), 1);
    site.go("go");
    site.end("ok");
}

// P19

#[test]
fn p19_odd_surroundings_do_not_change_what_a_run_is() {
    for (what, change) in [
        ("no umask", "umask 0"),
        ("every umask", "umask 0777"),
        ("no PATH", "PATH="),
        ("no HOME", "unset HOME"),
        ("no place for temporary files", "TMPDIR=/proc/nowhere; export TMPDIR"),
        ("a small stack", "ulimit -s 512"),
        ("no core files, few processes to wait for", "ulimit -c 0; trap '' PIPE CHLD HUP"),
    ] {
        let site = Site::new();
        let script = format!("{change}; exec \"$@\"");
        // By a path, since there may be none to look at.
        let task = json!({"id": "a", "run": ["/bin/sh", "-c", "echo fine"]});
        site.plan(&plan_of(1, &[task, json!({"id": "b", "needs": ["a"], "run": ["/bin/true"]})]));
        let command = site.scratch.command(&words(&["/bin/sh", "-c", &script, "sh"]), &["run", "plan.json"]);
        let done = site.scratch.run(command, PATIENCE);
        assert!(done.is_ok(), "{what}: {done:?}");
        site.end("ok");
        assert_eq!(site.cpw(&["result", "a"]).out, "fine\n", "{what}");
        let log = site.scratch.log();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(log.parent().unwrap()), mode(&log)), (0o700, 0o600), "{what}");
    }
}

#[test]
fn p19_where_the_current_directory_is_gone_nothing_starts() {
    let site = Site::new();
    site.plan(&plan_of(1, &[shell("a", "beat")]));
    let outer = words(&["sh", "-c", "mkdir gone && cd gone && rmdir ../gone && exec \"$@\"", "sh"]);
    let plan = site.scratch.project().join("plan.json").display().to_string();
    for args in [&["run", plan.as_str()][..], &["status"], &["cancel"], &["worker"], &["doctor"]] {
        let done = site.scratch.run(site.scratch.command(&outer, args), PATIENCE);
        assert!([1, 3].contains(&done.status.code().unwrap_or(-1)), "{args:?}: {done:?}");
        assert!(!done.err.is_empty() && !done.err.contains("panicked"), "{args:?}: {done:?}");
    }
    assert!(site.scratch.runs().is_empty() && site.said("effects").is_empty());
}

// P20, P21, P23, P24

#[test]
fn p20_a_worker_that_aborts_is_dead_and_its_task_is_tried_again() {
    for how in ["abort", "no memory"] {
        let site = Site::new();
        let script =
            format!("beat; [ $CPW_ATTEMPT -gt 1 ] || {}; head -c 100000 /dev/zero; echo fine", awaits("first"));
        site.detach(&plan_of(2, &[shell_with("a", again(2), &script), shell("other", &awaits("go"))]));
        site.until_spawned("a", 1);
        site.until_spawned("other", 1);
        let worker = site.worker_of("a");
        if how == "abort" {
            signal(worker, Signal::SIGABRT);
            site.until_spawned("a", 2);
        } else {
            let limited = Command::new("prlimit").args(["--pid", &worker.to_string(), "--as=1:1"]).status().unwrap();
            assert!(limited.success());
        }
        // Whether it comes to an end without any memory or not: somebody writes down an outcome.
        site.go("first");
        site.until("an outcome", || site.of("done", "a").len() == 1);
        site.go("go");
        site.end("ok");
    }
}

#[test]
fn p20_without_memory_a_hook_blocks_nothing() {
    let site = Site::new();
    rules(&site);
    site.go("go");
    for kib in [1, 100, 500, 1_000, 2_000, 3_000, 4_000, 6_000, 8_000, 12_000, 16_000, 32_000] {
        let limited = format!("--as={0}:{0}", kib * 1024);
        let outer = words(&["prlimit", &limited, "--"]);
        let done = site.scratch.run(site.scratch.hook(&outer, &prompt(&format!("p{kib}"))), PATIENCE);
        // Neither 2, which would block, nor words that are no answer.
        assert_ne!(done.status.code(), Some(2), "{kib}: {done:?}");
        assert!(done.out.is_empty() || serde_json::from_str::<Value>(&done.out).is_ok(), "{kib}: {done:?}");
    }
    site.until("the end of all runs", || {
        let done = site.cpw(&["status", "--json"]);
        let all: Value = serde_json::from_str(&done.out).unwrap();
        all["runs"].as_array().unwrap().iter().all(|run| run["state"] == "ok")
    });
    site.until("everybody to leave", || site.left().is_empty());
}

#[test]
fn p21_a_task_that_ignores_sigterm_is_killed_with_all_that_it_started() {
    let site = Site::new();
    let stubborn =
        format!("({STUBBORN}) & setsid sh -c 'trap \"\" HUP TERM; while :; do sleep 0.05; done' & {STUBBORN}");
    site.detach(&plan_of(
        2,
        &[shell_with("late", json!({"timeout": "500ms"}), &stubborn), shell("cancelled", &stubborn)],
    ));
    site.until_spawned("cancelled", 1);
    let done = site.cpw(&["cancel", "cancelled"]);
    assert!(done.is_ok(), "{done:?}");
    site.end("failed");
    for (kind, task) in [("timed_out", "late"), ("cancelled", "cancelled")] {
        assert_eq!(site.of(kind, task)[0]["payload"]["signal"], 9, "{:?}", site.events());
    }
}

#[test]
fn p23_a_child_that_keeps_stdout_open_does_not_hold_the_task() {
    let site = Site::new();
    site.plan(&plan_of(
        1,
        &[
            shell("plain", "echo first; sleep 1000 & echo last"),
            shell("away", "echo first; setsid sleep 1000 & echo last"),
            json!({"id": "after", "needs": ["plain", "away"], "run": ["true"]}),
        ],
    ));
    let done = site.cpw(&["run", "plan.json"]);
    assert!(done.is_ok(), "{done:?}");
    site.end("ok");
    for task in ["plain", "away"] {
        assert_eq!(site.cpw(&["result", task]).out, "first\nlast\n");
    }
}

#[test]
fn p24_a_task_that_asks_gets_no_answer_and_does_not_wait_for_one() {
    let site = Site::new();
    let asks = "if read -r x; then echo \"got $x\"; exit 4; fi; if (: </dev/tty) 2>/dev/null; then exit 5; fi; [ ! -t 0 ] && echo nobody";
    let other = awaits("never");
    site.plan(&plan_of(
        2,
        &[shell("asks", asks), shell_with("waits", json!({"timeout": "1s", "allow_failure": true}), &other)],
    ));
    // From a terminal, whose keys are for the person and not for the task.
    let (mut master, slave) = terminal();
    let mut command = site.scratch.command(&words(&["setsid", "--ctty", "--wait"]), &["run", "plan.json"]);
    command.stdin(slave.try_clone().unwrap()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut run = Reaped(command.spawn().unwrap());
    master.write_all(b"typed\n").unwrap();
    assert_eq!(run.end(&site), Some(0), "{:?}", site.events());
    site.end("ok");
    assert_eq!(site.cpw(&["result", "asks"]).out, "nobody\n");
    assert!(site.has("timed_out", "waits", 1));
}

// P29

#[test]
fn p29_a_binary_that_is_replaced_or_deleted_meanwhile_does_not_stop_the_run() {
    for how in ["replaced", "deleted"] {
        let site = Site::new();
        let copy = site.scratch.path("cpw");
        fs::copy(scratch::program(), &copy).unwrap();
        // The last two run at the same time, and so need a worker that is started when the binary is another one.
        let late = |id: &str| shell_with(id, json!({"needs": ["b"]}), &awaits("go"));
        let tasks = [shell("a", &awaits("go")), shell("b", &awaits("go-b")), late("c"), late("d")];
        site.plan(&plan_of(3, &tasks));
        let mut command = Command::new(&copy);
        let like = site.command(&[]);
        command.env_clear().envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.args(["run", "plan.json", "--detach"]).current_dir(site.scratch.project()).stdin(Stdio::null());
        let done = site.scratch.run(command, PATIENCE);
        assert!(done.is_ok(), "{done:?}");
        site.until_spawned("b", 1);
        if how == "replaced" {
            let other = site.scratch.path("other");
            fs::write(&other, "#!/bin/sh\necho another program >>\"$HOME/wrong\"; exit 7\n").unwrap();
            fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
            fs::rename(other, &copy).unwrap();
        } else {
            fs::remove_file(&copy).unwrap();
        }
        site.go("go-b");
        for task in ["c", "d"] {
            site.until_spawned(task, 1);
        }
        site.go("go");
        assert_eq!(site.end("ok").count("worker_started"), 3);
        assert_eq!(site.said("wrong"), "", "{how}");
    }
}
