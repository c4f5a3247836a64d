//! What Claude Code says on stdin: one JSON object. Read with a bound in size and time, because its end may never come;
//! every field is optional and unknown ones are ignored, because the client changes.

use std::borrow::Cow;
use std::io;
use std::ops::Range;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::base::hex;
use crate::model::scan::Cutter;
use crate::sys::clock;
use crate::sys::poll;

/// The largest payload that is read, in bytes. A larger one is nothing that cpw could answer.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Room for the first read, in bytes: most payloads fit.
const SMALL: usize = 3 * 1024;

/// How long the payload may take to arrive.
const PATIENCE_MS: u64 = 900;

/// The longest name of an event, in bytes.
const MAX_EVENT: usize = 64;

/// The longest id or name of a tool that is kept as it is, in bytes.
const MAX_NAME: usize = 256;

/// An id or a name as it can be written down and looked up: of one that is absurdly long, its hash.
fn short(name: String) -> String {
    if name.len() <= MAX_NAME { name } else { hex::sha256(name.as_bytes()) }
}

/// A hook's payload.
#[derive(Debug, Default)]
pub struct Payload {
    /// The session.
    pub session_id: Option<String>,
    /// The session's current directory.
    pub cwd: Option<String>,
    /// The event, to be repeated in the answer.
    pub hook_event_name: Option<String>,
    /// The client's id of the prompt.
    pub prompt_id: Option<String>,
    /// The prompt.
    pub prompt: Option<String>,
    /// The subagent that the call comes from; absent in the main thread.
    pub agent_id: Option<String>,
    /// How the session has begun: `startup`, `resume`, `clear`, `compact` or `fork`.
    pub source: Option<String>,
    /// Why the session has ended.
    pub reason: Option<String>,
    /// The tool.
    pub tool_name: Option<String>,
    /// The client's id of the call.
    pub tool_use_id: Option<String>,
    /// The tool's input.
    pub tool_input: Input,
    /// Whether the turn goes on only because a Stop hook wanted it to.
    pub stop_hook_active: bool,
    /// What the client itself has running beside the conversation: the kinds, as it calls them.
    pub background: Vec<String>,
}

/// What of the client's background work is read.
#[derive(serde::Deserialize)]
struct Background {
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    status: String,
}

/// The kinds of what runs, of `background_tasks` as the client sends it; nothing where that has another shape.
fn running(text: &[u8]) -> Vec<String> {
    let all: Vec<Background> = serde_json::from_slice(text).unwrap_or_default();
    all.into_iter().filter(|task| task.status == "running").map(|task| task.kind).collect()
}

/// A tool's input: its fields as they were sent, because they can be large and most hooks look at one of them or at none.
#[derive(Debug, Default)]
pub struct Input {
    /// All that the client said.
    text: Vec<u8>,
    /// Where each field's name, without quotes, and its value stand in it.
    fields: Vec<(Range<usize>, Range<usize>)>,
}

/// The name of a field, which stands between quotes at `at`. The client writes them plainly.
fn named<'a>(text: &'a [u8], at: &Range<usize>) -> serde_json::Result<Cow<'a, str>> {
    match std::str::from_utf8(&text[at.clone()]) {
        Ok(plain) if !plain.contains('\\') => Ok(plain.into()),
        _ => serde_json::from_slice(&text[at.start - 1..=at.end]).map(Cow::Owned),
    }
}

impl Input {
    /// All of it. An error if any of it cannot be read, because a part of it must not be given back as the whole.
    pub fn fields(&self) -> anyhow::Result<Map<String, Value>> {
        let read = |(name, value): &(Range<usize>, Range<usize>)| -> serde_json::Result<(String, Value)> {
            Ok((named(&self.text, name)?.into_owned(), serde_json::from_slice(&self.text[value.clone()])?))
        };
        self.fields.iter().map(|field| read(field).context("the tool's input cannot be read")).collect()
    }

    /// The first field that is a string.
    fn first_text(&self) -> Option<String> {
        self.fields.iter().find_map(|(_, value)| serde_json::from_slice(&self.text[value.clone()]).ok())
    }

    /// A field as text: strings as they are, other values as JSON.
    fn text(&self, name: &str) -> Option<String> {
        let is_it = |n: &Range<usize>| named(&self.text, n).is_ok_and(|n| n == name);
        let (_, value) = self.fields.iter().rev().find(|(n, _)| is_it(n))?;
        match serde_json::from_slice(&self.text[value.clone()]).ok()? {
            Value::String(s) => Some(s),
            other => Some(other.to_string()),
        }
    }
}

impl Payload {
    /// Reads a payload that is whole. `None` if it is not one JSON object.
    pub fn from_bytes(text: Vec<u8>) -> Option<Payload> {
        Payload::parse(&text).map(|payload| payload.of(text))
    }

    fn parse(text: &[u8]) -> Option<Payload> {
        let mut payload = Payload::default();
        let mut fields = Vec::new();
        let mut cutter = Cutter::new(text);
        cutter.object(|cutter, name| {
            let place = match named(text, &name).ok()?.as_bytes() {
                b"tool_input" if cutter.at_object() => {
                    fields.clear();
                    return cutter.object(|cutter, name| {
                        fields.push((name, cutter.value()?));
                        Some(())
                    });
                }
                b"session_id" => &mut payload.session_id,
                b"cwd" => &mut payload.cwd,
                b"hook_event_name" => &mut payload.hook_event_name,
                b"prompt_id" => &mut payload.prompt_id,
                b"prompt" => &mut payload.prompt,
                b"agent_id" => &mut payload.agent_id,
                b"source" => &mut payload.source,
                b"reason" => &mut payload.reason,
                b"tool_name" => &mut payload.tool_name,
                b"tool_use_id" => &mut payload.tool_use_id,
                b"stop_hook_active" => {
                    payload.stop_hook_active = &text[cutter.value()?] == b"true";
                    return Some(());
                }
                b"background_tasks" => {
                    payload.background = running(&text[cutter.value()?]);
                    return Some(());
                }
                _ => return cutter.value().map(drop),
            };
            // Nothing where something else than a string stands.
            *place = serde_json::from_slice(&text[cutter.value()?]).ok();
            Some(())
        })?;
        payload.tool_input.fields = fields;
        payload.hook_event_name = payload.hook_event_name.filter(|name| name.len() <= MAX_EVENT);
        for name in [&mut payload.prompt_id, &mut payload.agent_id, &mut payload.tool_name, &mut payload.tool_use_id] {
            *name = name.take().map(short);
        }
        cutter.at_end().then_some(payload)
    }

    /// Keeps what it was read from, for the tool's input.
    fn of(self, text: Vec<u8>) -> Payload {
        Payload { tool_input: Input { text, ..self.tool_input }, ..self }
    }

    /// The text that a call is about, where that is no file: Bash's command, else the first text of its input.
    pub fn target(&self) -> String {
        self.field("command").or_else(|| self.tool_input.first_text()).unwrap_or_default()
    }

    /// Whether a call is among those that it tells of, wherever their ids stand: a step's payload has all of its calls.
    pub fn mentions(&self, tool_use_id: &str) -> bool {
        let quoted = serde_json::Value::from(tool_use_id).to_string();
        self.tool_input.text.windows(quoted.len()).any(|at| at == quoted.as_bytes())
    }

    /// Whether it comes from the main thread of the session.
    pub fn is_main(&self) -> bool {
        self.agent_id.is_none()
    }

    /// An input field as text: strings as they are, other values as JSON.
    pub fn field(&self, name: &str) -> Option<String> {
        self.tool_input.text(name)
    }
}

/// Reads the payload. An error if there is none: an empty stdin, no JSON, not an object, too much, or too late.
pub(super) fn read() -> anyhow::Result<Payload> {
    let stdin = poll::stdin();
    let end = clock::mono_ms() + PATIENCE_MS;
    let mut bytes = vec![0; SMALL];
    let mut used = 0;
    loop {
        let left = end.saturating_sub(clock::mono_ms());
        anyhow::ensure!(left > 0, "the client did not end what it said on stdin within {PATIENCE_MS} ms");
        anyhow::ensure!(used <= MAX_BYTES, "the client said more than {MAX_BYTES} bytes on stdin");
        if !poll::wait(&[stdin], Some(Duration::from_millis(left)))?.first().is_some_and(|r| *r) {
            continue;
        }
        if used == bytes.len() {
            // Room for the largest payload at once: zeroed memory of that size costs nothing before it is written to, and
            // growing step by step would write to it several times.
            let mut large = vec![0; MAX_BYTES + 1];
            large[..used].copy_from_slice(&bytes);
            bytes = large;
        }
        match poll::read(stdin, &mut bytes[used..]) {
            Ok(0) => {
                anyhow::ensure!(used > 0, "the client said nothing on stdin");
                let payload = Payload::parse(&bytes[..used]);
                let payload = payload.context("what the client said on stdin is not a hook's payload")?;
                return Ok(payload.of(bytes));
            }
            Ok(n) => used += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) => return Err(e.into()),
        }
        // The client ends the object with a line feed, and its end may not come: what is whole is enough.
        if bytes[..used].ends_with(b"}\n")
            && let Some(payload) = Payload::parse(&bytes[..used])
        {
            return Ok(payload.of(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(tool_input: &str) -> Payload {
        let text = format!(r#"{{"tool_name": "Edit", "tool_input": {tool_input}, "tool_use_id": "t1"}}"#);
        Payload::parse(text.as_bytes()).unwrap().of(text.into_bytes())
    }

    #[test]
    fn ids_that_are_absurdly_long_are_kept_as_their_hash_and_events_are_not() {
        let read = |length: usize| {
            let long = "x".repeat(length);
            let all = ["prompt_id", "agent_id", "tool_name", "tool_use_id", "hook_event_name", "prompt"];
            let fields: Map<String, Value> = all.iter().map(|name| ((*name).to_owned(), long.clone().into())).collect();
            Payload::parse(Value::Object(fields).to_string().as_bytes()).unwrap()
        };
        let sound = read(MAX_EVENT);
        assert_eq!((sound.prompt_id, sound.hook_event_name), (Some("x".repeat(64)), Some("x".repeat(64))));
        let (one, other) = (read(1 << 20), read((1 << 20) + 1));
        assert_eq!((one.prompt.map(|p| p.len()), one.hook_event_name), (Some(1 << 20), None));
        for (one, other) in [
            (one.prompt_id, other.prompt_id),
            (one.agent_id, other.agent_id),
            (one.tool_name, other.tool_name),
            (one.tool_use_id, other.tool_use_id),
        ] {
            assert!(one != other && one.is_some_and(|id| id.len() == 64));
        }
    }

    #[test]
    fn tool_input_is_an_object_or_nothing() {
        for odd in ["null", "true", "-1", "1", "1.5", "\"text\"", "[{\"file_path\": \"a\"}, 1]"] {
            let payload = payload(odd);
            assert!(payload.tool_input.fields().unwrap().is_empty(), "{odd}");
            assert_eq!(payload.field("file_path"), None, "{odd}");
            // What follows it is read.
            assert_eq!(payload.tool_use_id.as_deref(), Some("t1"), "{odd}");
        }
    }

    #[test]
    fn fields_are_text_or_json_and_all_of_them_are_kept_in_order() {
        let payload =
            payload(r#"{"z": "a\n\u00e4", "n": 1.50, "o": {"b": [1, 2], "a": null}, "e": 12345678901234567890}"#);
        assert_eq!(payload.field("z").as_deref(), Some("a\nä"));
        assert_eq!(payload.field("o").as_deref(), Some(r#"{"b":[1,2],"a":null}"#));
        assert_eq!(payload.field("missing"), None);
        let all = Value::from(payload.tool_input.fields().unwrap()).to_string();
        assert_eq!(all, r#"{"z":"a\nä","n":1.5,"o":{"b":[1,2],"a":null},"e":12345678901234567890}"#);
    }

    #[test]
    fn of_two_fields_by_one_name_the_last_counts() {
        let payload = payload(r#"{"file_path": "a", "file_path": "b"}"#);
        assert_eq!(payload.field("file_path").as_deref(), Some("b"));
        assert_eq!(payload.tool_input.fields().unwrap()["file_path"], "b");
    }
    #[test]
    fn what_is_not_read_may_be_anything_and_what_is_given_back_may_not() {
        let payload = payload(r#"{"file_path": "a", "b": "\x"}"#);
        assert_eq!(payload.field("file_path").as_deref(), Some("a"));
        assert_eq!(payload.field("b"), None);
        assert!(payload.tool_input.fields().is_err());
    }

    #[test]
    fn a_field_of_another_type_is_none_and_no_object_is_no_payload() {
        let read = |text: &str| Payload::parse(text.as_bytes());
        let odd =
            read(r#"{"session_id": 1, "cwd": null, "prompt": ["x"], "tool_name": {"tool_name": "y"}, "new": [{}]}"#);
        let odd = odd.unwrap();
        assert_eq!((odd.session_id, odd.cwd, odd.prompt, odd.tool_name), (None, None, None, None));
        for bad in ["", "null", "[]", "{\"cwd\": \"a\"", "{\"cwd\": \"a\"} x", "{\"cwd\" \"a\"}"] {
            assert!(read(bad).is_none(), "{bad}");
        }
    }
}
