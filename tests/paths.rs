//! Nothing of cpw leaves its folders: ids that are none, hostile things in the place of each of its files and folders, names
//! that are exchanged while they are used, folders that others can change, odd umasks, shared folders for temporary files, and
//! what tasks leave as results. A picture of everything outside must be the same before and after, no hook may fail, and no
//! command may hang or panic.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "support/hostile.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod hostile;
#[path = "support/ledger.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod ledger;
#[path = "support/scratch.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod scratch;

use std::cell::Cell;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cpw::base::ids::{CheckpointName, RunId, SessionId, TaskId, Topic, WorkerNo};
use cpw::logic::wake::{Concern, Wake};
use cpw::model::check::{self, Defaults, Machine};
use cpw::model::config::{self, Settings};
use cpw::model::plan::Plan;
use cpw::store::bells;
use cpw::store::file::{self, Rights};
use cpw::store::home::State;
use cpw::store::leases::Desk;
use cpw::store::run::{self, Origin, RunDir};
use cpw::store::session::{self, Entry, Locked};
use cpw::store::triggers::Trigger;
use cpw::store::trust;
use cpw::sys::dir::Dir;
use serde_json::{Value, json};

use hostile::{ids, names, picture, tried};
use scratch::{Call, Done, SESSION, Scratch};

/// Longest wait for one call: what hangs does not end at all, and a busy machine may take its time.
const PATIENCE: Duration = Duration::from_mins(1);

/// What stands in files that nobody may read or change.
const SECRET: &str = "SECRET\n";

/// A project with a folder beside it in which nothing may happen.
struct Ground {
    scratch: Scratch,
    outside: PathBuf,
    _folder: tempfile::TempDir,
}

impl Ground {
    fn new() -> Ground {
        let folder = tempfile::Builder::new().prefix("cpw-paths-").tempdir().unwrap();
        let scratch = Scratch::new(&folder.path().join("s"));
        fs::set_permissions(scratch.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
        let outside = fs::canonicalize(folder.path()).unwrap().join("outside");
        fs::create_dir_all(outside.join("dir/W1/logs")).unwrap();
        for name in ["secret", "dir/secret", "dir/events.jsonl", "dir/plan.json", "dir/W1/live.lock", "dir/result.md"] {
            fs::write(outside.join(name), SECRET).unwrap();
            fs::set_permissions(outside.join(name), fs::Permissions::from_mode(0o600)).unwrap();
        }
        Ground { scratch, outside, _folder: folder }
    }

    fn state(&self) -> State {
        State::open_at(&self.scratch.path("state")).unwrap()
    }

    /// Writes a config and approves it.
    fn config(&self, config: &Value) {
        self.scratch.write(".claude/cpw.json", &config.to_string());
        let path = trust::config_path(&self.scratch.project()).unwrap();
        trust::approve(&self.state(), &path, config.to_string().as_bytes()).unwrap();
    }

    fn cpw(&self, args: &[&str]) -> Done {
        self.scratch.run(self.scratch.command(&[], args), PATIENCE)
    }

    fn hook(&self, hook: &'static str, event: &'static str, more: Value) -> Done {
        let call = Call { hook, event, session: SESSION, client: false, more };
        self.scratch.run(self.scratch.hook(&[], &call), PATIENCE)
    }

    fn prompt(&self, prompt: &str) -> Done {
        self.hook("user-prompt-submit", "UserPromptSubmit", json!({ "prompt": prompt }))
    }

    /// A session with a finished run, of which it has not heard yet.
    fn with_run(script: &str) -> (Ground, String) {
        let ground = Ground::new();
        ground.config(&json!({"version": 1, "conductor": {"gate": "off"}, "rules": [{
            "name": "go", "when": {"prompt": "^go$"},
            "tasks": [{"id": "a", "shell": script, "claims": ["a.py"]}],
        }]}));
        ground.scratch.write("a.py", "");
        is_well(&ground.prompt("go"), true);
        ground.scratch.wait_for_end().unwrap();
        let run = ground.scratch.runs().pop().expect("a run");
        (ground, run.file_name().unwrap().to_string_lossy().into_owned())
    }

    fn swallowed(&self) -> String {
        fs::read_to_string(self.scratch.path("state/hooks.jsonl")).unwrap_or_default()
    }
}

/// A hook ends with 0; a command with a code that it has. Neither hangs or panics.
fn is_well(done: &Done, hook: bool) {
    assert!(!done.late, "it hangs: {done:?}");
    let code = done.status.code();
    assert!(!done.err.contains("panicked") && !done.err.contains("internal error"), "{done:?}");
    if hook {
        assert_eq!((code, done.err.as_str()), (Some(0), ""), "{done:?}");
    } else {
        assert!(matches!(code, Some(0 | 1 | 3 | 4 | 126 | 127)), "{done:?}");
        assert!(code == Some(0) || !done.err.is_empty() || !done.out.is_empty(), "it says nothing: {done:?}");
    }
}

/// What refuses an id says so, with exit code 3 or, inside a task, 1.
fn is_refused(done: &Done) {
    is_well(done, false);
    assert!(matches!(done.status.code(), Some(1 | 3)) && !done.err.is_empty(), "{done:?}");
}

fn plan_of(tasks: &Value) -> Result<Plan, String> {
    let settings = Settings::default();
    let defaults = Defaults { settings: &settings, machine: Machine { cores: 2, mem_mib: 4096 } };
    let plan = json!({"version": 1, "tasks": tasks}).to_string();
    check::plan_from_person(plan.as_bytes(), run::new_id(), &defaults).map_err(|e| format!("{e:?}"))
}

fn a_plan() -> Plan {
    plan_of(&json!([{"id": "a", "run": ["true"]}])).unwrap()
}

#[test]
fn s01_no_id_is_anything_but_a_name() {
    let mut count = 0;
    let all = ids();
    for id in &all {
        // Behind these no other way leads to a path or a log.
        assert!(RunId::new(id).is_err() && TaskId::new(id).is_err() && SessionId::new(id).is_err(), "{id:?}");
        assert!(
            CheckpointName::new(id).is_err() && Topic::new(id).is_err() && id.parse::<WorkerNo>().is_err(),
            "{id:?}"
        );
        let quoted = json!(id).to_string();
        assert!(serde_json::from_str::<RunId>(&quoted).is_err() && serde_json::from_str::<TaskId>(&quoted).is_err());
        count += 8;
        // Plans and configs, with each field that is an id or names one.
        let task = |more: Value| {
            let mut task = json!({"id": "a", "run": ["true"]});
            task.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            task
        };
        for tasks in [
            json!([task(json!({ "id": id }))]),
            json!([task(json!({ "needs": [id] })), {"id": "b", "run": ["true"]}]),
            json!([{"id": "b", "run": ["true"]}, task(json!({ "needs": [format!("b@{id}")] }))]),
            json!([{"id": "b", "run": ["true"]}, task(json!({ "needs": [format!("{id}?proceed")] }))]),
        ] {
            // A glob over the other tasks is no id, and means what is there.
            let glob = id.is_empty() || id.contains(['*', '?', '[', '{']);
            if let Ok(plan) = plan_of(&tasks) {
                assert!(glob, "{tasks}");
                assert!(plan.tasks.iter().all(|t| TaskId::new(t.id.as_str()).is_ok()), "{tasks}");
            }
            count += 1;
        }
        // In a rule, an id may have a template in it; what comes of that is folded.
        let config = json!({"version": 1, "rules": [{"name": "r", "when": {"prompt": "x"}, "tasks": [task(json!({ "id": id }))]}]});
        assert!(config::parse(config.to_string().as_bytes()).is_err() || id.contains("{{"), "{config}");
        count += 1;
        // A topic of a vote, and the name of a rule, which becomes a part of a file's name.
        let vote = json!({"version": 1, "tasks": [{"id": "a", "run": ["true"]}],
            "votes": [{"topic": id, "voters": ["a"], "rule": "majority"}]});
        let settings = Settings::default();
        let defaults = Defaults { settings: &settings, machine: Machine { cores: 2, mem_mib: 4096 } };
        assert!(check::plan_from_person(vote.to_string().as_bytes(), run::new_id(), &defaults).is_err(), "{vote}");
        count += 1;
    }
    let temp = tempfile::tempdir().unwrap();
    let state = State::open_at(&temp.path().join("deep/er/state")).unwrap();
    let session = SessionId::new(SESSION).unwrap();
    for id in all.iter().cloned().chain(names().iter().map(|n| n.to_string_lossy().into_owned())) {
        // Refused, or a name in the folder of its own.
        if let Ok(trigger) = Trigger::of(&state, &session, &id) {
            drop(trigger.add(1, None));
        }
        count += 1;
    }
    let outside = picture(temp.path());
    let within = state.path().join("triggers");
    let stray = outside.keys().filter(|path| !path.starts_with(&within) && !within.starts_with(path));
    assert_eq!(stray.collect::<Vec<_>>(), Vec::<&PathBuf>::new());
    tried("ids in fields", count, 1_500);
}

#[test]
fn s01_ids_of_the_command_line_and_of_the_environment_are_refused_with_a_word() {
    let (ground, id) = Ground::with_run("echo x");
    let before = (picture(&ground.outside), picture(&ground.scratch.path("home")));
    let runs = picture(&ground.scratch.project());
    let passable: Vec<String> = ids().into_iter().filter(|id| !id.contains('\0') && id.len() < 5_000).collect();
    let run_dir = ground.scratch.runs().pop().unwrap();
    for (i, bad) in passable.iter().enumerate() {
        let bad = bad.as_str();
        let named = |flag: &str| format!("{flag}={bad}");
        let done = match i % 8 {
            0 => ground.cpw(&["status", "--", bad]),
            1 => ground.cpw(&["cancel", &named("--run")]),
            2 => ground.cpw(&["result", "--", bad]),
            3 => ground.cpw(&["logs", &named("--run")]),
            4 => ground.cpw(&["adopt", &named("--session"), &id]),
            5 => ground.cpw(&["off", &named("--session")]),
            6 => ground.cpw(&["clean", "--", bad]),
            _ => ground.cpw(&["wait", &named("--task"), "--timeout", "1s"]),
        };
        is_refused(&done);
        // What a task would say that lies about who it is.
        let mut command = ground.scratch.command(&[], &["progress", "50"]);
        let honest = [
            ("CPW_RUN", id.as_str()),
            ("CPW_RUN_DIR", run_dir.to_str().unwrap()),
            ("CPW_TASK", "a"),
            ("CPW_WORKER", "W1"),
            ("CPW_ATTEMPT", "1"),
            ("CPW_TOKEN", "3"),
        ];
        command.envs(honest);
        let lie = ["CPW_RUN_DIR", "CPW_TASK", "CPW_WORKER", "CPW_ATTEMPT"][i % 4];
        command.env(lie, bad);
        is_refused(&ground.scratch.run(command, PATIENCE));
    }
    assert_eq!((picture(&ground.outside), picture(&ground.scratch.path("home"))), before);
    assert_eq!(picture(&ground.scratch.project()), runs, "a refused id has left something");
    tried("ids on the command line and in the environment of a task", passable.len() * 2, 250);
}

#[test]
fn s01_a_session_whose_id_is_none_is_no_session() {
    let (ground, _) = Ground::with_run("echo x");
    let before = picture(&ground.scratch.path(""));
    let hooks = [
        ("user-prompt-submit", "UserPromptSubmit"),
        ("pre-tool-use", "PreToolUse"),
        ("post-tool-batch", "PostToolBatch"),
        ("stop", "Stop"),
        ("session-start", "SessionStart"),
        ("session-end", "SessionEnd"),
    ];
    let all: Vec<String> = ids().into_iter().filter(|id| id.len() < 5_000).collect();
    for (i, bad) in all.iter().enumerate() {
        let (hook, event) = hooks[i % hooks.len()];
        let more = json!({"session_id": bad, "prompt_id": bad, "prompt": "go", "tool_name": "Read",
            "tool_use_id": bad, "tool_input": {"file_path": "a.py"}, "agent_id": bad});
        let call = Call { hook, event, session: "", client: false, more };
        let mut command = ground.scratch.hook(&[], &call);
        if !bad.contains('\0') {
            command.env("CLAUDE_CODE_SESSION_ID", bad);
        }
        let done = ground.scratch.run(command, PATIENCE);
        is_well(&done, true);
        assert_eq!(done.out, "", "{bad:?}: {done:?}");
    }
    let mut after = picture(&ground.scratch.path(""));
    after.retain(|path, _| !path.ends_with("hooks.jsonl") && !path.starts_with(ground.scratch.path("io")));
    let mut before = before;
    before.retain(|path, _| !path.ends_with("hooks.jsonl") && !path.starts_with(ground.scratch.path("io")));
    assert_eq!(after, before);
    tried("ids of sessions, prompts and calls", all.len() * 3, 400);
}

/// What somebody puts in the place of a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thing {
    LinkToFile,
    LinkToFolder,
    /// To the very thing that was there.
    LinkToOwn,
    LinkToNothing,
    LinkToItself,
    LinkToDevice,
    Fifo,
    Socket,
    Folder,
    HardLink,
}

const THINGS: [Thing; 10] = [
    Thing::LinkToFile,
    Thing::LinkToFolder,
    Thing::LinkToOwn,
    Thing::LinkToNothing,
    Thing::LinkToItself,
    Thing::LinkToDevice,
    Thing::Fifo,
    Thing::Socket,
    Thing::Folder,
    Thing::HardLink,
];

fn put(thing: Thing, path: &Path, outside: &Path, own: &Path) {
    match thing {
        Thing::LinkToFile => symlink(outside.join("secret"), path),
        Thing::LinkToFolder => symlink(outside.join("dir"), path),
        Thing::LinkToOwn => symlink(own, path),
        Thing::LinkToNothing => symlink(outside.join("new"), path),
        Thing::LinkToItself => symlink(path, path),
        Thing::LinkToDevice => symlink("/dev/zero", path),
        Thing::Fifo => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).map_err(Into::into),
        // The path of a socket is short: it is made where it fits, and moved.
        Thing::Socket => {
            let short = tempfile::tempdir().unwrap();
            let made = UnixListener::bind(short.path().join("s")).map(drop);
            made.and_then(|()| fs::rename(short.path().join("s"), path))
        }
        Thing::Folder => fs::create_dir(path),
        Thing::HardLink => fs::hard_link(outside.join("secret"), path),
    }
    .unwrap_or_else(|e| panic!("{thing:?} at {}: {e}", path.display()));
}

fn take_away(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Everything of cpw's in a project, and of what it reads there, with a run that one worker has worked on.
fn places(id: &str) -> Vec<String> {
    let run = format!("project/.claude/runs/{id}");
    let mut places: Vec<String> = [
        "project/.claude",
        "project/.claude/cpw.json",
        "project/.claude/settings.json",
        "project/.claude/runs",
        "project/.claude/runs/.gitignore",
        "project/.claude/runs/project",
        "state",
        "state/trust",
        "state/sessions",
        "state/runs",
        "state/places",
        "state/history",
        "state/hooks.jsonl",
        "state/off",
        "state/scratch",
        "state/triggers",
        "state/backups",
        "home/.config",
    ]
    .map(str::to_owned)
    .to_vec();
    places.push(run.clone());
    places.push(format!("state/sessions/{SESSION}"));
    places.push(format!("state/runs/{id}"));
    for part in [
        "plan.json",
        "events.jsonl",
        "state.idx",
        "leader.lock",
        "deliver.lock",
        "bells",
        "prompt.txt",
        "workers",
        "workers/W1",
        "workers/W1/live.lock",
        "workers/W1/logs",
        "workers/W1/logs/a.1.out",
        "workers/W1/logs/worker.jsonl",
        "workers/W1/out",
        "workers/W1/out/a.1",
        "workers/W1/out/a.1/result.md",
    ] {
        places.push(format!("{run}/{part}"));
    }
    places
}

#[test]
fn s02_whatever_stands_in_the_place_of_a_file_or_folder_nothing_outside_is_touched() {
    let (mut ground, id) = Ground::with_run("echo found > \"$CPW_OUT/result.md\"");
    ground.scratch.keep();
    let places = places(&id);
    let commands: [&[&str]; 20] = [
        &["status"],
        &["status", &id],
        &["status", "--json"],
        &["logs"],
        &["events"],
        &["result", "a"],
        &["result", "a", "--apply"],
        &["replay"],
        &["trace"],
        &["wait", "--run", "--timeout", "1s"],
        &["cancel", "--run", &id],
        &["adopt", &id, "--session", SESSION, "--force"],
        &["clean", "--dry-run"],
        &["plan", "--prompt", "go"],
        &["lease", "db", "--", "true"],
        &["deny"],
        &["off"],
        &["init", "--local"],
        &["doctor"],
        &["doctor", &id],
    ];
    let read = json!({"tool_name": "Read", "tool_use_id": "u1", "tool_input": {"file_path": "a.py"}});
    let hooks = [
        ("pre-tool-use", "PreToolUse", read.clone()),
        ("post-tool-batch", "PostToolBatch", json!({})),
        ("stop", "Stop", json!({})),
        ("user-prompt-submit", "UserPromptSubmit", json!({"prompt": "hello"})),
        ("post-tool-use", "PostToolUse", read),
        ("session-start", "SessionStart", json!({"source": "resume"})),
        ("session-end", "SessionEnd", json!({"reason": "other"})),
        ("watch", "Stop", json!({})),
    ];
    let own = ground.outside.join("own");
    let (mut cases, mut turn) = (0, 0);
    for place in &places {
        for thing in THINGS {
            let path = ground.scratch.path(place);
            let there = fs::symlink_metadata(&path).ok();
            let is_folder = there.as_ref().is_some_and(std::fs::Metadata::is_dir);
            // The user's own links to the state, and to a whole project, are followed: a run is known by its folder.
            let followed =
                matches!(place.as_str(), "state" | "project/.claude" | "project/.claude/runs" | "home/.config");
            let users_own = place == "state" && thing == Thing::LinkToFolder;
            let fits = match thing {
                Thing::LinkToOwn => there.is_some() && !followed,
                Thing::Folder => !is_folder,
                _ => true,
            };
            if !fits || users_own {
                continue;
            }
            if there.is_some() {
                fs::rename(&path, &own).unwrap();
            }
            put(thing, &path, &ground.outside, &own);
            let before = picture(&ground.outside);
            let (hook, event, more) = &hooks[turn % hooks.len()];
            let said = ground.hook(hook, event, more.clone());
            let args = commands[turn % commands.len()];
            let done = ground.cpw(args);
            turn += 1;
            let after = picture(&ground.outside);
            take_away(&path);
            if there.is_some() {
                fs::rename(&own, &path).unwrap();
            }
            let what = format!("{thing:?} at {place}, {hook}, {args:?}");
            assert_eq!(after, before, "{what}");
            is_well(&said, true);
            is_well(&done, false);
            // Output with a second name is what a continued run takes over: a person who looks at it is shown it.
            let is_shown = matches!(thing, Thing::HardLink) && place.contains("/logs/");
            let leaks = said.out.contains("SECRET") || done.out.contains("SECRET") && !is_shown;
            assert!(!leaks, "{what}: {said:?} {done:?}");
            assert!(!ground.swallowed().contains("internal error"), "{what}: {}", ground.swallowed());
            ground.scratch.restore();
            cases += 2;
        }
    }
    // All as before: what was wrong was wrong with what stood there.
    let news = ground.hook("post-tool-batch", "PostToolBatch", json!({}));
    assert!(news.out.contains("W1 done"), "{news:?} {}", ground.swallowed());
    tried("things in the place of files and folders", cases, 600);
}

#[test]
fn s02_a_run_is_made_nowhere_else() {
    let mut count = 0;
    let places = [
        "project/.claude",
        "project/.claude/runs",
        "project/.claude/runs/.gitignore",
        "project/.claude/runs/project",
        "state",
        "state/sessions",
        "state/runs",
        "state/trust",
        "state/triggers",
        "state/history",
    ];
    for place in places {
        for thing in THINGS {
            let ground = Ground::new();
            let path = ground.scratch.path(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            take_away(&path);
            let own = ground.outside.join("own");
            fs::create_dir(&own).unwrap();
            // Nobody but the user can have made it: the state may be wherever they want.
            let users_own = place == "state" && matches!(thing, Thing::LinkToOwn | Thing::LinkToFolder);
            if thing == Thing::Folder || users_own {
                continue;
            }
            put(thing, &path, &ground.outside, &own);
            fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
            let before = picture(&ground.outside);
            let project = ground.scratch.project();
            let state = State::open_at(&ground.scratch.path("state"));
            let plan = a_plan();
            let made = RunDir::create(&project, &plan, &Origin::default());
            if let (Ok(folder), Ok(state)) = (&made, &state) {
                drop(folder.start(state, &plan, &Origin::default()));
            }
            if let Ok(state) = &state {
                let session = SessionId::new(SESSION).unwrap();
                if let Ok(Some(mut locked)) = Locked::open(state.path(), &session, PATIENCE) {
                    locked.add(Entry::Off).unwrap();
                }
                drop(trust::approve(state, &project.join(".claude/cpw.json"), b"{}"));
                drop(Trigger::of(state, &session, "rule").and_then(|t| t.add(1, None)));
                drop(cpw::store::history::record(state, &project, &plan, &[(0, 5)]));
            }
            drop(Desk::open(&project, &run::runs_path(&project)));
            // `.gitignore` and the leases' folder are replaced or refused; runs beside them are none the worse.
            let beside = place.starts_with("project/.claude/runs/");
            assert_eq!(made.is_ok(), beside || place.starts_with("state"), "{thing:?} at {place}: {made:?}");
            assert_eq!(picture(&ground.outside), before, "{thing:?} at {place}");
            count += 1;
        }
    }
    tried("things in the way of new runs", count, 85);
}

#[test]
fn s02_links_of_the_users_own_are_followed() {
    // The whole project, the home with the state directory in it, and that itself, each behind a link.
    let ground = Ground::new();
    let link = ground.scratch.path("link");
    symlink(ground.scratch.project(), &link).unwrap();
    fs::remove_dir(ground.scratch.path("state")).unwrap();
    fs::create_dir(ground.scratch.path("elsewhere")).unwrap();
    symlink(ground.scratch.path("elsewhere"), ground.scratch.path("home/.local")).unwrap();
    fs::create_dir_all(ground.scratch.path("elsewhere/state")).unwrap();
    fs::create_dir(ground.scratch.path("far")).unwrap();
    fs::set_permissions(ground.scratch.path("far"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink(ground.scratch.path("far"), ground.scratch.path("elsewhere/state/cpw")).unwrap();
    ground.scratch.write("plan.json", r#"{"version": 1, "tasks": [{"id": "a", "shell": "echo x"}]}"#);
    let mut command = ground.scratch.command(&[], &["run", "plan.json"]);
    command.current_dir(&link).env_remove("CPW_STATE_DIR");
    let done = ground.scratch.run(command, PATIENCE);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert_eq!(ground.scratch.runs().len(), 1);
    assert!(ground.scratch.path("far/runs").is_dir());
    ground.scratch.wait_for_end().unwrap();
}

/// A folder `in`, in which a name is exchanged, and a folder `out`, in which nothing may happen.
struct Race {
    temp: tempfile::TempDir,
    before: std::collections::BTreeMap<PathBuf, String>,
}

impl Race {
    fn new() -> Race {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("in")).unwrap();
        fs::create_dir(temp.path().join("out")).unwrap();
        Race { temp, before: std::collections::BTreeMap::new() }
    }

    fn inside(&self) -> PathBuf {
        self.temp.path().join("in")
    }

    fn out(&self) -> PathBuf {
        self.temp.path().join("out")
    }

    /// Does `act` at least `tries` times while the name `path` is exchanged with a link to `target`, again and again, until
    /// it has both found what was meant (true) and not. Nothing may have happened in `out`.
    fn run(mut self, what: &str, tries: usize, path: &Path, target: &Path, act: impl Fn(usize) -> bool) {
        let other = path.with_file_name("exchanged");
        symlink(target, &other).unwrap();
        self.before = picture(&self.out());
        let (over, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (found, missed, done) = (Cell::new(0_usize), Cell::new(0_usize), Cell::new(0_usize));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    exchange(path, &other);
                    swaps.fetch_add(1, Ordering::Relaxed);
                }
                if swaps.load(Ordering::Relaxed) % 2 == 1 {
                    exchange(path, &other);
                }
            });
            let end = Instant::now() + PATIENCE;
            while done.get() < tries || ((found.get() == 0 || missed.get() == 0) && Instant::now() < end) {
                let count = if act(done.get()) { &found } else { &missed };
                count.set(count.get() + 1);
                done.set(done.get() + 1);
                assert!(picture_of_one(&self.out()), "{what}: something is new outside");
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(picture(&self.out()), self.before, "{what}");
        let (found, missed, swaps) = (found.get(), missed.get(), swaps.into_inner());
        assert!(found > 0 && missed > 0, "{what}: found {found}, missed {missed} of {swaps} exchanges: no race");
        // Where the test runner does not hide it.
        writeln!(std::io::stderr(), "RACE: {what}: {found} found, {missed} refused, {swaps} exchanges").ok();
    }
}

/// A quick look, for tries without number: nothing has the name that all of them would make.
fn picture_of_one(out: &Path) -> bool {
    fs::symlink_metadata(out.join("made")).is_err()
}

#[cfg(target_env = "gnu")]
fn exchange(a: &Path, b: &Path) {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE).unwrap();
}

/// Not in one step, but as often.
#[cfg(not(target_env = "gnu"))]
fn exchange(a: &Path, b: &Path) {
    let between = a.with_file_name("between");
    for (from, to) in [(a, &*between), (b, a), (&*between, b)] {
        fs::rename(from, to).unwrap();
    }
}

fn secret(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, SECRET).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn tells_nothing(bytes: &[u8]) {
    assert!(!bytes.windows(6).any(|part| part == b"SECRET"), "it has read {:?}", String::from_utf8_lossy(bytes));
}

/// All tries together.
const TRIES: usize = 100_000;

#[test]
fn s03_a_folder_that_is_exchanged_is_never_another_one() {
    let race = Race::new();
    let (inside, out) = (race.inside(), race.out());
    let folder = inside.join("run");
    fs::create_dir(&folder).unwrap();
    secret(&out.join("file"));
    fs::write(folder.join("file"), "own").unwrap();
    let dir = Dir::open(&inside).unwrap();
    race.run("files of a folder", TRIES * 3 / 10, &folder, &out, |i| {
        let Ok(run) = dir.sub("run") else { return false };
        let read = run.read_bounded("file", 100).unwrap();
        tells_nothing(&read);
        match i % 6 {
            0 => run.write_atomic("made", b"x", 0o600, false).unwrap(),
            1 => drop(run.create_new("made", 0o600)),
            2 => run.open_append("made").unwrap().write_all(b"x").unwrap(),
            3 => drop(run.make_new_sub("sub", 0o700)),
            4 => drop(run.open_rw("made").unwrap()),
            _ => {
                run.remove("made").unwrap();
                run.remove_all("sub").unwrap();
            }
        }
        true
    });
}

#[test]
fn s03_a_file_that_is_exchanged_is_never_another_one() {
    let race = Race::new();
    let (inside, out) = (race.inside(), race.out());
    secret(&out.join("secret"));
    let file = inside.join("file");
    fs::write(&file, "own").unwrap();
    fs::create_dir(inside.join("to")).unwrap();
    let dir = Dir::open(&inside).unwrap();
    let to = dir.sub("to").unwrap();
    race.run("a file", TRIES * 3 / 10, &file, &out.join("secret"), |i| {
        let opened = match i % 4 {
            0 => dir.open_read("file"),
            1 => dir.open_append("file"),
            2 => dir.open_rw("file"),
            _ => dir.open_existing("file"),
        };
        if let Ok(mut file) = opened {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            tells_nothing(&bytes);
            if i % 4 == 1 {
                file.write_all(b"x").unwrap();
                file.set_len(3).unwrap();
            }
            return true;
        }
        // A second name is of the link itself, never of what it leads to.
        if i % 8 == 0 && dir.link_all(&to.make_new_sub(format!("{i}"), 0o700).unwrap()).is_ok() {
            let copied = to.sub(format!("{i}")).unwrap();
            tells_nothing(&copied.read_bounded("file", 100).unwrap_or_default());
            to.remove_all(format!("{i}")).unwrap();
        }
        false
    });
}

#[test]
fn s03_state_that_is_exchanged_is_neither_believed_nor_written() {
    let session = SessionId::new(SESSION).unwrap();
    let race = Race::new();
    let (home, out) = (race.inside(), race.out());
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    Locked::open(&home, &session, PATIENCE).unwrap().unwrap().add(Entry::Prompt { id: "p".into() }).unwrap();
    secret(&out.join(SESSION));
    fs::write(out.join(SESSION), "{\"t\":\"prompt\",\"id\":\"SECRET\"}\n").unwrap();
    let sessions = home.join("sessions");
    race.run("a session's record", TRIES / 10, &sessions, &out, |i| {
        let seen = if i % 50 == 0 {
            Locked::open(&home, &session, PATIENCE).ok().flatten().map(|mut locked| {
                locked.add(Entry::LetGo { mono_ms: 1 }).unwrap();
                locked.session
            })
        } else {
            session::load(&home, &session).ok().flatten()
        };
        seen.is_some_and(|seen| {
            assert_eq!(seen.prompts, ["p"], "it has believed another one");
            true
        })
    });

    let race = Race::new();
    let (home, out) = (race.inside(), race.out());
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let state = State::open_at(&home).unwrap();
    let config = Path::new("/p/.claude/cpw.json");
    trust::approve(&state, config, b"{}").unwrap();
    let record = fs::read_dir(home.join("trust")).unwrap().next().unwrap().unwrap().path();
    // What somebody else would like to be approved, in a record that is whole.
    trust::approve(&state, config, b"SECRET").unwrap();
    fs::rename(&record, out.join(record.file_name().unwrap())).unwrap();
    trust::approve(&state, config, b"{}").unwrap();
    let hashes = [b"{}".as_slice(), b"SECRET"].map(cpw::base::hex::sha256);
    let folder = home.join("trust");
    race.run("an approval", TRIES / 20, &folder, &out, |i| {
        let trusted = |hash| matches!(trust::Trust::of(&state, config, hash), Ok(trust::Trust::Approved));
        assert!(!trusted(&hashes[1]), "bytes are approved that nobody has approved here");
        if i % 50 == 0 {
            drop(trust::approve(&state, config, b"{}"));
        }
        trusted(&hashes[0])
    });

    let race = Race::new();
    let (inside, out) = (race.inside(), race.out());
    let folder = inside.join("backups");
    fs::create_dir(&folder).unwrap();
    race.run("a file that is replaced", 500, &folder, &out, |_| {
        file::replace(&folder.join("made"), b"x", Rights::Private).is_ok()
    });
}

#[test]
fn s03_a_run_that_is_exchanged_is_never_another_one() {
    // The run's folder, the folder of all, and `.claude`: each exchanged with a link to a copy of it.
    for (which, part) in [(3, 10), (2, 20), (1, 20)] {
        let race = Race::new();
        let (project, out) = (race.inside(), race.out());
        let plan = a_plan();
        let folder = RunDir::create(&project, &plan, &Origin::default()).unwrap();
        let own = folder.dir.id().unwrap();
        let exchanged: PathBuf = folder.path().ancestors().nth(3 - which).unwrap().to_owned();
        let target = out.join("copy");
        let copied = Command::new("cp").args(["-a", "--"]).arg(&exchanged).arg(&target).status().unwrap();
        assert!(copied.success());
        let (path, id) = (folder.path().to_owned(), plan.run.clone());
        let what = format!("a run below {}", exchanged.file_name().unwrap().display());
        race.run(&what, TRIES / part, &exchanged, &target, |i| {
            let opened = if i % 2 == 0 { RunDir::open(&project, &id) } else { RunDir::open_path(&path) };
            let Ok(opened) = opened else { return false };
            assert!(opened.dir.id().unwrap().same_file(&own), "it has opened a copy");
            if i % 100 == 0 {
                let bell = bells::hang(&opened, &Concern::End).unwrap();
                bells::ring(&opened, &Wake::let_go(), &[]);
                drop(bell);
            }
            true
        });
    }
    let race = Race::new();
    let (project, out) = (race.inside(), race.out());
    let runs = run::runs_path(&project);
    drop(Desk::open(&project, &runs).unwrap());
    race.run("new runs and leases", 300, &runs, &out, |i| {
        let made = RunDir::create(&project, &a_plan(), &Origin::default());
        if i % 4 == 0 {
            drop(Desk::open(&project, &runs));
        }
        made.is_ok_and(|folder| folder.dir.empty().is_ok())
    });
}

#[test]
fn s03_what_is_removed_is_never_something_else() {
    let race = Race::new();
    let (inside, out) = (race.inside(), race.out());
    secret(&out.join("deep/secret"));
    let work = Dir::open(&inside).unwrap().make_new_sub("work", 0o700).unwrap();
    fs::create_dir(inside.join("work/tree")).unwrap();
    let tree = inside.join("work/tree");
    race.run("a folder that is emptied", TRIES / 50, &tree, &out, |_| {
        let Ok(dir) = work.sub("tree") else { return false };
        dir.make_new_sub("sub", 0o500).unwrap();
        dir.write_atomic("file", b"x", 0o600, false).unwrap();
        // By its handle, and by its path as it is now.
        if dir.empty().is_err() {
            return false;
        }
        work.sub("tree").and_then(|now| now.empty()).is_ok()
    });
}

#[test]
fn s03_hooks_and_commands_find_the_run_or_nothing() {
    let (ground, id) = Ground::with_run("echo found > \"$CPW_OUT/result.md\"");
    let runs = ground.scratch.project().join(".claude/runs");
    let copy = ground.outside.join("copy");
    assert!(Command::new("cp").args(["-a", "--"]).arg(&runs).arg(&copy).status().unwrap().success());
    fs::write(copy.join(&id).join("workers/W1/out/a.1/result.md"), SECRET).unwrap();
    let other = runs.with_file_name("exchanged");
    symlink(&copy, &other).unwrap();
    let before = picture(&ground.outside);
    let (over, swaps) = (AtomicBool::new(false), AtomicUsize::new(0));
    let count = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                exchange(&runs, &other);
                swaps.fetch_add(1, Ordering::Relaxed);
                // Else nothing else would find a moment in which the folder is not being changed.
                std::thread::yield_now();
            }
            if swaps.load(Ordering::Relaxed) % 2 == 1 {
                exchange(&runs, &other);
            }
        });
        let mut count = 0;
        for _ in 0..60 {
            let read = json!({"tool_name": "Read", "tool_use_id": "u1", "tool_input": {"file_path": "a.py"}});
            let said = [
                ground.hook("pre-tool-use", "PreToolUse", read),
                ground.hook("stop", "Stop", json!({})),
                ground.hook("post-tool-batch", "PostToolBatch", json!({})),
            ];
            for said in &said {
                is_well(said, true);
            }
            let done = [ground.cpw(&["result", "a"]), ground.cpw(&["status", &id])];
            for done in &done {
                is_well(done, false);
            }
            for done in said.iter().chain(&done) {
                tells_nothing(done.out.as_bytes());
                count += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
        count
    });
    assert_eq!(picture(&ground.outside), before);
    assert!(swaps.into_inner() > 100);
    tried("calls while the folder of the runs is exchanged", count, 300);
}

#[test]
fn s04_a_run_that_others_can_change_is_inert_and_said_to_be() {
    let (mut ground, id) = Ground::with_run("echo x");
    ground.scratch.keep();
    let run = ground.scratch.runs().pop().unwrap();
    let mut count = 0;
    for part in ["", "events.jsonl", "plan.json"] {
        for mode in [0o777, 0o770, 0o703, 0o1777, 0o720] {
            let path = run.join(part);
            let usual = fs::metadata(&path).unwrap().mode();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let log = fs::read(run.join("events.jsonl")).unwrap();
            let said = ground.hook("post-tool-batch", "PostToolBatch", json!({}));
            is_well(&said, true);
            // The plan is not read where the news is delivered.
            assert!(part == "plan.json" || said.out.is_empty(), "{part} {mode:o}: {said:?}");
            if part != "plan.json" {
                assert_eq!(fs::read(run.join("events.jsonl")).unwrap(), log, "{part} {mode:o}");
            }
            for args in [&["status", &id][..], &["status"], &["cancel", "--run", &id], &["retry", &id]] {
                let done = ground.cpw(args);
                is_well(&done, false);
                let text = done.out + &done.err;
                assert!(
                    text.contains("others can write to it") || part == "plan.json",
                    "{args:?} {part} {mode:o}: {text}"
                );
                count += 1;
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(usual)).unwrap();
            ground.scratch.restore();
        }
    }
    assert!(ground.hook("post-tool-batch", "PostToolBatch", json!({})).out.contains("W1 done"));
    tried("modes of a run's folder and files", count, 60);
}

#[test]
fn s04_no_run_is_made_where_everybody_could_exchange_it() {
    for (place, mode, fine) in [
        (".claude", 0o755, true),
        (".claude", 0o775, true),
        (".claude", 0o777, false),
        (".claude", 0o1777, true),
        (".claude/runs", 0o700, true),
        (".claude/runs", 0o755, true),
        (".claude/runs", 0o775, false),
        (".claude/runs", 0o777, false),
        ("", 0o777, false),
        ("", 0o1777, true),
        ("", 0o775, true),
    ] {
        let ground = Ground::new();
        ground.config(&json!({"version": 1, "rules": [{"name": "go", "when": {"prompt": "^go$"},
            "tasks": [{"id": "a", "run": ["true"]}]}]}));
        ground.scratch.write("plan.json", r#"{"version": 1, "tasks": [{"id": "a", "run": ["true"]}]}"#);
        let path = ground.scratch.project().join(place);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let done = ground.cpw(&["run", "plan.json"]);
        let (before, said) = (ground.scratch.runs().len(), ground.prompt("go"));
        is_well(&said, true);
        let made = ground.scratch.runs().len();
        if fine {
            assert_eq!((done.status.code(), before, made), (Some(0), 1, 2), "{place} {mode:o}: {done:?} {said:?}");
        } else {
            is_refused(&done);
            assert!(done.err.contains("chmod") && made == 0, "{place} {mode:o}: {done:?}");
            // Where the rule's user is told at all, it is in one line and to them alone.
            assert!(!said.out.contains("additionalContext"), "{place} {mode:o}: {said:?}");
        }
        ground.scratch.wait_for_end().unwrap();
    }
}

#[test]
fn s05_everything_of_ours_is_ours_alone_whatever_the_umask() {
    for mask in ["0000", "0077", "0777", "0277"] {
        let ground = Ground::new();
        fs::remove_dir(ground.scratch.path("state")).unwrap();
        let under = |args: &[&str]| {
            let outer = ["sh", "-c", "umask \"$1\"; shift; exec \"$@\"", "sh", mask].map(str::to_owned);
            let done = ground.scratch.run(ground.scratch.command(&outer, args), PATIENCE);
            assert_eq!(done.status.code(), Some(0), "umask {mask}: {args:?} {done:?}");
        };
        ground.config(
            &json!({"version": 1, "conductor": {"gate": "off"}, "resources": {"db": {"tools": ["Bash(psql*)"]}},
            "rules": [{"name": "go", "when": {"prompt": "^go$"}, "tasks": [
                {"id": "a", "shell": "echo x; echo y > \"$CPW_OUT/result.md\"; cpw progress 50", "claims": ["a.py"]},
                {"id": "b", "shell": "echo z", "needs": ["a"], "resources": ["db"]}]}]}),
        );
        fs::remove_dir_all(ground.scratch.path("state")).unwrap();
        under(&["allow", "--yes"]);
        under(&["off"]);
        under(&["on"]);
        let outer = ["sh", "-c", "umask \"$1\"; shift; exec \"$@\"", "sh", mask].map(str::to_owned);
        let call = |hook, event, more| Call { hook, event, session: SESSION, client: false, more };
        let hooks = [
            call("user-prompt-submit", "UserPromptSubmit", json!({"prompt": "go"})),
            call("post-tool-batch", "PostToolBatch", json!({})),
            call("stop", "Stop", json!({})),
        ];
        for call in &hooks {
            let mut command = ground.scratch.hook(&outer, call);
            is_well(&ground.scratch.run(command_with(&mut command), PATIENCE), true);
        }
        ground.scratch.wait_for_end().unwrap();
        under(&["retry", "--help"]);
        under(&["status"]);
        for root in [ground.scratch.path("state"), ground.scratch.project().join(".claude/runs")] {
            for path in picture(&root).into_keys() {
                // What tasks write is theirs, in a folder of ours.
                if path
                    .components()
                    .rev()
                    .nth(1)
                    .is_some_and(|above| above.as_os_str().to_string_lossy().contains(".1"))
                    || path.ends_with(".gitignore")
                {
                    continue;
                }
                let meta = fs::symlink_metadata(&path).unwrap();
                let mode = meta.mode() & 0o7777;
                let fine = if meta.is_dir() { mode == 0o700 } else { matches!(mode, 0o600 | 0o400) };
                assert!(fine, "umask {mask}: {} has {mode:o}", path.display());
            }
        }
        assert_eq!(ground.scratch.runs().len(), 1, "umask {mask}: {}", ground.swallowed());
        let ledger = ground.scratch.ledger().unwrap();
        let end = ledger.events.iter().find(|e| e["t"] == "run_ended").expect("an end");
        assert_eq!(end["payload"]["status"], "ok", "umask {mask}: {:?}", ledger.events);
    }
}

/// With all calls noted, so that the log of the hooks is there.
fn command_with(command: &mut Command) -> Command {
    let mut again = Command::new(command.get_program());
    again.args(command.get_args()).current_dir(command.get_current_dir().unwrap()).env_clear();
    again.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("CPW_LOG", "debug");
    let path = Path::new(command.get_current_dir().unwrap()).parent().unwrap().join("io/in");
    again.stdin(fs::File::open(path).unwrap());
    again
}

#[test]
fn s24_what_is_no_file_of_its_own_is_not_handed_over_as_a_result() {
    let cases = [
        ("link", "ln -s \"$SECRETS/secret\" \"$CPW_OUT/result.md\"", "not a regular file"),
        ("dangling", "ln -s /nowhere/at/all \"$CPW_OUT/result.md\"", "not a regular file"),
        ("loop", "ln -s result.md \"$CPW_OUT/result.md\"", "not a regular file"),
        ("device", "ln -s /dev/zero \"$CPW_OUT/result.md\"", "not a regular file"),
        ("fifo", "mkfifo \"$CPW_OUT/result.md\"", "not a regular file"),
        ("folder", "mkdir \"$CPW_OUT/result.md\"", "not a regular file"),
        ("hard", "ln \"$SECRETS/secret\" \"$CPW_OUT/result.md\"", "second name"),
        ("out", "rm -rf \"$CPW_OUT/result.md\"; ln -s \"$SECRETS/dir\" \"$CPW_OUT/result.d\"", "not a regular file"),
    ];
    let ground = Ground::new();
    let tasks: Vec<Value> = cases
        .iter()
        .map(|(id, script, _)| json!({"id": id, "shell": format!("{script}; echo said"), "env": {"SECRETS": ground.outside}}))
        .chain([
            // Names that some file systems take for one, beside each other; and many.
            json!({"id": "case", "shell": "cd \"$CPW_OUT\"; echo 1 >result.md; echo 2 >RESULT.md; echo 3 >result.MD; echo 4 >result.é; echo 5 >\"$(printf 'result.e\\314\\201')\""}),
            json!({"id": "many", "shell": "cd \"$CPW_OUT\"; seq 1 100000 | xargs -n 5000 touch; echo found >result.md"}),
            json!({"id": "beside", "shell": "cd \"$CPW_OUT\"; mkfifo result.a; echo found >result.md"}),
        ])
        .collect();
    ground.scratch.write("plan.json", &json!({"version": 1, "limits": {"max_workers": 2}, "tasks": tasks}).to_string());
    let before = picture(&ground.outside);
    let done = ground.scratch.run(ground.scratch.command(&[], &["run", "plan.json"]), PATIENCE);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    // The hard link has given the secret a second name; that is the task's own doing.
    let mut after = picture(&ground.outside);
    after.retain(|path, _| before.contains_key(path));
    assert_eq!(after, before);
    let ledger = ground.scratch.ledger().unwrap();
    let outcome = |id: &str| {
        let done = ledger.events.iter().find(|e| e["t"] == "done" && e["task"] == id);
        done.unwrap_or_else(|| panic!("{id} is not done: {:?}", ledger.events))["payload"].clone()
    };
    for (id, _, why) in cases {
        let payload = outcome(id);
        let summary = payload["summary"].as_str().unwrap_or_default();
        assert!(summary.contains(why) && !summary.contains("SECRET"), "{id}: {payload}");
        let path = payload["result"]["path"].as_str().unwrap_or_default();
        assert!(path.is_empty() || path.ends_with("/result.txt"), "{id}: {payload}");
        let printed = ground.cpw(&["result", id]);
        is_well(&printed, false);
        assert!(matches!(printed.out.as_str(), "" | "said\n"), "{id}: {printed:?}");
    }
    assert!(outcome("case")["result"]["path"].as_str().unwrap().ends_with("/result.MD"));
    for id in ["many", "beside"] {
        assert_eq!(ground.cpw(&["result", id]).out, "found\n", "{id}");
    }
    assert!(outcome("beside")["summary"].as_str().unwrap().contains("result.a is not taken"));
    // What was a result and is exchanged afterwards.
    let run = ground.scratch.runs().pop().unwrap();
    let result = run.join(outcome("beside")["result"]["path"].as_str().unwrap());
    for thing in [Thing::LinkToFile, Thing::Fifo, Thing::Folder, Thing::LinkToDevice, Thing::Socket] {
        take_away(&result);
        put(thing, &result, &ground.outside, &result);
        let printed = ground.cpw(&["result", "beside"]);
        is_refused(&printed);
        assert!(!printed.out.contains("SECRET"), "{printed:?}");
    }
    ground.scratch.wait_for_end().unwrap();
    tried("things left as results", cases.len() + 8, 16);
}

#[test]
fn s06_names_in_shared_folders_cannot_be_foreseen() {
    let ground = Ground::new();
    let temporary = ground.outside.join("tmp");
    fs::create_dir(&temporary).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)).unwrap();
    // What somebody would make who knows the program.
    for name in ["cpw", "cpw-demo", "cpw-demo-1", "cpw-demo-000000000000", ".cpw", "cpw.lock"] {
        symlink(ground.outside.join("dir"), temporary.join(name)).unwrap();
    }
    let before = picture(&ground.outside);
    let mut command = ground.scratch.command(&[], &["demo", "--fast", "--keep"]);
    command.env("TMPDIR", &temporary);
    let demo = ground.scratch.run(command, PATIENCE);
    is_well(&demo, false);
    let added: Vec<PathBuf> = picture(&ground.outside).into_keys().filter(|p| !before.contains_key(p)).collect();
    let tops: Vec<&PathBuf> = added.iter().filter(|p| p.parent() == Some(&temporary)).collect();
    assert!(tops.len() <= 1, "{tops:?}");
    for top in tops {
        assert_eq!(fs::metadata(top).unwrap().mode() & 0o7777, 0o700, "{}", top.display());
        assert!(top.file_name().unwrap().len() >= "cpw-demo-".len() + 12);
        fs::remove_dir_all(top).unwrap();
    }
    assert_eq!(picture(&ground.outside), before);
    // Folders that are none, cannot be written to, or are a pipe.
    let closed = ground.outside.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    nix::unistd::mkfifo(&ground.outside.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(fs::metadata(ground.outside.join("pipe")).unwrap().file_type().is_fifo());
    ground.scratch.write("plan.json", r#"{"version": 1, "tasks": [{"id": "a", "shell": "echo x"}]}"#);
    for folder in ["/nowhere", "", "relative/../..", "/dev/null", "secret", "pipe"] {
        let folder = if folder.starts_with('/') { PathBuf::from(folder) } else { ground.outside.join(folder) };
        for args in [&["run", "plan.json"][..], &["status"]] {
            let mut command = ground.scratch.command(&[], args);
            command.env("TMPDIR", &folder);
            let done = ground.scratch.run(command, PATIENCE);
            assert_eq!(done.status.code(), Some(0), "nothing of a run is in TMPDIR: {} {done:?}", folder.display());
        }
        let mut command = ground.scratch.command(&[], &["demo", "--fast"]);
        command.env("TMPDIR", folder);
        is_well(&ground.scratch.run(command, PATIENCE), false);
    }
    ground.scratch.wait_for_end().unwrap();
}
