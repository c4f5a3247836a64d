//! `cpw demo`: it tells the whole story, with the real hooks and workers; and whatever becomes of it, nothing that it made or
//! started is left, and nothing of the user's is touched.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::world::{World, program, wait_for};

const LIMIT: Duration = Duration::from_mins(1);

/// In a session of Claude Code's, in a folder where nothing can be written, with hooks switched off.
fn demo(world: &World, args: &[&str]) -> Command {
    let mut command = world.cpw(&["demo"]);
    command.args(args).current_dir("/proc");
    for (name, value) in [("CLAUDECODE", "1"), ("CLAUDE_CODE_SESSION_ID", "s1"), ("CPW_DISABLE", "1"), ("CPW_RUN", "r")]
    {
        command.env(name, value);
    }
    command
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// Nothing where it was played, and nothing of the user's.
fn assert_clean(world: &World) {
    for folder in ["tmp", "project", "home", "state"] {
        assert_eq!(names(&world.path(folder)), [""; 0], "{folder}");
    }
    let left = world.sweep(Duration::from_secs(5));
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn it_tells_the_story_and_leaves_nothing() {
    let world = World::new();
    let out = demo(&world, &[]).output().unwrap();
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut at = 0;
    for fact in [
        "> Analyze api.py, db.py and ui.py and write report.md",
        "you see cpw: rule analyze started 4 tasks",
        "the model is told cpw has started 4 tasks beside this conversation: api.py, db.py, ui.py, checks.",
        "the model Read(api.py)",
        "held the call for",
        "the model Write(report.md)",
        "# Report Three files were looked at. + + ## Facts",
        "+ api.py: 3 lines, TODO marks: 1",
        "+ ui.py: 5 lines, TODO marks: 2",
        "were put into this call's content",
        "The model wants to stop, while a task still runs",
        "inside the hook, which costs no model request",
        "has nothing new, and lets it stop",
        "4 tasks done by",
        "cpw init wires the hooks",
    ] {
        let found = words[at..].find(fact).unwrap_or_else(|| panic!("{fact}: not said, or too early\n{said}"));
        at += found + fact.len();
    }
    for news in ["done: api.py: \"api.py: 3 lines", "done: db.py:", "done: ui.py:", "done: checks: \"12 checks"] {
        assert_eq!(words.matches(news).count(), 1, "{news}\n{said}");
    }
    assert!(
        !said.contains('\x1b') && said.lines().all(|l| l.chars().count() <= 80 || !l.trim().contains(' ')),
        "{said}"
    );
    assert_clean(&world);
}

/// Plays it until the model reads, and interrupts it there. What it has said.
fn interrupted(world: &World, args: &[&str], signal: Signal) -> String {
    let mut child = demo(world, args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("Read(api.py)") {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "it ended");
    }
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
    let status = wait_for(LIMIT, || child.try_wait().unwrap()).expect("it ends");
    assert_eq!(status.code(), Some(130), "{signal}");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("nothing of the demonstration is left running"), "{said}");
    let mut rest = String::new();
    lines.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn whoever_ends_it_finds_nothing_left() {
    let world = World::new();
    interrupted(&world, &[], Signal::SIGTERM);
    assert_clean(&world);
}

#[test]
fn a_folder_that_is_kept_can_be_looked_at() {
    let world = World::new();
    let said = interrupted(&world, &["--keep"], Signal::SIGINT);
    let command =
        |begins: &str| said.lines().map(str::trim).find(|l| l.starts_with(begins)).unwrap_or_else(|| panic!("{said}"));
    let status = world.command("/bin/sh").args(["-c", command("cd ")]).output().unwrap();
    let shown = String::from_utf8_lossy(&status.stdout);
    assert!(shown.contains("analyze"), "{shown}{}", String::from_utf8_lossy(&status.stderr));
    // Looking at an open run finishes what was left: that is to be waited for before it can be removed.
    let wait = command("cd ").replace("cpw status", "cpw wait --run --timeout 60s");
    world.command("/bin/sh").args(["-c", &wait]).output().unwrap();
    let is_over = || world.processes().is_empty().then_some(());
    wait_for(LIMIT, is_over).expect("the workers leave");
    assert!(world.command("/bin/sh").args(["-c", command("rm -r ")]).status().unwrap().success());
    assert_clean(&world);
}

#[test]
fn it_ends_when_nobody_reads_on() {
    let world = World::new();
    let mut child = demo(&world, &[]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let status = wait_for(LIMIT, || child.try_wait().unwrap()).expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert_clean(&world);
}

/// A limit on the size of files that the plan reaches.
#[test]
fn a_step_that_fails_is_named_with_the_reason() {
    let world = World::new();
    let mut command = world.command("/bin/bash");
    command.args(["-c", "ulimit -f 2; exec \"$0\" demo"]).arg(program());
    let out = command.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("the demonstration failed at \"You type a prompt\"") && said.contains("cpw doctor"),
        "{said}"
    );
    assert_clean(&world);
}

#[test]
fn where_it_cannot_be_played_it_says_so() {
    let world = World::new();
    let out = demo(&world, &[]).env("TMPDIR", "/proc/none").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && said.contains("/proc/none"), "{said}");
    let out = demo(&world, &[]).env("CPW_DEPTH", "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && said.contains("inside a task") && said.contains("hint: "), "{said}");
    assert_clean(&world);
}
