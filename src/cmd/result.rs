//! `cpw result`: what a task left, and putting the change of an isolated one into the files here.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};

use crate::actor::patch::{self, Applied};
use crate::base::exit::Exit;
use crate::base::text;
use crate::cmd::{above, find, inside};
use crate::store::place;
use crate::store::run::Run;
use crate::ui::print;

/// Bytes that are printed at once.
const CHUNK: usize = 64 * 1024;

/// Print the result of a task
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw result lint                    of the newest run here\n  \
    cpw result lint --run 20261121-10  of another run\n  \
    cpw result lint --path             where it is, instead of what is in it\n  \
    cpw result fix --apply --check     whether the change of a task with its own worktree fits into the files here\n  \
    cpw result fix --apply             put it into them\n\n\
    Inside a task it means the task's own run. To a pipe go the bytes as they are; to a terminal without what could move \
    its cursor.\n\
    --apply merges with what has changed since, and leaves git's index alone: nothing is staged or committed. \
    Inside Claude Code only --check works: of what changes files there your permission rules decide.\n\
    Exit code: 0 · 1 the task has no result (yet), or its change does not fit; then nothing is changed")]
pub struct Args {
    /// The task: its id or a unique beginning of it
    task: String,
    /// The run: its id or a unique beginning of it
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Print the file's path
    #[arg(long)]
    path: bool,
    /// Put the change of a task with `"isolate": "worktree"` into the files here: all of it or nothing
    #[arg(long, conflicts_with = "path")]
    apply: bool,
    /// Only say whether it would fit
    #[arg(long, requires = "apply")]
    check: bool,
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
    if args.apply {
        find::refuse_foreign(&run.folder)?;
        if !args.check {
            let hint = "run it in a terminal; of what changes files in a session your permission rules decide";
            above::refuse_or_hint("no change is put into the files", "decides that", hint)?;
        }
        place::refuse_lent_root(&folder.project)?;
        return apply(&run, index, args.check);
    }
    let task = &run.state.tasks[index];
    let id = &run.plan.tasks[index].id;
    let Some(result) = &task.result else {
        let next = match (task.phase.is_final(), task.attempts) {
            (false, _) => format!("`cpw wait --task {id}` waits for it"),
            (true, 0) => format!("`cpw status {}` tells why", run.plan.run),
            (true, _) => format!("`cpw logs {id}` shows what it wrote"),
        };
        bail!("{id} has no result: it is {}; {next}", task.phase.word())
    };
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

fn apply(run: &Run, index: usize, check: bool) -> anyhow::Result<Exit> {
    let (id, task) = (&run.plan.tasks[index].id, &run.state.tasks[index]);
    if !task.phase.is_final() {
        bail!("{id} is {}: its change is there once it has ended", task.phase.word());
    }
    let (spot, stat) = patch::of(&run.folder, id, task.attempts).map_err(anyhow::Error::msg)?;
    match patch::apply(&run.folder, &spot, check).map_err(anyhow::Error::msg)? {
        Applied::Changed(here) => {
            let verb = if check { "fits" } else { "applied" };
            let part = if here == stat { String::new() } else { format!(" (of {stat}; the rest was there already)") };
            print::out(format_args!("{id} {verb}: {here}{part}"));
            Ok(Exit::Ok)
        }
        Applied::Already => {
            print::out(format_args!("{id}: its change is in the files already; nothing was changed"));
            Ok(Exit::Ok)
        }
        Applied::Refused(misfits) => {
            print::err(format_args!("cpw: the change of {id} does not fit; nothing was changed:"));
            for line in &misfits {
                print::err(format_args!("  {line}"));
            }
            print::err(format_args!("hint: the patch is {}", spot.patch().display()));
            Ok(Exit::Failed)
        }
    }
}
