//! Names of segment files.

use std::fmt;

use highwater_protocol::ids::Offset;

/// Which file of a partition: its first offset, and a serial number that no other file of the partition ever had.
///
/// The serial number tells files apart that start at the same offset: what was truncated away, and what was appended
/// after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentName {
    /// From 0, counted up for every file; repaired segments have numbers of their own, from [`REPAIRED_SERIAL`] on.
    pub serial: u64,
    /// The first offset that may be in it.
    pub base_offset: Offset,
}

/// How the name of a segment file ends.
pub const SEGMENT_SUFFIX: &str = ".segment";
/// How the name of its index ends.
pub const INDEX_SUFFIX: &str = ".index";
/// How the name of the snapshot of its producers ends.
pub const PRODUCERS_SUFFIX: &str = ".producers";

/// Serial numbers from here on are those of repaired segments, which stand for a damaged one or fill a gap. They are never
/// appended to, so they are no part of the unsealed tail.
pub const REPAIRED_SERIAL: u64 = 1 << 63;

impl SegmentName {
    /// The segment of a file name, if that is what it names.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let (base, serial) = name.strip_suffix(SEGMENT_SUFFIX)?.split_once('-')?;
        let parsed =
            Self { base_offset: Offset(base.parse().ok()?), serial: u64::from_str_radix(serial, 16).ok()? };
        (parsed.to_string() == name).then_some(parsed)
    }

    /// The name of its index file.
    #[must_use]
    pub fn index_name(&self) -> String {
        format!("{}{INDEX_SUFFIX}", self.stem())
    }

    /// The name of the snapshot of producers at its end.
    #[must_use]
    pub fn producers_name(&self) -> String {
        format!("{}{PRODUCERS_SUFFIX}", self.stem())
    }

    /// The segment whose producers are in a file of this name, if it is such a file.
    #[must_use]
    pub fn parse_producers(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(PRODUCERS_SUFFIX)?;
        Self::parse(&format!("{stem}{SEGMENT_SUFFIX}"))
    }

    /// Whether it was written to repair a damaged segment.
    #[must_use]
    pub const fn is_repaired(&self) -> bool {
        self.serial >= REPAIRED_SERIAL
    }

    /// What all its names start with.
    #[must_use]
    pub fn stem(&self) -> String {
        format!("{:020}-{:08x}", self.base_offset.get(), self.serial)
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEGMENT_SUFFIX}", self.stem())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nothing_else_parses() {
        let name = SegmentName { serial: 0xff, base_offset: Offset(12) };
        assert_eq!(name.to_string(), "00000000000000000012-000000ff.segment");
        assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
        let large = SegmentName { serial: u64::MAX, base_offset: Offset(u64::MAX) };
        assert_eq!(SegmentName::parse(&large.to_string()), Some(large));
        assert_eq!(SegmentName::parse_producers(&name.producers_name()), Some(name));
        assert_eq!(SegmentName::parse_producers(&name.index_name()), None);
        assert!(large.is_repaired() && !name.is_repaired());
        for other in
            ["", "12-1.segment", "00000000000000000012-000000FF.segment", "manifest", "x.segment.tmp"]
        {
            assert_eq!(SegmentName::parse(other), None);
        }
    }
}
