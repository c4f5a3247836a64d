//! `cpw statusline`: one line about the runs that go on, for Claude Code's `statusLine` setting, which calls it again and again.
//! So it is decided before anything else is set up; where nothing runs, one small read was all, and nothing is written or
//! locked ever. It shows; it never helps: who works on a run is not its business. With `--wrap` another status line command
//! is shown above it; where cpw has nothing to say, cpw becomes that command.

mod permit;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::actor::crew;
use crate::base::env;
use crate::base::exit::Exit;
use crate::base::ids::SessionId;
use crate::logic::view::View;
use crate::store::home::State;
use crate::store::project;
use crate::store::run::{self, RunDir};
use crate::store::session;
use crate::sys::clock;
use crate::sys::host;
use crate::sys::poll;
use crate::sys::program::{self, Program, Ran};
use crate::sys::signals;
use crate::sys::spawn;
use crate::ui::paint::Paint;
use crate::ui::print;
use crate::ui::statusline::{Found, line};

/// How long it may last by itself.
const LIFETIME: Duration = Duration::from_secs(1);

/// How long the wrapped command is waited for while something runs: the client shows nothing before the last of it has ended.
const PATIENCE: Duration = Duration::from_millis(1500);

/// How long it is waited for where nothing runs; longer than any client does.
const ALONE: Duration = Duration::from_mins(1);

/// How long stdin may take to arrive, in milliseconds, and how long it may be, in bytes.
const STDIN_MS: u64 = 700;
/// See [`STDIN_MS`].
const MAX_STDIN: usize = 1024 * 1024;

/// Runs of a project that are looked at, newest first: older ones ended long ago.
const NEWEST: usize = 8;

/// One line about what runs, for Claude Code's status line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw statusline                          as \"command\" of \"statusLine\" in Claude Code's settings\n  \
    cpw statusline --wrap './my-line.sh'    the same below the line of another command\n  \
    cpw statusline </dev/null               the runs of this project, for a shell prompt or tmux\n\n\
    Claude Code calls it for a session, and the line is about the runs of that session: `cpw ▸ 3/5 done · 1 failed · W2 60 % · 40 s` \
    (W2 is the one that needs longest, 40 s what it still needs). Where nothing runs it says nothing. With \
    \"refreshInterval\": 2 beside the command the line moves while nothing else happens.\n\
    The wrapped command runs in sh, with the same stdin, and its output stands above the line. While something runs it has 1.5 s; \
    a slower or a failing one does not hide the line. Inside Claude Code it runs only if it stands there in the \"statusLine\" of \
    its settings: the model, which may call cpw, may not call anything by it.\n\n\
    Exit code: 0; where nothing runs that of the wrapped command (or 1, where the environment names no session and it failed)")]
pub struct Args {
    /// Another status line command, to be shown above
    #[arg(long, value_name = "COMMAND")]
    wrap: Option<String>,
}

impl Args {
    /// The arguments, where this is the command and they are as usual; whatever else there is needs the whole command line.
    pub fn early() -> Option<Args> {
        let mut args = std::env::args_os().skip(1);
        (args.next()? == "statusline").then_some(())?;
        let args: Vec<String> = args.map(OsString::into_string).collect::<Result<_, _>>().ok()?;
        let wrap = match &args[..] {
            [] => None,
            [flag, command] if flag == "--wrap" => Some(command.clone()),
            [one] => Some(one.strip_prefix("--wrap=")?.to_owned()),
            _ => return None,
        };
        Some(Args { wrap })
    }
}

/// What the client says on stdin, as far as it matters.
#[derive(Debug, Default, Deserialize)]
struct Payload {
    #[serde(default)]
    session_id: Option<String>,
}

/// Runs the command.
pub fn run(args: &Args) -> Exit {
    let lifetime = if args.wrap.is_some() { LIFETIME + PATIENCE } else { LIFETIME };
    let Ok(deadline) = signals::hook_deadline(lifetime) else { return Exit::Ok };
    let mut read = None;
    let own = look(&mut read);
    let command = args.wrap.as_deref().filter(|command| {
        let may = permit::may_run(command);
        if !may {
            print::err("cpw: --wrap: no settings of the Claude Code above have this command in their status line; it is not run");
        }
        may
    });
    let Some(command) = command else {
        if let Some(own) = own {
            print::out(own);
        }
        return Exit::Ok;
    };
    match own {
        None if read.is_none() => {
            // It has the time that the client gives it.
            deadline.cancel();
            drop(program::turn_into(&["/bin/sh", "-c", command].map(OsString::from), &[]));
            Exit::Failed
        }
        None => {
            // The same, but for its stdin, which was read to learn the session.
            deadline.cancel();
            let ran = wrapped(command, read, ALONE);
            print::raw(ran.as_ref().map_or(&[][..], |ran| &ran.stdout));
            if ran.is_some_and(|ran| ran.exit == spawn::Exit::Code(0)) { Exit::Ok } else { Exit::Failed }
        }
        Some(own) => {
            // The client shows nothing of a command that fails.
            let ran = wrapped(command, read, PATIENCE).filter(|ran| ran.exit == spawn::Exit::Code(0));
            let said = ran.map(|ran| ran.stdout).unwrap_or_default();
            print::raw(&said);
            print::raw(if said.is_empty() || said.ends_with(b"\n") { b"" } else { b"\n" });
            print::out(own);
            Exit::Ok
        }
    }
}

/// The line about what runs. What was read from stdin stands in `read` afterwards; where the environment tells the session,
/// that is nothing.
fn look(read: &mut Option<Vec<u8>>) -> Option<String> {
    if env::is_on(std::env::var_os(env::DISABLE).as_deref()) || std::env::var_os(env::DEPTH).is_some() {
        return None;
    }
    let state = State::existing().ok()??;
    let said = std::env::var(env::CLAUDE_SESSION_ID).ok();
    let id = match said {
        Some(id) => Some(id),
        None if host::is_terminal(io::stdin()) => None,
        None => {
            let bytes = read.insert(stdin()?);
            if bytes.is_empty() { None } else { Some(serde_json::from_slice::<Payload>(bytes).ok()?.session_id?) }
        }
    };
    let in_session = id.is_some();
    let found = match id {
        Some(id) => of_session(&state, &SessionId::new(&id).ok()?)?,
        None => of_project()?,
    };
    let runs: Vec<Found<'_>> = found.iter().map(|(view, alive)| Found { view, alive: *alive }).collect();
    // What the client shows is on a terminal.
    let paint = if in_session { Paint::for_terminal() } else { Paint::for_stdout() };
    line(&runs, clock::mono_ms(), width(), paint)
}

fn width() -> Option<usize> {
    std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0)
}

/// The open runs of a session, as its record names them.
fn of_session(state: &State, id: &SessionId) -> Option<Vec<(View, bool)>> {
    let session = session::load_open(state.path(), id).ok()??;
    let folders = session.open_runs().filter_map(|own| RunDir::open_own(own).ok()?);
    Some(folders.filter_map(|folder| open(&folder)).filter(|(v, _)| v.session.as_ref() == Some(id)).collect())
}

/// The open runs among the newest of the project.
fn of_project() -> Option<Vec<(View, bool)>> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let project = project::find(&std::env::current_dir().ok()?, home.as_deref()).ok()?;
    let ids = run::list(&project).ok()?;
    let folders = ids.iter().take(NEWEST).filter_map(|id| RunDir::open(&project, id).ok());
    Some(folders.filter_map(|folder| open(&folder)).collect())
}

/// A run that goes on, by its index and the events behind it, and whether a worker lives.
fn open(folder: &RunDir) -> Option<(View, bool)> {
    let hooked = folder.open_if(|_| true).ok()??;
    let alive = crew::anybody(folder, &hooked.view);
    Some((hooked.view, alive)).filter(|(view, _)| view.ended.is_none())
}

/// What the client says; `None` where that does not end in time, or at all.
fn stdin() -> Option<Vec<u8>> {
    let end = clock::mono_ms() + STDIN_MS;
    let mut bytes = Vec::new();
    let mut room = vec![0; 16 * 1024];
    loop {
        let left = end.saturating_sub(clock::mono_ms());
        if left == 0 || bytes.len() > MAX_STDIN {
            return None;
        }
        if !*poll::wait(&[poll::stdin()], Some(Duration::from_millis(left))).ok()?.first()? {
            continue;
        }
        match poll::read(poll::stdin(), &mut room) {
            Ok(0) => return Some(bytes),
            Ok(n) => bytes.extend_from_slice(&room[..n]),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(_) => return None,
        }
    }
}

/// Runs the wrapped command for at most `limit`.
fn wrapped(command: &str, read: Option<Vec<u8>>, limit: Duration) -> Option<Ran> {
    let argv = ["sh", "-c", command].map(OsString::from);
    let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let cwd = std::env::current_dir().ok()?;
    let stdin = match read {
        None => poll::stdin().try_clone_to_owned().ok()?.into(),
        Some(bytes) => fed(bytes)?,
    };
    let until = Instant::now() + limit;
    let path = Path::new("/bin/sh");
    let stdin = Some(stdin);
    program::run(Program { path, argv: &argv, env: &env, cwd: &cwd, stdin, stdout: None, until, stop: None }).ok()
}

/// A pipe that says these bytes. Who does not read them all keeps nobody waiting.
fn fed(bytes: Vec<u8>) -> Option<File> {
    let (reader, mut writer) = io::pipe().ok()?;
    std::thread::Builder::new().spawn(move || drop(writer.write_all(&bytes))).ok()?;
    Some(File::from(OwnedFd::from(reader)))
}
