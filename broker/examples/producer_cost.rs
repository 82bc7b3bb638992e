//! What idempotent producers cost on the way of a batch into the log: verification, verdict, stamp, append.
//!
//! `valgrind --tool=callgrind --toggle-collect='*append_all*' target/debug/examples/producer_cost plain 2000 65536`, then
//! the same with `idempotent`: the ratio of the instructions is the cost. Making the batches does not count.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for measurements")]

use std::sync::Arc;

use bytes::Bytes;
use highwater_broker::storage::config::{LogConfig, StoreConfig};
use highwater_broker::storage::log::{Log, StampedBatch};
use highwater_broker::storage::real::RealFileSystem;
use highwater_broker::storage::sink::{FlushOutcome, FlushSink};
use highwater_broker::storage::store::Store;
use highwater_broker_core::durability::Durability;
use highwater_broker_core::producer::{Judged, Preparation, Verdict};
use highwater_protocol::batch::{BatchBuilder, BatchHeader, HEADER_LENGTH, LeaderStamp};
use highwater_protocol::compression::Compression;
use highwater_protocol::ids::{
    DirectoryId, LeaderEpoch, Offset, PartitionId, ProducerId, TopicId, TopicPartition,
};

const PARTITION: TopicPartition = TopicPartition::new(TopicId(1), PartitionId(0));

/// Batches of one write: what queues up while another one is written.
const BATCHES_A_WRITE: u64 = 4;

/// Producers that take turns.
const PRODUCERS: u64 = 8;

struct Deaf;

impl FlushSink for Deaf {
    fn flush_done(&self, _outcome: FlushOutcome) {}
}

fn sent(bytes: usize, producer: Option<(u64, u32)>) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(bytes + 1024);
    if let Some((id, first_sequence)) = producer {
        builder.set_producer(ProducerId(id), 0, first_sequence);
    }
    let value = vec![b'x'; 1000.min(bytes)];
    while builder.is_empty() || builder.length() + 1024 <= bytes {
        builder.push(1, None, Some(&value), &[]);
    }
    builder.build(PARTITION, Compression::None).unwrap()
}

fn main() {
    let mut args = std::env::args().skip(1);
    let idempotent = args.next().as_deref() == Some("idempotent");
    let count: u64 = args.next().map_or(2000, |count| count.parse().unwrap());
    let bytes: usize = args.next().map_or(64 << 10, |bytes| bytes.parse().unwrap());
    let records = BatchHeader::decode(&sent(bytes, None)).unwrap().producer.record_count;
    let batches: Vec<Bytes> = (0..count)
        .map(|number| {
            let producer = (number % PRODUCERS, (number / PRODUCERS) as u32 * records);
            sent(bytes, Some(producer).filter(|_| idempotent))
        })
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let config = StoreConfig { disk_reserve_bytes: 0, ..StoreConfig::default() };
    let fs = Arc::new(RealFileSystem::default());
    let (store, _) = Store::open(fs, directory.path(), config, DirectoryId(1)).unwrap();
    let config = LogConfig { durability: Durability::Os, ..LogConfig::default() };
    let (mut log, _) = store.open_log(PARTITION, config, Arc::new(Deaf)).unwrap();
    append_all(&mut log, &batches);
    assert_eq!(log.log_end(), Offset(count * u64::from(records)));
    println!(
        "{count} batches of {records} records in {bytes} bytes, {} producers known",
        log.producers().count()
    );
}

/// What is measured.
#[inline(never)]
fn append_all(log: &mut Log, batches: &[Bytes]) {
    let mut preparation = Preparation::default();
    for (number, chunk) in (0..).zip(batches.chunks(BATCHES_A_WRITE as usize)) {
        preparation.clear();
        let mut stamped = Vec::with_capacity(chunk.len());
        let mut offset = log.log_end();
        for batch in chunk {
            let header = BatchHeader::decode_produced(batch, PARTITION).unwrap();
            let judged = preparation.handle(log.producers(), &header, number);
            assert_eq!(judged, Judged::Settled(Verdict::Append));
            let leader = LeaderStamp {
                base_offset: offset,
                leader_epoch: LeaderEpoch(1),
                append_time: number,
                ..LeaderStamp::default()
            };
            let head = header.stamped(leader, PARTITION);
            let header = BatchHeader { leader, ..header };
            preparation.note(log.producers(), &header);
            offset = header.end_offset();
            stamped.push(StampedBatch { head, tail: batch.slice(HEADER_LENGTH..), header });
        }
        log.append(&stamped).unwrap();
    }
}
