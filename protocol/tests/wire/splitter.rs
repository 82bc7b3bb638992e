//! The splitter takes frames from a stream however it is cut, and nothing else.

use bytes::{Bytes, BytesMut};
use highwater_protocol::api::ApiKey;
use highwater_protocol::frame::{
    FLAG_ERROR, FLAG_ONE_WAY, FLAG_REPLY, FRAME_HEADER_LENGTH, Frame, FrameError, Splitter, encode_frame_head,
};
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use highwater_protocol::messages::{AuthenticateRequest, ErrorReply, PingRequest};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Debug, Clone)]
struct Given {
    api: u16,
    flags: u16,
    correlation_id: u64,
    body: AuthenticateRequest,
    attachment: Vec<u8>,
}

fn given() -> impl Strategy<Value = Given> {
    let flags = prop_oneof![Just(0), Just(FLAG_REPLY), Just(FLAG_REPLY | FLAG_ERROR), Just(FLAG_ONE_WAY)];
    let body = ("\\PC{0,9}", vec(any::<u8>(), 0..200))
        .prop_map(|(method, payload)| AuthenticateRequest { method, payload: Bytes::from(payload) });
    (any::<u16>(), flags, any::<u64>(), body, vec(any::<u8>(), 0..400)).prop_map(
        |(api, flags, correlation_id, body, attachment)| Given {
            api,
            flags,
            correlation_id,
            body,
            attachment,
        },
    )
}

fn encode(given: &Given, out: &mut BytesMut) {
    let correlation_id = CorrelationId(given.correlation_id);
    encode_frame_head(
        ApiKey(given.api),
        given.flags,
        correlation_id,
        &given.body,
        given.attachment.len(),
        out,
    )
    .unwrap();
    out.extend_from_slice(&given.attachment);
}

fn same(frame: &Frame, given: &Given) -> bool {
    frame.header.api == ApiKey(given.api)
        && frame.header.flags == given.flags
        && frame.header.correlation_id == CorrelationId(given.correlation_id)
        && frame.decode_body::<AuthenticateRequest>().unwrap() == given.body
        && frame.attachment == given.attachment
}

/// Feeds `stream` in pieces and takes out every frame as soon as it is whole.
fn split(stream: &[u8], mut piece: impl FnMut() -> usize) -> Vec<Frame> {
    let splitter = Splitter::default();
    let mut input = BytesMut::new();
    let mut frames = Vec::new();
    let mut rest = stream;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece().clamp(1, rest.len()));
        input.extend_from_slice(now);
        rest = later;
        loop {
            let missing = splitter.missing(&input).unwrap();
            let frame = splitter.next(&mut input).unwrap();
            assert_eq!(frame.is_some(), missing == 0, "missing is 0 exactly when a frame is there");
            let Some(frame) = frame else { break };
            frames.push(frame);
        }
    }
    assert!(input.is_empty());
    frames
}

proptest! {
    #[test]
    fn frames_come_out_however_the_stream_is_cut(all in vec(given(), 1..6), pieces in vec(1usize..90, 1..20)) {
        let mut stream = BytesMut::new();
        for one in &all {
            encode(one, &mut stream);
        }
        let mut pieces = pieces.into_iter().cycle();
        for frames in [split(&stream, || 1), split(&stream, || pieces.next().unwrap()), split(&stream, || usize::MAX)] {
            prop_assert_eq!(frames.len(), all.len());
            prop_assert!(frames.iter().zip(&all).all(|(frame, given)| same(frame, given)));
        }
    }

    #[test]
    fn a_changed_header_or_body_is_never_taken_for_a_frame(
        one in given(),
        at in any::<prop::sample::Index>(),
        change in 1u8..,
    ) {
        let mut stream = BytesMut::new();
        encode(&one, &mut stream);
        let covered = stream.len() - one.attachment.len();
        let at = at.index(covered);
        stream[at] ^= change;
        let taken = Splitter::default().next(&mut stream);
        // A longer length waits for more bytes; everything else is an error at once.
        prop_assert!(matches!(taken, Err(_) | Ok(None)), "byte {} of {}", at, covered);
    }

    #[test]
    fn noise_is_refused_at_its_fourth_byte(noise in vec(any::<u8>(), 4..64)) {
        prop_assume!(!noise.starts_with(b"HWF1"));
        let mut input = BytesMut::from(noise.as_slice());
        prop_assert!(matches!(Splitter::default().next(&mut input), Err(FrameError::Magic(_))));
    }
}

fn ping_with(at: usize, bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
    let mut out = BytesMut::new();
    encode_frame_head(ApiKey::PING, 0, CorrelationId(1), &PingRequest {}, 0, &mut out).unwrap();
    out[at..at + bytes.len()].copy_from_slice(bytes);
    Splitter::default().next(&mut out)
}

#[test]
fn lengths_beyond_the_limits_are_refused_by_the_header_alone() {
    let too_large = FRAME_BYTES_MAX as u32 + 1;
    assert!(matches!(ping_with(4, &too_large.to_le_bytes()), Err(FrameError::TooLarge { .. })));
    assert!(matches!(ping_with(4, &u32::MAX.to_le_bytes()), Err(FrameError::TooLarge { .. })));
    assert!(matches!(ping_with(20, &1u32.to_le_bytes()), Err(FrameError::BodyLength { .. })));
    let mut both = (FRAME_BYTES_MAX as u32).to_le_bytes().to_vec();
    both.extend_from_slice(&[0; 12]);
    both.extend_from_slice(&(BODY_BYTES_MAX as u32 + 1).to_le_bytes());
    assert!(matches!(ping_with(4, &both), Err(FrameError::BodyLength { .. })));
}

#[test]
fn a_peer_that_is_not_authenticated_gets_small_frames_only() {
    let splitter = Splitter::with_limit(HANDSHAKE_FRAME_BYTES_MAX);
    let mut out = BytesMut::new();
    let body =
        AuthenticateRequest { method: String::new(), payload: vec![0; HANDSHAKE_FRAME_BYTES_MAX].into() };
    encode_frame_head(ApiKey::AUTHENTICATE, 0, CorrelationId(1), &body, 0, &mut out).unwrap();
    out.truncate(FRAME_HEADER_LENGTH);
    assert!(matches!(splitter.next(&mut out), Err(FrameError::TooLarge { .. })));
}

#[test]
fn flags_without_meaning_are_refused() {
    for flags in [8u16, 0x8000, FLAG_ERROR, FLAG_REPLY | FLAG_ONE_WAY, FLAG_ERROR | FLAG_ONE_WAY] {
        assert_eq!(ping_with(10, &flags.to_le_bytes()), Err(FrameError::Flags(flags)));
    }
}

#[test]
fn memory_follows_what_has_arrived_not_what_is_announced() {
    let splitter = Splitter::default();
    let mut input = BytesMut::new();
    encode_frame_head(ApiKey::PRODUCE, 0, CorrelationId(1), &PingRequest {}, FRAME_BYTES_MAX, &mut input)
        .unwrap();
    assert_eq!(splitter.read_ahead(&input, 4096), Ok(4096), "28 bytes announce 20 MiB");
    input.resize(1 << 20, 0);
    assert_eq!(splitter.read_ahead(&input, 4096), Ok(1 << 20), "at most doubling");
    input.resize(FRAME_HEADER_LENGTH + FRAME_BYTES_MAX - 10, 0);
    assert_eq!(splitter.read_ahead(&input, 4), Ok(10), "at most what is missing");
}

#[test]
fn a_frame_beyond_the_limits_is_not_encoded() {
    let mut out = BytesMut::from(&b"before"[..]);
    let message = ErrorReply { code: 1, message: "x".repeat(BODY_BYTES_MAX) };
    let refused = encode_frame_head(ApiKey::PING, FLAG_REPLY, CorrelationId(1), &message, 0, &mut out);
    assert!(matches!(refused, Err(FrameError::BodyLength { .. })));
    let refused =
        encode_frame_head(ApiKey::PUSH, 0, CorrelationId(0), &PingRequest {}, FRAME_BYTES_MAX + 1, &mut out);
    assert!(matches!(refused, Err(FrameError::TooLarge { .. })));
    assert_eq!(&out[..], b"before");
}
