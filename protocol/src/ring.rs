//! A consistent-hash ring with virtual nodes (Karger et al. 1997). It says in which order places are tried; how full each
//! may be is the caller's affair (bounded loads: Mirrokni, Thorup, Zadimoghaddam 2016).
//!
//! A member that comes or goes changes the order of others for no key: each key loses or gains that member alone.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Points that each member has on the ring. More of them share keys more evenly and cost memory and time to build.
pub const VIRTUAL_NODES: u64 = 128;

/// Members on a circle of hashes.
#[derive(Debug, Clone)]
pub struct Ring<M> {
    members: Vec<M>,
    /// Hash and index of the member, by hash.
    points: Vec<(u64, usize)>,
}

impl<M> Ring<M> {
    /// A ring of `members`; `name` is what a member is hashed by, and has to differ between members.
    pub fn new<N: AsRef<[u8]>>(members: Vec<M>, name: impl Fn(&M) -> N) -> Self {
        let mut points = Vec::new();
        for (index, member) in members.iter().enumerate() {
            let name = name(member);
            points.extend((0..VIRTUAL_NODES).map(|seed| (xxh3_64_with_seed(name.as_ref(), seed), index)));
        }
        // Equal hashes are ordered by member, so that the order of the list does not matter when it is sorted.
        points.sort_unstable();
        Self { members, points }
    }

    /// The members in the order in which they are given.
    #[must_use]
    pub fn members(&self) -> &[M] {
        &self.members
    }

    /// Every member once, in the order in which the ring is walked from the place of `key`.
    pub fn walk(&self, key: &[u8]) -> impl Iterator<Item = &M> {
        self.walk_indices(key).filter_map(|index| self.members.get(index))
    }

    /// Like [`Ring::walk`], as indices into [`Ring::members`].
    pub fn walk_indices(&self, key: &[u8]) -> impl Iterator<Item = usize> {
        let start = self.points.partition_point(|(hash, _)| *hash < xxh3_64(key));
        let (before, after) = self.points.split_at(start);
        let mut seen = vec![false; self.members.len()];
        let mut left = self.members.len();
        after
            .iter()
            .chain(before)
            .map(|(_, index)| *index)
            .filter(move |index| seen.get_mut(*index).is_some_and(|seen| !std::mem::replace(seen, true)))
            .take_while(move |_| {
                let more = left > 0;
                left = left.saturating_sub(1);
                more
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(members: std::ops::Range<u32>) -> Ring<u32> {
        Ring::new(members.collect(), |member| member.to_le_bytes())
    }

    fn order(ring: &Ring<u32>, key: u32) -> Vec<u32> {
        ring.walk(&key.to_le_bytes()).copied().collect()
    }

    #[test]
    fn each_walk_has_every_member_once() {
        let ring = ring(0..7);
        for key in 0..200 {
            let mut walked = order(&ring, key);
            walked.sort_unstable();
            assert_eq!(walked, (0..7).collect::<Vec<_>>());
        }
        assert_eq!(self::ring(0..0).walk(b"key").count(), 0);
    }

    #[test]
    fn a_member_that_goes_changes_the_order_of_no_others() {
        let (all, fewer) =
            (ring(0..8), Ring::new((0..8u32).filter(|m| *m != 3).collect(), |m: &u32| m.to_le_bytes()));
        for key in 0..500 {
            let without: Vec<u32> = order(&all, key).into_iter().filter(|member| *member != 3).collect();
            assert_eq!(without, order(&fewer, key));
        }
    }

    #[test]
    fn first_places_are_shared_out_evenly() {
        let ring = ring(0..10);
        let mut counts = [0u32; 10];
        for key in 0..10_000 {
            counts[order(&ring, key)[0] as usize] += 1;
        }
        assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
    }
}
