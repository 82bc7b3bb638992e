//! All decoders under libFuzzer, which follows coverage: `protocol/fuzz/run`. The first byte picks the decoder.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&first, rest)) = input.split_first() else { return };
    let (_, target) = targets::TARGETS[usize::from(first) % targets::TARGETS.len()];
    target(rest);
});
