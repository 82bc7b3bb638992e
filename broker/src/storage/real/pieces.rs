//! Large writes as several small ones, each within one aligned piece of the file.
//!
//! The kernel takes memory for the page cache in blocks as large as the write. Virtual machines that give free memory
//! back to their host give it back in large blocks (free page reporting: from 128 KiB on where this was measured), and the
//! first write to each page of such a block is a fault in the host, which costs ten times the copy. Smaller blocks stay.
//! A call of the kernel for each piece costs next to nothing beside that (ADR 0003).

use std::io::{self, IoSlice};

/// Bytes of a piece, and what its ends are multiples of: the largest power of two that is not given back.
const PIECE_BYTES: usize = 64 << 10;

/// Writes `buffers` at `position` by calls of `write`, which writes some bytes from the front of what it is given and
/// says how many. Returns how many were written in all: fewer than given when a call wrote fewer than it was given, or
/// failed after others had not.
///
/// # Errors
/// That of the first call.
pub(super) fn write(
    buffers: &[IoSlice<'_>],
    position: u64,
    mut write: impl FnMut(&[IoSlice<'_>], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let length: usize = buffers.iter().map(|buffer| buffer.len()).sum();
    if length <= room(position) {
        return write(buffers, position);
    }
    let mut written = 0;
    let mut piece: Vec<IoSlice<'_>> = Vec::with_capacity(buffers.len());
    let mut rest = buffers.iter().map(|buffer| &**buffer);
    let mut next: &[u8] = &[];
    while written < length {
        let at = position + written as u64;
        let wanted = room(at).min(length - written);
        let mut missing = wanted;
        piece.clear();
        while missing > 0 {
            if next.is_empty() {
                let Some(buffer) = rest.next() else { break };
                next = buffer;
            }
            let (taken, left) = next.split_at(next.len().min(missing));
            piece.push(IoSlice::new(taken));
            missing -= taken.len();
            next = left;
        }
        match write(&piece, at) {
            Ok(count) => {
                written += count;
                if count < wanted {
                    break;
                }
            }
            Err(error) if written == 0 => return Err(error),
            // Whoever goes on behind what was written meets it again.
            Err(_) => break,
        }
    }
    Ok(written)
}

/// Bytes from `position` to the end of its piece.
const fn room(position: u64) -> usize {
    PIECE_BYTES - (position % PIECE_BYTES as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes into memory, at most so many bytes a call, with an error at a position; notes the calls.
    #[derive(Default)]
    struct Memory {
        bytes: Vec<u8>,
        calls: Vec<(u64, usize)>,
        call_bytes_max: Option<usize>,
        fails_at: Option<u64>,
    }

    impl Memory {
        fn write(&mut self, buffers: &[IoSlice<'_>], position: u64) -> io::Result<usize> {
            if self.fails_at == Some(position) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let mut all: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
            self.calls.push((position, all.len()));
            all.truncate(self.call_bytes_max.unwrap_or(usize::MAX));
            let end = position as usize + all.len();
            self.bytes.resize(self.bytes.len().max(end), 0);
            self.bytes[position as usize..end].copy_from_slice(&all);
            Ok(all.len())
        }
    }

    fn bytes(length: usize) -> Vec<u8> {
        (0..length).map(|number| (number % 251) as u8).collect()
    }

    const PIECE: usize = PIECE_BYTES;

    #[test]
    fn every_byte_arrives_and_no_call_crosses_the_end_of_a_piece() {
        let content = bytes(3 * PIECE + 777);
        for position in [0, 1, 100, PIECE - 1, PIECE, 5 * PIECE + 4097] {
            for cuts in [&[][..], &[1], &[47, 48, 48, PIECE], &[PIECE, 2 * PIECE, 3 * PIECE]] {
                let mut ends = cuts.to_vec();
                ends.push(content.len());
                let mut start = 0;
                let buffers: Vec<IoSlice<'_>> = ends
                    .iter()
                    .map(|end| IoSlice::new(&content[std::mem::replace(&mut start, *end)..*end]))
                    .collect();
                let mut memory = Memory::default();
                let written = write(&buffers, position as u64, |piece, at| memory.write(piece, at)).unwrap();
                assert_eq!(written, content.len());
                assert_eq!(memory.bytes[position..], content, "at {position}, cut at {cuts:?}");
                let end = (position + content.len()) as u64;
                for (at, length) in memory.calls {
                    let last = at + length as u64;
                    assert_eq!(at / PIECE as u64, (last - 1) / PIECE as u64, "one piece");
                    assert!(last.is_multiple_of(PIECE as u64) || last == end, "as much of it as there is");
                }
            }
        }
    }

    #[test]
    fn what_fits_a_piece_is_one_call_with_the_buffers_as_they_are() {
        let (one, two) = (bytes(PIECE - 10), bytes(10));
        let mut calls = 0;
        let written = write(&[IoSlice::new(&one), IoSlice::new(&two)], PIECE as u64, |buffers, at| {
            calls += 1;
            assert_eq!((buffers.len(), at), (2, PIECE as u64));
            Ok(PIECE)
        });
        assert_eq!((written.unwrap(), calls), (PIECE, 1));
    }

    #[test]
    fn a_short_call_or_an_error_behind_the_first_ends_it_with_what_was_written() {
        let content = bytes(4 * PIECE);
        let mut short = Memory { call_bytes_max: Some(PIECE - 5), ..Memory::default() };
        let written = write(&[IoSlice::new(&content)], 0, |piece, at| short.write(piece, at)).unwrap();
        assert_eq!((written, &short.bytes[..]), (PIECE - 5, &content[..PIECE - 5]));

        let mut full = Memory { fails_at: Some(2 * PIECE as u64), ..Memory::default() };
        let written = write(&[IoSlice::new(&content)], 0, |piece, at| full.write(piece, at)).unwrap();
        assert_eq!((written, &full.bytes[..]), (2 * PIECE, &content[..2 * PIECE]));

        let mut broken = Memory { fails_at: Some(0), ..Memory::default() };
        let failed = write(&[IoSlice::new(&content)], 0, |piece, at| broken.write(piece, at));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
