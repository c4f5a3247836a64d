//! What the session is told and how it is held, as a state space explored whole: two sessions call their hooks, each of them
//! doubled, in every order with what tasks do and say; hooks are killed at every step, also between saying something and
//! writing it down, and workers die. What is told, what holds a call back and what follows from an event are the functions
//! that the program runs (`logic::view`, `logic::conductor`, `logic::signals`); the lock, the client and the deaths are
//! modelled.
//!
//! Five wrong protocols are planted, and each must be caught.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use cpw::base::ids::{RunId, SessionId, TaskId, WorkerNo};
use cpw::base::span::{Limit, Span};
use cpw::logic::conductor::{self, MAX_STOPS, Message};
use cpw::logic::signals::{self, Call, Now, Occasion};
use cpw::logic::view::View;
use cpw::model::event::{
    Answer, Body, Decision, Delivered, Done, Draft, Event, Process, RunEnded, RunStarted, SCHEMA, Signal, Started,
    Verdict,
};
use cpw::model::plan::{Action as Does, Backoff, Conductor, Durability, Isolate, Limits, Plan, Task, VERSION};
use cpw::model::signal::{Addressee, BLOCK};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// What a build could get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The one that the program follows.
    Real,
    /// Writes down what was handed over before it has said it.
    RecordsBeforeWriting,
    /// Holds the session, and its calls, whether a worker lives or not.
    HoldsForTheDead,
    /// Any session's hook finds the run.
    SessionsNotCompared,
    /// What a task holds back stays so when it has ended.
    NeverReleases,
    /// Hands over as often as there is something new.
    NoLimitOfStops,
}

/// What a hook is called for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    /// The end of a step of tool calls.
    Step,
    /// A tool call.
    Call,
    /// The model wants to stop.
    Stop,
    /// The user has typed.
    Prompt,
}

impl Kind {
    fn event(self) -> &'static str {
        match self {
            Kind::Step => "PostToolBatch",
            Kind::Call => "PreToolUse",
            Kind::Stop => "Stop",
            Kind::Prompt => "UserPromptSubmit",
        }
    }
}

/// How far a hook is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Place {
    /// It was started.
    Begin,
    /// It waits, and may be let go by whatever happens.
    Hold,
    /// It has nothing more to wait for.
    Collect,
    /// It has the lock and a text.
    Say(Vec<u64>, Vec<u64>),
    /// It has said that, and is about to write it down.
    Record(Vec<u64>, Vec<u64>),
}

/// A session, as its client sees it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Session {
    /// The model works; otherwise the session is idle.
    works: bool,
    prompt: u8,
    /// Turns in a row that Stop has made go on.
    stops: u32,
    /// What is called now.
    kind: Option<Kind>,
    hooks: Vec<Place>,
    /// Whether any of the hooks of this call has handed something over.
    told: bool,
    /// How often it may call hooks of each kind.
    budget: BTreeMap<Kind, u8>,
}

#[derive(Debug, Clone)]
struct World {
    /// What the log says: the program's own fold.
    view: Arc<View>,
    /// Who delivers: the session and its hook.
    lock: Option<(usize, usize)>,
    sessions: Vec<Session>,
    /// How often each event was said to its session for sure.
    heard: BTreeMap<u64, u8>,
    /// Texts that were said by hooks that were killed before they wrote that down.
    unsure: BTreeMap<u64, u8>,
    /// Every event that was ever news, with a name for it. What two courses of events have in common is not their numbers.
    made: BTreeMap<u64, u8>,
    alive: bool,
    kills: u8,
    deaths: u8,
    says: Vec<Addressee>,
    broken: Option<&'static str>,
}

impl World {
    fn name(&self, seq: u64) -> u8 {
        self.made.get(&seq).copied().unwrap_or(0)
    }

    /// What the future depends on, and what the rules look at.
    fn digest<H: Hasher>(&self, h: &mut H) {
        let names = |all: &[u64]| all.iter().map(|seq| self.name(*seq)).collect::<Vec<_>>();
        let (view, made) = (&self.view, self.made.values().copied().collect::<Vec<_>>());
        view.news.iter().map(|n| self.name(n.seq)).collect::<Vec<_>>().hash(h);
        for s in &view.signals {
            (self.name(s.id), s.hook, s.blocks, s.once, s.count).hash(h);
        }
        view.running().for_each(|(id, _)| id.hash(h));
        (view.ended.is_some(), &view.stops, &view.blocks, made).hash(h);
        for s in &self.sessions {
            (s.works, s.prompt, s.stops, s.kind, s.told, &s.budget).hash(h);
            for place in &s.hooks {
                std::mem::discriminant(place).hash(h);
                if let Place::Say(news, told) | Place::Record(news, told) = place {
                    (names(news), names(told)).hash(h);
                }
            }
        }
        let counts = |all: &BTreeMap<u64, u8>| all.iter().map(|(seq, n)| (self.name(*seq), *n)).collect::<Vec<_>>();
        (counts(&self.heard), counts(&self.unsure), self.lock).hash(h);
        (self.alive, self.kills, self.deaths, &self.says, self.broken).hash(h);
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.digest(h);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        let sum = |w: &World| {
            let mut h = std::hash::DefaultHasher::new();
            w.digest(&mut h);
            h.finish()
        };
        sum(self) == sum(other)
    }
}

impl Eq for World {}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// A session's client calls the hooks of an event.
    Calls(usize, Kind),
    /// A hook goes on.
    Go(usize, usize),
    /// The time for its hold is spent.
    Spent(usize, usize),
    /// It is killed.
    Kill(usize, usize),
    /// A task ends.
    Ends(&'static str),
    /// Task `a` says something to a hook, with the code that blocks.
    Says(Addressee),
    /// The worker dies, and nobody can be started in its place.
    Dies,
}

#[derive(Debug, Clone)]
struct Space {
    protocol: Protocol,
    /// How often each hook is installed.
    installed: usize,
    kills: u8,
    deaths: u8,
    says: Vec<Addressee>,
    /// Calls of the owner by kind.
    budget: Vec<(Kind, u8)>,
}

const NOW: Now<'static> = Now { ms: 1000, boot_id: "boot" };
const TASKS: [&str; 2] = ["a", "b"];

fn id(session: usize) -> SessionId {
    SessionId::new(&format!("s-{session}")).unwrap()
}

fn call() -> Call<'static> {
    Call { tool: "Bash", target: "psql", paths: &[], files: &[], project: "/p" }
}

impl World {
    /// Appends to the log. What comes of it as news has this name.
    fn write(&mut self, draft: Draft, name: u8) {
        let mut view = (*self.view).clone();
        let seq = view.seq + 1;
        let says = matches!(draft.body, Body::Signal(_));
        view.apply(&Event::new(draft, seq, String::new()));
        let stands = |view: &View, id: u64| view.signals.iter().any(|s| s.id == id);
        if says {
            // The last of several that a task says to one hook stands for all.
            self.made.retain(|id, _| stands(&view, *id) || !stands(&self.view, *id));
        }
        if view.news.iter().any(|n| n.seq == seq) || view.signals.iter().any(|s| s.id == seq && !s.is_barrier()) {
            self.made.insert(seq, name);
        }
        self.view = Arc::new(view);
    }

    fn end_hook(&mut self, s: usize, h: usize) {
        if self.lock == Some((s, h)) {
            self.lock = None;
        }
        let session = &mut self.sessions[s];
        session.hooks.remove(h);
        // Those behind it move up.
        if let Some((_, at)) = self.lock.as_mut().filter(|(owner, at)| *owner == s && *at > h) {
            *at -= 1;
        }
        if session.hooks.is_empty() {
            if session.kind == Some(Kind::Stop) {
                session.works = session.told;
                session.stops = if session.told { session.stops + 1 } else { 0 };
            }
            (session.kind, session.told) = (None, false);
        }
    }

    /// Whether somebody works on the run.
    fn is_open(&self) -> bool {
        self.view.ended.is_none() && self.alive
    }
}

impl Space {
    fn new(installed: usize, kills: u8, deaths: u8, says: &[Addressee], budget: &[(Kind, u8)]) -> Space {
        let (says, budget) = (says.to_vec(), budget.to_vec());
        Space { protocol: Protocol::Real, installed, kills, deaths, says, budget }
    }

    fn owns(&self, s: usize) -> bool {
        s == 0 || self.protocol == Protocol::SessionsNotCompared
    }

    fn go(&self, w: &mut World, s: usize, h: usize) {
        let kind = w.sessions[s].kind.unwrap();
        match w.sessions[s].hooks[h].clone() {
            Place::Begin if !self.owns(s) => w.end_hook(s, h),
            Place::Begin => match kind {
                Kind::Call => self.call(w, s, h),
                Kind::Stop => {
                    let waits = w.is_open() || (self.protocol == Protocol::HoldsForTheDead && w.view.ended.is_none());
                    let needed = w.view.needs_the_session(NOW);
                    if waits && !needed && !w.alive {
                        w.broken = Some("the session is held, and nobody works");
                    }
                    w.sessions[s].hooks[h] = if waits && !needed { Place::Hold } else { Place::Collect };
                }
                Kind::Step | Kind::Prompt => w.sessions[s].hooks[h] = Place::Collect,
            },
            Place::Hold => w.sessions[s].hooks[h] = Place::Collect,
            Place::Collect => self.collect(w, s, h, kind),
            Place::Say(news, told) => {
                for seq in news.iter().chain(&told) {
                    *w.heard.entry(*seq).or_insert(0) += 1;
                }
                w.sessions[s].told = true;
                if s != 0 {
                    w.broken = Some("another session hears of the run");
                }
                if self.protocol == Protocol::RecordsBeforeWriting {
                    w.end_hook(s, h);
                } else {
                    w.sessions[s].hooks[h] = Place::Record(news, told);
                }
            }
            Place::Record(news, told) => {
                w.write(delivered(kind, s, w.sessions[s].prompt, news, told), 0);
                w.end_hook(s, h);
            }
        }
    }

    fn call(&self, w: &mut World, s: usize, h: usize) {
        let barrier = signals::barrier(&w.view, call(), NOW).map(|b| (b.id, b.task.clone()));
        if let Some((signal, task)) = barrier.filter(|_| w.alive || self.protocol == Protocol::HoldsForTheDead) {
            if !w.alive {
                w.broken = Some("a call is refused for a dead worker");
            }
            let decision = Decision {
                hook: Kind::Call.event().into(),
                answer: Answer::Block,
                signal: Some(signal),
                ..Decision::default()
            };
            w.write(Draft::task(&task, Body::Decision(decision)), 0);
        }
        w.end_hook(s, h);
    }

    fn collect(&self, w: &mut World, s: usize, h: usize, kind: Kind) {
        let occasion = match kind {
            Kind::Stop => Occasion::Stop,
            Kind::Prompt => Occasion::Prompt,
            Kind::Step | Kind::Call => Occasion::Step,
        };
        let prompt = prompt(s, w.sessions[s].prompt);
        let often = w.view.stops.as_ref().is_some_and(|(p, n)| *p == prompt && *n >= MAX_STOPS);
        let silent = kind == Kind::Stop && often && self.protocol != Protocol::NoLimitOfStops;
        if silent || w.lock.is_some() || !conductor::has_news(&w.view, occasion, NOW) {
            w.end_hook(s, h);
            return;
        }
        let Message { news, signals, .. } = conductor::news(&w.view, "run", 4000, occasion, NOW, true);
        w.lock = Some((s, h));
        if self.protocol == Protocol::RecordsBeforeWriting {
            w.write(delivered(kind, s, w.sessions[s].prompt, news.clone(), signals.clone()), 0);
        }
        w.sessions[s].hooks[h] = Place::Say(news, signals);
    }

    fn kill(w: &mut World, s: usize, h: usize) {
        w.kills -= 1;
        if let Place::Record(news, told) = &w.sessions[s].hooks[h] {
            for seq in news.iter().chain(told) {
                *w.heard.get_mut(seq).unwrap() -= 1;
                *w.unsure.entry(*seq).or_insert(0) += 1;
            }
            // The client throws away what a hook has said that did not come to its end.
            w.sessions[s].told = false;
        }
        w.end_hook(s, h);
    }

    fn ends(&self, w: &mut World, name: &str) {
        let task = TaskId::new(name).unwrap();
        let before = w.view.signals.clone();
        let done = Done { exit: 0, duration_ms: 0, ..Done::default() };
        w.write(Draft::attempt(Some(WorkerNo(1)), &task, 1, Body::Done(done)), 1 + u8::from(name != TASKS[0]));
        if self.protocol == Protocol::NeverReleases {
            let mut view = (*w.view).clone();
            view.signals.extend(before.into_iter().filter(|s| s.is_barrier() && s.task == task));
            w.view = Arc::new(view);
        }
        if w.view.counts.open() == 0 {
            let end = RunEnded {
                status: Verdict::Ok,
                reason: "all tasks are done".into(),
                done: 2,
                failed: 0,
                skipped: 0,
                cancelled: 0,
            };
            w.write(Draft::run(Body::RunEnded(end)), 3);
        }
    }
}

fn prompt(session: usize, number: u8) -> String {
    format!("p-{session}-{number}")
}

fn delivered(kind: Kind, session: usize, number: u8, news: Vec<u64>, told: Vec<u64>) -> Draft {
    Draft::run(Body::Delivered(Delivered {
        news,
        signals: told,
        chars: 0,
        hook: kind.event().into(),
        session: id(session).to_string(),
        prompt_id: Some(prompt(session, number)),
        more: false,
    }))
}

impl Model for Space {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let plan = plan();
        let session = |budget: Vec<(Kind, u8)>| Session {
            works: true,
            prompt: 1,
            stops: 0,
            kind: None,
            hooks: Vec::new(),
            told: false,
            budget: budget.into_iter().collect(),
        };
        let mut world = World {
            view: Arc::new(View::new(&plan)),
            lock: None,
            sessions: vec![session(self.budget.clone()), session(vec![(Kind::Step, 1)])],
            heard: BTreeMap::new(),
            unsure: BTreeMap::new(),
            made: BTreeMap::new(),
            alive: true,
            kills: self.kills,
            deaths: self.deaths,
            says: self.says.clone(),
            broken: None,
        };
        world.write(Draft::run(Body::RunStarted(run_started())), 0);
        let process = Process { pid: 1, start_time: 1, boot_id: "boot".into() };
        world.write(Draft::worker(WorkerNo(1), Body::WorkerStarted(process)), 0);
        for name in TASKS {
            let started = Started { cwd: "/".into(), title: None, mono_ms: 0, ..Started::default() };
            world.write(Draft::attempt(Some(WorkerNo(1)), &TaskId::new(name).unwrap(), 1, Body::Started(started)), 0);
        }
        vec![world]
    }

    fn actions(&self, w: &World, actions: &mut Vec<Step>) {
        for (s, session) in w.sessions.iter().enumerate() {
            if session.kind.is_none() {
                let able = |kind: Kind| if kind == Kind::Prompt { !session.works } else { session.works };
                let may = session.budget.iter().filter(|(kind, left)| **left > 0 && able(**kind));
                actions.extend(may.map(|(kind, _)| Step::Calls(s, *kind)));
            }
            for (h, place) in session.hooks.iter().enumerate() {
                // Who holds is let go by the end, by somebody who needs the session, and when nobody is left.
                let waits = *place == Place::Hold && w.is_open() && !w.view.needs_the_session(NOW);
                actions.push(if waits { Step::Spent(s, h) } else { Step::Go(s, h) });
                if w.kills > 0 {
                    actions.push(Step::Kill(s, h));
                }
            }
        }
        let runs = |name: &str| w.view.running().any(|(id, _)| id.as_str() == name);
        if w.alive {
            actions.extend(TASKS.into_iter().filter(|name| runs(name)).map(Step::Ends));
            actions.extend(w.says.last().filter(|_| runs("a")).map(|hook| Step::Says(*hook)));
            if w.deaths > 0 {
                actions.push(Step::Dies);
            }
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut w = before.clone();
        match step {
            Step::Calls(s, kind) => {
                let session = &mut w.sessions[s];
                *session.budget.get_mut(&kind)? -= 1;
                session.kind = Some(kind);
                session.hooks = vec![Place::Begin; self.installed];
                match kind {
                    Kind::Prompt => (session.works, session.prompt, session.stops) = (true, session.prompt + 1, 0),
                    Kind::Step => session.stops = 0,
                    Kind::Call | Kind::Stop => {}
                }
            }
            Step::Go(s, h) => self.go(&mut w, s, h),
            Step::Spent(s, h) => w.sessions[s].hooks[h] = Place::Collect,
            Step::Kill(s, h) => Self::kill(&mut w, s, h),
            Step::Ends(name) => self.ends(&mut w, name),
            Step::Says(hook) => {
                w.says.pop();
                let name = 10 + u8::try_from(w.says.len()).unwrap();
                let said = Signal {
                    id: w.view.seq + 1,
                    hook,
                    exit: BLOCK,
                    message: Some("the schema is being changed".into()),
                    data: None,
                    matcher: None,
                    own: false,
                    sticky: false,
                    expires: None,
                    more: 0,
                };
                w.write(Draft::attempt(Some(WorkerNo(1)), &TaskId::new("a").unwrap(), 1, Body::Signal(said)), name);
            }
            Step::Dies => (w.alive, w.deaths) = (false, w.deaths - 1),
        }
        Some(w)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nobody is held for the dead, nor hears of another's", |_, w: &World| w.broken.is_none()),
            Property::always(
                "what is written down as told was said, and what was not said is still to come",
                |_, w: &World| {
                    let open = |seq: &u64| {
                        w.view.news.iter().any(|n| n.seq == *seq) || w.view.signals.iter().any(|s| s.id == *seq)
                    };
                    // Until the hook that has written it down has said it.
                    let said = |seq: &u64| w.heard.contains_key(seq);
                    let in_hand = |seq: &u64| {
                        let holds = |place: &Place| matches!(place, Place::Say(news, told) if news.contains(seq) || told.contains(seq));
                        w.sessions.iter().flat_map(|s| &s.hooks).any(holds)
                    };
                    w.made.keys().all(|seq| open(seq) || said(seq) || in_hand(seq))
                },
            ),
            Property::always("nothing is told twice, but by a hook that was killed", |_, w: &World| {
                w.heard.values().all(|n| *n <= 1)
            }),
            Property::always("Stop makes a turn go on at most three times in a row", |_, w: &World| {
                w.sessions.iter().all(|s| s.stops <= MAX_STOPS)
            }),
            Property::always("a task that has ended holds nothing back", |_, w: &World| {
                let runs = w.view.running().any(|(id, _)| id.as_str() == "a");
                runs || signals::barrier(&w.view, call(), NOW).is_none()
            }),
            Property::always("whoever waits is let go by something", |m: &Space, w: &World| {
                let mut actions = Vec::new();
                m.actions(w, &mut actions);
                let calls = w.sessions.iter().any(|s| !s.hooks.is_empty());
                !calls || actions.iter().any(|a| matches!(a, Step::Go(..) | Step::Spent(..)))
            }),
            Property::sometimes("a session stops with everything told", |_, w: &World| {
                w.view.is_closed(NOW) && !w.sessions[0].works && w.sessions[0].kind.is_none()
            }),
            Property::sometimes("something is said twice, because a hook was killed", |m: &Space, w: &World| {
                m.kills == 0 || w.unsure.keys().any(|seq| w.heard.get(seq).is_some_and(|n| *n > 0))
            }),
            Property::sometimes("a session is held", |_, w: &World| w.sessions[0].hooks.contains(&Place::Hold)),
        ]
    }
}

fn run_started() -> RunStarted {
    RunStarted {
        v: SCHEMA,
        plan_sha256: String::new(),
        session: Some(id(0).to_string()),
        prompt_id: None,
        rule: None,
        trace: String::new(),
        span: None,
        parent: None,
        link: None,
        max_workers: 2,
        boot_id: "boot".into(),
        mono_ms: 0,
        cpw: String::new(),
        prompt_sha256: None,
        prompt_bytes: None,
        client: None,
    }
}

fn plan() -> Plan {
    let task = |name: &str| Task {
        id: TaskId::new(name).unwrap(),
        title: None,
        action: Does::Run(vec!["true".into()]),
        needs: Vec::new(),
        claims: Vec::new(),
        resources: Vec::new(),
        timeout: Limit(None),
        retries: 0,
        backoff: Backoff { initial: Span::from_ms(0), ..Backoff::default() },
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
    };
    Plan {
        version: VERSION,
        run: RunId::new("20260101-000000-model").unwrap(),
        session: Some(id(0)),
        rule: None,
        from: None,
        orphan_grace: None,
        limits: Limits { max_workers: 2, max_claude: None, run_timeout: Limit(None), max_budget_usd: None },
        durability: Durability::Process,
        conductor: Conductor::default(),
        tasks: TASKS.map(task).to_vec(),
        merge: Vec::new(),
        resources: BTreeMap::new(),
        votes: Vec::new(),
    }
}

#[test]
fn every_order_of_hooks_deaths_and_signals_keeps_the_rules() {
    use Addressee::{PreToolUse, Stop};
    for (name, space) in [
        ("two installations, a kill", Space::new(2, 1, 0, &[], &[(Kind::Step, 1), (Kind::Stop, 2), (Kind::Prompt, 1)])),
        (
            "signals, a kill",
            Space::new(1, 1, 0, &[Stop, PreToolUse], &[(Kind::Call, 2), (Kind::Stop, 2), (Kind::Step, 1)]),
        ),
        (
            "signals, a kill and a death",
            Space::new(1, 1, 1, &[Stop, PreToolUse], &[(Kind::Call, 1), (Kind::Stop, 2), (Kind::Prompt, 1)]),
        ),
        ("many stops, two prompts", Space::new(1, 1, 0, &[Stop, Stop], &[(Kind::Stop, 6), (Kind::Prompt, 2)])),
    ] {
        let begun = std::time::Instant::now();
        let checker = space.checker().threads(2).spawn_dfs().join();
        checker.assert_properties();
        println!("{name}: {} states in {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f32());
    }
}

#[test]
fn every_planted_wrong_protocol_is_caught() {
    use Addressee::{PreToolUse, Stop};
    for (protocol, space) in [
        (Protocol::RecordsBeforeWriting, Space::new(1, 1, 0, &[], &[(Kind::Step, 1)])),
        (Protocol::HoldsForTheDead, Space::new(1, 0, 1, &[], &[(Kind::Stop, 1)])),
        (Protocol::HoldsForTheDead, Space::new(1, 0, 1, &[PreToolUse], &[(Kind::Call, 1)])),
        (Protocol::SessionsNotCompared, Space::new(1, 0, 0, &[], &[])),
        (Protocol::NeverReleases, Space::new(1, 0, 0, &[PreToolUse], &[])),
        (Protocol::NoLimitOfStops, Space::new(1, 0, 0, &[Stop, Stop], &[(Kind::Stop, 6)])),
    ] {
        let space = Space { protocol, ..space };
        let checker = space.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let rules = ["nobody", "what is written", "Stop makes", "a task that has ended"];
        let found: Vec<_> =
            checker.discoveries().into_iter().filter(|(name, _)| rules.iter().any(|r| name.starts_with(r))).collect();
        assert!(!found.is_empty(), "{protocol:?} was not caught");
        for (rule, path) in found {
            println!("{protocol:?} breaks: {rule}, after {} steps", path.into_actions().len());
        }
    }
}
