//! What the fuzz targets check, one module per target: a function that takes any bytes and panics where cpw breaks its word
//! about them. The targets (`targets/`) hand them what libFuzzer makes up; `tests/fuzz_corpus.rs` hands them the corpus.

pub mod index;
pub mod input;
pub mod line;
pub mod plan;
pub mod prompt;
pub mod settings;

/// Whether every number in this JSON comes back from reading and writing as it was. Not each one with a fraction does: the
/// reader of numbers that cpw has is fast, and may miss the last digit.
fn is_exact(json: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(json).is_ok_and(|value| value.to_string().as_bytes() == json)
}
