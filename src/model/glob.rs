//! Globs for claims, for files on disk and for the text of tool inputs: `*`, `**`, `?`, `[a-z]`, `[!a]`, `{a,b}` and `\`
//! before a character that is meant as it is. A pattern becomes a small automaton that is simulated, so that matching
//! takes at most pattern length times text length steps, whatever the pattern; nothing backtracks.
//!
//! Two readings: in a [`path`](Glob::path), `*`, `?` and `[…]` do not match `/` and `**` does; in a
//! [`text`](Glob::text), `/` is a character like others, so that `*report.md` matches an absolute path.

use std::fmt;

/// The longest pattern, in bytes: the longest path with every character escaped.
pub const MAX_PATTERN: usize = 8192;

/// How deep `{…}` may be nested.
const MAX_DEPTH: usize = 16;

/// Why a text is not a glob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadGlob {
    /// The empty pattern.
    Empty,
    /// More than [`MAX_PATTERN`] bytes.
    TooLong,
    /// A `[` without `]`.
    OpenClass,
    /// A range like `[z-a]`.
    Range,
    /// A `{` without `}`.
    OpenBrace,
    /// `{…}` nested too deep.
    TooDeep,
    /// A `\` at the end.
    OpenEscape,
}

impl fmt::Display for BadGlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadGlob::Empty => "is empty",
            BadGlob::TooLong => "is longer than 8192 bytes",
            BadGlob::OpenClass => "has a '[' without ']' (a plain '[' is written '\\[')",
            BadGlob::Range => "has a range '[b-a]' whose end comes before its beginning",
            BadGlob::OpenBrace => "has a '{' without '}' (a plain '{' is written '\\{')",
            BadGlob::TooDeep => "nests '{…}' too deep",
            BadGlob::OpenEscape => "ends with a '\\' that nothing follows",
        })
    }
}

impl std::error::Error for BadGlob {}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    Char(char),
    /// Any character but `/`.
    Segment,
    /// Any character.
    Any,
    /// Any of these ranges, or none of them; `true` in `slash` lets it match `/`.
    Class {
        negated: bool,
        slash: bool,
        ranges: Vec<(char, char)>,
    },
    /// Go on at both.
    Split(usize, usize),
    Jump(usize),
    End,
}

/// A pattern, ready to match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    ops: Vec<Op>,
}

impl Glob {
    /// Reads a pattern for paths: only `**` crosses `/`; `**/` also matches nothing.
    pub fn path(pattern: &str) -> Result<Glob, BadGlob> {
        Glob::compile(pattern, false)
    }

    /// Reads a pattern for text: `*` matches anything.
    pub fn text(pattern: &str) -> Result<Glob, BadGlob> {
        Glob::compile(pattern, true)
    }

    fn compile(pattern: &str, cross: bool) -> Result<Glob, BadGlob> {
        if pattern.is_empty() {
            return Err(BadGlob::Empty);
        }
        if pattern.len() > MAX_PATTERN {
            return Err(BadGlob::TooLong);
        }
        let chars: Vec<char> = pattern.chars().collect();
        let mut c = Compiler { chars: &chars, at: 0, cross, ops: Vec::with_capacity(chars.len() + 1) };
        c.sequence(0)?;
        c.ops.push(Op::End);
        Ok(Glob { ops: c.ops })
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let mut now = States::new(self.ops.len());
        let mut next = States::new(self.ops.len());
        now.add(&self.ops, 0);
        for c in text.chars() {
            for &at in &now.list {
                let hit = match &self.ops[at] {
                    Op::Char(want) => *want == c,
                    Op::Segment => c != '/',
                    Op::Any => true,
                    Op::Class { negated, slash, ranges } => {
                        (*slash || c != '/') && ranges.iter().any(|(a, b)| (*a..=*b).contains(&c)) != *negated
                    }
                    Op::Split(..) | Op::Jump(_) | Op::End => false,
                };
                if hit {
                    next.add(&self.ops, at + 1);
                }
            }
            std::mem::swap(&mut now, &mut next);
            next.clear();
            if now.list.is_empty() {
                return false;
            }
        }
        now.list.iter().any(|at| self.ops[*at] == Op::End)
    }
}

/// The set of places in the automaton that are alive.
struct States {
    list: Vec<usize>,
    member: Vec<bool>,
    todo: Vec<usize>,
}

impl States {
    fn new(len: usize) -> Self {
        States { list: Vec::new(), member: vec![false; len], todo: Vec::new() }
    }

    fn add(&mut self, ops: &[Op], at: usize) {
        self.todo.push(at);
        while let Some(at) = self.todo.pop() {
            if std::mem::replace(&mut self.member[at], true) {
                continue;
            }
            match ops[at] {
                Op::Split(a, b) => self.todo.extend([a, b]),
                Op::Jump(a) => self.todo.push(a),
                _ => {}
            }
            self.list.push(at);
        }
    }

    fn clear(&mut self) {
        for at in self.list.drain(..) {
            self.member[at] = false;
        }
    }
}

struct Compiler<'a> {
    chars: &'a [char],
    at: usize,
    cross: bool,
    ops: Vec<Op>,
}

impl Compiler<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    /// Up to the end of the pattern, or inside braces up to `,` or `}`.
    fn sequence(&mut self, depth: usize) -> Result<(), BadGlob> {
        while let Some(c) = self.peek(0) {
            match c {
                ',' | '}' if depth > 0 => return Ok(()),
                '*' => self.star(),
                '?' => {
                    self.at += 1;
                    self.ops.push(if self.cross { Op::Any } else { Op::Segment });
                }
                '[' => self.class()?,
                '{' => self.braces(depth + 1)?,
                '\\' => {
                    let literal = self.peek(1).ok_or(BadGlob::OpenEscape)?;
                    self.at += 2;
                    self.ops.push(Op::Char(literal));
                }
                c => {
                    self.at += 1;
                    self.ops.push(Op::Char(c));
                }
            }
        }
        Ok(())
    }

    fn star(&mut self) {
        let begin = self.at;
        while self.peek(0) == Some('*') {
            self.at += 1;
        }
        let double = self.at - begin >= 2;
        let at_start = begin == 0 || matches!(self.chars[begin - 1], '/' | '{' | ',');
        let start = self.ops.len();
        if double && !self.cross && at_start && self.peek(0) == Some('/') {
            // `**/`: any number of whole folders, also none.
            self.at += 1;
            self.ops.extend([Op::Split(start + 1, start + 5), Op::Split(start + 2, start + 4), Op::Any]);
            self.ops.extend([Op::Jump(start + 1), Op::Char('/')]);
        } else {
            let any = if double || self.cross { Op::Any } else { Op::Segment };
            self.ops.extend([Op::Split(start + 1, start + 3), any, Op::Jump(start)]);
        }
    }

    fn class(&mut self) -> Result<(), BadGlob> {
        self.at += 1;
        let negated = matches!(self.peek(0), Some('!' | '^'));
        self.at += usize::from(negated);
        let mut ranges = Vec::new();
        loop {
            let mut low = self.peek(0).ok_or(BadGlob::OpenClass)?;
            if low == ']' && !ranges.is_empty() {
                self.at += 1;
                break;
            }
            if low == '\\' {
                self.at += 1;
                low = self.peek(0).ok_or(BadGlob::OpenEscape)?;
            }
            self.at += 1;
            let mut high = low;
            if self.peek(0) == Some('-') && self.peek(1).is_some_and(|c| c != ']') {
                self.at += 1;
                high = self.peek(0).ok_or(BadGlob::OpenClass)?;
                if high == '\\' {
                    self.at += 1;
                    high = self.peek(0).ok_or(BadGlob::OpenEscape)?;
                }
                self.at += 1;
            }
            if high < low {
                return Err(BadGlob::Range);
            }
            ranges.push((low, high));
        }
        self.ops.push(Op::Class { negated, slash: self.cross, ranges });
        Ok(())
    }

    fn braces(&mut self, depth: usize) -> Result<(), BadGlob> {
        if depth > MAX_DEPTH {
            return Err(BadGlob::TooDeep);
        }
        let mut exits = Vec::new();
        loop {
            self.at += 1;
            let split = self.ops.len();
            self.ops.push(Op::End);
            self.sequence(depth)?;
            let more = match self.peek(0) {
                Some(',') => true,
                Some(_) => false,
                None => return Err(BadGlob::OpenBrace),
            };
            exits.push(self.ops.len());
            self.ops.push(Op::End);
            let after = self.ops.len();
            self.ops[split] = if more { Op::Split(split + 1, after) } else { Op::Jump(split + 1) };
            if !more {
                self.at += 1;
                for exit in exits {
                    self.ops[exit] = Op::Jump(after);
                }
                return Ok(());
            }
        }
    }
}

/// Whether `s` has a character that a glob reads specially.
pub fn has_meta(s: &str) -> bool {
    s.bytes().any(|b| matches!(b, b'*' | b'?' | b'[' | b'{' | b'\\'))
}

/// A glob that matches exactly `s`.
pub fn escape(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '{' | '}' | ',' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// The one text that a glob without wildcards matches; `None` if it can match several.
pub fn literal(pattern: &str) -> Option<String> {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '*' | '?' | '[' | '{' => return None,
            '\\' => out.push(chars.next()?),
            c => out.push(c),
        }
    }
    Some(out)
}

/// The folder below which everything lies that a path glob can match: `src` for `src/**/*.rs`, empty for `*.rs`. A search
/// on disk begins there.
pub fn base(pattern: &str) -> &str {
    let plain = pattern.find(['*', '?', '[', '{', '\\']).map_or(pattern, |at| &pattern[..at]);
    plain.rfind('/').map_or("", |at| &plain[..at.max(usize::from(plain.starts_with('/')))])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn path(pattern: &str, text: &str) -> bool {
        Glob::path(pattern).unwrap().matches(text)
    }

    #[test]
    fn paths_keep_to_their_folder() {
        for (pattern, yes, no) in [
            ("*.rs", &["a.rs", ".rs"][..], &["a/b.rs", "a.rsx", ""][..]),
            ("**/*.rs", &["a.rs", "a/b.rs", "a/b/c.rs"], &["a.r", "a/b"]),
            ("src/**", &["src/a", "src/a/b"], &["src", "srcx/a"]),
            ("src/**/t.rs", &["src/t.rs", "src/a/b/t.rs"], &["src/at.rs", "t.rs"]),
            ("a?c", &["abc", "aéc"], &["a/c", "ac"]),
            ("[a-c][!0-9]", &["bx", "c-"], &["d1", "b5", "b/"]),
            ("{api,db}.py", &["api.py", "db.py"], &["ui.py", "{api,db}.py"]),
            ("{a,b{c,d}}{,x}", &["a", "ax", "bc", "bdx"], &["b", "x"]),
            ("\\*\\[", &["*["], &["a["]),
            ("[]x]", &["]", "x"], &["a"]),
            ("{**/,x/}y", &["y", "a/y", "x/y"], &["xy"]),
        ] {
            for t in yes {
                assert!(path(pattern, t), "{pattern} should match {t}");
            }
            for t in no {
                assert!(!path(pattern, t), "{pattern} should not match {t}");
            }
        }
    }

    #[test]
    fn text_crosses_folders() {
        let g = Glob::text("*report.md").unwrap();
        assert!(g.matches("/home/u/p/report.md") && g.matches("report.md") && !g.matches("report.mdx"));
        assert!(Glob::text("a?b").unwrap().matches("a/b"));
    }

    #[test]
    fn broken_patterns_say_why() {
        let long = "x".repeat(MAX_PATTERN + 1);
        let deep = "{".repeat(40);
        for (pattern, why) in [
            ("", BadGlob::Empty),
            ("[a", BadGlob::OpenClass),
            ("[]", BadGlob::OpenClass),
            ("[z-a]", BadGlob::Range),
            ("{a,b", BadGlob::OpenBrace),
            ("a\\", BadGlob::OpenEscape),
            (&deep, BadGlob::TooDeep),
            (&long, BadGlob::TooLong),
        ] {
            assert_eq!(Glob::path(pattern), Err(why), "{pattern}");
        }
    }

    #[test]
    fn the_base_is_the_last_plain_folder() {
        for (pattern, want) in
            [("src/**/*.rs", "src"), ("*.rs", ""), ("a/b/c?.rs", "a/b"), ("/x*", "/"), ("/a/b*", "/a"), ("a/b.rs", "a")]
        {
            assert_eq!(base(pattern), want, "{pattern}");
        }
    }

    /// Steps are bounded by lengths: a pattern that makes backtracking matchers take ages answers at once.
    #[test]
    fn hostile_patterns_are_quick() {
        let pattern = "*a".repeat(200) + "{b,c}";
        let text = "a".repeat(4000);
        assert!(!Glob::text(&pattern).unwrap().matches(&text));
        assert!(Glob::text(&pattern).unwrap().matches(&(text + "b")));
    }

    /// The obvious matcher, for patterns without braces and classes.
    fn naive(p: &[char], t: &[char], at_start: bool) -> bool {
        match p {
            [] => t.is_empty(),
            ['*', '*', rest @ ..] => {
                if at_start && rest.first() == Some(&'/') {
                    naive(&rest[1..], t, true)
                        || (0..t.len()).any(|i| t[i] == '/' && naive(&rest[1..], &t[i + 1..], true))
                } else {
                    (0..=t.len()).any(|i| naive(rest, &t[i..], false))
                }
            }
            ['*', rest @ ..] => {
                let end = t.iter().position(|c| *c == '/').unwrap_or(t.len());
                (0..=end).any(|i| naive(rest, &t[i..], false))
            }
            ['?', rest @ ..] => t.first().is_some_and(|c| *c != '/') && naive(rest, &t[1..], false),
            [c, rest @ ..] => t.first() == Some(c) && naive(rest, &t[1..], *c == '/'),
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_obvious_matcher(pattern in "[ab/*?]{1,10}", text in "[ab/]{0,12}") {
            prop_assume!(!pattern.contains("***"));
            let (p, t): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
            prop_assert_eq!(path(&pattern, &text), naive(&p, &t, true));
        }

        #[test]
        fn braces_are_the_union(a in "[ab*?]{1,4}", b in "[ab/]{1,4}", c in "[ab]{0,3}", text in "[ab/]{0,8}") {
            let both = path(&format!("{{{a},{b}}}{c}"), &text);
            prop_assert_eq!(both, path(&format!("{a}{c}"), &text) || path(&format!("{b}{c}"), &text));
        }

        #[test]
        fn an_escaped_text_matches_itself_only(s in ".{1,60}", other in ".{0,20}") {
            prop_assume!(escape(&s).len() <= MAX_PATTERN);
            prop_assert!(path(&escape(&s), &s));
            prop_assert_eq!(path(&escape(&s), &other), s == other);
            prop_assert_eq!(literal(&escape(&s)), Some(s));
        }

        #[test]
        fn nothing_panics(pattern in "\\PC{0,40}", text in "\\PC{0,40}") {
            for glob in [Glob::path(&pattern), Glob::text(&pattern)].into_iter().flatten() {
                let _matched: bool = glob.matches(&text);
            }
        }
    }
}
