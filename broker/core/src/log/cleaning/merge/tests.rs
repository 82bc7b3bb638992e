use bytes::Bytes;
use highwater_protocol::batch::{BatchBuilder, HEADER_LENGTH, LEADER_FLAG_CONTROL, NO_TIMESTAMP};
use highwater_protocol::ids::{LeaderEpoch, PartitionId, ProducerId, TopicId};

use super::*;

const PARTITION: TopicPartition = TopicPartition::new(TopicId(7), PartitionId(3));

/// A stored batch of `count` records of `size` bytes whose keys are their offsets.
fn stored(base: u64, count: u64, size: usize, epoch: u32, producer: Option<(u64, u32)>) -> Bytes {
    stored_with(base, count, size, LeaderStamp { leader_epoch: LeaderEpoch(epoch), ..stamp(base) }, producer)
}

fn stamp(base: u64) -> LeaderStamp {
    LeaderStamp {
        base_offset: Offset(base),
        append_time: base as i64,
        durable_end: Offset(base / 2),
        ..LeaderStamp::default()
    }
}

fn stored_with(
    base: u64,
    count: u64,
    size: usize,
    stamp: LeaderStamp,
    producer: Option<(u64, u32)>,
) -> Bytes {
    let mut builder = BatchBuilder::with_capacity(100);
    if let Some((id, sequence)) = producer {
        builder.set_producer(ProducerId(id), 1, sequence);
    }
    for offset in base..base + count {
        builder.push(offset as i64, Some(&offset.to_le_bytes()), Some(&vec![1; size]), &[]);
    }
    let compression = if base.is_multiple_of(3) { Compression::Lz4 } else { Compression::None };
    let sent = builder.build(PARTITION, compression).unwrap();
    let head = BatchHeader::decode(&sent).unwrap().stamped(stamp, PARTITION);
    [&head[..], &sent[HEADER_LENGTH..]].concat().into()
}

/// What is left of `batches` of which the records at these offsets stay, and those with these bases their identity.
fn merged(batches: &[Bytes], keep: impl Fn(u64) -> bool, identities: &[u64]) -> (Vec<Bytes>, Counts) {
    let mut merger = Merger::new(PARTITION);
    let (mut out, mut counts) = (Vec::new(), Counts::default());
    for batch in batches {
        let header = BatchHeader::decode_verified(batch, PARTITION).unwrap();
        let keep_identity = identities.contains(&header.leader.base_offset.get());
        let count = merger.take(batch, header, keep_identity, |record| keep(record.offset.get()), &mut out);
        counts.records += count.records;
        counts.kept += count.kept;
    }
    merger.flush(&mut out);
    (out, counts)
}

/// Offsets and values of all records, after a check that each batch starts where the one before ended.
fn records(batches: &[Bytes]) -> Vec<(u64, i64, usize)> {
    let mut found = Vec::new();
    let mut next = None;
    for batch in batches {
        let records = Records::verify(batch, PARTITION).unwrap();
        let header = *records.header();
        assert_eq!(next.unwrap_or(header.leader.base_offset), header.leader.base_offset, "all are covered");
        next = Some(header.end_offset());
        for record in &records {
            let record = record.unwrap();
            assert_eq!(record.key, Some(&record.offset.get().to_le_bytes()[..]));
            found.push((record.offset.get(), record.timestamp, record.value.unwrap().len()));
        }
    }
    found
}

fn header(batch: &Bytes) -> BatchHeader {
    BatchHeader::decode_verified(batch, PARTITION).unwrap()
}

#[test]
fn small_batches_become_large_ones_and_records_keep_their_places() {
    let batches: Vec<Bytes> = (0..5000).map(|number| stored(100 + number, 1, 100, 1, None)).collect();
    let (out, counts) = merged(&batches, |offset| offset % 2 == 0, &[]);
    assert_eq!((counts.records, counts.kept), (5000, 2500));
    assert!(out.len() < 5, "{} batches", out.len());
    assert_eq!(records(&out), (100..5100).step_by(2).map(|o| (o, o as i64, 100)).collect::<Vec<_>>());
    assert_eq!(
        (header(&out[0]).leader.base_offset, header(&out[out.len() - 1]).end_offset().0),
        (Offset(100), 5100)
    );
    for pair in out.windows(2) {
        assert!(header(&pair[0]).leader.append_time <= header(&pair[1]).leader.append_time);
    }
    let last = header(&out[out.len() - 1]);
    assert_eq!((last.leader.append_time, last.leader.durable_end.0), (5099, 5099 / 2));
}

#[test]
fn offsets_without_records_stay_covered_and_each_epoch_keeps_its_start() {
    let batches: Vec<Bytes> =
        (0..100).map(|number| stored(number * 10, 10, 10, number as u32 / 50, None)).collect();
    let (out, counts) = merged(&batches, |_| false, &[]);
    assert_eq!((counts.records, counts.kept, out.len()), (1000, 0, 2));
    assert_eq!(records(&out), []);
    let starts: Vec<(u32, u64)> = out
        .iter()
        .map(|batch| (header(batch).leader.leader_epoch.0, header(batch).leader.base_offset.0))
        .collect();
    assert_eq!(starts, [(0, 0), (1, 500)]);
    assert_eq!(header(&out[0]).producer.max_timestamp, NO_TIMESTAMP);
}

#[test]
fn batches_that_a_producer_may_send_again_stay_recognisable() {
    let batches: Vec<Bytes> =
        (0..10_u64).map(|number| stored(number * 10, 10, 10, 1, Some((5, number as u32 * 10)))).collect();
    let (out, _) = merged(&batches, |offset| offset == 3 || offset == 85, &[70, 80, 90]);
    assert_eq!(out.len(), 4);
    assert_eq!(header(&out[0]).producer.producer_id, ProducerId::NONE);
    for (batch, sequence) in out[1..].iter().zip([70, 80, 90]) {
        let producer = header(batch).producer;
        assert_eq!((producer.producer_id, producer.producer_epoch), (ProducerId(5), 1));
        assert_eq!((producer.first_sequence, producer.last_offset_delta), (sequence, 9));
    }
    assert_eq!(records(&out).iter().map(|record| record.0).collect::<Vec<_>>(), [3, 85]);
}

#[test]
fn what_keeps_everything_and_is_large_or_cannot_be_decoded_stays_as_it_is() {
    let large = stored(0, 10, 2000, 1, Some((5, 0)));
    let mut undecodable = stored(10, 5, 10, 1, None).to_vec();
    let control =
        stored_with(15, 5, 10, LeaderStamp { leader_flags: LEADER_FLAG_CONTROL, ..stamp(15) }, None);
    // Its records are said to be longer than they are; the checksums agree.
    let at = header(&undecodable.clone().into()).records_at();
    undecodable[at] = 0x7f;
    let crc = crc32fast::hash(&undecodable[HEADER_LENGTH..]);
    undecodable[39..43].copy_from_slice(&crc.to_le_bytes());
    let decoded = BatchHeader::decode(&undecodable).unwrap();
    let head = decoded.stamped(decoded.leader, PARTITION);
    undecodable[..HEADER_LENGTH].copy_from_slice(&head);
    let undecodable = Bytes::from(undecodable);
    let batches = [large.clone(), undecodable.clone(), control.clone()];
    let (out, counts) = merged(&batches, |offset| offset < 10, &[]);
    assert_eq!(out, batches);
    assert_eq!((counts.records, counts.kept), (20, 20));
}

#[test]
fn cleaning_again_changes_nothing_but_how_batches_are_cut() {
    let batches: Vec<Bytes> = (0..3000).map(|number| stored(number, 1, 90, 1, None)).collect();
    let keep = |offset: u64| offset.is_multiple_of(5);
    let (once, _) = merged(&batches, keep, &[]);
    let (twice, counts) = merged(&once, keep, &[]);
    assert_eq!(records(&once), records(&twice));
    assert_eq!((counts.records, counts.kept), (600, 600));
}

#[test]
fn a_batch_is_trimmed_to_any_range() {
    let batch = stored(100, 20, 30, 4, None);
    let whole = header(&batch);
    for start in 90..130_u64 {
        for end in start..130_u64 {
            let trimmed = trim(&batch, whole, Offset(start)..Offset(end), PARTITION).unwrap();
            let (from, to) = (start.max(100), end.min(120));
            if from >= to {
                assert_eq!(trimmed, None, "{start}..{end}");
                continue;
            }
            let trimmed = trimmed.unwrap();
            let stamped = header(&trimmed);
            assert_eq!((stamped.leader.base_offset.0, stamped.end_offset().0), (from, to));
            assert_eq!(stamped.leader.leader_epoch, LeaderEpoch(4));
            let there: Vec<u64> = records(&[trimmed]).iter().map(|record| record.0).collect();
            assert_eq!(there, (from..to).collect::<Vec<_>>());
        }
    }
    assert_eq!(trim(&batch, whole, Offset(0)..Offset(1000), PARTITION).unwrap(), Some(batch));
}
