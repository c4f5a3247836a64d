//! `cpw doctor`: whether Claude Code calls cpw here. What its settings say, what keeps it from reading them, whether the very
//! commands that stand there answer, and which other hooks see the same calls. Nothing is changed. Who looks at a project that
//! came from elsewhere does not run what it brought along: a command is tried only where it is ours or the user's own.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Check, Finding};
use crate::base::env;
use crate::base::text::one_line;
use crate::cmd::hold;
use crate::cmd::init::MAX_SETTINGS;
use crate::model::config;
use crate::model::settings::{self, Call, Form};
use crate::store::file;
use crate::store::project;
use crate::sys::process;
use crate::sys::program::{self, Program};
use crate::sys::spawn::Exit;

/// How long a hook that has nothing to do may take to say so.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is told to a hook to see whether it answers: a session that there is not.
const NOBODY: &str = "00000000-0000-4000-8000-000000000000";

/// A file that the client reads settings from.
pub(super) struct Layer {
    /// How `cpw init` is told to work on it; none for an administrator's.
    pub(super) flag: Option<&'static str>,
    pub(super) path: PathBuf,
    /// Its content; none where there is no such file, or it cannot be read.
    pub(super) bytes: Option<Vec<u8>>,
}

impl Layer {
    fn at(flag: Option<&'static str>, path: PathBuf) -> Layer {
        let bytes = file::read(&path, MAX_SETTINGS).ok().flatten();
        Layer { flag, path, bytes }
    }

    fn value(&self) -> Value {
        let bytes = self.bytes.as_deref().unwrap_or_default();
        let text = String::from_utf8_lossy(bytes);
        serde_json::from_str(text.trim_start_matches('\u{FEFF}')).unwrap_or_default()
    }

    fn calls(&self) -> Vec<Call> {
        settings::calls(self.bytes.as_deref().unwrap_or_default()).unwrap_or_default()
    }

    fn shown(&self) -> String {
        one_line(&self.path.to_string_lossy(), 300)
    }

    /// Whether it came with the project, or could have.
    fn is_of_project(&self) -> bool {
        matches!(self.flag, Some("" | " --local"))
    }

    fn is_wired(&self) -> bool {
        self.calls().iter().any(|call| call.ours)
    }
}

/// The folder of the client's own files of this user.
fn client_home() -> Option<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    named("CLAUDE_CONFIG_DIR").or_else(|| Some(named("HOME")?.join(".claude")))
}

/// All of them, the one that wins last.
pub(super) fn layers(project: &Path) -> Vec<Layer> {
    let own = |flag, name: &str| Layer::at(Some(flag), project.join(".claude").join(name));
    let user = client_home().map(|dir| Layer::at(Some(" --user"), dir.join("settings.json")));
    let managed = Layer::at(None, settings::MANAGED.into());
    user.into_iter().chain([own("", "settings.json"), own(" --local", "settings.local.json"), managed]).collect()
}

/// All checks of the wiring.
pub(super) fn checks(project: &Path) -> Vec<Check> {
    let layers = layers(project);
    let mut out = vec![wired(&layers)];
    out.extend(layers.iter().filter_map(unreadable));
    out.extend(switched_off(&layers));
    out.extend(layers.iter().filter(|l| l.is_wired()).filter_map(|layer| answers(layer, project)));
    let files: Vec<PathBuf> = layers.iter().map(|l| l.path.clone()).collect();
    out.extend(hold::older_wiring(&files, MAX_SETTINGS));
    out.extend(plugin(&layers));
    out.extend(rewriters(project, &layers));
    out.extend(untrusted(project));
    out
}

fn wired(layers: &[Layer]) -> Check {
    const NAME: &str = "hooks";
    let found: Vec<&Layer> = layers.iter().filter(|l| l.is_wired()).collect();
    match found[..] {
        [] => Check::new(NAME, Finding::Warn, "no settings file of Claude Code calls cpw")
            .remedy("`cpw init`, or `cpw init --user` for all projects"),
        [only] => Check::new(NAME, Finding::Ok, format!("wired in {}", only.shown())),
        _ => {
            let commands = |l: &&Layer| {
                let mut own: Vec<Call> = l.calls().into_iter().filter(|call| call.ours).collect();
                own.sort_by(|a, b| (&a.event, &a.command, &a.args).cmp(&(&b.event, &b.command, &b.args)));
                own
            };
            let names: Vec<String> = found.iter().map(|l| l.shown()).collect();
            let text = format!("wired more than once: {}", names.join(", "));
            if found.windows(2).all(|two| commands(&two[0]) == commands(&two[1])) {
                return Check::new(NAME, Finding::Ok, format!("{text}; equal calls run once"));
            }
            let flag = found.iter().find_map(|l| l.flag.filter(|f| !f.is_empty())).unwrap_or_default();
            Check::new(NAME, Finding::Note, format!("{text}; each hook runs twice, which does no harm but costs"))
                .remedy(format!("take it out in one of them: `cpw init{flag} --uninstall`"))
        }
    }
}

/// A file that the client skips as a whole, with every hook in it.
fn unreadable(layer: &Layer) -> Option<Check> {
    let refused = settings::install(Some(layer.bytes.as_deref()?), &Form::Shared).err()?;
    let text = format!(
        "{}:{}:{}: {}\nClaude Code may skip the whole file, with every hook in it",
        layer.shown(),
        refused.line,
        refused.column,
        one_line(&refused.what, 300)
    );
    Some(Check::new("settings", Finding::Error, text).remedy("mend that line"))
}

/// What keeps the client from running the hooks that are wired.
fn switched_off(layers: &[Layer]) -> Option<Check> {
    const NAME: &str = "settings";
    let says = |layer: &Layer, key: &str| layer.value().get(key).and_then(Value::as_bool);
    let managed = layers.iter().find(|l| l.flag.is_none());
    if let Some(layer) = managed.filter(|l| says(l, "allowManagedHooksOnly") == Some(true)) {
        let text = format!("{} allows an administrator's hooks alone: cpw is not called", layer.shown());
        return Some(
            Check::new(NAME, Finding::Error, text).remedy("ask your administrator; `cpw run` works without hooks"),
        );
    }
    let (layer, off) = layers.iter().rev().find_map(|l| Some((l, says(l, "disableAllHooks")?)))?;
    off.then(|| {
        let text = format!("\"disableAllHooks\" is true in {}: cpw is not called", layer.shown());
        Check::new(NAME, Finding::Error, text).remedy("take that line out, or set it to false")
    })
}

/// Why a command is not tried, where it must not be.
fn untried(layer: &Layer, call: &Call, project: &Path) -> Option<&'static str> {
    let program = Path::new(&call.command);
    match call.args {
        None if call.is_shared_line() => None,
        None => Some("it is not the line that `cpw init` writes"),
        Some(_) if !program.is_absolute() => Some("it names its program by no whole path"),
        Some(_) if is_below(program, project) => Some("it is a program of the project"),
        Some(_) if layer.is_of_project() && !is_this(program) => {
            Some("it is another program than this cpw, and what a project names is not started by looking at it")
        }
        Some(_) => None,
    }
}

/// Whether a file is below the project, by its name or behind links.
fn is_below(path: &Path, project: &Path) -> bool {
    path.starts_with(project) || std::fs::canonicalize(path).is_ok_and(|real| real.starts_with(project))
}

/// Whether a file is this very program.
fn is_this(path: &Path) -> bool {
    let own = process::exe_path().and_then(std::fs::canonicalize);
    own.is_ok_and(|own| std::fs::canonicalize(path).is_ok_and(|there| there == own))
}

/// Calls one of the commands of ours in a settings file exactly as it stands there, if it may be tried.
fn answers(layer: &Layer, project: &Path) -> Option<Check> {
    const NAME: &str = "self-test";
    let calls = layer.calls();
    let call =
        calls.iter().find(|call| call.ours && call.event == "PostToolBatch").or(calls.iter().find(|c| c.ours))?;
    let init = format!("`cpw init{}` writes it anew", layer.flag.unwrap_or_default());
    let shown = one_line(&call.command, 200);
    if call.is_shared_line() && cpw_on_path(project).is_none() {
        // It is silent then, and says nothing about itself.
        return None;
    }
    let bad = |text: String| Some(Check::new(NAME, Finding::Error, text).remedy(init.clone()));
    if call.args.is_some() && call.command.contains('/') && !Path::new(&call.command).is_file() {
        return bad(format!("{} calls {shown}, which is not there: nothing of cpw runs", layer.shown()));
    }
    if let Some(why) = untried(layer, call, project) {
        let text = format!("{} calls {shown}, which was not tried: {why}", layer.shown());
        return Some(Check::new(NAME, Finding::Warn, text).remedy(init));
    }
    match ask(call, project) {
        Err(why) => bad(format!("{shown}, as {} calls it, does not answer: {}", layer.shown(), one_line(&why, 200))),
        Ok(ran) if ran.exit != Exit::Code(0) || !ran.stdout.is_empty() => bad(format!(
            "{shown}, as {} calls it, ends with {} and says: {}",
            layer.shown(),
            match ran.exit {
                Exit::Code(code) => format!("exit code {code}"),
                Exit::Signal(number) => format!("signal {number}"),
            },
            one_line(&format!("{}{}", ran.stderr, String::from_utf8_lossy(&ran.stdout)), 200)
        )),
        Ok(_) => {
            let other = call.args.as_ref().and_then(|_| other_program(Path::new(&call.command), project));
            Some(match other {
                Some(other) => Check::new(NAME, Finding::Warn, format!("{} calls {other}", layer.shown())).remedy(init),
                None => Check::new(NAME, Finding::Ok, format!("a hook answers as {} calls it", layer.shown())),
            })
        }
    }
}

/// The program at `path`, where that is another one than this.
fn other_program(path: &Path, project: &Path) -> Option<String> {
    let says =
        || if is_below(path, project) { "it is inside the project, and was not asked".into() } else { version(path) };
    (!is_this(path)).then(|| format!("another cpw, {}: {}", one_line(&path.to_string_lossy(), 200), says()))
}

/// What a program says of its version.
fn version(path: &Path) -> String {
    let argv = [path.as_os_str().to_owned(), "--version".into()];
    let env: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    match run(path, &argv, &env, Path::new("/"), b"") {
        Ok(ran) => one_line(&String::from_utf8_lossy(&ran.stdout), 60),
        Err(_) => "it does not tell its version".into(),
    }
}

fn ask(call: &Call, project: &Path) -> Result<program::Ran, String> {
    let payload = json!({"session_id": NOBODY, "cwd": project, "hook_event_name": call.event, "tool_calls": []});
    let foreign = |name: &OsStr| name == env::LOG || name == "PATH" || name.as_encoded_bytes().starts_with(b"CLAUDE");
    let mut all: Vec<(OsString, OsString)> = std::env::vars_os().filter(|(name, _)| !foreign(name)).collect();
    all.extend(std::env::join_paths(path_outside(project)).ok().map(|path| ("PATH".into(), path)));
    all.extend([
        (env::CLAUDE_SESSION_ID.into(), NOBODY.into()),
        (env::CLAUDE_PROJECT_DIR.into(), project.into()),
        (env::CLAUDECODE.into(), "1".into()),
    ]);
    let (path, argv): (PathBuf, Vec<OsString>) = match &call.args {
        Some(args) => {
            let own = OsString::from(&call.command);
            (call.command.clone().into(), std::iter::once(own).chain(args.iter().map(OsString::from)).collect())
        }
        None => ("/bin/sh".into(), ["sh", "-c", &call.command].map(OsString::from).to_vec()),
    };
    run(&path, &argv, &all, project, format!("{payload}\n").as_bytes())
}

fn run(
    path: &Path,
    argv: &[OsString],
    env: &[(OsString, OsString)],
    cwd: &Path,
    said: &[u8],
) -> Result<program::Ran, String> {
    let until = Instant::now() + PATIENCE;
    let stdin = Some(program::spoken(said).map_err(|e| e.to_string())?);
    program::run(Program { path, argv, env, cwd, stdin, stdout: None, until, stop: None })
}

/// The folders on PATH in which nothing is that the project could have put there.
fn path_outside(project: &Path) -> Vec<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).filter(|dir| dir.is_absolute() && !is_below(dir, project)).collect()
}

fn cpw_on_path(project: &Path) -> Option<PathBuf> {
    path_outside(project).into_iter().map(|dir| dir.join("cpw")).find(|p| p.is_file())
}

/// A folder on PATH by which a project is looked into for programs.
pub(super) fn path_into(project: &Path) -> Option<Check> {
    let dirs = std::env::var_os("PATH")?;
    let inside = std::env::split_paths(&dirs).find(|dir| !dir.is_absolute() || is_below(dir, project))?;
    let shown = if inside.as_os_str().is_empty() { ".".into() } else { one_line(&inside.to_string_lossy(), 200) };
    let text = format!(
        "PATH leads into the project: {shown}; for cpw it does not count, for hooks of a shared wiring it does"
    );
    let remedy = "take it out of PATH: whoever wrote the project chooses what `cpw`, `git` and others are there";
    Some(Check::new("program", Finding::Warn, text).remedy(remedy))
}

/// The program that a wiring which finds cpw on PATH would call.
pub(super) fn on_path(project: &Path) -> Check {
    const NAME: &str = "program";
    let own = process::exe_path().unwrap_or_default();
    let linked = if cfg!(target_feature = "crt-static") { "static" } else { "dynamic" };
    let text = format!("cpw {} ({linked}) at {}", env!("CARGO_PKG_VERSION"), own.display());
    let Some(found) = cpw_on_path(project) else {
        return Check::new(NAME, Finding::Warn, format!("{text}, which is not on PATH"))
            .remedy("put its folder on PATH; hooks wired by `cpw init` without --local look for it there");
    };
    match other_program(&found, project) {
        Some(other) => Check::new(NAME, Finding::Warn, format!("{text}\nPATH has {other}"))
            .remedy("put this one's folder first on PATH, or remove the other one"),
        None => Check::new(NAME, Finding::Ok, text),
    }
}

/// cpw as a plugin beside a wiring in settings.
fn plugin(layers: &[Layer]) -> Option<Check> {
    let enabled = |l: &Layer| {
        let value = l.value();
        let plugins = value.get("enabledPlugins")?.as_object()?.clone();
        plugins.into_iter().find(|(name, on)| name.starts_with("cpw@") && *on != false).map(|(name, _)| name)
    };
    let name = one_line(&layers.iter().find_map(enabled)?, 100);
    let Some(layer) = layers.iter().find(|l| l.is_wired()) else {
        return Some(Check::new(
            "plugin",
            Finding::Ok,
            format!("{name} is enabled, and no settings file calls cpw beside it"),
        ));
    };
    let text = format!("{name} is enabled, and {} calls cpw, too: each hook runs twice", layer.shown());
    let remedy = format!("`cpw init{} --uninstall`, or disable the plugin", layer.flag.unwrap_or_default());
    Some(Check::new("plugin", Finding::Note, text).remedy(remedy))
}

/// Hooks of others that see the calls which a merge of the project's rules is to rewrite.
fn rewriters(project: &Path, layers: &[Layer]) -> Option<Check> {
    let bytes = file::read(&project.join(project::CONFIG), project::MAX_CONFIG).ok()??;
    let rules = config::check(&bytes).ok()?.rules;
    let tools: Vec<&str> =
        rules.iter().flat_map(|r| &r.merge).filter(|m| !m.set.is_empty()).map(|m| m.tool.as_str()).collect();
    let others: Vec<String> = layers
        .iter()
        .flat_map(|layer| layer.calls().into_iter().map(move |call| (layer, call)))
        .filter(|(_, call)| !call.ours && call.event == "PreToolUse")
        .filter_map(|(layer, call)| {
            let tool = tools.iter().find(|tool| call.sees(tool))?;
            Some(format!("{} sees {tool}, too: {}", layer.shown(), one_line(&call.command, 120)))
        })
        .collect();
    (!others.is_empty()).then(|| {
        Check::new("other hooks", Finding::Note, others.join("\n"))
            .remedy("if one of them rewrites the call, who finishes later wins: let only one of them do it")
    })
}

/// Whether the client has been told to trust the folder; without that a session in a terminal runs no hook.
fn untrusted(project: &Path) -> Option<Check> {
    const NAME: &str = "trust";
    let home = std::env::var_os("CLAUDE_CONFIG_DIR").or_else(|| std::env::var_os("HOME")).filter(|v| !v.is_empty())?;
    let state = file::read(&Path::new(&home).join(".claude.json"), MAX_SETTINGS).ok()??;
    let state: Value = serde_json::from_slice(&state).ok()?;
    let projects = state.get("projects")?.as_object()?;
    let accepted = |dir: &Path| {
        dir.to_str().and_then(|dir| projects.get(dir)).is_some_and(|p| p["hasTrustDialogAccepted"] == true)
    };
    if project.ancestors().any(accepted) {
        return Some(Check::new(NAME, Finding::Ok, "Claude Code trusts this folder"));
    }
    let text =
        "Claude Code has not been told to trust this folder: in a terminal it asks first, and runs no hook before";
    Some(Check::new(NAME, Finding::Note, text).remedy("start `claude` here once, and answer its question"))
}
