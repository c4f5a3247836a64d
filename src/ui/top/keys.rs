//! Bytes from a terminal's keyboard as keys. Read here and not by a library: half a sequence, which a slow line sends, must
//! not hold the program up, a keyboard that has gone must not keep it busy, and what is pasted is nobody's wish.

/// A key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Arrow up.
    Up,
    /// Arrow down.
    Down,
    /// Arrow left.
    Left,
    /// Arrow right.
    Right,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the beginning.
    Home,
    /// To the end.
    End,
    /// Tab.
    Tab,
    /// Shift and Tab.
    BackTab,
    /// Enter.
    Enter,
    /// Esc.
    Escape,
    /// Backspace.
    Backspace,
    /// A letter with Ctrl.
    Ctrl(char),
    /// A character.
    Char(char),
}

/// The longest escape sequence that is waited for, in bytes.
const LONGEST: usize = 32;

/// What was typed and is not read yet.
#[derive(Debug, Default)]
pub struct Keys {
    bytes: Vec<u8>,
    pasting: bool,
}

enum Parsed {
    /// So many bytes are a key, or nothing that is known here.
    Used(usize, Option<Key>),
    /// Something is pasted from here on, or no longer.
    Paste(usize, bool),
    /// More has to come.
    More,
}

impl Keys {
    /// Takes in what was read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Whether what was read means something else if nothing follows soon: an Esc alone is the key then.
    pub fn is_pending(&self) -> bool {
        !self.bytes.is_empty() && !self.pasting
    }

    /// Nothing has followed: what is left is what was typed. The end of what is pasted may still come in pieces.
    pub fn settle(&mut self) -> Option<Key> {
        if self.pasting {
            return None;
        }
        let escape = self.bytes.first() == Some(&0x1b);
        self.bytes.clear();
        escape.then_some(Key::Escape)
    }
}

impl Iterator for Keys {
    type Item = Key;

    fn next(&mut self) -> Option<Key> {
        loop {
            match parse(&self.bytes) {
                Parsed::More => return None,
                Parsed::Paste(used, pasting) => {
                    self.bytes.drain(..used);
                    self.pasting = pasting;
                }
                Parsed::Used(used, key) => {
                    self.bytes.drain(..used);
                    // A terminal takes control characters out of what is pasted: whose end was lost, it ends with Ctrl-C.
                    self.pasting &= key != Some(Key::Ctrl('c'));
                    if let Some(key) = key.filter(|_| !self.pasting) {
                        return Some(key);
                    }
                }
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Parsed {
    let key = |key| Parsed::Used(1, Some(key));
    match bytes {
        [] | [0x1b] | [0x1b, b'O'] => Parsed::More,
        [0x1b, b'[', rest @ ..] => control(rest),
        [0x1b, b'O', last, ..] => Parsed::Used(3, named(*last)),
        [0x1b, ..] => key(Key::Escape),
        [b'\r' | b'\n', ..] => key(Key::Enter),
        [b'\t', ..] => key(Key::Tab),
        [0x08 | 0x7f, ..] => key(Key::Backspace),
        [n @ 1..=26, ..] => key(Key::Ctrl(char::from(n + 0x60))),
        [0..=31, ..] => Parsed::Used(1, None),
        [c @ 32..=126, ..] => key(Key::Char(char::from(*c))),
        [first, ..] => character(bytes, *first),
    }
}

/// What stands behind `ESC [`.
fn control(rest: &[u8]) -> Parsed {
    let Some(end) = rest.iter().position(|b| !(0x20..=0x3f).contains(b)) else {
        return if rest.len() < LONGEST { Parsed::More } else { Parsed::Used(rest.len() + 2, None) };
    };
    let used = end + 3;
    let number: &[u8] = rest[..end].split(|b| *b == b';').next().unwrap_or_default();
    match (rest[end], number) {
        (b'~', b"200") => Parsed::Paste(used, true),
        (b'~', b"201") => Parsed::Paste(used, false),
        (b'~', b"1" | b"7") => Parsed::Used(used, Some(Key::Home)),
        (b'~', b"4" | b"8") => Parsed::Used(used, Some(Key::End)),
        (b'~', b"5") => Parsed::Used(used, Some(Key::PageUp)),
        (b'~', b"6") => Parsed::Used(used, Some(Key::PageDown)),
        (last, _) => Parsed::Used(used, named(last)),
    }
}

fn named(last: u8) -> Option<Key> {
    Some(match last {
        b'A' => Key::Up,
        b'B' => Key::Down,
        b'C' => Key::Right,
        b'D' => Key::Left,
        b'H' => Key::Home,
        b'F' => Key::End,
        b'Z' => Key::BackTab,
        b'M' => Key::Enter,
        _ => return None,
    })
}

/// A character of more than one byte.
fn character(bytes: &[u8], first: u8) -> Parsed {
    let length = match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => return Parsed::Used(1, None),
    };
    match bytes.get(..length) {
        Some(whole) => match std::str::from_utf8(whole).ok().and_then(|s| s.chars().next()) {
            Some(c) => Parsed::Used(length, Some(Key::Char(c))),
            None => Parsed::Used(1, None),
        },
        None if bytes[1..].iter().all(|b| (0x80..0xc0).contains(b)) => Parsed::More,
        None => Parsed::Used(1, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(bytes: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        keys.feed(bytes);
        keys.by_ref().collect()
    }

    #[test]
    fn what_is_pasted_is_no_key_and_ends_however_its_end_comes() {
        assert_eq!(typed(b"a\x1b[200~cy\rq\x1b[201~b"), [Key::Char('a'), Key::Char('b')]);
        let mut keys = Keys::default();
        for piece in [&b"\x1b[200~abc\x1b[20"[..], b"1~", b"q"] {
            keys.feed(piece);
            let key = keys.next();
            assert_eq!(key, (piece == b"q").then_some(Key::Char('q')), "{piece:?}");
            assert_eq!(keys.settle(), None, "{piece:?}");
        }
        assert_eq!(typed(b"\x1b[200~its end is lost\x03"), [Key::Ctrl('c')]);
    }

    #[test]
    fn keys_of_every_kind_are_read() {
        assert_eq!(
            typed(b"\x1b[A\x1bOB\x1b[1;5C\x1b[D\x1b[5~\x1b[6~\x1b[H\x1b[4~\x1b[Z\tq\r\x7f\x03"),
            [
                Key::Up,
                Key::Down,
                Key::Right,
                Key::Left,
                Key::PageUp,
                Key::PageDown,
                Key::Home,
                Key::End,
                Key::BackTab,
                Key::Tab,
                Key::Char('q'),
                Key::Enter,
                Key::Backspace,
                Key::Ctrl('c'),
            ]
        );
        assert_eq!(typed("é漢".as_bytes()), [Key::Char('é'), Key::Char('漢')]);
        assert_eq!(typed(b"\xff\xc3(x"), [Key::Char('('), Key::Char('x')], "what is no text is nothing");
    }

    #[test]
    fn half_a_sequence_waits_and_an_escape_alone_is_the_key() {
        let mut keys = Keys::default();
        keys.feed(b"\x1b");
        assert_eq!(keys.next(), None);
        assert!(keys.is_pending());
        keys.feed(b"[");
        assert_eq!(keys.next(), None);
        keys.feed(b"A\xe6\xbc");
        assert_eq!((keys.next(), keys.next()), (Some(Key::Up), None));
        keys.feed(b"\xa2");
        assert_eq!(keys.next(), Some(Key::Char('漢')));
        keys.feed(b"\x1b");
        assert_eq!((keys.next(), keys.settle(), keys.is_pending()), (None, Some(Key::Escape), false));
        keys.feed(&[b"\x1b[".as_slice(), &[b'1'; 100]].concat());
        assert_eq!((keys.next(), keys.is_pending()), (None, false), "nobody waits for ever");
    }

    #[test]
    fn what_is_pasted_is_nobodys_wish() {
        assert_eq!(typed(b"j\x1b[200~cy\rq\x1b[201~k"), [Key::Char('j'), Key::Char('k')]);
    }
}
