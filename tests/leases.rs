//! Leases, through the real binary: one holder at a time, whatever is stopped, killed or wrong. The faults have the numbers
//! under which the proofs name them.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::process::{Child, Command, Output, Stdio};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    use crate::support::world::{World, wait_for};

    const LONG: Duration = Duration::from_mins(1);

    /// How long the command of a test waits at most for what must come.
    const WAIT: &str = "--wait=60s";

    fn run(world: &World, args: &[&str]) -> Output {
        world.cpw(args).output().expect("cpw runs")
    }

    fn code(world: &World, args: &[&str]) -> Option<i32> {
        run(world, args).status.code()
    }

    fn text(out: &[u8]) -> String {
        String::from_utf8_lossy(out).trim().to_owned()
    }

    /// `cpw lease` with these arguments and a script as its command.
    fn lease(world: &World, args: &[&str], script: &str) -> Command {
        let mut command = world.cpw(&["lease"]);
        command.args(args).args(["--", "sh", "-c", script]).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    fn start(command: &mut Command) -> Running {
        Running(command.spawn().expect("it starts"))
    }

    /// A process that does not outlive the test.
    struct Running(Child);

    impl Running {
        fn signal(&self, signal: Signal) {
            kill(Pid::from_raw(i32::try_from(self.0.id()).expect("a pid")), signal).expect("a signal");
        }

        fn end(&mut self) -> Option<i32> {
            let ended = wait_for(LONG, || self.0.try_wait().expect("a child")).expect("it ends in time");
            ended.code()
        }
    }

    impl Drop for Running {
        fn drop(&mut self) {
            // It may have ended.
            self.0.kill().ok();
            self.0.wait().ok();
        }
    }

    fn await_file(world: &World, name: &str) -> String {
        let whole = || world.read(name).filter(|t| t.ends_with('\n')).map(|t| t.trim().to_owned());
        wait_for(LONG, whole).unwrap_or_else(|| panic!("{name} is not written"))
    }

    fn log(world: &World) -> Vec<Value> {
        let text = world.read(".claude/runs/project/events.jsonl").unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect()
    }

    fn await_event(world: &World, what: &str, is: impl Fn(&Value) -> bool) {
        wait_for(LONG, || log(world).iter().any(&is).then_some(()))
            .unwrap_or_else(|| panic!("{what} is not in the log"));
    }

    /// That somebody waits.
    fn await_queue(world: &World, long: usize) {
        let waiting = || {
            let listed: Value = serde_json::from_slice(&run(world, &["lease", "--json"]).stdout).expect("JSON");
            (listed["waiting"].as_array().expect("a list").len() == long).then_some(())
        };
        wait_for(LONG, waiting).expect("it stands in line");
    }

    /// Reads the history by itself: never two that hold the same, tokens that rise, nothing renewed or given back that is
    /// not held. Returns how many there were.
    fn check(events: &[Value]) -> usize {
        let mut held: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        let (mut last, mut grants) = (0, 0);
        for (i, event) in events.iter().enumerate() {
            assert_eq!(event["seq"], json!(i + 1), "a gap");
            let payload = &event["payload"];
            let token = payload["token"].as_u64().unwrap_or(0);
            match event["t"].as_str().expect("a kind") {
                "acquire" => {
                    assert!(token > last && event["seq"] == json!(token), "{event}");
                    let wanted: Vec<String> = serde_json::from_value(payload["resources"].clone()).expect("names");
                    for (other, theirs) in &held {
                        assert!(wanted.iter().all(|w| !theirs.contains(w)), "{event} while {other} holds {theirs:?}");
                    }
                    held.insert(token, wanted);
                    (last, grants) = (token, grants + 1);
                }
                "renew" => assert!(held.contains_key(&token), "{event}"),
                "release" | "expired" if payload["refused"] != json!(true) => drop(held.remove(&token)),
                "opened" | "queued" | "release" => {}
                other => panic!("{other} does not belong here"),
            }
        }
        grants
    }

    #[test]
    fn v01_a_holder_that_was_stopped_for_too_long_comes_back_with_a_token_that_is_worth_nothing() {
        let world = World::new();
        let script = "echo $CPW_LEASE_TOKEN > old; until [ -e new ]; do sleep 0.02; done
            cpw lease renew db --ttl 1m 2> why_name; echo $? > by_name
            cpw lease renew --token $(cat old) --ttl 1m 2> why_token; echo $? > by_token
            cpw lease release --token $(cat old) 2> why_release; echo $? > released";
        let mut stopped = start(&mut lease(&world, &["db", "--ttl", "200ms"], script));
        let old: u64 = await_file(&world, "old").parse().expect("a token");
        stopped.signal(Signal::SIGSTOP);
        let script = "echo $CPW_LEASE_TOKEN > new; until [ -e released ]; do sleep 0.02; done";
        let mut next = start(&mut lease(&world, &["db", WAIT], script));
        let new: u64 = await_file(&world, "new").parse().expect("a token");
        assert!(new > old);
        stopped.signal(Signal::SIGCONT);
        assert_eq!((stopped.end(), next.end()), (Some(0), Some(0)));
        for refused in ["by_name", "by_token", "released"] {
            assert_eq!(await_file(&world, refused), "1", "{refused}");
        }
        let why = world.read("why_token").expect("a reason");
        assert!(why.contains("its time was over") && why.contains(&format!("by token {new}")), "{why}");
        assert!(world.read("why_name").expect("a reason").contains("not by you"));
        let refused = log(&world).iter().filter(|e| e["payload"]["refused"] == json!(true)).count();
        assert_eq!(refused, 3, "each is written down");
        assert_eq!(check(&log(&world)), 2);
    }

    #[test]
    fn v02_a_holder_that_is_killed_frees_its_lease_at_once() {
        let world = World::new();
        let mut times: Vec<Duration> = Vec::new();
        for round in 0..10 {
            let mut holder = start(&mut lease(&world, &["db"], &format!("echo > held{round}; exec sleep 600")));
            await_file(&world, &format!("held{round}"));
            let mut next = start(&mut lease(&world, &["db", WAIT], &format!("echo > next{round}")));
            await_queue(&world, 1);
            let begun = Instant::now();
            holder.signal(Signal::SIGKILL);
            holder.0.wait().expect("it is dead");
            while world.read(&format!("next{round}")).is_none() && begun.elapsed() < LONG {
                std::thread::sleep(Duration::from_millis(1));
            }
            times.push(begun.elapsed());
            assert_eq!(next.end(), Some(0));
        }
        times.sort_unstable();
        println!(
            "from SIGKILL of the holder to the first word of the next one: median {} ms, at most {} ms",
            times[times.len() / 2].as_millis(),
            times[times.len() - 1].as_millis()
        );
        assert_eq!(check(&log(&world)), 20);
    }

    #[test]
    fn v04_a_stranger_can_neither_renew_nor_give_back() {
        let world = World::new();
        let script = "echo > held; until [ -e go ]; do sleep 0.02; done
            cpw lease renew db --ttl 1m > renewed; echo $? >> renewed
            cpw lease release db; echo $? > first; cpw lease release db 2> why; echo $? > second";
        let mut holder = start(&mut lease(&world, &["db"], script));
        await_file(&world, "held");
        for args in [&["renew", "db", "--ttl", "1m"][..], &["release", "db"]] {
            let out = run(&world, &[&["lease"], args].concat());
            assert_eq!(out.status.code(), Some(1));
            assert!(text(&out.stderr).contains("not by you"), "{}", text(&out.stderr));
        }
        assert_eq!(code(&world, &["lease", "release", "other"]), Some(1), "nobody holds that");
        assert_eq!(code(&world, &["lease", "release", "--token", "999"]), Some(1));
        assert_eq!(code(&world, &["lease", "db", "--wait", "0ms", "--", "true"]), Some(4), "it is still held");
        world.write("go", "\n");
        assert_eq!(holder.end(), Some(0));
        assert!(await_file(&world, "renewed").ends_with("\n0"));
        assert_eq!((await_file(&world, "first"), await_file(&world, "second")), ("0".into(), "1".into()));
        assert!(world.read("why").expect("a reason").contains("given back"));
        let refused = log(&world).iter().filter(|e| e["payload"]["refused"] == json!(true)).count();
        assert_eq!(refused, 5);
        check(&log(&world));
    }

    #[test]
    fn v05_of_two_that_would_wait_for_each_other_the_second_is_refused_and_told_why() {
        let world = World::new();
        let script = |own: &str, other: &str| {
            format!(
                "echo > {own}; until [ -e {other} ]; do sleep 0.02; done
                cpw lease {other} {WAIT} -- true 2> {own}.why; echo $? > {own}.code"
            )
        };
        let mut one = start(&mut lease(&world, &["db"], &script("db", "gpu0")));
        let mut two = start(&mut lease(&world, &["gpu0"], &script("gpu0", "db")));
        assert_eq!((one.end(), two.end()), (Some(0), Some(0)));
        let mut codes = [await_file(&world, "db.code"), await_file(&world, "gpu0.code")];
        let refused = if codes[0] == "3" { "db" } else { "gpu0" };
        codes.sort();
        assert_eq!(codes, ["0", "3"]);
        let why = world.read(&format!("{refused}.why")).expect("a reason");
        let other = if refused == "db" { "gpu0" } else { "db" };
        assert!(why.contains("would wait for ever: "), "{why}");
        assert!(why.contains(&format!(" holds {refused} and waits for {other}, which ")), "{why}");
        assert!(why.contains(&format!(", who waits for {refused}\n")), "{why}");
        // All at once, in whatever order they are named, nobody can be in another one's way for ever.
        let both = |names: [&'static str; 2]| start(&mut lease(&world, &[&names[..], &[WAIT]].concat(), "true"));
        let mut all: Vec<Running> =
            (0..6).map(|i| both(if i % 2 == 0 { ["db", "gpu0"] } else { ["gpu0", "db"] })).collect();
        assert!(all.iter_mut().all(|one| one.end() == Some(0)));
        check(&log(&world));
    }

    #[test]
    fn the_command_takes_the_place_of_cpw() {
        let world = World::new();
        let out = run(&world, &["lease", "db", "gpu0", "--", "sh", "-c", "echo $PPID $$ $CPW_LEASE_TOKEN; exit 7"]);
        assert_eq!(out.status.code(), Some(7));
        let said: Vec<u64> = text(&out.stdout).split(' ').map(|n| n.parse().expect("a number")).collect();
        assert_eq!(said[0], u64::from(std::process::id()), "nobody stands between");
        let events = log(&world);
        let acquire = events.last().expect("a line");
        assert_eq!(
            (&acquire["payload"]["token"], &acquire["payload"]["holder"]["process"]["pid"]),
            (&json!(said[2]), &json!(said[1]))
        );
        assert_eq!(acquire["payload"]["resources"], json!(["db", "gpu0"]));
        assert_eq!(code(&world, &["lease", "db", "--", "no-such-command"]), Some(127));
        world.write("plain", "text\n");
        assert_eq!(code(&world, &["lease", "db", "--", "./plain"]), Some(126));
        assert_eq!(code(&world, &["lease", "db"]), Some(3));
        assert_eq!(code(&world, &["lease", "a b", "--", "true"]), Some(3));
        assert_eq!(text(&run(&world, &["lease"]).stdout), "nothing is held");
        let left: Vec<_> = fs::read_dir(world.project().join(".claude/runs/project/bells")).expect("bells").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn who_does_not_get_it_in_time_is_told_who_has_it() {
        let world = World::new();
        let _holder = start(&mut lease(&world, &["db"], "echo > held; exec sleep 600"));
        await_file(&world, "held");
        let out = run(&world, &["lease", "db", "--wait", "50ms", "--", "touch", "ran"]);
        assert_eq!(out.status.code(), Some(4));
        let said = text(&out.stderr);
        assert!(said.contains("db is held by 'sh' (process "), "{said}");
        assert!(world.read("ran").is_none());
        // Ctrl-C ends the waiting, and its place in the line.
        let mut waits = start(&mut lease(&world, &["db", WAIT], "echo > ran"));
        await_queue(&world, 1);
        waits.signal(Signal::SIGINT);
        assert_eq!(waits.end(), Some(130));
        await_queue(&world, 0);
        assert!(world.read("ran").is_none());
    }

    #[test]
    fn who_waits_and_dies_or_is_stopped_does_not_keep_the_others_waiting() {
        let world = World::new();
        let mut holder = start(&mut lease(&world, &["db"], "echo > held; until [ -e go ]; do sleep 0.02; done"));
        await_file(&world, "held");
        let killed = start(&mut lease(&world, &["db", WAIT], "true"));
        await_queue(&world, 1);
        let stopped = start(&mut lease(&world, &["db", "--wait", "1s"], "true"));
        await_queue(&world, 2);
        stopped.signal(Signal::SIGSTOP);
        let mut last = start(&mut lease(&world, &["db", WAIT], "true"));
        await_event(&world, "the last request", |e| {
            e["t"] == "queued" && e["payload"]["holder"]["process"]["pid"] == last.0.id()
        });
        killed.signal(Signal::SIGKILL);
        world.write("go", "\n");
        assert_eq!((holder.end(), last.end()), (Some(0), Some(0)));
        check(&log(&world));
    }

    #[test]
    fn a_file_is_the_same_file_by_any_path_and_a_folder_has_what_is_in_it() {
        let world = World::new();
        fs::create_dir_all(world.project().join("src/app")).expect("a folder");
        std::os::unix::fs::symlink("src/app", world.project().join("link")).expect("a link");
        std::os::unix::fs::symlink("src/app/new.rs", world.project().join("dangling")).expect("a link");
        let _holder = start(&mut lease(&world, &["src/app"], "echo > held; exec sleep 600"));
        await_file(&world, "held");
        let absolute = world.project().join("src/app/x.rs").display().to_string();
        for (name, free) in [
            ("src/app", false),
            ("./src/app/", false),
            ("src/app/deep/x.rs", false),
            ("src/../src/app/x.rs", false),
            ("other/../src/app", false),
            ("link/x.rs", false),
            ("./dangling", false),
            ("src/", false),
            ("./", false),
            (&absolute, false),
            ("src/apple.rs", true),
            ("src/ap", true),
            ("SRC/app", true),
            ("link/../apple.rs", true),
            ("app", true),
        ] {
            let got = code(&world, &["lease", name, "--wait", "0ms", "--", "true"]);
            assert_eq!(got, Some(if free { 0 } else { 4 }), "{name}");
        }
        assert_eq!(code(&world, &["lease", "../", "--", "true"]), Some(3), "the project is in it");
        // From another folder of the project.
        let mut below = world.cpw(&["lease", "file:app", "--wait", "0ms", "--", "true"]);
        let below = below.current_dir(world.project().join("src")).output().expect("cpw runs");
        // Without a mark of its own the folder is in no other project, once there is one around it.
        assert_eq!(below.status.code(), Some(4), "{below:?}");
    }

    #[test]
    fn a_script_holds_it_until_it_gives_it_back_or_ends() {
        let world = World::new();
        let script = "T=$(cpw lease acquire db --json --ttl 10m); echo \"$T\"; cpw lease renew db --ttl 20m --json
            cpw lease db --wait 0ms -- true; echo $?; cpw lease release db; cpw lease db --wait 0ms -- true; echo $?
            cpw lease acquire gpu0";
        let out = world.command("sh").args(["-c", script]).output().expect("sh runs");
        // What it holds itself it would wait for for ever.
        assert_eq!(text(&out.stdout), "{\"token\":2}\n{\"token\":2}\n3\n2\n0\n7", "{out:?}");
        assert_eq!(code(&world, &["lease", "gpu0", "--wait", "0ms", "--", "true"]), Some(0), "the script has ended");
        assert_eq!(check(&log(&world)), 4);
    }

    #[test]
    fn below_a_client_no_command_is_started() {
        let world = World::new();
        let out = world.cpw(&["lease", "db", "--", "touch", "ran"]).env("CLAUDECODE", "1").output().expect("cpw runs");
        assert_eq!(out.status.code(), Some(3));
        assert!(world.read("ran").is_none() && log(&world).is_empty());
    }

    #[test]
    fn a_task_holds_what_it_takes_until_it_gives_it_back_or_ends() {
        let world = World::new();
        let plan = json!({"version": 1, "limits": {"max_workers": 2}, "tasks": [
            {"id": "one", "shell": "T=$(cpw lease acquire db) && cpw lease --json > listed && echo $T > token
                cpw lease ./shared -- sh -c 'cpw lease --json > nested'
                until [ -e seen ]; do sleep 0.02; done"},
            {"id": "two", "shell": "until [ -e token ]; do sleep 0.02; done
                cpw lease release db 2> why; echo $? > stranger; cpw lease db --wait 0ms -- true; echo $? > busy
                echo > seen; cpw lease db --wait 60s -- sh -c 'echo $CPW_LEASE_TOKEN > next'"}]});
        world.write("plan.json", &plan.to_string());
        let out = run(&world, &["run", "plan.json"]);
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        let holder = |file: &str, at: usize| -> Value {
            let listed: Value = serde_json::from_str(&world.read(file).expect("a list")).expect("JSON");
            listed["held"][at]["holder"].clone()
        };
        let (first, nested) = (holder("listed", 0), holder("nested", 1));
        assert_eq!((&first["task"], &first["attempt"], &nested["task"]), (&json!("one"), &json!(1), &json!("one")));
        assert_eq!((await_file(&world, "stranger"), await_file(&world, "busy")), ("1".into(), "4".into()));
        assert!(world.read("why").expect("a reason").contains("db is held by task one (W"));
        let (token, next): (u64, u64) = (
            await_file(&world, "token").parse().expect("a token"),
            await_file(&world, "next").parse().expect("a token"),
        );
        assert!(next > token);
        check(&log(&world));
    }

    #[test]
    fn a_circle_of_a_lease_and_a_wait_for_a_task_is_refused_whoever_closes_it() {
        let world = World::new();
        let wants =
            "until [ -s token ]; do sleep 0.02; done; cpw lease db --wait 60s -- true 2> why_b; echo $? > code_b";
        let plan = json!({"version": 1, "limits": {"max_workers": 3}, "tasks": [
            {"id": "a", "shell": "cpw lease acquire db > token; cpw wait --task b 2> why_a; echo $? > code_a"},
            {"id": "b", "shell": wants},
            {"id": "c", "resources": ["gpu0"], "shell": "cpw wait --task d 2> why_c; echo $? > code_c"},
            {"id": "d", "resources": ["gpu0"], "shell": "true"}]});
        world.write("plan.json", &plan.to_string());
        let out = run(&world, &["run", "plan.json"]);
        assert_eq!(out.status.code(), Some(0), "{out:?}");
        let codes = (await_file(&world, "code_a"), await_file(&world, "code_b"));
        let (refused, path) = if codes.0 == "3" {
            ("why_a", "a waits for b, which waits for db of a")
        } else {
            ("why_b", "b waits for db of a, which waits for b")
        };
        assert!(codes == ("3".into(), "0".into()) || codes == ("0".into(), "3".into()), "{codes:?}");
        let why = world.read(refused).expect("a reason");
        assert!(why.contains(&format!("would wait for ever: {path}")), "{why}");
        assert_eq!(await_file(&world, "code_c"), "3");
        let why = world.read("why_c").expect("a reason");
        assert!(why.contains("would wait for ever: c waits for d, which needs gpu0 of c"), "{why}");
    }

    /// What each of the racers does: reads the number, says who it is, and writes the next number.
    const ALONE: &str = r#"read n < n; echo $$ > who; read w < who; [ "$w" = $$ ] || echo "$w in $$" >> broken
        echo $((n + 1)) > n; read w < who; [ "$w" = $$ ] || echo "$w in $$" >> broken"#;

    #[test]
    fn races_of_eight_have_one_holder_every_time() {
        let races: u64 = std::env::var("CPW_RACES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
        let world = World::new();
        world.write("n", "0\n");
        world.script("alone", ALONE);
        let each = races.div_ceil(8);
        let script =
            format!("i=0; while [ $i -lt {each} ]; do cpw lease n {WAIT} -- ./alone || exit 1; i=$((i + 1)); done");
        let begun = Instant::now();
        let mut all: Vec<Running> =
            (0..8).map(|_| start(world.command("sh").args(["-c", &script]).stdout(Stdio::null()))).collect();
        for racer in &mut all {
            let ended = wait_for(LONG * 5, || racer.0.try_wait().expect("a child")).expect("it ends in time");
            assert!(ended.success(), "{ended:?}");
        }
        println!("{} leases of 8 racers in {} ms", each * 8, begun.elapsed().as_millis());
        assert_eq!(world.read("broken"), None);
        assert_eq!(world.read("n"), Some(format!("{}\n", each * 8)));
        assert_eq!(check(&log(&world)) as u64, each * 8);
    }

    #[test]
    fn whoever_is_killed_whenever_it_is_held_by_one() {
        let world = World::new();
        world.write("n", "0\n");
        world.script("alone", ALONE);
        // Told by the test where it ends: each lease may be killed at any moment, and then the next one begins.
        let script = "until [ -e stop ]; do cpw lease n m --wait 60s -- ./alone; cpw lease m --ttl 50ms --wait 60s -- true; done";
        let mut racers: Vec<Running> = (0..6)
            .map(|_| start(world.command("sh").args(["-c", script]).stdout(Stdio::null()).stderr(Stdio::null())))
            .collect();
        let own: Vec<i32> = racers.iter().map(|r| i32::try_from(r.0.id()).expect("a pid")).collect();
        let mut kills = 0;
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        while kills < 60 {
            let victims: Vec<Pid> =
                world.processes().into_iter().map(|(pid, _)| pid).filter(|p| !own.contains(&p.as_raw())).collect();
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if let Some(victim) = victims.get(usize::try_from(seed >> 33).expect("a number") % victims.len().max(1)) {
                kills += u32::from(kill(*victim, Signal::SIGKILL).is_ok());
            }
        }
        world.write("stop", "\n");
        for racer in &mut racers {
            racer.end();
        }
        assert_eq!(world.read("broken"), None);
        // Whatever was killed, the next one gets it.
        assert_eq!(code(&world, &["lease", "n", "m", WAIT, "--", "true"]), Some(0));
        let grants = check(&log(&world));
        println!("{kills} were killed, {grants} leases were held");
        assert!(grants > 10);
    }
}
