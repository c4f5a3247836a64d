//! A headless `claude -p` as a task: its command line, and what its stream of JSON lines says. Whether it succeeded is
//! judged by `is_error` and `terminal_reason`, never by its exit code or `subtype` alone: both say success for an API
//! error or a turn that a hook stopped.

use std::ffi::OsString;
use std::path::Path;

use serde_json::Value;

use crate::base::text;
use crate::model::event::{Progress, Usage};
use crate::model::plan::ClaudeTask;

/// The program's name.
pub const PROGRAM: &str = "claude";

/// Its arguments. Hooks are off, so that a worker does not start workers; `out` is the one folder beside the project that
/// it may write to.
pub fn argv(task: &ClaudeTask, out: &Path) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec![PROGRAM.into(), "-p".into()];
    let mut option = |name: &str, value: OsString| {
        args.push(name.into());
        args.push(value);
    };
    option("--output-format", "stream-json".into());
    option("--settings", r#"{"disableAllHooks":true}"#.into());
    option("--add-dir", out.as_os_str().to_owned());
    if let Some(model) = &task.model {
        option("--model", model.into());
    }
    if !task.tools.is_empty() {
        option("--allowedTools", task.tools.join(",").into());
    }
    if let Some(turns) = task.max_turns {
        option("--max-turns", turns.to_string().into());
    }
    if let Some(budget) = task.max_budget_usd {
        option("--max-budget-usd", budget.to_string().into());
    }
    if let Some(schema) = &task.schema {
        option("--json-schema", schema.to_string().into());
    }
    args.push("--verbose".into());
    // Behind `--`, so that a prompt that begins with a dash is a prompt.
    args.push("--".into());
    args.push(task.prompt.clone().into());
    args
}

/// What the client said in the end.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Verdict {
    /// Its answer, or why there is none.
    pub text: String,
    /// Its answer as JSON, where a schema was given.
    pub structured: Option<Value>,
    /// Whether the task is done.
    pub ok: bool,
    /// Whether trying again could help: not after a refused login or a spent budget.
    pub retryable: bool,
    /// What it cost.
    pub usage: Usage,
}

/// The client's stream, read as it comes.
#[derive(Debug, Default)]
pub struct Stream {
    rest: Vec<u8>,
    turns: u64,
    spent: Usage,
    last: Option<Verdict>,
}

/// A line longer than this is not kept until its end comes, in bytes.
const MAX_LINE: usize = 64 * 1024 * 1024;

impl Stream {
    /// Reads further output. Returns what there is to say about progress.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Progress> {
        let mut said = None;
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            if let Some(note) = self.line(&line) {
                said = Some(Progress { note: Some(note), ..Progress::default() });
            }
        }
        if self.rest.len() > MAX_LINE {
            self.rest.clear();
        }
        said
    }

    /// What it ended with. Several results can come in one run: the last one counts, the cost is theirs together.
    pub fn verdict(&mut self) -> Option<Verdict> {
        if !self.rest.is_empty() {
            let line = std::mem::take(&mut self.rest);
            self.line(&line);
        }
        self.last.take().map(|v| Verdict { usage: self.spent, ..v })
    }

    fn line(&mut self, line: &[u8]) -> Option<String> {
        let value: Value = serde_json::from_slice(line).ok()?;
        match value["type"].as_str()? {
            "assistant" => {
                self.turns += 1;
                let content = value["message"]["content"].as_array()?;
                let tool = content.iter().rev().find_map(|c| c["name"].as_str());
                Some(match tool {
                    Some(tool) => format!("turn {}: {}", self.turns, text::one_line(tool, 60)),
                    None => format!("turn {}", self.turns),
                })
            }
            "result" => {
                self.result(&value);
                None
            }
            _ => None,
        }
    }

    fn result(&mut self, value: &Value) {
        let count = |name: &str| value["usage"][name].as_u64().unwrap_or(0);
        let names = ["input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"];
        // The client sums up over its session, so that the last result has them all.
        self.spent = Usage {
            turns: self.spent.turns + value["num_turns"].as_u64().unwrap_or(0),
            tokens: self.spent.tokens + names.iter().map(|n| count(n)).sum::<u64>(),
            cost_usd: value["total_cost_usd"].as_f64().unwrap_or(0.0).max(self.spent.cost_usd),
        };
        let subtype = value["subtype"].as_str().unwrap_or_default();
        let reason = value["terminal_reason"].as_str();
        let is_error = value["is_error"].as_bool().unwrap_or(true);
        // Older clients do not say `terminal_reason`.
        let completed = reason.map_or(subtype == "success", |r| r == "completed");
        let answer = value["result"].as_str().unwrap_or_default();
        let errors: Vec<&str> = value["errors"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let ok = !is_error && completed;
        let text = if !answer.is_empty() {
            answer.to_owned()
        } else if !errors.is_empty() {
            errors.join("; ")
        } else {
            reason.unwrap_or(subtype).to_owned()
        };
        let status = value["api_error_status"].as_u64();
        let refused = matches!(status, Some(401..=403)) || subtype == "error_max_budget_usd";
        self.last = Some(Verdict {
            text,
            structured: value.get("structured_output").filter(|v| !v.is_null()).cloned(),
            ok,
            retryable: !ok && !refused,
            usage: Usage::default(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_with_a_dash_is_a_prompt() {
        let task: ClaudeTask =
            serde_json::from_str(r#"{"prompt": "--help", "tools": ["Read", "Bash(git *)"]}"#).unwrap();
        let args = argv(&task, Path::new("/out"));
        assert_eq!(args[args.len() - 2..], ["--", "--help"]);
        assert!(args.windows(2).any(|w| w == ["--allowedTools", "Read,Bash(git *)"]));
    }

    #[test]
    fn success_needs_a_completed_turn() {
        let case = |line: &str| {
            let mut stream = Stream::default();
            stream.feed(line.as_bytes());
            stream.verdict().unwrap()
        };
        let done = case(
            r#"{"type":"result","subtype":"success","is_error":false,"result":"ok","terminal_reason":"completed","num_turns":2,"total_cost_usd":0.5,"usage":{"input_tokens":10,"output_tokens":5}}"#,
        );
        assert!(done.ok);
        assert_eq!(done.usage, Usage { turns: 2, tokens: 15, cost_usd: 0.5 });
        let login = case(
            r#"{"type":"result","subtype":"success","is_error":true,"result":"Invalid API key","terminal_reason":"api_error","api_error_status":401}"#,
        );
        assert!(!login.ok && !login.retryable);
        let stopped = case(
            r#"{"type":"result","subtype":"success","is_error":false,"result":"","terminal_reason":"hook_stopped"}"#,
        );
        assert!(!stopped.ok);
        assert_eq!(stopped.text, "hook_stopped");
        let turns = case(
            r#"{"type":"result","subtype":"error_max_turns","is_error":true,"errors":["Reached maximum number of turns (2)"]}"#,
        );
        assert_eq!(turns.text, "Reached maximum number of turns (2)");
    }

    #[test]
    fn progress_names_the_turn_and_the_tool() {
        let mut stream = Stream::default();
        let half = br#"{"type":"assistant","message":{"content":[{"type":"tool_use","na"#;
        assert_eq!(stream.feed(half), None);
        let said = stream.feed(b"me\":\"Read\"}]}}\n").unwrap();
        assert_eq!(said.note.as_deref(), Some("turn 1: Read"));
        assert_eq!(stream.verdict(), None);
    }
}
