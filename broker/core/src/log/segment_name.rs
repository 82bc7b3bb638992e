//! Names of segment files.

use std::fmt;

use highwater_protocol::ids::Offset;

/// Which file of a partition: its first offset, and a serial number that no other file of the partition ever had.
///
/// The serial number tells files apart that start at the same offset: what was truncated away, and what was appended
/// after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SegmentName {
    /// From 0, counted up for every file.
    pub serial: u64,
    /// The first offset that may be in it.
    pub base_offset: Offset,
}

/// How the name of a segment file ends.
pub const SEGMENT_SUFFIX: &str = ".segment";
/// How the name of its index ends.
pub const INDEX_SUFFIX: &str = ".index";

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

    /// What both names start with.
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
        for other in
            ["", "12-1.segment", "00000000000000000012-000000FF.segment", "manifest", "x.segment.tmp"]
        {
            assert_eq!(SegmentName::parse(other), None);
        }
    }
}
