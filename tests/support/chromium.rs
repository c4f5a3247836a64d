//! A real browser without a screen, for pages that cpw writes: what it says on its console, what scripts made of the page,
//! and how it looks. It gets no network but loopback, where the machine permits that, and a profile of its own; whatever it
//! has started is ended with it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::skip::skip;
use super::world::{World, wait_for};

/// How long a page may take on a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_mins(2);

/// A missing browser fails the test instead of skipping it.
const REQUIRE: &str = "CPW_REQUIRE_CHROMIUM";

/// The browser.
pub(crate) struct Chromium {
    program: PathBuf,
    /// What it is started by, so that it has no network.
    before: Vec<String>,
}

/// What it made of a page.
#[derive(Debug)]
pub(crate) struct Seen {
    /// The page once its scripts have run; empty where that was not asked for.
    pub(crate) dom: String,
    /// What was said on the console.
    pub(crate) console: Vec<String>,
}

impl Chromium {
    /// The one that is installed; none, and a word about it, without.
    pub(crate) fn find_or_skip(test: &str) -> Option<Chromium> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let names = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"];
        let all = names.iter().flat_map(|name| std::env::split_paths(&path).map(move |dir| dir.join(name)));
        let Some(program) = all.into_iter().find(|file| file.is_file()) else {
            skip(test, "no chromium on PATH", REQUIRE);
            return None;
        };
        let how: &[&str] = if nix::unistd::geteuid().is_root() {
            &["unshare", "--net", "--"]
        } else {
            &["unshare", "--map-current-user", "--net", "--"]
        };
        let works = Command::new(how[0]).args(&how[1..]).arg("true").output().is_ok_and(|out| out.status.success());
        let before = if works { how.iter().map(|word| (*word).to_owned()).collect() } else { Vec::new() };
        Some(Chromium { program, before })
    }

    /// Opens a page, with further arguments.
    pub(crate) fn open(&self, world: &World, page: &Path, more: &[String]) -> Seen {
        let words: Vec<&Path> = self.before.iter().map(Path::new).chain([self.program.as_path()]).collect();
        let profile = tempfile::Builder::new().prefix("browser-").tempdir_in(world.path("")).expect("a profile");
        let (out, err) = (profile.path().join("stdout"), profile.path().join("stderr"));
        let file = |path: &Path| Stdio::from(File::create(path).expect("a file for its output"));
        let mut command = world.command(words[0]);
        command.args(&words[1..]).args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--hide-scrollbars", "--enable-logging=stderr"]).args(more);
        command.arg(format!("--user-data-dir={}", profile.path().join("data").display()));
        command.arg(format!("file://{}", page.display()));
        // A group of its own, to be ended as a whole.
        let mut child =
            command.stdout(file(&out)).stderr(file(&err)).process_group(0).spawn().expect("the browser starts");
        let ended = wait_for(PATIENCE, || child.try_wait().expect("it can be waited for"));
        let group = Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
        // Gone already, where it has left nothing behind.
        killpg(group, Signal::SIGKILL).ok();
        child.wait().expect("it can be waited for");
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let (dom, said) = (text(&out), text(&err));
        assert!(
            ended.is_some_and(|status| status.success()),
            "the browser failed on {}: {ended:?}\n{said}",
            page.display()
        );
        // The browser's own pages talk, too.
        let of_the_page = |line: &&str| line.contains(":CONSOLE") && !line.contains("source: chrome");
        let console = said.lines().filter(of_the_page).map(str::to_owned).collect();
        Seen { dom, console }
    }
}
