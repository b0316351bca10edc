#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| noxrunner::fuzz::lists(data));
