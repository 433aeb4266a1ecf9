#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| orlop_fuzz::udp_in_a_packet(bytes));
