//! Every decoder over the kept corpus, the golden files, and mutations of both.
//!
//! `HIGHWATER_FUZZ_SECONDS=600 HIGHWATER_FUZZ_TARGET=records` mutates for that long with a fresh seed; see fuzz/README.md.
#![cfg(test)]
#![expect(clippy::disallowed_methods, reason = "reads the corpus, and runs for as long as it is told")]

#[path = "../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use targets::{TARGETS, Target};

/// Mutations of every target in an ordinary test run.
const MUTATIONS: u64 = 100_000;
/// Larger inputs only make mutation slower.
const INPUT_BYTES_MAX: usize = 16 << 10;

/// Splitmix64: enough to mutate with, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let from = self.below(length + 1);
        from..from + self.below((length - from).min(64) + 1)
    }
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn corpus_of(target: &str) -> PathBuf {
    package().join("fuzz/corpus").join(target)
}

/// The golden files for every target, and what was kept for this one.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new()];
    for entry in fs::read_dir(package().join("tests/golden")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        seeds.push(
            (0..digits.len() / 2)
                .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
                .collect(),
        );
    }
    for entry in fs::read_dir(corpus_of(target)).into_iter().flatten() {
        seeds.push(fs::read(entry.unwrap().path()).unwrap());
    }
    // The order of a directory is not the same everywhere, and mutations must be.
    seeds.sort();
    seeds
}

fn mutate(random: &mut Random, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    const BORDERS: [u64; 12] =
        [0, 1, 7, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, i64::MAX as u64, u64::MAX];
    for _ in 0..=random.below(4) {
        let length = input.len();
        match random.below(8) {
            0 if length > 0 => input[random.below(length)] ^= 1 << random.below(8),
            1 if length > 0 => input[random.below(length)] = random.next() as u8,
            2 if length > 0 => {
                let width = 1 << random.below(4);
                let number =
                    BORDERS[random.below(BORDERS.len())].wrapping_add(random.below(3) as u64).wrapping_sub(1);
                let at = random.below(length);
                let width = width.min(length - at);
                input[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            3 => drop(input.drain(random.range(length))),
            4 => {
                let copied = input[random.range(length)].to_vec();
                let at = random.below(length + 1);
                input.splice(at..at, copied);
            }
            5 => {
                let other = &others[random.below(others.len())];
                let taken = other[random.range(other.len())].to_vec();
                let at = random.below(length + 1);
                input.splice(at..at, taken);
            }
            6 => input.truncate(random.below(length + 1)),
            _ => {
                let times = random.below(200);
                let pattern = [random.next() as u8, BORDERS[random.below(BORDERS.len())] as u8];
                let at = random.below(length + 1);
                input.splice(at..at, pattern.repeat(times));
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

/// Runs one input; one that breaks a promise is kept before the test fails.
fn run((name, target): Target, input: &[u8], seed: u64) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_ok() {
        return;
    }
    let kept = corpus_of(name).join(format!("{:016x}", highwater_protocol::key_hash::key_hash(input)));
    fs::create_dir_all(corpus_of(name)).unwrap();
    fs::write(&kept, input).unwrap();
    panic!("{name} broke a promise on {} bytes, kept in {} (seed {seed})", input.len(), kept.display());
}

fn fuzz(target: Target, seed: u64, mut go_on: impl FnMut(u64) -> bool) -> u64 {
    let seeds = seeds(target.0);
    for input in &seeds {
        run(target, input, seed);
    }
    let mut random = Random(seed);
    let mut count = 0;
    while go_on(count) {
        let mut input = seeds[random.below(seeds.len())].clone();
        mutate(&mut random, &mut input, &seeds);
        run(target, &input, seed);
        count += 1;
    }
    count
}

/// How long to go on for by hand, and with which target.
fn by_hand() -> Option<(Duration, String)> {
    let seconds = std::env::var("HIGHWATER_FUZZ_SECONDS").ok()?.parse().unwrap();
    let target = std::env::var("HIGHWATER_FUZZ_TARGET").unwrap_or_else(|_| "all".to_owned());
    Some((Duration::from_secs(seconds), target))
}

#[test]
fn every_decoder_keeps_its_promises() {
    let Some((duration, wanted)) = by_hand() else {
        for &target in TARGETS {
            assert_eq!(fuzz(target, 1, |count| count < MUTATIONS), MUTATIONS);
        }
        return;
    };
    let chosen: Vec<Target> =
        TARGETS.iter().copied().filter(|(name, _)| wanted == "all" || wanted == *name).collect();
    assert!(!chosen.is_empty(), "no target {wanted}");
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    for &target in &chosen {
        let until = Instant::now() + duration / chosen.len() as u32;
        let count = fuzz(target, seed, |_| Instant::now() < until);
        println!("{}: {count} inputs, seed {seed}", target.0);
    }
}

#[test]
fn a_decoder_that_panics_is_noticed() {
    let broken: Target = ("broken", |input| assert!(input.len() < 400 || input[0] != 0xb7));
    let noticed = catch_unwind(|| fuzz(broken, 1, |count| count < MUTATIONS)).is_err();
    fs::remove_dir_all(corpus_of("broken")).unwrap();
    assert!(noticed);
}
