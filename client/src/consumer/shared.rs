//! What the application's side of a consumer, its driver and its connections have in common.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use highwater_protocol::api::ApiKey;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::frame::Frame;
use highwater_protocol::ids::{Offset, PartitionId};
use highwater_protocol::messages::{Credit, Ended, Push};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::feed::{End, Feed, Grant, LinkId, Pushed, Topic};
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::wire::{Connection, Events};

/// What the consumer, its driver and its connections share.
pub(crate) struct Shared {
    pub(super) client: Client,
    state: Mutex<State>,
    /// The driver has something to do.
    pub(super) work: Notify,
    /// Ends the driver.
    pub(super) cancel: CancellationToken,
}

pub(super) struct State {
    pub(super) feed: Feed,
    /// The application, waiting.
    pub(super) waker: Option<Waker>,
    pub(super) links: HashMap<LinkId, Connection>,
    /// Subscriptions to end.
    pub(super) unwanted: Vec<(LinkId, u64)>,
    /// Credit that could not be sent at once.
    pub(super) grants: Vec<Grant>,
    /// Topics whose metadata is out of date.
    pub(super) outdated: BTreeSet<Arc<str>>,
    /// Where damaged batches came from: their leaders are asked to look at what they have.
    pub(super) damaged: Vec<(Topic, PartitionId, Offset)>,
}

impl Shared {
    pub(super) fn new(client: Client, feed: Feed) -> Self {
        let state = State {
            feed,
            waker: None,
            links: HashMap::new(),
            unwanted: Vec::new(),
            grants: Vec::new(),
            outdated: BTreeSet::new(),
            damaged: Vec::new(),
        };
        Self { client, state: Mutex::new(state), work: Notify::new(), cancel: CancellationToken::new() }
    }

    /// Looks at or changes the feed. The lock is held for no longer than that.
    pub(super) fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.lock())
    }

    /// Changes the feed and wakes the application if `change` says so.
    pub(super) fn tell(&self, change: impl FnOnce(&mut State) -> bool) {
        let waker = {
            let mut state = self.state.lock();
            let wake = change(&mut state);
            if wake { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Gives credit, at once if the connection has room for the message.
    pub(super) fn give(&self, grant: Grant) {
        let connection = self.state.lock().links.get(&grant.link).cloned();
        let Some(connection) = connection else { return };
        if !connection.try_one_way(&Credit { id: grant.id, limit: grant.limit }) {
            self.state.lock().grants.push(grant);
            self.work.notify_one();
        }
    }

    /// Ends a subscription that nobody wants any more, and subscribes what is to be subscribed.
    pub(super) fn unsubscribe(&self, old: Option<(LinkId, u64)>) {
        self.state.lock().unwanted.extend(old);
        self.work.notify_one();
    }

    pub(super) fn subscription_ended(&self, id: u64, end: End) {
        let random = self.client.random();
        self.tell(|state| {
            let Some((topic, partition)) = state.feed.place_of(id) else { return false };
            let end = End { error: end.error.with_partition(&topic.name, partition), ..end };
            if state.feed.ended(id, end, now(), random) {
                state.outdated.insert(topic.name);
            }
            true
        });
        self.work.notify_one();
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// What one connection tells.
#[derive(Debug)]
pub(super) struct Inbox {
    pub(super) shared: Arc<Shared>,
    pub(super) link: LinkId,
}

impl Events for Inbox {
    fn one_way(&self, frame: Frame) {
        let result = match frame.header.api {
            ApiKey::PUSH => frame.decode_body::<Push>().map(|push| self.pushed(&push, frame.attachment)),
            ApiKey::ENDED => frame.decode_body::<Ended>().map(|ended| self.ended(ended)),
            other => {
                tracing::debug!(api = other.name(), "a one-way message that a consumer does not expect");
                Ok(())
            }
        };
        if let Err(error) = result {
            self.close(format!("malformed message: {error}"));
        }
    }

    fn closed(&self, error: &Error) {
        tracing::debug!(%error, "a consumer's connection is lost");
        let random = self.shared.client.random();
        self.shared.with(|state| {
            state.links.remove(&self.link);
            // The leaders may be others by now.
            let lost = state.feed.link_lost(self.link, now(), random);
            state.outdated.extend(lost);
        });
        self.shared.work.notify_one();
    }
}

impl Inbox {
    fn pushed(&self, push: &Push, batches: Bytes) {
        let mut pushed = Pushed::Nothing;
        self.shared.tell(|state| {
            pushed = state.feed.push(push.id, Offset(push.high_watermark), batches);
            pushed == Pushed::News
        });
        if pushed == Pushed::BeyondCredit {
            self.close(String::from("the broker sends more than it has credit for"));
        }
    }

    fn close(&self, text: String) {
        let connection = self.shared.with(|state| state.links.get(&self.link).cloned());
        if let Some(connection) = connection {
            connection.close(Error::new(ErrorKind::Protocol, text).with_address(connection.address()));
        }
    }

    fn ended(&self, ended: Ended) {
        let code = ErrorCode::from_code(ended.code);
        let end = End {
            error: Error::from_code(code, ended.message),
            corrupt: ended.corrupt.map(|range| Offset(range.start)..Offset(range.end)),
            log_range: (ended.log_end > 0).then_some(Offset(ended.log_start)..Offset(ended.log_end)),
        };
        self.shared.subscription_ended(ended.id, end);
    }
}

/// The clock of the feed: tokio's, which tests can hold.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
