//! The holes of brokers before this one that concern one log: a test for each, named after its row. Each fails when its
//! rule is taken out (`tests/mutate/run.sh`).

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

use std::path::Path;

use highwater_broker_core::durability::Durability;
use highwater_broker_core::replica::{Assignment, Condition, Input, Opened, Replica};
use highwater_broker_core::time::Mono;
use highwater_protocol::ids::{BrokerEpoch, LeaderEpoch, NodeId, Offset};
use highwater_protocol::messages::Stage;
use highwater_tests::sim::disk::FaultKind;
use highwater_tests::sim::log_files::{Place, places};
use highwater_tests::sim::log_model::Crash;
use highwater_tests::sim::log_world::{LogWorld, Unread, contents, open, read};

/// Appends calls of two batches; each is flushed and committed before the next, so that its batches know.
fn append_flushed(world: &mut LogWorld, calls: u64) {
    for _ in 0..calls {
        world.append(2, 300).unwrap();
        flush(world);
    }
}

fn flush(world: &mut LogWorld) {
    while world.disk.complete_round(0) {}
    world.take_outcomes().unwrap();
    assert_eq!(world.model.flushed_end, world.model.written_end);
    world.model.commit(world.model.flushed_end);
}

/// Flips a bit in the middle of a batch, on the disk and for readers of the page cache.
fn damage(world: &LogWorld, place: &Place) {
    let middle = u64::midpoint(place.positions.start, place.positions.end);
    world.disk.flip_bit(&place.path, middle, 3, true).unwrap();
}

#[test]
fn h9_the_clean_marker_is_gone_before_anything_changes() {
    for seed in 0..100 {
        let mut world = LogWorld::new(seed);
        append_flushed(&mut world, 3);
        world.reopen_cleanly().unwrap();
        // The directory is open again: from here on a crash must not look like that clean stop, whatever changes.
        append_flushed(&mut world, seed % 3);
        if seed % 2 == 0 {
            let to = world.model.high_watermark;
            world.append(3, 2000).unwrap();
            world.truncate(to).unwrap();
        }
        world.append(4, 2000).unwrap();
        let crash = if seed % 5 == 0 { Crash::Process } else { Crash::Power };
        world.crash(crash);
        let fork = world.disk.fork();
        let running = open(&fork, world.config).unwrap();
        assert!(!running.store_report.boot.clean, "seed {seed}: a crash passes for a clean stop");
        world.recover(crash).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

#[test]
fn h10_a_bad_batch_below_the_durable_end_is_a_hole_and_not_the_end_of_the_log() {
    for (seed, crash) in (0..40).flat_map(|seed| [(seed, Crash::Process), (seed, Crash::Power)]) {
        let mut world = LogWorld::new(seed);
        append_flushed(&mut world, 6);
        world.append(2, 300).unwrap();
        let end_min = world.model.flushed_end;
        world.crash(crash);
        let damaged = places(&world.disk).swap_remove(2 + seed as usize % 6);
        damage(&world, &damaged);
        if seed % 2 == 0 {
            // Then only the later batches know that it was durable.
            world.disk.flip_bit(Path::new("/data/slots"), 5, 1, true).unwrap();
        }

        let mut running = open(&world.disk, world.config).unwrap();
        let there = contents(&mut running.log).unwrap();
        assert_eq!(there.holes, std::slice::from_ref(&damaged.offsets), "seed {seed}");
        assert!(there.log_end >= end_min, "seed {seed}: the log ends at {}, not at {end_min}", there.log_end);
        let served: Vec<u64> = there.records.iter().map(|seen| seen.offset).collect();
        let expected: Vec<u64> =
            (0..there.log_end).filter(|offset| !damaged.offsets.contains(offset)).collect();
        assert_eq!(served, expected, "seed {seed}: everything else is served");
        assert!(!running.report.new_holes.is_empty(), "seed {seed}: the operator is told");

        // Appends go on, and another recovery finds the same.
        drop(running);
        world.disk.process_crash();
        let mut again = open(&world.disk, world.config).unwrap();
        assert_eq!(contents(&mut again.log).unwrap(), there, "seed {seed}");
        let inside = damaged.offsets.start;
        assert_eq!(read(&mut again.log, inside, there.log_end, 1 << 20), Err(Unread::Hole(damaged.offsets)));
    }
}

#[test]
fn h11_an_acknowledged_offset_is_never_given_out_again() {
    for seed in 0..40 {
        let mut world = LogWorld::new(seed);
        append_flushed(&mut world, 3);
        let known = world.model.flushed_end;
        // The round after this one makes it known that all so far was flushed.
        append_flushed(&mut world, 1);
        world.crash(Crash::Power);
        let first_lost = places(&world.disk)[3].offsets.start;
        for place in places(&world.disk).split_off(3) {
            damage(&world, &place);
        }
        let mut running = open(&world.disk, world.config).unwrap();
        let log_end = running.log.log_end().get();
        assert!(
            log_end >= known,
            "seed {seed}: offsets from {log_end} on, acknowledged up to {known}, are given out again"
        );
        let there = contents(&mut running.log).unwrap();
        assert_eq!(
            there.holes,
            vec![first_lost..log_end],
            "seed {seed}: what is lost is reported, not served as something else"
        );
        drop(running);
        world.disk.power_cut(seed);
        assert_eq!(
            contents(&mut open(&world.disk, world.config).unwrap().log).unwrap(),
            there,
            "seed {seed}"
        );
    }
}

#[test]
fn h18_a_failed_fsync_is_not_retried() {
    for seed in 0..100 {
        let mut world = LogWorld::new(seed);
        append_flushed(&mut world, 2);
        let flushed = world.model.flushed_end;
        world.append(3, 1500).unwrap();
        world.disk.fail(FaultKind::SyncFails, ".segment", 1);
        assert!(world.disk.complete_round(0));
        // The kernel would answer a second fsync with success. Whatever the log does now, what it says must be true.
        while world.disk.complete_round(0) {}
        let outcomes = world.running.as_ref().unwrap().outcomes.take();
        for outcome in &outcomes {
            use highwater_broker::storage::sink::FlushOutcome;
            assert!(
                matches!(outcome, FlushOutcome::Failed { .. }),
                "seed {seed}: after a failed fsync {outcome:?} is reported"
            );
        }
        assert_eq!(outcomes.len(), 1, "the owner is told");
        assert!(world.append(1, 10).is_ok() || world.log().log_end().get() >= flushed, "seed {seed}");
        world.verify().unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        append_flushed(&mut world, 2);
        world.append(1, 100).unwrap();
        world.crash(Crash::Power);
        world.recover(Crash::Power).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}

#[test]
fn h18_a_crash_after_a_failed_fsync_trusts_nothing_that_only_the_page_cache_has() {
    for seed in 0..100 {
        let mut world = LogWorld::new(seed);
        append_flushed(&mut world, 2);
        world.append(3, 1500).unwrap();
        world.disk.fail(FaultKind::SyncFails, ".segment", 1);
        assert!(world.disk.complete_round(0));
        world.log().mark_suspect().unwrap();
        // Killed, not cut: the page cache still shows the lost pages, as clean ones.
        world.crash(Crash::Process);
        world.model.flush_failed = true;
        world.recover(Crash::Process).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        // What the cache still shows behind the end must not come back behind a short append.
        world.append(1, 20).unwrap();
        world.crash(Crash::Process);
        world
            .recover(Crash::Process)
            .unwrap_or_else(|wrong| panic!("seed {seed}, after another append: {wrong}"));
    }
}

#[test]
fn h19_the_name_of_a_new_segment_is_durable_before_its_records_are_acknowledged() {
    let mut rolled = 0;
    for seed in 0..60 {
        let mut world = LogWorld::new(seed);
        for _ in 0..8 {
            append_flushed(&mut world, 1);
            world.append(2, 4000).unwrap();
            flush(&mut world);
            world.check_cut_now().unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        }
        rolled += world.log().segment_count() - 1;
    }
    assert!(rolled > 60, "there are new segments");
}

#[test]
fn h22_what_recovery_cuts_is_gone_for_good() {
    let mut cut = 0;
    for seed in 0..200 {
        let mut world = LogWorld::new(seed);
        append_flushed(&mut world, 1);
        world.append(3, 1200).unwrap();
        world.append(2, 1200).unwrap();
        world.crash(Crash::Power);
        world.recover(Crash::Power).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
        cut += u64::from(world.running.as_ref().unwrap().report.cut.is_some());
        let last = places(&world.disk).pop().unwrap();
        let behind = world.disk.read(&last.path).unwrap().split_off(last.positions.end as usize);
        assert!(behind.iter().all(|byte| *byte == 0), "seed {seed}: torn bytes lie behind the log end");
        // A short append lands where the torn batches were; what is left of them must not be found behind it.
        world.append(1, 20).unwrap();
        world.crash(Crash::Process);
        world
            .recover(Crash::Process)
            .unwrap_or_else(|wrong| panic!("seed {seed}, after another append: {wrong}"));
        append_flushed(&mut world, 1);
        world.crash(Crash::Power);
        world.recover(Crash::Power).unwrap_or_else(|wrong| panic!("seed {seed}, after a cut: {wrong}"));
    }
    assert!(cut > 40, "tails are torn: {cut}");
}

#[test]
fn h26_nothing_is_acknowledged_but_through_the_flush_gate() {
    for seed in 0..60 {
        let mut world = LogWorld::new(seed);
        let mut out = Vec::new();
        let (own_epoch, fsync) = (BrokerEpoch(1), Durability::Fsync);
        let mut replica = Replica::open(Opened {
            node: NodeId(1),
            log_start: Offset(0),
            log_end: Offset(0),
            flushed_end: Offset(0),
            high_watermark: Offset(0),
            log_generation: world.log().log_generation(),
            append_time: 0,
            epochs: Vec::new(),
            durability_wanted: fsync,
            durability_effective: fsync,
        });
        let assignment = Assignment::alone(NodeId(1), own_epoch, LeaderEpoch(1), fsync, fsync);
        replica.step(Mono(0), Input::Assigned { assignment, own_epoch }, &mut out);
        for _ in 0..12 {
            world.append(2, 700).unwrap();
            let end = world.log().log_end();
            replica.step(Mono(0), Input::Appended { log_end: end, append_time: 1 }, &mut out);
            for condition in [Condition::Committed(end), Condition::LeaderStage(end)] {
                assert!(replica.reached(condition).is_none(), "seed {seed}: {condition:?} before the flush");
            }
            if world.random.percent(60) {
                while world.disk.complete_round(0) {}
                world.take_outcomes().unwrap();
                let upto = world.log().flushed_end();
                let log_generation = world.log().log_generation();
                replica.step(Mono(0), Input::Flushed { log_generation, upto }, &mut out);
                for condition in [Condition::Committed(end), Condition::LeaderStage(end)] {
                    assert_eq!(replica.reached(condition).map(|reached| reached.stage), Some(Stage::Flushed));
                }
                // What is acknowledged is what a power cut must leave.
                world.check_cut_now().unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
            }
        }
    }
}
