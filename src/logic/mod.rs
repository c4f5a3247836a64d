//! What follows from what is written: the state of a run as a fold of its events, what to do next, and what the session
//! is told. Pure: no file, clock or process; the same functions run in hooks, workers, commands and tests.

pub mod again;
pub mod circle;
pub mod command;
pub mod conductor;
pub mod glance;
pub mod leases;
pub mod pace;
pub mod retell;
pub mod sched;
pub mod session;
pub mod signals;
#[cfg(test)]
pub(crate) mod simulation;
pub mod state;
pub mod step;
pub mod taken;
pub mod timeline;
pub mod view;
pub mod vote;
pub mod wake;
