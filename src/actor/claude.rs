//! A headless `claude -p` as a task: its command line, and what its stream of JSON lines says. Whether it succeeded is
//! judged by `is_error`, `terminal_reason` and what it answered, never by its exit code or `subtype` alone: both say
//! success for an API error or a turn that a hook stopped.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use crate::base::text;
use crate::model::event::{Progress, Usage};
use crate::model::plan::ClaudeTask;
use crate::store::file;

/// The program's name.
pub const PROGRAM: &str = "claude";

/// The settings files of a project, below its root.
const SETTINGS: [&str; 2] = [".claude/settings.json", ".claude/settings.local.json"];

/// The largest of them that is read, in bytes.
const MAX_SETTINGS: u64 = 4 << 20;

/// How a client is called.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// What it is to do.
    pub task: &'a ClaudeTask,
    /// Where it leaves files.
    pub out: &'a Path,
    /// The project, whose settings say what is forbidden.
    pub project: &'a Path,
    /// What stands for the project: it, or the worktree of a task that has one of its own.
    pub ground: &'a Path,
    /// Where it runs.
    pub cwd: &'a Path,
    /// What it may spend, in US dollars.
    pub budget_usd: Option<f64>,
}

/// Its arguments; the prompt is its stdin, since arguments are seen by every user of the machine, and bounded.
///
/// What it may do is said here, by the plan that was approved, and by the user's own settings: those of the project are not
/// read, since a change of them is approved by nobody, nor are servers of its `.mcp.json` started. Only what the project's
/// settings forbid stays forbidden. Its `CLAUDE.md` is read because its folder is named, see [`ENVIRONMENT`]. Hooks are off,
/// so that a worker does not start workers.
pub fn argv(call: Call<'_>) -> Vec<OsString> {
    let Call { task, out, project, ground, cwd, budget_usd } = call;
    let mut args: Vec<OsString> =
        [PROGRAM, "-p", "--verbose", "--no-session-persistence", "--strict-mcp-config"].map(OsString::from).into();
    let mut option = |name: &str, value: OsString| {
        args.push(name.into());
        args.push(value);
    };
    option("--output-format", "stream-json".into());
    option("--setting-sources", "user".into());
    option("--settings", settings(project).to_string().into());
    option("--permission-mode", task.permission_mode.name().into());
    option("--add-dir", out.as_os_str().to_owned());
    option("--add-dir", ground.as_os_str().to_owned());
    if cwd != ground {
        option("--add-dir", cwd.as_os_str().to_owned());
    }
    if let Some(model) = &task.model {
        option("--model", model.into());
    }
    if !task.tools.is_empty() {
        option("--allowedTools", task.tools.join(",").into());
    }
    if let Some(turns) = task.max_turns {
        option("--max-turns", turns.to_string().into());
    }
    if let Some(budget) = budget_usd {
        option("--max-budget-usd", budget.to_string().into());
    }
    if let Some(schema) = &task.schema {
        option("--json-schema", schema.to_string().into());
    }
    args
}

/// Variables that are set for it, where the user has not set them: it reads `CLAUDE.md` of the folders named; it soon gives
/// up where the provider refuses, since a worker can wait without holding its memory; and no worker exchanges the program
/// below another one.
pub const ENVIRONMENT: [(&str, &str); 3] = [
    ("CLAUDE_CODE_ADDITIONAL_DIRECTORIES_CLAUDE_MD", "1"),
    ("CLAUDE_CODE_MAX_RETRIES", "2"),
    ("DISABLE_AUTOUPDATER", "1"),
];

/// Hooks off, and what the project's own settings forbid. A file that cannot be read as the client reads it forbids nothing
/// there either.
fn settings(project: &Path) -> Value {
    let mut rules = json!({"deny": [], "ask": []});
    for name in SETTINGS {
        let text = file::read(&project.join(name), MAX_SETTINGS).ok().flatten().unwrap_or_default();
        let value: Value = serde_json::from_slice(&text).unwrap_or_default();
        for kind in ["deny", "ask"] {
            let given = value["permissions"][kind].as_array().cloned().unwrap_or_default();
            if let Some(all) = rules[kind].as_array_mut() {
                all.extend(given.into_iter().filter(Value::is_string));
            }
        }
    }
    json!({"disableAllHooks": true, "permissions": rules})
}

/// What the client said in the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// Its answer; empty where there is none, and where what it said is not one.
    pub answer: String,
    /// Its answer as JSON, where a schema was given.
    pub structured: Option<Value>,
    /// Why the task is not done, for people; `None`: it is.
    pub trouble: Option<Trouble>,
}

/// Why a client's task is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// For people: what is wrong, what they can do, what the client said.
    pub reason: String,
    /// Whether trying again could help: not after a refused login or a spent budget.
    pub retryable: bool,
    /// The answer is empty, and nothing else is wrong.
    pub empty: bool,
    /// The provider's quota is used up: until then, in seconds since 1970, where it said so.
    pub quota: Option<Option<u64>>,
}

/// The client's stream, read as it comes.
#[derive(Debug, Default)]
pub struct Stream {
    rest: Vec<u8>,
    wants_schema: bool,
    heard: bool,
    message: String,
    turns: u64,
    tokens: u64,
    told: Option<Usage>,
    error: Option<String>,
    resets_at: Option<u64>,
    last: Option<Verdict>,
}

/// A line longer than this is not kept until its end comes, in bytes.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// What counts as tokens: in, out, and what the cache took and gave.
const TOKENS: [&str; 4] = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];

fn tokens(usage: &Value) -> u64 {
    TOKENS.iter().filter_map(|n| usage[*n].as_u64()).fold(0, u64::saturating_add)
}

impl Stream {
    /// The stream of this task's client.
    pub fn of(task: &ClaudeTask) -> Stream {
        Stream { wants_schema: task.schema.is_some(), ..Stream::default() }
    }

    /// Reads further output. Returns what there is to say about progress.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Progress> {
        let mut said = None;
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        let mut lines = rest.split_inclusive(|b| *b == b'\n').peekable();
        while let Some(line) = lines.next() {
            if lines.peek().is_none() && !line.ends_with(b"\n") {
                self.rest = line.to_vec();
            } else if let Some(note) = self.line(line) {
                said = Some(Progress { note: Some(note), ..Progress::default() });
            }
        }
        if self.rest.len() > MAX_LINE {
            self.rest.clear();
        }
        said
    }

    /// What it ended with; `None`: it never said. Several results can come in one run: the last one counts.
    pub fn verdict(&mut self) -> Option<Verdict> {
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            self.line(&line);
        }
        self.last.take()
    }

    /// What it has cost so far: what the client says in its results, before that what its messages show.
    pub fn usage(&self) -> Usage {
        let shown = Usage { turns: self.turns, tokens: self.tokens, cost_usd: 0.0 };
        self.told.map_or(shown, |told| Usage { turns: told.turns.max(self.turns), ..told })
    }

    /// Whether any line was one of the client's.
    pub fn heard(&self) -> bool {
        self.heard
    }

    fn line(&mut self, line: &[u8]) -> Option<String> {
        let value: Value = serde_json::from_slice(line).ok()?;
        let kind = value["type"].as_str()?;
        self.heard = true;
        match kind {
            "assistant" => self.assistant(&value),
            "system" if value["subtype"] == "api_retry" => {
                let error = text::one_line(value["error"].as_str().unwrap_or("an error"), 60);
                Some(format!("turn {}: asks again after {error}", self.turns.saturating_add(1)))
            }
            "rate_limit_event" => {
                let info = &value["rate_limit_info"];
                self.resets_at = info["resetsAt"].as_u64().filter(|_| info["status"] == "rejected");
                None
            }
            "result" => {
                self.result(&value);
                None
            }
            _ => None,
        }
    }

    /// A message comes in several lines, one for each of its parts; those of its helpers are no turns of its own, and one
    /// that the client made up itself says what went wrong.
    fn assistant(&mut self, value: &Value) -> Option<String> {
        if let Some(error) = value["error"].as_str() {
            self.error = Some(error.to_owned());
            return None;
        }
        let message = &value["message"];
        let helper = value["parent_tool_use_id"].is_string();
        let id = message["id"].as_str().unwrap_or_default();
        if message["model"] == "<synthetic>" {
            return None;
        }
        if id.is_empty() || self.message != id {
            id.clone_into(&mut self.message);
            self.turns += u64::from(!helper);
            self.tokens = self.tokens.saturating_add(tokens(&message["usage"]));
            self.error = None;
        }
        let content = message["content"].as_array()?;
        let tool = content.iter().rev().find_map(|c| c["name"].as_str()).filter(|_| !helper);
        Some(match tool {
            Some(tool) => format!("turn {}: {}", self.turns, text::one_line(tool, 60)),
            None => format!("turn {}", self.turns),
        })
    }

    fn result(&mut self, value: &Value) {
        let before = self.told.unwrap_or_default();
        let cost_usd = value["total_cost_usd"].as_f64().unwrap_or(0.0);
        // The client counts what it has spent over all its results, and the rest anew for each.
        self.told = Some(Usage {
            turns: self.turns,
            tokens: before.tokens.saturating_add(tokens(&value["usage"])),
            cost_usd: cost_usd.max(before.cost_usd),
        });
        let answer = value["result"].as_str().unwrap_or_default();
        let structured = value.get("structured_output").filter(|v| !v.is_null()).cloned();
        let trouble = self.trouble(value, answer, structured.is_some());
        let answer = if trouble.is_none() { answer.to_owned() } else { String::new() };
        self.last = Some(Verdict { answer, structured, trouble });
    }

    /// What is wrong with a result, if anything is.
    fn trouble(&self, value: &Value, answer: &str, structured: bool) -> Option<Trouble> {
        let subtype = value["subtype"].as_str().unwrap_or_default();
        let ending = value["terminal_reason"].as_str();
        let errors: Vec<&str> = value["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let words = if answer.is_empty() { errors.join("; ") } else { answer.to_owned() };
        let said = |what: &str, retryable: bool| {
            let reason = if words.trim().is_empty() { what.to_owned() } else { format!("{what}: {words}") };
            Some(Trouble { reason: text::one_line(&reason, 300), retryable, empty: false, quota: None })
        };
        if subtype == "error_max_budget_usd" || ending == Some("budget_exhausted") {
            return said("what it may spend is spent (max_budget_usd)", false);
        }
        if subtype == "error_max_turns" || ending == Some("max_turns") {
            return said("it has taken all its turns (max_turns)", true);
        }
        if value["is_error"].as_bool().unwrap_or(true) {
            return self.api_trouble(value, subtype, &said);
        }
        match ending {
            Some("completed") => {}
            Some("hook_stopped") => return said("a hook of the organisation stopped its turn", false),
            Some(other) => return said(&format!("its turn was not completed ({})", text::one_line(other, 60)), true),
            // So does a command of the client's own end; an older client says nothing in other cases, too.
            None if value["num_turns"] == 0 => {
                return said("it did nothing; a prompt that begins with / is a command to the client", false);
            }
            None if subtype != "success" => return said("its turn was not completed", true),
            None => {}
        }
        if value["num_turns"] == 0 {
            return said("it did nothing, a hook of the organisation may have blocked the prompt", false);
        }
        if self.wants_schema && !structured {
            return said("it gave no answer that fits the schema", true);
        }
        if answer.trim().is_empty() && !structured {
            return said("its answer is empty", true).map(|trouble| Trouble { empty: true, ..trouble });
        }
        None
    }

    fn api_trouble(
        &self,
        value: &Value,
        subtype: &str,
        said: &dyn Fn(&str, bool) -> Option<Trouble>,
    ) -> Option<Trouble> {
        let status = value["api_error_status"].as_u64();
        match (self.error.as_deref(), status) {
            (Some("billing_error"), _) | (_, Some(402)) => {
                said("the account has no credit left (add credit, or log in with another one)", false)
            }
            (Some("authentication_failed" | "oauth_org_not_allowed"), _) | (_, Some(401 | 403)) => {
                said("not logged in, or the login was refused (run claude in a terminal and log in)", false)
            }
            (Some("rate_limit"), _) | (_, Some(429)) => {
                said("the quota is used up", true).map(|trouble| Trouble { quota: Some(self.resets_at), ..trouble })
            }
            (Some("overloaded" | "overloaded_error"), _) | (_, Some(529)) => said("the provider is overloaded", true),
            (Some("model_not_found"), _) | (_, Some(404)) => said("the account has no such model (model)", false),
            (Some("max_output_tokens"), _) => said("its answer was too long", true),
            (Some("invalid_request"), _) | (_, Some(400..=499)) => said("the request was refused", false),
            (Some("server_error"), _) | (_, Some(500..)) => said("the provider failed", true),
            _ if subtype == "error_during_execution" => said("the client was interrupted", true),
            _ => said("the client failed", true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(text: &str) -> ClaudeTask {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_approved_plan_says_what_it_may_do() {
        let temp = tempfile::tempdir().unwrap();
        let project = temp.path();
        std::fs::create_dir(project.join(".claude")).unwrap();
        let own =
            r#"{"permissions": {"allow": ["Bash(*)"], "deny": ["Read(./.env)", 1], "ask": ["Edit"]}, "hooks": 1}"#;
        std::fs::write(project.join(SETTINGS[0]), own).unwrap();
        std::fs::write(project.join(SETTINGS[1]), r#"{"permissions": {"deny": ["WebFetch"]}}"#).unwrap();
        let task = task(r#"{"prompt": "--help", "tools": ["Read", "Bash(git *)"], "permission_mode": "acceptEdits"}"#);
        let (out, cwd) = (Path::new("/out"), project.join("sub"));
        let args = argv(Call { task: &task, out, project, ground: project, cwd: &cwd, budget_usd: Some(0.25) });
        let has = |pair: [&str; 2]| args.windows(2).any(|w| w == pair);
        assert!(has(["--allowedTools", "Read,Bash(git *)"]) && has(["--permission-mode", "acceptEdits"]));
        assert!(has(["--setting-sources", "user"]) && has(["--max-budget-usd", "0.25"]) && has(["--add-dir", "/out"]));
        assert!(args.iter().any(|a| a == "--strict-mcp-config"));
        assert!(args.iter().all(|a| a != "--help"), "the prompt is no argument");
        let settings = r#"{"disableAllHooks":true,"permissions":{"deny":["Read(./.env)","WebFetch"],"ask":["Edit"]}}"#;
        assert!(has(["--settings", settings]), "{args:?}");
    }

    fn verdict(stream: &mut Stream, lines: &str) -> Verdict {
        stream.feed(lines.as_bytes());
        stream.verdict().unwrap()
    }

    #[test]
    fn an_answer_is_a_success() {
        let mut stream = Stream::default();
        let done = verdict(
            &mut stream,
            r#"{"type":"result","subtype":"success","is_error":false,"result":"ok","terminal_reason":"completed","num_turns":2,"total_cost_usd":0.5,"usage":{"input_tokens":10,"output_tokens":5}}"#,
        );
        assert_eq!((done.answer.as_str(), done.trouble), ("ok", None));
        assert_eq!((stream.usage().tokens, stream.usage().cost_usd.to_string()), (15, "0.5".into()));
    }

    #[test]
    fn what_went_wrong_is_told_apart() {
        let result = |rest: &str| format!(r#"{{"type":"result","num_turns":1,{rest}}}"#);
        let error = |kind: &str, rest: &str| {
            let message = r#""message":{"model":"<synthetic>","content":[]}"#;
            let line = format!(r#"{{"type":"assistant","error":"{kind}",{message}}}"#);
            format!("{line}\n{}", result(&format!(r#""subtype":"success","is_error":true,{rest}"#)))
        };
        // An older client says that it was completed although it was not.
        let rest = r#""result":"Said so","terminal_reason":"completed""#;
        let cases = [
            (error("authentication_failed", rest), "not logged in", false),
            (error("billing_error", rest), "no credit", false),
            (error("rate_limit", rest), "quota", true),
            (error("overloaded", rest), "overloaded", true),
            (error("server_error", rest), "provider failed", true),
            (error("model_not_found", rest), "no such model", false),
            (error("invalid_request", rest), "refused", false),
            (error("something", rest), "client failed", true),
            (
                result(r#""subtype":"success","is_error":true,"api_error_status":401,"result":"x""#),
                "not logged in",
                false,
            ),
            (result(r#""subtype":"success","is_error":true,"api_error_status":529,"result":"x""#), "overloaded", true),
            (result(r#""subtype":"error_max_turns","is_error":true,"errors":["Reached 2"]"#), "all its turns", true),
            (result(r#""subtype":"error_max_budget_usd","is_error":true,"errors":[]"#), "may spend is spent", false),
            (result(r#""subtype":"error_during_execution","is_error":true"#), "interrupted", true),
            (
                result(r#""subtype":"success","is_error":false,"result":"","terminal_reason":"hook_stopped""#),
                "hook",
                false,
            ),
            (
                result(r#""subtype":"success","is_error":false,"result":" \n","terminal_reason":"completed""#),
                "empty",
                true,
            ),
            (
                r#"{"type":"result","subtype":"success","is_error":false,"result":"No","num_turns":0}"#.into(),
                "nothing",
                false,
            ),
            (r#"{"type":"result"}"#.into(), "client failed", true),
        ];
        for (lines, part, retryable) in cases {
            let said = verdict(&mut Stream::default(), &lines);
            let trouble = said.trouble.unwrap_or_else(|| panic!("{lines} is no success"));
            assert!(trouble.reason.contains(part) && trouble.retryable == retryable, "{lines}: {trouble:?}");
            assert_eq!(trouble.quota.is_some(), part == "quota", "{trouble:?}");
        }
        let mut stream = Stream::of(&task(r#"{"prompt": "p", "schema": {}}"#));
        let line = result(r#""subtype":"success","is_error":false,"result":"text","terminal_reason":"completed""#);
        assert!(verdict(&mut stream, &line).trouble.is_some_and(|t| t.reason.contains("schema")));
    }

    #[test]
    fn when_there_is_quota_again_is_told() {
        let mut stream = Stream::default();
        stream.feed(b"{\"type\":\"rate_limit_event\",\"rate_limit_info\":{\"status\":\"allowed\",\"resetsAt\":7}}\n");
        let line = br#"{"type":"rate_limit_event","rate_limit_info":{"status":"rejected","resetsAt":1795282375}}"#;
        stream.feed(line);
        let result = "\n{\"type\":\"result\",\"is_error\":true,\"api_error_status\":429,\"result\":\"no\"}";
        assert_eq!(verdict(&mut stream, result).trouble.unwrap().quota, Some(Some(1_795_282_375)));
    }

    #[test]
    fn progress_names_the_turn_and_the_tool() {
        let mut stream = Stream::default();
        let half =
            br#"{"type":"assistant","message":{"id":"m1","usage":{"input_tokens":4},"content":[{"type":"tool_use","na"#;
        assert_eq!(stream.feed(half), None);
        let said = stream.feed(b"me\":\"Read\"}]}}\n").unwrap();
        assert_eq!(said.note.as_deref(), Some("turn 1: Read"));
        // Another part of the same message, and one of a helper's.
        stream.feed(
            b"{\"type\":\"assistant\",\"message\":{\"id\":\"m1\",\"usage\":{\"input_tokens\":4},\"content\":[]}}\n",
        );
        stream.feed(b"{\"type\":\"assistant\",\"parent_tool_use_id\":\"t\",\"message\":{\"id\":\"h\",\"content\":[]}}\nno JSON\n");
        let retry = stream.feed(b"{\"type\":\"system\",\"subtype\":\"api_retry\",\"error\":\"rate_limit\"}\n").unwrap();
        assert_eq!(retry.note.as_deref(), Some("turn 2: asks again after rate_limit"));
        assert_eq!(stream.usage(), Usage { turns: 1, tokens: 4, cost_usd: 0.0 });
        assert_eq!(stream.verdict(), None);
    }
}
