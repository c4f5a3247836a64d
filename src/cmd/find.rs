//! Which run, task or session a command means: ids may be cut short as long as they are unique.

use std::path::PathBuf;

use anyhow::Context;

use crate::base::exit::Wrong;
use crate::base::ids::{RunId, TaskId};
use crate::base::text::one_line;
use crate::model::glob::{self, Glob};
use crate::model::plan::Plan;
use crate::store::place;
use crate::store::project;
use crate::store::registry;
use crate::store::run::{self, RunDir};

/// The project of the current directory.
pub fn project() -> anyhow::Result<PathBuf> {
    let cwd = std::env::current_dir().context("the current directory cannot be read")?;
    let home = std::env::var_os("HOME").map(PathBuf::from);
    project::find(&cwd, home.as_deref()).with_context(|| format!("cannot look at {}", cwd.display()))
}

/// The same, for a command that leaves files in it.
pub fn project_to_change() -> anyhow::Result<PathBuf> {
    let project = project()?;
    place::refuse_lent_root(&project)?;
    Ok(project)
}

/// The run that `given` (a unique beginning of its id, or of its random part) means, or the newest one of the project.
pub fn run(project: &std::path::Path, given: Option<&str>) -> anyhow::Result<RunDir> {
    let ids = run::list(project).with_context(|| format!("cannot list {}", run::runs_path(project).display()))?;
    let id = match given {
        None => ids.iter().find(|id| run::is_begun(project, id)).cloned().ok_or_else(|| {
            Wrong::with_hint(
                format!("no run in {}", project.display()),
                "a run starts from a prompt that matches a rule, or by `cpw run`",
            )
        })?,
        Some(given) => pick(&ids, given)?,
    };
    Ok(RunDir::open(project, &id)?)
}

/// A run that came from elsewhere is looked at and never worked on.
pub fn refuse_foreign(folder: &RunDir) -> Result<(), Wrong> {
    if registry::is_ours(folder) {
        return Ok(());
    }
    let id = folder.path().file_name().map(|name| one_line(&name.to_string_lossy(), 80)).unwrap_or_default();
    Err(Wrong::with_hint(
        format!("run {id}: {}", registry::FOREIGN),
        format!("`cpw status {id}` looks at it, `cpw run` with its plan.json makes a run of your own"),
    ))
}

fn pick(ids: &[RunId], given: &str) -> Result<RunId, Wrong> {
    if given.is_empty() {
        return Err(Wrong::with_hint("an empty run id means no run", "`cpw status` lists them"));
    }
    let fits = |id: &&RunId| {
        id.as_str().starts_with(given) || id.as_str().rsplit('-').next().is_some_and(|r| r.starts_with(given))
    };
    let mut found = ids.iter().filter(fits);
    match (found.next(), found.next()) {
        (Some(id), None) => Ok(id.clone()),
        (None, _) => Err(Wrong::with_hint(format!("no run here begins with '{given}'"), "`cpw status` lists them")),
        (Some(a), Some(b)) => Err(Wrong::with_hint(
            format!("'{given}' is the beginning of more than one run: {a}, {b}"),
            "give more characters",
        )),
    }
}

/// The task that `given` (its id, or a unique beginning of it) means, as its place in the plan.
pub fn task(plan: &Plan, given: &str) -> Result<usize, Wrong> {
    if let Some(i) = plan.tasks.iter().position(|t| t.id.as_str().eq_ignore_ascii_case(given)) {
        return Ok(i);
    }
    let found: Vec<usize> = (0..plan.tasks.len()).filter(|&i| plan.tasks[i].id.as_str().starts_with(given)).collect();
    let names = |of: &mut dyn Iterator<Item = &TaskId>| of.map(TaskId::as_str).collect::<Vec<_>>().join(", ");
    match found[..] {
        [i] => Ok(i),
        [] => Err(Wrong::with_hint(
            format!("no task '{given}' in this run"),
            format!("its tasks are {}", names(&mut plan.tasks.iter().take(20).map(|t| &t.id))),
        )),
        _ => Err(Wrong::with_hint(
            format!("'{given}' is the beginning of more than one task"),
            format!("one of {}", names(&mut found.iter().take(20).map(|&i| &plan.tasks[i].id))),
        )),
    }
}

/// The tasks that `given` (as for [`task`], or a glob) means, as their places in the plan.
pub fn tasks(plan: &Plan, given: &str) -> Result<Vec<usize>, Wrong> {
    // No id has such characters in it.
    if !glob::has_meta(given) {
        return task(plan, given).map(|i| vec![i]);
    }
    let wrong = |e: glob::BadGlob| Wrong::with_hint(format!("'{given}' {e}"), "a glob looks like 'test-*'");
    let pattern = Glob::text(given).map_err(wrong)?;
    let found: Vec<usize> = (0..plan.tasks.len()).filter(|&i| pattern.matches(plan.tasks[i].id.as_str())).collect();
    if found.is_empty() {
        let names: Vec<&str> = plan.tasks.iter().take(20).map(|t| t.id.as_str()).collect();
        let hint = format!("its tasks are {}", names.join(", "));
        return Err(Wrong::with_hint(format!("no task of this run matches '{given}'"), hint));
    }
    Ok(found)
}
