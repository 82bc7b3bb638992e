//! Writing again what only the page cache may have.

use std::io;

use highwater_protocol::ids::Offset;

use super::Active;
use crate::storage::file_system::File;
use crate::storage::files;

/// Bytes written at a time.
const PIECE: u64 = 1 << 20;

/// Writes the same bytes once more from where the last known flush ended, so that the kernel takes them for new.
///
/// When a flush has failed, what it could not write is taken for written and stays readable; if the process dies before it
/// has noted the failure, nothing tells the next one, and its own flush would answer with success. While the kernel runs
/// on, the slot file says exactly up to where flushes succeeded. Nothing is mapped yet. Returns whether it wrote.
pub(super) fn unflushed(
    state: &Active,
    file: &dyn File,
    end: Offset,
    flushed_end: Option<Offset>,
) -> io::Result<bool> {
    if flushed_end.is_some_and(|flushed| flushed >= end) {
        return Ok(false);
    }
    let flushed_end = flushed_end.unwrap_or_default();
    let mut position = state.index.floor_offset(flushed_end).map_or(0, |floor| floor.position);
    let mut buffer = Vec::new();
    while position < state.position {
        let length = (state.position - position).min(PIECE);
        buffer.resize(length as usize, 0);
        let read = files::read_up_to(file, &mut buffer, position, false)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        files::write_all(file, &buffer[..read], position)?;
        position += read as u64;
    }
    Ok(true)
}
