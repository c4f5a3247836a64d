//! What is written down, as types: events, plans, configs; and how a prompt matches a rule. Everything here is a function
//! of its arguments: no file is opened, no clock is read.

pub mod event;
pub mod glob;
pub mod json;
pub mod plan;
pub mod template;
pub mod words;
