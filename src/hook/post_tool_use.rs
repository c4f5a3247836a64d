//! PostToolUse: notes the calls that rules start after, and those that tasks may want to know of; and compares what ran with what was rewritten, because of several
//! hooks that rewrite, the one that finishes last wins. News comes by PostToolBatch, which the wiring says with `--batched`;
//! without it, here.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::path::Path;

use crate::actor::starter;
use crate::base::env;
use crate::hook::answer::Answer;
use crate::hook::input::Payload;
use crate::hook::observe::{self, Phase};
use crate::hook::scene::{Call, File, Scene};
use crate::hook::signal::About;
use crate::hook::{Held, deliver, lease, merge, scene};
use crate::logic::conductor;
use crate::logic::glance::Glance;
use crate::logic::signals::Occasion;
use crate::logic::view::{RAN_AS_REWRITTEN, REWRITE_LOST};
use crate::model::event::{self, Body, Decision, Draft};
use crate::store::run::RunDir;
use crate::store::triggers::Trigger;
use crate::sys::clock;
use crate::sys::process;

pub(super) fn run(args: &[OsString]) -> anyhow::Result<Held> {
    let batched = args.iter().any(|a| a == "--batched");
    let files = OnceCell::new();
    let concerns = |payload: &Payload, folder: &RunDir, glance: &Glance<'_>| {
        let Some(tool) = payload.tool_name.as_deref() else { return !batched };
        let files = || files.get_or_init(|| scene::files(payload, tool)).as_slice();
        let project = folder.project.to_string_lossy();
        let claimed = || glance.may_use(&project, tool, files) || glance.may_be_claimed(&project, files);
        let merged = glance.has_rewrites() || payload.is_main() && glance.may_merge(tool);
        !batched || merged || glance.may_be_awaited(tool) || claimed()
    };
    scene::act_and_note(note, concerns, |scene| answer(scene, batched, &files))
}

/// Notes the call for the rules that start after it, and sees to it that somebody starts them.
fn note(call: &Call<'_>) -> anyhow::Result<bool> {
    let Call { state, id, rules, payload } = call;
    let Some(tool) = payload.tool_name.as_deref() else { return Ok(false) };
    let met = rules.rules.iter().filter(|rule| rule.on.meets(tool, |field| payload.field(field)));
    let mut file = None;
    let mut failed = None;
    for rule in met {
        let file = file.get_or_insert_with(|| file_of(payload, tool, &rules.project));
        let client = || std::env::var(env::CLAUDE_PID).ok()?.parse().ok().and_then(process::identity_of);
        let noted = Trigger::of(state, id, &rule.name).and_then(|trigger| {
            trigger.add(clock::mono_ms(), file.as_deref())?;
            starter::ensure(&trigger, &rules.project, id, &rule.name, client)
        });
        if let Err(e) = noted {
            failed.get_or_insert(e);
        }
    }
    failed.map_or(Ok(false), |e| Err(e.into()))
}

/// The file that a call works on, absolute: of one with two names, through a link, the one below the project.
fn file_of(payload: &Payload, tool: &str, project: &Path) -> Option<String> {
    let named = payload.field(conductor::path_field(tool)?)?;
    let whole = Path::new(payload.cwd.as_deref().unwrap_or("/")).join(named);
    let named = conductor::normalise(&whole.to_string_lossy());
    let real = whole.canonicalize().ok().filter(|real| real.starts_with(project));
    let real = real.filter(|_| !Path::new(&named).starts_with(project));
    Some(real.map_or(named, |real| real.to_string_lossy().into_owned()))
}

fn answer(scene: &mut Scene, batched: bool, files: &OnceCell<Vec<File>>) -> anyhow::Result<Held> {
    if let Some(tool) = scene.payload.tool_name.clone() {
        let files = files.get_or_init(|| scene::files(&scene.payload, &tool));
        let about = About::of(&scene.payload, &tool, files);
        observe::observe(scene, &about, files, Phase::After);
    }
    if !batched {
        lease::give_back(scene, |scene, call| scene.payload.tool_use_id.as_deref() == Some(call));
    }
    let lost = compare(scene)?;
    if batched || !scene.payload.is_main() {
        Answer::default().context(&lost).send(&scene.event);
        return Ok(0);
    }
    let tended = scene.tend();
    let parcel = deliver::collect_beside(scene, Occasion::Step, &lost)?;
    parcel.send(scene, Answer::default())?;
    tended?;
    Ok(0)
}

/// Notes whether the call ran as it was rewritten. Returns what the model is to know if it did not.
fn compare(scene: &mut Scene) -> anyhow::Result<String> {
    let Some(id) = scene.payload.tool_use_id.clone() else { return Ok(String::new()) };
    let mut lost = String::new();
    for run in &mut scene.runs {
        let Some(rewrite) = run.hooked.view.rewrites.iter().find(|r| r.tool_use_id == id).cloned() else { continue };
        let Some(rule) = run.hooked.view.merges.get(rewrite.merge).map(|m| m.rule.clone()) else { continue };
        let ran = merge::fields_sha256(&rule, &scene.payload.tool_input.fields()?);
        let same = ran == rewrite.input_sha256;
        let reason = if same { RAN_AS_REWRITTEN } else { REWRITE_LOST };
        if !same {
            lost = format!(
                "The workers' results are not in this call: another hook changed its input afterwards. They are under {}.",
                run.folder.shown()
            );
        }
        let decision = Decision {
            hook: scene.event.clone(),
            tool: scene.payload.tool_name.clone(),
            tool_use_id: Some(id.clone()),
            input_sha256: Some(ran),
            answer: event::Answer::Inject,
            reason: reason.into(),
            merge: Some(rewrite.merge),
            ..Decision::default()
        };
        run.hooked.transact(&run.folder, |tx| tx.emit(Draft::run(Body::Decision(decision))))?;
    }
    Ok(lost)
}
