//! A test's own world: a project, a home and a state directory in a folder of its own, a clean environment for all that
//! is started in it, and a sweep at the end that fails the test if any of it is still alive.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// The variable that marks everything started in a world; its value is unique to the world.
pub(crate) const MARK: &str = "CPW_TEST_WORLD";

/// How long processes may take to leave by themselves once the test is over.
const LEAVE: Duration = Duration::from_secs(5);

/// Looks again and again until `look` returns something; none when the limit has passed.
pub(crate) fn wait_for<T>(limit: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = look() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The world. Dropping it sweeps: what still runs after five seconds is killed, and the test fails.
pub(crate) struct World {
    mark: String,
    folder: tempfile::TempDir,
    sweep: Duration,
}

impl World {
    /// An empty project, home and state directory.
    pub(crate) fn new() -> Self {
        let mark = uuid::Uuid::new_v4().simple().to_string();
        // Short, since the client puts sockets below it, whose paths may have 107 bytes.
        let prefix = format!("cpw-{mark}");
        let folder =
            tempfile::Builder::new().prefix(&prefix).rand_bytes(0).tempdir().expect("a folder for temporary files");
        let world = Self { mark, folder, sweep: LEAVE };
        for folder in [world.project(), world.home(), world.state(), world.temporary()] {
            fs::create_dir(&folder).expect("a folder in the world");
        }
        world
    }

    /// The project's root.
    pub(crate) fn project(&self) -> PathBuf {
        self.path("project")
    }

    /// The scratch home.
    pub(crate) fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// The user's state directory of cpw.
    pub(crate) fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn temporary(&self) -> PathBuf {
        self.path("tmp")
    }

    /// A path of the world outside the project.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        // The real path: clients compare it with what the kernel calls their directory.
        fs::canonicalize(self.folder.path()).expect("the world's folder").join(name)
    }

    /// Writes a file of the project, with the folders it needs, and returns its path.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.project().join(name);
        fs::create_dir_all(path.parent().expect("a path below the project")).expect("its folder");
        fs::write(&path, content).expect("the file is written");
        path
    }

    /// Writes an executable `sh` script into the project and returns its path.
    pub(crate) fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.write(name, &format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it becomes executable");
        path
    }

    /// Writes the project's `.claude/settings.json`.
    pub(crate) fn settings(&self, settings: &Value) -> PathBuf {
        self.write(".claude/settings.json", &settings.to_string())
    }

    /// A file of the project; none where it is not there or not text.
    pub(crate) fn read(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.project().join(name)).ok()
    }

    /// All that a process of this world has in its environment. The built binary's folder comes first on `PATH`.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut path = OsString::from(program().parent().expect("the built binary is in a folder"));
        path.push(":/usr/local/bin:/usr/bin:/bin");
        vec![
            ("HOME", self.home().into()),
            ("PATH", path),
            ("LANG", "C.UTF-8".into()),
            ("TERM", "xterm-256color".into()),
            ("TMPDIR", self.temporary().into()),
            ("CPW_STATE_DIR", self.state().into()),
            (MARK, self.mark.clone().into()),
        ]
    }

    /// A command in the project, with the world's environment and nothing else.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.env_clear().envs(self.environment()).current_dir(self.project()).stdin(std::process::Stdio::null());
        command
    }

    /// The built `cpw` with these arguments.
    pub(crate) fn cpw(&self, args: &[&str]) -> Command {
        let mut command = self.command(program());
        command.args(args);
        command
    }

    /// Every living process that was started in this world, with its command line. Zombies are not alive.
    pub(crate) fn processes(&self) -> Vec<(Pid, String)> {
        let own = Pid::this();
        fs::read_dir("/proc")
            .expect("/proc is mounted")
            .filter_map(|entry| Some(Pid::from_raw(entry.ok()?.file_name().to_str()?.parse().ok()?)))
            .filter(|&pid| pid != own && self.started(pid))
            .map(|pid| (pid, command_line(pid)))
            .collect()
    }

    /// Whether a process carries the mark: in its environment, or by the folder where it works. A process that has gone
    /// since does not.
    fn started(&self, pid: Pid) -> bool {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let place = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
        let mark = self.mark.as_bytes();
        let holds = |bytes: &[u8]| bytes.windows(mark.len()).any(|part| part == mark);
        holds(&environment) || holds(place.as_os_str().as_encoded_bytes())
    }

    /// Waits for the processes of this world to leave, kills those that do not, and returns them.
    pub(crate) fn sweep(&self, patience: Duration) -> Vec<(Pid, String)> {
        if wait_for(patience, || self.processes().is_empty().then_some(())).is_some() {
            return Vec::new();
        }
        let left = self.processes();
        // Again and again, since what is killed may have started something meanwhile.
        let end = Instant::now() + LEAVE;
        while Instant::now() < end {
            let alive = self.processes();
            if alive.is_empty() {
                break;
            }
            for (pid, _) in alive {
                // It may have left by itself.
                kill(pid, Signal::SIGKILL).ok();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        left
    }

    /// For tests of the sweep itself: how long the drop waits.
    pub(crate) fn patience(mut self, patience: Duration) -> Self {
        self.sweep = patience;
        self
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let left = self.sweep(self.sweep);
        if left.is_empty() {
            return;
        }
        let message = format!("processes outlived the test and were killed: {left:?}");
        // A second panic would abort the whole test binary and hide the first.
        if std::thread::panicking() {
            eprintln!("{message}");
        } else {
            panic!("{message}");
        }
    }
}

/// The `cpw` that is tested: the one that `CPW_TEST_BINARY` names, else the one that was built with the tests.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| match std::env::var_os("CPW_TEST_BINARY") {
        Some(named) => fs::canonicalize(named).expect("CPW_TEST_BINARY names a file"),
        None => env!("CARGO_BIN_EXE_cpw").into(),
    })
}

fn command_line(pid: Pid) -> String {
    let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&words).replace('\0', " ")
}
