//! Compression of the records section of a batch. Decompression is always bounded by the caller's limit.

use std::io::{self, BufRead, Read, Write};

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
    /// The compressed bytes are not exactly one frame of the codec.
    #[error("compressed records are not one whole {0:?} frame")]
    NotOneFrame(Compression),
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
    /// Allocates at the most `limit` bytes, half of that again while growing, and what the codec needs for a window
    /// (17 MiB).
    ///
    /// # Errors
    /// When the bytes are not one whole frame, expand beyond `limit`, or this build lacks the codec.
    pub fn decompress(self, packed: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
        match self {
            Self::None if packed.len() > limit => Err(CompressionError::TooLarge { limit }),
            Self::None => Ok(packed.to_vec()),
            Self::Lz4 => decompress_lz4(packed, limit),
            Self::Zstd => zstd_codec::decompress(packed, limit),
        }
    }
}

/// The first bytes of an LZ4 frame. The older frame format and skippable frames are refused.
const LZ4_MAGIC: [u8; 4] = 0x184d_2204_u32.to_le_bytes();

fn decompress_lz4(packed: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
    let not_one_frame = CompressionError::NotOneFrame(Compression::Lz4);
    if !packed.starts_with(&LZ4_MAGIC) {
        return Err(not_one_frame);
    }
    // The decoder takes the end of its input for the end of a frame. A byte behind the input tells the two apart: after a
    // whole frame it is still there.
    let mut decoder = lz4_flex::frame::FrameDecoder::new(packed.chain(&[0u8][..]));
    let raw = read_bounded(&mut decoder, packed.len(), limit)?;
    let (unread, behind) = decoder.into_inner().into_inner();
    if unread.is_empty() && behind.len() == 1 { Ok(raw) } else { Err(not_one_frame) }
}

/// Reads to the end, giving up past the limit.
fn read_bounded(
    mut decoder: impl BufRead,
    length_expected: usize,
    limit: usize,
) -> Result<Vec<u8>, CompressionError> {
    let mut raw = Vec::with_capacity(length_expected.saturating_mul(2).min(limit));
    loop {
        let chunk = decoder.fill_buf().map_err(CompressionError::Codec)?;
        let length = chunk.len();
        if length == 0 {
            return Ok(raw);
        }
        let length_after = raw.len() + length;
        if length_after > limit {
            return Err(CompressionError::TooLarge { limit });
        }
        if length_after > raw.capacity() {
            // Doubling, but never beyond the limit.
            let capacity = raw.capacity().saturating_mul(2).max(length_after).min(limit);
            raw.reserve_exact(capacity - raw.len());
        }
        raw.extend_from_slice(chunk);
        decoder.consume(length);
    }
}

#[cfg(feature = "zstd")]
mod zstd_codec {
    use std::io::BufReader;

    use super::{Compression, CompressionError, read_bounded};

    /// A window of 8 MiB, the largest that the format's specification asks decoders to support; a frame that needs more
    /// is refused.
    const WINDOW_LOG_MAX: u32 = 23;

    const CHUNK_BYTES: usize = 128 << 10;

    pub(super) fn compress(raw: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
        zstd::stream::copy_encode(raw, out, zstd::DEFAULT_COMPRESSION_LEVEL).map_err(CompressionError::Codec)
    }

    pub(super) fn decompress(packed: &[u8], limit: usize) -> Result<Vec<u8>, CompressionError> {
        let mut rest = packed;
        let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut rest)
            .map_err(CompressionError::Codec)?
            .single_frame();
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(CompressionError::Codec)?;
        let raw = read_bounded(BufReader::with_capacity(CHUNK_BYTES, decoder), packed.len(), limit)?;
        if rest.is_empty() { Ok(raw) } else { Err(CompressionError::NotOneFrame(Compression::Zstd)) }
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

    #[test]
    fn anything_but_one_whole_frame_is_refused() {
        for compression in [
            Compression::Lz4,
            #[cfg(feature = "zstd")]
            Compression::Zstd,
        ] {
            let raw: Vec<u8> = (0..200_000u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
            let mut packed = Vec::new();
            compression.compress(&raw, &mut packed).unwrap();
            for cut in (0..packed.len()).step_by(997).chain([packed.len() - 1]) {
                assert!(
                    compression.decompress(&packed[..cut], raw.len()).is_err(),
                    "{compression:?} cut at {cut}"
                );
            }
            let twice = packed.repeat(2);
            let error = compression.decompress(&twice, 2 * raw.len()).unwrap_err();
            assert!(matches!(error, CompressionError::NotOneFrame(found) if found == compression));
        }
    }
}
