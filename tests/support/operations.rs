//! The operations that write, each with the quiet state that it begins from, what it acknowledges, and who comes next. Quiet
//! means that no process of it is left: what was there before can then be put back in place.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Map, Value, json};

use super::scratch::{Call, Done, OTHER, PATIENCE, SESSION, Scratch, program};

const PROMPT: &str = "Analyze api.py and db.py and write report.md";

/// One that no rule means.
const QUESTION: &str = "What is this about?";

/// What a task sends to Stop, and with the news.
const CRITICAL: &str = "CRITICAL: it failed";
const HALF_WAY: &str = "half way through";

/// A task says what it is about, writes down that it was there, sends what it is to send, and waits while there is something
/// to wait for.
const TASK: &str = r#"set -e
echo "Findings about $CPW_ITEM"; echo x >> "$HOME/ran.$CPW_RUN.$CPW_TASK.$CPW_ATTEMPT"
[ ! -e "$HOME/say.$CPW_TASK" ] || . "$HOME/say.$CPW_TASK" >/dev/null
[ ! -p "$HOME/hold" ] || read -r x < "$HOME/hold""#;

/// The rule on tool calls.
const RULE: &str = "check";

/// Makes a worker that is started stay unborn: the run is then there, and nobody works on it.
const UNBORN: [&str; 6] = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=?fork,?vfork,clone,?clone3:error=EAGAIN"];

/// What an operation begins from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begin {
    /// Rules, not approved; settings with foreign entries.
    Rules,
    /// Approved rules, no run.
    Approved,
    /// A run of the session that has begun, without any worker.
    Begun,
    /// A run of the session that has ended, and of which the session has heard nothing.
    Ended,
    /// A run of a terminal that has begun, without any worker.
    Planned,
    /// A run of a terminal that has ended with a failed task.
    Failed,
    /// The same in a git repository, with an isolated task.
    Isolated,
    /// One that has begun, with an attempt open whose worker and processes were killed.
    Broken,
    /// The same of the session's run.
    Open,
    /// The same, and the attempt has sent a signal that holds calls back and outlives it.
    Barred,
    /// A run of the session that has ended with two signals, and of which the session has heard nothing.
    Signalled,
    /// The same without signals; the session is in a client, and idle.
    Idle,
    /// The same, and `/clear` has ended the session.
    Cleared,
    /// A session with a rule on tool calls, and no run.
    Ruled,
    /// The same, and a call was noted that nobody starts anything for.
    Noted,
}

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Hook {
        name: &'static str,
        event: &'static str,
        tool: &'static str,
    },
    Cpw(&'static [&'static str]),
    /// Who starts a rule after tool calls.
    Starter,
}

/// An operation.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Whether it goes on for long when the log cannot be used, as workers do.
    pub(crate) endures: bool,
    begin: Begin,
    what: What,
}

const fn hook(
    name: &'static str,
    begin: Begin,
    hook: &'static str,
    event: &'static str,
    tool: &'static str,
) -> Operation {
    Operation { name, endures: false, begin, what: What::Hook { name: hook, event, tool } }
}

const fn watches(name: &'static str, begin: Begin) -> Operation {
    Operation { name, endures: true, begin, what: What::Hook { name: "watch", event: "Stop", tool: "" } }
}

const fn cpw(name: &'static str, begin: Begin, args: &'static [&'static str]) -> Operation {
    Operation { name, endures: false, begin, what: What::Cpw(args) }
}

const fn works(name: &'static str, begin: Begin, args: &'static [&'static str]) -> Operation {
    Operation { name, endures: true, begin, what: What::Cpw(args) }
}

/// All of them.
pub(crate) static OPERATIONS: [Operation; 30] = [
    hook("prompt", Begin::Approved, "user-prompt-submit", "UserPromptSubmit", ""),
    hook("claim", Begin::Begun, "pre-tool-use", "PreToolUse", "Read"),
    hook("merge", Begin::Ended, "pre-tool-use", "PreToolUse", "Write"),
    hook("news", Begin::Ended, "post-tool-batch", "PostToolBatch", ""),
    hook("stop", Begin::Ended, "stop", "Stop", ""),
    cpw("run", Begin::Approved, &["run", "plan.json", "--detach"]),
    works("slot", Begin::Planned, &["worker"]),
    works("isolated", Begin::Isolated, &["worker"]),
    works("recover", Begin::Broken, &["worker"]),
    works("task", Begin::Planned, &["worker", "--task", "a"]),
    cpw("cancel", Begin::Planned, &["cancel"]),
    cpw("retry", Begin::Failed, &["retry", "--detach"]),
    cpw("clean", Begin::Failed, &["clean", "--keep", "0"]),
    cpw("progress", Begin::Broken, &["progress", "60", "--note", "half way"]),
    cpw("summary", Begin::Broken, &["summary", "5 findings"]),
    cpw("checkpoint", Begin::Broken, &["checkpoint", "half", "--data", "{\"n\": 1}"]),
    cpw("lease", Begin::Approved, &["lease", "db", "./api.py", "--"]),
    cpw("allow", Begin::Rules, &["allow", "--yes"]),
    cpw("init", Begin::Rules, &["init"]),
    cpw("status", Begin::Broken, &["status"]),
    cpw("signal", Begin::Open, &["signal", "--hook", "stop", "--exit", "2", "--message", CRITICAL]),
    hook("refuse", Begin::Barred, "pre-tool-use", "PreToolUse", "Bash"),
    hook("step", Begin::Signalled, "post-tool-batch", "PostToolBatch", ""),
    hook("critical", Begin::Signalled, "stop", "Stop", ""),
    watches("watch", Begin::Idle),
    hook("cleared", Begin::Cleared, "session-start", "SessionStart", ""),
    hook("over", Begin::Idle, "session-end", "SessionEnd", ""),
    cpw("adopt", Begin::Ended, &["adopt", "--session", OTHER]),
    hook("noted", Begin::Ruled, "post-tool-use", "PostToolUse", "Edit"),
    Operation { name: "starter", endures: false, begin: Begin::Noted, what: What::Starter },
];

fn rules() -> Value {
    json!({
        "version": 1,
        "conductor": {"on_claimed": "block", "wait": "1s"},
        "rules": [{
            "name": "analyze",
            "when": {"prompt": "(?i)\\banaly[sz]e\\b", "files": {"min": 2}},
            "for_each": "files",
            "tasks": [{
                "id": "{{item.stem}}",
                "shell": TASK,
                "claims": ["{{item}}"],
                "signals": ["pre-tool-use:2", "post-tool-use:0", "stop:2"],
            }],
            "merge": [{
                "tool": "Write",
                "match": {"file_path": "*report.md"},
                "needs": ["*"],
                "set": {"content": "{{input.content}}\n{{results}}"},
            }],
        }],
    })
}

/// The rules, as a state begins with them.
fn rules_of(begin: Begin) -> Value {
    let mut rules = rules();
    match begin {
        Begin::Idle | Begin::Cleared => rules["conductor"]["gate"] = "off".into(),
        Begin::Ruled | Begin::Noted => {
            rules["rules"][0] = json!({
                "name": RULE,
                "when": {"tool": "Edit", "debounce": "10ms"},
                "for_each": "files",
                "tasks": [{"id": "{{item.stem}}", "shell": TASK}],
            });
        }
        _ => {}
    }
    rules
}

fn plan() -> Value {
    json!({"version": 1, "limits": {"max_workers": 1}, "tasks": [
        {"id": "a", "shell": TASK, "retries": 1, "backoff": {"initial": "10ms"}},
        {"id": "b", "needs": ["a"], "shell": TASK},
        {"id": "c", "run": ["true"]},
    ]})
}

/// The same with a task that fails.
fn failing() -> Value {
    let mut plan = plan();
    plan["tasks"][1]["shell"] = format!("{TASK}\nexit 3").into();
    plan
}

/// The same with a task in a worktree of its own, which changes a file there.
fn isolated() -> Value {
    let mut plan = plan();
    plan["tasks"][0]["isolate"] = "worktree".into();
    plan["tasks"][0]["shell"] = format!("{TASK}\necho changed >api.py").into();
    plan
}

/// Makes the project a git repository.
fn commit_all(scratch: &Scratch) {
    let who = ["-c", "user.name=t", "-c", "user.email=t@localhost"];
    for args in [&["init", "-q", "."][..], &["add", "api.py", "db.py"], &["commit", "-q", "-m", "x"]] {
        let mut git = Command::new("git");
        git.args(who).args(args).current_dir(scratch.project()).env("HOME", scratch.path("home"));
        assert!(git.status().is_ok_and(|done| done.success()), "git {args:?}");
    }
}

fn settings() -> Value {
    json!({"model": "opus", "hooks": {"Stop": [{"hooks": [{"type": "command", "command": "true"}]}]}, "mine": {"a": [1]}})
}

fn good(done: &Done, what: &str) {
    assert!(done.is_ok(), "{what}: {done:?}");
}

impl Operation {
    /// Whether it is a hook.
    pub(crate) fn is_hook(&self) -> bool {
        matches!(self.what, What::Hook { .. })
    }

    /// Whether it watches over a session: it ends with 2 to wake it, and says why on stderr.
    pub(crate) fn watches(&self) -> bool {
        matches!(self.what, What::Hook { name: "watch", .. })
    }

    /// Whether it moves what others are bound to, so that what was there before cannot be put back.
    pub(crate) fn is_final(&self) -> bool {
        self.name == "clean"
    }

    /// Whether it calls git.
    pub(crate) fn needs_git(&self) -> bool {
        self.begin == Begin::Isolated
    }

    /// The command, below what stands around it.
    pub(crate) fn command(&self, scratch: &Scratch, outer: &[String]) -> Command {
        match self.what {
            What::Hook { name: hook, event, tool } => {
                let session = if self.name == "cleared" { OTHER } else { SESSION };
                let more = match (tool, event) {
                    ("", "SessionStart") => json!({"source": "clear"}),
                    ("", "SessionEnd") => json!({"reason": "clear"}),
                    ("", _) => json!({"prompt": PROMPT}),
                    (tool, _) => tool_call(scratch, tool, "api.py"),
                };
                scratch.hook(outer, &Call { hook, event, session, client: self.is_in_client(), more })
            }
            What::Cpw(args) => {
                let mut command = scratch.command(outer, args);
                match args[0] {
                    "progress" | "summary" | "signal" | "checkpoint" => inside(scratch, &mut command),
                    "adopt" => {
                        command.arg(scratch.runs().pop().expect("a run").file_name().expect("an id"));
                    }
                    // One whose own calls may fail as ours may.
                    "lease" => {
                        command.arg(program()).arg("--version");
                    }
                    _ => {}
                }
                command
            }
            What::Starter => {
                // Opened by the program's own process: one of this process would be held by whatever it starts meanwhile.
                let live = scratch.path(&format!("state/triggers/{SESSION}+{RULE}+starter"));
                let opens = ["sh", "-c", r#"exec 0<>"$0"; exec "$@""#, &live.to_string_lossy()].map(str::to_owned);
                let outer = [&opens[..], outer].concat();
                scratch.command(&outer, &["worker", "--after-tool", RULE, "--session", SESSION])
            }
        }
    }

    /// Whether its session is in a client that is there: this process stands for it.
    fn is_in_client(&self) -> bool {
        matches!(self.begin, Begin::Idle | Begin::Cleared)
    }

    /// Calls a hook without any fault. Its answer, silence being null.
    fn call(
        &self,
        scratch: &Scratch,
        session: &'static str,
        (hook, event): (&'static str, &'static str),
        more: Value,
    ) -> Result<Value, String> {
        let call = Call { hook, event, session, client: self.is_in_client(), more };
        let done = scratch.run(scratch.hook(&[], &call), PATIENCE);
        if !done.is_ok() || !done.err.is_empty() {
            return Err(format!("then {hook} of {session}: {done:?}"));
        }
        if done.out.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&done.out).map_err(|e| e.to_string()) }
    }

    /// What the model of a session is told between two steps.
    fn step(&self, scratch: &Scratch, session: &'static str) -> Result<String, String> {
        let said = self.call(scratch, session, ("post-tool-batch", "PostToolBatch"), json!({}))?;
        Ok(said["hookSpecificOutput"]["additionalContext"].as_str().unwrap_or_default().to_owned())
    }

    /// What it is told when it stops.
    fn stop(&self, scratch: &Scratch) -> Result<String, String> {
        let said = self.call(scratch, SESSION, ("stop", "Stop"), json!({}))?;
        Ok(said["hookSpecificOutput"]["additionalContext"].as_str().unwrap_or_default().to_owned())
    }

    /// A scratch project in the state that the operation begins from.
    pub(crate) fn prepare(&self, root: &Path) -> Scratch {
        let mut scratch = Scratch::new(root);
        for name in ["api.py", "db.py"] {
            scratch.write(name, "# code\n");
        }
        scratch.write(".claude/cpw.json", &rules_of(self.begin).to_string());
        scratch.write(".claude/settings.json", &settings().to_string());
        scratch.write("plan.json", &plan().to_string());
        let prompt = &OPERATIONS[0];
        if self.begin != Begin::Rules {
            good(&scratch.cpw(&["allow", "--yes"]), "allow");
        }
        let unborn = UNBORN.map(str::to_owned);
        match self.begin {
            Begin::Rules | Begin::Approved => {}
            Begin::Begun | Begin::Open | Begin::Barred => {
                good(&scratch.run(prompt.command(&scratch, &unborn), PATIENCE), "a prompt");
            }
            Begin::Ended | Begin::Signalled => {
                if self.begin == Begin::Signalled {
                    let send = |hook: &str, exit, message: &str| {
                        format!("'{}' signal --hook {hook} --exit {exit} --message '{message}'\n", program().display())
                    };
                    let both = [send("post-tool-use", 0, HALF_WAY), send("stop", 2, CRITICAL)].concat();
                    fs::write(scratch.path("home/say.api"), both).expect("a file");
                }
                self.leave_unheard(&scratch);
            }
            Begin::Idle | Begin::Cleared => self.leave_idle(&scratch),
            Begin::Ruled | Begin::Noted => {
                let prompt = ("user-prompt-submit", "UserPromptSubmit");
                let said = self.call(&scratch, SESSION, prompt, json!({"prompt": QUESTION}));
                assert!(said.is_ok() && scratch.runs().is_empty(), "a question: {said:?}");
                if self.begin == Begin::Noted {
                    let (hook, event, session) = ("post-tool-use", "PostToolUse", SESSION);
                    let more = tool_call(&scratch, "Edit", "api.py");
                    let call = Call { hook, event, session, client: false, more };
                    good(&scratch.run(scratch.hook(&unborn, &call), PATIENCE), "an edit");
                    assert!(is_noted(&scratch), "the call is noted");
                }
            }
            Begin::Failed => {
                scratch.write("plan.json", &failing().to_string());
                good(&scratch.cpw(&["run", "plan.json", "--detach"]), "a plan");
                scratch.wait_for_end().expect("the end of the run");
                assert!(scratch.ledger().is_ok_and(|ledger| ledger.has("run_ended", &[("status", "failed")])));
            }
            Begin::Planned | Begin::Isolated | Begin::Broken => {
                if self.begin == Begin::Isolated {
                    commit_all(&scratch);
                    scratch.write("plan.json", &isolated().to_string());
                }
                let run = scratch.command(&unborn, &["run", "plan.json", "--detach"]);
                assert_eq!(scratch.run(run, PATIENCE).status.code(), Some(1), "nobody can be started");
            }
        }
        if matches!(self.begin, Begin::Broken | Begin::Open | Begin::Barred) {
            leave_broken(&scratch);
        }
        if self.begin == Begin::Barred {
            let message = ["--message", "the schema is being changed", "--match", "Bash(psql*)"];
            let hook = ["signal", "--hook", "pre-tool-use", "--exit", "2", "--sticky", "--ttl", "1h"];
            let mut signal = scratch.command(&[], &[&hook[..], &message].concat());
            inside(&scratch, &mut signal);
            good(&scratch.run(signal, PATIENCE), "a signal");
        }
        let open = [Begin::Begun, Begin::Planned, Begin::Isolated, Begin::Broken, Begin::Open, Begin::Barred];
        let run = open.contains(&self.begin);
        assert!(!run || scratch.ledger().is_ok_and(|ledger| !ledger.is_ended()), "{}: no open run", self.name);
        // Git may tidy up behind a commit.
        scratch.wait("quiet", || scratch.processes().is_empty()).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        scratch.keep();
        scratch
    }

    /// Lets a run of the session come to its end, of which the session hears nothing. A prompt that starts it would tell what
    /// is done by then, on a machine that is slow: so the run is begun by it, and worked on later.
    fn leave_unheard(&self, scratch: &Scratch) {
        let (hook, event, session) = ("user-prompt-submit", "UserPromptSubmit", SESSION);
        let call = Call { hook, event, session, client: self.is_in_client(), more: json!({"prompt": PROMPT}) };
        good(&scratch.run(scratch.hook(&UNBORN.map(str::to_owned), &call), PATIENCE), "a prompt");
        good(&scratch.cpw(&["status"]), "status");
        scratch.wait_for_end().expect("the end of the run");
        assert_eq!(scratch.ledger().map(|ledger| ledger.count("delivered")), Ok(0), "it was told something");
    }

    /// Lets a run of a session in a client come to its end while the session stops, so that it is idle.
    fn leave_idle(&self, scratch: &Scratch) {
        let call = |hook, more| self.call(scratch, SESSION, hook, more).expect("a hook");
        self.leave_unheard(scratch);
        assert_eq!(call(("stop", "Stop"), json!({})), Value::Null, "it is told nothing");
        if self.begin == Begin::Cleared {
            assert_eq!(call(("session-end", "SessionEnd"), json!({"reason": "clear"})), Value::Null);
        }
    }

    /// Repeats the operation until the next one writes across the end of the log's page. Only that takes a free page.
    pub(crate) fn fill_page(&self, scratch: &mut Scratch) {
        const PAGE: u64 = 4096;
        let length = |scratch: &Scratch| fs::metadata(scratch.log()).expect("a log").len();
        let (mut before, mut now) = (0, 0);
        while now == 0 || now % PAGE + (now - before) < PAGE {
            before = length(scratch);
            good(&scratch.run(self.command(scratch, &[]), PATIENCE), "once more");
            now = length(scratch);
            // What was said a moment ago would not be said again.
            for told in ["told", "summed"] {
                let logs = scratch.log().with_file_name("workers/W2/logs");
                fs::remove_file(logs.join(format!("a.1.{told}"))).ok();
            }
        }
        scratch.keep();
    }

    /// The tasks of its run.
    fn tasks(&self) -> &'static [&'static str] {
        match self.begin {
            Begin::Ruled | Begin::Noted => &[],
            Begin::Planned | Begin::Failed | Begin::Isolated | Begin::Broken => &["a", "b", "c"],
            Begin::Rules | Begin::Approved if self.name != "prompt" => &["a", "b", "c"],
            _ => &["api", "db"],
        }
    }

    /// Judges what is there at once: the logs, what the operation said, and whether it is true. With `must` it has to have
    /// done what it is for.
    pub(crate) fn judge(&self, scratch: &Scratch, done: &Done, must: bool) -> Result<(), String> {
        for (_, ledger) in scratch.ledgers()? {
            ledger.check()?;
        }
        let said = match self.what {
            What::Hook { event, .. } => self.hook_said(done, event)?,
            What::Cpw(_) | What::Starter => Value::Null,
        };
        let context = said["additionalContext"].as_str().unwrap_or_default();
        let acknowledged = match self.name {
            "step" => context.contains("done") && context.contains(HALF_WAY),
            "critical" => context.contains("done") && context.contains(CRITICAL),
            "watch" if must => done.status.code() == Some(2) && done.err.contains("done"),
            "watch" => done.status.code() == Some(2) || done.err.contains("done"),
            "cleared" => context.contains("cpw adopt"),
            "over" if must => is_cleared(scratch),
            "noted" => is_noted(scratch) || has_checked(scratch, "api")?,
            "prompt" => context.contains("cpw has started"),
            "claim" | "refuse" => said["permissionDecision"] == "deny",
            "merge" => said.get("updatedInput").is_some() || (!must && said["permissionDecision"] == "deny"),
            "news" | "stop" => context.contains("done"),
            "isolated" if must => scratch.ledger()?.has("run_ended", &[("status", "ok")]),
            "clean" => done.is_ok() && done.out.starts_with("removed "),
            "retry" if must => done.is_ok() && done.err.contains("2 taken over, 1 to run"),
            _ => done.is_ok(),
        };
        if must && !acknowledged {
            return Err("it did not do what it is for".into());
        }
        if acknowledged { self.is_true(scratch, done, &said) } else { self.is_not_lost(scratch) }
    }

    fn hook_said(&self, done: &Done, event: &str) -> Result<Value, String> {
        if done.out.is_empty() {
            return Ok(Value::Null);
        }
        let said: Map<String, Value> = serde_json::from_str(&done.out).map_err(|e| format!("its stdout: {e}"))?;
        let specific = said.get("hookSpecificOutput").cloned().unwrap_or(Value::Null);
        if !specific.is_null() && specific["hookEventName"] != event {
            return Err("its answer is for another event".into());
        }
        let decision = specific["permissionDecision"].as_str();
        let may_refuse = ["claim", "merge", "refuse"].contains(&self.name);
        if decision.is_some_and(|d| d != "deny" || !may_refuse) {
            return Err("it decided what it may not".into());
        }
        if self.name == "watch" {
            return Err("a watcher wrote to stdout".into());
        }
        Ok(specific)
    }

    /// Whether what it acknowledged is in the log.
    fn is_true(&self, scratch: &Scratch, done: &Done, said: &Value) -> Result<(), String> {
        let ledger = scratch.ledger();
        let check =
            |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("acknowledged, and not so: {what}")) };
        match self.name {
            "prompt" => check(ledger?.has("run_started", &[("session", SESSION)]), "the run is in the log"),
            "claim" | "refuse" => check(ledger?.has("decision", &[("answer", "block")]), "the refusal is in the log"),
            "signal" => {
                let ledger = ledger?;
                let sent = ledger.events.iter().find(|e| e["t"] == "signal" && e["payload"]["message"] == CRITICAL);
                check(
                    sent.is_some_and(|e| done.out.trim().parse::<u64>().is_ok_and(|id| e["seq"] == id)),
                    "the signal is in the log",
                )
            }
            "watch" => {
                let (ledger, woken) = (ledger?, done.status.code() == Some(2));
                check(ledger.has("decision", &[("answer", "wake")]), "the wake is in the log")?;
                check(!woken || ledger.count("delivered") > 0, "what it was woken with is in the log")?;
                check(!woken || done.err.contains("done"), "it was woken with something")
            }
            "adopt" => {
                let whose = [("session", OTHER), ("from", SESSION)];
                check(ledger?.has("adopted", &whose), "the run is the other session's")
            }
            "cleared" => check(ledger?.count("delivered") == 0, "the news are still to be told"),
            // What is there and cannot be read is named; it is never passed over.
            "merge" if said["permissionDecision"] == "deny" => {
                check(ledger?.has("decision", &[("answer", "block")]), "the refusal is in the log")?;
                let reason = said["permissionDecisionReason"].as_str().unwrap_or_default();
                let named = |task: &str| reason.contains(&format!("/out/{task}.1/"));
                check(named("api") && named("db"), &format!("all results are named in {reason:?}"))
            }
            "merge" => {
                check(ledger?.has("decision", &[("answer", "rewrite")]), "the rewrite is in the log")?;
                let content = said["updatedInput"]["content"].as_str().unwrap_or_default();
                let has = |item: &str| content.contains(&format!("Findings about {item}"));
                let all = content.contains("# Report") && has("api.py") && has("db.py");
                check(all, &format!("all results are in {content:?}"))
            }
            "run" => {
                let run = done.out.trim();
                let known = scratch.ledgers()?.iter().any(|(path, _)| !run.is_empty() && path.ends_with(run));
                check(known, "the run is in the log")
            }
            "slot" | "recover" => check(ledger?.has("run_ended", &[("status", "ok")]), "the run is ok"),
            // Without git its task fails.
            "isolated" => check(ledger?.is_ended(), "the run has ended"),
            "task" => check(ledger?.has_of("done", "a"), "the task is done"),
            "cancel" => {
                let ledger = ledger?;
                let ended = !done.out.contains(" is cancelled") || ledger.has("run_ended", &[("status", "cancelled")]);
                check(ledger.count("cancel_requested") == 1 && ended, "the run is cancelled")
            }
            "retry" => {
                let all = scratch.ledgers()?;
                let taken = |e: &&Map<String, Value>| e["t"] == "done" && e["payload"].get("from").is_some();
                let newest = all.last().map_or(0, |(_, ledger)| ledger.events.iter().filter(taken).count());
                // What cannot be read runs again; and what it says of that may not come through.
                let said = format!(": {newest} taken over, {} to run", 3 - newest);
                check(
                    all.len() == 2 && (done.err.contains(&said) || !done.err.contains("taken over")),
                    "the new run is in the log, with what it has taken over",
                )
            }
            "clean" => check(scratch.ledgers()?.is_empty(), "the run is removed"),
            "progress" => check(ledger?.has("progress", &[("note", "half way")]), "the progress is in the log"),
            "summary" => check(ledger?.has("progress", &[("summary", "5 findings")]), "the summary is in the log"),
            "checkpoint" => check(ledger?.has("checkpoint", &[("name", "half")]), "the checkpoint is in the log"),
            "lease" => {
                let log = scratch.project().join(".claude/runs/project/events.jsonl");
                let log = fs::read_to_string(log).unwrap_or_default();
                check(done.out.starts_with("cpw ") && log.contains("\"t\":\"acquire\""), "the lease is in the log")
            }
            "allow" => {
                let again = scratch.cpw(&["allow", "--yes"]);
                check(again.out.contains("is approved already"), "the rules are approved")
            }
            "init" => check(scratch_settings(scratch)?.to_string().contains("user-prompt-submit"), "it is wired"),
            _ => Ok(()),
        }
    }

    /// What is written down as said was said.
    fn is_not_lost(&self, scratch: &Scratch) -> Result<(), String> {
        match self.name {
            "news" | "stop" | "step" | "critical" | "watch" | "cleared" | "over"
                if scratch.ledger()?.count("delivered") > 0 =>
            {
                Err("news are lost: logged, not told".into())
            }
            _ => Ok(()),
        }
    }

    /// Whoever comes next: the next commands work, and every run comes to its end.
    pub(crate) fn finish(&self, scratch: &Scratch, before: &Done) -> Result<(), String> {
        let works = |done: &Done, what: &str| if done.is_ok() { Ok(()) } else { Err(format!("then {what}: {done:?}")) };
        if (self.endures || matches!(self.what, What::Starter)) && before.is_killed() {
            // A process that was just made holds what its maker held, the lock of its life too, until it runs its program.
            scratch.wait("the end of what it left", || scratch.processes().is_empty())?;
        }
        let asked_to_cancel = scratch.ledger().is_ok_and(|ledger| ledger.count("cancel_requested") > 0);
        match self.name {
            "signal" | "refuse" | "step" | "critical" | "watch" | "cleared" | "over" | "adopt" | "noted"
            | "starter" => {
                self.finish_session(scratch, before)?;
            }
            "news" | "stop" => {
                let told = scratch.ledger()?.count("delivered") > 0;
                let again = scratch.run(self.command(scratch, &[]), PATIENCE);
                works(&again, "the same hook")?;
                if told == again.out.contains("done") {
                    return Err(format!("told before: {told}; and then: {again:?}"));
                }
            }
            "allow" | "init" | "prompt" | "claim" | "merge" => {
                let again = scratch.run(self.command(scratch, &[]), PATIENCE);
                works(&again, "the same again")?;
                if self.name == "prompt" && scratch.ledgers()?.len() > 1 {
                    return Err("the same prompt has started two runs".into());
                }
                if self.name == "init" && !scratch_settings(scratch)?.to_string().contains("user-prompt-submit") {
                    return Err(format!("it is not wired: {again:?}"));
                }
            }
            // Whoever held it is gone, so that it is free.
            "lease" => {
                let again = scratch.run(self.command(scratch, &[]), PATIENCE);
                works(&again, "the same again")?;
                if !again.out.starts_with("cpw ") {
                    return Err(format!("then it says {again:?}"));
                }
            }
            "clean" => {
                works(&scratch.run(self.command(scratch, &[]), PATIENCE), "the same again")?;
                if !scratch.ledgers()?.is_empty() {
                    return Err("it is still there".into());
                }
            }
            _ => {}
        }
        self.finish_runs(scratch, before, asked_to_cancel)
    }

    /// What the sessions hear afterwards: who owns the run hears what was not recorded as told, and nobody else anything.
    fn finish_session(&self, scratch: &Scratch, before: &Done) -> Result<(), String> {
        let check = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("then: {what}")) };
        let silent = |session| {
            let said = self.step(scratch, session)?;
            check(said.is_empty(), &format!("{session} is told {said:?}"))
        };
        match self.name {
            "signal" => {
                let sent = scratch.ledger()?.count("signal") > 0;
                silent(OTHER)?;
                let said = self.stop(scratch)?;
                check(said.contains(CRITICAL) == sent, &format!("sent: {sent}; and Stop says {said:?}"))?;
                let again = self.stop(scratch)?;
                check(!again.contains(CRITICAL), &format!("Stop says it again: {again:?}"))
            }
            "refuse" => {
                let call = |session| {
                    let bash = tool_call(scratch, "Bash", "");
                    self.call(scratch, session, ("pre-tool-use", "PreToolUse"), bash)
                };
                check(call(OTHER)?.is_null(), "another session is refused")?;
                let said = call(SESSION)?;
                check(said["hookSpecificOutput"]["permissionDecision"] == "deny", &format!("it passes: {said}"))
            }
            "step" | "critical" => {
                let told = scratch.ledger()?.count("delivered") > 0;
                silent(OTHER)?;
                let said = self.step(scratch, SESSION)?;
                let news = !told && said.contains("done") && said.contains(HALF_WAY);
                check(if told { said.is_empty() } else { news }, &format!("told: {told}; and then {said:?}"))?;
                let said = self.stop(scratch)?;
                let wanted = self.name == "step" || !told;
                check(said.contains(CRITICAL) == wanted, &format!("told: {told}; and Stop says {said:?}"))?;
                check(self.stop(scratch)?.is_empty(), "Stop says something again")
            }
            "watch" => {
                let told = scratch.ledger()?.count("delivered") > 0;
                silent(OTHER)?;
                let said = self.step(scratch, SESSION)?;
                check(said.contains("done") != told, &format!("told: {told}; and then {said:?}"))?;
                silent(SESSION)
            }
            "cleared" => {
                let told = before.out.contains("cpw adopt");
                let again = scratch.run(self.command(scratch, &[]), PATIENCE);
                check(again.is_ok() && !(told && again.out.contains("cpw adopt")), &format!("again: {again:?}"))?;
                self.hears_alone(scratch, OTHER, "it is adopted")
            }
            "over" => {
                let again = scratch.run(self.command(scratch, &[]), PATIENCE);
                check(again.is_ok() && again.out.is_empty(), &format!("again: {again:?}"))?;
                let start = ("session-start", "SessionStart");
                let next = self.call(scratch, OTHER, start, json!({"source": "clear"}))?.to_string();
                check(next.contains("cpw adopt"), &format!("the next session is told {next}"))?;
                silent(OTHER)?;
                self.call(scratch, SESSION, start, json!({"source": "resume"}))?;
                self.hears_alone(scratch, SESSION, "")
            }
            "adopt" => {
                let adopted = scratch.ledger()?.count("adopted") > 0;
                // Who was refused may leave it; who was killed tries again.
                if !adopted && before.is_killed() {
                    return self.hears_alone(scratch, OTHER, "it is adopted");
                }
                self.hears_alone(scratch, if adopted { OTHER } else { SESSION }, "")
            }
            _ => self.finish_rule(scratch),
        }
    }

    /// Whether one of the two sessions hears the news, once, and the other one nothing.
    fn hears_alone(&self, scratch: &Scratch, owner: &'static str, adopt: &str) -> Result<(), String> {
        if !adopt.is_empty() {
            let run = scratch.runs().pop().and_then(|run| run.file_name()?.to_str().map(str::to_owned));
            let done = scratch.cpw(&["adopt", &run.unwrap_or_default(), "--session", owner, "--force"]);
            if !done.is_ok() {
                return Err(format!("then {adopt}: {done:?}"));
            }
        }
        let other = if owner == OTHER { SESSION } else { OTHER };
        let (not, told) = (self.step(scratch, other)?, self.step(scratch, owner)?);
        let again = [self.step(scratch, other)?, self.step(scratch, owner)?].concat();
        if not.is_empty() && told.contains("done") && again.is_empty() {
            return Ok(());
        }
        Err(format!("then {owner} is told {told:?}, {other} {not:?}, and both again {again:?}"))
    }

    /// Another call is noted: what was noted before is started with it, or was started.
    fn finish_rule(&self, scratch: &Scratch) -> Result<(), String> {
        let noted = is_noted(scratch) || has_checked(scratch, "api")?;
        if !noted && self.name == "starter" {
            return Err("a call is lost: neither noted nor started".into());
        }
        let more = tool_call(scratch, "Edit", "db.py");
        self.call(scratch, SESSION, ("post-tool-use", "PostToolUse"), more)?;
        scratch.wait_for_end()?;
        let (api, db) = (has_checked(scratch, "api")?, has_checked(scratch, "db")?);
        if db && (api || !noted) && !is_noted(scratch) {
            return Ok(());
        }
        Err(format!("a call is lost; noted before: {noted}; api is checked: {api}, db: {db}"))
    }

    fn finish_runs(&self, scratch: &Scratch, before: &Done, asked_to_cancel: bool) -> Result<(), String> {
        let works = |done: &Done, what: &str| if done.is_ok() { Ok(()) } else { Err(format!("then {what}: {done:?}")) };
        let status = scratch.cpw(&["status", "--json"]);
        works(&status, "status")?;
        let seen: Value = serde_json::from_str(&status.out).map_err(|e| format!("status: {e}"))?;
        let all = seen["runs"].as_array().into_iter().flatten().map(|run| run["state"].as_str().unwrap_or_default());
        for state in all {
            if !["active", "ok", "failed", "cancelled"].contains(&state) {
                return Err(format!("then a run is {state}: {}", status.out));
            }
        }
        scratch.wait_for_end()?;
        for (path, ledger) in scratch.ledgers()? {
            ledger.check_ended(self.tasks())?;
            let unchanged = fs::read_to_string(scratch.project().join("api.py")).is_ok_and(|text| text == "# code\n");
            if self.needs_git() && !unchanged {
                return Err("an isolated task has changed the user's file".into());
            }
            effects(scratch, &path, &ledger)?;
            if asked_to_cancel && !ledger.has("run_ended", &[("status", "cancelled")]) {
                return Err(format!("a cancelled run ended otherwise; before: {before:?}"));
            }
        }
        Ok(())
    }
}

/// The settings are whole at any time, and what was in them before still is.
fn scratch_settings(scratch: &Scratch) -> Result<Value, String> {
    let text = fs::read_to_string(scratch.project().join(".claude/settings.json")).map_err(|e| e.to_string())?;
    let found: Value = serde_json::from_str(&text).map_err(|e| format!("settings.json: {e}"))?;
    let before = settings();
    let kept = found["model"] == before["model"] && found["mine"] == before["mine"];
    let stop = found["hooks"]["Stop"].as_array().is_some_and(|all| all.contains(&before["hooks"]["Stop"][0]));
    if kept && stop { Ok(found) } else { Err(format!("settings.json has lost something: {text}")) }
}

/// What the tasks wrote down themselves: no attempt ran that is not in the log, none ran twice, and none is done that did
/// not run.
fn effects(scratch: &Scratch, run: &Path, ledger: &super::ledger::Ledger) -> Result<(), String> {
    let id = run.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // None: it never came so far. Empty: it was killed in between.
    let ran = |e: &Map<String, Value>| {
        let name = format!("ran.{id}.{}.{}", e["task"].as_str().unwrap_or_default(), e["attempt"]);
        fs::read_to_string(scratch.path("home").join(name)).ok()
    };
    let of = |kind: &'static str| ledger.events.iter().filter(move |e| e["t"] == kind);
    if let Some(twice) = of("started").find(|e| ran(e).is_some_and(|text| !text.is_empty() && text != "x\n")) {
        return Err(format!("ran more than once: {twice:?}"));
    }
    // What was taken over was done in another run, and not again.
    let (taken, done): (Vec<_>, Vec<_>) = of("done").partition(|e| e["payload"].get("from").is_some());
    if let Some(never) = done.into_iter().find(|e| e["task"] != "c" && ran(e).as_deref() != Some("x\n")) {
        return Err(format!("did not run: {never:?}"));
    }
    if let Some(again) = taken.into_iter().find(|e| ran(e).is_some()) {
        return Err(format!("ran, though it was taken over: {again:?}"));
    }
    let files = fs::read_dir(scratch.path("home")).into_iter().flatten().flatten();
    let files = files.filter(|f| f.file_name().to_string_lossy().starts_with(&format!("ran.{id}.")));
    let begun = of("started").filter(|e| ran(e).is_some()).count();
    if files.count() == begun { Ok(()) } else { Err("a task ran whose start is not in the log".into()) }
}

/// A tool call of a session.
fn tool_call(scratch: &Scratch, tool: &str, file: &str) -> Value {
    let path = scratch.project().join(file);
    let input = match tool {
        "Write" => json!({"file_path": scratch.project().join("report.md"), "content": "# Report"}),
        "Edit" => json!({"file_path": path, "old_string": "a", "new_string": "b"}),
        "Bash" => json!({"command": "psql -c 'select 1'"}),
        _ => json!({"file_path": path}),
    };
    json!({"tool_name": tool, "tool_input": input, "tool_use_id": "t1"})
}

/// Puts a command into the attempt that is open.
fn inside(scratch: &Scratch, command: &mut Command) {
    let run = scratch.runs().pop().expect("a run");
    let ledger = scratch.ledger().expect("a log");
    let open = ledger.events.iter().find(|e| e["t"] == "started").expect("an attempt");
    command.env("CPW_RUN", run.file_name().expect("an id")).env("CPW_RUN_DIR", &run).env("CPW_DEPTH", "1");
    for (name, key) in [("CPW_WORKER", "worker"), ("CPW_TASK", "task")] {
        command.env(name, open[key].as_str().expect("a name"));
    }
    command.env("CPW_ATTEMPT", open["attempt"].to_string()).env("CPW_TOKEN", open["seq"].to_string());
}

/// Whether a call is noted for the rule on tool calls.
fn is_noted(scratch: &Scratch) -> bool {
    let noted = fs::read_to_string(scratch.path(&format!("state/triggers/{SESSION}+{RULE}"))).unwrap_or_default();
    noted.contains("/api.py\"") || noted.contains("/db.py\"")
}

/// Whether there is a run with a task.
fn has_checked(scratch: &Scratch, task: &str) -> Result<bool, String> {
    let named = format!("\"id\":\"{task}\"");
    let plan = |run: &Path| fs::read_to_string(run.join("plan.json")).unwrap_or_default().replace(": ", ":");
    Ok(scratch.ledgers()?.iter().any(|(run, _)| plan(run).contains(&named)))
}

/// Whether word was left that `/clear` has ended a session.
fn is_cleared(scratch: &Scratch) -> bool {
    let files = fs::read_dir(scratch.path("state/sessions")).into_iter().flatten().flatten();
    files.map(|f| f.file_name()).any(|name| name.to_string_lossy().starts_with(".cleared-"))
}

/// Lets a worker begin with a task, and kills it and all that it has started.
fn leave_broken(scratch: &Scratch) {
    let hold = scratch.path("home/hold");
    mkfifo(&hold, Mode::S_IRWXU).expect("a pipe");
    let mut worker = scratch.command(&[], &["worker"]);
    let mut worker = worker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a worker");
    let ready = scratch.wait("the task to run", || {
        let mut files = fs::read_dir(scratch.path("home")).into_iter().flatten().flatten();
        let ran = files
            .any(|f| f.file_name().to_string_lossy().starts_with("ran.") && f.metadata().is_ok_and(|m| m.len() > 0));
        ran && scratch.ledger().is_ok_and(|l| l.count("spawned") > 0 && l.count("spawned") == l.count("started"))
    });
    worker.kill().expect("it is killed");
    worker.wait().expect("it is our child");
    ready.expect("a task that runs");
    scratch.sweep();
    fs::remove_file(hold).expect("the pipe");
}
