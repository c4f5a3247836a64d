//! `cpw on`: takes back `cpw off`.

use crate::base::exit::Exit;
use crate::base::ids::SessionId;
use crate::cmd::off;

/// Switch cpw on again in this project, after cpw off
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw on                in this project\n  \
    cpw on --session ID   what was switched off for that session only")]
pub struct Args {
    /// Only what was switched off for this session
    #[arg(long, value_name = "ID", value_parser = SessionId::new)]
    pub session: Option<SessionId>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    off::turn(args.session.as_ref(), false)
}
