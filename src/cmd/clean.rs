//! `cpw clean`: removes runs that have ended, by age and number. Never one that goes on, that this cpw has not made, or,
//! unless it is named, that is damaged.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use crate::actor::crew::{self, Life};
use crate::actor::isolate;
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::{RunId, SessionId, WorkerNo};
use crate::base::span::Span;
use crate::base::text::one_line;
use crate::cmd::find;
use crate::logic::view::View;
use crate::model::event::Process;
use crate::store::attic;
use crate::store::forget;
use crate::store::history;
use crate::store::home::State;
use crate::store::registry;
use crate::store::run::{self, RunDir, RunError, WORKER_LOCK, WORKERS};
use crate::store::session::{self, Entry, Locked};
use crate::sys::dir::Dir;
use crate::sys::lock;
use crate::ui::lines;
use crate::ui::print;
use crate::ui::when;

/// Runs older than this are removed where nothing else is said.
pub(super) const OLDER: Span = Span::from_secs(14 * 24 * 3600);

/// After this long a folder without a run is no run that is just beginning.
const BEGUN: Duration = Duration::from_hours(1);

/// Held while somebody cleans, in the state directory.
const LOCK: &str = "clean.lock";

/// Remove runs that have ended
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw clean                      runs of this project that ended more than 14 days ago\n  \
    cpw clean --older 2d --keep 5  older than two days, but never the newest five\n  \
    cpw clean --keep 20            all but the newest twenty\n  \
    cpw clean 20261121-10          this run, by a unique beginning of its id\n  \
    cpw clean --dry-run            what would be removed\n\n\
    A run that has not ended stays, and one that your cpw has not made. One whose session has not been told everything \
    stays until it is older than --older (14 days), and a damaged one until it is named. With the last of their \
    runs goes what was noted of a session that is over, and how long the tasks of a rule took.\n\n\
    Exit code: 0 · 1 something could not be removed, or a run that was named had to stay")]
pub struct Args {
    /// Runs to remove, whatever their age: their ids or unique beginnings of them
    #[arg(value_name = "RUN", conflicts_with_all = ["older", "keep"])]
    runs: Vec<String>,
    /// Only what ended longer ago than this, such as 36h or 14d
    #[arg(long, value_name = "TIME", value_parser = span)]
    older: Option<Span>,
    /// Never the newest N runs; alone: all others, whatever their age
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Only say what would be removed
    #[arg(long)]
    dry_run: bool,
}

fn span(given: &str) -> Result<Span, String> {
    Span::parse(given).ok_or_else(|| "a time is written 30m, 36h or 14d".into())
}

/// A run that can be removed.
struct Found {
    folder: RunDir,
    id: RunId,
    /// What became of it, in a word.
    word: &'static str,
    view: Option<View>,
    age: Duration,
}

/// Why a run stays.
enum Stays {
    /// It is too young, or among the newest.
    Kept,
    /// Something else.
    Because(String),
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let project = find::project()?;
    let Some(state) = State::existing()? else {
        print::out("nothing to remove");
        return Ok(Exit::Ok);
    };
    let home = Dir::open(state.path())?;
    let one_at_a_time = home.open_rw(LOCK)?;
    if !lock::lock_exclusive(&one_at_a_time, WORKER_LOCK)? {
        return Err(Wrong::with_hint("somebody else is cleaning just now", "try again in a moment").into());
    }
    let rest = attic::finish_rest(&state, &project, args.dry_run);
    let (mut bytes, mut removed) = (rest.bytes, 0);
    let mut bad = !rest.failed.is_empty();
    for e in &rest.failed {
        print::err(format_args!("cpw: what an earlier removal has left stays: {e}"));
    }
    for folder in &rest.folders {
        print::out(format_args!("{} the rest {}", done(args.dry_run), folder.display()));
    }
    for (rank, folder) in chosen(args, &project)?.into_iter().enumerate() {
        let name = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        match judge(args, rank, folder) {
            Ok(found) => match remove(&state, &found, args.dry_run) {
                Ok(freed) => {
                    (bytes, removed) = (bytes + freed, removed + 1);
                    let ago = when::ago(0, millis(found.age));
                    print::out(format_args!("{} {name}  {}  {ago}  {}", done(args.dry_run), found.word, size(freed)));
                }
                Err(e) => {
                    bad = true;
                    print::err(format_args!("cpw: {name} could not be removed: {e:#}"));
                }
            },
            Err(Stays::Kept) => {}
            Err(Stays::Because(why)) => {
                bad |= !args.runs.is_empty();
                print::err(format_args!("cpw: {name} stays: {why}"));
            }
        }
    }
    if !args.dry_run {
        forget::lost_runs(&state, OLDER.to_std())?;
        forget::sessions(&state).context("what was noted of sessions that are over")?;
        history::forget(&state).context("how long tasks took")?;
    }
    if removed == 0 && rest.folders.is_empty() {
        print::out("nothing to remove");
    } else {
        let runs = if removed == 1 { "1 run".to_owned() } else { format!("{removed} runs") };
        print::out(format_args!("{} {runs}, {}", done(args.dry_run), size(bytes)));
    }
    Ok(if bad { Exit::Failed } else { Exit::Ok })
}

fn done(dry: bool) -> &'static str {
    if dry { "would remove" } else { "removed" }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} KB ({bytes} bytes)", bytes / 1000),
        _ => format!("{} MB ({bytes} bytes)", bytes / 1_000_000),
    }
}

/// The runs in question, newest first.
fn chosen(args: &Args, project: &Path) -> anyhow::Result<Vec<RunDir>> {
    if args.runs.is_empty() {
        let ids = run::list(project).context("cannot list the runs")?;
        return Ok(ids.iter().filter_map(|id| RunDir::open(project, id).ok()).collect());
    }
    let mut all: Vec<RunDir> = Vec::new();
    for given in &args.runs {
        let folder = find::run(project, Some(given))?;
        if all.iter().all(|other| other.path() != folder.path()) {
            all.push(folder);
        }
    }
    Ok(all)
}

/// Whether a run is to be removed. `rank` is its place among the newest.
fn judge(args: &Args, rank: usize, folder: RunDir) -> Result<Found, Stays> {
    let because = |why: &str| Err(Stays::Because(why.to_owned()));
    let named = !args.runs.is_empty();
    let age = attic::age(&folder);
    // Cheapest first: most runs stay because they are young.
    let older = args.older.unwrap_or(if args.keep.is_some() { Span::from_ms(0) } else { OLDER }).to_std();
    if !named && (age < older || args.keep.is_some_and(|keep| rank < keep)) {
        return Err(Stays::Kept);
    }
    if !registry::is_ours(&folder) {
        return because("your cpw has not made it");
    }
    let Some(id) = folder.path().file_name().and_then(|n| RunId::new(n.to_str()?).ok()) else {
        return because("its name is no run's");
    };
    let (word, view) = match folder.open_view() {
        Ok(hooked) => match &hooked.view.ended {
            None => return because("it has not ended; `cpw cancel` ends it"),
            Some(end) => (lines::verdict(end.status), Some(hooked.view)),
        },
        Err(RunError::NoRun(_)) if age > BEGUN => ("never began", None),
        Err(RunError::NoRun(_)) => return because("it may be just beginning"),
        Err(RunError::Damaged { .. } | RunError::Plan(_)) if named => ("damaged", None),
        Err(RunError::Damaged { .. } | RunError::Plan(_)) => {
            return because(&format!("it is damaged; `cpw clean {id}` removes it"));
        }
        Err(e) => return Err(Stays::Because(one_line(&e.to_string(), 300))),
    };
    if anybody_lives(&folder) {
        return because("a worker of it is alive");
    }
    let patience = args.older.unwrap_or(OLDER).to_std();
    if !named && age < patience && view.as_ref().is_some_and(|view| open_session(view, &id).is_some()) {
        return because("its session has not been told everything yet");
    }
    Ok(Found { folder, id, word, view, age })
}

/// Whether any worker that has a folder in the run is alive, whatever its log says.
fn anybody_lives(folder: &RunDir) -> bool {
    let nobody = Process { pid: 0, start_time: 0, boot_id: String::new() };
    let names = folder.dir.sub(WORKERS).and_then(|dir| dir.names()).unwrap_or_default();
    let mut numbers = names.iter().filter_map(|name| name.to_str()?.parse::<WorkerNo>().ok());
    numbers.any(|worker| crew::life(folder, worker, &nobody) == Life::Alive)
}

/// The session that owns a run and still has it open.
fn open_session(view: &View, id: &RunId) -> Option<SessionId> {
    let session = view.session.clone()?;
    let state = State::existing().ok().flatten()?;
    let record = session::load_open(state.path(), &session).ok().flatten()?;
    record.open_runs().any(|own| own.id().as_ref() == Some(id)).then_some(session)
}

/// Removes a run, with what belongs to it elsewhere. Returns how many bytes that frees.
fn remove(state: &State, found: &Found, dry: bool) -> anyhow::Result<u64> {
    let Found { folder, id, .. } = found;
    if dry {
        return Ok(attic::size(folder.path()));
    }
    // A damaged run may have lost what is locked; nobody continues that.
    let reserved = if found.view.is_some() { folder.reserve()? } else { None };
    if found.view.is_some() && reserved.is_none() {
        return Err(Wrong::with_hint("somebody is continuing it just now", "try again in a moment").into());
    }
    let elsewhere = remove_elsewhere(state, found)?;
    Ok(attic::remove(state, folder, id)? + elsewhere)
}

/// Removes what a run has outside of its folder, while the folder can still tell: should this be the last that is done,
/// the next time does the rest.
fn remove_elsewhere(state: &State, found: &Found) -> anyhow::Result<u64> {
    isolate::remove_all(&found.folder).map_err(|stays| {
        Wrong::with_hint(
            format!("a worktree of it stays: {stays}"),
            "save what is in it, remove it with git, and clean again",
        )
    })?;
    let bytes = attic::remove_scratch(state, &found.id).context("the folders of its claude tasks")?;
    if let Some(session) = found.view.as_ref().and_then(|view| open_session(view, &found.id))
        && let Some(mut locked) = Locked::open(state.path(), &session, WORKER_LOCK)?
    {
        locked.add(Entry::Closed { run: found.id.clone() })?;
    }
    Ok(bytes)
}
