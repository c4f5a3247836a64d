//! What tests with the real client stand on. Nothing here is a test.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod http;
pub(crate) mod offline;
pub(crate) mod skip;
pub(crate) mod terminal;
pub(crate) mod world;
