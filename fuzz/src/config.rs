//! A project's config and a prompt, with a zero between them: what is accepted can be shown, and makes of any prompt plans
//! that are good and bounded, or says why not.

use cpw::model::config;

use super::plan::{PROMPT, are_told, shown, start};

/// Any bytes. Where there is no zero, the prompt is one that most rules can do something with.
pub fn check(bytes: &[u8]) {
    let cut = bytes.iter().position(|b| *b == 0);
    let (text, prompt) = cut.map_or((bytes, PROMPT.as_bytes()), |at| (&bytes[..at], &bytes[at + 1..]));
    match config::check(text) {
        Ok(config) => {
            let shown = shown(&config, &serde_json::from_slice(text).expect("a config is JSON"));
            let is_hidden = |c: char| c.is_control() && c != '\n';
            assert!(!shown.contains(is_hidden), "not for a terminal: {shown:?}");
            start(&config, &String::from_utf8_lossy(prompt));
        }
        Err(problems) => are_told(&problems),
    }
}
