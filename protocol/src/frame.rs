//! Frames: a fixed header, a protobuf body and an attachment of record batches.
//!
//! ```text
//! magic u32 "HWF1" | length u32 (bytes after the header) | api u16 | flags u16 | correlation_id u64 |
//! body_length u32 | crc u32 (CRC-32 of the header before it and the body)          — little-endian, 28 bytes
//! body (protobuf) | attachment (record batches, which carry their own checksums)
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::api::ApiKey;
use crate::body::{self, Body, BodyError};
use crate::ids::CorrelationId;
use crate::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX};

/// The first bytes of every frame, `HWF1` read as little-endian.
pub const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"HWF1");

/// Bytes of the fixed header.
pub const FRAME_HEADER_LENGTH: usize = 28;

/// Where the checksum stands in the header: behind everything that it covers there.
const CRC_AT: usize = FRAME_HEADER_LENGTH - 4;

/// This frame answers the request with its correlation id.
pub const FLAG_REPLY: u16 = 1;
/// The body is an `ErrorReply`. Only together with `FLAG_REPLY`.
pub const FLAG_ERROR: u16 = 2;
/// Nobody answers this frame; its correlation id is 0.
pub const FLAG_ONE_WAY: u16 = 4;

const FLAGS_KNOWN: u16 = FLAG_REPLY | FLAG_ERROR | FLAG_ONE_WAY;

/// What the fixed header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of body and attachment.
    pub length: u32,
    /// Which request, reply or one-way message.
    pub api: ApiKey,
    /// `FLAG_*` bits.
    pub flags: u16,
    /// Chosen by the requester, repeated in the reply.
    pub correlation_id: CorrelationId,
    /// Bytes of the body; the rest is the attachment.
    pub body_length: u32,
    /// CRC-32 of the header before this field, and of the body.
    pub crc: u32,
}

/// A whole frame whose checksum has been verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The fixed header.
    pub header: FrameHeader,
    /// The protobuf body.
    pub body: Bytes,
    /// Record batches, untouched.
    pub attachment: Bytes,
}

impl Frame {
    /// Decodes the body within the bounds of `M`; see [`body::decode`].
    ///
    /// # Errors
    /// When the body is not this message, or has more fields than the message may have.
    pub fn decode_body<M: Body>(&self) -> Result<M, BodyError> {
        body::decode(&self.body)
    }
}

/// Why bytes are not a frame. After any of these the stream cannot be followed further.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not the frame magic: the peer speaks something else.
    #[error("frame starts with {0:#010x}, not with the magic of this protocol")]
    Magic(u32),
    /// The frame is larger than the limit.
    #[error("frame of {length} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// What the header says.
        length: usize,
        /// The limit that it exceeds.
        limit: usize,
    },
    /// The body is larger than the limit or than the frame.
    #[error(
        "frame body of {body_length} bytes does not fit its frame of {length} bytes or the limit of {BODY_BYTES_MAX}"
    )]
    BodyLength {
        /// Bytes of the body, from the header.
        body_length: usize,
        /// Bytes after the header, from the header.
        length: usize,
    },
    /// A flag bit that this version does not know, or a combination without meaning.
    #[error("frame flags {0:#06x} are not known")]
    Flags(u16),
    /// Header or body were damaged on the way.
    #[error("frame checksum {computed:#010x} differs from {stored:#010x} in its header")]
    Checksum {
        /// From the header.
        stored: u32,
        /// Of the bytes received.
        computed: u32,
    },
}

/// Writes the header and the body of a frame whose attachment of `attachment_length` bytes follows separately.
///
/// # Errors
/// When body or attachment are beyond the limits; `out` is as it was.
#[expect(clippy::cast_possible_truncation, reason = "lengths are below FRAME_BYTES_MAX")]
#[expect(clippy::indexing_slicing, reason = "the header was put behind `start` just before")]
pub fn encode_frame_head(
    api: ApiKey,
    flags: u16,
    correlation_id: CorrelationId,
    body: &impl prost::Message,
    attachment_length: usize,
    out: &mut BytesMut,
) -> Result<(), FrameError> {
    let body_length = body.encoded_len();
    let length = body_length.saturating_add(attachment_length);
    if body_length > BODY_BYTES_MAX {
        return Err(FrameError::BodyLength { body_length, length });
    }
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLarge { length, limit: FRAME_BYTES_MAX });
    }
    let start = out.len();
    out.reserve(FRAME_HEADER_LENGTH + body_length);
    out.put_u32_le(FRAME_MAGIC);
    out.put_u32_le(length as u32);
    out.put_u16_le(api.0);
    out.put_u16_le(flags);
    out.put_u64_le(correlation_id.0);
    out.put_u32_le(body_length as u32);
    out.put_u32_le(0);
    body.encode_raw(out);
    let (header, body) = out[start..].split_at_mut(FRAME_HEADER_LENGTH);
    let (covered, crc) = header.split_at_mut(CRC_AT);
    crc.copy_from_slice(&checksum(covered, body).to_le_bytes());
    Ok(())
}

/// CRC-32 of the header before its checksum, and of the body.
fn checksum(header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(body);
    hasher.finalize()
}

/// Cuts a stream of bytes into frames, without I/O.
#[derive(Debug, Clone)]
pub struct Splitter {
    frame_bytes_max: usize,
}

impl Default for Splitter {
    fn default() -> Self {
        Self { frame_bytes_max: FRAME_BYTES_MAX }
    }
}

impl Splitter {
    /// A splitter that refuses frames of more than `frame_bytes_max` bytes after the header.
    #[must_use]
    pub fn with_limit(frame_bytes_max: usize) -> Self {
        Self { frame_bytes_max: frame_bytes_max.min(FRAME_BYTES_MAX) }
    }

    /// Takes the next whole frame off the front of `input`, or `None` while more bytes are needed.
    ///
    /// Body and attachment are slices of `input`'s allocation: nothing is copied. Nothing is allocated either; how many
    /// bytes are missing is told by [`Splitter::missing`].
    ///
    /// # Errors
    /// When the bytes cannot be a frame. The stream cannot be followed after that.
    pub fn next(&self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.peek_header(input)? else { return Ok(None) };
        let length = header.length as usize;
        if input.len() < FRAME_HEADER_LENGTH + length {
            return Ok(None);
        }
        let mut whole = input.split_to(FRAME_HEADER_LENGTH + length).freeze();
        let covered = whole.split_to(CRC_AT);
        whole.advance(FRAME_HEADER_LENGTH - CRC_AT);
        let body = whole.split_to(header.body_length as usize);
        let computed = checksum(&covered, &body);
        if computed != header.crc {
            return Err(FrameError::Checksum { stored: header.crc, computed });
        }
        Ok(Some(Frame { header, body, attachment: whole }))
    }

    /// How many more bytes the frame at the front of `input` needs, as far as can be told; 0 when it is whole.
    ///
    /// # Errors
    /// When the bytes cannot be a frame.
    pub fn missing(&self, input: &[u8]) -> Result<usize, FrameError> {
        let needed = match self.peek_header(input)? {
            None => FRAME_HEADER_LENGTH,
            Some(header) => FRAME_HEADER_LENGTH + header.length as usize,
        };
        Ok(needed.saturating_sub(input.len()))
    }

    /// How many bytes to reserve in `input` before the next read.
    ///
    /// Follows what has arrived (at least `chunk` bytes, at most as many as are already there, never more than the frame
    /// needs beyond a chunk), so that a peer which only announces a large frame does not make its receiver allocate one.
    ///
    /// # Errors
    /// When the bytes cannot be a frame.
    pub fn read_ahead(&self, input: &[u8], chunk: usize) -> Result<usize, FrameError> {
        Ok(self.missing(input)?.min(input.len()).max(chunk))
    }

    /// The header at the front of `input`, checked against the limits but not against its checksum.
    ///
    /// A wrong magic is refused as soon as its four bytes are there.
    fn peek_header(&self, input: &[u8]) -> Result<Option<FrameHeader>, FrameError> {
        let Some(magic) = input.first_chunk() else { return Ok(None) };
        let magic = u32::from_le_bytes(*magic);
        if magic != FRAME_MAGIC {
            return Err(FrameError::Magic(magic));
        }
        let Some(mut fields) = input.get(4..FRAME_HEADER_LENGTH) else { return Ok(None) };
        let header = FrameHeader {
            length: fields.get_u32_le(),
            api: ApiKey(fields.get_u16_le()),
            flags: fields.get_u16_le(),
            correlation_id: CorrelationId(fields.get_u64_le()),
            body_length: fields.get_u32_le(),
            crc: fields.get_u32_le(),
        };
        let length = header.length as usize;
        if length > self.frame_bytes_max {
            return Err(FrameError::TooLarge { length, limit: self.frame_bytes_max });
        }
        let body_length = header.body_length as usize;
        if body_length > length || body_length > BODY_BYTES_MAX {
            return Err(FrameError::BodyLength { body_length, length });
        }
        let reply = header.flags & FLAG_REPLY != 0;
        let error = header.flags & FLAG_ERROR != 0;
        let one_way = header.flags & FLAG_ONE_WAY != 0;
        if header.flags & !FLAGS_KNOWN != 0 || (error && !reply) || (one_way && reply) {
            return Err(FrameError::Flags(header.flags));
        }
        Ok(Some(header))
    }
}
