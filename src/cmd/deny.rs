//! `cpw deny`: takes an approval back.

use crate::base::exit::Exit;
use crate::base::text::one_line;
use crate::cmd::allow::project_config;
use crate::store::home::State;
use crate::store::trust;
use crate::ui::print;

/// Take back the approval of the project's config
#[derive(Debug, Default, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw deny                nothing of this project starts from now on\n  \
    cpw deny && cpw cancel  nor does the run that goes on\n\n\
    Its rules start nothing, whatever the file holds, and sessions no longer mention that it waits for approval. What runs \
    goes on; cpw cancel ends it. cpw allow approves again.")]
pub struct Args {}

/// Runs the command.
pub fn run(_: &Args) -> anyhow::Result<Exit> {
    let config = project_config()?;
    trust::deny(&State::open()?, &config)?;
    print::out(format!(
        "{} starts nothing any more; cpw allow approves it again.",
        one_line(&config.to_string_lossy(), 500)
    ));
    Ok(Exit::Ok)
}
