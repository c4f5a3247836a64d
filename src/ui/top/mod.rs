//! The live view of `cpw top`: what a person can look at and press there, and how it is drawn. Keys, the view's state and the
//! picture are pure; only `screen` touches a terminal. Who collects what is shown, and acts, is `cmd::top`.
//!
//! Of this folder only `draw` and `screen` name the terminal library; beside it `ui::fit` does, to count columns.

pub mod draw;
pub mod facts;
pub mod keys;
pub mod layout;
pub mod past;
pub mod picture;
pub mod screen;
#[cfg(test)]
mod testing;
pub mod view;
pub mod window;
