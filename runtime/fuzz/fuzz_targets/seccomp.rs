//! A system call (eight bytes: number and first argument) and a profile; the filter is interpreted.
#![no_main]

use hull_runtime::properties;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let (call, profile) = match data.first() {
        Some(b'{') | None => (&[0; 8][..], data),
        Some(_) => data.split_at(data.len().min(8)),
    };
    let word = |at: usize| {
        call.get(at..at + 4)
            .map_or(0, |word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
    };
    properties::filter(profile, word(0), [u64::from(word(4)); 6]);
});
