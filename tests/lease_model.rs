//! Leases as a state space explored whole: three processes that want two resources, one after the other or both together, in
//! every order with time that passes, leases that end by it, processes that are stopped, go on and are killed, also between
//! writing something down and waking those who wait. What is granted, refused, over, and who is woken are the functions that
//! the program runs (`logic::leases`); the lock, the processes and the resource that checks tokens are modelled.
//!
//! Six wrong protocols are planted, and each must be caught.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::hash::{DefaultHasher, Hash, Hasher};

use cpw::logic::leases::{Claimant, Leases, Now, Taken, Want, Which};
use cpw::model::event::{Body, Draft, Event, Holder, Opened, Process, SCHEMA};
use cpw::model::resource::{self, Resource, Written};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// What a build could get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    /// The one that the program follows.
    Real,
    /// Leases end by a clock that people can set.
    ByTheWallClock,
    /// What is guarded takes every write.
    TokenNotChecked,
    /// What was decided is written down later.
    OutsideTheLock,
    /// Everybody may wait for everything.
    NoCircles,
    /// Who gets something wakes nobody.
    OnlyEndsWake,
    /// Who waits does not watch the processes that are in its way.
    DeathsNotWatched,
}

/// What one process does: what it takes, one after the other, all of it held until the end; and for how long it may.
#[derive(Debug, Clone)]
struct Program {
    wants: &'static [&'static [usize]],
    ttl: Option<u64>,
}

const RESOURCES: [&str; 2] = ["db", "gpu"];

#[expect(clippy::struct_excessive_bools, reason = "each is true or not by itself")]
#[derive(Debug, Clone, Default)]
struct Worker {
    /// How many of its wants it has got.
    got: usize,
    tokens: Vec<u64>,
    /// Its place in the line, and what it watches there: processes, and when something in its way ends by itself.
    request: Option<u64>,
    watched: Vec<usize>,
    end: Option<u64>,
    rung: bool,
    /// It has written something that others have to be woken for.
    rings: bool,
    /// Decided outside the lock, not written down yet.
    decided: Option<(Body, Taken)>,
    wrote: bool,
    done: bool,
    dead: bool,
    paused: bool,
}

#[derive(Debug, Clone)]
struct World {
    leases: Leases,
    mono: u64,
    wall: u64,
    workers: Vec<Worker>,
    /// The highest token that each resource has seen.
    highest: [u64; 2],
    /// The highest token that was given.
    last: u64,
    /// When leases were given, by the true clock, and for how long.
    given: Vec<(u64, u64, Option<u64>)>,
    kills: u8,
    pauses: u8,
    jumps: u8,
    circle: bool,
    stale: bool,
    broken: Option<&'static str>,
}

impl World {
    /// What the future depends on: numbers by their order only.
    fn digest<H: Hasher>(&self, h: &mut H) {
        let mut numbers: Vec<u64> = self.leases.held.iter().map(|l| l.token).collect();
        numbers.extend(self.leases.queue.iter().map(|r| r.id));
        numbers.extend(self.workers.iter().flat_map(|w| w.tokens.iter().copied().chain(w.request)));
        numbers.extend(self.highest);
        numbers.sort_unstable();
        numbers.dedup();
        let rank = |n: u64| numbers.binary_search(&n).map_or(usize::MAX, |at| at);
        let ranks = |all: &[u64]| all.iter().map(|n| rank(*n)).collect::<Vec<_>>();
        for l in &self.leases.held {
            (rank(l.token), &l.resources, l.holder.process.pid, l.expires, l.since_ms).hash(h);
        }
        for r in &self.leases.queue {
            (rank(r.id), &r.resources, r.holder.process.pid, ranks(&r.holding)).hash(h);
        }
        for w in &self.workers {
            (w.got, ranks(&w.tokens), w.request.map(rank), &w.watched, w.end, w.rung).hash(h);
            (w.rings, format!("{:?}", w.decided), w.wrote, w.done, w.dead, w.paused).hash(h);
        }
        (self.mono, self.wall, ranks(&self.highest), self.kills, self.pauses, self.jumps).hash(h);
        (self.circle, self.stale, self.broken).hash(h);
    }

    fn sum(&self) -> u64 {
        let mut h = DefaultHasher::new();
        self.digest(&mut h);
        h.finish()
    }
}

impl Hash for World {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.digest(h);
    }
}

impl PartialEq for World {
    fn eq(&self, other: &World) -> bool {
        self.sum() == other.sum()
    }
}

impl Eq for World {}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    /// A process does the next thing.
    Go(usize),
    Pause(usize),
    Resume(usize),
    Kill(usize),
    /// Time passes.
    Tick,
    /// Somebody sets the wall clock.
    Jump,
}

#[derive(Debug, Clone)]
struct Space {
    protocol: Protocol,
    programs: Vec<Program>,
    ticks: u64,
    kills: u8,
    pauses: u8,
}

fn resources(which: &[usize]) -> Vec<Resource> {
    let one = |i: &usize| match resource::read(RESOURCES[*i]).unwrap() {
        Written::Name(resource) => resource,
        Written::File(_) => unreachable!("they are names"),
    };
    resource::together(which.iter().map(one).collect())
}

fn process(worker: usize) -> Process {
    Process { pid: i32::try_from(worker).unwrap() + 1, start_time: 1, boot_id: "boot".into() }
}

impl Space {
    fn want(&self, w: &World, i: usize) -> Want {
        let holder = Holder {
            process: process(i),
            run: None,
            task: None,
            attempt: None,
            worker: None,
            session: None,
            tool_use_id: None,
            label: None,
        };
        let worker = &w.workers[i];
        Want {
            resources: resources(self.programs[i].wants[worker.got]),
            holder,
            // Without them no circle is seen.
            waiter: None,
            holding: if self.protocol == Protocol::NoCircles { Vec::new() } else { worker.tokens.clone() },
            ttl_ms: self.programs[i].ttl,
            until: None,
            request: worker.request,
        }
    }

    /// Appends to the log; returns whether others have to be woken.
    fn write(&self, w: &mut World, body: &Body) -> bool {
        if let Body::Expired(p) = body
            && let Some(lease) = w.leases.held.iter().find(|l| l.token == p.token)
        {
            let (_, since, ttl) = *w.given.iter().find(|g| g.0 == p.token).unwrap();
            let lives = !w.workers[usize::try_from(lease.holder.process.pid).unwrap() - 1].dead;
            if lives && ttl.is_none_or(|ttl| since + ttl > w.mono) {
                w.broken = Some("a lease is taken away before its time");
            }
        }
        if let Body::Acquire(p) = body {
            if p.token <= w.last {
                w.broken = Some("tokens do not rise");
            }
            w.last = p.token;
            let ttl = self.programs[usize::try_from(p.holder.process.pid).unwrap() - 1].ttl;
            w.given.push((p.token, w.mono, ttl));
        }
        let seq = w.leases.seq + 1;
        w.leases.apply(&Event::new(Draft::run(body.clone()), seq, String::new()));
        if w.leases.broken().is_some() {
            w.broken = Some("two hold the same");
        }
        let wakes = w.leases.wakes(body);
        wakes && (self.protocol != Protocol::OnlyEndsWake || matches!(body, Body::Release(_) | Body::Expired(_)))
    }

    /// One transaction: what is over is taken away, then it is decided.
    fn transact(&self, w: &mut World, decide: impl FnOnce(&Leases, Now<'_>) -> Vec<Body>) -> bool {
        let dead: Vec<i32> =
            w.workers.iter().enumerate().filter(|(_, w)| w.dead).map(|(i, _)| process(i).pid).collect();
        let alive = |p: &Process| !dead.contains(&p.pid);
        let mono_ms = if self.protocol == Protocol::ByTheWallClock { w.wall } else { w.mono };
        let now = Now { mono_ms, alive: &alive };
        let over = w.leases.over(now);
        let mut rings = false;
        for release in over {
            rings |= self.write(w, &Body::Expired(release));
        }
        for body in decide(&w.leases, now) {
            rings |= self.write(w, &body);
        }
        rings
    }

    fn answer(&self, w: &mut World, i: usize, taken: &Taken, wanted: &Want) {
        match *taken {
            Taken::Granted(number) => {
                let one = &mut w.workers[i];
                one.tokens.push(number);
                one.got += 1;
                (one.request, one.rung) = (None, false);
            }
            Taken::Queued(id) => {
                let queued = Want { request: Some(id), ..wanted.clone() };
                let in_the_way = w.leases.in_the_way(&queued);
                let is_blind = self.protocol == Protocol::DeathsNotWatched;
                let leases = in_the_way.leases.iter().map(|l| &l.holder);
                let holders = leases.chain(in_the_way.requests.iter().map(|r| &r.holder));
                let mut watched: Vec<usize> = holders.map(|h| usize::try_from(h.process.pid).unwrap() - 1).collect();
                watched.sort_unstable();
                watched.dedup();
                watched.retain(|_| !is_blind);
                let end = Leases::next_end(&in_the_way);
                let one = &mut w.workers[i];
                (one.request, one.watched, one.end, one.rung) = (Some(id), watched, end, false);
            }
            Taken::Circle(_) => {
                w.circle = true;
                // It does without, and gives back what it has.
                w.workers[i].got = usize::MAX;
                w.workers[i].wrote = true;
            }
            Taken::Held(_) | Taken::Full => w.broken = Some("it waits, and there is room"),
        }
    }

    fn go(&self, w: &mut World, i: usize) {
        let worker = &mut w.workers[i];
        if std::mem::take(&mut worker.rings) {
            for (_, other) in w.workers.iter_mut().enumerate().filter(|(at, other)| *at != i && other.request.is_some())
            {
                other.rung = true;
            }
        } else if let Some((mut body, mut taken)) = worker.decided.take() {
            // It gets the number that is next by now.
            if let (Body::Acquire(p), Taken::Granted(token)) = (&mut body, &mut taken) {
                (p.token, *token) = (w.leases.seq + 1, w.leases.seq + 1);
            } else if let Taken::Queued(id) = &mut taken {
                *id = w.leases.seq + 1;
            }
            let want = self.want(w, i);
            w.workers[i].rings = self.write(w, &body);
            self.answer(w, i, &taken, &want);
        } else if worker.got < self.programs[i].wants.len() {
            let want = self.want(w, i);
            let outside = self.protocol == Protocol::OutsideTheLock;
            let mut said = None;
            let rings = self.transact(w, |leases, now| {
                let (body, taken) = leases.take(&want, now, true);
                said = Some((body.clone().filter(|_| outside), taken));
                body.into_iter().filter(|_| !outside).collect()
            });
            w.workers[i].rings = rings;
            match said.unwrap() {
                (Some(body), taken) => w.workers[i].decided = Some((body, taken)),
                (None, taken) => self.answer(w, i, &taken, &want),
            }
        } else if !worker.wrote {
            worker.wrote = true;
            for (want, token) in self.programs[i].wants.iter().zip(worker.tokens.clone()) {
                for &r in *want {
                    if token >= w.highest[r] {
                        w.highest[r] = token;
                    } else if self.protocol == Protocol::TokenNotChecked {
                        w.broken = Some("an older holder writes after a newer one");
                    } else {
                        w.stale = true;
                    }
                }
            }
        } else {
            worker.done = true;
            let tokens = std::mem::take(&mut worker.tokens);
            let stranger = Claimant::default();
            let rings = self.transact(w, |leases, _| {
                tokens.iter().map(|token| leases.release(&Which::Token(*token), &stranger).0).collect()
            });
            w.workers[i].rings = rings;
        }
    }

    /// Whether a process does something by itself now; with `later`, or once time has passed.
    fn goes(w: &World, i: usize, later: bool) -> bool {
        let worker = &w.workers[i];
        let woken = |worker: &Worker| {
            worker.rung
                || worker.watched.iter().any(|other| w.workers[*other].dead)
                || worker.end.is_some_and(|end| later || end <= w.mono)
        };
        let has_to = worker.rings || worker.decided.is_some() || (!worker.done && worker.request.is_none());
        !worker.dead && !worker.paused && (has_to || (worker.request.is_some() && woken(worker)))
    }
}

impl Model for Space {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        let mut leases = Leases::default();
        let opened = Body::Opened(Opened { v: SCHEMA, cpw: String::new() });
        leases.apply(&Event::new(Draft::run(opened), 1, String::new()));
        vec![World {
            leases,
            mono: 0,
            wall: 0,
            workers: vec![Worker::default(); self.programs.len()],
            highest: [0; 2],
            last: 0,
            given: Vec::new(),
            kills: self.kills,
            pauses: self.pauses,
            jumps: u8::from(self.protocol == Protocol::ByTheWallClock),
            circle: false,
            stale: false,
            broken: None,
        }]
    }

    fn actions(&self, w: &World, actions: &mut Vec<Step>) {
        for (i, worker) in w.workers.iter().enumerate() {
            if Self::goes(w, i, false) {
                actions.push(Step::Go(i));
            }
            if worker.paused {
                actions.push(Step::Resume(i));
            } else if w.pauses > 0 && !worker.dead && !worker.done {
                actions.push(Step::Pause(i));
            }
            if w.kills > 0 && !worker.dead && (!worker.done || worker.rings) {
                actions.push(Step::Kill(i));
            }
        }
        if w.mono < self.ticks {
            actions.push(Step::Tick);
        }
        if w.jumps > 0 {
            actions.push(Step::Jump);
        }
    }

    fn next_state(&self, w: &World, step: Step) -> Option<World> {
        let mut w = w.clone();
        match step {
            Step::Go(i) => self.go(&mut w, i),
            Step::Pause(i) => (w.workers[i].paused, w.pauses) = (true, w.pauses - 1),
            Step::Resume(i) => w.workers[i].paused = false,
            Step::Kill(i) => (w.workers[i].dead, w.kills) = (true, w.kills - 1),
            Step::Tick => (w.mono, w.wall) = (w.mono + 1, w.wall + 1),
            Step::Jump => (w.wall, w.jumps) = (w.wall + 10, w.jumps - 1),
        }
        Some(w)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("one holder, rising tokens, nothing taken early, no stale write", |_, w: &World| {
                w.broken.is_none()
            }),
            Property::always("whoever waits is woken by something, and nobody for ever", |_, w: &World| {
                let waits = w.workers.iter().any(|w| !w.dead && !w.done);
                // One that is stopped may keep what has no end, its place in the line, and what it was about to say:
                // others look by themselves once a minute.
                let keeps = |i: usize| {
                    let own = |h: &Holder| h.process == process(i);
                    w.leases.held.iter().any(|l| own(&l.holder) && l.expires.is_none())
                        || w.leases.queue.iter().any(|r| own(&r.holder))
                        || w.workers[i].rings
                };
                let only_stopped = w.workers.iter().all(|w| w.dead || w.done || w.paused);
                let goes = |i: usize| Self::goes(w, i, true) || (w.workers[i].paused && keeps(i));
                !waits || only_stopped || (0..w.workers.len()).any(goes)
            }),
        ];
        if self.protocol == Protocol::Real {
            all.push(Property::sometimes("a circle is refused", |m: &Space, w: &World| w.circle || !m.has_circles()));
            all.push(Property::sometimes("all come to their end", |_, w: &World| w.workers.iter().all(|w| w.done)));
            all.push(Property::sometimes("an older token is refused", |m: &Space, w: &World| {
                w.stale || m.pauses == 0 || m.programs.iter().all(|p| p.ttl.is_none())
            }));
        }
        all
    }
}

impl Space {
    fn has_circles(&self) -> bool {
        self.programs.iter().filter(|p| p.wants.len() > 1).count() > 1
    }
}

const NESTED: Program = Program { wants: &[&[0], &[1]], ttl: None };
const REVERSED: Program = Program { wants: &[&[1], &[0]], ttl: None };
const BOTH: Program = Program { wants: &[&[0, 1]], ttl: None };
const ONE: Program = Program { wants: &[&[0]], ttl: None };

fn space(protocol: Protocol, programs: &[&Program], ticks: u64, kills: u8, pauses: u8) -> Space {
    Space { protocol, programs: programs.iter().map(|p| (*p).clone()).collect(), ticks, kills, pauses }
}

fn timed(program: &Program) -> Program {
    Program { ttl: Some(1), ..program.clone() }
}

#[test]
fn every_order_of_takes_ends_stops_and_kills_keeps_the_rules() {
    let real = Protocol::Real;
    for (name, space) in [
        (
            "two that nest and one that takes both, a kill and a stop",
            space(real, &[&NESTED, &REVERSED, &BOTH], 0, 1, 1),
        ),
        ("with an end, a stop", space(real, &[&timed(&NESTED), &BOTH, &timed(&ONE)], 1, 0, 1)),
        ("with an end, a kill and a stop", space(real, &[&timed(&BOTH), &ONE, &ONE], 1, 1, 1)),
    ] {
        let begun = std::time::Instant::now();
        let checker = space.checker().threads(2).spawn_dfs().join();
        checker.assert_properties();
        println!("{name}: {} states in {:.1} s", checker.unique_state_count(), begun.elapsed().as_secs_f32());
    }
}

#[test]
fn every_planted_wrong_protocol_is_caught() {
    for space in [
        space(Protocol::ByTheWallClock, &[&timed(&ONE), &ONE], 1, 0, 0),
        space(Protocol::TokenNotChecked, &[&timed(&ONE), &ONE], 2, 0, 1),
        space(Protocol::OutsideTheLock, &[&ONE, &ONE], 0, 0, 0),
        space(Protocol::NoCircles, &[&NESTED, &REVERSED], 0, 0, 0),
        space(Protocol::OnlyEndsWake, &[&ONE, &timed(&ONE), &ONE], 2, 0, 1),
        space(Protocol::DeathsNotWatched, &[&ONE, &ONE], 0, 1, 0),
    ] {
        let protocol = space.protocol;
        let checker = space.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        let found = checker.discoveries();
        assert!(!found.is_empty(), "{protocol:?} was not caught");
        for (rule, path) in found {
            println!("{protocol:?} breaks: {rule}, after {} steps", path.into_actions().len());
        }
    }
}
