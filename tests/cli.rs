//! The command line as people meet it: every command explains itself with examples that are right, the pages of `cpw help`,
//! manual pages and completions work in the programs that they are for, and docs/cli.md has all of the help.
//!
//! `CPW_BLESS=1 cargo test --locked --test cli` writes docs/cli.md anew.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[path = "support/shell.rs"]
mod shell;
#[cfg(test)]
#[path = "support/skip.rs"]
mod skip;
#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
#[path = "support/world.rs"]
mod world;

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Output;

use clap::Command;
use shell::{Until, calls, understood};
use skip::skip;
use world::World;

/// Columns of the help texts in docs/cli.md.
const WIDTH: usize = 100;

/// Every command with the words that call it, those of commands among them.
fn commands() -> Vec<(String, Command)> {
    fn collect(path: &str, command: &Command, found: &mut Vec<(String, Command)>) {
        for sub in command.get_subcommands().filter(|c| c.get_name() != "help" || path == "cpw") {
            let path = format!("{path} {}", sub.get_name());
            found.push((path.clone(), sub.clone()));
            collect(&path, sub, found);
        }
    }
    let mut definition = cpw::cli::definition().term_width(WIDTH);
    definition.build();
    let mut found = Vec::new();
    collect("cpw", &definition, &mut found);
    found
}

/// The lines of a command's help below its heading of examples.
fn examples(command: &Command) -> Vec<String> {
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let below = text.lines().skip_while(|line| !line.starts_with("Example")).skip(1);
    below.take_while(|line| line.starts_with(' ')).map(str::to_owned).collect()
}

#[test]
fn every_command_has_two_examples_that_it_understands() {
    let all = commands();
    assert!(all.len() > 28, "{}", all.len());
    let mut wrong = String::new();
    for (path, command) in all {
        let lines = examples(&command);
        if lines.len() < 2 {
            writeln!(wrong, "{path} has {} examples", lines.len()).unwrap();
        }
        for line in lines {
            let found = calls(&line, Until::Gap);
            let own: Vec<String> = path.split(' ').map(str::to_owned).collect();
            if !found.iter().any(|words| words.starts_with(&own)) {
                writeln!(wrong, "{path}: no example of it: {line}").unwrap();
            }
            for e in found.iter().filter_map(|words| understood(words).err()) {
                writeln!(wrong, "{path}: {line}: {e}").unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn the_overview_has_every_command_once_in_its_group_and_the_exit_codes() {
    let help = cpw::cli::definition().render_help().to_string();
    assert!(!help.contains("\nOther:"), "cmd::help::GROUPS lacks what stands under Other:\n{help}");
    for command in cpw::cli::definition().get_subcommands() {
        let line = format!("\n  {:<11} ", command.get_name());
        assert_eq!(help.matches(&line).count(), 1, "{}\n{help}", command.get_name());
    }
    let newcomer = help.split("\n\n").nth(2).unwrap();
    for name in ["init", "allow", "plan", "status", "doctor"] {
        assert!(newcomer.contains(&format!("\n  {name} ")), "{name} is not what help begins with:\n{newcomer}");
    }
    assert!(help.contains("\n    3  wrong usage"), "{help}");
    assert_eq!(help.lines().find(|line| line.chars().count() > 80), None);
}

fn said(out: &Output) -> String {
    assert!(out.status.success(), "{}\n{}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout.clone()).unwrap()
}

#[test]
fn help_is_the_help_of_the_command_or_a_page() {
    let world = World::new();
    let cpw = |args: &[&str]| world.cpw(args).output().unwrap();
    for (asked, same) in [
        (&["help"][..], &["--help"][..]),
        (&["help", "run"], &["run", "--help"]),
        (&["help", "lease", "renew"], &["lease", "renew", "--help"]),
        (&["help", "help"], &["help", "--help"]),
    ] {
        assert_eq!(said(&cpw(asked)), said(&cpw(same)), "{asked:?}");
    }
    for (page, part) in [("concepts", "Conductor"), ("files", ".claude/cpw.json"), ("exit-codes", "4  what was waited")]
    {
        assert!(said(&cpw(&["help", page])).contains(part), "{page}");
    }
    let nothing = cpw(&["help", "concept"]);
    assert_eq!(nothing.status.code(), Some(3));
    let why = String::from_utf8(nothing.stderr).unwrap();
    assert!(why.contains("'concepts'") && nothing.stdout.is_empty(), "{why}");
}

fn there_is(program: &str) -> bool {
    let there = ["/usr/local/bin", "/usr/bin", "/bin"].iter().any(|folder| Path::new(folder).join(program).exists());
    if !there {
        skip(program, "completions or manual pages are not tried: it is not installed", "CPW_REQUIRE_SHELLS");
    }
    there
}

/// What a shell says to this script, in a world where `cpw` is on PATH.
fn ask(world: &World, shell: &[&str], script: &str) -> String {
    said(&world.command(shell[0]).args(&shell[1..]).arg(script).output().unwrap())
}

#[test]
fn bash_completes() {
    if !there_is("bash") {
        return;
    }
    let world = World::new();
    let complete = |words: &str, last: usize| {
        let script = format!(
            "source <(cpw completions bash)\nCOMP_WORDS=({words})\nCOMP_CWORD={last}\n\
             _cpw cpw \"${{COMP_WORDS[$COMP_CWORD]}}\" \"${{COMP_WORDS[$COMP_CWORD-1]}}\"\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        ask(&world, &["bash", "--norc", "-c"], &script)
    };
    assert_eq!(complete("cpw che", 1).lines().collect::<Vec<_>>(), ["checkpoint"]);
    assert!(complete("cpw help conc", 2).lines().any(|l| l == "concepts"));
    assert!(complete("cpw run --det", 2).lines().any(|l| l == "--detach"));
    assert!(complete("cpw schema ''", 2).lines().any(|l| l == "plan"));
}

#[test]
fn zsh_takes_the_completion() {
    if !there_is("zsh") {
        return;
    }
    let world = World::new();
    let script = "autoload -Uz compinit && compinit -u -D && eval \"$(cpw completions zsh)\" \
                  && print -- ${_comps[cpw]} $(whence -w _cpw)";
    let heard = ask(&world, &["zsh", "-f", "-c"], script);
    assert_eq!(heard, "_cpw _cpw: function\n");
    let script = said(&world.cpw(&["completions", "zsh"]).output().unwrap());
    assert!(script.starts_with("#compdef cpw\n") && script.contains("'checkpoint:"), "{script}");
}

#[test]
fn fish_completes() {
    if !there_is("fish") {
        return;
    }
    let world = World::new();
    let script = "cpw completions fish | source; complete -C 'cpw che'; complete -C 'cpw run --det'";
    let heard = ask(&world, &["fish", "--no-config", "-c"], script);
    for name in ["checkpoint\t", "--detach\t"] {
        assert!(heard.lines().any(|line| line.starts_with(name)), "{name}: {heard}");
    }
}

#[test]
fn manual_pages_are_read_by_man() {
    if !there_is("man") {
        return;
    }
    let world = World::new();
    let folder = world.path("man1");
    let told = said(&world.cpw(&["man", "--dir", folder.to_str().unwrap()]).output().unwrap());
    let mut pages: Vec<String> =
        fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    pages.sort();
    assert_eq!(pages.len(), commands().len() + 1, "{pages:?}");
    assert!(told.starts_with(&format!("{} pages are in ", pages.len())), "{told}");
    for name in &pages {
        let out =
            world.command("man").env("MANWIDTH", "100").args(["--warnings", "-l"]).arg(folder.join(name)).output();
        let out = out.unwrap();
        let warned = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success() && warned.is_empty(), "{name}: {warned}");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("NAME") && text.contains("OPTIONS"), "{name}: {text}");
    }
    // The lines of examples stand as they were written.
    let run = said(&world.cpw(&["man", "run"]).output().unwrap());
    assert_eq!(run, fs::read_to_string(folder.join("cpw-run.1")).unwrap());
    assert!(run.contains(".SH EXAMPLES\n.nf\n") || run.contains(".nf\n  cpw run plan"), "{run}");
    let none = world.cpw(&["man", "sunshine"]).output().unwrap();
    assert_eq!(none.status.code(), Some(3));
}

/// The page of all help texts.
fn reference() -> String {
    let mut definition = cpw::cli::definition().term_width(WIDTH);
    definition.build();
    let mut page = "# Command line\n\nWhat `cpw --help` and `cpw COMMAND --help` say. This page is written by a test \
                    (`CPW_BLESS=1 cargo test --locked --test cli`).\nThe hooks that Claude Code calls are in [hooks.md](hooks.md).\n"
        .to_owned();
    let mut add = |path: &str, help: String| {
        let lines: Vec<&str> = help.trim_end().lines().map(str::trim_end).collect();
        write!(page, "\n## `{path}`\n\n```text\n{}\n```\n", lines.join("\n")).unwrap();
    };
    add("cpw", definition.render_long_help().to_string());
    for (path, mut command) in commands() {
        add(&path, command.render_long_help().to_string());
    }
    page
}

#[test]
fn the_reference_has_the_help_of_this_version() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md");
    let page = reference();
    if std::env::var_os("CPW_BLESS").is_some() {
        fs::write(&path, page).unwrap();
        return;
    }
    let there = fs::read_to_string(&path).unwrap();
    if let Some((old, new)) = there.lines().zip(page.lines()).find(|(old, new)| old != new) {
        panic!("docs/cli.md is not what the help says (CPW_BLESS=1 writes it):\n- {old}\n+ {new}");
    }
    assert_eq!(there, page, "docs/cli.md has another length");
}
