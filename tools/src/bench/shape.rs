//! What the records of a bench are like: sizes, keys, entropy.

use std::ops::Range;

use highwater_client::{Compression, ProducerRecord};
use serde_json::{Map, Value, json};

use super::keys::{KEY_BYTES, Keys};
use super::payload::{Payloads, sequence_of};
use super::report::acks_name;
use super::sizes::Sizes;
use crate::args::BenchLoadArgs;
use crate::connect::compression;

/// What a record costs in a batch beside key and value.
const AROUND: u64 = 12;

/// Bytes of payloads that are compressed to see how far they are.
const SAMPLE_BYTES: u64 = 256 << 10;

/// Makes the records of a bench from their sequence numbers.
#[derive(Debug)]
pub(crate) struct Shape {
    sizes: Sizes,
    keys: Option<Keys>,
    payloads: Payloads,
    compression: Compression,
}

impl Shape {
    /// As it was asked for.
    ///
    /// # Errors
    /// When this build lacks the compression.
    pub(crate) fn new(sizes: &Sizes, load: &BenchLoadArgs) -> anyhow::Result<Self> {
        Ok(Self {
            sizes: sizes.clone(),
            keys: load.keys.map(|count| Keys::new(count, load.key_skew)),
            payloads: Payloads::with_entropy(load.entropy),
            compression: compression(load.compression)?,
        })
    }

    /// How many bytes values have.
    pub(crate) const fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    /// How batches are compressed.
    pub(crate) const fn compression(&self) -> Compression {
        self.compression
    }

    /// Whether records have keys, which say to which partition they go.
    pub(crate) const fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// How many records from `first` on, up to `end`, fill a batch of so many bytes; one at the least.
    pub(crate) fn that_fill(&self, first: u64, end: u64, bytes: u64) -> u64 {
        let around = AROUND + if self.has_keys() { KEY_BYTES as u64 } else { 0 };
        if let Some(size) = self.sizes.fixed() {
            return (bytes / (u64::from(size) + around)).clamp(1, (end - first).max(1));
        }
        let mut left = bytes;
        let fits = |sequence: &u64| {
            let cost = u64::from(self.sizes.at(*sequence)) + around;
            let is_room = cost <= left;
            left = left.saturating_sub(cost);
            is_room
        };
        ((first..end).take_while(fits).count() as u64).max(1)
    }

    /// All settings of a load, for reports.
    pub(crate) fn tell(&self, load: &BenchLoadArgs, more: &mut Map<String, Value>) {
        let mut insert = |name: &str, value: Value| more.insert(name.to_owned(), value);
        match self.sizes.fixed() {
            Some(size) => insert("size", json!(size)),
            None => {
                insert("size", json!(self.sizes.to_string()));
                insert("size_mean", json!(self.sizes.mean().round()))
            }
        };
        insert("entropy_bits", json!(self.payloads.entropy()));
        insert("keys", json!(self.keys.map(|keys| keys.count())));
        insert("key_skew", json!(self.keys.map(|keys| keys.skew().to_string())));
        insert("connections", json!(load.connections));
        insert("linger_us", json!(u64::try_from(load.linger.as_micros()).unwrap_or(u64::MAX)));
        insert("compression", json!(format!("{:?}", self.compression).to_lowercase()));
        insert("compressed_to", json!(self.compressed_to()));
        insert("acks", json!(acks_name(load.acks)));
    }

    /// The part of their bytes to which payloads like these compress; `None` without compression.
    fn compressed_to(&self) -> Option<f64> {
        if self.compression == Compression::None {
            return None;
        }
        let mut records = Records::default();
        let count = self.that_fill(0, u64::MAX, SAMPLE_BYTES);
        records.fill(self, 0..count);
        let raw = &records.values[..records.ends.last().copied().unwrap_or(0)];
        let mut packed = Vec::new();
        self.compression.compress(raw, &mut packed).ok()?;
        Some((packed.len() as f64 / raw.len() as f64 * 1e3).round() / 1e3)
    }
}

/// Records side by side, in memory that is used again.
#[derive(Debug, Default)]
pub(crate) struct Records {
    values: Vec<u8>,
    /// Where each value ends.
    ends: Vec<usize>,
    /// Empty when records have no keys.
    keys: Vec<[u8; KEY_BYTES]>,
}

impl Records {
    /// Makes the records with these sequence numbers.
    pub(crate) fn fill(&mut self, shape: &Shape, sequences: Range<u64>) {
        self.ends.clear();
        let mut end = 0;
        for sequence in sequences.clone() {
            end += shape.sizes.at(sequence) as usize;
            self.ends.push(end);
        }
        // Memory that was used before need not be zeroed again.
        if self.values.len() < end {
            self.values.resize(end, 0);
        }
        let mut start = 0;
        for (sequence, &end) in sequences.clone().zip(&self.ends) {
            shape.payloads.write(sequence, &mut self.values[start..end]);
            start = end;
        }
        self.keys.clear();
        if let Some(keys) = &shape.keys {
            self.keys.extend(sequences.map(|sequence| keys.key(sequence)));
        }
    }

    /// The records, for a topic.
    pub(crate) fn iter<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = ProducerRecord<'a>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).enumerate().map(move |(place, (start, &end))| {
            let record = ProducerRecord::new(topic).value(&self.values[start..end]);
            match self.keys.get(place) {
                Some(key) => record.key(key),
                None => record,
            }
        })
    }
}

/// The sequence numbers of a producer's records.
pub(crate) const fn sequences(producer: u8, indices: Range<u64>) -> Range<u64> {
    sequence_of(producer, indices.start)..sequence_of(producer, indices.end)
}
