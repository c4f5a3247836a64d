//! Which tokens of a prompt could name files.

use std::collections::HashSet;

/// The longest token that can name a file, in bytes.
const LONGEST: usize = 4096;

/// The mentions in the own words and in what stood alone in quotation marks or inline code, ordered by place.
pub(super) fn mentions(own: &str, quoted: Vec<(usize, String)>) -> Vec<String> {
    let mut found: Vec<(usize, String)> = Vec::new();
    for (at, text) in quoted {
        if let Some(path) = alone(&text) {
            found.push((at, path));
        }
    }
    let from = found.len();
    for token in own.split(splits) {
        if !token.contains(['.', '/']) {
            continue;
        }
        let at = token.as_ptr() as usize - own.as_ptr() as usize;
        for part in token.split("](") {
            if let Some(path) = path(part) {
                found.push((at, path.to_owned()));
            }
        }
        for run in token.split(is_cjk).filter(|run| run.len() < token.len()) {
            if let Some(path) = path(run) {
                found.push((at, path.to_owned()));
            }
        }
    }
    if from > 0 {
        found.sort_by_key(|(at, _)| *at);
    }
    let mut seen = HashSet::new();
    found.into_iter().map(|(_, path)| path).filter(|path| seen.insert(path.clone())).collect()
}

fn splits(c: char) -> bool {
    c.is_whitespace()
        || matches!(
            c,
            ',' | ';'
                | '&'
                | '|'
                | '，'
                | '、'
                | '；'
                | '。'
                | '：'
                | '！'
                | '？'
                | '（'
                | '）'
                | '"'
                | '“'
                | '”'
                | '`'
        )
}

/// Letters of scripts that put no spaces between words; a file name may contain them, or they may surround it.
fn is_cjk(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30FF}' | '\u{3400}'..='\u{9FFF}' | '\u{AC00}'..='\u{D7AF}' | '\u{F900}'..='\u{FAFF}')
}

/// The path in a token of running text.
fn path(token: &str) -> Option<&str> {
    if token.len() > LONGEST {
        return None;
    }
    let mut s = token;
    // Each turn takes off one layer; nobody wraps a file in more.
    for _ in 0..6 {
        let before = s.len();
        s = s.trim_end_matches(['.', ',', ':', ';', '!', '?', '…', '*', '~', '\'', '’', '>', '"']);
        s = s.trim_start_matches(['*', '@', '<', '\'', '‘', '→', '-', '=', ':', '"']);
        s = s.strip_suffix("'s").or_else(|| s.strip_suffix("’s")).unwrap_or(s);
        for (open, close) in [('(', ')'), ('[', ']'), ('{', '}')] {
            if s.matches(open).count() > s.matches(close).count() {
                s = s.strip_prefix(open).unwrap_or(s);
            }
            if s.matches(close).count() > s.matches(open).count() {
                s = s.strip_suffix(close).unwrap_or(s);
            }
            // Around the whole token and nothing behind: `(api.py)`, but not `[id].tsx`.
            if s.starts_with(open) && s.ends_with(close) && s.matches(open).count() == 1 {
                s = &s[1..s.len() - 1];
            }
        }
        s = without_place(s);
        if s.len() == before {
            break;
        }
    }
    could_be_path(s).then_some(s)
}

/// Without `:12`, `:12:5`, `:40-55`, `#L12`, `#L12-L20`.
fn without_place(s: &str) -> &str {
    let place = |c: char| c.is_ascii_digit() || matches!(c, '-' | '–');
    if let Some((head, tail)) = s.rsplit_once("#L")
        && !tail.is_empty()
        && tail.chars().all(|c| place(c) || c == 'L')
    {
        return head;
    }
    match s.rsplit_once(':') {
        Some((head, tail)) if !tail.is_empty() && tail.chars().all(place) => head,
        _ => s,
    }
}

/// A dot or slash, and a letter or digit, and not a number or version.
fn could_be_path(s: &str) -> bool {
    s.contains(['.', '/'])
        && !s.contains("://")
        && s.chars().any(char::is_alphanumeric)
        && s.chars().any(|c| c.is_alphabetic() || c == '/')
}

/// What stood alone in quotation marks or inline code, if it is one path; spaces are allowed in it when only its end looks
/// like a file's.
fn alone(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix('@').unwrap_or(text);
    if !text.contains(char::is_whitespace) {
        return if text.contains([',', ';', '"', '(']) && !text.contains('/') {
            None
        } else {
            path(text).map(str::to_owned)
        };
    }
    let name = without_place(text);
    let (_, end) = name.rsplit_once('.')?;
    let extension = !end.is_empty() && end.len() <= 8 && end.bytes().all(|b| b.is_ascii_alphanumeric());
    let words: Vec<&str> = name.split_whitespace().collect();
    let files = words.iter().filter(|w| w.contains('.')).count();
    (extension && files == 1 && words.len() <= 8 && could_be_path(name)).then(|| name.to_owned())
}
