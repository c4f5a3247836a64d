//! The stage of the demonstration: a project, a home and a state directory in a folder of its own, hooks called there as
//! Claude Code calls them, and the end of everything that was started there.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::{Map, Value, json};

use crate::actor::crew;
use crate::base::env;
use crate::base::hex;
use crate::base::text::one_line;
use crate::store::home::State;
use crate::store::run::{self, RunDir};
use crate::store::{project, trust};
use crate::sys::clock;
use crate::sys::process;
use crate::sys::program::{self, Program};
use crate::sys::random;
use crate::sys::signals::Termination;
use crate::sys::spawn::Exit;
use crate::sys::tree::{self, Target};

/// What one hook may take at most, whatever it holds for. Its own limits are far below.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long workers whose run has ended may take to leave by themselves, and those that were killed.
const LEAVE: Duration = Duration::from_secs(5);

/// Between two looks whether they have left.
const LOOK: Duration = Duration::from_millis(20);

/// Prefixes of variables that are about another session, another run, or another account.
const FOREIGN: [&str; 3] = ["CLAUDE", "CPW_", "ANTHROPIC_"];

/// The same, whole names.
const FOREIGN_NAMES: [&str; 4] = [env::AI_AGENT, env::TRACEPARENT, "XDG_STATE_HOME", "XDG_CONFIG_HOME"];

/// Why the demonstration does not go on.
#[derive(Debug)]
pub(super) enum Stopped {
    /// A signal has asked for it.
    Interrupted,
    /// Nobody reads it any more.
    Unread,
    /// Something is not as it should be.
    Failed(String),
}

impl<E: Into<anyhow::Error>> From<E> for Stopped {
    fn from(e: E) -> Stopped {
        Stopped::Failed(format!("{:#}", e.into()))
    }
}

/// What a hook said.
#[derive(Debug)]
pub(super) struct Said {
    out: Value,
    /// How long it took.
    pub(super) ms: u64,
}

impl Said {
    fn specific(&self, name: &str) -> Option<&Value> {
        self.out.get("hookSpecificOutput")?.get(name)
    }

    /// What the model reads.
    pub(super) fn context(&self) -> &str {
        self.specific("additionalContext").and_then(Value::as_str).unwrap_or_default()
    }

    /// Why a call is refused, if it is.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.specific("permissionDecision")?;
        self.specific("permissionDecisionReason").and_then(Value::as_str)
    }

    /// The input that replaces a call's own.
    pub(super) fn input(&self) -> Option<&Value> {
        self.specific("updatedInput")
    }

    /// What the user reads.
    pub(super) fn for_user(&self) -> &str {
        self.out.get("systemMessage").and_then(Value::as_str).unwrap_or_default()
    }
}

/// The stage.
pub(super) struct Stage<'a> {
    folder: PathBuf,
    exe: PathBuf,
    env: Vec<(OsString, OsString)>,
    session: String,
    prompt: String,
    termination: &'a Termination,
}

impl<'a> Stage<'a> {
    /// Makes the folder, with these files in its project and this config, approved.
    pub(super) fn set_up(
        files: &[(&str, &str)],
        config: &str,
        termination: &'a Termination,
    ) -> anyhow::Result<Stage<'a>> {
        let above = std::env::temp_dir();
        let above = above.canonicalize().with_context(|| format!("cannot use {}", above.display()))?;
        let folder = above.join(format!("cpw-demo-{}", &hex::encode(&random::bytes())[..12]));
        let make = |path: &Path| {
            let made = DirBuilder::new().mode(0o700).create(path);
            // A umask can take from the owner what is needed to use it.
            let made = made.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o700)));
            made.with_context(|| format!("cannot make {}", path.display()))
        };
        make(&folder)?;
        let unique =
            format!("{}-0000-4000-8000-{}", &hex::encode(&random::bytes())[..8], &hex::encode(&random::bytes())[..12]);
        let stage = Stage {
            exe: process::exe_path().context("cannot tell where cpw is")?,
            env: environment(&folder),
            prompt: format!("prompt-{}", &unique[..8]),
            session: unique,
            termination,
            folder,
        };
        let furnished = stage.furnish(files, config, &make);
        if furnished.is_err() {
            drop(std::fs::remove_dir_all(&stage.folder));
        }
        furnished.map(|()| stage)
    }

    fn furnish(
        &self,
        files: &[(&str, &str)],
        config: &str,
        make: &dyn Fn(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for folder in [self.project(), self.home(), self.project().join(".claude")] {
            make(&folder)?;
        }
        let named = |name: &str| self.project().join(name);
        for (name, text) in files.iter().chain(&[(project::CONFIG, config)]) {
            std::fs::write(named(name), text).with_context(|| format!("cannot write {}", named(name).display()))?;
        }
        // Our own rules in our own state directory: nobody else's approval is touched.
        let state = State::open_at(&self.state())?;
        trust::approve(&state, &trust::config_path(&self.project())?, config.as_bytes())
    }

    /// The folder of everything.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The project.
    pub(super) fn project(&self) -> PathBuf {
        self.folder.join("project")
    }

    /// The state directory.
    pub(super) fn state(&self) -> PathBuf {
        self.folder.join("state")
    }

    fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// A file of the project, as the model names it.
    pub(super) fn file(&self, name: &str) -> String {
        self.project().join(name).to_string_lossy().into_owned()
    }

    /// Calls a hook of cpw as the client does by the wiring of `cpw init`, with the fields that this event has beside those of all.
    pub(super) fn hook(&self, call: &[&str], event: &str, fields: &Value) -> Result<Said, Stopped> {
        let mut payload = json!({
            "session_id": self.session,
            "transcript_path": self.home().join("transcript.jsonl"),
            "cwd": self.project(),
            "prompt_id": self.prompt,
            "permission_mode": "acceptEdits",
            "hook_event_name": event,
        });
        let fields: Map<String, Value> = fields.as_object().cloned().unwrap_or_default();
        if let Some(payload) = payload.as_object_mut() {
            payload.extend(fields);
        }
        let begun = clock::mono_ms();
        let out = self.cpw(call, format!("{payload}\n").as_bytes())?;
        let ms = clock::mono_ms().saturating_sub(begun);
        if out.is_empty() {
            return Ok(Said { out: Value::Null, ms });
        }
        let out =
            serde_json::from_slice(&out).with_context(|| format!("cpw {} did not answer in JSON", call.join(" ")))?;
        Ok(Said { out, ms })
    }

    /// A call of a tool that is about to run, by its number.
    pub(super) fn before_tool(&self, number: usize, tool: &str, input: &Value) -> Result<Said, Stopped> {
        self.hook(&["pre-tool-use"], "PreToolUse", &call(number, tool, input))
    }

    /// The same after it has run, and the end of the model's step. What the model is told then.
    pub(super) fn after_tool(&self, number: usize, tool: &str, input: &Value) -> Result<Said, Stopped> {
        let mut fields = call(number, tool, input);
        fields["tool_response"] = json!({"type": "text"});
        self.hook(&["post-tool-use", "--batched"], "PostToolUse", &fields)?;
        self.hook(&["post-tool-batch"], "PostToolBatch", &json!({"tool_calls": [fields]}))
    }

    /// Runs cpw in the project, and returns what it says.
    fn cpw(&self, call: &[&str], stdin: &[u8]) -> Result<Vec<u8>, Stopped> {
        if self.termination.take().is_some() {
            return Err(Stopped::Interrupted);
        }
        let argv: Vec<OsString> = std::iter::once("cpw").chain(call.iter().copied()).map(OsString::from).collect();
        let ran = program::run(Program {
            path: &self.exe,
            argv: &argv,
            env: &self.env,
            cwd: &self.project(),
            stdin: Some(program::spoken(stdin)?),
            stdout: None,
            until: Instant::now() + PATIENCE,
            stop: Some(self.termination.fd()),
        });
        if self.termination.take().is_some() {
            return Err(Stopped::Interrupted);
        }
        let ran = ran.map_err(Stopped::Failed)?;
        if ran.exit == Exit::Code(0) {
            return Ok(ran.stdout);
        }
        let how = match ran.exit {
            Exit::Code(code) => format!("ended with exit code {code}"),
            Exit::Signal(number) => format!("was killed by signal {number}"),
        };
        Err(Stopped::Failed(format!("cpw {} {how} {}", call.join(" "), one_line(&ran.stderr, 300)).trim_end().into()))
    }

    /// Why the hooks did nothing, as far as they wrote it down.
    pub(super) fn swallowed(&self) -> Option<String> {
        let last = crate::store::hooklog::errors(&self.state(), 1).into_iter().next()?;
        Some(one_line(&format!("{}: {}", last.hook, last.error.unwrap_or_default()), 300))
    }

    /// The run that the prompt has started.
    pub(super) fn run(&self) -> Option<RunDir> {
        let ids = run::list(&self.project()).ok()?;
        RunDir::open(&self.project(), ids.first()?).ok()
    }

    /// Waits for the workers to leave, ends what is still there, and removes the folder unless it is to be kept.
    pub(super) fn clear(self, in_order: bool, keep: bool) -> anyhow::Result<()> {
        let until = Instant::now() + if in_order { LEAVE } else { Duration::ZERO };
        while Instant::now() < until && self.is_staffed() {
            std::thread::sleep(LOOK);
        }
        let state = self.state();
        let all = Target::new(None, &[(env::STATE_DIR, &state.to_string_lossy())]);
        anyhow::ensure!(tree::kill_now(&all, LEAVE), "something that works in {} does not end", self.folder.display());
        if keep {
            return Ok(());
        }
        std::fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }

    fn is_staffed(&self) -> bool {
        self.run().is_some_and(|folder| folder.open_view().is_ok_and(|hooked| crew::anybody(&folder, &hooked.view)))
    }
}

impl std::fmt::Debug for Stage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn call(number: usize, tool: &str, input: &Value) -> Value {
    json!({"tool_name": tool, "tool_input": input, "tool_use_id": format!("toolu_{number:02}")})
}

/// The user's environment without what is about other sessions, with the client's own variables of this one.
fn environment(folder: &Path) -> Vec<(OsString, OsString)> {
    let mut all: Vec<(OsString, OsString)> = std::env::vars_os().filter(|(name, _)| !is_foreign(name)).collect();
    let own = |name: &str, value: &OsStr| (OsString::from(name), value.to_owned());
    let pid = std::process::id().to_string();
    all.retain(|(name, _)| name != "HOME");
    all.extend([
        own("HOME", folder.join("home").as_os_str()),
        own(env::STATE_DIR, folder.join("state").as_os_str()),
        own(env::CLAUDE_PROJECT_DIR, folder.join("project").as_os_str()),
        own(env::CLAUDE_PID, OsStr::new(&pid)),
        own(env::CLAUDECODE, OsStr::new("1")),
        own(env::CLAUDE_ENTRYPOINT, OsStr::new("cli")),
    ]);
    all
}

fn is_foreign(name: &OsStr) -> bool {
    let name = name.as_bytes();
    FOREIGN.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
        || FOREIGN_NAMES.iter().any(|other| name == other.as_bytes())
}
