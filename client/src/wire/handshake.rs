//! The first exchange on every connection.

use std::time::Duration;

use bytes::BytesMut;
use highwater_protocol::api::{ApiKey, PROTOCOL_VERSION, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_REPLY, Frame, Splitter, encode_frame_head};
use highwater_protocol::ids::CorrelationId;
use highwater_protocol::limits::HANDSHAKE_FRAME_BYTES_MAX;
use highwater_protocol::messages::{ErrorReply, Goodbye, HandshakeReply, HandshakeRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::connection::Settings;
use super::link::Link;
use crate::error::{Error, ErrorKind};

/// Agrees with the broker on versions and limits. Bytes that followed the reply are left in the buffer returned.
pub(super) async fn shake_hands(
    link: &mut Link,
    address: &str,
    settings: &Settings,
) -> Result<(HandshakeReply, BytesMut), Error> {
    let timed_out = |_| Error::new(ErrorKind::Connection, "the broker did not answer the handshake in time");
    tokio::time::timeout(settings.handshake_timeout, exchange(link, settings))
        .await
        .map_err(timed_out)
        .and_then(|result| result)
        .map_err(|error| error.with_address(address))
}

async fn exchange(link: &mut Link, settings: &Settings) -> Result<(HandshakeReply, BytesMut), Error> {
    let request = HandshakeRequest {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        features: Vec::new(),
        cluster_id: settings.cluster_id.map(Into::into),
        client_name: settings.client_name.clone(),
        client_version: env!("CARGO_PKG_VERSION").to_owned(),
        namespace: String::new(),
        broker: settings.broker.clone(),
    };
    let mut bytes = BytesMut::new();
    encode_frame_head(HandshakeRequest::API, 0, CorrelationId(0), &request, 0, &mut bytes)
        .map_err(|error| Error::new(ErrorKind::InvalidArgument, format!("handshake: {error}")))?;
    let lost = |error: std::io::Error| {
        Error::new(ErrorKind::Connection, format!("connection lost in the handshake: {error}"))
            .with_source(error)
    };
    link.writer.write_all(&bytes).await.map_err(lost)?;
    link.writer.flush().await.map_err(lost)?;

    let splitter = Splitter::with_limit(HANDSHAKE_FRAME_BYTES_MAX);
    let mut buffer = BytesMut::with_capacity(4096);
    let frame = loop {
        match splitter.next(&mut buffer) {
            Ok(Some(frame)) => break frame,
            Ok(None) => {}
            Err(error) => {
                let text = format!("the peer does not speak this protocol: {error}");
                return Err(Error::new(ErrorKind::Protocol, text).with_source(error));
            }
        }
        buffer.reserve(4096);
        if link.reader.read_buf(&mut buffer).await.map_err(lost)? == 0 {
            let text = "the broker closed the connection in the handshake";
            return Err(Error::new(ErrorKind::Connection, text));
        }
    };
    let reply = read_reply(&frame)?;
    if reply.version != PROTOCOL_VERSION {
        let text = format!("the broker chose protocol version {}, not {PROTOCOL_VERSION}", reply.version);
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    if !reply.authentication_methods.is_empty() {
        let text = format!(
            "the broker asks for authentication ({}), which this client does not have",
            reply.authentication_methods.join(", ")
        );
        return Err(Error::new(ErrorKind::NotAuthorized, text));
    }
    Ok((reply, buffer))
}

fn read_reply(frame: &Frame) -> Result<HandshakeReply, Error> {
    let malformed = |error: highwater_protocol::body::BodyError| {
        Error::new(ErrorKind::Protocol, format!("malformed handshake reply: {error}")).with_source(error)
    };
    if frame.header.api == ApiKey::GOODBYE {
        let goodbye = frame.decode_body::<Goodbye>().map_err(malformed)?;
        return Err(Error::from_code(ErrorCode::from_code(goodbye.code), goodbye.message));
    }
    if frame.header.api != ApiKey::HANDSHAKE || frame.header.flags & FLAG_REPLY == 0 {
        let text = format!("the broker answered the handshake with {}", frame.header.api.name());
        return Err(Error::new(ErrorKind::Protocol, text));
    }
    if frame.header.flags & FLAG_ERROR != 0 {
        let reply = frame.decode_body::<ErrorReply>().map_err(malformed)?;
        return Err(Error::from_code(ErrorCode::from_code(reply.code), reply.message));
    }
    frame.decode_body::<HandshakeReply>().map_err(malformed)
}

/// How often to ping so that the broker does not take the client for gone.
pub(super) fn keep_alive(settings: &Settings, reply: &HandshakeReply) -> Duration {
    if reply.idle_timeout_ms == 0 {
        return settings.keep_alive;
    }
    settings.keep_alive.min(Duration::from_millis(reply.idle_timeout_ms / 3)).max(Duration::from_millis(10))
}
