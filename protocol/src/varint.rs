//! Zigzag variable-length integers as records use them (the layout of Kafka's v2 records and of protobuf's `sint64`).

/// The bytes of the longest varint.
pub const VARINT_BYTES_MAX: usize = 10;

/// Appends `value`.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// How many bytes `put_varint` appends for `value`.
#[inline]
#[must_use]
pub const fn varint_length(value: i64) -> usize {
    let significant_bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    significant_bits.div_ceil(7)
}

/// Takes a varint from the front of `input`, or `None` if it is cut short or longer than 64 bits.
#[inline]
#[must_use]
pub fn take_varint(input: &mut &[u8]) -> Option<i64> {
    match *input {
        [first, rest @ ..] if *first < 0x80 => {
            *input = rest;
            Some(unzigzag(u64::from(*first)))
        }
        // Lengths and deltas from 64 to 8191: as common as those below.
        [first, second, rest @ ..] if *second < 0x80 => {
            *input = rest;
            Some(unzigzag(u64::from(*first & 0x7f) | u64::from(*second) << 7))
        }
        _ => take_long_varint(input),
    }
}

fn take_long_varint(input: &mut &[u8]) -> Option<i64> {
    let mut value = 0u64;
    let mut rest = *input;
    for index in 0..VARINT_BYTES_MAX {
        let (&byte, after) = rest.split_first()?;
        if index == VARINT_BYTES_MAX - 1 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        rest = after;
        if byte < 0x80 {
            *input = rest;
            return Some(unzigzag(value));
        }
    }
    None
}

#[inline]
const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

#[inline]
const fn unzigzag(value: u64) -> i64 {
    ((value >> 1) as i64) ^ -((value & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extremes_round_trip_in_the_length_foretold() {
        for value in [0, 1, -1, 63, 64, -64, -65, 8191, 8192, i64::from(i32::MAX), i64::MAX, i64::MIN] {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(bytes.len(), varint_length(value), "{value}");
            let mut rest = bytes.as_slice();
            assert_eq!(take_varint(&mut rest), Some(value));
            assert!(rest.is_empty());
            for cut in 0..bytes.len() {
                assert_eq!(take_varint(&mut &bytes[..cut]), None, "{value} cut at {cut}");
            }
        }
    }

    #[test]
    fn more_than_64_bits_are_refused() {
        let too_long = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02];
        assert_eq!(take_varint(&mut too_long.as_slice()), None);
        assert_eq!(take_varint(&mut [0x80u8; 12].as_slice()), None);
    }
}
