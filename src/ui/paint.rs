//! Colours, where a person looks: on a terminal that is not `dumb`, unless `NO_COLOR` says otherwise (<https://no-color.org>).
//! `CLICOLOR_FORCE` asks for them elsewhere too, as in a pipe to a pager.

use std::fmt::Display;
use std::io::IsTerminal;

use crate::logic::view::Phase;

/// What a text says by its colour, beside what it says by its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// Nothing.
    Plain,
    /// It went well.
    Good,
    /// It went wrong.
    Bad,
    /// It may need a look.
    Warn,
    /// It goes on now.
    Busy,
    /// It matters less.
    Dim,
    /// It is a heading.
    Bold,
}

impl Tone {
    /// Of a task's state.
    pub fn of(phase: Phase) -> Tone {
        match phase {
            Phase::Done => Tone::Good,
            Phase::Failed | Phase::TimedOut | Phase::Lost => Tone::Bad,
            Phase::Running => Tone::Busy,
            Phase::Retrying | Phase::Cancelled => Tone::Warn,
            Phase::Waiting | Phase::Ready | Phase::Skipped => Tone::Dim,
        }
    }
}

/// Whether and how text is coloured. Pad first, paint then: escapes have no width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// For stdout as it is.
    pub fn for_stdout() -> Paint {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let forced = || std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| !v.is_empty() && v != "0");
        Paint { on: !is_set("NO_COLOR") && (can_move(&std::io::stdout()) || forced()) }
    }

    /// For what somebody else will show on the terminal that the environment tells of.
    pub fn for_terminal() -> Paint {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        Paint { on: !no_color && std::env::var_os("TERM").is_none_or(|t| t != "dumb") }
    }

    /// Always.
    #[cfg(test)]
    pub fn colourful() -> Paint {
        Paint { on: true }
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
        self.tone(Tone::of(phase), text)
    }

    /// In the colour of a tone.
    pub fn tone(self, tone: Tone, text: impl Display) -> String {
        match tone {
            Tone::Plain => text.to_string(),
            Tone::Good => self.good(text),
            Tone::Bad => self.bad(text),
            Tone::Warn => self.warn(text),
            Tone::Busy => self.busy(text),
            Tone::Dim => self.dim(text),
            Tone::Bold => self.bold(text),
        }
    }
}

/// Whether `stream` is a terminal on which the cursor can be moved.
pub fn can_move(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_some_and(|t| t != "dumb" && !t.is_empty())
}
