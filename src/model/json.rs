//! Strict reading of JSON that people write: configs and plans. Everything wrong with a text is collected with the place
//! where it stands, so that a person can mend all of it at once.
//!
//! [`parse`] refuses what other readers let pass or guess about (duplicate keys, a byte order mark, numbers out of range,
//! deep nesting). [`Node`] and [`Report`] walk the value: each step checks a type, a range or the known keys, and notes a
//! [`Problem`] with its JSON path instead of stopping. Files that cpw writes itself are read by serde alone.

use std::collections::HashSet;
use std::fmt;
use std::ops::RangeInclusive;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::base::span::{Limit, Span};
use crate::base::text::one_line;

/// The largest text that is read, in bytes.
pub const MAX_BYTES: usize = 8 << 20;

/// How deep arrays and objects may be nested.
pub const MAX_DEPTH: usize = 64;

/// A mistake in a text that a person wrote.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Problem {
    /// Where: a JSON path like `$.rules[0].tasks[1].run`; `line 3, column 7` where the text is not JSON.
    pub path: String,
    /// What is wrong there, without full stop.
    pub what: String,
    /// What would be right, if there is something to say.
    pub hint: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.what)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, " ({hint})"))
    }
}

impl std::error::Error for Problem {}

/// Where the walk collects what is wrong.
#[derive(Debug)]
pub struct Report {
    problems: Vec<Problem>,
    seen: HashSet<Problem>,
    /// How many more comparisons with similar names are affordable: a text with ten thousand wrong names must not take
    /// ten thousand times ten thousand comparisons.
    likeness: usize,
}

impl Default for Report {
    fn default() -> Self {
        Report { problems: Vec::new(), seen: HashSet::new(), likeness: 20_000 }
    }
}

impl Report {
    /// Notes a mistake at a path. The same mistake at the same place counts once.
    pub fn add(&mut self, path: impl Into<String>, what: impl Into<String>, hint: Option<String>) {
        let problem = Problem { path: path.into(), what: what.into(), hint };
        if self.seen.insert(problem.clone()) {
            self.problems.push(problem);
        }
    }

    /// Whether nothing is wrong so far.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// `value` if nothing was wrong, else all that was, in the order in which it was found.
    pub fn finish<T>(self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() { Ok(value) } else { Err(self.problems) }
    }

    /// All that was wrong, for callers that cannot go on.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// "did you mean …" for a name that is not among `known`, if one is near enough.
    pub fn did_you_mean<'k>(&mut self, name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
        let best = known
            .into_iter()
            .take(self.likeness)
            .inspect(|_| self.likeness -= 1)
            .filter_map(|k| distance(name, k).map(|d| (d, k)))
            .min_by_key(|(d, _)| *d);
        best.map(|(_, k)| format!("did you mean \"{}\"?", excerpt(k)))
    }
}

/// Edit distance with neighbours swapped as one step, if it is small against the length of the names; upper and lower
/// case are equal.
fn distance(a: &str, b: &str) -> Option<usize> {
    let a: Vec<char> = a.chars().take(65).flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().take(65).flat_map(char::to_lowercase).collect();
    let allowed = (a.len().max(b.len()) / 3).min(3);
    if a.len().abs_diff(b.len()) > allowed {
        return None;
    }
    let mut rows = [vec![0; b.len() + 1], vec![0; b.len() + 1], (0..=b.len()).collect::<Vec<_>>()];
    for i in 1..=a.len() {
        rows.rotate_left(1);
        rows[2][0] = i;
        for j in 1..=b.len() {
            let change = rows[1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = change.min(rows[1][j] + 1).min(rows[2][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[0][j - 2] + 1);
            }
            rows[2][j] = best;
        }
    }
    (rows[2][b.len()] <= allowed).then_some(rows[2][b.len()])
}

/// Foreign text inside a message.
pub fn excerpt(s: &str) -> String {
    one_line(s, 60)
}

/// Reads one JSON text strictly. On success the value is complete; every duplicate key is reported, a text that is not
/// JSON with its first mistake.
pub fn parse(bytes: &[u8]) -> Result<Value, Vec<Problem>> {
    let mut report = Report::default();
    let value = read(bytes, &mut report);
    report.finish(value.unwrap_or_default())
}

/// As [`parse`], for callers that go on to report what else is wrong; `None` if the text is not JSON at all.
pub fn read(bytes: &[u8], report: &mut Report) -> Option<Value> {
    if bytes.len() > MAX_BYTES {
        report.add("$", format!("is {} bytes long, more than {MAX_BYTES}", bytes.len()), None);
        return None;
    }
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        let hint = "save the file as UTF-8 without BOM".to_owned();
        report.add("line 1, column 1", "begins with a byte order mark", Some(hint));
        return None;
    }
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            let line = bytes[..e.valid_up_to()].split(|b| *b == b'\n').count();
            report.add(format!("line {line}"), "is not UTF-8", Some("save the file as UTF-8".into()));
            return None;
        }
    };
    if text.trim().is_empty() {
        report.add("$", "is empty", Some("the least that is valid: {\"version\": 1}".into()));
        return None;
    }
    let mut strict = Strict { path: Vec::new(), report };
    let mut reader = serde_json::Deserializer::from_str(text);
    match strict.deserialize(&mut reader).and_then(|v| reader.end().map(|()| v)) {
        Ok(value) => Some(value),
        Err(e) => {
            syntax(text, &e, report);
            None
        }
    }
}

fn syntax(text: &str, e: &serde_json::Error, report: &mut Report) {
    let line = text.split('\n').nth(e.line().saturating_sub(1)).unwrap_or_default();
    let before = line.get(..e.column().saturating_sub(1)).unwrap_or(line);
    let column = before.chars().count() + 1;
    let found = line[before.len()..].chars().next();
    let what = e.to_string();
    let what = what.rsplit_once(" at line ").map_or(what.as_str(), |(what, _)| what);
    let hint = match found {
        Some('/' | '#') => Some("JSON has no comments"),
        Some('\'') => Some("strings are written in double quotes"),
        Some('N' | 'I') => Some("numbers are written as 1 or 1.5; there is no NaN or Infinity"),
        _ => None,
    };
    report.add(format!("line {}, column {column}", e.line()), excerpt(what), hint.map(str::to_owned));
}

enum Step {
    Key(String),
    Index(usize),
}

/// Builds a value, keeping track of where it is.
struct Strict<'r> {
    path: Vec<Step>,
    report: &'r mut Report,
}

impl Strict<'_> {
    fn path(&self) -> String {
        let mut out = String::from("$");
        for step in &self.path {
            match step {
                Step::Key(key) => push_key(&mut out, key),
                Step::Index(i) => push_index(&mut out, *i),
            }
        }
        out
    }

    fn enter<E: serde::de::Error>(&mut self, step: Step) -> Result<(), E> {
        if self.path.len() >= MAX_DEPTH {
            return Err(E::custom(format_args!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.path.push(step);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for &mut Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &mut Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        self.enter(Step::Index(0))?;
        while let Some(v) = seq.next_element_seed(&mut *self)? {
            out.push(v);
            if let Some(Step::Index(i)) = self.path.last_mut() {
                *i = out.len();
            }
        }
        self.path.pop();
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            self.enter::<A::Error>(Step::Key(key.clone()))?;
            let value = map.next_value_seed(&mut *self)?;
            if out.contains_key(&key) {
                let path = self.path();
                self.report.add(path, "stands there twice", Some("keep one of the two".into()));
            }
            self.path.pop();
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

fn push_key(out: &mut String, key: &str) {
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_' || c == '$')
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'$'));
    if plain && key.len() <= 64 {
        out.push('.');
        out.push_str(key);
    } else {
        out.extend(["[", &Value::from(excerpt(key)).to_string(), "]"]);
    }
}

fn push_index(out: &mut String, i: usize) {
    out.extend(["[", &i.to_string(), "]"]);
}

/// A value and where it stands. Children borrow their parent, so that a path costs nothing until something is wrong.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    value: &'a Value,
    up: Option<(&'a Node<'a>, At<'a>)>,
}

#[derive(Debug, Clone, Copy)]
enum At<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Node<'a> {
    /// The whole text.
    pub fn root(value: &'a Value) -> Self {
        Node { value, up: None }
    }

    /// The value as it is.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// Its JSON path.
    pub fn path(&self) -> String {
        let Some((parent, at)) = &self.up else {
            return "$".to_owned();
        };
        let mut out = parent.path();
        match at {
            At::Key(key) => push_key(&mut out, key),
            At::Index(i) => push_index(&mut out, *i),
        }
        out
    }

    /// Notes a mistake here.
    pub fn wrong(&self, r: &mut Report, what: impl Into<String>) {
        r.add(self.path(), what, None);
    }

    /// Notes a mistake here, with what would be right.
    pub fn wrong_hint(&self, r: &mut Report, what: impl Into<String>, hint: impl Into<String>) {
        r.add(self.path(), what, Some(hint.into()));
    }

    fn wrong_type(&self, r: &mut Report, want: &str) {
        let is = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "an array",
            Value::Object(_) => "an object",
        };
        let hint = self.value.is_null().then(|| "leave the key out to get its default".to_owned());
        r.add(self.path(), format!("is {is}, must be {want}"), hint);
    }

    /// The child under `key`.
    pub fn get<'b>(&'b self, key: &'b str) -> Option<Node<'b>>
    where
        'a: 'b,
    {
        self.value.get(key).map(|value| Node { value, up: Some((self, At::Key(key))) })
    }

    /// Reads the child under `key` by `read`, if it is there.
    pub fn field<T>(
        &self,
        key: &str,
        r: &mut Report,
        read: impl FnOnce(&Node<'_>, &mut Report) -> Option<T>,
    ) -> Option<T> {
        self.get(key).and_then(|n| read(&n, r))
    }

    /// The children of an object, in order; nothing if it is none.
    pub fn entries<'b>(&'b self) -> impl Iterator<Item = (&'b str, Node<'b>)>
    where
        'a: 'b,
    {
        let map = self.value.as_object().into_iter().flatten();
        map.map(move |(key, value)| (key.as_str(), Node { value, up: Some((self, At::Key(key))) }))
    }

    /// Checks that it is an object.
    pub fn object(&self, r: &mut Report) -> bool {
        if !self.value.is_object() {
            self.wrong_type(r, "an object");
        }
        self.value.is_object()
    }

    /// Checks that it is an object with known keys only. `later` are keys that the format has and this version does not
    /// do yet: they are refused by name, because ignoring them would be a lie.
    pub fn keys(&self, r: &mut Report, known: &[&str], later: &[&str]) -> bool {
        if !self.object(r) {
            return false;
        }
        for (key, node) in self.entries() {
            if known.contains(&key) {
                continue;
            }
            if later.contains(&key) {
                node.unsupported(r);
                continue;
            }
            let hint =
                r.did_you_mean(key, known.iter().copied()).unwrap_or_else(|| format!("known: {}", known.join(", ")));
            node.wrong_hint(r, "is not a known key", hint);
        }
        true
    }

    /// Notes that this is part of the format, but not of this version.
    pub fn unsupported(&self, r: &mut Report) {
        self.wrong_hint(r, "is not supported by this version of cpw", "leave it out");
    }

    /// The elements of an array; nothing, and a mistake, if it is none.
    pub fn array<'b>(&'b self, r: &mut Report) -> impl Iterator<Item = Node<'b>> + use<'a, 'b>
    where
        'a: 'b,
    {
        if !self.value.is_array() {
            self.wrong_type(r, "an array");
        }
        let elements = self.value.as_array().into_iter().flatten().enumerate();
        elements.map(move |(i, value)| Node { value, up: Some((self, At::Index(i))) })
    }

    /// A string without NUL, which no program, file name or variable can hold.
    pub fn string(&self, r: &mut Report) -> Option<&'a str> {
        let Some(s) = self.value.as_str() else {
            self.wrong_type(r, "a string");
            return None;
        };
        if s.contains('\0') {
            self.wrong(r, "contains a NUL character");
            return None;
        }
        Some(s)
    }

    /// A string with something in it.
    pub fn text(&self, r: &mut Report) -> Option<&'a str> {
        let s = self.string(r)?;
        if s.trim().is_empty() {
            self.wrong(r, "is empty");
            return None;
        }
        Some(s)
    }

    /// An array of strings with something in them.
    pub fn texts(&self, r: &mut Report) -> Vec<String> {
        self.array(r).filter_map(|n| n.text(r).map(str::to_owned)).collect()
    }

    /// A whole number in a range.
    pub fn integer<T: TryFrom<i64> + fmt::Display>(&self, r: &mut Report, range: RangeInclusive<i64>) -> Option<T> {
        if !self.value.is_number() {
            self.wrong_type(r, &format!("a whole number from {} to {}", range.start(), range.end()));
            return None;
        }
        let n = self.value.as_i64().filter(|n| range.contains(n)).and_then(|n| T::try_from(n).ok());
        if n.is_none() {
            let is = excerpt(&self.value.to_string());
            self.wrong(r, format!("is {is}, must be a whole number from {} to {}", range.start(), range.end()));
        }
        n
    }

    /// A duration of at most `max`.
    pub fn span(&self, r: &mut Report, max: Option<Span>) -> Option<Span> {
        const FORMS: &str = "durations are written \"30s\", \"10m\", \"4h\"";
        let Some(s) = self.value.as_str() else {
            self.wrong_type(r, "a duration like \"30s\"");
            return None;
        };
        let Some(span) = Span::parse(s) else {
            self.wrong_hint(r, format!("\"{}\" is not a duration", excerpt(s)), FORMS);
            return None;
        };
        if let Some(max) = max.filter(|max| span > *max) {
            self.wrong(r, format!("is {span}, must be at most {max}"));
            return None;
        }
        Some(span)
    }

    /// One of several words.
    pub fn choice<T: Copy>(&self, r: &mut Report, words: &[(&str, T)]) -> Option<T> {
        let list = || words.iter().map(|(w, _)| format!("\"{w}\"")).collect::<Vec<_>>().join(", ");
        let Some(s) = self.value.as_str() else {
            self.wrong_type(r, &format!("one of {}", list()));
            return None;
        };
        let found = words.iter().find(|(w, _)| *w == s).map(|(_, v)| *v);
        if found.is_none() {
            let hint = r.did_you_mean(s, words.iter().map(|(w, _)| *w));
            r.add(self.path(), format!("is \"{}\", must be one of {}", excerpt(s), list()), hint);
        }
        found
    }
}

/// `true` or `false`.
pub fn boolean(n: &Node<'_>, r: &mut Report) -> Option<bool> {
    let b = n.value.as_bool();
    if b.is_none() {
        n.wrong_type(r, "true or false");
    }
    b
}

/// A number greater than 0.
pub fn positive(n: &Node<'_>, r: &mut Report) -> Option<f64> {
    let Some(number) = n.value.as_f64() else {
        n.wrong_type(r, "a number greater than 0");
        return None;
    };
    if number <= 0.0 {
        n.wrong(r, format!("is {number}, must be greater than 0"));
        return None;
    }
    Some(number)
}

/// A time limit: a duration greater than 0, or `"none"`.
pub fn limit(n: &Node<'_>, r: &mut Report) -> Option<Limit> {
    if n.value.as_str() == Some("none") {
        return Some(Limit(None));
    }
    let span = n.span(r, None)?;
    if span.as_ms() == 0 {
        n.wrong_hint(r, "is 0, must be longer", "\"none\" means no limit");
        return None;
    }
    Some(Limit(Some(span)))
}

/// A JSON path below `base`, for places that are not walked but computed.
pub fn path_of(base: &str, steps: &[(&str, Option<usize>)]) -> String {
    let mut out = base.to_owned();
    for (key, index) in steps {
        push_key(&mut out, key);
        if let Some(i) = index {
            push_index(&mut out, *i);
        }
    }
    out
}

/// Problems as lines for a terminal, each beginning with its place.
pub fn list(problems: &[Problem]) -> String {
    let mut out = String::new();
    for p in problems {
        out.extend(["  ", &one_line(&p.path, 200), ": ", &one_line(&p.what, 300), "\n"]);
        if let Some(hint) = &p.hint {
            out.extend(["      hint: ", &one_line(hint, 300), "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn first(text: &str) -> (String, String) {
        let p = parse(text.as_bytes()).unwrap_err().swap_remove(0);
        (p.path.clone(), p.to_string())
    }

    #[test]
    fn syntax_errors_name_line_and_column() {
        for (text, path, part) in [
            ("{\n  \"a\": 1,\n}", "line 3, column 1", "trailing comma"),
            ("{\"a\": NaN}", "line 1, column 7", "no NaN"),
            ("{\"é\": x}", "line 1, column 7", "expected value"),
            ("{\"a\": 1e999}", "line 1, column 11", "out of range"),
            ("// c\n{}", "line 1, column 1", "no comments"),
            ("{'a': 1}", "line 1, column 2", "double quotes"),
            ("{} {}", "line 1, column 4", "trailing characters"),
            ("\u{FEFF}{}", "line 1, column 1", "byte order mark"),
            ("", "$", "empty"),
            ("[1, 2", "line 1, column 5", "EOF"),
        ] {
            let (got, all) = first(text);
            assert_eq!(got, path, "{text}: {all}");
            assert!(all.contains(part), "{text}: {all}");
        }
        assert_eq!(parse(b"{\n\"a\": \"\xff\"}").unwrap_err()[0].path, "line 2");
        assert_eq!(parse(&vec![b' '; MAX_BYTES + 1]).unwrap_err()[0].path, "$");
    }

    #[test]
    fn every_duplicate_key_is_reported_with_its_path() {
        let text = br#"{"a": 1, "b": [{"x": 1}, {"x": 1, "x": 2}], "a": 2, "c d": {"y y": 1, "y y": 2}}"#;
        let paths: Vec<String> = parse(text).unwrap_err().into_iter().map(|p| p.path).collect();
        assert_eq!(paths, ["$.b[1].x", "$.a", "$[\"c d\"][\"y y\"]"]);
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
        assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
        assert!(first(&nested(MAX_DEPTH + 1)).1.contains("deep"));
        assert!(parse(nested(1_000_000).as_bytes()).is_err());
    }

    #[test]
    fn near_names_are_suggested() {
        let mut r = Report::default();
        for (name, want) in [
            ("taks", Some("tasks")),
            ("Needs", Some("needs")),
            ("tmeout", Some("timeout")),
            ("rn", Some("run")),
            ("x", None),
            ("zebra", None),
        ] {
            let got = r.did_you_mean(name, ["y", "tasks", "needs", "timeout", "run"]);
            assert_eq!(got, want.map(|w| format!("did you mean \"{w}\"?")), "{name}");
        }
    }

    #[test]
    fn a_walk_collects_all_mistakes() {
        let value =
            json!({"a": "x", "b": [1, "", null], "w": 1, "on": "of", "t": "5 parsecs", "later": 1, "wroong": 1});
        let (root, mut r) = (Node::root(&value), Report::default());
        root.keys(&mut r, &["a", "b", "w", "on", "t", "wrong"], &["later"]);
        root.field("a", &mut r, |n, r| n.integer::<u32>(r, 1..=9));
        root.field("b", &mut r, |n, r| Some(n.texts(r)));
        root.field("w", &mut r, |n, r| n.integer::<u32>(r, 2..=9));
        root.field("on", &mut r, |n, r| n.choice(r, &[("on", 1), ("off", 2)]));
        root.field("t", &mut r, limit);
        let problems = r.finish(()).unwrap_err();
        let paths: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(paths, ["$.later", "$.wroong", "$.a", "$.b[0]", "$.b[1]", "$.b[2]", "$.w", "$.on", "$.t"]);
        assert_eq!(problems[1].hint.as_deref(), Some("did you mean \"wrong\"?"));
        assert!(list(&problems).lines().count() >= problems.len());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _outcome: bool = parse(&bytes).is_ok();
        }

        #[test]
        fn near_json_never_panics(text in "[\\[\\]{}\",:0-9eE.+/é\\\\nulltrue -]{0,60}") {
            if let Ok(value) = parse(text.as_bytes()) {
                prop_assert_eq!(value, serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }
}
