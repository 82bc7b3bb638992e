//! Thousands of generated lives of three replicas on disks that lose and tear what was not synced: elections, fencings,
//! late news, cut links, kills, power cuts of one, of two and of all three at once, failing flushes, changes of
//! durability. Afterwards the cluster heals by itself, and nothing that was acknowledged is lost.
//!
//! `HIGHWATER_SEED` and `HIGHWATER_HISTORIES` choose other and more of them (`just sim`).

#![cfg(test)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater_broker_core::durability::Durability;
use highwater_tests::sim::random::Random;
use highwater_tests::sim::replica_world::{Dangers, Seen, World};

/// Histories of one test run.
const HISTORIES: u64 = 2000;
/// The seed of the first.
const SEED: u64 = 1;
/// Things that happen in a history before it heals.
const ACTIONS: u64 = 900;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Six of ten histories are of the default durability with power cuts.
fn dangers(random: &mut Random) -> Dangers {
    let fsync = Dangers {
        power_cuts: true,
        failing_flushes: false,
        durability: Durability::Fsync,
        durability_changes: false,
    };
    match random.below(10) {
        0..5 => fsync,
        5..7 => Dangers { failing_flushes: true, ..fsync },
        7 => Dangers { durability_changes: true, ..fsync },
        8 => Dangers { power_cuts: false, durability: Durability::Os, ..fsync },
        _ => Dangers { durability: Durability::Os, ..fsync },
    }
}

fn history(seed: u64) -> Result<Seen, String> {
    let mut random = Random::new(seed);
    let dangers = dangers(&mut random);
    let told = |error: String| format!("{dangers:?}: {error}");
    let mut world = World::new(seed, dangers).map_err(told)?;
    for _ in 0..random.below(ACTIONS) + ACTIONS / 2 {
        world.act().map_err(told)?;
    }
    world.heal_and_check().map_err(told)?;
    Ok(world.seen)
}

#[test]
fn nothing_acknowledged_is_lost_and_the_cluster_serves_again() {
    let (first, count) = (setting("HIGHWATER_SEED", SEED), setting("HIGHWATER_HISTORIES", HISTORIES));
    let next = AtomicU64::new(first);
    let (failures, seen) = (Mutex::new(Vec::new()), Mutex::new(Seen::default()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match std::panic::catch_unwind(|| history(seed)) {
                        Ok(Ok(of)) => add(&mut seen.lock().unwrap(), of),
                        Ok(Err(failure)) => failures.lock().unwrap().push(format!("seed {seed}: {failure}")),
                        Err(_) => failures.lock().unwrap().push(format!("seed {seed}: panicked")),
                    }
                }
            });
        }
    });
    let (failures, seen) = (failures.into_inner().unwrap(), seen.into_inner().unwrap());
    println!("{count} histories: {seen:?}");
    assert!(
        failures.is_empty(),
        "{} histories fail, among them:\n{}",
        failures.len(),
        failures[..failures.len().min(5)].join("\n")
    );
    for (what, happened) in [
        ("acknowledged", seen.acknowledged / 20),
        ("crashes", seen.crashes),
        ("crashes of all", seen.crashes_of_all * 2),
        ("leaderships", seen.leaderships),
        ("truncations", seen.truncations * 5),
        ("failed flushes", seen.flushes_failed * 20),
        ("refused proposals", seen.refused * 2),
        ("durabilities recorded", seen.recorded * 20),
    ] {
        assert!(happened >= count, "the histories are tame, too few {what}: {seen:?}");
    }
}

fn add(sum: &mut Seen, of: Seen) {
    sum.acknowledged += of.acknowledged;
    sum.crashes += of.crashes;
    sum.crashes_of_all += of.crashes_of_all;
    sum.leaderships += of.leaderships;
    sum.truncations += of.truncations;
    sum.flushes_failed += of.flushes_failed;
    sum.refused += of.refused;
    sum.repaired += of.repaired;
    sum.recorded += of.recorded;
}
