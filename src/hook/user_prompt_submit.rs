//! UserPromptSubmit: a prompt that matches a rule becomes a run, and the model learns in a few lines what has started. Once
//! per prompt, however often the hook is called; never for a prompt that nobody typed; never below a worker. It starts one
//! worker, which starts the others, and returns at once.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::actor::crew;
use crate::actor::planner::{self, Asked, Considered, Rules};
use crate::base::env;
use crate::base::ids::SessionId;
use crate::base::text;
use crate::hook::answer::Answer;
use crate::hook::input::{self, Payload};
use crate::hook::scene::{self, Open, Scene};
use crate::hook::{Held, deliver};
use crate::logic::conductor;
use crate::logic::signals::Occasion;
use crate::logic::wake::Wake;
use crate::model::event::{Adopted, Body, Draft};
use crate::model::plan::Plan;
use crate::model::words::{self, Origin};
use crate::store::bells;
use crate::store::client;
use crate::store::home::State;
use crate::store::run::{self, HOOK_LOCK, Origin as Started, RunDir, RunError};
use crate::store::session::{self, Entry, Locked};
use crate::store::switch;
use crate::store::trust::Trust;
use crate::store::turn;
use crate::sys::clock;
use crate::sys::process;

pub(super) fn run() -> anyhow::Result<Held> {
    let payload = input::read()?;
    let prompt = payload.prompt.clone().context("the client named no prompt")?;
    let event = payload.hook_event_name.clone().context("the client did not name the event")?;
    let session = payload.session_id.as_deref().and_then(|s| SessionId::new(s).ok());
    let id = session.context("the client named no session")?;
    let existing = State::existing()?;
    if words::origin(&prompt) == Origin::Typed
        && let Some(state) = &existing
    {
        let_go(state, &id)?;
    }
    let project = scene::project(&payload)?;
    let off = |state: &State| switch::is_off(state, &project, Some(&id));
    if existing.as_ref().is_some_and(off) || process::ancestor_env_has(env::DEPTH) {
        return Ok(0);
    }
    let mut answer = Answer::default();
    let mut started = Vec::new();
    let mut lines = Vec::new();
    match planner::rules(&project, existing.as_ref())? {
        Rules::None => {}
        Rules::Unapproved { sha256, trust } => {
            if trust != Trust::Denied
                && words::origin(&prompt) == Origin::Typed
                && first_time(&State::open()?, &id, &format!("allow {sha256}"))?
            {
                let changed =
                    if matches!(trust, Trust::Changed { .. }) { "have changed and" } else { "in .claude/cpw.json" };
                lines.push(format!("cpw: the rules {changed} await your approval: run `cpw allow` in a terminal"));
            }
        }
        Rules::Broken(problems) => {
            if first_time(&State::open()?, &id, "broken")? {
                let n = problems.len();
                lines.push(format!(
                    "cpw: .claude/cpw.json has {n} mistakes and starts nothing: `cpw doctor` lists them"
                ));
            }
        }
        Rules::Ready(config) => {
            let cwd = payload.cwd.clone().unwrap_or_default();
            let asked = Asked { project: &project, cwd: Path::new(&cwd), prompt: &prompt, session: Some(&id) };
            if let Ok(considered) = planner::consider(&config, asked) {
                let plans = plans_of(considered);
                if !plans.is_empty() {
                    let place = Place {
                        project: &project,
                        runs: run::runs_path_by(&project, config.runs_dir.as_deref()),
                        max_runs: config.settings.max_runs(),
                    };
                    (started, lines) = start(&State::open()?, &id, &payload, &place, &prompt, plans)?;
                }
            }
        }
    }
    if !lines.is_empty() {
        answer = answer.for_user(lines.join("\n"));
    }
    answer_with_news(existing, id, payload, event, answer, &started)?;
    Ok(0)
}

fn plans_of(considered: Vec<Considered>) -> Vec<Plan> {
    considered.into_iter().filter_map(|c| c.outcome.ok()).collect()
}

/// Says what has started, together with what happened in the session's runs since it last heard of them.
fn answer_with_news(
    state: Option<State>,
    id: SessionId,
    payload: Payload,
    event: String,
    answer: Answer,
    started: &[String],
) -> anyhow::Result<()> {
    let announcement = started.join("\n");
    let session = match &state {
        Some(state) => session::load(state.path(), &id)?,
        None => None,
    };
    let (Some(state), Some(session)) = (state, session) else {
        answer.context(&announcement).send(&event);
        return Ok(());
    };
    let mut runs = scene::open_runs(&state, &id, &session, |_, _| true)?;
    if !runs.is_empty() {
        turn::begin(state.path(), &id)?;
        scene::keep_client(&state, &id, &session)?;
    }
    for run in &mut runs {
        adopt(run, &id)?;
    }
    let tended = runs.iter_mut().try_for_each(|run| crew::tend(&run.folder, &mut run.hooked).map(drop));
    let mut scene = Scene { state, id, payload, event, runs, goes_on: false };
    let mut parcel = deliver::collect(&mut scene, Occasion::Prompt)?;
    if !announcement.is_empty() {
        parcel.text = if parcel.text.is_empty() { announcement } else { format!("{announcement}\n{}", parcel.text) };
    }
    parcel.send(&mut scene, answer)?;
    Ok(tended?)
}

/// Says that the session goes on in this client, where a run watches over another one: a session that was resumed keeps its
/// runs.
fn adopt(run: &mut Open, session: &SessionId) -> anyhow::Result<()> {
    let view = &run.hooked.view;
    if view.client.is_none() || view.ended.is_some() {
        return Ok(());
    }
    let Some(client) = client::current().filter(|now| view.client.as_ref() != Some(now)) else { return Ok(()) };
    run.hooked.transact(&run.folder, |tx| {
        if tx.fold.ended.is_none() {
            let (session, from) = (session.to_string(), session.to_string());
            tx.emit(Draft::run(Body::Adopted(Adopted { session, from, client: Some(client) })))?;
        }
        Ok(())
    })?;
    Ok(())
}

/// Tells a Stop that is holding that the user has typed: the user always wins.
fn let_go(state: &State, id: &SessionId) -> anyhow::Result<()> {
    let Some(session) = session::load(state.path(), id)? else { return Ok(()) };
    if session.open_runs().next().is_none() {
        return Ok(());
    }
    if let Some(mut locked) = Locked::open(state.path(), id, HOOK_LOCK)? {
        locked.add(Entry::LetGo { mono_ms: clock::mono_ms() })?;
    }
    for own in session.open_runs() {
        if let Ok(folder) = RunDir::open_path(&own.path) {
            bells::ring(&folder, &Wake::let_go(), &[]);
        }
    }
    Ok(())
}

/// Whether the user is to be told something that is told once a session.
fn first_time(state: &State, id: &SessionId, what: &str) -> anyhow::Result<bool> {
    let Some(mut locked) = Locked::open(state.path(), id, HOOK_LOCK)? else { return Ok(false) };
    if locked.session.told.iter().any(|t| t == what) {
        return Ok(false);
    }
    locked.add(Entry::Told { what: what.to_owned() })?;
    Ok(true)
}

/// Where runs are made, and how many.
struct Place<'a> {
    project: &'a Path,
    runs: PathBuf,
    max_runs: u32,
}

/// Starts the plans, each at most once per prompt. Returns what the model and what the user is told.
fn start(
    state: &State,
    id: &SessionId,
    payload: &Payload,
    place: &Place<'_>,
    prompt: &str,
    plans: Vec<Plan>,
) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let (mut told, mut lines) = (Vec::new(), Vec::new());
    let mut locked = Locked::open(state.path(), id, HOOK_LOCK)?.context("the session's record is locked")?;
    if let Some(prompt_id) = &payload.prompt_id {
        if locked.session.prompts.contains(prompt_id) {
            return Ok((told, lines));
        }
        locked.add(Entry::Prompt { id: prompt_id.clone() })?;
    }
    let mut active = active_runs(place.project);
    for plan in plans {
        let rule = plan.rule.clone().unwrap_or_default();
        let shown_rule = text::one_line(&rule, 64);
        if let Some(same) = earlier(&mut locked, &rule)? {
            lines.push(format!("cpw: rule {shown_rule} is still running (run {same}); nothing new was started"));
            continue;
        }
        if active >= place.max_runs {
            lines.push(format!(
                "cpw: {active} runs are active here, the limit of max_runs; {shown_rule} was not started"
            ));
            continue;
        }
        let client = plan.orphan_grace.and_then(|_| client::current());
        let origin = Started { prompt_id: payload.prompt_id.as_deref(), prompt: Some(prompt), client };
        let made = RunDir::create_in(place.project, &place.runs, &plan, &origin).and_then(|folder| {
            // Named in the session's record before it is a run: a hook that dies in between leaves a folder that is not one.
            let named = locked.add_run(&folder.dir, &rule);
            named.map_err(|source| RunError::Io { path: folder.path().to_owned(), source })?;
            let run = folder.start(state, &plan, &origin)?;
            Ok((folder, run))
        });
        let (folder, mut run) = match made {
            Ok(made) => made,
            Err(e @ RunError::FileSystem { .. }) => {
                lines.push(format!("cpw: {shown_rule} was not started: {}", text::one_line(&e.to_string(), 600)));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        active += 1;
        if let Err(e) = crew::hire(&mut run, None) {
            // It is a run now, and the next hook or command starts its workers.
            return Err(anyhow::Error::from(e).context(format!("run {} has no worker yet", plan.run)));
        }
        told.push(conductor::started(&plan, &folder.shown()));
        let n = plan.tasks.len();
        let tasks = if n == 1 { "1 task".into() } else { format!("{n} tasks") };
        lines.push(format!("cpw: rule {shown_rule} started {tasks} (run {}); `cpw status` shows them", plan.run));
    }
    Ok((told, lines))
}

/// The session's active run of the same rule, if there is one. An earlier one that is over is closed: the new one replaces
/// what it still owed.
fn earlier(locked: &mut Locked, rule: &str) -> anyhow::Result<Option<String>> {
    let same: Vec<_> = locked.session.open_runs().filter(|r| r.rule == rule).cloned().collect();
    for own in same {
        let Some(run) = own.id() else { continue };
        let view = RunDir::open_own(&own).and_then(|found| found.map(|folder| folder.open_view()).transpose());
        let over = match view {
            Ok(hooked) => hooked.is_none_or(|h| h.view.ended.is_some()),
            Err(RunError::NoRun(_) | RunError::Damaged { .. } | RunError::Plan(_)) => true,
            // Whether it is over cannot be told now; two at once would be worse than none.
            Err(RunError::Io { .. } | RunError::Log(_) | RunError::FileSystem { .. }) => false,
        };
        if !over {
            return Ok(Some(run.to_string()));
        }
        locked.add(Entry::Closed { run })?;
    }
    Ok(None)
}

/// How many runs of the project are active. Only the newest are looked at: older ones ended long ago.
fn active_runs(project: &Path) -> u32 {
    const NEWEST: usize = 32;
    let ids = run::list(project).unwrap_or_default();
    let is_active = |id| {
        RunDir::open(project, id)
            .and_then(|f| f.open_view().map(|h| h.view.ended.is_none() && crew::anybody(&f, &h.view)))
            .unwrap_or(false)
    };
    u32::try_from(ids.iter().take(NEWEST).filter(|id| is_active(id)).count()).unwrap_or(u32::MAX)
}
