//! The bytes of records: golden, there and back, and damaged.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_broker_core::group::RecordError;
use highwater_broker_core::group::assignor::Assignor;
use highwater_broker_core::group::record::{
    Change, Current, Epochs, Position, Profile, Record, Subscription, Target,
};
use highwater_protocol::ids::{LeaderEpoch, Offset};

use crate::bench::at;
use crate::dice::Dice;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn samples() -> Vec<Record> {
    let member: Arc<str> = "m".into();
    let profile = Profile {
        instance_id: Some("i".into()),
        rack: None,
        client: "c".into(),
        host: "h".into(),
        session_timeout_ms: 10_000,
        rebalance_timeout_ms: 20_000,
        subscription: Subscription { topics: vec!["t".into()], pattern: Some("t*".into()) },
        joined: 3,
        subscribed: 4,
        away: true,
    };
    let current = Current {
        generation: 5,
        assigned: BTreeMap::from([(at("t", 1), 4), (at("t", 3), 5), (at("u", 0), 5)]),
        revoking: BTreeMap::from([(at("u", 300), 4)]),
    };
    let position = Position {
        offset: Offset(1 << 40),
        leader_epoch: Some(LeaderEpoch(7)),
        metadata: "x".into(),
        commit_time_ms: 1_790_000_000_000,
    };
    let epochs = Epochs { generation: 6, assigned: 5, assignor: Assignor::Range, empty_since_ms: Some(1) };
    let target = Target { generation: 5, partitions: Arc::from([at("t", 1), at("t", 2)]) };
    [
        Change::Group(Some(epochs)),
        Change::Member(Arc::clone(&member), Some(Arc::new(profile))),
        Change::Target(Arc::clone(&member), Some(target)),
        Change::Current(member, Some(current)),
        Change::Position(at("t", 1), Some(position)),
    ]
    .into_iter()
    .map(|change| Record::new(&"g".into(), change))
    .collect()
}

/// They are on disks: a change needs another version, and the old bytes still read.
#[test]
fn golden_bytes() {
    let golden = [
        ("01010267", "01060000000500000002010100000000000000"),
        (
            "01020267026d",
            "010102690002630268102700\
             00204e0000020274010474 2a0300000004000000 01",
        ),
        ("01030267026d", "010500000002 00000000000000000000000000000174 040202"),
        (
            "01040267026d",
            "0105000000 04 00000000000000000000000000000174 04 0208 040a 00000000000000000000000000000175 02 000a \
             02 00000000000000000000000000000175 02 d80408",
        ),
        (
            "01050267 00000000000000000000000000000174 01000000",
            "0100000000000100000107000000 0278 006c50c4a0010000",
        ),
    ];
    for (record, (key, value)) in samples().iter().zip(golden) {
        let strip = |text: &str| text.replace(' ', "");
        assert_eq!(hex(&record.key()), strip(key), "{record:?}");
        assert_eq!(hex(&record.value().unwrap()), strip(value), "{record:?}");
    }
}

#[test]
fn records_come_back() {
    for record in samples() {
        let (key, value) = (record.key(), record.value());
        assert_eq!(Record::decode(&key, value.as_deref()).unwrap(), record);
        let removed = Record::decode(&key, None).unwrap();
        assert_eq!((removed.key(), removed.value()), (key, None));
    }
}

#[test]
fn damaged_bytes_are_refused_and_never_panic() {
    let mut dice = Dice::new(3);
    for record in samples() {
        let (key, value) = (record.key(), record.value().unwrap());
        for length in 0..value.len() {
            assert!(Record::decode(&key, Some(&value[..length])).is_err(), "{record:?} cut at {length}");
        }
        for length in 0..key.len() {
            assert!(Record::decode(&key[..length], Some(&value)).is_err(), "{record:?} cut at {length}");
        }
        for _ in 0..2000 {
            let mut bytes = value.clone();
            let at = dice.below(bytes.len());
            bytes[at] = dice.next() as u8;
            if let Ok(other) = Record::decode(&key, Some(&bytes)) {
                let again = Record::decode(&key, other.value().as_deref()).unwrap();
                assert_eq!(again, other);
            }
        }
        let mut longer = value.clone();
        longer.push(0);
        assert!(matches!(Record::decode(&key, Some(&longer)), Err(RecordError::Damaged(_))));
        let mut newer = value;
        newer[0] = 2;
        assert!(matches!(Record::decode(&key, Some(&newer)), Err(RecordError::Version { found: 2, .. })));
    }
    assert_eq!(Record::decode(&[1, 9, 2, b'g'], None), Err(RecordError::Kind(9)));
}
