//! Rolling, retention, truncation, markers, locks, the trash.

use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::durability::Durability;
use highwater_broker_core::time::Wall;
use highwater_protocol::ids::{DirectoryId, Offset};

use super::support::{Directory, PARTITION, check, open_in, small_segments, wait_for_manifest, wait_until};
use crate::storage::config::{LogConfig, StoreConfig};
use crate::storage::error::{AppendError, Error, ReadError};
use crate::storage::real::RealFileSystem;
use crate::storage::store::{DiskState, Store};

#[test]
fn retention_by_bytes_lets_whole_segments_go_but_not_past_the_high_watermark() {
    let directory = Directory::new();
    let mut config = small_segments();
    config.limits.retention_bytes = Some(200_000);
    let mut opened = directory.open(config);
    opened.append(100, 1000);
    opened.flush();
    wait_for_manifest(&mut opened);
    let none = opened.log.maintain(Wall(0), Offset(0)).unwrap();
    assert_eq!((none.segments_removed, none.log_start), (0, Offset(0)));
    let held = opened.read_one(5);
    let some = opened.log.maintain(Wall(0), Offset(1000)).unwrap();
    assert!(some.segments_removed > 10 && some.log_start > Offset(700), "{some:?}");
    assert!(opened.log.bytes() >= 200_000);
    // A slice of a deleted segment stays readable.
    assert_eq!(check(PARTITION, &held, 5), 10);
    let gone = opened.log.plan_read(Offset(5), Offset(1000), 100);
    assert!(matches!(gone, Err(ReadError::OutOfRange { .. })));
    assert_eq!(opened.read_all(some.log_start.get()).unwrap(), 1000);
    wait_until(|| directory.files(".segment").len() == opened.log.segment_count());
    let store = Arc::clone(&opened.store);
    drop(opened);
    assert!(store.empty_trash().unwrap() >= some.segments_removed);
    drop(store);
    let mut opened = directory.open(config);
    assert_eq!(opened.log.log_start(), some.log_start);
    assert_eq!(opened.read_all(some.log_start.get()).unwrap(), 1000);
}

#[test]
fn retention_by_age_empties_an_idle_log_and_keeps_its_offsets() {
    let directory = Directory::new();
    let mut config = LogConfig::default();
    config.limits.retention_age = Some(Duration::from_secs(60));
    let mut opened = directory.open(config);
    opened.append(3, 100);
    opened.flush();
    let rolled = opened.log.maintain(Wall(61_000_000), Offset(30)).unwrap();
    assert!(rolled.rolled);
    opened.flush();
    wait_for_manifest(&mut opened);
    wait_until(|| opened.log.maintain(Wall(61_000_000), Offset(30)).unwrap().log_start == Offset(30));
    assert_eq!((opened.log.bytes(), opened.log.segment_count()), (0, 0));
    opened.append(1, 100);
    assert_eq!(opened.read_all(30).unwrap(), 40);
    opened.flush();
    drop(opened);
    let mut opened = directory.open(config);
    assert_eq!((opened.log.log_start(), opened.log.log_end()), (Offset(30), Offset(40)));
    assert_eq!(opened.read_all(30).unwrap(), 40);
}

#[test]
fn truncation_goes_on_in_a_new_file_and_voids_flushes() {
    let directory = Directory::new();
    let mut opened = directory.open(small_segments());
    opened.append(40, 1000);
    opened.flush();
    let held = opened.read_one(255);
    let before = opened.log.log_generation();
    for (to, end) in [(395, 390), (200, 200), (0, 0)] {
        assert_eq!(opened.log.truncate(Offset(to)).unwrap(), Offset(end));
        assert_eq!((opened.log.log_end(), opened.log.flushed_end()), (Offset(end), Offset(end)));
        assert_eq!(opened.read_all(0).unwrap(), end);
        opened.append(5, 500);
        assert_eq!(opened.read_all(0).unwrap(), end + 50);
        assert!(!opened.log.flushed(before, Offset(1000)));
        opened.flush();
        // What was cut off is not there again after a restart.
        drop(opened);
        opened = directory.open(small_segments());
        assert_eq!(opened.log.log_end(), Offset(end + 50), "{:?}", opened.report);
        assert_eq!(opened.read_all(0).unwrap(), end + 50);
    }
    assert_eq!(opened.log.log_generation(), before + 3);
    // Bytes that were handed out are still what they were.
    assert_eq!(check(PARTITION, &held, 255), 260);
}

#[test]
fn h9_the_clean_marker_is_gone_before_anything_changes() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(3, 100);
    opened.close();
    let marker = directory.partition().ancestors().nth(3).unwrap().join("clean");
    assert!(marker.exists());
    let opened = directory.open(LogConfig::default());
    assert!(opened.store.boot().clean);
    assert!(!marker.exists());
    drop(opened);
    // Nothing was written, and still it was no clean shutdown.
    assert!(!directory.open(LogConfig::default()).store.boot().clean);
}

#[test]
fn a_directory_belongs_to_one_process_and_keeps_its_id() {
    let directory = Directory::new();
    let store = directory.store();
    let root = directory.partition().ancestors().nth(3).unwrap().to_owned();
    let again =
        Store::open(Arc::new(RealFileSystem::default()), &root, StoreConfig::default(), DirectoryId(2));
    assert!(matches!(again, Err(Error::Locked(_))));
    drop(store);
    let (store, report) =
        Store::open(Arc::new(RealFileSystem::default()), &root, StoreConfig::default(), DirectoryId(2))
            .unwrap();
    assert_eq!((store.directory_id(), report.formatted), (DirectoryId(1), false));
}

#[test]
fn below_the_reserve_appends_are_refused_and_reads_go_on() {
    let directory = Directory::new();
    drop(directory.store());
    let opened = directory.open(LogConfig::default());
    drop(opened);
    let config = StoreConfig { disk_reserve_bytes: u64::MAX, ..StoreConfig::default() };
    let store = directory.store_with(config);
    // A tenth of the disk is the most that can be reserved; a machine with less than that free cannot run this further.
    let mut opened = open_in(Arc::clone(&store), PARTITION, LogConfig::default());
    if store.disk() == DiskState::ReadOnly {
        let refused = opened.log.append(&[super::support::batch(PARTITION, 0, 1, 10, 1)]);
        assert!(matches!(refused, Err(AppendError::Full(_))));
    } else {
        opened.append(1, 10);
    }
    assert_eq!(opened.log.log_start(), Offset(0));
}

#[test]
fn state_files_are_replaced_whole() {
    let directory = Directory::new();
    let store = directory.store();
    assert_eq!(store.read_state("topics").unwrap(), None);
    store.write_state("topics", b"one").unwrap();
    store.write_state("topics", b"two").unwrap();
    assert_eq!(store.read_state("topics").unwrap().as_deref(), Some(&b"two"[..]));
    assert!(matches!(store.write_state("../x", b""), Err(Error::BadName(_))));
    store.close(&[]).unwrap();
    assert!(matches!(store.write_state("topics", b"three"), Err(Error::Closed)));
}

#[test]
fn a_deleted_partition_goes_to_the_trash_first() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(1, 100);
    let store = Arc::clone(&opened.store);
    assert!(matches!(store.trash(PARTITION), Err(Error::LogOpen(_))));
    drop(opened);
    store.trash(PARTITION).unwrap();
    assert_eq!(store.partitions().unwrap(), []);
    assert_eq!(store.empty_trash().unwrap(), 1);
    let opened = open_in(store, PARTITION, LogConfig::default());
    assert_eq!(opened.log.log_end(), Offset(0));
}

#[test]
fn sealed_segments_are_flushed_in_every_durability() {
    let directory = Directory::new();
    let config = LogConfig { durability: Durability::Os, ..small_segments() };
    let mut opened = directory.open(config);
    opened.append(30, 1000);
    let sealed_end = opened.log.sealed_end();
    assert!(sealed_end > Offset(0) && sealed_end < opened.log.log_end());
    wait_until(|| {
        while let Ok(outcome) = opened.outcomes.try_recv() {
            if let crate::storage::sink::FlushOutcome::Flushed { log_generation, upto } = outcome {
                opened.log.flushed(log_generation, upto);
            }
        }
        opened.log.flushed_end() == sealed_end
    });
    opened.flush();
}

#[test]
fn a_suspect_log_serves_again_after_verification() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(3, 100);
    opened.flush();
    opened.append(3, 100);
    opened.log.mark_suspect().unwrap();
    assert!(matches!(opened.log.plan_read(Offset(0), Offset(60), 100), Err(ReadError::Suspect)));
    let refused = opened.log.append(&[super::support::batch(PARTITION, 60, 1, 10, 1)]);
    assert!(matches!(refused, Err(AppendError::Suspect)));
    let verified = opened.log.verify_suspect().unwrap();
    // The flush did not really fail here: everything is on the disk.
    assert_eq!((verified.log_end, verified.offsets_lost), (Offset(60), 0));
    assert_eq!(opened.read_all(0).unwrap(), 60);
    opened.append(1, 100);
    opened.flush();
    opened.log.mark_suspect().unwrap();
    drop(opened);
    let mut opened = directory.open(LogConfig::default());
    assert!(opened.report.was_suspect);
    assert_eq!(opened.read_all(0).unwrap(), 70);
    drop(opened);
    let opened = directory.open(LogConfig::default());
    assert!(!opened.report.was_suspect);
    assert!(opened.store.boot().report.flush_failed);
}
