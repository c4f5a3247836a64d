#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "seconds with few digits are read best as such"
)]

use super::*;
use crate::base::ids::RunId;
use crate::logic::simulation::{claude, done, plan, run_started, task, vote};
use crate::model::event::{
    Acquire, Checkpoint, Decided, Decision, Delivered, Done, Draft, Holder, Process, Queued, Reason, Release, Started,
    Verdict, Vote,
};
use crate::model::plan::Task;

const SECOND: Micros = 1_000_000;

/// What holds for the timeline of any log, and of any beginning of it.
pub(crate) fn sound(plan: &Plan, events: &[Event]) {
    for cut in [events.len(), events.len() / 2, events.len() / 3].map(|n| n.max(1)) {
        let mut recorder = Recorder::new(plan);
        events[..cut].iter().for_each(|event| recorder.apply(event));
        let later = time(&events[cut - 1].ts, Micros::MIN) + 7;
        let timeline = recorder.finish(Some(later));
        let Timeline { run, path, attempts, .. } = &timeline;
        assert!(run.to >= run.from);
        let mut at = run.from;
        for segment in path {
            assert_eq!(segment.at.from, at, "a gap: {path:?}");
            assert!(segment.at.length() > 0, "no length: {segment:?}");
            at = segment.at.to;
            if let What::Work(a) | What::Lease(a) = segment.what {
                let ran = attempts[a].ran;
                assert!(ran.from <= segment.at.from && segment.at.to <= ran.to, "{segment:?} is not in {ran:?}");
            }
        }
        assert_eq!(at, run.to, "it does not end with the run: {path:?}");
        assert_eq!(path.iter().map(|s| s.at.length()).sum::<Micros>(), run.length());
        for attempt in attempts {
            assert!(attempt.ready <= attempt.ran.from && attempt.ran.from <= attempt.ran.to, "{attempt:?}");
            assert!(attempt.ran.to <= run.to && attempt.ready >= run.from, "{attempt:?}");
            assert!(
                attempt.closed.is_some() || timeline.ended.is_none(),
                "{attempt:?} is open in a run that has ended"
            );
        }
        let (most, steps) = (plan.limits.max_workers as usize, timeline.running());
        assert!(steps.iter().all(|(_, n)| *n <= most), "{steps:?}");
        if let Some(ideal) = timeline.unlimited {
            let longest = attempts.iter().map(|a| a.ran.length()).max().unwrap_or(0);
            assert!((longest..=run.length()).contains(&ideal), "{ideal} for {}", run.length());
        }
    }
}

/// A log that is written by hand, in seconds from its beginning.
struct Page {
    plan: Plan,
    events: Vec<Event>,
    leases: Vec<Event>,
}

impl Page {
    fn new(max_workers: u32, tasks: Vec<Task>) -> Page {
        Page::of(Plan { limits: crate::model::plan::Limits { max_workers, ..plan(Vec::new()).limits }, ..plan(tasks) })
    }

    fn of(plan: Plan) -> Page {
        let mut page = Page { events: Vec::new(), leases: Vec::new(), plan };
        let begun = run_started(&page.plan, "boot");
        page.say(0.0, Draft::run(begun));
        page
    }

    fn stamp(at: f64) -> String {
        let base = DateTime::parse_from_rfc3339("2026-01-02T03:00:00Z").unwrap();
        let at = base + chrono::TimeDelta::milliseconds((at * 1000.0).round() as i64);
        at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
    }

    fn say(&mut self, at: f64, draft: Draft) -> u64 {
        let seq = self.events.len() as u64 + 1;
        self.events.push(Event::new(draft, seq, Page::stamp(at)));
        seq
    }

    fn word(&mut self, at: f64, id: &str, attempt: u32, body: Body) {
        self.say(at, Draft::attempt(Some(WorkerNo(1)), &TaskId::new(id).unwrap(), attempt, body));
    }

    fn start(&mut self, at: f64, id: &str, attempt: u32) {
        let mono_ms = 1000 + (at * 1000.0) as u64;
        self.word(at, id, attempt, Body::Started(Started { mono_ms, ..Started::default() }));
    }

    fn done(&mut self, at: f64, id: &str) {
        self.word(at, id, 1, done("good"));
    }

    /// A failed attempt, after which another one may come at `again`.
    fn failed(&mut self, at: f64, id: &str, attempt: u32, again: Option<f64>) {
        let mono = |at: f64| 1000 + (at * 1000.0) as u64;
        let ended = Ended {
            exit: Some(1),
            reason: "so".into(),
            will_retry: again.is_some(),
            retry_at: again.map(mono),
            mono_ms: Some(mono(at)),
            ..Ended::default()
        };
        self.word(at, id, attempt, Body::Failed(ended));
    }

    fn end(&mut self, at: f64) {
        let body =
            RunEnded { status: Verdict::Ok, reason: "all done".into(), done: 1, failed: 0, skipped: 0, cancelled: 0 };
        self.say(at, Draft::run(Body::RunEnded(body)));
    }

    fn lease(&mut self, at: f64, body: Body) -> u64 {
        let seq = self.leases.len() as u64 + 1;
        self.leases.push(Event::new(Draft::run(body), seq, Page::stamp(at)));
        seq
    }

    fn told(&self, until: Option<f64>) -> Timeline {
        sound(&self.plan, &self.events);
        let mut recorder = Recorder::new(&self.plan);
        self.events.iter().for_each(|event| recorder.apply(event));
        self.leases.iter().for_each(|event| recorder.lease(event));
        recorder.finish(until.map(|at| time(&Page::stamp(at), Micros::MIN)))
    }

    /// The path in seconds, with what it says.
    fn path(&self, until: Option<f64>) -> Vec<(f64, String)> {
        let timeline = self.told(until);
        let name = |i: usize| self.plan.tasks[i].id.to_string();
        let of = |a: usize| name(timeline.attempts[a].task);
        let say = |what: What| match what {
            What::Work(a) if timeline.attempts[a].number > 1 => format!("{}.{}", of(a), timeline.attempts[a].number),
            What::Work(a) => of(a),
            What::Lease(a) => format!("{} leases", of(a)),
            What::Wait(i, Why::Slot(a)) => format!("{} wants the worker of {}", name(i), of(a)),
            What::Wait(i, Why::Resource(a)) => format!("{} wants what {} holds", name(i), of(a)),
            What::Wait(i, why) => format!("{} {why:?}", name(i)),
            What::Vote(v) => format!("vote {}", self.plan.votes[v].topic),
            What::Nothing => "nothing".into(),
        };
        let seconds = |micros: Micros| (micros as f64) / (SECOND as f64);
        timeline.path.iter().map(|s| (seconds(s.at.length()), say(s.what))).collect()
    }

    fn unlimited(&self) -> Option<f64> {
        self.told(None).unlimited.map(|micros| (micros as f64) / (SECOND as f64))
    }
}

fn needs(id: &str, needs: &[&str]) -> Task {
    Task { needs: needs.iter().map(|need| Need::try_from((*need).to_owned()).unwrap()).collect(), ..task(id) }
}

fn steps(all: &[(f64, &str)]) -> Vec<(f64, String)> {
    all.iter().map(|(s, what)| (*s, (*what).to_owned())).collect()
}

#[test]
fn a_slot_that_was_free_last_bounds_what_was_ready_before() {
    let mut page = Page::new(1, vec![task("build"), task("lint"), needs("test", &["build"])]);
    page.start(0.5, "build", 1);
    page.done(40.5, "build");
    page.start(40.5, "lint", 1);
    page.done(52.5, "lint");
    page.start(52.5, "test", 1);
    page.done(60.5, "test");
    page.end(61.0);
    let want = [
        (0.5, "build Worker"),
        (40.0, "build"),
        (12.0, "test wants the worker of lint"),
        (8.0, "test"),
        (0.5, "nothing"),
    ];
    assert_eq!(page.path(None), steps(&want));
    // build 0.5 to 40.5, test 8 s behind it, and half a second in the end.
    assert_eq!(page.unlimited(), Some(49.0));
}

#[test]
fn the_need_that_was_met_last_bounds() {
    let mut page = Page::new(4, vec![task("a"), task("b"), needs("c", &["a", "b"])]);
    page.start(0.0, "a", 1);
    page.start(0.0, "b", 1);
    page.done(3.0, "b");
    page.done(7.0, "a");
    page.start(7.25, "c", 1);
    page.done(9.0, "c");
    page.end(9.0);
    assert_eq!(page.path(None), steps(&[(7.0, "a"), (0.25, "c Worker"), (1.75, "c")]));
    assert_eq!(page.unlimited(), None, "nothing waited for a worker");
}

#[test]
fn a_checkpoint_bounds_up_to_where_it_came() {
    let mut page = Page::new(4, vec![task("a"), needs("b", &["a@half"])]);
    page.start(1.0, "a", 1);
    let name = CheckpointName::new("half").unwrap();
    for at in [4.0, 5.0] {
        let body = Checkpoint { name: name.clone(), data: None, inject: false };
        page.word(at, "a", 1, Body::Checkpoint(body));
    }
    page.start(6.0, "b", 1);
    page.done(7.0, "a");
    page.done(10.0, "b");
    page.end(10.0);
    assert_eq!(page.path(None), steps(&[(1.0, "a Worker"), (3.0, "a"), (2.0, "b Worker"), (4.0, "b")]));
}

#[test]
fn a_further_attempt_waits_for_its_pause() {
    let mut page = Page::new(1, vec![Task { retries: 1, ..task("a") }, task("b")]);
    page.start(0.0, "a", 1);
    page.failed(2.0, "a", 1, Some(5.0));
    page.start(2.0, "b", 1);
    page.done(6.0, "b");
    page.start(6.0, "a", 2);
    // The word of the one that was given up changes nothing.
    page.word(6.5, "a", 1, done("late"));
    page.word(9.0, "a", 2, done("good"));
    page.end(9.0);
    let want = [(2.0, "a"), (3.0, "a Pause"), (1.0, "a wants the worker of b"), (3.0, "a.2")];
    assert_eq!(page.path(None), steps(&want));
    let timeline = page.told(None);
    assert!(timeline.attempts[0].again && timeline.attempts[0].outcome == Phase::Failed);
    assert_eq!(page.unlimited(), Some(8.0));
}

#[test]
fn what_is_held_bounds_who_wants_it() {
    let holds = |id: &str, what: &str| Task { resources: vec![what.into()], ..task(id) };
    let mut page = Page::new(4, vec![holds("a", "file:src"), holds("b", "file:src/x.rs"), task("c")]);
    page.start(0.0, "a", 1);
    page.start(0.0, "c", 1);
    page.done(4.0, "a");
    page.done(4.5, "c");
    page.start(5.0, "b", 1);
    page.done(6.0, "b");
    page.end(6.0);
    assert_eq!(page.path(None), steps(&[(5.0, "b wants what a holds"), (1.0, "b")]));
}

#[test]
fn a_lease_of_others_is_no_work() {
    let mut page = Page::new(4, vec![task("a")]);
    page.start(0.0, "a", 1);
    page.done(10.0, "a");
    page.end(10.0);
    let me = Process { pid: 1, start_time: 1, boot_id: "boot".into() };
    let holder = Holder {
        process: me.clone(),
        run: Some(page.plan.run.clone()),
        task: Some(TaskId::new("a").unwrap()),
        attempt: Some(1),
        worker: None,
        session: None,
        tool_use_id: None,
        label: None,
    };
    let other = Holder { run: Some(RunId::new("another").unwrap()), ..holder.clone() };
    let db = vec![Resource::of_normal("db")];
    let get = |at: u64, holder: &Holder, request| {
        let holder = holder.clone();
        Body::Acquire(Acquire { token: at, resources: db.clone(), holder, request, mono_ms: 0, expires: None })
    };
    page.lease(0.5, get(1, &other, None));
    let queued = Queued { resources: db.clone(), holder: holder.clone(), holding: Vec::new(), mono_ms: 0, until: None };
    let request = page.lease(1.0, Body::Queued(queued));
    page.lease(4.0, Body::Release(Release { token: 1, reason: "given back".into(), refused: false }));
    page.lease(4.0, get(4, &holder, Some(request)));
    // Said only when the next one came; it was over with the attempt.
    page.lease(15.0, Body::Expired(Release { token: 4, reason: "who held it has ended".into(), refused: false }));
    assert_eq!(page.path(None), steps(&[(1.0, "a"), (3.0, "a leases"), (6.0, "a")]));
    let leases = page.told(None).leases;
    let told: Vec<(bool, Micros)> = leases.iter().map(|l| (l.held, l.at.length() / SECOND)).collect();
    assert_eq!(told, [(false, 3), (true, 6)], "what others hold is not the run's");
}

#[test]
fn a_vote_bounds_from_the_last_who_voted() {
    let mut plan = plan(vec![task("a"), task("b"), needs("c", &["ship?proceed"])]);
    plan.votes = vec![vote("ship", &["a", "b"], |_| {})];
    let mut page = Page::of(plan);
    page.start(0.0, "a", 1);
    page.start(0.0, "b", 1);
    let topic = page.plan.votes[0].topic.clone();
    for (at, id) in [(2.0, "a"), (3.0, "b")] {
        let cast = Vote { topic: topic.clone(), decision: Some(Choice::Proceed), reason: None, refused: None };
        page.word(at, id, 1, Body::Vote(cast));
    }
    let decided =
        Decided { topic, result: Choice::Proceed, proceed: 2, abort: 0, absent: 0, no_quorum: false, escalates: false };
    page.say(4.0, Draft::run(Body::Verdict(decided)));
    page.start(4.0, "c", 1);
    page.done(5.0, "a");
    page.done(5.5, "b");
    page.done(8.0, "c");
    page.end(8.0);
    assert_eq!(page.path(None), steps(&[(3.0, "b"), (1.0, "vote ship"), (4.0, "c")]));
}

#[test]
fn want_of_quota_bounds_clients() {
    let asks = |id: &str| Task { action: claude("p"), retries: 1, ..task(id) };
    let mut page = Page::new(2, vec![asks("a"), needs("b", &["a"])]);
    page.start(0.0, "a", 1);
    let ended = Ended {
        reason: "no quota".into(),
        will_retry: true,
        retry_at: Some(31_000),
        quota_until: Some(31_000),
        ..Ended::default()
    };
    page.word(1.0, "a", 1, Body::Failed(ended));
    page.start(30.0, "a", 2);
    page.word(32.0, "a", 2, done("good"));
    page.start(32.0, "b", 1);
    page.done(33.0, "b");
    page.end(33.0);
    assert_eq!(page.path(None), steps(&[(1.0, "a"), (29.0, "a Quota"), (2.0, "a.2"), (1.0, "b")]));
}

#[test]
fn a_run_that_goes_on_is_told_up_to_now() {
    let mut page = Page::new(2, vec![task("a"), task("b"), needs("c", &["b"])]);
    assert_eq!(page.path(Some(3.0)), steps(&[(3.0, "nothing")]));
    page.start(1.0, "a", 1);
    page.start(2.0, "b", 1);
    page.done(4.0, "b");
    assert_eq!(page.path(Some(10.0)), steps(&[(1.0, "a Worker"), (9.0, "a")]));
    let timeline = page.told(Some(10.0));
    assert_eq!((timeline.attempts[0].outcome, timeline.attempts[0].ran.length()), (Phase::Running, 9 * SECOND));
    assert_eq!(timeline.running().last(), Some(&(timeline.run.to - 6 * SECOND, 1)));
    // As of its last event, where nobody says what time it is.
    assert_eq!(page.told(None).run.length(), 4 * SECOND);
    page.failed(11.0, "a", 1, Some(20.0));
    assert_eq!(page.path(Some(15.0)).last(), Some(&(4.0, "a Pause".to_owned())));
}

#[test]
fn what_was_taken_over_or_begun_by_hand_has_no_past_here() {
    let mut page = Page::new(2, vec![task("old"), needs("new", &["old"]), needs("forced", &["new"])]);
    let from = Some(RunId::new("before").unwrap());
    let old = TaskId::new("old").unwrap();
    page.say(0.0, Draft::attempt(None, &old, 1, Body::Started(Started::default())));
    page.say(0.0, Draft::attempt(None, &old, 1, Body::Done(Done { from, duration_ms: 9000, ..Done::default() })));
    page.start(1.0, "new", 1);
    page.start(2.0, "forced", 1);
    page.done(3.0, "new");
    page.done(6.0, "forced");
    page.end(6.0);
    let timeline = page.told(None);
    assert!(timeline.attempts[0].taken && timeline.work() == 6 * SECOND);
    assert_eq!(page.path(None), steps(&[(2.0, "forced ByHand"), (4.0, "forced")]));
}

#[test]
fn a_run_in_which_nothing_ran_has_a_path() {
    let mut page = Page::new(2, vec![task("a")]);
    let a = TaskId::new("a").unwrap();
    page.say(2.0, Draft::task(&a, Body::Cancelled(Ended { reason: "cancelled".into(), ..Ended::default() })));
    page.end(2.0);
    assert_eq!(page.path(None), steps(&[(2.0, "nothing")]));
    // Nothing at all.
    let recorder = Recorder::new(&page.plan);
    assert_eq!(recorder.finish(None).run.length(), 0);
}

#[test]
fn a_clock_that_was_set_back_stands_still() {
    let mut page = Page::new(2, vec![task("a"), needs("b", &["a"])]);
    page.start(10.0, "a", 1);
    page.done(5.0, "a");
    page.start(6.0, "b", 1);
    page.done(12.0, "b");
    page.end(11.0);
    assert_eq!(page.path(None), steps(&[(10.0, "a Worker"), (2.0, "b")]));
    // Nor does a line without a time.
    page.events[2].ts = "x".into();
    assert_eq!(page.path(None).len(), 2);
}

#[test]
fn the_session_is_held_and_told() {
    let mut page = Page::new(2, vec![task("a")]);
    page.say(
        0.0,
        Draft::worker(WorkerNo(1), Body::WorkerStarted(Process { pid: 1, start_time: 1, boot_id: String::new() })),
    );
    page.start(1.0, "a", 1);
    let a = TaskId::new("a").unwrap();
    let decision = |hook: &str, held_ms| {
        let (hook, reason) = (hook.into(), "a.rs is claimed".into());
        Body::Decision(Decision { hook, held_ms, reason, tool: Some("Read".into()), ..Decision::default() })
    };
    page.say(4.0, Draft::task(&a, decision("PreToolUse", 2500)));
    page.say(5.0, Draft::run(decision("Stop", 60_000)));
    page.done(6.0, "a");
    page.end(6.0);
    page.say(6.5, Draft::worker(WorkerNo(1), Body::WorkerLost(Reason { reason: "dead".into() })));
    let delivered = Delivered {
        news: vec![5, 6],
        signals: vec![3],
        chars: 120,
        hook: "Stop".into(),
        session: "s".into(),
        prompt_id: None,
        more: false,
    };
    page.say(7.0, Draft::run(Body::Delivered(delivered)));
    let timeline = page.told(None);
    // Not before the run began.
    assert_eq!(timeline.held(), (2_500_000, 5 * SECOND));
    assert_eq!(timeline.turns[0].task, Some(0));
    assert_eq!(timeline.turns[2].what, Told::News { news: 2, signals: 1, chars: 120 });
    assert_eq!(timeline.run.length(), 6 * SECOND, "what comes behind the end is not the run");
    assert!(timeline.workers[0].lost && timeline.workers[0].lived.length() == 6_500_000);
}
