//! Feeds libFuzzer's bytes to the target `channel`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    picket_fuzz::targets::channel(bytes);
});
