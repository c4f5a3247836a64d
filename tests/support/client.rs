//! The real client: where it is installed, and how it is run so that it talks to the stand-in, knows no account, asks no
//! question of a first start, and leaves nothing behind.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::api::Api;
use super::terminal::Terminal;
use super::world::{World, wait_for};

/// The versions that `.ci/clients` installs: the current one and an older one.
const PINNED: [&str; 2] = ["2.1.329", "2.1.197"];
/// Paths of client programs, separated by colons, instead of the pinned ones.
const CLIENTS: &str = "CPW_TEST_CLIENTS";
/// A key that no account has.
const KEY: &str = "sk-ant-api03-made-up-for-an-offline-test-0000000000";
/// A model the client knows as a current one: older ones are shown what hooks say in another form.
const MODEL: &str = "claude-opus-5-5";
/// How long a client may take for what it should do at once, on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(1);
/// How long a client that is asked to leave may take.
const LEAVE: Duration = Duration::from_secs(3);

/// A client program.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    /// The program itself, not a script around it.
    pub(crate) path: PathBuf,
    /// Its version.
    pub(crate) version: String,
}

impl Installed {
    /// The client at `path`, with the version that its package tells or, where it came without, its name: it is not run,
    /// since that is done only where it cannot reach outside.
    pub(crate) fn at(path: &Path) -> Result<Self, String> {
        let version = if let Ok(text) = fs::read_to_string(path.with_file_name("package.json")) {
            let package: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
            package["version"].as_str().map(str::to_owned)
        } else {
            let path = fs::canonicalize(path).map_err(|error| format!("{}: {error}", path.display()))?;
            path.file_name().map(|name| name.to_string_lossy().into_owned())
        };
        let version = version.ok_or_else(|| format!("the package of {} tells no version", path.display()))?;
        Ok(Self { path: path.to_owned(), version })
    }
}

/// The clients to test with; in place of one that is missing, what to do about it.
pub(crate) fn installed() -> Vec<Result<Installed, String>> {
    let paths: Vec<PathBuf> = match std::env::var_os(CLIENTS) {
        Some(list) => std::env::split_paths(&list).collect(),
        None => PINNED.map(pinned).into(),
    };
    let find = |path: PathBuf| {
        if !path.is_file() {
            return Err(format!("no client at {}; .ci/clients installs the pinned ones", path.display()));
        }
        Installed::at(&path)
    };
    paths.into_iter().map(find).collect()
}

fn pinned(version: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(".client").join(version);
    folder.join("node_modules/@anthropic-ai/claude-code-linux-x64/claude")
}

/// How a client is to be run in a world.
pub(crate) struct Client<'a> {
    installed: &'a Installed,
    world: &'a World,
    mode: &'static str,
    args: Vec<OsString>,
    environment: Vec<(String, OsString)>,
}

impl<'a> Client<'a> {
    /// A client whose requests go to the stand-in, in a home that looks used: no question of a first start is asked.
    pub(crate) fn new(installed: &'a Installed, world: &'a World, api: &Api) -> Self {
        let approved = &KEY[KEY.len() - 20..];
        let project = world.project().display().to_string();
        let seed = json!({
            "hasCompletedOnboarding": true,
            "lastOnboardingVersion": installed.version,
            "theme": "dark",
            "numStartups": 10,
            "bypassPermissionsModeAccepted": true,
            "customApiKeyResponses": {"approved": [approved], "rejected": []},
            "projects": {project: {"hasTrustDialogAccepted": true, "hasCompletedProjectOnboarding": true}},
        });
        fs::write(world.path("home/.claude.json"), seed.to_string()).expect("the client's settings are written");
        let mut environment: Vec<(String, OsString)> = [
            ("ANTHROPIC_API_KEY", KEY),
            ("DISABLE_TELEMETRY", "1"),
            ("DISABLE_ERROR_REPORTING", "1"),
            ("DISABLE_AUTOUPDATER", "1"),
            ("DISABLE_BUG_COMMAND", "1"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            // Guesses at the next prompt are requests that look like the conversation's own.
            ("CLAUDE_CODE_ENABLE_PROMPT_SUGGESTION", "false"),
            // As root the client refuses to skip permissions unless it is told that it is in a sandbox, as it is.
            ("IS_SANDBOX", "1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into();
        environment.push(("ANTHROPIC_BASE_URL".to_owned(), api.url().into()));
        Self { installed, world, mode: "acceptEdits", args: Vec::new(), environment }
    }

    /// The permission mode, `acceptEdits` unless told otherwise.
    pub(crate) fn mode(mut self, mode: &'static str) -> Self {
        self.mode = mode;
        self
    }

    /// One more argument.
    pub(crate) fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// One more variable, for the client and all it starts.
    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Runs `-p` with this prompt to its end.
    pub(crate) fn print(&self, prompt: &str) -> Printed {
        self.start_print(prompt).wait(LIMIT)
    }

    /// Starts `-p` with this prompt.
    pub(crate) fn start_print(&self, prompt: &str) -> Printing {
        // Files, not pipes: whoever inherits them must not make us wait for it.
        let number = uuid::Uuid::new_v4().simple();
        let stdout = self.world.path(&format!("stdout-{number}"));
        let stderr = self.world.path(&format!("stderr-{number}"));
        let mut command = self.world.command(&self.installed.path);
        self.complete(&mut command);
        command.args(["-p", "--output-format", "stream-json", "--verbose", "--include-hook-events", "--", prompt]);
        command.stdout(File::create(&stdout).expect("a file for stdout"));
        command.stderr(File::create(&stderr).expect("a file for stderr"));
        let child = command.spawn().expect("the client starts");
        Printing { child: Process::new(child), stdout, stderr, started: Instant::now() }
    }

    /// Opens an interactive session in a terminal and waits until it takes input.
    pub(crate) fn open(&self) -> Terminal {
        // The client needs the terminal as its controlling one; `setsid` of util-linux gives it that and becomes the client.
        let mut command = self.world.command("setsid");
        command.arg("--ctty").arg(&self.installed.path);
        self.complete(&mut command);
        let terminal = Terminal::start(command);
        terminal.wait_for_text("\u{276f}", LIMIT);
        terminal
    }

    /// Gives another program, which starts the client by itself, the surroundings that it needs; the client is `claude` on
    /// its `PATH`.
    pub(crate) fn surround(&self, command: &mut Command) {
        let bin = self.world.path("bin");
        if !bin.exists() {
            fs::create_dir(&bin).expect("a folder for the client");
            std::os::unix::fs::symlink(&self.installed.path, bin.join("claude")).expect("the client on PATH");
        }
        let path = self.world.environment().into_iter().find(|(name, _)| *name == "PATH").expect("PATH is set").1;
        let mut longer = bin.into_os_string();
        longer.push(":");
        longer.push(path);
        command.env("PATH", longer).envs(self.environment.iter().map(|(name, value)| (name, value)));
    }

    fn complete(&self, command: &mut Command) {
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.args(["--model", MODEL, "--permission-mode", self.mode]).args(&self.args);
    }
}

/// A client process that was started here. Dropping it asks it to leave, then kills it.
pub(crate) struct Process {
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    pub(crate) fn new(child: Child) -> Self {
        Self { child, ended: None }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its exit status, if it ends within the limit.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = wait_for(limit, || self.child.try_wait().expect("our own child"));
        }
        self.ended
    }

    /// Sends a signal, unless it has ended: its number may belong to another process by then.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.wait(Duration::ZERO).is_none() {
            kill(self.pid(), signal).expect("a child not yet waited for can be signalled");
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        if self.wait(LEAVE).is_none() {
            self.signal(Signal::SIGKILL);
            self.wait(LEAVE);
        }
    }
}

/// A `-p` run under way.
pub(crate) struct Printing {
    child: Process,
    stdout: PathBuf,
    stderr: PathBuf,
    started: Instant,
}

impl Printing {
    /// The client's process, to signal it.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.child
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self, limit: Duration) -> Printed {
        let status = self.child.wait(limit);
        let took = self.started.elapsed();
        let stdout = fs::read_to_string(&self.stdout).expect("the client writes UTF-8");
        let stderr = fs::read_to_string(&self.stderr).expect("the client writes UTF-8");
        let status = status.unwrap_or_else(|| panic!("the client still ran after {limit:?}\n{stdout}\n{stderr}"));
        let lines: Vec<Value> = stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}")))
            .collect();
        let result = lines.iter().rfind(|line| line["type"] == "result").cloned().unwrap_or_default();
        Printed { code: status.code(), signal: status.signal(), lines, result, stderr, took }
    }
}

/// What a `-p` run has left.
#[derive(Debug)]
pub(crate) struct Printed {
    /// The exit code; none if a signal ended it.
    pub(crate) code: Option<i32>,
    /// The signal that ended it.
    pub(crate) signal: Option<i32>,
    /// The lines of stdout, decoded.
    pub(crate) lines: Vec<Value>,
    /// The last result object; null where there was none.
    pub(crate) result: Value,
    /// stderr, whole.
    pub(crate) stderr: String,
    /// From the start to the end of the process.
    pub(crate) took: Duration,
}

impl Printed {
    /// The final text, after a look that the run has ended as it should.
    pub(crate) fn text(&self) -> &str {
        let completed = self.code == Some(0) && self.result["is_error"] == false;
        // The older client does not tell why it ended.
        let reason = self.result["terminal_reason"].as_str().unwrap_or("completed");
        assert!(completed && reason == "completed", "{self:#?}");
        self.result["result"].as_str().expect("a result has a text")
    }
}
