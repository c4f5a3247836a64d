//! README is true: every command in a block marked `sh` is run as it stands, in the order of the page, by one shell that
//! stops at the first failure; every config shown is accepted and runs; every path named is there. Blocks marked `text` need
//! a person and are not run.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use support::world::{World, program};

/// What the two commands stand for that cannot run inside the tests: building takes minutes and, in one of them, is what
/// runs this test. Every argument is looked at, so that another command in README fails.
const CARGO: &str = r#"
case "$*" in
"run --locked --release -- "*) shift 4; exec cpw "$@" ;;
"install --path . --locked") test -f Cargo.lock && test -x "$BUILT" ;;
*) echo "cargo $* is not known to the test of README" >&2; exit 1 ;;
esac
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn readme() -> String {
    fs::read_to_string(root().join("README.md")).unwrap()
}

/// The blocks between fences with this mark.
fn blocks(text: &str, mark: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(name)) => open = Some((name == mark, String::new())),
            (Some((wanted, block)), Some(_)) => {
                if *wanted {
                    found.push(std::mem::take(block));
                }
                open = None;
            }
            (Some((_, block)), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block of README does not end");
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// A script in a folder that comes first on PATH.
fn put(folder: &Path, name: &str, body: &str) {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn shell(world: &World, folder: &Path, script: &str) -> String {
    let bin = world.path("bin");
    put(&bin, "cargo", CARGO);
    let mut path = bin.into_os_string();
    let environment = world.environment();
    path.push(":");
    path.push(&environment.iter().find(|(name, _)| *name == "PATH").unwrap().1);
    let mut command = Command::new("sh");
    command.args(["-eux", "-c", script]).current_dir(folder).stdin(std::process::Stdio::null());
    command.env_clear().envs(environment).env("PATH", path).env("BUILT", program());
    let out = command.output().unwrap();
    let (said, trace) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{}\n{said}\n{trace}", out.status);
    said.into_owned()
}

#[test]
fn every_command_of_readme_works() {
    let world = World::new();
    let repository = world.path("repository");
    for folder in ["src", "examples", ".ci"] {
        copy(&root().join(folder), &repository.join(folder));
    }
    fs::copy(root().join("Cargo.lock"), repository.join("Cargo.lock")).unwrap();
    // What it does is to run this test.
    assert_eq!(fs::metadata(root().join(".ci/test")).unwrap().permissions().mode() & 0o111, 0o111);
    put(&repository.join(".ci"), "test", "echo \"all tests: $*\"\n");

    let commands = blocks(&readme(), "sh");
    assert_eq!(commands[0].lines().count(), 2, "two commands do all the set-up: {}", commands[0]);
    let said = shell(&world, &repository, &commands.concat());

    for part in [
        "run ok: all tasks are done",
        "all tests: ",
        "rule analyze: matches",
        "Approved.",
        "3 done",
        "built 4 parts",
        "cpw is off",
        "cpw's hooks are out of",
    ] {
        assert!(said.contains(part), "{part} is missing in\n{said}");
    }
}

#[test]
fn the_rule_that_readme_explains_runs() {
    let world = World::new();
    let configs = blocks(&readme(), "json");
    assert_eq!(configs.len(), 1, "the rule that is explained");
    for name in ["api.py", "db.py"] {
        world.write(name, "x = 1  # TODO\n");
    }
    world.write(".claude/cpw.json", &configs[0]);
    let prompt = "Please analyze api.py and db.py";
    let said =
        shell(&world, &world.project(), &format!("cpw allow --yes; cpw run --prompt '{prompt}'; cpw result total"));
    assert!(said.contains("3 done") && said.trim_end().ends_with('2'), "{said}");
}

#[test]
fn what_readme_names_is_there() {
    let text = readme();
    let named = ["hooks.example.json", "examples/files.json", ".ci/run", ".ci/test", ".ci/nightly", "LICENSE"];
    for path in named {
        assert!(text.contains(path), "README does not mention {path}");
        assert!(root().join(path).exists(), "README names {path}, which is not there");
    }
}

#[test]
fn every_command_is_in_readme() {
    let text = readme();
    let hidden = ["help", "schema"];
    let definition = cpw::cli::definition();
    let missing: Vec<&str> = definition
        .get_subcommands()
        .map(clap::Command::get_name)
        .filter(|name| !hidden.contains(name) && !text.contains(&format!("cpw {name}")))
        .collect();
    assert!(missing.is_empty(), "README says nothing about {missing:?}");
}
