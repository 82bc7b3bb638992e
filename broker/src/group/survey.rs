//! What the metrics tell about groups: looked at from time to time, because how far behind they are is known to other brokers.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use highwater_broker_core::group::{Reply, Request};
use highwater_protocol::error_code::ErrorCode;
use highwater_protocol::messages::{DescribedGroup, ListedGroup};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::Groups;

/// How often groups are looked at.
const PERIOD: Duration = Duration::from_secs(10);
/// Groups that have metrics of their own, those with members first. The others are counted, and described when somebody asks.
const GROUPS_SHOWN_MAX: usize = 100;
/// Topics of one group that have metrics of their own, those that are furthest behind first.
const TOPICS_SHOWN_MAX: usize = 50;

/// Gauges about groups, as they were when they were looked at last. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupMetrics(Arc<Mutex<Seen>>);

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    groups: u64,
    members: u64,
    shown: Vec<Shown>,
}

/// A group with metrics of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Shown {
    group: String,
    members: u64,
    /// By topic; absent where a leader did not say.
    lag: Vec<(String, u64)>,
}

/// Looks at the groups that this broker coordinates until `stop` is cancelled.
pub(super) async fn run(groups: Arc<Groups>, metrics: GroupMetrics, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let looking = async {
        loop {
            ticks.tick().await;
            let seen = look(&groups).await;
            *metrics.0.lock() = seen;
        }
    };
    let _stopped = stop.run_until_cancelled(looking).await;
}

async fn look(groups: &Groups) -> Seen {
    let mut listed: Vec<ListedGroup> = Vec::new();
    for (_, answer) in groups.ask_all(|| Request::List).await {
        if let Ok(Reply::List(some)) = answer {
            listed.extend(some);
        }
    }
    let members = listed.iter().map(|group| u64::from(group.members)).sum();
    let count = listed.len() as u64;
    listed.sort_unstable_by(|a, b| (a.members == 0, &a.group).cmp(&(b.members == 0, &b.group)));
    listed.truncate(GROUPS_SHOWN_MAX);
    let mut described = Vec::with_capacity(listed.len());
    for ListedGroup { group, .. } in listed {
        let request = Request::Describe(group.as_str().into());
        if let Ok(Reply::Describe(found)) = groups.ask(&group, request, group.len()).await {
            described.push(*found);
        }
    }
    groups.ends().fill_in(&mut described).await;
    Seen { groups: count, members, shown: described.iter().filter_map(shown).collect() }
}

fn shown(group: &DescribedGroup) -> Option<Shown> {
    if group.error != ErrorCode::None.code() {
        return None;
    }
    let mut lag: BTreeMap<&str, u64> = BTreeMap::new();
    for offset in group.offsets.iter().filter(|offset| !offset.topic.is_empty()) {
        if let Some(behind) = offset.lag {
            *lag.entry(&offset.topic).or_default() += behind;
        }
    }
    let mut lag: Vec<(String, u64)> = lag.into_iter().map(|(topic, lag)| (topic.to_owned(), lag)).collect();
    lag.sort_by_key(|(_, behind)| Reverse(*behind));
    lag.truncate(TOPICS_SHOWN_MAX);
    Some(Shown { group: group.group.clone(), members: group.members.len() as u64, lag })
}

impl Collector for GroupMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let seen = self.0.lock().clone();
        let gauge = |value: u64| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let of_broker = [
            ("groups", "consumer groups that this broker coordinates", seen.groups),
            ("group_members_all", "members of all groups that this broker coordinates", seen.members),
            (
                "groups_not_shown",
                "groups without metrics of their own: ask `group describe`",
                seen.groups.saturating_sub(seen.shown.len() as u64),
            ),
        ];
        for (name, help, value) in of_broker {
            let gauge = gauge(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let kind = gauge(0).metric_type();
        let mut family = encoder.encode_descriptor("group_members", "members of the group", None, kind)?;
        for shown in &seen.shown {
            let labels = [("group", shown.group.as_str())];
            gauge(shown.members).encode(family.encode_family(&labels)?)?;
        }
        let help = "records between the positions of the group and the high watermarks of the topic";
        let mut family = encoder.encode_descriptor("group_lag", help, None, kind)?;
        for shown in &seen.shown {
            for (topic, lag) in &shown.lag {
                let labels = [("group", shown.group.as_str()), ("topic", topic.as_str())];
                gauge(*lag).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use highwater_protocol::messages::{GroupLag, GroupMember};

    use super::*;
    use crate::observe::metrics::Metrics;

    #[test]
    fn lag_is_summed_by_topic_and_what_is_not_known_is_left_out() {
        let offset = |topic: &str, lag| GroupLag { topic: topic.to_owned(), lag, ..GroupLag::default() };
        let group = DescribedGroup {
            group: "readers".to_owned(),
            members: vec![GroupMember::default(); 2],
            offsets: vec![offset("a", Some(3)), offset("a", Some(4)), offset("b", None), offset("", Some(9))],
            ..DescribedGroup::default()
        };
        let found = shown(&group).unwrap();
        assert_eq!(found.lag, [("a".to_owned(), 7)]);
        let unknown = DescribedGroup { error: ErrorCode::UnknownGroup.code(), ..group };
        assert_eq!(shown(&unknown), None);
        let (metrics, gauges) = (Metrics::new(), GroupMetrics::default());
        metrics.register_collector(gauges.clone());
        *gauges.0.lock() = Seen { groups: 3, members: 2, shown: vec![found] };
        let text = metrics.encode().unwrap();
        for line in [
            "highwater_groups 3",
            "highwater_groups_not_shown 2",
            "highwater_group_members{group=\"readers\"} 2",
            "highwater_group_lag{group=\"readers\",topic=\"a\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
        }
    }
}
