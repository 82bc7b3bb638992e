//! Which partition a key belongs to. The same in every client language; vectors are in `docs/wire.md`.

use crate::ids::PartitionId;

/// The XXH3-64 hash of a key, seed 0.
#[must_use]
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// The XXH3-128 hash of a key: so long that no two keys of a log have the same, unless somebody knows the seed.
#[must_use]
pub fn key_hash_wide(key: &[u8], seed: u64) -> u128 {
    xxhash_rust::xxh3::xxh3_128_with_seed(key, seed)
}

/// The partition of a key in a topic with `partition_count` partitions, or `None` when there are none.
///
/// Adding partitions to a topic changes the partition of most keys.
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "the remainder is below a u32")]
pub fn partition_of_key(key: &[u8], partition_count: u32) -> Option<PartitionId> {
    if partition_count == 0 {
        return None;
    }
    Some(PartitionId((key_hash(key) % u64::from(partition_count)) as u32))
}
