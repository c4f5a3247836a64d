//! Isolated tasks with the real git: what an attempt sees, what it leaves, what stays of its worktree however it ends, and
//! putting its change into the user's files.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the harness serves several test crates")]
mod support;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use support::skip;
use support::world::{World, wait_for};

/// How long anything may take on a machine that has much else to do.
const LONG: Duration = Duration::from_mins(2);

/// git of the tests reads no config but the repository's, and has a name of its own.
const GIT: [(&str, &str); 7] = [
    // Looking does not write the index.
    ("GIT_OPTIONAL_LOCKS", "0"),
    ("GIT_CONFIG_GLOBAL", "/dev/null"),
    ("GIT_CONFIG_NOSYSTEM", "1"),
    ("GIT_AUTHOR_NAME", "t"),
    ("GIT_AUTHOR_EMAIL", "t@localhost"),
    ("GIT_COMMITTER_NAME", "t"),
    ("GIT_COMMITTER_EMAIL", "t@localhost"),
];

/// A world whose project is a git repository with `a.txt` of ten lines and `.gitignore`.
struct Scene {
    world: World,
}

/// None where there is no git; that is said.
fn bare_scene(test: &str) -> Option<Scene> {
    if Command::new("git").arg("--version").output().is_err() {
        skip::skip(test, "git is not installed", "CPW_REQUIRE_GIT");
        return None;
    }
    Some(Scene { world: World::new() })
}

fn scene(test: &str) -> Option<Scene> {
    let scene = bare_scene(test)?;
    scene.git(&["init", "-q", "-b", "main", "."]);
    let lines: Vec<String> = (1..=11).map(|n| if n == 11 { String::new() } else { format!("line {n}") }).collect();
    scene.world.write("a.txt", &lines.join("\n"));
    scene.world.write("b.txt", "b\n");
    scene.world.write(".gitignore", "*.ignored\n");
    scene.commit();
    Some(scene)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Scene {
    fn root(&self) -> PathBuf {
        self.world.project()
    }

    fn git_in(&self, at: &Path, args: &[&str]) -> Output {
        let mut command = self.world.command("/usr/bin/env");
        command.arg("git").args(args).envs(GIT).current_dir(at).output().unwrap()
    }

    fn git(&self, args: &[&str]) -> String {
        let done = self.git_in(&self.root(), args);
        assert!(done.status.success(), "git {args:?}: {}", text(&done.stderr));
        text(&done.stdout)
    }

    fn commit(&self) {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", "x"]);
    }

    fn cpw(&self, args: &[&str]) -> Output {
        self.world.cpw(args).envs(GIT).output().unwrap()
    }

    /// Starts a run of these tasks in the background.
    fn start(&self, tasks: &Value, workers: u32) -> Vec<u8> {
        let plan = json!({"version": 1, "limits": {"max_workers": workers}, "tasks": tasks});
        let path = self.world.path("plan.json");
        fs::write(&path, plan.to_string()).unwrap();
        let mut command = self.world.cpw(&["run", path.to_str().unwrap(), "--detach"]);
        // As below a hook of git's, which says what its call is about: not what ours are.
        command.envs(GIT).env("GIT_DIR", self.root().join(".git")).env("GIT_INDEX_FILE", self.root().join("no-index"));
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", text(&done.stderr));
        done.stdout
    }

    /// Runs these tasks to their end. Nothing but their results stays.
    fn run(&self, tasks: &Value) {
        self.start(tasks, 4);
        self.ended();
        self.is_clean();
    }

    fn run_dir(&self) -> PathBuf {
        let runs = fs::read_dir(self.root().join(".claude/runs")).unwrap();
        runs.map(|e| e.unwrap().path()).filter(|p| p.is_dir()).max().unwrap()
    }

    fn events_of(dir: &Path) -> Vec<Value> {
        let log = fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default();
        log.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    fn events(&self) -> Vec<Value> {
        Scene::events_of(&self.run_dir())
    }

    fn event(&self, kind: &str, task: &str) -> Option<Value> {
        self.events().into_iter().rfind(|e| e["t"] == kind && (task.is_empty() || e["task"] == task))
    }

    fn wait_event(&self, kind: &str, task: &str) -> Value {
        wait_for(LONG, || self.event(kind, task)).unwrap_or_else(|| panic!("no {kind} {task}: {:#?}", self.events()))
    }

    fn ended(&self) {
        self.wait_event("run_ended", "");
        // The leader tidies up after that.
        let left = wait_for(LONG, || self.world.processes().is_empty().then_some(()));
        assert!(left.is_some(), "{:?}", self.world.processes());
    }

    /// The payload of the last outcome of a task.
    fn outcome(&self, kind: &str, task: &str) -> Value {
        let event = self.event(kind, task);
        event.unwrap_or_else(|| panic!("{task} is not {kind}: {:#?}", self.events()))["payload"].clone()
    }

    /// Files of one name that attempts have left.
    fn left(&self, name: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.run_dir().join("workers")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.ends_with(name) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    fn patch(&self, attempt: &str) -> String {
        let found = self.left(&format!("{attempt}/change.patch"));
        assert_eq!(found.len(), 1, "{found:?} {:#?}", self.events());
        text(&fs::read(&found[0]).unwrap())
    }

    fn stderr_of(&self, attempt: &str) -> String {
        let found = self.left(&format!("{attempt}.err"));
        assert!(!found.is_empty(), "{:#?}", self.events());
        text(&fs::read(&found[0]).unwrap())
    }

    /// No worktree is left, neither on the disk nor on git's list, nor anything that made it.
    fn is_clean(&self) {
        let left = fs::read_dir(self.root().join(".claude/worktrees"));
        let logs: Vec<String> = self.left("worker.jsonl").iter().map(|p| text(&fs::read(p).unwrap())).collect();
        assert!(
            left.is_err(),
            "{:?} {logs:?} {:#?}",
            left.unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>(),
            self.events()
        );
        assert_eq!(self.git(&["worktree", "list", "--porcelain"]).matches("worktree ").count(), 1);
        assert!(!self.root().join(".git/worktrees").exists());
        let logs = |name: &str| self.left(name);
        assert!(logs("index").is_empty() && logs("patch").is_empty());
    }

    /// What of the repository is the user's own: nobody else may write it.
    fn own(&self) -> Vec<(String, Vec<u8>)> {
        let read = |name: &str| fs::read(self.root().join(".git").join(name)).unwrap_or_default();
        let mut all: Vec<(String, Vec<u8>)> =
            ["index", "HEAD", "config", "info/exclude", "logs/HEAD"].map(|n| (n.to_owned(), read(n))).to_vec();
        all.push(("refs".into(), self.git(&["for-each-ref"]).into_bytes()));
        all
    }
}

/// Every file below a folder but git's and cpw's: what it is, whether it can be executed, what is in it.
fn files(top: &Path) -> BTreeMap<PathBuf, (char, bool, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![top.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let name = path.strip_prefix(top).unwrap().to_owned();
            if name == Path::new(".git") || name == Path::new(".claude") {
                continue;
            }
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_symlink() {
                found.insert(name, ('l', false, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()));
            } else {
                let can = path.metadata().unwrap().permissions().mode() & 0o100 != 0;
                found.insert(name, ('f', can, fs::read(&path).unwrap()));
            }
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[test]
fn a_worker_sees_what_the_user_sees_and_leaves_a_patch() {
    let Some(scene) = scene("a_worker_sees_what_the_user_sees_and_leaves_a_patch") else { return };
    scene.world.write("b.txt", "staged\n");
    scene.git(&["add", "b.txt"]);
    scene.world.write("b.txt", "edited\n");
    scene.world.write("new file", "new\n");
    scene.world.write("x.ignored", "x\n");
    // A hook of the user's is for the user's own calls.
    for hook in ["post-checkout", "post-index-change", "reference-transaction"] {
        scene.world.script(&format!(".git/hooks/{hook}"), "echo ran > \"$HOME/hook-ran\"");
    }
    let hooked = scene.world.home().join("hook-ran");
    let (own, status) = (scene.own(), scene.git(&["status", "--porcelain"]));
    let project = scene.root();
    let script = format!(
        "cat b.txt 'new file' >&2; test ! -e x.ignored; git status --porcelain >&2; pwd >&2
         git -C {0} status --porcelain > \"$CPW_OUT/status\"
         git -C {0} worktree list > \"$CPW_OUT/list\"
         echo changed > b.txt; echo y > y.ignored; echo made > made",
        project.display()
    );
    scene.run(&json!([{"id": "t", "isolate": "worktree", "shell": format!("set -e; {script}")}]));
    let place = format!(".claude/worktrees/cpw-{}-t", scene.run_dir().file_name().unwrap().display());
    let said = format!("edited\nnew\n{}\n", project.join(&place).display());
    assert_eq!(scene.stderr_of("t.1"), said);
    assert_eq!(scene.event("started", "t").unwrap()["payload"]["cwd"], project.join(&place).to_str().unwrap());
    let beside = |name: &str| text(&fs::read(&scene.left(name)[0]).unwrap());
    assert_eq!(beside("status"), status, "the worktree shows in the user's status");
    assert!(beside("list").contains(&place));
    assert_eq!(scene.git(&["status", "--porcelain"]), status);
    assert_eq!(scene.own(), own);
    assert!(!hooked.exists());

    let patch = scene.patch("t.1");
    assert!(patch.contains("-edited\n+changed\n") && patch.contains("+made\n"), "{patch}");
    assert!(!patch.contains("ignored"), "{patch}");
    let done = scene.outcome("done", "t");
    assert_eq!(done["summary"], "2 files changed, +2 −1");
    assert!(done["result"]["path"].as_str().unwrap().ends_with("out/t.1/change.patch"), "{done}");
    assert_eq!(text(&scene.cpw(&["result", "t"]).stdout), patch);
}

#[test]
fn a_result_of_its_own_stays_the_result() {
    let Some(scene) = scene("a_result_of_its_own_stays_the_result") else { return };
    scene.run(&json!([
        {"id": "said", "isolate": "worktree", "shell": "echo 5 findings; echo x > x"},
        {"id": "wrote", "isolate": "worktree", "shell": "echo x > x; echo '# Report' > \"$CPW_OUT/result.md\""},
        {"id": "none", "isolate": "worktree", "shell": "true"}]));
    for (task, result, summary) in [
        ("said", "result.txt", "5 findings (1 file changed, +1 −0)"),
        ("wrote", "result.md", "Report (1 file changed, +1 −0)"),
    ] {
        let done = scene.outcome("done", task);
        assert!(done["result"]["path"].as_str().unwrap().ends_with(result), "{done}");
        assert_eq!(done["summary"], summary);
        scene.patch(&format!("{task}.1"));
    }
    let done = scene.outcome("done", "none");
    assert_eq!((&done["result"], &done["summary"]), (&Value::Null, &Value::Null));
    assert_eq!(scene.left("change.patch").len(), 2, "no change is no patch");
    let said = scene.cpw(&["result", "none", "--apply"]);
    assert_eq!((said.status.code(), text(&said.stderr)), (Some(1), "cpw: none has changed nothing\n".into()));
}

/// Changes of every kind, with names that programs stumble over.
const CHANGES: &str = r#"set -e
printf '\000\001\377' > bin; printf '\000\002' > bin2
mv a.txt renamed.txt; rm b.txt
chmod +x tool; rm link; ln -s elsewhere link; ln -s ../../outside far
echo dash > ./-n; echo space > 'a  b '; printf 'x' > "$(printf 'new\nline')"; echo q > 'quo"te\'
echo latin > "$(printf 'caf\351')"; : > empty; mkdir -p deep/er; echo deep > deep/er/file
rm -r folder; echo 'now a file' > folder; rm swap; mkdir swap; echo in > swap/file
printf 'a\r\nb\r\n' > crlf; printf 'no end' > no-end; echo star > '*'; echo colon > ':(top)'
"#;

#[test]
fn every_kind_of_change_comes_over_whole() {
    let Some(scene) = scene("every_kind_of_change_comes_over_whole") else { return };
    scene.world.write("tool", "#!/bin/sh\n");
    scene.world.write("folder/file", "f\n");
    scene.world.write("swap", "s\n");
    scene.world.write("bin2", "\0x");
    scene.world.write("crlf", "a\nb\n");
    std::os::unix::fs::symlink("tool", scene.root().join("link")).unwrap();
    let odd = scene.root().join(OsStr::from_bytes(b"odd \xff\n-"));
    fs::write(&odd, "odd\n").unwrap();
    scene.commit();
    scene.world.write("untracked", "u\n");
    let expected = scene.world.path("expected");
    copy(&scene.root(), &expected);
    assert!(Command::new("sh").args(["-c", CHANGES]).current_dir(&expected).status().unwrap().success());

    let before = files(&scene.root());
    scene.run(&json!([{"id": "t", "isolate": "worktree", "shell": CHANGES}]));
    assert_eq!(files(&scene.root()), before);
    let own = scene.own();
    let fits = scene.cpw(&["result", "t", "--apply", "--check"]);
    assert!(fits.status.success(), "{}", text(&fits.stderr));
    assert_eq!(files(&scene.root()), before, "a check changes nothing");
    let applied = scene.cpw(&["result", "t", "--apply"]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    assert_eq!(files(&scene.root()), files(&expected));
    assert_eq!(scene.own(), own);
    let again = scene.cpw(&["result", "t", "--apply"]);
    assert!(again.status.success() && text(&again.stdout).contains("already"), "{again:?}");
    assert_eq!(files(&scene.root()), files(&expected));
}

#[test]
fn a_change_is_merged_with_what_the_user_did_since_or_refused_whole() {
    let Some(scene) = scene("a_change_is_merged_with_what_the_user_did_since_or_refused_whole") else { return };
    scene.run(&json!([{"id": "t", "isolate": "worktree",
        "shell": "sed -i 's/^line 2$/LINE 2/' a.txt; echo more >> b.txt; echo new > new"}]));
    let own = |a: &str| scene.world.read("a.txt").unwrap().replace("line 5", a);

    // Beside it, staged and not, and in the same file.
    scene.world.write("staged", "s\n");
    scene.git(&["add", "staged"]);
    scene.world.write("a.txt", &own("mine 5"));
    let index = scene.own();
    let applied = scene.cpw(&["result", "t", "--apply"]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    let merged = scene.world.read("a.txt").unwrap();
    assert!(merged.contains("LINE 2") && merged.contains("mine 5"), "{merged}");
    assert_eq!(
        (scene.world.read("b.txt").unwrap().as_str(), scene.world.read("new").unwrap().as_str()),
        ("b\nmore\n", "new\n")
    );
    assert_eq!(scene.own(), index);
    let again = scene.cpw(&["result", "t", "--apply"]);
    assert!(text(&again.stdout).contains("already"), "{again:?}");

    // Some of it is there, some is not.
    fs::remove_file(scene.root().join("new")).unwrap();
    let rest = scene.cpw(&["result", "t", "--apply"]);
    assert!(text(&rest.stdout).contains("1 file changed"), "{rest:?}");

    // In one place of one file; then a file that git ignores stands where a new one goes.
    scene.git(&["checkout", "-q", "--", "."]);
    fs::remove_file(scene.root().join("new")).unwrap();
    scene.world.write("a.txt", &scene.world.read("a.txt").unwrap().replace("line 2", "mine 2"));
    let before = files(&scene.root());
    for way in [&["result", "t", "--apply", "--check"][..], &["result", "t", "--apply"]] {
        let refused = scene.cpw(way);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(text(&refused.stderr).contains("a.txt: changed on both sides, first at line"), "{refused:?}");
        assert_eq!(files(&scene.root()), before);
    }
    scene.git(&["checkout", "-q", "--", "."]);
    scene.world.write(".git/info/exclude", "new\n");
    scene.world.write("new", "kept\n");
    let before = files(&scene.root());
    let refused = scene.cpw(&["result", "t", "--apply"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(text(&refused.stderr).contains("new: already exists"), "{refused:?}");
    assert_eq!(files(&scene.root()), before);
    assert_eq!(scene.left("index").len() + scene.left("patch").len(), 0);
}

/// git removes every file that it replaces before it writes the first one: what stops it in between must not cost a file.
#[test]
fn a_change_that_cannot_be_written_to_its_end_leaves_the_files_as_they_were() {
    let Some(scene) = scene("a_change_that_cannot_be_written_to_its_end_leaves_the_files_as_they_were") else { return };
    scene.world.write("dir/file", "d\n");
    scene.world.write("gone", "g\n");
    fs::set_permissions(scene.root().join("b.txt"), fs::Permissions::from_mode(0o755)).unwrap();
    scene.commit();
    scene.run(&json!([
        {"id": "over", "isolate": "worktree", "shell": "rm -r dir; echo f > dir; echo more >> a.txt; rm gone; echo new > new"},
        {"id": "big", "isolate": "worktree", "shell": "head -c 4000000 /dev/zero > deep.er; mkdir -p c/d; echo c > c/d/e; \
            rm gone; echo more >> a.txt; echo B > b.txt"}]));
    scene.world.write("a.txt", &scene.world.read("a.txt").unwrap().replace("line 2", "mine, in no commit"));
    scene.world.write("dir/kept.ignored", "kept\n");
    let (before, own) = (files(&scene.root()), scene.own());

    // A file that git ignores is in the way of one; the disk has no room for another.
    let over = scene.cpw(&["result", "over", "--apply"]);
    assert_eq!(over.status.code(), Some(1), "{over:?}");
    assert!(text(&over.stderr).contains("nothing was changed"), "{over:?}");
    assert_eq!(files(&scene.root()), before);
    for ignored in ["", "trap '' XFSZ; "] {
        let small = format!("ulimit -f 256; {ignored}exec \"$0\" result big --apply");
        let mut command = scene.world.command("/bin/sh");
        let full = command.args(["-c", &small]).arg(support::world::program()).envs(GIT).output().unwrap();
        assert_eq!(full.status.code(), Some(1), "{full:?}");
        assert!(text(&full.stderr).contains("nothing was changed"), "{full:?}");
        assert_eq!(files(&scene.root()), before);
        assert_eq!(scene.own(), own);
    }
    assert!(scene.left("index").is_empty() && scene.left("patch").is_empty());

    let fits = scene.cpw(&["result", "big", "--apply"]);
    assert!(fits.status.success(), "{fits:?}");
    let merged = scene.world.read("a.txt").unwrap();
    assert!(merged.contains("mine, in no commit") && merged.ends_with("more\n"), "{merged}");
}

#[test]
fn a_patch_that_was_changed_since_is_not_applied() {
    let Some(scene) = scene("a_patch_that_was_changed_since_is_not_applied") else { return };
    scene.run(&json!([{"id": "t", "isolate": "worktree", "shell": "echo x > x"}, {"id": "o", "shell": "true"}]));
    let patch = &scene.left("change.patch")[0];
    let other = fs::read_to_string(patch).unwrap().replace("+x", "+y");
    fs::write(patch, other).unwrap();
    let refused = scene.cpw(&["result", "t", "--apply"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("it was changed since"), "{refused:?}");
    assert!(scene.world.read("x").is_none());
    let refused = scene.cpw(&["result", "o", "--apply"]);
    assert!(text(&refused.stderr).contains("had no worktree of its own"), "{refused:?}");
}

#[test]
fn where_no_worktree_can_be_the_attempt_fails_and_says_what_to_do() {
    let test = "where_no_worktree_can_be_the_attempt_fails_and_says_what_to_do";
    let reason = |scene: &Scene, task: Value| {
        scene.start(&json!([task]), 1);
        scene.ended();
        scene.outcome("failed", "t")["reason"].as_str().unwrap().to_owned()
    };
    let task = json!({"id": "t", "isolate": "worktree", "shell": "echo x > x"});
    let Some(scene) = bare_scene(test) else { return };
    fs::create_dir(scene.root().join(".claude")).unwrap();
    let why = reason(&scene, task.clone());
    assert!(why.contains("is not in a git repository: `git init`"), "{why}");
    drop(scene);

    let scene = bare_scene(test).unwrap();
    scene.git(&["init", "-q", "--bare", "."]);
    fs::create_dir(scene.root().join(".claude")).unwrap();
    let why = reason(&scene, task.clone());
    assert!(why.contains("it is bare"), "{why}");
    drop(scene);

    let scene = self::scene(test).unwrap();
    scene.git(&["init", "-q", "sub"]);
    scene.world.write("sub/f", "f\n");
    let sub = scene.root().join("sub");
    scene.git_in(&sub, &["add", "-A"]);
    scene.git_in(&sub, &["commit", "-q", "-m", "x"]);
    scene.git(&["add", "sub"]);
    let why = reason(&scene, task.clone());
    assert!(why.contains("has submodules (sub)"), "{why}");
    drop(scene);

    let scene = self::scene(test).unwrap();
    for (cwd, says) in [("../../../..", "outside of its worktree"), ("nowhere", "files that git ignores are not there")]
    {
        let why = reason(&scene, json!({"id": "t", "isolate": "worktree", "cwd": cwd, "shell": "true"}));
        assert!(why.contains(says), "{why}");
        scene.is_clean();
    }
    let why = reason(&scene, json!({"id": "t", "isolate": "worktree", "run": ["./missing"]}));
    assert!(why.contains("no such program"), "{why}");
    scene.is_clean();
    // Another folder stands in the way, which is not ours to remove.
    std::os::unix::fs::symlink(scene.world.home(), scene.root().join(".claude/worktrees")).unwrap();
    let why = reason(&scene, task.clone());
    assert!(why.contains("cannot make the folder of worktrees"), "{why}");
    assert_eq!(fs::read_dir(scene.world.home()).unwrap().count(), 0, "nothing is made behind a link");
    drop(scene);

    let scene = self::scene(test).unwrap();
    let tools = scene.world.path("tools");
    fs::create_dir(&tools).unwrap();
    let plan = scene.world.path("plan.json");
    fs::write(&plan, json!({"version": 1, "tasks": [task]}).to_string()).unwrap();
    let mut command = scene.world.cpw(&["run", plan.to_str().unwrap()]);
    assert_eq!(command.envs(GIT).env("PATH", &tools).output().unwrap().status.code(), Some(1));
    let why = scene.outcome("failed", "t")["reason"].as_str().unwrap().to_owned();
    assert!(why.contains("git: no such program on PATH"), "{why}");
}

#[test]
fn s06_a_folder_in_the_shape_of_a_repository_runs_nothing() {
    let Some(scene) = bare_scene("s06_a_folder_in_the_shape_of_a_repository_runs_nothing") else { return };
    let above = scene.world.path("");
    assert!(scene.git_in(&above, &["init", "-q", "."]).status.success());
    let canary = scene.world.home().join("canary");
    for folder in [".claude", "objects", "refs/heads"] {
        fs::create_dir_all(scene.root().join(folder)).unwrap();
    }
    scene.world.write("HEAD", "ref: refs/heads/main\n");
    let filter = format!("clean = \"touch {0}; cat\"\n\tsmudge = \"touch {0}; cat\"", canary.display());
    let config =
        format!("[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = .\n[filter \"x\"]\n\t{filter}\n");
    scene.world.write("config", &config);
    scene.world.write(".gitattributes", "* filter=x\n");
    scene.world.write("a.txt", "a\n");
    scene.start(&json!([{"id": "t", "isolate": "worktree", "shell": "echo + >> a.txt"}]), 1);
    scene.ended();
    assert!(!canary.exists(), "a filter of the folder ran");
}

#[test]
fn a_repository_without_a_commit_and_a_project_below_the_top_serve() {
    let Some(scene) = bare_scene("a_repository_without_a_commit_and_a_project_below_the_top_serve") else { return };
    let above = scene.world.path("");
    assert!(scene.git_in(&above, &["init", "-q", "."]).status.success());
    fs::write(above.join(".gitignore"), "/state\n/home\n/tmp\n/plan.json\n").unwrap();
    fs::write(above.join("top.txt"), "top\n").unwrap();
    scene.world.write("in.txt", "in\n");
    scene.world.write("sub/deep.txt", "deep\n");
    fs::create_dir(scene.root().join(".claude")).unwrap();
    scene.start(
        &json!([{"id": "t", "isolate": "worktree", "cwd": "sub", "shell":
            "set -e; cat deep.txt ../in.txt ../../top.txt >&2; echo + >> deep.txt; echo + >> ../../top.txt"}]),
        1,
    );
    scene.ended();
    assert_eq!(scene.stderr_of("t.1"), "deep\nin\ntop\n");
    let applied = scene.cpw(&["result", "t", "--apply"]);
    assert!(applied.status.success(), "{}", text(&applied.stderr));
    assert_eq!(scene.world.read("sub/deep.txt").unwrap(), "deep\n+\n");
    assert_eq!(fs::read_to_string(above.join("top.txt")).unwrap(), "top\n+\n");
    assert!(!above.join(".git/worktrees").exists() && !scene.root().join(".claude/worktrees").exists());
}

#[test]
fn however_an_attempt_ends_its_change_is_saved() {
    let Some(scene) = scene("however_an_attempt_ends_its_change_is_saved") else { return };
    let hold = "sleep 1000";
    scene.start(
        &json!([
            {"id": "fails", "isolate": "worktree", "shell": "echo fails > new; exit 3"},
            {"id": "late", "isolate": "worktree", "timeout": "1s", "shell": format!("echo late > new; {hold}")},
            {"id": "stopped", "isolate": "worktree", "shell": format!("echo stopped > new; touch \"$CPW_OUT/on\"; {hold}")},
            {"id": "again", "isolate": "worktree", "retries": 1, "backoff": "10ms", "shell":
                "test ! -e new || exit 9; echo $CPW_ATTEMPT > new; chmod 500 .; test $CPW_ATTEMPT = 2"}]),
        4,
    );
    wait_for(LONG, || scene.left("on").pop()).unwrap();
    scene.wait_event("timed_out", "late");
    assert!(scene.cpw(&["cancel", "stopped"]).status.success());
    scene.ended();
    scene.is_clean();
    for (attempt, line) in
        [("fails.1", "+fails"), ("late.1", "+late"), ("stopped.1", "+stopped"), ("again.1", "+1"), ("again.2", "+2")]
    {
        assert!(scene.patch(attempt).contains(line), "{attempt}");
    }
    assert_eq!(scene.outcome("failed", "fails")["reason"], "exit 3");
    let cancelled = scene.outcome("cancelled", "stopped");
    assert!(cancelled["result"]["path"].as_str().unwrap().ends_with("stopped.1/change.patch"), "{cancelled}");
    // A failed task's change is a person's choice, too; of two attempts it is the last one's.
    for task in ["fails", "again"] {
        scene.cpw(&["result", task, "--apply"]);
        let now = scene.world.read("new").unwrap();
        assert_eq!(now, if task == "fails" { "fails\n" } else { "2\n" });
        fs::remove_file(scene.root().join("new")).unwrap();
    }
}

#[test]
fn a_task_that_spoils_its_worktree_does_not_spoil_its_patch() {
    let Some(scene) = scene("a_task_that_spoils_its_worktree_does_not_spoil_its_patch") else { return };
    let change = "echo more >> a.txt; echo new > new;";
    let task = |id: &str, then: &str| json!({"id": id, "isolate": "worktree", "shell": format!("{change} {then}")});
    scene.run(&json!([
        task("git", "rm .git"),
        task("init", "rm .git; git init -q .; git add -A; git commit -qm x"),
        task("commits", "git checkout -q --detach; git add -A; git commit -qm x; git reset -q --hard HEAD"),
        task("index", "git update-index --assume-unchanged a.txt; git add -N new; touch -d 2001-01-01 a.txt"),
        task("list", "rm -r \"$(git rev-parse --git-dir)\""),
        task("locked", "git worktree lock --reason mine ."),
        task("readonly", "mkdir r; echo r > r/f; git add r; chmod 500 r; rm -f x")
    ]));
    for id in ["git", "init", "commits", "index", "list", "locked", "readonly"] {
        let patch = scene.patch(&format!("{id}.1"));
        assert!(patch.contains("+more\n") && patch.contains("+new\n"), "{id}: {patch}");
        assert!(scene.event("done", id).is_some(), "{id}");
    }
}

#[test]
fn what_git_ignores_is_saved_where_it_was_added_on_purpose() {
    let Some(scene) = scene("what_git_ignores_is_saved_where_it_was_added_on_purpose") else { return };
    scene.run(&json!([
        {"id": "committed", "isolate": "worktree", "shell":
            "echo made > a.ignored; echo odd > '[x].ignored'; echo no > b.ignored; git add -f a.ignored '[x].ignored'; git commit -qm x"},
        {"id": "added", "isolate": "worktree", "shell": "echo kept > c.ignored; git add -f c.ignored; rm a.txt; git rm -q a.txt"}]));
    let patch = scene.patch("committed.1");
    assert!(patch.contains("+made\n") && patch.contains("+odd\n") && !patch.contains("+no\n"), "{patch}");
    assert!(scene.patch("added.1").contains("+kept\n"));
    assert!(scene.cpw(&["result", "committed", "--apply"]).status.success());
    assert_eq!(scene.world.read("a.ignored").unwrap(), "made\n");
    scene.is_clean();
}

#[test]
fn a_change_that_no_patch_can_hold_keeps_its_worktree() {
    let Some(scene) = scene("a_change_that_no_patch_can_hold_keeps_its_worktree") else { return };
    scene.start(
        &json!([{"id": "t", "isolate": "worktree", "shell":
            "git init -q own; echo x > own/x; cd own; git add x; git commit -qm x; cd ..; echo y > y"}]),
        1,
    );
    scene.ended();
    let done = scene.outcome("done", "t");
    let said = done["summary"].as_str().unwrap();
    assert!(said.contains("1 file changed") && said.contains("a repository of its own (own)"), "{said}");
    assert!(scene.patch("t.1").contains("+y"));
    let tree = fs::read_dir(scene.root().join(".claude/worktrees")).unwrap().map(|e| e.unwrap().path());
    let tree = tree.filter(|p| p.is_dir()).last().unwrap();
    assert_eq!(fs::read_to_string(tree.join("own/x")).unwrap(), "x\n");
    let run = scene.run_dir().file_name().unwrap().to_str().unwrap().to_owned();
    let told = text(&scene.cpw(&["doctor", &run]).stdout);
    assert!(told.contains("worktrees") && told.contains(tree.to_str().unwrap()), "{told}");
    assert!(!scene.git(&["status", "--porcelain"]).contains("worktrees"));
    // Whoever cleans its run leaves it alone, until its owner has seen to it.
    let refused = scene.cpw(&["clean", &run]);
    let why = text(&refused.stderr) + &text(&refused.stdout);
    assert!(!refused.status.success() && why.contains(tree.to_str().unwrap()), "{why}");
    assert!(scene.run_dir().join("events.jsonl").exists());
    assert_eq!(fs::read_to_string(tree.join("own/x")).unwrap(), "x\n");
    scene.git(&["worktree", "remove", "--force", "--force", tree.to_str().unwrap()]);
    let cleaned = scene.cpw(&["clean", &run]);
    assert!(cleaned.status.success(), "{cleaned:?}");
    assert!(!scene.root().join(".claude/runs").join(&run).exists());
}

/// What a filter of git waits for, in the world's folder: `in-W` says that it waits, and it goes on once `hold-W` is gone.
fn filter(scene: &Scene, which: &str) -> PathBuf {
    let name = scene.world.path(&format!("filter-{which}"));
    let [reached, hold] = ["in", "hold"].map(|w| scene.world.path(&format!("{w}-{which}")));
    let script = format!(
        "#!/bin/sh\nif [ -e {1} ]; then touch {0}; while [ -e {1} ]; do sleep 0.05; done; fi\nexec cat\n",
        reached.display(),
        hold.display()
    );
    fs::write(&name, script).unwrap();
    fs::set_permissions(&name, fs::Permissions::from_mode(0o755)).unwrap();
    scene.git(&["config", &format!("filter.slow.{which}"), name.to_str().unwrap()]);
    hold
}

fn kill_worker(scene: &Scene) {
    let started = scene.wait_event("worker_started", "");
    let pid = i32::try_from(started["payload"]["pid"].as_i64().unwrap()).unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_for(LONG, || kill(Pid::from_raw(pid), None).is_err().then_some(())).unwrap();
}

/// A run of one task with one worker, which is killed when `reached` is there; then somebody looks.
fn killed(scene: &Scene, shell: &str, reached: &Path, hold: Option<&Path>) {
    let task = json!({"id": "t", "isolate": "worktree", "retries": 1, "backoff": "10ms", "shell": shell});
    scene.start(&json!([task]), 1);
    wait_for(LONG, || reached.exists().then_some(())).unwrap();
    kill_worker(scene);
    if let Some(hold) = hold {
        fs::remove_file(hold).unwrap();
    }
    assert!(scene.cpw(&["status"]).status.success());
    scene.ended();
    scene.is_clean();
    assert!(scene.event("lost", "t").is_some());
    assert!(scene.event("done", "t").is_some(), "{:#?}", scene.events());
}

#[test]
fn a_worker_killed_during_the_task_loses_no_work() {
    let Some(scene) = scene("a_worker_killed_during_the_task_loses_no_work") else { return };
    let on = scene.world.path("on");
    let shell = format!(
        "test ! -e new || exit 9; echo try $CPW_ATTEMPT > new; test $CPW_ATTEMPT = 2 && exit; touch {}; sleep 1000",
        on.display()
    );
    killed(&scene, &shell, &on, None);
    assert!(scene.patch("t.1").contains("+try 1") && scene.patch("t.2").contains("+try 2"));
}

#[test]
fn a_worker_killed_while_its_worktree_is_made_leaves_none() {
    let Some(scene) = scene("a_worker_killed_while_its_worktree_is_made_leaves_none") else { return };
    scene.world.write(".gitattributes", "*.slow filter=slow\n");
    scene.world.write("f.slow", "slow\n");
    scene.commit();
    let hold = filter(&scene, "smudge");
    fs::write(&hold, "").unwrap();
    killed(&scene, "cat f.slow; echo x > x", &scene.world.path("in-smudge"), Some(&hold));
    assert_eq!(scene.left("change.patch").len(), 1, "the first try had not begun");
}

#[test]
fn a_worker_killed_while_it_saves_loses_no_work() {
    let Some(scene) = scene("a_worker_killed_while_it_saves_loses_no_work") else { return };
    scene.world.write(".gitattributes", "*.slow filter=slow\n");
    scene.commit();
    let hold = filter(&scene, "clean");
    let shell = format!(
        "test ! -e f.slow || exit 9; echo $CPW_ATTEMPT > f.slow; test $CPW_ATTEMPT = 2 || touch {}",
        hold.display()
    );
    killed(&scene, &shell, &scene.world.path("in-clean"), Some(&hold));
    assert!(scene.patch("t.1").contains("+1") && scene.patch("t.2").contains("+2"));
}

#[test]
fn what_is_left_of_a_lost_attempt_is_saved_by_another_worker() {
    let Some(scene) = scene("what_is_left_of_a_lost_attempt_is_saved_by_another_worker") else { return };
    let on = |task: &str| scene.world.path(&format!("on-{task}"));
    let task = |id: &str| {
        let shell = format!("echo $CPW_WORKER > new; touch {}; sleep 1000", on(id).display());
        json!({"id": id, "isolate": "worktree", "shell": shell})
    };
    scene.start(&json!([task("a"), task("b")]), 2);
    wait_for(LONG, || (on("a").exists() && on("b").exists()).then_some(())).unwrap();
    let pid = scene.event("worker_started", "").unwrap()["payload"]["pid"].as_i64().unwrap();
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    let lost = scene.wait_event("lost", "");
    let id = lost["task"].as_str().unwrap();
    assert!(scene.patch(&format!("{id}.1")).contains("+W"), "saved before it is called lost");
    assert!(scene.cpw(&["cancel"]).status.success());
    scene.ended();
    scene.is_clean();
    assert_eq!(scene.left("change.patch").len(), 2);
}

#[test]
fn many_at_once_do_not_disturb_each_other() {
    let Some(scene) = scene("many_at_once_do_not_disturb_each_other") else { return };
    let tasks: Vec<Value> = (0..6)
        .map(|n| json!({"id": format!("t{n}"), "isolate": "worktree", "shell": format!("echo {n} > new-{n}; sed -i 's/^line 5$/five {n}/' a.txt")}))
        .collect();
    scene.start(&json!(tasks), 3);
    let first = scene.run_dir();
    scene.start(&json!(tasks), 3);
    let both = [first, scene.run_dir()];
    for dir in &both {
        let over = || Scene::events_of(dir).iter().any(|e| e["t"] == "run_ended").then_some(());
        wait_for(LONG, over).unwrap();
    }
    scene.ended();
    scene.is_clean();
    for dir in both {
        let events = Scene::events_of(&dir);
        assert_eq!(events.iter().filter(|e| e["t"] == "done").count(), 6, "{events:#?}");
        for done in events.iter().filter(|e| e["t"] == "done") {
            assert_eq!(done["payload"]["summary"], "2 files changed, +2 −1", "{done}");
        }
    }
}

#[test]
fn what_could_not_be_saved_stays_and_is_saved_when_it_can_be() {
    let Some(scene) = scene("what_could_not_be_saved_stays_and_is_saved_when_it_can_be") else { return };
    scene.world.write(".gitattributes", "*.slow filter=slow\n");
    scene.commit();
    let broken = scene.world.path("broken");
    scene.git(&["config", "filter.slow.clean", &format!("test ! -e {} && cat", broken.display())]);
    scene.git(&["config", "filter.slow.smudge", "cat"]);
    scene.git(&["config", "filter.slow.required", "true"]);
    scene.run(&json!([
        {"id": "t", "isolate": "worktree", "allow_failure": true, "shell": format!("echo x > f.slow; touch {}", broken.display())},
        {"id": "u", "needs": ["t"], "shell": format!("ls .claude/worktrees/*-t >&2; rm {}", broken.display())}]));
    let reason = scene.outcome("failed", "t")["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("its change could not be saved: git add:") && reason.contains("all of it is in /"),
        "{reason}"
    );
    assert!(scene.stderr_of("u.1").contains("f.slow"), "it was there until it was saved");
    assert!(scene.patch("t.1").contains("+x"));
    let applied = scene.cpw(&["result", "t", "--apply"]);
    assert!(applied.status.success(), "{applied:?}");
    assert_eq!(scene.world.read("f.slow").unwrap(), "x\n");
}
