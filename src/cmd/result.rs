//! `cpw result`: what a task left.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};

use crate::base::exit::Exit;
use crate::base::text;
use crate::cmd::{find, inside};
use crate::ui::print;

/// Bytes that are printed at once.
const CHUNK: usize = 64 * 1024;

/// Print the result of a task
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw result lint                    of the newest run here\n  \
    cpw result lint --run 20261121-10  of another run\n  \
    cpw result lint --path             where it is, instead of what is in it\n\n\
    Inside a task it means the task's own run. To a pipe go the bytes as they are; to a terminal without what could move \
    its cursor.\n\
    Exit code: 0 · 1 the task has no result (yet)")]
pub struct Args {
    /// The task: its id or a unique beginning of it
    task: String,
    /// The run: its id or a unique beginning of it
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Print the file's path
    #[arg(long)]
    path: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let own = if args.run.is_none() { inside::own_run()? } else { None };
    let folder = match own {
        Some(own) => own,
        None => find::run(&find::project()?, args.run.as_deref())?,
    };
    let run = folder.open_run()?;
    let index = find::task(&run.plan, &args.task)?;
    let task = &run.state.tasks[index];
    let id = &run.plan.tasks[index].id;
    let Some(result) = &task.result else { bail!("{id} has no result: it is {}", task.phase.word()) };
    let path = Path::new(&result.path);
    if args.path {
        print::out(folder.path().join(path).display());
        return Ok(Exit::Ok);
    }
    let mut dir = folder.dir.try_clone()?;
    let parents = path.parent().into_iter().flat_map(Path::iter);
    for name in parents {
        dir = dir.sub(name).with_context(|| format!("cannot open {}", folder.path().join(path).display()))?;
    }
    let name = path.file_name().unwrap_or_default();
    let mut file = dir.open_read(name).with_context(|| format!("cannot read {}", dir.path().join(name).display()))?;
    let terminal = std::io::stdout().is_terminal();
    let mut bytes = vec![0_u8; CHUNK];
    let mut rest = Vec::new();
    loop {
        let n = file.read(&mut bytes).with_context(|| format!("cannot read {}", path.display()))?;
        let go_on = match (terminal, n) {
            (false, 0) => false,
            (false, n) => print::raw(&bytes[..n]),
            (true, n) => {
                rest.extend_from_slice(&bytes[..n]);
                // Whole lines, so that no character is cut in two.
                let at = rest.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                let at = if n == 0 || rest.len() > CHUNK { rest.len() } else { at };
                let lines: Vec<u8> = rest.drain(..at).collect();
                print::raw(text::for_terminal(&String::from_utf8_lossy(&lines)).as_bytes()) && n > 0
            }
        };
        if !go_on {
            return Ok(Exit::Ok);
        }
    }
}
