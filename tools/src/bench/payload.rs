//! Payloads that compress as far as was asked for, and that a consumer can check byte for byte.
//!
//! ```text
//! 0 sequence u64 | 8 check u64 | 16 noise…
//! ```
//!
//! The check covers sequence, size and entropy; the noise follows from the sequence. So whoever has a payload knows all that
//! it should be, whoever wrote it. Of every eight words behind the head as many are noise as a byte has bits of information
//! on average; the others are all the same.

use super::random::mix;

/// Bytes before the noise.
pub(crate) const HEAD: usize = 16;

/// Words of noise that every payload's noise is made from; a power of two.
const POOL_WORDS: usize = 4096;
const POOL_BYTES: usize = POOL_WORDS * 8;

/// Bits of information in each byte of a payload that is nothing but noise.
pub(crate) const ENTROPY_MOST: u8 = 8;

/// A word that is not noise.
const FILL: u64 = u64::from_le_bytes(*b"as ever ");

/// Where the number of the producer is in a sequence number. Above it and its eight bits, pieces of a payload differ.
const PRODUCER_SHIFT: u32 = 40;

/// The most producers that can be told apart.
pub(crate) const PRODUCERS_MOST: u32 = 1 << 8;

/// The sequence number of record `index` of a producer, which has numbers from 0 on.
pub(crate) const fn sequence_of(producer: u8, index: u64) -> u64 {
    ((producer as u64) << PRODUCER_SHIFT) | index
}

/// The producer of a sequence number, and the index among its records.
pub(crate) const fn producer_and_index(sequence: u64) -> (u64, u64) {
    (sequence >> PRODUCER_SHIFT, sequence & ((1 << PRODUCER_SHIFT) - 1))
}

/// Makes and checks payloads.
#[derive(Debug)]
pub(crate) struct Payloads {
    /// Twice the same, so that a payload can start anywhere in the first half.
    pool: Vec<u64>,
    /// Bits of information in each byte of what is written, up to [`ENTROPY_MOST`].
    entropy: u8,
}

impl Default for Payloads {
    fn default() -> Self {
        Self::with_entropy(ENTROPY_MOST)
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
    /// Payloads with this many bits of information in each byte behind the head, up to [`ENTROPY_MOST`]. What is checked may
    /// have any entropy.
    pub(crate) fn with_entropy(entropy: u8) -> Self {
        let mut pool: Vec<u64> =
            (0..POOL_WORDS as u64).map(|index| mix(index ^ 0x4869_6768_7761_7465)).collect();
        pool.extend_from_within(..);
        Self { pool, entropy: entropy.min(ENTROPY_MOST) }
    }

    /// Bits of information in each byte of what is written.
    pub(crate) const fn entropy(&self) -> u8 {
        self.entropy
    }

    /// Writes payload `sequence` over all of `out`, which has `HEAD` bytes at the least.
    #[inline]
    pub(crate) fn write(&self, sequence: u64, out: &mut [u8]) {
        let check = check(sequence, out.len(), self.entropy);
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
            if self.entropy < ENTROPY_MOST {
                dilute(piece, self.entropy);
            }
        }
    }

    /// Checks every byte, and returns the sequence.
    #[inline]
    pub(crate) fn check(&self, payload: &[u8]) -> Result<u64, BadPayload> {
        let (head, noise) = payload.split_at_checked(HEAD).ok_or(BadPayload::Head(payload.len()))?;
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
        let sequence = word(&head[..8]);
        let told = word(&head[8..]);
        if told != check(sequence, payload.len(), ENTROPY_MOST) {
            let entropy = (0..ENTROPY_MOST).find(|&entropy| told == check(sequence, payload.len(), entropy));
            let entropy = entropy.ok_or(BadPayload::Head(payload.len()))?;
            return self.check_diluted(payload, sequence, entropy);
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

    /// As [`Payloads::check`], for payloads that are not all noise: against the payload as it should be.
    fn check_diluted(&self, payload: &[u8], sequence: u64, entropy: u8) -> Result<u64, BadPayload> {
        for (index, piece) in payload[HEAD..].chunks(POOL_BYTES).enumerate() {
            let (words, key) = self.noise(sequence, index);
            let is_fill = |word: usize| word % 8 >= usize::from(entropy);
            for (place, chunk) in piece.chunks(8).enumerate() {
                let expected = match (is_fill(place), chunk.len()) {
                    (true, _) => FILL,
                    (false, 8) => words[place] ^ key,
                    (false, _) => key,
                };
                if chunk != &expected.to_le_bytes()[..chunk.len()] {
                    return Err(BadPayload::Noise { sequence, at: HEAD + index * POOL_BYTES + place * 8 });
                }
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

/// Puts the same word wherever there should be no noise.
fn dilute(piece: &mut [u8], entropy: u8) {
    for (place, chunk) in piece.chunks_mut(8).enumerate() {
        if place % 8 >= usize::from(entropy) {
            chunk.copy_from_slice(&FILL.to_le_bytes()[..chunk.len()]);
        }
    }
}

#[inline]
const fn check(sequence: u64, size: usize, entropy: u8) -> u64 {
    let all = mix(sequence ^ (size as u64).rotate_left(40) ^ 0x6265_6e63);
    // Far from all bits of the others: no damage of a few bits looks like another entropy.
    if entropy == ENTROPY_MOST { all } else { all ^ mix(u64::MAX - entropy as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload_of(entropy: u8, sequence: u64, size: usize) -> Vec<u8> {
        let mut out = vec![0; size];
        Payloads::with_entropy(entropy).write(sequence, &mut out);
        out
    }

    fn payload(sequence: u64, size: usize) -> Vec<u8> {
        payload_of(ENTROPY_MOST, sequence, size)
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

    #[test]
    fn every_entropy_is_checked_and_compresses_as_far_as_it_says() {
        let payloads = Payloads::default();
        for entropy in 0..=ENTROPY_MOST {
            for size in [16, 17, 100, 40_001] {
                let good = payload_of(entropy, 3, size);
                assert_eq!(payloads.check(&good), Ok(3), "entropy {entropy}, size {size}");
                for bit in (0..size * 8).step_by(1 + size / 20) {
                    let mut bad = good.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(payloads.check(&bad).is_err(), "entropy {entropy}, size {size}, bit {bit}");
                }
            }
            let all: Vec<u8> = (0..100).flat_map(|sequence| payload_of(entropy, sequence, 8208)).collect();
            let mut packed = Vec::new();
            highwater_client::Compression::Lz4.compress(&all, &mut packed).unwrap();
            let bits = 8.0 * packed.len() as f64 / all.len() as f64;
            assert!((bits - f64::from(entropy)).abs() < 0.8, "entropy {entropy}: {bits} bits a byte");
        }
    }

    #[test]
    fn producers_and_pieces_share_no_noise() {
        let last = (PRODUCERS_MOST - 1) as u8;
        assert_eq!(producer_and_index(sequence_of(last, (1 << 40) - 1)), (255, (1 << 40) - 1));
        let payloads = Payloads::default();
        let size = HEAD + 256 * POOL_BYTES;
        let keys: std::collections::BTreeSet<u64> = (0..=last)
            .flat_map(|producer| (0..size / POOL_BYTES).map(move |piece| (producer, piece)))
            .map(|(producer, piece)| payloads.noise(sequence_of(producer, 9), piece).1)
            .collect();
        assert_eq!(keys.len(), PRODUCERS_MOST as usize * 256);
    }
}
