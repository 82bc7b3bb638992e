//! Thousands of generated lives of a log that is compacted while it is appended to, flushed, cut and let go of, on a disk
//! that drops, tears and reorders what was not synced; kills and power cuts at any moment of a pass. Each recovery is run
//! twice, and once more without the snapshots of producers.
//!
//! `HIGHWATER_SEED` and `HIGHWATER_HISTORIES` choose other and more of them (`just sim`).

#![cfg(test)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use highwater_tests::sim::disk::{Chaos, FaultKind};
use highwater_tests::sim::keyed_world::KeyedWorld;
use highwater_tests::sim::log_model::Crash;

/// Histories of one test run.
const HISTORIES: u64 = 300;
/// The seed of the first.
const SEED: u64 = 1;
/// Lives of one history: each ends with a crash.
const LIVES: u64 = 4;
/// What a life consists of.
const STEPS: u64 = 400;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[derive(Debug, Default)]
struct Counts {
    passes: AtomicU64,
    swaps: AtomicU64,
    given_up: AtomicU64,
    cut_within_passes: AtomicU64,
    records_gone: AtomicU64,
}

#[test]
fn h14_h15_a_compacted_log_keeps_what_matters_whatever_happens_when() {
    let (first, count) = (setting("HIGHWATER_SEED", SEED), setting("HIGHWATER_HISTORIES", HISTORIES));
    let counts = Counts::default();
    let failures = Mutex::new(Vec::new());
    let next = AtomicU64::new(first);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let failure = match std::panic::catch_unwind(|| history(seed, &counts)) {
                        Ok(Ok(())) => continue,
                        Ok(Err(failure)) => failure,
                        Err(_) => "panicked".to_owned(),
                    };
                    failures.lock().unwrap().push(format!("seed {seed}: {failure}"));
                }
            });
        }
    });
    println!("{count} histories: {counts:?}");
    let failures = failures.into_inner().unwrap();
    assert!(
        failures.is_empty(),
        "{} histories fail, among them:\n{}",
        failures.len(),
        failures[..failures.len().min(10)].join("\n")
    );
    for (what, least) in [
        (&counts.passes, count * 2),
        (&counts.swaps, count * 4),
        (&counts.given_up, count / 2),
        (&counts.cut_within_passes, count / 4),
        (&counts.records_gone, count * 100),
    ] {
        assert!(what.load(Ordering::Relaxed) > least, "the histories are tame: {counts:?}");
    }
}

fn history(seed: u64, counts: &Counts) -> Result<(), String> {
    let mut world = KeyedWorld::new(seed);
    world.disk.set_chaos(Chaos {
        short_write_percent: world.random.below(20) as u32,
        write_back_percent: world.random.below(30) as u32,
        not_resident_percent: world.random.below(60) as u32,
    });
    for life in 0..LIVES {
        let told = |failure| format!("life {life}: {failure}");
        let crash = live(&mut world, counts).map_err(told)?;
        world.crash(crash).map_err(told)?;
        world.check().map_err(told)?;
    }
    counts.passes.fetch_add(world.passes, Ordering::Relaxed);
    counts.swaps.fetch_add(world.swaps, Ordering::Relaxed);
    counts.given_up.fetch_add(world.given_up, Ordering::Relaxed);
    let there = highwater_tests::sim::keyed_world::held(world.log())?;
    counts.records_gone.fetch_add(there.log_end - there.records.len() as u64, Ordering::Relaxed);
    Ok(())
}

fn live(world: &mut KeyedWorld, counts: &Counts) -> Result<Crash, String> {
    let steps = world.random.below(STEPS);
    for _ in 0..steps {
        if !step(world) {
            break;
        }
        if world.random.percent(2) {
            world.check()?;
        }
    }
    // A crash at some moment of a pass, the end of it included.
    if world.random.percent(70) {
        world.disk.cut_after(world.random.below(60));
        while world.disk.has_power() && world.clean() {}
        if !world.disk.has_power() {
            counts.cut_within_passes.fetch_add(1, Ordering::Relaxed);
            return Ok(Crash::Power);
        }
        world.disk.cut_never();
    }
    world.check()?;
    Ok(if world.random.percent(50) { Crash::Power } else { Crash::Process })
}

/// Something happens. False: the power is gone.
fn step(world: &mut KeyedWorld) -> bool {
    match world.random.below(100) {
        0..35 => {
            world.append();
        }
        35..55 => world.flush(),
        55..60 => world.maintain(None),
        60..61 => world.maintain(Some(60_000)),
        61..63 => world.next_epoch(),
        63..65 => {
            world.truncate();
        }
        65..70 => world.wait(30),
        70..73 => {
            // A disk that fails in the middle of a pass.
            let kind = if world.random.percent(50) { FaultKind::WriteFails } else { FaultKind::SyncFails };
            world.disk.fail(kind, "80000000", 1);
            world.clean();
            world.disk.heal();
        }
        _ => {
            world.clean();
        }
    }
    world.disk.has_power()
}

#[test]
fn nothing_is_rewritten_before_there_is_a_manifest() {
    let mut world = KeyedWorld::new(7);
    world.disk.fail(FaultKind::WriteFails, "manifest", u32::MAX);
    while world.log().segment_count() < 4 {
        assert!(world.append());
        world.flush();
    }
    assert!(!world.clean(), "a new segment would say that a manifest was lost");
    world.disk.heal();
    world.maintain(None);
    assert!(world.clean(), "there is something to clean");
    world.crash(Crash::Process).unwrap();
    world.check().unwrap();
}
