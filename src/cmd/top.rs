//! `cpw top`, and `cpw status --watch` on a terminal: the runs of this project, live, on the whole screen. Here is what the
//! view of `ui::top` needs from outside: it is woken by bells, by the keyboard and by signals, collects what is shown, and does
//! what is asked, with the same hands as `cpw cancel` and `cpw retry`. It never holds a run up: it reads without the log's
//! lock.

mod output;
mod runs;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::output::{Of, Reader};
use self::runs::Runs;
use crate::base::exit::{Exit, Wrong};
use crate::base::ids::RunId;
use crate::cmd::{again, cancel, find};
use crate::logic::again::Fate;
use crate::store::run::RunDir;
use crate::sys::bell;
use crate::sys::clock;
use crate::sys::host;
use crate::sys::poll;
use crate::sys::signals::{self, Termination};
use crate::ui::lines;
use crate::ui::paint;
use crate::ui::print;
use crate::ui::top::draw::draw;
use crate::ui::top::facts;
use crate::ui::top::keys::{Key, Keys};
use crate::ui::top::picture::Picture;
use crate::ui::top::screen::Screen;
use crate::ui::top::view::{Action, Page, Scroll, Shows, View};

/// Between two pictures that nobody has pressed a key for.
const FRAME: Duration = Duration::from_millis(100);

/// How often times move on, while something runs.
const TICK: Duration = Duration::from_secs(1);

/// How often it looks for new runs: nobody rings for them.
const LOOK: Duration = Duration::from_secs(2);

/// How often the output of a running task is looked at: nobody rings for a line.
const LINES: Duration = Duration::from_millis(250);

/// How long the rest of a key's sequence is waited for.
const REST: Duration = Duration::from_millis(50);

/// Look at the runs of this project, live, on the whole screen
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw top               all runs here, open ones first\n  \
    cpw top 20261121-10   the same, beginning with this run\n\n\
    Arrows, Tab and Enter move; l shows a task's output, t a timeline, c cancels, r runs again; ? lists all keys, q leaves.\n\
    Runs go on when you leave. An open run whose workers are all dead gets a new one: looking finishes what was left.\n\
    Without a terminal: cpw status --watch\n\n\
    Exit code: 0 left by q or Esc · 130 left by Ctrl-C or a signal")]
pub struct Args {
    /// The run to begin with: its id or a unique beginning of it (the newest open one where absent)
    run: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if !fits() {
        let hint = "`cpw status --watch` tells every change line by line, `cpw status` shows it once";
        return Err(
            Wrong::with_hint("cpw top needs a terminal that can move its cursor, and here is none", hint).into()
        );
    }
    on_screen(&find::project()?, args.run.as_deref(), false)
}

/// Whether there is a terminal to fill.
pub(super) fn fits() -> bool {
    paint::can_move(&std::io::stdout()) && Keyboard::find().is_some()
}

/// The view, until somebody leaves it.
pub(super) fn on_screen(project: &Path, given: Option<&str>, all: bool) -> anyhow::Result<Exit> {
    let wanted = given.map(|given| find::run(project, Some(given))).transpose()?;
    let wanted = wanted.as_ref().and_then(|f| RunId::new(f.path().file_name()?.to_str()?).ok());
    let termination = signals::catch_termination()?;
    signals::catch_screen(&termination)?;
    let Some(keyboard) = Keyboard::find() else { return Ok(Exit::Usage) };
    let mut top = Top {
        name: project.file_name().unwrap_or(project.as_os_str()).to_string_lossy().into_owned(),
        project: project.to_owned(),
        runs: Runs::new(project, all),
        view: View::on(wanted.clone()),
        wanted,
        reader: Reader::default(),
        note: None,
        turn: 0,
        colour: std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        termination,
        keyboard,
        keys: Keys::default(),
        looked_ms: None,
        drawn_ms: 0,
    };
    // Before the screen is taken: what cannot be read is said where it stays.
    top.look()?;
    let mut screen = Screen::enter()?;
    let left = top.until_left(&mut screen);
    drop(screen);
    if let Some(text) = top.farewell() {
        print::out(text);
    }
    left
}

/// Where keys come from.
enum Keyboard {
    Stdin,
    Terminal(File),
}

impl Keyboard {
    fn find() -> Option<Keyboard> {
        if host::is_terminal(poll::stdin()) {
            return Some(Keyboard::Stdin);
        }
        OpenOptions::new().read(true).write(true).open("/dev/tty").ok().map(Keyboard::Terminal)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Keyboard::Stdin => poll::stdin(),
            Keyboard::Terminal(file) => file.as_fd(),
        }
    }
}

struct Top {
    project: PathBuf,
    name: String,
    runs: Runs,
    view: View,
    /// Listed however old it is.
    wanted: Option<RunId>,
    reader: Reader,
    note: Option<String>,
    turn: usize,
    colour: bool,
    termination: Termination,
    keyboard: Keyboard,
    keys: Keys,
    looked_ms: Option<u64>,
    drawn_ms: u64,
}

/// What a signal, a key or the terminal's end has made of the loop.
enum Next {
    Go,
    Draw,
    Redraw,
    Leave(Exit),
    Suspend,
}

impl Top {
    fn until_left(&mut self, screen: &mut Screen) -> anyhow::Result<Exit> {
        let mut dirty = true;
        let mut away = false;
        loop {
            if let Some(exit) = self.signals(screen, &mut away)? {
                return Ok(exit);
            }
            dirty |= self.collect()?;
            if away && host::is_foreground(self.keyboard.fd()) {
                screen.take()?;
                (away, dirty) = (false, true);
            }
            let size = Screen::size();
            dirty |= size != self.view.size || self.is_due();
            if dirty && !away {
                self.view.size = size;
                if self.show(screen).is_err() {
                    // The terminal has gone.
                    return Ok(Exit::Interrupted);
                }
                dirty = false;
            }
            match self.wait(away)? {
                Next::Go => {}
                Next::Draw => dirty = true,
                Next::Redraw => {
                    screen.forget();
                    dirty = true;
                }
                Next::Leave(exit) => return Ok(exit),
                Next::Suspend => suspend(screen, &mut away)?,
            }
        }
    }

    /// What signals ask for.
    fn signals(&mut self, screen: &mut Screen, away: &mut bool) -> anyhow::Result<Option<Exit>> {
        if self.termination.take().is_some() {
            return Ok(Some(Exit::Interrupted));
        }
        let asked = signals::Screen::take();
        if asked.stop {
            suspend(screen, away)?;
        } else if asked.continued && !*away {
            // Stopped by a signal that nobody can catch: whoever had the terminal meanwhile has set it as they like.
            screen.forget();
            *away = true;
        }
        Ok(None)
    }

    fn look(&mut self) -> anyhow::Result<()> {
        self.looked_ms = Some(clock::mono_ms());
        self.runs.look(self.wanted.as_ref())
    }

    /// Takes in what is new of the runs, and of the output that is seen.
    fn collect(&mut self) -> anyhow::Result<bool> {
        let now = clock::mono_ms();
        if self.looked_ms.is_none_or(|then| now >= then.saturating_add(millis(LOOK))) {
            self.look()?;
        }
        let mut changed = self.runs.refresh(self.view.run.as_ref());
        changed |= self.settle();
        Ok(changed)
    }

    /// Brings the selection, and what is read for it, in line with what there is.
    fn settle(&mut self) -> bool {
        let rows = self.runs.rows();
        if !rows.iter().any(|row| Some(&row.id) == self.view.run.as_ref()) {
            self.view.run = rows.first().map(|row| row.id.clone());
        }
        let seq = |top: &Top| Some(top.runs.get(top.view.run.as_ref()?)?.run.state.view.seq);
        let before = seq(self);
        if let Some(id) = &self.view.run {
            self.runs.open(id);
        }
        let mut view = self.view.clone();
        view.settle(&self.picture());
        self.view = view;
        self.reader.open(self.of());
        let folder = self.view.run.as_ref().and_then(|id| self.runs.get(id)).map(|whole| &whole.run.folder);
        let rows = usize::from(self.view.size.1);
        let output = folder.is_some_and(|folder| self.reader.refresh(folder, rows));
        output || before != seq(self)
    }

    /// Whose output is seen.
    fn of(&self) -> Result<Of, String> {
        let Some(whole) = self.view.run.as_ref().and_then(|id| self.runs.get(id)) else { return Err(String::new()) };
        let opened = whole.opened();
        let Some(task) = opened.plan.tasks.get(self.view.task) else { return Err(String::new()) };
        let tries = opened.past.of(self.view.task);
        let one = tries.iter().find(|t| Some(t.number) == self.view.attempt).or(tries.last());
        match one {
            None => Err("it has not begun".into()),
            Some(one) => match one.worker {
                Some(worker) => Ok(Of { task: task.id.clone(), worker, attempt: one.number }),
                None => Err("it was done in an earlier run, which has its output".into()),
            },
        }
    }

    fn picture(&self) -> Picture<'_> {
        Picture {
            project: &self.name,
            runs: self.runs.rows(),
            run: self.view.run.as_ref().and_then(|id| self.runs.get(id)).map(runs::Whole::opened),
            output: &self.reader.output,
            note: self.note.as_deref(),
            now_ms: clock::mono_ms(),
            now_unix_ms: clock::unix_ms(),
            turn: self.turn,
            colour: self.colour,
        }
    }

    fn show(&mut self, screen: &mut Screen) -> std::io::Result<()> {
        self.settle();
        self.turn = self.turn.wrapping_add(1);
        self.drawn_ms = clock::mono_ms();
        let picture = self.picture();
        screen.show(self.view.size, self.termination.fd(), |buffer| draw(buffer, &picture, &self.view))
    }

    /// Whether times have to move on.
    fn is_due(&self) -> bool {
        self.runs.moves() && clock::mono_ms() >= self.drawn_ms.saturating_add(millis(TICK))
    }

    /// Waits for whatever comes first, and takes in the keys.
    fn wait(&mut self, away: bool) -> anyhow::Result<Next> {
        let typed = if away { None } else { Some(self.keyboard.fd()) };
        let mut fds: Vec<BorrowedFd<'_>> = vec![self.termination.fd()];
        fds.extend(typed);
        // Not more pictures than anybody can look at: for so long only keys and signals count.
        let rest = millis(FRAME).saturating_sub(clock::mono_ms().saturating_sub(self.drawn_ms));
        let mut ready = if rest > 0 { bell::wait(&[], &fds, Duration::from_millis(rest))? } else { vec![false] };
        if !ready.contains(&true) {
            fds.extend(self.runs.workers());
            ready = bell::wait(&self.runs.bells(), &fds, self.timeout(away))?;
            self.runs.died(ready.get(1 + usize::from(!away)..).unwrap_or_default());
        }
        if !away && ready.get(1) == Some(&true) {
            let mut bytes = [0; 1024];
            match poll::read(self.keyboard.fd(), &mut bytes) {
                Ok(0) => return Ok(Next::Leave(Exit::Interrupted)),
                Ok(n) => self.keys.feed(&bytes[..n]),
                Err(e) if matches!(e.kind(), std::io::ErrorKind::Interrupted | std::io::ErrorKind::WouldBlock) => {}
                Err(_) => return Ok(Next::Leave(Exit::Interrupted)),
            }
            return Ok(self.typed());
        }
        if self.keys.is_pending() && !ready.contains(&true) {
            return Ok(self.keys.settle().map_or(Next::Go, |key| self.press(key)));
        }
        Ok(Next::Go)
    }

    fn timeout(&self, away: bool) -> Duration {
        let since = clock::mono_ms().saturating_sub(self.drawn_ms);
        let mut timeout = self.runs.longest().map_or(LOOK, |longest| longest.min(LOOK));
        if self.keys.is_pending() {
            timeout = timeout.min(REST);
        }
        if away || self.runs.moves() {
            timeout = timeout.min(TICK.saturating_sub(Duration::from_millis(since)).max(Duration::from_millis(1)));
        }
        if !away && self.follows() { timeout.min(LINES) } else { timeout }
    }

    /// Whether the output of a task that runs is on the screen.
    fn follows(&self) -> bool {
        let task = self.picture().run.and_then(|run| run.state.tasks.get(self.view.task));
        self.view.page != Page::Timeline && task.is_some_and(|task| task.open.is_some())
    }

    /// What the keys do that were typed, one after the other: each acts on what the one before has made.
    fn typed(&mut self) -> Next {
        while let Some(key) = self.keys.next() {
            match self.press(key) {
                Next::Go | Next::Draw => {}
                other => return other,
            }
            self.settle();
        }
        Next::Draw
    }

    fn press(&mut self, key: Key) -> Next {
        self.note = None;
        let mut view = self.view.clone();
        let action = view.key(key, &self.picture());
        self.view = view;
        match action {
            Action::Nothing => {}
            Action::Redraw => return Next::Redraw,
            Action::Leave => return Next::Leave(Exit::Ok),
            Action::Interrupt => return Next::Leave(Exit::Interrupted),
            Action::Suspend => return Next::Suspend,
            Action::Say(text) => self.note = Some(text),
            Action::Scroll(scroll) => self.scroll(scroll),
            Action::Cancel(task) => self.note = Some(self.cancel(task).unwrap_or_else(|e| told(&e))),
            Action::Retry => self.note = Some(self.retry().unwrap_or_else(|e| told(&e))),
        }
        Next::Draw
    }

    fn scroll(&mut self, scroll: Scroll) {
        let rows = self.view.output_rows(&self.picture());
        let [out, err] = &self.reader.output.streams;
        let n = usize::from(self.view.shows == Shows::Err || (self.view.shows == Shows::Both && out.bytes == 0));
        // What is left of the window where both are shown.
        let below = if self.view.shows == Shows::Both && n == 0 && err.bytes > 0 { rows / 3 + 1 } else { 0 };
        self.reader.scroll(n, scroll, rows.saturating_sub(below).max(1));
    }

    /// As `cpw cancel`, without waiting for what comes of it: that is seen.
    fn cancel(&mut self, task: Option<usize>) -> anyhow::Result<String> {
        let Some(whole) = self.view.run.as_ref().and_then(|id| self.runs.open(id)) else {
            return Ok("there is no run to cancel".into());
        };
        cancel::check(&whole.run.folder)?;
        let what = match task {
            Some(i) => whole.run.plan.tasks.get(i).map_or_else(String::new, |task| task.id.to_string()),
            None => "the run".into(),
        };
        let asked = cancel::request(&mut whole.run, task)?;
        Ok(if asked { format!("asked to cancel {what}") } else { format!("{what} is over already; nothing to cancel") })
    }

    /// As `cpw retry --detach`.
    fn retry(&mut self) -> anyhow::Result<String> {
        let Some(id) = &self.view.run else { return Ok("there is no run to retry".into()) };
        let ready = again::prepare("retry", &self.project, &RunDir::open(&self.project, id)?, &[])?;
        if ready.count(Fate::Again) == 0 {
            return Ok("everything in it is done".into());
        }
        let run = ready.start()?;
        let text = ready.told(&run);
        self.view.run = Some(run.plan.run.clone());
        self.look()?;
        self.runs.refresh(self.view.run.as_ref());
        Ok(text)
    }

    /// What stays on the screen: how the selected run stands.
    fn farewell(&mut self) -> Option<String> {
        let id = self.view.run.clone()?;
        let row = self.runs.rows().iter().find(|row| row.id == id)?;
        let counts = row.counts.map(lines::tally).unwrap_or_default();
        let text = format!("run {id}: {}, {counts}", row.word);
        Some(self.runs.get(&id).map_or(text, |whole| facts::farewell(whole.opened())))
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Gives the terminal back, and stops until somebody lets us go on.
fn suspend(screen: &mut Screen, away: &mut bool) -> anyhow::Result<()> {
    if !*away {
        screen.give_back();
    }
    *away = true;
    signals::stop()?;
    Ok(())
}

/// An error in one line, with what to do about it.
fn told(error: &anyhow::Error) -> String {
    let hint = error.chain().find_map(|e| e.downcast_ref::<Wrong>()).and_then(|wrong| wrong.hint.as_deref());
    hint.map_or_else(|| format!("{error:#}"), |hint| format!("{error:#}; {hint}"))
}
