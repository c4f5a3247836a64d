//! `cpw status --watch`: what `cpw status` shows, again with every change: one run until it has ended, or all runs here.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::base::exit::Exit;
use crate::base::ids::RunId;
use crate::cmd::follow::{self, Followed, Manner};
use crate::cmd::status::{Shown, beside, list, text};
use crate::logic::wake::Concern;
use crate::store::bells;
use crate::store::run::{Run, RunDir};
use crate::sys::bell::{self, Bell};
use crate::sys::host;
use crate::sys::signals;
use crate::ui::live::Live;
use crate::ui::paint::{self, Paint};
use crate::ui::print;

/// Between two pictures of a watch.
const FRAME: Duration = Duration::from_millis(100);

/// How often the time of running tasks moves on.
const TICK: Duration = Duration::from_secs(1);

/// How often a watch looks for new runs and for dead workers.
const LOOK: Duration = Duration::from_secs(2);

/// One run until it has ended.
pub(super) fn run(folder: &RunDir) -> anyhow::Result<Exit> {
    let termination = signals::catch_termination()?;
    Ok(match follow::until_end(folder.open_run()?, &termination, Manner::Watch)? {
        Followed::Interrupted => Exit::Interrupted,
        Followed::Ok | Followed::Failed => Exit::Ok,
    })
}

/// All runs again with every change. The bells of open runs wake; for new runs, which nobody rings for, and for dead
/// workers it looks from time to time.
pub(super) fn all(project: &Path, all: bool) -> anyhow::Result<Exit> {
    let termination = signals::catch_termination()?;
    let paint = Paint::for_stdout();
    let mut live = paint::can_move(&std::io::stdout()).then(Live::default);
    let mut known = BTreeMap::new();
    let mut hung: BTreeMap<RunId, Bell> = BTreeMap::new();
    let mut before = None;
    loop {
        for bell in hung.values() {
            bell.drain();
        }
        let (shown, more) = list(project, all, &mut known)?;
        hung.retain(|id, _| shown.iter().any(|one| open(one).is_some_and(|run| run.plan.run == *id)));
        let mut looked = true;
        for run in shown.iter().filter_map(open).filter(|run| !hung.contains_key(&run.plan.run)).collect::<Vec<_>>() {
            let bell = bells::hang(&run.folder, &Concern::All).context("cannot wait for news of a run")?;
            hung.insert(run.plan.run.clone(), bell);
            // Something may have happened before the bell was there.
            looked = false;
        }
        let now: Vec<(RunId, u64)> = shown.iter().map(stand).collect();
        let moves = live.is_some() && shown.iter().filter_map(open).any(|run| !run.state.running.is_empty());
        if moves || before.as_ref() != Some(&now) {
            let mut out = String::new();
            for one in &shown {
                text(&mut out, one, false, paint);
            }
            out.push_str(&beside(project, &shown, more, paint));
            let heard = match &mut live {
                Some(live) => {
                    let (width, height) = host::terminal_size(std::io::stdout()).unwrap_or((80, 24));
                    let lines = out.lines().take(usize::from(height.saturating_sub(1))).map(str::to_owned);
                    live.show(&[], &lines.collect::<Vec<_>>(), usize::from(width));
                    true
                }
                None => print::raw(format!("{}{out}", if before.is_some() { "\n" } else { "" }).as_bytes()),
            };
            if !heard {
                return Ok(Exit::Ok);
            }
            before = Some(now);
        }
        known = shown.into_iter().map(|one| (stand(&one).0, one)).collect();
        if !looked {
            continue;
        }
        // Not more often than anybody can read.
        bell::wait(&[], &[termination.fd()], FRAME)?;
        let bells: Vec<&Bell> = hung.values().collect();
        bell::wait(&bells, &[termination.fd()], if moves { TICK } else { LOOK })?;
        if termination.take().is_some() {
            return Ok(Exit::Interrupted);
        }
    }
}

/// A run that goes on.
fn open(shown: &Shown) -> Option<&Run> {
    match shown {
        Shown::Whole(whole) if whole.run.state.view.ended.is_none() => Some(&whole.run),
        Shown::Whole(_) | Shown::Brief(..) | Shown::Damaged(..) => None,
    }
}

/// A run, and how far its log was read.
fn stand(shown: &Shown) -> (RunId, u64) {
    match shown {
        Shown::Whole(whole) => (whole.run.plan.run.clone(), whole.run.state.view.seq),
        Shown::Brief(id, view) => (id.clone(), view.seq),
        Shown::Damaged(id, ..) => (id.clone(), 0),
    }
}
