//! A log that was harmed while nobody looked: whoever opens it next names the harm, starts nothing, and changes nothing. The
//! real binary, its hooks and its commands.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
    use std::path::{Path, PathBuf};
    use std::process::{Output, Stdio};
    use std::time::Duration;

    use nix::sys::signal::{Signal, kill};
    use serde_json::{Value, json};

    use crate::support::world::{World, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";
    const LIMIT: Duration = Duration::from_secs(30);

    const HOOKS: [(&str, &str); 5] = [
        ("user-prompt-submit", "UserPromptSubmit"),
        ("pre-tool-use", "PreToolUse"),
        ("post-tool-use", "PostToolUse"),
        ("post-tool-batch", "PostToolBatch"),
        ("stop", "Stop"),
    ];

    /// Counts that it ran, and waits until it may end.
    const TASK: &str = r#"echo "Findings about $CPW_ITEM"; echo x >> "$HOME/ran-$CPW_TASK"
        until [ -e "$HOME/go-$CPW_TASK" ]; do sleep 0.02; done"#;

    fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
        wait_for(LIMIT, || happened().then_some(())).unwrap_or_else(|| panic!("did not happen: {what}"));
    }

    /// A project with approved rules, whose prompt has started a run of the tasks `api` and `db`.
    struct Begun {
        world: World,
        run: PathBuf,
    }

    impl Begun {
        fn new() -> Begun {
            let world = World::new();
            world.write("api.py", "# code\n");
            world.write("db.py", "# code\n");
            let config = json!({
                "version": 1,
                "conductor": {"wait": "100ms", "hold": "100ms"},
                "limits": {"max_workers": 2},
                "rules": [{
                    "name": "analyze",
                    "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
                    "for_each": "files",
                    "tasks": [{"id": "{{item.stem}}", "shell": TASK, "claims": ["{{item}}"]}],
                }],
            });
            world.write(".claude/cpw.json", &config.to_string());
            let out = world.cpw(&["allow", "--yes"]).output().expect("cpw runs");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let mut begun = Begun { world, run: PathBuf::new() };
            let said = begun.hook(HOOKS[0], &json!({"prompt": "Analyze api.py and db.py", "prompt_id": "p1"}));
            assert!(said.contains("cpw has started 2 tasks"), "{said}");
            let runs = begun.world.project().join(".claude/runs");
            let entries = fs::read_dir(runs).expect("the runs").flatten().map(|e| e.path());
            begun.run = entries.filter(|p| p.is_dir()).max().expect("a run");
            wait_until("both tasks run", || ["api", "db"].iter().all(|t| begun.ran(t) == 1));
            begun
        }

        /// As [`Begun::new`]; then `api` has ended, and all workers are dead while `db` runs.
        fn deserted() -> Begun {
            let begun = Begun::new();
            begun.let_end("api");
            wait_until("api is done", || begun.log().contains("\"t\":\"done\""));
            begun.desert();
            begun
        }

        fn desert(&self) {
            let workers = || {
                let all = self.world.processes().into_iter();
                all.filter(|(_, line)| line.contains(" worker --run ")).map(|(pid, _)| pid).collect::<Vec<_>>()
            };
            for pid in workers() {
                // It may have left by itself.
                kill(pid, Signal::SIGKILL).ok();
            }
            wait_until("the workers are dead", || workers().is_empty());
        }

        fn id(&self) -> &str {
            self.run.file_name().and_then(|n| n.to_str()).expect("a name")
        }

        fn log_path(&self) -> PathBuf {
            self.run.join("events.jsonl")
        }

        fn log(&self) -> String {
            fs::read_to_string(self.log_path()).unwrap_or_default()
        }

        fn ran(&self, task: &str) -> usize {
            fs::read_to_string(self.world.home().join(format!("ran-{task}"))).map_or(0, |t| t.lines().count())
        }

        fn let_end(&self, task: &str) {
            fs::write(self.world.home().join(format!("go-{task}")), "").expect("a file in the home");
        }

        /// Calls a hook; whatever happens it ends with 0 and says nothing on stderr.
        fn hook(&self, (name, event): (&str, &str), more: &Value) -> String {
            let mut payload = json!({
                "session_id": SESSION, "transcript_path": "/nowhere/t.jsonl", "cwd": self.world.project(),
                "prompt_id": "p2", "permission_mode": "acceptEdits", "hook_event_name": event, "prompt": "Go on",
                "tool_name": "Read", "tool_input": {"file_path": self.world.project().join("db.py")},
                "tool_use_id": "toolu_1",
            });
            let more = more.as_object().cloned().unwrap_or_default();
            payload.as_object_mut().expect("an object").extend(more);
            let mut command = self.world.cpw(&[name]);
            command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", self.world.project());
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("cpw starts");
            child.stdin.take().expect("a pipe").write_all(payload.to_string().as_bytes()).expect("it reads");
            let out = child.wait_with_output().expect("it ends");
            assert_eq!(out.status.code(), Some(0), "{name}");
            assert!(out.stderr.is_empty(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
            String::from_utf8(out.stdout).expect("text")
        }

        fn cpw(&self, args: &[&str]) -> Output {
            self.world.cpw(args).output().expect("cpw runs")
        }

        /// What hooks had to swallow.
        fn noted(&self) -> String {
            fs::read_to_string(self.world.state().join("hooks.jsonl")).unwrap_or_default()
        }

        /// Every file of the run: what it is, which one, and its bytes. Bells and locks of live processes aside.
        fn evidence(&self) -> BTreeMap<PathBuf, String> {
            let mut found = BTreeMap::new();
            let mut folders = vec![self.run.clone()];
            while let Some(folder) = folders.pop() {
                for entry in fs::read_dir(&folder).expect("a folder of the run").flatten() {
                    let (path, meta) = (entry.path(), entry.path().symlink_metadata().expect("it is there"));
                    // Whoever follows a run hangs a bell, and takes it away.
                    if path.parent().is_some_and(|p| p.ends_with("bells")) {
                        continue;
                    }
                    if meta.is_dir() {
                        folders.push(path.clone());
                    }
                    let bytes = if meta.is_file() { fs::read(&path).unwrap_or_default() } else { Vec::new() };
                    let text = format!("{:o} {} {}", meta.mode(), meta.ino(), String::from_utf8_lossy(&bytes));
                    found.insert(path, text);
                }
            }
            found
        }
    }

    type Harm = fn(&Begun);

    fn replace(begun: &Begun, bytes: &[u8]) {
        let other = begun.run.with_file_name("other");
        fs::write(&other, bytes).expect("another file");
        fs::rename(&other, begun.log_path()).expect("in its place");
    }

    fn rewrite(begun: &Begun, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
        let bytes = fs::read(begun.log_path()).expect("the log");
        // The same inode: what an editor or a restore may do.
        fs::write(begun.log_path(), change(bytes)).expect("the log is written");
    }

    fn lines(bytes: &[u8]) -> Vec<&[u8]> {
        bytes.split_inclusive(|b| *b == b'\n').collect()
    }

    /// What can be done to a log, and what is said of it.
    const HARMS: &[(&str, Harm, &str)] = &[
        ("deleted", |b| fs::remove_file(b.log_path()).expect("it goes"), "missing"),
        ("a copy in its place", |b| replace(b, b.log().as_bytes()), "it was replaced"),
        ("another log in its place", |b| replace(b, lines(b.log().as_bytes())[0]), "it was replaced"),
        ("an empty file in its place", |b| replace(b, b""), "it was replaced"),
        ("emptied", |b| rewrite(b, |_| Vec::new()), "it was cut"),
        (
            "emptied, and no index",
            |b| {
                rewrite(b, |_| Vec::new());
                fs::remove_file(b.run.join("state.idx")).expect("it goes");
            },
            "it was emptied",
        ),
        ("cut to its first line", |b| rewrite(b, |l| lines(&l)[0].to_vec()), "it was cut"),
        (
            "a line taken out",
            |b| rewrite(b, |l| [&lines(&l)[..2], &lines(&l)[3..]].concat().concat()),
            "seq 3 is missing",
        ),
        ("a foreign line in it", |b| rewrite(b, |l| [&l[..], b"<<<<<<< HEAD\n"].concat()), "line"),
        ("zeros behind it", |b| rewrite(b, |l| [&l[..], &[0; 100], b"\n"].concat()), "line"),
        (
            "a symbolic link",
            |b| {
                let away = b.world.path("away.jsonl");
                fs::rename(b.log_path(), &away).expect("it goes");
                symlink(&away, b.log_path()).expect("a link");
            },
            "a symbolic link",
        ),
        (
            "a FIFO",
            |b| {
                fs::remove_file(b.log_path()).expect("it goes");
                nix::unistd::mkfifo(&b.log_path(), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
            },
            "a FIFO",
        ),
        (
            "a folder",
            |b| {
                fs::remove_file(b.log_path()).expect("it goes");
                fs::create_dir(b.log_path()).expect("a folder");
            },
            "a folder",
        ),
    ];

    /// What runs, but for the naps of a task that waits.
    fn processes(begun: &Begun) -> Vec<String> {
        let lines = begun.world.processes().into_iter().map(|(_, line)| line);
        lines.filter(|line| !line.starts_with("sleep ")).collect()
    }

    fn check(name: &str, harm: Harm, says: &str) {
        let begun = Begun::deserted();
        // Known before the harm: the index holds what was folded.
        assert!(begun.run.join("state.idx").exists(), "{name}");
        harm(&begun);
        let before = begun.evidence();
        let tasks = processes(&begun);
        for hook in HOOKS {
            let said = begun.hook(hook, &json!({}));
            assert!(!said.contains("deny") && !said.contains("block"), "{name}, {hook:?}: {said}");
        }
        let noted = begun.noted();
        assert!(noted.contains(says) && noted.contains(begun.id()), "{name}: {noted}");
        let record = fs::read_to_string(begun.world.state().join("sessions").join(SESSION)).expect("the record");
        assert!(!record.contains("\"closed\""), "{name}: the run was closed for its session: {record}");

        let text = |out: &Output| String::from_utf8_lossy(&[&out.stdout[..], &out.stderr[..]].concat()).into_owned();
        let out = begun.cpw(&["status"]);
        assert!(out.status.success() && text(&out).contains("damaged"), "{name}: {}", text(&out));
        assert!(text(&out).contains(says) && text(&out).contains("cpw doctor"), "{name}: {}", text(&out));
        let out = begun.cpw(&["status", "--json"]);
        let all: Value = serde_json::from_slice(&out.stdout).expect("JSON");
        assert_eq!(all["runs"][0]["state"], "damaged", "{name}: {all}");
        assert!(all["runs"][0]["reason"].as_str().is_some_and(|r| r.contains(says)), "{name}: {all}");
        for args in
            [&["result", "api"][..], &["logs"], &["events"], &["cancel"], &["worker", "--task", "db"], &["worker"]]
        {
            let out = begun.cpw(args);
            assert_eq!(out.status.code(), Some(1), "{name}, {args:?}: {}", text(&out));
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(said.contains("is damaged: ") && said.contains(says), "{name}, {args:?}: {said}");
            assert!(said.contains(&format!("cpw doctor {}", begun.id())), "{name}, {args:?}: {said}");
        }
        let out = begun.cpw(&["doctor", begun.id()]);
        let said = text(&out);
        assert_eq!(out.status.code(), Some(1), "{name}: {said}");
        assert!(
            said.contains("events.jsonl") && (said.contains(says) || said.contains(exactly(says))),
            "{name}: {said}"
        );
        let again = format!("cpw run {}", begun.run.join("plan.json").display());
        assert!(said.contains(&again) && said.contains("out/api.1/result.txt"), "{name}: {said}");
        assert_eq!(begun.evidence(), before, "{name}: something was changed");
        assert_eq!(processes(&begun), tasks, "{name}: something was started");
        assert_eq!((begun.ran("api"), begun.ran("db")), (1, 1), "{name}");
        begun.let_end("db");
    }

    /// `cpw doctor` tells the place of a bad line.
    fn exactly(says: &str) -> &'static str {
        match says {
            "seq 3 is missing" => "line 3, byte",
            "line" => "the line begins: ",
            _ => "nothing else is said",
        }
    }

    #[test]
    fn whoever_opens_a_harmed_log_next_names_it_and_starts_nothing() {
        for chunk in HARMS.chunks(HARMS.len().div_ceil(2)) {
            std::thread::scope(|scope| {
                let all: Vec<_> =
                    chunk.iter().map(|(name, harm, says)| scope.spawn(|| check(name, *harm, says))).collect();
                for one in all {
                    one.join().expect("as it should be");
                }
            });
        }
    }

    /// The folder of a run that was never begun has no log to miss.
    #[test]
    fn a_folder_that_never_became_a_run_is_not_called_damaged() {
        let begun = Begun::new();
        for task in ["api", "db"] {
            begun.let_end(task);
        }
        wait_until("the end", || begun.log().contains("\"t\":\"run_ended\""));
        let stillborn = begun.run.with_file_name("99990101-000000000000-00000000000000000000");
        fs::create_dir_all(stillborn.join("workers")).expect("a folder");
        let shown = |begun: &Begun| {
            let all: Value = serde_json::from_slice(&begun.cpw(&["status", "--json"]).stdout).expect("JSON");
            all["runs"].as_array().expect("a list").clone()
        };
        assert_eq!(shown(&begun).len(), 1, "no log");
        let empty =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(stillborn.join("events.jsonl"));
        drop(empty.expect("an empty log"));
        assert_eq!(shown(&begun).len(), 1, "an empty log");
        fs::write(stillborn.join("events.jsonl"), "{\"t\":\"run_sta").expect("a torn first line");
        fs::write(stillborn.join("plan.json"), fs::read(begun.run.join("plan.json")).expect("a plan")).expect("a plan");
        let shown = shown(&begun);
        assert_eq!((shown.len(), &shown[0]["state"]), (1, &json!("ok")), "{shown:?}");
        assert!(begun.cpw(&["result", "api"]).status.success());
    }

    #[test]
    fn a_doctor_explains_a_run_and_changes_nothing() {
        let begun = Begun::deserted();
        let asked = |what: &str, code: i32| {
            let before = begun.evidence();
            // The random part of the id is enough.
            let short = &begun.id()[begun.id().len() - 20..][..8];
            let out = begun.cpw(&["doctor", short]);
            let said = String::from_utf8_lossy(&out.stdout).into_owned();
            assert_eq!(out.status.code(), Some(code), "{what}: {said}");
            assert_eq!(begun.evidence(), before, "{what}: something was changed");
            said
        };
        let said = asked("as it is", 0);
        for part in ["schema 1", "is the one that the log names", "the same as the whole log", "dead", "none is held"] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let (index, log) = (begun.run.join("state.idx"), begun.log_path());
        let (fresh, whole) = (fs::read(&index).expect("an index"), begun.log());
        let repaired = json!({"t": "log_repaired", "seq": lines(whole.as_bytes()).len() + 1, "payload": {"bytes": 1, "sha256": "x"}});
        rewrite(&begun, |l| [&l[..], repaired.to_string().as_bytes(), b"\n{\"t\":\"do"].concat());
        let said = asked("torn, and the index stale", 0);
        assert!(said.contains("8 bytes of a line that is not whole") && said.contains("next writer cuts"), "{said}");
        assert!(said.contains("bytes behind; with the events behind it the same as the whole log"), "{said}");
        fs::write(&index, &fresh[..fresh.len() - 9]).expect("a broken index");
        assert!(asked("a broken index", 0).contains("it is ignored and rewritten"));
        fs::remove_file(&index).expect("it goes");
        fs::write(begun.run.join(".tmp.1.0"), "x").expect("a left file");
        let said = asked("no index", 0);
        assert!(said.contains("absent: hooks read the log") && said.contains(".tmp.1.0"), "{said}");
        rewrite(&begun, |_| [whole.as_bytes(), b"\x1b[2J\x07<<<<<<< HEAD\n"].concat());
        let said = asked("a line that would move the cursor", 1);
        let place = format!("line {}, byte {}: ", lines(whole.as_bytes()).len() + 1, whole.len());
        assert!(said.contains(&format!("{}, {place}", log.display())), "{said}");
        assert!(said.contains("\\x1b[2J\\x07<<<<<<< HEAD\\n") && !said.contains('\x1b'), "{said}");
        assert!(said.contains("out/api.1/result.txt (") && said.contains("bytes): complete"), "{said}");
        begun.let_end("db");
    }

    /// A worker that lives when its log goes ends its task and leaves, and nobody takes its place.
    #[test]
    fn living_workers_end_their_tasks_and_leave() {
        let harms: [(&str, Harm); 3] = [
            ("deleted", |b| fs::remove_file(b.log_path()).expect("it goes")),
            ("replaced", |b| replace(b, b.log().as_bytes())),
            ("emptied", |b| rewrite(b, |_| Vec::new())),
        ];
        for (name, harm) in harms {
            let begun = Begun::new();
            harm(&begun);
            let after = begun.evidence().remove(&begun.log_path());
            // Its worker has an outcome to write down; the other hears of its end.
            begun.let_end("api");
            wait_until("everybody has left", || begun.world.processes().is_empty());
            assert!(!Path::new(&begun.world.home().join("go-db")).exists());
            assert_eq!((begun.ran("api"), begun.ran("db")), (1, 1), "{name}");
            assert_eq!(begun.evidence().remove(&begun.log_path()), after, "{name}: the log was written");
            assert!(begun.hook(HOOKS[4], &json!({})).is_empty(), "{name}");
            assert!(begun.world.processes().is_empty(), "{name}: somebody was hired");
        }
    }
}
