//! `cpw doctor`: which client is here, how it treats a prompt that is typed while Stop holds, and whether everything that
//! this cpw wants to hear of is wired.

use std::ffi::OsStr;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::actor::claude::PROGRAM;
use crate::base::env;
use crate::cmd::doctor::{Check, Finding};
use crate::model::settings;
use crate::store::file;
use crate::sys::program::{self, Program};
use crate::sys::spawn;

/// How long the client may take to tell its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// The oldest client that was seen to tell Stop at once that the user has typed, and the newest that was seen not to.
const AT_ONCE: [u32; 3] = [2, 1, 329];
const AFTERWARDS: [u32; 3] = [2, 1, 197];

/// A client's version.
type Version = [u32; 3];

/// How the client that is here treats a prompt that is typed while Stop holds.
pub(super) fn check(project: &Path) -> Check {
    const NAME: &str = "client";
    match version(project) {
        Some(version) => judge(version),
        None => Check::new(NAME, Finding::Note, format!("no {PROGRAM} on PATH told its version")),
    }
}

fn judge(version: Version) -> Check {
    const NAME: &str = "client";
    const ESC: &str =
        "press Esc to end a hold at once, or set a short conductor.hold: an idle session is woken by the rest";
    let text = |what: &str| format!("{PROGRAM} {}.{}.{}: {what}", version[0], version[1], version[2]);
    if version >= AT_ONCE {
        Check::new(NAME, Finding::Ok, text("a prompt that is typed while Stop holds ends the hold"))
    } else if version <= AFTERWARDS {
        let what = "a prompt that is typed while Stop holds is seen only after the hold";
        Check::new(NAME, Finding::Note, text(what)).remedy(ESC)
    } else {
        let what = "it was not tried whether a prompt that is typed while Stop holds ends the hold";
        Check::new(NAME, Finding::Note, text(what)).remedy(ESC)
    }
}

/// The version of the client that has called this command, else of the one on PATH.
fn version(project: &Path) -> Option<Version> {
    let said = std::env::var(env::AI_AGENT).ok();
    let inside = said.and_then(|agent| parse(agent.strip_prefix("claude-code_")?, &['-', '_']));
    inside.or_else(|| parse(&ask(project)?, &['.', ' ']))
}

/// `2-1-329_harness`, `2.1.329 (Claude Code)`.
fn parse(text: &str, between: &[char]) -> Option<Version> {
    let mut numbers = text.trim().split(between).map(|n| n.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

fn ask(project: &Path) -> Option<String> {
    let path = std::env::var_os("PATH")?;
    let client = spawn::resolve_program(OsStr::new(PROGRAM), &path, project, project).ok()?;
    let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let argv = [PROGRAM, "--version"].map(OsString::from);
    let until = Instant::now() + PATIENCE;
    let cwd = Path::new("/");
    let ran = program::run(Program {
        path: &client,
        argv: &argv,
        env: &env,
        cwd,
        stdin: None,
        stdout: None,
        until,
        stop: None,
    });
    Some(String::from_utf8_lossy(&ran.ok()?.stdout).into_owned())
}

/// A settings file that an older cpw has wired: some calls are missing.
pub(super) fn older_wiring(files: &[PathBuf], max: u64) -> Option<Check> {
    let missing = |path: &PathBuf| {
        let bytes = file::read(path, max).ok()??;
        let missing = settings::missing(&bytes).ok()?;
        (!missing.is_empty()).then(|| format!("{} does not call cpw for: {}", path.display(), missing.join(", ")))
    };
    let lines: Vec<String> = files.iter().filter_map(missing).collect();
    (!lines.is_empty()).then(|| {
        Check::new("hooks", Finding::Warn, lines.join("\n"))
            .remedy("`cpw init` again (with the --local or --user that it was wired by) completes it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_both_places() {
        assert_eq!(parse("2-1-329_harness", &['-', '_']), Some([2, 1, 329]));
        assert_eq!(parse("2.1.197 (Claude Code)\n", &['.', ' ']), Some([2, 1, 197]));
        for odd in ["", "2.1", "two.1.3", "2.1.x", "Claude Code"] {
            assert_eq!(parse(odd, &['.', ' ']), None, "{odd}");
        }
    }

    #[test]
    fn each_version_is_told_what_a_hold_is_like() {
        for (version, finding, says) in [
            ([2, 1, 197], Finding::Note, "only after the hold"),
            ([1, 9, 999], Finding::Note, "only after the hold"),
            ([2, 1, 250], Finding::Note, "not tried"),
            ([2, 1, 329], Finding::Ok, "ends the hold"),
            ([3, 0, 0], Finding::Ok, "ends the hold"),
        ] {
            let check = judge(version);
            assert!(check.finding == finding && check.text.contains(says), "{check:?}");
            assert_eq!(check.remedy.is_some(), finding == Finding::Note);
        }
    }

    #[test]
    fn a_wiring_that_lacks_calls_is_named_with_them() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("settings.json");
        let whole = settings::install(None, &settings::Form::Shared).unwrap();
        std::fs::write(&path, &whole).unwrap();
        assert_eq!(older_wiring(std::slice::from_ref(&path), 1 << 20), None);
        let older = String::from_utf8(whole).unwrap().replace("cpw watch", "beep");
        std::fs::write(&path, older).unwrap();
        let check = older_wiring(&[path, tmp.path().join("none")], 1 << 20).unwrap();
        assert!(check.text.ends_with("does not call cpw for: watch"), "{check:?}");
    }
}
