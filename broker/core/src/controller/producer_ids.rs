//! Identities of idempotent producers: a generation of 15 bits above a counter of 48 bits, so that an image that was
//! restored or rebuilt, and has forgotten the counter, still never gives an identity twice.

use highwater_protocol::ids::ProducerId;
use serde::{Deserialize, Serialize};

use super::command::Reply;

/// Bits of the counter.
const COUNTER_BITS: u32 = 48;
/// Generations there are. The highest bit of an id stays 0, so that no id is [`ProducerId::NONE`].
const GENERATION_MAX: u64 = (1 << 15) - 1;
/// Identities that one command gives out at the most.
const PRODUCER_IDS_MAX: u32 = 10_000;

/// Which identities were given out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ProducerIds {
    /// Raised whenever metadata is restored or rebuilt, and when the counter is used up.
    generation: u64,
    /// The next one of the generation.
    next: u64,
}

impl Default for ProducerIds {
    fn default() -> Self {
        Self { generation: 1, next: 0 }
    }
}

impl ProducerIds {
    /// Gives `count` identities out; 0 means 1, and too many become [`PRODUCER_IDS_MAX`].
    pub(super) fn allocate(&mut self, count: u32) -> Reply {
        let count = count.clamp(1, PRODUCER_IDS_MAX);
        if self.next + u64::from(count) > 1 << COUNTER_BITS {
            self.raise_generation();
        }
        let first = ProducerId(self.generation << COUNTER_BITS | self.next);
        self.next += u64::from(count);
        Reply::ProducerIds { first, count }
    }

    /// Goes on where nobody can have been before. After the last generation it starts over: that takes 32,767 rebuilds,
    /// or more identities than anybody gives out.
    pub(super) fn raise_generation(&mut self) {
        self.generation = if self.generation == GENERATION_MAX { 1 } else { self.generation + 1 };
        self.next = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(reply: Reply) -> u64 {
        let Reply::ProducerIds { first, .. } = reply else { panic!("{reply:?}") };
        first.get()
    }

    #[test]
    fn no_identity_is_given_twice() {
        let mut ids = ProducerIds::default();
        assert_eq!(first(ids.allocate(10)), 1 << 48);
        assert_eq!(first(ids.allocate(0)), (1 << 48) + 10);
        assert_eq!(first(ids.allocate(1)), (1 << 48) + 11);
        ids.raise_generation();
        assert_eq!(first(ids.allocate(1)), 2 << 48);
    }

    #[test]
    fn a_used_up_counter_raises_the_generation_and_no_identity_is_none() {
        let mut ids = ProducerIds { generation: GENERATION_MAX - 1, next: (1 << 48) - 5 };
        assert_eq!(first(ids.allocate(5)), (GENERATION_MAX << 48) - 5);
        let last = first(ids.allocate(5));
        assert_eq!(last, GENERATION_MAX << 48);
        assert!(ProducerId(last | ((1 << 48) - 1)) < ProducerId::NONE);
    }
}
