//! `cpw lease`: one at a time for whatever has a name. With a command it waits for its turn and then becomes that command,
//! the same process, so that the lease lives exactly as long as the command does and nothing has to watch over it.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::actor::planner;
use crate::base::env;
use crate::base::exit::{Exit, Wrong};
use crate::base::span::{Span, human};
use crate::base::text::one_line;
use crate::cmd::inside::{self, Inside};
use crate::cmd::{above, find};
use crate::logic::circle;
use crate::logic::leases::{Claimant, InTheWay, Lease, Now, Request, Want, Which, name};
use crate::logic::view::Phase;
use crate::model::event::{Body, Holder, Process, Progress};
use crate::model::resource::{self, MAX_TOGETHER, Resource};
use crate::store::home::State;
use crate::store::leases::{self, Came, Desk};
use crate::store::place;
use crate::sys::clock;
use crate::sys::process::{self, Stat};
use crate::sys::program;
use crate::sys::signals;
use crate::ui::print;
use crate::ui::table;

/// How long one waits where nothing else is said.
const WAIT: Span = Span::from_secs(30);

/// The longest text that says what a holder is, in characters.
const MAX_LABEL: usize = 120;

/// Run a command while nobody else holds what it needs: a database, a port, a file
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
    cpw lease db -- ./migrate.sh                  one at a time, in all runs and terminals of this project\n  \
    cpw lease gpu0 port:5432 --wait 5m -- make e2e   both together, or neither\n  \
    cpw lease ./src/app -- ./rewrite.sh           a folder and all that is in it\n  \
    TOKEN=$(cpw lease acquire db --ttl 10m)       for a script: as long as the script lives, 10 minutes at most\n  \
    cpw lease renew db --ttl 10m && cpw lease release db\n  \
    cpw lease                                     who holds what, and who waits\n\n\
    The command takes the place of cpw: its exit code is the exit code. Its lease ends with it, however it ends. It sees the \
    token in CPW_LEASE_TOKEN; tokens rise from holder to holder, so that what is guarded can refuse an older one. With --ttl \
    others get it after that time also where the command still runs: it is not ended.\n\
    Who waits is served in the order of coming. Waits that would form a circle are refused at once.\n\n\
    Exit code: the command's own · 4 not to be had within --wait · 3 wrong usage, or it would wait for ever · 126, 127 the \
    command cannot be run · 130 Ctrl-C while it waits"
)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// What is needed: names, or files with a '/' in them
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How long to wait for it
    #[arg(long, default_value_t = WAIT, value_parser = span, value_name = "SPAN")]
    wait: Span,
    /// How long to hold it at most
    #[arg(long, value_parser = span, value_name = "SPAN")]
    ttl: Option<Span>,
    /// Show who holds what, and who waits (as without any argument)
    #[arg(long, conflicts_with_all = ["names", "command"])]
    list: bool,
    /// The same as JSON
    #[arg(long, conflicts_with_all = ["names", "command"])]
    json: bool,
    /// Of a worker: the command is its attempt, whose own time limit ends the waiting
    #[arg(long, hide = true, requires = "command")]
    attempt: bool,
    /// What to run
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// For scripts.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Take it for the calling script, or in a task for the task, and print its token
    #[command(after_help = "Examples:\n  \
        TOKEN=$(cpw lease acquire db)             until the script ends, or cpw lease release db\n  \
        cpw lease acquire gpu0 db --wait 5m --ttl 10m   both together, for 10 minutes at most")]
    Acquire {
        /// What is needed
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// How long to wait for it
        #[arg(long, default_value_t = WAIT, value_parser = span, value_name = "SPAN")]
        wait: Span,
        /// How long to hold it at most; as long as its holder lives where absent
        #[arg(long, value_parser = span, value_name = "SPAN")]
        ttl: Option<Span>,
        /// Print the token as JSON
        #[arg(long)]
        json: bool,
    },
    /// Hold it for longer
    #[command(after_help = "Examples:\n  \
        cpw lease renew db --ttl 10m\n  \
        cpw lease renew --token 17 --ttl 10m   from another process, that was told the token")]
    Renew {
        #[command(flatten)]
        meant: Meant,
        /// For how long from now
        #[arg(long, value_parser = span, value_name = "SPAN")]
        ttl: Span,
        /// Print the token as JSON
        #[arg(long)]
        json: bool,
    },
    /// Give it back
    #[command(after_help = "Examples:\n  \
        cpw lease release db          and all that was taken together with it\n  \
        cpw lease release --token 17  from another process, that was told the token")]
    Release {
        #[command(flatten)]
        meant: Meant,
        /// Print the token as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Which lease.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Meant {
    /// What it is for; all that was taken together with it goes with it
    name: Option<String>,
    /// Its token, instead
    #[arg(long)]
    token: Option<u64>,
}

fn span(text: &str) -> Result<Span, String> {
    Span::parse(text).ok_or_else(|| "a duration is written 30s, 5m or 1h".to_owned())
}

/// Whose leases these are, and where.
struct Place {
    inside: Option<Inside>,
    project: PathBuf,
    /// The folder of the project's runs.
    runs: PathBuf,
    cwd: PathBuf,
}

impl Place {
    fn here() -> anyhow::Result<Place> {
        let cwd = std::env::current_dir().context("the current directory cannot be read")?;
        if std::env::var_os(env::RUN_DIR).is_some_and(|v| !v.is_empty()) {
            let inside = inside::attempt("lease")?;
            let project = inside.folder.project.clone();
            let runs = inside.folder.path().parent().map(Path::to_owned).context("the run is in no folder")?;
            return Ok(Place { inside: Some(inside), project, runs, cwd });
        }
        let project = find::project()?;
        let runs = planner::runs_folder(&project, State::existing()?.as_ref())?;
        Ok(Place { inside: None, project, runs, cwd })
    }

    fn desk(&self) -> anyhow::Result<Desk> {
        place::refuse_lent_root(&self.project)?;
        let desk = Desk::open(&self.project, &self.runs)?;
        let Some(inside) = &self.inside else { return Ok(desk) };
        let (folder, task) = (inside.folder.again()?, inside.task.clone());
        Ok(desk.with_veto(Box::new(move |leases, want| {
            // Where the run cannot be read, the limit of the waiting has to do.
            let run = folder.open_run().ok()?;
            circle::lease_refusal(&run.state, &run.plan, run.state.index_of(&task)?, want, leases)
        })))
    }

    fn resources(&self, names: &[String]) -> anyhow::Result<Vec<Resource>> {
        let read = |name: &String| leases::resolve(name, &self.cwd, &self.project).map_err(Wrong::new);
        let all = resource::together(names.iter().map(read).collect::<Result<_, _>>()?);
        if all.len() > MAX_TOGETHER {
            return Err(Wrong::new(format!("more than {MAX_TOGETHER} are wanted together")).into());
        }
        Ok(all)
    }

    /// A process as a holder.
    fn holder(&self, process: Process, label: &str) -> anyhow::Result<Holder> {
        let label = Some(one_line(label, MAX_LABEL)).filter(|l| !l.is_empty());
        let (run, task, attempt, worker) = match &self.inside {
            None => (None, None, None, None),
            Some(inside) => {
                let Inside { folder, task, attempt, worker } = inside;
                let view = folder.open_view()?.view;
                let brief = view.tasks.get(task);
                let open = brief.is_some_and(|t| t.phase == Phase::Running && t.attempt == *attempt);
                anyhow::ensure!(open && view.ended.is_none(), "attempt {attempt} of {task} is over; it gets no lease");
                (Some(view.run), Some(task.clone()), Some(*attempt), Some(*worker))
            }
        };
        Ok(Holder { process, run, task, attempt, worker, session: None, tool_use_id: None, label })
    }

    /// The first process of the attempt.
    fn leading(inside: &Inside) -> anyhow::Result<Process> {
        let run = inside.folder.open_run()?;
        let open = run.state.index_of(&inside.task).and_then(|i| run.state.tasks[i].open.as_ref());
        let logged = open.filter(|o| o.number == inside.attempt).and_then(|o| o.process.clone());
        // Not written down yet: it leads its session.
        let leads = || Stat::of(process::me().pid).and_then(|own| process::identity_of(own.session));
        logged.or_else(leads).context("the first process of the attempt is not known")
    }

    fn claimant(&self, processes: Vec<Process>) -> Claimant {
        let attempt = self.inside.as_ref().and_then(|inside| {
            let run = inside.folder.path().file_name()?.to_str().and_then(|n| crate::base::ids::RunId::new(n).ok())?;
            Some((run, inside.task.clone(), inside.attempt))
        });
        Claimant { attempt, processes }
    }
}

/// This process and those above it.
fn lineage() -> Vec<Process> {
    let above = process::ancestors();
    std::iter::once(process::me()).chain(above.iter().filter_map(|a| process::identity_of(a.pid))).collect()
}

/// The tokens of a log that the command above has put into the environment, as they are there, and read.
fn inherited(log: u64) -> (Vec<String>, Vec<u64>) {
    let text = std::env::var(env::LEASES).unwrap_or_default();
    let all: Vec<String> = text.split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
    let of_log = |entry: &String| {
        let (token, of) = entry.split_once('@')?;
        (of.parse() == Ok(log)).then(|| token.parse().ok())?
    };
    let tokens = all.iter().filter_map(of_log).collect();
    (all, tokens)
}

/// What this process, or one above it that waits for it, holds: it is not given back before this one goes on.
fn holding(desk: &Desk) -> Vec<u64> {
    let (_, mut tokens) = inherited(desk.id());
    if !desk.leases().held.is_empty() {
        let lineage = lineage();
        let own = desk.leases().held.iter().filter(|l| lineage.contains(&l.holder.process));
        tokens.extend(own.map(|l| l.token));
        tokens.sort_unstable();
        tokens.dedup();
    }
    tokens
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    match &args.action {
        Some(Action::Acquire { names, wait, ttl, json }) => acquire(names, *wait, *ttl, *json),
        Some(Action::Renew { meant, ttl, json }) => {
            let place = Place::here()?;
            let (which, claimant) = (meant.which(&place)?, place.claimant(lineage()));
            let said = place.desk()?.renew(&which, &claimant, ttl.as_ms())?;
            Ok(answer(said, *json))
        }
        Some(Action::Release { meant, json }) => {
            let place = Place::here()?;
            let (which, claimant) = (meant.which(&place)?, place.claimant(lineage()));
            let said = place.desk()?.release(&which, &claimant)?;
            Ok(answer(said, *json))
        }
        None if args.command.is_empty() && args.names.is_empty() => list(args.json),
        None if args.command.is_empty() => {
            let hint = "`cpw lease NAME -- CMD`; a script takes it by `cpw lease acquire NAME`";
            Err(Wrong::with_hint("a command is missing: what shall run while it is held", hint).into())
        }
        None if args.names.is_empty() => {
            Err(Wrong::with_hint("a name is missing: what the command needs", "`cpw lease NAME -- CMD`").into())
        }
        None => turn_into(args),
    }
}

impl Meant {
    fn which(&self, place: &Place) -> anyhow::Result<Which> {
        match (&self.name, self.token) {
            (_, Some(token)) => Ok(Which::Token(token)),
            (Some(name), None) => {
                let all = place.resources(std::slice::from_ref(name))?;
                all.into_iter().next().map(Which::Resource).context("nothing is meant")
            }
            (None, None) => Err(Wrong::new("a name or --token is needed").into()),
        }
    }
}

fn answer(said: Result<u64, String>, as_json: bool) -> Exit {
    match said {
        Ok(token) if as_json => {
            print::out(json!({ "token": token }));
            Exit::Ok
        }
        Ok(token) => {
            print::out(token);
            Exit::Ok
        }
        Err(why) => {
            print::err(format_args!("cpw: {why}"));
            Exit::Failed
        }
    }
}

/// Takes what is wanted, or says why not.
fn take(
    desk: &mut Desk,
    want: &mut Want,
    limit: Option<Span>,
    each: impl FnMut(&InTheWay<'_>),
) -> anyhow::Result<Result<u64, Exit>> {
    let termination = signals::catch_termination()?;
    want.holding = holding(desk);
    let came = desk.take(want, limit.map(Span::to_std), &[termination.fd()], each)?;
    match came {
        // Between two looks at it: what was asked last counts.
        Came::Granted(token) if termination.take().is_some() => {
            desk.give_back(&[token], "interrupted")?;
            Ok(Err(Exit::Interrupted))
        }
        Came::Granted(token) => Ok(Ok(token)),
        Came::Woken => Ok(Err(Exit::Interrupted)),
        Came::TimedOut(by) => {
            print::err(format_args!("cpw: {by}; not waited for any longer"));
            Ok(Err(Exit::TimedOut))
        }
        Came::Circle(said) => {
            let hint = "take all that is needed at once (`cpw lease db gpu0 -- CMD`), or everybody in the same order";
            Err(Wrong::with_hint(said, hint).into())
        }
        Came::Full => anyhow::bail!("so many leases are held or waited for in this project that no more are given"),
    }
}

fn want(resources: Vec<Resource>, holder: Holder, ttl: Option<Span>) -> Want {
    Want {
        resources,
        holder,
        waiter: None,
        holding: Vec::new(),
        ttl_ms: ttl.map(Span::as_ms),
        until: None,
        request: None,
    }
}

fn acquire(names: &[String], wait: Span, ttl: Option<Span>, as_json: bool) -> anyhow::Result<Exit> {
    let place = Place::here()?;
    let resources = place.resources(names)?;
    let above = process::ancestors();
    let (process, label) = if let Some(inside) = &place.inside {
        (Place::leading(inside)?, String::new())
    } else {
        let caller = above.first().context("nobody has called this command")?;
        (process::identity_of(caller.pid).context("who has called this command has ended")?, caller.comm.clone())
    };
    let mut wanted = want(resources, place.holder(process, &label)?, ttl);
    // A script outlives a call that was killed; its place in the queue does not.
    wanted.waiter = Some(process::me());
    let mut desk = place.desk()?;
    match take(&mut desk, &mut wanted, Some(wait), |_| ())? {
        Ok(token) => Ok(answer(Ok(token), as_json)),
        Err(exit) => Ok(exit),
    }
}

fn turn_into(args: &Args) -> anyhow::Result<Exit> {
    above::refuse_below_client("a command is not started by `cpw lease`", "may have it started")?;
    let place = Place::here()?;
    let resources = place.resources(&args.names)?;
    // Its name alone: arguments can be secrets, and what was asked for, and the log of leases is never cleaned.
    let program = args.command.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let label = program.to_string_lossy();
    let mut wanted = want(resources, place.holder(process::me(), &label)?, args.ttl);
    let mut desk = place.desk()?;
    let limit = match (&place.inside, args.attempt) {
        (Some(_), true) => None,
        (None, true) => return Err(Wrong::new("--attempt is for the workers of a run").into()),
        (_, false) => Some(args.wait),
    };
    let mut said = false;
    let token = match take(&mut desk, &mut wanted, limit, |in_the_way| {
        if let (Some(inside), true, false) = (&place.inside, args.attempt, said) {
            let note = Some(format!("waits: {}", in_the_way.describe(clock::mono_ms())));
            // People do without where that cannot be said.
            drop(inside.say(Body::Progress(Progress { note, ..Progress::default() })));
            said = true;
        }
    })? {
        Ok(token) => token,
        Err(exit) => return Ok(exit),
    };
    let (mut all, _) = inherited(desk.id());
    all.push(format!("{token}@{}", desk.id()));
    let failed =
        program::turn_into(&args.command, &[(env::LEASE_TOKEN, token.to_string()), (env::LEASES, all.join(","))]);
    desk.give_back(&[token], "its command could not be run")?;
    let shown = args.command.first().map(|c| c.to_string_lossy().into_owned()).unwrap_or_default();
    print::err(format_args!("cpw: '{}' cannot be run: {failed}", one_line(&shown, 200)));
    Ok(if failed.kind() == io::ErrorKind::NotFound { Exit::NotFound } else { Exit::NotExecutable })
}

/// What is held and waited for now, in the project whose runs are in `runs`.
pub(super) struct Standing {
    pub(super) held: Vec<Lease>,
    pub(super) queue: Vec<Request>,
    mono_ms: u64,
}

impl Standing {
    pub(super) fn of(runs: &Path) -> anyhow::Result<Standing> {
        let mono_ms = clock::mono_ms();
        let mut standing = Standing { held: Vec::new(), queue: Vec::new(), mono_ms };
        if let Some(desk) = Desk::existing(runs)? {
            // What is over by now is written down by whoever wants it next.
            let over = desk.leases().over(Now { mono_ms, alive: &process::alive });
            let lives = |token: u64| over.iter().all(|o| o.token != token);
            standing.held.extend(desk.leases().held.iter().filter(|l| lives(l.token)).cloned());
            standing.queue.extend(desk.leases().queue.iter().filter(|r| lives(r.id)).cloned());
        }
        Ok(standing)
    }

    pub(super) fn to_json(&self) -> Value {
        let held: Vec<Value> = self.held.iter().map(|l| lease_json(l, self.mono_ms)).collect();
        let queue: Vec<Value> = self.queue.iter().map(|r| request_json(r, self.mono_ms)).collect();
        json!({"held": held, "waiting": queue})
    }

    /// For how long, for people.
    pub(super) fn age(&self, since_ms: u64) -> String {
        human(Duration::from_millis(self.mono_ms.saturating_sub(since_ms)))
    }
}

fn list(as_json: bool) -> anyhow::Result<Exit> {
    let standing = Standing::of(&Place::here()?.runs)?;
    if as_json {
        print::out(standing.to_json());
        return Ok(Exit::Ok);
    }
    let Standing { held, queue, mono_ms } = &standing;
    if held.is_empty() && queue.is_empty() {
        print::out("nothing is held");
        return Ok(Exit::Ok);
    }
    let all = |resources: &[Resource]| {
        let shown: Vec<String> = resources.iter().map(|r| one_line(&r.to_string(), 200)).collect();
        shown.join(", ")
    };
    let mut rows = vec![["RESOURCE", "HOLDER", "TOKEN", "FOR", "ENDS IN"].map(str::to_owned).to_vec()];
    for l in held {
        let left = l.expires.map(|at| human(Duration::from_millis(at.saturating_sub(*mono_ms)))).unwrap_or_default();
        rows.push(vec![all(&l.resources), name(&l.holder), l.token.to_string(), standing.age(l.since_ms), left]);
    }
    for r in queue {
        let text = format!("{} waits", name(&r.holder));
        rows.push(vec![all(&r.resources), text, String::new(), standing.age(r.since_ms), String::new()]);
    }
    print::raw(table::lay_out(&rows, |_, _, cell| cell.to_owned()).as_bytes());
    Ok(Exit::Ok)
}

fn lease_json(lease: &Lease, mono_ms: u64) -> Value {
    json!({
        "token": lease.token,
        "resources": lease.resources,
        "holder": lease.holder,
        "held_ms": mono_ms.saturating_sub(lease.since_ms),
        "expires_in_ms": lease.expires.map(|at| at.saturating_sub(mono_ms)),
    })
}

fn request_json(request: &Request, mono_ms: u64) -> Value {
    json!({
        "request": request.id,
        "resources": request.resources,
        "holder": request.holder,
        "holding": request.holding,
        "waited_ms": mono_ms.saturating_sub(request.since_ms),
    })
}
