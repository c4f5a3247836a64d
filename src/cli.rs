//! The command line: which commands there are, and how their results become an exit code. No behaviour: each command is
//! a file of `cmd`.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::base::exit::{Exit, Wrong};
use crate::base::text::for_terminal;
use crate::cmd;
use crate::ui::print;

/// Parallel workers for Claude Code, started and coordinated by its hooks.
#[derive(Debug, Parser)]
#[command(name = "cpw", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Wire cpw into Claude Code's settings, or take it out again
    Init(cmd::init::Args),
    /// Show in six seconds what cpw does, without Claude
    Demo(cmd::demo::Args),
    /// Approve the project's rules: nothing of a project runs before
    Allow(cmd::allow::Args),
    /// Take an approval back
    Deny(cmd::deny::Args),
    /// Switch cpw off for this project or a session
    Off(cmd::off::Args),
    /// Switch it on again
    On(cmd::on::Args),
    /// Show what a prompt would start, and why or why not; starts nothing
    Plan(cmd::plan::Args),
    /// Print the JSON Schema of the config, a plan, an event or the status
    Schema(cmd::schema::Args),
    /// Run a plan and show its progress until it ends
    Run(cmd::run::Args),
    /// Run again what a run left undone; what is done is taken over
    Retry(cmd::again::RetryArgs),
    /// Go on with a run that was interrupted; what is done is taken over
    Resume(cmd::again::ResumeArgs),
    /// Show the runs of this project, or one run in detail
    Status(cmd::status::Args),
    /// One line about what runs, for Claude Code's status line
    Statusline(cmd::statusline::Args),
    /// Look at the runs of this project, live, on the whole screen
    Top(cmd::top::Args),
    /// Show what tasks wrote to stdout and stderr
    Logs(cmd::logs::Args),
    /// Show the events of a run
    Events(cmd::events::Args),
    /// Tell a run again, event by event, or show how it stood at one
    Replay(cmd::replay::Args),
    /// Show where a run's time went: a page for a browser, trace events, or words
    Trace(cmd::trace::Args),
    /// Wait for tasks, checkpoints, votes, the end of a run, or a call of the session
    Wait(cmd::wait::Args),
    /// Print the result of a task
    Result(cmd::result::Args),
    /// Take a run over into this Claude Code session
    Adopt(cmd::adopt::Args),
    /// Cancel a run, or one of its tasks
    Cancel(cmd::cancel::Args),
    /// Remove runs that have ended
    Clean(cmd::clean::Args),
    /// Look for what keeps cpw from working here
    Doctor(cmd::doctor::Args),
    /// Inside a task: say how far it is
    Progress(cmd::progress::Args),
    /// Inside a task: say in one line what came out, for the session to read
    Summary(cmd::progress::SummaryArgs),
    /// Inside a task: say that it has come to a point that others wait for
    Checkpoint(cmd::checkpoint::Args),
    /// Inside a task: say something to the session, or keep it from doing something
    Signal(cmd::signal::Args),
    /// Inside a task: vote about something that the plan lets it vote about
    Vote(cmd::vote::Args),
    /// Run a command while nobody else holds what it needs: a database, a port, a file
    Lease(cmd::lease::Args),
    /// Run one task in the foreground, or work on a run as one of its workers
    Worker(cmd::worker::Args),
    /// Print what a shell needs to complete cpw's command line
    Completions(cmd::completions::Args),
    /// Print a manual page, or write all of them
    Man(cmd::man::Args),
    /// Show the help of a command, or a page: concepts, files, exit-codes
    Help(cmd::help::Args),
}

/// The definition of the command line, for help, completions and tests.
pub fn definition() -> clap::Command {
    let codes = cmd::help::exit_table();
    cmd::help::complete(
        Cli::command().after_help(format!("Exit codes:\n{codes}\n`cpw help concepts` explains the words.")),
    )
}

/// Reads a command line. `cpw help run` is read as `cpw run --help`.
fn read(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Command, clap::Error> {
    let matches = definition().try_get_matches_from(args)?;
    let command = Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut definition()))?.command;
    match &command {
        Command::Help(args) => match args.as_command_line() {
            Some(line) => read(line),
            None => Ok(command),
        },
        _ => Ok(command),
    }
}

/// The commands that are called again and again, by tasks and by people: to read one of them, only its own part of the command line is made,
/// which is most of what such a call costs. `None`: another command, a call for help, or a mistake, all for the whole to say.
fn inside() -> Option<Command> {
    fn part<A: clap::Args>() -> Option<A> {
        let matches = A::augment_args(clap::Command::new("cpw")).try_get_matches_from(std::env::args_os().skip(1));
        A::from_arg_matches(&matches.ok()?).ok()
    }
    match std::env::args_os().nth(1)?.to_str()? {
        // Nobody waits gladly for a look.
        "status" => part().map(Command::Status),
        "progress" => part().map(Command::Progress),
        "summary" => part().map(Command::Summary),
        "checkpoint" => part().map(Command::Checkpoint),
        "signal" => part().map(Command::Signal),
        "vote" => part().map(Command::Vote),
        _ => None,
    }
}

/// Parses the command line, runs the command, and turns what it returns into an exit code.
pub fn main() -> ExitCode {
    if let Some(args) = cmd::statusline::Args::early() {
        return cmd::statusline::run(&args).into();
    }
    let command = inside().map_or_else(|| read(std::env::args_os()), Ok);
    let command = match command {
        Ok(command) => command,
        Err(e) => {
            // Help and version are no errors, and go to stdout. Clap's own code for wrong usage is 2, which is never ours.
            let wrong = e.use_stderr();
            // Who reads no further has seen enough.
            let lost = !wrong && e.print().is_err_and(|e| e.kind() != std::io::ErrorKind::BrokenPipe);
            if wrong {
                // It repeats words of the command line, names of files among them.
                let text = e.render();
                let colour =
                    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
                let shown = if colour { text.ansi().to_string() } else { text.to_string() };
                print::err(shown.trim_end());
            }
            return match (wrong, lost) {
                (true, _) => Exit::Usage,
                (false, true) => Exit::Failed,
                (false, false) => Exit::Ok,
            }
            .into();
        }
    };
    let result = match &command {
        Command::Init(args) => cmd::init::run(args),
        Command::Demo(args) => cmd::demo::run(args),
        Command::Allow(args) => cmd::allow::run(args),
        Command::Deny(args) => cmd::deny::run(args),
        Command::Off(args) => cmd::off::run(args),
        Command::On(args) => cmd::on::run(args),
        Command::Plan(args) => cmd::plan::run(args),
        Command::Schema(args) => cmd::schema::run(args),
        Command::Run(args) => cmd::run::run(args),
        Command::Retry(args) => cmd::again::retry(args),
        Command::Resume(args) => cmd::again::resume(args),
        Command::Status(args) => cmd::status::run(args),
        Command::Statusline(args) => Ok(cmd::statusline::run(args)),
        Command::Top(args) => cmd::top::run(args),
        Command::Logs(args) => cmd::logs::run(args),
        Command::Events(args) => cmd::events::run(args),
        Command::Replay(args) => cmd::replay::run(args),
        Command::Trace(args) => cmd::trace::run(args),
        Command::Wait(args) => cmd::wait::run(args),
        Command::Result(args) => cmd::result::run(args),
        Command::Adopt(args) => cmd::adopt::run(args),
        Command::Cancel(args) => cmd::cancel::run(args),
        Command::Clean(args) => cmd::clean::run(args),
        Command::Doctor(args) => cmd::doctor::run(args),
        Command::Progress(args) => cmd::progress::run(args),
        Command::Summary(args) => cmd::progress::run_summary(args),
        Command::Checkpoint(args) => cmd::checkpoint::run(args),
        Command::Signal(args) => cmd::signal::run(args),
        Command::Vote(args) => cmd::vote::run(args),
        Command::Lease(args) => cmd::lease::run(args),
        Command::Worker(args) => cmd::worker::run(args),
        Command::Completions(args) => cmd::completions::run(args, definition()),
        Command::Man(args) => cmd::man::run(args, definition()),
        Command::Help(args) => cmd::help::run(args),
    };
    match result {
        Ok(Exit::Ok) if print::lost() => {
            print::err("cpw: the output could not be written: the disk may be full");
            Exit::Failed.into()
        }
        Ok(exit) => exit.into(),
        Err(e) => report(&e).into(),
    }
}

fn report(error: &anyhow::Error) -> Exit {
    // What it names (a path, an argument) may be anybody's.
    print::err(format_args!("cpw: {}", for_terminal(&format!("{error:#}"))));
    let Some(wrong) = error.chain().find_map(|e| e.downcast_ref::<Wrong>()) else {
        return Exit::Failed;
    };
    if let Some(hint) = &wrong.hint {
        print::err(format_args!("hint: {}", for_terminal(hint)));
    }
    Exit::Usage
}
