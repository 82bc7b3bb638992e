//! The last batches of a log in memory, while subscribers are near its end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use highwater_protocol::ids::Offset;

use super::log::StampedBatch;

/// Batches up to this length are copied together: a small slice would keep a whole receive buffer alive, and many small
/// pieces make slow sends.
const COPY_BYTES_MAX: usize = 16 << 10;

/// Bytes of the buffers into which small batches are copied.
const CHUNK_BYTES: usize = 64 << 10;

/// Batches that are kept as they came, one after another without a gap.
#[derive(Debug)]
pub(super) struct MemoryTail {
    wanted: bool,
    bytes_max: u64,
    bytes: u64,
    batches: VecDeque<Kept>,
    chunk: BytesMut,
    /// Bytes of all tails of the broker, and how many they may be.
    budget: Arc<TailBudget>,
}

#[derive(Debug)]
pub(super) struct TailBudget {
    pub(super) used: AtomicU64,
    pub(super) bytes_max: u64,
}

#[derive(Debug)]
struct Kept {
    base_offset: Offset,
    end_offset: Offset,
    pieces: Pieces,
}

#[derive(Debug)]
enum Pieces {
    /// Header and the rest of one batch.
    Two(Bytes, Bytes),
    /// A copy of small batches that came together, with the end of each: offset, and position in the copy.
    Copied(Bytes, Vec<(Offset, usize)>),
}

/// Pieces of one read at the most: where the tail is made of smaller ones, slices of the mapping are faster to send.
const PIECES_MAX: usize = 128;

impl MemoryTail {
    pub(super) fn new(bytes_max: u64, budget: Arc<TailBudget>) -> Self {
        Self { wanted: false, bytes_max, bytes: 0, batches: VecDeque::new(), chunk: BytesMut::new(), budget }
    }

    pub(super) fn set_wanted(&mut self, wanted: bool) {
        self.wanted = wanted;
        if !wanted {
            self.clear();
        }
    }

    pub(super) fn clear(&mut self) {
        self.batches = VecDeque::new();
        self.chunk = BytesMut::new();
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.bytes = 0;
    }

    pub(super) fn push(&mut self, batches: &[StampedBatch]) {
        if !self.wanted {
            return;
        }
        for group in batches.chunk_by(|a, b| is_small(a) && is_small(b)) {
            let (Some(first), Some(last)) = (group.first(), group.last()) else { continue };
            let pieces = if is_small(first) {
                self.copy(group)
            } else {
                Pieces::Two(Bytes::copy_from_slice(&first.head), first.tail.clone())
            };
            let length = pieces.length();
            self.batches.push_back(Kept {
                base_offset: first.header.leader.base_offset,
                end_offset: last.header.end_offset(),
                pieces,
            });
            self.bytes += length;
            self.budget.used.fetch_add(length, Ordering::Relaxed);
        }
        self.shrink();
    }

    fn copy(&mut self, group: &[StampedBatch]) -> Pieces {
        let length: usize = group.iter().map(|batch| batch.header.length()).sum();
        if self.chunk.capacity() < length {
            self.chunk = BytesMut::with_capacity(CHUNK_BYTES.max(length));
        }
        let mut ends = Vec::with_capacity(group.len());
        for batch in group {
            self.chunk.extend_from_slice(&batch.head);
            self.chunk.extend_from_slice(&batch.tail);
            ends.push((batch.header.end_offset(), self.chunk.len()));
        }
        Pieces::Copied(self.chunk.split().freeze(), ends)
    }

    fn shrink(&mut self) {
        let over = |bytes: u64, budget: &TailBudget| {
            bytes > self.bytes_max || budget.used.load(Ordering::Relaxed) > budget.bytes_max
        };
        while over(self.bytes, &self.budget) {
            let Some(oldest) = self.batches.pop_front() else { break };
            let length = oldest.pieces.length();
            self.bytes -= length;
            self.budget.used.fetch_sub(length, Ordering::Relaxed);
        }
    }

    /// Whole batches from the one with `from` on, those that end at `upto` or before, up to `bytes_max` unless the first
    /// is larger. `None` if `from` is not in the tail, or the mapping serves it better.
    pub(super) fn read(&self, from: Offset, upto: Offset, bytes_max: usize) -> Option<Vec<Bytes>> {
        let start = self.batches.partition_point(|kept| kept.end_offset <= from);
        if self.batches.get(start)?.base_offset > from {
            return None;
        }
        let mut out = Vec::new();
        let mut bytes = 0;
        for kept in self.batches.range(start..) {
            if out.len() >= PIECES_MAX {
                return None;
            }
            let whole = match &kept.pieces {
                Pieces::Two(head, tail) => {
                    let length = head.len() + tail.len();
                    let fits = kept.end_offset <= upto && (bytes == 0 || bytes + length <= bytes_max);
                    if fits {
                        out.extend([head.clone(), tail.clone()]);
                        bytes += length;
                    }
                    fits
                }
                Pieces::Copied(all, ends) => {
                    let skipped = ends.partition_point(|(end, _)| *end <= from);
                    let begin = skipped.checked_sub(1).map_or(0, |last| ends[last].1);
                    let fit = ends[skipped..].iter().take_while(|(end, position)| {
                        let first = bytes == 0 && *position == ends[skipped].1;
                        *end <= upto && (first || bytes + position - begin <= bytes_max)
                    });
                    let count = fit.count();
                    if count > 0 {
                        let end = ends[skipped + count - 1].1;
                        out.push(all.slice(begin..end));
                        bytes += end - begin;
                    }
                    skipped + count == ends.len()
                }
            };
            if !whole {
                break;
            }
        }
        Some(out)
    }
}

fn is_small(batch: &StampedBatch) -> bool {
    batch.header.length() <= COPY_BYTES_MAX
}

impl Drop for MemoryTail {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Pieces {
    fn length(&self) -> u64 {
        match self {
            Self::Two(head, tail) => (head.len() + tail.len()) as u64,
            Self::Copied(all, _) => all.len() as u64,
        }
    }
}
