//! Deficit round robin: who may send next, so that nobody gets more than its share however large its pieces are.

use std::collections::{BTreeMap, VecDeque};

/// Takers that wait for their turn. Each turn is worth `quantum` bytes; what a piece takes beyond that is owed and paid
/// by turns passed over.
#[derive(Debug)]
pub struct RoundRobin<K> {
    quantum: i64,
    ready: VecDeque<K>,
    deficits: BTreeMap<K, i64>,
}

impl<K: Copy + Ord> RoundRobin<K> {
    /// Nobody waits yet.
    #[must_use]
    pub fn new(quantum: u32) -> Self {
        Self { quantum: i64::from(quantum.max(1)), ready: VecDeque::new(), deficits: BTreeMap::new() }
    }

    /// `key` has something to send. Waiting twice is waiting once.
    pub fn enqueue(&mut self, key: K) {
        if self.deficits.contains_key(&key) && self.ready.contains(&key) {
            return;
        }
        self.deficits.entry(key).or_insert(0);
        self.ready.push_back(key);
    }

    /// Takes the next one whose turn it is, with the bytes that it may send. Call [`RoundRobin::sent`] afterwards.
    pub fn take(&mut self) -> Option<(K, usize)> {
        loop {
            let key = self.ready.pop_front()?;
            let deficit = self.deficits.entry(key).or_insert(0);
            *deficit = (*deficit + self.quantum).min(self.quantum);
            if let Ok(may @ 1..) = usize::try_from(*deficit) {
                return Some((key, may));
            }
            self.ready.push_back(key);
        }
    }

    /// `key` has sent this much. If it has more to send, enqueue it again; otherwise what it owes is forgotten once it
    /// is paid.
    pub fn sent(&mut self, key: K, bytes: usize) {
        if let Some(deficit) = self.deficits.get_mut(&key) {
            *deficit -= i64::try_from(bytes).unwrap_or(i64::MAX);
        }
    }

    /// `key` has nothing more to send for now. A credit is not saved up, a debt is kept.
    pub fn rest(&mut self, key: K) {
        if let Some(deficit) = self.deficits.get_mut(&key) {
            *deficit = (*deficit).min(0);
        }
    }

    /// `key` is gone.
    pub fn remove(&mut self, key: K) {
        self.deficits.remove(&key);
        self.ready.retain(|other| *other != key);
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `turns` turns of takers that always have pieces of the size given, and counts what each sent.
    fn run(pieces: &[(u32, usize)], turns: usize) -> BTreeMap<u32, usize> {
        let mut robin = RoundRobin::new(1000);
        let sizes: BTreeMap<u32, usize> = pieces.iter().copied().collect();
        let mut sent: BTreeMap<u32, usize> = BTreeMap::new();
        for (key, _) in pieces {
            robin.enqueue(*key);
        }
        for _ in 0..turns {
            let (key, may) = robin.take().unwrap();
            let mut bytes = 0;
            while bytes < may {
                bytes += sizes[&key];
            }
            robin.sent(key, bytes);
            *sent.entry(key).or_default() += bytes;
            robin.enqueue(key);
        }
        sent
    }

    #[test]
    fn large_pieces_get_no_more_than_small_ones() {
        let sent = run(&[(1, 10), (2, 700), (3, 5000)], 3000);
        let (least, most) = (sent.values().min().unwrap(), sent.values().max().unwrap());
        assert!(most - least <= 10_000, "{sent:?}");
    }

    #[test]
    fn waiting_twice_is_waiting_once_and_the_gone_are_forgotten() {
        let mut robin = RoundRobin::new(10);
        robin.enqueue(1);
        robin.enqueue(1);
        robin.enqueue(2);
        assert_eq!(robin.take(), Some((1, 10)));
        robin.remove(2);
        assert_eq!(robin.take(), None);
        assert!(robin.is_empty());
    }

    #[test]
    fn a_debt_survives_a_rest_and_a_credit_does_not() {
        let mut robin = RoundRobin::new(10);
        robin.enqueue(1);
        assert_eq!(robin.take(), Some((1, 10)));
        robin.sent(1, 25);
        robin.rest(1);
        robin.enqueue(1);
        robin.enqueue(2);
        assert_eq!(robin.take(), Some((2, 10)), "the first one owes a turn");
        robin.rest(2);
        robin.enqueue(2);
        assert_eq!(robin.take(), Some((1, 5)));
        assert_eq!(robin.take(), Some((2, 10)), "not twenty");
    }
}
