//! What is appended can be read, from memory, from the mapping, after a restart.

use std::sync::Arc;

use highwater_protocol::ids::{Offset, PartitionId, TopicId, TopicPartition};

use super::support::{Directory, batch, check, open_in, small_segments, wait_for_manifest};
use crate::storage::config::{LogConfig, StoreConfig};
use crate::storage::error::ReadError;

#[test]
fn appended_batches_are_read_back_across_segments_and_restarts() {
    let directory = Directory::new();
    let mut opened = directory.open(small_segments());
    opened.append(100, 1000);
    assert!(opened.log.segment_count() > 10, "{}", opened.log.segment_count());
    for from in [0, 1, 9, 10, 63, 500, 999] {
        assert_eq!(opened.read_all(from).unwrap(), 1000);
    }
    opened.flush();
    wait_for_manifest(&mut opened);
    drop(opened);
    // Without a clean shutdown.
    let mut opened = directory.open(small_segments());
    assert_eq!((opened.report.log_start, opened.report.log_end), (Offset(0), Offset(1000)));
    assert_eq!((opened.report.cut.as_ref(), opened.report.new_holes.len()), (None, 0));
    assert!(opened.report.bytes_scanned < 200_000, "{:?}", opened.report);
    assert_eq!(opened.read_all(0).unwrap(), 1000);
    opened.append(10, 1000);
    assert_eq!(opened.read_all(995).unwrap(), 1100);
    opened.close();
    let mut opened = directory.open(small_segments());
    assert!(opened.store.boot().clean);
    assert_eq!(opened.read_all(0).unwrap(), 1100);
}

#[test]
fn reads_end_at_batches_and_bounds() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(50, 100);
    let mut read = |from, upto, bytes| {
        let mut plan = opened.log.plan_read(Offset(from), Offset(upto), bytes).unwrap();
        if plan.is_empty() { Vec::new() } else { plan.execute().unwrap() }
    };
    assert_eq!(check(super::support::PARTITION, &read(5, 30, 1 << 20), 5), 30);
    assert_eq!(check(super::support::PARTITION, &read(5, 35, 1 << 20), 5), 30);
    assert_eq!(check(super::support::PARTITION, &read(42, 500, 1), 42), 50);
    assert!(read(5, 9, 1 << 20).is_empty());
    assert!(read(500, 500, 1 << 20).is_empty());
    let beyond = opened.log.plan_read(Offset(501), Offset(600), 100);
    assert!(matches!(beyond, Err(ReadError::OutOfRange { log_end: Offset(500), .. })));
}

#[test]
fn the_memory_tail_serves_small_and_large_batches_and_is_bounded() {
    let directory = Directory::new();
    let config = StoreConfig { disk_reserve_bytes: 0, log_tail_bytes_max: 600_000, ..StoreConfig::default() };
    let mut opened = open_in(directory.store_with(config), super::support::PARTITION, LogConfig::default());
    opened.append(5, 100);
    opened.log.set_tail_wanted(true);
    for size in [100, 3000, 100, 9000] {
        opened.append(3, size);
        let end = opened.log.log_end().get();
        for from in 50..end {
            let mut plan = opened.log.plan_read(Offset(from), Offset(end), 1 << 20).unwrap();
            let batches = plan.ready().expect("in memory").unwrap();
            assert_eq!(check(super::support::PARTITION, &batches, from), end);
        }
    }
    let end = opened.log.log_end().get();
    let many: Vec<_> = (0..70).map(|n| batch(super::support::PARTITION, end + n * 10, 10, 1000, 1)).collect();
    opened.log.append(&many).unwrap();
    // Old batches have gone from memory, and come from the file.
    assert_eq!(opened.read_all(0).unwrap(), end + 700);
    opened.log.set_tail_wanted(false);
    assert_eq!(opened.read_all(end).unwrap(), end + 700);
}

#[test]
fn many_batches_go_out_in_one_call() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    // More buffers than one system call takes.
    let many: Vec<_> = (0..2000).map(|n| batch(super::support::PARTITION, n, 1, 10, 1)).collect();
    opened.log.append(&many).unwrap();
    assert_eq!(opened.read_all(0).unwrap(), 2000);
    assert_eq!(opened.log.segment_count(), 1);
}

#[test]
fn offsets_are_found_by_time() {
    let directory = Directory::new();
    let mut opened = directory.open(small_segments());
    // The time of a record is the first offset of its batch.
    opened.append(100, 1000);
    opened.flush();
    for restart in [false, true] {
        if restart {
            drop(opened);
            opened = directory.open(small_segments());
        }
        for (time, offset) in
            [(-5, Some(0)), (0, Some(0)), (1, Some(10)), (635, Some(640)), (990, Some(990)), (991, None)]
        {
            let found = opened.log.plan_time(time, Offset(1000)).execute().unwrap();
            assert_eq!(found.map(|found| found.offset.get()), offset, "time {time}");
        }
        let below = opened.log.plan_time(500, Offset(500)).execute().unwrap();
        assert_eq!(below, None);
    }
}

#[test]
fn many_partitions_with_few_open_files() {
    let directory = Directory::new();
    let config = StoreConfig { disk_reserve_bytes: 0, open_files_max: 20, ..StoreConfig::default() };
    let store = directory.store_with(config.clone());
    let partition = |number| TopicPartition::new(TopicId(5), PartitionId(number));
    let mut all: Vec<_> =
        (0..200).map(|n| open_in(Arc::clone(&store), partition(n), LogConfig::default())).collect();
    for opened in &mut all {
        opened.append(3, 100);
    }
    for opened in &mut all {
        opened.flush();
    }
    for opened in &mut all {
        assert_eq!(opened.read_all(0).unwrap(), 30);
    }
    assert!(store.open_files() <= 20, "{} open files", store.open_files());
    drop(all);
    drop(store);
    let store = directory.store_with(config);
    assert_eq!(store.partitions().unwrap().len(), 200);
    for number in 0..200 {
        let mut opened = open_in(Arc::clone(&store), partition(number), LogConfig::default());
        assert_eq!(opened.read_all(0).unwrap(), 30);
    }
}

#[test]
fn plans_run_on_io_threads() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(10, 100);
    let plan = opened.log.plan_read(Offset(0), Offset(100), 1 << 20).unwrap();
    let time = opened.log.plan_time(50, Offset(100));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (batches, found) = runtime.block_on(async { (plan.run().await.unwrap(), time.run().await.unwrap()) });
    assert_eq!(check(super::support::PARTITION, &batches, 0), 100);
    assert_eq!(found.unwrap().offset, Offset(50));
}
