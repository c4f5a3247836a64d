//! `cpw logs`: what tasks wrote to stdout and stderr, of one task or of several, merged by time with the task's name before
//! each line. Which line comes when is `store::output`'s business, how it begins `ui::prefix`'s.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::Context;

use crate::actor::crew::{self, Tended};
use crate::actor::vigil::Vigil;
use crate::base::exit::{Exit, Wrong};
use crate::base::text;
use crate::cmd::find;
use crate::logic::state::State;
use crate::logic::wake::Concern;
use crate::model::event::{Body, Event};
use crate::model::plan::Plan;
use crate::store::bells;
use crate::store::log::LogError;
use crate::store::output::{Attempt, Outputs, Piece, What};
use crate::store::registry;
use crate::store::run::{Run, RunDir};
use crate::sys::bell;
use crate::sys::clock;
use crate::sys::host;
use crate::sys::signals;
use crate::ui::paint::Paint;
use crate::ui::prefix::Prefix;
use crate::ui::print;
use crate::ui::when;

/// How often the files of running tasks are looked at: nobody rings for a line.
const TICK: Duration = Duration::from_millis(250);

/// Bytes that are written at once.
const CHUNK: usize = 64 * 1024;

/// Show what tasks wrote to stdout and stderr
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = "Examples:\n  \
    cpw logs                     all tasks of the newest run here, each line behind its task\n  \
    cpw logs build               one task, all its attempts; through a pipe byte for byte\n  \
    cpw logs build 'test-*' -t   several, merged, with the time of day (UTC)\n  \
    cpw logs build -f            as it grows, across attempts, until the task is over\n  \
    cpw logs -f -n 20            the last 20 lines, then what comes, until the run is over\n  \
    cpw logs --run 20261121-10   another run\n\n\
    Behind a task's name, `!` marks a line of stderr, and `#2` one of its second attempt. Lines carry the time at which\n\
    they were first seen, 2 seconds late at most.\n\n\
    Exit codes: 0 all was shown, however the tasks ended · 1 it cannot be read, or nobody works on the run any more ·\n\
    3 wrong usage · 130 Ctrl-C")]
pub struct Args {
    /// The tasks: ids, unique beginnings of them, or globs (all where absent)
    #[arg(value_name = "TASK")]
    tasks: Vec<String>,
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Go on until the tasks, or the run, are over
    #[arg(short, long)]
    follow: bool,
    /// Only the last N lines of what there is
    #[arg(short = 'n', long = "tail", value_name = "N")]
    tail: Option<u64>,
    /// Before each line the time of day, in UTC
    #[arg(short, long)]
    time: bool,
    /// Before each line the time since the run began
    #[arg(long, conflicts_with = "time")]
    since_start: bool,
    /// Only stdout
    #[arg(long, conflicts_with = "err")]
    out: bool,
    /// Only stderr
    #[arg(long)]
    err: bool,
    /// Only this attempt of each task
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    attempt: Option<u32>,
    /// Lines without the name of their task
    #[arg(long)]
    no_prefix: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let folder = find::run(&find::project()?, args.run.as_deref())?;
    let (plan, _) = folder.plan()?;
    let chosen = Chosen::of(args, &plan)?;
    let shown = Shown::new(args, &folder, &plan, chosen)?;
    if args.follow { follow(shown, folder.open_run()?) } else { once(shown, &folder) }
}

/// Shows what there is, also of a run that is damaged, as far as its log can be read.
fn once(mut shown: Shown, folder: &RunDir) -> anyhow::Result<Exit> {
    let read = folder.tape_as_it_is()?.read(|event| shown.apply(event));
    if shown.print(true)? {
        read.map_err(|e| folder.told(e))?;
        folder.check()?;
    }
    Ok(Exit::Ok)
}

/// Shows what there is and what comes. Who waits for output also sees to it that somebody works on the run.
fn follow(mut shown: Shown, mut run: Run) -> anyhow::Result<Exit> {
    let bell = bells::hang(&run.folder, &Concern::All).context("cannot wait for further output")?;
    let termination = signals::catch_termination()?;
    let mut tape = run.folder.tape()?;
    let mut vigil = Vigil::default();
    loop {
        bell.drain();
        // The state first: what it calls over has written all its output.
        run.refresh().map_err(|e| run.folder.told(e))?;
        let over = shown.chosen.is_over(&run.state);
        tape.read(|event| shown.apply(event)).map_err(|e| run.folder.told(e))?;
        if !shown.print(over)? || over {
            return Ok(Exit::Ok);
        }
        if run.state.view.ended.is_none() && is_abandoned(&mut vigil, &mut run)? {
            return Ok(Exit::Failed);
        }
        let mut fds: Vec<BorrowedFd<'_>> = vec![termination.fd()];
        fds.extend(vigil.fd());
        let tick = if run.state.running.is_empty() { vigil.longest() } else { TICK };
        if bell::wait(&[&bell], &fds, tick)?.get(1) == Some(&true) {
            vigil.died();
        }
        if termination.take().is_some() {
            return Ok(Exit::Interrupted);
        }
    }
}

/// Whether nobody works on the run and nobody can be brought to; says so.
pub(super) fn is_abandoned(vigil: &mut Vigil, run: &mut Run) -> anyhow::Result<bool> {
    let why = match vigil.keep(run) {
        // Busy: the next look tries again.
        Ok(Tended::Alive | Tended::Hired(_)) | Err(LogError::Busy) => return Ok(false),
        Ok(Tended::Foreign) => registry::FOREIGN,
        Ok(Tended::Nobody) => "its workers die again and again: see workers/*/logs/worker.jsonl of the run",
        Err(e) => return Err(e).context("no worker is alive and none could be started"),
    };
    let abandoned = run.state.view.ended.is_none() && !crew::anybody(&run.folder, &run.state.view);
    if abandoned {
        print::err(format_args!("cpw: nothing more will come of run {}: {why}", run.plan.run));
    }
    Ok(abandoned)
}

/// What is to be shown of a run.
struct Chosen {
    /// Places in the plan; all where absent.
    tasks: Option<BTreeSet<usize>>,
    attempt: Option<u32>,
}

impl Chosen {
    fn of(args: &Args, plan: &Plan) -> Result<Chosen, Wrong> {
        let mut tasks = BTreeSet::new();
        for given in &args.tasks {
            tasks.extend(find::tasks(plan, given)?);
        }
        Ok(Chosen { tasks: (!args.tasks.is_empty()).then_some(tasks), attempt: args.attempt })
    }

    fn has(&self, state: &State, event: &Event) -> bool {
        let task = event.task.as_ref().and_then(|task| state.index_of(task));
        let wanted = self.tasks.as_ref().is_none_or(|tasks| task.is_some_and(|i| tasks.contains(&i)));
        wanted && self.attempt.is_none_or(|n| event.attempt == Some(n))
    }

    /// Whether nothing more can come of it.
    fn is_over(&self, state: &State) -> bool {
        let over = |i: usize| {
            let task = &state.tasks[i];
            let passed = |n| task.attempts > n || (task.attempts == n && task.open.is_none());
            task.phase.is_final() || self.attempt.is_some_and(passed)
        };
        state.view.ended.is_some() || self.tasks.as_ref().is_some_and(|tasks| tasks.iter().all(|&i| over(i)))
    }
}

/// What stands before a line about time.
#[derive(Clone, Copy)]
enum Time {
    OfDay,
    SinceStart,
}

struct Shown {
    outputs: Outputs,
    chosen: Chosen,
    /// Only for finding tasks by their name: nothing is folded.
    state: State,
    /// The last lines, as long as nothing was shown.
    tail: Option<u64>,
    page: Page,
}

/// What the lines are written on.
struct Page {
    time: Option<Time>,
    /// When the run began: wall-clock time since 1970, and `CLOCK_MONOTONIC`, both in milliseconds.
    begun: (i64, u64),
    prefix: Prefix,
    names: bool,
    terminal: bool,
    /// The attempt that was named last, where one task is shown without its name.
    attempt: u32,
    out: Vec<u8>,
}

impl Shown {
    fn new(args: &Args, folder: &RunDir, plan: &Plan, chosen: Chosen) -> anyhow::Result<Shown> {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let columns = host::terminal_size(&stdout).map(|(columns, _)| usize::from(columns));
        let several = chosen.tasks.as_ref().map_or(plan.tasks.len(), BTreeSet::len) > 1;
        let of_day = args.time.then_some(Time::OfDay);
        Ok(Shown {
            outputs: Outputs::new(folder.again()?, [!args.err, !args.out], args.tail),
            chosen,
            state: State::new(plan),
            tail: args.tail,
            page: Page {
                time: if args.since_start { Some(Time::SinceStart) } else { of_day },
                begun: (0, 0),
                prefix: Prefix::new(Paint::for_stdout(), columns.filter(|_| terminal)),
                names: several && !args.no_prefix,
                terminal,
                attempt: 1,
                out: Vec::new(),
            },
        })
    }

    fn apply(&mut self, event: &Event) {
        if let Body::RunStarted(p) = &event.body {
            self.page.begun = (when::unix_ms(&event.ts).unwrap_or(0), p.mono_ms);
        }
        if self.chosen.has(&self.state, event) {
            let known = self.outputs.attempts().len();
            self.outputs.apply(event);
            for Attempt { task, number, worker, .. } in &self.outputs.attempts()[known..] {
                self.page.prefix.widen(task, *number, *worker);
            }
        }
    }

    /// Prints what is new; with `all` also a last line without line feed. `false`: nobody reads any more.
    fn print(&mut self, all: bool) -> anyhow::Result<bool> {
        const READ: &str = "cannot read a task's output";
        let mut skipped = match self.tail.take() {
            // Of several files, each gave its last lines: the last of these are wanted.
            Some(lines) => count(self.outputs.afresh()?, all).context(READ)?.saturating_sub(lines),
            None => 0,
        };
        let Shown { outputs, page, .. } = self;
        let heard = outputs.read(all, |attempt, piece| {
            if skipped > 0 {
                skipped -= u64::from(ends_line(&piece.what));
                return true;
            }
            page.piece(attempt, &piece)
        });
        outputs.whole_from_now();
        Ok(heard.context(READ)? && page.flush())
    }
}

impl Page {
    fn piece(&mut self, attempt: &Attempt, piece: &Piece<'_>) -> bool {
        if !self.names && attempt.number != self.attempt {
            self.attempt = attempt.number;
            self.aside(&format!("attempt {}", attempt.number));
        }
        let time = self.time.map(|kind| self.stamp(kind, piece.at_ms));
        let before = if self.names {
            self.prefix.of(time.as_deref(), &attempt.task, attempt.number, attempt.worker, piece.stream)
        } else {
            self.prefix.time(time.as_deref())
        };
        let line = match piece.what {
            What::Line(line) | What::Part(line) => line,
            What::Hole(bytes) => {
                let said = format!("{bytes} bytes are cut out here");
                if before.is_empty() {
                    self.aside(&said);
                } else {
                    self.out.extend_from_slice(format!("{before}[cpw: {said}]\n").as_bytes());
                }
                return true;
            }
        };
        self.out.extend_from_slice(before.as_bytes());
        if self.terminal {
            self.out.extend_from_slice(text::for_terminal(&String::from_utf8_lossy(line)).as_bytes());
        } else {
            self.out.extend_from_slice(line);
        }
        if !before.is_empty() && !line.ends_with(b"\n") {
            self.out.push(b'\n');
        }
        self.out.len() < CHUNK || self.flush()
    }

    /// Says something that is no task's output, at its place.
    fn aside(&mut self, said: &str) {
        self.flush();
        print::err(format_args!("cpw: {said}"));
    }

    fn flush(&mut self) -> bool {
        let out = std::mem::take(&mut self.out);
        out.is_empty() || print::raw(&out)
    }

    /// When a line was there, to the tenth of a second.
    fn stamp(&self, kind: Time, at_ms: Option<u64>) -> String {
        let passed = at_ms.unwrap_or_else(clock::mono_ms).saturating_sub(self.begun.1);
        let mut text = match kind {
            Time::SinceStart => when::since(passed),
            Time::OfDay => when::time_of_day(self.begun.0.saturating_add_unsigned(passed)),
        };
        text.truncate(text.len() - 2);
        text
    }
}

fn ends_line(what: &What<'_>) -> bool {
    matches!(what, What::Line(_))
}

fn count(mut outputs: Outputs, all: bool) -> std::io::Result<u64> {
    let mut lines = 0;
    outputs.read(all, |_, piece| {
        lines += u64::from(ends_line(&piece.what));
        true
    })?;
    Ok(lines)
}
