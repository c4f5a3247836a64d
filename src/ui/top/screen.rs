//! The terminal as a whole screen: taken over, drawn on, and given back as it was on every way out that a process can take,
//! a panic included. What a screen shows is written in pieces that never hold the program up for long.

use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ratatui::backend::{Backend, CrosstermBackend};
use ratatui::buffer::Buffer;
use ratatui::crossterm::terminal::{disable_raw_mode, enable_raw_mode};
use ratatui::layout::Rect;

use crate::sys::host;
use crate::sys::poll;

/// The other screen, without a cursor; what is pasted is told from what is typed.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l\x1b[?2004h\x1b[0m\x1b[2J";

/// Undoes it. The first byte ends an escape sequence that was cut in the middle.
const LEAVE: &[u8] = b"\x18\x1b[0m\x1b[?2004l\x1b[?25h\x1b[?1049l";

/// Before a picture that is drawn whole.
const CLEAR: &[u8] = b"\x18\x1b[0m\x1b[2J";

/// A terminal that takes nothing for so long is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the terminal is taken over.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Columns and rows that are drawn on, at most: a terminal may say what it wants of its size.
const LARGEST: (u16, u16) = (1000, 500);

/// The screen. Dropping it gives the terminal back.
#[derive(Debug, Default)]
pub struct Screen {
    /// What stands on it, where that is known.
    before: Option<Buffer>,
}

impl Screen {
    /// Takes the terminal over.
    pub fn enter() -> io::Result<Screen> {
        restore_on_panic();
        let mut screen = Screen::default();
        screen.take()?;
        Ok(screen)
    }

    /// Takes it over again.
    pub fn take(&mut self) -> io::Result<()> {
        // Who was stopped may find it in another mode than it left it.
        disable_raw_mode()?;
        // Before the terminal is changed, so that whatever happens on the way undoes it.
        TAKEN.store(true, Ordering::SeqCst);
        self.before = None;
        enable_raw_mode()?;
        poll::write_unless(poll::stdout(), ENTER, None, PATIENCE).map(drop)
    }

    /// Gives it back for a while.
    pub fn give_back(&mut self) {
        self.before = None;
        restore();
    }

    /// Forgets what stands on it, so that the next picture is drawn whole.
    pub fn forget(&mut self) {
        self.before = None;
    }

    /// Columns and rows.
    pub fn size() -> (u16, u16) {
        let (width, height) = host::terminal_size(poll::stdout()).unwrap_or((80, 24));
        (width.min(LARGEST.0), height.min(LARGEST.1))
    }

    /// Shows a picture: what has changed of it, in one go. It is given up as soon as `stop` can be read.
    pub fn show(&mut self, size: (u16, u16), stop: BorrowedFd<'_>, draw: impl FnOnce(&mut Buffer)) -> io::Result<()> {
        let area = Rect::new(0, 0, size.0, size.1);
        let mut now = Buffer::empty(area);
        draw(&mut now);
        let mut bytes = Vec::new();
        let before = match self.before.take() {
            Some(before) if before.area == area => before,
            _ => {
                bytes.write_all(CLEAR)?;
                Buffer::empty(area)
            }
        };
        let mut backend = CrosstermBackend::new(&mut bytes);
        backend.draw(before.diff_iter(&now))?;
        if poll::write_unless(poll::stdout(), &bytes, Some(stop), PATIENCE)? {
            self.before = Some(now);
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back as it was, if it was taken over. For who cannot reach the screen: a panic.
pub fn restore() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // There is nobody left to tell where the terminal has gone.
        drop(poll::write_unless(poll::stdout(), LEAVE, None, PATIENCE));
        drop(disable_raw_mode());
    }
}

/// A panic ends the process without dropping anything: what it says has to stand on the usual screen.
fn restore_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            restore();
            tell(info);
        }));
    });
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use nix::pty::{Winsize, openpty};
    use nix::sys::termios::tcgetattr;

    const PLANTED: &str = "CPW_TEST_PANICS_ON_A_SCREEN";

    #[test]
    fn a_panic_gives_the_terminal_back_before_it_is_told() {
        const TEST: &str = "ui::top::screen::tests::a_panic_gives_the_terminal_back_before_it_is_told";
        if std::env::var_os(PLANTED).is_some() {
            let mut screen = Screen::enter().unwrap();
            let (quiet, _keep) = std::io::pipe().unwrap();
            screen
                .show((80, 24), quiet.as_fd(), |buffer| {
                    buffer.set_stringn(0, 0, "picture", 80, ratatui::style::Style::new());
                })
                .unwrap();
            panic!("planted");
        }
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let copy = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([TEST, "--exact", "--nocapture", "--test-threads=1"]).env(PLANTED, "1");
        let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
        drop(command);
        let mut shows = File::from(pty.master);
        let mut written = Vec::new();
        let mut bytes = [0; 4096];
        // What it says last. Reading goes on beside it: a terminal that nobody reads holds a program up.
        while !String::from_utf8_lossy(&written).contains("planted") {
            let n = shows.read(&mut bytes).unwrap();
            written.extend_from_slice(&bytes[..n]);
        }
        let written = String::from_utf8_lossy(&written);
        let at = |text: &[u8]| written.find(std::str::from_utf8(text).unwrap());
        assert!(at(ENTER) < at(b"picture") && at(b"picture") < at(LEAVE) && at(LEAVE) < at(b"planted"), "{written:?}");
        assert!(at(ENTER).is_some());
        assert!(tcgetattr(&pty.slave).unwrap() == before, "the modes of the terminal are others");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_picture_that_was_cut_short_is_drawn_whole_the_next_time() {
        let mut screen = Screen { before: Some(Buffer::empty(Rect::new(0, 0, 4, 1))) };
        let (ready, mut ring) = std::io::pipe().unwrap();
        ring.write_all(b"!").unwrap();
        screen
            .show((4, 1), ready.as_fd(), |buffer| {
                buffer.set_stringn(0, 0, "text", 4, ratatui::style::Style::new());
            })
            .unwrap();
        assert!(screen.before.is_none());
    }
}
