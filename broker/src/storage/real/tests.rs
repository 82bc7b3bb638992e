use std::io::IoSlice;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

fn flush(file_system: &RealFileSystem, files: Vec<Arc<dyn File>>) -> RoundResult {
    let (done, result) = mpsc::channel();
    file_system.flush_round(files, Box::new(move |results| done.send(results).unwrap()));
    result.recv_timeout(DEADLINE).expect("a round ends")
}

#[test]
fn what_is_appended_is_seen_through_the_mapping_made_before() {
    let directory = tempfile::tempdir().unwrap();
    let file_system = RealFileSystem::default();
    let file = file_system.open(&directory.path().join("segment"), OpenMode::CreateNew).unwrap();
    let mapping = file.map(1 << 20).unwrap();
    file.allocate(0..64 << 10).unwrap();
    assert_eq!(file.length().unwrap(), 64 << 10);
    let written = file.write_vectored_at(&[IoSlice::new(b"high"), IoSlice::new(b"water")], 100).unwrap();
    assert_eq!(written, 9);
    assert!(flush(&file_system, vec![Arc::clone(&file)]).iter().all(Result::is_ok));
    mapping.populate(0..8192).unwrap();
    assert!(mapping.is_resident(0..8192));
    let slice = Arc::clone(&mapping).slice(100..109);
    drop((mapping, file));
    assert_eq!(&slice[..], b"highwater", "slices keep the mapping alive");
}

#[test]
fn populating_beyond_the_end_of_the_file_is_an_error_not_a_signal() {
    let directory = tempfile::tempdir().unwrap();
    let file_system = RealFileSystem::default();
    let file = file_system.open(&directory.path().join("segment"), OpenMode::CreateNew).unwrap();
    file.set_length(4096).unwrap();
    let mapping = file.map(1 << 20).unwrap();
    mapping.populate(0..4096).unwrap();
    assert!(mapping.populate(0..1 << 20).is_err());
    assert!(!mapping.is_resident(4096..8192));
}

#[test]
fn a_direct_read_returns_what_any_read_returns_at_any_position() {
    let directory = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file_system = RealFileSystem::default();
    let file = file_system.open(&directory.path().join("segment"), OpenMode::CreateNew).unwrap();
    let bytes: Vec<u8> = (0..20_000u32).map(|n| (n * 7) as u8).collect();
    file.write_vectored_at(&[IoSlice::new(&bytes)], 0).unwrap();
    file.sync().unwrap();
    for (position, length) in [(0, 20_000), (1, 4096), (4095, 2), (8192, 4096), (19_999, 10), (30_000, 5)] {
        let (mut direct, mut cached) = (vec![0; length], vec![0; length]);
        let count = file.read_past_cache_at(&mut direct, position).unwrap();
        assert_eq!(count, file.read_at(&mut cached, position).unwrap(), "at {position}");
        assert_eq!(direct, cached, "at {position}");
    }
}

#[test]
fn rounds_of_every_size_report_every_file() {
    let directory = tempfile::tempdir().unwrap();
    let file_system = RealFileSystem::default();
    for count in [0, 1, FILES_FLUSHED_SINGLY_MAX, FILES_FLUSHED_SINGLY_MAX + 1, 200] {
        let files: Vec<Arc<dyn File>> = (0..count)
            .map(|number| {
                let path = directory.path().join(format!("{count}-{number}"));
                let file = file_system.open(&path, OpenMode::CreateNew).unwrap();
                file.write_vectored_at(&[IoSlice::new(b"dirty")], 0).unwrap();
                file
            })
            .collect();
        let results = flush(&file_system, files);
        assert_eq!(results.len(), count);
        assert!(results.iter().all(Result::is_ok));
    }
}

#[test]
fn a_lock_keeps_others_out_until_it_is_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let file_system = RealFileSystem::default();
    let path = directory.path().join("lock");
    let guard = file_system.lock(&path).unwrap();
    let refused = file_system.lock(&path).err().expect("it is taken");
    assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    drop(guard);
    file_system.lock(&path).map(drop).unwrap();
}

#[test]
fn the_machine_has_a_boot_id_and_space() {
    let file_system = RealFileSystem::default();
    assert_ne!(file_system.boot_id().unwrap(), [0; 16]);
    let space = file_system.space(Path::new("/")).unwrap();
    assert!(space.available <= space.total && space.total > 0);
}
