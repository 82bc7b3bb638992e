//! A log that starts over, has corrupt ranges filled from another replica, is compared and is scrubbed, on a simulated
//! disk: the power is cut after every single operation of the disk, and what is found then is what was there before or
//! what should be there afterwards.

#![cfg(test)]

use std::path::Path;

use bytes::Bytes;
use highwater_broker::env::Clock;
use highwater_broker::storage::error::RepairError;
use highwater_broker::storage::log::{Log, StampedBatch};
use highwater_broker_core::log::manifest::EpochStart;
use highwater_broker_core::producer::ProducerTable;
use highwater_protocol::batch::BatchHeader;
use highwater_protocol::ids::{LeaderEpoch, Offset};
use highwater_tests::sim::disk::SimDisk;
use highwater_tests::sim::log_files::{Place, places};
use highwater_tests::sim::log_model::{Contents, Crash};
use highwater_tests::sim::log_world::{LogWorld, Running, Unread, contents, open, read};

/// More operations than anything here takes.
const OPERATIONS_MAX: u64 = 200;

/// A log of some segments, all of it flushed, most of it sealed.
fn world(seed: u64) -> LogWorld {
    let mut world = LogWorld::new(seed);
    for _ in 0..12 {
        world.append(2, 3000).unwrap();
        flush(&mut world);
        if world.random.percent(30) {
            world.model.epoch += 1;
        }
    }
    assert!(world.log().segment_count() > 2);
    world
}

fn flush(world: &mut LogWorld) {
    while world.disk.complete_round(0) {}
    world.take_outcomes().unwrap();
    world.model.commit(world.model.flushed_end);
}

/// The batch of a place, as another replica has it.
fn batch(disk: &SimDisk, place: &Place) -> StampedBatch {
    let bytes = disk.read(&place.path).unwrap();
    let bytes = &bytes[place.positions.start as usize..place.positions.end as usize];
    StampedBatch::from_replicated(Bytes::copy_from_slice(bytes), BatchHeader::decode(bytes).unwrap())
}

fn damage(disk: &SimDisk, place: &Place, in_cache: bool) {
    let middle = u64::midpoint(place.positions.start, place.positions.end);
    disk.flip_bit(&place.path, middle, 3, in_cache).unwrap();
}

/// Log start, log end, holes, and offset and identity of each record.
type Records<'a> = (u64, u64, &'a [std::ops::Range<u64>], Vec<(u64, u64)>);

/// Everything but what depends on when it was looked at.
fn records(found: &Contents) -> Records<'_> {
    let records = found.records.iter().map(|seen| (seen.offset, seen.id)).collect();
    (found.log_start, found.log_end, &found.holes, records)
}

/// Appends one more batch, to see that the log goes on.
fn append_one(running: &mut Running, world: &mut LogWorld) {
    let end = running.log.log_end();
    let id = world.model.new_ids(1);
    let sent = highwater_tests::sim::batches::produced(
        highwater_tests::sim::log_world::PARTITION,
        id,
        10,
        0,
        &mut world.random,
    );
    let stamp = highwater_protocol::batch::LeaderStamp {
        base_offset: end,
        leader_epoch: LeaderEpoch(100),
        append_time: world.clock.wall().0,
        ..Default::default()
    };
    running.log.append(&[highwater_tests::sim::log_world::stamped(&sent, stamp)]).unwrap();
    assert_eq!(running.log.log_end(), end.next());
}

/// Opens the log after a crash, and once more after another one: both find the same.
fn open_twice(world: &mut LogWorld, disk: &SimDisk) -> (Running, Contents) {
    let mut first = open(disk, world.config).unwrap();
    let found = contents(&mut first.log).unwrap();
    let again = disk.fork();
    again.power_cut(world.random.next_u64());
    let mut second = open(&again, world.config).unwrap();
    let found_again = contents(&mut second.log).unwrap();
    assert_eq!(records(&found_again), records(&found));
    assert_eq!(found_again.producers, found.producers);
    assert_eq!(second.log.epochs(), first.log.epochs());
    (first, found)
}

#[test]
fn h15_a_replica_below_the_log_start_of_its_leader_starts_over_whole_or_not_at_all() {
    let mut finished = 0;
    for seed in 0..12 {
        for cut in 0..OPERATIONS_MAX {
            let mut world = world(seed);
            let before = contents(world.log()).unwrap();
            let epochs_before = world.log().epochs().to_vec();
            let log_start = Offset(world.model.written_end + 1000);
            let epochs = [(53, 7), (57, 3)].map(|(epoch, back)| EpochStart {
                epoch: LeaderEpoch(epoch),
                start: Offset(log_start.get() - back),
            });
            let mut producers = ProducerTable::new(world.config.producer_expiry);
            before.batches.iter().skip(3).for_each(|header| producers.apply(header));
            world.disk.cut_after(cut);
            let result = world.log().reset(log_start, epochs.to_vec(), &producers.encode());
            let whole = world.disk.has_power();
            world.disk.cut_never();
            if whole {
                result.as_ref().unwrap();
                let now = contents(world.log()).unwrap();
                assert_eq!((now.log_start, now.log_end), (log_start.get(), log_start.get()));
            }
            let crash = if whole && cut % 2 == 0 { Crash::Process } else { Crash::Power };
            world.crash(crash);
            let disk = world.disk.fork();
            let (mut running, found) = open_twice(&mut world, &disk);
            if result.is_ok() || found.log_start == log_start.get() {
                assert_eq!(
                    (found.log_start, found.log_end),
                    (log_start.get(), log_start.get()),
                    "{seed}, {cut}"
                );
                assert_eq!(found.producers, producers, "{seed}, {cut}");
                assert_eq!(running.log.last_epoch(), Some(LeaderEpoch(57)), "{seed}, {cut}");
                assert_eq!(running.log.producers_at_start().unwrap(), producers.encode());
            } else {
                assert_eq!(records(&found), records(&before), "{seed}, {cut}");
                assert_eq!(found.producers, before.producers, "{seed}, {cut}");
                assert_eq!(running.log.epochs(), epochs_before);
            }
            append_one(&mut running, &mut world);
            assert!(disk.violations().is_empty());
            if whole {
                finished += 1;
                break;
            }
        }
    }
    assert_eq!(finished, 12, "every reset came to its end");
}

/// Fills all holes with batches from `healthy`, a few at a time.
fn fill(log: &mut Log, healthy: &[(Place, StampedBatch)], at_a_time: usize) -> Result<(), RepairError> {
    while let Some(hole) = log.holes().first().cloned() {
        let missing: Vec<StampedBatch> = healthy
            .iter()
            .filter(|(place, _)| {
                place.offsets.start >= hole.start.get() && place.offsets.end <= hole.end.get()
            })
            .map(|(_, batch)| batch.clone())
            .take(at_a_time)
            .collect();
        let filled = log.fill_hole(hole.start, &missing)?;
        assert!(filled > hole.start);
    }
    Ok(())
}

/// A log with damage in it that has just been opened, and what it held before.
struct Damaged {
    world: LogWorld,
    running: Running,
    before: Contents,
    healthy: Vec<(Place, StampedBatch)>,
}

fn damaged(seed: u64) -> Damaged {
    let mut world = world(seed);
    let before = contents(world.log()).unwrap();
    world.crash(Crash::Process);
    let all = places(&world.disk);
    let healthy: Vec<_> = all.iter().map(|place| (place.clone(), batch(&world.disk, place))).collect();
    // One batch, some in a row, or a whole segment.
    let first = world.random.index(all.len() - 1);
    match seed % 4 {
        0 => damage(&world.disk, &all[first], true),
        1 => all[first..].iter().take(3).for_each(|place| damage(&world.disk, place, true)),
        2 => {
            damage(&world.disk, &all[first], true);
            damage(&world.disk, &all[(first + 5) % (all.len() - 1)], true);
        }
        _ => {
            let path = &all[first].path;
            if all.last().is_some_and(|last| last.path != *path) {
                world.disk.mount().remove_file(path).unwrap();
                world.disk.sync_all();
            }
        }
    }
    let mut running = open(&world.disk, world.config).unwrap();
    let _found = contents(&mut running.log).unwrap();
    let _taken = running.log.maintain(world.clock.wall(), Offset(0)).unwrap();
    Damaged { world, running, before, healthy }
}

#[test]
fn a_corrupt_range_is_filled_whole_or_stays_what_it_was() {
    let (mut filled, mut interrupted) = (0, 0);
    for seed in 0..24 {
        for cut in (0..OPERATIONS_MAX).step_by(3) {
            let Damaged { mut world, mut running, before, healthy } = damaged(seed);
            let holes = running.log.holes().to_vec();
            if holes.is_empty() {
                break;
            }
            // A slice that somebody holds keeps its bytes.
            let held = running.log.plan_read(holes[0].end, Offset(u64::MAX), 4000);
            let held = held.and_then(|mut plan| plan.execute()).unwrap_or_default();
            let copies: Vec<Vec<u8>> = held.iter().map(|bytes| bytes.to_vec()).collect();
            world.disk.cut_after(cut);
            let result = fill(&mut running.log, &healthy, 1 + cut as usize % 3);
            let whole = world.disk.has_power();
            world.disk.cut_never();
            for (bytes, copy) in held.iter().zip(&copies) {
                assert_eq!(&bytes[..], &copy[..], "{seed}, {cut}");
            }
            if whole {
                result.unwrap();
                let now = contents(&mut running.log).unwrap();
                assert_eq!(records(&now), records(&before), "{seed}, {cut}");
                assert_eq!(now.producers, before.producers, "{seed}, {cut}");
                // Everything that is appended from here on is as if nothing had happened.
                append_one(&mut running, &mut world);
            }
            drop((running, held));
            world.disk.power_cut(world.random.next_u64());
            let disk = world.disk.fork();
            let (mut running, found) = open_twice(&mut world, &disk);
            for seen in &found.records {
                let same = before.records.iter().any(|old| old == seen);
                assert!(same || seen.offset >= before.log_end, "{seed}, {cut}: {seen:?}");
            }
            assert!(found.log_end >= before.log_end, "{seed}, {cut}");
            if whole {
                assert!(found.holes.is_empty(), "{seed}, {cut}: {:?}", found.holes);
                let old = found.records.iter().filter(|seen| seen.offset < before.log_end);
                assert!(old.eq(before.records.iter()), "{seed}, {cut}");
                let expected = world.model.producers(world.config.producer_expiry, 0, &found.batches);
                assert_eq!(found.producers, expected, "{seed}, {cut}");
                filled += 1;
            } else {
                interrupted += 1;
                // What is left is filled after all.
                fill(&mut running.log, &healthy, 100).unwrap();
                let now = contents(&mut running.log).unwrap();
                assert_eq!(records(&now), records(&before), "{seed}, {cut}");
            }
            append_one(&mut running, &mut world);
            assert!(disk.violations().is_empty() && world.disk.violations().is_empty());
            if whole {
                break;
            }
        }
    }
    assert!(filled >= 15 && interrupted > 50, "{filled} filled, {interrupted} interrupted");
}

#[test]
fn what_does_not_fit_a_corrupt_range_is_refused() {
    let Damaged { world, mut running, healthy, .. } = damaged(4);
    let hole = running.log.holes().first().cloned().unwrap();
    assert!(matches!(running.log.fill_hole(Offset(hole.start.get() + 1), &[]), Err(RepairError::NoHole(_))));
    assert!(matches!(running.log.fill_hole(hole.start, &[]), Err(RepairError::TooLittle { .. })));
    let (_, other) = healthy.iter().find(|(place, _)| place.offsets.start != hole.start.get()).unwrap();
    let result = running.log.fill_hole(hole.start, std::slice::from_ref(other));
    assert!(matches!(result, Err(RepairError::Unfit { .. })), "{result:?}");
    let (_, right) = healthy.iter().find(|(place, _)| place.offsets.start == hole.start.get()).unwrap();
    let mut late = right.clone();
    late.header.leader.leader_epoch = LeaderEpoch(world.model.epoch + 9);
    let result = running.log.fill_hole(hole.start, &[late]);
    assert!(matches!(result, Err(RepairError::Unfit { .. })), "{result:?}");
    assert_eq!(running.log.holes().first(), Some(&hole), "nothing has changed");
    assert_eq!(
        read(&mut running.log, hole.start.get(), u64::MAX, 100),
        Err(Unread::Hole(hole.start.get()..hole.end.get()))
    );
}

#[test]
fn the_scrub_finds_what_only_the_disk_knows_to_be_bad() {
    for seed in 0..20 {
        let mut world = world(seed);
        let all = places(&world.disk);
        let place = &all[world.random.index(all.len())];
        // Readers have it in the page cache, as it was.
        damage(&world.disk, place, false);
        assert_eq!(contents(world.log()).unwrap().holes, []);
        let mut found = Vec::new();
        let mut steps = 0;
        loop {
            let outcome = world.log().scrub(5000).unwrap();
            found.extend(outcome.corrupt);
            steps += 1;
            if outcome.pass_complete {
                break;
            }
            assert!(outcome.bytes > 0 && steps < 100, "seed {seed}");
        }
        assert!(steps > 3, "the budget bounds a step");
        let bad = Offset(place.offsets.start)..Offset(place.offsets.end);
        assert_eq!(found, std::slice::from_ref(&bad), "seed {seed}");
        let now = world.clock.wall();
        let told = world.log().maintain(now, Offset(0)).unwrap().new_holes;
        assert_eq!(told.iter().map(|hole| hole.start..hole.end).collect::<Vec<_>>(), [bad]);
        // The next pass has nothing new to tell.
        while !world.log().scrub(50_000).unwrap().pass_complete {}
        let now = world.clock.wall();
        assert_eq!(world.log().maintain(now, Offset(0)).unwrap().new_holes, []);
    }
}

#[test]
fn replicas_with_the_same_batches_have_the_same_checksum_however_their_files_are_cut() {
    for seed in 0..10 {
        let mut one = world(seed);
        let end = Offset(one.model.written_end);
        // Another replica: the same batches, other segments.
        let mut other = LogWorld::new(seed + 1000);
        other.config.limits.segment_bytes = 5000;
        let config = other.config;
        other.log().configure(config);
        for place in places(&one.disk) {
            let copy = batch(&one.disk, &place);
            other.log().append(&[copy]).unwrap();
        }
        let whole = |log: &mut Log, step: u64| {
            let (mut at, mut sums, mut corrupt) = (Offset(0), Vec::new(), Vec::new());
            while at < end {
                let done = log.plan_checksum(at, end, step).unwrap().execute().unwrap();
                assert!(done.end > at);
                assert_eq!(done.start, at);
                corrupt.extend(done.corrupt.clone());
                sums.push((done.end, done.checksum, done.batches));
                at = done.end;
            }
            (sums, corrupt)
        };
        for step in [1, 4000, 1 << 30] {
            assert_eq!(whole(one.log(), step), whole(other.log(), step), "seed {seed}, step {step}");
        }
        let (sums, _) = whole(one.log(), 1 << 30);
        let all = places(&one.disk);
        assert_eq!(sums, [(end, sums[0].1, all.len() as u64)]);
        // A damaged one says where.
        let bad = &all[one.random.index(all.len())];
        damage(&one.disk, bad, true);
        let (damaged_sums, corrupt) = whole(one.log(), 1 << 30);
        assert_eq!(corrupt, [Offset(bad.offsets.start)..Offset(bad.offsets.end)]);
        assert_ne!(damaged_sums[0].1, sums[0].1);
        assert!(!Path::new("/data/topics").exists(), "nothing of this is on the real disk");
    }
}
