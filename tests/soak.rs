//! All ways of working together at once, for a while: runs whose tasks hold resources, hand over checkpoints, vote and say how
//! far they are, a session whose calls use the same resources, and a terminal that wants them too, while workers, tasks, hooks
//! and commands are killed at random. Then the faults stop, and every run has to end. The independent judge of histories
//! reads each log, another one the project's log of leases, and the holders themselves have noted whether they were alone.
//!
//! `CPW_SOAK=seconds,seed` makes it longer, as in `CPW_SOAK=3600,7` for a night; without it, 5 seconds of faults.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/history.rs"]
#[expect(dead_code, reason = "its own tests use more of it")]
mod history;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Write as _;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Output, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use cpw::sys::process::{identity_of, signal};
    use nix::sys::signal::Signal;
    use serde_json::{Value, json};

    use crate::history;
    use crate::support::world::{MARK, World, wait_for};

    const SESSION: &str = "7b1c1f2e-63a4-4a55-9a51-2d5b6b0d8a11";
    /// What hangs does not end at all; a busy machine may take its time.
    const LIMIT: Duration = Duration::from_mins(3);
    const TASKS: u64 = 24;

    /// Who holds something writes its name there, and looks a while later whether that still stands there. Nothing is read
    /// where who reads is killed.
    const ALONE: &str = r#"
        me="$$ $CPW_RUN $CPW_TASK $CPW_ATTEMPT"
        enter() { for what in $1; do echo "$me" >"$HOME/in-$what"; done; }
        look() { for what in $1; do now=$(cat "$HOME/in-$what")
            [ -z "$now" ] || [ "$now" = "$me" ] || echo "$what: $me beside $now" >>"$HOME/clashes"; done; }
    "#;

    /// A task, which says what it does in the form that the judge of histories reads.
    const TASK: &str = r#"
        say() {
            seen=$(wc -l <"$CPW_RUN_DIR/events.jsonl") || exit 7
            printf '\n{"task":"%s","attempt":%s,"token":%s,"phase":"%s","seen":%d}\n' \
                "$CPW_TASK" "$CPW_ATTEMPT" "$CPW_TOKEN" "$1" "$seen" >>"$HOME/effects-$CPW_RUN"
        }
        enter "$2"
        say begin
        cpw progress 50 || :
        cpw checkpoint half --data '{"n": 1}' || :
        case $CPW_TASK in t[0-4]) cpw vote go proceed --reason seen || : ;; esac
        sleep "$1"
        say end
        look "$2"
    "#;

    /// The session's client: above nothing of what is started here, and never killed.
    struct Idle(Child);

    impl Drop for Idle {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % n.max(1)
        }
    }

    /// What a task may hold, and by which names its holders find out whether they are alone.
    const HELD: [(&[&str], &str); 6] = [
        (&["db"], "db"),
        (&["db", "port:1"], "db port"),
        (&["port:1", "./data"], "port data"),
        (&["./data/../data/x"], "data"),
        (&[], ""),
        (&[], ""),
    ];

    fn tasks(random: &mut Random) -> Vec<Value> {
        let task = |i: u64, random: &mut Random| {
            let (resources, names) = HELD[usize::try_from(random.below(HELD.len() as u64)).expect("small")];
            let need = i.checked_sub(1 + random.below(6)).map(|n| match random.below(3) {
                0 => vec![format!("t{n}@half")],
                1 => vec![format!("t{n}")],
                _ if i >= 12 => vec!["go?proceed".to_owned()],
                _ => Vec::new(),
            });
            json!({
                "id": format!("t{i}"), "run": ["./task.sh", format!("0.0{}", random.below(6)), names],
                "resources": resources, "needs": need.unwrap_or_default(), "retries": 20,
                "backoff": {"initial": "5ms", "max": "40ms"}, "allow_failure": true, "timeout": "30s",
                "priority": random.below(3),
            })
        };
        (0..TASKS).map(|i| task(i, random)).collect()
    }

    /// What the first of them vote about.
    fn votes() -> Value {
        json!([{"topic": "go", "voters": ["t0", "t1", "t2", "t3", "t4"], "quorum": 2, "on_abort": "none"}])
    }

    fn hook(world: &World, client: u32, name: &str, event: &str, more: &Value) -> Output {
        let mut command = world.cpw(&[name]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command.env("CLAUDE_PID", client.to_string());
        let mut payload =
            json!({"session_id": SESSION, "cwd": world.project(), "prompt_id": "p1", "hook_event_name": event});
        payload.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("cpw starts");
        // It may have been killed already.
        drop(child.stdin.take().expect("a pipe").write_all(payload.to_string().as_bytes()));
        child.wait_with_output().expect("it is our child")
    }

    /// A session that makes call after call of what uses the database.
    fn session(world: &World, client: u32, over: &AtomicBool) {
        let mut n = 0;
        while !over.load(Ordering::Relaxed) {
            n += 1;
            let id = format!("toolu_{n}");
            let call = json!({"tool_name": "Bash", "tool_input": {"command": "psql"}, "tool_use_id": id});
            let out = hook(world, client, "pre-tool-use", "PreToolUse", &call);
            assert!(out.status.code().is_none_or(|code| code == 0), "{out:?}");
            std::thread::sleep(Duration::from_millis(20));
            hook(world, client, "post-tool-batch", "PostToolBatch", &json!({"tool_calls": [call]}));
        }
    }

    /// Somebody in a terminal who wants it as well.
    fn terminal(world: &World, over: &AtomicBool) {
        let script = format!("{ALONE} enter \"db port\"; sleep 0.02; look \"db port\"");
        while !over.load(Ordering::Relaxed) {
            let args = ["lease", "db", "port:1", "--wait", "2s", "--", "sh", "-c", &script];
            let out = world.cpw(&args).output().expect("cpw runs");
            assert!(out.status.code().is_none_or(|code| [0, 4].contains(&code)), "{out:?}");
        }
    }

    /// Kills until `over`: whatever carries a mark of this world or of one of its runs.
    fn nemesis(world: &World, over: &AtomicBool, mut random: Random) -> u32 {
        let own = world.environment().into_iter().find(|(name, _)| *name == MARK).expect("a mark").1;
        let mut kills = 0;
        while !over.load(Ordering::Relaxed) {
            let runs =
                runs(world).into_iter().filter_map(|run| Some(format!("CPW_RUN={}", run.file_name()?.to_str()?)));
            let marks: Vec<String> = runs.chain([format!("{MARK}={}", own.to_str().expect("ASCII"))]).collect();
            let is_ours = |pid: i32| {
                let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
                environment.split(|b| *b == 0).any(|entry| marks.iter().any(|m| m.as_bytes() == entry))
            };
            let all = world.processes();
            for _ in 0..random.below(3) {
                if all.is_empty() {
                    break;
                }
                let (pid, _) = &all[usize::try_from(random.below(all.len() as u64)).expect("small")];
                // Its start time is compared again when the signal is sent: a stranger with its number is not hit.
                let process = identity_of(pid.as_raw()).filter(|p| is_ours(p.pid));
                if process.is_some_and(|p| signal(&p, Signal::SIGKILL).unwrap_or(false)) {
                    kills += 1;
                }
            }
            std::thread::sleep(Duration::from_millis(20 + random.below(80)));
        }
        kills
    }

    fn runs(world: &World) -> Vec<PathBuf> {
        let all = fs::read_dir(world.project().join(".claude/runs")).into_iter().flatten().flatten();
        all.map(|e| e.path()).filter(|p| p.join("plan.json").exists()).collect()
    }

    fn has_ended(run: &Path) -> bool {
        let log = fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        log.lines().any(|l| l.starts_with("{\"t\":\"run_ended\""))
    }

    fn overlap(a: &str, b: &str) -> bool {
        a == b || a.starts_with("file:") && (a.starts_with(&format!("{b}/")) || b.starts_with(&format!("{a}/")))
    }

    /// Judges the project's log by its documented format only. Returns how many leases there were.
    fn judge_leases(log: &str) -> usize {
        let mut held: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let mut waiting: BTreeMap<u64, Value> = BTreeMap::new();
        let mut grants = 0;
        for (line, seq) in log.lines().zip(1_u64..) {
            let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("line {seq}: {e}: {line}"));
            assert_eq!(event["seq"], seq, "{line}");
            assert_eq!(event["t"] == "opened", seq == 1, "{line}");
            let payload = &event["payload"];
            let token = payload["token"].as_u64().unwrap_or(0);
            match event["t"].as_str().unwrap_or_default() {
                "queued" => drop(waiting.insert(seq, payload["resources"].clone())),
                "acquire" => {
                    assert_eq!(token, seq, "{line}");
                    let request = payload["request"].as_u64().and_then(|request| waiting.remove(&request));
                    assert!(
                        request.is_none_or(|wanted| wanted == payload["resources"]),
                        "not what was asked for: {line}"
                    );
                    let all: Vec<String> = serde_json::from_value(payload["resources"].clone()).expect("names");
                    for (other, resources) in &held {
                        let clash = all.iter().any(|a| resources.iter().any(|b| overlap(a, b)));
                        assert!(!clash, "beside the lease {other}: {line}");
                    }
                    held.insert(token, all);
                    grants += 1;
                }
                "release" | "expired" if payload["refused"] != true => {
                    let ended = held.remove(&token).is_some() || waiting.remove(&token).is_some();
                    assert!(ended, "nothing ended: {line}");
                }
                _ => {}
            }
        }
        grants
    }

    fn start(world: &World, client: u32, random: &mut Random) {
        let config = json!({
            "version": 1, "limits": {"max_workers": 4}, "conductor": {"wait": "50ms", "gate": "off"},
            "resources": {"db": {"tools": ["Bash(psql*)"]}},
            "rules": [{"name": "soak", "when": {"prompt": "soak"}, "tasks": tasks(random), "votes": votes()}]});
        world.write(".claude/cpw.json", &config.to_string());
        assert!(world.cpw(&["allow", "--yes"]).output().expect("cpw runs").status.success());
        hook(world, client, "user-prompt-submit", "UserPromptSubmit", &json!({"prompt": "Please soak it now"}));
        let plan = json!({
            "version": 1, "limits": {"max_workers": 4}, "tasks": tasks(random), "votes": votes()});
        world.write("plan.json", &plan.to_string());
        let out = world.cpw(&["run", "plan.json", "--detach"]).output().expect("cpw runs");
        assert!(out.status.success(), "{out:?}");
    }

    /// Two runs, with faults until `until` or their end. Returns how many processes were killed and leases taken.
    fn round(seed: u64, until: Instant) -> (u32, usize) {
        let mut random = Random(seed);
        let world = World::new();
        world.script("task.sh", &format!("{ALONE}{TASK}"));
        world.write("data/x", "1");
        let client = Idle(Command::new("sleep").arg("86400").env_clear().spawn().expect("sleep starts"));
        start(&world, client.0.id(), &mut random);
        let (faults, all) = (AtomicBool::new(false), AtomicBool::new(false));
        let ended = || runs(&world).iter().all(|run| has_ended(run));
        let kills = std::thread::scope(|scope| {
            let killer = scope.spawn(|| nemesis(&world, &faults, Random(seed ^ 0xff)));
            scope.spawn(|| session(&world, client.0.id(), &all));
            scope.spawn(|| terminal(&world, &all));
            while Instant::now() < until && !ended() {
                std::thread::sleep(Duration::from_millis(50));
            }
            faults.store(true, Ordering::Relaxed);
            let kills = killer.join();
            // Nobody may be left who does anything; one command looks, as a person would.
            let over = wait_for(LIMIT, || {
                world.cpw(&["status"]).output().expect("cpw runs");
                ended().then_some(())
            });
            all.store(true, Ordering::Relaxed);
            assert!(over.is_some(), "seed {seed}: a run does not end");
            kills.expect("the killer ends")
        });
        for run in runs(&world) {
            let read = |name: &str| fs::read(run.join(name)).expect("a file of the run");
            let name = run.file_name().and_then(|n| n.to_str()).expect("a name");
            let effects = fs::read(world.home().join(format!("effects-{name}"))).unwrap_or_default();
            let report = history::check(&read("events.jsonl"), &read("plan.json"), &effects, true);
            assert_eq!(report.complaints(), "", "seed {seed}, {name}");
        }
        assert_eq!(fs::read_to_string(world.home().join("clashes")).unwrap_or_default(), "", "seed {seed}");
        let log = fs::read_to_string(world.project().join(".claude/runs/project/events.jsonl")).expect("leases");
        (kills, judge_leases(&log))
    }

    #[test]
    fn whoever_is_killed_holders_are_alone_and_every_run_ends() {
        let told = std::env::var("CPW_SOAK").unwrap_or_else(|_| "5,1".into());
        let (seconds, seed) = told.split_once(',').unwrap_or((&told, "1"));
        let time = Duration::from_secs(seconds.trim().parse().expect("seconds"));
        let mut seed: u64 = seed.trim().parse().expect("a seed");
        let end = Instant::now() + time;
        let (mut kills, mut leases, mut rounds) = (0, 0, 0);
        while rounds == 0 || Instant::now() < end {
            let (killed, taken) = round(seed, end);
            kills += killed;
            leases += taken;
            rounds += 1;
            seed += 1;
        }
        println!("{rounds} rounds of two runs, {kills} killed, {leases} leases");
        assert!(kills > 0 && leases > 20, "{kills} killed, {leases} leases: nothing was tried");
    }
}
