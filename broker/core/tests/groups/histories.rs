//! Generated histories: members that come, go, pause and crash, messages that are late, lost or twice, coordinators that
//! die, topics that grow. Seeds are fixed; `HIGHWATER_SEED` and `HIGHWATER_HISTORIES` choose others.

use std::collections::BTreeMap;

use highwater_broker_core::group::record::Record;

use crate::world::{World, read};

const STEPS: u64 = 500;

#[expect(clippy::disallowed_methods, reason = "a test may be asked for more histories")]
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Must-show: at no time two members have one partition, every partition that is wanted ends with an owner, and nothing
/// moves that could stay.
#[test]
fn histories_keep_every_invariant() {
    let first = setting("HIGHWATER_SEED", 1);
    let count = setting("HIGHWATER_HISTORIES", 240);
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    let mut steps = 0;
    for seed in first..first + count {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.client_comes();
            for _ in 0..STEPS {
                world.happen();
            }
            world.heal();
            (world.step, world.counts)
        });
        let (taken, counts) =
            outcome.unwrap_or_else(|_| panic!("HIGHWATER_SEED={seed} HIGHWATER_HISTORIES=1"));
        steps += taken;
        for (what, count) in counts {
            *totals.entry(what).or_default() += count;
        }
    }
    println!("{steps} steps: {totals:?}");
    assert!(count < 240 || steps >= 100_000);
    // A history in which nothing happens shows nothing.
    for what in
        ["joins", "restarts", "pauses", "fenced", "replaced", "fail-overs", "commits", "commits refused"]
    {
        assert!(count < 240 || totals.get(what).is_some_and(|count| *count > 20), "{what}: {totals:?}");
    }
}

/// The order of keys does not matter, only that of the values of one key: a cleaned log has the same state.
#[test]
fn the_state_is_the_last_value_of_each_key_in_any_order() {
    for seed in 1..=12 {
        let mut world = World::new(seed);
        world.client_comes();
        for _ in 0..STEPS {
            world.happen();
        }
        let whole: Vec<Record> = world.bench.shard.records().collect();
        let mut last: Vec<Record> = {
            let by_key: BTreeMap<Vec<u8>, &Record> =
                world.bench.log.iter().map(|record| (record.key(), record)).collect();
            by_key.into_values().cloned().collect()
        };
        for _ in 0..8 {
            for at in (1..last.len()).rev() {
                last.swap(at, world.dice.below(at + 1));
            }
            assert_eq!(read(&world, &last).records().collect::<Vec<_>>(), whole, "seed {seed}");
        }
    }
}

/// A coordinator that dies in the middle of a batch leaves something to go on from, after every record.
#[test]
fn every_beginning_of_the_log_is_a_state_to_go_on_from() {
    for seed in 1..=3 {
        let mut world = World::new(seed);
        world.client_comes();
        for _ in 0..STEPS {
            world.happen();
        }
        let log = world.bench.log.clone();
        for end in 0..=log.len() {
            let mut shard = read(&world, &log[..end]);
            shard.check_invariants().unwrap();
            let now = world.bench.now();
            let decision = shard.tick(now);
            shard.accept(now.mono, &decision);
            shard.check_invariants().unwrap();
            // What it assigns at once is final: another coordinator finds nothing to change.
            let settled = shard.tick(now);
            assert_eq!(settled.records, [], "seed {seed}, {end} records");
        }
    }
}
