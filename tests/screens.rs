//! What a person sees of the commands that look the same every time: each is run on terminals of three widths, and what it
//! writes, colours and all, is compared with a snapshot. Screens that move have tests of their own (`tests/top.rs`), and so
//! have those whose layout is a pure function (`src/ui`).

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::pty::{Winsize, openpty};
use regex::Regex;

/// Columns of the terminals.
const WIDTHS: [u16; 3] = [60, 80, 120];

/// Longest wait for a command.
const PATIENCE: Duration = Duration::from_mins(1);

/// Held while a command is given its terminal.
static ONE: Mutex<()> = Mutex::new(());

/// A project in which commands are typed.
struct Project {
    tmp: tempfile::TempDir,
}

impl Project {
    fn new() -> Project {
        let tmp = tempfile::tempdir().unwrap();
        let project = Project { tmp };
        std::fs::create_dir_all(project.path().join(".git")).unwrap();
        for name in ["api.py", "db.py"] {
            std::fs::write(project.path().join(name), "def get():\n    return 1  # TODO: paging\n").unwrap();
        }
        project
    }

    fn path(&self) -> PathBuf {
        self.tmp.path().canonicalize().unwrap().join("project")
    }

    /// The output of a command on a terminal of so many columns, and its exit code.
    fn type_in(&self, args: &[&str], columns: u16) -> (String, i32) {
        let size = Winsize { ws_row: 40, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // One at a time: what a command of another test inherits of this terminal would keep it open.
        let alone = ONE.lock().unwrap();
        let pty = openpty(Some(&size), None).unwrap();
        let (mut shows, programs) = (File::from(pty.master), File::from(pty.slave));
        for side in [&shows, &programs] {
            fcntl(side, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_cpw"));
        command.args(args).current_dir(self.path()).env_clear().env("TERM", "xterm").env("LANG", "C.UTF-8");
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", self.tmp.path());
        command.stdin(std::process::Stdio::null());
        command.stdout(programs.try_clone().unwrap()).stderr(programs);
        let mut child = command.spawn().unwrap();
        drop(alone);
        // It goes with the command's own descriptors, so that reading ends when the last program has closed the terminal.
        drop(command);
        let reader = std::thread::spawn(move || {
            let (mut bytes, mut chunk) = (Vec::new(), [0_u8; 4096]);
            // A terminal that nobody has open any more answers with an error.
            while let Ok(n @ 1..) = shows.read(&mut chunk) {
                bytes.extend_from_slice(&chunk[..n]);
            }
            bytes
        });
        let deadline = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "{args:?} does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        (String::from_utf8(reader.join().unwrap()).expect("text"), code)
    }

    /// What differs from time to time and from machine to machine, by a name in its place.
    fn masked(&self, text: &str) -> String {
        let mut text = text.replace("\r\n", "\n").replace(self.tmp.path().to_str().unwrap(), "TMP");
        let masks = [
            (r"\x1b\[([0-9;]+)m", "<$1>"),
            (r"\d{8}-\d{12}-[0-9a-f]{20}", "RUN"),
            (r"\d{8}T\d{6}\.\d{3}Z-[0-9a-f]{8}", "BACKUP"),
            (r"process \d+", "process PID"),
            (r"\d+ bytes", "N bytes"),
            (r"\d+(\.\d+)? (ms|s|min)\b( +)?", "TIME "),
            (r"up to \d+ at a time|at most \d+ at a time", "up to N at a time"),
        ];
        for (what, name) in masks {
            text = Regex::new(what).unwrap().replace_all(&text, name).into_owned();
        }
        text
    }

    /// What the command shows at each width; once, where that is the same.
    fn shows(&self, args: &[&str]) -> String {
        let mut out = format!("$ cpw {}\n", args.join(" "));
        let shown: Vec<(String, i32)> = WIDTHS
            .iter()
            .map(|&width| {
                let (text, code) = self.type_in(args, width);
                (self.masked(&text), code)
            })
            .collect();
        let same = shown.iter().all(|one| *one == shown[0]);
        for (width, (text, code)) in WIDTHS.iter().zip(&shown) {
            if same {
                write!(out, "-- at every width, exit code {code}\n{text}").unwrap();
                break;
            }
            write!(out, "-- {width} columns, exit code {code}\n{text}").unwrap();
        }
        out
    }
}

#[test]
fn setting_up_looks_the_same_every_time() {
    let project = Project::new();
    let mut out = String::new();
    // Each line does something the first time, so that it is looked at once; what is repeated shows its second face.
    let (text, code) = project.type_in(&["init"], 80);
    write!(out, "$ cpw init\n-- exit code {code}\n{}", project.masked(&text)).unwrap();
    for args in [
        &["init"][..],
        &["plan", "--prompt", "Analyze api.py and db.py"],
        &["plan", "--prompt", "what is a parser?"],
        &["allow", "--yes"],
        &["off"],
        &["on"],
        &["deny"],
        &["init", "--uninstall", "--print"],
    ] {
        out.push_str(&project.shows(args));
    }
    insta::assert_snapshot!("setting_up", out);
}

#[test]
fn a_run_and_what_is_asked_about_it_look_the_same_every_time() {
    let project = Project::new();
    let plan = r#"{"version": 1, "tasks": [
        {"id": "build", "shell": "echo built", "title": "the whole program"},
        {"id": "test", "shell": "echo 'two of three' >&2; exit 1", "needs": ["build"]},
        {"id": "ship", "shell": "true", "needs": ["test"]}]}"#;
    std::fs::write(project.path().join("plan.json"), plan).unwrap();
    let wrong = r#"{"version": 2, "tasks": [{"id": "a b", "shell": "true", "needs": ["c"]}]}"#;
    std::fs::write(project.path().join("wrong.json"), wrong).unwrap();
    let mut out = String::new();
    for args in
        [&["plan", "plan.json"][..], &["plan", "wrong.json"], &["status"], &["lease", "--list"], &["result", "build"]]
    {
        out.push_str(&project.shows(args));
    }
    let (text, code) = project.type_in(&["run", "plan.json", "--detach"], 80);
    write!(out, "$ cpw run plan.json --detach\n-- exit code {code}\n{}", project.masked(&text)).unwrap();
    for args in [
        &["wait", "--run"][..],
        &["wait", "--task", "build"],
        &["result", "build"],
        &["result", "ship"],
        &["cancel"],
        &["clean", "--dry-run", "--keep", "0"],
        &["allow"],
    ] {
        out.push_str(&project.shows(args));
    }
    insta::assert_snapshot!("a_run", out);
}
