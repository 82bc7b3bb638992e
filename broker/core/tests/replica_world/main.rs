//! Thousands of generated histories of the replicas of one partition and their controller: kills, power cuts of one and of
//! all at once, restarts, cut links, late and doubled messages, failing flushes, changed durabilities, retention. What is
//! held in each is listed in `oracle.rs`. The logs are models; `tests/tests/replica_histories.rs` has the real ones.
//!
//! `HIGHWATER_SEED` and `HIGHWATER_HISTORIES` choose other and more of them; a seed that fails prints its events.

#![cfg(test)]

mod controller;
mod events;
mod network;
mod oracle;
mod process;
mod random;
mod settle;
mod store;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater_broker_core::durability::Durability;

use world::{Counts, Options, run};

/// The seed of the first history.
const SEED: u64 = 1;

#[expect(clippy::disallowed_methods, reason = "which histories a test runs may be chosen from outside")]
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Runs histories on two threads and returns what they have seen together.
fn histories(count: u64, options: impl Fn(u64) -> Options + Sync) -> Counts {
    let first = setting("HIGHWATER_SEED", SEED);
    let last = first + setting("HIGHWATER_HISTORIES", count);
    let next = AtomicU64::new(first);
    let failures = Mutex::new(Vec::new());
    let counts = Mutex::new(Counts::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= last || failures.lock().unwrap().len() >= 3 {
                        return;
                    }
                    match run(seed, options(seed), false) {
                        Ok(seen) => counts.lock().unwrap().add(&seen),
                        Err(_) => failures.lock().unwrap().push(seed),
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort_unstable();
    if let Some(seed) = failures.first() {
        let text = run(*seed, options(*seed), true).expect_err("the same history succeeds");
        panic!("seeds {failures:?} fail, the first of them so:\n{text}");
    }
    counts.into_inner().unwrap()
}

#[test]
fn committed_records_survive_everything_under_fsync() {
    let counts = histories(3000, |seed| Options {
        replicas: [3, 3, 3, 1, 2, 4, 5][(seed % 7) as usize],
        ..Options::new(Durability::Fsync)
    });
    println!("{counts:?}");
    assert_eq!(counts.lost, 0);
}

#[test]
fn committed_records_survive_kills_and_changes_of_durability() {
    let durability = [Durability::Os, Durability::Fsync];
    let counts = histories(3000, |seed| Options {
        durability_changes: true,
        ..Options::new(durability[(seed % 2) as usize])
    });
    println!("{counts:?}");
    assert_eq!(counts.lost, 0);
}

#[test]
fn a_laxer_durability_loses_records_in_a_power_cut_but_never_diverges() {
    let counts = histories(2000, |seed| Options {
        durability_changes: seed % 3 == 0,
        loss: true,
        ..Options::new(Durability::Os)
    });
    println!("{counts:?}");
    assert!(counts.lost > 0, "nothing was lost: {counts:?}");
}
