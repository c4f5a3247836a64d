#![no_main]

use std::cell::OnceCell;
use std::path::Path;

use cpw_fuzz::index::Bench;

thread_local! {
    /// In the folder that `.ci/fuzz` made, which it removes.
    static BENCH: OnceCell<Bench> = const { OnceCell::new() };
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| BENCH.with(|bench| {
    let folder = || std::env::var_os("CPW_FUZZ_DIR").expect("CPW_FUZZ_DIR names a folder for a run");
    bench.get_or_init(|| Bench::new(Path::new(&folder()))).check(bytes);
}));
