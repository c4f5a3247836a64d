//! Helpers for the tests of this room: other processes, and waiting for what they do.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use super::process::{Signal, alive, identity_of, signal};
use crate::model::event::Process;

/// Long enough for a busy machine; a passing test never waits that long.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// Waits until `happened`, and fails the test if it does not.
pub(super) fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !happened() {
        assert!(Instant::now() < deadline, "did not happen in {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A child that is killed and reaped when the test ends, however it ends.
pub(super) struct Helper {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Helper {
    pub(super) fn start(command: &mut Command) -> Helper {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Helper { child, lines }
    }

    /// `/bin/sh -c script`, with `stdin` as its fd 0.
    pub(super) fn sh(script: &str, stdin: impl Into<OwnedFd>) -> Helper {
        Helper::start(Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::from(stdin.into())))
    }

    pub(super) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub(super) fn process(&self) -> Process {
        identity_of(self.pid()).unwrap()
    }

    /// What follows `key` in the first line that holds it. The test harness writes on the same stream.
    pub(super) fn line(&mut self, key: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the helper ended without saying {key:?}");
            if let Some((_, rest)) = line.split_once(key) {
                return rest.trim().to_owned();
            }
        }
    }

    /// Everything else it says, and how it ended.
    pub(super) fn finish(mut self) -> (String, std::process::ExitStatus) {
        let mut text = String::new();
        std::io::Read::read_to_string(&mut self.lines, &mut text).unwrap();
        (text, self.child.wait().unwrap())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A process that is not our child, killed when the test ends, however it ends.
pub(super) struct Stray(pub(super) Process);

impl Stray {
    pub(super) fn new(pid: i32) -> Stray {
        Stray(identity_of(pid).unwrap())
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        drop(signal(&self.0, Signal::SIGKILL));
        let deadline = Instant::now() + LONG;
        while alive(&self.0) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

const ROLE: &str = "CPW_TEST_ROLE";

/// What this process is, if it is a test started again by [`again`].
pub(super) fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// The arguments that start one test again.
pub(super) fn again_args(test: &str) -> Vec<std::ffi::OsString> {
    [test, "--exact", "--nocapture", "--test-threads=1"].map(Into::into).to_vec()
}

/// The variable that tells it its role.
pub(super) fn role_var(role: &str) -> (std::ffi::OsString, std::ffi::OsString) {
    (ROLE.into(), role.into())
}

/// The test `test` once more in a process of its own, where it finds `role`: for what changes the whole process.
pub(super) fn again(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(again_args(test)).env(ROLE, role).stdin(Stdio::null());
    command
}
