//! Positions that nobody has needed for too long, and groups that have neither members nor positions.
//!
//! Topics that are not in the image say nothing: their positions go by age like all others, so that a broker that knows
//! few topics removes nothing for that (hole H12).

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use highwater_protocol::ids::TopicId;

use super::decision::Now;
use super::record::{Change, Record};
use super::timers::Timer;
use super::{Group, GroupShard};

/// Groups that one step of the search looks at.
const EXPIRY_GROUPS: usize = 256;

/// Positions that one step removes, at least, before it ends.
const EXPIRY_RECORDS: usize = 10_000;

impl GroupShard {
    /// Removes what has expired in some groups, and sets the timer for the next step.
    pub(super) fn expire_some(&mut self, now: Now) -> Vec<Record> {
        let from = self.expiry_after.take().map_or(Bound::Unbounded, Bound::Excluded);
        let mut records = Vec::new();
        let mut last = None;
        for (name, group) in self.groups.range((from, Bound::Unbounded)).take(EXPIRY_GROUPS) {
            self.expire_group(now, name, group, &mut records);
            last = Some(Arc::clone(name));
            if records.len() >= EXPIRY_RECORDS {
                break;
            }
        }
        let more = last.filter(|last| self.groups.last_key_value().is_some_and(|(end, _)| end != last));
        let next = if more.is_some() { now.mono } else { now.mono.after(self.config.expiry_interval) };
        self.expiry_after = more;
        self.timers.set(next, Timer::Expiry);
        records
    }

    fn expire_group(&self, now: Now, name: &Arc<str>, group: &Group, records: &mut Vec<Record>) {
        let retention = i64::try_from(self.config.offsets_retention.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.wall.as_millis().saturating_sub(retention);
        let membership = &group.membership;
        let empty_since = membership.epochs.and_then(|epochs| epochs.empty_since_ms);
        if empty_since.is_some_and(|since| since > oldest) {
            return;
        }
        let wanted: BTreeSet<TopicId> = membership
            .members()
            .flat_map(|(_, profile, _)| self.topics.matching(&profile.subscription))
            .collect();
        let before = records.len();
        for (partition, position) in group.offsets.iter() {
            let unwanted = !wanted.contains(&partition.topic_id) && membership.owner(*partition).is_none();
            if unwanted && position.commit_time_ms <= oldest {
                records.push(Record::new(name, Change::Position(*partition, None)));
            }
        }
        let nothing_left = records.len() - before == group.offsets.len() && membership.member_count() == 0;
        if nothing_left && membership.epochs.is_some() {
            records.push(Record::new(name, Change::Group(None)));
        }
    }
}
