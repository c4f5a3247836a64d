//! Runs of many tasks while everything of them is killed and stopped at random: workers, tasks, what tasks left behind,
//! hooks and commands. Then the faults stop, one command looks, and the run has to end by itself; an independent judge
//! (`support/history.rs`) reads the log against what the tasks themselves wrote down. Beside it, writers at full speed on
//! one log.
//!
//! `CPW_STRESS=tasks,workers,seconds,seed` makes it larger, as in `CPW_STRESS=2000,64,600,7` for a night; without it, 400
//! tasks, 16 workers and 20 seconds of faults. Runs follow each other until the time is over and 200 processes were killed. A
//! seed decides plans and faults; the machine's own timing it cannot decide. `CPW_STRESS_LOUD=bytes` sets how much one task of
//! each run writes to its stdout, 200 MB without it. `CPW_STORM=256` sets the largest number of writers. `CPW_TEST_BINARY` names another binary than the one that was built with the tests.
//!
//! What fails is kept below the target folder, and its place printed.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/history.rs"]
#[expect(dead_code, reason = "its own tests use more of it")]
mod history;

#[cfg(test)]
#[path = "support/locks.rs"]
mod locks;

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
    use std::os::unix::process::ExitStatusExt as _;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Output, Stdio};
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::{Duration, Instant};

    use cpw::sys::process::{identity_of, signal};
    use nix::sys::signal::Signal;
    use serde_json::{Value, json};

    use crate::history::{self, Report};
    use crate::locks::held_locks;
    use crate::support::world::{MARK, World, program, wait_for};

    const SESSION: &str = "7b1c1f2e-63a4-4a55-9a51-2d5b6b0d8a11";
    /// What hangs does not end at all; a busy machine may take its time.
    const LIMIT: Duration = Duration::from_mins(1);
    /// Once faults have stopped a run has to end within the longest time limit of a task, ten seconds, and what its tasks
    /// take that are still to come.
    const TASK_TIMEOUT: Duration = Duration::from_secs(20);
    /// Nothing of a run may be alive this long after its end.
    const LEAVE: Duration = Duration::from_secs(10);
    const KILLS: u32 = 200;

    /// A task. It says what it does, and how many events the log had at that moment: `say` counts before it writes, and a
    /// count that was killed says nothing. An empty line comes first, so that a torn one spoils only itself.
    const TASK: &str = r#"
        say() {
            seen=$(wc -l <"$CPW_RUN_DIR/events.jsonl") || exit 7
            printf '\n{"task":"%s","attempt":%s,"token":%s,"phase":"%s","seen":%d}\n' \
                "$CPW_TASK" "$CPW_ATTEMPT" "$CPW_TOKEN" "$1" "$seen" >>"$HOME/effects.jsonl"
        }
        pause=$1 failures=$2 habits=$3
        case $habits in *stubborn*) trap '' TERM ;; esac
        case $habits in
        left)
            i=0
            while [ $i -lt 40 ]; do say child; sleep 0.03; i=$((i + 1)); done
            exit 0 ;;
        esac
        say begin
        case $habits in *child*) setsid "$0" 0 0 left >/dev/null 2>&1 & ;; esac
        case $habits in *holder*) "$0" 0 0 left & ;; esac
        # One variable less than an attempt is known by, and nobody above it.
        case $habits in *daemon*)
            (env -i PATH="$PATH" HOME="$HOME" CPW_RUN_DIR="$CPW_RUN_DIR" CPW_TASK="$CPW_TASK" CPW_ATTEMPT="$CPW_ATTEMPT" \
                CPW_TOKEN="$CPW_TOKEN" setsid "$0" 0 0 left >/dev/null 2>&1 &) ;;
        esac
        case $habits in *loud*) head -c "$pause" /dev/zero || exit 8; pause=0 ;; esac
        case $habits in *progress*) cpw progress 100 --note "at work, attempt $CPW_ATTEMPT" || : ;; esac
        sleep "$pause"
        [ "$CPW_ATTEMPT" -gt "$failures" ] || exit 1
        say end
    "#;

    /// The id of the task that writes more than is kept, and what is kept of it at most.
    const LOUD: &str = "loud";
    const KEPT: u64 = 64 * 1024 * 1024;

    /// How much that is, and the longest time that it may take.
    fn loud() -> (u64, Duration) {
        let bytes =
            std::env::var("CPW_STRESS_LOUD").map_or(200_000_000, |n| n.trim().parse().expect("a number of bytes"));
        (bytes, TASK_TIMEOUT + Duration::from_secs(bytes / 50_000_000))
    }

    /// Held by each test: every one of them fills the machine.
    static ALONE: Mutex<()> = Mutex::new(());

    fn alone() -> MutexGuard<'static, ()> {
        ALONE.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chance that can be had again.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn below(&mut self, n: u64) -> u64 {
            self.next() % n.max(1)
        }

        fn in_100(&mut self, n: u64) -> bool {
            self.below(100) < n
        }

        fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
            let i = usize::try_from(self.below(all.len() as u64)).unwrap();
            all.get(i)
        }
    }

    #[derive(Debug, Clone, Copy)]
    struct Size {
        tasks: u64,
        workers: u64,
        time: Duration,
        seed: u64,
    }

    fn size() -> Size {
        let Ok(text) = std::env::var("CPW_STRESS") else {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            let seed = u64::from(now.subsec_nanos());
            return Size { tasks: 400, workers: 16, time: Duration::from_secs(20), seed };
        };
        let numbers: Vec<u64> = text.split(',').map(|n| n.trim().parse().expect("CPW_STRESS holds numbers")).collect();
        let [tasks, workers, seconds, seed] = numbers[..] else { panic!("CPW_STRESS=tasks,workers,seconds,seed") };
        Size { tasks, workers, time: Duration::from_secs(seconds), seed }
    }

    /// A plan by chance: each task needs up to three earlier ones. Most may be tried again, so that a killed worker is
    /// not the end of all that follows; those that may not are allowed to fail, or nothing needs them.
    fn tasks(size: Size, random: &mut Random) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        let mut once = Vec::new();
        for i in 0..size.tasks {
            let mut needs: Vec<u64> = Vec::new();
            for _ in 0..random.below(4) {
                let need = i.saturating_sub(1 + random.below(40));
                if need < i && !needs.contains(&need) && !once.contains(&need) {
                    needs.push(need);
                }
            }
            let needs: Vec<String> = needs.iter().map(|n| format!("t{n}")).collect();
            let mut habits: Vec<&str> = Vec::new();
            for (habit, chance) in [("stubborn", 15), ("child", 20), ("holder", 15), ("daemon", 20), ("progress", 12)] {
                if random.in_100(chance) {
                    habits.push(habit);
                }
            }
            let may_fail = random.in_100(30);
            let retries = if random.in_100(15) { 0 } else { 12 };
            if retries == 0 && !may_fail {
                once.push(i);
            }
            // A failure, or two, and rarely one too many.
            let failures = if random.in_100(15) { 1 + random.below(2) } else { 0 };
            let failures = if random.in_100(1) { 99 } else { failures };
            let pause = format!("0.{:03}", random.below(21));
            all.push(json!({
                "id": format!("t{i}"),
                "run": ["./task.sh", pause, failures.to_string(), habits.join("+")],
                "needs": needs,
                "claims": [format!("file{i}.txt")],
                "retries": if failures == 99 { 1 } else { retries },
                "backoff": {"initial": "5ms", "max": "40ms"},
                "allow_failure": may_fail,
                "priority": random.below(3),
                "timeout": format!("{}s", TASK_TIMEOUT.as_secs()),
            }));
        }
        let (bytes, time) = loud();
        all.push(json!({
            "id": LOUD,
            "run": ["./task.sh", bytes.to_string(), "0", "loud"],
            "retries": 12,
            "backoff": {"initial": "5ms", "max": "40ms"},
            "allow_failure": true,
            "timeout": format!("{}s", time.as_secs()),
        }));
        all
    }

    fn project(size: Size, random: &mut Random) -> World {
        let world = World::new().patience(LEAVE);
        world.script("task.sh", TASK);
        let config = json!({
            "version": 1,
            "limits": {"max_workers": size.workers},
            "conductor": {"wait": "100ms", "gate": "hold", "hold": "200ms", "on_claimed": "wait"},
            "rules": [{"name": "stress", "when": {"prompt": "stress"}, "tasks": tasks(size, random)}],
        });
        world.write(".claude/cpw.json", &config.to_string());
        let out = world.cpw(&["allow", "--yes"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        world
    }

    fn finish(mut child: Child, stdin: &[u8]) -> Output {
        if let Some(mut pipe) = child.stdin.take() {
            // It may have been killed already.
            drop(pipe.write_all(stdin));
        }
        child.wait_with_output().expect("it is our child")
    }

    fn hook(world: &World, name: &str, event: &str, more: &Value) -> Output {
        let mut command: Command = world.cpw(&[name]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut payload = json!({
            "session_id": SESSION, "transcript_path": "/nowhere", "cwd": world.project(), "prompt_id": "p1",
            "permission_mode": "default", "hook_event_name": event,
        });
        payload.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap_or_default());
        finish(command.spawn().expect("cpw starts"), format!("{payload}\n").as_bytes())
    }

    /// Whether the answer is one: `false` where it was killed. A hook fails never; it says nothing or JSON.
    fn is_answer(what: &str, out: &Output, codes: &[i32]) -> bool {
        if out.status.signal() == Some(Signal::SIGKILL as i32) {
            return false;
        }
        let code = out.status.code();
        let (text, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(code.is_some_and(|c| codes.contains(&c)), "{what}: {}\n{text}\n{err}", out.status);
        true
    }

    fn run_folder(world: &World) -> Option<PathBuf> {
        let entries = fs::read_dir(world.project().join(".claude/runs")).ok()?;
        entries.flatten().map(|e| e.path()).find(|p| p.is_dir())
    }

    fn log(run: &Path) -> Vec<u8> {
        fs::read(run.join("events.jsonl")).unwrap_or_default()
    }

    fn has_ended(run: &Path) -> bool {
        log(run).split(|b| *b == b'\n').any(|l| l.starts_with(b"{\"t\":\"run_ended\""))
    }

    /// What a client does while a run goes on, again and again until `over`.
    fn client(
        world: &World,
        over: &AtomicBool,
        complaints: &Mutex<Vec<String>>,
        mut random: Random,
        commands: bool,
    ) -> u32 {
        let mut calls = 0;
        while !over.load(Ordering::Relaxed) {
            calls += 1;
            let file = world.project().join(format!("file{}.txt", random.below(60)));
            let call =
                json!({"tool_name": "Read", "tool_use_id": format!("t{calls}"), "tool_input": {"file_path": file}});
            let (what, out) = if commands {
                let args: &[&str] = match random.below(3) {
                    0 => &["status"],
                    1 => &["events", "--json"],
                    _ => &["status", "--json"],
                };
                (args.join(" "), world.cpw(args).output().expect("cpw runs"))
            } else {
                let (name, event) = match random.below(8) {
                    0..3 => ("pre-tool-use", "PreToolUse"),
                    3 => ("post-tool-use", "PostToolUse"),
                    4 => ("stop", "Stop"),
                    _ => ("post-tool-batch", "PostToolBatch"),
                };
                (name.to_owned(), hook(world, name, event, &call))
            };
            if !is_answer(&what, &out, &[0]) {
                continue;
            }
            let is_json = commands && what == "status --json" || !commands && !out.stdout.is_empty();
            let value: Option<Value> = is_json.then(|| serde_json::from_slice(&out.stdout).unwrap_or_default());
            let bad = value.as_ref().is_some_and(|v| !v.is_object() || v["runs"][0]["state"] == "damaged");
            if bad || (!commands && !out.stderr.is_empty()) {
                let text = String::from_utf8_lossy(&out.stdout);
                complaints.lock().unwrap().push(format!("{what}: {text} {}", String::from_utf8_lossy(&out.stderr)));
            }
            // A client thinks between its calls, and the machine is not all ours.
            std::thread::sleep(Duration::from_millis(10 + random.below(60)));
        }
        calls
    }

    /// Whether a process carries one of these marks: it, and nobody else, is ours to end.
    fn is_ours(pid: i32, marks: &[Vec<u8>]) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|entry| marks.iter().any(|m| m == entry))
    }

    fn kind_of(command_line: &str) -> &'static str {
        if command_line.contains("worker --run") {
            "workers"
        } else if command_line.contains("task.sh") || !command_line.contains("cpw") {
            "tasks"
        } else {
            "hooks and commands"
        }
    }

    /// Sends signals to whatever is there until `over`. Returns how many of each kind were killed, and how often one was
    /// stopped. Nobody is left stopped.
    fn nemesis(
        world: &World,
        run: &str,
        over: &AtomicBool,
        kills: &AtomicU32,
        mut random: Random,
    ) -> BTreeMap<&'static str, u32> {
        let own = world.environment().into_iter().find(|(name, _)| *name == MARK).expect("a mark").1;
        // What a task starts has lost the world's mark, as every name of cpw's own that a worker has not set.
        let marks =
            [format!("{MARK}={}", own.to_str().expect("ASCII")).into_bytes(), format!("CPW_RUN={run}").into_bytes()];
        let mut counts = BTreeMap::new();
        let mut stopped: Vec<(Instant, cpw::model::event::Process)> = Vec::new();
        while !over.load(Ordering::Relaxed) {
            // Looking at all processes takes long on a busy machine, so that each look is used several times.
            let all = world.processes();
            let mut kinds: Vec<&str> = all.iter().map(|(_, line)| kind_of(line)).collect();
            kinds.sort_unstable();
            kinds.dedup();
            for _ in 0..=random.below(10) {
                let kind = random.pick(&kinds).copied().unwrap_or_default();
                let some: Vec<i32> =
                    all.iter().filter(|(_, line)| kind_of(line) == kind).map(|(pid, _)| pid.as_raw()).collect();
                // Its start time is read first and compared again when the signal is sent, through a pidfd: a stranger
                // that got the number meanwhile is not hit.
                let process = random.pick(&some).copied().and_then(identity_of).filter(|p| is_ours(p.pid, &marks));
                let Some(process) = process else { continue };
                if random.in_100(20) {
                    if signal(&process, Signal::SIGSTOP).unwrap_or(false) {
                        *counts.entry("stopped").or_default() += 1;
                        stopped.push((Instant::now() + Duration::from_millis(20 + random.below(500)), process));
                    }
                } else if signal(&process, Signal::SIGKILL).unwrap_or(false) {
                    *counts.entry(kind).or_default() += 1;
                    kills.fetch_add(1, Ordering::Relaxed);
                }
            }
            stopped.retain(|(until, process)| {
                let waits = Instant::now() < *until;
                if !waits {
                    drop(signal(process, Signal::SIGCONT));
                }
                waits
            });
            std::thread::sleep(Duration::from_millis(5 + random.below(50)));
        }
        for (_, process) in stopped {
            drop(signal(&process, Signal::SIGCONT));
        }
        counts
    }

    /// Keeps what is needed to look into a failure, and says where.
    fn keep(world: &World, run: &Path, seed: u64) -> String {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("stress-{seed}"));
        let copied = Command::new("cp").arg("-r").arg(run).arg(&place).status().is_ok_and(|s| s.success());
        drop(fs::copy(world.home().join("effects.jsonl"), place.join("effects.jsonl")));
        drop(fs::copy(world.state().join("hooks.jsonl"), place.join("hooks.jsonl")));
        format!("seed {seed}, kept: {copied}, {}", place.display())
    }

    /// What `cpw status --json` must say of a run, as the judge has folded it.
    fn told(report: &Report) -> Value {
        let counts = json!({
            "total": report.tasks.len(),
            "done": report.count(&["done"]),
            "failed": report.count(&["failed", "timed_out", "lost"]),
            "skipped": report.count(&["skipped"]),
            "cancelled": report.count(&["cancelled"]),
            "open": 0,
        });
        let tasks: Vec<Value> = report
            .tasks
            .iter()
            .map(|t| {
                let mut told = json!({"task": t.id, "state": t.state, "attempts": t.attempts()});
                let last = |key: &str| Some(t.last[key].clone()).filter(|v| !v.is_null());
                let fields = told.as_object_mut().unwrap();
                fields.extend(t.worker.clone().map(|w| ("worker".to_owned(), w.into())));
                if t.state != "skipped" {
                    fields.extend(
                        ["exit", "duration_ms", "result"].iter().filter_map(|k| Some(((*k).to_owned(), last(k)?))),
                    );
                }
                told
            })
            .collect();
        let ended = report.ended.clone().unwrap_or_default();
        json!({
            "state": ended["status"], "reason": ended["reason"], "session": SESSION, "rule": "stress", "counts": counts,
            "max_workers": report.max_workers, "tasks": tasks,
        })
    }

    /// Those keys of `all` that `like` has, all the way down.
    fn alike(all: &Value, like: &Value) -> Value {
        match (all, like) {
            (Value::Object(all), Value::Object(like)) => {
                let part = like.iter().filter_map(|(k, v)| Some((k.clone(), alike(all.get(k)?, v))));
                Value::Object(part.collect())
            }
            (Value::Array(all), Value::Array(like)) if all.len() == like.len() => {
                all.iter().zip(like).map(|(a, l)| alike(a, l)).collect()
            }
            (all, _) => all.clone(),
        }
    }

    /// Files below `folder` whose names say that they are there for a moment only.
    fn temporary_files(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                found.extend(temporary_files(&entry.path()));
            } else if name.as_encoded_bytes().starts_with(b".") && name != ".gitignore" {
                found.push(entry.path());
            }
        }
        found
    }

    /// What the loud task has left: `None` where it is not done. It says how much is cut out, and that is not there.
    fn kept_of_the_loud(run: &Path) -> Option<u64> {
        let log = log(run);
        let events = log.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let done = events.into_iter().find(|e| e["t"] == "done" && e["task"] == LOUD)?;
        let logs = run.join("workers").join(done["worker"].as_str().expect("a worker")).join("logs");
        let kept = fs::metadata(logs.join(format!("{LOUD}.{}.out", done["attempt"]))).expect("its output");
        assert!(
            kept.len() <= KEPT && kept.blocks() * 512 <= KEPT + 4096,
            "{} bytes, {} blocks",
            kept.len(),
            kept.blocks()
        );
        let cut = done["payload"]["cut_bytes"].as_u64().unwrap_or(0);
        // The mark in the middle is a line.
        assert!(kept.len() + cut >= loud().0 && kept.len() + cut < loud().0 + 200, "{kept:?}, {cut} are cut out");
        Some(kept.len())
    }

    #[derive(Debug, Default)]
    struct Tally {
        counts: BTreeMap<&'static str, u32>,
        calls: u32,
        tasks: usize,
        events: u64,
        effects: usize,
        torn_effects: usize,
        kinds: BTreeMap<String, u64>,
        leftovers: usize,
        /// Runs in which the loud task was done.
        loud: u32,
    }

    impl Tally {
        fn kills(&self) -> u32 {
            self.counts.iter().filter(|(kind, _)| **kind != "stopped").map(|(_, n)| n).sum()
        }
    }

    /// One run under fire, and everything that must hold after it.
    fn round(size: Size, seed: u64, until: Instant, tally: &mut Tally) {
        let mut random = Random(seed);
        let world = project(size, &mut random);
        let said = hook(&world, "user-prompt-submit", "UserPromptSubmit", &json!({"prompt": "stress it"}));
        assert!(is_answer("user-prompt-submit", &said, &[0]));
        let run = run_folder(&world).unwrap_or_else(|| panic!("no run: {}", String::from_utf8_lossy(&said.stdout)));
        let inode = |run: &Path| fs::metadata(run.join("events.jsonl")).map(|m| (m.dev(), m.ino())).expect("a log");
        let log_file = inode(&run);
        let id = run.file_name().and_then(|n| n.to_str()).expect("an id");
        let over = AtomicBool::new(false);
        let (complaints, kills) = (Mutex::new(Vec::new()), AtomicU32::new(tally.kills()));
        let seeds: Vec<u64> = (0..4).map(|_| random.next()).collect();
        std::thread::scope(|scope| {
            let (world, over, complaints, kills) = (&world, &over, &complaints, &kills);
            let clients: Vec<_> = [(0, false), (1, false), (2, true)]
                .map(|(i, commands)| {
                    let random = Random(seeds[i]);
                    scope.spawn(move || client(world, over, complaints, random, commands))
                })
                .into();
            let nemesis = scope.spawn(move || nemesis(world, id, over, kills, Random(seeds[3])));
            let goes_on = || Instant::now() < until || kills.load(Ordering::Relaxed) < KILLS;
            while goes_on() && !has_ended(&run) && clients.iter().all(|c| !c.is_finished()) {
                std::thread::sleep(Duration::from_millis(50));
            }
            over.store(true, Ordering::Relaxed);
            for (kind, n) in nemesis.join().expect("the nemesis ends") {
                *tally.counts.entry(kind).or_default() += n;
            }
            tally.calls += clients.into_iter().map(|c| c.join().expect("a client's checks hold")).sum::<u32>();
        });
        // Whoever looks also helps; from here on nobody else does.
        let calm = Instant::now();
        let out = world.cpw(&["status", "--json", id]).output().expect("cpw runs");
        assert!(is_answer("status", &out, &[0]));
        let bound = loud().1 + Duration::from_secs(10) + Duration::from_millis(50) * u32::try_from(size.tasks).unwrap();
        let ended = wait_for(bound, || has_ended(&run).then_some(()));
        let place = || keep(&world, &run, seed);
        assert!(ended.is_some(), "the run does not end by itself ({})\n{}", place(), tail(&run));
        let calm = calm.elapsed();
        let left = world.sweep(LEAVE);
        assert!(left.is_empty(), "alive after the end ({}): {left:?}", place());
        let said = hook(&world, "post-tool-batch", "PostToolBatch", &json!({}));
        assert!(is_answer("post-tool-batch", &said, &[0]));

        let effects = fs::read(world.home().join("effects.jsonl")).unwrap_or_default();
        let plan = fs::read(run.join("plan.json")).expect("a plan");
        let report = history::check(&log(&run), &plan, &effects, true);
        assert!(report.violations.is_empty(), "{}\n{}", place(), report.complaints());
        assert!(report.news.is_subset(&report.delivered), "{}: not all news were told: {said:?}", place());
        assert_eq!(inode(&run), log_file, "the log is another file");
        tally.loud += u32::from(kept_of_the_loud(&run).is_some());
        let complaints = complaints.into_inner().unwrap();
        assert!(complaints.is_empty(), "{}: {complaints:#?}", place());
        let out = world.cpw(&["status", "--json", id]).output().expect("cpw runs");
        let status: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        let wanted = told(&report);
        assert_eq!(alike(&status["runs"][0], &wanted), wanted, "{}", place());
        let held = held_locks(&[run.clone(), world.state()]);
        assert!(held.is_empty(), "locked after the end ({}): {held:?}", place());
        // What was killed while it made a file leaves its beginning behind under a name of its own: no more than that.
        let leftovers = temporary_files(&run);
        let is_known = |path: &PathBuf| {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let rest = name
                .strip_prefix(".tmp.")
                .or_else(|| name.strip_prefix('.').filter(|_| path.parent().is_some_and(|p| p.ends_with("bells"))));
            rest.is_some_and(|r| r.split('.').all(|part| part.parse::<u64>().is_ok()))
        };
        assert!(leftovers.iter().all(is_known), "{}: {leftovers:?}", place());
        println!(
            "seed {seed}: {} tasks, {} events, {} attempts, {} lost; over {} ms after the last fault; left: {leftovers:?}",
            report.tasks.len(),
            report.events,
            report.kind("started"),
            report.kind("lost"),
            calm.as_millis(),
        );
        tally.leftovers += leftovers.len();
        tally.tasks += report.tasks.len();
        tally.events += report.events;
        tally.effects += report.effects;
        tally.torn_effects += report.torn_effects;
        for (kind, n) in report.kinds {
            *tally.kinds.entry(kind).or_default() += n;
        }
    }

    /// The last lines of the log and of the workers' own.
    fn tail(run: &Path) -> String {
        let log = log(run);
        let lines: Vec<&[u8]> = log.split(|b| *b == b'\n').collect();
        String::from_utf8_lossy(&lines[lines.len().saturating_sub(12)..].join(&b'\n')).into_owned()
    }

    #[test]
    fn whatever_is_killed_the_run_ends_and_its_history_is_good() {
        let _alone = alone();
        let size = size();
        println!("binary {}, {size:?}", program().display());
        let (begun, mut tally, mut seed) = (Instant::now(), Tally::default(), size.seed);
        let until = begun + size.time;
        while Instant::now() < until || (tally.kills() < KILLS && begun.elapsed() < size.time + LIMIT) {
            round(size, seed, until, &mut tally);
            seed += 1;
        }
        println!("{} killed in {} s: {tally:?}", tally.kills(), begun.elapsed().as_secs());
        assert!(tally.kills() >= KILLS, "only {} processes were killed", tally.kills());
        for kind in ["lost", "worker_lost", "delivered", "decision", "progress", "failed", "done"] {
            assert!(tally.kinds.contains_key(kind), "no {kind} happened: this proves too little");
        }
    }
    // ---- Writers at full speed on one log.

    /// Set for a writer: the log's folder, its number, and how many events it writes.
    const WRITER: &str = "CPW_STORM_WRITER";

    /// What writer `i` writes as its event `k`: mostly short, sometimes up to 60 KiB, so that lines cross pages.
    fn words(i: u64, k: u64) -> String {
        let mut random = Random((i << 32) | k);
        let length = if random.in_100(5) { random.below(60 * 1024) } else { random.below(1800) };
        let length = usize::try_from(100 + length).unwrap();
        format!("{i}.{k} {}", char::from(b'a' + u8::try_from(k % 26).unwrap()).to_string().repeat(length))
    }

    /// A writer of its own process: as fast as it can from the moment its stdin ends, a line on stdout for each event that
    /// it was told is written.
    fn write_at_full_speed(told: &str) {
        use cpw::base::ids::WorkerNo;
        use cpw::model::event::{Body, Draft, Reason};
        use cpw::store::log::{Count, Log};
        use cpw::sys::dir::Dir;

        let parts: Vec<&str> = told.split('|').collect();
        let [folder, i, count] = parts[..] else { panic!("{told}") };
        let (i, count): (u64, u64) = (i.parse().unwrap(), count.parse().unwrap());
        let dir = Dir::open(folder).expect("the folder");
        let (mut log, mut fold) = (Log::open(&dir).expect("the log"), Count::default());
        std::io::stdin().read_to_end(&mut Vec::new()).expect("the start");
        for k in 0..count {
            let body = || Body::WorkerExited(Reason { reason: words(i, k) });
            log.transact(&mut fold, LIMIT, false, |tx| tx.emit(Draft::worker(WorkerNo(1), body())))
                .unwrap_or_else(|e| panic!("{e}"));
            // One write: what is torn here was not told.
            std::io::stdout().write_all(format!("\ntold {k}\n").as_bytes()).expect("somebody listens");
        }
    }

    /// The events of a log by what they say, after checking that they are numbered without a gap.
    fn said(bytes: &[u8]) -> (BTreeMap<String, u32>, u32) {
        assert_eq!(bytes.last(), Some(&b'\n'), "torn in the end");
        let (mut said, mut repaired) = (BTreeMap::new(), 0);
        for (n, line) in bytes[..bytes.len() - 1].split(|b| *b == b'\n').enumerate() {
            let value: Value = serde_json::from_slice(line).unwrap_or_else(|e| panic!("line {}: {e}", n + 1));
            assert_eq!(value["seq"], n + 1, "line {}", n + 1);
            if value["t"] == "log_repaired" {
                repaired += 1;
                continue;
            }
            let what = value["payload"]["reason"].as_str().expect("a reason");
            *said.entry(what.to_owned()).or_default() += 1;
        }
        (said, repaired)
    }

    /// Lets `writers` write `count` events each; `killed`: every other one is killed somewhere on its way.
    fn storm(writers: u64, count: u64, killed: bool) {
        const NAME: &str = "tests::every_event_of_every_writer_is_there_once";
        let temp = tempfile::tempdir().expect("a folder");
        fs::write(temp.path().join("events.jsonl"), "").expect("a log");
        fs::set_permissions(temp.path().join("events.jsonl"), PermissionsExt::from_mode(0o600)).expect("its mode");
        let start = |i: u64| {
            let mut command = Command::new(std::env::current_exe().expect("this test"));
            command
                .args(["--exact", NAME, "--nocapture"])
                .env(WRITER, format!("{}|{i}|{count}", temp.path().display()));
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a writer")
        };
        let mut all: Vec<Child> = (0..writers).map(start).collect();
        let begun = Instant::now();
        for child in &mut all {
            drop(child.stdin.take());
        }
        let log = temp.path().join("events.jsonl");
        if killed {
            let mut random = Random(writers);
            for i in (0..all.len()).step_by(2) {
                // Somewhere on its way: each a little later than the one before.
                let further = fs::metadata(&log).map_or(0, |m| m.len()) + 2000 + random.below(20_000);
                wait_for(LIMIT, || {
                    let over = matches!(all[i].try_wait(), Ok(Some(_)));
                    (over || fs::metadata(&log).map_or(0, |m| m.len()) > further).then_some(())
                });
                all[i].kill().expect("it is our child");
            }
        }
        let mut told = BTreeMap::new();
        let mut ends = 0;
        for (i, child) in (0..).zip(all) {
            let out = child.wait_with_output().expect("it is our child");
            let was_killed = out.status.signal() == Some(Signal::SIGKILL as i32);
            ends += u32::from(was_killed);
            assert!(out.status.success() || (killed && was_killed), "{}", String::from_utf8_lossy(&out.stderr));
            let text = String::from_utf8_lossy(&out.stdout).into_owned();
            let numbers =
                text.split_inclusive('\n').filter_map(|l| l.strip_prefix("told ")?.strip_suffix('\n')?.parse().ok());
            let numbers: Vec<u64> = numbers.collect();
            assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
            assert!(was_killed || numbers.len() as u64 == count, "writer {i} was told of {} events", numbers.len());
            told.insert(i, numbers.len() as u64);
        }
        let took = begun.elapsed();
        // One more cuts off what the last one killed may have left.
        drop(start(writers).wait_with_output());
        told.insert(writers, count);
        let (mut said, repaired) = said(&fs::read(&log).expect("the log"));
        let events: u32 = said.values().sum();
        for (i, n) in told {
            for k in 0..n {
                assert_eq!(said.remove(&words(i, k)), Some(1), "event {k} of writer {i}");
            }
            // It may have been killed between the write and the word of it, and then once.
            assert!(said.remove(&words(i, n)).is_none_or(|times| times == 1), "event {n} of writer {i}");
        }
        assert!(said.is_empty(), "what nobody has written: {:?}", said.keys().map(|k| &k[..20]).collect::<Vec<_>>());
        println!("{writers} writers: {events} events in {} ms, {ends} killed, {repaired} torn lines", took.as_millis());
    }

    #[test]
    fn every_event_of_every_writer_is_there_once() {
        if let Ok(told) = std::env::var(WRITER) {
            return write_at_full_speed(&told);
        }
        let _alone = alone();
        let most = std::env::var("CPW_STORM").map_or(64, |n| n.trim().parse().expect("CPW_STORM is a number"));
        for writers in [1, 8, 64, 256].into_iter().filter(|n| *n <= most) {
            storm(writers, if writers > 8 { 8 } else { 60 }, false);
        }
        storm(12, 150, true);
    }

    /// The same through the binary: hooks on a claimed file, whose calls have long names.
    #[test]
    fn every_answer_of_hooks_at_full_speed_is_in_the_log_once() {
        let _alone = alone();
        let world = World::new();
        let rules = json!([{"name": "storm", "when": {"prompt": "storm"}, "tasks": [
            {"id": "long", "shell": "exec sleep 600", "claims": ["held.txt"]},
        ]}]);
        let config = json!({"version": 1, "conductor": {"on_claimed": "block", "gate": "off"}, "rules": rules});
        world.write(".claude/cpw.json", &config.to_string());
        assert!(world.cpw(&["allow", "--yes"]).output().expect("cpw runs").status.success());
        let begun = hook(&world, "user-prompt-submit", "UserPromptSubmit", &json!({"prompt": "storm"}));
        assert!(is_answer("user-prompt-submit", &begun, &[0]));
        let run = run_folder(&world).expect("a run");
        let (callers, calls) = (32_u64, 6_u64);
        let answered = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for i in 0..callers {
                let (world, answered) = (&world, &answered);
                scope.spawn(move || {
                    for k in 0..calls {
                        // Longer ones are kept as their hash.
                        let id = words(i, k).chars().take(240).collect::<String>();
                        let input = json!({"file_path": world.project().join("held.txt")});
                        let call = json!({"tool_name": "Edit", "tool_use_id": id, "tool_input": input});
                        let out = hook(world, "pre-tool-use", "PreToolUse", &call);
                        assert!(is_answer("pre-tool-use", &out, &[0]));
                        answered.lock().unwrap().push((id, !out.stdout.is_empty()));
                    }
                });
            }
        });
        assert!(world.cpw(&["cancel"]).output().expect("cpw runs").status.success());
        wait_for(LIMIT, || has_ended(&run).then_some(())).expect("the run ends");
        let plan = fs::read(run.join("plan.json")).expect("a plan");
        let report = history::check(&log(&run), &plan, b"", true);
        assert!(report.violations.is_empty(), "{}", report.complaints());
        let mut logged: BTreeMap<String, u32> = BTreeMap::new();
        for line in log(&run).split(|b| *b == b'\n').filter(|l| l.starts_with(b"{\"t\":\"decision\"")) {
            let value: Value = serde_json::from_slice(line).expect("an event");
            *logged.entry(value["payload"]["tool_use_id"].as_str().expect("an id").to_owned()).or_default() += 1;
        }
        let answered = answered.into_inner().unwrap();
        let spoke = answered.iter().filter(|(_, spoke)| *spoke).count();
        println!("{} calls, {spoke} answered, {} in the log", answered.len(), logged.len());
        for (id, spoke) in &answered {
            let times = logged.remove(id).unwrap_or(0);
            // Who finds the log busy for too long says nothing, and writes nothing.
            assert_eq!(times, u32::from(*spoke), "{}", &id[..20]);
        }
        assert!(logged.is_empty() && spoke * 10 > answered.len(), "{logged:?}");
    }
}
