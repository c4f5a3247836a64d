//! Asking git: with arguments only, without hooks, pager, prompts and the variables of whoever called us, and never for
//! longer than the caller has time. Nothing here touches the user's index, refs, stash or HEAD: trees are written by way of
//! an index of our own.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::actor::environ;
use crate::base::text;
use crate::sys::lock;
use crate::sys::program::{self, Program, Ran};
use crate::sys::spawn::{self, Exit};

/// Variables of git that say how this machine's git is set up; all others say what somebody else's call is about.
const KEPT: [&str; 5] =
    ["GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH", "GIT_CEILING_DIRECTORIES"];

/// Settings that hold for every call. A user's hooks and monitors are for the user's own calls; what a working tree is
/// compared by has to be complete; and a file that git would only warn of is no error.
const SETTINGS: [&str; 14] = [
    // A folder of the project with the shape of a repository is none: its settings would name programs to run.
    "safe.bareRepository=explicit",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.untrackedCache=false",
    "core.splitIndex=false",
    "core.sparseCheckout=false",
    "core.trustctime=true",
    "core.checkStat=default",
    "core.safecrlf=false",
    "core.quotePath=true",
    "apply.ignoreWhitespace=no",
    "submodule.recurse=false",
    "gc.auto=0",
    "worktree.useRelativePaths=false",
];

/// How often a working tree is read again when its files change meanwhile.
const TRIES: usize = 3;

/// Variables that make git look elsewhere than where it is called; git itself sets them for what it starts.
const PLACES: [&str; 8] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
];

/// Whether a variable would make git look elsewhere than where it is called.
pub fn is_place(name: &OsStr) -> bool {
    PLACES.iter().any(|p| name == *p)
}

fn is_foreign(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"GIT_") && !KEPT.iter().any(|k| name == *k)
}

/// git, and how much time there is.
#[derive(Debug)]
pub struct Git {
    program: PathBuf,
    env: Vec<(OsString, OsString)>,
    until: Instant,
}

impl Git {
    /// Finds git outside `project`. `mark`: variables by which its processes are told, should this one be killed.
    pub fn find(project: &Path, mark: &[(&str, &str)], limit: Duration) -> Result<Git, String> {
        let mut env: Vec<(OsString, OsString)> = std::env::vars_os()
            .filter(|(name, _)| environ::is_users(name) && !is_foreign(name) && name != "LC_ALL" && name != "LANGUAGE")
            .collect();
        let path = env.iter().find(|(n, _)| n == "PATH").map(|(_, v)| v.clone());
        let path = path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let program = spawn::resolve_program(OsStr::new("git"), &path, project, project).map_err(|e| e.reason)?;
        let fixed = [
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_AUTHOR_NAME", "cpw"),
            ("GIT_AUTHOR_EMAIL", "cpw@localhost"),
            ("GIT_COMMITTER_NAME", "cpw"),
            ("GIT_COMMITTER_EMAIL", "cpw@localhost"),
        ];
        env.retain(|(name, _)| !mark.iter().any(|(m, _)| name == m));
        env.extend(fixed.iter().chain(mark).map(|(n, v)| (OsString::from(n), OsString::from(v))));
        Ok(Git { program, env, until: Instant::now() + limit })
    }

    /// A call in the folder `at`.
    pub fn at<'a>(&'a self, at: &'a Path) -> Call<'a> {
        Call { git: self, at, env: Vec::new(), args: Vec::new(), stdout: None }
    }

    /// How much time is left.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// One call, as it is put together.
#[derive(Debug)]
pub struct Call<'a> {
    git: &'a Git,
    at: &'a Path,
    env: Vec<(OsString, OsString)>,
    args: Vec<OsString>,
    stdout: Option<File>,
}

impl Call<'_> {
    /// With these arguments behind those that are there.
    #[must_use]
    pub fn args<T: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// With this index instead of the one that git would use.
    #[must_use]
    pub fn index(self, file: &Path) -> Self {
        self.set("GIT_INDEX_FILE", file.as_os_str())
    }

    /// With this repository and these files, whatever stands in the folder.
    #[must_use]
    pub fn repository(self, git_dir: &Path, files: &Path) -> Self {
        self.set("GIT_DIR", git_dir.as_os_str()).set("GIT_WORK_TREE", files.as_os_str())
    }

    /// With paths that mean what they say, whatever characters are in them.
    #[must_use]
    pub fn literal(self) -> Self {
        self.set("GIT_LITERAL_PATHSPECS", OsStr::new("1"))
    }

    /// With its stdout in a file.
    #[must_use]
    pub fn into_file(mut self, file: File) -> Self {
        self.stdout = Some(file);
        self
    }

    fn set(mut self, name: &str, value: &OsStr) -> Self {
        self.env.push((name.into(), value.to_owned()));
        self
    }

    /// Makes the call; the error is that git could not be run to its end.
    pub fn run(self) -> Result<Ran, String> {
        let settings = SETTINGS.iter().flat_map(|s| ["-c", s]);
        let mut argv: Vec<OsString> = ["git", "--no-pager"].into_iter().chain(settings).map(OsString::from).collect();
        argv.extend(self.args);
        let mut env = self.git.env.clone();
        env.extend(self.env);
        program::run(Program {
            path: &self.git.program,
            argv: &argv,
            env: &env,
            cwd: self.at,
            stdin: None,
            stdout: self.stdout,
            until: self.git.until,
            stop: None,
        })
    }

    /// Makes the call; the error is also that git refused, with its reason.
    pub fn ask(self) -> Result<Vec<u8>, String> {
        let what = self.args.first().map(|a| a.to_string_lossy().into_owned()).unwrap_or_default();
        let ran = self.run()?;
        if ran.exit == Exit::Code(0) { Ok(ran.stdout) } else { Err(format!("git {what}: {}", reason(&ran))) }
    }

    /// As [`Call::ask`], for an answer of one line.
    pub fn line(self) -> Result<OsString, String> {
        let mut line = self.ask()?;
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        Ok(OsString::from_vec(line))
    }
}

/// Why git refused, as one line: its first error, which names the cause.
pub fn reason(ran: &Ran) -> String {
    let lines = || ran.stderr.lines().filter(|l| !l.trim().is_empty());
    let first = lines().find(|l| l.starts_with("fatal:") || l.starts_with("error:")).or_else(|| lines().next_back());
    match (first, ran.exit) {
        (Some(line), _) => text::one_line(line.trim_start_matches("fatal: ").trim_start_matches("error: "), 200),
        (None, Exit::Code(c)) => format!("exit {c}"),
        (None, Exit::Signal(s)) => format!("killed by signal {s}"),
    }
}

/// The repository of a project.
#[derive(Debug)]
pub struct Repo {
    /// The top of the files.
    pub top: PathBuf,
    /// What all worktrees of the repository share.
    pub common: PathBuf,
    /// The user's index; it need not exist.
    pub index: PathBuf,
}

impl Repo {
    /// The one that `project` is in. The error names what can be done where there is none that serves.
    pub fn of(git: &Git, project: &Path) -> Result<Repo, String> {
        let shown = project.display();
        let top = git.at(project).args(["rev-parse", "--show-toplevel"]).line().map_err(|e| {
            if e.contains("not a git repository") {
                format!("{shown} is not in a git repository: `git init` makes one, else leave \"isolate\" out")
            } else if e.contains("must be run in a work tree") || e.contains("cannot use bare repository") {
                format!("the git repository of {shown} has no files (it is bare): work in a clone or worktree of it")
            } else {
                e
            }
        })?;
        let path = |line: OsString| project.join(PathBuf::from(line));
        Ok(Repo {
            top: path(top),
            common: path(git.at(project).args(["rev-parse", "--git-common-dir"]).line()?),
            index: path(git.at(project).args(["rev-parse", "--git-path", "index"]).line()?),
        })
    }

    /// Keeps others from changing the list of worktrees, or the user's files, at the same time, until the file is dropped.
    /// The lock is on the folder that all worktrees share, so that nothing is left behind.
    pub fn lock(&self, git: &Git) -> Result<File, String> {
        let failed = |e: io::Error| format!("cannot lock {}: {e}", self.common.display());
        let folder = File::open(&self.common).map_err(failed)?;
        match lock::lock_exclusive(&folder, git.left()) {
            Ok(true) => Ok(folder),
            Ok(false) => Err(format!("{} stays locked by another cpw", self.common.display())),
            // Where a folder cannot be locked, git's own locks are what there is.
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                tracing::warn!(error = %e, "worktrees are not serialised");
                Ok(folder)
            }
            Err(e) => Err(failed(e)),
        }
    }
}

/// Copies an index with its time, by which git knows files that it has to read again. Without one, there is none after.
pub fn copy_index(from: &Path, to: &Path) -> io::Result<()> {
    match fs::copy(from, to) {
        Ok(_) => File::options().write(true).open(to)?.set_modified(fs::metadata(from)?.modified()?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => match fs::remove_file(to) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        },
        Err(e) => Err(e),
    }
}

/// Files as a tree of git.
#[derive(Debug)]
pub struct Tree {
    /// Its id.
    pub id: String,
    /// Folders that are repositories of their own and nothing of this one knows: not in the tree.
    pub strangers: Vec<PathBuf>,
}

/// Writes the tree of all files below `files` as they are now, tracked and untracked, without those that git ignores.
/// `index` says what was there, and after it what is; `git_dir` names the repository where the files must not.
pub fn tree_of(git: &Git, files: &Path, git_dir: Option<&Path>, index: &Path) -> Result<Tree, String> {
    let call = || {
        let call = git.at(files).index(index);
        git_dir.map_or(call, |dir| git.at(files).index(index).repository(dir, files))
    };
    let mut tried = 0;
    let strangers = loop {
        tried += 1;
        let added = call().args(["add", "-u"]).ask().and_then(|_| {
            let others = call().args(["ls-files", "--others", "--exclude-standard", "-z"]).ask()?;
            let others = others.split(|b| *b == 0).filter(|name| name.ends_with(b"/"));
            let strangers: Vec<PathBuf> = others.map(|n| OsStr::from_bytes(&n[..n.len() - 1]).into()).collect();
            let without = strangers.iter().map(|s| {
                let mut spec = OsString::from(":(exclude,literal)");
                spec.push(s);
                spec
            });
            call().args(["add", "-A", "--", "."]).args(without).ask()?;
            Ok(strangers)
        });
        match added {
            Ok(strangers) => break strangers,
            // A file may have gone between being listed and being read.
            Err(e) if tried == TRIES || git.left().is_zero() => return Err(e),
            Err(_) => {}
        }
    };
    let id = call().args(["write-tree"]).line()?.to_string_lossy().into_owned();
    Ok(Tree { id, strangers })
}

/// Adds to `index` what the repository's own index in `files` holds although git ignores it: somebody has added it on purpose.
/// `list` is a file for the names. What cannot be told, because that index is spoiled, is left out.
pub fn keep_forced(git: &Git, files: &Path, git_dir: &Path, index: &Path, list: &Path) -> Result<(), String> {
    let asked = git.at(files).args(["ls-files", "-c", "-i", "--exclude-standard", "-z"]).ask();
    let there = |name: &&[u8]| !name.is_empty() && files.join(OsStr::from_bytes(name)).symlink_metadata().is_ok();
    let names = asked.unwrap_or_default();
    let names: Vec<&[u8]> = names.split(|b| *b == 0).filter(there).collect();
    if names.is_empty() {
        return Ok(());
    }
    std::fs::write(list, names.join(&0)).map_err(|e| format!("cannot write {}: {e}", list.display()))?;
    let mut from = OsString::from("--pathspec-from-file=");
    from.push(list);
    let call = git.at(files).index(index).repository(git_dir, files).literal();
    call.args([OsStr::new("add"), OsStr::new("-f"), OsStr::new("--pathspec-file-nul"), &from]).ask().map(drop)
}

/// The first submodule of an index.
pub fn submodule(git: &Git, top: &Path, index: &Path) -> Result<Option<PathBuf>, String> {
    let all = git.at(top).index(index).args(["ls-files", "--stage", "-z"]).ask()?;
    let mut entries = all.split(|b| *b == 0).filter(|e| e.starts_with(b"160000 "));
    let name = entries.next().and_then(|e| e.splitn(2, |b| *b == b'\t').nth(1));
    Ok(name.map(|n| PathBuf::from(OsStr::from_bytes(n))))
}

/// Writes what makes `to` out of `from` to a file, as a patch that holds whatever its reader's settings are.
pub fn write_patch(git: &Git, top: &Path, from: &str, to: &str, file: File) -> Result<(), String> {
    let form =
        ["diff-tree", "-r", "-p", "--binary", "--full-index", "-M", "--no-color", "--no-ext-diff", "--no-textconv"];
    let names = ["--src-prefix=a/", "--dst-prefix=b/", "--unified=3", "--inter-hunk-context=0", from, to];
    git.at(top).args(form).args(names).into_file(file).ask().map(drop)
}

/// How much a change changes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stat {
    /// Files.
    pub files: usize,
    /// Lines added.
    pub added: u64,
    /// Lines removed.
    pub removed: u64,
}

impl std::fmt::Display for Stat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Stat { files, added, removed } = self;
        write!(f, "{files} {} changed, +{added} −{removed}", if *files == 1 { "file" } else { "files" })
    }
}

/// Counts what makes `to` out of `from`.
pub fn stat(git: &Git, top: &Path, from: &str, to: &str) -> Result<Stat, String> {
    Ok(count(&git.at(top).args(["diff-tree", "-r", "-z", "--numstat", "-M", from, to]).ask()?))
}

fn count(numbers: &[u8]) -> Stat {
    let mut out = Stat::default();
    let mut fields = numbers.split(|b| *b == 0).filter(|f| !f.is_empty());
    while let Some(entry) = fields.next() {
        let mut parts = entry.splitn(3, |b| *b == b'\t');
        // A binary file has no lines: `-`.
        let mut number = || parts.next().and_then(|n| std::str::from_utf8(n).ok()?.parse().ok()).unwrap_or(0_u64);
        out.added += number();
        out.removed += number();
        out.files += 1;
        if parts.next().is_none_or(<[u8]>::is_empty) {
            // Renamed: both names follow.
            fields.nth(1);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_lines_are_counted_also_of_binary_and_renamed_ones() {
        assert_eq!(count(b""), Stat::default());
        assert_eq!(count(b"3\t1\ta b\n\0-\t-\tx.bin\0"), Stat { files: 2, added: 3, removed: 1 });
        let all = count(b"0\t0\t\0old\0new\x001\t2\tc\0");
        assert_eq!(all, Stat { files: 2, added: 1, removed: 2 });
        assert_eq!(all.to_string(), "2 files changed, +1 −2");
    }

    #[test]
    fn what_belongs_to_another_call_of_git_is_foreign() {
        for (name, foreign) in
            [("GIT_DIR", true), ("GIT_INDEX_FILE", true), ("GIT_CONFIG_GLOBAL", false), ("PATH", false)]
        {
            assert_eq!(is_foreign(OsStr::new(name)), foreign, "{name}");
        }
    }
}
