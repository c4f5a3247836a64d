//! The log: its lines, its reader, its transaction, and what follows from the events, whatever the bytes are.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use cpw::base::ids::WorkerNo;
use cpw::logic::signals::{self, Now, Occasion};
use cpw::logic::state::State;
use cpw::logic::view::{Phase, View};
use cpw::logic::{conductor, sched};
use cpw::model::event::{Body, CancelRequested, Draft, Event, SCHEMA};
use cpw::model::plan::Plan;
use cpw::store::log::{Count, Log, LogError};
use cpw::sys::dir::FileId;
use cpw::sys::medium::{Hold, Medium};

/// The plan that the logs of the corpus belong to.
fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| serde_json::from_str(include_str!("../../tests/logs/v1/plan.json")).expect("a plan"))
}

/// A file in memory that nobody else writes to.
#[derive(Clone)]
struct Memory(Rc<RefCell<Vec<u8>>>, FileId);

impl Memory {
    fn holding(bytes: &[u8]) -> Memory {
        Memory(Rc::new(RefCell::new(bytes.to_vec())), FileId { dev: 1, ino: 1, size: 0, nlink: 1, born: 0 })
    }
}

impl Medium for Memory {
    fn id(&self) -> &FileId {
        &self.1
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.0.borrow();
        let from = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
        let n = buffer.len().min(bytes.len() - from);
        buffer[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.0.borrow_mut().truncate(usize::try_from(length).expect("a length in memory"));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: Hold, _: Duration) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self) -> io::Result<()> {
        Ok(())
    }

    fn named_len(&self) -> io::Result<Option<u64>> {
        self.len().map(Some)
    }
}

/// Any bytes as a log, and every line of them that is an event as part of another one.
pub fn check(bytes: &[u8]) {
    let events: Vec<Event> = bytes.split(|b| *b == b'\n').filter_map(|line| Event::decode(line).ok()).collect();
    for event in &events {
        comes_back(event);
    }
    fold(&events);
    read(bytes);
}

/// What was read can be written, unless it has become too long, and is then the same.
fn comes_back(event: &Event) {
    let mut line = Vec::new();
    if event.encode_into(&mut line).is_ok() {
        assert_eq!(line.pop(), Some(b'\n'));
        assert!(!line.contains(&b'\n'), "an event of two lines");
        let again = Event::decode(&line).expect("what was written is read");
        assert_eq!(&again, event);
    } else {
        assert!(line.is_empty(), "a part of an event was written");
    }
}

/// The events in the order of the log, and what is made of them, as damaged as they may be in themselves.
fn fold(events: &[Event]) {
    let plan = plan();
    let mut state = State::new(plan);
    let mut view = View::new(plan);
    for (seq, event) in (1..).zip(events) {
        let event = Event { seq, ..event.clone() };
        state.apply(&event);
        view.apply(&event);
        assert_eq!(state.view, view, "the view alone is another one");
        is_consistent(&state);
    }
    let now = Now { ms: 5, boot_id: "boot" };
    for occasion in [Occasion::Step, Occasion::Stop, Occasion::Prompt, Occasion::Idle] {
        let news = conductor::news(&view, ".claude/runs/r", 1000, occasion, now, true);
        assert!(news.text.chars().count() <= 1000, "{}", news.text);
        assert!(conductor::has_news(&view, occasion, now) || news == conductor::Message::default());
    }
    for signal in &view.signals {
        signals::refusal(signal, &view, "r", now, 5);
    }
    assert!(view.signals.len() <= signals::MAX_SIGNALS);
    conductor::still_processing(&view, now);
    for merge in &view.merges {
        conductor::needs_of(&view, merge);
        conductor::merge_refusal(&view, merge, "r", now);
        conductor::merge_failed(&view, merge, "r", &conductor::Unmerged::Lost, now);
    }
    for (task, brief) in &view.tasks {
        conductor::claim_refusal(task, brief, "a", 5);
    }
    let dead: Vec<WorkerNo> = view.workers.keys().copied().map(WorkerNo).collect();
    let boot_id = view.boot_id.clone();
    for (now_ms, boot_id, dead) in [(0, &*boot_id, &[][..]), (2000, &boot_id, &dead), (u64::MAX, "another", &dead)] {
        let facts = sched::Facts { now_ms, boot_id, dead };
        let mut state = state.clone();
        sched::next_moment(&state, plan, now_ms);
        sched::workers_wanted(&state, plan, facts);
        for round in 0.. {
            assert!(round < 100, "what follows from this has no end");
            let drafts = sched::consequences(&state, plan, facts);
            if drafts.is_empty() {
                break;
            }
            for draft in drafts {
                let seq = state.view.seq + 1;
                state.apply(&Event::new(draft, seq, String::new()));
            }
            is_consistent(&state);
        }
        if let Some((i, _)) = sched::next_task(&state, plan, facts) {
            assert!(matches!(state.tasks[i].phase, Phase::Ready | Phase::Retrying), "{:?} starts", state.tasks[i]);
        }
    }
}

/// The queues hold what the tasks say.
fn is_consistent(state: &State) {
    let of = |phase| state.tasks.iter().enumerate().filter(move |(_, t)| t.phase == phase).map(|(i, _)| i);
    assert!(state.running.iter().copied().eq(of(Phase::Running)), "running");
    let queued = |set: Vec<usize>| {
        let mut set = set;
        set.sort_unstable();
        set
    };
    let ready = queued(state.ready.iter().map(|(_, i)| *i).collect());
    assert!(ready.into_iter().eq(of(Phase::Ready)), "ready");
    let retrying = queued(state.retrying.iter().map(|(_, i)| *i).collect());
    assert!(retrying.into_iter().eq(of(Phase::Retrying)), "retrying");
    let unstarted = [Phase::Waiting, Phase::Ready, Phase::Retrying].into_iter().flat_map(of).count();
    assert_eq!(state.unstarted, unstarted, "unstarted");
    assert!(state.tasks.iter().all(|t| t.open.is_some() == (t.phase == Phase::Running)), "open");
    assert!(state.cancels.iter().chain(state.doomed.keys()).all(|i| !state.tasks[*i].phase.is_final()), "final");
}

/// The reader against a plain one, in one piece and in two, and a transaction on top.
fn read(bytes: &[u8]) {
    let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
    let mut expected = Vec::new();
    let mut good = 0;
    let mut schema = 0;
    for line in bytes[..end].split_inclusive(|b| *b == b'\n') {
        let text = &line[..line.len() - 1];
        match if schema > SCHEMA { Event::decode_newer(text) } else { Event::decode(text) } {
            Ok(event) if event.seq == expected.len() as u64 + 1 => {
                if let Body::RunStarted(p) = &event.body {
                    schema = p.v;
                }
                expected.push(event);
            }
            _ => break,
        }
        good += line.len();
    }
    let is_sound = good == end;

    let mut seen = Vec::new();
    let mut log = Log::on(Memory::holding(bytes));
    match log.read_with(&mut Count::default(), |event| seen.push(event.clone())) {
        Ok(()) => assert!(is_sound, "damage was not seen"),
        Err(LogError::Damaged(damage)) => {
            let at = damage.at.expect("a place");
            assert_eq!((at.line, at.offset), (expected.len() as u64 + 1, good as u64));
            assert!(!is_sound, "{damage}");
        }
        Err(e) => panic!("{e}"),
    }
    assert_eq!(log.offset(), good as u64);
    assert!(seen == expected, "other events were shown");

    let (first, second) = bytes.split_at(bytes.first().map_or(0, |b| usize::from(*b) * 8).min(bytes.len()));
    let file = Memory::holding(first);
    let mut log = Log::on(file.clone());
    let mut count = Count::default();
    let mut pieces = Vec::new();
    let early = log.read_with(&mut count, |event| pieces.push(event.clone()));
    file.0.borrow_mut().extend_from_slice(second);
    let late = log.read_with(&mut count, |event| pieces.push(event.clone()));
    assert_eq!(late.is_ok(), is_sound);
    assert!(early.is_ok() || late.is_err(), "damage went away");
    assert!(pieces == expected, "other events were shown in two pieces");

    let file = Memory::holding(bytes);
    let mut log = Log::on(file.clone());
    let mut state = State::new(plan());
    let written = log.transact(&mut state, Duration::ZERO, true, |tx| {
        tx.emit(Draft::run(Body::CancelRequested(CancelRequested { by: "user".into() })))
    });
    let after = file.0.borrow();
    match written {
        Ok(seq) => {
            assert!(is_sound && after.starts_with(&bytes[..end]), "a log that is not sound was written to");
            let added: Vec<Event> = after[end..]
                .split_inclusive(|b| *b == b'\n')
                .map(|line| Event::decode(&line[..line.len() - 1]).expect("what was written is read"))
                .collect();
            // Before the first event nothing is said of what was cut off: the log begins with it.
            let repaired = usize::from(end < bytes.len() && !expected.is_empty());
            assert_eq!(added.len(), repaired + 1);
            assert_eq!(seq, (expected.len() + added.len()) as u64);
            if let Some(Event { body: Body::LogRepaired(p), .. }) = added[..repaired].first() {
                assert_eq!(p.bytes, (bytes.len() - end) as u64);
            }
        }
        Err(LogError::Newer(v)) => assert!(v > SCHEMA && is_sound && *after == bytes, "a newer log was changed"),
        Err(e) => assert!(!is_sound && *after == bytes, "evidence is gone: {e}"),
    }
}
