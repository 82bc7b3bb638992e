//! Going through the bytes of a segment: good batches, bad stretches between them, unused room at the end.

use std::convert::Infallible;
use std::ops::Range;

use highwater_protocol::batch::{
    BATCH_LENGTH_MIN, BatchError, BatchHeader, PRODUCER_HEADER_LENGTH, scan_for_magic,
};
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};
use highwater_protocol::limits::HEADER_LENGTH_MAX;

/// The bytes of a segment, wherever they are.
pub trait SegmentBytes {
    /// Why bytes cannot be read.
    type Error;

    /// Bytes there are.
    fn length(&self) -> u64;

    /// The bytes from `position` on: `length` of them, fewer only at the end.
    ///
    /// # Errors
    /// When they cannot be read.
    fn view(&mut self, position: u64, length: usize) -> Result<&[u8], Self::Error>;
}

impl SegmentBytes for &[u8] {
    type Error = Infallible;

    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn view(&mut self, position: u64, length: usize) -> Result<&[u8], Infallible> {
        let start = usize::try_from(position).unwrap_or(usize::MAX).min(self.len());
        let end = start.saturating_add(length).min(self.len());
        Ok(&self[start..end])
    }
}

/// What a scan comes across.
#[derive(Debug)]
pub enum Found {
    /// A good batch that goes on where the last one ended, or after a gap.
    Batch {
        /// Where it starts.
        position: u64,
        /// Its header.
        header: BatchHeader,
    },
    /// Bytes that are no good batch, or no longer one of this log.
    Bad {
        /// The bytes, up to the next good batch or the last one that is not zero.
        positions: Range<u64>,
        /// What is wrong with the first of them.
        reason: BadReason,
        /// Whether a batch with a good header stands there in full length, so that it was not cut off by a crash in
        /// the middle of writing it, at least not in an obvious way.
        whole: bool,
    },
    /// Nothing but zeroes up to the end: room that was reserved.
    Slack {
        /// The zeroes.
        positions: Range<u64>,
    },
}

/// Why bytes are not the next batch.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadReason {
    /// They are no good batch of this partition.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// Its offsets were there before.
    #[error("batch at offset {found} where {expected} or more is expected")]
    OffsetBackwards {
        /// In the header.
        found: Offset,
        /// After the batch before.
        expected: Offset,
    },
    /// Its leader epoch is older than that of the batch before.
    #[error("batch of leader epoch {found} after one of {last}")]
    EpochBackwards {
        /// In the header.
        found: LeaderEpoch,
        /// Of the batch before.
        last: LeaderEpoch,
    },
}

/// How deep a scan looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Both checksums of every batch.
    Full,
    /// The header's checksum only: for bytes that are verified when they are read.
    Headers,
}

/// Scans one segment.
///
/// A batch that is bad is skipped by its length if its header is good, so that nothing inside its records is taken for
/// a batch; otherwise the next good batch is searched by its magic.
#[derive(Debug)]
pub struct Scanner<S> {
    source: S,
    partition: TopicPartition,
    depth: Depth,
    position: u64,
    end: u64,
    expected: Offset,
    epoch: LeaderEpoch,
    /// Where batches end that belong to this segment: what follows was truncated away.
    limit: Option<Offset>,
}

/// Bytes that are searched for a magic at a time.
const WINDOW: usize = 1 << 20;

impl<S: SegmentBytes> Scanner<S> {
    /// A scan from the start of a segment; batches before offset `expected` or epoch `epoch` are bad.
    pub fn new(
        source: S,
        partition: TopicPartition,
        depth: Depth,
        expected: Offset,
        epoch: LeaderEpoch,
    ) -> Self {
        let end = source.length();
        Self { source, partition, depth, position: 0, end, expected, epoch, limit: None }
    }

    /// Starts at `position`, where a batch starts, and ends at `end`.
    #[must_use]
    pub fn within(mut self, positions: Range<u64>) -> Self {
        self.position = positions.start;
        self.end = positions.end.min(self.source.length());
        self
    }

    /// Ends before the first batch at or after `limit`.
    #[must_use]
    pub const fn up_to(mut self, limit: Option<Offset>) -> Self {
        self.limit = limit;
        self
    }

    /// The bytes that are scanned.
    pub const fn source_mut(&mut self) -> &mut S {
        &mut self.source
    }

    /// The offset after the last good batch.
    pub const fn expected(&self) -> Offset {
        self.expected
    }

    /// The leader epoch of the last good batch.
    pub const fn epoch(&self) -> LeaderEpoch {
        self.epoch
    }

    /// Where the scan stands.
    pub const fn position(&self) -> u64 {
        self.position
    }

    /// The next thing, or `None` at the end.
    ///
    /// # Errors
    /// When the bytes cannot be read.
    pub fn next_found(&mut self) -> Result<Option<Found>, S::Error> {
        let start = self.position;
        if start >= self.end {
            return Ok(None);
        }
        let reason = match self.batch_at(start)? {
            Ok(header) => return Ok(self.accept(start, header)),
            Err(reason) => reason,
        };
        let skip = self.length_if_header_is_good(start)?;
        let whole = skip.is_some_and(|length| start + length <= self.end);
        let (next, nonzero_end) = self.next_good(start + skip.unwrap_or(1).min(self.end - start))?;
        if let Some(next) = next {
            self.position = next;
            return Ok(Some(Found::Bad { positions: start..next, reason, whole }));
        }
        let nonzero_end = nonzero_end.max(self.nonzero_end(start..start + skip.unwrap_or(1))?);
        if nonzero_end <= start {
            self.position = self.end;
            return Ok(Some(Found::Slack { positions: start..self.end }));
        }
        self.position = nonzero_end;
        let whole = whole && skip.is_some_and(|length| nonzero_end >= start + length);
        Ok(Some(Found::Bad { positions: start..nonzero_end, reason, whole }))
    }

    fn accept(&mut self, position: u64, header: BatchHeader) -> Option<Found> {
        if self.limit.is_some_and(|limit| header.leader.base_offset >= limit) {
            self.end = position;
            return None;
        }
        self.position = position + u64::from(header.batch_length);
        self.expected = header.end_offset();
        self.epoch = header.leader.leader_epoch;
        Some(Found::Batch { position, header })
    }

    fn batch_at(&mut self, position: u64) -> Result<Result<BatchHeader, BadReason>, S::Error> {
        let room = usize::try_from(self.end - position).unwrap_or(usize::MAX);
        let head = self.source.view(position, room.min(HEADER_LENGTH_MAX + PRODUCER_HEADER_LENGTH))?;
        let header = match decode_header(head, self.partition) {
            Ok(header) => header,
            Err(reason) => return Ok(Err(reason.into())),
        };
        if header.length() > room {
            return Ok(Err(BatchError::CutShort { have: room, need: header.length() }.into()));
        }
        if header.leader.base_offset < self.expected {
            let (found, expected) = (header.leader.base_offset, self.expected);
            return Ok(Err(BadReason::OffsetBackwards { found, expected }));
        }
        if header.leader.leader_epoch < self.epoch {
            let (found, last) = (header.leader.leader_epoch, self.epoch);
            return Ok(Err(BadReason::EpochBackwards { found, last }));
        }
        if self.depth == Depth::Full {
            let batch = self.source.view(position, header.length())?;
            if let Err(reason) = header.verify_records(batch) {
                return Ok(Err(reason.into()));
            }
        }
        Ok(Ok(header))
    }

    fn length_if_header_is_good(&mut self, position: u64) -> Result<Option<u64>, S::Error> {
        let head = self.source.view(position, HEADER_LENGTH_MAX + PRODUCER_HEADER_LENGTH)?;
        Ok(decode_header(head, self.partition).ok().map(|header| u64::from(header.batch_length)))
    }

    /// The next good batch with later offsets, at `from` or after it, and where the last byte before it that is not
    /// zero ends.
    fn next_good(&mut self, from: u64) -> Result<(Option<u64>, u64), S::Error> {
        let mut nonzero_end = 0;
        let mut window = from;
        while window < self.end {
            let length = usize::try_from(self.end - window).unwrap_or(usize::MAX).min(WINDOW);
            let bytes = self.source.view(window, length)?;
            if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
                nonzero_end = window + last as u64 + 1;
            }
            let candidates = if nonzero_end > window { magics(bytes) } else { Vec::new() };
            let whole_window = length;
            for candidate in candidates {
                let position = window + candidate as u64;
                let good = self.batch_at(position)?;
                if good.is_ok_and(|header| header.leader.base_offset > self.expected) {
                    return Ok((Some(position), nonzero_end));
                }
            }
            // The magic has two bytes: one stays in view.
            window += whole_window.max(2) as u64 - u64::from(whole_window == WINDOW);
        }
        Ok((None, nonzero_end))
    }

    fn nonzero_end(&mut self, positions: Range<u64>) -> Result<u64, S::Error> {
        let end = positions.end.min(self.end);
        let length = usize::try_from(end - positions.start).unwrap_or(usize::MAX);
        let bytes = self.source.view(positions.start, length)?;
        Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| positions.start + last as u64 + 1))
    }
}

/// Decodes a header whose checksum is good.
fn decode_header(head: &[u8], partition: TopicPartition) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::decode(head)?;
    header.verify_header(head, partition)?;
    Ok(header)
}

fn magics(bytes: &[u8]) -> Vec<usize> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(position) = scan_for_magic(bytes, from) {
        found.push(position);
        from = position + 1;
    }
    found
}

const _: () = assert!(BATCH_LENGTH_MIN > 2 && WINDOW > 2);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use highwater_protocol::batch::{BatchBuilder, HEADER_LENGTH, LeaderStamp};
    use highwater_protocol::compression::Compression;
    use highwater_protocol::ids::{PartitionId, TopicId};

    use super::*;

    const PARTITION: TopicPartition = TopicPartition::new(TopicId(5), PartitionId(1));

    fn batch(offset: u64, epoch: u32, value: &[u8]) -> Vec<u8> {
        let mut builder = BatchBuilder::with_capacity(100);
        builder.push(1, None, Some(value), &[]);
        builder.push(2, None, Some(b"second"), &[]);
        let sent: Bytes = builder.build(PARTITION, Compression::None).unwrap();
        let header = BatchHeader::decode(&sent).unwrap();
        let stamp = LeaderStamp {
            base_offset: Offset(offset),
            leader_epoch: LeaderEpoch(epoch),
            ..LeaderStamp::default()
        };
        let mut out = header.stamped(stamp, PARTITION).to_vec();
        out.extend_from_slice(&sent[HEADER_LENGTH..]);
        out
    }

    fn describe(bytes: &[u8]) -> Vec<String> {
        let mut scanner = Scanner::new(bytes, PARTITION, Depth::Full, Offset(0), LeaderEpoch(0));
        let mut out = Vec::new();
        while let Some(found) = scanner.next_found().unwrap() {
            out.push(match found {
                Found::Batch { position, header } => {
                    format!("batch {} at {position}", header.leader.base_offset)
                }
                Found::Bad { positions, whole, .. } => format!("bad {positions:?} whole={whole}"),
                Found::Slack { positions } => format!("slack {positions:?}"),
            });
        }
        out
    }

    #[test]
    fn good_batches_and_reserved_room() {
        let first = batch(0, 1, b"a");
        let length = first.len();
        let mut segment = first;
        segment.extend(batch(2, 1, b"b"));
        segment.resize(segment.len() + 1000, 0);
        let end = 2 * length;
        assert_eq!(
            describe(&segment),
            ["batch 0 at 0".into(), format!("batch 2 at {length}"), format!("slack {end}..{}", end + 1000)]
        );
    }

    #[test]
    fn every_bit_flip_of_the_middle_batch_is_found_and_the_last_one_still_read() {
        let parts = [batch(0, 1, b"aaaa"), batch(2, 1, b"bbbb"), batch(4, 2, b"cccc")];
        let segment = parts.concat();
        let length = parts[0].len();
        for bit in 0..length * 8 {
            let mut flipped = segment.clone();
            flipped[length + bit / 8] ^= 1 << (bit % 8);
            let found = describe(&flipped);
            assert_eq!(found[0], "batch 0 at 0");
            assert!(found[1].starts_with(&format!("bad {length}..{}", 2 * length)), "bit {bit}: {found:?}");
            assert_eq!(found[2], format!("batch 4 at {}", 2 * length));
            assert_eq!(found.len(), 3);
        }
    }

    #[test]
    fn every_cut_is_bad_but_not_whole() {
        let parts = [batch(0, 1, b"aaaa"), batch(2, 1, b"bbbb")].concat();
        let length = parts.len() / 2;
        for cut in length + 1..parts.len() {
            let mut torn = parts[..cut].to_vec();
            torn.resize(parts.len() + 500, 0);
            // The last byte of a batch is a header count of zero: a cut right before it takes nothing away.
            if torn[..parts.len()] == parts {
                continue;
            }
            let found = describe(&torn);
            assert_eq!(found[0], "batch 0 at 0");
            assert!(
                found[1].starts_with(&format!("bad {length}..")) && found[1].ends_with("whole=false"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_batch_inside_a_record_is_not_taken_for_one() {
        let mut outer = batch(0, 1, &batch(100, 1, b"inner"));
        let length = outer.len();
        // The records are damaged, the header is good.
        outer[length - 1] ^= 1;
        outer.extend(batch(2, 1, b"next"));
        assert_eq!(describe(&outer), [format!("bad 0..{length} whole=true"), format!("batch 2 at {length}")]);
    }

    #[test]
    fn decreasing_epochs_and_offsets_are_refused_and_gaps_are_seen() {
        let segment = [batch(0, 3, b"a"), batch(2, 2, b"b")].concat();
        assert!(describe(&segment)[1].starts_with("bad"));
        let segment = [batch(2, 1, b"a"), batch(0, 1, b"b")].concat();
        assert!(describe(&segment)[1].starts_with("bad"));
        let segment = [batch(0, 1, b"a"), batch(9, 1, b"b")].concat();
        assert!(describe(&segment)[1].starts_with("batch 9"));
    }

    #[test]
    fn batches_of_another_partition_are_bad() {
        let segment = batch(0, 1, b"a");
        let other = TopicPartition::new(TopicId(5), PartitionId(2));
        let mut scanner = Scanner::new(&segment[..], other, Depth::Headers, Offset(0), LeaderEpoch(0));
        assert!(matches!(scanner.next_found().unwrap(), Some(Found::Bad { .. })));
    }

    #[test]
    fn what_follows_the_limit_is_not_seen() {
        let segment = [batch(0, 1, b"a"), batch(2, 1, b"b")].concat();
        let mut scanner = Scanner::new(&segment[..], PARTITION, Depth::Full, Offset(0), LeaderEpoch(0))
            .up_to(Some(Offset(2)));
        assert!(scanner.next_found().unwrap().is_some());
        assert!(scanner.next_found().unwrap().is_none());
        assert_eq!(scanner.position(), segment.len() as u64 / 2);
    }
}
