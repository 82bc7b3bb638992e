//! The table against a model that remembers everything, and against itself after a replay.

use std::collections::BTreeMap;

use highwater_protocol::batch::{LeaderStamp, ProducerHeader};
use highwater_protocol::ids::LeaderEpoch;
use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000;

fn header(id: u64, epoch: u16, first: u32, count: u32, base_offset: u64, append_time: i64) -> BatchHeader {
    BatchHeader {
        header_length: 47,
        leader: LeaderStamp {
            base_offset: Offset(base_offset),
            leader_epoch: LeaderEpoch(1),
            append_time,
            ..LeaderStamp::default()
        },
        batch_length: 100,
        crc: 0,
        header_crc: 0,
        producer: ProducerHeader {
            attributes: 0,
            last_offset_delta: count - 1,
            first_timestamp: 0,
            max_timestamp: 0,
            producer_id: ProducerId(id),
            producer_epoch: epoch,
            first_sequence: first,
            record_count: count,
        },
    }
}

fn batch(id: u64, epoch: u16, first: u32, count: u32, base_offset: u64) -> BatchHeader {
    header(id, epoch, first, count, base_offset, base_offset as i64)
}

fn refused(verdict: Verdict) -> Option<ErrorCode> {
    match verdict {
        Verdict::Refuse(refusal) => Some(refusal.code()),
        _ => None,
    }
}

#[test]
fn the_next_batch_is_appended_and_the_last_ones_are_recognised() {
    let mut table = ProducerTable::default();
    for number in 0..40_u64 {
        let next = batch(7, 0, number as u32 * 2, 2, 100 + number * 2);
        assert_eq!(table.handle(&next, 0), Verdict::Append);
        table.apply(&next);
    }
    for number in 0..40_u64 {
        let verdict = table.handle(&batch(7, 0, number as u32 * 2, 2, 0), 0);
        if number < 40 - PRODUCER_BATCHES_IN_FLIGHT_MAX as u64 {
            assert_eq!(refused(verdict), Some(ErrorCode::AlreadyApplied), "batch {number}");
        } else {
            let first = FirstResult {
                base_offset: Offset(100 + number * 2),
                end_offset: Offset(102 + number * 2),
                append_time: 100 + number as i64 * 2,
            };
            assert_eq!(verdict, Verdict::Duplicate(first), "batch {number}");
        }
    }
    assert_eq!(refused(table.handle(&batch(7, 0, 82, 1, 0), 0)), Some(ErrorCode::SequenceGap));
    assert_eq!(refused(table.handle(&batch(7, 0, 79, 2, 0), 0)), Some(ErrorCode::SequenceGap), "overlaps");
    // What was never used is not called applied.
    let before_all = (SEQUENCES - 4) as u32;
    assert_eq!(refused(table.handle(&batch(7, 0, before_all, 2, 0), 0)), Some(ErrorCode::SequenceGap));
}

#[test]
fn h13_a_zombie_is_fenced_and_its_successor_starts_at_0() {
    let mut table = ProducerTable::default();
    table.apply(&batch(7, 3, 0, 5, 0));
    assert_eq!(refused(table.handle(&batch(7, 2, 5, 1, 0), 0)), Some(ErrorCode::ProducerFenced));
    assert_eq!(refused(table.handle(&batch(7, 4, 5, 1, 0), 0)), Some(ErrorCode::SequenceGap));
    assert_eq!(table.handle(&batch(7, 4, 0, 1, 0), 0), Verdict::Append);
    table.apply(&batch(7, 4, 0, 1, 5));
    assert_eq!(refused(table.handle(&batch(7, 3, 5, 1, 0), 0)), Some(ErrorCode::ProducerFenced));
    // Also when it comes with the same write as its successor's first batch.
    let mut preparation = Preparation::default();
    preparation.note(&table, &batch(7, 5, 0, 1, 6));
    let zombie = preparation.handle(&table, &batch(7, 4, 1, 1, 7), 0);
    assert!(matches!(zombie, Judged::Settled(Verdict::Refuse(Refusal::Fenced { current: 5, .. }))));
}

#[test]
fn h14_an_unknown_producer_has_to_start_over() {
    let table = ProducerTable::default();
    assert_eq!(refused(table.handle(&batch(7, 0, 3, 1, 0), 0)), Some(ErrorCode::UnknownProducer));
    assert_eq!(table.handle(&batch(7, 0, 0, 1, 0), 0), Verdict::Append);
}

#[test]
fn sequences_wrap_as_kafkas_do() {
    let last = (SEQUENCES - 1) as u32;
    let mut table = ProducerTable::default();
    table.apply(&batch(7, 0, 0, last - 1, 0));
    let wrapping = batch(7, 0, last - 1, 4, 10);
    assert_eq!(table.handle(&wrapping, 0), Verdict::Append);
    table.apply(&wrapping);
    assert!(
        matches!(table.handle(&wrapping, 0), Verdict::Duplicate(first) if first.base_offset == Offset(10))
    );
    assert_eq!(table.handle(&batch(7, 0, 2, 1, 0), 0), Verdict::Append, "after the last one comes 0");
    assert_eq!(refused(table.handle(&batch(7, 0, 3, 1, 0), 0)), Some(ErrorCode::SequenceGap));
    assert_eq!(refused(table.handle(&batch(7, 0, last, 1, 0), 0)), Some(ErrorCode::AlreadyApplied));
}

#[test]
fn h23_a_quiet_producer_is_forgotten_by_the_time_of_the_log_and_nothing_else() {
    let mut table = ProducerTable::new(Duration::from_secs(100));
    table.apply(&header(7, 0, 0, 1, 0, 0));
    // Many others come, all of them busy: it is remembered all the same.
    for other in 0..1000 {
        table.apply(&header(1000 + other, 0, 0, 1, 1 + other, 99 * SECOND));
    }
    let retry = header(7, 0, 0, 1, 0, 0);
    assert!(matches!(table.handle(&retry, 99 * SECOND), Verdict::Duplicate(_)));
    let next = header(7, 0, 1, 1, 0, 0);
    assert_eq!(table.handle(&next, 99 * SECOND), Verdict::Append);
    assert_eq!(refused(table.handle(&next, 100 * SECOND)), Some(ErrorCode::UnknownProducer));
    assert_eq!(table.count(), 1001);
    table.note_time(100 * SECOND);
    assert_eq!(table.count(), 1000);
}

#[test]
fn memory_is_bounded_and_who_wrote_lately_is_kept() {
    let mut table = ProducerTable::default();
    let kept = PRODUCER_KEPT_MIN.as_micros() as i64;
    for id in 0..PRODUCERS_MAX as u64 {
        let time = if id < 100 { 0 } else { kept / 2 };
        table.apply(&header(id, 0, 0, 1, id, time));
    }
    let new = header(1 << 40, 0, 0, 1, 0, 0);
    assert_eq!(refused(table.handle(&new, kept / 2)), Some(ErrorCode::Busy));
    assert_eq!(table.handle(&new, kept), Verdict::Append, "there are some that have been quiet long enough");
    table.apply(&header(1 << 40, 0, 0, 1, 0, kept));
    assert_eq!(table.count(), PRODUCERS_MAX - 99, "the quietest are gone, and the new one is there");
    assert!(matches!(table.handle(&header(100, 0, 0, 1, 0, 0), kept), Verdict::Duplicate(_)));
    assert_eq!(refused(table.handle(&header(99, 0, 1, 1, 0, 0), kept)), Some(ErrorCode::UnknownProducer));
    // A stream of new ones.
    for id in 0..3 * PRODUCERS_MAX as u64 {
        let time = kept + id as i64 * SECOND;
        let new = header((1 << 41) + id, 0, 0, 1, 0, time);
        if table.handle(&new, time) == Verdict::Append {
            table.apply(&new);
        }
        assert!(table.producers.len() <= PRODUCERS_MAX);
    }
    assert!(table.encode().len() <= highwater_protocol::limits::BATCH_BYTES_MAX);
}

#[test]
fn expired_producers_do_not_pile_up() {
    let mut table = ProducerTable::new(Duration::from_secs(10));
    for id in 0..100_000_u64 {
        table.apply(&header(id, 0, 0, 1, id, id as i64 * SECOND));
        assert!(table.producers.len() <= SWEEP_PRODUCERS_MIN);
    }
    assert_eq!(table.count(), 10);
}

#[test]
fn every_bit_flip_in_a_snapshot_is_noticed() {
    let mut table = ProducerTable::default();
    table.apply(&batch(7, 3, 0, 5, 0));
    let binding = Binding { end_offset: Offset(5), length: 100, checksum: 9 };
    let file = encode_file(binding, &table.encode());
    assert_eq!(decode_file(&file).unwrap(), (binding, table.clone()));
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_file(&flipped).is_err(), "bit {bit}");
    }
    assert_eq!(ProducerTable::decode(&[]).unwrap(), ProducerTable::default());
}

#[test]
fn a_batch_that_fills_a_hole_is_taken_in_where_it_belongs() {
    let all: Vec<BatchHeader> =
        (0..50).map(|number| batch(7 + number % 2, 0, number as u32 / 2 * 3, 3, number * 3)).collect();
    let mut whole = ProducerTable::default();
    all.iter().for_each(|header| whole.apply(header));
    for hole in 0..all.len() {
        let mut table = ProducerTable::default();
        let others = all.iter().enumerate().filter(|(number, _)| *number != hole);
        others.for_each(|(_, header)| table.apply(header));
        table.apply(&all[hole]);
        assert_eq!(table, whole, "hole at {hole}");
        table.apply(&all[hole]);
        assert_eq!(table, whole, "twice");
    }
}

/// What a producer may do next.
#[derive(Debug, Clone)]
enum Act {
    /// Sends the next batch.
    Next { id: u64, count: u32 },
    /// Sends one of its batches again, this many back.
    Again { id: u64, back: usize },
    /// Leaves sequences out.
    Skip { id: u64, by: u32 },
    /// Starts over with a new epoch.
    NewEpoch { id: u64 },
    /// An older incarnation writes.
    Zombie { id: u64 },
    /// Time passes, in seconds.
    Pass(i64),
    /// The write is done: what was prepared is appended. Or it fails.
    Write { fails: bool },
}

fn act() -> impl Strategy<Value = Act> {
    let id = 0..4_u64;
    prop_oneof![
        8 => (id.clone(), prop_oneof![1..5_u32, Just(1 << 29), Just((1 << 30) - 1)])
            .prop_map(|(id, count)| Act::Next { id, count }),
        4 => (id.clone(), 0..40_usize).prop_map(|(id, back)| Act::Again { id, back }),
        1 => (id.clone(), 1..1000_u32).prop_map(|(id, by)| Act::Skip { id, by }),
        1 => id.clone().prop_map(|id| Act::NewEpoch { id }),
        1 => id.prop_map(|id| Act::Zombie { id }),
        1 => (0..40_i64).prop_map(Act::Pass),
        4 => any::<bool>().prop_map(|fails| Act::Write { fails }),
    ]
}

/// A producer as the model knows it: every batch, with no bound and sequences that do not wrap.
#[derive(Debug, Clone, Default)]
struct Known {
    epoch: u16,
    next: u64,
    last_time: i64,
    /// First sequence, count, base offset, append time.
    batches: Vec<(u64, u32, u64, i64)>,
}

const EXPIRY: i64 = 100 * SECOND;

#[derive(Debug, Default)]
struct World {
    known: BTreeMap<u64, Known>,
    /// As it will be after the write.
    prepared: BTreeMap<u64, Known>,
    log: Vec<BatchHeader>,
    pending: Vec<BatchHeader>,
    end: u64,
    time: i64,
}

impl World {
    fn known(&self, id: u64) -> Known {
        self.prepared
            .get(&id)
            .filter(|known| self.time - known.last_time < EXPIRY)
            .cloned()
            .unwrap_or_default()
    }

    fn verdict(judged: Judged, expected: &str) -> Result<(), TestCaseError> {
        let found = match judged {
            Judged::Settled(Verdict::Append) => "append",
            Judged::Settled(Verdict::Duplicate(_)) | Judged::InThisWrite(_) => "duplicate",
            Judged::Settled(Verdict::Refuse(refusal)) => refusal.code().name(),
        };
        prop_assert_eq!(found, expected);
        Ok(())
    }

    fn send_again(
        &self,
        table: &ProducerTable,
        preparation: &Preparation,
        (id, back): (u64, usize),
    ) -> Result<(), TestCaseError> {
        let known = self.known(id);
        let Some(place) = known.batches.len().checked_sub(back + 1) else { return Ok(()) };
        let (sequence, count, base_offset, append_time) = known.batches[place];
        if known.next - sequence > SEQUENCES / 2 {
            return Ok(());
        }
        let again = header(id, known.epoch, (sequence % SEQUENCES) as u32, count, 0, 0);
        let judged = preparation.handle(table, &again, self.time);
        let pending = self.pending.iter().filter(|header| header.producer.producer_id.0 == id).count();
        if back < pending.max(PRODUCER_BATCHES_IN_FLIGHT_MAX) {
            Self::verdict(judged, "duplicate")?;
            let (Judged::Settled(Verdict::Duplicate(first)) | Judged::InThisWrite(first)) = judged else {
                unreachable!("checked")
            };
            prop_assert_eq!(first.base_offset.get(), base_offset);
            prop_assert_eq!(first.append_time, append_time);
        } else if back >= pending + PRODUCER_BATCHES_IN_FLIGHT_MAX {
            Self::verdict(judged, "already_applied")?;
        }
        Ok(())
    }

    fn send(
        &mut self,
        table: &ProducerTable,
        preparation: &mut Preparation,
        act: &Act,
    ) -> Result<(), TestCaseError> {
        match *act {
            Act::Next { id, count } => {
                let mut known = self.known(id);
                let first = (known.next % SEQUENCES) as u32;
                let header = header(id, known.epoch, first, count, self.end, self.time);
                let judged = preparation.handle(table, &header, self.time);
                Self::verdict(judged, "append")?;
                preparation.note(table, &header);
                known.batches.push((known.next, count, self.end, self.time));
                known.next += u64::from(count);
                known.last_time = self.time;
                self.end += u64::from(count);
                self.prepared.insert(id, known);
                self.pending.push(header);
            }
            Act::Again { id, back } => self.send_again(table, preparation, (id, back))?,
            Act::Skip { id, by } => {
                let known = self.known(id);
                let first = ((known.next + u64::from(by)) % SEQUENCES) as u32;
                let judged = preparation.handle(table, &header(id, known.epoch, first, 1, 0, 0), self.time);
                let is_known = !known.batches.is_empty();
                if first != 0 {
                    Self::verdict(judged, if is_known { "sequence_gap" } else { "unknown_producer" })?;
                }
            }
            Act::NewEpoch { id } => {
                let known = self.known(id);
                if known.batches.is_empty() {
                    return Ok(());
                }
                let fresh = Known { epoch: known.epoch + 1, ..Known::default() };
                let bad = header(id, fresh.epoch, 5, 1, 0, 0);
                let judged = preparation.handle(table, &bad, self.time);
                Self::verdict(judged, "sequence_gap")?;
                let header = header(id, fresh.epoch, 0, 1, self.end, self.time);
                let judged = preparation.handle(table, &header, self.time);
                Self::verdict(judged, "append")?;
                preparation.note(table, &header);
                let batches = vec![(0, 1, self.end, self.time)];
                self.end += 1;
                self.prepared.insert(id, Known { next: 1, last_time: self.time, batches, ..fresh });
                self.pending.push(header);
            }
            Act::Zombie { id } => {
                let known = self.known(id);
                if let Some(epoch) = known.epoch.checked_sub(1) {
                    let judged = preparation.handle(table, &header(id, epoch, 0, 1, 0, 0), self.time);
                    Self::verdict(judged, "producer_fenced")?;
                }
            }
            Act::Pass(_) | Act::Write { .. } => {}
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn verdicts_are_those_of_a_model_and_a_replay_knows_the_same(
        acts in prop::collection::vec(act(), 1..200),
        cut in any::<prop::sample::Index>(),
    ) {
        let expiry = Duration::from_micros(EXPIRY as u64);
        let mut table = ProducerTable::new(expiry);
        let mut preparation = Preparation::default();
        let mut world = World::default();
        for act in &acts {
            match *act {
                // Time stands still within a write, as the stamps of its batches do.
                Act::Pass(seconds) if world.pending.is_empty() => world.time += seconds * SECOND,
                Act::Write { fails } => {
                    if fails {
                        world.end -= world.pending.iter().map(BatchHeader::offset_count).sum::<u64>();
                        world.prepared = world.known.clone();
                    } else {
                        world.pending.iter().for_each(|header| table.apply(header));
                        world.log.extend_from_slice(&world.pending);
                        world.known = world.prepared.clone();
                    }
                    world.pending.clear();
                    preparation.clear();
                }
                _ => world.send(&table, &mut preparation, act)?,
            }
        }
        // A snapshot anywhere and what follows it, is the whole log.
        let cut = cut.index(world.log.len() + 1);
        let mut first = ProducerTable::new(expiry);
        world.log[..cut].iter().for_each(|header| first.apply(header));
        let mut replayed = ProducerTable::decode(&first.encode()).unwrap();
        replayed.set_expiry(expiry);
        prop_assert_eq!(&replayed, &first);
        prop_assert_eq!(replayed.encode(), first.encode());
        world.log[cut..].iter().for_each(|header| replayed.apply(header));
        prop_assert_eq!(&replayed, &table);
        prop_assert_eq!(replayed.encode(), table.encode());
    }
}
