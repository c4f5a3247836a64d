//! `cpw checkpoint`: a task says that it has come to a point that others wait for.

use anyhow::Context;

use crate::base::exit::{Exit, Wrong};
use crate::base::ids::CheckpointName;
use crate::cmd::inside;
use crate::model::event::{Body, Checkpoint};

/// The longest data, in bytes: it travels in a line of the log.
const MAX_DATA: usize = 16 * 1024;

/// Inside a task: say that it has come to a point that others wait for
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, in the command of a task `build`:\n  \
    cpw checkpoint compiled                              tasks with \"needs\": [\"build@compiled\"] start now\n  \
    cpw checkpoint compiled --data '{\"binary\": \"out/app\"}'  they find it in the file $CPW_NEEDS\n\n\
    The same checkpoint again, also of a further attempt, replaces the data for those that have not started.\n\
    Exit code: 0 · 1 the attempt is over · 3 not inside a task, or wrong data")]
pub struct Args {
    /// Its name: letters, digits, '_', '.' and '-'
    name: String,
    /// JSON that it hands over, at most 16 KiB
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let inside = inside::attempt("checkpoint")?;
    let name = CheckpointName::new(&args.name).map_err(|e| Wrong::new(format!("the name '{}' {e}", args.name)))?;
    if args.data.as_ref().is_some_and(|data| data.len() > MAX_DATA) {
        let what = format!("--data is longer than {MAX_DATA} bytes");
        return Err(Wrong::with_hint(what, "write it to a file in $CPW_OUT and hand over its path").into());
    }
    let data = args.data.as_deref().map(serde_json::from_str).transpose();
    let data =
        data.map_err(|e| Wrong::with_hint(format!("--data is not JSON: {e}"), "a text is written '\"text\"'"))?;
    inside.say(Body::Checkpoint(Checkpoint { name, data })).context("the checkpoint is not there")?;
    Ok(Exit::Ok)
}
