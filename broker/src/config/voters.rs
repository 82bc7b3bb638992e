//! What a broker is told about its cluster: the list of the first brokers, and how long others are waited for.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;
use std::time::Duration;

use highwater_protocol::ids::NodeId;
use highwater_protocol::limits::NAME_BYTES_MAX;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize};

use super::units::FromText;
use super::{Config, ConfigError, check_address};

/// One of the first brokers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VoterAddress {
    /// Who.
    pub node_id: NodeId,
    /// `HOST:PORT` of its protocol port, as the other brokers reach it.
    pub address: String,
}

impl fmt::Display for VoterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node_id, self.address)
    }
}

/// The first brokers, sorted by id: one, three or five.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Voters(pub Vec<VoterAddress>);

/// How many there may be: an even number would not survive more failures than one less.
const COUNTS: [usize; 3] = [1, 3, 5];

impl FromStr for Voters {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut voters = Vec::new();
        for item in text.split(',').map(str::trim) {
            let wrong = || format!("'{item}' is not ID@HOST:PORT, like 1@10.0.0.1:9470");
            let (id, address) = item.split_once('@').ok_or_else(wrong)?;
            let node_id = id.trim().parse().ok().filter(|&id| id > 0).map(NodeId).ok_or_else(wrong)?;
            let address = address.trim().to_owned();
            check_address("voters", &address).map_err(|_| wrong())?;
            if address.ends_with(":0") {
                return Err(format!("'{item}' has port 0: the others have to know the port"));
            }
            voters.push(VoterAddress { node_id, address });
        }
        voters.sort_unstable();
        for pair in voters.windows(2) {
            if pair[0].node_id == pair[1].node_id {
                return Err(format!("broker {} is named twice", pair[0].node_id));
            }
        }
        let same = |a: &VoterAddress| voters.iter().filter(|b| a.address == b.address).count() > 1;
        if let Some(voter) = voters.iter().find(|voter| same(voter)) {
            return Err(format!("address {} is named twice", voter.address));
        }
        if !COUNTS.contains(&voters.len()) {
            return Err(format!(
                "{} voters: name one, three or five brokers; an even number survives no more failures than one less, and \
                 every further broker joins with --join HOST:PORT",
                voters.len()
            ));
        }
        Ok(Self(voters))
    }
}

impl<'de> Deserialize<'de> for Voters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FromText(PhantomData))
    }
}

/// The shortest lease: a broker is heard of five times a second, and the machine may be busy.
const LEASE_MIN: Duration = Duration::from_millis(500);
/// The longest lease: for as long nobody would lead what a broker led that is cut off.
const LEASE_MAX: Duration = Duration::from_secs(300);
/// The shortest time for reading everything that is stored.
const SCRUB_INTERVAL_MIN: Duration = Duration::from_millis(100);

impl Config {
    /// What a broker of a cluster is told about the others.
    pub(super) fn check_cluster(&self) -> Result<(), ConfigError> {
        let value = |name, problem: String| Err(ConfigError::Value { name, problem });
        if !self.voters.is_empty() && self.join.is_some() {
            let problem = "a broker is one of the first (voters) or joins (join), not both".to_owned();
            return value("voters", problem);
        }
        if !self.voters.is_empty() && self.voters.iter().all(|voter| voter.node_id != self.node_id) {
            return value(
                "voters",
                format!(
                    "broker {} is not in the list: name all first brokers, or let this one join with --join HOST:PORT",
                    self.node_id
                ),
            );
        }
        if self.lease < LEASE_MIN || self.lease > LEASE_MAX {
            return value("lease", "must be from 500ms to 5m".to_owned());
        }
        if self.scrub_interval < SCRUB_INTERVAL_MIN {
            return value("scrub_interval", "must be at least 100ms".to_owned());
        }
        if self.cluster_secret.len() > NAME_BYTES_MAX {
            return value("cluster_secret", format!("has at most {NAME_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sorted_and_has_an_odd_number_of_different_brokers() {
        let voters: Voters = "3@c:3, 1@a:1,2@b:2".parse().unwrap();
        let texts: Vec<String> = voters.0.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["1@a:1", "2@b:2", "3@c:3"]);
        let refused = |text: &str| text.parse::<Voters>().unwrap_err();
        assert!(refused("1@a:1,2@b:2").contains("2 voters: name one, three or five"));
        assert!(refused("1@a:1,2@b:2,3@c:3,4@d:4").contains("--join"));
        assert!(refused("1@a:1,1@b:2,3@c:3").contains("broker 1 is named twice"));
        assert!(refused("1@a:1,2@a:1,3@c:3").contains("address a:1 is named twice"));
        assert!(refused("1@a:0").contains("port 0"));
        for bad in ["", "a:1", "0@a:1", "1@a", "1@:1", "x@a:1"] {
            assert!(refused(bad).contains("is not ID@HOST:PORT"), "{bad}");
        }
    }
}
