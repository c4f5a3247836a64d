//! `cpw doctor`: what sessions and runs have left behind. When a hook was last at work here, and what nobody needs any more.

use std::path::Path;
use std::time::Duration;

use super::{Check, Finding, MAX_RUNS};
use crate::actor::crew;
use crate::base::ids::RunId;
use crate::cmd::clean;
use crate::logic::view::View;
use crate::store::attic;
use crate::store::home::State;
use crate::store::hooklog;
use crate::store::run::{self, RunDir};
use crate::sys::clock;
use crate::ui::when;

/// After a run has ended, workers that are still alive then have not left in order.
const GRACE: Duration = Duration::from_mins(1);

struct Found {
    id: RunId,
    folder: RunDir,
    view: View,
}

fn runs(project: &Path) -> impl Iterator<Item = Found> {
    run::list(project).unwrap_or_default().into_iter().take(MAX_RUNS).filter_map(|id| {
        let folder = RunDir::open(project, &id).ok()?;
        let view = folder.open_view().ok()?.view;
        Some(Found { id, folder, view })
    })
}

/// Whether a session's hooks have ever done anything here.
pub(super) fn last_seen(project: &Path, state: Option<&State>) -> Check {
    const NAME: &str = "last seen";
    let now = clock::unix_ms();
    let logged = state.and_then(|state| hooklog::last(state.path()));
    let logged = logged.and_then(|line| Some((when::unix_ms(&line.ts)?, line.hook)));
    let log = logged.map_or_else(String::new, |(at, hook)| {
        format!("\nthe last line of hooks.jsonl, from any project: {hook}, {}", when::ago(at, now))
    });
    if let Some(at) = runs(project).find(|f| f.view.session.is_some()).and_then(|f| when::of_run(&f.id)) {
        let text = format!("a session has started a run here {}{log}", when::ago(at, now));
        return Check::new(NAME, Finding::Ok, text);
    }
    let text = format!("no session has started a run here yet, and a hook that has nothing to do leaves no trace{log}");
    Check::new(NAME, Finding::Note, text).remedy(
        "`cpw plan --prompt TEXT` says whether a prompt would; `CPW_LOG=debug claude` writes every call to hooks.jsonl",
    )
}

/// What is left over and can go.
pub(super) fn over(project: &Path, state: Option<&State>) -> Vec<Check> {
    const NAME: &str = "left over";
    let (mut staffed, mut old, mut bytes, mut bells) = (Vec::new(), 0_usize, 0, 0);
    for Found { id, folder, view } in runs(project).filter(|found| found.view.ended.is_some()) {
        let age = attic::age(&folder);
        let alive = crew::anybody(&folder, &view);
        if alive && age > GRACE {
            staffed.push(id.to_string());
        }
        if !alive {
            bells += folder.dir.sub(run::BELLS).and_then(|dir| dir.names()).map_or(0, |names| names.len());
        }
        if age > clean::OLDER.to_std() {
            old += 1;
            bytes += attic::size(folder.path());
        }
    }
    let mut out = Vec::new();
    if !staffed.is_empty() {
        let text = format!("workers of runs that have ended still live: {}", staffed.join(", "));
        out.push(Check::new(NAME, Finding::Warn, text).remedy("`cpw doctor RUN` names their processes; end them"));
    }
    let rest = state.map(|state| attic::finish_rest(state, project, true)).unwrap_or_default();
    if old > 0 || !rest.folders.is_empty() {
        let halves = rest.folders.len();
        let half = if halves > 0 { format!(", and {halves} half removed") } else { String::new() };
        let text = format!("{old} runs ended more than two weeks ago{half}: {}", clean::size(bytes + rest.bytes));
        out.push(Check::new(NAME, Finding::Note, text).remedy("`cpw clean` removes them"));
    }
    if bells > 0 {
        let text = format!("{bells} bells in runs that have ended: nobody waits there any more");
        out.push(Check::new(NAME, Finding::Note, text).remedy("nothing to do: they go with their run (`cpw clean`)"));
    }
    out
}
