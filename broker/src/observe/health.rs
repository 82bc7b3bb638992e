//! Whether a broker is alive, and whether it is ready for clients.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// What keeps a broker from being ready: short names for programs, each with a sentence for people.
///
/// Alive means that the process answers; it is so as long as this can be asked. A broker becomes ready when it accepts
/// connections and stays so unless it is told otherwise.
#[derive(Debug, Default)]
pub struct Health {
    obstacles: Mutex<BTreeMap<&'static str, String>>,
}

impl Health {
    /// The obstacle of a broker that has not finished its start.
    pub const STARTING: &'static str = "starting";
    /// The obstacle of a broker that was asked to stop.
    pub const STOPPING: &'static str = "stopping";
    /// The obstacle of a broker whose disk is below its reserve: it serves reads, and refuses appends.
    pub const READ_ONLY: &'static str = "read_only";

    /// The health of a broker that is about to start.
    #[must_use]
    pub fn starting() -> Self {
        let health = Self::default();
        health.obstruct(Self::STARTING, "recovering partitions".to_owned());
        health
    }

    /// Adds an obstacle or changes its explanation.
    pub fn obstruct(&self, name: &'static str, explanation: String) {
        self.obstacles.lock().insert(name, explanation);
    }

    /// Removes an obstacle.
    pub fn clear(&self, name: &'static str) {
        self.obstacles.lock().remove(name);
    }

    /// Whether nothing stands in the way.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.obstacles.lock().is_empty()
    }

    /// What stands in the way, by name.
    #[must_use]
    pub fn obstacles(&self) -> Vec<(&'static str, String)> {
        self.obstacles.lock().iter().map(|(name, explanation)| (*name, explanation.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_obstacle_is_gone() {
        let health = Health::starting();
        assert!(!health.is_ready());
        health.obstruct(Health::READ_ONLY, "1 MiB left".to_owned());
        health.clear(Health::STARTING);
        assert_eq!(health.obstacles(), [(Health::READ_ONLY, "1 MiB left".to_owned())]);
        health.clear(Health::READ_ONLY);
        assert!(health.is_ready());
    }
}
