//! What of the scanned files is kept.

use highwater_broker_core::log::recovery::{Decision, Piece};
use highwater_protocol::ids::Offset;

use crate::storage::log::Active;
use crate::storage::log::scan_files::{FilesScan, ScannedFile};

/// The last state of each file that is kept, `None` for files of which nothing is.
pub(super) fn kept_states<'a>(scan: &'a FilesScan, decision: &Decision) -> Vec<Option<&'a Active>> {
    let runs_of = |number: usize| {
        let kept = &scan.pieces[..decision.kept];
        kept.iter().filter(|piece| matches!(piece, Piece::Run(run) if run.file == number)).count()
    };
    let state = |(number, file): (usize, &'a ScannedFile)| {
        runs_of(number).checked_sub(1).and_then(|last| file.states.get(last))
    };
    scan.files.iter().enumerate().map(state).collect()
}

pub(super) fn end_offset(scan: &FilesScan, decision: &Decision, number: usize) -> Offset {
    let last = scan.pieces[..decision.kept].iter().rev().find_map(|piece| match piece {
        Piece::Run(run) if run.file == number => Some(run.offsets.end),
        _ => None,
    });
    last.unwrap_or_default()
}

pub(super) fn kept_durable_end(scan: &FilesScan, decision: &Decision) -> Offset {
    let runs = scan.pieces[..decision.kept].iter().filter_map(|piece| match piece {
        Piece::Run(run) => Some(run.durable_end),
        Piece::Gap(_) => None,
    });
    runs.max().unwrap_or_default()
}
