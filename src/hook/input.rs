//! What Claude Code says on stdin: one JSON object. Read with a bound in size and time, because its end may never come;
//! every field is optional and unknown ones are ignored, because the client changes.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::Context;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::sys::clock;
use crate::sys::poll;

/// The largest payload that is read, in bytes. A larger one is nothing that cpw could answer.
const MAX_BYTES: usize = 8 * 1024 * 1024;

/// Room for a read, in bytes; more than the buffer of `Stdin`, which is then passed by.
const CHUNK: usize = 64 * 1024;

/// How long the payload may take to arrive.
const PATIENCE_MS: u64 = 900;

/// A hook's payload.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Payload {
    /// The session.
    #[serde(deserialize_with = "text")]
    pub session_id: Option<String>,
    /// The session's current directory.
    #[serde(deserialize_with = "text")]
    pub cwd: Option<String>,
    /// The event, to be repeated in the answer.
    #[serde(deserialize_with = "text")]
    pub hook_event_name: Option<String>,
    /// The client's id of the prompt.
    #[serde(deserialize_with = "text")]
    pub prompt_id: Option<String>,
    /// The prompt.
    #[serde(deserialize_with = "text")]
    pub prompt: Option<String>,
    /// The subagent that the call comes from; absent in the main thread.
    #[serde(deserialize_with = "text")]
    pub agent_id: Option<String>,
    /// The tool.
    #[serde(deserialize_with = "text")]
    pub tool_name: Option<String>,
    /// The client's id of the call.
    #[serde(deserialize_with = "text")]
    pub tool_use_id: Option<String>,
    /// The tool's input.
    pub tool_input: Input,
}

/// A tool's input: its fields as they were sent, because they can be large and most hooks look at one of them or at none.
#[derive(Debug, Default)]
pub(super) struct Input(Vec<(String, Box<RawValue>)>);

impl Input {
    /// All of it.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let read = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_default();
        self.0.iter().map(|(name, raw)| (name.clone(), read(raw))).collect()
    }

    /// A field as text: strings as they are, other values as JSON.
    fn text(&self, name: &str) -> Option<String> {
        let (_, raw) = self.0.iter().rev().find(|(n, _)| n == name)?;
        let value: Value = serde_json::from_str(raw.get()).ok()?;
        Some(match value {
            Value::String(s) => s,
            other => other.to_string(),
        })
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Input, D::Error> {
        d.deserialize_any(InputVisitor)
    }
}

/// Reads an object; where something else stands, an empty one.
struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Input, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Input(fields))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Input, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Input::default())
    }

    fn visit_str<E>(self, _: &str) -> Result<Input, E> {
        Ok(Input::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Input, E> {
        Ok(Input::default())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Input, E> {
        Ok(Input::default())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Input, E> {
        Ok(Input::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Input, E> {
        Ok(Input::default())
    }

    fn visit_unit<E>(self) -> Result<Input, E> {
        Ok(Input::default())
    }
}

/// A string, or nothing where something else stands.
fn text<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    Ok(match Value::deserialize(d)? {
        Value::String(s) => Some(s),
        _ => None,
    })
}

impl Payload {
    /// Whether it comes from the main thread of the session.
    pub(super) fn is_main(&self) -> bool {
        self.agent_id.is_none()
    }

    /// An input field as text: strings as they are, other values as JSON.
    pub(super) fn field(&self, name: &str) -> Option<String> {
        self.tool_input.text(name)
    }
}

/// Reads the payload. An error if there is none: an empty stdin, no JSON, not an object, too much, or too late.
pub(super) fn read() -> anyhow::Result<Payload> {
    let stdin = io::stdin();
    let end = clock::mono_ms() + PATIENCE_MS;
    let mut bytes = Vec::new();
    let mut used = 0;
    loop {
        let left = end.saturating_sub(clock::mono_ms());
        anyhow::ensure!(left > 0, "the client did not end what it said on stdin within {PATIENCE_MS} ms");
        anyhow::ensure!(used <= MAX_BYTES, "the client said more than {MAX_BYTES} bytes on stdin");
        if !poll::wait(&[stdin.as_fd()], Some(Duration::from_millis(left)))?.first().is_some_and(|r| *r) {
            continue;
        }
        if bytes.len() - used < CHUNK {
            bytes.resize((bytes.len() * 2).max(CHUNK), 0);
        }
        match stdin.lock().read(&mut bytes[used..]) {
            Ok(0) => {
                anyhow::ensure!(used > 0, "the client said nothing on stdin");
                return serde_json::from_slice(&bytes[..used])
                    .context("what the client said on stdin is not a hook's payload");
            }
            Ok(n) => used += n,
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(e) => return Err(e.into()),
        }
        // The client ends the object with a line feed, and its end may not come: what is whole is enough.
        if bytes[..used].ends_with(b"}\n")
            && let Ok(payload) = serde_json::from_slice(&bytes[..used])
        {
            return Ok(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(tool_input: &str) -> Payload {
        let text = format!(r#"{{"tool_name": "Edit", "tool_input": {tool_input}, "tool_use_id": "t1"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn tool_input_is_an_object_or_nothing() {
        for odd in ["null", "true", "-1", "1", "1.5", "\"text\"", "[{\"file_path\": \"a\"}, 1]"] {
            let payload = payload(odd);
            assert!(payload.tool_input.fields().is_empty(), "{odd}");
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
        let all = Value::from(payload.tool_input.fields()).to_string();
        assert_eq!(all, r#"{"z":"a\nä","n":1.5,"o":{"b":[1,2],"a":null},"e":12345678901234567890}"#);
    }

    #[test]
    fn of_two_fields_by_one_name_the_last_counts() {
        let payload = payload(r#"{"file_path": "a", "file_path": "b"}"#);
        assert_eq!(payload.field("file_path").as_deref(), Some("b"));
        assert_eq!(payload.tool_input.fields()["file_path"], "b");
    }
}
