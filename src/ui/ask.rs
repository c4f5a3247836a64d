//! A question to the person at the terminal, asked on the terminal itself: neither a pipe on stdin nor a program that
//! reads stdout can answer it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};

/// Asks for yes or no; anything but `y` or `yes` is no. `None`: there is no terminal.
pub fn confirm(question: &str) -> io::Result<Option<bool>> {
    let Ok(terminal) = OpenOptions::new().read(true).write(true).open("/dev/tty") else { return Ok(None) };
    let answers: File = terminal.try_clone()?;
    confirm_on(BufReader::new(answers), terminal, question).map(Some)
}

fn confirm_on(mut answers: impl BufRead, mut terminal: impl Write, question: &str) -> io::Result<bool> {
    write!(terminal, "{question} [y/N] ")?;
    terminal.flush()?;
    let mut line = String::new();
    answers.read_line(&mut line)?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_one() {
        for (typed, yes) in
            [("y\n", true), (" YES \n", true), ("\n", false), ("", false), ("n\n", false), ("yep\n", false)]
        {
            let mut shown = Vec::new();
            assert_eq!(confirm_on(typed.as_bytes(), &mut shown, "Approve?").unwrap(), yes, "{typed:?}");
            assert_eq!(shown, b"Approve? [y/N] ");
        }
    }
}
