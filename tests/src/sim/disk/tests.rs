//! Every fault of the disk really happens, and nothing that was synced is ever lost.

use std::collections::BTreeSet;
use std::io::{ErrorKind, IoSlice};
use std::path::Path;
use std::sync::Arc;

use highwater_broker::storage::file_system::{File, FileSystem, OpenMode, RoundResult};
use parking_lot::Mutex;

use super::{Chaos, FaultKind, Flushes, SimDisk};

const DIRECTORY: &str = "/data";

fn disk() -> (SimDisk, Arc<dyn FileSystem>) {
    let disk = SimDisk::new(1);
    let files = disk.mount();
    files.create_directory(Path::new(DIRECTORY)).unwrap();
    disk.sync_all();
    (disk, files)
}

fn path(name: &str) -> std::path::PathBuf {
    Path::new(DIRECTORY).join(name)
}

fn create(files: &Arc<dyn FileSystem>, name: &str) -> Arc<dyn File> {
    files.open(&path(name), OpenMode::CreateNew).unwrap()
}

fn write(file: &Arc<dyn File>, bytes: &[u8], position: u64) {
    assert_eq!(file.write_vectored_at(&[IoSlice::new(bytes)], position).unwrap(), bytes.len());
}

/// A file with a durable name.
fn durable(disk: &SimDisk, files: &Arc<dyn FileSystem>, name: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = create(files, name);
    write(&file, bytes, 0);
    disk.sync_all();
    file
}

/// What a file may hold after power cuts of many seeds.
fn outcomes(disk: &SimDisk, name: &str) -> BTreeSet<Option<Vec<u8>>> {
    let after = |seed| {
        let fork = disk.fork();
        fork.power_cut(seed);
        fork.read(&path(name)).ok()
    };
    (0..200).map(after).collect()
}

fn begin_round(files: &Arc<dyn FileSystem>, round: Vec<Arc<dyn File>>) -> Arc<Mutex<Option<RoundResult>>> {
    let result = Arc::new(Mutex::new(None));
    let own = Arc::clone(&result);
    files.flush_round(round, Box::new(move |done| *own.lock() = Some(done)));
    result
}

#[test]
fn synced_bytes_survive_every_cut_and_unsynced_ones_some() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "a", &[1; 2000]);
    write(&file, &[2; 3000], 2000);
    let outcomes = outcomes(&disk, "a");
    for outcome in &outcomes {
        let bytes = outcome.as_ref().unwrap();
        assert!(bytes.len() >= 2000 && bytes[..2000].iter().all(|&byte| byte == 1), "a synced byte is gone");
    }
    let has = |check: &dyn Fn(&[u8]) -> bool| outcomes.iter().flatten().any(|bytes| check(bytes));
    assert!(has(&|bytes| bytes.len() == 2000), "all is lost in some cut");
    assert!(
        has(&|bytes| bytes.len() == 5000 && bytes[2000..].iter().all(|&byte| byte == 2)),
        "all is kept in some"
    );
    assert!(
        has(&|bytes| bytes.len() == 5000 && bytes[2048..].iter().all(|&byte| byte == 0)),
        "only the length is kept"
    );
    assert!(
        has(&|bytes| bytes.len() > 4096 && bytes[2048] == 0 && bytes[4096] == 2),
        "later sectors, not earlier ones"
    );
    assert!(
        has(&|bytes| bytes.len() == 5000 && bytes[2559] == 2 && bytes[2560] == 0),
        "torn between two sectors"
    );
    let torn_elsewhere =
        |bytes: &[u8]| (2001..bytes.len()).any(|at| !at.is_multiple_of(512) && bytes[at] != bytes[at - 1]);
    assert!(!has(&torn_elsewhere), "sectors are atomic");
}

#[test]
fn the_same_seed_gives_the_same_cut() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "a", &[]);
    write(&file, &[2; 30_000], 0);
    let after = |seed| {
        let fork = disk.fork();
        fork.power_cut(seed);
        fork.read(&path("a")).unwrap()
    };
    assert_eq!(after(5), after(5));
    assert!((0..20).any(|seed| after(seed) != after(5)));
}

#[test]
fn names_survive_only_with_their_directory_synced() {
    let (disk, files) = disk();
    let file = create(&files, "a");
    write(&file, &[1; 10], 0);
    file.sync().unwrap();
    assert!(outcomes(&disk, "a").contains(&None), "a synced file without a synced name is lost in some cut");
    files.sync_directory(Path::new(DIRECTORY)).unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(vec![1; 10])]));
}

#[test]
fn a_rename_is_atomic_and_durable_only_when_synced() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "new", b"new");
    durable(&disk, &files, "state", b"old");
    file.sync().unwrap();
    files.rename(&path("new"), &path("state")).unwrap();
    assert_eq!(outcomes(&disk, "state"), BTreeSet::from([Some(b"old".to_vec()), Some(b"new".to_vec())]));
    files.sync_directory(Path::new(DIRECTORY)).unwrap();
    assert_eq!(outcomes(&disk, "state"), BTreeSet::from([Some(b"new".to_vec())]));
    assert_eq!(outcomes(&disk, "new"), BTreeSet::from([None]));
}

#[test]
fn a_rename_over_unsynced_bytes_can_lose_both() {
    let (disk, files) = disk();
    durable(&disk, &files, "state", b"old");
    write(&create(&files, "new"), b"new", 0);
    files.rename(&path("new"), &path("state")).unwrap();
    files.sync_directory(Path::new(DIRECTORY)).unwrap();
    assert!(outcomes(&disk, "state").contains(&Some(Vec::new())));
}

#[test]
fn a_removed_name_can_come_back_until_its_directory_is_synced() {
    let (disk, files) = disk();
    durable(&disk, &files, "a", b"x");
    files.remove_file(&path("a")).unwrap();
    assert_eq!(files.open(&path("a"), OpenMode::Read).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([None, Some(b"x".to_vec())]));
    files.sync_directory(Path::new(DIRECTORY)).unwrap();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([None]));
}

#[test]
fn names_of_different_directories_are_kept_in_different_orders() {
    let (disk, files) = disk();
    for name in ["one", "two"] {
        files.create_directory(&path(name)).unwrap();
    }
    disk.sync_all();
    for name in ["one/a", "two/b"] {
        create(&files, name);
    }
    let kept = |seed| {
        let fork = disk.fork();
        fork.power_cut(seed);
        (fork.read(&path("one/a")).is_ok(), fork.read(&path("two/b")).is_ok())
    };
    assert_eq!((0..200).map(kept).collect::<BTreeSet<_>>().len(), 4);
}

#[test]
fn a_cut_of_a_file_can_be_undone_until_it_is_synced() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "a", &[1; 6000]);
    file.set_length(1000).unwrap();
    write(&file, &[2; 1000], 1000);
    let outcomes_before = outcomes(&disk, "a");
    assert!(outcomes_before.contains(&Some(vec![1; 6000])), "the old bytes are back");
    let ends_new = |bytes: &Vec<u8>| bytes.len() == 2000 && bytes.ends_with(&[2; 400]);
    assert!(outcomes_before.iter().flatten().any(ends_new));
    file.sync().unwrap();
    let bytes = [[1; 1000], [2; 1000]].concat();
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(bytes)]));
}

#[test]
fn a_round_covers_what_was_written_before_it_began_and_not_more() {
    let (disk, files) = disk();
    disk.set_flushes(Flushes::Manual);
    let file = durable(&disk, &files, "a", &[]);
    write(&file, &[1; 700], 0);
    let result = begin_round(&files, vec![Arc::clone(&file)]);
    write(&file, &[2; 700], 700);
    assert!(outcomes(&disk, "a").contains(&Some(Vec::new())), "nothing is durable before the completion");
    assert!(result.lock().is_none());
    assert!(disk.complete_round(0) && !disk.complete_round(0));
    assert!(result.lock().take().unwrap().remove(0).is_ok());
    let outcomes = outcomes(&disk, "a");
    assert!(outcomes.iter().flatten().all(|bytes| bytes.starts_with(&[1; 700])));
    assert!(outcomes.contains(&Some(vec![1; 700])), "what came later is lost in some cut");
}

#[test]
fn rounds_may_complete_in_any_order() {
    let (disk, files) = disk();
    disk.set_flushes(Flushes::Manual);
    let file = durable(&disk, &files, "a", &[]);
    write(&file, &[1; 700], 0);
    begin_round(&files, vec![Arc::clone(&file)]);
    write(&file, &[2; 700], 700);
    begin_round(&files, vec![Arc::clone(&file)]);
    write(&file, &[3; 700], 1400);
    assert!(disk.complete_round(1) && disk.complete_round(0));
    let bytes = [[1; 700], [2; 700]].concat();
    assert!(outcomes(&disk, "a").iter().flatten().all(|outcome| outcome.starts_with(&bytes)));
}

#[test]
fn a_late_round_does_not_bring_old_bytes_back() {
    let (disk, files) = disk();
    disk.set_flushes(Flushes::Manual);
    let file = durable(&disk, &files, "a", &[]);
    write(&file, &[1; 100], 0);
    begin_round(&files, vec![Arc::clone(&file)]);
    write(&file, &[2; 100], 100);
    // Reading past the cache makes the kernel write back what is dirty.
    file.read_past_cache_at(&mut [0; 200], 0).unwrap();
    begin_round(&files, vec![Arc::clone(&file)]);
    assert!(disk.complete_round(1));
    write(&file, &[3; 100], 200);
    assert!(disk.complete_round(0));
    let bytes = [[1; 100], [2; 100]].concat();
    assert!(outcomes(&disk, "a").iter().flatten().all(|outcome| outcome.starts_with(&bytes)));
}

#[test]
fn a_failed_sync_leaves_clean_pages_that_are_lost_at_the_cut() {
    for by_round in [false, true] {
        let (disk, files) = disk();
        let file = durable(&disk, &files, "a", &[1; 512]);
        write(&file, &[2; 4096], 512);
        disk.fail(FaultKind::SyncFails, "/a", 1);
        let sync = || match by_round {
            false => file.sync(),
            true => begin_round(&files, vec![Arc::clone(&file)]).lock().take().unwrap().remove(0),
        };
        assert!(sync().is_err());
        assert!(sync().is_ok(), "the second one is fine");
        let mut read = vec![0; 4608];
        assert_eq!(file.read_at(&mut read, 0).unwrap(), 4608);
        assert!(read[512..].iter().all(|&byte| byte == 2), "still readable");
        assert_eq!(file.read_past_cache_at(&mut read, 0).unwrap(), 4608);
        assert!(read[512..].contains(&0), "but not on the disk");
        let kept = [&[1; 512][..], &[2; 4096]].concat();
        assert!(!outcomes(&disk, "a").contains(&Some(kept)));
        disk.drop_caches();
        file.read_at(&mut read, 0).unwrap();
        assert!(
            read[..512].iter().all(|&byte| byte == 1) && read[512..].contains(&0),
            "lost under memory pressure"
        );
    }
}

#[test]
fn a_crash_keeps_the_page_cache_and_the_boot_and_a_cut_neither() {
    let (disk, files) = disk();
    let lock = files.lock(&path("lock")).unwrap();
    let file = create(&files, "a");
    write(&file, &[1; 5000], 0);
    let boot = files.boot_id().unwrap();
    assert!(files.lock(&path("lock")).is_err());
    disk.process_crash();
    assert!(file.read_at(&mut [0], 0).is_err() && files.exists(&path("a")).is_err(), "the process is dead");
    let files = disk.mount();
    drop(lock);
    assert_eq!(disk.read(&path("a")).unwrap(), vec![1; 5000]);
    assert_eq!(files.boot_id().unwrap(), boot);
    let lock = files.lock(&path("lock")).unwrap();
    disk.power_cut(0);
    assert_ne!(disk.mount().boot_id().unwrap(), boot);
    drop(lock);
    assert!(disk.mount().lock(&path("lock")).is_ok());
}

#[test]
fn a_full_disk_writes_what_fits_and_takes_more_when_there_is_space() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "a", &[1; 4096]);
    disk.set_capacity(Some(3 * 4096));
    assert_eq!(file.write_vectored_at(&[IoSlice::new(&[2; 20_000])], 4096).unwrap(), 8192);
    let full = file.write_vectored_at(&[IoSlice::new(&[2])], 12_288).unwrap_err();
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    assert_eq!(file.allocate(0..40_000).unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(files.space(Path::new(DIRECTORY)).unwrap().available, 0);
    write(&file, &[3; 4096], 0);
    file.set_length(4096).unwrap();
    assert_eq!(files.space(Path::new(DIRECTORY)).unwrap().available, 8192);
    drop(file);
    files.remove_file(&path("a")).unwrap();
    assert_eq!(disk.used(), 0);
}

#[test]
fn writes_fail_and_fall_short_as_planned() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "a", &[]);
    disk.fail(FaultKind::WriteFails, "/a", 1);
    assert!(file.write_vectored_at(&[IoSlice::new(&[1; 10])], 0).is_err());
    assert_eq!(file.length().unwrap(), 0);
    disk.fail(FaultKind::WriteShort, "/a", 1);
    assert!(file.write_vectored_at(&[IoSlice::new(&[1; 10])], 0).unwrap() < 10);
    disk.set_chaos(Chaos { short_write_percent: 50, ..Chaos::default() });
    let lengths: BTreeSet<usize> =
        (0..50).map(|_| file.write_vectored_at(&[IoSlice::new(&[1; 10])], 0).unwrap()).collect();
    assert!(lengths.len() > 3);
    disk.fail(FaultKind::ReadFails, "/a", 1);
    assert!(file.read_at(&mut [0], 0).is_err() && file.read_at(&mut [0], 0).is_ok());
}

#[test]
fn the_kernel_writes_back_by_itself() {
    let (disk, files) = disk();
    disk.set_chaos(Chaos { write_back_percent: 100, ..Chaos::default() });
    let file = durable(&disk, &files, "a", &[0; 8192]);
    write(&file, &[1; 8192], 0);
    write(&file, &[2; 8192], 0);
    let is_old_mixture = |bytes: &Vec<u8>| {
        bytes.contains(&0) && bytes.contains(&1) || bytes.contains(&1) && bytes.contains(&2)
    };
    assert!(
        outcomes(&disk, "a").iter().flatten().any(is_old_mixture),
        "versions between the synced and the last one"
    );
}

#[test]
fn the_power_goes_off_in_the_middle_of_a_change() {
    let mut lengths = BTreeSet::new();
    for seed in 0..50 {
        let disk = SimDisk::new(seed);
        let files = disk.mount();
        files.create_directory(Path::new(DIRECTORY)).unwrap();
        let file = durable(&disk, &files, "a", &[]);
        disk.cut_after(2);
        write(&file, &[1; 512], 0);
        assert!(disk.has_power());
        assert!(file.write_vectored_at(&[IoSlice::new(&[1; 60_000])], 512).is_err());
        assert!(!disk.has_power() && file.sync().is_err() && files.list(Path::new(DIRECTORY)).is_err());
        disk.process_crash();
        lengths.insert(disk.read(&path("a")).unwrap().len());
    }
    assert!(lengths.contains(&512) && lengths.len() > 5, "{lengths:?}");
}

#[test]
fn flipped_bits_are_on_the_disk_and_maybe_in_the_cache() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "a", &[0; 5000]);
    let mut byte = [0];
    disk.flip_bit(&path("a"), 4500, 3, false).unwrap();
    file.read_at(&mut byte, 4500).unwrap();
    assert_eq!(byte, [0]);
    file.read_past_cache_at(&mut byte, 4500).unwrap();
    assert_eq!(byte, [8]);
    disk.flip_bit(&path("a"), 4500, 3, true).unwrap();
    file.read_at(&mut byte, 4500).unwrap();
    assert_eq!(byte, [8]);
}

#[test]
fn slices_must_show_bytes_that_never_change() {
    let (disk, files) = disk();
    let file = durable(&disk, &files, "a", &[7; 5000]);
    let mapping = file.map(1 << 20).unwrap();
    write(&file, &[8; 100], 5000);
    let slice = Arc::clone(&mapping).slice(4990..5010);
    assert_eq!(&slice[..], [[7; 10], [8; 10]].concat());
    write(&file, &[9], 5010);
    write(&file, &[9], 4989);
    assert!(disk.violations().is_empty());
    write(&file, &[9], 5009);
    assert_eq!(disk.violations().len(), 1, "written while shown");
    drop(slice);
    write(&file, &[9], 5009);
    assert_eq!(disk.violations().len(), 1, "nobody looks any more");
    file.set_length(5000).unwrap();
    assert_eq!(disk.violations().len(), 2, "cut while mapped");
    assert!(mapping.populate(0..10_000).is_err());
    drop(Arc::clone(&mapping).slice(4000..10_000));
    assert_eq!(disk.violations().len(), 3, "past the end of the file");
    drop(mapping);
    file.set_length(4000).unwrap();
    assert_eq!(disk.violations().len(), 3);
}

#[test]
fn mappings_are_resident_when_populated() {
    let (disk, files) = disk();
    disk.set_chaos(Chaos { not_resident_percent: 100, ..Chaos::default() });
    let mapping = durable(&disk, &files, "a", &[7; 5000]).map(5000).unwrap();
    assert!(!mapping.is_resident(0..10));
    mapping.populate(0..5000).unwrap();
    assert!(mapping.is_resident(0..10));
}

#[test]
fn threads_complete_rounds_and_run_jobs() {
    let (disk, files) = disk();
    disk.set_flushes(Flushes::Threads { delay_max: std::time::Duration::from_millis(2) });
    let file = durable(&disk, &files, "a", &[]);
    write(&file, &[1; 700], 0);
    let (sender, receiver) = std::sync::mpsc::sync_channel(2);
    let own = sender.clone();
    files.flush_round(
        vec![file],
        Box::new(move |result| own.send(result.into_iter().all(|file| file.is_ok())).unwrap()),
    );
    files.spawn_io(Box::new(move || sender.send(true).unwrap()));
    let wait = std::time::Duration::from_secs(10);
    assert!(receiver.recv_timeout(wait).unwrap() && receiver.recv_timeout(wait).unwrap());
    assert_eq!(outcomes(&disk, "a"), BTreeSet::from([Some(vec![1; 700])]));
}
