//! A run as Chrome's trace events, which Perfetto and Chrome's own viewer open. Attempts are slices on the tracks of their
//! workers, needs are arrows between them, what the session is told and held for has a process of its own; times are
//! microseconds from the beginning of the run.

use serde_json::{Map, Value, json};

use crate::base::text::one_line;
use crate::logic::timeline::{Attempt, Micros, Told, What};
use crate::logic::view::Phase;
use crate::ui::bounds;
use crate::ui::picture::Picture;

/// The processes that a viewer shows: the run as a whole, its workers, the session, leases.
const RUN: u32 = 1;
const WORKERS: u32 = 2;
const SESSION: u32 = 3;
const LEASES: u32 = 4;

/// The longest text of others that is put in, in characters.
const MAX_TEXT: usize = 300;

/// The trace, as one JSON object.
pub fn trace(picture: &Picture<'_>) -> Value {
    let mut events = Events { from: picture.timeline.run.from, all: Vec::new(), flows: 0 };
    events.tracks(picture);
    events.run(picture);
    for attempt in &picture.timeline.attempts {
        events.attempt(picture, attempt);
    }
    events.arrows(picture);
    events.moments(picture);
    events.session(picture);
    events.leases(picture);
    events.counters(picture);
    // Metadata first; what happens at one moment stays in the order in which it was added.
    events.all.sort_by_key(|(at, _)| *at);
    let all: Vec<Value> = events.all.into_iter().map(|(_, event)| event).collect();
    let state = picture.state;
    json!({
        "displayTimeUnit": "ms",
        "otherData": {
            "run": picture.plan.run.as_str(), "rule": picture.plan.rule, "trace": state.trace,
            "started": state.first_ts, "cpw": env!("CARGO_PKG_VERSION"), "note": picture.note,
        },
        "traceEvents": all,
    })
}

/// Trace events with their times, metadata before all.
struct Events {
    from: Micros,
    all: Vec<(Micros, Value)>,
    flows: u32,
}

impl Events {
    fn ts(&self, at: Micros) -> Micros {
        (at - self.from).max(0)
    }

    fn name(&mut self, kind: &str, pid: u32, tid: u32, key: &str, value: Value) {
        let args: Map<String, Value> = Map::from_iter([(key.to_owned(), value)]);
        self.all.push((-1, json!({"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": args})));
    }

    fn tracks(&mut self, picture: &Picture<'_>) {
        let run = picture.plan.run.as_str();
        let processes = [
            (RUN, format!("cpw run {run}")),
            (WORKERS, "workers".into()),
            (SESSION, "Claude Code session".into()),
            (LEASES, "leases".into()),
        ];
        for (pid, name) in processes {
            let used = match pid {
                SESSION => !picture.timeline.turns.is_empty(),
                LEASES => !picture.timeline.leases.is_empty(),
                _ => true,
            };
            if used {
                self.name("process_name", pid, 0, "name", name.into());
                self.name("process_sort_index", pid, 0, "sort_index", pid.into());
            }
        }
        self.name("thread_name", RUN, 0, "name", "the run".into());
        self.name("thread_name", RUN, 1, "name", "what bounded it".into());
        for (pid, name) in [(SESSION, "told and held"), (LEASES, "who has what")] {
            self.name("thread_name", pid, 0, "name", name.into());
        }
        for life in &picture.timeline.workers {
            self.name("thread_name", WORKERS, life.worker.0, "name", life.worker.to_string().into());
            self.name("thread_sort_index", WORKERS, life.worker.0, "sort_index", life.worker.0.into());
        }
    }

    fn slice(&mut self, pid: u32, tid: u32, name: &str, at: (Micros, Micros), args: &Value) {
        let ts = self.ts(at.0);
        let dur = self.ts(at.1) - ts;
        let event =
            json!({"ph": "X", "name": name, "cat": "cpw", "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args});
        self.all.push((ts, event));
    }

    fn instant(&mut self, pid: u32, tid: u32, name: &str, at: Micros, args: &Value) {
        let ts = self.ts(at);
        let event =
            json!({"ph": "i", "s": "t", "name": name, "cat": "cpw", "pid": pid, "tid": tid, "ts": ts, "args": args});
        self.all.push((ts, event));
    }

    /// A stretch that others of its track may overlap.
    fn stretch(&mut self, pid: u32, name: &str, id: usize, at: (Micros, Micros), args: &Value) {
        let (ts, end) = (self.ts(at.0), self.ts(at.1));
        let begin =
            json!({"ph": "b", "name": name, "cat": "cpw", "id": id, "pid": pid, "tid": 0, "ts": ts, "args": args});
        self.all.push((ts, begin));
        self.all.push((end, json!({"ph": "e", "name": name, "cat": "cpw", "id": id, "pid": pid, "tid": 0, "ts": end})));
    }

    fn run(&mut self, picture: &Picture<'_>) {
        let (timeline, plan) = (picture.timeline, picture.plan);
        let name = plan.rule.as_deref().map_or_else(|| "plan".to_owned(), |rule| one_line(rule, MAX_TEXT));
        let ended = timeline.ended.as_ref();
        let args = json!({
            "status": ended.map(|e| e.status), "reason": ended.map(|e| one_line(&e.reason, MAX_TEXT)),
            "bounded": bounds::sentence(timeline, plan), "max_workers": timeline.max_workers,
            "trace": picture.state.trace,
        });
        self.slice(RUN, 0, &name, (timeline.run.from, timeline.run.to), &args);
        for segment in &timeline.path {
            let why = match segment.what {
                What::Wait(i, why) => json!({"task": plan.tasks[i].id, "waited": bounds::why(why, timeline, plan)}),
                _ => json!({}),
            };
            self.slice(RUN, 1, &bounds::step(segment, timeline, plan), (segment.at.from, segment.at.to), &why);
        }
    }

    fn attempt(&mut self, picture: &Picture<'_>, attempt: &Attempt) {
        let task = &picture.plan.tasks[attempt.task];
        let Some(worker) = attempt.worker.filter(|_| !attempt.taken) else {
            self.instant(RUN, 0, &format!("{}: taken over", task.id), attempt.ran.from, &json!({}));
            return;
        };
        let usage = attempt.usage;
        let args = json!({
            "task": task.id, "title": task.label().map(|t| one_line(&t, MAX_TEXT)), "attempt": attempt.number,
            "outcome": attempt.outcome.word(), "again": attempt.again,
            "said": attempt.line.as_deref().map(|line| one_line(line, MAX_TEXT)),
            "waited_us": attempt.ran.from - attempt.ready,
            "why": bounds::why(attempt.why, picture.timeline, picture.plan), "span": attempt.span,
            "cost_usd": usage.cost_usd, "tokens": usage.tokens, "turns": usage.turns,
        });
        self.slice(WORKERS, worker.0, task.id.as_str(), (attempt.ran.from, attempt.ran.to), &args);
        if let Some((_, event)) = self.all.last_mut()
            && let Some(event) = event.as_object_mut()
        {
            event.insert("cname".into(), color(attempt.outcome).into());
        }
        for waited in &attempt.leased {
            self.slice(WORKERS, worker.0, "waiting for a lease", (waited.from, waited.to), &json!({}));
        }
    }

    /// From what a task needed to its first attempt, and from each attempt to the next.
    fn arrows(&mut self, picture: &Picture<'_>) {
        for (a, attempt) in picture.timeline.attempts.iter().enumerate() {
            let before = picture.before(a);
            let sources: Vec<(&str, usize, Micros)> = match before {
                Some(before) => vec![("retry", before, picture.timeline.attempts[before].ran.to)],
                None => picture.sources(attempt.task).map(|(by, at)| ("needs", by, at)).collect(),
            };
            for (name, by, at) in sources {
                self.arrow(picture, name, (by, at), a);
            }
        }
    }

    fn arrow(&mut self, picture: &Picture<'_>, name: &str, (by, at): (usize, Micros), to: usize) {
        let (source, target) = (&picture.timeline.attempts[by], &picture.timeline.attempts[to]);
        let (Some(from), Some(into)) = (source.worker, target.worker) else { return };
        // Inside of the slice: at its very end it is over.
        let at = at.min(source.ran.to - 1).max(source.ran.from);
        let (start, end) = (self.ts(at), self.ts(target.ran.from));
        if end < start {
            return;
        }
        self.flows += 1;
        let event = |ph: &str, tid: u32, ts: Micros| json!({"ph": ph, "name": name, "cat": "cpw", "id": self.flows, "pid": WORKERS, "tid": tid, "ts": ts, "bp": "e"});
        let both = [(start, event("s", from.0, start)), (end, event("f", into.0, end))];
        self.all.extend(both);
    }

    fn moments(&mut self, picture: &Picture<'_>) {
        for moment in &picture.timeline.moments {
            let task = moment.task.map(|i| picture.plan.tasks[i].id.as_str());
            let args = json!({"task": task, "text": one_line(&moment.text, MAX_TEXT)});
            match moment.worker {
                Some(worker) => self.instant(WORKERS, worker.0, moment.kind, moment.at, &args),
                None => self.instant(RUN, 0, moment.kind, moment.at, &args),
            }
        }
    }

    fn session(&mut self, picture: &Picture<'_>) {
        for (i, turn) in picture.timeline.turns.iter().enumerate() {
            let task = turn.task.map(|i| picture.plan.tasks[i].id.as_str());
            let hook = one_line(&turn.hook, MAX_TEXT);
            match &turn.what {
                Told::Answered { answer, reason, tool } => {
                    let tool = tool.as_deref().map(|tool| one_line(tool, MAX_TEXT));
                    let args =
                        json!({"answer": answer, "reason": one_line(reason, MAX_TEXT), "tool": tool, "task": task});
                    if turn.at.length() > 0 {
                        self.stretch(SESSION, &format!("{hook} held"), i, (turn.at.from, turn.at.to), &args);
                    }
                    self.instant(SESSION, 0, &hook, turn.at.to, &args);
                }
                Told::News { news, signals, chars } => {
                    let args = json!({"news": news, "signals": signals, "chars": chars});
                    self.instant(SESSION, 0, &format!("{hook} delivered"), turn.at.to, &args);
                }
            }
        }
    }

    fn leases(&mut self, picture: &Picture<'_>) {
        for (i, lease) in picture.timeline.leases.iter().enumerate() {
            let task = lease.task.map_or("the session", |i| picture.plan.tasks[i].id.as_str());
            let what = one_line(&lease.resources.join(", "), MAX_TEXT);
            let name = if lease.held { what } else { format!("waiting for {what}") };
            self.stretch(LEASES, &name, i, (lease.at.from, lease.at.to), &json!({"who": task}));
        }
    }

    fn counters(&mut self, picture: &Picture<'_>) {
        for (at, running) in picture.timeline.running() {
            self.counter("running tasks", at, &json!({"tasks": running}));
        }
        let mut spent = 0.0;
        let mut ends: Vec<&Attempt> = picture.timeline.attempts.iter().filter(|a| a.usage.cost_usd > 0.0).collect();
        ends.sort_by_key(|a| a.ran.to);
        if !ends.is_empty() {
            self.counter("cost (US dollars)", picture.timeline.run.from, &json!({"cost": 0.0}));
        }
        for attempt in ends {
            spent += attempt.usage.cost_usd;
            self.counter("cost (US dollars)", attempt.ran.to, &json!({"cost": spent}));
        }
    }

    fn counter(&mut self, name: &str, at: Micros, args: &Value) {
        let ts = self.ts(at);
        self.all.push((ts, json!({"ph": "C", "name": name, "pid": RUN, "tid": 0, "ts": ts, "args": args})));
    }
}

/// As Chrome's own viewer names them; other viewers choose their own.
fn color(outcome: Phase) -> &'static str {
    match outcome {
        Phase::Done => "good",
        Phase::Failed | Phase::Lost => "terrible",
        Phase::TimedOut => "bad",
        Phase::Running => "thread_state_running",
        _ => "grey",
    }
}
