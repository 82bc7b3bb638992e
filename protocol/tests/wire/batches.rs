//! Batches of random records, whole and damaged.

use bytes::Bytes;
use highwater_protocol::batch::{
    BATCH_LENGTH_MIN, BatchBuilder, BatchError, BatchHeader, HEADER_LENGTH, Records, RecordsError,
};
use highwater_protocol::compression::Compression;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{Offset, PartitionId, ProducerId, TopicId, TopicPartition};
use proptest::collection::vec;
use proptest::prelude::*;

const PARTITION: TopicPartition = TopicPartition::new(TopicId(0xfeed), PartitionId(5));

#[derive(Debug, Clone)]
struct Given {
    timestamp: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

fn given() -> impl Strategy<Value = Given> {
    let bytes = |length| proptest::option::of(vec(any::<u8>(), 0..length));
    let time =
        prop_oneof![any::<i64>(), 1_790_000_000_000i64..1_790_000_000_100, Just(i64::MIN), Just(i64::MAX)];
    let headers = vec(("\\PC{0,8}", proptest::option::of(vec(any::<u8>(), 0..20))), 0..4);
    (time, bytes(40), bytes(300), headers).prop_map(|(timestamp, key, value, headers)| Given {
        timestamp,
        key,
        value,
        headers,
    })
}

fn compressions() -> impl Strategy<Value = Compression> {
    let mut all = vec![Compression::None, Compression::Lz4];
    if cfg!(feature = "zstd") {
        all.push(Compression::Zstd);
    }
    prop::sample::select(all)
}

fn build(all: &[Given], compression: Compression) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(0);
    let mut length_max = builder.length();
    for one in all {
        let headers: Vec<_> =
            one.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
        let sum = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        let of_headers = one.headers.iter().map(|(name, value)| name.len() + sum(value)).sum();
        length_max +=
            BatchBuilder::record_length_max(sum(&one.key), sum(&one.value), headers.len(), of_headers);
        builder.push(one.timestamp, one.key.as_deref(), one.value.as_deref(), &headers);
        assert!(builder.length() <= length_max);
    }
    builder.build(PARTITION, compression).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn records_come_back_under_every_compression(all in vec(given(), 1..30), compression in compressions()) {
        let batch = build(&all, compression);
        let header = BatchHeader::decode_produced(&batch, PARTITION).unwrap();
        prop_assert_eq!(header.producer.max_timestamp, all.iter().map(|one| one.timestamp).max().unwrap());
        prop_assert_eq!(header.offset_count(), all.len() as u64);
        let records = Records::verify(&batch, PARTITION).unwrap();
        let found: Vec<_> = records.iter().map(|one| records.to_owned_record(&one.unwrap()).unwrap()).collect();
        prop_assert_eq!(found.len(), all.len());
        for (at, (found, given)) in found.iter().zip(&all).enumerate() {
            prop_assert_eq!(found.offset, Offset(at as u64));
            prop_assert_eq!(found.timestamp, given.timestamp);
            prop_assert_eq!(found.key.as_deref(), given.key.as_deref());
            prop_assert_eq!(found.value.as_deref(), given.value.as_deref());
            let headers: Vec<_> = found.headers.iter().map(|one| (one.name.clone(), one.value.as_deref().map(<[u8]>::to_vec))).collect();
            prop_assert_eq!(&headers, &given.headers);
        }
    }

    #[test]
    fn a_batch_that_is_cut_extended_or_changed_is_refused(
        all in vec(given(), 1..5),
        compression in compressions(),
        at in any::<prop::sample::Index>(),
        change in 1u8..,
    ) {
        let batch = build(&all, compression);
        let cut = at.index(batch.len());
        prop_assert!(BatchHeader::decode_produced(&batch[..cut], PARTITION).is_err());
        let extended = [&batch[..], &[change]].concat();
        prop_assert!(BatchHeader::decode_produced(&extended, PARTITION).is_err());
        let mut changed = batch.to_vec();
        changed[cut] ^= change;
        prop_assert!(BatchHeader::decode_produced(&changed, PARTITION).is_err());
        prop_assert!(Records::verify(&Bytes::from(changed), PARTITION).is_err());
    }

    /// The producer is hostile and gets its checksums right: the reader of the records must be as safe as before.
    #[test]
    fn records_that_lie_under_good_checksums_do_no_harm(
        all in vec(given(), 1..8),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut batch = build(&all, Compression::None).to_vec();
        for (at, byte) in changes {
            let at = BATCH_LENGTH_MIN + at.index(batch.len() - BATCH_LENGTH_MIN);
            batch[at] = byte;
        }
        let batch = Bytes::from(with_good_checksums(batch));
        let records = Records::verify(&batch, PARTITION).unwrap();
        let mut previous = None;
        for record in &records {
            let Ok(record) = record else { break };
            prop_assert!(previous < Some(record.offset) && record.offset < records.header().end_offset());
            previous = Some(record.offset);
            let _ = records.to_owned_record(&record);
        }
    }
}

fn with_good_checksums(mut batch: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&batch[HEADER_LENGTH..]);
    batch[39..43].copy_from_slice(&crc.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&PARTITION.topic_id.to_bytes());
    hasher.update(&PARTITION.partition.get().to_le_bytes());
    hasher.update(&batch[..43]);
    let header_crc = hasher.finalize();
    batch[43..47].copy_from_slice(&header_crc.to_le_bytes());
    batch
}

/// One record, some header field replaced, both checksums good.
fn forged(at: usize, bytes: &[u8]) -> BatchError {
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(1000, None, Some(b"value"), &[]);
    let mut batch = builder.build(PARTITION, Compression::None).unwrap().to_vec();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    BatchHeader::decode_produced(&with_good_checksums(batch), PARTITION).unwrap_err()
}

#[test]
fn a_producer_cannot_forge_what_the_leader_writes_or_use_up_offsets() {
    let not_produced = |error: BatchError| {
        assert_eq!(error.code(), ErrorCode::CorruptBatch);
        assert!(matches!(error, BatchError::NotProduced(_)), "{error}");
    };
    not_produced(forged(5, &(1u16 << 5).to_le_bytes())); // control records
    not_produced(forged(7, &77u64.to_le_bytes())); // base_offset
    not_produced(forged(15, &1u32.to_le_bytes())); // leader_epoch
    not_produced(forged(19, &i64::MAX.to_le_bytes())); // append_time
    not_produced(forged(27, &u64::MAX.to_le_bytes())); // durable_end: all that recovery asks about the tail
    not_produced(forged(49, &1_000_000u32.to_le_bytes())); // last_offset_delta
    not_produced(forged(61, &999i64.to_le_bytes())); // max_timestamp below the first
    not_produced(forged(69, &5u64.to_le_bytes())); // a producer without epoch and sequence
    not_produced(forged(77, &0u16.to_le_bytes())); // an epoch without a producer
    assert!(matches!(forged(83, &0u32.to_le_bytes()), BatchError::NotProduced(_))); // no records
    assert!(matches!(forged(83, &u32::MAX.to_le_bytes()), BatchError::Counts { .. }));
    assert!(matches!(forged(49, &u32::MAX.to_le_bytes()), BatchError::Counts { .. }));
    assert!(
        matches!(forged(7, &u64::MAX.to_le_bytes()), BatchError::Counts { .. }),
        "offsets end at 2^64 - 1"
    );
}

#[test]
fn what_a_broker_does_not_know_is_told_apart_from_what_is_damaged() {
    assert_eq!(forged(2, &[9]).code(), ErrorCode::UnsupportedFormat);
    assert_eq!(forged(3, &300u16.to_le_bytes()).code(), ErrorCode::UnsupportedFormat);
    assert_eq!(forged(5, &(1u16 << 9).to_le_bytes()).code(), ErrorCode::UnsupportedFormat);
    assert_eq!(forged(47, &7u16.to_le_bytes()).code(), ErrorCode::UnsupportedFormat);
    assert_eq!(forged(35, &(17u32 << 20).to_le_bytes()).code(), ErrorCode::BatchTooLarge);
    assert_eq!(forged(35, &3u32.to_le_bytes()).code(), ErrorCode::CorruptBatch);
    assert_eq!(forged(0, &[0, 0]).code(), ErrorCode::CorruptBatch);
}

#[test]
fn a_count_of_records_cannot_exceed_what_their_bytes_could_hold() {
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(0, None, None, &[]);
    builder.push(0, None, None, &[]);
    let mut batch = builder.build(PARTITION, Compression::None).unwrap().to_vec();
    assert_eq!(batch.len(), BATCH_LENGTH_MIN + 14, "the smallest record takes seven bytes");
    BatchHeader::decode_produced(&batch, PARTITION).unwrap();
    batch[49..53].copy_from_slice(&2u32.to_le_bytes());
    batch[83..87].copy_from_slice(&3u32.to_le_bytes());
    let error = BatchHeader::decode(&with_good_checksums(batch)).unwrap_err();
    assert!(matches!(error, BatchError::Counts { record_count: 3, .. }), "{error}");
}

#[test]
fn a_count_of_headers_cannot_exceed_what_their_bytes_could_hold() {
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(0, None, None, &[("a", None)]);
    let mut batch = builder.build(PARTITION, Compression::None).unwrap().to_vec();
    let count_at = batch.len() - 4;
    assert_eq!(batch[count_at], 2, "one header");
    batch[count_at] = 4;
    let records = Records::verify(&Bytes::from(with_good_checksums(batch)), PARTITION).unwrap();
    assert!(matches!(records.iter().next(), Some(Err(RecordsError::Malformed { index: 0 }))));
}

#[test]
fn records_that_do_not_compress_stay_as_they_are() {
    let noise: Vec<u8> =
        (0..4096u64).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7).to_le_bytes()).collect();
    let mut builder = BatchBuilder::with_capacity(0);
    builder.push(0, None, Some(&noise), &[]);
    let batch = builder.build(PARTITION, Compression::Lz4).unwrap();
    let header = BatchHeader::decode_produced(&batch, PARTITION).unwrap();
    assert_eq!(header.compression().unwrap(), Compression::None);
}

#[test]
fn an_idempotent_producer_is_named_with_epoch_and_sequence() {
    let mut builder = BatchBuilder::with_capacity(0);
    builder.set_producer(ProducerId(1), 0, i32::MAX as u32);
    builder.push(0, None, None, &[]);
    let batch = builder.build(PARTITION, Compression::None).unwrap();
    assert_eq!(BatchHeader::decode_produced(&batch, PARTITION).unwrap().producer.producer_id, ProducerId(1));
}
