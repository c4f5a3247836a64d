//! Who holds what, and who gets it next: the project's log as a fold, and every decision about it.
//!
//! A request waits for the leases that overlap it, and behind every earlier request that wants something it wants, so that
//! nobody starves. There is one exception: who holds something that the earlier one waits for, over whatever detours, goes
//! before it; behind it, both would wait for ever.
//!
//! So a circle of waits can only be made of leases: whose lease is waited for never waits behind a request that leads back
//! to it. A lease comes to one who does not wait, so that only a new request can close a circle, and it is refused then.
//!
//! What one that waits holds is what it says with its request: what it would not give back before it goes on. That is not
//! all that its task holds: two processes of a task that take turns at a lease are no circle.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::base::ids::{RunId, TaskId};
use crate::base::text::{name_for_model, one_line, quoted_within};
use crate::model::event::{Acquire, Body, Event, Holder, Process, Queued, Release, Renew};
use crate::model::resource::Resource;

/// The most leases that are held at once.
pub const MAX_HELD: usize = 1024;

/// The most requests that wait at once.
pub const MAX_QUEUE: usize = 1024;

/// How many of those that have ended are remembered, to say why a token is worth nothing any more.
const MAX_ENDED: usize = 64;

/// The most names that a text lists.
const MAX_NAMED: usize = 3;

/// A lease that is held.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its number.
    pub token: u64,
    /// What it is for.
    pub resources: Vec<Resource>,
    /// Who holds it.
    pub holder: Holder,
    /// Since when, `CLOCK_MONOTONIC` in milliseconds on the boot of the holder's process.
    pub since_ms: u64,
    /// Until when at most, by the same clock.
    pub expires: Option<u64>,
}

/// Somebody who waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its number, which is its place in the queue.
    pub id: u64,
    /// All that is wanted, together.
    pub resources: Vec<Resource>,
    /// Who wants it.
    pub holder: Holder,
    /// The tokens of what it holds meanwhile.
    pub holding: Vec<u64>,
    /// Since when, as of a lease.
    pub since_ms: u64,
    /// Until when at most.
    pub until: Option<u64>,
}

/// A lease that is held no longer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Its number.
    pub token: u64,
    /// What it was for.
    pub resources: Vec<Resource>,
    /// Why.
    pub reason: String,
}

/// Leases and requests, as of an event of the project's log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// Events applied.
    pub seq: u64,
    /// Schema of the log; 0 before its first event.
    pub schema: u32,
    /// What is held, in the order of the tokens.
    pub held: Vec<Lease>,
    /// Who waits, first come first.
    pub queue: Vec<Request>,
    /// What was held last.
    ended: VecDeque<Ended>,
}

/// The present, as far as leases depend on it. No wall-clock time is in it.
#[derive(Clone, Copy)]
pub struct Now<'a> {
    /// `CLOCK_MONOTONIC` in milliseconds.
    pub mono_ms: u64,
    /// Whether a process is there, on this boot.
    pub alive: &'a dyn Fn(&Process) -> bool,
}

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Want {
    /// All of it, together or not at all; as `resource::together` has it.
    pub resources: Vec<Resource>,
    /// Who.
    pub holder: Holder,
    /// The process that waits for it, where the one that will hold it is another: with that, the place in the queue is gone.
    pub waiter: Option<Process>,
    /// The tokens of what it holds and will not give back before it goes on.
    pub holding: Vec<u64>,
    /// For how long at most, in milliseconds.
    pub ttl_ms: Option<u64>,
    /// Until when it waits, `CLOCK_MONOTONIC` in milliseconds.
    pub until: Option<u64>,
    /// Its place in the queue, if it waits already.
    pub request: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    /// It holds it, by this token.
    Granted(u64),
    /// Somebody else does, or is before it; it does not wait.
    Held(String),
    /// It waits, at this place.
    Queued(u64),
    /// It would wait for ever, and why.
    Circle(String),
    /// So many hold, or wait for, something that no more are let in.
    Full,
}

/// What keeps a request from being served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InTheWay<'a> {
    /// Leases that overlap it.
    pub leases: Vec<&'a Lease>,
    /// Requests that are before it.
    pub requests: Vec<&'a Request>,
}

/// Who wants to renew or give back.
#[derive(Debug, Clone, Default)]
pub struct Claimant {
    /// The attempt it belongs to.
    pub attempt: Option<(RunId, TaskId, u32)>,
    /// Itself and the processes above it.
    pub processes: Vec<Process>,
}

/// Which lease is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By its number: who knows it may do as its holder.
    Token(u64),
    /// The claimant's own lease of exactly this.
    Resource(Resource),
}

impl Leases {
    /// Applies the next event.
    pub fn apply(&mut self, event: &Event) {
        self.seq = event.seq;
        match &event.body {
            Body::Opened(p) => self.schema = p.v,
            Body::Queued(p) => self.queue.push(Request {
                id: event.seq,
                resources: p.resources.clone(),
                holder: p.holder.clone(),
                holding: p.holding.clone(),
                since_ms: p.mono_ms,
                until: p.until,
            }),
            Body::Acquire(p) => {
                self.queue.retain(|r| Some(r.id) != p.request);
                self.held.push(Lease {
                    token: p.token,
                    resources: p.resources.clone(),
                    holder: p.holder.clone(),
                    since_ms: p.mono_ms,
                    expires: p.expires,
                });
            }
            Body::Renew(p) => {
                if let Some(lease) = self.held.iter_mut().find(|l| l.token == p.token) {
                    lease.expires = Some(p.expires);
                }
            }
            Body::Release(p) | Body::Expired(p) if !p.refused => self.end(p),
            _ => {}
        }
    }

    fn end(&mut self, p: &Release) {
        self.queue.retain(|r| r.id != p.token);
        let Some(at) = self.held.iter().position(|l| l.token == p.token) else { return };
        let lease = self.held.remove(at);
        self.ended.push_back(Ended { token: lease.token, resources: lease.resources, reason: p.reason.clone() });
        if self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
    }

    /// What must never be: two leases that overlap, or tokens that do not rise.
    pub fn broken(&self) -> Option<String> {
        for (i, one) in self.held.iter().enumerate() {
            for other in &self.held[i + 1..] {
                if one.token >= other.token || overlap(&one.resources, &other.resources).is_some() {
                    return Some(format!("{} and {} are held at once", one.token, other.token));
                }
            }
        }
        None
    }

    /// What is over by now and has to be written down before anything else is decided: leases and requests whose process
    /// has ended, leases whose time is over, requests that nobody waits for any longer.
    pub fn over(&self, now: Now<'_>) -> Vec<Release> {
        let over = |token, process: &Process, until: Option<u64>, late: &str| {
            let reason = if !(now.alive)(process) {
                "its process has ended"
            } else if until.is_some_and(|until| until <= now.mono_ms) {
                late
            } else {
                return None;
            };
            Some(Release { token, reason: reason.into(), refused: false })
        };
        let leases = self.held.iter().filter_map(|l| over(l.token, &l.holder.process, l.expires, "its time was over"));
        let queue = self.queue.iter().filter_map(|r| over(r.id, &r.holder.process, r.until, "it waited long enough"));
        leases.chain(queue).collect()
    }

    /// Whether those who wait have to look again because of an event, the last one or one just before it: what was in
    /// their way may have gone, or something is in their way whose end they do not watch yet.
    pub fn wakes(&self, body: &Body) -> bool {
        let is_waited_for =
            |resources: &[Resource]| self.queue.iter().any(|r| overlap(resources, &r.resources).is_some());
        match body {
            Body::Release(p) | Body::Expired(p) => !p.refused && !self.queue.is_empty(),
            // Who holds something and waits lets others go before those that wait for it.
            Body::Queued(p) => !p.holding.is_empty() && self.queue.len() > 1,
            // It has gone before them, or has an end now.
            Body::Acquire(p) => (p.request.is_none() || p.expires.is_some()) && is_waited_for(&p.resources),
            Body::Renew(p) => self.held.iter().any(|l| l.token == p.token && is_waited_for(&l.resources)),
            _ => false,
        }
    }

    /// When the next of these ends by itself, `CLOCK_MONOTONIC` in milliseconds.
    pub fn next_end(in_the_way: &InTheWay<'_>) -> Option<u64> {
        let leases = in_the_way.leases.iter().filter_map(|l| l.expires);
        leases.chain(in_the_way.requests.iter().filter_map(|r| r.until)).min()
    }

    /// What keeps `want` from being served now.
    pub fn in_the_way(&self, want: &Want) -> InTheWay<'_> {
        let place = want.request.unwrap_or(u64::MAX);
        let earlier = |r: &&Request| {
            r.id < place && overlap(&want.resources, &r.resources).is_some() && !self.leads_to(r, &want.holding)
        };
        InTheWay {
            leases: self.held.iter().filter(|l| overlap(&want.resources, &l.resources).is_some()).collect(),
            requests: self.queue.iter().filter(earlier).collect(),
        }
    }

    /// Whether a request waits, over whatever detours, for one of these leases.
    fn leads_to(&self, request: &Request, tokens: &[u64]) -> bool {
        if tokens.is_empty() {
            return false;
        }
        let mut seen = BTreeSet::from([request.id]);
        let mut next = vec![request];
        while let Some(request) = next.pop() {
            let mut behind = |r: &'_ Request| seen.insert(r.id);
            for lease in self.held.iter().filter(|l| overlap(&request.resources, &l.resources).is_some()) {
                if tokens.contains(&lease.token) {
                    return true;
                }
                next.extend(self.queue.iter().filter(|r| r.holding.contains(&lease.token) && behind(r)));
            }
            let before = |r: &&Request| r.id < request.id && overlap(&request.resources, &r.resources).is_some();
            next.extend(self.queue.iter().filter(before).filter(|r| behind(r)));
        }
        false
    }

    /// The circle that `want` would close, in words.
    pub fn circle(&self, want: &Want) -> Option<String> {
        let me = name(&want.holder);
        // Each with the lease that it waits for, and the one among them through which it was reached.
        let mut found: Vec<(&Holder, &Lease, Option<usize>)> = Vec::new();
        let waits = |resources: &[Resource]| {
            let overlapping = self.held.iter().filter(|l| overlap(resources, &l.resources).is_some());
            overlapping.collect::<Vec<_>>()
        };
        found.extend(waits(&want.resources).into_iter().map(|l| (&want.holder, l, None)));
        let mut seen = BTreeSet::new();
        let mut next = 0;
        while let Some(&(_, lease, _)) = found.get(next) {
            if want.holding.contains(&lease.token) {
                return Some(in_words(&me, &found, next));
            }
            for request in self.queue.iter().filter(|r| r.holding.contains(&lease.token) && Some(r.id) != want.request)
            {
                if seen.insert(request.id) {
                    found.extend(waits(&request.resources).into_iter().map(|l| (&request.holder, l, Some(next))));
                }
            }
            next += 1;
        }
        None
    }

    /// Decides about `want`, what is over by now being taken away already: what has to be written, and what came of it. With
    /// `queue` it waits where it has to.
    pub fn take(&self, want: &Want, now: Now<'_>, queue: bool) -> (Option<Body>, Taken) {
        let next = self.seq + 1;
        let waits = self.queue.iter().find(|r| Some(r.id) == want.request).map(|r| r.id);
        let want = &Want { request: waits, ..want.clone() };
        let in_the_way = self.in_the_way(want);
        let is_free = in_the_way.leases.is_empty() && in_the_way.requests.is_empty();
        if is_free && self.held.len() < MAX_HELD {
            let acquire = Acquire {
                token: next,
                resources: want.resources.clone(),
                holder: want.holder.clone(),
                request: waits,
                mono_ms: now.mono_ms,
                expires: want.ttl_ms.map(|ttl| now.mono_ms.saturating_add(ttl)),
            };
            return (Some(Body::Acquire(acquire)), Taken::Granted(next));
        }
        if let Some(id) = waits {
            return (None, Taken::Queued(id));
        }
        if let Some(circle) = self.circle(want) {
            return (None, Taken::Circle(circle));
        }
        if is_free || self.queue.len() >= MAX_QUEUE {
            return (None, Taken::Full);
        }
        if !queue {
            return (None, Taken::Held(in_the_way.describe(now.mono_ms)));
        }
        let process = want.waiter.as_ref().unwrap_or(&want.holder.process).clone();
        let queued = Queued {
            resources: want.resources.clone(),
            holder: Holder { process, ..want.holder.clone() },
            // What it held once is no hindrance any more.
            holding: want.holding.iter().copied().filter(|t| self.held.iter().any(|l| l.token == *t)).collect(),
            mono_ms: now.mono_ms,
            until: want.until,
        };
        (Some(Body::Queued(queued)), Taken::Queued(next))
    }

    /// Decides about giving back: what has to be written, be it that it was refused, and why it was.
    pub fn release(&self, which: &Which, claimant: &Claimant) -> (Body, Result<u64, String>) {
        match self.own(which, claimant) {
            Ok(token) => {
                let release = Release { token, reason: "given back".into(), refused: false };
                (Body::Release(release), Ok(token))
            }
            Err((token, why)) => refused(token, "release", claimant, why),
        }
    }

    /// Decides about holding it for `ttl_ms` from now: as [`Leases::release`].
    pub fn renew(&self, which: &Which, claimant: &Claimant, ttl_ms: u64, now: Now<'_>) -> (Body, Result<u64, String>) {
        match self.own(which, claimant) {
            Ok(token) => (Body::Renew(Renew { token, expires: now.mono_ms.saturating_add(ttl_ms) }), Ok(token)),
            Err((token, why)) => refused(token, "renew", claimant, why),
        }
    }

    /// The token that the claimant means and may use, or the one that was meant and why it may not.
    fn own(&self, which: &Which, claimant: &Claimant) -> Result<u64, (u64, String)> {
        match which {
            Which::Token(token) => match self.held.iter().find(|l| l.token == *token) {
                Some(lease) => Ok(lease.token),
                None => Err((*token, self.why_not_held(*token))),
            },
            Which::Resource(resource) => {
                let held = || self.held.iter().filter(|l| l.resources.contains(resource));
                if let Some(lease) = held().find(|l| claimant.holds(l)) {
                    return Ok(lease.token);
                }
                let Some(lease) = held().next() else {
                    let last = self.ended.iter().rev().find(|e| e.resources.contains(resource));
                    let last = last.map(|e| format!(" (token {} is over: {})", e.token, e.reason)).unwrap_or_default();
                    return Err((0, format!("nobody holds {resource}{last}")));
                };
                Err((lease.token, format!("{resource} is held by {}, not by you", name(&lease.holder))))
            }
        }
    }

    fn why_not_held(&self, token: u64) -> String {
        let Some(ended) = self.ended.iter().rev().find(|e| e.token == token) else {
            return format!("there is no lease with token {token} any more");
        };
        let next = self.held.iter().find(|l| overlap(&l.resources, &ended.resources).is_some());
        let next =
            next.map(|l| format!("; {} holds it now, by token {}", name(&l.holder), l.token)).unwrap_or_default();
        format!("the lease with token {token} is over: {}{next}", ended.reason)
    }
}

impl Claimant {
    /// Whether a lease is this one's own: of its attempt, or of a process above it.
    pub fn holds(&self, lease: &Lease) -> bool {
        let Holder { run, task, attempt, process, .. } = &lease.holder;
        let of_attempt = run.as_ref().zip(task.as_ref()).zip(*attempt).zip(self.attempt.as_ref());
        of_attempt.is_some_and(|(((run, task), attempt), own)| (run, task, attempt) == (&own.0, &own.1, own.2))
            || self.processes.contains(process)
    }

    fn name(&self) -> String {
        match (&self.attempt, self.processes.first()) {
            (Some((_, task, attempt)), _) => format!("attempt {attempt} of {task}"),
            (None, Some(process)) => format!("process {}", process.pid),
            (None, None) => "somebody".into(),
        }
    }
}

impl InTheWay<'_> {
    /// Who holds what, or is before, for how long: one line for people and models.
    pub fn describe(&self, mono_ms: u64) -> String {
        let age =
            |since: u64| crate::base::span::human(std::time::Duration::from_millis(mono_ms.saturating_sub(since)));
        let held = self.leases.iter().map(|l| {
            format!("{} is held by {}, token {}, for {}", list(&l.resources), name(&l.holder), l.token, age(l.since_ms))
        });
        let wanted = self
            .requests
            .iter()
            .map(|r| format!("{} is waited for by {}, for {}", list(&r.resources), name(&r.holder), age(r.since_ms)));
        let all: Vec<String> = held.chain(wanted).collect();
        let more = all.len().saturating_sub(MAX_NAMED);
        let mut text = all[..all.len().min(MAX_NAMED)].join("; ");
        if more > 0 {
            let _ = write!(text, "; and {more} more");
        }
        text
    }
}

fn refused(token: u64, what: &str, claimant: &Claimant, why: String) -> (Body, Result<u64, String>) {
    let reason = format!("{what} by {}: {why}", claimant.name());
    (Body::Release(Release { token, reason, refused: true }), Err(why))
}

/// What the two have in common, as the second one has it.
fn overlap<'r>(wanted: &[Resource], held: &'r [Resource]) -> Option<&'r Resource> {
    held.iter().find(|h| wanted.iter().any(|w| w.overlaps(h)))
}

fn in_words(me: &str, found: &[(&Holder, &Lease, Option<usize>)], last: usize) -> String {
    let (_, own, mut behind) = found[last];
    let text = list(&own.resources);
    if behind.is_none() {
        return format!("would wait for ever: {me} holds {text} already (token {})", own.token);
    }
    // From the first step on: who waits for what.
    let mut steps = vec![found[last]];
    while let Some(at) = behind {
        steps.push(found[at]);
        behind = found[at].2;
    }
    steps.reverse();
    let mut said = format!("would wait for ever: {me} holds {text}");
    for (i, (who, lease, _)) in steps.iter().enumerate() {
        if i == 0 {
            let _ = write!(said, " and waits for {}", list(&lease.resources));
        } else {
            // The model reads it, too.
            let named = match (&who.task, &who.session, &who.label) {
                (None, None, Some(label)) => format!("{} (process {})", quoted_within(label, 80), who.process.pid),
                _ => name(who),
            };
            let _ = write!(said, ", which {named} holds, who waits for {}", list(&lease.resources));
        }
    }
    said
}

/// Resources for a text, for people and for the model.
pub fn list(resources: &[Resource]) -> String {
    let shown: Vec<String> = resources.iter().take(MAX_NAMED).map(|r| name_for_model(&r.to_string(), 120)).collect();
    let more = resources.len().saturating_sub(MAX_NAMED);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

/// What people call who holds or waits.
pub fn name(holder: &Holder) -> String {
    match (&holder.task, &holder.label) {
        (Some(task), _) => match holder.worker {
            Some(worker) => format!("task {task} ({worker})"),
            None => format!("task {task}"),
        },
        (None, _) if holder.session.is_some() => "a call of the session".into(),
        (None, Some(label)) => format!("'{}' (process {})", one_line(label, 80), holder.process.pid),
        (None, None) => format!("process {}", holder.process.pid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::{Draft, Opened, SCHEMA};
    use crate::model::resource::{self, Written};

    fn process(pid: i32) -> Process {
        Process { pid, start_time: 1, boot_id: "b".into() }
    }

    fn holder(pid: i32) -> Holder {
        Holder {
            process: process(pid),
            run: None,
            task: None,
            attempt: None,
            worker: None,
            session: None,
            tool_use_id: None,
            label: None,
        }
    }

    fn resources(names: &str) -> Vec<Resource> {
        let read = |name| match resource::read(name) {
            Ok(Written::Name(resource)) => resource,
            other => panic!("{other:?}"),
        };
        resource::together(names.split(' ').map(read).collect())
    }

    fn want(pid: i32, names: &str, holding: &[u64]) -> Want {
        Want {
            resources: resources(names),
            holder: holder(pid),
            waiter: None,
            holding: holding.to_vec(),
            ttl_ms: None,
            until: None,
            request: None,
        }
    }

    /// The log, its clock, and who is dead.
    struct Sim {
        leases: Leases,
        mono_ms: u64,
        dead: Vec<i32>,
        wall: u64,
    }

    impl Sim {
        fn new() -> Sim {
            let mut sim = Sim { leases: Leases::default(), mono_ms: 1000, dead: Vec::new(), wall: 0 };
            sim.emit(Body::Opened(Opened { v: SCHEMA, cpw: "1".into() }));
            sim
        }

        fn emit(&mut self, body: Body) {
            self.wall += 1;
            let event = Event::new(Draft::run(body), self.leases.seq + 1, self.wall.to_string());
            self.leases.apply(&event);
            assert_eq!(self.leases.broken(), None);
        }

        fn with_now<T>(&mut self, decide: impl FnOnce(&Leases, Now<'_>) -> (Option<Body>, T)) -> T {
            let dead = self.dead.clone();
            let alive = |p: &Process| !dead.contains(&p.pid);
            let now = Now { mono_ms: self.mono_ms, alive: &alive };
            for over in self.leases.over(now) {
                self.emit(Body::Expired(over));
            }
            let (body, out) = decide(&self.leases, now);
            if let Some(body) = body {
                self.emit(body);
            }
            out
        }

        fn take(&mut self, want: &mut Want) -> Taken {
            let taken = self.with_now(|leases, now| leases.take(want, now, true));
            if let Taken::Queued(id) = taken {
                want.request = Some(id);
            }
            taken
        }

        fn got(&mut self, want: &mut Want) -> u64 {
            match self.take(want) {
                Taken::Granted(token) => token,
                other => panic!("{other:?}"),
            }
        }

        fn waits(&mut self, want: &mut Want) {
            let taken = self.take(want);
            assert!(matches!(taken, Taken::Queued(_)), "{taken:?}");
        }

        fn release(&mut self, token: u64) {
            let gone = self.with_now(|l, _| {
                let (body, out) = l.release(&Which::Token(token), &Claimant::default());
                (Some(body), out)
            });
            assert_eq!(gone, Ok(token));
        }

        fn renew(&mut self, which: &Which, pid: i32, ttl_ms: u64) -> Result<u64, String> {
            let claimant = Claimant { attempt: None, processes: vec![process(pid)] };
            self.with_now(|l, now| {
                let (body, out) = l.renew(which, &claimant, ttl_ms, now);
                (Some(body), out)
            })
        }
    }

    #[test]
    fn the_next_in_the_queue_gets_it_by_a_higher_token() {
        let mut sim = Sim::new();
        let (mut a, mut b, mut c) = (want(1, "db", &[]), want(2, "db", &[]), want(3, "db", &[]));
        let first = sim.got(&mut a);
        sim.waits(&mut b);
        sim.waits(&mut c);
        sim.release(first);
        sim.waits(&mut c);
        let second = sim.got(&mut b);
        sim.release(second);
        let third = sim.got(&mut c);
        assert!(first < second && second < third);
    }

    #[test]
    fn v06_who_wants_much_is_not_overtaken_for_ever_by_those_who_want_little() {
        let mut sim = Sim::new();
        let a = sim.got(&mut want(1, "a", &[]));
        let b = sim.got(&mut want(2, "b", &[]));
        let mut both = want(3, "a b", &[]);
        sim.waits(&mut both);
        let (mut more_a, mut other) = (want(4, "a", &[]), want(5, "c", &[]));
        sim.release(a);
        sim.waits(&mut more_a);
        sim.got(&mut other);
        sim.waits(&mut both);
        sim.release(b);
        let token = sim.got(&mut both);
        sim.release(token);
        sim.got(&mut more_a);
    }

    #[test]
    fn v05_a_circle_is_refused_when_it_would_close_and_named() {
        let mut sim = Sim::new();
        let db = sim.got(&mut want(1, "db", &[]));
        let gpu = sim.got(&mut want(2, "gpu0", &[]));
        sim.waits(&mut want(2, "db", &[gpu]));
        let Taken::Circle(said) = sim.take(&mut want(1, "gpu0", &[db])) else { panic!("it waits for ever") };
        assert_eq!(
            said,
            "would wait for ever: process 1 holds db and waits for gpu0, which process 2 holds, who waits for db"
        );
        let Taken::Circle(said) = sim.take(&mut want(1, "db", &[db])) else { panic!("it waits for itself") };
        assert_eq!(said, "would wait for ever: process 1 holds db already (token 2)");
        // Over three.
        let cache = sim.got(&mut want(3, "cache", &[]));
        sim.waits(&mut want(3, "gpu0", &[cache]));
        let Taken::Circle(said) = sim.take(&mut want(1, "cache", &[db])) else { panic!("it waits for ever") };
        assert!(said.ends_with(
            "process 1 holds db and waits for cache, which process 3 holds, who waits for gpu0, which process 2 holds, \
             who waits for db"
        ));
        // Another process of the same task that holds nothing may wait.
        sim.waits(&mut want(1, "gpu0", &[]));
    }

    #[test]
    fn who_holds_what_an_earlier_one_waits_for_goes_before_it() {
        let mut sim = Sim::new();
        let db = sim.got(&mut want(1, "db", &[]));
        sim.waits(&mut want(2, "db gpu0", &[]));
        sim.waits(&mut want(3, "gpu0", &[]));
        // Behind the second, which waits for db, it would wait for ever; and gpu0 is free.
        sim.got(&mut want(1, "gpu0", &[db]));
    }

    #[test]
    fn who_is_dead_or_late_is_out_of_the_way() {
        let mut sim = Sim::new();
        let first = sim.got(&mut want(1, "db", &[]));
        let mut dead = want(2, "db", &[]);
        let mut late = Want { until: Some(2000), ..want(3, "db", &[]) };
        let mut last = Want { ttl_ms: Some(500), ..want(4, "db", &[]) };
        for w in [&mut dead, &mut late, &mut last] {
            sim.waits(w);
        }
        sim.dead = vec![1, 2];
        sim.waits(&mut last);
        assert_eq!(sim.leases.held, []);
        sim.mono_ms = 2000;
        let second = sim.got(&mut last);
        assert!(second > first);
        assert_eq!((sim.leases.queue.len(), sim.leases.held[0].expires), (0, Some(2500)));
    }

    #[test]
    fn v03_only_the_monotonic_clock_ends_a_lease() {
        let mut sim = Sim::new();
        let token = sim.got(&mut Want { ttl_ms: Some(500), ..want(1, "db", &[]) });
        let mut next = want(2, "db", &[]);
        // Ten years later, or before, by the wall clock.
        for wall in [u64::MAX / 2, 0] {
            sim.wall = wall;
            sim.waits(&mut next);
        }
        sim.mono_ms += 499;
        sim.waits(&mut next);
        sim.mono_ms += 1;
        assert!(sim.got(&mut next) > token);
    }

    #[test]
    fn v04_who_does_not_hold_it_can_neither_renew_nor_give_back() {
        let mut sim = Sim::new();
        let db = Which::Resource(resources("db").remove(0));
        let nobody = sim.renew(&db, 1, 500);
        assert_eq!(nobody, Err("nobody holds db".into()));
        let token = sim.got(&mut Want { ttl_ms: Some(500), ..want(1, "db", &[]) });
        assert_eq!(sim.renew(&db, 2, 500), Err("db is held by process 1, not by you".into()));
        assert_eq!(sim.renew(&db, 1, 700), Ok(token));
        assert_eq!(sim.leases.held[0].expires, Some(1700));
        sim.mono_ms = 1700;
        // Late, also where nobody else has come.
        let late = sim.renew(&Which::Token(token), 1, 500);
        assert_eq!(late, Err(format!("the lease with token {token} is over: its time was over")));
        let next = sim.got(&mut want(2, "db", &[]));
        let late = sim.renew(&Which::Token(token), 1, 500).unwrap_err();
        assert!(late.ends_with(&format!("its time was over; process 2 holds it now, by token {next}")), "{late}");
        let stranger = Claimant { attempt: None, processes: vec![process(1)] };
        let (body, said) = sim.leases.release(&db, &stranger);
        assert_eq!(said, Err("db is held by process 2, not by you".into()));
        let Body::Release(written) = body else { panic!("{body:?}") };
        assert!(written.refused && written.token == next && written.reason.starts_with("release by process 1: "));
        sim.release(next);
        let (_, twice) = sim.leases.release(&Which::Token(next), &stranger);
        assert_eq!(twice, Err(format!("the lease with token {next} is over: given back")));
    }

    #[test]
    fn an_attempt_owns_what_its_processes_hold() {
        let mut sim = Sim::new();
        let attempt = |n| (RunId::new("r").unwrap(), TaskId::new("t").unwrap(), n);
        let mut of_task = want(1, "db", &[]);
        let (run, task, n) = attempt(1);
        (of_task.holder.run, of_task.holder.task, of_task.holder.attempt) = (Some(run), Some(task), Some(n));
        sim.got(&mut of_task);
        let holds = |n, pid| {
            let claimant = Claimant { attempt: Some(attempt(n)), processes: vec![process(pid)] };
            claimant.holds(&sim.leases.held[0])
        };
        assert!(holds(1, 7) && holds(2, 1) && !holds(2, 7));
    }

    #[test]
    fn nobody_is_let_in_without_bound() {
        let mut sim = Sim::new();
        sim.got(&mut want(1, "db", &[]));
        for pid in 0..i32::try_from(MAX_QUEUE).unwrap() {
            sim.waits(&mut want(pid + 2, "db", &[]));
        }
        assert_eq!(sim.take(&mut want(9999, "db", &[])), Taken::Full);
        let said = sim.leases.in_the_way(&want(9999, "db", &[])).describe(9000);
        assert!(
            said.starts_with("db is held by process 1, token 2, for 8.0 s; db is waited for by process 2, for 8.0 s; "),
            "{said}"
        );
        assert!(said.ends_with("; and 1022 more"), "{said}");
    }
}
