#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cpw_fuzz::config::check(bytes));
