//! Colours, where a person looks: on a terminal that is not `dumb`, unless `NO_COLOR` says otherwise (<https://no-color.org>).

use std::fmt::Display;
use std::io::IsTerminal;

use crate::logic::view::Phase;

/// Whether and how text is coloured. Pad first, paint then: escapes have no width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For stdout as it is.
    pub fn for_stdout() -> Paint {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Paint { on: can_move(&std::io::stdout()) && !no_color }
    }

    /// Never.
    pub fn plain() -> Paint {
        Paint { on: false }
    }

    /// Always, whatever stdout is.
    #[cfg(test)]
    pub fn always() -> Paint {
        Paint { on: true }
    }

    fn sgr(self, code: &str, text: impl Display) -> String {
        if self.on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    /// What went well.
    pub fn good(self, text: impl Display) -> String {
        self.sgr("32", text)
    }

    /// What went wrong.
    pub fn bad(self, text: impl Display) -> String {
        self.sgr("31", text)
    }

    /// What may need a look.
    pub fn warn(self, text: impl Display) -> String {
        self.sgr("33", text)
    }

    /// What goes on now.
    pub fn busy(self, text: impl Display) -> String {
        self.sgr("36", text)
    }

    /// What matters less.
    pub fn dim(self, text: impl Display) -> String {
        self.sgr("2", text)
    }

    /// Headings.
    pub fn bold(self, text: impl Display) -> String {
        self.sgr("1", text)
    }

    /// One of several colours that mean nothing, by `number`.
    pub fn hue(self, number: u64, text: impl Display) -> String {
        const HUES: [&str; 8] = ["36", "35", "34", "32", "96", "95", "94", "92"];
        self.sgr(HUES[(number % 8) as usize], text)
    }

    /// A task's state in its colour.
    pub fn phase(self, phase: Phase, text: impl Display) -> String {
        match phase {
            Phase::Done => self.good(text),
            Phase::Failed | Phase::TimedOut | Phase::Lost => self.bad(text),
            Phase::Running => self.busy(text),
            Phase::Retrying | Phase::Cancelled => self.warn(text),
            Phase::Waiting | Phase::Ready | Phase::Skipped => self.dim(text),
        }
    }
}

/// Whether `stream` is a terminal on which the cursor can be moved.
pub fn can_move(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_some_and(|t| t != "dumb" && !t.is_empty())
}
