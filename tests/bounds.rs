//! What is said to a hook, and what it finds, may be as large, as deep, as broken and as endless as it likes: the hook ends by
//! itself, with code 0 and in silence or with an answer that the client understands, and the session goes on. With 256 MiB of
//! memory, as the real binary, in a session whose run claims files, merges results and has rules on tool calls.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/hostile.rs"]
mod hostile;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

#[cfg(test)]
mod tests {
    use std::fs::{self, File, OpenOptions};
    use std::io::{Read as _, Seek as _, Write as _};
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;
    use serde_json::{Value, json};

    use crate::hostile::tried;
    use crate::support::world::{World, program, wait_for};

    const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

    /// What hangs does not end at all; a busy machine may take its time. The kernel ends a hook after one second.
    const HANGS: Duration = Duration::from_mins(1);

    const MIB: usize = 1024 * 1024;

    const HOOKS: [(&str, &str); 8] = [
        ("user-prompt-submit", "UserPromptSubmit"),
        ("pre-tool-use", "PreToolUse"),
        ("post-tool-use", "PostToolUse"),
        ("post-tool-batch", "PostToolBatch"),
        ("stop", "Stop"),
        ("watch", "Stop"),
        ("session-start", "SessionStart"),
        ("session-end", "SessionEnd"),
    ];

    /// What payloads say they are where that does not matter.
    const EVENT: &str = "PreToolUse";

    /// A project with a file that a task holds on to, and everything that makes hooks look at what they are told.
    fn stage() -> World {
        let world = World::new();
        world.write("a.txt", "a\n");
        let wait = r#"until [ -e "$HOME/go" ]; do sleep 0.05; done; echo over"#;
        let config = json!({
            "version": 1,
            "conductor": {"gate": "off", "on_claimed": "block", "wait": "10ms"},
            "resources": {"db": {"tools": ["Bash(psql*)"]}},
            "rules": [
                {"name": "hold", "when": {"prompt": "(?i)\\bhold\\b"}, "tasks": [
                    {"id": "a", "shell": wait, "claims": ["a.txt", "src/**"]},
                    {"id": "b", "shell": wait, "resources": ["db"]}],
                 "merge": [{"tool": "Write", "match": {"file_path": "*report.md"}, "needs": ["a"],
                            "set": {"content": "{{input.content}}{{results}}"}}]},
                {"name": "quick", "when": {"prompt": "(?i)\\bquick\\b"}, "tasks": [{"id": "q", "run": ["true"]}]},
                {"name": "names", "when": {"prompt": "(?i)\\bnames\\b", "files": {"min": 1}}, "for_each": "files",
                 "tasks": [{"id": "n-{{index}}", "run": ["true", "{{item}}"]}]},
                {"name": "after", "when": {"tool": "Edit", "match": {"file_path": "*.rs"}, "debounce": "10s"},
                 "tasks": [{"id": "c", "run": ["true"]}]},
            ],
        });
        world.write(".claude/cpw.json", &config.to_string());
        allow(&world);
        world
    }

    fn allow(world: &World) {
        let out = world.cpw(&["allow", "--yes"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    /// A stage whose run has begun.
    fn begun() -> World {
        let world = stage();
        hold(&world);
        wait_for(HANGS, || (count(&world, "spawned") == 2).then_some(())).expect("both tasks run");
        world
    }

    fn end(world: &World) {
        fs::write(world.home().join("go"), "").expect("a file");
        let over = || count(world, "run_started") == count(world, "run_ended");
        wait_for(HANGS, || over().then_some(())).expect("every run ends");
    }

    fn events(world: &World) -> Vec<Value> {
        let folder = world.project().join(".claude/runs");
        let runs = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path().join("events.jsonl"));
        // Some are a gibibyte of nothing.
        let read = runs.filter(|log| fs::metadata(log).is_ok_and(|meta| meta.len() < 64 * MIB as u64));
        let logs = read.map(|log| fs::read_to_string(log).unwrap_or_default());
        logs.flat_map(|log| log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect::<Vec<Value>>()).collect()
    }

    fn count(world: &World, kind: &str) -> usize {
        events(world).iter().filter(|e| e["t"] == kind).count()
    }

    fn payload(world: &World, event: &str, more: &Value) -> Value {
        let mut all = json!({
            "session_id": SESSION, "transcript_path": "/nowhere", "cwd": world.project(), "prompt_id": "p1",
            "hook_event_name": event, "prompt": "Well?", "source": "startup", "reason": "other",
            "tool_name": "Read", "tool_use_id": "toolu_1", "tool_input": {"file_path": world.project().join("a.txt")},
            "tool_response": {"type": "text"}, "stop_hook_active": true, "background_tasks": [],
        });
        all.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        all
    }

    /// A hook with little memory, which shell limits give it, and this for stdin. `None`: it has none.
    fn hook(world: &World, hook: &str, stdin: Option<Stdio>) -> Command {
        let mut command = world.command("/bin/sh");
        let close = if stdin.is_none() { " <&-" } else { "" };
        command.arg("-c").arg(format!("ulimit -v 262144; exec \"$0\" \"$@\"{close}")).arg(program()).arg(hook);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", world.project());
        command.stdin(stdin.unwrap_or_else(Stdio::null)).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a hook to its end, and checks what holds for every answer.
    fn answer(mut command: Command, event: &str, what: &str) -> Value {
        let mut child = command.spawn().expect("it starts");
        let status = wait_for(HANGS, || child.try_wait().expect("our child")).unwrap_or_else(|| {
            drop(child.kill().and_then(|()| child.wait().map(drop)));
            panic!("{event}, {what}: does not end");
        });
        let (mut out, mut err) = (Vec::new(), Vec::new());
        child.stdout.take().expect("a pipe").read_to_end(&mut out).expect("stdout");
        child.stderr.take().expect("a pipe").read_to_end(&mut err).expect("stderr");
        assert_eq!(status.code(), Some(0), "{event}, {what}: {status}, {}", String::from_utf8_lossy(&err));
        assert!(err.is_empty(), "{event}, {what}: {}", String::from_utf8_lossy(&err));
        if out.is_empty() {
            return Value::Null;
        }
        let said: Value = serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{event}, {what}: {e}: {out:?}"));
        assert!(said.is_object() && said.get("decision").is_none() && said.get("continue").is_none(), "{what}: {said}");
        if let Some(specific) = said.get("hookSpecificOutput") {
            // It is copied from what the client says.
            let own = what.starts_with("hook_event_name") || what == "every field twice";
            assert!(own || specific["hookEventName"] == event, "{what}: {said}");
            let context = specific["additionalContext"].as_str().unwrap_or_default();
            assert!(context.chars().count() <= 4000, "{what}: {} characters", context.len());
        }
        said
    }

    fn file(world: &World, bytes: &[u8]) -> Stdio {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let path = world.path(&format!("stdin-{}", FILES.fetch_add(1, Ordering::Relaxed)));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(&path).expect("a file");
        fs::remove_file(&path).expect("only its name goes");
        file.write_all(bytes).and_then(|()| file.rewind()).expect("it is written");
        file.into()
    }

    /// Calls a hook with a sound payload.
    fn say(world: &World, name: &str, more: &Value) -> Value {
        let (_, event) = HOOKS.into_iter().find(|(hook, _)| *hook == name).expect("a hook");
        let stdin = file(world, format!("{}\n", payload(world, event, more)).as_bytes());
        answer(hook(world, name, Some(stdin)), event, &more.to_string())
    }

    /// Asks again until a hook says what it should: on a busy machine its second may be over before it has. `ask` is given
    /// the number of the try.
    fn insist(what: &str, mut ask: impl FnMut(usize) -> Value, is_it: impl Fn(&str) -> bool) {
        let mut said = Value::Null;
        for i in 0..30 {
            said = ask(i);
            if is_it(&said.to_string()) {
                return;
            }
        }
        panic!("{what}: {said}");
    }

    /// Starts the run that most tests are about.
    fn hold(world: &World) {
        let ask = |i| say(world, "user-prompt-submit", &json!({"prompt": "hold", "prompt_id": format!("p0-{i}")}));
        insist("a run", ask, |_| count(world, "run_started") == 1);
    }

    /// A call on a claimed file, of its own each time, because equal refusals come to an end.
    fn is_refused(world: &World, id: &str) {
        let ask = |i| {
            let claimed = json!({"file_path": world.project().join(format!("src/{id}-{i}.py"))});
            say(world, "pre-tool-use", &json!({"tool_input": claimed, "prompt_id": format!("{id}-{i}")}))
        };
        insist(id, ask, |said| said.contains("\"permissionDecision\":\"deny\""));
    }

    /// The session goes on: its tools are answered as before, and its prompts start what they should.
    fn goes_on(world: &World, id: &str) {
        is_refused(world, id);
        let passed = say(world, "pre-tool-use", &json!({"tool_input": {"file_path": "/nowhere/x"}, "tool_use_id": id}));
        assert_eq!(passed, Value::Null, "{id}");
        let before = count(world, "run_started");
        let ask = |i| say(world, "user-prompt-submit", &json!({"prompt": "quick", "prompt_id": format!("{id}-{i}")}));
        insist(id, ask, |said| said.contains("has started 1 task ") || count(world, "run_started") > before);
    }

    /// The bytes of a payload in which `text`, as it is in JSON, stands for the value of a field.
    fn with(world: &World, event: &str, field: &str, value: &[u8]) -> Vec<u8> {
        let mut all = payload(world, event, &json!({}));
        all[field] = "@@".into();
        let text = format!("{all}\n");
        let (before, after) = text.split_once("\"@@\"").expect("the field");
        [before.as_bytes(), value, after.as_bytes()].concat()
    }

    #[expect(clippy::too_many_lines, reason = "a list")]
    /// Payloads that mean harm, by name. All are of one event: which one it is a hook is told by its command.
    fn payloads(world: &World) -> Vec<(String, Vec<u8>)> {
        let event = EVENT;
        let sound = payload(world, event, &json!({})).to_string();
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        let mut add = |what: &str, bytes: Vec<u8>| all.push((what.to_owned(), bytes));
        let fill = |length: usize| {
            let without = with(world, event, "prompt", b"\"hold \"").len();
            with(world, event, "prompt", format!("\"hold {}\"", "x".repeat(length - without)).as_bytes())
        };
        add("nothing", Vec::new());
        add("exactly as much as is read", fill(8 * MIB));
        add("one byte more", fill(8 * MIB + 1));
        add("a mark of the byte order", [b"\xef\xbb\xbf", sound.as_bytes()].concat());
        add("zeros", vec![0; 64 * 1024]);
        add("zeros behind it", [sound.as_bytes(), &[0; 100]].concat());
        add("two objects", format!("{sound}\n{sound}\n").into_bytes());
        add("two objects in a line", format!("{sound}{sound}").into_bytes());
        add("a list of it", format!("[{sound}]").into_bytes());
        add("a string of it", Value::from(sound.clone()).to_string().into_bytes());
        add("half of it", sound.as_bytes()[..sound.len() / 2].to_vec());
        add("all but its end", sound.as_bytes()[..sound.len() - 1].to_vec());
        add("spaces", vec![b' '; 3 * MIB]);
        add("UTF-16", sound.encode_utf16().flat_map(u16::to_le_bytes).collect());
        add("a million names", {
            let keys: Vec<String> = (0..700_000).map(|i| format!("\"{i}\":0")).collect();
            with(world, event, "sparkle", format!("{{{}}}", keys.join(",")).as_bytes())
        });
        add("a million fields of input", {
            let keys: Vec<String> = (0..600_000).map(|i| format!("\"{i}\":\"\"")).collect();
            with(world, event, "tool_input", format!("{{{}}}", keys.join(",")).as_bytes())
        });
        add("one name a hundred thousand times", {
            let keys = vec!["\"file_path\":\"a.txt\""; 100_000].join(",");
            with(world, event, "tool_input", format!("{{{keys}}}").as_bytes())
        });
        add("every field twice", format!("{},{}", &sound[..sound.len() - 1], &sound[1..]).into_bytes());
        add(
            "a million background tasks",
            with(world, event, "background_tasks", format!("[{}]", vec!["{}"; 1_000_000].join(",")).as_bytes()),
        );
        for depth in [128, 10_000] {
            for field in ["tool_input", "tool_response", "sparkle", "background_tasks", "prompt", "session_id"] {
                let lists = [vec![b'['; depth], vec![b']'; depth]].concat();
                add(&format!("{field}: {depth} lists"), with(world, event, field, &lists));
            }
        }
        for depth in [127, 129, 10_000, 1_000_000] {
            let objects =
                ["{\"file_path\":".repeat(depth.min(500_000)), "1".into(), "}".repeat(depth.min(500_000))].concat();
            add(&format!("{depth} objects"), with(world, event, "tool_input", objects.as_bytes()));
            add(&format!("{depth} lists without end"), with(world, event, "tool_input", &vec![b'['; depth]));
        }
        let odd: [(&str, &[u8]); 14] = [
            ("half a surrogate", br#""\ud800""#),
            ("the other half", br#""x\udc00y""#),
            ("halves the wrong way round", br#""\udc00\ud800""#),
            ("no UTF-8", b"\"\xff\xfe\xc0\x80\xed\xa0\x80\""),
            ("a zero", b"\"\0\""),
            ("a zero that is said", br#""a\u0000b""#),
            ("a line feed", b"\"a\nb\""),
            ("no escape", br#""\x""#),
            ("more than any number", b"1e999"),
            ("less than any number", b"-1e-999"),
            ("no number", b"NaN"),
            ("zeros before it", b"00000000000000001"),
            ("a path out of here", br#""../../../../../../etc/passwd""#),
            ("an option", br#""--help""#),
        ];
        let long = format!("\"{}\"", "x".repeat(MIB));
        let digits = "9".repeat(MIB);
        let fields = [
            "session_id",
            "cwd",
            "prompt_id",
            "hook_event_name",
            "prompt",
            "source",
            "reason",
            "tool_name",
            "tool_use_id",
            "tool_input",
            "agent_id",
            "stop_hook_active",
            "background_tasks",
            "tool_response",
        ];
        for (i, field) in fields.into_iter().enumerate() {
            add(&format!("{field}: a mebibyte"), with(world, event, field, long.as_bytes()));
            // Each field has some of them, and all of them are had.
            for (what, value) in odd.iter().skip(i % 3).step_by(3) {
                add(&format!("{field}: {what}"), with(world, event, field, value));
            }
        }
        add("a mebibyte of digits", with(world, event, "sparkle", digits.as_bytes()));
        for (tool, name) in [("Read", "file_path"), ("Bash", "command"), ("Write", "content"), ("Edit", "file_path")] {
            for (what, value) in &odd {
                let input = [b"{\"file_path\":\"report.md\",\"", name.as_bytes(), b"\":", value, b"}"].concat();
                let text = with(world, event, "tool_input", &input);
                let text = String::from_utf8_lossy(&text).replace("\"Read\"", &format!("\"{tool}\"")).into_bytes();
                add(&format!("{tool}, {name}: {what}"), text);
            }
            for again in ["x", "a/", "../", "'a b' "] {
                let long = again.repeat(MIB / again.len());
                let text = with(world, event, "tool_input", format!("{{\"{name}\":\"{long}\"}}").as_bytes());
                // The tool is not named behind it.
                let at = text.windows(6).rposition(|w| w == b"\"Read\"").expect("the tool");
                let text = [&text[..at], format!("\"{tool}\"").as_bytes(), &text[at + 6..]].concat();
                add(&format!("{tool}, {name}: {again}…"), text);
            }
        }
        all
    }

    #[test]
    fn s12_no_payload_makes_a_hook_fail_or_ends_the_session() {
        let world = begun();
        let all = payloads(&world);
        let number = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for part in 0..2 {
                let (world, number, all) = (&world, &number, &all);
                scope.spawn(move || {
                    for (k, (what, bytes)) in all.iter().enumerate().filter(|(k, _)| k % 2 == part) {
                        for (i, (name, _)) in HOOKS.into_iter().enumerate() {
                            // Two hooks look at most of it; of the others each has a share of its own.
                            if ["pre-tool-use", "user-prompt-submit"].contains(&name) || k / 2 % 8 == i {
                                answer(hook(world, name, Some(file(world, bytes))), EVENT, what);
                                number.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        // Some prompts among them said "hold", whose run goes on.
        assert_eq!(count(&world, "run_started"), 1, "{:?}", events(&world));
        goes_on(&world, "after");
        end(&world);
        tried("payloads of hooks", number.into_inner(), 400);
    }
    /// Something that a hook has for stdin: its name, itself, and who writes to it.
    type Odd = (&'static str, Option<Stdio>, Option<Box<dyn FnOnce() + Send>>);

    /// Something that a hook has for stdin, without a file.
    fn endless_in(folder: &Path) -> Vec<Odd> {
        let open = |path: &str| -> Option<Stdio> { Some(File::open(path).expect("a device").into()) };
        let held = folder.join("held");
        mkfifo(&held, Mode::S_IRWXU).expect("a FIFO");
        // Nobody writes to it, and nobody closes it.
        let held = OpenOptions::new().read(true).write(true).open(&held).expect("the FIFO");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let slow = move || {
            // One byte after the other, as long as anybody reads.
            let text = format!("{{\"session_id\": \"{SESSION}\", \"x\": \"{}", "x".repeat(10_000));
            for byte in text.bytes() {
                if writer.write_all(&[byte]).is_err() {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        let (flooded, mut flood) = std::io::pipe().expect("a pipe");
        let hundred = move || {
            let piece = vec![b' '; MIB];
            for _ in 0..100 {
                if flood.write_all(&piece).is_err() {
                    return;
                }
            }
        };
        let terminal = nix::pty::openpty(None, None).expect("a terminal");
        let (near, far) = (File::from(terminal.slave), terminal.master);
        vec![
            ("/dev/zero", open("/dev/zero"), None),
            ("/dev/null", open("/dev/null"), None),
            ("/dev/urandom", open("/dev/urandom"), None),
            ("a folder", open("/"), None),
            ("none", None, None),
            ("a FIFO that nobody writes to", Some(held.into()), None),
            ("a byte now and then", Some(reader.into()), Some(Box::new(slow))),
            ("100 MiB", Some(flooded.into()), Some(Box::new(hundred))),
            // Held open on the other side until it has ended.
            ("a terminal", Some(near.into()), Some(Box::new(move || std::mem::forget(far)))),
        ]
    }

    #[test]
    fn s12_no_stdin_keeps_a_hook() {
        let world = begun();
        let number = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for (name, event) in HOOKS {
                let (world, number) = (&world, &number);
                scope.spawn(move || {
                    let folder = world.path(&format!("for-{name}"));
                    fs::create_dir(&folder).expect("a folder");
                    for (what, stdin, writer) in endless_in(&folder) {
                        let writer = writer.map(std::thread::spawn);
                        let said = answer(hook(world, name, stdin), event, what);
                        assert_eq!(said, Value::Null, "{name}, {what}");
                        number.fetch_add(1, Ordering::Relaxed);
                        drop(writer);
                    }
                });
            }
        });
        goes_on(&world, "after");
        end(&world);
        tried("what hooks have for stdin", number.into_inner(), 72);
    }

    #[test]
    fn s12_no_directory_and_no_prompt_keeps_a_hook() {
        let world = begun();
        let gone = world.path("gone");
        let fifo = world.path("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).expect("a FIFO");
        let long = format!("/{}", "d/".repeat(5000));
        let places = [
            world.project().join("a.txt").display().to_string(),
            gone.display().to_string(),
            fifo.display().to_string(),
            long,
            "/".into(),
            "..".into(),
            "\0".into(),
            String::new(),
            "/proc/self/fd/0".into(),
            "/proc/self/root/proc/self/root".into(),
        ];
        let mut number = 0;
        for place in &places {
            for (name, event) in HOOKS {
                let text = payload(&world, event, &json!({"cwd": place, "tool_use_id": "toolu_2"})).to_string();
                let mut command = hook(&world, name, Some(file(&world, text.as_bytes())));
                // As the project's root, too; and as the directory that it is started in.
                if number % 2 == 0 && !place.contains('\0') {
                    command.env("CLAUDE_PROJECT_DIR", place);
                }
                answer(command, event, place.get(..20).unwrap_or(place));
                number += 1;
            }
        }
        // As they are in JSON: to make text of this length into it takes longer than all hooks together.
        let prompts: [(&str, &str); 13] = [
            ("", "analyze hold quick names "),
            ("names ", "a.txt "),
            ("names ", "src/a.py ./b.c ../d.e "),
            ("hold ", "\\\""),
            ("hold ", "```\\n"),
            ("hold ", "("),
            ("", "> hold\\n"),
            ("hold ", "not "),
            ("", "\u{202e}\u{200b}"),
            ("", "<task-notification>"),
            ("hold ", "\u{1F600}"),
            ("", "!cpw off"),
            ("", "\\n"),
        ];
        for (before, again) in prompts {
            let prompt = format!("\"{before}{}\"", again.repeat(7 * MIB / again.len()));
            let stdin = file(&world, &with(&world, "UserPromptSubmit", "prompt", prompt.as_bytes()));
            answer(hook(&world, "user-prompt-submit", Some(stdin)), "UserPromptSubmit", again);
            number += 1;
        }
        goes_on(&world, "after");
        end(&world);
        tried("directories and prompts", number, 90);
    }

    #[test]
    fn s23_folders_with_any_number_of_files_keep_no_hook_from_its_work() {
        let world = begun();
        let runs = world.project().join(".claude/runs");
        let run = fs::read_dir(&runs).expect("runs").flatten().map(|e| e.path()).find(|p| p.join("bells").is_dir());
        let run = run.expect("the run");
        let flood = |folder: &Path, name: &dyn Fn(usize) -> String, count: usize| -> Vec<PathBuf> {
            fs::create_dir_all(folder).expect("a folder");
            let paths: Vec<PathBuf> = (0..count).map(|i| folder.join(name(i))).collect();
            for path in &paths {
                File::create(path).expect("a file");
            }
            paths
        };
        // Beside what belongs there; bells of processes that there are not, too.
        flood(&run.join("bells"), &|i| format!("{}.{i}.n", 4_000_000 + i), 5000);
        flood(&run, &|i| format!("junk-{i}"), 2000);
        for folder in ["sessions", "runs", "history", "triggers", "seats", "places", "off", "trust", ""] {
            flood(&world.state().join(folder), &|i| format!("junk-{i}"), 500);
        }
        for (name, event) in HOOKS {
            if name != "session-end" {
                let more = json!({"prompt_id": "flooded", "tool_input": {"file_path": "x.rs"}, "tool_name": "Edit"});
                let text = payload(&world, event, &more).to_string();
                answer(hook(&world, name, Some(file(&world, text.as_bytes()))), event, "flooded");
            }
        }
        goes_on(&world, "flooded");
        // Names of runs, newer than any: what came with a clone.
        let foreign = flood(&runs, &|i| format!("99991231-235959000000-{i:020}"), 200);
        goes_on(&world, "with-foreign-runs");
        let more = flood(&runs, &|i| format!("junk-{i}"), 10_001);
        let ask =
            |i| say(&world, "user-prompt-submit", &json!({"prompt": "quick", "prompt_id": format!("too-many-{i}")}));
        insist("too many", ask, |said| {
            said.contains("nothing was started") && said.contains("more than 10000 entries")
        });
        is_refused(&world, "with-all-of-it");
        let commands = world.cpw(&["status"]).output().expect("cpw runs");
        assert!(commands.status.success(), "{}", String::from_utf8_lossy(&commands.stderr));
        foreign.iter().chain(&more).for_each(|path| fs::remove_file(path).expect("ours"));
        goes_on(&world, "without-them");
        end(&world);
    }

    #[test]
    fn s23_runs_that_came_with_a_clone_hide_none_of_those_that_count() {
        let world = stage();
        let text = fs::read_to_string(world.project().join(".claude/cpw.json")).expect("the config");
        let mut config: Value = serde_json::from_str(&text).expect("JSON");
        config["limits"] = json!({"max_runs": 1});
        world.write(".claude/cpw.json", &config.to_string());
        allow(&world);
        hold(&world);
        // Folders of runs with newer names, whose logs are without end.
        for i in 0..140 {
            let folder = world.project().join(format!(".claude/runs/99991231-235959000000-{i:020}"));
            fs::create_dir(&folder).expect("a folder");
            File::create(folder.join("events.jsonl")).and_then(|f| f.set_len(1 << 30)).expect("a sparse file");
        }
        let ask = |i| say(&world, "user-prompt-submit", &json!({"prompt": "quick", "prompt_id": format!("p1-{i}")}));
        insist("no further run", ask, |said| said.contains("the limit of max_runs"));
        assert_eq!(count(&world, "run_started"), 1);
        let mut begin = hook(
            &world,
            "session-start",
            Some(file(&world, payload(&world, "SessionStart", &json!({"session_id": "other"})).to_string().as_bytes())),
        );
        begin.env("CLAUDE_CODE_ENTRYPOINT", "cli").env("CLAUDE_CODE_SESSION_ID", "other");
        answer(begin, "SessionStart", "a clone");
        end(&world);
    }

    #[test]
    fn s23_a_session_of_any_number_of_prompts_goes_on() {
        let world = begun();
        let record = world.state().join("sessions").join(SESSION);
        let mut text = fs::read(&record).expect("the record");
        for i in 0..16_000 {
            writeln!(text, "{{\"t\":\"prompt\",\"id\":\"0d7c21db-c86a-4ce8-8596-{i:012}\"}}").expect("a text");
        }
        assert!((900_000..1_000_000).contains(&text.len()), "{}", text.len());
        fs::write(&record, &text).expect("ours");
        for i in 0..3 {
            goes_on(&world, &format!("then-{i}"));
            wait_for(HANGS, || (count(&world, "run_ended") > i).then_some(())).expect("it ends");
        }
        assert!(fs::metadata(&record).expect("the record").len() < 100_000);
        let again = say(&world, "user-prompt-submit", &json!({"prompt": "quick", "prompt_id": "then-2-0"}));
        assert!(!again.to_string().contains("has started"), "a prompt counts once: {again}");
        // What has no room is not put there, and takes nothing else away.
        for i in 0..20 {
            let long = format!("{i}{}", "x".repeat(MIB / 4));
            say(&world, "user-prompt-submit", &json!({"prompt": "quick", "prompt_id": long}));
        }
        assert!(fs::metadata(&record).expect("the record").len() < 100_000);
        end(&world);
    }

    #[test]
    fn s23_a_log_that_grew_beyond_measure_ends_no_session() {
        let world = begun();
        let runs = fs::read_dir(world.project().join(".claude/runs")).expect("runs").flatten().map(|e| e.path());
        let log = runs.map(|run| run.join("events.jsonl")).find(|log| log.is_file()).expect("the log");
        let length = fs::metadata(&log).expect("the log").len();
        let grown = 1 << 30;
        OpenOptions::new().write(true).open(&log).and_then(|f| f.set_len(grown)).expect("a sparse file");
        for (name, event) in HOOKS {
            if name != "session-end" {
                let text = payload(&world, event, &json!({"tool_use_id": "grown"})).to_string();
                answer(hook(&world, name, Some(file(&world, text.as_bytes()))), event, "a log of a gibibyte");
            }
        }
        // As it would be cut by the next writer that has the time for it.
        if fs::metadata(&log).expect("the log").len() == grown {
            OpenOptions::new().write(true).open(&log).and_then(|f| f.set_len(length)).expect("a file of ours");
        }
        goes_on(&world, "after");
        end(&world);
    }

    #[test]
    fn c18_prompts_without_end_start_a_bounded_number_of_runs() {
        let world = stage();
        let begun = Instant::now();
        let mut limited = false;
        for i in 0..120 {
            let said = say(&world, "user-prompt-submit", &json!({"prompt": "quick", "prompt_id": format!("p{i}")}));
            limited |= said.to_string().contains("20 runs were started in this session within a minute");
            let over = || count(&world, "run_started") == count(&world, "run_ended");
            wait_for(HANGS, || over().then_some(())).expect("every run ends");
            if limited && i > 30 {
                break;
            }
        }
        let minutes = usize::try_from(begun.elapsed().as_secs() / 60).expect("a small number") + 1;
        let runs = count(&world, "run_started");
        assert!(runs <= 20 * minutes, "{runs} runs in {minutes} minutes");
        // Where the machine is too slow to start so many, nothing had to be held back.
        assert!(limited || minutes > 1, "{runs} runs");
    }

    #[test]
    fn s23_what_a_task_says_in_a_loop_or_all_at_once_fills_no_log() {
        let world = World::new();
        let say = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); WHAT & done; wait; touch \"$HOME/said-$CPW_TASK\"";
        let cpw = program().display();
        let signal =
            say.replace("WHAT", &format!("{cpw} signal --hook post-tool-use --exit 0 --message m$i >/dev/null 2>&1"));
        let checkpoint = say.replace("WHAT", &format!("{cpw} checkpoint c --data \\\"$i\\\" >/dev/null 2>&1"));
        let tasks = json!([{"id": "s", "shell": signal}, {"id": "c", "shell": checkpoint}]);
        world.write("plan.json", &json!({"version": 1, "limits": {"max_workers": 2}, "tasks": tasks}).to_string());
        let out = world.cpw(&["run", "plan.json"]).output().expect("cpw runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let all = events(&world);
        for (kind, task) in [("signal", "s"), ("checkpoint", "c")] {
            let times: Vec<chrono::DateTime<chrono::Utc>> = all
                .iter()
                .filter(|e| e["t"] == kind && e["task"] == task)
                .map(|e| e["ts"].as_str().expect("a time").parse().expect("RFC 3339"))
                .collect();
            assert_eq!(times.len(), 60, "what is new is not left out");
            // Any second lies in two of those that are counted.
            let second = chrono::TimeDelta::seconds(1);
            let most = times.iter().map(|t| times.iter().filter(|o| *o >= t && **o - *t < second).count()).max();
            assert!(most.is_some_and(|most| most <= 20), "{kind}: {most:?} within a second");
        }
    }
}
