//! `cpw` gives Claude Code's hooks the power to start work: a prompt that matches a rule becomes a plan, detached
//! workers run its tasks in parallel, and the session is told what is done, once.
//!
//! The rooms, from the bottom up; a room imports only from rooms above it in this list (`tests/rooms.rs` checks it):
//!
//! * [`base`]: ids, durations, environment names, exit codes, text for people. No file, no clock.
//! * [`model`]: what is written down: events, plans, configs, and how a prompt matches a rule. Pure.
//! * [`logic`]: what follows from it: the state as a fold of events, scheduling, what the session is told. Pure.
//! * [`sys`]: the operating system: locks, processes, clocks, files. The only room with `unsafe`.
//! * [`store`]: files with a meaning: the log, its index, run folders, the user's state directory.
//! * [`actor`]: who changes a run: workers, and anybody who finishes a dead worker's work.
//! * [`ui`]: the terminal: the only writer to a person's screen.
//! * [`hook`] and [`cmd`]: the two faces, for Claude Code and for people. They never import each other.

#[cfg(windows)]
compile_error!("cpw needs flock, FIFOs and process groups: on Windows build and run it inside WSL 2");

pub mod actor;
pub mod base;
pub mod cli;
pub mod cmd;
pub mod hook;
pub mod logic;
pub mod model;
pub mod store;
pub mod sys;
pub mod ui;
