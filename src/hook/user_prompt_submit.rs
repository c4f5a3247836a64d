//! UserPromptSubmit: a prompt that matches a rule becomes a run, and the model learns in a few lines what has started. Once
//! per prompt, however often the hook is called; never for a prompt that nobody typed; never below a worker. It starts one
//! worker, which starts the others, and returns at once.

use std::path::Path;

use anyhow::Context;

use crate::actor::launch::{self, Launched, Place};
use crate::actor::planner::{self, Asked, Considered, Rules};
use crate::base::ids::SessionId;
use crate::base::text;
use crate::hook::answer::Answer;
use crate::hook::input::{self, Payload};
use crate::hook::scene::{self, Open, Scene};
use crate::hook::{Held, deliver, lease};
use crate::logic::conductor;
use crate::logic::signals::Occasion;
use crate::logic::wake::Wake;
use crate::model::config::Rule;
use crate::model::event::{Adopted, Body, Draft};
use crate::model::plan::Plan;
use crate::model::words::{self, Origin};
use crate::store::bells;
use crate::store::client;
use crate::store::home::State;
use crate::store::hooklog;
use crate::store::run::{self, HOOK_LOCK, Origin as Started, RunDir};
use crate::store::session::{self, Entry, Locked, MAX_STARTS, ToolRule, ToolRules};
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
    if existing.as_ref().is_some_and(off) || process::is_below_worker() {
        return Ok(0);
    }
    let mut answer = Answer::default();
    let mut started = Vec::new();
    let mut lines = Vec::new();
    let rules = planner::rules(&project, existing.as_ref())?;
    if let Some(state) = &existing {
        // Without them, what the prompt itself starts is started all the same.
        if let Err(e) = note_tool_rules(state, &id, &project, &rules) {
            hooklog::note(state.path(), &event, 0, Some(&format!("rules on tool calls: {e:#}")), Some(id.as_str()));
        }
    }
    match rules {
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
                let odd = left_out(&considered);
                let plans = plans_of(considered);
                if !plans.is_empty() {
                    let place = Place {
                        project: &project,
                        runs: run::runs_path_by(&project, config.runs_dir.as_deref()),
                        max_runs: config.settings.max_runs(),
                    };
                    (started, lines) = start(&State::open()?, &id, &payload, &place, &prompt, plans)?;
                    lines.extend(odd);
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

/// What rules that match have left out, for the user.
fn left_out(considered: &[Considered]) -> Vec<String> {
    let odd = considered.iter().filter(|c| c.outcome.is_ok() && c.left_out > 0);
    odd.map(|c| format!("cpw: rule {}: {}", text::one_line(&c.rule, 64), planner::left_out(c.left_out))).collect()
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
    if !runs.is_empty() || !session.tool_rules.rules.is_empty() {
        // Calls of this turn may start runs, too, and who watches over those must not take the turn for the one before.
        turn::begin(state.path(), &id)?;
    }
    if !runs.is_empty() {
        scene::keep_client(&state, &id, &session)?;
    }
    for run in &mut runs {
        adopt(run, &id)?;
    }
    let mut scene = Scene { state, id, payload, event, runs, goes_on: false };
    // A turn that was interrupted has ended without a word about its calls.
    lease::give_back(&scene, |_, _| true);
    let tended = scene.tend();
    let parcel = deliver::collect_beside(&mut scene, Occasion::Prompt, &announcement)?;
    parcel.send(&mut scene, answer)?;
    tended
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
        if let Ok(Some(folder)) = RunDir::open_own(own) {
            bells::ring(&folder, &Wake::let_go(), &[]);
        }
    }
    Ok(())
}

/// Writes down which rules the session's tool calls may start from here on, where that has changed: hooks of tool calls
/// look at nothing else.
fn note_tool_rules(state: &State, id: &SessionId, project: &Path, rules: &Rules) -> anyhow::Result<()> {
    let mut now = ToolRules::default();
    if let Rules::Ready(config) = rules {
        let on_tool = |rule: &Rule| Some(ToolRule { name: rule.name.clone(), on: rule.when.tool.clone()? });
        now.rules = config.rules.iter().filter_map(on_tool).collect();
        if !now.rules.is_empty() {
            project.clone_into(&mut now.project);
        }
    }
    if session::load_open(state.path(), id)?.unwrap_or_default().tool_rules == now {
        return Ok(());
    }
    let mut locked = Locked::open(state.path(), id, HOOK_LOCK)?.context("the session's record is locked")?;
    Ok(locked.add(Entry::ToolRules(now))?)
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
    let mut active = match launch::active_runs(place.project) {
        Ok(active) => active,
        Err(e) => {
            lines.push(format!("cpw: nothing was started: {}", text::one_line(&e.to_string(), 600)));
            return Ok((told, lines));
        }
    };
    for plan in plans {
        let shown_rule = text::one_line(plan.rule.as_deref().unwrap_or_default(), 64);
        let client = plan.orphan_grace.and_then(|_| client::current());
        let origin = Started { prompt_id: payload.prompt_id.as_deref(), prompt: Some(prompt), client, link: None };
        match launch::launch(state, &mut locked, place, &plan, &origin, &mut active)? {
            Launched::Running(same) => {
                let same = same.id().map(|id| id.to_string()).unwrap_or_default();
                lines.push(format!("cpw: rule {shown_rule} is still running (run {same}); nothing new was started"));
            }
            Launched::Full => lines.push(format!(
                "cpw: {active} runs are active here, the limit of max_runs; {shown_rule} was not started"
            )),
            Launched::Often => lines.push(format!(
                "cpw: {MAX_STARTS} runs were started in this session within a minute, as many as may be; {shown_rule} was \
                 not started"
            )),
            Launched::Refused(e) => {
                lines.push(format!(
                    "cpw: {shown_rule} was not started: {}",
                    text::one_line(&format!("{:#}", anyhow::Error::from(e)), 600)
                ));
            }
            Launched::Started(folder) => {
                told.push(conductor::started(&plan, &folder.shown()));
                let n = plan.tasks.len();
                let tasks = if n == 1 { "1 task".into() } else { format!("{n} tasks") };
                lines.push(format!(
                    "cpw: rule {shown_rule} started {tasks} (run {}); `cpw status` shows them",
                    plan.run
                ));
            }
        }
    }
    Ok((told, lines))
}
