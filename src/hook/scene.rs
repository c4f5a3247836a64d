//! The session that a hook is called for, and its open runs. Looking it up comes first and costs one small read; where the
//! session has no open run, that was all.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::actor::crew;
use crate::base::env;
use crate::base::ids::SessionId;
use crate::hook::input::{self, Payload};
use crate::hook::{Held, lease};
use crate::logic::glance::Glance;
use crate::logic::signals::Now;
use crate::logic::wake::{Concern, Wake};
use crate::logic::{command, conductor};
use crate::model::event::SCHEMA;
use crate::store::bells;
use crate::store::client;
use crate::store::home::State;
use crate::store::hooklog;
use crate::store::log::LogError;
use crate::store::run::{HOOK_LOCK, Hooked, RunDir, RunError};
use crate::store::session::{self, Entry, Locked, OwnRun, Session, ToolRules};
use crate::store::switch;
use crate::sys::bell::Bell;
use crate::sys::clock;
use crate::sys::fsinfo;
use crate::sys::lock;

/// A session with open runs.
#[derive(Debug)]
pub(super) struct Scene {
    /// The user's state directory.
    pub state: State,
    /// The session.
    pub id: SessionId,
    /// What the client said.
    pub payload: Payload,
    /// The event's name, as the client said it.
    pub event: String,
    /// The runs that owe the session something.
    pub runs: Vec<Open>,
    /// The turn goes on: the model was handed something, or the user has typed.
    pub goes_on: bool,
}

/// A run as a hook has it open.
#[derive(Debug)]
pub(super) struct Open {
    /// Its folder.
    pub folder: RunDir,
    /// Its log and view.
    pub hooked: Hooked,
}

impl Open {
    /// The project's root as text.
    pub(super) fn project(&self) -> String {
        self.folder.project.to_string_lossy().into_owned()
    }

    /// Its path below the project, as the session reads it.
    pub(super) fn shown(&self) -> String {
        self.folder.shown()
    }

    /// Whether it is, by its log, a run of this session. Another one may have adopted it.
    pub(super) fn is_of(&self, id: &SessionId) -> bool {
        self.hooked.view.session.as_ref().is_none_or(|owner| owner == id)
    }

    /// A bell that rings when something of this concern happens in it.
    pub(super) fn bell(&self, concern: &Concern) -> anyhow::Result<Bell> {
        Ok(bells::hang(&self.folder, concern)?)
    }

    /// Brings the index up to date where that is due, for the next hook. After the answer: nobody waits for it.
    fn save_index(&mut self) {
        self.hooked.save_index(&self.folder);
    }

    /// Folds what is new. A damaged run goes on being delivered from what was read before.
    pub(super) fn refresh(&mut self) -> anyhow::Result<()> {
        match self.hooked.refresh() {
            Ok(()) | Err(LogError::Damaged(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// The session of this hook call, from the environment; clients that do not say it there say it on stdin.
fn session_from_env() -> Option<SessionId> {
    std::env::var(env::CLAUDE_SESSION_ID).ok().and_then(|s| SessionId::new(&s).ok())
}

/// The project's root, canonical, as the client has it.
pub(super) fn project(payload: &Payload) -> anyhow::Result<PathBuf> {
    let given = std::env::var_os(env::CLAUDE_PROJECT_DIR).filter(|p| !p.is_empty()).map(PathBuf::from);
    let path = given.or_else(|| payload.cwd.as_ref().map(PathBuf::from)).context("the client named no project")?;
    path.canonicalize().with_context(|| format!("the project {} cannot be found", path.display()))
}

/// A hook other than the prompt's: `act` in its scene. Nothing is done where the session has nothing open, where cpw is off,
/// and where no open run is one that the call concerns, by what `concerns` says of its folder and glance.
pub(super) fn act(
    concerns: impl Fn(&Payload, &RunDir, &Glance<'_>) -> bool,
    act: impl FnOnce(&mut Scene) -> anyhow::Result<Held>,
) -> anyhow::Result<Held> {
    act_and_note(|_| Ok(false), concerns, act)
}

/// As [`act`], for a hook that also notes calls which rules are to start after, by `note`, whatever runs are open. Where that
/// has brought the session another run, it returns true.
pub(super) fn act_and_note(
    note: impl FnOnce(&Call<'_>) -> anyhow::Result<bool>,
    concerns: impl Fn(&Payload, &RunDir, &Glance<'_>) -> bool,
    act: impl FnOnce(&mut Scene) -> anyhow::Result<Held>,
) -> anyhow::Result<Held> {
    let Some(mut scene) = look(note, concerns)? else { return Ok(0) };
    let held = act(&mut scene);
    scene.runs.iter_mut().for_each(Open::save_index);
    held
}

/// A call of a session that has rules on tool calls.
pub(super) struct Call<'a> {
    /// The user's state directory.
    pub state: &'a State,
    /// The session.
    pub id: &'a SessionId,
    /// Its rules.
    pub rules: &'a ToolRules,
    /// What the client said.
    pub payload: &'a Payload,
}

/// For hooks that have something to do in every open run.
pub(super) fn always(_: &Payload, _: &RunDir, _: &Glance<'_>) -> bool {
    true
}

/// As [`act`], for who acts by itself.
pub(super) fn look(
    note: impl FnOnce(&Call<'_>) -> anyhow::Result<bool>,
    concerns: impl Fn(&Payload, &RunDir, &Glance<'_>) -> bool,
) -> anyhow::Result<Option<Scene>> {
    let Some(state) = State::existing()? else { return Ok(None) };
    let mut known = None;
    if let Some(id) = session_from_env() {
        let Some(session) = load(&state, &id)? else { return Ok(None) };
        known = Some((id, session));
    }
    let payload = input::read()?;
    let said = payload.session_id.as_deref().and_then(|s| SessionId::new(s).ok());
    let (id, mut session) = match (said, known) {
        (Some(said), Some((id, session))) if said == id => (id, session),
        (Some(said), _) => match load(&state, &said)? {
            Some(session) => (said, session),
            None => return Ok(None),
        },
        (None, Some(known)) => known,
        (None, None) => return Ok(None),
    };
    if session.off || (switch::is_any_off(&state) && switch::is_off(&state, &project(&payload)?, Some(&id))) {
        return Ok(None);
    }
    let event = payload.hook_event_name.clone().context("the client did not name the event")?;
    let rules = &session.tool_rules;
    if !rules.rules.is_empty() {
        match note(&Call { state: &state, id: &id, rules, payload: &payload }) {
            Ok(true) => session = load(&state, &id)?.unwrap_or_default(),
            Ok(false) => {}
            // What runs have to say is said all the same.
            Err(e) => hooklog::note(state.path(), "after-tool", 0, Some(&format!("{e:#}")), Some(id.as_str())),
        }
    }
    let runs = open_runs(&state, &id, &session, |folder, glance| concerns(&payload, folder, glance))?;
    if runs.is_empty() {
        return Ok(None);
    }
    Ok(Some(Scene { state, id, payload, event, runs, goes_on: false }))
}

/// The session's record, if it has open runs, or rules on tool calls.
fn load(state: &State, id: &SessionId) -> anyhow::Result<Option<Session>> {
    let session = session::load_open(state.path(), id)?;
    Ok(session.filter(|s| s.open_runs().next().is_some() || !s.tool_rules.rules.is_empty()))
}

/// Remembers in which client a session with open runs is: whether anybody will hear of them follows from that.
pub(super) fn keep_client(state: &State, id: &SessionId, session: &Session) -> anyhow::Result<()> {
    let now = client::current().filter(|now| session.client.as_ref() != Some(now));
    if (now.is_none() && session.over.is_none()) || session.open_runs().next().is_none() {
        return Ok(());
    }
    let Some(mut locked) = Locked::open(state.path(), id, HOOK_LOCK)? else { return Ok(()) };
    if locked.session.over.is_some() {
        locked.add(Entry::Again)?;
    }
    if let Some(now) = now {
        locked.add(Entry::Client(now))?;
    }
    Ok(())
}

/// Opens what the session's record names and what is still the same folder, where `concerns` says so. A run that was never
/// started, or whose folder has gone, is closed for the session.
pub(super) fn open_runs(
    state: &State,
    id: &SessionId,
    session: &Session,
    concerns: impl Fn(&RunDir, &Glance<'_>) -> bool,
) -> anyhow::Result<Vec<Open>> {
    let mut open = Vec::new();
    for own in session.open_runs() {
        match open_one(own, id, &concerns) {
            Ok(Found::Open(run)) => open.push(*run),
            Ok(Found::Unconcerned) => {}
            Ok(Found::Gone) | Err(RunError::NoRun(_)) => close(state, id, own)?,
            // Damaged, newer, unreadable, busy: nothing can be said of it now, and another hook call may. Others go on.
            Err(e) => {
                let why = match &e {
                    RunError::Damaged { .. } => e.to_string(),
                    e => format!("run {}: {e}", own.path.display()),
                };
                hooklog::note(state.path(), "run", 0, Some(&why), Some(id.as_str()));
            }
        }
    }
    Ok(open)
}

/// What became of a run that the session's record names.
enum Found {
    /// It is there.
    Open(Box<Open>),
    /// It is there, and the call does not concern it.
    Unconcerned,
    /// Its folder has gone, another one is in its place, or another session has adopted it.
    Gone,
}

fn open_one(own: &OwnRun, id: &SessionId, concerns: impl Fn(&RunDir, &Glance<'_>) -> bool) -> Result<Found, RunError> {
    let Some(folder) = RunDir::open_own(own)? else { return Ok(Found::Gone) };
    let hooked = folder.open_if(|glance| concerns(&folder, glance))?;
    let Some(hooked) = hooked else { return Ok(Found::Unconcerned) };
    if hooked.view.schema > SCHEMA {
        // What was handed over could not be written down, so that it would be said again and again.
        return Err(LogError::Newer(hooked.view.schema).into());
    }
    let run = Open { folder, hooked };
    Ok(if run.is_of(id) { Found::Open(Box::new(run)) } else { Found::Gone })
}

fn close(state: &State, id: &SessionId, own: &OwnRun) -> anyhow::Result<()> {
    let Some(run) = own.id() else { return Ok(()) };
    let Some(mut locked) = Locked::open(state.path(), id, HOOK_LOCK)? else { return Ok(()) };
    // The prompt hook names a run before it starts it, and `cpw adopt` before it takes it over; both hold this lock until
    // they have.
    if matches!(open_one(own, id, |_, _| true), Ok(Found::Gone) | Err(RunError::NoRun(_))) {
        locked.add(Entry::Closed { run })?;
    }
    Ok(())
}

fn close_run(state: &State, id: &SessionId, run: crate::base::ids::RunId) -> anyhow::Result<()> {
    if let Some(mut locked) = Locked::open(state.path(), id, HOOK_LOCK)? {
        locked.add(Entry::Closed { run })?;
    }
    Ok(())
}

impl Scene {
    /// Whether cpw was switched off since the hook began; `session` is the record as it is now.
    pub(super) fn is_off(&self, session: &Session) -> bool {
        let here = || project(&self.payload).is_ok_and(|p| switch::is_off(&self.state, &p, Some(&self.id)));
        session.off || (switch::is_any_off(&self.state) && here())
    }

    /// Sees to it that somebody works on each run. Where that fails in one, the others have theirs, and the session its news,
    /// before the first error counts.
    pub(super) fn tend(&mut self) -> anyhow::Result<()> {
        let tended = self.runs.iter_mut().map(|run| crew::tend(&run.folder, &mut run.hooked));
        let failed: Vec<LogError> = tended.filter_map(Result::err).collect();
        failed.into_iter().next().map_or(Ok(()), |e| Err(e.into()))
    }

    /// Writes down what was wrong and has not ended the hook.
    pub(super) fn note(&self, e: &anyhow::Error) {
        hooklog::note(self.state.path(), &self.event, 0, Some(&format!("{e:#}")), Some(self.id.as_str()));
    }

    /// Makes who watches over the session look.
    pub(super) fn ring_watcher(&self) {
        for run in &self.runs {
            bells::ring(&run.folder, &Wake::watch(), &[]);
        }
    }

    /// Closes, for the session, the runs that owe it nothing any more.
    pub(super) fn close_finished(&self) -> anyhow::Result<()> {
        for run in self.runs.iter().filter(|r| r.hooked.view.is_closed(now())) {
            lease::give_up(self, run);
            close_run(&self.state, &self.id, run.hooked.view.run.clone())?;
            // Whoever watches over the session may have nothing left to watch over.
            bells::ring(&run.folder, &Wake::watch(), &[]);
        }
        Ok(())
    }
}

/// A file that a call names, in the forms it may have been claimed under: as named, and with links resolved.
pub(super) type File = Vec<String>;

/// The files that a call of `tool` plainly names.
pub(super) fn files(payload: &Payload, tool: &str) -> Vec<File> {
    let cwd = payload.cwd.as_deref().unwrap_or("/");
    if tool == "Bash" {
        let command = payload.field("command").unwrap_or_default();
        return command::files(&command, cwd).iter().map(|path| forms(Path::new(path))).collect();
    }
    let named = conductor::path_field(tool).and_then(|field| payload.field(field));
    named.map(|named| forms(&Path::new(cwd).join(named))).into_iter().collect()
}

fn forms(whole: &Path) -> File {
    let mut forms = vec![conductor::normalise(&whole.to_string_lossy())];
    let real = fsinfo::real_path(whole).map(|real| real.to_string_lossy().into_owned());
    forms.extend(real.filter(|real| *real != forms[0]));
    forms
}

/// Whether two paths are the same file, by its identity.
pub(super) fn is_same_file(a: &str, b: &str) -> bool {
    let id = |path: &str| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(a).is_some_and(|a| id(b) == Some(a))
}

/// This moment.
pub(super) fn now() -> Now<'static> {
    Now { ms: clock::mono_ms(), boot_id: clock::boot_id() }
}

/// Tries to become the one who delivers from a run now. The lock is held until the file is dropped.
pub(super) fn deliver_lock(folder: &RunDir) -> anyhow::Result<Option<std::fs::File>> {
    let file = folder.dir.open_rw(crate::store::run::DELIVER_LOCK)?;
    Ok(lock::try_exclusive(&file)?.then_some(file))
}
