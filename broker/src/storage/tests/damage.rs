//! Damaged files: what is detected, kept, refused and reported.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use highwater_broker_core::log::recovery::Verdict;
use highwater_protocol::ids::Offset;

use super::support::{Directory, small_segments};
use crate::storage::config::LogConfig;
use crate::storage::error::ReadError;

fn flip(path: &Path, position: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 4], position).unwrap();
}

#[test]
fn a_flip_in_a_sealed_segment_becomes_a_hole_at_the_first_read_and_stays_one() {
    let directory = Directory::new();
    let mut opened = directory.open(small_segments());
    opened.append(100, 1000);
    opened.flush();
    opened.close();
    let segments = directory.files(".segment");
    // Records of the second batch of the second segment.
    let batch = fs::metadata(&segments[0]).unwrap().len() / 6;
    flip(&segments[1], batch + batch / 2);
    let mut opened = directory.open(small_segments());
    let (start, end) = match opened.read_all(0) {
        Err(ReadError::CorruptRange { start, end }) => (start.get(), end.get()),
        other => panic!("{other:?}"),
    };
    assert_eq!(end - start, 10);
    assert!((60..90).contains(&start), "{start}");
    for _ in 0..2 {
        // Before and behind it everything goes on; in it nothing does.
        assert!(matches!(opened.read_all(start + 3), Err(ReadError::CorruptRange { .. })));
        assert_eq!(opened.read_all(end).unwrap(), 1000);
        assert!(matches!(opened.read_all(start - 1), Err(ReadError::CorruptRange { .. })));
        let holes = opened.log.maintain(highwater_broker_core::time::Wall(0), Offset(0)).unwrap().new_holes;
        assert!(holes.len() <= 1);
        assert_eq!(opened.log.holes().len(), 1);
        opened.close();
        opened = directory.open(small_segments());
        assert_eq!(opened.log.holes()[0].start.get(), start);
    }
}

#[test]
fn a_flip_in_a_header_of_a_sealed_segment_is_a_hole_too() {
    let directory = Directory::new();
    let mut opened = directory.open(small_segments());
    opened.append(100, 1000);
    opened.close();
    for index in directory.files(".index") {
        fs::remove_file(index).unwrap();
    }
    flip(&directory.files(".segment")[2], 20);
    let mut opened = directory.open(small_segments());
    let Err(ReadError::CorruptRange { start, end }) = opened.read_all(0) else { panic!("no hole") };
    assert_eq!(end.get() - start.get(), 10);
    assert_eq!(opened.read_all(end.get()).unwrap(), 1000);
    let found = opened.log.plan_time(start.get() as i64, Offset(1000)).execute().unwrap();
    assert_eq!(found.unwrap().offset, end, "the search passes over the hole");
}

#[test]
fn h10_a_flip_in_the_unsealed_tail_with_good_batches_after_it_is_a_hole() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(10, 100);
    opened.flush();
    drop(opened);
    flip(&directory.files(".segment")[0], 3500);
    for run in 0..2 {
        // The same kernel runs: nothing can have been torn in the middle.
        let mut opened = directory.open(LogConfig::default());
        assert_eq!(opened.log.log_end(), Offset(100), "run {run}: {:?}", opened.report);
        assert_eq!(opened.log.holes().len(), 1);
        assert_eq!(opened.report.new_holes.len(), usize::from(run == 0));
        let hole = opened.log.holes()[0].clone();
        assert_eq!(opened.read_all(hole.end.get()).unwrap(), 100);
        assert!(matches!(opened.read_all(0), Err(ReadError::CorruptRange { .. })));
    }
    let mut opened = directory.open(LogConfig::default());
    opened.append(2, 100);
    assert_eq!(opened.read_all(100).unwrap(), 120);
}

#[test]
fn h11_a_flip_in_the_last_flushed_batch_is_a_hole_and_its_offsets_are_not_given_out_again() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(10, 100);
    opened.flush();
    let last = opened.log.bytes() - 10;
    drop(opened);
    flip(&directory.files(".segment")[0], last);
    for run in 0..2 {
        let opened = directory.open(LogConfig::default());
        assert_eq!(opened.log.log_end(), Offset(100), "run {run}");
        assert_eq!(opened.log.holes()[0].start, Offset(90));
        if run == 0 {
            let cut = opened.report.cut.as_ref().unwrap();
            assert_eq!((cut.verdict, cut.offset), (Verdict::Corrupt, Offset(90)));
            assert!(!cut.quarantined.is_empty() && cut.quarantined.iter().all(|path| path.exists()));
        }
    }
    let mut opened = directory.open(LogConfig::default());
    opened.append(1, 100);
    assert_eq!(opened.read_all(100).unwrap(), 110);
}

#[test]
fn h22_a_torn_tail_is_cut_for_good() {
    let directory = Directory::new();
    let mut opened = directory.open(LogConfig::default());
    opened.append(3, 100);
    opened.flush();
    drop(opened);
    let path = directory.files(".segment")[0].clone();
    // Half a batch.
    let batch = super::support::batch(super::support::PARTITION, 30, 10, 5000, 1);
    let mut bytes = batch.head.to_vec();
    bytes.extend_from_slice(&batch.tail);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let opened = directory.open(LogConfig::default());
    let position = opened.log.bytes();
    opened.close();
    file.write_all_at(&bytes[..bytes.len() / 2], position).unwrap();
    drop(file);
    let mut opened = directory.open(LogConfig::default());
    let cut = opened.report.cut.clone().unwrap();
    assert_eq!((cut.position, cut.verdict), (position, Verdict::Torn));
    assert_eq!(fs::metadata(&path).unwrap().len(), position, "cut on the disk, not only in memory");
    assert_eq!(fs::read(&cut.quarantined[0]).unwrap(), &bytes[..bytes.len() / 2]);
    opened.append(1, 100);
    drop(opened);
    let mut opened = directory.open(LogConfig::default());
    assert_eq!(opened.report.cut, None);
    assert_eq!(opened.read_all(0).unwrap(), 40);
}

#[test]
fn without_its_manifest_a_log_is_scanned_whole() {
    for damage in [true, false] {
        let directory = Directory::new();
        let mut opened = directory.open(small_segments());
        opened.append(100, 1000);
        opened.close();
        let manifest = directory.partition().join("manifest");
        if damage {
            flip(&manifest, 30);
        } else {
            fs::remove_file(&manifest).unwrap();
        }
        let mut opened = directory.open(small_segments());
        assert_eq!(opened.report.manifest_rebuilt, damage);
        assert_eq!(opened.read_all(0).unwrap(), 1000);
        drop(opened);
        let mut opened = directory.open(small_segments());
        assert!(!opened.report.manifest_rebuilt);
        assert_eq!(opened.read_all(0).unwrap(), 1000);
    }
}

#[test]
fn a_missing_segment_is_a_hole_and_a_cut_one_an_error_not_a_signal() {
    let directory = Directory::new();
    let mut opened = directory.open(small_segments());
    opened.append(100, 1000);
    opened.close();
    let segments = directory.files(".segment");
    fs::remove_file(&segments[3]).unwrap();
    let cut = fs::OpenOptions::new().write(true).open(&segments[5]).unwrap();
    cut.set_len(30_000).unwrap();
    let mut opened = directory.open(small_segments());
    let missing = opened.report.new_holes[0].clone();
    assert!(
        matches!(opened.read_all(0), Err(ReadError::CorruptRange { start, .. }) if start == missing.start)
    );
    let Err(ReadError::CorruptRange { end, .. }) = opened.read_all(missing.end.get()) else {
        panic!("the rest of the cut segment is gone")
    };
    assert_eq!(opened.read_all(end.get()).unwrap(), 1000);
}
