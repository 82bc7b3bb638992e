//! Compaction of one log: what stays, what goes, and who may look meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use highwater_broker_core::log::cleaning::Compaction;
use highwater_broker_core::time::Wall;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, LeaderStamp, Records};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{LeaderEpoch, Offset, ProducerId};

use super::support::{Directory, Opened, PARTITION, small_segments, stamped, wait_for_manifest, wait_until};
use crate::storage::config::LogConfig;
use crate::storage::log::{Cleaning, StampedBatch, Step};

const SECOND: i64 = 1_000_000;
const GRACE: Duration = Duration::from_secs(60);

fn compacted() -> LogConfig {
    let compaction = Some(Compaction { tombstone_grace: GRACE, dirty_percent_min: 50 });
    LogConfig { compaction, ..small_segments() }
}

/// A batch of records: key, and the size of the value or none. Values begin with the offset of the record.
fn keyed(
    offset: u64,
    epoch: u32,
    producer: Option<(u64, u32)>,
    records: &[(u64, Option<usize>)],
) -> StampedBatch {
    let mut builder = BatchBuilder::with_capacity(1000);
    if let Some((id, sequence)) = producer {
        builder.set_producer(ProducerId(id), 0, sequence);
    }
    for (number, (key, size)) in records.iter().enumerate() {
        let mut value = vec![7; size.unwrap_or(0).max(8)];
        value[..8].copy_from_slice(&(offset + number as u64).to_le_bytes());
        builder.push(offset as i64, Some(&key.to_le_bytes()), size.map(|_| &value[..]), &[]);
    }
    let sent = builder.build(PARTITION, Compression::None).unwrap();
    let stamp = LeaderStamp {
        base_offset: Offset(offset),
        leader_epoch: LeaderEpoch(epoch),
        append_time: offset as i64 * 1000,
        durable_end: Offset(offset),
        ..LeaderStamp::default()
    };
    stamped(BatchHeader::decode(&sent).unwrap(), stamp, PARTITION, &sent)
}

impl Opened {
    /// Appends a batch and returns its first offset.
    fn put(&mut self, records: &[(u64, Option<usize>)]) -> u64 {
        let offset = self.log.log_end().get();
        self.log.append(&[keyed(offset, 1, None, records)]).unwrap();
        offset
    }

    /// Seals and flushes everything.
    fn seal(&mut self) {
        let aged = self.log.maintain(Wall(i64::MAX), Offset(0)).unwrap();
        assert!(aged.rolled || !self.log.has_active());
        self.flush();
        wait_for_manifest(self);
    }

    fn plan(&mut self, now: i64) -> Option<Cleaning> {
        let end = self.log.log_end();
        self.log.plan_cleaning(Wall(now * SECOND), end, 5, 1 << 20)
    }

    /// Runs a pass to its end; false if it was void.
    fn pass(&mut self, mut cleaning: Cleaning, now: i64) -> bool {
        loop {
            match cleaning.step(10_000).unwrap() {
                Step::Worked { .. } => {}
                Step::Replace(replacement) => {
                    if !self.log.swap_cleaned(*replacement) {
                        return false;
                    }
                }
                Step::Done(passed) => {
                    self.log.cleaning_done(cleaning.revision(), passed, Wall(now * SECOND));
                    return true;
                }
            }
        }
    }

    fn clean(&mut self, now: i64) {
        let cleaning = self.plan(now).expect("something is dirty");
        assert!(self.pass(cleaning, now));
    }

    /// All records by offset: key, and whether there is a value. Checks that batches cover all offsets.
    fn records(&mut self) -> BTreeMap<u64, (u64, bool)> {
        let mut found = BTreeMap::new();
        let mut next = self.log.log_start();
        while next < self.log.log_end() {
            let mut plan = self.log.plan_read(next, self.log.log_end(), 100_000).unwrap();
            let batches = plan.ready().unwrap_or_else(|| plan.execute()).unwrap();
            next = collect(&batches, next, &mut found);
        }
        found
    }

    /// The last record of each key that has a value.
    fn table(&mut self) -> BTreeMap<u64, u64> {
        let mut table = BTreeMap::new();
        for (offset, (key, has_value)) in self.records() {
            if has_value {
                table.insert(key, offset)
            } else {
                table.remove(&key)
            };
        }
        table
    }
}

fn collect(pieces: &[Bytes], from: Offset, found: &mut BTreeMap<u64, (u64, bool)>) -> Offset {
    let mut rest = Bytes::from(pieces.concat());
    assert!(!rest.is_empty(), "nothing at {from}");
    let mut next = None;
    while !rest.is_empty() {
        let records = Records::verify(&rest, PARTITION).unwrap();
        let header = *records.header();
        let base = header.leader.base_offset;
        assert_eq!(next.unwrap_or(base), base, "all offsets are covered");
        assert!(next.is_some() || (base <= from && from < header.end_offset()), "{base} for {from}");
        for record in &records {
            let record = record.unwrap();
            let key = u64::from_le_bytes(record.key.unwrap().try_into().unwrap());
            if let Some(value) = record.value {
                assert_eq!(value[..8], record.offset.get().to_le_bytes());
            }
            found.insert(record.offset.get(), (key, record.value.is_some()));
        }
        next = Some(header.end_offset());
        rest = rest.slice(header.length()..);
    }
    next.unwrap()
}

#[test]
fn of_every_key_the_last_record_stays_where_it_is_also_after_restarts() {
    let directory = Directory::new();
    let mut opened = directory.open(compacted());
    for number in 0..3000_u64 {
        opened.put(&[(number % 40, Some(100)), (1000 + number % 7, Some(50))]);
    }
    let before = (opened.table(), opened.log.bytes(), opened.log.log_end());
    opened.seal();
    opened.clean(1);
    assert!(opened.log.bytes() * 20 < before.1, "{} of {}", opened.log.bytes(), before.1);
    let check = |opened: &mut Opened| {
        assert_eq!((opened.table(), opened.log.log_end()), (before.0.clone(), before.2));
        assert_eq!(opened.records().len(), 47);
        // At an offset that is gone the batch that covers it comes, and then the next record above.
        let mut found = BTreeMap::new();
        let mut plan = opened.log.plan_read(Offset(17), before.2, 1).unwrap();
        let end = collect(&plan.execute().unwrap(), Offset(17), &mut found);
        assert!(end > Offset(17));
    };
    check(&mut opened);
    assert_eq!(opened.plan(1).map(drop), None, "all is clean");
    wait_until(|| directory.files(".segment").len() == opened.log.segment_count());
    // The old files go before it is on the disk how far the pass has looked.
    wait_for_manifest(&mut opened);
    drop(opened);
    let mut opened = directory.open(compacted());
    assert_eq!((opened.report.bytes_scanned, opened.log.cleaned().upto), (0, before.2));
    check(&mut opened);
    opened.close();
    check(&mut directory.open(compacted()));
}

#[test]
fn readers_keep_what_they_have_and_plans_of_before_still_work() {
    let directory = Directory::new();
    let mut opened = directory.open(compacted());
    for number in 0..2000_u64 {
        opened.put(&[(number % 10, Some(100))]);
    }
    opened.seal();
    opened.log.set_tail_wanted(false);
    let held = opened.log.plan_read(Offset(100), Offset(2000), 5000).unwrap().execute().unwrap();
    let copy: Vec<Vec<u8>> = held.iter().map(|bytes| bytes.to_vec()).collect();
    let mut planned = opened.log.plan_read(Offset(1500), Offset(2000), 5000).unwrap();
    let timed = opened.log.plan_time(1600, Offset(2000));
    let compared = opened.log.plan_checksum(Offset(0), Offset(2000), u64::MAX).unwrap();
    opened.clean(1);
    wait_until(|| directory.files(".segment").len() == opened.log.segment_count());
    opened.store.empty_trash().unwrap();
    assert_eq!(held.iter().map(|bytes| bytes.to_vec()).collect::<Vec<_>>(), copy);
    let mut found = BTreeMap::new();
    collect(&planned.execute().unwrap(), Offset(1500), &mut found);
    assert!(found.contains_key(&1500), "as it was when it was planned");
    assert_eq!(timed.execute().unwrap().unwrap().offset, Offset(1600));
    assert_eq!(compared.execute().unwrap().batches, 2000);
    // What is planned now finds what is left.
    assert_eq!(opened.log.plan_time(1600, Offset(2000)).execute().unwrap().unwrap().offset, Offset(1990));
}

#[test]
fn tombstones_stay_for_the_grace_period_after_their_first_pass() {
    let directory = Directory::new();
    let mut opened = directory.open(compacted());
    opened.put(&[(1, Some(10)), (2, Some(10)), (3, Some(10))]);
    opened.put(&[(2, None)]);
    opened.put(&[(3, None), (3, Some(10))]);
    opened.seal();
    opened.clean(100);
    assert_eq!(opened.records(), [(0, (1, true)), (3, (2, false)), (5, (3, true))].into());
    assert_eq!(opened.plan(159).map(drop), None);
    opened.flush();
    wait_for_manifest(&mut opened);
    drop(opened);
    let mut opened = directory.open(compacted());
    assert_eq!(opened.plan(159).map(drop), None, "a restart does not forget when that was");
    opened.clean(160);
    assert_eq!(opened.records(), [(0, (1, true)), (5, (3, true))].into());
    assert_eq!(opened.log.log_end(), Offset(6));
    assert_eq!(opened.plan(10_000).map(drop), None);
}

#[test]
fn h14_what_producers_wrote_last_is_known_from_the_batches_alone() {
    let directory = Directory::new();
    let mut opened = directory.open(compacted());
    let mut sequences = [0; 5];
    for number in 0..2000_u64 {
        let who = (number % 7 % 5) as usize;
        let offset = opened.log.log_end().get();
        let batch = keyed(offset, 1, Some((who as u64 + 1, sequences[who])), &[(3, Some(100)), (4, Some(9))]);
        sequences[who] += 2;
        opened.log.append(&[batch]).unwrap();
    }
    opened.seal();
    opened.clean(1);
    assert_eq!(opened.table().len(), 2);
    let known = opened.log.producers().clone();
    assert_eq!(known.remembered_offsets().count(), 5 * 32);
    wait_until(|| directory.files(".segment").len() == opened.log.segment_count());
    drop(opened);
    let opened = directory.open(compacted());
    assert!(*opened.log.producers() == known, "from snapshots");
    drop(opened);
    assert!(!directory.files(".producers").is_empty());
    directory.files(".producers").iter().for_each(|path| std::fs::remove_file(path).unwrap());
    let mut opened = directory.open(compacted());
    assert!(*opened.log.producers() == known, "from batches without records");
    // Once they have moved on, what they wrote before is merged.
    for number in 0..400_u64 {
        let offset = opened.log.log_end().get();
        let who = (number % 5) as usize;
        opened
            .log
            .append(&[keyed(offset, 1, Some((who as u64 + 1, sequences[who])), &[(3, Some(100))])])
            .unwrap();
        sequences[who] += 1;
    }
    opened.seal();
    let dirtier = Compaction { tombstone_grace: GRACE, dirty_percent_min: 0 };
    opened.log.configure(LogConfig { compaction: Some(dirtier), ..compacted() });
    opened.clean(2);
    let mut plan = opened.log.plan_read(Offset(0), Offset(4400), 1).unwrap();
    let first = BatchHeader::decode(&plan.execute().unwrap()[0]).unwrap();
    assert!(first.end_offset() > Offset(3900), "one batch for all that is gone: {first:?}");
}

#[test]
fn a_pass_without_room_for_all_keys_gets_less_far_and_the_next_goes_on() {
    let directory = Directory::new();
    let mut opened = directory.open(compacted());
    for number in 0..6000_u64 {
        opened.put(&[(number % 2000, Some(60))]);
    }
    let table = opened.table();
    opened.seal();
    let mut passes = 0;
    let mut upto = Offset(0);
    while let Some(cleaning) = {
        let end = opened.log.log_end();
        let dirtier = Compaction { tombstone_grace: GRACE, dirty_percent_min: 0 };
        opened.log.configure(LogConfig { compaction: Some(dirtier), ..compacted() });
        opened.log.plan_cleaning(Wall(0), end, 5, 0)
    } {
        assert!(opened.pass(cleaning, 0));
        assert!(opened.log.cleaned().upto > upto, "each gets further");
        upto = opened.log.cleaned().upto;
        assert_eq!(opened.table(), table);
        passes += 1;
    }
    assert!((3..=10).contains(&passes), "{passes}");
    assert_eq!(upto, Offset(6000));
    // Every pass after the first removed what the ones before had left.
    assert_eq!(opened.records().len(), 2000);
}

#[test]
fn what_changes_during_a_pass_makes_it_void_and_nothing_is_lost() {
    for change in 0..3 {
        let directory = Directory::new();
        let mut opened = directory.open(compacted());
        for number in 0..2000_u64 {
            opened.put(&[(number % 10, Some(100))]);
        }
        opened.seal();
        let mut cleaning = opened.plan(1).unwrap();
        let replacement = loop {
            match cleaning.step(10_000).unwrap() {
                Step::Worked { .. } => {}
                Step::Replace(replacement) => break replacement,
                Step::Done(_) => panic!("nothing to replace"),
            }
        };
        let expected = match change {
            0 => {
                opened.log.truncate(Offset(1500)).unwrap();
                opened.table()
            }
            1 => {
                let mut config = compacted();
                config.limits.retention_bytes = Some(100_000);
                opened.log.configure(config);
                assert!(opened.log.maintain(Wall(0), Offset(2000)).unwrap().segments_removed > 0);
                opened.table()
            }
            _ => {
                opened.log.reset(Offset(5000), Vec::new(), &[]).unwrap();
                BTreeMap::new()
            }
        };
        assert!(!opened.log.swap_cleaned(*replacement), "change {change}");
        drop(cleaning);
        assert_eq!(opened.table(), expected);
        opened.flush();
        wait_until(|| directory.files(".segment").len() == opened.log.segment_count());
        drop(opened);
        let mut opened = directory.open(compacted());
        assert_eq!(opened.table(), expected, "change {change}");
    }
}

#[test]
fn nothing_at_or_after_the_high_watermark_is_cleaned_and_epochs_keep_their_starts() {
    let directory = Directory::new();
    let mut opened = directory.open(compacted());
    for number in 0..3000_u64 {
        let offset = opened.log.log_end().get();
        opened.log.append(&[keyed(offset, number as u32 / 300, None, &[(number % 3, Some(100))])]).unwrap();
    }
    opened.seal();
    let epochs = opened.log.epochs().to_vec();
    assert_eq!(epochs.len(), 10);
    let cleaning = opened.log.plan_cleaning(Wall(0), Offset(2000), 5, 1 << 20).unwrap();
    assert!(opened.pass(cleaning, 0));
    let upto = opened.log.cleaned().upto.get();
    assert!(upto > 1000 && upto <= 2000, "{upto}");
    let there = opened.records();
    assert!((upto..3000).all(|offset| there.contains_key(&offset)));
    assert_eq!(there.range(..upto).count(), 3);
    wait_until(|| directory.files(".segment").len() == opened.log.segment_count());
    drop(opened);
    // Found again in the batches alone, those without records among them.
    std::fs::remove_file(directory.partition().join("manifest")).unwrap();
    let mut opened = directory.open(compacted());
    assert_eq!(opened.log.epochs(), epochs);
    assert_eq!(opened.records(), there);
}
