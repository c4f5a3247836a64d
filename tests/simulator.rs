//! Random sessions against the real hooks. A scenario is a project, one or two sessions of a simulated client
//! (`support/session.rs`), runs whose tasks end when the scenario says so, and everything that can go wrong: hooks that are
//! lost, doubled, killed, interrupted or not listened to; workers that are killed or stopped; prompts that are typed while
//! Stop holds; a log that is spoiled. What must hold is checked at every step, and at the end against the logs, by code
//! that shares nothing with cpw.
//!
//! `CPW_SIM=N` asks for so many scenarios, `CPW_SIM_SEED=S` for the one that failed.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/session.rs"]
mod session;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::fs::{self, File, OpenOptions};
    use std::io::Write as _;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::{Path, PathBuf};
    use std::process::{Child, Stdio};
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use nix::sys::signal::{Signal, kill};
    use nix::sys::stat::Mode;
    use nix::unistd::{Pid, mkfifo};
    use serde_json::{Value, json};

    use crate::session::{Fate, HANGS, Hook, Said, Session, ToolCall, Wiring};
    use crate::support::world::{World, wait_for};

    /// Scenarios in CI.
    const COUNT: u64 = 400;
    /// How many at a time: most of what they do is waiting.
    const AT_ONCE: usize = 8;
    /// Blocks by Stop in a row, and refusals for one reason in a row, that the client's own limits never come into play.
    const IN_A_ROW: usize = 3;
    /// How long one call may be held, and how long Stop in one turn.
    const WAIT_MS: u64 = 80;
    const HOLD_MS: u64 = 300;
    /// What a busy machine may add to a hold.
    const SLACK_MS: u64 = 15_000;

    /// How often an idle session may be woken in a minute.
    const WAKES: usize = 6;

    /// A task does what it is told by its pipe, and ends when it is told to.
    const TASK: &str = r#"exec < "$HOME/$CPW_ITEM"
        while read -r word rest; do case $word in
            ok) echo "result of $CPW_ITEM"; exit 0;;
            fail) exit 1;;
            at) cpw progress "$rest";;
            say) set -- $rest; cpw signal --hook "$1" --exit "$2" --message "$3" --match 'Bash(wc*)' >/dev/null 2>&1;;
        esac; done"#;

    /// Splitmix64.
    struct Dice(u64);

    impl Dice {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn below(&mut self, n: usize) -> usize {
            usize::try_from(self.next() % n as u64).unwrap()
        }

        /// Whether something of this probability in percent happens.
        fn chance(&mut self, percent: usize) -> bool {
            self.below(100) < percent
        }

        fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
            if all.is_empty() { None } else { all.get(self.below(all.len())) }
        }
    }

    /// A text that the model read.
    struct Text {
        text: String,
        /// Its hook ended by itself: what it handed over is written down.
        whole: bool,
    }

    /// What the client and the model know of a session.
    struct Talk {
        session: Session,
        /// What its tasks' names begin with.
        letter: char,
        prompts: usize,
        steps: usize,
        /// The last Stop was followed by more.
        active: bool,
        /// Turns in a row that Stop has made go on.
        stops: usize,
        /// Steps in a row of a turn in which every call about something was refused.
        refused: BTreeMap<String, usize>,
        texts: Vec<Text>,
        /// The names of its tasks, as they are asked for by its prompts.
        names: Vec<String>,
        /// Its client has gone on with another session: it is never called again.
        over: bool,
        /// What runs in the background for it.
        watchers: Vec<Hook>,
        /// How often it was woken.
        woken: usize,
        /// Its client.
        client: Option<Child>,
    }

    /// Figures of all scenarios.
    #[derive(Default)]
    struct Totals {
        hooks: AtomicU64,
        killed: AtomicU64,
        runs: AtomicU64,
        news: AtomicU64,
        signals: AtomicU64,
        holds: AtomicU64,
        longest: AtomicU64,
        blocks: AtomicU64,
        refusals: AtomicU64,
        merges: AtomicU64,
    }

    fn count(total: &AtomicU64, n: usize) {
        total.fetch_add(n as u64, Ordering::Relaxed);
    }

    #[expect(clippy::struct_excessive_bools, reason = "circumstances that are independent of each other")]
    struct Scenario<'t> {
        world: World,
        dice: Dice,
        wiring: Wiring,
        talks: Vec<Talk>,
        /// The tasks' pipes.
        pipes: BTreeMap<String, File>,
        /// Those of them that were told to end.
        told: BTreeSet<String>,
        stopped: Vec<Pid>,
        /// Runs whose log was spoiled.
        spoiled: BTreeSet<PathBuf>,
        /// What tasks were told to say.
        said: usize,
        /// Whether anything happens to hooks and workers.
        rough: bool,
        /// Nothing of that kind happens in the whole scenario.
        calm: bool,
        gate: &'static str,
        /// Stop may hold for longer than a scenario lasts: something has to end it.
        long: bool,
        /// The client runs the prompt's hook only after the hold.
        old: bool,
        installed: usize,
        totals: &'t Totals,
        begun: Instant,
        /// What has happened, for whoever looks for a failure.
        journal: Vec<String>,
    }

    type Outcome = Result<(), String>;

    fn rule(number: usize) -> Value {
        let mut tasks = vec![
            json!({"id": "{{item}}", "title": "{{item}}", "shell": TASK, "claims": ["{{item}}.txt"], "retries": number, "backoff": "20ms",
                "signals": ["pre-tool-use:0", "pre-tool-use:2", "post-tool-use:0", "post-tool-use:2", "stop:0", "stop:2",
                    "user-prompt-submit:0"]}),
        ];
        if number == 1 {
            tasks.push(json!({"id": "after-{{item}}", "title": "after-{{item}}", "needs": ["{{item}}"], "run": ["echo", "late"]}));
        }
        json!({
            "name": format!("r{number}"),
            "when": {"prompt": format!("\\bgo{number} ([a-z0-9,]+);")},
            "for_each": {"group": 1},
            "tasks": tasks,
            "merge": [{
                "tool": "Write",
                "match": {"file_path": format!("*report-r{number}.md")},
                "needs": ["*"],
                "set": {"content": "{{input.content}}\n{{results}}"},
            }],
        })
    }

    fn runs(world: &World) -> Vec<PathBuf> {
        let folder = world.project().join(".claude/runs");
        let mut runs: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        // Without a line in its log a folder is no run: the hook that made it was killed before.
        runs.retain(|r| fs::metadata(r.join("events.jsonl")).is_ok_and(|m| m.len() > 0));
        runs.sort();
        runs
    }

    fn events(run: &Path) -> Vec<Value> {
        let log = fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        whole.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    fn has(events: &[Value], kind: &str) -> bool {
        events.iter().any(|e| e["t"] == kind)
    }

    fn ensure(holds: bool, what: impl FnOnce() -> String) -> Outcome {
        if holds { Ok(()) } else { Err(what()) }
    }

    /// Whether `text` says `words` and the name goes no further there.
    fn says(text: &str, words: &str) -> usize {
        let goes_on = |at: usize| text[at + words.len()..].starts_with(|c: char| c.is_alphanumeric());
        let came_from = |at: usize| text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '-');
        text.match_indices(words).filter(|(at, _)| !goes_on(*at) && !came_from(*at)).count()
    }

    impl<'t> Scenario<'t> {
        fn new(seed: u64, totals: &'t Totals) -> Scenario<'t> {
            let mut dice = Dice(seed);
            let world = World::new();
            let gate = ["hold", "hold", "hold", "block", "off"][dice.below(5)];
            let on_claimed = ["wait", "wait", "block", "redirect", "note", "off"][dice.below(6)];
            let long = gate == "hold" && dice.chance(40);
            let config = json!({
                "version": 1,
                "limits": {"max_workers": 3, "max_runs": 32},
                "conductor": {
                    "gate": gate,
                    "on_claimed": on_claimed,
                    "wait": format!("{WAIT_MS}ms"),
                    "hold": if long { "1h".into() } else { format!("{HOLD_MS}ms") },
                },
                "rules": [rule(0), rule(1)],
            });
            world.write(".claude/cpw.json", &config.to_string());
            let twice = dice.chance(20);
            let (project, local) = (twice || dice.chance(30), ["init", "--local"]);
            let mut commands: Vec<&[&str]> = vec![&["allow", "--yes"]];
            commands.extend(project.then_some(&local[..1]));
            commands.extend((twice || !project).then_some(&local[..]));
            for command in commands {
                let out = world.cpw(command).output().expect("cpw runs");
                assert!(out.status.success(), "cpw {command:?}: {}", String::from_utf8_lossy(&out.stderr));
            }
            let mut wiring = Wiring::of(&world);
            if dice.chance(20) {
                wiring = wiring.without("PostToolBatch");
            }
            let rough = dice.chance(65);
            let mut scenario = Scenario {
                world,
                wiring,
                talks: Vec::new(),
                pipes: BTreeMap::new(),
                told: BTreeSet::new(),
                stopped: Vec::new(),
                spoiled: BTreeSet::new(),
                said: 0,
                rough,
                calm: !rough,
                gate,
                long,
                old: dice.chance(30),
                installed: if twice { 2 } else { 1 },
                totals,
                dice,
                begun: Instant::now(),
                journal: vec![config.to_string()],
            };
            for _ in 0..=scenario.dice.below(2) {
                scenario.join(None);
            }
            scenario
        }

        /// A further session, in a client of its own or in the one of another.
        fn join(&mut self, client: Option<Child>) {
            let client = client.unwrap_or_else(|| self.client());
            let letter = char::from(b'a' + u8::try_from(self.talks.len()).unwrap());
            let id = format!("{:08x}-0000-4000-8000-{:012x}", self.dice.next() >> 32, self.talks.len());
            let (tells, interactive) = (self.dice.chance(85), self.dice.chance(70));
            let session = Session { tells, interactive, client: client.id(), ..Session::new(&id) };
            self.talks.push(Talk {
                session,
                letter,
                prompts: 0,
                steps: 0,
                active: false,
                stops: 0,
                refused: BTreeMap::new(),
                texts: Vec::new(),
                names: Vec::new(),
                over: false,
                watchers: Vec::new(),
                woken: 0,
                client: Some(client),
            });
        }

        /// A process that stands for the client.
        fn client(&self) -> Child {
            let mut command = self.world.command("/bin/cat");
            command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("cat starts")
        }

        /// What happens to the next hook.
        fn fate(dice: &mut Dice, rough: bool, world: &World, totals: &Totals) -> Fate {
            count(&totals.hooks, 1);
            if !rough || dice.chance(78) {
                return Fate::Lives;
            }
            let fate = match dice.below(6) {
                0 => Fate::Lost,
                1 => Fate::Killed(Duration::from_micros(dice.next() % 12_000)),
                2 | 3 => Fate::KilledAtAnswer,
                4 => Fate::Unread,
                _ => match dice.pick(&runs(world)) {
                    Some(run) => Fate::KilledAtWrite(run.join("events.jsonl")),
                    None => Fate::Killed(Duration::from_millis(4)),
                },
            };
            count(&totals.killed, 1);
            fate
        }

        fn begin(&mut self, t: usize, event: &str, more: &Value) -> Vec<Hook> {
            let (dice, rough, world, totals) = (&mut self.dice, self.rough, &self.world, self.totals);
            self.talks[t]
                .session
                .begin(world, &self.wiring, event, more, &mut || Self::fate(dice, rough, world, totals))
        }

        /// Calls the hooks of an event, and lets the model read what they say.
        fn call(&mut self, t: usize, event: &str, more: &Value) -> Result<Vec<Said>, String> {
            let said: Vec<Said> = self.begin(t, event, more).into_iter().map(Hook::finish).collect::<Result<_, _>>()?;
            self.hear(t, event, &said)?;
            Ok(said)
        }

        /// The model of a session reads what hooks have said.
        fn hear(&mut self, t: usize, event: &str, said: &[Said]) -> Outcome {
            for one in said {
                let (sure, out) = (one.whole, one.out.as_ref().map(ToString::to_string).unwrap_or_default());
                self.journal.push(format!("session {t}, {event}, whole: {sure}: {out}"));
                let refusal = one.refusal().unwrap_or_default();
                for text in [one.context(), refusal, one.for_user()] {
                    let strange = self.talks.iter().enumerate().filter(|(o, _)| *o != t);
                    let strange = strange.flat_map(|(_, other)| &other.names).find(|name| text.contains(*name));
                    // Behind `/clear` it is told once what goes on.
                    ensure(strange.is_none() || event == "SessionStart", || {
                        format!("{event}: session {t} hears of {strange:?}, which is another's: {text}")
                    })?;
                }
                if !one.context().is_empty() {
                    self.talks[t].texts.push(Text { text: one.context().to_owned(), whole: one.whole });
                }
            }
            Ok(())
        }

        /// The user types. Returns what is said to the hook.
        fn prompt(&mut self, t: usize, asks: bool) -> Value {
            let talk = &mut self.talks[t];
            talk.prompts += 1;
            talk.active = false;
            talk.stops = 0;
            talk.refused.clear();
            let mut words = "How far is it?".to_owned();
            if asks {
                let which = [&[0][..], &[1], &[0, 1]][self.dice.below(3)];
                for rule in which {
                    let names: Vec<String> = (0..=self.dice.below(3))
                        .map(|i| format!("{}q{:02}{rule}{i}", talk.letter, talk.prompts))
                        .collect();
                    words = format!("{words} go{rule} {};", names.join(","));
                    for name in names {
                        let path = self.world.home().join(&name);
                        mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
                        let pipe = OpenOptions::new().read(true).write(true).open(path).expect("a pipe");
                        self.pipes.insert(name.clone(), pipe);
                        talk.names.push(name);
                    }
                }
            }
            talk.session.prompt = format!("prompt-{}-{}", talk.letter, talk.prompts);
            json!({"prompt": words})
        }

        fn tell(&mut self, name: &str, words: &str) {
            self.journal.push(format!("{name} is told: {words}"));
            // Often enough for every attempt there may be.
            let times = if words.starts_with("ok") || words.starts_with("fail") { 20 } else { 1 };
            let mut pipe = &self.pipes[name];
            pipe.write_all(format!("{words}\n").repeat(times).as_bytes()).expect("a pipe has room");
            if times > 1 {
                self.told.insert(name.to_owned());
            }
        }

        /// Lets all tasks of a session end.
        fn finish_all(&mut self, t: usize) {
            let left: Vec<String> = self.talks[t].names.iter().filter(|n| !self.told.contains(*n)).cloned().collect();
            for name in left {
                self.tell(&name, "ok");
            }
        }

        /// Something happens to a task of the session, and the log may say so before anything else happens.
        fn task(&mut self, t: usize) -> Outcome {
            let open: Vec<String> = self.talks[t].names.iter().filter(|n| !self.told.contains(*n)).cloned().collect();
            let Some(name) = self.dice.pick(&open).cloned() else { return Ok(()) };
            let words = ["ok", "ok", "ok", "fail", "at 40", "say", "say"][self.dice.below(7)];
            if words == "say" {
                let hook = ["pre-tool-use", "post-tool-use", "stop", "stop", "user-prompt-submit"][self.dice.below(5)];
                let code = [0, 2][self.dice.below(2)];
                self.said += 1;
                let words = format!("say {hook} {code} word-{}-{name}", self.said);
                self.tell(&name, &words);
                self.wait_said(&name, code);
                return Ok(());
            }
            self.tell(&name, words);
            let started = |run: &PathBuf| events(run).iter().any(|e| e["t"] == "spawned" && e["task"] == *name);
            let run = runs(&self.world).into_iter().find(started);
            if let Some(run) = run.filter(|_| words != "at 40" && !self.rough && self.dice.chance(70)) {
                let is_over = |e: &Value| {
                    ["done", "failed", "lost", "cancelled"].iter().any(|t| e["t"] == *t) && e["task"] == *name
                };
                let over = wait_for(HANGS, || events(&run).iter().any(is_over).then_some(()));
                ensure(over.is_some(), || format!("{name} does not end"))?;
            }
            Ok(())
        }

        /// Where nothing happens to workers, waits a moment for what a task is to say, so that what comes next meets it.
        fn wait_said(&mut self, name: &str, code: i32) {
            let count = || {
                let all = runs(&self.world).into_iter().flat_map(|run| events(&run));
                all.filter(|e| e["t"] == "signal" && e["task"] == *name).count()
            };
            let all: Vec<Value> = runs(&self.world).iter().flat_map(|run| events(run)).collect();
            let has_begun = all.iter().any(|e| e["t"] == "spawned" && e["task"] == *name);
            if self.calm && code == 0 && has_begun && self.dice.chance(50) {
                wait_for(Duration::from_secs(2), || (count() > 0).then_some(()));
            }
        }

        /// Where nothing happens to workers, the session's runs end.
        fn calm_end(&mut self, t: usize) -> Outcome {
            let over = !self.calm || wait_for(HANGS, || (!self.may_hold(t)).then_some(())).is_some();
            ensure(over, || "a run does not end".into())
        }

        /// Workers that are in a log and alive.
        fn workers(&self, run: &Path) -> Vec<Pid> {
            let started = events(run).into_iter().filter(|e| e["t"] == "worker_started");
            let pids = started.filter_map(|e| i32::try_from(e["payload"]["pid"].as_i64()?).ok());
            let is_worker = |pid: &i32| {
                let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let place = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
                words.contains("worker\0--run") && place == self.world.project()
            };
            pids.filter(is_worker).map(Pid::from_raw).collect()
        }

        fn worker(&mut self) {
            let Some(run) = self.dice.pick(&runs(&self.world)).cloned() else { return };
            let Some(pid) = self.dice.pick(&self.workers(&run)).copied() else { return };
            self.journal.push(format!("a worker is killed or stopped: {pid}"));
            // Where a hold may be long, what it waits for must be able to come.
            if self.long || self.dice.chance(60) {
                kill(pid, Signal::SIGKILL).ok();
            } else if kill(pid, Signal::SIGSTOP).is_ok() {
                self.stopped.push(pid);
            }
        }

        fn wake_stopped(&mut self) {
            for pid in self.stopped.drain(..) {
                kill(pid, Signal::SIGCONT).ok();
            }
        }

        /// Nobody can work on a run any more: there is a line that is none in its log, or it is no longer known as one that
        /// was made here; and all its workers die. Its session must not be held for it.
        fn spoil(&mut self) -> Outcome {
            let open = |run: &PathBuf| !self.spoiled.contains(run) && !has(&events(run), "run_ended");
            let all: Vec<PathBuf> = runs(&self.world).into_iter().filter(open).collect();
            let Some(run) = self.dice.pick(&all).cloned() else { return Ok(()) };
            self.journal.push(format!("{} is spoiled", run.display()));
            if self.dice.chance(40) {
                let mut log = OpenOptions::new().append(true).open(run.join("events.jsonl")).expect("the log");
                log.write_all(b"this is no event\n{\"nor\": \"this\"}\n").expect("written");
            } else {
                let record = self.world.state().join("runs").join(run.file_name().expect("its id"));
                fs::remove_file(record).expect("what is recorded of it");
            }
            self.spoiled.insert(run.clone());
            while let Some(pid) = self.workers(&run).first() {
                kill(*pid, Signal::SIGKILL).ok();
                std::thread::sleep(Duration::from_millis(2));
            }
            let owner = events(&run).first().map(|e| e["payload"]["session"].clone());
            let of = |talk: &Talk| !talk.over && owner.as_ref().is_some_and(|o| *o == *talk.session.id);
            match self.talks.iter().position(of) {
                Some(t) => self.stop(t),
                None => Ok(()),
            }
        }

        fn tool_call(&mut self, t: usize) -> ToolCall {
            let project = self.world.project();
            let file = |name: &str| json!({"file_path": project.join(name)});
            let (own, others): (Vec<_>, Vec<_>) = self.talks.iter().enumerate().partition(|(o, _)| *o == t);
            let own: Vec<String> = own.iter().flat_map(|(_, talk)| talk.names.clone()).collect();
            let others: Vec<String> = others.iter().flat_map(|(_, talk)| talk.names.clone()).collect();
            let names = if self.dice.chance(85) { own } else { others };
            // The last ones are those whose tasks may still run.
            let recent = &names[names.len().saturating_sub(5)..];
            let name = self.dice.pick(recent).map_or_else(|| "other.txt".to_owned(), |n| format!("{n}.txt"));
            let report = format!("report-r{}.md", self.dice.below(2));
            let (tool, input) = match self.dice.below(10) {
                0..=3 => ("Read", file(&name)),
                4 => ("Edit", json!({"file_path": project.join(&name), "old_string": "a", "new_string": "b"})),
                5..=7 => ("Write", json!({"file_path": project.join(report), "content": "# Report"})),
                8 => ("Bash", json!({"command": format!("wc -l {name}"), "description": "d"})),
                _ => ("mcp__notes__add", json!({"text": "x", "file_path": project.join("other.txt")})),
            };
            ToolCall { tool, input, agent: self.dice.chance(12) }
        }

        /// A step of the model: some calls at once, the last one maybe as before.
        fn step(&mut self, t: usize) -> Outcome {
            let calls: Vec<ToolCall> = (0..=self.dice.below(3)).map(|_| self.tool_call(t)).collect();
            let rounds = 1 + if self.dice.chance(25) { self.dice.below(5) } else { 0 };
            for _ in 0..rounds {
                self.calls(t, &calls)?;
            }
            Ok(())
        }

        fn calls(&mut self, t: usize, calls: &[ToolCall]) -> Outcome {
            let (mut dice, mut spoiler) = (Dice(self.dice.next()), Dice(self.dice.next()));
            let (rough, world, totals) = (self.rough, &self.world, self.totals);
            let talk = &mut self.talks[t];
            talk.steps += 1;
            talk.stops = 0;
            let (done, end) = talk.session.step(
                world,
                &self.wiring,
                talk.steps,
                calls,
                &mut || Self::fate(&mut dice, rough, world, totals),
                &mut || spoiler.chance(15),
            )?;
            // By what they are about: calls of one step are refused and let through for one reason, in any order.
            let mut refused: BTreeMap<String, (bool, usize)> = BTreeMap::new();
            for (call, called) in calls.iter().zip(done) {
                let event = format!("{} {}", call.tool, call.input);
                self.hear(t, &event, &called.before)?;
                self.hear(t, &event, &called.after)?;
                self.check_input(call, &called.before)?;
                count(&self.totals.refusals, usize::from(called.refused.is_some()));
                let names = self.talks.iter().flat_map(|talk| &talk.names);
                let about = names.into_iter().find(|name| event.contains(*name)).cloned().unwrap_or(event);
                let failed = called.refused.as_deref().is_some_and(|r| r.starts_with("Not every"));
                // A task may hold calls back for longer, until it has done so twenty times.
                let most = if called.refused.as_deref().is_some_and(|r| r.contains("word-")) { 20 } else { IN_A_ROW };
                let all = refused.entry(format!("{about} {failed} {most}")).or_insert((true, most));
                all.0 &= called.refused.is_some();
            }
            for (key, (all, most)) in refused {
                let times = self.talks[t].refused.entry(key.clone()).or_insert(0);
                *times = if all { *times + 1 } else { 0 };
                let times = *times;
                ensure(times <= most, || format!("refused {times} times in a row: {key}"))?;
            }
            self.hear(t, "PostToolBatch", &end)
        }

        /// A rewrite returns the whole input; one of a merge adds results of this session alone, all of them.
        fn check_input(&self, call: &ToolCall, said: &[Said]) -> Outcome {
            for input in said.iter().filter_map(Said::input) {
                let missing = call.input.as_object().expect("an object").keys().find(|k| input.get(*k).is_none());
                let cut = ["offset", "limit"];
                ensure(missing.is_none_or(|k| cut.contains(&k.as_str())), || format!("{missing:?} is lost: {input}"))?;
                if call.tool == "Write" && !call.agent {
                    count(&self.totals.merges, 1);
                    let text = input["content"].as_str().unwrap_or_default();
                    ensure(text.starts_with("# Report\n") && text.contains("result of "), || {
                        format!("a merge without results: {input}")
                    })?;
                } else {
                    ensure(call.tool == "Read", || format!("{} is rewritten: {input}", call.tool))?;
                }
            }
            Ok(())
        }

        /// The model stops whenever it may, and something is new each time.
        fn persist(&mut self, t: usize) -> Outcome {
            for _ in 0..6 {
                self.task(t)?;
                self.stop(t)?;
                if !self.talks[t].active {
                    break;
                }
            }
            Ok(())
        }

        /// Whether Stop may wait for something in this session.
        fn may_hold(&self, t: usize) -> bool {
            let own = |run: &PathBuf| {
                let events = events(run);
                events.first().is_some_and(|e| e["payload"]["session"] == *self.talks[t].session.id)
                    && !has(&events, "run_ended")
            };
            runs(&self.world).iter().any(|run| !self.spoiled.contains(run) && own(run))
        }

        /// Waits until each of these hooks holds or is over.
        fn wait_for_hold(&self, hooks: &mut [Hook]) {
            let project = self.world.project();
            let mut looked = || {
                let ready = |hook: &mut Hook| hook.is_over() || hook.is_holding(&project);
                hooks.iter_mut().all(ready).then_some(())
            };
            wait_for(HANGS, &mut looked);
        }

        /// The model wants to stop.
        fn stop(&mut self, t: usize) -> Outcome {
            let begun = Instant::now();
            let holds = self.may_hold(t);
            let payload = json!({
                "stop_hook_active": self.talks[t].active,
                "last_assistant_message": "done",
                "background_tasks": [],
                "session_crons": [],
            });
            if self.long {
                self.wake_stopped();
            }
            let watchers = self.talks[t].session.watch(&self.world, &self.wiring, "Stop", &payload);
            let mut hooks = self.begin(t, "Stop", &payload);
            let mut typed = None;
            let mut interrupted = false;
            let meanwhile = self.dice.below(if self.long { 3 } else { 6 });
            if holds && self.gate == "hold" {
                self.wait_for_hold(&mut hooks);
                match meanwhile {
                    0 => self.finish_all(t),
                    1 if !self.old => {
                        let asks = self.dice.chance(30);
                        let prompt = self.prompt(t, asks);
                        self.call(t, "UserPromptSubmit", &prompt)?;
                        // Where the hook that should have told it did not live, the user presses Esc.
                        typed = Some(());
                        if self.rough && self.long {
                            hooks.iter_mut().for_each(Hook::interrupt);
                        }
                    }
                    1 | 2 => {
                        hooks.iter_mut().for_each(Hook::interrupt);
                        interrupted = true;
                    }
                    3 => self.task(t)?,
                    4 if self.rough => self.worker(),
                    _ => {}
                }
            }
            let said: Vec<Said> = hooks.into_iter().map(Hook::finish).collect::<Result<_, _>>()?;
            self.hear(t, "Stop", &said)?;
            if self.talks[t].session.interactive {
                self.talks[t].watchers.extend(watchers);
            } else {
                // Without a terminal the client waits for them.
                let said: Vec<Said> = watchers.into_iter().map(Hook::finish).collect::<Result<_, _>>()?;
                ensure(said.iter().all(|s| s.out.is_none()), || format!("a session of -p is watched: {said:?}"))?;
            }
            self.check_claims_of_life(&said, holds || self.may_hold(t))?;
            count(&self.totals.holds, usize::from(holds && begun.elapsed() > Duration::from_millis(100)));
            // What was said by a hook that was killed before it could write that down is not counted by cpw.
            let goes_on = !interrupted && said.iter().any(|s| s.whole && !s.context().is_empty());
            let talk = &mut self.talks[t];
            talk.active = goes_on;
            talk.stops = if goes_on && typed.is_none() { talk.stops + 1 } else { 0 };
            let stops = talk.stops;
            count(&self.totals.blocks, usize::from(goes_on));
            ensure(stops <= IN_A_ROW, || format!("Stop has made the turn go on {stops} times in a row"))?;
            ensure(!goes_on || self.gate != "off", || "Stop goes on though its gate is off".into())
        }

        /// Nobody is said to work on a run that nobody can work on. `attended`: somebody could, before it was said or since.
        fn check_claims_of_life(&self, said: &[Said], attended: bool) -> Outcome {
            let names = |run: &PathBuf| -> Vec<String> {
                let started = events(run).into_iter().filter(|e| e["t"] == "started");
                started.filter_map(|e| Some(e["task"].as_str()?.to_owned())).collect()
            };
            let dead: Vec<String> = self.spoiled.iter().flat_map(names).collect();
            let lines = said.iter().flat_map(|s| s.context().lines()).filter(|l| l.starts_with("Workers still"));
            for line in lines {
                let name = dead.iter().find(|name| says(line, name) > 0);
                ensure(name.is_none(), || format!("{name:?} is said to be worked on: {line}"))?;
                ensure(self.spoiled.is_empty() || attended, || format!("nobody is left: {line}"))?;
            }
            Ok(())
        }

        /// One thing happens.
        fn act(&mut self) -> Outcome {
            let alive: Vec<usize> = (0..self.talks.len()).filter(|t| !self.talks[*t].over).collect();
            let t = *self.dice.pick(&alive).expect("a session");
            if self.talks[t].prompts == 0 {
                let prompt = self.prompt(t, true);
                return self.call(t, "UserPromptSubmit", &prompt).map(drop);
            }
            match self.dice.below(40) {
                0..=3 if self.talks[t].prompts < 4 => {
                    let asks = self.dice.chance(60);
                    let prompt = self.prompt(t, asks);
                    // The client may call twice for one prompt.
                    for _ in 0..=usize::from(self.dice.chance(15)) {
                        self.call(t, "UserPromptSubmit", &prompt)?;
                    }
                    Ok(())
                }
                4 => {
                    let words = "<task-notification>\n<task-id>b1</task-id> go0 zzzzz;\n</task-notification>";
                    self.call(t, "UserPromptSubmit", &json!({"prompt": words})).map(drop)
                }
                5..=16 => self.step(t),
                17..=24 => self.stop(t),
                30 | 31 => self.persist(t),
                32 | 33 => {
                    self.finish_all(t);
                    self.calm_end(t)
                }
                34 | 35 if self.rough => {
                    self.worker();
                    Ok(())
                }
                36 if self.rough && self.wiring.has("SessionStart") => self.resume(t),
                37 if self.rough => self.spoil(),
                38 if self.talks.len() < 4 => self.clear(t),
                39 if self.dice.chance(40) => {
                    self.world.cpw(&["cancel"]).output().expect("cpw runs");
                    Ok(())
                }
                _ => self.task(t),
            }
        }

        /// What ended in the background: what it says wakes the session, which takes a turn then.
        fn reap(&mut self) -> Outcome {
            for t in 0..self.talks.len() {
                for mut hook in std::mem::take(&mut self.talks[t].watchers) {
                    if !hook.is_over() {
                        self.talks[t].watchers.push(hook);
                        continue;
                    }
                    let said = hook.finish()?;
                    self.hear(t, "watch", std::slice::from_ref(&said))?;
                    if said.context().is_empty() || self.talks[t].over {
                        continue;
                    }
                    self.prompt(t, false);
                    self.talks[t].active = true;
                    self.talks[t].woken += 1;
                    let woken = self.talks[t].woken;
                    ensure(woken <= WAKES || self.begun.elapsed() > Duration::from_mins(1), || {
                        format!("session {t} is woken {woken} times in a minute")
                    })?;
                    let words = "<task-notification>\n<summary>cpw</summary>\n</task-notification>";
                    self.call(t, "UserPromptSubmit", &json!({"prompt": words}))?;
                }
            }
            Ok(())
        }

        /// The session goes on in another client.
        fn resume(&mut self, t: usize) -> Outcome {
            let client = self.client();
            self.talks[t].session.client = client.id();
            if let Some(mut old) = self.talks[t].client.replace(client) {
                old.kill().and_then(|()| old.wait()).map_err(|e| e.to_string())?;
            }
            self.call(t, "SessionStart", &json!({"source": "resume"})).map(drop)
        }

        /// The client of a session ends, in order or not, and with it what it has in the background.
        fn leave(&mut self, t: usize) -> Outcome {
            let in_order = self.dice.chance(50);
            let watchers = std::mem::take(&mut self.talks[t].watchers);
            if let Some(mut client) = self.talks[t].client.take() {
                client.kill().and_then(|()| client.wait()).map_err(|e| e.to_string())?;
            }
            for mut hook in watchers {
                if in_order {
                    hook.interrupt();
                }
                let said = hook.finish()?;
                self.hear(t, "watch", &[said])?;
            }
            Ok(())
        }

        /// `/clear`: the client goes on with another session.
        fn clear(&mut self, t: usize) -> Outcome {
            if self.wiring.has("SessionEnd") {
                self.call(t, "SessionEnd", &json!({"reason": "clear"}))?;
            }
            self.talks[t].over = true;
            let client = self.talks[t].client.take();
            self.join(client);
            if self.wiring.has("SessionStart") {
                self.call(self.talks.len() - 1, "SessionStart", &json!({"source": "clear"}))?;
            }
            Ok(())
        }

        /// Nothing happens to anybody any more: everything ends, and everybody is told the rest.
        fn end(&mut self) -> Outcome {
            self.rough = false;
            self.wake_stopped();
            for t in 0..self.talks.len() {
                self.finish_all(t);
            }
            let mut looks = 0;
            let over = wait_for(HANGS, || {
                looks += 1;
                if looks % 25 == 0 {
                    // Whoever comes next goes on where all workers were killed.
                    self.world.cpw(&["status"]).output().expect("cpw runs");
                }
                let open = |run: &PathBuf| !self.spoiled.contains(run) && !has(&events(run), "run_ended");
                (!runs(&self.world).iter().any(open)).then_some(())
            });
            ensure(over.is_some(), || "a run does not end".into())?;
            self.reap()?;
            for t in (0..self.talks.len()).filter(|t| !self.talks[*t].over).collect::<Vec<_>>() {
                let prompt = self.prompt(t, false);
                self.call(t, "UserPromptSubmit", &prompt)?;
                self.stop(t)?;
                let mut more = self.call(t, "PostToolBatch", &json!({"tool_calls": []}))?;
                more.extend(self.call(t, "Stop", &json!({"stop_hook_active": true}))?);
                let loud = more.iter().find(|s| !s.context().is_empty());
                ensure(loud.is_none(), || format!("session {t} is told once more: {loud:?}"))?;
                if self.wiring.has("SessionEnd") {
                    self.call(t, "SessionEnd", &json!({"reason": "other"}))?;
                }
                self.leave(t)?;
            }
            for t in 0..self.talks.len() {
                self.leave(t)?;
            }
            self.judge()?;
            let all = runs(&self.world);
            // Looking at every process there is costs more.
            let workers = || all.iter().map(|run| self.workers(run).len()).sum::<usize>();
            wait_for(HANGS, || (workers() == 0).then_some(()));
            let left = self.world.sweep(HANGS);
            ensure(left.is_empty(), || format!("processes are left: {left:?}"))?;
            let temporary = fs::read_dir(self.world.path("tmp")).expect("a folder").count();
            ensure(temporary == 0, || format!("{temporary} temporary files are left"))
        }

        fn judge(&self) -> Outcome {
            let all = runs(&self.world);
            for (i, run) in all.iter().enumerate().filter(|(_, run)| !self.spoiled.contains(*run)) {
                let events = events(run);
                if events.is_empty() {
                    continue;
                }
                count(&self.totals.runs, 1);
                let began = &events[0]["payload"];
                let later = all[i + 1..].iter().map(|r| self::events(r));
                let again = later.filter(|l| !l.is_empty()).any(|l| {
                    let p = &l[0]["payload"];
                    (&p["session"], &p["rule"]) == (&began["session"], &began["rule"])
                });
                self.judge_run(&events, again).map_err(|e| format!("{}: {e}", run.display()))?;
            }
            let prompts: Vec<Value> = all.iter().filter_map(|r| self::events(r).into_iter().next()).collect();
            for (i, one) in prompts.iter().enumerate() {
                let key = |e: &Value| (e["payload"]["prompt_id"].clone(), e["payload"]["rule"].clone());
                ensure(!prompts[..i].iter().any(|o| key(o) == key(one)), || format!("started twice: {one}"))?;
            }
            self.judge_errors()
        }

        /// What is in the log of a run, and what its session has read. `again`: its rule has started another one since, which
        /// is then owed nothing of this one.
        fn judge_run(&self, events: &[Value], again: bool) -> Outcome {
            let owner = events[0]["payload"]["session"].as_str().unwrap_or_default();
            let rule = events[0]["payload"]["rule"].as_str().unwrap_or_default();
            let talk = self.talks.iter().find(|t| t.session.id == owner).ok_or("of no session")?;
            let mut covered: BTreeMap<u64, usize> = BTreeMap::new();
            let mut held: BTreeMap<String, u64> = BTreeMap::new();
            let mut passed: BTreeMap<u64, usize> = BTreeMap::new();
            let (mut prompt, mut in_a_row, mut merged) = (Value::Null, 0, 0);
            for e in events {
                let p = &e["payload"];
                if e["t"] == "delivered" {
                    ensure(p["session"] == owner, || format!("delivered to another session: {e}"))?;
                    for seq in p["news"].as_array().into_iter().flatten() {
                        *covered.entry(seq.as_u64().ok_or("no number")?).or_insert(0) += 1;
                    }
                    for id in p["signals"].as_array().into_iter().flatten() {
                        *passed.entry(id.as_u64().ok_or("no number")?).or_insert(0) += 1;
                    }
                    let same = p["hook"] == "Stop" && p["prompt_id"] == prompt;
                    in_a_row = if same { in_a_row + 1 } else { usize::from(p["hook"] == "Stop") };
                    prompt = p["prompt_id"].clone();
                    ensure(in_a_row <= IN_A_ROW, || format!("{in_a_row} hand-overs by Stop in a row: {e}"))?;
                }
                if e["t"] == "decision" {
                    let ms = p["held_ms"].as_u64().unwrap_or(0);
                    self.totals.longest.fetch_max(if self.long { 0 } else { ms }, Ordering::Relaxed);
                    if let Some(id) = p["signal"].as_u64().filter(|_| p["answer"] == "inject") {
                        *passed.entry(id).or_insert(0) += 1;
                    }
                    if p["answer"] == "rewrite" && p.get("merge").is_some() {
                        merged += 1;
                        ensure(merged == 1, || format!("merged {merged} times: {e}"))?;
                    }
                    if p["hook"] == "Stop" {
                        *held.entry(p["prompt_id"].to_string()).or_insert(0) += ms;
                    } else {
                        ensure(ms <= WAIT_MS + SLACK_MS, || format!("held for too long: {e}"))?;
                    }
                }
            }
            // Two installations hold side by side.
            let budget = (HOLD_MS + SLACK_MS) * self.installed as u64;
            let over = held.iter().find(|(_, ms)| **ms > budget && !self.long);
            ensure(over.is_none(), || format!("Stop has held for too long: {over:?}"))?;
            self.judge_signals(events, talk, &passed, again)?;
            for e in events {
                let name = e["task"].as_str().unwrap_or_default();
                let patterns = match e["t"].as_str().unwrap_or_default() {
                    "done" => vec![format!("done: {name}")],
                    "failed" | "timed_out" | "lost" if e["payload"]["will_retry"] != true => {
                        vec![format!("failed: {name}")]
                    }
                    "cancelled" => vec![format!("{name} was cancelled")],
                    "skipped" => vec![format!("{name} was skipped")],
                    "run_ended" => vec![format!("All workers of rule {rule} are finished")],
                    _ => continue,
                };
                count(&self.totals.news, 1);
                let seq = e["seq"].as_u64().ok_or("no number")?;
                let records = covered.get(&seq).copied().unwrap_or(0);
                ensure(records <= 1, || format!("written down {records} times as told: {e}"))?;
                ensure(records == 1 || again || talk.over, || format!("never told: {e}"))?;
                if e["t"] == "run_ended" {
                    continue;
                }
                let read = |whole: bool| -> usize {
                    let texts = talk.texts.iter().filter(|t| t.whole == whole);
                    texts.map(|t| patterns.iter().map(|p| says(&t.text, p)).sum::<usize>()).sum()
                };
                let (sure, unsure) = (read(true), read(false));
                ensure(sure <= 1, || format!("told {sure} times: {e}"))?;
                ensure(records == 0 || sure + unsure > 0, || format!("written down as told, and never said: {e}"))?;
            }
            Ok(())
        }

        /// What tasks have said is told once. Of several that a task says to the same hook, the last is told for all.
        fn judge_signals(&self, events: &[Value], talk: &Talk, told: &BTreeMap<u64, usize>, again: bool) -> Outcome {
            for (i, e) in events.iter().enumerate().filter(|(_, e)| e["t"] == "signal") {
                let p = &e["payload"];
                count(&self.totals.signals, 1);
                let times = e["seq"].as_u64().and_then(|seq| told.get(&seq)).copied().unwrap_or(0);
                ensure(times <= 1, || format!("written down {times} times as told: {e}"))?;
                let message = p["message"].as_str().unwrap_or_default();
                let read = |whole: bool| -> usize {
                    talk.texts.iter().filter(|t| t.whole == whole).map(|t| says(&t.text, message)).sum()
                };
                ensure(read(true) <= 1, || format!("told {} times: {e}", read(true)))?;
                ensure(times == 0 || read(true) + read(false) > 0, || {
                    format!("written down as told, and never said: {e}")
                })?;
                let replaced = events[i + 1..].iter().any(|o| {
                    let same = |name: &str| o["payload"][name] == p[name];
                    o["t"] == "signal" && o["task"] == e["task"] && same("hook") && same("exit")
                });
                // What was meant for calls, or for a Stop that does not speak, may find nobody.
                let comes = p["hook"] == "post-tool-use"
                    || p["hook"] == "user-prompt-submit"
                    || (p["hook"] == "stop" && p["exit"] == 2);
                ensure(times == 1 || !comes || replaced || again || talk.over, || format!("never told: {e}"))?;
            }
            Ok(())
        }

        /// Where nothing was done to anybody, hooks have nothing to swallow.
        fn judge_errors(&self) -> Outcome {
            let log = fs::read_to_string(self.world.state().join("hooks.jsonl")).unwrap_or_default();
            let error =
                log.lines().find(|l| l.contains("\"error\"") && !l.contains("slow: took") && !l.contains("is locked"));
            ensure(error.is_none() || !self.calm, || format!("swallowed: {error:?}"))
        }

        fn run(&mut self) -> Outcome {
            for _ in 0..6 + self.dice.below(10) {
                self.reap()?;
                self.act()?;
            }
            self.end()
        }
    }

    fn one(seed: u64, totals: &Totals) -> Outcome {
        let mut scenario = Scenario::new(seed, totals);
        let outcome = catch_unwind(AssertUnwindSafe(|| scenario.run()));
        let outcome = outcome.unwrap_or_else(|_| Err("the simulator itself fails, see above".into()));
        if outcome.is_err() {
            // Whole, because time plays a part: the same seed may go well next time.
            println!("CPW_SIM_SEED={seed}\n{}", scenario.journal.join("\n"));
            for run in runs(&scenario.world) {
                println!("{}", fs::read_to_string(run.join("events.jsonl")).unwrap_or_default());
            }
            for (pid, line) in scenario.world.processes() {
                println!("{pid} {line}");
            }
            println!("{}", fs::read_to_string(scenario.world.state().join("hooks.jsonl")).unwrap_or_default());
            scenario.wake_stopped();
            scenario.world.sweep(Duration::ZERO);
        }
        outcome
    }

    #[test]
    fn random_sessions_are_told_once_and_never_held_for_nothing() {
        let number = |name: &str| std::env::var(name).ok().and_then(|n| n.parse::<u64>().ok());
        let totals = Totals::default();
        if let Some(seed) = number("CPW_SIM_SEED") {
            one(seed, &totals).unwrap_or_else(|e| panic!("CPW_SIM_SEED={seed}: {e}"));
            return;
        }
        let count = number("CPW_SIM").unwrap_or(COUNT);
        let begun = Instant::now();
        let (next, failed) = (AtomicU64::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= count || failed.lock().unwrap().len() >= 3 {
                            return;
                        }
                        if let Err(e) = one(seed, &totals) {
                            failed.lock().unwrap().push(format!("CPW_SIM_SEED={seed}: {e}"));
                        }
                    }
                });
            }
        });
        let of = |total: &AtomicU64| total.load(Ordering::Relaxed);
        println!(
            "{count} scenarios in {:.1} s: {} runs, {} hooks ({} killed, lost or unheard), {} news, {} signals, {} holds (longest {} ms), \
             {} turns that Stop made go on, {} refusals, {} merges",
            begun.elapsed().as_secs_f64(),
            of(&totals.runs),
            of(&totals.hooks),
            of(&totals.killed),
            of(&totals.news),
            of(&totals.signals),
            of(&totals.holds),
            of(&totals.longest),
            of(&totals.blocks),
            of(&totals.refusals),
            of(&totals.merges),
        );
        let failed = failed.into_inner().unwrap();
        assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    }
}
