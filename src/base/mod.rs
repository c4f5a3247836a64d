//! Ground that everything stands on: names, durations, exit codes, environment variables and text hygiene.
//! Nothing here touches a file, a clock or a process.

pub mod env;
pub mod exit;
pub mod hex;
pub mod ids;
pub mod redact;
pub mod span;
pub mod sum;
pub mod text;
pub mod trace;
