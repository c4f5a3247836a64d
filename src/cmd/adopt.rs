//! `cpw adopt`: a run reports to another session from now on. The one that had it lets go of it.

use anyhow::Context;

use crate::base::env;
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::SessionId;
use crate::cmd::find;
use crate::logic::signals::Now;
use crate::logic::view::View;
use crate::model::event::{Adopted, Body, Draft, Process};
use crate::store::client;
use crate::store::home::State;
use crate::store::run::{Run, WORKER_LOCK};
use crate::store::session::{self, Entry, Locked};
use crate::sys::clock;
use crate::sys::process;
use crate::ui::print;

/// Take a run over into this Claude Code session
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    !cpw adopt 20261121-10               typed in Claude Code: this session hears of the run from now on\n  \
    cpw adopt 20261121-10 --session ID   in a terminal, for the session of that id\n  \
    cpw adopt 20261121-10 --force        although the session that has it is still open\n\n\
    What the run has not told anybody yet, and all that comes, is told to the new session; Stop waits for it there. The \
    session that had it hears nothing more.\n\n\
    Exit code: 0 the session has it now, or had it already · 3 no session was named, its session is still open, it owes \
    nobody anything, it is damaged, or your cpw has not made it")]
pub struct Args {
    /// The run: its id or a unique beginning of it
    run: String,
    /// The session (inside Claude Code: that one)
    #[arg(long, value_name = "ID", value_parser = SessionId::new)]
    session: Option<SessionId>,
    /// Also from a session that is still open
    #[arg(long)]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let session = match &args.session {
        Some(session) => session.clone(),
        None => this_session()?,
    };
    let project = find::project()?;
    let folder = find::run(&project, Some(&args.run))?;
    find::refuse_foreign(&folder)?;
    folder.check_locks()?;
    let mut run = folder.open_run().map_err(|e| Wrong::new(e.to_string()))?;
    let id = run.plan.run.clone();
    let Some(owner) = run.state.view.session.clone() else {
        let hint = format!("`cpw status {id}` shows it, `cpw wait --run {id}` waits for it");
        return Err(
            Wrong::with_hint(format!("run {id} was started in a terminal and reports to no session"), hint).into()
        );
    };
    if run.state.view.is_closed(Now { ms: clock::mono_ms(), boot_id: clock::boot_id() }) {
        let hint = format!("`cpw status {id}` shows what came of it");
        return Err(Wrong::with_hint(format!("run {id} has ended, and everything was told"), hint).into());
    }
    let state = State::open()?;
    if owner == session && has_open(&state, &session, &run.state.view)? {
        print::out(format_args!("run {id} reports to this session already"));
        return Ok(Exit::Ok);
    }
    if owner != session && !args.force {
        refuse_open(&state, &owner, &run.state.view)?;
    }
    take_over(&state, &mut run, &session, &owner)?;
    print::out(format_args!("run {id} reports to session {session} from now on; {}", counts(&run.state.view)));
    Ok(Exit::Ok)
}

fn this_session() -> anyhow::Result<SessionId> {
    let said = std::env::var(env::CLAUDE_SESSION_ID).ok().and_then(|id| SessionId::new(&id).ok());
    let hint = "type `!cpw adopt RUN` in Claude Code, or name the session: --session ID (`/status` shows it there)";
    said.ok_or_else(|| Wrong::with_hint("this is not a session of Claude Code", hint).into())
}

fn counts(view: &View) -> String {
    let counts = view.counts;
    format!("{} of {} tasks are done", counts.done, counts.total)
}

fn has_open(state: &State, id: &SessionId, view: &View) -> anyhow::Result<bool> {
    let session = session::load_open(state.path(), id)?;
    Ok(session.is_some_and(|s| s.open_runs().any(|own| own.id().as_ref() == Some(&view.run))))
}

/// Refuses to take a run from a session that somebody may be sitting at.
fn refuse_open(state: &State, owner: &SessionId, view: &View) -> anyhow::Result<()> {
    let Some(session) = session::load_open(state.path(), owner)? else { return Ok(()) };
    let client = session.client.as_ref().or(view.client.as_ref());
    if session.over.is_some() || !client.is_some_and(process::alive) || !has_open(state, owner, view)? {
        return Ok(());
    }
    let what = format!("run {} belongs to session {owner}, which is still open", view.run);
    Err(Wrong::with_hint(what, "it is told there; --force takes it all the same").into())
}

fn take_over(state: &State, run: &mut Run, session: &SessionId, owner: &SessionId) -> anyhow::Result<()> {
    let inside = std::env::var(env::CLAUDE_SESSION_ID).is_ok_and(|id| id == session.as_str());
    let here = if inside { client::current() } else { None };
    let locked = Locked::open(state.path(), session, WORKER_LOCK)?;
    // Held until the log says so too: hooks of the session close a run that is another one's, and ask again under this lock.
    let mut locked = locked.with_context(|| format!("the record of session {session} is locked"))?;
    let rule = run.state.view.rule.clone().unwrap_or_default();
    locked.add_run(&run.folder.dir, &rule)?;
    if let Some(here) = here.clone().filter(|here| locked.session.client.as_ref() != Some(here)) {
        locked.add(Entry::Client(here))?;
    }
    let known = here.or_else(|| locked.session.client.clone());
    let from = owner.to_string();
    run.transact(|tx, _| {
        // Only a run that is not to outlive its client watches over one.
        let client: Option<Process> = tx.fold.view.client.as_ref().and(known);
        let body = Body::Adopted(Adopted { session: session.to_string(), from, client });
        tx.emit(Draft::run(body)).map(drop)
    })?;
    drop(locked);
    if owner != session
        && let Some(mut former) = Locked::open(state.path(), owner, WORKER_LOCK)?
    {
        former.add(Entry::Closed { run: run.plan.run.clone() })?;
    }
    Ok(())
}
