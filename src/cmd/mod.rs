//! The commands that people type, one file each: its arguments as a clap type whose doc comment is its help, and one
//! function `run(&Args) -> anyhow::Result<Exit>`. An error of type [`crate::base::exit::Wrong`] anywhere in the chain
//! ends with exit code 3 and its hint, every other with 1.

pub mod above;
pub mod adopt;
pub mod again;
pub mod allow;
pub mod cancel;
pub mod checkpoint;
pub mod checkup;
pub mod clean;
pub mod completions;
pub mod demo;
pub mod deny;
pub mod doctor;
pub mod events;
pub mod find;
pub mod follow;
pub mod help;
pub mod hold;
pub mod init;
pub mod inside;
pub mod lease;
pub mod logs;
pub mod man;
pub mod off;
pub mod on;
pub mod plan;
pub mod progress;
pub mod replay;
pub mod result;
pub mod run;
pub mod schema;
pub mod signal;
pub mod status;
pub mod statusline;
pub mod top;
pub mod trace;
pub mod vote;
pub mod wait;
pub mod watch;
pub mod worker;
