//! A story that is told step by step: headings with the time, labelled paragraphs beside a column of labels, and what a
//! text has become, as a small diff. Pure text of words, a width and colours.

use std::fmt::Write as _;

use crate::base::text::one_line;
use crate::ui::paint::Paint;

/// The column of labels, in characters, where there is room beside it.
const LABELS: usize = 19;

/// Narrower than this, a label stands above its text.
const NARROW: usize = 60;

/// Longer lines are hard to read, however wide the terminal is.
const WIDEST: usize = 110;

/// Where the story is told.
#[derive(Debug, Clone, Copy)]
pub struct Page {
    /// Columns.
    pub width: usize,
    /// Colours.
    pub paint: Paint,
}

/// Who a paragraph is about, for its colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voice {
    /// What the user types or reads.
    User,
    /// What the model wants, or is told.
    Model,
    /// What cpw did.
    Hook,
}

impl Page {
    fn columns(self) -> usize {
        self.width.clamp(30, WIDEST)
    }

    fn indent(self) -> usize {
        if self.width < NARROW { 2 } else { LABELS }
    }

    /// The heading of a step, `at_ms` after the beginning.
    pub fn heading(self, at_ms: u64, title: &str) -> String {
        let time = format!("{:>4}.{} s", at_ms / 1000, at_ms % 1000 / 100);
        let mut lines = wrap(title, self.columns().saturating_sub(time.len() + 2)).into_iter();
        let first = lines.next().unwrap_or_default();
        let mut out = format!("\n{}  {}\n", self.paint.dim(&time), self.paint.bold(first));
        for line in lines {
            let _ = writeln!(out, "{:1$}{2}", "", time.len() + 2, self.paint.bold(line));
        }
        out
    }

    /// A paragraph. Each line of `text` begins a line of its own; `label` may be empty.
    pub fn says(self, voice: Voice, label: &str, text: &str) -> String {
        let painted = match voice {
            Voice::User => self.paint.good(pad(label)),
            Voice::Model => self.paint.busy(pad(label)),
            Voice::Hook => self.paint.dim(pad(label)),
        };
        let indent = self.indent();
        let mut out = String::new();
        let mut head = if self.width < NARROW {
            if !label.is_empty() {
                let _ = writeln!(out, "{}", painted.trim_end());
            }
            " ".repeat(indent)
        } else {
            painted
        };
        for line in text.lines().flat_map(|line| wrap(line, self.columns() - indent)) {
            let _ = writeln!(out, "{}", format!("{head}{line}").trim_end());
            head = " ".repeat(indent);
        }
        out
    }

    /// A paragraph without a label, over the whole width.
    pub fn plain(self, text: &str) -> String {
        text.lines().flat_map(|line| wrap(line, self.columns())).fold(String::new(), |out, line| out + &line + "\n")
    }

    /// What `before` has become: its lines, and those that are new. Long lines are cut.
    pub fn change(self, before: &str, after: &str) -> String {
        let indent = self.indent();
        let room = self.columns().saturating_sub(indent + 2);
        let mut out = String::new();
        for change in similar::TextDiff::from_lines(before, after).iter_all_changes() {
            let line = format!("{} {}", change.tag(), one_line(change.value(), room));
            let line = match change.tag() {
                similar::ChangeTag::Equal => self.paint.dim(line.trim_end()),
                similar::ChangeTag::Insert => self.paint.good(line.trim_end()),
                similar::ChangeTag::Delete => self.paint.bad(line.trim_end()),
            };
            let _ = writeln!(out, "{}", format!("{:indent$}{line}", "").trim_end());
        }
        out
    }
}

fn pad(label: &str) -> String {
    format!("{label:<LABELS$}")
}

/// Lines of at most `room` characters, broken at spaces; a word that is longer has a line of its own. Leading spaces stay.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let lead: String = text.chars().take_while(|c| *c == ' ').collect();
    let mut lines = Vec::new();
    let mut line = lead.clone();
    for word in text.split_ascii_whitespace() {
        let begins = line.trim().is_empty();
        if !begins && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(std::mem::replace(&mut line, lead.clone()));
            line.push_str(word);
            continue;
        }
        if !begins {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(width: usize) -> String {
        let page = Page { width, paint: Paint::plain() };
        [
            page.plain("A session of three files, played by cpw's own hooks: no Claude, no account, no network."),
            page.heading(0, "You type a prompt"),
            page.says(Voice::User, "you", "> Analyze api.py, db.py and ui.py and write report.md"),
            page.says(
                Voice::Model,
                "the model is told",
                "cpw has started 4 tasks beside this conversation: api.py, db.py, ui.py, checks.\nFinished results \
                 are reported here as they come, with their paths below .claude/runs/20261121-101112-a1b2c3d4e5f6.",
            ),
            page.heading(12_345, "The model wants to write its report, before all results are there, which it cannot know"),
            page.says(Voice::Hook, "cpw", "held the call for 1.2 s"),
            page.change("# Report\n\nDone.\n", "# Report\n\nDone.\n\n## Facts\n\n- api.py: 4 lines, longest 31 characters, 1 TODO mark, and more words than fit\n"),
        ]
        .concat()
    }

    #[test]
    fn a_story_at_three_widths() {
        for width in [60, 80, 120] {
            insta::assert_snapshot!(format!("story_{width}"), sample(width));
        }
    }

    #[test]
    fn nothing_is_wider_than_the_page_but_a_word() {
        for width in [30, 40, 59, 60, 80, 100, 200] {
            for line in sample(width).lines() {
                assert!(line.chars().count() <= width || !line.trim().contains(' '), "{width}: {line}");
            }
        }
    }

    #[test]
    fn colours_change_no_text_and_foreign_controls_are_not_shown() {
        let page = Page { width: 80, paint: Paint::plain() };
        assert!(!page.change("a\n", "a\n\x1b[31mred\n").contains('\x1b'));
        assert_eq!(wrap("", 10), [""]);
        assert_eq!(wrap("  a b c", 5), ["  a b", "  c"]);
    }
}
