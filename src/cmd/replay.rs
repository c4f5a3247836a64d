//! `cpw replay`: a run told again, or how it stood at one of its events, from its log alone. Looking back changes nothing: no
//! file is written, no lock is taken that others would wait for, and nobody is started.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::base::exit::{Exit, Wrong};
use crate::base::ids::WorkerNo;
use crate::cmd::events;
use crate::cmd::find;
use crate::logic::retell::{Change, Retelling};
use crate::model::event::Event;
use crate::model::plan::Plan;
use crate::store::past::Past;
use crate::store::run::{RunDir, RunError};
use crate::sys::bell;
use crate::sys::signals::{self, Termination};
use crate::ui::ledger::Ledger;
use crate::ui::overview::{self, Entry, Facts, Hand, Hands, Now, Picture, Screen};
use crate::ui::print;
use crate::ui::report;
use crate::ui::when;

/// The longest pause that is kept, in milliseconds: a day.
const LONGEST: f64 = 86_400_000.0;

/// Tell a run again, event by event, or show how it stood at one
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw replay                      the newest run here: on a terminal step by step, else all events\n  \
    cpw replay 20261121-10 --to 42  how that run stood at event 42, as `cpw status` would have shown it\n  \
    cpw replay --to 42 --json       the same for programs, as in docs/status.md\n  \
    cpw replay --speed 10           with its pauses, ten times as fast\n  \
    cpw replay --json | jq -c .     every event with the tasks that it has changed\n\n\
    It reads the log and nothing else, and changes nothing: also of a run that goes on, that is damaged (up to the\n\
    damage), or that somebody else has made. `cpw events` has the numbers of the events.")]
pub struct Args {
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    run: Option<String>,
    /// Show how the run stood behind this event
    #[arg(long, value_name = "SEQ", conflicts_with_all = ["step", "speed"])]
    to: Option<u64>,
    /// Step by step: Enter for the next event, `b` back, `g N` to one, `s` how the run stands, `q` ends
    #[arg(long, conflicts_with_all = ["speed", "json"])]
    step: bool,
    /// With the pauses of the run, divided by X
    #[arg(long, value_name = "X", value_parser = speed)]
    speed: Option<f64>,
    /// The time since the run began instead of the time of day
    #[arg(long, conflicts_with_all = ["to", "json"])]
    since_start: bool,
    /// JSON: one object with --to, else one for every event
    #[arg(long)]
    json: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
    number.ok_or_else(|| "must be a number above 0".to_owned())
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let project = find::project()?;
    let folder = find::run(&project, args.run.as_deref())?;
    let (plan, _) = folder.plan()?;
    let (past, sound) = Past::open(&folder)?;
    let told = Retelling::new(&plan);
    let story = Story { plan: &plan, folder: &folder, past, told, ledger: events::ledger(args.since_start), sound };
    if let Some(seq) = args.to {
        return story.show(seq, args.json.then_some(project.as_path()));
    }
    let people = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if args.step || (people && args.speed.is_none() && !args.json) {
        return story.step();
    }
    let termination = args.speed.map(|_| signals::catch_termination()).transpose()?;
    story.tell(args.json, args.speed.zip(termination.as_ref()))
}

/// A run that is told again.
struct Story<'a> {
    plan: &'a Plan,
    folder: &'a RunDir,
    past: Past,
    told: Retelling,
    ledger: Ledger,
    /// What keeps it from being told to its end.
    sound: Result<(), RunError>,
}

/// An event that was told.
struct Told {
    event: Event,
    line: Vec<u8>,
    changes: Vec<Change>,
}

impl Story<'_> {
    /// The number of the event that was told last.
    fn at(&self) -> u64 {
        self.told.state.view.seq
    }

    fn next(&mut self) -> anyhow::Result<Option<Told>> {
        if self.at() >= self.past.len() {
            return Ok(None);
        }
        let (event, line) = self.past.event(self.at() + 1).context("cannot read events.jsonl")?;
        if event.seq == 1 {
            self.ledger.begun.clone_from(&event.ts);
        }
        let changes = self.told.apply(&event);
        Ok(Some(Told { event, line, changes }))
    }

    /// Goes to event `seq`, 0 for before the first, or to the last there is. Returns what was told last on the way.
    fn go(&mut self, seq: u64) -> anyhow::Result<Option<Told>> {
        if seq < self.at() {
            self.told = Retelling::new(self.plan);
        }
        let mut last = None;
        while self.at() < seq
            && let Some(told) = self.next()?
        {
            last = Some(told);
        }
        Ok(last)
    }

    fn screen(&self) -> Screen<'static> {
        Screen { width: self.ledger.columns, ..Screen::wide(self.ledger.paint) }
    }

    /// How the run stands, as `cpw status RUN` would have shown it: by what it wrote, and at the time of its last event.
    fn with_picture<T>(&self, show: impl FnOnce(&Entry<'_>) -> T) -> T {
        let state = &self.told.state;
        let passed = when::between(&state.first_ts, &state.last_ts).unwrap_or(0);
        let now = Now {
            mono_ms: state.since_ms.saturating_add(passed),
            unix_ms: when::unix_ms(&state.last_ts).and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0),
            boot_id: &state.view.boot_id,
        };
        let hands = state.view.workers.iter();
        let facts = Facts {
            folder: self.folder.path().to_owned(),
            shown: self.folder.shown(),
            hands: hands.map(|(&n, p)| Hand { worker: WorkerNo(n), pid: p.pid, alive: true }).collect(),
            tended: Hands::Alive,
            stopped: BTreeSet::new(),
            // What tasks had written by then, and what others held, is not in this log.
            written: BTreeMap::new(),
            blocked: BTreeMap::new(),
        };
        show(&Entry::Whole(Picture { plan: self.plan, state, facts: &facts, now }))
    }

    /// `--to`.
    fn show(mut self, seq: u64, json_of: Option<&std::path::Path>) -> anyhow::Result<Exit> {
        let last = self.past.len();
        if seq == 0 || seq > last {
            self.sound?;
            let what = format!("run {} has no event {seq}", self.plan.run);
            return Err(Wrong::with_hint(what, format!("it has the events 1 to {last}: cpw events")).into());
        }
        self.go(seq)?;
        if let Some(project) = json_of {
            let run = self.with_picture(report::run);
            let ts = &self.told.state.last_ts;
            print::out(json!({ "version": 1, "project": project, "seq": seq, "last": last, "ts": ts, "runs": [run] }));
        } else {
            let text = self.with_picture(|entry| overview::show(entry, true, &self.screen()));
            print::raw(format!("{}\n{text}", self.place(seq)).as_bytes());
        }
        Ok(Exit::Ok)
    }

    /// `event 42 of 77, 10:11:12.345, +0:00:03.210`
    fn place(&self, seq: u64) -> String {
        let state = &self.told.state;
        let since = when::since(when::between(&state.first_ts, &state.last_ts).unwrap_or(0));
        let text = format!("event {seq} of {}, {}, {since}", self.past.len(), when::clock(&state.last_ts));
        self.ledger.paint.dim(text)
    }

    /// All events, one after the other.
    fn tell(mut self, json: bool, paced: Option<(f64, &Termination)>) -> anyhow::Result<Exit> {
        let mut before = String::new();
        while let Some(told) = self.next()? {
            if let Some((speed, termination)) = paced
                && !before.is_empty()
                && pause(&before, &told.event.ts, speed, termination)?
            {
                return Ok(Exit::Interrupted);
            }
            before.clone_from(&told.event.ts);
            let text = if json { self.json(&told) } else { self.text(&told) };
            if !print::raw(text.as_bytes()) {
                return Ok(Exit::Ok);
            }
        }
        self.sound?;
        Ok(Exit::Ok)
    }

    fn text(&self, told: &Told) -> String {
        let Told { event, line, changes } = told;
        self.ledger.row(event, line, self.plan, &self.told.state) + &self.ledger.changes(self.plan, changes)
    }

    fn json(&self, told: &Told) -> String {
        let change = |c: &Change| json!({ "task": self.plan.tasks[c.task].id, "from": c.from, "to": c.to });
        let changes: Vec<Value> = told.changes.iter().map(change).collect();
        let mut object = serde_json::Map::new();
        let line: Value = serde_json::from_slice(&told.line).unwrap_or_default();
        for key in ["seq", "t", "ts", "worker", "task", "attempt"] {
            object.extend(line.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        object.insert("changes".into(), changes.into());
        format!("{}\n", Value::from(object))
    }

    /// Step by step, as somebody types it. Whoever pipes the same lines in gets the same, without the prompt.
    fn step(mut self) -> anyhow::Result<Exit> {
        let people = std::io::stdin().is_terminal();
        let mut out = format!("run {}, {} events. {HELP}\n", self.plan.run, self.past.len());
        loop {
            if people {
                out.push_str(&self.prompt());
            }
            if !print::raw(out.as_bytes()) {
                return Ok(Exit::Ok);
            }
            let mut typed = String::new();
            if std::io::stdin().read_line(&mut typed).context("cannot read what is typed")? == 0 {
                return Ok(Exit::Ok);
            }
            out = match Step::parse(&typed) {
                Some(Step::Quit) => return Ok(Exit::Ok),
                Some(Step::State) => self.state(),
                Some(Step::Next) => match self.next()? {
                    Some(told) => self.text(&told),
                    None => self.end(),
                },
                Some(Step::Back) => self.jump(self.at().saturating_sub(1))?,
                Some(Step::Go(0)) => self.jump(0)?,
                Some(Step::Go(seq)) => self.jump(seq)? + &self.state(),
                None => format!("{HELP}\n"),
            };
        }
    }

    fn prompt(&self) -> String {
        self.ledger.paint.bold(format_args!("[{}/{}] ", self.at(), self.past.len()))
    }

    fn jump(&mut self, seq: u64) -> anyhow::Result<String> {
        let seq = seq.min(self.past.len());
        // From before it, so that what it has changed is told.
        if seq <= self.at() {
            self.go(seq.saturating_sub(1))?;
        }
        Ok(self.go(seq)?.map_or_else(|| "before the first event\n".to_owned(), |told| self.text(&told)))
    }

    fn state(&self) -> String {
        if self.at() == 0 {
            return "before the first event\n".to_owned();
        }
        self.with_picture(|entry| overview::show(entry, false, &self.screen()))
    }

    fn end(&self) -> String {
        match &self.sound {
            Ok(()) => "that was the last event: b back, g N to event N, s how it stands, q ends\n".to_owned(),
            Err(e) => self.ledger.paint.bad(format_args!("it can be told no further: {e}")) + "\n",
        }
    }
}

/// What can be typed.
const HELP: &str = "Enter next event · b back · g N to event N · s how the run stands · q end";

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Next,
    Back,
    Go(u64),
    State,
    Quit,
}

impl Step {
    fn parse(typed: &str) -> Option<Step> {
        match typed.trim() {
            "" | "n" => Some(Step::Next),
            "b" => Some(Step::Back),
            "s" => Some(Step::State),
            "q" => Some(Step::Quit),
            other => other.strip_prefix('g').unwrap_or(other).trim().parse().ok().map(Step::Go),
        }
    }
}

/// Waits as long as the run did, divided by `speed`. `true`: somebody wants an end.
fn pause(before: &str, now: &str, speed: f64, termination: &Termination) -> anyhow::Result<bool> {
    let ms = when::between(before, now).unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a pause of hours is not told to the millisecond")]
    let wanted = (ms as f64 / speed).min(LONGEST);
    bell::wait(&[], &[termination.fd()], Duration::from_secs_f64(wanted / 1000.0))?;
    Ok(termination.take().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_is_understood() {
        for (typed, step) in [
            ("\n", Some(Step::Next)),
            ("b\r\n", Some(Step::Back)),
            ("g 17\n", Some(Step::Go(17))),
            ("g17", Some(Step::Go(17))),
            ("17", Some(Step::Go(17))),
            ("s", Some(Step::State)),
            ("q", Some(Step::Quit)),
            ("g x", None),
            ("help", None),
        ] {
            assert_eq!(Step::parse(typed), step, "{typed:?}");
        }
        assert!(speed("10").is_ok() && ["0", "-1", "inf", "x"].iter().all(|x| speed(x).is_err()));
    }
}
