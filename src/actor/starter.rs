//! Who starts a rule after tool calls: a process beside the session that waits until the calls are quiet, and until the run
//! that such calls started before has ended; then it makes one run of all of them. There is one for a session and rule, by a
//! lock. It may be killed at any moment: calls are taken out only once there is a run of them, and the next call starts
//! another starter.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::actor::crew;
use crate::actor::launch::{self, Launched, Place};
use crate::actor::planner::{self, Rules};
use crate::base::ids::SessionId;
use crate::base::text;
use crate::logic::wake::Concern;
use crate::model::config::{Config, OnTool, Rule};
use crate::model::event::Process;
use crate::store::bells;
use crate::store::home::State;
use crate::store::hooklog;
use crate::store::run::{self, Origin, RunDir, WORKER_LOCK};
use crate::store::session::{self, Locked, OwnRun};
use crate::store::switch;
use crate::store::triggers::{Calls, Starts, Trigger};
use crate::sys::bell;
use crate::sys::clock;
use crate::sys::lock;
use crate::sys::process;

/// The longest sleep without looking whether the session still wants it.
const LOOK: Duration = Duration::from_secs(5);

/// Between two looks whether the turn has ended.
const SHORT_LOOK: Duration = Duration::from_millis(100);

/// Between two looks whether another run may be started.
const FULL_LOOK: Duration = Duration::from_secs(2);

/// For how long that is looked at.
const MAX_FULL: Duration = Duration::from_mins(10);

/// Starts one for a rule of a session, unless one lives. `project` is where it works.
pub fn ensure(
    trigger: &Trigger,
    project: &Path,
    session: &SessionId,
    rule: &str,
    client: impl FnOnce() -> Option<Process>,
) -> io::Result<()> {
    let Some(live) = trigger.starter()? else { return Ok(()) };
    let mut args: Vec<OsString> =
        vec!["worker".into(), "--after-tool".into(), rule.into(), "--session".into(), session.to_string().into()];
    if let Some(client) = client() {
        args.extend(["--client".into(), format!("{}:{}", client.pid, client.start_time).into()]);
    }
    crew::detach(&args, project, live).map(drop)
}

/// The client, as [`ensure`] names it.
pub fn client_of(text: &str) -> Option<Process> {
    let (pid, start_time) = text.split_once(':')?;
    Some(Process { pid: pid.parse().ok()?, start_time: start_time.parse().ok()?, boot_id: clock::boot_id().to_owned() })
}

/// What is to be done next.
enum Next {
    /// Look again at once.
    Again,
    /// Nothing is left to do.
    Leave,
    /// What was noted starts nothing, now or later.
    Drop,
    /// It cannot be started now; the next call tries again.
    Later,
}

/// The process.
#[derive(Debug)]
pub struct Starter {
    state: State,
    session: SessionId,
    rule: String,
    client: Option<Process>,
    trigger: Trigger,
    project: PathBuf,
    /// For how long it has waited for a place among the active runs.
    full: Duration,
}

impl Starter {
    /// For a rule of a session, as the session's record has it.
    pub fn new(state: State, session: SessionId, rule: &str, client: Option<Process>) -> anyhow::Result<Starter> {
        let trigger = Trigger::of(&state, &session, rule)?;
        let known = session::load_open(state.path(), &session)?.unwrap_or_default();
        let project = known.tool_rules.project;
        Ok(Starter { state, session, rule: rule.to_owned(), client, trigger, project, full: Duration::ZERO })
    }

    /// Works until no call is left. `live` is the lock of its life.
    pub fn run(mut self, live: &File) {
        loop {
            match self.step(live) {
                Ok(Next::Again) => {}
                Ok(Next::Later) => return,
                Ok(Next::Leave) => {
                    // A call that was noted after the last look found the lock taken.
                    let left = lock::unlock(live).and_then(|()| Ok(self.trigger.calls()?.is_some()));
                    if !left.unwrap_or(false) || !lock::try_exclusive(live).unwrap_or(false) {
                        return;
                    }
                }
                Ok(Next::Drop) => {
                    let dropped =
                        self.trigger.calls().and_then(|calls| calls.map_or(Ok(()), |c| self.trigger.take(&c)));
                    if dropped.is_err() {
                        return;
                    }
                }
                Err(e) => {
                    self.note(&format!("{e:#}"));
                    return;
                }
            }
        }
    }

    fn step(&mut self, live: &File) -> anyhow::Result<Next> {
        let Some(calls) = self.trigger.calls()? else { return Ok(Next::Leave) };
        let Some((config, rule, on)) = self.wanted()? else { return Ok(Next::Drop) };
        let now = clock::mono_ms();
        let rest = rest(&calls, &on, now).max(Starts::of(live)?.pause_ms(now));
        if rest > 0 {
            self.sleep(&calls, Duration::from_millis(rest).min(LOOK))?;
            return Ok(Next::Again);
        }
        self.start(live, &calls, &config, &rule)
    }

    /// Sleeps, unless the turn ends that makes the calls.
    fn sleep(&self, calls: &Calls, rest: Duration) -> io::Result<()> {
        let end = clock::mono_ms() + u64::try_from(rest.as_millis()).unwrap_or(u64::MAX);
        loop {
            let left = end.saturating_sub(clock::mono_ms());
            let hushed =
                || -> io::Result<bool> { Ok(self.trigger.calls()?.is_none_or(|now| now.last_ms < calls.last_ms)) };
            if left == 0 || hushed()? {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(left).min(SHORT_LOOK));
        }
    }

    /// The config and the rule, while they are approved and the session is there.
    fn wanted(&self) -> anyhow::Result<Option<(Box<Config>, Rule, OnTool)>> {
        let gone = self.client.as_ref().is_some_and(|client| !process::alive(client));
        let off = || switch::is_off(&self.state, &self.project, Some(&self.session));
        let session = session::load_open(self.state.path(), &self.session)?.unwrap_or_default();
        if gone || self.project.as_os_str().is_empty() || session.off || off() {
            return Ok(None);
        }
        let Rules::Ready(config) = planner::rules(&self.project, Some(&self.state))? else { return Ok(None) };
        let rule = config.rules.iter().find(|rule| rule.name == self.rule).cloned();
        Ok(rule.and_then(|rule| rule.when.tool.clone().map(|on| (config, rule, on))))
    }

    fn start(&mut self, live: &File, calls: &Calls, config: &Config, rule: &Rule) -> anyhow::Result<Next> {
        let plan = match planner::after_calls(config, rule, &self.project, &self.session, &calls.files) {
            Ok(plan) => plan,
            Err(why) => {
                self.note(&format!("rule {}: nothing is started: {why}", text::one_line(&self.rule, 64)));
                return Ok(Next::Drop);
            }
        };
        let place = Place {
            project: &self.project,
            runs: run::runs_path_by(&self.project, config.runs_dir.as_deref()),
            max_runs: config.settings.max_runs(),
        };
        let client = plan.orphan_grace.and_then(|_| self.client.clone());
        let origin = Origin { client, ..Origin::default() };
        let mut active = launch::active_runs(&self.project)?;
        let locked = Locked::open(self.state.path(), &self.session, WORKER_LOCK)?;
        let Some(mut locked) = locked else { return Ok(Next::Again) };
        let launched = launch::launch(&self.state, &mut locked, &place, &plan, &origin, &mut active);
        // Nobody else's hook waits for it any longer.
        drop(locked);
        match launched? {
            Launched::Started(_) => {
                self.trigger.take(calls)?;
                Starts::of(live)?.add(clock::mono_ms())?;
                self.full = Duration::ZERO;
                Ok(Next::Again)
            }
            Launched::Running(same) => self.wait_for(&same),
            Launched::Full | Launched::Often if self.full >= MAX_FULL => {
                self.note(&format!("rule {}: {active} runs are active, as many as may be", self.rule));
                Ok(Next::Later)
            }
            Launched::Full | Launched::Often => {
                self.full += FULL_LOOK;
                std::thread::sleep(FULL_LOOK);
                Ok(Next::Again)
            }
            Launched::Refused(e) => {
                // The calls stay: what the system refuses now it may not refuse the next call.
                self.note(&e.to_string());
                Ok(Next::Later)
            }
        }
    }

    /// Sleeps until a run of the session has ended, or nobody wants another one any more.
    fn wait_for(&self, own: &OwnRun) -> anyhow::Result<Next> {
        let Some(folder) = RunDir::open_own(own)? else { return Ok(Next::Again) };
        let bell = bells::hang(&folder, &Concern::End)?;
        let mut hooked = folder.open_view()?;
        loop {
            bell.drain();
            hooked.refresh()?;
            if hooked.view.ended.is_some() {
                return Ok(Next::Again);
            }
            // Without anybody, it does not end; whoever starts somebody starts this again as well.
            if !crew::tend(&folder, &mut hooked)? && hooked.view.ended.is_none() {
                self.note(&format!("rule {}: nobody works on its run {}", self.rule, folder.shown()));
                return Ok(Next::Later);
            }
            if self.wanted()?.is_none() {
                return Ok(Next::Drop);
            }
            bell::wait(&[&bell], &[], LOOK)?;
        }
    }

    fn note(&self, why: &str) {
        hooklog::note(self.state.path(), "after-tool", 0, Some(why), Some(self.session.as_str()));
    }
}

/// How long the calls have to stay quiet, in milliseconds.
fn rest(calls: &Calls, on: &OnTool, now: u64) -> u64 {
    // A time in the future is one of before the machine was booted.
    let quiet = now.checked_sub(calls.last_ms);
    quiet.map_or(0, |quiet| on.debounce.as_ms().saturating_sub(quiet))
}
