//! Committing: what is finished is gathered, sent, and what came of it noted.

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{LeaderEpoch, Offset, TopicPartition};
use highwater_protocol::limits::COMMIT_OFFSETS_MAX;
use highwater_protocol::messages::{CommitOffset, CommitOffsetsReply, CommitOffsetsRequest};

use super::{Driver, Event, Input};
use crate::client::Client;
use crate::consumer::PartIndex;
use crate::error::{Error, ErrorKind};
use crate::group::coordinator::{Coordinator, may_pass};

/// A position to commit.
#[derive(Debug, Clone)]
pub(super) struct Position {
    at: TopicPartition,
    /// Of which tenure; none if it is not the member's own.
    index: Option<PartIndex>,
    offset: Offset,
    epoch: Option<LeaderEpoch>,
    metadata: String,
}

/// Positions on their way.
#[derive(Debug)]
pub(super) struct Committing {
    pub(super) group: Arc<str>,
    pub(super) member_id: Arc<str>,
    pub(super) generation: u32,
    pub(super) positions: Vec<Position>,
}

/// What came of them.
#[derive(Debug)]
pub(super) struct Settled {
    /// Each position, and why it is not committed if it is not. What is left out has no result.
    results: Vec<(Position, Result<(), Error>)>,
    /// Why some have no result.
    failure: Option<Error>,
}

impl Driver {
    /// Sends what is finished and not committed, and what the application has asked for.
    pub(super) fn commit(&mut self) {
        let mut positions: BTreeMap<TopicPartition, Position> = BTreeMap::new();
        for (at, tenure) in &self.tenures {
            let (offset, epoch) = tenure.finished.get();
            if tenure.committed != Some(offset) {
                let position =
                    Position { at: *at, index: Some(tenure.index), offset, epoch, metadata: String::new() };
                positions.insert(*at, position);
            }
        }
        for (explicit, done) in self.wanted.drain(..) {
            for wanted in explicit {
                let index = self.tenures.get(&wanted.at).map(|tenure| tenure.index);
                let (offset, metadata) = (wanted.offset, wanted.metadata);
                positions.insert(wanted.at, Position { at: wanted.at, index, offset, epoch: None, metadata });
            }
            self.waiting.push(done);
        }
        let positions: Vec<Position> = positions.into_values().collect();
        if positions.is_empty() {
            return self.settled(Settled { results: Vec::new(), failure: None });
        }
        let committing = Committing {
            group: Arc::clone(&self.session.group),
            member_id: Arc::clone(&self.member_id),
            generation: self.member.generation().unwrap_or_default(),
            positions,
        };
        let (client, coordinator) = (self.client.clone(), Arc::clone(&self.coordinator));
        self.tasks.spawn(async move { Event::Settled(committing.send(&client, &coordinator).await) });
    }

    /// Takes in what became of a commit, and tells those who wait for it.
    pub(super) fn settled(&mut self, settled: Settled) {
        let mut first = settled.failure.clone();
        for (position, result) in settled.results {
            let tenure = self.tenures.get_mut(&position.at);
            let tenure = tenure.filter(|tenure| Some(tenure.index) == position.index);
            match result {
                Ok(()) => {
                    if let Some(tenure) = tenure {
                        tenure.committed = Some(position.offset);
                    }
                }
                Err(error) => {
                    let error = match tenure {
                        Some(tenure) => error.with_partition(&tenure.topic.name, position.at.partition),
                        None => error,
                    };
                    let error = error.with_group(&self.session.group);
                    tracing::debug!(%error, offset = %position.offset, "a position is not committed");
                    first.get_or_insert(error);
                }
            }
        }
        for done in self.waiting.drain(..) {
            // Whoever wanted it may be gone.
            let _ = done.send(first.clone().map_or(Ok(()), Err));
        }
        let again = settled.failure.as_ref().is_some_and(may_pass);
        let random = self.client.random();
        self.inputs.push_back(if again { Input::CommitFailed(random) } else { Input::Committed });
    }
}

impl Committing {
    /// Sends the positions, as many at a time as a request may have.
    async fn send(self, client: &Client, coordinator: &Coordinator) -> Settled {
        let deadline = client.deadline();
        let mut settled = Settled { results: Vec::new(), failure: None };
        for positions in self.positions.chunks(COMMIT_OFFSETS_MAX) {
            let request = CommitOffsetsRequest {
                group: self.group.as_ref().to_owned(),
                member_id: self.member_id.as_ref().to_owned(),
                generation: self.generation,
                offsets: positions.iter().map(Position::to_wire).collect(),
            };
            let check = |reply: &CommitOffsetsReply| check_count(reply.results.len(), positions.len());
            match coordinator.ask(&request, deadline, check).await {
                Ok(reply) => {
                    let result = |(position, result): (&Position, _)| (position.clone(), outcome(result));
                    settled.results.extend(positions.iter().zip(reply.results).map(result));
                }
                Err(error) => {
                    settled.failure = Some(error);
                    break;
                }
            }
        }
        settled
    }
}

impl Position {
    fn to_wire(&self) -> CommitOffset {
        CommitOffset {
            topic_id: Some(self.at.topic_id.into()),
            partition: self.at.partition.get(),
            offset: self.offset.get(),
            leader_epoch: self.epoch.map(LeaderEpoch::get),
            metadata: self.metadata.clone(),
        }
    }
}

fn outcome(result: highwater_protocol::messages::PartitionResult) -> Result<(), Error> {
    let code = ErrorCode::from_code(result.error);
    if code.is_none() { Ok(()) } else { Err(Error::from_code(code, result.message)) }
}

/// A reply has one result for each position.
pub(in crate::group) fn check_count(came: usize, wanted: usize) -> Result<(), Error> {
    if came == wanted {
        return Ok(());
    }
    let text = format!("{wanted} positions were sent, {came} results came");
    Err(Error::new(ErrorKind::Protocol, text))
}
