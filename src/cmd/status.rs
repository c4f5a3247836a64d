//! `cpw status`: what runs here, how far it is, what went wrong. Whoever looks also helps: an open run whose workers are all
//! dead gets a new one. The object that `--json` prints is described in `docs/status.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::actor::crew::{self, Life, Tended};
use crate::actor::planner;
use crate::base::exit::Exit;
use crate::base::ids::{RunId, SessionId, WorkerNo};
use crate::base::text::one_line;
use crate::cmd::find;
use crate::cmd::lease::Standing;
use crate::cmd::{top, watch};
use crate::logic::leases::{self, Lease};
use crate::logic::state::State;
use crate::logic::view::View;
use crate::model::event::Process;
use crate::model::resource::Resource;
use crate::store::home;
use crate::store::hooklog;
use crate::store::registry;
use crate::store::run::{self, Run, RunDir, RunError};
use crate::store::session;
use crate::sys::clock;
use crate::sys::host;
use crate::sys::process;
use crate::ui::overview::{self, Entry, Facts, Hand, Hands, Now, Picture, Screen};
use crate::ui::paint::{Paint, Tone};
use crate::ui::print;
use crate::ui::report;
use crate::ui::when;

/// Runs of a project that are listed, unless told otherwise.
const LISTED: usize = 10;

/// Lines of a screen that something else than tasks may take.
const BESIDE: usize = 12;

/// Tasks of a run that are shown however small the screen is.
const LEAST_ROWS: usize = 6;

/// Tasks of a run that are shown among others where there is no screen.
const MANY_ROWS: usize = 50;

/// Running tasks whose output is looked at.
const LISTENED: usize = 64;

/// How much of the end of an output is looked at, in bytes.
const TAIL: u64 = 1024;

/// Hook errors older than this are not mentioned, in milliseconds.
const RECENT_MS: u64 = 24 * 3600 * 1000;

/// Hook errors that are counted, at most.
const MAX_ERRORS: usize = 100;

/// Show the runs of this project, or one run in detail
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    cpw status               the newest runs here, open ones with their tasks\n  \
    cpw status 3f9a2c        one run in detail, by a unique beginning of its id or of the id's last part\n  \
    cpw status --all         the runs of all your projects\n  \
    cpw status --watch       live, on the whole screen, as cpw top; in a pipe all of it again with every change\n  \
    cpw status 2026 --watch  the same, beginning with a run; in a pipe line by line until it has ended\n  \
    cpw status --json        for programs; `cpw schema status` and docs/status.md describe the object\n\n\
    A terminal shows of a long run what went wrong, what runs and what comes next, and counts the rest; a pipe gets whole lines.\n\
    An open run of this project whose workers are all dead gets a new one: looking finishes what was left. Runs of other \
    projects are only looked at.")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub struct Args {
    /// The run: its id or a unique beginning of it
    run: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
    /// Go on showing what changes: on a terminal as `cpw top`, in a pipe until the run has ended, or Ctrl-C
    #[arg(short, long, conflicts_with = "json")]
    watch: bool,
    /// The runs of all your projects, not only of this one
    #[arg(long, conflicts_with_all = ["run", "watch"])]
    all: bool,
    /// How many runs of a project, the newest; 0 for all of them
    #[arg(short = 'n', long, value_name = "N", default_value_t = LISTED, conflicts_with = "run")]
    limit: usize,
    /// All tasks of a run, however many
    #[arg(long, conflicts_with = "watch")]
    tasks: bool,
}

/// A run as it is shown.
pub(super) enum Shown {
    /// With all its tasks.
    Whole(Box<Whole>),
    /// Ended: only what its index knows.
    Brief(RunId, Box<View>),
    /// Not readable: its state in a word, and why.
    Damaged(RunId, &'static str, String),
}

pub(super) struct Whole {
    pub(super) run: Run,
    facts: Facts,
}

/// What is shown of a project.
struct Part {
    project: PathBuf,
    shown: Vec<Shown>,
    /// Older runs, which are not shown.
    more: usize,
    /// All its runs.
    ids: Vec<RunId>,
    leases: anyhow::Result<Standing>,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    if args.all {
        let here = find::project().ok();
        let parts: Vec<Part> = everywhere().into_iter().filter_map(|p| other(p, here.as_deref(), args.limit)).collect();
        print(args, &parts);
        return Ok(Exit::Ok);
    }
    let project = find::project()?;
    if args.watch && top::fits() {
        return top::on_screen(&project, args.run.as_deref(), args.limit == 0);
    }
    if args.watch {
        return match &args.run {
            Some(given) => watch::run(&find::run(&project, Some(given))?),
            None => watch::all(&project, args.limit == 0),
        };
    }
    let part = match &args.run {
        Some(given) => one(project, given)?,
        None => newest(project, args.limit, true)?,
    };
    print(args, &[part]);
    Ok(Exit::Ok)
}

fn one(project: PathBuf, given: &str) -> anyhow::Result<Part> {
    let folder = find::run(&project, Some(given))?;
    let id = folder.path().file_name().and_then(|n| RunId::new(n.to_str()?).ok());
    let leases = leases(&project);
    let shown = id.into_iter().filter_map(|id| look(&folder, id, true, true)).collect();
    let ids = run::list(&project)?;
    Ok(Part { project, shown, more: 0, ids, leases }.settled())
}

/// The newest runs of a project. `tended`: with somebody to work on each.
fn newest(project: PathBuf, limit: usize, tended: bool) -> anyhow::Result<Part> {
    let ids = run::list(&project)?;
    let limit = if limit == 0 { ids.len() } else { limit };
    let open = |id: &RunId| match RunDir::open(&project, id) {
        Ok(folder) => look(&folder, id.clone(), false, tended),
        Err(RunError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
        Err(e) => Some(damaged(id.clone(), e)),
    };
    let mut rest = ids.iter();
    let mut shown = Vec::new();
    while shown.len() < limit {
        let Some(id) = rest.next() else { break };
        shown.extend(open(id));
    }
    let (more, leases) = (rest.len(), leases(&project));
    Ok(Part { project, shown, more, ids, leases }.settled())
}

/// A project among all of them; `None` where it has no run any more.
fn other(project: PathBuf, here: Option<&Path>, limit: usize) -> Option<Part> {
    let tended = here == Some(&*project);
    newest(project, limit, tended).ok().filter(|part| !part.shown.is_empty())
}

/// The projects in which this user's cpw has made runs, that with the newest first.
fn everywhere() -> Vec<PathBuf> {
    let Ok(Some(home)) = home::State::existing() else { return Vec::new() };
    let mut seen = BTreeSet::new();
    let all = registry::projects(&home);
    all.into_iter().filter(|project| seen.insert(project.clone())).collect()
}

impl Part {
    /// With what its leases say about its tasks.
    fn settled(mut self) -> Part {
        if let Ok(standing) = &self.leases {
            for one in &mut self.shown {
                if let Shown::Whole(whole) = one {
                    whole.facts.blocked = blocked(&whole.run, standing);
                }
            }
        }
        self
    }

    fn json(&self) -> Value {
        let runs: Vec<Value> = self.shown.iter().map(|one| report::run(&entry(one))).collect();
        let leases = match &self.leases {
            Ok(standing) => standing.to_json(),
            Err(e) => json!({ "error": format!("{e:#}") }),
        };
        json!({ "project": self.project, "runs": runs, "leases": leases })
    }
}

/// What tasks that could start wait for: somebody else has it.
fn blocked(run: &Run, standing: &Standing) -> BTreeMap<usize, String> {
    let wait = |i: usize| {
        let wanted: Vec<Resource> = run.state.resources.get(&i)?.iter().map(|r| Resource::of_normal(r)).collect();
        let held = |l: &&Lease| l.resources.iter().any(|r| wanted.iter().any(|w| w.overlaps(r)));
        let lease = standing.held.iter().find(held)?;
        Some((i, format!("{}, held by {}", leases::list(&lease.resources), leases::name(&lease.holder))))
    };
    run.state.ready_leased.iter().filter_map(|(_, i)| wait(*i)).collect()
}

fn print(args: &Args, parts: &[Part]) {
    let (errors, hook) = (hook_errors(), last_hook(parts));
    if args.json {
        let mut all = json!({ "version": 1 });
        match parts {
            [part] if !args.all => {
                if let (Value::Object(all), Value::Object(own)) = (&mut all, part.json()) {
                    all.extend(own);
                }
            }
            parts => all["projects"] = parts.iter().map(Part::json).collect(),
        }
        all["hook_errors"] = errors_json(errors.as_ref());
        if let Some(hook) = hook {
            all["last_hook"] = hook.json();
        }
        print::out(all);
        return;
    }
    let paint = Paint::for_stdout();
    let size = host::terminal_size(std::io::stdout());
    let mut out = String::new();
    for part in parts {
        let names = match size {
            Some(_) => overview::short_names(part.shown.iter().map(id_of), &part.ids),
            None => BTreeMap::new(),
        };
        let width = size.map(|(width, _)| usize::from(width));
        let screen = Screen { width, rows: rows(args, size, part), names: &names, paint };
        out.push_str(&part_text(part, args, &screen));
    }
    if parts.is_empty() {
        out.push_str("no run in any of your projects\n");
    }
    let screen = Screen { width: size.map(|(width, _)| usize::from(width)), ..Screen::wide(paint) };
    if let Some(hook) = hook {
        out.push_str(&screen.text(0, Tone::Dim, hook.text()));
    }
    if let Some(errors) = &errors {
        out.push_str(&paint.warn(errors_text(errors)));
    }
    print::raw(out.as_bytes());
}

/// How many tasks of a run have room: of the one that was asked for as many as the screen has lines, of several a part of it.
fn rows(args: &Args, size: Option<(u16, u16)>, part: &Part) -> Option<usize> {
    let whole = part.shown.iter().filter(|one| matches!(one, Shown::Whole(_))).count().max(1);
    match size {
        _ if args.tasks => None,
        Some((_, height)) if args.run.is_some() => Some(usize::from(height).saturating_sub(BESIDE).max(LEAST_ROWS)),
        Some((_, height)) => {
            let room = usize::from(height).saturating_sub(part.shown.len() + BESIDE / 2);
            Some((room / whole).saturating_sub(2).max(LEAST_ROWS))
        }
        None if args.run.is_some() => None,
        None => Some(MANY_ROWS),
    }
}

fn part_text(part: &Part, args: &Args, screen: &Screen<'_>) -> String {
    let mut out = String::new();
    if args.all {
        out.push_str(&screen.text(0, Tone::Bold, one_line(&part.project.to_string_lossy(), 1000)));
    }
    for one in &part.shown {
        out.push_str(&overview::show(&entry(one), args.run.is_some(), screen));
    }
    if part.shown.is_empty() {
        out.push_str(&screen.text(
            0,
            Tone::Plain,
            format!("no run in {}", one_line(&part.project.to_string_lossy(), 500)),
        ));
    } else if part.more > 0 {
        out.push_str(&screen.text(0, Tone::Dim, format!("{} older: cpw status --limit 0", part.more)));
    }
    out.push_str(&leases_text(&part.leases, screen));
    out
}

/// What is to be said beside the runs.
pub(super) fn beside(project: &Path, shown: &[Shown], more: usize, paint: Paint) -> String {
    let mut out = if shown.is_empty() {
        format!("no run in {}\n", one_line(&project.to_string_lossy(), 500))
    } else if more > 0 {
        paint.dim(format_args!("{more} older: cpw status --limit 0\n"))
    } else {
        String::new()
    };
    out.push_str(&leases_text(&leases(project), &Screen::wide(paint)));
    out
}

fn leases(project: &Path) -> anyhow::Result<Standing> {
    Standing::of(&planner::runs_folder(project, home::State::existing()?.as_ref())?)
}

/// Who holds what, and who waits for it.
fn leases_text(leases: &anyhow::Result<Standing>, screen: &Screen<'_>) -> String {
    const SHOWN: usize = 20;
    let standing = match leases {
        Ok(standing) => standing,
        Err(e) => return screen.text(0, Tone::Bad, format!("leases: {}", one_line(&format!("{e:#}"), 300))),
    };
    let mut out = String::new();
    let held = standing.held.iter().map(|l| ("held by", &l.resources, &l.holder, l.since_ms));
    let queue = standing.queue.iter().map(|r| ("waited for by", &r.resources, &r.holder, r.since_ms));
    for (how, resources, holder, since_ms) in held.chain(queue).take(SHOWN) {
        let (what, who) = (leases::list(resources), leases::name(holder));
        let run = holder.run.as_ref().map_or_else(String::new, |run| format!(" of {}", screen.name(run)));
        let text = format!("{what}: {how} {who}{run}, for {}", standing.age(since_ms));
        out.push_str(&screen.text(0, Tone::Plain, text));
    }
    let more = (standing.held.len() + standing.queue.len()).saturating_sub(SHOWN);
    if more > 0 {
        out.push_str(&screen.text(0, Tone::Plain, format!("{more} more: cpw lease --list")));
    }
    out
}

/// The newest runs, and how many there are beside. What is `known` from a look before is only brought up to date.
pub(super) fn list(
    project: &Path,
    all: bool,
    known: &mut BTreeMap<RunId, Shown>,
) -> anyhow::Result<(Vec<Shown>, usize)> {
    let ids = run::list(project)?;
    let mut shown = Vec::new();
    let mut ids = ids.into_iter();
    while shown.len() < LISTED || all {
        let Some(id) = ids.next() else { break };
        let again = known.remove(&id).and_then(look_again);
        shown.extend(
            again.or_else(|| RunDir::open(project, &id).ok().and_then(|folder| look(&folder, id, false, true))),
        );
    }
    Ok((shown, ids.len()))
}

/// Looks at a run, and where it is to be `tended` sees to it that somebody works on it. `None`: the folder holds no run.
fn look(folder: &RunDir, id: RunId, whole: bool, tended: bool) -> Option<Shown> {
    if !whole {
        match folder.open_view() {
            Ok(hooked) if hooked.view.ended.is_some() => return Some(Shown::Brief(id, Box::new(hooked.view))),
            Ok(_) => {}
            Err(RunError::NoRun(_)) => return None,
            Err(e) => return Some(damaged(id, e)),
        }
    }
    match folder.open_run() {
        Ok(run) if tended => Some(tend(run)),
        Ok(run) => {
            let dead = run.state.view.ended.is_none() && !crew::anybody(&run.folder, &run.state.view);
            Some(found(run, if dead { Hands::Dead } else { Hands::Alive }))
        }
        Err(RunError::NoRun(_)) => None,
        Err(e) => Some(damaged(id, e)),
    }
}

/// A run that was looked at before; `None`: it has to be opened anew.
fn look_again(before: Shown) -> Option<Shown> {
    match before {
        Shown::Brief(..) => Some(before),
        Shown::Whole(whole) => {
            let mut run = whole.run;
            run.refresh().ok().filter(|()| run.state.view.ended.is_none()).map(|()| tend(run))
        }
        Shown::Damaged(..) => None,
    }
}

fn tend(mut run: Run) -> Shown {
    let tended = match crew::tend_run(&mut run) {
        Ok(Tended::Alive) => Hands::Alive,
        Ok(Tended::Hired(worker)) => Hands::Hired(worker),
        Ok(Tended::Nobody) => Hands::Nobody,
        Ok(Tended::Foreign) => Hands::Foreign(registry::FOREIGN),
        Err(e) => Hands::None(e.to_string()),
    };
    found(run, tended)
}

fn found(run: Run, tended: Hands) -> Shown {
    let facts = facts(&run, tended);
    Shown::Whole(Box::new(Whole { run, facts }))
}

fn damaged(id: RunId, e: RunError) -> Shown {
    const DAMAGED: &str = "damaged";
    match e {
        RunError::Damaged { why, .. } => Shown::Damaged(id, DAMAGED, why),
        e @ RunError::Plan(_) => Shown::Damaged(id, DAMAGED, e.to_string()),
        // Busy, or refused by the system: it says nothing about the run.
        e => Shown::Damaged(id, "unknown", e.to_string()),
    }
}

struct Errors {
    count: usize,
    last: hooklog::Line,
    file: String,
}

fn hook_errors() -> Option<Errors> {
    let home = home::State::existing().ok().flatten()?;
    let since = i64::try_from(clock::unix_ms().saturating_sub(RECENT_MS)).unwrap_or(0);
    let mut errors = hooklog::errors(home.path(), MAX_ERRORS);
    errors.retain(|line| when::unix_ms(&line.ts).is_some_and(|t| t >= since));
    let count = errors.len();
    let file = home.path().join(hooklog::NAME).display().to_string();
    errors.into_iter().next().map(|last| Errors { count, last, file })
}

fn errors_text(errors: &Errors) -> String {
    let Errors { count, last, file } = errors;
    let n = if *count == 1 { "1 hook error".into() } else { format!("{count} hook errors") };
    let error = one_line(last.error.as_deref().unwrap_or_default(), 120);
    format!("{n} in the last day, the last in {}: {error} (all in {file})\n", one_line(&last.hook, 40))
}

/// A sign that the client calls hooks here.
struct LastHook {
    unix_ms: i64,
    /// Which, where that is known.
    hook: Option<String>,
    session: SessionId,
}

impl LastHook {
    fn text(&self) -> String {
        let hook = self.hook.as_deref().map_or_else(|| "a hook".into(), |hook| one_line(hook, 40));
        format!("last hook seen: {hook} of session {}, {}", self.session, when::ago(self.unix_ms, clock::unix_ms()))
    }

    fn json(&self) -> Value {
        json!({ "hook": self.hook, "session": self.session, "ts": when::stamp(self.unix_ms) })
    }
}

/// The last hook of which there is a trace: in the logs of the runs that are shown, in the records of their sessions, and in
/// the hook log. Hooks that have nothing to do leave none, unless `CPW_LOG` asks for it.
fn last_hook(parts: &[Part]) -> Option<LastHook> {
    let mut seen = Vec::new();
    let mut sessions = BTreeSet::new();
    for one in parts.iter().flat_map(|part| &part.shown) {
        let (view, hook) = match one {
            Shown::Whole(whole) => (&whole.run.state.view, whole.run.state.hook.as_ref()),
            Shown::Brief(_, view) => (&**view, None),
            Shown::Damaged(..) => continue,
        };
        let Some(session) = &view.session else { continue };
        sessions.insert(session.clone());
        let at = hook.and_then(|hook| Some((when::unix_ms(&hook.ts)?, hook)));
        seen.extend(at.map(|(unix_ms, hook)| LastHook {
            unix_ms,
            hook: Some(hook.hook.clone()),
            session: session.clone(),
        }));
    }
    let home = home::State::existing().ok().flatten()?;
    let noted = |session: &SessionId| {
        let unix_ms = session::changed_ms(home.path(), session)?;
        Some(LastHook { unix_ms, hook: None, session: session.clone() })
    };
    seen.extend(sessions.iter().filter_map(noted));
    seen.extend(hooklog::last(home.path()).and_then(|line| {
        let session = SessionId::new(&line.session?).ok().filter(|session| sessions.contains(session))?;
        Some(LastHook { unix_ms: when::unix_ms(&line.ts)?, hook: Some(line.hook), session })
    }));
    // Of two in the same second the one that has a name.
    seen.into_iter().max_by_key(|hook| (hook.unix_ms / 1000, hook.hook.is_some()))
}

fn errors_json(errors: Option<&Errors>) -> Value {
    errors.map_or(Value::Null, |e| json!({ "count": e.count, "last": e.last, "file": e.file }))
}

pub(super) fn text(out: &mut String, shown: &Shown, detail: bool, paint: Paint) {
    out.push_str(&overview::entry(&entry(shown), detail, paint));
}

fn id_of(shown: &Shown) -> &RunId {
    match shown {
        Shown::Whole(whole) => &whole.run.plan.run,
        Shown::Brief(id, _) | Shown::Damaged(id, ..) => id,
    }
}

/// A run as it is now.
fn entry(shown: &Shown) -> Entry<'_> {
    let now = Now { mono_ms: clock::mono_ms(), unix_ms: clock::unix_ms(), boot_id: clock::boot_id() };
    match shown {
        Shown::Damaged(id, word, why) => Entry::Damaged(id, word, why),
        Shown::Brief(id, view) => Entry::Brief(id, view, now),
        Shown::Whole(whole) => {
            let Whole { run: Run { plan, state, .. }, facts } = &**whole;
            Entry::Whole(Picture { plan, state, facts, now })
        }
    }
}

/// What is known of a run beside its log.
fn facts(run: &Run, tended: Hands) -> Facts {
    let workers = run.state.view.workers.iter();
    let hand = |(&n, p): (&u32, &Process)| {
        let alive = crew::life(&run.folder, WorkerNo(n), p) == Life::Alive;
        Hand { worker: WorkerNo(n), pid: p.pid, alive }
    };
    Facts {
        folder: run.folder.path().to_owned(),
        shown: run.folder.shown(),
        hands: workers.map(hand).collect(),
        tended,
        stopped: run.state.running.iter().copied().filter(|&i| is_stopped(&run.state, i)).collect(),
        written: run.state.running.iter().take(LISTENED).filter_map(|&i| Some((i, last_line(run, i)?))).collect(),
        blocked: BTreeMap::new(),
    }
}

/// The last line that a running task has written, if it says nothing else about itself: from the end of that of its two files
/// which has changed last.
fn last_line(run: &Run, i: usize) -> Option<String> {
    let task = &run.state.tasks[i];
    let open = task.open.as_ref().filter(|_| task.note.is_none() && task.line.is_none())?;
    let logs = run.folder.worker(open.worker).and_then(|dir| dir.sub("logs")).ok()?;
    let files = run::output_names(&run.plan.tasks[i].id, open.number).map(|name| logs.open_read(name).ok());
    let changed = |file: &File| file.metadata().ok().filter(|m| m.len() > 0).and_then(|m| m.modified().ok());
    let file = files.into_iter().flatten().filter(|file| changed(file).is_some()).max_by_key(changed)?;
    let length = file.metadata().ok()?.len();
    let mut end = vec![0; usize::try_from(length.min(TAIL)).ok()?];
    let begin = length - end.len() as u64;
    file.read_exact_at(&mut end, begin).ok()?;
    // Programs that draw their progress anew write over the line with a carriage return.
    let text = String::from_utf8_lossy(&end);
    text.rsplit(['\n', '\r']).map(|line| one_line(line, 200)).find(|line| !line.is_empty())
}

/// Whether the process of a running task, or its worker, was stopped.
fn is_stopped(state: &State, i: usize) -> bool {
    let open = state.tasks[i].open.as_ref();
    let worker = open.and_then(|o| state.view.workers.get(&o.worker.0));
    let processes = open.and_then(|o| o.process.as_ref()).into_iter().chain(worker);
    processes.filter_map(process::exists).any(|stat| stat.is_stopped())
}
