//! `docs/wire.md` says what the code does: its tables are made here.

use std::fmt::Write;

use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::key_hash::{key_hash, partition_of_key};
use highwater_protocol::limits;

use crate::expect::compare_section;

const KEYS: [&[u8]; 8] = [
    b"",
    b"a",
    b"customer-1",
    b"customer-2",
    b"0",
    b"\x00\x01\x02\x03",
    "h\u{f6}chstwasser".as_bytes(),
    &[0xff; 300],
];

/// One test, so that updates do not write the document at the same time.
#[test]
fn the_tables_of_the_document_are_those_of_the_code() {
    key_hash_vectors();
    error_codes();
    apis();
    limits_of_the_protocol();
}

fn key_hash_vectors() {
    let mut table =
        "| key (hexadecimal) | XXH3-64, seed 0 | of 8 partitions | of 10,000 |\n|---|---|---|---|\n"
            .to_owned();
    for key in KEYS {
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let shown = match (hex.len(), key.len()) {
            (0, _) => "(empty)".to_owned(),
            (1..=64, _) => format!("`{hex}`"),
            (_, length) => format!("`{}` × {length}", &hex[..2]),
        };
        let of = |count| partition_of_key(key, count).unwrap();
        writeln!(table, "| {shown} | `{:016x}` | {} | {} |", key_hash(key), of(8), of(10_000)).unwrap();
    }
    compare_section("../docs/wire.md", "key hash", &table);
    assert_eq!(partition_of_key(b"a", 0), None);
}

fn error_codes() {
    let mut table = "| code | name | what the client does |\n|---|---|---|\n".to_owned();
    for &code in ErrorCode::ALL {
        let duty = match code.duty() {
            Duty::None => "nothing",
            Duty::Retry => "retry",
            Duty::RefreshMetadata => "refresh metadata, retry",
            Duty::Resume => "resume at `next_number`",
            Duty::Reconnect => "reconnect",
            Duty::Fail => "fail",
        };
        writeln!(table, "| {} | `{}` | {duty} |", code.code(), code.name()).unwrap();
        assert_eq!(ErrorCode::from_code(code.code()), code);
        assert_eq!(code.to_string(), code.name());
    }
    compare_section("../docs/wire.md", "error codes", &table);
    let unknown = ErrorCode::from_code(12_345);
    assert_eq!((unknown.code(), unknown.duty(), unknown.is_retriable()), (12_345, Duty::Fail, false));
}

fn apis() {
    let mut table = "| api | name |\n|---|---|\n".to_owned();
    for api in ApiKey::ALL {
        writeln!(table, "| {} | `{}` |", api.0, api.name()).unwrap();
    }
    compare_section("../docs/wire.md", "apis", &table);
    assert_eq!(ApiKey(9999).name(), "unknown");
}

fn limits_of_the_protocol() {
    let mut table = "| limit | value |\n|---|---|\n".to_owned();
    for (name, value) in [
        ("bytes of a frame after its header", limits::FRAME_BYTES_MAX),
        ("the same before the peer is authenticated", limits::HANDSHAKE_FRAME_BYTES_MAX),
        ("bytes of a body", limits::BODY_BYTES_MAX),
        ("fields of a request's body", limits::REQUEST_FIELDS_MAX),
        ("fields of a reply about many topics", limits::REPLY_FIELDS_MAX),
        ("bytes of a batch", limits::BATCH_BYTES_MAX),
        ("bytes of its records before compression", limits::RECORDS_BYTES_MAX),
        ("bytes of a batch header", limits::HEADER_LENGTH_MAX),
        ("headers of a record", limits::RECORD_HEADERS_MAX),
        ("batches in a produce request", limits::PRODUCE_BATCHES_MAX),
        ("batches of one producer in flight to one partition", limits::PRODUCER_BATCHES_IN_FLIGHT_MAX),
        ("bytes of a topic name", limits::TOPIC_NAME_BYTES_MAX),
        ("bytes of a client name or namespace", limits::NAME_BYTES_MAX),
        ("partitions of a topic", limits::PARTITIONS_MAX as usize),
        ("rounds of authentication", limits::AUTHENTICATION_ROUNDS_MAX),
        ("bytes of a group's name or of an instance id", limits::GROUP_NAME_BYTES_MAX),
        ("bytes of a member id", limits::MEMBER_ID_BYTES_MAX),
        ("members of a group", limits::GROUP_MEMBERS_MAX),
        ("topics that a member subscribes to by name", limits::GROUP_TOPICS_MAX),
        ("bytes of a pattern", limits::GROUP_PATTERN_BYTES_MAX),
        ("groups in a request", limits::GROUPS_PER_REQUEST_MAX),
        ("positions in a request", limits::COMMIT_OFFSETS_MAX),
        ("bytes of metadata with a position", limits::OFFSET_METADATA_BYTES_MAX),
        ("bytes of an error message", limits::ERROR_MESSAGE_BYTES_MAX),
    ] {
        writeln!(table, "| {name} | {value} |").unwrap();
    }
    compare_section("../docs/wire.md", "limits", &table);
}
