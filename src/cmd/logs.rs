//! `cpw logs`: what tasks wrote to stdout and stderr, of one task or of all with the task's name before each line.

use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::Context;

use crate::base::exit::Exit;
use crate::base::ids::{TaskId, WorkerNo};
use crate::base::text;
use crate::cmd::find;
use crate::logic::wake::Concern;
use crate::model::event::Body;
use crate::store::bells;
use crate::store::run::RunDir;
use crate::sys::bell;
use crate::sys::signals;
use crate::sys::spool;
use crate::ui::paint::Paint;
use crate::ui::print;

/// How often the files of running tasks are looked at: nobody rings for a line.
const TICK: Duration = Duration::from_millis(250);

/// The longest time without a look while nothing runs.
const SAFETY: Duration = Duration::from_mins(1);

/// Bytes that are read at once, and the longest line that is kept together.
const CHUNK: usize = 64 * 1024;

/// Show what tasks wrote to stdout and stderr
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw logs                     all tasks of the newest run here, each line behind its task\n  \
    cpw logs build               one task, all its attempts\n  \
    cpw logs build -f            as it grows, across attempts, until the task is over\n  \
    cpw logs --run 20261121-10   another run")]
pub struct Args {
    /// The task: its id or a unique beginning of it (all where absent)
    task: Option<String>,
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Go on until the task, or the run, is over
    #[arg(short, long)]
    follow: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let folder = find::run(&find::project()?, args.run.as_deref())?;
    let mut run = folder.open_run()?;
    let only = args.task.as_deref().map(|given| find::task(&run.plan, given)).transpose()?;
    let bell = if args.follow {
        Some(bells::hang(&folder, &Concern::All).context("cannot wait for further output")?)
    } else {
        None
    };
    let termination = signals::catch_termination()?;
    let mut shown = Shown {
        folder,
        attempts: Vec::new(),
        prefix: only.is_none() && run.plan.tasks.len() > 1,
        width: run.plan.tasks.iter().map(|t| t.id.as_str().len()).max().unwrap_or(0),
        terminal: std::io::stdout().is_terminal(),
        paint: Paint::for_stdout(),
    };
    let mut tape = shown.folder.tape()?;
    let wanted = only.map(|i| run.plan.tasks[i].id.clone());
    loop {
        if let Some(bell) = &bell {
            bell.drain();
        }
        // The state first: what it calls over has written all its output.
        run.refresh().map_err(|e| run.folder.told(e))?;
        let over = match only {
            Some(i) => run.state.tasks[i].phase.is_final(),
            None => run.state.view.ended.is_some(),
        };
        let mut failed = None;
        tape.read(|event| {
            let (Body::Started(_), Some(task), Some(worker), Some(n)) =
                (&event.body, &event.task, event.worker, event.attempt)
            else {
                return;
            };
            if wanted.as_ref().is_none_or(|w| w == task) {
                failed = shown.add(task, worker, n).err().or(failed.take());
            }
        })?;
        if let Some(e) = failed {
            return Err(e);
        }
        let heard = shown.print(over || bell.is_none())?;
        let Some(bell) = bell.as_ref().filter(|_| heard && !over) else { return Ok(Exit::Ok) };
        let tick = if run.state.running.is_empty() { SAFETY } else { TICK };
        bell::wait(&[bell], &[termination.fd()], tick)?;
        if termination.take().is_some() {
            return Ok(Exit::Interrupted);
        }
    }
}

struct Shown {
    folder: RunDir,
    attempts: Vec<Attempt>,
    prefix: bool,
    width: usize,
    terminal: bool,
    paint: Paint,
}

struct Attempt {
    task: TaskId,
    worker: WorkerNo,
    number: u32,
    streams: [Stream; 2],
}

/// One file as it grows.
#[derive(Default)]
struct Stream {
    file: Option<File>,
    offset: u64,
    line: Vec<u8>,
}

impl Shown {
    fn add(&mut self, task: &TaskId, worker: WorkerNo, number: u32) -> anyhow::Result<()> {
        if number > 1 && !self.prefix {
            // Everything of the attempt before comes first.
            self.print(true)?;
            print::err(format_args!("cpw: attempt {number}"));
        }
        self.attempts.push(Attempt { task: task.clone(), worker, number, streams: Default::default() });
        Ok(())
    }

    /// Prints what is new; with `all` also a last line without line feed. `false`: nobody reads any more.
    fn print(&mut self, all: bool) -> anyhow::Result<bool> {
        let Shown { folder, attempts, prefix, width, terminal, paint } = self;
        for attempt in attempts {
            let Attempt { task, worker, number, streams } = attempt;
            let before = if *prefix {
                format!("{} ", paint.busy(format_args!("{:<width$} |", task.as_str())))
            } else {
                String::new()
            };
            for (stream, ending) in streams.iter_mut().zip(["out", "err"]) {
                if stream.file.is_none() {
                    let name = format!("{task}.{number}.{ending}");
                    // Not there yet: an attempt is in the log before it has files.
                    stream.file = folder.worker(*worker).and_then(|w| w.sub("logs")?.open_read(name)).ok();
                }
                if !stream.print(before.as_bytes(), *terminal, all)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

impl Stream {
    fn print(&mut self, before: &[u8], terminal: bool, all: bool) -> anyhow::Result<bool> {
        let Some(file) = &self.file else { return Ok(true) };
        let mut bytes = vec![0_u8; CHUNK];
        // What has been given back to the disk, because it was too long, reads as zeros.
        let next = spool::next_data(file, self.offset);
        if next > self.offset {
            print::err(format_args!("cpw: {} bytes are cut out here", next - self.offset));
            self.offset = next;
        }
        loop {
            let n = file.read_at(&mut bytes, self.offset).context("cannot read a task's output")?;
            self.offset += n as u64;
            let mut out = Vec::with_capacity(n);
            for &b in &bytes[..n] {
                self.line.push(b);
                if b == b'\n' || self.line.len() >= CHUNK {
                    flush(&mut self.line, before, terminal, &mut out);
                }
            }
            if n == 0 && all && !self.line.is_empty() {
                flush(&mut self.line, before, terminal, &mut out);
            }
            if !out.is_empty() && !print::raw(&out) {
                return Ok(false);
            }
            if n == 0 {
                return Ok(true);
            }
        }
    }
}

fn flush(line: &mut Vec<u8>, before: &[u8], terminal: bool, out: &mut Vec<u8>) {
    out.extend_from_slice(before);
    if terminal {
        out.extend_from_slice(text::for_terminal(&String::from_utf8_lossy(line)).as_bytes());
    } else {
        out.extend_from_slice(line);
    }
    if !before.is_empty() && line.last() != Some(&b'\n') {
        out.push(b'\n');
    }
    line.clear();
}
