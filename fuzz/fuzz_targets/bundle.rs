//! Feeds libFuzzer's bytes to the target `bundle`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    picket_fuzz::targets::bundle(bytes);
});
