use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use openraft::StorageIOError;
use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::{Formatted, Machine, RaftLog, RaftStore, Shown, StoreError, failure};
use crate::controller::consensus::{StoreFailure, Types};
use crate::storage::real::RealFileSystem;
use highwater_protocol::ids::{DirectoryId, NodeId};

fn open(path: &Path) -> Result<RaftStore, StoreError> {
    RaftStore::open(&RealFileSystem::default(), path, Arc::new(AtomicBool::new(false)))
}

struct Builder;

impl StoreBuilder<Types, RaftLog, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, RaftLog, Machine), StoreFailure> {
        let folder = tempfile::tempdir().unwrap();
        let failed = |error| failure(StorageIOError::read, &error);
        let store = open(folder.path()).map_err(failed)?;
        let machine = Machine::open(store.clone(), Shown::new()).await.map_err(failed)?;
        Ok((folder, RaftLog::new(store), machine))
    }
}

#[test]
fn the_store_does_what_the_engine_expects() {
    Suite::test_all(Builder).unwrap();
}

#[test]
fn what_a_directory_is_for_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let formatted = Formatted { node_id: NodeId(3), directory_id: DirectoryId(0xabc), voters: Vec::new() };
    {
        let store = open(folder.path()).unwrap();
        assert_eq!(store.formatted().unwrap(), None);
        store.format(&formatted).unwrap();
    }
    assert_eq!(open(folder.path()).unwrap().formatted().unwrap(), Some(formatted));
}

#[test]
fn a_store_whose_flush_has_failed_is_not_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let flush_failed = Arc::new(AtomicBool::new(false));
    let file_system = RealFileSystem::default();
    let store = RaftStore::open(&file_system, folder.path(), Arc::clone(&flush_failed)).unwrap();
    flush_failed.store(true, std::sync::atomic::Ordering::Release);
    let formatted = Formatted { node_id: NodeId(3), directory_id: DirectoryId(1), voters: Vec::new() };
    assert!(matches!(store.format(&formatted), Err(StoreError::FlushFailed)));
    drop(store);
    let again = RaftStore::open(&file_system, folder.path(), flush_failed);
    assert!(matches!(again, Err(StoreError::FlushFailed)));
}
