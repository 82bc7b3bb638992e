//! One function a decoder: takes any bytes, and panics when the decoder breaks a promise.
//!
//! `tests/fuzz.rs` runs them on stable over the corpus and mutations of it; `fuzz_targets/decoders.rs` under libFuzzer.

use bytes::{Bytes, BytesMut};
use highwater_protocol::api::ApiKey;
use highwater_protocol::batch::{BatchHeader, HEADER_LENGTH, Records, RecordsError, scan_for_magic};
use highwater_protocol::body::{self, Body};
use highwater_protocol::compression::{Compression, CompressionError};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FRAME_HEADER_LENGTH, Splitter};
use highwater_protocol::ids::{PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX, RECORD_HEADERS_MAX, TOPIC_NAME_BYTES_MAX};
use highwater_protocol::messages;
use highwater_protocol::topic_name::check_topic_name;
use highwater_protocol::varint::{put_varint, take_varint, varint_length};

/// A decoder under its name.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// Every decoder of the crate.
pub(crate) const TARGETS: &[Target] = &[
    ("frame", frame),
    ("body", body_of_any_message),
    ("batch", batch),
    ("records", records),
    ("lz4", lz4),
    ("zstd", zstd),
    ("varint", varint),
    ("text", text),
];

/// The partition that the golden batches belong to.
const PARTITION: TopicPartition =
    TopicPartition::new(TopicId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10), PartitionId(3));

fn frame(input: &[u8]) {
    let splitter = Splitter::default();
    let mut rest = BytesMut::from(input);
    loop {
        let before = rest.len();
        let missing = splitter.missing(&rest);
        let announced = splitter.read_ahead(&rest, 64);
        match splitter.next(&mut rest) {
            Ok(Some(frame)) => {
                assert_eq!(missing, Ok(0));
                let length = frame.body.len() + frame.attachment.len();
                assert_eq!(rest.len() + FRAME_HEADER_LENGTH + length, before);
                assert!(length <= FRAME_BYTES_MAX && frame.body.len() <= BODY_BYTES_MAX);
                let _ = (frame.header.api.name(), ErrorCode::from_code(u32::from(frame.header.api.0)).duty());
                for decode in MESSAGES {
                    decode(&frame.body);
                }
            }
            Ok(None) => {
                assert!(missing.is_ok_and(|missing| missing > 0), "None means that bytes are missing");
                assert!(announced.is_ok_and(|announced| announced <= before.max(64)));
                return;
            }
            // A wrong checksum is found with the last byte only; everything else by the header.
            Err(_) => return,
        }
    }
}

fn decode_message<M: Body + PartialEq>(bytes: &Bytes) {
    let Ok(message) = body::decode::<M>(bytes) else { return };
    let encoded = message.encode_to_vec();
    assert_eq!(encoded.len(), message.encoded_len());
    if let Ok(again) = body::decode::<M>(&Bytes::from(encoded)) {
        assert_eq!(again, message);
    }
}

macro_rules! decoders {
    ($($message:ident),* $(,)?) => {
        const MESSAGES: &[fn(&Bytes)] = &[$(decode_message::<messages::$message>,)*];
    };
}

decoders! {
    ErrorReply, HandshakeRequest, HandshakeReply, AuthenticateRequest, AuthenticateReply, PingRequest, PingReply, Goodbye,
    MetadataRequest, MetadataReply, CreateTopicRequest, CreateTopicReply, DescribeTopicsRequest, DescribeTopicsReply,
    AlterTopicRequest, AlterTopicReply, DeleteTopicRequest, DeleteTopicReply, ProduceRequest, ProduceReply, ProduceCredit,
    ListOffsetsRequest, ListOffsetsReply, ReadRequest, ReadReply, SubscribeRequest, SubscribeReply, Push, Credit,
    UnsubscribeRequest, UnsubscribeReply, Ended, ReplicaAck, MetadataPush, InitProducerRequest, InitProducerReply,
    ReplicaResetRequest, ReplicaResetReply, ReplicaReadRequest, ReplicaReadReply, ReplicaChecksumRequest,
    ReplicaChecksumReply, BootstrapRequest, BootstrapReply, RegisterBrokerRequest, RegisterBrokerReply, HeartbeatRequest,
    HeartbeatReply, ProposeRequest, ProposeReply, RaftRequest, RaftReply, DescribeClusterRequest, DescribeClusterReply,
    AlterClusterRequest, AlterClusterReply, FindCoordinatorRequest, FindCoordinatorReply, GroupHeartbeatRequest,
    GroupHeartbeatReply, CommitOffsetsRequest, CommitOffsetsReply, FetchOffsetsRequest, FetchOffsetsReply,
    ListGroupsRequest, ListGroupsReply, DescribeGroupsRequest, DescribeGroupsReply, AlterGroupOffsetsRequest,
    AlterGroupOffsetsReply, DeleteGroupsRequest, DeleteGroupsReply,
}

fn body_of_any_message(input: &[u8]) {
    let bytes = Bytes::copy_from_slice(input);
    for decode in MESSAGES {
        decode(&bytes);
    }
}

fn check_header(header: &BatchHeader) {
    assert!(header.records_at() <= header.length());
    assert_eq!(header.records_at() + header.records_length(), header.length());
    assert!(header.end_offset() > header.leader.base_offset);
    assert!(u64::from(header.producer.record_count) <= header.offset_count());
    header.compression().expect("a decoded header has a known compression");
}

fn batch(input: &[u8]) {
    if let Ok(header) = BatchHeader::decode(input) {
        check_header(&header);
    }
    if let Err(error) = BatchHeader::decode_produced(input, PARTITION) {
        let _ = (error.code(), error.to_string());
    }
    let sealed = with_good_checksums(input);
    if let Ok(header) = BatchHeader::decode_produced(&sealed, PARTITION) {
        check_header(&header);
        assert_eq!(header.length(), sealed.len());
        let stamped = header.stamped(header.leader, PARTITION);
        assert_eq!(stamped, sealed[..HEADER_LENGTH]);
    }
    let mut at = 0;
    while let Some(found) = scan_for_magic(input, at) {
        assert!(found >= at && input[found..].starts_with(&[0xb7, 0x48]));
        at = found + 1;
    }
}

/// Makes length and checksums right, so that what is behind them is reached.
fn with_good_checksums(input: &[u8]) -> Vec<u8> {
    let mut batch = input.to_vec();
    if batch.len() < HEADER_LENGTH + 40 {
        return batch;
    }
    batch[3..5].copy_from_slice(&(HEADER_LENGTH as u16).to_le_bytes());
    let length = batch.len() as u32;
    batch[35..39].copy_from_slice(&length.to_le_bytes());
    let crc = crc(&[&batch[HEADER_LENGTH..]]);
    batch[39..43].copy_from_slice(&crc.to_le_bytes());
    let place = PARTITION.partition.get().to_le_bytes();
    let header_crc = crc_of_header(&batch[..43], &place);
    batch[43..47].copy_from_slice(&header_crc.to_le_bytes());
    batch
}

fn crc_of_header(header: &[u8], partition: &[u8]) -> u32 {
    crc(&[&PARTITION.topic_id.to_bytes(), partition, header])
}

/// CRC-32 bit by bit: the harness needs no more dependencies than the crate itself.
fn crc(parts: &[&[u8]]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in parts.iter().copied().flatten() {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn records(input: &[u8]) {
    let sealed = Bytes::from(with_good_checksums(input));
    let header = match Records::verify(&sealed, PARTITION) {
        Ok(records) => {
            read_all(&records);
            *records.header()
        }
        Err(RecordsError::Batch(_) | RecordsError::Compression(_)) => return,
        Err(other) => panic!("opening a batch does not read its records: {other}"),
    };
    check_header(&header);
}

fn read_all(records: &Records) {
    let mut next = records.header().leader.base_offset;
    let mut count = 0;
    for record in records {
        let Ok(record) = record else { break };
        assert!(record.offset >= next && record.offset < records.header().end_offset());
        next = record.offset.next();
        count += 1;
        assert!(record.header_count() as usize <= RECORD_HEADERS_MAX);
        if let Ok(owned) = records.to_owned_record(&record) {
            assert_eq!(owned.headers.len(), record.header_count() as usize);
        }
    }
    assert!(count <= records.header().producer.record_count);
}

fn decompress(compression: Compression, input: &[u8]) {
    let limit = 1 << 20;
    match compression.decompress(input, limit) {
        Ok(raw) => {
            assert!(raw.len() <= limit);
            let mut packed = Vec::new();
            compression.compress(&raw, &mut packed).expect("what came out can go in again");
            assert_eq!(compression.decompress(&packed, raw.len()).expect("own frames decode"), raw);
        }
        Err(
            CompressionError::TooLarge { .. } | CompressionError::Codec(_) | CompressionError::NotOneFrame(_),
        ) => {}
        Err(CompressionError::NotBuilt(of)) => assert_eq!(of, Compression::Zstd),
        Err(other) => panic!("{other}"),
    }
}

fn lz4(input: &[u8]) {
    decompress(Compression::Lz4, input);
}

fn zstd(input: &[u8]) {
    decompress(Compression::Zstd, input);
}

fn varint(input: &[u8]) {
    let mut rest = input;
    while let Some(value) = take_varint(&mut rest) {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, value);
        assert_eq!(bytes.len(), varint_length(value));
        assert_eq!(take_varint(&mut bytes.as_slice()), Some(value));
    }
}

fn text(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if check_topic_name(text).is_ok() {
        assert!(!text.is_empty() && text.len() <= TOPIC_NAME_BYTES_MAX && !text.contains('/'));
    }
    if let Ok(id) = text.parse::<TopicId>() {
        assert_eq!(id.to_string(), text.to_lowercase());
        assert_eq!(TopicId::from_bytes(id.to_bytes()), id);
    }
    let _ = ApiKey(u16::from_le_bytes([input.first().copied().unwrap_or(0), 0])).name();
}
