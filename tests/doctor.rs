//! `cpw doctor`: for each thing that it can find a scene that has it, with its remedy and the exit code. Where the remedy is a
//! command, it is run as it was said, and what was found is gone.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::world::{World, wait_for};

const RULES: &str = r#"{"version": 1, "rules": [{"name": "a", "when": {"prompt": "(?i)\\banaly[sz]e\\b"},
    "tasks": [{"id": "t", "shell": "echo done"}],
    "merge": [{"tool": "Write", "match": {"file_path": "*report.md"}, "needs": ["t"], "set": {"content": "{{results}}"}}]}]}"#;

/// What is found in a scene, and what becomes of it.
struct Case {
    /// Makes the scene.
    scene: fn(&World),
    /// The check, how it comes out, and words of what it says.
    found: (&'static str, &'static str, &'static str),
    /// Words of the remedy.
    remedy: &'static str,
    exit: i32,
    /// Whether the remedy begins or ends with a command between backticks that mends it.
    mends: bool,
}

fn case(
    scene: fn(&World),
    found: (&'static str, &'static str, &'static str),
    remedy: &'static str,
    exit: i32,
    mends: bool,
) -> Case {
    Case { scene, found, remedy, exit, mends }
}

fn cpw(world: &World, words: &str) {
    let out = world.command("/bin/sh").args(["-c", &format!("cpw {words}")]).output().unwrap();
    assert!(out.status.success(), "cpw {words}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Everything as it should be: rules, approved and wired, in a folder that the client trusts.
fn well(world: &World) {
    world.write(".claude/cpw.json", RULES);
    cpw(world, "allow --yes");
    cpw(world, "init");
    let projects = json!({"projects": {world.project().to_str().unwrap(): {"hasTrustDialogAccepted": true}}});
    std::fs::write(world.home().join(".claude.json"), projects.to_string()).unwrap();
}

/// Another program of that name, outside PATH and the project, which the user's own settings call.
fn other_cpw(world: &World, script: &str) {
    let program = world.path("other/cpw");
    std::fs::create_dir_all(program.parent().unwrap()).unwrap();
    std::fs::create_dir_all(world.home().join(".claude")).unwrap();
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let call = json!([{"hooks": [{"type": "command", "command": program, "args": ["stop"], "timeout": 10}]}]);
    std::fs::write(world.home().join(".claude/settings.json"), json!({"hooks": {"Stop": call}}).to_string()).unwrap();
}

/// Adds to the project's settings.
fn add(world: &World, key: &str, value: Value) {
    let mut settings: Value = serde_json::from_str(&world.read(".claude/settings.json").unwrap()).unwrap();
    settings[key] = value;
    world.write(".claude/settings.json", &settings.to_string());
}

/// A run that has ended.
fn ended_run(world: &World) -> std::path::PathBuf {
    world.write("plan.json", r#"{"version": 1, "tasks": [{"id": "t", "run": ["true"]}]}"#);
    cpw(world, "run plan.json");
    wait_for(Duration::from_mins(1), || world.processes().is_empty().then_some(())).expect("its workers leave");
    let mut runs = std::fs::read_dir(world.project().join(".claude/runs")).unwrap().map(|e| e.unwrap().path());
    runs.find(|path| path.join("events.jsonl").exists() && !path.ends_with("project")).unwrap()
}

fn examine(world: &World, change: impl FnOnce(&mut std::process::Command)) -> (Option<i32>, Value) {
    let mut command = world.cpw(&["doctor", "--json"]);
    change(&mut command);
    let out = command.output().unwrap();
    let said = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    (out.status.code(), said)
}

fn find<'a>(said: &'a Value, (name, finding, text): (&str, &str, &str)) -> Option<&'a Value> {
    let is_it = |c: &&Value| c["name"] == name && c["finding"] == finding && c["text"].as_str().unwrap().contains(text);
    said["checks"].as_array().unwrap().iter().find(is_it)
}

fn check(cases: &[Case]) {
    for Case { scene, found, remedy, exit, mends } in cases {
        let world = World::new();
        scene(&world);
        let (code, said) = examine(&world, |_| ());
        let Some(check) = find(&said, *found) else { panic!("{found:?} was not found: {said:#}") };
        let told = check["remedy"].as_str().unwrap_or_default();
        assert!(told.contains(remedy) && !told.is_empty(), "{found:?}: {told}");
        assert_eq!(code, Some(*exit), "{found:?}: {said:#}");
        assert_eq!(said["broken"], *exit == 1);
        if *mends {
            let command = told.split('`').nth(1).unwrap_or_else(|| panic!("{found:?}: no command in {told}"));
            let command = command.replace("cpw allow", "cpw allow --yes");
            let out = world.command("/bin/sh").args(["-c", &command]).output().unwrap();
            assert!(out.status.success(), "{command}: {out:?}");
            let (_, said) = examine(&world, |_| ());
            assert_eq!(find(&said, *found), None, "{command} does not mend it: {said:#}");
        }
    }
}

#[test]
fn where_all_is_well_nothing_is_to_be_done() {
    let world = World::new();
    well(&world);
    let (code, said) = examine(&world, |_| ());
    assert_eq!(code, Some(0));
    let bad = |c: &&Value| c["finding"] == "warn" || c["finding"] == "error";
    assert_eq!(said["checks"].as_array().unwrap().iter().find(bad), None, "{said:#}");
    for ok in [
        ("hooks", "ok", "wired in"),
        ("self-test", "ok", "answers"),
        ("trust", "ok", "trusts"),
        ("config", "ok", "approved"),
    ] {
        assert!(find(&said, ok).is_some(), "{ok:?}: {said:#}");
    }
    // It leaves no trace of what it tried, and the text has the same as the JSON.
    assert!(!world.state().join("sessions").exists() && !world.project().join(".claude/runs").exists());
    let text = String::from_utf8(world.cpw(&["doctor"]).output().unwrap().stdout).unwrap();
    assert!(text.contains("✓ self-test"), "{text}");
    // A prompt that starts a run is what shows that the hooks are at work.
    assert!(find(&said, ("last seen", "note", "no session has started a run here")).is_some(), "{said:#}");
    let payload = json!({"session_id": "s1", "cwd": world.project(), "hook_event_name": "UserPromptSubmit",
        "prompt_id": "p1", "prompt": "Analyze it please"});
    let file = world.write("payload.json", &payload.to_string());
    let out = world.cpw(&["user-prompt-submit"]).stdin(std::fs::File::open(file).unwrap()).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("started 1 task"), "{out:?}");
    let (_, said) = examine(&world, |_| ());
    assert!(find(&said, ("last seen", "ok", "a session has started a run here")).is_some(), "{said:#}");
}

#[test]
fn what_is_not_set_up_is_found_and_the_remedy_mends_it() {
    check(&[
        case(|_| (), ("hooks", "warn", "no settings file"), "cpw init", 0, true),
        case(|_| (), ("config", "note", "no .claude/cpw.json"), "cpw init", 0, true),
        case(|w| drop(w.write(".claude/cpw.json", RULES)), ("config", "warn", "not approved"), "cpw allow", 0, true),
        case(
            |w| drop(w.write(".claude/cpw.json", r#"{"version": 1, "ruels": []}"#)),
            ("config", "error", "$.ruels"),
            "mend them",
            1,
            false,
        ),
        case(|w| (well(w), cpw(w, "off")).1, ("switch", "warn", "switched off"), "cpw on", 0, true),
        case(
            |w| std::fs::set_permissions(w.state(), std::fs::Permissions::from_mode(0o777)).unwrap(),
            ("state", "error", "others may write"),
            "another folder",
            1,
            false,
        ),
        case(
            |w| std::fs::write(w.home().join(".claude.json"), r#"{"projects": {}}"#).unwrap(),
            ("trust", "note", "has not been told to trust"),
            "start `claude` here once",
            0,
            false,
        ),
    ]);
}

#[test]
fn what_is_wrong_with_the_wiring_is_found_and_the_remedy_mends_it() {
    check(&[
        case(
            |w| {
                other_cpw(w, "exit 0");
                std::fs::remove_file(w.path("other/cpw")).unwrap();
            },
            ("self-test", "error", "which is not there"),
            "cpw init --user",
            1,
            true,
        ),
        case(
            |w| other_cpw(w, "[ \"$1\" != --version ] || echo cpw 0.0.1"),
            ("self-test", "warn", "another cpw"),
            "cpw init --user",
            0,
            true,
        ),
        case(
            |w| other_cpw(w, "echo broken pipe >&2; exit 2"),
            ("self-test", "error", "exit code 2 and says: broken pipe"),
            "cpw init --user",
            1,
            true,
        ),
        case(|w| other_cpw(w, "exec sleep 1000"), ("self-test", "error", "took too long"), "cpw init --user", 1, true),
        case(
            |w| {
                well(w);
                cpw(w, "init --local");
            },
            ("hooks", "note", "runs twice"),
            "cpw init --local --uninstall",
            0,
            true,
        ),
        case(
            |w| {
                well(w);
                let settings = w.read(".claude/settings.json").unwrap();
                w.write(".claude/settings.json", &settings.replace("exec cpw watch", "exec beep watch"));
            },
            ("hooks", "warn", "does not call cpw for: watch"),
            "cpw init",
            0,
            true,
        ),
        case(
            |w| (well(w), add(w, "enabledPlugins", json!({"cpw@shelf": true}))).1,
            ("plugin", "note", "each hook runs twice"),
            "cpw init --uninstall",
            0,
            true,
        ),
    ]);
}

#[test]
fn what_others_have_set_is_found() {
    check(&[
        case(
            |w| drop(w.write(".claude/settings.json", "{\n  \"model\": 1,\n}")),
            ("settings", "error", "settings.json:2:13"),
            "mend that line",
            1,
            false,
        ),
        case(
            |w| (well(w), add(w, "disableAllHooks", json!(true))).1,
            ("settings", "error", "\"disableAllHooks\" is true in"),
            "set it to false",
            1,
            false,
        ),
        case(
            |w| {
                well(w);
                let hook = json!([{"matcher": "Edit|Write", "hooks": [{"type": "command", "command": "fmt-it"}]}]);
                w.write(".claude/settings.local.json", &json!({"hooks": {"PreToolUse": hook}}).to_string());
            },
            ("other hooks", "note", "sees Write, too: fmt-it"),
            "finishes later wins",
            0,
            false,
        ),
    ]);
    // One that sees other tools is nobody's business.
    let world = World::new();
    well(&world);
    let hook = json!([{"matcher": "Bash", "hooks": [{"type": "command", "command": "fmt-it"}]}]);
    world.write(".claude/settings.local.json", &json!({"hooks": {"PreToolUse": hook}}).to_string());
    assert_eq!(find(&examine(&world, |_| ()).1, ("other hooks", "note", "")), None);
}

#[test]
fn what_is_left_over_is_found_and_the_remedy_mends_it() {
    check(&[
        case(
            |w| {
                let log = std::fs::File::options().append(true).open(ended_run(w).join("events.jsonl")).unwrap();
                log.set_modified(SystemTime::now() - Duration::from_hours(15 * 24)).unwrap();
            },
            ("left over", "note", "1 runs ended more than two weeks ago"),
            "cpw clean",
            0,
            true,
        ),
        case(
            |w| std::fs::write(ended_run(w).join("bells/1.1.all"), "").unwrap(),
            ("left over", "note", "1 bells in runs that have ended"),
            "nothing to do",
            0,
            false,
        ),
        case(
            |w| {
                let line = json!({"ts": "2026-01-02T03:04:05.678Z", "hook": "stop", "ms": 3, "error": "no room"});
                std::fs::write(w.state().join("hooks.jsonl"), format!("{line}\n")).unwrap();
            },
            ("hook errors", "warn", "no room"),
            "hooks.jsonl",
            0,
            false,
        ),
    ]);
}

#[test]
fn it_works_where_there_is_little() {
    let world = World::new();
    for (name, value) in
        [("HOME", None), ("PATH", Some("/usr/bin:/bin")), ("CPW_DEPTH", Some("1")), ("CPW_DISABLE", Some("1"))]
    {
        let (code, said) = examine(&world, |command| {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        });
        assert_eq!(code, Some(0), "{name}: {said:#}");
    }
    let (_, said) = examine(&world, |command| {
        command.env("PATH", "/usr/bin:/bin");
    });
    assert!(find(&said, ("program", "warn", "not on PATH")).is_some(), "{said:#}");
    let (_, said) = examine(&world, |command| {
        command.env("CPW_DISABLE", "1");
    });
    assert!(find(&said, ("switch", "warn", "CPW_DISABLE")).is_some(), "{said:#}");
    // Nothing of the kind is there, and nothing has come of it.
    assert_eq!(std::fs::read_dir(world.project()).unwrap().count(), 0);
}
