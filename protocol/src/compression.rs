//! Compression of the records section of a batch. Decompression is always bounded by the caller's limit.

use std::io::{self, Read, Write};

/// How the records section of a batch is compressed. The numbers are those of Kafka's batch attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// One LZ4 frame.
    Lz4,
    /// One Zstandard frame. Encoding and decoding need the `zstd` feature.
    Zstd,
}

/// Why records could not be compressed or decompressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The number is not a compression of this protocol.
    #[error("unknown compression {0}")]
    Unknown(u16),
    /// This build does not have the codec.
    #[error("this build has no {0:?} codec")]
    NotBuilt(Compression),
    /// The compressed bytes do not decode.
    #[error("compressed records do not decode: {0}")]
    Codec(#[source] io::Error),
    /// More bytes came out than the limit allows.
    #[error("records expand beyond the limit of {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
}

impl Compression {
    /// The number in the low three bits of a batch's attributes.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Lz4 => 3,
            Self::Zstd => 4,
        }
    }

    /// The compression with this number.
    ///
    /// # Errors
    /// When the number is not one of this protocol.
    pub const fn from_code(code: u16) -> Result<Self, CompressionError> {
        match code {
            0 => Ok(Self::None),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            other => Err(CompressionError::Unknown(other)),
        }
    }

    /// Compresses `raw` to the end of `out`.
    ///
    /// # Errors
    /// When this build lacks the codec.
    pub fn compress(self, raw: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
        match self {
            Self::None => out.extend_from_slice(raw),
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(out);
                encoder.write_all(raw).map_err(CompressionError::Codec)?;
                encoder.finish().map_err(|error| CompressionError::Codec(io::Error::other(error)))?;
            }
            Self::Zstd => zstd_codec::compress(raw, out)?,
        }
        Ok(())
    }

    /// Decompresses `packed`, giving up as soon as more than `limit` bytes come out.
    ///
    /// # Errors
    /// When the bytes do not decode, expand beyond `limit`, or this build lacks the codec.
    pub fn decompress(self, packed: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
        match self {
            Self::None if packed.len() > limit => Err(CompressionError::TooLarge { limit }),
            Self::None => Ok(packed.to_vec()),
            Self::Lz4 => read_bounded(lz4_flex::frame::FrameDecoder::new(packed), limit),
            Self::Zstd => zstd_codec::decompress(packed, limit),
        }
    }
}

/// Reads to the end, one byte past the limit at the most.
fn read_bounded(decoder: impl Read, limit: usize) -> Result<Vec<u8>, CompressionError> {
    let mut raw = Vec::new();
    decoder.take(limit as u64 + 1).read_to_end(&mut raw).map_err(CompressionError::Codec)?;
    if raw.len() > limit {
        return Err(CompressionError::TooLarge { limit });
    }
    Ok(raw)
}

#[cfg(feature = "zstd")]
mod zstd_codec {
    use super::{CompressionError, read_bounded};

    pub(super) fn compress(raw: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
        zstd::stream::copy_encode(raw, out, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(CompressionError::Codec)
    }

    pub(super) fn decompress(packed: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
        let decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(CompressionError::Codec)?;
        read_bounded(decoder, limit)
    }
}

#[cfg(not(feature = "zstd"))]
mod zstd_codec {
    use super::{Compression, CompressionError};

    pub(super) fn compress(_raw: &[u8], _out: &mut Vec<u8>) -> Result<(), CompressionError> {
        Err(CompressionError::NotBuilt(Compression::Zstd))
    }

    pub(super) fn decompress(_packed: &[u8], _limit: usize) -> Result<Vec<u8>, CompressionError> {
        Err(CompressionError::NotBuilt(Compression::Zstd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lz4_round_trips_and_is_bounded() {
        let raw = b"highwater ".repeat(10_000);
        let mut packed = Vec::new();
        Compression::Lz4.compress(&raw, &mut packed).unwrap();
        assert!(packed.len() < raw.len() / 10);
        assert_eq!(Compression::Lz4.decompress(&packed, raw.len()).unwrap(), raw);
        let error = Compression::Lz4.decompress(&packed, raw.len() - 1).unwrap_err();
        assert!(matches!(error, CompressionError::TooLarge { limit } if limit == raw.len() - 1));
    }
}
