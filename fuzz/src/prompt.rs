//! A prompt: whatever a person or a machine types is taken apart without harm, and offsets stay the prompt's.

use cpw::base::text;
use cpw::model::words::{self, Words};

/// Any bytes as a prompt; what is no UTF-8 is replaced, as a JSON reader would have refused it.
pub fn check(bytes: &[u8]) {
    let prompt = String::from_utf8_lossy(bytes);
    words::origin(&prompt);
    words::says_off(&prompt);
    let words = Words::read(&prompt);
    let own = words.own();
    assert_eq!(own.len(), prompt.len(), "offsets moved");
    for (i, (o, p)) in own.bytes().zip(prompt.bytes()).enumerate() {
        assert!(o == p || o == b' ' && p != b'\n', "byte {i} is {o}, not {p}");
    }
    for (i, name) in words.mentions().iter().enumerate() {
        assert!(name.contains(['.', '/']), "{name:?} names no file");
        assert!(!words.mentions()[..i].contains(name), "{name:?} is there twice");
    }
    let n = own.len();
    // Any range, also one inside a character, outside, or the wrong way round.
    for (from, to) in [(0, n), (n / 2, n / 2 + 4), (n / 3, n / 3), (n, n + 1), (n / 2, 0), (usize::MAX, usize::MAX)] {
        let asks = words.asks(from..to);
        assert!(!asks || own.get(from..to).is_some(), "{from}..{to} is no match and asks");
    }
    // Some matches of one character, all over the text.
    let starts = own.char_indices().filter(|(_, c)| c.is_alphabetic()).map(|(i, c)| i..i + c.len_utf8());
    words.asks_any(starts.step_by(n / 16 + 1));
    assert_eq!(Words::read(&prompt), words);
    let line = text::one_line(&prompt, 80);
    assert!(line.chars().count() <= 80 && !line.contains(char::is_control), "{line:?}");
    text::quoted_for_model(&prompt);
    let shown = text::for_terminal(&prompt);
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}
