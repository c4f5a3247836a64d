//! What the client says on a hook's stdin: any bytes are a payload or none, and what is read of a tool's input is what a
//! plain reading of the JSON finds there.

use cpw::base::ids::SessionId;
use cpw::hook::input::Payload;
use cpw::logic::conductor::{normalise, path_field};
use serde_json::Value;

/// Any bytes as a payload.
pub fn check(bytes: &[u8]) {
    let plain = serde_json::from_slice::<Value>(bytes);
    let Some(payload) = Payload::from_bytes(bytes.to_vec()) else {
        assert!(!matches!(plain, Ok(Value::Object(_))), "an object that is no payload");
        return;
    };
    let _main = payload.is_main();
    if let Some(path) = payload.tool_name.as_deref().and_then(path_field).and_then(|name| payload.field(name)) {
        let normal = normalise(&path);
        assert_eq!(normalise(&normal), normal, "{path:?}");
    }
    if let Some(Ok(id)) = payload.session_id.as_deref().map(SessionId::new) {
        assert_eq!(Some(id.as_str()), payload.session_id.as_deref());
    }
    let Ok(Value::Object(plain)) = plain else { return };
    let text = |name: &str| plain.get(name).and_then(Value::as_str);
    for (name, read) in [
        ("session_id", &payload.session_id),
        ("cwd", &payload.cwd),
        ("hook_event_name", &payload.hook_event_name),
        ("prompt_id", &payload.prompt_id),
        ("prompt", &payload.prompt),
        ("agent_id", &payload.agent_id),
        ("tool_name", &payload.tool_name),
        ("tool_use_id", &payload.tool_use_id),
    ] {
        match (name, text(name)) {
            ("hook_event_name", Some(long)) if long.len() > 64 => assert_eq!(*read, None),
            ("prompt_id" | "agent_id" | "tool_name" | "tool_use_id", Some(long)) if long.len() > 256 => {
                assert!(read.as_deref().is_some_and(|hash| hash.len() == 64), "{name}: {read:?}");
            }
            (_, text) => assert_eq!(read.as_deref(), text, "{name}"),
        }
    }
    let empty = serde_json::Map::new();
    let input = plain.get("tool_input").and_then(Value::as_object).unwrap_or(&empty);
    let fields = payload.tool_input.fields().expect("what a plain reading reads");
    assert!(fields.iter().eq(input.iter()), "{fields:?}, not {input:?}");
    for (name, value) in input {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        assert_eq!(payload.field(name), Some(text), "{name}");
    }
}
