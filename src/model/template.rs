//! The one template engine: `{{name}}` is replaced by a value, in a single pass. Values are never parsed again, so a file
//! that is called `{{prompt}}` stays what it is. It has no conditions, loops or filters.
//!
//! A name is lower-case letters and `_`, then optionally `.` and an id or field: `item`, `item.stem`, `result.build`.
//! Spaces around it are allowed. What stands between braces but does not look like a name is text (`{{.State}}` and
//! `{{json .}}`, which other programs use, pass through). `{{{}}` stands for one `{`, so that any text can be written.

/// A part of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Text as it is.
    Text(&'a str),
    /// The name of a value.
    Name(&'a str),
}

/// Cuts a template into its pieces; together they cover all of it.
pub fn pieces(template: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = template;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        if let Some((piece, after)) = opening(rest) {
            rest = after;
            return Some(piece);
        }
        // One character further at a time: in `{{{name}}` the placeholder begins at the second brace.
        let mut end = rest.len();
        for (at, _) in rest.match_indices('{').filter(|(at, _)| *at > 0) {
            if opening(&rest[at..]).is_some() {
                end = at;
                break;
            }
        }
        let (text, after) = rest.split_at(end);
        rest = after;
        Some(Piece::Text(text))
    })
}

/// The placeholder or escape that `s` begins with, and what follows it.
fn opening(s: &str) -> Option<(Piece<'_>, &str)> {
    /// Longer names are text: it bounds the search for the closing braces.
    const LONGEST: usize = 160;
    let inner = s.strip_prefix("{{")?;
    if let Some(after) = inner.strip_prefix("{}}") {
        return Some((Piece::Text("{"), after));
    }
    let close = inner.bytes().take(LONGEST).position(|b| b == b'}')?;
    let after = inner[close..].strip_prefix("}}")?;
    let name = inner[..close].trim_matches(' ');
    is_name(name).then_some((Piece::Name(name), after))
}

fn is_name(s: &str) -> bool {
    let (head, tail) = s.split_once('.').map_or((s, None), |(h, t)| (h, Some(t)));
    !head.is_empty()
        && head.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        && tail.is_none_or(|t| {
            !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        })
}

/// The names that a template uses, in order, with repetitions.
pub fn names(template: &str) -> impl Iterator<Item = &str> {
    pieces(template).filter_map(|p| match p {
        Piece::Name(name) => Some(name),
        Piece::Text(_) => None,
    })
}

/// Fills a template. A name for which `value` has nothing stays as it was written; templates of configs and plans are
/// checked before, so that this does not happen to them.
pub fn fill(template: &str, mut value: impl FnMut(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(template.len());
    for piece in pieces(template) {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Name(name) => {
                if let Some(v) = value(name) {
                    out.push_str(&v);
                } else {
                    out.push_str("{{");
                    out.push_str(name);
                    out.push_str("}}");
                }
            }
        }
    }
    out
}

/// Text as a template that yields exactly this text, whatever stands before and after it.
pub fn escape(text: &str) -> String {
    text.replace('{', "{{{}}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fill_x(template: &str) -> String {
        fill(template, |name| match name {
            "x" => Some("{{y}}".into()),
            "y" => Some("no".into()),
            "item.stem" => Some("api".into()),
            _ => None,
        })
    }

    #[test]
    fn values_are_not_parsed_again() {
        assert_eq!(fill_x("a {{x}} b"), "a {{y}} b");
        assert_eq!(fill_x("{{ item.stem }}.md"), "api.md");
        assert_eq!(fill_x("{{unknown}}"), "{{unknown}}");
    }

    #[test]
    fn what_is_no_name_is_text() {
        for text in ["{{.State}}", "{{json .}}", "{{", "}}", "{{}}", "{{{", "{x}", "{{ITEM}}", "{{x", "{{x}", "é{{é}}"]
        {
            assert_eq!(fill_x(text), text);
        }
        assert_eq!(fill_x("{{{x}}"), "{{{y}}");
        assert_eq!(fill_x("{{{}}{x}}"), "{{x}}");
    }

    proptest! {
        #[test]
        fn escaped_text_comes_back_between_anything(a in "[{}xy. ]{0,12}", text in "[{}xy. ]{0,12}") {
            let alone = fill_x(&escape(&text));
            prop_assert_eq!(&alone, &text);
            // Before it may stand anything that is complete in itself, after it anything at all.
            let before = escape(&a);
            prop_assert_eq!(fill_x(&format!("{before}{}", escape(&text))), format!("{a}{text}"));
            prop_assert_eq!(fill_x(&format!("{}{{{{x}}}}", escape(&text))), format!("{text}{{{{y}}}}"));
        }

        #[test]
        fn nothing_panics(s in ".{0,200}") {
            let _filled: String = fill_x(&s);
        }

        #[test]
        fn a_template_without_values_stays(s in "[{}xyz. ]{0,40}") {
            let kept = fill(&s, |_| None);
            if !s.contains("{{{}}") {
                prop_assert_eq!(kept.replace(' ', ""), s.replace(' ', ""));
            }
        }
    }
}
