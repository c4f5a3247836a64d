//! The terminal. What a person sees on stdout and stderr is written here and nowhere else (hooks write their protocol
//! answer in `hook::answer`). A closed pipe is the reader's choice and no error.

pub mod ask;
pub mod board;
pub mod bounds;
pub mod chrome;
pub mod fit;
pub mod ledger;
pub mod lines;
pub mod live;
pub mod overview;
pub mod page;
pub mod paint;
pub mod picture;
pub mod prefix;
pub mod print;
pub mod report;
pub mod statusline;
pub mod story;
pub mod table;
pub mod top;
pub mod when;
