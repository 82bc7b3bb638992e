//! Holding compacted replicas of a partition against each other, by the last record of each key.

use std::ops::Range;

use highwater_protocol::messages::ReplicaChecksumReply;

use super::compare::{Finding, Replicas, Seen, add};

/// Slices of the keys at the most.
const SLICES_MAX: u32 = 1 << 16;

/// Compares `others` with `first` over what all of them have, and writes into them what was found. A replica that is behind
/// cannot be compared: what is missing may be what its keys are to be seen by. `None`: compaction has come further than
/// the comparison; look again and compare anew.
///
/// # Errors
/// When a replica does not answer, or answers something that cannot be.
pub(crate) async fn compare(
    replicas: &impl Replicas,
    first: &mut Finding,
    others: &mut [Finding],
) -> anyhow::Result<Option<Seen>> {
    let end = first.range.end;
    let up_to_date = |other: &&Finding| other.range.end >= end;
    let starts = others.iter().filter(up_to_date).map(|other| other.range.start);
    let range = starts.fold(first.range.start, u64::max).min(end)..end;
    for other in others.iter_mut() {
        other.behind = end.saturating_sub(other.range.end);
        other.range = if other.behind > 0 { range.start..range.start } else { range.clone() };
    }
    let (mut slices, mut slice, mut records) = (1, 0, 0);
    while slice < slices {
        let ours = replicas.table(first.node, range.clone(), slices, slice).await?;
        if ours.key_slices_needed > 0 {
            anyhow::ensure!(
                ours.key_slices_needed > slices && ours.key_slices_needed <= SLICES_MAX,
                "broker {} asks for {} slices of the keys",
                first.node,
                ours.key_slices_needed
            );
            (slices, slice, records) = (ours.key_slices_needed, 0, 0);
            continue;
        }
        note_corrupt(first, &ours, &range);
        let mut overtaken = ours.compacted_end > end;
        for other in others.iter_mut().filter(|other| other.behind == 0) {
            let theirs = replicas.table(other.node, range.clone(), slices, slice).await?;
            overtaken |= theirs.compacted_end > end;
            note_corrupt(other, &theirs, &range);
            // What one of them cannot read is noted with it.
            let is_whole = ours.corrupt.is_empty() && theirs.corrupt.is_empty();
            let same = (ours.batches, ours.checksum) == (theirs.batches, theirs.checksum);
            if is_whole && !same && !overtaken {
                add(&mut other.differs, range.clone());
            }
        }
        if overtaken {
            first.corrupt.clear();
            others.iter_mut().for_each(|other| {
                other.corrupt.clear();
                other.differs.clear();
            });
            return Ok(None);
        }
        records += ours.batches;
        slice += 1;
    }
    first.range = range;
    Ok(Some(Seen { batches: records, offset: end }))
}

fn note_corrupt(of: &mut Finding, reply: &ReplicaChecksumReply, range: &Range<u64>) {
    for corrupt in &reply.corrupt {
        add(&mut of.corrupt, corrupt.start.max(range.start)..corrupt.end.min(range.end));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::*;

    /// What each replica says of each slice: the checksum.
    struct Tables {
        of: BTreeMap<u32, u32>,
        slices: u32,
        /// Compaction gets here, after so many questions.
        compacted_end: u64,
        asked: Cell<u32>,
    }

    impl Replicas for Tables {
        async fn checksum(&self, _: u32, _: Range<u64>, _: u32) -> anyhow::Result<ReplicaChecksumReply> {
            anyhow::bail!("these are compared by keys")
        }

        async fn table(
            &self,
            node: u32,
            _range: Range<u64>,
            slices: u32,
            slice: u32,
        ) -> anyhow::Result<ReplicaChecksumReply> {
            self.asked.set(self.asked.get() + 1);
            let more = slices < self.slices;
            Ok(ReplicaChecksumReply {
                key_slices_needed: if more { slices * 2 } else { 0 },
                checksum: self.of[&node] + slice,
                batches: if more { 0 } else { 5 },
                compacted: true,
                compacted_end: self.compacted_end,
                ..ReplicaChecksumReply::default()
            })
        }
    }

    async fn run(tables: &Tables, ranges: [Range<u64>; 3]) -> (Option<Seen>, [Finding; 3]) {
        let [one, two, three] = ranges;
        let mut first = Finding::new(1, one, 0);
        let mut others = [Finding::new(2, two, 0), Finding::new(3, three, 0)];
        let seen = compare(tables, &mut first, &mut others).await.unwrap();
        let [second, third] = others;
        (seen, [first, second, third])
    }

    fn tables(third: u32, slices: u32, compacted_end: u64) -> Tables {
        let of = BTreeMap::from([(1, 7), (2, 7), (3, third)]);
        Tables { of, slices, compacted_end, asked: Cell::new(0) }
    }

    #[tokio::test]
    async fn replicas_with_the_same_last_records_are_equal_and_others_are_not() {
        for slices in [1, 8] {
            let same = tables(7, slices, 90);
            let (seen, found) = run(&same, [0..100, 20..100, 10..110]).await;
            assert_eq!(seen.unwrap(), Seen { batches: 5 * u64::from(slices), offset: 100 });
            assert!(found.iter().all(|finding| finding.is_equal() && finding.range == (20..100)));
            let (_, found) = run(&tables(8, slices, 90), [0..100, 20..100, 10..110]).await;
            assert!(found[1].is_equal() && !found[2].is_equal());
            assert_eq!(found[2].differs, vec![Range { start: 20, end: 100 }]);
        }
    }

    #[tokio::test]
    async fn who_is_behind_is_not_compared_and_compaction_beyond_the_end_means_another_look() {
        let (seen, found) = run(&tables(8, 1, 90), [0..100, 0..100, 0..60]).await;
        assert!(seen.is_some() && found[2].is_equal());
        assert_eq!((found[2].behind, found[2].range.is_empty()), (40, true));
        let overtaken = tables(8, 1, 101);
        let (seen, found) = run(&overtaken, [0..100, 0..100, 0..100]).await;
        assert!(seen.is_none() && found.iter().all(Finding::is_equal));
    }
}
