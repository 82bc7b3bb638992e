//! Decoding the body of a frame within bounds.
//!
//! An empty element of a repeated field takes two bytes on the wire and a hundred times that in memory. So the elements
//! are counted, without allocating, before a body is decoded.

use bytes::Bytes;

use crate::limits::{BODY_BYTES_MAX, REQUEST_FIELDS_MAX};

/// Levels of messages that hold repeated messages; a field deeper than this is not counted.
const DEPTH_MAX: usize = 4;

/// A message that is the body of a frame.
pub trait Body: prost::Message + Default + std::fmt::Debug {
    /// Fields that it may have in all, those of `NESTED` messages included.
    const FIELDS_MAX: usize = REQUEST_FIELDS_MAX;
    /// Which of its fields hold messages with repeated fields of their own.
    const NESTED: &'static [Nested] = &[];
}

/// A field whose messages are counted too.
#[derive(Debug, Clone, Copy)]
pub struct Nested {
    /// The number of the field.
    pub tag: u32,
    /// Fields of that message that are counted in turn.
    pub inside: &'static [Nested],
}

/// Why a body does not decode.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The body is larger than any body may be.
    #[error("body of {0} bytes is larger than the limit of {BODY_BYTES_MAX}")]
    TooLarge(usize),
    /// More fields than the message may have.
    #[error("body has more than {limit} fields")]
    TooManyFields {
        /// What this message may have.
        limit: usize,
    },
    /// The bytes are not protobuf.
    #[error("body is not protobuf")]
    Malformed,
    /// The bytes are protobuf, but not this message.
    #[error("body does not decode: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// Decodes a body. Fields of type `bytes` are slices of it.
///
/// # Errors
/// When the body is not this message, or has more fields than the message may have.
pub fn decode<M: Body>(body: &Bytes) -> Result<M, BodyError> {
    if body.len() > BODY_BYTES_MAX {
        return Err(BodyError::TooLarge(body.len()));
    }
    FieldCount { left: M::FIELDS_MAX, limit: M::FIELDS_MAX }.take_message(body, M::NESTED, 0)?;
    Ok(M::decode(body.clone())?)
}

struct FieldCount {
    left: usize,
    limit: usize,
}

impl FieldCount {
    fn take_message(&mut self, mut rest: &[u8], nested: &[Nested], depth: usize) -> Result<(), BodyError> {
        while !rest.is_empty() {
            let key = take_varint(&mut rest).ok_or(BodyError::Malformed)?;
            self.left = self.left.checked_sub(1).ok_or(BodyError::TooManyFields { limit: self.limit })?;
            let field = match key & 7 {
                0 => take_varint(&mut rest).map(|_| None),
                1 => take(&mut rest, 8).map(|_| None),
                2 => take_varint(&mut rest)
                    .and_then(|length| usize::try_from(length).ok())
                    .and_then(|length| take(&mut rest, length).map(Some)),
                5 => take(&mut rest, 4).map(|_| None),
                // Groups are not part of this protocol: refused, so that they need no recursion.
                _ => None,
            };
            let Some(inner) = field.ok_or(BodyError::Malformed)? else { continue };
            let found = nested.iter().find(|n| u64::from(n.tag) == key >> 3);
            if let (Some(found), true) = (found, depth < DEPTH_MAX) {
                self.take_message(inner, found.inside, depth + 1)?;
            }
        }
        Ok(())
    }
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

/// Takes an unsigned varint of at most ten bytes.
fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    let mut input = *rest;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = input.split_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        input = after;
        if byte < 0x80 {
            *rest = input;
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::REPLY_FIELDS_MAX;
    use crate::messages::{DescribeTopicsReply, ListOffsetsRequest, PingRequest, ProduceRequest};

    #[test]
    fn a_body_of_empty_elements_is_refused_before_it_is_decoded() {
        let empty_batches = Bytes::from([0x1a, 0].repeat(REQUEST_FIELDS_MAX + 1));
        let refused = decode::<ProduceRequest>(&empty_batches).unwrap_err();
        assert_eq!(refused, BodyError::TooManyFields { limit: REQUEST_FIELDS_MAX });
        let as_many_as_allowed = empty_batches.slice(2..);
        assert_eq!(decode::<ProduceRequest>(&as_many_as_allowed).unwrap().batches.len(), REQUEST_FIELDS_MAX);
        // Fields that the message does not know count as well.
        assert!(decode::<PingRequest>(&empty_batches).is_err());
    }

    #[test]
    fn elements_inside_elements_are_counted() {
        let mut topic = vec![0x0a];
        let partitions = [0x3a, 0].repeat(REPLY_FIELDS_MAX);
        prost::encoding::encode_varint(partitions.len() as u64, &mut topic);
        topic.extend_from_slice(&partitions);
        let refused = decode::<DescribeTopicsReply>(&Bytes::from(topic)).unwrap_err();
        assert_eq!(refused, BodyError::TooManyFields { limit: REPLY_FIELDS_MAX });
    }

    #[test]
    fn bytes_that_are_not_protobuf_are_refused() {
        let group = Bytes::from_static(&[0x0a, 0, 0x0b]);
        assert_eq!(decode::<ListOffsetsRequest>(&group).unwrap_err(), BodyError::Malformed);
        let cut_short = Bytes::from_static(&[0x0a, 5, 1]);
        assert_eq!(decode::<ListOffsetsRequest>(&cut_short).unwrap_err(), BodyError::Malformed);
        let endless = Bytes::from_static(&[0xff; 32]);
        assert_eq!(decode::<ListOffsetsRequest>(&endless).unwrap_err(), BodyError::Malformed);
        let too_large = Bytes::from(vec![0; BODY_BYTES_MAX + 1]);
        assert_eq!(decode::<PingRequest>(&too_large).unwrap_err(), BodyError::TooLarge(BODY_BYTES_MAX + 1));
    }
}
