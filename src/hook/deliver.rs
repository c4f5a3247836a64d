//! Handing over news: each once, to the session that owns the run, recorded after it was written. Who does not get the lock
//! delivers nothing, because somebody else is doing it now.

use std::fs::File;

use crate::actor::crew;
use crate::hook::answer::{Answer, MAX_CONTEXT};
use crate::hook::scene::{Scene, deliver_lock, now};
use crate::logic::conductor;
use crate::logic::signals::Occasion;
use crate::model::event::{Body, Delivered, Draft};

/// The most news that one line of the log covers: a longer one would not be written, and all of it said again and again.
const MAX_COVERED: usize = 2000;

/// The hook whose hand-overs are counted, because each makes the turn go on.
const STOP: &str = "Stop";

/// With less room than this, in characters, a run waits for the next delivery: what is told counts as told, be it cut.
const LEAST: usize = 400;

/// What a parcel hands over of a run.
#[derive(Debug, Default)]
struct Covered {
    /// The run's place in the scene.
    run: usize,
    /// Its news.
    news: Vec<u64>,
    /// Its signals.
    signals: Vec<u64>,
    /// How long the text is, in characters.
    chars: u64,
}

/// What is ready to be handed over, with the locks that make it ours.
#[derive(Debug, Default)]
pub(super) struct Parcel {
    /// The text for the model; empty when there is nothing new.
    pub text: String,
    covered: Vec<Covered>,
    /// Held until everything is recorded.
    locks: Vec<File>,
}

/// Collects what is new in all runs of the scene.
pub(super) fn collect(scene: &mut Scene, occasion: Occasion) -> anyhow::Result<Parcel> {
    collect_beside(scene, occasion, "")
}

/// As [`collect`], for an answer that begins with `first`.
pub(super) fn collect_beside(scene: &mut Scene, occasion: Occasion, first: &str) -> anyhow::Result<Parcel> {
    let used = if first.is_empty() { 0 } else { first.chars().count() + 1 };
    let mut parcel = Parcel::default();
    let mut failed = None;
    for (i, run) in scene.runs.iter_mut().enumerate() {
        if !conductor::has_news(&run.hooked.view, occasion, now()) {
            continue;
        }
        let room = MAX_CONTEXT.saturating_sub(used + parcel.text.chars().count() + 1);
        if room < LEAST {
            continue;
        }
        let Some(lock) = deliver_lock(&run.folder)? else { continue };
        // Whoever held the lock a moment ago may have delivered the same; and what cannot be recorded afterwards would be
        // said again at every call: it has to wait for a hook that finds the log free.
        if let Err(e) = run.hooked.transact(&run.folder, |_| Ok(())) {
            failed.get_or_insert(e);
            continue;
        }
        if !run.is_of(&scene.id) {
            continue;
        }
        let shown = run.folder.shown();
        let view = &run.hooked.view;
        let most = usize::try_from(view.conductor.news_chars).unwrap_or(MAX_CONTEXT).min(room);
        let attended = view.ended.is_none() && crew::anybody(&run.folder, view);
        let message = conductor::news(view, &shown, most, occasion, now(), attended);
        let chars = message.text.chars().count();
        if chars == 0 || chars > room {
            continue;
        }
        if !parcel.text.is_empty() {
            parcel.text.push('\n');
        }
        parcel.text.push_str(&message.text);
        let (news, signals) = (message.news, message.signals);
        parcel.covered.push(Covered { run: i, news, signals, chars: chars as u64 });
        parcel.locks.push(lock);
    }
    if !first.is_empty() {
        let end = if parcel.text.is_empty() { "" } else { "\n" };
        parcel.text = format!("{first}{end}{}", parcel.text);
    }
    match failed {
        // Nothing else to say: let it be noted why.
        Some(e) if parcel.text.is_empty() => Err(e.into()),
        _ => Ok(parcel),
    }
}

impl Parcel {
    /// Adds what run `i` says without any news, unless somebody else is delivering from it now or this parcel already does.
    pub(super) fn add(&mut self, scene: &Scene, i: usize, text: &str) -> anyhow::Result<()> {
        if self.covered.iter().any(|c| c.run == i) {
            return Ok(());
        }
        let Some(lock) = deliver_lock(&scene.runs[i].folder)? else { return Ok(()) };
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(text);
        self.covered.push(Covered { run: i, chars: text.chars().count() as u64, ..Covered::default() });
        self.locks.push(lock);
        Ok(())
    }

    /// Writes the answer, and then records what it handed over.
    pub(super) fn send(self, scene: &mut Scene, answer: Answer) -> anyhow::Result<()> {
        let event = scene.event.clone();
        if !answer.context(&self.text).send(&event) {
            return Ok(());
        }
        scene.goes_on |= !self.text.is_empty();
        self.record(scene)
    }

    /// The runs that it speaks of, by their place in the scene.
    pub(super) fn runs(&self) -> impl Iterator<Item = usize> {
        self.covered.iter().map(|c| c.run)
    }

    /// Records what was handed over, once that is done.
    pub(super) fn record(self, scene: &mut Scene) -> anyhow::Result<()> {
        let event = scene.event.clone();
        let counts = event == STOP && !self.covered.is_empty();
        let silent: Vec<usize> = (0..scene.runs.len()).filter(|i| counts && self.runs().all(|own| own != *i)).collect();
        for covered in self.covered {
            let delivered = |news: &[u64], more| Delivered {
                news: news.to_vec(),
                signals: Vec::new(),
                chars: 0,
                hook: event.clone(),
                session: scene.id.to_string(),
                prompt_id: scene.payload.prompt_id.clone(),
                more,
            };
            let mut lines: Vec<Delivered> =
                covered.news.chunks(MAX_COVERED).map(|part| delivered(part, true)).collect();
            if lines.is_empty() {
                lines.push(delivered(&[], false));
            }
            if let Some(last) = lines.last_mut() {
                (last.more, last.signals, last.chars) = (false, covered.signals, covered.chars);
            }
            let run = &mut scene.runs[covered.run];
            run.hooked.transact(&run.folder, |tx| {
                lines.into_iter().try_for_each(|line| tx.emit(Draft::run(Body::Delivered(line))).map(drop))
            })?;
        }
        drop(self.locks);
        for i in silent {
            count_stop(scene, i);
        }
        scene.close_finished()
    }
}

/// Counts a hand-over by Stop in a run that had nothing to say: it is the session that goes on, whichever run made it, and as
/// long as one of its runs is open somebody has to know how often.
fn count_stop(scene: &mut Scene, i: usize) {
    let counted = Delivered {
        news: Vec::new(),
        signals: Vec::new(),
        chars: 0,
        hook: STOP.to_owned(),
        session: scene.id.to_string(),
        prompt_id: scene.payload.prompt_id.clone(),
        more: false,
    };
    let run = &mut scene.runs[i];
    // A run that cannot be written to has nothing to hand over either.
    run.hooked.transact(&run.folder, |tx| tx.emit(Draft::run(Body::Delivered(counted))).map(drop)).ok();
}
