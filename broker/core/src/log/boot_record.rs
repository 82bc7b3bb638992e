//! Which directory this is, and what happened to it since it was last reported.

use bytes::BufMut;
use highwater_protocol::ids::DirectoryId;

use super::envelope::{self, Fields, FormatError};

const DIRECTORY_MAGIC: [u8; 4] = *b"HWDI";
const BOOT_MAGIC: [u8; 4] = *b"HWBO";
const VERSION: u16 = 1;

/// The bytes of the file that names a data directory.
#[must_use]
pub fn encode_directory(id: DirectoryId) -> Vec<u8> {
    envelope::wrap(DIRECTORY_MAGIC, VERSION, &id.to_bytes())
}

/// The id in the file that names a data directory.
///
/// # Errors
/// When it is damaged.
pub fn decode_directory(bytes: &[u8]) -> Result<DirectoryId, FormatError> {
    let (_version, payload) = envelope::unwrap(DIRECTORY_MAGIC, VERSION, bytes)?;
    let mut fields = Fields(payload);
    let id = DirectoryId::from_bytes(fields.bytes16()?);
    fields.end()?;
    Ok(id)
}

/// Written at each start, before anything else changes.
///
/// The three marks stay until they have been reported (to the controller, once there is one that asks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BootRecord {
    /// The kernel's boot id at that start.
    pub boot_id: [u8; 16],
    /// A start without a clean marker is not reported yet.
    pub unclean: bool,
    /// A start under another kernel is not reported yet.
    pub other_kernel: bool,
    /// A failed flush is not reported yet.
    pub flush_failed: bool,
}

impl BootRecord {
    /// The bytes of the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(19);
        out.put_slice(&self.boot_id);
        out.put_u8(u8::from(self.unclean));
        out.put_u8(u8::from(self.other_kernel));
        out.put_u8(u8::from(self.flush_failed));
        envelope::wrap(BOOT_MAGIC, VERSION, &out)
    }

    /// The record in a file.
    ///
    /// # Errors
    /// When it is damaged: then nothing is known about the last start.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let (_version, payload) = envelope::unwrap(BOOT_MAGIC, VERSION, bytes)?;
        let mut fields = Fields(payload);
        let record = Self {
            boot_id: fields.bytes16()?,
            unclean: fields.u8()? != 0,
            other_kernel: fields.u8()? != 0,
            flush_failed: fields.u8()? != 0,
        };
        fields.end()?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        let record = BootRecord { boot_id: [7; 16], unclean: true, other_kernel: false, flush_failed: true };
        assert_eq!(BootRecord::decode(&record.encode()).unwrap(), record);
        let id = DirectoryId(0x1234);
        assert_eq!(decode_directory(&encode_directory(id)).unwrap(), id);
        assert!(BootRecord::decode(&encode_directory(id)).is_err());
    }
}
