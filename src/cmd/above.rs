//! Who is above this process: a client, whose model may have typed the command; a worker, whose task a person has approved;
//! or a person alone. What starts commands asks here. The environment alone proves nothing, since whoever types a command
//! can set it: a client counts if it shows anywhere, a task only if its worker is there.

use std::ffi::OsStr;

use crate::base::env;
use crate::base::exit::Wrong;
use crate::cmd::inside;
use crate::logic::view::Phase;
use crate::model::event::Process;
use crate::store::registry;
use crate::sys::process;

/// Variables that the client sets for what it starts. Not everything named `CLAUDE_CODE_*`: some of those are settings of the
/// user's own shell, and an editor's terminal has others (`CLAUDE_CODE_SSE_PORT`) while a person types there.
const CLIENT_MARKS: [&str; 6] = [
    env::CLAUDECODE,
    env::CLAUDE_SESSION_ID,
    env::CLAUDE_ENTRYPOINT,
    "CLAUDE_CODE_CHILD_SESSION",
    "CLAUDE_CODE_MESSAGING_SOCKET",
    env::CLAUDE_PID,
];

/// Whether this process runs below a client or a worker, and how that shows. A process that fakes its surroundings is
/// outside of what can be promised: it has the user's rights and could write the approval itself.
pub(crate) fn below_client() -> Option<String> {
    let set = |name: &&str| std::env::var_os(name).is_some();
    if let Some(mark) = CLIENT_MARKS.iter().chain([&env::RUN]).find(|name| set(name)) {
        return Some(format!("{mark} is set"));
    }
    if process::is_below_worker() {
        return Some("this is part of a task".to_owned());
    }
    ancestors().find_map(|ancestor| ancestor.below())
}

/// Below a client only approved bytes start, and a plan file, or an old run, is approved by the person who names it: the
/// model is none. A task may, because a person approved what it runs.
pub(crate) fn refuse_below_client(what: &str, who: &str) -> anyhow::Result<()> {
    let hint = "run it in a terminal, or make it a rule of .claude/cpw.json that the user approves";
    refuse_or_hint(what, who, hint)
}

/// Where a file lands that a command is told to write, and which hooks a client is told to call, is for a person to say: to
/// call cpw is not to write anywhere.
pub(crate) fn refuse_to_write(what: &str) -> anyhow::Result<()> {
    let hint = "run it in a terminal outside Claude Code, where you say what it may write";
    refuse_or_hint(what, "says where", hint)
}

/// As [`refuse_below_client`], with what else could be done.
pub(crate) fn refuse_or_hint(what: &str, who: &str, hint: &str) -> anyhow::Result<()> {
    let Some(why) = below_client() else { return Ok(()) };
    if is_in_task() {
        return Ok(());
    }
    let what = format!("{what} inside Claude Code ({why}): only a person {who}");
    Err(Wrong::with_hint(what, hint).into())
}

/// Whether this process belongs to an open attempt of a run that this user's cpw has made, and no client is nearer than its
/// worker. A `claude` task has one: what its model types is as little approved as what any other model does.
fn is_in_task() -> bool {
    let Ok(inside) = inside::attempt("run") else { return false };
    if CLIENT_MARKS.iter().any(|mark| std::env::var_os(mark).is_some()) || !registry::is_ours(&inside.folder) {
        return false;
    }
    let Ok(hooked) = inside.folder.open_view() else { return false };
    let view = &hooked.view;
    let open = view.tasks.get(&inside.task).is_some_and(|t| t.phase == Phase::Running && t.attempt == inside.attempt);
    let worker = view.workers.get(&inside.worker.0).filter(|_| open && view.ended.is_none());
    worker.is_some_and(|worker| nearest(worker, ancestors()))
}

/// The nearest client above this process, by its program.
pub(crate) fn nearest_client() -> Option<process::Ancestor> {
    let client = ancestors().find(Ancestor::is_claude)?.pid;
    process::ancestors().into_iter().find(|above| above.pid == client)
}

/// Whether `worker` comes before any client, upwards.
fn nearest(worker: &Process, above: impl Iterator<Item = Ancestor>) -> bool {
    for ancestor in above {
        if ancestor.pid == worker.pid && process::identity_of(ancestor.pid).as_ref() == Some(worker) {
            return true;
        }
        if ancestor.client().is_some() {
            return false;
        }
    }
    false
}

/// A process above this one, as far as it can be seen.
struct Ancestor {
    pid: i32,
    comm: String,
    exe: String,
    argv: Vec<String>,
    /// Names of variables.
    environment: Vec<String>,
}

impl Ancestor {
    /// Whether it is a client, or below one, and how that shows.
    fn client(&self) -> Option<String> {
        if self.is_claude() {
            return Some(format!("process {} above is claude", self.pid));
        }
        self.marked(&CLIENT_MARKS)
    }

    /// The same, or whether it is a task.
    fn below(&self) -> Option<String> {
        self.client().or_else(|| self.marked(&[env::RUN]))
    }

    fn marked(&self, marks: &[&str]) -> Option<String> {
        let mark = marks.iter().find(|mark| self.environment.iter().any(|name| name == *mark))?;
        Some(format!("process {} above has {mark} set", self.pid))
    }

    fn is_claude(&self) -> bool {
        let named = |name: &str| name.rsplit('/').next() == Some("claude");
        named(&self.comm)
            || named(&self.exe)
            || self.exe.contains("/claude/versions/")
            // The program, or the script that node runs.
            || self.argv.iter().take(2).any(|arg| named(arg) || arg.contains("/claude-code/"))
    }
}

/// The processes above this one, nearest first. Where there is no /proc: none, and the environment alone decides.
fn ancestors() -> impl Iterator<Item = Ancestor> {
    process::ancestors().into_iter().map(|above| {
        let exe = std::fs::read_link(format!("/proc/{}/exe", above.pid)).unwrap_or_default();
        let text = |s: &OsStr| s.to_string_lossy().into_owned();
        Ancestor {
            pid: above.pid,
            comm: above.comm,
            exe: exe.to_string_lossy().into_owned(),
            argv: above.argv.iter().map(|arg| text(arg)).collect(),
            environment: process::environ_of(above.pid).iter().map(|(name, _)| text(name)).collect(),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_client_above_is_recognised_however_it_was_started() {
        let ancestor = |comm: &str, exe: &str, argv: &[&str], environment: &[&str]| {
            let list = |items: &[&str]| items.iter().map(|s| (*s).to_owned()).collect();
            Ancestor { pid: 7, comm: comm.into(), exe: exe.into(), argv: list(argv), environment: list(environment) }
        };
        for client in [
            ancestor("claude", "", &[], &[]),
            ancestor("2.1.329", "/home/u/.local/share/claude/versions/2.1.329", &[], &[]),
            ancestor("node", "/usr/bin/node", &["/usr/bin/node", "/usr/bin/claude"], &[]),
            ancestor("node", "/usr/bin/node", &["node", "/x/node_modules/@anthropic-ai/claude-code/cli.js"], &[]),
            ancestor("sh", "/bin/dash", &["sh", "-c", "cpw allow"], &["PATH", "CLAUDECODE"]),
            ancestor("sh", "/bin/dash", &["sh"], &["CPW_RUN"]),
        ] {
            assert!(client.below().is_some(), "{} {:?}", client.comm, client.argv);
        }
        for person in [
            ancestor("bash", "/bin/bash", &["-bash"], &["CLAUDE_CODE_SSE_PORT", "CLAUDE_CODE_USE_BEDROCK"]),
            ancestor("vim", "/usr/bin/vim", &["vim", "notes", "claude"], &["NOTE"]),
            ancestor("make", "/usr/bin/make", &["make", "claude.md"], &[]),
        ] {
            assert_eq!(person.below(), None, "{}", person.comm);
        }
    }

    #[test]
    fn the_walk_upwards_finds_the_parent() {
        if !Path::new("/proc/self/stat").exists() {
            eprintln!("skipped: there is no /proc here");
            return;
        }
        let parent = i32::try_from(std::os::unix::process::parent_id()).unwrap();
        assert_eq!(ancestors().next().map(|a| a.pid), Some(parent));
    }
}
