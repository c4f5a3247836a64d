//! `cpw allow`: shows what a project's config could run, and approves exactly the bytes that were shown.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::base::exit::{Exit, Wrong};
use crate::base::hex;
use crate::base::text::{for_terminal, one_line};
use crate::cmd::above::below_client;
use crate::model::{config, describe, json};
use crate::store::home::State;
use crate::store::trust::{self, Trust};
use crate::store::{file, place, project};
use crate::sys::spawn;
use crate::ui::{ask, print};

const EXAMPLES: &str = "Examples:
  cpw allow          show, ask, approve
  cpw allow --yes    approve without asking, in a script or in CI

Shows what .claude/cpw.json could run, and what changed since you last approved it, and asks. The approval is for these exact
bytes: any later change needs a new one. It refuses to work inside Claude Code: only a person approves.

Exit code: 0 it is approved · 1 you said no · 3 there is nothing to approve, nobody to ask, or a client above";

/// How long to look for the shortest way to tell what has changed.
const PATIENCE: Duration = Duration::from_secs(1);

/// Approve the project's config, so that its rules may start work
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Approve without asking
    #[arg(long, short)]
    pub yes: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if let Some(why) = below_client() {
        return Err(refusal(&why).into());
    }
    let config = project_config()?;
    let state = State::open()?;
    let answer = if args.yes { Answer::Yes } else { Answer::Ask(&ask_person) };
    allow(&state, &config, &answer, &mut |line| print::out(line))
}

fn refusal(why: &str) -> Wrong {
    let hint = "run it yourself, in a terminal outside Claude Code";
    Wrong::with_hint(format!("cpw allow does not work inside Claude Code ({why}): only a person approves"), hint)
}

/// The config of the project that the current directory belongs to, by the path that it is approved under.
pub(crate) fn project_config() -> anyhow::Result<PathBuf> {
    Ok(trust::config_path(&project_root()?)?)
}

/// The project that the current directory belongs to.
pub(crate) fn project_root() -> anyhow::Result<PathBuf> {
    let cwd = std::env::current_dir().context("cannot tell the current directory")?;
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let root = project::find(&cwd, home.as_deref())
        .with_context(|| format!("cannot look for the project around {}", cwd.display()))?;
    // Root's own approvals and switches would lie in the folders of the user whose home it was lent.
    place::refuse_lent_root(&root)?;
    Ok(root)
}

/// Where the answer comes from.
enum Answer<'a> {
    Yes,
    /// `None`: nobody can be asked.
    Ask(&'a dyn Fn() -> Option<bool>),
}

fn ask_person() -> Option<bool> {
    // What went into a pipe was not shown to anybody.
    if !std::io::stdout().is_terminal() {
        return None;
    }
    ask::confirm("Approve?").ok().flatten()
}

fn allow(state: &State, config: &Path, answer: &Answer, say: &mut dyn FnMut(String)) -> anyhow::Result<Exit> {
    let name = one_line(&config.to_string_lossy(), 500);
    let bytes = file::read(config, project::MAX_CONFIG).with_context(|| format!("cannot read {name}"))?;
    let Some(bytes) = bytes else {
        return Err(Wrong::with_hint(format!("there is no {name}"), "cpw init writes one to start from").into());
    };
    let could_run = review(config, &bytes).map_err(|mistakes| {
        let what = format!("{name} has mistakes:\n{}", mistakes.trim_end());
        Wrong::with_hint(what, "mend it, then run cpw allow again; `cpw schema config` describes the format")
    })?;
    // A record that cannot be read counts as none: the approval writes it anew.
    if Trust::of(state, config, &hex::sha256(&bytes)).is_ok_and(|trust| trust == Trust::Approved) {
        say(format!("{name} is approved already, as it is."));
        return Ok(Exit::Ok);
    }
    say(format!("{name} could run, with your rights:"));
    for line in could_run {
        say(format!("  {}", for_terminal(&line)).trim_end().into());
    }
    match trust::last_approved(state, config).ok().flatten() {
        Some(before) if before.config.as_bytes() == bytes => {
            say(format!("It is as you approved it at {}; you have denied it since.", one_line(&before.at, 40)));
        }
        Some(before) => {
            say(format!("Changed since you approved it at {}:", one_line(&before.at, 40)));
            say(changes(&before.config, &String::from_utf8_lossy(&bytes)));
        }
        None => say("It was never approved before.".into()),
    }
    let yes = match answer {
        Answer::Yes => true,
        Answer::Ask(ask) => ask().ok_or_else(|| {
            let hint = "read what it could run above, then: cpw allow --yes";
            Wrong::with_hint("there is no terminal to show this on and to ask", hint)
        })?,
    };
    if !yes {
        say("Not approved; nothing changed.".into());
        return Ok(Exit::Failed);
    }
    trust::approve(state, config, &bytes)?;
    say("Approved. Prompts that match its rules start work from now on; cpw deny takes that back.".into());
    Ok(Exit::Ok)
}

/// What a config could run, line by line; or everything that is wrong with it.
fn review(config: &Path, bytes: &[u8]) -> Result<Vec<String>, String> {
    let parsed = config::check(bytes).map_err(|problems| json::list(&problems))?;
    let written = serde_json::from_slice(bytes).unwrap_or_default();
    let project = file::folder_of(file::folder_of(config));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = |name: &str| {
        let found = spawn::resolve_program(name.as_ref(), &path, project, project);
        found.map(|path| path.to_string_lossy().into_owned()).map_err(|e| e.reason)
    };
    let is_project_file = |name: &str, cwd: &str| {
        let path = project.join(cwd).join(name);
        path.is_file() && (path.starts_with(project) || path.canonicalize().is_ok_and(|p| p.starts_with(project)))
    };
    let machine = describe::Machine { program: &program, is_project_file: &is_project_file };
    Ok(describe::what_could_run(&parsed, &written, &machine).lines().map(str::to_owned).collect())
}

/// The lines that differ, with two around them.
fn changes(before: &str, after: &str) -> String {
    // Of two that have little in common all is shown at last; to find the least takes a time that grows with both.
    let diff = similar::TextDiff::configure().timeout(PATIENCE).diff_lines(before, after);
    let mut lines = Vec::new();
    for hunk in diff.unified_diff().context_radius(2).iter_hunks() {
        for change in hunk.iter_changes() {
            let text = change.value().trim_end_matches(['\r', '\n']);
            lines.push(format!("  {} {}", change.tag(), for_terminal(text)));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        tmp: tempfile::TempDir,
        state: State,
        config: PathBuf,
    }

    impl Scene {
        fn new(config: &str) -> Self {
            let tmp = tempfile::tempdir().unwrap();
            let state = State::open_at(&tmp.path().join("state")).unwrap();
            std::fs::create_dir_all(tmp.path().join("project/.claude")).unwrap();
            let path = trust::config_path(&tmp.path().join("project")).unwrap();
            std::fs::write(&path, config).unwrap();
            Scene { tmp, state, config: path }
        }

        fn allow(&self, answer: &Answer) -> (anyhow::Result<Exit>, String) {
            let mut said = String::new();
            let result = allow(&self.state, &self.config, answer, &mut |line| {
                said.push_str(&line);
                said.push('\n');
            });
            (result, said)
        }

        fn trust(&self) -> Trust {
            let bytes = std::fs::read(&self.config).unwrap();
            Trust::of(&self.state, &self.config, &hex::sha256(&bytes)).unwrap()
        }
    }

    const CONFIG_A: &str = r#"{"version": 1,
"rules": [{"name": "first", "when": {"prompt": "a"}, "tasks": [{"id": "t", "run": ["true"]}]}]}"#;
    const CONFIG_B: &str = r#"{"version": 1,
"rules": [{"name": "second", "when": {"prompt": "a"}, "tasks": [{"id": "t", "run": ["true"]}]}]}"#;
    const CONFIG_EVIL: &str = r#"{"version": 1,
"rules": [{"name": "evil", "when": {"prompt": "a"}, "tasks": [{"id": "t", "run": ["false"]}]}]}"#;

    #[test]
    fn exactly_what_was_shown_is_approved() {
        let scene = Scene::new(CONFIG_A);
        let (result, said) = scene.allow(&Answer::Yes);
        assert_eq!(result.unwrap(), Exit::Ok);
        assert!(said.contains("never approved") && said.contains("rule first"), "{said}");
        assert_eq!(scene.trust(), Trust::Approved);
        assert!(scene.allow(&Answer::Ask(&|| panic!("asked"))).1.contains("already"));
        // Bytes that are put there while the person reads are not the ones that get approved.
        std::fs::write(&scene.config, CONFIG_B).unwrap();
        let swap = || {
            std::fs::write(&scene.config, CONFIG_EVIL).unwrap();
            Some(true)
        };
        let (result, said) = scene.allow(&Answer::Ask(&swap));
        assert_eq!(result.unwrap(), Exit::Ok);
        assert!(said.contains("first") && said.contains("second"), "{said}");
        assert!(matches!(scene.trust(), Trust::Changed { .. }));
        std::fs::write(&scene.config, CONFIG_B).unwrap();
        assert_eq!(scene.trust(), Trust::Approved);
    }

    #[test]
    fn a_no_and_nobody_to_ask_approve_nothing() {
        let scene = Scene::new("{\"version\": 1}");
        assert_eq!(scene.allow(&Answer::Ask(&|| Some(false))).0.unwrap(), Exit::Failed);
        let error = scene.allow(&Answer::Ask(&|| None)).0.unwrap_err();
        assert!(error.downcast::<Wrong>().unwrap().hint.unwrap().contains("--yes"));
        assert_eq!(scene.trust(), Trust::Unknown);
    }

    #[test]
    fn a_denied_config_is_shown_and_asked_for_again() {
        let scene = Scene::new("{\"version\": 1}");
        scene.allow(&Answer::Yes).0.unwrap();
        trust::deny(&scene.state, &scene.config).unwrap();
        let (result, said) = scene.allow(&Answer::Ask(&|| Some(true)));
        assert_eq!(result.unwrap(), Exit::Ok);
        assert!(said.contains("denied it since") && !said.contains("Changed"), "{said}");
        assert_eq!(scene.trust(), Trust::Approved);
    }

    #[test]
    fn a_missing_or_broken_config_is_named() {
        let scene = Scene::new("{");
        let error = scene.allow(&Answer::Yes).0.unwrap_err().to_string();
        assert!(error.contains("cpw.json has mistakes"), "{error}");
        std::fs::remove_file(&scene.config).unwrap();
        let error = scene.allow(&Answer::Yes).0.unwrap_err().to_string();
        assert!(error.contains("there is no") && error.contains("cpw.json"), "{error}");
        assert!(scene.tmp.path().join("state").exists());
        assert!(!scene.tmp.path().join("state/trust").exists());
    }

    #[test]
    fn what_a_config_says_cannot_steer_the_terminal() {
        let scene = Scene::new("{\"a\": \"\u{202E}x\"}");
        trust::approve(&scene.state, &scene.config, b"{\x1b[2J}").unwrap();
        let (_, said) = scene.allow(&Answer::Yes);
        assert!(!said.contains(['\x1b', '\u{202E}']), "{said:?}");
    }
}
