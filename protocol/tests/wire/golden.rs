//! Golden bytes: they, not the code, say what the format is.

use std::collections::BTreeSet;

use bytes::BytesMut;
use highwater_protocol::api::ApiKey;
use highwater_protocol::batch::{BatchBuilder, BatchHeader, LEADER_FLAG_APPEND_TIME, LeaderStamp, Records};
use highwater_protocol::compression::Compression;
use highwater_protocol::frame::{
    FLAG_ERROR, FLAG_ONE_WAY, FLAG_REPLY, FrameHeader, Splitter, encode_frame_head,
};
use highwater_protocol::ids::{
    CorrelationId, LeaderEpoch, Offset, PartitionId, ProducerId, TopicId, TopicPartition,
};
use highwater_protocol::messages::{ErrorReply, PingRequest, ProduceBatch, ProduceRequest, Push};

use crate::expect::{compare_golden, golden_bytes, golden_names, keep_golden};
use crate::samples;

const PARTITION: TopicPartition =
    TopicPartition::new(TopicId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10), PartitionId(3));

#[test]
fn every_message_has_its_golden_bytes() {
    let error = samples::error_reply();
    compare_golden(error.name, error.name, &error.bytes);
    for api in samples::all() {
        for sample in api.samples {
            compare_golden(sample.name, sample.name, &sample.bytes);
            let kept = golden_bytes(sample.name);
            assert_eq!((sample.through_struct)(&kept), kept, "{}", sample.name);
        }
    }
}

#[test]
fn every_api_has_samples_and_every_golden_file_has_a_test() {
    let sampled: BTreeSet<ApiKey> = samples::all().iter().map(|api| api.api).collect();
    assert_eq!(sampled, ApiKey::ALL.iter().copied().collect());
    let mut names: BTreeSet<String> =
        samples::all().iter().flat_map(|api| &api.samples).map(|sample| sample.name.to_owned()).collect();
    names.insert("ErrorReply".to_owned());
    names.extend(
        ["batch_produced", "batch_stamped", "batch_lz4", "batch_of_another_writer"].map(str::to_owned),
    );
    names.extend(["frame_request", "frame_error_reply", "frame_push"].map(str::to_owned));
    assert_eq!(golden_names(), names);
}

fn builder() -> BatchBuilder {
    let mut builder = BatchBuilder::with_capacity(256);
    builder.set_producer(ProducerId(0x0001_0000_0000_002a), 4, 1000);
    builder.push(
        1_790_000_000_000,
        Some(b"customer-1"),
        Some(b"order 1"),
        &[("trace", Some(b"abc")), ("none", None)],
    );
    builder.push(1_789_999_999_990, None, Some(b""), &[]);
    builder.push(1_790_000_000_005, Some(b""), None, &[("", Some(b""))]);
    builder
}

#[test]
fn a_batch_as_a_producer_sends_it() {
    let batch = builder().build(PARTITION, Compression::None).unwrap();
    compare_golden("batch_produced", "a batch as a producer sends it", &batch);
    let header = BatchHeader::decode_produced(&golden_bytes("batch_produced"), PARTITION).unwrap();
    assert_eq!(header.leader, LeaderStamp::default());
    assert_eq!(header.producer.max_timestamp, 1_790_000_000_005);
}

#[test]
fn a_batch_as_its_leader_stamps_it() {
    let batch = builder().build(PARTITION, Compression::None).unwrap();
    let produced = BatchHeader::decode_produced(&batch, PARTITION).unwrap();
    let stamp = LeaderStamp {
        leader_flags: LEADER_FLAG_APPEND_TIME,
        base_offset: Offset(0x0011_2233_4455_6677),
        leader_epoch: LeaderEpoch(7),
        append_time: 1_790_000_000_123_456,
        durable_end: Offset(0x0011_2233_4455_6600),
    };
    let mut stamped = produced.stamped(stamp, PARTITION).to_vec();
    stamped.extend_from_slice(&batch[stamped.len()..]);
    compare_golden("batch_stamped", "the same batch as its leader stamps it", &stamped);
    let records = Records::verify(&golden_bytes("batch_stamped").into(), PARTITION).unwrap();
    assert_eq!(records.header().leader, stamp);
    let times: Vec<i64> = records.iter().map(|record| record.unwrap().timestamp).collect();
    assert_eq!(times, [1_790_000_000_123; 3], "the leader's append time holds");
}

#[test]
fn a_compressed_batch() {
    let mut builder = BatchBuilder::with_capacity(4096);
    for number in 0..64 {
        builder.push(number, Some(b"customer"), Some(b"the same order once more"), &[]);
    }
    let batch = builder.build(PARTITION, Compression::Lz4).unwrap();
    keep_golden("batch_lz4", "64 records under lz4", &batch);
    let records = Records::verify(&golden_bytes("batch_lz4").into(), PARTITION).unwrap();
    assert_eq!(records.header().compression().unwrap(), Compression::Lz4);
    assert_eq!(
        records.iter().filter(|record| record.as_ref().unwrap().value.unwrap().len() == 24).count(),
        64
    );
}

/// Written out by hand after `docs/wire.md`, not with the builder: what another implementation would send.
#[test]
fn a_batch_of_another_writer_decodes() {
    let records: [u8; 20] = [
        24, 0, 0, 0, // length 12, attributes, time +0, offset +0
        2, b'k', 4, b'v', b'1', // key and value
        2, 2, b'h', 1, // one header, its name, no value
        12, 0, 9, 2, // length 6, attributes, time -5, offset +1
        1, 0, 0, // no key, an empty value, no headers
    ];
    let mut produced = Vec::new();
    produced.extend_from_slice(&0u16.to_le_bytes()); // attributes
    produced.extend_from_slice(&1u32.to_le_bytes()); // last_offset_delta
    produced.extend_from_slice(&5000i64.to_le_bytes()); // first_timestamp
    produced.extend_from_slice(&5000i64.to_le_bytes()); // max_timestamp
    produced.extend_from_slice(&u64::MAX.to_le_bytes()); // producer_id: none
    produced.extend_from_slice(&u16::MAX.to_le_bytes()); // producer_epoch
    produced.extend_from_slice(&u32::MAX.to_le_bytes()); // first_sequence
    produced.extend_from_slice(&2u32.to_le_bytes()); // record_count
    produced.extend_from_slice(&records);
    let mut batch = Vec::new();
    batch.extend_from_slice(&[0xb7, 0x48]); // magic
    batch.push(1); // format
    batch.extend_from_slice(&47u16.to_le_bytes()); // header_length
    batch.extend_from_slice(&[0; 2 + 8 + 4 + 8 + 8]); // the leader's part
    batch.extend_from_slice(&(47 + produced.len() as u32).to_le_bytes()); // batch_length
    batch.extend_from_slice(&crc32fast::hash(&produced).to_le_bytes()); // crc
    let mut covered = PARTITION.topic_id.to_bytes().to_vec();
    covered.extend_from_slice(&3u32.to_le_bytes());
    covered.extend_from_slice(&batch);
    batch.extend_from_slice(&crc32fast::hash(&covered).to_le_bytes()); // header_crc
    batch.extend_from_slice(&produced);

    compare_golden("batch_of_another_writer", "a batch written by hand", &batch);
    BatchHeader::decode_produced(&batch, PARTITION).unwrap();
    let records = Records::verify(&batch.into(), PARTITION).unwrap();
    let all: Vec<_> =
        records.iter().map(|record| records.to_owned_record(&record.unwrap()).unwrap()).collect();
    assert_eq!(all.len(), 2);
    assert_eq!((all[0].key.as_deref(), all[0].value.as_deref()), (Some(&b"k"[..]), Some(&b"v1"[..])));
    assert_eq!((all[0].headers[0].name.as_str(), all[0].headers[0].value.as_deref()), ("h", None));
    assert_eq!(
        (all[1].timestamp, all[1].key.as_deref(), all[1].value.as_deref()),
        (4995, None, Some(&b""[..]))
    );
}

fn frame(
    api: ApiKey,
    flags: u16,
    correlation_id: u64,
    body: &impl prost::Message,
    attachment: &[u8],
) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_frame_head(api, flags, CorrelationId(correlation_id), body, attachment.len(), &mut out).unwrap();
    out.extend_from_slice(attachment);
    out.to_vec()
}

fn split_golden(name: &str) -> (FrameHeader, Vec<u8>) {
    let mut input = BytesMut::from(golden_bytes(name).as_slice());
    let frame = Splitter::default().next(&mut input).unwrap().unwrap();
    assert!(input.is_empty());
    (frame.header, frame.attachment.to_vec())
}

#[test]
fn frames_of_each_kind() {
    let batch = builder().build(PARTITION, Compression::None).unwrap();
    let entry = ProduceBatch {
        topic_id: Some(PARTITION.topic_id.into()),
        partition: 3,
        number: 0,
        length: batch.len() as u32,
    };
    let produce = ProduceRequest { acks: 0, timeout_ms: 1000, batches: vec![entry] };
    let bytes = frame(ApiKey::PRODUCE, 0, 0x1122_3344_5566_7788, &produce, &batch);
    compare_golden("frame_request", "a produce request with one batch", &bytes);
    let (header, attachment) = split_golden("frame_request");
    assert_eq!(header.correlation_id, CorrelationId(0x1122_3344_5566_7788));
    assert_eq!(attachment, batch);

    let refused = ErrorReply { code: 30, message: "busy".to_owned() };
    let bytes = frame(ApiKey::PRODUCE, FLAG_REPLY | FLAG_ERROR, 9, &refused, &[]);
    compare_golden("frame_error_reply", "an error reply", &bytes);
    assert_eq!(split_golden("frame_error_reply").0.flags, FLAG_REPLY | FLAG_ERROR);

    let push =
        Push { id: 1, leader_epoch: 7, high_watermark: 3, last_stable: 3, log_start: 0, aborted: vec![] };
    let bytes = frame(ApiKey::PUSH, FLAG_ONE_WAY, 0, &push, &batch);
    compare_golden("frame_push", "a push with one batch", &bytes);
    assert_eq!(split_golden("frame_push").0.flags, FLAG_ONE_WAY);

    let ping = frame(ApiKey::PING, 0, 1, &PingRequest {}, &[]);
    assert_eq!(ping.len(), highwater_protocol::frame::FRAME_HEADER_LENGTH, "an empty body takes no bytes");
}
