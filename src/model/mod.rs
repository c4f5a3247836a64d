//! What is written down, as types: events, plans, configs; and how a prompt matches a rule. Everything here is a function
//! of its arguments: no file is opened, no clock is read.

pub mod check;
pub mod code;
pub mod config;
pub mod describe;
pub mod draft;
pub mod event;
pub mod expand;
pub mod glob;
pub mod growth;
pub mod history;
pub mod json;
pub mod matcher;
pub mod plan;
pub mod resource;
pub mod scan;
pub mod schema;
pub mod settings;
pub mod signal;
pub mod starter;
pub mod status_schema;
pub mod template;
pub mod vote;
pub mod words;
