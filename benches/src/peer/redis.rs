//! Redis streams over RESP: `XADD` in pipelines, `XREAD` in pieces.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};

use super::link::{Link, line};
use super::{Client, Load};

/// Records of one `XREAD`.
const READ_RECORDS: u64 = 1000;

pub(super) struct Redis {
    link: Link,
}

impl Redis {
    pub(super) fn connect(address: SocketAddr) -> Result<Self> {
        Ok(Self { link: Link::connect(address)? })
    }
}

impl Client for Redis {
    fn produce(&mut self, load: Load, payload: &[u8]) -> Result<()> {
        let command = command(&[b"XADD", b"bench", b"*", b"v", payload]);
        let (mut sent, mut answered) = (0, 0);
        let mut pipeline = Vec::new();
        while answered < load.records {
            // Half of what may be in flight at a time: the server always has something to do.
            let room = load.in_flight - (sent - answered);
            let count = room.min(load.records - sent);
            if count > 0 && (room >= load.in_flight / 2 || sent + count == load.records) {
                pipeline.clear();
                (0..count).for_each(|_| pipeline.extend_from_slice(&command));
                self.link.send(&pipeline)?;
                sent += count;
            }
            self.link.next(|bytes| Ok(skip(bytes, &mut |_, _| ())?.map(|length| ((), length))))?;
            answered += 1;
        }
        Ok(())
    }

    fn consume(&mut self, load: Load) -> Result<u64> {
        let count = READ_RECORDS.to_string();
        let mut last = "0".to_owned();
        let (mut records, mut bytes) = (0, 0);
        while records < load.records {
            let read =
                command(&[b"XREAD", b"COUNT", count.as_bytes(), b"STREAMS", b"bench", last.as_bytes()]);
            self.link.send(&read)?;
            let (came, values, id) = self.link.next(|reply| {
                let (mut came, mut values, mut id) = (0, 0, String::new());
                // A stream is [name, [[id, [field, value]], …]]: ids are at depth 4, fields and values at 5.
                let mut is_value = false;
                let length = skip(reply, &mut |depth, text| match depth {
                    4 => id = String::from_utf8_lossy(text).into_owned(),
                    5 if is_value => {
                        came += 1;
                        values += text.len() as u64;
                        is_value = false;
                    }
                    5 => is_value = true,
                    _ => {}
                })?;
                Ok(length.map(|length| ((came, values, id.clone()), length)))
            })?;
            ensure!(came > 0, "the stream ends after {records} records");
            records += came;
            bytes += values;
            last = id;
        }
        Ok(bytes)
    }
}

/// A command as an array of strings.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

/// Shows `see` each string of a reply with how deep it is, and returns how long the reply is, if it is there as a whole.
fn skip(bytes: &[u8], see: &mut impl FnMut(usize, &[u8])) -> Result<Option<usize>> {
    // How many values are still to come, by depth.
    let mut open = vec![1_u64];
    let mut at = 0;
    while let Some(left) = open.last_mut() {
        if *left == 0 {
            open.pop();
            continue;
        }
        *left -= 1;
        let depth = open.len() - 1;
        let rest = bytes.get(at..).unwrap_or_default();
        let Some((head, length)) = line(rest)? else { return Ok(None) };
        at += length;
        let number = || head.get(1..).and_then(|digits| digits.parse::<i64>().ok()).context("a length");
        match head.as_bytes().first() {
            Some(b'*') => open.push(u64::try_from(number()?).unwrap_or(0)),
            Some(b'$') => {
                let length = usize::try_from(number()?).context("a string that is not there")?;
                let Some(text) = rest.get(head.len() + 2..head.len() + 2 + length) else { return Ok(None) };
                if rest.len() < head.len() + length + 4 {
                    return Ok(None);
                }
                see(depth, text);
                at += length + 2;
            }
            Some(b'+' | b':') => {}
            _ => bail!("the server says: {head}"),
        }
    }
    Ok(Some(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_taken_apart_once_it_is_there() {
        let reply =
            b"*1\r\n*2\r\n$5\r\nbench\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nv\r\n$4\r\nabcd\r\n+OK\r\n";
        let whole = reply.len() - 5;
        let mut seen = Vec::new();
        let length =
            skip(reply, &mut |depth, text| seen.push((depth, String::from_utf8_lossy(text).into_owned())));
        assert_eq!(length.unwrap(), Some(whole));
        let seen: Vec<_> = seen.iter().map(|(depth, text)| (*depth, text.as_str())).collect();
        assert_eq!(seen, [(2, "bench"), (4, "1-0"), (5, "v"), (5, "abcd")]);
        for cut in 0..whole {
            assert_eq!(skip(&reply[..cut], &mut |_, _| ()).unwrap(), None, "after {cut} bytes");
        }
    }

    #[test]
    fn what_the_server_refuses_is_an_error() {
        let error = skip(b"-ERR unknown command\r\n", &mut |_, _| ()).unwrap_err();
        assert!(error.to_string().contains("unknown command"), "{error}");
    }
}
