//! The protocol as a state space, explored whole: workers and a hook take their steps in every order, die at every one of
//! them, also in the middle of a write, are taken for dead while they live, and tasks fail. What is decided and what follows
//! from it are the functions that the program runs (`logic::step`, `logic::sched`, `logic::state`); the lock, the write, the
//! processes and the deaths are modelled.
//!
//! A model that finds nothing proves nothing unless it finds what is there: five wrong protocols are planted, and each must
//! be caught. `CPW_MODEL=all` adds the larger spaces, which take minutes.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![expect(clippy::print_stdout, reason = "how much was explored is what one wants to see")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cpw::base::ids::{RunId, TaskId, WorkerNo};
use cpw::base::span::Limit;
use cpw::logic::sched::Facts;
use cpw::logic::state::{MAX_CRASHES, State};
use cpw::logic::step::{self, AttemptId, Duty, Ending, Ledger, Slot, Todo};
use cpw::logic::view::Phase;
use cpw::model::event::{
    Body, CancelRequested, Done, Draft, Ended, Event, LogRepaired, Process, RunStarted, SCHEMA, Verdict,
};
use cpw::model::plan::{Action as Does, Backoff, Conductor, Durability, Isolate, Limits, Need, Plan, Task, VERSION};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// What a build could get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The one that the program follows.
    Real,
    /// Decides on what it saw before it had the lock.
    DecidesBeforeTheLock,
    /// Writes an outcome without asking whether the attempt is still its own.
    FinishesWithoutToken,
    /// Writes behind a torn line.
    DoesNotRepair,
    /// Only the first worker writes the end.
    OnlyTheFirstEnds,
    /// No hook starts a worker when all are dead.
    NobodyRespawns,
}

/// How often the interesting things happened: a space without them would prove nothing.
#[derive(Debug, Default)]
struct Reached {
    ok: AtomicU32,
    skipped: AtomicU32,
    retried: AtomicU32,
    refused: AtomicU32,
    repaired: AtomicU32,
    lost: AtomicU32,
    cancelled: AtomicU32,
}

/// More than ever need to be started: who comes to need another one goes round in circles.
const MAX_WORKERS: usize = 8;

/// A space: a plan, and how much may go wrong.
#[derive(Debug, Clone)]
struct Space {
    plan: Arc<Plan>,
    protocol: Protocol,
    kills: u8,
    suspicions: u8,
    fails: u8,
    cancels: u8,
    reached: Arc<Reached>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    /// Looks at the state, without the lock, and waits while there is nothing to do.
    Look,
    /// Wants the lock.
    Want,
    /// Has the lock and is about to write.
    Hold,
    /// Has written, and acts on it.
    Act(Todo),
    /// Has started worker `.0`, and is about to say so; then `.1` more.
    Hired(u32, u32),
}

/// A worker's process.
#[derive(Debug, Clone)]
struct Worker {
    number: u32,
    alive: bool,
    leads: bool,
    place: Place,
    attempt: Option<AttemptId>,
    /// How its attempt ended, as it saw it.
    ending: Option<(AttemptId, Outcome)>,
    dead: Vec<WorkerNo>,
    /// What a worker that decides before the lock has decided.
    drafts: Option<(Vec<Draft>, Todo)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Outcome {
    Done,
    Failed,
    Cancelled,
    Fenced,
}

#[derive(Debug, Clone)]
struct World {
    /// What the log says: the program's own fold.
    state: Arc<State>,
    torn: bool,
    lock: Option<usize>,
    workers: Vec<Worker>,
    /// Tasks' processes, by task and attempt.
    processes: BTreeSet<(usize, u32)>,
    kills: u8,
    suspicions: u8,
    fails: u8,
    cancels: u8,
    /// The rule that was broken on the way here.
    broken: Option<&'static str>,
}

/// What the future depends on. Numbers of events are left out: they are compared only for being the same, and a task and
/// its attempt say that as well.
impl Hash for World {
    fn hash<H: Hasher>(&self, h: &mut H) {
        for task in &self.state.tasks {
            (
                task.phase.word(),
                task.attempts,
                task.failures,
                task.crashes.len(),
                task.open.as_ref().map(|o| (o.number, o.worker.0)),
            )
                .hash(h);
        }
        let view = &self.state.view;
        view.workers.keys().for_each(|n| n.hash(h));
        (view.last_worker, &view.unseen, view.ended.is_some(), view.cancelled, &self.state.cancels).hash(h);
        (self.torn, self.lock, &self.processes).hash(h);
        (self.kills, self.suspicions, self.fails, self.cancels, self.broken).hash(h);
        for w in &self.workers {
            let id = |a: &AttemptId| (a.index, a.number);
            (w.number, w.alive, w.leads, &w.dead, w.attempt.as_ref().map(id)).hash(h);
            w.ending.as_ref().map(|(a, how)| (id(a), how)).hash(h);
            match &w.place {
                Place::Act(todo) => (todo.begin.as_ref().map(id), todo.hire, todo.leave).hash(h),
                other => other.hash(h),
            }
            w.drafts.as_ref().map(|(d, _)| d.iter().map(|d| (d.body.name(), &d.task)).collect::<Vec<_>>()).hash(h);
        }
    }
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        let digest = |w: &World| {
            let mut h = std::hash::DefaultHasher::new();
            w.hash(&mut h);
            h.finish()
        };
        digest(self) == digest(other)
    }
}

impl Eq for World {}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// The worker goes on.
    Go(usize),
    /// It looks, and takes a living one for dead.
    Suspect(usize, usize),
    /// Its task's process ends.
    Ends(usize, bool),
    /// It is killed. If it is writing, this many of its lines are whole, and there may be a torn one behind them.
    Kill(usize, usize, bool),
    /// A hook looks whether somebody works on the run.
    Tend,
    /// The user cancels the run.
    Cancel,
}

/// Events decided on, applied to a state of their own.
struct Page {
    state: State,
    drafts: Vec<Draft>,
}

impl Ledger for Page {
    type Error = std::convert::Infallible;

    fn state(&self) -> &State {
        &self.state
    }

    fn emit(&mut self, draft: Draft) -> Result<u64, Self::Error> {
        let seq = self.state.view.seq + 1;
        self.state.apply(&Event::new(draft.clone(), seq, String::new()));
        self.drafts.push(draft);
        Ok(seq)
    }
}

fn process(number: u32) -> Process {
    Process { pid: i32::try_from(number).unwrap(), start_time: 1, boot_id: "boot".into() }
}

fn facts(dead: &[WorkerNo]) -> Facts<'_> {
    Facts { now_ms: 0, boot_id: "boot", dead }
}

fn ending(how: Outcome) -> Ending {
    let ended = |reason: &str| Ended { reason: reason.into(), ..Ended::default() };
    let body = match how {
        Outcome::Done => Body::Done(Done { exit: 0, duration_ms: 0, ..Done::default() }),
        Outcome::Failed => Body::Failed(ended("exit 1")),
        Outcome::Cancelled => Body::Cancelled(ended("cancelled")),
        Outcome::Fenced => Body::Lost(ended("given up by its worker")),
    };
    Ending { body, retryable: how != Outcome::Cancelled }
}

impl World {
    fn hire(&mut self) -> u32 {
        let number = self.workers.iter().map(|w| w.number).max().unwrap_or(0) + 1;
        self.workers.push(Worker {
            number,
            alive: true,
            leads: false,
            place: Place::Look,
            attempt: None,
            ending: None,
            dead: Vec::new(),
            drafts: None,
        });
        number
    }

    fn anybody(&self) -> bool {
        self.workers.iter().any(|w| w.alive)
    }

    /// Writes events behind one another, each checked against what must always hold.
    fn write(&mut self, plan: &Plan, drafts: &[Draft]) {
        let mut state = (*self.state).clone();
        for draft in drafts {
            if self.broken.is_none() {
                self.broken = forbidden(&state, plan, draft);
            }
            state.apply(&Event::new(draft.clone(), state.view.seq + 1, String::new()));
        }
        self.state = Arc::new(state);
    }
}

/// The rule that an event would break.
fn forbidden(state: &State, plan: &Plan, draft: &Draft) -> Option<&'static str> {
    let task = draft.task.as_ref().and_then(|t| state.index_of(t));
    let is_own = || task.is_some_and(|i| state.tasks[i].open.as_ref().is_some_and(|o| Some(o.number) == draft.attempt));
    let check = |good: bool, rule: &'static str| (!good).then_some(rule);
    if state.view.ended.is_some() && !matches!(draft.body, Body::WorkerExited(_) | Body::LogRepaired(_)) {
        return Some("something follows the end");
    }
    match &draft.body {
        Body::Started(_) => {
            let i = task.unwrap();
            let t = &state.tasks[i];
            let met = |need: &Need| state.tasks[state.index_of(need.task().unwrap()).unwrap()].phase == Phase::Done;
            check(draft.attempt == Some(t.attempts + 1), "attempts are not 1, 2, 3")
                .or(check(
                    t.open.is_none() && !t.phase.is_final(),
                    "an attempt begins beside another or after the last",
                ))
                .or(check(t.failures <= plan.tasks[i].retries, "more attempts than allowed"))
                .or(check(plan.tasks[i].retries > 0 || t.attempts == 0, "a task without retries begins again"))
                .or(check(t.crashes.len() < MAX_CRASHES, "an attempt begins although its workers die again and again"))
                .or(check(plan.tasks[i].needs.iter().all(met), "begins before what it needs"))
                .or(check(state.running.len() < plan.limits.max_workers as usize, "too many at once"))
        }
        Body::Done(_) | Body::Failed(_) | Body::TimedOut(_) | Body::Lost(_) => {
            check(is_own(), "an outcome of an attempt that is not open")
        }
        Body::Cancelled(_) if draft.attempt.is_some() => check(is_own(), "an outcome of an attempt that is not open"),
        Body::Skipped(_) => check(state.tasks[task.unwrap()].open.is_none(), "a running task is skipped"),
        Body::RunEnded(_) => {
            check(state.tasks.iter().all(|t| t.phase.is_final()), "the end comes before every task is over")
        }
        _ => None,
    }
}

impl Space {
    fn new(plan: Plan, kills: u8, suspicions: u8, fails: u8) -> Space {
        let plan = Arc::new(plan);
        Space { plan, protocol: Protocol::Real, kills, suspicions, fails, cancels: 0, reached: Arc::default() }
    }

    fn slot<'a>(w: &'a Worker, process: &'a Process, ending: Option<&'a (AttemptId, Ending)>) -> Slot<'a> {
        Slot {
            me: WorkerNo(w.number),
            process,
            duty: Duty::Slot,
            leads: w.leads,
            leaving: false,
            attempt: w.attempt.as_ref(),
            ending: ending.map(|(id, e)| (id, e)),
            progress: None,
        }
    }

    /// What the worker would write now.
    fn decide(&self, state: &State, w: &Worker) -> (Vec<Draft>, Todo) {
        let process = process(w.number);
        let end = w.ending.as_ref().map(|(id, how)| (id.clone(), ending(*how)));
        let mut page = Page { state: state.clone(), drafts: Vec::new() };
        if let (Protocol::FinishesWithoutToken, Some((id, end))) = (self.protocol, &end)
            && !step::is_open(state, id)
        {
            let body = end.body.clone();
            let Ok(_) =
                page.emit(Draft::attempt(Some(WorkerNo(w.number)), &self.plan.tasks[id.index].id, id.number, body));
        }
        let Ok(todo) =
            step::step(&mut page, &self.plan, facts(&w.dead), Self::slot(w, &process, end.as_ref()), |_| "/".into());
        let mut drafts = page.drafts;
        if self.protocol == Protocol::OnlyTheFirstEnds && w.number != 1 {
            drafts.retain(|d| !matches!(d.body, Body::RunEnded(_)));
        }
        (drafts, todo)
    }

    fn has_business(&self, state: &State, w: &Worker) -> bool {
        let process = process(w.number);
        let end = w.ending.as_ref().map(|(id, how)| (id.clone(), ending(*how)));
        step::has_business(state, &self.plan, facts(&w.dead), Self::slot(w, &process, end.as_ref()))
    }

    /// The look before the lock: its own attempt, who leads, who is dead, and an end to what those left.
    fn look(world: &mut World, i: usize, suspect: Option<usize>) {
        let nobody_leads = !world.workers.iter().any(|w| w.alive && w.leads);
        let state = Arc::clone(&world.state);
        let w = &mut world.workers[i];
        w.leads |= nobody_leads;
        if let Some(id) = w.attempt.clone() {
            let fenced = !step::is_open(&state, &id);
            if fenced || state.view.cancelled || state.cancels.contains(&id.index) {
                world.processes.remove(&(id.index, id.number));
                w.ending = Some((id, if fenced { Outcome::Fenced } else { Outcome::Cancelled }));
                w.attempt = None;
            }
        }
        let me = w.number;
        let holders = state.running.iter().filter_map(|&t| state.tasks[t].open.as_ref()).map(|o| o.worker.0);
        let known: BTreeSet<u32> = state.view.workers.keys().copied().chain(holders).collect();
        let mut dead = Vec::new();
        for n in known.into_iter().filter(|n| *n != me) {
            let at = world.workers.iter().position(|w| w.number == n).unwrap();
            if world.workers[at].alive && suspect != Some(at) {
                continue;
            }
            for &t in &state.running {
                if let Some(open) = state.tasks[t].open.as_ref().filter(|o| o.worker.0 == n) {
                    // A dead worker's task is ended before the death is told; that of a suspected one, too.
                    world.processes.remove(&(t, open.number));
                    let other = &mut world.workers[at];
                    if other.attempt.as_ref().is_some_and(|a| (a.index, a.number) == (t, open.number)) {
                        other.ending = other.attempt.take().map(|a| (a, Outcome::Failed));
                    }
                }
            }
            dead.push(WorkerNo(n));
        }
        world.workers[i].dead = dead;
    }

    /// Whether the worker would look and find something to do: what wakes it up.
    fn looks(&self, world: &World, i: usize) -> bool {
        let mut next = world.clone();
        Self::look(&mut next, i, None);
        let w = &next.workers[i];
        w.leads != world.workers[i].leads || self.has_business(&next.state, w) && self.does_something(&next, i)
    }

    fn does_something(&self, world: &World, i: usize) -> bool {
        let (drafts, todo) = self.decide(&world.state, &world.workers[i]);
        !drafts.is_empty() || todo.leave || todo.hire > 0
    }

    fn go(&self, world: &mut World, i: usize) {
        let plan = Arc::clone(&self.plan);
        match world.workers[i].place.clone() {
            Place::Look => {
                Self::look(world, i, None);
                self.want(world, i);
            }
            Place::Want => {
                world.lock = Some(i);
                world.workers[i].place = Place::Hold;
            }
            Place::Hold => {
                let (drafts, todo) = self.repaired(world, i);
                self.note(world, &drafts, i);
                world.write(&plan, &drafts);
                world.lock = None;
                let w = &mut world.workers[i];
                w.ending = None;
                w.place = Place::Act(todo);
            }
            Place::Act(mut todo) => {
                if let Some(id) = todo.begin.take() {
                    // Who was taken for dead between its start and its process finds that out at its next look.
                    let suspected = world.suspicions < self.suspicions;
                    if world.broken.is_none() && !suspected && world.processes.iter().any(|(t, _)| *t == id.index) {
                        world.broken = Some("two processes of one task");
                    }
                    if world.broken.is_none() && world.state.tasks[id.index].attempts < id.number {
                        world.broken = Some("a process without a start in the log");
                    }
                    world.processes.insert((id.index, id.number));
                    world.workers[i].attempt = Some(id);
                    world.workers[i].place = if todo.hire > 0 { Place::Act(todo) } else { Place::Look };
                } else if todo.hire > 0 {
                    let number = world.hire();
                    world.workers[i].place = Place::Hired(number, todo.hire - 1);
                } else if todo.leave {
                    let w = &mut world.workers[i];
                    (w.alive, w.leads, w.place) = (false, false, Place::Look);
                } else {
                    world.workers[i].place = Place::Look;
                }
            }
            Place::Hired(number, more) => {
                let mut page = Page { state: (*world.state).clone(), drafts: Vec::new() };
                let Ok(()) = step::enlist(&mut page, WorkerNo(number), &process(number));
                world.write(&plan, &page.drafts);
                let todo = Todo { hire: more, ..Todo::default() };
                world.workers[i].place = if more > 0 { Place::Act(todo) } else { Place::Look };
            }
        }
    }

    fn want(&self, world: &mut World, i: usize) {
        if self.protocol == Protocol::DecidesBeforeTheLock {
            let decided = self.decide(&world.state, &world.workers[i]);
            world.workers[i].drafts = Some(decided);
        }
        let w = &mut world.workers[i];
        w.place = if w.drafts.is_some() || self.has_business(&world.state, w) { Place::Want } else { Place::Look };
    }

    /// What is written under the lock, with the repair of a torn line before it.
    fn repaired(&self, world: &mut World, i: usize) -> (Vec<Draft>, Todo) {
        let torn = std::mem::take(&mut world.torn);
        if let Some(decided) = world.workers[i].drafts.take() {
            return decided;
        }
        if torn && self.protocol != Protocol::DoesNotRepair {
            self.reached.repaired.fetch_add(1, Relaxed);
            let repair = Draft::run(Body::LogRepaired(LogRepaired { bytes: 1, sha256: String::new() }));
            let mut state = (*world.state).clone();
            state.apply(&Event::new(repair.clone(), state.view.seq + 1, String::new()));
            let (drafts, todo) = self.decide(&state, &world.workers[i]);
            return ([vec![repair], drafts].concat(), todo);
        }
        let (mut drafts, todo) = self.decide(&world.state, &world.workers[i]);
        if torn && !drafts.is_empty() {
            // Glued to the torn one: no line any more.
            drafts.remove(0);
        }
        (drafts, todo)
    }

    fn note(&self, world: &World, drafts: &[Draft], i: usize) {
        let reached = &self.reached;
        if let Some((id, _)) = &world.workers[i].ending
            && !step::is_open(&world.state, id)
        {
            reached.refused.fetch_add(1, Relaxed);
        }
        for draft in drafts {
            match &draft.body {
                Body::Skipped(_) => reached.skipped.fetch_add(1, Relaxed),
                Body::Started(_) if draft.attempt > Some(1) => reached.retried.fetch_add(1, Relaxed),
                Body::Lost(_) => reached.lost.fetch_add(1, Relaxed),
                Body::RunEnded(end) if end.status == Verdict::Ok => reached.ok.fetch_add(1, Relaxed),
                Body::RunEnded(end) if end.status == Verdict::Cancelled => reached.cancelled.fetch_add(1, Relaxed),
                _ => 0,
            };
        }
    }

    fn kill(&self, world: &mut World, i: usize, lines: usize, torn: bool) {
        if world.workers[i].place == Place::Hold {
            let (drafts, _) = self.repaired(world, i);
            let plan = Arc::clone(&self.plan);
            world.write(&plan, &drafts[..lines]);
            world.torn = torn;
            world.lock = None;
        }
        let w = &mut world.workers[i];
        (w.alive, w.leads, w.place) = (false, false, Place::Look);
        // Its task's process lives on.
        (w.attempt, w.ending, w.drafts) = (None, None, None);
        w.dead.clear();
    }
}

impl Model for Space {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut state = State::new(&self.plan);
        let started = Body::RunStarted(RunStarted {
            v: SCHEMA,
            plan_sha256: String::new(),
            session: None,
            prompt_id: None,
            rule: None,
            trace: String::new(),
            span: None,
            parent: None,
            link: None,
            max_workers: self.plan.limits.max_workers,
            boot_id: "boot".into(),
            mono_ms: 0,
            cpw: String::new(),
            prompt_sha256: None,
            prompt_bytes: None,
            client: None,
        });
        state.apply(&Event::new(Draft::run(started), 1, String::new()));
        let mut world = World {
            state: Arc::new(state),
            torn: false,
            lock: None,
            workers: Vec::new(),
            processes: BTreeSet::new(),
            kills: self.kills,
            suspicions: self.suspicions,
            fails: self.fails,
            cancels: self.cancels,
            broken: None,
        };
        // The one that the hook has started, and one that a person has.
        world.hire();
        world.hire();
        vec![world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        for (i, w) in world.workers.iter().enumerate().filter(|(_, w)| w.alive) {
            let goes = match &w.place {
                Place::Look => self.looks(world, i),
                Place::Want | Place::Hired(..) => world.lock.is_none(),
                Place::Hold | Place::Act(_) => true,
            };
            if goes {
                actions.push(Step::Go(i));
            }
            if w.attempt.as_ref().is_some_and(|a| world.processes.contains(&(a.index, a.number))) {
                actions.push(Step::Ends(i, true));
                if world.fails > 0 {
                    actions.push(Step::Ends(i, false));
                }
            }
            if w.place == Place::Look && world.suspicions > 0 {
                let others = world.workers.iter().enumerate().filter(|(k, o)| *k != i && o.alive);
                actions.extend(others.map(|(k, _)| Step::Suspect(i, k)));
            }
            if world.kills > 0 {
                let lines = if w.place == Place::Hold { self.repaired(&mut world.clone(), i).0.len() } else { 0 };
                actions.extend((0..=lines).map(|n| Step::Kill(i, n, false)));
                actions.extend((0..lines).map(|n| Step::Kill(i, n, true)));
            }
        }
        let respawns = self.protocol != Protocol::NobodyRespawns && world.workers.len() < MAX_WORKERS;
        if respawns && !world.anybody() && world.state.view.ended.is_none() {
            actions.push(Step::Tend);
        }
        if world.cancels > 0 && world.lock.is_none() && world.state.view.ended.is_none() {
            actions.push(Step::Cancel);
        }
    }

    fn next_state(&self, last: &World, step: Step) -> Option<World> {
        let mut world = last.clone();
        match step {
            Step::Go(i) => self.go(&mut world, i),
            Step::Suspect(i, other) => {
                world.suspicions -= 1;
                Self::look(&mut world, i, Some(other));
                self.want(&mut world, i);
            }
            Step::Ends(i, ok) => {
                world.fails -= u8::from(!ok);
                let id = world.workers[i].attempt.take()?;
                world.processes.remove(&(id.index, id.number));
                world.workers[i].ending = Some((id, if ok { Outcome::Done } else { Outcome::Failed }));
            }
            Step::Kill(i, lines, torn) => {
                world.kills -= 1;
                self.kill(&mut world, i, lines, torn);
            }
            Step::Tend => {
                let number = world.hire();
                let mut page = Page { state: (*world.state).clone(), drafts: Vec::new() };
                let Ok(()) = step::enlist(&mut page, WorkerNo(number), &process(number));
                world.write(&self.plan, &page.drafts);
            }
            Step::Cancel => {
                world.cancels -= 1;
                let wish = Draft::run(Body::CancelRequested(CancelRequested { by: "user".into() }));
                world.write(&self.plan, &[wish]);
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no rule is broken", |_, w: &World| w.broken.is_none()),
            Property::always(
                "where nothing can happen any more, the run is over and nothing is left",
                |m: &Space, w: &World| {
                    let mut next = Vec::new();
                    m.actions(w, &mut next);
                    // A process may stay of one that was taken for dead and then died: nobody looks for it any more.
                    let clean = w.processes.is_empty() || w.suspicions < m.suspicions;
                    let over = w.state.view.ended.is_some() && !w.anybody() && clean;
                    !next.is_empty() || over || w.broken.is_some()
                },
            ),
            Property::always("who takes the lock has something to do", |m: &Space, w: &World| {
                let idle = |i: usize| {
                    let mut next = w.clone();
                    Space::look(&mut next, i, None);
                    m.has_business(&next.state, &next.workers[i]) && !m.does_something(&next, i)
                };
                let looking = |w: &Worker| w.alive && w.place == Place::Look;
                !w.workers.iter().enumerate().any(|(i, worker)| looking(worker) && idle(i))
            }),
            Property::sometimes("the run ends", |_, w: &World| w.state.view.ended.is_some() && !w.anybody()),
        ]
    }
}

fn task(id: &str, needs: &[&str], retries: u32) -> Task {
    Task {
        id: TaskId::new(id).unwrap(),
        title: None,
        action: Does::Run(vec!["true".into()]),
        needs: needs.iter().map(|n| TaskId::new(n).unwrap().into()).collect(),
        claims: Vec::new(),
        resources: Vec::new(),
        timeout: Limit(None),
        retries,
        backoff: Backoff { initial: cpw::base::span::Span::from_ms(0), ..Backoff::default() },
        allow_failure: false,
        critical: false,
        signals: None,
        summary: None,
        env: BTreeMap::new(),
        cwd: None,
        isolate: Isolate::None,
        priority: 0,
        item: None,
        draft: None,
        expected: None,
    }
}

fn plan(max_workers: u32, tasks: Vec<Task>) -> Plan {
    Plan {
        version: VERSION,
        run: RunId::new("20260101-000000-model").unwrap(),
        session: None,
        rule: None,
        from: None,
        orphan_grace: None,
        limits: Limits { max_workers, max_claude: None, run_timeout: Limit(None), max_budget_usd: None },
        durability: Durability::Process,
        conductor: Conductor::default(),
        tasks,
        merge: Vec::new(),
        resources: BTreeMap::new(),
        votes: Vec::new(),
    }
}

fn one() -> Plan {
    plan(1, vec![task("a", &[], 1)])
}

fn chain(workers: u32) -> Plan {
    plan(workers, vec![task("a", &[], 1), task("b", &["a"], 0)])
}

fn fan(workers: u32) -> Plan {
    plan(workers, vec![task("a", &[], 1), task("b", &[], 0), task("c", &[], 1)])
}

fn diamond(workers: u32) -> Plan {
    plan(workers, vec![task("a", &[], 1), task("b", &["a"], 0), task("c", &["a"], 1), task("d", &["b", "c"], 0)])
}

/// Explores a space whole. Returns the number of states.
fn explore(name: &str, space: &Space) -> usize {
    let begun = std::time::Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let checker = space.clone().checker().threads(threads).spawn_dfs().join();
    checker.assert_properties();
    let states = checker.unique_state_count();
    println!("{name}: {states} states in {:.1} s; {:?}", begun.elapsed().as_secs_f32(), space.reached);
    states
}

#[test]
fn whatever_dies_fails_or_is_suspected_every_rule_holds_and_every_run_ends() {
    let mut states = 0;
    let mut spaces = vec![
        ("chain of 2, 2 kills, 1 failure", Space::new(chain(2), 2, 0, 1)),
        ("chain of 2, 1 kill, 1 suspicion, 1 failure", Space::new(chain(2), 1, 1, 1)),
        ("fan of 3, 1 kill", Space::new(fan(2), 1, 0, 0)),
        ("fan of 3, a cancel", Space { cancels: 1, ..Space::new(fan(2), 0, 0, 0) }),
        ("diamond of 4, 1 kill", Space::new(diamond(2), 1, 0, 0)),
    ];
    if std::env::var_os("CPW_MODEL").is_some_and(|v| v == "all") {
        spaces.push(("fan of 3, 1 kill, 1 failure", Space::new(fan(2), 1, 0, 1)));
        spaces.push(("fan of 3, 1 kill, a cancel", Space { cancels: 1, ..Space::new(fan(2), 1, 0, 0) }));
        spaces.push(("diamond of 4, 1 kill, 1 suspicion", Space::new(diamond(2), 1, 1, 0)));
        spaces.push(("diamond of 4, 2 kills", Space::new(diamond(2), 2, 0, 0)));
        spaces.push(("fan of 3, 3 at a time, 1 kill, 1 suspicion", Space::new(fan(3), 1, 1, 0)));
    }
    let mut sum: [u32; 7] = [0; 7];
    for (name, space) in &spaces {
        states += explore(name, space);
        let r = &space.reached;
        for (sum, n) in
            sum.iter_mut().zip([&r.ok, &r.skipped, &r.retried, &r.refused, &r.repaired, &r.lost, &r.cancelled])
        {
            *sum += n.load(Relaxed);
        }
    }
    assert!(sum.iter().all(|n| *n > 0), "something interesting never happened: {sum:?}");
    println!("{states} states in all");
}

#[test]
fn every_planted_wrong_protocol_is_caught() {
    for (protocol, space) in [
        (Protocol::DecidesBeforeTheLock, Space::new(fan(2), 0, 0, 0)),
        (Protocol::FinishesWithoutToken, Space::new(fan(2), 0, 1, 0)),
        (Protocol::DoesNotRepair, Space::new(fan(2), 1, 0, 0)),
        (Protocol::OnlyTheFirstEnds, Space::new(one(), 1, 0, 0)),
        (Protocol::NobodyRespawns, Space::new(one(), 2, 0, 0)),
    ] {
        let space = Space { protocol, ..space };
        let checker = space.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found: Vec<_> = checker.discoveries().into_iter().filter(|(name, _)| *name != "the run ends").collect();
        assert!(!found.is_empty(), "{protocol:?} was not caught");
        for (rule, path) in found {
            let broken = path.last_state().broken;
            println!("{protocol:?}: {rule} ({broken:?}) after {} steps", path.into_actions().len());
        }
    }
}
