//! Numbers that look random and follow from a sequence number, so that whoever knows the number knows them all.

/// Spreads every bit over all others (the finaliser of SplitMix64).
#[inline]
pub(super) const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A number of at least 0 and below 1. `purpose` keeps the numbers of one sequence apart.
#[inline]
pub(super) fn unit(sequence: u64, purpose: u64) -> f64 {
    // As many bits as an f64 tells apart.
    (mix(mix(sequence) ^ purpose) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_spread_evenly_and_stay_below_one() {
        const COUNT: u64 = 100_000;
        let mut tenths = [0_u64; 10];
        for sequence in 0..COUNT {
            let at = unit(sequence, 7);
            assert!((0.0..1.0).contains(&at), "{at}");
            tenths[(at * 10.0) as usize] += 1;
        }
        // Five standard deviations of a fair draw.
        assert!(tenths.iter().all(|count| count.abs_diff(COUNT / 10) < 475), "{tenths:?}");
        assert!(unit(1, 1).to_bits() != unit(1, 2).to_bits());
    }
}
