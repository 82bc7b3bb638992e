//! How coordinators of consumer groups are spread, and how long they keep positions.

use std::time::Duration;

use highwater_broker_core::group::config::GroupConfig;

use super::{ConfigError, Settings};

/// Partitions of the internal topic of groups at the most: each is a log and a task on its broker.
const GROUPS_PARTITIONS_MAX: u32 = 1024;

/// Positions are kept at least for so long: a consumer that is being restarted must find its own.
const OFFSETS_RETENTION_MIN: Duration = Duration::from_secs(60);

/// The settings of coordinators.
pub(super) fn of(settings: &Settings) -> GroupConfig {
    let default = GroupConfig::default();
    let retention = settings.groups_offsets_retention;
    GroupConfig { offsets_retention: retention.map_or(default.offsets_retention, |span| span.0), ..default }
}

/// Whether they are what coordinators can go by.
pub(super) fn check(partitions: u32, groups: &GroupConfig) -> Result<(), ConfigError> {
    let value = |name, problem| Err(ConfigError::Value { name, problem });
    if partitions == 0 || partitions > GROUPS_PARTITIONS_MAX {
        return value("groups_partitions", format!("must be from 1 to {GROUPS_PARTITIONS_MAX}"));
    }
    if groups.offsets_retention < OFFSETS_RETENTION_MIN {
        return value("groups_offsets_retention", format!("must be at least {OFFSETS_RETENTION_MIN:?}"));
    }
    Ok(())
}
