//! What became of the requests.

use std::sync::Arc;

use highwater_protocol::error_code::{Duty, ErrorCode};
use highwater_protocol::messages::{ProduceReply, ProduceRequest};

use super::super::accumulator::LaneIndex;
use super::super::delivery::Acknowledged;
use super::super::links::PeerState;
use super::super::now;
use super::super::outcome::{verdict, verdict_on_all};
use super::super::sequencer::Verdict;
use super::Sender;
use crate::error::{Error, ErrorKind};
use crate::wire::Lost;

impl Sender {
    pub(super) fn take_reply(&mut self, tag: u64, reply: Result<highwater_protocol::frame::Frame, Lost>) {
        let Some(request) = self.requests.remove(&tag) else { return };
        let now = now();
        let random = self.shared.client.random();
        let address = Arc::clone(&self.peers[request.peer].address);
        let PeerState::Up(link) = &mut self.peers[request.peer].state else { return };
        link.in_flight -= 1;
        let verdicts: Vec<Verdict<Acknowledged>> = match reply {
            Ok(frame) => {
                let decoded = link.connection.read_reply::<ProduceRequest>(&frame).map(|(reply, _)| reply);
                self.verdicts(&request.entries, decoded, &address)
            }
            Err(lost) => {
                let verdict = |_| Verdict::Lost { error: lost.error.clone(), sent: lost.sent };
                request.entries.iter().map(verdict).collect()
            }
        };
        for ((index, number), verdict) in request.entries.into_iter().zip(verdicts) {
            match &verdict {
                Verdict::Acknowledged(_) => self.peers[request.peer].backoff.reset(),
                Verdict::Refused { error, .. } => self.note_refusal(index, error),
                _ => {}
            }
            self.partitions[index].lane.resolve(number, verdict, now, random, &mut self.done);
            if self.partitions[index].lane.has_again() {
                self.list(index);
            }
        }
    }

    pub(super) fn verdicts(
        &self,
        entries: &[(LaneIndex, u64)],
        reply: Result<ProduceReply, Error>,
        address: &str,
    ) -> Vec<Verdict<Acknowledged>> {
        let context = |index: LaneIndex| {
            let partition = &self.partitions[index];
            let (name, number) = (&partition.topic.name, partition.place.partition);
            move |error: Error| error.with_partition(name, number).with_address(address)
        };
        let error = match reply {
            Ok(reply) if reply.results.len() == entries.len() => {
                let of = |((index, _), result): (&(LaneIndex, u64), _)| {
                    verdict(result, self.partitions[*index].place.partition, context(*index))
                };
                return entries.iter().zip(reply.results).map(of).collect();
            }
            Ok(reply) => {
                let text =
                    format!("{} batches were sent, {} results came", entries.len(), reply.results.len());
                Error::new(ErrorKind::Protocol, text)
            }
            Err(error) => error,
        };
        entries.iter().map(|(index, _)| verdict_on_all(&error, context(*index))).collect()
    }

    /// A refusal may mean that the leader is elsewhere.
    pub(super) fn note_refusal(&mut self, index: LaneIndex, error: &Error) {
        let Some(code) = error.code() else { return };
        let partition = &mut self.partitions[index];
        if code.duty() == Duty::RefreshMetadata {
            partition.peer = None;
            self.shared.client.metadata().forget(&partition.topic.name);
        }
        if code != ErrorCode::OutOfOrder {
            tracing::debug!(topic = %partition.topic.name, partition = %partition.place.partition, %error, "batch refused");
        }
    }
}
