//! `cpw events`: the log of a run, as rows for people or as it is.

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::Context;

use crate::actor::vigil::Vigil;
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::TaskId;
use crate::cmd::{find, logs};
use crate::logic::state::State;
use crate::logic::wake::Concern;
use crate::model::event::{Body, Event};
use crate::model::plan::Plan;
use crate::store::bells;
use crate::sys::bell;
use crate::sys::host;
use crate::sys::signals;
use crate::ui::ledger::Ledger;
use crate::ui::paint::Paint;
use crate::ui::print;

/// The longest time without a look, should a ring be lost.
const SAFETY: Duration = Duration::from_mins(1);

/// Bytes that are written at once.
const CHUNK: usize = 64 * 1024;

/// Show the events of a run
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw events                           of the newest run here\n  \
    cpw events -f --since-start          until the run ends, with the time since it began\n  \
    cpw events --task build --from 120   what happened to one task from event 120 on\n  \
    cpw events --kind failed,lost        only what went wrong\n  \
    cpw events --json | jq .t            the lines as they are in events.jsonl\n\n\
    Times are UTC. Of a damaged log all that can be read is shown, then what is wrong and where. With -f an open run whose \
    workers are all dead gets a new one, as by cpw status; where none can be had, the exit code is 1.")]
pub struct Args {
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Go on until the run ends
    #[arg(short, long)]
    follow: bool,
    /// Only events of this task: its id, a unique beginning of it, or a glob (can be repeated)
    #[arg(long = "task", value_name = "TASK")]
    tasks: Vec<String>,
    /// Only events of these kinds: done, failed … (docs/events.md); unknown: those of a newer cpw
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<String>,
    /// Only this event and later ones
    #[arg(long, value_name = "SEQ", default_value_t = 1, hide_default_value = true)]
    from: u64,
    /// The time since the run began instead of the time of day
    #[arg(long, conflicts_with = "json")]
    since_start: bool,
    /// The lines as they are
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let folder = find::run(&find::project()?, args.run.as_deref())?;
    // The lines as they are can be had without it.
    let plan = if args.json && args.tasks.is_empty() { None } else { Some(folder.plan()?.0) };
    let wanted = Wanted::of(args, plan.as_ref())?;
    let mut rows = plan.as_ref().filter(|_| !args.json).map(|plan| Rows::new(args, plan));
    let bell = if args.follow {
        Some(bells::hang(&folder, &Concern::All).context("cannot wait for further events")?)
    } else {
        None
    };
    let termination = signals::catch_termination()?;
    let mut tape = folder.tape_as_it_is()?;
    // Of a damaged run nobody goes on; what can be read of it is shown.
    let mut run = if args.follow { folder.again()?.open_run().ok() } else { None };
    let mut vigil = Vigil::default();
    loop {
        if let Some(bell) = &bell {
            bell.drain();
        }
        let (mut ended, mut heard, mut out) = (false, true, Vec::new());
        let read = tape.lines(|event, line| {
            ended |= matches!(event.body, Body::RunEnded(_));
            match &mut rows {
                Some(rows) => rows.add(event, line, wanted.has(event), &mut out),
                None if wanted.has(event) => out.extend([line, b"\n"].concat()),
                None => {}
            }
            if heard && out.len() >= CHUNK {
                heard = print::raw(&std::mem::take(&mut out));
            }
        });
        heard = heard && (out.is_empty() || print::raw(&out));
        read.map_err(|e| folder.told(e))?;
        let Some(bell) = bell.as_ref().filter(|_| heard && !ended) else {
            folder.check()?;
            return Ok(Exit::Ok);
        };
        let mut longest = SAFETY;
        if let Some(run) = &mut run {
            run.refresh().map_err(|e| run.folder.told(e))?;
            if run.state.view.ended.is_some() {
                continue;
            }
            if logs::is_abandoned(&mut vigil, run)? {
                return Ok(Exit::Failed);
            }
            longest = vigil.longest();
        } else {
            folder.check()?;
        }
        let mut fds: Vec<BorrowedFd<'_>> = vec![termination.fd()];
        fds.extend(vigil.fd());
        if bell::wait(&[bell], &fds, longest)?.get(1) == Some(&true) {
            vigil.died();
        }
        if termination.take().is_some() {
            return Ok(Exit::Interrupted);
        }
    }
}

/// Which events are shown.
struct Wanted<'a> {
    tasks: BTreeSet<TaskId>,
    kinds: &'a [String],
    from: u64,
}

impl Wanted<'_> {
    fn of<'a>(args: &'a Args, plan: Option<&Plan>) -> Result<Wanted<'a>, Wrong> {
        let known = |kind: &String| kind == Body::Unknown.name() || Body::NAMES.contains(&kind.as_str());
        if let Some(kind) = args.kinds.iter().find(|kind| !known(kind)) {
            let what = format!("there is no kind of event '{kind}'");
            return Err(Wrong::with_hint(what, format!("one of {}", Body::NAMES.join(", "))));
        }
        let mut tasks = BTreeSet::new();
        for (given, plan) in args.tasks.iter().zip(plan.into_iter().cycle()) {
            tasks.extend(find::tasks(plan, given)?.into_iter().map(|i| plan.tasks[i].id.clone()));
        }
        Ok(Wanted { tasks, kinds: &args.kinds, from: args.from })
    }

    fn has(&self, event: &Event) -> bool {
        event.seq >= self.from
            && (self.tasks.is_empty() || event.task.as_ref().is_some_and(|task| self.tasks.contains(task)))
            && (self.kinds.is_empty() || self.kinds.iter().any(|kind| kind == event.body.name()))
    }
}

/// Events for people.
struct Rows<'a> {
    ledger: Ledger,
    plan: &'a Plan,
    /// Only for finding tasks by their name: nothing is folded.
    state: State,
}

impl Rows<'_> {
    fn new<'a>(args: &Args, plan: &'a Plan) -> Rows<'a> {
        Rows { ledger: ledger(args.since_start), plan, state: State::new(plan) }
    }

    fn add(&mut self, event: &Event, line: &[u8], wanted: bool, out: &mut Vec<u8>) {
        if event.seq == 1 {
            self.ledger.begun.clone_from(&event.ts);
        }
        if wanted {
            out.extend(self.ledger.row(event, line, self.plan, &self.state).into_bytes());
        }
    }
}

/// Rows for stdout as it is, of a run whose beginning is not known yet.
pub(super) fn ledger(since_start: bool) -> Ledger {
    let stdout = std::io::stdout();
    let columns = host::terminal_size(&stdout).map(|(columns, _)| usize::from(columns));
    let columns = columns.or(stdout.is_terminal().then_some(80));
    Ledger { paint: Paint::for_stdout(), columns, since_start, begun: String::new() }
}
