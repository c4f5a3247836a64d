//! `cpw checkpoint`: a task says that it has come to a point that others wait for.

use std::io::Read as _;

use anyhow::Context;
use serde_json::json;

use crate::base::exit::{Exit, Wrong};
use crate::base::hex;
use crate::base::ids::CheckpointName;
use crate::cmd::{inside, signal};
use crate::model::event::{Body, Checkpoint};
use crate::ui::print;

/// The longest data, in bytes: it travels in a line of the log.
const MAX_DATA: usize = 16 * 1024;

/// Inside a task: say that it has come to a point that others wait for
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, in the command of a task `build`:\n  \
    cpw checkpoint compiled                              tasks with \"needs\": [\"build@compiled\"] start now\n  \
    cpw checkpoint compiled --data '{\"binary\": \"out/app\"}'  they find it in $CPW_NEED_BUILD_COMPILED and the file $CPW_NEEDS\n  \
    make-list | cpw checkpoint listed --data -           the JSON comes from stdin\n  \
    cpw checkpoint compiled --inject                     the session is told with the next news, too\n\n\
    The same checkpoint again, also of a further attempt, replaces the data for those that have not started. Beyond 10 a second\n\
    of a task's checkpoints and signals the next one waits; one that only repeats the last is not written again.\n\
    Exit code: 0 · 1 the attempt is over · 3 not inside a task, or wrong data")]
pub struct Args {
    /// Its name: letters, digits, '_', '.' and '-'
    name: String,
    /// JSON that it hands over, at most 16 KiB; '-' reads it from stdin
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
    /// Tell the session, too, with one quoted line of the data
    #[arg(long)]
    inject: bool,
    /// Print what was written as one JSON object
    #[arg(long)]
    json: bool,
}

/// The data as text: no more of it is read than may be handed over, however much there is.
fn data(given: &str) -> anyhow::Result<String> {
    let mut text = given.to_owned();
    if given == "-" {
        text.clear();
        let mut bytes = Vec::new();
        std::io::stdin().lock().take(MAX_DATA as u64 + 1).read_to_end(&mut bytes).context("cannot read stdin")?;
        if bytes.len() <= MAX_DATA {
            text = String::from_utf8(bytes).map_err(|_| Wrong::new("--data is not JSON: it is no UTF-8"))?;
        } else {
            return Err(too_long().into());
        }
    }
    if text.len() > MAX_DATA { Err(too_long().into()) } else { Ok(text) }
}

fn too_long() -> Wrong {
    let what = format!("--data is longer than {MAX_DATA} bytes");
    Wrong::with_hint(what, "write it to a file in $CPW_OUT and hand over its path")
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let inside = inside::attempt("checkpoint")?;
    let name = CheckpointName::new(&args.name).map_err(|e| Wrong::new(format!("the name '{}' {e}", args.name)))?;
    let text = args.data.as_deref().map(data).transpose()?;
    let data = text.as_deref().map(serde_json::from_str).transpose();
    let data =
        data.map_err(|e| Wrong::with_hint(format!("--data is not JSON: {e}"), "a text is written '\"text\"'"))?;
    let said = Checkpoint { name: name.clone(), data, inject: args.inject };
    let sum = hex::sha256(format!("checkpoint {name} {} {text:?}", said.inject).as_bytes());
    let write = |_| inside.say_with(|_, _| Ok(Body::Checkpoint(said)));
    let seq = signal::paced(&inside, &sum, write).context("the checkpoint is not there")?;
    if args.json {
        print::out(json!({ "task": inside.task, "attempt": inside.attempt, "checkpoint": name, "seq": seq }));
    }
    Ok(Exit::Ok)
}
