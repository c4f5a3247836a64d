//! `cpw init`: wires cpw into Claude Code, and takes it out again.

use std::ffi::OsString;
use std::fmt::Write;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

use crate::base::exit::{Exit, Wrong};
use crate::base::text::{for_terminal, one_line};
use crate::cmd::above;
use crate::model::schema;
use crate::model::settings::{self, Form, Refused, StatusLine};
use crate::model::starter::STARTER;
use crate::store::file::{self, Rights};
use crate::store::home::State;
use crate::store::leases;
use crate::store::place;
use crate::store::project;
use crate::sys::dir::Dir;
use crate::sys::lock;
use crate::sys::signals;
use crate::ui::print;

/// What the `$schema` of the starter config names, for editors.
const SCHEMA: &str = ".claude/cpw.schema.json";

/// The largest settings file that is read, in bytes.
pub(super) const MAX_SETTINGS: u64 = 16 << 20;

/// Held in the state directory by whoever changes a settings file that is there.
const LOCK: &str = "settings.lock";

/// How long another cpw may hold it.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much of a line with a mistake is shown, in characters.
const EXCERPT: usize = 72;

/// A prompt that matches a rule of [`starter`].
const STARTER_PROMPT: &str = "Analyze a.py, b.py and c.py (name files that exist)";

const EXAMPLES: &str = "Examples:
  cpw init                      for everybody who works on this project
  cpw init --local              only here, not committed; a little faster
  cpw init --user               for all your projects
  cpw init --user --statusline  what runs, in your status line; one that you have stays in it
  cpw init --uninstall          take out what the first one added";

/// Wire cpw into Claude Code's settings, or take it out again
///
/// Adds cpw's hooks to the project's .claude/settings.json, in a form that does nothing where cpw is not installed, and
/// writes .claude/cpw.json to start from if there is none. Everything else in the file stays as it is, to the byte.
/// Running it again changes nothing, or brings older entries of cpw up to date.
#[derive(Debug, Default, clap::Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// Wire .claude/settings.local.json, which is not committed, by cpw's absolute path
    #[arg(long, conflicts_with = "user")]
    pub local: bool,
    /// Wire your own settings.json, for all projects, by cpw's absolute path
    #[arg(long)]
    pub user: bool,
    /// Put what runs into the status line of that file, instead of the hooks; a command that is there is wrapped and stays
    #[arg(long)]
    pub statusline: bool,
    /// Take cpw's hooks and its status line out of that file (with --statusline only that); everything else stays
    #[arg(long)]
    pub uninstall: bool,
    /// Print what the settings file would be, and write nothing
    #[arg(long)]
    pub print: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    // A full disk or a limit is an error to tell, not the end with half a file beside the settings.
    signals::ignore_write_signals()?;
    above::refuse_to_write("no settings are changed")?;
    let done = carry_out(args, &Surroundings::of_process()?)?;
    print::raw(done.as_bytes());
    Ok(Exit::Ok)
}

/// What the command finds around it.
struct Surroundings {
    cwd: PathBuf,
    home: Option<PathBuf>,
    /// `$CLAUDE_CONFIG_DIR`: where the client keeps the user's settings instead of `~/.claude`.
    claude_config: Option<PathBuf>,
    path: Option<OsString>,
    exe: PathBuf,
    state_dir: Option<PathBuf>,
}

impl Surroundings {
    fn of_process() -> anyhow::Result<Self> {
        let folder = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        Ok(Surroundings {
            cwd: std::env::current_dir().context("cannot tell the current directory")?,
            home: folder("HOME"),
            claude_config: folder("CLAUDE_CONFIG_DIR"),
            path: std::env::var_os("PATH"),
            exe: std::env::current_exe().context("cannot tell where cpw is")?,
            state_dir: None,
        })
    }

    fn state(&self) -> anyhow::Result<State> {
        self.state_dir.as_deref().map_or_else(State::open, State::open_at)
    }

    /// The path that hooks call cpw by: as PATH names it, if that is this program, since such a path outlives updates that
    /// `current_exe` with its links resolved would not.
    fn program(&self) -> anyhow::Result<String> {
        let same = |candidate: &PathBuf| {
            candidate.is_absolute()
                && std::fs::canonicalize(candidate).is_ok_and(|p| Some(p) == self.exe.canonicalize().ok())
        };
        let on_path = self.path.iter().flat_map(std::env::split_paths).map(|dir| dir.join("cpw")).find(same);
        let program = on_path.unwrap_or_else(|| self.exe.clone());
        if program.file_name() != Some("cpw".as_ref()) {
            let what = format!("this program is {}, and hooks are recognised by the name cpw", show(&program));
            return Err(Wrong::with_hint(what, "install it under the name cpw").into());
        }
        let name = program.to_str().map(str::to_owned);
        name.ok_or_else(|| Wrong::new(format!("the path of cpw, {}, is not UTF-8", show(&program))).into())
    }

    fn user_settings(&self) -> anyhow::Result<PathBuf> {
        let folder = self.claude_config.clone().or_else(|| self.home.as_ref().map(|home| home.join(".claude")));
        let folder = folder.ok_or_else(|| Wrong::with_hint("there is no place for your settings", "set HOME"))?;
        Ok(folder.join("settings.json"))
    }
}

/// A settings file as it was found.
struct Found {
    /// Behind symbolic links, where it is written.
    target: PathBuf,
    bytes: Option<Vec<u8>>,
}

/// Does what `args` say, and returns what there is to tell.
fn carry_out(args: &Args, around: &Surroundings) -> anyhow::Result<String> {
    let root = project::find(&around.cwd, around.home.as_deref()).context("cannot tell the current directory")?;
    let user = around.user_settings();
    let file = match args {
        Args { user: true, .. } => user?,
        Args { local: true, .. } => root.join(".claude/settings.local.json"),
        _ => root.join(".claude/settings.json"),
    };
    let home = around.home.as_ref().and_then(|home| home.canonicalize().ok());
    if !args.user && home.is_some_and(|home| home == root) {
        let hint = "go into the project's folder, or wire all your projects: cpw init --user";
        return Err(Wrong::with_hint(format!("{} is your home directory, not a project", show(&root)), hint).into());
    }
    let ground = if args.user { around.home.as_deref() } else { Some(root.as_path()) };
    if !args.print
        && let Some(ground) = ground
    {
        place::refuse_lent_root(ground)?;
    }
    let plan = || -> anyhow::Result<(Found, Option<Vec<u8>>)> {
        let found = look(&file)?;
        if !args.user {
            refuse_outside(&root, &file, &found.target)?;
        }
        let wanted = wanted(args, found.bytes.as_deref(), around).map_err(|e| match e.downcast::<Refused>() {
            Ok(refused) => refusal(&file, found.bytes.as_deref().unwrap_or_default(), &refused),
            Err(e) => e,
        })?;
        Ok((found, wanted))
    };
    let (mut found, mut wanted) = plan()?;
    // Of two at once the second finds what the first has made. Without a state directory there is no place for the lock;
    // nor for a copy of what is changed, so that only a new file can be written then.
    let changes = !args.print && wanted != found.bytes;
    let _one_at_a_time = if changes { around.state().ok().map(|state| alone(&state)).transpose()? } else { None };
    if changes {
        (found, wanted) = plan()?;
    }
    if args.statusline && !args.uninstall {
        refuse_to_hide(&file, &found, &root, around)?;
    }
    if args.print {
        return Ok(wanted.map_or_else(String::new, |bytes| String::from_utf8_lossy(&bytes).into_owned()));
    }
    let mut told = String::new();
    match (args.statusline, args.uninstall) {
        (true, uninstall) => {
            let wrapped = has_line(found.bytes.as_deref()) == Some(StatusLine::Other);
            let put = put(&found, wanted.as_deref(), around)?;
            if uninstall {
                put.tell(&mut told, &file, "cpw's status line is out of", "no status line of cpw is in")?;
            } else {
                put.tell(&mut told, &file, "cpw's status line is in", "cpw's status line is already in")?;
                if wrapped {
                    writeln!(told, "The command that was there stays, and runs as before; cpw adds to what it says.")?;
                }
                writeln!(told, "Next: nothing. While a run goes on, the status line of the session says so.")?;
            }
            return Ok(told);
        }
        (false, true) => {
            let put = put(&found, wanted.as_deref(), around)?;
            put.tell(&mut told, &file, "cpw's hooks are out of", "no hook of cpw is in")?;
            let config = root.join(project::CONFIG);
            if !args.user && config.exists() {
                let schema = if root.join(SCHEMA).exists() { ", and its schema beside it" } else { "" };
                writeln!(told, "{} stays: your rules{schema}. Without hooks they start nothing.", show(&config))?;
            }
        }
        (false, false) => {
            let starter = if args.user { None } else { write_starter(&root)? };
            let made = match put(&found, wanted.as_deref(), around) {
                Ok(made) => made,
                Err(e) => {
                    // All or nothing: what was made for an installation that failed goes again.
                    if let Some(starter) = starter {
                        starter.undo();
                    }
                    return Err(e);
                }
            };
            made.tell(&mut told, &file, "cpw's hooks are in", "cpw's hooks are already in")?;
            next_steps(&mut told, args, &root, starter.is_some())?;
            let lines = layers(&root, around).into_iter().filter_map(|layer| has_line(read(&layer.path).as_deref()));
            if !lines.into_iter().any(|line| line != StatusLine::Other) {
                writeln!(told, "To see in the status line what runs: cpw init --user --statusline")?;
            }
        }
    }
    elsewhere(&mut told, &file, &root, around)?;
    Ok(told)
}

/// What the settings file is to be.
fn wanted(args: &Args, bytes: Option<&[u8]>, around: &Surroundings) -> anyhow::Result<Option<Vec<u8>>> {
    if args.uninstall {
        let take_out = if args.statusline { settings::unwire_line } else { settings::uninstall };
        return bytes.map_or(Ok(None), |bytes| Ok(take_out(bytes)?));
    }
    let form = if args.local || args.user { Form::Exec(around.program()?) } else { Form::Shared };
    let put_in = if args.statusline { settings::wire_line } else { settings::install };
    Ok(Some(put_in(bytes, &form)?))
}

/// Why a file is left alone: where, the line itself, and what to do.
fn refusal(file: &Path, bytes: &[u8], refused: &Refused) -> anyhow::Error {
    let what = format!("{}:{}:{}: {}", show(file), refused.line, refused.column, refused.what);
    let hint = "nothing was changed; mend the file, then run cpw init again";
    Wrong::with_hint(what + &excerpt(bytes, refused), hint).into()
}

/// The line with the mistake, and a mark below the place.
fn excerpt(bytes: &[u8], refused: &Refused) -> String {
    let text = String::from_utf8_lossy(bytes);
    let Some(line) = text.trim_start_matches('\u{FEFF}').lines().nth(refused.line - 1) else { return String::new() };
    let shown = |part: &str| for_terminal(part).replace('\t', " ");
    let at = line.char_indices().nth(refused.column - 1).map_or(line.len(), |(at, _)| at);
    let (before, behind) = (shown(&line[..at]), shown(&line[at..]));
    // Of a file that is one long line, what stands around the place.
    let skipped = before.chars().count().saturating_sub(EXCERPT / 2);
    let before: String = before.chars().skip(skipped).collect();
    let behind: String = behind.chars().take(EXCERPT - before.chars().count()).collect();
    let number = refused.line.to_string();
    let (gap, mark) = (" ".repeat(number.len()), " ".repeat(before.chars().count()));
    format!("\n  {number} | {before}{behind}\n  {gap} | {mark}^")
}

/// A settings file that the client reads here.
struct Layer {
    /// What makes `cpw init` work on it.
    flag: &'static str,
    path: PathBuf,
}

/// Those of the project and the user; what stands in a later one wins over an earlier one.
fn layers(root: &Path, around: &Surroundings) -> Vec<Layer> {
    let own = |flag, name| Layer { flag, path: root.join(".claude").join(name) };
    let user = around.user_settings().ok().map(|path| Layer { flag: " --user", path });
    user.into_iter().chain([own("", "settings.json"), own(" --local", "settings.local.json")]).collect()
}

/// A file that cannot be read says nothing.
fn read(path: &Path) -> Option<Vec<u8>> {
    file::read(path, MAX_SETTINGS).ok().flatten()
}

fn has_line(bytes: Option<&[u8]>) -> Option<StatusLine> {
    settings::status_line(bytes?).ok().flatten()
}

/// The client runs one status line: the one in the file that wins. A new one in `file` must not take the place of another.
fn refuse_to_hide(file: &Path, found: &Found, root: &Path, around: &Surroundings) -> anyhow::Result<()> {
    if has_line(found.bytes.as_deref()).is_some() {
        return Ok(());
    }
    let layers = layers(root, around);
    let own = layers.iter().position(|layer| layer.path == file).unwrap_or(0);
    for (i, layer) in layers.iter().enumerate().filter(|(i, _)| *i != own) {
        let Some(line) = has_line(read(&layer.path).as_deref()) else { continue };
        let there = format!("cpw init{} --statusline", layer.flag);
        let (what, hint) = match (line, i < own) {
            (StatusLine::Other, true) => ("would be hidden by one in", format!("put cpw's into that one: {there}")),
            (StatusLine::Other, false) => ("hides one in", format!("put cpw's into that one: {there}")),
            (StatusLine::Ours | StatusLine::ByHand, _) => {
                ("has cpw's line already, and holds here without one in", "there is nothing to do".to_owned())
            }
        };
        let what = format!("the status line of {} {what} {}", show(&layer.path), show(file));
        return Err(Wrong::with_hint(what, hint).into());
    }
    Ok(())
}

fn next_steps(told: &mut String, args: &Args, root: &Path, starter: bool) -> std::fmt::Result {
    let config = root.join(project::CONFIG);
    if args.user {
        return writeln!(told, "Next: in a project, cpw init --local (or write {}), then cpw allow.", project::CONFIG);
    }
    if starter {
        writeln!(told, "{} is there to start from: rules that say which prompts start what.", show(&config))?;
        writeln!(told, "Next: read it, approve it with: cpw allow")?;
        writeln!(told, "Then start claude here and type: {STARTER_PROMPT}")
    } else {
        writeln!(told, "Next: if {} is not approved yet: cpw allow", show(&config))
    }
}

/// Names the other settings files that the client reads here and that call cpw too. The client runs equal calls once, and
/// others each.
fn elsewhere(told: &mut String, file: &Path, root: &Path, around: &Surroundings) -> std::fmt::Result {
    // A file that cannot be understood calls nothing.
    let calls = |path: &Path| settings::wired(&read(path).unwrap_or_default()).unwrap_or_default();
    let here = calls(file);
    for Layer { flag, path: other } in layers(root, around) {
        let there = if other == file { Vec::new() } else { calls(&other) };
        if there.is_empty() {
            continue;
        }
        writeln!(told, "Note: {} calls cpw too.", show(&other))?;
        if here.iter().any(|call| there.iter().any(|other| other.0 == call.0 && other.1 != call.1)) {
            writeln!(told, "      Each hook then runs twice; to take it out there: cpw init{flag} --uninstall")?;
        }
    }
    Ok(())
}

fn show(path: &Path) -> String {
    one_line(&path.to_string_lossy(), 500)
}

fn look(path: &Path) -> anyhow::Result<Found> {
    let target = file::behind_links(path).with_context(|| format!("cannot follow the link {}", show(path)))?;
    let bytes = file::read(&target, MAX_SETTINGS).map_err(|e| cannot("read", &target, &e))?;
    Ok(Found { target, bytes })
}

/// Whoever made a project can have put a link into it: what is outside is not a project's to have changed.
fn refuse_outside(root: &Path, file: &Path, target: &Path) -> anyhow::Result<()> {
    let real = leases::real(target).with_context(|| format!("cannot follow {}", show(target)))?;
    if real.starts_with(root) {
        return Ok(());
    }
    let what = format!("{} leads out of the project, to {}", show(file), show(&real));
    let hint = "nothing was changed; put a file in its place, or wire your own settings: cpw init --user";
    Err(Wrong::with_hint(what, hint).into())
}

fn cannot(verb: &str, path: &Path, e: &io::Error) -> anyhow::Error {
    let hint = match e.kind() {
        io::ErrorKind::PermissionDenied => {
            "nothing was changed; look at the rights and the owner of the file and its folder"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "nothing was changed; with cpw init --user your own settings are wired instead"
        }
        _ => "nothing was changed",
    };
    Wrong::with_hint(format!("cannot {verb} {}: {e}", show(path)), hint).into()
}

/// What became of the settings file.
enum Put {
    Nothing,
    /// Written or removed, and where its former content is kept, if it had any.
    Changed(Option<PathBuf>),
}

impl Put {
    fn tell(&self, told: &mut String, file: &Path, changed: &str, nothing: &str) -> std::fmt::Result {
        match self {
            Put::Nothing => writeln!(told, "Nothing to do: {nothing} {}.", show(file)),
            Put::Changed(backup) => {
                writeln!(told, "Done: {changed} {}.", show(file))?;
                backup.iter().try_for_each(|b| writeln!(told, "      As it was: {}", show(b)))
            }
        }
    }
}

/// Waits until no other cpw changes settings; none does while this is held.
fn alone(state: &State) -> anyhow::Result<File> {
    let lock = Dir::open(state.path()).and_then(|dir| dir.open_rw(LOCK));
    let lock = lock.with_context(|| format!("cannot use {}", show(state.path())))?;
    if !lock::lock_exclusive(&lock, PATIENCE)? {
        let what = "another cpw is just changing settings";
        return Err(Wrong::with_hint(what, "nothing was changed; run cpw init again").into());
    }
    Ok(lock)
}

/// Makes the file what is wanted: these bytes, or gone.
fn put(found: &Found, wanted: Option<&[u8]>, around: &Surroundings) -> anyhow::Result<Put> {
    if found.bytes.as_deref() == wanted {
        return Ok(Put::Nothing);
    }
    let target = &found.target;
    let backup = match &found.bytes {
        Some(bytes) if !bytes.is_empty() => Some(keep(&around.state()?, target, bytes)?),
        _ => None,
    };
    // The client writes this file too, when somebody answers "always allow".
    let now = file::read(target, MAX_SETTINGS).map_err(|e| cannot("read", target, &e))?;
    if now != found.bytes {
        let what = format!("{} has just been changed by another program", show(target));
        return Err(Wrong::with_hint(what, "nothing was changed; run cpw init again").into());
    }
    let Some(wanted) = wanted else {
        std::fs::remove_file(target).map_err(|e| cannot("remove", target, &e))?;
        return Ok(Put::Changed(backup));
    };
    let folder = file::folder_of(target);
    let made_folder = !folder.exists();
    if made_folder {
        std::fs::create_dir_all(folder).map_err(|e| cannot("make", folder, &e))?;
    }
    let old = std::fs::metadata(target).ok();
    let rights = old.as_ref().map_or(Rights::Usual, Rights::Of);
    file::replace(target, wanted, rights).map_err(|e| {
        if made_folder {
            drop(std::fs::remove_dir(folder));
        }
        cannot("write", target, &e)
    })?;
    Ok(Put::Changed(backup))
}

/// Keeps the former content in the state directory: not beside the file, where it would be committed.
fn keep(state: &State, file: &Path, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let folder = state.folder("backups")?;
    let path_hash = crate::base::hex::sha256(file.as_os_str().as_bytes());
    let name = file.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let at = chrono::Utc::now().format("%Y%m%dT%H%M%S%.3fZ");
    let backup = folder.join(format!("{at}-{}-{name}", &path_hash[..8]));
    file::replace(&backup, bytes, Rights::Private).with_context(|| format!("cannot write {}", show(&backup)))?;
    Ok(backup)
}

/// A config that was written where none was.
struct Starter {
    file: PathBuf,
    /// What its `$schema` names, for editors.
    schema: PathBuf,
    folder: Option<PathBuf>,
}

impl Starter {
    fn undo(self) {
        drop(std::fs::remove_file(self.file));
        drop(std::fs::remove_file(self.schema));
        if let Some(folder) = self.folder {
            drop(std::fs::remove_dir(folder));
        }
    }
}

fn write_starter(root: &Path) -> anyhow::Result<Option<Starter>> {
    let file = root.join(project::CONFIG);
    if file.symlink_metadata().is_ok() {
        return Ok(None);
    }
    let folder = file::folder_of(&file).to_owned();
    let made_folder = !folder.exists();
    if made_folder {
        std::fs::create_dir(&folder).map_err(|e| cannot("make", &folder, &e))?;
    }
    let schema = root.join(SCHEMA);
    let made = Starter { file: file.clone(), schema: schema.clone(), folder: made_folder.then_some(folder) };
    let described = format!("{:#}\n", schema::config_schema());
    let written = file::replace(&schema, described.as_bytes(), Rights::Usual)
        .and_then(|()| file::replace(&file, STARTER.as_bytes(), Rights::Usual));
    if let Err(e) = written {
        made.undo();
        return Err(cannot("write", &file, &e));
    }
    Ok(Some(made))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    struct Scene {
        tmp: tempfile::TempDir,
        around: Surroundings,
    }

    impl Scene {
        fn new() -> Self {
            let tmp = tempfile::tempdir().unwrap();
            let at = tmp.path().canonicalize().unwrap();
            for dir in ["home/project/.git", "home/project/src", "bin"] {
                std::fs::create_dir_all(at.join(dir)).unwrap();
            }
            std::fs::write(at.join("bin/cpw"), "").unwrap();
            let around = Surroundings {
                cwd: at.join("home/project/src"),
                home: Some(at.join("home")),
                claude_config: None,
                path: Some(at.join("bin").into()),
                exe: at.join("bin/cpw"),
                state_dir: Some(at.join("state")),
            };
            Scene { tmp, around }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.tmp.path().canonicalize().unwrap().join(path)
        }

        fn init(&self, flags: &[&str]) -> anyhow::Result<String> {
            let has = |flag| flags.contains(&flag);
            let args = Args {
                local: has("local"),
                user: has("user"),
                statusline: has("statusline"),
                uninstall: has("uninstall"),
                print: has("print"),
            };
            carry_out(&args, &self.around)
        }

        /// Every file below, with its content and mode.
        fn files(&self, below: &str) -> Vec<(PathBuf, u32, Vec<u8>)> {
            let mut files = Vec::new();
            let mut folders = vec![self.at(below)];
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(folder).unwrap() {
                    let path = entry.unwrap().path();
                    let meta = path.symlink_metadata().unwrap();
                    let bytes = if meta.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
                    if meta.is_dir() {
                        folders.push(path.clone());
                    }
                    files.push((path, meta.mode(), bytes));
                }
            }
            files.sort();
            files
        }
    }

    fn calls(path: &Path) -> Vec<String> {
        let calls = settings::wired(&std::fs::read(path).unwrap()).unwrap();
        calls.into_iter().map(|(_, command)| command).collect()
    }

    #[test]
    fn a_project_is_wired_from_any_of_its_folders_and_unwired_again() {
        let scene = Scene::new();
        let told = scene.init(&[]).unwrap();
        assert!(told.contains("cpw allow") && told.contains(STARTER_PROMPT), "{told}");
        let settings = scene.at("home/project/.claude/settings.json");
        assert_eq!(calls(&settings).len(), 8);
        assert_eq!(std::fs::read_to_string(scene.at("home/project/.claude/cpw.json")).unwrap(), STARTER);
        let before = scene.files("home");
        assert!(scene.init(&[]).unwrap().contains("Nothing to do"));
        assert_eq!(scene.files("home"), before);
        let told = scene.init(&["uninstall"]).unwrap();
        assert!(told.contains("stays"), "{told}");
        assert!(!settings.exists());
        assert!(scene.init(&["uninstall"]).unwrap().contains("Nothing to do"));
        assert!(!scene.at("state/backups").exists() || scene.files("state/backups").len() == 1);
    }

    #[test]
    fn an_existing_config_is_never_touched() {
        let scene = Scene::new();
        std::fs::create_dir(scene.at("home/project/.claude")).unwrap();
        std::fs::write(scene.at("home/project/.claude/cpw.json"), "mine").unwrap();
        scene.init(&["local"]).unwrap();
        assert_eq!(std::fs::read_to_string(scene.at("home/project/.claude/cpw.json")).unwrap(), "mine");
        assert_eq!(
            calls(&scene.at("home/project/.claude/settings.local.json")),
            vec![scene.at("bin/cpw").to_str().unwrap().to_owned(); 8]
        );
    }

    #[test]
    fn print_shows_and_writes_nothing() {
        let scene = Scene::new();
        let before = scene.files("");
        for flags in [&["print"][..], &["print", "local"], &["print", "user"], &["print", "uninstall"]] {
            let shown = scene.init(flags).unwrap();
            assert_eq!(shown.is_empty(), flags.contains(&"uninstall"), "{shown}");
        }
        assert_eq!(scene.files(""), before);
    }

    #[test]
    fn the_users_settings_follow_the_client_and_the_home_is_no_project() {
        let mut scene = Scene::new();
        scene.init(&["user"]).unwrap();
        assert_eq!(calls(&scene.at("home/.claude/settings.json")).len(), 8);
        assert!(!scene.at("home/project/.claude").exists() && !scene.at("home/.claude/cpw.json").exists());
        // The home's own `.claude` makes no project of it.
        scene.around.cwd = scene.at("home");
        for flags in [&[][..], &["local"], &["uninstall"]] {
            assert!(scene.init(flags).unwrap_err().downcast_ref::<Wrong>().unwrap().hint.is_some());
        }
        scene.around.claude_config = Some(scene.at("elsewhere"));
        scene.init(&["user"]).unwrap();
        assert_eq!(calls(&scene.at("elsewhere/settings.json")).len(), 8);
    }

    #[test]
    fn wiring_in_two_files_is_said() {
        let scene = Scene::new();
        scene.init(&["user"]).unwrap();
        let told = scene.init(&[]).unwrap();
        assert!(told.contains("twice") && told.contains("cpw init --user --uninstall"), "{told}");
        let told = scene.init(&["uninstall"]).unwrap();
        assert!(told.contains("calls cpw too") && !told.contains("twice"), "{told}");
        // Equal calls run once.
        let told = scene.init(&["local"]).unwrap();
        assert!(told.contains("calls cpw too") && !told.contains("twice"), "{told}");
        scene.init(&["local", "uninstall"]).unwrap();
        scene.init(&["user", "uninstall"]).unwrap();
        assert!(!scene.init(&[]).unwrap().contains("too"));
    }

    #[test]
    fn a_status_line_is_wrapped_where_it_is_and_comes_back_to_the_byte() {
        let scene = Scene::new();
        std::fs::create_dir_all(scene.at("home/.claude")).unwrap();
        let user = scene.at("home/.claude/settings.json");
        let before = r#"{"statusLine": {"type": "command", "command": "echo '\u00e4' \/", "padding": 0}}"#;
        std::fs::write(&user, before).unwrap();
        // In the project it would take the place of the user's own.
        for flags in [&["statusline"][..], &["statusline", "local"]] {
            let error = scene.init(flags).unwrap_err();
            let hint = error.downcast_ref::<Wrong>().unwrap().hint.clone().unwrap();
            assert!(error.to_string().contains("would be hidden") && hint.contains("cpw init --user --statusline"));
        }
        assert!(scene.init(&[]).unwrap().contains("cpw init --user --statusline"));
        let told = scene.init(&["statusline", "user"]).unwrap();
        assert!(told.contains("stays"), "{told}");
        let wired = std::fs::read_to_string(&user).unwrap();
        assert!(
            wired.contains("statusline --wrap ") && wired.ends_with(r#"; echo '\u00e4' \/", "padding": 0}}"#),
            "{wired}"
        );
        assert!(scene.init(&["statusline", "user"]).unwrap().contains("Nothing to do"));
        assert!(scene.init(&["statusline"]).unwrap_err().to_string().contains("already"));
        assert!(!scene.init(&[]).unwrap().contains("--statusline"), "it is there");
        scene.init(&["statusline", "user", "uninstall"]).unwrap();
        assert_eq!(std::fs::read_to_string(&user).unwrap(), before);
        // Where there is none, one of its own comes, and goes with the hooks.
        std::fs::remove_file(&user).unwrap();
        scene.init(&["statusline", "local"]).unwrap();
        let local = scene.at("home/project/.claude/settings.local.json");
        assert_eq!(settings::status_line(&std::fs::read(&local).unwrap()).unwrap(), Some(StatusLine::Ours));
        scene.init(&["local", "uninstall"]).unwrap();
        assert!(!local.exists());
    }

    #[test]
    fn a_mistake_is_shown_with_its_line_and_a_mark() {
        let refused = |text: &str| settings::install(Some(text.as_bytes()), &Form::Shared).unwrap_err();
        let shown = |text: &str| excerpt(text.as_bytes(), &refused(text));
        assert_eq!(shown("{\n\t\"a\": 1,\n}"), "\n  2 |  \"a\": 1,\n    |        ^");
        assert_eq!(shown("{\"a\": 1"), "\n  1 | {\"a\": 1\n    |        ^");
        assert_eq!(shown("\u{FEFF}{\"\u{202E}ä\" 1}"), "\n  1 | {\"ä\" 1}\n    |      ^");
        let long = shown(&format!("{{\"a\": [{}1,]}}", "1, ".repeat(5000)));
        assert!(long.lines().all(|l| l.chars().count() < 90), "{long}");
        let [text, mark] = long.lines().skip(1).collect::<Vec<_>>()[..] else { panic!("{long}") };
        assert_eq!(text.chars().nth(mark.chars().count() - 1), Some(','));
    }

    #[test]
    fn of_two_at_once_none_is_lost() {
        let scene = Scene::new();
        let settings = scene.at("home/project/.claude/settings.json");
        std::fs::create_dir(scene.at("home/project/.claude")).unwrap();
        std::fs::write(&settings, "{\"model\": \"opus\"}\n").unwrap();
        for _ in 0..20 {
            std::thread::scope(|scope| {
                for statusline in [false, true] {
                    let args = Args { statusline, ..Args::default() };
                    let around = &scene.around;
                    scope.spawn(move || {
                        while let Err(e) = carry_out(&args, around) {
                            assert!(e.to_string().contains("just been changed"), "{e:#}");
                        }
                    });
                }
            });
            assert_eq!(calls(&settings).len(), 8);
            assert!(has_line(read(&settings).as_deref()) == Some(StatusLine::Ours));
            scene.init(&["uninstall"]).unwrap();
            assert_eq!(read(&settings).unwrap(), b"{\"model\": \"opus\"}\n");
        }
    }

    #[test]
    fn a_linked_file_is_written_through_with_its_mode_and_kept_aside() {
        let scene = Scene::new();
        std::fs::create_dir(scene.at("home/project/.claude")).unwrap();
        let real = scene.at("home/dotfiles.json");
        std::fs::write(&real, "{\"model\":\"opus\"}").unwrap();
        std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
        let link = scene.at("home/.claude/settings.json");
        std::fs::create_dir(scene.at("home/.claude")).unwrap();
        symlink("../dotfiles.json", &link).unwrap();
        scene.init(&["user"]).unwrap();
        assert!(link.symlink_metadata().unwrap().is_symlink());
        assert_eq!(calls(&real).len(), 8);
        assert_eq!(real.metadata().unwrap().mode() & 0o7777, 0o640);
        let kept = scene.files("state/backups");
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].1 & 0o7777, kept[0].2.as_slice()), (0o600, b"{\"model\":\"opus\"}".as_slice()));
        scene.init(&["user", "uninstall"]).unwrap();
        assert_eq!(std::fs::read(&real).unwrap(), b"{\"model\":\"opus\"}");
        // A link to a file that does not exist yet, and a ring.
        std::fs::remove_file(&real).unwrap();
        scene.init(&["user"]).unwrap();
        assert_eq!(calls(&real).len(), 8);
        std::fs::remove_file(&real).unwrap();
        symlink(".claude/settings.json", &real).unwrap();
        assert!(scene.init(&["user"]).is_err());
    }

    #[test]
    fn a_project_cannot_have_anything_outside_of_it_changed() {
        let scene = Scene::new();
        let (own, shared) = (scene.at("home/own.json"), scene.at("home/project/shared.json"));
        std::fs::create_dir(scene.at("home/project/.claude")).unwrap();
        let link = scene.at("home/project/.claude/settings.json");
        for target in ["../../own.json", "../../not-there.json"] {
            std::fs::write(&own, "{\"model\":\"opus\"}").unwrap();
            symlink(target, &link).unwrap();
            for args in [&[][..], &["uninstall"]] {
                let refused = scene.init(args).unwrap_err();
                assert!(refused.to_string().contains("leads out of the project"), "{refused}");
            }
            std::fs::remove_file(&link).unwrap();
        }
        // A link within the project is its own affair.
        symlink("../shared.json", &link).unwrap();
        scene.init(&[]).unwrap();
        assert_eq!(calls(&shared).len(), 8);
        // All of `.claude`.
        std::fs::remove_dir_all(scene.at("home/project/.claude")).unwrap();
        std::fs::create_dir(scene.at("home/elsewhere")).unwrap();
        symlink("../elsewhere", scene.at("home/project/.claude")).unwrap();
        assert!(scene.init(&[]).is_err());
        assert_eq!(std::fs::read(&own).unwrap(), b"{\"model\":\"opus\"}");
        assert!(!scene.at("home/not-there.json").exists() && scene.files("home/elsewhere").is_empty());
    }

    #[test]
    fn what_cannot_be_done_leaves_everything_as_it_was() {
        let scene = Scene::new();
        std::fs::create_dir(scene.at("home/project/.claude")).unwrap();
        let settings = scene.at("home/project/.claude/settings.json");
        std::fs::write(&settings, "{\n  // mine\n}").unwrap();
        let before = scene.files("");
        let error = scene.init(&[]).unwrap_err();
        assert!(
            error.to_string().contains("settings.json:2:3: a comment")
                && error.to_string().ends_with("\n  2 |   // mine\n    |   ^"),
            "{error}"
        );
        assert_eq!(scene.files(""), before);
        // A folder in the file's place.
        std::fs::remove_file(&settings).unwrap();
        std::fs::create_dir(&settings).unwrap();
        let before = scene.files("");
        scene.init(&[]).unwrap_err();
        assert_eq!(scene.files(""), before);
        std::fs::remove_dir(&settings).unwrap();
        // A state directory that cannot be used: found out only after the starter was written.
        std::fs::write(&settings, "{}").unwrap();
        std::fs::write(scene.at("state"), "").unwrap();
        let before = scene.files("");
        scene.init(&[]).unwrap_err();
        assert_eq!(scene.files(""), before);
    }

    #[test]
    fn a_file_that_the_client_writes_meanwhile_is_left_to_it() {
        let scene = Scene::new();
        let settings = scene.at("home/project/settings.json");
        std::fs::write(&settings, "{}").unwrap();
        let found = look(&settings).unwrap();
        std::fs::write(&settings, "{\"permissions\":{}}").unwrap();
        assert!(put(&found, Some(b"ours"), &scene.around).is_err());
        assert!(put(&found, None, &scene.around).is_err());
        assert_eq!(std::fs::read(&settings).unwrap(), b"{\"permissions\":{}}");
    }

    #[test]
    fn a_folder_without_the_right_to_write_is_named() {
        if crate::sys::process::user() == 0 {
            // Root may write everywhere: shown with the error itself instead.
            let e = io::Error::from(io::ErrorKind::ReadOnlyFilesystem);
            assert!(format!("{}", cannot("write", Path::new("/p/x"), &e)).contains("/p/x"));
            return;
        }
        let scene = Scene::new();
        let project = scene.at("home/project");
        std::fs::set_permissions(&project, std::fs::Permissions::from_mode(0o500)).unwrap();
        let error = scene.init(&[]).unwrap_err();
        std::fs::set_permissions(&project, std::fs::Permissions::from_mode(0o700)).unwrap();
        assert!(error.to_string().contains("home/project/.claude"), "{error}");
        assert!(!project.join(".claude").exists());
    }
}
