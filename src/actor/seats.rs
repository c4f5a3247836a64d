//! How many workers of one user there are, over all runs and projects: seats, one lock file each in `<state>/seats`. A worker
//! holds its seat for life, so that a seat comes free with whoever had it, however that one died. The first worker of a run
//! needs none: every run goes on, if slowly, whatever the others do.

use std::fs::File;
use std::io;

use crate::actor::planner;
use crate::store::home::State;
use crate::sys::dir::Dir;
use crate::sys::lock;

/// The folder of the seats, below the state directory.
const FOLDER: &str = "seats";

/// Seats where the user's own config does not say (`limits.user_workers`).
const DEFAULT: u32 = 64;

/// The seats of this user.
#[derive(Debug)]
pub struct Seats {
    dir: Dir,
    count: u32,
    /// Where the last free one was: the search goes on behind it.
    last: u32,
}

impl Seats {
    /// As many as the user's own config says.
    pub fn open() -> anyhow::Result<Seats> {
        // What is wrong in it is said where a run is planned; here it says nothing.
        let said = planner::user_defaults(None)?.ok().and_then(|user| user.settings.user_workers);
        let dir = Dir::open(State::open()?.folder(FOLDER)?)?;
        Ok(Seats { dir, count: said.unwrap_or(DEFAULT), last: 0 })
    }

    /// A free seat, locked; `None` if all are taken.
    pub fn take(&mut self) -> io::Result<Option<File>> {
        for _ in 0..self.count {
            self.last = self.last % self.count + 1;
            let seat = self.dir.open_rw(self.last.to_string())?;
            if lock::try_exclusive(&seat)? {
                return Ok(Some(seat));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seat_is_taken_once_and_free_again_when_its_holder_goes() {
        let temp = tempfile::tempdir().unwrap();
        let mut seats = Seats { dir: Dir::open(temp.path()).unwrap(), count: 2, last: 0 };
        let first = seats.take().unwrap().unwrap();
        let second = seats.take().unwrap().unwrap();
        assert!(seats.take().unwrap().is_none());
        drop(first);
        let third = seats.take().unwrap().unwrap();
        assert!(seats.take().unwrap().is_none());
        drop((second, third));
        assert!(seats.take().unwrap().is_some());
    }
}
