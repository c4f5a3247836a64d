//! Files with a meaning: the log and its index, run folders, what is remembered of a session, the user's state directory.
//! What the bytes mean is `model`'s and `logic`'s business; how they are opened safely is `sys::dir`'s.

pub mod attic;
pub mod bells;
pub mod client;
pub mod file;
pub mod forget;
pub mod history;
pub mod home;
pub mod hooklog;
pub mod index;
pub mod leases;
pub mod log;
pub mod output;
pub mod past;
pub mod place;
pub mod project;
pub mod registry;
pub mod run;
pub mod scan;
pub mod session;
pub mod switch;
pub mod triggers;
pub mod trust;
pub mod turn;
