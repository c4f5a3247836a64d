//! What the fuzz targets check, one module per target: a function that takes any bytes and panics where cpw breaks its word
//! about them. The targets (`targets/`) hand them what libFuzzer makes up; `tests/fuzz_corpus.rs` hands them the corpus.

pub mod config;
pub mod index;
pub mod input;
pub mod line;
pub mod plan;
pub mod prompt;
pub mod settings;
pub mod template;
pub mod text;
