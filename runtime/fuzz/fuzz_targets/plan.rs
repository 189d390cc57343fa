//! config.json: parsed and laid out as a plan.
#![no_main]

use hull_runtime::properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    properties::configuration(data);
});
