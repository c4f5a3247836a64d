//! A call that a task's signal holds back, or that one accompanies. What holds back does so only while the worker that said so
//! lives: of a dead one nobody could take it back.

use crate::actor::crew::{self, Life};
use crate::hook::Held;
use crate::hook::answer::Answer;
use crate::hook::input::Payload;
use crate::hook::scene::{File, Scene, now};
use crate::logic::conductor;
use crate::logic::signals::{self, Call, Signal};
use crate::logic::view::signal_key;
use crate::model::event::{self, Body, Decision, Draft};

/// What a call is about, by which signals are found.
#[derive(Debug)]
pub(super) struct About {
    /// The tool.
    pub tool: String,
    /// Its text.
    pub target: String,
    /// The forms of its file.
    pub paths: Vec<String>,
    /// The files that it is on in any way, which a command may name.
    pub files: Vec<Vec<String>>,
}

impl About {
    /// Of the call that the client has told of, which names `files`.
    pub(super) fn of(payload: &Payload, tool: &str, files: &[File]) -> About {
        let paths = files.first().filter(|_| conductor::path_field(tool).is_some()).cloned().unwrap_or_default();
        About { tool: tool.to_owned(), target: payload.target(), paths, files: files.to_vec() }
    }

    pub(super) fn call<'a>(&'a self, project: &'a str) -> Call<'a> {
        Call { tool: &self.tool, target: &self.target, paths: &self.paths, files: &self.files, project }
    }
}

/// Refuses a call that a signal holds back. Returns whether it did.
pub(super) fn refuse(scene: &mut Scene, about: &About) -> anyhow::Result<bool> {
    for i in 0..scene.runs.len() {
        let project = scene.runs[i].project();
        // A worker that is found dead is replaced, and its attempt ended: what it held back is free, another may not be.
        for _ in 0..signals::MAX_SIGNALS {
            let run = &mut scene.runs[i];
            let Some(signal) = signals::barrier(&run.hooked.view, about.call(&project), now()).cloned() else { break };
            if !signal.sticky && !is_alive(scene, i, &signal) {
                let run = &mut scene.runs[i];
                crew::tend(&run.folder, &mut run.hooked)?;
                run.refresh()?;
                if signals::barrier(&run.hooked.view, about.call(&project), now()) == Some(&signal) {
                    // Its new worker has not come so far as to end the attempt; nobody is held for a dead one.
                    break;
                }
                continue;
            }
            return deny(scene, i, &signal, about);
        }
    }
    Ok(false)
}

fn is_alive(scene: &Scene, i: usize, signal: &Signal) -> bool {
    let run = &scene.runs[i];
    let process = signal.worker.and_then(|w| run.hooked.view.workers.get(&w.0).map(|p| (w, p)));
    process.is_some_and(|(worker, process)| crew::life(&run.folder, worker, process) == Life::Alive)
}

fn deny(scene: &mut Scene, i: usize, signal: &Signal, about: &About) -> anyhow::Result<bool> {
    let event = scene.event.clone();
    let decision = Decision {
        hook: event.clone(),
        tool: Some(about.tool.clone()),
        tool_use_id: scene.payload.tool_use_id.clone(),
        answer: event::Answer::Block,
        reason: format!("held back by {}", signal.task),
        signal: Some(signal.id),
        prompt_id: scene.payload.prompt_id.clone(),
        ..Decision::default()
    };
    let run = &mut scene.runs[i];
    let shown = run.shown();
    let refused = run.hooked.view.refusals.get(&signal_key(signal.id)).copied().unwrap_or(0);
    let text = signals::refusal(signal, &run.hooked.view, &shown, now(), refused);
    // What was taken back, or spent, until the lock was free holds nothing back; and a call that two installations ask about
    // counts once.
    let holds = run.hooked.transact(&run.folder, |tx| {
        if tx.fold.answer_to(decision.tool_use_id.as_deref(), &signal_key(signal.id)).is_some() {
            return Ok(true);
        }
        let holds = tx.fold.signals.iter().any(|s| s.id == signal.id && s.is_barrier());
        if holds {
            tx.emit(Draft::task(&signal.task, Body::Decision(decision)))?;
        }
        Ok(holds)
    })?;
    if holds {
        Answer::default().deny(&text).send(&event);
    }
    Ok(holds)
}

/// Lets a call pass together with what tasks have to say about it, once. Nothing where they have nothing to say.
pub(super) fn accompany(scene: &mut Scene, about: &About) -> anyhow::Result<Held> {
    let event = scene.event.clone();
    let mut lines = Vec::new();
    let mut told = Vec::new();
    for i in 0..scene.runs.len() {
        let run = &mut scene.runs[i];
        let (project, shown) = (run.project(), run.shown());
        if signals::companions(&run.hooked.view, about.call(&project), now()).next().is_none() {
            continue;
        }
        let Some(lock) = crate::hook::scene::deliver_lock(&run.folder)? else { continue };
        run.hooked.transact(&run.folder, |_| Ok(()))?;
        let view = &run.hooked.view;
        let mut ids = Vec::new();
        for signal in signals::companions(view, about.call(&project), now()) {
            lines.push(signals::line(signal, view, &shown));
            ids.push((signal.id, signal.task.clone()));
        }
        told.push((i, ids, lock));
    }
    if lines.is_empty() || !Answer::default().context(&lines.join("\n")).send(&event) {
        return Ok(0);
    }
    for (i, ids, _lock) in told {
        let run = &mut scene.runs[i];
        run.hooked.transact(&run.folder, |tx| {
            ids.into_iter().try_for_each(|(id, task)| {
                let decision = Decision {
                    hook: event.clone(),
                    tool: Some(about.tool.clone()),
                    answer: event::Answer::Inject,
                    reason: "a task had something to say about it".into(),
                    signal: Some(id),
                    ..Decision::default()
                };
                tx.emit(Draft::task(&task, Body::Decision(decision))).map(drop)
            })
        })?;
    }
    scene.close_finished()?;
    Ok(0)
}
