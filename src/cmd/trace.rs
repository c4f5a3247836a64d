//! `cpw trace`: a run as a picture: one page for a browser, trace events for Perfetto, or what bounded it in words.

use std::fs::OpenOptions;
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::actor::crew;
use crate::base::exit::{Exit, Wrong};
use crate::base::text;
use crate::cmd::{above, find};
use crate::logic::state::State;
use crate::logic::timeline::{Micros, Recorder, Timeline};
use crate::store::file::{self, Rights};
use crate::store::leases;
use crate::store::log::Tape;
use crate::store::run::RunDir;
use crate::sys::clock;
use crate::sys::dir::Dir;
use crate::ui::picture::Picture;
use crate::ui::{bounds, chrome, page, print};

/// What the picture is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One page for a browser, which needs nothing else
    Html,
    /// Trace events as JSON, for Perfetto and Chrome's own viewer
    Chrome,
    /// What bounded the run, in words
    Text,
}

/// Show where a run's time went: a page for a browser, trace events, or words
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw trace                          what bounded the newest run here, in words\n  \
    cpw trace -o run.html              a page: timeline, what bounded it, every task\n  \
    cpw trace 20260102 -o run.json     the same run for ui.perfetto.dev\n  \
    cpw trace --format chrome | gzip > run.json.gz\n\n\
    Without --format, the file's name decides (.html, .json); without a file, a terminal gets words and everything else \
    the page. The page loads nothing from anywhere. A run that is not over is told as of now.")]
pub struct Args {
    /// The run: its id or a unique beginning of it (the newest one here where absent)
    run: Option<String>,
    /// What to make
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Write to this file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long, requires = "output")]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let format = format(args)?;
    let project = find::project()?;
    let folder = find::run(&project, args.run.as_deref())?;
    let (plan, _) = folder.plan()?;
    let mut state = State::new(&plan);
    let mut recorder = Recorder::new(&plan);
    let read = folder.tape_as_it_is()?.read(|event| {
        state.apply(event);
        recorder.apply(event);
    });
    // Only beside the picture: without it the waits for leases are part of what waited.
    let leases = folder.path().parent().map(|runs| runs.join(leases::FOLDER));
    if let Some(mut tape) = leases.and_then(|path| Dir::open_nofollow(path).ok()).and_then(|dir| Tape::open(&dir).ok())
    {
        drop(tape.read(|event| recorder.lease(event)));
    }
    let timeline = recorder.finish(now_if_alive(&folder, &state));
    let read = read.map_err(|e| folder.told(e)).and_then(|()| folder.check());
    if state.view.seq == 0 {
        read?;
        return Err(Wrong::new(format!("run {} has no event yet", plan.run)).into());
    }
    let damage = read.err().map(|why| format!("{why}; what is shown ends before that, with event {}", state.view.seq));
    let note = damage.as_deref().or_else(|| unfinished(&timeline, &folder, &state));
    let project = project.file_name().unwrap_or_default().to_string_lossy();
    let picture = Picture::new(&plan, &state, &timeline, &project, note);
    let made = match format {
        Format::Html => page::html(&picture),
        Format::Chrome => chrome::trace(&picture).to_string() + "\n",
        Format::Text => words(&picture, args.run.is_some()),
    };
    match &args.output {
        Some(path) if path.as_os_str() != "-" => {
            save(path, made.as_bytes(), args.force)?;
            print::err(format_args!("cpw: {}", look(path, format)));
        }
        _ => {
            print::raw(made.as_bytes());
        }
    }
    Ok(if damage.is_some() { Exit::Failed } else { Exit::Ok })
}

fn format(args: &Args) -> Result<Format, Wrong> {
    if let Some(format) = args.format {
        return Ok(format);
    }
    let Some(path) = args.output.as_deref().filter(|path| path.as_os_str() != "-") else {
        return Ok(if std::io::stdout().is_terminal() { Format::Text } else { Format::Html });
    };
    match path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase).as_deref() {
        Some("html" | "htm") => Ok(Format::Html),
        Some("json") => Ok(Format::Chrome),
        Some("txt") => Ok(Format::Text),
        _ => Err(Wrong::with_hint(
            format!("the name of {} does not say what to make", path.display()),
            "name it .html or .json, or add --format html, chrome or text",
        )),
    }
}

/// A run that somebody works on is told as of now; one whose workers are all dead as of its last event.
fn now_if_alive(folder: &RunDir, state: &State) -> Option<Micros> {
    let alive = state.view.ended.is_none() && crew::anybody(folder, &state.view);
    alive.then(|| i64::try_from(clock::unix_ms().saturating_mul(1000)).unwrap_or(Micros::MAX))
}

fn unfinished(timeline: &Timeline, folder: &RunDir, state: &State) -> Option<&'static str> {
    match (&timeline.ended, now_if_alive(folder, state)) {
        (Some(_), _) => None,
        (None, Some(_)) => Some("This run is not over: it is shown as of the moment at which this page was made."),
        (None, None) => Some(
            "This run is not over and nobody works on it: it is shown as of its last event. `cpw status` finishes it.",
        ),
    }
}

fn words(picture: &Picture<'_>, named: bool) -> String {
    let Picture { plan, timeline, note, .. } = picture;
    let status = timeline.ended.as_ref().map_or("not over", |end| crate::ui::lines::verdict(end.status));
    let mut out = format!("run {} · {status} · {}\n", plan.run, bounds::span(timeline.run.length()));
    if let Some(note) = note {
        out.push_str(&text::one_line(note, 500));
        out.push('\n');
    }
    out.push_str(&bounds::sentence(timeline, plan));
    out.push('\n');
    if let Some(line) = bounds::unlimited(timeline) {
        out.push_str(&line);
        out.push('\n');
    }
    let run = if named { format!(" {}", plan.run) } else { String::new() };
    out + &format!(
        "\ncpw trace{run} -o run.html   all of it as a page for a browser\ncpw trace{run} -o run.json   the same for ui.perfetto.dev\n"
    )
}

/// Writes a new file, whole or not at all; one that is there is replaced only where that is asked for.
fn save(path: &Path, bytes: &[u8], force: bool) -> anyhow::Result<()> {
    above::refuse_to_write("no file is written")?;
    let shown = text::one_line(&path.to_string_lossy(), 500);
    let there = std::fs::metadata(path).ok();
    // Also a link that leads nowhere yet: a project can hold one that leads out of it.
    if path.symlink_metadata().is_ok() && !force {
        let hint = "choose another name, or add --force to replace it";
        return Err(Wrong::with_hint(format!("{shown} is there already"), hint).into());
    }
    let rights = there.as_ref().map_or(Rights::Usual, Rights::Of);
    let written = match &there {
        // A pipe or a device.
        Some(there) if !there.is_file() => {
            OpenOptions::new().write(true).open(path).and_then(|mut f| f.write_all(bytes))
        }
        _ => file::behind_links(path).and_then(|target| file::replace(&target, bytes, rights)),
    };
    match written {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            let hint = "make the folder first, or choose another place";
            Err(Wrong::with_hint(format!("{shown} cannot be made: there is no such folder"), hint).into())
        }
        written => written.with_context(|| format!("cannot write {shown}")),
    }
}

/// What to do with the file.
fn look(path: &Path, format: Format) -> String {
    let shown = path.display();
    match format {
        Format::Html => format!("wrote {shown}; open it in a browser: it needs no network, and prints"),
        Format::Chrome => {
            format!("wrote {shown}; drag it into ui.perfetto.dev or chrome://tracing, which read it locally")
        }
        Format::Text => format!("wrote {shown}"),
    }
}
