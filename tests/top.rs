//! The live view as a person has it: `cpw top` in a terminal of its own, what is on the screen, what keys do, and that the
//! terminal is left as it was on every way out.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[path = "support/pty.rs"]
mod pty;
#[cfg(test)]
#[path = "support/skip.rs"]
mod skip;
#[cfg(test)]
#[path = "support/world.rs"]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod world;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::process::{Child, Command, Stdio};
    use std::sync::{Arc, Condvar, Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::sys::termios::{Termios, tcgetattr};
    use nix::unistd::Pid;
    use serde_json::Value;

    use crate::pty::terminal;
    use crate::skip::skip;
    use crate::world::{World, program, wait_for};

    /// Longest wait for anything.
    const LIMIT: Duration = Duration::from_mins(1);

    struct Seen {
        parser: Mutex<vt100::Parser>,
        changed: Condvar,
    }

    /// A terminal with somebody who reads it, and a program in it that is the leader of the terminal's session.
    struct Terminal {
        child: Child,
        keyboard: Option<File>,
        /// The programs' side, to look at its modes.
        side: File,
        modes: Termios,
        seen: Arc<Seen>,
    }

    impl Terminal {
        fn start(world: &World, (columns, rows): (u16, u16), argv: &[&str]) -> Terminal {
            Terminal::start_with(world, (columns, rows), argv, true)
        }

        /// `reads`: whether anybody takes what the program writes.
        fn start_with(world: &World, (columns, rows): (u16, u16), argv: &[&str], reads: bool) -> Terminal {
            let (master, side) = terminal();
            resize(&side, columns, rows);
            let mut command = world.command("/usr/bin/setsid");
            command.arg("--ctty").args(argv);
            let copy = || Stdio::from(side.try_clone().expect("a copy of a descriptor"));
            command.stdin(copy()).stdout(copy()).stderr(copy());
            let modes = tcgetattr(side.as_fd()).expect("a terminal has modes");
            let parser = vt100::Parser::new(rows.try_into().expect("rows"), columns.try_into().expect("columns"), 0);
            let seen = Arc::new(Seen { parser: Mutex::new(parser), changed: Condvar::new() });
            let terminal = Terminal {
                child: command.spawn().expect("setsid starts"),
                keyboard: Some(master.try_clone().expect("a copy of a descriptor")),
                side,
                modes,
                seen,
            };
            if reads {
                terminal.read(master);
            }
            terminal
        }

        fn read(&self, mut output: File) {
            let seen = Arc::clone(&self.seen);
            // Not joined: it ends with the terminal.
            std::thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(length @ 1..) = output.read(&mut bytes) {
                    let mut parser = seen.parser.lock().unwrap_or_else(PoisonError::into_inner);
                    parser.process(&bytes[..length]);
                    drop(parser);
                    seen.changed.notify_all();
                }
            });
        }

        fn cpw(world: &World, size: (u16, u16), args: &[&str]) -> Terminal {
            let program = program().to_str().expect("a path in UTF-8");
            Terminal::start(world, size, &[&[program], args].concat())
        }

        fn press(&self, keys: &str) {
            let mut keyboard = self.keyboard.as_ref().expect("the terminal is there");
            keyboard.write_all(keys.as_bytes()).expect("the terminal takes it");
        }

        fn pid(&self) -> Pid {
            Pid::from_raw(self.child.id().try_into().expect("a pid"))
        }

        /// Waits until the screen is as wanted, and returns its text.
        fn until(&self, what: &str, wanted: impl Fn(&vt100::Screen) -> bool) -> String {
            let end = Instant::now() + LIMIT;
            let mut parser = self.seen.parser.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                if wanted(parser.screen()) {
                    return parser.screen().contents();
                }
                let left = end.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "waited {LIMIT:?} for {what}:\n{}", parser.screen().contents());
                parser = self.seen.changed.wait_timeout(parser, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }

        fn shows(&self, text: &str) -> String {
            self.until(text, |screen| screen.alternate_screen() && screen.contents().contains(text))
        }

        /// Presses keys until the screen has a text: a key may come before what it is about.
        fn press_until(&self, keys: &str, text: &str) {
            self.press(keys);
            self.shows(text);
        }

        fn size(&self, columns: u16, rows: u16) {
            let mut parser = self.seen.parser.lock().unwrap_or_else(PoisonError::into_inner);
            parser.screen_mut().set_size(rows.try_into().expect("rows"), columns.try_into().expect("columns"));
            drop(parser);
            resize(&self.side, columns, rows);
        }

        /// Waits for the program's end; its exit code.
        fn code(&mut self) -> Option<i32> {
            wait_for(LIMIT, || self.child.try_wait().expect("our own child")).expect("it ends in time").code()
        }

        /// The terminal is as it was before the program: its modes, its screen, its cursor.
        fn is_restored(&self) {
            self.until("the usual screen", |screen| {
                !screen.alternate_screen() && !screen.hide_cursor() && !screen.bracketed_paste()
            });
            assert!(tcgetattr(self.side.as_fd()).expect("modes") == self.modes, "the modes of the terminal are others");
        }
    }

    impl Drop for Terminal {
        fn drop(&mut self) {
            // A test that has failed leaves it running.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }

    fn resize(side: &File, columns: u16, rows: u16) {
        let mut stty = Command::new("stty");
        stty.args(["rows", &rows.to_string(), "cols", &columns.to_string()]);
        stty.stdin(side.try_clone().expect("a copy of a descriptor"));
        assert!(stty.status().expect("stty runs").success());
    }

    /// A run in the background; its id.
    fn detach(world: &World, plan: &str) -> String {
        world.write("plan.json", plan);
        let out = world.cpw(&["run", "plan.json", "--detach"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text").trim().to_owned()
    }

    fn events(world: &World, run: &str) -> Vec<Value> {
        let text = world.read(&format!(".claude/runs/{run}/events.jsonl")).unwrap_or_default();
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        whole.map(|line| serde_json::from_str(line).expect("an event")).collect()
    }

    fn runs(world: &World) -> Vec<String> {
        let folder = std::fs::read_dir(world.project().join(".claude/runs")).expect("runs");
        let names = folder.filter_map(|entry| entry.expect("an entry").file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| name.starts_with("20")).collect();
        names.sort_unstable();
        names
    }

    fn ended(world: &World, run: &str) -> bool {
        events(world, run).iter().any(|e| e["t"] == "run_ended")
    }

    const WAITS: &str = r#"{"version": 1, "tasks": [
        {"id": "build", "shell": "cpw progress 40; echo first line; printf '\\033[2J\\033]0;ow%s\\007after it\\n' ned; echo wrong >&2; until test -e go; do sleep 0.05; done"},
        {"id": "quick", "shell": "echo at once"},
        {"id": "behind", "needs": ["build"], "shell": "true"}]}"#;

    #[test]
    fn a_run_is_seen_and_its_task_is_cancelled_and_run_again_by_keys() {
        let world = World::new();
        let run = detach(&world, WAITS);
        let mut top = Terminal::cpw(&world, (120, 40), &["top"]);
        top.shows("1 run, 1 active");
        top.shows("40 %");
        top.shows("✓ done");
        // Foreign text is there, and has done nothing.
        let screen = top.shows("after it");
        assert!(screen.contains("first line") && screen.contains("wrong") && !screen.contains("owned"), "{screen}");
        top.press_until("t", "timeline");
        top.press_until("\x1b", "needs build");
        top.press_until("?", "another attempt");
        top.press("?");
        top.press_until("/quick\r", "1 with /quick");
        top.shows("at once");
        top.press_until("\x1b", "needs build");
        top.press_until("/build\r", "1 with /build");
        top.press_until("c", "cancel task build");
        top.press_until("n", "nothing was done");
        assert!(!events(&world, &run).iter().any(|e| e["t"] == "cancel_requested"));
        top.press_until("c", "cancel task build");
        top.press_until("y", "asked to cancel build");
        top.shows("0 active");
        assert!(ended(&world, &run));
        // A new run of what was left undone, which the view goes on with.
        top.press_until("r", "run again what");
        top.press_until("y", "2 runs, 1 active");
        let again = runs(&world).pop().expect("a run");
        assert_ne!(again, run);
        top.press_until("\x1b\x1b[Z", "1 of 3 done");
        top.press_until("c", "cancel all of run");
        top.press_until("y", "2 runs, 0 active");
        assert!(ended(&world, &again));
        top.press("q");
        assert_eq!(top.code(), Some(0));
        top.is_restored();
        top.until("the last line", |screen| screen.contents().contains(&format!("run {again}: cancelled, 1 done")));
    }

    #[test]
    fn it_is_drawn_anew_when_the_window_changes() {
        let world = World::new();
        detach(&world, WAITS);
        let mut top = Terminal::cpw(&world, (120, 40), &["status", "--watch"]);
        top.shows("1 run, 1 active");
        for (columns, rows) in [(60, 15), (2, 1), (1, 1), (200, 60), (80, 24)] {
            top.size(columns, rows);
            if columns < 60 {
                continue;
            }
            top.until("the keys in the last row", |screen| {
                let last = screen.rows(0, columns).nth(usize::from(rows) - 1);
                last.is_some_and(|row| row.starts_with("q leave"))
            });
        }
        world.write("go", "");
        top.shows("0 active");
        top.press("q");
        assert_eq!(top.code(), Some(0));
        top.is_restored();
    }

    #[test]
    fn every_way_out_leaves_the_terminal_as_it_was() {
        let world = World::new();
        let mut tops: Vec<(&str, Option<Signal>, Terminal)> = Vec::new();
        let ways = [("\x03", None), ("\x1b", None), ("", Some(Signal::SIGTERM)), ("", Some(Signal::SIGHUP))];
        for (keys, signal) in ways.into_iter().chain([("", Some(Signal::SIGINT))]) {
            tops.push((keys, signal, Terminal::cpw(&world, (80, 24), &["top"])));
        }
        for (keys, signal, top) in &mut tops {
            top.shows("no run here yet");
            assert!(tcgetattr(top.side.as_fd()).expect("modes") != top.modes, "keys are not read one by one");
            if let Some(signal) = signal {
                kill(top.pid(), *signal).expect("it is there");
            }
            top.press(keys);
            let expected = if *keys == "\x1b" { 0 } else { 130 };
            assert_eq!(top.code(), Some(expected), "{keys:?} {signal:?}");
            top.is_restored();
        }
    }

    #[test]
    fn a_terminal_that_has_gone_ends_it() {
        let world = World::new();
        let (master, side) = terminal();
        resize(&side, 80, 24);
        // Not the leader of the terminal's session: no signal tells it.
        let mut command = world.cpw(&["top"]);
        let copy = || Stdio::from(side.try_clone().expect("a copy of a descriptor"));
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let mut child = command.spawn().expect("cpw starts");
        drop(command);
        let mut output = master.try_clone().expect("a copy of a descriptor");
        assert!(output.read(&mut [0; 64]).expect("it writes") > 0);
        drop((output, master, side));
        let status = wait_for(LIMIT, || child.try_wait().expect("our own child"));
        child.kill().ok();
        assert_eq!(status.expect("it ends").code(), Some(130));
    }

    #[test]
    fn a_terminal_that_takes_nothing_does_not_keep_it() {
        let world = World::new();
        detach(&world, WAITS);
        // More than such a terminal keeps for who reads it.
        let program = program().to_str().expect("a path in UTF-8");
        let mut top = Terminal::start_with(&world, (1000, 400), &[program, "top"], false);
        let raw = || (tcgetattr(top.side.as_fd()).expect("modes") != top.modes).then_some(());
        wait_for(LIMIT, raw).expect("it takes the terminal");
        world.write("go", "");
        kill(top.pid(), Signal::SIGTERM).expect("it is there");
        assert_eq!(top.code(), Some(130));
        assert!(tcgetattr(top.side.as_fd()).expect("modes") == top.modes);
        // What was cut short is undone once somebody reads it.
        let output = top.keyboard.take().expect("the other side");
        top.read(output);
        top.is_restored();
    }

    #[test]
    fn it_stops_and_goes_on_as_the_shell_says() {
        let bash = std::path::Path::new("/bin/bash");
        if !bash.exists() {
            let why = "there is no /bin/bash, which can stop and continue what it has started";
            return skip("it_stops_and_goes_on_as_the_shell_says", why, "CPW_REQUIRE_BASH");
        }
        let world = World::new();
        let mut shell = Terminal::start(&world, (80, 24), &["/bin/bash", "--norc", "-i"]);
        let usual = |text: &'static str| {
            move |screen: &vt100::Screen| !screen.alternate_screen() && screen.contents().contains(text)
        };
        shell.press("PS1='ready> '\r");
        shell.until("a prompt", usual("\nready> "));
        shell.press(&format!("{} top\r", program().display()));
        shell.shows("no run here yet");
        shell.press("\x1a");
        shell.until("the shell again", usual("Stopped"));
        shell.press("stty -a | grep -o -- '-*icanon'; echo is$((1+1))\r");
        let screen = shell.until("an answer", usual("is2"));
        assert!(screen.contains("\nicanon"), "a stopped view has left the terminal raw: {screen}");
        shell.press("fg\r");
        shell.shows("no run here yet");
        // The same by a signal from elsewhere.
        let tops = wait_for(LIMIT, || {
            let all = world.processes();
            all.iter().find(|(_, line)| line.ends_with("cpw top ")).map(|(pid, _)| *pid)
        });
        let pid = tops.expect("it runs");
        kill(pid, Signal::SIGTSTP).expect("it is there");
        shell.until("the shell again", |screen| !screen.alternate_screen());
        shell.press("echo is$((2+2)); fg\r");
        shell.shows("no run here yet");
        shell.press("q");
        shell.until("the shell again", usual("is4"));
        shell.press("exit\r");
        assert_eq!(shell.code(), Some(0));
    }

    #[test]
    fn looking_finishes_what_dead_workers_have_left() {
        let world = World::new();
        let run = detach(&world, WAITS);
        let mut top = Terminal::cpw(&world, (80, 24), &["top", &run[..15]]);
        top.shows("40 %");
        for event in events(&world, &run).iter().filter(|e| e["t"] == "worker_started") {
            let pid = event["payload"]["pid"].as_i64().and_then(|pid| pid.try_into().ok()).expect("a pid");
            // It may have left: there was nothing to do.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
        top.shows("✗ lost");
        top.shows("0 active");
        assert!(ended(&world, &run));
        top.press("q");
        assert_eq!(top.code(), Some(0));
    }

    #[test]
    fn without_a_terminal_it_says_what_to_use_instead() {
        let world = World::new();
        let out = world.cpw(&["top"]).output().expect("cpw runs");
        let err = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), out.stdout.len()), (Some(3), 0), "{err}");
        assert!(err.contains("needs a terminal") && err.contains("cpw status --watch"), "{err}");
        let program = program().to_str().expect("a path in UTF-8");
        let mut dumb = Terminal::start(&world, (80, 24), &["/usr/bin/env", "TERM=dumb", program, "top"]);
        dumb.until("what to use", |screen| screen.contents().contains("cpw status --watch"));
        assert_eq!(dumb.code(), Some(3));
    }
}
