//! `cpw events`: the log of a run, for people or as it is.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::Context;

use crate::base::exit::Exit;
use crate::cmd::find;
use crate::logic::state::State;
use crate::logic::wake::Concern;
use crate::store::bells;
use crate::store::log;
use crate::sys::bell;
use crate::sys::signals;
use crate::ui::lines;
use crate::ui::print;
use crate::ui::when;

/// The longest time without a look, should a ring be lost.
const SAFETY: Duration = Duration::from_mins(1);

/// Bytes that are printed at once; more than the longest line.
const CHUNK: usize = 256 * 1024;

/// Show the events of a run
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw events                  of the newest run here\n  \
    cpw events -f               until the run ends\n  \
    cpw events --json | jq .t   the lines as they are in events.jsonl")]
pub struct Args {
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Go on until the run ends
    #[arg(short, long)]
    follow: bool,
    /// The lines as they are
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let folder = find::run(&find::project()?, args.run.as_deref())?;
    let (plan, _) = folder.plan()?;
    // Only for finding tasks by their name: nothing is folded.
    let state = State::new(&plan);
    let bell = if args.follow {
        Some(bells::hang(&folder, &Concern::All).context("cannot wait for further events")?)
    } else {
        None
    };
    let termination = signals::catch_termination()?;
    let mut tape = folder.tape()?;
    let mut raw = args.json.then(|| folder.dir.open_read(log::NAME)).transpose()?.map(|file| Raw { file, offset: 0 });
    loop {
        if let Some(bell) = &bell {
            bell.drain();
        }
        let mut ended = false;
        let mut out = String::new();
        let read = tape.read(|event| {
            ended |= matches!(event.body, crate::model::event::Body::RunEnded(_));
            if !args.json {
                let who = event.worker.map(|w| w.to_string()).unwrap_or_default();
                out.push_str(&format_line(event.seq, when::clock(&event.ts), &who, event.body.name()));
                out.push_str(&lines::any(event, &plan, &state));
                out.push('\n');
            }
        });
        let heard = match &mut raw {
            Some(raw) => raw.copy()?,
            None => print::raw(out.as_bytes()),
        };
        read.map_err(|e| folder.told(e))?;
        let Some(bell) = bell.as_ref().filter(|_| heard && !ended) else { return Ok(Exit::Ok) };
        bell::wait(&[bell], &[termination.fd()], SAFETY)?;
        if termination.take().is_some() {
            return Ok(Exit::Interrupted);
        }
    }
}

fn format_line(seq: u64, clock: &str, who: &str, kind: &str) -> String {
    format!("{seq:>5}  {clock}  {who:<3}  {kind:<15}  ")
}

/// The log's bytes as they come, whole lines only.
struct Raw {
    file: File,
    offset: u64,
}

impl Raw {
    /// Prints what is new; `false`: nobody reads any more.
    fn copy(&mut self) -> anyhow::Result<bool> {
        let mut bytes = vec![0_u8; CHUNK];
        loop {
            let n = self.file.read_at(&mut bytes, self.offset).context("cannot read events.jsonl")?;
            let Some(last) = bytes[..n].iter().rposition(|b| *b == b'\n') else { return Ok(true) };
            self.offset += last as u64 + 1;
            if !print::raw(&bytes[..=last]) {
                return Ok(false);
            }
        }
    }
}
