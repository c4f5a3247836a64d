//! The environment of a task: the user's, less what belongs to the client's session and, outside `claude` tasks, less the
//! provider's keys; plus what the task is told about itself.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::actor::claude;
use crate::base::env;
use crate::base::trace::{self, Context};
use crate::model::plan::{Action, Need, Task};

/// Set by the client, or by what hosts it, for what it starts, or read only by it: no name of a common kind.
const CLIENT_MARKS: [&str; 6] = [
    "AI_AGENT",
    "NoDefaultCurrentDirectoryInExePath",
    "COREPACK_ENABLE_AUTO_PIN",
    "SESSION_INGRESS_URL",
    "MCP_CLIENT_SECRET",
    "MCP_XAA_IDP_CLIENT_SECRET",
];

/// What the names of further ones begin with.
const CLIENT_PREFIXES: [&str; 3] = ["CLAUDE", "CCR_", "SELF_HOSTED_RUNNER_"];

/// Variables of a `claude` task's client that are the user's settings and not the session's: whole names, and beginnings.
const CLAUDE_SETTINGS: [&str; 2] = ["CLAUDE_CONFIG_DIR", "CLAUDE_CODE_OAUTH_TOKEN"];

/// See [`CLAUDE_SETTINGS`].
const CLAUDE_PREFIXES: [&str; 4] =
    ["CLAUDE_CODE_USE_", "CLAUDE_CODE_SKIP_", "CLAUDE_CODE_MAX_", "CLAUDE_CODE_DISABLE_"];

/// What a task is told about itself.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// The run.
    pub run: &'a str,
    /// Its folder.
    pub run_dir: &'a Path,
    /// The worker.
    pub worker: &'a str,
    /// Which try.
    pub attempt: u32,
    /// The sequence number of the attempt's `started` event.
    pub token: u64,
    /// Where artifacts go.
    pub out: &'a Path,
    /// The file with the prompt, if the run has one.
    pub prompt_file: Option<&'a Path>,
    /// The file with the results of what it needs.
    pub needs: &'a Path,
    /// The same in a variable for each, as [`need_variables`] makes them.
    pub need_variables: &'a [(String, OsString)],
    /// W3C trace id of the run.
    pub trace: &'a str,
    /// The folder that cpw itself is in.
    pub cpw_dir: Option<&'a Path>,
}

/// The most variables about needs that a task gets.
const MAX_NEEDS: usize = 32;

/// How long they may be together, in bytes.
const MAX_NEEDS_BYTES: usize = 32 * 1024;

/// The longest data of a checkpoint in a variable, in bytes; longer ones are in the file of all needs.
const MAX_DATA: usize = 4 * 1024;

/// A variable for each need, as far as there is room: the path of a task's result, or what was handed over with a checkpoint.
/// Where two names are folded into one, the first need has it.
pub fn need_variables<'a>(
    needs: impl IntoIterator<Item = (&'a Need, Option<PathBuf>, Option<&'a serde_json::Value>)>,
) -> Vec<(String, OsString)> {
    let mut all: Vec<(String, OsString)> = Vec::new();
    let mut room = MAX_NEEDS_BYTES;
    for (need, result, data) in needs {
        let value = match need {
            Need::End(_) => result.map(PathBuf::into_os_string),
            Need::Checkpoint(..) => data.map(ToString::to_string).filter(|data| data.len() <= MAX_DATA).map(Into::into),
            Need::Verdict(..) => None,
        };
        let fold = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = env::NEED.chars().chain(need.to_string().chars().map(fold)).collect();
        let Some(value) = value.filter(|_| all.len() < MAX_NEEDS && all.iter().all(|(n, _)| *n != name)) else {
            continue;
        };
        if let Some(rest) = room.checked_sub(name.len() + value.len() + 2) {
            room = rest;
            all.push((name, value));
        }
    }
    all
}

/// To whom a variable belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// The user, with all that the client only reads.
    User,
    /// The user, for the client alone: its login and settings.
    Login,
    /// The client's own session.
    Session,
    /// cpw.
    Us,
}

impl Owner {
    fn of(name: &OsStr) -> Owner {
        let bytes = name.as_bytes();
        let begins = |prefix: &&str| bytes.starts_with(prefix.as_bytes());
        if bytes.starts_with(b"CPW_") && name != env::STATE_DIR || name == env::TRACEPARENT || name == env::TRACESTATE {
            Owner::Us
        } else if bytes.starts_with(b"ANTHROPIC_")
            || name == "AWS_BEARER_TOKEN_BEDROCK"
            || CLAUDE_SETTINGS.iter().any(|n| name == *n)
            || CLAUDE_PREFIXES.iter().any(begins)
        {
            Owner::Login
        } else if CLIENT_MARKS.iter().any(|n| name == *n) || CLIENT_PREFIXES.iter().any(begins) {
            Owner::Session
        } else {
            Owner::User
        }
    }
}

/// Whether a variable belongs to the client's session: nobody whom a worker starts gets it.
pub fn is_sessions(name: &OsStr) -> bool {
    Owner::of(name) == Owner::Session
}

/// Whether a variable belongs to the user and to no client: programs that need no login of a model get these.
pub fn is_users(name: &OsStr) -> bool {
    Owner::of(name) == Owner::User
}

/// The complete environment of an attempt, from the worker's own.
pub fn build(
    own: impl IntoIterator<Item = (OsString, OsString)>,
    task: &Task,
    identity: &Identity<'_>,
) -> Vec<(OsString, OsString)> {
    let for_claude = matches!(task.action, Action::Claude(_));
    let mut all: BTreeMap<OsString, OsString> = BTreeMap::new();
    // A worker that was started inside a task has that task's.
    let mut depth = 0;
    for (name, value) in own {
        if name == env::DEPTH {
            depth = env::depth(Some(&value));
        }
        let is_kept = match Owner::of(&name) {
            Owner::User => true,
            Owner::Login => for_claude,
            Owner::Session | Owner::Us => false,
        };
        if is_kept {
            // Of two with one name the first counts, as for everybody who asks for it by that.
            all.entry(name).or_insert(value);
        }
    }
    let may_set = if for_claude { env::may_set_for_client } else { env::may_set };
    for (name, value) in &task.env {
        if may_set(name) {
            all.insert(name.into(), value.into());
        }
    }
    if for_claude {
        for (name, value) in claude::ENVIRONMENT {
            all.entry(name.into()).or_insert_with(|| value.into());
        }
    }
    let path = all.get(OsStr::new("PATH")).cloned().unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    // A relative folder is whatever the task's own folder holds.
    let path = std::env::join_paths(std::env::split_paths(&path).filter(|dir| dir.is_absolute())).unwrap_or(path);
    all.insert("PATH".into(), path.clone());
    if let Some(dir) = identity.cpw_dir.filter(|d| !std::env::split_paths(&path).any(|p| p == *d)) {
        // Behind the user's own folders: it must not hide any of their programs.
        let mut longer = path;
        longer.push(":");
        longer.push(dir);
        all.insert("PATH".into(), longer);
    }
    let span = trace::span_of(identity.run, task.id.as_str(), identity.attempt);
    let context = Context { trace: identity.trace.to_owned(), span };
    let mut set = |name: &str, value: &OsStr| {
        all.insert(name.into(), value.to_owned());
    };
    set(env::RUN, identity.run.as_ref());
    set(env::RUN_DIR, identity.run_dir.as_os_str());
    set(env::WORKER, identity.worker.as_ref());
    set(env::TASK, task.id.as_str().as_ref());
    set(env::ATTEMPT, identity.attempt.to_string().as_ref());
    set(env::TOKEN, identity.token.to_string().as_ref());
    set(env::OUT, identity.out.as_os_str());
    set(env::NEEDS, identity.needs.as_os_str());
    for (name, value) in identity.need_variables {
        set(name, value);
    }
    set(env::DEPTH, depth.saturating_add(1).to_string().as_ref());
    set(env::TRACEPARENT, context.header().as_ref());
    if let Some(item) = &task.item {
        set(env::ITEM, item.as_ref());
    }
    if let Some(file) = identity.prompt_file {
        set(env::PROMPT_FILE, file.as_os_str());
    }
    all.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(action: &str) -> Task {
        serde_json::from_str(&format!(
            r#"{{"id": "a", "timeout": "1m", "item": "x y", "env": {{"MINE": "1", "LD_PRELOAD": "/x"}}, {action}}}"#
        ))
        .unwrap()
    }

    fn names(action: &str) -> BTreeMap<OsString, OsString> {
        let own = [
            ("HOME", "/home/u"),
            ("PATH", "/usr/bin"),
            ("CLAUDE_CODE_SESSION_ID", "s"),
            ("CLAUDE_CODE_MESSAGING_TOKEN", "t"),
            ("CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR", "7"),
            ("CLAUDE_CODE_MAX_RETRIES", "9"),
            ("CLAUDE_CONFIG_DIR", "/c"),
            ("CLAUDECODE", "1"),
            ("AI_AGENT", "x"),
            ("ANTHROPIC_API_KEY", "k"),
            ("CPW_TASK", "forged"),
            ("CPW_DEPTH", "2"),
            ("CPW_NEED_OLD", "forged"),
            ("CPW_STATE_DIR", "/s"),
            ("MY_OWN", "kept"),
        ];
        let identity = Identity {
            run: "r",
            run_dir: Path::new("/p/.claude/runs/r"),
            worker: "W1",
            attempt: 2,
            token: 9,
            out: Path::new("/o"),
            prompt_file: None,
            needs: Path::new("/n"),
            need_variables: &[("CPW_NEED_B".into(), "/r".into())],
            trace: "0123456789abcdef0123456789abcdef",
            cpw_dir: Some(Path::new("/opt/cpw")),
        };
        build(own.map(|(n, v)| (n.into(), v.into())), &task(action), &identity).into_iter().collect()
    }

    #[test]
    fn keys_and_session_marks_stay_behind() {
        let shell = names(r#""shell": "true""#);
        for gone in [
            "CLAUDE_CODE_SESSION_ID",
            "CLAUDE_CODE_MESSAGING_TOKEN",
            "CLAUDECODE",
            "AI_AGENT",
            "ANTHROPIC_API_KEY",
            "LD_PRELOAD",
        ] {
            assert!(!shell.contains_key(OsStr::new(gone)), "{gone}");
        }
        assert_eq!(shell[OsStr::new("MY_OWN")], "kept");
        assert_eq!(shell[OsStr::new("MINE")], "1");
        assert_eq!(shell[OsStr::new("CPW_TASK")], "a");
        assert_eq!(shell[OsStr::new("CPW_ITEM")], "x y");
        assert_eq!(shell[OsStr::new("CPW_NEED_B")], "/r");
        assert!(!shell.contains_key(OsStr::new("CPW_NEED_OLD")), "of the worker's own task, if it has one");
        assert_eq!(shell[OsStr::new("PATH")], "/usr/bin:/opt/cpw");
        assert_eq!(shell[OsStr::new("CPW_DEPTH")], "3", "one deeper than who has started its worker");
    }

    #[test]
    fn s18_every_variable_has_an_owner() {
        let users = [
            "HOME",
            "PATH",
            "AWS_SECRET_ACCESS_KEY",
            "GITHUB_TOKEN",
            "OPENAI_API_KEY",
            "SSH_AUTH_SOCK",
            "claude",
            "CPW_STATE_DIR",
            "CPWX",
            "OTEL_EXPORTER_OTLP_HEADERS",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "",
        ];
        let login = [
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_AUTH_TOKEN",
            "ANTHROPIC_CUSTOM_HEADERS",
            "ANTHROPIC_FOUNDRY_API_KEY",
            "AWS_BEARER_TOKEN_BEDROCK",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "CLAUDE_CONFIG_DIR",
            "CLAUDE_CODE_USE_BEDROCK",
        ];
        let session = [
            "CLAUDECODE",
            "CLAUDE_PID",
            "CLAUDE_ENV_FILE",
            "CLAUDE_CODE_SESSION_ID",
            "CLAUDE_CODE_SESSION_ACCESS_TOKEN",
            "CLAUDE_CODE_MESSAGING_TOKEN",
            "CLAUDE_CODE_OAUTH_REFRESH_TOKEN",
            "CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR",
            "CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR",
            "CLAUDE_CODE_GATEWAY_TOKEN_FILE_DESCRIPTOR",
            "CLAUDE_CODE_SSE_PORT",
            "CLAUDE_CODE_RUNNER_MODEL_SOCKET",
            "CCR_AGENT_PROXY_TOKEN_FILE_DESCRIPTOR",
            "CCR_OAUTH_TOKEN_FILE",
            "SELF_HOSTED_RUNNER_POOL_SECRET",
            "MCP_CLIENT_SECRET",
            "AI_AGENT",
            "CLAUDE_SOMETHING_NEW",
        ];
        let us =
            ["CPW_TASK", "CPW_DEPTH", "CPW_", "CPW_NEED_X", "CPW_RUN_DIR", "CPW_LEASES", "TRACEPARENT", "TRACESTATE"];
        let all = [(Owner::User, &users[..]), (Owner::Login, &login), (Owner::Session, &session), (Owner::Us, &us)];
        for (owner, names) in all {
            for name in names {
                assert_eq!(Owner::of(OsStr::new(name)), owner, "{name}");
            }
        }
        for name in [&b"CLAUDE_\xff"[..], b"CPW_\xff", b"ANTHROPIC_\xff"] {
            assert_ne!(Owner::of(OsStr::from_bytes(name)), Owner::User, "{name:?}");
        }
    }

    #[test]
    fn needs_have_short_names_and_what_is_too_long_stays_in_the_file() {
        let need = |text: &str| Need::try_from(text.to_owned()).unwrap();
        let data = serde_json::json!({"app": "out/app"});
        let long = serde_json::json!("x".repeat(5000));
        let [first, second, compiled, big, quiet] =
            ["build-1", "build.1", "build-1@compiled", "gen@big", "quiet"].map(need);
        let path = |p: &str| Some(PathBuf::from(p));
        let made = need_variables([
            (&first, path("/first"), None),
            (&second, path("/second"), None),
            (&compiled, path("/not-yet"), Some(&data)),
            (&big, None, Some(&long)),
            (&quiet, None, None),
        ]);
        let made: Vec<(&str, &str)> = made.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(
            made,
            [("CPW_NEED_BUILD_1", "/first"), ("CPW_NEED_BUILD_1_COMPILED", r#"{"app":"out/app"}"#)],
            "the first of two names that are folded into one"
        );
        let many: Vec<Need> = (0..100).map(|i| need(&format!("t{i}"))).collect();
        assert_eq!(need_variables(many.iter().map(|n| (n, path("/r"), None))).len(), 32);
        let big = serde_json::json!("x".repeat(4000));
        let many: Vec<Need> = (0..32).map(|i| need(&format!("t{i}@c"))).collect();
        let made = need_variables(many.iter().map(|n| (n, None, Some(&big))));
        assert_eq!(made.len(), 8, "no more than 32 KiB");
    }

    #[test]
    fn a_headless_client_keeps_its_login_but_not_the_session() {
        let claude = names(r#""claude": {"prompt": "p"}"#);
        assert!(claude.contains_key(OsStr::new("ANTHROPIC_API_KEY")));
        assert!(claude.contains_key(OsStr::new("CLAUDE_CONFIG_DIR")));
        assert!(!claude.contains_key(OsStr::new("CLAUDE_CODE_SESSION_ID")));
        assert!(!claude.contains_key(OsStr::new("CLAUDECODE")));
        assert!(!claude.contains_key(OsStr::new("CLAUDE_CODE_OAUTH_TOKEN_FILE_DESCRIPTOR")));
        assert_eq!(claude[OsStr::new("CLAUDE_CODE_MAX_RETRIES")], "9", "what the user has set stays");
        assert_eq!(claude[OsStr::new("DISABLE_AUTOUPDATER")], "1");
    }
}
