//! Payloads that do not compress and that a consumer can check byte for byte.
//!
//! ```text
//! 0 sequence u64 | 8 check u64 | 16 noise…
//! ```
//!
//! The check covers sequence and size; the noise follows from the sequence. So whoever has a payload knows all that it
//! should be, whoever wrote it.

/// Bytes before the noise.
pub(crate) const HEAD: usize = 16;

/// Words of noise that every payload's noise is made from; a power of two.
const POOL_WORDS: usize = 4096;
const POOL_BYTES: usize = POOL_WORDS * 8;

/// Makes and checks payloads.
#[derive(Debug)]
pub(crate) struct Payloads {
    /// Twice the same, so that a payload can start anywhere in the first half.
    pool: Vec<u64>,
}

impl Default for Payloads {
    fn default() -> Self {
        let mut pool: Vec<u64> =
            (0..POOL_WORDS as u64).map(|index| mix(index ^ 0x4869_6768_7761_7465)).collect();
        pool.extend_from_within(..);
        Self { pool }
    }
}

/// What is wrong with a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadPayload {
    /// Another program's record, or its head is damaged.
    #[error("a value of {0} bytes that `bench produce` did not write, or whose head is damaged")]
    Head(usize),
    /// The noise is damaged.
    #[error("payload {sequence} is damaged from its byte {at} on")]
    Noise {
        /// Which payload.
        sequence: u64,
        /// The first word that differs.
        at: usize,
    },
}

impl Payloads {
    /// Writes payload `sequence` over all of `out`, which has `HEAD` bytes at the least.
    #[inline]
    pub(crate) fn write(&self, sequence: u64, out: &mut [u8]) {
        let check = check(sequence, out.len());
        let (head, noise) = out.split_at_mut(HEAD);
        head[..8].copy_from_slice(&sequence.to_le_bytes());
        head[8..].copy_from_slice(&check.to_le_bytes());
        for (index, piece) in noise.chunks_mut(POOL_BYTES).enumerate() {
            let (words, key) = self.noise(sequence, index);
            let mut chunks = piece.chunks_exact_mut(8);
            for (chunk, word) in (&mut chunks).zip(words) {
                chunk.copy_from_slice(&(word ^ key).to_le_bytes());
            }
            let rest = chunks.into_remainder();
            rest.copy_from_slice(&key.to_le_bytes()[..rest.len()]);
        }
    }

    /// Checks every byte, and returns the sequence.
    #[inline]
    pub(crate) fn check(&self, payload: &[u8]) -> Result<u64, BadPayload> {
        let (head, noise) = payload.split_at_checked(HEAD).ok_or(BadPayload::Head(payload.len()))?;
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let sequence = word(&head[..8]);
        if word(&head[8..]) != check(sequence, payload.len()) {
            return Err(BadPayload::Head(payload.len()));
        }
        for (index, piece) in noise.chunks(POOL_BYTES).enumerate() {
            let (words, key) = self.noise(sequence, index);
            let chunks = piece.chunks_exact(8);
            let rest = chunks.remainder();
            // All differences at once: no branch a word, so that it runs as fast as memory goes.
            let differs = |all: u64, (chunk, &expected): (&[u8], &u64)| all | (word(chunk) ^ key ^ expected);
            if chunks.clone().zip(words).fold(0, differs) != 0 || rest != &key.to_le_bytes()[..rest.len()] {
                let at = chunks.zip(words).position(|(chunk, expected)| word(chunk) ^ key != *expected);
                let at = at.map_or(piece.len() - rest.len(), |word| word * 8);
                return Err(BadPayload::Noise { sequence, at: HEAD + index * POOL_BYTES + at });
            }
        }
        Ok(sequence)
    }

    /// What piece `index` of a payload's noise is made from, and what that is changed by. No two pieces of any two
    /// payloads are changed by the same, so they share no run of bytes.
    #[inline]
    fn noise(&self, sequence: u64, index: usize) -> (&[u64], u64) {
        let key = mix(sequence.wrapping_add((index as u64) << 48));
        let start = key as usize % POOL_WORDS;
        (&self.pool[start..start + POOL_WORDS], key.rotate_left(17))
    }
}

#[inline]
const fn check(sequence: u64, size: usize) -> u64 {
    mix(sequence ^ (size as u64).rotate_left(40) ^ 0x6265_6e63)
}

/// Spreads every bit over all others (the finaliser of SplitMix64).
#[inline]
const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(sequence: u64, size: usize) -> Vec<u8> {
        let mut out = vec![0; size];
        Payloads::default().write(sequence, &mut out);
        out
    }

    #[test]
    fn every_size_comes_back_and_every_damage_is_seen() {
        let payloads = Payloads::default();
        for size in [16, 17, 23, 24, 100, 1024, 100_001] {
            for sequence in [0, 1, 77, u64::MAX] {
                let good = payload(sequence, size);
                assert_eq!(payloads.check(&good), Ok(sequence));
                for bit in (0..size * 8).step_by(1 + size / 50) {
                    let mut bad = good.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(payloads.check(&bad).is_err(), "size {size}, bit {bit}");
                }
                assert!(payloads.check(&good[..size - 1]).is_err());
            }
        }
        assert_eq!(payloads.check(b"short"), Err(BadPayload::Head(5)));
        let mut bad = payload(5, 1024);
        bad[513] ^= 1;
        assert_eq!(payloads.check(&bad), Err(BadPayload::Noise { sequence: 5, at: 512 }));
    }

    #[test]
    fn payloads_do_not_compress() {
        let all: Vec<u8> = (0..500).flat_map(|sequence| payload(sequence, 1024)).collect();
        let mut packed = Vec::new();
        highwater_client::Compression::Lz4.compress(&all, &mut packed).unwrap();
        assert!(packed.len() * 100 > all.len() * 99, "{} of {}", packed.len(), all.len());
    }
}
