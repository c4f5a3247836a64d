//! A call that uses a resource: it waits while somebody else holds that, as on claimed files, and is then refused with who
//! does; after three refusals in a row it passes with a note. What is free is taken for the call, so that no task begins
//! with it meanwhile, and given back when the step is over. The calls of a session are one party, its subagents' too.
//!
//! What cannot be known of leases keeps no call from running.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use crate::hook::answer::Answer;
use crate::hook::scene::{Open, Scene};
use crate::hook::signal::About;
use crate::hook::{Held, extend};
use crate::logic::conductor;
use crate::logic::leases::{self, Want};
use crate::logic::view::lease_key;
use crate::model::event::{self, Body, Decision, Draft, Holder};
use crate::model::resource::{self, Resource};
use crate::store::client;
use crate::store::leases::{Came, Desk};
use crate::store::run::HOOK_LOCK;
use crate::sys::clock;
use crate::sys::process;
use crate::sys::signals::Deadline;

/// For how long a call has what it uses at most, should nobody say that it is over.
const TTL_MS: u64 = 600_000;

/// Whether a call may go on.
pub(super) enum Admitted {
    /// It may, after this long.
    Yes(Held),
    /// It was answered.
    Answered(Held),
}

/// What a call uses, and by which run.
fn used(scene: &Scene, about: &About) -> Option<(usize, Vec<Resource>)> {
    let mut first = None;
    let mut all = Vec::new();
    for (i, run) in scene.runs.iter().enumerate() {
        let used = conductor::used_by(&run.hooked.view, about.call(&run.project()));
        if !used.is_empty() && *first.get_or_insert(i) == i || first.is_some_and(|at| same_place(&scene.runs[at], run))
        {
            all.extend(used);
        }
    }
    first.map(|i| (i, resource::together(all)))
}

/// Whether a call uses a resource of this run's plan.
pub(super) fn concerns(run: &Open, about: &About) -> bool {
    !run.hooked.view.resources.is_empty()
        && !conductor::used_by(&run.hooked.view, about.call(&run.project())).is_empty()
}

fn same_place(a: &Open, b: &Open) -> bool {
    runs_of(a) == runs_of(b)
}

/// The folder of the project's runs, where its leases are.
fn runs_of(run: &Open) -> PathBuf {
    let path = run.folder.path();
    path.parent().unwrap_or(path).to_owned()
}

/// Waits for what a call uses, and takes it for the call.
pub(super) fn admit(scene: &mut Scene, deadline: &Deadline, about: &About) -> Admitted {
    match try_admit(scene, deadline, about) {
        Ok(admitted) => admitted,
        Err(e) => {
            scene.note(&e);
            Admitted::Yes(0)
        }
    }
}

fn try_admit(scene: &mut Scene, deadline: &Deadline, about: &About) -> anyhow::Result<Admitted> {
    let Some((i, resources)) = used(scene, about) else { return Ok(Admitted::Yes(0)) };
    let run = &scene.runs[i];
    let mut desk = Desk::open(&run.folder.project, &runs_of(run))?.with_patience(HOOK_LOCK);
    let names = leases::list(&resources);
    let own = own_leases(&desk, scene, |_| true);
    let holder = Holder {
        process: client::current().unwrap_or_else(process::me),
        run: None,
        task: None,
        attempt: None,
        worker: None,
        session: Some(scene.id.to_string()),
        tool_use_id: scene.payload.tool_use_id.clone(),
        label: Some(about.tool.clone()),
    };
    let is_own = |r: &Resource| {
        desk.leases().held.iter().any(|l| own.contains(&l.token) && l.resources.iter().any(|held| held.overlaps(r)))
    };
    let mut want = Want {
        resources: resources.into_iter().filter(|r| !is_own(r)).collect(),
        holder,
        // The client lives on where this hook is killed.
        waiter: Some(process::me()),
        holding: own.clone(),
        ttl_ms: Some(TTL_MS),
        until: None,
        request: None,
    };
    if want.resources.is_empty() {
        return Ok(Admitted::Yes(0));
    }
    let begun = clock::mono_ms();
    let (came, waited) = wait(scene, deadline, i, &names, &mut desk, &mut want)?;
    let held = if waited { clock::mono_ms().saturating_sub(begun) } else { 0 };
    extend(deadline, Duration::ZERO)?;
    answer(scene, i, about, &names, &desk, &want, &came, held)
}

/// Waits, within what the plan allows, until it is taken. A worker that dies meanwhile, or is dead already, is seen to: what
/// its task holds is free when that is ended.
fn wait(
    scene: &mut Scene,
    deadline: &Deadline,
    i: usize,
    names: &str,
    desk: &mut Desk,
    want: &mut Want,
) -> anyhow::Result<(Came, bool)> {
    let prompt = scene.payload.prompt_id.clone().unwrap_or_default();
    let view = &scene.runs[i].hooked.view;
    let budget = conductor::patience(view, &lease_key(names), &prompt, view.conductor.wait.to_std());
    // Nothing else is to be done where it is free, as it is nearly always.
    if let came @ Came::Granted(_) = desk.take(want, Some(Duration::ZERO), &[], |_| ())? {
        return Ok((came, false));
    }
    extend(deadline, budget)?;
    let end = clock::mono_ms().saturating_add(u64::try_from(budget.as_millis()).unwrap_or(u64::MAX));
    let mut waited = false;
    loop {
        if let Err(e) = scene.tend() {
            scene.note(&e);
        }
        let workers = scene.runs.iter().flat_map(|run| run.hooked.view.workers.values());
        let workers: Vec<OwnedFd> = workers.take(64).filter_map(|p| process::pidfd(p.pid).ok()).collect();
        let fds: Vec<BorrowedFd<'_>> = workers.iter().map(AsFd::as_fd).collect();
        let left = Duration::from_millis(end.saturating_sub(clock::mono_ms()));
        let came = desk.take(want, Some(left), &fds, |_| waited = true)?;
        if came != Came::Woken {
            return Ok((came, waited));
        }
        for run in &mut scene.runs {
            run.refresh()?;
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "what was found out about one call")]
fn answer(
    scene: &mut Scene,
    i: usize,
    about: &About,
    names: &str,
    desk: &Desk,
    want: &Want,
    came: &Came,
    held: Held,
) -> anyhow::Result<Admitted> {
    let key = lease_key(names);
    let granted = matches!(came, Came::Granted(_));
    let run = &mut scene.runs[i];
    if granted && held == 0 && !run.hooked.view.refusals.contains_key(&key) {
        return Ok(Admitted::Yes(0));
    }
    let now_ms = clock::mono_ms();
    let decision = Decision {
        hook: scene.event.clone(),
        tool: Some(about.tool.clone()),
        tool_use_id: scene.payload.tool_use_id.clone(),
        held_ms: held,
        resource: Some(names.to_owned()),
        prompt_id: scene.payload.prompt_id.clone(),
        ..Decision::default()
    };
    // Who asks about the same call once more hears the same, but for notes: the model has them by the first.
    let given = run.hooked.transact(&run.folder, |tx| {
        if let Some(before) = tx.fold.answer_to(decision.tool_use_id.as_deref(), &key) {
            return Ok(Some(before).filter(|b| *b == event::Answer::Block));
        }
        let (answer, reason) = if granted {
            (event::Answer::Held, format!("{names} was free then"))
        } else if conductor::may_refuse(tx.fold, &key) {
            (event::Answer::Block, format!("{names} is held by others"))
        } else {
            (event::Answer::Inject, "refused often enough".into())
        };
        tx.emit(Draft::run(Body::Decision(Decision { answer, reason, ..decision })))?;
        Ok(Some(answer))
    })?;
    let in_the_way = desk.leases().in_the_way(want);
    let view = &run.hooked.view;
    let answer = match (given, came) {
        (Some(event::Answer::Block), Came::Circle(why)) => Answer::default().deny(&conductor::lease_circle(why)),
        (Some(event::Answer::Block), _) => Answer::default().deny(&conductor::lease_refusal(&in_the_way, view, now_ms)),
        (Some(event::Answer::Inject), _) => {
            Answer::default().context(&conductor::lease_passed(&in_the_way, view, now_ms))
        }
        _ => return Ok(Admitted::Yes(held)),
    };
    answer.send(&scene.event);
    Ok(Admitted::Answered(held))
}

/// The tokens of what calls of this session hold, as far as `which` means the call.
fn own_leases(desk: &Desk, scene: &Scene, which: impl Fn(&str) -> bool) -> Vec<u64> {
    let is_own = |h: &Holder| h.session.as_deref() == Some(scene.id.as_str());
    let held = desk.leases().held.iter().filter(|l| is_own(&l.holder));
    held.filter(|l| l.holder.tool_use_id.as_deref().is_none_or(&which)).map(|l| l.token).collect()
}

/// Gives back what all calls of the session hold that use what this run names: it is closed for the session, so that no hook
/// would look after them.
pub(super) fn give_up(scene: &Scene, run: &Open) {
    give_back_in(scene, run, &|_, _| true);
}

/// Gives back what calls hold that are over, as `which` says. What fails is given back by the next, or by its time.
pub(super) fn give_back(scene: &Scene, which: impl Fn(&Scene, &str) -> bool) {
    for run in &scene.runs {
        give_back_in(scene, run, &which);
    }
}

fn give_back_in(scene: &Scene, run: &Open, which: &dyn Fn(&Scene, &str) -> bool) {
    if run.hooked.view.resources.is_empty() {
        return;
    }
    let give = || {
        let Some(desk) = Desk::existing(&runs_of(run))? else { return Ok(()) };
        let mut desk = desk.with_patience(HOOK_LOCK);
        let over = own_leases(&desk, scene, |call| which(scene, call));
        if over.is_empty() { Ok(()) } else { desk.give_back(&over, "the call is over") }
    };
    if let Err(e) = give() {
        scene.note(&e.into());
    }
}
