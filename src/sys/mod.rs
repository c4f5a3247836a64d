//! The operating system: clocks, folders, locks, bells, processes, signals. The only room with `unsafe`, and the only one
//! that names `nix`, `libc` or `fs2`. It knows nothing of runs, tasks or hooks beyond [`Process`](crate::model::event::Process).
//!
//! Everything here is for a program of one thread. Linux is what is proven; macOS compiles, and each function says what
//! it falls back to there.

pub mod bell;
mod birth;
pub mod clock;
pub mod dir;
pub mod fsinfo;
pub mod host;
pub mod lock;
pub mod medium;
pub mod poll;
pub mod process;
pub mod program;
pub mod random;
pub mod signals;
pub mod spawn;
pub mod spool;
mod stamp;
mod timer;
pub mod tree;

#[cfg(test)]
mod testing;
