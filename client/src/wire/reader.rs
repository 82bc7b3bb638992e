//! The task that reads a connection.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::BytesMut;
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_REPLY, FRAME_HEADER_LENGTH, Frame, FrameError, Splitter};
use highwater_protocol::limits::PUSH_BYTES;
use highwater_protocol::messages::{Goodbye, ProduceCredit};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::Instant;

use super::connection::Shared;
use super::spare::{self, BUFFER_MIN};
use crate::error::{Error, ErrorKind};

/// The largest room that is made for a frame before its bytes have come.
const CHUNK_MAX: usize = PUSH_BYTES + (64 << 10);
/// Less room than this is not worth a system call.
const READ_MIN: usize = 16 << 10;

/// Reads frames until the connection ends.
pub(super) async fn run(
    shared: Arc<Shared>,
    mut link: Box<dyn AsyncRead + Send + Unpin>,
    mut buffer: BytesMut,
) {
    let splitter = Splitter::default();
    let mut chunk = BUFFER_MIN;
    let silence_max = shared.keep_alive + shared.silence_max;
    // Armed anew only when it fires: a timer for every read would cost more than it is worth.
    let watchdog = tokio::time::sleep_until(Instant::now() + silence_max);
    tokio::pin!(watchdog);
    loop {
        if let Err(error) = take_frames(&shared, &splitter, &mut buffer, &mut chunk) {
            return shared.fail(error);
        }
        match room(&splitter, &buffer, chunk) {
            Ok(0) => {}
            Ok(room) => spare::make_room(&mut buffer, room),
            Err(error) => return shared.fail(malformed(&shared, error)),
        }
        tokio::select! {
            biased;
            () = shared.cancel.cancelled() => return,
            read = read(&mut link, &mut buffer, chunk) => match read {
                Ok(0) => {
                    return shared.fail(shared.error(ErrorKind::Connection, "the broker closed the connection"));
                }
                Ok(_) => shared.note_received(),
                Err(error) => {
                    let text = format!("connection lost: {error}");
                    return shared.fail(shared.error(ErrorKind::Connection, text).with_source(error));
                }
            },
            () = &mut watchdog => {
                let deadline = shared.received_at() + silence_max;
                if deadline <= Instant::now() {
                    let text = format!("nothing was heard from the broker for {silence_max:?}");
                    return shared.fail(shared.error(ErrorKind::Connection, text));
                }
                watchdog.as_mut().reset(deadline);
            }
        }
    }
}

/// Reads what there is. While nothing comes, the connection has no buffer unless it needs the one that it has.
async fn read(
    link: &mut (dyn AsyncRead + Send + Unpin),
    buffer: &mut BytesMut,
    chunk: usize,
) -> io::Result<usize> {
    poll_fn(|context| {
        if buffer.capacity() == 0 {
            spare::make_room(buffer, chunk);
        }
        // Nothing is lost when it is dropped: it keeps no state.
        let read = pin!(link.read_buf(buffer)).poll(context);
        if read.is_pending() {
            spare::rest(buffer);
        }
        read
    })
    .await
}

fn take_frames(
    shared: &Shared,
    splitter: &Splitter,
    buffer: &mut BytesMut,
    chunk: &mut usize,
) -> Result<(), Error> {
    while let Some(frame) = splitter.next(buffer).map_err(|error| malformed(shared, error))? {
        // Frames of one kind tend to have one size: room for exactly one more means that none is copied.
        *chunk = (FRAME_HEADER_LENGTH + frame.header.length as usize).clamp(BUFFER_MIN, CHUNK_MAX);
        handle(shared, frame)?;
    }
    Ok(())
}

/// How much to reserve before the next read; 0 when there is room enough.
fn room(splitter: &Splitter, buffer: &BytesMut, chunk: usize) -> Result<usize, FrameError> {
    let missing = splitter.missing(buffer)?;
    // Beyond a chunk, room follows what has come: announcing a large frame costs the receiver nothing.
    let wanted = if missing <= CHUNK_MAX { missing } else { missing.min(buffer.len().max(CHUNK_MAX)) };
    let free = buffer.capacity() - buffer.len();
    if free < wanted {
        return Ok(if buffer.len() < READ_MIN { wanted.max(chunk) } else { wanted });
    }
    // A frame that fits is finished in place, however little room is left behind it.
    let finishing = buffer.len() >= FRAME_HEADER_LENGTH;
    Ok(if free < READ_MIN && !finishing { chunk } else { 0 })
}

fn handle(shared: &Shared, frame: Frame) -> Result<(), Error> {
    if frame.header.flags & FLAG_REPLY != 0 {
        shared.resolve(frame);
        return Ok(());
    }
    let undecodable = |error: highwater_protocol::body::BodyError| {
        shared.error(ErrorKind::Protocol, format!("malformed message: {error}")).with_source(error)
    };
    match frame.header.api {
        ApiKey::PRODUCE_CREDIT => {
            let credit = frame.decode_body::<ProduceCredit>().map_err(undecodable)?;
            shared.raise_produce_limit(credit.limit);
        }
        ApiKey::GOODBYE => {
            let goodbye = frame.decode_body::<Goodbye>().map_err(undecodable)?;
            let text = format!("the broker closed the connection: {}", goodbye.message);
            let error = Error::from_code(ErrorCode::from_code(goodbye.code), text);
            return Err(error.with_address(&shared.address));
        }
        _ => shared.events.one_way(frame),
    }
    Ok(())
}

fn malformed(shared: &Shared, error: FrameError) -> Error {
    shared.error(ErrorKind::Protocol, format!("the stream cannot be followed: {error}")).with_source(error)
}
