//! The log of a run that is looked back at: every event of it by its number, without keeping them. Nothing is written, and
//! what can be read of a damaged log is there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::model::event::Event;
use crate::store::log;
use crate::store::run::{RunDir, RunError};

/// The events of a log as far as it could be read when it was opened.
#[derive(Debug)]
pub struct Past {
    file: File,
    /// Where the line of each event begins, and where the last one ends.
    begins: Vec<u64>,
}

impl Past {
    /// Reads the log of `folder` once, and what is wrong with it, if anything is.
    pub fn open(folder: &RunDir) -> Result<(Past, Result<(), RunError>), RunError> {
        let mut tape = folder.tape_as_it_is()?;
        let file = folder.dir.open_read(log::NAME).map_err(|source| io_error(folder, source))?;
        let mut begins = vec![0];
        let mut end = 0;
        let read = tape.lines(|_, line| {
            end += line.len() as u64 + 1;
            begins.push(end);
        });
        let sound = read.map_err(|e| folder.told(e)).and_then(|()| folder.check());
        Ok((Past { file, begins }, sound))
    }

    /// How many events there are.
    pub fn len(&self) -> u64 {
        self.begins.len() as u64 - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The event with this number, which begins with 1, and its line without line feed.
    pub fn event(&self, seq: u64) -> io::Result<(Event, Vec<u8>)> {
        let at = |i: u64| usize::try_from(i).ok().and_then(|i| self.begins.get(i).copied());
        let (Some(begin), Some(end)) = (seq.checked_sub(1).and_then(at), at(seq)) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no event {seq}")));
        };
        let mut line = vec![0; usize::try_from(end - begin).unwrap_or(0).saturating_sub(1)];
        self.file.read_exact_at(&mut line, begin)?;
        // It was read before: what does not fit its kind is of a newer cpw.
        let event = Event::decode(&line).or_else(|_| Event::decode_newer(&line)).map_err(io::Error::other)?;
        Ok((event, line))
    }
}

fn io_error(folder: &RunDir, source: io::Error) -> RunError {
    RunError::Io { path: folder.path().join(log::NAME), source }
}
