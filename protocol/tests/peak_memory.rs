//! What hostile input can make a decoder allocate, measured by an allocator that counts.
#![cfg(test)]

mod counting_allocator;

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use highwater_protocol::api::ApiKey;
use highwater_protocol::batch::{BATCH_LENGTH_MIN, BatchBuilder, HEADER_LENGTH, Records};
use highwater_protocol::body::{self, Body};
use highwater_protocol::compression::Compression;
use highwater_protocol::frame::{Splitter, encode_frame_head};
use highwater_protocol::ids::{CorrelationId, PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::{
    BODY_BYTES_MAX, FRAME_BYTES_MAX, RECORDS_BYTES_MAX, REPLY_FIELDS_MAX, REQUEST_FIELDS_MAX,
};
use highwater_protocol::messages::*;

use counting_allocator::Counting;

const MIB: usize = 1 << 20;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` had allocated at once, beyond what there was before.
fn peak_of<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = counting_allocator::start();
    let result = work();
    (counting_allocator::peak() - before, result)
}

/// What was measured, printed at the end.
#[derive(Default)]
struct Report(String);

impl Report {
    fn check(&mut self, what: &str, peak: usize, bound: usize) {
        writeln!(
            self.0,
            "{what}: {:.2} MiB, bound {:.2} MiB",
            peak as f64 / MIB as f64,
            bound as f64 / MIB as f64
        )
        .unwrap();
        assert!(peak <= bound, "{what}: {peak} bytes, more than {bound}");
    }
}

/// One test: another one at the same time would be counted too.
#[test]
fn hostile_input_allocates_within_bounds() {
    let mut report = Report::default();
    announced_frames(&mut report);
    bodies(&mut report);
    compressed(&mut report);
    counts(&mut report);
    let (peak, _) = peak_of(|| vec![0u8; 3 * MIB]);
    assert_eq!(peak, 3 * MIB, "the allocator counts");
    println!("{}", report.0);
}

fn announced_frames(report: &mut Report) {
    let splitter = Splitter::default();
    let mut head = BytesMut::new();
    encode_frame_head(ApiKey::PRODUCE, 0, CorrelationId(1), &PingRequest {}, FRAME_BYTES_MAX, &mut head)
        .unwrap();
    for arrived in [0, 100_000, MIB, 10 * MIB] {
        let (peak, ()) = peak_of(|| {
            let mut input = BytesMut::from(&head[..]);
            while input.len() < head.len() + arrived {
                let room = splitter.read_ahead(&input, 64 << 10).unwrap();
                input.reserve(room);
                let length = input.len() + room.min(head.len() + arrived - input.len());
                input.resize(length, 0);
                assert!(splitter.next(&mut input).unwrap().is_none());
            }
        });
        // While a buffer grows, the old one is there beside the new one of twice its size.
        report.check(&format!("20 MiB announced, {arrived} bytes sent"), peak, 3 * arrived + 200_000);
    }
}

/// A body that is nothing but empty elements of one field, as many as the message may have and as many as fit.
fn of_empty_elements<M: Body>(report: &mut Report, bound: usize) {
    let name = std::any::type_name::<M>().rsplit("::").next().unwrap();
    let mut worst = 0;
    for tag in 1u8..=13 {
        for elements in [M::FIELDS_MAX, BODY_BYTES_MAX / 2] {
            let filled = Bytes::from([tag << 3 | 2, 0].repeat(elements));
            let (peak, decoded) = peak_of(|| body::decode::<M>(&filled).ok());
            assert!(decoded.is_none() || elements <= M::FIELDS_MAX);
            worst = worst.max(peak);
        }
    }
    report.check(&format!("{name} of empty elements"), worst, bound);
}

fn bodies(report: &mut Report) {
    const REQUEST: usize = 2 * MIB;
    const REPLY: usize = 96 * MIB;
    of_empty_elements::<HandshakeRequest>(report, REQUEST);
    of_empty_elements::<MetadataRequest>(report, REQUEST);
    of_empty_elements::<CreateTopicRequest>(report, REQUEST);
    of_empty_elements::<AlterTopicRequest>(report, REQUEST);
    of_empty_elements::<DescribeTopicsRequest>(report, REQUEST);
    of_empty_elements::<ProduceRequest>(report, REQUEST);
    of_empty_elements::<ListOffsetsRequest>(report, REQUEST);
    of_empty_elements::<SubscribeRequest>(report, REQUEST);
    of_empty_elements::<ProduceReply>(report, REQUEST);
    of_empty_elements::<ListOffsetsReply>(report, REQUEST);
    of_empty_elements::<Push>(report, REQUEST);
    of_empty_elements::<BootstrapReply>(report, REQUEST);
    of_empty_elements::<ReplicaResetReply>(report, REQUEST);
    of_empty_elements::<ReplicaChecksumReply>(report, REQUEST);
    of_empty_elements::<FindCoordinatorRequest>(report, REQUEST);
    of_empty_elements::<GroupHeartbeatRequest>(report, REQUEST);
    of_empty_elements::<CommitOffsetsRequest>(report, REQUEST);
    of_empty_elements::<FetchOffsetsRequest>(report, REQUEST);
    of_empty_elements::<AlterGroupOffsetsRequest>(report, REQUEST);
    of_empty_elements::<DeleteGroupsRequest>(report, REQUEST);
    of_empty_elements::<CommitOffsetsReply>(report, REQUEST);
    of_empty_elements::<FetchOffsetsReply>(report, REPLY);
    of_empty_elements::<GroupHeartbeatReply>(report, REPLY);
    of_empty_elements::<ListGroupsReply>(report, REPLY);
    of_empty_elements::<DescribeGroupsReply>(report, REPLY);
    of_empty_elements::<MetadataReply>(report, REPLY);
    of_empty_elements::<MetadataPush>(report, REPLY);
    of_empty_elements::<DescribeClusterReply>(report, REPLY);
    of_empty_elements::<AlterClusterReply>(report, REPLY);
    of_empty_elements::<DescribeTopicsReply>(report, REPLY);

    // The elements may hide one or two levels down.
    let inside = |tag: u8, content: &[u8]| {
        let mut out = vec![tag << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut out);
        out.extend_from_slice(content);
        out
    };
    let partitions = [7 << 3 | 2, 0].repeat(REPLY_FIELDS_MAX - 2);
    let topic = Bytes::from(inside(1, &partitions));
    let (peak, decoded) = peak_of(|| body::decode::<DescribeTopicsReply>(&topic));
    assert_eq!(decoded.unwrap().topics[0].partitions.len(), REPLY_FIELDS_MAX - 2);
    report.check("a topic of empty partitions", peak, REPLY);
    let topics = Bytes::from(inside(10, &[0x0a, 0].repeat(REQUEST_FIELDS_MAX - 1)));
    let (peak, decoded) = peak_of(|| body::decode::<GroupHeartbeatRequest>(&topics));
    assert_eq!(decoded.unwrap().subscription.unwrap().topics.len(), REQUEST_FIELDS_MAX - 1);
    report.check("a subscription of nameless topics", peak, REQUEST);
    let owned = Bytes::from(inside(11, &[0x0a, 0].repeat(REQUEST_FIELDS_MAX)));
    let (peak, decoded) = peak_of(|| body::decode::<GroupHeartbeatRequest>(&owned).ok());
    assert!(decoded.is_none());
    report.check("one topic too many that a member owns", peak, MIB);
    let members = inside(8, &inside(8, &[0x0a, 0].repeat(BODY_BYTES_MAX / 2 - 16)));
    let group = Bytes::from(inside(1, &members));
    let (peak, decoded) = peak_of(|| body::decode::<DescribeGroupsReply>(&group).ok());
    assert!(decoded.is_none());
    report.check("a member with two million empty topics", peak, MIB);
    let ranges = [11 << 3 | 2, 0].repeat(BODY_BYTES_MAX / 2 - 16);
    let hidden = Bytes::from(inside(1, &inside(7, &ranges)));
    let (peak, decoded) = peak_of(|| body::decode::<DescribeTopicsReply>(&hidden).ok());
    assert!(decoded.is_none());
    report.check("a partition of two million empty ranges", peak, MIB);
}

fn compressed(report: &mut Report) {
    for compression in [
        Compression::Lz4,
        #[cfg(feature = "zstd")]
        Compression::Zstd,
    ] {
        for length in [RECORDS_BYTES_MAX, RECORDS_BYTES_MAX + 1] {
            let mut packed = Vec::new();
            compression.compress(&vec![0; length], &mut packed).unwrap();
            let (peak, raw) = peak_of(|| compression.decompress(&packed, RECORDS_BYTES_MAX).ok());
            assert_eq!(raw.is_some(), length == RECORDS_BYTES_MAX);
            let what = format!("{} bytes of {compression:?} that expand to {length}", packed.len());
            report.check(&what, peak, RECORDS_BYTES_MAX + RECORDS_BYTES_MAX / 2 + 17 * MIB);
        }
    }
}

/// A hostile producer with good checksums says that there are a thousand million records.
fn counts(report: &mut Report) {
    let partition = TopicPartition::new(TopicId(1), PartitionId(0));
    let mut builder = BatchBuilder::with_capacity(0);
    for _ in 0..2000 {
        builder.push(0, None, None, &[]);
    }
    let mut batch = builder.build(partition, Compression::Lz4).unwrap().to_vec();
    let count = (RECORDS_BYTES_MAX / 7) as u32;
    batch[49..53].copy_from_slice(&(count - 1).to_le_bytes());
    batch[83..87].copy_from_slice(&count.to_le_bytes());
    let crc = crc32fast::hash(&batch[HEADER_LENGTH..]);
    batch[39..43].copy_from_slice(&crc.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&partition.topic_id.to_bytes());
    hasher.update(&[0; 4]);
    hasher.update(&batch[..43]);
    batch[43..47].copy_from_slice(&hasher.finalize().to_le_bytes());
    assert!(batch.len() > BATCH_LENGTH_MIN);
    let batch = Bytes::from(batch);
    let (peak, good) = peak_of(|| {
        let records = Records::verify(&batch, partition).unwrap();
        let all: Vec<_> = records.iter().collect();
        all.iter().filter(|record| record.is_ok()).count()
    });
    assert_eq!(good, 2000);
    report.check("a batch that says it has nine million records", peak, 18 * MIB);
}
