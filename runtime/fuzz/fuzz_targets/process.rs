//! process.json of `exec`.
#![no_main]

use hull_runtime::properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    properties::exec_process(data);
});
