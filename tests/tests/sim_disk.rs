//! The simulated disk and the real one answer alike: one suite, run on both.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not known as tests")]

use std::io::{ErrorKind, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use highwater_broker::storage::file_system::{File, FileSystem, OpenMode};
use highwater_broker::storage::real::RealFileSystem;
use highwater_tests::sim::disk::{Flushes, SimDisk};

fn on_both(check: impl Fn(&Arc<dyn FileSystem>, &Path)) {
    let disk = SimDisk::new(1);
    disk.set_flushes(Flushes::Threads { delay_max: Duration::from_millis(1) });
    let files = disk.mount();
    files.create_directory(Path::new("/root")).unwrap();
    check(&files, Path::new("/root"));
    assert!(disk.violations().is_empty(), "{:?}", disk.violations());

    let directory = tempfile::tempdir().unwrap();
    let files: Arc<dyn FileSystem> = Arc::new(RealFileSystem::default());
    check(&files, directory.path());
}

fn write(file: &Arc<dyn File>, bytes: &[u8], position: u64) {
    assert_eq!(file.write_vectored_at(&[IoSlice::new(bytes)], position).unwrap(), bytes.len());
}

fn read(file: &Arc<dyn File>, position: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; length];
    let count = file.read_at(&mut bytes, position).unwrap();
    bytes.truncate(count);
    bytes
}

fn kind<T>(result: std::io::Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error.kind(),
    }
}

#[test]
fn files_are_opened_created_and_emptied_alike() {
    on_both(|files, root| {
        let path = root.join("a");
        assert_eq!(kind(files.open(&path, OpenMode::Read)), ErrorKind::NotFound);
        assert_eq!(kind(files.open(&path, OpenMode::ReadWrite)), ErrorKind::NotFound);
        let file = files.open(&path, OpenMode::CreateNew).unwrap();
        assert_eq!(kind(files.open(&path, OpenMode::CreateNew)), ErrorKind::AlreadyExists);
        write(&file, b"hello", 3);
        assert_eq!(read(&file, 0, 100), b"\0\0\0hello");
        assert!(files.exists(&path).unwrap() && !files.exists(&root.join("b")).unwrap());
        drop(files.open(&path, OpenMode::CreateTruncated).unwrap());
        assert_eq!(file.length().unwrap(), 0);
        assert_eq!(kind(files.open(&root.join("none/a"), OpenMode::CreateNew)), ErrorKind::NotFound);
    });
}

#[test]
fn positions_lengths_and_vectors_are_alike() {
    on_both(|files, root| {
        let file = files.open(&root.join("a"), OpenMode::CreateNew).unwrap();
        assert_eq!(
            file.write_vectored_at(&[IoSlice::new(b"ab"), IoSlice::new(b""), IoSlice::new(b"c")], 10_000)
                .unwrap(),
            3
        );
        assert_eq!(file.length().unwrap(), 10_003);
        assert_eq!(read(&file, 9_999, 10), b"\0abc");
        assert!(read(&file, 10_003, 10).is_empty() && read(&file, 1 << 40, 10).is_empty());
        file.set_length(10_001).unwrap();
        file.set_length(10_004).unwrap();
        assert_eq!(read(&file, 10_000, 10), b"a\0\0\0");
        file.allocate(0..65_536).unwrap();
        assert_eq!(file.length().unwrap(), 65_536);
        assert_eq!(read(&file, 10_000, 4), b"a\0\0\0");
        file.allocate(0..100).unwrap();
        assert_eq!(file.length().unwrap(), 65_536, "never shorter");
        file.sync().unwrap();
        let mut past = vec![1; 10_004];
        assert_eq!(file.read_past_cache_at(&mut past, 0).unwrap(), 10_004);
        assert_eq!(&past[9_999..], b"\0a\0\0\0");
        assert_eq!(file.read_past_cache_at(&mut past, 65_536).unwrap(), 0);
    });
}

#[test]
fn names_are_alike() {
    on_both(|files, root| {
        let directory = root.join("x/y");
        files.create_directory(&directory).unwrap();
        files.create_directory(&directory).unwrap();
        for name in ["b", "a"] {
            let file = files.open(&directory.join(name), OpenMode::CreateNew).unwrap();
            write(&file, name.as_bytes(), 0);
        }
        let names = |path: &Path| -> Vec<String> {
            files
                .list(path)
                .unwrap()
                .into_iter()
                .map(|entry| format!("{} {}", entry.name, entry.is_directory))
                .collect()
        };
        assert_eq!(names(&directory), ["a false", "b false"]);
        assert_eq!(names(&root.join("x")), ["y true"]);
        let open = files.open(&directory.join("b"), OpenMode::Read).unwrap();
        files.rename(&directory.join("a"), &directory.join("b")).unwrap();
        assert_eq!(read(&open, 0, 9), b"b", "an open file keeps its bytes");
        assert_eq!(read(&files.open(&directory.join("b"), OpenMode::Read).unwrap(), 0, 9), b"a");
        assert_eq!(kind(files.rename(&directory.join("a"), &directory.join("c"))), ErrorKind::NotFound);
        files.rename(&root.join("x/y"), &root.join("z")).unwrap();
        assert_eq!(names(&root.join("z")), ["b false"]);
        files.sync_directory(&root.join("z")).unwrap();
        files.sync_directory(root).unwrap();
        assert_eq!(kind(files.remove_file(&root.join("none"))), ErrorKind::NotFound);
        files.remove_file(&root.join("z/b")).unwrap();
        assert_eq!(kind(files.list(&root.join("none"))), ErrorKind::NotFound);
        assert_eq!(kind(files.sync_directory(&root.join("none"))), ErrorKind::NotFound);
        files.create_directory(&root.join("z/deep/er")).unwrap();
        files.open(&root.join("z/deep/f"), OpenMode::CreateNew).unwrap();
        files.remove_directory(&root.join("z")).unwrap();
        assert_eq!(names(root), ["x true"]);
    });
}

#[test]
fn mappings_are_alike() {
    on_both(|files, root| {
        let file = files.open(&root.join("a"), OpenMode::CreateNew).unwrap();
        write(&file, &[7; 5000], 0);
        let mapping = file.map(1 << 20).unwrap();
        write(&file, &[8; 5000], 5000);
        mapping.populate(0..10_000).unwrap();
        assert!(mapping.is_resident(0..10_000));
        let slice = Arc::clone(&mapping).slice(4999..5001);
        assert_eq!(&slice[..], [7, 8]);
        assert!(mapping.populate(0..100_000).is_err(), "past the end of the file");
        files.remove_file(&root.join("a")).unwrap();
        drop((file, mapping));
        assert_eq!(&slice[..], [7, 8], "a slice keeps its bytes");
    });
}

#[test]
fn locks_rounds_and_jobs_are_alike() {
    on_both(|files, root| {
        let path = root.join("lock");
        let lock = files.lock(&path).unwrap();
        assert!(files.lock(&path).is_err());
        drop(lock);
        drop(files.lock(&path).unwrap());
        assert_eq!(files.boot_id().unwrap(), files.boot_id().unwrap());
        assert!(files.space(root).unwrap().available > 0);

        let round: Vec<Arc<dyn File>> = ["a", "b"]
            .iter()
            .map(|name| files.open(&root.join(name), OpenMode::CreateNew).unwrap())
            .collect();
        round.iter().for_each(|file| write(file, &[1; 100], 0));
        let (sender, receiver) = sync_channel(2);
        let flushed = sender.clone();
        files.flush_round(
            round,
            Box::new(move |results| flushed.send(results.iter().map(Result::is_ok).collect()).unwrap()),
        );
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), [true, true]);
        files.spawn_io(Box::new(move || sender.send(vec![false]).unwrap()));
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), [false]);
    });
}
