//! The name of every environment variable that cpw reads or sets, in one place.

/// Set to anything but `0` and the empty string: hooks do nothing, as if cpw were not installed.
pub const DISABLE: &str = "CPW_DISABLE";
/// The user's state directory, instead of `$XDG_STATE_HOME/cpw` or `~/.local/state/cpw`.
pub const STATE_DIR: &str = "CPW_STATE_DIR";
/// How much goes to the hook log: `debug` for every call.
pub const LOG: &str = "CPW_LOG";

/// In a task: the run it belongs to.
pub const RUN: &str = "CPW_RUN";
/// In a task: the folder of its run.
pub const RUN_DIR: &str = "CPW_RUN_DIR";
/// In a task: the worker that runs it, `W1`.
pub const WORKER: &str = "CPW_WORKER";
/// In a task: its id.
pub const TASK: &str = "CPW_TASK";
/// In a task: which try this is, from 1.
pub const ATTEMPT: &str = "CPW_ATTEMPT";
/// In a task: the sequence number of its `started` event, which rises with every attempt of the run.
pub const TOKEN: &str = "CPW_TOKEN";
/// In a task: the folder for its artifacts; a file named `result.*` there is its result.
pub const OUT: &str = "CPW_OUT";
/// In a task: the item of `for_each`.
pub const ITEM: &str = "CPW_ITEM";
/// In a task: a file that holds the prompt which started the run.
pub const PROMPT_FILE: &str = "CPW_PROMPT_FILE";
/// In a task: a JSON file with the results of what it needs.
pub const NEEDS: &str = "CPW_NEEDS";
/// In a task: what the names of variables about one need begin with.
pub const NEED: &str = "CPW_NEED_";
/// In a task: how many runs it is part of, one inside the other, from 1; hooks do nothing where it is set.
pub const DEPTH: &str = "CPW_DEPTH";
/// In a task: the W3C trace context, the span of its attempt. Where a run is started: the span that it is part of.
pub const TRACEPARENT: &str = "TRACEPARENT";
/// What belongs to that beside it; of no task, since it is not known to whoever starts a further worker.
pub const TRACESTATE: &str = "TRACESTATE";

/// In a command that `cpw lease` has become: the token of its lease, which rises from holder to holder.
pub const LEASE_TOKEN: &str = "CPW_LEASE_TOKEN";
/// In such a command: every lease that it and those above it hold, as `TOKEN@LOG`, separated by commas.
pub const LEASES: &str = "CPW_LEASES";

/// In a worker that was started detached: it is part of no task, whoever has started it.
pub const SLOT: &str = "CPW_SLOT";

/// Set by Claude Code for everything it starts.
pub const CLAUDECODE: &str = "CLAUDECODE";
/// Set by Claude Code for hooks and tools: the session.
pub const CLAUDE_SESSION_ID: &str = "CLAUDE_CODE_SESSION_ID";
/// Set by Claude Code for hooks and tools: its own process.
pub const CLAUDE_PID: &str = "CLAUDE_PID";
/// Set by Claude Code for hooks: the project's root, whatever the current directory is.
pub const CLAUDE_PROJECT_DIR: &str = "CLAUDE_PROJECT_DIR";
/// Set by Claude Code for hooks: `cli` in an interactive session.
pub const CLAUDE_ENTRYPOINT: &str = "CLAUDE_CODE_ENTRYPOINT";

/// Set by Claude Code for everything it starts: its name and version.
pub const AI_AGENT: &str = "AI_AGENT";

/// How many runs may be inside each other: a task at this depth starts no further one.
pub const MAX_DEPTH: u32 = 3;

/// The depth that a value of [`DEPTH`] says, 0 where there is none. What is no number is as deep as can be.
pub fn depth(value: Option<&std::ffi::OsStr>) -> u32 {
    value.map_or(0, |v| v.to_str().and_then(|v| v.parse().ok()).unwrap_or(u32::MAX))
}

/// Whether a variable that switches something is on.
pub fn is_on(value: Option<&std::ffi::OsStr>) -> bool {
    value.is_some_and(|v| !v.is_empty() && v != "0")
}

/// Prefixes of names that a project may not set for its tasks: they decide which programs run, where keys go, or what cpw
/// itself believes.
const RESERVED: [&str; 5] = ["LD_", "DYLD_", "ANTHROPIC_", "CLAUDE", "CPW_"];

/// Whether a config or plan may set the variable `name` for a task.
pub fn may_set(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    !name.is_empty()
        && upper != "PATH"
        && !name.contains(['=', '\0'])
        && !RESERVED.iter().any(|prefix| upper.starts_with(prefix))
}

/// Variables by which programs are told what else to run or to load, or where: their values must not come from a prompt or a
/// file's name.
const DECIDING: [&str; 52] = [
    "BASH_ENV",
    "BROWSER",
    "BUN_OPTIONS",
    "CC",
    "CDPATH",
    "CLASSPATH",
    "CXX",
    "EDITOR",
    "ENV",
    "GCONV_PATH",
    "GIT_ASKPASS",
    "GIT_DIR",
    "GIT_EDITOR",
    "GIT_EXEC_PATH",
    "GIT_EXTERNAL_DIFF",
    "GIT_PAGER",
    "GIT_PROXY_COMMAND",
    "GIT_SEQUENCE_EDITOR",
    "GIT_SSH",
    "GIT_SSH_COMMAND",
    "GIT_TEMPLATE_DIR",
    "GIT_WORK_TREE",
    "GNUMAKEFLAGS",
    "GOFLAGS",
    "HOME",
    "IFS",
    "LESSCLOSE",
    "LESSOPEN",
    "MAKEFILES",
    "MAKEFLAGS",
    "MANPAGER",
    "MFLAGS",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PAGER",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "PROMPT_COMMAND",
    "PS4",
    "RUBYLIB",
    "RUBYOPT",
    "RUSTC",
    "RUSTC_WRAPPER",
    "SHELL",
    "SHELLOPTS",
    "VISUAL",
    "XDG_CONFIG_HOME",
    "ZDOTDIR",
];

/// What the names of further ones begin with.
const DECIDING_PREFIXES: [&str; 8] =
    ["BASH_FUNC_", "GIT_CONFIG", "JAVA_TOOL_", "JDK_JAVA_", "_JAVA_", "LUA_", "PYTHON", "NPM_CONFIG_"];

/// Whether a variable decides what a program runs or loads, so that only a person may say what is in it.
pub fn decides(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    DECIDING.contains(&upper.as_str()) || DECIDING_PREFIXES.iter().any(|p| upper.starts_with(p))
}

/// Variables by which a client is told where its requests, and with them the user's login, go.
const ROUTING: [&str; 14] = [
    "ALL_PROXY",
    "AWS_BEARER_TOKEN_BEDROCK",
    "BUN_OPTIONS",
    "HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NODE_EXTRA_CA_CERTS",
    "NODE_OPTIONS",
    "NODE_TLS_REJECT_UNAUTHORIZED",
    "NODE_USE_SYSTEM_CA",
    "NO_PROXY",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "XDG_CONFIG_HOME",
];

/// What the names of further ones begin with: of the clouds that a client can be told to ask.
const ROUTING_PREFIXES: [&str; 5] = ["AWS_", "CLOUD_ML_", "CLOUDSDK_", "GOOGLE_", "VERTEX_"];

/// Whether a config or plan may set the variable `name` for a `claude` task, which has the user's login.
pub fn may_set_for_client(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    may_set(name)
        && !decides(name)
        && !ROUTING.contains(&upper.as_str())
        && !ROUTING_PREFIXES.iter().any(|prefix| upper.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_depth_that_is_none_is_the_deepest() {
        let said = |text: &str| depth(Some(text.as_ref()));
        assert_eq!((depth(None), said("0"), said("1"), said("7")), (0, 0, 1, 7));
        for odd in ["", "x", "-1", "1 ", "99999999999"] {
            assert_eq!(said(odd), u32::MAX, "{odd:?}");
        }
    }
}
