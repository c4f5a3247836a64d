//! A program in a terminal: what is typed into it and what is on its screen.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::num::NonZero;
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

use super::client::Process;

const ROWS: NonZero<u16> = NonZero::new(50).expect("not zero");
const COLUMNS: NonZero<u16> = NonZero::new(160).expect("not zero");

struct Screen {
    parser: Mutex<vt100::Parser>,
    changed: Condvar,
}

/// A program in a pseudo terminal. Dropping it ends the program.
pub(crate) struct Terminal {
    process: Process,
    keyboard: File,
    screen: Arc<Screen>,
}

impl Terminal {
    /// Starts a program whose three descriptors are the terminal.
    pub(crate) fn start(mut command: Command) -> Self {
        let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a pseudo terminal");
        let copy = || pty.slave.try_clone().expect("a copy of a descriptor");
        command.stdin(copy()).stdout(copy()).stderr(copy());
        let process = Process::new(command.spawn().expect("the program starts"));
        // The terminal hangs up when the last copy is closed; `command` and `pty` hold some of them.
        drop(command);
        drop(pty.slave);
        let keyboard = File::from(pty.master);
        let mut output = keyboard.try_clone().expect("a copy of a descriptor");
        let parser = Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0));
        let screen = Arc::new(Screen { parser, changed: Condvar::new() });
        // Not joined: what the program has left behind may hold the terminal open.
        std::thread::spawn({
            let screen = Arc::clone(&screen);
            move || {
                let mut bytes = [0; 4096];
                // An error is how Linux tells that nobody has the terminal open any more.
                while let Ok(length @ 1..) = output.read(&mut bytes) {
                    let mut parser = screen.parser.lock().unwrap_or_else(PoisonError::into_inner);
                    parser.process(&bytes[..length]);
                    drop(parser);
                    screen.changed.notify_all();
                }
            }
        });
        Self { process, keyboard, screen }
    }

    /// The program's process, to signal it.
    pub(crate) fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Types text, as a person does: without Enter.
    pub(crate) fn type_text(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).expect("the terminal takes it");
    }

    /// Types a prompt, waits until it stands on the screen, and presses Enter: together they would be taken for pasted
    /// text, in which Enter is a line break. The last word of the prompt must not be split by the edge of the screen.
    pub(crate) fn submit(&mut self, prompt: &str, limit: Duration) {
        let last = prompt.split_whitespace().next_back().unwrap_or_default();
        let before = self.screen().matches(last).count();
        self.type_text(prompt);
        self.wait_until(limit, |screen| screen.matches(last).count() > before)
            .unwrap_or_else(|screen| panic!("{prompt:?} was typed but not shown within {limit:?}:\n{screen}"));
        self.enter();
    }

    /// Presses Enter.
    pub(crate) fn enter(&mut self) {
        self.type_text("\r");
    }

    /// Presses Esc.
    pub(crate) fn escape(&mut self) {
        self.type_text("\x1b");
    }

    /// The screen as text.
    pub(crate) fn screen(&self) -> String {
        let parser = self.screen.parser.lock().unwrap_or_else(PoisonError::into_inner);
        parser.screen().contents()
    }

    /// Waits until the screen contains `text`; the test fails, and shows the screen, if it does not within the limit.
    pub(crate) fn wait_for_text(&self, text: &str, limit: Duration) -> String {
        self.wait_until(limit, |screen| screen.contains(text))
            .unwrap_or_else(|screen| panic!("no {text:?} on the screen within {limit:?}:\n{screen}"))
    }

    /// Waits until the screen is as wanted and returns it; after the limit, the screen as it is then is the error.
    pub(crate) fn wait_until(&self, limit: Duration, wanted: impl Fn(&str) -> bool) -> Result<String, String> {
        let end = Instant::now() + limit;
        let mut parser = self.screen.parser.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let screen = parser.screen().contents();
            if wanted(&screen) {
                return Ok(screen);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(screen);
            }
            parser = self.screen.changed.wait_timeout(parser, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
