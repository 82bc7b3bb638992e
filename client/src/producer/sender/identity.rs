//! Who the producer is, if it is idempotent.

use std::sync::Arc;
use std::time::Instant;

use highwater_protocol::ids::ProducerId;
use highwater_protocol::messages::InitProducerRequest;

use super::super::accumulator::LaneIndex;
use super::super::now;
use super::super::sequencer::{Done, Identity};
use super::{Event, Sender, Sending};
use crate::client::Repeat;
use crate::error::{Error, ErrorKind};
use crate::retry::Backoff;

/// The identity, and how it is asked for.
#[derive(Debug, Default)]
pub(super) struct Identification {
    current: Option<Identity>,
    asking: bool,
    /// Made at the first failure.
    backoff: Option<Backoff>,
    not_before: Option<Instant>,
    last_error: Option<Error>,
}

impl Identification {
    /// When to ask again, after a failure.
    pub(super) const fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    /// Why there is no identity yet.
    pub(super) fn last_error(&self) -> Option<Error> {
        self.last_error.clone()
    }
}

impl Sender {
    /// Gives a partition the identity that it needs before it can send, or asks for it.
    ///
    /// A partition goes on under the epoch that it has until it needs another one: the next epoch of one partition
    /// fences nothing in the others.
    pub(super) fn identify(&mut self, index: LaneIndex, now: Instant) {
        let lane = &mut self.partitions[index].lane;
        let Some(old) = lane.wants_identity() else { return };
        if lane.in_flight_count() > 0 {
            return;
        }
        match self.identification.current.filter(|current| Some(*current) != old) {
            Some(identity) => lane.adopt(identity),
            None => self.ask_for_identity(now),
        }
    }

    fn ask_for_identity(&mut self, now: Instant) {
        let identification = &mut self.identification;
        if identification.asking || identification.not_before.is_some_and(|not_before| not_before > now) {
            return;
        }
        identification.asking = true;
        let request = InitProducerRequest {
            producer_id: identification.current.map(|identity| identity.id.get()),
            producer_epoch: identification.current.map_or(0, |identity| u32::from(identity.epoch)),
        };
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            let deadline = shared.client.deadline();
            // Asked twice, it gives an identity that nobody uses, or the same epoch again.
            let reply = shared.client.ask_any(&request, Repeat::Freely, deadline).await;
            Event::Identified(reply.and_then(|reply| {
                let epoch = u16::try_from(reply.producer_epoch).map_err(|_| {
                    let text = format!("a producer cannot have the epoch {}", reply.producer_epoch);
                    Error::new(ErrorKind::Protocol, text)
                })?;
                Ok(Identity { id: ProducerId(reply.producer_id), epoch })
            }))
        });
    }

    pub(super) fn take_identity(&mut self, result: Result<Identity, Error>) {
        let identification = &mut self.identification;
        identification.asking = false;
        match result {
            Ok(identity) => {
                identification.current = Some(identity);
                (identification.backoff, identification.not_before) = (None, None);
                identification.last_error = None;
            }
            Err(error) => {
                tracing::debug!(%error, "the producer has no identity yet");
                let client = &self.shared.client;
                let backoff = identification.backoff.get_or_insert_with(|| client.backoff());
                identification.not_before = Some(now() + backoff.next(client.random()));
                identification.last_error = Some(error.clone());
                if !error.is_retriable() {
                    self.fail_unidentified(&error);
                }
            }
        }
    }

    /// Ends what waits for an identity that will not come.
    fn fail_unidentified(&mut self, error: &Error) {
        let advice = "no identity for an idempotent producer (see ProducerBuilder::idempotent)";
        let error = error.clone().becoming(error.kind(), advice);
        let shared = Arc::clone(&self.shared);
        let mut accumulator = shared.accumulator.lock();
        for (index, partition) in self.partitions.iter_mut().enumerate() {
            if partition.lane.wants_identity().is_none() {
                continue;
            }
            let error = error.clone().with_partition(&partition.topic.name, partition.place.partition);
            partition.lane.fail_again(&error, &mut self.done);
            for batch in accumulator.drain(index) {
                self.done.push(Done { batch: Sending::unsent(batch), outcome: Err(error.clone()) });
            }
        }
    }
}
