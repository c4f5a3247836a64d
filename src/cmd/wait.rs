//! `cpw wait`: waits until tasks are done or have come to checkpoints, votes are decided, a run has ended, or the session has made a call, and
//! tells which by its exit code. Sleeps until a bell rings; a run whose workers are all dead gets a new one, as with every
//! command that looks. A task that waits for its own run says so in the log, where who would close a circle is refused.

use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::actor::crew::{self, Tended};
use crate::actor::vigil::Vigil;
use crate::base::env;
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::{CheckpointName, TaskId};
use crate::base::span::Span;
use crate::base::text::one_line;
use crate::cmd::inside::Inside;
use crate::cmd::{find, inside};
use crate::logic::circle;
use crate::logic::conductor;
use crate::logic::leases::Leases;
use crate::logic::state::{On, State};
use crate::logic::view::{MAX_AWAITING, Phase, View};
use crate::logic::wake::Concern;
use crate::model::event::{Awaited, Body, Draft, Verdict};
use crate::model::matcher::Matcher;
use crate::model::plan::Plan;
use crate::model::vote::Choice;
use crate::store::bells;
use crate::store::leases::Desk;
use crate::store::log::{LogError, Tape};
use crate::store::registry;
use crate::store::run::{Run, RunDir};
use crate::sys::bell::{self, Bell};
use crate::sys::clock;
use crate::sys::signals;
use crate::ui::lines;
use crate::ui::print;

/// For how long a task waits that does not say.
const INSIDE: Span = Span::from_secs(30 * 60);

/// Wait until tasks are done, have come to checkpoints, votes are decided, a run has ended, or the session has made a call
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("aim").args(["tasks", "checkpoints", "verdicts", "conductor", "end"]).required(true).multiple(true))]
#[command(after_help = "Examples:\n  \
    cpw wait --run                    until the newest run here has ended\n  \
    cpw wait --task build             until its task `build` is done\n  \
    cpw wait --checkpoint build@compiled --timeout 30s   until `build` has said `cpw checkpoint compiled`\n  \
    cpw wait --checkpoint a@ready --checkpoint b@ready --task c   until all of it has happened\n  \
    cpw wait --run 20261121-10        another run, by a unique beginning of its id\n  \
    cpw wait --task build --timeout 5m && ./deploy.sh\n  \
    cpw wait --verdict deploy --timeout 5m && ./deploy.sh   until the vote about it is decided\n  \
    cpw wait --conductor 'Read(data1.csv)' --timeout 30s   until the session reads it, or tries to\n  \
    cpw wait --conductor 'Bash(git commit*)'               until it commits\n\n\
    Inside a task it means the task's own run. Waiting costs nothing while nothing happens. Inside a task it lasts at most 30\n\
    minutes without --timeout, and never longer than its attempt; a task that would wait for what waits for it is refused.\n\
    A call of the session counts also if it was made before, where a task claimed its file.\n\
    Exit code: 0 all of it has happened, the vote says proceed, the run is ok, the call was made · 1 something of it can no longer happen, and why · \
    3 wrong, or it would wait for ever · 4 not within --timeout · 130 Ctrl-C, which ends only the waiting")]
pub struct Args {
    /// The task to wait for: its id or a unique beginning of it; several times for several
    #[arg(long = "task", value_name = "TASK",
        conflicts_with_all = ["end", "conductor"])]
    tasks: Vec<String>,
    /// The checkpoint of a task to wait for; several times for several
    #[arg(long = "checkpoint", value_name = "TASK@NAME", conflicts_with_all = ["end", "conductor"])]
    checkpoints: Vec<String>,
    /// The vote to wait for, by its topic; several times for several
    #[arg(long = "verdict", value_name = "TOPIC", conflicts_with_all = ["end", "conductor"])]
    verdicts: Vec<String>,
    /// Wait until the session makes such a call, or tries to: a tool, and in parentheses a glob over its file or command
    #[arg(long, value_name = "CALL", conflicts_with = "end")]
    conductor: Option<String>,
    /// Wait for the end of the run
    #[arg(long = "run")]
    end: bool,
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// How long to wait at most, such as 30s or 5m (for ever where absent; inside a task 30m)
    #[arg(long, value_parser = span)]
    timeout: Option<Span>,
    /// Print what came of it as one JSON object
    #[arg(long)]
    json: bool,
}

fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).ok_or_else(|| "a duration is written 30s, 5m or 1h".to_owned())
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Aim {
    /// The outcome of a task, or a checkpoint of it.
    Task(On),
    /// What comes out of a vote, by its place in the plan.
    Verdict(usize),
    /// The end of the run.
    End,
    /// A call of the session.
    Call,
}

impl Aim {
    /// All that the command line asks for, each once.
    fn all(args: &Args, plan: &Plan) -> Result<Vec<Aim>, Wrong> {
        let mut aims = Vec::new();
        for given in &args.tasks {
            aims.push(Aim::Task(On { task: find::task(plan, given)?, checkpoint: None }));
        }
        for given in &args.checkpoints {
            let wrong = |why: String| Wrong::with_hint(why, "a checkpoint is written build@compiled");
            let shown = one_line(given, 120);
            let (task, name) =
                given.split_once('@').ok_or_else(|| wrong(format!("--checkpoint '{shown}' names no checkpoint")))?;
            let name = CheckpointName::new(name).map_err(|e| wrong(format!("--checkpoint '{shown}': the name {e}")))?;
            aims.push(Aim::Task(On { task: find::task(plan, task)?, checkpoint: Some(name) }));
        }
        for given in &args.verdicts {
            aims.push(Aim::Verdict(vote(plan, given)?));
        }
        if aims.is_empty() {
            aims.push(if args.conductor.is_some() { Aim::Call } else { Aim::End });
        }
        let mut once: Vec<Aim> = Vec::new();
        for aim in aims {
            if !once.contains(&aim) {
                once.push(aim);
            }
        }
        Ok(once)
    }

    /// As plans and the log write it.
    fn name(&self, plan: &Plan) -> String {
        match self {
            Aim::Task(on) => on.name(plan),
            Aim::Verdict(vote) => format!("{}?", plan.votes[*vote].topic),
            Aim::End => "run".into(),
            Aim::Call => "call".into(),
        }
    }

    /// Whose bell rings when it may have happened.
    fn concern(&self, plan: &Plan) -> Concern {
        match self {
            Aim::Task(on) => Concern::Task(plan.tasks[on.task].id.clone()),
            Aim::Verdict(vote) => Concern::Vote(plan.votes[*vote].topic.clone()),
            Aim::End => Concern::End,
            Aim::Call => Concern::Observed,
        }
    }
}

/// What became of it.
enum Came {
    /// It happened.
    Yes(String),
    /// It cannot happen any more.
    Never(String),
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let (folder, own) = match args.run.as_deref() {
        None => match inside::own_run()? {
            Some(own) => (own, std::env::var(env::TASK).ok().and_then(|id| TaskId::new(&id).ok())),
            None => (find::run(&find::project()?, None)?, None),
        },
        given => (find::run(&find::project()?, given)?, None),
    };
    let begun = clock::mono_ms();
    let mut run = folder.open_run()?;
    let aims = Aim::all(args, &run.plan)?;
    // Inside a task of the run, its own worker is alive; and a worker that a task starts would end with the task.
    let inside = own.is_some();
    if let Some(own) = own.filter(|_| aims.contains(&Aim::End)) {
        let what = format!("task {own} would wait for ever: its run ends after it");
        return Err(Wrong::with_hint(what, "wait for the tasks that are meant: --task").into());
    }
    let default = std::env::var_os(env::TASK).filter(|task| !task.is_empty()).map(|_| INSIDE);
    let limit = args.timeout.or(default);
    let termination = signals::catch_termination()?;
    let hook = |aim: &Aim| bells::hang(&folder, &aim.concern(&run.plan));
    let hung: Vec<Bell> = aims.iter().map(hook).collect::<Result<_, _>>().context("cannot wait for news of the run")?;
    let bells: Vec<&Bell> = hung.iter().collect();
    let mut call = args.conductor.as_deref().map(|call| Call::await_in(&folder, call, inside)).transpose()?;
    let mut waiting = None;
    let mut vigil = Vigil::default();
    let outcome = loop {
        for bell in &bells {
            bell.drain();
        }
        if termination.take().is_some() {
            break (Exit::Interrupted, String::new());
        }
        run.refresh()?;
        if inside && waiting.is_none() {
            waiting = Some(Waiting::begin(&mut run, &aims)?);
        }
        let seen = call.as_mut().map(Call::look).transpose()?.flatten();
        let came = match seen.map(Came::Yes).or_else(|| all_came(&run, &aims)) {
            None if !inside => tend(&mut vigil, &mut run, &folder)?,
            came => came,
        };
        match came {
            Some(Came::Yes(what)) => break (Exit::Ok, what),
            Some(Came::Never(why)) => break (Exit::Failed, why),
            None => {}
        }
        let passed = Duration::from_millis(clock::mono_ms().saturating_sub(begun));
        let left = limit.map(|limit| limit.to_std().saturating_sub(passed));
        if left.is_some_and(|left| left.is_zero()) {
            let why = if args.timeout.is_some() { "" } else { ": inside a task that is 30m without --timeout" };
            break (Exit::TimedOut, format!("{}; not waited for any longer{why}", stand(&run, &aims)));
        }
        let mut fds = vec![termination.fd()];
        fds.extend(vigil.fd());
        let longest = vigil.longest();
        let ready = bell::wait(&bells, &fds, left.map_or(longest, |left| left.min(longest)))?;
        if ready.get(1) == Some(&true) {
            vigil.died();
        }
    };
    if let Some(waiting) = waiting {
        waiting.end(&mut run);
    }
    if outcome.0 != Exit::Interrupted {
        tell(args, &run, &aims, &outcome);
    }
    Ok(outcome.0)
}

/// Says what came of it.
fn tell(args: &Args, run: &Run, aims: &[Aim], (exit, said): &(Exit, String)) {
    if args.json {
        let word = match exit {
            Exit::Ok => "happened",
            Exit::TimedOut => "timeout",
            _ => "never",
        };
        let names: Vec<String> = aims.iter().map(|aim| aim.name(&run.plan)).collect();
        let mut data = Map::new();
        for aim in aims {
            if let Some(found) = handed(run, aim) {
                data.insert(aim.name(&run.plan), found);
            }
        }
        let mut all = json!({ "outcome": word, "on": names, "said": said });
        if !data.is_empty() {
            all["data"] = data.into();
        }
        print::out(all);
    } else if *exit == Exit::Ok {
        print::out(said);
    } else {
        print::err(format_args!("cpw: {said}"));
    }
}

/// What was handed over with a checkpoint that has happened; null for nothing.
fn handed(run: &Run, aim: &Aim) -> Option<Value> {
    let Aim::Task(On { task, checkpoint: Some(name) }) = aim else { return None };
    run.state.tasks[*task].checkpoints.get(name).map(|data| data.clone().unwrap_or_default())
}

/// That this task waits, in the log, where who waits for whom can be seen.
struct Waiting {
    inside: Inside,
    ids: Vec<u64>,
}

impl Waiting {
    /// Says what is waited for and has not come yet; an error with the circle that this would close.
    fn begin(run: &mut Run, aims: &[Aim]) -> anyhow::Result<Waiting> {
        let inside = inside::attempt("wait")?;
        let mut ids = Vec::new();
        let desk = inside.folder.path().parent().map(Desk::existing).transpose()?.flatten();
        let mut begin = |leases: &Leases| {
            run.transact(|tx, plan| {
                let Some(own) = tx.fold.index_of(&inside.task) else { return Ok(None) };
                let is_own = tx.fold.tasks[own].open.as_ref().is_some_and(|open| open.number == inside.attempt);
                let on: Vec<On> = aims
                    .iter()
                    .filter_map(|aim| if let Aim::Task(on) = aim { Some(on.clone()) } else { None })
                    .collect();
                let votes: Vec<usize> = aims
                    .iter()
                    .filter_map(|aim| if let Aim::Verdict(vote) = aim { Some(*vote) } else { None })
                    .collect();
                if !is_own || on.is_empty() && votes.is_empty() || tx.fold.view.ended.is_some() {
                    return Ok(None);
                }
                let held_up = circle::held_up(tx.fold, plan, leases);
                if let Some(why) = circle::refusal(tx.fold, plan, own, &on, &votes, &held_up) {
                    return Ok(Some(why));
                }
                for aim in aims {
                    if came(plan, tx.fold, aim).is_some() {
                        continue;
                    }
                    let id = tx.fold.view.seq + 1;
                    let on = Some(aim.name(plan));
                    let body = Body::Awaited(Awaited { id, matcher: None, on, done: false });
                    tx.emit(Draft::attempt(Some(inside.worker), &inside.task, inside.attempt, body))?;
                    ids.push(id);
                }
                Ok(None)
            })
        };
        // Under the lock of the leases, so that of two who wait, one for the other and one for what it holds, the second sees
        // the first.
        let refused = match desk {
            Some(mut desk) => desk.under_lock(begin)?,
            None => begin(&Leases::default()),
        };
        match refused.context("cannot write to the run's log")? {
            Some(why) => Err(Wrong::new(format!("task {} {why}", inside.task)).into()),
            None => Ok(Waiting { inside, ids }),
        }
    }

    /// Says that it is over; where that cannot be said, it ends with the attempt.
    fn end(self, run: &mut Run) {
        let Waiting { inside, ids } = self;
        if ids.is_empty() {
            return;
        }
        let said = run.transact(|tx, plan| {
            for id in ids {
                let task = tx.fold.waits.get(&id).map(|waits| waits.on.name(plan));
                let vote = tx.fold.vote_waits.get(&id).map(|(_, vote)| Aim::Verdict(*vote).name(plan));
                let Some(on) = task.or(vote).map(Some) else { continue };
                let body = Body::Awaited(Awaited { id, matcher: None, on, done: true });
                tx.emit(Draft::attempt(Some(inside.worker), &inside.task, inside.attempt, body))?;
            }
            Ok(())
        });
        drop(said);
    }
}

/// Sees to it that somebody works on the run; without anybody, it cannot happen.
fn tend(vigil: &mut Vigil, run: &mut Run, folder: &RunDir) -> anyhow::Result<Option<Came>> {
    let never = |why: &str| Some(Came::Never(format!("run {} does not go on: {why}", folder.shown())));
    match vigil.keep(run) {
        // Busy: the next look tries again. Ended meanwhile: the next look sees it.
        Ok(Tended::Alive | Tended::Hired(_)) | Err(LogError::Busy) => Ok(None),
        Ok(Tended::Nobody) if run.state.view.ended.is_some() => Ok(None),
        Ok(Tended::Nobody) => Ok(never("its workers die again and again; see workers/*/logs/worker.jsonl in it")),
        Ok(Tended::Foreign) if crew::anybody(folder, &run.state.view) => Ok(None),
        Ok(Tended::Foreign) => Ok(never(registry::FOREIGN)),
        Err(e) => Err(e).context("no worker is alive and none could be started"),
    }
}

/// What became of all of it: it has happened when all has, and can no longer when one cannot.
fn all_came(run: &Run, aims: &[Aim]) -> Option<Came> {
    let mut said = Vec::new();
    let mut open = false;
    for aim in aims {
        match came(&run.plan, &run.state, aim) {
            Some(Came::Never(why)) => return Some(Came::Never(why)),
            Some(Came::Yes(what)) => said.push(what),
            None => open = true,
        }
    }
    (!open).then(|| Came::Yes(said.join("\n")))
}

/// The place of the vote about a topic.
fn vote(plan: &Plan, given: &str) -> Result<usize, Wrong> {
    let topics: Vec<&str> = plan.votes.iter().map(|vote| vote.topic.as_str()).collect();
    topics.iter().position(|topic| *topic == given).ok_or_else(|| {
        let what = format!("nobody votes about '{}' in run {}", one_line(given, 80), plan.run);
        let has = format!("its votes are {}", topics.join(", "));
        Wrong::with_hint(what, if topics.is_empty() { "its plan has no votes".to_owned() } else { has })
    })
}

fn came(plan: &Plan, state: &State, aim: &Aim) -> Option<Came> {
    match aim {
        Aim::Verdict(vote) => {
            let poll = &state.view.polls[*vote];
            match &poll.verdict {
                None if state.view.ended.is_some() => {
                    Some(Came::Never(format!("{}; the run has ended", poll.stands())))
                }
                None => None,
                Some(verdict) if verdict.result == Choice::Proceed => Some(Came::Yes(poll.stands())),
                Some(_) => Some(Came::Never(poll.stands())),
            }
        }
        Aim::End => {
            let end = state.view.ended.as_ref()?;
            let said = format!(
                "run {} is {}: {}, {}",
                plan.run,
                lines::verdict(end.status),
                one_line(&end.reason, 200),
                lines::tally(state.view.counts)
            );
            Some(if end.status == Verdict::Ok { Came::Yes(said) } else { Came::Never(said) })
        }
        Aim::Call => {
            let never = |why: &str| Some(Came::Never(format!("run {} {why}", plan.run)));
            if state.view.ended.is_some() {
                return never("has ended: no call of the session is written down any more");
            }
            state.view.session.is_none().then(|| never("belongs to no session")).flatten()
        }
        Aim::Task(on) => one_came(state, plan, on),
    }
}

/// What became of a task, or of a checkpoint of it.
fn one_came(state: &State, plan: &Plan, on: &On) -> Option<Came> {
    let (task, spec) = (&state.tasks[on.task], &plan.tasks[on.task]);
    if let Some(name) = &on.checkpoint {
        // Of a task that another run has done, nobody can tell any more what it came to.
        if let Some(data) = task.checkpoints.get(name) {
            let data = data.as_ref().map(|data| format!(": {}", one_line(&data.to_string(), 300)));
            return Some(Came::Yes(format!("{} has come to {name}{}", spec.id, data.unwrap_or_default())));
        }
        if task.is_taken {
            return Some(Came::Yes(format!("{} was done in the run that this one continues", spec.id)));
        }
        let over = task.phase.is_final();
        return over.then(|| Came::Never(format!("{} is {} and has not come to {name}", spec.id, task.phase.word())));
    }
    if !task.phase.is_final() {
        return None;
    }
    let line = task.line.as_deref().map(|line| format!(": {}", one_line(line, 300))).unwrap_or_default();
    let said = format!("{} is {}{line}", spec.id, task.phase.word());
    // As for those that need it: where it may fail, its failure counts.
    let tolerated = spec.allow_failure && matches!(task.phase, Phase::Failed | Phase::TimedOut | Phase::Lost);
    Some(if task.phase == Phase::Done || tolerated { Came::Yes(said) } else { Came::Never(said) })
}

/// Waiting for a call of the session: hooks write such calls down for as long as the log says that somebody waits.
struct Call {
    folder: RunDir,
    tape: Tape,
    matcher: Matcher,
    id: u64,
}

impl Call {
    /// Says so in the log: for the attempt that this process belongs to, where it does, and else for nobody's.
    fn await_in(folder: &RunDir, call: &str, inside: bool) -> anyhow::Result<Call> {
        let matcher = Matcher::parse(call).map_err(|why| Wrong::new(format!("'{call}': {why}")))?;
        let awaited = |view: &View, id| {
            let room = view.awaiting.len() < MAX_AWAITING;
            anyhow::ensure!(room, "{MAX_AWAITING} wait for calls of the session already");
            Ok(Body::Awaited(Awaited { id, matcher: Some(matcher.to_string()), on: None, done: false }))
        };
        let id = if inside {
            inside::attempt("wait --conductor")?.say_with(awaited)?
        } else {
            let said = folder.open_view()?.transact(folder, |tx| {
                if tx.fold.ended.is_some() {
                    return Ok(Ok(0));
                }
                match awaited(tx.fold, tx.fold.seq + 1) {
                    Ok(body) => tx.emit(Draft::run(body)).map(Ok),
                    Err(e) => Ok(Err(e)),
                }
            });
            said.context("cannot write to the run's log")??
        };
        Ok(Call { folder: folder.again()?, tape: folder.tape()?, matcher, id })
    }

    /// The call, if it was made.
    fn look(&mut self) -> anyhow::Result<Option<String>> {
        let project = self.folder.project.to_string_lossy().into_owned();
        let mut seen = None;
        self.tape.read(|event| {
            let Body::Observed(p) = &event.body else { return };
            let paths: Vec<String> = conductor::path_field(&p.tool).map(|_| p.target.clone()).into_iter().collect();
            if p.awaited.contains(&self.id) || self.matcher.matches(&p.tool, &p.target, &paths, &project) {
                let phase = if p.phase == "before" { "is about to make" } else { "has made" };
                let target = one_line(&p.target, 200);
                seen.get_or_insert_with(|| format!("the session {phase} the call {}({target})", one_line(&p.tool, 60)));
            }
        })?;
        Ok(seen)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // Where that cannot be said, it ends with the attempt or the run.
        let Ok(mut hooked) = self.folder.open_view() else { return };
        let over = Draft::run(Body::Awaited(Awaited { id: self.id, matcher: None, on: None, done: true }));
        drop(hooked.transact(&self.folder, |tx| {
            let waits = tx.fold.awaiting.iter().any(|a| a.id == self.id);
            if waits { tx.emit(over).map(drop) } else { Ok(()) }
        }));
    }
}

/// How it stands while it has not come.
fn stand(run: &Run, aims: &[Aim]) -> String {
    let Run { plan, state, .. } = run;
    let open = aims.iter().filter(|aim| came(plan, state, aim).is_none());
    let parts = open.map(|aim| match aim {
        Aim::End => format!("run {} is still active ({})", plan.run, lines::tally(state.view.counts)),
        Aim::Call => format!("the session has made no such call (run {})", plan.run),
        Aim::Verdict(vote) => state.view.polls[*vote].stands(),
        Aim::Task(On { task, checkpoint }) => {
            let id = &plan.tasks[*task].id;
            let without = checkpoint.as_ref().map(|name| format!(" and has not come to {name}"));
            format!("{id} is still {}{}", task_stands(state, *task), without.unwrap_or_default())
        }
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn task_stands(state: &State, i: usize) -> String {
    let task = &state.tasks[i];
    task.percent.map_or_else(|| task.phase.word().to_owned(), |p| format!("{} ({p} %)", task.phase.word()))
}
