//! After a power cut the page cache says nothing about the past; once every log has been recovered under the new kernel,
//! it does again.
#![cfg(test)]

use std::sync::Arc;

use highwater_broker::storage::config::StoreConfig;
use highwater_broker::storage::store::Store;
use highwater_protocol::ids::DirectoryId;
use highwater_tests::sim::broker_world::{Connection, data_dir, start};
use highwater_tests::sim::clock::SimClock;
use highwater_tests::sim::disk::SimDisk;

/// What the next start is going to believe of the kernel.
fn same_kernel(disk: &SimDisk) -> bool {
    let look = disk.fork();
    let (store, _report) =
        Store::open(look.mount(), &data_dir(), StoreConfig::default(), DirectoryId(9)).unwrap();
    store.boot().same_kernel
}

#[tokio::test]
async fn a_kill_after_a_recovered_power_cut_is_judged_by_the_kernel_that_runs() {
    let (disk, clock) = (SimDisk::new(7), Arc::new(SimClock::default()));
    let broker = start(&disk, &clock, 1).await.unwrap();
    let mut connection = Connection::memory(&broker).await.unwrap();
    connection.create_topic(3, [].into()).await.unwrap();
    disk.power_cut(11);
    drop((connection, broker));
    assert!(!same_kernel(&disk), "nothing has been recovered under this kernel yet");

    let broker = start(&disk, &clock, 2).await.unwrap();
    disk.process_crash();
    drop(broker);
    assert!(same_kernel(&disk), "every log was recovered under this kernel");
}
