//! A block of lines at the bottom of a terminal that is drawn anew in place, with finished lines scrolling up above it.
//!
//! Every frame is one write that hides the cursor and stops wrapping at its beginning and undoes both at its end. So the
//! terminal is in its usual state between any two frames, and nothing has to be restored when the program ends, however it
//! ends.

use crate::ui::print;
use std::fmt::Write;

/// The block as it stands on the screen.
#[derive(Debug, Default)]
pub struct Live {
    /// Columns that each line took.
    drawn: Vec<usize>,
}

/// What a frame begins and ends with.
const BEGIN: &str = "\x1b[?25l";
const NO_WRAP: &str = "\x1b[?7l";
const END: &str = "\x1b[?7h\x1b[?25h";

impl Live {
    /// Writes `above` for good and `block` below it, in place of the last one. `width` is the terminal's, for finding the
    /// beginning of the old block after the window became narrower.
    pub fn show(&mut self, above: &[String], block: &[String], width: usize) {
        let frame = self.frame(above, block, width);
        print::frame(frame.as_bytes());
    }

    fn frame(&mut self, above: &[String], block: &[String], width: usize) -> String {
        let mut out = String::from(BEGIN);
        let rows: usize = self.drawn.iter().map(|w| w.div_ceil(width.max(1)).max(1)).sum();
        if rows > 0 {
            let _ = write!(out, "\x1b[{rows}A");
        }
        out.push_str("\r\x1b[J");
        for line in above {
            out.push_str(line);
            out.push_str("\r\n");
        }
        out.push_str(NO_WRAP);
        for line in block {
            out.push_str(line);
            out.push_str("\r\n");
        }
        out.push_str(END);
        self.drawn = block.iter().map(|l| columns(l).min(width)).collect();
        out
    }
}

/// Columns that a line takes, colours not counted; close enough for wide characters.
fn columns(line: &str) -> usize {
    let mut count = 0;
    let mut escape = false;
    for c in line.chars() {
        match c {
            '\x1b' => escape = true,
            'm' if escape => escape = false,
            _ if escape => {}
            _ => count += 1,
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_back_over_the_last_block_and_leaves_the_terminal_as_usual() {
        let mut live = Live::default();
        let block = ["\x1b[32m12345\x1b[0m".to_owned(), String::new()];
        let first = live.frame(&[], &block, 80);
        assert!(!first.contains('A'), "nothing to go back over: {first:?}");
        assert!(first.ends_with("\x1b[?7h\x1b[?25h"));
        assert!(live.frame(&[], &block, 80).contains("\x1b[2A\r\x1b[J"));
        // Five columns in a window of two take three rows.
        assert!(live.frame(&["done".into()], &[], 2).contains("\x1b[4A\r\x1b[Jdone\r\n"));
        assert!(!live.frame(&[], &[], 2).contains("\x1b[0A"));
    }
}
