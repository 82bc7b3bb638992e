//! Being told of changes: one connection of the client on which some broker pushes what changes in the topics used.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use highwater_protocol::api::ApiKey;
use highwater_protocol::frame::Frame;
use highwater_protocol::messages::{MetadataPush, MetadataRequest};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, Shared};
use crate::error::Error;
use crate::wire::{Connection, Events};

/// Silence after which the broker that pushes is probed, and given up after as much again: while it hangs, nobody tells of
/// new leaders.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// What the watched broker tells.
#[derive(Debug)]
struct Inbox {
    client: Weak<Shared>,
    closed: Notify,
}

impl Events for Inbox {
    fn one_way(&self, frame: Frame) {
        let Some(client) = self.client.upgrade() else { return };
        if frame.header.api != ApiKey::METADATA_PUSH {
            let api = frame.header.api.name();
            tracing::debug!(api, "a one-way message that a metadata watch does not expect");
            return;
        }
        match frame.decode_body::<MetadataPush>() {
            Ok(push) => client.metadata.take_push(push),
            Err(error) => tracing::warn!(%error, "a push of metadata does not decode; it is passed over"),
        }
    }

    fn closed(&self, _error: &Error) {
        self.closed.notify_one();
    }
}

/// Keeps some broker pushing until the client is gone.
pub(crate) async fn run(
    client: Weak<Shared>,
    mut topics: watch::Receiver<BTreeSet<String>>,
    end: CancellationToken,
) {
    tokio::select! {
        () = end.cancelled() => {}
        () = keep_watching(&client, &mut topics) => {}
    }
}

async fn keep_watching(client: &Weak<Shared>, topics: &mut watch::Receiver<BTreeSet<String>>) {
    let Some(mut backoff) = Client::upgrade(client).map(|client| client.backoff()) else { return };
    loop {
        let inbox = Arc::new(Inbox { client: Weak::clone(client), closed: Notify::new() });
        let begun = Instant::now();
        if let Err(error) = watch_once(client, topics, &inbox).await {
            tracing::debug!(%error, "changes of metadata are not told at the moment");
        }
        let Some(client) = Client::upgrade(client) else { return };
        if begun.elapsed() > KEEP_ALIVE {
            backoff.reset();
        }
        let pause = backoff.next(client.random());
        drop(client);
        tokio::time::sleep(pause).await;
    }
}

/// Watches over one connection until it ends.
async fn watch_once(
    client: &Weak<Shared>,
    topics: &mut watch::Receiver<BTreeSet<String>>,
    inbox: &Arc<Inbox>,
) -> Result<(), Error> {
    let Some(connection) = connect(client, inbox).await? else { return Ok(()) };
    loop {
        let names = topics.borrow_and_update().iter().cloned().collect();
        let request = MetadataRequest { names, topic_ids: Vec::new(), all_topics: false, watch: true };
        let Some(here) = Client::upgrade(client) else { return Ok(()) };
        let (reply, _) = connection.request(&request, here.deadline()).await?;
        here.metadata().update(reply);
        drop(here);
        tokio::select! {
            () = inbox.closed.notified() => return Ok(()),
            changed = topics.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

async fn connect(client: &Weak<Shared>, inbox: &Arc<Inbox>) -> Result<Option<Connection>, Error> {
    let Some(client) = Client::upgrade(client) else { return Ok(None) };
    // Whoever answers: the shared connection to it shows that it is there.
    let answering = client.connect_any(client.deadline()).await?;
    let events: Arc<dyn Events> = Arc::<Inbox>::clone(inbox);
    client.pool().connect_alert(answering.address(), events, KEEP_ALIVE).await.map(Some)
}
