//! A worker: a slot that takes the next ready task, runs it, takes the next, and leaves when none can come. One thread, one
//! loop: look at the attempt → one transaction → act on it → wait for a descriptor or a moment.
//!
//! The one that holds `leader.lock` also notices dead workers and starts new ones. That is a convenience: every worker takes
//! the same steps, and when the leader goes, the next one leads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use tracing::span::EnteredSpan;

use crate::actor::attempt::{self, Attempt, Making, NotStarted, Why};
use crate::actor::crew::{self, Life};
use crate::actor::hung::{self, HOLDS_LOG_MS};
use crate::actor::isolate;
use crate::actor::seats::Seats;
use crate::actor::spools::Spools;
use crate::base::env;
use crate::base::ids::WorkerNo;
use crate::base::trace;
use crate::logic::sched::{self, Facts};
use crate::logic::state::TaskState;
use crate::logic::step::{self, AttemptId, Duty, Ending, Slot, Todo};
use crate::logic::view::Phase;
use crate::logic::wake::Concern;
use crate::model::event::{Body, CancelRequested, Draft, Ended, Process, Progress};
use crate::model::plan::Isolate;
use crate::store::bells;
use crate::store::history;
use crate::store::home;
use crate::store::log::LogError;
use crate::store::run::{LEADER_LOCK, Run};
use crate::sys::bell::{self, Bell};
use crate::sys::clock;
use crate::sys::lock;
use crate::sys::poll;
use crate::sys::process;
use crate::sys::signals::Termination;
use crate::sys::spawn;
use crate::sys::tree;

/// The longest time without a look, should every wake-up be lost.
const SAFETY: Duration = Duration::from_mins(1);

/// How long the rest of a dead worker's task may take to go away before others do something else in between.
const ORPHAN_BUDGET: Duration = Duration::from_secs(2);

/// Pause before the next look when an orphan is still there or the log is busy.
const AGAIN_MS: u64 = 250;

/// Pause before the next look for a free seat, in milliseconds.
const SEAT_MS: u64 = 2000;

/// Progress of an attempt is written at most this often, in milliseconds.
const PROGRESS_MS: u64 = 1000;

/// How long the log may be unusable before a worker gives up, in milliseconds.
const PATIENCE_MS: u64 = 60_000;

/// A worker.
#[derive(Debug)]
pub struct Worker {
    run: Run,
    me: WorkerNo,
    process: Process,
    duty: Duty,
    // Held for life: when it is free, this worker is dead.
    _live: File,
    bell: Bell,
    // Beside its own, while it leads.
    lead_bell: Option<Bell>,
    lead: File,
    leads: bool,
    synced: bool,
    leader_fd: Option<OwnedFd>,
    peers: BTreeMap<u32, OwnedFd>,
    seats: Option<Seats>,
    spools: Spools,
    hired: BTreeSet<i32>,
    // Of a run that is not to outlive it, while this one leads.
    client: Option<Client>,
    attempt: Option<Attempt>,
    // What is said in the worker's own log meanwhile is said of that attempt.
    scope: Option<EnteredSpan>,
    ending: Option<(AttemptId, Ending)>,
    progress: Option<Progress>,
    progress_at_ms: u64,
    dead: Vec<WorkerNo>,
    look_at_ms: Option<u64>,
    looked_ms: u64,
    leaving: bool,
    stuck_since_ms: Option<u64>,
}

/// The client that a run is not to outlive.
#[derive(Debug)]
struct Client {
    process: Process,
    // Readable once it is gone; taken away then.
    fd: Option<OwnedFd>,
    gone_since_ms: Option<u64>,
}

impl Worker {
    /// A worker of `run` with the number `me`, whose life lock is `live`.
    pub fn new(mut run: Run, me: WorkerNo, live: File, duty: Duty) -> io::Result<Worker> {
        let bell = bells::hang(&run.folder, &Concern::Worker(me))?;
        run.spare(&bell);
        let lead = run.folder.dir.open_rw(LEADER_LOCK)?;
        Ok(Worker {
            run,
            me,
            process: process::me(),
            duty,
            _live: live,
            bell,
            lead_bell: None,
            lead,
            leads: false,
            synced: false,
            leader_fd: None,
            peers: BTreeMap::new(),
            seats: None,
            spools: Spools::default(),
            hired: BTreeSet::new(),
            client: None,
            attempt: None,
            scope: None,
            ending: None,
            progress: None,
            progress_at_ms: 0,
            dead: Vec::new(),
            look_at_ms: None,
            looked_ms: 0,
            leaving: false,
            stuck_since_ms: None,
        })
    }

    /// Works until nothing can come any more. `each` is called after every look, for whoever shows what happens; `tick` is
    /// the longest time between two looks for them.
    pub fn work(
        mut self,
        termination: &Termination,
        tick: Option<Duration>,
        mut each: impl FnMut(&Run),
    ) -> Result<Run, LogError> {
        spawn::become_subreaper().map_err(|source| LogError::Io { doing: "adopt orphans for", source })?;
        loop {
            if termination.take().is_some() {
                // Leaving in order: the attempt is ended, others see it as lost and go on.
                self.leaving = true;
                if let Some(attempt) = &mut self.attempt {
                    attempt.end(Why::Fenced);
                }
            }
            let done = match self.turn() {
                Ok(done) => {
                    self.stuck_since_ms = None;
                    done
                }
                Err(e) => {
                    self.endure(e)?;
                    false
                }
            };
            each(&self.run);
            if done {
                return Ok(self.run);
            }
            self.wait(termination, tick.unwrap_or(SAFETY));
        }
    }

    /// A log that cannot be used now may be usable in a moment: the task goes on, and its outcome is offered again. A
    /// damaged one will not: its tasks are ended, because nobody could record what they do.
    fn endure(&mut self, error: LogError) -> Result<(), LogError> {
        let now = clock::mono_ms();
        let since = *self.stuck_since_ms.get_or_insert(now);
        tracing::warn!(%error, "the log could not be used");
        let hopeless =
            matches!(error, LogError::Damaged(_) | LogError::Newer(_) | LogError::Line(_) | LogError::Unsynced(_));
        let stuck = now.saturating_sub(since);
        if !hopeless && stuck < PATIENCE_MS {
            if stuck >= HOLDS_LOG_MS && hung::end_stopped_holder(&self.run) {
                self.stuck_since_ms = Some(now);
            }
            self.look_at_ms = Some(now + AGAIN_MS);
            return Ok(());
        }
        if let Some(mut attempt) = self.attempt.take() {
            attempt.end(Why::Fenced);
            let deadline = now + PATIENCE_MS;
            while attempt.look(None).1.is_none() && clock::mono_ms() < deadline {
                let pause = attempt.next_look().map_or(AGAIN_MS, |at| at.saturating_sub(clock::mono_ms()).max(1));
                drop(poll::wait(&[], Some(Duration::from_millis(pause))));
            }
        }
        Err(error)
    }

    /// One look, one transaction, and what follows from it. Returns whether the worker leaves.
    fn turn(&mut self) -> Result<bool, LogError> {
        self.look_at_ms = None;
        self.looked_ms = clock::mono_ms();
        self.bell.drain();
        self.lead_bell.iter().for_each(Bell::drain);
        self.run.refresh()?;
        self.follow_leader();
        self.meet_new_ones();
        self.watch_client()?;
        self.watch_attempt();
        if hung::end_overdue(&self.run, Some(self.me), None, self.looked_ms) {
            self.look_at_ms = Some(self.looked_ms + AGAIN_MS);
        }
        self.find_dead()?;
        let todo = self.transact()?;
        // A worktree takes its time to be made; who is hired need not wait for it.
        let slow = todo.begin.as_ref().is_some_and(|id| !self.run.plan.tasks[id.index].isolate.is_none());
        if slow {
            self.hire(todo.hire);
        }
        if let Some(id) = todo.begin {
            self.begin(id)?;
        }
        if !slow {
            self.hire(todo.hire);
        }
        if self.leads {
            let Run { folder, plan, state, .. } = &self.run;
            let at = self.spools.look(folder, plan, state, clock::mono_ms());
            self.look_by(at);
        }
        let last = todo.leave || (todo.changed && self.run.state.view.ended.is_some());
        if self.leads || last {
            let wait = self.run.save_index(last);
            let at = wait.map(|ms| clock::mono_ms() + ms);
            self.look_by(at);
        }
        self.sync_at_ends(todo.hire == 0, todo.leave);
        Ok(todo.leave)
    }

    /// The next look comes at this time at the latest, on the monotonic clock.
    fn look_by(&mut self, at_ms: Option<u64>) {
        self.look_at_ms = self.look_at_ms.into_iter().chain(at_ms).min();
    }

    /// Starts so many further workers. Fewer are slower, not wrong; a later look tries again.
    fn hire(&mut self, number: u32) {
        for _ in 0..number {
            let later = match self.hire_one() {
                Ok(true) => continue,
                Ok(false) => SEAT_MS,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "no further worker could be started");
                    AGAIN_MS
                }
            };
            let at = clock::mono_ms() + later;
            self.look_by(Some(at));
            return;
        }
    }

    /// Starts a further worker; `false`: this user has as many as there may be.
    fn hire_one(&mut self) -> anyhow::Result<bool> {
        let seats = match &mut self.seats {
            Some(seats) => seats,
            None => self.seats.insert(Seats::open()?),
        };
        let Some(seat) = seats.take()? else { return Ok(false) };
        let worker = crew::hire(&mut self.run, Some(seat))?;
        self.meet(worker);
        self.spare_workers();
        Ok(true)
    }

    /// The leader syncs the run to disk twice, once everybody works and when it leaves: nobody waits for it there.
    fn sync_at_ends(&mut self, all_hired: bool, leaving: bool) {
        let begun = all_hired && self.attempt.is_some() && !self.synced;
        if self.leads && (begun || leaving) {
            self.synced = true;
            if leaving && self.run.state.view.ended.is_some() {
                self.run.folder.sweep();
                self.remember();
                if self.run.plan.tasks.iter().any(|t| !t.isolate.is_none())
                    && let Err(error) = isolate::remove_all_but(&self.run.folder, Some(self.me))
                {
                    tracing::warn!(%error, "worktrees stay");
                }
            }
            if let Err(error) = self.run.sync() {
                tracing::warn!(%error, "the run could not be synced to disk");
            }
        }
    }

    /// Keeps how long tasks took, for the next run of the rule.
    fn remember(&self) {
        let Run { folder, plan, state, .. } = &self.run;
        let took = |(i, task): (usize, &TaskState)| {
            let ms = task.duration_ms.filter(|_| task.phase == Phase::Done && !task.is_taken)?;
            Some((i, ms))
        };
        let took: Vec<(usize, u64)> = state.tasks.iter().enumerate().filter_map(took).collect();
        if plan.rule.is_none() || took.is_empty() {
            return;
        }
        let home = home::State::open();
        if let Err(error) = home.and_then(|home| history::record(&home, &folder.project, plan, &took)) {
            tracing::warn!(error = format!("{error:#}"), "how long tasks took is not remembered");
        }
    }

    /// Takes the lead if it is free, else remembers whose death to wait for.
    fn follow_leader(&mut self) {
        if self.leads || self.leader_fd.is_some() {
            return;
        }
        for _ in 0..2 {
            match lock::try_exclusive(&self.lead) {
                Ok(true) => {
                    self.leads = true;
                    let line = format!("{}\n", self.process.pid);
                    // For the others to find; they check the lock again after opening the process.
                    drop(self.lead.set_len(0));
                    drop(std::os::unix::fs::FileExt::write_at(&self.lead, line.as_bytes(), 0));
                    // Without it nobody hears a ring for the leader, and then every worker is rung.
                    self.lead_bell = bells::hang(&self.run.folder, &Concern::Lead).ok();
                    self.lead_bell.iter().for_each(|bell| self.run.spare(bell));
                    // Something may have happened before the bell was there.
                    self.look_at_ms = Some(0);
                    return;
                }
                Ok(false) => {
                    let mut text = [0_u8; 16];
                    let n = std::os::unix::fs::FileExt::read_at(&self.lead, &mut text, 0).unwrap_or(0);
                    let pid = std::str::from_utf8(&text[..n]).ok().and_then(|t| t.trim().parse().ok());
                    self.leader_fd = pid.and_then(|p| process::pidfd(p).ok());
                    if self.leader_fd.is_some() {
                        return;
                    }
                    self.look_at_ms = Some(clock::mono_ms() + AGAIN_MS);
                }
                Err(error) => {
                    tracing::warn!(%error, "leader.lock could not be tried");
                    return;
                }
            }
        }
    }

    /// Watches all other workers, if we lead: anybody may have started them.
    fn meet_new_ones(&mut self) {
        if self.leads {
            let workers = self.run.state.view.workers.iter();
            let new: Vec<u32> = workers.filter(|(_, p)| !self.hired.contains(&p.pid)).map(|(n, _)| *n).collect();
            for n in new {
                self.meet(WorkerNo(n));
            }
        }
    }

    /// If we lead: cancels the run some time after its client has gone, unless the session goes on in another one by then.
    fn watch_client(&mut self) -> Result<(), LogError> {
        let view = &self.run.state.view;
        let Some(grace) = self.run.plan.orphan_grace.filter(|_| self.leads) else { return Ok(()) };
        let Some(process) = view.client.as_ref().filter(|_| view.ended.is_none() && !view.cancelled) else {
            self.client = None;
            return Ok(());
        };
        if self.client.as_ref().is_none_or(|c| c.process != *process) {
            let fd = process::pidfd(process.pid).ok();
            self.client = Some(Client { process: process.clone(), fd, gone_since_ms: None });
        }
        let Some(client) = self.client.as_mut().filter(|c| !process::alive(&c.process)) else { return Ok(()) };
        client.fd = None;
        let now = clock::mono_ms();
        let until = client.gone_since_ms.get_or_insert(now).saturating_add(grace.as_ms());
        if now < until {
            self.look_by(Some(until));
            return Ok(());
        }
        let gone = client.process.clone();
        self.run.transact(|tx, _| {
            let view = &tx.fold.view;
            // Somebody may have adopted it just now.
            if view.ended.is_none() && !view.cancelled && view.client.as_ref() == Some(&gone) {
                let by = "the client is gone".into();
                tx.emit(Draft::run(Body::CancelRequested(CancelRequested { by })))?;
            }
            Ok(())
        })
    }

    /// Watches another worker's process, if we lead.
    fn meet(&mut self, worker: WorkerNo) {
        let Some(process) = self.run.state.view.workers.get(&worker.0) else { return };
        self.hired.insert(process.pid);
        if worker != self.me
            && self.leads
            && !self.peers.contains_key(&worker.0)
            && let Ok(fd) = process::pidfd(process.pid)
        {
            self.peers.insert(worker.0, fd);
        }
    }

    /// Keeps the end of the attempt from reaching other workers, which may be below this one.
    fn spare_workers(&mut self) {
        if let Some(attempt) = &mut self.attempt {
            let logged = self.run.state.view.workers.values().map(|p| p.pid);
            attempt.spare(&logged.chain(self.hired.iter().copied()).collect::<Vec<i32>>());
        }
    }

    fn watch_attempt(&mut self) {
        self.spare_workers();
        if let Some(attempt) = &mut self.attempt {
            let state = &self.run.state;
            let task = &state.tasks[attempt.id.index];
            if !step::is_open(state, &attempt.id) {
                attempt.end(Why::Fenced);
            } else if state.view.cancelled || state.cancels.contains(&attempt.id.index) {
                attempt.end(Why::Cancelled);
            }
            let (progress, ending) = attempt.look(task.line.as_deref());
            if progress.is_some() {
                self.progress = progress;
            }
            if let Some(ending) = ending {
                self.ending = Some((attempt.id.clone(), ending));
                self.attempt = None;
            }
        }
        let mine: Vec<i32> = self.attempt.as_ref().map(|a| a.process().pid).into_iter().collect();
        for pid in spawn::reap_adopted(&mine) {
            // From now on the number may be anybody's.
            self.hired.remove(&pid);
        }
    }

    /// Looks which workers are dead, and ends what is left of their tasks: only then may the task be tried again.
    fn find_dead(&mut self) -> Result<(), LogError> {
        self.dead.clear();
        let view = &self.run.state.view;
        // Also who has left the list while an attempt of his is open: nobody else will end that.
        let nobody = Process { pid: 0, start_time: 0, boot_id: String::new() };
        let tasks = &self.run.state.tasks;
        let holders = self.run.state.running.iter().filter_map(|&i| tasks[i].open.as_ref()).map(|o| o.worker.0);
        let mut all: BTreeMap<u32, &Process> = holders.map(|n| (n, &nobody)).collect();
        all.extend(view.workers.iter().map(|(n, p)| (*n, p)));
        all.remove(&self.me.0);
        if view.boot_id != clock::boot_id() {
            // Who was there before the restart is dead anyway, and has left no process.
            all.retain(|_, process| process.boot_id == clock::boot_id());
        }
        let is_dead = |n: u32, p: &Process| crew::life(&self.run.folder, WorkerNo(n), p) == Life::Dead;
        let dead: Vec<u32> = all.into_iter().filter(|(n, p)| is_dead(*n, p)).map(|(n, _)| n).collect();
        if !dead.is_empty() {
            // What it began between the last look and its death has processes to be ended, too.
            self.run.refresh()?;
        }
        for n in dead {
            if self.end_orphans(WorkerNo(n)) {
                self.peers.remove(&n);
                self.dead.push(WorkerNo(n));
            } else {
                tracing::warn!(worker = n, "a dead worker's task is still running");
                self.look_at_ms = Some(clock::mono_ms() + AGAIN_MS);
            }
        }
        Ok(())
    }

    fn end_orphans(&self, dead: WorkerNo) -> bool {
        let state = &self.run.state;
        state.running.iter().all(|&i| {
            let open = state.tasks[i].open.as_ref().filter(|open| open.worker == dead);
            open.is_none_or(|open| {
                let plan = &self.run.plan;
                let id = plan.tasks[i].id.as_str();
                // A pid from the log is believed only where the process itself carries the attempt's mark.
                let number = open.number.to_string();
                let mark = [(env::RUN, plan.run.as_str()), (env::TASK, id), (env::ATTEMPT, number.as_str())];
                let leader = open.process.clone().filter(|p| process::is_marked(p, &mark));
                let target = attempt::target(plan.run.as_str(), id, open.number, leader);
                let gone = tree::kill_now(&target, ORPHAN_BUDGET);
                if gone && !plan.tasks[i].isolate.is_none() {
                    isolate::rescue(&self.run.folder, &plan.tasks[i].id, dead, open.number);
                }
                gone
            })
        })
    }

    fn transact(&mut self) -> Result<Todo, LogError> {
        let now_ms = clock::mono_ms();
        let progress = self.due_progress(now_ms);
        let facts = Facts { now_ms, boot_id: clock::boot_id(), dead: &self.dead };
        let slot = Slot {
            me: self.me,
            process: &self.process,
            duty: self.duty,
            leads: self.leads,
            leaving: self.leaving,
            attempt: self.attempt.as_ref().map(|a| &a.id),
            ending: self.ending.as_ref().map(|(id, ending)| (id, ending)),
            progress: progress.as_ref(),
        };
        if !step::has_business(&self.run.state, &self.run.plan, facts, slot) {
            return Ok(Todo::default());
        }
        let project = self.run.folder.project.clone();
        let todo = self.run.transact(|tx, plan| {
            let cwd = |i: usize| {
                let task = &plan.tasks[i];
                match task.isolate {
                    Isolate::None => task.cwd.as_ref().map_or_else(|| project.clone(), |c| project.join(c)),
                    // Where below it the project is, only git can tell.
                    Isolate::Worktree => isolate::path_of(&project, plan.run.as_str(), &task.id),
                }
            };
            step::step(tx, plan, facts, slot, |i| cwd(i).to_string_lossy().into_owned())
        })?;
        self.ending = None;
        if self.attempt.is_none() {
            self.scope = None;
        }
        if progress.is_some() {
            self.progress = None;
            self.progress_at_ms = clock::mono_ms() + PROGRESS_MS;
        }
        Ok(todo)
    }

    fn due_progress(&mut self, now_ms: u64) -> Option<Progress> {
        self.attempt.as_ref()?;
        let progress = self.progress.clone()?;
        if now_ms < self.progress_at_ms {
            let at = self.progress_at_ms;
            self.look_by(Some(at));
            return None;
        }
        Some(progress)
    }

    fn begin(&mut self, id: AttemptId) -> Result<(), LogError> {
        let not_mine: Vec<i32> = self.hired.iter().copied().collect();
        let run = &self.run;
        let task = run.plan.tasks[id.index].id.as_str();
        let span = trace::span_of(run.plan.run.as_str(), task, id.number);
        self.scope =
            Some(tracing::error_span!("attempt", task, attempt = id.number, trace = run.state.trace, span).entered());
        let since = run.state.tasks[id.index].open.as_ref().map_or_else(clock::mono_ms, |o| o.since_ms);
        let deadline = sched::attempt_deadline(&run.state, &run.plan, id.index, since);
        let making =
            Making { folder: &run.folder, plan: &run.plan, state: &run.state, worker: self.me, not_mine: &not_mine };
        match Attempt::start(making, id.clone(), deadline) {
            Ok(attempt) => {
                let spawned = Body::Spawned(attempt.process().clone());
                self.attempt = Some(attempt);
                let me = self.me;
                self.run.transact(|tx, plan| step::tell(tx, plan, me, &id, spawned))
            }
            Err(NotStarted { reason, retryable }) => {
                let body = Body::Failed(Ended { reason, ..Ended::default() });
                self.ending = Some((id, Ending { body, retryable }));
                self.look_at_ms = Some(0);
                Ok(())
            }
        }
    }

    fn wait(&mut self, termination: &Termination, longest: Duration) {
        let now = clock::mono_ms();
        let mut at = now.saturating_add(u64::try_from(longest.as_millis()).unwrap_or(u64::MAX));
        let attempt = self.attempt.as_ref().and_then(Attempt::next_look);
        let overdue = hung::next_overdue(&self.run, Some(self.me), None, self.looked_ms);
        let idle = self.attempt.is_none() || self.leads;
        let moment = sched::next_moment(&self.run.state, &self.run.plan, self.looked_ms).filter(|_| idle);
        for earlier in [attempt, moment, overdue, self.look_at_ms].into_iter().flatten() {
            at = at.min(earlier);
        }
        let mut fds: Vec<BorrowedFd<'_>> = vec![termination.fd()];
        fds.extend(self.attempt.as_ref().and_then(Attempt::fd));
        let before_leader = fds.len();
        fds.extend(self.leader_fd.as_ref().map(AsFd::as_fd));
        let before_peers = fds.len();
        fds.extend(self.peers.values().map(AsFd::as_fd));
        // Last: it only has to wake.
        fds.extend(self.client.iter().filter_map(|client| client.fd.as_ref()).map(AsFd::as_fd));
        let bells: Vec<&Bell> = std::iter::once(&self.bell).chain(&self.lead_bell).collect();
        let ready = bell::wait(&bells, &fds, Duration::from_millis(at.saturating_sub(now))).unwrap_or_default();
        let is_ready = |i: usize| ready.get(i).copied().unwrap_or(false);
        let leader_gone = before_leader < before_peers && is_ready(before_leader);
        let gone: Vec<u32> =
            self.peers.keys().enumerate().filter(|(i, _)| is_ready(before_peers + i)).map(|(_, n)| *n).collect();
        if leader_gone {
            self.leader_fd = None;
        }
        for n in gone {
            self.peers.remove(&n);
        }
    }
}
