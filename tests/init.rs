//! `cpw init` as a whole process where the system gives it no room: nothing of the user's is lost, nothing is left beside it,
//! and the message says what to do.

#![cfg(target_os = "linux")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::process::Output;

use support::world::{World, program};

fn says(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_full_disk_leaves_everything_as_it_was() {
    let world = World::new();
    let before = format!("{{\"env\": {{\"A\": \"{}\"}}}}\n", "x".repeat(8000));
    for flags in ["", "--statusline"] {
        let file = world.write(".claude/settings.json", &before);
        let mut command = world.command("/bin/bash");
        // Blocks of 1024 bytes: the new settings do not fit, nor does what they were.
        command.args(["-c", "ulimit -f 4; exec \"$0\" init $1"]).arg(program()).arg(flags);
        let out = command.output().unwrap();
        assert!(matches!(out.status.code(), Some(1 | 3)), "{out:?}");
        assert!(says(&out).contains("File too large"), "{}", says(&out));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
        let left: Vec<_> = std::fs::read_dir(file.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["settings.json"], "{}", says(&out));
    }
}

#[test]
fn where_nothing_can_be_written_that_is_said() {
    let world = World::new();
    let out = world.cpw(&["init"]).current_dir("/proc").output().unwrap();
    assert_eq!(out.status.code(), Some(3), "{out:?}");
    assert!(says(&out).contains("/proc/.claude") && says(&out).contains("hint: nothing was changed"), "{}", says(&out));
}
