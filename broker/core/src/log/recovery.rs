//! Torn or corrupt? The verdict about what is not sealed when a log is opened.
//!
//! A bad batch at offset p is *corrupt* if it is known to have been on stable storage: a later good batch, the slot file
//! or the clean marker says that more than p was, or nothing can have been lost on the way to the disk (the kernel runs
//! on, or the shutdown was clean) and there are good batches after it. A corrupt range becomes a hole, and everything
//! else stays. Otherwise the log ends at p: *torn* if the crash cut the batch off in the middle, *undecided* if it cannot
//! be told; what is cut is kept in quarantine.

use std::ops::Range;

use highwater_protocol::ids::Offset;

/// What a scan of the unsealed files found, in order: stretches of good batches and what is between them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Good batches without a gap between them.
    Run(Run),
    /// Bad bytes or missing offsets.
    Gap(Gap),
}

/// Good batches, one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Which of the files.
    pub file: usize,
    /// Their offsets.
    pub offsets: Range<Offset>,
    /// Their bytes.
    pub positions: Range<u64>,
    /// The greatest `durable_end` in their headers.
    pub durable_end: Offset,
}

/// Bad bytes, or none where offsets are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Which of the files.
    pub file: usize,
    /// The offset that should be there.
    pub start: Offset,
    /// The bad bytes.
    pub positions: Range<u64>,
    /// Whether a whole batch stands there, only damaged.
    pub whole: bool,
}

/// What is known from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// The kernel that ran the last broker still runs: no power was cut.
    pub same_kernel: bool,
    /// The slot file: everything below was on stable storage.
    pub flushed_end: Option<Offset>,
    /// The clean marker: where the log ended.
    pub clean_end: Option<Offset>,
}

/// What to do with the unsealed files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// How many pieces to keep, from the front; gaps among them are holes.
    pub kept: usize,
    /// Corrupt ranges, by offset.
    pub holes: Vec<CorruptRange>,
    /// The next offset to write.
    pub log_end: Offset,
    /// What is cut off behind the last good batch, if there is anything.
    pub cut: Option<Cut>,
}

/// A corrupt range: what becomes a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorruptRange {
    /// Offsets that cannot be read.
    pub offsets: Range<Offset>,
    /// Which of the files.
    pub file: usize,
    /// The bad bytes.
    pub positions: Range<u64>,
}

/// Bytes that are cut off the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Which of the files: what follows it goes altogether.
    pub file: usize,
    /// Where it is cut.
    pub position: u64,
    /// Why.
    pub verdict: Verdict,
}

/// What happened to a bad batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// A crash cut it off; it was never on stable storage.
    Torn,
    /// Nothing says whether it was on stable storage.
    Undecided,
    /// It was on stable storage.
    Corrupt,
}

impl Verdict {
    /// The word for reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Torn => "torn",
            Self::Undecided => "undecided",
            Self::Corrupt => "corrupt",
        }
    }
}

/// Decides what the unsealed files are worth. `start` is the offset after the sealed segments.
#[must_use]
pub fn decide(pieces: &[Piece], start: Offset, known: Known) -> Decision {
    let mut decision = Decision { kept: 0, holes: Vec::new(), log_end: start, cut: None };
    for (number, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Run(run) => decision.log_end = run.offsets.end,
            Piece::Gap(gap) => {
                let verdict = verdict(gap, &pieces[number + 1..], known);
                let next = pieces[number + 1..].iter().find_map(run_start);
                match (verdict, next) {
                    (Verdict::Corrupt, Some(next)) => decision.holes.push(CorruptRange {
                        offsets: gap.start..next,
                        file: gap.file,
                        positions: gap.positions.clone(),
                    }),
                    _ => {
                        decision.cut = Some(Cut { file: gap.file, position: gap.positions.start, verdict });
                        break;
                    }
                }
            }
        }
        decision.kept = number + 1;
    }
    hold_flushed_offsets(&mut decision, pieces, known);
    decision
}

/// Offsets that were on stable storage are never given out again, even if their bytes are gone.
fn hold_flushed_offsets(decision: &mut Decision, pieces: &[Piece], known: Known) {
    if cfg!(hw_mutate = "h11_reuse_offset") {
        return;
    }
    let Some(known_end) = known.flushed_end.max(known.clean_end) else { return };
    if decision.log_end >= known_end {
        return;
    }
    let last = pieces[..decision.kept].iter().rev().find_map(|piece| match piece {
        Piece::Run(run) => Some((run.file, run.positions.end)),
        Piece::Gap(_) => None,
    });
    let (file, position) = decision.cut.map(|cut| (cut.file, cut.position)).or(last).unwrap_or((0, 0));
    decision.holes.push(CorruptRange {
        offsets: decision.log_end..known_end,
        file,
        positions: position..position,
    });
    decision.log_end = known_end;
}

fn run_start(piece: &Piece) -> Option<Offset> {
    match piece {
        Piece::Run(run) => Some(run.offsets.start),
        Piece::Gap(_) => None,
    }
}

/// The verdict about a gap, given what comes after it.
#[must_use]
pub fn verdict(gap: &Gap, after: &[Piece], known: Known) -> Verdict {
    let durable_end = after.iter().filter_map(|piece| match piece {
        Piece::Run(run) => Some(run.durable_end),
        Piece::Gap(_) => None,
    });
    let durable_end = durable_end.max();
    let good_after = durable_end.is_some() && !cfg!(hw_mutate = "h10_cut_at_first_bad");
    let evidence = durable_end.filter(|_| good_after).max(known.flushed_end).max(known.clean_end);
    let nothing_lost = known.same_kernel || known.clean_end.is_some();
    if evidence.is_some_and(|end| end > gap.start) || (nothing_lost && good_after) {
        Verdict::Corrupt
    } else if good_after || gap.whole {
        Verdict::Undecided
    } else {
        Verdict::Torn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(offsets: Range<u64>, durable_end: u64) -> Piece {
        Piece::Run(Run {
            file: 0,
            offsets: Offset(offsets.start)..Offset(offsets.end),
            positions: offsets.start * 100..offsets.end * 100,
            durable_end: Offset(durable_end),
        })
    }

    fn gap(start: u64, end: u64) -> Piece {
        Piece::Gap(Gap { file: 0, start: Offset(start), positions: start * 100..end * 100, whole: false })
    }

    fn holes(decision: &Decision) -> Vec<(u64, u64)> {
        decision.holes.iter().map(|hole| (hole.offsets.start.get(), hole.offsets.end.get())).collect()
    }

    #[test]
    fn nothing_bad_nothing_done() {
        let decision = decide(&[run(5..9, 3)], Offset(5), Known::default());
        assert_eq!((decision.kept, decision.log_end, decision.cut), (1, Offset(9), None));
        assert!(decision.holes.is_empty());
        assert_eq!(decide(&[], Offset(5), Known::default()).log_end, Offset(5));
    }

    #[test]
    fn h10_a_later_batch_that_knew_it_durable_makes_it_corrupt() {
        let pieces = [run(0..4, 0), gap(4, 6), run(6..9, 5)];
        let decision = decide(&pieces, Offset(0), Known::default());
        assert_eq!(holes(&decision), [(4, 6)]);
        assert_eq!((decision.kept, decision.log_end, decision.cut), (3, Offset(9), None));
    }

    #[test]
    fn a_later_batch_that_did_not_know_leaves_it_undecided() {
        let pieces = [run(0..4, 0), gap(4, 6), run(6..9, 4)];
        let decision = decide(&pieces, Offset(0), Known::default());
        assert_eq!((decision.kept, decision.log_end), (1, Offset(4)));
        assert_eq!(decision.cut, Some(Cut { file: 0, position: 400, verdict: Verdict::Undecided }));
        let same_kernel = Known { same_kernel: true, ..Known::default() };
        assert_eq!(holes(&decide(&pieces, Offset(0), same_kernel)), [(4, 6)]);
        let clean = Known { clean_end: Some(Offset(9)), ..Known::default() };
        assert_eq!(holes(&decide(&pieces, Offset(0), clean)), [(4, 6)]);
    }

    #[test]
    fn a_bad_tail_is_torn_even_if_the_kernel_runs_on() {
        let pieces = [run(0..4, 0), gap(4, 6)];
        for same_kernel in [false, true] {
            let decision = decide(&pieces, Offset(0), Known { same_kernel, ..Known::default() });
            assert_eq!(decision.log_end, Offset(4));
            assert_eq!(decision.cut.map(|cut| cut.verdict), Some(Verdict::Torn));
        }
    }

    #[test]
    fn h11_flushed_offsets_are_never_given_out_again() {
        let known = Known { flushed_end: Some(Offset(6)), ..Known::default() };
        let torn = decide(&[run(0..4, 0), gap(4, 5)], Offset(0), known);
        assert_eq!((holes(&torn), torn.log_end), (vec![(4, 6)], Offset(6)));
        assert_eq!(torn.cut, Some(Cut { file: 0, position: 400, verdict: Verdict::Corrupt }));
        let gone = decide(&[run(0..4, 0)], Offset(0), known);
        assert_eq!((holes(&gone), gone.log_end, gone.cut), (vec![(4, 6)], Offset(6), None));
        let nothing = decide(&[], Offset(0), known);
        assert_eq!((holes(&nothing), nothing.log_end), (vec![(0, 6)], Offset(6)));
        let covered = decide(&[run(0..4, 0), gap(4, 5), run(5..8, 0)], Offset(0), known);
        assert_eq!((holes(&covered), covered.log_end), (vec![(4, 5)], Offset(8)));
    }

    #[test]
    fn evidence_reaches_back_over_several_gaps_and_cuts_only_the_last() {
        let pieces = [run(0..2, 0), gap(2, 3), run(3..5, 1), gap(5, 6), run(6..8, 4)];
        let decision = decide(&pieces, Offset(0), Known::default());
        assert_eq!(holes(&decision), [(2, 3)]);
        assert_eq!((decision.kept, decision.log_end), (3, Offset(5)));
        assert_eq!(decision.cut.map(|cut| cut.position), Some(500));
    }
}
