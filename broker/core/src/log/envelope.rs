//! The shape of every small state file: magic, format version, payload, checksum at the end.
//!
//! ```text
//! 0 magic [u8; 4] | 4 version u16 | 6 payload length u32 | 10 payload… | crc u32 of everything before
//! ```

use bytes::{Buf, BufMut};

/// Bytes around a payload.
pub const ENVELOPE_BYTES: usize = 14;

/// Bytes of a payload at the most.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Why a state file cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Another kind of file.
    #[error("the file is of another kind: it starts with {0:02x?}")]
    Magic([u8; 4]),
    /// Written by a newer version.
    #[error("format version {0} is not known: it was written by a newer broker")]
    Version(u16),
    /// Cut short, or longer than it says.
    #[error("the file has {have} bytes where {need} are expected")]
    Length {
        /// Bytes there.
        have: usize,
        /// Bytes expected.
        need: usize,
    },
    /// Damaged.
    #[error("the checksum at the end is {stored:#010x}, that of the bytes is {computed:#010x}")]
    Checksum {
        /// In the file.
        stored: u32,
        /// Of the bytes there.
        computed: u32,
    },
    /// A field has a value that is not allowed.
    #[error("field {0} has a value that is not allowed")]
    Field(&'static str),
}

/// Puts `payload` into an envelope.
#[must_use]
pub fn wrap(magic: [u8; 4], version: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + ENVELOPE_BYTES);
    out.put_slice(&magic);
    out.put_u16_le(version);
    out.put_u32_le(payload.len() as u32);
    out.put_slice(payload);
    let crc = crc32fast::hash(&out);
    out.put_u32_le(crc);
    out
}

/// The version and the payload of a whole file.
///
/// # Errors
/// When the file is not a whole and good one of this kind, or newer than `version_max`.
pub fn unwrap(magic: [u8; 4], version_max: u16, bytes: &[u8]) -> Result<(u16, &[u8]), FormatError> {
    let too_short = FormatError::Length { have: bytes.len(), need: ENVELOPE_BYTES };
    let (mut fields, rest) = bytes.split_at_checked(10).ok_or(too_short)?;
    let mut found = [0; 4];
    fields.copy_to_slice(&mut found);
    if found != magic {
        return Err(FormatError::Magic(found));
    }
    let version = fields.get_u16_le();
    let length = fields.get_u32_le() as usize;
    if length > PAYLOAD_BYTES_MAX || rest.len() != length + 4 {
        return Err(FormatError::Length { have: bytes.len(), need: length.saturating_add(ENVELOPE_BYTES) });
    }
    let (payload, mut tail) = rest.split_at(length);
    let stored = tail.get_u32_le();
    let computed = crc32fast::hash(&bytes[..bytes.len() - 4]);
    if stored != computed {
        return Err(FormatError::Checksum { stored, computed });
    }
    if version == 0 || version > version_max {
        return Err(FormatError::Version(version));
    }
    Ok((version, payload))
}

/// Reads fields from a payload, checked.
#[derive(Debug)]
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    fn need(&self, count: usize) -> Result<(), FormatError> {
        if self.0.len() < count {
            return Err(FormatError::Length { have: self.0.len(), need: count });
        }
        Ok(())
    }

    pub(crate) fn u8(&mut self) -> Result<u8, FormatError> {
        self.need(1)?;
        Ok(self.0.get_u8())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, FormatError> {
        self.need(2)?;
        Ok(self.0.get_u16_le())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, FormatError> {
        self.need(4)?;
        Ok(self.0.get_u32_le())
    }

    pub(crate) fn u64(&mut self) -> Result<u64, FormatError> {
        self.need(8)?;
        Ok(self.0.get_u64_le())
    }

    pub(crate) fn i64(&mut self) -> Result<i64, FormatError> {
        self.need(8)?;
        Ok(self.0.get_i64_le())
    }

    pub(crate) fn bytes16(&mut self) -> Result<[u8; 16], FormatError> {
        self.need(16)?;
        let mut out = [0; 16];
        self.0.copy_to_slice(&mut out);
        Ok(out)
    }

    /// A count of things that take `each` bytes at the least: bounded by what is there, before anything is allocated.
    pub(crate) fn count(&mut self, each: usize) -> Result<usize, FormatError> {
        let count = self.u32()? as usize;
        self.need(count.saturating_mul(each))?;
        Ok(count)
    }

    pub(crate) fn end(&self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(FormatError::Length { have: self.0.len(), need: 0 }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let file = wrap(*b"TEST", 1, b"payload");
        assert_eq!(unwrap(*b"TEST", 1, &file).unwrap(), (1, &b"payload"[..]));
        for bit in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(*b"TEST", u16::MAX, &flipped).is_err(), "bit {bit}");
        }
        for length in 0..file.len() {
            assert!(unwrap(*b"TEST", 1, &file[..length]).is_err());
        }
        assert_eq!(unwrap(*b"TEST", 1, &wrap(*b"TEST", 2, b"")), Err(FormatError::Version(2)));
    }
}
