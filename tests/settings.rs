//! Wiring and unwiring of `settings.json` over files in the shapes that people have (`tests/settings/*.json`), and over
//! generated ones: installing twice is installing once, taking out restores the exact bytes, and what others do to the
//! file in between survives.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use cpw::model::settings::{Form, StatusLine, install, status_line, uninstall, unwire_line, wire_line, wired};
use proptest::prelude::*;
use serde_json::{Value, json};

const EVENTS: [&str; 7] =
    ["SessionStart", "UserPromptSubmit", "PreToolUse", "PostToolUse", "PostToolBatch", "Stop", "SessionEnd"];

/// Stop calls two of them.
const CALLS: usize = EVENTS.len() + 1;

fn forms() -> [Form; 2] {
    [Form::Shared, Form::Exec("/opt/my tools/\"x\"/cpw".into())]
}

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/settings");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    assert!(files.len() >= 30, "{}", files.len());
    files
}

fn show(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// As the client reads it. Depth and lone surrogates are beyond serde: `None`.
fn parse(bytes: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(bytes).unwrap().trim_start_matches('\u{FEFF}');
    if text.trim().is_empty() { Some(json!({})) } else { serde_json::from_str(text).ok() }
}

/// What the client demands of a file lest it ignores it or an entry of it.
fn assert_valid_for_the_client(settings: &Value) {
    for event in EVENTS {
        for group in settings["hooks"][event].as_array().unwrap() {
            for handler in group["hooks"].as_array().unwrap() {
                let kind = handler["type"].as_str().unwrap();
                assert!(kind != "command" || handler["command"].is_string(), "{handler}");
                assert!(handler.get("timeout").is_none_or(|t| t.as_f64().unwrap() > 0.0), "{handler}");
            }
        }
    }
}

/// The value without cpw's groups, and with the containers gone that this leaves empty unless `before` has them.
fn without_ours(after: &Value, before: &Value, form: &Form) -> Value {
    let ours: Value = serde_json::from_slice(&install(None, form).unwrap()).unwrap();
    let mut value = after.clone();
    let hooks = value["hooks"].as_object_mut().unwrap();
    for event in EVENTS {
        let groups = hooks[event].as_array_mut().unwrap();
        for own in ours["hooks"][event].as_array().unwrap() {
            let at = groups.iter().position(|g| g == own).expect(event);
            groups.remove(at);
        }
        if groups.is_empty() && before["hooks"].get(event).is_none() {
            hooks.remove(event);
        }
    }
    if hooks.is_empty() && before.get("hooks").is_none() {
        value.as_object_mut().unwrap().remove("hooks");
    }
    value
}

fn check_round_trip(name: &str, before: &[u8], form: &Form) {
    let after = install(Some(before), form).unwrap_or_else(|e| panic!("{name}: {e}\n{}", show(before)));
    assert_eq!(show(&install(Some(&after), form).unwrap()), show(&after), "{name}: twice is not once");
    assert_eq!(wired(&after).unwrap().len(), CALLS, "{name}\n{}", show(&after));
    if let (Some(a), Some(b)) = (parse(&after), parse(before)) {
        assert_valid_for_the_client(&a);
        assert_eq!(without_ours(&a, &b, form), b, "{name}");
    }
    let back = uninstall(&after).unwrap().unwrap_or_else(|| panic!("{name}: removed\n{}", show(&after)));
    assert_eq!(show(&back), show(before), "{name}: not restored from\n{}", show(&after));
    assert_eq!(uninstall(before).unwrap().as_deref(), Some(before), "{name}: nothing to take out");
}

#[test]
fn real_shapes_are_wired_once_and_restored_to_the_byte() {
    for (name, before) in corpus() {
        for form in forms() {
            check_round_trip(&name, &before, &form);
        }
    }
}

/// Wired in any order with the hooks, the status line goes with them or alone, and leaves what was there to the byte.
fn check_line(name: &str, before: &[u8], form: &Form) {
    let Ok(after) = wire_line(Some(before), form) else {
        // What is refused is left alone by everything else, too.
        assert_eq!(show(&unwire_line(before).unwrap().unwrap()), show(before), "{name}");
        return;
    };
    if status_line(before).unwrap() == Some(StatusLine::ByHand) {
        assert_eq!(after, before, "{name}");
        return;
    }
    assert_eq!(status_line(&after).unwrap(), Some(StatusLine::Ours), "{name}");
    assert_eq!(show(&wire_line(Some(&after), form).unwrap()), show(&after), "{name}: twice is not once");
    for other in forms() {
        let moved = wire_line(Some(&after), &other).unwrap();
        assert_eq!(show(&moved), show(&wire_line(Some(before), &other).unwrap()), "{name}: moved");
    }
    assert_eq!(show(&unwire_line(&after).unwrap().unwrap()), show(before), "{name}: not restored");
    let hooks_first = wire_line(Some(&install(Some(before), form).unwrap()), form).unwrap();
    let line_first = install(Some(&after), form).unwrap();
    for both in [hooks_first, line_first] {
        assert_eq!(wired(&both).unwrap().len(), CALLS, "{name}");
        assert_eq!(show(&uninstall(&both).unwrap().unwrap()), show(before), "{name}: not restored from both");
        let hooks = unwire_line(&both).unwrap().unwrap();
        assert_eq!(show(&hooks), show(&install(Some(before), form).unwrap()), "{name}: the line alone");
    }
    let (Some(after), Some(before)) = (parse(&after), parse(before)) else { return };
    let mut others = after.clone();
    let old = before.get("statusLine");
    match old {
        None => drop(others.as_object_mut().unwrap().remove("statusLine")),
        Some(line) => others["statusLine"]["command"] = line["command"].clone(),
    }
    assert_eq!(others, before, "{name}: something else has changed");
    let line = after["statusLine"]["command"].as_str().unwrap();
    assert!(line.ends_with(old.map_or("; exit 0", |old| old["command"].as_str().unwrap())), "{name}: {line}");
}

#[test]
fn a_status_line_is_put_in_and_comes_out_to_the_byte() {
    for (name, before) in corpus() {
        for form in forms() {
            check_line(&name, &before, &form);
        }
    }
    for form in forms() {
        let made = wire_line(None, &form).unwrap();
        assert_eq!(unwire_line(&made).unwrap(), None);
        let both = install(Some(&made), &form).unwrap();
        assert_eq!(uninstall(&both).unwrap(), None, "{}", show(&both));
    }
}

#[test]
fn a_status_line_that_cpw_cannot_wrap_is_refused_with_its_place() {
    for (text, column, word) in [
        (r#"{"statusLine": "mine"}"#, 16, "object"),
        (r#"{"statusLine": null}"#, 16, "object"),
        (r#"{"statusLine": {"type": "static", "text": "x"}}"#, 25, "not \"command\""),
        (r#"{"statusLine": {"command": "x"}}"#, 16, "no \"type\""),
        (r#"{"statusLine": {"type": "command"}}"#, 16, "no \"command\""),
        (r#"{"statusLine": {"type": "command", "command": 3}}"#, 47, "not a text"),
        (r#"{"statusLine": {"type": "command", "command": "\uD800"}}"#, 47, "not a text"),
        (r#"{"statusLine": {"type": "command", "type": "command"}}"#, 36, "twice"),
    ] {
        let refused = wire_line(Some(text.as_bytes()), &Form::Shared).unwrap_err();
        assert_eq!((refused.line, refused.column), (1, column), "{text}: {refused}");
        assert!(refused.what.contains(word), "{text}: {refused}");
        // The hooks do not mind.
        let after = install(Some(text.as_bytes()), &Form::Shared).unwrap();
        assert_eq!(show(&uninstall(&after).unwrap().unwrap()), text);
    }
}

/// What others do to a wrapped line in between.
#[test]
fn edits_of_others_to_the_status_line_survive() {
    let before =
        "{\n  \"statusLine\": {\n    \"type\": \"command\",\n    \"command\": \"date \\u00e4 '+%H'\"\n  }\n}\n";
    let after = show(&wire_line(Some(before.as_bytes()), &Form::Shared).unwrap());
    // Another key, in front and behind.
    let edited = after.replace("\"type\": \"command\",", "\"padding\": 2,\n    \"type\": \"command\",");
    let back = show(&uninstall(edited.as_bytes()).unwrap().unwrap());
    assert_eq!(back, before.replace("\"type\"", "\"padding\": 2,\n    \"type\""));
    // Formatted anew: the bytes are another tool's, the value is the one of before.
    let pretty = serde_json::to_string(&parse(after.as_bytes()).unwrap()).unwrap();
    let back = uninstall(pretty.as_bytes()).unwrap().unwrap();
    assert_eq!(parse(&back), parse(before.as_bytes()));
    // Somebody else's line in its place is theirs.
    let theirs = before.replace("date ", "beep ");
    assert_eq!(show(&uninstall(theirs.as_bytes()).unwrap().unwrap()), theirs);
    // Ours, and something behind it that somebody has added: what was wrapped comes back.
    let longer = after.replace("'+%H'\"\n", "'+%H' && beep\"\n");
    assert_ne!(longer, after);
    let back = parse(&uninstall(longer.as_bytes()).unwrap().unwrap()).unwrap();
    assert_eq!(back["statusLine"]["command"], "date ä '+%H'");
}

/// The lines as the client runs them: with cpw, and where it is missing.
#[test]
fn a_wired_status_line_runs_with_cpw_and_without() {
    use std::os::unix::fs::PermissionsExt;
    let tmp = tempfile::tempdir().unwrap();
    let [bin, empty] = ["my 'own' bin", "empty"].map(|name| tmp.path().join(name));
    std::fs::create_dir(&bin).unwrap();
    std::fs::create_dir(&empty).unwrap();
    let stub = bin.join("cpw");
    std::fs::write(&stub, "#!/bin/sh\nfor word; do printf '[%s]\\n' \"$word\"; done\n").unwrap();
    std::fs::set_permissions(&stub, std::fs::Permissions::from_mode(0o755)).unwrap();
    let gone = Form::Exec(empty.join("cpw").to_str().unwrap().into());
    let here = Form::Exec(stub.to_str().unwrap().into());
    let shells = ["/bin/sh", "/bin/dash", "/bin/bash", "/bin/busybox"];
    for shell in shells.into_iter().filter(|shell| std::path::Path::new(shell).exists()) {
        for own in [None, Some("echo \"it's\" 'a \"line\"' # mine"), Some("printf 'one\\n'; echo 'two'")] {
            let file = own.map(|own| json!({"statusLine": {"type": "command", "command": own}}).to_string());
            let run = |form: &Form, path: &std::path::Path| {
                let wired = parse(&wire_line(file.as_deref().map(str::as_bytes), form).unwrap()).unwrap();
                let mut command = std::process::Command::new(shell);
                command.args(shell.ends_with("busybox").then_some("sh"));
                command.args(["-c", wired["statusLine"]["command"].as_str().unwrap()]);
                let out = command.env_clear().env("PATH", path).output().unwrap();
                assert!(out.status.success() && out.stderr.is_empty(), "{shell}: {out:?}");
                show(&out.stdout)
            };
            let called = own.map_or("[statusline]\n".to_owned(), |own| format!("[statusline]\n[--wrap]\n[{own}]\n"));
            assert_eq!(run(&Form::Shared, &bin), called, "{shell}");
            assert_eq!(run(&here, &empty), called, "{shell}");
            let alone = match own {
                None => "",
                Some(own) if own.starts_with("echo") => "it's a \"line\"\n",
                Some(_) => "one\ntwo\n",
            };
            assert_eq!(run(&Form::Shared, &empty), alone, "{shell}");
            assert_eq!(run(&gone, &empty), alone, "{shell}");
        }
    }
}

#[test]
fn another_program_of_that_name_and_a_call_that_does_more_are_not_ours() {
    for command in [
        "/opt/copywatch/cpw watch ./src --notify",
        "CI=1 cpw post-tool-use",
        "cpw post-tool-use --log /tmp/mine",
        "cpw stop > /tmp/mine.log",
        "cpw stop >/tmp/mine.log",
        "cpw stop 2>&1 | tee mine.log",
    ] {
        let theirs = json!({"hooks": {"Stop": [{"hooks": [{"type": "command", "command": command}]}]}}).to_string();
        assert_eq!(uninstall(theirs.as_bytes()).unwrap().as_deref(), Some(theirs.as_bytes()), "{command}");
        let both = install(Some(theirs.as_bytes()), &Form::Shared).unwrap();
        assert_eq!(show(&uninstall(&both).unwrap().unwrap()), theirs, "{command}");
    }
    for command in ["CPW_LOG=debug cpw stop", "exec /opt/bin/cpw stop --new-flag", "cpw stop 2>/dev/null"] {
        let ours = json!({"hooks": {"Stop": [{"hooks": [{"type": "command", "command": command}]}]}}).to_string();
        assert!(!show(&uninstall(ours.as_bytes()).unwrap().unwrap_or_default()).contains(command), "{command}");
    }
}

#[test]
fn a_new_file_goes_as_it_came_and_shows_the_wiring_by_hand() {
    for form in forms() {
        let made = install(None, &form).unwrap();
        assert_valid_for_the_client(&parse(&made).unwrap());
        assert_eq!(install(Some(&made), &form).unwrap(), made);
        assert_eq!(uninstall(&made).unwrap(), None);
    }
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks.example.json");
    let example = std::fs::read_to_string(example).unwrap();
    assert_eq!(example, show(&install(None, &Form::Shared).unwrap()), "hooks.example.json shows another wiring");
}

#[test]
fn the_wiring_is_the_one_that_the_hooks_are_built_for() {
    let shared = parse(&install(None, &Form::Shared).unwrap()).unwrap();
    let local = parse(&install(None, &Form::Exec("/bin/cpw".into())).unwrap()).unwrap();
    for (event, index, args, timeout, matcher) in [
        ("SessionStart", 0, &["session-start"][..], 10, Value::Null),
        ("UserPromptSubmit", 0, &["user-prompt-submit"], 10, Value::Null),
        ("PreToolUse", 0, &["pre-tool-use"], 600, json!("*")),
        ("PostToolUse", 0, &["post-tool-use", "--batched"], 10, json!("*")),
        ("PostToolBatch", 0, &["post-tool-batch"], 10, Value::Null),
        ("Stop", 0, &["stop"], 86_400, Value::Null),
        ("Stop", 1, &["watch"], 86_400, Value::Null),
        ("SessionEnd", 0, &["session-end"], 5, Value::Null),
    ] {
        for settings in [&shared, &local] {
            let group = &settings["hooks"][event][index];
            assert_eq!(group["matcher"], matcher, "{event}");
            assert_eq!(group["hooks"][0]["timeout"], timeout, "{event}");
        }
        let command = shared["hooks"][event][index]["hooks"][0]["command"].as_str().unwrap();
        assert!(command.ends_with(&format!("; exec cpw {}", args.join(" "))), "{command}");
        assert_eq!(local["hooks"][event][index]["hooks"][0]["args"], json!(args));
        // The client runs only the watcher beside the session.
        assert_eq!(shared["hooks"][event][index]["hooks"][0]["asyncRewake"] == json!(true), args == ["watch"]);
    }
    assert_eq!(shared["hooks"].as_object().unwrap().len(), EVENTS.len());
    assert_eq!(shared["hooks"]["Stop"][0]["hooks"][0]["statusMessage"], "cpw: waiting for workers");
}

/// The shell lines as the client runs them: `sh -c`, which is dash or bash or another.
#[test]
fn the_shared_form_calls_cpw_and_is_silent_without_it() {
    use std::os::unix::fs::PermissionsExt;
    let tmp = tempfile::tempdir().unwrap();
    let stub = tmp.path().join("cpw");
    std::fs::write(&stub, "#!/bin/sh\necho \"$0 $*\"\nexit 2\n").unwrap();
    std::fs::set_permissions(&stub, std::fs::Permissions::from_mode(0o755)).unwrap();
    let empty = tmp.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let settings = parse(&install(None, &Form::Shared).unwrap()).unwrap();
    let shells = ["/bin/sh", "/bin/dash", "/bin/bash", "/bin/busybox"];
    for shell in shells.into_iter().filter(|shell| std::path::Path::new(shell).exists()) {
        for event in EVENTS {
            let line = settings["hooks"][event][0]["hooks"][0]["command"].as_str().unwrap();
            let run = |path: &std::path::Path| {
                let mut command = std::process::Command::new(shell);
                command.args(shell.ends_with("busybox").then_some("sh")).args(["-c", line]);
                command.env_clear().env("PATH", path).output().unwrap()
            };
            let there = run(tmp.path());
            let called = format!("{} {}\n", stub.display(), line.rsplit_once("exec cpw ").unwrap().1);
            assert_eq!((there.status.code(), show(&there.stdout)), (Some(2), called), "{shell}");
            let missing = run(&empty);
            assert!(missing.status.success() && missing.stdout.is_empty() && missing.stderr.is_empty(), "{shell}");
        }
    }
}

#[test]
fn edits_of_others_between_install_and_uninstall_survive() {
    for (name, before) in corpus() {
        for form in forms() {
            let after = show(&install(Some(&before), &form).unwrap());
            // Another tool adds its handler behind ours, in our own group.
            let call = after.find("pre-tool-use").unwrap();
            let end = call + after[call..].find('}').unwrap() + 1;
            let edited = format!("{}, {{\"type\":\"command\",\"command\":\"other\"}}{}", &after[..end], &after[end..]);
            let back = uninstall(edited.as_bytes()).unwrap().unwrap();
            assert_eq!(wired(&back).unwrap(), [], "{name}");
            let Some(mut value) = parse(&back) else { continue };
            let groups = value["hooks"]["PreToolUse"].as_array_mut().unwrap();
            let kept = json!({"matcher": "*", "hooks": [{"type": "command", "command": "other"}]});
            assert_eq!(groups.pop(), Some(kept), "{name}\n{}", show(&back));
        }
    }
    // Around a file that cpw made: another key keeps it, and only that key stays.
    let made = show(&install(None, &Form::Shared).unwrap());
    let edited = made.replacen("{\n", "{\n  \"model\": \"opus\",\n", 1);
    assert_eq!(show(&uninstall(edited.as_bytes()).unwrap().unwrap()), "{\n  \"model\": \"opus\"\n}\n");
    let edited = format!("{},\n  \"model\": \"opus\"\n}}\n", made.strip_suffix("\n}\n").unwrap());
    assert_eq!(show(&uninstall(edited.as_bytes()).unwrap().unwrap()), "{\n  \"model\": \"opus\"\n}\n");
}

#[test]
fn a_file_that_another_tool_formatted_anew_still_loses_only_our_entries() {
    for (name, before) in corpus() {
        let Some(value) = parse(&install(Some(&before), &Form::Shared).unwrap()) else { continue };
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            let back = uninstall(text.as_bytes()).unwrap().unwrap();
            assert_eq!(wired(&back).unwrap(), [], "{name}");
            let mut expected = parse(&before).unwrap();
            // What was empty before may be gone with our entries: the one thing that the layout no longer tells.
            if let Some(hooks) = expected.get_mut("hooks").and_then(Value::as_object_mut) {
                hooks.retain(|_, list| list != &json!([]));
            }
            if expected.get("hooks") == Some(&json!({})) {
                expected.as_object_mut().unwrap().remove("hooks");
            }
            assert_eq!(parse(&back).unwrap(), expected, "{name}");
        }
    }
}

#[test]
fn other_forms_of_ours_are_replaced_where_they_stand() {
    for (name, before) in corpus() {
        let [shared, local] = forms();
        let moved = install(Some(&before), &shared).unwrap();
        let moved = install(Some(&moved), &Form::Exec("/old/place/cpw".into())).unwrap();
        let moved = install(Some(&moved), &local).unwrap();
        assert_eq!(show(&moved), show(&install(Some(&before), &local).unwrap()), "{name}");
    }
    let old = r#"{
  "hooks": {
    "SessionStart": [{"hooks": [{"type": "command", "command": "cpw", "args": ["session-start"]}]}],
    "PreToolUse": [
      {"matcher": "Bash", "hooks": [{"type": "command", "command": "cpw pre-tool-use"}, {"type": "command", "command": "x"}]},
      {"matcher": "*", "hooks": [{"type": "command", "command": "a"}]}
    ],
    "Stop": [
      {"hooks": [{"type": "command", "command": "\"/opt/cpw\" stop"}, {"type": "command", "command": "beep"}]},
      {"hooks": [{"type": "command", "command": "CPW_LOG=debug cpw stop"}]}
    ]
  }
}
"#;
    let new = parse(&install(Some(old.as_bytes()), &Form::Shared).unwrap()).unwrap();
    let ours = parse(&install(None, &Form::Shared).unwrap()).unwrap();
    assert_eq!(new["hooks"]["SessionStart"], ours["hooks"]["SessionStart"]);
    let first = json!({"matcher": "Bash", "hooks": [{"type": "command", "command": "x"}]});
    let second = json!({"matcher": "*", "hooks": [{"type": "command", "command": "a"}]});
    assert_eq!(new["hooks"]["PreToolUse"], json!([first, second, ours["hooks"]["PreToolUse"][0]]));
    let beep = json!({"type": "command", "command": "beep"});
    let stop = &ours["hooks"]["Stop"];
    assert_eq!(new["hooks"]["Stop"], json!([{"hooks": [stop[0]["hooks"][0], beep]}, stop[1]]));
}

/// What an older cpw has wired lacks events, and the second call of Stop.
#[test]
fn an_older_wiring_is_completed_and_taken_out_whole() {
    let whole = install(None, &Form::Shared).unwrap();
    let mut older = parse(&whole).unwrap();
    older["hooks"]["Stop"].as_array_mut().unwrap().pop();
    for event in ["SessionStart", "SessionEnd"] {
        older["hooks"].as_object_mut().unwrap().remove(event);
    }
    let older = serde_json::to_string_pretty(&older).unwrap() + "\n";
    let new = install(Some(older.as_bytes()), &Form::Shared).unwrap();
    assert_eq!(parse(&new), parse(&whole), "{}", show(&new));
    assert_eq!(install(Some(&new), &Form::Shared).unwrap(), new);
    assert_eq!(uninstall(&new).unwrap(), None, "{}", show(&new));
    assert_eq!(uninstall(older.as_bytes()).unwrap(), None);
}

#[test]
fn the_style_of_the_file_is_kept() {
    let tabs = show(&install(Some(&std::fs::read("tests/settings/tabs.json").unwrap()), &Form::Shared).unwrap());
    assert!(
        tabs.contains("\n\t\t\"Stop\": [\n\t\t\t{\n\t\t\t\t\"hooks\": [\n\t\t\t\t\t{\n\t\t\t\t\t\t\"type\""),
        "{tabs}"
    );
    for name in ["crlf.json", "crlf-no-hooks.json", "crlf-bom.json"] {
        let after =
            show(&install(Some(&std::fs::read(format!("tests/settings/{name}")).unwrap()), &Form::Shared).unwrap());
        assert_eq!(after.matches('\n').count(), after.matches("\r\n").count(), "{after:?}");
    }
    for name in ["minified.json", "minified-no-hooks.json", "empty-hooks-minified.json"] {
        let before = std::fs::read(format!("tests/settings/{name}")).unwrap();
        let after = show(&install(Some(&before), &forms()[1]).unwrap());
        assert_eq!(after.trim_end().lines().count(), 1, "{after}");
        assert!(!after.contains("\": ") && !after.contains(", "), "{after}");
    }
}

#[test]
fn what_cannot_be_edited_safely_is_refused_with_its_place() {
    for (text, line, column, word) in [
        ("// mine\n{}", 1, 1, "comment"),
        ("{\n  /* x */ \"a\": 1\n}", 2, 3, "comment"),
        ("{\n  \"a\": 1, // x\n  \"b\": 2\n}", 2, 11, "comment"),
        ("{\n  \"a\": [1, 2,],\n}", 2, 13, "comma"),
        ("{\"a\": 1,}", 1, 8, "comma"),
        ("{\"ä\": 1 \"b\": 2}", 1, 9, "','"),
        ("{'a': 1}", 1, 2, "double quotes"),
        ("{a: 1}", 1, 2, "double quotes"),
        ("{\"a\": 01}", 1, 8, "','"),
        ("{\"a\": +1}", 1, 7, "value"),
        ("{\"a\": NaN}", 1, 7, "value"),
        ("{\"a\": 1.}", 1, 9, "digit"),
        ("{\"a\": \"x\ny\"}", 1, 9, "line break"),
        ("{\"a\": \"\\x\"}", 1, 8, "escape"),
        ("{\"a\": \"\\u12g4\"}", 1, 8, "escape"),
        ("{\"a\": \"x}", 1, 7, "does not end"),
        ("{\"a\": 1", 1, 8, "ends"),
        ("{} {}", 1, 4, "behind the end"),
        ("[]", 1, 1, "object"),
        ("null", 1, 1, "object"),
        ("\u{FEFF}{\"a\" 1}", 1, 6, "':'"),
        ("{\"a\": 1, \"\\u0061\": 2}", 1, 10, "twice"),
        ("{\"hooks\": {}, \"hooks\": {}}", 1, 15, "twice"),
        ("{\"hooks\": {\"Stop\": [], \"Stop\": []}}", 1, 24, "twice"),
        ("{\"hooks\": []}", 1, 11, "object"),
        ("{\"hooks\": null}", 1, 11, "object"),
    ] {
        for result in [install(Some(text.as_bytes()), &Form::Shared).err(), uninstall(text.as_bytes()).err()] {
            let refused = result.unwrap_or_else(|| panic!("accepted: {text}"));
            assert_eq!((refused.line, refused.column), (line, column), "{text}: {refused}");
            assert!(refused.what.contains(word), "{text}: {refused}");
        }
    }
    // Of the events that cpw is added to, also what the client would refuse.
    for (text, column) in [
        (r#"{"hooks": {"Stop": {}}}"#, 20),
        (r#"{"hooks": {"Stop": [1]}}"#, 21),
        (r#"{"hooks": {"Stop": [{"matcher": ""}]}}"#, 21),
        (r#"{"hooks": {"Stop": [{"hooks": {}}]}}"#, 31),
        (r#"{"hooks": {"Stop": [{"hooks": ["x"]}]}}"#, 32),
        (r#"{"hooks": {"Stop": [{"hooks": [{"type": 1, "type": 2}]}]}}"#, 44),
    ] {
        let refused = install(Some(text.as_bytes()), &Form::Shared).expect_err(text);
        assert_eq!((refused.line, refused.column), (1, column), "{text}: {refused}");
    }
    let refused = install(Some(b"{\n  \"a\": \"\xFF\"}"), &Form::Shared).unwrap_err();
    assert_eq!((refused.line, refused.column), (2, 9));
}

/// JSON text in any layout: white space at each place that allows some.
fn layout(value: &Value, spaces: &mut impl Iterator<Item = &'static str>, out: &mut String) {
    let mut space = |out: &mut String| out.push_str(spaces.next().unwrap());
    let (open, close, items): (_, _, Vec<(Option<&String>, &Value)>) = match value {
        Value::Object(o) => ('{', '}', o.iter().map(|(k, v)| (Some(k), v)).collect()),
        Value::Array(a) => ('[', ']', a.iter().map(|v| (None, v)).collect()),
        plain => return out.push_str(&plain.to_string()),
    };
    out.push(open);
    space(out);
    for (i, (key, item)) in items.iter().enumerate() {
        if i > 0 {
            out.push(',');
            out.push_str(spaces.next().unwrap());
        }
        if let Some(key) = key {
            out.push_str(&Value::from(key.as_str()).to_string());
            out.push_str(spaces.next().unwrap());
            out.push(':');
            out.push_str(spaces.next().unwrap());
        }
        layout(item, spaces, out);
        out.push_str(spaces.next().unwrap());
    }
    out.push(close);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[ -~äß\u{1F47E}\\n\"\\\\]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec(("[a-z\"ä]{1,4}", inner), 0..3).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn any_settings() -> impl Strategy<Value = Value> {
    let handler = prop_oneof![
        Just(json!({"type": "command", "command": "beep"})),
        Just(json!({"type": "command", "command": "cpw", "args": ["status"], "timeout": 3})),
        Just(json!({"command": "cpw stop || reboot", "type": "command"})),
    ];
    let group = (prop::option::of(prop_oneof!["\\*", "", "Bash"]), prop::collection::vec(handler, 0..3)).prop_map(
        |(matcher, handlers)| match matcher {
            Some(matcher) => json!({"matcher": matcher, "hooks": handlers}),
            None => json!({"hooks": handlers}),
        },
    );
    let event = prop_oneof![
        prop::sample::select(EVENTS.to_vec()),
        prop::sample::select(vec!["Notification", "SubagentStop", "New"]),
    ];
    let hooks = prop::collection::vec((event, prop::collection::vec(group, 0..3)), 0..5)
        .prop_map(|events| Value::Object(events.into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect()));
    let others = prop::collection::vec(("[a-z]{1,6}", any_json()), 0..4);
    (others, prop::option::of((0..4_usize, hooks))).prop_map(|(others, hooks)| {
        let mut members: Vec<(String, Value)> = others.into_iter().filter(|(k, _)| k != "hooks").collect();
        if let Some((at, hooks)) = hooks {
            members.insert(at.min(members.len()), ("hooks".into(), hooks));
        }
        Value::Object(members.into_iter().collect())
    })
}

proptest! {
    // A failure is printed whole; nothing is written into the source tree.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_settings_in_any_layout_are_wired_once_and_restored_to_the_byte(
        value in any_settings(),
        spaces in prop::collection::vec(
            prop::sample::select(vec!["", "", " ", "\n", "\n  ", "\r\n\t", "\n\n    ", "  ", "\t"]), 1..40),
        pretty in any::<Option<bool>>(),
        ends in prop::sample::select(vec![("", ""), ("", "\n"), ("\u{FEFF}", "\r\n"), ("\n ", " \n\n")]),
        form in prop::sample::select(forms().to_vec()),
    ) {
        let body = match pretty {
            Some(true) => serde_json::to_string_pretty(&value).unwrap(),
            Some(false) => value.to_string(),
            None => {
                let mut body = String::new();
                layout(&value, &mut spaces.into_iter().cycle(), &mut body);
                body
            }
        };
        let before = format!("{}{body}{}", ends.0, ends.1);
        check_round_trip("generated", before.as_bytes(), &form);
    }

    #[test]
    fn no_bytes_make_it_fail_other_than_by_refusing(bytes in prop::collection::vec(
        prop::sample::select(b"{}[]\":,\\ \n\t/hooksStp019.eu-\xC3\xA4".to_vec()), 0..40)) {
        if let Ok(after) = install(Some(&bytes), &Form::Shared) {
            prop_assert_eq!(uninstall(&after).unwrap(), Some(bytes));
        }
    }
}
