//! Several users on one machine: none can read, change, wake, cancel or deliver from another one's runs, whatever they share,
//! and root by sudo leaves nothing in a user's project. Only root can become two users; elsewhere this is skipped, and said.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[path = "support/hostile.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod hostile;
#[path = "support/ledger.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod ledger;
#[path = "support/scratch.rs"]
#[expect(dead_code, reason = "serves several test crates")]
mod scratch;
#[path = "support/skip.rs"]
mod skip;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use hostile::{picture, tried};
use scratch::{Call, Done, SESSION, Scratch, program};
use skip::skip;

/// Longest wait for one call.
const PATIENCE: Duration = Duration::from_mins(1);

/// Two users who are nobody else.
const A: u32 = 61_201;
const B: u32 = 61_202;

/// A plan whose task waits for a file in its user's home.
const WAITS: &str = r#"{"version": 1, "tasks": [
    {"id": "a", "shell": "echo secret >\"$CPW_OUT/result.md\"; until [ -e \"$HOME/go\" ]; do sleep 0.05; done"}]}"#;

/// A plan that is over at once.
const SHORT: &str = r#"{"version": 1, "tasks": [{"id": "b", "shell": "echo x; touch \"$CPW_OUT/own\""}]}"#;

/// A project, and a home and a state directory for each user.
struct Shared {
    scratch: Scratch,
    /// The program, where everybody may execute it.
    program: PathBuf,
    _folder: tempfile::TempDir,
}

impl Shared {
    /// None where this process cannot become other users; then that is said.
    fn new(test: &str) -> Option<Shared> {
        if !nix::unistd::geteuid().is_root() {
            skip(test, "only root can become other users", "CPW_REQUIRE_USERS");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("cpw-users-").tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        let own = root.join("cpw");
        // Where it was built others may not be let in.
        fs::copy(program(), &own).unwrap();
        let scratch = Scratch::new(&root.join("s"));
        for (path, mode) in [(root.clone(), 0o755), (own.clone(), 0o755), (scratch.path(""), 0o755)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let shared = Shared { scratch, program: own, _folder: folder };
        for user in [0, A, B] {
            for part in ["home", "state"] {
                let path = shared.scratch.path(&format!("{part}-{user}"));
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
                chown(&path, Some(user), Some(user)).unwrap();
            }
        }
        let mut probe = shared.command(A, &["--version"]);
        if !probe.output().is_ok_and(|out| out.status.success()) {
            skip(test, "another user cannot start the program here", "CPW_REQUIRE_USERS");
            return None;
        }
        Some(shared)
    }

    fn project(&self) -> PathBuf {
        self.scratch.project()
    }

    /// Gives everything in the project to a user, with this mode of its two upper folders.
    fn give(&self, user: u32, mode: u32) {
        for path in picture(&self.project()).into_keys() {
            chown(&path, Some(user), Some(user)).unwrap();
        }
        for path in [self.project(), self.project().join(".claude")] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    fn write(&self, name: &str, text: &str, user: u32) {
        self.scratch.write(name, text);
        chown(self.project().join(name), Some(user), Some(user)).unwrap();
    }

    fn command(&self, user: u32, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).current_dir(self.project()).env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin");
        command.env("HOME", self.home(user)).env("CPW_STATE_DIR", self.scratch.path(&format!("state-{user}")));
        if user != 0 {
            command.uid(user).gid(user);
        }
        command.stdin(std::process::Stdio::null());
        command
    }

    fn home(&self, user: u32) -> PathBuf {
        self.scratch.path(&format!("home-{user}"))
    }

    fn cpw(&self, user: u32, args: &[&str]) -> Done {
        self.run(self.command(user, args))
    }

    fn run(&self, command: Command) -> Done {
        let done = self.scratch.run(command, PATIENCE);
        assert!(!done.late && !done.err.contains("panicked"), "{done:?}");
        done
    }

    /// A hook that a user's client calls, for whatever session.
    fn hook(&self, user: u32, hook: &'static str, event: &'static str, more: Value) -> Done {
        let call = Call { hook, event, session: SESSION, client: false, more };
        // Only what it says on stdin is taken from there.
        drop(self.scratch.hook(&[], &call));
        let mut command = self.command(user, &[hook]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", self.project());
        command.stdin(fs::File::open(self.scratch.path("io/in")).unwrap());
        let done = self.run(command);
        assert_eq!((done.status.code(), done.err.as_str()), (Some(0), ""), "{done:?}");
        done
    }

    fn runs(&self) -> Vec<PathBuf> {
        self.scratch.runs()
    }

    /// A run of user A that goes on.
    fn run_of_a(&self) -> PathBuf {
        self.write("waits.json", WAITS, A);
        let done = self.cpw(A, &["run", "waits.json", "--detach"]);
        assert!(done.is_ok(), "{done:?}");
        let run = self.project().join(".claude/runs").join(done.out.trim());
        // All that the task writes before it waits.
        let begun = || fs::read(run.join("workers/W1/out/a.1/result.md")).is_ok_and(|said| said == b"secret\n");
        self.scratch.wait("the task of A", begun).unwrap();
        run
    }

    fn let_go(&self, run: &Path) {
        fs::write(self.home(A).join("go"), "").unwrap();
        let over = || fs::read_to_string(run.join("events.jsonl")).is_ok_and(|log| log.contains("\"t\":\"run_ended\""));
        self.scratch.wait("the end of A's run", over).unwrap();
        self.scratch.wait_for_end().unwrap();
    }
}

/// The picture without what the run itself goes on to write.
fn quiet(project: &Path) -> std::collections::BTreeMap<PathBuf, String> {
    const OWN: [&str; 5] = ["events.jsonl", "state.idx", "worker.jsonl", "leader.lock", "a.1.times"];
    let mut all = picture(project);
    let is_own = |path: &Path| {
        OWN.iter().any(|name| path.ends_with(name))
            || path.parent().is_some_and(|folder| folder.ends_with("bells"))
            || path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp."))
    };
    all.retain(|path, _| !is_own(path));
    all
}

#[test]
fn s04_two_users_of_a_project_cannot_touch_each_others_runs() {
    let Some(shared) = Shared::new("s04_two_users_of_a_project_cannot_touch_each_others_runs") else { return };
    shared.give(A, 0o755);
    let run = shared.run_of_a();
    let id = run.file_name().unwrap().to_str().unwrap();
    let before = quiet(&shared.project());
    let mut count = 0;
    // First as A's cpw has made it; then as A might have opened it up, which A's own cpw refuses, too.
    for (runs_mode, run_mode) in [(0o700, 0o700), (0o755, 0o755)] {
        fs::set_permissions(run.parent().unwrap(), fs::Permissions::from_mode(runs_mode)).unwrap();
        fs::set_permissions(&run, fs::Permissions::from_mode(run_mode)).unwrap();
        for args in [
            &["status"][..],
            &["status", id],
            &["logs", "--run", id],
            &["events", id],
            &["result", "a", "--run", id],
            &["cancel", "--run", id],
            &["adopt", id, "--session", SESSION, "--force"],
            &["retry", id],
            &["worker", "--run", id],
            &["clean", id],
            &["wait", "--run", id, "--timeout", "1s"],
        ] {
            let done = shared.cpw(B, args);
            assert!(!done.out.contains("secret"), "{args:?}: {done:?}");
            let looks = args == ["status"];
            assert!(looks || !done.is_ok(), "{args:?}: {done:?}");
            count += 1;
        }
        // A task of B that lies about where it runs.
        let mut lying = shared.command(B, &["progress", "99"]);
        let task = [("CPW_RUN", id), ("CPW_TASK", "a"), ("CPW_WORKER", "W1"), ("CPW_ATTEMPT", "1"), ("CPW_TOKEN", "3")];
        lying.envs(task).env("CPW_RUN_DIR", &run);
        assert!(!shared.run(lying).is_ok());
        for (hook, event) in [("stop", "Stop"), ("post-tool-batch", "PostToolBatch"), ("session-end", "SessionEnd")] {
            assert_eq!(shared.hook(B, hook, event, json!({})).out, "");
            count += 1;
        }
    }
    fs::set_permissions(&run, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(run.parent().unwrap(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(quiet(&shared.project()), before);
    let log = fs::read_to_string(run.join("events.jsonl")).unwrap();
    assert!(!log.contains("cancel_requested") && !log.contains("adopted") && !log.contains("percent"), "{log}");
    shared.let_go(&run);
    assert!(shared.cpw(A, &["status", id]).out.contains("done"));
    tried("attempts on another user's run", count, 25);
}

#[test]
fn s04_who_could_exchange_the_runs_of_another_gets_none_to_exchange() {
    let Some(shared) = Shared::new("s04_who_could_exchange_the_runs_of_another_gets_none_to_exchange") else { return };
    // A's project, in which everybody of a group, and then everybody, may write.
    shared.write("short.json", SHORT, A);
    for mode in [0o755, 0o777, 0o1777] {
        shared.give(A, mode);
        let done = shared.cpw(B, &["run", "short.json"]);
        assert_eq!(done.status.code(), Some(3), "{mode:o}: {done:?}");
        assert!(done.err.contains("belongs to user 61201") && done.err.contains("runs_dir"), "{mode:o}: {done:?}");
        assert!(shared.runs().is_empty() && !shared.project().join(".claude/runs").exists());
    }
    // As the hint has it: in a folder of B's own.
    fs::create_dir_all(shared.home(B).join(".config/cpw")).unwrap();
    let own = shared.home(B).join("runs");
    fs::write(shared.home(B).join(".config/cpw/config.json"), json!({"version": 1, "runs_dir": own}).to_string())
        .unwrap();
    for path in picture(&shared.home(B)).into_keys() {
        chown(path, Some(B), Some(B)).unwrap();
    }
    let done = shared.cpw(B, &["run", "short.json"]);
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    assert!(!shared.project().join(".claude/runs").exists());
    let made = picture(&own);
    assert!(made.keys().any(|path| path.ends_with("own")), "{made:?}");
    // A folder for everybody's temporary files as a project: what A makes there is not B's.
    shared.give(0, 0o1777);
    fs::remove_dir_all(shared.project().join(".claude")).unwrap();
    assert!(shared.cpw(A, &["run", "short.json"]).is_ok());
    fs::remove_file(shared.home(B).join(".config/cpw/config.json")).unwrap();
    let refused = shared.cpw(B, &["run", "short.json"]);
    assert_eq!(refused.status.code(), Some(3), "{refused:?}");
    shared.scratch.wait_for_end().unwrap();
}

#[test]
fn s04_an_approval_is_of_the_user_who_gave_it_and_a_run_of_who_made_it() {
    let name = "s04_an_approval_is_of_the_user_who_gave_it_and_a_run_of_who_made_it";
    let Some(shared) = Shared::new(name) else { return };
    let config = json!({"version": 1, "rules": [{"name": "go", "when": {"prompt": "^go$"},
        "tasks": [{"id": "a", "shell": "touch \"$HOME/ran\""}]}]});
    shared.write(".claude/cpw.json", &config.to_string(), A);
    shared.give(A, 0o755);
    assert!(shared.cpw(A, &["allow", "--yes"]).is_ok());
    let said = shared.hook(B, "user-prompt-submit", "UserPromptSubmit", json!({"prompt": "go"}));
    assert!(said.out.contains("await your approval") && shared.runs().is_empty(), "{said:?}");
    // A's approval in B's hands, and as B's own state: a record that is not B's does not count.
    let [of_a, of_b] = [A, B].map(|user| shared.scratch.path(&format!("state-{user}/trust")));
    let record = fs::read_dir(&of_a).unwrap().next().unwrap().unwrap();
    fs::create_dir_all(&of_b).unwrap();
    chown(&of_b, Some(B), Some(B)).unwrap();
    fs::set_permissions(&of_b, fs::Permissions::from_mode(0o700)).unwrap();
    fs::copy(record.path(), of_b.join(record.file_name())).unwrap();
    fs::set_permissions(of_b.join(record.file_name()), fs::Permissions::from_mode(0o644)).unwrap();
    chown(of_b.join(record.file_name()), Some(A), Some(A)).unwrap();
    let said = shared.hook(B, "user-prompt-submit", "UserPromptSubmit", json!({"prompt": "go", "prompt_id": "p2"}));
    assert!(said.out.is_empty() && shared.runs().is_empty(), "{said:?}");
    let mut borrowed = shared.command(B, &["run", "--prompt", "go"]);
    borrowed.env("CPW_STATE_DIR", shared.scratch.path(&format!("state-{A}")));
    assert!(!shared.run(borrowed).is_ok());
    // A state directory of A's that B can read, and one of B's in A's.
    fs::set_permissions(shared.scratch.path(&format!("state-{A}")), fs::Permissions::from_mode(0o755)).unwrap();
    let mut borrowed = shared.command(B, &["run", "--prompt", "go"]);
    borrowed.env("CPW_STATE_DIR", shared.scratch.path(&format!("state-{A}")));
    let refused = shared.run(borrowed);
    assert!(refused.err.contains("belongs to user 61201"), "{refused:?}");
    fs::set_permissions(shared.scratch.path(&format!("state-{A}")), fs::Permissions::from_mode(0o700)).unwrap();
    // A's run, given to B with all that is in it: B's cpw has not made it.
    let said = shared.hook(A, "user-prompt-submit", "UserPromptSubmit", json!({"prompt": "go"}));
    assert!(said.out.contains("started 1 task"), "{said:?}");
    shared.scratch.wait_for_end().unwrap();
    let run = shared.runs().pop().unwrap();
    let id = run.file_name().unwrap().to_str().unwrap().to_owned();
    shared.give(B, 0o755);
    let log = fs::read(run.join("events.jsonl")).unwrap();
    assert!(shared.cpw(B, &["status", &id]).is_ok(), "it can be looked at");
    for args in [&["cancel", "--run", &id][..], &["retry", &id], &["clean", &id], &["adopt", &id, "--session", SESSION]]
    {
        let refused = shared.cpw(B, args);
        assert!(!refused.is_ok(), "{args:?}: {refused:?}");
    }
    // Nor is it A's any more, whose session has not heard of it yet.
    assert_eq!(shared.hook(A, "post-tool-batch", "PostToolBatch", json!({})).out, "");
    assert_eq!(fs::read(run.join("events.jsonl")).unwrap(), log);
    assert!(!shared.home(B).join("ran").exists() && shared.home(A).join("ran").exists());
}

#[test]
fn s05_an_ordinary_users_run_works_under_every_umask() {
    let Some(shared) = Shared::new("s05_an_ordinary_users_run_works_under_every_umask") else { return };
    shared.give(A, 0o755);
    shared.write(
        "plan.json",
        r#"{"version": 1, "tasks": [{"id": "a", "shell": "umask 077; echo x >\"$CPW_OUT/result.md\"; cpw progress 50"},
            {"id": "b", "shell": "umask 077; cat \"$CPW_NEEDS\" >\"$CPW_OUT/needs\"; echo y", "needs": ["a"]}]}"#,
        A,
    );
    for mask in ["0000", "0077", "0277", "0777"] {
        fs::remove_dir_all(shared.scratch.path(&format!("state-{A}"))).unwrap();
        fs::set_permissions(shared.scratch.path(""), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = Command::new("sh");
        let inner = shared.command(A, &["run", "plan.json"]);
        command.args(["-c", "umask \"$1\"; shift; exec \"$@\"", "sh", mask]).arg(inner.get_program());
        command.args(inner.get_args()).current_dir(shared.project()).env_clear();
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.uid(A).gid(A);
        let done = shared.run(command);
        assert_eq!(done.status.code(), Some(0), "umask {mask}: {done:?}");
        let run = shared.runs().pop().unwrap();
        for (path, mode) in [("", 0o700), ("bells", 0o700), ("workers/W1", 0o700), ("events.jsonl", 0o600)] {
            assert_eq!(fs::metadata(run.join(path)).unwrap().mode() & 0o7777, mode, "umask {mask}: {path}");
        }
        shared.scratch.wait_for_end().unwrap();
        assert!(shared.cpw(A, &["clean", run.file_name().unwrap().to_str().unwrap()]).is_ok());
        assert!(!run.exists());
    }
}

#[test]
fn s22_root_by_sudo_leaves_nothing_in_a_users_project() {
    let Some(shared) = Shared::new("s22_root_by_sudo_leaves_nothing_in_a_users_project") else { return };
    let config = json!({"version": 1, "rules": [{"name": "go", "when": {"prompt": "^go$"},
        "tasks": [{"id": "a", "run": ["true"]}]}]});
    shared.write(".claude/cpw.json", &config.to_string(), A);
    shared.write("short.json", SHORT, A);
    shared.give(A, 0o755);
    // Root has approved the rules, so that nothing but this keeps them from starting.
    assert!(shared.cpw(0, &["allow", "--yes"]).is_ok());
    let before = picture(&shared.project());
    let sudo = |args: &[&str]| {
        let mut command = shared.command(0, args);
        command.env("SUDO_UID", A.to_string()).env("SUDO_USER", "a");
        command
    };
    let mut count = 0;
    for args in [
        &["run", "short.json"][..],
        &["run", "--prompt", "go"],
        &["worker", "--plan", "short.json", "--task", "b"],
        &["retry"],
        &["resume", "x"],
        &["lease", "db", "--", "true"],
        &["lease", "acquire", "db"],
        &["init"],
        &["init", "--local"],
        &["init", "--uninstall"],
    ] {
        let done = shared.run(sudo(args));
        assert_eq!(done.status.code(), Some(3), "{args:?}: {done:?}");
        assert!(done.err.contains("belongs to user 61201") && done.err.contains("without sudo"), "{args:?}: {done:?}");
        count += 1;
    }
    for args in [&["status"][..], &["doctor"], &["plan", "--prompt", "go"], &["init", "--print"], &["lease"]] {
        let done = shared.run(sudo(args));
        assert!(!done.err.contains("without sudo"), "looking is free: {args:?}: {done:?}");
    }
    for (hook, event) in
        [("user-prompt-submit", "UserPromptSubmit"), ("session-start", "SessionStart"), ("stop", "Stop")]
    {
        let call = Call { hook, event, session: SESSION, client: false, more: json!({"prompt": "go"}) };
        drop(shared.scratch.hook(&[], &call));
        let mut command = sudo(&[hook]);
        command.env("CLAUDE_CODE_SESSION_ID", SESSION).env("CLAUDE_PROJECT_DIR", shared.project());
        command.stdin(fs::File::open(shared.scratch.path("io/in")).unwrap());
        let done = shared.run(command);
        assert_eq!((done.status.code(), done.out.as_str(), done.err.as_str()), (Some(0), "", ""), "{hook}");
        count += 1;
    }
    assert_eq!(picture(&shared.project()), before);
    // Plain root, as in a container that was given a user's project; and sudo in root's own.
    let plain = shared.hook(0, "user-prompt-submit", "UserPromptSubmit", json!({"prompt": "go"}));
    assert!(plain.out.contains("started 1 task"), "{plain:?}");
    shared.scratch.wait_for_end().unwrap();
    shared.give(0, 0o755);
    let done = shared.run(sudo(&["run", "short.json"]));
    assert_eq!(done.status.code(), Some(0), "{done:?}");
    // Nothing was given to anybody else.
    assert!(picture(&shared.project()).values().all(|what| what.contains(" 0:0 ")));
    shared.scratch.wait_for_end().unwrap();
    tried("calls under sudo in a user's project", count, 13);
}

#[test]
fn s22_a_settings_file_stays_whose_it_was() {
    let Some(shared) = Shared::new("s22_a_settings_file_stays_whose_it_was") else { return };
    shared.write(".claude/settings.json", "{\"model\": \"opus\"}\n", A);
    shared.give(A, 0o777);
    let settings = shared.project().join(".claude/settings.json");
    // Another user cannot replace it by a file of their own, even where the folder would let them.
    let refused = shared.cpw(B, &["init"]);
    assert!(!refused.is_ok(), "{refused:?}");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "{\"model\": \"opus\"}\n");
    // Root, without sudo, changes what is in it, and not whose it is.
    fs::set_permissions(&settings, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(shared.cpw(0, &["init"]).is_ok());
    let meta = fs::metadata(&settings).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (A, A, 0o640));
    // What a link leads to outside of the project belongs to somebody else altogether.
    let other = shared.home(B).join("settings.json");
    fs::write(&other, "{}").unwrap();
    chown(&other, Some(B), Some(B)).unwrap();
    fs::remove_file(&settings).unwrap();
    symlink(&other, &settings).unwrap();
    let refused = shared.cpw(0, &["init"]);
    assert!(refused.err.contains("leads out of the project"), "{refused:?}");
    assert_eq!((fs::read_to_string(&other).unwrap().as_str(), fs::metadata(&other).unwrap().uid()), ("{}", B));
}
