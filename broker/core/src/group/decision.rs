//! What is asked of a coordinator, and what it decides.

use std::sync::Arc;

use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{
    AlterGroupOffsetsReply, AlterGroupOffsetsRequest, CommitOffsetsReply, CommitOffsetsRequest,
    DescribedGroup, FetchOffsetsReply, FetchOffsetsRequest, GroupHeartbeatReply, GroupHeartbeatRequest,
    ListedGroup,
};

use super::draft::Draft;
use super::record::Record;
use crate::time::{Mono, Wall};

/// The time of a question: for time-outs, and for what is recorded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// For time-outs.
    pub mono: Mono,
    /// For what is recorded.
    pub wall: Wall,
}

/// What is asked about one group.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    /// A member joins, is alive, or leaves.
    Heartbeat {
        /// What it says.
        request: Box<GroupHeartbeatRequest>,
        /// Where it is connected from.
        host: Arc<str>,
    },
    /// Positions are committed.
    Commit(CommitOffsetsRequest),
    /// Positions are asked for.
    Fetch(FetchOffsetsRequest),
    /// All groups.
    List,
    /// One group. Its lag is for the shell to fill in.
    Describe(Arc<str>),
    /// Positions are set by an operator.
    Alter(AlterGroupOffsetsRequest),
    /// A group is removed.
    Delete(Arc<str>),
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To [`Request::Heartbeat`].
    Heartbeat(GroupHeartbeatReply),
    /// To [`Request::Commit`].
    Commit(CommitOffsetsReply),
    /// To [`Request::Fetch`].
    Fetch(FetchOffsetsReply),
    /// To [`Request::List`].
    List(Vec<ListedGroup>),
    /// To [`Request::Describe`]; without the ranges of logs, lag and coordinator.
    Describe(Box<DescribedGroup>),
    /// To [`Request::Alter`].
    Alter(AlterGroupOffsetsReply),
    /// To [`Request::Delete`], and of a [`super::GroupShard::tick`].
    Done,
}

/// Why a request is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The code on the wire.
    pub code: ErrorCode,
    /// What happened, and what to do.
    pub message: String,
}

impl Refusal {
    pub(super) const fn new(code: ErrorCode, message: String) -> Self {
        Self { code, message }
    }
}

/// What has happened in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member has joined, or joined again.
    Joined {
        /// The group.
        group: Arc<str>,
        /// The member.
        member: Arc<str>,
        /// Whose place it has taken, if it is a static member.
        instead_of: Option<Arc<str>>,
    },
    /// A member has left.
    Left {
        /// The group.
        group: Arc<str>,
        /// The member.
        member: Arc<str>,
    },
    /// A member was removed: it is not heard of in time, or does not give up what it has to.
    Fenced {
        /// The group.
        group: Arc<str>,
        /// The member.
        member: Arc<str>,
        /// Why.
        reason: FenceReason,
    },
    /// Partitions were assigned.
    Assigned {
        /// The group.
        group: Arc<str>,
        /// The generation of the assignment.
        generation: u32,
        /// How many members have another target.
        members: usize,
        /// How many partitions go from one member to another.
        moved: usize,
    },
}

/// Why a member was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FenceReason {
    /// No heartbeat within its session time-out.
    Session,
    /// It did not give up partitions within its rebalance time-out.
    Rebalance,
}

/// What follows from a request.
#[derive(Debug, Clone, PartialEq)]
#[must_use]
pub struct Decision {
    /// To append, in this order. In one batch, or in several if they do not fit: what every beginning of them adds up to
    /// is a state that the coordinator can go on from.
    pub records: Vec<Record>,
    /// To answer when everything up to the last record appended is committed.
    pub reply: Result<Reply, Refusal>,
    /// What people may want to know of, for logs and metrics, once it is committed.
    pub events: Vec<Event>,
    /// The group and the member that were heard of.
    pub(super) heard: Option<(Arc<str>, Arc<str>)>,
}

impl Decision {
    pub(super) const fn reply(reply: Reply) -> Self {
        Self { records: Vec::new(), reply: Ok(reply), events: Vec::new(), heard: None }
    }

    pub(super) fn with(mut self, draft: Draft) -> Self {
        self.records = draft.records;
        self.events = draft.events;
        self
    }

    pub(super) fn with_records(mut self, records: Vec<Record>) -> Self {
        self.records = records;
        self
    }

    pub(super) fn heard(mut self, group: &Arc<str>, member: &Arc<str>) -> Self {
        self.heard = Some((Arc::clone(group), Arc::clone(member)));
        self
    }
}

impl From<Refusal> for Decision {
    fn from(refusal: Refusal) -> Self {
        Self { records: Vec::new(), reply: Err(refusal), events: Vec::new(), heard: None }
    }
}
