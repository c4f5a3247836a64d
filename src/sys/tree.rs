//! Everything that belongs to one attempt, also what escaped from its process group, and how it is ended.
//!
//! Four nets, since each has a hole: the process group and session of the attempt's first process (lost by `setsid`),
//! the mark in the environment (lost by `env -i`), descent from the worker, which is a subreaper and gets orphans back
//! (lost when the worker dies), and the stamp that nobody loses who does not set it back ([`super::stamp`]). What slips
//! through all four is not found, and nothing here claims otherwise.
//! On macOS environments cannot be read, orphans do not come back and nobody is stamped: only group and session hold.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use nix::unistd::getpid;

use super::process::{self, Emptiness, Signal, Stat, all_pids, emptiness, environ_block};
use super::spawn::has_descendants;
use super::stamp;
use crate::base::env;
use crate::model::event::Process;

/// What belongs to an attempt.
#[derive(Debug, Clone, Default)]
pub struct Target {
    leader: Option<Process>,
    mark: Vec<Vec<u8>>,
    stamp: Option<u64>,
    descendants_except: Option<Vec<i32>>,
}

impl Target {
    /// `leader` is the attempt's first process: its group and session count as long as it is there, be it as a zombie;
    /// after that the number could be somebody else's. `mark`: variables that all of the attempt's processes were started
    /// with; all of them must be there with these values, or the stamp that stands for them. An empty mark matches nothing.
    pub fn new(leader: Option<Process>, mark: &[(&str, &str)]) -> Target {
        let mark: Vec<Vec<u8>> = mark.iter().map(|(key, value)| format!("{key}={value}").into_bytes()).collect();
        let stamp = (!mark.is_empty()).then(|| stamp::of(mark.iter().map(Vec::as_slice)));
        Target { leader, mark, stamp, descendants_except: None }
    }

    /// Counts every process below the calling one as well, other than the children in `except`, workers of whatever run that
    /// the attempt has started, and what is below them. Right only in a worker, which runs nothing but this attempt and whose
    /// own started workers are in `except`.
    #[must_use]
    pub fn with_descendants(mut self, except: &[i32]) -> Target {
        self.descendants_except = Some(except.to_vec());
        self
    }

    /// Whether it is certain, by a short look, that nobody is left once the first process has been waited for. Otherwise all
    /// processes have to be looked at.
    pub fn is_surely_gone(&self) -> bool {
        self.descendants_except.as_ref().is_some_and(|except| has_descendants(except) == Some(false))
    }

    /// Replaces the exceptions of [`Target::with_descendants`]: workers come and go while an attempt runs.
    pub fn spare(&mut self, except: &[i32]) {
        if self.descendants_except.is_some() {
            self.descendants_except = Some(except.to_vec());
        }
    }
}

/// The living processes that belong to `target`, without zombies and never the calling process.
pub fn members(target: &Target) -> Vec<Process> {
    member_stats(target).iter().map(Stat::process).collect()
}

fn member_stats(target: &Target) -> Vec<Stat> {
    let me = getpid().as_raw();
    let stats: Vec<Stat> = all_pids().into_iter().filter_map(Stat::of).collect();
    let group = target
        .leader
        .as_ref()
        .filter(|l| l.pid > 1 && l.pid != me && process::exists(l).is_some())
        .map_or(0, |l| l.pid);
    // Nobody had the mark before the first process of the attempt was there, and environments are what takes long to read.
    let since = target.leader.as_ref().map_or(0, |l| l.start_time);
    let below = target.descendants_except.as_ref().map(|except| descendants(me, &stats, except)).unwrap_or_default();
    stats
        .into_iter()
        .filter(|s| s.pid > 1 && s.pid != me && !s.is_zombie())
        .filter(|s| {
            (group > 1 && (s.pgrp == group || s.session == group))
                || below.contains(&s.pid)
                || (s.start_time >= since
                    && (target.stamp.is_some_and(|stamp| stamp::is_on(s.pid, stamp)) || is_marked(s.pid, &target.mark)))
        })
        .collect()
}

fn descendants(of: i32, stats: &[Stat], except: &[i32]) -> HashSet<i32> {
    let mut found = HashSet::from([of]);
    let mut others: HashSet<i32> = except.iter().copied().collect();
    loop {
        let before = found.len();
        for s in stats {
            if !found.contains(&s.ppid) || found.contains(&s.pid) || others.contains(&s.pid) {
                continue;
            }
            let is_worker = is_marked(s.pid, &[format!("{}=1", env::SLOT).into_bytes()]);
            if is_worker { &mut others } else { &mut found }.insert(s.pid);
        }
        if found.len() == before {
            found.remove(&of);
            return found;
        }
    }
}

fn is_marked(pid: i32, mark: &[Vec<u8>]) -> bool {
    if mark.is_empty() {
        return false;
    }
    let block = settled_environ(pid);
    mark.iter().all(|wanted| block.split(|b| *b == 0).any(|entry| entry == wanted))
}

/// The environment of a process that is not just being exchanged: in the middle of `execve` it reads as empty, and a marked
/// process would be taken for a stranger. For a moment even its bounds look settled, hence several looks.
fn settled_environ(pid: i32) -> Vec<u8> {
    let mut pause = Duration::from_micros(50);
    let mut settled = 0;
    // A busy machine can take its time in there.
    let deadline = Instant::now() + Duration::from_millis(200);
    loop {
        let Ok(block) = environ_block(pid) else { return Vec::new() };
        if !block.is_empty() || settled == 5 || Instant::now() >= deadline {
            return block;
        }
        settled = match emptiness(pid) {
            Emptiness::None => return block,
            Emptiness::Bare => settled + 1,
            Emptiness::Unsettled => 0,
        };
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Whether nobody belongs to `target` any more. Looks twice: a process that forked and ended during the first look may
/// have been missed together with its child.
fn is_gone(target: &Target) -> bool {
    members(target).is_empty() && members(target).is_empty()
}

/// How far a [`Ladder`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Somebody is still there. Call `step` again at this time (`CLOCK_MONOTONIC` in milliseconds), or when a pidfd fires.
    Waiting(u64),
    /// Nobody is left.
    Gone,
}

/// The way down: SIGTERM (with SIGCONT, so that stopped processes hear it), a grace period, SIGKILL until nobody is left.
/// Every program hears SIGTERM once. Never blocks: a poll loop drives it. It ends when the whole tree is gone, not when the
/// first process is.
#[derive(Debug)]
pub struct Ladder {
    target: Target,
    kill_at: u64,
    told: HashSet<(i32, u64, String)>,
    killing: bool,
    left: Vec<Process>,
    /// Looks in a row that found nobody. One is not enough: a process that forked and ended during a look may be missed
    /// together with its child.
    empty: u32,
    pause: u64,
}

/// First and longest pause between two looks, in milliseconds.
const PAUSES: (u64, u64) = (5, 250);

impl Ladder {
    /// Sends the first signals. `now` is `CLOCK_MONOTONIC` in milliseconds; no grace means SIGKILL at once.
    pub fn start(target: Target, grace: Duration, now: u64) -> Ladder {
        let kill_at = now.saturating_add(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        let mut ladder = Ladder {
            target,
            kill_at,
            told: HashSet::new(),
            killing: false,
            left: Vec::new(),
            empty: 0,
            pause: PAUSES.0,
        };
        ladder.signal_members(now);
        ladder
    }

    /// As [`Target::spare`], for the steps to come.
    pub fn spare(&mut self, except: &[i32]) {
        self.target.spare(except);
    }

    /// Looks who is left and signals them again where due.
    pub fn step(&mut self, now: u64) -> Progress {
        self.signal_members(now);
        if self.empty == 1 {
            self.signal_members(now);
        }
        if self.empty > 1 {
            return Progress::Gone;
        }
        let next = now.saturating_add(self.pause);
        self.pause = (self.pause * 2).min(PAUSES.1);
        if now < self.kill_at { Progress::Waiting(next.min(self.kill_at)) } else { Progress::Waiting(next) }
    }

    /// Who was there at the last look.
    pub fn left(&self) -> &[Process] {
        &self.left
    }

    fn signal_members(&mut self, now: u64) {
        let stats = member_stats(&self.target);
        self.left = stats.iter().map(Stat::process).collect();
        self.empty = if self.left.is_empty() { self.empty + 1 } else { 0 };
        if now >= self.kill_at {
            if !std::mem::replace(&mut self.killing, true) {
                self.pause = PAUSES.0;
            }
            kill_all(&self.left);
            return;
        }
        for (stat, process) in stats.into_iter().zip(&self.left) {
            // By name as well: a process that was told between fork and exec forgets it with the handlers of its parent.
            if self.told.insert((stat.pid, stat.start_time, stat.comm)) {
                // Gone meanwhile, or not ours to signal: the next look tells.
                drop(process::signal(process, Signal::SIGTERM));
                drop(process::signal(process, Signal::SIGCONT));
            }
        }
    }
}

fn kill_all(processes: &[Process]) {
    for p in processes {
        drop(process::signal(p, Signal::SIGKILL));
    }
}

/// Kills everything that belongs to `target` without grace and waits until it is gone, at most `budget`. `false`: somebody
/// is still there. For what a dead worker left behind.
pub fn kill_now(target: &Target, budget: Duration) -> bool {
    let deadline = Instant::now() + budget;
    let mut pause = Duration::from_millis(1);
    loop {
        let left = members(target);
        if left.is_empty() && is_gone(target) {
            return true;
        }
        kill_all(&left);
        let time = deadline.saturating_duration_since(Instant::now());
        if time.is_zero() {
            return is_gone(target);
        }
        std::thread::sleep(pause.min(time));
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::sys::clock::mono_ms;
    use crate::sys::dir::Dir;
    use crate::sys::lock::try_exclusive;
    use crate::sys::process::{alive, environ_of, identity_of};
    use crate::sys::spawn::{
        EnvChange, Exit, Task, TaskSpawn, become_subreaper, reap_adopted, spawn_detached, spawn_task,
    };
    use crate::sys::testing::{Helper, LONG, Stray, again, role, until};
    use std::ffi::OsString;
    use std::path::Path;

    /// An attempt in a folder of its own, with a mark of its own; nothing of it is left when the test ends.
    struct Attempt {
        task: Task,
        dir: Dir,
        run: String,
        strays: Vec<Stray>,
        _temp: tempfile::TempDir,
    }

    impl Attempt {
        fn start(script: &str) -> Attempt {
            let temp = tempfile::tempdir().unwrap();
            let dir = Dir::open(temp.path()).unwrap();
            let run = temp.path().display().to_string();
            let env: Vec<(OsString, OsString)> =
                [("CPW_RUN", run.as_str()), ("CPW_TASK", "t"), ("CPW_ATTEMPT", "1"), ("PATH", "/usr/bin:/bin")]
                    .map(|(k, v)| (k.into(), v.into()))
                    .to_vec();
            let task = spawn_task(TaskSpawn {
                program: Path::new("/bin/sh"),
                argv: &["sh", "-c", script].map(OsString::from),
                env: &env,
                cwd: temp.path(),
                stdin: None,
                stdout: dir.open_append("out").unwrap(),
                stderr: dir.open_append("err").unwrap(),
            })
            .unwrap();
            Attempt { task, dir, run, strays: Vec::new(), _temp: temp }
        }

        /// Waits until the script has written this many lines, and returns them.
        fn lines(&self, count: usize) -> Vec<String> {
            let mut lines = Vec::new();
            until("the script speaks", || {
                let text = String::from_utf8(self.dir.read_bounded("out", 1000).unwrap()).unwrap();
                lines = text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')).map(str::to_owned).collect();
                lines.len() >= count
            });
            lines
        }

        /// A process in a session of its own, not below us, with the marks given.
        fn escape(&mut self, script: &str, marks: &[(&str, &str)]) -> Process {
            let live = self.dir.open_rw(format!("live{}", self.strays.len())).unwrap();
            assert!(try_exclusive(&live).unwrap());
            let change =
                EnvChange { set: marks.iter().map(|(k, v)| (k.into(), v.into())).collect(), remove: Vec::new() };
            let args = ["-c", script].map(OsString::from);
            let pid = spawn_detached(Path::new("/bin/sh"), &args, change, self.dir.path(), live).unwrap();
            let stray = Stray::new(pid);
            let process = stray.0.clone();
            self.strays.push(stray);
            process
        }

        fn target(&self) -> Target {
            Target::new(Some(self.task.process().clone()), &self.mark())
        }

        fn mark(&self) -> [(&str, &str); 3] {
            [("CPW_RUN", self.run.as_str()), ("CPW_TASK", "t"), ("CPW_ATTEMPT", "1")]
        }
    }

    fn pids(target: &Target) -> Vec<i32> {
        let mut pids: Vec<i32> = members(target).iter().map(|p| p.pid).collect();
        pids.sort_unstable();
        pids
    }

    impl Drop for Attempt {
        fn drop(&mut self) {
            kill_now(&self.target(), LONG);
            until("the task is reaped", || self.task.try_wait().unwrap().is_some());
        }
    }

    /// Drives a ladder as a worker does; returns how long it took.
    fn walk_down(attempt: &mut Attempt, target: Target, grace: Duration) -> Duration {
        let start = Instant::now();
        let mut ladder = Ladder::start(target, grace, mono_ms());
        loop {
            drop(attempt.task.try_wait());
            match ladder.step(mono_ms()) {
                Progress::Gone => return start.elapsed(),
                Progress::Waiting(at) => {
                    assert!(start.elapsed() < LONG, "still there: {:?}", ladder.left());
                    assert!(at > mono_ms().saturating_sub(1000));
                    std::thread::sleep(Duration::from_millis(at.saturating_sub(mono_ms())));
                }
            }
        }
    }

    /// Ignores SIGTERM from the moment it has said so.
    const STUBBORN: &str = "trap '' TERM; echo $$; while :; do sleep 1000 & wait $!; done";

    #[test]
    fn a_tree_that_ignores_sigterm_and_left_its_session_is_gone_after_the_ladder() {
        let script = format!("trap '' TERM; sh -c \"{}\" & {STUBBORN}", STUBBORN.replace('$', "\\$"));
        let mut attempt = Attempt::start(&script);
        let inside: Vec<i32> = attempt.lines(2).iter().map(|l| l.parse().unwrap()).collect();
        let (run, marks) = (attempt.run.clone(), attempt.mark().map(|(k, v)| (k.to_owned(), v.to_owned())));
        let marks: Vec<(&str, &str)> = marks.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let escaped = attempt.escape(STUBBORN, &marks);
        // Another attempt of the same task, and somebody without a mark.
        let other = attempt.escape("exec sleep 600", &[("CPW_RUN", &run), ("CPW_TASK", "t"), ("CPW_ATTEMPT", "10")]);
        let stranger = attempt.escape("exec sleep 600", &[]);
        let target = attempt.target();
        until("all of them are found", || {
            let found = pids(&target);
            inside.iter().all(|p| found.contains(p)) && found.contains(&escaped.pid)
        });
        let grace = Duration::from_millis(100);
        assert!(walk_down(&mut attempt, target.clone(), grace) >= grace, "killed before the grace was over");
        assert!(!alive(&escaped) && inside.iter().all(|p| identity_of(*p).is_none_or(|p| !alive(&p))));
        assert!(pids(&target).is_empty());
        assert!(alive(&other) && alive(&stranger), "somebody else was hit");
    }

    #[test]
    fn a_stopped_task_hears_sigterm_and_leaves_within_the_grace() {
        let mut attempt =
            Attempt::start("trap 'echo bye; exit 9' TERM; echo $$; while :; do sleep 1000 & wait $!; done");
        attempt.lines(1);
        assert!(process::signal(attempt.task.process(), Signal::SIGSTOP).unwrap());
        until("it is stopped", || Stat::of(attempt.task.pid()).unwrap().state == 'T');
        let target = attempt.target();
        assert!(walk_down(&mut attempt, target, LONG) < LONG);
        assert_eq!(attempt.task.try_wait().unwrap(), Some(Exit::Code(9)));
        assert_eq!(attempt.lines(2)[1], "bye");
    }

    #[test]
    fn the_ladder_goes_on_when_only_the_first_process_left() {
        let inner = STUBBORN.replace('$', "\\$");
        let script = format!("sh -c \"{inner}\" & trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done");
        let mut attempt = Attempt::start(&script);
        let stubborn = identity_of(attempt.lines(1)[0].parse().unwrap()).unwrap();
        let target = attempt.target();
        let grace = Duration::from_millis(300);
        assert!(walk_down(&mut attempt, target, grace) >= grace);
        assert!(!alive(&stubborn), "the first process left in time, and nobody cared for the other");
    }

    #[test]
    fn a_group_counts_only_while_its_leader_is_the_recorded_process() {
        let attempt = Attempt::start("echo $$; while :; do sleep 1000 & wait $!; done");
        attempt.lines(1);
        let real = attempt.task.process().clone();
        assert!(pids(&Target::new(Some(real.clone()), &[])).contains(&real.pid));
        let wrong = Process { start_time: real.start_time + 1, ..real.clone() };
        let target = Target::new(Some(wrong), &[]);
        assert!(members(&target).is_empty(), "a later process with the same number was taken for the leader");
        assert!(kill_now(&target, Duration::ZERO) && alive(&real));
        assert!(members(&Target::new(None, &[])).is_empty(), "an empty mark matched");
        assert!(members(&Target::new(Some(process::me()), &[])).is_empty(), "our own group was taken");
    }

    #[test]
    fn what_a_dead_worker_left_is_found_by_its_mark_and_killed() {
        let mut attempt = Attempt::start("exit 0");
        until("the first process is gone", || attempt.task.try_wait().unwrap().is_some());
        let marks = attempt.mark().map(|(k, v)| (k.to_owned(), v.to_owned()));
        let marks: Vec<(&str, &str)> = marks.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let left = attempt.escape(STUBBORN, &marks);
        assert!(kill_now(&attempt.target(), LONG));
        assert!(!alive(&left));
    }

    #[test]
    fn what_cleared_its_environment_is_found_by_its_stamp_and_killed() {
        let mut attempt = Attempt::start("env -i setsid sh -c 'echo $$; exec sleep 600' & exit 0");
        let bare = identity_of(attempt.lines(1)[0].parse().unwrap()).unwrap();
        until("the first process is gone", || attempt.task.try_wait().unwrap().is_some());
        until("it runs", || Stat::of(bare.pid).unwrap().comm == "sleep");
        assert!(environ_of(bare.pid).iter().all(|(key, _)| key != "CPW_RUN"), "this test proves nothing");
        let (run, mark) = (attempt.run.clone(), attempt.mark().map(|(k, v)| (k.to_owned(), v.to_owned())));
        let other: Vec<(&str, &str)> =
            mark.iter().map(|(k, v)| (k.as_str(), if *v == run { v.as_str() } else { "2" })).collect();
        assert_eq!(pids(&Target::new(None, &other)), [0; 0], "another attempt's");
        assert!(kill_now(&attempt.target(), LONG) && !alive(&bare));
    }

    #[test]
    fn who_is_started_detached_below_an_attempt_is_not_stamped() {
        const TEST: &str = "sys::tree::tests::who_is_started_detached_below_an_attempt_is_not_stamped";
        if role().is_some() {
            let mut attempt = Attempt::start("exit 0");
            let stamped = |pid: i32| attempt.target().stamp.is_some_and(|stamp| stamp::is_on(pid, stamp));
            let me = getpid().as_raw();
            assert!(!stamped(me));
            let limit = nix::sys::resource::Resource::RLIMIT_RTTIME;
            let (_, hard) = nix::sys::resource::getrlimit(limit).unwrap();
            nix::sys::resource::setrlimit(limit, attempt.target().stamp.unwrap(), hard).unwrap();
            assert!(stamped(me), "this test proves nothing");
            until("the first process is gone", || attempt.task.try_wait().unwrap().is_some());
            let worker = attempt.escape("exec sleep 600", &[]);
            assert!(alive(&worker) && pids(&attempt.target()) == [0; 0]);
            println!("checked");
            return;
        }
        let (text, status) = Helper::start(&mut again(TEST, "task")).finish();
        assert!(status.success() && text.contains("checked"), "{text}");
    }

    #[test]
    fn a_process_in_the_middle_of_exec_is_not_overlooked() {
        // One process that does nothing but exec: its environment reads as empty again and again.
        let attempt = Attempt::start("echo 'exec sh ./again' >again; echo $$; exec sh ./again");
        attempt.lines(1);
        let target = Target::new(None, &attempt.mark());
        for look in 0..200 {
            assert_eq!(pids(&target), [attempt.task.pid()], "look {look}");
        }
    }

    #[test]
    fn a_worker_finds_what_dropped_its_mark_and_left_the_session() {
        const TEST: &str = "sys::tree::tests::a_worker_finds_what_dropped_its_mark_and_left_the_session";
        if role().is_some() {
            become_subreaper().unwrap();
            let mut attempt = Attempt::start("env -i /bin/sh -c 'echo $$; exec sleep 600' & exit 0");
            let bare: i32 = attempt.lines(1)[0].parse().unwrap();
            let bare = identity_of(bare).unwrap();
            until("the first process is gone", || attempt.task.try_wait().unwrap().is_some());
            // Stands for a worker that this one started: adopted as well, but not part of the attempt.
            let worker = attempt.escape("sh -c 'exec sleep 600' & wait", &[]);
            until("it has a child", || Stat::of(worker.pid).is_some_and(|s| s.ppid == getpid().as_raw()));
            // As if it had set its stamp back.
            let target = Target { stamp: None, ..attempt.target() };
            assert!(!pids(&target).contains(&bare.pid), "this test proves nothing");
            let target = target.with_descendants(&[worker.pid]);
            assert_eq!(pids(&target), [bare.pid]);
            assert!(!target.is_surely_gone(), "it has escaped, and is still there");
            walk_down(&mut attempt, target.clone(), LONG);
            assert!(!alive(&bare) && alive(&worker));
            assert_eq!(reap_adopted(&[worker.pid]), [bare.pid]);
            assert!(target.is_surely_gone(), "only the worker is left");
            assert!(kill_now(&Target::default().with_descendants(&[]), LONG));
            println!("checked");
            return;
        }
        let (text, status) = Helper::start(&mut again(TEST, "worker")).finish();
        assert!(status.success() && text.contains("checked"), "{text}");
    }
}
