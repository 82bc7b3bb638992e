//! One connection to a broker: requests out, replies and one-way messages in.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use highwater_protocol::api::{OneWay, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FLAG_ERROR, FLAG_ONE_WAY, Frame, encode_frame_head};
use highwater_protocol::ids::{ClusterId, CorrelationId, NodeId};
use highwater_protocol::messages::{BrokerIdentity, ErrorReply, HandshakeReply, PingRequest};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::link::Link;
use super::{handshake, reader, writer};
use crate::error::{Error, ErrorKind};

/// How connections behave.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For the broker's logs and metrics.
    pub client_name: String,
    /// The cluster that must answer, if it matters.
    pub cluster_id: Option<ClusterId>,
    /// How long a link may take to be made.
    pub connect_timeout: Duration,
    /// How long the handshake may take.
    pub handshake_timeout: Duration,
    /// Silence, in either direction, after which the peer is pinged; less if the broker's idle time-out asks for it.
    pub keep_alive: Duration,
    /// Silence of the broker, beyond `keep_alive`, after which the connection is given up.
    pub silence_max: Duration,
    /// Who connects, if it is a broker of the cluster.
    pub broker: Option<BrokerIdentity>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            client_name: String::from("highwater-client"),
            cluster_id: None,
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            keep_alive: Duration::from_secs(5),
            silence_max: Duration::from_secs(10),
            broker: None,
        }
    }
}

/// Batches that follow a request's body, each a slice of its own.
pub type Attachment = Vec<Bytes>;

/// What a connection tells without being asked. Called on its reader task: must not block.
pub trait Events: Send + Sync + fmt::Debug {
    /// A one-way message: a push or the end of a subscription.
    fn one_way(&self, frame: Frame);
    /// The produce window was raised.
    fn window_raised(&self) {}
    /// The connection is over. Requests without a reply have been told.
    fn closed(&self, error: &Error);
}

/// For connections without subscriptions.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl Events for NoEvents {
    fn one_way(&self, frame: Frame) {
        tracing::debug!(api = frame.header.api.name(), "a one-way message that nobody waits for");
    }

    fn closed(&self, _error: &Error) {}
}

/// Why a request has no reply.
#[derive(Debug, Clone)]
pub struct Lost {
    /// Whether any byte of the request was handed to the link: if not, the broker cannot have seen it.
    pub sent: bool,
    /// Why the connection ended.
    pub error: Error,
}

/// Who gets replies by tag. Called on the connection's tasks: must not block.
pub trait ReplySink: Send + Sync {
    /// The reply to the request with this tag, or why there is none. Called exactly once for each request submitted.
    fn reply(&self, tag: u64, reply: Result<Frame, Lost>);
}

/// A connection to a broker, handshake done. Cheap to clone; it is closed when the last clone is dropped.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
    _guard: Arc<DropGuard>,
}

/// What the handle and the connection's two tasks share.
pub(super) struct Shared {
    pub(super) address: String,
    pub(super) handshake: HandshakeReply,
    pub(super) events: Arc<dyn Events>,
    pub(super) keep_alive: Duration,
    pub(super) silence_max: Duration,
    /// Ends both tasks.
    pub(super) cancel: CancellationToken,
    outgoing: mpsc::Sender<Outgoing>,
    in_flight: Arc<Semaphore>,
    state: Mutex<State>,
    next_correlation_id: AtomicU64,
    /// Bytes of batches that may have been produced in all.
    produce_limit: AtomicU64,
    started: Instant,
    /// Milliseconds after `started` at which bytes last came in.
    received_at: AtomicU64,
}

struct State {
    /// Why no more requests are taken.
    closed: Option<Error>,
    waiting: HashMap<u64, Waiting>,
}

struct Waiting {
    reply_to: ReplyTo,
    /// Set by the writer task, which alone resolves what is left at the end: so there is no moment in which bytes are
    /// out and this is not set.
    sent: bool,
    /// Held until the reply, also when nobody waits for it any more: the broker counts it too.
    _permit: Option<OwnedSemaphorePermit>,
}

/// A request that is on its way.
#[derive(Debug)]
pub struct Sent<R> {
    connection: Connection,
    receiver: oneshot::Receiver<Result<Frame, Lost>>,
    request: PhantomData<fn() -> R>,
}

impl<R: Request> Sent<R> {
    /// Waits for the reply and its attachment until `deadline`.
    ///
    /// Cancel safe in that the connection stays usable; whether the broker acted is not known then.
    ///
    /// # Errors
    /// The broker's error, `TimedOut`, or `Connection` when the connection ended first.
    pub async fn reply(self, deadline: Instant) -> Result<(R::Response, Bytes), Error> {
        match tokio::time::timeout_at(deadline, self.receiver).await {
            Ok(Ok(Ok(frame))) => self.connection.read_reply::<R>(&frame),
            Ok(Ok(Err(lost))) => Err(lost.error),
            Ok(Err(_)) => Err(self.connection.lost_error()),
            Err(_) => Err(self.connection.timed_out::<R>()),
        }
    }
}

enum ReplyTo {
    One(oneshot::Sender<Result<Frame, Lost>>),
    Sink(Arc<dyn ReplySink>, u64),
    Nobody,
}

/// A frame on its way out.
pub(super) struct Outgoing {
    /// 0: nobody waits for a reply.
    pub(super) correlation_id: u64,
    pub(super) head: Bytes,
    pub(super) attachment: Attachment,
}

impl Connection {
    /// Shakes hands over `link` and starts the connection's two tasks.
    ///
    /// # Errors
    /// When the peer refuses, does not answer in time or does not speak this protocol.
    pub async fn open(
        mut link: Link,
        address: &str,
        settings: &Settings,
        events: Arc<dyn Events>,
    ) -> Result<Self, Error> {
        let (reply, rest) = handshake::shake_hands(&mut link, address, settings).await?;
        let in_flight = reply.max_in_flight.clamp(1, 1 << 16) as usize;
        // Requests are bounded by `in_flight`; the rest is for one-way messages.
        let (outgoing, queue) = mpsc::channel(in_flight + 64);
        let cancel = CancellationToken::new();
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            keep_alive: handshake::keep_alive(settings, &reply),
            silence_max: settings.silence_max,
            produce_limit: AtomicU64::new(reply.produce_window),
            handshake: reply,
            events,
            cancel: cancel.clone(),
            outgoing,
            in_flight: Arc::new(Semaphore::new(in_flight)),
            state: Mutex::new(State { closed: None, waiting: HashMap::new() }),
            next_correlation_id: AtomicU64::new(1),
            started: Instant::now(),
            received_at: AtomicU64::new(0),
        });
        tokio::spawn(reader::run(Arc::clone(&shared), link.reader, rest));
        tokio::spawn(writer::run(Arc::clone(&shared), link.writer, queue));
        Ok(Self { shared, _guard: Arc::new(cancel.drop_guard()) })
    }

    /// Where the broker is.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// What the broker said in the handshake.
    #[must_use]
    pub fn handshake(&self) -> &HandshakeReply {
        &self.shared.handshake
    }

    /// Which broker it is.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        NodeId(self.shared.handshake.node_id)
    }

    /// Bytes of batches that may have been produced on this connection in all; one batch may go beyond.
    #[must_use]
    pub fn produce_limit(&self) -> u64 {
        self.shared.produce_limit.load(Ordering::Acquire)
    }

    /// Requests that may be unanswered at once.
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.shared.handshake.max_in_flight.clamp(1, 1 << 16) as usize
    }

    /// Why the connection ended, if it has.
    #[must_use]
    pub fn closed(&self) -> Option<Error> {
        self.shared.state.lock().closed.clone()
    }

    /// Ends the connection. What was not yet written is not written any more.
    pub fn close(&self, reason: Error) {
        self.shared.fail(reason);
    }

    /// Sends a request and waits for its reply and attachment until `deadline`.
    ///
    /// Cancel safe in that the connection stays usable; whether the broker acted is not known then.
    ///
    /// # Errors
    /// The broker's error, `TimedOut`, or `Connection` when the connection ended first.
    pub async fn request<R: Request>(
        &self,
        request: &R,
        deadline: Instant,
    ) -> Result<(R::Response, Bytes), Error> {
        self.send(request, deadline).await?.reply(deadline).await
    }

    /// Queues a request, and leaves the reply for later: requests go out in the order in which these calls end.
    ///
    /// Cancel safe: cancelled, the request was not sent.
    ///
    /// # Errors
    /// `TimedOut` when too many requests are unanswered until `deadline`, or `Connection` when the connection has ended.
    pub async fn send<R: Request>(&self, request: &R, deadline: Instant) -> Result<Sent<R>, Error> {
        let queued = async {
            let permit =
                Arc::clone(&self.shared.in_flight).acquire_owned().await.map_err(|_| self.lost_error())?;
            let (sender, receiver) = oneshot::channel();
            let (id, outgoing) = self.encode_request(request, Vec::new())?;
            let slot = self.shared.outgoing.reserve().await.map_err(|_| self.lost_error())?;
            self.shared.register(id, ReplyTo::One(sender), Some(permit)).map_err(|lost| lost.error)?;
            slot.send(outgoing);
            Ok(Sent { connection: self.clone(), receiver, request: PhantomData })
        };
        tokio::time::timeout_at(deadline, queued).await.map_err(|_| self.timed_out::<R>())?
    }

    fn timed_out<R: Request>(&self) -> Error {
        let text = format!("the broker did not answer {} in time", R::API.name());
        Error::new(ErrorKind::TimedOut, text).with_address(self.address())
    }

    /// Decodes the reply to a request that was submitted.
    ///
    /// # Errors
    /// The broker's error, or `Protocol` when the reply does not decode.
    pub fn read_reply<R: Request>(&self, frame: &Frame) -> Result<(R::Response, Bytes), Error>
    where
        R::Response: highwater_protocol::body::Body,
    {
        let malformed = |error: highwater_protocol::body::BodyError| {
            let text = format!("malformed reply to {}: {error}", R::API.name());
            Error::new(ErrorKind::Protocol, text).with_source(error).with_address(self.address())
        };
        if frame.header.api != R::API {
            let text = format!("{} was answered with {}", R::API.name(), frame.header.api.name());
            return Err(Error::new(ErrorKind::Protocol, text).with_address(self.address()));
        }
        if frame.header.flags & FLAG_ERROR != 0 {
            let reply = frame.decode_body::<ErrorReply>().map_err(malformed)?;
            let error = Error::from_code(ErrorCode::from_code(reply.code), reply.message);
            return Err(error.with_address(self.address()));
        }
        Ok((frame.decode_body::<R::Response>().map_err(malformed)?, frame.attachment.clone()))
    }

    /// Sends a request whose reply goes to `sink` with `tag`. Does not wait, and the caller keeps the number of
    /// requests in flight within [`Connection::max_in_flight`].
    ///
    /// # Errors
    /// When the connection is over or its queue is full: nothing was sent, and the sink will not be called.
    pub fn submit<R: Request>(
        &self,
        request: &R,
        attachment: Attachment,
        sink: Arc<dyn ReplySink>,
        tag: u64,
    ) -> Result<(), Error> {
        let (id, outgoing) = self.encode_request(request, attachment)?;
        let slot = self.shared.outgoing.try_reserve().map_err(|_| self.lost_error())?;
        self.shared.register(id, ReplyTo::Sink(sink, tag), None).map_err(|lost| lost.error)?;
        slot.send(outgoing);
        Ok(())
    }

    /// Sends a message that is not answered, if there is room in the queue. Returns whether it was taken; on a
    /// connection that has ended it is dropped, which counts as taken.
    #[must_use]
    pub fn try_one_way<M: OneWay>(&self, message: &M) -> bool {
        let slot = match self.shared.outgoing.try_reserve() {
            Ok(slot) => slot,
            Err(mpsc::error::TrySendError::Full(())) => return false,
            Err(mpsc::error::TrySendError::Closed(())) => return true,
        };
        let mut head = BytesMut::new();
        let encoded = encode_frame_head(M::API, FLAG_ONE_WAY, CorrelationId(0), message, 0, &mut head);
        if encoded.is_ok() {
            slot.send(Outgoing { correlation_id: 0, head: head.freeze(), attachment: Vec::new() });
        }
        true
    }

    fn encode_request<R: Request>(
        &self,
        request: &R,
        attachment: Attachment,
    ) -> Result<(u64, Outgoing), Error> {
        let id = self.shared.next_correlation_id.fetch_add(1, Ordering::Relaxed);
        let length = attachment.iter().map(Bytes::len).sum();
        let mut head = BytesMut::new();
        encode_frame_head(R::API, 0, CorrelationId(id), request, length, &mut head).map_err(too_large)?;
        Ok((id, Outgoing { correlation_id: id, head: head.freeze(), attachment }))
    }

    fn lost_error(&self) -> Error {
        self.closed().unwrap_or_else(|| self.shared.error(ErrorKind::Connection, "the connection is closing"))
    }
}

fn too_large(error: highwater_protocol::frame::FrameError) -> Error {
    Error::new(ErrorKind::InvalidArgument, format!("the request is too large: {error}")).with_source(error)
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("address", &self.shared.address).finish_non_exhaustive()
    }
}

impl Shared {
    /// Names the address in an error about this connection.
    pub(super) fn error(&self, kind: ErrorKind, message: impl Into<String>) -> Error {
        Error::new(kind, message).with_address(&self.address)
    }

    /// Ends the connection, for the first reason given. The writer task resolves what is still waiting.
    pub(super) fn fail(&self, error: Error) {
        self.state.lock().closed.get_or_insert(error);
        self.in_flight.close();
        self.cancel.cancel();
    }

    /// Tells everyone who still waits that there will be no reply. Only the writer task calls this, at its end.
    pub(super) fn resolve_all(&self) {
        let (error, waiting) = {
            let mut state = self.state.lock();
            let default = || self.error(ErrorKind::Connection, "the connection was closed by this client");
            let error = state.closed.get_or_insert_with(default).clone();
            (error, std::mem::take(&mut state.waiting))
        };
        self.in_flight.close();
        for entry in waiting.into_values() {
            entry.reply_to.resolve(Err(Lost { sent: entry.sent, error: error.clone() }));
        }
        self.events.closed(&error);
    }

    /// Hands a reply to whoever waits for it.
    pub(super) fn resolve(&self, frame: Frame) {
        let id = frame.header.correlation_id.get();
        let entry = self.state.lock().waiting.remove(&id);
        match entry {
            Some(entry) => entry.reply_to.resolve(Ok(frame)),
            None => tracing::debug!(address = %self.address, id, "a reply that nobody waits for"),
        }
    }

    /// Notes that bytes of these requests are out.
    pub(super) fn mark_sent(&self, ids: &[u64]) {
        let mut state = self.state.lock();
        for id in ids {
            if let Some(entry) = state.waiting.get_mut(id) {
                entry.sent = true;
            }
        }
    }

    /// The frame of a ping whose reply only shows that the broker is there.
    pub(super) fn ping(&self) -> Option<Outgoing> {
        let permit = Arc::clone(&self.in_flight).try_acquire_owned().ok()?;
        let id = self.next_correlation_id.fetch_add(1, Ordering::Relaxed);
        let mut head = BytesMut::new();
        encode_frame_head(PingRequest::API, 0, CorrelationId(id), &PingRequest {}, 0, &mut head).ok()?;
        self.register(id, ReplyTo::Nobody, Some(permit)).ok()?;
        Some(Outgoing { correlation_id: id, head: head.freeze(), attachment: Vec::new() })
    }

    pub(super) fn raise_produce_limit(&self, limit: u64) {
        self.produce_limit.fetch_max(limit, Ordering::AcqRel);
        self.events.window_raised();
    }

    pub(super) fn note_received(&self) {
        self.received_at.store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// When bytes last came in.
    pub(super) fn received_at(&self) -> Instant {
        self.started + Duration::from_millis(self.received_at.load(Ordering::Relaxed))
    }

    fn register(&self, id: u64, reply_to: ReplyTo, permit: Option<OwnedSemaphorePermit>) -> Result<(), Lost> {
        let mut state = self.state.lock();
        if let Some(error) = &state.closed {
            return Err(Lost { sent: false, error: error.clone() });
        }
        state.waiting.insert(id, Waiting { reply_to, sent: false, _permit: permit });
        Ok(())
    }
}

impl ReplyTo {
    fn resolve(self, reply: Result<Frame, Lost>) {
        match self {
            // The receiver may have given up: then nobody misses the reply.
            Self::One(sender) => drop(sender.send(reply)),
            Self::Sink(sink, tag) => sink.reply(tag, reply),
            Self::Nobody => {}
        }
    }
}
