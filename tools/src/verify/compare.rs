//! Holding the replicas of one partition against each other, range by range.

use std::ops::Range;

use highwater_protocol::messages::ReplicaChecksumReply;

/// Bytes of a step: first the broker's own measure (0), then smaller where something differs, down to single batches.
const STEPS: [u32; 3] = [0, 64 << 10, 1];
/// Ranges that are remembered for each replica. A replica that differs in more places differs.
const RANGES_MAX: usize = 100;

/// The replicas of a partition, by broker.
pub(crate) trait Replicas {
    /// The checksum of `range` on the replica of `node`, or of a part from its start on.
    async fn checksum(
        &self,
        node: u32,
        range: Range<u64>,
        bytes_max: u32,
    ) -> anyhow::Result<ReplicaChecksumReply>;

    /// The checksum over the last record of each key in `range` on the replica of `node`, of the keys in one of so many
    /// slices.
    async fn table(
        &self,
        node: u32,
        range: Range<u64>,
        slices: u32,
        slice: u32,
    ) -> anyhow::Result<ReplicaChecksumReply>;
}

/// What a replica is found to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) node: u32,
    /// What was compared of it.
    pub(crate) range: Range<u64>,
    /// Offsets up to the end of what was to be compared that it does not have yet.
    pub(crate) behind: u64,
    /// Where its bytes are others than those of the first replica.
    pub(crate) differs: Vec<Range<u64>>,
    /// What it cannot read: its bytes are corrupt on its disk.
    pub(crate) corrupt: Vec<Range<u64>>,
}

impl Finding {
    /// A replica of which `range` is to be compared.
    pub(crate) fn new(node: u32, range: Range<u64>, behind: u64) -> Self {
        Self { node, range, behind, ..Self::default() }
    }

    /// Whether nothing is wrong with it.
    pub(crate) const fn is_equal(&self) -> bool {
        self.differs.is_empty() && self.corrupt.is_empty()
    }
}

/// What a comparison has gone through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Batches of the first replica.
    pub(crate) batches: u64,
    /// The next offset of the first replica.
    pub(crate) offset: u64,
}

/// Compares `others` with `first`, each over its own range, and writes into them what was found. `first.range` covers
/// all of them. `progress` is told after each step.
///
/// # Errors
/// When a replica does not answer, or answers something that cannot be.
pub(crate) async fn compare(
    replicas: &impl Replicas,
    first: &mut Finding,
    others: &mut [Finding],
    mut progress: impl FnMut(Seen),
) -> anyhow::Result<Seen> {
    let mut seen = Seen { batches: 0, offset: first.range.start };
    while seen.offset < first.range.end {
        let at = seen.offset;
        // A step ends where a replica begins or ends, so that it is in all of a replica's range or in none of it.
        let edges = others.iter().flat_map(|other| [other.range.start, other.range.end]);
        let end = edges.filter(|&edge| edge > at).min().unwrap_or(u64::MAX).min(first.range.end);
        let step = take(replicas, first, at..end, STEPS[0]).await?;
        for other in others.iter_mut().filter(|other| other.range.start <= at && at < other.range.end) {
            settle(replicas, first, other, &step).await?;
        }
        seen = Seen { batches: seen.batches + step.batches, offset: step.range.end };
        progress(seen);
    }
    Ok(seen)
}

/// A step of one replica.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Step {
    range: Range<u64>,
    batches: u64,
    checksum: u32,
    is_whole: bool,
}

/// One step of a replica from the start of `range`, which notes what it cannot read.
async fn take(
    replicas: &impl Replicas,
    of: &mut Finding,
    range: Range<u64>,
    bytes_max: u32,
) -> anyhow::Result<Step> {
    let reply = replicas.checksum(of.node, range.clone(), bytes_max).await?;
    for corrupt in &reply.corrupt {
        add(&mut of.corrupt, corrupt.start.max(range.start)..corrupt.end.min(range.end));
    }
    // What retention has removed meanwhile is passed over; a replica that lacks what it said it had ends early.
    let end =
        reply.end.max(reply.corrupt.iter().map(|corrupt| corrupt.end).max().unwrap_or(0)).min(range.end);
    anyhow::ensure!(
        end > range.start,
        "broker {} has no offset {} any more, its log has {} to {}; run verify again",
        of.node,
        range.start,
        reply.log_start,
        reply.log_end
    );
    let whole = reply.corrupt.is_empty();
    Ok(Step { range: range.start..end, batches: reply.batches, checksum: reply.checksum, is_whole: whole })
}

/// Compares a step of `first` with the same range of `other`, in smaller steps if they are not the same.
async fn settle(
    replicas: &impl Replicas,
    first: &mut Finding,
    other: &mut Finding,
    step: &Step,
) -> anyhow::Result<()> {
    let theirs = take(replicas, other, step.range.clone(), STEPS[0]).await?;
    if theirs == *step && step.is_whole {
        return Ok(());
    }
    let mut suspects = vec![step.range.clone()];
    for bytes_max in &STEPS[1..] {
        let mut smaller = Vec::new();
        for range in suspects {
            narrow(replicas, first, other, range, *bytes_max, &mut smaller).await?;
        }
        suspects = smaller;
    }
    for range in suspects {
        add(&mut other.differs, range);
    }
    Ok(())
}

/// Goes through `range` in steps of `bytes_max`, and collects those that are not the same on both.
async fn narrow(
    replicas: &impl Replicas,
    first: &mut Finding,
    other: &mut Finding,
    range: Range<u64>,
    bytes_max: u32,
    suspects: &mut Vec<Range<u64>>,
) -> anyhow::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let ours = take(replicas, first, at..range.end, bytes_max).await?;
        let theirs = take(replicas, other, ours.range.clone(), bytes_max).await?;
        at = ours.range.end;
        // What one of them cannot read is noted with it, and is not compared at the last step.
        let is_noted = bytes_max == STEPS[STEPS.len() - 1] && !(ours.is_whole && theirs.is_whole);
        if (ours != theirs || !ours.is_whole) && !is_noted {
            add(suspects, ours.range);
        }
    }
    Ok(())
}

/// Adds a range behind the others, joined with the last one if they touch.
pub(super) fn add(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.is_empty() || ranges.iter().any(|known| known.start <= range.start && range.end <= known.end) {
        return;
    }
    let has_room = ranges.len() < RANGES_MAX;
    match ranges.last_mut() {
        Some(last) if last.start <= range.start && range.start <= last.end => {
            last.end = last.end.max(range.end);
        }
        _ if has_room => ranges.push(range),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use highwater_protocol::messages::CorruptRange;

    use super::*;

    /// Batches of ten offsets and a kilobyte each, as numbers; `None` is one that cannot be read.
    struct Copies(BTreeMap<u32, Vec<Option<u32>>>);

    const PER_BATCH: u64 = 10;
    const BATCH_BYTES: u32 = 1024;

    impl Replicas for Copies {
        async fn checksum(
            &self,
            node: u32,
            range: Range<u64>,
            bytes_max: u32,
        ) -> anyhow::Result<ReplicaChecksumReply> {
            let log = &self.0[&node];
            let most = if bytes_max == 0 { 50 } else { (bytes_max / BATCH_BYTES).max(1) } as usize;
            let from = (range.start / PER_BATCH) as usize;
            let upto = (range.end.div_ceil(PER_BATCH) as usize).min(log.len()).min(from + most);
            let mut hasher = crc32fast::Hasher::new();
            let mut reply = ReplicaChecksumReply {
                start: range.start,
                end: upto as u64 * PER_BATCH,
                log_end: log.len() as u64 * PER_BATCH,
                ..ReplicaChecksumReply::default()
            };
            for (index, batch) in log.iter().enumerate().take(upto).skip(from) {
                let start = index as u64 * PER_BATCH;
                match batch {
                    Some(batch) => {
                        hasher.update(&batch.to_le_bytes());
                        reply.batches += 1;
                    }
                    None => reply.corrupt.push(CorruptRange { start, end: start + PER_BATCH }),
                }
            }
            reply.checksum = hasher.finalize();
            Ok(reply)
        }

        async fn table(
            &self,
            _node: u32,
            _range: Range<u64>,
            _slices: u32,
            _slice: u32,
        ) -> anyhow::Result<ReplicaChecksumReply> {
            anyhow::bail!("these are compared by batches")
        }
    }

    fn copies(change: impl Fn(u32, usize) -> Option<u32>) -> Copies {
        let log = |node| (0..400).map(|index| change(node, index)).collect();
        Copies([1, 2, 3].map(|node| (node, log(node))).into())
    }

    async fn run(copies: &Copies, ends: [u64; 3]) -> (Seen, [Finding; 3]) {
        let [mut first, second, third] =
            [(1, ends[0]), (2, ends[1]), (3, ends[2])].map(|(node, end)| Finding::new(node, 0..end, 0));
        let mut others = [second, third];
        let mut told = 0;
        let seen = compare(copies, &mut first, &mut others, |seen| told = seen.offset).await.unwrap();
        assert_eq!(told, seen.offset);
        let [second, third] = others;
        (seen, [first, second, third])
    }

    #[tokio::test]
    async fn equal_replicas_are_equal_also_when_one_ends_early() {
        let (seen, found) = run(&copies(|_, index| Some(index as u32)), [4000, 4000, 1230]).await;
        assert_eq!(seen, Seen { batches: 400, offset: 4000 });
        assert!(found.iter().all(Finding::is_equal), "{found:?}");
    }

    #[tokio::test]
    async fn where_they_differ_is_found_to_the_batch() {
        let differs = |node: u32, index: usize| {
            let other = node == 3 && matches!(index, 7 | 8 | 311);
            Some(index as u32 + if other { 1_000_000 } else { 0 })
        };
        let (_, found) = run(&copies(differs), [4000, 4000, 4000]).await;
        assert!(found[0].is_equal() && found[1].is_equal());
        assert_eq!(found[2].differs, [70..90, 3110..3120]);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_told_of_the_replica_that_has_it() {
        let only = 1200..1210;
        let hole = |node: u32, index: usize| ((node, index) != (2, 120)).then_some(index as u32);
        let (_, found) = run(&copies(hole), [4000, 4000, 4000]).await;
        assert!(found[0].is_equal() && found[2].is_equal(), "{found:?}");
        assert_eq!((found[1].corrupt.clone(), found[1].differs.len()), (vec![only.clone()], 0));
        let hole = |node: u32, index: usize| ((node, index) != (1, 120)).then_some(index as u32);
        let (_, found) = run(&copies(hole), [4000, 4000, 4000]).await;
        assert_eq!(found[0].corrupt, vec![only]);
        assert!(found[1].is_equal() && found[2].is_equal(), "{found:?}");
    }

    #[tokio::test]
    async fn a_replica_that_lost_its_end_is_no_equal_one() {
        let mut copies = copies(|_, index| Some(index as u32));
        copies.0.get_mut(&2).unwrap().truncate(399);
        let mut first = Finding::new(1, 0..4000, 0);
        let mut others = [Finding::new(2, 0..4000, 0)];
        let result = compare(&copies, &mut first, &mut others, |_| {}).await;
        assert!(result.is_err() || !others[0].is_equal(), "{others:?}");
    }
}
