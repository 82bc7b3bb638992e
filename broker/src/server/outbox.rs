//! What other tasks leave for a connection to write.
//!
//! Whoever leaves something never waits: replies are bounded by the requests under way, and everything else is a
//! latest-value cell or one entry a subscription.

use bytes::{Bytes, BytesMut};
use highwater_protocol::api::{ApiKey, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_REPLY, encode_frame_head};
use highwater_protocol::ids::{CorrelationId, SubscriptionId};
use highwater_protocol::limits::ERROR_MESSAGE_BYTES_MAX;
use highwater_protocol::messages::ErrorReply;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::ApiError;
use crate::partition::handle::Offer;

/// The mailbox of one connection.
#[derive(Debug)]
pub(crate) struct Outbox {
    id: u64,
    contents: Mutex<Contents>,
    notify: Notify,
}

/// What was left since the connection looked last.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Whole frames without attachments, end to end.
    pub(crate) frames: BytesMut,
    /// Frames with attachments.
    pub(crate) attached: Vec<(Bytes, Vec<Bytes>)>,
    /// How many requests those frames answer.
    pub(crate) answered: u32,
    /// Bytes of produced batches that are no longer held.
    pub(crate) released: u64,
    /// What partitions offer to subscriptions, and how reading offers went.
    pub(crate) events: Vec<SubscriptionEvent>,
    /// Whether the connection is gone, so that nothing is kept for it.
    pub(crate) closed: bool,
}

/// Something that happened to a subscription elsewhere.
#[derive(Debug)]
pub(crate) enum SubscriptionEvent {
    /// Its partition has an offer.
    Offered(SubscriptionId, Offer),
    /// Its offer was read on an I/O thread.
    Read(SubscriptionId, Box<crate::server::subscriptions::ReadOutcome>),
    /// Its partition has answered the request for it.
    Answered(Box<crate::partition::sessions::Answer>),
    /// Its partition ended it.
    Ended(Box<highwater_protocol::messages::Ended>),
}

impl Outbox {
    pub(crate) fn new(id: u64) -> Self {
        Self { id, contents: Mutex::default(), notify: Notify::new() }
    }

    /// Which connection this is; no other one of this broker's life has this number.
    pub(crate) const fn id(&self) -> u64 {
        self.id
    }

    /// Leaves the reply to a request.
    pub(crate) fn reply<R: Request>(&self, correlation_id: CorrelationId, reply: &R::Response) {
        self.put_reply(R::API, correlation_id, reply, Vec::new(), 0);
    }

    /// Leaves the reply to a request together with batches.
    pub(crate) fn reply_with<R: Request>(
        &self,
        correlation_id: CorrelationId,
        reply: &R::Response,
        attachment: Vec<Bytes>,
    ) {
        self.put_reply(R::API, correlation_id, reply, attachment, 0);
    }

    /// Leaves the reply to a produce request and gives the bytes back that it held.
    pub(crate) fn reply_released<R: Request>(
        &self,
        correlation_id: CorrelationId,
        reply: &R::Response,
        released: u64,
    ) {
        self.put_reply(R::API, correlation_id, reply, Vec::new(), released);
    }

    /// Leaves the reply to a request that failed as a whole.
    pub(crate) fn reply_error(&self, api: ApiKey, correlation_id: CorrelationId, error: &ApiError) {
        let mut contents = self.contents.lock();
        if !contents.closed {
            put_error(&mut contents, api, correlation_id, error);
            drop(contents);
            self.notify.notify_one();
        }
    }

    /// Leaves an event for the connection's subscriptions.
    pub(crate) fn event(&self, event: SubscriptionEvent) {
        let mut contents = self.contents.lock();
        if !contents.closed {
            contents.events.push(event);
            drop(contents);
            self.notify.notify_one();
        }
    }

    /// Waits until something was left. Cancel-safe.
    pub(crate) async fn wait(&self) {
        self.notify.notified().await;
    }

    /// Takes everything into `into`, which must be empty.
    pub(crate) fn take(&self, into: &mut Contents) {
        std::mem::swap(&mut *self.contents.lock(), into);
    }

    /// The connection is gone: what is left from here on is dropped.
    pub(crate) fn close(&self) {
        let mut contents = self.contents.lock();
        *contents = Contents { closed: true, ..Contents::default() };
    }

    fn put_reply(
        &self,
        api: ApiKey,
        correlation_id: CorrelationId,
        body: &impl prost::Message,
        attachment: Vec<Bytes>,
        released: u64,
    ) {
        let mut contents = self.contents.lock();
        if contents.closed {
            return;
        }
        contents.released += released;
        let length = attachment.iter().map(Bytes::len).sum();
        let start = contents.frames.len();
        if let Err(error) =
            encode_frame_head(api, FLAG_REPLY, correlation_id, body, length, &mut contents.frames)
        {
            contents.frames.truncate(start);
            let error = ApiError::new(
                ErrorCode::Internal,
                format!("the reply does not fit a frame: {error}; ask for less"),
            );
            put_error(&mut contents, api, correlation_id, &error);
        } else if length > 0 {
            let head = contents.frames.split_off(start).freeze();
            contents.attached.push((head, attachment));
            contents.answered += 1;
        } else {
            contents.answered += 1;
        }
        drop(contents);
        self.notify.notify_one();
    }
}

impl Contents {
    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.attached.is_empty() && self.released == 0 && self.events.is_empty()
    }
}

fn put_error(contents: &mut Contents, api: ApiKey, correlation_id: CorrelationId, error: &ApiError) {
    let mut message = error.message.clone();
    if message.len() > ERROR_MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(ERROR_MESSAGE_BYTES_MAX));
    }
    let body = ErrorReply { code: error.code.code(), message };
    // A bounded message always fits a frame.
    if encode_frame_head(api, FLAG_REPLY | FLAG_ERROR, correlation_id, &body, 0, &mut contents.frames).is_ok()
    {
        contents.answered += 1;
    }
}
