//! The runs of a project as `cpw top` follows them: every open one with its whole state, a bell and somebody who sees to it
//! that it is worked on; of those that have ended only what their index knows, until one is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::actor::crew::{self, Tended};
use crate::actor::vigil::Vigil;
use crate::base::ids::RunId;
use crate::logic::pace;
use crate::logic::state::State;
use crate::logic::view::View;
use crate::logic::wake::Concern;
use crate::store::bells;
use crate::store::log::{LogError, Tape};
use crate::store::registry;
use crate::store::run::{self, Run, RunDir, RunError};
use crate::sys::bell::Bell;
use crate::sys::clock;
use crate::sys::process;
use crate::ui::lines;
use crate::ui::top::past::Past;
use crate::ui::top::picture::{Opened, Row};

/// Runs that are listed, unless all are wanted.
const LISTED: usize = 100;

/// A run whose state is followed.
pub(super) struct Whole {
    pub(super) run: Run,
    past: Past,
    tape: Option<Tape>,
    /// Whether it goes on, as of the last look.
    is_open: bool,
    /// Only while it does, and where one can be hung: otherwise it is looked at by the clock.
    bell: Option<Bell>,
    vigil: Vigil,
    said: Option<String>,
    stalled: BTreeSet<usize>,
}

enum Known {
    Whole(Box<Whole>),
    /// It has ended, and nobody looks at it.
    Brief(Box<View>),
    /// Its state in a word, and why it cannot be read.
    Broken(&'static str, String),
}

/// The runs.
pub(super) struct Runs {
    project: PathBuf,
    most: usize,
    known: BTreeMap<RunId, Known>,
    rows: Vec<Row>,
}

impl Runs {
    pub(super) fn new(project: &Path, all: bool) -> Runs {
        let most = if all { usize::MAX } else { LISTED };
        Runs { project: project.to_owned(), most, known: BTreeMap::new(), rows: Vec::new() }
    }

    /// The list, open runs first, then the newest.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Looks for runs that are new or have gone: nobody rings for them. `wanted` is listed however old it is.
    pub(super) fn look(&mut self, wanted: Option<&RunId>) -> anyhow::Result<()> {
        let listed = || format!("cannot list {}", run::runs_path(&self.project).display());
        let ids = run::list(&self.project).with_context(listed)?;
        let newest = ids.iter().take(self.most).chain(wanted.into_iter().filter(|id| ids.contains(id)));
        let newest: BTreeSet<RunId> = newest.cloned().collect();
        self.known.retain(|id, known| newest.contains(id) && !matches!(known, Known::Broken("unknown", _)));
        for id in newest {
            if !self.known.contains_key(&id)
                && let Some(known) = open(&self.project, &id)
            {
                self.known.insert(id, known);
            }
        }
        Ok(())
    }

    /// Takes in what is new, and sees to it that somebody works on what is open. Returns whether anything has changed.
    pub(super) fn refresh(&mut self, selected: Option<&RunId>) -> bool {
        for (id, known) in &mut self.known {
            if let Known::Whole(whole) = known {
                if let Err(e) = whole.refresh() {
                    *known = broken(e);
                } else if whole.run.state.view.ended.is_some() && Some(id) != selected {
                    *known = Known::Brief(Box::new(whole.run.state.view.clone()));
                }
            }
        }
        let mut rows: Vec<Row> = self.known.iter().map(|(id, known)| row(id, known)).collect();
        rows.sort_by(|a, b| b.is_active().cmp(&a.is_active()).then_with(|| b.id.cmp(&a.id)));
        let changed = rows != self.rows;
        self.rows = rows;
        changed
    }

    /// The run with its whole state. One that has ended is read now.
    pub(super) fn open(&mut self, id: &RunId) -> Option<&mut Whole> {
        if let Some(Known::Brief(_)) = self.known.get(id) {
            let whole = RunDir::open(&self.project, id).and_then(|folder| Whole::open(&folder));
            self.known.insert(id.clone(), whole.map_or_else(broken, |whole| Known::Whole(Box::new(whole))));
        }
        let Some(Known::Whole(whole)) = self.known.get_mut(id) else { return None };
        if let Err(e) = whole.recall() {
            self.known.insert(id.clone(), broken(e));
            return None;
        }
        match self.known.get_mut(id) {
            Some(Known::Whole(whole)) => Some(whole),
            _ => None,
        }
    }

    /// The same, if it is open already.
    pub(super) fn get(&self, id: &RunId) -> Option<&Whole> {
        match self.known.get(id) {
            Some(Known::Whole(whole)) => Some(whole),
            _ => None,
        }
    }

    fn wholes(&self) -> impl Iterator<Item = &Whole> {
        self.known.values().filter_map(|known| if let Known::Whole(whole) = known { Some(&**whole) } else { None })
    }

    /// What rings when something happens.
    pub(super) fn bells(&self) -> Vec<&Bell> {
        self.wholes().filter_map(|whole| whole.bell.as_ref()).collect()
    }

    /// What can be read once a worker has died.
    pub(super) fn workers(&self) -> Vec<BorrowedFd<'_>> {
        self.wholes().filter_map(|whole| whole.vigil.fd()).collect()
    }

    /// Says which of [`Runs::workers`] can be read.
    pub(super) fn died(&mut self, which: &[bool]) {
        let wholes = self.known.values_mut().filter_map(|k| if let Known::Whole(w) = k { Some(w) } else { None });
        let watching = wholes.filter(|whole| whole.vigil.fd().is_some());
        watching.zip(which).filter(|(_, dead)| **dead).for_each(|(whole, _)| whole.vigil.died());
    }

    /// The longest time without a look.
    pub(super) fn longest(&self) -> Option<Duration> {
        self.wholes().filter(|whole| whole.is_open).map(|whole| whole.vigil.longest()).min()
    }

    /// Whether the picture changes by time alone.
    pub(super) fn moves(&self) -> bool {
        self.wholes().any(|w| w.is_open && !(w.run.state.running.is_empty() && w.run.state.retrying.is_empty()))
    }
}

/// `None`: the folder holds no run.
fn open(project: &Path, id: &RunId) -> Option<Known> {
    let folder = match RunDir::open(project, id) {
        Ok(folder) => folder,
        Err(RunError::NoRun(_)) => return None,
        Err(e) => return Some(broken(e)),
    };
    let whole = match folder.open_view() {
        Ok(hooked) if hooked.view.ended.is_some() => return Some(Known::Brief(Box::new(hooked.view))),
        Ok(_) => Whole::open(&folder),
        Err(e) => Err(e),
    };
    match whole {
        Ok(whole) => Some(Known::Whole(Box::new(whole))),
        Err(RunError::NoRun(_)) => None,
        Err(e) => Some(broken(e)),
    }
}

fn broken(e: RunError) -> Known {
    match e {
        RunError::Damaged { why, .. } => Known::Broken("damaged", why),
        e @ RunError::Plan(_) => Known::Broken("damaged", e.to_string()),
        // Busy, or refused by the system: it says nothing about the run.
        e => Known::Broken("unknown", e.to_string()),
    }
}

impl Whole {
    fn open(folder: &RunDir) -> Result<Whole, RunError> {
        // Hung before the log is read, so that nothing happens unheard in between.
        let bell = bells::hang(folder, &Concern::All).ok();
        let run = folder.open_run()?;
        let is_open = run.state.view.ended.is_none();
        Ok(Whole {
            run,
            past: Past::default(),
            tape: None,
            is_open,
            bell: bell.filter(|_| is_open),
            vigil: Vigil::default(),
            said: None,
            stalled: BTreeSet::new(),
        })
    }

    fn refresh(&mut self) -> Result<(), RunError> {
        if !self.is_open {
            return Ok(());
        }
        if let Some(bell) = &self.bell {
            bell.drain();
        }
        match self.run.refresh() {
            Ok(()) | Err(LogError::Busy) => {}
            Err(e) => return Err(self.run.folder.told(e)),
        }
        if self.run.state.view.ended.is_none() {
            self.tend();
        }
        if self.run.state.view.ended.is_some() {
            (self.is_open, self.bell, self.said) = (false, None, None);
            self.vigil = Vigil::default();
        }
        self.stalled = stalled(&self.run.state);
        Ok(())
    }

    /// Sees to it that somebody works on it.
    fn tend(&mut self) {
        let alone = |run: &Run| !crew::anybody(&run.folder, &run.state.view);
        match self.vigil.keep(&mut self.run) {
            // Busy: the next look tries again.
            Ok(Tended::Alive) | Err(LogError::Busy) => self.said = None,
            Ok(Tended::Hired(worker)) => self.said = Some(format!("all its workers were dead; {worker} goes on")),
            Ok(Tended::Foreign) => self.said = Some(registry::FOREIGN.into()),
            Ok(Tended::Nobody) if alone(&self.run) => {
                self.said = Some("no worker is alive: they die again and again".into());
            }
            Ok(Tended::Nobody) => {}
            Err(e) => self.said = Some(format!("no worker is alive and none could be started: {e}")),
        }
    }

    /// Takes in what its attempts were.
    fn recall(&mut self) -> Result<(), RunError> {
        let Whole { run, past, tape, .. } = self;
        let tape = match tape {
            Some(tape) => tape,
            none => none.insert(run.folder.tape()?),
        };
        match tape.read(|event| past.apply(event, &run.state)) {
            Ok(()) | Err(LogError::Busy) => Ok(()),
            Err(e) => Err(run.folder.told(e)),
        }
    }

    /// As it is drawn.
    pub(super) fn opened(&self) -> Opened<'_> {
        Opened {
            plan: &self.run.plan,
            state: &self.run.state,
            past: &self.past,
            stalled: &self.stalled,
            same_boot: self.run.state.view.boot_id == clock::boot_id(),
        }
    }
}

/// Running tasks whose process, or whose worker, was stopped.
fn stalled(state: &State) -> BTreeSet<usize> {
    let is_stopped = |i: &usize| {
        let open = state.tasks[*i].open.as_ref();
        let worker = open.and_then(|open| state.view.workers.get(&open.worker.0));
        let processes = open.and_then(|open| open.process.as_ref()).into_iter().chain(worker);
        processes.filter_map(process::exists).any(|stat| stat.is_stopped())
    };
    state.running.iter().copied().filter(is_stopped).collect()
}

fn row(id: &RunId, known: &Known) -> Row {
    let (view, whole) = match known {
        Known::Brief(view) => (&**view, None),
        Known::Whole(whole) => (&whole.run.state.view, Some(whole)),
        Known::Broken(word, why) => {
            let (word, said) = (*word, Some(why.clone()));
            return Row { id: id.clone(), word, counts: None, percent: None, rule: None, cancelling: false, said };
        }
    };
    let word = view.ended.as_ref().map_or("active", |end| lines::verdict(end.status));
    let reason = view.ended.as_ref().filter(|end| word != "ok" && end.reason != word).map(|end| end.reason.clone());
    Row {
        id: id.clone(),
        word,
        counts: Some(view.counts),
        percent: whole.filter(|_| view.ended.is_none()).and_then(|whole| pace::percent(&whole.run.state)),
        rule: view.rule.clone(),
        cancelling: view.cancelled && view.ended.is_none(),
        said: whole.and_then(|whole| whole.said.clone()).or(reason),
    }
}
