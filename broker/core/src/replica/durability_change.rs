//! The effective durability of a partition, and how it follows the wanted one without ever promising too much.
//!
//! While the two differ the high watermark goes by the stricter. A weaker one is recorded before anything relaxes, so
//! that after a restart nobody believes that the tail was flushed. A stricter one is recorded only once every in-sync
//! flushed end has reached the watermark, so that what the record says is true of everything below it.

use super::Output;
use crate::durability::Durability;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DurabilityChange {
    wanted: Durability,
    effective: Durability,
    /// What is being recorded, if anything.
    recording: Option<Durability>,
}

impl DurabilityChange {
    pub(super) const fn new(effective: Durability) -> Self {
        Self { wanted: effective, effective, recording: None }
    }

    pub(super) const fn effective(self) -> Durability {
        self.effective
    }

    pub(super) fn gate(self) -> Durability {
        self.wanted.stricter(self.effective)
    }

    pub(super) fn want(&mut self, wanted: Durability, flushed_past_watermark: bool, out: &mut Vec<Output>) {
        let before = self.gate();
        self.wanted = wanted;
        self.announce(before, out);
        self.progressed(flushed_past_watermark, out);
    }

    /// The record is durable. If another one is wanted by now, the next change begins.
    pub(super) fn recorded(
        &mut self,
        recorded: Durability,
        flushed_past_watermark: bool,
        out: &mut Vec<Output>,
    ) {
        let before = self.gate();
        if self.recording == Some(recorded) {
            self.recording = None;
        }
        self.effective = recorded;
        self.announce(before, out);
        self.progressed(flushed_past_watermark, out);
    }

    /// Asks for a record if one is due.
    pub(super) fn progressed(&mut self, flushed_past_watermark: bool, out: &mut Vec<Output>) {
        if self.recording.is_some() || self.wanted == self.effective {
            return;
        }
        let stricter = self.wanted.is_stricter_than(self.effective);
        if stricter && !flushed_past_watermark {
            return;
        }
        self.recording = Some(self.wanted);
        out.push(Output::RecordDurability(self.wanted));
    }

    fn announce(self, before: Durability, out: &mut Vec<Output>) {
        if self.gate() != before {
            out.push(Output::FlushBy(self.gate()));
        }
    }
}
