//! Votes: who may vote, what counts, and when it is decided. A poll has its electorate from the plan; each task has one vote,
//! whatever its attempts, and one that has come to its end without a vote is absent. What follows from that is decided here,
//! by whoever holds the log's lock: the append that completes a poll writes its verdict.
//!
//! Let `p` and `a` be the votes for and against, `r` the voters that can still vote, `q` the quorum. A poll closes as soon as
//! nothing that `r` could say would change its result: by majority it proceeds if `p + a >= q` and `p > a + r`, and is aborted
//! if `p + a >= q` and `a >= p + r`, so that a tie is an abort; a unanimous one is aborted as soon as
//! `a > 0`, quorum or not, and proceeds if `p >= q` and `r = 0`. Else, with `p + a + r < q`, there is no quorum, and the plan's
//! default holds: at once, but where that is to proceed and who is still to come could be against it. At its deadline nobody can vote any more: `r` is 0, and with that one of these is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::base::ids::{TaskId, Topic};
use crate::base::span::Span;
use crate::logic::view::{Happened, News, View};
use crate::model::event::{self, Body, Decided, Event};
use crate::model::vote::{Choice, MAX_VOTERS, OnAbort, Rule, Vote};

/// What a voter has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ballot {
    /// Nothing yet; it still can.
    Open,
    /// It has voted so, in this attempt.
    Cast(Choice, u32),
    /// It has come to its end without.
    Absent,
}

/// How many have voted how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// For.
    pub proceed: u32,
    /// Against.
    pub abort: u32,
    /// Not yet.
    pub open: u32,
    /// Never.
    pub absent: u32,
}

/// A vote that is held.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Poll {
    /// About what.
    pub topic: Topic,
    /// How many must be for it.
    pub rule: Rule,
    /// How many must have voted.
    pub quorum: u32,
    /// When it closes at the latest, from the start of its first voter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Span>,
    /// What holds without a quorum.
    pub default: Choice,
    /// What an abort means for the session.
    pub on_abort: OnAbort,
    /// The electorate, with what each has done.
    pub voters: BTreeMap<TaskId, Ballot>,
    /// When the first attempt of any voter began, `CLOCK_MONOTONIC` in milliseconds on the run's boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Tasks of which it is written down that a vote of theirs does not count.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refused: BTreeSet<TaskId>,
    /// What came out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Decided>,
}

/// Why a vote does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It is for nothing that there is.
    UnknownChoice,
    /// Its task is no voter.
    Stranger,
    /// Its task has voted.
    Voted {
        /// For this.
        choice: Choice,
        /// In this attempt.
        attempt: u32,
        /// Whether a further attempt of the task says the same once more.
        repeats: bool,
    },
    /// It is decided.
    Late(Decided),
}

impl Refusal {
    /// Whether its task has done nothing wrong: others have decided before it, or it was tried again and says what it said.
    pub fn is_harmless(&self) -> bool {
        match self {
            Refusal::UnknownChoice | Refusal::Stranger => false,
            Refusal::Voted { repeats, .. } => *repeats,
            Refusal::Late(_) => true,
        }
    }

    /// In words.
    pub fn why(&self) -> String {
        match self {
            Refusal::UnknownChoice => "a vote is for proceed or abort".to_owned(),
            Refusal::Stranger => "the task is not one of its voters".to_owned(),
            Refusal::Voted { choice, attempt, .. } => format!("the task has voted {choice}, in attempt {attempt}"),
            Refusal::Late(verdict) => format!("it is decided: {}", outcome(verdict)),
        }
    }
}

/// What becomes of a vote.
#[derive(Debug, Clone)]
pub struct Cast {
    /// How the poll stands behind it.
    pub poll: Poll,
    /// What is to be written, at once.
    pub bodies: Vec<Body>,
    /// Why it does not count, where it does not.
    pub refusal: Option<Refusal>,
}

impl Poll {
    /// The poll before the first event.
    pub fn new(vote: &Vote) -> Poll {
        Poll {
            topic: vote.topic.clone(),
            rule: vote.rule,
            quorum: vote.quorum,
            deadline: vote.deadline,
            default: vote.default,
            on_abort: vote.on_abort,
            voters: vote.voters.iter().map(|id| (id.clone(), Ballot::Open)).collect(),
            since_ms: None,
            refused: BTreeSet::new(),
            verdict: None,
        }
    }

    /// How many have voted how.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for ballot in self.voters.values() {
            let count = match ballot {
                Ballot::Open => &mut tally.open,
                Ballot::Cast(Choice::Proceed, _) => &mut tally.proceed,
                Ballot::Cast(Choice::Abort, _) => &mut tally.abort,
                Ballot::Absent => &mut tally.absent,
            };
            *count += 1;
        }
        tally
    }

    /// When it closes at the latest, `CLOCK_MONOTONIC` in milliseconds, once that is known.
    pub fn closes_at(&self) -> Option<u64> {
        Some(self.since_ms?.saturating_add(self.deadline?.as_ms()))
    }

    /// Why a vote of a task's attempt would not count.
    pub fn refuses(&self, task: &TaskId, attempt: u32, decision: Option<Choice>) -> Option<Refusal> {
        let ballot = self.voters.get(task);
        match (ballot, decision, &self.verdict) {
            (_, None, _) => Some(Refusal::UnknownChoice),
            (None, _, _) => Some(Refusal::Stranger),
            (Some(&Ballot::Cast(choice, voted)), Some(decision), _) => {
                Some(Refusal::Voted { choice, attempt: voted, repeats: choice == decision && voted != attempt })
            }
            (Some(_), _, Some(verdict)) => Some(Refusal::Late(verdict.clone())),
            (Some(Ballot::Open | Ballot::Absent), _, None) => None,
        }
    }

    /// The verdict that follows from the votes, where none is written and one does. `now_ms`: the time by the run's clock,
    /// where it is still the same. `cancelled`: the user has given the run up, so that an abort is no alarm.
    pub fn decided(&self, now_ms: Option<u64>, cancelled: bool) -> Option<Decided> {
        if self.verdict.is_some() {
            return None;
        }
        let tally = self.tally();
        let over = self.closes_at().zip(now_ms).is_some_and(|(at, now)| now >= at);
        let (result, no_quorum) = self.result(tally, if over { 0 } else { tally.open })?;
        Some(Decided {
            topic: self.topic.clone(),
            result,
            proceed: tally.proceed,
            abort: tally.abort,
            absent: tally.open + tally.absent,
            no_quorum,
            escalates: result == Choice::Abort && self.on_abort == OnAbort::Signal && !cancelled,
        })
    }

    /// What comes out while `r` voters can still vote, and whether that is for want of a quorum.
    fn result(&self, tally: Tally, r: u32) -> Option<(Choice, bool)> {
        let Tally { proceed: p, abort: a, .. } = tally;
        if self.rule == Rule::Unanimous {
            // A voice against it is enough, however few speak; so what would proceed has to hear them all.
            return match (a, p + r < self.quorum) {
                (1.., _) => Some((Choice::Abort, false)),
                (0, true) => (r == 0 || self.default == Choice::Abort).then_some((self.default, true)),
                (0, false) if r > 0 => None,
                (0, false) => Some((Choice::Proceed, false)),
            };
        }
        if p + a + r < self.quorum {
            return Some((self.default, true));
        }
        if p + a < self.quorum {
            return None;
        }
        let aborted = (a >= p + r).then_some(Choice::Abort);
        let result = (p > a + r).then_some(Choice::Proceed).or(aborted);
        result.map(|result| (result, false))
    }

    /// Whose votes may have to come before it is decided: with a deadline that runs, nobody's.
    pub fn awaited(&self) -> impl Iterator<Item = &TaskId> {
        let needed = self.verdict.is_none() && self.closes_at().is_none();
        self.voters.iter().filter(move |(_, ballot)| needed && **ballot == Ballot::Open).map(|(task, _)| task)
    }

    /// What becomes of a vote, `as_written` by an attempt of a task that is open: what is to be written, in this order and at
    /// once. What is due before the vote comes before it, and what it completes behind it.
    pub fn cast(
        &self,
        task: &TaskId,
        attempt: u32,
        as_written: event::Vote,
        now_ms: Option<u64>,
        cancelled: bool,
    ) -> Cast {
        let mut poll = self.clone();
        let mut bodies = Vec::new();
        let settle = |poll: &mut Poll, bodies: &mut Vec<Body>| {
            if let Some(verdict) = poll.decided(now_ms, cancelled) {
                bodies.push(Body::Verdict(verdict.clone()));
                poll.verdict = Some(verdict);
            }
        };
        settle(&mut poll, &mut bodies);
        let refusal = poll.refuses(task, attempt, as_written.decision);
        match (&refusal, as_written.decision) {
            (None, Some(choice)) => {
                bodies.push(Body::Vote(as_written));
                poll.voters.insert(task.clone(), Ballot::Cast(choice, attempt));
                settle(&mut poll, &mut bodies);
            }
            // Once is enough to know, and a loop must not fill the log.
            (Some(refusal), _) if !poll.refused.contains(task) && poll.refused.len() < MAX_VOTERS => {
                bodies.push(Body::Vote(event::Vote { refused: Some(refusal.why()), ..as_written }));
            }
            _ => {}
        }
        Cast { poll, bodies, refusal }
    }

    /// How it stands, in words: `deploy: 1 for, 0 against, 2 to come`.
    pub fn stands(&self) -> String {
        if let Some(verdict) = &self.verdict {
            return format!("{}: {}", self.topic, outcome(verdict));
        }
        let Tally { proceed, abort, open, absent } = self.tally();
        let mut out = format!("{}: {proceed} for, {abort} against, {open} to come", self.topic);
        if absent > 0 {
            let _ = write!(out, ", {absent} absent");
        }
        out
    }
}

fn tally(verdict: &Decided) -> String {
    let mut out = format!("{} for, {} against", verdict.proceed, verdict.abort);
    if verdict.no_quorum {
        let _ = write!(out, ", {} did not vote", verdict.absent);
    }
    out
}

/// A verdict in words: `proceed (2 for, 1 against)`.
pub fn outcome(verdict: &Decided) -> String {
    let quorum = if verdict.no_quorum { "without a quorum: " } else { "" };
    format!("{} ({quorum}{})", verdict.result, tally(verdict))
}

/// A verdict as news for the session.
pub fn news_line(verdict: &Decided) -> String {
    let head = if verdict.no_quorum { "No quorum" } else { "Consensus" };
    format!("{head}: {} ({}: {}).", verdict.result, verdict.topic, tally(verdict))
}

/// What the session hears of an abort before it stops.
fn alarm(verdict: &Decided) -> String {
    let how = if verdict.no_quorum { "was aborted for want of a quorum" } else { "was voted down" };
    format!("CRITICAL: {} {how} ({}).", verdict.topic, tally(verdict))
}

impl View {
    /// The poll about a topic.
    pub fn poll(&self, topic: &Topic) -> Option<&Poll> {
        self.polls.iter().find(|p| p.topic == *topic)
    }

    /// The verdicts that follow from what is in the log and do not stand there yet.
    pub fn due_verdicts(&self, now_ms: Option<u64>) -> impl Iterator<Item = Decided> + '_ {
        self.polls.iter().filter_map(move |poll| poll.decided(now_ms, self.cancelled))
    }

    /// An attempt that is open has voted, or has tried to.
    pub(super) fn voted(&mut self, event: &Event, p: &event::Vote) {
        let Some((task, attempt)) = event.task.as_ref().zip(event.attempt) else { return };
        let Some(poll) = self.polls.iter_mut().find(|poll| poll.topic == p.topic) else { return };
        let (None, Some(choice)) = (&p.refused, p.decision) else {
            if poll.refused.len() < MAX_VOTERS {
                poll.refused.insert(task.clone());
            }
            return;
        };
        let is_decided = poll.verdict.is_some();
        if let Some(ballot) = poll.voters.get_mut(task).filter(|b| **b == Ballot::Open && !is_decided) {
            *ballot = Ballot::Cast(choice, attempt);
        }
    }

    /// A voter's attempt begins: the first one starts the clock.
    pub(super) fn voter_started(&mut self, task: &TaskId, mono_ms: u64) {
        for poll in self.polls.iter_mut().filter(|p| p.since_ms.is_none() && p.voters.contains_key(task)) {
            poll.since_ms = Some(mono_ms);
        }
    }

    /// A task has come to its end: what it has not said, it will not say any more.
    pub(super) fn voter_ended(&mut self, task: &TaskId) {
        for poll in &mut self.polls {
            if let Some(ballot) = poll.voters.get_mut(task).filter(|b| **b == Ballot::Open) {
                *ballot = Ballot::Absent;
            }
        }
    }

    /// A verdict is written. The first one counts.
    pub(super) fn settle_poll(&mut self, event: &Event, p: &Decided) {
        let Some(poll) = self.polls.iter_mut().find(|poll| poll.topic == p.topic && poll.verdict.is_none()) else {
            return;
        };
        poll.verdict = Some(p.clone());
        let voter = poll.voters.keys().next().cloned();
        self.news.push(News {
            seq: event.seq,
            what: Happened::Decided,
            task: None,
            label: None,
            worker: None,
            line: Some(news_line(p)),
            result: None,
            checkpoint: None,
        });
        if let Some(task) = voter.filter(|_| p.escalates) {
            self.raise(event.seq, task, p.topic.clone(), alarm(p));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::base::ids::WorkerNo;
    use crate::logic::conductor;
    use crate::logic::sched::{self, Facts};
    use crate::logic::signals::{Now, Occasion};
    use crate::logic::simulation::{done, plan, run_started, task, vote};
    use crate::logic::state::State;
    use crate::logic::view::Phase;
    use crate::model::event::{CancelRequested, Draft, Ended, Started, Verdict};
    use crate::model::plan::{Need, Plan};

    use Choice::{Abort, Proceed};

    fn id(name: &str) -> TaskId {
        TaskId::new(name).unwrap()
    }

    /// A run in which tasks vote as `cpw vote` has it, and whoever looks writes what follows.
    struct Course {
        plan: Plan,
        state: State,
        now_ms: u64,
        boot: &'static str,
        kinds: Vec<String>,
    }

    impl Course {
        fn new(names: &[&str], votes: Vec<Vote>, change: impl FnOnce(&mut Plan)) -> Course {
            let mut plan = plan(names.iter().map(|name| task(name)).collect());
            plan.votes = votes;
            plan.limits.max_workers = 64;
            change(&mut plan);
            let mut out = Course { state: State::new(&plan), plan, now_ms: 5000, boot: "boot", kinds: Vec::new() };
            out.emit(Draft::run(run_started(&out.plan, "boot")));
            out
        }

        fn emit(&mut self, draft: Draft) {
            self.kinds.push(match (&draft.body, &draft.task) {
                (Body::Verdict(p), _) => news_line(p),
                (body, Some(task)) => format!("{} {task}", body.name()),
                (body, None) => body.name().to_owned(),
            });
            let seq = self.state.view.seq + 1;
            self.state.apply(&Event::new(draft, seq, String::new()));
            let mut again = State::new(&self.plan).view;
            again.polls.clone_from(&self.state.view.polls);
            assert_eq!(
                again.polls,
                serde_json::from_str::<Vec<Poll>>(&serde_json::to_string(&again.polls).unwrap()).unwrap()
            );
        }

        fn settle(&mut self) {
            loop {
                let facts = Facts { now_ms: self.now_ms, boot_id: self.boot, dead: &[] };
                let next = sched::consequences(&self.state, &self.plan, facts);
                if next.is_empty() {
                    return;
                }
                for draft in next {
                    self.emit(draft);
                }
            }
        }

        fn attempt(&self, name: &str) -> u32 {
            self.state.tasks[self.state.index_of(&id(name)).unwrap()].attempts
        }

        fn start(&mut self, name: &str) {
            let n = self.attempt(name) + 1;
            let started = Started { mono_ms: self.now_ms, ..Started::default() };
            self.emit(Draft::attempt(Some(WorkerNo(n)), &id(name), n, Body::Started(started)));
        }

        /// What `cpw vote` writes; why it does not count.
        fn vote(&mut self, name: &str, topic: &str, decision: Option<Choice>) -> Option<Refusal> {
            let (n, topic) = (self.attempt(name), Topic::new(topic).unwrap());
            let poll = self.state.view.poll(&topic).unwrap();
            let said = event::Vote { topic, decision, reason: None, refused: None };
            let cast = poll.cast(&id(name), n, said, Some(self.now_ms), self.state.view.cancelled);
            for body in cast.bodies {
                let draft = match body {
                    Body::Verdict(_) => Draft::run(body),
                    body => Draft::attempt(Some(WorkerNo(n)), &id(name), n, body),
                };
                self.emit(draft);
            }
            let now = self.state.view.polls.iter().find(|p| p.topic == cast.poll.topic).unwrap();
            assert_eq!((&now.voters, &now.verdict), (&cast.poll.voters, &cast.poll.verdict), "the fold says the same");
            cast.refusal
        }

        fn end(&mut self, name: &str, body: Body) {
            let n = self.attempt(name);
            self.emit(Draft::attempt(Some(WorkerNo(n)), &id(name), n, body));
            self.settle();
        }

        fn phase(&self, name: &str) -> Phase {
            self.state.tasks[self.state.index_of(&id(name)).unwrap()].phase
        }

        fn verdicts(&self) -> Vec<&str> {
            let verdict = |k: &&String| k.starts_with("Consensus") || k.starts_with("No quorum");
            self.kinds.iter().filter(verdict).map(String::as_str).collect()
        }
    }

    fn failed(will_retry: bool) -> Body {
        Body::Failed(Ended { reason: "exit code 1".into(), will_retry, retry_at: Some(0), ..Ended::default() })
    }

    /// What must come of votes that are all there.
    fn end_of(p: u32, a: u32, quorum: u32, rule: Rule, default: Choice) -> (Choice, bool) {
        if rule == Rule::Unanimous && a > 0 {
            return (Abort, false);
        }
        let proceeds = rule == Rule::Unanimous || p > a;
        if p + a < quorum { (default, true) } else { (if proceeds { Proceed } else { Abort }, false) }
    }

    #[test]
    fn a_poll_is_decided_exactly_when_nothing_to_come_could_change_it() {
        let mut decided = 0;
        for (n, rule, default) in (1..=6).flat_map(|n| {
            let rules = [Rule::Majority, Rule::Unanimous];
            rules.into_iter().flat_map(move |rule| [Proceed, Abort].map(|default| (n, rule, default)))
        }) {
            for quorum in 1..=n {
                for (p, a, r) in
                    (0..=n).flat_map(|p| (0..=n - p).flat_map(move |a| (0..=n - p - a).map(move |r| (p, a, r))))
                {
                    let names: Vec<String> = (0..n).map(|i| format!("t{i}")).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    let spec = vote("t", &names, |v| (v.rule, v.quorum, v.default) = (rule, quorum, default));
                    let mut poll = Poll::new(&spec);
                    for (i, ballot) in (0..).zip(poll.voters.values_mut()) {
                        *ballot = match i {
                            i if i < p => Ballot::Cast(Proceed, 1),
                            i if i < p + a => Ballot::Cast(Abort, 1),
                            i if i < p + a + r => Ballot::Open,
                            _ => Ballot::Absent,
                        };
                    }
                    let to_come = (0..=r).flat_map(|x| (0..=r - x).map(move |y| (x, y)));
                    let ends: BTreeSet<_> = to_come.map(|(x, y)| end_of(p + x, a + y, quorum, rule, default)).collect();
                    let said = poll.decided(None, false).map(|v| (v.result, v.no_quorum));
                    let certain = (ends.len() == 1).then(|| ends.first().copied()).flatten();
                    // Without a quorum it is an abort in any case, be it that somebody is against it as well.
                    let hopeless = rule == Rule::Unanimous && a == 0 && p + r < quorum && default == Abort;
                    let certain = certain.or(hopeless.then_some((Abort, true)));
                    assert_eq!(said, certain, "{rule:?} of {n}, quorum {quorum}: {p} for, {a} against, {r} to come");
                    decided += u32::from(said.is_some());
                    // At its deadline nobody can vote any more.
                    (poll.since_ms, poll.deadline) = (Some(10), Some(Span::from_ms(5)));
                    let at = |now| poll.decided(Some(now), false).map(|v| (v.result, v.no_quorum));
                    assert_eq!((at(14), at(15)), (certain, Some(end_of(p, a, quorum, rule, default))));
                }
            }
        }
        assert!(decided > 300, "{decided}");
    }

    #[test]
    fn v07_a_task_has_one_vote_whatever_its_attempts() {
        let mut c = Course::new(&["a", "b", "c"], vec![vote("t", &["a", "b", "c"], |_| ())], |_| ());
        c.start("a");
        assert_eq!(c.vote("a", "t", Some(Proceed)), None);
        let again = c.vote("a", "t", Some(Proceed)).unwrap();
        assert_eq!((again.is_harmless(), again.why().as_str()), (false, "the task has voted proceed, in attempt 1"));
        c.end("a", failed(true));
        c.start("a");
        let repeated = c.vote("a", "t", Some(Proceed)).unwrap();
        assert!(repeated.is_harmless() && !c.vote("a", "t", Some(Abort)).unwrap().is_harmless());
        let tally = c.state.view.polls[0].tally();
        assert_eq!((tally.proceed, tally.abort, tally.open), (1, 0, 2));
        assert_eq!(c.kinds.iter().filter(|k| *k == "vote a").count(), 2, "refusals are written once: {:?}", c.kinds);
        // Its vote stays when it fails for good.
        c.end("a", failed(false));
        c.start("b");
        c.vote("b", "t", Some(Proceed));
        assert_eq!(c.verdicts(), ["Consensus: proceed (t: 2 for, 0 against)."]);
    }

    #[test]
    fn v08_votes_that_do_not_count_change_nothing_and_are_written_once_each() {
        let mut c = Course::new(&["a", "b", "c", "s"], vec![vote("t", &["a", "b", "c"], |_| ())], |_| ());
        for name in ["a", "b", "c", "s"] {
            c.start(name);
        }
        assert_eq!(c.vote("s", "t", Some(Abort)), Some(Refusal::Stranger));
        assert_eq!(c.vote("s", "t", Some(Abort)), Some(Refusal::Stranger));
        assert_eq!(c.vote("b", "t", None), Some(Refusal::UnknownChoice));
        c.vote("a", "t", Some(Proceed));
        assert_eq!(c.vote("b", "t", Some(Proceed)), None, "who was mistaken can still vote");
        let late = c.vote("c", "t", Some(Abort)).unwrap();
        assert_eq!((late.is_harmless(), late.why().as_str()), (true, "it is decided: proceed (2 for, 0 against)"));
        assert_eq!(c.verdicts(), ["Consensus: proceed (t: 2 for, 0 against)."]);
        let votes: Vec<&String> = c.kinds.iter().filter(|k| k.starts_with("vote")).collect();
        assert_eq!(votes, ["vote s", "vote b", "vote a", "vote b", "vote c"]);
        // A second verdict, and a vote of an attempt that is over, as a damaged writer might leave them.
        let other = Decided { result: Abort, ..c.state.view.polls[0].verdict.clone().unwrap() };
        c.emit(Draft::run(Body::Verdict(other)));
        let said = event::Vote { topic: Topic::new("t").unwrap(), decision: Some(Abort), reason: None, refused: None };
        c.emit(Draft::attempt(None, &id("c"), 7, Body::Vote(said)));
        assert_eq!(c.state.view.polls[0].stands(), "t: proceed (2 for, 0 against)");
    }

    #[test]
    fn v09_dead_voters_are_absent_and_a_quorum_out_of_reach_closes_at_once() {
        let spec = || vote("t", &["a", "b", "c"], |v| v.default = Proceed);
        let mut c = Course::new(&["a", "b", "c"], vec![spec()], |_| ());
        c.start("a");
        c.vote("a", "t", Some(Abort));
        c.start("b");
        c.end("b", Body::Lost(Ended { reason: "the worker died".into(), ..Ended::default() }));
        assert_eq!(c.verdicts(), Vec::<&str>::new());
        assert_eq!(c.state.view.polls[0].stands(), "t: 0 for, 1 against, 1 to come, 1 absent");
        c.start("c");
        c.end("c", done("x"));
        assert_eq!(c.verdicts(), ["No quorum: proceed (t: 0 for, 1 against, 2 did not vote)."]);
        // A voter that can never start is absent as well.
        let mut c = Course::new(&["a", "b", "c", "d"], vec![spec()], |p| {
            p.tasks[1].needs = vec![id("d").into()];
            p.tasks[2].needs = vec![id("d").into()];
        });
        c.start("d");
        c.end("d", failed(false));
        assert_eq!(c.verdicts().len(), 1, "{:?}", c.kinds);
    }

    #[test]
    fn v09_it_closes_at_its_deadline_which_counts_from_the_first_voter() {
        let spec = vote("t", &["a", "b", "c"], |v| v.deadline = Some(Span::from_secs(10)));
        let mut c = Course::new(&["a", "b", "c"], vec![spec], |_| ());
        c.now_ms = 60_000;
        c.settle();
        assert_eq!(sched::next_moment(&c.state, &c.plan, c.now_ms), None, "nobody has begun");
        c.start("a");
        c.now_ms += 4000;
        c.start("b");
        c.vote("a", "t", Some(Proceed));
        assert_eq!(sched::next_moment(&c.state, &c.plan, c.now_ms), Some(70_000));
        c.now_ms = 69_999;
        c.settle();
        assert_eq!(c.verdicts().len(), 0);
        c.now_ms = 70_000;
        // The vote comes when the time is over and nobody has looked: it is late.
        assert!(matches!(c.vote("b", "t", Some(Proceed)), Some(Refusal::Late(_))));
        assert_eq!(c.verdicts(), ["No quorum: abort (t: 1 for, 0 against, 2 did not vote)."]);
        assert_eq!(sched::next_moment(&c.state, &c.plan, c.now_ms), None);
        c.settle();
        assert_eq!(c.verdicts().len(), 1);
    }

    #[test]
    fn a_clock_of_another_boot_closes_nothing_but_the_end_of_all_voters_does() {
        let spec = vote("t", &["a", "b"], |v| v.deadline = Some(Span::from_secs(10)));
        let mut c = Course::new(&["a", "b"], vec![spec], |_| ());
        c.start("a");
        (c.boot, c.now_ms) = ("later", 900_000);
        c.settle();
        assert_eq!(c.verdicts(), ["No quorum: abort (t: 0 for, 0 against, 2 did not vote)."]);
        let end = c.state.view.ended.clone().unwrap();
        assert_eq!(end.reason, "interrupted: the machine was restarted");
        let lost = c.kinds.iter().position(|k| k == "lost a").unwrap();
        assert!(lost < c.kinds.iter().position(|k| k.starts_with("No quorum")).unwrap(), "{:?}", c.kinds);
    }

    #[test]
    fn v11_an_even_split_is_an_abort_and_one_voice_breaks_unanimity() {
        let mut c = Course::new(&["a", "b"], vec![vote("t", &["a", "b"], |_| ())], |_| ());
        for name in ["a", "b"] {
            c.start(name);
        }
        c.vote("a", "t", Some(Proceed));
        c.vote("b", "t", Some(Abort));
        assert_eq!(c.verdicts(), ["Consensus: abort (t: 1 for, 1 against)."]);
        let spec = vote("t", &["a", "b", "c"], |v| (v.rule, v.quorum) = (Rule::Unanimous, 2));
        let mut c = Course::new(&["a", "b", "c"], vec![spec], |_| ());
        for name in ["a", "b", "c"] {
            c.start(name);
        }
        c.vote("a", "t", Some(Proceed));
        c.vote("b", "t", Some(Proceed));
        assert_eq!(c.verdicts().len(), 0, "one of them may still be against it");
        c.vote("c", "t", Some(Abort));
        assert_eq!(c.verdicts(), ["Consensus: abort (t: 2 for, 1 against)."]);
    }

    fn needing(topic: &str, choice: Choice) -> Vec<Need> {
        vec![Need::Verdict(Topic::new(topic).unwrap(), choice)]
    }

    #[test]
    fn who_needs_an_outcome_starts_with_it_and_is_skipped_with_the_other() {
        for on_abort in [OnAbort::Signal, OnAbort::None] {
            let spec = vote("t", &["a"], |v| v.on_abort = on_abort);
            let mut c = Course::new(&["a", "go", "no", "behind"], vec![spec], |p| {
                p.tasks[1].needs = needing("t", Proceed);
                p.tasks[2].needs = needing("t", Abort);
                p.tasks[3].needs = vec![id("go").into()];
            });
            c.start("a");
            c.settle();
            assert_eq!((c.phase("go"), c.phase("no")), (Phase::Waiting, Phase::Waiting));
            c.vote("a", "t", Some(Abort));
            assert_eq!((c.phase("go"), c.phase("no")), (Phase::Waiting, Phase::Ready));
            c.end("a", done("x"));
            assert_eq!((c.phase("go"), c.phase("behind")), (Phase::Skipped, Phase::Skipped));
            assert_eq!(c.state.tasks[1].line.as_deref(), Some("the vote t said abort"));
            assert_eq!(c.state.tasks[3].line.as_deref(), Some("go"));
            c.start("no");
            c.end("no", done("x"));
            let end = c.state.view.ended.clone().unwrap();
            let want = match on_abort {
                OnAbort::Signal => (Verdict::Failed, "the vote t said abort"),
                OnAbort::None => (Verdict::Ok, "all tasks that were to run are done, 2 skipped after a vote"),
            };
            assert_eq!((end.status, end.reason.as_str()), want);
        }
    }

    const NOW: Now<'_> = Now { ms: 1, boot_id: "boot" };

    #[test]
    fn the_session_hears_what_came_out_and_of_an_abort_before_it_stops() {
        let said = |state: &State, occasion| conductor::news(&state.view, "runs/r", 4000, occasion, NOW, true).text;
        let mut c = Course::new(&["a", "b"], vec![vote("deploy", &["a"], |_| ())], |_| ());
        c.start("b");
        c.start("a");
        c.vote("a", "deploy", Some(Proceed));
        assert!(!c.state.view.needs_the_session(NOW));
        assert!(said(&c.state, Occasion::Step).starts_with("Consensus: proceed (deploy: 1 for, 0 against).\n"));
        let mut c = Course::new(&["a", "b"], vec![vote("deploy", &["a"], |_| ())], |_| ());
        c.start("b");
        c.start("a");
        c.vote("a", "deploy", Some(Abort));
        assert!(c.state.view.needs_the_session(NOW));
        assert!(said(&c.state, Occasion::Step).starts_with("Consensus: abort (deploy: 0 for, 1 against).\n"));
        let at_stop = said(&c.state, Occasion::Stop);
        assert!(at_stop.starts_with("CRITICAL: deploy was voted down (0 for, 1 against).\n"), "{at_stop}");
        assert!(!at_stop.contains("Consensus"), "it is told once: {at_stop}");
        // What a task takes back is its own.
        c.emit(Draft::attempt(
            Some(WorkerNo(1)),
            &id("a"),
            1,
            Body::SignalReleased(event::SignalReleased { id: None, reason: "x".into() }),
        ));
        assert!(c.state.view.needs_the_session(NOW));
    }

    #[test]
    fn what_its_user_has_cancelled_is_no_alarm() {
        let mut c = Course::new(&["a"], vec![vote("t", &["a"], |_| ())], |_| ());
        c.emit(Draft::run(Body::CancelRequested(CancelRequested { by: "user".into() })));
        c.settle();
        assert_eq!(c.verdicts().len(), 1);
        assert!(!c.state.view.needs_the_session(NOW));
        assert_eq!(c.state.view.ended.clone().unwrap().status, Verdict::Cancelled);
    }

    #[test]
    fn who_has_voted_and_who_has_a_deadline_is_not_waited_for() {
        let mut poll = Poll::new(&vote("t", &["a", "b", "c"], |v| v.deadline = Some(Span::from_secs(1))));
        poll.voters.insert(id("b"), Ballot::Cast(Proceed, 1));
        assert_eq!(poll.awaited().map(TaskId::as_str).collect::<Vec<_>>(), ["a", "c"]);
        poll.since_ms = Some(5);
        assert_eq!(poll.awaited().count(), 0);
    }

    proptest! {
        /// Whatever is voted, started, ended and repeated in whatever order, by however slow a clock: one verdict, before the
        /// end of the run, and of the first votes of the electorate alone.
        #[test]
        fn there_is_one_verdict_and_it_is_that_of_the_votes(
            n in 1_usize..6, quorum in 1_u32..6, unanimous in any::<bool>(), default in any::<bool>(), limit in 0_u64..4,
            steps in prop::collection::vec((0_usize..7, 0_u8..8), 0..60),
        ) {
            let names: Vec<String> = (0..7).map(|i| format!("t{i}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let quorum = quorum.min(u32::try_from(n).unwrap());
            let rule = if unanimous { Rule::Unanimous } else { Rule::Majority };
            let default = if default { Proceed } else { Abort };
            let deadline = (limit > 0).then(|| Span::from_ms(limit * 100));
            let spec = vote("t", &names[..n], |v| (v.rule, v.quorum, v.default, v.deadline) = (rule, quorum, default, deadline));
            let mut c = Course::new(&names, vec![spec], |_| ());
            // What the test saw itself.
            let (mut first, mut clock) = (std::collections::BTreeMap::new(), None);
            for (i, step) in steps {
                c.now_ms += 20;
                let name = names[i];
                let open = c.phase(name) == Phase::Running;
                match step {
                    0 | 1 if matches!(c.phase(name), Phase::Ready | Phase::Retrying) => {
                        if i < n {
                            clock = clock.or(Some(c.now_ms));
                        }
                        c.start(name);
                    }
                    2..=4 if open => {
                        let choice = if step == 2 { Abort } else { Proceed };
                        let over = deadline.zip(clock).is_some_and(|(d, at)| c.now_ms >= at + d.as_ms());
                        let decided = !c.verdicts().is_empty() || over;
                        let counted = c.vote(name, "t", Some(choice)).is_none();
                        prop_assert_eq!(counted, i < n && !decided && !first.contains_key(&i));
                        if counted {
                            first.insert(i, choice);
                        }
                    }
                    5 if open => c.end(name, failed(true)),
                    6 if open => c.end(name, done("x")),
                    _ => c.settle(),
                }
            }
            for name in &names {
                if matches!(c.phase(name), Phase::Ready | Phase::Retrying) {
                    c.start(name);
                }
                if c.phase(name) == Phase::Running {
                    c.end(name, done("x"));
                }
            }
            prop_assert_eq!(c.verdicts().len(), 1, "{:?}", c.kinds);
            prop_assert_eq!(c.kinds.last().map(String::as_str), Some("run_ended"));
            let verdict = c.state.view.polls[0].verdict.clone().unwrap();
            let of = |choice| u32::try_from(first.values().filter(|c| **c == choice).count()).unwrap();
            let (p, a) = (of(Proceed), of(Abort));
            prop_assert_eq!((verdict.proceed, verdict.abort), (p, a));
            prop_assert_eq!(verdict.absent, u32::try_from(n).unwrap() - p - a);
            prop_assert_eq!((verdict.result, verdict.no_quorum), end_of(p, a, quorum, rule, default));
        }
    }
}
