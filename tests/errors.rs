//! docs/errors.md shows what cpw says when something is wrong, exactly: each block of the page begins with a command, which is
//! run here in a scene of its own, and the block is what it said and its exit code. What differs from run to run (folders,
//! run ids, times, processes) is replaced by a fixed value.
//!
//! `CPW_BLESS=1 cargo test --locked --test errors` writes the blocks anew; a new block only needs its first line, and a
//! scene here.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]
#![expect(clippy::too_many_lines, reason = "the list of scenes is as long as the page")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use regex::Regex;
use world::World;

/// A config with one rule, in the form of a script.
const RULE: &str = r#"mkdir .claude; touch a.py b.py; cat > .claude/cpw.json <<'EOF'
{"version": 1, "rules": [{"name": "analyze", "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
"for_each": "files", "tasks": [{"id": "a-{{item.stem}}", "run": ["true"]}]}]}
EOF
"#;

/// A plan of these tasks.
fn plan(tasks: &str) -> String {
    format!("cat > plan.json <<'EOF'\n{{\"version\": 1, \"tasks\": [{tasks}]}}\nEOF\n")
}

/// A run whose task `build` goes on, and `bundle` waits for it.
fn running() -> String {
    let tasks = r#"{"id": "build", "shell": "touch begun; exec sleep 60"}, {"id": "bundle", "run": ["true"], "needs": ["build"]}"#;
    format!("{}cpw run plan.json --detach\nuntil [ -e begun ]; do sleep 0.02; done\n", plan(tasks))
}

const DONE: &str = r#"{"id": "lint", "run": ["true"]}"#;
const FAILED: &str = r#"{"id": "build", "run": ["false"]}, {"id": "test", "run": ["true"], "needs": ["build"]}"#;

/// Tasks that fail, each for the reason that it is called by.
const TASKS: &str = r#"
{"id": "program", "run": ["nosuchprogram"]},
{"id": "script", "run": ["./chek.sh"]},
{"id": "folder", "run": ["true"], "cwd": "nowhere"},
{"id": "worktree", "run": ["true"], "isolate": "worktree"},
{"id": "code", "shell": "echo 'expected 3, got 4' >&2; exit 3"},
{"id": "slow", "run": ["sleep", "60"], "timeout": "100ms"},
{"id": "loud", "shell": "cpw signal --hook stop --exit 2 --message 'look at this'"}"#;

/// What has happened in a project, and what is said there then, in this order. The commands are the first lines of the page's
/// blocks.
fn scenes() -> Vec<(String, Vec<&'static str>)> {
    let mistakes = r#"mkdir .claude; cat > .claude/cpw.json <<'EOF'
{"version": 1, "limits": {"max_worker": 2}, "rules": [{"name": "check", "when": {"prompt": "("},
"tasks": [{"id": "x", "run": "make test", "timeout": "5", "needs": ["y"]}]}]}
EOF
"#;
    let wrong = r#"
{"id": "build", "run": "make"},
{"id": "Build", "run": ["make"], "shell": "make"},
{"id": "test", "timeout": "5 minutes", "needs": ["bild"], "env": {"PATH": "/x"}},
{"id": "../x", "shell": "true"}"#;
    let circle = r#"
{"id": "a", "run": ["true"], "needs": ["b"]}, {"id": "b", "run": ["true"], "needs": ["c"]},
{"id": "c", "run": ["true"], "needs": ["a"]}"#;
    let plans = format!(
        "{}mv plan.json circle.json\n{}printf '{{\"version\": 1,\\n \"tasks\": [\\n' > broken.json",
        plan(circle),
        plan(wrong)
    );
    let copied = "mkdir ../other; cp -r . ../other; cd ..; rm -rf project; mv other project";
    let held = "cpw lease db -- sleep 60 &\nuntil cpw lease --list | grep -q sleep; do sleep 0.02; done";
    let ran = |tasks: &str| format!("{}cpw run plan.json || true\n", plan(tasks));
    vec![
        (
            String::new(),
            vec![
                "cpw allow",
                "HOME=$PWD cpw init",
                "cpw init --user --local",
                "cpw stats",
                "cpw run",
                "cpw wait",
                "cpw wait --run --timeout soon",
                "cpw logs",
                "cpw lease release db",
                "cpw lease db",
                "cpw lease 'my db' -- true",
                "cpw lease db -- nosuch",
                "cpw progress 60",
                "CPW_STATE_DIR=state cpw on",
                "env -u HOME -u CPW_STATE_DIR cpw on",
                "cpw schema plan > /dev/full",
            ],
        ),
        (mistakes.to_owned(), vec!["cpw allow --yes"]),
        (
            r#"mkdir .claude; printf '{\n  "version": 1,\n  "rules": [],\n}\n' > .claude/cpw.json"#.to_owned(),
            vec!["cpw plan --prompt 'Analyze a.py and b.py'"],
        ),
        (
            RULE.to_owned(),
            vec!["cpw allow > shown.txt", "CLAUDECODE=1 cpw allow --yes", "cpw run --prompt 'Analyze a.py and b.py'"],
        ),
        (
            format!("{RULE}cpw allow --yes; echo >> .claude/cpw.json"),
            vec!["cpw run --prompt 'Please analyze a.py and b.py'"],
        ),
        (
            format!("{RULE}cpw allow --yes"),
            vec!["cpw run --prompt 'What does analyze mean?'", "cpw plan --prompt 'What does analyze mean?'"],
        ),
        (r#"mkdir .claude; printf '{\n  "hooks": {\n}\n' > .claude/settings.json"#.to_owned(), vec!["cpw init"]),
        (plans, vec!["cpw run missing.json", "cpw run broken.json", "cpw run plan.json", "cpw run circle.json"]),
        (
            ran(DONE),
            vec![
                "CLAUDECODE=1 cpw run plan.json",
                "cpw status 9999",
                "cpw logs lnt",
                "cpw result lint --apply",
                "cpw retry 2",
                "cpw cancel",
            ],
        ),
        (format!("{0}{0}", ran(DONE)), vec!["cpw status 2"]),
        (ran(FAILED), vec!["cpw result build --path", "cpw resume 2", "cpw wait --task test"]),
        (
            running(),
            vec![
                "cpw logs bu",
                "cpw result build",
                "cpw retry",
                "cpw clean 2",
                "cpw worker --task build",
                "cpw worker --task bundle",
                "cpw adopt 2",
                "cpw wait --task build --timeout 100ms",
                "cpw wait --checkpoint build",
                "cpw wait --verdict deploy",
            ],
        ),
        (held.to_owned(), vec!["cpw lease db --wait 100ms -- ./migrate.sh"]),
        (
            ran(TASKS),
            vec![
                "cpw wait --task program",
                "cpw wait --task script",
                "cpw wait --task folder",
                "cpw wait --task worktree",
                "cpw wait --task code",
                "cpw wait --task slow",
                "cpw wait --task loud",
            ],
        ),
        (
            format!("{}for log in .claude/runs/2*/events.jsonl; do echo nonsense >> \"$log\"; done", ran(DONE)),
            vec!["cpw logs lint"],
        ),
        (format!("{}rm .claude/runs/2*/events.jsonl", ran(DONE)), vec!["cpw retry --detach"]),
        (format!("{}{copied}", ran(DONE)), vec!["cpw cancel --run 2"]),
        ("chmod 777 \"$CPW_STATE_DIR\"".to_owned(), vec!["cpw on"]),
    ]
}

/// What each command of a scene says, with its exit code as the last line.
fn play(setup: &str, commands: &[&str]) -> Vec<String> {
    let world = World::new();
    let shell = |script: &str| {
        let mut shell = world.command("sh");
        shell.args(["-c", script]).env("PATH", format!("{}:/usr/bin:/bin", bin().display()));
        shell
    };
    let nowhere = std::process::Stdio::null;
    let before = shell(setup).stdout(nowhere()).stderr(nowhere()).status().unwrap();
    assert!(before.success(), "{setup}: {before}");
    let say = |command: &&str| {
        let out = shell(&format!("exec 2>&1; {command}")).output().unwrap();
        let said = fixed(&world, &String::from_utf8(out.stdout).unwrap());
        format!("{said}[{}]", out.status.code().unwrap())
    };
    let said = commands.iter().map(say).collect();
    // The sweep waits for those that leave by themselves.
    for (pid, _) in world.processes() {
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    }
    said
}

/// The folder of cpw alone, since beside the built program there may be others.
fn bin() -> PathBuf {
    world::program().parent().unwrap().to_owned()
}

/// The text with what differs from run to run replaced.
fn fixed(world: &World, said: &str) -> String {
    let mut said = said.to_owned();
    for (real, shown) in [
        (world.project(), "/home/you/project"),
        (world.state(), "/home/you/.local/state/cpw"),
        (world.home(), "/home/you"),
    ] {
        said = said.replace(real.to_str().unwrap(), shown);
    }
    let id = Regex::new(r"\b2\d{7}-\d{12}-[0-9a-f]{20}\b").unwrap();
    let mut ids: Vec<String> = id.find_iter(&said).map(|m| m.as_str().to_owned()).collect();
    ids.sort();
    ids.dedup();
    for (n, real) in ids.iter().enumerate() {
        said = said.replace(real, &format!("20260102-030405678901-{n}123456789abcdef0123"));
    }
    for (pattern, shown) in [
        (r"\bprocess \d+", "process 4711"),
        (r"\b\d+(\.\d+)? (ms|s|min|h) ago\b", "5 s ago"),
        (r"for \d+(\.\d+)? (ms|s)\b", "for 5 s"),
        (r"\(byte \d+\)", "(byte 1239)"),
        (r"\btoken \d+\b", "token 2"),
    ] {
        said = Regex::new(pattern).unwrap().replace_all(&said, shown).into_owned();
    }
    said
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md")
}

/// The page in parts: text, and blocks with the command that they begin with.
fn parts(text: &str) -> Vec<(String, Option<String>)> {
    let mut parts = vec![(String::new(), None)];
    for line in text.lines() {
        let open = parts.last().unwrap().1.is_some();
        let (body, command) = parts.last_mut().unwrap();
        match line {
            "```console" => parts.push((String::new(), Some(String::new()))),
            "```" if open => parts.push((String::new(), None)),
            _ => {
                if let Some(command) = command.as_mut().filter(|c| c.is_empty()) {
                    line.strip_prefix("$ ").unwrap_or_else(|| panic!("no command: {line}")).clone_into(command);
                } else {
                    body.push_str(line);
                    body.push('\n');
                }
            }
        }
    }
    parts
}

#[test]
fn every_block_of_the_page_is_what_is_said() {
    let text = fs::read_to_string(page()).unwrap();
    let scenes = scenes();
    let there: BTreeSet<String> = parts(&text).into_iter().filter_map(|(_, command)| command).collect();
    let all = || scenes.iter().flat_map(|(_, commands)| commands);
    let known: BTreeSet<String> = all().map(|command| (*command).to_owned()).collect();
    assert_eq!(known.len(), all().count(), "two scenes have the same command");
    assert_eq!(there, known, "docs/errors.md and the scenes of this test have not the same commands");

    let said: Mutex<BTreeMap<&str, String>> = Mutex::default();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some((setup, commands)) = scenes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let heard = play(setup, commands);
                    said.lock().unwrap().extend(commands.iter().copied().zip(heard));
                }
            });
        }
    });
    let said = said.into_inner().unwrap();
    let mut new = String::new();
    for (body, command) in parts(&text) {
        match command {
            Some(command) => write!(new, "```console\n$ {command}\n{}\n```\n", said[command.as_str()]).unwrap(),
            None => new.push_str(&body),
        }
    }
    if std::env::var_os("CPW_BLESS").is_some() {
        fs::write(page(), new).unwrap();
        return;
    }
    for ((old, command), (new, _)) in parts(&text).into_iter().zip(parts(&new)) {
        assert_eq!(old, new, "docs/errors.md is not what is said (CPW_BLESS=1 writes it): {command:?}");
    }
}

/// What the page promises: a message names what is wrong, and a next step stands in it or behind it.
#[test]
fn no_message_is_bare() {
    let text = fs::read_to_string(page()).unwrap();
    for (body, command) in parts(&text) {
        let Some(command) = command else { continue };
        let code = body.lines().next_back().unwrap_or_default();
        assert!(matches!(code, "[1]" | "[3]" | "[4]" | "[127]"), "{command}: {body}");
        assert!(body.lines().count() >= 2, "{command} says nothing");
        assert!(!body.contains("panicked") && !body.contains("/tmp/") && !body.contains("{name}"), "{command}: {body}");
    }
}
