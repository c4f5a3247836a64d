//! Stop: while a run goes on, the hook waits instead of the model, at no cost in tokens; then it hands over everything that
//! is new, once. It never holds without a living worker and a budget, it lets go when the user types or a task needs the
//! session, and it never says the same twice, so that it cannot loop.
//!
//! Where the client has work of its own beside the conversation, the turn that ends is not the last one: the client goes on
//! by itself when that work is done, and must not be kept from it. So it does not hold then; it is called again.

use std::time::Duration;

use crate::actor::{crew, starter};
use crate::hook::answer::Answer;
use crate::hook::input::Payload;
use crate::hook::scene::{self, Call, Open, Scene};
use crate::hook::{Held, deliver, extend, lease};
use crate::logic::conductor::{self, MAX_STOPS};
use crate::logic::signals::Occasion;
use crate::logic::wake::Concern;
use crate::model::event::{self, Body, Decision, Draft};
use crate::model::plan::Gate;
use crate::store::client;
use crate::store::session;
use crate::store::triggers::Trigger;
use crate::store::turn;
use crate::sys::bell::{self, Bell};
use crate::sys::clock;
use crate::sys::poll;
use crate::sys::process;
use crate::sys::signals::Deadline;

/// The longest wait without looking whether the workers are alive.
const LOOK: Duration = Duration::from_secs(5);

/// The same where nobody can ring to say that the user has typed.
const MUTE_LOOK: Duration = Duration::from_secs(1);

/// How long a rule may take to begin; one that may not begin now is not waited for any longer.
const BEGIN: Duration = Duration::from_secs(3);

/// How a hold ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Nothing is left to wait for.
    Ended,
    /// The time for it is spent.
    Spent,
    /// The user typed, or switched cpw off.
    LetGo,
    /// A task says that the session must not stop before it has heard it.
    Needed,
}

pub(super) fn run(deadline: &Deadline) -> anyhow::Result<Held> {
    scene::act_and_note(
        |call| begin_checks(call, deadline),
        scene::always,
        |scene| {
            if !scene.payload.is_main() {
                return Ok(0);
            }
            // Those of the main thread, whatever became of them; a subagent may still be at it.
            if scene.payload.background.is_empty() {
                lease::give_back(scene, |_, _| true);
            }
            // Of two installations that call it for the same turn, one holds and answers.
            let Some(turn) = turn::stop(scene.state.path(), &scene.id)? else { return Ok(0) };
            let held = answer(scene, deadline, &turn);
            turn.end(scene.goes_on)?;
            if !scene.goes_on {
                // From here on the session is idle: what nobody was told may wake it.
                scene.ring_watcher();
            }
            held
        },
    )
}

/// The turn that ends makes no further call: rules that wait until calls are quiet begin now, so that what they start is held
/// for like anything else. Whether one did.
fn begin_checks(call: &Call<'_>, deadline: &Deadline) -> anyhow::Result<bool> {
    let Call { state, id, rules, payload } = call;
    if !payload.is_main() || goes_on_by_itself(payload) {
        return Ok(false);
    }
    let mut pending = Vec::new();
    for rule in &rules.rules {
        let trigger = Trigger::of(state, id, &rule.name)?;
        if trigger.hush()? {
            starter::ensure(&trigger, &rules.project, id, &rule.name, client::current)?;
            pending.push(trigger);
        }
    }
    if pending.is_empty() {
        return Ok(false);
    }
    extend(deadline, BEGIN)?;
    let begun = clock::mono_ms();
    while !pending.is_empty() && Duration::from_millis(clock::mono_ms().saturating_sub(begun)) < BEGIN {
        poll::wait(&[], Some(Duration::from_millis(10)))?;
        pending.retain(|trigger| trigger.calls().is_ok_and(|calls| calls.is_some()));
    }
    extend(deadline, Duration::ZERO)?;
    Ok(true)
}

fn answer(scene: &mut Scene, deadline: &Deadline, turn: &turn::Stop) -> anyhow::Result<Held> {
    let prompt = scene.payload.prompt_id.clone().unwrap_or_default();
    // A client that does not tell prompts apart tells at least when the model stops for the first time.
    let first = prompt.is_empty() && !scene.payload.stop_hook_active;
    let mut said = scene.runs.iter().filter_map(|r| r.hooked.view.stops.as_ref());
    let of_one = !first && said.any(|(p, n)| *p == prompt && *n >= MAX_STOPS);
    // Runs of rules on tool calls can come one after the other as long as the model goes on.
    let told = if first { 0 } else { turn.told(&prompt)? };
    let of_all = told >= MAX_STOPS && !scene.runs.iter().any(|r| r.hooked.view.needs_the_session(scene::now()));
    if of_one || of_all {
        // Nothing would be handed over in the end: who waited would have waited for nothing.
        return scene.tend().map(|()| 0);
    }
    let begun = clock::mono_ms();
    let over = hold(scene, deadline, begun)?;
    let held = clock::mono_ms().saturating_sub(begun);
    extend(deadline, Duration::ZERO)?;
    if let Err(e) = record_hold(scene, held) {
        scene.note(&e);
    }
    if over == Over::LetGo {
        return Ok(held);
    }
    let running = still_running(scene);
    let mut answer = Answer::default();
    if let (Over::Spent, Some(line)) = (over, &running) {
        answer = answer.for_user(format!("cpw: {line}; `cpw status` shows more"));
    }
    let off = scene.runs.iter().all(|r| r.hooked.view.conductor.gate == Gate::Off);
    if off && over != Over::Needed {
        answer.send(&scene.event);
        return Ok(held);
    }
    let mut parcel = deliver::collect(scene, Occasion::Stop)?;
    for (i, line) in blocking(scene, &prompt)? {
        parcel.add(scene, i, &line)?;
    }
    if !parcel.text.is_empty() {
        turn.tell(&prompt, told)?;
    }
    parcel.send(scene, answer)?;
    Ok(held)
}

/// Waits until nothing is left to wait for.
fn hold(scene: &mut Scene, deadline: &Deadline, begun: u64) -> anyhow::Result<Over> {
    let mut failed = None;
    let over = hold_while(scene, deadline, begun, &mut failed);
    if let Some(e) = failed {
        scene.note(&e);
    }
    over
}

/// Whether a run is one to wait for: somebody works on it.
fn look(run: &mut Open) -> anyhow::Result<bool> {
    run.refresh()?;
    Ok(run.hooked.view.conductor.gate == Gate::Hold && crew::tend(&run.folder, &mut run.hooked)?)
}

fn hold_while(
    scene: &mut Scene,
    deadline: &Deadline,
    begun: u64,
    failed: &mut Option<anyhow::Error>,
) -> anyhow::Result<Over> {
    let prompt = scene.payload.prompt_id.clone().unwrap_or_default();
    let budget = scene.runs.iter().filter(|r| r.hooked.view.conductor.gate == Gate::Hold).map(|r| {
        let view = &r.hooked.view;
        let spent = view.held.as_ref().filter(|(p, _)| *p == prompt).map_or(0, |(_, ms)| *ms);
        view.conductor.hold.as_ms().saturating_sub(spent)
    });
    let budget = Duration::from_millis(budget.max().unwrap_or(0));
    let goes_on = goes_on_by_itself(&scene.payload);
    let mut bells: Option<Vec<Bell>> = None;
    let mut stale = None;
    let mut called = None;
    loop {
        bells.iter().flatten().for_each(Bell::drain);
        let mut waiting = false;
        for run in &mut scene.runs {
            match look(run) {
                Ok(alive) => waiting |= alive && run.is_of(&scene.id),
                // What is wrong with one run neither ends the wait for another, nor keeps its news back.
                Err(e) => *failed = failed.take().or(Some(e)),
            }
        }
        // One that another session has taken over meanwhile is no reason to stay.
        let Scene { runs, id, .. } = scene;
        runs.retain(|run| run.is_of(id));
        if scene.runs.iter().any(|run| run.hooked.view.needs_the_session(scene::now())) {
            return Ok(Over::Needed);
        }
        if !waiting {
            return Ok(Over::Ended);
        }
        if goes_on {
            return Ok(Over::LetGo);
        }
        let Some(bells) = &bells else {
            // Hung only now, so that a Stop with nothing to wait for leaves no trace; then looked again, so that nothing
            // that happened in between is missed.
            extend(deadline, budget)?;
            bells = Some(scene.runs.iter().filter_map(|run| run.bell(&Concern::Stop).ok()).collect());
            continue;
        };
        let left = budget.saturating_sub(Duration::from_millis(clock::mono_ms().saturating_sub(begun)));
        if left.is_zero() {
            return Ok(Over::Spent);
        }
        let session = session::load_open(scene.state.path(), &scene.id)?.unwrap_or_default();
        // What lies ahead at the first look is of another boot, whose clock had gone further.
        let stale = *stale.get_or_insert(if session.let_go_ms > clock::mono_ms() { session.let_go_ms } else { 0 });
        // Who types while this hook is still being started types while Stop holds, as the client sees it.
        let called = *called.get_or_insert_with(|| clock::mono_ms().saturating_sub(process::age_ms()).min(begun));
        if session.let_go_ms >= called && session.let_go_ms != stale {
            scene.goes_on = true;
            return Ok(Over::LetGo);
        }
        if scene.is_off(&session) {
            return Ok(Over::LetGo);
        }
        let mute = bells.len() < scene.runs.len() || bells.iter().any(|bell| bell.name().is_none());
        let look = if mute { MUTE_LOOK } else { LOOK };
        bell::wait(&bells.iter().collect::<Vec<_>>(), &[], left.min(look))?;
    }
}

/// Whether the client goes on by itself after this Stop: a subagent or a command of its own runs beside the conversation, and
/// its end begins another turn. A monitor may run for ever, and a session that nobody wakes must not lose what comes later.
fn goes_on_by_itself(payload: &Payload) -> bool {
    payload.background.iter().any(|kind| kind == "subagent" || kind == "shell")
}

/// What still runs in runs whose gate is `block`, once a prompt: whatever is said later comes with news. Only of runs that
/// somebody works on.
fn blocking(scene: &mut Scene, prompt: &str) -> anyhow::Result<Vec<(usize, String)>> {
    let mut lines = Vec::new();
    for (i, run) in scene.runs.iter_mut().enumerate().filter(|(_, r)| r.hooked.view.conductor.gate == Gate::Block) {
        run.refresh()?;
        let said = run.hooked.view.stops.as_ref().is_some_and(|(p, _)| p == prompt);
        if said || !crew::tend(&run.folder, &mut run.hooked)? {
            continue;
        }
        lines.extend(conductor::still_processing(&run.hooked.view, scene::now()).map(|line| (i, format!("{line}."))));
    }
    Ok(lines)
}

/// Writes down for how long the session was held, where it was noticeable.
fn record_hold(scene: &mut Scene, held: u64) -> anyhow::Result<()> {
    const NOTICEABLE_MS: u64 = 100;
    if held < NOTICEABLE_MS {
        return Ok(());
    }
    let mut recorded = Ok(());
    for run in &mut scene.runs {
        let decision = Decision {
            hook: scene.event.clone(),
            answer: event::Answer::Held,
            reason: "workers were running".into(),
            held_ms: held,
            prompt_id: scene.payload.prompt_id.clone(),
            ..Decision::default()
        };
        let written = run.hooked.transact(&run.folder, |tx| tx.emit(Draft::run(Body::Decision(decision))));
        recorded = recorded.and(written.map(drop));
    }
    Ok(recorded?)
}

fn still_running(scene: &Scene) -> Option<String> {
    let lines: Vec<String> = scene
        .runs
        .iter()
        .filter(|r| r.hooked.view.ended.is_none())
        .filter_map(|r| conductor::still_processing(&r.hooked.view, scene::now()))
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}
