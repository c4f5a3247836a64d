//! `cpw doctor`: what keeps cpw from working here, and what to do about it. A list of small checks; none of them changes
//! anything but a file of its own that it takes away again.

mod left;
mod wiring;

use std::path::Path;

use serde_json::json;

use crate::actor::{crew, planner};
use crate::base::env;
use crate::base::exit::Exit;
use crate::base::hex;
use crate::base::text::one_line;
use crate::cmd::{checkup, find, hold};
use crate::logic::view::View;
use crate::model::{self, config};
use crate::store::file;
use crate::store::home;
use crate::store::hooklog;
use crate::store::project;
use crate::store::run::{self, RunDir, RunError};
use crate::store::switch;
use crate::store::trust::{self, Trust};
use crate::sys::bell;
use crate::sys::dir::Dir;
use crate::sys::fsinfo::{self, Locks};
use crate::ui::paint::Paint;
use crate::ui::print;

/// What helps where locks do not work.
const ELSEWHERE: &str = "name a folder on a local file system as \"runs_dir\" in .claude/cpw.json (then `cpw allow`) or in your \
                         own config.json";

/// Runs that are looked at, newest first.
const MAX_RUNS: usize = 200;

/// Look for what keeps cpw from working here, or explain one run
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw doctor               in a project's folder\n  \
    cpw doctor 20261121-10   one run: its log, its workers, what is wrong with it and what can be done\n  \
    cpw doctor --json        for programs\n\n\
    Nothing is changed. One of the hook calls in the settings is made as it stands there, for a session that there is not; of a \
    project's own settings only what `cpw init` writes: looking runs nothing that came with a project.\n\
    Exit code: 0 nothing is broken (warnings may be shown) · 1 something is")]
pub struct Args {
    /// The run: its id or a unique beginning of it
    run: Option<String>,
    /// Print one JSON object: `broken`, and `checks` with `name`, `finding` (ok, note, warn, error), `text` and `remedy`
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, but not as well as it could.
    Warn,
    /// It does not work.
    Error,
}

impl Finding {
    fn word(self) -> &'static str {
        match self {
            Finding::Ok => "ok",
            Finding::Note => "note",
            Finding::Warn => "warn",
            Finding::Error => "error",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at, in a word or two.
    pub name: &'static str,
    /// How it came out.
    pub finding: Finding,
    /// What was found.
    pub text: String,
    /// What to do about it, if there is something to do.
    pub remedy: Option<String>,
}

impl Check {
    /// A check without a remedy.
    pub fn new(name: &'static str, finding: Finding, text: impl Into<String>) -> Check {
        Check { name, finding, text: text.into(), remedy: None }
    }

    /// The same with what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Check {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let project = find::project()?;
    let checks = match &args.run {
        None => checks(&project),
        Some(given) => checkup::of(&find::run(&project, Some(given))?),
    };
    let broken = checks.iter().any(|c| c.finding == Finding::Error);
    let exit = if broken { Exit::Failed } else { Exit::Ok };
    if args.json {
        let of = |c: &Check| json!({"name": c.name, "finding": c.finding.word(), "text": c.text, "remedy": c.remedy});
        let all: Vec<_> = checks.iter().map(of).collect();
        print::out(format_args!("{:#}", json!({"version": 1, "broken": broken, "checks": all})));
        return Ok(exit);
    }
    let paint = Paint::for_stdout();
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    for check in &checks {
        let sign = match check.finding {
            Finding::Ok => paint.good("✓"),
            Finding::Note => paint.dim("·"),
            Finding::Warn => paint.warn("!"),
            Finding::Error => paint.bad("✗"),
        };
        let text = check.text.replace('\n', &format!("\n  {:<width$}  ", ""));
        print::out(format_args!("{sign} {:<width$}  {text}", check.name));
        if let Some(remedy) = &check.remedy {
            print::out(format_args!("  {:<width$}  {}", "", paint.bold(format_args!("→ {remedy}"))));
        }
    }
    Ok(exit)
}

/// All checks, in the order in which they are shown.
pub fn checks(project: &Path) -> Vec<Check> {
    let mut out = vec![wiring::on_path(project), switched_off(project), state()];
    out.splice(1..1, wiring::path_into(project));
    let own = home::State::existing().ok().flatten();
    out.push(config(project));
    out.extend(wiring::checks(project));
    out.push(left::last_seen(project, own.as_ref()));
    out.push(hold::check(project));
    out.extend(file_system(project));
    out.push(runs(project));
    out.extend(left::over(project, own.as_ref()));
    out.extend(lost_rewrites(project));
    out.push(hook_errors());
    out
}

fn switched_off(project: &Path) -> Check {
    if env::is_on(std::env::var_os(env::DISABLE).as_deref()) {
        return Check::new("switch", Finding::Warn, format!("{} is set: hooks do nothing", env::DISABLE))
            .remedy(format!("unset {}", env::DISABLE));
    }
    if std::env::var_os(env::DEPTH).is_some() {
        return Check::new("switch", Finding::Note, "below a worker: hooks do nothing here");
    }
    let off = home::State::existing().ok().flatten().is_some_and(|state| switch::is_off(&state, project, None));
    if off {
        return Check::new("switch", Finding::Warn, "cpw is switched off for this project: hooks do nothing")
            .remedy("`cpw on`");
    }
    Check::new("switch", Finding::Ok, "on")
}

fn state() -> Check {
    const NAME: &str = "state";
    match home::State::existing() {
        Ok(Some(state)) => match Dir::open(state.path()).and_then(|dir| fsinfo::flock_works(&dir)) {
            Ok(true) => Check::new(NAME, Finding::Ok, format!("{} is yours alone", state.path().display())),
            Ok(false) => Check::new(NAME, Finding::Error, format!("locks do not work in {}", state.path().display()))
                .remedy(format!("set {} to a folder on a local file system", env::STATE_DIR)),
            Err(e) => Check::new(NAME, Finding::Error, format!("cannot write to {}: {e}", state.path().display()))
                .remedy("make it writable, or set another folder"),
        },
        Ok(None) => Check::new(NAME, Finding::Note, "no state directory yet; it is made when it is needed"),
        Err(e) => Check::new(NAME, Finding::Error, format!("{e:#}"))
            .remedy(format!("hooks do nothing until it is mended; {} names another folder", env::STATE_DIR)),
    }
}

fn config(project: &Path) -> Check {
    const NAME: &str = "config";
    let path = project.join(project::CONFIG);
    match file::read(&path, project::MAX_CONFIG) {
        Ok(None) => Check::new(NAME, Finding::Note, format!("no {}: prompts start nothing here", project::CONFIG))
            .remedy("`cpw init` writes one to begin with"),
        Err(e) => Check::new(NAME, Finding::Error, format!("cannot read {}: {e}", path.display())),
        Ok(Some(bytes)) => match config::check(&bytes) {
            Ok(config) => {
                let n = config.rules.len();
                let rules = if n == 1 { "1 rule".into() } else { format!("{n} rules") };
                approval(project, &bytes, &format!("{}: {rules}", project::CONFIG))
            }
            Err(problems) => {
                Check::new(NAME, Finding::Error, format!("{}:\n{}", project::CONFIG, model::json::list(&problems)))
                    .remedy("mend them, then `cpw allow`; until then prompts start nothing here")
            }
        },
    }
}

/// Whether the rules may start anything.
fn approval(project: &Path, bytes: &[u8], text: &str) -> Check {
    const NAME: &str = "config";
    let trust = || -> anyhow::Result<Trust> {
        let Some(state) = home::State::existing()? else { return Ok(Trust::Unknown) };
        Trust::of(&state, &trust::config_path(project)?, &hex::sha256(bytes))
    };
    let not = |state: &str| {
        Check::new(NAME, Finding::Warn, format!("{text}, {state}: prompts start nothing here"))
            .remedy("`cpw allow` shows what could run and asks")
    };
    match trust() {
        Ok(Trust::Approved) => Check::new(NAME, Finding::Ok, format!("{text}, approved")),
        Ok(Trust::Denied) => not("denied"),
        Ok(Trust::Changed { .. }) => not("changed since it was approved"),
        Ok(Trust::Unknown) => not("not approved"),
        Err(e) => Check::new(NAME, Finding::Error, format!("{text}; its approval cannot be read: {e:#}"))
            .remedy("`cpw allow` writes it anew"),
    }
}

fn file_system(project: &Path) -> Vec<Check> {
    const NAME: &str = "file system";
    let state = home::State::existing().ok().flatten();
    let runs = planner::runs_folder(project, state.as_ref()).unwrap_or_else(|_| run::runs_path(project));
    let path: Vec<&Path> = runs.ancestors().collect();
    let Some(Ok(dir)) = path.iter().find(|p| p.is_dir()).map(Dir::open) else {
        return vec![Check::new(NAME, Finding::Error, format!("cannot open {}", project.display()))];
    };
    let shown = dir.path().display().to_string();
    let mut out = Vec::new();
    out.push(match fsinfo::locks(&dir).and_then(|l| fsinfo::flock_works(&dir).map(|works| (l, works))) {
        Ok((Locks::Refused(refused), _)) => {
            Check::new(NAME, Finding::Error, format!("{shown} is on {refused}: nothing is started there"))
                .remedy(ELSEWHERE)
        }
        Ok((_, false)) => {
            Check::new(NAME, Finding::Error, format!("locks do not work in {shown}: nothing is started there"))
                .remedy(ELSEWHERE)
        }
        Ok((Locks::Tried(kind), true)) => {
            let text = format!("locks work in {shown} on this machine; it is on {kind}");
            Check::new(NAME, Finding::Note, text).remedy("use the project on one machine at a time")
        }
        Ok((Locks::Good, true)) => Check::new(NAME, Finding::Ok, format!("locks work in {shown}")),
        Err(e) => Check::new(NAME, Finding::Error, format!("cannot write to {shown}: {e}"))
            .remedy("runs need a folder there: make it writable"),
    });
    out.push(if bell::works(&dir) {
        Check::new(NAME, Finding::Ok, "waiters are woken by bells")
    } else {
        let text = format!("bells: no FIFO can be made in {shown}; waiting polls, every 10 ms to 1 s");
        Check::new(NAME, Finding::Warn, text).remedy("it works, but costs more: a local file system has them")
    });
    out
}

fn runs(project: &Path) -> Check {
    const NAME: &str = "runs";
    let Ok(ids) = run::list(project) else {
        return Check::new(NAME, Finding::Warn, format!("cannot list {}", run::runs_path(project).display()));
    };
    let (mut orphaned, mut damaged) = (Vec::new(), Vec::new());
    for id in ids.iter().take(MAX_RUNS) {
        let Ok(folder) = RunDir::open(project, id) else { continue };
        match folder.open_view() {
            Ok(hooked) if hooked.view.ended.is_none() && !crew::anybody(&folder, &hooked.view) => {
                orphaned.push(id.to_string());
            }
            Ok(_) | Err(RunError::NoRun(_)) => {}
            Err(_) => damaged.push(id.to_string()),
        }
    }
    if !damaged.is_empty() {
        return Check::new(NAME, Finding::Warn, format!("damaged: {}", damaged.join(", ")))
            .remedy("`cpw doctor RUN` says why and what can be done; nothing new is started from them");
    }
    if !orphaned.is_empty() {
        return Check::new(NAME, Finding::Warn, format!("open without a living worker: {}", orphaned.join(", ")))
            .remedy("`cpw status` starts one that finishes them");
    }
    Check::new(NAME, Finding::Ok, format!("{} here, none left behind", ids.len()))
}

/// Whether another hook has won over merges of the newest runs.
fn lost_rewrites(project: &Path) -> Option<Check> {
    let ids = run::list(project).unwrap_or_default();
    let view = |id| RunDir::open(project, id).and_then(|folder| folder.open_view()).ok().map(|hooked| hooked.view);
    let views: Vec<View> = ids.iter().take(MAX_RUNS).filter_map(view).collect();
    checkup::lost_rewrites(views.iter())
}

fn hook_errors() -> Check {
    const NAME: &str = "hook errors";
    let Some(state) = home::State::existing().ok().flatten() else {
        return Check::new(NAME, Finding::Ok, "none");
    };
    match hooklog::errors(state.path(), 1).first() {
        None => Check::new(NAME, Finding::Ok, "none"),
        Some(last) => {
            let error = one_line(last.error.as_deref().unwrap_or_default(), 200);
            let text = format!("the last at {}, {}: {error}", one_line(&last.ts, 40), one_line(&last.hook, 40));
            Check::new(NAME, Finding::Warn, text)
                .remedy(format!("all in {}", state.path().join(hooklog::NAME).display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(project: &Path, name: &str) -> Check {
        checks(project).into_iter().find(|c| c.name == name).unwrap()
    }

    #[test]
    fn a_broken_config_is_an_error_with_all_its_mistakes() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(of(tmp.path(), "config").finding, Finding::Note);
        std::fs::create_dir(tmp.path().join(".claude")).unwrap();
        std::fs::write(tmp.path().join(project::CONFIG), r#"{"version": 2, "ruels": []}"#).unwrap();
        let check = of(tmp.path(), "config");
        assert_eq!(check.finding, Finding::Error);
        assert!(check.text.contains("$.version") && check.text.contains("$.ruels"), "{}", check.text);
        std::fs::write(tmp.path().join(project::CONFIG), r#"{"version": 1}"#).unwrap();
        let check = of(tmp.path(), "config");
        assert_eq!(check.finding, Finding::Warn, "nobody approved it");
        assert!(check.text.contains("not approved"), "{}", check.text);
    }

    #[test]
    fn nothing_is_left_behind_and_no_run_is_not_a_problem() {
        let tmp = tempfile::tempdir().unwrap();
        assert_eq!(of(tmp.path(), "file system").finding, Finding::Ok);
        assert_eq!(of(tmp.path(), "runs").finding, Finding::Ok);
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
    }
}
