//! `cpw progress` and `cpw summary`: what a task says about itself while it runs.

use std::fs::File;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::base::exit::Exit;
use crate::base::span::Span;
use crate::base::text::one_line;
use crate::cmd::inside::{self, Inside};
use crate::model::event::{Body, Progress};
use crate::sys::poll;
use crate::ui::print;

/// Progress of an attempt is written at most this often.
const EVERY: Duration = Duration::from_secs(1);

/// The longest note and summary, in characters.
const MAX_TEXT: usize = 300;

/// Inside a task: say how far it is
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, in a task's command:\n  \
    cpw progress 60\n  \
    cpw progress 60 --eta 30s --note 'linking'\n\n\
    The last one counts, also where it is lower than the one before. Calls less than a second after the last one are not written (100 always is), so that it may stand in a loop.\n\
    Exit code: 0 · 1 the attempt is over · 3 not inside a task")]
pub struct Args {
    /// How far it is, 0 to 100; a fraction is cut off
    #[arg(value_parser = percent, allow_negative_numbers = true)]
    percent: u8,
    /// How long it will still take, such as 30s or 5m
    #[arg(long, value_parser = span)]
    eta: Option<Span>,
    /// What it is at, in a few words
    #[arg(long)]
    note: Option<String>,
    /// Print what became of it as one JSON object
    #[arg(long)]
    json: bool,
}

/// Inside a task: say in one line what came out, for the session to read
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples, in a task's command:\n  \
    cpw summary \"5 findings, 2 of them serious\"\n  \
    cpw summary \"$(tail -n 1 report.txt)\"\n\n\
    The last one counts; one less than a second after another waits. Without it the first line of the task's result is taken.\n\
    Exit code: 0 · 1 the attempt is over · 3 not inside a task")]
pub struct SummaryArgs {
    /// The line
    text: String,
}

/// A part of a percent is not told; what is no percentage is refused, since nobody knows what was meant.
fn percent(text: &str) -> Result<u8, String> {
    let number = text.trim().trim_end_matches('%').trim_end();
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let is_number = !whole.is_empty() && whole.bytes().chain(part.bytes()).all(|b| b.is_ascii_digit());
    let percent = whole.parse::<u8>().ok().filter(|_| is_number);
    percent.filter(|p| *p < 100 || (*p == 100 && part.bytes().all(|b| b == b'0'))).ok_or_else(|| {
        let why = if number.starts_with('-') {
            "less than nothing cannot be done"
        } else if is_number {
            "more than all cannot be done"
        } else {
            "that is no number"
        };
        format!("{why}; it is 0 to 100")
    })
}

fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).ok_or_else(|| "a duration is written 30s, 5m or 1h".to_owned())
}

/// Runs `cpw progress`.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let inside = inside::attempt("progress")?;
    let told = told(&inside, "told");
    if args.percent < 100 && told.as_ref().is_some_and(is_fresh) {
        say(args, &inside, false);
        return Ok(Exit::Ok);
    }
    let progress = Progress {
        percent: Some(args.percent),
        eta_s: args.eta.map(|s| s.as_ms().div_ceil(1000)),
        note: args.note.as_deref().map(|n| one_line(n, MAX_TEXT)),
        summary: None,
    };
    inside.say(Body::Progress(progress))?;
    mark(told);
    say(args, &inside, true);
    Ok(Exit::Ok)
}

fn say(args: &Args, inside: &Inside, written: bool) {
    if args.json {
        let (task, attempt) = (&inside.task, inside.attempt);
        print::out(json!({ "task": task, "attempt": attempt, "percent": args.percent, "written": written }));
    }
}

/// The file whose time says when something was last said. Without it things are only written more often.
fn told(inside: &Inside, ending: &str) -> Option<File> {
    let name = format!("{}.{}.{ending}", inside.task, inside.attempt);
    inside.folder.worker(inside.worker).and_then(|w| w.sub("logs")?.open_append(name)).ok()
}

fn mark(told: Option<File>) {
    if let Some(file) = told {
        drop(std::io::Write::write_all(&mut &file, b"."));
    }
}

/// Whether progress was written less than [`EVERY`] ago. An empty file was only just made; one from the future is one of
/// before the clock was set.
fn is_fresh(file: &File) -> bool {
    let Ok(meta) = file.metadata() else { return false };
    let age = meta.modified().ok().and_then(|then| SystemTime::now().duration_since(then).ok());
    meta.len() > 0 && age.is_some_and(|age| age < EVERY)
}

/// Runs `cpw summary`.
pub fn run_summary(args: &SummaryArgs) -> anyhow::Result<Exit> {
    let inside = inside::attempt("summary")?;
    let summary = Some(one_line(&args.text, MAX_TEXT));
    let told = told(&inside, "summed");
    if told.as_ref().is_some_and(is_fresh) {
        // The last one counts, so that none may be left out; but a loop must not fill the log.
        drop(poll::wait(&[], Some(EVERY)));
    }
    inside.say(Body::Progress(Progress { summary, ..Progress::default() }))?;
    mark(told);
    Ok(Exit::Ok)
}
