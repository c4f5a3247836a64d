//! Runs that are cancelled, interrupted, hung up on and killed, while their tasks have children that fork, leave the session,
//! hear no SIGTERM, hold stdout and clear their environment. Each must come to its end with one outcome a task, and then
//! nobody is left: no process, no lock.
//!
//! Who is left is found by directory and environment, as everywhere, and by what each of those children has written down of
//! itself when it began, so that it cannot hide. One kind of them does all it can to get away; of those that do when their
//! worker is killed, the number is printed.
//!
//! `CPW_LEFTOVERS=300` makes it 300 runs instead of 40.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "support/ledger.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod ledger;
#[path = "support/locks.rs"]
mod locks;
#[path = "support/pty.rs"]
mod pty;
#[path = "support/scratch.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod scratch;
#[path = "support/site.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod site;
#[path = "support/skip.rs"]
mod skip;

use std::fs::File;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cpw::model::event::Process;
use cpw::sys::process::{self, Signal};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};

use locks::held_locks;
use pty::terminal;
use site::{PATIENCE, Site, lives, plan_of, shell_with};
use skip::skip;

/// Runs at a time: most of the time they wait.
const AT_ONCE: usize = 10;

/// Writes down who it is, and is there for as long as it is let, whatever it is told.
const DAEMON: &str = r#"#!/bin/sh
trap '' HUP INT TERM
cd /
echo "$1 $$ $(cut -d' ' -f22 /proc/$$/stat)" >>"$2"
exec sleep 1000
"#;

/// How a run comes to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `cpw cancel`.
    Cancelled,
    /// Ctrl-C of `cpw run`.
    Interrupted,
    /// The terminal of `cpw run` is closed, and the run goes on.
    HungUp,
    /// All workers are killed at once; then somebody looks, or cancels.
    AllKilled { cancel: bool },
    /// One worker after the other is killed.
    OneByOne,
}

const WAYS: [Way; 6] = [
    Way::Cancelled,
    Way::Interrupted,
    Way::HungUp,
    Way::AllKilled { cancel: false },
    Way::OneByOne,
    Way::AllKilled { cancel: true },
];

impl Way {
    fn kills(self) -> bool {
        matches!(self, Way::AllKilled { .. } | Way::OneByOne)
    }
}

/// Kills a process that was there a moment ago.
fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
}

/// A run, and `cpw run` where there is one.
struct Case {
    site: Site,
    front: Option<Child>,
    terminal: Option<File>,
}

impl Drop for Case {
    fn drop(&mut self) {
        if let Some(front) = &mut self.front {
            front.kill().ok();
            front.wait().ok();
        }
        // What a failed test leaves behind.
        for (_, process) in self.daemons() {
            process::signal(&process, Signal::SIGKILL).ok();
        }
    }
}

impl Case {
    fn begin(way: Way, can_hide: bool) -> Case {
        let site = Site::new();
        site.program("daemon", DAEMON);
        let daemon =
            |before: &str, kind: &str| format!("({before} ./daemon {kind} \"$HOME/daemons\" >/dev/null 2>&1 &);");
        let hidden =
            if can_hide { daemon("prlimit --rttime=unlimited env -i setsid", "hidden") } else { String::new() };
        let wait = "until [ -e \"$HOME/go\" ]; do sleep 0.2; done";
        let scripts = [
            ("forks", format!("beat; {} {} {wait}", daemon("", "orphan"), daemon("setsid", "session"))),
            // Its stdout stays open in somebody who outlives it.
            (
                "holds",
                format!("beat; ./daemon holder \"$HOME/daemons\" & {} {wait}", daemon("env -i setsid", "cleared")),
            ),
            ("deaf", format!("trap '' TERM; beat; {hidden} {wait}")),
        ];
        let more = || json!({"retries": 2, "backoff": {"initial": "10ms"}});
        let tasks: Vec<Value> = scripts.iter().map(|(id, script)| shell_with(id, more(), script)).collect();
        site.plan(&plan_of(3, &tasks));
        let mut case = Case { site, front: None, terminal: None };
        let front = ["run", "plan.json"];
        match way {
            Way::Interrupted => {
                let mut command = case.site.command(&front);
                case.front = Some(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
            }
            Way::HungUp => {
                let (master, slave) = terminal();
                let outer = ["setsid", "--ctty", "--wait"].map(str::to_owned);
                let mut command = case.site.scratch.command(&outer, &front);
                let copy = || slave.try_clone().unwrap();
                case.front = Some(command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap());
                case.terminal = Some(master);
            }
            _ => {
                let done = case.site.cpw(&["run", "plan.json", "--detach"]);
                assert!(done.is_ok(), "{done:?}");
            }
        }
        let kinds = if can_hide { 5 } else { 4 };
        case.until("all daemons", |case| {
            let is_there = |id: &str| case.site.has("spawned", id, 1);
            case.daemons().len() == kinds && case.has_begun() && scripts.iter().all(|(id, _)| is_there(id))
        });
        case
    }

    fn has_begun(&self) -> bool {
        !self.site.scratch.runs().is_empty() && self.site.scratch.ledgers().is_ok_and(|all| !all.is_empty())
    }

    /// As [`Site::until`], with time for the other runs between two looks.
    fn until(&self, what: &str, mut holds: impl FnMut(&Case) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            let log = || std::fs::read_to_string(self.site.scratch.log()).unwrap_or_default();
            let left = || (self.site.left(), self.alive());
            assert!(Instant::now() < end, "waited {PATIENCE:?} for {what}; left: {:?}; log:\n{}", left(), log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Everybody who has written down who it is, with its kind.
    fn daemons(&self) -> Vec<(String, Process)> {
        let said = self.site.said("daemons");
        let daemon = |line: &str| {
            let [kind, pid, start] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
            let boot_id = process::me().boot_id;
            Some((kind.to_owned(), Process { pid: pid.parse().ok()?, start_time: start.parse().ok()?, boot_id }))
        };
        said.lines().filter_map(daemon).collect()
    }

    /// Those that are still there.
    fn alive(&self) -> Vec<(String, Process)> {
        self.daemons().into_iter().filter(|(_, process)| process::alive(process)).collect()
    }

    fn workers(&self) -> Vec<i32> {
        let events = self.site.events();
        let all = events.iter().filter(|e| e["t"] == "worker_started").map(|e| site::pid(&e["payload"]));
        all.filter(|pid| lives(*pid)).collect()
    }

    fn has_ended(&self) -> bool {
        self.site.scratch.ledger().is_ok_and(|ledger| ledger.is_ended())
    }

    /// Waits until `cpw run` is over, if that is how the run was started.
    fn end_front(&mut self) {
        let Some(mut front) = self.front.take() else { return };
        let mut over = false;
        self.until("the end of `cpw run`", |_| {
            over = over || front.try_wait().unwrap().is_some();
            over
        });
    }

    fn end(&mut self, way: Way) {
        let cancel = |case: &Case| {
            let done = case.site.cpw(&["cancel"]);
            assert!(done.is_ok(), "{done:?}");
        };
        match way {
            Way::Cancelled => cancel(self),
            Way::Interrupted => {
                let front = self.front.as_ref().unwrap().id();
                kill(Pid::from_raw(front.cast_signed()), Signal::SIGINT).unwrap();
                self.end_front();
            }
            Way::HungUp => {
                drop(self.terminal.take());
                self.end_front();
                self.site.go("go");
            }
            Way::AllKilled { cancel: to_cancel } => {
                // One that has just been started is not in the log yet.
                self.until("the death of all workers", |case| {
                    case.workers().into_iter().for_each(end);
                    case.workers().is_empty()
                });
                if to_cancel {
                    cancel(self);
                } else {
                    self.site.status();
                    self.site.go("go");
                }
            }
            Way::OneByOne => {
                let mut killed = 0;
                self.until("the loss of three workers", |case| {
                    case.site.status();
                    let lost = case.site.events().iter().filter(|e| e["t"] == "worker_lost").count();
                    if killed == lost
                        && lost < 3
                        && let Some(pid) = case.workers().first()
                    {
                        end(*pid);
                        killed += 1;
                    }
                    lost >= 3
                });
                self.site.go("go");
            }
        }
    }

    /// Judges what is there after the end. Returns how many have got away who did all they could.
    fn judge(&self, way: Way) -> usize {
        self.until("the end of the run", |case| {
            // Where all workers are dead somebody has to come.
            case.has_ended() || (way.kills() && case.site.status()["state"] != "active")
        });
        let got_away = |all: Vec<(String, Process)>| {
            all.into_iter().filter(|(kind, _)| way.kills() && kind == "hidden").map(|(_, p)| p).collect::<Vec<_>>()
        };
        self.until("everybody to leave", |case| {
            let alive = case.alive();
            case.site.left().is_empty() && alive.len() == got_away(alive).len()
        });
        let run = self.site.scratch.runs().pop().unwrap();
        let held = held_locks(&[run, self.site.scratch.path("state")]);
        assert!(held.is_empty(), "{way:?}: locked after the end: {held:?}");
        let ledger = self.site.scratch.ledger().unwrap();
        assert_eq!(ledger.check_ended(&["forks", "holds", "deaf"]), Ok(()), "{way:?}: {:#?}", ledger.events);
        let status = ledger.events.iter().find(|e| e["t"] == "run_ended").map(|e| e["payload"]["status"].clone());
        // A task whose workers were killed three times.
        let given_up = ledger.events.iter().any(|e| e["t"] == "lost" && e["payload"]["will_retry"] == false);
        let wanted = match way {
            Way::Cancelled | Way::Interrupted | Way::AllKilled { cancel: true } => "cancelled",
            _ if given_up => "failed",
            Way::HungUp | Way::AllKilled { cancel: false } | Way::OneByOne => "ok",
        };
        assert_eq!(status, Some(wanted.into()), "{way:?}: {:#?}", ledger.events);
        assert_eq!(way.kills(), ledger.count("worker_lost") > 0, "{way:?}");
        self.site.no_overlap();
        let away = got_away(self.alive());
        for process in &away {
            drop(process::signal(process, Signal::SIGKILL));
        }
        away.len()
    }
}

#[test]
fn however_a_run_comes_to_its_end_nobody_is_left() {
    let runs: usize = std::env::var("CPW_LEFTOVERS").map_or(40, |n| n.trim().parse().expect("a number of runs"));
    let can_hide = Command::new("prlimit").arg("--version").output().is_ok_and(|out| out.status.success());
    if !can_hide {
        skip("those that do all they can to get away", "there is no prlimit", "CPW_REQUIRE_FAULTS");
    }
    let (begun, next, daemons, away) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= runs {
                return;
            }
            let way = WAYS[n % WAYS.len()];
            let mut case = Case::begin(way, can_hide);
            case.end(way);
            away.fetch_add(case.judge(way), Ordering::Relaxed);
            daemons.fetch_add(case.daemons().len(), Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(runs) {
            scope.spawn(work);
        }
    });
    let (daemons, away) = (daemons.into_inner(), away.into_inner());
    println!(
        "{runs} runs in {} s: {daemons} daemons, none left; apart from {away} without any mark whose worker was killed",
        begun.elapsed().as_secs()
    );
}
