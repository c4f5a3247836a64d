//! From a plan to a run of a session: in the session's record and in the log before anybody works on it, one at a time per
//! rule, no more than `max_runs` in a project. For the prompt hook and for whoever starts a rule after tool calls.

use std::io;
use std::path::{Path, PathBuf};

use crate::actor::crew;
use crate::model::plan::Plan;
use crate::store::home::State;
use crate::store::run::{self, Origin, RunDir, RunError};
use crate::store::session::{Entry, Locked, OwnRun};
use crate::sys::clock;

/// Where runs are made, and how many.
#[derive(Debug)]
pub struct Place<'a> {
    /// The project's root, canonical.
    pub project: &'a Path,
    /// The folder of its runs.
    pub runs: PathBuf,
    /// Active runs at the same time, at most.
    pub max_runs: u32,
}

/// What became of a plan.
#[derive(Debug)]
pub enum Launched {
    /// It is a run, and somebody works on it.
    Started(Box<RunDir>),
    /// A run of the same rule is active: nothing was started.
    Running(OwnRun),
    /// As many runs are active as may be.
    Full,
    /// As many were started for the session within a minute as may be.
    Often,
    /// Its folder is no place for a run.
    Refused(RunError),
}

/// Makes a run of `plan` and starts its first worker. `active` counts the project's active runs.
pub fn launch(
    state: &State,
    locked: &mut Locked,
    place: &Place<'_>,
    plan: &Plan,
    origin: &Origin<'_>,
    active: &mut u32,
) -> anyhow::Result<Launched> {
    let rule = plan.rule.as_deref().unwrap_or_default();
    if let Some(same) = earlier(locked, rule)? {
        return Ok(Launched::Running(same));
    }
    if *active >= place.max_runs {
        return Ok(Launched::Full);
    }
    if locked.session.pause_ms(clock::mono_ms()) > 0 {
        return Ok(Launched::Often);
    }
    let made = RunDir::create_in(place.project, &place.runs, plan, origin).and_then(|folder| {
        // Named in the session's record before it is a run: a hook that dies in between leaves a folder that is not one.
        let named = locked.add_run(&folder.dir, rule);
        named.map_err(|source| RunError::Io { path: folder.path().to_owned(), source })?;
        let run = folder.start(state, plan, origin)?;
        Ok((folder, run))
    });
    let (folder, mut run) = match made {
        Ok(made) => made,
        Err(e @ (RunError::FileSystem { .. } | RunError::Place(_) | RunError::Name(_))) => {
            return Ok(Launched::Refused(e));
        }
        Err(e) => return Err(e.into()),
    };
    *active += 1;
    if let Err(e) = crew::hire(&mut run, None) {
        // It is a run now, and the next hook or command starts its workers.
        return Err(anyhow::Error::from(e).context(format!("run {} has no worker yet", plan.run)));
    }
    Ok(Launched::Started(Box::new(folder)))
}

/// The session's active run of the same rule, if there is one. An earlier one that is over is closed: the new one replaces
/// what it still owed.
fn earlier(locked: &mut Locked, rule: &str) -> anyhow::Result<Option<OwnRun>> {
    let same: Vec<_> = locked.session.open_runs().filter(|r| r.rule == rule).cloned().collect();
    for own in same {
        let Some(run) = own.id() else { continue };
        let view = RunDir::open_own(&own).and_then(|found| found.map(|folder| folder.open_view()).transpose());
        let over = match view {
            Ok(hooked) => hooked.is_none_or(|h| h.view.ended.is_some()),
            Err(RunError::NoRun(_) | RunError::Damaged { .. } | RunError::Plan(_)) => true,
            // Whether it is over cannot be told now; two at once would be worse than none.
            Err(
                RunError::Io { .. }
                | RunError::Log(_)
                | RunError::Place(_)
                | RunError::FileSystem { .. }
                | RunError::Name(_),
            ) => false,
        };
        if !over {
            return Ok(Some(own));
        }
        locked.add(Entry::Closed { run })?;
    }
    Ok(None)
}

/// How many runs of the project are active. Only the newest are looked at: older ones ended long ago. An error where that
/// cannot be told.
pub fn active_runs(project: &Path) -> io::Result<u32> {
    const NEWEST: usize = 128;
    let is_active = |folder: &RunDir| {
        folder.open_view().is_ok_and(|hooked| hooked.view.ended.is_none() && crew::anybody(folder, &hooked.view))
    };
    let active = run::newest_own(project, NEWEST)?.iter().filter(|folder| is_active(folder)).count();
    Ok(u32::try_from(active).unwrap_or(u32::MAX))
}
