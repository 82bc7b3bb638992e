//! Read buffers that the connections of this process share.
//!
//! Memory that is touched for the first time is slow: the kernel clears it, and a virtual machine may have to get it back
//! from its host first. A process with a thousand connections that each keep a buffer of their own would go through all of
//! them in turn, none of them in the processor's cache. So a connection has a buffer only while something arrives, and the
//! one that was used last is used next.

use std::collections::VecDeque;

use bytes::BytesMut;
use parking_lot::Mutex;

/// The least bytes of a buffer: the size of each system call decides the speed.
pub(super) const BUFFER_MIN: usize = 256 << 10;
/// Buffers that are kept for whoever reads next.
const SPARE_MAX: usize = 16;
/// How many of them are looked at before a new one is made: of those that were given back last, some may still be read
/// from by the application.
const LOOKED_AT_MAX: usize = 8;

static SPARE: Spare = Spare::new();

/// Makes room for `room` more bytes behind those of `buffer`, which may be copied, in memory that was used before if there
/// is any.
pub(super) fn make_room(buffer: &mut BytesMut, room: usize) {
    SPARE.make_room(buffer, room);
}

/// Gives an empty buffer back when nobody would miss it: nothing of it is in use, or so much that it could not be read
/// into much longer. One that holds a few small frames stays where it is, and is filled: each of them would otherwise keep
/// a whole buffer from being used.
pub(super) fn rest(buffer: &mut BytesMut) {
    SPARE.rest(buffer);
}

#[derive(Debug)]
struct Spare {
    /// Those given back last are at the back.
    buffers: Mutex<VecDeque<BytesMut>>,
}

impl Spare {
    const fn new() -> Self {
        Self { buffers: Mutex::new(VecDeque::new()) }
    }

    fn make_room(&self, buffer: &mut BytesMut, room: usize) {
        if buffer.capacity() - buffer.len() >= room || buffer.try_reclaim(room) {
            return;
        }
        let mut next = self.take(buffer.len() + room);
        next.extend_from_slice(buffer);
        let mut old = std::mem::replace(buffer, next);
        old.clear();
        if !is_none(&old) {
            self.give(old);
        }
    }

    fn rest(&self, buffer: &mut BytesMut) {
        if !buffer.is_empty() || is_none(buffer) {
            return;
        }
        if buffer.capacity() < BUFFER_MIN / 2 || buffer.try_reclaim(BUFFER_MIN) {
            self.give(std::mem::take(buffer));
        }
    }

    fn take(&self, room: usize) -> BytesMut {
        self.find(room).unwrap_or_else(|| BytesMut::with_capacity(room.max(BUFFER_MIN)))
    }

    fn find(&self, room: usize) -> Option<BytesMut> {
        let mut buffers = self.buffers.lock();
        let first = buffers.len().saturating_sub(LOOKED_AT_MAX);
        let free = (first..buffers.len()).rev().find(|index| buffers[*index].try_reclaim(room))?;
        buffers.remove(free)
    }

    fn give(&self, buffer: BytesMut) {
        let mut buffers = self.buffers.lock();
        if buffers.len() == SPARE_MAX {
            // Most likely one that the application keeps.
            buffers.pop_front();
        }
        buffers.push_back(buffer);
    }
}

/// Whether there is no memory behind it at all. One that was filled to its last byte has no capacity left either, but its
/// memory can be used again.
fn is_none(buffer: &BytesMut) -> bool {
    buffer.capacity() == 0 && buffer.as_ptr() == BytesMut::new().as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(spare: &Spare, length: usize) -> BytesMut {
        let mut buffer = BytesMut::new();
        spare.make_room(&mut buffer, length.max(1));
        buffer.resize(length, 7);
        buffer
    }

    #[test]
    fn the_buffer_that_was_used_last_is_used_next() {
        let spare = Spare::new();
        let (mut one, mut two) = (filled(&spare, 0), filled(&spare, 0));
        let place = two.as_ptr();
        spare.rest(&mut one);
        spare.rest(&mut two);
        assert_eq!((one.capacity(), two.capacity()), (0, 0));
        spare.make_room(&mut one, 10);
        assert_eq!(one.as_ptr(), place);
        assert!(one.capacity() >= BUFFER_MIN);
    }

    #[test]
    fn what_the_application_holds_is_never_written_over() {
        let spare = Spare::new();
        let mut buffer = filled(&spare, BUFFER_MIN * 3 / 4);
        let frame = buffer.split();
        spare.rest(&mut buffer);
        assert_eq!(buffer.capacity(), 0, "a quarter is left: it is given back");
        let mut other = filled(&spare, BUFFER_MIN);
        assert_ne!(other.as_ptr(), frame.as_ptr());
        other.fill(8);
        assert!(frame.iter().all(|byte| *byte == 7));
        let place = frame.as_ptr();
        drop(frame);
        let again = filled(&spare, BUFFER_MIN);
        assert_eq!(again.as_ptr(), place, "and used again, from its start, once it is let go");
    }

    #[test]
    fn a_buffer_with_little_in_it_stays_with_its_connection() {
        let spare = Spare::new();
        let mut buffer = filled(&spare, 100);
        let frame = buffer.split();
        spare.rest(&mut buffer);
        assert_eq!(buffer.capacity(), BUFFER_MIN - 100);
        buffer.extend_from_slice(b"half of a frame");
        spare.rest(&mut buffer);
        assert_eq!(&buffer[..], b"half of a frame");
        drop(frame);
    }

    #[test]
    fn half_a_frame_moves_to_where_there_is_room_for_all_of_it() {
        let spare = Spare::new();
        let mut buffer = filled(&spare, BUFFER_MIN);
        let frame = buffer.split_to(BUFFER_MIN - 100);
        spare.make_room(&mut buffer, 4 * BUFFER_MIN);
        assert_eq!(&buffer[..], &[7; 100]);
        assert!(buffer.capacity() >= 4 * BUFFER_MIN + 100);
        assert_eq!(spare.buffers.lock().len(), 1);
        drop(frame);
    }

    #[test]
    fn no_more_than_a_few_are_kept() {
        let spare = Spare::new();
        let many: Vec<BytesMut> = (0..=SPARE_MAX).map(|_| filled(&spare, 0)).collect();
        let oldest = many[0].as_ptr();
        many.into_iter().for_each(|mut buffer| spare.rest(&mut buffer));
        let kept = spare.buffers.lock();
        assert_eq!(kept.len(), SPARE_MAX);
        assert!(kept.iter().all(|buffer| buffer.as_ptr() != oldest));
    }

    #[test]
    fn buffers_that_are_held_are_looked_at_only_so_often() {
        let spare = Spare::new();
        let mut held = Vec::new();
        let mut many: Vec<BytesMut> = (0..=LOOKED_AT_MAX).map(|_| filled(&spare, BUFFER_MIN)).collect();
        let first = many[0].as_ptr();
        for buffer in &mut many {
            held.push(buffer.split());
            spare.rest(buffer);
        }
        held.remove(0);
        assert_ne!(filled(&spare, BUFFER_MIN).as_ptr(), first, "it lies one further than is looked");
        held.clear();
        assert_eq!(spare.buffers.lock().len(), LOOKED_AT_MAX + 1);
    }
}
