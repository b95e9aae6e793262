#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| grey_fuzz::run("adopted", data));
