//! `cpw off`: hooks do nothing, in a project or a session, until `cpw on`.

use crate::base::exit::Exit;
use crate::base::ids::SessionId;
use crate::base::text::one_line;
use crate::cmd::allow::project_root;
use crate::store::home::State;
use crate::store::switch::{self, Scope};
use crate::ui::print;

/// Switch cpw off in this project: Claude Code works as if it were not there
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw off                in this project: no hook does anything until cpw on\n  \
    cpw off --session ID   only in one session, by its id\n  \
    !cpw off               typed in Claude Code, in its project\n\n\
    What runs goes on; cpw cancel ends it. cpw on switches on again. CPW_DISABLE=1 in the environment does the same for what is started there.")]
pub struct Args {
    /// Only in this session, in whatever project it works
    #[arg(long, value_name = "ID", value_parser = SessionId::new)]
    pub session: Option<SessionId>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    turn(args.session.as_ref(), true)
}

/// Switches off or on and says so.
pub(crate) fn turn(session: Option<&SessionId>, off: bool) -> anyhow::Result<Exit> {
    let state = State::open()?;
    let root = project_root()?;
    let (scope, name) = match session {
        Some(id) => (Scope::Session(id), format!("session {id}")),
        None => (Scope::Project(&root), one_line(&root.to_string_lossy(), 500)),
    };
    let changed = switch::set(&state, scope, off)?;
    print::out(match (changed, off) {
        (true, true) => format!("cpw is off in {name}; cpw on switches it on again."),
        (true, false) => format!("cpw is on in {name}."),
        (false, true) => format!("cpw was off in {name} already."),
        (false, false) => format!("cpw was on in {name} already."),
    });
    Ok(Exit::Ok)
}
