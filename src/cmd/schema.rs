//! `cpw schema`: the JSON Schema of what people and programs read and write.

use crate::base::exit::Exit;
use crate::model::schema;
use crate::model::status_schema::status_schema;
use crate::ui::print;

/// Which format.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Format {
    /// .claude/cpw.json
    Config,
    /// plan.json, and plans for `cpw run`
    Plan,
    /// a line of events.jsonl
    Event,
    /// what `cpw status --json` prints
    Status,
}

/// Print the JSON Schema of the config, a plan, an event or the status
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  cpw schema\n  cpw schema plan > plan.schema.json")]
pub struct Args {
    /// The format
    #[arg(value_enum, default_value = "config")]
    format: Format,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let schema = match args.format {
        Format::Config => schema::config_schema(),
        Format::Plan => schema::plan_schema(),
        Format::Event => schema::event_schema(),
        Format::Status => status_schema(),
    };
    print::out(serde_json::to_string_pretty(&schema)?);
    Ok(Exit::Ok)
}
