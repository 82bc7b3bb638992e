//! One connection: a task that reads, writes and looks into its outbox, whichever is possible.
//!
//! The reader never waits for anything: not for the writer, not for a partition, not for a lock that is held long. What
//! a peer can make the broker hold is bounded by its produce window, its requests in flight and its credits; whoever
//! goes beyond is told why and disconnected.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use highwater_broker_core::time::Mono;
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::{FrameError, Splitter};
use highwater_protocol::limits::{ERROR_MESSAGE_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX};
use highwater_protocol::messages::{Goodbye, ProduceCredit};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tracing::{debug, info, warn};

use super::Node;
use super::dispatch::{Fault, Session};
use super::outbox::{Contents, Outbox};
use super::output::{Kind, Output};
use super::subscriptions::send;
use crate::partition::worker::Timer;

/// Room for one read of a connection that has sent little yet.
const READ_BYTES_MIN: usize = 4 << 10;
/// Room for one read of a connection that sends a lot.
const READ_BYTES_MAX: usize = 256 << 10;
/// A frame up to this size gets room at once; the buffer of a larger one grows as it arrives.
const FRAME_BUFFER_BYTES: usize = 4 << 20;
/// Bytes of replies that may wait for a peer that does not read.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Frames that are taken before other connections get their turn: one connection's requests must not keep everybody
/// waiting, nor their replies pile up before anybody looks at how many there are.
const FRAMES_PER_TURN: usize = 16;
/// How long a connection that is closed has to take its last bytes.
const LINGER: Duration = Duration::from_secs(1);
/// Bytes that are still taken from a connection that is closed, so that its peer comes to read the reason.
const LINGER_BYTES: usize = 8 << 20;

/// How long a connection must be silent before a broker that drains closes it, and how long it may go on at the most.
const DRAIN_QUIET: Duration = Duration::from_millis(50);
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Serves one connection until either side closes it.
pub(crate) async fn serve<R, W>(node: Arc<Node>, reader: R, writer: W, peer: String)
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    node.metrics.connections.inc();
    node.metrics.connections_total.inc();
    let outbox = Arc::new(Outbox::new(node.next_connection_id()));
    let now = node.clock.mono();
    let mut connection = Connection {
        session: Session::new(Arc::clone(&node), Arc::clone(&outbox), &peer),
        input: BytesMut::new(),
        more: false,
        read_bytes: READ_BYTES_MIN,
        splitter: Splitter::with_limit(HANDSHAKE_FRAME_BYTES_MAX),
        output: Output::default(),
        contents: Contents::default(),
        heard: now,
        opened: now,
        draining_since: None,
        outbox,
        reader,
        writer,
        node,
        peer,
    };
    let end = connection.run().await;
    connection.outbox.close();
    connection.finish(end).await;
    connection.node.metrics.connections.dec();
}

struct Connection<R, W> {
    node: Arc<Node>,
    outbox: Arc<Outbox>,
    session: Session,
    reader: R,
    writer: W,
    peer: String,
    splitter: Splitter,
    input: BytesMut,
    /// There may be frames in `input` that were not taken yet; nothing is read meanwhile.
    more: bool,
    /// Room for the next read.
    read_bytes: usize,
    output: Output,
    contents: Contents,
    /// When something was last read.
    heard: Mono,
    opened: Mono,
    /// When this connection noticed that the broker drains.
    draining_since: Option<Mono>,
}

/// How a connection came to its end.
enum End {
    /// The peer closed it, or the network did.
    Gone(std::io::Result<()>),
    /// The broker closes it.
    Fault(Fault),
}

impl<R, W> Connection<R, W>
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    async fn run(&mut self) -> End {
        let mut timer = Timer::default();
        let draining = self.node.draining.clone();
        loop {
            if let Err(fault) = self.turn() {
                return End::Fault(fault);
            }
            let deadline = self.next_deadline();
            let clock = Arc::clone(&self.node.clock);
            tokio::select! {
                read = self.reader.read_buf(&mut self.input), if !self.more => match read {
                    Ok(0) => return End::Gone(Ok(())),
                    Ok(count) => {
                        if let Err(fault) = self.received(count) {
                            return End::Fault(fault);
                        }
                    }
                    Err(error) => return End::Gone(Err(error)),
                },
                written = self.output.write_some(&mut self.writer), if !self.output.is_empty() => match written {
                    Ok(written) => {
                        self.session.in_flight -= written.replies;
                        self.node.metrics.sent_bytes.inc_by(written.bytes as u64);
                    }
                    Err(error) => return End::Gone(Err(error)),
                },
                () = tokio::task::yield_now(), if self.more => {
                    if let Err(fault) = self.take_frames() {
                        return End::Fault(fault);
                    }
                }
                () = self.outbox.wait() => {}
                () = self.session.watch.changed() => {}
                () = timer.wait(Some(deadline), move || clock.mono()) => self.session.feeds.tick(),
                () = draining.cancelled(), if !draining.is_cancelled() => {}
            }
        }
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self) -> Result<(), Fault> {
        self.collect();
        self.session.feeds.pump(&mut self.output);
        // Pumping may have ended or asked something.
        self.collect();
        self.session.watch.pump(&self.node, &mut self.output);
        let raised = self.node.budget.lock().top_up(&mut self.session.window);
        if let (Some(limit), true) = (raised, self.session.is_ready()) {
            send(&mut self.output, ApiKey::PRODUCE_CREDIT, &ProduceCredit { limit }, Vec::new());
        }
        if self.output.reply_bytes() > REPLY_BYTES_MAX {
            return Err(Fault::new(
                ErrorCode::SlowReader,
                format!("{} bytes of replies were not read", self.output.reply_bytes()),
            ));
        }
        self.check_time()?;
        if self.node.draining.is_cancelled() {
            self.check_drained()?;
        }
        if self.more { Ok(()) } else { self.make_room() }
    }

    /// Takes what was left in the outbox.
    fn collect(&mut self) {
        self.outbox.take(&mut self.contents);
        if self.contents.is_empty() {
            return;
        }
        let contents = &mut self.contents;
        self.session.window.release(std::mem::take(&mut contents.released));
        let attached = contents.attached.len() as u32;
        let answered = std::mem::take(&mut contents.answered) - attached;
        self.output.push(contents.frames.split().freeze(), Kind::Replies(answered));
        for (head, mut batches) in contents.attached.drain(..) {
            let last = batches.pop();
            self.output.push(head, Kind::Replies(0));
            for batch in batches {
                self.output.push(batch, Kind::Other);
            }
            if let Some(last) = last {
                self.output.push(last, Kind::Replies(1));
            }
        }
        for event in contents.events.drain(..) {
            self.session.feeds.event(event, &mut self.output);
        }
    }

    /// Takes in what was read.
    fn received(&mut self, count: usize) -> Result<(), Fault> {
        self.heard = self.node.clock.mono();
        self.node.metrics.received_bytes.inc_by(count as u64);
        if count >= self.read_bytes / 2 {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
        self.take_frames()
    }

    /// Takes some of the frames in the input, and notes whether there may be more.
    fn take_frames(&mut self) -> Result<(), Fault> {
        for _ in 0..FRAMES_PER_TURN {
            self.more = false;
            let Some(frame) = self.splitter.next(&mut self.input).map_err(frame_fault)? else {
                return Ok(());
            };
            self.more = true;
            let is_long = matches!(
                frame.header.api,
                ApiKey::METADATA | ApiKey::DESCRIBE_TOPICS | ApiKey::DESCRIBE_CLUSTER
            );
            self.session.take(frame)?;
            if self.session.is_ready() {
                self.splitter = Splitter::default();
            }
            if is_long {
                break;
            }
        }
        Ok(())
    }

    /// Makes room for the next read. Batches keep the buffer that they were read into alive, so a new one is begun only
    /// when too little is left of the old one.
    fn make_room(&mut self) -> Result<(), Fault> {
        let missing = self.splitter.missing(&self.input).map_err(frame_fault)?;
        let room = self.input.capacity() - self.input.len();
        if room >= missing.min(FRAME_BUFFER_BYTES).max(self.read_bytes / 4) {
            return Ok(());
        }
        let ahead = if missing <= FRAME_BUFFER_BYTES && self.session.is_ready() && !self.input.is_empty() {
            missing.max(self.read_bytes)
        } else {
            self.splitter.read_ahead(&self.input, self.read_bytes).map_err(frame_fault)?
        };
        self.input.reserve(ahead);
        Ok(())
    }

    /// While the broker drains, what is on its way is still answered, if only with a refusal: a client that is answered
    /// need not wonder.
    fn check_drained(&mut self) -> Result<(), Fault> {
        let now = self.node.clock.mono();
        let since = *self.draining_since.get_or_insert(now);
        let quiet = now >= self.heard.max(since).after(DRAIN_QUIET) || now >= since.after(DRAIN_MAX);
        if quiet && self.session.in_flight == 0 && self.output.is_empty() {
            return Err(Fault::new(ErrorCode::ShuttingDown, "the broker is shutting down"));
        }
        Ok(())
    }

    fn check_time(&self) -> Result<(), Fault> {
        let now = self.node.clock.mono();
        let limits = &self.node.limits;
        if !self.session.is_ready() && now >= self.opened.after(limits.handshake_timeout) {
            return Err(Fault::new(
                ErrorCode::IdleTimeout,
                format!("no handshake within {}", humantime::format_duration(limits.handshake_timeout)),
            ));
        }
        if now >= self.heard.after(limits.idle_timeout) {
            return Err(Fault::new(
                ErrorCode::IdleTimeout,
                format!(
                    "nothing was heard for {}: send a ping to keep a connection open",
                    humantime::format_duration(limits.idle_timeout)
                ),
            ));
        }
        Ok(())
    }

    fn next_deadline(&self) -> Mono {
        let limits = &self.node.limits;
        let idle = self.heard.after(limits.idle_timeout);
        let handshake =
            if self.session.is_ready() { idle } else { self.opened.after(limits.handshake_timeout) };
        let feeds = self.session.feeds.next_deadline().unwrap_or(idle);
        // While something is under way its end wakes this task.
        let drained = match self.draining_since {
            Some(since) if self.session.in_flight == 0 && self.output.is_empty() => {
                self.heard.max(since).after(DRAIN_QUIET)
            }
            _ => idle,
        };
        idle.min(handshake).min(feeds).min(drained)
    }

    /// Says goodbye if there is something to say, and lets the peer read it.
    async fn finish(&mut self, end: End) {
        let fault = match end {
            End::Gone(Ok(())) => return debug!(peer = self.peer, "connection closed by its peer"),
            End::Gone(Err(error)) => return debug!(peer = self.peer, %error, "connection lost"),
            End::Fault(fault) => fault,
        };
        match fault.code {
            ErrorCode::ShuttingDown => debug!(peer = self.peer, "connection closed: shutting down"),
            ErrorCode::IdleTimeout => info!(peer = self.peer, reason = %fault, "connection closed"),
            _ => {
                self.node.metrics.connections_refused.inc();
                warn!(peer = self.peer, reason = %fault, "connection closed: its peer broke the protocol");
            }
        }
        say_goodbye(&mut self.output, &fault);
        let deadline = tokio::time::Instant::now() + LINGER;
        let said = tokio::time::timeout_at(deadline, async {
            while !self.output.is_empty() {
                self.output.write_some(&mut self.writer).await?;
            }
            self.writer.shutdown().await
        })
        .await;
        // A socket that is closed with unread bytes takes back what was not read on the other side.
        if matches!(said, Ok(Ok(()))) {
            let mut unread = BytesMut::with_capacity(READ_BYTES_MAX);
            let mut left = LINGER_BYTES;
            let _peer_closed_or_time_is_up = tokio::time::timeout_at(deadline, async {
                while let Ok(count @ 1..) = self.reader.read_buf(&mut unread).await
                    && count < left
                {
                    left -= count;
                    unread.clear();
                }
            })
            .await;
        }
    }
}

/// Adds the reason for which a connection is closed.
pub(crate) fn say_goodbye(output: &mut Output, fault: &Fault) {
    let mut message = fault.message.clone();
    message.truncate(message.floor_char_boundary(ERROR_MESSAGE_BYTES_MAX));
    send(output, ApiKey::GOODBYE, &Goodbye { code: fault.code.code(), message }, Vec::new());
}

fn frame_fault(error: FrameError) -> Fault {
    let code = match error {
        FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
        _ => ErrorCode::MalformedFrame,
    };
    Fault::new(code, error.to_string())
}
