//! The watcher: a hook that the client runs in the background from each Stop on, and that wakes the idle session when one of
//! its runs has news. One per session, whatever the number of calls; it leaves with the client, the session, or the last
//! open run. It never speaks while a turn goes on, and never for what a session has done by itself: only events of a run
//! are news.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::actor::crew;
use crate::base::ids::RunId;
use crate::hook::answer::Woken;
use crate::hook::deliver;
use crate::hook::extend;
use crate::hook::scene::{self, Scene};
use crate::logic::conductor;
use crate::logic::session::{self as rules, Next, Seen};
use crate::logic::signals::Occasion;
use crate::logic::wake::Concern;
use crate::model::event::{Answer, Body, Decision, Draft, Process};
use crate::store::client;
use crate::store::hooklog;
use crate::store::run::HOOK_LOCK;
use crate::store::session::{self, Entry, Locked, OwnRun, Session};
use crate::store::turn::{self, Watch, Watching};
use crate::sys::bell::{self, Bell};
use crate::sys::clock;
use crate::sys::process;
use crate::sys::signals::{self, Deadline, Termination};

/// What the watcher calls itself in the log.
const NAME: &str = "watch";

/// Between two looks where nobody can ring, and after one that failed.
const SHORT_LOOK: Duration = Duration::from_secs(1);

/// A watcher that does not come to its next look within this long ends.
const PATIENCE: Duration = Duration::from_hours(1);

/// How long the watcher of the client before this one may take to leave, in tries of [`HOOK_LOCK`].
const TRIES: u32 = 40;

pub(super) fn run(deadline: &Deadline) -> anyhow::Result<Option<Woken>> {
    if !client::is_interactive() {
        return Ok(None);
    }
    let termination = signals::catch_termination()?;
    let Some(mut scene) = scene::look(|_| Ok(false), scene::always)? else { return Ok(None) };
    let Some(client) = client::current().filter(|_| scene.payload.is_main()) else { return Ok(None) };
    NAME.clone_into(&mut scene.event);
    let mut watcher = Watcher {
        pidfd: process::pidfd(client.pid).ok(),
        client,
        scene,
        deadline,
        termination,
        bells: BTreeMap::new(),
        examined: BTreeSet::new(),
    };
    watcher.run()
}

struct Watcher<'d> {
    scene: Scene,
    client: Process,
    pidfd: Option<OwnedFd>,
    deadline: &'d Deadline,
    termination: Termination,
    /// By run.
    bells: BTreeMap<RunId, Bell>,
    /// Runs that were looked at.
    examined: BTreeSet<RunId>,
}

impl Watcher<'_> {
    fn run(&mut self) -> anyhow::Result<Option<Woken>> {
        loop {
            let Some(lock) = self.take_over()? else { return Ok(None) };
            let woken = self.keep_watch()?;
            drop(lock);
            // Who came while this one was leaving saw the lock taken, and left it to us to look at its run.
            if woken.is_some() || self.is_done()? {
                return Ok(woken);
            }
        }
    }

    /// Becomes the session's watcher. `None`: there is one, which looks now.
    fn take_over(&self) -> anyhow::Result<Option<Watch>> {
        let mut budget = Duration::ZERO;
        for _ in 0..TRIES {
            extend(self.deadline, PATIENCE)?;
            match turn::watch(self.scene.state.path(), &self.scene.id, &self.client, budget)? {
                Watching::Ours(lock) => return Ok(Some(lock)),
                Watching::Taken => {
                    self.scene.ring_watcher();
                    return Ok(None);
                }
                // It leaves once it has looked.
                Watching::Foreign => self.scene.ring_watcher(),
            }
            budget = HOOK_LOCK;
        }
        Ok(None)
    }

    fn keep_watch(&mut self) -> anyhow::Result<Option<Woken>> {
        loop {
            self.bells.values().for_each(Bell::drain);
            extend(self.deadline, PATIENCE)?;
            if self.termination.take().is_some() {
                return Ok(None);
            }
            let Some(session) = session::load_open(self.scene.state.path(), &self.scene.id)? else { return Ok(None) };
            let over = self.is_over(&session);
            let woken = session.woken.clone();
            self.follow(session)?;
            if self.hang()? {
                // Looked again, so that nothing that happened before the bell hung is missed.
                continue;
            }
            let well = self.refresh();
            let seen = Seen {
                client_lives: process::alive(&self.client),
                over,
                runs: !self.scene.runs.is_empty(),
                news: self
                    .scene
                    .runs
                    .iter()
                    .any(|run| conductor::has_news(&run.hooked.view, Occasion::Idle, scene::now())),
                idle: turn::is_idle(self.scene.state.path(), &self.scene.id)?,
                pause_ms: rules::pause(&woken, clock::mono_ms()),
            };
            let pause = match rules::next(&seen) {
                Next::Leave => return Ok(None),
                Next::Wait(pause) => pause,
                Next::Wake => {
                    if let Some(woken) = self.wake()? {
                        return Ok(Some(woken));
                    }
                    SHORT_LOOK
                }
            };
            let mute = self.pidfd.is_none() || self.bells.values().any(|bell| bell.name().is_none());
            let pause = if well && !mute { pause } else { pause.min(SHORT_LOOK) };
            let fds: Vec<BorrowedFd<'_>> = self.pidfd.iter().map(AsFd::as_fd).chain([self.termination.fd()]).collect();
            bell::wait(&self.bells.values().collect::<Vec<_>>(), &fds, pause)?;
        }
    }

    /// Whether the session needs no watcher of this client any more.
    fn is_over(&self, session: &Session) -> bool {
        let scene = &self.scene;
        let elsewhere = session.client.as_ref().is_some_and(|client| *client != self.client);
        session.over.is_some() || elsewhere || scene.is_off(session)
    }

    /// Whether nothing has come that this watcher has not looked at.
    fn is_done(&self) -> anyhow::Result<bool> {
        let session = session::load_open(self.scene.state.path(), &self.scene.id)?;
        let new = |own: &OwnRun| own.id().is_some_and(|id| !self.examined.contains(&id));
        Ok(session.is_none_or(|session| self.is_over(&session) || !session.open_runs().any(new)))
    }

    /// Opens runs that are new, and lets go of those that are closed.
    fn follow(&mut self, session: Session) -> anyhow::Result<()> {
        let open: BTreeSet<RunId> = session.open_runs().filter_map(OwnRun::id).collect();
        self.scene.runs.retain(|run| {
            open.contains(&run.hooked.view.run) && run.hooked.view.conductor.wake && run.is_of(&self.scene.id)
        });
        let known: BTreeSet<RunId> = self.scene.runs.iter().map(|run| run.hooked.view.run.clone()).collect();
        let unknown = |own: &OwnRun| own.id().is_some_and(|id| !known.contains(&id));
        let runs: Vec<OwnRun> = session.runs.into_iter().filter(unknown).collect();
        self.examined.extend(open);
        if runs.is_empty() {
            return Ok(());
        }
        let unknown = Session { runs, ..Session::default() };
        let opened = scene::open_runs(&self.scene.state, &self.scene.id, &unknown, |_, _| true)?;
        self.scene.runs.extend(opened.into_iter().filter(|run| run.hooked.view.conductor.wake));
        Ok(())
    }

    /// Hangs a bell in each run. Whether any was new.
    fn hang(&mut self) -> anyhow::Result<bool> {
        let runs = &self.scene.runs;
        self.bells.retain(|id, _| runs.iter().any(|run| run.hooked.view.run == *id));
        let mut new = false;
        for run in runs {
            let id = &run.hooked.view.run;
            if !self.bells.contains_key(id) {
                self.bells.insert(id.clone(), run.bell(&Concern::News)?);
                new = true;
            }
        }
        Ok(new)
    }

    /// Folds what is new, and sees to it that somebody works. Whether all of that went well.
    fn refresh(&mut self) -> bool {
        let mut well = true;
        for run in &mut self.scene.runs {
            // A log that is busy now, or cannot be read, may be free at the next look.
            well &= run.refresh().is_ok() && crew::tend(&run.folder, &mut run.hooked).is_ok();
        }
        self.scene.runs.retain(|run| run.is_of(&self.scene.id));
        well
    }

    /// Wakes the session with everything that is new. `None`: somebody else delivers it, or what has to be written down
    /// before cannot be now.
    fn wake(&mut self) -> anyhow::Result<Option<Woken>> {
        let scene = &mut self.scene;
        let parcel = match deliver::collect(scene, Occasion::Idle) {
            Ok(parcel) if parcel.text.is_empty() => return Ok(None),
            Ok(parcel) => parcel,
            Err(e) => {
                hooklog::note(scene.state.path(), NAME, 0, Some(&format!("{e:#}")), Some(scene.id.as_str()));
                return Ok(None);
            }
        };
        let Some(mut locked) = Locked::open(scene.state.path(), &scene.id, HOOK_LOCK)? else { return Ok(None) };
        let now = clock::mono_ms();
        // The user may have typed, or cleared the session, since the last look.
        if locked.session.over.is_some()
            || rules::pause(&locked.session.woken, now) > 0
            || !turn::is_idle(scene.state.path(), &scene.id)?
        {
            return Ok(None);
        }
        locked.add(Entry::Woken { mono_ms: now })?;
        drop(locked);
        for i in parcel.runs() {
            let decision = Decision {
                hook: scene.event.clone(),
                answer: Answer::Wake,
                reason: "the session is idle, and there is news".into(),
                prompt_id: scene.payload.prompt_id.clone(),
                ..Decision::default()
            };
            let run = &mut scene.runs[i];
            run.hooked.transact(&run.folder, |tx| tx.emit(Draft::run(Body::Decision(decision))))?;
        }
        let text = parcel.text.clone();
        Woken::by(&text, || parcel.record(scene)).map(Some)
    }
}
