//! What a group consumer hands out.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytes::Bytes;
use highwater_protocol::batch::Header;
use highwater_protocol::ids::{Offset, PartitionId};

use crate::record::{ConsumedBatch, ConsumedRecord};

/// A record that a member of a group was given. Key and value are slices of the batch that it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupRecord {
    /// Its topic.
    pub topic: Arc<str>,
    /// Its partition.
    pub partition: PartitionId,
    /// Its place there.
    pub offset: Offset,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value. Absent: its key was deleted.
    pub value: Option<Bytes>,
    /// Its headers, in the producer's order.
    pub headers: Vec<Header>,
}

impl GroupRecord {
    pub(super) fn new(topic: Arc<str>, record: ConsumedRecord) -> Self {
        let ConsumedRecord { partition, offset, timestamp, key, value, headers } = record;
        Self { topic, partition, offset, timestamp, key, value, headers }
    }
}

/// A batch that a member of a group was given, its checksums verified.
#[derive(Debug, Clone)]
pub struct GroupBatch {
    pub(super) topic: Arc<str>,
    pub(super) batch: ConsumedBatch,
}

impl GroupBatch {
    /// Its topic.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }
}

impl Deref for GroupBatch {
    type Target = ConsumedBatch;

    fn deref(&self) -> &ConsumedBatch {
        &self.batch
    }
}

/// A partition of a topic, by name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupPartition {
    /// The topic.
    pub topic: Arc<str>,
    /// The partition.
    pub partition: PartitionId,
}

impl fmt::Display for GroupPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.partition)
    }
}

/// A partition that the consumer reads from here on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AssignedPartition {
    /// Which one.
    pub partition: GroupPartition,
    /// Where reading starts.
    pub position: Offset,
    /// What was committed with the position; `None` when the group had none, and reading starts as the consumer's
    /// settings say.
    pub metadata: Option<String>,
}

/// What happens to a member of a group, in the order in which it concerns the application.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum GroupEvent {
    /// A record.
    Record(GroupRecord),
    /// These are read from here on. Told before any record of them: an application that keeps positions of its own
    /// [seeks](crate::GroupConsumer::seek) now.
    Assigned(Vec<AssignedPartition>),
    /// These go to another member: nothing of them comes any more. They are still the consumer's own until it is asked for
    /// the next event, so what belongs to them can be written out and committed; then what is finished is committed and
    /// they are given up.
    Revoked(Vec<GroupPartition>),
    /// These are another member's, perhaps for some time already: the coordinator did not hear of the consumer within the
    /// session time-out, or the application was away for longer than `max_poll_interval`. Nothing of them comes any
    /// more. What was not committed comes again, to another member.
    Lost {
        /// Which ones.
        partitions: Vec<GroupPartition>,
        /// Whose fault it was.
        cause: LossCause,
    },
    /// The position of a partition was not in its log, because retention has gone past it or the log was lost: reading goes
    /// on at the nearest offset that is there.
    Clamped {
        /// Which one.
        partition: GroupPartition,
        /// Where reading would have gone on.
        wanted: Offset,
        /// From the log start to the log end.
        log_range: Range<Offset>,
        /// Where it goes on.
        position: Offset,
    },
}

/// Why a member has lost its partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossCause {
    /// Its coordinator did not hear of it within the session time-out.
    SessionTimeout,
    /// The application did not ask for more within `max_poll_interval`.
    ApplicationAway,
    /// The consumer has ended.
    Ended,
}
