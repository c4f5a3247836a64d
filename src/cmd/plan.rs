//! Reading plan files, and `cpw plan`: what a prompt would start, and why or why not.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::actor::planner::{self, Asked, Considered, Ignored, Rules};
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::RunId;
use crate::base::text;
use crate::cmd::find;
use crate::model::check::{self, Defaults};
use crate::model::config::{self, Config, Settings};
use crate::model::describe;
use crate::model::json::{self, Problem};
use crate::model::plan::Plan;
use crate::store::file;
use crate::store::home::State;
use crate::store::project::{CONFIG, MAX_CONFIG};
use crate::store::run;
use crate::store::trust::Trust;
use crate::ui::print;

/// The largest plan file that is read, in bytes.
const MAX_PLAN: u64 = 8 * 1024 * 1024;

/// Show what a prompt, or a plan file, would start, and why or why not; starts nothing
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["file", "prompt"]).required(true))]
#[command(after_help = "Examples:\n  \
    cpw plan --prompt \"Analyze api.py, db.py and ui.py\"\n  \
    cpw plan examples/files.json\n  \
    cpw plan --prompt - < prompt.txt")]
pub struct Args {
    /// The prompt, or `-` for stdin
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A plan file
    file: Option<PathBuf>,
    /// Print the plans as JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command: 0 if something would start, 1 if nothing would.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if let Some(file) = &args.file {
        show(&[read(file, run::new_id())?], args.json)?;
        return Ok(Exit::Ok);
    }
    let prompt = prompt_text(args.prompt.as_deref().unwrap_or_default())?;
    let project = find::project()?;
    let (config, note) = any_config(&project)?;
    let cwd = std::env::current_dir()?;
    let asked = Asked { project: &project, cwd: &cwd, prompt: &prompt, session: None };
    let considered = match planner::consider(&config, asked) {
        Ok(considered) => considered,
        Err(why) => {
            print::out(ignored(why));
            return Ok(Exit::Failed);
        }
    };
    let mut plans = Vec::new();
    for Considered { rule, outcome, left_out } in considered {
        let rule = text::one_line(&rule, 64);
        if left_out > 0 {
            print::err(format_args!("rule {rule}: {}", planner::left_out(left_out)));
        }
        match outcome {
            Ok(plan) => {
                if !args.json {
                    print::out(format_args!("rule {rule}: matches"));
                }
                plans.push(plan);
            }
            Err(why) if !args.json => {
                print::out(format_args!("rule {rule}: no: {}", text::for_terminal(&why.to_string())));
            }
            Err(_) => {}
        }
    }
    show(&plans, args.json)?;
    if let Some(note) = note {
        print::err(note);
    }
    Ok(if plans.is_empty() { Exit::Failed } else { Exit::Ok })
}

fn show(plans: &[Plan], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        print::out(serde_json::to_string_pretty(plans)?);
        return Ok(());
    }
    for plan in plans {
        print::out("");
        print::raw(describe::plan_text(plan).as_bytes());
    }
    Ok(())
}

fn ignored(why: Ignored) -> &'static str {
    match why {
        Ignored::Machine => "nothing would start: this prompt was not typed by a person",
        Ignored::Off => "nothing would start: the prompt begins with `!cpw off`",
    }
}

/// The text of `--prompt`, from stdin for `-`.
pub fn prompt_text(given: &str) -> anyhow::Result<String> {
    if given != "-" {
        return Ok(given.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().take(MAX_PLAN).read_to_string(&mut text).context("stdin is not text")?;
    Ok(text)
}

/// The project's config whether it is approved or not: showing what would run runs nothing. Says so where it is not.
fn any_config(project: &Path) -> anyhow::Result<(Config, Option<String>)> {
    let state = State::existing()?;
    match planner::rules(project, state.as_ref())? {
        Rules::Ready(config) => Ok((*config, None)),
        Rules::None => Err(no_config(project)),
        Rules::Broken(problems) => Err(mistakes(project, &problems)),
        Rules::Unapproved { trust, .. } => {
            let bytes = file::read(&project.join(CONFIG), MAX_CONFIG)?.unwrap_or_default();
            let config = config::check(&bytes).map_err(|problems| mistakes(project, &problems))?;
            let user = planner::user_defaults(Some(project))?.unwrap_or_default();
            let state = if trust == Trust::Denied { "denied" } else { "not approved" };
            let note = format!("note: {CONFIG} is {state}, so that nothing of it starts; `cpw allow` approves it");
            Ok((config.with_user_defaults(&user), Some(note)))
        }
    }
}

/// There is no config.
pub fn no_config(project: &Path) -> anyhow::Error {
    let what = format!("{} has no {CONFIG}", project.display());
    Wrong::with_hint(what, "`cpw init` writes one to start from").into()
}

/// The config has mistakes.
pub fn mistakes(project: &Path, problems: &[Problem]) -> anyhow::Error {
    let what = format!("{} has mistakes:\n{}", project.join(CONFIG).display(), json::list(problems).trim_end());
    Wrong::with_hint(what, "`cpw schema config` describes the format").into()
}

/// Reads and checks a plan file for the run `run`.
pub fn read(file: &Path, run: RunId) -> anyhow::Result<Plan> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).and_then(|f| f.take(MAX_PLAN + 1).read_to_end(&mut bytes));
    opened.map_err(|e| {
        Wrong::with_hint(format!("cannot read the plan {}: {e}", file.display()), "give the path of a plan file")
    })?;
    let user = planner::user_defaults(None)?.unwrap_or_default();
    let settings = Settings::default().over(&user.settings);
    let defaults = Defaults { settings: &settings, machine: planner::machine() };
    check::plan_from_person(&bytes, run, &defaults).map_err(|problems| {
        let what = format!("{} is not a plan:\n{}", file.display(), json::list(&problems).trim_end());
        Wrong::with_hint(what, "nothing was started; `cpw schema plan` describes the format").into()
    })
}
