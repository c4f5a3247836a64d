//! Cutting JSON into its values without reading them. A hook's payload can be a megabyte of which the hook looks at a few
//! short fields; this finds where each value ends, and whoever uses one has it parsed in full.
//!
//! What is cut is balanced, not valid: a value that is never used can hold anything between its quotes and brackets.

use std::ops::Range;

/// A place in a JSON text, between two values of it. Everything returns `None` where the text is cut short or is not JSON.
#[derive(Debug)]
pub struct Cutter<'t> {
    text: &'t [u8],
    at: usize,
}

impl<'t> Cutter<'t> {
    /// At the first value of `text`.
    pub fn new(text: &'t [u8]) -> Cutter<'t> {
        let mut cutter = Cutter { text, at: 0 };
        cutter.skip_space();
        cutter
    }

    /// Whether the next value is an object.
    pub fn at_object(&self) -> bool {
        self.next() == Some(b'{')
    }

    /// Whether nothing is left.
    pub fn at_end(&self) -> bool {
        self.at == self.text.len()
    }

    /// Goes through the object that is the next value. `each` gets where a field's name stands, without its quotes and not
    /// unescaped, and has to pass the field's value.
    pub fn object(&mut self, mut each: impl FnMut(&mut Self, Range<usize>) -> Option<()>) -> Option<()> {
        self.pass(b'{')?;
        if self.pass(b'}').is_some() {
            return Some(());
        }
        loop {
            let begin = self.at + 1;
            if self.next() != Some(b'"') {
                return None;
            }
            let end = string_end(self.text, begin)?;
            self.at = end + 1;
            self.skip_space();
            self.pass(b':')?;
            each(self, begin..end)?;
            if self.pass(b',').is_none() {
                return self.pass(b'}');
            }
        }
    }

    /// Passes the next value. Returns where it stands.
    pub fn value(&mut self) -> Option<Range<usize>> {
        let begin = self.at;
        let mut depth = 0_usize;
        loop {
            match self.next()? {
                b'"' => self.at = string_end(self.text, self.at + 1)? + 1,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                    continue;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                b',' | b':' | b' ' | b'\n' | b'\r' | b'\t' if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                _ => {
                    let in_word = |b: &&u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.');
                    let length = self.text[self.at..].iter().take_while(in_word).count();
                    if length == 0 {
                        return None;
                    }
                    self.at += length;
                }
            }
            if depth == 0 {
                let end = self.at;
                self.skip_space();
                return Some(begin..end);
            }
        }
    }

    fn next(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn pass(&mut self, sign: u8) -> Option<()> {
        if self.next()? != sign {
            return None;
        }
        self.at += 1;
        self.skip_space();
        Some(())
    }

    fn skip_space(&mut self) {
        while matches!(self.next(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }
}

/// Where the quote stands that ends the string whose first character is at `at`.
pub fn string_end(text: &[u8], mut at: usize) -> Option<usize> {
    loop {
        // Eight characters at a time: in source code, which tools are given, the next escape is rarely far.
        while let Some(eight) = text.get(at..).and_then(|rest| rest.first_chunk()) {
            let word = u64::from_le_bytes(*eight);
            let special = zeros(word ^ (ONES * u64::from(b'"'))) | zeros(word ^ (ONES * u64::from(b'\\')));
            if special != 0 {
                at += special.trailing_zeros() as usize / 8;
                break;
            }
            at += 8;
        }
        match text.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

const ONES: u64 = 0x0101_0101_0101_0101;

/// A word of which the lowest bit that is set lies in the first byte of `word` that is zero; zero if there is none.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & (ONES << 7)
}

/// Where the next line feed stands, from `at` on.
pub fn line_end(text: &[u8], mut at: usize) -> Option<usize> {
    // The compiler makes vector instructions of a loop of fixed length without an early end, and asks for no more than
    // every processor of the target has.
    while let Some(step) = text.get(at..).and_then(|rest| rest.first_chunk::<32>()) {
        if step.iter().fold(0, |any, b| any | u8::from(*b == b'\n')) != 0 {
            break;
        }
        at += 32;
    }
    text.get(at..)?.iter().position(|b| *b == b'\n').map(|more| at + more)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    /// Name and value of each field of the object that `text` is, as they stand there.
    fn fields(text: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
        let (mut found, mut cutter) = (Vec::new(), Cutter::new(text));
        cutter.object(|cutter, name| {
            found.push((&text[name], &text[cutter.value()?]));
            Some(())
        })?;
        cutter.at_end().then_some(found)
    }

    /// The same, read by serde: it must stand in the same places.
    fn read(text: &[u8]) -> Option<Vec<(String, Value)>> {
        let unquoted = |name: &[u8]| serde_json::from_slice(&[b"\"", name, b"\""].concat()).ok();
        fields(text)?.into_iter().map(|(n, v)| Some((unquoted(n)?, serde_json::from_slice(v).ok()?))).collect()
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            "[\"\\\\{}\\[\\],:a-zä\n\u{1}]{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::vec(("[\"\\\\a-z]{0,12}", inner), 0..5)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_object_is_cut_where_its_values_end(
            object in proptest::collection::vec(("[\"\\\\a-z]{0,12}", value()), 0..6),
            pretty in any::<bool>(),
        ) {
            let object: Map<String, Value> = object.into_iter().collect();
            let text = if pretty { serde_json::to_vec_pretty(&object) } else { serde_json::to_vec(&object) }.unwrap();
            prop_assert_eq!(read(&text).unwrap(), object.into_iter().collect::<Vec<_>>());
            for end in 0..text.len() {
                prop_assert_eq!(fields(&text[..end]), None, "cut at {}", end);
            }
        }

        #[test]
        fn whatever_it_is_given_it_comes_back(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            fields(&text);
            fields(&[b"{\"a\":", text.as_slice()].concat());
        }

        #[test]
        fn what_serde_refuses_is_never_taken_for_more_than_it_is(text in "[{}\\[\\]\",:\\\\0-9a ]{0,24}") {
            let text = format!("{{\"a\":{text}");
            if let Ok(object) = serde_json::from_str::<Map<String, Value>>(&text)
                && object.len() == fields(text.as_bytes()).map_or(0, |f| f.len())
            {
                prop_assert_eq!(read(text.as_bytes()).unwrap(), object.into_iter().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn a_line_ends_where_it_ends() {
        for length in 0..100 {
            for end in 0..length {
                let mut text = vec![b'x'; length];
                (text[end], text[length - 1]) = (b'\n', b'\n');
                for at in 0..=end {
                    assert_eq!(line_end(&text, at), Some(end));
                }
                assert_eq!(line_end(&text[..end], 0), None);
            }
        }
    }

    #[test]
    fn what_is_no_object_or_goes_on_behind_it_is_refused() {
        for odd in [
            "",
            "null",
            "[]",
            "\"a\"",
            "{",
            "{}x",
            "{} {}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":1 2}",
        ] {
            assert_eq!(fields(odd.as_bytes()), None, "{odd}");
        }
        assert_eq!(fields(b" { } \n"), Some(Vec::new()));
        assert_eq!(fields(b"{\"a\": [1, {\"b\": \"]\\\"\"}] , \"c\":-1.5e+3}\n").unwrap().len(), 2);
    }
}
