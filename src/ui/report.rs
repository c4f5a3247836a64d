//! What `cpw status --json` says of a run: the same as [`overview`](super::overview), for programs. `docs/status.md` describes
//! the object.

use serde_json::{Map, Value, json};

use crate::logic::pace;
use crate::logic::signals::Signal;
use crate::logic::state::Held;
use crate::logic::view::View;
use crate::logic::vote::{Ballot, Poll, Tally};
use crate::ui::overview::{Entry, Hand, Hands, Now, Picture, pending, signal_left, word};
use crate::ui::when;

/// A run.
pub fn run(entry: &Entry<'_>) -> Value {
    let (id, view, now) = match entry {
        Entry::Damaged(id, word, why) => return json!({ "run": id, "state": word, "reason": why }),
        Entry::Brief(id, view, now) => (*id, *view, *now),
        Entry::Whole(p) => (&p.plan.run, &p.state.view, p.now),
    };
    let mut o = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            o.insert(key.into(), value);
        }
    };
    put("run", json!(id));
    put("state", word(view).into());
    put("reason", json!(view.ended.as_ref().map(|e| &e.reason)));
    put("session", json!(view.session));
    put("rule", json!(view.rule));
    put("cancelling", (view.cancelled && view.ended.is_none()).into());
    put("counts", counts(view));
    put("signals", signals(view, now));
    let Entry::Whole(picture) = entry else { return o.into() };
    let Picture { plan, state, facts, .. } = picture;
    put("folder", json!(facts.folder));
    put("continues", json!(plan.from));
    put("started", json!(state.first_ts));
    if view.ended.is_some() {
        put("ended", json!(state.last_ts));
        put("duration_ms", json!(when::between(&state.first_ts, &state.last_ts)));
    }
    if view.ended.is_none() {
        let left = picture.run_left();
        put("percent", json!(pace::percent(state)));
        put("eta_s", json!(left.map(|left| left.ms.div_ceil(1000))));
        put("eta_by_history", left.filter(|left| left.by_history).map_or(Value::Null, |_| true.into()));
    }
    if state.held != Held::default() {
        put("held", json!(state.held));
    }
    put("last_hook", state.hook.as_ref().map_or(Value::Null, |h| json!({ "hook": h.hook, "ts": h.ts })));
    if state.warned > 0 {
        put("warnings", json!({ "count": state.warned, "last": state.warnings }));
    }
    put("max_workers", json!(state.max_workers));
    put("cost_usd", json!(state.spent_usd));
    put("quota_left_ms", json!(picture.quota_ms()));
    let hand = |Hand { worker, pid, alive }: &Hand| json!({ "worker": worker, "pid": pid, "alive": alive });
    put("workers", facts.hands.iter().map(hand).collect());
    put("hired", if let Hands::Hired(worker) = &facts.tended { json!(worker) } else { Value::Null });
    put("error", if let Hands::None(why) = &facts.tended { json!(why) } else { Value::Null });
    let tasks: Vec<Value> = (0..state.tasks.len()).map(|i| task(picture, i)).collect();
    put("tasks", tasks.into());
    let votes: Vec<Value> = state.view.polls.iter().map(poll).collect();
    put("votes", if votes.is_empty() { Value::Null } else { votes.into() });
    o.into()
}

fn counts(view: &View) -> Value {
    let c = view.counts;
    json!({
        "total": c.total, "done": c.done, "failed": c.failed, "skipped": c.skipped, "cancelled": c.cancelled,
        "open": c.open(),
    })
}

fn signals(view: &View, now: Now<'_>) -> Value {
    let one = |s: &Signal| {
        json!({
            "signal": s.id, "task": s.task, "hook": s.hook.name(), "blocks": s.blocks, "message": s.message,
            "count": s.count, "left_ms": signal_left(s, now),
        })
    };
    let all: Vec<Value> = pending(view, now).map(one).collect();
    if all.is_empty() { Value::Null } else { all.into() }
}

fn poll(poll: &Poll) -> Value {
    let Tally { proceed, abort, open, absent } = poll.tally();
    let voters: Map<String, Value> = poll
        .voters
        .iter()
        .map(|(id, ballot)| {
            let word = match ballot {
                Ballot::Open => json!("open"),
                Ballot::Cast(choice, _) => json!(choice),
                Ballot::Absent => json!("absent"),
            };
            (id.to_string(), word)
        })
        .collect();
    let verdict = poll.verdict.as_ref();
    json!({
        "topic": poll.topic, "verdict": verdict.map(|v| v.result), "no_quorum": verdict.map(|v| v.no_quorum),
        "quorum": poll.quorum, "rule": poll.rule, "proceed": proceed, "abort": abort, "open": open, "absent": absent,
        "voters": voters,
    })
}

fn task(picture: &Picture<'_>, i: usize) -> Value {
    let Picture { plan, state, .. } = picture;
    let task = &state.tasks[i];
    let mut o = Map::new();
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            o.insert(key.into(), value);
        }
    };
    put("task", json!(plan.tasks[i].id));
    put("title", json!(plan.tasks[i].title));
    put("state", picture.task_word(i).into());
    put("worker", json!(task.worker));
    put("attempts", json!(task.attempts));
    put("needs", json!(plan.tasks[i].needs));
    if picture.is_taken(i) {
        put("from", json!(plan.from));
    }
    put("percent", json!(task.percent));
    let left = picture.left(i);
    put("eta_s", json!(left.map(|left| left.ms.div_ceil(1000))));
    put("eta_by_history", left.filter(|left| left.by_history).map_or(Value::Null, |_| true.into()));
    put("expected_ms", json!(plan.tasks[i].expected));
    put("slow", picture.slow(i).map_or(Value::Null, |_| true.into()));
    put("note", json!(task.note));
    put("line", json!(task.line));
    put("written", json!(picture.facts.written.get(&i)));
    put("waits_for", json!(picture.facts.blocked.get(&i)));
    put("exit", json!(task.exit));
    put("duration_ms", json!(picture.duration_ms(i)));
    if task.held_ms > 0 {
        put("held_ms", json!(task.held_ms));
    }
    put("started", json!(task.started));
    put("ended", json!(task.ended));
    put("result", json!(task.result));
    if task.usage != crate::model::event::Usage::default() {
        put("usage", json!(task.usage));
    }
    o.into()
}
