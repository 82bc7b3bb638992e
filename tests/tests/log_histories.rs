//! Thousands of generated lives of a log on a disk that drops, tears and reorders what was not synced: appends, rolls,
//! flush completions in any order, truncations, retention, changes of durability, failing writes and syncs, full disks;
//! kills and power cuts at any moment, in the middle of a recovery too. Each recovery is run twice and compared.
//!
//! `HIGHWATER_SEED` and `HIGHWATER_HISTORIES` choose other and more of them (`just sim`).

#![cfg(test)]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use highwater_broker_core::durability::Durability;
use highwater_protocol::ids::Offset;
use highwater_tests::sim::disk::{Chaos, Fault, FaultKind};
use highwater_tests::sim::log_model::Crash;
use highwater_tests::sim::log_world::{LogWorld, Unread, read, small_log};
use highwater_tests::sim::random::Random;

/// Histories of one test run.
const HISTORIES: u64 = 2000;
/// The seed of the first.
const SEED: u64 = 1;

/// Lives of one history: each ends with a crash.
const LIVES: u64 = 3;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

/// What the histories together have seen, so that a change which makes them tame is noticed.
#[derive(Debug, Default)]
struct Counts {
    crashes: AtomicU64,
    cuts_in_recovery: AtomicU64,
    refused: AtomicU64,
    records_checked: AtomicU64,
    truncations: AtomicU64,
    segments_removed: AtomicU64,
    flushes_failed: AtomicU64,
    records_lost: AtomicU64,
}

impl Counts {
    fn add(count: &AtomicU64, more: u64) {
        count.fetch_add(more, Ordering::Relaxed);
    }
}

#[test]
fn acknowledged_records_survive() {
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
                    let result = std::panic::catch_unwind(|| history(seed, &counts));
                    let failure = match result {
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
    let seen = |count: &AtomicU64| count.load(Ordering::Relaxed);
    assert!(seen(&counts.crashes) >= count * LIVES, "{counts:?}");
    for rare in [
        &counts.cuts_in_recovery,
        &counts.refused,
        &counts.truncations,
        &counts.segments_removed,
        &counts.flushes_failed,
    ] {
        assert!(seen(rare) > count / 50, "the histories are tame: {counts:?}");
    }
    assert!(seen(&counts.records_lost) > count, "power cuts lose nothing: {counts:?}");
}

fn history(seed: u64, counts: &Counts) -> Result<(), String> {
    let mut world = LogWorld::new(seed);
    world.disk.set_chaos(Chaos {
        short_write_percent: world.random.below(20) as u32,
        write_back_percent: world.random.below(30) as u32,
        not_resident_percent: world.random.below(60) as u32,
    });
    for life in 0..LIVES {
        let told = |failure| format!("life {life}: {failure}");
        live(&mut world, counts).map_err(told)?;
        let crash = if world.random.percent(65) { Crash::Power } else { Crash::Process };
        die(&mut world, crash, counts).map_err(told)?;
    }
    Ok(())
}

/// A life of the process. It may end early when the power goes off in the middle of something.
fn live(world: &mut LogWorld, counts: &Counts) -> Result<(), String> {
    let steps = 10 + world.random.below(50);
    if world.random.percent(60) {
        let operations = world.random.below(steps * 3);
        world.disk.cut_after(operations);
    }
    let told = std::env::var_os("HIGHWATER_TELL").is_some();
    for number in 0..steps {
        let result = step(world, counts);
        if told {
            let model = &world.model;
            println!(
                "step {number}: written {}, flushed {}, committed {}, epoch {}, rounds {}, power {}: {result:?}",
                model.written_end,
                model.flushed_end,
                model.high_watermark,
                model.epoch,
                world.disk.rounds_pending(),
                world.disk.has_power()
            );
            if result.is_err() {
                println!("{:?}", world.disk.files());
                for place in highwater_tests::sim::log_files::places(&world.disk) {
                    println!("{place:?}");
                }
            }
        }
        let kind = result?;
        if told {
            println!("  {kind}");
        }
        if !world.disk.has_power() {
            break;
        }
        world.take_outcomes()?;
        if !world.disk.has_power() {
            break;
        }
        let violations = world.disk.violations();
        if !violations.is_empty() {
            return Err(format!("mapped bytes are not immutable: {violations:?}"));
        }
    }
    Ok(())
}

fn step(world: &mut LogWorld, counts: &Counts) -> Result<&'static str, String> {
    let kind = world.random.below(100);
    match kind {
        0..45 => append(world, counts)?,
        45..66 => {
            let pending = world.disk.rounds_pending();
            let index = world.random.index(pending.max(1));
            world.disk.complete_round(index);
        }
        66..74 => {
            let end = world.random.within(world.model.high_watermark..world.model.flushed_end + 1);
            world.model.commit(end);
        }
        74..82 => check_read(world)?,
        82..86 => {
            let millis = world.random.below(3_000_000);
            world.clock.advance(Duration::from_millis(millis));
        }
        86..90 => maintain(world, counts)?,
        90..92 => truncate(world, counts)?,
        92..94 => configure(world),
        94..96 => plan_fault(world, counts),
        96..98 => {
            world.log().request_flush();
            // What would be found if the power were cut right now; the history goes on.
            world.check_cut_now()?;
        }
        _ => reopen(world)?,
    }
    Ok(match kind {
        0..45 => "append",
        45..66 => "complete a round",
        66..74 => "commit",
        74..82 => "read",
        82..86 => "time passes",
        86..90 => "maintain",
        90..92 => "truncate",
        92..94 => "configure",
        94..96 => "plan a fault",
        96..98 => "look at a cut",
        _ => "stop and start",
    })
}

fn append(world: &mut LogWorld, counts: &Counts) -> Result<(), String> {
    let batches = 1 + world.random.below(4);
    let value_bytes = match world.random.below(10) {
        0 => 6000,
        1..4 => 900,
        _ => 60,
    };
    let expected = world.model.written_end;
    if world.append(batches, value_bytes).is_err() {
        Counts::add(&counts.refused, 1);
        let log_end = world.log().log_end().get();
        if world.disk.has_power() && log_end != expected {
            return Err(format!("a failed append moved the log end from {expected} to {log_end}"));
        }
    } else if world.log().log_end().get() != world.model.written_end {
        return Err(format!(
            "log end {} after an append to {}",
            world.log().log_end(),
            world.model.written_end
        ));
    }
    Ok(())
}

fn check_read(world: &mut LogWorld) -> Result<(), String> {
    let (start, end) = (world.log().log_start().get(), world.model.written_end);
    if start == end {
        return Ok(());
    }
    let from = world.random.within(start..end);
    let upto = world.random.within(from + 1..end + 1);
    let bytes_max = world.random.index(40_000);
    match read(world.log(), from, upto, bytes_max) {
        Ok(seen) => {
            let next = seen.last().map_or(from, |last| last.offset + 1);
            if next <= from {
                return Err(format!("a read of {from}..{upto} returned nothing"));
            }
            if next > upto {
                return Err(format!("a read of {from}..{upto} returned records up to {next}"));
            }
            world.model.check_read(from..next, &seen)
        }
        // The last batch may go on past the bound.
        Err(Unread::Nothing) => Ok(()),
        Err(_) if !world.disk.has_power() => Ok(()),
        Err(Unread::Failed(_)) if world.disk.stats().faults > 0 => Ok(()),
        Err(unread) => Err(format!("a read of {from}..{upto}: {unread:?}")),
    }
}

fn maintain(world: &mut LogWorld, counts: &Counts) -> Result<(), String> {
    let high_watermark = Offset(world.model.high_watermark);
    let now = highwater_broker::env::Clock::wall(&*world.clock);
    let before = world.log().log_start().get();
    match world.log().maintain(now, high_watermark) {
        Ok(done) => Counts::add(&counts.segments_removed, done.segments_removed as u64),
        Err(_) if world.disk.has_power() && world.disk.stats().faults == 0 => {
            return Err("maintain failed although nothing is wrong".to_owned());
        }
        Err(_) => {}
    }
    let log_start = world.log().log_start().get();
    if log_start < before || log_start > high_watermark.get().max(before) {
        return Err(format!(
            "log start moved from {before} to {log_start}, the high watermark is {high_watermark}"
        ));
    }
    world.model.log_start_max = world.model.log_start_max.max(log_start);
    Ok(())
}

fn truncate(world: &mut LogWorld, counts: &Counts) -> Result<(), String> {
    let least = world.model.high_watermark.max(world.log().log_start().get());
    let to = world.random.within(least..world.model.written_end + 1);
    world.truncate(to)?;
    Counts::add(&counts.truncations, 1);
    Ok(())
}

fn configure(world: &mut LogWorld) {
    let durability = match world.random.below(4) {
        0 => Durability::Os,
        1 => Durability::Interval(Duration::from_millis(100)),
        _ => Durability::Fsync,
    };
    let mut config = small_log(durability);
    config.limits.segment_bytes = 4096 << world.random.below(5);
    config.limits.retention_bytes = world.random.percent(50).then(|| 1 << (12 + world.random.below(5)));
    config.limits.retention_age =
        world.random.percent(40).then(|| Duration::from_secs(world.random.clone().below(9000)));
    world.config = config;
    world.log().configure(config);
}

fn plan_fault(world: &mut LogWorld, counts: &Counts) {
    let (skip, count) = (world.random.below(3) as u32, 1 + world.random.below(2) as u32);
    let kind = match world.random.below(12) {
        0..3 => FaultKind::WriteFails,
        3..6 => FaultKind::WriteShort,
        6..8 => FaultKind::NoSpace,
        8..10 => {
            Counts::add(&counts.flushes_failed, 1);
            FaultKind::SyncFails
        }
        10 => FaultKind::DirectorySyncFails,
        _ => FaultKind::ReadFails,
    };
    // A write that falls short is what a failing one comes after.
    if kind == FaultKind::WriteShort {
        world.disk.plan(Fault {
            kind: FaultKind::WriteFails,
            path_part: ".segment".to_owned(),
            skip: skip + 1,
            count: 1,
        });
    }
    world.disk.plan(Fault { kind, path_part: ".segment".to_owned(), skip, count });
}

/// A clean stop and start.
fn reopen(world: &mut LogWorld) -> Result<(), String> {
    world.disk.heal();
    while world.disk.complete_round(0) {}
    world.take_outcomes()?;
    world.reopen_cleanly()
}

fn die(world: &mut LogWorld, crash: Crash, counts: &Counts) -> Result<(), String> {
    let written_end = world.model.written_end;
    world.crash(crash);
    if std::env::var_os("HIGHWATER_TELL").is_some() {
        println!("a {crash:?} crash");
    }
    world.disk.heal();
    Counts::add(&counts.crashes, 1);
    let mut crash = crash;
    if world.random.percent(40) {
        // Another crash in the middle of the recovery.
        let operations = world.random.below(12);
        world.disk.cut_after(operations);
        let _ = highwater_tests::sim::log_world::open(&world.disk, world.config);
        if !world.disk.has_power() {
            Counts::add(&counts.cuts_in_recovery, 1);
        }
        if world.random.percent(60) {
            crash = Crash::Power;
        }
        world.crash(if crash == Crash::Power { Crash::Power } else { Crash::Process });
    }
    if std::env::var_os("HIGHWATER_TELL").is_some() {
        println!("then a {crash:?} crash leaves {:?}", world.disk.files());
        for place in highwater_tests::sim::log_files::places(&world.disk) {
            println!("{place:?}");
        }
    }
    world.recover(crash)?;
    Counts::add(&counts.records_lost, written_end.saturating_sub(world.model.written_end));
    Counts::add(&counts.records_checked, world.model.written_end);
    Ok(())
}

#[test]
fn a_seed_is_a_history() {
    let digest = |seed| {
        let counts = Counts::default();
        history(seed, &counts).unwrap();
        format!("{counts:?}")
    };
    assert_eq!(digest(77), digest(77));
    assert!((78..90).any(|seed| digest(seed) != digest(77)));
    assert_ne!(Random::new(1).next_u64(), Random::new(2).next_u64());
}
