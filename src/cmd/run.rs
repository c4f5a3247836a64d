//! `cpw run`: starts a run from a terminal and shows it until it ends.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::actor::crew;
use crate::actor::planner::{self, Asked, Rules};
use crate::base::exit::{Exit, Wrong};
use crate::cmd::above::refuse_below_client;
use crate::cmd::find;
use crate::cmd::follow::{self, Followed, Manner};
use crate::cmd::inside;
use crate::model::plan::Plan;
use crate::store::home::State;
use crate::store::run::{self, Origin, Run, RunDir};
use crate::store::trust::Trust;
use crate::sys::signals::{self, Termination};
use crate::ui::print;

/// Run a plan and show its progress until it ends
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").args(["plan", "prompt"]).required(true))]
#[command(after_help = "Examples:\n  \
    cpw run plan.json                      run a plan, progress on the terminal\n  \
    cpw run plan.json -j 2                 at most two tasks at a time\n  \
    cpw run plan.json --detach             start it and return; look with `cpw status`\n  \
    cpw run --prompt 'Analyze a.py, b.py'  what the rules here make of this prompt\n\n\
    Ctrl-C cancels the run and waits for its tasks to end; a second Ctrl-C does not wait. The workers are processes of \
    their own: a terminal that is closed leaves the run going on.\n\n\
    Exit code: 0 every task is done · 1 the run failed · 3 wrong plan, nothing was started · 130 cancelled by Ctrl-C")]
pub struct Args {
    /// The plan: a JSON file with tasks
    plan: Option<PathBuf>,
    /// Run what the project's rules make of this prompt, as if it were typed in a session
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Start it and return at once
    #[arg(long)]
    detach: bool,
    /// Tasks at the same time, at most (instead of the plan's `limits.max_workers`)
    #[arg(short = 'j', long = "jobs", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    jobs: Option<u32>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    inside::refuse_too_deep()?;
    let project = find::project_to_change()?;
    let prompt = args.prompt.as_deref().map(crate::cmd::plan::prompt_text).transpose()?;
    let mut plans = match (&args.plan, &args.prompt) {
        (Some(file), _) => {
            refuse_below_client("a plan file is not started", "approves it by naming it")?;
            vec![crate::cmd::plan::read(file, run::new_id())?]
        }
        (None, Some(_)) => plans_for_prompt(&project, prompt.as_deref().unwrap_or_default())?,
        (None, None) => return Err(Wrong::new("a plan or --prompt is needed").into()),
    };
    if plans.is_empty() {
        let hint = "`cpw plan --prompt TEXT` says why";
        return Err(Wrong::with_hint("no rule of this project makes a plan of this prompt", hint).into());
    }
    for plan in &mut plans {
        planner::settle_claims(&project, plan);
        planner::settle_resources(&project, plan).map_err(|problem| Wrong::new(problem.to_string()))?;
        if let Some(n) = args.jobs {
            plan.limits.max_workers = n;
        }
    }
    // Before the first worker exists: a Ctrl-C from here on cancels what was started.
    let termination = if args.detach { None } else { Some(signals::catch_termination()?) };
    let folder = planner::runs_folder(&project, State::existing()?.as_ref())?;
    let mut runs = Vec::with_capacity(plans.len());
    for plan in &plans {
        runs.push(start(&project, &folder, plan, prompt.as_deref())?);
    }
    show(runs, termination.as_ref())
}

/// Shows runs until they end, or, without `termination`, says that they go on in the background.
pub(crate) fn show(runs: Vec<Run>, termination: Option<&Termination>) -> anyhow::Result<Exit> {
    let Some(termination) = termination else {
        for run in &runs {
            let id = &run.plan.run;
            print::out(id);
            print::err(format_args!("cpw: started in the background; look at it: cpw status {id}"));
        }
        return Ok(Exit::Ok);
    };
    let mut exit = Exit::Ok;
    for run in runs {
        // After a Ctrl-C the others are still to be told.
        let manner = if exit == Exit::Interrupted { Manner::Cancel } else { Manner::Own };
        match (follow::until_end(run, termination, manner)?, exit) {
            (_, Exit::Interrupted) | (Followed::Interrupted, _) => exit = Exit::Interrupted,
            (Followed::Failed, _) => exit = Exit::Failed,
            (Followed::Ok, _) => {}
        }
    }
    Ok(exit)
}

fn start(project: &Path, runs: &Path, plan: &Plan, prompt: Option<&str>) -> anyhow::Result<Run> {
    let origin = Origin { prompt, ..Origin::default() };
    let folder = RunDir::create_in(project, runs, plan, &origin).context("cannot make the run's folder")?;
    let mut run = folder.start(&State::open()?, plan, &origin).context("cannot start the run")?;
    crew::hire(&mut run, None).context("cannot start a worker; `cpw status` tries again")?;
    Ok(run)
}

/// The plans that the project's rules make of a prompt.
fn plans_for_prompt(project: &Path, prompt: &str) -> anyhow::Result<Vec<Plan>> {
    let config = match planner::rules(project, State::existing()?.as_ref())? {
        Rules::Ready(config) => config,
        Rules::None => return Err(crate::cmd::plan::no_config(project)),
        Rules::Broken(problems) => return Err(crate::cmd::plan::mistakes(project, &problems)),
        Rules::Unapproved { trust, .. } => {
            let state = match trust {
                Trust::Denied => "was denied",
                Trust::Changed { .. } => "has changed since it was approved",
                Trust::Approved | Trust::Unknown => "is not approved",
            };
            let what = format!("the config of {} {state}; nothing of it starts", project.display());
            return Err(Wrong::with_hint(what, "`cpw allow` shows what could run and asks").into());
        }
    };
    let cwd = std::env::current_dir()?;
    let asked = Asked { project, cwd: &cwd, prompt, session: None };
    let considered = planner::consider(&config, asked).unwrap_or_default();
    Ok(considered.into_iter().filter_map(|c| c.outcome.ok()).collect())
}
