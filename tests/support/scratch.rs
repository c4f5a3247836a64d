//! A scratch project with a home and a state directory, in which one operation is tried again and again: what is there
//! before it is kept in memory and put back in place, since a run is bound to its folder's inode and a copy would be inert.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::ledger::Ledger;

/// The session of all hooks.
pub(crate) const SESSION: &str = "0d7c21db-c86a-4ce8-8596-eab74720765d";

/// Another session of the project.
pub(crate) const OTHER: &str = "5f3a8a52-9a1c-4c55-b7a4-1c6a3e0f9b21";

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The program under test.
pub(crate) fn program() -> PathBuf {
    let named = std::env::var_os("CPW_TEST_BINARY").filter(|name| !name.is_empty());
    let program = named.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_cpw")), PathBuf::from);
    fs::canonicalize(&program).unwrap_or_else(|e| panic!("{}: {e}", program.display()))
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: String,
    pub(crate) err: String,
    /// It was not over in time, and was killed.
    pub(crate) late: bool,
    pub(crate) took: Duration,
}

impl Done {
    pub(crate) fn is_ok(&self) -> bool {
        self.status.success() && !self.late
    }

    /// Whether SIGKILL ended it.
    pub(crate) fn is_killed(&self) -> bool {
        self.status.signal() == Some(Signal::SIGKILL as i32)
    }
}

/// What is said on stdin to a hook.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) hook: &'static str,
    pub(crate) event: &'static str,
    pub(crate) session: &'static str,
    /// Whether somebody sits before the client, which is this process.
    pub(crate) client: bool,
    pub(crate) more: Value,
}

enum Kept {
    Folder,
    File(Vec<u8>),
}

/// The scratch project.
pub(crate) struct Scratch {
    root: PathBuf,
    kept: BTreeMap<PathBuf, Kept>,
}

impl Scratch {
    /// An empty project in the new folder `root`.
    pub(crate) fn new(root: &Path) -> Scratch {
        for folder in ["project/.claude", "home", "state", "io"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        let root = fs::canonicalize(root).expect("the folder");
        Scratch { root, kept: BTreeMap::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub(crate) fn project(&self) -> PathBuf {
        self.path("project")
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.project().join(name), text).expect("a file of the project");
    }

    fn settle(&self, command: &mut Command) {
        let path = OsString::from("/usr/local/bin:/usr/bin:/bin");
        command.env_clear().current_dir(self.project()).env("PATH", path).env("LANG", "C.UTF-8");
        command.env("HOME", self.path("home")).env("CPW_STATE_DIR", self.path("state"));
    }

    /// A command in the project: `outer`, which may be empty, then cpw with `args`.
    pub(crate) fn command(&self, outer: &[String], args: &[&str]) -> Command {
        let program = program();
        let mut words: Vec<OsString> = outer.iter().map(OsString::from).collect();
        words.push(program.into());
        words.extend(args.iter().map(OsString::from));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).stdin(Stdio::null());
        self.settle(&mut command);
        command
    }

    /// A hook of a session.
    pub(crate) fn hook(&self, outer: &[String], call: &Call) -> Command {
        let mut command = self.command(outer, &[call.hook]);
        command.env("CLAUDE_CODE_SESSION_ID", call.session).env("CLAUDE_PROJECT_DIR", self.project());
        if call.client {
            command.env("CLAUDE_PID", std::process::id().to_string()).env("CLAUDE_CODE_ENTRYPOINT", "cli");
        }
        let mut payload = json!({
            "session_id": call.session,
            "prompt_id": "p1",
            "transcript_path": self.path("home/t.jsonl"),
            "cwd": self.project(),
            "permission_mode": "default",
            "hook_event_name": call.event,
        });
        for (name, value) in call.more.as_object().into_iter().flatten() {
            payload[name] = value.clone();
        }
        let path = self.path("io/in");
        fs::write(&path, format!("{payload}\n")).expect("a file");
        command.stdin(File::open(path).expect("the file"));
        command
    }

    /// Runs a command to its end, for at most `limit`. Then the program is killed, with what traces it.
    pub(crate) fn run(&self, mut command: Command, limit: Duration) -> Done {
        let (out, err) = (self.path("io/out"), self.path("io/err"));
        // Files and not pipes: what the command leaves running must not be waited for.
        command.stdout(File::create(&out).expect("a file")).stderr(File::create(&err).expect("a file"));
        let begun = Instant::now();
        let mut child = command.spawn().expect("the command starts");
        let mut late = false;
        let status = loop {
            if let Some(status) = child.try_wait().expect("it is our child") {
                break status;
            }
            if begun.elapsed() > limit && !late {
                late = true;
                // The program below strace: strace then ends as it does.
                let pid = child.id();
                let below = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
                let traced = below.split(' ').find_map(|p| p.parse().ok()).filter(|_| is_tracer(pid));
                kill(Pid::from_raw(traced.unwrap_or_else(|| pid.cast_signed())), Signal::SIGKILL).ok();
            }
            if begun.elapsed() > limit + PATIENCE {
                child.kill().ok();
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).expect("its output")).into_owned();
        Done { status, out: text(&out), err: text(&err), late, took: begun.elapsed() }
    }

    /// Runs cpw and returns what it printed.
    pub(crate) fn cpw(&self, args: &[&str]) -> Done {
        self.run(self.command(&[], args), PATIENCE)
    }

    /// The folders of runs, oldest first. Those that are being made or removed have other names.
    pub(crate) fn runs(&self) -> Vec<PathBuf> {
        let folder = self.project().join(".claude/runs");
        let mut runs: Vec<PathBuf> = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path()).collect();
        runs.retain(|run| run.is_dir() && !run.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b".")));
        // The project's own log, of leases, is beside them.
        runs.retain(|run| !run.ends_with("project"));
        runs.sort_unstable();
        runs
    }

    /// The logs of all runs: a folder without a whole line in its log is not one.
    pub(crate) fn ledgers(&self) -> Result<Vec<(PathBuf, Ledger)>, String> {
        let mut found = Vec::new();
        for run in self.runs() {
            match Ledger::read(&run.join("events.jsonl")) {
                Ok(Some(ledger)) if !ledger.events.is_empty() => found.push((run, ledger)),
                Ok(_) => {}
                Err(e) => return Err(format!("{}: {e}", run.display())),
            }
        }
        Ok(found)
    }

    /// The path of the newest run's log.
    pub(crate) fn log(&self) -> PathBuf {
        self.runs().pop().expect("a run").join("events.jsonl")
    }

    /// The log of the newest run.
    pub(crate) fn ledger(&self) -> Result<Ledger, String> {
        self.ledgers()?.pop().map(|(_, ledger)| ledger).ok_or_else(|| "there is no run".into())
    }

    /// Processes that work below this folder: workers, tasks, hooks. Zombies have no directory.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let numbers = fs::read_dir("/proc").expect("/proc is mounted").flatten();
        let pids = numbers.filter_map(|e| e.file_name().to_str()?.parse().ok()).map(Pid::from_raw);
        let works_here =
            |pid: &Pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&self.root));
        pids.filter(works_here).collect()
    }

    /// Waits until `what` holds.
    pub(crate) fn wait(&self, name: &str, mut what: impl FnMut() -> bool) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        while !what() {
            if Instant::now() > end {
                return Err(format!("did not happen in {PATIENCE:?}: {name}; processes: {}", self.command_lines()));
            }
            std::thread::sleep(Duration::from_millis(3));
        }
        Ok(())
    }

    /// Waits until nobody works here any more. Every run must have ended then: nobody is left who could end it.
    pub(crate) fn wait_for_end(&self) -> Result<(), String> {
        let mut open = None;
        // Who is begun by one that ends is in neither place while both are looked for, but not again and again.
        for _ in 0..5 {
            let mut looks = 0_usize;
            self.wait("the end of every process", || {
                looks += 1;
                // Looking at every process there is costs more than looking into the logs.
                (looks.is_multiple_of(16) || self.seem_ended()) && self.processes().is_empty()
            })?;
            open = self.ledgers()?.into_iter().find(|(_, ledger)| !ledger.is_ended());
            if open.is_none() {
                return Ok(());
            }
        }
        let run = open.map(|(run, _)| run.display().to_string()).unwrap_or_default();
        Err(format!("all have left, and it has not ended: {run}"))
    }

    fn seem_ended(&self) -> bool {
        let text = |run: PathBuf| fs::read_to_string(run.join("events.jsonl")).unwrap_or_default();
        self.runs().into_iter().map(text).all(|log| log.is_empty() || log.contains("\"t\":\"run_ended\""))
    }

    fn command_lines(&self) -> String {
        let line =
            |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().replace('\0', " ");
        self.processes().iter().map(|pid| format!("{pid}: {}", line(pid))).collect::<Vec<_>>().join(", ")
    }

    /// Ends what works here, whatever it is.
    pub(crate) fn sweep(&self) {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                kill(pid, Signal::SIGKILL).ok();
            }
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    /// Keeps what is here now, for [`Scratch::restore`].
    pub(crate) fn keep(&mut self) {
        self.kept.clear();
        let io = self.path("io");
        for path in tree(&self.root).into_iter().filter(|path| !path.starts_with(&io)) {
            let kept = match fs::symlink_metadata(&path) {
                Ok(meta) if meta.is_dir() => Kept::Folder,
                Ok(meta) if meta.is_file() => Kept::File(fs::read(&path).expect("a file")),
                _ => continue,
            };
            self.kept.insert(path, kept);
        }
    }

    /// How many bytes a file had when everything was kept.
    pub(crate) fn kept_length(&self, path: &Path) -> u64 {
        match self.kept.get(path) {
            Some(Kept::File(bytes)) => bytes.len() as u64,
            _ => 0,
        }
    }

    /// Puts everything back, in place.
    pub(crate) fn restore(&self) {
        for path in tree(&self.root).into_iter().rev() {
            if self.kept.contains_key(&path) || path.starts_with(self.path("io")) {
                continue;
            }
            let folder = fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir());
            if folder { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("it is removed");
        }
        for (path, kept) in &self.kept {
            match kept {
                Kept::Folder => fs::create_dir_all(path).expect("a folder"),
                Kept::File(bytes) if fs::read(path).is_ok_and(|now| now == *bytes) => {}
                Kept::File(bytes) => {
                    let mode = fs::metadata(path).map_or(0o600, |meta| meta.mode());
                    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o200)).ok();
                    let mut file =
                        fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).expect("a file");
                    file.write_all(bytes).expect("it is written");
                    fs::set_permissions(path, fs::Permissions::from_mode(mode)).ok();
                }
            }
        }
    }

    /// Copies everything to a new folder, for people who look for what went wrong.
    pub(crate) fn save(&self, target: &Path) {
        Command::new("cp").arg("-a").arg(&self.root).arg(target).status().ok();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        self.sweep();
        fs::remove_dir_all(&self.root).ok();
    }
}

/// Whether a process is strace: the program is then its child.
fn is_tracer(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "strace")
}

/// Everything below a folder, each folder before what is in it.
fn tree(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort_unstable();
    found
}
