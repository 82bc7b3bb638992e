//! Values of flags: sizes, start positions, separators, settings.

use std::time::UNIX_EPOCH;

/// Where `consume` starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    /// At the log start.
    Earliest,
    /// At the high watermark.
    Latest,
    /// At this offset.
    Offset(u64),
    /// At the first record whose timestamp is at least this, in milliseconds since the Unix epoch.
    Time(i64),
}

/// Bytes between key and value; not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Separator(pub(crate) Vec<u8>);

/// Parses `earliest`, `latest`, `OFFSET` or `@TIME`.
pub(crate) fn from(text: &str) -> Result<From, String> {
    match text {
        "earliest" => return Ok(From::Earliest),
        "latest" => return Ok(From::Latest),
        _ => {}
    }
    let Some(time) = text.strip_prefix('@') else {
        return text
            .parse()
            .map(From::Offset)
            .map_err(|_| "expected earliest, latest, an offset, or @ and a time".to_owned());
    };
    if let Ok(milliseconds) = time.parse() {
        return Ok(From::Time(milliseconds));
    }
    let moment = humantime::parse_rfc3339_weak(time).map_err(|error| {
        format!("{error}: expected a time such as @2026-11-21T08:30:00Z, or milliseconds since 1970")
    })?;
    // humantime refuses years before 1970.
    let since_epoch = moment.duration_since(UNIX_EPOCH).map_err(|error| error.to_string())?;
    i64::try_from(since_epoch.as_millis()).map(From::Time).map_err(|error| error.to_string())
}

/// Parses a separator; `\t`, `\n`, `\0` and `\\` stand for what they do in most languages.
pub(crate) fn separator(text: &str) -> Result<Separator, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        let escaped = match character {
            '\\' => match characters.next() {
                Some('t') => '\t',
                Some('0') => '\0',
                Some('\\') => '\\',
                Some(other) => return Err(format!("\\{other} is not known; use \\t, \\0 or \\\\")),
                None => return Err("a single \\ is not a separator; write \\\\".to_owned()),
            },
            plain => plain,
        };
        bytes.extend_from_slice(escaped.encode_utf8(&mut [0; 4]).as_bytes());
    }
    match bytes.contains(&b'\n') {
        _ if bytes.is_empty() => Err("the separator must not be empty".to_owned()),
        true => Err("lines end at newlines, so a newline cannot separate key and value".to_owned()),
        false => Ok(Separator(bytes)),
    }
}

/// Parses `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected KEY=VALUE, such as durability=os".to_owned()),
    }
}

/// Parses bytes: a plain number or one with KiB, MiB or GiB.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("B", 0)];
    let (number, shift) = units
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number.trim_end(), *shift)))
        .unwrap_or((text, 0));
    let number: u64 =
        number.parse().map_err(|_| "expected bytes, such as 65536, 64KiB, 50MiB or 1GiB".to_owned())?;
    let bytes = number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too much"))?;
    if bytes == 0 { Err("expected more than 0 bytes".to_owned()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_positions() {
        assert_eq!(from("earliest"), Ok(From::Earliest));
        assert_eq!(from("latest"), Ok(From::Latest));
        assert_eq!(from("42"), Ok(From::Offset(42)));
        assert_eq!(from("@1500"), Ok(From::Time(1500)));
        assert_eq!(from("@1970-01-01T00:00:02Z"), Ok(From::Time(2000)));
        for wrong in ["", "-1", "first", "@", "@yesterday"] {
            assert!(from(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn separators() {
        assert_eq!(separator("\\t"), Ok(Separator(b"\t".to_vec())));
        assert_eq!(separator(": "), Ok(Separator(b": ".to_vec())));
        assert_eq!(separator("\\\\"), Ok(Separator(b"\\".to_vec())));
        assert_eq!(separator("→"), Ok(Separator("→".as_bytes().to_vec())));
        for wrong in ["", "\\", "\\x", "\n"] {
            assert!(separator(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn sizes_and_settings() {
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("17"), Ok(17));
        assert_eq!(bytes("2 GiB"), Ok(2 << 30));
        for wrong in ["", "0", "64KB", "-1", "99999999999GiB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(key_value("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(key_value("=b").is_err());
        assert!(key_value("a").is_err());
    }
}
