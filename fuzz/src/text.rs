//! Text of others: what is shown to a person or a model is harmless and bounded, and what is harmless already stays as it is.

use cpw::base::redact::{MARK, redact};
use cpw::base::text;

/// Any bytes as a text, as they come from a file or a pipe.
pub fn check(bytes: &[u8]) {
    let foreign = String::from_utf8_lossy(bytes);
    let once = redact(&foreign);
    // Twice may be more than once: with a secret gone, or the rest cut off, words beside it can look like one, too.
    redact(&once);
    assert!(once == foreign || once.contains(MARK), "something went without a mark");
    for max in [1, 40, 300, 5000] {
        let line = text::one_line(&foreign, max);
        is_shown(&line, false);
        assert!(line.chars().count() <= max, "{line:?} is longer than {max}");
        let again = text::one_line(&line, max);
        is_shown(&again, false);
        assert!(again.chars().count() <= max && (again == line || again.contains('[')), "{again:?} of {line:?}");
    }
    let lines = text::for_terminal(&foreign);
    is_shown(&lines, true);
    assert_eq!(text::for_terminal(&lines), lines);
    assert_eq!(text::for_screen(&lines), lines);
    let screen = text::for_screen(&foreign);
    assert_eq!(text::for_screen(&screen), screen);
    for quoted in [text::quoted_for_model(&foreign), text::quoted_within(&foreign, 80)] {
        let inside = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).expect("quotes around it");
        is_shown(inside, false);
        assert!(!inside.contains(['"', '<', '>']) && !inside.ends_with('\\'), "{inside:?}");
        assert!(inside.chars().count() <= 301, "{inside:?}");
    }
    let name = text::name_for_model(&foreign, 80);
    assert!(name.starts_with('"') || !name.contains([' ', '"', ':', '<']), "{name:?} could be a sentence");
    let told = text::for_model(&foreign);
    is_shown(&told, true);
    assert!(!told.contains(['<', '>']), "{told:?}");
}

fn is_shown(text: &str, lines: bool) {
    let foul = text.chars().find(|c| {
        let code = u32::from(*c);
        let hides = matches!(code, 0xAD | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x2069 | 0xFE00..=0xFE0F | 0xFEFF)
            || matches!(code, 0xE0000..=0xE0FFF | 0x2028 | 0x2029);
        hides || (c.is_control() && !(lines && matches!(c, '\n' | '\t')))
    });
    assert_eq!(foul, None, "{text:?}");
}
