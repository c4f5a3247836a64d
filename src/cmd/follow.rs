//! Following a run until it ends: a live view on a terminal, plain lines elsewhere, Ctrl-C, and a new worker when all have
//! died. Woken by a bell and by the deaths of workers, not by a clock.

use std::fmt::Write;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::Context;

use crate::actor::crew::{self, Tended};
use crate::actor::vigil::Vigil;
use crate::base::text;
use crate::logic::view::Phase;
use crate::logic::wake::Concern;
use crate::model::event::{Body, CancelRequested, Draft, Verdict};
use crate::store::bells;
use crate::store::log::{LogError, Tape};
use crate::store::registry;
use crate::store::run::Run;
use crate::sys::bell::{self, Bell};
use crate::sys::clock;
use crate::sys::host;
use crate::sys::process::Signal;
use crate::sys::signals::Termination;
use crate::ui::board::{self, Frame};
use crate::ui::lines::{self, Line};
use crate::ui::live::Live;
use crate::ui::paint::{self, Paint};
use crate::ui::print;
use crate::ui::when;

/// Between two frames of the live view, in milliseconds.
const FRAME_MS: u64 = 100;

/// The longest table at the end, in rows.
const MAX_ROWS: usize = 40;

/// Lines of a failed task's stderr that are shown.
const MAX_WORDS: usize = 10;

/// How following ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Followed {
    /// The run is ok.
    Ok,
    /// It failed, or somebody else cancelled it.
    Failed,
    /// It was cancelled from here, or we no longer wait for it.
    Interrupted,
}

/// What a signal means to whoever follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// The run is ours: it is cancelled.
    Own,
    /// The same, and somebody has asked for it already.
    Cancel,
    /// We only look on, and leave.
    Watch,
}

/// Shows `run` until it ends.
pub fn until_end(run: Run, termination: &Termination, manner: Manner) -> anyhow::Result<Followed> {
    let bell = bells::hang(&run.folder, &Concern::All).context("cannot wait for news of the run")?;
    let mut f = Follower {
        screen: Screen::new(),
        tape: run.folder.tape()?,
        first_ts: String::new(),
        interrupted: false,
        said_hopeless: false,
        vigil: Vigil::default(),
        run,
    };
    if manner == Manner::Cancel {
        f.interrupt(Signal::SIGINT as i32)?;
    }
    loop {
        bell.drain();
        match termination.take() {
            None => {}
            Some(_) if manner == Manner::Watch => {
                f.screen.clear();
                return Ok(Followed::Interrupted);
            }
            Some(n) if n == Signal::SIGHUP as i32 || f.interrupted => {
                f.screen.clear();
                let id = &f.run.plan.run;
                let what = if f.interrupted { "is being cancelled" } else { "goes on" };
                print::err(format_args!("cpw: run {id} {what} in the background; look at it: cpw status {id}"));
                return Ok(Followed::Interrupted);
            }
            Some(n) => f.interrupt(n)?,
        }
        f.look()?;
        if let Some(end) = &f.run.state.view.ended {
            let status = end.status;
            f.report();
            return Ok(match status {
                Verdict::Ok => Followed::Ok,
                _ if f.interrupted => Followed::Interrupted,
                Verdict::Failed | Verdict::Cancelled => Followed::Failed,
            });
        }
        f.tend()?;
        f.screen.draw(&f.run);
        f.wait(&bell, termination);
    }
}

struct Follower {
    run: Run,
    screen: Screen,
    /// The events to show: the state takes in some of them on other ways.
    tape: Tape,
    first_ts: String,
    interrupted: bool,
    said_hopeless: bool,
    vigil: Vigil,
}

impl Follower {
    /// Takes in and shows what is new. The state first: what it knows, its end above all, is then on the tape.
    fn look(&mut self) -> anyhow::Result<()> {
        self.run.refresh().map_err(|e| self.run.folder.told(e)).context("cannot follow the run")?;
        let Follower { run, screen, tape, first_ts, .. } = self;
        let read = tape.read(|event| {
            if first_ts.is_empty() {
                first_ts.clone_from(&event.ts);
            }
            if let Some(line) = lines::of(event, &run.plan, &run.state) {
                screen.line(&line, when::between(first_ts, &event.ts).unwrap_or(0));
            }
            screen.dirty = true;
        });
        read.map_err(|e| run.folder.told(e)).context("cannot follow the run")
    }

    fn interrupt(&mut self, signal: i32) -> anyhow::Result<()> {
        self.interrupted = true;
        self.screen.note("cancelling: waiting for the tasks to end (Ctrl-C again: do not wait)");
        request_cancel(&mut self.run, if signal == Signal::SIGINT as i32 { "ctrl-c" } else { "SIGTERM" })?;
        Ok(())
    }

    /// Starts a worker if all are dead.
    fn tend(&mut self) -> anyhow::Result<()> {
        match self.vigil.keep(&mut self.run) {
            // Busy: the next look tries again.
            Ok(Tended::Alive) | Err(LogError::Busy) => {}
            Ok(Tended::Hired(worker)) => {
                self.screen.note(&format!("all workers are dead; {worker} goes on with the run"));
            }
            Ok(tended @ (Tended::Nobody | Tended::Foreign)) => {
                let alone = tended == Tended::Nobody || !crew::anybody(&self.run.folder, &self.run.state.view);
                if self.run.state.view.ended.is_none() && !self.said_hopeless && alone {
                    self.said_hopeless = true;
                    self.screen.note(match tended {
                        Tended::Foreign => registry::FOREIGN,
                        _ => "its workers die again and again: see workers/*/logs/worker.jsonl of the run",
                    });
                }
            }
            Err(e) => return Err(e).context("no worker is alive and none could be started"),
        }
        Ok(())
    }

    fn wait(&mut self, bell: &Bell, termination: &Termination) {
        let mut fds: Vec<BorrowedFd<'_>> = vec![termination.fd()];
        fds.extend(self.vigil.fd());
        let longest = self.vigil.longest();
        let timeout = self.screen.next_frame(&self.run).map_or(longest, |frame| frame.min(longest));
        let ready = bell::wait(&[bell], &fds, timeout).unwrap_or_default();
        if ready.get(1) == Some(&true) {
            self.vigil.died();
        }
    }

    /// The end: a table, and the last words of what failed.
    fn report(&mut self) {
        self.screen.clear();
        let Run { folder, plan, state, .. } = &self.run;
        let paint = self.screen.paint;
        let mut out = String::from("\n");
        out.push_str(&board::outcome(state, plan, MAX_ROWS, paint));
        let failed = |p: Phase| matches!(p, Phase::Failed | Phase::TimedOut | Phase::Lost);
        for (i, task) in state.tasks.iter().enumerate().filter(|(_, t)| failed(t.phase)).take(MAX_ROWS) {
            let id = &plan.tasks[i].id;
            let reason = text::one_line(task.line.as_deref().unwrap_or_default(), 300);
            let _ = writeln!(out, "\n{}", paint.bad(format_args!("{id} {}: {reason}", task.phase.word())));
            let Some(worker) = task.worker else { continue };
            let name = format!("{id}.{}.err", task.attempts);
            let words = folder.worker(worker).and_then(|w| w.sub("logs")).ok().and_then(|l| last_lines(&l, &name));
            // The reason of most failures is the last line already.
            for line in words.filter(|w| w.len() > 1 || !reason.ends_with(&w[0])).unwrap_or_default() {
                let _ = writeln!(out, "    {line}");
            }
        }
        let took = when::between(&state.first_ts, &state.last_ts).map(when::ms).unwrap_or_default();
        let cost = if state.spent_usd > 0.0 { format!(" · ${:.4}", state.spent_usd) } else { String::new() };
        let _ = writeln!(out, "\n{} in {took}{cost}", lines::tally(state.view.counts));
        if state.tasks.iter().any(|t| t.result.is_some()) {
            let _ = writeln!(out, "results below {} (`cpw result TASK` prints one)", folder.shown());
        }
        print::raw(out.as_bytes());
    }
}

/// The last lines of a log of a task, harmless.
fn last_lines(logs: &crate::sys::dir::Dir, name: &str) -> Option<Vec<String>> {
    use std::os::unix::fs::FileExt;
    let file = logs.open_read(name).ok()?;
    let length = file.metadata().ok()?.len();
    let start = length.saturating_sub(8192);
    let mut bytes = vec![0_u8; usize::try_from(length - start).ok()?];
    file.read_exact_at(&mut bytes, start).ok()?;
    let words = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = words.lines().map(|l| text::one_line(l, 300)).filter(|l| !l.is_empty()).collect();
    (!lines.is_empty()).then(|| lines[lines.len().saturating_sub(MAX_WORDS)..].to_vec())
}

/// Asks for the whole run to be cancelled and wakes everybody. `false`: it had ended already.
pub fn request_cancel(run: &mut Run, by: &str) -> anyhow::Result<bool> {
    let asked = run.transact(|tx, _| {
        if tx.fold.view.ended.is_some() {
            return Ok(false);
        }
        if !tx.fold.view.cancelled {
            tx.emit(Draft::run(Body::CancelRequested(CancelRequested { by: by.into() })))?;
        }
        Ok(true)
    });
    asked.context("cannot ask for the run to be cancelled")
}

/// Where lines go: above a live block, or plainly one after the other.
struct Screen {
    paint: Paint,
    live: Option<Live>,
    above: Vec<String>,
    dirty: bool,
    drawn_ms: u64,
    turn: usize,
}

impl Screen {
    fn new() -> Screen {
        let live = paint::can_move(&std::io::stdout()).then(Live::default);
        Screen { paint: Paint::for_stdout(), live, above: Vec::new(), dirty: true, drawn_ms: 0, turn: 0 }
    }

    fn line(&mut self, line: &Line, since_ms: u64) {
        self.dirty = true;
        if self.live.is_none() {
            print::out(format_args!("[{:>8}] {}", when::ms(since_ms), line.text));
        } else if line.mark != lines::Mark::Begin || self.above.is_empty() && line.text.starts_with("run ") {
            self.above.push(format!("{} {}", line.mark.sign(self.paint), line.text));
        }
    }

    fn note(&mut self, text: &str) {
        self.dirty = true;
        if self.live.is_some() {
            self.above.push(self.paint.warn(format_args!("! {text}")));
        } else {
            print::err(format_args!("cpw: {text}"));
        }
    }

    fn draw(&mut self, run: &Run) {
        let now = clock::mono_ms();
        let Some(live) = &mut self.live else { return };
        if !self.dirty && !run_moves(run) || now < self.drawn_ms + FRAME_MS {
            return;
        }
        let (width, height) = host::terminal_size(std::io::stdout()).unwrap_or((80, 24));
        let (width, height) = (usize::from(width), usize::from(height));
        let frame =
            Frame { width, height, now_ms: now, now_unix_ms: clock::unix_ms(), turn: self.turn, paint: self.paint };
        let block = board::lines(&run.state, &run.plan, frame);
        live.show(&std::mem::take(&mut self.above), &block, width);
        self.turn += 1;
        self.dirty = false;
        self.drawn_ms = now;
    }

    /// Takes the block off the screen; what has to be said stays.
    fn clear(&mut self) {
        if let Some(live) = &mut self.live {
            let width = host::terminal_size(std::io::stdout()).map_or(80, |(w, _)| usize::from(w));
            live.show(&std::mem::take(&mut self.above), &[], width);
        }
    }

    /// How long until the next frame is due.
    fn next_frame(&self, run: &Run) -> Option<Duration> {
        self.live.as_ref()?;
        let passed = clock::mono_ms().saturating_sub(self.drawn_ms);
        let after = if self.dirty || run_spins(run) { FRAME_MS } else { 1000 };
        Some(Duration::from_millis(after.saturating_sub(passed).max(1)))
    }
}

/// Whether a running task does not say how far it is, so that only a spinner shows its life.
fn run_spins(run: &Run) -> bool {
    run.state.running.iter().any(|&i| run.state.tasks[i].percent.is_none())
}

/// Whether the picture changes by time alone.
fn run_moves(run: &Run) -> bool {
    !run.state.running.is_empty() || !run.state.retrying.is_empty()
}
