#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| orlop_fuzz::cluster_certificate(bytes));
