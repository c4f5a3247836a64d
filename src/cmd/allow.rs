//! `cpw allow`: shows what a project's config could run, and approves exactly the bytes that were shown.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::base::env;
use crate::base::exit::{Exit, Wrong};
use crate::base::hex;
use crate::base::text::{for_terminal, one_line};
use crate::model::{config, describe, json};
use crate::store::home::State;
use crate::store::trust::{self, Trust};
use crate::store::{file, project};
use crate::sys::process;
use crate::ui::{ask, print};

const EXAMPLES: &str = "Examples:
  cpw allow          show, ask, approve
  cpw allow --yes    approve without asking, in a script or in CI

Shows what .claude/cpw.json could run, and what changed since you last approved it, and asks. The approval is for these exact
bytes: any later change needs a new one. It refuses to work inside Claude Code: only a person approves.

Exit code: 0 it is approved · 1 you said no · 3 there is nothing to approve, nobody to ask, or a client above";

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
    project::find(&cwd, home.as_deref())
        .with_context(|| format!("cannot look for the project around {}", cwd.display()))
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
    let could_run = review(&bytes).map_err(|mistakes| {
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
fn review(bytes: &[u8]) -> Result<Vec<String>, String> {
    match config::check(bytes) {
        Ok(config) => Ok(describe::what_could_run(&config).lines().map(str::to_owned).collect()),
        Err(problems) => Err(json::list(&problems)),
    }
}

/// The lines that differ, with two around them.
fn changes(before: &str, after: &str) -> String {
    let diff = similar::TextDiff::from_lines(before, after);
    let mut lines = Vec::new();
    for hunk in diff.unified_diff().context_radius(2).iter_hunks() {
        for change in hunk.iter_changes() {
            let text = change.value().trim_end_matches(['\r', '\n']);
            lines.push(format!("  {} {}", change.tag(), for_terminal(text)));
        }
    }
    lines.join("\n")
}

/// Variables that the client sets for what it starts. Not everything named `CLAUDE_CODE_*`: some of those are settings of the
/// user's own shell, and an editor's terminal has others (`CLAUDE_CODE_SSE_PORT`) while a person types there.
const MARKS: [&str; 7] = [
    env::CLAUDECODE,
    env::CLAUDE_SESSION_ID,
    env::CLAUDE_ENTRYPOINT,
    "CLAUDE_CODE_CHILD_SESSION",
    "CLAUDE_CODE_MESSAGING_SOCKET",
    env::CLAUDE_PID,
    env::RUN,
];

/// Whether this process runs below a client or a worker, and how that shows. A process that fakes its surroundings is
/// outside of what can be promised: it has the user's rights and could write the approval itself.
pub(crate) fn below_client() -> Option<String> {
    if let Some(mark) = MARKS.into_iter().find(|name| std::env::var_os(name).is_some()) {
        return Some(format!("{mark} is set"));
    }
    ancestors().find_map(|ancestor| ancestor.client())
}

/// A process above this one, as far as it can be seen.
struct Ancestor {
    pid: i32,
    comm: String,
    exe: String,
    argv: Vec<String>,
    /// Names of variables.
    environment: Vec<String>,
}

impl Ancestor {
    fn client(&self) -> Option<String> {
        let is_claude = |name: &str| name.rsplit('/').next() == Some("claude");
        let named = is_claude(&self.comm)
            || is_claude(&self.exe)
            || self.exe.contains("/claude/versions/")
            // The program, or the script that node runs.
            || self.argv.iter().take(2).any(|arg| is_claude(arg) || arg.contains("/claude-code/"));
        if named {
            return Some(format!("process {} above is claude", self.pid));
        }
        let marked = |name: &&str| self.environment.iter().any(|n| n == *name);
        MARKS.iter().find(|name| marked(name)).map(|mark| format!("process {} above has {mark} set", self.pid))
    }
}

/// The processes above this one, nearest first. Where there is no /proc: none, and the environment alone decides.
fn ancestors() -> impl Iterator<Item = Ancestor> {
    process::ancestors().into_iter().map(|above| {
        let exe = std::fs::read_link(format!("/proc/{}/exe", above.pid)).unwrap_or_default();
        let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
        Ancestor {
            pid: above.pid,
            comm: above.comm,
            exe: exe.to_string_lossy().into_owned(),
            argv: above.argv.iter().map(|arg| text(arg)).collect(),
            environment: process::environ_of(above.pid).iter().map(|(name, _)| text(name)).collect(),
        }
    })
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

    #[test]
    fn a_client_above_is_recognised_however_it_was_started() {
        let ancestor = |comm: &str, exe: &str, argv: &[&str], environment: &[&str]| {
            let list = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect();
            Ancestor { pid: 7, comm: comm.into(), exe: exe.into(), argv: list(argv), environment: list(environment) }
        };
        for client in [
            ancestor("claude", "", &[], &[]),
            ancestor("2.1.329", "/home/u/.local/share/claude/versions/2.1.329", &[], &[]),
            ancestor("node", "/usr/bin/node", &["/usr/bin/node", "/usr/bin/claude"], &[]),
            ancestor("node", "/usr/bin/node", &["node", "/x/node_modules/@anthropic-ai/claude-code/cli.js"], &[]),
            ancestor("sh", "/bin/dash", &["sh", "-c", "cpw allow"], &["PATH", "CLAUDECODE"]),
            ancestor("sh", "/bin/dash", &["sh"], &["CPW_RUN"]),
        ] {
            assert!(client.client().is_some(), "{} {:?}", client.comm, client.argv);
        }
        for person in [
            ancestor("bash", "/bin/bash", &["-bash"], &["CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_USE_BEDROCK"]),
            ancestor("vim", "/usr/bin/vim", &["vim", "notes", "claude"], &["NOTE"]),
            ancestor("make", "/usr/bin/make", &["make", "claude.md"], &[]),
        ] {
            assert_eq!(person.client(), None, "{}", person.comm);
        }
    }

    #[test]
    fn the_walk_upwards_finds_the_parent() {
        if !Path::new("/proc/self/stat").exists() {
            eprintln!("skipped: there is no /proc here");
            return;
        }
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        assert_eq!(ancestors().next().map(|a| a.pid), Some(parent));
    }
}
