//! Records as `consume` prints them.

use std::io::Write;

use highwater_client::{PartitionId, RecordRef};

use crate::args::Format;

/// Turns records into lines.
#[derive(Debug)]
pub(crate) struct Encoder {
    format: Format,
    separator: Vec<u8>,
}

impl Encoder {
    /// Lines of this format; `separator` stands between key and value.
    pub(crate) fn new(format: Format, separator: &[u8]) -> Self {
        Self { format, separator: separator.to_vec() }
    }

    /// Appends the line of a record.
    #[inline]
    pub(crate) fn record(
        &self,
        partition: PartitionId,
        record: &RecordRef<'_>,
        out: &mut Vec<u8>,
    ) -> anyhow::Result<()> {
        match self.format {
            Format::Value => out.extend_from_slice(record.value.unwrap_or_default()),
            Format::KeyValue => {
                if let Some(key) = record.key {
                    out.extend_from_slice(key);
                    out.extend_from_slice(&self.separator);
                }
                out.extend_from_slice(record.value.unwrap_or_default());
            }
            Format::Json => json(partition, record, out)?,
        }
        out.push(b'\n');
        Ok(())
    }
}

fn json(partition: PartitionId, record: &RecordRef<'_>, out: &mut Vec<u8>) -> anyhow::Result<()> {
    write!(
        out,
        "{{\"partition\":{partition},\"offset\":{},\"timestamp\":{},",
        record.offset, record.timestamp
    )?;
    field("key", record.key, out)?;
    out.push(b',');
    field("value", record.value, out)?;
    out.extend_from_slice(b",\"headers\":[");
    for (index, (name, value)) in record.headers()?.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"name\":");
        serde_json::to_writer(&mut *out, name)?;
        out.push(b',');
        field("value", value, out)?;
        out.push(b'}');
    }
    out.extend_from_slice(b"]}");
    Ok(())
}

/// `"name":"text"`, `"name":null`, or `"name_base64":"…"` for bytes that are not UTF-8.
fn field(name: &str, bytes: Option<&[u8]>, out: &mut Vec<u8>) -> anyhow::Result<()> {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => write!(out, "\"{name}\":null")?,
        Some((_, Ok(text))) => {
            write!(out, "\"{name}\":")?;
            serde_json::to_writer(out, text)?;
        }
        Some((bytes, Err(_))) => {
            write!(out, "\"{name}_base64\":\"")?;
            base64(bytes, out);
            out.push(b'"');
        }
    }
    Ok(())
}

/// Appends the standard base64 of `bytes`, padded.
fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..4 {
            out.push(match place <= chunk.len() {
                true => ALPHABET[(bits >> (18 - 6 * place)) as usize & 63],
                false => b'=',
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_the_standard_has_it() {
        let encoded = |bytes: &[u8]| {
            let mut out = Vec::new();
            base64(bytes, &mut out);
            String::from_utf8(out).unwrap()
        };
        let vectors = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, expected) in vectors {
            assert_eq!(encoded(plain.as_bytes()), expected);
        }
        assert_eq!(encoded(&[0xff, 0xfe, 0xfb]), "//77");
    }

    #[test]
    fn a_field_is_text_null_or_base64() {
        let text = |bytes| {
            let mut out = Vec::new();
            field("key", bytes, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(None), "\"key\":null");
        assert_eq!(text(Some(b"a\"\n")), "\"key\":\"a\\\"\\n\"");
        assert_eq!(text(Some(&[0xff])), "\"key_base64\":\"/w==\"");
    }
}
