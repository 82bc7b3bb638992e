//! The effective durability of a partition, and how it follows the wanted one without ever promising too much.
//!
//! While the two differ the high watermark goes by the stricter. A weaker one is recorded before anything relaxes, so
//! that after a restart nobody believes that the tail was flushed. A stricter one is recorded only once everything below
//! the watermark is flushed wherever a leader may come from, so that what the record says is true. Only a leader records.

use super::types::Output;
use crate::durability::Durability;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DurabilityChange {
    wanted: Durability,
    effective: Durability,
    /// What is being recorded, if anything.
    recording: Option<Durability>,
}

impl DurabilityChange {
    pub(super) const fn new(wanted: Durability, effective: Durability) -> Self {
        Self { wanted, effective, recording: None }
    }

    pub(super) const fn effective(self) -> Durability {
        self.effective
    }

    pub(super) const fn wanted(self) -> Durability {
        self.wanted
    }

    pub(super) fn gate(self) -> Durability {
        if cfg!(hw_mutate = "durability_relaxed_before_record") {
            return self.wanted;
        }
        self.wanted.stricter(self.effective)
    }

    pub(super) fn want(&mut self, wanted: Durability, out: &mut Vec<Output>) {
        let before = self.gate();
        self.wanted = wanted;
        self.announce(before, out);
    }

    /// The record is durable. If another one is wanted by now, the next change begins.
    pub(super) fn recorded(&mut self, recorded: Durability, out: &mut Vec<Output>) {
        let before = self.gate();
        if self.recording == Some(recorded) {
            self.recording = None;
        }
        self.effective = recorded;
        self.announce(before, out);
    }

    /// What was asked for is for another leader to ask for again.
    pub(super) const fn forget_recording(&mut self) {
        self.recording = None;
    }

    /// Asks for a record if one is due. Only for a leader. `flushed`: see above.
    pub(super) fn progressed(&mut self, flushed: bool, out: &mut Vec<Output>) {
        if self.recording.is_some() || self.wanted == self.effective {
            return;
        }
        let stricter = self.wanted.is_stricter_than(self.effective);
        if stricter && !flushed {
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
