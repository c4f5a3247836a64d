//! Text that has to fit: lines of parts that are left out, the least important first, until the rest has room. Columns are
//! counted as terminals do: wide characters take two. Without a width nothing is left out or cut: a pipe has room.

use ratatui::text::Span;

use crate::ui::paint::{Paint, Tone};

/// The least that is left of a part that is cut instead of left out, in columns.
const LEAST: usize = 8;

/// Columns that a text without escapes takes.
pub fn columns(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { Span::raw(text).width() }
}

/// The beginning of a text that has room in so many columns; a cut is marked with `…`.
pub fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    let mut letter = [0; 4];
    for c in text.chars() {
        let own = columns(c.encode_utf8(&mut letter));
        if used + own + 1 > width {
            break;
        }
        used += own;
        out.push(c);
    }
    let mut out = out.trim_end().to_owned();
    if width > 0 {
        out.push('…');
    }
    out
}

/// A text, filled with spaces up to so many columns.
pub fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}

/// A part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    text: String,
    tone: Tone,
    rank: u8,
    flexible: bool,
}

impl Part {
    /// A part that stays whatever the width.
    pub fn new(tone: Tone, text: impl Into<String>) -> Part {
        Part { text: text.into(), tone, rank: 0, flexible: false }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The same, left out where there is no room; the highest rank first.
    #[must_use]
    pub fn rank(mut self, rank: u8) -> Part {
        self.rank = rank;
        self
    }

    /// The same, cut before it is left out.
    #[must_use]
    pub fn flexible(mut self) -> Part {
        self.flexible = true;
        self
    }
}

/// A line of parts with `gap` between them, in at most `width` columns.
pub fn line(mut parts: Vec<Part>, gap: &str, width: Option<usize>, paint: Paint) -> String {
    parts.retain(|p| !p.text.is_empty());
    if let Some(width) = width {
        make_room(&mut parts, columns(gap), width);
    }
    let parts: Vec<String> = parts.into_iter().map(|p| paint.tone(p.tone, p.text)).collect();
    parts.join(gap)
}

fn make_room(parts: &mut Vec<Part>, gap: usize, width: usize) {
    loop {
        let all: usize = parts.iter().map(|p| columns(&p.text)).sum();
        let excess = (all + gap * parts.len().saturating_sub(1)).saturating_sub(width);
        // The last of the least important.
        let last = parts.iter().enumerate().max_by_key(|(_, p)| p.rank).map(|(i, p)| (i, p.rank));
        let Some((i, rank)) = last.filter(|_| excess > 0) else { return };
        let own = columns(&parts[i].text);
        if (parts[i].flexible && own >= excess + LEAST) || (rank == 0 && own > excess) {
            parts[i].text = cut(&parts[i].text, own - excess);
        } else {
            parts.remove(i);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_characters_take_two_columns_and_a_cut_is_marked() {
        assert_eq!((columns("abc"), columns("日本"), columns("é"), columns("✓")), (3, 4, 1, 1));
        assert_eq!(cut("日本語", 6), "日本語");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(cut("日本語", 4), "日…", "half a character is none");
        assert_eq!((cut("abc def", 5).as_str(), cut("abc", 0).as_str(), cut("abc", 1).as_str()), ("abc…", "", "…"));
        assert_eq!(pad("日", 4), "日  ");
    }

    #[test]
    fn the_least_important_goes_first_and_what_may_be_cut_is_cut() {
        let parts = || {
            vec![
                Part::new(Tone::Plain, "name"),
                Part::new(Tone::Plain, "a long reason why").rank(2).flexible(),
                Part::new(Tone::Plain, "age").rank(3),
                Part::new(Tone::Plain, ""),
            ]
        };
        let at = |width| line(parts(), "  ", width, Paint::plain());
        assert_eq!(at(None), "name  a long reason why  age");
        assert_eq!(at(Some(28)), "name  a long reason why  age");
        assert_eq!(at(Some(27)), "name  a long reason why");
        assert_eq!(at(Some(16)), "name  a long re…");
        assert_eq!(at(Some(12)), "name");
        assert_eq!(at(Some(3)), "na…");
        for width in 0..30 {
            assert!(columns(&at(Some(width))) <= width, "{width}");
        }
    }
}
