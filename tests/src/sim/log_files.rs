//! Where batches are in the segment files of a simulated disk, found without any code of the log.

use std::ops::Range;
use std::path::PathBuf;

use highwater_protocol::batch::BatchHeader;

use super::disk::SimDisk;

/// A batch in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The segment file.
    pub path: PathBuf,
    /// Its bytes there.
    pub positions: Range<u64>,
    /// Its offsets.
    pub offsets: Range<u64>,
}

/// The batches of all segment files, by offset, walking over headers from the start of each file.
#[must_use]
pub fn places(disk: &SimDisk) -> Vec<Place> {
    let mut places = Vec::new();
    for (path, _) in disk.files() {
        if path.extension().is_none_or(|extension| extension != "segment") || path.starts_with("/data/trash")
        {
            continue;
        }
        let bytes = disk.read(&path).unwrap_or_default();
        let mut position = 0;
        while let Ok(header) = BatchHeader::decode(&bytes[position..]) {
            let end = position + header.length();
            places.push(Place {
                path: path.clone(),
                positions: position as u64..end as u64,
                offsets: header.leader.base_offset.get()..header.end_offset().get(),
            });
            if end >= bytes.len() {
                break;
            }
            position = end;
        }
    }
    places.sort_by_key(|place| place.offsets.start);
    places
}
