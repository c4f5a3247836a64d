//! Power cuts: with `"durability": "power"` nothing that cpw has acted on is lost, what is lost is the end of the log, and
//! cpw goes on from what is left.
//!
//! Two proofs. One reads the order of system calls: between the write of a commit event and its sync a process does
//! nothing that another could notice. It needs `strace`. The other cuts: the world lives on an ext4 image behind a loop
//! device; all processes of it are stopped, the image is copied as it is, without a sync, and the copy is mounted and read.
//! It needs root and loop devices. A proof that cannot be had prints `SKIPPED:`, or fails where `CPW_REQUIRE_STRACE=1` or
//! `CPW_REQUIRE_POWER=1` asks for it. Both are done with `"durability": "process"` as well, and must find what is wrong
//! with it: a proof that cannot fail is none.
//!
//! `CPW_POWER=seconds` is how long it is cut, 8 without it. `CPW_TEST_BINARY` names another binary than the built one.

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
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::history;
    use crate::support::skip::skip;
    use crate::support::world::{World, program, wait_for};

    const LIMIT: Duration = Duration::from_mins(1);

    const COMMITS: [&str; 9] =
        ["run_started", "started", "done", "failed", "timed_out", "cancelled", "lost", "skipped", "run_ended"];

    /// Calls by which a process writes, syncs, starts, signals or leaves: what others can notice, and what makes it safe.
    const TRACED: &str = "trace=write,writev,pwrite64,pwritev,ftruncate,fdatasync,fsync,flock,rename,renameat,renameat2,\
        linkat,clone,clone3,fork,vfork,execve,kill,tgkill,pidfd_send_signal,exit_group";

    fn run_folder(world: &World) -> PathBuf {
        let find = || {
            let entries = fs::read_dir(world.project().join(".claude/runs")).ok()?;
            entries.flatten().map(|e| e.path()).find(|p| p.is_dir())
        };
        wait_for(LIMIT, find).expect("a run")
    }

    fn log(run: &Path) -> Vec<u8> {
        fs::read(run.join("events.jsonl")).unwrap_or_default()
    }

    fn kinds(log: &[u8]) -> Vec<String> {
        let kind = |l: &[u8]| {
            let value: Value = serde_json::from_slice(l).unwrap_or_default();
            value["t"].as_str().unwrap_or_default().to_owned()
        };
        log.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(kind).collect()
    }

    fn wait_for_kind(run: &Path, kind: &str) {
        let there = wait_for(LIMIT, || kinds(&log(run)).iter().any(|k| k == kind).then_some(()));
        assert!(there.is_some(), "no {kind}: {:?}", kinds(&log(run)));
    }

    fn id(run: &Path) -> &str {
        run.file_name().and_then(|n| n.to_str()).expect("an id")
    }

    // ---- The order of system calls.

    /// What is wrong with one process's calls, in their order, and how many commits were synced in time.
    fn judge_calls(trace: &str) -> (Vec<String>, Vec<&'static str>) {
        let mut wrong = Vec::new();
        let mut synced = Vec::new();
        let mut pending: Vec<&'static str> = Vec::new();
        for call in trace.lines() {
            let about_log = call.split_once(',').map_or(call, |(fd, _)| fd).contains("/events.jsonl>");
            let writes = call.starts_with("write") || call.starts_with("pwrite");
            let named: Vec<&'static str> = COMMITS
                .into_iter()
                .filter(|_| writes && about_log)
                .flat_map(|k| vec![k; call.matches(&format!(r#"{{\"t\":\"{k}\","#)).count()])
                .collect();
            if call.starts_with("fdatasync(") || call.starts_with("fsync(") {
                if about_log && call.ends_with("= 0") {
                    synced.append(&mut pending);
                }
            } else if !(pending.is_empty() || call.starts_with("+++") || call.starts_with("flock(") && about_log) {
                let call: String = call.chars().take(160).collect();
                wrong.push(format!("{pending:?} not synced before {call}"));
                // Said once for each.
                pending.clear();
            }
            pending.extend(named);
        }
        if !pending.is_empty() {
            wrong.push(format!("{pending:?} never synced"));
        }
        (wrong, synced)
    }

    #[test]
    fn the_order_of_calls_is_judged_rightly() {
        let write = r#"write(5</r/events.jsonl>, "{\"t\":\"done\",\"seq\":4,\"ts\":\"…\"}\n", 99) = 99"#;
        let (unlock, sync) = ("flock(5</r/events.jsonl>, LOCK_UN) = 0", "fdatasync(5</r/events.jsonl>) = 0");
        let progress = write.replace("done", "progress");
        let cases: [(&str, &[&str], usize, usize); 8] = [
            ("in order", &[write, unlock, sync, "clone() = 7", "+++ exited with 0 +++"], 0, 1),
            ("acts first", &[write, unlock, "clone() = 7", sync], 1, 0),
            ("rings first", &[write, unlock, r#"write(6</r/bells/7.1>, "!", 1) = 1"#, sync], 1, 0),
            ("never", &[write, unlock, "+++ exited with 0 +++"], 1, 0),
            ("another file", &[write, unlock, "fdatasync(6</r/plan.json>) = 0"], 1, 0),
            ("the sync fails", &[write, unlock, "fdatasync(5</r/events.jsonl>) = -1 EIO", "exit_group(1) = ?"], 1, 0),
            ("no commit", &[&progress, unlock, "clone() = 7"], 0, 0),
            ("two at once", &[&write.replace("…", r#"…\"}\n{\"t\":\"run_ended\",\"x\":\""#), unlock, sync], 0, 2),
        ];
        for (what, calls, wrong, synced) in cases {
            let found = judge_calls(&calls.join("\n"));
            assert_eq!((found.0.len(), found.1.len()), (wrong, synced), "{what}: {found:?}");
        }
    }

    /// Starts `cpw` with everything it starts below `strace`, which leaves when they all have.
    fn traced(world: &World, name: &str, args: &[&str]) -> Child {
        let mut command = world.command("strace");
        command.args(["-f", "-ff", "-qq", "-y", "-s", "200000", "-e", "signal=none", "-e", TRACED, "-o"]);
        command.arg(world.path(name)).arg(program()).args(args).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().expect("strace starts")
    }

    fn wait_end(mut child: Child) {
        let ended = wait_for(LIMIT, || child.try_wait().expect("it is our child"));
        if ended.is_none() {
            drop(child.kill().and_then(|()| child.wait().map(drop)));
        }
        assert!(ended.is_some(), "the traced processes do not leave");
    }

    /// All that happens to attempts, under `strace`: one judgement of every process's calls.
    fn order_of_calls(durability: &str) -> (Vec<String>, BTreeMap<&'static str, usize>) {
        let world = World::new();
        let plan = json!({"version": 1, "durability": durability, "limits": {"max_workers": 2}, "tasks": [
            {"id": "good", "shell": "exit 0"},
            {"id": "next", "shell": "exit 0", "needs": ["good"]},
            {"id": "bad", "shell": "exit 1", "retries": 1, "backoff": "10ms"},
            {"id": "behind", "shell": "exit 0", "needs": ["bad"]},
            {"id": "slow", "shell": "exec sleep 60", "timeout": "100ms"},
        ]});
        world.write("plan.json", &plan.to_string());
        wait_end(traced(&world, "a", &["run", "plan.json"]));
        fs::remove_dir_all(run_folder(&world)).expect("the run is over");

        let long = json!({"version": 1, "durability": durability, "tasks": [
            {"id": "long", "shell": "exec sleep 60", "retries": 1, "backoff": "10ms"},
            {"id": "last", "shell": "exit 0", "needs": ["long"]},
        ]});
        world.write("plan.json", &long.to_string());
        let first = traced(&world, "b", &["run", "plan.json", "--detach"]);
        let run = run_folder(&world);
        wait_for_kind(&run, "spawned");
        // A worker dies, and whoever looks finishes what it left.
        let (worker, _) = world
            .processes()
            .into_iter()
            .find(|(_, line)| line.contains("worker --run") && !line.contains("strace"))
            .expect("a worker");
        kill(worker, Signal::SIGKILL).expect("it is ours");
        wait_end(first);
        let second = traced(&world, "c", &["status"]);
        wait_for_kind(&run, "lost");
        wait_for(LIMIT, || (kinds(&log(&run)).iter().filter(|k| *k == "spawned").count() == 2).then_some(()));
        let third = traced(&world, "d", &["cancel"]);
        wait_for_kind(&run, "run_ended");
        wait_end(second);
        wait_end(third);

        let (mut wrong, mut synced) = (Vec::new(), BTreeMap::new());
        for entry in fs::read_dir(world.path("")).expect("the world").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().is_ok_and(|t| t.is_file()) && name.contains('.') {
                let trace = fs::read(entry.path()).expect("a trace");
                let found = judge_calls(&String::from_utf8_lossy(&trace));
                wrong.extend(found.0);
                found.1.into_iter().for_each(|kind| *synced.entry(kind).or_default() += 1);
            }
        }
        (wrong, synced)
    }

    #[test]
    fn nobody_acts_on_a_commit_before_it_is_synced() {
        let works = Command::new("strace").args(["-qq", "-o", "/dev/null", "true"]).status();
        if !works.is_ok_and(|s| s.success()) {
            return skip("the order of calls", "strace is missing or may not trace", "CPW_REQUIRE_STRACE");
        }
        let (wrong, synced) = order_of_calls("power");
        assert!(wrong.is_empty(), "{wrong:#?}");
        println!("synced before anything else: {synced:?}");
        for kind in COMMITS {
            assert!(synced.contains_key(kind), "no {kind} was seen: {synced:?}");
        }
        let (wrong, _) = order_of_calls("process");
        assert!(!wrong.is_empty(), "nothing is synced with durability process, and that was not noticed");
    }

    // ---- Cuts.

    /// A task that says what it does, on a disk that keeps its power. See `tests/stress.rs`.
    const TASK: &str = r#"
        say() {
            seen=$(wc -l <"$CPW_RUN_DIR/events.jsonl") || exit 7
            printf '\n{"task":"%s","attempt":%s,"token":%s,"phase":"%s","seen":%d}\n' \
                "$CPW_TASK" "$CPW_ATTEMPT" "$CPW_TOKEN" "$1" "$seen" >>"$EFFECTS"
        }
        say begin
        sleep 0.01
        say end
    "#;

    /// Set for the process that lives in its own mount namespace: the folder for images and mounts.
    const INSIDE: &str = "CPW_POWER_FOLDER";

    fn sh(program: &str, args: &[&str]) -> String {
        let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{program} {args:?}: {err}");
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    #[test]
    fn a_power_cut_costs_only_what_nobody_acted_on() {
        const NAME: &str = "tests::a_power_cut_costs_only_what_nobody_acted_on";
        if let Some(folder) = std::env::var_os(INSIDE) {
            return inside(Path::new(&folder));
        }
        let temp = tempfile::Builder::new().prefix("cpw-p").tempdir().expect("a folder");
        let at = |name: &str| temp.path().join(name);
        fs::create_dir(at("disk")).and_then(|()| fs::create_dir(at("copy"))).expect("mount points");
        let probe = r#"truncate -s 8M "$1/probe" && mkfs.ext4 -q -F "$1/probe" && mount -o loop "$1/probe" "$1/copy" && umount "$1/copy""#;
        let own = ["--mount", "--propagation", "private", "sh", "-c", probe, "sh"];
        let works = Command::new("unshare").args(own).arg(temp.path()).output();
        if !works.as_ref().is_ok_and(|out| out.status.success()) {
            let why =
                works.map_or_else(|e| e.to_string(), |out| String::from_utf8_lossy(&out.stderr).trim().to_owned());
            return skip("power cuts", &format!("no image can be mounted here: {why}"), "CPW_REQUIRE_POWER");
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().expect("this test"));
        command.args(["--exact", NAME, "--nocapture"]).env(INSIDE, temp.path()).env("TMPDIR", at("disk"));
        let status = command.status().expect("unshare starts");
        assert!(status.success(), "see above");
    }

    /// A disk whose power can be cut: an image behind a loop device of its own.
    struct Disk {
        image: PathBuf,
        device: String,
        mount: PathBuf,
    }

    impl Disk {
        fn make(folder: &Path, images: &Path) -> Disk {
            let image = images.join("disk.img");
            sh("truncate", &["-s", "16M", text(&image)]);
            // Nothing is to be written later that a file system does by itself.
            sh("mkfs.ext4", &["-q", "-F", "-N", "8192", "-E", "lazy_itable_init=0,lazy_journal_init=0", text(&image)]);
            let device = sh("losetup", &["--find", "--show", text(&image)]);
            let disk = Disk { image, device, mount: folder.join("disk") };
            disk.mount();
            disk
        }

        /// No commit of the journal but those that are asked for.
        fn mount(&self) {
            sh("mount", &["-o", "noatime,commit=300", &self.device, text(&self.mount)]);
        }

        /// Takes the disk away, to put another image behind the same device.
        fn exchange(&self, image: &Path) {
            sh("umount", &[text(&self.mount)]);
            sh("losetup", &["--detach", &self.device]);
            sh("losetup", &[&self.device, text(image)]);
            self.mount();
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            for (program, argument) in [("umount", text(&self.mount)), ("losetup", "--detach")] {
                let mut command = Command::new(program);
                command.arg(argument);
                if program == "losetup" {
                    command.arg(&self.device);
                }
                drop(command.status());
            }
        }
    }

    fn text(path: &Path) -> &str {
        path.to_str().expect("ASCII")
    }

    fn is_in(pid: impl std::fmt::Display, states: &[char]) -> bool {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(states))
    }

    /// Stopped, or gone, or waiting in `vfork` for a child that is stopped: no signal reaches it there.
    fn is_stopped(pid: Pid) -> bool {
        let children = || fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        is_in(pid, &['T', 'Z'])
            || is_in(pid, &['D']) && children().split(' ').any(|c| !c.is_empty() && is_in(c, &['T']))
    }

    /// Stops everything in the world, does something, and lets it go on.
    fn frozen<T>(world: &World, act: impl FnOnce() -> T) -> T {
        let all_stopped = || {
            let all = world.processes();
            let running: Vec<Pid> = all.iter().map(|(p, _)| *p).filter(|p| !is_stopped(*p)).collect();
            for pid in &running {
                // It may have left.
                kill(*pid, Signal::SIGSTOP).ok();
            }
            running.is_empty().then_some(all)
        };
        let all = wait_for(LIMIT, all_stopped).expect("all processes stop");
        let value = act();
        for (pid, _) in all {
            kill(pid, Signal::SIGCONT).ok();
        }
        value
    }

    /// One cut: the log and the effects at that moment, and what the disk had.
    struct Cut {
        live: Vec<u8>,
        kept: Vec<u8>,
        effects: Vec<u8>,
        image: PathBuf,
    }

    fn cut(world: &World, disk: &Disk, folder: &Path, run: &Path, name: &str) -> Cut {
        let image = folder.join("images").join(name);
        let (live, effects) = frozen(world, || {
            fs::copy(&disk.image, &image).expect("the image is copied");
            (log(run), fs::read(folder.join("effects.jsonl")).unwrap_or_default())
        });
        // Mounting replays the journal, as after a cut, and another cut may come of that: not into the copy itself.
        let copy = folder.join("copy");
        let look = folder.join("images/look.img");
        fs::copy(&image, &look).expect("a copy of the copy");
        sh("mount", &["-o", "loop,noatime", text(&look), text(&copy)]);
        let below = run.strip_prefix(&disk.mount).expect("a run on the disk");
        let kept = log(&copy.join(below));
        sh("umount", &[text(&copy)]);
        Cut { live, kept, effects, image }
    }

    /// The number of the last event that a task saw acted on: its own beginning.
    fn acted_on(effects: &[u8]) -> u64 {
        let lines = effects.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice::<Value>(l).ok());
        lines.filter_map(|v| v["token"].as_u64()).max().unwrap_or(1)
    }

    fn whole_lines(log: &[u8]) -> &[u8] {
        &log[..log.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1)]
    }

    fn count_lines(log: &[u8]) -> u64 {
        log.split(|b| *b == b'\n').count() as u64 - 1
    }

    fn start(world: &World, folder: &Path, durability: &str, tasks: u64) -> PathBuf {
        drop(fs::remove_file(folder.join("effects.jsonl")));
        world.script("task.sh", TASK);
        let task = |i: u64| {
            let needs: Vec<String> =
                (i.saturating_sub(4)..i).filter(|n| (n + i).is_multiple_of(3)).map(|n| format!("t{n}")).collect();
            json!({"id": format!("t{i}"), "run": ["./task.sh"], "needs": needs, "retries": 3, "backoff": "10ms",
                "env": {"EFFECTS": folder.join("effects.jsonl")}})
        };
        let tasks: Vec<Value> = (0..tasks).map(task).collect();
        let plan = json!({"version": 1, "durability": durability, "limits": {"max_workers": 4}, "tasks": tasks});
        world.write("plan.json", &plan.to_string());
        // The project is not cpw's to sync.
        sh("sync", &["--file-system", text(&world.project())]);
        let out = world.cpw(&["run", "plan.json", "--detach"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let id = String::from_utf8_lossy(&out.stdout).trim().to_owned();
        world.project().join(".claude/runs").join(id)
    }

    /// How long it is cut.
    fn time() -> Duration {
        let named = std::env::var("CPW_POWER").ok();
        Duration::from_secs(named.map_or(8, |n| n.trim().parse().expect("CPW_POWER is a number")))
    }

    fn inside(folder: &Path) {
        // Images in memory: the disk below them would only take time. It goes with this process's mount namespace.
        let images = folder.join("images");
        fs::create_dir(&images).expect("a folder");
        sh("mount", &["-t", "tmpfs", "-o", "size=256m", "cpw-power", text(&images)]);
        let disk = Disk::make(folder, &images);
        let world = World::new();
        println!("binary {}", program().display());
        // The world's folder must be on the disk, or all that follows proves nothing.
        assert!(world.project().starts_with(&disk.mount), "{}", world.project().display());

        let begun = Instant::now();
        let (mut cuts, mut lost, mut samples) = (0_u64, 0, Vec::new());
        while begun.elapsed() < time() {
            let run = start(&world, folder, "power", 60);
            let ended = || kinds(&log(&run)).last().is_some_and(|k| k == "run_ended" || k == "worker_exited");
            while begun.elapsed() < time() && !ended() {
                let name = if samples.len() < 3 && cuts % 7 == 3 {
                    format!("sample{}.img", samples.len())
                } else {
                    "cut.img".into()
                };
                let found = cut(&world, &disk, folder, &run, &name);
                cuts += 1;
                let (kept, needed) = (whole_lines(&found.kept), acted_on(&found.effects));
                assert!(found.live.starts_with(kept), "cut {cuts}: what is kept is not a beginning of the log");
                let n = count_lines(kept);
                assert!(n >= needed, "cut {cuts}: event {needed} was acted on, {n} events are kept");
                lost += count_lines(&found.live) - n;
                let plan = fs::read(run.join("plan.json")).expect("a plan");
                let report = history::check(kept, &plan, b"", false);
                assert!(report.violations.iter().all(|v| v.rule == "E9"), "cut {cuts}: {}", report.complaints());
                if name != "cut.img" {
                    samples.push((found, run.clone()));
                }
            }
            // The rest of this run is of no interest.
            drop(world.cpw(&["cancel", "--run", id(&run)]).output());
            assert!(wait_for(LIMIT, || kinds(&log(&run)).iter().any(|k| k == "run_ended").then_some(())).is_some());
            assert!(world.sweep(LIMIT).is_empty(), "somebody outlived the run");
        }
        println!("{cuts} cuts, {lost} events lost that nobody had acted on");
        assert!(cuts >= 10 && samples.len() >= 2, "only {cuts} cuts: this proves too little");

        // The same without syncs loses what was acted on: otherwise the cuts are none.
        let run = start(&world, folder, "process", 60);
        wait_for(LIMIT, || (acted_on(&fs::read(folder.join("effects.jsonl")).ok()?) > 40).then_some(()));
        let found = cut(&world, &disk, folder, &run, "cut.img");
        assert!(count_lines(&found.kept) < acted_on(&found.effects), "nothing was lost without a sync either");
        drop(world.cpw(&["cancel", "--run", id(&run)]).output());
        assert!(wait_for(LIMIT, || kinds(&log(&run)).iter().any(|k| k == "run_ended").then_some(())).is_some());
        assert!(world.sweep(LIMIT).is_empty(), "somebody outlived the run");

        for (i, (found, run)) in samples.iter().enumerate() {
            disk.exchange(&found.image);
            goes_on(&world, folder, run, found, i % 2 == 1);
            assert!(world.sweep(LIMIT).is_empty(), "somebody outlived the run");
        }
    }

    /// After the cut: whoever looks finishes the run, on the same boot by going on, after a restart by ending it.
    fn goes_on(world: &World, folder: &Path, run: &Path, found: &Cut, restarted: bool) {
        let boot = Path::new("/proc/sys/kernel/random/boot_id");
        if restarted {
            let other = folder.join("boot_id");
            fs::write(&other, "11111111-2222-3333-4444-555555555555\n").expect("another boot");
            sh("mount", &["--bind", text(&other), text(boot)]);
        }
        // What tasks saw of events that were lost, they saw of the ones before.
        let lines = count_lines(whole_lines(&found.kept));
        let mut effects: Vec<String> = Vec::new();
        for mut v in found.effects.split(|b| *b == b'\n').filter_map(|l| serde_json::from_slice::<Value>(l).ok()) {
            v["seen"] = v["seen"].as_u64().unwrap_or(0).min(lines).into();
            effects.push(format!("{v}\n"));
        }
        fs::write(folder.join("effects.jsonl"), effects.concat()).expect("the effects");
        let out = world.cpw(&["status", "--json", id(run)]).output().expect("cpw runs");
        let said = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{said}");
        let ended = wait_for(LIMIT, || kinds(&log(run)).iter().any(|k| k == "run_ended").then_some(()));
        assert!(ended.is_some(), "restarted: {restarted}: the run does not go on: {said}");
        let log = log(run);
        assert!(log.starts_with(whole_lines(&found.kept)), "what was kept was changed");
        let plan = fs::read(run.join("plan.json")).expect("a plan");
        let report = history::check(&log, &plan, &fs::read(folder.join("effects.jsonl")).expect("effects"), true);
        assert!(report.violations.is_empty(), "restarted: {restarted}: {}", report.complaints());
        let status = report.ended.as_ref().map(|e| e["status"].clone()).unwrap_or_default();
        println!("went on from {lines} events, restarted: {restarted}: {status} after {} events", report.events);
        assert_eq!(status, if restarted { "failed" } else { "ok" });
        if restarted {
            sh("umount", &[text(boot)]);
        }
    }
}
