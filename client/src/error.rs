//! What can go wrong, and what the application can do about it.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use highwater_protocol::batch::RecordsError;
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::ids::{Offset, PartitionId};

/// A failed operation: what happened, to what, and what to do about it.
///
/// Cheap to clone: all records of a batch share one.
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    code: Option<ErrorCode>,
    group: Option<String>,
    topic: Option<String>,
    partition: Option<PartitionId>,
    address: Option<String>,
    corrupt_range: Option<Range<Offset>>,
    log_range: Option<Range<Offset>>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// What an error is about. Match on this, show the error itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No broker could be reached, or the connection was lost. Nothing was done, unless it was a change by [`Admin`](crate::Admin).
    Connection,
    /// The deadline passed. Produced records with this error were **not** appended.
    TimedOut,
    /// The batch was sent, but what became of it is not known: its records may or may not be in the log. An idempotent
    /// producer has asked again until the delivery timeout; one that is not has not sent it again, because it could
    /// then be there twice.
    OutcomeUnknown,
    /// There is no such topic.
    UnknownTopic,
    /// The topic has no such partition.
    UnknownPartition,
    /// A topic with this name exists.
    TopicExists,
    /// A name, number or setting is not allowed.
    InvalidArgument,
    /// The principal may not do this, or could not be authenticated.
    NotAuthorized,
    /// The broker does not know this request, version or format.
    Unsupported,
    /// The seed addresses belong to another cluster than the one asked for.
    WrongCluster,
    /// A record is larger than a batch may be.
    RecordTooLarge,
    /// The offset lies before the log start or after the log end. [`Error::log_range`] tells the range, if known.
    OutOfRange,
    /// The offset lies in a range that is corrupt on the replica. [`Error::corrupt_range`] tells which; the
    /// application may seek past it.
    CorruptRange,
    /// A batch failed its checksum or does not decode. It was not handed out.
    CorruptBatch,
    /// The partition's leader cannot serve now: it has just changed, is verifying its log, or has too few replicas.
    NotReady,
    /// The broker has more to do than it accepts.
    Busy,
    /// The broker's disk is full: it is read-only until space returns.
    DiskFull,
    /// The broker could not read or write its disk.
    Storage,
    /// Another one writes under the identity of this producer: the batch was not appended. A defect, or a copied process.
    Fenced,
    /// There is no such group: it has no members and no positions.
    UnknownGroup,
    /// The group has members, or one of them owns the partition.
    GroupNotEmpty,
    /// The consumer is not, or no longer, a member of the group, or the partition is not its own: another member may have
    /// it. Nothing was committed.
    NotMember,
    /// The request does not fit the present state of the cluster.
    Conflict,
    /// The client, producer or consumer was closed.
    Closed,
    /// The peer does not follow the protocol.
    Protocol,
    /// A defect of the broker. Its log says more.
    Internal,
}

impl ErrorKind {
    /// The name used in logs and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::TimedOut => "timed_out",
            Self::OutcomeUnknown => "outcome_unknown",
            Self::UnknownTopic => "unknown_topic",
            Self::UnknownPartition => "unknown_partition",
            Self::TopicExists => "topic_exists",
            Self::InvalidArgument => "invalid_argument",
            Self::NotAuthorized => "not_authorized",
            Self::Unsupported => "unsupported",
            Self::WrongCluster => "wrong_cluster",
            Self::RecordTooLarge => "record_too_large",
            Self::OutOfRange => "out_of_range",
            Self::CorruptRange => "corrupt_range",
            Self::CorruptBatch => "corrupt_batch",
            Self::NotReady => "not_ready",
            Self::Busy => "busy",
            Self::DiskFull => "disk_full",
            Self::Storage => "storage",
            Self::Fenced => "fenced",
            Self::UnknownGroup => "unknown_group",
            Self::GroupNotEmpty => "group_not_empty",
            Self::NotMember => "not_member",
            Self::Conflict => "conflict",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
            Self::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                kind,
                message: message.into(),
                code: None,
                group: None,
                topic: None,
                partition: None,
                address: None,
                corrupt_range: None,
                log_range: None,
                source: None,
            }),
        }
    }

    /// The error that a broker answered with.
    pub(crate) fn from_code(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::new(kind_of(code), message).change(|inner| inner.code = Some(code))
    }

    pub(crate) fn with_group(self, group: &str) -> Self {
        self.change(|inner| inner.group = Some(group.to_owned()))
    }

    pub(crate) fn with_topic(self, topic: &str) -> Self {
        self.change(|inner| inner.topic = Some(topic.to_owned()))
    }

    pub(crate) fn with_partition(self, topic: &str, partition: PartitionId) -> Self {
        self.change(|inner| {
            inner.topic = Some(topic.to_owned());
            inner.partition = Some(partition);
        })
    }

    pub(crate) fn with_address(self, address: &str) -> Self {
        self.change(|inner| inner.address = Some(address.to_owned()))
    }

    pub(crate) fn with_corrupt_range(self, range: Range<Offset>) -> Self {
        self.change(|inner| inner.corrupt_range = Some(range))
    }

    pub(crate) fn with_log_range(self, range: Range<Offset>) -> Self {
        self.change(|inner| inner.log_range = Some(range))
    }

    /// What this failure means for something larger: its context, code and text stay.
    pub(crate) fn becoming(self, kind: ErrorKind, meaning: &str) -> Self {
        self.change(|inner| {
            inner.kind = kind;
            inner.message = format!("{meaning}: {}", inner.message);
        })
    }

    pub(crate) fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.change(|inner| inner.source = Some(Arc::new(source)))
    }

    fn change(mut self, change: impl FnOnce(&mut Inner)) -> Self {
        change(Arc::make_mut(&mut self.inner));
        self
    }

    /// What it is about.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether the same call may succeed later without a change by the application.
    ///
    /// An unknown outcome is not retriable: repeating it could append the records twice. Only the application knows
    /// whether that matters.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        matches!(
            self.inner.kind,
            ErrorKind::Connection
                | ErrorKind::TimedOut
                | ErrorKind::NotReady
                | ErrorKind::Busy
                | ErrorKind::DiskFull
                | ErrorKind::Storage
        )
    }

    /// The code that a broker answered with, if one did.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        self.inner.code
    }

    /// The consumer group concerned.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        self.inner.group.as_deref()
    }

    /// The topic concerned.
    #[must_use]
    pub fn topic(&self) -> Option<&str> {
        self.inner.topic.as_deref()
    }

    /// The partition concerned.
    #[must_use]
    pub fn partition(&self) -> Option<PartitionId> {
        self.inner.partition
    }

    /// The address of the broker concerned.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.inner.address.as_deref()
    }

    /// For [`ErrorKind::CorruptRange`]: the offsets that cannot be read.
    #[must_use]
    pub fn corrupt_range(&self) -> Option<Range<Offset>> {
        self.inner.corrupt_range.clone()
    }

    /// For [`ErrorKind::OutOfRange`]: from the log start to the log end, when the broker told.
    #[must_use]
    pub fn log_range(&self) -> Option<Range<Offset>> {
        self.inner.log_range.clone()
    }

    /// What to do about it, for people. Empty when the message says it all.
    fn advice(&self) -> &'static str {
        match self.inner.kind {
            ErrorKind::Connection => "check that a broker runs there and the address is right",
            ErrorKind::OutcomeUnknown => "read the end of the partition before sending these records again",
            ErrorKind::UnknownTopic => "create it first, or check the name",
            ErrorKind::UnknownPartition => "describe the topic to see how many partitions it has",
            ErrorKind::OutOfRange => "seek to an offset that is there",
            ErrorKind::CorruptRange => "seek past the range to go on without these records",
            ErrorKind::UnknownGroup => "list the groups to see which there are",
            ErrorKind::GroupNotEmpty => "stop its members first",
            ErrorKind::DiskFull => "free space on the broker's disk, or lower the retention",
            ErrorKind::Busy | ErrorKind::NotReady => "try again later",
            _ => "",
        }
    }
}

/// Which kind a code of the protocol is.
fn kind_of(code: ErrorCode) -> ErrorKind {
    match code {
        ErrorCode::UnknownApi | ErrorCode::UnsupportedVersion | ErrorCode::UnsupportedFormat => {
            ErrorKind::Unsupported
        }
        ErrorCode::NotAuthenticated | ErrorCode::NotAuthorized => ErrorKind::NotAuthorized,
        ErrorCode::InvalidRequest
        | ErrorCode::InvalidTopicName
        | ErrorCode::InvalidConfig
        | ErrorCode::InvalidPartitions
        | ErrorCode::InvalidReplication
        | ErrorCode::InvalidGroup => ErrorKind::InvalidArgument,
        ErrorCode::WrongCluster => ErrorKind::WrongCluster,
        ErrorCode::UnknownTopic => ErrorKind::UnknownTopic,
        ErrorCode::TopicExists => ErrorKind::TopicExists,
        ErrorCode::UnknownPartition => ErrorKind::UnknownPartition,
        ErrorCode::NotLeader
        | ErrorCode::LeaderNotReady
        | ErrorCode::FencedEpoch
        | ErrorCode::UnknownEpoch
        | ErrorCode::OutOfOrder
        | ErrorCode::ReplicaSuspect
        | ErrorCode::NotEnoughReplicas
        | ErrorCode::LogReset
        | ErrorCode::NoController
        | ErrorCode::NotController
        | ErrorCode::StaleVersion
        | ErrorCode::IneligibleReplica
        | ErrorCode::NoCoordinator
        | ErrorCode::NotCoordinator
        | ErrorCode::CoordinatorLoading => ErrorKind::NotReady,
        ErrorCode::ProducerFenced | ErrorCode::SequenceGap | ErrorCode::UnknownProducer => ErrorKind::Fenced,
        ErrorCode::UnknownMember | ErrorCode::FencedGeneration | ErrorCode::NotAssigned => {
            ErrorKind::NotMember
        }
        ErrorCode::UnknownGroup => ErrorKind::UnknownGroup,
        ErrorCode::GroupNotEmpty => ErrorKind::GroupNotEmpty,
        ErrorCode::Conflict
        | ErrorCode::BrokerConflict
        | ErrorCode::StaleBrokerEpoch
        | ErrorCode::InstanceInUse
        | ErrorCode::GroupFull => ErrorKind::Conflict,
        ErrorCode::OffsetOutOfRange => ErrorKind::OutOfRange,
        ErrorCode::CorruptRange => ErrorKind::CorruptRange,
        ErrorCode::CorruptBatch => ErrorKind::CorruptBatch,
        ErrorCode::BatchTooLarge => ErrorKind::RecordTooLarge,
        ErrorCode::Busy | ErrorCode::TooManyConnections | ErrorCode::TooManySubscriptions => ErrorKind::Busy,
        ErrorCode::DiskFull => ErrorKind::DiskFull,
        ErrorCode::StorageError => ErrorKind::Storage,
        ErrorCode::TimedOut | ErrorCode::OutcomeUnknown => ErrorKind::OutcomeUnknown,
        ErrorCode::ShuttingDown | ErrorCode::IdleTimeout => ErrorKind::Connection,
        ErrorCode::MalformedFrame
        | ErrorCode::FrameTooLarge
        | ErrorCode::WindowExceeded
        | ErrorCode::TooManyInFlight
        | ErrorCode::SlowReader
        | ErrorCode::DuplicateSubscription
        | ErrorCode::UnknownSubscription => ErrorKind::Protocol,
        _ => ErrorKind::Internal,
    }
}

/// The producer of a batch wrote something that is not records.
impl From<RecordsError> for Error {
    fn from(error: RecordsError) -> Self {
        Self::new(ErrorKind::CorruptBatch, format!("a batch does not decode: {error}")).with_source(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.inner;
        match (&inner.group, &inner.topic) {
            (Some(group), Some(_)) => write!(f, "group {group}, ")?,
            (Some(group), None) => write!(f, "group {group}: ")?,
            (None, _) => {}
        }
        match (&inner.topic, inner.partition) {
            (Some(topic), Some(partition)) => write!(f, "topic {topic}, partition {partition}: ")?,
            (Some(topic), None) => write!(f, "topic {topic}: ")?,
            _ => {}
        }
        f.write_str(&inner.message)?;
        if let Some(code) = inner.code {
            write!(f, " ({code})")?;
        }
        if let Some(range) = &inner.corrupt_range {
            write!(f, " (corrupt: offsets {} to {}, the latter excluded)", range.start, range.end)?;
        }
        if let Some(range) = &inner.log_range {
            write!(f, " (the log has offsets {} to {}, the latter excluded)", range.start, range.end)?;
        }
        if let Some(address) = &inner.address {
            write!(f, " [broker at {address}]")?;
        }
        let advice = self.advice();
        if !advice.is_empty() {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Error({:?}: {self})", self.inner.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_where_and_what_to_do() {
        let error = Error::from_code(ErrorCode::DiskFull, "12 MiB are free, 64 MiB are kept in reserve")
            .with_partition("orders", PartitionId(3))
            .with_address("10.0.0.7:9470");
        assert_eq!(
            error.to_string(),
            "topic orders, partition 3: 12 MiB are free, 64 MiB are kept in reserve (disk_full) [broker at \
             10.0.0.7:9470]; free space on the broker's disk, or lower the retention"
        );
        assert!(error.is_retriable());
    }

    #[test]
    fn the_text_names_the_group() {
        let error =
            Error::from_code(ErrorCode::NotAssigned, "it belongs to another member").with_group("billing");
        assert_eq!(error.to_string(), "group billing: it belongs to another member (not_assigned)");
        let error = error.with_partition("orders", PartitionId(3));
        let text = "group billing, topic orders, partition 3: it belongs to another member (not_assigned)";
        assert_eq!((error.to_string().as_str(), error.group()), (text, Some("billing")));
    }

    #[test]
    fn an_unknown_outcome_is_never_retriable() {
        for code in [ErrorCode::TimedOut, ErrorCode::OutcomeUnknown] {
            let error = Error::from_code(code, "");
            assert_eq!(error.kind(), ErrorKind::OutcomeUnknown);
            assert!(!error.is_retriable());
        }
    }

    #[test]
    fn what_the_table_calls_a_failure_is_not_retriable_here() {
        use highwater_protocol::error_code::Duty;
        for code in ErrorCode::ALL.iter().filter(|code| code.duty() == Duty::Fail) {
            let error = Error::from_code(*code, "");
            assert!(!error.is_retriable() || error.kind() == ErrorKind::Busy, "{code} as {error:?}");
        }
    }
}
