//! The last offset of each key, in bounded memory.

use highwater_protocol::ids::Offset;
use highwater_protocol::key_hash::key_hash_wide;

/// Remembers the last offset of every key that it was told, by a hash of 128 bits: two keys with the same are not to be
/// expected in the life of any log, and nobody can make some up who does not know the seed.
#[derive(Debug)]
pub struct KeyMap {
    seed: u64,
    /// A power of two of them; probed one after another.
    slots: Vec<Slot>,
    count: usize,
    slots_max: usize,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    hash: [u64; 2],
    /// `FREE`: none.
    offset: u64,
}

const FREE: u64 = u64::MAX;

/// What one key takes in the worst case, just after the map has grown.
const SLOT_BYTES: usize = size_of::<Slot>();

/// Slots of an empty map.
const SLOTS_MIN: usize = 1 << 10;

/// There was no room for another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

impl KeyMap {
    /// An empty map that takes up to `bytes_max` bytes of memory, but room for some keys in any case. It grows as keys
    /// come; while it does, the old slots and the new ones together stay within the bound.
    #[must_use]
    pub fn new(seed: u64, bytes_max: usize) -> Self {
        // The largest power of two that fits together with the half of it that it has grown from.
        let fitting = (bytes_max / SLOT_BYTES * 2 / 3).max(SLOTS_MIN);
        let slots_max = if fitting.is_power_of_two() { fitting } else { fitting.next_power_of_two() / 2 };
        Self { seed, slots: vec![Slot { hash: [0; 2], offset: FREE }; SLOTS_MIN], count: 0, slots_max }
    }

    /// How many keys there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.count
    }

    /// How many keys there may be.
    #[must_use]
    pub const fn count_max(&self) -> usize {
        self.slots_max / 4 * 3
    }

    /// Notes that `key` is at `offset`. Offsets come in order.
    ///
    /// # Errors
    /// When there is no room for another key: nothing has changed then.
    pub fn note(&mut self, key: &[u8], offset: Offset) -> Result<(), Full> {
        let hash = self.hash(key);
        let mut place = self.place(hash);
        if self.slots.get(place).is_some_and(|slot| slot.offset == FREE) {
            if self.count >= self.slots.len() / 4 * 3 {
                if self.slots.len() >= self.slots_max {
                    return Err(Full);
                }
                self.grow();
                place = self.place(hash);
            }
            self.count += 1;
        }
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = Slot { hash, offset: offset.0 };
        }
        Ok(())
    }

    /// Where `key` was noted last.
    #[must_use]
    pub fn last(&self, key: &[u8]) -> Option<Offset> {
        let slot = self.slots.get(self.place(self.hash(key)))?;
        (slot.offset != FREE).then_some(Offset(slot.offset))
    }

    fn hash(&self, key: &[u8]) -> [u64; 2] {
        let hash = key_hash_wide(key, self.seed);
        [hash as u64, (hash >> 64) as u64]
    }

    /// The slot of a hash, or the free one where it would go. There is always a free one.
    fn place(&self, hash: [u64; 2]) -> usize {
        let mask = self.slots.len() - 1;
        let mut place = hash[0] as usize & mask;
        while let Some(slot) = self.slots.get(place)
            && slot.offset != FREE
            && slot.hash != hash
        {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        let larger = vec![Slot { hash: [0; 2], offset: FREE }; self.slots.len() * 2];
        let old = std::mem::replace(&mut self.slots, larger);
        for slot in old.into_iter().filter(|slot| slot.offset != FREE) {
            let place = self.place(slot.hash);
            if let Some(free) = self.slots.get_mut(place) {
                *free = slot;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn the_last_offset_of_each_key_is_known_however_many_there_are() {
        let mut map = KeyMap::new(7, 8 << 20);
        let mut expected = BTreeMap::new();
        for offset in 0..300_000_u64 {
            let key = (offset * 7919 % 40_000).to_le_bytes();
            map.note(&key, Offset(offset)).unwrap();
            expected.insert(key, offset);
        }
        assert_eq!(map.count(), 40_000);
        for (key, offset) in expected {
            assert_eq!(map.last(&key), Some(Offset(offset)));
        }
        assert_eq!(map.last(b"another"), None);
    }

    #[test]
    fn a_full_map_takes_known_keys_and_no_others_and_stays_within_its_memory() {
        for bytes_max in [0, 100 << 10, 1 << 20] {
            let mut map = KeyMap::new(1, bytes_max);
            let mut known = 0_u64;
            while map.note(&known.to_le_bytes(), Offset(known)).is_ok() {
                known += 1;
            }
            assert_eq!((known as usize, map.count()), (map.count_max(), map.count_max()));
            let bytes = (map.slots.len() + map.slots.len() / 2) * SLOT_BYTES;
            assert!(bytes <= bytes_max.max(SLOTS_MIN * SLOT_BYTES * 3 / 2), "{bytes} of {bytes_max}");
            map.note(&3_u64.to_le_bytes(), Offset(1 << 40)).unwrap();
            assert_eq!(map.last(&3_u64.to_le_bytes()), Some(Offset(1 << 40)));
            assert_eq!(map.last(&known.to_le_bytes()), None);
        }
    }
}
