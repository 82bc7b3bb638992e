//! The bytes of records of groups.
//!
//! ```text
//! key:    version u8 (1) | kind u8 | group text | by kind: nothing, member text, or topic id (16 bytes) and partition u32
//! value:  version u8 (1) | fields in the order of the struct
//! text:   length varint | UTF-8          option: u8 0 or 1, then the value
//! list:   topics varint, for each: id (16 bytes) | partitions varint, for each: difference to the one before varint
//! ```
//!
//! Numbers are little-endian, ids big-endian, varints zigzag as in record batches. Bytes behind the fields are refused: a
//! later version says so in its first byte, and is written only once every broker reads it (hole H24).

use std::collections::BTreeMap;
use std::sync::Arc;

use highwater_protocol::ids::{LeaderEpoch, Offset, PartitionId, TopicId, TopicPartition};
use highwater_protocol::limits::FRAME_BYTES_MAX;
use highwater_protocol::varint::{put_varint, take_varint};

use super::assignor::Assignor;
use super::record::{Change, Current, Epochs, Position, Profile, Record, Subscription, Target};

const VERSION: u8 = 1;

const GROUP: u8 = 1;
const MEMBER: u8 = 2;
const TARGET: u8 = 3;
const CURRENT: u8 = 4;
const POSITION: u8 = 5;

/// Why bytes are not a record of groups.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They are of a later version.
    #[error("the {what} has version {found}, this broker knows {VERSION}: upgrade it")]
    Version {
        /// Key or value.
        what: &'static str,
        /// Its version.
        found: u8,
    },
    /// The key is of a kind that this version does not have.
    #[error("a key of kind {0} is unknown: upgrade the broker")]
    Kind(u8),
    /// The bytes end early, go on, or have a value that is not allowed.
    #[error("the {0} is damaged")]
    Damaged(&'static str),
}

impl Record {
    /// The key.
    #[must_use]
    pub fn key(&self) -> Vec<u8> {
        let kind = match self.change {
            Change::Group(_) => GROUP,
            Change::Member(..) => MEMBER,
            Change::Target(..) => TARGET,
            Change::Current(..) => CURRENT,
            Change::Position(..) => POSITION,
        };
        let mut out = vec![VERSION, kind];
        put_text(&mut out, &self.group);
        match &self.change {
            Change::Group(_) => {}
            Change::Member(member, _) | Change::Target(member, _) | Change::Current(member, _) => {
                put_text(&mut out, member);
            }
            Change::Position(partition, _) => {
                out.extend_from_slice(&partition.topic_id.to_bytes());
                out.extend_from_slice(&partition.partition.get().to_le_bytes());
            }
        }
        out
    }

    /// The value; `None` removes the key.
    #[must_use]
    pub fn value(&self) -> Option<Vec<u8>> {
        let mut out = vec![VERSION];
        match &self.change {
            Change::Group(value) => put_epochs(&mut out, value.as_ref()?),
            Change::Member(_, value) => put_profile(&mut out, value.as_ref()?),
            Change::Target(_, value) => {
                let target = value.as_ref()?;
                out.extend_from_slice(&target.generation.to_le_bytes());
                put_partitions(&mut out, target.partitions.iter().map(|partition| (partition, None)));
            }
            Change::Current(_, value) => {
                let current = value.as_ref()?;
                out.extend_from_slice(&current.generation.to_le_bytes());
                for owned in [&current.assigned, &current.revoking] {
                    put_partitions(
                        &mut out,
                        owned.iter().map(|(partition, since)| (partition, Some(*since))),
                    );
                }
            }
            Change::Position(_, value) => put_position(&mut out, value.as_ref()?),
        }
        Some(out)
    }

    /// The record of a key and a value.
    ///
    /// # Errors
    /// When they are damaged, or of a later version.
    pub fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self, RecordError> {
        let mut key = Reader::new(key, "key of a record of groups")?;
        let kind = key.byte()?;
        let group = key.text()?;
        let value = value.map(|value| Reader::new(value, "value of a record of groups")).transpose()?;
        let change = match kind {
            GROUP => Change::Group(value.map(Reader::epochs).transpose()?),
            MEMBER => Change::Member(key.text()?, value.map(Reader::profile).transpose()?.map(Arc::new)),
            TARGET => Change::Target(key.text()?, value.map(Reader::target).transpose()?),
            CURRENT => Change::Current(key.text()?, value.map(Reader::current).transpose()?),
            POSITION => {
                let topic_id = TopicId::from_bytes(key.array()?);
                let partition = PartitionId(key.u32()?);
                let partition = TopicPartition::new(topic_id, partition);
                Change::Position(partition, value.map(Reader::position).transpose()?)
            }
            other => return Err(RecordError::Kind(other)),
        };
        key.end()?;
        Ok(Self { group, change })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_varint(out, text.len() as i64);
    out.extend_from_slice(text.as_bytes());
}

fn put_option(out: &mut Vec<u8>, text: Option<&str>) {
    out.push(u8::from(text.is_some()));
    if let Some(text) = text {
        put_text(out, text);
    }
}

fn put_epochs(out: &mut Vec<u8>, epochs: &Epochs) {
    out.extend_from_slice(&epochs.generation.to_le_bytes());
    out.extend_from_slice(&epochs.assigned.to_le_bytes());
    out.push(epochs.assignor.code());
    out.push(u8::from(epochs.empty_since_ms.is_some()));
    if let Some(since) = epochs.empty_since_ms {
        out.extend_from_slice(&since.to_le_bytes());
    }
}

fn put_profile(out: &mut Vec<u8>, profile: &Profile) {
    put_option(out, profile.instance_id.as_deref());
    put_option(out, profile.rack.as_deref());
    put_text(out, &profile.client);
    put_text(out, &profile.host);
    out.extend_from_slice(&profile.session_timeout_ms.to_le_bytes());
    out.extend_from_slice(&profile.rebalance_timeout_ms.to_le_bytes());
    put_varint(out, profile.subscription.topics.len() as i64);
    for topic in &profile.subscription.topics {
        put_text(out, topic);
    }
    put_option(out, profile.subscription.pattern.as_deref());
    out.extend_from_slice(&profile.joined.to_le_bytes());
    out.extend_from_slice(&profile.subscribed.to_le_bytes());
    out.push(u8::from(profile.away));
}

fn put_position(out: &mut Vec<u8>, position: &Position) {
    out.extend_from_slice(&position.offset.get().to_le_bytes());
    out.push(u8::from(position.leader_epoch.is_some()));
    if let Some(epoch) = position.leader_epoch {
        out.extend_from_slice(&epoch.get().to_le_bytes());
    }
    put_text(out, &position.metadata);
    out.extend_from_slice(&position.commit_time_ms.to_le_bytes());
}

/// Sorted partitions by topic, each with a number if there is one.
fn put_partitions<'a>(
    out: &mut Vec<u8>,
    partitions: impl Iterator<Item = (&'a TopicPartition, Option<u32>)> + Clone,
) {
    let mut counts: Vec<(TopicId, i64)> = Vec::new();
    for (partition, _) in partitions.clone() {
        match counts.last_mut() {
            Some((topic, count)) if *topic == partition.topic_id => *count += 1,
            _ => counts.push((partition.topic_id, 1)),
        }
    }
    put_varint(out, counts.len() as i64);
    let mut counts = counts.into_iter();
    let (mut topic, mut before) = (None, 0);
    for (partition, number) in partitions {
        if topic != Some(partition.topic_id) {
            let count = counts.next().map_or(0, |(_, count)| count);
            out.extend_from_slice(&partition.topic_id.to_bytes());
            put_varint(out, count);
            (topic, before) = (Some(partition.topic_id), 0);
        }
        let number_of = i64::from(partition.partition.get());
        put_varint(out, number_of - before);
        before = number_of;
        if let Some(number) = number {
            put_varint(out, i64::from(number));
        }
    }
}

/// Takes fields from the front. What is damaged gives an error, and never more memory than its bytes.
struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8], what: &'static str) -> Result<Self, RecordError> {
        let mut reader = Self { rest: bytes, what };
        match reader.byte()? {
            VERSION => Ok(reader),
            0 => Err(reader.damaged()),
            found => Err(RecordError::Version { what, found }),
        }
    }

    fn damaged(&self) -> RecordError {
        RecordError::Damaged(self.what)
    }

    fn end(&self) -> Result<(), RecordError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.damaged()) }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.damaged())?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        self.take(N)?.try_into().map_err(|_| self.damaged())
    }

    fn byte(&mut self) -> Result<u8, RecordError> {
        self.array().map(|[byte]: [u8; 1]| byte)
    }

    fn flag(&mut self) -> Result<bool, RecordError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.damaged()),
        }
    }

    fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn i64(&mut self) -> Result<i64, RecordError> {
        Ok(i64::from_le_bytes(self.array()?))
    }

    fn varint(&mut self) -> Result<i64, RecordError> {
        take_varint(&mut self.rest).ok_or_else(|| self.damaged())
    }

    /// A number of things of which each takes at least a byte.
    fn count(&mut self) -> Result<usize, RecordError> {
        let count = usize::try_from(self.varint()?).map_err(|_| self.damaged())?;
        if count > self.rest.len().min(FRAME_BYTES_MAX) { Err(self.damaged()) } else { Ok(count) }
    }

    fn text(&mut self) -> Result<Arc<str>, RecordError> {
        let length = self.count()?;
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| self.damaged())?;
        Ok(Arc::from(text))
    }

    fn option(&mut self) -> Result<Option<Arc<str>>, RecordError> {
        if self.flag()? { self.text().map(Some) } else { Ok(None) }
    }

    fn epochs(mut self) -> Result<Epochs, RecordError> {
        let epochs = Epochs {
            generation: self.u32()?,
            assigned: self.u32()?,
            assignor: Assignor::from_code(self.byte()?).ok_or_else(|| self.damaged())?,
            empty_since_ms: if self.flag()? { Some(self.i64()?) } else { None },
        };
        self.end().map(|()| epochs)
    }

    fn profile(mut self) -> Result<Profile, RecordError> {
        let profile = Profile {
            instance_id: self.option()?,
            rack: self.option()?,
            client: self.text()?,
            host: self.text()?,
            session_timeout_ms: self.u32()?,
            rebalance_timeout_ms: self.u32()?,
            subscription: Subscription {
                topics: (0..self.count()?).map(|_| self.text()).collect::<Result<_, _>>()?,
                pattern: self.option()?,
            },
            joined: self.u32()?,
            subscribed: self.u32()?,
            away: self.flag()?,
        };
        self.end().map(|()| profile)
    }

    fn target(mut self) -> Result<Target, RecordError> {
        let generation = self.u32()?;
        let partitions = self.partitions(|_| Ok(()))?.into_iter().map(|(partition, ())| partition).collect();
        self.end().map(|()| Target { generation, partitions })
    }

    fn current(mut self) -> Result<Current, RecordError> {
        let generation = self.u32()?;
        let mut owned = || -> Result<BTreeMap<_, _>, _> {
            let since = |reader: &mut Self| u32::try_from(reader.varint()?).map_err(|_| reader.damaged());
            Ok(self.partitions(since)?.into_iter().collect())
        };
        let (assigned, revoking) = (owned()?, owned()?);
        self.end().map(|()| Current { generation, assigned, revoking })
    }

    fn position(mut self) -> Result<Position, RecordError> {
        let position = Position {
            offset: Offset(u64::from_le_bytes(self.array()?)),
            leader_epoch: if self.flag()? { Some(LeaderEpoch(self.u32()?)) } else { None },
            metadata: self.text()?,
            commit_time_ms: self.i64()?,
        };
        self.end().map(|()| position)
    }

    fn partitions<T>(
        &mut self,
        with: impl Fn(&mut Self) -> Result<T, RecordError>,
    ) -> Result<Vec<(TopicPartition, T)>, RecordError> {
        let mut out = Vec::new();
        for _ in 0..self.count()? {
            let topic_id = TopicId::from_bytes(self.array()?);
            let mut before = 0i64;
            for _ in 0..self.count()? {
                before = before.checked_add(self.varint()?).ok_or_else(|| self.damaged())?;
                let partition = PartitionId(u32::try_from(before).map_err(|_| self.damaged())?);
                let number = with(self)?;
                out.push((TopicPartition::new(topic_id, partition), number));
            }
        }
        Ok(out)
    }
}
